//! What a runtime wishes (`runtimeConfig`), routes as given, and a program that is replaced while it is at work: the real
//! binary on the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{Node, answer};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:17";

fn addresses(result: &Value) -> Vec<&str> {
    result["ips"].as_array().unwrap().iter().map(|i| i["address"].as_str().unwrap()).collect()
}

fn with(conf: &Value, field: &str, v: Value) -> Value {
    let mut c = conf.clone();
    c[field] = v;
    c
}

/// Every capability at once, and each is done.
#[test]
fn a_runtimes_wishes_are_done_and_undone() {
    let n = Node::new();
    n.pod("a");
    n.pod("b");
    let conf = n.conf_with(
        "runtimeConfig",
        json!({
            "mac": MAC,
            "dns": {"Servers": ["192.0.2.53"], "Searches": ["shop.example"], "Options": ["ndots:2"]},
            "ipRanges": [[{"subnet": "10.7.0.0/16", "rangeStart": "10.7.3.9", "rangeEnd": "10.7.3.10"}],
                         [{"subnet": "fd07::/64", "rangeEnd": "fd07::5"}]],
            "aliases": {"other": ["nobody"], "seaway": ["db", "db.shop"]},
        }),
    );
    let said = n.call("ADD", "a", &conf).unwrap();
    assert_eq!(addresses(&said), ["10.7.3.9/32", "fd07::2/128"]);
    assert_eq!(said["interfaces"][1]["mac"], MAC);
    assert_eq!(said["dns"], json!({"nameservers": ["192.0.2.53"], "search": ["shop.example"], "options": ["ndots:2"]}));
    assert!(n.sh_pod("a", "ip -o link show eth0").contains(MAC));
    // The guard and the node's neighbours know the address.
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1; ping -nq -c1 -W1 2001:db8::1");
    n.sh("ping -nq -c1 -W1 10.7.3.9; ping -nq -c1 -W1 fd07::2");
    let names = n.data_dir().join(cni::names::FOLDER);
    let files = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|f| f.path()).collect()
    };
    let text = std::fs::read_to_string(&files(&names)[0]).unwrap();
    assert_eq!(text, "10.7.3.9 db db.shop\nfd07::2 db db.shop\n");
    n.call("CHECK", "a", &with(&conf, "prevResult", said.clone())).unwrap();
    assert_eq!(n.call("ADD", "a", &conf).unwrap(), said);
    // Made again by the agent, as it was.
    n.sh_pod("a", "ip link del eth0");
    let key = ipam::read(&n.data_dir()).unwrap()[0].key.clone();
    n.ns.run(|| cni::rewire(&mut kernel::Linux, &n.data_dir(), &key)).unwrap().unwrap();
    n.sh_pod("a", &format!("ip -o link show eth0 | grep {MAC}; ping -nq -c1 -W1 192.0.2.1"));
    // The next address of the range; then it has no more, and nothing is left of the ADD.
    let other = |mac: &str| {
        with(&conf, "runtimeConfig", {
            let mut rc = conf["runtimeConfig"].clone();
            rc["mac"] = mac.into();
            rc
        })
    };
    assert_eq!(addresses(&n.call("ADD", "b", &other("02:00:00:00:00:18")).unwrap())[0], "10.7.3.10/32");
    n.pod("c");
    let e = n.call("ADD", "c", &other("02:00:00:00:00:19")).unwrap_err();
    assert!(e["code"] == 11 && e["msg"].as_str().unwrap().contains("10.7.0.0/16 has no free address"), "{e}");
    assert_eq!(files(&names).len(), 2);
    n.del("a");
    assert_eq!(files(&names).len(), 1);
    // What an ADD that was killed left, and what a lost DEL did.
    std::fs::write(names.join("sea0123456789ab.new"), "10.7.3.99").unwrap();
    n.call("GC", "-", &n.conf_with("cni.dev/valid-attachments", json!([]))).unwrap();
    assert!(files(&names).is_empty());
    std::fs::remove_dir(&names).unwrap();
    n.assert_exactly(&BTreeSet::new());
}

/// The modes that other plugins make have the hardware address, too.
#[test]
fn a_hardware_address_in_mode_bridge() {
    let n = Node::new();
    n.pod("a");
    let conf = with(&n.conf_with("mode", json!("bridge")), "runtimeConfig", json!({"mac": MAC}));
    n.call("ADD", "a", &conf).unwrap();
    assert!(n.sh_pod("a", "ip -o link show eth0").contains(MAC));
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
    n.call("DEL", "a", &conf).unwrap();
    assert_eq!(ipam::read(&n.data_dir()).unwrap(), []);
}

#[test]
fn a_pods_routes_are_those_that_are_given() {
    let n = Node::new();
    let conf =
        n.conf_with("routes", json!([{"dst": "192.0.2.0/24"}, {"dst": "10.9.0.0/16"}, {"dst": "2001:db8::/64"}]));
    for mode in ["routed", "bridge"] {
        let conf = with(&conf, "mode", json!(mode));
        n.pod(mode);
        let said = n.call("ADD", mode, &conf).unwrap();
        let told: Vec<_> = said["routes"].as_array().unwrap().iter().map(|r| r["dst"].as_str().unwrap()).collect();
        assert_eq!(told, ["192.0.2.0/24", "10.9.0.0/16", "2001:db8::/64"], "{mode}");
        let routes = n.sh_pod(mode, "ip route; ip -6 route");
        assert!(routes.contains("10.9.0.0/16 via ") && !routes.contains("default"), "{mode}: {routes}");
        n.sh_pod(mode, "ping -nq -c1 -W1 192.0.2.1; ping -nq -c1 -W1 2001:db8::1; ! ping -nq -c1 -W1 198.51.100.1");
        n.call("CHECK", mode, &with(&conf, "prevResult", said.clone())).unwrap();
        assert_eq!(n.call("ADD", mode, &conf).unwrap(), said, "{mode}: again the same");
        n.sh_pod(mode, "ip route del 10.9.0.0/16");
        assert_eq!(n.call("CHECK", mode, &with(&conf, "prevResult", said)).unwrap_err()["code"], 101, "{mode}");
        n.call("DEL", mode, &conf).unwrap();
    }
}

/// As `make install` and `seaway install-cni` do it: a new file takes the name while calls of the old one run.
#[test]
fn a_program_that_is_replaced_in_the_middle_loses_nothing() {
    let n = Node::new();
    let bin = n.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let program = bin.join("seaway-cni");
    let replace = |round: usize| {
        let new = bin.join(format!("new{round}"));
        // By another process: a file that this one writes is held open by whatever other tests start at that moment.
        let copied = std::process::Command::new("cp").arg(common::program()).arg(&new).status().unwrap();
        assert!(copied.success());
        std::fs::rename(&new, &program).unwrap();
    };
    replace(0);
    let names: Vec<String> = (0..40).map(|i| format!("p{i}")).collect();
    names.iter().for_each(|p| drop(n.pod(p)));
    let all = |command: &str, round: usize| {
        let mut running = Vec::new();
        for (i, p) in names.iter().enumerate() {
            if i % 8 == 7 {
                replace(round + i);
            }
            let netns = n.dir.path().join("netns").join(p);
            running.push(n.start_as(&program, command, p, netns.to_str(), &n.conf));
        }
        for c in running {
            answer(c.wait_with_output().unwrap()).unwrap_or_else(|e| panic!("{command}: {e}"));
        }
    };
    all("ADD", 100);
    n.assert_exactly(&names.iter().cloned().collect());
    n.sh_pod("p39", "ping -nq -c1 -W1 192.0.2.1");
    all("DEL", 200);
    n.assert_exactly(&BTreeSet::new());
}
