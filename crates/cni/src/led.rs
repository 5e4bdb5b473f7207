//! Pods on a bridge whose addresses are of pools: single ones, that lie in no range of the bridge's. The node leads to each
//! by a host route through the bridge, as in mode `routed` through the pod's own link; so blocks, borrowed addresses, and
//! pods of other modes beside them are all alike, in both families.

use std::net::IpAddr;

use kernel_api::machine::Machine;
use kernel_api::rt::{ObservedRoute, ROUTE_PROTOCOL, Route, RouteTo, RtRequest};
use kernel_api::{RequestError, Rtnetlink, Sysctl, machine::Netns};
use serde_json::{Map, Value};
use types::{Cidr, Family, IfName};

use crate::ipam_plugin::Gateway;
use crate::skel::Context;
use crate::{Code, Error, bad, iface, plan};

/// The bridge of a configuration that names none.
pub(crate) const BRIDGE: &str = "cni0";

/// The name of a configuration's bridge.
pub(crate) fn bridge(conf: &Map<String, Value>) -> &str {
    conf.get("bridge").and_then(Value::as_str).unwrap_or(BRIDGE)
}

/// The interface that leads to the pods of a bridge's configuration: the bridge, or the node's end in the pods' VLAN.
/// `None` when their addresses are of no pool.
fn through(conf: &Map<String, Value>) -> Result<Option<IfName>, Error> {
    let said = conf.get("ipam").and_then(|i| i.get("gateway")).and_then(Value::as_str);
    if said != Some(Gateway::Node.as_str()) {
        return Ok(None);
    }
    let bridge = bridge(conf);
    let text = match conf.get("vlan").and_then(Value::as_u64).filter(|v| *v > 0) {
        Some(v) => format!("{bridge}.{v}"),
        None => bridge.to_owned(),
    };
    text.parse().map(Some).map_err(|e| bad(format!("the interface that leads to the pod is {text:?}: {e}")))
}

fn route(addr: IpAddr, link: &IfName) -> Route {
    let metric = if addr.is_ipv4() { 0 } else { plan::METRIC_V6 };
    Route { metric, ..Route::new(Cidr::host(addr), RouteTo::Link(link.clone())) }
}

/// The node's routes to these addresses of a pod on a bridge; none when its addresses are of no pool.
pub(crate) fn wanted(conf: &Map<String, Value>, addresses: &[IpAddr]) -> Result<Vec<Route>, Error> {
    let link = through(conf)?;
    Ok(link.iter().flat_map(|l| addresses.iter().map(|a| route(*a, l))).collect())
}

/// Makes a route that was refused because there is one: nothing when it is this very one, and in place of the agent's
/// blackhole for a borrowed address that nobody had, which keeps its packets from going round in circles. Gives another
/// that is in the way. `there` is what the node has.
pub(crate) fn claim<'a>(
    rt: &mut impl Rtnetlink,
    there: &'a [ObservedRoute],
    want: Route,
) -> Result<Option<&'a ObservedRoute>, RequestError> {
    match there.iter().find(|o| o.route.dst == want.dst && o.route.metric == want.metric) {
        Some(o) if o.route.to == want.to => Ok(None),
        Some(o) if o.protocol == ROUTE_PROTOCOL && o.route.to == RouteTo::Blackhole => {
            rt.run(&[RtRequest::RouteReplace(want)]).map(|()| None)
        }
        Some(o) => Ok(Some(o)),
        None => rt.run(&[RtRequest::RouteAdd(want)]).map(|()| None),
    }
}

/// Leads to a pod's addresses.
pub(crate) fn lead<M: Machine>(
    cx: &mut Context<'_, M>,
    conf: &Map<String, Value>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let Some(link) = through(conf)? else { return Ok(()) };
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
    for &addr in addresses {
        let want = route(addr, &link);
        match host.run(&[RtRequest::RouteAdd(want.clone())]) {
            Err(e) if e.exists() => {}
            r => {
                r?;
                continue;
            }
        }
        let there = host.routes()?;
        if let Some(o) = claim(&mut host, &there, want)? {
            let says = format!("address {addr} is routed elsewhere: `{}`; if that is stale, remove the route", o.route);
            return Err(Error::new(Code::TryAgainLater, says));
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
    let Some(link) = through(conf)? else { return Ok(()) };
    let mut host = cx.host()?;
    for &addr in addresses {
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
    let wanted = wanted(conf, addresses)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let routes = cx.host()?.routes()?;
    match wanted.iter().find(|w| !routes.iter().any(|o| o.route.dst == w.dst && o.route.to == w.to)) {
        Some(w) => Err(Error::new(Code::Differs, format!("the node's route `{w}` is missing"))),
        None => Ok(()),
    }
}
