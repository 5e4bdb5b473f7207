//! Deployments to pods, without ReplicaSets between: the template's hash on each pod says which generation it is.

use std::collections::BTreeSet;

use resolve::{ClusterSnapshot, Key, Kind, Pod, Workload};
use serde_json::{Value, json};
use types::ObjectName;

use crate::Outcome;
use crate::name::free;
use crate::pods::{Pods, create, delete, share, status, template_hash};

/// The label that a pod's template hash is in, as Kubernetes' own.
pub(crate) const HASH: &str = "pod-template-hash";

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    for (key, workload) in snapshot.workloads.iter().filter(|(k, _)| k.kind == Kind::Deployment) {
        // One that is being deleted makes no pods; the garbage collector takes those it has.
        if !workload.terminating && !workload.uid.is_empty() {
            one(snapshot, key, workload, out);
        }
    }
}

type Member<'a> = (&'a ObjectName, &'a Pod);

fn count<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}

fn one(snapshot: &ClusterSnapshot, key: &Key, d: &Workload, out: &mut Outcome) {
    let replicas = d.spec.get("replicas").and_then(Value::as_i64).unwrap_or(1).clamp(0, 100_000);
    let hash = template_hash(d);
    let pods = Pods::of(snapshot, d);
    let (new, old): (Vec<Member<'_>>, Vec<Member<'_>>) =
        pods.active.iter().copied().partition(|(_, p)| p.labels.get(HASH) == Some(&hash));
    let ready = count(&pods.active.iter().filter(|(_, p)| p.ready).collect::<Vec<_>>());
    let paused = d.spec.get("paused").and_then(Value::as_bool) == Some(true);
    if !paused {
        // They are of no more use, and hold their names.
        out.writes.extend(pods.ended.iter().map(|(n, p)| delete(n, p, "it has ended")));
        let deletes = roll(d, replicas, ready, &new, &old, out);
        let recreate = d.spec.pointer("/strategy/type").and_then(Value::as_str) == Some("Recreate");
        let surge = share(d.spec.pointer("/strategy/rollingUpdate/maxSurge"), "25%", replicas, true);
        let room = if recreate {
            // All of the old must be gone first, also those on their way.
            let going = pods.terminating.iter().any(|(_, p)| p.labels.get(HASH) != Some(&hash));
            if old.is_empty() && !going { replicas - count(&new) } else { 0 }
        } else {
            // With neither surge nor unavailability allowed nothing could ever move.
            let unavailable = share(d.spec.pointer("/strategy/rollingUpdate/maxUnavailable"), "25%", replicas, false);
            let surge = if surge == 0 && unavailable == 0 { 1 } else { surge };
            (replicas - count(&new)).min(replicas + surge - count(&pods.active) + deletes)
        };
        let mut made = BTreeSet::new();
        for _ in 0..room.max(0) {
            let name = free(&format!("{}-{hash}", key.name.name), &[&d.uid], |n| {
                made.contains(n) || snapshot.pods.contains_key(&ObjectName::new(&key.name.namespace, n))
            });
            out.writes.push(create(key, d, &name, (HASH, &hash), None));
            made.insert(name);
        }
    }
    let enough =
        ready >= replicas - share(d.spec.pointer("/strategy/rollingUpdate/maxUnavailable"), "25%", replicas, false);
    let (truth, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    out.writes.extend(status(
        key,
        d,
        json!({
            "observedGeneration": d.generation,
            "replicas": count(&pods.active),
            "updatedReplicas": count(&new),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": (replicas - ready).max(0),
            "conditions": [{"type": "Available", "status": truth, "reason": reason, "message": message}],
        }),
    ));
}

/// Deletes what is too many, and old pods as fast as the strategy lets. Returns how many it deletes.
fn roll(d: &Workload, replicas: i64, ready: i64, new: &[Member<'_>], old: &[Member<'_>], out: &mut Outcome) -> i64 {
    let mut deletes: Vec<(Member<'_>, &str)> = Vec::new();
    // Too many of the new: first those that do least.
    let mut extra = new.to_vec();
    extra.sort_by_key(|(n, p)| (p.ready, p.node.is_some(), std::cmp::Reverse(*n)));
    extra.truncate(usize::try_from((count(new) - replicas).max(0)).unwrap_or(0));
    let extra_ready = count(&extra.iter().filter(|(_, p)| p.ready).collect::<Vec<_>>());
    deletes.extend(extra.into_iter().map(|p| (p, "more than spec.replicas")));
    if d.spec.pointer("/strategy/type").and_then(Value::as_str) == Some("Recreate") {
        deletes.extend(old.iter().map(|p| (*p, "of an older template")));
    } else {
        let unavailable = share(d.spec.pointer("/strategy/rollingUpdate/maxUnavailable"), "25%", replicas, false);
        // An old pod that is not ready serves nobody: its going costs nothing. Of the ready ones, as many as may be
        // missing.
        let mut spare = (ready - extra_ready) - (replicas - unavailable);
        for p in old {
            if !p.1.ready {
                deletes.push((*p, "of an older template, and not ready"));
            } else if spare > 0 {
                spare -= 1;
                deletes.push((*p, "of an older template"));
            }
        }
    }
    let n = count(&deletes);
    out.writes.extend(deletes.into_iter().map(|((name, pod), why)| delete(name, pod, why)));
    n
}
