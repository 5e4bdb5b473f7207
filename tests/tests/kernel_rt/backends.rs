//! The rows of each backend, exactly, and packets over them.

use std::io::{BufRead, BufReader};

use fabric::{Fabric, Image};
use intent::Backend;
use intent::generate::pod_addr;
use kernel_api::Rtnetlink;
use plan::{Dataplane, Kernel, Plan};
use types::Family;

use crate::world::{Cluster, DUAL, Node, Running, V4, V6, all_pairs, converge_all, ping, pod_link, rows, sh, world};

fn ours(n: &Node, family: &str) -> Vec<String> {
    rows(&n.ns, &format!("ip {family} route show proto 83"))
}

#[test]
fn host_gw_rows_and_packets() {
    let (_hub, mut nodes) = world(3, DUAL);
    converge_all(&mut nodes, &Cluster::new(3, DUAL, Backend::HostGw));
    let pod = pod_link(0);
    assert_eq!(
        ours(&nodes[0], "-4"),
        [
            format!("10.244.0.2 dev {pod} scope link"),
            "10.244.1.0/24 via 192.168.7.11 dev eth0".into(),
            "10.244.2.0/24 via 192.168.7.12 dev eth0".into(),
            "blackhole 10.244.0.0/24 metric 32768".into(),
        ]
    );
    assert_eq!(
        ours(&nodes[0], "-6"),
        [
            "blackhole fd00:10:244::/64 dev lo metric 32768 pref medium".into(),
            "fd00:10:244:1::/64 via fd00:7::b dev eth0 metric 1024 pref medium".into(),
            "fd00:10:244:2::/64 via fd00:7::c dev eth0 metric 1024 pref medium".into(),
            format!("fd00:10:244::2 dev {pod} metric 1024 pref medium"),
        ]
    );
    assert_eq!(sh(&nodes[0].ns, "ip -o link show type vxlan"), "", "no device");
    assert_eq!(sh(&nodes[0].ns, "ip neigh show nud permanent"), "", "no neighbour");
    all_pairs(&nodes, DUAL);
}

#[test]
fn vxlan_rows_and_packets() {
    let (_hub, mut nodes) = world(3, DUAL);
    converge_all(&mut nodes, &Cluster::new(3, DUAL, Backend::Vxlan));
    let pod = pod_link(0);
    assert_eq!(
        ours(&nodes[0], "-4"),
        [
            format!("10.244.0.2 dev {pod} scope link"),
            "10.244.1.0/24 via 10.244.1.0 dev seaway.1 onlink".into(),
            "10.244.2.0/24 via 10.244.2.0 dev seaway.1 onlink".into(),
            "blackhole 10.244.0.0/24 metric 32768".into(),
        ]
    );
    assert_eq!(
        ours(&nodes[0], "-6"),
        [
            "blackhole fd00:10:244::/64 dev lo metric 32768 pref medium".into(),
            "fd00:10:244:1::/64 via fd00:10:244:1:: dev seaway.1 metric 1024 onlink pref medium".into(),
            "fd00:10:244:2::/64 via fd00:10:244:2:: dev seaway.1 metric 1024 onlink pref medium".into(),
            format!("fd00:10:244::2 dev {pod} metric 1024 pref medium"),
        ]
    );
    assert_eq!(
        rows(&nodes[0].ns, "ip neigh show nud permanent dev seaway.1"),
        [
            "10.244.1.0 lladdr 02:5e:a0:00:00:01 PERMANENT",
            "10.244.2.0 lladdr 02:5e:a0:00:00:02 PERMANENT",
            "fd00:10:244:1:: lladdr 02:5e:a0:00:00:01 PERMANENT",
            "fd00:10:244:2:: lladdr 02:5e:a0:00:00:02 PERMANENT",
        ]
    );
    assert_eq!(
        rows(&nodes[0].ns, "bridge fdb show dev seaway.1"),
        ["02:5e:a0:00:00:01 dst 192.168.7.11 self permanent", "02:5e:a0:00:00:02 dst 192.168.7.12 self permanent",]
    );
    let link = sh(&nodes[0].ns, "ip -d link show seaway.1");
    for word in ["mtu 1450", "vxlan id 1 ", "local 192.168.7.10", "dstport 8472", "nolearning", "02:5e:a0:00:00:00"] {
        assert!(link.contains(word), "{word} not in {link}");
    }
    assert_eq!(
        rows(&nodes[0].ns, "ip -o addr show dev seaway.1 scope global | awk '{print $3,$4}'"),
        ["inet 10.244.0.0/32", "inet6 fd00:10:244::/128",]
    );
    all_pairs(&nodes, DUAL);
}

#[test]
fn vxlan_over_ipv6() {
    let (_hub, mut nodes) = world(2, V6);
    converge_all(&mut nodes, &Cluster::new(2, V6, Backend::Vxlan));
    assert_eq!(rows(&nodes[0].ns, "bridge fdb show dev seaway.1"), ["02:5e:a0:00:00:01 dst fd00:7::b self permanent"]);
    assert!(sh(&nodes[0].ns, "ip link show seaway.1").contains("mtu 1430"));
    assert_eq!(ours(&nodes[0], "-4"), Vec::<String>::new(), "no IPv4 in an IPv6 cluster");
    all_pairs(&nodes, V6);
    // And IPv4 pods over an IPv6 underlay.
    let (_hub, mut nodes) = world(2, DUAL);
    let mut c = Cluster::new(2, DUAL, Backend::Vxlan);
    c.underlay = Family::V6;
    converge_all(&mut nodes, &c);
    all_pairs(&nodes, DUAL);
}

/// The uplink shows the encapsulation, or none; the time to live tells a routed hop per node.
#[test]
fn the_uplink_shows_what_the_backend_says() {
    let (_hub, mut nodes) = world(2, V4);
    for (backend, tunnel) in [(Backend::HostGw, false), (Backend::Vxlan, true)] {
        converge_all(&mut nodes, &Cluster::new(2, V4, backend));
        let args = ["-lnni", "eth0", "--immediate-mode", "icmp or udp port 8472"];
        let mut dump = Running::start(&nodes[0].ns, "tcpdump", &args);
        let mut err = BufReader::new(dump.0.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(err.read_line(&mut line).unwrap(), 0, "tcpdump ended");
        }
        ping(&nodes[0].pod, pod_addr(Family::V4, 1, 2));
        let seen = dump.finish("INT");
        let outer = "192.168.7.10.".to_owned();
        assert_eq!(seen.lines().any(|l| l.contains(&outer) && l.contains("192.168.7.11.8472")), tunnel, "{seen}");
        assert!(seen.contains("10.244.0.2 > 10.244.1.2: ICMP echo request"), "{seen}");
    }
    let reply = sh(&nodes[0].pod, "ping -n -c1 -W2 10.244.1.2");
    assert!(reply.contains("ttl=62"), "two routed hops: {reply}");
}

/// An unused address of the node's own range does not leave the node, and nothing of a peer's without a way does.
#[test]
fn stray_addresses_stay() {
    let (_hub, mut nodes) = world(2, DUAL);
    let c = Cluster::new(2, DUAL, Backend::HostGw);
    converge_all(&mut nodes, &c);
    for (n, dst, table) in [(0, "10.244.0.77", "-4"), (0, "fd00:10:244::77", "-6")] {
        let got = sh(&nodes[n].ns, &format!("ip {table} route get {dst} 2>&1 || true"));
        assert!(got.contains("blackhole") || got.contains("Invalid argument"), "{dst}: {got}");
    }
    // A peer behind a router: refused by name, and answered at once instead of lost.
    let mut far = c.clone();
    far.moved.insert(1, vec!["192.168.8.11".parse().unwrap(), "fd00:8::b".parse().unwrap()]);
    let compiled = nodes[0].compile(&far);
    let refused: Vec<String> = compiled.refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    for (r, hop) in refused.iter().zip(["192.168.8.11", "fd00:8::b"]) {
        assert!(r.starts_with("Node/node1 status.addresses: "), "{r}");
        assert!(r.contains(hop) && r.contains("use backend vxlan, or put the nodes on one L2"), "{r}");
    }
    nodes[0].pass(&compiled.image).unwrap();
    nodes[0].check(&compiled.image);
    for dst in ["10.244.1.2", "fd00:10:244:1::2"] {
        let said = sh(&nodes[0].pod, &format!("ping -n -c1 -W2 {dst} 2>&1 || true"));
        assert!(said.contains("nreachable"), "{said}");
    }
}

/// The printed plan, typed into a shell, does what the plan does.
#[test]
fn the_printed_plan_is_a_script() {
    for (backend, families) in [(Backend::HostGw, DUAL), (Backend::Vxlan, DUAL), (Backend::Vxlan, V6)] {
        let (_hub, mut nodes) = world(2, families);
        let want = nodes[0].compile(&Cluster::new(2, families, backend)).image;
        // There, to another backend, and away.
        let other = nodes[0].compile(&Cluster::new(2, families, Backend::HostGw)).image;
        for want in [&want, &other, &want] {
            let have = nodes[0].kernel.observe().unwrap();
            for op in Fabric.plan(want, &have).iter().flatten() {
                sh(&nodes[0].ns, &op.to_string());
            }
            nodes[0].check(want);
        }
        let text = Plan { batches: Fabric.plan(&want, &Image::default()) }.to_string();
        assert!(text.contains("ip "), "{text}");
    }
}

/// `--cleanup` is a pass to nothing: what others own is as it was.
#[test]
fn a_pass_to_nothing_leaves_the_machine_as_it_was() {
    let (_hub, mut nodes) = world(2, V4);
    let node = &mut nodes[0];
    sh(
        &node.ns,
        "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up; \
         ip link add flannel.1 type vxlan id 7 dstport 8472 local 192.168.7.10 nolearning; ip link set flannel.1 up; \
         ip route add 10.99.0.0/16 via 192.168.7.1 proto static; \
         ip neigh replace 192.168.7.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent; \
         bridge fdb replace 02:00:00:00:00:01 dev flannel.1 dst 192.168.7.77 self permanent",
    );
    let all = "ip -o link show | grep -v sea | sed 's/ state.*//'; ip route show; ip -6 route show | grep -v sea; \
               ip neigh show nud permanent; bridge fdb show dev flannel.1; ip -o addr show | grep -v sea | sed 's/valid.*//'; \
               sysctl net.ipv4.conf.docker0.rp_filter net.ipv6.conf.docker0.accept_ra";
    let before = rows(&node.ns, all);
    node.converge(&Cluster::new(2, V4, Backend::Vxlan));
    assert!(rows(&node.ns, "ip route show proto 83").len() > 2);
    node.pass(&Image::default()).unwrap();
    assert_eq!(rows(&node.ns, all), before);
    let left = node.kernel.kernel().links().unwrap();
    assert!(!left.iter().any(|l| l.name.as_str().starts_with("sea")), "{left:?}");
}
