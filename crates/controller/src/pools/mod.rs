//! Address pools: what a node claims, lends, borrows and gives back ([`Keeper`]), and what is done for all nodes by the
//! controller.
//!
//! No address is ever given out by two nodes, whatever the order of events, since each step down has the order: the CNI
//! plugin is no longer told of the address; then the plugin's records, read after that, do not have it; only then the
//! API hears that it is free. Steps up go the other way: the API says that it is ours; only then the plugin hears of
//! it. Every write holds only for the version of the object that was looked at.

mod acks;
mod cluster;
mod node;
mod space;
mod wants;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use resolve::api::{ApiWrite, WriteOp};
use resolve::pools::{FINALIZER, IpBlock, IpPool};
use resolve::{Kind, Problem};
use serde_json::json;
use types::{Cidr, NodeName, ObjectName};

pub use acks::Acks;
pub(crate) use cluster::reconcile;
pub use node::{Keeper, Local, Step, Want};
pub use wants::wants;

/// What the CNI plugin of a node may give out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// Ranges by pool: blocks, and borrowed addresses as host ranges.
    pub ranges: BTreeMap<Box<str>, BTreeSet<Cidr>>,
    /// What of them is not to be given: lent addresses, reservations, what is about to be given back.
    pub except: BTreeSet<Cidr>,
}

impl Offer {
    /// Whether an address may be given.
    #[must_use]
    pub fn gives(&self, addr: IpAddr) -> bool {
        self.ranges.values().flatten().any(|c| c.contains(addr)) && !self.except.iter().any(|c| c.contains(addr))
    }

    /// Whether any address of a range may be given, were it free.
    #[must_use]
    pub fn touches(&self, range: Cidr) -> bool {
        self.ranges.values().flatten().any(|c| c.overlaps(&range))
    }
}

fn named(kind: Kind, name: &str, op: WriteOp, why: String) -> ApiWrite {
    ApiWrite { resource: kind.into(), name: ObjectName::new("", name), op, why }
}

/// A block's object for a node.
fn create(cidr: Cidr, pool: &str, node: &NodeName, why: String) -> ApiWrite {
    let body = json!({
        "metadata": {"finalizers": [FINALIZER]},
        "spec": {"cidr": cidr, "pool": pool, "node": node.as_str(), "lent": [], "requests": [], "full": false},
    });
    named(Kind::IPBlock, &IpBlock::name_of(cidr), WriteOp::Create(body), why)
}

/// A block as it should be, if nobody has changed it since.
fn update(name: &str, block: &IpBlock, why: String) -> ApiWrite {
    let mut metadata = json!({"resourceVersion": block.version});
    if block.protected {
        metadata["finalizers"] = json!([FINALIZER]);
    }
    let patch = json!({"metadata": metadata, "spec": block.spec()});
    named(Kind::IPBlock, name, WriteOp::Patch(patch), why)
}

/// A block that is no longer anybody's.
fn remove(name: &str, block: &IpBlock, why: &str) -> [ApiWrite; 2] {
    let patch = json!({"metadata": {"resourceVersion": block.version, "finalizers": null}});
    [
        named(Kind::IPBlock, name, WriteOp::Patch(patch), why.to_owned()),
        named(Kind::IPBlock, name, WriteOp::Delete { uid: block.uid.clone(), force: false }, why.to_owned()),
    ]
}

/// A deleted pool of which no block is left.
fn let_go(name: &str, pool: &IpPool) -> ApiWrite {
    let patch = json!({"metadata": {"resourceVersion": pool.version, "finalizers": pool.finalizers}});
    named(Kind::IPPool, name, WriteOp::Patch(patch), "no block of it is left".into())
}

fn problem(kind: Kind, name: &str, field: &str, why: String) -> Problem {
    problem_of(kind, &ObjectName::new("", name), field, why)
}

pub(crate) fn problem_of(kind: Kind, name: &ObjectName, field: &str, why: String) -> Problem {
    Problem::new(format!("{kind}/{name}"), field, why)
}
