//! Followed change by change, the table is what a look at everything makes of it, by the same plan.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

use std::collections::BTreeMap;

use intent::generate::node_intent;
use intent::{Affinity, Endpoint, NodeIntent, Ports, ServiceKey, ServicePort};
use kernel_fake::conntrack::FakeConntrack;
use kernel_fake::nft::FakeNft;
use plan::{Caps, Dataplane, HostLink, Kernel};
use plane_nft::{Data, Image, Key, NftKernel, NftPlane, Tracker};
use proptest::prelude::*;
use types::{FlatSet, ObjectName};

fn caps(i: &NodeIntent) -> Caps {
    let addresses = i.addresses.iter().map(|a| (*a, 24)).collect();
    Caps { links: [("eth0".parse().unwrap(), HostLink { mtu: 1500, addresses })].into(), ..Caps::default() }
}

fn by_service(i: &NodeIntent) -> BTreeMap<ObjectName, Ports> {
    let mut out: BTreeMap<ObjectName, Ports> = BTreeMap::new();
    for (k, p) in &i.services {
        out.entry(k.service.clone()).or_default().push((k.clone(), p.clone()));
    }
    out
}

/// The Services that differ, with the ports that each had, and some that do not.
fn changes(from: &NodeIntent, to: &NodeIntent, also: usize) -> BTreeMap<ObjectName, Ports> {
    let (mut was, now) = (by_service(from), by_service(to));
    for name in now.keys() {
        was.entry(name.clone()).or_default();
    }
    let mut idle = also;
    was.retain(|name, ports| {
        let same = now.get(name).is_some_and(|n| n == ports);
        !same || {
            idle = idle.wrapping_sub(1);
            idle < 3
        }
    });
    was
}

/// Nodes whose facts change seldom and whose Services change often.
fn history() -> impl Strategy<Value = Vec<(NodeIntent, usize)>> {
    (node_intent(), prop::collection::vec((node_intent(), any::<bool>(), any::<u8>(), 0usize..3), 1..6)).prop_map(
        |(first, rest)| {
            let mut all = vec![(first, 0)];
            for (next, facts, keep, also) in rest {
                let (last, _) = all.last().unwrap();
                let mut i = if facts { next.clone() } else { last.clone() };
                // Some Services stay as they were, some go, some are as the other intent has them.
                let mut services = last.services.clone();
                services.retain(|k, _| !next.services.contains_key(k) || keep & 1 == 1);
                for (n, (k, p)) in next.services.iter().enumerate() {
                    if keep >> (1 + n % 7) & 1 == 1 {
                        services.retain(|o, _| o.service != k.service || o == k);
                        services.insert(k.clone(), p.clone());
                    }
                }
                i.services = services;
                all.push((i, also));
            }
            // What `resolve` never lets through.
            all.retain(|(i, _)| is_sound(i));
            all
        },
    )
}

/// No two promise the same.
fn is_sound(i: &NodeIntent) -> bool {
    let mut places = std::collections::BTreeSet::new();
    i.services.iter().all(|(k, p)| {
        let vips = p.cluster_ips.iter().chain(&p.external_ips);
        vips.map(|ip| (Some(*ip), p.port)).chain(p.node_port.map(|n| (None, n))).all(|at| places.insert((k.proto, at)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn followed_is_from_scratch(history in history()) {
        let mut k = NftKernel::new(FakeNft::new(), FakeConntrack::new());
        let mut tracker = Tracker::default();
        let mut last: Option<NodeIntent> = None;
        for (i, also) in &history {
            let full = NftPlane.compile(i, &caps(i));
            let batches = match &last {
                None => {
                    let first = tracker.full(i, &caps(i));
                    prop_assert_eq!(&first, &full);
                    NftPlane.plan(&first.image, &k.observe().unwrap())
                }
                Some(before) => {
                    let delta = tracker.follow(i, &caps(i), &changes(before, i, *also)).unwrap();
                    prop_assert_eq!(&delta.refused, &full.refused);
                    NftPlane.plan(&delta.image.want, &delta.image.have)
                }
            };
            for batch in &batches {
                k.commit(batch).unwrap();
            }
            let have = k.observe().unwrap();
            prop_assert_eq!(without_order(&have), without_order(&full.image));
            // Who begins here has nothing to do.
            let restarted = Tracker::default().full_over(i, &caps(i), Some(&have));
            prop_assert_eq!(&restarted.refused, &full.refused);
            prop_assert_eq!(&restarted.image, &have);
            last = Some(i.clone());
        }
    }
}

/// An image, with only the number of slots and the endpoints that are in them of each place: which is in which is free.
type WithoutOrder = (Image, BTreeMap<String, (Vec<Key>, Vec<(Box<[u8]>, Vec<u8>)>)>);

fn without_order(image: &Image) -> WithoutOrder {
    let mut rest = image.clone();
    let mut slots = BTreeMap::new();
    let of_slots = ["endpoints", "node_endpoints", "sticky_slots"];
    for (name, set) in rest.sets.iter_mut().filter(|(n, _)| of_slots.contains(&n.trim_end_matches(['4', '6']))) {
        let elements = std::mem::take(&mut set.elements);
        let keys: Vec<Key> = elements.iter().map(|e| e.to_key()).collect();
        let mut ends: Vec<(Box<[u8]>, Vec<u8>)> = elements
            .iter()
            .map(|e| {
                let Data::Value(v) = e.to_data() else { panic!("{name} maps to addresses and numbers") };
                (e.key[4..].into(), v.into())
            })
            .collect();
        ends.sort();
        slots.insert(name.clone(), (keys, ends));
    }
    (rest, slots)
}

/// Of two thousand endpoints one goes, comes, is replaced: a handful of elements, whether followed or found at a start.
#[test]
fn one_of_two_thousand_endpoints_is_a_few_elements() {
    for affinity in [Affinity::None, Affinity::ClientIp { timeout: 60 }] {
        let endpoint = |n: u32| Endpoint { addr: std::net::Ipv4Addr::from(0x0a80_0000 + n).into(), port: 80 };
        let service = types::ObjectName::new("default", "large");
        let key = ServiceKey { service: service.clone(), port: "".into(), proto: types::Proto::Tcp };
        let intent = |endpoints: FlatSet<Endpoint>| {
            let mut i = NodeIntent::empty("node0".parse().unwrap());
            let port = ServicePort {
                cluster_ips: [[10, 96, 0, 1].into()].into(),
                port: 80,
                node_port: Some(30080),
                families: [types::Family::V4].into_iter().collect(),
                endpoints,
                affinity,
                ..ServicePort::default()
            };
            i.services.insert(key.clone(), port.into());
            i
        };
        let mut now: FlatSet<Endpoint> = (0..2000).map(endpoint).collect();
        let mut last = intent(now.clone());
        let mut tracker = Tracker::default();
        let mut k = NftKernel::new(FakeNft::new(), FakeConntrack::new());
        let first = tracker.full(&last, &caps(&last)).image;
        for batch in NftPlane.plan(&first, &Image::default()) {
            k.commit(&batch).unwrap();
        }
        let steps: [(&[u32], &[u32]); 4] = [(&[1000], &[]), (&[], &[1000]), (&[1, 2], &[20_000]), (&[1999], &[20_001])];
        for (gone, come) in steps {
            gone.iter().for_each(|n| assert!(now.remove(&endpoint(*n))));
            now.extend(come.iter().map(|n| endpoint(*n)));
            let i = intent(now.clone());
            let have = k.observe().unwrap();
            let started = Tracker::default().full_over(&i, &caps(&i), Some(&have)).image;
            let found: usize = NftPlane.plan(&started, &have).iter().map(Vec::len).sum();
            let delta = tracker.follow(&i, &caps(&i), &changes(&last, &i, 0)).unwrap().image;
            let batches = NftPlane.plan(&delta.want, &delta.have);
            let ops: usize = batches.iter().map(Vec::len).sum();
            // For each of two places a slot or two, and the count; the endpoint's own; the rules of another count.
            assert!(ops <= 40 && found <= 40, "{gone:?} {come:?}: {ops} followed, {found} at a start");
            for batch in &batches {
                k.commit(batch).unwrap();
            }
            assert_eq!(k.observe().unwrap(), started);
            last = i;
        }
    }
}
