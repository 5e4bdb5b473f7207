//! Chained with the reference plugins, before and after them, as a runtime runs a conflist. Needs Debian's
//! containernetworking-plugins and iptables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Node, answer};
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";

/// One call of a reference plugin in the node's namespace, for the pod "a".
fn reference(n: &Node, command: &str, ifname: &str, conf: &Value) -> Value {
    let plugin = conf["type"].as_str().unwrap();
    let path = Path::new(REFERENCE).join(plugin);
    assert!(path.exists(), "{} is missing: apt-get install containernetworking-plugins", path.display());
    let netns = n.dir.path().join("netns/a");
    let mut c = Command::new(path);
    c.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "a").env("CNI_IFNAME", ifname);
    c.env("CNI_NETNS", netns).env("CNI_PATH", REFERENCE);
    c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = n.ns.run(|| c.spawn().unwrap()).unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    answer(child.wait_with_output().unwrap()).unwrap_or_else(|e| panic!("{plugin} {command}: {e}"))
}

#[test]
fn tuning_portmap_and_bandwidth_take_our_result() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let n = Node::new();
        n.pod("a");
        let conf = n.conf_with("cniVersion", json!(version));
        let ours = n.call("ADD", "a", &conf).unwrap();
        let common = json!({"cniVersion": version, "name": "seaway", "prevResult": ours});
        let with = |more: Value| {
            let mut c = common.clone();
            more.as_object().unwrap().iter().for_each(|(k, v)| c[k] = v.clone());
            c
        };
        let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        let chain = [
            with(json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}})),
            with(json!({"type": "portmap", "runtimeConfig": {"portMappings": mapping}})),
            with(json!({"type": "bandwidth", "ingressRate": 1_000_000, "ingressBurst": 1_000_000})),
        ];
        for conf in &chain {
            let r = reference(&n, "ADD", "eth0", conf);
            assert_eq!(r["ips"], ours["ips"], "{version} {conf}");
        }
        assert!(n.sh("iptables -t nat -S").contains("--to-destination 10.244.1.2:80"));
        let link = ours["interfaces"][0]["name"].as_str().unwrap();
        assert!(n.sh(&format!("tc qdisc show dev {link}")).contains("tbf"));
        n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
        for conf in chain.iter().rev() {
            reference(&n, "DEL", "eth0", conf);
        }
        n.call("DEL", "a", &conf).unwrap();
        n.assert_exactly(&BTreeSet::new());
    }
}

#[test]
fn after_another_interface_plugin_both_are_in_the_result() {
    let n = Node::new();
    n.pod("a");
    let ipam = json!({"type": "host-local", "subnet": "198.51.100.0/24", "dataDir": n.dir.path().join("host-local")});
    let bridge = json!({"cniVersion": "1.0.0", "name": "second", "type": "bridge", "bridge": "br9", "ipam": ipam});
    // The runtime gives each plugin of a chain the same name; the other's interface has another here.
    let first = {
        let mut r = reference(&n, "ADD", "net1", &bridge);
        r["cniVersion"] = json!("1.0.0");
        r
    };
    let mut conf = n.conf_with("cniVersion", json!("1.0.0"));
    conf["prevResult"] = first.clone();
    let r = n.call("ADD", "a", &conf).unwrap();
    let (theirs, all) = (first["interfaces"].as_array().unwrap(), r["interfaces"].as_array().unwrap());
    assert_eq!(all[..theirs.len()], theirs[..]);
    assert_eq!(all.len(), theirs.len() + 2);
    assert_eq!(r["ips"][1]["interface"], all.len() - 1);
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
}
