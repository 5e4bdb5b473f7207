//! The limits' effects.

use ipam::Limits;
use kernel_api::rt::{LinkKind, RtRequest};
use kernel_api::tc::{FilterKind, Hook, QdiscKind};
use kernel_api::{RequestError, Rtnetlink};
use types::{IfName, OwnedName};

use super::{Have, Ifb, PRIORITY, Place, plan, queue};
use crate::{CniResult, Code, Error, bad};

/// How many packets queue on a veth (`DEFAULT_TX_QUEUE_LEN`, include/linux/netdevice.h).
const VETH_QUEUE: u32 = 1000;

/// Looks at what is there.
///
/// # Errors
/// When a dump fails.
pub fn observe(rt: &mut impl Rtnetlink, place: &Place) -> Result<Have, RequestError> {
    let Some(link) = rt.link(&place.link)? else { return Ok(Have::default()) };
    let mut have = Have { link: Some((link.mtu, link.txqlen)), ..Have::default() };
    for q in rt.qdiscs_of(&link)? {
        match q.kind {
            k @ (QdiscKind::Tbf(_) | QdiscKind::Htb(_)) => have.ingress = Some(k),
            QdiscKind::Clsact | QdiscKind::Ingress => have.clsact = true,
            QdiscKind::Other(_) => {}
        }
    }
    if have.clsact {
        let filters = rt.filters(&place.link, Hook::Ingress)?;
        have.redirect = filters.iter().filter(|f| f.priority == PRIORITY).find_map(|f| match f.kind {
            FilterKind::Redirect { to } => Some(to),
            _ => None,
        });
    }
    if let Some(l) = rt.link(place.ifb.name())? {
        let egress = rt.qdiscs_of(&l)?.into_iter().find_map(|q| match q.kind {
            k @ (QdiscKind::Tbf(_) | QdiscKind::Htb(_)) => Some(k),
            _ => None,
        });
        have.ifb = Some(Ifb { index: l.index, up: l.up, mtu: l.mtu, alias: l.alias, egress });
    }
    Ok(have)
}

/// Limits a host end that was just made: it has its guard's `clsact` and is not up. Nothing is looked at that is known.
///
/// # Errors
/// As [`apply`].
pub(crate) fn apply_new(rt: &mut impl Rtnetlink, place: &Place, mtu: u32, want: &Limits) -> Result<(), Error> {
    let mut have = Have { link: Some((mtu, VETH_QUEUE)), clsact: true, ..Have::default() };
    match rt.run(&plan(place, want, &have)) {
        // Left by another of the name.
        Err(e) if e.exists() => return apply(rt, place, want),
        Err(e) => {
            let _ = remove_ifb(rt, &place.ifb);
            return Err(e.into());
        }
        Ok(()) => {}
    }
    let Some(rate) = want.egress else { return Ok(()) };
    let ifb = rt.link(place.ifb.name())?;
    have.ingress = want.ingress.map(|r| queue(r, mtu, &want.scope));
    have.ifb =
        ifb.map(|l| Ifb { index: l.index, up: l.up, mtu, alias: l.alias, egress: Some(queue(rate, mtu, &want.scope)) });
    let redirect = plan(place, want, &have);
    rt.run(&redirect).map_err(|e| {
        let _ = remove_ifb(rt, &place.ifb);
        e.into()
    })
}

/// Gives an attachment these limits instead of those it has; nothing of new ones is left when that fails, but what it
/// had before may be gone too.
///
/// # Errors
/// When the host end is gone, or the kernel refuses.
pub fn apply(rt: &mut impl Rtnetlink, place: &Place, want: &Limits) -> Result<(), Error> {
    // Twice at most, and once more for another that makes the same at the same time.
    for _ in 0..4 {
        let have = observe(rt, place)?;
        if have.link.is_none() {
            let says = format!("interface {} is gone: it is the host end that limits are put on", place.link);
            return Err(Error::new(Code::Kernel, says));
        }
        let ops = plan(place, want, &have);
        if ops.is_empty() {
            return Ok(());
        }
        match rt.run(&ops) {
            Err(e) if e.exists() || e.absent() => {}
            Err(e) => {
                let _ = remove(rt, place);
                return Err(e.into());
            }
            Ok(()) => {}
        }
    }
    let _ = remove(rt, place);
    let says = format!("the limits of interface {} are changed by others all the time; try again", place.link);
    Err(Error::new(Code::TryAgainLater, says))
}

/// Takes all limits away; the host end may be gone.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(rt: &mut impl Rtnetlink, place: &Place) -> Result<(), RequestError> {
    let have = observe(rt, place)?;
    gone(rt.run(&plan(place, &Limits::default(), &have)))?;
    // Without the host end the plan is empty.
    remove_ifb(rt, &place.ifb)
}

/// Takes the `ifb` away, where nothing is known of the host end: it goes by itself.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_ifb(rt: &mut impl Rtnetlink, ifb: &OwnedName) -> Result<(), RequestError> {
    gone(rt.run(&[RtRequest::LinkDel(ifb.clone())]))
}

fn gone(done: Result<(), RequestError>) -> Result<(), RequestError> {
    match done {
        Err(e) if !e.absent() => Err(e),
        _ => Ok(()),
    }
}

/// What is otherwise than these limits, as text.
#[must_use]
pub fn differences(place: &Place, want: &Limits, have: &Have) -> Vec<String> {
    if have.link.is_none() {
        return vec![format!("interface {} is gone", place.link)];
    }
    let mut out: Vec<String> = plan(place, want, have).iter().map(|r| format!("lacks `{r}`")).collect();
    if want.egress.is_some() && have.ifb.is_none() {
        out.push(format!("interface {} is missing", place.ifb));
    }
    out
}

/// The host end of a container's veth, which must be in the result of the plugin that made it.
///
/// # Errors
/// Code 7 when the interface is no end of a veth, or its other end is not told of.
pub fn host_end(
    host: &mut impl Rtnetlink,
    inside: &mut impl Rtnetlink,
    told: &CniResult,
    ifname: &IfName,
) -> Result<IfName, Error> {
    let peer = inside.link(ifname)?.filter(|l| l.kind == LinkKind::Veth).and_then(|l| l.peer_index);
    let Some(peer) = peer else {
        return Err(bad(format!(
            "interface {ifname} of the container is no end of a veth: only those can be limited; leave out the limits, or \
             have a plugin before make one"
        )));
    };
    for i in told.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(name) = i.name.parse::<IfName>() else { continue };
        if host.link(&name)?.is_some_and(|l| l.index == peer && l.kind == LinkKind::Veth) {
            return Ok(name);
        }
    }
    Err(bad(format!("prevResult.interfaces has no host end of {ifname}: the plugin before must tell it")))
}
