//! The elements of a set, packed: at tens of thousands of Services there are hundreds of thousands, and a few small
//! allocations for each would be most of what the agent takes.

use std::cmp::Ordering;
use std::fmt;

use kernel_api::nft::Verdict;

use crate::image::{Data, Key};

/// Elements, sorted by key, each key once. One buffer holds them all, 12 bytes of bookkeeping an element.
#[derive(Clone, Default)]
pub struct Elements {
    bytes: Vec<u8>,
    /// Where each record begins, in the order of the keys.
    at: Vec<u32>,
}

/// Elements in the making: in any order, and of two with one key the later counts.
pub(crate) type Pending = Elements;

/// An element where it lies.
#[derive(Clone, Copy)]
pub struct Element<'a> {
    /// The key, or the first of the range.
    pub key: &'a [u8],
    /// The last of the range.
    pub last: Option<&'a [u8]>,
    kind: u8,
    data: &'a [u8],
}

/// Bytes before a record: length of the key, kind of data with [`RANGE`], length of the data in two bytes.
const HEAD: usize = 4;
const MEMBER: u8 = 0;
const VALUE: u8 = 1;
/// A verdict: a byte for which, then the chain.
const VERDICT: u8 = 2;
const RANGE: u8 = 0x80;

fn pack(v: &Verdict) -> (u8, &str) {
    match v {
        Verdict::Accept => (0, ""),
        Verdict::Drop => (1, ""),
        Verdict::Continue => (2, ""),
        Verdict::Return => (3, ""),
        Verdict::Jump(c) => (4, c),
        Verdict::Goto(c) => (5, c),
    }
}

fn unpack(bytes: &[u8]) -> Verdict {
    let (which, chain) = bytes.split_first().unwrap_or((&1, &[]));
    let chain = || String::from_utf8_lossy(chain).into_owned();
    match which {
        0 => Verdict::Accept,
        2 => Verdict::Continue,
        3 => Verdict::Return,
        4 => Verdict::Jump(chain()),
        5 => Verdict::Goto(chain()),
        _ => Verdict::Drop,
    }
}

impl<'a> Element<'a> {
    /// Its key, to be kept.
    #[must_use]
    pub fn to_key(self) -> Key {
        Key { first: self.key.into(), last: self.last.map(Into::into) }
    }

    /// What it maps to, to be kept.
    #[must_use]
    pub fn to_data(self) -> Data {
        match self.kind {
            VALUE => Data::Value(self.data.into()),
            VERDICT => Data::Verdict(unpack(self.data)),
            _ => Data::Member,
        }
    }

    /// The bytes it maps to, if these are what it maps to.
    pub(crate) fn value(self) -> Option<&'a [u8]> {
        (self.kind == VALUE).then_some(self.data)
    }

    /// Whether both map to the same.
    pub(crate) fn same_data(self, other: Element<'_>) -> bool {
        self.kind == other.kind && self.data == other.data
    }

    pub(crate) fn cmp_key(self, other: Element<'_>) -> Ordering {
        (self.key, self.last).cmp(&(other.key, other.last))
    }
}

impl Elements {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), at: Vec::new() }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Each, by key.
    pub fn iter(&self) -> impl Iterator<Item = Element<'_>> {
        self.at.iter().map(|at| self.record(*at))
    }

    /// The element of a key that is no range.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Element<'_>> {
        let wanted = Element { key, last: None, kind: MEMBER, data: &[] };
        let n = self.at.binary_search_by(|at| self.record(*at).cmp_key(wanted)).ok()?;
        self.at.get(n).map(|at| self.record(*at))
    }

    /// Element number `n` by key.
    pub(crate) fn nth(&self, n: u32) -> Option<Element<'_>> {
        self.at.get(n as usize).map(|at| self.record(*at))
    }

    /// Only records of our own writing are read, so nothing is ever short; if it were, it would be empty.
    fn record(&self, at: u32) -> Element<'_> {
        let b = self.bytes.get(at as usize..).unwrap_or(&[]);
        let &[klen, kind, d0, d1, ref rest @ ..] = b else {
            return Element { key: &[], last: None, kind: 0, data: &[] };
        };
        let (key, rest) = rest.split_at_checked(klen.into()).unwrap_or((&[], &[]));
        let (last, rest) = match kind & RANGE {
            0 => (None, rest),
            _ => rest.split_at_checked(klen.into()).map_or((None, rest), |(l, r)| (Some(l), r)),
        };
        let data = rest.get(..usize::from(u16::from_ne_bytes([d0, d1]))).unwrap_or(&[]);
        Element { key, last, kind: kind & !RANGE, data }
    }

    fn push_raw(&mut self, key: &[u8], last: Option<&[u8]>, kind: u8, data: [&[u8]; 2]) {
        let len = data[0].len() + data[1].len();
        // The kernel's keys have at most 64 bytes, its data as many or a chain's name of 255; and 4 GiB of elements are
        // more than a kernel holds. What is beyond is no element of any table.
        let (Ok(at), Ok(klen), Ok(dlen)) =
            (u32::try_from(self.bytes.len()), u8::try_from(key.len()), u16::try_from(len))
        else {
            return;
        };
        // Of a range both ends have one length: a shorter one would be another key.
        let last = last.filter(|l| l.len() == key.len());
        let [d0, d1] = dlen.to_ne_bytes();
        self.bytes.reserve(HEAD + 2 * key.len() + len);
        self.bytes.extend([klen, kind | if last.is_some() { RANGE } else { 0 }, d0, d1]);
        for part in [key, last.unwrap_or(&[]), data[0], data[1]] {
            self.bytes.extend_from_slice(part);
        }
        self.at.push(at);
    }

    /// Puts one in; [`Elements::sort`] is to follow before anything is read.
    pub(crate) fn push(&mut self, key: &[u8], last: Option<&[u8]>, data: &Data) {
        match data {
            Data::Member => self.push_raw(key, last, MEMBER, [&[], &[]]),
            Data::Value(v) => self.push_raw(key, last, VALUE, [v, &[]]),
            Data::Verdict(v) => self.push_verdict(key, last, v),
        }
    }

    /// The same of one that maps to bytes.
    pub(crate) fn push_value(&mut self, key: &[u8], value: &[u8]) {
        self.push_raw(key, None, VALUE, [value, &[]]);
    }

    fn push_verdict(&mut self, key: &[u8], last: Option<&[u8]>, v: &Verdict) {
        let (which, chain) = pack(v);
        self.push_raw(key, last, VERDICT, [&[which], chain.as_bytes()]);
    }

    /// Puts one in as it lies elsewhere.
    pub(crate) fn push_element(&mut self, e: Element<'_>) {
        self.push_raw(e.key, e.last, e.kind, [e.data, &[]]);
    }

    /// Puts those that were pushed in their place.
    pub(crate) fn sort(&mut self) {
        let mut at = std::mem::take(&mut self.at);
        let cmp = |a: &u32, b: &u32| self.record(*a).cmp_key(self.record(*b));
        if !at.is_sorted_by(|a, b| cmp(a, b) == Ordering::Less) {
            // Records lie in the order in which they were pushed: of equals the last counts.
            at.sort_unstable_by(|a, b| cmp(a, b).then(b.cmp(a)));
            at.dedup_by(|b, a| cmp(a, b) == Ordering::Equal);
        }
        at.shrink_to_fit();
        self.at = at;
        self.bytes.shrink_to_fit();
    }
}

impl PartialEq for Elements {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|(a, b)| a.cmp_key(b) == Ordering::Equal && a.same_data(b))
    }
}

impl FromIterator<(Key, Data)> for Elements {
    fn from_iter<I: IntoIterator<Item = (Key, Data)>>(all: I) -> Self {
        let mut out = Self::default();
        for (k, d) in all {
            out.push(&k.first, k.last.as_deref(), &d);
        }
        out.sort();
        out
    }
}

impl fmt::Debug for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|e| (e.to_key(), e.to_data()))).finish()
    }
}

/// How one element differs between two sets, by its number in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Differs {
    Add(u32),
    Change { want: u32, have: u32 },
    Del(u32),
}

/// Every element that differs, by key, in one merge walk.
pub(crate) fn diff(want: &Elements, have: &Elements, mut each: impl FnMut(Differs)) {
    let (mut w, mut h) = (0, 0);
    loop {
        let of = |set: &Elements, n: u32| set.at.get(n as usize).copied();
        match (of(want, w), of(have, h)) {
            (None, None) => return,
            (Some(_), None) => (each(Differs::Add(w)), w += 1).1,
            (None, Some(_)) => (each(Differs::Del(h)), h += 1).1,
            (Some(a), Some(b)) => {
                let (a, b) = (want.record(a), have.record(b));
                match a.cmp_key(b) {
                    Ordering::Less => (each(Differs::Add(w)), w += 1).1,
                    Ordering::Greater => (each(Differs::Del(h)), h += 1).1,
                    Ordering::Equal => {
                        if !a.same_data(b) {
                            each(Differs::Change { want: w, have: h });
                        }
                        w += 1;
                        h += 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn data() -> impl Strategy<Value = Data> {
        prop_oneof![
            Just(Data::Member),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|v| Data::Value(v.into())),
            "[a-z]{0,9}".prop_map(|c| Data::Verdict(Verdict::Goto(c))),
            Just(Data::Verdict(Verdict::Drop)),
        ]
    }

    fn list() -> impl Strategy<Value = Vec<(Key, Data)>> {
        let key = (prop::collection::vec(0u8..3, 1..4), any::<bool>()).prop_map(|(k, range)| {
            let last = range.then(|| k.iter().map(|b| b ^ 1).collect());
            Key { first: k.into(), last }
        });
        prop::collection::vec((key, data()), 0..40)
    }

    proptest! {
        #[test]
        fn packed_is_a_map_and_the_difference_leads_from_one_to_the_other(a in list(), b in list()) {
            let (want, have): (Elements, Elements) = (a.iter().cloned().collect(), b.iter().cloned().collect());
            let map: BTreeMap<Key, Data> = a.iter().cloned().collect();
            let back: Vec<(Key, Data)> = want.iter().map(|e| (e.to_key(), e.to_data())).collect();
            prop_assert_eq!(&back, &map.clone().into_iter().collect::<Vec<_>>());
            for (k, d) in map.iter().filter(|(k, _)| k.last.is_none()) {
                prop_assert_eq!(want.get(&k.first).map(Element::to_data), Some(d.clone()));
            }
            let mut now: BTreeMap<Key, Data> = b.into_iter().collect();
            diff(&want, &have, |d| {
                let (add, del) = match d {
                    Differs::Add(w) => (Some(w), None),
                    Differs::Change { want, have } => (Some(want), Some(have)),
                    Differs::Del(h) => (None, Some(h)),
                };
                if let Some(e) = del.and_then(|n| have.nth(n)) {
                    assert_eq!(now.remove(&e.to_key()), Some(e.to_data()));
                }
                if let Some(e) = add.and_then(|n| want.nth(n)) {
                    assert_eq!(now.insert(e.to_key(), e.to_data()), None);
                }
            });
            prop_assert_eq!(now, map.clone());
            prop_assert_eq!(want == have, map == have.iter().map(|e| (e.to_key(), e.to_data())).collect());
        }
    }
}
