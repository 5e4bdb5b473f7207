//! Our plugins in one chain with the reference plugins, before and after them and in place of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use interop::cnitool::{VERSIONS, cnitool, ips, reaches};
use interop::node::{ADDRESSES, CONFLIST, wait};
use interop::tools::PLUGINS;
use interop::{Node, page};
use seaway_tests_interop as interop;
use serde_json::{Value, json};

/// A node with reference plugins that speak every version.
fn node() -> Node {
    let n = Node::boot();
    n.install(&PLUGINS);
    n
}

/// Our plugin's part of the page's configuration.
fn ours() -> Value {
    let v: Value = serde_json::from_str(&page::file("The network", CONFLIST)).unwrap();
    v["plugins"][0].clone()
}

fn configure(n: &Node, version: &str, plugins: &[Value]) {
    n.write(CONFLIST, &json!({"cniVersion": version, "name": "seaway", "plugins": plugins}).to_string());
}

/// The reference plugins that work on what one before them made; firewall speaks 0.4.0 and newer.
fn meta(version: &str) -> Vec<Value> {
    let mut all = vec![
        json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "capabilities": {"mac": true}}),
        json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}),
        json!({"type": "bandwidth", "ingressRate": 10_000_000, "ingressBurst": 10_000_000,
            "egressRate": 20_000_000, "egressBurst": 20_000_000}),
        json!({"type": "firewall", "backend": "iptables"}),
    ];
    all.truncate(if version < "0.4.0" { 3 } else { 4 });
    all
}

const PORTS: &str = r#"CAP_ARGS={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;

/// What `meta` does is there.
fn meta_is_done(n: &Node, version: &str) {
    let inside = ["ip", "netns", "exec", "a"];
    assert_eq!(n.run(&[&inside[..], &["cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter"]].concat()), "1\n");
    let httpd = ["nsenter", "--net=/run/netns/a", "busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];
    let mut web = n.command(&httpd).spawn().unwrap();
    for node in ADDRESSES {
        let node = if node.contains(':') { format!("[{node}]") } else { node.to_owned() };
        let at = format!("http://{node}:8080/hostname");
        n.outside(&["curl", "-sSf", "-o/dev/null", "--retry", "5", "--retry-connrefused", "--max-time", "5", &at]);
    }
    web.kill().unwrap();
    web.wait().unwrap();
    let qdiscs = n.run(&["tc", "qdisc", "show"]);
    assert!(qdiscs.contains("rate 10Mbit") && qdiscs.contains("rate 20Mbit"), "{qdiscs}");
    if version >= "0.4.0" {
        let rules = n.run(&["iptables-save"]);
        assert!(rules.contains("CNI-FORWARD"), "{rules}");
    }
}

/// The life of one pod through a chain: ADD, packets, CHECK, DEL, and for 1.1.0 STATUS and GC.
fn life(n: &Node, version: &str, more: impl Fn(&Node, &Value)) -> Value {
    n.run(&["ip", "netns", "add", "a"]);
    let r = cnitool(n, &[PORTS], "add", "a").unwrap_or_else(|e| panic!("{version} ADD: {e}"));
    assert_eq!(r["cniVersion"], version);
    more(n, &r);
    let conf = n.read(CONFLIST);
    let sbr = conf.contains("\"sbr\"");
    match cnitool(n, &[PORTS], "check", "a") {
        Ok(_) => assert!(version >= "0.4.0"),
        Err(e) if version < "0.4.0" => assert!(e.contains("does not support the CHECK command"), "{e}"),
        // It takes the routes away from where the result says they are; the reference plugins' CHECK misses them too.
        Err(e) if sbr => assert!(e.contains("is missing") || e.contains("Failed to find"), "{e}"),
        Err(e) => panic!("{version} CHECK: {e}"),
    }
    cnitool(n, &[], "status", "a").unwrap_or_else(|e| panic!("{version} STATUS: {e}"));
    if version >= "1.1.0" {
        // Nothing is listed as living.
        cnitool(n, &[], "gc", "a").unwrap_or_else(|e| panic!("{version} GC: {e}"));
    } else {
        cnitool(n, &[PORTS], "del", "a").unwrap_or_else(|e| panic!("{version} DEL: {e}"));
    }
    // Ours leaves the kernel's wait for a link's end to a process of its own.
    wait("eth0 is gone", || !n.run(&["ip", "netns", "exec", "a", "ip", "-br", "link"]).contains("eth0"));
    n.run(&["ip", "netns", "delete", "a"]);
    // The reference sbr makes a file of a namespace that is gone, and fails on it.
    if !sbr {
        cnitool(n, &[PORTS], "del", "a").unwrap_or_else(|e| panic!("{version} DEL again: {e}"));
    }
    n.assert_nothing_left();
    r
}

#[test]
fn the_reference_plugins_after_ours() {
    let n = node();
    // See the next.
    n.install_ours(&["bandwidth"]);
    for version in VERSIONS {
        let chain: Vec<Value> = [vec![ours()], meta(version)].concat();
        configure(&n, version, &chain);
        let r = life(&n, version, |n, r| {
            reaches(n, "a", r, None);
            meta_is_done(n, version);
        });
        configure(&n, version, &chain[..1]);
        let alone = life(&n, version, |n, r| reaches(n, "a", r, None));
        // The addresses are given in turn; all else is as ours alone says it, with what bandwidth adds.
        assert_eq!(r["ips"].as_array().unwrap().len(), 2);
        assert_eq!(r["routes"], alone["routes"]);
        assert_eq!(r["interfaces"][1]["sandbox"], alone["interfaces"][1]["sandbox"]);
        assert_eq!(r["ips"][0]["interface"], 1);
    }
}

/// What the pod sends is looked at in the host end's one place for that, so the reference's `bandwidth` finds it taken
/// when it is to limit that direction; ours shares it.
#[test]
fn the_references_bandwidth_after_ours_limits_what_the_pod_receives() {
    let n = node();
    let limit = |way: &str| json!({"type": "bandwidth", (way.to_owned() + "Rate"): 10_000_000, (way.to_owned() + "Burst"): 10_000_000});
    configure(&n, "1.1.0", &[ours(), limit("ingress")]);
    life(&n, "1.1.0", |n, r| {
        reaches(n, "a", r, None);
        assert!(n.run(&["tc", "qdisc", "show"]).contains("rate 10Mbit"));
    });
    configure(&n, "1.1.0", &[ours(), limit("egress")]);
    n.run(&["ip", "netns", "add", "a"]);
    let e = cnitool(&n, &[], "add", "a").unwrap_err();
    assert!(e.contains("create ingress qdisc: file exists"), "{e}");
    cnitool(&n, &[], "del", "a").unwrap();
    n.run(&["ip", "netns", "delete", "a"]);
    n.assert_nothing_left();
    n.install_ours(&["bandwidth"]);
    life(&n, "1.1.0", |n, r| {
        reaches(n, "a", r, None);
        assert!(n.run(&["tc", "qdisc", "show"]).contains("rate 10Mbit"));
    });
}

#[test]
fn sbr_after_ours() {
    let n = node();
    for version in VERSIONS {
        // As a peer, the reference's own.
        configure(&n, version, &[usual("bridge", version)[0].clone(), json!({"type": "sbr"})]);
        life(&n, version, |_, _| {});
        let ruled = |n: &Node, r: &Value| {
            for (own, node) in ips(r).iter().zip(ADDRESSES) {
                let family = if own.contains(':') { "-6" } else { "-4" };
                let rules = n.run(&["ip", "netns", "exec", "a", "ip", family, "rule"]);
                assert!(rules.contains(&format!("from {own} lookup")), "{rules}");
                // Only what has the source goes that way.
                n.run(&["ip", "netns", "exec", "a", "ping", "-nq", "-c1", "-W2", "-I", own, node]);
                n.run(&["ping", "-nq", "-c1", "-W2", own]);
            }
        };
        configure(&n, version, &[ours(), json!({"type": "sbr"})]);
        life(&n, version, ruled);
        n.install_ours(&["sbr"]);
        life(&n, version, ruled);
        n.install(&PLUGINS);
    }
}

#[test]
fn the_reference_plugins_before_ours() {
    let n = node();
    for version in VERSIONS {
        if version == "1.1.0" {
            // The only one of them that needs no other before it does not speak this version.
            n.install_ours(&["loopback"]);
        }
        configure(&n, version, &[json!({"type": "loopback"}), ours()]);
        let r = life(&n, version, |n, r| {
            let ours =
                json!({"ips": r["ips"].as_array().unwrap().iter().filter(|i| i["interface"] == 2).collect::<Vec<_>>()});
            assert_eq!(ips(&ours).len(), 2, "{r}");
            reaches(n, "a", &ours, None);
            assert!(n.run(&["ip", "netns", "exec", "a", "ip", "-br", "link", "show", "lo"]).contains("UP"));
        });
        let names: Vec<&str> =
            r["interfaces"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
        assert_eq!((names[0], names[2]), ("lo", "eth0"), "{r}");
    }
}

#[test]
fn a_chain_that_fails_in_the_middle_is_taken_back() {
    let n = node();
    let ptp = json!({"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.9.0/24"}});
    configure(&n, "1.0.0", &[ptp, ours()]);
    n.run(&["ip", "netns", "add", "a"]);
    let e = cnitool(&n, &[], "add", "a").unwrap_err();
    assert!(e.contains("interface eth0 exists already"), "{e}");
    assert!(n.allocated().is_empty(), "nothing is held for it");
    cnitool(&n, &[], "del", "a").unwrap();
    // After ours: ours is taken back by the runtime's DEL.
    configure(&n, "1.0.0", &[ours(), json!({"type": "tuning", "sysctl": {"net.core.no_such_thing": "1"}})]);
    cnitool(&n, &[], "add", "a").unwrap_err();
    cnitool(&n, &[], "del", "a").unwrap();
    n.run(&["ip", "netns", "delete", "a"]);
    n.assert_nothing_left();
}

/// The usual networks of the reference plugins.
fn usual(kind: &str, version: &str) -> Vec<Value> {
    let ranges = json!([[{"subnet": "10.244.7.0/24"}], [{"subnet": "fd00:10:244:7::/64"}]]);
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let mut first = json!({
        "type": kind, "ipMasq": true, "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    if kind == "bridge" {
        let more = json!({"bridge": "br7", "isGateway": true, "hairpinMode": true});
        more.as_object().unwrap().iter().for_each(|(k, v)| first[k] = v.clone());
    }
    [vec![first], meta(version)].concat()
}

/// What must be the same whoever did it: hardware addresses, the host end's name and the address in turn go, and the MTU,
/// which the reference's leave out.
fn plain(mut r: Value) -> Value {
    for i in r["interfaces"].as_array_mut().unwrap() {
        i.as_object_mut().unwrap().retain(|k, _| !["mac", "mtu"].contains(&k.as_str()));
        if i["name"].as_str().unwrap().starts_with("veth") {
            i["name"] = json!("veth");
        }
    }
    for i in r["ips"].as_array_mut().unwrap() {
        i.as_object_mut().unwrap().remove("address");
    }
    r
}

/// The same life, and the same result, with ours in the place of the reference's of each set of names.
fn in_place(n: &Node, kind: &str, version: &str, sets: &[Vec<&str>]) {
    configure(n, version, &usual(kind, version));
    let done = |n: &Node, r: &Value| {
        // The reference's bridge has its IPv6 address some time after its ADD.
        let ping = ["ip", "netns", "exec", "a", "ping", "-nqc1", "-W1", ADDRESSES[1]];
        wait("the node answers", || n.attempt(&ping).is_ok());
        reaches(n, "a", r, None);
        meta_is_done(n, version);
    };
    n.install(&PLUGINS);
    let reference = plain(life(n, version, done));
    for set in sets {
        n.install(&PLUGINS);
        n.install_ours(set);
        assert_eq!(plain(life(n, version, done)), reference, "{kind} {version} {set:?}");
    }
}

/// Of these, those that we have.
fn ours_of(names: &[&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|u| plugins::NAMES.contains(u)).collect()
}

#[test]
fn each_of_ours_in_place_of_the_reference() {
    let n = node();
    let all = ours_of(&["bridge", "host-local", "tuning", "portmap", "bandwidth", "firewall"]);
    for version in VERSIONS {
        // One at a time in an old and in the newest version, all together in each.
        let mut sets = vec![all.clone()];
        if ["0.4.0", "1.1.0"].contains(&version) {
            sets.extend(all.iter().map(|o| vec![*o]));
        }
        in_place(&n, "bridge", version, &sets);
    }
}

#[test]
fn ours_after_the_references_ptp_and_its_own() {
    let n = node();
    let after = ours_of(&["tuning", "portmap", "bandwidth", "firewall"]);
    for version in ["0.3.1", "1.1.0"] {
        let all = [ours_of(&["ptp", "host-local"]), after.clone()].concat();
        in_place(&n, "ptp", version, &[after.clone(), all]);
    }
}
