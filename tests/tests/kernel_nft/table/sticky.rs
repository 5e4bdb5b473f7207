//! Session affinity with real packets: who is remembered, through what, and for how long.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use intent::{Affinity, Choice, NodeIntent, Verdict};
use kernel::Netns;
use plan::{Caps, Dataplane, Kernel};
use plane_nft::{NftPlane, Shape};
use serde_json::json;
use types::Family;

use super::packets::patient;
use super::{addr, intent_of, objects, packet, packets};
use crate::table::rows::Case;
use crate::world::{World, at, sh, tcp, udp};

const STICKY: Case = Case {
    name: "sticky",
    service: r#"{"type": "LoadBalancer", "sessionAffinity": "ClientIP", "externalIPs": ["$ext4", "$ext6"],
        "status": [{"ip": "$lb4"}, {"ip": "$lb6"}],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}]}"#,
    // The server far away has many addresses, and would answer over UDP from another than the one it was asked at.
    slices: &["http=8080: p0, p1, p2, far", "dns/udp=8081: p0, p1, p2"],
    asks: &[],
};

fn intent(slices: &'static [&'static str]) -> NodeIntent {
    intent_of(&objects(&Case { slices, ..STICKY }))
}

/// Who answers, asked so many times.
fn who(ns: &Netns, from: Option<std::net::IpAddr>, to: SocketAddr, n: usize) -> BTreeSet<String> {
    let once = |_| patient(|| tcp(ns, from, to)).unwrap_or_else(|e| panic!("{from:?} to {to}: {e}")).0;
    (0..n).map(once).collect()
}

fn only(ns: &Netns, from: Option<std::net::IpAddr>, to: SocketAddr) -> String {
    let met = who(ns, from, to, 8);
    assert_eq!(met.len(), 1, "to {to}: {met:?}");
    met.into_iter().next().unwrap()
}

#[test]
fn a_client_keeps_its_endpoint_at_every_address_through_every_change_but_the_endpoints_own() {
    let mut w = World::new();
    let _servers = packets::servers(&w);
    let all = intent(STICKY.slices);
    w.converge(&all);
    for f in Family::BOTH {
        let world = Some(addr("world", f));
        let places =
            [at(addr("vip", f), 80), at(addr("node", f), 30080), at(addr("lb", f), 80), at(addr("ext", f), 80)];
        let mine = only(&w.out, world, places[0]);
        for to in places {
            assert_eq!(only(&w.out, world, to), mine, "{to}");
        }
        // Others have theirs: of 40 clients, not all the same.
        let mut met = BTreeSet::new();
        for n in 1..=40u8 {
            let client = intent::generate::world(f, 100 + n);
            sh(
                &w.out,
                &format!("ip addr replace {client}/{} dev lo{}", f.bits(), if f == Family::V6 { " nodad" } else { "" }),
            );
            met.insert(only(&w.out, Some(client), places[0]));
        }
        assert!(met.len() >= 3, "{met:?}");
        // Another port of the Service is another choice, also of one client: the same by chance in one of four.
        let dns: BTreeSet<String> =
            (0..8).map(|_| patient(|| udp(&w.out, world, at(addr("vip", f), 53))).unwrap().0).collect();
        assert_eq!(dns.len(), 1, "{dns:?}");

        // Nothing of this is its endpoint's: others come and go, the Service changes, the rules are written anew.
        let name = mine.split(':').next().unwrap();
        let rest: &'static [&'static str] = match name {
            "p0" => &["http=8080,dns/udp=8081: p0, p1"],
            "p1" => &["http=8080,dns/udp=8081: p1, p2"],
            "p2" => &["http=8080,dns/udp=8081: p1, p2"],
            _ => &["http=8080,dns/udp=8081: p1, far"],
        };
        w.converge(&intent(rest));
        assert_eq!(only(&w.out, world, places[1]), mine);
        w.converge(&all);
        assert_eq!(only(&w.out, world, places[0]), mine);
        // Another agent, of nothing but what the kernel has.
        w.kernel = plane_nft::NftKernel::new(
            kernel::Nftables::open_in(&w.node).unwrap(),
            kernel::Ct::open_in(&w.node).unwrap(),
        );
        w.converge(&all);
        assert_eq!(only(&w.out, world, places[2]), mine);

        // Its endpoint goes: another, at once, and that one is kept when the first is back.
        let without: &'static [&'static str] = match name {
            "p0" => &["http=8080,dns/udp=8081: p1, p2, far"],
            "p1" => &["http=8080,dns/udp=8081: p0, p2, far"],
            "p2" => &["http=8080,dns/udp=8081: p0, p1, far"],
            _ => &["http=8080,dns/udp=8081: p0, p1, p2"],
        };
        w.converge(&intent(without));
        let next = only(&w.out, world, places[0]);
        assert_ne!(next, mine);
        w.converge(&all);
        assert_eq!(only(&w.out, world, places[1]), next);

        // The trace knows what is remembered, and that is one of what the specification allows.
        let mut image = w.kernel.observe().unwrap();
        w.kernel.remembered(&mut image).unwrap();
        let p = packet("world", "vip:80", f);
        let Verdict::Forward(legs) = NftPlane.trace(&image, &p) else { panic!("not forwarded") };
        assert_eq!(legs.len(), 1);
        let leg = legs.iter().next().unwrap();
        let to = leg.translated.unwrap();
        assert_eq!(leg.choice, Some(Choice::Remembered));
        let name = super::name_of(to.addr).replace("far", "out");
        assert_eq!(format!("{name}:{}", to.port), next);
        assert!(NftPlane.trace(&image, &p).is_within(&intent::verdict(&all, &p).without_paths()));
        // What is remembered is no part of the image: nothing is to be done about it.
        assert!(NftPlane.plan(&NftPlane.compile(&all, &Caps::default()).image, &image).is_empty());
        w.converge(&all);
    }
}

#[test]
fn policy_local_remembers_only_endpoints_of_this_node() {
    let mut w = World::new();
    let _servers = packets::servers(&w);
    let mut objects = objects(&STICKY);
    let service = objects.iter_mut().find(|o| o["kind"] == "Service").unwrap();
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    let i = intent_of(&objects);
    w.converge(&i);
    for f in Family::BOTH {
        for n in 1..=16u8 {
            let client = intent::generate::world(f, 100 + n);
            sh(
                &w.out,
                &format!("ip addr replace {client}/{} dev lo{}", f.bits(), if f == Family::V6 { " nodad" } else { "" }),
            );
            // What was remembered from the cluster address may be elsewhere, and then does not count here.
            only(&w.out, Some(client), at(addr("vip", f), 80));
            let local = only(&w.out, Some(client), at(addr("node", f), 30080));
            assert!(!local.starts_with("out"), "{local}");
            let (_, seen) = patient(|| tcp(&w.out, Some(client), at(addr("lb", f), 80))).unwrap();
            assert_eq!(seen, client);
        }
    }
}

#[test]
fn a_client_is_forgotten_after_its_timeout_and_each_connection_begins_it_anew() {
    let mut w = World::new();
    let _servers = packets::servers(&w);
    let mut i = intent(STICKY.slices);
    for svc in i.services.values_mut() {
        Arc::make_mut(svc).affinity = Affinity::ClientIp { timeout: 4 };
    }
    w.converge(&i);
    let to = at(addr("vip", Family::V4), 80);
    let remembered = |w: &World| sh(&w.node, "nft list map inet seaway affinity4").contains("expires");
    // Asked again and again, it is the same for longer than the timeout.
    let mut mine = only(&w.pods[0], None, to);
    let (mut started, mut last) = (Instant::now(), Instant::now());
    while started.elapsed() < Duration::from_secs(7) {
        let asked = Instant::now();
        let now = patient(|| tcp(&w.pods[0], None, to)).unwrap().0;
        // Where this machine slept for nearly as long as the timeout, it is another story, told from the beginning.
        if last.elapsed() > Duration::from_secs(3) {
            (mine, started) = (now, Instant::now());
        } else {
            assert_eq!(now, mine);
        }
        last = asked;
        std::thread::sleep(Duration::from_millis(300));
    }
    let started = Instant::now();
    while remembered(&w) {
        assert!(started.elapsed() < Duration::from_secs(30), "it is never forgotten");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// With no room left everybody is served, and who is remembered stays so.
#[test]
fn a_full_memory_refuses_nobody() {
    let mut w = World::new();
    let _servers = packets::servers(&w);
    w.converge(&intent(STICKY.slices));
    // A memory of one place.
    let mut small = NftPlane.compile(&intent(STICKY.slices), &Caps::default()).image;
    let set = small.sets.get_mut("affinity4").unwrap();
    set.shape = Arc::new(Shape { dynamic: Some(1), ..(*set.shape).clone() });
    plan::converge(&NftPlane, &mut w.kernel, &small, None).unwrap();
    let to = at(addr("vip", Family::V4), 80);
    let mine = only(&w.pods[0], None, to);
    assert!(who(&w.pods[1], None, to, 40).len() > 1, "there is no room for it");
    assert_eq!(only(&w.pods[0], None, to), mine);
}
