//! Deployments, ReplicaSets, DaemonSets and their revisions.

use super::at::At;
use super::objects::owner;
use crate::labels::Labels;
use crate::workload::{Revision, Workload};

/// kubectl's copy of the object as it was applied: as large as the object itself, and nobody's business but kubectl's.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn annotations(metadata: &At<'_>) -> Labels {
    metadata.get("annotations").labels().iter().filter(|(k, _)| *k != LAST_APPLIED).collect()
}

pub(super) fn workload(root: &At<'_>) -> Workload {
    let metadata = root.get("metadata");
    // Where these two are not what they must be, the controller would make pods that the API refuses: say it here.
    let spec = root.get("spec");
    let selector = spec.get("selector");
    let wanted: Labels = selector.get("matchLabels").labels();
    let template = spec.get("template");
    let meta = template.get("metadata");
    let labels = meta.get("labels");
    if wanted.is_empty() {
        selector.get("matchLabels").bad("must name at least one label of the template (matchExpressions are not read)");
    } else if !labels.labels().matches(&wanted) {
        labels.bad("must have every label of spec.selector.matchLabels");
    }
    Workload {
        uid: metadata.get("uid").boxed(),
        generation: metadata.get("generation").int(0, i64::MAX).unwrap_or(0),
        terminating: metadata.get("deletionTimestamp").is_set(),
        owner: owner(&metadata),
        labels: metadata.get("labels").labels(),
        annotations: annotations(&metadata),
        spec: spec.value().clone(),
        status: root.get("status").value().clone(),
    }
}

pub(super) fn revision(root: &At<'_>) -> Revision {
    let metadata = root.get("metadata");
    Revision {
        uid: metadata.get("uid").boxed(),
        owner: owner(&metadata),
        annotations: annotations(&metadata),
        number: root.get("revision").int(0, i64::MAX).unwrap_or(0),
    }
}
