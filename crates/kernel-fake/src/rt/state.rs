//! What a namespace holds, and what each request changes.

use std::net::IpAddr;

use kernel_api::errno;
use kernel_api::rt::{
    Address, FdbEntry, Link, LinkKind, Neighbour, NetnsFd, ObservedRoute, ObservedRule, PortVlan, Route, RouteTo,
    RtRequest,
};
use kernel_api::tc::{Filter, Qdisc};
use types::{Cidr, Family, IfName, Mac};

use super::check;

/// `RTPROT_KERNEL`: routes the kernel makes for addresses.
pub(crate) const KERNEL: u8 = 2;

/// `ENETDOWN` (include/uapi/asm-generic/errno.h): a route on a link that is down.
pub(crate) const ENETDOWN: i32 = 100;

/// Links and their rows, in the order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes of every table but `local`.
    pub routes: Vec<ObservedRoute>,
    /// Rules, in the order they are asked within each family.
    pub rules: Vec<ObservedRule>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries.
    pub fdb: Vec<FdbEntry>,
    /// VLANs of bridge ports.
    pub port_vlans: Vec<PortVlan>,
    /// Queueing disciplines that were asked for.
    pub qdiscs: Vec<Qdisc>,
    /// Filters.
    pub filters: Vec<Filter>,
    /// Links that left for another namespace or were made there, until that one takes them in.
    pub(crate) sent: Vec<(NetnsFd, Link)>,
    /// Lower indexes here and kinds of links over them that are in other namespaces.
    pub(crate) away: Vec<(u32, LinkKind)>,
    pub(crate) next: u32,
}

impl Namespace {
    pub(crate) fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|l| l.name == *name)
    }

    pub(crate) fn need(&self, name: &IfName) -> Result<&Link, i32> {
        self.link(name).ok_or(errno::ENODEV)
    }

    pub(crate) fn is_local(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.addr == addr)
    }

    pub(crate) fn push_link(&mut self, name: IfName, mac: Option<Mac>, mtu: u32, up: bool, kind: LinkKind) -> u32 {
        self.next += 1;
        let mac = mac.or(Some(self.random_mac()));
        self.links.push(Link { mac, mtu, up, ..Link::new(self.next, name, kind) });
        self.next
    }

    fn random_mac(&self) -> Mac {
        let n = self.next.to_be_bytes();
        Mac::local([0x02, 0xfa, n[0], n[1], n[2], n[3]])
    }

    pub(crate) fn add_loopback(&mut self) {
        if let Ok(lo) = "lo".parse() {
            self.push_link(lo, None, 65536, true, LinkKind::Other(String::new()));
        }
    }

    pub(crate) fn plug(&mut self, name: &IfName, mtu: u32, addresses: &[(IpAddr, u8)]) {
        self.push_link(name.clone(), None, mtu, true, LinkKind::Other(String::new()));
        for (addr, prefix_len) in addresses {
            let a = Address::new(name.clone(), *addr, *prefix_len);
            // The link is there and up: an address that is refused here is a mistake of the test, and shows by absence.
            let _ = self.address_add(&a);
        }
    }

    pub(crate) fn apply(&mut self, r: &RtRequest, protocol: u8) -> Result<(), i32> {
        match r {
            RtRequest::LinkAdd(l) => self.link_add(l),
            RtRequest::LinkSet(s) => self.link_set(s),
            RtRequest::LinkDel(n) => self.link_del(n.name()),
            RtRequest::AddressAdd(a) => self.address_add(a),
            RtRequest::AddressDel(a) => self.address_del(a),
            RtRequest::RouteReplace(r) => self.route_put(r, protocol, true),
            RtRequest::RouteAdd(r) => self.route_put(r, protocol, false),
            RtRequest::RouteDel(r) => self.route_del(r, protocol),
            RtRequest::NeighbourReplace(n) => {
                self.need(&n.link)?;
                self.neighbours.retain(|o| (&o.link, o.addr) != (&n.link, n.addr));
                self.neighbours.push(n.clone());
                Ok(())
            }
            RtRequest::NeighbourDel(n) => {
                self.need(&n.link)?;
                let held = self.neighbours.len();
                self.neighbours.retain(|o| (&o.link, o.addr) != (&n.link, n.addr));
                if self.neighbours.len() == held { Err(errno::ENOENT) } else { Ok(()) }
            }
            RtRequest::FdbReplace(e) => self.fdb_replace(e),
            RtRequest::FdbDel(e) => self.fdb_del(e),
            RtRequest::RuleAdd(r) => self.rule_add(r, protocol),
            RtRequest::RuleDel(r) => self.rule_del(r, protocol),
            RtRequest::PortVlanAdd(v) => self.port_vlan_add(v),
            RtRequest::PortVlanDel(v) => self.port_vlan_del(v),
            RtRequest::QdiscReplace(q) => self.qdisc_replace(q),
            RtRequest::QdiscDel(l, s) => self.qdisc_del(l, *s),
            RtRequest::FilterReplace(f) => self.filter_replace(f),
            RtRequest::FilterDel(l, h, p) => self.filter_del(l, *h, *p),
        }
    }

    /// The link is gone from here, and its rows with it.
    pub(crate) fn forget(&mut self, name: &IfName) {
        self.links.retain(|l| l.name != *name);
        self.drop_addresses(|a| a.link == *name);
        self.neighbours.retain(|n| n.link != *name);
        self.fdb.retain(|e| e.link != *name);
        self.port_vlans.retain(|v| v.link != *name);
        self.qdiscs.retain(|q| q.link != *name);
        self.filters.retain(|f| f.link != *name);
        self.routes.retain(|r| r.route.to.link() != Some(name));
    }

    pub(crate) fn set_up(&mut self, name: &IfName, up: bool) {
        let Some(link) = self.links.iter_mut().find(|l| l.name == *name) else { return };
        if link.up == up {
            return;
        }
        link.up = up;
        if up {
            let mine: Vec<Address> = self.addresses.iter().filter(|a| a.link == *name).cloned().collect();
            for a in mine {
                self.connect(&a);
            }
        } else {
            // `fib_sync_down_dev`, `addrconf_ifdown` (IPv6 addresses go too), `neigh_ifdown`; forwarding entries that
            // are permanent stay (`vxlan_stop`).
            self.routes.retain(|r| r.route.to.link() != Some(name));
            self.drop_addresses(|a| a.link == *name && a.addr.is_ipv6());
            self.neighbours.retain(|n| n.link != *name);
        }
    }

    /// Addresses that `which` picks go, and what used them as preferred source: an IPv4 route goes with it
    /// (`fib_sync_down_addr`), an IPv6 one loses it (`rt6_remove_prefsrc`).
    fn drop_addresses(&mut self, which: impl Fn(&Address) -> bool) {
        let gone: Vec<IpAddr> = self.addresses.iter().filter(|a| which(a)).map(|a| a.addr).collect();
        self.addresses.retain(|a| !which(a));
        for addr in gone {
            if self.is_local(addr) {
                continue;
            }
            self.routes.retain(|r| addr.is_ipv6() || r.route.src != Some(addr));
            for r in self.routes.iter_mut().filter(|r| r.route.src == Some(addr)) {
                r.route.src = None;
            }
        }
    }

    /// The kernel's own route for an address on a link that is up.
    fn connect(&mut self, a: &Address) {
        let Some(dst) = Cidr::new(a.peer.unwrap_or(a.addr), a.prefix_len) else { return };
        if a.no_prefix_route || a.addr.is_ipv4() && a.prefix_len == 32 && a.peer.is_none() {
            return;
        }
        let mut route = Route::new(dst, RouteTo::Link(a.link.clone()));
        let master = self.link(&a.link).and_then(|l| l.master);
        if let Some(LinkKind::Vrf { table }) =
            self.links.iter().find(|l| Some(l.index) == master).map(|l| l.kind.clone())
        {
            route.table = table;
        }
        match Family::of(a.addr) {
            Family::V4 => route.src = Some(a.addr),
            Family::V6 => route.metric = 256,
        }
        let route = ObservedRoute { protocol: KERNEL, route };
        if !self.routes.contains(&route) {
            self.routes.push(route);
        }
    }

    fn address_add(&mut self, a: &Address) -> Result<(), i32> {
        let up = self.need(&a.link)?.up;
        if a.prefix_len > Family::of(a.addr).bits() {
            return Err(errno::EINVAL);
        }
        if a.addr.is_ipv6() && (a.addr.is_multicast() || a.addr.is_unspecified()) {
            return Err(errno::EADDRNOTAVAIL);
        }
        if !self.addresses.iter().any(|o| (&o.link, o.addr, o.prefix_len) == (&a.link, a.addr, a.prefix_len)) {
            self.addresses.push(a.clone());
        }
        if up {
            self.connect(a);
        }
        Ok(())
    }

    fn address_del(&mut self, a: &Address) -> Result<(), i32> {
        self.need(&a.link)?;
        let held = self.addresses.len();
        self.drop_addresses(|o| (&o.link, o.addr, o.prefix_len) == (&a.link, a.addr, a.prefix_len));
        if self.addresses.len() == held {
            return Err(errno::EADDRNOTAVAIL);
        }
        let dst = Cidr::new(a.addr, a.prefix_len);
        let mine = || self.addresses.iter().filter(|o| o.link == a.link);
        let shared = mine().any(|o| Cidr::new(o.addr, o.prefix_len) == dst);
        let last_v4 = a.addr.is_ipv4() && !mine().any(|o| o.addr.is_ipv4());
        self.routes.retain(|r| {
            let on_link = r.route.to.link() == Some(&a.link);
            let connected = r.protocol == KERNEL && on_link && Some(r.route.dst) == dst && !shared;
            // `fib_disable_ip` when the last IPv4 address of a link goes.
            let flushed = last_v4 && on_link && r.route.family() == Family::V4;
            !(connected || flushed)
        });
        if last_v4 {
            // `arp_ifdown`, from the same place.
            self.neighbours.retain(|n| n.link != a.link || n.addr.is_ipv6());
        }
        Ok(())
    }

    fn route_put(&mut self, r: &Route, protocol: u8, replace: bool) -> Result<(), i32> {
        check::route(self, r)?;
        let new = ObservedRoute { protocol, route: r.clone() };
        let same = |o: &ObservedRoute| (o.route.dst, o.route.metric, o.route.table) == (r.dst, r.metric, r.table);
        match self.routes.iter_mut().find(|o| same(o)) {
            Some(_) if !replace => return Err(errno::EEXIST),
            // Whoever made it: the kernel compares destination and metric only.
            Some(o) => *o = new,
            None => self.routes.push(new),
        }
        Ok(())
    }

    pub(crate) fn route_del(&mut self, r: &Route, protocol: u8) -> Result<(), i32> {
        if let Some(l) = r.to.link() {
            self.need(l)?;
        }
        let held = self.routes.len();
        self.routes.retain(|o| !(o.protocol == protocol && check::delete_matches(&o.route, r)));
        if self.routes.len() == held { Err(errno::ESRCH) } else { Ok(()) }
    }

    fn fdb_replace(&mut self, e: &FdbEntry) -> Result<(), i32> {
        let link = self.need(&e.link)?;
        // Another kind of link keeps the address in its unicast filter: no entry with a remote.
        let LinkKind::Vxlan(v) = &link.kind else { return Ok(()) };
        if v.local.map_or(Family::V4, Family::of) != Family::of(e.remote) {
            return Err(errno::EAFNOSUPPORT);
        }
        match self.fdb.iter_mut().find(|o| (&o.link, o.mac) == (&e.link, e.mac)) {
            Some(o) => *o = e.clone(),
            None => self.fdb.push(e.clone()),
        }
        Ok(())
    }

    fn fdb_del(&mut self, e: &FdbEntry) -> Result<(), i32> {
        self.need(&e.link)?;
        if !self.fdb.iter().any(|o| (&o.link, o.mac) == (&e.link, e.mac)) {
            return Err(errno::ENOENT);
        }
        // A remote that the entry has not is no error (`__vxlan_fdb_delete`).
        self.fdb.retain(|o| o != e);
        Ok(())
    }
}
