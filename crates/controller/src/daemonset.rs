//! DaemonSets to pods: one on each node that the template's nodeSelector chooses, ready or not.

use std::collections::{BTreeMap, BTreeSet};

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Key, Kind, Pod, Revision, Workload};
use serde_json::{Map, Value, json};
use types::{NodeName, ObjectName};

use crate::Outcome;
use crate::name::free;
use crate::offline::merge;
use crate::pods::{
    BEYOND_HISTORY, Owned, Pods, adopt, beyond_history, create, delete, erase, labels_at, reference, share, status,
    taken, template_hash,
};

/// The label that a pod's template hash is in, as Kubernetes' own.
const HASH: &str = "controller-revision-hash";

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, owned: &Owned<'_>, out: &mut Outcome) {
    let none = Pods::default();
    for (key, workload) in snapshot.workloads.iter().filter(|(k, _)| k.kind == Kind::DaemonSet) {
        if !workload.terminating && !workload.uid.is_empty() {
            let (hash, pods) = (template_hash(workload), owned.get(&*workload.uid).unwrap_or(&none));
            remember(snapshot, key, workload, &hash, pods, out);
            one(snapshot, key, workload, &hash, pods, out);
        }
    }
}

/// Keeps the template as a ControllerRevision, which `kubectl rollout history` and `undo` read, and forgets the oldest
/// that no pod has, beyond `spec.revisionHistoryLimit`.
fn remember(snapshot: &ClusterSnapshot, key: &Key, d: &Workload, hash: &str, pods: &Pods<'_>, out: &mut Outcome) {
    let kind = Kind::ControllerRevision;
    let name_of = |hash: &str| ObjectName::new(&key.name.namespace, &format!("{}-{hash}", key.name.name));
    let name = name_of(hash);
    let owns = |r: &Revision| r.owner.as_ref().is_some_and(|o| o.uid == d.uid);
    let mut old: Vec<_> = snapshot.revisions.iter().filter(|(n, r)| owns(r) && **n != name).collect();
    old.sort_by_key(|(_, r)| r.number);
    let before = old.last().map_or(0, |(_, r)| r.number);
    let write = |op, why: String| ApiWrite { resource: kind.into(), name: name.clone(), op, why };
    match snapshot.revisions.get(&name) {
        Some(r) if owns(r) && r.number > before => {}
        Some(r) if owns(r) => {
            let op = WriteOp::Patch(json!({"revision": before + 1}));
            out.writes.push(write(op, format!("{key} has this template again")));
        }
        Some(r) if r.owner.is_none() => out.writes.push(adopt(key, d, kind, &name)),
        Some(_) => out.problems.push(taken(key, kind, &name)),
        None => {
            let mut template = d.spec.get("template").cloned().unwrap_or_default();
            merge(&mut template, &json!({"$patch": "replace"}));
            let mut labels = template.pointer("/metadata/labels").cloned().unwrap_or_default();
            merge(&mut labels, &json!({HASH: hash}));
            let annotations: Map<String, Value> = d.annotations.iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
            let body = json!({
                "apiVersion": kind.api_version(), "kind": kind.as_str(),
                "metadata": {"labels": labels, "annotations": annotations, "ownerReferences": [reference(key, d)]},
                "data": {"spec": {"template": template}}, "revision": before + 1,
            });
            out.writes.push(write(WriteOp::Create(body), format!("revision {} of {key}", before + 1)));
        }
    }
    let all = [&pods.active, &pods.terminating, &pods.ended].into_iter().flatten();
    let used: BTreeSet<ObjectName> = all.filter_map(|(_, p)| p.labels.get(HASH)).map(name_of).collect();
    old.retain(|(n, _)| !used.contains(*n));
    let gone = beyond_history(d, &old).iter();
    out.writes.extend(gone.map(|(n, r)| erase(kind, n, &r.uid, BEYOND_HISTORY)));
}

fn one(snapshot: &ClusterSnapshot, key: &Key, d: &Workload, hash: &str, pods: &Pods<'_>, out: &mut Outcome) {
    let wanted = labels_at(d, "/template/spec/nodeSelector");
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
        here.sort_by_key(|(n, p)| (std::cmp::Reverse((p.labels.get(HASH) == Some(hash), p.ready)), *n));
        let mut here = here.into_iter();
        match here.next() {
            Some((name, pod)) => {
                current += 1;
                ready += i64::from(pod.ready);
                if pod.labels.get(HASH) == Some(hash) {
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
                out.writes.push(create(key, d, &name, Some((HASH, hash)), Some(node.as_str())));
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
