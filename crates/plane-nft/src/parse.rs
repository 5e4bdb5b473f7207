//! From a dump of the table to the image.

use std::sync::Arc;

use kernel_api::nft::{self, DataRef, Element, ElementData, Table};

use crate::elements::{Elements, Pending};
use crate::image::{Chain, Data, Image, Key, Rule, Set, Shape};

/// The image of a dumped table; of none, the image of a node where this mode is off.
#[must_use]
pub fn parse(table: Option<&Table>) -> Image {
    let Some(table) = table else { return Image::default() };
    let mut image = Image { present: true, flags: table.flags, ..Image::default() };
    for c in &table.chains {
        image.chains.insert(c.name.clone(), Chain { hook: c.hook, rules: Vec::new() });
    }
    for r in &table.rules {
        let rule = Rule { exprs: r.exprs.clone(), comment: r.comment.clone() };
        image.chains.entry(r.chain.clone()).or_default().rules.push(rule);
    }
    for s in table.sets.iter().filter(|s| !is_anonymous(&s.name)) {
        let shape = Shape {
            key: s.key.clone(),
            data: s.data.clone(),
            interval: s.interval,
            timeout: s.timeout,
            constant: s.constant,
            dynamic: s.dynamic,
        };
        image.sets.insert(s.name.clone(), Set { shape: Arc::new(shape), elements: Elements::default() });
    }
    // Of a table that was read piece by piece there are none here: see `put`.
    for (name, elements) in &table.elements {
        let Some(set) = image.sets.get_mut(name) else { continue };
        set.elements = self::elements(elements, &set.shape).collect();
    }
    image
}

/// The elements of a set of this shape.
pub(crate) fn elements<'a>(list: &'a [Element], shape: &'a Shape) -> impl Iterator<Item = (Key, Data)> + 'a {
    list.iter().map(|e| {
        // A range of one address may come without its end.
        let last = shape.interval.then(|| e.key_end.as_ref().unwrap_or(&e.key).as_slice().into());
        let key = Key { first: e.key.as_slice().into(), last };
        let data = match &e.data {
            None => Data::Member,
            Some(ElementData::Value(v)) => Data::Value(v.as_slice().into()),
            Some(ElementData::Verdict(v)) => Data::Verdict(v.clone()),
        };
        (key, data)
    })
}

/// An element of a table that is read piece by piece.
pub(crate) fn put(into: &mut Pending, set: &nft::Set, key: &[u8], key_end: Option<&[u8]>, data: Option<DataRef<'_>>) {
    // A range of one address may come without its end.
    let last = set.interval.then(|| key_end.unwrap_or(key));
    match data {
        None => into.push(key, last, &Data::Member),
        Some(DataRef::Value(v)) if last.is_none() => into.push_value(key, v),
        Some(DataRef::Value(v)) => into.push(key, last, &Data::Value(v.into())),
        Some(DataRef::Verdict(v)) => into.push(key, last, &Data::Verdict(v)),
    }
}

/// A set that lives and dies with a rule, named by the kernel (`__set%d`, `__map%d`). We write none; the rule that has
/// one is not ours and goes, and the set with it.
fn is_anonymous(name: &str) -> bool {
    ["__set", "__map"]
        .iter()
        .any(|p| name.strip_prefix(p).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())))
}
