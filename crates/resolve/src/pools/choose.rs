//! Which pools a pod's addresses come from: its annotation beats its namespace's, that the cluster's settings, those
//! all pools that fit.

use std::collections::BTreeMap;
use std::net::IpAddr;

use intent::Wiring;
use types::{Cidr, Family, NodeName};

use super::{IpPool, Notes};
use crate::labels::Labels;
use crate::snapshot::ClusterSnapshot;

/// Where a pod's addresses come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Choice {
    /// IPv4 pools, tried in this order; none: no IPv4 address.
    pub v4: Vec<Box<str>>,
    /// IPv6 pools.
    pub v6: Vec<Box<str>>,
    /// Addresses that it must be, each out of a pool of its family's list.
    pub fixed: Vec<IpAddr>,
    /// Addresses that it must be, out of no pool.
    pub outside: Vec<IpAddr>,
}

impl Choice {
    /// The pools of a family.
    #[must_use]
    pub fn pools(&self, family: Family) -> &[Box<str>] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn pools_mut(&mut self, family: Family) -> &mut Vec<Box<str>> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// The pools that count: of two that overlap, the one that has blocks, then the older, then the first by name has the
/// range, so that a newcomer's mistake breaks nothing. The others, with whose range they touch.
#[must_use]
pub fn sound(snapshot: &ClusterSnapshot) -> (BTreeMap<&str, &IpPool>, BTreeMap<&str, &str>) {
    let mut by_age: Vec<(&Box<str>, &IpPool)> = snapshot.pools.iter().collect();
    by_age.sort_by_key(|(name, p)| (!p.adopted, &p.created, *name));
    let mut good: BTreeMap<&str, &IpPool> = BTreeMap::new();
    let mut bad = BTreeMap::new();
    for (name, pool) in by_age {
        match good.iter().find(|(_, g)| g.cidr.overlaps(&pool.cidr)) {
            Some((other, _)) => {
                bad.insert(&**name, *other);
            }
            None => {
                good.insert(name, pool);
            }
        }
    }
    (good, bad)
}

/// Whether a node may claim blocks of a pool, and give new addresses out of it.
#[must_use]
pub fn eligible(pool: &IpPool, labels: &Labels) -> bool {
    pool.open() && pool.node_selector.matches(labels)
}

fn labels_of<'a>(snapshot: &'a ClusterSnapshot, node: &NodeName, none: &'a Labels) -> &'a Labels {
    snapshot.nodes.get(node).map_or(none, |n| &n.labels)
}

/// Where pods of a namespace that ask for nothing, and are wired so, get their addresses on this node. `None`: of no
/// namespace, as a container that no pod stands for.
#[must_use]
pub fn default_choice(snapshot: &ClusterSnapshot, node: &NodeName, namespace: Option<&str>, wiring: &Wiring) -> Choice {
    let none = Labels::default();
    let labels = labels_of(snapshot, node, &none);
    let (good, _) = sound(snapshot);
    let ns = namespace.and_then(|n| snapshot.namespaces.get(n));
    let mut out = Choice::default();
    for family in Family::BOTH {
        let here =
            |p: &IpPool| p.cidr.family() == family && p.underlay.is_some() == wiring.on_wire() && eligible(p, labels);
        let named = ns.and_then(|n| n.notes.as_deref()).and_then(|n| n.pools(family));
        let configured: Vec<Box<str>> = snapshot.settings.ip_pools.clone();
        let list = out.pools_mut(family);
        if let Some(named) = named {
            list.extend(named.iter().filter_map(|n| find(&good, n)).filter(|(_, p)| here(p)).map(|(n, _)| n.into()));
            continue;
        }
        let of_config: Vec<_> = configured.iter().filter_map(|n| find(&good, n)).filter(|(_, p)| here(p)).collect();
        let mut fits: Vec<(&str, &IpPool)> = if of_config.is_empty() {
            good.iter().map(|(n, p)| (*n, *p)).filter(|(_, p)| p.automatic && here(p)).collect()
        } else {
            of_config
        };
        fits.retain(|(_, p)| match ns {
            Some(ns) => p.namespace_selector.matches(&ns.labels),
            None => p.namespace_selector.is_empty(),
        });
        // A pool for chosen namespaces is meant for them: it comes before those for all.
        fits.sort_by_key(|(_, p)| p.namespace_selector.is_empty());
        list.extend(fits.into_iter().map(|(n, _)| Box::from(n)));
    }
    out
}

/// The name of the pool that is asked for in a family, or why it cannot be used.
type WhyNot<'a> = dyn Fn(&str, Family) -> Result<Box<str>, String> + 'a;

/// A pool by its name or range.
fn find<'a>(pools: &BTreeMap<&'a str, &'a IpPool>, asked: &str) -> Option<(&'a str, &'a IpPool)> {
    if let Some((n, p)) = pools.get_key_value(asked) {
        return Some((n, p));
    }
    let cidr: Cidr = asked.parse().ok()?;
    pools.iter().find(|(_, p)| p.cidr == cidr).map(|(n, p)| (*n, *p))
}

/// Where the addresses of a pod that is wired so come from on this node.
///
/// # Errors
/// Which annotation of the pod cannot be honoured, and why: the pod gets no address then.
pub fn choose(
    snapshot: &ClusterSnapshot,
    node: &NodeName,
    namespace: &str,
    notes: &Notes,
    wiring: &Wiring,
) -> Result<Choice, Vec<(Box<str>, String)>> {
    let mut wrong: Vec<(Box<str>, String)> = notes.wrong.iter().map(|(k, w)| (k.clone(), w.to_string())).collect();
    let ns = snapshot.namespaces.get(namespace);
    let of_ns = ns.and_then(|n| n.notes.as_deref());
    let mut out = default_choice(snapshot, node, Some(namespace), wiring);
    let none = Labels::default();
    let labels = labels_of(snapshot, node, &none);
    let (good, bad) = sound(snapshot);
    let why_not = |asked: &str, family: Family| -> Result<Box<str>, String> {
        let Some((name, pool)) = find(&good, asked) else {
            return Err(match bad.get(asked) {
                Some(other) => format!("IPPool {asked} overlaps IPPool {other}, which has the range: mend the pools"),
                None => format!("there is no IPPool of name or range {asked:?}"),
            });
        };
        if pool.cidr.family() != family {
            return Err(format!("IPPool {name} is {}, and {family} is asked for", pool.cidr.family()));
        }
        match (&pool.underlay, wiring.on_wire()) {
            (Some(u), false) => {
                return Err(format!(
                    "IPPool {name} is of the network {} outside (spec.underlay), and mode {} needs a pool that nodes lead \
                     to: choose another pool, or mode macvlan or ipvlan",
                    u.subnet,
                    wiring.mode.as_str()
                ));
            }
            (None, true) => {
                return Err(format!(
                    "a pod in mode {} is a station of its parent's network, and IPPool {name} is of none: set its \
                     spec.underlay, or choose another mode",
                    wiring.mode.as_str()
                ));
            }
            _ => {}
        }
        if !pool.open() {
            let why = if pool.terminating { "being deleted" } else { "disabled" };
            return Err(format!("IPPool {name} is {why}: it gives no new addresses"));
        }
        if !pool.node_selector.matches(labels) {
            return Err(format!("IPPool {name} does not select Node {node}: schedule the pod elsewhere"));
        }
        if !ns.map_or(pool.namespace_selector.is_empty(), |n| pool.namespace_selector.matches(&n.labels)) {
            return Err(format!("IPPool {name} does not select Namespace {namespace}"));
        }
        Ok(name.into())
    };
    for (family, key) in [(Family::V4, "seaway.io/ipv4pools"), (Family::V6, "seaway.io/ipv6pools")] {
        let (asked, object) = match (notes.pools(family), of_ns.and_then(|n| n.pools(family))) {
            (Some(p), _) => (p, String::new()),
            (None, Some(n)) => (n, format!("Namespace {namespace}: ")),
            (None, None) => continue,
        };
        let (fit, unfit): (Vec<_>, Vec<_>) = asked.iter().map(|a| why_not(a, family)).partition(Result::is_ok);
        *out.pools_mut(family) = fit.into_iter().flatten().collect();
        // The others are a choice that is left; without any, the pod cannot be what it asks to be.
        if out.pools(family).is_empty() {
            let why: Vec<String> = unfit.into_iter().filter_map(Result::err).collect();
            wrong.push((key.into(), format!("{object}{}", why.join("; "))));
        }
    }
    fixed(snapshot, notes, &good, &mut out, &why_not, &mut wrong);
    outside_allowed(snapshot, notes, &mut wrong);
    for a in &notes.outside {
        if let Some((name, _)) = good.iter().find(|(_, p)| p.cidr.contains(*a)) {
            wrong.push((OUTSIDE.into(), format!("{a} lies in IPPool {name}: ask for it with seaway.io/ip-addrs")));
            continue;
        }
        if !snapshot.settings.outside_addresses {
            continue;
        }
        if wiring.on_wire() {
            let why = format!(
                "{a} is of no pool, so nothing says of which network it is, as mode {} needs: make an IPPool with \
                 spec.underlay, or use an ipam of the mode's options",
                wiring.mode.as_str()
            );
            wrong.push((OUTSIDE.into(), why));
            continue;
        }
        // It is given once the API says that it is this node's, so that no two nodes have it.
        let block = snapshot.blocks.values().find(|b| b.cidr.contains(*a));
        let why = match block.map(|b| b.node.as_ref()) {
            Some(Some(owner)) if owner == node => continue,
            Some(Some(owner)) => format!("{a} is in use on Node {owner}"),
            _ => format!("{a} is being taken for Node {node}: the pod is attached as soon as it is"),
        };
        wrong.push((OUTSIDE.into(), why));
    }
    out.outside = notes.outside.to_vec();
    if !out.outside.is_empty() {
        // Such a pod has what it names and nothing else.
        (out.v4, out.v6) = (Vec::new(), Vec::new());
    }
    if wrong.is_empty() { Ok(out) } else { Err(wrong) }
}

/// The annotation for addresses of no pool.
pub const OUTSIDE: &str = "seaway.io/ip-addrs-no-ipam";

/// Complains of addresses of no pool unless the cluster's settings allow them.
pub(crate) fn outside_allowed(snapshot: &ClusterSnapshot, notes: &Notes, wrong: &mut Vec<(Box<str>, String)>) {
    if let (Some(first), false) = (notes.outside.first(), snapshot.settings.outside_addresses) {
        wrong.push((
            OUTSIDE.into(),
            format!("{first} is of no pool, and such addresses are not allowed: set addressesOutsideIPAM: \"true\" in ConfigMap kube-system/seaway"),
        ));
    }
}

/// Addresses that a pod must have: each narrows its family's list to the pool that it lies in.
fn fixed(
    snapshot: &ClusterSnapshot,
    notes: &Notes,
    good: &BTreeMap<&str, &IpPool>,
    out: &mut Choice,
    why_not: &WhyNot<'_>,
    wrong: &mut Vec<(Box<str>, String)>,
) {
    for a in &notes.fixed {
        let family = Family::of(*a);
        let mut bad = |why: String| wrong.push(("seaway.io/ip-addrs".into(), why));
        let Some((name, _)) = good.iter().find(|(_, p)| p.cidr.contains(*a)) else {
            bad(format!("{a} lies in no IPPool: choose an address of one"));
            continue;
        };
        if notes.pools(family).is_some() && !out.pools(family).iter().any(|n| **n == **name) {
            bad(format!("{a} lies in IPPool {name}, which is none of the pools that the pod asks for"));
            continue;
        }
        if good.get(name).and_then(|p| p.underlay).is_some_and(|u| u.withheld().any(|c| c.contains(*a))) {
            bad(format!("{a} is the router's of IPPool {name}'s network, or names the network itself"));
            continue;
        }
        if let Some((r, _)) = snapshot.reservations.iter().find(|(_, r)| r.cidrs.iter().any(|c| c.contains(*a))) {
            bad(format!("{a} is reserved by IPReservation {r}"));
            continue;
        }
        match why_not(name, family) {
            Ok(name) => *out.pools_mut(family) = vec![name],
            Err(why) => bad(why),
        }
    }
    out.fixed = notes.fixed.to_vec();
}
