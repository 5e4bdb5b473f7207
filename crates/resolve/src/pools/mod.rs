//! Address pools: the objects `IPPool`, `IPBlock` and `IPReservation` of group [`GROUP`], which pools a pod may have
//! addresses from, and what blocks mean for routes.
//!
//! A pool is cut into blocks of equal size. A block belongs to one node, which gives its addresses to pods without
//! asking anybody; the node says so by creating the block's object, whose name follows from its range, so that of two
//! nodes only one can. A node that needs an address where all blocks belong to others asks the owner of one (`requests`)
//! and is lent a single address (`lent`); only the owner adds to `lent`, only the borrower takes away.

mod choose;
mod notes;
pub(crate) mod routes;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use types::{Cidr, Family, NodeName};

use crate::selector::Selector;

pub(crate) use choose::outside_allowed;
pub use choose::{Choice, OUTSIDE, choose, default_choice, eligible, sound};
pub use notes::{NAMES, Notes, read_notes};

/// API group of the three kinds.
pub const GROUP: &str = "seaway.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";
/// The finalizer of pools that have, or may have, blocks, and of blocks that have, or may have, addresses in use.
pub const FINALIZER: &str = "seaway.io/addresses-in-use";
/// Annotation of a pool: the prefix length of its blocks, written with the finalizer by the first node that claims one.
/// From then on `spec.blockSize` cannot be changed.
pub const BLOCK_SIZE: &str = "seaway.io/block-size";

/// An `IPPool`: a range that pods' addresses come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpPool {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.creationTimestamp`, see [`crate::Node::created`].
    pub created: Box<str>,
    /// `metadata.resourceVersion`: a write holds only for what was seen.
    pub version: Box<str>,
    /// `spec.cidr`.
    pub cidr: Cidr,
    /// `spec.blockSize`: prefix length of blocks.
    pub block_size: u8,
    /// Annotation [`BLOCK_SIZE`]: what `block_size` was when the first block was claimed.
    pub fixed_size: Option<u8>,
    /// `spec.disabled`: no new addresses.
    pub disabled: bool,
    /// `spec.nodeSelector`: nodes that may claim blocks.
    pub node_selector: Selector,
    /// `spec.namespaceSelector`: namespaces whose pods may have addresses.
    pub namespace_selector: Selector,
    /// `spec.allowedUses` has `Workload`: pods get addresses without naming the pool.
    pub automatic: bool,
    /// `spec.strictAffinity`: nothing is borrowed.
    pub strict_affinity: bool,
    /// `spec.underlay`: the network outside the cluster that the range is of.
    pub underlay: Option<Underlay>,
    /// `spec.natOutgoing`; unset: as `masquerade` of the cluster's settings.
    pub nat_outgoing: Option<bool>,
    /// Has [`FINALIZER`].
    pub adopted: bool,
    /// Other finalizers.
    pub finalizers: Box<[Box<str>]>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `status` as it is, so that it is written only when it changes.
    pub status: Value,
}

/// The network that a pool's range is a part of, for pods that are stations of it themselves (modes `macvlan`, `ipvlan`):
/// nodes make no routes to such addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// `subnet`: what its stations take for on-link.
    pub subnet: Cidr,
    /// `gateway`: its router. Without one the pods have no default route.
    pub gateway: Option<IpAddr>,
}

impl Underlay {
    /// Addresses of it that no pod can have: the router's, and of IPv4 the network's and its broadcast address, of IPv6
    /// the routers' anycast address (RFC 4291 section 2.6.1).
    pub fn withheld(&self) -> impl Iterator<Item = Cidr> + use<> {
        let s = self.subnet;
        let ends = [Some(s.addr()), (s.family() == Family::V4).then(|| s.last())];
        let ends = ends.into_iter().flatten().filter(move |_| s.family().bits() - s.len() > 1);
        self.gateway.into_iter().chain(ends).map(Cidr::host)
    }
}

impl IpPool {
    /// The prefix length of its blocks: what it was when the first was claimed.
    #[must_use]
    pub fn size(&self) -> u8 {
        self.fixed_size.unwrap_or(self.block_size)
    }

    /// Whether new addresses may be given out of it.
    #[must_use]
    pub fn open(&self) -> bool {
        !self.disabled && !self.terminating
    }

    /// The block of this pool that holds an address of it.
    #[must_use]
    pub fn block_of(&self, addr: IpAddr) -> Option<Cidr> {
        Cidr::new(addr, self.size()).filter(|_| self.cidr.contains(addr))
    }
}

/// Default of `spec.blockSize`: 64 addresses.
#[must_use]
pub const fn default_block_size(family: Family) -> u8 {
    match family {
        Family::V4 => 26,
        Family::V6 => 122,
    }
}

/// An `IPBlock`: a part of a pool that belongs to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpBlock {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.creationTimestamp`, see [`crate::Node::created`].
    pub created: Box<str>,
    /// `metadata.resourceVersion`.
    pub version: Box<str>,
    /// Has [`FINALIZER`]. Its owner takes that away just before it deletes the block; from then on the block may be
    /// anybody's at any moment, so nothing is given out of it.
    pub protected: bool,
    /// `spec.cidr`.
    pub cidr: Cidr,
    /// `spec.pool`. The pool may be gone; the block's addresses are routed all the same.
    pub pool: Box<str>,
    /// `spec.node`: whose it is. `None`: its node is gone, but lent addresses of it live; any node may take it.
    pub node: Option<NodeName>,
    /// `spec.lent`: addresses that other nodes have.
    pub lent: Box<[Lent]>,
    /// `spec.requests`: what other nodes ask for.
    pub requests: Box<[Request]>,
    /// `spec.full`: the owner had nothing to lend when it was asked last.
    pub full: bool,
    /// `metadata.deletionTimestamp` is set: nothing new is given out of it.
    pub terminating: bool,
}

/// An address of a block that another node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub node: NodeName,
}

/// A node asks a block's owner for an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub node: NodeName,
    /// For this one; any when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl IpBlock {
    /// The name of the block of this range: addresses in full, since a name must not begin with a separator.
    #[must_use]
    pub fn name_of(cidr: Cidr) -> String {
        let text = match cidr.addr() {
            IpAddr::V4(a) => a.octets().map(|o| o.to_string()).join("-"),
            IpAddr::V6(a) => a.segments().map(|s| format!("{s:04x}")).join("-"),
        };
        format!("{text}-{}", cidr.len())
    }

    /// What a node has of this block: all of it, or single addresses.
    pub fn ranges_of<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = Cidr> + 'a {
        let own = (self.node.as_ref() == Some(node)).then_some(self.cidr);
        own.into_iter().chain(self.lent.iter().filter(move |l| l.node == *node).map(|l| Cidr::host(l.address)))
    }

    /// `spec` as JSON.
    #[must_use]
    pub fn spec(&self) -> Value {
        json!({
            "cidr": self.cidr, "pool": self.pool, "node": self.node.as_ref().map_or("", |n| n.as_str()),
            "lent": self.lent, "requests": self.requests, "full": self.full,
        })
    }
}

/// An `IPReservation`: addresses that no pod is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IpReservation {
    /// `spec.reservedCIDRs`; a single address as /32 or /128.
    pub cidrs: Box<[Cidr]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blocks_are_object_names() {
        for (cidr, want) in [
            ("10.0.0.64/26", "10-0-0-64-26"),
            ("fd00:10:244::40/122", "fd00-0010-0244-0000-0000-0000-0000-0040-122"),
            ("::/122", "0000-0000-0000-0000-0000-0000-0000-0000-122"),
        ] {
            let name = IpBlock::name_of(cidr.parse().unwrap());
            assert_eq!(name, want);
            assert!(name.len() <= 63);
        }
    }
}
