//! What the kernel refuses about routes and VXLAN devices, with its errno.

use std::cmp::Reverse;
use std::net::IpAddr;

use kernel_api::errno;
use kernel_api::rt::{LinkKind, MAIN_TABLE, Route, RouteTo, VxlanParams};
use types::{Cidr, Family, IfName};

use super::state::{ENETDOWN, Namespace};

/// `vxlan_validate`, `vxlan_config_validate`.
pub(crate) fn vxlan(ns: &Namespace, v: &VxlanParams) -> Result<(), i32> {
    if v.vni >= 1 << 24 {
        return Err(errno::ERANGE);
    }
    if v.lower.is_some_and(|i| !ns.links.iter().any(|l| l.index == i)) {
        return Err(errno::ENODEV);
    }
    let family = |p: &VxlanParams| p.local.map_or(Family::V4, Family::of);
    let taken = ns.links.iter().any(|l| match &l.kind {
        LinkKind::Vxlan(o) => (o.vni, o.port, family(o), o.lower) == (v.vni, v.port, family(v), v.lower),
        _ => false,
    });
    if taken { Err(errno::EEXIST) } else { Ok(()) }
}

/// Whether a delete that names `r` means the route `held` (`fib_table_delete`, `ip6_route_del`): what it leaves out
/// matches anything, and IPv6 does not look at the type.
pub(crate) fn delete_matches(held: &Route, r: &Route) -> bool {
    let kind = |r: &Route| match r.to {
        RouteTo::Blackhole => 1,
        RouteTo::Unreachable => 2,
        _ => 0,
    };
    let gateway = |r: &Route| match r.to {
        RouteTo::Via { gateway, .. } => Some(gateway),
        _ => None,
    };
    let v4 = r.family() == Family::V4;
    (held.dst, held.metric, held.table) == (r.dst, r.metric, r.table)
        && (!v4 || kind(held) == kind(r))
        && r.to.link().is_none_or(|l| held.to.link() == Some(l))
        && gateway(r).is_none_or(|g| gateway(held) == Some(g))
        && (!v4 || r.src.is_none() || held.src == r.src)
}

/// `fib_check_nh`, `ip6_validate_gw` and what is around them, in the kernel's order: a gateway that needs no lookup is
/// looked at only on a link that is up, and the preferred source last.
pub(crate) fn route(ns: &Namespace, r: &Route) -> Result<(), i32> {
    let up = match r.to.link() {
        Some(name) => ns.link(name).ok_or(errno::ENODEV)?.up,
        None => true,
    };
    let down = if up { Ok(()) } else { Err(ENETDOWN) };
    if let RouteTo::Via { gateway, link, onlink } = &r.to {
        if Family::of(*gateway) != r.family() {
            return Err(errno::EINVAL);
        }
        if *onlink {
            down?;
        }
        match r.family() {
            Family::V4 => gateway_v4(ns, r.table, *gateway, link, *onlink)?,
            Family::V6 => gateway_v6(ns, r.table, *gateway, link, *onlink)?,
        }
    }
    down?;
    if r.src.is_some_and(|s| !ns.is_local(s)) { Err(errno::EINVAL) } else { Ok(()) }
}

fn is_broadcast(ns: &Namespace, addr: IpAddr) -> bool {
    // The broadcast route goes with the link's being up, the local one stays.
    ns.addresses.iter().filter(|a| ns.link(&a.link).is_some_and(|l| l.up)).any(|a| {
        a.addr.is_ipv4() && a.prefix_len < 31 && Cidr::new(a.addr, a.prefix_len).is_some_and(|c| c.last() == addr)
    })
}

/// The routes that a route of `table` finds its gateway by: those of its own table and of the main one. Rules are left
/// out.
fn asked(ns: &Namespace, table: u32) -> impl Iterator<Item = &Route> {
    ns.routes.iter().map(|r| &r.route).filter(move |r| r.table == table || r.table == MAIN_TABLE)
}

/// `fib_check_nh_v4_gw`.
fn gateway_v4(ns: &Namespace, table: u32, gateway: IpAddr, link: &IfName, onlink: bool) -> Result<(), i32> {
    if gateway.is_multicast() || gateway.is_unspecified() || is_broadcast(ns, gateway) {
        return Err(errno::EINVAL);
    }
    if onlink {
        return if ns.is_local(gateway) { Err(errno::EINVAL) } else { Ok(()) };
    }
    // Only routes of scope link answer: a gateway behind a gateway is none.
    let on_link = ns.addresses.iter().any(|a| a.addr == gateway && a.link == *link)
        || asked(ns, table).any(|r| r.to == RouteTo::Link(link.clone()) && r.dst.contains(gateway));
    if on_link { Ok(()) } else { Err(errno::ENETUNREACH) }
}

/// `ip6_validate_gw`, `ip6_route_check_nh_onlink`, `ip6_route_check_nh`.
fn gateway_v6(ns: &Namespace, table: u32, gateway: IpAddr, link: &IfName, onlink: bool) -> Result<(), i32> {
    if ns.is_local(gateway) || gateway.is_multicast() || gateway.is_unspecified() {
        return Err(errno::EINVAL);
    }
    // A link-local gateway is believed.
    if matches!(gateway, IpAddr::V6(a) if a.is_unicast_link_local()) {
        return Ok(());
    }
    let best = |by: &dyn Fn(&Route) -> bool| {
        asked(ns, table).filter(|r| r.dst.contains(gateway) && by(r)).max_by_key(|r| (r.dst.len(), Reverse(r.metric)))
    };
    if onlink {
        // Another link's route to the gateway speaks against it; the default route and a discarding one do not.
        let other = best(&|_| true).filter(|r| r.dst.len() > 0).and_then(|r| r.to.link()).is_some_and(|l| l != link);
        return if other { Err(errno::EINVAL) } else { Ok(()) };
    }
    match best(&|r| r.to.link() == Some(link)).map(|r| &r.to) {
        Some(RouteTo::Link(_)) => Ok(()),
        _ => Err(errno::EHOSTUNREACH),
    }
}
