//! What each pool may give, and the lowest of it that is free.

use std::collections::BTreeMap;
use std::net::IpAddr;

use resolve::load_balancer::LoadBalancerPool;
use resolve::{ClusterSnapshot, Kind};
use types::{AddressRange, Cidr, Family, ObjectName};

use crate::Outcome;
use crate::pools::problem_of;

/// A pool and those of its addresses that are its own.
pub(crate) struct Space<'a> {
    pub(crate) name: &'a str,
    pub(crate) pool: &'a LoadBalancerPool,
    ranges: Vec<AddressRange>,
    /// Where to look on, by family; nothing before it is free.
    next: BTreeMap<Family, IpAddr>,
    /// What is wrong with it.
    pub(crate) message: String,
}

impl Space<'_> {
    /// Whether an address is its own to give.
    pub(crate) fn gives(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(ip))
    }

    /// How many addresses it may give.
    pub(crate) fn size(&self) -> u128 {
        self.ranges.iter().fold(0, |n, r| n.saturating_add(r.size()))
    }

    /// Whether it has any of a family.
    pub(crate) fn has(&self, family: Family) -> bool {
        self.ranges.iter().any(|r| r.family() == family)
    }

    /// The lowest address that is free. Addresses that are not free must stay so until the end of the pass.
    pub(crate) fn lowest(&mut self, family: Family, free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let from = self.next.get(&family).copied();
        let buggy = |ip: IpAddr| match ip {
            IpAddr::V4(a) => self.pool.avoid_buggy && matches!(a.octets()[3], 0 | 255),
            IpAddr::V6(_) => false,
        };
        for r in self.ranges.iter().filter(|r| r.family() == family) {
            let mut at = match from {
                Some(f) if f > r.last() => continue,
                Some(f) if r.contains(f) => Some(f),
                _ => Some(r.first()),
            };
            while let Some(ip) = at {
                if !buggy(ip) && free(ip) {
                    self.next.insert(family, ip);
                    return Some(ip);
                }
                at = r.after(ip);
            }
        }
        if let Some(last) = self.ranges.iter().rfind(|r| r.family() == family) {
            self.next.insert(family, last.last());
        }
        None
    }
}

/// The pools, the older first, each without what an older one has, and without what pods and nodes have.
pub(crate) fn spaces<'a>(snapshot: &'a ClusterSnapshot, out: &mut Outcome) -> Vec<Space<'a>> {
    let mut pools: Vec<_> = snapshot.load_balancer_pools.iter().collect();
    pools.sort_by_key(|(name, p)| (&p.created, *name));
    let pod_ranges: Vec<Cidr> = snapshot
        .settings
        .cluster_cidrs
        .iter()
        .copied()
        .chain(snapshot.nodes.values().flat_map(|n| n.pod_cidrs.iter().copied()))
        .collect();
    let mut spaces: Vec<Space<'a>> = Vec::with_capacity(pools.len());
    for (name, pool) in pools {
        let mut ranges = pool.ranges.to_vec();
        let mut messages: Vec<String> = Vec::new();
        let mut take = |others: &[AddressRange], why: &dyn Fn(&AddressRange) -> String| {
            for o in others {
                if ranges.iter().any(|r| r.overlaps(o)) {
                    messages.push(why(o));
                    ranges = ranges.iter().flat_map(|r| r.without(o)).collect();
                }
            }
        };
        for older in &spaces {
            take(&older.pool.ranges, &|o| {
                format!(
                    "{o} is also in LoadBalancerPool {}, which is older and has it: remove it from one of them",
                    older.name
                )
            });
        }
        for c in &pod_ranges {
            take(&[(*c).into()], &|_| format!("addresses of the pod range {c} are not given: remove them here"));
        }
        messages.dedup();
        let message = messages.join("; ");
        if !message.is_empty() {
            let about = ObjectName::new("", name);
            out.problems.push(problem_of(Kind::LoadBalancerPool, &about, "spec.addresses", message.clone()));
        }
        spaces.push(Space { name, pool, ranges, next: BTreeMap::new(), message });
    }
    spaces
}
