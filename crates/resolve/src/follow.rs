//! What a snapshot means for a node, kept while it changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use intent::{NodeIntent, ServiceChanges};

use crate::problem::Problem;
use crate::services::Book;
use crate::snapshot::{ClusterSnapshot, Key};
use crate::{LocalState, host_ports, node, pods};

/// Which objects may be other than they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Any.
    All,
    /// These, as [`crate::apply`] names them.
    Some(BTreeSet<Key>),
}

/// What a look at the snapshot gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// What the node must do. Whoever keeps this until the next look makes that look copy the map of Services.
    pub intent: Arc<NodeIntent>,
    /// What could not be honoured, sorted; for status, events and log.
    pub problems: Vec<Problem>,
    /// Which Services are other than at the last look.
    pub services: ServiceChanges,
    /// How many endpoints all Services have, those of a port counted for it.
    pub endpoints: usize,
}

/// Follows a snapshot: a look costs what changed among Services and endpoint slices, and all of the rest, which is small.
/// Whatever the order, split and repetition of the changes, it ends in what [`crate::resolve`] says of the last one.
#[derive(Debug, Default)]
pub struct Resolver {
    last: Option<Arc<NodeIntent>>,
    book: Book,
}

impl Resolver {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks. `changed` is what changed since the last look, or more; a first look takes everything.
    pub fn follow(&mut self, snapshot: &ClusterSnapshot, local: &LocalState, changed: &Changes) -> Followed {
        let mut problems: Vec<Problem> = snapshot.problems.values().flatten().cloned().collect();
        let mut intent = NodeIntent::empty(local.node.clone());
        node::fill(&mut intent, snapshot, local, &mut problems);
        intent.attachments = crate::attachments(snapshot, local);
        pods::fill(&mut intent, snapshot, local, &mut problems);
        host_ports::fill(&mut intent, snapshot, local, &mut problems);
        let first = self.last.is_none();
        if let Some(mut last) = self.last.take() {
            intent.services = match Arc::get_mut(&mut last) {
                Some(last) => std::mem::take(&mut last.services),
                None => last.services.clone(),
            };
        }
        let changed = if first { &Changes::All } else { changed };
        let services = self.book.follow(&mut intent, snapshot, changed);
        let services = if first { ServiceChanges::All } else { ServiceChanges::Some(services) };
        problems.extend(self.book.problems().cloned());
        problems.sort();
        problems.dedup();
        let intent = Arc::new(intent);
        self.last = Some(Arc::clone(&intent));
        Followed { intent, problems, services, endpoints: self.book.endpoints() }
    }
}
