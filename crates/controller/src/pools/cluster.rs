//! What is done about pools for all nodes.

use std::collections::{BTreeMap, BTreeSet};

use resolve::api::WriteOp;
use resolve::pools::{IpBlock, sound};
use resolve::{ClusterSnapshot, Kind};
use serde_json::json;
use types::NodeName;

use super::{let_go, named, problem, remove, update};
use crate::Outcome;

/// Pods that the status of a pool names at most.
const NAMED: usize = 10;

/// Gives up what nodes that are gone held, lets a deleted pool go once it is empty, and says in each pool's status what
/// it has and, when it is to be emptied, who still holds addresses of it.
pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    // The node of a pod that is still there may be there as well, though its object is gone.
    let mut alive: BTreeSet<&NodeName> = snapshot.nodes.keys().collect();
    alive.extend(snapshot.pods.values().filter(|p| !p.phase.ended()).filter_map(|p| p.node.as_ref()));
    for (name, block) in &snapshot.blocks {
        orphan(name, block, &alive, out);
    }
    let (_, overlapping) = sound(snapshot);
    for (name, other) in overlapping {
        out.problems.push(problem(
            Kind::IPPool,
            name,
            "spec.cidr",
            format!("overlaps IPPool {other}, which has the range: no block of this pool is claimed; delete it and make one of another range"),
        ));
    }
    for (name, pool) in &snapshot.pools {
        let blocks: Vec<&IpBlock> = snapshot.blocks.values().filter(|b| b.pool == *name).collect();
        if pool.terminating && pool.adopted && blocks.is_empty() {
            out.writes.push(let_go(name, pool));
            continue;
        }
        let status = status(snapshot, name, pool.open(), &blocks);
        if status != pool.status {
            let op = WriteOp::PatchStatus(json!({"status": status}));
            out.writes.push(named(Kind::IPPool, name, op, format!("{} blocks", blocks.len())));
        }
    }
}

/// A block whose node is gone: nobody's, or gone when nothing of it is lent.
fn orphan(name: &str, block: &IpBlock, alive: &BTreeSet<&NodeName>, out: &mut Outcome) {
    let gone = |n: &NodeName| !alive.contains(n);
    let mut next = block.clone();
    next.lent = block.lent.iter().filter(|l| !gone(&l.node)).cloned().collect();
    next.requests = block.requests.iter().filter(|r| !gone(&r.node)).cloned().collect();
    if block.node.as_ref().is_none_or(gone) {
        next.node = None;
        if next.lent.is_empty() {
            out.writes.extend(remove(name, block, "its node is gone"));
            return;
        }
    }
    if next != *block {
        out.writes.push(update(name, &next, "a node is gone".into()));
    }
}

/// `status` of a pool. All keys are always there: a merge patch would keep what is left out.
fn status(snapshot: &ClusterSnapshot, name: &str, open: bool, blocks: &[&IpBlock]) -> serde_json::Value {
    let nodes: BTreeSet<&NodeName> = blocks.iter().filter_map(|b| b.node.as_ref()).collect();
    let lent: usize = blocks.iter().map(|b| b.lent.len()).sum();
    let mut message = String::new();
    if !open && !blocks.is_empty() {
        let held: BTreeMap<String, String> = snapshot
            .pods
            .iter()
            .filter(|(_, p)| !p.phase.ended() && !p.host_network)
            .filter(|(_, p)| p.ips.iter().any(|ip| blocks.iter().any(|b| b.cidr.contains(*ip))))
            .map(|(n, p)| (n.to_string(), p.node.as_ref().map(ToString::to_string).unwrap_or_default()))
            .collect();
        let list: Vec<String> = held.iter().take(NAMED).map(|(p, n)| format!("{p} on {n}")).collect();
        let more = held.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        message = match held.len() {
            0 => format!("no pod has an address of IPPool {name}; {} blocks are being given back", blocks.len()),
            n => format!("{n} pods have addresses of it: {}{more}", list.join(", ")),
        };
    }
    json!({"blocks": blocks.len(), "nodes": nodes.len(), "lent": lent, "message": message})
}
