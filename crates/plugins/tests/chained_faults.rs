//! `portmap`, `bandwidth`, `tuning`, `sbr` and `firewall` on a machine that fails at every effect in turn: an ADD that
//! failed leaves nothing, one that was killed nothing after its DEL, and a second try succeeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use kernel_api::machine::{Machine, Netns};
use kernel_api::nft::{Element, TableName};
use kernel_api::rt::{Address, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink};
use kernel_api::tc::QdiscKind;
use kernel_api::{Nft, Rtnetlink};
use kernel_fake::fault::Fault;
use kernel_fake::machine::FakeMachine;
use serde_json::{Value, json};

use common::{FAULTS, with};

/// The namespace's path, to the fake. It is one that can be opened, since `sbr` locks it.
const POD: &str = "/proc/self/ns/net";

fn call(machine: &FakeMachine, command: &str, conf: &Value) -> cni::Outcome {
    common::call(machine, POD, command, conf)
}

/// A container on a veth, as a plugin before would leave it.
fn machine() -> FakeMachine {
    let mut m = FakeMachine::new();
    m.add_netns(POD);
    let inside = m.open(POD).unwrap();
    let (host, eth0) = ("v3".parse().unwrap(), "eth0".parse::<types::IfName>().unwrap());
    let kind = NewLinkKind::Veth { peer: eth0.clone(), peer_netns: Some(inside.fd()), peer_mac: None };
    let pair = NewLink { up: true, ..NewLink::new(host, kind) };
    m.host().unwrap().run(&[RtRequest::LinkAdd(pair)]).unwrap();
    let addr: std::net::IpAddr = [10, 88, 0, 3].into();
    let via = RouteTo::via([10, 88, 0, 1].into(), eth0.clone());
    let requests = [
        RtRequest::LinkSet(SetLink::up(eth0.clone())),
        RtRequest::AddressAdd(Address::new(eth0, addr, 24)),
        RtRequest::RouteReplace(Route::new("0.0.0.0/0".parse().unwrap(), via)),
    ];
    inside.rtnetlink().unwrap().run(&requests).unwrap();
    m
}

fn confs(dir: &std::path::Path) -> Vec<Value> {
    let prev = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "v3"}, {"name": "eth0", "sandbox": POD}],
        "ips": [{"interface": 1, "address": "10.88.0.3/24", "gateway": "10.88.0.1"}]});
    let of = |kind: &str, more: Value| {
        with(json!({"cniVersion": "1.0.0", "name": "net", "type": kind, "prevResult": prev}), &more)
    };
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp"}]);
    vec![
        of("portmap", json!({"runtimeConfig": {"portMappings": mappings}})),
        of("bandwidth", json!({"ingressRate": 8_000_000, "egressRate": 8_000_000})),
        of(
            "tuning",
            json!({"dataDir": dir, "sysctl": {"net.ipv4.conf.eth0.rp_filter": "1"}, "mtu": 1400, "promisc": true}),
        ),
        of("sbr", json!({})),
        of("firewall", json!({"ingressPolicy": "same-bridge"})),
    ]
}

/// Links, routes, rules, queues of both namespaces, elements of our tables, files; as text, without the kernel's indexes.
fn seen(machine: &FakeMachine, dir: &std::path::Path) -> String {
    let w = machine.world();
    let mut out = String::new();
    for ns in &w.namespaces {
        let s = &ns.state;
        let mut links: Vec<String> = s
            .links
            .iter()
            .map(|l| format!("{} mtu {} up {} promisc {} queue {}", l.name, l.mtu, l.up, l.promisc, l.txqlen))
            .collect();
        links.sort();
        let mut routes: Vec<String> = s.routes.iter().map(|r| r.route.to_string()).collect();
        routes.sort();
        let mut rt = ns.clone();
        let rules: Vec<String> =
            rt.rules().unwrap().iter().filter(|r| r.rule.src.is_some()).map(|r| r.rule.to_string()).collect();
        // An empty place for filters may be another's by now; it goes with its link.
        let queues: Vec<String> =
            rt.qdiscs().unwrap().iter().filter(|q| q.kind != QdiscKind::Clsact).map(ToString::to_string).collect();
        out += &format!("{links:#?}\n{routes:#?}\n{rules:?}\n{queues:?}\n");
    }
    for table in ["seaway-hostports", "seaway-firewall"] {
        let t = w.nft.clone().table(&TableName::recognise(table).unwrap()).unwrap().unwrap_or_default();
        let elements: Vec<Element> = t.elements.into_iter().flat_map(|(_, e)| e).collect();
        out += &format!("{elements:#?}\n");
    }
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().count();
    out + &format!("{files} files")
}

#[test]
fn an_add_that_failed_leaves_nothing_and_one_that_was_killed_leaves_nothing_after_del() {
    for which in 0..confs(std::path::Path::new("/")).len() {
        let dir = tempfile::tempdir().unwrap();
        let n = {
            let m = machine();
            let from = m.world().faults.count();
            let out = call(&m, "ADD", &confs(&dir.path().join("count"))[which]);
            assert_eq!(out.exit, 0, "{}", out.stdout);
            m.world().faults.count() - from
        };
        assert!(n > 0);
        for at in 0..n {
            for fault in FAULTS {
                let store = dir.path().join(format!("{at}{fault:?}"));
                let conf = &confs(&store)[which];
                let what = format!("{}: {fault:?} at {at} of {n}", conf["type"]);
                let m = machine();
                let before = seen(&m, &store);
                m.world().faults.script(at, fault);
                let out = call(&m, "ADD", conf);
                m.world().faults.heal();
                if fault == Fault::Crash || out.exit == 0 {
                    // A runtime deletes what it does not know to be whole.
                    let del = call(&m, "DEL", conf);
                    assert_eq!(del.exit, 0, "{what}: {}", del.stdout);
                }
                // Routes that sbr moved stay where their rules were: they go with the interface.
                if conf["type"] != "sbr" || (out.exit != 0 && fault != Fault::Crash) {
                    assert_eq!(seen(&m, &store), before, "{what}\n{}", out.stdout);
                }
                let again = call(&m, "ADD", conf);
                assert_eq!(again.exit, 0, "{what}: again: {}", again.stdout);
                let check = call(&m, "CHECK", conf);
                assert_eq!(check.exit, 0, "{what}: {}", check.stdout);
                let del = call(&m, "DEL", conf);
                assert_eq!(del.exit, 0, "{what}: {}", del.stdout);
            }
        }
    }
}
