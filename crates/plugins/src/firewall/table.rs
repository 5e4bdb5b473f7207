//! The table: what it holds as a value, and the way from one to another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::ports::Owner;
use cni::{Code, Error};
use kernel_api::nft::{
    Chain, ChainKind, CmpOp, CtKey, DataType, Element, ElementData, Expr, Hook, HookPoint, LookupInto, MetaKey,
    NftRequest, PayloadBase, Reg, Rule, Set, SetData, Table, TableName, Verdict,
};
use kernel_api::{Nft, RequestError, errno};
use types::{Family, IfName};

/// Where packets come by; every other chain of the table is an administrator's.
pub(super) const FORWARD: &str = "forward";
/// Bridges that are kept apart, pairs of a bridge with itself, and who asked for it.
const ISOLATED: &str = "isolated";
const SAME: &str = "same";
const MEMBERS: &str = "members";
/// How often another may be quicker.
const TRIES: usize = 10_000;
/// `established` and `related` (`NF_CT_STATE_BIT`).
const KNOWN: u32 = 2 | 4;

/// The table.
pub(super) fn name() -> TableName {
    // The constructor accepts exactly this name; there is no other branch to take.
    TableName::recognise("seaway-firewall").unwrap_or_else(|| unreachable!("a table of ours"))
}

/// What it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Have {
    /// Addresses that may be forwarded from, and be answered.
    pub(super) accepted: BTreeMap<IpAddr, Owner>,
    /// Bridges that are kept apart, by each that asked for it.
    pub(super) members: BTreeSet<(IfName, Owner)>,
    /// Chains of administrators: asked first, never changed.
    pub(super) admins: BTreeSet<String>,
    /// Chains, sets and rules are as they should be.
    pub(super) sound: bool,
    /// The table is there.
    there: bool,
}

impl Have {
    /// Looks.
    pub(super) fn observe(nft: &mut impl Nft) -> Result<Self, RequestError> {
        Ok(Self::parse(nft.table(&name())?.as_ref()))
    }

    fn parse(table: Option<&Table>) -> Self {
        let Some(t) = table else { return Self::default() };
        let mut out = Self { there: true, ..Self::default() };
        out.admins = t.chains.iter().filter(|c| c.hook.is_none()).map(|c| c.name.clone()).collect();
        for (set, elements) in &t.elements {
            for e in elements {
                let Some(owner) = e.comment.as_deref().map(Owner::of_comment) else { continue };
                if set == MEMBERS {
                    out.members.extend(ifname(&e.key).map(|n| (n, owner)));
                } else if let Some(a) = address(&e.key).filter(|a| *set == accepted(Family::of(*a))) {
                    out.accepted.insert(a, owner);
                }
            }
        }
        let plain = |r: &Rule| Rule { handle: 0, ..r.clone() };
        let have: Vec<Rule> = t.rules.iter().filter(|r| r.chain == FORWARD).map(plain).collect();
        out.sound = t.flags == 0
            && t.chains.contains(&forward())
            && sets().iter().all(|s| t.sets.contains(s))
            && have == rules(&out.admins);
        out
    }

    /// An owner's addresses and bridge, instead of those it has.
    pub(super) fn put(&mut self, owner: &Owner, addresses: &[IpAddr], bridge: Option<&IfName>) {
        self.remove(|o| o == owner);
        // An address has one owner: one that another left behind is this one's.
        self.accepted.extend(addresses.iter().map(|a| (*a, owner.clone())));
        self.members.extend(bridge.map(|b| (b.clone(), owner.clone())));
    }

    /// Says whether there was something.
    pub(super) fn remove(&mut self, gone: impl Fn(&Owner) -> bool) -> bool {
        let before = (self.accepted.len(), self.members.len());
        self.accepted.retain(|_, o| !gone(o));
        self.members.retain(|(_, o)| !gone(o));
        before != (self.accepted.len(), self.members.len())
    }

    /// Every element by set.
    fn elements(&self) -> BTreeMap<String, BTreeMap<Vec<u8>, Element>> {
        let mut out: BTreeMap<String, BTreeMap<Vec<u8>, Element>> = BTreeMap::new();
        let mut add = |set: &str, e: Element| drop(out.entry(set.into()).or_default().insert(e.key.clone(), e));
        let of = |o: &Owner, key: Vec<u8>, data: Option<ElementData>| Element {
            comment: Some(o.as_str().into()),
            ..Element::new(key, data)
        };
        for (a, o) in &self.accepted {
            let data = ElementData::Value(o.hash().to_be_bytes().to_vec());
            add(&accepted(Family::of(*a)), of(o, octets(*a), Some(data)));
        }
        for (bridge, o) in &self.members {
            let b = padded(bridge);
            add(MEMBERS, of(o, [&b[..], &o.hash().to_be_bytes()].concat(), None));
            add(SAME, Element::new([&b[..], &b[..]].concat(), None));
            add(ISOLATED, Element::new(b, None));
        }
        out
    }

    /// From `have` to `self`.
    fn plan(&self, have: &Self) -> Vec<NftRequest> {
        let mut out = Vec::new();
        let whole = have.sound && have.admins == self.admins;
        if !whole {
            out.push(NftRequest::TableAdd(name()));
            // What is there under a name of ours may be of another kind. Administrators' rules would go with the table,
            // so it stays as long as it can.
            if have.there && !have.sound {
                out.extend(self.broken());
            }
            out.push(NftRequest::ChainAdd(name(), forward()));
            out.extend(self.admins.iter().map(|a| NftRequest::ChainAdd(name(), Chain { name: a.clone(), hook: None })));
            out.extend(sets().into_iter().map(|s| NftRequest::SetAdd(name(), s)));
            out.push(NftRequest::ChainFlush(name(), FORWARD.into()));
            out.extend(rules(&self.admins).into_iter().map(|r| NftRequest::RuleAdd(name(), r)));
        }
        let (old, new) = (have.elements(), self.elements());
        let none = BTreeMap::new();
        for s in sets() {
            let (old, new) = (old.get(&s.name).unwrap_or(&none), new.get(&s.name).unwrap_or(&none));
            let but = |a: &BTreeMap<Vec<u8>, Element>, b: &BTreeMap<Vec<u8>, Element>| -> Vec<Element> {
                a.iter().filter(|(k, e)| b.get(*k) != Some(*e)).map(|(_, e)| e.clone()).collect()
            };
            let (away, more) = (but(old, new), but(new, old));
            if have.sound && !away.is_empty() {
                out.push(NftRequest::ElementsDel(name(), s.name.clone(), away));
            }
            let more = if have.sound { more } else { new.values().cloned().collect() };
            if !more.is_empty() {
                out.push(NftRequest::ElementsAdd(name(), s.name.clone(), more));
            }
        }
        out
    }

    /// Empties what is not sound, as far as it is there: the rest of the transaction makes it anew.
    fn broken(&self) -> Vec<NftRequest> {
        let chain = NftRequest::ChainAdd(name(), forward());
        let mut out = vec![chain, NftRequest::ChainFlush(name(), FORWARD.into())];
        for s in sets() {
            let set = s.name.clone();
            out.extend([NftRequest::SetAdd(name(), s), NftRequest::SetFlush(name(), set)]);
        }
        out
    }
}

/// Changes what is there; `edit` says whether something is to be done, and may be asked again.
pub(super) fn change(nft: &mut impl Nft, mut edit: impl FnMut(&mut Have) -> bool) -> Result<(), Error> {
    for _ in 0..TRIES {
        let generation = nft.generation()?;
        let have = Have::observe(nft)?;
        let mut want = have.clone();
        let requests = if edit(&mut want) { want.plan(&have) } else { Vec::new() };
        if requests.is_empty() {
            return Ok(());
        }
        match nft.commit_at(generation, &requests) {
            Err(e) if e.errno == errno::ERESTART => {}
            // Perhaps only the answer was lost.
            Err(e) => return if want.plan(&Have::observe(nft)?).is_empty() { Ok(()) } else { Err(e.into()) },
            Ok(()) => return Ok(()),
        }
    }
    Err(Error::new(Code::TryAgainLater, format!("table inet {} is changed by others all the time; try again", name())))
}

fn accepted(family: Family) -> String {
    format!("accepted{}", if family == Family::V4 { 4 } else { 6 })
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn padded(n: &IfName) -> Vec<u8> {
    let mut b = n.as_str().as_bytes().to_vec();
    b.resize(16, 0);
    b
}

fn ifname(key: &[u8]) -> Option<IfName> {
    let name = key.get(..16)?.split(|b| *b == 0).next()?;
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn forward() -> Chain {
    let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority: 0, drop: false };
    Chain { name: FORWARD.into(), hook: Some(hook) }
}

fn sets() -> Vec<Set> {
    use DataType::{IfName, Ipv4Addr, Ipv6Addr, Mark};
    let set = |name: &str, key: Vec<DataType>, data: Option<SetData>| Set { data, ..Set::new(name, key) };
    let hash = || Some(SetData::Value(vec![Mark, Mark]));
    vec![
        set(&accepted(Family::V4), vec![Ipv4Addr], hash()),
        set(&accepted(Family::V6), vec![Ipv6Addr], hash()),
        set(ISOLATED, vec![IfName], None),
        set(SAME, vec![IfName, IfName], None),
        set(MEMBERS, vec![IfName, Mark, Mark], None),
    ]
}

fn rules(admins: &BTreeSet<String>) -> Vec<Rule> {
    let rule = |exprs: Vec<Expr>| Rule { chain: FORWARD.into(), handle: 0, exprs, comment: None };
    let look = |set: &str, invert| Expr::Lookup { set: set.into(), sreg: Reg(0), into: LookupInto::Nothing, invert };
    let meta = |key, dreg| Expr::Meta { key, dreg };
    let mut out: Vec<Rule> = admins.iter().map(|a| rule(vec![Expr::Verdict(Verdict::Jump(a.clone()))])).collect();
    out.push(rule(vec![
        meta(MetaKey::IifName, Reg(0)),
        look(ISOLATED, false),
        meta(MetaKey::OifName, Reg(0)),
        look(ISOLATED, false),
        meta(MetaKey::IifName, Reg(0)),
        meta(MetaKey::OifName, Reg(4)),
        look(SAME, true),
        Expr::Verdict(Verdict::Drop),
    ]));
    for f in Family::BOTH {
        let (proto, saddr, daddr, len) = if f == Family::V4 { (2, 12, 16, 4) } else { (10, 8, 24, 16) };
        let load = |offset| Expr::Payload { base: PayloadBase::Network, offset, len, dreg: Reg(0) };
        let of = || vec![meta(MetaKey::NfProto, Reg(0)), Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![proto] }];
        let known = vec![
            Expr::Ct { key: CtKey::State, dreg: Reg(0) },
            Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask: KNOWN.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, data: vec![0; 4] },
        ];
        let accept = |offset| vec![load(offset), look(&accepted(f), false), Expr::Verdict(Verdict::Accept)];
        out.push(rule([of(), known, accept(daddr)].concat()));
        out.push(rule([of(), accept(saddr)].concat()));
    }
    out
}
