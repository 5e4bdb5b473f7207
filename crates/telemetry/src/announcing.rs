//! The metrics of load balancers' addresses that this node answers for on the link.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::metrics::count;

/// What a node has of addresses, and how it came to them.
#[derive(Debug, Default)]
pub struct Announcing {
    addresses: Gauge,
    taken: Counter,
    taken_over: Counter,
    given_up: Counter,
    conflicts: Counter,
}

impl Announcing {
    pub(crate) fn register(&self, r: &mut Registry) {
        r.register(
            "seaway_announced_addresses",
            "Load balancers' addresses that this node answers for on the link",
            self.addresses.clone(),
        );
        r.register(
            "seaway_announced_addresses_taken",
            "Addresses that this node began to answer for",
            self.taken.clone(),
        );
        r.register(
            "seaway_announced_addresses_taken_over",
            "Addresses that this node won from one that had died or fallen silent",
            self.taken_over.clone(),
        );
        r.register(
            "seaway_announced_addresses_given_up",
            "Addresses that this node ceased to answer for",
            self.given_up.clone(),
        );
        r.register(
            "seaway_announced_addresses_conflicts",
            "Leases of addresses that another node was quicker to write",
            self.conflicts.clone(),
        );
    }

    /// How many addresses are announced, and how many of them were not before, and are no longer.
    pub fn now(&self, all: usize, new: u64, gone: u64) {
        self.addresses.set(count(all));
        self.taken.inc_by(new);
        self.given_up.inc_by(gone);
    }

    /// An address's lease was won from another node.
    pub fn took_over(&self) {
        self.taken_over.inc();
    }

    /// Another node was quicker.
    pub fn conflict(&self) {
        self.conflicts.inc();
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn what_is_announced_and_how_it_came() {
        let (a, mut r, mut text) = (Announcing::default(), Registry::default(), String::new());
        a.register(&mut r);
        a.now(2, 2, 0);
        a.took_over();
        a.conflict();
        a.now(1, 0, 1);
        assert!(encode(&mut text, &r).is_ok());
        let values = ["", "_taken_total", "_taken_over_total", "_given_up_total", "_conflicts_total"];
        for (name, value) in values.into_iter().zip([1, 2, 1, 1, 1]) {
            assert!(text.contains(&format!("\nseaway_announced_addresses{name} {value}\n")), "{text}");
        }
    }
}
