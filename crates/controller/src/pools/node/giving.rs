//! What a node gives: it lends addresses of its blocks, lets empty blocks go, gives borrowed addresses back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use types::Cidr;

use super::super::remove;
use super::Pass;

/// An empty block that nobody needs is kept for so long: the next pods need it again.
const EMPTY: Duration = Duration::from_secs(60);
/// A borrowed address that nobody needs is kept for so long.
const IDLE: Duration = Duration::from_secs(10);

impl Pass<'_> {
    /// What others ask of our blocks: an address is lent once the plugin no longer gives it and nobody has it.
    pub(super) fn requests(&mut self) {
        let waiting = |pool: &str| -> usize {
            self.local.wants.iter().filter(|w| w.pools.iter().any(|p| **p == *pool)).map(|w| w.waiting).sum()
        };
        let needs: BTreeMap<&str, usize> = self.open.iter().map(|p| (*p, waiting(p))).collect();
        for (name, b) in self.own() {
            if b.requests.is_empty() && !b.full {
                continue;
            }
            let lendable = |this: &Self, a: IpAddr| {
                !this.local.used.contains(&a)
                    && !this.is_reserved(a)
                    && !b.lent.iter().any(|l| l.address == a)
                    // The block's first address is the way to the block for other nodes.
                    && (a.is_ipv6() || a != b.cidr.addr())
            };
            let addresses = || (0..b.cidr.size()).rev().filter_map(|i| b.cidr.nth(i));
            let free: Vec<IpAddr> = addresses().filter(|a| lendable(self, *a)).collect();
            let closed = b.terminating || !self.pools.get(&*b.pool).is_some_and(|p| p.open());
            // Own pods that wait come first, and have what is not lent.
            let own = needs.get(&*b.pool).copied().unwrap_or(0);
            let others = self.free_in(&b.pool, own + free.len()).saturating_sub(free.len());
            let mut left = if closed { 0 } else { free.len().saturating_sub(own.saturating_sub(others)) };
            if b.requests.is_empty() {
                if left > 0 {
                    self.edit(name, b, "there are free addresses again".into()).full = false;
                }
                continue;
            }
            let mut lent = b.lent.to_vec();
            let mut keep = Vec::new();
            let (mut full, mut why) = (b.full, Vec::new());
            let mut chosen: BTreeSet<IpAddr> = BTreeSet::new();
            for r in &*b.requests {
                if !self.snapshot.nodes.contains_key(&r.node) || r.node == *self.local.node {
                    why.push(format!("{} is no Node any more", r.node));
                    continue;
                }
                let fenced = |a: &IpAddr| !self.local.offered.gives(*a);
                let pick = match r.address {
                    Some(a) => free.contains(&a).then_some(a),
                    None => {
                        let mut rest = free.iter().filter(|a| !chosen.contains(a));
                        rest.clone().find(|a| fenced(a)).or_else(|| rest.next()).copied()
                    }
                };
                let Some(a) = pick.filter(|_| left > 0) else {
                    full |= r.address.is_none();
                    why.push(format!("nothing for {}", r.node));
                    continue;
                };
                left -= 1;
                chosen.insert(a);
                if fenced(&a) {
                    why.push(format!("lends {a} to {}", r.node));
                    lent.push(resolve::pools::Lent { address: a, node: r.node.clone() });
                } else {
                    keep.push(r.clone());
                }
            }
            // Not given from now on, whether it is lent already or about to be.
            self.out.offer.except.extend(chosen.iter().map(|a| Cidr::host(*a)));
            if lent.len() != b.lent.len() || keep.len() != b.requests.len() {
                let edit = self.edit(name, b, why.join(", "));
                (edit.lent, edit.requests, edit.full) = (lent.into(), keep.into(), full);
            }
        }
    }

    /// Since when a range is of no use, remembered as long as it is.
    fn idle_since(&mut self, range: Cidr) -> Duration {
        let since = self.keeper.idle.get(&range).copied().unwrap_or(self.now);
        self.idle.insert(range, since);
        since
    }

    /// Whether every want of a pool is met without `less` addresses of it.
    fn spared(&self, pool: &str, less: usize, spare: bool) -> bool {
        self.local.wants.iter().filter(|w| w.pools.iter().any(|p| **p == *pool)).all(|w| {
            let target = w.waiting + if spare { w.spare } else { 0 };
            let free: usize = w.pools.iter().map(|p| self.free_in(p, target.saturating_add(less))).sum();
            free >= target.saturating_add(less) || (target == 0 && w.fixed.is_none())
        })
    }

    /// Whether a pod waits for an address of this range.
    fn awaited(&self, range: Cidr) -> bool {
        self.local.wants.iter().any(|w| w.fixed.is_some_and(|a| range.contains(a)))
    }

    /// Empty blocks go: at once when their pool gives nothing new, else when they have been of no use for a while.
    pub(super) fn release(&mut self) {
        for (name, b) in self.own() {
            let named = b.cidr.size() == 1 && self.outside.contains(&b.cidr.addr());
            if named || !b.lent.is_empty() || self.local.used.iter().any(|a| b.cidr.contains(*a)) {
                continue;
            }
            let open = self.open.contains(&*b.pool) && !b.terminating;
            let size = usize::try_from(b.cidr.size()).unwrap_or(usize::MAX);
            if open && (self.awaited(b.cidr) || !self.spared(&b.pool, if b.protected { size } else { 0 }, true)) {
                continue;
            }
            let since = self.idle_since(b.cidr);
            if open && b.protected && self.now.saturating_sub(since) < EMPTY {
                self.wake(since + EMPTY);
                continue;
            }
            if let Some(r) = self.out.offer.ranges.get_mut(&b.pool) {
                r.remove(&b.cidr);
            }
            // A block that others ask for is lent from first.
            let changed = self.edits.contains_key(name);
            if !self.local.offered.touches(b.cidr) && !changed {
                let why = if open { "empty and not needed" } else { "empty, and its pool gives no new addresses here" };
                self.out.writes.extend(remove(name, b, why));
            }
        }
    }

    /// A block that was on its way out and is needed after all.
    pub(super) fn protect(&mut self) {
        let going: BTreeSet<String> = self.out.writes.iter().map(|w| w.name.name.to_string()).collect();
        for (name, b) in self.own() {
            if !b.protected && !b.terminating && !going.contains(name) {
                self.edit(name, b, "it is needed after all".into()).protected = true;
            }
        }
    }

    /// Borrowed addresses that no pod has or waits for go back.
    pub(super) fn give_back(&mut self) {
        for (name, b, a) in self.borrowed() {
            if self.local.used.contains(&a) {
                continue;
            }
            let range = Cidr::host(a);
            let open = self.open.contains(&*b.pool) && !b.terminating && !self.is_reserved(a);
            if open && (self.awaited(range) || !self.spared(&b.pool, 1, false)) {
                continue;
            }
            let since = self.idle_since(range);
            if open && self.now.saturating_sub(since) < IDLE {
                self.wake(since + IDLE);
                continue;
            }
            if let Some(r) = self.out.offer.ranges.get_mut(&b.pool) {
                r.remove(&range);
            }
            if !self.local.offered.gives(a) {
                let edit = self.edit(name, b, format!("{} gives {a} back", self.local.node));
                edit.lent = edit.lent.iter().filter(|l| l.address != a).cloned().collect();
            }
        }
    }
}
