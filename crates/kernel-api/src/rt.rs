//! Links, addresses, routes, neighbours and forwarding entries (rtnetlink(7)).

use std::fmt;
use std::net::IpAddr;

use types::{Cidr, Family, IfName, Mac, OwnedName};

use crate::RequestError;

/// The route protocol number on every route of ours (`rtm_protocol`; 83 is free in include/uapi/linux/rtnetlink.h and
/// iproute2's rt_protos). Deletes name it, so the kernel itself will not delete another's route for us.
pub const ROUTE_PROTOCOL: u8 = 83;

/// The routing table all our routes are in (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// Links, addresses, routes, neighbours and forwarding entries of one network namespace.
pub trait Rtnetlink {
    /// Every link.
    ///
    /// # Errors
    /// When the dump fails.
    fn links(&mut self) -> Result<Vec<Link>, RequestError>;
    /// Every address of every link.
    ///
    /// # Errors
    /// When the dump fails.
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError>;
    /// Every unicast, blackhole and unreachable route of the main table, ours and others'. Routes the kernel makes by
    /// itself for addresses (tables local, cached entries) are left out; its connected routes are in.
    ///
    /// # Errors
    /// When the dump fails.
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError>;
    /// Every permanent neighbour entry of both families. Learned ones are left out.
    ///
    /// # Errors
    /// When the dump fails.
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError>;
    /// Every permanent forwarding entry with a remote destination (VXLAN).
    ///
    /// # Errors
    /// When the dump fails.
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError>;
    /// Runs requests in order in as few sends as possible. A refused one does not undo those before it, and those
    /// after it are still tried: the kernel takes each message by itself.
    ///
    /// # Errors
    /// The first refusal, with its index.
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError>;
}

/// A network namespace, by an open file descriptor (`IFLA_NET_NS_FD`) that outlives the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsFd(pub i32);

/// One change. Deletes of links take [`OwnedName`], deletes of routes act on [`ROUTE_PROTOCOL`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RtRequest {
    /// Create a link (`RTM_NEWLINK`, create, exclusive).
    LinkAdd(NewLink),
    /// Change a link that exists.
    LinkSet(SetLink),
    /// Delete a link of ours.
    LinkDel(OwnedName),
    /// Add or refresh an address (`RTM_NEWADDR`, create, replace; IPv6 without duplicate detection).
    AddressAdd(Address),
    /// Remove an address.
    AddressDel(Address),
    /// Add or replace the route to a destination with the same metric (`RTM_NEWROUTE`, create, replace).
    RouteReplace(Route),
    /// Add a route and fail with EEXIST when one to that destination and metric is there (create, exclusive).
    RouteAdd(Route),
    /// Remove a route of ours.
    RouteDel(Route),
    /// Add or replace a permanent neighbour.
    NeighbourReplace(Neighbour),
    /// Remove a neighbour.
    NeighbourDel(Neighbour),
    /// Add or replace a permanent forwarding entry of a VXLAN device (`NTF_SELF`).
    FdbReplace(FdbEntry),
    /// Remove it.
    FdbDel(FdbEntry),
}

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index in this namespace.
    pub index: u32,
    /// Name.
    pub name: IfName,
    /// Hardware address, if it has a 48-bit one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// For a veth: the peer's index, in its own namespace (`IFLA_LINK`).
    pub peer_index: Option<u32>,
    /// What it is.
    pub kind: LinkKind,
}

/// What a link is (`IFLA_INFO_KIND`), with the parameters we set or compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A pair of virtual Ethernet interfaces.
    Veth,
    /// A bridge.
    Bridge,
    /// A VXLAN device.
    Vxlan(VxlanParams),
    /// Anything else, by its kind; empty for hardware and loopback.
    Other(String),
}

/// VXLAN parameters (include/uapi/linux/if_link.h, `IFLA_VXLAN_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanParams {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port, host order.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Lower device's index (`IFLA_VXLAN_LINK`).
    pub lower: Option<u32>,
    /// Whether it learns forwarding entries from traffic.
    pub learning: bool,
}

/// A link to make. It is created down in the namespace of the implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// Name.
    pub name: IfName,
    /// Kind and parameters.
    pub kind: NewLinkKind,
    /// MTU in bytes; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// Hardware address; random when absent.
    pub mac: Option<Mac>,
    /// Bridge to join, by index.
    pub master: Option<u32>,
    /// Whether to bring it up at once.
    pub up: bool,
}

/// Kind and parameters of a link to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewLinkKind {
    /// A pair; the peer is made in `peer_netns`, or here when absent.
    Veth {
        /// Name of the other end.
        peer: IfName,
        /// Where it is made.
        peer_netns: Option<NetnsFd>,
        /// Its hardware address; random when absent.
        peer_mac: Option<Mac>,
    },
    /// A bridge.
    Bridge,
    /// A VXLAN device.
    Vxlan(VxlanParams),
}

/// Changes to a link, by name. Absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLink {
    /// The link.
    pub name: IfName,
    /// Bring up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Join a bridge by index; zero leaves it.
    pub master: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Move to another namespace.
    pub netns: Option<NetnsFd>,
    /// Hairpin mode of a bridge port.
    pub hairpin: Option<bool>,
}

impl SetLink {
    /// No change yet.
    #[must_use]
    pub fn new(name: IfName) -> Self {
        Self { name, up: None, mtu: None, master: None, mac: None, netns: None, hairpin: None }
    }

    /// Bring it up.
    #[must_use]
    pub fn up(name: IfName) -> Self {
        Self { up: Some(true), ..Self::new(name) }
    }
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub link: IfName,
    /// The address.
    pub addr: IpAddr,
    /// Length of the on-link prefix.
    pub prefix_len: u8,
    /// Scope link instead of global (`RT_SCOPE_LINK`).
    pub scope_link: bool,
}

/// A route in the main table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Metric (`RTA_PRIORITY`); 0 for IPv4's default. IPv6 without one gets 1024 from the kernel: say it.
    pub metric: u32,
    /// Where to.
    pub to: RouteTo,
    /// Preferred source (`RTA_PREFSRC`).
    pub src: Option<IpAddr>,
    /// Path MTU on this route (`RTAX_MTU`).
    pub mtu: Option<u32>,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTo {
    /// Out of a link, to a neighbour found there (scope link).
    Link(IfName),
    /// Through a gateway.
    Via {
        /// The gateway; may be of the other family (RFC 5549) only where noted.
        gateway: IpAddr,
        /// The link.
        link: IfName,
        /// Take the gateway for on-link though no address says so (`RTNH_F_ONLINK`).
        onlink: bool,
    },
    /// Silently discarded.
    Blackhole,
    /// Answered with ICMP unreachable.
    Unreachable,
    /// Anything we never make (multipath, other types): enough to know that it is there.
    Other(String),
}

/// A route as it is, with whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRoute {
    /// `rtm_protocol`: [`ROUTE_PROTOCOL`] is ours, 2 the kernel's.
    pub protocol: u8,
    /// The route.
    pub route: Route,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The link.
    pub link: IfName,
    /// The neighbour's address.
    pub addr: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// A forwarding entry of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The device.
    pub link: IfName,
    /// Inner destination hardware address.
    pub mac: Mac,
    /// Outer destination address.
    pub remote: IpAddr,
}

impl Route {
    /// The destination's family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.dst.family()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            RouteTo::Link(l) => write!(f, "{} dev {l} scope link", self.dst)?,
            RouteTo::Via { gateway, link, onlink } => {
                write!(f, "{} via {gateway} dev {link}{}", self.dst, if *onlink { " onlink" } else { "" })?;
            }
            RouteTo::Blackhole => write!(f, "blackhole {}", self.dst)?,
            RouteTo::Unreachable => write!(f, "unreachable {}", self.dst)?,
            RouteTo::Other(s) => write!(f, "{s} {}", self.dst)?,
        }
        if let Some(s) = self.src {
            write!(f, " src {s}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if let Some(m) = self.mtu {
            write!(f, " mtu {m}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} dev {}{}",
            self.addr,
            self.prefix_len,
            self.link,
            if self.scope_link { " scope link" } else { "" }
        )
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} dev {} nud permanent", self.addr, self.mac, self.link)
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {} dst {} self permanent", self.mac, self.link, self.remote)
    }
}

/// Requests print as the `ip` or `bridge` command that does the same.
impl fmt::Display for RtRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkAdd(l) => {
                write!(f, "link add {}", l.name)?;
                if let Some(m) = l.mac {
                    write!(f, " address {m}")?;
                }
                if let Some(m) = l.mtu {
                    write!(f, " mtu {m}")?;
                }
                match &l.kind {
                    NewLinkKind::Veth { peer, .. } => write!(f, " type veth peer name {peer}")?,
                    NewLinkKind::Bridge => f.write_str(" type bridge")?,
                    NewLinkKind::Vxlan(v) => {
                        write!(f, " type vxlan id {} dstport {}", v.vni, v.port)?;
                        if let Some(a) = v.local {
                            write!(f, " local {a}")?;
                        }
                        f.write_str(if v.learning { " learning" } else { " nolearning" })?;
                    }
                }
                Ok(())
            }
            Self::LinkSet(s) => {
                write!(f, "link set {}", s.name)?;
                if let Some(m) = s.mac {
                    write!(f, " address {m}")?;
                }
                if let Some(m) = s.mtu {
                    write!(f, " mtu {m}")?;
                }
                if let Some(m) = s.master {
                    write!(f, " master #{m}")?;
                }
                if let Some(n) = s.netns {
                    write!(f, " netns fd {}", n.0)?;
                }
                if let Some(h) = s.hairpin {
                    write!(f, " hairpin {}", if h { "on" } else { "off" })?;
                }
                match s.up {
                    Some(true) => f.write_str(" up"),
                    Some(false) => f.write_str(" down"),
                    None => Ok(()),
                }
            }
            Self::LinkDel(n) => write!(f, "link del {n}"),
            Self::AddressAdd(a) => write!(f, "address add {a}"),
            Self::AddressDel(a) => write!(f, "address del {a}"),
            Self::RouteReplace(r) => write!(f, "route replace {r}"),
            Self::RouteAdd(r) => write!(f, "route add {r}"),
            Self::RouteDel(r) => write!(f, "route del {r}"),
            Self::NeighbourReplace(n) => write!(f, "neigh replace {n}"),
            Self::NeighbourDel(n) => write!(f, "neigh del {} dev {}", n.addr, n.link),
            Self::FdbReplace(e) => write!(f, "fdb replace {e}"),
            Self::FdbDel(e) => write!(f, "fdb del {} dev {} dst {}", e.mac, e.link, e.remote),
        }
    }
}

impl<T: Rtnetlink + ?Sized> Rtnetlink for &mut T {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        (**self).links()
    }
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        (**self).addresses()
    }
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        (**self).routes()
    }
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        (**self).neighbours()
    }
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        (**self).fdb()
    }
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        (**self).run(requests)
    }
}
