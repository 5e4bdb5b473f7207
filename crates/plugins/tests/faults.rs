//! `bridge` and `ptp` with host-local on a machine that fails at every effect in turn: what an ADD that failed leaves, what
//! an ADD that was killed leaves after its DEL, and that a second try succeeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use kernel_api::nft::{Table, TableName};
use kernel_api::rt::{Address, Link, ObservedRoute};
use kernel_fake::fault::Fault;
use kernel_fake::machine::FakeMachine;
use serde_json::{Value, json};

use common::{FAULTS, with};

const POD: &str = "/fake/pod";

fn call(machine: &FakeMachine, command: &str, conf: &Value) -> cni::Outcome {
    common::call(machine, POD, command, conf)
}

/// Both namespaces' links, addresses and routes, less a bridge that stays and the kernel's indexes; the table; the store.
type Seen = (Vec<(Vec<Link>, Vec<Address>, Vec<ObservedRoute>)>, Option<Table>, Vec<String>);

fn seen(machine: &FakeMachine, store: &Path) -> Seen {
    use kernel_api::Nft;
    let w = machine.world();
    let spaces = w.namespaces.iter().map(|ns| {
        let s = &ns.state;
        let stays = |n: &types::IfName| n.as_str() == "br7";
        let mut links: Vec<Link> = s.links.iter().filter(|l| !stays(&l.name)).cloned().collect();
        links.sort_by_key(|l| l.name.clone());
        let addresses = s.addresses.iter().filter(|a| !stays(&a.link)).cloned().collect();
        let routes = s.routes.iter().filter(|r| r.route.to.link().is_none_or(|l| !stays(l))).cloned().collect();
        (links, addresses, routes)
    });
    let spaces = spaces.collect();
    let table = w.nft.clone().table(&TableName::recognise("seaway-masq").unwrap()).unwrap();
    let files = std::fs::read_dir(store.join("net")).into_iter().flatten().flatten();
    let mut files: Vec<String> =
        files.map(|f| f.file_name().into_string().unwrap()).filter(|f| f.starts_with(['1', 'f'])).collect();
    files.sort();
    (spaces, table, files)
}

fn confs(store: &Path) -> Vec<Value> {
    let ipam = json!({"type": "host-local", "dataDir": store, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]});
    let base = |kind: &str| json!({"cniVersion": "1.1.0", "name": "net", "type": kind, "ipam": ipam, "ipMasq": true, "mtu": 1400});
    let bridge = with(base("bridge"), &json!({"bridge": "br7", "isDefaultGateway": true, "hairpinMode": true}));
    vec![
        base("ptp"),
        with(bridge.clone(), &json!({"ipam": {}, "portIsolation": true})),
        with(bridge.clone(), &json!({"vlan": 9, "preserveDefaultVlan": false})),
        with(bridge, &json!({"macspoofchk": true})),
    ]
}

fn machine() -> FakeMachine {
    let m = FakeMachine::new();
    m.add_netns(POD);
    m
}

/// How many effects an ADD has.
fn effects(conf: &Value) -> usize {
    let m = machine();
    let out = call(&m, "ADD", conf);
    assert_eq!(out.exit, 0, "{}", out.stdout);
    let n = m.world().faults.count();
    assert!(n > 5, "{n}");
    n
}

#[test]
fn an_add_that_failed_leaves_nothing_and_one_that_was_killed_leaves_nothing_after_del() {
    for which in 0..confs(Path::new("/")).len() {
        let dir = tempfile::tempdir().unwrap();
        let n = effects(&confs(&dir.path().join("count"))[which]);
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
                } else {
                    assert!(
                        serde_json::from_str::<Value>(&out.stdout).unwrap()["code"].is_u64(),
                        "{what}: {}",
                        out.stdout
                    );
                }
                // A vlan's end on the node stays with its bridge.
                let strip = |mut s: Seen| {
                    for (links, addresses, routes) in &mut s.0 {
                        links.retain(|l| {
                            !(l.name.as_str() == "br7.9" || l.master.is_some() && conf.get("vlan").is_some())
                        });
                        addresses.retain(|a| a.link.as_str() != "br7.9");
                        routes.retain(|r| r.route.to.link().is_none_or(|l| l.as_str() != "br7.9"));
                    }
                    s
                };
                let (have, want) = (strip(seen(&m, &store)), strip(before.clone()));
                assert_eq!(have.2, want.2, "{what}: addresses\n{}", out.stdout);
                assert_eq!(have.1, want.1, "{what}: masquerading\n{}", out.stdout);
                for (have, want) in have.0.iter().zip(&want.0) {
                    assert_eq!(have, want, "{what}\n{}", out.stdout);
                }
                let again = call(&m, "ADD", conf);
                assert_eq!(again.exit, 0, "{what}: again: {}", again.stdout);
                let del = call(&m, "DEL", conf);
                assert_eq!((del.exit, strip(seen(&m, &store)).2), (0, vec![]), "{what}: {}", del.stdout);
            }
        }
    }
}

#[test]
fn a_del_that_failed_is_finished_by_the_next() {
    for which in 0..confs(Path::new("/")).len() {
        for at in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let conf = &confs(dir.path())[which];
            let m = machine();
            let added = call(&m, "ADD", conf);
            assert_eq!(added.exit, 0, "{}", added.stdout);
            let n = m.world().faults.count();
            m.world().faults.script(at, Fault::Crash);
            let _ = call(&m, "DEL", conf);
            let failed = m.world().faults.count() > n + at;
            m.world().faults.heal();
            let del = call(&m, "DEL", conf);
            assert_eq!(del.exit, 0, "{at} {failed}: {}", del.stdout);
            let (spaces, table, files) = seen(&m, dir.path());
            assert_eq!((table, files), (None, vec![]), "{at}");
            assert!(!spaces[1].0.iter().any(|l| l.name.as_str() == "eth0"));
        }
    }
}
