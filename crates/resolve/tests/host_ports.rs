//! Random host ports: what a node gives to the pods that ask, as a table; and that what was given stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{cluster, local, service, settings, two};
use intent::HostPort;
use resolve::host_ports::{PortsHere, telling};
use resolve::{LocalState, Resolved, resolve};
use serde_json::{Value, json};
use types::{ObjectName, PortKey, Proto};

fn pod(name: &str, asks: &str, more: Value) -> Value {
    let mut v = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"),
            "annotations": {"seaway.io/random-host-ports": asks}},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 80}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 9000, "hostPort": 21_001}]}]}});
    for (k, x) in more.as_object().unwrap() {
        let at = if k == "annotations" { &mut v["metadata"]["annotations"] } else { &mut v["spec"] };
        for (k, x) in x.as_object().unwrap() {
            at[k] = x.clone();
        }
    }
    v
}

fn with(objects: &[Value], ports: PortsHere) -> Resolved {
    let mut all = two();
    all[0]["metadata"]["annotations"]["seaway.io/host-port-range"] = "21000-21003".into();
    all.extend_from_slice(objects);
    resolve(&cluster(&all), &LocalState { ports, ..local() })
}

fn got(r: &Resolved, name: &str) -> Vec<HostPort> {
    r.intent.pods[&ObjectName::new("default", name)].host_ports.clone()
}

fn tcp(port: u16) -> PortKey {
    PortKey { proto: Proto::Tcp, port }
}

fn port(proto: Proto, host: u16, to: u16) -> HostPort {
    HostPort { host: PortKey { proto, port: host }, host_ip: None, container_port: to }
}

#[test]
fn what_is_asked_for() {
    let none = json!({});
    for (asks, more, want) in [
        ("80", none.clone(), Ok("80/TCP")),
        ("web dns", none.clone(), Ok("80/TCP 53/UDP")),
        ("*", none.clone(), Ok("80/TCP 53/UDP")),
        ("*/UDP", none.clone(), Ok("53/UDP")),
        ("7/sctp, 8/UDP@192.168.0.1", none.clone(), Ok("8/UDP@192.168.0.1 7/SCTP")),
        ("80@0.0.0.0", none.clone(), Ok("80/TCP@0.0.0.0")),
        ("", none.clone(), Err("asks for nothing: write ports")),
        ("0", none.clone(), Err("a port from 1 to 65535 is needed")),
        ("70000", none.clone(), Err("a port from 1 to 65535 is needed")),
        ("80/ICMP", none.clone(), Err("TCP, UDP or SCTP is needed after /")),
        ("web/UDP", none.clone(), Err("no container has a port of that name")),
        ("*/SCTP", none.clone(), Err("no container has such a port")),
        ("80 web", none.clone(), Err("has port 80/TCP twice")),
        ("9000", none.clone(), Err("has hostPort 21001 in the pod's spec: remove one of the two")),
        ("80@host", none.clone(), Err("an address of the node is needed after @")),
        ("80@192.168.0.9", none.clone(), Err("which is no address of Node node1")),
        ("80@fd00::1", none.clone(), Err("pods here have no address of that family")),
        ("80", json!({"annotations": {"seaway.io/mode": "macvlan"}}), Err("use another mode")),
        ("80", json!({"spec": {"hostNetwork": true}}), Err("listens on the node's own ports")),
    ] {
        let r = with(&[pod("a", asks, more)], PortsHere::default());
        let of_pod = r.problems.iter().find(|p| p.object == "Pod/default/a");
        match want {
            Ok(want) => {
                assert_eq!(of_pod, None, "{asks}");
                let ip = |p: &HostPort| p.host_ip.map(|a| format!("@{a}")).unwrap_or_default();
                let all = got(&r, "a");
                let text: Vec<String> =
                    all.iter().map(|p| format!("{}/{}{}", p.container_port, p.host.proto, ip(p))).collect();
                assert_eq!(text.join(" "), want, "{asks}");
                assert!(all.iter().all(|p| (21_000..=21_003).contains(&p.host.port)), "{all:?}");
            }
            Err(says) => {
                let p = of_pod.unwrap();
                assert_eq!(p.field, "metadata.annotations[seaway.io/random-host-ports]", "{asks}");
                assert!(p.why.contains(says), "{asks}: {}", p.why);
            }
        }
    }
}

#[test]
fn a_number_is_given_that_nobody_has() {
    let node_port = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 21_000}]}));
    // 21001 is the pod's own hostPort; another's is 21002.
    let held = [(tcp(21_002), None)].into_iter().collect();
    let here = PortsHere { held, ..PortsHere::default() };
    let r = with(&[node_port.clone(), pod("a", "80, dns", json!({}))], here.clone());
    assert_eq!(got(&r, "a")[0], port(Proto::Tcp, 21_003, 80));
    let udp = got(&r, "a")[1].host;
    assert_eq!((udp.proto, got(&r, "a").len()), (Proto::Udp, 2), "of UDP all are free");
    // One more finds none, and says so; it is not attached.
    let r = with(&[node_port, pod("a", "80", json!({})), pod("b", "80", json!({}))], here);
    let b = &r.intent.pods[&ObjectName::new("default", "b")];
    assert!(b.refused.as_ref().unwrap().contains("no port of 21000-21003 is free on Node node1 for port 80/TCP"));
    assert_eq!(b.host_ports, []);
}

#[test]
fn what_was_given_stays() {
    let tells = |ports: &[HostPort]| json!({"annotations": {"seaway.io/host-ports": telling(ports)}});
    let told = port(Proto::Tcp, 21_002, 80);
    let spec = |r: &Resolved| r.intent.pods[&ObjectName::new("default", "a")].clone();
    // The Pod tells it: after a reboot of the node that is all there is.
    let r = with(&[pod("a", "80", tells(&[told]))], PortsHere::default());
    assert_eq!((got(&r, "a"), spec(&r).untold), (vec![told], false));
    // Chosen and not told: an agent that was killed in between.
    let chosen = PortsHere { chosen: [("uid-a".into(), vec![told])].into(), ..PortsHere::default() };
    let r = with(&[pod("a", "80", json!({}))], chosen.clone());
    assert_eq!((got(&r, "a"), spec(&r).untold), (vec![told], true));
    // Before it is attached it makes way for others' listeners, hostPorts and node ports, and follows the range.
    let held = PortsHere { held: [(tcp(21_002), None)].into(), ..chosen.clone() };
    let rival = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "r", "namespace": "default", "uid": "r"},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 21_002}]}]}});
    let range = settings(json!({"hostPortRange": "22000-22000"}));
    for (objects, here) in [(vec![], held.clone()), (vec![rival.clone()], PortsHere::default())] {
        let r = with(&[vec![pod("a", "80", tells(&[told]))], objects].concat(), here);
        assert_ne!(got(&r, "a"), [told]);
        assert!(spec(&r).untold);
    }
    let elsewhere = port(Proto::Tcp, 22_000, 80);
    assert_ne!(got(&with(&[range, pod("a", "80", tells(&[elsewhere]))], PortsHere::default()), "a"), [elsewhere]);
    // Attached, it keeps what it has, whatever comes; a later ask waits for the next pod.
    let attached = PortsHere {
        held: [(tcp(30_500), Some("uid-a".into()))].into(),
        chosen: [("uid-a".into(), vec![port(Proto::Tcp, 30_500, 80)])].into(),
        attached: ["uid-a".into()].into(),
    };
    let node_port = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_500}]}));
    let r = with(&[node_port, pod("a", "80, 81", tells(&[told]))], attached);
    assert_eq!((got(&r, "a"), spec(&r).untold), (vec![port(Proto::Tcp, 30_500, 80)], true));
    let says: Vec<&str> = r.problems.iter().filter(|p| p.object == "Pod/default/a").map(|p| &*p.why).collect();
    assert!(says.iter().any(|w| w.contains("asks for port 81/TCP since the pod was attached")), "{says:?}");
    assert!(says.iter().any(|w| w.contains("the node port of a Service by now")), "{says:?}");
    // One that has ended has none.
    let mut ended = pod("b", "80", tells(&[told]));
    ended["status"] = json!({"phase": "Succeeded"});
    let r = with(&[ended, pod("a", "80", tells(&[told]))], PortsHere::default());
    assert_eq!(got(&r, "a"), [told]);
    assert!(!r.intent.pods.contains_key(&ObjectName::new("default", "b")));
}
