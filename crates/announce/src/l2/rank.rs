//! Who takes an address that nobody has: the node with the fewest, and the others one after another should it not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use types::NodeName;

use super::{Machine, STAGGER, Seen, View, address_lease};

/// The longest that a node waits for those before it, in turns.
const MOST: u32 = 5;

/// FNV-1a of an address and a node: nodes with equally many addresses come in another order for each address.
fn weight(ip: IpAddr, node: &NodeName) -> u64 {
    let octets = match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let bytes = octets.into_iter().chain(node.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Machine {
    /// For each address that has no holder, or one that is silent: how many nodes come before this one. Every node
    /// that sees the same comes to the same order.
    pub(super) fn turns(&self, view: &View<'_>, now: Duration) -> BTreeMap<IpAddr, u32> {
        let mut load: BTreeMap<&str, usize> = BTreeMap::new();
        let mut open = Vec::new();
        for (ip, w) in view.want {
            let holder = view.leases.get(&*address_lease(*ip)).map_or("", |l| &*l.holder);
            let silent = |h: &str| h != self.me.as_str() && self.silent_at(h).is_some_and(|at| now >= at);
            let lost = holder.is_empty() || silent(holder);
            if !holder.is_empty() {
                *load.entry(holder).or_default() += 1;
            }
            if lost {
                open.push((ip, w, holder));
            }
        }
        let mut out = BTreeMap::new();
        for (ip, w, holder) in open {
            let count = |n: &NodeName| load.get(n.as_str()).copied().unwrap_or(0);
            let mut order: Vec<(bool, usize, u64, &NodeName)> = w
                .nodes
                .iter()
                .filter(|(n, _)| n.as_str() != holder)
                .map(|(n, ready)| (!ready, count(n), weight(*ip, n), n))
                .collect();
            order.sort();
            if let Some(first) = order.first() {
                *load.entry(first.3.as_str()).or_default() += 1;
            }
            let before = order.iter().position(|o| *o.3 == self.me);
            out.insert(*ip, before.and_then(|p| u32::try_from(p).ok()).unwrap_or(MOST));
        }
        out
    }

    /// When this node may take an address that it does not hold; `None` while another has it.
    pub(super) fn turn(&self, ip: IpAddr, lease: Option<&Seen>, turns: &BTreeMap<IpAddr, u32>) -> Option<Duration> {
        let delay = STAGGER * turns.get(&ip).copied().unwrap_or(0).min(MOST);
        match lease {
            Some(l) if *l.holder == *self.me.as_str() => Some(Duration::ZERO),
            Some(l) if !l.holder.is_empty() => self.silent_at(&l.holder).map(|at| at + delay),
            _ => self.free.get(&ip).map(|since| *since + delay),
        }
    }
}
