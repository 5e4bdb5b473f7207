//! Masquerading of what containers send out of their networks: one nf_tables table for all of them. Nothing in it but
//! elements depends on a container.
//!
//! `source4` and `source6` map each masqueraded address to a hash of its owner; the element's comment says who that is.
//! `near4_24` and the like hold pairs of an address and its own network of that prefix length: what goes there stays as
//! it is, and so does multicast. An ADD adds elements without reading anything; when somebody else has the address, or
//! the table is not there yet, the kernel refuses, and only then the table is read. The table goes with its last
//! element.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel_api::nft::{
    Chain, ChainKind, CmpOp, DataType, Element, ElementData, Expr, Hook, HookPoint, LookupInto, MetaKey, NftRequest,
    PayloadBase, Reg, Rule, Set, SetData, Table, TableName, Verdict,
};
use kernel_api::{Nft, RequestError, errno};
use types::Family;

use crate::ports::Owner;
use crate::{Code, Error, IpNet};

/// `srcnat`.
const SRCNAT: i32 = 100;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (include/uapi/linux/netfilter/nf_nat.h).
const RANDOM_FULLY: u32 = 16;
/// How often another may be quicker.
const TRIES: usize = 10_000;
const CHAIN: &str = "postrouting";

/// The table.
#[must_use]
pub fn table() -> TableName {
    // The constructor accepts exactly this name; there is no other branch to take.
    TableName::recognise("seaway-masq").unwrap_or_else(|| unreachable!("a table of ours"))
}

/// Masquerades what these addresses send to elsewhere than their own networks. An address that another owner left
/// behind is this owner's from now on.
///
/// # Errors
/// When the kernel refuses; then nothing has changed.
pub fn claim(nft: &mut impl Nft, owner: &Owner, addresses: &[IpNet]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    match nft.commit(&additions(owner, addresses)) {
        Ok(()) => return Ok(()),
        Err(e) if matches!(e.errno, errno::ENOENT | errno::EEXIST) => {}
        Err(e) => return Err(e.into()),
    }
    edit(nft, |have| {
        let mut out = vec![NftRequest::TableAdd(table())];
        let mut lens = have.map(lengths).unwrap_or_default();
        let known = lens.len();
        lens.extend(addresses.iter().map(|a| (Family::of(a.addr), a.len)));
        if have.is_none_or(|t| t.rules.is_empty()) || lens.len() != known {
            out.extend(frame(&lens));
        }
        let ours: Vec<IpAddr> = addresses.iter().map(|a| a.addr).collect();
        out.extend(have.into_iter().flat_map(|t| removals(t, |a, _| ours.contains(&a)).0));
        out.extend(additions(owner, addresses));
        out
    })
}

/// Masquerades an owner's addresses no longer.
///
/// # Errors
/// When the kernel refuses.
pub fn release(nft: &mut impl Nft, owner: &Owner) -> Result<(), Error> {
    remove(nft, |o| o == owner)
}

/// Masquerades the addresses of a network no longer whose owners are not `valid`.
///
/// # Errors
/// When the kernel refuses.
pub fn sweep(nft: &mut impl Nft, network: &str, valid: &[Owner]) -> Result<(), Error> {
    remove(nft, |o| o.is_of(network) && !valid.contains(o))
}

/// Which of an owner's addresses are not masqueraded.
///
/// # Errors
/// When the table cannot be read.
pub fn lacks(nft: &mut impl Nft, owner: &Owner, addresses: &[IpNet]) -> Result<Vec<IpAddr>, RequestError> {
    let have = nft.table(&table())?;
    let has = |a: IpAddr| have.iter().flat_map(sources).any(|(s, o)| s == a && o == *owner);
    Ok(addresses.iter().map(|a| a.addr).filter(|a| !has(*a)).collect())
}

fn edit(nft: &mut impl Nft, plan: impl Fn(Option<&Table>) -> Vec<NftRequest>) -> Result<(), Error> {
    for _ in 0..TRIES {
        let generation = nft.generation()?;
        let requests = plan(nft.table(&table())?.as_ref());
        if requests.is_empty() {
            return Ok(());
        }
        match nft.commit_at(generation, &requests) {
            Err(e) if e.errno == errno::ERESTART => {}
            done => return Ok(done?),
        }
    }
    let says = format!("table inet {} is changed by others all the time; try again", table());
    Err(Error::new(Code::TryAgainLater, says))
}

fn remove(nft: &mut impl Nft, gone: impl Fn(&Owner) -> bool) -> Result<(), Error> {
    edit(nft, |have| {
        let Some(t) = have else { return Vec::new() };
        let (out, left) = removals(t, |_, o| gone(o));
        if !out.is_empty() && !left { vec![NftRequest::TableDel(table())] } else { out }
    })
}

/// Every masqueraded address with its owner.
fn sources(t: &Table) -> impl Iterator<Item = (IpAddr, Owner)> {
    let of = |(name, list): &'_ (String, Vec<Element>)| name.starts_with("source").then(|| list.clone());
    t.elements.iter().filter_map(of).flatten().filter_map(|e| {
        let addr = address(&e.key)?;
        Some((addr, Owner::of_comment(e.comment.as_deref().unwrap_or_default())))
    })
}

/// What takes the addresses away for which `gone` says so, and whether any are left.
fn removals(t: &Table, gone: impl Fn(IpAddr, &Owner) -> bool) -> (Vec<NftRequest>, bool) {
    let away: BTreeSet<IpAddr> = sources(t).filter(|(a, o)| gone(*a, o)).map(|(a, _)| a).collect();
    let mut out = Vec::new();
    for (name, list) in &t.elements {
        let first = |e: &Element| address(e.key.get(..if name.contains('4') { 4 } else { 16 })?);
        let of: Vec<Element> = list.iter().filter(|e| first(e).is_some_and(|a| away.contains(&a))).cloned().collect();
        if !of.is_empty() {
            out.push(NftRequest::ElementsDel(table(), name.clone(), of));
        }
    }
    (out, sources(t).any(|(a, _)| !away.contains(&a)))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn bytes(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

const fn digit(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

fn source(family: Family) -> String {
    format!("source{}", digit(family))
}

fn near(family: Family, len: u8) -> String {
    format!("near{}_{len}", digit(family))
}

/// The prefix lengths that the table knows.
fn lengths(t: &Table) -> BTreeSet<(Family, u8)> {
    let of = |s: &Set| {
        let (family, len) = s.name.strip_prefix("near")?.split_once('_')?;
        let family = if family == "4" { Family::V4 } else { Family::V6 };
        Some((family, len.parse().ok()?))
    };
    t.sets.iter().filter_map(of).collect()
}

fn additions(owner: &Owner, addresses: &[IpNet]) -> Vec<NftRequest> {
    let mut out = Vec::new();
    for a in addresses {
        let family = Family::of(a.addr);
        let data = Some(ElementData::Value(owner.hash().to_be_bytes().to_vec()));
        let of = Element { comment: Some(owner.as_str().into()), ..Element::new(bytes(a.addr), data) };
        out.push(NftRequest::ElementsAdd(table(), source(family), vec![of]));
        let pair = [bytes(a.addr), bytes(a.network().addr())].concat();
        out.push(NftRequest::ElementsAdd(table(), near(family, a.len), vec![Element::new(pair, None)]));
    }
    out
}

/// Chain, sets and rules for these prefix lengths.
fn frame(lens: &BTreeSet<(Family, u8)>) -> Vec<NftRequest> {
    let hook = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: SRCNAT, drop: false };
    let chain = Chain { name: CHAIN.into(), hook: Some(hook) };
    let mut out = vec![NftRequest::ChainAdd(table(), chain), NftRequest::ChainFlush(table(), CHAIN.into())];
    let addr = |f| match f {
        Family::V4 => DataType::Ipv4Addr,
        Family::V6 => DataType::Ipv6Addr,
    };
    let set =
        |name, key, data| Set { name, key, data, interval: false, constant: false, timeout: false, dynamic: None };
    for f in [Family::V4, Family::V6] {
        let hash = SetData::Value(vec![DataType::Mark, DataType::Mark]);
        out.push(NftRequest::SetAdd(table(), set(source(f), vec![addr(f)], Some(hash))));
    }
    for (f, len) in lens {
        out.push(NftRequest::SetAdd(table(), set(near(*f, *len), vec![addr(*f); 2], None)));
    }
    let mut rule = |family, exprs: Vec<Expr>, comment: &str| {
        let proto = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let of = [
            Expr::Meta { key: MetaKey::NfProto, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![proto] },
        ];
        let exprs = of.into_iter().chain(exprs).collect();
        let rule = Rule { chain: CHAIN.into(), handle: 0, exprs, comment: Some(comment.into()) };
        out.push(NftRequest::RuleAdd(table(), rule));
    };
    for f in [Family::V4, Family::V6] {
        // Offsets of the addresses in the header, their length, and multicast.
        let (saddr, daddr, len, cast, mask) = match f {
            Family::V4 => (12, 16, 4, 0xe0, 0xf0),
            Family::V6 => (8, 24, 16, 0xff, 0xff),
        };
        let after = Reg(if f == Family::V4 { 1 } else { 4 });
        let load = |offset, len, dreg| Expr::Payload { base: PayloadBase::Network, offset, len, dreg };
        let multicast = vec![
            load(daddr, 1, Reg(0)),
            Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask: vec![mask], xor: vec![0] },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![cast] },
            Expr::Verdict(Verdict::Return),
        ];
        rule(f, multicast, "multicast stays");
        for (_, bits) in lens.iter().filter(|(family, _)| *family == f) {
            let width = usize::from(f.bits() / 8);
            let ones = |i: usize| {
                let n = usize::from(*bits).saturating_sub(i * 8).min(8);
                u8::try_from(0xff00u16 >> n & 0xff).unwrap_or(0)
            };
            let near = vec![
                load(saddr, len, Reg(0)),
                load(daddr, len, after),
                Expr::Bitwise { sreg: after, dreg: after, mask: (0..width).map(ones).collect(), xor: vec![0; width] },
                Expr::Lookup { set: near(f, *bits), sreg: Reg(0), into: LookupInto::Nothing, invert: false },
                Expr::Verdict(Verdict::Return),
            ];
            rule(f, near, "the own network stays");
        }
        let masquerade = vec![
            load(saddr, len, Reg(0)),
            Expr::Lookup { set: source(f), sreg: Reg(0), into: LookupInto::Reg(Reg(8)), invert: false },
            Expr::Masquerade { flags: RANDOM_FULLY },
        ];
        rule(f, masquerade, "out of the own network");
    }
    out
}
