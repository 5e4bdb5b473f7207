//! Services and endpoint slices to service ports, as kube-proxy means them (`pkg/proxy` of Kubernetes 1.36).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::{Endpoint, NodeIntent, ServiceKey, ServicePort, TrafficPolicy};
use types::{Family, FamilySet, NodeName, ObjectName, PortKey};

use crate::problem::Problem;
use crate::snapshot::{ClusterSnapshot, EndpointSlice, Key, Kind, Service, ServiceType, SliceEndpoint, SvcPort};

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

/// Fills in `services`.
pub(crate) fn fill(intent: &mut NodeIntent, snapshot: &ClusterSnapshot, problems: &mut Vec<Problem>) {
    let slices = slices_by_service(snapshot, problems);
    // Of two Services that claim one address or port, the older has it.
    let mut by_age: Vec<(&ObjectName, &Service)> = snapshot.services.iter().collect();
    by_age.sort_by_key(|(name, s)| (&s.created, *name));
    let nodes = intent.peers.values().flat_map(|p| p.addresses.iter()).chain(&intent.addresses).copied().collect();
    let mut claims = Claims { nodes, ..Claims::default() };
    let mut out = BTreeMap::new();
    for (name, svc) in by_age {
        if svc.headless || svc.foreign_proxy || svc.kind == ServiceType::ExternalName {
            continue;
        }
        let vips = claims.cluster_ips(name, svc, intent, problems);
        let families: FamilySet = if svc.families.is_empty() {
            svc.cluster_ips.iter().map(|a| Family::of(*a)).collect()
        } else {
            svc.families.iter().copied().collect()
        };
        for (i, port) in svc.ports.iter().enumerate() {
            let key = ServiceKey { service: name.clone(), port: port.name.clone(), proto: port.port.proto };
            if out.contains_key(&key) {
                problems.push(Problem::new(
                    object(name),
                    format!("spec.ports[{i}].name"),
                    format!(
                        "{:?} names a second {} port: give each port a name of its own",
                        &*port.name, port.port.proto
                    ),
                ));
                continue;
            }
            let external_ips = claims.external_ips(name, svc, port, problems);
            let node_port = claims.node_port(name, svc, port, i, problems);
            let mine = slices.get(name).map_or(&[][..], Vec::as_slice);
            let (endpoints, local_endpoints) = endpoints(mine, port, svc, snapshot, &intent.node, families);
            out.insert(
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
            );
        }
    }
    intent.services = out;
}

/// The slices of each Service, and a word on every endpoint that none may use.
fn slices_by_service<'a>(
    snapshot: &'a ClusterSnapshot,
    problems: &mut Vec<Problem>,
) -> BTreeMap<ObjectName, Vec<&'a EndpointSlice>> {
    let mut out: BTreeMap<ObjectName, Vec<&EndpointSlice>> = BTreeMap::new();
    for (name, slice) in &snapshot.slices {
        let Some(family) = slice.family else { continue };
        for (i, e) in slice.endpoints.iter().enumerate() {
            let why = if let Some(why) = unusable_endpoint(e.addr) {
                Some(format!("{} is {why}: endpoints there are refused; remove it from the slice", e.addr))
            } else if Family::of(e.addr) != family {
                Some(format!(
                    "{} is no {family} address, as addressType says: put it in a slice of its own family",
                    e.addr
                ))
            } else {
                None
            };
            if let Some(why) = why {
                let key = Key { kind: Kind::EndpointSlice, name: name.clone() };
                problems.push(Problem::new(key, format!("endpoints[{i}].addresses[0]"), why));
            }
        }
        if !slice.service.is_empty() {
            out.entry(ObjectName { namespace: name.namespace.clone(), name: slice.service.clone() })
                .or_default()
                .push(slice);
        }
    }
    out
}

/// Who has which address and port.
#[derive(Default)]
struct Claims {
    nodes: BTreeSet<IpAddr>,
    cluster: BTreeMap<IpAddr, ObjectName>,
    external: BTreeMap<(IpAddr, PortKey), ObjectName>,
    node: BTreeMap<PortKey, ObjectName>,
}

impl Claims {
    fn cluster_ips(
        &mut self,
        name: &ObjectName,
        svc: &Service,
        intent: &NodeIntent,
        problems: &mut Vec<Problem>,
    ) -> BTreeSet<IpAddr> {
        let mut vips = BTreeSet::new();
        for (i, ip) in svc.cluster_ips.iter().enumerate() {
            let why = if let Some(other) = self.cluster.get(ip) {
                Some(format!(
                    "{ip} is also the address of Service {other}, which has it: delete this Service and make it anew without clusterIP"
                ))
            } else if self.nodes.contains(ip) {
                Some(format!("{ip} is the address of a node: delete this Service and make it anew without clusterIP"))
            } else if let Some(c) = intent.cluster_cidrs.iter().find(|c| c.contains(*ip)) {
                Some(format!(
                    "{ip} lies in the pod range {c}: pods and Services need ranges apart; change the service range of the API server or data.clusterCIDR of ConfigMap kube-system/seaway"
                ))
            } else if vips.iter().any(|v| Family::of(*v) == Family::of(*ip)) {
                Some(format!("{ip} is a second {} address: a Service has one of each family", Family::of(*ip)))
            } else {
                unusable_endpoint(*ip).map(|why| format!("{ip} is {why}: no Service can have it"))
            };
            match why {
                Some(why) => problems.push(Problem::new(object(name), format!("spec.clusterIPs[{i}]"), why)),
                None => {
                    self.cluster.insert(*ip, name.clone());
                    vips.insert(*ip);
                }
            }
        }
        vips
    }

    fn external_ips(
        &mut self,
        name: &ObjectName,
        svc: &Service,
        port: &SvcPort,
        problems: &mut Vec<Problem>,
    ) -> BTreeSet<IpAddr> {
        let ingress: &[IpAddr] = if svc.kind == ServiceType::LoadBalancer { &svc.ingress_ips } else { &[] };
        let spec = svc.external_ips.iter().map(|ip| ("spec.externalIPs", *ip));
        let status = ingress.iter().map(|ip| ("status.loadBalancer.ingress", *ip));
        let mut out = BTreeSet::new();
        for (field, ip) in spec.chain(status) {
            let why = if let Some(other) = self.external.get(&(ip, port.port)).filter(|o| *o != name) {
                Some(format!(
                    "{ip} port {} is already served by Service {other}: choose another address or port",
                    port.port
                ))
            } else if let Some(other) = self.cluster.get(&ip) {
                Some(format!(
                    "{ip} is the cluster address of Service {other}: choose an address outside the service range"
                ))
            } else {
                unusable_endpoint(ip).map(|why| format!("{ip} is {why}: no Service can have it"))
            };
            match why {
                Some(why) => problems.push(Problem::new(object(name), field, why)),
                None => {
                    self.external.insert((ip, port.port), name.clone());
                    out.insert(ip);
                }
            }
        }
        out
    }

    fn node_port(
        &mut self,
        name: &ObjectName,
        svc: &Service,
        port: &SvcPort,
        index: usize,
        problems: &mut Vec<Problem>,
    ) -> Option<u16> {
        if !matches!(svc.kind, ServiceType::NodePort | ServiceType::LoadBalancer) {
            return None;
        }
        let node_port = port.node_port?;
        let key = PortKey { proto: port.port.proto, port: node_port };
        if let Some(other) = self.node.get(&key) {
            problems.push(Problem::new(
                object(name),
                format!("spec.ports[{index}].nodePort"),
                format!("{key} already belongs to Service {other}: choose another node port, or remove the field to be given one"),
            ));
            return None;
        }
        self.node.insert(key, name.clone());
        Some(node_port)
    }
}

/// The endpoints of one port: for policy Cluster, and for policy Local. As kube-proxy's `CategorizeEndpoints`: ready
/// ones; when there is none, those that still serve while they terminate.
fn endpoints(
    slices: &[&EndpointSlice],
    port: &SvcPort,
    svc: &Service,
    snapshot: &ClusterSnapshot,
    node: &NodeName,
    families: FamilySet,
) -> (BTreeSet<Endpoint>, BTreeSet<Endpoint>) {
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
    let zone = snapshot.nodes.get(node).and_then(|n| n.labels.get(ZONE));
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
