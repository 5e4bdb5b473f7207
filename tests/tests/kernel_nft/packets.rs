//! Services with real packets: who is reached, and which address they see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::generate::{cluster_ip, external_ip, node_addr, pod_addr, world};
use intent::{Endpoint, TrafficPolicy};
use types::{Family, Proto};

use crate::world::{DUAL, PODS, Server, World, at, cluster, key, nft, service, sh, tcp, to_pods, udp};

fn servers(w: &World, port: u16) -> Vec<Server> {
    w.pods.iter().enumerate().map(|(n, p)| Server::start(p, &format!("pod{n}"), port)).collect()
}

fn ip(f: Family, n: usize) -> IpAddr {
    pod_addr(f, 0, PODS[n])
}

#[test]
fn cluster_ip_node_port_hairpin_and_who_sees_which_address() {
    let mut w = World::new();
    let _servers = servers(&w, 8080);
    let mut i = cluster(DUAL);
    let mut web = service(DUAL, 1, 80);
    to_pods(&mut web, &[PODS[0]], 8080);
    web.node_port = Some(30080);
    i.services.insert(key("web", Proto::Tcp), web.clone().into());
    i.services.insert(key("web", Proto::Udp), web.into());
    w.converge(&i);
    type Ask = fn(&kernel::Netns, Option<IpAddr>, std::net::SocketAddr) -> std::io::Result<(String, IpAddr)>;
    for f in Family::BOTH {
        for (proto, ask) in [("tcp", tcp as Ask), ("udp", udp)] {
            let vip = at(cluster_ip(f, 1), 80);
            let node_port = at(node_addr(f, 0), 30080);
            let what = format!("{f} {proto}");
            let pod0 = |seen: IpAddr| ("pod0".to_owned(), seen);
            // Pod to pod through the Service: the client's own address.
            assert_eq!(ask(&w.pods[1], None, vip).unwrap(), pod0(ip(f, 1)), "{what} pod to cluster IP");
            // A pod to itself: the node's address, or the answer would not come back through the node.
            let (name, seen) = ask(&w.pods[0], None, vip).unwrap();
            assert!(name == "pod0" && seen != ip(f, 0), "{what} hairpin: {seen}");
            // The node itself, and the world, to the cluster IP: masqueraded.
            assert_eq!(ask(&w.node, None, vip).unwrap().0, "pod0", "{what} node to cluster IP");
            let (name, seen) = ask(&w.out, Some(world(f, 1)), vip).unwrap();
            assert!(name == "pod0" && seen != world(f, 1), "{what} world to cluster IP: {seen}");
            // A pod of another node is inside the cluster.
            let far = pod_addr(f, 1, 10);
            assert_eq!(ask(&w.out, Some(far), vip).unwrap(), pod0(far), "{what} far pod to cluster IP");
            // NodePort, policy Cluster: from the world, from a pod, from the node.
            let (name, seen) = ask(&w.out, Some(world(f, 1)), node_port).unwrap();
            assert!(name == "pod0" && seen != world(f, 1), "{what} world to node port: {seen}");
            assert_eq!(ask(&w.pods[2], None, node_port).unwrap().0, "pod0", "{what} pod to node port");
            assert_eq!(ask(&w.node, None, node_port).unwrap().0, "pod0", "{what} node to node port");
            // Without a Service nothing is touched.
            let direct = at(ip(f, 0), 8080);
            assert_eq!(ask(&w.pods[1], None, direct).unwrap(), pod0(ip(f, 1)), "{what} pod to pod");
        }
    }
}

#[test]
fn pods_take_the_nodes_address_to_the_world_with_random_ports_and_keep_their_own_inside() {
    let mut w = World::new();
    let _out = Server::start(&w.out, "out", 7000);
    w.converge(&cluster(DUAL));
    for f in Family::BOTH {
        let to_world = at(world(f, 1), 7000);
        assert_eq!(tcp(&w.pods[0], None, to_world).unwrap(), ("out".into(), node_addr(f, 0)));
        // To another node and to its pods: the pod's own.
        for dst in [node_addr(f, 1), pod_addr(f, 1, 10)] {
            assert_eq!(tcp(&w.pods[0], None, at(dst, 7000)).unwrap(), ("out".into(), ip(f, 0)), "{dst}");
        }
    }
    // Fully random: neither the pod's own ports nor a row of neighbours.
    let ports = source_ports(&w);
    // Kept ports would be 40000 to 40039 in order.
    let kept = ports.iter().filter(|(had, got)| had == got).count();
    assert!(kept <= 2, "{ports:?}");
    let rising = ports.windows(2).filter(|p| p[1].1 == p[0].1 + 1).count();
    assert!(rising <= 2, "{ports:?}");
}

/// The ports of 40 flows as the pod made them and as the world sees them.
fn source_ports(w: &World) -> Vec<(u16, u16)> {
    let sink = w.out.run(|| std::net::UdpSocket::bind(at(world(Family::V4, 1), 7100))).unwrap().unwrap();
    sink.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    (40000..40040u16)
        .map(|port| {
            let s = w.pods[0].run(|| std::net::UdpSocket::bind(at(ip(Family::V4, 0), port))).unwrap().unwrap();
            s.send_to(b"x", at(world(Family::V4, 1), 7100)).unwrap();
            let mut b = [0; 8];
            (port, sink.recv_from(&mut b).unwrap().1.port())
        })
        .collect()
}

#[test]
fn several_ports_and_protocols_at_one_address_each_go_their_way() {
    let mut w = World::new();
    let _a = Server::start(&w.pods[0], "a", 1001);
    let _b = Server::start(&w.pods[1], "b", 1002);
    let _c = Server::start(&w.pods[2], "c", 1003);
    let mut i = cluster(DUAL);
    let mut add = |name: &str, proto, port, pod: usize, target| {
        let mut s = service(DUAL, 7, port);
        to_pods(&mut s, &[PODS[pod]], target);
        i.services.insert(key(name, proto), s.into());
    };
    add("dns-a", Proto::Tcp, 53, 0, 1001);
    add("dns-b", Proto::Udp, 53, 1, 1002);
    add("web", Proto::Tcp, 80, 2, 1003);
    w.converge(&i);
    for f in Family::BOTH {
        let vip = cluster_ip(f, 7);
        assert_eq!(tcp(&w.pods[1], None, at(vip, 53)).unwrap().0, "a");
        assert_eq!(udp(&w.pods[0], None, at(vip, 53)).unwrap().0, "b");
        assert_eq!(tcp(&w.pods[0], None, at(vip, 80)).unwrap().0, "c");
        let e = udp(&w.pods[0], None, at(vip, 80)).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn endpoints_are_chosen_evenly() {
    let mut w = World::new();
    let _servers = servers(&w, 8080);
    let mut i = cluster(DUAL);
    let mut web = service(DUAL, 1, 80);
    to_pods(&mut web, &PODS, 8080);
    i.services.insert(key("web", Proto::Udp), web.into());
    w.converge(&i);
    for f in Family::BOTH {
        let mut met: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..600 {
            *met.entry(udp(&w.node, None, at(cluster_ip(f, 1), 80)).unwrap().0).or_default() += 1;
        }
        // 200 each; five standard deviations (11.5) either way.
        assert_eq!(met.len(), 3, "{met:?}");
        assert!(met.values().all(|n| (142..=258).contains(n)), "{met:?}");
    }
}

#[test]
fn external_addresses_local_policy_and_source_ranges() {
    let mut w = World::new();
    let _servers = servers(&w, 8080);
    let mut i = cluster(DUAL);
    let mut web = service(DUAL, 1, 80);
    to_pods(&mut web, &PODS[..2], 8080);
    web.balancer_ips = Family::BOTH.map(|f| external_ip(f, 1)).into();
    web.node_port = Some(30080);
    web.external_policy = TrafficPolicy::Local;
    web.local_endpoints.retain(|e| e.addr == ip(Family::of(e.addr), 0));
    i.services.insert(key("web", Proto::Tcp), web.clone().into());
    w.converge(&i);
    for f in Family::BOTH {
        for to in [at(external_ip(f, 1), 80), at(node_addr(f, 0), 30080)] {
            // From outside: local endpoints only, and they see the client.
            for _ in 0..8 {
                let got = tcp(&w.out, Some(world(f, 1)), to).unwrap();
                assert_eq!(got, ("pod0".into(), world(f, 1)), "{to}");
            }
            // From inside: all of them.
            let met: BTreeSet<String> = (0..40).map(|_| tcp(&w.pods[2], None, to).unwrap().0).collect();
            assert_eq!(met.len(), 2, "{to} {met:?}");
            let met: BTreeSet<String> = (0..40).map(|_| tcp(&w.node, None, to).unwrap().0).collect();
            assert_eq!(met.len(), 2, "node {to} {met:?}");
        }
    }
    // No endpoint here: dropped, so that a load balancer's probe goes elsewhere, not refused.
    let svc = std::sync::Arc::make_mut(i.services.get_mut(&key("web", Proto::Tcp)).unwrap());
    svc.local_endpoints.clear();
    w.converge(&i);
    for f in Family::BOTH {
        let e = tcp(&w.out, Some(world(f, 1)), at(node_addr(f, 0), 30080)).unwrap_err();
        assert_ne!(e.kind(), std::io::ErrorKind::ConnectionRefused, "{f}");
    }
    // Only some sources, at the external address.
    web.source_ranges = ["203.0.113.0/31", "2001:db8:ffff::/126"].map(|c| c.parse().unwrap()).into();
    i.services.insert(key("web", Proto::Tcp), web.into());
    w.converge(&i);
    for f in Family::BOTH {
        let to = at(external_ip(f, 1), 80);
        assert_eq!(tcp(&w.out, Some(world(f, 1)), to).unwrap().0, "pod0");
        let e = tcp(&w.out, Some(node_addr(f, 1)), to).unwrap_err();
        assert_ne!(e.kind(), std::io::ErrorKind::ConnectionRefused, "{f}");
        assert_eq!(tcp(&w.out, Some(node_addr(f, 1)), at(node_addr(f, 0), 30080)).unwrap().0, "pod0");
    }
}

/// An endpoint outside the cluster's pod ranges: a pod's packet leaves the cluster, so it takes the node's address.
#[test]
fn an_endpoint_outside_the_cluster_is_reached_with_the_nodes_address() {
    let mut w = World::new();
    let _out = Server::start(&w.out, "out", 9000);
    let mut i = cluster(DUAL);
    let mut db = service(DUAL, 3, 5432);
    db.endpoints = Family::BOTH.map(|f| Endpoint { addr: world(f, 1), port: 9000 }).into();
    i.services.insert(key("db", Proto::Tcp), db.into());
    w.converge(&i);
    for f in Family::BOTH {
        let got = tcp(&w.pods[0], None, at(cluster_ip(f, 3), 5432)).unwrap();
        assert_eq!(got, ("out".into(), node_addr(f, 0)));
    }
}

/// A Service of the node itself, as `default/kubernetes` is: from the node, a pod and the world.
#[test]
fn an_endpoint_on_the_node_itself_is_reached_from_everywhere() {
    let mut w = World::new();
    let _node = Server::start(&w.node, "node", 6443);
    let mut i = cluster(DUAL);
    let mut api = service(DUAL, 1, 443);
    api.endpoints = Family::BOTH.map(|f| Endpoint { addr: node_addr(f, 0), port: 6443 }).into();
    api.node_port = Some(30443);
    i.services.insert(key("kubernetes", Proto::Tcp), api.into());
    w.converge(&i);
    for f in Family::BOTH {
        for to in [at(cluster_ip(f, 1), 443), at(node_addr(f, 0), 30443)] {
            assert_eq!(tcp(&w.node, None, to).unwrap().0, "node", "node to {to}");
            // Nothing leaves the node, so nothing is masqueraded.
            assert_eq!(tcp(&w.pods[0], None, to).unwrap(), ("node".into(), ip(f, 0)), "pod to {to}");
            let from_world = tcp(&w.out, Some(world(f, 1)), to).unwrap();
            assert_eq!(from_world, ("node".into(), world(f, 1)), "world to {to}");
        }
    }
}

/// A packet that another program marked keeps that mark on its whole way, also when its connection mark is taken too;
/// and none of our bits is ever seen.
#[test]
fn marks_of_others_survive_translation() {
    let mut w = World::new();
    let _servers = servers(&w, 8080);
    let mut i = cluster(DUAL);
    let mut web = service(DUAL, 1, 80);
    to_pods(&mut web, &PODS[1..], 8080);
    web.node_port = Some(30080);
    i.services.insert(key("web", Proto::Tcp), web.into());
    w.converge(&i);
    nft(&w.node, MARKING);
    for f in Family::BOTH {
        for _ in 0..5 {
            tcp(&w.pods[0], None, at(cluster_ip(f, 1), 80)).unwrap();
            tcp(&w.out, Some(world(f, 1)), at(node_addr(f, 0), 30080)).unwrap();
            tcp(&w.node, None, at(cluster_ip(f, 1), 80)).unwrap();
        }
    }
    let count = |name: &str| -> u64 {
        let text = sh(&w.node, &format!("nft list counter inet theirs {name}"));
        text.split_whitespace().skip_while(|t| *t != "packets").nth(1).unwrap().parse().unwrap()
    };
    assert!(count("marked") >= 20, "marked {}", count("marked"));
    assert_eq!((count("lost"), count("ours")), (0, 0));
}

/// Another program that marks packets and connections, and counts what became of the marks.
const MARKING: &str = "add table inet theirs
add counter inet theirs marked
add counter inet theirs lost
add counter inet theirs ours
table inet theirs {
    chain setmark {
        type filter hook prerouting priority mangle
        meta mark set 0x1234
        ct mark set 0x77
    }
    chain aftermath {
        type filter hook prerouting priority -99
        ct state new meta mark 0x1234 counter name marked
        ct state new meta mark != 0x1234 counter name lost
        meta mark & 0xfff00000 == 0x5ea00000 counter name ours
    }
    chain atend {
        type filter hook postrouting priority 200
        meta mark & 0xfff00000 == 0x5ea00000 counter name ours
        ct direction original iif != 0 ct mark != 0x77 counter name lost
    }
    chain fromlocal {
        type route hook output priority mangle
        meta mark set 0x99
    }
    chain localend {
        type filter hook output priority -99
        meta mark != 0x99 counter name lost
        meta mark & 0xfff00000 == 0x5ea00000 counter name ours
    }
}
";
