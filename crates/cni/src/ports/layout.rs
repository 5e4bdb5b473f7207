//! Names, sets, chains and rules. Nothing here depends on a container.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use kernel_api::nft::{
    Chain, ChainKind, CmpOp, CtKey, DataType, Expr, Hook, HookPoint, LookupInto, MetaKey, PayloadBase, Reg, Rule, Set,
    SetData, TableName, Verdict,
};
use types::Family;

use super::when::When;

/// Just after `dstnat`, -100, where Services are: theirs first.
const DSTNAT: i32 = -95;
/// Just before `srcnat`, 100, where others masquerade what leaves a container's network.
const SRCNAT: i32 = 95;
/// `raw`: before the kernel puts translated addresses back.
const RAW: i32 = -300;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (include/uapi/linux/netfilter/nf_nat.h).
const RANDOM_FULLY: u32 = 16;
/// `IPS_DST_NAT` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const DST_NAT: u32 = 32;
/// `RTN_LOCAL` (include/uapi/linux/rtnetlink.h).
const LOCAL: u32 = 2;

/// The table of all port mappings.
#[must_use]
pub fn table() -> TableName {
    // The constructor accepts exactly this name; there is no other branch to take.
    TableName::recognise("seaway-hostports").unwrap_or_else(|| unreachable!("a table of ours"))
}

/// A set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetName {
    /// Mappings of one address of the node, under a condition (its number) or none.
    Bound(Family, Option<u32>),
    /// Mappings of every address of the node.
    Any(Family, Option<u32>),
    /// Connections to masquerade: sources by a prefix of this length.
    Near(Family, u8),
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |f: &Family| match f {
            Family::V4 => '4',
            Family::V6 => '6',
        };
        match self {
            Self::Near(family, len) => write!(f, "near{}_{len}", digit(family)),
            Self::Bound(family, None) => write!(f, "bound{}", digit(family)),
            Self::Any(family, None) => write!(f, "any{}", digit(family)),
            Self::Bound(family, Some(n)) => write!(f, "bound{}_if_{n:08x}", digit(family)),
            Self::Any(family, Some(n)) => write!(f, "any{}_if_{n:08x}", digit(family)),
        }
    }
}

impl FromStr for SetName {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        let (head, tail) = match s.split_once('_') {
            Some((h, t)) => (h, Some(t)),
            None => (s, None),
        };
        let at = head.len().checked_sub(1).filter(|n| head.is_char_boundary(*n)).ok_or(())?;
        let family = match head.get(at..) {
            Some("4") => Family::V4,
            Some("6") => Family::V6,
            _ => return Err(()),
        };
        let number = |t: &str| t.strip_prefix("if_").and_then(|n| u32::from_str_radix(n, 16).ok()).ok_or(());
        let name = match (head.get(..at), tail) {
            (Some("bound"), t) => Self::Bound(family, t.map(number).transpose()?),
            (Some("any"), t) => Self::Any(family, t.map(number).transpose()?),
            (Some("near"), Some(t)) => Self::Near(family, t.parse().ok().filter(|n| *n <= family.bits()).ok_or(())?),
            _ => return Err(()),
        };
        // One name each way: no `near4_024`.
        if name.to_string() == s { Ok(name) } else { Err(()) }
    }
}

impl SetName {
    pub(super) fn family(self) -> Family {
        match self {
            Self::Bound(f, _) | Self::Any(f, _) | Self::Near(f, _) => f,
        }
    }

    /// Its types.
    pub(super) fn set(self) -> Set {
        let addr = match self.family() {
            Family::V4 => DataType::Ipv4Addr,
            Family::V6 => DataType::Ipv6Addr,
        };
        let port = [DataType::InetProto, DataType::InetService];
        let (key, data) = match self {
            Self::Bound(..) => ([&[addr], &port[..]].concat(), Some(vec![addr, DataType::InetService])),
            Self::Any(..) => (port.to_vec(), Some(vec![addr, DataType::InetService])),
            Self::Near(..) => ([&[addr, addr], &port[..]].concat(), None),
        };
        let data = data.map(SetData::Value);
        Set { name: self.to_string(), key, data, interval: false, constant: false, timeout: false, dynamic: None }
    }
}

/// The sets that are there whatever is mapped.
pub(super) fn always() -> [SetName; 4] {
    let of = |f| [SetName::Bound(f, None), SetName::Any(f, None)];
    let ([a, b], [c, d]) = (of(Family::V4), of(Family::V6));
    [a, b, c, d]
}

/// Every chain.
pub(super) fn chains() -> Vec<Chain> {
    let base = |name: &str, kind, point, priority| Chain {
        name: name.into(),
        hook: Some(Hook { kind, point, priority, drop: false }),
    };
    let plain = |name: &str| Chain { name: name.into(), hook: None };
    vec![
        plain("hostports"),
        plain("masquerading"),
        base("localnet", ChainKind::Filter, HookPoint::Prerouting, RAW),
        base("prerouting", ChainKind::Nat, HookPoint::Prerouting, DSTNAT),
        base("output", ChainKind::Nat, HookPoint::Output, DSTNAT),
        base("postrouting", ChainKind::Nat, HookPoint::Postrouting, SRCNAT),
    ]
}

/// Every rule, in order, for these sets and conditions. The conditions that are known are those in use.
pub(super) fn rules(sets: &BTreeSet<SetName>, conditions: &[When]) -> Vec<Rule> {
    let mut out = vec![
        // `route_localnet` lets a container's connection from 127.0.0.1 out, and would let anybody's to it in.
        rule("localnet", |r| {
            r.of(Family::V4);
            r.push(Expr::Meta { key: MetaKey::IifName, dreg: Reg(0) });
            r.cmp(CmpOp::Neq, b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
            r.push(r.daddr(Reg(0)));
            r.masked(&[255, 0, 0, 0]);
            r.cmp(CmpOp::Eq, &[127, 0, 0, 0]);
            r.push(Expr::Verdict(Verdict::Drop));
        }),
        rule("prerouting", |r| {
            r.local();
            r.push(Expr::Verdict(Verdict::Jump("hostports".into())));
        }),
        rule("output", |r| {
            r.of(Family::V6);
            r.push(r.daddr(Reg(0)));
            r.cmp(CmpOp::Eq, &std::net::Ipv6Addr::LOCALHOST.octets());
            r.push(Expr::Verdict(Verdict::Return));
        }),
        rule("output", |r| {
            r.local();
            r.push(Expr::Verdict(Verdict::Jump("hostports".into())));
        }),
        rule("postrouting", |r| {
            r.push(Expr::Ct { key: CtKey::Status, dreg: Reg(0) });
            r.masked(&DST_NAT.to_ne_bytes());
            r.cmp(CmpOp::Neq, &[0; 4]);
            r.push(Expr::Verdict(Verdict::Jump("masquerading".into())));
        }),
    ];
    // One address before every address; a condition before none.
    let rank = |n: &SetName| match n {
        SetName::Bound(_, c) => (0, c.is_none()),
        SetName::Any(_, c) => (1, c.is_none()),
        SetName::Near(..) => (2, false),
    };
    let mut ordered: Vec<SetName> = sets.iter().copied().collect();
    ordered.sort_by_key(|n| (rank(n), *n));
    for name in ordered {
        match name {
            SetName::Near(family, len) => out.push(near(name, family, len)),
            SetName::Bound(f, None) | SetName::Any(f, None) => out.push(dnat(name, f, None)),
            SetName::Bound(f, Some(n)) | SetName::Any(f, Some(n)) => {
                out.extend(conditions.iter().find(|c| c.number() == n).map(|c| dnat(name, f, Some(c))));
            }
        }
    }
    out
}

/// `[condition] dnat ip to [ip daddr .] meta l4proto . th dport map @set`
fn dnat(name: SetName, family: Family, when: Option<&When>) -> Rule {
    let mut out = rule("hostports", |r| {
        r.of(family);
        if let Some(w) = when {
            r.exprs.extend(w.exprs().iter().cloned());
        }
        let mut next = 0;
        if matches!(name, SetName::Bound(..)) {
            r.push(r.daddr(Reg(0)));
            next += words(family);
        }
        r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(next) });
        // Same place in TCP, UDP and SCTP.
        r.push(Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: Reg(next + 1) });
        r.push(Expr::Lookup { set: name.to_string(), sreg: Reg(0), into: LookupInto::Reg(Reg(0)), invert: false });
        let v6 = family == Family::V6;
        r.push(Expr::Nat { dnat: true, v6, addr: Some(Reg(0)), port: Some(Reg(words(family))), flags: 0 });
    });
    out.comment = when.map(When::comment);
    out
}

/// `ip saddr & mask . ip daddr . meta l4proto . ct original proto-dst @set masquerade fully-random`
fn near(name: SetName, family: Family, len: u8) -> Rule {
    rule("masquerading", |r| {
        r.of(family);
        let n = words(family);
        // The address that is masked first, so that no register is written over.
        r.push(r.saddr(Reg(0)));
        if len < family.bits() {
            r.masked(&mask(family, len));
        }
        r.push(r.daddr(Reg(n)));
        r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(2 * n) });
        r.push(Expr::Ct { key: CtKey::OriginalDport, dreg: Reg(2 * n + 1) });
        r.push(Expr::Lookup { set: name.to_string(), sreg: Reg(0), into: LookupInto::Nothing, invert: false });
        r.push(Expr::Masquerade { flags: RANDOM_FULLY });
    })
}

/// The bytes of a prefix length.
pub(super) fn mask(family: Family, len: u8) -> Vec<u8> {
    let bytes = usize::from(family.bits() / 8);
    (0..bytes)
        .map(|i| {
            let ones = usize::from(len).saturating_sub(i * 8).min(8);
            (0xff00_u16 >> ones) as u8
        })
        .collect()
}

/// Registers that an address takes.
const fn words(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

fn rule(chain: &str, fill: impl FnOnce(&mut Filling)) -> Rule {
    let mut r = Filling { family: Family::V4, exprs: Vec::new() };
    fill(&mut r);
    Rule { chain: chain.into(), handle: 0, exprs: r.exprs, comment: None }
}

/// A rule in the making.
pub(super) struct Filling {
    family: Family,
    pub(super) exprs: Vec<Expr>,
}

impl Filling {
    pub(super) fn push(&mut self, e: Expr) {
        self.exprs.push(e);
    }

    /// Packets of a family; address fields are of it from here on.
    fn of(&mut self, family: Family) {
        self.family = family;
        self.push(Expr::Meta { key: MetaKey::NfProto, dreg: Reg(0) });
        self.cmp(CmpOp::Eq, &[if family == Family::V4 { 2 } else { 10 }]);
    }

    pub(super) fn cmp(&mut self, op: CmpOp, data: &[u8]) {
        self.push(Expr::Cmp { sreg: Reg(0), op, data: data.to_vec() });
    }

    pub(super) fn masked(&mut self, mask: &[u8]) {
        self.push(Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask: mask.to_vec(), xor: vec![0; mask.len()] });
    }

    /// `fib daddr type local`
    fn local(&mut self) {
        self.push(Expr::FibDaddrType { dreg: Reg(0) });
        self.cmp(CmpOp::Eq, &LOCAL.to_ne_bytes());
    }

    fn saddr(&self, dreg: Reg) -> Expr {
        let (offset, len) = if self.family == Family::V4 { (12, 4) } else { (8, 16) };
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg }
    }

    fn daddr(&self, dreg: Reg) -> Expr {
        let (offset, len) = if self.family == Family::V4 { (16, 4) } else { (24, 16) };
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_names_read_back() {
        let mut all = always().to_vec();
        for f in Family::BOTH {
            all.extend([SetName::Bound(f, Some(7)), SetName::Any(f, Some(u32::MAX)), SetName::Near(f, 0)]);
            all.push(SetName::Near(f, f.bits()));
        }
        for n in all {
            assert_eq!(n.to_string().parse(), Ok(n));
        }
        for other in ["", "4", "near4", "near4_33", "near4_024", "bound5", "any4_if_x", "any4_if_7", "\u{e9}4"] {
            assert_eq!(other.parse::<SetName>(), Err(()), "{other}");
        }
    }

    #[test]
    fn masks() {
        assert_eq!(mask(Family::V4, 0), [0; 4]);
        assert_eq!(mask(Family::V4, 20), [255, 255, 240, 0]);
        assert_eq!(mask(Family::V6, 127), [vec![255; 15], vec![254]].concat());
        assert_eq!(mask(Family::V6, 128), [255; 16]);
    }
}
