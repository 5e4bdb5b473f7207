//! Services and endpoint slices to service ports, as kube-proxy means them (`pkg/proxy` of Kubernetes 1.36).

mod claims;
mod endpoints;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::{NodeIntent, Ports, ServiceKey, ServicePort};
use types::{Cidr, Family, FamilySet, FlatSet, NodeName, ObjectName};

use crate::follow::Changes;
use crate::problem::Problem;
use crate::slices::EndpointSlice;
use crate::snapshot::{ClusterSnapshot, Key, Kind, Service, ServiceType, SvcPort};

use claims::{Claim, Claims, Wanted};
pub(crate) use endpoints::{Rank, of_port, rank};
use endpoints::{Usable, endpoints};

/// The node label that zone hints are compared with.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Why no endpoint or node may have this address; `None` when it may. A forged endpoint there would reach the node's
/// own loopback or cloud metadata (Kubernetes CVE-2020-8558, KEP-752 on address validation).
#[must_use]
pub fn unusable_endpoint(addr: IpAddr) -> Option<&'static str> {
    let v6_link_local = |a: std::net::Ipv6Addr| (a.segments()[0] & 0xffc0) == 0xfe80;
    match addr {
        _ if addr.is_unspecified() => Some("the unspecified address"),
        _ if addr.is_loopback() => Some("a loopback address (127.0.0.0/8, ::1)"),
        _ if addr.is_multicast() => Some("a multicast address (224.0.0.0/4, ff00::/8)"),
        IpAddr::V4(a) if a.is_link_local() => Some("a link-local address (169.254.0.0/16)"),
        IpAddr::V4(a) if a.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(a) if v6_link_local(a) => Some("a link-local address (fe80::/10)"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Some("an IPv4-mapped address (::ffff:0:0/96)"),
        _ => None,
    }
}

fn object(name: &ObjectName) -> Key {
    Key { kind: Kind::Service, name: name.clone() }
}

/// What a Service's ports depend on beyond the Service itself and its slices. When it is another, all are computed
/// anew, so nothing belongs here that changes often.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Env {
    /// This node.
    node: Option<NodeName>,
    /// Its zone, that hints are compared with.
    zone: Option<Box<str>>,
    /// Addresses of all nodes.
    nodes: BTreeSet<IpAddr>,
    /// This node's.
    own: BTreeSet<IpAddr>,
    /// Pod ranges of the cluster.
    cluster_cidrs: BTreeSet<Cidr>,
}

impl Env {
    /// From an intent that has everything but its Services.
    fn of(intent: &NodeIntent, snapshot: &ClusterSnapshot) -> Self {
        let zone = snapshot.nodes.get(&intent.node).and_then(|n| n.labels.get(ZONE));
        Self {
            node: Some(intent.node.clone()),
            zone: zone.map(Into::into),
            nodes: intent.peers.values().flat_map(|p| p.addresses.iter()).chain(&intent.addresses).copied().collect(),
            own: intent.addresses.clone(),
            cluster_cidrs: intent.cluster_cidrs.clone(),
        }
    }
}

/// Whether this proxy serves it at all: not before it has a cluster address.
fn served(svc: &Service) -> bool {
    !svc.headless && !svc.foreign_proxy && svc.kind != ServiceType::ExternalName && !svc.cluster_ips.is_empty()
}

/// The families it is served in: those of its cluster addresses, whatever other addresses it has.
fn families(svc: &Service) -> FamilySet {
    svc.cluster_ips.iter().map(|a| Family::of(*a)).collect()
}

/// The ports of a Service that can be served, with the index of each: of two of one name, or of one number, the first.
fn ports(svc: &Service) -> impl Iterator<Item = (usize, &SvcPort)> {
    let earlier = |i: usize, p: &SvcPort| svc.ports.iter().take(i).any(|q| clash(p, q).is_some());
    svc.ports.iter().enumerate().filter(move |(i, p)| !earlier(*i, p))
}

/// Why two ports of a Service cannot both be.
fn clash(p: &SvcPort, earlier: &SvcPort) -> Option<(&'static str, String)> {
    let proto = p.port.proto;
    if p.name == earlier.name && proto == earlier.port.proto {
        let why = format!("{:?} names a second {proto} port: give each port a name of its own", &*p.name);
        return Some(("name", why));
    }
    let same = || format!("{} is already that of {:?}: choose another number", p.port, &*earlier.name);
    (p.port == earlier.port).then(|| ("port", same()))
}

/// What is kept between one look at the cluster's Services and the next, so that only those that changed are looked at.
#[derive(Debug, Default)]
pub(crate) struct Book {
    env: Env,
    claims: Claims,
    endpoints: usize,
    /// What is wrong with Services, of those with anything wrong.
    problems: BTreeMap<ObjectName, Vec<Problem>>,
    /// The same of slices.
    slices: BTreeMap<ObjectName, Vec<Problem>>,
}

impl Book {
    /// Brings `intent.services`, which hold what they held after the last call, to what the snapshot says. `changed`
    /// names the Services and slices that may be other than then; from scratch is the same with everything changed.
    /// Gives the Services that are other, with the ports each had.
    pub(crate) fn follow(
        &mut self,
        intent: &mut NodeIntent,
        snapshot: &ClusterSnapshot,
        changed: &Changes,
    ) -> BTreeMap<ObjectName, Ports> {
        let env = Env::of(intent, snapshot);
        let same = env == self.env;
        self.env = env;
        let (slices, services): (BTreeSet<ObjectName>, BTreeSet<ObjectName>) = match changed {
            Changes::Some(keys) if same => {
                let of = |kind: Kind| keys.iter().filter(move |k| k.kind == kind).map(|k| k.name.clone());
                (of(Kind::EndpointSlice).collect(), of(Kind::Service).collect())
            }
            // What there was is looked at too, since it may be gone.
            _ => {
                let were =
                    intent.services.keys().map(|k| &k.service).chain(self.problems.keys()).chain(self.claims.hidden());
                let services = snapshot.services.keys().chain(were).cloned().collect();
                (snapshot.slices.keys().chain(self.slices.keys()).cloned().collect(), services)
            }
        };
        for name in &slices {
            self.slice(name, snapshot.slices.get(name).map(|s| &**s));
        }
        self.services(intent, snapshot, services)
    }

    /// Everything that is wrong.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().chain(self.slices.values()).flatten()
    }

    /// How many endpoints all ports have.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints
    }

    fn slice(&mut self, name: &ObjectName, slice: Option<&EndpointSlice>) {
        let problems = slice.map(|s| slice_problems(name, s)).unwrap_or_default();
        if problems.is_empty() {
            self.slices.remove(name);
        } else {
            self.slices.insert(name.clone(), problems);
        }
    }

    /// Computes these Services anew, and those whose claims they touch. Gives the ports that each had.
    fn services(
        &mut self,
        intent: &mut NodeIntent,
        snapshot: &ClusterSnapshot,
        names: BTreeSet<ObjectName>,
    ) -> BTreeMap<ObjectName, Ports> {
        let ports_of = |intent: &NodeIntent, name: &ObjectName| -> Ports {
            intent.ports_of(name).map(|(k, p)| (k.clone(), p.clone())).collect()
        };
        let mut all = names.clone();
        for name in &names {
            all.append(&mut self.claims.update(name, &ports_of(intent, name), snapshot, &self.env));
        }
        let mut out = BTreeMap::new();
        for name in all {
            let was = ports_of(intent, &name);
            let mut problems = Vec::new();
            let now = self.ports(&name, snapshot, &mut problems);
            self.claims.remember(&name, &now, snapshot, &self.env);
            if problems.is_empty() {
                self.problems.remove(&name);
            } else {
                self.problems.insert(name.clone(), problems);
            }
            if was != now {
                let count = |ports: &Ports| ports.iter().map(|(_, p)| p.endpoints.len()).sum::<usize>();
                self.endpoints = (self.endpoints + count(&now)).saturating_sub(count(&was));
                for (key, _) in &was {
                    intent.services.remove(key);
                }
                intent.services.extend(now);
                out.insert(name, was);
            }
        }
        out
    }

    /// The ports of one Service.
    fn ports(&self, name: &ObjectName, snapshot: &ClusterSnapshot, problems: &mut Vec<Problem>) -> Ports {
        let Some(svc) = snapshot.services.get(name).filter(|s| served(s)) else { return Ports::new() };
        let has = |wanted: &Wanted, problems: &mut Vec<Problem>| self.claims.has(name, wanted, snapshot, problems);
        let mut vips = FlatSet::new();
        for w in claims::cluster_ips(svc, &self.env) {
            if has(&w, problems)
                && let Claim::Cluster(ip) = w.claim
            {
                vips.insert(ip);
            }
        }
        let families = families(svc);
        for (i, p) in svc.ports.iter().enumerate() {
            if let Some((field, why)) = svc.ports.iter().take(i).find_map(|q| clash(p, q)) {
                problems.push(Problem::new(object(name), format!("spec.ports[{i}].{field}"), why));
            }
        }
        let slices: Vec<&EndpointSlice> = snapshot.slices_of(name).map(|(_, s)| s).collect();
        let mut out = Ports::new();
        for (i, port) in ports(svc) {
            let key = ServiceKey { service: name.clone(), port: port.name.clone(), proto: port.port.proto };
            let (mut external_ips, mut balancer_ips) = (FlatSet::new(), FlatSet::new());
            for w in claims::external_ips(svc, port.port) {
                if has(&w, problems)
                    && let Claim::External(ip, _) = w.claim
                {
                    let balancer = svc.kind == ServiceType::LoadBalancer && svc.ingress_ips.contains(&ip);
                    if balancer { &mut balancer_ips } else { &mut external_ips }.insert(ip);
                }
            }
            let mut node_port = None;
            if let Some(w) = claims::node_port(svc, i)
                && has(&w, problems)
            {
                node_port = port.node_port;
            }
            let usable = endpoints(&slices, port, svc, &self.env, families);
            let Usable { cluster, local, scope, local_scope } = usable;
            out.push((
                key,
                Arc::new(ServicePort {
                    cluster_ips: vips.clone(),
                    external_ips,
                    balancer_ips,
                    port: port.port.port,
                    node_port,
                    families,
                    endpoints: cluster,
                    local_endpoints: local,
                    internal_policy: svc.internal_policy,
                    external_policy: svc.external_policy,
                    affinity: svc.affinity,
                    source_ranges: source_ranges(svc, &self.env),
                    scope,
                    local_scope,
                    health_check_port: svc.health_check_port,
                }),
            ));
        }
        // As the intent has them.
        out.sort_by(|(a, _), (b, _)| a.cmp(b));
        out
    }
}

/// The sources that a Service's load balancers admit. A node of such a range may have a balancer's address itself and
/// speak from it, so that is admitted as well, as kube-proxy does.
fn source_ranges(svc: &Service, env: &Env) -> FlatSet<Cidr> {
    if svc.kind != ServiceType::LoadBalancer {
        return FlatSet::new();
    }
    let mut out: FlatSet<Cidr> = svc.source_ranges.iter().copied().collect();
    for ip in &svc.ingress_ips {
        let of_family = |c: &Cidr| c.family() == Family::of(*ip);
        if svc.source_ranges.iter().filter(|c| of_family(c)).any(|c| env.own.iter().any(|n| c.contains(*n))) {
            out.insert(Cidr::host(*ip));
        }
    }
    out
}

/// A word on every endpoint of a slice that none may use.
fn slice_problems(name: &ObjectName, slice: &EndpointSlice) -> Vec<Problem> {
    let mut out = Vec::new();
    let Some(family) = slice.family else { return out };
    for (i, e) in slice.endpoints.iter().enumerate() {
        let why = if let Some(why) = unusable_endpoint(e.addr) {
            format!("{} is {why}: endpoints there are refused; remove it from the slice", e.addr)
        } else if Family::of(e.addr) != family {
            format!("{} is no {family} address, as addressType says: put it in a slice of its own family", e.addr)
        } else {
            continue;
        };
        let key = Key { kind: Kind::EndpointSlice, name: name.clone() };
        out.push(Problem::new(key, format!("endpoints[{i}].addresses[0]"), why));
    }
    out
}
