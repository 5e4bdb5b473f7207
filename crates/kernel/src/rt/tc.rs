//! Traffic control to bytes and back (include/uapi/linux/{pkt_sched,pkt_cls}.h, tc_act/tc_mirred.h).

use kernel_api::tc::{Filter, FilterKind, Hook, Qdisc, QdiscKind, QdiscSlot, Tbf};
use types::IfName;

use super::names::Names;
use super::{guard, htb};
use crate::netlink::{Attrs, Builder, CREATE, Message, REPLACE, REQUEST, Refusal, cstr, ne16, ne32, ne64};

pub(crate) const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
pub(crate) const RTM_GETQDISC: u16 = 38;
pub(crate) const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
pub(crate) const RTM_GETTFILTER: u16 = 46;

/// Bytes of a `struct tcmsg`.
pub(crate) const HEADER: usize = 20;
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;
pub(super) const TC_H_ROOT: u32 = 0xffff_ffff;
/// `TC_H_CLSACT` and `TC_H_INGRESS` are the same place.
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// The places of a link that queueing disciplines are asked for at.
pub(crate) const PLACES: [u32; 2] = [TC_H_ROOT, TC_H_CLSACT];
const TC_H_MIN_INGRESS: u32 = 0xfff2;
const TC_H_MIN_EGRESS: u32 = 0xfff3;
/// Handle of a root discipline of ours: 1:0.
pub(super) const OUR_ROOT: u32 = 0x0001_0000;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: without it the kernel wants a table of rates to guess from.
pub(super) const LINKLAYER_ETHERNET: u8 = 1;
/// Nanoseconds of one tick of `struct tc_tbf_qopt` (`PSCHED_SHIFT`).
const TICK_NS: u64 = 64;

pub(super) const TCA_BPF_OPS_LEN: u16 = 4;
pub(super) const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is what happens.
const ACT_DIRECT: u32 = 1;
/// Our one filter of a priority.
pub(super) const BPF_HANDLE: u32 = 1;

const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
/// `TC_U32_TERMINAL`
const TERMINAL: u8 = 1;
/// 800::800, the first that tc makes.
const U32_HANDLE: u32 = 0x8000_0800;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`
const EGRESS_REDIR: u32 = 1;
/// `ETH_P_ALL`
pub(super) const ETH_P_ALL: u16 = 3;

/// A `struct tcmsg`.
pub(crate) fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut h = [0u8; HEADER];
    for (at, v) in [(4, index), (8, handle), (12, parent), (16, info)] {
        h[at..at + 4].copy_from_slice(&v.to_ne_bytes());
    }
    h
}

/// The parent that a hook's filters have.
pub(crate) fn hook_parent(h: Hook) -> u32 {
    let minor = match h {
        Hook::Ingress => TC_H_MIN_INGRESS,
        Hook::Egress => TC_H_MIN_EGRESS,
    };
    TC_H_CLSACT & 0xffff_0000 | minor
}

fn never_made(kind: &str) -> Refusal {
    Refusal { errno: libc::EOPNOTSUPP, message: Some(format!("{kind} is only observed, never made")) }
}

/// Appends the messages of it; returns how many.
pub(crate) fn qdisc_replace(b: &mut Builder, q: &Qdisc, index: u32) -> Result<usize, Refusal> {
    let mut begin = |handle, parent, kind: &str| {
        b.begin(RTM_NEWQDISC, REQUEST | CREATE | REPLACE, 0);
        b.bytes(&header(index, handle, parent, 0));
        b.attr_str(TCA_KIND, kind);
    };
    match &q.kind {
        QdiscKind::Clsact => begin(TC_H_CLSACT & 0xffff_0000, TC_H_CLSACT, "clsact"),
        QdiscKind::Tbf(t) => {
            begin(OUR_ROOT, TC_H_ROOT, "tbf");
            tbf(b, t);
        }
        QdiscKind::Htb(h) => return htb::add(b, h, index),
        QdiscKind::Ingress => return Err(never_made("qdisc ingress")),
        QdiscKind::Other(k) => return Err(never_made(&format!("qdisc {k}"))),
    }
    b.end();
    Ok(1)
}

/// The time of a bucket at a rate.
pub(super) fn ticks(rate: u64, burst: u32) -> u32 {
    let ticks = u128::from(burst) * 1_000_000_000 / u128::from(rate.max(1)) / u128::from(TICK_NS);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// The kernel keeps a bucket as time: rounded to the nearest byte it is what was asked for, up to a tick.
pub(super) fn burst_of(rate: u64, ticks: u32) -> u32 {
    let ns = u128::from(ticks) * u128::from(TICK_NS);
    u32::try_from((ns * u128::from(rate) + 500_000_000) / 1_000_000_000).unwrap_or(u32::MAX)
}

/// `struct tc_tbf_qopt`: rate and peak rate (12 bytes each: cell log, link layer, overhead, cell align, mpu, rate),
/// limit, bucket in ticks, mtu.
fn tbf(b: &mut Builder, t: &Tbf) {
    let mut p = [0u8; 36];
    p[1] = LINKLAYER_ETHERNET;
    let rate = u32::try_from(t.rate).unwrap_or(u32::MAX);
    p[8..12].copy_from_slice(&rate.to_ne_bytes());
    p[24..28].copy_from_slice(&t.limit.to_ne_bytes());
    p[28..32].copy_from_slice(&ticks(t.rate, t.burst).to_ne_bytes());
    let o = b.open(TCA_OPTIONS);
    b.attr(TCA_TBF_PARMS, &p);
    b.attr_u32(TCA_TBF_BURST, t.burst);
    if t.rate >= u64::from(u32::MAX) {
        b.attr(TCA_TBF_RATE64, &t.rate.to_ne_bytes());
    }
    b.close(o);
}

pub(crate) fn qdisc_del(b: &mut Builder, slot: QdiscSlot, index: u32) {
    let parent = match slot {
        QdiscSlot::Root => TC_H_ROOT,
        QdiscSlot::Clsact => TC_H_CLSACT,
    };
    b.begin(RTM_DELQDISC, REQUEST, 0);
    b.bytes(&header(index, 0, parent, 0));
}

/// Priority and protocol of a filter, as `tcm_info` has them.
pub(super) fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

pub(crate) fn filter_replace(b: &mut Builder, f: &Filter, index: u32) -> Result<(), Refusal> {
    let mut begin = |handle, kind: &str| {
        b.begin(RTM_NEWTFILTER, REQUEST | CREATE | REPLACE, 0);
        b.bytes(&header(index, handle, hook_parent(f.hook), info(f.priority, ETH_P_ALL)));
        b.attr_str(TCA_KIND, kind);
        b.open(TCA_OPTIONS)
    };
    match &f.kind {
        FilterKind::Guard(g) => {
            let o = begin(BPF_HANDLE, "bpf");
            let program = guard::program(g);
            let len = u16::try_from(program.len()).unwrap_or(u16::MAX);
            b.attr(TCA_BPF_OPS_LEN, &len.to_ne_bytes());
            b.attr(TCA_BPF_OPS, &guard::bytes(&program));
            b.attr_u32(TCA_BPF_FLAGS, ACT_DIRECT);
            b.close(o);
        }
        FilterKind::Redirect { to } => {
            let o = begin(U32_HANDLE, "u32");
            // struct tc_u32_sel with one struct tc_u32_key whose mask is empty.
            let mut sel = [0u8; 32];
            sel[0] = TERMINAL;
            sel[2] = 1;
            b.attr(TCA_U32_SEL, &sel);
            let acts = b.open(TCA_U32_ACT);
            let first = b.open(1);
            b.attr_str(TCA_ACT_KIND, "mirred");
            let options = b.open(TCA_ACT_OPTIONS);
            // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
            let mut m = [0u8; 28];
            for (at, v) in [(8, TC_ACT_STOLEN), (20, EGRESS_REDIR), (24, *to)] {
                m[at..at + 4].copy_from_slice(&v.to_ne_bytes());
            }
            b.attr(TCA_MIRRED_PARMS, &m);
            for n in [options, first, acts, o] {
                b.close(n);
            }
        }
        FilterKind::Other(k) => return Err(never_made(&format!("filter {k}"))),
    }
    Ok(())
}

pub(crate) fn filter_del(b: &mut Builder, hook: Hook, priority: u16, index: u32) {
    b.begin(RTM_DELTFILTER, REQUEST, 0);
    b.bytes(&header(index, 0, hook_parent(hook), info(priority, ETH_P_ALL)));
}

/// `RTM_NEWQDISC`; nothing for those that the kernel gives every link.
pub(crate) fn qdisc(m: &Message<'_>, names: &Names) -> Option<Qdisc> {
    let link = ne32(m.payload.get(4..)?)?;
    let (handle, parent) = (ne32(m.payload.get(8..)?)?, ne32(m.payload.get(12..)?)?);
    // Defaults have no handle; those of several queues hang below one that has none.
    if handle == 0 || !matches!(parent, TC_H_ROOT | TC_H_CLSACT) {
        return None;
    }
    let link = names.get(link)?;
    let attrs = m.attrs(HEADER);
    let kind = match attrs.get(TCA_KIND).and_then(cstr)? {
        "tbf" => tbf_params(attrs.nested(TCA_OPTIONS)).map_or(QdiscKind::Other("tbf".into()), QdiscKind::Tbf),
        "clsact" => QdiscKind::Clsact,
        "ingress" => QdiscKind::Ingress,
        k => QdiscKind::Other(k.to_owned()),
    };
    Some(Qdisc { link, kind })
}

fn tbf_params(a: Attrs<'_>) -> Option<Tbf> {
    let p = a.get(TCA_TBF_PARMS)?;
    let rate = ne32(p.get(8..)?)?;
    let rate = a.get(TCA_TBF_RATE64).and_then(ne64).unwrap_or(u64::from(rate));
    let (limit, ticks) = (ne32(p.get(24..)?)?, ne32(p.get(28..)?)?);
    Some(Tbf { rate, burst: burst_of(rate, ticks), limit })
}

/// `RTM_NEWTFILTER` of a known link and hook.
pub(crate) fn filter(m: &Message<'_>, link: &IfName, hook: Hook) -> Option<Filter> {
    let (handle, parent, info) = (ne32(m.payload.get(8..)?)?, ne32(m.payload.get(12..)?)?, ne32(m.payload.get(16..)?)?);
    // Handle 0 is a whole priority, not one of its filters.
    if handle == 0 || parent != hook_parent(hook) {
        return None;
    }
    let attrs = m.attrs(HEADER);
    let options = attrs.nested(TCA_OPTIONS);
    let name = attrs.get(TCA_KIND).and_then(cstr)?;
    let kind = match name {
        "bpf" => program(options).map(FilterKind::Guard),
        // The hash table that filters are in.
        "u32" if options.get(TCA_U32_SEL).is_none() => return None,
        "u32" => redirect(options),
        _ => None,
    };
    let kind = kind.unwrap_or_else(|| FilterKind::Other(name.to_owned()));
    Some(Filter { link: link.clone(), hook, priority: (info >> 16) as u16, kind })
}

fn program(o: Attrs<'_>) -> Option<kernel_api::tc::Guard> {
    if o.get(TCA_BPF_FLAGS).and_then(ne32)? & ACT_DIRECT == 0 {
        return None;
    }
    let len = o.get(TCA_BPF_OPS_LEN).and_then(ne16)?;
    guard::parse(o.get(TCA_BPF_OPS)?).filter(|(_, n)| *n == usize::from(len)).map(|(g, _)| g)
}

fn redirect(o: Attrs<'_>) -> Option<FilterKind> {
    let sel = o.get(TCA_U32_SEL)?;
    // One key that looks at nothing.
    let all = sel.first()? & TERMINAL != 0 && sel.get(2) == Some(&1) && sel.get(16..20)? == [0; 4];
    let act = o.nested(TCA_U32_ACT).nested(1);
    if !all || act.get(TCA_ACT_KIND).and_then(cstr)? != "mirred" {
        return None;
    }
    let m = act.nested(TCA_ACT_OPTIONS).get(TCA_MIRRED_PARMS)?;
    let to = ne32(m.get(24..)?)?;
    (ne32(m.get(20..)?)? == EGRESS_REDIR).then_some(FilterKind::Redirect { to })
}
