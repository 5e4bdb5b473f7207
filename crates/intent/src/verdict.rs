//! The specification: what must happen to the first packet of a flow on one node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::{Cidr, Family, PortKey};

use crate::model::{AttachmentKey, Endpoint, NodeIntent, PolicyPeer, PolicyRule, Reach, ServicePort, TrafficPolicy};
use crate::packet::{Drop, Leg, Origin, Packet, Path, Reject, Snat, Verdict};

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

/// The part of [`verdict`] that services and masquerade decide; the legs have no path.
#[must_use]
pub fn translate(intent: &NodeIntent, packet: &Packet) -> Verdict {
    let Some(port) = packet.port() else {
        return if is_cluster_ip(intent, packet.dst) {
            Verdict::Reject(Reject::UnusedPort)
        } else {
            Verdict::one(Leg { translated: None, snat: snat_plain(intent, packet), path: None })
        };
    };
    let family = Family::of(packet.dst);
    let of_proto = || intent.services.iter().filter(|(k, _)| k.proto == port.proto).map(|(_, s)| s);
    // An address and port that a Service names itself comes before a node port of another: `externalIPs` may hold a
    // node's address. Of two Services that promise the same, the first by name has it.
    for svc in of_proto().filter(|s| s.port == port.port) {
        if svc.cluster_ips.contains(&packet.dst) {
            return choose(intent, packet, svc, svc.internal_policy, false);
        }
        if svc.external_ips.contains(&packet.dst) {
            if !svc.source_ranges.is_empty() && !svc.source_ranges.iter().any(|r| r.contains(packet.src)) {
                return Verdict::Drop(Drop::SourceRange);
            }
            return choose(intent, packet, svc, svc.external_policy, true);
        }
    }
    // A cluster address serves what its Services name and nothing else, also should it be a node's.
    if is_cluster_ip(intent, packet.dst) {
        return Verdict::Reject(Reject::UnusedPort);
    }
    if intent.addresses.contains(&packet.dst) {
        let mut serving = of_proto().filter(|s| s.node_port == Some(port.port) && s.families.has(family));
        if let Some(svc) = serving.next() {
            return choose(intent, packet, svc, svc.external_policy, true);
        }
    }
    Verdict::one(Leg { translated: None, snat: snat_plain(intent, packet), path: None })
}

fn is_cluster_ip(intent: &NodeIntent, addr: IpAddr) -> bool {
    intent.services.values().any(|s| s.cluster_ips.contains(&addr))
}

fn in_any(cidrs: &BTreeSet<Cidr>, addr: IpAddr) -> bool {
    cidrs.iter().any(|c| c.contains(addr))
}

/// The legs of a Service port. `external` is traffic to a NodePort or an external address.
fn choose(intent: &NodeIntent, packet: &Packet, svc: &ServicePort, policy: TrafficPolicy, external: bool) -> Verdict {
    let family = Family::of(packet.dst);
    let of_family = |set: &BTreeSet<Endpoint>| -> BTreeSet<Endpoint> {
        set.iter().copied().filter(|e| Family::of(e.addr) == family).collect()
    };
    let all = of_family(&svc.endpoints);
    // Traffic of this node's pods and processes to an external address is cluster traffic: kube-proxy short-circuits
    // it, so that a pod reaches every endpoint however far the node is from one.
    let from_cluster = in_any(&intent.cluster_cidrs, packet.src) || packet.origin == Origin::Host;
    let local = policy == TrafficPolicy::Local && !(external && from_cluster);
    let usable = if local { of_family(&svc.local_endpoints) } else { all.clone() };
    if usable.is_empty() {
        return if local && !all.is_empty() {
            Verdict::Drop(Drop::NoLocalEndpoints)
        } else {
            Verdict::Reject(Reject::NoEndpoints)
        };
    }
    let legs = usable.into_iter().map(|e| {
        let hairpin = e.addr == packet.src;
        let masquerade = hairpin
            || if external {
                policy == TrafficPolicy::Cluster || from_cluster
            } else {
                !in_any(&intent.cluster_cidrs, packet.src)
            }
            || leaves_cluster(intent, packet.src, e.addr);
        let masquerade = masquerade && !stays(intent, packet, e.addr);
        let snat = if masquerade { Snat::Masquerade } else { Snat::Keep };
        Leg { translated: Some(e), snat, path: None }
    });
    Verdict::Forward(legs.collect())
}

/// Whether the packet ends at this node without leaving any interface: then there is no source to replace, the node
/// itself answers and the answer passes the translation on its way back.
fn stays(intent: &NodeIntent, packet: &Packet, dst: IpAddr) -> bool {
    packet.origin != Origin::Host && intent.addresses.contains(&dst)
}

/// Whether a packet from a pod of this node to `dst` must take the node's address.
fn leaves_cluster(intent: &NodeIntent, src: IpAddr, dst: IpAddr) -> bool {
    intent.masquerade
        && intent.pod_cidrs.iter().any(|c| c.contains(src))
        && !in_any(&intent.cluster_cidrs, dst)
        && !intent.is_node_address(dst)
        && !dst.is_multicast()
}

fn snat_plain(intent: &NodeIntent, packet: &Packet) -> Snat {
    if leaves_cluster(intent, packet.src, packet.dst) { Snat::Masquerade } else { Snat::Keep }
}

/// Where an address is routed on this node: the part of [`verdict`] that the fabric decides.
#[must_use]
pub fn path(intent: &NodeIntent, dst: IpAddr) -> Path {
    if intent.addresses.contains(&dst) || intent.vxlan.as_ref().is_some_and(|v| v.addresses.contains(&dst)) {
        return Path::Host;
    }
    if let Some((key, _)) = intent.attachment_of(dst) {
        return Path::Pod(key.clone());
    }
    if intent.pod_cidrs.iter().any(|c| c.contains(dst)) {
        return Path::Nowhere;
    }
    // The longest prefix wins, as in any routing table.
    let route = intent
        .peers
        .iter()
        .flat_map(|(node, p)| p.routes.iter().map(move |r| (node, r)))
        .filter(|(_, r)| r.cidr.contains(dst))
        .max_by_key(|(_, r)| r.cidr.len());
    match route {
        Some((node, r)) => match r.reach {
            Reach::Direct { .. } => Path::Peer { node: node.clone(), tunnel: false },
            Reach::Vxlan { .. } => Path::Peer { node: node.clone(), tunnel: true },
            Reach::None { .. } => Path::Nowhere,
        },
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
