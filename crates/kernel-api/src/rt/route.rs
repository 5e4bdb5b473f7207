//! Addresses, routes and rules (include/uapi/linux/{if_addr,rtnetlink,fib_rules}.h).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use types::{Cidr, Family, IfName};

/// The route protocol number on every route and rule of ours (`rtm_protocol`; 83 is free in
/// include/uapi/linux/rtnetlink.h and iproute2's rt_protos). Deletes name it, so the kernel itself will not delete
/// another's route for us.
pub const ROUTE_PROTOCOL: u8 = 83;

/// The routing table that routes are in unless said otherwise (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub link: IfName,
    /// The address.
    pub addr: IpAddr,
    /// Length of the on-link prefix; with a `peer`, of the peer's.
    pub prefix_len: u8,
    /// Scope link instead of global (`RT_SCOPE_LINK`).
    pub scope_link: bool,
    /// Broadcast address (`IFA_BROADCAST`).
    pub broadcast: Option<Ipv4Addr>,
    /// The other end of a point-to-point link (`IFA_ADDRESS`); the route then leads to it.
    pub peer: Option<IpAddr>,
    /// No route to the prefix is made (`IFA_F_NOPREFIXROUTE`).
    pub no_prefix_route: bool,
    /// An IPv6 address waits for duplicate detection (absence of `IFA_F_NODAD`).
    pub detect_duplicates: bool,
}

impl Address {
    /// A global address with its prefix's route and without duplicate detection.
    #[must_use]
    pub fn new(link: IfName, addr: IpAddr, prefix_len: u8) -> Self {
        Self {
            link,
            addr,
            prefix_len,
            scope_link: false,
            broadcast: None,
            peer: None,
            no_prefix_route: false,
            detect_duplicates: false,
        }
    }

    /// The last address of the prefix, for [`Address::broadcast`]; none for IPv6 and prefixes longer than 30.
    #[must_use]
    pub fn usual_broadcast(&self) -> Option<Ipv4Addr> {
        match Cidr::new(self.addr, self.prefix_len)?.last() {
            IpAddr::V4(a) if self.prefix_len <= 30 => Some(a),
            _ => None,
        }
    }
}

/// A route.
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
    /// Maximum segment size to advertise (`RTAX_ADVMSS`).
    pub advmss: Option<u32>,
    /// Routing table (`RTA_TABLE`).
    pub table: u32,
    /// IPv4 scope (`rtm_scope`: 0 global, 253 link, 254 host) when it is not the usual one of [`Route::to`].
    pub scope: Option<u8>,
}

impl Route {
    /// A route of the main table with the metric the kernel would choose: 0 for IPv4, 1024 for IPv6.
    #[must_use]
    pub fn new(dst: Cidr, to: RouteTo) -> Self {
        let metric = match dst.family() {
            Family::V4 => 0,
            Family::V6 => 1024,
        };
        Self { dst, metric, to, src: None, mtu: None, advmss: None, table: MAIN_TABLE, scope: None }
    }

    /// The destination's family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.dst.family()
    }
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

impl RouteTo {
    /// Through a gateway that an address of the link says is on it.
    #[must_use]
    pub fn via(gateway: IpAddr, link: IfName) -> Self {
        Self::Via { gateway, link, onlink: false }
    }

    /// The link it leaves by.
    #[must_use]
    pub fn link(&self) -> Option<&IfName> {
        match self {
            Self::Link(l) | Self::Via { link: l, .. } => Some(l),
            Self::Blackhole | Self::Unreachable | Self::Other(_) => None,
        }
    }
}

/// A route as it is, with whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRoute {
    /// `rtm_protocol`: [`ROUTE_PROTOCOL`] is ours, 2 the kernel's.
    pub protocol: u8,
    /// The route.
    pub route: Route,
}

/// A rule that chooses a routing table (ip-rule(8)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Family of the packets it looks at.
    pub family: Family,
    /// Lower ones are asked first (`FRA_PRIORITY`). Absent: one below the lowest but that of table local, chosen by the
    /// kernel.
    pub priority: Option<u32>,
    /// Source prefix.
    pub src: Option<Cidr>,
    /// Destination prefix.
    pub dst: Option<Cidr>,
    /// The link a packet came by.
    pub iif: Option<IfName>,
    /// The link its socket is bound to.
    pub oif: Option<IfName>,
    /// Packet mark and the mask it is seen through.
    pub mark: Option<(u32, u32)>,
    /// What then.
    pub to: RuleTo,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleTo {
    /// Ask this table (`FR_ACT_TO_TBL`).
    Table(u32),
    /// Ask the table of the VRF that the packet came by or leaves by (`FRA_L3MDEV`). The kernel makes one with the first
    /// VRF.
    L3mdev,
    /// Anything we never make, by its action.
    Other(u8),
}

impl Rule {
    /// Packets from `src` ask `table`.
    #[must_use]
    pub fn from(src: Cidr, table: u32) -> Self {
        Self {
            family: src.family(),
            priority: None,
            src: Some(src),
            dst: None,
            iif: None,
            oif: None,
            mark: None,
            to: RuleTo::Table(table),
        }
    }
}

/// A rule as it is, with whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRule {
    /// `FRA_PROTOCOL`: [`ROUTE_PROTOCOL`] is ours, 2 the kernel's.
    pub protocol: u8,
    /// The rule, its priority known.
    pub rule: Rule,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            RouteTo::Link(l) => {
                write!(f, "{} dev {l}", self.dst)?;
                if self.scope.is_none() {
                    f.write_str(" scope link")?;
                }
            }
            RouteTo::Via { gateway, link, onlink } => {
                write!(f, "{} via {gateway} dev {link}{}", self.dst, if *onlink { " onlink" } else { "" })?;
            }
            RouteTo::Blackhole => write!(f, "blackhole {}", self.dst)?,
            RouteTo::Unreachable => write!(f, "unreachable {}", self.dst)?,
            RouteTo::Other(s) => write!(f, "{s} {}", self.dst)?,
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if let Some(s) = self.scope {
            write!(f, " scope {s}")?;
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
        if let Some(m) = self.advmss {
            write!(f, " advmss {m}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addr)?;
        if let Some(p) = self.peer {
            write!(f, " peer {p}")?;
        }
        write!(f, "/{}", self.prefix_len)?;
        if let Some(b) = self.broadcast {
            write!(f, " broadcast {b}")?;
        }
        write!(f, " dev {}{}", self.link, if self.scope_link { " scope link" } else { "" })?;
        f.write_str(if self.no_prefix_route { " noprefixroute" } else { "" })
    }
}

impl fmt::Display for Rule {
    /// As after `ip rule add`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.src {
            Some(s) => write!(f, "from {s}")?,
            None => f.write_str("from all")?,
        }
        if let Some(d) = self.dst {
            write!(f, " to {d}")?;
        }
        if let Some(l) = &self.iif {
            write!(f, " iif {l}")?;
        }
        if let Some(l) = &self.oif {
            write!(f, " oif {l}")?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        match self.to {
            RuleTo::Table(t) => write!(f, " table {t}")?,
            RuleTo::L3mdev => f.write_str(" l3mdev")?,
            RuleTo::Other(a) => write!(f, " action {a}")?,
        }
        if let Some(p) = self.priority {
            write!(f, " priority {p}")?;
        }
        Ok(())
    }
}
