//! Pods on a bridge whose addresses are single ones, that lie in no range of the bridge's: those of pools, and every IPv6
//! address. The node leads to each by a host route through the bridge, as in mode `routed` through the pod's own link; so
//! blocks, borrowed addresses, and pods of other modes beside them are all alike.

use std::net::IpAddr;

use ipam::Delegate;
use kernel_api::machine::Machine;
use kernel_api::rt::{ROUTE_PROTOCOL, Route, RouteTo, RtRequest};
use kernel_api::{Rtnetlink, Sysctl, machine::Netns};
use serde_json::{Map, Value};
use types::{Cidr, Family, IfName};

use crate::ipam_plugin::Gateway;
use crate::result::CniResult;
use crate::skel::Context;
use crate::{Code, Error, bad, iface, plan, shape};

/// The interface that leads to the pods of a bridge's configuration: the bridge, or the node's end in the pods' VLAN.
/// With it those of `addresses` that are single; `None` when there are none.
fn through(conf: &Map<String, Value>, addresses: &[IpAddr]) -> Result<Option<(IfName, Vec<IpAddr>)>, Error> {
    let ipam = |k: &str| conf.get("ipam").and_then(|i| i.get(k)).and_then(Value::as_str);
    let said = ipam("gateway");
    if said != Some(Gateway::Node.as_str()) {
        return Ok(None);
    }
    let bridge = conf.get("bridge").and_then(Value::as_str).unwrap_or("cni0");
    let text = match conf.get("vlan").and_then(Value::as_u64).filter(|v| *v > 0) {
        Some(v) => format!("{bridge}.{v}"),
        None => bridge.to_owned(),
    };
    let link = text.parse().map_err(|e| bad(format!("the interface that leads to the pod is {text:?}: {e}")))?;
    let single = |a: &&IpAddr| a.is_ipv6() || ipam("pools").is_some();
    Ok(Some((link, addresses.iter().filter(single).copied().collect())))
}

fn route(addr: IpAddr, link: &IfName) -> Route {
    let metric = if addr.is_ipv4() { 0 } else { plan::METRIC_V6 };
    Route { metric, ..Route::new(Cidr::host(addr), RouteTo::Link(link.clone())) }
}

/// Leads to a pod's addresses.
pub(crate) fn lead<M: Machine>(
    cx: &mut Context<'_, M>,
    conf: &Map<String, Value>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let Some((link, addresses)) = through(conf, addresses)? else { return Ok(()) };
    // Two pods of a bridge are neighbours, and the node is between them all the same: it shall not tell them of a
    // shorter way. For IPv6 only who hears it can be told so.
    let mut sysctl = cx.machine.sysctl().map_err(|e| Error::new(Code::Kernel, format!("open sysctls: {e}")))?;
    for on in ["all", link.as_str()] {
        let path = format!("net/ipv4/conf/{on}/send_redirects");
        if sysctl.get(&path)?.is_some_and(|v| v != "0") {
            sysctl.set(&path, "0")?;
        }
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        cx.netns()?.set_sysctl(&format!("net/ipv6/conf/{}/accept_redirects", cx.ifname()?), "0")?;
    }
    let families: Vec<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
    iface::forward(cx.machine, &families)?;
    let mut host = cx.host()?;
    for addr in addresses {
        let want = route(addr, &link);
        match host.run(&[RtRequest::RouteAdd(want.clone())]) {
            Err(e) if e.exists() => {}
            r => {
                r?;
                continue;
            }
        }
        let there = host.routes()?.into_iter().find(|o| o.route.dst == want.dst && o.route.metric == want.metric);
        match there {
            Some(o) if o.route.to == want.to => {}
            // Of a borrowed address that nobody had.
            Some(o) if o.protocol == ROUTE_PROTOCOL && o.route.to == RouteTo::Blackhole => {
                host.run(&[RtRequest::RouteReplace(want)])?;
            }
            Some(o) => {
                let says =
                    format!("address {addr} is routed elsewhere: `{}`; if that is stale, remove the route", o.route);
                return Err(Error::new(Code::TryAgainLater, says));
            }
            None => host.run(&[RtRequest::RouteAdd(want)])?,
        }
    }
    Ok(())
}

/// Undoes [`lead`]; what is not there is no error.
pub(crate) fn forget<M: Machine>(
    cx: &mut Context<'_, M>,
    conf: &Map<String, Value>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let Some((link, addresses)) = through(conf, addresses)? else { return Ok(()) };
    let mut host = cx.host()?;
    for addr in addresses {
        match host.run(&[RtRequest::RouteDel(route(addr, &link))]) {
            Err(e) if !e.absent() => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the node leads to a pod's addresses.
pub(crate) fn check<M: Machine>(
    cx: &mut Context<'_, M>,
    conf: &Map<String, Value>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let Some((link, addresses)) = through(conf, addresses)? else { return Ok(()) };
    let routes = cx.host()?.routes()?;
    for addr in addresses {
        let want = route(addr, &link);
        if !routes.iter().any(|o| o.route.dst == want.dst && o.route.to == want.to) {
            return Err(Error::new(Code::Differs, format!("the node's route to {addr} by {link} is missing")));
        }
    }
    Ok(())
}

/// Whether the node still leads to a pod by its pair, in mode `ptp`: the plugin's own CHECK looks inside alone.
pub(crate) fn check_pair<M: Machine>(cx: &mut Context<'_, M>, d: &Delegate, result: &CniResult) -> Result<(), Error> {
    let (netns, path) = (cx.netns()?, cx.netns_path());
    let mut host = cx.host()?;
    let link = shape::host_end(&mut host, &mut iface::inside(&netns, path)?, result, &d.ifname)?;
    let (routes, addresses) = (host.routes()?, host.addresses()?);
    for i in &result.ips {
        let to = RouteTo::Link(link.clone());
        if !routes.iter().any(|o| o.route.dst == Cidr::host(i.address.addr) && o.route.to == to) {
            let says = format!("the node's route to {} by {link} is missing", i.address.addr);
            return Err(Error::new(Code::Differs, says));
        }
        if i.gateway.is_some_and(|g| !addresses.iter().any(|a| a.link == link && a.addr == g)) {
            return Err(Error::new(Code::Differs, format!("the gateway's address is missing on {link}")));
        }
    }
    Ok(())
}
