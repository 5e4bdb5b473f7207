//! Printed plans, one file per case in tests/goldens. `BLESS=1` writes them anew; a person reads the difference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use fabric::{Fabric, Image};
use intent::generate::{node_addr, node_name, pod_addr, pod_cidr, vtep_mac};
use intent::{Attachment, AttachmentKey, Backend, NodeIntent, Peer, PeerRoute, Reach, Vxlan};
use plan::{Caps, Dataplane, HostLink, Plan, Uplink};
use types::{Cidr, Family, FamilySet, OwnedName};

const V4: FamilySet = FamilySet { v4: true, v6: false };
const V6: FamilySet = FamilySet { v4: false, v6: true };
const DUAL: FamilySet = FamilySet { v4: true, v6: true };

fn caps() -> Caps {
    let addresses = vec![(node_addr(Family::V4, 0), 24), (node_addr(Family::V6, 0), 64)];
    Caps {
        uplink: Some(Uplink { name: "eth0".parse().unwrap(), mtu: 1500 }),
        links: [("eth0".parse().unwrap(), HostLink { mtu: 1500, addresses })].into(),
        missing: BTreeSet::new(),
    }
}

/// Node 0 of a cluster of `nodes`, with one pod.
fn intent(families: FamilySet, backend: Backend, underlay: Family, nodes: u8) -> NodeIntent {
    let mut i = NodeIntent::empty(node_name(0));
    i.families = families;
    i.backend = backend;
    i.addresses = families.iter().chain([underlay]).map(|f| node_addr(f, 0)).collect();
    i.pod_cidrs = families.iter().map(|f| pod_cidr(f, 0)).collect();
    if backend == Backend::Vxlan {
        i.vxlan = Some(Vxlan {
            vni: 1,
            port: 8472,
            mac: vtep_mac(0),
            local: node_addr(underlay, 0),
            addresses: i.pod_cidrs.iter().map(Cidr::addr).collect(),
        });
    }
    for n in 1..nodes {
        let reach = |f: Family| match backend {
            Backend::HostGw => Reach::Direct { next_hop: node_addr(f, n) },
            Backend::Vxlan => {
                Reach::Vxlan { remote: node_addr(underlay, n), mac: vtep_mac(n), gateway: pod_cidr(f, n).addr() }
            }
        };
        let routes = families.iter().map(|f| PeerRoute { cidr: pod_cidr(f, n), reach: reach(f) }).collect();
        i.peers.insert(node_name(n), Peer { addresses: BTreeSet::new(), routes });
    }
    let key = AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() };
    let link = OwnedName::for_container("c1", "eth0");
    let addresses = families.iter().map(|f| pod_addr(f, 0, 2)).collect();
    i.attachments.insert(key, Attachment { pod: None, link, addresses, host_ports: vec![] });
    i
}

fn compiled(i: &NodeIntent) -> (Image, String) {
    let c = Fabric.compile(i, &caps());
    let refused = c.refused.iter().fold(String::new(), |mut s, r| {
        let _ = writeln!(s, "refused {r}");
        s
    });
    (c.image, refused)
}

fn golden(case: &str, from: Option<&NodeIntent>, to: &NodeIntent) {
    let (want, refused) = compiled(to);
    let mut have = from.map_or_else(Image::default, |f| compiled(f).0);
    // The CNI plugin has made the pods' links.
    have.pod_links.clone_from(&want.pod_links);
    let got = format!("{refused}{}", Plan { batches: Fabric.plan(&want, &have) });
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(format!("{case}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, want, "{case} differs; if the change is meant, run again with BLESS=1 and read the difference");
}

#[test]
fn first_start() {
    golden("host-gw-v4", None, &intent(V4, Backend::HostGw, Family::V4, 3));
    golden("host-gw-dual", None, &intent(DUAL, Backend::HostGw, Family::V4, 3));
    golden("vxlan-v4", None, &intent(V4, Backend::Vxlan, Family::V4, 3));
    golden("vxlan-dual", None, &intent(DUAL, Backend::Vxlan, Family::V4, 3));
    golden("vxlan-v6", None, &intent(V6, Backend::Vxlan, Family::V6, 3));
}

#[test]
fn switches_and_changes() {
    let direct = intent(DUAL, Backend::HostGw, Family::V4, 3);
    let tunnel = intent(DUAL, Backend::Vxlan, Family::V4, 3);
    golden("switch-host-gw-to-vxlan", Some(&direct), &tunnel);
    golden("switch-vxlan-to-host-gw", Some(&tunnel), &direct);
    golden("peer-leaves", Some(&tunnel), &intent(DUAL, Backend::Vxlan, Family::V4, 2));
    let mut moved = tunnel.clone();
    if let Some(v) = &mut moved.vxlan {
        v.local = "192.168.7.99".parse().unwrap();
    }
    golden("own-address-changes", Some(&tunnel), &moved);
    let mut moved = tunnel.clone();
    if let Some(p) = moved.peers.get_mut(&node_name(1)) {
        for r in &mut p.routes {
            if let Reach::Vxlan { remote, .. } = &mut r.reach {
                *remote = "192.168.7.99".parse().unwrap();
            }
        }
    }
    golden("peer-address-changes", Some(&tunnel), &moved);
}

#[test]
fn refusals() {
    let mut far = intent(DUAL, Backend::HostGw, Family::V4, 3);
    if let Some(p) = far.peers.get_mut(&node_name(1)) {
        p.routes[0].reach = Reach::Direct { next_hop: "192.168.8.11".parse().unwrap() };
        p.routes[1].reach = Reach::None { why: "node1 publishes no IPv6 address: add one to status.addresses".into() };
    }
    golden("host-gw-not-on-link", None, &far);
    let reach = |remote: std::net::IpAddr, mac: u8, n: u8| Reach::Vxlan {
        remote,
        mac: vtep_mac(mac),
        gateway: pod_cidr(Family::V4, n).addr(),
    };
    let mut clash = intent(V4, Backend::Vxlan, Family::V4, 6);
    let mut change = |n: u8, f: &dyn Fn(&mut PeerRoute)| {
        clash.peers.get_mut(&node_name(n)).unwrap().routes.iter_mut().for_each(f);
    };
    change(1, &|r| *r = PeerRoute { cidr: pod_cidr(Family::V4, 2), reach: reach(node_addr(Family::V4, 1), 1, 2) });
    change(3, &|r| r.cidr = pod_cidr(Family::V4, 0));
    change(4, &|r| r.reach = reach(node_addr(Family::V6, 4), 4, 4));
    change(5, &|r| r.reach = reach(node_addr(Family::V4, 5), 2, 5));
    golden("clashes", None, &clash);
}

/// What a machine lacks: one line per object, with the fix.
#[test]
fn machines_that_lack_something() {
    let tunnel = intent(V6, Backend::Vxlan, Family::V6, 2);
    let refused = |change: &dyn Fn(&mut Caps), i: &NodeIntent| -> Vec<String> {
        let mut caps = caps();
        change(&mut caps);
        Fabric.compile(i, &caps).refused.iter().map(ToString::to_string).collect()
    };
    let no_vxlan =
        "spec.backend: this kernel has no VXLAN: load the module `vxlan` (CONFIG_VXLAN), or use backend host-gw";
    let got = refused(&|c| c.missing = ["vxlan".to_owned()].into(), &tunnel);
    assert_eq!(got, [format!("Node/node0 {no_vxlan}"), format!("Node/node1 {no_vxlan}")]);
    let got = refused(&|c| c.uplink = None, &tunnel);
    assert!(
        got.len() == 2 && got[0].ends_with("give the node a default route, or name the interface with --iface"),
        "{got:?}"
    );
    let got = refused(&|c| c.uplink.as_mut().unwrap().mtu = 1300, &tunnel);
    let says =
        "the MTU of eth0 is 1300: 1230 would be left inside VXLAN, and IPv6 needs 1280; raise it to 1350 at least";
    assert!(got.len() == 2 && got[0].contains(says), "{got:?}");
    let got = refused(&|c| c.links.clear(), &intent(V4, Backend::HostGw, Family::V4, 2));
    assert!(got.len() == 1 && got[0].contains("(no interface with an address is known)"), "{got:?}");
}
