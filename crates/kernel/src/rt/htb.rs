//! A [`Htb`] to bytes and back: the discipline, its two classes and a classic BPF program that says which packets are
//! whose (include/uapi/linux/{pkt_sched,pkt_cls}.h). One program looks at a packet once, and is replaced at once.

use kernel_api::tc::{DESTINATIONS, Htb};
use types::Cidr;

use super::guard::{self, Asm, Insn, JEQ, LD_W, RET};
use super::tc::{BPF_HANDLE, LINKLAYER_ETHERNET, OUR_ROOT, TC_H_ROOT, TCA_BPF_OPS, TCA_BPF_OPS_LEN, TCA_KIND};
use super::tc::{ETH_P_ALL, RTM_NEWQDISC, RTM_NEWTFILTER, TCA_OPTIONS, burst_of, header, info, ticks};
use crate::netlink::{Attrs, Builder, CREATE, EXCL, Message, REPLACE, REQUEST, Refusal, cstr, ne16, ne32, ne64};

pub(crate) const RTM_NEWTCLASS: u16 = 40;
pub(crate) const RTM_GETTCLASS: u16 = 42;

const TCA_HTB_PARMS: u16 = 1;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_RATE64: u16 = 6;
const TCA_HTB_CEIL64: u16 = 7;
/// `version` and `rate2quantum` of `struct tc_htb_glob`, as tc(8) sends them.
const GLOBAL: [u32; 2] = [3, 10];
/// What a class may send in its turn. Said, so that the kernel need not guess from the rate and complain.
const QUANTUM: u32 = 65_536;
/// Bytes per second of the class that is not limited, the reference plugin's, and its bucket: a millisecond of it.
const FREE_RATE: u64 = 100_000_000_000;
const FREE_BURST: u32 = 100_000_000;

const TCA_BPF_CLASSID: u16 = 3;
const PRIORITY: u16 = 1;
/// `SKF_AD_OFF + SKF_AD_PROTOCOL`, and `SKF_NET_OFF`: where the network header begins.
const PROTOCOL: u32 = 0xffff_f000;
const NETWORK: u32 = 0xfff0_0000;
/// The class that the filter names; no class.
const MATCH: Insn = (RET, 0, 0, u32::MAX);
const NO_MATCH: Insn = (RET, 0, 0, 0);

fn class_id(minor: u16) -> u32 {
    OUR_ROOT | u32::from(minor)
}

/// The class of what is listed, and of what is not.
fn classes(listed: bool) -> (u16, u16) {
    if listed { (Htb::LIMITED, Htb::FREE) } else { (Htb::FREE, Htb::LIMITED) }
}

/// Appends the messages that make it; returns how many.
pub(crate) fn add(b: &mut Builder, h: &Htb, index: u32) -> Result<usize, Refusal> {
    if h.rate == 0 || h.destinations.is_empty() || h.destinations.len() > DESTINATIONS {
        let says = format!("a rate and 1 to {DESTINATIONS} destinations are needed");
        return Err(Refusal { errno: libc::EINVAL, message: Some(says) });
    }
    let (listed, rest) = classes(h.listed);
    b.begin(RTM_NEWQDISC, REQUEST | CREATE | REPLACE, 0);
    b.bytes(&header(index, OUR_ROOT, TC_H_ROOT, 0));
    b.attr_str(TCA_KIND, "htb");
    let o = b.open(TCA_OPTIONS);
    let [version, quantum] = GLOBAL;
    b.attr(TCA_HTB_INIT, &[version, quantum, u32::from(rest), 0, 0].map(u32::to_ne_bytes).concat());
    b.close(o);
    b.end();
    class(b, Htb::LIMITED, h.rate, h.burst, index);
    class(b, Htb::FREE, FREE_RATE, FREE_BURST, index);
    b.begin(RTM_NEWTFILTER, REQUEST | CREATE | EXCL, 0);
    b.bytes(&header(index, BPF_HANDLE, OUR_ROOT, info(PRIORITY, ETH_P_ALL)));
    b.attr_str(TCA_KIND, "bpf");
    let o = b.open(TCA_OPTIONS);
    let program = program(&h.destinations);
    b.attr_u32(TCA_BPF_CLASSID, class_id(listed));
    b.attr(TCA_BPF_OPS_LEN, &u16::try_from(program.len()).unwrap_or(u16::MAX).to_ne_bytes());
    b.attr(TCA_BPF_OPS, &guard::bytes(&program));
    b.close(o);
    b.end();
    Ok(4)
}

/// `struct tc_htb_opt`: rate and ceiling (as `struct tc_tbf_qopt` has its rates), both buckets in ticks, quantum, level,
/// priority. There is nobody to borrow from, so that the ceiling is the rate.
fn class(b: &mut Builder, minor: u16, rate: u64, burst: u32, index: u32) {
    b.begin(RTM_NEWTCLASS, REQUEST | CREATE | EXCL, 0);
    b.bytes(&header(index, class_id(minor), OUR_ROOT, 0));
    b.attr_str(TCA_KIND, "htb");
    let mut p = [0u8; 44];
    let short = u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes();
    for spec in [0, 12] {
        p[spec + 1] = LINKLAYER_ETHERNET;
        p[spec + 8..spec + 12].copy_from_slice(&short);
    }
    let bucket = ticks(rate, burst);
    for (at, v) in [(24, bucket), (28, bucket), (32, QUANTUM)] {
        p[at..at + 4].copy_from_slice(&v.to_ne_bytes());
    }
    let o = b.open(TCA_OPTIONS);
    b.attr(TCA_HTB_PARMS, &p);
    if rate >= u64::from(u32::MAX) {
        b.attr(TCA_HTB_RATE64, &rate.to_ne_bytes());
        b.attr(TCA_HTB_CEIL64, &rate.to_ne_bytes());
    }
    b.close(o);
    b.end();
}

/// Whether a packet goes to one of these. What is too short for an address matches nothing.
fn program(destinations: &[Cidr]) -> Vec<Insn> {
    let mut a = Asm::default();
    let (v4, v6) = (a.label(), a.label());
    a.op(LD_W, PROTOCOL);
    for (kind, to) in [(0x0800, v4), (0x86dd, v6)] {
        a.when(JEQ, kind);
        a.goto(to);
    }
    a.code.push(NO_MATCH);
    a.place(v4);
    for d in destinations {
        let std::net::IpAddr::V4(net) = d.addr() else { continue };
        let next = a.label();
        a.within(NETWORK + 16, &net.octets(), d.len(), next);
        a.code.push(MATCH);
        a.place(next);
    }
    a.code.push(NO_MATCH);
    a.place(v6);
    for d in destinations {
        let std::net::IpAddr::V6(net) = d.addr() else { continue };
        let next = a.label();
        a.within(NETWORK + 24, &net.octets(), d.len(), next);
        a.code.push(MATCH);
        a.place(next);
    }
    a.code.push(NO_MATCH);
    let count = u32::try_from(destinations.len()).unwrap_or(0);
    let words: Vec<u32> = std::iter::once(count).chain(destinations.iter().flat_map(guard::prefix_words)).collect();
    a.finish(&words, NO_MATCH)
}

/// The destinations that a program looks for; nothing for any other program.
fn parse(bytes: &[u8]) -> Option<Vec<Cidr>> {
    let (mut words, _) = guard::words(bytes)?;
    let count = words.next()?;
    let list = (0..count).map(|_| guard::prefix_of(&mut words)).collect::<Option<Vec<_>>>()?;
    (guard::bytes(&program(&list)) == bytes).then_some(list)
}

/// What is seen of one, message by message.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The class of what no filter names.
    rest: Option<u32>,
    /// Class, rate, bucket.
    classes: Vec<(u32, u64, u32)>,
    /// Class and destinations of each filter.
    filters: Vec<(u32, Option<Vec<Cidr>>)>,
}

impl Seen {
    /// `RTM_NEWQDISC` of a discipline that is one of ours by its handle and default class.
    pub(crate) fn root(m: &Message<'_>) -> Option<(u32, Self)> {
        let link = ne32(m.payload.get(4..)?)?;
        let attrs = m.attrs(super::tc::HEADER);
        let ours = ne32(m.payload.get(8..)?)? == OUR_ROOT && ne32(m.payload.get(12..)?)? == TC_H_ROOT;
        if !ours || attrs.get(TCA_KIND).and_then(cstr)? != "htb" {
            return None;
        }
        let rest = ne32(attrs.nested(TCA_OPTIONS).get(TCA_HTB_INIT)?.get(8..)?)?;
        let known = [Htb::LIMITED, Htb::FREE].map(u32::from).contains(&rest);
        known.then_some((link, Self { rest: Some(rest), ..Self::default() }))
    }

    /// `RTM_NEWTCLASS` and `RTM_NEWTFILTER` of its link.
    pub(crate) fn take(&mut self, m: &Message<'_>) -> Option<()> {
        let (handle, parent) = (ne32(m.payload.get(8..)?)?, ne32(m.payload.get(12..)?)?);
        let attrs = m.attrs(super::tc::HEADER);
        let o: Attrs<'_> = attrs.nested(TCA_OPTIONS);
        match m.kind {
            RTM_NEWTCLASS => {
                let p = o.get(TCA_HTB_PARMS)?;
                let rate = ne32(p.get(8..)?)?;
                let rate = o.get(TCA_HTB_RATE64).and_then(ne64).unwrap_or(u64::from(rate));
                self.classes.push((handle, rate, burst_of(rate, ne32(p.get(24..)?)?)));
            }
            // Handle 0 is a whole priority, not one of its filters.
            RTM_NEWTFILTER if handle != 0 && parent == OUR_ROOT => {
                let class = o.get(TCA_BPF_CLASSID).and_then(ne32).unwrap_or(0);
                let len = o.get(TCA_BPF_OPS_LEN).and_then(ne16).map(usize::from);
                let code = o.get(TCA_BPF_OPS).filter(|c| len == Some(c.len() / 8));
                self.filters.push((class, code.and_then(parse)));
            }
            _ => {}
        }
        Some(())
    }

    /// The whole; see [`Htb`] for one that lacks parts.
    pub(crate) fn htb(self) -> Htb {
        let listed = self.rest == Some(u32::from(Htb::FREE));
        let rate_of = |minor| self.classes.iter().find(|(c, ..)| *c == class_id(minor)).map(|(_, r, b)| (*r, *b));
        let free = rate_of(Htb::FREE).is_some_and(|(r, _)| r == FREE_RATE) && self.classes.len() == 2;
        let (rate, burst) = rate_of(Htb::LIMITED).filter(|_| free).unwrap_or_default();
        let destinations = match self.filters.into_iter().next_back() {
            Some((class, Some(list))) if class == class_id(classes(listed).0) => list,
            _ => Vec::new(),
        };
        Htb { rate, burst, listed, destinations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_tells_its_destinations() {
        let list: Vec<Cidr> =
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "fc00::/7", "fd00:1:2:3::/64", "::1/128", "fd00::/40"]
                .map(|p| p.parse().unwrap())
                .into();
        for n in 0..=list.len() {
            let code = guard::bytes(&program(&list[..n]));
            assert_eq!(parse(&code).as_deref(), Some(&list[..n]));
            let mut other = code.clone();
            other[7] ^= 1;
            assert_eq!(parse(&other), None);
        }
        let many: Vec<Cidr> =
            (0..DESTINATIONS as u128).map(|n| Cidr::host(std::net::Ipv6Addr::from(n).into())).collect();
        assert!(program(&many).len() <= 4096, "the kernel's limit (BPF_MAXINSNS)");
        for bad in [&[][..], &[0; 7], &[0; 8], &[0xff; 64]] {
            assert_eq!(parse(bad), None);
        }
    }
}
