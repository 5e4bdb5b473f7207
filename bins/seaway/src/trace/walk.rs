//! The way of a packet over the nodes, computed from what their kernels hold. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::{Fabric, Step};
use intent::{L4, Leg, NodeIntent, Origin, Packet, Path, Snat, Verdict};
use plan::Dataplane;
use plane_nft::NftPlane;
use serde::Serialize;
use types::NodeName;

use super::words;

/// What has an address, for people.
pub type Names<'a> = &'a dyn Fn(IpAddr) -> Option<String>;

/// A node as observed, with the names that its intent gives things.
#[derive(Debug)]
pub struct NodeView {
    /// For names and for what it should be.
    pub intent: NodeIntent,
    /// The fabric's objects in the kernel, named.
    pub fabric: <Fabric as Dataplane>::Image,
    /// The nftables plane's objects in the kernel.
    pub nft: <NftPlane as Dataplane>::Image,
    /// The uplink's name.
    pub uplink: String,
}

/// One step of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The node it happens on.
    pub node: String,
    /// What kind of step.
    pub stage: Stage,
    /// What happens, with the object that decides.
    pub text: String,
}

/// The kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Leaves its source.
    Source,
    /// Service translation.
    Service,
    /// Source address.
    Nat,
    /// Routing decision.
    Route,
    /// Encapsulation.
    Tunnel,
    /// Arrives.
    Deliver,
    /// Stops here.
    Stop,
}

impl Stage {
    /// The word a person reads.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Service => "service",
            Self::Nat => "nat",
            Self::Route => "route",
            Self::Tunnel => "tunnel",
            Self::Deliver => "deliver",
            Self::Stop => "STOP",
        }
    }
}

/// One way the packet may go: where endpoints are chosen at random, one per candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Way {
    /// The endpoint chosen, if one is.
    pub endpoint: Option<String>,
    /// The steps.
    pub hops: Vec<Hop>,
    /// Whether it arrives, as far as the cluster's nodes decide.
    pub arrives: bool,
}

/// All ways of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was asked, in words.
    pub packet: String,
    /// Steps before the ways part.
    pub common: Vec<Hop>,
    /// The ways; empty when the packet stops before.
    pub ways: Vec<Way>,
}

/// How the last step of a packet that leaves the cluster begins: what is beyond, nobody here knows.
const LEAVES: &str = "leaves the cluster";

impl Report {
    /// Whether some way ends beyond the cluster.
    pub fn leaves(&self) -> bool {
        self.ways.iter().filter_map(|w| w.hops.last()).any(|h| h.text.starts_with(LEAVES))
    }

    /// Whether the packet arrives whichever endpoint is chosen.
    pub fn arrives(&self) -> bool {
        !self.ways.is_empty() && self.ways.iter().all(|w| w.arrives)
    }

    /// The first step at which it stops, if it does.
    pub fn stop(&self) -> Option<&Hop> {
        let ways = self.ways.iter().flat_map(|w| &w.hops);
        self.common.iter().chain(ways).find(|h| h.stage == Stage::Stop)
    }
}

struct Walk<'a> {
    nodes: &'a BTreeMap<NodeName, NodeView>,
    name: Names<'a>,
}

/// Follows `packet` from `start`. `name` says what has an address (a pod, a node, a Service), for people.
pub fn walk(nodes: &BTreeMap<NodeName, NodeView>, start: &NodeName, packet: &Packet, name: Names<'_>) -> Report {
    let w = Walk { nodes, name };
    let mut report = Report { packet: w.describe(packet), common: Vec::new(), ways: Vec::new() };
    let Some(view) = nodes.get(start) else {
        report.common.push(hop(
            start,
            Stage::Stop,
            format!("{start} was not observed: it is not in this lab or its namespace is gone"),
        ));
        return report;
    };
    if let Some(h) = w.source(start, view, packet) {
        let stops = h.stage == Stage::Stop;
        report.common.push(h);
        if stops {
            return report;
        }
    }
    match NftPlane.trace(&view.nft, packet) {
        Verdict::Reject(r) => {
            report.common.push(hop(start, Stage::Stop, words::rejected(&view.intent, packet, r)));
        }
        Verdict::Drop(d) => report.common.push(hop(start, Stage::Stop, words::dropped(&view.intent, packet, d))),
        Verdict::Forward(legs) => {
            let choice = words::choice(&view.intent, packet, &legs, name);
            report.common.extend(choice.map(|text| hop(start, Stage::Service, text)));
            report.ways = legs.iter().map(|l| w.way(start, view, packet, l)).collect();
        }
    }
    report
}

fn hop(node: &NodeName, stage: Stage, text: String) -> Hop {
    Hop { node: node.to_string(), stage, text }
}

/// The packet after a leg's translation.
fn translated(packet: &Packet, leg: &Leg, view: &NodeView) -> Packet {
    let mut p = packet.clone();
    if let Some(e) = leg.translated {
        p.dst = e.addr;
        if let L4::Ports { dst, .. } = &mut p.l4 {
            *dst = e.port;
        }
    }
    if leg.snat != Snat::Keep {
        let family = types::Family::of(p.dst);
        if let Some(a) = view.intent.addresses.iter().find(|a| types::Family::of(**a) == family) {
            p.src = *a;
        }
    }
    p
}

impl Walk<'_> {
    fn named(&self, addr: IpAddr) -> Option<String> {
        (self.name)(addr)
    }

    fn describe(&self, p: &Packet) -> String {
        let with = |a: IpAddr| self.named(a).map_or_else(|| a.to_string(), |n| format!("{n} ({a})"));
        let l4 = match p.l4 {
            L4::Ports { proto, dst, .. } => format!("{proto} port {dst}"),
            L4::Echo => "ping".to_owned(),
        };
        format!("{} to {}, {l4}", with(p.src), with(p.dst))
    }

    /// The step out of the source; a stop when its interface is not there.
    fn source(&self, node: &NodeName, view: &NodeView, packet: &Packet) -> Option<Hop> {
        match &packet.origin {
            Origin::Host => Some(hop(node, Stage::Source, format!("a process of {node}, from {}", packet.src))),
            Origin::Outside => Some(hop(node, Stage::Source, format!("comes in from outside on {}", view.uplink))),
            Origin::Pod(key) => {
                let Some(a) = view.intent.attachments.get(key) else {
                    return Some(hop(node, Stage::Stop, format!("no pod interface {key} is recorded on {node}")));
                };
                let who = a.pod.as_ref().map_or_else(|| key.to_string(), ToString::to_string);
                Some(match view.fabric.pod_links.get(&a.link) {
                    Some(true) => hop(
                        node,
                        Stage::Source,
                        format!("{who} sends from {} on {}; it comes out of {}", packet.src, key.ifname, a.link),
                    ),
                    Some(false) => {
                        hop(node, Stage::Stop, format!("{}, the host end of {who}'s interface, is down", a.link))
                    }
                    None => {
                        hop(node, Stage::Stop, format!("{}, the host end of {who}'s interface, is not there", a.link))
                    }
                })
            }
        }
    }

    fn way(&self, node: &NodeName, view: &NodeView, packet: &Packet, leg: &Leg) -> Way {
        let mut hops = Vec::new();
        if let Snat::Masquerade(why) = leg.snat {
            hops.push(hop(
                node,
                Stage::Nat,
                format!("source {} becomes an address of {node} (masquerade: {})", packet.src, words::masquerade(why)),
            ));
        }
        let p = translated(packet, leg, view);
        let arrives = self.route(node, view, &p, &mut hops, 0);
        Way { endpoint: leg.translated.map(|e| e.to_string()), hops, arrives }
    }

    /// Routes a packet that needs no more translation. `depth` bounds a loop between nodes that disagree.
    fn route(&self, node: &NodeName, view: &NodeView, p: &Packet, hops: &mut Vec<Hop>, depth: u8) -> bool {
        let way = fabric::way(&view.fabric, p.dst);
        let stop = |hops: &mut Vec<Hop>, why: String| {
            hops.push(hop(node, Stage::Stop, why));
            false
        };
        for s in &way.steps {
            match s {
                Step::Route(r) => hops.push(hop(node, Stage::Route, r.to_string())),
                Step::Foreign(_) | Step::NoRoute(_) => hops.push(hop(node, Stage::Route, s.to_string())),
                Step::Encap { .. } => hops.push(hop(node, Stage::Tunnel, format!("{s}, out of {}", view.uplink))),
                Step::LinkDown(_) | Step::NoNeighbour { .. } | Step::NoFdb(_) => return stop(hops, s.to_string()),
                Step::Local(_) | Step::Neighbour(_) => {}
            }
        }
        match way.path {
            Path::Host => {
                hops.push(hop(node, Stage::Deliver, format!("{} is an address of {node}: to the node itself", p.dst)));
                true
            }
            Path::Pod(key) => {
                let who = view.intent.attachments.get(&key).and_then(|a| a.pod.as_ref()).map(ToString::to_string);
                let who = who.unwrap_or_else(|| key.to_string());
                hops.push(hop(node, Stage::Deliver, format!("to {who} on {}", key.ifname)));
                true
            }
            Path::Outside => match self.missing(view, p.dst) {
                Some(why) => stop(hops, why),
                None => {
                    let peer = view.intent.peers.iter().find(|(_, q)| q.addresses.contains(&p.dst));
                    let text = match peer {
                        Some((n, _)) => format!("to {n} itself, by {node}'s own routes"),
                        None => format!("{LEAVES} by {node}'s own routes"),
                    };
                    hops.push(hop(node, Stage::Deliver, text));
                    true
                }
            },
            Path::Nowhere => stop(hops, self.nowhere(view, p.dst)),
            Path::Peer { node: next, .. } => {
                let Some(there) = self.nodes.get(&next) else {
                    return stop(hops, format!("{next} was not observed: its state is not known here"));
                };
                if depth >= 4 {
                    return stop(hops, "the packet goes round between nodes: their routes disagree".into());
                }
                let q = Packet { origin: Origin::Outside, ..p.clone() };
                match NftPlane.trace(&there.nft, &q) {
                    Verdict::Forward(_) => self.route(&next, there, &q, hops, depth + 1),
                    Verdict::Reject(r) => {
                        hops.push(hop(&next, Stage::Stop, words::rejected(&there.intent, &q, r)));
                        false
                    }
                    Verdict::Drop(d) => {
                        hops.push(hop(&next, Stage::Stop, words::dropped(&there.intent, &q, d)));
                        false
                    }
                }
            }
        }
    }

    /// Why an address that the cluster owns is left to the machine's own routes, if it is.
    fn missing(&self, view: &NodeView, dst: IpAddr) -> Option<String> {
        let mend = "the agent puts it back within two seconds; if it does not, look at its log";
        match intent::path(&view.intent, dst) {
            Path::Outside | Path::Host => None,
            Path::Pod(key) => {
                let link = view.intent.attachments.get(&key).map_or_else(String::new, |a| a.link.to_string());
                Some(format!("there should be a route {dst} dev {link}, and there is none: {mend}"))
            }
            Path::Peer { node, .. } => {
                Some(format!("there should be a route to {node}'s pods, and there is none: {mend}"))
            }
            Path::Nowhere => Some(self.nowhere(view, dst)),
        }
    }

    fn nowhere(&self, view: &NodeView, dst: IpAddr) -> String {
        let peer = view
            .intent
            .peers
            .iter()
            .find_map(|(n, p)| p.routes.iter().find(|r| r.cidr.contains(dst)).map(|r| (n, &r.reach)));
        match peer {
            Some((n, intent::Reach::None { why })) => format!("no way to {n}: {why}"),
            Some((n, _)) => format!("the way to {n} is refused on this node; look at its agent's status"),
            None => format!("{dst} is in this node's own pod range but no pod has it"),
        }
    }
}
