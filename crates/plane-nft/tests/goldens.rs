//! Images of a few intents as nft's own text, and the plan of a change, for a reviewer to read. `BLESS=1` writes them
//! anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use intent::{Affinity, Endpoint, NodeIntent, Peer, ServiceKey, ServicePort, TrafficPolicy, Vxlan};
use plan::{Caps, Dataplane, Plan};
use plane_nft::{Image, NftPlane, render};
use types::{Family, FamilySet, FlatSet, NodeName, ObjectName, Proto};

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}: run with BLESS=1", path.display()));
    assert!(want == text, "{name} differs; read it and run with BLESS=1:\n{text}");
}

fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn cluster(families: FamilySet) -> NodeIntent {
    let mut i = NodeIntent::empty(node("node0"));
    i.families = families;
    let of = |f: Family, v4: &str, v6: &str| if f == Family::V4 { v4.to_owned() } else { v6.to_owned() };
    let mut peer = Peer { addresses: BTreeSet::new(), routes: vec![] };
    for f in families.iter() {
        i.addresses.insert(addr(&of(f, "192.168.7.10", "fd00:7::10")));
        i.node_port_addresses.extend(i.addresses.iter());
        i.pod_cidrs.push(of(f, "10.244.0.0/24", "fd00:10:244::/64").parse().unwrap());
        i.masqueraded.extend(i.pod_cidrs.last());
        i.cluster_cidrs.insert(of(f, "10.244.0.0/16", "fd00:10:244::/48").parse().unwrap());
        peer.addresses.insert(addr(&of(f, "192.168.7.11", "fd00:7::11")));
    }
    i.peers.insert(node("node1"), peer);
    i
}

fn service(ips: &[&str], port: u16, endpoints: &[(&str, u16)]) -> ServicePort {
    let cluster_ips: FlatSet<IpAddr> = ips.iter().map(|a| addr(a)).collect();
    ServicePort {
        families: cluster_ips.iter().map(|a| Family::of(*a)).collect(),
        cluster_ips,
        external_ips: FlatSet::new(),
        port,
        node_port: None,
        endpoints: endpoints.iter().map(|(a, p)| Endpoint { addr: addr(a), port: *p }).collect(),
        local_endpoints: FlatSet::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        ..ServicePort::default()
    }
}

fn add(i: &mut NodeIntent, name: &str, proto: Proto, svc: ServicePort) {
    i.services.insert(ServiceKey { service: ObjectName::new("default", name), port: "".into(), proto }, svc.into());
}

fn compile(i: &NodeIntent) -> Image {
    NftPlane.compile(i, &Caps::default()).image
}

fn shop() -> NodeIntent {
    let mut i = cluster(FamilySet { v4: true, v6: true });
    let dns = service(
        &["10.96.0.10", "fd00:10:96::a"],
        53,
        &[("10.244.0.5", 53), ("10.244.1.6", 53), ("fd00:10:244::5", 53)],
    );
    add(&mut i, "dns", Proto::Udp, dns.clone());
    add(&mut i, "dns", Proto::Tcp, dns);
    let mut web = service(&["10.96.0.20"], 80, &[("10.244.0.7", 8080), ("10.244.1.7", 8080)]);
    web.node_port = Some(30080);
    web.external_ips.insert(addr("198.51.100.2"));
    web.balancer_ips.insert(addr("198.51.100.1"));
    web.external_policy = TrafficPolicy::Local;
    web.local_endpoints.insert(Endpoint { addr: addr("10.244.0.7"), port: 8080 });
    web.source_ranges.insert("203.0.113.0/24".parse().unwrap());
    add(&mut i, "web", Proto::Tcp, web);
    let mut cart = service(&["10.96.0.40"], 80, &[("10.244.0.9", 8080), ("10.244.1.9", 8080)]);
    cart.node_port = Some(30090);
    cart.affinity = Affinity::ClientIp { timeout: 5400 };
    add(&mut i, "cart", Proto::Tcp, cart);
    add(&mut i, "empty", Proto::Sctp, service(&["10.96.0.30"], 3868, &[]));
    i
}

#[test]
fn a_node_without_services() {
    golden("empty.nft", &render::image(&compile(&cluster(FamilySet { v4: true, v6: false }))));
}

#[test]
fn a_shop() {
    golden("shop.nft", &render::image(&compile(&shop())));
}

#[test]
fn the_plan_of_a_change() {
    let before = shop();
    let mut after = shop();
    for (key, svc) in &mut after.services {
        if &*key.service.name == "dns" {
            std::sync::Arc::make_mut(svc).endpoints.remove(&Endpoint { addr: addr("10.244.1.6"), port: 53 });
        }
    }
    let plan = |want: &NodeIntent, have: Image| Plan { batches: NftPlane.plan(&compile(want), &have) }.to_string();
    golden("endpoint_gone.plan", &plan(&after, compile(&before)));
    let mut tunnel = shop();
    tunnel.vxlan = Some(Vxlan {
        vni: 1,
        port: 8472,
        mac: "02:00:00:00:00:01".parse().unwrap(),
        local: addr("192.168.7.10"),
        addresses: Vec::new(),
    });
    golden("tunnel_comes.plan", &plan(&tunnel, compile(&before)));
    golden("tunnel_goes.plan", &plan(&before, compile(&tunnel)));
    golden("first.plan", &plan(&cluster(FamilySet { v4: true, v6: true }), Image::default()));
}
