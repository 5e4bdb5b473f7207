//! Requests to bytes (include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,veth}.h).

use std::net::IpAddr;

use kernel_api::rt::{Address, FdbEntry, Neighbour, ROUTE_PROTOCOL, Route, RouteTo, RtRequest, Rule, RuleTo};
use types::{Family, IfName};

use super::{link, tc};
use crate::netlink::{APPEND, Builder, CREATE, EXCL, REPLACE, REQUEST, Refusal};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;
pub(crate) const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
pub(crate) const RTM_GETRULE: u16 = 34;

pub(crate) const IFA_ADDRESS: u16 = 1;
pub(crate) const IFA_LOCAL: u16 = 2;
pub(crate) const IFA_BROADCAST: u16 = 4;
pub(crate) const IFA_FLAGS: u16 = 8;
pub(crate) const IFA_F_NODAD: u32 = 0x02;
pub(crate) const IFA_F_NOPREFIXROUTE: u32 = 0x200;

pub(crate) const RTA_DST: u16 = 1;
pub(crate) const RTA_OIF: u16 = 4;
pub(crate) const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_PRIORITY: u16 = 6;
pub(crate) const RTA_PREFSRC: u16 = 7;
pub(crate) const RTA_METRICS: u16 = 8;
pub(crate) const RTA_TABLE: u16 = 15;
pub(crate) const RTAX_MTU: u16 = 2;
pub(crate) const RTAX_ADVMSS: u16 = 8;
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

pub(crate) const FRA_DST: u16 = 1;
pub(crate) const FRA_SRC: u16 = 2;
pub(crate) const FRA_IIFNAME: u16 = 3;
pub(crate) const FRA_PRIORITY: u16 = 6;
pub(crate) const FRA_FWMARK: u16 = 10;
pub(crate) const FRA_TABLE: u16 = 15;
pub(crate) const FRA_FWMASK: u16 = 16;
pub(crate) const FRA_OIFNAME: u16 = 17;
pub(crate) const FRA_L3MDEV: u16 = 19;
pub(crate) const FRA_PROTOCOL: u16 = 21;
pub(crate) const FR_ACT_TO_TBL: u8 = 1;

/// The link whose index the message of `r` must hold. Other requests on links themselves go by name.
pub(crate) fn needs_index(r: &RtRequest) -> Option<&IfName> {
    match r {
        RtRequest::LinkAdd(_) | RtRequest::LinkDel(_) | RtRequest::RuleAdd(_) | RtRequest::RuleDel(_) => None,
        RtRequest::LinkSet(s) => link::set_needs_index(s).then_some(&s.name),
        RtRequest::AddressAdd(a) | RtRequest::AddressDel(a) => Some(&a.link),
        RtRequest::RouteReplace(r) | RtRequest::RouteAdd(r) | RtRequest::RouteDel(r) => r.to.link(),
        RtRequest::NeighbourReplace(n) | RtRequest::NeighbourDel(n) => Some(&n.link),
        RtRequest::FdbReplace(e) | RtRequest::FdbDel(e) => Some(&e.link),
        RtRequest::PortVlanAdd(v) | RtRequest::PortVlanDel(v) => Some(&v.link),
        RtRequest::QdiscReplace(q) => Some(&q.link),
        RtRequest::FilterReplace(f) => Some(&f.link),
        RtRequest::QdiscDel(l, _) | RtRequest::FilterDel(l, _, _) => Some(l),
    }
}

/// Appends the messages of one request; returns how many.
pub(crate) fn request(b: &mut Builder, r: &RtRequest, index: u32) -> Result<usize, Refusal> {
    match r {
        RtRequest::LinkAdd(l) => link::add(b, l, 0),
        RtRequest::LinkSet(s) => return link::set(b, s, index),
        RtRequest::LinkDel(n) => link::del(b, n.name()),
        RtRequest::AddressAdd(a) => address(b, RTM_NEWADDR, CREATE | REPLACE, a, index),
        RtRequest::AddressDel(a) => address(b, RTM_DELADDR, 0, a, index),
        RtRequest::RouteReplace(r) => route(b, RTM_NEWROUTE, CREATE | REPLACE, r, index)?,
        RtRequest::RouteAdd(r) => route(b, RTM_NEWROUTE, CREATE | EXCL, r, index)?,
        RtRequest::RouteDel(r) => route_del(b, r, ROUTE_PROTOCOL, index)?,
        RtRequest::NeighbourReplace(n) => neighbour(b, RTM_NEWNEIGH, CREATE | REPLACE, n, index),
        RtRequest::NeighbourDel(n) => neighbour(b, RTM_DELNEIGH, 0, n, index),
        RtRequest::FdbReplace(e) => {
            // An all-zero or multicast entry holds a list of destinations and can only be added to.
            let list = e.mac.0[0] & 1 == 1 || e.mac.0 == [0; 6];
            fdb(b, RTM_NEWNEIGH, CREATE | if list { APPEND } else { REPLACE }, e, index);
        }
        RtRequest::FdbDel(e) => fdb(b, RTM_DELNEIGH, 0, e, index),
        RtRequest::RuleAdd(r) => rule(b, RTM_NEWRULE, CREATE | EXCL, r, ROUTE_PROTOCOL)?,
        RtRequest::RuleDel(r) => rule_del(b, r, ROUTE_PROTOCOL)?,
        RtRequest::PortVlanAdd(v) => link::port_vlan(b, RTM_SETLINK, v, index),
        RtRequest::PortVlanDel(v) => link::port_vlan(b, RTM_DELLINK, v, index),
        RtRequest::QdiscReplace(q) => return tc::qdisc_replace(b, q, index),
        RtRequest::QdiscDel(_, s) => tc::qdisc_del(b, *s, index),
        RtRequest::FilterReplace(f) => tc::filter_replace(b, f, index)?,
        RtRequest::FilterDel(_, h, p) => tc::filter_del(b, *h, *p, index),
    }
    b.end();
    Ok(1)
}

/// What only observation gives.
fn never_made(what: impl std::fmt::Display) -> Refusal {
    Refusal { errno: libc::EOPNOTSUPP, message: Some(format!("{what} are only observed, never made")) }
}

fn family(a: IpAddr) -> u8 {
    (if a.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Asks by which route packets to an address leave (`ip route get`).
pub(crate) fn route_lookup(b: &mut Builder, to: IpAddr, seq: u32) {
    b.begin(RTM_GETROUTE, REQUEST, seq);
    let mut header = [0u8; 12];
    // rtm_family, rtm_dst_len
    (header[0], header[1]) = (family(to), if to.is_ipv4() { 32 } else { 128 });
    b.bytes(&header);
    attr_ip(b, RTA_DST, to);
    b.end();
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
    attr_ip(b, IFA_ADDRESS, a.peer.unwrap_or(a.addr));
    if kind != RTM_NEWADDR {
        return;
    }
    if let Some(x) = a.broadcast {
        b.attr(IFA_BROADCAST, &x.octets());
    }
    // The plan gave the address to this link alone; waiting a second for duplicate detection would only delay.
    let nodad = a.addr.is_ipv6() && !a.detect_duplicates;
    let flags = if nodad { IFA_F_NODAD } else { 0 } | if a.no_prefix_route { IFA_F_NOPREFIXROUTE } else { 0 };
    if flags != 0 {
        b.attr_u32(IFA_FLAGS, flags);
    }
}

/// The scope of a route that says none.
pub(crate) fn usual_scope(to: &RouteTo, family: Family) -> u8 {
    match (to, family) {
        (RouteTo::Link(_), Family::V4) => RT_SCOPE_LINK,
        _ => 0,
    }
}

fn route(b: &mut Builder, kind: u16, flags: u16, r: &Route, index: u32) -> Result<(), Refusal> {
    // IPv6 has no scopes.
    let scope = match r.family() {
        Family::V4 => r.scope.unwrap_or(usual_scope(&r.to, Family::V4)),
        Family::V6 => 0,
    };
    route_head(b, kind, flags, r, ROUTE_PROTOCOL, scope, index)?;
    if r.mtu.is_some() || r.advmss.is_some() {
        let n = b.open(RTA_METRICS);
        if let Some(m) = r.mtu {
            b.attr_u32(RTAX_MTU, m);
        }
        if let Some(m) = r.advmss {
            b.attr_u32(RTAX_ADVMSS, m);
        }
        b.close(n);
    }
    Ok(())
}

/// `RTM_DELROUTE` of a route of `protocol`; the caller ends the message.
pub(crate) fn route_del(b: &mut Builder, r: &Route, protocol: u8, index: u32) -> Result<(), Refusal> {
    // A delete that leaves the scope open matches any.
    let scope = match r.family() {
        Family::V4 => r.scope.unwrap_or(RT_SCOPE_NOWHERE),
        Family::V6 => 0,
    };
    route_head(b, RTM_DELROUTE, 0, r, protocol, scope, index)
}

fn route_head(
    b: &mut Builder,
    kind: u16,
    flags: u16,
    r: &Route,
    protocol: u8,
    scope: u8,
    index: u32,
) -> Result<(), Refusal> {
    let rtype = match &r.to {
        RouteTo::Link(_) => RTN_UNICAST,
        RouteTo::Via { gateway, .. } => {
            if Family::of(*gateway) != r.family() {
                let message = Some("a gateway of the other family (RTA_VIA) is not supported".into());
                return Err(Refusal { errno: libc::EAFNOSUPPORT, message });
            }
            RTN_UNICAST
        }
        RouteTo::Blackhole => RTN_BLACKHOLE,
        RouteTo::Unreachable => RTN_UNREACHABLE,
        RouteTo::Other(s) => return Err(never_made(format_args!("routes of type {s}"))),
    };
    b.begin(kind, REQUEST | flags, 0);
    let mut h = [0u8; 12];
    h[0] = family(r.dst.addr());
    h[1] = r.dst.len();
    // A number that does not fit goes as attribute.
    h[4] = u8::try_from(r.table).unwrap_or(0);
    h[5] = protocol;
    h[6] = scope;
    h[7] = rtype;
    if matches!(r.to, RouteTo::Via { onlink: true, .. }) && kind != RTM_DELROUTE {
        h[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    b.bytes(&h);
    attr_ip(b, RTA_DST, r.dst.addr());
    if u8::try_from(r.table).is_err() {
        b.attr_u32(RTA_TABLE, r.table);
    }
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
    Ok(())
}

/// `RTM_DELRULE` of a rule of `protocol`; the caller ends the message.
pub(crate) fn rule_del(b: &mut Builder, r: &Rule, protocol: u8) -> Result<(), Refusal> {
    rule(b, RTM_DELRULE, 0, r, protocol)
}

fn rule(b: &mut Builder, kind: u16, flags: u16, r: &Rule, protocol: u8) -> Result<(), Refusal> {
    let table = match r.to {
        RuleTo::Table(t) => t,
        RuleTo::L3mdev => 0,
        RuleTo::Other(a) => return Err(never_made(format_args!("rules of action {a}"))),
    };
    let selectors = [(FRA_SRC, r.src), (FRA_DST, r.dst)];
    if selectors.iter().any(|(_, c)| c.is_some_and(|c| c.family() != r.family)) {
        let message = Some("a rule looks at packets of one family".into());
        return Err(Refusal { errno: libc::EAFNOSUPPORT, message });
    }
    b.begin(kind, REQUEST | flags, 0);
    // struct fib_rule_hdr: family, lengths, tos, table, two unused, action, flags
    let mut h = [0u8; 12];
    h[0] = family(r.family.unspecified());
    h[1] = r.dst.map_or(0, |c| c.len());
    h[2] = r.src.map_or(0, |c| c.len());
    h[4] = u8::try_from(table).unwrap_or(0);
    h[7] = FR_ACT_TO_TBL;
    b.bytes(&h);
    for (k, c) in selectors {
        if let Some(c) = c {
            attr_ip(b, k, c.addr());
        }
    }
    for (k, l) in [(FRA_IIFNAME, &r.iif), (FRA_OIFNAME, &r.oif)] {
        if let Some(l) = l {
            b.attr_str(k, l.as_str());
        }
    }
    if let Some(p) = r.priority {
        b.attr_u32(FRA_PRIORITY, p);
    }
    if let Some((mark, mask)) = r.mark {
        b.attr_u32(FRA_FWMARK, mark);
        b.attr_u32(FRA_FWMASK, mask);
    }
    if u8::try_from(table).is_err() {
        b.attr_u32(FRA_TABLE, table);
    }
    if r.to == RuleTo::L3mdev {
        b.attr_u8(FRA_L3MDEV, 1);
    }
    b.attr_u8(FRA_PROTOCOL, protocol);
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
