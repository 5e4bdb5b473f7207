//! Scripted faults: which effect fails, and what is left behind.

use std::collections::BTreeMap;

use kernel_api::{RequestError, errno};

/// How one effect fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this errno and nothing changed.
    Refused(i32),
    /// It is done, but its answer is lost: the caller sees this errno (ENOBUFS on the acknowledgement).
    Unanswered(i32),
    /// The process dies before it: this and every later effect fails with EIO until [`Faults::heal`].
    Crash,
}

/// A script of faults, by the count of effects since the fake was made. A link, a route or a whole nf_tables
/// transaction is one effect: whatever the kernel does or refuses as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    at: BTreeMap<usize, Fault>,
    done: usize,
    crashed: bool,
}

impl Faults {
    /// The `n`th effect from now, counted from zero, is refused with `errno`.
    pub fn fail_at(&mut self, n: usize, errno: i32) {
        self.script(n, Fault::Refused(errno));
    }

    /// The `n`th effect from now, counted from zero, fails so.
    pub fn script(&mut self, n: usize, fault: Fault) {
        self.at.insert(self.done.saturating_add(n), fault);
    }

    /// Forgets every fault still to come and ends a crash.
    pub fn heal(&mut self) {
        self.at.clear();
        self.crashed = false;
    }

    /// Effects counted so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.done
    }

    /// Counts one effect and says how it fails, if it does. For a [`Fault::Unanswered`] the fake does the effect and
    /// then reports the errno.
    pub fn step(&mut self) -> Option<Fault> {
        let n = self.done;
        self.done += 1;
        let fault = self.at.remove(&n);
        self.crashed |= fault == Some(Fault::Crash);
        if self.crashed { Some(Fault::Crash) } else { fault }
    }

    /// Whether the process is dead: reads fail too.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.crashed
    }
}

/// Runs one effect with its fault.
pub(crate) fn apply<T>(
    fault: Option<Fault>,
    what: &str,
    run: impl FnOnce() -> Result<T, RequestError>,
) -> Result<T, RequestError> {
    match fault {
        Some(Fault::Crash) => Err(RequestError::new(what, errno::EIO)),
        Some(Fault::Refused(e)) => Err(RequestError::new(what, e)),
        Some(Fault::Unanswered(e)) => run().and(Err(RequestError::new(what, e))),
        None => run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_strike_where_scripted_and_a_crash_lasts() {
        let mut f = Faults::default();
        assert_eq!(f.step(), None);
        f.fail_at(1, 22);
        f.script(2, Fault::Crash);
        assert_eq!(
            [f.step(), f.step(), f.step(), f.step()],
            [None, Some(Fault::Refused(22)), Some(Fault::Crash), Some(Fault::Crash)]
        );
        assert!(f.crashed());
        f.heal();
        assert_eq!(f.step(), None);
        assert_eq!(f.count(), 6);
    }
}
