//! ConfigMap `kube-system/seaway`: what is the same on every node.

use std::collections::BTreeSet;

use intent::{Backend, Wiring};
use serde::{Deserialize, Serialize};
use types::{Cidr, ObjectName};

use crate::host_ports::PortRange;
use crate::pods::mode_options;
use crate::problem::Problem;
use crate::snapshot::{Key, Kind};

/// Namespace of the ConfigMap.
pub const NAMESPACE: &str = "kube-system";
/// Name of the ConfigMap.
pub const NAME: &str = "seaway";
/// VNI when none is set; flannel's.
pub const DEFAULT_VNI: u32 = 1;
/// UDP port when none is set: the Linux kernel's default and flannel's. IANA's is 4789.
pub const DEFAULT_VXLAN_PORT: u16 = 8472;

/// `l2RestartSeconds` when none is set.
pub const DEFAULT_L2_RESTART: u32 = 8;

/// The settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The ConfigMap exists.
    pub present: bool,
    /// `backend`: `vxlan` (default: works on any network between nodes) or `host-gw`.
    pub backend: Backend,
    /// `clusterCIDR`: the pod ranges of the cluster, comma separated, one of each family at most. Empty: the ranges
    /// of the nodes are all there is, and the controller allocates none.
    pub cluster_cidrs: Vec<Cidr>,
    /// `serviceCIDR`: the ranges of cluster addresses, where the API has no ServiceCIDR that says so.
    pub service_cidrs: Vec<Cidr>,
    /// `masquerade`: whether pods' traffic to outside takes the node's address (default true).
    pub masquerade: bool,
    /// `vni`.
    pub vni: u32,
    /// `vxlanPort`.
    pub vxlan_port: u16,
    /// `directRouting`: with backend vxlan, nodes on one link send to each other without a tunnel.
    pub direct_routing: bool,
    /// Each family of pod addresses goes through a VXLAN device of its own over an underlay of that family, as flannel
    /// has it; no key of the ConfigMap, since only a flannel network asks for it.
    #[serde(default)]
    pub tunnel_by_family: bool,
    /// `ipam`: where pods' addresses come from.
    pub ipam: Ipam,
    /// `ipPools`: names or ranges of the pools of pods that ask for none; empty: all that fit.
    pub ip_pools: Vec<Box<str>>,
    /// `addressesOutsideIPAM`: whether a pod may name an address of no pool.
    pub outside_addresses: bool,
    /// `loadBalancerClass`: the `spec.loadBalancerClass` of Services that get addresses of LoadBalancerPools.
    pub load_balancer_class: Box<str>,
    /// `loadBalancerDefault`: whether Services without a class do as well.
    pub load_balancer_default: bool,
    /// `l2RestartSeconds`: how long a node that was asked to end keeps the addresses it announces.
    pub l2_restart: u32,
    /// `nodePortAddresses`: at which of a node's addresses node ports are served.
    pub node_ports: NodePorts,
    /// `mode` and `modeOptions`: how pods are wired that, and whose namespaces, do not say.
    pub wiring: Wiring,
    /// `hostPortRange`: where random host ports come from, on nodes that do not say.
    pub host_port_range: PortRange,
}

/// At which of a node's addresses node ports are served.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NodePorts {
    /// `primary`: the first address of each family that the Node says it has.
    #[default]
    Primary,
    /// Every address of the node's interfaces in one of these ranges; where no range is of a family, all of that family.
    In(Vec<Cidr>),
}

/// Where pods' addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Ipam {
    /// `node-cidr`: the Node's `spec.podCIDRs`.
    #[default]
    NodeCidr,
    /// `pools`: blocks of IPPools.
    Pools,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            present: false,
            backend: Backend::Vxlan,
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            masquerade: true,
            vni: DEFAULT_VNI,
            vxlan_port: DEFAULT_VXLAN_PORT,
            direct_routing: false,
            tunnel_by_family: false,
            ipam: Ipam::NodeCidr,
            ip_pools: Vec::new(),
            outside_addresses: false,
            load_balancer_class: crate::load_balancer::CLASS.into(),
            load_balancer_default: true,
            l2_restart: DEFAULT_L2_RESTART,
            node_ports: NodePorts::Primary,
            wiring: Wiring::default(),
            host_port_range: PortRange::default(),
        }
    }
}

impl Settings {
    /// Whether a ConfigMap's name is this one's.
    #[must_use]
    pub fn is_ours(name: &ObjectName) -> bool {
        &*name.namespace == NAMESPACE && &*name.name == NAME
    }

    /// The ConfigMap's key.
    #[must_use]
    pub fn key() -> Key {
        Key { kind: Kind::ConfigMap, name: ObjectName::new(NAMESPACE, NAME) }
    }

    /// Reads `data`. A key that is unknown or has a bad value is a problem and keeps its default.
    #[must_use]
    pub fn parse<'a>(data: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Self, Vec<Problem>) {
        let mut s = Self { present: true, ..Self::default() };
        let mut problems = Vec::new();
        for (key, value) in data {
            let value = value.trim();
            let bad = match key {
                // The kubelet hands it to our pods; here it is only looked at.
                "apiServer" => match value.strip_prefix("https://") {
                    None if !value.is_empty() => Some(format!("{value:?}: write https://HOST:PORT")),
                    _ => None,
                },
                "backend" => value.parse().map(|b| s.backend = b).err(),
                "masquerade" => {
                    value.parse().map(|b| s.masquerade = b).err().map(|_| format!("{value:?}: write true or false"))
                }
                "vni" => match value.parse::<u32>() {
                    Ok(v @ 1..=0x00ff_ffff) => {
                        s.vni = v;
                        None
                    }
                    _ => Some(format!("{value:?}: write a number from 1 to 16777215")),
                },
                "vxlanPort" => match value.parse::<u16>() {
                    Ok(v @ 1..) => {
                        s.vxlan_port = v;
                        None
                    }
                    _ => Some(format!("{value:?}: write a UDP port from 1 to 65535; 8472 is the default, 4789 IANA's")),
                },
                "directRouting" => value
                    .parse()
                    .map(|b| s.direct_routing = b)
                    .err()
                    .map(|_| format!("{value:?}: write true or false")),
                "hostPortRange" => value.parse().map(|r| s.host_port_range = r).err(),
                "mode" => value.parse().map(|m| s.wiring.mode = m).err(),
                "modeOptions" => mode_options(value).map(|o| s.wiring.options = o).err(),
                "ipam" => match value {
                    "node-cidr" => {
                        s.ipam = Ipam::NodeCidr;
                        None
                    }
                    "pools" => {
                        s.ipam = Ipam::Pools;
                        None
                    }
                    _ => Some(format!("{value:?}: write node-cidr or pools")),
                },
                "ipPools" => {
                    s.ip_pools = value.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Into::into).collect();
                    None
                }
                "addressesOutsideIPAM" => value
                    .parse()
                    .map(|b| s.outside_addresses = b)
                    .err()
                    .map(|_| format!("{value:?}: write true or false")),
                "clusterCIDR" => cluster_cidrs(value).map(|c| s.cluster_cidrs = c).err(),
                "serviceCIDR" => cidrs(value).map(|c| s.service_cidrs = c).err(),
                "loadBalancerClass" => match value.split_once('/') {
                    Some((a, b)) if !a.is_empty() && !b.is_empty() => {
                        s.load_balancer_class = value.into();
                        None
                    }
                    _ => Some(format!("{value:?}: write a prefix, a slash and a name, as in {}", crate::load_balancer::CLASS)),
                },
                "loadBalancerDefault" => value
                    .parse()
                    .map(|b| s.load_balancer_default = b)
                    .err()
                    .map(|_| format!("{value:?}: write true or false")),
                "nodePortAddresses" => match value {
                    "" | "primary" => {
                        s.node_ports = NodePorts::Primary;
                        None
                    }
                    _ => cidrs(value).map(|c| s.node_ports = NodePorts::In(c)).err().map(|e| {
                        format!("{e}: write primary, or ranges of the nodes' addresses separated by commas")
                    }),
                },
                "l2RestartSeconds" => match value.parse::<u32>() {
                    Ok(n @ 0..=60) => {
                        s.l2_restart = n;
                        None
                    }
                    _ => Some(format!("{value:?}: write a number of seconds from 0 to 60; 0 hands over at once")),
                },
                _ => Some(
                    "no such setting: remove it, or correct it to addressesOutsideIPAM, apiServer, backend, clusterCIDR, directRouting, hostPortRange, ipam, ipPools, l2RestartSeconds, loadBalancerClass, loadBalancerDefault, masquerade, mode, modeOptions, nodePortAddresses, serviceCIDR, vni or \
                     vxlanPort"
                        .into(),
                ),
            };
            if let Some(why) = bad {
                problems.push(Problem::new(Self::key(), format!("data.{key}"), why));
            }
        }
        (s, problems)
    }
}

fn cidrs(text: &str) -> Result<Vec<Cidr>, String> {
    let each = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    each.map(|t| t.parse::<Cidr>().map_err(|e| e.to_string())).collect()
}

fn cluster_cidrs(text: &str) -> Result<Vec<Cidr>, String> {
    let all = cidrs(text)?;
    let families: BTreeSet<_> = all.iter().map(Cidr::family).collect();
    if families.len() == all.len() {
        Ok(all)
    } else {
        Err(format!("{text:?} has two ranges of one family: write one range of each family at most"))
    }
}
