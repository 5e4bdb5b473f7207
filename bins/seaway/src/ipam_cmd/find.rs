//! What does not agree: a pure comparison of what was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{Key, Record, Report};
use kernel_api::rt::Route;
use resolve::ClusterSnapshot;
use serde::Serialize;
use types::{Cidr, NodeName, OwnedName};

/// Everything that was looked at, the kernel before the records: see [`crate::agent`]'s pass.
pub struct Seen {
    /// Pod interfaces of ours.
    pub links: BTreeSet<OwnedName>,
    /// Host routes of ours that lead to them.
    pub routes: Vec<(Route, OwnedName)>,
    /// The journal.
    pub report: Report,
    /// Records whose namespaces are gone.
    pub gone: BTreeSet<Key>,
    /// What the plugin may give out.
    pub pools: Option<ipam::Pools>,
    /// The API, and this node's name in it.
    pub cluster: Option<(ClusterSnapshot, NodeName)>,
}

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Between what.
    pub between: &'static str,
    /// For a person.
    pub what: String,
    /// How it is mended.
    #[serde(skip)]
    pub mend: Mend,
}

/// How a disagreement is mended.
#[derive(Debug, Clone, PartialEq)]
pub enum Mend {
    /// The journal is written anew without its damaged lines.
    Journal,
    /// The attachment is undone.
    Release(Key),
    /// Interface and routes are made again.
    Rewire(Key),
    /// The interface goes.
    Link(OwnedName),
    /// The route goes.
    Route(Route),
    /// What the agent does about pools, done here when no agent runs.
    Pools,
    /// Not by us: what a person can do.
    Person(&'static str),
}

fn pod_of(r: &Record) -> String {
    r.pod.as_ref().map_or_else(|| r.key.to_string(), |p| format!("pod {}/{}", p.namespace, p.name))
}

/// Compares.
pub fn find(seen: &Seen) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut put = |between, what: String, mend| out.push(Finding { between, what, mend });
    for f in &seen.report.faults {
        put("journal", format!("line {}, byte {}: {}", f.line, f.offset, f.why), Mend::Journal);
    }
    let records = &seen.report.intact;
    let alive: Vec<&Record> = records.iter().filter(|r| !seen.gone.contains(&r.key)).collect();
    for r in records.iter().filter(|r| seen.gone.contains(&r.key)) {
        let what = format!("{} has {} and its namespace {} is gone", pod_of(r), list(&r.addresses), r.netns);
        put("journal and kernel", what, Mend::Release(r.key.clone()));
    }
    for r in alive.iter().filter(|r| r.is_routed()) {
        if !seen.links.contains(&r.link) {
            put(
                "journal and kernel",
                format!("interface {} of {} is missing", r.link, pod_of(r)),
                Mend::Rewire(r.key.clone()),
            );
            continue;
        }
        for a in &r.addresses {
            if !seen.routes.iter().any(|(route, link)| *link == r.link && route.dst == Cidr::host(*a)) {
                let what = format!("{a} of {} has no route to {}", pod_of(r), r.link);
                put("journal and kernel", what, Mend::Rewire(r.key.clone()));
            }
        }
    }
    strays(seen, records, &mut put);
    if let Some((s, node)) = &seen.cluster {
        cluster(seen, s, node, &alive, &mut put);
    }
    out
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Interfaces and routes that no record tells of.
fn strays(seen: &Seen, records: &[Record], put: &mut impl FnMut(&'static str, String, Mend)) {
    let known: BTreeMap<&OwnedName, &Record> = records.iter().map(|r| (&r.link, r)).collect();
    // An address of a pod that lives says that the record is what is missing.
    let living: BTreeMap<IpAddr, String> = seen
        .cluster
        .iter()
        .flat_map(|(s, node)| s.pods.iter().filter(move |(_, p)| p.node.as_ref() == Some(node) && !p.phase.ended()))
        .flat_map(|(name, p)| p.ips.iter().map(move |ip| (*ip, name.to_string())))
        .collect();
    for link in seen.links.iter().filter(|l| !known.contains_key(l)) {
        let to: Vec<IpAddr> = seen.routes.iter().filter(|(_, l)| l == link).map(|(r, _)| r.dst.addr()).collect();
        match to.iter().find_map(|a| living.get(a).map(|p| (a, p))) {
            Some((a, pod)) => put(
                "journal and pods",
                format!("pod {pod} has {a} on {link}, and the journal has no record of it"),
                Mend::Person("delete the pod, so that it is made anew"),
            ),
            None => {
                put("journal and kernel", format!("interface {link} belongs to no record"), Mend::Link(link.clone()))
            }
        }
    }
    for (route, link) in &seen.routes {
        let Some(r) = known.get(link) else { continue };
        if r.is_routed() && !r.addresses.iter().any(|a| route.dst == Cidr::host(*a)) {
            put(
                "journal and kernel",
                format!("a route leads {} to {link} of {}, which does not have it", route.dst, pod_of(r)),
                Mend::Route(route.clone()),
            );
        }
    }
}

/// The API against this node.
fn cluster(
    seen: &Seen,
    s: &ClusterSnapshot,
    node: &NodeName,
    alive: &[&Record],
    put: &mut impl FnMut(&'static str, String, Mend),
) {
    let mut mine: Vec<Cidr> = s.blocks.values().flat_map(|b| b.ranges_of(node)).collect();
    mine.extend(s.nodes.get(node).iter().flat_map(|n| n.pod_cidrs.iter().copied()));
    let holder = |a: IpAddr| {
        let blocks = s.blocks.iter().filter(|(_, b)| b.cidr.contains(a));
        blocks.map(|(name, b)| (name, b.node.as_ref().map_or("nobody".into(), |n| format!("Node {n}")))).next()
    };
    for r in alive {
        for a in r.addresses.iter().filter(|a| !mine.iter().any(|c| c.contains(**a))) {
            let pool = s.pools.iter().find(|(_, p)| p.cidr.contains(*a));
            let (what, mend) = match (holder(*a), pool) {
                (Some((block, owner)), _) => {
                    (format!("IPBlock {block} is of {owner}, and {a} is not lent to this node"), Mend::Pools)
                }
                (None, Some((pool, _))) => (format!("no IPBlock of IPPool {pool} holds {a}"), Mend::Pools),
                // An address that a pod named itself, or one of another plugin's.
                (None, None) => continue,
            };
            put("journal and API", format!("{} has {a}: {what}", pod_of(r)), mend);
        }
    }
    if let Some(pools) = &seen.pools {
        for range in pools.pools.values().flat_map(|p| &p.ranges) {
            let except = |c: &Cidr| pools.except.iter().any(|e| e.contains_cidr(c));
            if !mine.iter().any(|c| c.contains_cidr(range)) && !except(range) {
                let what = format!("the plugin may give out {range}, which the API does not give this node");
                put("pools.json and API", what, Mend::Pools);
            }
        }
        for (block, lent) in
            s.blocks.values().filter(|b| b.node.as_ref() == Some(node)).flat_map(|b| b.lent.iter().map(move |l| (b, l)))
        {
            let given = pools.pools.values().flat_map(|p| &p.ranges).any(|c| c.contains(lent.address));
            if given && !pools.except.iter().any(|e| e.contains(lent.address)) {
                let what = format!(
                    "{} of {} is lent to Node {}, and the plugin may give it out",
                    lent.address, block.cidr, lent.node
                );
                put("pools.json and API", what, Mend::Pools);
            }
            if let Some(r) = alive.iter().find(|r| r.addresses.contains(&lent.address)) {
                let what = format!("{} has {}, which is lent to Node {}", pod_of(r), lent.address, lent.node);
                put("journal and API", what, Mend::Person("delete one of the two pods"));
            }
        }
    }
    for (i, (name, b)) in s.blocks.iter().enumerate() {
        if let Some((other, _)) = s.blocks.iter().skip(i + 1).find(|(_, o)| o.cidr.overlaps(&b.cidr)) {
            let what = format!("IPBlocks {name} and {other} overlap");
            put("API", what, Mend::Person("delete the one that is empty; its node then claims another"));
        }
    }
    let of: BTreeMap<(&str, &str), &Record> =
        alive.iter().filter_map(|r| r.pod.as_ref().map(|p| ((&*p.namespace, &*p.name), *r))).collect();
    for (name, pod) in
        s.pods.iter().filter(|(_, p)| p.node.as_ref() == Some(node) && !p.host_network && !p.phase.ended())
    {
        let record = of.get(&(&*name.namespace, &*name.name));
        for ip in &*pod.ips {
            match record {
                Some(r) if r.addresses.contains(ip) => {}
                Some(r) => put(
                    "pods and journal",
                    format!("pod {name} reports {ip}, its record has {}", list(&r.addresses)),
                    Mend::Person("its runtime reports it: wait, or delete the pod"),
                ),
                None if mine.iter().any(|c| c.contains(*ip)) => put(
                    "pods and journal",
                    format!("pod {name} reports {ip}, and no record tells of it"),
                    Mend::Person("delete the pod, so that it is made anew"),
                ),
                None => {}
            }
        }
    }
}
