//! Writes to the Kubernetes API as plain values: what controllers return and `source` runs.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;
use types::ObjectName;

/// Group, version and plural of a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for core.
    pub group: Cow<'static, str>,
    /// Version.
    pub version: Cow<'static, str>,
    /// Kind.
    pub kind: Cow<'static, str>,
    /// Plural name, as in paths.
    pub plural: Cow<'static, str>,
}

impl Resource {
    /// `apiVersion` in JSON.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone().into_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl From<crate::Kind> for Resource {
    fn from(k: crate::Kind) -> Self {
        let (group, version, plural, _) = k.api();
        Self { group: group.into(), version: version.into(), kind: k.as_str().into(), plural: plural.into() }
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiWrite {
    /// Of what.
    pub resource: Resource,
    /// Which object; the namespace is empty for cluster-scoped ones.
    pub name: ObjectName,
    /// What.
    pub op: WriteOp,
    /// Why, for the log.
    pub why: String,
}

/// What a write does.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteOp {
    /// Makes the object of this body.
    Create(Value),
    /// JSON merge patch (RFC 7386) of the object.
    Patch(Value),
    /// JSON merge patch of the status subresource.
    PatchStatus(Value),
    /// Makes a Binding of the pod to the node: what a scheduler does.
    Bind {
        /// The node's name.
        node: String,
    },
    /// Deletes the object.
    Delete {
        /// Only if its uid is this one; empty: whichever.
        uid: Box<str>,
        /// `gracePeriodSeconds: 0`: at once, without waiting for the node.
        force: bool,
    },
}

impl fmt::Display for ApiWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match &self.op {
            WriteOp::Create(_) => "create",
            WriteOp::Patch(_) => "patch",
            WriteOp::PatchStatus(_) => "patch status of",
            WriteOp::Bind { .. } => "bind",
            WriteOp::Delete { .. } => "delete",
        };
        write!(f, "{verb} {}/{}: {}", self.resource.kind, self.name, self.why)
    }
}
