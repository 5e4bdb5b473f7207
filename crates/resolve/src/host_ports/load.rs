//! What the pods of a node take of its ports: for who places pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::{PortKey, Proto};

use super::{PortRange, asks, told};
use crate::snapshot::{ClusterSnapshot, Pod};

/// A port of the node, on one address or on all.
type Place = (PortKey, Option<IpAddr>);

/// What the pods of a node take of its ports.
#[derive(Debug, Clone, Default)]
pub struct Load {
    /// Numbers in their specs.
    declared: Vec<Place>,
    /// Numbers that were chosen for them.
    told: Vec<Place>,
    /// How many they ask for, chosen yet or not.
    asked: BTreeMap<Proto, u32>,
}

/// The ports of the node that a pod's spec names. The containers of a pod with `spec.hostNetwork` listen there themselves.
pub(super) fn declared(pod: &Pod) -> impl Iterator<Item = Place> {
    let own = |p: &crate::ContainerPort| if pod.host_network { Some(p.port.port) } else { None };
    pod.ports.iter().filter_map(move |p| {
        let port = p.host_port.or_else(|| own(p))?;
        Some((PortKey { proto: p.port.proto, port }, p.host_ip.filter(|a| !a.is_unspecified())))
    })
}

/// The node ports of all Services.
pub(super) fn node_ports(snapshot: &ClusterSnapshot) -> BTreeSet<PortKey> {
    let all = snapshot.services.values().flat_map(|s| s.ports.iter());
    all.filter_map(|p| Some(PortKey { proto: p.port.proto, port: p.node_port? })).collect()
}

fn meets(a: &Place, b: &Place) -> bool {
    a.0 == b.0 && (a.1.is_none() || b.1.is_none() || a.1 == b.1)
}

fn asked(pod: &Pod) -> BTreeMap<Proto, u32> {
    let mut out = BTreeMap::new();
    // What cannot be read gets none.
    for a in asks(pod).unwrap_or_default() {
        *out.entry(a.to.proto).or_default() += 1;
    }
    out
}

impl Load {
    /// Counts a pod of the node that has not ended.
    pub fn add(&mut self, pod: &Pod) {
        self.declared.extend(declared(pod));
        self.told.extend(told(pod).iter().map(|p| (p.host, p.host_ip)));
        for (proto, n) in asked(pod) {
            *self.asked.entry(proto).or_default() += n;
        }
    }

    /// Why another pod finds no ports on the node beside these; none when it does. `range` is the node's.
    #[must_use]
    pub fn lacks(&self, pod: &Pod, range: PortRange, snapshot: &ClusterSnapshot) -> Option<String> {
        let taken = |p: &Place| self.declared.iter().chain(&self.told).any(|t| meets(t, p));
        if let Some((port, _)) = declared(pod).find(taken) {
            return Some(format!("host port {port} is taken"));
        }
        let more = asked(pod);
        if more.is_empty() {
            return None;
        }
        let mut lost = node_ports(snapshot);
        lost.extend(self.declared.iter().copied().chain(declared(pod)).map(|p| p.0));
        more.into_iter().find_map(|(proto, n)| {
            let before = self.asked.get(&proto).copied().unwrap_or(0);
            let lost = lost.iter().filter(|p| p.proto == proto && range.contains(p.port)).count();
            let room = range.size().saturating_sub(u32::try_from(lost).unwrap_or(u32::MAX)).saturating_sub(before);
            (n > room).then(|| format!("{n} random host ports ({proto}) are asked for, {room} of {range} are free"))
        })
    }
}
