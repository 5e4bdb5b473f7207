//! Links, addresses, routes, rules, neighbours, forwarding entries and traffic control (rtnetlink(7)).

mod link;
mod route;

use std::fmt;
use std::net::IpAddr;

use types::{IfName, Mac, OwnedName};

use crate::RequestError;
use crate::tc::{Filter, Hook, Qdisc, QdiscSlot};

pub use link::*;
pub use route::*;

/// Links, addresses, routes, neighbours and forwarding entries of one network namespace.
pub trait Rtnetlink {
    /// Every link.
    ///
    /// # Errors
    /// When the dump fails.
    fn links(&mut self) -> Result<Vec<Link>, RequestError>;
    /// One link by name or alternative name, without a look at the others.
    ///
    /// # Errors
    /// When it cannot be asked; that there is none is no error.
    fn link(&mut self, name: &IfName) -> Result<Option<Link>, RequestError>;
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
    /// The link that a packet of this machine to an address leaves by, `None` when no route leads there.
    ///
    /// The kernel's own lookup (`RTM_GETROUTE`) where there is a kernel; as written here, the longest route of the main
    /// table, of these the one with the lowest metric.
    ///
    /// # Errors
    /// When it cannot be asked for.
    fn link_towards(&mut self, to: IpAddr) -> Result<Option<IfName>, RequestError> {
        let routes = self.routes()?.into_iter().map(|r| r.route).filter(|r| r.dst.contains(to));
        let best = routes.max_by_key(|r| (r.dst.len(), std::cmp::Reverse(r.metric)));
        Ok(best.and_then(|r| match r.to {
            RouteTo::Via { link, .. } | RouteTo::Link(link) => Some(link),
            _ => None,
        }))
    }
    /// As [`routes`](Self::routes), of every table but `local`.
    ///
    /// # Errors
    /// When the dump fails.
    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError>;
    /// Every rule of both families, in the order they are asked.
    ///
    /// # Errors
    /// When the dump fails.
    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError>;
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
    /// VLANs of bridges and their ports, runs of equal ones as ranges.
    ///
    /// # Errors
    /// When the dump fails.
    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError>;
    /// Queueing disciplines other than those every link has.
    ///
    /// # Errors
    /// When the dump fails.
    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError>;
    /// Those of one link, without a look at the others; none when it is gone.
    ///
    /// # Errors
    /// When they cannot be asked for.
    fn qdiscs_of(&mut self, link: &Link) -> Result<Vec<Qdisc>, RequestError> {
        Ok(self.qdiscs()?.into_iter().filter(|q| q.link == link.name).collect())
    }
    /// Filters of a link's `clsact`, in the order they look.
    ///
    /// # Errors
    /// When the dump fails, ENODEV when there is no such link.
    fn filters(&mut self, link: &IfName, hook: Hook) -> Result<Vec<Filter>, RequestError>;
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

/// One change. Deletes of links take [`OwnedName`], deletes of routes and rules act on [`ROUTE_PROTOCOL`] alone; what
/// is not ours goes only inside a container ([`Netns::delete_link`](crate::machine::Netns::delete_link)).
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
    /// Add a rule; EEXIST when the same is there.
    RuleAdd(Rule),
    /// Remove a rule of ours.
    RuleDel(Rule),
    /// Add VLANs to a bridge's port, or to the bridge itself. EOPNOTSUPP when the link is neither.
    PortVlanAdd(PortVlan),
    /// Remove them.
    PortVlanDel(PortVlan),
    /// Make or change a queueing discipline.
    QdiscReplace(Qdisc),
    /// Remove it, and the filters of a `clsact` with it; the link has then its default again. ENOENT when there
    /// is none.
    QdiscDel(IfName, QdiscSlot),
    /// Make or change the filter of this link, hook and priority; EINVAL when the link has no `clsact`.
    FilterReplace(Filter),
    /// Remove the filters of this link, hook and priority.
    FilterDel(IfName, Hook, u16),
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
            Self::LinkAdd(l) => write!(f, "link add {l}"),
            Self::LinkSet(s) => write!(f, "link set {s}"),
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
            Self::RuleAdd(r) => write!(f, "rule add {r}"),
            Self::RuleDel(r) => write!(f, "rule del {r}"),
            Self::PortVlanAdd(v) => write!(f, "vlan add {v}"),
            Self::PortVlanDel(v) => write!(f, "vlan del {v}"),
            Self::QdiscReplace(q) => write!(f, "qdisc replace {q}"),
            Self::QdiscDel(l, s) => write!(f, "qdisc del dev {l} {s}"),
            Self::FilterReplace(x) => write!(f, "filter replace {x}"),
            Self::FilterDel(l, h, p) => write!(f, "filter del dev {l} {h} pref {p}"),
        }
    }
}

impl<T: Rtnetlink + ?Sized> Rtnetlink for &mut T {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        (**self).links()
    }
    fn link(&mut self, name: &IfName) -> Result<Option<Link>, RequestError> {
        (**self).link(name)
    }
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        (**self).addresses()
    }
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        (**self).routes()
    }
    fn link_towards(&mut self, to: IpAddr) -> Result<Option<IfName>, RequestError> {
        (**self).link_towards(to)
    }
    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        (**self).all_routes()
    }
    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError> {
        (**self).rules()
    }
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        (**self).neighbours()
    }
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        (**self).fdb()
    }
    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError> {
        (**self).port_vlans()
    }
    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError> {
        (**self).qdiscs()
    }
    fn qdiscs_of(&mut self, link: &Link) -> Result<Vec<Qdisc>, RequestError> {
        (**self).qdiscs_of(link)
    }
    fn filters(&mut self, link: &IfName, hook: Hook) -> Result<Vec<Filter>, RequestError> {
        (**self).filters(link, hook)
    }
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        (**self).run(requests)
    }
}
