//! Requests to messages.

use std::collections::HashMap;

use kernel_api::nft::{
    Chain, ChainKind, DataType, Element, ElementData, Expr, NftRequest, Rule, Set, SetData, TableName,
};

use super::consts::*;
use super::expr;
use super::interval;
use crate::netlink::{APPEND, Builder, CREATE, REQUEST, Refusal};

/// An attribute holds at most 64 KiB; a list of elements ends well before, whatever its last element's size.
const LIST_BYTES: usize = 48 << 10;

/// How a set keeps its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Single keys.
    Plain,
    /// Ranges of one field, as pairs of elements.
    Pairs,
    /// Ranges of a concatenation, as one element with both keys.
    Ranges,
}

impl Shape {
    pub(crate) fn of(set: &Set) -> Self {
        match (set.interval, set.key.len() > 1) {
            (false, _) => Self::Plain,
            (true, false) => Self::Pairs,
            (true, true) => Self::Ranges,
        }
    }
}

/// The shapes of the sets a batch adds elements to, by table and set name.
pub(crate) type Shapes = HashMap<(TableName, String), Shape>;

/// Length of a key or datum of these fields in bytes.
pub(crate) fn length(fields: &[DataType]) -> usize {
    match fields {
        [one] => one.len(),
        many => many.iter().map(|f| f.padded()).sum(),
    }
}

/// nft's number for a type or concatenation: 6 bits per field.
fn type_id(fields: &[DataType]) -> u32 {
    fields.iter().fold(0, |id, f| id << 6 | f.id())
}

/// nft's number for a byte order: 1 host, 2 network, 0 neither.
fn byteorder(fields: &[DataType]) -> u32 {
    match fields {
        [DataType::Mark | DataType::IfName] => 1,
        [_] => 2,
        _ => 0,
    }
}

/// The messages of a batch, between its begin and end.
pub(crate) struct Batch {
    pub(crate) out: Builder,
    /// Which request each message is of, in order. The first message, the begin, has sequence number `first`.
    pub(crate) of: Vec<usize>,
    next: u32,
    sets: u32,
}

/// A `struct nfgenmsg`.
pub(crate) fn nfgen(b: &mut Builder, family: u8, resource: u16) {
    let [hi, lo] = resource.to_be_bytes();
    b.bytes(&[family, 0, hi, lo]);
}

impl Batch {
    /// With a generation, the kernel refuses the batch when it is not the current one.
    pub(crate) fn new(first: u32, generation: Option<u32>) -> Self {
        let mut batch = Self { out: Builder::new(), of: Vec::new(), next: first + 1, sets: 0 };
        batch.out.begin(BATCH_BEGIN, REQUEST, first);
        nfgen(&mut batch.out, 0, NFNL_SUBSYS_NFTABLES);
        if let Some(g) = generation {
            batch.out.attr_be32(BATCH_GENID, g);
        }
        batch.out.end();
        batch
    }

    pub(crate) fn finish(&mut self) {
        self.out.begin(BATCH_END, REQUEST, self.next);
        nfgen(&mut self.out, 0, NFNL_SUBSYS_NFTABLES);
        self.out.end();
    }

    fn begin(&mut self, kind: u16, flags: u16, i: usize) {
        self.out.begin(NFNL_SUBSYS_NFTABLES << 8 | kind, REQUEST | flags, self.next);
        nfgen(&mut self.out, INET, 0);
        self.of.push(i);
        self.next += 1;
    }

    /// A message with a table's name and one more.
    fn named(&mut self, kind: u16, flags: u16, i: usize, table: &TableName, second: Option<(u16, &str)>) {
        self.begin(kind, flags, i);
        self.out.attr_str(TABLE_NAME, table.as_str());
        if let Some((k, v)) = second {
            self.out.attr_str(k, v);
        }
    }

    /// Appends the messages of request number `i`.
    pub(crate) fn push(&mut self, i: usize, r: &NftRequest, shapes: &Shapes) -> Result<(), Refusal> {
        match r {
            NftRequest::TableAdd(t) => {
                self.named(NEWTABLE, CREATE, i, t, None);
                self.out.attr_be32(TABLE_FLAGS, 0);
            }
            NftRequest::TableDel(t) => self.named(DELTABLE, 0, i, t, None),
            NftRequest::ChainAdd(t, c) => {
                self.named(NEWCHAIN, CREATE, i, t, Some((CHAIN_NAME, &c.name)));
                chain(&mut self.out, c);
            }
            NftRequest::ChainDel(t, c) => self.named(DELCHAIN, 0, i, t, Some((CHAIN_NAME, c))),
            NftRequest::ChainFlush(t, c) => self.named(DELRULE, 0, i, t, Some((RULE_CHAIN, c))),
            NftRequest::SetAdd(t, s) => {
                self.named(NEWSET, CREATE, i, t, Some((SET_NAME, &s.name)));
                self.sets += 1;
                set(&mut self.out, s, self.sets)?;
            }
            NftRequest::SetDel(t, s) => self.named(DELSET, 0, i, t, Some((SET_NAME, s))),
            NftRequest::ElementsAdd(t, s, e) => return self.elements(i, NEWSETELEM, CREATE, t, s, e, shapes),
            NftRequest::ElementsDel(t, s, e) => return self.elements(i, DELSETELEM, 0, t, s, e, shapes),
            NftRequest::SetFlush(t, s) => self.named(DELSETELEM, 0, i, t, Some((ELEMS_SET, s))),
            NftRequest::RuleAdd(t, r) => {
                self.named(NEWRULE, CREATE | APPEND, i, t, Some((RULE_CHAIN, &r.chain)));
                rule(&mut self.out, r)?;
            }
            NftRequest::RuleDel(t, c, handle) => {
                self.named(DELRULE, 0, i, t, Some((RULE_CHAIN, c)));
                self.out.attr(RULE_HANDLE, &handle.to_be_bytes());
            }
        }
        self.out.end();
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // the parts of one request, taken apart by its only caller
    fn elements(
        &mut self,
        i: usize,
        kind: u16,
        flags: u16,
        table: &TableName,
        set: &str,
        elements: &[Element],
        shapes: &Shapes,
    ) -> Result<(), Refusal> {
        let shape = shapes.get(&(table.clone(), set.to_owned())).copied().unwrap_or(Shape::Plain);
        // No message for no elements: a delete without a list would empty the set.
        let mut rest = elements.iter().peekable();
        while rest.peek().is_some() {
            self.named(kind, flags, i, table, Some((ELEMS_SET, set)));
            let list = self.out.open(ELEMS_ELEMENTS);
            let start = self.out.len();
            while self.out.len() - start < LIST_BYTES
                && let Some(e) = rest.next()
            {
                if e.key.len() > 64 || e.key_end.as_ref().is_some_and(|k| k.len() != e.key.len()) {
                    let message = Some(format!("an element of {set} has a key of a wrong length"));
                    return Err(Refusal { errno: libc::EINVAL, message });
                }
                match shape {
                    Shape::Pairs => {
                        for half in interval::split(e) {
                            let flags = if half.of.is_none() { ELEM_F_INTERVAL_END } else { 0 };
                            let (data, comment) =
                                half.of.map_or((None, None), |e| (e.data.as_ref(), e.comment.as_deref()));
                            element(&mut self.out, &half.key, None, data, flags, comment)?;
                        }
                    }
                    Shape::Plain | Shape::Ranges => {
                        // Of a range of one key too: nft lists the whole set wrong when one element has no end.
                        let end = match shape {
                            Shape::Ranges => Some(e.key_end.as_deref().unwrap_or(&e.key)),
                            _ => e.key_end.as_deref().filter(|k| *k != e.key),
                        };
                        element(&mut self.out, &e.key, end, e.data.as_ref(), 0, e.comment.as_deref())?;
                    }
                }
            }
            self.out.close(list);
            self.out.end();
        }
        Ok(())
    }
}

fn chain(b: &mut Builder, c: &Chain) {
    let Some(h) = &c.hook else { return };
    let n = b.open(CHAIN_HOOK);
    b.attr_be32(HOOK_NUM, h.point as u32);
    b.attr_be32(HOOK_PRIORITY, h.priority.cast_unsigned());
    b.close(n);
    b.attr_be32(CHAIN_POLICY, u32::from(!h.drop));
    b.attr_str(
        CHAIN_TYPE,
        match h.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        },
    );
}

fn set(b: &mut Builder, s: &Set, id: u32) -> Result<(), Refusal> {
    let too_many = |f: &[DataType]| f.is_empty() || f.len() > 5 || length(f) > 64;
    if too_many(&s.key) || matches!(&s.data, Some(SetData::Value(f)) if too_many(f)) {
        let message = Some(format!("set {} must have one to five fields of together at most 64 bytes", s.name));
        return Err(Refusal { errno: libc::EINVAL, message });
    }
    let ranges = Shape::of(s) == Shape::Ranges;
    let flags = [
        (s.constant, SET_F_CONSTANT),
        (s.interval, SET_F_INTERVAL),
        (s.data.is_some(), SET_F_MAP),
        (s.timeout, SET_F_TIMEOUT),
        (s.dynamic.is_some(), SET_F_EVAL),
        (ranges, SET_F_CONCAT),
    ];
    b.attr_be32(SET_FLAGS, flags.iter().filter(|(on, _)| *on).map(|(_, f)| f).sum());
    b.attr_be32(SET_KEY_TYPE, type_id(&s.key));
    b.attr_be32(SET_KEY_LEN, length(&s.key) as u32);
    match &s.data {
        None => {}
        Some(SetData::Verdict) => {
            b.attr_be32(SET_DATA_TYPE, DATA_TYPE_VERDICT);
            b.attr_be32(SET_DATA_LEN, 0);
        }
        Some(SetData::Value(f)) => {
            b.attr_be32(SET_DATA_TYPE, type_id(f));
            b.attr_be32(SET_DATA_LEN, length(f) as u32);
        }
    }
    if ranges || s.dynamic.is_some() {
        let desc = b.open(SET_DESC);
        if let Some(size) = s.dynamic {
            b.attr_be32(DESC_SIZE, size);
        }
        if ranges {
            let concat = b.open(DESC_CONCAT);
            for f in &s.key {
                let n = b.open(LIST_ELEM);
                b.attr_be32(FIELD_LEN, f.len() as u32);
                b.close(n);
            }
            b.close(concat);
        }
        b.close(desc);
    }
    b.attr_be32(SET_ID, id);
    // What nft needs to print the elements: the byte order of keys and data.
    let mut user = vec![UDATA_KEY_BYTEORDER, 4];
    user.extend(byteorder(&s.key).to_ne_bytes());
    if let Some(d) = &s.data {
        user.extend([UDATA_DATA_BYTEORDER, 4]);
        user.extend(if let SetData::Value(f) = d { byteorder(f) } else { 0 }.to_ne_bytes());
    }
    b.attr(SET_USERDATA, &user);
    Ok(())
}

/// An element of a list, by its key alone.
pub(crate) fn key(b: &mut Builder, key: &[u8]) {
    let n = b.open(LIST_ELEM);
    expr::put_value(b, ELEM_KEY, key);
    b.close(n);
}

fn element(
    b: &mut Builder,
    key: &[u8],
    end: Option<&[u8]>,
    data: Option<&ElementData>,
    flags: u32,
    comment: Option<&str>,
) -> Result<(), Refusal> {
    let n = b.open(LIST_ELEM);
    if flags != 0 {
        b.attr_be32(ELEM_FLAGS, flags);
    }
    expr::put_value(b, ELEM_KEY, key);
    if let Some(end) = end {
        expr::put_value(b, ELEM_KEY_END, end);
    }
    match data {
        None => {}
        Some(ElementData::Value(v)) => expr::put_value(b, ELEM_DATA, v),
        Some(ElementData::Verdict(v)) => expr::put_verdict(b, ELEM_DATA, v),
    }
    if let Some(c) = comment {
        b.attr(ELEM_USERDATA, &udata_comment("an element", c)?);
    }
    b.close(n);
    Ok(())
}

/// User data with a comment (`NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_SET_ELEM_COMMENT` are both 0).
fn udata_comment(of: &str, c: &str) -> Result<Vec<u8>, Refusal> {
    if c.len() >= COMMENT_MAX {
        let message = Some(format!("the comment of {of} is longer than {} bytes", COMMENT_MAX - 1));
        return Err(Refusal { errno: libc::EINVAL, message });
    }
    // The length counts the final NUL.
    let mut user = vec![UDATA_COMMENT, (c.len() + 1) as u8];
    user.extend(c.as_bytes());
    user.push(0);
    Ok(user)
}

fn rule(b: &mut Builder, r: &Rule) -> Result<(), Refusal> {
    if let Some(Expr::Other(name)) = r.exprs.iter().find(|e| matches!(e, Expr::Other(_))) {
        let message = Some(format!("expression {name} is only observed, never made"));
        return Err(Refusal { errno: libc::EOPNOTSUPP, message });
    }
    let n = b.open(RULE_EXPRESSIONS);
    for e in &r.exprs {
        expr::put(b, e);
    }
    b.close(n);
    if let Some(c) = &r.comment {
        b.attr(RULE_USERDATA, &udata_comment("a rule", c)?);
    }
    Ok(())
}
