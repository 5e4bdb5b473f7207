//! What the last pass found, for `/status` and the log.

use plan::Refused;
use serde::Serialize;

/// The state of the node as its agent sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The backend it sends with.
    pub backend: String,
    /// Its pod ranges.
    pub pod_cidrs: Vec<String>,
    /// Peers it knows and how it reaches each range.
    pub peers: Vec<PeerStatus>,
    /// Pod interfaces.
    pub attachments: usize,
    /// Service ports.
    pub services: usize,
    /// Load balancer addresses that it answers for on its links.
    pub announcing: Vec<String>,
    /// `--service-proxy`: `on`, `beside` or `off`.
    pub service_proxy: String,
    /// What of others' rules gets in the way.
    pub foreign: Vec<Refused>,
    /// What could not be honoured: bad input of the cluster, or what a plane cannot express here.
    pub refused: Vec<Refused>,
    /// Rights that the API server denies: which rule is missing, and in which role.
    pub denied: Vec<String>,
    /// The last error of each dataplane that is failing.
    pub failing: Vec<String>,
}

/// One pod range of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// The peer.
    pub node: String,
    /// The range.
    pub cidr: String,
    /// The way there, as a person would say it.
    pub via: String,
}

/// Describes the peers of an intent.
pub fn peers(intent: &intent::NodeIntent) -> Vec<PeerStatus> {
    let of = |r: &intent::Reach| match r {
        intent::Reach::Direct { next_hop } => format!("direct, next hop {next_hop}"),
        intent::Reach::Vxlan { remote, .. } => format!("vxlan to {remote}"),
        intent::Reach::None { why } => format!("unreachable: {why}"),
    };
    intent
        .peers
        .iter()
        .flat_map(|(n, p)| p.routes.iter().map(move |r| (n, r)))
        .map(|(n, r)| PeerStatus { node: n.to_string(), cidr: r.cidr.to_string(), via: of(&r.reach) })
        .collect()
}
