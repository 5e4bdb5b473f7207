//! Pools and blocks: what they mean for routes, and which pool a pod has its addresses from.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use common::{cluster, node, on_node1, settings};
use intent::{Mode, Reach, Wiring};
use resolve::pools::{Choice, IpBlock, Notes, choose, default_choice, read_notes};
use serde_json::{Value, json};
use types::Cidr;

fn pool(name: &str, cidr: &str, more: Value) -> Value {
    let mut spec = more;
    spec["cidr"] = cidr.into();
    json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
}

fn block(cidr: &str, pool: &str, node: &str, lent: &[(&str, &str)]) -> Value {
    let lent: Vec<Value> = lent.iter().map(|(a, n)| json!({"address": a, "node": n})).collect();
    let name = IpBlock::name_of(cidr.parse().unwrap());
    json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPBlock", "metadata": {"name": name},
           "spec": {"cidr": cidr, "pool": pool, "node": node, "lent": lent}})
}

fn nodes(config: Value) -> Vec<Value> {
    let mut config = config;
    config["backend"] = "host-gw".into();
    config["ipam"] = "pools".into();
    let at = |n: u8| [format!("192.168.0.{n}"), format!("fd00:1::{n}")];
    let one = |n: u8| {
        let [a, b] = at(n);
        let mut v = node(&format!("node{n}"), &[&a, &b], &[]);
        v["metadata"]["labels"] = json!({"rack": format!("r{n}")});
        v
    };
    vec![settings(config), one(1), one(2), one(3)]
}

fn cidrs(list: &[&str]) -> Vec<Cidr> {
    list.iter().map(|c| c.parse().unwrap()).collect()
}

fn routes(r: &resolve::Resolved, node: &str) -> Vec<(Cidr, bool)> {
    let peer = &r.intent.peers[&node.parse().unwrap()];
    peer.routes.iter().map(|p| (p.cidr, matches!(p.reach, Reach::Direct { .. }))).collect()
}

#[test]
fn blocks_and_borrowed_addresses_are_routed() {
    let mut all = nodes(json!({}));
    all.extend([
        pool("a", "10.0.0.0/28", json!({})),
        pool("b", "fd00:9::/120", json!({"natOutgoing": false})),
        block("10.0.0.0/30", "a", "node1", &[("10.0.0.2", "node3")]),
        block("10.0.0.4/30", "a", "node2", &[("10.0.0.5", "node1")]),
        block("fd00:9::/124", "b", "node1", &[]),
        block("fd00:9::10/124", "b", "node3", &[]),
    ]);
    let r = on_node1(&all);
    assert_eq!(r.problems, []);
    assert_eq!(r.intent.pod_cidrs, cidrs(&["10.0.0.0/30", "10.0.0.5/32", "fd00:9::/124"]));
    assert_eq!(r.intent.masqueraded, cidrs(&["10.0.0.0/30", "10.0.0.5/32"]).into_iter().collect());
    assert_eq!(r.intent.cluster_cidrs, cidrs(&["10.0.0.0/28", "fd00:9::/120"]).into_iter().collect());
    assert_eq!(routes(&r, "node2"), [("10.0.0.4/30".parse().unwrap(), true)]);
    let want = cidrs(&["10.0.0.2/32", "fd00:9::10/124"]);
    assert_eq!(routes(&r, "node3"), want.into_iter().map(|c| (c, true)).collect::<Vec<_>>());
    assert!(r.intent.families.v4 && r.intent.families.v6);
}

#[test]
fn blocks_outlive_their_pool_and_ranges_of_nodes() {
    let mut all = nodes(json!({"masquerade": "false"}));
    all[1]["spec"]["podCIDRs"] = json!(["10.244.1.0/24"]);
    all.push(block("10.0.0.0/30", "gone", "node1", &[]));
    all.push(block("10.244.1.0/26", "gone", "node2", &[]));
    let r = on_node1(&all);
    assert_eq!(r.intent.pod_cidrs, cidrs(&["10.244.1.0/24", "10.0.0.0/30"]));
    assert!(r.intent.masqueraded.is_empty() && routes(&r, "node2").is_empty());
    assert_eq!(r.problems.len(), 1);
    let says = r.problems[0].to_string();
    assert!(
        says.contains("IPBlock/10-244-1-0-26 spec.cidr: 10.244.1.0/26 overlaps 10.244.1.0/24 of Node node1"),
        "{says}"
    );
}

fn names(list: &[&str]) -> Vec<Box<str>> {
    list.iter().map(|n| (*n).into()).collect()
}

fn namespace(name: &str, labels: Value, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels, "annotations": annotations}})
}

fn world() -> Vec<Value> {
    let mut all = nodes(json!({}));
    all.extend([
        pool("a", "10.0.0.0/24", json!({})),
        pool("b", "10.1.0.0/24", json!({"nodeSelector": {"matchLabels": {"rack": "r2"}}})),
        pool("c", "10.2.0.0/24", json!({"namespaceSelector": {"matchLabels": {"team": "c"}}})),
        pool("d", "10.3.0.0/24", json!({"allowedUses": ["OnRequest"]})),
        pool("e", "10.4.0.0/24", json!({"disabled": true})),
        pool("f", "10.0.0.128/25", json!({})),
        pool("six", "fd00:9::/112", json!({})),
        namespace("plain", json!({}), json!({})),
        namespace("team-c", json!({"team": "c"}), json!({})),
        namespace("picky", json!({}), json!({"seaway.io/ipv4pools": "d"})),
        json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPReservation", "metadata": {"name": "gw"}, "spec": {"reservedCIDRs": ["10.0.0.1"]}}),
    ]);
    all
}

#[test]
fn who_asks_for_nothing_gets_what_fits() {
    let s = cluster(&world());
    let on = |node: &str, ns: Option<&str>| default_choice(&s, &node.parse().unwrap(), ns, &Wiring::default());
    let of = |v4: &[&str]| Choice { v4: names(v4), v6: names(&["six"]), ..Choice::default() };
    assert_eq!(on("node1", None), of(&["a"]));
    assert_eq!(on("node2", Some("plain")), of(&["a", "b"]));
    assert_eq!(on("node1", Some("team-c")), of(&["c", "a"]), "a pool for chosen namespaces comes first");
    assert_eq!(on("node1", Some("picky")), of(&["d"]));
    let mut config = world();
    config[0]["data"]["ipPools"] = "10.3.0.0/24, nope".into();
    let s = cluster(&config);
    assert_eq!(default_choice(&s, &"node1".parse().unwrap(), Some("plain"), &Wiring::default()), of(&["d"]));
}

fn asks(pairs: &[(&str, &str)]) -> Notes {
    read_notes(|k| pairs.iter().find(|(n, _)| *n == k).map(|(_, v)| *v))
}

#[test]
fn a_pod_beats_its_namespace() {
    let s = cluster(&world());
    let of =
        |ns: &str, pairs: &[(&str, &str)]| choose(&s, &"node2".parse().unwrap(), ns, &asks(pairs), &Wiring::default());
    let got = of("picky", &[("seaway.io/ipv4pools", r#"["b", "10.0.0.0/24"]"#)]).unwrap();
    assert_eq!((got.v4, got.v6), (names(&["b", "a"]), names(&["six"])));
    assert_eq!(of("picky", &[]).unwrap().v4, names(&["d"]));
    let got = of("plain", &[("cni.projectcalico.org/ipAddrs", r#"["10.0.0.9"]"#)]).unwrap();
    assert_eq!((got.v4, got.v6, got.fixed), (names(&["a"]), names(&["six"]), vec!["10.0.0.9".parse().unwrap()]));
}

#[test]
fn each_wrong_use_is_refused_with_the_reason() {
    let s = cluster(&world());
    for (ns, key, value, why) in [
        ("plain", "seaway.io/ipv4pools", "nope", "there is no IPPool of name or range \"nope\""),
        ("plain", "seaway.io/ipv4pools", "six", "IPPool six is IPv6, and IPv4 is asked for"),
        ("plain", "seaway.io/ipv4pools", "e", "IPPool e is disabled"),
        ("plain", "seaway.io/ipv4pools", "f", "IPPool f overlaps IPPool a"),
        ("plain", "seaway.io/ipv4pools", "b", "does not select Node node1"),
        ("plain", "seaway.io/ipv4pools", "c", "does not select Namespace plain"),
        ("plain", "seaway.io/ip-addrs", "10.9.0.1", "lies in no IPPool"),
        ("plain", "seaway.io/ip-addrs", "10.0.0.1", "reserved by IPReservation gw"),
        ("plain", "seaway.io/ip-addrs", "10.4.0.1", "IPPool e is disabled"),
        ("plain", "seaway.io/ip-addrs-no-ipam", "10.9.0.1", "not allowed: set addressesOutsideIPAM"),
        ("plain", "seaway.io/ip-addrs", "x", "is no IP address"),
    ] {
        let wrong = choose(&s, &"node1".parse().unwrap(), ns, &asks(&[(key, value)]), &Wiring::default()).unwrap_err();
        assert!(wrong.len() == 1 && &*wrong[0].0 == key && wrong[0].1.contains(why), "{value}: {wrong:?}");
    }
    let both = asks(&[("seaway.io/ip-addrs", "10.0.0.9"), ("seaway.io/ipv4pools", "d")]);
    let wrong = choose(&s, &"node1".parse().unwrap(), "plain", &both, &Wiring::default()).unwrap_err();
    assert!(wrong[0].1.contains("none of the pools that the pod asks for"), "{wrong:?}");
}

#[test]
fn a_mode_on_the_wire_has_pools_of_that_wire_and_the_others_have_the_others() {
    let mut all = world();
    all[0]["data"]["addressesOutsideIPAM"] = "true".into();
    let wire = json!({"underlay": {"subnet": "192.168.5.0/24", "gateway": "192.168.5.1"}});
    all.push(pool("wire", "192.168.5.0/25", wire));
    let s = cluster(&all);
    let node1 = "node1".parse().unwrap();
    let wiring = |mode: Mode, options: Value| Wiring { mode, options: serde_json::from_value(options).unwrap() };
    let v4 = |w: &Wiring| default_choice(&s, &node1, Some("plain"), w).v4;
    assert_eq!(v4(&wiring(Mode::Bridge, json!({}))), names(&["a"]));
    assert_eq!(v4(&wiring(Mode::Ipvlan, json!({"mode": "l3s"}))), names(&["a"]));
    assert_eq!(v4(&wiring(Mode::Ipvlan, json!({}))), names(&["wire"]));
    let macvlan = wiring(Mode::Macvlan, json!({"master": "eth1"}));
    assert_eq!(v4(&macvlan), names(&["wire"]));
    for (key, value, wiring, why) in [
        ("seaway.io/ipv4pools", "wire", &Wiring::default(), "is of the network 192.168.5.0/24 outside"),
        ("seaway.io/ipv4pools", "a", &macvlan, "IPPool a is of none: set its spec.underlay"),
        ("seaway.io/ip-addrs", "192.168.5.1", &macvlan, "is the router's of IPPool wire's network"),
        ("seaway.io/ip-addrs", "192.168.5.0", &macvlan, "names the network itself"),
        ("seaway.io/ip-addrs-no-ipam", "172.16.0.9", &macvlan, "nothing says of which network it is"),
    ] {
        let wrong = choose(&s, &node1, "plain", &asks(&[(key, value)]), wiring).unwrap_err();
        assert!(wrong.len() == 1 && &*wrong[0].0 == key && wrong[0].1.contains(why), "{value}: {wrong:?}");
    }
    // Nodes lead to none of its blocks, and pods that send there take the node's address.
    all.push(block("192.168.5.0/26", "wire", "node2", &[]));
    all.push(block("10.0.0.0/26", "a", "node2", &[]));
    let r = on_node1(&all);
    let given: Vec<Cidr> = routes(&r, "node2").into_iter().map(|(c, _)| c).collect();
    assert_eq!(given, cidrs(&["10.0.0.0/26"]));
    assert!(!r.intent.cluster_cidrs.iter().any(|c| c.overlaps(&"192.168.5.0/24".parse().unwrap())));
}

#[test]
fn an_address_of_no_pool_where_it_is_allowed() {
    let mut all = world();
    all[0]["data"]["addressesOutsideIPAM"] = "true".into();
    all.push(block("172.16.0.9/32", "", "node1", &[]));
    all.push(block("172.16.0.10/32", "", "node2", &[]));
    let s = cluster(&all);
    let of = |a: &str| {
        let asks = asks(&[("seaway.io/ip-addrs-no-ipam", a)]);
        choose(&s, &"node1".parse().unwrap(), "plain", &asks, &Wiring::default())
    };
    let got = of("172.16.0.9").unwrap();
    assert_eq!((got.v4.len(), got.v6.len(), got.outside), (0, 0, vec!["172.16.0.9".parse().unwrap()]));
    assert!(of("10.0.0.9").unwrap_err()[0].1.contains("lies in IPPool a: ask for it with seaway.io/ip-addrs"));
    assert!(of("172.16.0.10").unwrap_err()[0].1.contains("in use on Node node2"));
    assert!(of("172.16.0.11").unwrap_err()[0].1.contains("is being taken for Node node1"));
}
