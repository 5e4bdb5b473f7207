//! When to run a pass: events are gathered for a moment, failures back off, time is an argument.

use std::time::Duration;

/// Something that bears on when the next pass runs. `now` is any monotonic time since a fixed start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacerInput {
    /// The intent may have changed, or the kernel was changed by another.
    Dirty,
    /// A pass ended well.
    Succeeded,
    /// A pass failed and should be tried again.
    Failed,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacerState {
    /// Nothing to do until an input.
    Idle,
    /// Run at this time.
    At(Duration),
}

/// Decides when the next pass runs.
///
/// A first event waits `gather`, so that a burst is one pass; a failure waits `retry_min` doubled per failure in a row,
/// at most `retry_max`. Any new event shortens a long back-off to `gather`, since the cause may be gone.
#[derive(Debug, Clone)]
pub struct Pacer {
    gather: Duration,
    retry_min: Duration,
    retry_max: Duration,
    failures: u32,
    due: Option<Duration>,
}

impl Pacer {
    /// A pacer with nothing due.
    #[must_use]
    pub fn new(gather: Duration, retry_min: Duration, retry_max: Duration) -> Self {
        Self { gather, retry_min, retry_max, failures: 0, due: None }
    }

    /// Takes one input at `now` and says what to do.
    pub fn step(&mut self, input: PacerInput, now: Duration) -> PacerState {
        match input {
            PacerInput::Dirty => {
                let at = now + self.gather;
                self.due = Some(self.due.map_or(at, |d| d.min(at)));
            }
            PacerInput::Succeeded => self.failures = 0,
            PacerInput::Failed => {
                let wait = self.retry_min.saturating_mul(1 << self.failures.min(16)).min(self.retry_max);
                self.failures = self.failures.saturating_add(1);
                self.due = Some(self.due.map_or(now + wait, |d| d.min(now + wait)));
            }
        }
        self.state()
    }

    /// What to do, without an input.
    #[must_use]
    pub fn state(&self) -> PacerState {
        self.due.map_or(PacerState::Idle, PacerState::At)
    }

    /// Takes the due pass if its time has come; the caller then runs it and reports how it ended.
    pub fn take(&mut self, now: Duration) -> bool {
        let due = self.due.is_some_and(|d| d <= now);
        if due {
            self.due = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_burst_is_one_pass_and_failures_back_off() {
        let mut p = Pacer::new(ms(10), ms(100), ms(400));
        assert_eq!(p.state(), PacerState::Idle);
        assert_eq!(p.step(PacerInput::Dirty, ms(0)), PacerState::At(ms(10)));
        assert_eq!(p.step(PacerInput::Dirty, ms(9)), PacerState::At(ms(10)));
        assert!(!p.take(ms(9)));
        assert!(p.take(ms(10)) && !p.take(ms(10)));
        for wait in [100, 200, 400, 400] {
            assert_eq!(p.step(PacerInput::Failed, ms(1000)), PacerState::At(ms(1000 + wait)));
            assert!(p.take(ms(5000)));
        }
        assert_eq!(p.step(PacerInput::Failed, ms(1000)), PacerState::At(ms(1400)));
        assert_eq!(p.step(PacerInput::Dirty, ms(1000)), PacerState::At(ms(1010)));
        assert!(p.take(ms(1010)));
        assert_eq!(p.step(PacerInput::Succeeded, ms(1011)), PacerState::Idle);
        assert_eq!(p.step(PacerInput::Failed, ms(2000)), PacerState::At(ms(2100)));
    }
}
