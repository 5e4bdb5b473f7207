//! What a guard means and what its program does, on frames near the interesting ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use super::*;
use proptest::prelude::*;

/// Runs a program as the kernel does (Documentation/networking/filter.rst): a load behind the end gives 0.
fn run(program: &[Insn], f: &[u8], tagged: bool) -> u32 {
    let (mut a, mut x, mut pc) = (0u32, 0u32, 0usize);
    let load = |at: u64, n: usize| -> Option<u32> {
        let at = usize::try_from(at).ok()?;
        Some(f.get(at..at.checked_add(n)?)?.iter().fold(0, |v, b| v << 8 | u32::from(*b)))
    };
    loop {
        let (code, jt, jf, k) = program[pc];
        pc += 1;
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        let (at, from_x) = (u64::from(k), u64::from(k) + u64::from(x));
        let loaded = match code {
            LD_W if k == VLAN_TAG_PRESENT => Some(u32::from(tagged)),
            LD_W => load(at, 4),
            LD_H => load(at, 2),
            LD_B => load(at, 1),
            LD_W_X => load(from_x, 4),
            LD_H_X => load(from_x, 2),
            LD_B_X => load(from_x, 1),
            _ => Some(a),
        };
        let Some(value) = loaded else { return 0 };
        a = value;
        match code {
            LD_W | LD_H | LD_B | LD_W_X | LD_H_X | LD_B_X => {}
            LD_IMM => a = k,
            LDX_IMM => x = k,
            LD_LEN => a = u32::try_from(f.len()).unwrap(),
            ADD_X => a = a.wrapping_add(x),
            SUB_X => a = a.wrapping_sub(x),
            AND => a &= k,
            LSH => a <<= k,
            TAX => x = a,
            JA => pc += k as usize,
            JEQ => pc += jump(a == k),
            JEQ_X => pc += jump(a == x),
            JGE => pc += jump(a >= k),
            JGE_X => pc += jump(a >= x),
            JSET => pc += jump(a & k != 0),
            RET => return k,
            _ => panic!("opcode {code:#x}"),
        }
    }
}

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

fn guard(prefixes: &[&str], dhcp: bool) -> Guard {
    Guard::new(MAC, prefixes.iter().map(|p| p.parse().unwrap()), dhcp).unwrap()
}

fn frame(ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &MAC.0, &ethertype.to_be_bytes(), body].concat()
}

fn v4(src: &str) -> Vec<u8> {
    let src: std::net::Ipv4Addr = src.parse().unwrap();
    let head = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    frame(0x0800, &[&head[..], &src.octets(), &[255; 4], &[0, 68, 0, 67, 0, 8, 0, 0]].concat())
}

fn arp(sender: &str, op: u8) -> Vec<u8> {
    let s: std::net::Ipv4Addr = sender.parse().unwrap();
    frame(0x0806, &[&[0, 1, 8, 0, 6, 4, 0, op][..], &MAC.0, &s.octets(), &[0; 6], &[10, 0, 0, 1]].concat())
}

fn v6(src: &str, next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let s: std::net::Ipv6Addr = src.parse().unwrap();
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    let head = [0x60, 0, 0, 0, len[0], len[1], next, hops];
    frame(0x86dd, &[&head[..], &s.octets(), &[0xff; 16], body].concat())
}

/// Type, target, options.
fn nd(kind: u8, target: &str, options: &[&[u8]]) -> Vec<u8> {
    let t: std::net::Ipv6Addr = target.parse().unwrap();
    let target = t.octets();
    let target = if kind == 133 { &[][..] } else { &target };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], target, &options.concat()].concat()
}

const OWN: [u8; 8] = [2, 1, 2, 0, 0, 0, 0, 7];
const SOURCE: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 7];
const OTHER: [u8; 8] = [2, 1, 2, 0, 0, 0, 0, 8];
const NONCE: [u8; 8] = [14, 1, 9, 9, 9, 9, 9, 9];
const LL: &str = "fe80::ff:fe00:7";

/// Frames, and whether they pass the guard of 10.0.0.7, 10.1.0.0/16, fd00::7 and fd01::/64 with and without DHCP.
fn table() -> Vec<(&'static str, Vec<u8>, bool, bool)> {
    let mut foreign = v4("10.0.0.7");
    foreign[11] = 8;
    let mut fragment = v4("0.0.0.0");
    fragment[21] = 9;
    let mut other_hardware = arp("10.0.0.7", 2);
    other_hardware[27] = 8;
    let icmp = |src, body: &[u8]| v6(src, 58, 255, body);
    let mld = |src| v6(src, 0, 1, &[&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 1]].concat());
    let both = |name, f, yes| (name, f, yes, yes);
    vec![
        both("own", v4("10.0.0.7"), true),
        both("in the prefix", v4("10.1.255.1"), true),
        both("another's", v4("10.0.0.8"), false),
        both("own, from another's hardware address", foreign, false),
        ("asks for an address", v4("0.0.0.0"), true, false),
        both("a later fragment from nowhere", fragment, false),
        both("runt", v4("10.0.0.7")[..33].to_vec(), false),
        both("reply", arp("10.0.0.7", 2), true),
        both("announcement of another's", arp("10.0.0.8", 1), false),
        both("probe", arp("0.0.0.0", 1), true),
        both("reply from nowhere", arp("0.0.0.0", 2), false),
        both("own address at another's hardware address", other_hardware, false),
        both("short ARP", arp("10.0.0.7", 2)[..41].to_vec(), false),
        both("RARP", frame(0x8035, &[0; 40]), false),
        both("VLAN inside", frame(0x8100, &[0; 40]), false),
        both("own", v6("fd00::7", 6, 64, &[0; 20]), true),
        both("in the prefix", v6("fd01::1234", 17, 64, &[0; 20]), true),
        both("another's", v6("fd00::8", 6, 64, &[0; 20]), false),
        both("link-local", v6(LL, 17, 64, &[0; 20]), true),
        both("another's link-local", v6("fe80::1", 17, 64, &[0; 20]), false),
        both("from nowhere", v6("::", 17, 64, &[0; 20]), false),
        both("echo", icmp("fd00::7", &[128, 0, 0, 0, 0, 0, 0, 0]), true),
        both("a fragment", v6("fd00::7", 44, 64, &[0; 20]), true),
        both("what may hide an advertisement", v6("fd00::7", 60, 255, &nd(136, "fd00::8", &[&OTHER])), false),
        both("solicits", icmp("fd00::7", &nd(135, "fd00::1", &[&SOURCE])), true),
        both("solicits for another", icmp("fd00::7", &nd(135, "fd00::1", &[&[1, 1, 2, 0, 0, 0, 0, 8]])), false),
        both("solicits routers", icmp(LL, &nd(133, "::", &[&SOURCE])), true),
        both("solicits routers from nowhere", icmp("::", &nd(133, "::", &[])), true),
        both("from nowhere with an address", icmp("::", &nd(133, "::", &[&SOURCE])), false),
        both("duplicate detection", icmp("::", &nd(135, "fd00::7", &[&NONCE])), true),
        both("duplicate detection of the link-local", icmp("::", &nd(135, LL, &[])), true),
        both("claims another's", icmp("::", &nd(135, "fd00::8", &[])), false),
        both("advertises own", icmp("fd00::7", &nd(136, "fd00::7", &[&OWN])), true),
        both("advertises own, without option", icmp(LL, &nd(136, "fd01::5", &[])), true),
        both("advertises another's", icmp("fd00::7", &nd(136, "fd00::8", &[&OWN])), false),
        both("for another", icmp("fd00::7", &nd(136, "fd00::7", &[&OTHER])), false),
        both("for another, behind", icmp("fd00::7", &nd(136, "fd00::7", &[&NONCE, &OTHER])), false),
        both("many options", icmp("fd00::7", &nd(136, "fd00::7", &[&NONCE, &NONCE, &NONCE, &OWN])), true),
        both("too many", icmp("fd00::7", &nd(136, "fd00::7", &[&NONCE, &NONCE, &NONCE, &NONCE, &OWN])), false),
        both("an endless option", icmp("fd00::7", &nd(136, "fd00::7", &[&[3, 0, 0, 0, 0, 0, 0, 0]])), false),
        both("router advertisement", icmp(LL, &[&[134][..], &[0; 15]].concat()), false),
        both("redirect", icmp(LL, &[&[137][..], &[0; 39]].concat()), false),
        both("listener report", mld("::"), true),
        both("listener report", mld(LL), true),
        both("another's listener report", mld("fe80::1"), false),
    ]
}

#[test]
fn only_the_hardware_address() {
    let g = Guard::mac_only(MAC).unwrap();
    let p = program(&g);
    for (name, f, _, _) in table() {
        for (f, tagged) in [(&f[..], false), (&f[..], true), (&f[..13], false), (&f[..7], false)] {
            let want = f.len() >= 14 && f[6..12] == MAC.0;
            assert_eq!(g.passes(f, tagged), want, "{name}");
            assert_eq!(run(&p, f, tagged), if want { PASS.3 } else { DROP.3 }, "{name}");
        }
    }
    assert_eq!(parse(&bytes(&p)), Some((g, p.len())));
}

const PREFIXES: [&str; 4] = ["10.0.0.7/32", "10.1.0.0/16", "fd00::7/128", "fd01::/64"];

#[test]
fn what_passes() {
    for (name, f, with, without) in table() {
        for (dhcp, want) in [(true, with), (false, without)] {
            let g = guard(&PREFIXES, dhcp);
            assert_eq!(g.passes(&f, false), want, "{name} ({dhcp}): {f:02x?}");
            assert!(!g.passes(&f, true), "tagged");
            assert_eq!(run(&program(&g), &f, false) == PASS.3, want, "program: {name} ({dhcp})");
            assert_eq!(run(&program(&g), &f, true), DROP.3, "tagged");
        }
    }
}

fn prefix() -> impl Strategy<Value = Cidr> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(a, l)| Cidr::new(std::net::Ipv4Addr::from(a).into(), l).unwrap()),
        (any::<u128>(), 0u8..=128).prop_map(|(a, l)| Cidr::new(std::net::Ipv6Addr::from(a).into(), l).unwrap()),
        prop::sample::select(PREFIXES.to_vec()).prop_map(|p| p.parse().unwrap()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// The program does what the meaning says, for frames near the interesting ones, and ends with a verdict on
    /// each: never with the 0 of a load behind the end.
    #[test]
    fn program_and_meaning_agree(prefixes in prop::collection::vec(prefix(), 0..8), dhcp: bool,
        which in any::<prop::sample::Index>(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()), tagged in prop::bool::weighted(0.05)) {
        let g = Guard::new(MAC, prefixes, dhcp).unwrap();
        let table = table();
        let mut f = which.get(&table).1.clone();
        for (at, v) in edits {
            let at = at.index(f.len());
            f[at] = v;
        }
        if let Some(c) = cut {
            f.truncate(c.index(f.len() + 1));
        }
        let got = run(&program(&g), &f, tagged);
        prop_assert!(got == PASS.3 || got == DROP.3, "{got}");
        prop_assert_eq!(got == PASS.3, g.passes(&f, tagged), "{} {:02x?}", g, f);
    }

    #[test]
    fn a_program_reads_back(prefixes in prop::collection::vec(prefix(), 0..64), dhcp: bool, at in any::<prop::sample::Index>()) {
        let g = Guard::new(MAC, prefixes, dhcp).unwrap();
        let p = program(&g);
        prop_assert!(p.len() <= 4096, "BPF_MAXINSNS");
        let mut b = bytes(&p);
        prop_assert_eq!(parse(&b), Some((g, p.len())));
        // One that is not exactly it is none.
        let at = at.index(b.len());
        b[at] ^= 1;
        prop_assert!(parse(&b).is_none_or(|(other, _)| bytes(&program(&other)) == b));
    }
}
