//! Followed change by change, the table is what a look at everything makes of it, by the same plan.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

use std::collections::BTreeMap;

use intent::generate::node_intent;
use intent::{NodeIntent, Ports};
use kernel_fake::conntrack::FakeConntrack;
use kernel_fake::nft::FakeNft;
use plan::{Caps, Dataplane, HostLink, Kernel, Plan};
use plane_nft::{NftKernel, NftPlane, Tracker};
use proptest::prelude::*;
use types::ObjectName;

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
        let mut last: Option<(NodeIntent, plane_nft::Image)> = None;
        for (i, also) in &history {
            let full = NftPlane.compile(i, &caps(i));
            let batches = match &last {
                None => {
                    let first = tracker.full(i, &caps(i));
                    prop_assert_eq!(&first, &full);
                    NftPlane.plan(&first.image, &k.observe().unwrap())
                }
                Some((before, have)) => {
                    let delta = tracker.follow(i, &caps(i), &changes(before, i, *also)).unwrap();
                    prop_assert_eq!(&delta.refused, &full.refused);
                    let batches = NftPlane.plan(&delta.image.want, &delta.image.have);
                    // What is planned is what two whole images would have planned.
                    let whole = NftPlane.plan(&full.image, have);
                    prop_assert_eq!(Plan { batches: whole }.to_string(), Plan { batches: NftPlane.plan(&delta.image.want, &delta.image.have) }.to_string());
                    batches
                }
            };
            for batch in &batches {
                k.commit(batch).unwrap();
            }
            prop_assert_eq!(&k.observe().unwrap(), &full.image);
            last = Some((i.clone(), full.image));
        }
    }
}
