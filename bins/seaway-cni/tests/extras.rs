//! Host ports and limits of Seaway's own pods: one ADD, no further plugin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "plugins/wires.rs"]
mod wires;

use common::Node;
use serde_json::{Value, json};
use wires::{Echo, tcp, udp, world};

fn conf(node: &Node, runtime: Value) -> Value {
    node.conf_with("runtimeConfig", runtime)
}

fn map(host: u16, container: u16, proto: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": proto})
}

fn ports(all: &[Value]) -> Value {
    json!({"portMappings": all})
}

fn add(node: &Node, name: &str, c: &Value) {
    node.pod(name);
    node.call("ADD", name, c).unwrap_or_else(|e| panic!("ADD {name}: {e}"));
    node.sh_pod(name, "ip link set lo up");
}

fn table(node: &Node) -> String {
    node.sh("nft list table inet seaway-hostports 2>/dev/null || true")
}

#[test]
fn a_pod_s_ports_lead_to_it_from_everywhere() {
    let node = Node::new();
    world(&node);
    let c = conf(&node, ports(&[map(8080, 80, "tcp"), map(5353, 53, "udp")]));
    add(&node, "a", &c);
    add(&node, "b", &node.conf);
    let echo = Echo::start(&node, "a", &[80], &[53]);
    for (from, to, sees) in [
        ("world", "192.0.2.1:8080", "a saw 192.0.2.9"),
        ("world", "[2001:db8::1]:8080", "a saw 2001:db8::9"),
        ("node", "127.0.0.1:8080", "a saw 192.0.2.1"),
        ("node", "192.0.2.1:8080", "a saw 192.0.2.1"),
        ("node", "[2001:db8::1]:8080", "a saw 2001:db8::1"),
        ("a", "192.0.2.1:8080", "a saw 192.0.2.1"),
        ("a", "[2001:db8::1]:8080", "a saw 2001:db8::1"),
        ("b", "192.0.2.1:8080", "a saw 10.244.1."),
        ("b", "[2001:db8::1]:8080", "a saw fd00:10:244:1:"),
    ] {
        let got = tcp(&node, from, to);
        assert!(got.starts_with(sees), "{from} to {to}: {got}");
    }
    assert_eq!(udp(&node, "world", "192.0.2.1:5353", 0), "a saw 192.0.2.9");
    let result = node.call("ADD", "a", &c).unwrap();
    let mut check = c.clone();
    check["prevResult"] = result;
    node.call("CHECK", "a", &check).unwrap();
    // Another pod cannot have the port, and gets nothing else either.
    node.pod("c");
    let e = node.call("ADD", "c", &conf(&node, ports(&[map(81, 80, "tcp"), map(8080, 80, "tcp")]))).unwrap_err();
    assert_eq!(e["code"], 104, "{e}");
    node.assert_exactly(&["a", "b"].map(String::from).into());
    assert!(!table(&node).contains("tcp . 81"));
    node.sh("nft flush ruleset");
    assert_eq!(node.call("CHECK", "a", &check).unwrap_err()["code"], 101);
    node.call("ADD", "a", &c).unwrap();
    assert_eq!(tcp(&node, "node", "127.0.0.1:8080"), "a saw 192.0.2.1");
    drop(echo);
    node.del("a");
    node.del("a");
    assert!(!table(&node).contains("comment"), "{}", table(&node));
    node.assert_exactly(&["b".to_owned()].into());
}

#[test]
fn limits_come_and_go_with_the_pod() {
    let node = Node::new();
    let c = conf(
        &node,
        json!({"bandwidth": {"ingressRate": 8_000_000, "egressRate": 4_000_000, "egressBurst": 4_294_967_295_u64}}),
    );
    add(&node, "a", &c);
    let qdiscs = || node.sh("tc qdisc show | grep tbf || true");
    let shown = qdiscs();
    assert!(shown.contains("rate 8Mbit burst 50") && shown.contains("rate 4Mbit burst 25"), "{shown}");
    let result = node.call("ADD", "a", &c).unwrap();
    let mut check = c.clone();
    check["prevResult"] = result;
    node.call("CHECK", "a", &check).unwrap();
    node.sh("tc qdisc del dev $(ip -br link show type ifb | cut -d' ' -f1) root");
    assert_eq!(node.call("CHECK", "a", &check).unwrap_err()["code"], 101);
    // Other limits, on the living pod.
    let less = conf(&node, json!({"bandwidth": {"ingressRate": 16_000_000}}));
    node.call("ADD", "a", &less).unwrap();
    assert!(qdiscs().contains("rate 16Mbit") && node.sh("ip link show type ifb").is_empty(), "{}", qdiscs());
    node.call("ADD", "a", &c).unwrap();
    assert!(!node.sh("ip link show type ifb").is_empty());
    node.del("a");
    // The link itself goes a moment after DEL has answered.
    let start = std::time::Instant::now();
    while !qdiscs().is_empty() && start.elapsed() < std::time::Duration::from_secs(5) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!((qdiscs(), node.sh("ip link show type ifb")), (String::new(), String::new()));
    for wrong in [json!({"bandwidth": {"ingressBurst": 8000}}), json!({"portMappings": [map(0, 80, "tcp")]})] {
        node.pod(&format!("w{}", wrong.to_string().len()));
        let e = node.call("ADD", &format!("w{}", wrong.to_string().len()), &conf(&node, wrong)).unwrap_err();
        assert_eq!(e["code"], 7, "{e}");
    }
    node.assert_exactly(&[].into());
}

#[test]
fn what_is_left_of_lost_pods_goes_with_gc() {
    let node = Node::new();
    for (name, port) in [("a", 8001), ("b", 8002)] {
        let c = conf(&node, json!({"portMappings": [map(port, 80, "tcp")], "bandwidth": {"egressRate": 1_000_000}}));
        add(&node, name, &c);
    }
    let before = table(&node);
    let mut gc = node.conf_with("cni.dev/valid-attachments", json!([{"containerID": "b", "ifname": "eth0"}]));
    node.call("GC", "", &gc).unwrap();
    let after = table(&node);
    assert!(!after.contains("tcp . 8001") && after.contains("tcp . 8002"), "{before}\n{after}");
    assert_eq!(node.sh("ip -br link show type ifb").lines().count(), 1);
    // The journal is lost as well.
    std::fs::remove_dir_all(node.data_dir()).unwrap();
    gc["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", &gc).unwrap();
    assert!(!table(&node).contains("comment"));
    assert_eq!(node.sh("ip -br link show type ifb"), "");
}

#[test]
fn five_seconds_show_the_limits_of_a_pod_that_is_guarded() {
    let node = Node::new();
    let c = conf(&node, json!({"bandwidth": {"ingressRate": 20_000_000, "egressRate": 10_000_000}}));
    let result = {
        node.pod("a");
        node.call("ADD", "a", &c).unwrap()
    };
    let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    for (way, rate) in [("", 20e6), ("-R", 10e6)] {
        let start =
            || std::process::Command::new("iperf3").args(["-s", "-1"]).stdout(std::process::Stdio::null()).spawn();
        let mut server = wires::ns(&node, "a").run(start).unwrap().expect("iperf3 is missing: apt-get install iperf3");
        let mut got = Value::Null;
        for _ in 0..50 {
            got = serde_json::from_str(&node.sh(&format!("iperf3 -J -t 5 {way} -c {address} || true"))).unwrap();
            if got["error"].is_null() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = server.kill();
        let _ = server.wait();
        let bits = got["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{got}"));
        println!("{way}: {:.2} of {:.2} Mbit/s", bits / 1e6, rate / 1e6);
        assert!((0.9 * rate..1.1 * rate).contains(&bits), "{way}: {bits:.0} bit/s, not {rate:.0}");
    }
}
