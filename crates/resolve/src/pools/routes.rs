//! What blocks mean for routes: which ranges lead to which node, and whose pods are masqueraded.

use std::collections::{BTreeMap, BTreeSet};

use types::{Cidr, NodeName, ObjectName};

use super::IpBlock;
use crate::problem::Problem;
use crate::snapshot::{ClusterSnapshot, Key, Kind};

/// Ranges of the cluster's pods that blocks give, by node.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    /// By node: its blocks, and each address that it borrowed.
    pub of: BTreeMap<NodeName, Vec<Cidr>>,
    /// Ranges whose pods' packets to outside take the node's address.
    pub masqueraded: BTreeSet<Cidr>,
    /// Pools, and blocks of none.
    pub all: BTreeSet<Cidr>,
}

/// Reads the blocks. `busy` are the nodes' own pod ranges, with whose: a block that overlaps one is left out, as is one
/// that overlaps an older block.
pub(crate) fn ranges(snapshot: &ClusterSnapshot, busy: &[(Cidr, &NodeName)], problems: &mut Vec<Problem>) -> Ranges {
    let led = snapshot.pools.values().filter(|p| p.underlay.is_none());
    let mut out = Ranges { all: led.map(|p| p.cidr).collect(), ..Ranges::default() };
    let mut by_age: Vec<(&Box<str>, &IpBlock)> = snapshot.blocks.iter().collect();
    by_age.sort_by_key(|(name, b)| (&b.created, *name));
    // By first address: of ranges that do not overlap, only the neighbours can touch a new one.
    let mut taken: BTreeMap<(std::net::IpAddr, u8), &str> = BTreeMap::new();
    for (name, block) in by_age {
        let cidr = block.cidr;
        let key = Key { kind: Kind::IPBlock, name: ObjectName::new("", name) };
        let before = taken.range(..=(cidr.addr(), cidr.len())).next_back();
        let after = taken.range((cidr.addr(), cidr.len())..).next();
        let touches = before
            .into_iter()
            .chain(after)
            .find(|((a, len), _)| Cidr::new(*a, *len).is_some_and(|other| other.overlaps(&cidr)));
        let why = match (touches, busy.iter().find(|(c, _)| c.overlaps(&cidr))) {
            (Some((_, other)), _) => Some(format!(
                "{cidr} overlaps the older IPBlock {other}, which has it: `seaway ipam check --fix` on its node moves what can be moved"
            )),
            (_, Some((c, node))) => Some(format!(
                "{cidr} overlaps {c} of Node {node} spec.podCIDRs, which has it: take the pool out of the nodes' ranges"
            )),
            _ => None,
        };
        if let Some(why) = why {
            problems.push(Problem::new(key, "spec.cidr", why));
            continue;
        }
        taken.insert((cidr.addr(), cidr.len()), name);
        let pool = snapshot.pools.get(&block.pool);
        // The network that the addresses are of knows where they are; no node leads to them.
        if pool.is_some_and(|p| p.underlay.is_some()) {
            continue;
        }
        if pool.is_none_or(|p| !p.cidr.contains_cidr(&cidr)) {
            out.all.insert(cidr);
        }
        let nat = pool.and_then(|p| p.nat_outgoing).unwrap_or(snapshot.settings.masquerade);
        let holders: BTreeSet<&NodeName> = block.node.iter().chain(block.lent.iter().map(|l| &l.node)).collect();
        for node in holders {
            for range in block.ranges_of(node) {
                out.of.entry(node.clone()).or_default().push(range);
                if nat {
                    out.masqueraded.insert(range);
                }
            }
        }
    }
    out
}
