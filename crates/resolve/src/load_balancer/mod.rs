//! Load balancers on bare metal: `LoadBalancerPool` of group [`GROUP`], what a Service of type LoadBalancer asks for, and
//! which nodes may announce its addresses to the network outside.

mod announce;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::AddressRange;

use crate::labels::Labels;
use crate::selector::Selector;
use crate::snapshot::ClusterSnapshot;

pub use crate::pools::{GROUP, VERSION};
pub use announce::{Announcement, EXCLUDE, announcements};

/// `spec.loadBalancerClass` that is ours when no other is set.
pub const CLASS: &str = "seaway.io/load-balancer";
/// On a Service, by the controller: names of the pools that its addresses came from, comma separated, in the order of
/// `status.loadBalancer.ingress`. It holds an address that its pool no longer names, until the Service lets it go.
pub const GIVEN_FROM: &str = "seaway.io/load-balancer-pools";
/// Condition of a Service: whether every address that it asks for is given.
pub const CONDITION: &str = "seaway.io/AddressesAssigned";

/// On a Service: the addresses it is to have, comma separated, one of each family at most; beside, and the names that
/// `MetalLB` and Cilium have for it.
pub const WANTED: [&str; 5] = [
    "seaway.io/load-balancer-ips",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
];
/// On a Service: names of pools that its addresses are to come from, comma separated.
pub const FROM: [&str; 3] =
    ["seaway.io/load-balancer-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
/// On a Service: it shares its address with Services of the same key.
pub const SHARING: [&str; 5] = [
    "seaway.io/sharing-key",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
    "lbipam.cilium.io/sharing-key",
    "io.cilium/lb-ipam-sharing-key",
];
/// On a Service: the other namespaces with whose Services it shares, comma separated, `*` for all.
pub const SHARING_ACROSS: [&str; 3] = [
    "seaway.io/sharing-namespaces",
    "lbipam.cilium.io/sharing-cross-namespace",
    "io.cilium/lb-ipam-sharing-cross-namespace",
];

/// Label of the leases by which announcers agree.
pub const ANNOUNCER: &str = "seaway.io/announcer";

/// How the addresses of a pool are made known to the network outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Means {
    /// One node at a time answers ARP and neighbour solicitations.
    #[default]
    L2,
    /// Somebody else does, or a route leads there.
    None,
}

/// A `LoadBalancerPool`: addresses for Services of type LoadBalancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerPool {
    /// `metadata.creationTimestamp`, see [`crate::Node::created`].
    pub created: Box<str>,
    /// `spec.addresses`, sorted, apart from each other.
    pub ranges: Box<[AddressRange]>,
    /// `spec.avoidBuggyIPs`: IPv4 addresses that end in .0 or .255 are not given unless asked for.
    pub avoid_buggy: bool,
    /// `spec.autoAssign`: Services get addresses of it without naming it.
    pub automatic: bool,
    /// `spec.disabled`, or it is being deleted: no new addresses.
    pub disabled: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `spec.serviceSelector`: Services that may have addresses.
    pub service_selector: Selector,
    /// `spec.namespaceSelector`: namespaces whose Services may.
    pub namespace_selector: Selector,
    /// `spec.announce`.
    pub means: Means,
    /// `spec.nodeSelector`: nodes that may announce.
    pub node_selector: Selector,
    /// `spec.interfaces`: where they announce; empty: on the uplink.
    pub interfaces: Box<[Box<str>]>,
    /// `status` as it is, so that it is written only when it changes.
    pub status: Value,
}

impl LoadBalancerPool {
    /// Whether it names an address.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(addr))
    }

    /// Whether a Service of this namespace and these labels may have addresses of it.
    #[must_use]
    pub fn selects(&self, snapshot: &ClusterSnapshot, namespace: &str, labels: &Labels) -> bool {
        let none = Labels::default();
        let of_namespace = snapshot.namespaces.get(namespace).map_or(&none, |n| &n.labels);
        self.service_selector.matches(labels) && self.namespace_selector.matches(of_namespace)
    }
}

/// What a Service asks of load balancers, and has. Only Services of type LoadBalancer have it, and those that were.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ask {
    /// Its labels.
    pub labels: Labels,
    /// `spec.loadBalancerClass`.
    pub class: Option<Box<str>>,
    /// Annotation of [`WANTED`], else `spec.loadBalancerIP`.
    pub wanted: Box<[IpAddr]>,
    /// The field that named them, for messages.
    pub wanted_field: Box<str>,
    /// One of them cannot be read: nothing is given, rather than another address.
    pub unreadable: bool,
    /// Annotation of [`FROM`].
    pub pools: Box<[Box<str>]>,
    /// Annotation of [`SHARING`]; empty: shares with nobody.
    pub sharing: Box<str>,
    /// Annotation of [`SHARING_ACROSS`].
    pub sharing_across: Box<[Box<str>]>,
    /// Annotation [`GIVEN_FROM`].
    pub given_from: Box<[Box<str>]>,
    /// `status.loadBalancer.ingress` has more than plain addresses: names, `ipMode: Proxy`, ports.
    pub foreign: bool,
    /// `status.conditions` as they are: a merge patch replaces all of them.
    pub conditions: Value,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

/// A `coordination.k8s.io/v1` Lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lease {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.resourceVersion`: a write holds only for what was seen.
    pub version: Box<str>,
    /// `spec.holderIdentity`; empty: nobody.
    pub holder: Box<str>,
    /// `spec.leaseDurationSeconds`.
    pub seconds: u32,
    /// `spec.leaseTransitions`.
    pub transitions: u32,
}

#[cfg(test)]
mod tests;
