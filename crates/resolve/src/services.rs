//! Services and endpoint slices to service ports, as kube-proxy means them (`pkg/proxy` of Kubernetes 1.36).

mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::{Endpoint, NodeIntent, Ports, ServiceKey, ServicePort, TrafficPolicy};
use types::{Cidr, Family, FamilySet, NodeName, ObjectName};

use crate::follow::Changes;
use crate::problem::Problem;
use crate::snapshot::{ClusterSnapshot, EndpointSlice, Key, Kind, Service, ServiceType, SliceEndpoint, SvcPort};

use claims::{Claim, Claims, Wanted};

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
            cluster_cidrs: intent.cluster_cidrs.clone(),
        }
    }
}

/// Whether this proxy serves it at all.
fn served(svc: &Service) -> bool {
    !svc.headless && !svc.foreign_proxy && svc.kind != ServiceType::ExternalName
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
            self.slice(name, snapshot.slices.get(name));
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
        let mut vips = BTreeSet::new();
        for w in claims::cluster_ips(svc, &self.env) {
            if has(&w, problems)
                && let Claim::Cluster(ip) = w.claim
            {
                vips.insert(ip);
            }
        }
        let families: FamilySet = if svc.families.is_empty() {
            svc.cluster_ips.iter().map(|a| Family::of(*a)).collect()
        } else {
            svc.families.iter().copied().collect()
        };
        for (i, p) in svc.ports.iter().enumerate() {
            if let Some((field, why)) = svc.ports.iter().take(i).find_map(|q| clash(p, q)) {
                problems.push(Problem::new(object(name), format!("spec.ports[{i}].{field}"), why));
            }
        }
        let slices: Vec<&EndpointSlice> = snapshot.slices_of(name).map(|(_, s)| s).collect();
        let mut out = Ports::new();
        for (i, port) in ports(svc) {
            let key = ServiceKey { service: name.clone(), port: port.name.clone(), proto: port.port.proto };
            let mut external_ips = BTreeSet::new();
            for w in claims::external_ips(svc, port.port) {
                if has(&w, problems)
                    && let Claim::External(ip, _) = w.claim
                {
                    external_ips.insert(ip);
                }
            }
            let mut node_port = None;
            if let Some(w) = claims::node_port(svc, i)
                && has(&w, problems)
            {
                node_port = port.node_port;
            }
            let (endpoints, local_endpoints) = endpoints(&slices, port, svc, &self.env, families);
            out.push((
                key,
                Arc::new(ServicePort {
                    cluster_ips: vips.clone(),
                    external_ips,
                    port: port.port.port,
                    node_port,
                    families,
                    endpoints,
                    local_endpoints,
                    internal_policy: svc.internal_policy,
                    external_policy: svc.external_policy,
                    affinity: svc.affinity,
                    source_ranges: if svc.kind == ServiceType::LoadBalancer {
                        svc.source_ranges.iter().copied().collect()
                    } else {
                        BTreeSet::new()
                    },
                }),
            ));
        }
        // As the intent has them.
        out.sort_by(|(a, _), (b, _)| a.cmp(b));
        out
    }
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

/// The endpoints of one port: for policy Cluster, and for policy Local. As kube-proxy's `CategorizeEndpoints`: ready
/// ones; when there is none, those that still serve while they terminate.
fn endpoints(
    slices: &[&EndpointSlice],
    port: &SvcPort,
    svc: &Service,
    env: &Env,
    families: FamilySet,
) -> (BTreeSet<Endpoint>, BTreeSet<Endpoint>) {
    let Some(node) = &env.node else { return (BTreeSet::new(), BTreeSet::new()) };
    let all: Vec<(&SliceEndpoint, Endpoint)> = slices
        .iter()
        .filter(|s| s.family.is_some_and(|f| families.has(f)))
        .flat_map(|s| {
            let target = s.ports.iter().find(|p| *p.name == *port.name && p.port.proto == port.port.proto);
            target.into_iter().flat_map(move |p| {
                s.endpoints
                    .iter()
                    .filter(move |e| Some(Family::of(e.addr)) == s.family && unusable_endpoint(e.addr).is_none())
                    .map(move |e| (e, Endpoint { addr: e.addr, port: p.port.port }))
            })
        })
        .collect();
    let is_local = |e: &SliceEndpoint| e.node.as_deref() == Some(node.as_str());
    let zone = env.zone.as_deref();
    let mut cluster = BTreeSet::new();
    let mut local = BTreeSet::new();
    // Each family is served by its own rules, so each falls back on its own.
    for family in Family::BOTH {
        let of = |keep: &dyn Fn(&SliceEndpoint) -> bool| -> BTreeSet<Endpoint> {
            all.iter().filter(|(e, at)| Family::of(at.addr) == family && keep(e)).map(|(_, at)| *at).collect()
        };
        let ready: Vec<&SliceEndpoint> =
            all.iter().filter(|(e, at)| Family::of(at.addr) == family && e.ready).map(|(e, _)| *e).collect();
        let near = Topology::of(&ready, svc, node, zone);
        let mut usable = of(&|e| e.ready && near.allows(e, node, zone));
        if usable.is_empty() {
            usable = of(&|e| e.serving && e.terminating);
        }
        cluster.extend(usable);
        let mut usable = of(&|e| e.ready && is_local(e));
        if usable.is_empty() {
            usable = of(&|e| e.serving && e.terminating && is_local(e));
        }
        local.extend(usable);
    }
    // The Local set is only asked for when a policy says so.
    if svc.internal_policy == TrafficPolicy::Cluster && svc.external_policy == TrafficPolicy::Cluster {
        local.clear();
    }
    (cluster, local)
}

/// Which hints of the ready endpoints count on this node (KEP-2433, KEP-3015): only when every endpoint has them and
/// some endpoint is meant for this node.
enum Topology {
    Any,
    Node,
    Zone,
}

impl Topology {
    fn of(ready: &[&SliceEndpoint], svc: &Service, node: &NodeName, zone: Option<&str>) -> Self {
        if ready.is_empty() {
            return Self::Any;
        }
        let node_hint = |e: &SliceEndpoint| e.node_hints.iter().any(|h| **h == *node.as_str());
        if svc.prefer_same_node && ready.iter().all(|e| !e.node_hints.is_empty()) && ready.iter().any(|e| node_hint(e))
        {
            return Self::Node;
        }
        let zone_hint = |e: &SliceEndpoint| zone.is_some_and(|z| e.zone_hints.iter().any(|h| **h == *z));
        if ready.iter().all(|e| !e.zone_hints.is_empty()) && ready.iter().any(|e| zone_hint(e)) {
            return Self::Zone;
        }
        Self::Any
    }

    fn allows(&self, e: &SliceEndpoint, node: &NodeName, zone: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Node => e.node_hints.iter().any(|h| **h == *node.as_str()),
            Self::Zone => zone.is_some_and(|z| e.zone_hints.iter().any(|h| **h == *z)),
        }
    }
}
