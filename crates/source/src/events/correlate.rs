//! Which Events are worth writing, and as which object: pure, time is an argument.
//!
//! The rules are client-go's (`tools/record/events_cache.go`): what says the same of the same object again only counts;
//! more than ten different messages of one reason about one object become one; an object that says too much is heard
//! less often. In a hurry, what is waiting to be written is merged, and what finds no room is counted and left out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use resolve::Key;

use super::Note;

/// Different messages of one (object, reason) within [`WINDOW`], after which they are told as one.
const DIFFERENT: usize = 10;
/// How long a message counts as recent.
const WINDOW: Duration = Duration::from_secs(600);
/// Events that an object may cause at once, and how long it takes for another.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Objects, and waiting writes, that are remembered.
const OBJECTS: usize = 4096;
const WAITING: usize = 512;
/// Begins the message of what stands for several.
const COMBINED: &str = "(combined from similar events): ";

/// One Event object: what the same note, said again, is written to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) about: Key,
    pub(super) reason: String,
    /// Empty for the one that stands for several.
    pub(super) message: String,
    pub(super) warning: bool,
}

/// A write that is due.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Due {
    pub(super) note: Note,
    /// How often it was said since the last write.
    pub(super) count: u64,
    /// When, first and last; of the same clock as `now`.
    pub(super) first: Duration,
    pub(super) last: Duration,
}

#[derive(Debug, Default)]
struct Object {
    /// What is left of the burst, and when that was so.
    tokens: f64,
    at: Duration,
    /// Recent messages by reason, oldest first.
    said: BTreeMap<String, VecDeque<(String, Duration)>>,
}

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Correlator {
    objects: BTreeMap<Key, Object>,
    waiting: BTreeMap<Id, Due>,
    /// The order in which they came.
    order: VecDeque<Id>,
    dropped: u64,
}

impl Correlator {
    /// Takes one note.
    pub(super) fn take(&mut self, mut note: Note, now: Duration) {
        if !self.allowed(&note.about, now) {
            self.dropped += 1;
            return;
        }
        let object = self.objects.entry(note.about.clone()).or_default();
        let said = object.said.entry(note.reason.clone()).or_default();
        said.retain(|(_, t)| now.saturating_sub(*t) < WINDOW);
        let known = said.iter().position(|(m, _)| *m == note.message);
        if let Some(n) = known {
            said.remove(n);
        }
        let combined = known.is_none() && said.len() >= DIFFERENT;
        let mut id = Id {
            about: note.about.clone(),
            reason: note.reason.clone(),
            message: note.message.clone(),
            warning: note.warning,
        };
        if combined {
            id.message = String::new();
            note.message = format!("{COMBINED}{}", note.message);
        } else {
            said.push_back((note.message.clone(), now));
        }
        let full = self.waiting.len() >= WAITING;
        match self.waiting.get_mut(&id) {
            Some(due) => {
                due.count += 1;
                due.last = now;
                due.note.message = note.message;
            }
            None if full => self.dropped += 1,
            None => {
                self.order.push_back(id.clone());
                self.waiting.insert(id, Due { note, count: 1, first: now, last: now });
            }
        }
    }

    /// Whether an object may be heard again; takes one of its turns.
    fn allowed(&mut self, about: &Key, now: Duration) -> bool {
        if self.objects.len() >= OBJECTS && !self.objects.contains_key(about) {
            // Whoever was silent for longest is forgotten.
            let quiet = self.objects.iter().min_by_key(|(_, o)| o.at).map(|(k, _)| k.clone());
            if let Some(k) = quiet {
                self.objects.remove(&k);
            }
        }
        let o = self.objects.entry(about.clone()).or_insert(Object { tokens: BURST, at: now, ..Object::default() });
        let earned = now.saturating_sub(o.at).as_secs_f64() / REFILL.as_secs_f64();
        o.tokens = (o.tokens + earned).min(BURST);
        o.at = now;
        if o.tokens < 1.0 {
            return false;
        }
        o.tokens -= 1.0;
        true
    }

    /// The write that waits longest.
    pub(super) fn next(&mut self) -> Option<(Id, Due)> {
        let id = self.order.pop_front()?;
        let due = self.waiting.remove(&id)?;
        Some((id, due))
    }

    /// Puts a write back that could not be made; what came meanwhile is added to it.
    pub(super) fn back(&mut self, id: Id, due: Due) {
        let full = self.waiting.len() >= WAITING;
        match self.waiting.get_mut(&id) {
            Some(newer) => {
                newer.count += due.count;
                newer.first = due.first;
            }
            None if full => self.dropped += 1,
            None => {
                self.order.push_front(id.clone());
                self.waiting.insert(id, due);
            }
        }
    }

    /// How many notes were left out since the last call.
    pub(super) fn dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use resolve::Kind;
    use types::ObjectName;

    fn note(name: &str, message: &str) -> Note {
        Note {
            about: Key { kind: Kind::Service, name: ObjectName::new("default", name) },
            warning: true,
            reason: "Refused".into(),
            message: message.into(),
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_same_said_again_is_counted() {
        let mut c = Correlator::default();
        for t in 0..5 {
            c.take(note("a", "no"), secs(t));
        }
        let (_, due) = c.next().unwrap();
        assert_eq!((due.count, due.first, due.last), (5, secs(0), secs(4)));
        assert!(c.next().is_none());
        // A write that failed is not lost, nor what came meanwhile.
        let (id, due) = {
            c.take(note("a", "no"), secs(5));
            c.next().unwrap()
        };
        c.take(note("a", "no"), secs(6));
        c.back(id, due);
        let (_, due) = c.next().unwrap();
        assert_eq!((due.count, due.first, due.last), (2, secs(5), secs(6)));
    }

    #[test]
    fn many_messages_of_one_reason_become_one() {
        let mut c = Correlator::default();
        for n in 0..20 {
            c.take(note("a", &format!("no {n}")), secs(0));
        }
        let all: Vec<Due> = std::iter::from_fn(|| c.next().map(|(_, d)| d)).collect();
        assert_eq!(all.len(), DIFFERENT + 1);
        let last = all.last().unwrap();
        assert_eq!((last.count, last.note.message.as_str()), (10, "(combined from similar events): no 19"));
        // Later they are told apart again.
        c.take(note("a", "no 15"), secs(6000));
        assert_eq!(c.next().unwrap().1.note.message, "no 15");
    }

    #[test]
    fn an_object_that_says_too_much_is_heard_less() {
        let mut c = Correlator::default();
        for _ in 0..100 {
            c.take(note("a", "no"), secs(0));
        }
        c.take(note("b", "no"), secs(0));
        let all: Vec<u64> = std::iter::from_fn(|| c.next().map(|(_, d)| d.count)).collect();
        assert_eq!(all, [25, 1]);
        assert_eq!((c.dropped(), c.dropped()), (75, 0));
        c.take(note("a", "no"), secs(301));
        assert!(c.next().is_some(), "one more every five minutes");
    }

    proptest! {
        /// Whatever comes: memory is bounded, and nothing is both told and left out, or neither.
        #[test]
        fn bounded_and_nothing_lost(notes in prop::collection::vec((0u16..700, 0u8..30, 0u64..5), 0..1500)) {
            let (mut c, mut now) = (Correlator::default(), 0);
            let total = notes.len() as u64;
            for (name, message, step) in notes {
                now += step;
                c.take(note(&format!("s{name}"), &format!("m{message}")), secs(now));
                prop_assert!(c.waiting.len() <= WAITING && c.objects.len() <= OBJECTS && c.order.len() == c.waiting.len());
            }
            let told: u64 = std::iter::from_fn(|| c.next().map(|(_, d)| d.count)).sum();
            prop_assert_eq!(told + c.dropped(), total);
        }
    }
}
