//! Expressions and data, to bytes and back. Each kind's writer and reader stand in one order, to be read side by side.

use kernel_api::nft::{
    CmpOp, CtKey, DynsetOp, ElementData, Expr, LookupInto, MetaKey, PayloadBase, Reg, RejectWith, Verdict,
};

use super::consts::*;
use crate::netlink::{Attrs, Builder, be32, cstr};

/// `NFTA_FIB_F_DADDR`
const FIB_F_DADDR: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`
const FIB_ADDRTYPE: u32 = 3;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`: implied by the registers, the kernel adds them.
const NAT_IMPLIED: u32 = 3;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

/// `NFT_REG32_00 + n`
fn reg(r: Reg) -> u32 {
    8 + u32::from(r.0)
}

/// The kernel says the aligned ones by their old 16-byte names (`nft_dump_register`).
fn parse_reg(b: &[u8]) -> Option<Reg> {
    match be32(b)? {
        n @ 1..=4 => u8::try_from((n - 1) * 4).ok().map(Reg),
        n @ 8..=23 => u8::try_from(n - 8).ok().map(Reg),
        _ => None,
    }
}

pub(crate) fn put_value(b: &mut Builder, attr: u16, data: &[u8]) {
    let n = b.open(attr);
    b.attr(DATA_VALUE, data);
    b.close(n);
}

pub(crate) fn put_verdict(b: &mut Builder, attr: u16, v: &Verdict) {
    let (code, chain) = match v {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Continue => (-1, None),
        Verdict::Jump(c) => (-3, Some(c)),
        Verdict::Goto(c) => (-4, Some(c)),
        Verdict::Return => (-5i32, None),
    };
    let n = b.open(attr);
    let inner = b.open(DATA_VERDICT);
    b.attr_be32(VERDICT_CODE, code.cast_unsigned());
    if let Some(c) = chain {
        b.attr_str(VERDICT_CHAIN, c);
    }
    b.close(inner);
    b.close(n);
}

/// What a `NFTA_*_DATA` nest holds.
pub(crate) fn parse_data(a: Attrs<'_>) -> Option<ElementData> {
    if let Some(v) = a.get(DATA_VALUE) {
        return Some(ElementData::Value(v.to_vec()));
    }
    let v = a.nested(DATA_VERDICT);
    let chain = || v.get(VERDICT_CHAIN).and_then(cstr).map(str::to_owned);
    Some(ElementData::Verdict(match v.get(VERDICT_CODE).and_then(be32)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => return None,
    }))
}

fn parse_value(a: Attrs<'_>) -> Option<Vec<u8>> {
    a.get(DATA_VALUE).map(<[u8]>::to_vec)
}

fn name(e: &Expr) -> &str {
    match e {
        Expr::Meta { .. } | Expr::SetMark { .. } => "meta",
        Expr::Payload { .. } => "payload",
        Expr::Cmp { .. } => "cmp",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } => "lookup",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Numgen { .. } => "numgen",
        Expr::FibDaddrType { .. } => "fib",
        Expr::Ct { .. } | Expr::SetCtMark { .. } => "ct",
        Expr::Nat { .. } => "nat",
        Expr::Dynset { .. } => "dynset",
        Expr::Masquerade { .. } => "masq",
        Expr::Reject(_) => "reject",
        Expr::Counter => "counter",
        Expr::Notrack => "notrack",
        Expr::Other(n) => n,
    }
}

fn meta_key(k: MetaKey) -> u32 {
    match k {
        MetaKey::Mark => 3,
        MetaKey::Iif => 4,
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::NfProto => 15,
        MetaKey::L4Proto => 16,
    }
}

/// The number, and the direction for keys that have one.
fn ct_key(k: CtKey) -> (u32, Option<u8>) {
    match k {
        CtKey::State => (0, None),
        CtKey::Status => (2, None),
        CtKey::Mark => (3, None),
        CtKey::OriginalDport => (12, Some(0)),
        CtKey::OriginalDaddr4 => (20, Some(0)),
        CtKey::OriginalDaddr6 => (22, Some(0)),
    }
}

const META_KEYS: [MetaKey; 6] =
    [MetaKey::Mark, MetaKey::Iif, MetaKey::IifName, MetaKey::OifName, MetaKey::NfProto, MetaKey::L4Proto];

const CT_KEYS: [CtKey; 6] =
    [CtKey::State, CtKey::Status, CtKey::Mark, CtKey::OriginalDport, CtKey::OriginalDaddr4, CtKey::OriginalDaddr6];

/// Writes one expression as a list element.
pub(crate) fn put(b: &mut Builder, e: &Expr) {
    let elem = b.open(LIST_ELEM);
    b.attr_str(EXPR_NAME, name(e));
    let data = b.open(EXPR_DATA);
    match e {
        Expr::Meta { key, dreg } => {
            b.attr_be32(2, meta_key(*key));
            b.attr_be32(1, reg(*dreg));
        }
        Expr::SetMark { sreg } => {
            b.attr_be32(2, meta_key(MetaKey::Mark));
            b.attr_be32(3, reg(*sreg));
        }
        Expr::Payload { base, offset, len, dreg } => {
            b.attr_be32(1, reg(*dreg));
            b.attr_be32(2, if *base == PayloadBase::Network { 1 } else { 2 });
            b.attr_be32(3, *offset);
            b.attr_be32(4, *len);
        }
        Expr::Cmp { sreg, op, data } => {
            b.attr_be32(1, reg(*sreg));
            b.attr_be32(2, *op as u32);
            put_value(b, 3, data);
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            b.attr_be32(1, reg(*sreg));
            b.attr_be32(2, reg(*dreg));
            b.attr_be32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            put_value(b, 4, mask);
            put_value(b, 5, xor);
        }
        Expr::Lookup { set, sreg, into, invert } => {
            b.attr_str(1, set);
            b.attr_be32(2, reg(*sreg));
            match into {
                LookupInto::Nothing => {}
                LookupInto::Reg(r) => b.attr_be32(3, reg(*r)),
                LookupInto::Verdict => b.attr_be32(3, 0),
            }
            if *invert {
                b.attr_be32(5, 1);
            }
        }
        Expr::Immediate { dreg, data } => {
            b.attr_be32(1, reg(*dreg));
            put_value(b, 2, data);
        }
        Expr::Verdict(v) => {
            b.attr_be32(1, 0);
            put_verdict(b, 2, v);
        }
        Expr::Numgen { dreg, modulus, offset, random } => {
            b.attr_be32(1, reg(*dreg));
            b.attr_be32(2, *modulus);
            b.attr_be32(3, u32::from(*random));
            b.attr_be32(4, *offset);
        }
        Expr::FibDaddrType { dreg } => {
            b.attr_be32(1, reg(*dreg));
            b.attr_be32(2, FIB_ADDRTYPE);
            b.attr_be32(3, FIB_F_DADDR);
        }
        Expr::Ct { key, dreg } => {
            let (key, direction) = ct_key(*key);
            b.attr_be32(2, key);
            b.attr_be32(1, reg(*dreg));
            if let Some(d) = direction {
                b.attr_u8(3, d);
            }
        }
        Expr::SetCtMark { sreg } => {
            b.attr_be32(2, ct_key(CtKey::Mark).0);
            b.attr_be32(4, reg(*sreg));
        }
        Expr::Nat { dnat, v6, addr, port, flags } => {
            b.attr_be32(1, u32::from(*dnat));
            b.attr_be32(2, if *v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 });
            if let Some(r) = addr {
                b.attr_be32(3, reg(*r));
            }
            if let Some(r) = port {
                b.attr_be32(5, reg(*r));
            }
            if *flags & !NAT_IMPLIED != 0 {
                b.attr_be32(7, *flags & !NAT_IMPLIED);
            }
        }
        Expr::Masquerade { flags } => {
            if *flags != 0 {
                b.attr_be32(1, *flags);
            }
        }
        Expr::Dynset { set, op, key, data, timeout } => {
            b.attr_str(1, set);
            b.attr_be32(3, *op as u32);
            b.attr_be32(4, reg(*key));
            if let Some(r) = data {
                b.attr_be32(5, reg(*r));
            }
            if let Some(ms) = timeout {
                b.attr(6, &ms.to_be_bytes());
            }
        }
        Expr::Reject(w) => match w {
            RejectWith::TcpReset => b.attr_be32(1, 1),
            RejectWith::PortUnreachable => {
                b.attr_be32(1, 2);
                b.attr_u8(2, 1);
            }
        },
        Expr::Counter => {
            b.attr(1, &[0; 8]);
            b.attr(2, &[0; 8]);
        }
        // The one without data; the other is refused before it comes here.
        Expr::Notrack | Expr::Other(_) => {}
    }
    b.close(data);
    b.close(elem);
}

/// Reads a list element. What has a part we do not know is [`Expr::Other`], so that it never equals one of ours.
pub(crate) fn parse(elem: Attrs<'_>) -> Expr {
    let name = elem.get(EXPR_NAME).and_then(cstr).unwrap_or("?");
    parse_known(name, elem.nested(EXPR_DATA)).unwrap_or_else(|| Expr::Other(name.to_owned()))
}

fn parse_known(name: &str, a: Attrs<'_>) -> Option<Expr> {
    let num = |k: u16| a.get(k).and_then(be32);
    let r = |k: u16| a.get(k).and_then(parse_reg);
    let only = |known: &[u16]| a.into_iter().all(|(k, _)| known.contains(&k));
    Some(match name {
        "meta" => match (num(2)?, r(1), r(3)) {
            (3, None, Some(sreg)) => Expr::SetMark { sreg },
            (key, Some(dreg), None) => {
                let key = META_KEYS.into_iter().find(|k| meta_key(*k) == key)?;
                Expr::Meta { key, dreg }
            }
            _ => return None,
        },
        "payload" if only(&[1, 2, 3, 4]) => Expr::Payload {
            base: match num(2)? {
                1 => PayloadBase::Network,
                2 => PayloadBase::Transport,
                _ => return None,
            },
            offset: num(3)?,
            len: num(4)?,
            dreg: r(1)?,
        },
        "cmp" => Expr::Cmp {
            sreg: r(1)?,
            op: [CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte]
                .into_iter()
                .find(|o| num(2) == Some(*o as u32))?,
            data: parse_value(a.nested(3))?,
        },
        // Operation 0 is mask and xor.
        "bitwise" if num(6).unwrap_or(0) == 0 && only(&[1, 2, 3, 4, 5, 6]) => {
            Expr::Bitwise { sreg: r(1)?, dreg: r(2)?, mask: parse_value(a.nested(4))?, xor: parse_value(a.nested(5))? }
        }
        "lookup" => Expr::Lookup {
            set: a.get(1).and_then(cstr)?.to_owned(),
            sreg: r(2)?,
            into: match num(3) {
                None => LookupInto::Nothing,
                Some(0) => LookupInto::Verdict,
                Some(_) => LookupInto::Reg(r(3)?),
            },
            invert: num(5).unwrap_or(0) & 1 != 0,
        },
        "immediate" => match (num(1)?, parse_data(a.nested(2))?) {
            (0, ElementData::Verdict(v)) => Expr::Verdict(v),
            (_, ElementData::Value(data)) => Expr::Immediate { dreg: r(1)?, data },
            _ => return None,
        },
        "numgen" => Expr::Numgen {
            dreg: r(1)?,
            modulus: num(2)?,
            offset: num(4).unwrap_or(0),
            random: match num(3)? {
                0 => false,
                1 => true,
                _ => return None,
            },
        },
        "fib" if num(2) == Some(FIB_ADDRTYPE) && num(3) == Some(FIB_F_DADDR) => Expr::FibDaddrType { dreg: r(1)? },
        "ct" => match (num(2)?, r(1), r(4)) {
            (3, None, Some(sreg)) => Expr::SetCtMark { sreg },
            (key, Some(dreg), None) => {
                let direction = a.get(3).and_then(|b| b.first()).copied();
                let key = CT_KEYS.into_iter().find(|k| ct_key(*k) == (key, direction))?;
                Expr::Ct { key, dreg }
            }
            _ => return None,
        },
        "nat" => {
            let (addr, port) = (r(3), r(5));
            // A range of addresses or ports is none of ours.
            if a.get(4).is_some() && r(4) != addr || a.get(6).is_some() && r(6) != port {
                return None;
            }
            Expr::Nat {
                dnat: match num(1)? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
                v6: match num(2)? {
                    NFPROTO_IPV4 => false,
                    NFPROTO_IPV6 => true,
                    _ => return None,
                },
                addr,
                port,
                flags: num(7).unwrap_or(0) & !NAT_IMPLIED,
            }
        }
        // No flag, no expression, no id of a set of this transaction; 8 is padding.
        "dynset" if only(&[1, 3, 4, 5, 6, 8, 9]) && num(9).unwrap_or(0) == 0 => Expr::Dynset {
            set: a.get(1).and_then(cstr)?.to_owned(),
            op: [DynsetOp::Update, DynsetOp::Delete].into_iter().find(|o| num(3) == Some(*o as u32))?,
            key: r(4)?,
            data: match a.get(5) {
                Some(_) => Some(r(5)?),
                None => None,
            },
            // The kernel says 0 for none.
            timeout: a.get(6).and_then(|b| b.first_chunk()).map(|c| u64::from_be_bytes(*c)).filter(|ms| *ms > 0),
        },
        "masq" if only(&[1]) => Expr::Masquerade { flags: num(1).unwrap_or(0) },
        "reject" => match (num(1)?, a.get(2).and_then(|b| b.first())) {
            (1, _) => Expr::Reject(RejectWith::TcpReset),
            (2, Some(1)) => Expr::Reject(RejectWith::PortUnreachable),
            _ => return None,
        },
        "counter" => Expr::Counter,
        "notrack" => Expr::Notrack,
        _ => return None,
    })
}
