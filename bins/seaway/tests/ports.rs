//! Host ports and limits of pods, with the real agent on a real lab: healed, changed while the pod lives, told when they
//! clash.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::time::{Duration, Instant};

use common::{Lab, eventually, ok, run};
use serde_json::{Value, json};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop");

fn pod(name: &str, node: &str, host_port: u16) -> String {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "annotations": {"kubernetes.io/egress-bandwidth": "10M"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x",
            "ports": [{"containerPort": 8080, "hostPort": host_port}]}]}})
    .to_string()
}

fn running(lab: &Lab, name: &str) -> bool {
    lab.pods().iter().any(|p| p.name == name)
}

/// What a connection to the node's own port gets: whether anybody answers.
fn answers(lab: &Lab, node: &str, port: u16) -> bool {
    let line = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    run(&mut lab.on_node(node, &["timeout", "1", "bash", "-c", &line])).status.success()
}

#[test]
fn host_ports_are_healed_and_limits_follow_the_annotations() {
    let lab = Lab::up(&[SHOP, "--nodes", "1", "--ip", "dual"]);
    let node = lab.objects("nodes", "")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let make = |name: &str, port| {
        lab.api("POST", "/api/v1/namespaces/shop/pods", Some(("application/json", &pod(name, &node, port))))
    };
    make("direct", 8088);
    eventually("the pod runs", Duration::from_secs(20), || running(&lab, "direct").then_some(()));
    eventually("its host port answers", Duration::from_secs(5), || answers(&lab, &node, 8088).then_some(()));
    let table = || run(&mut lab.on_node(&node, &["nft", "list", "table", "inet", "seaway-hostports"]));
    for harm in [&["nft", "flush", "ruleset"][..], &["nft", "flush", "chain", "inet", "seaway-hostports", "output"]] {
        ok(&mut lab.on_node(&node, harm));
        let start = Instant::now();
        eventually(&format!("{harm:?} is healed"), Duration::from_secs(2), || {
            (table().status.success() && answers(&lab, &node, 8088)).then_some(())
        });
        eprintln!("{harm:?}: whole after {:?}", start.elapsed());
    }

    let tc = || ok(&mut lab.on_node(&node, &["tc", "qdisc", "show"]));
    assert!(tc().contains("rate 10Mbit"), "{}", tc());
    let annotate = |v: Value| {
        lab.patch("/api/v1/namespaces/shop/pods/direct", &json!({"metadata": {"annotations": v}}).to_string());
    };
    annotate(json!({"kubernetes.io/egress-bandwidth": "20M", "kubernetes.io/ingress-bandwidth": "5M"}));
    eventually("other limits", Duration::from_secs(2), || {
        let t = tc();
        (t.contains("rate 20Mbit") && t.contains("rate 5Mbit") && !t.contains("rate 10Mbit")).then_some(())
    });
    annotate(json!({"kubernetes.io/egress-bandwidth": null, "kubernetes.io/ingress-bandwidth": null}));
    eventually("no limits", Duration::from_secs(2), || (!tc().contains("tbf")).then_some(()));
    assert!(!ok(&mut lab.on_node(&node, &["ip", "-br", "link"])).contains("bwp"));
    assert!(answers(&lab, &node, 8088), "the pod is where it was");

    // The node port of the shop's Service comes first; somebody is told.
    make("clash", 30080);
    eventually("an Event tells of the clash", Duration::from_secs(20), || {
        let events = lab.objects("events", "-A");
        events
            .iter()
            .any(|e| e["message"].as_str().is_some_and(|m| m.contains("30080/TCP is also the node port of")))
            .then_some(())
    });

    for name in ["direct", "clash"] {
        lab.api("DELETE", &format!("/api/v1/namespaces/shop/pods/{name}"), None);
    }
    eventually("nothing is left", Duration::from_secs(30), || {
        (!String::from_utf8_lossy(&table().stdout).contains("comment")).then_some(())
    });
}
