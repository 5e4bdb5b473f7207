//! Which endpoint of a Service port has which slot. By themselves endpoints are in the order of their addresses; but when
//! one goes or comes, the others keep their slots, so that the change is of a few elements however many endpoints there
//! are: what was last takes the slot that became free, what is new takes the one after the last. All places where a port
//! is reached have one order. The order is state of the kernel's table, as affinity is: it says nothing of where packets
//! may go, only which random number leads where, and who begins to follow a table takes it from there.

use std::collections::BTreeMap;

use intent::{Endpoint, ServiceKey};
use types::Family;

/// Endpoints that have slots of their own: of a port, one family, all or this node's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub key: ServiceKey,
    pub family: Family,
    pub local: bool,
}

/// The slots of the ports of one Service.
pub(crate) type Slots = Vec<(Place, Vec<Endpoint>)>;

/// The endpoints of a place by slot.
pub(crate) fn of<'a>(slots: &'a Slots, place: &Place) -> Option<&'a [Endpoint]> {
    slots.iter().find(|(p, _)| p == place).map(|(_, e)| e.as_slice())
}

/// Orders that are not that of the addresses.
#[derive(Debug, Default)]
pub(crate) struct Orders(BTreeMap<Place, Box<[Endpoint]>>);

impl Orders {
    pub(crate) fn get(&self, place: &Place) -> Option<&[Endpoint]> {
        self.0.get(place).map(|e| &**e)
    }

    /// These have gone.
    pub(crate) fn leave(&mut self, slots: &Slots) {
        if !self.0.is_empty() {
            slots.iter().for_each(|(place, _)| drop(self.0.remove(place)));
        }
    }

    /// These have come.
    pub(crate) fn enter(&mut self, slots: &Slots) {
        for (place, endpoints) in slots.iter().filter(|(_, e)| !e.is_sorted()) {
            self.0.insert(place.clone(), endpoints.as_slice().into());
        }
    }
}

/// Slots of `now`, which is sorted, after those that `was` tells: every one keeps its own as far as there is such a slot,
/// and the rest fill what is free in their order. Whatever `was` says, this is an order of `now`.
pub(crate) fn arrange(was: impl Fn(usize) -> Option<Endpoint>, now: &[Endpoint]) -> Vec<Endpoint> {
    let mut free = vec![true; now.len()];
    let mut keep = |e: Endpoint| {
        let free = free.get_mut(now.binary_search(&e).ok()?)?;
        std::mem::take(free).then_some(e)
    };
    let kept: Vec<Option<Endpoint>> = (0..now.len()).map(|slot| was(slot).and_then(&mut keep)).collect();
    let mut rest = now.iter().zip(&free).filter(|(_, free)| **free).map(|(e, _)| *e);
    kept.into_iter().filter_map(|e| e.or_else(|| rest.next())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(set: &BTreeSet<u8>) -> Vec<Endpoint> {
        set.iter().map(|n| Endpoint { addr: [10, 0, 0, *n].into(), port: 80 }).collect()
    }

    proptest! {
        #[test]
        fn a_change_moves_no_more_than_it_must(steps: Vec<BTreeSet<u8>>) {
            let mut slots: Vec<Endpoint> = Vec::new();
            for set in &steps {
                let (was, now) = (slots, endpoints(set));
                slots = arrange(|n| was.get(n).copied(), &now);
                let mut sorted = slots.clone();
                sorted.sort();
                prop_assert_eq!(&sorted, &now, "an order of what is there");
                let gone = was.iter().filter(|e| !now.contains(e)).count();
                let come = now.iter().filter(|e| !was.contains(e)).count();
                let moved = slots.iter().zip(&was).filter(|(a, b)| a != b).count();
                prop_assert!(moved <= gone.max(come), "{} of {} gone and {} come", moved, gone, come);
                // And again from there: nothing.
                prop_assert_eq!(&arrange(|n| slots.get(n).copied(), &now), &slots);
            }
        }
    }
}
