//! The kernel objects of the fabric, as a plain value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::AttachmentKey;
use kernel_api::rt::{FdbEntry, Neighbour, Route, RouteTo};
use types::{Cidr, IfName, Mac, NodeName, OwnedName};

/// What the fabric owns on one node. Wanted images come from `compile`, present ones from [`crate::parse`].
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Sysctls by path relative to /proc/sys. A wanted image names only those it needs; a present one, all that the
    /// fabric ever asks for.
    pub sysctls: BTreeMap<Box<str>, Box<str>>,
    /// VXLAN devices of ours; a wanted image has at most one.
    pub vxlan: BTreeMap<OwnedName, VxlanDevice>,
    /// Host addresses (/32, /128) on those devices.
    pub addresses: BTreeSet<(OwnedName, IpAddr)>,
    /// Routes of the main table with our protocol number.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours on our VXLAN devices.
    pub neighbours: BTreeSet<Neighbour>,
    /// Forwarding entries of our VXLAN devices.
    pub fdb: BTreeSet<FdbEntry>,
    /// Host ends of pod interfaces, and whether each is up. The CNI plugin makes them; the fabric only brings them up
    /// and deletes those that no attachment names.
    pub pod_links: BTreeMap<OwnedName, bool>,
    /// Whose is what, and what is there that is not ours.
    pub index: Index,
}

/// A VXLAN device, with everything that makes it ours to reuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a parameter that we never set: it learns, is bound to a lower device, or is no VXLAN device at
    /// all. Such a device cannot be changed into ours, only replaced.
    pub alien: bool,
}

impl VxlanDevice {
    /// Whether the kernel can turn this device into `want` without making it anew: what is fixed at creation is equal.
    #[must_use]
    pub fn compatible(&self, want: &Self) -> bool {
        self.alien == want.alien && self.vni == want.vni && self.port == want.port && self.local == want.local
    }
}

/// Context of an image that no op makes: names for what is there, and what others own. Two images that differ only
/// here are equal, since an observation cannot know a peer's name, nor an intent a foreign route.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// The machine's own addresses, on links that are not ours.
    pub local: BTreeSet<IpAddr>,
    /// Routes of others in the main table; only in an observed image.
    pub foreign: BTreeSet<ForeignRoute>,
    /// Which peer a range belongs to; only in a compiled image.
    pub peers: BTreeMap<Cidr, NodeName>,
    /// Which pod interface a link is the host end of; only in a compiled image.
    pub pods: BTreeMap<OwnedName, AttachmentKey>,
}

/// A route that is not ours, as far as it bears on ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRoute {
    /// Destination.
    pub dst: Cidr,
    /// Metric.
    pub metric: u32,
    /// Where it leads; `None` when it discards or leads to several links.
    pub link: Option<IfName>,
}

/// Equality of the kernel objects; [`Index`] takes no part.
impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.sysctls == other.sysctls
            && self.vxlan == other.vxlan
            && self.addresses == other.addresses
            && self.routes == other.routes
            && self.neighbours == other.neighbours
            && self.fdb == other.fdb
            && self.pod_links == other.pod_links
    }
}

impl Image {
    /// This observed image with the names that a compiled one knows, so that a trace of it can say them.
    #[must_use]
    pub fn named_by(mut self, compiled: &Self) -> Self {
        self.index.peers.clone_from(&compiled.index.peers);
        self.index.pods.clone_from(&compiled.index.pods);
        self
    }

    /// This observed image with only those sysctls that `want` asks for, so that the two can be compared.
    #[must_use]
    pub fn restricted_to(mut self, want: &Self) -> Self {
        self.sysctls.retain(|k, _| want.sysctls.contains_key(k));
        self
    }

    /// The numbers a log line or metric shows: routes, neighbours, FDB entries.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.routes.len(), self.neighbours.len(), self.fdb.len())
    }
}

/// The metric of the route that discards what goes to no pod: higher than any that leads somewhere.
pub const STRAY_METRIC: u32 = 32768;

/// The link a route leaves by.
pub(crate) fn route_link(r: &Route) -> Option<&IfName> {
    match &r.to {
        RouteTo::Link(link) | RouteTo::Via { link, .. } => Some(link),
        RouteTo::Blackhole | RouteTo::Unreachable | RouteTo::Other(_) => None,
    }
}

/// The sysctls of the fabric (Documentation/networking/ip-sysctl.rst), relative to /proc/sys.
pub mod knob {
    use types::IfName;

    /// IPv4 forwarding of all links.
    pub const FORWARD_V4: &str = "net/ipv4/ip_forward";
    /// IPv6 forwarding of all links.
    pub const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
    /// The floor of every link's reverse path filter: the kernel takes the larger of this and the link's own.
    pub const RP_FILTER_ALL: &str = "net/ipv4/conf/all/rp_filter";
    /// Loose reverse path filter: while two nodes switch backend at different moments, packets come in by one link
    /// and go out by another, which the strict filter (1) would drop.
    pub const LOOSE: &str = "2";
    /// A node that forwards takes no router advertisements unless told so (2); without this, turning forwarding on
    /// would drop the default route that the uplink learned.
    pub const ACCEPT_RA_ROUTER: &str = "2";

    /// A packet outside of the window that connection tracking believes in is translated like the others of its
    /// connection. Taken for invalid it would reach a client with an endpoint's address instead of its Service's, and be
    /// answered with a reset. No rule, so no packet pays for it.
    pub const CT_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
    /// How long a connection that one side has closed is remembered, seconds: the other may still have much to send, and
    /// nothing else is said meanwhile. The kernel's minute is too short for that; kube-proxy sets an hour as well.
    pub const CT_CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    /// Its value.
    pub const CLOSE_WAIT_SECONDS: &str = "3600";
    /// The same as a number.
    pub const CLOSE_WAIT: u32 = 3600;
    /// Knobs that are there only once connection tracking is, which the first rule of the Services brings: those that
    /// are not there yet are set in a later pass.
    pub const CONNECTION_TRACKING: [&str; 2] = [CT_LIBERAL, CT_CLOSE_WAIT];

    /// The reverse path filter of a link.
    #[must_use]
    pub fn rp_filter(link: &IfName) -> String {
        format!("net/ipv4/conf/{link}/rp_filter")
    }

    /// Whether a link takes router advertisements.
    #[must_use]
    pub fn accept_ra(link: &IfName) -> String {
        format!("net/ipv6/conf/{link}/accept_ra")
    }
}
