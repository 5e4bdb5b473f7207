//! What changes under a running node: addresses, peers, devices, and what somebody deletes.

use intent::Backend;
use intent::generate::{pod_addr, vtep_mac};
use kernel::Rt;
use kernel_api::Rtnetlink;
use kernel_api::rt::{LinkKind, RtRequest};
use types::{Family, OwnedName};

use crate::world::{
    Cluster, DUAL, Node, V4, address, all_pairs, converge_all, name, ping, pod_link, rows, sh, tcp, wire_pod, world,
};

fn index(n: &Node, link: &str) -> u32 {
    Rt::open_in(&n.ns).unwrap().link(&name(link)).unwrap().unwrap().index
}

/// A node gets another address: its own device is made anew, its peers' rows follow; nothing restarts.
#[test]
fn a_node_address_change_converges() {
    for backend in [Backend::HostGw, Backend::Vxlan] {
        let (_hub, mut nodes) = world(3, DUAL);
        let mut c = Cluster::new(3, DUAL, backend);
        converge_all(&mut nodes, &c);
        all_pairs(&nodes, V4);
        c.moved.insert(1, vec!["192.168.7.99".parse().unwrap(), "fd00:7::99".parse().unwrap()]);
        sh(&nodes[1].ns, "ip addr flush dev eth0 scope global");
        address(&nodes[1].ns, "eth0", c.addr(Family::V4, 1), 24);
        address(&nodes[1].ns, "eth0", c.addr(Family::V6, 1), 64);
        converge_all(&mut nodes, &c);
        all_pairs(&nodes, DUAL);
        let all = sh(
            &nodes[0].ns,
            "ip route; ip -6 route; ip neigh show nud permanent; bridge fdb show dev seaway.1 2>&1 | cat",
        );
        assert!(!all.contains("192.168.7.11") && !all.contains("fd00:7::b"), "{all}");
    }
}

/// A peer's VTEP comes back with another hardware address: two rows are replaced, none is left over.
#[test]
fn a_peer_that_comes_back_with_another_mac_is_corrected() {
    let (_hub, mut nodes) = world(2, DUAL);
    let c = Cluster::new(2, DUAL, Backend::Vxlan);
    converge_all(&mut nodes, &c);
    // As if an earlier life of node 1 had published another.
    let wrong = "02:5e:a0:00:00:77";
    sh(
        &nodes[0].ns,
        &format!(
            "bridge fdb del {} dev seaway.1 dst 192.168.7.11 self; bridge fdb replace {wrong} dev seaway.1 dst 192.168.7.11 self permanent; \
         ip neigh replace 10.244.1.0 lladdr {wrong} dev seaway.1 nud permanent; ip -6 neigh replace fd00:10:244:1:: lladdr {wrong} dev seaway.1 nud permanent",
            vtep_mac(1)
        ),
    );
    nodes[0].converge(&c);
    assert_eq!(
        rows(&nodes[0].ns, "bridge fdb show dev seaway.1"),
        ["02:5e:a0:00:00:01 dst 192.168.7.11 self permanent"]
    );
    all_pairs(&nodes, DUAL);
}

#[test]
fn a_peer_that_leaves_takes_its_rows_along() {
    for backend in [Backend::HostGw, Backend::Vxlan] {
        let (_hub, mut nodes) = world(3, DUAL);
        converge_all(&mut nodes, &Cluster::new(3, DUAL, backend));
        let gone = nodes.pop().unwrap();
        converge_all(&mut nodes, &Cluster::new(2, DUAL, backend));
        let count = |line: &str| rows(&nodes[0].ns, line).len();
        assert_eq!(count("ip route show proto 83 | grep via"), 1);
        assert_eq!(count("ip -6 route show proto 83 | grep via"), 1);
        if backend == Backend::Vxlan {
            assert_eq!(count("ip -4 neigh show nud permanent dev seaway.1"), 1);
            assert_eq!(count("ip -6 neigh show nud permanent dev seaway.1"), 1);
            assert_eq!(count("bridge fdb show dev seaway.1"), 1);
        }
        all_pairs(&nodes, DUAL);
        // And back.
        nodes.push(gone);
        converge_all(&mut nodes, &Cluster::new(3, DUAL, backend));
        all_pairs(&nodes, V4);
    }
}

#[test]
fn a_compatible_device_is_reused_and_an_incompatible_one_made_anew() {
    let (_hub, mut nodes) = world(2, DUAL);
    let c = Cluster::new(2, DUAL, Backend::Vxlan);
    // Somebody made it before us, right in all that cannot be changed; MTU and hardware address are set.
    sh(&nodes[0].ns, "ip link add seaway.1 mtu 1400 type vxlan id 1 dstport 8472 local 192.168.7.10 nolearning");
    let before = index(&nodes[0], "seaway.1");
    converge_all(&mut nodes, &c);
    assert_eq!(index(&nodes[0], "seaway.1"), before);
    all_pairs(&nodes, V4);
    for wrong in [
        "type vxlan id 1 dstport 8472 local 192.168.7.10",
        "type vxlan id 1 dstport 4789 local 192.168.7.10 nolearning",
        "type vxlan id 5 dstport 8472 local 192.168.7.10 nolearning",
        "type vxlan id 1 dstport 8472 local 192.168.7.77 nolearning",
        "type vxlan id 1 dstport 8472 local 192.168.7.10 dev eth0 nolearning",
        "type bridge",
    ] {
        sh(&nodes[0].ns, &format!("ip link del seaway.1; ip link add seaway.1 {wrong}; ip link set seaway.1 up"));
        let wrong_index = index(&nodes[0], "seaway.1");
        nodes[0].converge(&c);
        assert_ne!(index(&nodes[0], "seaway.1"), wrong_index, "{wrong}");
        all_pairs(&nodes, V4);
    }
    // A VNI of before: the new device comes first, the old one goes.
    sh(
        &nodes[0].ns,
        "ip link add seaway.42 type vxlan id 42 dstport 8472 local 192.168.7.10 nolearning; ip addr add 10.244.0.0/32 dev seaway.42; ip link set seaway.42 up",
    );
    nodes[0].converge(&c);
    let links = Rt::open_in(&nodes[0].ns).unwrap().links().unwrap();
    assert_eq!(links.iter().filter(|l| matches!(l.kind, LinkKind::Vxlan(_))).count(), 1);
    all_pairs(&nodes, V4);
}

/// Whatever somebody deletes or breaks is back after one pass, and packets flow.
#[test]
fn damage_heals_in_one_pass() {
    for backend in [Backend::HostGw, Backend::Vxlan] {
        let (_hub, mut nodes) = world(2, DUAL);
        let c = Cluster::new(2, DUAL, backend);
        converge_all(&mut nodes, &c);
        let pod = pod_link(0);
        let mut damages = vec![
            "ip route flush proto 83; ip -6 route flush proto 83".to_owned(),
            "ip route replace blackhole 10.244.1.0/24 proto 83; ip -6 route replace blackhole fd00:10:244:1::/64 proto 83 metric 1024".into(),
            "ip route add 10.244.1.128/25 via 192.168.7.250 proto 83".into(),
            format!("ip link set {pod} down"),
            "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.eth0.rp_filter=1".into(),
        ];
        if backend == Backend::Vxlan {
            damages.extend(
                [
                    "ip link del seaway.1",
                    "ip link set seaway.1 down",
                    "ip neigh flush dev seaway.1 nud permanent; ip -6 neigh flush dev seaway.1 nud permanent",
                    "bridge fdb del 02:5e:a0:00:00:01 dev seaway.1 dst 192.168.7.11 self",
                    "bridge fdb append 02:5e:a0:00:00:01 dev seaway.1 dst 192.168.7.66 self permanent",
                    "bridge fdb append 00:00:00:00:00:00 dev seaway.1 dst 192.168.7.66 self permanent",
                    "ip addr flush dev seaway.1",
                    "ip addr add 10.9.9.9/32 dev seaway.1",
                    "ip link set seaway.1 mtu 1500 address 02:00:00:00:00:99",
                    "sysctl -qw net/ipv4/conf/seaway.1/rp_filter=1",
                ]
                .map(str::to_owned),
            );
        }
        for d in damages {
            sh(&nodes[0].ns, &d);
            nodes[0].converge(&c);
            for f in Family::BOTH {
                ping(&nodes[0].pod, pod_addr(f, 1, 2));
                ping(&nodes[1].pod, pod_addr(f, 0, 2));
            }
        }
        tcp(&nodes[0].pod, &nodes[1].pod, pod_addr(Family::V4, 1, 2));
    }
}

/// A pod's link that somebody deleted is not ours to make: its routes wait, the rest is in place; a link that no
/// attachment names is deleted; wired again, one pass routes it.
#[test]
fn pod_links_missing_and_leaked() {
    let (_hub, mut nodes) = world(2, DUAL);
    let c = Cluster::new(2, DUAL, Backend::Vxlan);
    converge_all(&mut nodes, &c);
    Rt::open_in(&nodes[0].ns).unwrap().run(&[RtRequest::LinkDel(pod_link(0))]).unwrap();
    let leaked = OwnedName::for_container("gone", "eth0");
    sh(
        &nodes[0].ns,
        &format!(
            "ip link add {leaked} type veth peer name stray; ip link set {leaked} up; ip route add 10.244.0.9 dev {leaked} proto 83"
        ),
    );
    let want = nodes[0].compile(&c).image;
    nodes[0].pass(&want).unwrap();
    let links = sh(&nodes[0].ns, "ip -o link; ip route show proto 83");
    assert!(!links.contains(leaked.as_str()) && !links.contains("10.244.0.9"), "{links}");
    assert!(!links.contains(pod_link(0).as_str()), "{links}");
    let n0 = &nodes[0];
    let pod = crate::world::netns();
    wire_pod(0, &n0.ns, &pod, DUAL);
    sh(&n0.ns, &format!("ip link set {} up", pod_link(0)));
    nodes[0].converge(&c);
    let routes = sh(&nodes[0].ns, "ip route show proto 83");
    assert!(routes.contains(&format!("10.244.0.2 dev {} scope link", pod_link(0))), "{routes}");
}

/// A route of another program to a peer's range is not replaced: the error names it and says what to do, and the rest
/// is in place.
#[test]
fn a_contested_range_is_named() {
    let (_hub, mut nodes) = world(3, V4);
    let c = Cluster::new(3, V4, Backend::Vxlan);
    sh(&nodes[0].ns, "ip route add 10.244.1.0/24 via 192.168.7.250 proto static");
    let want = nodes[0].compile(&c).image;
    let e = nodes[0].pass(&want).unwrap_err().to_string();
    assert!(
        e.contains("10.244.1.0/24") && e.contains("another program has a route to this destination: remove it"),
        "{e}"
    );
    let routes = sh(&nodes[0].ns, "ip route");
    assert!(routes.contains("10.244.1.0/24 via 192.168.7.250 dev eth0 proto static"), "{routes}");
    assert!(routes.contains("10.244.2.0/24 via 10.244.2.0 dev seaway.1"), "{routes}");
    // A VNI that another device holds, likewise.
    sh(&nodes[1].ns, "ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.7.11 nolearning");
    let want = nodes[1].compile(&c).image;
    let e = nodes[1].pass(&want).unwrap_err().to_string();
    assert!(e.contains("seaway.1") && e.contains("another device has this VNI and port: remove it"), "{e}");
}
