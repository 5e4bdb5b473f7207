//! Nodes, backends and the ways between them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use common::{local, node, on_node1, settings, two, with_vxlan};
use intent::{Backend, Reach};
use resolve::annotations::published;
use resolve::{Resolved, resolve};
use serde_json::json;

fn reach(r: &Resolved, node: &str) -> Vec<Reach> {
    r.intent.peers[&node.parse().unwrap()].routes.iter().map(|x| x.reach.clone()).collect()
}

fn direct(a: &str) -> Reach {
    Reach::Direct { next_hop: a.parse().unwrap() }
}

#[test]
fn host_gw_routes_to_neighbours() {
    let mut all = two();
    all.push(settings(json!({"backend": "host-gw", "clusterCIDR": "10.244.0.0/16", "masquerade": "false"})));
    let r = on_node1(&all);
    assert_eq!(r.problems, []);
    assert_eq!((r.intent.backend, r.intent.masqueraded.len(), r.intent.vxlan.clone()), (Backend::HostGw, 0, None));
    assert_eq!(r.intent.cluster_cidrs, ["10.244.0.0/16".parse().unwrap()].into());
    assert_eq!(r.intent.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    assert_eq!(reach(&r, "node2"), [direct("192.168.0.2")]);
    assert!(r.intent.families.v4 && !r.intent.families.v6);
}

#[test]
fn host_gw_refuses_what_is_not_on_link() {
    let host_gw = settings(json!({"backend": "host-gw"}));
    let far = node("node2", &["192.168.7.2"], &["10.244.2.0/24"]);
    let r = on_node1(&[host_gw.clone(), two()[0].clone(), far]);
    let [Reach::None { why }] = &reach(&r, "node2")[..] else { panic!("{r:?}") };
    assert!(
        why.contains("next hop 192.168.7.2 of Node node2 is not on-link")
            && why.contains("set backend: vxlan in ConfigMap kube-system/seaway"),
        "{why}"
    );
    assert_eq!(r.problems.len(), 1);
    assert!(r.problems[0].to_string().starts_with("Node/node2 route to 10.244.2.0/24: next hop"), "{}", r.problems[0]);
    // A host prefix makes nothing on-link, not even itself.
    let odd = node("node2", &["10.9.9.9"], &["10.244.2.0/24"]);
    assert!(matches!(reach(&on_node1(&[host_gw.clone(), two()[0].clone(), odd]), "node2")[..], [Reach::None { .. }]));
    // An IPv6 range needs an IPv6 next hop.
    let dual = node("node2", &["192.168.0.2"], &["10.244.2.0/24", "fd00:244:2::/64"]);
    let r = on_node1(&[host_gw.clone(), two()[0].clone(), dual]);
    let [Reach::Direct { .. }, Reach::None { why }] = &reach(&r, "node2")[..] else { panic!("{r:?}") };
    assert!(why.contains("needs an IPv6 address of Node node2"), "{why}");
    let dual = node("node2", &["192.168.0.2", "fd00:1::2"], &["10.244.2.0/24", "fd00:244:2::/64"]);
    assert_eq!(
        reach(&on_node1(&[host_gw, two()[0].clone(), dual]), "node2"),
        [direct("192.168.0.2"), direct("fd00:1::2")]
    );
}

#[test]
fn vxlan_needs_what_the_peer_published() {
    let n1 = node("node1", &["192.168.0.1"], &["10.244.1.0/24", "fd00:244:1::/64"]);
    let n2 = node("node2", &["192.168.0.2"], &["10.244.2.0/24", "fd00:244:2::/64"]);
    let r = on_node1(&[n1.clone(), with_vxlan(n2.clone(), "192.168.0.2")]);
    let want = |gateway: &str| Reach::Vxlan {
        remote: "192.168.0.2".parse().unwrap(),
        mac: "02:00:00:00:00:02".parse().unwrap(),
        gateway: gateway.parse().unwrap(),
    };
    assert_eq!(reach(&r, "node2"), [want("10.244.2.0"), want("fd00:244:2::")]);
    let dev = r.intent.vxlan.clone().unwrap();
    assert_eq!((dev.vni, dev.port, dev.local, dev.mac), (1, 8472, "192.168.0.1".parse().unwrap(), local().vxlan_mac));
    assert_eq!(dev.addresses, ["10.244.1.0", "fd00:244:1::"].map(|a| a.parse::<std::net::IpAddr>().unwrap()));
    // Not yet published: direct where there is a neighbour, else nothing.
    let r = on_node1(&[n1.clone(), n2.clone()]);
    let [Reach::Direct { .. }, Reach::None { why }] = &reach(&r, "node2")[..] else { panic!("{r:?}") };
    assert!(why.contains("has not published annotation seaway.io/vxlan"), "{why}");
    // Published for another network, or with an outer address of the other family.
    let [Reach::Direct { .. }, Reach::None { why }] =
        &reach(&on_node1(&[n1.clone(), with_vxlan(n2.clone(), "192.168.0.2"), settings(json!({"vni": "7"}))]), "node2")
            [..]
    else {
        panic!()
    };
    assert!(why.contains("says vni 1, port 8472") && why.contains("this node has vni 7"), "{why}");
    assert!(matches!(
        reach(&on_node1(&[n1, with_vxlan(n2, "fd00:1::2")]), "node2")[..],
        [Reach::Direct { .. }, Reach::None { .. }]
    ));
}

#[test]
fn neighbours_need_no_tunnel_where_that_is_asked_for() {
    let n1 = node("node1", &["192.168.0.1"], &["10.244.1.0/24"]);
    let far = with_vxlan(node("node3", &["172.16.0.3"], &["10.244.3.0/24"]), "172.16.0.3");
    let near = with_vxlan(node("node2", &["192.168.0.2"], &["10.244.2.0/24"]), "192.168.0.2");
    let r = on_node1(&[n1, near, far, settings(json!({"directRouting": "true"}))]);
    assert_eq!(reach(&r, "node2"), [direct("192.168.0.2")]);
    assert!(matches!(reach(&r, "node3")[..], [Reach::Vxlan { .. }]));
    assert!(r.intent.vxlan.is_some());
}

#[test]
fn the_outer_family_is_ipv4_when_the_node_has_it() {
    for (addresses, want) in [(vec!["fd00:1::1", "192.168.0.1"], "192.168.0.1"), (vec!["fd00:1::1"], "fd00:1::1")] {
        let r = on_node1(&[node("node1", &addresses, &["10.244.1.0/24"])]);
        assert_eq!(r.intent.vxlan.unwrap().local, want.parse::<std::net::IpAddr>().unwrap());
    }
}

/// Each step of a switch, as one node sees it: no moment without a way.
#[test]
fn a_switch_of_backends_keeps_a_way_at_every_step() {
    let plain = two();
    let old = settings(json!({"backend": "host-gw"}));
    let new = settings(json!({"backend": "vxlan"}));
    let mut sending = plain[1].clone();
    sending["metadata"]["annotations"] = json!({"seaway.io/backend": "host-gw"});
    let published_node2 = with_vxlan(plain[1].clone(), "192.168.0.2");
    // host-gw to vxlan: the setting comes first, the peer publishes later.
    let r = on_node1(&[old.clone(), plain[0].clone(), sending.clone()]);
    assert_eq!((reach(&r, "node2"), r.intent.vxlan.is_some()), (vec![direct("192.168.0.2")], false));
    let r = on_node1(&[new.clone(), plain[0].clone(), sending]);
    assert_eq!((reach(&r, "node2"), r.intent.vxlan.is_some()), (vec![direct("192.168.0.2")], true));
    let r = on_node1(&[new, plain[0].clone(), published_node2.clone()]);
    assert!(matches!(reach(&r, "node2")[..], [Reach::Vxlan { .. }]));
    // vxlan to host-gw: the device stays while the peer still sends through it.
    let r = on_node1(&[old.clone(), plain[0].clone(), published_node2.clone()]);
    assert_eq!((reach(&r, "node2"), r.intent.vxlan.is_some()), (vec![direct("192.168.0.2")], true));
    let mut done = published_node2;
    done["metadata"]["annotations"]["seaway.io/backend"] = "host-gw".into();
    let r = on_node1(&[old, plain[0].clone(), done]);
    assert_eq!((reach(&r, "node2"), r.intent.vxlan.is_some()), (vec![direct("192.168.0.2")], false));
}

#[test]
fn what_is_published_is_what_peers_read() {
    let r = on_node1(&two());
    let notes = published(&r.intent, true);
    assert_eq!(notes["seaway.io/backend"].as_deref(), Some("vxlan"));
    assert_eq!(notes["seaway.io/subnets"].as_deref(), Some("10.244.1.0/24"));
    assert_eq!(
        notes["seaway.io/vxlan"].as_deref(),
        Some(r#"{"vni":1,"port":8472,"mac":"02:00:00:00:00:01","address":"192.168.0.1"}"#)
    );
    assert_eq!(published(&r.intent, false)["seaway.io/vxlan"], None, "not before the device is there");
    // And back: node2 reads node1's notes.
    let mut n1 = two()[0].clone();
    for (k, v) in notes {
        n1["metadata"]["annotations"][k] = v.into();
    }
    let mut other = local();
    other.node = "node2".parse().unwrap();
    let r = resolve(&common::cluster(&[n1, two()[1].clone()]), &other);
    assert!(matches!(reach(&r, "node1")[..], [Reach::Vxlan { .. }]));
}

#[test]
fn without_vxlan_in_the_kernel_neighbours_are_reached_and_it_is_said() {
    let mut without = local();
    without.vxlan_supported = false;
    let all = [
        two()[0].clone(),
        with_vxlan(two()[1].clone(), "192.168.0.2"),
        with_vxlan(node("node3", &["10.7.0.3"], &["10.244.3.0/24"]), "10.7.0.3"),
    ];
    let r = resolve(&common::cluster(&all), &without);
    assert_eq!((reach(&r, "node2"), r.intent.vxlan.is_some()), (vec![direct("192.168.0.2")], false));
    assert!(matches!(reach(&r, "node3")[..], [Reach::None { .. }]));
    assert!(
        r.problems.iter().any(|p| p.why.contains("the kernel of node node1 has no VXLAN (CONFIG_VXLAN)")),
        "{:?}",
        r.problems
    );
}
