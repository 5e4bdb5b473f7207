//! Bytes to what they describe. `None` for what is not of interest or malformed; never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::names::Names;
use kernel_api::rt::{
    Address, BridgeParams, FdbEntry, IpvlanFlag, IpvlanMode, IpvlanParams, Link, LinkKind, MacvlanMode, MacvlanParams,
    Neighbour, ObservedRoute, ObservedRule, Port, PortVlan, Route, RouteTo, Rule, RuleTo, TunParams, VlanParams,
    VxlanParams,
};
use types::{Cidr, Family, IfName, Mac};

use super::encode::*;
use super::link::*;
use crate::netlink::{Attrs, Message, be16, cstr, ne16, ne32};

const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTM_F_CLONED: u32 = 0x200;
/// `RT_TABLE_LOCAL`
const LOCAL_TABLE: u32 = 255;

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
    let kind = kind(info.get(IFLA_INFO_KIND).and_then(cstr).unwrap_or(""), info.nested(IFLA_INFO_DATA));
    let leads_to = attrs.get(IFLA_LINK).and_then(ne32).filter(|i| *i != 0);
    let (peer_index, lower) = if kind == LinkKind::Veth { (leads_to, None) } else { (None, leads_to) };
    let is_port = info.get(IFLA_INFO_SLAVE_KIND).and_then(cstr) == Some("bridge");
    let port = info.nested(IFLA_INFO_SLAVE_DATA);
    Some(Link {
        index,
        name: attrs.get(IFLA_IFNAME).and_then(cstr)?.parse().ok()?,
        mac: attrs.get(IFLA_ADDRESS).and_then(mac),
        mtu: attrs.get(IFLA_MTU).and_then(ne32).unwrap_or(0),
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        master: attrs.get(IFLA_MASTER).and_then(ne32).filter(|m| *m != 0),
        peer_index,
        lower,
        lower_netns: attrs.get(IFLA_LINK_NETNSID).and_then(ne32).map(u32::cast_signed),
        promisc: flags & IFF_PROMISC != 0,
        allmulti: flags & IFF_ALLMULTI != 0,
        multicast: flags & IFF_MULTICAST != 0,
        txqlen: attrs.get(IFLA_TXQLEN).and_then(ne32).unwrap_or(0),
        alias: attrs.get(IFLA_IFALIAS).and_then(cstr).map(str::to_owned),
        altnames: attrs
            .nested(IFLA_PROP_LIST)
            .filter(|(k, _)| *k == IFLA_ALT_IFNAME)
            .filter_map(|(_, d)| cstr(d).map(str::to_owned))
            .collect(),
        port: is_port.then(|| Port { hairpin: on(port, IFLA_BRPORT_MODE), isolated: on(port, IFLA_BRPORT_ISOLATED) }),
        kind,
    })
}

/// A switch of one byte.
fn on(a: Attrs<'_>, kind: u16) -> bool {
    a.get(kind).and_then(|b| b.first()).is_some_and(|b| *b != 0)
}

fn kind(name: &str, data: Attrs<'_>) -> LinkKind {
    let known = match name {
        "veth" => Some(LinkKind::Veth),
        "bridge" => Some(LinkKind::Bridge(BridgeParams {
            vlan_filtering: on(data, IFLA_BR_VLAN_FILTERING),
            // A kernel without VLAN filtering says none (CONFIG_BRIDGE_VLAN_FILTERING).
            default_pvid: data
                .get(IFLA_BR_VLAN_DEFAULT_PVID)
                .and_then(ne16)
                .unwrap_or(BridgeParams::default().default_pvid),
        })),
        "vxlan" => Some(LinkKind::Vxlan(vxlan(data))),
        "macvlan" => macvlan(data).map(LinkKind::Macvlan),
        "ipvlan" => ipvlan(data).map(LinkKind::Ipvlan),
        "vlan" => data.get(IFLA_VLAN_ID).and_then(ne16).map(|id| {
            LinkKind::Vlan(VlanParams { id, ad: data.get(IFLA_VLAN_PROTOCOL).and_then(be16) == Some(0x88a8) })
        }),
        "dummy" => Some(LinkKind::Dummy),
        "vrf" => data.get(IFLA_VRF_TABLE).and_then(ne32).map(|table| LinkKind::Vrf { table }),
        "ifb" => Some(LinkKind::Ifb),
        "tun" => Some(LinkKind::Tun(TunParams {
            tap: data.get(IFLA_TUN_TYPE).and_then(|b| b.first()) == Some(&2),
            persist: on(data, IFLA_TUN_PERSIST),
            multi_queue: on(data, IFLA_TUN_MULTI_QUEUE),
            vnet_hdr: on(data, IFLA_TUN_VNET_HDR),
            owner: data.get(IFLA_TUN_OWNER).and_then(ne32),
            group: data.get(IFLA_TUN_GROUP).and_then(ne32),
        })),
        _ => None,
    };
    known.unwrap_or_else(|| LinkKind::Other(name.to_owned()))
}

fn macvlan(a: Attrs<'_>) -> Option<MacvlanParams> {
    let mode = match a.get(IFLA_MACVLAN_MODE).and_then(ne32)? {
        1 => MacvlanMode::Private,
        2 => MacvlanMode::Vepa,
        4 => MacvlanMode::Bridge,
        8 => MacvlanMode::Passthru,
        16 => MacvlanMode::Source,
        _ => return None,
    };
    let list = a.nested(IFLA_MACVLAN_MACADDR_DATA);
    let mut sources: Vec<Mac> = list.filter(|(k, _)| *k == IFLA_MACVLAN_MACADDR).filter_map(|(_, d)| mac(d)).collect();
    sources.sort();
    Some(MacvlanParams { mode, sources, bc_queue_len: a.get(IFLA_MACVLAN_BC_QUEUE_LEN).and_then(ne32) })
}

fn ipvlan(a: Attrs<'_>) -> Option<IpvlanParams> {
    let mode = match a.get(IFLA_IPVLAN_MODE).and_then(ne16)? {
        0 => IpvlanMode::L2,
        1 => IpvlanMode::L3,
        2 => IpvlanMode::L3s,
        _ => return None,
    };
    let flag = match a.get(IFLA_IPVLAN_FLAGS).and_then(ne16).unwrap_or(0) {
        0 => IpvlanFlag::Bridge,
        1 => IpvlanFlag::Private,
        2 => IpvlanFlag::Vepa,
        _ => return None,
    };
    Some(IpvlanParams { mode, flag })
}

fn vxlan(a: Attrs<'_>) -> VxlanParams {
    let local = a.get(IFLA_VXLAN_LOCAL).or_else(|| a.get(IFLA_VXLAN_LOCAL6)).and_then(ip);
    VxlanParams {
        vni: a.get(IFLA_VXLAN_ID).and_then(ne32).unwrap_or(0),
        port: a.get(IFLA_VXLAN_PORT).and_then(be16).unwrap_or(0),
        local: local.filter(|a| !a.is_unspecified()),
        lower: a.get(IFLA_VXLAN_LINK).and_then(ne32).filter(|i| *i != 0),
        learning: on(a, IFLA_VXLAN_LEARNING),
    }
}

/// `RTM_NEWADDR`
pub(crate) fn address(m: &Message<'_>, names: &Names) -> Option<Address> {
    let [_, prefix_len, flags, scope] = *m.payload.first_chunk()?;
    let link = names.get(ne32(m.payload.get(4..)?)?)?;
    let attrs = m.attrs(8);
    let flags = attrs.get(IFA_FLAGS).and_then(ne32).unwrap_or(u32::from(flags));
    // On a point-to-point link IFA_ADDRESS is the other end's.
    let other = attrs.get(IFA_ADDRESS).and_then(ip);
    let addr = attrs.get(IFA_LOCAL).and_then(ip).or(other)?;
    if prefix_len > Family::of(addr).bits() {
        return None;
    }
    Some(Address {
        scope_link: scope == RT_SCOPE_LINK,
        broadcast: attrs.get(IFA_BROADCAST).and_then(|b| b.first_chunk::<4>()).map(|b| Ipv4Addr::from(*b)),
        peer: other.filter(|p| *p != addr),
        no_prefix_route: flags & IFA_F_NOPREFIXROUTE != 0,
        detect_duplicates: addr.is_ipv6() && flags & IFA_F_NODAD == 0,
        ..Address::new(link, addr, prefix_len)
    })
}

/// `RTM_NEWROUTE` of a table, or of every table but `local`.
/// The link of the route that a lookup found.
pub(crate) fn leaves_by(m: &Message<'_>, names: &Names) -> Option<IfName> {
    m.attrs(12).get(RTA_OIF).and_then(ne32).and_then(|i| names.get(i))
}

pub(crate) fn route(m: &Message<'_>, names: &Names, only: Option<u32>) -> Option<ObservedRoute> {
    let [family, len, _, tos, table, protocol, scope, kind] = *m.payload.first_chunk()?;
    let flags = ne32(m.payload.get(8..)?)?;
    let family = match i32::from(family) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let attrs = m.attrs(12);
    let table = attrs.get(RTA_TABLE).and_then(ne32).unwrap_or(u32::from(table));
    if only.map_or(table == LOCAL_TABLE, |t| t != table) || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let dst = match attrs.get(RTA_DST) {
        Some(b) => ip(b).filter(|a| Family::of(*a) == family)?,
        None => family.unspecified(),
    };
    let link = attrs.get(RTA_OIF).and_then(ne32).and_then(|i| names.get(i));
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
    let metrics = attrs.nested(RTA_METRICS);
    let usual = family == Family::V6 || scope == usual_scope(&to, family);
    Some(ObservedRoute {
        protocol,
        route: Route {
            metric: attrs.get(RTA_PRIORITY).and_then(ne32).unwrap_or(0),
            src: attrs.get(RTA_PREFSRC).and_then(ip),
            mtu: metrics.get(RTAX_MTU).and_then(ne32),
            advmss: metrics.get(RTAX_ADVMSS).and_then(ne32),
            table,
            scope: (!usual).then_some(scope),
            ..Route::new(Cidr::new(dst, len)?, to)
        },
    })
}

/// `RTM_NEWRULE`
pub(crate) fn rule(m: &Message<'_>) -> Option<ObservedRule> {
    let [family, dst_len, src_len, _, table, _, _, action] = *m.payload.first_chunk()?;
    let family = match i32::from(family) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let a = m.attrs(12);
    let prefix = |k: u16, len: u8| match a.get(k) {
        Some(b) => Cidr::new(ip(b).filter(|x| Family::of(*x) == family)?, len),
        None => None,
    };
    let link = |k: u16| a.get(k).and_then(cstr).and_then(|n| n.parse().ok());
    let to = match action {
        FR_ACT_TO_TBL if on(a, FRA_L3MDEV) => RuleTo::L3mdev,
        FR_ACT_TO_TBL => RuleTo::Table(a.get(FRA_TABLE).and_then(ne32).unwrap_or(u32::from(table))),
        other => RuleTo::Other(other),
    };
    let mark = a.get(FRA_FWMARK).and_then(ne32);
    let mask = a.get(FRA_FWMASK).and_then(ne32);
    Some(ObservedRule {
        protocol: a.get(FRA_PROTOCOL).and_then(|b| b.first()).copied().unwrap_or(0),
        rule: Rule {
            family,
            priority: Some(a.get(FRA_PRIORITY).and_then(ne32).unwrap_or(0)),
            src: prefix(FRA_SRC, src_len),
            dst: prefix(FRA_DST, dst_len),
            iif: link(FRA_IIFNAME),
            oif: link(FRA_OIFNAME),
            mark: mark.map(|m| (m, mask.unwrap_or(u32::MAX))),
            to,
        },
    })
}

/// `RTM_NEWLINK` of family bridge: the VLANs of one port, or of a bridge.
pub(crate) fn port_vlans(m: &Message<'_>, out: &mut Vec<PortVlan>) {
    let attrs = m.attrs(16);
    let name = attrs.get(IFLA_IFNAME).and_then(cstr).and_then(|n| n.parse::<IfName>().ok());
    let (Some(index), Some(link)) = (m.payload.get(4..).and_then(ne32), name) else { return };
    let on_bridge = attrs.get(IFLA_MASTER).and_then(ne32) == Some(index);
    let mut begin = None;
    for (kind, info) in attrs.nested(IFLA_AF_SPEC) {
        let (IFLA_BRIDGE_VLAN_INFO, Some(flags), Some(vid)) = (kind, ne16(info), info.get(2..).and_then(ne16)) else {
            continue;
        };
        if flags & VLAN_RANGE_BEGIN != 0 {
            begin = Some(vid);
            continue;
        }
        let first = if flags & VLAN_RANGE_END != 0 { begin.take().unwrap_or(vid) } else { vid };
        out.push(PortVlan {
            link: link.clone(),
            vid: first,
            last: vid,
            pvid: flags & VLAN_PVID != 0,
            untagged: flags & VLAN_UNTAGGED != 0,
            on_bridge,
        });
    }
}

/// The link and state of a `struct ndmsg`.
fn nd(m: &Message<'_>, names: &Names) -> Option<(IfName, u16)> {
    Some((names.get(ne32(m.payload.get(4..)?)?)?, ne16(m.payload.get(8..)?)?))
}

/// `RTM_NEWNEIGH` of IPv4 and IPv6
pub(crate) fn neighbour(m: &Message<'_>, names: &Names) -> Option<Neighbour> {
    let (link, state) = nd(m, names)?;
    let family = i32::from(*m.payload.first()?);
    if state & NUD_PERMANENT == 0 || !matches!(family, libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let attrs = m.attrs(12);
    Some(Neighbour { link, addr: attrs.get(NDA_DST).and_then(ip)?, mac: attrs.get(NDA_LLADDR).and_then(mac)? })
}

/// `RTM_NEWNEIGH` of bridges and VXLAN devices
pub(crate) fn fdb(m: &Message<'_>, names: &Names) -> Option<FdbEntry> {
    let (link, state) = nd(m, names)?;
    if state & NUD_PERMANENT == 0 || i32::from(*m.payload.first()?) != libc::AF_BRIDGE {
        return None;
    }
    let attrs = m.attrs(12);
    Some(FdbEntry { link, mac: attrs.get(NDA_LLADDR).and_then(mac)?, remote: attrs.get(NDA_DST).and_then(ip)? })
}
