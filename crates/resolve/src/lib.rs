//! Owns: [`ClusterSnapshot`], the cluster as slim values; how API objects are read into it; and [`resolve`], what it means for one node.
//! Never does: I/O, or anything that knows how a kernel says a thing. Bad input is a [`Problem`], never an error.
//! Tested by: a table of bad input with the message each gives; the order, split and repetition property of events in `tests/`.

pub mod annotations;
pub mod api;
mod bandwidth;
mod events;
pub mod explain;
mod follow;
pub mod host_ports;
mod labels;
pub mod load_balancer;
pub mod networks;
mod node;
mod parse;
mod pods;
pub mod pools;
mod problem;
pub mod selector;
mod services;
pub mod settings;
mod slices;
mod snapshot;
mod texts;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::{Attachment, AttachmentKey, HostPort, NodeIntent};
use types::{Cidr, Mac, NodeName};

pub use events::{Event, Object, Parsed, apply};
pub use follow::{Changes, Followed, Resolver};
pub use intent::{Backend, TrafficPolicy};
pub use labels::Labels;
pub use parse::{parse, parse_as, unix_millis};
pub use pods::wiring_of;
pub use problem::Problem;
pub use services::unusable_endpoint;
pub use settings::Settings;
pub use slices::{EndpointSlice, Endpoints, Hints, SliceEndpoint, SlicePort, Subset};
pub use snapshot::{
    ClusterSnapshot, ContainerPort, Key, Kind, Namespace, Node, Owner, Phase, Pod, Service, ServiceType, SvcPort,
    TargetPort,
};
pub use workload::{Revision, Workload};

/// What only this node knows: the rest of its intent's sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalState {
    /// This node's name.
    pub node: NodeName,
    /// Pod interfaces that the CNI plugin made here.
    pub attachments: BTreeMap<AttachmentKey, Attachment>,
    /// The ranges that this node's own interfaces make on-link: for each address of an interface that other nodes
    /// may be reached by, its prefix. Host prefixes (/32, /128) count for nothing.
    pub on_link: Vec<Cidr>,
    /// Every address of this node's own interfaces, but for loopback's and those of our making.
    pub addresses: BTreeSet<IpAddr>,
    /// The hardware address that this node's VXLAN device has or will have; stable over restarts.
    pub vxlan_mac: Mac,
    /// The kernel can make VXLAN devices.
    pub vxlan_supported: bool,
    /// Connections of this node's own processes, or masqueraded ones, run over the addresses of a VXLAN device that
    /// is there: it stays until they have ended, so that a switch of backend breaks none.
    pub vxlan_in_use: bool,
    /// The node's CNI configuration files by the name they give their network, or why one cannot be used.
    pub networks: BTreeMap<Box<str>, Result<networks::Config, String>>,
    /// Another proxy serves Services here.
    pub services_elsewhere: bool,
    /// Ports of the node that are in use or chosen.
    pub ports: host_ports::PortsHere,
}

/// What a snapshot means for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What the node must do.
    pub intent: NodeIntent,
    /// What could not be honoured, sorted; for status, events and log.
    pub problems: Vec<Problem>,
}

/// What a node must do, from the cluster's objects and what only the node knows. Depends on nothing else: equal
/// arguments give equal results.
#[must_use]
pub fn resolve(snapshot: &ClusterSnapshot, local: &LocalState) -> Resolved {
    let Followed { intent, problems, .. } = Resolver::new().follow(snapshot, local, &Changes::All);
    Resolved { intent: Arc::unwrap_or_clone(intent), problems }
}

/// The node's pod interfaces, with the host ports that the runtime gave and those of the pod's own spec.
fn attachments(snapshot: &ClusterSnapshot, local: &LocalState) -> BTreeMap<AttachmentKey, Attachment> {
    let mut all = local.attachments.clone();
    for a in all.values_mut() {
        let Some(pod) = a.pod.as_ref().and_then(|n| snapshot.pods.get(n)) else { continue };
        // A pod that was made anew under the same name has other addresses until its own ADD.
        if !a.addresses.iter().any(|ip| pod.ips.contains(ip)) {
            continue;
        }
        for p in &pod.ports {
            let Some(host) = p.host_port else { continue };
            let port = HostPort {
                host: types::PortKey { proto: p.port.proto, port: host },
                host_ip: p.host_ip,
                container_port: p.port.port,
            };
            if !a.host_ports.contains(&port) {
                a.host_ports.push(port);
            }
        }
        a.host_ports.sort();
    }
    all
}
