//! From a dump of the table to the image.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernel_api::nft::{Element, ElementData, Table};

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
        image.sets.insert(s.name.clone(), Set { shape: Arc::new(shape), elements: BTreeMap::new() });
    }
    for (name, elements) in &table.elements {
        let Some(set) = image.sets.get_mut(name) else { continue };
        let shape = set.shape.clone();
        set.elements.extend(self::elements(elements, &shape));
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

/// A set that lives and dies with a rule, named by the kernel (`__set%d`, `__map%d`). We write none; the rule that has
/// one is not ours and goes, and the set with it.
fn is_anonymous(name: &str) -> bool {
    ["__set", "__map"]
        .iter()
        .any(|p| name.strip_prefix(p).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())))
}
