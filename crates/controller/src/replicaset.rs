//! ReplicaSets to pods: as many of one template as are asked for.

use std::collections::BTreeSet;

use resolve::{ClusterSnapshot, Key, Kind, Workload};
use serde_json::json;
use types::ObjectName;

use crate::Outcome;
use crate::name::free;
use crate::pods::{Member, Owned, Pods, adopt, count, create, delete, labels_at, replicas, status};

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, owned: &Owned<'_>, out: &mut Outcome) {
    let none = Pods::default();
    for (key, set) in snapshot.workloads.iter().filter(|(k, _)| k.kind == Kind::ReplicaSet) {
        // One that is being deleted makes no pods; the garbage collector takes those it has.
        if !set.terminating && !set.uid.is_empty() {
            one(snapshot, key, set, owned.get(&*set.uid).unwrap_or(&none), out);
        }
    }
}

/// Pods that nobody owns and that the selector means: those of a set that was deleted without them.
fn orphans<'a>(snapshot: &'a ClusterSnapshot, key: &Key, set: &Workload) -> Vec<Member<'a>> {
    let wanted = labels_at(set, "/selector/matchLabels");
    let here = snapshot.pods.range(ObjectName::new(&key.name.namespace, "")..);
    let here = here.take_while(|(n, _)| n.namespace == key.name.namespace);
    here.filter(|(_, p)| p.owner.is_none() && !p.terminating && !p.phase.ended())
        .filter(|(_, p)| !wanted.is_empty() && p.labels.matches(&wanted))
        .collect()
}

fn one(snapshot: &ClusterSnapshot, key: &Key, set: &Workload, pods: &Pods<'_>, out: &mut Outcome) {
    let want = replicas(set);
    // They are of no more use, and hold their names.
    out.writes.extend(pods.ended.iter().map(|(n, p)| delete(n, p, "it has ended")));
    let found = orphans(snapshot, key, set);
    out.writes.extend(found.iter().map(|(n, _)| adopt(key, set, Kind::Pod, n)));
    let mut active: Vec<Member<'_>> = pods.active.iter().chain(&found).copied().collect();
    // First those that do least.
    active.sort_by_key(|(n, p)| (p.ready, p.node.is_some(), std::cmp::Reverse(*n)));
    let extra = usize::try_from(count(&active) - want).unwrap_or(0);
    let extra = active.iter().take(extra);
    out.writes.extend(extra.map(|(n, p)| delete(n, p, "more than spec.replicas")));
    let mut made = BTreeSet::new();
    for _ in count(&active)..want {
        let name = free(&key.name.name, &[&set.uid], |n| {
            made.contains(n) || snapshot.pods.contains_key(&ObjectName::new(&key.name.namespace, n))
        });
        out.writes.push(create(key, set, &name, None, None));
        made.insert(name);
    }
    let ready = pods.ready();
    out.writes.extend(status(
        key,
        set,
        json!({
            "observedGeneration": set.generation,
            "replicas": count(&pods.active),
            "fullyLabeledReplicas": count(&pods.active),
            "readyReplicas": ready,
            "availableReplicas": ready,
        }),
    ));
}
