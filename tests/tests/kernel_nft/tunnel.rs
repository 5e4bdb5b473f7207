//! The outside of a tunnel between nodes is not tracked; whatever else has its port is.

use std::net::IpAddr;

use intent::generate::{cluster_ip, node_addr, world};
use intent::{NodeIntent, Vxlan};
use kernel::Ct;
use kernel_api::conntrack::Flow;
use types::{Family, Proto};

use crate::world::{DUAL, PODS, Server, World, at, cluster, key, nft, service, to_pods, udp, udp_socket_at};

const PORT: u16 = 8472;
const VNI: u8 = 1;

/// A node with a tunnel of each family.
fn tunnelled() -> NodeIntent {
    let mut i = cluster(DUAL);
    let mac = "02:00:00:00:00:01".parse().unwrap();
    let vxlan = |f| Vxlan { vni: VNI.into(), port: PORT, mac, local: node_addr(f, 0), addresses: Vec::new() };
    (i.vxlan, i.vxlan6) = (Some(vxlan(Family::V4)), Some(vxlan(Family::V6)));
    i
}

/// Who masquerades takes any port, and now and then it is the tunnel's; another proxy's rule makes it certain here.
#[test]
fn a_connection_that_was_given_the_tunnels_port_gets_its_answers() {
    let mut w = World::new();
    let _pod = Server::start(&w.pods[0], "pod", 5353);
    let _out = Server::start(&w.out, "out", 7000);
    let mut i = tunnelled();
    let mut svc = service(DUAL, 10, 53);
    to_pods(&mut svc, &[PODS[0]], 5353);
    i.services.insert(key("dns", Proto::Udp), svc.into());
    w.converge(&i);
    for f in Family::BOTH {
        let ip = if f == Family::V4 { "ip" } else { "ip6" };
        let at_port = at(node_addr(f, 0), PORT);
        let rule = format!("meta l4proto udp snat to {at_port}");
        nft(&w.node, &format!("table {ip} other {{ chain p {{ type nat hook postrouting priority 90; {rule}; }}; }}"));
        for (from, to, who) in
            [(&w.node, at(cluster_ip(f, 10), 53), "pod"), (&w.pods[1], at(node_addr(f, 1), 7000), "out")]
        {
            let (name, seen) = udp(from, None, to).unwrap_or_else(|e| panic!("{to}: {e}"));
            assert_eq!((&*name, seen), (who, node_addr(f, 0)), "{to}");
        }
    }
}

#[test]
fn what_a_tunnel_sends_is_untracked_and_nothing_else() {
    let mut w = World::new();
    w.converge(&tunnelled());
    let tracked = |a: IpAddr| {
        let mut found = false;
        let each = &mut |f: &Flow| found |= f.original.dst == a && f.original.dport == PORT;
        Ct::open_in(&w.node).unwrap().each(None, each).unwrap();
        found
    };
    let of = |vni: u8| [8, 0, 0, 0, 0, 0, vni, 0, 1, 2, 3, 4];
    for f in Family::BOTH {
        // What arrives, and what leaves.
        for (ns, from, to) in [(&w.out, node_addr(f, 1), node_addr(f, 0)), (&w.node, node_addr(f, 0), node_addr(f, 1))]
        {
            let send = |bytes: &[u8]| {
                let s = udp_socket_at(ns, Some(from), 40000, at(to, PORT)).unwrap();
                s.send(bytes).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(50));
            };
            send(&of(VNI));
            assert!(!tracked(to), "{from} to {to} by the tunnel");
            send(&of(VNI + 1));
            assert!(tracked(to), "{from} to {to} by another");
        }
        // A tunnel is between nodes.
        let s = udp_socket_at(&w.node, None, 40001, at(world(f, 1), PORT)).unwrap();
        s.send(&of(VNI)).unwrap();
        assert!(tracked(world(f, 1)), "to the world");
    }
}
