//! What brings one image to another, transaction by transaction, each made when it is asked for: what is held of a plan
//! is a few bytes an element.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use plan::diff;

use crate::elements::{self, Differs, Elements};
use crate::image::{Chain, Image, Set};
use crate::layout::{NODE_SETS, VIP_SETS};
use crate::op::{Op, RuleText};
use crate::render;
use crate::stale;

/// The most ops of one transaction, where atomicity lets it be several. About 1 MB of netlink.
pub(crate) const MAX_OPS: usize = 8192;

/// Sets, named without family, each of whose elements means something without any other: they may be added in several
/// transactions.
const EARLY: [&str; 2] = ["cluster_ips", "hairpin"];

/// Deletes and adds of one transaction.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) del: Vec<Op>,
    pub(crate) add: Vec<Op>,
}

impl Changes {
    fn len(&self) -> usize {
        self.del.len() + self.add.len()
    }

    /// Deletes first, since a changed element is a delete and an add; by set, so that requests are few and full.
    fn into_ops(mut self) -> Vec<Op> {
        let set = |op: &Op| match op {
            Op::ElementAdd(s, ..) | Op::ElementDel(s, ..) => Some(s.clone()),
            _ => None,
        };
        self.del.sort_by_cached_key(set);
        self.add.sort_by_cached_key(set);
        self.del.append(&mut self.add);
        self.del
    }
}

/// One set in both images.
struct Pair<'a> {
    name: Arc<str>,
    set: &'a Set,
    have: &'a Elements,
    /// Where the bytes that say which Service port an element is of begin in its key, and how many they are.
    front: Option<(usize, usize)>,
    v6: bool,
}

/// An element that differs.
#[derive(Clone, Copy)]
struct Step {
    /// Which of the pairs.
    set: u8,
    how: Differs,
}

/// The transactions, in order.
pub(crate) struct Batches<'a> {
    pairs: Vec<Pair<'a>>,
    max: usize,
    /// The first transaction: new chains and sets of a table that is there.
    chains: Vec<Op>,
    /// Ops that begin the next transaction.
    opening: Vec<Op>,
    /// What is of no Service port alone and must be added before those that need it.
    early: std::vec::IntoIter<Step>,
    /// By Service port and address, or node port: what differs there changes in one transaction.
    fronts: Vec<Step>,
    /// How many of these are done.
    at: usize,
    /// What is of no Service port alone and is deleted after those that needed it.
    late: std::iter::Peekable<std::vec::IntoIter<Step>>,
    /// Of the first transaction.
    marks: Changes,
    /// The end of the last that changes rules.
    closing: Vec<Op>,
    /// After that.
    forget: Vec<Op>,
    done: bool,
}

/// See [`plan::Dataplane::plan`].
pub(crate) fn batches<'a>(want: &'a Image, have: &'a Image, max: usize) -> Batches<'a> {
    let mut out = Batches {
        pairs: Vec::new(),
        max,
        chains: Vec::new(),
        opening: Vec::new(),
        early: Vec::new().into_iter(),
        fronts: Vec::new(),
        at: 0,
        late: Vec::new().into_iter().peekable(),
        marks: Changes::default(),
        closing: Vec::new(),
        forget: Vec::new(),
        done: false,
    };
    if !want.present {
        out.opening.extend(have.present.then_some(Op::TableDel));
        return out;
    }
    // A set or a base chain cannot be changed in its kind, nor a table be woken: the whole table is replaced, in one
    // transaction, so that packets see the old one or the new one.
    let rebuild = have.present && !same_kinds(want, have);
    // As long as the plan, which is as long as what is wanted.
    static NOTHING: Image = Image { present: false, flags: 0, chains: BTreeMap::new(), sets: BTreeMap::new() };
    let from = if rebuild { &NOTHING } else { have };
    if rebuild {
        out.opening.push(Op::TableDel);
        out.max = usize::MAX;
    }
    out.rules(want, from);
    let (fronts, marks) = stale::marks(want, have, from);
    out.marks = marks;
    out.elements(want, from);
    out.forget = stale::forget(want, fronts);
    out
}

impl<'a> Batches<'a> {
    /// Everything but elements.
    fn rules(&mut self, want: &Image, from: &Image) {
        let first = &mut self.opening;
        if !from.present {
            first.push(Op::TableAdd);
        }
        // Make before use: chains, then sets (whose verdicts name chains), then rules (which name both), then elements.
        let chains = diff(&want.chains, &from.chains);
        first.extend(chains.add.iter().map(|(name, c)| Op::ChainAdd((*name).clone(), c.hook)));
        for (name, set) in &want.sets {
            if !from.sets.contains_key(name) {
                first.push(Op::SetAdd(name.clone(), set.shape.clone()));
            }
        }
        let rules = |name: &String, chain: &Chain| -> Vec<Op> {
            let text = |r| RuleText(render::rule(r, &|set| want.sets.get(set).map(|s| s.shape.key.clone())));
            chain.rules.iter().map(|r| Op::RuleAdd(name.clone(), r.clone(), text(r))).collect()
        };
        first.extend(chains.add.iter().flat_map(|(name, c)| rules(name, c)));
        if from.present {
            // A packet stays with the rules of the generation in which it came to its hook, but each lookup is in the
            // generation of its moment (`nft_do_chain`, `nft_lookup_eval`). One that meets an element of the new
            // generation half way must find rules in the chain that it leads to, or it goes on untranslated, and so does
            // all of its flow: so new chains have a transaction of their own, before whatever leads to them.
            self.chains = std::mem::take(first);
        }
        // A rule that is not ours may name what is to go, so its chain is emptied before anything is deleted.
        first.extend(chains.change.iter().map(|(name, ..)| Op::ChainFlush((*name).clone())));
        first.extend(chains.change.iter().flat_map(|(name, c, _)| rules(name, c)));
        // Stop using before break: elements that name a chain go before the chain, sets after the rules that name them.
        let leaving = chains.del.iter().map(|(name, _)| Op::ChainFlush((*name).clone()));
        self.closing.extend(leaving);
        let gone = from.sets.keys().filter(|n| !want.sets.contains_key(*n));
        self.closing.extend(gone.map(|n| Op::SetDel(n.clone())));
        self.closing.extend(chains.del.iter().map(|(name, _)| Op::ChainDel((*name).clone())));
    }

    /// The elements that differ, each where it belongs.
    fn elements(&mut self, want: &'a Image, from: &'a Image) {
        static NONE: Elements = Elements::new();
        let (mut early, mut fronts, mut late) = (Vec::new(), Vec::new(), Vec::new());
        for (name, set) in &want.sets {
            let (base, v6) = base_name(name);
            // What waits to be forgotten is not planned here; what rules put in is theirs.
            if base == "stale" || set.shape.dynamic.is_some() {
                continue;
            }
            let have = from.sets.get(name).map_or(&NONE, |s| &s.elements);
            let front = front_of(base, v6);
            // The layout has a few dozen sets, and others' in our table are not wanted.
            let number = u8::try_from(self.pairs.len()).unwrap_or(u8::MAX);
            let pair = Pair { name: name.as_str().into(), set, have, front, v6 };
            elements::diff(&set.elements, have, |how| {
                let step = Step { set: number, how };
                // What is of no Service port alone is added before and deleted after those that need it: all that
                // is added or changed at once, but for what may be many and stands alone. Ranges must not overlap
                // meanwhile.
                match (pair.front_key(how), how) {
                    (Some(_), _) => fronts.push(step),
                    (None, Differs::Add(_)) if EARLY.contains(&base) => early.push(step),
                    (None, Differs::Del(_)) if !set.shape.interval => late.push(step),
                    _ => pair.ops(how, &mut self.marks),
                }
            });
            self.pairs.push(pair);
        }
        let key = |s: &Step| self.pairs.get(usize::from(s.set)).and_then(|p| p.front_key(s.how));
        fronts.sort_by(|a, b| key(a).cmp(&key(b)));
        let all = self.opening.len() + self.marks.len() + early.len() + late.len() + self.closing.len();
        // All in one, where that is not too long.
        if all + fronts.len() <= self.max {
            self.max = usize::MAX;
        }
        self.early = early.into_iter();
        self.fronts = fronts;
        self.late = late.into_iter().peekable();
    }

    fn ops(&self, step: Step, into: &mut Changes) {
        if let Some(p) = self.pairs.get(usize::from(step.set)) {
            p.ops(step.how, into);
        }
    }

    fn same_front(&self, a: Step, b: Step) -> bool {
        let key = |s: Step| self.pairs.get(usize::from(s.set)).and_then(|p| p.front_key(s.how));
        key(a).cmp(&key(b)) == Ordering::Equal
    }

    /// The next transaction, which may be empty; whether it was the last that changes rules.
    fn fill(&mut self) -> (Vec<Op>, bool) {
        let mut opening = std::mem::take(&mut self.opening);
        let mut batch = std::mem::take(&mut self.marks);
        let full = |batch: &Changes| opening.len() + batch.len() >= self.max;
        while !full(&batch)
            && let Some(step) = self.early.next()
        {
            self.ops(step, &mut batch);
        }
        let begun = opening.len();
        while self.early.len() == 0
            && let Some(first) = self.fronts.get(self.at)
        {
            let rest = self.fronts.get(self.at..).unwrap_or(&[]);
            let together = rest.iter().take_while(|s| self.same_front(*first, **s)).count();
            let mut group = Changes::default();
            rest.iter().take(together).for_each(|s| self.ops(*s, &mut group));
            // What belongs together is never split, so a transaction may be longer.
            if begun + batch.len() + group.len() > self.max && begun + batch.len() > 0 {
                break;
            }
            batch.del.append(&mut group.del);
            batch.add.append(&mut group.add);
            self.at += together;
        }
        let fronts = self.fronts.len() - self.at;
        while self.early.len() == 0
            && fronts == 0
            && begun + batch.len() < self.max
            && let Some(step) = self.late.next()
        {
            self.ops(step, &mut batch);
        }
        opening.extend(batch.into_ops());
        let last = self.early.len() == 0 && fronts == 0 && self.late.peek().is_none();
        if last {
            opening.append(&mut self.closing);
        }
        (opening, last)
    }
}

impl Iterator for Batches<'_> {
    type Item = Vec<Op>;

    fn next(&mut self) -> Option<Vec<Op>> {
        if !self.chains.is_empty() {
            return Some(std::mem::take(&mut self.chains));
        }
        while !self.done {
            let (batch, last) = self.fill();
            self.done = last;
            if !batch.is_empty() {
                return Some(batch);
            }
        }
        let forget = std::mem::take(&mut self.forget);
        (!forget.is_empty()).then_some(forget)
    }
}

impl Pair<'_> {
    fn key(&self, how: Differs) -> &[u8] {
        let e = match how {
            Differs::Add(n) | Differs::Change { want: n, .. } => self.set.elements.nth(n),
            Differs::Del(n) => self.have.nth(n),
        };
        e.map_or(&[], |e| e.key)
    }

    /// Which Service port's an element is: the family, and the bytes of its address, protocol and port; of a port of the
    /// node without address.
    fn front_key(&self, how: Differs) -> Option<(bool, &[u8])> {
        let (skip, len) = self.front?;
        Some((self.v6, self.key(how).get(skip..skip + len)?))
    }

    fn ops(&self, how: Differs, into: &mut Changes) {
        let (name, shape) = (&self.name, &self.set.shape);
        let add = |n: u32| {
            let e = self.set.elements.nth(n)?;
            Some(Op::ElementAdd(name.clone(), shape.clone(), e.to_key(), e.to_data()))
        };
        let del = |n: u32| Some(Op::ElementDel(name.clone(), shape.clone(), self.have.nth(n)?.to_key()));
        match how {
            Differs::Add(n) => into.add.extend(add(n)),
            Differs::Del(n) => into.del.extend(del(n)),
            Differs::Change { want, have } => {
                into.del.extend(del(have));
                into.add.extend(add(want));
            }
        }
    }
}

/// Whether everything that is in both images is of the same kind, so that contents can be changed in place.
fn same_kinds(want: &Image, have: &Image) -> bool {
    want.flags == have.flags
        && want.chains.iter().all(|(n, c)| have.chains.get(n).is_none_or(|h| h.hook == c.hook))
        && want.sets.iter().all(|(n, s)| have.sets.get(n).is_none_or(|h| h.shape == s.shape))
}

/// A set's name without its family digit, and whether that is 6.
fn base_name(name: &str) -> (&str, bool) {
    match name.strip_suffix('6') {
        Some(base) => (base, true),
        None => (name.strip_suffix('4').unwrap_or(name), false),
    }
}

/// Where in the key of a set's elements it says which Service port they are of.
fn front_of(base: &str, v6: bool) -> Option<(usize, usize)> {
    let vip = VIP_SETS.contains(&base);
    if !vip && !NODE_SETS.contains(&base) {
        return None;
    }
    let skip = if matches!(base, "endpoints" | "node_endpoints") { 4 } else { 0 };
    let len = if !vip {
        8
    } else if v6 {
        24
    } else {
        12
    };
    Some((skip, len))
}
