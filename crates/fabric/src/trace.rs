//! What the objects of an image do to a packet: a routing table lookup over our own rows.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;

use intent::{AttachmentKey, Leg, Packet, Path, Snat, Verdict};
use kernel_api::rt::{FdbEntry, Neighbour, Route, RouteTo};
use types::{IfName, NodeName, OwnedName};

use crate::compile::fdb_of;
use crate::image::{ForeignRoute, Image};

/// The way of a packet through this node, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Where it ends on this node.
    pub path: Path,
    /// The rows it met, in order.
    pub steps: Vec<Step>,
}

/// One row that a packet met, or the one that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The address is the node's own.
    Local(IpAddr),
    /// A route of ours.
    Route(Route),
    /// Another's route is longer: the fabric has no say.
    Foreign(ForeignRoute),
    /// No row of ours: the machine's own routes decide.
    NoRoute(IpAddr),
    /// The gateway's hardware address.
    Neighbour(Neighbour),
    /// Encapsulated.
    Encap {
        /// The forwarding entry.
        fdb: FdbEntry,
        /// VXLAN network identifier.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
    /// A link the route needs is gone or down.
    LinkDown(IfName),
    /// The gateway has no neighbour entry on the device, and nothing would answer a request for it.
    NoNeighbour {
        /// The gateway.
        gateway: IpAddr,
        /// The device.
        link: IfName,
    },
    /// The hardware address has no forwarding entry, and none is learned.
    NoFdb(Neighbour),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(a) => write!(f, "local {a}"),
            Self::Route(r) => write!(f, "route {r}"),
            Self::Foreign(r) => match &r.link {
                Some(l) => write!(f, "route {} dev {l}, not Seaway's", r.dst),
                None => write!(f, "route {}, not Seaway's", r.dst),
            },
            Self::NoRoute(a) => write!(f, "no route of Seaway's to {a}: the machine's own routes decide"),
            Self::Neighbour(n) => write!(f, "neighbour {n}"),
            Self::Encap { fdb, vni, port } => {
                write!(f, "VXLAN VNI {vni} to {} port {port} (fdb {} dev {})", fdb.remote, fdb.mac, fdb.link)
            }
            Self::LinkDown(l) => write!(f, "link {l} is gone or down"),
            Self::NoNeighbour { gateway, link } => write!(f, "no neighbour entry for {gateway} on {link}: dropped"),
            Self::NoFdb(n) => write!(f, "no forwarding entry for {} on {}: dropped", n.mac, n.link),
        }
    }
}

/// The fabric translates nothing: one leg, with the path of the destination.
pub fn trace(image: &Image, packet: &Packet) -> Verdict {
    Verdict::one(Leg { translated: None, choice: None, snat: Snat::Keep, path: Some(way(image, packet.dst).path) })
}

/// The way of a packet to `dst`. An observed image should be [`Image::named_by`] the compiled one; else peers and pods
/// go by the names of their routes and links.
#[must_use]
pub fn way(image: &Image, dst: IpAddr) -> Way {
    let end = |path, steps| Way { path, steps };
    // Table local comes first (`ip rule`, priority 0).
    if image.index.local.contains(&dst) || image.addresses.iter().any(|(_, a)| *a == dst) {
        return end(Path::Host, vec![Step::Local(dst)]);
    }
    // The longest prefix, then the smallest metric.
    let best = image.routes.iter().filter(|r| r.dst.contains(dst)).max_by_key(|r| (r.dst.len(), Reverse(r.metric)));
    let foreign =
        image.index.foreign.iter().filter(|r| r.dst.contains(dst)).max_by_key(|r| (r.dst.len(), Reverse(r.metric)));
    let route = match (best, foreign) {
        (None, None) => return end(Path::Outside, vec![Step::NoRoute(dst)]),
        (None, Some(f)) => return end(Path::Outside, vec![Step::Foreign(f.clone())]),
        (Some(r), Some(f)) if (f.dst.len(), Reverse(f.metric)) > (r.dst.len(), Reverse(r.metric)) => {
            return end(Path::Outside, vec![Step::Foreign(f.clone())]);
        }
        (Some(r), _) => r,
    };
    let mut steps = vec![Step::Route(route.clone())];
    let path = match &route.to {
        RouteTo::Blackhole | RouteTo::Unreachable => Path::Nowhere,
        RouteTo::Other(_) => Path::Outside,
        RouteTo::Link(link) => match OwnedName::recognise(link) {
            Ok(name) if image.pod_links.get(&name) == Some(&true) => Path::Pod(pod_name(image, &name)),
            Ok(name) if image.vxlan.get(&name).is_some_and(|d| d.up) => Path::Outside,
            Ok(_) => {
                steps.push(Step::LinkDown(link.clone()));
                Path::Nowhere
            }
            Err(_) => Path::Outside,
        },
        RouteTo::Via { gateway, link, .. } => match OwnedName::recognise(link) {
            Err(_) => peer(image, route, false),
            Ok(device) => tunnel(image, route, &device, *gateway, &mut steps),
        },
    };
    end(path, steps)
}

fn tunnel(image: &Image, route: &Route, device: &OwnedName, gateway: IpAddr, steps: &mut Vec<Step>) -> Path {
    let link = device.name();
    let Some(d) = image.vxlan.get(device).filter(|d| d.up) else {
        steps.push(Step::LinkDown(link.clone()));
        return Path::Nowhere;
    };
    let Some(n) = image.neighbours.iter().find(|n| n.link == *link && n.addr == gateway) else {
        steps.push(Step::NoNeighbour { gateway, link: link.clone() });
        return Path::Nowhere;
    };
    steps.push(Step::Neighbour(n.clone()));
    let Some(fdb) = fdb_of(&image.fdb, link, n.mac).next() else {
        steps.push(Step::NoFdb(n.clone()));
        return Path::Nowhere;
    };
    steps.push(Step::Encap { fdb: fdb.clone(), vni: d.vni, port: d.port });
    peer(image, route, true)
}

fn pod_name(image: &Image, link: &OwnedName) -> AttachmentKey {
    image
        .index
        .pods
        .get(link)
        .cloned()
        .unwrap_or_else(|| AttachmentKey { container_id: "unknown".into(), ifname: link.as_str().into() })
}

/// A route of ours to a range that no peer has is a leftover; it is named by the range.
fn peer(image: &Image, route: &Route, tunnel: bool) -> Path {
    let unknown = || format!("unknown-{}", route.dst).replace([':', '/'], "-").parse().ok();
    let node: Option<NodeName> = image.index.peers.get(&route.dst).cloned().or_else(unknown);
    node.map_or(Path::Outside, |node| Path::Peer { node, tunnel })
}
