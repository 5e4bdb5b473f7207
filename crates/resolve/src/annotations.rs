//! The contract between agents: what each publishes on its own Node object, and what others read there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use intent::NodeIntent;
use serde::{Deserialize, Serialize};
use types::{Mac, NodeName};

use crate::host_ports;
use crate::networks;

/// The backend this node sends with now (`host-gw` or `vxlan`), written after its routes are so. While any peer says
/// `vxlan`, a node keeps its own VXLAN device, so that a switch away from vxlan loses nothing.
pub const BACKEND: &str = "seaway.io/backend";
/// [`VxlanData`] as JSON, published once this node's VXLAN device can receive, removed before it goes. Peers send
/// through VXLAN only to nodes that publish it, so that a switch to vxlan loses nothing.
pub const VXLAN: &str = "seaway.io/vxlan";
/// The pod ranges this node serves, comma separated, once it does.
pub const SUBNETS: &str = "seaway.io/subnets";

/// How pods are wired: one of [`intent::Mode`]; on a Pod or a Namespace.
pub const MODE: &str = "seaway.io/mode";
/// A JSON object with fields for that mode's plugin, e.g. `{"master": "eth1"}`; beside [`MODE`].
pub const MODE_OPTIONS: &str = "seaway.io/mode-options";

/// Hardware address of a pod's first interface, in our name and in Calico's.
pub const MAC: [&str; 2] = ["seaway.io/mac", "cni.projectcalico.org/hwAddr"];

/// On a mirror Pod, by the kubelet: the UID that the runtime knows the static pod by (`ConfigMirrorAnnotationKey`,
/// pkg/kubelet/types). The mirror's own is another.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a pod may receive, in bits per second; Kubernetes' own name. On a Pod, or on a Namespace for those that do not say.
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// What it may send.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";

/// The annotations of Pods and Namespaces that are read; the snapshot holds no others.
#[rustfmt::skip] // a line each, so that two additions do not meet
pub const READ: &[&str] = &[
    INGRESS_BANDWIDTH,
    EGRESS_BANDWIDTH,
    MODE,
    MODE_OPTIONS,
    MAC[0],
    MAC[1],
    MIRROR,
    networks::NETWORKS,
    networks::DEFAULT,
    networks::OLDER,
    host_ports::ASK,
    host_ports::TOLD,
];

/// How a node is reached through VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VxlanData {
    /// Network identifier, 1 to 16777215.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// The device's hardware address.
    pub mac: Mac,
    /// The outer address.
    pub address: IpAddr,
}

/// The hardware address that a node's VXLAN device gets: the same after every restart and re-creation, so that peers'
/// entries stay right (FNV-1a of name and VNI; locally administered).
#[must_use]
pub fn vxlan_mac(node: &NodeName, vni: u32) -> Mac {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for b in node.as_str().bytes().chain(vni.to_be_bytes()) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, f, g, i] = h.to_be_bytes();
    Mac::local([a ^ g, b ^ i, c, d, e, f])
}

/// The hardware address of a second device, beside one with this address: two ways of one address would be a contradiction.
#[must_use]
pub fn vxlan6_mac(first: Mac) -> Mac {
    let [a, b, c, d, e, f] = first.0;
    Mac([a, b, c, d, e, f ^ 0x80])
}

/// The annotations that a node with this intent publishes; `None` removes one. `vxlan_up` says that the VXLAN device
/// of the intent exists in the kernel.
#[must_use]
pub fn published(intent: &NodeIntent, vxlan_up: bool) -> BTreeMap<&'static str, Option<String>> {
    let vxlan = intent.vxlan.as_ref().filter(|_| vxlan_up).and_then(|v| {
        serde_json::to_string(&VxlanData { vni: v.vni, port: v.port, mac: v.mac, address: v.local }).ok()
    });
    let subnets: Vec<String> = intent.pod_cidrs.iter().map(ToString::to_string).collect();
    BTreeMap::from([
        (BACKEND, Some(intent.backend.to_string())),
        (VXLAN, vxlan),
        (SUBNETS, (!subnets.is_empty()).then(|| subnets.join(","))),
    ])
}
