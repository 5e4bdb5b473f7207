//! A fake connection table.

use kernel_api::conntrack::Flow;
use kernel_api::{Conntrack, RequestError};
use types::Proto;

use crate::fault::{Faults, apply};

/// The connections of one pretended network namespace. A deletion pass is one effect of [`Faults`].
#[derive(Debug, Clone, Default)]
pub struct FakeConntrack {
    /// The script of faults.
    pub faults: Faults,
    /// What is tracked.
    pub flows: Vec<Flow>,
}

impl FakeConntrack {
    /// Nothing tracked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Conntrack for FakeConntrack {
    fn delete(&mut self, proto: Proto, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError> {
        let fault = self.faults.step();
        apply(fault, &format!("forget {proto} connections"), || {
            let before = self.flows.len();
            self.flows.retain(|f| f.proto != proto || !stale(f));
            Ok(before - self.flows.len())
        })
    }
}
