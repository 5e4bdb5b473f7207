//! Deployments to ReplicaSets: one for each template that a Deployment has had, the newest at full size.
//!
//! The numbers are those of Kubernetes' own controller (`pkg/controller/deployment`), and so are the annotations, which
//! `kubectl rollout history` and `undo` read: the server has no part in these.

use std::collections::BTreeMap;

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Key, Kind, Workload};
use serde_json::{Map, Value, json};
use types::ObjectName;

use crate::Outcome;
use crate::offline::merge;
use crate::pods::{
    BEYOND_HISTORY, Owned, Pods, adopt, beyond_history, count, erase, labels_at, reference, replicas, share, status,
    taken, template_hash,
};
use crate::progress::{Rollout, conditions};

/// The label that a pod's template hash is in, as Kubernetes' own.
const HASH: &str = "pod-template-hash";
/// The annotation that counts templates.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotations of a Deployment that say something about it alone begin so.
const OWN: &str = "deployment.kubernetes.io/";

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, owned: &Owned<'_>, now: &str, out: &mut Outcome) {
    let none = Pods::default();
    let mut sets: BTreeMap<&str, Vec<Set<'_>>> = BTreeMap::new();
    for (key, set) in snapshot.workloads.iter().filter(|(k, w)| k.kind == Kind::ReplicaSet && !w.terminating) {
        let owner = set.owner.as_ref().map_or("", |o| &o.uid);
        sets.entry(owner).or_default().push(Set::new(key, set, owned.get(&*set.uid).unwrap_or(&none)));
    }
    let orphans = sets.remove("").unwrap_or_default();
    for (key, d) in snapshot.workloads.iter().filter(|(k, _)| k.kind == Kind::Deployment) {
        // One that is being deleted makes nothing; the garbage collector takes what it has.
        if d.terminating || d.uid.is_empty() {
            continue;
        }
        let wanted = labels_at(d, "/selector/matchLabels");
        let fits = |s: &&Set<'_>| s.key.name.namespace == key.name.namespace && s.set.labels.matches(&wanted);
        let adopted: Vec<&Set<'_>> = orphans.iter().filter(|_| !wanted.is_empty()).filter(fits).collect();
        if adopted.is_empty() {
            one(snapshot, key, d, sets.remove(&*d.uid).unwrap_or_default(), now, out);
        } else {
            // The rest when they are its own.
            out.writes.extend(adopted.iter().map(|s| adopt(key, d, Kind::ReplicaSet, &s.key.name)));
        }
    }
}

/// A ReplicaSet of a Deployment.
struct Set<'a> {
    key: &'a Key,
    set: &'a Workload,
    pods: &'a Pods<'a>,
    revision: i64,
    /// `spec.replicas`.
    size: i64,
    /// What it should be.
    target: i64,
}

impl<'a> Set<'a> {
    fn new(key: &'a Key, set: &'a Workload, pods: &'a Pods<'a>) -> Self {
        let size = replicas(set);
        Self { key, set, pods, revision: revision(set), size, target: size }
    }

    /// How many serve, and will when the set has shrunk to its target: it drops those that are not ready first.
    fn available(&self) -> i64 {
        self.target.min(self.pods.ready())
    }

    /// How many of those it has asked for it goes on asking for.
    fn kept(&self) -> i64 {
        self.size.min(self.target)
    }

    fn gone(&self) -> bool {
        self.pods.active.is_empty() && self.pods.terminating.is_empty()
    }
}

fn revision(w: &Workload) -> i64 {
    w.annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// `maxSurge` and `maxUnavailable` in pods. With neither allowed nothing could ever move.
fn bounds(d: &Workload, replicas: i64) -> (i64, i64) {
    let of = |k: &str, up| share(d.spec.pointer(&format!("/strategy/rollingUpdate/{k}")), "25%", replicas, up);
    match (of("maxSurge", true), of("maxUnavailable", false)) {
        (0, 0) => (0, 1),
        (surge, unavailable) => (surge, unavailable.min(replicas)),
    }
}

fn one(snapshot: &ClusterSnapshot, key: &Key, d: &Workload, mut sets: Vec<Set<'_>>, now: &str, out: &mut Outcome) {
    let want = replicas(d);
    let hash = template_hash(d);
    sets.sort_by_key(|s| s.revision);
    let at = sets.iter().position(|s| s.set.labels.get(HASH) == Some(&hash));
    let mut new = at.map(|i| sets.remove(i));
    let mut old = sets;
    let recreate = d.spec.pointer("/strategy/type").and_then(Value::as_str) == Some("Recreate");
    let bounds = if recreate { (0, 0) } else { bounds(d, want) };
    let paused = d.spec.get("paused").and_then(Value::as_bool) == Some(true);
    let mut made = false;
    if paused {
        // Its size is followed, its template is not.
        resize(old.iter_mut().chain(&mut new).collect(), want, bounds);
    } else {
        let number = next(new.as_ref(), &old);
        let size = grow(new.as_ref(), &old, want, recreate, bounds.0);
        // Make before break.
        match &mut new {
            Some(s) => {
                s.target = size;
                out.writes.extend(annotate(s.key, s.set, number, Some(d)));
            }
            // With Recreate the new set waits for the last old pod.
            None if recreate && !old.iter().all(Set::gone) => {}
            None => {
                let set = Key {
                    kind: Kind::ReplicaSet,
                    name: ObjectName::new(&key.name.namespace, &format!("{}-{hash}", key.name.name)),
                };
                match snapshot.workloads.get(&set) {
                    // One that is being deleted makes way.
                    Some(s) if s.owner.as_ref().is_some_and(|o| o.uid == d.uid) => {}
                    Some(_) => out.problems.push(taken(key, set.kind, &set.name)),
                    None => {
                        made = true;
                        out.writes.push(make(key, d, (&hash, set.name), size, number));
                    }
                }
            }
        }
        if recreate {
            old.iter_mut().for_each(|s| s.target = 0);
        } else {
            shrink(new.as_ref(), &mut old, want - bounds.1);
        }
        if new.is_some() {
            out.writes.extend(annotate(key, d, number, None));
        }
    }
    let all: Vec<&Set<'_>> = new.iter().chain(&old).collect();
    out.writes.extend(all.iter().filter(|s| s.target != s.size).map(|s| scale(key, s)));
    if !paused {
        forget(d, &old, out);
    }
    let name = new.as_ref().map_or_else(|| format!("{}-{hash}", key.name.name), |s| s.key.name.name.to_string());
    let rollout = Rollout {
        now,
        want,
        least: want - bounds.1,
        total: all.iter().map(|s| count(&s.pods.active)).sum(),
        updated: new.as_ref().map_or(0, |s| count(&s.pods.active)),
        ready: all.iter().map(|s| s.pods.ready()).sum(),
        paused,
        made,
        set: &name,
    };
    report(key, d, &rollout, out);
}

/// The number of the newest template: one more than all others have.
fn next(new: Option<&Set<'_>>, old: &[Set<'_>]) -> i64 {
    let before = old.iter().map(|s| s.revision).max().unwrap_or(0);
    new.map(|s| s.revision).filter(|r| *r > before).unwrap_or(before + 1)
}

/// The size of the newest set now.
fn grow(new: Option<&Set<'_>>, old: &[Set<'_>], want: i64, recreate: bool, surge: i64) -> i64 {
    let have = new.map_or(0, |s| s.size);
    if recreate && !old.iter().all(Set::gone) {
        return have.min(want);
    }
    // Pods that are still there count, though their set is smaller already.
    let total: i64 = new.into_iter().chain(old).map(|s| s.size.max(count(&s.pods.active))).sum();
    if have > want { want } else { have + (want - have).min((want + surge - total).max(0)) }
}

/// Shrinks old sets, the oldest first, as far as `least` pods stay available.
fn shrink(new: Option<&Set<'_>>, old: &mut [Set<'_>], least: i64) {
    let unready = new.map_or(0, |s| s.kept() - s.available().min(s.kept()));
    let total: i64 = new.into_iter().chain(&*old).map(Set::kept).sum();
    // What may go at all: new pods that are not ready yet are none to lean on.
    let mut left = total - least - unready;
    if left <= 0 {
        return;
    }
    for s in old.iter_mut() {
        // A pod that is not ready serves nobody: its going costs nothing.
        let n = (s.size - s.available()).min(left).max(0);
        s.target -= n;
        left -= n;
    }
    let mut spare = new.into_iter().chain(&*old).map(Set::available).sum::<i64>() - least;
    for s in old {
        let n = s.target.min(spare).max(0);
        s.target -= n;
        spare -= n;
    }
}

/// Brings sets to `want` together, each keeping its share, while no new template is rolled out. Half way through one they
/// may be as many as the strategy lets them be.
fn resize(mut sets: Vec<&mut Set<'_>>, want: i64, (surge, unavailable): (i64, i64)) {
    let total: i64 = sets.iter().map(|s| s.size).sum();
    let half_way = sets.iter().filter(|s| s.size > 0).count() > 1;
    if half_way && (want - unavailable..=want + surge).contains(&total) {
        return;
    }
    let mut left = want;
    for s in &mut sets {
        s.target = if total == 0 { 0 } else { s.size * want / total };
        left -= s.target;
    }
    // What is over goes to the newest that has any.
    let last = sets.iter().rposition(|s| s.size > 0).or(sets.len().checked_sub(1));
    if let Some(s) = last.and_then(|i| sets.get_mut(i)) {
        s.target += left;
    }
}

fn scale(owner: &Key, s: &Set<'_>) -> ApiWrite {
    ApiWrite {
        resource: Kind::ReplicaSet.into(),
        name: s.key.name.clone(),
        op: WriteOp::Patch(json!({"spec": {"replicas": s.target}})),
        why: format!("{owner} wants {} of it instead of {}", s.target, s.size),
    }
}

/// Writes the number, and what else `from` has for its set, where it differs.
fn annotate(key: &Key, w: &Workload, number: i64, from: Option<&Workload>) -> Option<ApiWrite> {
    let wanted = annotations(number, from);
    let differ: Map<_, _> = wanted.into_iter().filter(|(k, v)| w.annotations.get(k) != v.as_str()).collect();
    (!differ.is_empty()).then(|| ApiWrite {
        resource: key.kind.into(),
        name: key.name.clone(),
        op: WriteOp::Patch(json!({"metadata": {"annotations": differ}})),
        why: format!("its template is revision {number}"),
    })
}

/// A set has its Deployment's annotations: `undo` gives them back.
fn annotations(number: i64, from: Option<&Workload>) -> Map<String, Value> {
    let copied = from.into_iter().flat_map(|d| d.annotations.iter()).filter(|(k, _)| !k.starts_with(OWN));
    let mut all: Map<String, Value> = copied.map(|(k, v)| (k.to_owned(), v.into())).collect();
    all.insert(REVISION.into(), number.to_string().into());
    all
}

/// Makes the set of a template.
fn make(key: &Key, d: &Workload, (hash, name): (&str, ObjectName), size: i64, number: i64) -> ApiWrite {
    let mut template = d.spec.get("template").cloned().unwrap_or_default();
    merge(&mut template, &json!({"metadata": {"labels": {HASH: hash}}}));
    let mut selector = d.spec.get("selector").cloned().unwrap_or_default();
    merge(&mut selector, &json!({"matchLabels": {HASH: hash}}));
    let mut spec = json!({"replicas": size, "selector": selector, "template": template});
    if let Some(n) = d.spec.get("minReadySeconds") {
        spec["minReadySeconds"] = n.clone();
    }
    let metadata = json!({
        "labels": spec["template"]["metadata"]["labels"], "annotations": annotations(number, Some(d)),
        "ownerReferences": [reference(key, d)],
    });
    let kind = Kind::ReplicaSet;
    ApiWrite {
        resource: kind.into(),
        name,
        op: WriteOp::Create(json!({
            "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": metadata, "spec": spec,
        })),
        why: format!("revision {number} of {key}"),
    }
}

/// Deletes the oldest of the empty sets, beyond `spec.revisionHistoryLimit`.
fn forget(d: &Workload, old: &[Set<'_>], out: &mut Outcome) {
    let empty: Vec<&Set<'_>> = old.iter().filter(|s| s.size == 0 && s.target == 0 && s.gone()).collect();
    let gone = beyond_history(d, &empty).iter();
    out.writes.extend(gone.map(|s| erase(s.key.kind, &s.key.name, &s.set.uid, BEYOND_HISTORY)));
}

/// Writes the status, and says when to look again.
fn report(key: &Key, d: &Workload, r: &Rollout<'_>, out: &mut Outcome) {
    let (conditions, wait) = conditions(d, r);
    out.again = out.again.into_iter().chain(wait).min();
    out.writes.extend(status(
        key,
        d,
        json!({
            "observedGeneration": d.generation,
            "replicas": r.total,
            "updatedReplicas": r.updated,
            "readyReplicas": r.ready,
            "availableReplicas": r.ready,
            "unavailableReplicas": (r.want - r.ready).max(0),
            "conditions": conditions,
        }),
    ));
}
