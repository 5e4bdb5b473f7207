//! The answer to ADD: what the plugins before us made, and ours appended.

use std::net::IpAddr;

use ipam::Record;
use types::Family;

use crate::NetConf;
use crate::plan::{HOST_MAC, destinations, gateway, mac};
use crate::result::{CniResult, Dns, Interface, Ip, IpNet, RouteConf};

/// The result for an attachment alone.
#[must_use]
pub fn result(r: &Record, dns: Option<&Dns>) -> CniResult {
    let mut out = CniResult { dns: dns.cloned().unwrap_or_default(), ..CniResult::default() };
    append(&mut out, r);
    out
}

/// The result after the plugins before us in the chain: theirs, and ours appended. Our `dns`, when there is one, takes the
/// place of theirs.
#[must_use]
pub fn merged(r: &Record, conf: &NetConf) -> CniResult {
    let mut out = conf.prev_result.clone().unwrap_or_default();
    extend_by(&mut out, r);
    if let Some(dns) = &conf.dns {
        out.dns = dns.clone();
    }
    out
}

/// What the record itself tells of its first interface.
pub(crate) fn own(r: &Record) -> CniResult {
    let mut out = CniResult::default();
    extend_by(&mut out, r);
    out
}

fn extend_by(out: &mut CniResult, r: &Record) {
    match r.delegates.iter().find(|d| d.ifname == r.key.ifname && d.last) {
        None => append(out, r),
        Some(d) => {
            let told = d.result.as_ref().and_then(|v| v.as_object()).and_then(|m| CniResult::read(m, "result").ok());
            extend(out, told.unwrap_or_default());
        }
    }
}

/// Appends a plugin's own result.
fn extend(out: &mut CniResult, told: CniResult) {
    let before = out.interfaces.len();
    out.interfaces.extend(told.interfaces);
    out.ips.extend(told.ips.into_iter().map(|i| Ip { interface: i.interface.map(|n| n + before), ..i }));
    out.routes.extend(told.routes);
    if !told.dns.is_empty() {
        out.dns = told.dns;
    }
}

fn append(out: &mut CniResult, r: &Record) {
    let host =
        Interface { name: r.link.as_str().into(), mac: HOST_MAC.to_string(), mtu: r.mtu, ..Interface::default() };
    let pod = Interface {
        name: r.key.ifname.as_str().into(),
        mac: mac(r).to_string(),
        mtu: r.mtu,
        sandbox: r.netns.to_string(),
        ..Interface::default()
    };
    out.interfaces.extend([host, pod]);
    let index = out.interfaces.len() - 1;
    for &addr in &r.addresses {
        let gw: IpAddr = gateway(addr);
        let address = IpNet { addr, len: Family::of(addr).bits() };
        out.ips.push(Ip { interface: Some(index), address, gateway: Some(gw) });
        out.routes.extend(destinations(r, Family::of(addr)).into_iter().map(|dst| RouteConf::new(dst, Some(gw))));
    }
}
