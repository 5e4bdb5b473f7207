//! Interfaces of containers on ordinary veth pairs: what the plugins `bridge` and `ptp` and the wiring modes of the same
//! names share.

use std::net::IpAddr;
use std::time::Duration;

use ipam::Key;
use kernel_api::rt::{Address, Link, LinkKind, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink};
use kernel_api::{RequestError, Rtnetlink, Sysctl};
use types::{Cidr, Family, IfName, Mac};

use crate::result::RouteConf;
use crate::{CniResult, Code, Error, Interface, Machine, Netns, bad};

/// `RT_SCOPE_LINK` (`rtm_scope`, include/uapi/linux/rtnetlink.h).
pub(crate) const LINK: u8 = 253;
/// Names that are tried for a host end.
const NAMES: u64 = 10;

/// A pair to make.
#[derive(Debug, Clone)]
pub struct Pair<'a> {
    /// Whose it is: names the host end.
    pub key: &'a Key,
    /// The end inside the container.
    pub inside: &'a IfName,
    /// Its hardware address; random when absent.
    pub mac: Option<Mac>,
    /// Bytes, of both ends; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// A bridge for the host end, by index.
    pub master: Option<u32>,
}

/// The two ends of a pair.
#[derive(Debug, Clone)]
pub struct Ends {
    /// On the node.
    pub host: Link,
    /// In the container.
    pub inside: Link,
}

/// Rtnetlink inside a container's namespace, which is at `path`.
///
/// # Errors
/// Code 100.
pub fn inside<N: Netns>(netns: &N, path: &str) -> Result<N::Rt, Error> {
    netns.rtnetlink().map_err(|e| Error::new(Code::Kernel, format!("open rtnetlink in {path}: {e}")))
}

/// A host end's name: `veth` and eight digits, the same for each try of the same interface.
///
/// # Errors
/// Never: such names are in order.
pub fn host_end(key: &Key, salt: u64) -> Result<IfName, Error> {
    let text = format!("{key} {salt}");
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("veth{:08x}", hash >> 32).parse().map_err(bad)
}

/// Makes a pair: both ends up, the host's without router advertisements. `inside_rt` is a socket in `netns`.
///
/// # Errors
/// When the container has an interface of that name, or the kernel refuses; then nothing is left.
pub fn make_pair<M: Machine>(
    machine: &mut M,
    host: &mut <M::Netns as Netns>::Rt,
    netns: &M::Netns,
    inside_rt: &mut <M::Netns as Netns>::Rt,
    pair: &Pair<'_>,
) -> Result<Ends, Error> {
    if inside_rt.link(pair.inside)?.is_some() {
        let says = format!("interface {} exists already in the container: DEL comes first", pair.inside);
        return Err(Error::new(Code::InvalidEnvironment, says));
    }
    let name = new_pair(host, netns, pair)?;
    let mut rest = |machine: &mut M| {
        // We say which routes it has.
        ignore(machine.sysctl().map(|mut s| s.set(&format!("net/ipv6/conf/{name}/accept_ra"), "0")));
        let up = SetLink { mtu: pair.mtu, ..SetLink::up(pair.inside.clone()) };
        inside_rt.run(&[RtRequest::LinkSet(up)])?;
        let gone = |n: &IfName| Error::new(Code::TryAgainLater, format!("{n} is gone as soon as it was made"));
        let host = host.link(&name)?.ok_or_else(|| gone(&name))?;
        let inside = inside_rt.link(pair.inside)?.ok_or_else(|| gone(pair.inside))?;
        Ok(Ends { host, inside })
    };
    rest(machine).map_err(|e| crate::ops::undone(e, delete_inside(netns, pair.inside)))
}

fn new_pair<N: Netns>(host: &mut impl Rtnetlink, netns: &N, pair: &Pair<'_>) -> Result<IfName, Error> {
    for salt in 0..NAMES {
        let name = host_end(pair.key, salt)?;
        let kind = NewLinkKind::Veth { peer: pair.inside.clone(), peer_netns: Some(netns.fd()), peer_mac: pair.mac };
        let link = NewLink { mtu: pair.mtu, master: pair.master, up: true, ..NewLink::new(name.clone(), kind) };
        match host.run(&[RtRequest::LinkAdd(link)]) {
            // Another's of the same name, or one whose container lingers.
            Err(e) if e.exists() && host.link(&name)?.is_some() => {}
            Err(e) if e.exists() => return Err(e.into()),
            // The answer may be what got lost; the container had no such interface before.
            Err(e) => return Err(crate::ops::undone(e.into(), delete_inside(netns, pair.inside))),
            Ok(()) => return Ok(name),
        }
    }
    Err(Error::new(Code::TryAgainLater, format!("no name is free for the host end of {}", pair.key)))
}

/// A sysctl that not every kernel has.
fn ignore<T, E>(_: Result<T, E>) {}

/// Deletes a container's interface; no error when it is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_inside(netns: &impl Netns, ifname: &IfName) -> Result<(), Error> {
    match netns.delete_link(ifname) {
        Err(e) if !e.absent() => Err(e.into()),
        _ => Ok(()),
    }
}

/// How a container's interface gets its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct How {
    /// Look for others that have the same IPv6 address.
    pub detect_duplicates: bool,
    /// Everything but the gateway goes by way of the gateway, the own subnet too.
    pub point_to_point: bool,
}

/// Gives an interface inside a container its addresses and routes: those of `result` that lie on `ifname`. A route
/// without a gateway takes the first of its family. Of two routes to one destination the first wins.
///
/// # Errors
/// When the kernel refuses; what was done until then goes with the interface.
pub fn configure<N: Netns>(
    netns: &N,
    rt: &mut N::Rt,
    ifname: &IfName,
    result: &CniResult,
    how: How,
) -> Result<(), Error> {
    let conf = |knob: &str, value: &str| netns.set_sysctl(&format!("net/{knob}"), value);
    if how.detect_duplicates {
        ignore(conf(&format!("ipv6/conf/{ifname}/enhanced_dad"), "1"));
        ignore(conf(&format!("ipv6/conf/{ifname}/accept_dad"), "1"));
    } else {
        ignore(conf(&format!("ipv6/conf/{ifname}/accept_dad"), "0"));
    }
    ignore(conf(&format!("ipv4/conf/{ifname}/arp_notify"), "1"));
    if result.ips.iter().any(|i| i.address.addr.is_ipv6()) {
        // Some runtimes make namespaces with IPv6 switched off.
        for name in ["lo", ifname.as_str()] {
            let path = format!("net/ipv6/conf/{name}/disable_ipv6");
            if netns.get_sysctl(&path)?.is_some_and(|v| v != "0") {
                netns.set_sysctl(&path, "0")?;
            }
        }
    }
    rt.run(&addresses(ifname, result, how)).map_err(|e| of_container(&e))?;
    settle(netns, &result.ips.iter().map(|i| i.address.addr).collect::<Vec<_>>(), ifname)?;
    for r in routes(ifname, result, how)? {
        match rt.run(&[RtRequest::RouteAdd(r)]) {
            Err(e) if !e.exists() => return Err(of_container(&e)),
            _ => {}
        }
    }
    Ok(())
}

fn of_container(e: &RequestError) -> Error {
    Error::new(Code::Kernel, format!("in the container: {e}"))
}

/// The requests for the addresses of an interface, IPv6 first: it takes the kernel a moment to bring them into use.
#[must_use]
pub fn addresses(ifname: &IfName, result: &CniResult, how: How) -> Vec<RtRequest> {
    let one = |i: &crate::Ip| {
        let mut a = Address::new(ifname.clone(), i.address.addr, i.address.len);
        a.broadcast = a.usual_broadcast();
        a.detect_duplicates = how.detect_duplicates;
        a.no_prefix_route = how.point_to_point;
        RtRequest::AddressAdd(a)
    };
    let of = |v6: bool| result.ips.iter().filter(move |i| i.address.addr.is_ipv6() == v6).map(one);
    of(true).chain(of(false)).collect()
}

/// The routes of an interface.
///
/// # Errors
/// Code 7 when a point-to-point address has no gateway.
pub fn routes(ifname: &IfName, result: &CniResult, how: How) -> Result<Vec<Route>, Error> {
    let mut out = Vec::new();
    if how.point_to_point {
        for i in &result.ips {
            let says =
                || bad(format!("the address {} comes without a gateway, which is the other end here", i.address));
            let gw = i.gateway.ok_or_else(says)?;
            let src = Some(i.address.addr);
            out.push(Route { src, ..Route::new(Cidr::host(gw), RouteTo::Link(ifname.clone())) });
            // Nobody else is in a network of one.
            if i.address.network() != Cidr::host(i.address.addr) {
                let via = RouteTo::via(gw, ifname.clone());
                out.push(Route { src, ..Route::new(i.address.network(), via) });
            }
        }
    }
    for r in &result.routes {
        out.push(route(ifname, r, gateway(result, r.dst.family())));
    }
    Ok(out)
}

fn gateway(result: &CniResult, family: Family) -> Option<IpAddr> {
    result.ips.iter().filter_map(|i| i.gateway).find(|g| Family::of(*g) == family)
}

fn route(ifname: &IfName, r: &RouteConf, usual: Option<IpAddr>) -> Route {
    // A route whose scope is the link has no gateway, and the usual one is none either.
    let gw = r.gw.or(usual.filter(|_| r.scope != Some(LINK)));
    let to = gw.map_or_else(|| RouteTo::Link(ifname.clone()), |gw| RouteTo::via(gw, ifname.clone()));
    let mut out = Route::new(r.dst, to);
    out.mtu = r.mtu;
    out.advmss = r.advmss;
    out.table = r.table.unwrap_or(out.table);
    out.metric = r.priority.unwrap_or(out.metric);
    // As the reference makes them: a route out of an interface is global unless the result says otherwise.
    out.scope = match (gw, r.scope) {
        (_, Some(s)) => Some(s),
        (None, None) if r.dst.family() == Family::V4 => Some(0),
        _ => None,
    };
    out
}

/// Waits until the kernel delivers to IPv6 addresses of a container's interface, mostly not at all.
///
/// # Errors
/// Code 11 when it does not within ten seconds: another has the address.
pub fn settle(netns: &impl Netns, addresses: &[IpAddr], ifname: &IfName) -> Result<(), Error> {
    const LONGEST: Duration = Duration::from_millis(2);
    const LIMIT: Duration = Duration::from_secs(10);
    for addr in addresses {
        let IpAddr::V6(addr) = addr else { continue };
        let (mut wait, mut waited) = (Duration::from_micros(30), Duration::ZERO);
        loop {
            let look = netns.delivers(*addr);
            if look.map_err(|e| Error::new(Code::Io, format!("look at the container's IPv6 routes: {e}")))? {
                break;
            }
            if waited > LIMIT {
                let says = format!("the kernel does not bring {addr} on {ifname} into use: another has it");
                return Err(Error::new(Code::TryAgainLater, says));
            }
            std::thread::sleep(wait);
            waited += wait;
            wait = (wait * 2).min(LONGEST);
        }
    }
    Ok(())
}

/// Lets the node forward packets of these families.
///
/// # Errors
/// Code 100.
pub fn forward<M: Machine>(machine: &mut M, families: &[Family]) -> Result<(), Error> {
    let mut sysctl = machine.sysctl().map_err(|e| Error::new(Code::Kernel, format!("open the node's sysctls: {e}")))?;
    for f in families {
        let path = match f {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        // Writing the same again would still make the kernel walk all interfaces.
        if sysctl.get(path)?.as_deref() != Some("1") {
            sysctl.set(path, "1")?;
        }
    }
    Ok(())
}

/// Has frames that cross a bridge pass nf_tables as well, as Services between containers of one bridge need
/// (`bridge-nf-call-*`, br_netfilter). Says which knobs the kernel lacks.
///
/// # Errors
/// Code 100.
pub fn bridge_netfilter(sysctl: &mut impl Sysctl) -> Result<Vec<&'static str>, Error> {
    let mut lacking = Vec::new();
    for path in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        match sysctl.get(path)?.as_deref() {
            Some("1") => {}
            Some(_) => sysctl.set(path, "1")?,
            None => lacking.push(path),
        }
    }
    Ok(lacking)
}

/// An interface for a result; `sandbox` is empty for the node's.
#[must_use]
pub fn told(l: &Link, sandbox: &str) -> Interface {
    Interface {
        name: l.name.to_string(),
        mac: l.mac.map(|m| m.to_string()).unwrap_or_default(),
        mtu: l.mtu,
        sandbox: sandbox.into(),
        ..Interface::default()
    }
}

/// For CHECK: what of `prev` a container's interface has not; the lines say what. The interface must be a veth.
///
/// # Errors
/// When it cannot be looked at.
pub fn differences(
    rt: &mut impl Rtnetlink,
    prev: &CniResult,
    ifname: &IfName,
    sandbox: &str,
) -> Result<(Vec<String>, Option<Link>), Error> {
    let (mut out, link) = compared(rt, prev, ifname, sandbox)?;
    if link.as_ref().is_some_and(|l| l.kind != LinkKind::Veth) {
        out.push(format!("{ifname} in the container is no veth"));
    }
    Ok((out, link))
}

/// As [`differences`], of an interface of any kind.
///
/// # Errors
/// As there.
pub fn compared(
    rt: &mut impl Rtnetlink,
    prev: &CniResult,
    ifname: &IfName,
    sandbox: &str,
) -> Result<(Vec<String>, Option<Link>), Error> {
    let mut out = Vec::new();
    let Some((index, want)) = prev.in_container(ifname.as_str()) else {
        return Err(bad(format!("prevResult.interfaces has no {ifname} in a container")));
    };
    if want.sandbox != sandbox {
        out.push(format!("prevResult has {ifname} in {}, CNI_NETNS is {sandbox}", want.sandbox));
    }
    let Some(link) = rt.link(ifname)? else {
        out.push(format!("there is no {ifname} in the container"));
        return Ok((out, None));
    };
    let mac = link.mac.map(|m| m.to_string()).unwrap_or_default();
    if !want.mac.is_empty() && !want.mac.eq_ignore_ascii_case(&mac) {
        out.push(format!("{ifname} in the container has the hardware address {mac} instead of {}", want.mac));
    }
    let have = rt.addresses()?;
    for i in prev.ips.iter().filter(|i| i.interface.is_none_or(|n| n == index)) {
        let same = |a: &Address| a.link == *ifname && a.addr == i.address.addr && a.prefix_len == i.address.len;
        if !have.iter().any(same) {
            out.push(format!("the address {} is missing on {ifname}", i.address));
        }
    }
    let have = rt.all_routes()?;
    for r in &prev.routes {
        let gw = r.gw.or_else(|| gateway(prev, r.dst.family()));
        let same = |o: &kernel_api::rt::ObservedRoute| {
            o.route.dst == r.dst
                && match &o.route.to {
                    RouteTo::Via { gateway, .. } => Some(*gateway) == gw,
                    RouteTo::Link(_) => true,
                    _ => false,
                }
        };
        if !have.iter().any(same) {
            out.push(format!("the route to {} is missing in the container", r.dst));
        }
    }
    Ok((out, Some(link)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    struct Knobs(BTreeMap<String, String>);

    impl Sysctl for Knobs {
        fn get(&mut self, path: &str) -> Result<Option<String>, RequestError> {
            Ok(self.0.get(path).cloned())
        }
        fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
            self.0.insert(path.into(), value.into());
            Ok(())
        }
    }

    #[test]
    fn frames_on_a_bridge_pass_nf_tables_where_the_kernel_can() {
        let paths = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
        let mut without = Knobs(BTreeMap::new());
        assert_eq!(bridge_netfilter(&mut without).unwrap(), paths);
        let mut with = Knobs(paths.map(|p| (p.to_owned(), "0".to_owned())).into());
        for _ in 0..2 {
            assert!(bridge_netfilter(&mut with).unwrap().is_empty());
            assert!(paths.iter().all(|p| with.get(p).unwrap().as_deref() == Some("1")));
        }
    }

    #[test]
    fn a_host_end_has_one_name_for_each_try() {
        let key = |c: &str| Key { container: c.into(), ifname: "eth0".parse().unwrap() };
        let name = |c: &str, salt| host_end(&key(c), salt).unwrap().to_string();
        assert_eq!(name("a", 0), name("a", 0));
        assert!(name("a", 0) != name("b", 0) && name("a", 0) != name("a", 1));
        assert!(name("a", 0).starts_with("veth") && name("a", 0).len() == 12);
    }
}
