//! DaemonSets to pods: one on each node that the template's nodeSelector chooses, ready or not.

use std::collections::BTreeMap;

use resolve::{ClusterSnapshot, Key, Kind, Labels, Pod, Workload};
use serde_json::{Value, json};
use types::{NodeName, ObjectName};

use crate::Outcome;
use crate::name::free;
use crate::pods::{Pods, create, delete, share, status, template_hash};

/// The label that a pod's template hash is in, as Kubernetes' own.
const HASH: &str = "controller-revision-hash";

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    for (key, workload) in snapshot.workloads.iter().filter(|(k, _)| k.kind == Kind::DaemonSet) {
        if !workload.terminating && !workload.uid.is_empty() {
            one(snapshot, key, workload, out);
        }
    }
}

fn selector(d: &Workload) -> Labels {
    let map = d.spec.pointer("/template/spec/nodeSelector").and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(k, v)| v.as_str().map(|v| (k.as_str(), v))).collect()
}

fn one(snapshot: &ClusterSnapshot, key: &Key, d: &Workload, out: &mut Outcome) {
    let hash = template_hash(d);
    let wanted = selector(d);
    let pods = Pods::of(snapshot, d);
    out.writes.extend(pods.ended.iter().map(|(n, p)| delete(n, p, "it has ended")));
    let mut on: BTreeMap<&NodeName, Vec<(&ObjectName, &Pod)>> = BTreeMap::new();
    for (name, pod) in &pods.active {
        if let Some(node) = &pod.node {
            on.entry(node).or_default().push((name, pod));
        }
    }
    let nodes: Vec<&NodeName> =
        snapshot.nodes.iter().filter(|(_, n)| n.labels.matches(&wanted)).map(|(n, _)| n).collect();
    let desired = i64::try_from(nodes.len()).unwrap_or(i64::MAX);
    let (mut current, mut ready, mut updated, mut misscheduled) = (0_i64, 0_i64, 0_i64, 0_i64);
    let mut replaceable = Vec::new();
    for node in &nodes {
        let mut here = on.remove(node).unwrap_or_default();
        // Should there be two, the one that does more stays.
        here.sort_by_key(|(n, p)| (std::cmp::Reverse((p.labels.get(HASH) == Some(&hash), p.ready)), *n));
        let mut here = here.into_iter();
        match here.next() {
            Some((name, pod)) => {
                current += 1;
                ready += i64::from(pod.ready);
                if pod.labels.get(HASH) == Some(&hash) {
                    updated += 1;
                } else {
                    replaceable.push((name, pod));
                }
            }
            // The old pod's ports and files are its own until it is gone.
            None if pods.terminating.iter().any(|(_, p)| p.node.as_ref() == Some(*node)) => {}
            None => {
                let name = free(&key.name.name, &[&d.uid, node.as_str()], |n| {
                    snapshot.pods.contains_key(&ObjectName::new(&key.name.namespace, n))
                });
                out.writes.push(create(key, d, &name, (HASH, &hash), Some(node.as_str())));
            }
        }
        out.writes.extend(here.map(|(n, p)| delete(n, p, format!("node {node} has one already"))));
    }
    for (node, list) in on {
        misscheduled += i64::try_from(list.len()).unwrap_or(0);
        // Pods of vanished nodes are the garbage collector's.
        if snapshot.nodes.contains_key(node) {
            out.writes.extend(list.into_iter().map(|(n, p)| delete(n, p, format!("node {node} is not selected"))));
        }
    }
    if d.spec.pointer("/updateStrategy/type").and_then(Value::as_str) != Some("OnDelete") {
        let allowed = share(d.spec.pointer("/updateStrategy/rollingUpdate/maxUnavailable"), "1", desired, true).max(1);
        let mut spare = allowed - (desired - ready);
        for (name, pod) in replaceable {
            if !pod.ready {
                out.writes.push(delete(name, pod, "of an older template, and not ready"));
            } else if spare > 0 {
                spare -= 1;
                out.writes.push(delete(name, pod, "of an older template"));
            }
        }
    }
    out.writes.extend(status(
        key,
        d,
        json!({
            "observedGeneration": d.generation,
            "desiredNumberScheduled": desired,
            "currentNumberScheduled": current,
            "numberMisscheduled": misscheduled,
            "numberReady": ready,
            "numberAvailable": ready,
            "numberUnavailable": (desired - ready).max(0),
            "updatedNumberScheduled": updated,
        }),
    ));
}
