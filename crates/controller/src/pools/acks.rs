//! What the API has answered and the watch has not told yet.

use std::collections::BTreeMap;
use std::time::Duration;

use resolve::pools::IpBlock;
use resolve::{ClusterSnapshot, Object, Parsed};

/// A block that was made and does not show within this time is taken for gone again.
const UNSEEN: Duration = Duration::from_secs(30);

/// Own writes that were answered. Without them a node would see, for a moment after it gave a block back, that the
/// block is its own, and would give out addresses of it.
#[derive(Debug, Clone, Default)]
pub struct Acks {
    blocks: BTreeMap<Box<str>, Ack>,
}

#[derive(Debug, Clone)]
struct Ack {
    at: Duration,
    /// `None`: gone.
    block: Option<IpBlock>,
    /// Of whichever object was gone.
    uid: Box<str>,
}

/// Whether version `a` is later than `b`: both numbers (KEP-5504); what is no number is later than nothing.
fn later(a: &str, b: &str) -> bool {
    match (a.parse::<u128>(), b.parse::<u128>()) {
        (Ok(a), Ok(b)) => a > b,
        _ => false,
    }
}

impl Acks {
    /// The API said at `now` that the block is so.
    pub fn is_so(&mut self, answer: Parsed, now: Duration) {
        if let Some(Object::IPBlock(b)) = answer.object {
            self.blocks.insert((*answer.key.name.name).into(), Ack { at: now, uid: b.uid.clone(), block: Some(b) });
        }
    }

    /// The API said at `now` that the block of this uid is gone.
    pub fn is_gone(&mut self, name: &str, uid: &str, now: Duration) {
        self.blocks.insert(name.into(), Ack { at: now, uid: uid.into(), block: None });
    }

    /// Whether the snapshot is all that is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Brings a snapshot up to what is known, and forgets what it shows by itself.
    pub fn apply(&mut self, snapshot: &mut ClusterSnapshot, now: Duration) {
        self.blocks.retain(|name, ack| {
            let seen = snapshot.blocks.get(name);
            match (&ack.block, seen) {
                // Another object of that name: ours is history.
                (None, s) => s.is_some_and(|s| s.uid == ack.uid),
                (Some(b), Some(s)) => later(&b.version, &s.version),
                (Some(_), None) => now.saturating_sub(ack.at) < UNSEEN,
            }
        });
        for (name, ack) in &self.blocks {
            match &ack.block {
                Some(b) => {
                    snapshot.blocks.insert(name.clone(), b.clone());
                }
                None => {
                    snapshot.blocks.remove(name);
                }
            }
        }
    }
}
