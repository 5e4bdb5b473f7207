//! Requests on links to bytes (include/uapi/linux/{if_link,if_bridge,veth}.h).

use std::net::IpAddr;

use kernel_api::rt::{BridgeParams, MacvlanParams, NewLink, NewLinkKind, PortVlan, SetLink, VxlanParams};
use types::IfName;

use super::encode::{RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK};
use crate::netlink::{Builder, CREATE, EXCL, REQUEST, Refusal};

pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
pub(crate) const IFLA_TXQLEN: u16 = 13;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_IFALIAS: u16 = 20;
pub(crate) const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
pub(crate) const IFLA_LINK_NETNSID: u16 = 37;
pub(crate) const IFLA_PROP_LIST: u16 = 52;
pub(crate) const IFLA_ALT_IFNAME: u16 = 53;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(crate) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(crate) const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
pub(crate) const IFLA_BRPORT_MODE: u16 = 4;
pub(crate) const IFLA_BRPORT_ISOLATED: u16 = 33;
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
pub(crate) const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;

pub(crate) const IFLA_VXLAN_ID: u16 = 1;
pub(crate) const IFLA_VXLAN_LINK: u16 = 3;
pub(crate) const IFLA_VXLAN_LOCAL: u16 = 4;
pub(crate) const IFLA_VXLAN_LEARNING: u16 = 7;
pub(crate) const IFLA_VXLAN_PORT: u16 = 15;
pub(crate) const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;

pub(crate) const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_MACVLAN_MACADDR_MODE: u16 = 3;
pub(crate) const IFLA_MACVLAN_MACADDR: u16 = 4;
pub(crate) const IFLA_MACVLAN_MACADDR_DATA: u16 = 5;
pub(crate) const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
/// `MACVLAN_MACADDR_SET`: the list replaces what was.
const MACADDR_SET: u32 = 3;
pub(crate) const IFLA_IPVLAN_MODE: u16 = 1;
pub(crate) const IFLA_IPVLAN_FLAGS: u16 = 2;
pub(crate) const IFLA_VLAN_ID: u16 = 1;
pub(crate) const IFLA_VLAN_PROTOCOL: u16 = 5;
pub(crate) const IFLA_VRF_TABLE: u16 = 1;
pub(crate) const IFLA_TUN_OWNER: u16 = 1;
pub(crate) const IFLA_TUN_GROUP: u16 = 2;
pub(crate) const IFLA_TUN_TYPE: u16 = 3;
pub(crate) const IFLA_TUN_VNET_HDR: u16 = 5;
pub(crate) const IFLA_TUN_PERSIST: u16 = 6;
pub(crate) const IFLA_TUN_MULTI_QUEUE: u16 = 7;

const IFLA_BRIDGE_FLAGS: u16 = 0;
pub(crate) const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_SELF: u16 = 2;
pub(crate) const VLAN_PVID: u16 = 1 << 1;
pub(crate) const VLAN_UNTAGGED: u16 = 1 << 2;
pub(crate) const VLAN_RANGE_BEGIN: u16 = 1 << 3;
pub(crate) const VLAN_RANGE_END: u16 = 1 << 4;

pub(crate) const IFF_UP: u32 = 0x1;
pub(crate) const IFF_PROMISC: u32 = 0x100;
pub(crate) const IFF_ALLMULTI: u32 = 0x200;
pub(crate) const IFF_MULTICAST: u32 = 0x1000;
pub(crate) const IFF_LOWER_UP: u32 = 0x1_0000;

/// A `struct ifinfomsg` with flags to set and the mask of those that change.
fn ifinfo(b: &mut Builder, family: i32, index: u32, flags: u32, change: u32) {
    let mut h = [0u8; 16];
    h[0] = family as u8;
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&change.to_ne_bytes());
    b.bytes(&h);
}

/// `RTM_NEWLINK` that makes a link, with an index of the kernel's choice when `index` is 0; the caller ends the message.
pub(crate) fn add(b: &mut Builder, l: &NewLink, index: u32) {
    b.begin(RTM_NEWLINK, REQUEST | CREATE | EXCL, 0);
    let up = u32::from(l.up) * IFF_UP;
    ifinfo(b, 0, index, up, up);
    b.attr_str(IFLA_IFNAME, l.name.as_str());
    if let Some(m) = l.mac {
        b.attr(IFLA_ADDRESS, &m.0);
    }
    for (k, v) in [(IFLA_MTU, l.mtu), (IFLA_MASTER, l.master), (IFLA_TXQLEN, l.txqlen), (IFLA_GROUP, l.group)] {
        if let Some(v) = v {
            b.attr_u32(k, v);
        }
    }
    if let Some(n) = l.netns {
        b.attr(IFLA_NET_NS_FD, &n.0.to_ne_bytes());
    }
    if let NewLinkKind::Macvlan { lower, .. } | NewLinkKind::Ipvlan { lower, .. } | NewLinkKind::Vlan { lower, .. } =
        l.kind
    {
        b.attr_u32(IFLA_LINK, lower);
    }
    if matches!(l.kind, NewLinkKind::Veth { .. }) {
        one_queue(b);
    }
    let info = b.open(IFLA_LINKINFO);
    kind(b, l);
    b.close(info);
}

fn kind(b: &mut Builder, l: &NewLink) {
    let mut data = |kind: &str, fill: &mut dyn FnMut(&mut Builder)| {
        b.attr_str(IFLA_INFO_KIND, kind);
        let data = b.open(IFLA_INFO_DATA);
        fill(b);
        b.close(data);
    };
    match &l.kind {
        NewLinkKind::Veth { peer, peer_netns, peer_mac } => data("veth", &mut |b| {
            let p = b.open(VETH_INFO_PEER);
            ifinfo(b, 0, 0, 0, 0);
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
        }),
        NewLinkKind::Bridge(p) if *p == BridgeParams::default() => b.attr_str(IFLA_INFO_KIND, "bridge"),
        NewLinkKind::Bridge(p) => data("bridge", &mut |b| {
            b.attr_u8(IFLA_BR_VLAN_FILTERING, u8::from(p.vlan_filtering));
            b.attr(IFLA_BR_VLAN_DEFAULT_PVID, &p.default_pvid.to_ne_bytes());
        }),
        NewLinkKind::Vxlan(v) => data("vxlan", &mut |b| vxlan(b, v)),
        NewLinkKind::Macvlan { params, .. } => data("macvlan", &mut |b| macvlan(b, params)),
        NewLinkKind::Ipvlan { params: p, .. } => data("ipvlan", &mut |b| {
            b.attr(IFLA_IPVLAN_MODE, &(p.mode as u16).to_ne_bytes());
            b.attr(IFLA_IPVLAN_FLAGS, &(p.flag as u16).to_ne_bytes());
        }),
        NewLinkKind::Vlan { params: p, .. } => data("vlan", &mut |b| {
            if p.ad {
                b.attr_be16(IFLA_VLAN_PROTOCOL, 0x88a8);
            }
            b.attr(IFLA_VLAN_ID, &p.id.to_ne_bytes());
        }),
        NewLinkKind::Dummy => b.attr_str(IFLA_INFO_KIND, "dummy"),
        NewLinkKind::Vrf { table } => data("vrf", &mut |b| b.attr_u32(IFLA_VRF_TABLE, *table)),
        NewLinkKind::Ifb => b.attr_str(IFLA_INFO_KIND, "ifb"),
    }
}

fn vxlan(b: &mut Builder, v: &VxlanParams) {
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
}

fn macvlan(b: &mut Builder, p: &MacvlanParams) {
    b.attr_u32(IFLA_MACVLAN_MODE, p.mode as u32);
    if let Some(n) = p.bc_queue_len {
        b.attr_u32(IFLA_MACVLAN_BC_QUEUE_LEN, n);
    }
    if !p.sources.is_empty() {
        b.attr_u32(IFLA_MACVLAN_MACADDR_MODE, MACADDR_SET);
        let list = b.open(IFLA_MACVLAN_MACADDR_DATA);
        for m in &p.sources {
            b.attr(IFLA_MACVLAN_MACADDR, &m.0);
        }
        b.close(list);
    }
}

/// A veth uses one queue per direction anyway. Unasked, the kernel makes one per processor and then waits for RCU grace
/// periods to switch the others off (`veth_init_queues`, drivers/net/veth.c): most of what making a pair costs.
fn one_queue(b: &mut Builder) {
    b.attr_u32(IFLA_NUM_TX_QUEUES, 1);
    b.attr_u32(IFLA_NUM_RX_QUEUES, 1);
}

/// `RTM_DELLINK`; the caller ends the message.
pub(crate) fn del(b: &mut Builder, name: &IfName) {
    b.begin(RTM_DELLINK, REQUEST, 0);
    ifinfo(b, 0, 0, 0, 0);
    b.attr_str(IFLA_IFNAME, name.as_str());
}

/// Port flags of a bridge are set by index only (`rtnl_bridge_setlink`), and a name in a request that has an index is
/// the new one (`do_setlink`).
pub(crate) fn set_needs_index(s: &SetLink) -> bool {
    s.hairpin.is_some() || s.isolated.is_some() || s.rename.is_some()
}

/// Appends the messages of a change; returns how many.
pub(crate) fn set(b: &mut Builder, s: &SetLink, index: u32) -> Result<usize, Refusal> {
    let mut messages = 0;
    // First what belongs to the kind: the link may leave the namespace or its name after.
    if s.macvlan_mode.is_some() && s.vlan_filtering.is_some() {
        return Err(Refusal { errno: libc::EINVAL, message: Some("a link is a macvlan or a bridge, not both".into()) });
    }
    if s.macvlan_mode.is_some() || s.vlan_filtering.is_some() {
        b.begin(RTM_NEWLINK, REQUEST, 0);
        ifinfo(b, 0, 0, 0, 0);
        b.attr_str(IFLA_IFNAME, s.name.as_str());
        let info = b.open(IFLA_LINKINFO);
        b.attr_str(IFLA_INFO_KIND, if s.macvlan_mode.is_some() { "macvlan" } else { "bridge" });
        let data = b.open(IFLA_INFO_DATA);
        if let Some(m) = s.macvlan_mode {
            b.attr_u32(IFLA_MACVLAN_MODE, m as u32);
        }
        if let Some(on) = s.vlan_filtering {
            b.attr_u8(IFLA_BR_VLAN_FILTERING, u8::from(on));
        }
        b.close(data);
        b.close(info);
        b.end();
        messages += 1;
    }
    let special = messages > 0 || s.hairpin.is_some() || s.isolated.is_some();
    if set_plain(b, s, index, special) {
        messages += 1;
    }
    if s.hairpin.is_some() || s.isolated.is_some() {
        b.begin(RTM_SETLINK, REQUEST, 0);
        ifinfo(b, libc::AF_BRIDGE, index, 0, 0);
        let info = b.open(IFLA_PROTINFO);
        for (k, on) in [(IFLA_BRPORT_MODE, s.hairpin), (IFLA_BRPORT_ISOLATED, s.isolated)] {
            if let Some(on) = on {
                b.attr_u8(k, u8::from(on));
            }
        }
        b.close(info);
        b.end();
        messages += 1;
    }
    Ok(messages)
}

/// What any link has. With `unless_empty` nothing is said when nothing changes.
fn set_plain(b: &mut Builder, s: &SetLink, index: u32, unless_empty: bool) -> bool {
    let switches = [(IFF_UP, s.up), (IFF_PROMISC, s.promisc), (IFF_ALLMULTI, s.allmulti), (IFF_MULTICAST, s.multicast)];
    let (mut flags, mut change) = (0, 0);
    for (bit, on) in switches {
        if let Some(on) = on {
            change |= bit;
            flags |= if on { bit } else { 0 };
        }
    }
    let numbers = [(IFLA_MTU, s.mtu), (IFLA_MASTER, s.master), (IFLA_TXQLEN, s.txqlen)];
    let empty = change == 0
        && numbers.iter().all(|(_, n)| n.is_none())
        && s.mac.is_none()
        && s.netns.is_none()
        && s.rename.is_none()
        && s.alias.is_none();
    if empty && unless_empty {
        return false;
    }
    b.begin(RTM_SETLINK, REQUEST, 0);
    match &s.rename {
        Some(new) => {
            ifinfo(b, 0, index, flags, change);
            b.attr_str(IFLA_IFNAME, new.as_str());
        }
        None => {
            ifinfo(b, 0, 0, flags, change);
            b.attr_str(IFLA_IFNAME, s.name.as_str());
        }
    }
    if let Some(m) = s.mac {
        b.attr(IFLA_ADDRESS, &m.0);
    }
    for (k, v) in numbers {
        if let Some(v) = v {
            b.attr_u32(k, v);
        }
    }
    if let Some(a) = &s.alias {
        b.attr(IFLA_IFALIAS, a.as_bytes());
    }
    if let Some(n) = s.netns {
        b.attr(IFLA_NET_NS_FD, &n.0.to_ne_bytes());
    }
    b.end();
    true
}

/// `RTM_SETLINK` or `RTM_DELLINK` of family bridge; the caller ends the message.
pub(crate) fn port_vlan(b: &mut Builder, kind: u16, v: &PortVlan, index: u32) {
    b.begin(kind, REQUEST, 0);
    ifinfo(b, libc::AF_BRIDGE, index, 0, 0);
    let spec = b.open(IFLA_AF_SPEC);
    if v.on_bridge {
        b.attr(IFLA_BRIDGE_FLAGS, &BRIDGE_FLAGS_SELF.to_ne_bytes());
    }
    let flags = if v.pvid { VLAN_PVID } else { 0 } | if v.untagged { VLAN_UNTAGGED } else { 0 };
    let mut info = |flags: u16, vid: u16| {
        let [f, v] = [flags.to_ne_bytes(), vid.to_ne_bytes()];
        b.attr(IFLA_BRIDGE_VLAN_INFO, &[f[0], f[1], v[0], v[1]]);
    };
    if v.last == v.vid {
        info(flags, v.vid);
    } else {
        info(flags | VLAN_RANGE_BEGIN, v.vid);
        info(flags | VLAN_RANGE_END, v.last);
    }
    b.close(spec);
}
