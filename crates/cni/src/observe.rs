//! CHECK: the kernel's objects of an attachment against its record.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipam::Record;
use kernel_api::rt::{Address, Link, LinkKind, Neighbour, Route};
use kernel_api::tc::{Filter, Hook};
use kernel_api::{RequestError, Rtnetlink};
use types::{Family, IfName, Mac};

use crate::plan::{HOST_MAC, gateway, guard, host_neighbour, host_route, mac as mac_of, pod_routes};

/// What one namespace holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Filters on what comes in at the host end that was looked at.
    pub filters: Vec<Filter>,
}

impl View {
    /// Looks.
    ///
    /// # Errors
    /// When a dump fails.
    pub fn of(rt: &mut impl Rtnetlink) -> Result<Self, RequestError> {
        Ok(Self {
            links: rt.links()?,
            addresses: rt.addresses()?,
            routes: rt.routes()?.into_iter().map(|r| r.route).collect(),
            neighbours: rt.neighbours()?,
            filters: Vec::new(),
        })
    }

    /// Looks at the host's side of a record.
    ///
    /// # Errors
    /// When a dump fails.
    pub fn of_host(rt: &mut impl Rtnetlink, r: &Record) -> Result<Self, RequestError> {
        let filters = match rt.filters(r.link.name(), Hook::Ingress) {
            Err(e) if e.absent() => Vec::new(),
            r => r?,
        };
        Ok(Self { filters, ..Self::of(rt)? })
    }

    /// A link by name.
    #[must_use]
    pub fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|l| l.name == *name)
    }

    fn has_route(&self, r: &Route) -> bool {
        self.routes.iter().any(|o| o.dst == r.dst && o.metric == r.metric && o.to == r.to)
    }
}

/// Whether the record's two ends are a pair.
pub(crate) fn paired(r: &Record, host: &View, pod: &View) -> bool {
    match (host.link(r.link.name()), pod.link(&r.key.ifname)) {
        (Some(h), Some(p)) => h.peer_index == Some(p.index) && p.peer_index == Some(h.index),
        _ => false,
    }
}

/// What differs from the record, one line each; empty when all is as ADD made it.
#[must_use]
pub fn differences(r: &Record, host: &View, pod: &View) -> Vec<String> {
    differences_after(r, host, pod, &(r.mtu..=r.mtu))
}

/// The same, when plugins that came after may have changed the MTU of the pod's end.
pub(crate) fn differences_after(r: &Record, host: &View, pod: &View, mtu: &RangeInclusive<u32>) -> Vec<String> {
    let mut out = Vec::new();
    end(&mut out, "host", host, r.link.name(), &(r.mtu..=r.mtu), HOST_MAC);
    end(&mut out, "pod", pod, &r.key.ifname, mtu, mac_of(r));
    if out.is_empty() && !paired(r, host, pod) {
        out.push(format!("pod: {} is not the other end of {}", r.key.ifname, r.link));
    }
    if let Some(guard) = guard(r)
        && !host.filters.contains(&guard)
        && host.link(r.link.name()).is_some()
    {
        out.push(format!("host: `{guard}` is missing: the pod can send from addresses that are not its own"));
    }
    if "lo".parse().ok().and_then(|lo| pod.link(&lo)).is_none_or(|l| !l.up) {
        out.push("pod: lo is down".into());
    }
    for &addr in &r.addresses {
        address(&mut out, r, addr, host, pod);
    }
    out
}

fn end(out: &mut Vec<String>, side: &str, view: &View, name: &IfName, mtu: &RangeInclusive<u32>, mac: Mac) {
    let Some(l) = view.link(name) else {
        out.push(format!("{side}: there is no interface {name}"));
        return;
    };
    if l.kind != LinkKind::Veth {
        out.push(format!("{side}: {name} is no veth"));
    }
    if !l.up {
        out.push(format!("{side}: {name} is down"));
    }
    if !mtu.contains(&l.mtu) {
        out.push(format!("{side}: {name} has MTU {} instead of {}", l.mtu, mtu.end()));
    }
    if l.mac != Some(mac) {
        let has = l.mac.map_or_else(|| "none".into(), |m| m.to_string());
        out.push(format!("{side}: {name} has the hardware address {has} instead of {mac}"));
    }
}

fn address(out: &mut Vec<String>, r: &Record, addr: IpAddr, host: &View, pod: &View) {
    let ifname = &r.key.ifname;
    let len = Family::of(addr).bits();
    if !pod.addresses.iter().any(|a| a.link == *ifname && a.addr == addr && a.prefix_len == len) {
        out.push(format!("pod: address {addr}/{len} is missing on {ifname}"));
    }
    for route in pod_routes(r, addr) {
        if !pod.has_route(&route) {
            out.push(format!("pod: route `{route}` is missing"));
        }
    }
    let gw = Neighbour { link: ifname.clone(), addr: gateway(addr), mac: HOST_MAC };
    if !pod.neighbours.contains(&gw) {
        out.push(format!("pod: neighbour `{gw}` is missing"));
    }
    let route = host_route(r, addr);
    if !host.has_route(&route) {
        out.push(format!("host: route `{route}` is missing"));
    }
    let n = host_neighbour(r, addr);
    if !host.neighbours.contains(&n) {
        out.push(format!("host: neighbour `{n}` is missing"));
    }
}
