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

/// An operator who reads the log sees each pass once: what was heard, how much was changed by whom, how long it took.
#[test]
fn a_pass_is_one_line_of_the_log() {
    let lab = Lab::up(&["--nodes", "2"]);
    let lines = || {
        let text = std::fs::read_to_string(lab.dir().join("logs/agent-node1.log")).unwrap();
        text.lines().filter(|l| l.contains("reconcile")).map(str::to_owned).collect::<Vec<_>>()
    };
    let quiet = || {
        let before = lines().len();
        std::thread::sleep(Duration::from_secs(3));
        (before == lines().len()).then_some(before)
    };
    let before = eventually("the lab comes to rest", Duration::from_secs(60), quiet);
    // Nobody makes slices of a Service without a selector: it is all that happens.
    let service =
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alone"}, "spec": {"ports": [{"port": 80}]}}"#;
    lab.api("POST", "/api/v1/namespaces/default/services", Some(("application/json", service)));
    eventually("a line", Duration::from_secs(20), || (lines().len() > before).then_some(()));
    let after = eventually("rest", Duration::from_secs(60), quiet);
    assert_eq!(after, before + 1, "{:#?}", lines());
    let line = lines().pop().unwrap();
    for part in
        [" INFO ", "result=\"changed\"", "heard=\"Service 1\"", "ops=", "fabric=0", "nftables=", "refused=0", "ms="]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
}
