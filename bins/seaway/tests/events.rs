//! What an agent cannot honour, where a person looks first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Lab, eventually, ok};

fn kubectl(lab: &Lab, args: &[&str]) -> String {
    let mut c = Command::new("kubectl");
    c.arg("--kubeconfig").arg(lab.dir().join("kubeconfig")).args(["--cache-dir"]).arg(lab.dir().join("kubectl-cache"));
    ok(c.args(args))
}

#[test]
fn a_refusal_is_an_event_at_its_object() {
    let lab = Lab::up(&["--nodes", "2"]);
    lab.patch("/api/v1/namespaces/kube-system/configmaps/seaway", r#"{"data": {"backnd": "vxlan"}}"#);
    let told = || {
        let all = lab.objects("events", "kube-system");
        let ours = all.into_iter().filter(|e| e["involvedObject"]["name"] == "seaway").collect::<Vec<_>>();
        (ours.len() >= 2).then_some(ours)
    };
    let ours = eventually("both agents tell of the setting", Duration::from_secs(20), told);
    for e in &ours {
        assert_eq!(
            (&e["type"], &e["reason"], &e["source"]["component"]),
            (&"Warning".into(), &"NotHonoured".into(), &"seaway-agent".into())
        );
        let message = e["message"].as_str().unwrap();
        assert!(
            message.contains("data.backnd") && message.contains("correct it to") && message.contains("backend"),
            "{message}"
        );
    }
    let hosts: std::collections::BTreeSet<_> = ours.iter().map(|e| e["source"]["host"].to_string()).collect();
    assert_eq!(hosts.len(), 2, "each node speaks for itself");
    let text = kubectl(&lab, &["-n", "kube-system", "describe", "configmap", "seaway"]);
    assert!(text.contains("NotHonoured") && text.contains("data.backnd"), "{text}");
    let text = kubectl(&lab, &["-n", "kube-system", "get", "events"]);
    assert!(text.contains("configmap/seaway") && text.contains("Warning"), "{text}");
}

#[test]
fn a_node_says_that_it_has_a_network() {
    let lab = Lab::up(&["--nodes", "2"]);
    let conditions = || {
        let nodes = lab.objects("nodes", "");
        let of = |n: &serde_json::Value, kind: &str| {
            n["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned()
        };
        let all: Vec<_> = nodes.iter().filter_map(|n| of(n, "NetworkUnavailable").zip(of(n, "Ready"))).collect();
        (all.len() == 2).then_some(all)
    };
    for (network, ready) in eventually("both nodes have the condition", Duration::from_secs(30), conditions) {
        assert_eq!((&network["status"], &network["reason"]), (&"False".into(), &"SeawayIsUp".into()));
        assert!(network["lastTransitionTime"].as_str().is_some_and(|t| t.ends_with('Z')), "{network}");
        assert_eq!(ready["status"], "True", "what others say of the node stays");
    }
}
