//! The CNI plugins whose devices not every kernel has: ours beside the reference's, the same configuration; what both
//! answer and leave in the kernel is compared.

use serde_json::{Value, json};
use vm::in_vm;

use crate::twin::{Twin, Whose, refused_by_both, result, with};

/// Who has a plugin of this name: the reference, and we once crate `plugins` lists it. A comparison is written before the
/// plugin and waits for it; the reference alone must pass what is asserted of both.
fn makers(kind: &str) -> Vec<Whose> {
    let ours = plugins::NAMES.contains(&kind).then_some(Whose::Ours);
    ours.into_iter().chain([Whose::Theirs]).collect()
}

/// Runs `f` for each maker of a plugin: all give the same.
fn each_alike<T: PartialEq + std::fmt::Debug>(kind: &str, f: impl Fn(Whose) -> T) -> T {
    let mut all: Vec<T> = makers(kind).into_iter().map(f).collect();
    let theirs = all.pop().unwrap();
    for ours in all {
        assert_eq!(ours, theirs, "{kind}: ours, then the reference's");
    }
    theirs
}

/// Both refuse it, ours with `why`.
fn refused(kind: &str, more: impl Fn(&Twin) -> Value, why: &str) {
    if makers(kind).len() == 2 {
        refused_by_both(more, why);
    }
}

/// A plugin with host-local addresses of both families.
fn conf(t: &Twin, kind: &str, more: Value) -> Value {
    let mut v = json!({"cniVersion": "1.0.0", "name": "net", "type": kind, "ipam": {
        "type": "host-local", "dataDir": t.dir("ipam"), "routes": [{"dst": "198.51.100.0/24", "gw": "10.7.0.9"}],
        "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]],
    }});
    for (k, x) in more.as_object().unwrap() {
        v[k] = x.clone();
    }
    v
}

/// ADD, CHECK, DEL twice, by both: the answers, the container's and the node's state after each are the same, and nothing
/// is left.
fn alike(kind: &str, more: &Value) {
    let (result, ..) = each_alike(kind, |whose| {
        let t = Twin::new(whose);
        t.node.pod("c1");
        let conf = conf(&t, kind, more.clone());
        let before = (t.inside("c1"), t.outside());
        let added = t.add("c1", &conf);
        let during = (result(&added), t.inside("c1"), t.outside());
        let checked = with(&conf, "prevResult", added);
        t.call("CHECK", "c1", &checked).unwrap_or_else(|e| panic!("{whose:?}: CHECK {checked}: {e}"));
        t.del("c1", &conf);
        t.del("c1", &conf);
        assert_eq!((t.inside("c1"), t.outside()), before, "{whose:?}: after DEL of {conf}");
        during
    });
    assert_eq!(result["interfaces"][0]["name"], "eth0", "{result}");
}

#[test]
fn vlan() {
    in_vm!();
    alike("vlan", &json!({"master": "up0", "vlanId": 5}));
    alike("vlan", &json!({"master": "up0", "vlanId": 4094, "mtu": 1400}));
}

#[test]
fn vlan_refusals() {
    in_vm!();
    refused("vlan", |t| conf(t, "vlan", json!({"vlanId": 5})), "master");
    refused("vlan", |t| conf(t, "vlan", json!({"master": "up0", "vlanId": 4095})), "vlanId");
    refused("vlan", |t| conf(t, "vlan", json!({"master": "up0", "vlanId": -1})), "vlanId");
    refused("vlan", |t| conf(t, "vlan", json!({"master": "nosuch0", "vlanId": 5})), "nosuch0");
}

#[test]
fn ipvlan_in_every_mode() {
    in_vm!();
    for mode in ["l2", "l3", "l3s"] {
        alike("ipvlan", &json!({"master": "up0", "mode": mode}));
    }
    alike("ipvlan", &json!({"master": "up0", "mtu": 1400}));
}

#[test]
fn ipvlan_takes_the_link_of_the_default_route() {
    in_vm!();
    each_alike("ipvlan", |whose| {
        let t = Twin::new(whose);
        t.node.sh("ip route add default via 192.0.2.9");
        t.node.pod("c1");
        let conf = conf(&t, "ipvlan", json!({}));
        t.add("c1", &conf);
        let seen = t.json_pod("c1", "ip -j -d link show eth0");
        t.del("c1", &conf);
        assert_eq!(seen[0]["link_index"], t.json("ip -j link show up0")[0]["ifindex"], "{whose:?}");
    });
}

#[test]
fn ipvlan_refusals() {
    in_vm!();
    refused("ipvlan", |t| conf(t, "ipvlan", json!({"master": "up0", "mode": "l4"})), "mode");
    refused("ipvlan", |t| conf(t, "ipvlan", json!({"master": "nosuch0"})), "nosuch0");
}

/// The result of a plugin before: an interface with addresses, made by hand.
pub fn wired(t: &Twin, container: &str, n: u8) -> Value {
    let path = t.node.pod(container);
    let path = path.to_str().unwrap();
    t.node
        .sh(&format!("ip link add h{n} type veth peer name e{n}; ip link set h{n} up; ip link set e{n} netns {path}"));
    let add = format!("ip link set e{n} name eth0; ip link set eth0 up; ip address add 10.9.0.{n}/24 dev eth0");
    t.node.sh_pod(
        container,
        &format!("{add}; ip address add fd09::{n}/64 dev eth0 nodad; ip route add 198.51.100.0/24 via 10.9.0.1"),
    );
    json!({"cniVersion": "1.0.0", "dns": {},
        "interfaces": [{"name": format!("h{n}")}, {"name": "eth0", "sandbox": path}],
        "ips": [{"interface": 1, "address": format!("10.9.0.{n}/24")}, {"interface": 1, "address": format!("fd09::{n}/64")}]})
}

#[test]
fn vrf_takes_the_interface_with_its_addresses_and_routes() {
    in_vm!();
    for table in [Value::Null, json!(1234)] {
        each_alike("vrf", |whose| {
            let t = Twin::new(whose);
            let previous = wired(&t, "c1", 3);
            let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vrf", "vrfname": "blue",
                "prevResult": previous});
            if !table.is_null() {
                conf["table"] = table.clone();
            }
            let added = t.add("c1", &conf);
            let mut inside = t.inside("c1");
            // Newer references move it, as we do; Debian's loses it.
            let routes = inside["routes4"].as_array_mut().unwrap();
            let through = format!("198.51.100.0/24 gateway 10.9.0.1 dev eth0 table {}", table.as_u64().unwrap_or(1));
            let moved = routes.iter().any(|r| *r == *through);
            routes.retain(|r| *r != *through);
            assert!(moved || whose == Whose::Theirs, "{inside}");
            let during = (result(&added), inside);
            t.call("CHECK", "c1", &conf).unwrap_or_else(|e| panic!("{whose:?}: CHECK: {e}"));
            t.del("c1", &conf);
            t.del("c1", &conf);
            let after = t.inside("c1");
            let left = after["links"].as_array().unwrap().iter().any(|l| l["kind"] == "vrf");
            assert!(!left, "{whose:?}: {after}");
            (during, after)
        });
    }
}

#[test]
fn vrf_refusals() {
    in_vm!();
    let bad = |more: Value| {
        move |_: &Twin| {
            let mut v = json!({"cniVersion": "1.0.0", "name": "net", "type": "vrf"});
            for (k, x) in more.as_object().unwrap() {
                v[k] = x.clone();
            }
            v
        }
    };
    refused("vrf", bad(json!({"vrfname": "blue"})), "prevResult");
    let previous = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": []});
    refused("vrf", bad(json!({"prevResult": previous})), "vrfname");
    refused("vrf", bad(json!({"vrfname": "a-name-too-long-to-be-one", "prevResult": previous})), "vrfname");
}

/// Debian's reference plugins are older than this one: what it must give is the specification's and its page's.
#[test]
fn dummy() {
    in_vm!();
    if !plugins::NAMES.contains(&"dummy") {
        return;
    }
    let t = Twin::new(Whose::Ours);
    t.node.pod("c1");
    let conf = conf(&t, "dummy", json!({}));
    let before = (t.inside("c1"), t.outside());
    let added = t.add("c1", &conf);
    let eth0 = &t.json_pod("c1", "ip -j -d address show eth0")[0];
    assert_eq!(eth0["linkinfo"]["info_kind"], "dummy");
    let addresses: Vec<&str> =
        added["ips"].as_array().unwrap().iter().map(|a| a["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["10.7.0.2/24", "fd07::2/64"]);
    let shown: Vec<&str> = eth0["addr_info"].as_array().unwrap().iter().filter_map(|a| a["local"].as_str()).collect();
    assert!(shown.contains(&"10.7.0.2") && shown.contains(&"fd07::2"), "{eth0}");
    assert_eq!(added["interfaces"][0]["name"], "eth0");
    assert_eq!(added["interfaces"][0]["mac"], eth0["address"]);
    t.call("CHECK", "c1", &with(&conf, "prevResult", added)).unwrap();
    t.del("c1", &conf);
    t.del("c1", &conf);
    assert_eq!((t.inside("c1"), t.outside()), before);
}
