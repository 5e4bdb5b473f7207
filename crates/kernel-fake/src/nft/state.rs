//! One table and what each request does to it.

use std::collections::BTreeMap;

use kernel_api::errno;
use kernel_api::nft::{
    Chain, ChainKind, DataType, Element, ElementData, Expr, Hook, HookPoint, LookupInto, NftRequest, Rule, Set,
    SetData, Table, Verdict,
};

use super::rules;

/// `NFT_NAME_MAXLEN` without the final NUL.
const NAME_MAX: usize = 255;
/// `NFT_DATA_VALUE_MAXLEN`: all registers.
const VALUE_MAX: usize = 64;
/// `NFT_USERDATA_MAXLEN` leaves this for a comment, as `nft` does.
const COMMENT_MAX: usize = 128;

/// A key and the end of its range.
type ElementKey = (Vec<u8>, Option<Vec<u8>>);

/// What an element maps to, and its comment.
type Held = (Option<ElementData>, Option<String>);

/// One set with its elements.
#[derive(Debug, Clone)]
pub(super) struct SetState {
    pub set: Set,
    elements: BTreeMap<ElementKey, Held>,
}

/// One table.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    flags: u32,
    pub chains: Vec<Chain>,
    pub sets: BTreeMap<String, SetState>,
    pub rules: Vec<Rule>,
}

impl State {
    pub fn dump(&self) -> Table {
        Table {
            flags: self.flags,
            chains: self.chains.clone(),
            sets: self.sets.values().map(|s| s.set.clone()).collect(),
            elements: self
                .sets
                .iter()
                .map(|(n, s)| (n.clone(), if s.set.dynamic.is_some() { Vec::new() } else { s.list() }))
                .collect(),
            rules: self.rules.clone(),
        }
    }

    pub fn elements(&self, set: &str) -> Vec<Element> {
        self.sets.get(set).map(SetState::list).unwrap_or_default()
    }

    pub fn load(t: Table) -> Self {
        let mut sets: BTreeMap<String, SetState> =
            t.sets.into_iter().map(|s| (s.name.clone(), SetState { set: s, elements: BTreeMap::new() })).collect();
        for (name, elements) in t.elements {
            if let Some(s) = sets.get_mut(&name) {
                s.elements.extend(elements.into_iter().map(|e| ((e.key, e.key_end), (e.data, e.comment))));
            }
        }
        Self { flags: t.flags, chains: t.chains, sets, rules: t.rules }
    }

    /// Takes over what packets put into dynamic sets that are the same in both.
    pub fn keep_dynamic(&mut self, mut old: Self) {
        for (name, s) in self.sets.iter_mut().filter(|(_, s)| s.set.dynamic.is_some()) {
            if let Some(was) = old.sets.remove(name).filter(|o| o.set == s.set) {
                s.elements = was.elements;
            }
        }
    }

    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }

    /// Whether a rule or an element leads to the chain.
    fn leads_to(&self, chain: &str) -> bool {
        let to = |v: &Verdict| matches!(v, Verdict::Jump(c) | Verdict::Goto(c) if c == chain);
        self.rules.iter().flat_map(|r| &r.exprs).any(|e| matches!(e, Expr::Verdict(v) if to(v)))
            || self.verdicts().any(to)
    }

    fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.sets.values().flat_map(SetState::verdicts)
    }

    /// What a verdict must hold to be named: the chain is there and hangs on no hook.
    pub fn check_verdict(&self, v: &Verdict) -> Result<(), i32> {
        match v {
            Verdict::Jump(c) | Verdict::Goto(c) => match self.chain(c) {
                None => Err(errno::ENOENT),
                Some(c) if c.hook.is_some() => Err(errno::EOPNOTSUPP),
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

impl SetState {
    fn list(&self) -> Vec<Element> {
        let element = |((key, key_end), (data, comment)): (&ElementKey, &Held)| Element {
            key: key.clone(),
            key_end: key_end.clone(),
            data: data.clone(),
            comment: comment.clone(),
        };
        self.elements.iter().map(element).collect()
    }

    pub fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.elements.values().filter_map(|(d, _)| match d {
            Some(ElementData::Verdict(v)) => Some(v),
            _ => None,
        })
    }

    pub fn key_len(&self) -> usize {
        padded(&self.set.key)
    }
}

pub(super) fn padded(fields: &[DataType]) -> usize {
    match fields {
        [one] => one.len(),
        many => many.iter().map(|t| t.padded()).sum(),
    }
}

fn check_name(name: &str) -> Result<(), i32> {
    match name.len() {
        0 => Err(errno::EINVAL),
        1..=NAME_MAX => Ok(()),
        _ => Err(errno::ERANGE),
    }
}

/// Runs one request on a table that may not be there.
pub(super) fn apply(slot: &mut Option<State>, request: &NftRequest, handle: u64) -> Result<(), i32> {
    match request {
        NftRequest::TableAdd(_) => {
            slot.get_or_insert_default();
            return Ok(());
        }
        NftRequest::TableDel(_) => return slot.take().map(|_| ()).ok_or(errno::ENOENT),
        _ => {}
    }
    let t = slot.as_mut().ok_or(errno::ENOENT)?;
    match request {
        NftRequest::TableAdd(_) | NftRequest::TableDel(_) => Ok(()),
        NftRequest::ChainAdd(_, c) => chain_add(t, c),
        NftRequest::ChainDel(_, name) => {
            t.chain(name).ok_or(errno::ENOENT)?;
            // Its own rules go with it; nothing else may lead to it.
            t.rules.retain(|r| r.chain != *name);
            if t.leads_to(name) {
                return Err(errno::EBUSY);
            }
            t.chains.retain(|c| c.name != *name);
            Ok(())
        }
        NftRequest::ChainFlush(_, name) => {
            t.chain(name).ok_or(errno::ENOENT)?;
            t.rules.retain(|r| r.chain != *name);
            Ok(())
        }
        NftRequest::SetAdd(_, s) => set_add(t, s),
        NftRequest::SetDel(_, name) => {
            if !t.sets.contains_key(name) {
                return Err(errno::ENOENT);
            }
            let names = |e: &Expr| matches!(e, Expr::Lookup { set, .. } if set == name);
            if t.rules.iter().flat_map(|r| &r.exprs).any(names) {
                return Err(errno::EBUSY);
            }
            t.sets.remove(name);
            Ok(())
        }
        NftRequest::ElementsAdd(_, name, elements) => elements.iter().try_for_each(|e| element_add(t, name, e)),
        NftRequest::ElementsDel(_, name, elements) => {
            let s = t.sets.get_mut(name).ok_or(errno::ENOENT)?;
            elements.iter().try_for_each(|e| {
                let key = element_key(s, e)?;
                s.elements.remove(&key).map(|_| ()).ok_or(errno::ENOENT)
            })
        }
        NftRequest::SetFlush(_, name) => {
            t.sets.get_mut(name).ok_or(errno::ENOENT)?.elements.clear();
            Ok(())
        }
        NftRequest::RuleAdd(_, r) => {
            t.chain(&r.chain).ok_or(errno::ENOENT)?;
            if r.comment.as_ref().is_some_and(|c| c.len() > COMMENT_MAX) {
                return Err(errno::EINVAL);
            }
            rules::check(t, r)?;
            t.rules.push(Rule { handle, ..r.clone() });
            Ok(())
        }
        NftRequest::RuleDel(_, chain, handle) => {
            t.chain(chain).ok_or(errno::ENOENT)?;
            let at = t.rules.iter().position(|r| r.chain == *chain && r.handle == *handle);
            t.rules.remove(at.ok_or(errno::ENOENT)?);
            Ok(())
        }
    }
}

fn chain_add(t: &mut State, c: &Chain) -> Result<(), i32> {
    check_name(&c.name)?;
    if let Some(h) = c.hook {
        check_hook(h)?;
    }
    match t.chain(&c.name) {
        // A base chain's policy may be changed so; its place may not. Without a hook nothing is asked of it.
        Some(old) => match (old.hook, c.hook) {
            (_, None) => Ok(()),
            (Some(a), Some(b)) if (a.kind, a.point, a.priority) == (b.kind, b.point, b.priority) => {
                let drop = b.drop;
                let chain = t.chains.iter_mut().find(|x| x.name == c.name);
                if let Some(h) = chain.and_then(|x| x.hook.as_mut()) {
                    h.drop = drop;
                }
                Ok(())
            }
            _ => Err(errno::EOPNOTSUPP),
        },
        None => {
            t.chains.push(c.clone());
            Ok(())
        }
    }
}

/// `nft_chain_parse_hook`: the hooks of each type; nat needs conntrack before it.
fn check_hook(h: Hook) -> Result<(), i32> {
    let ok = match h.kind {
        ChainKind::Filter => true,
        ChainKind::Nat => h.point != HookPoint::Forward && h.priority > -200,
        ChainKind::Route => h.point == HookPoint::Output,
    };
    if ok { Ok(()) } else { Err(errno::EOPNOTSUPP) }
}

fn set_add(t: &mut State, s: &Set) -> Result<(), i32> {
    check_name(&s.name)?;
    let value = match &s.data {
        Some(SetData::Value(v)) => padded(v),
        _ => 1,
    };
    if s.key.is_empty() || padded(&s.key) > VALUE_MAX || !(1..=VALUE_MAX).contains(&value) {
        return Err(errno::EINVAL);
    }
    match t.sets.get(&s.name) {
        Some(old) if old.set == *s => Ok(()),
        Some(_) => Err(errno::EEXIST),
        None => {
            t.sets.insert(s.name.clone(), SetState { set: s.clone(), elements: BTreeMap::new() });
            Ok(())
        }
    }
}

fn element_key(s: &SetState, e: &Element) -> Result<ElementKey, i32> {
    let len = s.key_len();
    if e.key.len() != len || e.key_end.as_ref().is_some_and(|k| k.len() != len) {
        return Err(errno::EINVAL);
    }
    match (&e.key_end, s.set.interval) {
        (Some(_), false) => Err(errno::EINVAL),
        // A range of one.
        (None, true) => Ok((e.key.clone(), Some(e.key.clone()))),
        (end, _) => Ok((e.key.clone(), end.clone())),
    }
}

fn element_add(t: &mut State, name: &str, e: &Element) -> Result<(), i32> {
    let s = t.sets.get(name).ok_or(errno::ENOENT)?;
    let key = element_key(s, e)?;
    match (&s.set.data, &e.data) {
        (None, None) => {}
        (Some(SetData::Value(types)), Some(ElementData::Value(v))) if v.len() == padded(types) => {}
        (Some(SetData::Verdict), Some(ElementData::Verdict(v))) => t.check_verdict(v)?,
        _ => return Err(errno::EINVAL),
    }
    if e.comment.as_ref().is_some_and(|c| c.len() >= COMMENT_MAX) {
        return Err(errno::EINVAL);
    }
    match s.elements.get(&key) {
        Some((old, _)) if *old == e.data => return Ok(()),
        Some(_) => return Err(errno::EEXIST),
        None => {}
    }
    if s.set.interval && s.elements.keys().any(|old| overlap(&s.set.key, old, &key)) {
        return Err(errno::EEXIST);
    }
    if let Some(s) = t.sets.get_mut(name) {
        s.elements.insert(key, (e.data.clone(), e.comment.clone()));
    }
    Ok(())
}

/// Whether two ranges share a key, in every field.
fn overlap(types: &[DataType], a: &ElementKey, b: &ElementKey) -> bool {
    let mut at = 0;
    types.iter().all(|t| {
        let field = at..at + t.len();
        at += t.padded();
        let part = |k: &Vec<u8>| k.get(field.clone()).map(<[u8]>::to_vec).unwrap_or_default();
        let last = |k: &ElementKey| k.1.as_ref().map_or_else(|| part(&k.0), part);
        part(&a.0) <= last(b) && part(&b.0) <= last(a)
    })
}

/// What a lookup may do with a set.
pub(super) fn check_lookup(s: &SetState, into: LookupInto, invert: bool) -> Result<usize, i32> {
    match (&s.set.data, into) {
        // Of a map too: whether the key is there.
        (_, LookupInto::Nothing) => Ok(0),
        (Some(SetData::Verdict), LookupInto::Verdict) if !invert => Ok(0),
        (Some(SetData::Value(v)), LookupInto::Reg(_)) if !invert => Ok(padded(v)),
        _ => Err(errno::EINVAL),
    }
}
