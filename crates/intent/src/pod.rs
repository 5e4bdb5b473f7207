//! How one pod of this node is to be attached: what its own, its namespace's and the cluster's settings add up to.
//!
//! The agent puts each into a file for the CNI plugin, which may run while the agent does not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::{IfName, Mac};

use crate::HostPort;

/// How a pod of this node is to be attached. Absent and empty fields leave it to the plugin's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSpec {
    /// `metadata.uid`, or what the runtime calls a static pod: a pod made anew under the same name is another.
    pub uid: Box<str>,
    /// How its first interface is wired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wiring: Option<Wiring>,
    /// Hardware address of its first interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Addresses that its first interface must have, at most one of each family.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// `addresses` need not lie in a pool: they are not allocated, only configured.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub outside_ipam: bool,
    /// Names of the address pools to choose from, in order; all that are open to it when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Box<str>>,
    /// Limits of its first interface.
    #[serde(skip_serializing_if = "Bandwidth::is_none")]
    pub bandwidth: Bandwidth,
    /// Ports of the node that lead to it, chosen because it asked for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// The Pod does not tell of `host_ports` yet: it is attached when it does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untold: bool,
    /// Its containers' environment has what the Pod tells of `host_ports`, so the runtime must have seen that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_environment: bool,
    /// The network of its first interface, in place of the cluster's: `wiring`, `mac` and `addresses` count for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_network: Option<Network>,
    /// Further interfaces, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// Why it cannot be attached as it asks: names object, field and fix. Nothing else counts then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// How an interface is wired to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wiring {
    /// The way.
    pub mode: Mode,
    /// Fields for the plugin of that name beyond its defaults (`master` of macvlan); empty for `routed`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, Value>,
}

impl Wiring {
    /// Whether the interface is a station of its own on the network that its parent is on, so that its addresses must be
    /// of that network: nobody is told that the node leads to them.
    #[must_use]
    pub fn on_wire(&self) -> bool {
        match self.mode {
            Mode::Routed | Mode::Bridge | Mode::Ptp => false,
            Mode::Macvlan => true,
            // In modes l3 and l3s the node's own table leads its packets, and others must know the way.
            Mode::Ipvlan => !matches!(self.options.get("mode").and_then(Value::as_str), Some("l3" | "l3s")),
        }
    }

    /// Whether its options say where its addresses come from.
    #[must_use]
    pub fn has_own_ipam(&self) -> bool {
        self.options.contains_key("ipam")
    }
}

/// Ways to wire an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A veth pair and a host route for each address.
    #[default]
    Routed,
    /// A port of a bridge.
    Bridge,
    /// A veth pair with the gateway's address on the node's end.
    Ptp,
    /// A macvlan of an interface of the node.
    Macvlan,
    /// An ipvlan of an interface of the node.
    Ipvlan,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Routed, Self::Bridge, Self::Ptp, Self::Macvlan, Self::Ipvlan];

    /// As it is written; also the name of the plugin that does it, but for `routed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
            Self::Ptp => "ptp",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Mode {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL.into_iter().find(|m| m.as_str() == s).ok_or_else(|| format!("{s:?}: write one of {}", names()))
    }
}

/// Limits of an interface in bits per second and bits; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Into the pod, bits per second.
    pub ingress_rate: u64,
    /// Into the pod, bits; chosen from the rate when 0.
    pub ingress_burst: u64,
    /// Out of the pod, bits per second.
    pub egress_rate: u64,
    /// Out of the pod, bits; chosen from the rate when 0.
    pub egress_burst: u64,
}

impl Bandwidth {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.ingress_rate == 0 && self.egress_rate == 0
    }
}

/// An interface of a pod that a NetworkAttachmentDefinition or a file describes (Network Plumbing Working Group, "Kubernetes Network Custom Resource Definition
/// De-facto Standard", version 1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// `namespace/name` of the NetworkAttachmentDefinition.
    pub name: Box<str>,
    /// The interface's name inside.
    pub ifname: IfName,
    /// Its configuration list: `plugins`, in order, each as it stands in the definition.
    pub plugins: Vec<BTreeMap<String, Value>>,
    /// The list's `name`.
    pub network: Box<str>,
    /// The list's `cniVersion`.
    pub cni_version: Box<str>,
    /// Addresses asked for, with or without prefix length (`runtimeConfig.ips`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Box<str>>,
    /// Hardware address asked for (`runtimeConfig.mac`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Gateways through which the pod's default routes go, in place of the first interface's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_route: Vec<IpAddr>,
    /// `cni-args`: `args.cni` of each plugin.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, Value>,
}
