//! What is wrong with the cluster's objects, said so that a person can mend it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing in the cluster's objects that cannot be honoured. What it speaks of is left out of the intent; the rest
/// goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The object: `Node/node2`, `Service/default/web`.
    pub object: String,
    /// The field of it: `spec.podCIDRs[0]`.
    pub field: String,
    /// What is wrong, and what to do.
    pub why: String,
}

impl Problem {
    /// From its parts.
    #[must_use]
    pub fn new(object: impl fmt::Display, field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { object: object.to_string(), field: field.into(), why: why.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.object, self.field, self.why)
    }
}
