//! Proptest strategies: intents of a small but varied cluster, and packets that meet its interesting places.
//!
//! A strategy draws plain small numbers and a function builds the intent from them, so that a failing case shrinks to
//! few nodes, pods and services. All addresses are of documentation or private ranges; node `i` owns
//! `10.244.i.0/24` and `fd00:10:244:i::/64`, this node is number 0.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use types::{AddressRange, Cidr, Family, FamilySet, FlatSet, Mac, NodeName, ObjectName, OwnedName, Proto};

use crate::{
    Affinity, Attachment, AttachmentKey, Backend, Endpoint, L4, NodeIntent, Origin, Packet, Peer, PeerRoute, Reach,
    ServiceKey, ServicePort, TrafficPolicy, Vxlan,
};

/// The pod range of node `i`.
#[must_use]
pub fn pod_cidr(family: Family, i: u8) -> Cidr {
    match family {
        Family::V4 => at(Ipv4Addr::new(10, 244, i, 0), 24),
        Family::V6 => at(Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(i), 0, 0, 0, 0), 64),
    }
}

/// The address of node `i`: all nodes are in `192.168.7.0/24` and `fd00:7::/64`.
#[must_use]
pub fn node_addr(family: Family, i: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 7, 10 + i).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x7, 0, 0, 0, 0, 0, 10 + u16::from(i)).into(),
    }
}

/// The `n`th address of node `i`'s pod range.
#[must_use]
pub fn pod_addr(family: Family, i: u8, n: u8) -> IpAddr {
    let c = pod_cidr(family, i);
    c.nth(u128::from(n)).unwrap_or(c.addr())
}

/// The `n`th address for Services.
#[must_use]
pub fn cluster_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(n)).into(),
    }
}

/// The `n`th address for load balancers and `externalIPs`.
#[must_use]
pub fn external_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(n)).into(),
    }
}

/// The `n`th address of the world.
#[must_use]
pub fn world(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, u16::from(n)).into(),
    }
}

/// The name of node `i`.
#[must_use]
pub fn node_name(i: u8) -> NodeName {
    // "node" and digits is always a name; the fallback is never taken.
    format!("node{i}").parse().unwrap_or_else(|_| unreachable!())
}

/// The hardware address of node `i`'s VXLAN device.
#[must_use]
pub fn vtep_mac(i: u8) -> Mac {
    Mac([0x02, 0x5e, 0xa0, 0, 0, i])
}

fn at(addr: impl Into<IpAddr>, len: u8) -> Cidr {
    let addr = addr.into();
    Cidr::new(addr, len).unwrap_or(Cidr::host(addr))
}

/// How peers are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaches {
    /// Each peer and family in its own way, also not at all.
    Mixed,
    /// All directly.
    Direct,
    /// All through VXLAN.
    Vxlan,
}

#[derive(Debug, Clone)]
struct RawPeer {
    reach: [u8; 2],
    second_range: bool,
    borrows: bool,
}

#[derive(Debug, Clone)]
struct RawPod {
    v4: bool,
    v6: bool,
    borrowed: bool,
}

#[derive(Debug, Clone)]
struct RawPort {
    proto: Proto,
    port: u16,
    node_port: bool,
    endpoints: Vec<(u8, u8, u16)>,
    external_local: bool,
    internal_local: bool,
    timeout: Option<u32>,
    /// Some endpoints are for Local only, as topology hints leave them.
    narrowed: bool,
}

#[derive(Debug, Clone)]
struct RawService {
    families: u8,
    external: u8,
    balancer: u8,
    ranges: u8,
    ports: Vec<RawPort>,
}

fn raw_port() -> impl Strategy<Value = RawPort> {
    (
        select(&Proto::ALL[..]),
        select(&[53u16, 80, 443][..]),
        any::<bool>(),
        prop::collection::vec((0u8..8, 0u8..6, select(&[80u16, 5353, 8080][..])), 0..5),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.2),
        select(&[None, None, None, Some(60), Some(10_800)][..]),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(proto, port, node_port, endpoints, external_local, internal_local, timeout, narrowed)| {
            RawPort { proto, port, node_port, endpoints, external_local, internal_local, timeout, narrowed }
        })
}

fn raw_service() -> impl Strategy<Value = RawService> {
    (0u8..3, 0u8..3, 0u8..3, 0u8..6, prop::collection::vec(raw_port(), 1..4)).prop_map(
        |(families, external, balancer, ranges, ports)| RawService { families, external, balancer, ranges, ports },
    )
}

fn families(n: u8) -> FamilySet {
    FamilySet { v4: n != 1, v6: n != 0 }
}

/// An intent with peers in every reach, pods, Services and no policies, IPv4, IPv6 or both.
pub fn node_intent() -> impl Strategy<Value = NodeIntent> {
    node_intent_with(Reaches::Mixed)
}

/// The same with peers all reached in one way.
pub fn node_intent_with(reaches: Reaches) -> impl Strategy<Value = NodeIntent> {
    let peer = ([0u8..3, 0u8..3], prop::bool::weighted(0.2), prop::bool::weighted(0.2))
        .prop_map(|(reach, second_range, borrows)| RawPeer { reach, second_range, borrows });
    let pod = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(v4, v6, borrowed)| RawPod {
        v4,
        v6,
        borrowed,
    });
    (
        0u8..3,
        any::<[bool; 6]>(),
        prop::collection::vec(peer, 0..5),
        prop::collection::vec(pod, 0..5),
        prop::collection::vec(raw_service(), 0..5),
    )
        .prop_map(move |(fams, flags, peers, pods, services)| {
            build(families(fams), reaches, flags, &peers, &pods, &services)
        })
}

fn build(
    families: FamilySet,
    reaches: Reaches,
    [underlay6, vxlan_anyway, masquerade, second_address, unserved, by_family]: [bool; 6],
    peers: &[RawPeer],
    pods: &[RawPod],
    services: &[RawService],
) -> NodeIntent {
    let mut intent = NodeIntent::empty(node_name(0));
    intent.families = families;
    // The underlay of a single-stack cluster has the same family.
    let underlay = match families.iter().collect::<Vec<_>>()[..] {
        [only] => only,
        _ if underlay6 => Family::V6,
        _ => Family::V4,
    };
    for f in families.iter() {
        intent.addresses.insert(node_addr(f, 0));
        // Where node ports are served: at every address, or not at the second one.
        intent.node_port_addresses.insert(node_addr(f, 0));
        if second_address {
            intent.addresses.insert(node_addr(f, 200));
        }
        intent.pod_cidrs.push(pod_cidr(f, 0));
        intent.cluster_cidrs.insert(match f {
            Family::V4 => at(Ipv4Addr::new(10, 244, 0, 0), 16),
            Family::V6 => at(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 48),
        });
    }
    if unserved {
        // Ranges that hold the addresses of Services and more; load balancers' but for some of the first Service.
        intent.service_cidrs = families.iter().filter_map(|f| Cidr::new(cluster_ip(f, 0), f.bits() - 8)).collect();
        intent.balancer_ranges =
            families.iter().filter_map(|f| AddressRange::new(external_ip(f, 6), external_ip(f, 255))).collect();
    }
    for (i, raw) in (1u8..).zip(peers) {
        let mut routes = Vec::new();
        for (f, reach) in families.iter().zip(raw.reach) {
            let mut range = |cidr: Cidr| {
                let reach = match (reaches, reach) {
                    (Reaches::Direct, _) | (Reaches::Mixed, 0) => Reach::Direct { next_hop: node_addr(f, i) },
                    (Reaches::Vxlan, _) | (Reaches::Mixed, 1) if by_family => {
                        Reach::vxlan(cidr, node_addr(f, i), vtep_mac(if f == Family::V4 { i } else { 128 + i }))
                    }
                    (Reaches::Vxlan, _) | (Reaches::Mixed, 1) => {
                        Reach::vxlan(cidr, node_addr(underlay, i), vtep_mac(i))
                    }
                    (Reaches::Mixed, _) => {
                        Reach::None { why: format!("node{i}: nothing published: start the agent there") }
                    }
                };
                routes.push(PeerRoute { cidr, reach });
            };
            range(pod_cidr(f, i));
            if raw.second_range {
                range(pod_cidr(f, 100 + i));
            }
            if raw.borrows {
                range(Cidr::host(pod_addr(f, 0, 150 + i)));
            }
        }
        let addresses = families.iter().map(|f| node_addr(f, i)).collect();
        intent.peers.insert(node_name(i), Peer { addresses, routes });
    }
    let tunnels =
        intent.peers.values().flat_map(|p| &p.routes).any(|r| matches!(r.reach, Reach::Vxlan { .. })) || vxlan_anyway;
    if tunnels {
        intent.backend = Backend::Vxlan;
        let device = |family: Option<Family>, mac: u8| Vxlan {
            vni: 1,
            port: 8472,
            mac: vtep_mac(mac),
            local: node_addr(family.unwrap_or(underlay), 0),
            addresses: intent
                .pod_cidrs
                .iter()
                .filter(|c| family.is_none_or(|f| f == c.family()))
                .map(Cidr::addr)
                .collect(),
        };
        let (one, two) = if by_family {
            let of = |f: Family, mac: u8| families.iter().any(|g| g == f).then(|| device(Some(f), mac));
            (of(Family::V4, 0), of(Family::V6, 128))
        } else {
            (Some(device(None, 0)), None)
        };
        (intent.vxlan, intent.vxlan6) = (one, two);
    }
    for (n, raw) in (0u8..).zip(pods) {
        let key = AttachmentKey { container_id: format!("c{n}").into(), ifname: "eth0".into() };
        // A borrowed address lies in a peer's range: the host route is longer and wins.
        let owner = if raw.borrowed && !peers.is_empty() { 1 } else { 0 };
        let slot = if owner == 0 { 2 + n } else { 200 + n };
        let mut fams: FamilySet = families.iter().filter(|f| if *f == Family::V4 { raw.v4 } else { raw.v6 }).collect();
        if fams.iter().count() == 0 {
            fams = families;
        }
        let addresses: BTreeSet<IpAddr> = fams.iter().map(|f| pod_addr(f, owner, slot)).collect();
        // A borrowed address that the node knows to be its own, or one that only its record tells of.
        if owner != 0 && n.is_multiple_of(2) {
            intent.pod_cidrs.extend(addresses.iter().map(|a| Cidr::host(*a)));
        }
        let link = OwnedName::for_container(&key.container_id, &key.ifname);
        let pod = Some(ObjectName::new("default", &format!("pod{n}")));
        intent.attachments.insert(key, Attachment { pod, link, addresses, host_ports: Vec::new() });
    }
    if masquerade {
        intent.masqueraded = intent.pod_cidrs.iter().copied().collect();
    }
    intent.services = build_services(&intent, services);
    intent
}

fn build_services(intent: &NodeIntent, services: &[RawService]) -> BTreeMap<ServiceKey, Arc<ServicePort>> {
    let mut out = BTreeMap::new();
    let mut node_ports = BTreeSet::new();
    for (n, raw) in (1u8..).zip(services) {
        // A Service has families the cluster has.
        let wanted = families(raw.families);
        let mut fams: FamilySet = intent.families.iter().filter(|f| wanted.has(*f)).collect();
        if fams.iter().count() == 0 {
            fams = intent.families;
        }
        let mut seen = BTreeSet::new();
        for p in &raw.ports {
            if !seen.insert((p.proto, p.port)) {
                continue;
            }
            let node_port = (p.node_port)
                .then(|| 30000 + u16::from(n) * 10 + u16::try_from(seen.len()).unwrap_or(0))
                .filter(|np| node_ports.insert(*np));
            let mut endpoints = FlatSet::new();
            let mut local_endpoints = FlatSet::new();
            for (where_, slot, port) in &p.endpoints {
                for f in fams.iter() {
                    let addr = endpoint_addr(intent, f, *where_, *slot);
                    let e = Endpoint { addr, port: *port };
                    if !p.narrowed || slot % 2 == 0 || endpoints.iter().all(|o: &Endpoint| Family::of(o.addr) != f) {
                        endpoints.insert(e);
                    }
                    if intent.attachment_of(addr).is_some() || intent.addresses.contains(&addr) {
                        local_endpoints.insert(e);
                    }
                }
            }
            let external = |of: std::ops::Range<u8>| -> FlatSet<IpAddr> {
                of.flat_map(|e| fams.iter().map(move |f| external_ip(f, n * 4 + e))).collect()
            };
            let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let key = ServiceKey {
                service: ObjectName::new("default", &format!("svc{n}")),
                port: format!("p{}", p.port).into(),
                proto: p.proto,
            };
            let port = ServicePort {
                cluster_ips: fams.iter().map(|f| cluster_ip(f, n)).collect(),
                external_ips: external(0..raw.external),
                balancer_ips: external(raw.external.saturating_sub(1)..raw.balancer),
                port: p.port,
                node_port,
                families: fams,
                endpoints,
                local_endpoints,
                internal_policy: policy(p.internal_local),
                external_policy: policy(p.external_local),
                affinity: p.timeout.map_or(Affinity::None, |timeout| Affinity::ClientIp { timeout }),
                source_ranges: source_ranges(fams, raw.ranges),
                ..ServicePort::default()
            };
            out.insert(key, Arc::new(port));
        }
    }
    out
}

fn source_ranges(fams: FamilySet, kind: u8) -> FlatSet<Cidr> {
    let of = |addr: fn(Family, u8) -> IpAddr, host: u8| -> FlatSet<Cidr> {
        fams.iter().map(|f| at(addr(f, 0), f.bits() - host)).collect()
    };
    match kind {
        // Half of the world, or all of it and the nodes.
        1 => of(world, 2),
        2 => of(world, 8).into_iter().chain(of(node_addr, 8)).collect(),
        // Of one family, which says nothing of the other.
        3 => of(world, 2).into_iter().take(1).collect(),
        _ => FlatSet::new(),
    }
}

/// A pod of this node, of a peer, a host-network pod here or there, or a machine outside the cluster.
fn endpoint_addr(intent: &NodeIntent, f: Family, place: u8, slot: u8) -> IpAddr {
    let local: Vec<IpAddr> =
        intent.attachments.values().flat_map(|a| a.addresses.iter().copied()).filter(|a| Family::of(*a) == f).collect();
    match place {
        0..=3 if !local.is_empty() => local[usize::from(slot) % local.len()],
        6 => node_addr(f, slot % 3),
        7 => world(f, 100 + slot),
        _ => pod_addr(f, 1 + slot % 3, 10 + slot),
    }
}

/// Addresses of one family at which something may happen in this intent.
#[must_use]
pub fn places(intent: &NodeIntent, f: Family) -> Vec<IpAddr> {
    let mut out: BTreeSet<IpAddr> = BTreeSet::new();
    out.extend(intent.addresses.iter());
    out.extend(intent.tunnels().flat_map(|v| v.addresses.iter()));
    out.extend(intent.attachments.values().flat_map(|a| a.addresses.iter()));
    for c in intent.pod_cidrs.iter().chain(intent.peers.values().flat_map(|p| p.routes.iter().map(|r| &r.cidr))) {
        out.extend([Some(c.addr()), c.nth(77), Some(c.last())].into_iter().flatten());
    }
    out.extend(intent.peers.values().flat_map(|p| p.addresses.iter()));
    for s in intent.services.values() {
        out.extend(s.cluster_ips.iter().copied().chain(s.outside_ips()).chain(s.endpoints.iter().map(|e| e.addr)));
    }
    for c in &intent.cluster_cidrs {
        out.insert(c.last());
    }
    out.extend([cluster_ip(f, 250), external_ip(f, 250), world(f, 1), world(f, 200)]);
    out.into_iter().filter(|a| Family::of(*a) == f).collect()
}

/// A packet that may enter this node: from the node, one of its pods or outside, to anywhere in [`places`], at a port
/// that some Service, NodePort or endpoint uses, or none, or an echo request.
pub fn packet(intent: &NodeIntent) -> impl Strategy<Value = Packet> + use<> {
    let intent = intent.clone();
    (any::<[Index; 6]>(), 0u8..4, any::<bool>(), 1024u16..).prop_map(move |(ix, origin, aimed, sport)| {
        let [fam, who, to, proto, port, svc] = ix;
        let fams: Vec<Family> = intent.families.iter().collect();
        let f = *fam.get(&fams);
        let pods: Vec<(&AttachmentKey, IpAddr)> = intent
            .attachments
            .iter()
            .flat_map(|(k, a)| a.addresses.iter().map(move |x| (k, *x)))
            .filter(|(_, a)| Family::of(*a) == f)
            .collect();
        let (origin, src) = match origin {
            0 => {
                // Also from a load balancer's address that the node has itself.
                let balancers = intent.services.values().flat_map(|s| s.balancer_ips.iter());
                let own = intent.addresses.iter().chain(balancers).copied();
                let own: Vec<IpAddr> = own.filter(|a| Family::of(*a) == f).collect();
                (Origin::Host, *who.get(&own))
            }
            1 | 2 if !pods.is_empty() => {
                let (key, addr) = who.get(&pods);
                (Origin::Pod((*key).clone()), *addr)
            }
            _ => {
                // The last may be a pod of this node's range that is elsewhere.
                let far = [
                    world(f, 1),
                    world(f, 200),
                    node_addr(f, 1),
                    node_addr(f, 2),
                    pod_addr(f, 1, 10),
                    pod_addr(f, 0, 151),
                ];
                (Origin::Outside, *who.get(&far))
            }
        };
        let dst = *to.get(&places(&intent, f));
        let mut ports: Vec<u16> = vec![80, 9999];
        for s in intent.services.values() {
            ports.extend([s.port].into_iter().chain(s.node_port).chain(s.endpoints.iter().map(|e| e.port)));
        }
        ports.sort_unstable();
        ports.dedup();
        let proto = proto.index(4);
        let l4 = match Proto::ALL.get(proto) {
            Some(proto) => L4::Ports { proto: *proto, src: sport, dst: *port.get(&ports) },
            None => L4::Echo,
        };
        // Half of the packets go to what some Service promises: blind choice seldom hits address and port at once.
        let promised: Vec<(IpAddr, Proto, u16)> = intent
            .services
            .iter()
            .flat_map(|(k, s)| {
                let addresses = &intent.addresses;
                let vips = s.cluster_ips.iter().copied().chain(s.outside_ips()).map(|a| (a, k.proto, s.port));
                let nodes = s.node_port.into_iter().flat_map(move |p| addresses.iter().map(move |a| (*a, k.proto, p)));
                vips.chain(nodes)
            })
            .filter(|(a, ..)| Family::of(*a) == f)
            .collect();
        if aimed && !promised.is_empty() {
            let (dst, proto, port) = *svc.get(&promised);
            return Packet { origin, src, dst, l4: L4::Ports { proto, src: sport, dst: port } };
        }
        Packet { origin, src, dst, l4 }
    })
}

/// An intent and packets for it.
pub fn intent_and_packets(packets: usize) -> impl Strategy<Value = (NodeIntent, Vec<Packet>)> {
    node_intent().prop_flat_map(move |i| {
        let p = prop::collection::vec(packet(&i), 1..=packets.max(1));
        (Just(i), p)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Path, Verdict, verdict};
    use proptest::strategy::ValueTree;

    proptest! {
        /// The generated intents keep the model's own promises.
        #[test]
        fn intents_are_well_formed(i in node_intent()) {
            let mut seen = BTreeSet::new();
            for a in i.attachments.values() {
                prop_assert!(!a.addresses.is_empty());
                for f in Family::BOTH {
                    prop_assert!(a.addresses.iter().filter(|x| Family::of(**x) == f).count() <= 1);
                }
                for x in &a.addresses {
                    prop_assert!(seen.insert(*x) && i.families.has(Family::of(*x)));
                }
            }
            for s in i.services.values() {
                let of = |f| s.endpoints.iter().any(|e: &Endpoint| Family::of(e.addr) == f);
                prop_assert!(s.local_endpoints.iter().all(|e| of(Family::of(e.addr))), "a local one without any");
                prop_assert!(s.families.iter().count() > 0);
            }
        }
    }

    /// Every kind of place is met: a generator that misses one proves nothing there.
    #[test]
    fn packets_meet_every_kind_of_verdict() {
        let mut met = BTreeSet::new();
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let strategy = intent_and_packets(40);
        for _ in 0..300 {
            let (i, packets) = strategy.new_tree(&mut runner).unwrap().current();
            for p in packets {
                match verdict(&i, &p) {
                    Verdict::Reject(r) => met.extend([format!("{r:?}")]),
                    Verdict::Drop(d) => met.extend([format!("{d:?}")]),
                    Verdict::Forward(legs) => met.extend(legs.iter().map(|leg| {
                        let path = match leg.path.as_ref().unwrap() {
                            Path::Peer { tunnel, .. } => format!("Peer tunnel {tunnel}"),
                            Path::Pod(_) => "Pod".into(),
                            other => format!("{other:?}"),
                        };
                        format!("{path} {:?} {:?}", leg.snat, leg.choice)
                    })),
                }
            }
        }
        for want in [
            "NoEndpoints",
            "UnusedPort",
            "SourceRange",
            "NoLocalEndpoints",
            "NoService",
            "Pod Keep Some(Any)",
            "Pod Keep Some(Local)",
            "Pod Masquerade(PolicyCluster) Some(Any)",
            "Pod Masquerade(InsideToOutside) Some(Any)",
            "Pod Masquerade(NoPod) Some(Any)",
            "Pod Masquerade(NoPod) Some(Local)",
            "Pod Masquerade(Hairpin) Some(Any)",
            "Pod Keep None",
            "Host Keep None",
            "Host Masquerade(NoPod) Some(Any)",
            "Nowhere Keep None",
            "Outside Keep None",
            "Outside Masquerade(LeavesCluster) None",
            "Outside Masquerade(LeavesCluster) Some(Any)",
            "Peer tunnel true Keep None",
            "Peer tunnel false Keep None",
            "Peer tunnel true Keep Some(Any)",
            "Peer tunnel true Masquerade(PolicyCluster) Some(Any)",
            "Peer tunnel true Masquerade(InsideToOutside) Some(Any)",
        ] {
            assert!(met.contains(want), "{want} not met; met: {met:#?}");
        }
    }
}
