//! The guard of pods that are wired by `bridge` or `ptp`: the same filter as in mode `routed`, on the node's end of the
//! pair, before a process of the pod runs. An interface that is all in the pod (`macvlan`, `ipvlan`) has no place for one
//! that the pod's own packets could not go past (`PACKET_QDISC_BYPASS`).

use intent::Mode;
use ipam::{Delegate, Record};
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use kernel_api::rt::RtRequest;
use kernel_api::tc::{Filter, FilterKind, Guard, Hook, Qdisc, QdiscKind};
use serde_json::Value;
use types::Cidr;

use crate::plan::GUARD_PRIORITY;
use crate::result::CniResult;
use crate::skel::Context;
use crate::{Code, Error, bad, iface, shape};

/// The delegate that wires the first interface in a mode of ours; none in mode `routed`, or where another network has
/// taken that place.
pub(crate) fn wiring(r: &Record) -> Option<usize> {
    // A network of a NetworkAttachmentDefinition is `namespace/name`.
    let ours = |d: &Delegate| d.ifname == r.key.ifname && d.network == r.network && d.kind.parse::<Mode>().is_ok();
    r.delegates.iter().position(ours)
}

/// The guard of a delegate that gave `result`; none when its mode has none.
fn filter<M: Machine>(cx: &mut Context<'_, M>, d: &Delegate, result: &CniResult) -> Result<Option<Filter>, Error> {
    if ![Mode::Bridge, Mode::Ptp].iter().any(|m| m.as_str() == &*d.kind) {
        return Ok(None);
    }
    let (netns, path) = (cx.netns()?, cx.netns_path());
    let mut inside = iface::inside(&netns, path)?;
    let link = shape::host_end(&mut cx.host()?, &mut inside, result, &d.ifname)?;
    let gone = || Error::new(Code::TryAgainLater, format!("there is no {} in the container", d.ifname));
    let mac = inside.link(&d.ifname)?.and_then(|l| l.mac).ok_or_else(gone)?;
    // As the result says: somebody may have changed it inside.
    let told = result.in_container(d.ifname.as_str()).and_then(|(_, i)| i.mac.parse().ok()).unwrap_or(mac);
    let dhcp = d.conf.get("ipam").and_then(|i| i.get("type")).and_then(Value::as_str) == Some("dhcp");
    let own = result.addresses_of(&d.ifname).into_iter().map(|a| Cidr::host(a.addr));
    let guard = Guard::new(told, own, dhcp).map_err(bad)?;
    Ok(Some(Filter { link, hook: Hook::Ingress, priority: GUARD_PRIORITY, kind: FilterKind::Guard(guard) }))
}

/// Puts the guard there, in place of one that says otherwise.
pub(crate) fn put<M: Machine>(cx: &mut Context<'_, M>, d: &Delegate, result: &CniResult) -> Result<(), Error> {
    let Some(filter) = filter(cx, d, result)? else { return Ok(()) };
    let place = Qdisc { link: filter.link.clone(), kind: QdiscKind::Clsact };
    Ok(cx.host()?.run(&[RtRequest::QdiscReplace(place), RtRequest::FilterReplace(filter)])?)
}

/// Whether it is there.
pub(crate) fn check<M: Machine>(cx: &mut Context<'_, M>, d: &Delegate, result: &CniResult) -> Result<(), Error> {
    let Some(filter) = filter(cx, d, result)? else { return Ok(()) };
    let there = match cx.host()?.filters(&filter.link, Hook::Ingress) {
        Err(e) if e.absent() => Vec::new(),
        r => r?,
    };
    if there.contains(&filter) {
        return Ok(());
    }
    let says = format!("`{filter}` is missing: the pod can send from addresses that are not its own");
    Err(Error::new(Code::Differs, says))
}
