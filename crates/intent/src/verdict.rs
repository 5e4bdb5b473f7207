//! The specification: what must happen to the first packet of a flow on one node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::{Cidr, Family, FlatSet, PortKey};

use crate::model::{
    AttachmentKey, Endpoint, NodeIntent, PolicyPeer, PolicyRule, Reach, ServiceKey, ServicePort, TrafficPolicy,
};
use crate::packet::{Choice, Drop, Leg, Masquerade, Origin, Packet, Path, Reject, Snat, Verdict};

/// What must happen to `packet` on the node of `intent`.
///
/// The order is the order in which a packet meets the rules: the policy of the pod it leaves (on its original
/// destination's translation, as the API speaks of pods and not of virtual addresses), service translation, routing,
/// the policy of the pod it enters, masquerade.
#[must_use]
pub fn verdict(intent: &NodeIntent, packet: &Packet) -> Verdict {
    let legs = match translate(intent, packet) {
        Verdict::Forward(legs) => legs,
        other => return other,
    };
    let mut out = BTreeSet::new();
    for leg in legs {
        let dst = leg.translated.map_or(packet.dst, |e| e.addr);
        let port = match (leg.translated, packet.port()) {
            (Some(e), Some(p)) => Some(PortKey { proto: p.proto, port: e.port }),
            (_, p) => p,
        };
        let path = path(intent, dst);
        if allowed(intent, packet, &path, dst, port) {
            out.insert(Leg { path: Some(path), ..leg });
        }
    }
    // A choice that policy forbids is not avoided by choosing again: but whether any is allowed decides here, since a
    // verdict lists what may happen, and a drop is listed only when it is all that may.
    if out.is_empty() { Verdict::Drop(Drop::Policy) } else { Verdict::Forward(out) }
}

/// By which of its addresses a Service port is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// Its address inside the cluster.
    Cluster,
    /// A load balancer's address.
    Balancer,
    /// One of `spec.externalIPs`.
    External,
    /// Its port on the node's addresses.
    NodePort,
}

/// The Service port that a packet is addressed to, and by which of its addresses.
#[must_use]
pub fn front<'a>(intent: &'a NodeIntent, packet: &Packet) -> Option<(&'a ServiceKey, &'a ServicePort, Front)> {
    let port = packet.port()?;
    let family = Family::of(packet.dst);
    let of_proto = || intent.services.iter().filter(|(k, _)| k.proto == port.proto).map(|(k, s)| (k, &**s));
    // An address and port that a Service names itself comes before a node port of another: `externalIPs` may hold a
    // node's address. Of two Services that promise the same, the first by name has it.
    let named = of_proto().filter(|(_, s)| s.port == port.port).find_map(|(key, svc)| {
        let front = if svc.cluster_ips.contains(&packet.dst) {
            Front::Cluster
        } else if svc.balancer_ips.contains(&packet.dst) {
            Front::Balancer
        } else if svc.external_ips.contains(&packet.dst) {
            Front::External
        } else {
            return None;
        };
        Some((key, svc, front))
    });
    let by_port = || {
        let mut serving = of_proto().filter(|(_, s)| s.node_port == Some(port.port) && s.families.has(family));
        serving.next().map(|(key, svc)| (key, svc, Front::NodePort))
    };
    named.or_else(|| if intent.node_port_addresses.contains(&packet.dst) { by_port() } else { None })
}

/// The part of [`verdict`] that services and masquerade decide; the legs have no path.
#[must_use]
pub fn translate(intent: &NodeIntent, packet: &Packet) -> Verdict {
    match front(intent, packet) {
        None => untranslated(intent, packet),
        Some((_, svc, Front::Cluster)) => choose(intent, packet, svc, svc.internal_policy, false),
        Some((_, svc, Front::Balancer)) if !svc.admits(packet.src) => Verdict::Drop(Drop::SourceRange),
        Some((_, svc, Front::Balancer | Front::External | Front::NodePort)) => {
            choose(intent, packet, svc, svc.external_policy, true)
        }
    }
}

/// What becomes of a packet that no Service translates: it goes on, unless it is to an address of Services alone.
fn untranslated(intent: &NodeIntent, packet: &Packet) -> Verdict {
    let dst = packet.dst;
    if is_cluster_ip(intent, dst) {
        return Verdict::Reject(Reject::UnusedPort);
    }
    // Machines and pods serve what they please, also where a Service has their address. (And an address that this
    // machine has on some interface though its Node does not say so is left to its processes: the API cannot know.)
    if intent.is_node_address(dst) || intent.node_port_addresses.contains(&dst) || in_any(&intent.cluster_cidrs, dst) {
        return plain(intent, packet);
    }
    let outside_ip = || intent.services.values().any(|s| s.outside_ips().any(|a| a == dst));
    // What comes from outside was led here: nobody else serves that address. From inside it may be on its way to
    // another who does, at a balancer that this cluster shares with others.
    let led_here = packet.origin != Origin::Host && !in_any(&intent.cluster_cidrs, packet.src);
    let own = intent.balancer_ranges.iter().any(|r| r.contains(dst));
    if (led_here || own) && outside_ip() {
        return Verdict::Reject(Reject::UnusedPort);
    }
    if in_any(&intent.service_cidrs, dst) {
        return Verdict::Drop(Drop::NoService);
    }
    plain(intent, packet)
}

fn is_cluster_ip(intent: &NodeIntent, addr: IpAddr) -> bool {
    intent.services.values().any(|s| s.cluster_ips.contains(&addr))
}

fn in_any(cidrs: &BTreeSet<Cidr>, addr: IpAddr) -> bool {
    cidrs.iter().any(|c| c.contains(addr))
}

/// The legs of a packet that no Service translates.
fn plain(intent: &NodeIntent, packet: &Packet) -> Verdict {
    let snat = if leaves_cluster(intent, packet.src, packet.dst) {
        Snat::Masquerade(Masquerade::LeavesCluster)
    } else {
        Snat::Keep
    };
    Verdict::one(Leg { translated: None, choice: None, snat, path: None })
}

/// The legs of a Service port. `external` is traffic to a node port or an external address.
fn choose(intent: &NodeIntent, packet: &Packet, svc: &ServicePort, policy: TrafficPolicy, external: bool) -> Verdict {
    let at_node = external && !svc.outside_ips().any(|a| a == packet.dst);
    let family = Family::of(packet.dst);
    let of_family = |set: &FlatSet<Endpoint>| -> BTreeSet<Endpoint> {
        set.iter().copied().filter(|e| Family::of(e.addr) == family).collect()
    };
    let all = of_family(&svc.endpoints);
    // Traffic of pods and of this node's processes to an external address is cluster traffic: kube-proxy short-circuits
    // it, so that a pod reaches every endpoint however far the node is from one. It is done on the pod's own node; who
    // comes from another one to a node port here asks for this node, and gets what is here.
    let from_cluster = packet.origin == Origin::Host
        || if at_node { intent.is_own_pod(packet.src) } else { in_any(&intent.cluster_cidrs, packet.src) };
    let local = policy == TrafficPolicy::Local && !(external && from_cluster);
    let usable = if local { of_family(&svc.local_endpoints) } else { all.clone() };
    // Session affinity narrows the choice by what happened before, which is no matter of intent.
    let choice = if local && usable != all { Choice::Local } else { Choice::Any };
    if usable.is_empty() {
        return if local && !all.is_empty() {
            Verdict::Drop(Drop::NoLocalEndpoints)
        } else {
            Verdict::Reject(Reject::NoEndpoints)
        };
    }
    let legs = usable.into_iter().map(|e| {
        let why = masquerade(intent, packet, e, policy, external).filter(|_| !stays(intent, packet, e.addr));
        let snat = why.map_or(Snat::Keep, Snat::Masquerade);
        Leg { translated: Some(e), choice: Some(choice), snat, path: None }
    });
    Verdict::Forward(legs.collect())
}

/// Why a packet to this endpoint of a Service must take the node's address, if it must.
fn masquerade(
    intent: &NodeIntent,
    packet: &Packet,
    to: Endpoint,
    policy: TrafficPolicy,
    external: bool,
) -> Option<Masquerade> {
    let from_pod = in_any(&intent.cluster_cidrs, packet.src);
    let host = packet.origin == Origin::Host;
    if leaves_cluster(intent, packet.src, to.addr) {
        Some(Masquerade::LeavesCluster)
    } else if external && policy == TrafficPolicy::Cluster {
        Some(Masquerade::PolicyCluster)
    } else if external && (host || from_pod && !intent.is_own_pod(packet.src)) {
        // A pod of this node is answered through this node whatever address it has.
        Some(Masquerade::InsideToOutside)
    } else if !external && !from_pod {
        Some(Masquerade::NoPod)
    } else if to.addr == packet.src {
        Some(Masquerade::Hairpin)
    } else {
        None
    }
}

/// Whether the packet ends at this node without leaving any interface: then there is no source to replace, the node
/// itself answers and the answer passes the translation on its way back.
fn stays(intent: &NodeIntent, packet: &Packet, dst: IpAddr) -> bool {
    packet.origin != Origin::Host && intent.addresses.contains(&dst)
}

/// Whether a packet from a pod of this node to `dst` must take the node's address.
fn leaves_cluster(intent: &NodeIntent, src: IpAddr, dst: IpAddr) -> bool {
    in_any(&intent.masqueraded, src)
        && !in_any(&intent.cluster_cidrs, dst)
        && !intent.is_node_address(dst)
        && !dst.is_multicast()
}

/// Where an address is routed on this node: the part of [`verdict`] that the fabric decides.
#[must_use]
pub fn path(intent: &NodeIntent, dst: IpAddr) -> Path {
    if intent.addresses.contains(&dst) || intent.tunnels().any(|v| v.addresses.contains(&dst)) {
        return Path::Host;
    }
    if let Some((key, _)) = intent.attachment_of(dst) {
        return Path::Pod(key.clone());
    }
    let own = intent.pod_cidrs.iter().filter(|c| c.contains(dst)).map(Cidr::len).max();
    // The longest prefix wins, as in any routing table: a peer may have borrowed an address out of this node's range.
    let route = intent
        .peers
        .iter()
        .flat_map(|(node, p)| p.routes.iter().map(move |r| (node, r)))
        .filter(|(_, r)| r.cidr.contains(dst) && own.is_none_or(|len| r.cidr.len() > len))
        .max_by_key(|(_, r)| r.cidr.len());
    match route {
        Some((node, r)) => match r.reach {
            Reach::Direct { .. } => Path::Peer { node: node.clone(), tunnel: false },
            Reach::Vxlan { .. } => Path::Peer { node: node.clone(), tunnel: true },
            Reach::None { .. } => Path::Nowhere,
        },
        None if own.is_some() => Path::Nowhere,
        None => Path::Outside,
    }
}

/// Whether policies let the packet leave its pod and enter the other.
fn allowed(intent: &NodeIntent, packet: &Packet, path: &Path, dst: IpAddr, port: Option<PortKey>) -> bool {
    // Traffic between a pod and its own node stays allowed (probes must work).
    let leaves = match &packet.origin {
        Origin::Pod(key) => *path == Path::Host || passes(intent, key, false, dst, port),
        Origin::Host | Origin::Outside => true,
    };
    let enters = match path {
        Path::Pod(key) => packet.origin == Origin::Host || passes(intent, key, true, packet.src, port),
        _ => true,
    };
    leaves && enters
}

fn passes(intent: &NodeIntent, pod: &AttachmentKey, ingress: bool, other: IpAddr, port: Option<PortKey>) -> bool {
    let mut isolated = false;
    for p in intent.policies.values().filter(|p| p.selects.contains(pod)) {
        let Some(rules) = (if ingress { &p.ingress } else { &p.egress }) else { continue };
        isolated = true;
        if rules.iter().any(|r| rule_allows(r, other, port)) {
            return true;
        }
    }
    !isolated
}

fn rule_allows(rule: &PolicyRule, other: IpAddr, port: Option<PortKey>) -> bool {
    let peer = rule.peers.as_ref().is_none_or(|peers| {
        peers.iter().any(|p| match p {
            PolicyPeer::Addresses(set) => set.contains(&other),
            PolicyPeer::Block { cidr, except } => cidr.contains(other) && !in_any(except, other),
        })
    });
    let port = rule.ports.as_ref().is_none_or(|ports| {
        port.is_some_and(|k| {
            ports.iter().any(|p| p.proto == k.proto && p.range.is_none_or(|(lo, hi)| (lo..=hi).contains(&k.port)))
        })
    });
    peer && port
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use types::{FamilySet, ObjectName, Proto};

    use super::*;
    use crate::{L4, ServiceKey};

    const LEAVES: Snat = Snat::Masquerade(Masquerade::LeavesCluster);
    const CLUSTER: Snat = Snat::Masquerade(Masquerade::PolicyCluster);
    const INSIDE: Snat = Snat::Masquerade(Masquerade::InsideToOutside);
    const NO_POD: Snat = Snat::Masquerade(Masquerade::NoPod);
    const HAIRPIN: Snat = Snat::Masquerade(Masquerade::Hairpin);

    const POD: &str = "10.244.0.2";
    const OTHER: &str = "10.244.0.3";
    const FAR: &str = "10.244.1.4";
    const NODE: &str = "192.168.7.10";
    const WORLD: &str = "203.0.113.1";
    const VIP: &str = "10.96.0.1";
    const LB: &str = "198.51.100.1";

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn to(s: &str) -> Endpoint {
        Endpoint { addr: ip(s), port: 8080 }
    }

    fn service(endpoints: &[&str]) -> ServicePort {
        ServicePort {
            cluster_ips: [ip(VIP)].into(),
            balancer_ips: [ip(LB)].into(),
            port: 80,
            node_port: Some(30080),
            families: FamilySet { v4: true, v6: false },
            endpoints: endpoints.iter().map(|e| to(e)).collect(),
            ..ServicePort::default()
        }
    }

    fn intent_with(services: Vec<(&str, ServicePort)>) -> NodeIntent {
        let mut i = NodeIntent::empty("node0".parse().unwrap());
        i.families = FamilySet { v4: true, v6: false };
        i.masqueraded.insert("10.244.0.0/24".parse().unwrap());
        i.addresses.insert(ip(NODE));
        i.node_port_addresses.insert(ip(NODE));
        i.pod_cidrs.push("10.244.0.0/24".parse().unwrap());
        i.cluster_cidrs.insert("10.244.0.0/16".parse().unwrap());
        for (name, svc) in services {
            let service = ObjectName::new("default", name);
            i.services.insert(ServiceKey { service, port: "".into(), proto: Proto::Tcp }, svc.into());
        }
        i
    }

    fn from(origin: Origin, src: &str, dst: &str, port: u16) -> Packet {
        Packet { origin, src: ip(src), dst: ip(dst), l4: L4::Ports { proto: Proto::Tcp, src: 4711, dst: port } }
    }

    /// From a pod of this node, or from outside when the address is none of its.
    fn packet(src: &str, dst: &str, port: u16) -> Packet {
        let key = || AttachmentKey { container_id: src.into(), ifname: "eth0".into() };
        let origin = match src {
            POD | OTHER => Origin::Pod(key()),
            NODE => Origin::Host,
            _ => Origin::Outside,
        };
        from(origin, src, dst, port)
    }

    fn leg(endpoint: Option<&str>, snat: Snat) -> Leg {
        Leg { translated: endpoint.map(to), choice: endpoint.map(|_| Choice::Any), snat, path: None }
    }

    #[test]
    fn masquerade_only_when_needed() {
        let i = intent_with(vec![("web", service(&[OTHER]))]);
        for (src, dst, port, translated, snat) in [
            (POD, VIP, 80, Some(OTHER), Snat::Keep),
            (OTHER, VIP, 80, Some(OTHER), HAIRPIN),
            (FAR, VIP, 80, Some(OTHER), Snat::Keep),
            (NODE, VIP, 80, Some(OTHER), NO_POD),
            (WORLD, VIP, 80, Some(OTHER), NO_POD),
            (WORLD, LB, 80, Some(OTHER), CLUSTER),
            (WORLD, NODE, 30080, Some(OTHER), CLUSTER),
            (POD, NODE, 30080, Some(OTHER), CLUSTER),
            (POD, FAR, 80, None, Snat::Keep),
            (POD, NODE, 22, None, Snat::Keep),
            (POD, WORLD, 443, None, LEAVES),
            (POD, "224.0.0.5", 443, None, Snat::Keep),
            (NODE, WORLD, 443, None, Snat::Keep),
            (WORLD, OTHER, 8080, None, Snat::Keep),
        ] {
            assert_eq!(
                translate(&i, &packet(src, dst, port)),
                Verdict::one(leg(translated, snat)),
                "{src} to {dst}:{port}"
            );
        }
    }

    #[test]
    fn an_endpoint_outside_the_cluster_sees_the_node() {
        let i = intent_with(vec![("db", service(&[WORLD]))]);
        assert_eq!(translate(&i, &packet(POD, VIP, 80)), Verdict::one(leg(Some(WORLD), LEAVES)));
    }

    #[test]
    fn what_ends_at_the_node_is_not_masqueraded() {
        let i = intent_with(vec![("api", service(&[NODE]))]);
        for (src, dst, port) in [(POD, VIP, 80), (WORLD, VIP, 80), (WORLD, NODE, 30080), (WORLD, LB, 80)] {
            let got = translate(&i, &packet(src, dst, port));
            assert_eq!(got, Verdict::one(leg(Some(NODE), Snat::Keep)), "{src} to {dst}:{port}");
        }
        // The node to itself passes postrouting, on loopback.
        assert_eq!(translate(&i, &packet(NODE, VIP, 80)), Verdict::one(leg(Some(NODE), NO_POD)));
    }

    #[test]
    fn refusals() {
        let i = intent_with(vec![("empty", service(&[]))]);
        let ping = |dst| Packet { l4: L4::Echo, ..packet(POD, dst, 0) };
        assert_eq!(translate(&i, &packet(POD, VIP, 80)), Verdict::Reject(Reject::NoEndpoints));
        assert_eq!(translate(&i, &packet(POD, NODE, 30080)), Verdict::Reject(Reject::NoEndpoints));
        assert_eq!(translate(&i, &packet(POD, VIP, 81)), Verdict::Reject(Reject::UnusedPort));
        assert_eq!(translate(&i, &ping(VIP)), Verdict::Reject(Reject::UnusedPort));
        // An external address is no cluster address: its other ports belong to whoever has it.
        assert_eq!(translate(&i, &ping(LB)), Verdict::one(leg(None, LEAVES)));
    }

    #[test]
    fn policy_local_keeps_the_client_and_never_leaves_the_node() {
        let mut svc = service(&[OTHER, FAR]);
        svc.external_policy = TrafficPolicy::Local;
        svc.local_endpoints = [to(OTHER)].into();
        let i = intent_with(vec![("web", svc.clone())]);
        let both = |snat| Verdict::Forward([leg(Some(OTHER), snat), leg(Some(FAR), snat)].into());
        for (dst, port) in [(LB, 80), (NODE, 30080)] {
            let got = translate(&i, &packet(WORLD, dst, port));
            assert_eq!(got, Verdict::one(Leg { choice: Some(Choice::Local), ..leg(Some(OTHER), Snat::Keep) }));
            // From inside the cluster every endpoint is good. The answer comes back this way to this node's pods; for
            // others it must be made to.
            assert_eq!(translate(&i, &packet(POD, dst, port)), both(Snat::Keep));
            assert_eq!(translate(&i, &packet(NODE, dst, port)), both(INSIDE));
        }
        assert_eq!(translate(&i, &packet("10.244.9.9", LB, 80)), both(INSIDE));
        // Another node's pod asks for this node by its port: the endpoints of this node are what it asked for.
        let here = Leg { choice: Some(Choice::Local), ..leg(Some(OTHER), INSIDE) };
        assert_eq!(translate(&i, &packet("10.244.9.9", NODE, 30080)), Verdict::one(here));
        svc.local_endpoints.clear();
        svc.internal_policy = TrafficPolicy::Local;
        let i = intent_with(vec![("web", svc)]);
        assert_eq!(translate(&i, &packet(WORLD, NODE, 30080)), Verdict::Drop(Drop::NoLocalEndpoints));
        assert_eq!(translate(&i, &packet(POD, VIP, 80)), Verdict::Drop(Drop::NoLocalEndpoints));
    }

    #[test]
    fn source_ranges_guard_the_load_balancers_address_only() {
        const EXTERNAL: &str = "198.51.100.2";
        let mut svc = service(&[OTHER]);
        svc.external_ips = [ip(EXTERNAL)].into();
        svc.source_ranges = ["203.0.113.0/31".parse().unwrap()].into();
        let i = intent_with(vec![("web", svc.clone())]);
        assert!(matches!(translate(&i, &packet(WORLD, LB, 80)), Verdict::Forward(_)));
        assert_eq!(translate(&i, &packet("203.0.113.2", LB, 80)), Verdict::Drop(Drop::SourceRange));
        for (dst, port) in [(NODE, 30080), (EXTERNAL, 80), (VIP, 80)] {
            assert!(matches!(translate(&i, &packet("203.0.113.2", dst, port)), Verdict::Forward(_)), "{dst}");
        }
        // Ranges of the other family say nothing.
        svc.source_ranges = ["2001:db8::/32".parse().unwrap()].into();
        assert!(matches!(translate(&intent_with(vec![("web", svc)]), &packet(WORLD, LB, 80)), Verdict::Forward(_)));
    }

    /// What affinity remembers is one of those that may come to be remembered.
    #[test]
    fn a_remembered_endpoint_is_within_the_choice() {
        let i = intent_with(vec![("web", service(&[OTHER, FAR]))]);
        let all = translate(&i, &packet(POD, VIP, 80));
        let remembered = |e| Verdict::one(Leg { choice: Some(Choice::Remembered), ..leg(Some(e), Snat::Keep) });
        assert!(all.is_within(&all) && remembered(OTHER).is_within(&all) && remembered(FAR).is_within(&all));
        assert!(!remembered(POD).is_within(&all));
        assert!(!Verdict::one(leg(Some(OTHER), Snat::Keep)).is_within(&all), "a choice is from all");
        assert!(!Verdict::Drop(Drop::Policy).is_within(&all));
    }

    /// Of this node's range an address that a peer borrowed is the peer's.
    #[test]
    fn own_pods_are_those_of_the_longest_range() {
        let mut i = intent_with(vec![]);
        let borrowed = crate::PeerRoute {
            cidr: "10.244.0.7/32".parse().unwrap(),
            reach: Reach::Direct { next_hop: ip("192.168.7.11") },
        };
        let peer = crate::Peer { addresses: BTreeSet::new(), routes: vec![borrowed] };
        i.peers.insert("node1".parse().unwrap(), peer);
        assert!(i.is_own_pod(ip(POD)) && !i.is_own_pod(ip("10.244.0.7")) && !i.is_own_pod(ip(FAR)));
        i.pod_cidrs.push("10.244.0.7/32".parse().unwrap());
        assert!(i.is_own_pod(ip("10.244.0.7")));
    }

    /// `externalIPs` may hold a node's address; what names address and port comes before another's node port, whatever
    /// the order of names.
    #[test]
    fn an_external_address_comes_before_a_node_port() {
        let mut by_port = service(&[OTHER]);
        by_port.cluster_ips = [ip("10.96.0.2")].into();
        by_port.external_ips.clear();
        let mut by_address = service(&[FAR]);
        by_address.external_ips = [ip(NODE)].into();
        by_address.port = 30080;
        by_address.node_port = None;
        let i = intent_with(vec![("a", by_port), ("b", by_address)]);
        assert_eq!(translate(&i, &packet(WORLD, NODE, 30080)), Verdict::one(leg(Some(FAR), CLUSTER)));
    }
}
