//! Owns: [`NodeIntent`], what one node must do, free of any kernel word; [`Packet`], [`Verdict`], and
//! [`verdict`], the one specification that every dataplane's `trace` is tested against.
//! Never does: I/O, or anything that knows how a kernel or the Kubernetes API says a thing.
//! Tested by: the cases in `verdict.rs`; the planes' differential properties use the strategies of `generate` here (feature `gen`).

mod changes;
#[cfg(any(test, feature = "gen"))]
pub mod generate;
mod model;
mod packet;
pub mod pod;
mod verdict;

pub use changes::{Ports, ServiceChanges};
pub use model::{
    Affinity, Attachment, AttachmentKey, Backend, ByFamily, Endpoint, HostPort, NodeIntent, Peer, PeerRoute, Policy,
    PolicyPeer, PolicyPort, PolicyRule, Reach, Scope, ServiceKey, ServicePort, TrafficPolicy, Vxlan,
};
pub use packet::{Choice, Drop, L4, Leg, Masquerade, Origin, Packet, Path, Reject, Snat, Verdict};
pub use pod::{Bandwidth, Mode, Network, PodSpec, Wiring};
pub use verdict::{Front, front, path, translate, verdict};
