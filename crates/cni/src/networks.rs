//! Interfaces that other plugins make for us: every wiring mode but `routed`, and a pod's further networks.
//!
//! What is to be run is written into the attachment's record before it runs. So whatever a crash leaves behind, DEL, GC
//! and the agent know what to undo, without the pod's object, its definitions or the agent's files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use intent::{Mode, Network, PodSpec, Wiring};
use ipam::{Delegate, Key, Record};
use kernel_api::machine::Machine;
use kernel_api::rt::{ObservedRoute, Route, RouteTo, RtRequest};
use kernel_api::{Rtnetlink, Sysctl, machine::Netns};
use serde_json::{Map, Value, json};
use types::{Cidr, Family, IfName, Mac};

use crate::args::{Call, Command, Env};
use crate::config::NetConf;
use crate::ipam_plugin::Gateway;
use crate::result::CniResult;
use crate::skel::{Context, Registry};
use crate::{Code, Error, IPAM_TYPE, gc, led};

/// What is to be run for an attachment, in order; empty for mode `routed` and one network.
pub(crate) fn delegates(
    conf: &NetConf,
    spec: &PodSpec,
    wiring: &Wiring,
    ifname: &IfName,
) -> Result<Vec<Delegate>, Error> {
    let mut out = Vec::new();
    if let Some(n) = &spec.default_network {
        listed(n, ifname, &mut out);
    } else if wiring.mode != Mode::Routed {
        out.push(Delegate {
            network: conf.name.clone(),
            kind: wiring.mode.as_str().into(),
            ifname: ifname.clone(),
            conf: wired(conf, wiring, spec.mac.or(conf.mac)),
            last: true,
            result: None,
        });
    }
    for n in &spec.networks {
        if n.ifname == *ifname || out.iter().any(|d: &Delegate| d.ifname == n.ifname) {
            let says = format!("network {}: interface {} is taken by another network of the pod", n.name, n.ifname);
            return Err(Error::new(Code::InvalidConfig, says));
        }
        listed(n, &n.ifname, &mut out);
    }
    Ok(out)
}

/// Adds the plugins of a network's list, for an interface.
fn listed(n: &Network, ifname: &IfName, out: &mut Vec<Delegate>) {
    let count = n.plugins.len();
    out.extend(n.plugins.iter().enumerate().map(|(i, plugin)| Delegate {
        network: n.name.clone(),
        kind: plugin.get("type").and_then(Value::as_str).unwrap_or_default().into(),
        ifname: ifname.clone(),
        conf: further(n, plugin),
        last: i + 1 == count,
        result: None,
    }));
}

/// The configuration of the plugin that wires the first interface: our defaults, then the options, then what must be.
fn wired(conf: &NetConf, wiring: &Wiring, mac: Option<Mac>) -> Map<String, Value> {
    let defaults = match wiring.mode {
        Mode::Bridge => {
            // Its default routes would be beside those that are given.
            let gateway = if conf.routes.is_empty() { "isDefaultGateway" } else { "isGateway" };
            json!({"bridge": led::BRIDGE, gateway: true, "hairpinMode": true, "mtu": conf.mtu})
        }
        Mode::Ptp => json!({"mtu": conf.mtu}),
        // On the underlay: its MTU is the right one.
        Mode::Macvlan => json!({"mode": "bridge"}),
        Mode::Ipvlan => json!({"mode": "l2"}),
        Mode::Routed => json!({}),
    };
    let mut out = match defaults {
        Value::Object(m) => m,
        _ => Map::new(),
    };
    out.extend(wiring.options.clone());
    out.insert("name".into(), conf.name.as_ref().into());
    out.insert("type".into(), wiring.mode.as_str().into());
    // All that is needed, and what plugins of anybody's making speak.
    out.insert("cniVersion".into(), crate::Version::V1_0_0.as_str().into());
    out.entry("ipam").or_insert_with(|| match &conf.pools {
        None => json!({"type": IPAM_TYPE, "ranges": conf.ranges, "dataDir": conf.data_dir}),
        Some(file) => {
            let gateway = if wiring.on_wire() {
                Gateway::Wire
            } else if wiring.mode == Mode::Ipvlan {
                Gateway::None
            } else {
                Gateway::Node
            };
            json!({"type": IPAM_TYPE, "pools": file, "gateway": gateway.as_str(), "dataDir": conf.data_dir})
        }
    });
    if let Some(mac) = mac {
        out.insert("runtimeConfig".into(), json!({"mac": mac.to_string()}));
    }
    out
}

/// The configuration of one plugin of a further network, as a runtime makes it.
fn further(n: &Network, plugin: &BTreeMap<String, Value>) -> Map<String, Value> {
    let mut out: Map<String, Value> = plugin.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    out.insert("name".into(), n.network.as_ref().into());
    out.insert("cniVersion".into(), n.cni_version.as_ref().into());
    let can = |capability: &str| plugin.get("capabilities").and_then(|c| c.get(capability)) == Some(&Value::Bool(true));
    let mut runtime = Map::new();
    if can("ips") && !n.ips.is_empty() {
        runtime.insert("ips".into(), json!(n.ips));
    }
    if let (true, Some(mac)) = (can("mac"), n.mac) {
        runtime.insert("mac".into(), mac.to_string().into());
    }
    out.remove("capabilities");
    if !runtime.is_empty() {
        out.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    // A plugin that does not declare the capabilities may still read the older way.
    let mut args = n.args.clone();
    if !can("ips") && !n.ips.is_empty() {
        args.entry("ips".into()).or_insert_with(|| json!(n.ips));
    }
    if let (false, Some(mac)) = (can("mac"), n.mac) {
        args.entry("mac".into()).or_insert_with(|| mac.to_string().into());
    }
    if !args.is_empty() {
        out.insert("args".into(), json!({"cni": args}));
    }
    out
}

/// Runs the record's delegates in order and writes each network's result into it. The first failure ends it; undoing is
/// the caller's, by [`undo`].
pub(crate) fn attach<M: Machine>(cx: &mut Context<'_, M>, record: &mut Record) -> Result<(), Error> {
    let mut prev: Option<CniResult> = None;
    let first = &record.key.ifname;
    for d in &mut record.delegates {
        let mut conf = d.conf.clone();
        if let Some(p) = &prev {
            conf.insert("prevResult".into(), p.write(version(&conf, cx)));
        }
        let result = delegated(cx, d, conf, Command::Add, first).map_err(|e| named(d, e))?;
        prev = result.or(prev);
        if leads(d, first) {
            beside_other_modes(cx, &d.conf)?;
            led::lead(cx, &d.conf, &record.addresses).map_err(|e| named(d, e))?;
        }
        if d.last {
            d.result = prev.take().map(|r| r.write(crate::Version::NEWEST));
        }
    }
    Ok(())
}

/// Pods on the bridge take the node's whole range for on-link, and pods of another mode have addresses of it too: the node
/// answers for those (`proxy_arp`; it does so only for what is routed elsewhere). IPv6 has no such answer for all.
fn beside_other_modes<M: Machine>(cx: &mut Context<'_, M>, conf: &Map<String, Value>) -> Result<(), Error> {
    let bridge = led::bridge(conf);
    let mut sysctl = cx.machine.sysctl().map_err(|e| Error::new(Code::Kernel, format!("open sysctls: {e}")))?;
    let path = format!("net/ipv4/conf/{bridge}/proxy_arp");
    if sysctl.get(&path)?.as_deref() != Some("1") {
        sysctl.set(&path, "1")?;
    }
    // A kernel without them shows no bridged frames to anybody: Services answer pods of other bridges and nodes alone.
    crate::iface::bridge_netfilter(&mut sysctl).map(drop)
}

/// A wiring mode is our own plugin's work, whatever else is installed under its name; a further network's plugin is
/// whatever the administrator put into `CNI_PATH`.
fn delegated<M: Machine>(
    cx: &mut Context<'_, M>,
    d: &Delegate,
    conf: Map<String, Value>,
    command: Command,
    first: &IfName,
) -> Result<Option<CniResult>, Error> {
    cx.delegate_for(&d.ifname, d.ifname == *first, &d.kind, conf, command)
}

/// Undoes what the record's delegates made, without a runtime's call: for DEL, whose configuration may be another by now,
/// for GC, and for the agent.
pub(crate) fn undo<M: Machine>(machine: &mut M, registry: Registry<M>, record: &Record) -> Result<(), Error> {
    if record.delegates.is_empty() {
        return Ok(());
    }
    on_our_own(machine, registry, record, Command::Del, |cx| detach(cx, record))
}

/// Runs something as in a runtime's call for this attachment, without one.
fn on_our_own<M: Machine, T>(
    machine: &mut M,
    registry: Registry<M>,
    record: &Record,
    command: Command,
    run: impl FnOnce(&mut Context<'_, M>) -> Result<T, Error>,
) -> Result<T, Error> {
    // A namespace at the same path that is another is none of this container's.
    let netns = (!gc::namespace_gone(record)).then(|| record.netns.clone());
    let text = |s: &str| Some(std::ffi::OsString::from(s));
    let env = Env {
        command: text(command.as_str()),
        container_id: text(&record.key.container),
        netns: netns.as_deref().and_then(text),
        ifname: text(record.key.ifname.as_str()),
        args: text(&arguments(record)),
        path: text(&record.path),
    };
    let call = Call::lenient(&env)?;
    let conf = Map::from_iter([("name".to_owned(), Value::from(record.network.as_ref()))]);
    let version = crate::Version::NEWEST;
    run(&mut Context { machine, env: &env, call: &call, conf: &conf, version, prev: None, now: 0, registry })
}

/// Makes what is missing of a living pod's delegated interfaces; says whether something was. While the first is there,
/// that is the node's routes to it; else everything is made anew with the same addresses.
pub(crate) fn mend<M: Machine>(machine: &mut M, registry: Registry<M>, record: &mut Record) -> Result<bool, Error> {
    // One that never was whole is a runtime's to undo.
    if !complete(record) {
        return Ok(false);
    }
    let as_it_was = record.clone();
    let first = &as_it_was.key.ifname;
    if has_interface(machine, record) {
        let Some(d) = as_it_was.delegates.iter().find(|d| leads(d, first)) else { return Ok(false) };
        return on_our_own(machine, registry, record, Command::Add, |cx| {
            let missing = led::check(cx, &d.conf, &as_it_was.addresses).is_err();
            if missing { led::lead(cx, &d.conf, &as_it_was.addresses).map(|()| true) } else { Ok(false) }
        });
    }
    undo(machine, registry, record)?;
    on_our_own(machine, registry, &as_it_was, Command::Add, |cx| attach(cx, record))?;
    Ok(true)
}

/// Whether the pod's namespace has the attachment's first interface. One that cannot be entered has none.
#[must_use]
pub fn has_interface(machine: &mut impl Machine, record: &Record) -> bool {
    let mut look = || machine.open(&record.netns).ok()?.rtnetlink().ok()?.link(&record.key.ifname).ok()?;
    look().is_some()
}

/// Whether it is the plugin of the first interface after which the node leads to the pod's addresses.
fn leads(d: &Delegate, first: &IfName) -> bool {
    d.ifname == *first && &*d.kind == Mode::Bridge.as_str()
}

/// Attachments to whose addresses the node does not lead, though it should: the routes to pods on a bridge are gone.
/// `routes` are those of the main table.
#[must_use]
pub fn not_led<'a>(records: &'a [Record], routes: &[ObservedRoute]) -> BTreeSet<&'a Key> {
    let there: BTreeSet<(Cidr, &RouteTo)> = routes.iter().map(|o| (o.route.dst, &o.route.to)).collect();
    let missing = |r: &&Record| {
        let led = r.delegates.iter().find(|d| leads(d, &r.key.ifname));
        let want = led.map(|d| led::wanted(&d.conf, &r.addresses)).and_then(Result::ok).unwrap_or_default();
        want.iter().any(|w| !there.contains(&(w.dst, &w.to)))
    };
    records.iter().filter(missing).map(|r| &r.key).collect()
}

/// `CNI_ARGS` as a Kubernetes runtime gives it.
fn arguments(record: &Record) -> String {
    let mut out = String::from("IgnoreUnknown=1");
    if let Some(p) = &record.pod {
        let _ = write!(out, ";K8S_POD_NAMESPACE={};K8S_POD_NAME={}", p.namespace, p.name);
        let _ = write!(out, ";K8S_POD_INFRA_CONTAINER_ID={}", record.key.container);
        if let Some(uid) = &p.uid {
            let _ = write!(out, ";K8S_POD_UID={uid}");
        }
    }
    out
}

/// Undoes the record's delegates, last first, all of them whatever fails; gives the first failure.
fn detach<M: Machine>(cx: &mut Context<'_, M>, record: &Record) -> Result<(), Error> {
    let mut failed = None;
    let mut prev: Option<&Value> = None;
    for d in record.delegates.iter().rev() {
        if d.last {
            prev = d.result.as_ref();
        }
        let conf = with_prev(d, prev, cx);
        // A plugin that is not there, and gave no result, has made nothing: that is why the ADD failed.
        if prev.is_none() && !cx.has_plugin(&d.kind) {
            continue;
        }
        let mut done = delegated(cx, d, conf, Command::Del, &record.key.ifname).map(drop);
        if leads(d, &record.key.ifname) {
            done = done.and(led::forget(cx, &d.conf, &record.addresses));
        }
        if let Err(e) = done {
            failed = failed.or(Some(named(d, e)));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Whether every network has its result: no ADD ended in the middle.
pub(crate) fn complete(record: &Record) -> bool {
    record.delegates.iter().all(|d| !d.last || d.result.is_some())
}

/// CHECK of each delegate, in order.
pub(crate) fn check<M: Machine>(cx: &mut Context<'_, M>, record: &Record) -> Result<(), Error> {
    for (i, d) in record.delegates.iter().enumerate() {
        let last = record.delegates.iter().skip(i).find(|d| d.last);
        let conf = with_prev(d, last.and_then(|l| l.result.as_ref()), cx);
        delegated(cx, d, conf, Command::Check, &record.key.ifname).map_err(|e| named(d, e))?;
        if leads(d, &record.key.ifname) {
            led::check(cx, &d.conf, &record.addresses).map_err(|e| named(d, e))?;
        }
    }
    Ok(())
}

fn with_prev<M: Machine>(d: &Delegate, prev: Option<&Value>, cx: &Context<'_, M>) -> Map<String, Value> {
    let mut conf = d.conf.clone();
    let read = prev.and_then(Value::as_object).and_then(|m| CniResult::read(m, "prevResult").ok());
    if let Some(r) = read {
        conf.insert("prevResult".into(), r.write(version(&conf, cx)));
    }
    conf
}

/// The version that a delegate is spoken to in: its own, or ours.
fn version<M: Machine>(conf: &Map<String, Value>, cx: &Context<'_, M>) -> crate::Version {
    conf.get("cniVersion").and_then(Value::as_str).and_then(crate::Version::parse).unwrap_or(cx.version)
}

fn named(d: &Delegate, e: Error) -> Error {
    Error { msg: format!("network {}: interface {}: {}: {}", d.network, d.ifname, d.kind, e.msg), ..e }
}

/// Sends the pod's default routes through the further networks that ask for them.
pub(crate) fn default_routes<N: Netns>(networks: &[Network], first: &IfName, netns: &N) -> Result<(), Error> {
    if networks.iter().all(|n| n.default_route.is_empty()) {
        return Ok(());
    }
    let io = |e: std::io::Error| Error::new(Code::Kernel, format!("open rtnetlink in the pod's namespace: {e}"));
    let mut rt = netns.rtnetlink().map_err(io)?;
    for n in networks {
        for &gateway in &n.default_route {
            let dst = Cidr::any(Family::of(gateway));
            // Ours through the first interface makes way; replace would leave it where the metric differs.
            let old = rt.routes()?.into_iter().map(|r| r.route).filter(|r| r.dst == dst);
            let through = |r: &Route| matches!(&r.to, RouteTo::Via { link, .. } | RouteTo::Link(link) if link == first);
            let mut requests: Vec<RtRequest> = old.filter(through).map(RtRequest::RouteDel).collect();
            let to = RouteTo::Via { gateway, link: n.ifname.clone(), onlink: false };
            requests.push(RtRequest::RouteReplace(Route::new(dst, to)));
            rt.run(&requests).map_err(|e| {
                Error::new(Code::Kernel, format!("network {}: default route through {gateway}: {e}", n.name))
            })?;
        }
    }
    Ok(())
}
