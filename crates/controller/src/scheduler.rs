//! Pods to nodes. Of the nodes that are ready, schedulable and match the pod's nodeSelector, the one with the fewest
//! pods of the same owner, then with the fewest pods: equal pods go round. Pods whose host ports clash go to different
//! nodes, and pods that ask for random ones to nodes that have some. Affinity, taints and resources are not read.

use std::collections::BTreeMap;

use resolve::api::{ApiWrite, WriteOp};
use resolve::host_ports::{Load, node_range};
use resolve::{ClusterSnapshot, Key, Kind, Problem};
use types::NodeName;

use crate::Outcome;

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    let mut total: BTreeMap<&NodeName, usize> = BTreeMap::new();
    let mut owned: BTreeMap<(&str, &NodeName), usize> = BTreeMap::new();
    let mut ports: BTreeMap<&NodeName, Load> = BTreeMap::new();
    for pod in snapshot.pods.values().filter(|p| !p.phase.ended()) {
        if let Some(node) = &pod.node {
            ports.entry(node).or_default().add(pod);
            *total.entry(node).or_default() += 1;
            if let Some(owner) = &pod.owner {
                *owned.entry((&owner.uid, node)).or_default() += 1;
            }
        }
    }
    for (name, pod) in snapshot.pods.iter().filter(|(_, p)| p.node.is_none() && !p.terminating && !p.phase.ended()) {
        let owner = pod.owner.as_ref().map_or("", |o| &o.uid);
        let fit = |n: &resolve::Node| n.ready && !n.unschedulable && n.labels.matches(&pod.node_selector);
        let mut lacks = Vec::new();
        let none = Load::default();
        let has_ports = |n: &&NodeName| {
            let load = ports.get(n).unwrap_or(&none);
            let why = load.lacks(pod, node_range(snapshot, n), snapshot);
            lacks.extend(why.iter().map(|w| format!("{n}: {w}")));
            why.is_none()
        };
        let best = snapshot.nodes.iter().filter(|(_, n)| fit(n)).map(|(n, _)| n).filter(has_ports).min_by_key(|n| {
            let same = if owner.is_empty() { 0 } else { owned.get(&(owner, *n)).copied().unwrap_or(0) };
            (same, total.get(n).copied().unwrap_or(0), *n)
        });
        let Some(node) = best else {
            out.problems.push(Problem::new(
                Key { kind: Kind::Pod, name: name.clone() },
                "spec.nodeName",
                if lacks.is_empty() {
                    format!(
                        "0 of {} nodes fit: a node must be Ready, not unschedulable (`kubectl uncordon`), and have every label of spec.nodeSelector",
                        snapshot.nodes.len()
                    )
                } else {
                    format!("0 of {} nodes have the host ports free: {}", snapshot.nodes.len(), lacks.join("; "))
                },
            ));
            continue;
        };
        *total.entry(node).or_default() += 1;
        ports.entry(node).or_default().add(pod);
        if !owner.is_empty() {
            *owned.entry((owner, node)).or_default() += 1;
        }
        out.writes.push(ApiWrite {
            resource: Kind::Pod.into(),
            name: name.clone(),
            op: WriteOp::Bind { node: node.to_string() },
            why: format!("to node {node}"),
        });
    }
}
