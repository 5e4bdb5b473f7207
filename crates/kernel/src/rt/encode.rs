//! Requests to bytes (include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,veth}.h).

use std::net::IpAddr;

use kernel_api::rt::{
    Address, FdbEntry, MAIN_TABLE, Neighbour, NewLink, NewLinkKind, ROUTE_PROTOCOL, Route, RouteTo, RtRequest, SetLink,
};
use types::{Family, IfName};

use crate::netlink::{APPEND, Builder, CREATE, EXCL, REPLACE, REQUEST, Refusal};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;

pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
pub(crate) const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

pub(crate) const IFLA_VXLAN_ID: u16 = 1;
pub(crate) const IFLA_VXLAN_LINK: u16 = 3;
pub(crate) const IFLA_VXLAN_LOCAL: u16 = 4;
pub(crate) const IFLA_VXLAN_LEARNING: u16 = 7;
pub(crate) const IFLA_VXLAN_PORT: u16 = 15;
pub(crate) const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;

pub(crate) const IFA_ADDRESS: u16 = 1;
pub(crate) const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;

pub(crate) const RTA_DST: u16 = 1;
pub(crate) const RTA_OIF: u16 = 4;
pub(crate) const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_PRIORITY: u16 = 6;
pub(crate) const RTA_PREFSRC: u16 = 7;
pub(crate) const RTA_METRICS: u16 = 8;
pub(crate) const RTA_TABLE: u16 = 15;
pub(crate) const RTAX_MTU: u16 = 2;
pub(crate) const RTNH_F_ONLINK: u32 = 4;
pub(crate) const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_NOWHERE: u8 = 255;
pub(crate) const RTN_UNICAST: u8 = 1;
pub(crate) const RTN_BLACKHOLE: u8 = 6;
pub(crate) const RTN_UNREACHABLE: u8 = 7;

pub(crate) const NDA_DST: u16 = 1;
pub(crate) const NDA_LLADDR: u16 = 2;
pub(crate) const NUD_NOARP: u16 = 0x40;
pub(crate) const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

const IFF_UP: u32 = 1;

/// The link whose index the message of `r` must hold. Requests on links themselves go by name.
pub(crate) fn needs_index(r: &RtRequest) -> Option<&IfName> {
    match r {
        RtRequest::LinkAdd(_) | RtRequest::LinkDel(_) => None,
        // Port flags of a bridge are set by index only (rtnl_bridge_setlink).
        RtRequest::LinkSet(s) => s.hairpin.map(|_| &s.name),
        RtRequest::AddressAdd(a) | RtRequest::AddressDel(a) => Some(&a.link),
        RtRequest::RouteReplace(r) | RtRequest::RouteAdd(r) | RtRequest::RouteDel(r) => match &r.to {
            RouteTo::Link(l) | RouteTo::Via { link: l, .. } => Some(l),
            RouteTo::Blackhole | RouteTo::Unreachable | RouteTo::Other(_) => None,
        },
        RtRequest::NeighbourReplace(n) | RtRequest::NeighbourDel(n) => Some(&n.link),
        RtRequest::FdbReplace(e) | RtRequest::FdbDel(e) => Some(&e.link),
    }
}

/// Appends the messages of one request; returns how many.
pub(crate) fn request(b: &mut Builder, r: &RtRequest, index: u32) -> Result<usize, Refusal> {
    match r {
        RtRequest::LinkAdd(l) => link_add(b, l),
        RtRequest::LinkSet(s) => return Ok(link_set(b, s, index)),
        RtRequest::LinkDel(n) => {
            b.begin(RTM_DELLINK, REQUEST, 0);
            ifinfo(b, 0, 0, None);
            b.attr_str(IFLA_IFNAME, n.name().as_str());
        }
        RtRequest::AddressAdd(a) => address(b, RTM_NEWADDR, CREATE | REPLACE, a, index),
        RtRequest::AddressDel(a) => address(b, RTM_DELADDR, 0, a, index),
        RtRequest::RouteReplace(r) => route(b, RTM_NEWROUTE, CREATE | REPLACE, r, index)?,
        RtRequest::RouteAdd(r) => route(b, RTM_NEWROUTE, CREATE | EXCL, r, index)?,
        RtRequest::RouteDel(r) => route(b, RTM_DELROUTE, 0, r, index)?,
        RtRequest::NeighbourReplace(n) => neighbour(b, RTM_NEWNEIGH, CREATE | REPLACE, n, index),
        RtRequest::NeighbourDel(n) => neighbour(b, RTM_DELNEIGH, 0, n, index),
        RtRequest::FdbReplace(e) => {
            // An all-zero or multicast entry holds a list of destinations and can only be added to.
            let list = e.mac.0[0] & 1 == 1 || e.mac.0 == [0; 6];
            fdb(b, RTM_NEWNEIGH, CREATE | if list { APPEND } else { REPLACE }, e, index);
        }
        RtRequest::FdbDel(e) => fdb(b, RTM_DELNEIGH, 0, e, index),
    }
    b.end();
    Ok(1)
}

/// A `struct ifinfomsg`.
fn ifinfo(b: &mut Builder, family: i32, index: u32, up: Option<bool>) {
    let mut h = [0u8; 16];
    h[0] = family as u8;
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(up) = up {
        h[8..12].copy_from_slice(&(u32::from(up) * IFF_UP).to_ne_bytes());
        h[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    b.bytes(&h);
}

fn link_add(b: &mut Builder, l: &NewLink) {
    b.begin(RTM_NEWLINK, REQUEST | CREATE | EXCL, 0);
    ifinfo(b, 0, 0, l.up.then_some(true));
    b.attr_str(IFLA_IFNAME, l.name.as_str());
    if let Some(m) = l.mac {
        b.attr(IFLA_ADDRESS, &m.0);
    }
    if let Some(m) = l.mtu {
        b.attr_u32(IFLA_MTU, m);
    }
    if let Some(m) = l.master {
        b.attr_u32(IFLA_MASTER, m);
    }
    if matches!(l.kind, NewLinkKind::Veth { .. }) {
        one_queue(b);
    }
    let info = b.open(IFLA_LINKINFO);
    match &l.kind {
        NewLinkKind::Veth { peer, peer_netns, peer_mac } => {
            b.attr_str(IFLA_INFO_KIND, "veth");
            let data = b.open(IFLA_INFO_DATA);
            let p = b.open(VETH_INFO_PEER);
            ifinfo(b, 0, 0, None);
            b.attr_str(IFLA_IFNAME, peer.as_str());
            if let Some(m) = peer_mac {
                b.attr(IFLA_ADDRESS, &m.0);
            }
            // Both ends: a pair with different MTUs drops what one end may send and the other not take.
            if let Some(m) = l.mtu {
                b.attr_u32(IFLA_MTU, m);
            }
            one_queue(b);
            if let Some(n) = peer_netns {
                b.attr(IFLA_NET_NS_FD, &n.0.to_ne_bytes());
            }
            b.close(p);
            b.close(data);
        }
        NewLinkKind::Bridge => b.attr_str(IFLA_INFO_KIND, "bridge"),
        NewLinkKind::Vxlan(v) => {
            b.attr_str(IFLA_INFO_KIND, "vxlan");
            let data = b.open(IFLA_INFO_DATA);
            b.attr_u32(IFLA_VXLAN_ID, v.vni);
            b.attr_be16(IFLA_VXLAN_PORT, v.port);
            b.attr_u8(IFLA_VXLAN_LEARNING, u8::from(v.learning));
            if let Some(lower) = v.lower {
                b.attr_u32(IFLA_VXLAN_LINK, lower);
            }
            match v.local {
                Some(IpAddr::V4(a)) => b.attr(IFLA_VXLAN_LOCAL, &a.octets()),
                Some(IpAddr::V6(a)) => {
                    b.attr(IFLA_VXLAN_LOCAL6, &a.octets());
                    // RFC 7348 section 5 has senders leave the checksum out; take theirs, send ours with one.
                    b.attr_u8(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1);
                }
                None => {}
            }
            b.close(data);
        }
    }
    b.close(info);
}

/// A veth uses one queue per direction anyway. Unasked, the kernel makes one per processor and then waits for RCU grace
/// periods to switch the others off (`veth_init_queues`, drivers/net/veth.c): most of what making a pair costs.
fn one_queue(b: &mut Builder) {
    b.attr_u32(IFLA_NUM_TX_QUEUES, 1);
    b.attr_u32(IFLA_NUM_RX_QUEUES, 1);
}

fn link_set(b: &mut Builder, s: &SetLink, index: u32) -> usize {
    let plain = s.up.is_some() || s.mtu.is_some() || s.master.is_some() || s.mac.is_some() || s.netns.is_some();
    let mut messages = 0;
    if plain || s.hairpin.is_none() {
        b.begin(RTM_SETLINK, REQUEST, 0);
        ifinfo(b, 0, 0, s.up);
        b.attr_str(IFLA_IFNAME, s.name.as_str());
        if let Some(m) = s.mac {
            b.attr(IFLA_ADDRESS, &m.0);
        }
        if let Some(m) = s.mtu {
            b.attr_u32(IFLA_MTU, m);
        }
        if let Some(m) = s.master {
            b.attr_u32(IFLA_MASTER, m);
        }
        if let Some(n) = s.netns {
            b.attr(IFLA_NET_NS_FD, &n.0.to_ne_bytes());
        }
        b.end();
        messages += 1;
    }
    if let Some(on) = s.hairpin {
        b.begin(RTM_SETLINK, REQUEST, 0);
        ifinfo(b, libc::AF_BRIDGE, index, None);
        let info = b.open(IFLA_PROTINFO);
        b.attr_u8(IFLA_BRPORT_MODE, u8::from(on));
        b.close(info);
        b.end();
        messages += 1;
    }
    messages
}

fn family(a: IpAddr) -> u8 {
    (if a.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn attr_ip(b: &mut Builder, kind: u16, a: IpAddr) {
    match a {
        IpAddr::V4(a) => b.attr(kind, &a.octets()),
        IpAddr::V6(a) => b.attr(kind, &a.octets()),
    }
}

fn address(b: &mut Builder, kind: u16, flags: u16, a: &Address, index: u32) {
    b.begin(kind, REQUEST | flags, 0);
    let mut h = [0u8; 8];
    h[0] = family(a.addr);
    h[1] = a.prefix_len;
    h[3] = if a.scope_link { RT_SCOPE_LINK } else { 0 };
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    b.bytes(&h);
    attr_ip(b, IFA_LOCAL, a.addr);
    attr_ip(b, IFA_ADDRESS, a.addr);
    // The plan gave the address to this link alone; waiting a second for duplicate detection would only delay.
    if kind == RTM_NEWADDR && a.addr.is_ipv6() {
        b.attr_u32(IFA_FLAGS, IFA_F_NODAD);
    }
}

fn route(b: &mut Builder, kind: u16, flags: u16, r: &Route, index: u32) -> Result<(), Refusal> {
    let delete = kind == RTM_DELROUTE;
    let (rtype, scope) = match &r.to {
        RouteTo::Link(_) => (RTN_UNICAST, RT_SCOPE_LINK),
        RouteTo::Via { gateway, .. } => {
            if Family::of(*gateway) != r.family() {
                let message = Some("a gateway of the other family (RTA_VIA) is not supported".into());
                return Err(Refusal { errno: libc::EAFNOSUPPORT, message });
            }
            (RTN_UNICAST, 0)
        }
        RouteTo::Blackhole => (RTN_BLACKHOLE, 0),
        RouteTo::Unreachable => (RTN_UNREACHABLE, 0),
        RouteTo::Other(s) => {
            let message = Some(format!("routes of type {s} are only observed, never made"));
            return Err(Refusal { errno: libc::EOPNOTSUPP, message });
        }
    };
    b.begin(kind, REQUEST | flags, 0);
    let mut h = [0u8; 12];
    h[0] = family(r.dst.addr());
    h[1] = r.dst.len();
    h[4] = MAIN_TABLE as u8;
    h[5] = ROUTE_PROTOCOL;
    // A delete that leaves the scope open matches any; IPv6 has no scopes.
    h[6] = match (r.family(), delete) {
        (Family::V4, true) => RT_SCOPE_NOWHERE,
        (Family::V4, false) => scope,
        (Family::V6, _) => 0,
    };
    h[7] = rtype;
    if matches!(r.to, RouteTo::Via { onlink: true, .. }) && !delete {
        h[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    b.bytes(&h);
    attr_ip(b, RTA_DST, r.dst.addr());
    if index != 0 {
        b.attr_u32(RTA_OIF, index);
    }
    if let RouteTo::Via { gateway, .. } = r.to {
        attr_ip(b, RTA_GATEWAY, gateway);
    }
    if r.metric != 0 {
        b.attr_u32(RTA_PRIORITY, r.metric);
    }
    if let Some(s) = r.src {
        attr_ip(b, RTA_PREFSRC, s);
    }
    if let (Some(m), false) = (r.mtu, delete) {
        let n = b.open(RTA_METRICS);
        b.attr_u32(RTAX_MTU, m);
        b.close(n);
    }
    Ok(())
}

/// A `struct ndmsg`.
fn nd(b: &mut Builder, family: u8, index: u32, state: u16, flags: u8) {
    let mut h = [0u8; 12];
    h[0] = family;
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..10].copy_from_slice(&state.to_ne_bytes());
    h[10] = flags;
    b.bytes(&h);
}

fn neighbour(b: &mut Builder, kind: u16, flags: u16, n: &Neighbour, index: u32) {
    b.begin(kind, REQUEST | flags, 0);
    nd(b, family(n.addr), index, NUD_PERMANENT, 0);
    attr_ip(b, NDA_DST, n.addr);
    if kind == RTM_NEWNEIGH {
        b.attr(NDA_LLADDR, &n.mac.0);
    }
}

fn fdb(b: &mut Builder, kind: u16, flags: u16, e: &FdbEntry, index: u32) {
    b.begin(kind, REQUEST | flags, 0);
    nd(b, libc::AF_BRIDGE as u8, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
    b.attr(NDA_LLADDR, &e.mac.0);
    attr_ip(b, NDA_DST, e.remote);
}
