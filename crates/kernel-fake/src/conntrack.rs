//! A fake connection table.

use kernel_api::conntrack::Flow;
use kernel_api::{Conntrack, RequestError, errno};
use types::Proto;

use crate::fault::{Fault, Faults};

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
        if let Some(Fault::Refused(e)) = fault {
            return Err(RequestError::new(format!("forget {proto} connections"), e));
        }
        if fault == Some(Fault::Crash) {
            return Err(RequestError::new(format!("forget {proto} connections"), errno::EIO));
        }
        let before = self.flows.len();
        self.flows.retain(|f| f.proto != proto || !stale(f));
        match fault {
            Some(Fault::Unanswered(e)) => Err(RequestError::new(format!("forget {proto} connections"), e)),
            _ => Ok(before - self.flows.len()),
        }
    }
}
