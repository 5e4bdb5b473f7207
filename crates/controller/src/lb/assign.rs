//! Who has which address: what is there first, then what is asked for by name, then the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use resolve::{ClusterSnapshot, TrafficPolicy, unusable_endpoint};
use types::{Family, PortKey};

use super::space::{Space, spaces};
use super::{Client, Given, Lack, write};
use crate::Outcome;

/// What became of a Service.
pub(crate) struct Assigned {
    /// Its addresses, in the order of its families.
    pub(crate) given: Vec<Given>,
    /// What it lacks: field, reason, and what to do.
    pub(crate) lacks: Vec<(String, Lack, String)>,
}

/// Who has what.
pub(crate) struct Table<'a> {
    snapshot: &'a ClusterSnapshot,
    spaces: Vec<Space<'a>>,
    /// Addresses of nodes and cluster IPs, and whose.
    foreign: BTreeMap<IpAddr, String>,
    /// By address, which of the clients.
    taken: BTreeMap<IpAddr, Vec<usize>>,
}

/// Whether two Services may have one address, and if not, why.
fn share(a: &Client<'_>, b: &Client<'_>) -> Result<(), &'static str> {
    if a.ask.sharing.is_empty() || a.ask.sharing != b.ask.sharing {
        return Err("they have no sharing key in common");
    }
    let admits =
        |x: &Client<'_>, y: &Client<'_>| x.ask.sharing_across.iter().any(|n| **n == *"*" || **n == *y.name.namespace);
    if a.name.namespace != b.name.namespace && !(admits(a, b) && admits(b, a)) {
        return Err("they are in different namespaces and do not both allow the other's");
    }
    let ports = |c: &Client<'_>| c.svc.ports.iter().map(|p| p.port).collect::<BTreeSet<PortKey>>();
    if !ports(a).is_disjoint(&ports(b)) {
        return Err("they have a port in common");
    }
    // A node that has local endpoints of one must have them of the other.
    match (a.svc.external_policy, b.svc.external_policy) {
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster) => Ok(()),
        (TrafficPolicy::Local, TrafficPolicy::Local)
            if a.name.namespace == b.name.namespace
                && a.svc.selector == b.svc.selector
                && !a.svc.selector.is_empty() =>
        {
            Ok(())
        }
        _ => Err("externalTrafficPolicy must be Cluster for both, or Local for both with the same selector"),
    }
}

impl<'a> Table<'a> {
    pub(crate) fn new(snapshot: &'a ClusterSnapshot, out: &mut Outcome) -> Self {
        let mut foreign = BTreeMap::new();
        for (name, n) in &snapshot.nodes {
            foreign.extend(n.addresses().map(|ip| (ip, format!("Node {name}"))));
        }
        for (name, s) in &snapshot.services {
            foreign.extend(s.cluster_ips.iter().map(|ip| (*ip, format!("Service {name}, as its clusterIP"))));
        }
        Self { snapshot, spaces: spaces(snapshot, out), foreign, taken: BTreeMap::new() }
    }

    /// Why a client cannot have an address beside those who have it; `None` when it can.
    fn hindered(&self, ip: IpAddr, who: usize, clients: &[Client<'_>]) -> Option<String> {
        if let Some(why) = unusable_endpoint(ip) {
            return Some(format!("{ip} is {why}"));
        }
        if let Some(other) = self.foreign.get(&ip) {
            return Some(format!("{ip} belongs to {other}"));
        }
        let me = clients.get(who)?;
        self.taken.get(&ip).into_iter().flatten().filter(|o| **o != who).find_map(|o| {
            let other = clients.get(*o)?;
            let why = share(me, other).err()?;
            Some(format!("{ip} is Service {}'s, and it cannot be shared: {why}", other.name))
        })
    }

    fn take(&mut self, ip: IpAddr, who: usize) {
        let list = self.taken.entry(ip).or_default();
        if !list.contains(&who) {
            list.push(who);
        }
    }

    /// The pool that an address which a Service has came from: the one it is noted for, else the one that names it.
    fn origin(&self, given: &Given) -> Option<&Space<'a>> {
        let by_name = self.spaces.iter().find(|s| !given.1.is_empty() && *s.name == *given.1);
        by_name.or_else(|| self.spaces.iter().find(|s| s.gives(given.0)))
    }

    /// Goes through all clients, the oldest first. `None` for one whose addresses are somebody else's business.
    pub(crate) fn assign(&mut self, clients: &[Client<'_>], out: &mut Outcome) -> Vec<Option<Assigned>> {
        let mut kept: Vec<BTreeMap<Family, Given>> = Vec::with_capacity(clients.len());
        let mut results: Vec<Option<Assigned>> = Vec::with_capacity(clients.len());
        for (who, c) in clients.iter().enumerate() {
            let strange = c.had.iter().find(|g| g.1.is_empty() && self.origin(g).is_none());
            if c.ask.foreign || strange.is_some() {
                out.problems.push(write::strange(c, strange.map(|g| g.0)));
                kept.push(BTreeMap::new());
                results.push(None);
                continue;
            }
            kept.push(self.keep(who, clients));
            results.push(Some(Assigned { given: Vec::new(), lacks: Vec::new() }));
        }
        // Those that name addresses come before those that take any.
        for (who, c) in clients.iter().enumerate() {
            let (Some(Some(r)), Some(have)) = (results.get_mut(who), kept.get_mut(who)) else { continue };
            for ip in &c.ask.wanted {
                self.by_address(*ip, who, clients, have, r);
            }
        }
        for (who, c) in clients.iter().enumerate() {
            let (Some(Some(r)), Some(have)) = (results.get_mut(who), kept.get_mut(who)) else { continue };
            for family in c.families() {
                let named = c.ask.wanted.iter().any(|ip| Family::of(*ip) == family);
                if !named {
                    self.any(family, who, clients, have, r);
                }
                r.given.extend(have.get(&family).cloned());
            }
        }
        results
    }

    /// What a client has and may keep.
    fn keep(&mut self, who: usize, clients: &[Client<'_>]) -> BTreeMap<Family, Given> {
        let mut kept: BTreeMap<Family, Given> = BTreeMap::new();
        let Some(c) = clients.get(who) else { return kept };
        let families = c.families();
        for g in &c.had {
            let family = Family::of(g.0);
            let pool = self.origin(g).filter(|s| !s.pool.terminating).map(|s| Box::<str>::from(s.name));
            let Some(pool) = pool.filter(|_| families.contains(&family) && !kept.contains_key(&family)) else {
                continue;
            };
            if self.hindered(g.0, who, clients).is_none() {
                self.take(g.0, who);
                kept.insert(family, (g.0, pool));
            }
        }
        kept
    }

    /// Gives an address that was asked for. When it cannot be had, what is there stays.
    fn by_address(
        &mut self,
        ip: IpAddr,
        who: usize,
        clients: &[Client<'_>],
        have: &mut BTreeMap<Family, Given>,
        r: &mut Assigned,
    ) {
        let Some(c) = clients.get(who) else { return };
        let family = Family::of(ip);
        if have.get(&family).is_some_and(|g| g.0 == ip) {
            return;
        }
        let field = c.ask.wanted_field.to_string();
        let mut lack = |why: Lack, text: String| r.lacks.push((field.clone(), why, text));
        if !c.families().contains(&family) {
            return lack(
                Lack::Invalid,
                format!("{ip}: the Service has no {family} in spec.ipFamilies: add it, or remove the address"),
            );
        }
        let Some(space) = self.spaces.iter().find(|s| s.gives(ip)) else {
            return lack(
                Lack::NoPool,
                format!("{ip} is in no LoadBalancerPool: add it to the addresses of one, or ask for another"),
            );
        };
        let (name, named) = (Box::<str>::from(space.name), c.ask.pools.iter().any(|p| **p == *space.name));
        if space.pool.disabled {
            return lack(
                Lack::NoPool,
                format!("{ip}: LoadBalancerPool {name} is disabled: ask for an address of another"),
            );
        }
        if !space.pool.selects(self.snapshot, &c.name.namespace, &c.ask.labels) || !(named || c.ask.pools.is_empty()) {
            return lack(
                Lack::NoPool,
                format!(
                    "{ip}: LoadBalancerPool {name} is not for this Service: see its selectors, and the annotation that names pools"
                ),
            );
        }
        if let Some(why) = self.hindered(ip, who, clients) {
            return lack(Lack::AddressInUse, format!("{why}: ask for another, or for none to be given one"));
        }
        self.take(ip, who);
        have.insert(family, (ip, name));
    }

    /// Gives any address of a family, where the client has none, or has one of a pool that it did not name.
    fn any(
        &mut self,
        family: Family,
        who: usize,
        clients: &[Client<'_>],
        have: &mut BTreeMap<Family, Given>,
        r: &mut Assigned,
    ) {
        let Some(c) = clients.get(who) else { return };
        let named = |pool: &str| c.ask.pools.iter().any(|p| **p == *pool);
        if have.get(&family).is_some_and(|g| c.ask.pools.is_empty() || named(&g.1)) {
            return;
        }
        let lack = |why: Lack, text: String| (format!("spec.ipFamilies ({family})"), why, text);
        if c.ask.unreadable {
            let text = "its request for addresses cannot be read, so none is given: correct it".to_owned();
            r.lacks.push((c.ask.wanted_field.to_string(), Lack::Invalid, text));
            return;
        }
        let order = self.order(c, family);
        if order.is_empty() {
            let which = if c.ask.pools.is_empty() {
                "give some to a pool, or check the selectors, autoAssign and disabled of those that are there"
                    .to_owned()
            } else {
                format!("check the annotation that names {}", c.ask.pools.join(", "))
            };
            let text = format!("no LoadBalancerPool has {family} addresses for this Service: {which}");
            r.lacks.push(lack(Lack::NoPool, text));
            return;
        }
        if let Some((ip, pool)) = self.shared(who, clients, family, &order).or_else(|| self.lowest(family, &order)) {
            self.take(ip, who);
            have.insert(family, (ip, pool));
            return;
        }
        let names: Vec<&str> = order.iter().filter_map(|i| self.spaces.get(*i)).map(|s| s.name).collect();
        let text = format!(
            "every {family} address of LoadBalancerPool {} is in use: add addresses to it, or delete a Service",
            names.join(", ")
        );
        r.lacks.push(lack(Lack::PoolExhausted, text));
    }

    /// The pools that a client may have an address of, in order: those it names; else those that select something
    /// before those that take all, the older first.
    fn order(&self, c: &Client<'_>, family: Family) -> Vec<usize> {
        let fits = |s: &Space<'_>| {
            s.has(family) && !s.pool.disabled && s.pool.selects(self.snapshot, &c.name.namespace, &c.ask.labels)
        };
        let all = || self.spaces.iter().enumerate().filter(|(_, s)| fits(s));
        if !c.ask.pools.is_empty() {
            let named = |p: &str| all().find(move |(_, s)| *s.name == *p).map(|(i, _)| i);
            return c.ask.pools.iter().filter_map(|p| named(p)).collect();
        }
        let chooses = |s: &Space<'_>| !s.pool.service_selector.is_empty() || !s.pool.namespace_selector.is_empty();
        let (first, rest): (Vec<_>, Vec<_>) = all().filter(|(_, s)| s.pool.automatic).partition(|(_, s)| chooses(s));
        first.into_iter().chain(rest).map(|(i, _)| i).collect()
    }

    /// An address that Services of the same sharing key have already.
    fn shared(&self, who: usize, clients: &[Client<'_>], family: Family, order: &[usize]) -> Option<Given> {
        let c = clients.get(who)?;
        if c.ask.sharing.is_empty() {
            return None;
        }
        order.iter().filter_map(|i| self.spaces.get(*i)).find_map(|s| {
            let fits = |ip: &IpAddr| Family::of(*ip) == family && s.gives(*ip);
            let mut all = self.taken.iter().filter(|(ip, who)| fits(ip) && !who.is_empty());
            let found = all.find(|(ip, _)| self.hindered(**ip, who, clients).is_none());
            found.map(|(ip, _)| (*ip, s.name.into()))
        })
    }

    fn lowest(&mut self, family: Family, order: &[usize]) -> Option<Given> {
        let (taken, foreign) = (&self.taken, &self.foreign);
        let free = |ip: IpAddr| !taken.contains_key(&ip) && !foreign.contains_key(&ip);
        for i in order {
            let Some(s) = self.spaces.get_mut(*i) else { continue };
            if let Some(ip) = s.lowest(family, free) {
                return Some((ip, s.name.into()));
            }
        }
        None
    }

    /// The status of each pool, where it changes.
    pub(crate) fn statuses(&self, clients: &[Client<'_>], results: &[Option<Assigned>], out: &mut Outcome) {
        let mut held: BTreeMap<&str, (BTreeSet<IpAddr>, BTreeSet<String>)> = BTreeMap::new();
        for (c, r) in clients.iter().zip(results) {
            for (ip, pool) in r.iter().flat_map(|r| &r.given) {
                let h = held.entry(pool).or_default();
                h.0.insert(*ip);
                h.1.insert(c.name.to_string());
            }
        }
        for s in &self.spaces {
            let (addresses, services) = held.remove(s.name).unwrap_or_default();
            let inside = addresses.iter().filter(|ip| s.gives(**ip)).count();
            let strays: Vec<String> = addresses.iter().filter(|ip| !s.gives(**ip)).map(ToString::to_string).collect();
            out.writes.extend(write::pool_status(s, addresses.len(), inside, &services, &strays));
        }
    }
}
