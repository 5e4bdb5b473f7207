//! The table as a value, and the way from one to another.

use std::collections::{BTreeMap, BTreeSet};

use ipam::PortMapping;
use kernel_api::nft::{Element, ElementData, Expr, NftRequest, Rule, Table};
use std::net::IpAddr;

use super::layout::{SetName, always, chains, rules, table};
use super::owner::Owner;
use super::want::{Clash, Item, Ports, read};
use super::when::When;

/// Key, data and owner of elements, by set.
type Elements = BTreeMap<SetName, BTreeMap<Vec<u8>, Held>>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    data: Vec<u8>,
    owner: Option<Owner>,
}

/// What the table holds, or is to hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Image {
    elements: Elements,
    conditions: Vec<When>,
    /// What is there of chains, sets and rules; nothing when the table is not there or is not usable.
    frame: Option<Frame>,
}

/// Chains, sets and rules as they are, so far as they are as they should be.
#[derive(Debug, Clone, PartialEq, Default)]
struct Frame {
    chains: BTreeSet<String>,
    sets: BTreeSet<SetName>,
    /// By chain.
    rules: BTreeMap<String, Vec<Rule>>,
}

impl Image {
    /// Reads the table. What of it is not of our making is not in the image; a table that others bent so that it cannot
    /// be put right is read for its elements, and made anew by the next plan.
    #[must_use]
    pub fn parse(have: Option<&Table>) -> Self {
        let Some(t) = have else { return Self::default() };
        let mut out = Self::default();
        let mut frame = Frame::default();
        let mut sound = t.flags == 0;
        for c in &t.chains {
            match chains().iter().find(|w| w.name == c.name) {
                Some(w) if w == c => drop(frame.chains.insert(c.name.clone())),
                _ => sound = false,
            }
        }
        for s in &t.sets {
            match s.name.parse::<SetName>() {
                Ok(name) if name.set() == *s => drop(frame.sets.insert(name)),
                _ => sound = false,
            }
        }
        let known = |set: &String| set.parse().ok().filter(|n| frame.sets.contains(n));
        for (name, elements) in t.elements.iter().filter_map(|(set, e)| known(set).map(|n| (n, e))) {
            out.hold(name, elements);
        }
        for r in &t.rules {
            out.conditions.extend(When::observed(r));
            frame.rules.entry(r.chain.clone()).or_default().push(Rule { handle: 0, ..r.clone() });
        }
        out.conditions.sort();
        out.conditions.dedup();
        out.frame = sound.then_some(frame);
        out
    }

    fn hold(&mut self, set: SetName, elements: &[Element]) {
        self.elements.entry(set).or_default().extend(elements.iter().map(|e| (e.key.clone(), held(e))));
    }

    /// Adds elements that were read by themselves.
    pub(super) fn add(&mut self, elements: &[(SetName, Vec<Element>)]) {
        elements.iter().filter(|(_, e)| !e.is_empty()).for_each(|(set, e)| self.hold(*set, e));
    }

    /// What takes an owner's elements away and leaves everything else as it is.
    pub(super) fn removal(&self, owner: &Owner) -> Vec<NftRequest> {
        let own = |set: SetName, all: &BTreeMap<Vec<u8>, Held>| -> Vec<Element> {
            let own = all.iter().filter(|(_, h)| h.owner.as_ref() == Some(owner));
            own.map(|(k, h)| element(set, k, h)).collect()
        };
        let sets = self.elements.iter().map(|(set, all)| (set, own(*set, all))).filter(|(_, e)| !e.is_empty());
        sets.map(|(set, e)| NftRequest::ElementsDel(table(), set.to_string(), e)).collect()
    }

    /// Gives a container exactly these mappings, instead of those it has.
    ///
    /// # Errors
    /// When another container has one of the ports. One that leads to the very address of this container is of one
    /// that is gone: an address has one owner.
    pub fn put(&mut self, ports: &Ports<'_>) -> Result<(), Box<Clash>> {
        let items = ports.items();
        // One port asked for twice, to lead to two ports inside.
        for (a, b) in items.iter().zip(items.iter().skip(1)) {
            if (a.set, &a.key) == (b.set, &b.key)
                && let Some((m, _)) = read(a.set, &a.key, &a.data)
            {
                let port = types::PortKey { proto: m.proto, port: m.host_port };
                return Err(Box::new(Clash { host_ip: m.host_ip, port, holder: ports.owner.clone() }));
            }
        }
        for i in &items {
            let Some(there) = self.elements.get(&i.set).and_then(|s| s.get(&i.key)) else { continue };
            let Some(owner) = there.owner.as_ref().filter(|o| **o != ports.owner) else { continue };
            if let Some((m, to)) = read(i.set, &i.key, &there.data)
                && to != i.to
            {
                let port = types::PortKey { proto: m.proto, port: m.host_port };
                return Err(Box::new(Clash { host_ip: m.host_ip, port, holder: owner.clone() }));
            }
        }
        self.remove(|o| *o == ports.owner);
        for Item { set, key, data, .. } in items {
            self.elements.entry(set).or_default().insert(key, Held { data, owner: Some(ports.owner.clone()) });
        }
        for w in ports.when {
            if self.conditions.iter().all(|c| c.number() != w.number()) {
                self.conditions.push(w.clone());
                self.conditions.sort();
            }
        }
        Ok(())
    }

    /// Takes away what the owners that `gone` accepts have; says whether there was something.
    pub fn remove(&mut self, mut gone: impl FnMut(&Owner) -> bool) -> bool {
        let mut some = false;
        for set in self.elements.values_mut() {
            let before = set.len();
            set.retain(|_, h| !h.owner.as_ref().is_some_and(&mut gone));
            some |= set.len() != before;
        }
        some
    }

    /// What a container lacks, or has otherwise, as text; empty when all is there.
    #[must_use]
    pub fn lacks(&self, ports: &Ports<'_>) -> Vec<String> {
        let mut out = Vec::new();
        for i in ports.items() {
            let want = Held { data: i.data, owner: Some(ports.owner.clone()) };
            let have = self.elements.get(&i.set).and_then(|s| s.get(&i.key));
            let what = || match read(i.set, &i.key, &want.data) {
                Some((m, to)) => format!("{m} to {to}"),
                None => format!("masquerading in set {}", i.set),
            };
            match have {
                Some(h) if *h == want => {}
                None => out.push(format!("{} is missing", what())),
                Some(Held { owner: Some(o), .. }) if *o != ports.owner => {
                    out.push(format!("{} is of container {o}", what()));
                }
                Some(_) => out.push(format!("{} leads elsewhere", what())),
            }
        }
        let mut ours = self.clone();
        let sets: BTreeSet<SetName> = ports.items().iter().map(|i| i.set).collect();
        for s in sets {
            ours.elements.entry(s).or_default();
        }
        out.extend(ours.frame_requests().1);
        out
    }

    /// The mappings of the owners that `of` accepts, with the address each leads to.
    pub fn mappings(&self, mut of: impl FnMut(&Owner) -> bool) -> Vec<(PortMapping, IpAddr)> {
        let all = self.elements.iter().flat_map(|(set, all)| all.iter().map(move |(key, h)| (set, key, h)));
        let ours = all.filter(|(_, _, h)| h.owner.as_ref().is_some_and(&mut of));
        ours.filter_map(|(set, key, h)| read(*set, key, &h.data)).collect()
    }

    /// Every owner.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<Owner> {
        self.elements.values().flat_map(BTreeMap::values).filter_map(|h| h.owner.clone()).collect()
    }

    /// From `have` to `self`, as one transaction; nothing when they are the same.
    #[must_use]
    pub fn plan(&self, have: &Self) -> Vec<NftRequest> {
        let mut to = self.clone();
        to.frame.clone_from(&have.frame);
        let had = if have.frame.is_some() { &have.elements } else { &Elements::new() };
        let (mut out, _) = to.frame_requests();
        let none = BTreeMap::new();
        let names: BTreeSet<SetName> = to.elements.keys().chain(had.keys()).copied().collect();
        for name in names {
            let (old, new) = (had.get(&name).unwrap_or(&none), to.elements.get(&name).unwrap_or(&none));
            let differing = |from: &BTreeMap<Vec<u8>, Held>, other: &BTreeMap<Vec<u8>, Held>| -> Vec<Element> {
                from.iter().filter(|(k, h)| other.get(*k) != Some(*h)).map(|(k, h)| element(name, k, h)).collect()
            };
            // Away first: one key cannot be there twice.
            let (away, new) = (differing(old, new), differing(new, old));
            if !away.is_empty() {
                out.push(NftRequest::ElementsDel(table(), name.to_string(), away));
            }
            if !new.is_empty() {
                out.push(NftRequest::ElementsAdd(table(), name.to_string(), new));
            }
        }
        out
    }

    /// What makes chains, sets and rules as they should be, and what is not so, as text.
    fn frame_requests(&self) -> (Vec<NftRequest>, Vec<String>) {
        let t = table;
        let (mut out, mut says) = (Vec::new(), Vec::new());
        let empty = Frame::default();
        let have = match &self.frame {
            Some(f) => f,
            None => {
                says.push(format!("table inet {} is missing or not as it was made", t()));
                // A table of that name that is there, though not as it should be.
                out.extend([NftRequest::TableAdd(t()), NftRequest::TableDel(t()), NftRequest::TableAdd(t())]);
                &empty
            }
        };
        let missing = chains().into_iter().filter(|c| !have.chains.contains(&c.name));
        out.extend(missing.map(|c| NftRequest::ChainAdd(t(), c)));
        let sets: BTreeSet<SetName> =
            always().into_iter().chain(self.elements.keys().copied()).chain(have.sets.iter().copied()).collect();
        out.extend(sets.difference(&have.sets).map(|s| NftRequest::SetAdd(t(), s.set())));
        let mut want: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for r in rules(&sets, &self.conditions) {
            want.entry(r.chain.clone()).or_default().push(r);
        }
        for c in chains() {
            let (want, had) = (want.remove(&c.name).unwrap_or_default(), have.rules.get(&c.name));
            if had.map_or(&[][..], Vec::as_slice) == want {
                continue;
            }
            if self.frame.is_some() {
                says.push(format!("the rules of chain inet {} {} are not as they were made", t(), c.name));
            }
            if had.is_some() {
                out.push(NftRequest::ChainFlush(t(), c.name.clone()));
            }
            out.extend(want.into_iter().map(|r| NftRequest::RuleAdd(t(), r)));
        }
        (out, says)
    }
}

fn held(e: &Element) -> Held {
    let data = match &e.data {
        Some(ElementData::Value(v)) => v.clone(),
        _ => Vec::new(),
    };
    Held { data, owner: e.comment.as_deref().map(Owner::of_comment) }
}

fn element(set: SetName, key: &[u8], h: &Held) -> Element {
    let data = (!matches!(set, SetName::Near(..))).then(|| ElementData::Value(h.data.clone()));
    let comment = h.owner.as_ref().map(|o| o.as_str().to_owned());
    Element { comment, ..Element::new(key.to_vec(), data) }
}

/// The expressions of a condition in a rule of ours: what is between the family and the lookup.
pub(super) fn between(r: &Rule) -> Option<(SetName, &[Expr])> {
    let set: SetName = r.exprs.iter().find_map(|e| match e {
        Expr::Lookup { set, .. } => set.parse().ok(),
        _ => None,
    })?;
    // Family: two. At the end: protocol, port, lookup, translation, and the address before them.
    let tail = match set {
        SetName::Bound(_, Some(_)) => 5,
        SetName::Any(_, Some(_)) => 4,
        _ => return None,
    };
    let end = r.exprs.len().checked_sub(tail)?;
    Some((set, r.exprs.get(2..end)?))
}
