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

/// A change is seen to after this at the latest, however long passes take.
const LONGEST_REST: Duration = Duration::from_millis(250);

/// Decides when the next pass runs.
///
/// A first event waits `gather`, so that a burst is one pass; a failure waits `retry_min` doubled per failure in a row,
/// at most `retry_max`. Any new event shortens a long back-off to `gather`, since the cause may be gone. After a pass there
/// is none for three times as long as it took, up to a quarter of a second: what is the cause of many events, such as pods that come and go, must not
/// wait for passes that look at all of them.
#[derive(Debug, Clone)]
pub struct Pacer {
    gather: Duration,
    retry_min: Duration,
    retry_max: Duration,
    failures: u32,
    due: Option<Duration>,
    /// When the last pass began, and until when there is no other.
    began: Duration,
    rest: Duration,
}

impl Pacer {
    /// A pacer with nothing due.
    #[must_use]
    pub fn new(gather: Duration, retry_min: Duration, retry_max: Duration) -> Self {
        Self { gather, retry_min, retry_max, failures: 0, due: None, began: Duration::ZERO, rest: Duration::ZERO }
    }

    /// Takes one input at `now` and says what to do.
    pub fn step(&mut self, input: PacerInput, now: Duration) -> PacerState {
        if input != PacerInput::Dirty {
            self.rest = now + (3 * now.saturating_sub(self.began)).min(LONGEST_REST);
        }
        match input {
            PacerInput::Dirty => {
                let at = (now + self.gather).max(self.rest);
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

    /// What is due was done otherwise.
    pub fn cancel(&mut self) {
        self.due = None;
    }

    /// Takes the due pass if its time has come; the caller then runs it and reports how it ended.
    pub fn take(&mut self, now: Duration) -> bool {
        let due = self.due.is_some_and(|d| d <= now);
        if due {
            self.due = None;
            self.began = now;
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

    #[test]
    fn a_long_pass_is_followed_by_a_long_rest() {
        let mut p = Pacer::new(ms(10), ms(100), ms(400));
        p.step(PacerInput::Dirty, ms(0));
        assert!(p.take(ms(10)));
        assert_eq!(p.step(PacerInput::Succeeded, ms(50)), PacerState::Idle);
        assert_eq!(p.step(PacerInput::Dirty, ms(60)), PacerState::At(ms(170)));
        assert_eq!(p.step(PacerInput::Dirty, ms(100)), PacerState::At(ms(170)));
        assert!(!p.take(ms(169)) && p.take(ms(170)));
        assert_eq!(p.step(PacerInput::Succeeded, ms(171)), PacerState::Idle);
        assert_eq!(p.step(PacerInput::Dirty, ms(171)), PacerState::At(ms(181)));
    }
}
