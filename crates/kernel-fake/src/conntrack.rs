//! A fake connection table.

use kernel_api::conntrack::{Among, Flow};
use kernel_api::{Conntrack, RequestError};

use crate::fault::{Faults, apply};

/// The connections of one pretended network namespace. A deletion pass is one effect of [`Faults`].
#[derive(Debug, Clone, Default)]
pub struct FakeConntrack {
    /// The script of faults.
    pub faults: Faults,
    /// What is tracked.
    pub flows: Vec<Flow>,
    /// The walks over the table so far, as they were asked for.
    pub walks: Vec<Among>,
}

impl FakeConntrack {
    /// Nothing tracked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Conntrack for FakeConntrack {
    fn delete(&mut self, among: &Among, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError> {
        self.walks.push(*among);
        let fault = self.faults.step();
        apply(fault, &format!("forget {} connections", among.proto), || {
            let before = self.flows.len();
            self.flows.retain(|f| !among.has(f) || !stale(f));
            Ok(before - self.flows.len())
        })
    }
}
