//! A [`Guard`] as one classic BPF program for `cls_bpf` with direct action: the kernel translates and compiles it when
//! it is loaded, without bpf(2), and it goes away with its link. One program looks at a packet once; a list of `u32` or
//! `flower` filters would each look again.

use kernel_api::tc::{Guard, ND_OPTIONS};
use types::{Cidr, Family, Mac};

/// One instruction (`struct sock_filter`).
pub(crate) type Insn = (u16, u8, u8, u32);

// Opcodes (include/uapi/linux/{bpf_common,filter}.h).
const LD_IMM: u16 = 0x00;
const LDX_IMM: u16 = 0x01;
pub(super) const LD_W: u16 = 0x20;
const LD_H: u16 = 0x28;
const LD_B: u16 = 0x30;
const LD_W_X: u16 = 0x40;
const LD_H_X: u16 = 0x48;
const LD_B_X: u16 = 0x50;
const LD_LEN: u16 = 0x80;
const ADD_X: u16 = 0x0c;
const SUB_X: u16 = 0x1c;
pub(super) const AND: u16 = 0x54;
const LSH: u16 = 0x64;
const JA: u16 = 0x05;
pub(super) const JEQ: u16 = 0x15;
const JEQ_X: u16 = 0x1d;
const JGE: u16 = 0x35;
const JGE_X: u16 = 0x3d;
const JSET: u16 = 0x45;
pub(super) const RET: u16 = 0x06;
const TAX: u16 = 0x07;
/// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`: a tag that is beside the packet, not in it.
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

/// `TC_ACT_UNSPEC`: on to the next filter.
const PASS: Insn = (RET, 0, 0, u32::MAX);
/// `TC_ACT_SHOT`
const DROP: Insn = (RET, 0, 0, 2);

/// Instructions and the jumps still open.
#[derive(Default)]
pub(super) struct Asm {
    pub(super) code: Vec<Insn>,
    /// Where each label is, by number.
    at: Vec<Option<usize>>,
    /// Jumps (`JA`) to labels.
    jumps: Vec<(usize, usize)>,
}

impl Asm {
    pub(super) fn label(&mut self) -> usize {
        self.at.push(None);
        self.at.len() - 1
    }

    pub(super) fn place(&mut self, label: usize) {
        if let Some(slot) = self.at.get_mut(label) {
            *slot = Some(self.code.len());
        }
    }

    pub(super) fn op(&mut self, code: u16, k: u32) {
        self.code.push((code, 0, 0, k));
    }

    pub(super) fn goto(&mut self, label: usize) {
        self.jumps.push((self.code.len(), label));
        self.op(JA, 0);
    }

    /// When the comparison holds, the next instruction; else the one after.
    pub(super) fn when(&mut self, code: u16, k: u32) {
        self.code.push((code, 0, 1, k));
    }

    /// When it does not hold, the next instruction; else the one after.
    pub(super) fn unless(&mut self, code: u16, k: u32) {
        self.code.push((code, 1, 0, k));
    }

    /// Drops unless the comparison holds.
    fn need(&mut self, code: u16, k: u32) {
        self.unless(code, k);
        self.code.push(DROP);
    }

    /// Loads and drops unless equal.
    fn need_eq(&mut self, load: u16, at: u32, k: u32) {
        self.op(load, at);
        self.need(JEQ, k);
    }

    /// Goes to `next` unless the address at `at` is within this net of `len` bits.
    pub(super) fn within(&mut self, at: u32, net: &[u8], len: u8, next: usize) {
        for (word, bytes) in (0u8..4).zip(net.chunks_exact(4)) {
            let bits = len.saturating_sub(word * 32).min(32);
            if bits == 0 {
                break;
            }
            self.op(LD_W, at + u32::from(word) * 4);
            if bits < 32 {
                self.op(AND, mask32(bits));
            }
            self.unless(JEQ, u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            self.goto(next);
        }
    }

    /// The hardware address from `at` on, with loads of 4 and 2 bytes.
    fn need_mac(&mut self, word: u16, half: u16, at: u32, mac: Mac) {
        let [a, b, c, d, e, f] = mac.0;
        self.need_eq(word, at, u32::from_be_bytes([a, b, c, d]));
        self.need_eq(half, at + 4, u32::from_be_bytes([0, 0, e, f]));
    }

    /// The program: `words` are never reached, they tell what it was made from and are read from the end; `last` ends it.
    pub(super) fn finish(mut self, words: &[u32], last: Insn) -> Vec<Insn> {
        self.code.extend(words.iter().rev().map(|k| (LD_IMM, 0, 0, *k)));
        self.code.push(last);
        for (at, label) in self.jumps {
            if let (Some(Some(to)), Some(i)) = (self.at.get(label), self.code.get_mut(at)) {
                // A label is always after its jumps, and a program far below 4 billion instructions.
                i.3 = u32::try_from(to.saturating_sub(at + 1)).unwrap_or(0);
            }
        }
        self.code
    }
}

/// The program.
pub(crate) fn program(g: &Guard) -> Vec<Insn> {
    let mut a = Asm::default();
    if g.is_mac_only() {
        a.op(LD_LEN, 0);
        a.need(JGE, 14);
        a.need_mac(LD_W, LD_H, 6, g.mac());
        a.code.push(PASS);
        return a.finish(&footer(g), DROP);
    }
    let (v4, arp, v6) = (a.label(), a.label(), a.label());
    a.need_eq(LD_W, VLAN_TAG_PRESENT, 0);
    // Too short for anything. A load behind the end would end the program with "pass".
    a.op(LD_LEN, 0);
    a.need(JGE, 34);
    a.need_mac(LD_W, LD_H, 6, g.mac());
    a.op(LD_H, 12);
    for (kind, to) in [(0x0800, v4), (0x86dd, v6), (0x0806, arp)] {
        a.when(JEQ, kind);
        a.goto(to);
    }
    a.code.push(DROP);
    a.place(v4);
    ipv4(&mut a, g);
    a.place(arp);
    arp_packet(&mut a, g);
    a.place(v6);
    ipv6(&mut a, g);
    a.finish(&footer(g), DROP)
}

/// The IPv4 address at `at` is one of the sender's: passes. Goes on otherwise, with the address loaded.
fn pass_own_v4(a: &mut Asm, g: &Guard, at: u32) {
    a.op(LD_W, at);
    for p in g.prefixes() {
        let std::net::IpAddr::V4(net) = p.addr() else { continue };
        let net = u32::from(net);
        if p.len() == 32 {
            a.when(JEQ, net);
            a.code.push(PASS);
        } else {
            a.op(AND, mask32(p.len()));
            a.when(JEQ, net);
            a.code.push(PASS);
            a.op(LD_W, at);
        }
    }
}

fn ipv4(a: &mut Asm, g: &Guard) {
    pass_own_v4(a, g, 26);
    if g.dhcp() {
        a.need(JEQ, 0);
        // No options, UDP, no later fragment, ports 68 to 67.
        a.need_eq(LD_B, 14, 0x45);
        a.need_eq(LD_B, 23, 17);
        a.op(LD_H, 20);
        a.when(JSET, 0x1fff);
        a.code.push(DROP);
        a.op(LD_LEN, 0);
        a.need(JGE, 38);
        a.need_eq(LD_W, 34, 68 << 16 | 67);
        a.code.push(PASS);
    }
    a.code.push(DROP);
}

fn arp_packet(a: &mut Asm, g: &Guard) {
    a.op(LD_LEN, 0);
    a.need(JGE, 42);
    a.need_eq(LD_W, 14, 0x0001_0800);
    a.need_eq(LD_H, 18, 0x0604);
    a.need_mac(LD_W, LD_H, 22, g.mac());
    pass_own_v4(a, g, 28);
    // A probe says no address and is a request.
    a.need(JEQ, 0);
    a.need_eq(LD_H, 20, 1);
    a.code.push(PASS);
}

/// The IPv6 address at `at` is one of the sender's: goes to `own`. Goes on otherwise.
fn own_v6(a: &mut Asm, g: &Guard, at: u32, own: usize) {
    let link_local = Cidr::host(g.link_local().into());
    for p in g.prefixes().iter().filter(|p| p.family() == Family::V6).chain([&link_local]) {
        let std::net::IpAddr::V6(net) = p.addr() else { continue };
        let next = a.label();
        a.within(at, &net.octets(), p.len(), next);
        a.goto(own);
        a.place(next);
    }
}

fn ipv6(a: &mut Asm, g: &Guard) {
    let [somewhere, own, icmp, nowhere, icmp_nowhere, options, options_nowhere] = [(); 7].map(|()| a.label());
    a.op(LD_LEN, 0);
    a.need(JGE, 54);
    for at in [22, 26, 30, 34] {
        a.op(LD_W, at);
        a.unless(JEQ, 0);
        a.goto(somewhere);
    }
    a.goto(nowhere);

    a.place(somewhere);
    own_v6(a, g, 22, own);
    a.code.push(DROP);

    a.place(own);
    a.op(LD_B, 20);
    a.when(JEQ, 58);
    a.goto(icmp);
    let hidden = a.label();
    for e in kernel_api::tc::EXTENSIONS {
        a.when(JEQ, u32::from(e));
        a.goto(hidden);
    }
    a.code.push(PASS);
    a.place(hidden);
    a.op(LD_B, 21);
    a.when(JEQ, 255);
    a.code.push(DROP);
    a.code.push(PASS);

    a.place(icmp);
    a.op(LD_LEN, 0);
    a.need(JGE, 55);
    a.op(LD_B, 54);
    for kind in [134, 137] {
        a.when(JEQ, kind);
        a.code.push(DROP);
    }
    let (rs, ns, na) = (a.label(), a.label(), a.label());
    for (kind, to) in [(133, rs), (135, ns), (136, na)] {
        a.when(JEQ, kind);
        a.goto(to);
    }
    a.code.push(PASS);
    a.place(na);
    a.op(LD_LEN, 0);
    a.need(JGE, 78);
    own_v6(a, g, 62, ns);
    a.code.push(DROP);
    a.place(ns);
    a.op(LDX_IMM, 78);
    a.goto(options);
    a.place(rs);
    a.op(LDX_IMM, 62);
    a.place(options);
    nd_options(a, Some(g.mac()));

    a.place(nowhere);
    a.op(LD_B, 20);
    a.when(JEQ, 58);
    a.goto(icmp_nowhere);
    a.need(JEQ, 0);
    a.need_eq(LD_B, 21, 1);
    a.op(LD_LEN, 0);
    a.need(JGE, 55);
    a.need_eq(LD_B, 54, 58);
    a.code.push(PASS);

    a.place(icmp_nowhere);
    a.op(LD_LEN, 0);
    a.need(JGE, 55);
    a.op(LD_B, 54);
    let (solicit, claim) = (a.label(), a.label());
    a.when(JEQ, 133);
    a.goto(solicit);
    a.need(JEQ, 135);
    a.op(LD_LEN, 0);
    a.need(JGE, 78);
    own_v6(a, g, 62, claim);
    a.code.push(DROP);
    a.place(claim);
    a.op(LDX_IMM, 78);
    a.goto(options_nowhere);
    a.place(solicit);
    a.op(LDX_IMM, 62);
    a.place(options_nowhere);
    nd_options(a, None);
}

/// Walks the options from X on; a link-layer address among them must be `mac`.
fn nd_options(a: &mut Asm, mac: Option<Mac>) {
    for _ in 0..ND_OPTIONS {
        let (address, next) = (a.label(), a.label());
        a.op(LD_LEN, 0);
        a.need(JGE_X, 0);
        a.op(SUB_X, 0);
        a.when(JEQ, 0);
        a.code.push(PASS);
        a.need(JGE, 2);
        a.op(LD_B_X, 0);
        for kind in [1, 2] {
            a.when(JEQ, kind);
            a.goto(address);
        }
        a.goto(next);
        a.place(address);
        match mac {
            None => a.code.push(DROP),
            Some(mac) => {
                a.op(LD_LEN, 0);
                a.op(SUB_X, 0);
                a.need(JGE, 8);
                a.need_eq(LD_B_X, 1, 1);
                a.need_mac(LD_W_X, LD_H_X, 2, mac);
            }
        }
        a.place(next);
        a.op(LD_B_X, 1);
        a.when(JEQ, 0);
        a.code.push(DROP);
        a.op(LSH, 3);
        a.op(ADD_X, 0);
        a.op(TAX, 0);
    }
    a.op(LD_LEN, 0);
    a.need(JEQ_X, 0);
    a.code.push(PASS);
}

/// Flags of the footer.
const DHCP: u32 = 1 << 16;
const MAC_ONLY: u32 = 1 << 17;

pub(super) fn mask32(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

/// Flags and the number of prefixes, the hardware address, the prefixes.
fn footer(g: &Guard) -> Vec<u32> {
    let mut words = Vec::new();
    let [a, b, c, d, e, f] = g.mac().0;
    let flags = if g.dhcp() { DHCP } else { 0 } | if g.is_mac_only() { MAC_ONLY } else { 0 };
    words.push(flags | u32::try_from(g.prefixes().len()).unwrap_or(0));
    words.extend([u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, 0, e, f])]);
    words.extend(g.prefixes().iter().flat_map(prefix_words));
    words
}

/// A prefix as constants: family and length, then the address.
pub(super) fn prefix_words(p: &Cidr) -> Vec<u32> {
    match p.addr() {
        std::net::IpAddr::V4(x) => vec![u32::from(p.len()), u32::from(x)],
        std::net::IpAddr::V6(x) => {
            let address = x.octets();
            let words = address.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
            std::iter::once(1 << 16 | u32::from(p.len())).chain(words).collect()
        }
    }
}

/// The constants of a program of so many instructions, from the last one before its end.
pub(super) fn words(bytes: &[u8]) -> Option<(impl Iterator<Item = u32>, usize)> {
    let (insns, []) = bytes.as_chunks::<8>() else { return None };
    let word = |i: &[u8; 8]| u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
    Some((insns.iter().rev().skip(1).map(word), insns.len()))
}

/// What [`prefix_words`] made.
pub(super) fn prefix_of(words: &mut impl Iterator<Item = u32>) -> Option<Cidr> {
    let head = words.next()?;
    let addr: std::net::IpAddr = if head >> 16 == 0 {
        std::net::Ipv4Addr::from(words.next()?).into()
    } else {
        let mut octets = [0u8; 16];
        for part in octets.chunks_exact_mut(4) {
            part.copy_from_slice(&words.next()?.to_be_bytes());
        }
        std::net::Ipv6Addr::from(octets).into()
    };
    Cidr::new(addr, u8::try_from(head & 0xffff).ok()?)
}

/// The guard that a program is of, and its number of instructions; nothing for any other program.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Guard, usize)> {
    let (mut words, len) = words(bytes)?;
    let head = words.next()?;
    let prefixes = head & 0xffff;
    let [a, b, c, d] = words.next()?.to_be_bytes();
    let [_, _, e, f] = words.next()?.to_be_bytes();
    let list = (0..prefixes).map(|_| prefix_of(&mut words)).collect::<Option<Vec<_>>>()?;
    let mac = Mac([a, b, c, d, e, f]);
    let guard =
        if head & MAC_ONLY != 0 { Guard::mac_only(mac) } else { Guard::new(mac, list, head & DHCP != 0) }.ok()?;
    // Only when it does all that the footer says.
    (self::bytes(&program(&guard)) == bytes).then_some((guard, len))
}

/// As the kernel takes it (`struct sock_filter`, host order).
pub(crate) fn bytes(program: &[Insn]) -> Vec<u8> {
    let mut out = Vec::with_capacity(program.len() * 8);
    for (code, jt, jf, k) in program {
        out.extend(code.to_ne_bytes());
        out.extend([*jt, *jf]);
        out.extend(k.to_ne_bytes());
    }
    out
}

#[cfg(test)]
mod tests;
