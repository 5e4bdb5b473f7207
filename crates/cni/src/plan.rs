//! ADD as data: what must be asked of the kernel for an attachment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipam::Record;
use kernel_api::rt::{Address, Neighbour, NetnsFd, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink};
use kernel_api::tc::{Filter, FilterKind, Guard, Hook, Qdisc, QdiscKind};
use types::{Cidr, Family, IfName, Mac, OwnedName};

/// The IPv4 next hop of every pod. Link-local (RFC 3927), so it can be no pod's or node's address; on no interface.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 next hop of every pod.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The hardware address of every host end. Locally administered; equal on all, as each is the only other station on its
/// wire. Known beforehand, so the pod's neighbour entries need no look at the host end; set explicitly, so that udev's
/// MACAddressPolicy leaves it alone.
pub const HOST_MAC: Mac = Mac([0xee; 6]);
/// The metric of IPv6 routes: what the kernel gives to one without.
pub const METRIC_V6: u32 = 1024;

/// The pod end's hardware address: the digits of the host end's name, so that it needs no record.
#[must_use]
pub fn pod_mac(link: &OwnedName) -> Mac {
    let [_, _, a, b, c, d, e, f] = link.digits().to_be_bytes();
    let mac = Mac::local([a, b, c, d, e, f]);
    if mac == HOST_MAC { Mac([0xee, 0xee, 0xee, 0xee, 0xee, 0xef]) } else { mac }
}

/// The hardware address of a record's pod end: the one that was asked for, or that of its link.
#[must_use]
pub fn mac(r: &Record) -> Mac {
    r.mac.unwrap_or_else(|| pod_mac(&r.link))
}

/// Where the pod's routes of a family lead: everywhere, unless the record says otherwise.
#[must_use]
pub fn destinations(r: &Record, family: Family) -> Vec<Cidr> {
    if r.routes.is_empty() {
        return vec![Cidr::any(family)];
    }
    r.routes.iter().copied().filter(|d| d.family() == family).collect()
}

/// The requests of an ADD, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddPlan {
    /// In the host's namespace: the pair, guarded.
    pub create: Vec<RtRequest>,
    /// In the host's: its end up, once all is on it that the kernel waits for on a link that is up.
    pub up: Vec<RtRequest>,
    /// In the pod's.
    pub pod: Vec<RtRequest>,
    /// In the host's: the way to the pod, once there is somebody at its end.
    pub host: Vec<RtRequest>,
}

/// The requests for `r`, whose namespace is open as `netns`.
#[must_use]
pub fn add(r: &Record, netns: NetnsFd) -> AddPlan {
    let mut create = vec![RtRequest::LinkAdd(NewLink {
        mtu: Some(r.mtu),
        mac: Some(HOST_MAC),
        ..NewLink::new(
            r.link.name().clone(),
            NewLinkKind::Veth { peer: r.key.ifname.clone(), peer_netns: Some(netns), peer_mac: Some(mac(r)) },
        )
    })];
    // While the link is down: nothing that the pod sends goes by the guard, and a queueing discipline on a link that is
    // up makes the kernel wait until no processor uses the old one (`dev_deactivate_many`, net/sched/sch_generic.c).
    create.extend(guard_requests(r));
    // Before the pod's end: see `finish` in ops.rs.
    let up = vec![RtRequest::LinkSet(SetLink::up(r.link.name().clone()))];
    AddPlan { create, up, pod: pod(r), host: host(r) }
}

/// The filter's priority on the host end: the first to look.
const GUARD_PRIORITY: u16 = 1;

/// What drops every packet of the pod that does not carry its own addresses. It hangs on the host end and goes with it;
/// it needs no agent.
#[must_use]
pub fn guard(r: &Record) -> Option<Filter> {
    let own = r.addresses.iter().map(|a| Cidr::host(*a));
    // Always a guard: the address is ours and a pod has one of each family.
    let guard = Guard::new(mac(r), own, false).ok()?;
    let (link, hook) = (r.link.name().clone(), Hook::Ingress);
    Some(Filter { link, hook, priority: GUARD_PRIORITY, kind: FilterKind::Guard(guard) })
}

/// The requests that put the guard there.
pub(crate) fn guard_requests(r: &Record) -> Vec<RtRequest> {
    let Some(filter) = guard(r) else { return Vec::new() };
    let place = Qdisc { link: r.link.name().clone(), kind: QdiscKind::Clsact };
    vec![RtRequest::QdiscReplace(place), RtRequest::FilterReplace(filter)]
}

fn pod(r: &Record) -> Vec<RtRequest> {
    let eth = || r.key.ifname.clone();
    let mut out = Vec::with_capacity(2 + 4 * r.addresses.len());
    out.extend(lo().map(|lo| RtRequest::LinkSet(SetLink::up(lo))));
    // Up before routes: the kernel takes none on a link that is down.
    out.push(RtRequest::LinkSet(SetLink { mtu: Some(r.mtu), ..SetLink::up(eth()) }));
    // IPv6 first: the kernel needs a moment to bring such an address into use, and the rest is done meanwhile.
    for &addr in r.addresses.iter().rev() {
        out.push(RtRequest::AddressAdd(Address::new(eth(), addr, Family::of(addr).bits())));
    }
    for &addr in &r.addresses {
        out.push(RtRequest::NeighbourReplace(Neighbour { link: eth(), addr: gateway(addr), mac: HOST_MAC }));
        out.extend(pod_routes(r, addr).into_iter().map(RtRequest::RouteReplace));
    }
    out
}

/// The routes inside the pod for one of its addresses, in order.
#[must_use]
pub fn pod_routes(r: &Record, addr: IpAddr) -> Vec<Route> {
    let family = Family::of(addr);
    let (gateway, metric) = (gateway(addr), metric(addr));
    let via = RouteTo::Via { gateway, link: r.key.ifname.clone(), onlink: false };
    let mut out = Vec::with_capacity(2);
    // The gateway lies in no prefix of the pod's: a route of its own makes it reachable. fe80::/64 is on every link.
    if family == Family::V4 {
        let to = RouteTo::Link(r.key.ifname.clone());
        out.push(Route { metric, ..Route::new(Cidr::host(gateway), to) });
    }
    out.extend(destinations(r, family).into_iter().map(|dst| Route { metric, ..Route::new(dst, via.clone()) }));
    out
}

fn host(r: &Record) -> Vec<RtRequest> {
    let mut out = Vec::with_capacity(2 * r.addresses.len());
    for &addr in &r.addresses {
        out.push(RtRequest::NeighbourReplace(host_neighbour(r, addr)));
        // Not replace: a route to this address through another link means that another pod has it.
        out.push(RtRequest::RouteAdd(host_route(r, addr)));
    }
    out
}

/// The host's neighbour entry for one of the pod's addresses.
#[must_use]
pub fn host_neighbour(r: &Record, addr: IpAddr) -> Neighbour {
    Neighbour { link: r.link.name().clone(), addr, mac: mac(r) }
}

/// The host's route to one of the pod's addresses.
#[must_use]
pub fn host_route(r: &Record, addr: IpAddr) -> Route {
    let to = RouteTo::Link(r.link.name().clone());
    Route { metric: metric(addr), ..Route::new(Cidr::host(addr), to) }
}

/// The next hop of the family of `addr`.
#[must_use]
pub fn gateway(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

fn metric(addr: IpAddr) -> u32 {
    if addr.is_ipv4() { 0 } else { METRIC_V6 }
}

/// The pod's loopback interface, up: for interfaces that other plugins make.
pub(crate) fn loopback() -> Vec<RtRequest> {
    lo().map(|lo| RtRequest::LinkSet(SetLink::up(lo))).into_iter().collect()
}

/// The loopback interface's name; always parses.
fn lo() -> Option<IfName> {
    "lo".parse().ok()
}
