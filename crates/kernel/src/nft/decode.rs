//! Messages to values. `None` for what is malformed; never a panic.

use kernel_api::nft::{Chain, ChainKind, DataRef, DataType, Element, ElementData, Hook, HookPoint, Rule, Set, SetData};

use super::consts::*;
use super::expr;
use crate::netlink::{Attrs, Message, be32, cstr};

/// The attributes after the `struct nfgenmsg`.
pub(crate) fn attrs<'a>(m: &Message<'a>) -> Attrs<'a> {
    m.attrs(4)
}

/// Whether the message is of family inet and, by attribute `kind`, of `table`.
pub(crate) fn is_of(m: &Message<'_>, kind: u16, table: &str) -> bool {
    m.payload.first() == Some(&INET) && attrs(m).get(kind).and_then(cstr) == Some(table)
}

/// `NFTA_GEN_ID`
pub(crate) fn generation(m: &Message<'_>) -> Option<u32> {
    attrs(m).get(GEN_ID).and_then(be32)
}

/// `NFTA_TABLE_FLAGS`
pub(crate) fn table_flags(m: &Message<'_>) -> u32 {
    attrs(m).get(TABLE_FLAGS).and_then(be32).unwrap_or(0)
}

pub(crate) fn chain(m: &Message<'_>) -> Option<Chain> {
    let a = attrs(m);
    let hook = match a.get(CHAIN_HOOK) {
        None => None,
        Some(h) => Some(Hook {
            kind: match a.get(CHAIN_TYPE).and_then(cstr)? {
                "filter" => ChainKind::Filter,
                "nat" => ChainKind::Nat,
                "route" => ChainKind::Route,
                _ => return None,
            },
            point: match Attrs(h).get(HOOK_NUM).and_then(be32)? {
                0 => HookPoint::Prerouting,
                1 => HookPoint::Input,
                2 => HookPoint::Forward,
                3 => HookPoint::Output,
                4 => HookPoint::Postrouting,
                _ => return None,
            },
            priority: Attrs(h).get(HOOK_PRIORITY).and_then(be32)?.cast_signed(),
            drop: a.get(CHAIN_POLICY).and_then(be32) == Some(0),
        }),
    };
    Some(Chain { name: a.get(CHAIN_NAME).and_then(cstr)?.to_owned(), hook })
}

/// The fields of nft's type number, empty when one of them is none of ours.
fn fields(mut id: u32) -> Vec<DataType> {
    let mut out = Vec::new();
    while id != 0 {
        match DataType::from_id(id & 0x3f) {
            Some(t) => out.push(t),
            None => return Vec::new(),
        }
        id >>= 6;
    }
    out.reverse();
    out
}

pub(crate) fn set(m: &Message<'_>) -> Option<Set> {
    let a = attrs(m);
    let num = |k: u16| a.get(k).and_then(be32);
    let flags = num(SET_FLAGS).unwrap_or(0);
    let data = (flags & SET_F_MAP != 0).then(|| match num(SET_DATA_TYPE) {
        Some(DATA_TYPE_VERDICT) => SetData::Verdict,
        t => SetData::Value(fields(t.unwrap_or(0))),
    });
    Some(Set {
        name: a.get(SET_NAME).and_then(cstr)?.to_owned(),
        key: fields(num(SET_KEY_TYPE).unwrap_or(0)),
        data,
        interval: flags & SET_F_INTERVAL != 0,
        constant: flags & SET_F_CONSTANT != 0,
        timeout: flags & SET_F_TIMEOUT != 0,
        dynamic: (flags & SET_F_EVAL != 0).then(|| a.nested(SET_DESC).get(DESC_SIZE).and_then(be32).unwrap_or(0)),
    })
}

/// An element in a message: its parts where they lie.
pub(crate) struct Part<'a> {
    pub(crate) key: &'a [u8],
    /// Only where it differs from the key.
    pub(crate) key_end: Option<&'a [u8]>,
    /// The key is that after a range's last.
    pub(crate) is_end: bool,
    data: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
}

impl<'a> Part<'a> {
    pub(crate) fn data(&self) -> Option<DataRef<'a>> {
        let data = Attrs(self.data?);
        match data.get(DATA_VALUE) {
            Some(v) => Some(DataRef::Value(v)),
            None => match expr::parse_data(data)? {
                ElementData::Verdict(v) => Some(DataRef::Verdict(v)),
                ElementData::Value(_) => None,
            },
        }
    }
}

/// The elements of one message.
pub(crate) fn parts<'a>(m: &Message<'a>, each: &mut dyn FnMut(Part<'a>)) {
    for (_, e) in attrs(m).nested(ELEMS_ELEMENTS) {
        let e = Attrs(e);
        let value = |k: u16| e.nested(k).get(DATA_VALUE);
        let flags = e.get(ELEM_FLAGS).and_then(be32).unwrap_or(0);
        let Some(key) = value(ELEM_KEY).filter(|_| flags & ELEM_F_CATCHALL == 0) else { continue };
        each(Part {
            key,
            key_end: value(ELEM_KEY_END).filter(|k| *k != key),
            is_end: flags & ELEM_F_INTERVAL_END != 0,
            data: e.get(ELEM_DATA),
            user: e.get(ELEM_USERDATA),
        });
    }
}

/// The elements of one message: plain ones, and the keys of the ends of ranges.
pub(crate) fn elements(m: &Message<'_>, into: &mut Vec<Element>, ends: &mut Vec<Vec<u8>>) {
    parts(m, &mut |p| {
        if p.is_end {
            ends.push(p.key.to_vec());
            return;
        }
        let data = p.data.and_then(|d| expr::parse_data(Attrs(d)));
        let key_end = p.key_end.map(<[u8]>::to_vec);
        into.push(Element { key: p.key.to_vec(), key_end, data, comment: p.user.and_then(comment) });
    });
}

pub(crate) fn rule(m: &Message<'_>) -> Option<Rule> {
    let a = attrs(m);
    Some(Rule {
        chain: a.get(RULE_CHAIN).and_then(cstr)?.to_owned(),
        handle: a.get(RULE_HANDLE).and_then(|b| b.first_chunk()).map(|c| u64::from_be_bytes(*c))?,
        exprs: a.nested(RULE_EXPRESSIONS).map(|(_, e)| expr::parse(Attrs(e))).collect(),
        comment: a.get(RULE_USERDATA).and_then(comment),
    })
}

/// The comment in a rule's or element's user data: a list of (type, length, value).
fn comment(mut b: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = b {
        let value = rest.get(..usize::from(*len))?;
        if *kind == UDATA_COMMENT {
            return cstr(value).map(str::to_owned);
        }
        b = rest.get(usize::from(*len)..)?;
    }
    None
}
