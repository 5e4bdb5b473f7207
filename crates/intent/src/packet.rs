//! A packet that opens a flow, and what may happen to it on one node.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use types::{NodeName, Proto};

use crate::model::{AttachmentKey, Endpoint};

/// The first packet of a flow, as it enters a node's dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Where it comes from.
    pub origin: Origin,
    /// Source address, of the same family as `dst`.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// What it carries.
    pub l4: L4,
}

/// Where a packet enters this node's dataplane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Origin {
    /// A process of the node itself.
    Host,
    /// A pod's interface on this node.
    Pod(AttachmentKey),
    /// Anywhere beyond the node: a peer, through uplink or tunnel, or the world.
    Outside,
}

/// The transport part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum L4 {
    /// TCP (a SYN), UDP or SCTP (an INIT).
    Ports {
        /// Protocol.
        proto: Proto,
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// An ICMP or ICMPv6 echo request.
    Echo,
}

/// What may happen to a packet on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It goes on, in one of these ways; where an endpoint is chosen at random there are several. Never empty.
    Forward(BTreeSet<Leg>),
    /// The sender is told at once (TCP reset or ICMP unreachable).
    Reject(Reject),
    /// It disappears.
    Drop(Drop),
}

/// One way a packet may go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Leg {
    /// The destination after service translation; `None` where nothing was translated.
    pub translated: Option<Endpoint>,
    /// From which endpoints that one was chosen; `None` where nothing was translated.
    pub choice: Option<Choice>,
    /// The source address afterwards.
    pub snat: Snat,
    /// Where it is routed; `None` in the trace of a plane that does not route.
    pub path: Option<Path>,
}

/// What becomes of the source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Snat {
    /// Kept.
    Keep,
    /// Replaced by this node's address, with a fully random port.
    Masquerade(Masquerade),
}

/// Why a source address is replaced. Where several reasons hold, the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Masquerade {
    /// A pod's packet leaves the cluster.
    LeavesCluster,
    /// Policy Cluster, at a node port or an address for traffic from outside: the endpoint may be on another node, whose
    /// answer must come back this way.
    PolicyCluster,
    /// Policy Local does not hold inside the cluster: neither for another node's pod nor for this node itself.
    InsideToOutside,
    /// At a cluster address, from elsewhere than a pod: the answer must come back this way.
    NoPod,
    /// A pod reaches itself through its Service: the answer must come back through the node.
    Hairpin,
}

/// From which endpoints one is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Choice {
    /// A random one of all that the node may use.
    Any,
    /// Policy Local: a random one of this node's, where others have some too.
    Local,
    /// Session affinity: the one that this client had before. No verdict says so, since it is no matter of intent: it
    /// gives every endpoint that may come to be remembered.
    Remembered,
}

/// Where a packet is routed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Path {
    /// To this pod interface of this node.
    Pod(AttachmentKey),
    /// To the node itself.
    Host,
    /// To another node, for one of its pods.
    Peer {
        /// That node.
        node: NodeName,
        /// Encapsulated or as it is.
        tunnel: bool,
    },
    /// To anywhere else, by the routes that the machine had before.
    Outside,
    /// Nowhere: the address is in a pod range of this node but no pod has it, or the peer cannot be reached. The
    /// routing table refuses it (blackhole or unreachable).
    Nowhere,
}

/// Why a packet is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reject {
    /// The Service port has no endpoint to choose.
    NoEndpoints,
    /// A Service's address at a port it does not serve, or ping.
    UnusedPort,
}

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Drop {
    /// A policy isolates the pod and no rule allows the packet.
    Policy,
    /// The source is not in the load balancer's `loadBalancerSourceRanges`.
    SourceRange,
    /// Policy Local, and the endpoints are all on other nodes.
    NoLocalEndpoints,
    /// An address of the range of cluster addresses that no Service has. It may get one in a moment, so nobody is told.
    NoService,
}

impl Packet {
    /// Transport protocol and destination port, if it has them.
    #[must_use]
    pub fn port(&self) -> Option<types::PortKey> {
        match self.l4 {
            L4::Ports { proto, dst, .. } => Some(types::PortKey { proto, port: dst }),
            L4::Echo => None,
        }
    }
}

impl Verdict {
    /// The single way on, without service translation.
    #[must_use]
    pub fn one(leg: Leg) -> Self {
        Self::Forward(BTreeSet::from([leg]))
    }

    /// Whether `self` is what `allowed` says, or that part of it that affinity remembers.
    #[must_use]
    pub fn is_within(&self, allowed: &Self) -> bool {
        let (Self::Forward(mine), Self::Forward(legs)) = (self, allowed) else { return self == allowed };
        if mine.iter().all(|l| l.choice != Some(Choice::Remembered)) {
            return mine == legs;
        }
        let same = |a: &Leg, b: &Leg| Leg { choice: None, ..a.clone() } == Leg { choice: None, ..b.clone() };
        mine.len() == 1 && mine.iter().all(|l| legs.iter().any(|w| same(l, w)))
    }

    /// The same verdict as a plane that does not route would give it.
    #[must_use]
    pub fn without_paths(self) -> Self {
        match self {
            Self::Forward(legs) => Self::Forward(legs.into_iter().map(|l| Leg { path: None, ..l }).collect()),
            other => other,
        }
    }
}

impl Masquerade {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::LeavesCluster, Self::PolicyCluster, Self::InsideToOutside, Self::NoPod, Self::Hairpin];
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeavesCluster => "it leaves the cluster",
            Self::PolicyCluster => "policy Cluster: the endpoint may be on another node",
            Self::InsideToOutside => "policy Local does not hold inside the cluster",
            Self::NoPod => "it comes from no pod",
            Self::Hairpin => "a pod reaches itself",
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "chosen at random",
            Self::Local => "policy Local: only this node's",
            Self::Remembered => "session affinity: the one this client had before",
        })
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoints => "the Service port has no ready endpoint",
            Self::UnusedPort => "the address is a Service's, which does not serve this port",
        })
    }
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "no policy allows it",
            Self::SourceRange => "the source is not in loadBalancerSourceRanges",
            Self::NoLocalEndpoints => "the traffic policy is Local and this node has no endpoint",
            Self::NoService => "the address is in the range of cluster addresses, and no Service has it",
        })
    }
}
