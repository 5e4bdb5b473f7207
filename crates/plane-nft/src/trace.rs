//! What the rules of an image do to a packet: a small interpreter of the expressions, register by register, so that
//! the answer is that of the programmed state, edited by others or not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use intent::{Choice, Drop, Endpoint, L4, Leg, Masquerade, Origin, Packet, Reject, Snat, Verdict};
use kernel_api::nft::{
    ChainKind, CmpOp, CtKey, Expr, HookPoint, LookupInto, MetaKey, PayloadBase, Reg, Verdict as NftVerdict,
};
use types::{Family, Proto};

use crate::elements::Element;
use crate::image::{Data, Image, Rule, Set};
use crate::key::{KeyBytes, KeyReader, addr_of, padded_len};
use crate::layout::{self, in_family};

/// `NFT_JUMP_STACK_SIZE`.
const MAX_DEPTH: usize = 16;
/// How many random choices are followed at most; a Service has at most half as many endpoints.
const MAX_RUNS: usize = 1 << 20;

/// See [`plan::Dataplane::trace`].
pub(crate) fn trace(image: &Image, packet: &Packet) -> Verdict {
    let mut legs = BTreeSet::new();
    let mut refusal = None;
    let mut choices = Choices::default();
    for _ in 0..MAX_RUNS {
        match run(image, packet, &mut choices) {
            Ok(leg) => {
                legs.insert(leg);
            }
            Err(v) => refusal = Some(v),
        }
        if !choices.next() {
            break;
        }
    }
    match refusal {
        Some(v) if legs.is_empty() => v,
        _ => Verdict::Forward(legs),
    }
}

/// An odometer over the random choices of a run, so that every combination is met once.
#[derive(Default)]
struct Choices {
    made: Vec<(u32, u32)>,
    at: usize,
}

impl Choices {
    fn choose(&mut self, modulus: u32) -> u32 {
        if self.at == self.made.len() {
            self.made.push((0, modulus.max(1)));
        }
        let value = self.made.get(self.at).map_or(0, |(v, _)| *v);
        self.at += 1;
        value
    }

    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((v, n)) = self.made.pop() {
            if v + 1 < n {
                self.made.push((v + 1, n));
                return true;
            }
        }
        false
    }
}

/// The packet on its way.
struct Flow {
    host: bool,
    src: IpAddr,
    dst: IpAddr,
    original: (IpAddr, u16),
    proto: u8,
    ports: Option<(u16, u16)>,
    mark: u32,
    ct_mark: u32,
    translated: Option<Endpoint>,
    choice: Option<Choice>,
    snat: Snat,
    /// The reason that the last rule gave which led to where we are.
    why: Option<Masquerade>,
    /// Its connection is not tracked: no nat chain sees it.
    untracked: bool,
}

/// How a chain ended.
enum End {
    Accept,
    Drop(String),
    Reject(String),
    /// An address translation is set up, which accepts.
    Translated,
}

/// One way of the packet through the hooks, with the choices given.
fn run(image: &Image, packet: &Packet, choices: &mut Choices) -> Result<Leg, Verdict> {
    let (proto, ports) = match packet.l4 {
        L4::Ports { proto, src, dst } => (proto.number(), Some((src, dst))),
        L4::Echo if packet.dst.is_ipv4() => (1, None),
        L4::Echo => (58, None),
    };
    let host = packet.origin == Origin::Host;
    let mut flow = Flow {
        host,
        src: packet.src,
        dst: packet.dst,
        original: (packet.dst, ports.map_or(0, |(_, d)| d)),
        proto,
        ports,
        mark: 0,
        ct_mark: 0,
        translated: None,
        choice: None,
        snat: Snat::Keep,
        why: None,
        untracked: false,
    };
    let own = |a: IpAddr| image.get(&in_family("own_addresses", Family::of(a)), &KeyBytes::new().addr(a)).is_some();
    hook(image, if host { HookPoint::Output } else { HookPoint::Prerouting }, &mut flow, choices)?;
    if !host && own(flow.dst) {
        hook(image, HookPoint::Input, &mut flow, choices)?;
    } else {
        if !host {
            hook(image, HookPoint::Forward, &mut flow, choices)?;
        }
        hook(image, HookPoint::Postrouting, &mut flow, choices)?;
    }
    Ok(Leg { translated: flow.translated, choice: flow.choice, snat: flow.snat, path: None })
}

/// All base chains of one hook, by priority.
fn hook(image: &Image, point: HookPoint, flow: &mut Flow, choices: &mut Choices) -> Result<(), Verdict> {
    let mut bases: Vec<_> = image
        .chains
        .iter()
        .filter_map(|(name, c)| c.hook.filter(|h| h.point == point).map(|h| (h.priority, name, h)))
        .collect();
    bases.sort_by_key(|(p, name, _)| (*p, *name));
    if image.flags != 0 {
        // A dormant table hangs nowhere.
        return Ok(());
    }
    let mut nat_done = false;
    for (_, name, h) in bases {
        if h.kind == ChainKind::Nat && (nat_done || flow.untracked) {
            continue;
        }
        let end =
            chain(image, name, flow, choices, 0).unwrap_or(if h.drop { End::Drop(name.clone()) } else { End::Accept });
        match end {
            End::Accept => {}
            End::Translated => nat_done = true,
            End::Drop(at) => {
                return Err(Verdict::Drop(match at.as_str() {
                    layout::DROP_NO_LOCAL => Drop::NoLocalEndpoints,
                    layout::DROP_SOURCE_RANGE => Drop::SourceRange,
                    layout::DROP_NO_SERVICE => Drop::NoService,
                    _ => Drop::Policy,
                }));
            }
            End::Reject(at) => {
                let unused = at == layout::REJECT_UNUSED_PORT;
                return Err(Verdict::Reject(if unused { Reject::UnusedPort } else { Reject::NoEndpoints }));
            }
        }
    }
    Ok(())
}

/// Runs a chain; `None` when it ended without a verdict.
fn chain(image: &Image, name: &str, flow: &mut Flow, choices: &mut Choices, depth: usize) -> Option<End> {
    if depth >= MAX_DEPTH {
        return Some(End::Drop(name.into()));
    }
    for rule in &image.chains.get(name)?.rules {
        match rule_verdict(image, name, rule, flow, choices) {
            Step::Next => {}
            Step::Translated => return Some(End::Translated),
            Step::Reject => return Some(End::Reject(name.into())),
            Step::Verdict(v) => match v {
                NftVerdict::Accept => return Some(End::Accept),
                NftVerdict::Drop => return Some(End::Drop(name.into())),
                NftVerdict::Continue => {}
                NftVerdict::Return => return None,
                NftVerdict::Jump(to) => {
                    if let Some(end) = chain(image, &to, flow, choices, depth + 1) {
                        return Some(end);
                    }
                }
                NftVerdict::Goto(to) => return chain(image, &to, flow, choices, depth + 1),
            },
        }
    }
    None
}

/// How a rule ended.
enum Step {
    /// It did not match, or had no verdict.
    Next,
    Verdict(NftVerdict),
    Reject,
    Translated,
}

/// 16 registers of 4 bytes.
struct Regs([u8; 64]);

impl Regs {
    fn at(&self, reg: Reg, len: usize) -> &[u8] {
        let start = usize::from(reg.0) * 4;
        self.0.get(start..start + len).unwrap_or_default()
    }

    /// Stores, padded with zeros to whole registers.
    fn set(&mut self, reg: Reg, bytes: &[u8]) {
        let start = usize::from(reg.0) * 4;
        let padded = bytes.len().div_ceil(4) * 4;
        if let Some(to) = self.0.get_mut(start..start + padded) {
            to.fill(0);
            to.iter_mut().zip(bytes).for_each(|(t, b)| *t = *b);
        }
    }
}

fn rule_verdict(image: &Image, chain: &str, rule: &Rule, flow: &mut Flow, choices: &mut Choices) -> Step {
    let mut regs = Regs([0; 64]);
    let mut remembered = false;
    for e in &rule.exprs {
        match e {
            Expr::Meta { key, dreg } => regs.set(*dreg, &meta(flow, *key)),
            Expr::SetMark { sreg } => flow.mark = number(regs.at(*sreg, 4)),
            Expr::Payload { base, offset, len, dreg } => {
                let header = match base {
                    PayloadBase::Network => network_header(flow),
                    PayloadBase::Transport => transport_header(flow),
                };
                let (offset, len) = (*offset as usize, *len as usize);
                let Some(bytes) = header.get(offset..offset.saturating_add(len)) else { return Step::Next };
                regs.set(*dreg, bytes);
            }
            Expr::Cmp { sreg, op, data } => {
                let have = regs.at(*sreg, data.len());
                let holds = match op {
                    CmpOp::Eq => have == data.as_slice(),
                    CmpOp::Neq => have != data.as_slice(),
                    CmpOp::Lt => have < data.as_slice(),
                    CmpOp::Lte => have <= data.as_slice(),
                    CmpOp::Gt => have > data.as_slice(),
                    CmpOp::Gte => have >= data.as_slice(),
                };
                if !holds {
                    return Step::Next;
                }
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let have = regs.at(*sreg, mask.len()).to_vec();
                let out: Vec<u8> = have.iter().zip(mask).zip(xor).map(|((h, m), x)| (h & m) ^ x).collect();
                regs.set(*dreg, &out);
            }
            Expr::Lookup { set, sreg, into, invert } => {
                let Some(set) = image.sets.get(set) else { return Step::Next };
                let found = find(set, regs.at(*sreg, padded_len(&set.shape.key)));
                remembered |= set.shape.dynamic.is_some() && found.is_some();
                match (found, into) {
                    (found, LookupInto::Nothing) => {
                        if found.is_some() == *invert {
                            return Step::Next;
                        }
                    }
                    (Some(e), into) => match (e.to_data(), into) {
                        (Data::Value(v), LookupInto::Reg(r)) => regs.set(*r, &v),
                        (Data::Verdict(NftVerdict::Continue), LookupInto::Verdict) => {}
                        (Data::Verdict(v), LookupInto::Verdict) => return Step::Verdict(v),
                        _ => return Step::Next,
                    },
                    (None, _) => return Step::Next,
                }
            }
            Expr::Immediate { dreg, data } => regs.set(*dreg, data),
            Expr::Verdict(v) => {
                flow.why = reason(rule).or(flow.why);
                return Step::Verdict(v.clone());
            }
            Expr::Numgen { dreg, modulus, offset, .. } => {
                let n = offset.wrapping_add(choices.choose(*modulus));
                regs.set(*dreg, &n.to_ne_bytes());
            }
            Expr::FibDaddrType { dreg } => {
                let key = KeyBytes::new().addr(flow.dst);
                let local = image.get(&in_family("own_addresses", Family::of(flow.dst)), &key).is_some();
                // RTN_LOCAL, RTN_UNICAST
                regs.set(*dreg, &(if local { 2u32 } else { 1 }).to_ne_bytes());
            }
            Expr::Ct { key, dreg } => match ct(flow, *key) {
                Some(bytes) => regs.set(*dreg, &bytes),
                None => return Step::Next,
            },
            Expr::SetCtMark { sreg } => flow.ct_mark = number(regs.at(*sreg, 4)),
            Expr::Nat { dnat, addr, port, v6, .. } => {
                let len = if *v6 { 16 } else { 4 };
                let to = addr.and_then(|r| addr_of(regs.at(r, len)));
                let to_port = port.and_then(|r| KeyReader::new(regs.at(r, 4)).port());
                let choice = match (remembered, chain.ends_with(layout::LOCAL)) {
                    (true, _) => Choice::Remembered,
                    (false, true) => Choice::Local,
                    (false, false) => Choice::Any,
                };
                flow.why = reason(rule).or(flow.why);
                translate(flow, *dnat, to, to_port, choice);
                return Step::Translated;
            }
            Expr::Masquerade { .. } => {
                flow.why = reason(rule).or(flow.why);
                replace_source(flow);
                return Step::Translated;
            }
            Expr::Reject(_) => return Step::Reject,
            // What is remembered concerns later packets; and that the set is full, nobody can tell from here.
            Expr::Counter | Expr::Dynset { .. } => {}
            Expr::Notrack => flow.untracked = true,
            // Unknown: what it matches cannot be told, so it is taken not to.
            Expr::Other(_) => return Step::Next,
        }
    }
    Step::Next
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// The reason for which our rules replace a source is in their comment.
fn reason(rule: &Rule) -> Option<Masquerade> {
    let said = rule.comment.as_deref()?;
    Masquerade::ALL.into_iter().find(|m| m.to_string() == said)
}

/// A rule of others gives no reason that we know: then it is that of a packet that goes away.
fn replace_source(flow: &mut Flow) {
    flow.snat = Snat::Masquerade(flow.why.unwrap_or(Masquerade::LeavesCluster));
}

fn translate(flow: &mut Flow, dnat: bool, addr: Option<IpAddr>, port: Option<u16>, choice: Choice) {
    if !dnat {
        // Only masquerade is ours; another's source translation replaces the source as well.
        replace_source(flow);
        return;
    }
    let old = flow.ports.map_or(0, |(_, d)| d);
    let to = Endpoint { addr: addr.unwrap_or(flow.dst), port: port.unwrap_or(old) };
    flow.dst = to.addr;
    flow.ports = flow.ports.map(|(s, _)| (s, to.port));
    flow.translated = Some(to);
    flow.choice = Some(choice);
}

fn meta(flow: &Flow, key: MetaKey) -> Vec<u8> {
    match key {
        MetaKey::Mark => flow.mark.to_ne_bytes().to_vec(),
        MetaKey::NfProto => vec![if flow.dst.is_ipv4() { 2 } else { 10 }],
        MetaKey::L4Proto => vec![flow.proto],
        MetaKey::IifName => {
            let mut name = if flow.host { Vec::new() } else { b"in".to_vec() };
            name.resize(16, 0);
            name
        }
        // Which way it goes is not this plane's to say.
        MetaKey::OifName => vec![0; 16],
        MetaKey::Iif => u32::from(!flow.host).to_ne_bytes().to_vec(),
    }
}

fn ct(flow: &Flow, key: CtKey) -> Option<Vec<u8>> {
    // NF_CT_STATE_BIT of a new flow; IPS_SRC_NAT, IPS_DST_NAT.
    const NEW: u32 = 8;
    const SRC_NAT: u32 = 16;
    const DST_NAT: u32 = 32;
    let (addr, port) = flow.original;
    match (key, addr) {
        (CtKey::State, _) => Some(NEW.to_ne_bytes().to_vec()),
        (CtKey::Status, _) => {
            let dst = if flow.translated.is_some() { DST_NAT } else { 0 };
            let src = if flow.snat == Snat::Keep { 0 } else { SRC_NAT };
            Some((dst | src).to_ne_bytes().to_vec())
        }
        (CtKey::Mark, _) => Some(flow.ct_mark.to_ne_bytes().to_vec()),
        (CtKey::OriginalDaddr4, IpAddr::V4(a)) => Some(a.octets().to_vec()),
        (CtKey::OriginalDaddr6, IpAddr::V6(a)) => Some(a.octets().to_vec()),
        (CtKey::OriginalDaddr4 | CtKey::OriginalDaddr6, _) => None,
        (CtKey::OriginalDport, _) => Some(port.to_be_bytes().to_vec()),
    }
}

/// The fields of the header that rules read: protocol and addresses.
fn network_header(flow: &Flow) -> Vec<u8> {
    match (flow.src, flow.dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut h = vec![0; 20];
            h[0] = 0x45;
            h[9] = flow.proto;
            h[12..16].copy_from_slice(&s.octets());
            h[16..20].copy_from_slice(&d.octets());
            h
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let mut h = vec![0; 40];
            h[0] = 0x60;
            h[6] = flow.proto;
            h[8..24].copy_from_slice(&s.octets());
            h[24..40].copy_from_slice(&d.octets());
            h
        }
        // No packet has two families.
        _ => Vec::new(),
    }
}

fn transport_header(flow: &Flow) -> Vec<u8> {
    let mut h = vec![0; 8];
    match flow.ports {
        Some((s, d)) => {
            h[0..2].copy_from_slice(&s.to_be_bytes());
            h[2..4].copy_from_slice(&d.to_be_bytes());
        }
        // Echo request: ICMP type 8, ICMPv6 type 128.
        None => h[0] = if Proto::from_number(flow.proto).is_none() && flow.proto == 1 { 8 } else { 128 },
    }
    h
}

/// The element of a key.
fn find<'a>(set: &'a Set, key: &[u8]) -> Option<Element<'a>> {
    if !set.shape.interval {
        return set.elements.get(key);
    }
    set.elements.iter().find(|e| in_range(set, *e, key))
}

/// Field by field: a range of a concatenation is a box, not an interval of its bytes.
fn in_range(set: &Set, range: Element<'_>, key: &[u8]) -> bool {
    let last = range.last.unwrap_or(range.key);
    let (mut lo, mut hi, mut at) = (KeyReader::new(range.key), KeyReader::new(last), KeyReader::new(key));
    set.shape.key.iter().all(|t| match (lo.field(*t), hi.field(*t), at.field(*t)) {
        (Some(l), Some(h), Some(k)) => l <= k && k <= h,
        _ => false,
    })
}
