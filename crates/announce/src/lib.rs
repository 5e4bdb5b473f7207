//! Owns: how a node makes load balancer addresses known to the network outside, as state machines: who leads, when to answer, when to tell ([`l2`]).
//! Never does: I/O, clocks, or deciding which nodes may announce what (that is `resolve`).
//! Tested by: a simulation of nodes, partitions, pauses, late and lost messages in `tests/`: never two nodes answer for one address.

pub mod l2;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A way to announce addresses; [`l2::Machine`] is one, a BGP speaker would be another. The agent hands each the addresses
/// whose pool names it, and asks each when it must look again.
pub trait Announcer {
    /// What it looks at beside the addresses.
    type View<'a>;
    /// What it wants done.
    type Action;

    /// Looks, and says what to do. `now` never goes back; only differences count.
    fn step(&mut self, view: &Self::View<'_>, now: Duration) -> Vec<Self::Action>;

    /// The addresses that this node announces, each until when at most.
    fn announced(&self) -> BTreeMap<IpAddr, Duration>;

    /// When to look again, if nothing changes before.
    fn wake(&self) -> Option<Duration>;
}
