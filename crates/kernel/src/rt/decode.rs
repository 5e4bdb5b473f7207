//! Bytes to what they describe. `None` for what is not of interest or malformed; never a panic.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel_api::rt::{
    Address, FdbEntry, Link, LinkKind, MAIN_TABLE, Neighbour, ObservedRoute, Route, RouteTo, VxlanParams,
};
use types::{Cidr, Family, IfName, Mac};

use super::encode::*;
use crate::netlink::{Attrs, Message, be16, cstr, ne16, ne32};

const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTM_F_CLONED: u32 = 0x200;

type Names = HashMap<u32, IfName>;

fn mac(b: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(b).ok().map(Mac)
}

fn ip(b: &[u8]) -> Option<IpAddr> {
    match b.len() {
        4 => b.first_chunk::<4>().map(|c| Ipv4Addr::from(*c).into()),
        16 => b.first_chunk::<16>().map(|c| Ipv6Addr::from(*c).into()),
        _ => None,
    }
}

/// `RTM_NEWLINK`
pub(crate) fn link(m: &Message<'_>) -> Option<Link> {
    let index = ne32(m.payload.get(4..)?)?;
    let flags = ne32(m.payload.get(8..)?)?;
    let attrs = m.attrs(16);
    let info = attrs.nested(IFLA_LINKINFO);
    let kind = match info.get(IFLA_INFO_KIND).and_then(cstr).unwrap_or("") {
        "veth" => LinkKind::Veth,
        "bridge" => LinkKind::Bridge,
        "vxlan" => LinkKind::Vxlan(vxlan(info.nested(IFLA_INFO_DATA))),
        k => LinkKind::Other(k.to_owned()),
    };
    let peer = (kind == LinkKind::Veth).then(|| attrs.get(IFLA_LINK).and_then(ne32)).flatten();
    Some(Link {
        index,
        name: attrs.get(IFLA_IFNAME).and_then(cstr)?.parse().ok()?,
        mac: attrs.get(IFLA_ADDRESS).and_then(mac),
        mtu: attrs.get(IFLA_MTU).and_then(ne32).unwrap_or(0),
        up: flags & 1 != 0,
        master: attrs.get(IFLA_MASTER).and_then(ne32).filter(|m| *m != 0),
        peer_index: peer.filter(|p| *p != 0),
        kind,
    })
}

fn vxlan(a: Attrs<'_>) -> VxlanParams {
    let local = a.get(IFLA_VXLAN_LOCAL).or_else(|| a.get(IFLA_VXLAN_LOCAL6)).and_then(ip);
    VxlanParams {
        vni: a.get(IFLA_VXLAN_ID).and_then(ne32).unwrap_or(0),
        port: a.get(IFLA_VXLAN_PORT).and_then(be16).unwrap_or(0),
        local: local.filter(|a| !a.is_unspecified()),
        lower: a.get(IFLA_VXLAN_LINK).and_then(ne32).filter(|i| *i != 0),
        learning: a.get(IFLA_VXLAN_LEARNING).and_then(|b| b.first()).is_some_and(|b| *b != 0),
    }
}

/// `RTM_NEWADDR`
pub(crate) fn address(m: &Message<'_>, names: &Names) -> Option<Address> {
    let [_, prefix_len, _, scope] = *m.payload.first_chunk()?;
    let link = names.get(&ne32(m.payload.get(4..)?)?)?;
    let attrs = m.attrs(8);
    // On a point-to-point link IFA_ADDRESS is the other end's.
    let addr = attrs.get(IFA_LOCAL).or_else(|| attrs.get(IFA_ADDRESS)).and_then(ip)?;
    (prefix_len <= Family::of(addr).bits()).then(|| Address {
        link: link.clone(),
        addr,
        prefix_len,
        scope_link: scope == RT_SCOPE_LINK,
    })
}

/// `RTM_NEWROUTE`
pub(crate) fn route(m: &Message<'_>, names: &Names) -> Option<ObservedRoute> {
    let [family, len, _, tos, table, protocol, _, kind] = *m.payload.first_chunk()?;
    let flags = ne32(m.payload.get(8..)?)?;
    let family = match i32::from(family) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let attrs = m.attrs(12);
    let table = attrs.get(RTA_TABLE).and_then(ne32).unwrap_or(u32::from(table));
    if table != MAIN_TABLE || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let dst = match attrs.get(RTA_DST) {
        Some(b) => ip(b).filter(|a| Family::of(*a) == family)?,
        None => family.unspecified(),
    };
    let link = attrs.get(RTA_OIF).and_then(ne32).and_then(|i| names.get(&i)).cloned();
    let gateway = attrs.get(RTA_GATEWAY).and_then(ip);
    let plain = tos == 0 && [RTA_MULTIPATH, RTA_VIA, RTA_NH_ID].iter().all(|k| attrs.get(*k).is_none());
    let to = match (kind, plain) {
        (RTN_UNICAST, true) => match (link, gateway) {
            (Some(link), Some(gateway)) => RouteTo::Via { gateway, link, onlink: flags & RTNH_F_ONLINK != 0 },
            (Some(link), None) => RouteTo::Link(link),
            // Its link has gone since the links were listed, and the route with it.
            (None, _) => return None,
        },
        (RTN_UNICAST, false) => RouteTo::Other("multipath".into()),
        (RTN_BLACKHOLE, _) => RouteTo::Blackhole,
        (RTN_UNREACHABLE, _) => RouteTo::Unreachable,
        (8, _) => RouteTo::Other("prohibit".into()),
        (9, _) => RouteTo::Other("throw".into()),
        _ => return None,
    };
    Some(ObservedRoute {
        protocol,
        route: Route {
            dst: Cidr::new(dst, len)?,
            metric: attrs.get(RTA_PRIORITY).and_then(ne32).unwrap_or(0),
            to,
            src: attrs.get(RTA_PREFSRC).and_then(ip),
            mtu: attrs.nested(RTA_METRICS).get(RTAX_MTU).and_then(ne32),
        },
    })
}

/// The link and state of a `struct ndmsg`.
fn nd<'n>(m: &Message<'_>, names: &'n Names) -> Option<(&'n IfName, u16)> {
    Some((names.get(&ne32(m.payload.get(4..)?)?)?, ne16(m.payload.get(8..)?)?))
}

/// `RTM_NEWNEIGH` of IPv4 and IPv6
pub(crate) fn neighbour(m: &Message<'_>, names: &Names) -> Option<Neighbour> {
    let (link, state) = nd(m, names)?;
    let family = i32::from(*m.payload.first()?);
    if state & NUD_PERMANENT == 0 || !matches!(family, libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let attrs = m.attrs(12);
    Some(Neighbour {
        link: link.clone(),
        addr: attrs.get(NDA_DST).and_then(ip)?,
        mac: attrs.get(NDA_LLADDR).and_then(mac)?,
    })
}

/// `RTM_NEWNEIGH` of bridges and VXLAN devices
pub(crate) fn fdb(m: &Message<'_>, names: &Names) -> Option<FdbEntry> {
    let (link, state) = nd(m, names)?;
    if state & NUD_PERMANENT == 0 || i32::from(*m.payload.first()?) != libc::AF_BRIDGE {
        return None;
    }
    let attrs = m.attrs(12);
    Some(FdbEntry {
        link: link.clone(),
        mac: attrs.get(NDA_LLADDR).and_then(mac)?,
        remote: attrs.get(NDA_DST).and_then(ip)?,
    })
}
