//! Pods that have lost their owner or their node. (Endpoint slices without a Service are `slices`' own.)

use std::collections::BTreeSet;

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Kind};

use crate::Outcome;
use crate::pods::delete;

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    let owners: BTreeSet<&str> = snapshot.workloads.values().map(|w| &*w.uid).collect();
    for (name, pod) in &snapshot.pods {
        if pod.node.as_ref().is_some_and(|n| !snapshot.nodes.contains_key(n)) {
            // No kubelet is left to end it: it must go without its word.
            out.writes.push(ApiWrite {
                resource: Kind::Pod.into(),
                name: name.clone(),
                op: WriteOp::Delete { uid: pod.uid.clone(), force: true },
                why: "its node is gone".into(),
            });
            continue;
        }
        // Of owners of other kinds we know nothing.
        let ours = |kind: &str| kind == Kind::Deployment.as_str() || kind == Kind::DaemonSet.as_str();
        let Some(owner) = pod.owner.as_ref().filter(|o| ours(&o.kind)) else { continue };
        if !pod.terminating && !owners.contains(&*owner.uid) {
            out.writes.push(delete(name, pod, format!("its {} {} is gone", owner.kind, owner.name)));
        }
    }
}
