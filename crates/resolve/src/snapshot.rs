//! The cluster as the rest of the system holds it: slim values, sorted, a few hundred bytes an object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use intent::{Affinity, Backend, TrafficPolicy};
use serde::{Deserialize, Serialize};
use types::{Cidr, Family, NodeName, ObjectName, PortKey, Proto};

use crate::annotations::VxlanData;
use crate::host_ports::PortRange;
use crate::labels::Labels;
use crate::load_balancer::{Ask, Lease, LoadBalancerPool};
use crate::networks::{self, Definition};
use crate::pools::{GROUP, IpBlock, IpPool, IpReservation, Notes, VERSION};
use crate::problem::Problem;
use crate::settings::Settings;
use crate::slices::{EndpointSlice, Endpoints};
use crate::texts::Texts;
use crate::workload::{Revision, Workload};

/// The kinds of object that a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// v1 Node.
    Node,
    /// v1 Pod.
    Pod,
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Namespace.
    Namespace,
    /// v1 ConfigMap; only `kube-system/seaway` counts.
    ConfigMap,
    /// apps/v1 Deployment; only controllers watch it.
    Deployment,
    /// apps/v1 DaemonSet; only controllers watch it.
    DaemonSet,
    /// apps/v1 ReplicaSet; only controllers watch it.
    ReplicaSet,
    /// apps/v1 ControllerRevision; only controllers watch it.
    ControllerRevision,
    /// seaway.io IPPool.
    IPPool,
    /// seaway.io IPBlock.
    IPBlock,
    /// seaway.io IPReservation.
    IPReservation,
    /// k8s.cni.cncf.io NetworkAttachmentDefinition.
    NetworkAttachmentDefinition,
    /// seaway.io LoadBalancerPool.
    LoadBalancerPool,
    /// networking.k8s.io ServiceCIDR.
    ServiceCidr,
    /// coordination.k8s.io Lease; only those of announcers count, and only announcers watch them.
    Lease,
    /// v1 Endpoints; only the controller that mirrors them watches them.
    Endpoints,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 18] = [
        Kind::Node,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Namespace,
        Kind::ConfigMap,
        Kind::Deployment,
        Kind::DaemonSet,
        Kind::ReplicaSet,
        Kind::ControllerRevision,
        Kind::IPPool,
        Kind::IPBlock,
        Kind::IPReservation,
        Kind::NetworkAttachmentDefinition,
        Kind::LoadBalancerPool,
        Kind::ServiceCidr,
        Kind::Lease,
        Kind::Endpoints,
    ];
    /// Those that an agent needs.
    pub const AGENT: [Kind; 12] = [
        Kind::Node,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Namespace,
        Kind::ConfigMap,
        Kind::IPPool,
        Kind::IPBlock,
        Kind::IPReservation,
        Kind::NetworkAttachmentDefinition,
        Kind::LoadBalancerPool,
        Kind::ServiceCidr,
    ];

    /// `kind` in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Namespace => "Namespace",
            Self::ConfigMap => "ConfigMap",
            Self::Deployment => "Deployment",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::ControllerRevision => "ControllerRevision",
            Self::IPPool => "IPPool",
            Self::IPBlock => "IPBlock",
            Self::IPReservation => "IPReservation",
            Self::NetworkAttachmentDefinition => "NetworkAttachmentDefinition",
            Self::LoadBalancerPool => "LoadBalancerPool",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Lease => "Lease",
            Self::Endpoints => "Endpoints",
        }
    }

    /// API group (empty for core), version, plural resource name, and whether objects live in namespaces.
    #[must_use]
    pub const fn api(self) -> (&'static str, &'static str, &'static str, bool) {
        match self {
            Self::Node => ("", "v1", "nodes", false),
            Self::Pod => ("", "v1", "pods", true),
            Self::Service => ("", "v1", "services", true),
            Self::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices", true),
            Self::Namespace => ("", "v1", "namespaces", false),
            Self::ConfigMap => ("", "v1", "configmaps", true),
            Self::Deployment => ("apps", "v1", "deployments", true),
            Self::DaemonSet => ("apps", "v1", "daemonsets", true),
            Self::ReplicaSet => ("apps", "v1", "replicasets", true),
            Self::ControllerRevision => ("apps", "v1", "controllerrevisions", true),
            Self::IPPool => (GROUP, VERSION, "ippools", false),
            Self::IPBlock => (GROUP, VERSION, "ipblocks", false),
            Self::IPReservation => (GROUP, VERSION, "ipreservations", false),
            Self::LoadBalancerPool => (GROUP, VERSION, "loadbalancerpools", false),
            Self::ServiceCidr => ("networking.k8s.io", "v1", "servicecidrs", false),
            Self::Lease => ("coordination.k8s.io", "v1", "leases", true),
            Self::Endpoints => ("", "v1", "endpoints", true),
            Self::NetworkAttachmentDefinition => {
                (networks::GROUP, networks::VERSION, "network-attachment-definitions", true)
            }
        }
    }

    /// `apiVersion` in JSON.
    #[must_use]
    pub fn api_version(self) -> String {
        match self.api() {
            ("", v, ..) => v.into(),
            (g, v, ..) => format!("{g}/{v}"),
        }
    }

    /// The kind that `apiVersion` and `kind` name, if it is one of ours.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == kind && k.api_version() == api_version)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name; the namespace is empty for Nodes and Namespaces.
    pub name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Everything Seaway knows of a cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterSnapshot {
    /// ConfigMap `kube-system/seaway`, or the defaults.
    pub settings: Settings,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Pods.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Services. Boxed, as slices: a tree that grows at its end is half empty.
    pub services: BTreeMap<ObjectName, Box<Service>>,
    /// Endpoint slices.
    pub slices: BTreeMap<ObjectName, Box<EndpointSlice>>,
    /// Namespaces.
    pub namespaces: BTreeMap<Box<str>, Namespace>,
    /// Deployments, ReplicaSets and DaemonSets; empty where no controller runs.
    pub workloads: BTreeMap<Key, Workload>,
    /// ControllerRevisions; empty where no controller runs.
    pub revisions: BTreeMap<ObjectName, Revision>,
    /// IPPools.
    pub pools: BTreeMap<Box<str>, IpPool>,
    /// IPBlocks.
    pub blocks: BTreeMap<Box<str>, IpBlock>,
    /// NetworkAttachmentDefinitions.
    pub networks: BTreeMap<ObjectName, Definition>,
    /// IPReservations.
    pub reservations: BTreeMap<Box<str>, IpReservation>,
    /// LoadBalancerPools.
    pub load_balancer_pools: BTreeMap<Box<str>, LoadBalancerPool>,
    /// `spec.cidrs` of ServiceCIDRs: where the API server takes cluster addresses from.
    pub service_cidrs: BTreeMap<Box<str>, Box<[Cidr]>>,
    /// Leases of announcers; empty but where one runs.
    pub leases: BTreeMap<ObjectName, Lease>,
    /// Endpoints; empty but where they are mirrored.
    pub endpoints: BTreeMap<ObjectName, Endpoints>,
    /// The slices of each Service: (namespace, Service, slice). [`crate::apply`] keeps it.
    pub(crate) of_service: BTreeSet<(Arc<str>, Arc<str>, Arc<str>)>,
    pub(crate) texts: Texts,
    /// What is wrong with single objects; an object that cannot be used at all is only here.
    pub problems: BTreeMap<Key, Vec<Problem>>,
}

/// A Node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.creationTimestamp` as given (RFC 3339 UTC sorts as text): of two that claim the same, the older has it.
    pub created: Box<str>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Box<[IpAddr]>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external_ips: Box<[IpAddr]>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: Box<[Cidr]>,
    /// Labels.
    pub labels: Labels,
    /// Annotation [`crate::annotations::BACKEND`]: what the node sends with now.
    pub backend: Option<Backend>,
    /// Annotation [`crate::annotations::VXLAN`]: how to reach it through VXLAN.
    pub vxlan: Option<VxlanData>,
    /// How to reach its IPv6 range where that has a tunnel of its own, see
    /// [`Settings::tunnel_by_family`](crate::Settings::tunnel_by_family); never set by an object of the API.
    pub vxlan6: Option<VxlanData>,
    /// Condition Ready is True.
    pub ready: bool,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// It is being deleted, or tainted by the cluster autoscaler that will: balancers should turn away from it.
    pub leaving: bool,
    /// Annotation [`crate::host_ports::RANGE`]: where its random host ports come from.
    pub host_port_range: Option<PortRange>,
    /// `status.capacity` of [`crate::host_ports::RESOURCE`].
    pub host_port_capacity: Option<u32>,
}

impl Node {
    /// Every address, InternalIP first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.internal_ips.iter().chain(&*self.external_ips).copied()
    }
}

/// `status.phase` of a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, not yet running; also an unknown phase.
    #[default]
    Pending,
    /// Bound and started.
    Running,
    /// Ended well; not restarted.
    Succeeded,
    /// Ended badly; not restarted.
    Failed,
}

impl Phase {
    /// Whether the pod has ended for good.
    #[must_use]
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// Labels.
    pub labels: Labels,
    /// Those annotations that are [read](crate::annotations::READ).
    pub asks: Labels,
    /// The controlling owner reference.
    pub owner: Option<Box<Owner>>,
    /// `spec.nodeName`; `None` until scheduled.
    pub node: Option<NodeName>,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Ports of all containers.
    pub ports: Box<[ContainerPort]>,
    /// `status.phase`.
    pub phase: Phase,
    /// Condition Ready is True.
    pub ready: bool,
    /// `status.podIPs` (or `podIP`), at most one per family.
    pub ips: Box<[IpAddr]>,
    /// What its annotations ask of its addresses.
    pub notes: Option<Box<Notes>>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// A container's environment has what the Pod tells of its [host ports](crate::host_ports) (`fieldRef`).
    pub host_port_in_env: bool,
}

/// `metadata.ownerReferences` with `controller: true`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `kind`.
    pub kind: Box<str>,
    /// `name`.
    pub name: Box<str>,
    /// `uid`.
    pub uid: Box<str>,
}

/// A container's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `name`; empty when unnamed.
    pub name: Box<str>,
    /// `containerPort` and `protocol`.
    pub port: PortKey,
    /// `hostPort`.
    pub host_port: Option<u16>,
    /// `hostIP`.
    pub host_ip: Option<IpAddr>,
}

/// `spec.type` of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ServiceType {
    /// Only inside the cluster.
    #[default]
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also on load balancer addresses.
    LoadBalancer,
    /// A DNS alias.
    ExternalName,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp`, see [`Node::created`].
    pub created: Box<str>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIP` is `None`.
    pub headless: bool,
    /// Label `service.kubernetes.io/service-proxy-name` is set: another proxy serves it.
    pub foreign_proxy: bool,
    /// `spec.clusterIPs`, at most one per family; empty while not allocated and when headless.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.ipFamilies`.
    pub families: Box<[Family]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is not Proxy.
    pub ingress_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Box<[Cidr]>,
    /// `spec.ports`.
    pub ports: Box<[SvcPort]>,
    /// `spec.selector`; empty: endpoints are somebody else's business.
    pub selector: Labels,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, where it counts: of type LoadBalancer with `externalTrafficPolicy` Local.
    pub health_check_port: Option<u16>,
    /// `spec.sessionAffinity` and its timeout.
    pub affinity: Affinity,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// What it asks of load balancers.
    pub balancer: Option<Box<Ask>>,
}

impl Default for Service {
    /// A ClusterIP Service of no ports, with the API's defaults.
    fn default() -> Self {
        Self {
            uid: "".into(),
            created: Box::default(),
            kind: ServiceType::ClusterIP,
            headless: false,
            foreign_proxy: false,
            cluster_ips: Box::default(),
            families: Box::default(),
            external_ips: Box::default(),
            ingress_ips: Box::default(),
            source_ranges: Box::default(),
            ports: Box::default(),
            selector: Labels::default(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check_port: None,
            affinity: Affinity::None,
            publish_not_ready: false,
            balancer: None,
        }
    }
}

/// One of `spec.ports` of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvcPort {
    /// `name`; empty when unnamed.
    pub name: Arc<str>,
    /// `port` and `protocol`.
    pub port: PortKey,
    /// `targetPort`.
    pub target: TargetPort,
    /// `nodePort`.
    pub node_port: Option<u16>,
}

/// `targetPort` of a Service port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A container port's name.
    Name(Box<str>),
}

/// A Namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Namespace {
    /// Labels.
    pub labels: Labels,
    /// What its annotations ask of its pods' addresses.
    pub notes: Option<Box<Notes>>,
    /// Those annotations that are [read](crate::annotations::READ).
    pub asks: Labels,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

impl ClusterSnapshot {
    /// The keys of every object of a kind that is held, usable or not.
    #[must_use]
    pub fn keys(&self, kind: Kind) -> BTreeSet<Key> {
        let named = |name: &ObjectName| Key { kind, name: name.clone() };
        let plain = |name: &str| Key { kind, name: ObjectName::new("", name) };
        let mut keys: BTreeSet<Key> = match kind {
            Kind::Node => self.nodes.keys().map(|n| plain(n.as_str())).collect(),
            Kind::Pod => self.pods.keys().map(named).collect(),
            Kind::Service => self.services.keys().map(named).collect(),
            Kind::EndpointSlice => self.slices.keys().map(named).collect(),
            Kind::Namespace => self.namespaces.keys().map(|n| plain(n)).collect(),
            Kind::ConfigMap => self.settings.present.then(Settings::key).into_iter().collect(),
            Kind::Deployment | Kind::DaemonSet | Kind::ReplicaSet => {
                self.workloads.keys().filter(|k| k.kind == kind).cloned().collect()
            }
            Kind::ControllerRevision => self.revisions.keys().map(named).collect(),
            Kind::IPPool => self.pools.keys().map(|n| plain(n)).collect(),
            Kind::IPBlock => self.blocks.keys().map(|n| plain(n)).collect(),
            Kind::NetworkAttachmentDefinition => self.networks.keys().map(|n| Key { kind, name: n.clone() }).collect(),
            Kind::IPReservation => self.reservations.keys().map(|n| plain(n)).collect(),
            Kind::LoadBalancerPool => self.load_balancer_pools.keys().map(|n| plain(n)).collect(),
            Kind::ServiceCidr => self.service_cidrs.keys().map(|n| plain(n)).collect(),
            Kind::Lease => self.leases.keys().map(named).collect(),
            Kind::Endpoints => self.endpoints.keys().map(named).collect(),
        };
        keys.extend(self.problems.keys().filter(|k| k.kind == kind).cloned());
        keys
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices_of<'a>(
        &'a self,
        service: &'a ObjectName,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a EndpointSlice)> + 'a {
        let first = (service.namespace.clone(), service.name.clone(), Arc::from(""));
        let of = self.of_service.range(first..).take_while(|(ns, s, _)| *ns == service.namespace && *s == service.name);
        of.filter_map(|(namespace, _, name)| {
            let slice = self.slices.get_key_value(&ObjectName { namespace: namespace.clone(), name: name.clone() });
            slice.map(|(n, s)| (n, &**s))
        })
    }
}

/// The protocol that the API takes when none is named.
pub(crate) const DEFAULT_PROTO: Proto = Proto::Tcp;
