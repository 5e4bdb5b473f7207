//! Connections that a change leaves without their endpoint: which are looked at, and the marks that outlive a crash.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use intent::Endpoint;
use types::{Family, Proto};

use crate::elements::{self, Differs, Element, Elements};
use crate::image::{Data, Image, Key};
use crate::key::{KeyBytes, KeyReader, endpoint_of};
use crate::layout::{LOCAL_SLOT, in_family};
use crate::op::{Forget, Op};
use crate::plan::Changes;

/// An address and port that clients send to.
pub(crate) type To = (IpAddr, Proto, u16);

/// The UDP and SCTP fronts whose connections must be looked at once the rules are in, and the marks that say so in the
/// kernel: an element of `stale` is there from the transaction that makes connections stale until they are forgotten,
/// so that a crash in between loses nothing.
pub(crate) fn marks(want: &Image, have: &Image, from: &Image) -> (BTreeSet<To>, Changes) {
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
                    touched.extend(to(&mut r, family).filter(|t| t.1 != Proto::Tcp));
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
        let name: Arc<str> = set("stale").into();
        let marked = |k: &Key, image: &Image| {
            image.sets.get(&set("stale")).is_some_and(|s| s.shape == shape && s.elements.get(&k.first).is_some())
        };
        let of = |key: &[u8]| to(&mut KeyReader::new(key), family);
        touched.extend(waiting.iter().flat_map(|s| s.elements.iter()).filter_map(|e| of(e.key)));
        for t in touched {
            let key = stale_key(t);
            if !marked(&key, from) {
                marks.add.push(Op::ElementAdd(name.clone(), shape.clone(), key, Data::Member));
            }
            out.insert(t);
        }
        // What others put there and is no front.
        let no_front = |k: &Key| of(&k.first).is_none_or(|t| stale_key(t) != *k);
        let there = from.sets.get(&*name).into_iter().flat_map(|s| s.elements.iter());
        let foreign = there.map(Element::to_key).filter(no_front);
        marks.del.extend(foreign.map(|k| Op::ElementDel(name.clone(), shape.clone(), k)));
    }
    (out, marks)
}

fn stale_key((addr, proto, port): To) -> Key {
    KeyBytes::new().addr(addr).proto(proto).port(port).key()
}

fn to(r: &mut KeyReader<'_>, family: Family) -> Option<To> {
    Some((r.addr(family)?, r.proto()?, r.port()?))
}

/// A number as a register holds it.
fn number_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number that a map gives.
fn number_at(image: &Image, set: &str, family: Family, key: &[u8]) -> Option<u32> {
    image.get(&in_family(set, family), key)?.value().and_then(number_of)
}

/// Where the Services of these numbers, by their first halves, are reached.
fn sticky_fronts(image: &Image, family: Family, own: &BTreeSet<IpAddr>, ids: &BTreeSet<u32>) -> Vec<To> {
    let mut out = Vec::new();
    for (base, vip) in [("sticky_a", true), ("sticky_node_a", false)] {
        let set = image.sets.get(&in_family(base, family)).filter(|_| !ids.is_empty());
        for e in set.iter().flat_map(|s| s.elements.iter()) {
            if !e.value().and_then(number_of).is_some_and(|id| ids.contains(&id)) {
                continue;
            }
            let mut r = KeyReader::new(e.key);
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
    let [Some(a), Some(b)] = fronts.map(|set| number_at(image, set, family, key)) else {
        return BTreeSet::new();
    };
    let mut out = BTreeSet::new();
    for local in [0, LOCAL_SLOT] {
        let slots = (0..LOCAL_SLOT).map_while(|slot| {
            let key = KeyBytes::new().mark(types::Mark::OURS.0 | local | slot).mark(a).mark(b);
            number_at(image, "sticky_slots", family, &key)
        });
        let set = in_family(if local == 0 { "sticky_endpoints" } else { "local_sticky_endpoints" }, family);
        out.extend(slots.filter_map(|endpoint| {
            let key = KeyBytes::new().mark(endpoint).mark(a).mark(b).proto(proto);
            image.get(&set, &key)?.value().and_then(|v| endpoint_of(v, family))
        }));
    }
    out
}

/// The node's addresses for node ports in either image.
fn addresses(want: &Image, have: &Image, family: Family) -> BTreeSet<IpAddr> {
    [want, have]
        .into_iter()
        .filter_map(|i| i.sets.get(&in_family("node_port_addresses", family)))
        .flat_map(|s| s.elements.iter())
        .filter_map(|e| KeyReader::new(e.key).addr(family))
        .collect()
}

/// Calls `each` with the key of every element that differs.
fn changed(want: &Image, have: &Image, set: &str, mut each: impl FnMut(&[u8])) {
    static NONE: Elements = Elements::new();
    let (w, h) = (want.sets.get(set), have.sets.get(set));
    let shape = w.map(|s| &s.shape);
    let have = h.filter(|s| Some(&s.shape) == shape).map_or(&NONE, |s| &s.elements);
    let want = w.map_or(&NONE, |s| &s.elements);
    elements::diff(want, have, |d| {
        let e = match d {
            Differs::Add(n) | Differs::Change { want: n, .. } => want.nth(n),
            Differs::Del(n) => have.nth(n),
        };
        each(e.map_or(&[], |e| e.key));
    });
}

/// The endpoints that an image translates to at one place.
fn served(image: &Image, (addr, proto, port): To) -> BTreeSet<Endpoint> {
    let family = Family::of(addr);
    let mut out = BTreeSet::new();
    let vip = |m: u32| KeyBytes::new().mark(m).addr(addr).proto(proto).port(port);
    let node = |m: u32| KeyBytes::new().mark(m).proto(proto).port(port);
    let own = image.get(&in_family("node_port_addresses", family), &KeyBytes::new().addr(addr)).is_some();
    for local in [0, LOCAL_SLOT] {
        for (set, key, counts) in
            [("endpoints", &vip as &dyn Fn(u32) -> KeyBytes, true), ("node_endpoints", &node, own)]
        {
            if !counts {
                continue;
            }
            let mark = types::Mark::OURS.0 | local;
            let name = in_family(set, family);
            let values = (0..LOCAL_SLOT).map_while(|slot| image.get(&name, &key(mark | slot))?.value());
            out.extend(values.filter_map(|v| endpoint_of(v, family)));
        }
    }
    let (vip, node) = (KeyBytes::new().addr(addr).proto(proto).port(port), KeyBytes::new().proto(proto).port(port));
    out.extend(served_sticky(image, family, ["sticky_a", "sticky_b"], &vip, proto));
    if own {
        out.extend(served_sticky(image, family, ["sticky_node_a", "sticky_node_b"], &node, proto));
    }
    out
}

/// Connections go stale when an endpoint goes, and when translation begins: those made before go to nobody.
fn goes_stale(want: &BTreeSet<Endpoint>, have: &BTreeSet<Endpoint>) -> bool {
    !have.is_subset(want) || (have.is_empty() && !want.is_empty())
}

/// After the commit: forget, then take the marks away.
pub(crate) fn forget(want: &Image, stale: BTreeSet<To>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut unmark = Vec::new();
    for t in stale {
        let (addr, proto, port) = t;
        ops.push(Op::Forget(Forget { proto, to: (addr, port), keep: served(want, t) }));
        let set = in_family("stale", Family::of(addr));
        if let Some(s) = want.sets.get(&set) {
            unmark.push(Op::ElementDel(set.into(), s.shape.clone(), stale_key(t)));
        }
    }
    ops.extend(unmark);
    ops
}
