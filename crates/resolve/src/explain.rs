//! What a Service means on one node and why, for people: each endpoint with the reason it is not used. What is used is
//! read from the resolved intent; the reasons are those by which `services` leaves an endpoint out.

mod notes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::{Affinity, Endpoint, NodeIntent, ServicePort, TrafficPolicy};
use serde::{Deserialize, Serialize};
use types::{Cidr, Family, NodeName, ObjectName, Proto};

use crate::problem::Problem;
use crate::services::{Rank, rank, unusable_endpoint};
use crate::slices::{EndpointSlice, SliceEndpoint};
use crate::snapshot::{ClusterSnapshot, Key, Kind, Service, ServiceType, SvcPort, TargetPort};

/// The node label that says where a node is.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// One Service as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`, or `Headless`.
    pub kind: String,
    /// Why no node translates for it: it is headless, an alias, or another proxy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_proxied: Option<String>,
    /// Addresses inside the cluster that it has.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses for traffic from outside that it has: external ones and load balancers'.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// `Cluster` or `Local`, for traffic inside the cluster.
    pub internal_policy: TrafficPolicy,
    /// The same for traffic from outside, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_policy: Option<TrafficPolicy>,
    /// Seconds that a client keeps its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// The only sources that may use the load balancer's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<Cidr>,
    /// Where load balancers ask whether the node has endpoints (`spec.healthCheckNodePort`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_port: Option<u16>,
    /// Why traffic of this node goes where it goes, beyond what is said of each endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Every endpoint of every port.
    pub endpoints: Vec<EndpointView>,
    /// What is wrong with it and its slices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Its name; empty when unnamed.
    pub name: String,
    /// Protocol.
    pub proto: Proto,
    /// The port of the Service's addresses.
    pub port: u16,
    /// The port of the pods: a number, or the name of a container's port.
    pub target: String,
    /// The port of the nodes' addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// That port is not served: see the problems.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_port_lost: bool,
}

/// An endpoint of one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// The Service port's name.
    pub port_name: String,
    /// Protocol.
    pub proto: Proto,
    /// Its address.
    pub address: IpAddr,
    /// Its port; none where its slice has no such port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its pod, in the Service's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The zone of that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What its slice says of it.
    pub state: State,
    /// The slices that list it; several while it is being moved.
    pub slices: Vec<String>,
    /// Traffic inside the cluster: `None` when it may be sent there, else why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_unused: Option<String>,
    /// The same for traffic from outside, where the Service has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_unused: Option<String>,
    /// Whether any traffic of this node may be sent there.
    pub used: bool,
}

/// `conditions` of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// `ready`.
    Ready,
    /// `serving` and `terminating`.
    TerminatingServing,
    /// `terminating` only.
    Terminating,
    /// None of them.
    NotReady,
}

impl State {
    fn of(e: &SliceEndpoint) -> Self {
        match (e.ready, e.terminating, e.serving) {
            (true, ..) => Self::Ready,
            (false, true, true) => Self::TerminatingServing,
            (false, true, false) => Self::Terminating,
            (false, false, _) => Self::NotReady,
        }
    }

    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::TerminatingServing => "terminating, serving",
            Self::Terminating => "terminating",
            Self::NotReady => "not ready",
        }
    }
}

impl ServiceView {
    /// Its name as people write it.
    #[must_use]
    pub fn object_name(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }

    /// How many endpoints are used, of how many; an endpoint of two ports counts twice.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.endpoints.iter().filter(|e| e.used).count(), self.endpoints.len())
    }
}

/// What a Service means on the node of `intent`, which is what the snapshot means there, with `problems` as found
/// then. `None` when there is no such Service.
#[must_use]
pub fn explain(
    snapshot: &ClusterSnapshot,
    intent: &NodeIntent,
    problems: &[Problem],
    name: &ObjectName,
) -> Option<ServiceView> {
    let svc = snapshot.services.get(name)?;
    let slices: Vec<(&ObjectName, &EndpointSlice)> = snapshot.slices_of(name).collect();
    let not_proxied = not_proxied(svc);
    let has_outside =
        svc.kind == ServiceType::NodePort || svc.kind == ServiceType::LoadBalancer || !svc.external_ips.is_empty();
    let ports_of: BTreeMap<_, _> = intent.ports_of(name).map(|(k, p)| ((&*k.port, k.proto), &**p)).collect();
    let mut endpoints = Vec::new();
    for port in &*svc.ports {
        let of = View {
            snapshot,
            node: &intent.node,
            not_proxied: not_proxied.as_deref(),
            has_outside,
            port,
            programmed: ports_of.get(&(&*port.name, port.port.proto)).copied(),
        };
        endpoints.extend(of.endpoints(&slices));
    }
    let all = |get: fn(&ServicePort) -> BTreeSet<IpAddr>| -> Vec<IpAddr> {
        ports_of.values().flat_map(|p| get(p)).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let mine: BTreeSet<String> = slices
        .iter()
        .map(|(n, _)| Key { kind: Kind::EndpointSlice, name: (*n).clone() }.to_string())
        .chain([Key { kind: Kind::Service, name: name.clone() }.to_string()])
        .collect();
    Some(ServiceView {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        kind: kind(svc).into(),
        not_proxied: not_proxied.clone(),
        cluster_ips: if svc.headless { Vec::new() } else { svc.cluster_ips.to_vec() },
        external_ips: all(|p| p.outside_ips().collect()),
        ports: {
            let served = matches!(svc.kind, ServiceType::NodePort | ServiceType::LoadBalancer);
            let lost = |p: &SvcPort| {
                let programmed = ports_of.get(&(&*p.name, p.port.proto));
                served && p.node_port.is_some() && programmed.is_some_and(|s| s.node_port.is_none())
            };
            svc.ports.iter().map(|p| port_view(p, lost(p))).collect()
        },
        internal_policy: svc.internal_policy,
        external_policy: has_outside.then_some(svc.external_policy),
        affinity_seconds: match svc.affinity {
            Affinity::None => None,
            Affinity::ClientIp { timeout } => Some(timeout),
        },
        source_ranges: if svc.kind == ServiceType::LoadBalancer { svc.source_ranges.to_vec() } else { Vec::new() },
        health_check_port: svc.health_check_port.filter(|_| not_proxied.is_none()),
        notes: {
            let here = notes::Here { snapshot, node: &intent.node, has_outside };
            let slices: Vec<&EndpointSlice> = slices.iter().map(|(_, s)| *s).collect();
            notes::all(&here, svc, &ports_of, &slices)
        },
        endpoints,
        // `Service/default/web:http` is of the Service as well.
        problems: problems
            .iter()
            .filter(|p| mine.contains(p.object.split(':').next().unwrap_or_default()))
            .cloned()
            .collect(),
    })
}

fn kind(svc: &Service) -> &'static str {
    match svc.kind {
        _ if svc.headless => "Headless",
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

fn not_proxied(svc: &Service) -> Option<String> {
    if svc.kind == ServiceType::ExternalName {
        Some("an alias: names are answered by DNS".into())
    } else if svc.headless {
        Some("headless: DNS gives clients the endpoints' own addresses".into())
    } else if svc.foreign_proxy {
        Some("label service.kubernetes.io/service-proxy-name: another proxy serves it".into())
    } else {
        None
    }
}

fn port_view(p: &SvcPort, node_port_lost: bool) -> PortView {
    PortView {
        name: p.name.to_string(),
        proto: p.port.proto,
        port: p.port.port,
        target: match &p.target {
            TargetPort::Number(n) => n.to_string(),
            TargetPort::Name(n) => n.to_string(),
        },
        node_port: p.node_port,
        node_port_lost,
    }
}

/// One port of a Service on a node.
struct View<'a> {
    snapshot: &'a ClusterSnapshot,
    node: &'a NodeName,
    not_proxied: Option<&'a str>,
    has_outside: bool,
    port: &'a SvcPort,
    /// What the node was told of it; nothing when it is not served.
    programmed: Option<&'a ServicePort>,
}

impl View<'_> {
    fn endpoints(&self, slices: &[(&ObjectName, &EndpointSlice)]) -> Vec<EndpointView> {
        // One listed twice, as while it is moved from slice to slice, is one; it is what the one says that counts.
        let mut rows: BTreeMap<(IpAddr, Option<u16>), (EndpointView, Rank)> = BTreeMap::new();
        for (name, slice) in slices {
            let Some(family) = slice.family else { continue };
            let of = slice.ports.iter().filter(|p| *p.name == *self.port.name && p.port.proto == self.port.port.proto);
            let mut numbers: Vec<Option<u16>> = of.map(|p| Some(p.port.port)).collect();
            if numbers.is_empty() {
                numbers.push(None);
            }
            for (e, at) in slice.endpoints.iter().flat_map(|e| numbers.iter().map(move |at| (e, *at))) {
                let row = self.endpoint(e, at, family, &name.name);
                let rank = rank(slice, e);
                match rows.get_mut(&(e.addr, at)) {
                    None => drop(rows.insert((e.addr, at), (row, rank))),
                    Some((old, best)) => {
                        let mut slices = std::mem::take(&mut old.slices);
                        slices.extend(row.slices.clone());
                        if rank >= *best {
                            (*old, *best) = (row, rank);
                        }
                        old.slices = slices;
                    }
                }
            }
        }
        rows.into_values().map(|(row, _)| row).collect()
    }

    fn endpoint(&self, e: &SliceEndpoint, at: Option<u16>, family: Family, slice: &str) -> EndpointView {
        let policy = |external: bool| {
            let p = self.programmed?;
            Some(if external { p.external_policy } else { p.internal_policy })
        };
        let internal = self.unused(e, at, family, policy(false));
        let external = if self.has_outside { self.unused(e, at, family, policy(true)) } else { None };
        EndpointView {
            port_name: self.port.name.to_string(),
            proto: self.port.port.proto,
            address: e.addr,
            port: at,
            pod: e.pod.as_ref().map(ToString::to_string),
            node: e.node.as_ref().map(ToString::to_string),
            zone: e.node.as_deref().and_then(|n| self.zone(n)).map(str::to_owned),
            state: State::of(e),
            slices: vec![slice.to_owned()],
            used: internal.is_none() || (self.has_outside && external.is_none()),
            internal_unused: internal,
            external_unused: external,
        }
    }

    fn zone(&self, node: &str) -> Option<&str> {
        self.snapshot.nodes.get(&node.parse::<NodeName>().ok()?)?.labels.get(ZONE)
    }

    /// Why no traffic is sent there; `None` when it is. What the node was told decides; the rest is the reason.
    fn unused(
        &self,
        e: &SliceEndpoint,
        at: Option<u16>,
        family: Family,
        policy: Option<TrafficPolicy>,
    ) -> Option<String> {
        if let Some(why) = self.not_proxied {
            return Some(why.into());
        }
        if let Some(why) = unusable_endpoint(e.addr) {
            return Some(format!("forbidden: {why}"));
        }
        if Family::of(e.addr) != family {
            return Some(format!("its slice is of {family} addresses"));
        }
        let Some(at) = at else {
            return Some(format!("its slice has no {} port {:?}", self.port.port.proto, &*self.port.name));
        };
        let (Some(p), Some(policy)) = (self.programmed, policy) else {
            return Some("the port is not served: see problems".into());
        };
        if !p.families.has(family) {
            return Some(format!("the Service has no {family}"));
        }
        let local = policy == TrafficPolicy::Local;
        let set = if local { &p.local_endpoints } else { &p.endpoints };
        if set.contains(&Endpoint { addr: e.addr, port: at }) {
            return None;
        }
        let elsewhere = local && e.node.as_deref() != Some(self.node.as_str());
        Some(match State::of(e) {
            State::Ready | State::TerminatingServing if elsewhere => {
                format!("policy Local, and it is not on {}", self.node)
            }
            State::Ready => self.meant_for(e),
            State::TerminatingServing => "terminating, and others are ready".into(),
            State::Terminating => "terminating, and it no longer serves".into(),
            State::NotReady => "not ready".into(),
        })
    }

    /// A ready endpoint that hints keep for others.
    fn meant_for(&self, e: &SliceEndpoint) -> String {
        let list = |all: &[Box<str>]| all.iter().map(|h| &**h).collect::<Vec<_>>().join(", ");
        let here = self.zone(self.node.as_str()).unwrap_or("none");
        if !e.node_hints().is_empty() && !e.node_hints().iter().any(|n| **n == *self.node.as_str()) {
            format!("meant for clients on {} (hints)", list(e.node_hints()))
        } else {
            format!("meant for zone {} (hints); {} is in zone {here}", list(e.zone_hints()), self.node)
        }
    }
}
