//! What the journal knows of one attachment.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use types::{Cidr, IfName, Mac, OwnedName};

use crate::extras::{Limits, PortMapping};

/// Which interface of which container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// `CNI_CONTAINERID`.
    pub container: Box<str>,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
}

impl Key {
    /// The host end's name: a function of the key alone.
    #[must_use]
    pub fn link(&self) -> OwnedName {
        OwnedName::for_container(&self.container, self.ifname.as_str())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.ifname)
    }
}

/// The pod, as the runtime named it in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Box<str>,
    /// `K8S_POD_NAME`.
    pub name: Box<str>,
    /// `K8S_POD_UID`, when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Box<str>>,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Whose.
    pub key: Key,
    /// The network's name (`name` of the CNI configuration): GC speaks of one network only.
    pub network: Box<str>,
    /// Path of the network namespace (`CNI_NETNS`).
    pub netns: Box<str>,
    /// Inode of the namespace on nsfs: tells a namespace from a later one at the same path.
    pub inode: u64,
    /// The pod, when the runtime named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The host end.
    pub link: OwnedName,
    /// At most one per family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Bytes.
    pub mtu: u32,
    /// Seconds since 1970.
    pub time: u64,
    /// Plugins that made interfaces of this attachment, or were about to, in order. Empty when we wired it ourselves and
    /// there is no other network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegates: Vec<Delegate>,
    /// Ports of the node that lead here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// What it may send and receive.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Hardware address of an interface of our own making, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Where the pod's routes lead, when that is not everywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Cidr>,
    /// Names that stand for its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Box<str>>,
    /// `CNI_PATH` of the call, for when the delegates are undone without a runtime; empty without delegates.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub path: Box<str>,
}

impl Record {
    /// Whether the first interface is a veth pair of our own with host routes (mode `routed`).
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.delegates.iter().all(|d| d.ifname != self.key.ifname)
    }
}

/// A plugin that works on an interface of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegate {
    /// The network's name, for people and for `network-status`.
    pub network: Box<str>,
    /// The plugin.
    pub kind: Box<str>,
    /// The interface inside.
    pub ifname: IfName,
    /// Its whole configuration.
    pub conf: Map<String, Value>,
    /// It is the last, or only, one of its network's list.
    pub last: bool,
    /// The network's result, with the last one's, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}
