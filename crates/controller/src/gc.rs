//! What has lost its owner, and pods that have lost their node. (Endpoint slices without a Service are `slices`' own.)

use std::collections::BTreeSet;

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Kind, Owner};

use crate::Outcome;
use crate::pods::{delete, erase};

/// Kinds of which we know every object.
const OWNERS: [Kind; 3] = [Kind::Deployment, Kind::ReplicaSet, Kind::DaemonSet];

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    let owners: BTreeSet<&str> = snapshot.workloads.values().map(|w| &*w.uid).collect();
    // Of owners of other kinds we know nothing.
    let lost = |owner: Option<&Owner>| {
        let owner = owner.filter(|o| OWNERS.iter().any(|k| k.as_str() == &*o.kind))?;
        (!owners.contains(&*owner.uid)).then(|| format!("its {} {} is gone", owner.kind, owner.name))
    };
    for (key, w) in snapshot.workloads.iter().filter(|(_, w)| !w.terminating) {
        out.writes.extend(lost(w.owner.as_deref()).map(|why| erase(key.kind, &key.name, &w.uid, why)));
    }
    for (name, r) in &snapshot.revisions {
        out.writes.extend(lost(r.owner.as_deref()).map(|why| erase(Kind::ControllerRevision, name, &r.uid, why)));
    }
    for (name, pod) in &snapshot.pods {
        if pod.node.as_ref().is_some_and(|n| !snapshot.nodes.contains_key(n)) {
            // No kubelet is left to end it: it must go without its word.
            out.writes.push(ApiWrite {
                resource: Kind::Pod.into(),
                name: name.clone(),
                op: WriteOp::Delete { uid: pod.uid.clone(), force: true },
                why: "its node is gone".into(),
            });
        } else if !pod.terminating {
            out.writes.extend(lost(pod.owner.as_deref()).map(|why| delete(name, pod, why)));
        }
    }
}
