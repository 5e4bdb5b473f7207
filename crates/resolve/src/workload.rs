//! What makes pods, and what it remembers of its templates.

use serde_json::Value;

use crate::labels::Labels;
use crate::snapshot::Owner;

/// A Deployment, ReplicaSet or DaemonSet, as its controller needs it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Workload {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// The owner that controls it: a ReplicaSet's Deployment.
    pub owner: Option<Box<Owner>>,
    /// Labels.
    pub labels: Labels,
    /// Annotations, without kubectl's copy of what was applied.
    pub annotations: Labels,
    /// `spec` as it is: the pod template goes into pods unread.
    pub spec: Value,
    /// `status` as it is.
    pub status: Value,
}

/// A ControllerRevision: a template that a DaemonSet has or had.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Revision {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// The owner that controls it.
    pub owner: Option<Box<Owner>>,
    /// Annotations.
    pub annotations: Labels,
    /// `revision`: the newest has the highest.
    pub number: i64,
}
