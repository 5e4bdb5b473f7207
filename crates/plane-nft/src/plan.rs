//! What brings one image to another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::Endpoint;
use plan::diff;
use types::{Family, Proto};

use crate::image::{Chain, Data, Image, Key, Set, Shape};
use crate::key::{KeyBytes, KeyReader};
use crate::layout::{LOCAL_SLOT, NODE_SETS, VIP_SETS, in_family};
use crate::op::{Forget, Op, RuleText};
use crate::render;

/// The most ops of one transaction, where atomicity lets it be several. About 1 MB of netlink.
pub(crate) const MAX_OPS: usize = 8192;

/// See [`plan::Dataplane::plan`].
pub(crate) fn plan(want: &Image, have: &Image) -> Vec<Vec<Op>> {
    plan_chunked(want, have, MAX_OPS)
}

/// The elements of one Service port at one address, or at one port of the node: they change in one transaction. Address
/// bytes are empty for a port of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FrontKey {
    v6: bool,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Changes {
    del: Vec<Op>,
    add: Vec<Op>,
}

impl Changes {
    fn len(&self) -> usize {
        self.del.len() + self.add.len()
    }

    fn append(&mut self, mut other: Changes) {
        self.del.append(&mut other.del);
        self.add.append(&mut other.add);
    }

    /// Deletes first, since a changed element is a delete and an add; by set, so that requests are few and full.
    fn into_ops(mut self) -> Vec<Op> {
        let set = |op: &Op| match op {
            Op::ElementAdd(s, ..) | Op::ElementDel(s, ..) => s.clone(),
            _ => String::new(),
        };
        self.del.sort_by_cached_key(set);
        self.add.sort_by_cached_key(set);
        self.del.append(&mut self.add);
        self.del
    }
}

pub(crate) fn plan_chunked(want: &Image, have: &Image, max: usize) -> Vec<Vec<Op>> {
    if !want.present {
        return if have.present { vec![vec![Op::TableDel]] } else { Vec::new() };
    }
    let nothing = Image::default();
    // A set or a base chain cannot be changed in its kind, nor a table be woken: the whole table is replaced, in one
    // transaction, so that packets see the old one or the new one.
    let rebuild = have.present && !same_kinds(want, have);
    let from = if rebuild { &nothing } else { have };

    let mut first = Vec::new();
    if rebuild {
        first.push(Op::TableDel);
    }
    if !from.present {
        first.push(Op::TableAdd);
    }
    // Make before use: chains, then sets (whose verdicts name chains), then rules (which name both), then elements.
    let chains = diff(&want.chains, &from.chains);
    first.extend(chains.add.iter().map(|(name, c)| Op::ChainAdd((*name).clone(), c.hook)));
    let mut last = Vec::new();
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
    let mut batches = Vec::new();
    if from.present && !first.is_empty() {
        // A packet stays with the rules of the generation in which it came to its hook, but each lookup is in the
        // generation of its moment (`nft_do_chain`, `nft_lookup_eval`). One that meets an element of the new generation
        // half way must find rules in the chain that it leads to, or it goes on untranslated, and so does all of its
        // flow: so new chains have a transaction of their own, before whatever leads to them.
        batches.push(std::mem::take(&mut first));
    }
    // A rule that is not ours may name what is to go, so its chain is emptied before anything is deleted.
    first.extend(chains.change.iter().map(|(name, ..)| Op::ChainFlush((*name).clone())));
    first.extend(chains.change.iter().flat_map(|(name, c, _)| rules(name, c)));
    let leaving = chains.del.iter().map(|(name, _)| Op::ChainFlush((*name).clone()));

    let (stale, mut marks) = stale(want, have, from);
    let mut fronts: BTreeMap<FrontKey, Changes> = BTreeMap::new();
    let mut late = Changes::default();
    let empty = BTreeMap::new();
    for (name, set) in &want.sets {
        let (base, v6) = base_name(name);
        // What waits to be forgotten is below; what rules put in is theirs.
        if base == "stale" || set.shape.dynamic.is_some() {
            continue;
        }
        let old = from.sets.get(name).map_or(&empty, |s| &s.elements);
        let d = diff(&set.elements, old);
        let del = |k: &Key| Op::ElementDel(name.clone(), set.shape.clone(), k.clone());
        let add = |k: &Key, v: &Data| Op::ElementAdd(name.clone(), set.shape.clone(), k.clone(), v.clone());
        let front = |k: &Key| front_of(base, v6, &k.first);
        // What is of no Service port alone is added before and deleted after those that need it; except ranges, which
        // must not overlap meanwhile.
        for (k, v) in d.add {
            front(k).map_or(&mut marks, |f| fronts.entry(f).or_default()).add.push(add(k, v));
        }
        for (k, v, _) in d.change {
            let to = front(k).map_or(&mut marks, |f| fronts.entry(f).or_default());
            to.del.push(del(k));
            to.add.push(add(k, v));
        }
        for (k, _) in d.del {
            let misc = if set.shape.interval { &mut marks } else { &mut late };
            front(k).map_or(misc, |f| fronts.entry(f).or_default()).del.push(del(k));
        }
    }
    // Stop using before break: elements that name a chain go before the chain, sets after the rules that name them.
    last.extend(late.into_ops());
    last.extend(leaving);
    last.extend(from.sets.keys().filter(|n| !want.sets.contains_key(*n)).map(|n| Op::SetDel(n.clone())));
    last.extend(chains.del.iter().map(|(name, _)| Op::ChainDel((*name).clone())));

    let total = first.len() + marks.len() + last.len() + fronts.values().map(Changes::len).sum::<usize>();
    let mut batch = marks;
    let mut opening = first;
    if total > max && !rebuild {
        for (_, changes) in fronts {
            if opening.len() + batch.len() + changes.len() > max && batch.len() + opening.len() > 0 {
                opening.extend(std::mem::take(&mut batch).into_ops());
                batches.push(std::mem::take(&mut opening));
            }
            batch.append(changes);
        }
    } else {
        fronts.into_values().for_each(|c| batch.append(c));
    }
    opening.extend(batch.into_ops());
    opening.extend(last);
    batches.push(opening);
    batches.push(forget(want, stale));
    batches.retain(|b| !b.is_empty());
    batches
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

/// Which Service port's an element is, by the bytes of its key.
fn front_of(base: &str, v6: bool, key: &[u8]) -> Option<FrontKey> {
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
    Some(FrontKey { v6, bytes: key.get(skip..skip + len)?.to_vec() })
}

/// An address and port that clients send to.
type To = (IpAddr, Proto, u16);

/// The UDP and SCTP fronts whose connections must be looked at once the rules are in, and the marks that say so in the
/// kernel: an element of `stale` is there from the transaction that makes connections stale until they are forgotten,
/// so that a crash in between loses nothing.
fn stale(want: &Image, have: &Image, from: &Image) -> (BTreeSet<To>, Changes) {
    let mut out = BTreeSet::new();
    let mut marks = Changes::default();
    for family in Family::BOTH {
        let set = |name: &str| in_family(name, family);
        let mut touched: BTreeSet<To> = BTreeSet::new();
        let own = addresses(want, have, family);
        for (base, vip) in [("services", true), ("endpoints", true), ("nodeports", false), ("node_endpoints", false)] {
            let skip = if base.ends_with("endpoints") { 4 } else { 0 };
            changed(want, have, &set(base), |key| {
                let Some(mut r) = key.get(skip..).map(KeyReader::new) else { return };
                if vip {
                    touched.extend(to(&mut r, family));
                } else if let (Some(proto), Some(port)) = (r.proto(), r.port()) {
                    touched.extend(own.iter().map(|a| (*a, proto, port)));
                }
            });
        }
        // After another number their keys have the first half of the Service's.
        for base in ["sticky_slots", "sticky_endpoints", "local_sticky_endpoints"] {
            let mut ids = BTreeSet::new();
            changed(want, have, &set(base), |key| ids.extend(key.get(4..8).and_then(number_of)));
            for image in [want, have] {
                touched.extend(sticky_fronts(image, family, &own, &ids));
            }
        }
        touched.retain(|t| t.1 != Proto::Tcp && goes_stale(&served(want, *t), &served(have, *t)));
        let Some(shape) = want.sets.get(&set("stale")).map(|s| s.shape.clone()) else { continue };
        let waiting = have.sets.get(&set("stale")).filter(|s| s.shape == shape);
        let marked = |k: &Key, image: &Image| {
            image.sets.get(&set("stale")).is_some_and(|s| s.shape == shape && s.elements.contains_key(k))
        };
        touched.extend(waiting.iter().flat_map(|s| s.elements.keys()).filter_map(|k| {
            let mut r = KeyReader::new(&k.first);
            to(&mut r, family)
        }));
        for t in touched {
            let key = stale_key(t);
            if !marked(&key, from) {
                marks.add.push(Op::ElementAdd(set("stale"), shape.clone(), key, Data::Member));
            }
            out.insert(t);
        }
        // What others put there and is no front.
        let no_front = |k: &&Key| to(&mut KeyReader::new(&k.first), family).is_none_or(|t| stale_key(t) != **k);
        let foreign = from.sets.get(&set("stale")).into_iter().flat_map(|s| s.elements.keys()).filter(no_front);
        marks.del.extend(foreign.map(|k| Op::ElementDel(set("stale"), shape.clone(), k.clone())));
    }
    (out, marks)
}

fn stale_key((addr, proto, port): To) -> Key {
    Key::one(KeyBytes::new().addr(addr).proto(proto).port(port).done())
}

fn to(r: &mut KeyReader<'_>, family: Family) -> Option<To> {
    Some((r.addr(family)?, r.proto()?, r.port()?))
}

/// A number as a register holds it.
fn number_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number that a map gives.
fn number_at(image: &Image, set: &str, family: Family, key: Vec<u8>) -> Option<u32> {
    match image.get(&in_family(set, family), key)? {
        Data::Value(v) => number_of(v),
        _ => None,
    }
}

/// Where the Services of these numbers, by their first halves, are reached.
fn sticky_fronts(image: &Image, family: Family, own: &BTreeSet<IpAddr>, ids: &BTreeSet<u32>) -> Vec<To> {
    let mut out = Vec::new();
    for (base, vip) in [("sticky_a", true), ("sticky_node_a", false)] {
        let set = image.sets.get(&in_family(base, family)).filter(|_| !ids.is_empty());
        for (key, data) in set.iter().flat_map(|s| &s.elements) {
            if !matches!(data, Data::Value(v) if number_of(v).is_some_and(|id| ids.contains(&id))) {
                continue;
            }
            let mut r = KeyReader::new(&key.first);
            if vip {
                out.extend(to(&mut r, family));
            } else if let (Some(proto), Some(port)) = (r.proto(), r.port()) {
                out.extend(own.iter().map(|a| (*a, proto, port)));
            }
        }
    }
    out
}

/// The endpoints that a Service of session affinity is translated to at one place, whichever the policy.
fn served_sticky(image: &Image, family: Family, fronts: [&str; 2], key: &[u8], proto: Proto) -> BTreeSet<Endpoint> {
    let [Some(a), Some(b)] = fronts.map(|set| number_at(image, set, family, key.to_vec())) else {
        return BTreeSet::new();
    };
    let mut out = BTreeSet::new();
    for local in [0, LOCAL_SLOT] {
        let slots = (0..LOCAL_SLOT).map_while(|slot| {
            let key = KeyBytes::new().mark(types::Mark::OURS.0 | local | slot).mark(a).mark(b).done();
            number_at(image, "sticky_slots", family, key)
        });
        let set = in_family(if local == 0 { "sticky_endpoints" } else { "local_sticky_endpoints" }, family);
        out.extend(slots.filter_map(|endpoint| {
            match image.get(&set, KeyBytes::new().mark(endpoint).mark(a).mark(b).proto(proto).done()) {
                Some(Data::Value(v)) => endpoint_of(v, family),
                _ => None,
            }
        }));
    }
    out
}

fn endpoint_of(bytes: &[u8], family: Family) -> Option<Endpoint> {
    let mut r = KeyReader::new(bytes);
    Some(Endpoint { addr: r.addr(family)?, port: r.port()? })
}

/// The node's addresses for node ports in either image.
fn addresses(want: &Image, have: &Image, family: Family) -> BTreeSet<IpAddr> {
    [want, have]
        .into_iter()
        .filter_map(|i| i.sets.get(&in_family("node_port_addresses", family)))
        .flat_map(|s| s.elements.keys())
        .filter_map(|k| KeyReader::new(&k.first).addr(family))
        .collect()
}

/// Calls `each` with the key of every element that differs.
fn changed(want: &Image, have: &Image, set: &str, mut each: impl FnMut(&[u8])) {
    let empty = BTreeMap::new();
    let of = |s: Option<&Set>, shape: Option<&Arc<Shape>>| s.filter(|s| Some(&s.shape) == shape).is_some();
    let w = want.sets.get(set);
    let shape = w.map(|s| &s.shape);
    let h = have.sets.get(set);
    let have = if of(h, shape) { h.map_or(&empty, |s| &s.elements) } else { &empty };
    let d = diff(w.map_or(&empty, |s| &s.elements), have);
    d.add.iter().for_each(|(k, _)| each(&k.first));
    d.change.iter().for_each(|(k, ..)| each(&k.first));
    d.del.iter().for_each(|(k, _)| each(&k.first));
}

/// The endpoints that an image translates to at one place.
fn served(image: &Image, (addr, proto, port): To) -> BTreeSet<Endpoint> {
    let family = Family::of(addr);
    let mut out = BTreeSet::new();
    let vip = |m: u32| KeyBytes::new().mark(m).addr(addr).proto(proto).port(port).done();
    let node = |m: u32| KeyBytes::new().mark(m).proto(proto).port(port).done();
    let own = image.get(&in_family("node_port_addresses", family), KeyBytes::new().addr(addr).done()).is_some();
    for local in [0, LOCAL_SLOT] {
        for (set, key, counts) in [("endpoints", &vip as &dyn Fn(u32) -> Vec<u8>, true), ("node_endpoints", &node, own)]
        {
            if !counts {
                continue;
            }
            let mark = types::Mark::OURS.0 | local;
            let values = (0..LOCAL_SLOT).map_while(|slot| match image.get(&in_family(set, family), key(mark | slot)) {
                Some(Data::Value(v)) => Some(v),
                _ => None,
            });
            out.extend(values.filter_map(|v| endpoint_of(v, family)));
        }
    }
    let (vip, node) = (KeyBytes::new().addr(addr).proto(proto).port(port), KeyBytes::new().proto(proto).port(port));
    out.extend(served_sticky(image, family, ["sticky_a", "sticky_b"], &vip.done(), proto));
    if own {
        out.extend(served_sticky(image, family, ["sticky_node_a", "sticky_node_b"], &node.done(), proto));
    }
    out
}

/// Connections go stale when an endpoint goes, and when translation begins: those made before go to nobody.
fn goes_stale(want: &BTreeSet<Endpoint>, have: &BTreeSet<Endpoint>) -> bool {
    !have.is_subset(want) || (have.is_empty() && !want.is_empty())
}

/// After the commit: forget, then take the marks away.
fn forget(want: &Image, stale: BTreeSet<To>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut unmark = Vec::new();
    for t in stale {
        let (addr, proto, port) = t;
        ops.push(Op::Forget(Forget { proto, to: (addr, port), keep: served(want, t) }));
        let set = in_family("stale", Family::of(addr));
        if let Some(s) = want.sets.get(&set) {
            unmark.push(Op::ElementDel(set, s.shape.clone(), stale_key(t)));
        }
    }
    ops.extend(unmark);
    ops
}
