//! What an agent of a lab says at /metrics of what happened in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::process::Command;
use std::time::Instant;

use common::{Lab, PATIENCE, Proc, eventually, ok, run};
use serde_json::{Value, json};

const NODES: [&str; 2] = ["node1", "node2"];
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const DATED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The text of a scrape; empty while nobody answers.
fn scrape(lab: &Lab, node: &str) -> String {
    let out = run(&mut lab.on_node(node, &["curl", "-s", "-m", "5", "http://127.0.0.1:9642/metrics"]));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The value of one series, written as in a scrape; none before it is there.
fn value(lab: &Lab, node: &str, series: &str) -> Option<f64> {
    scrape(lab, node).lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn create(lab: &Lab, path: &str, object: &Value) {
    lab.api("POST", path, Some(("application/json", &object.to_string())));
}

/// A moment so many seconds ago, as a controller writes it.
fn ago(seconds: u32) -> String {
    ok(Command::new("date").args(["-u", "-d", &format!("{seconds} seconds ago"), "+%Y-%m-%dT%H:%M:%S.%3NZ"]))
        .trim()
        .to_owned()
}

fn slice(name: &str, family: &str, address: &str, dated: Option<&str>) -> Value {
    let mut s = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "dated"}},
        "addressType": family, "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]});
    if let Some(at) = dated {
        s["metadata"]["annotations"][DATED] = at.into();
    }
    s
}

#[test]
fn the_time_from_a_change_to_its_rules_is_measured_from_the_slices_date() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    const NAME: &str = "kubeproxy_network_programming_duration_seconds";
    let count = |node: &str, family: &str| value(&lab, node, &format!("{NAME}_count{{ip_family=\"{family}\"}}"));
    let sum = |node: &str, family: &str| value(&lab, node, &format!("{NAME}_sum{{ip_family=\"{family}\"}}"));
    let below = |node: &str, family: &str, le: &str| {
        value(&lab, node, &format!("{NAME}_bucket{{le=\"{le}\",ip_family=\"{family}\"}}"))
    };
    for n in NODES {
        eventually("both agents are scraped", PATIENCE, || count(n, "IPv4"));
        assert_eq!((count(n, "IPv4"), count(n, "IPv6")), (Some(0.0), Some(0.0)), "what was there before is not dated");
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dated"},
        "spec": {"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80, "targetPort": 8080}]}});
    create(&lab, SERVICES, &service);
    let began = Instant::now();
    create(&lab, SLICES, &slice("dated-4", "IPv4", "10.244.0.9", Some(&ago(7))));
    create(&lab, SLICES, &slice("dated-6", "IPv6", "fd00:10:244::9", None));
    for n in NODES {
        eventually("the dated slice is programmed", PATIENCE, || count(n, "IPv4").filter(|c| *c == 1.0));
        let (took, most) = (sum(n, "IPv4").unwrap(), 8.0 + began.elapsed().as_secs_f64());
        assert!((7.0..most).contains(&took), "{n}: {took} s, and the test took {most} s");
        assert_eq!((below(n, "IPv4", "6.0"), below(n, "IPv4", "+Inf")), (Some(0.0), Some(1.0)));
        // Programmed in the same pass or before the next: undated, it counts for nothing.
        let rules = || {
            let mut c = lab.on_node(n, &["nft", "list", "table", "inet", "seaway"]);
            ok(&mut c).contains("fd00:10:244::9").then_some(())
        };
        eventually("the other slice is programmed too", PATIENCE, rules);
        assert_eq!(count(n, "IPv6"), Some(0.0));
    }
    // Dated as it changes.
    let patch = json!({"metadata": {"annotations": {DATED: ago(0)}},
        "endpoints": [{"addresses": ["fd00:10:244::a"], "conditions": {"ready": true}}]});
    lab.patch(&format!("{SLICES}/dated-6"), &patch.to_string());
    for n in NODES {
        eventually("the other is counted in its family", PATIENCE, || count(n, "IPv6").filter(|c| *c == 1.0));
        assert_eq!(count(n, "IPv4"), Some(1.0));
    }
    // The neighbours of this metric move with it.
    let text = scrape(&lab, "node1");
    let of = |series: &str| -> f64 {
        let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in {text}")).parse().unwrap()
    };
    assert!(of("kubeproxy_sync_proxy_rules_endpoint_changes_total") >= 3.0);
    assert!(of("kubeproxy_sync_proxy_rules_service_changes_total") >= 1.0);
    assert_eq!(of("kubeproxy_sync_proxy_rules_endpoint_changes_pending"), 0.0);
    assert!(of("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}") >= 3.0);
    assert!(of("kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}") >= 1.0);
    assert!(
        of("kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}")
            >= of("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}") - 1.0
    );
}

#[test]
fn announced_addresses_are_counted_as_they_move() {
    let lab = Lab::up(&["--nodes", "2", "--ip", "dual"]);
    let of = |node: &str, what: &str| value(&lab, node, &format!("seaway_announced_addresses{what}"));
    let pool = json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "public"},
        "spec": {"addresses": ["172.31.1.200-172.31.1.203", "fd00:31:1::c8-fd00:31:1::cb"]}});
    create(&lab, "/apis/seaway.io/v1alpha1/loadbalancerpools", &pool);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}});
    create(&lab, SERVICES, &service);
    let all = || NODES.map(|n| of(n, "").unwrap_or(0.0));
    let two =
        eventually("both addresses are announced", PATIENCE, || Some(all()).filter(|a| a.iter().sum::<f64>() == 2.0));
    for (n, has) in NODES.iter().zip(two) {
        assert_eq!((of(n, "_taken_total"), of(n, "_taken_over_total")), (Some(has), Some(0.0)), "{n}");
        assert_eq!(of(n, "_given_up_total"), Some(0.0), "{n}");
    }
    // The node that has one dies; the other takes it over.
    let (dies, stays) = if two[0] > 0.0 { (NODES[0], NODES[1]) } else { (NODES[1], NODES[0]) };
    let (had, lost) = (of(stays, "").unwrap(), of(dies, "").unwrap());
    Proc::find(&lab, &["agent", dies]).iter().for_each(Proc::kill);
    eventually("the other has both", PATIENCE, || of(stays, "").filter(|n| *n == 2.0));
    assert_eq!((of(stays, "_taken_total"), of(stays, "_taken_over_total")), (Some(had + lost), Some(lost)));
    // Begun anew it has none; and when the Service goes, what was announced is given up.
    ok(&mut lab.cmd(&["heal"]));
    eventually("the agent is back", PATIENCE, || of(dies, "").filter(|n| *n == 0.0));
    assert_eq!(of(dies, "_taken_total"), Some(0.0));
    lab.api("DELETE", &format!("{SERVICES}/web"), None);
    eventually("nothing is announced", PATIENCE, || of(stays, "").filter(|n| *n == 0.0));
    assert_eq!(of(stays, "_given_up_total"), Some(2.0));
    assert!(of(stays, "_conflicts_total").is_some());
}
