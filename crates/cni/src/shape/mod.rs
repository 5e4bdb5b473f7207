//! How much a container may send and receive (`bandwidth`): token buckets on the host end of its veth, or, where only
//! some of its traffic is limited, classes of which one is.
//!
//! What it receives queues on the host end. What it sends comes in there, where nothing can queue; so it is redirected
//! to an `ifb` of its own and queues on that. [`plan`] is pure: from what is there to what is to be, for a new
//! attachment, for one whose limits change while it lives, and for none.

mod config;
mod run;

use std::time::Duration;

use ipam::{Limits, Rate, Scope};
use kernel_api::rt::{NewLink, NewLinkKind, RtRequest, SetLink};
use kernel_api::tc::{Filter, FilterKind, Hook, Htb, Qdisc, QdiscKind, QdiscSlot, Tbf};
use types::{IfName, OwnedName};

pub use config::{limits, read};
pub(crate) use run::apply_new;
pub use run::{apply, differences, host_end, observe, remove, remove_ifb};

/// How long a packet may wait before it is dropped.
const LATENCY: Duration = Duration::from_millis(25);
/// Where the filter that redirects stands: after those that say what may be sent at all.
const PRIORITY: u16 = 0x8000;

/// Where an attachment's limits are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host end.
    pub link: IfName,
    /// The `ifb` for what the container sends.
    pub ifb: OwnedName,
    /// Whose the `ifb` is, for people and for a sweep (`ip link` shows it as `alias`).
    pub alias: String,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Have {
    /// The host end's MTU and queue length; nothing when it is gone.
    pub link: Option<(u32, u32)>,
    /// What limits at the host end's root.
    pub ingress: Option<QdiscKind>,
    /// Whether filters can be put on the host end.
    pub clsact: bool,
    /// Where the host end's packets are redirected to, by index.
    pub redirect: Option<u32>,
    /// The `ifb`.
    pub ifb: Option<Ifb>,
}

/// An `ifb` as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ifb {
    /// Its index.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Whose it is.
    pub alias: Option<String>,
    /// What limits at its root.
    pub egress: Option<QdiscKind>,
}

/// The bucket of a rate.
///
/// A burst that the runtime made up (containerd says 2^32-1 bit, others 2^31-1, for "as you like") or did not say is
/// chosen: 50 ms of the rate, so that even a short test sees the limit, but no less than a few full packets.
#[must_use]
pub fn bucket(rate: Rate, mtu: u32) -> Tbf {
    let bytes = (rate.rate / 8).max(1);
    let least = u64::from(mtu.max(1500)) * 8;
    let said = rate.burst.filter(|b| *b != u64::from(u32::MAX) && *b != u64::from(u32::MAX >> 1));
    let burst = said.map_or_else(|| (bytes / 20).max(least), |b| (b / 8).max(1));
    Tbf::new(bytes, u32::try_from(burst).unwrap_or(u32::MAX), LATENCY)
}

/// What limits this traffic to a rate.
fn queue(rate: Rate, mtu: u32, scope: &Scope) -> QdiscKind {
    let t = bucket(rate, mtu);
    let some = |listed, destinations: &[types::Cidr]| {
        let destinations = destinations.to_vec();
        QdiscKind::Htb(Htb { rate: t.rate, burst: t.burst, listed, destinations })
    };
    match scope {
        Scope::All => QdiscKind::Tbf(t),
        Scope::Only(list) => some(true, list),
        Scope::AllBut(list) => some(false, list),
    }
}

/// From what limits at a link's root to what is to.
fn root(link: &IfName, want: Option<&QdiscKind>, have: Option<&QdiscKind>) -> Vec<RtRequest> {
    let del = || RtRequest::QdiscDel(link.clone(), QdiscSlot::Root);
    let put = |kind: &QdiscKind| RtRequest::QdiscReplace(Qdisc { link: link.clone(), kind: kind.clone() });
    match (want, have) {
        (None, None) => Vec::new(),
        (None, Some(_)) => vec![del()],
        (Some(w), Some(h)) if same(w, h) => Vec::new(),
        (Some(w @ QdiscKind::Tbf(_)), Some(QdiscKind::Tbf(_))) | (Some(w), None) => vec![put(w)],
        // Classes are made, not changed.
        (Some(w), Some(_)) => vec![del(), put(w)],
    }
}

/// What to do first; run it, look again and ask again until it is nothing. (An `ifb` has an index only once it is
/// there.) Nothing is done when the host end is gone: the rest goes by [`remove`].
#[must_use]
pub fn plan(place: &Place, want: &Limits, have: &Have) -> Vec<RtRequest> {
    let Some((mtu, txqlen)) = have.link else { return Vec::new() };
    let mut out = Vec::new();
    let link = || place.link.clone();
    let ifb = || place.ifb.name().clone();
    let said = |r: Option<Rate>| r.map(|r| queue(r, mtu, &want.scope));
    out.extend(root(&place.link, said(want.ingress).as_ref(), have.ingress.as_ref()));
    match (said(want.egress), &have.ifb) {
        (Some(t), None) => {
            let new = NewLink { mtu: Some(mtu), txqlen: Some(txqlen), ..NewLink::new(ifb(), NewLinkKind::Ifb) };
            out.push(RtRequest::LinkAdd(new));
            // While it is down: a queue on a link that is up makes the kernel wait until no processor uses the old one.
            out.extend(root(place.ifb.name(), Some(&t), None));
            out.push(RtRequest::LinkSet(SetLink { alias: Some(place.alias.clone()), ..SetLink::up(ifb()) }));
        }
        // The queue before what fills it.
        (Some(t), Some(i)) => {
            out.extend(root(place.ifb.name(), Some(&t), i.egress.as_ref()));
            if !i.up || i.mtu != mtu || i.alias.as_ref() != Some(&place.alias) {
                let set = SetLink { alias: Some(place.alias.clone()), mtu: Some(mtu), ..SetLink::up(ifb()) };
                out.push(RtRequest::LinkSet(set));
            }
            if !have.clsact {
                out.push(RtRequest::QdiscReplace(Qdisc { link: link(), kind: QdiscKind::Clsact }));
            }
            if have.redirect != Some(i.index) {
                let kind = FilterKind::Redirect { to: i.index };
                let filter = Filter { link: link(), hook: Hook::Ingress, priority: PRIORITY, kind };
                out.push(RtRequest::FilterReplace(filter));
            }
        }
        // No longer filled, then away.
        (None, i) => {
            if have.redirect.is_some() {
                out.push(RtRequest::FilterDel(link(), Hook::Ingress, PRIORITY));
            }
            if i.is_some() {
                out.push(RtRequest::LinkDel(place.ifb.clone()));
            }
        }
    }
    out
}

/// Whether two are the same to the kernel, which keeps a burst as a time and gives it back rounded.
fn same(a: &QdiscKind, b: &QdiscKind) -> bool {
    let near = |x: u32, y: u32| x.abs_diff(y) <= 1 + x / 1000;
    match (a, b) {
        (QdiscKind::Tbf(a), QdiscKind::Tbf(b)) => a.rate == b.rate && near(a.burst, b.burst) && near(a.limit, b.limit),
        (QdiscKind::Htb(a), QdiscKind::Htb(b)) => {
            let of = |h: &Htb| (h.rate, h.listed, h.destinations.clone());
            of(a) == of(b) && near(a.burst, b.burst)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(rate: u64, burst: Option<u64>) -> Rate {
        Rate { rate, burst }
    }

    #[test]
    fn a_burst_is_what_was_said_or_fits_the_rate() {
        for (r, mtu, burst) in [
            (rate(1_000_000, None), 1500, 12_000),
            (rate(1_000_000, None), 9000, 72_000),
            (rate(100_000_000, None), 1500, 625_000),
            (rate(100_000_000, Some(u64::from(u32::MAX))), 1500, 625_000),
            (rate(100_000_000, Some(2_147_483_647)), 1500, 625_000),
            (rate(100_000_000, Some(80_000)), 1500, 10_000),
        ] {
            let t = bucket(r, mtu);
            assert_eq!((t.rate, t.burst), (r.rate / 8, burst), "{r}");
            assert_eq!(u64::from(t.limit), t.rate / 40 + u64::from(burst));
        }
    }
}
