//! What an agent cannot honour, where a person looks first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Lab, eventually, ok};
use serde_json::{Value, json};

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

/// Two that want one port, an address of a family that the Service has not, a pool that is exhausted, a port that a process
/// of the node has: each is told at its Service, with the field and the cure.
#[test]
fn what_a_service_asks_for_and_cannot_have_is_an_event_at_it() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    let node1 = kernel::Netns::open(format!("/run/netns/{}-node1", lab.name)).unwrap();
    let _process = node1.run(|| std::net::TcpListener::bind("0.0.0.0:32123")).unwrap().unwrap();
    let create = |path: &str, v: &Value| lab.api("POST", path, Some(("application/json", &v.to_string())));
    let pool = json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "small"},
        "spec": {"addresses": ["172.31.1.200/32"]}});
    create("/apis/seaway.io/v1alpha1/loadbalancerpools", &pool);
    let service = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["ports"] = json!([{"port": 80}]);
        spec["ipFamilies"] = json!(["IPv4"]);
        spec["ipFamilyPolicy"] = "SingleStack".into();
        let v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        create("/api/v1/namespaces/default/services", &v)
    };
    service("a-first", json!({"externalIPs": ["192.0.2.77"]}));
    service("b-second", json!({"externalIPs": ["192.0.2.77"]}));
    service("c-family", json!({"externalIPs": ["2001:db8::77"]}));
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32123});
    service("d-checked", local);
    service("e-exhausted", json!({"type": "LoadBalancer"}));
    for (name, reason, parts) in [
        (
            "b-second",
            "NotHonoured",
            ["spec.externalIPs", "192.0.2.77 port 80/TCP is already served by Service default/a-first: choose another"],
        ),
        (
            "c-family",
            "NotHonoured",
            ["spec.externalIPs", "no IPv6 cluster address, so 2001:db8::77 is not served: add the family"],
        ),
        ("d-checked", "FailedToStartServiceHealthcheck", ["spec.healthCheckNodePort", "stop who has the port"]),
        ("e-exhausted", "", ["LoadBalancerPool small is in use", "add addresses to it"]),
    ] {
        eventually(&format!("{name} is told"), Duration::from_secs(30), || {
            let says = |e: &Value| parts.iter().all(|p| e["message"].as_str().is_some_and(|m| m.contains(p)));
            let is = |e: &&Value| {
                e["involvedObject"]["name"] == name
                    && e["involvedObject"]["kind"] == "Service"
                    && e["type"] == "Warning"
            };
            let all = lab.objects("events", "default");
            all.iter().filter(is).any(|e| says(e) && (reason.is_empty() || e["reason"] == reason)).then_some(())
        });
    }
    // Who was first has it, and is told nothing.
    let all = lab.objects("events", "default");
    assert!(all.iter().all(|e| e["involvedObject"]["name"] != "a-first"), "{all:?}");
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
