//! The bridge itself, its ports, its addresses.

use cni::iface::{self, Ends};
use cni::{CniResult, Code, Error, IpNet};
use kernel_api::machine::Machine;
use kernel_api::rt::{Address, BridgeParams, Link, LinkKind, NewLink, NewLinkKind, PortVlan, RtRequest, SetLink};
use kernel_api::tc::Guard;
use kernel_api::tc::{Filter, FilterKind, Hook, Qdisc, QdiscKind};
use kernel_api::{Rtnetlink, Sysctl};
use types::{Cidr, Family, IfName};

use super::Conf;

/// Where the filter stands that knows the container's hardware address: before those that shape.
const GUARD: u16 = 1;

fn gone(name: &IfName) -> Error {
    Error::new(Code::TryAgainLater, format!("{name} is gone as soon as it was made"))
}

/// The bridge, made if it is not there. It is nobody's alone and stays.
pub fn bridge<M: Machine>(machine: &mut M, rt: &mut impl Rtnetlink, conf: &Conf) -> Result<Link, Error> {
    let name = &conf.bridge;
    let mut link = rt.link(name)?;
    if link.is_none() {
        let params = BridgeParams { vlan_filtering: conf.filters_vlans(), ..BridgeParams::default() };
        let new = NewLink { mtu: conf.mtu, ..NewLink::new(name.clone(), NewLinkKind::Bridge(params)) };
        match rt.run(&[RtRequest::LinkAdd(new)]) {
            // Another ADD was quicker.
            Err(e) if !e.exists() => return Err(e.into()),
            _ => {}
        }
        link = rt.link(name)?;
    }
    let link = link.ok_or_else(|| gone(name))?;
    if !matches!(link.kind, LinkKind::Bridge(_)) {
        let says = format!("bridge is {name}: there is such an interface, but it is no bridge; choose another name");
        return Err(cni::bad(says));
    }
    let set = SetLink {
        up: (!link.up).then_some(true),
        promisc: (conf.promisc && !link.promisc).then_some(true),
        ..SetLink::new(name.clone())
    };
    if set.up.is_some() || set.promisc.is_some() {
        if set.up.is_some() {
            no_advertisements(machine, name);
        }
        rt.run(&[RtRequest::LinkSet(set)])?;
    }
    Ok(link)
}

/// We say which routes it has.
fn no_advertisements<M: Machine>(machine: &mut M, name: &IfName) {
    if let Ok(mut s) = machine.sysctl() {
        let _ = s.set(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    }
}

/// What a container's port is like.
pub fn port(host: &mut impl Rtnetlink, inside: &mut impl Rtnetlink, conf: &Conf, ends: &Ends) -> Result<(), Error> {
    let name = &ends.host.name;
    let mut out = Vec::new();
    if conf.hairpin || conf.isolated {
        let set = SetLink {
            hairpin: conf.hairpin.then_some(true),
            isolated: conf.isolated.then_some(true),
            ..SetLink::new(name.clone())
        };
        out.push(RtRequest::LinkSet(set));
    }
    out.extend(vlans(host, conf, name)?);
    if conf.spoof_check {
        let mac = ends.inside.mac.ok_or_else(|| gone(&ends.inside.name))?;
        let guard = Guard::mac_only(mac).map_err(|e| cni::bad(format!("macspoofchk: {e}")))?;
        out.push(RtRequest::QdiscReplace(Qdisc { link: name.clone(), kind: QdiscKind::Clsact }));
        let kind = FilterKind::Guard(guard);
        out.push(RtRequest::FilterReplace(Filter { link: name.clone(), hook: Hook::Ingress, priority: GUARD, kind }));
    }
    if !out.is_empty() {
        host.run(&out)?;
    }
    if conf.leave_down {
        inside.run(&[RtRequest::LinkSet(SetLink { up: Some(false), ..SetLink::new(ends.inside.name.clone()) })])?;
    }
    Ok(())
}

/// A port is untagged in one VLAN, or tagged in several.
fn vlans(rt: &mut impl Rtnetlink, conf: &Conf, port: &IfName) -> Result<Vec<RtRequest>, Error> {
    let mut out = Vec::new();
    let trunk = conf.trunk.iter().flatten();
    if !conf.preserve_default_vlan && (conf.vlan.is_some() || trunk.clone().next().is_some()) {
        let have = rt.port_vlans()?;
        out.extend(have.into_iter().filter(|v| v.link == *port && !v.on_bridge).map(RtRequest::PortVlanDel));
    }
    out.extend(conf.vlan.map(|v| RtRequest::PortVlanAdd(PortVlan::access(port.clone(), v))));
    out.extend(trunk.map(|v| RtRequest::PortVlanAdd(PortVlan::tagged(port.clone(), *v))));
    Ok(out)
}

/// Gives the bridge, or its end in the port's VLAN, the gateways' addresses, and lets the node forward. The VLAN's end,
/// if there is one.
pub fn addresses<M: Machine>(
    machine: &mut M,
    rt: &mut impl Rtnetlink,
    conf: &Conf,
    bridge: &Link,
    result: &CniResult,
) -> Result<Option<Link>, Error> {
    let own = match conf.vlan {
        Some(vlan) => Some(vlan_end(machine, rt, conf, bridge, vlan)?),
        None => None,
    };
    let on = own.as_ref().unwrap_or(bridge);
    let mut families = Vec::new();
    for i in &result.ips {
        if let Some(addr) = i.gateway {
            address(rt, conf, on, IpNet { addr, len: i.address.len })?;
            families.push(Family::of(addr));
        }
    }
    iface::forward(machine, &families)?;
    Ok(own)
}

/// One gateway's address. IPv4 has one; IPv6 several, of different networks.
fn address(rt: &mut impl Rtnetlink, conf: &Conf, on: &Link, want: IpNet) -> Result<(), Error> {
    let (net, mut out) = (want.network(), Vec::new());
    // The gateway of single addresses is in no network, so it is in nobody's way, and nobody in its.
    let apart = |a: std::net::IpAddr| a == cni::plan::GATEWAY_V4 || a == cni::plan::GATEWAY_V6;
    for a in rt.addresses()?.into_iter().filter(|a| a.link == on.name && Family::of(a.addr) == net.family()) {
        if a.addr == want.addr && a.prefix_len == want.len {
            return Ok(());
        }
        let have = Cidr::new(a.addr, a.prefix_len).unwrap_or(Cidr::host(a.addr));
        if apart(want.addr) || apart(a.addr) {
            continue;
        }
        let clash = want.addr.is_ipv4() || have.contains(want.addr) || net.contains(a.addr);
        if clash && !conf.force_address {
            let says = format!(
                "{} has the address {}/{}, the gateway is {want}; set forceAddress to have it replaced",
                on.name, a.addr, a.prefix_len
            );
            return Err(Error::new(Code::Address, says));
        }
        if clash {
            out.push(RtRequest::AddressDel(a));
        }
    }
    let mut a = Address::new(on.name.clone(), want.addr, want.len);
    a.broadcast = a.usual_broadcast();
    out.push(RtRequest::AddressAdd(a));
    // Its own for good: otherwise it would take the least of its ports and change as they come and go.
    // A bridge that has lost its last port has none for now.
    let real = |l: &Link| l.mac.filter(|m| m.0 != [0; 6]);
    if let Some(mac) = real(on).or(rt.link(&on.name)?.as_ref().and_then(real)) {
        out.push(RtRequest::LinkSet(SetLink { mac: Some(mac), ..SetLink::new(on.name.clone()) }));
    }
    Ok(rt.run(&out)?)
}

/// The node's end in a VLAN of the bridge: a pair whose other end is a port.
fn vlan_end<M: Machine>(
    machine: &mut M,
    rt: &mut impl Rtnetlink,
    conf: &Conf,
    bridge: &Link,
    vlan: u16,
) -> Result<Link, Error> {
    let text = format!("{}.{vlan}", bridge.name);
    let name: IfName = text.parse().map_err(|e| cni::bad(format!("the node's end in VLAN {vlan} is {text:?}: {e}")))?;
    if let Some(l) = rt.link(&name)? {
        return Ok(l);
    }
    let key = ipam::Key { container: bridge.name.to_string().into(), ifname: name.clone() };
    let port = iface::host_end(&key, 0)?;
    let kind = NewLinkKind::Veth { peer: name.clone(), peer_netns: None, peer_mac: None };
    let new =
        NewLink { mtu: Some(bridge.mtu), master: Some(bridge.index), up: true, ..NewLink::new(port.clone(), kind) };
    match rt.run(&[RtRequest::LinkAdd(new)]) {
        // Another ADD was quicker; what follows can be done twice.
        Err(e) if !e.exists() => return Err(e.into()),
        _ => {}
    }
    let mut out = vlans(rt, conf, &port)?;
    out.push(RtRequest::LinkSet(SetLink { mtu: Some(bridge.mtu), ..SetLink::up(name.clone()) }));
    rt.run(&out)?;
    no_advertisements(machine, &port);
    rt.link(&name)?.ok_or_else(|| gone(&name))
}
