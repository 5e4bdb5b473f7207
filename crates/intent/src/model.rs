//! The intent of one node, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::{PodSpec, Wiring};
use serde::{Deserialize, Serialize};
use types::{AddressRange, Cidr, Family, FamilySet, FlatSet, Mac, NodeName, ObjectName, OwnedName, PortKey, Proto};

/// Everything one node must do. The order of no collection here carries meaning; all are sorted, so equal intents
/// print equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIntent {
    /// The node this is for.
    pub node: NodeName,
    /// The families that pods of this cluster use.
    pub families: FamilySet,
    /// This node's own addresses (Node `status.addresses`, InternalIP and ExternalIP).
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses of this node at which node ports are served: its primary ones unless configured otherwise.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Pod ranges this node owns: Node `spec.podCIDRs`, its blocks of address pools, and each address it borrowed from
    /// another node's block as a host range. They do not overlap.
    pub pod_cidrs: Vec<Cidr>,
    /// Pod ranges of the whole cluster: traffic from a pod to these is never masqueraded.
    pub cluster_cidrs: BTreeSet<Cidr>,
    /// Ranges of cluster addresses: one that no Service has is nobody's.
    #[serde(default)]
    pub service_cidrs: BTreeSet<Cidr>,
    /// Ranges that load balancers' addresses come from: these are the cluster's own, and what
    /// the cluster does not serve there nobody does. Of another balancer's address only this cluster's ports are known.
    #[serde(default)]
    pub balancer_ranges: BTreeSet<AddressRange>,
    /// Another proxy serves the cluster's Services on this node. None is in `services`, and what is between that proxy and
    /// its clients is left alone: connections too.
    #[serde(default)]
    pub services_elsewhere: bool,
    /// Those of `pod_cidrs` whose pods' traffic to outside the cluster takes the node's address (spec: fully random
    /// source ports).
    pub masqueraded: BTreeSet<Cidr>,
    /// The backend this node sends with.
    pub backend: Backend,
    /// The VXLAN device this node must have, to send or, while peers still send so, to receive.
    pub vxlan: Option<Vxlan>,
    /// A second one, of the same VNI and port over the other underlay, where each family of pod addresses has a tunnel of
    /// its own.
    pub vxlan6: Option<Vxlan>,
    /// Every other node.
    pub peers: BTreeMap<NodeName, Peer>,
    /// Pod interfaces on this node.
    pub attachments: BTreeMap<AttachmentKey, Attachment>,
    /// How pods are wired that do not say.
    pub wiring: Wiring,
    /// How each pod of this node is to be attached.
    pub pods: BTreeMap<ObjectName, PodSpec>,
    /// Service ports of the cluster, each shared: who follows changes keeps what was, and an intent is cloned without
    /// copying them. No two promise the same address, protocol and port, or the same node port: `resolve` sees to it.
    pub services: BTreeMap<ServiceKey, Arc<ServicePort>>,
    /// Policies that select pods of this node.
    pub policies: BTreeMap<ObjectName, Policy>,
}

impl NodeIntent {
    /// The intent of a node that knows only its own name.
    #[must_use]
    pub fn empty(node: NodeName) -> Self {
        Self {
            node,
            families: FamilySet::default(),
            addresses: BTreeSet::new(),
            node_port_addresses: BTreeSet::new(),
            pod_cidrs: Vec::new(),
            cluster_cidrs: BTreeSet::new(),
            service_cidrs: BTreeSet::new(),
            balancer_ranges: BTreeSet::new(),
            services_elsewhere: false,
            masqueraded: BTreeSet::new(),
            backend: Backend::HostGw,
            vxlan: None,
            vxlan6: None,
            peers: BTreeMap::new(),
            attachments: BTreeMap::new(),
            wiring: Wiring::default(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
        }
    }

    /// This node's VXLAN devices.
    pub fn tunnels(&self) -> impl Iterator<Item = &Vxlan> {
        self.vxlan.iter().chain(&self.vxlan6)
    }

    /// The pod interface that holds an address.
    #[must_use]
    pub fn attachment_of(&self, addr: IpAddr) -> Option<(&AttachmentKey, &Attachment)> {
        self.attachments.iter().find(|(_, a)| a.addresses.contains(&addr))
    }

    /// Whether an address is a pod's of this node, by the ranges: of this node's and its peers' the longest that holds it
    /// is this node's.
    #[must_use]
    pub fn is_own_pod(&self, addr: IpAddr) -> bool {
        let own = self.pod_cidrs.iter().filter(|c| c.contains(addr)).map(Cidr::len).max();
        let peers = self.peers.values().flat_map(|p| &p.routes).map(|r| r.cidr);
        own.is_some_and(|len| peers.filter(|c| c.contains(addr)).all(|c| c.len() <= len))
    }

    /// Whether an address belongs to a node of the cluster, this one or another.
    #[must_use]
    pub fn is_node_address(&self, addr: IpAddr) -> bool {
        self.addresses.contains(&addr) || self.peers.values().any(|p| p.addresses.contains(&addr))
    }
}

/// How a node carries packets to other nodes' pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A route to each peer's pod range with the peer's address as next hop.
    HostGw,
    /// VXLAN (RFC 7348), unicast, with static entries.
    Vxlan,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
        })
    }
}

impl std::str::FromStr for Backend {
    type Err = String;
    /// Type names are case-insensitive, as in flannel's `net-conf.json`.
    fn from_str(s: &str) -> Result<Self, String> {
        match s.to_ascii_lowercase().as_str() {
            "host-gw" => Ok(Self::HostGw),
            "vxlan" => Ok(Self::Vxlan),
            _ => Err(format!("{s:?} is no backend: use host-gw or vxlan")),
        }
    }
}

/// This node's VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// The device's hardware address; peers know it from this node's annotation.
    pub mac: Mac,
    /// Outer source address; its family is the family of the whole underlay.
    pub local: IpAddr,
    /// Addresses on the device, each as a host route: the first address of each of the Node's `spec.podCIDRs`. Of a
    /// block every address may be a pod's, so blocks give none.
    pub addresses: Vec<IpAddr>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its pod ranges and how to reach each. One may lie within a range of another node, or of this one: an address
    /// that the peer borrowed. The longest prefix wins.
    pub routes: Vec<PeerRoute>,
}

/// One pod range of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRoute {
    /// The range.
    pub cidr: Cidr,
    /// The way there.
    pub reach: Reach,
}

/// The way to a peer's pod range.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reach {
    /// The peer is a neighbour on the uplink and routes for its pods.
    Direct {
        /// The peer's address, of the range's family, on-link.
        next_hop: IpAddr,
    },
    /// Through the VXLAN device.
    Vxlan {
        /// The peer's outer address.
        remote: IpAddr,
        /// The hardware address of the peer's VXLAN device.
        mac: Mac,
        /// The gateway address inside the overlay, see [`Reach::vxlan`].
        gateway: IpAddr,
    },
    /// No way; packets to the range are refused on this node.
    None {
        /// Why, for status and log: names the node, the field and the fix.
        why: String,
    },
}

impl Reach {
    /// Through the VXLAN device of the peer that has `mac`. The gateway is the first address of the range: unlike the
    /// peer's own address it is of the range's family. A single IPv6 address cannot be its own gateway, since the way to
    /// a gateway is made before the way through it; there it is the link-local address that the peer's device would have
    /// (RFC 4291, appendix A), which the kernel takes without asking for a way.
    #[must_use]
    pub fn vxlan(cidr: Cidr, remote: IpAddr, mac: Mac) -> Self {
        let gateway = match cidr.addr() {
            IpAddr::V6(_) if cidr.len() == 128 => {
                let [a, b, c, d, e, f] = mac.0.map(u16::from);
                let last = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
                Ipv6Addr::new(0xfe80, 0, 0, 0, last[0], last[1], last[2], last[3]).into()
            }
            addr => addr,
        };
        Self::Vxlan { remote, mac, gateway }
    }
}

/// Which interface of which container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The runtime's sandbox id (`CNI_CONTAINERID`).
    pub container_id: Box<str>,
    /// The interface's name inside (`CNI_IFNAME`).
    pub ifname: Box<str>,
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// One interface of one pod on this node. A pod with several networks has several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod, when the runtime named it (`K8S_POD_NAMESPACE`, `K8S_POD_NAME`).
    pub pod: Option<ObjectName>,
    /// The host end of the interface.
    pub link: OwnedName,
    /// The interface's addresses, at most one per family.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports of the node that lead to this pod.
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// Port and protocol on the node.
    pub host: PortKey,
    /// Only on this address of the node; all when absent.
    pub host_ip: Option<IpAddr>,
    /// The pod's port.
    pub container_port: u16,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The Service.
    pub service: ObjectName,
    /// The port's name; empty when the Service has one unnamed port.
    pub port: Arc<str>,
    /// Transport protocol; part of the key since two ports may differ only in it.
    pub proto: Proto,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{} {}", self.service, self.proto)
        } else {
            write!(f, "{}:{} {}", self.service, self.port, self.proto)
        }
    }
}

/// What a Service port promises. Headless Services have no virtual address and do not appear.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServicePort {
    /// Virtual addresses inside the cluster (`spec.clusterIPs`), at most one per family.
    pub cluster_ips: FlatSet<IpAddr>,
    /// Virtual addresses for traffic from outside that somebody else brings here (`spec.externalIPs`).
    pub external_ips: FlatSet<IpAddr>,
    /// Virtual addresses of load balancers (`status.loadBalancer.ingress[].ip`, unless `ipMode` is Proxy). One that is in
    /// `external_ips` too is a load balancer's.
    pub balancer_ips: FlatSet<IpAddr>,
    /// The port on those addresses.
    pub port: u16,
    /// The port on [`NodeIntent::node_port_addresses`] of every node.
    pub node_port: Option<u16>,
    /// The families NodePort and endpoints are served in (`spec.ipFamilies`).
    pub families: FamilySet,
    /// Endpoints that may be chosen when the policy is Cluster.
    pub endpoints: FlatSet<Endpoint>,
    /// Endpoints that may be chosen when the policy is Local: those of this node.
    pub local_endpoints: FlatSet<Endpoint>,
    /// Policy for traffic to `cluster_ips`.
    pub internal_policy: TrafficPolicy,
    /// Policy for traffic to `external_ips`, `balancer_ips` and `node_port`.
    pub external_policy: TrafficPolicy,
    /// Session affinity.
    pub affinity: Affinity,
    /// The only sources that may use `balancer_ips` of a range's family; every source where there is no range of that
    /// family. With those addresses themselves, if a range holds this node: a node may have them and speak from them.
    pub source_ranges: FlatSet<Cidr>,
    /// Why `endpoints` are those.
    pub scope: ByFamily<Scope>,
    /// Why `local_endpoints` are those: [`Scope::Ready`] or [`Scope::Terminating`].
    pub local_scope: ByFamily<Scope>,
    /// Where this node answers load balancers whether it has endpoints of the Service (`spec.healthCheckNodePort`); the same
    /// for every port of a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_port: Option<u16>,
}

impl ServicePort {
    /// Every address for traffic from outside.
    pub fn outside_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.external_ips.union(&self.balancer_ips).copied()
    }

    /// Whether `src` may use the addresses of load balancers, which are of its family.
    #[must_use]
    pub fn admits(&self, src: IpAddr) -> bool {
        let mut ranges = self.source_ranges.iter().filter(|c| c.family() == Family::of(src)).peekable();
        ranges.peek().is_none() || ranges.any(|c| c.contains(src))
    }
}

/// Which of a Service's endpoints may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// All that are ready.
    #[default]
    Ready,
    /// Those that are meant for this node (`hints.forNodes`).
    SameNode,
    /// Those that are meant for this node's zone (`hints.forZones`).
    SameZone,
    /// None is ready: those that still serve while they terminate.
    Terminating,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "all that are ready",
            Self::SameNode => "those meant for this node",
            Self::SameZone => "those meant for this zone",
            Self::Terminating => "none is ready: those that still serve while they terminate",
        })
    }
}

/// Something of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ByFamily<T> {
    /// Of IPv4.
    pub v4: T,
    /// Of IPv6.
    pub v6: T,
}

impl<T> ByFamily<T> {
    /// That of one family.
    pub fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Changes that of one family.
    pub fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Only endpoints of this node; the client's address is kept.
    Local,
}

/// `sessionAffinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Affinity {
    /// Each connection chooses anew.
    #[default]
    None,
    /// A client address keeps its endpoint for so many seconds after its last connection.
    ClientIp {
        /// Seconds, 1 to 86400.
        timeout: u32,
    },
}

/// A backend of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

/// A network policy as it concerns this node, selectors already resolved to addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The pod interfaces it selects.
    pub selects: BTreeSet<AttachmentKey>,
    /// What may come in; `None` when the policy does not speak of ingress, empty when nothing may.
    pub ingress: Option<Vec<PolicyRule>>,
    /// What may go out.
    pub egress: Option<Vec<PolicyRule>>,
}

/// One allow rule: any of `peers` at any of `ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// `None` is everybody.
    pub peers: Option<Vec<PolicyPeer>>,
    /// `None` is every port.
    pub ports: Option<Vec<PolicyPort>>,
}

/// Addresses of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyPeer {
    /// The addresses of the pods a selector chose.
    Addresses(BTreeSet<IpAddr>),
    /// A block and the parts of it that do not count.
    Block {
        /// The block.
        cidr: Cidr,
        /// Exceptions within.
        except: BTreeSet<Cidr>,
    },
}

/// Ports of a rule, both ends included; `None` is every port of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPort {
    /// Protocol.
    pub proto: Proto,
    /// First and last port.
    pub range: Option<(u16, u16)>,
}
