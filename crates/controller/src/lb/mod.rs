//! Addresses of LoadBalancerPools for Services of type LoadBalancer.
//!
//! What a Service has it keeps while that is right: pools that shrink, close or select others take nothing away. New
//! addresses are the lowest that are free, for older Services first, so equal snapshots give equal results whatever
//! the order of events was. What was decided and not yet seen in the snapshot is remembered, so that a watch that lags
//! gives no address twice.

mod assign;
mod space;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use resolve::load_balancer::Ask;
use resolve::{ClusterSnapshot, Kind, Service, ServiceType};
use types::{Family, FamilySet, ObjectName};

use crate::Outcome;
use assign::Table;

/// An address and the pool it came from; no pool: somebody else gave it.
pub(crate) type Given = (IpAddr, Box<str>);

/// What was decided and not yet seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory(BTreeMap<ObjectName, (Arc<str>, Vec<Given>)>);

/// Why a Service lacks an address: the reason of its condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// No pool names, or may give, such an address.
    NoPool,
    /// Every pool that fits is used up.
    PoolExhausted,
    /// Another Service or a node has it.
    AddressInUse,
    /// What it asks for cannot be.
    Invalid,
}

impl Lack {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NoPool => "NoPool",
            Self::PoolExhausted => "PoolExhausted",
            Self::AddressInUse => "AddressInUse",
            Self::Invalid => "InvalidRequest",
        }
    }
}

/// A Service that is ours to serve.
pub(crate) struct Client<'a> {
    pub(crate) name: &'a ObjectName,
    pub(crate) svc: &'a Service,
    pub(crate) ask: &'a Ask,
    /// What it has.
    pub(crate) had: Vec<Given>,
}

impl Client<'_> {
    /// The families it is to have addresses of, the first first.
    pub(crate) fn families(&self) -> Vec<Family> {
        if self.svc.families.is_empty() {
            let of: FamilySet = self.svc.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
            return of.iter().collect();
        }
        self.svc.families.to_vec()
    }
}

/// Gives addresses, takes back those of Services that no longer ask, and says so in their status and the pools'. `now`
/// is the time as the API writes it.
pub(crate) fn reconcile(snapshot: &ClusterSnapshot, memory: &mut Memory, now: &str, out: &mut Outcome) {
    let ours = |s: &Service| s.balancer.as_ref().is_some_and(|a| !a.given_from.is_empty());
    if snapshot.load_balancer_pools.is_empty() && memory.0.is_empty() && !snapshot.services.values().any(|s| ours(s)) {
        return;
    }
    let mut clients = Vec::new();
    for (name, svc) in &snapshot.services {
        let Some(ask) = svc.balancer.as_deref() else { continue };
        if wanted(snapshot, svc, ask) {
            clients.push(Client { name, svc, ask, had: had(name, svc, ask, memory) });
        } else if !ask.given_from.is_empty() && !ask.terminating {
            out.writes.extend(write::cleared(name, ask));
        }
    }
    let names: BTreeSet<&ObjectName> = clients.iter().map(|c| c.name).collect();
    memory.0.retain(|n, _| names.contains(n));
    // Of two that want the same, the older has it.
    clients.sort_by_key(|c| (&c.svc.created, c.name));
    let mut table = Table::new(snapshot, out);
    let results = table.assign(&clients, out);
    for (c, r) in clients.iter().zip(&results) {
        let Some(r) = r else {
            memory.0.remove(c.name);
            continue;
        };
        if is_so(c, &r.given) {
            memory.0.remove(c.name);
        } else {
            memory.0.insert(c.name.clone(), (c.svc.uid.clone(), r.given.clone()));
        }
        out.writes.extend(write::given(c, r, now));
        for (field, _, why) in &r.lacks {
            out.problems.push(crate::pools::problem_of(Kind::Service, c.name, field, why.clone()));
        }
    }
    table.statuses(&clients, &results, out);
}

/// Whether a Service is to have addresses of our pools.
fn wanted(snapshot: &ClusterSnapshot, svc: &Service, ask: &Ask) -> bool {
    let class = match &ask.class {
        Some(c) => *c == snapshot.settings.load_balancer_class,
        None => snapshot.settings.load_balancer_default,
    };
    svc.kind == ServiceType::LoadBalancer && class && !ask.terminating
}

/// What a Service has: what was decided last, else what its status says.
fn had(name: &ObjectName, svc: &Service, ask: &Ask, memory: &Memory) -> Vec<Given> {
    match memory.0.get(name) {
        Some((uid, given)) if *uid == svc.uid => given.clone(),
        _ => seen(svc, ask),
    }
}

fn seen(svc: &Service, ask: &Ask) -> Vec<Given> {
    let from = ask.given_from.iter().cloned().chain(std::iter::repeat_with(Box::default));
    svc.ingress_ips.iter().copied().zip(from).collect()
}

/// Whether the snapshot shows that a Service has these.
fn is_so(c: &Client<'_>, given: &[Given]) -> bool {
    seen(c.svc, c.ask) == given && c.ask.given_from.len() == given.len()
}
