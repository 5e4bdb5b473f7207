//! Session affinity: what the rules remember of clients, and how.
//!
//! ```text
//! sticky4            address . protocol . port     -> service     every place where the Service is reached
//! sticky_node4       protocol . port               -> service
//! sticky_slots4      slot . service                -> endpoint    for the random choice
//! sticky_endpoints4  endpoint . service . protocol -> address . port
//! affinity4          service . client              -> endpoint    dynamic: written by the rules
//! ```
//!
//! A service and an endpoint are numbers here, made from their names alone ([`service_ids`], [`endpoint_ids`]): what is
//! remembered stays good over every change that is not of that very endpoint, over a restart and over an upgrade of the
//! agent, and is the same for all addresses and ports of a Service. An endpoint that is gone has no element in
//! `sticky_endpoints4`, so nobody is sent to it, from the very transaction that takes it away: the client is given
//! another and that is remembered. For policy Local, `local_sticky_endpoints4` holds this node's.
//!
//! `affinity4` holds [`REMEMBERED`] clients at most. When it is full, clients it does not know choose anew each time.
//!
//! Each number goes through the packet mark, as the slot does (see `layout`): that is how the rule can be written as
//! text, and listed and loaded by nft. The packet's own mark is put back at once each time, before a lookup that may
//! find nothing and so end the rule.

use std::collections::{BTreeMap, BTreeSet};

use intent::{Affinity, Endpoint, NodeIntent, ServiceKey};
use kernel_api::nft::{DynsetOp, Expr, LookupInto, MetaKey, Reg};
use types::Family;

use crate::image::Rule;
use crate::layout::{OWN, Pick, RuleBuilder, dport, in_family, words};

/// The most clients and Services that are remembered, of each family. An IPv6 client takes about 120 bytes of kernel
/// memory.
pub(crate) const REMEMBERED: u32 = 262_144;

/// The service as a number; then, from register 1, the client's address.
const CLIENT_KEY: Reg = Reg(0);
/// The endpoint as a number, to be remembered.
const ENDPOINT: Reg = Reg(5);
/// The same again; then the service and the protocol.
const ENDPOINT_KEY: Reg = Reg(6);
/// The slot; then the service.
const SLOT_KEY: Reg = Reg(10);
/// The endpoint's address; then its port.
const TARGET: Reg = Reg(9);

/// The rules of a sticky choice: the endpoint that is remembered; a random one, to be remembered from now on; a random
/// one when there is no room to remember it.
pub(crate) fn rules(pick: Pick, timeout: u32) -> [Rule; 3] {
    [remembered(pick, timeout), random(pick, Some(timeout)), random(pick, None)]
}

/// Begins with the service of the place that the packet came to, in all registers that want it.
fn begin(pick: Pick) -> RuleBuilder {
    let mut r = RuleBuilder::of(pick.family);
    r.push(Expr::Meta { key: MetaKey::Mark, dreg: OWN });
    let set = if pick.node {
        r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) });
        r.push(dport(Reg(1)));
        "sticky_node"
    } else {
        r.load_vip();
        "sticky"
    };
    lookup(&mut r, pick, set, Reg(0), CLIENT_KEY);
    through_mark(&mut r, CLIENT_KEY, &[next(ENDPOINT_KEY), next(SLOT_KEY)]);
    r
}

fn next(r: Reg) -> Reg {
    Reg(r.0 + 1)
}

fn lookup(r: &mut RuleBuilder, pick: Pick, set: &str, key: Reg, into: Reg) {
    let set = in_family(set, pick.family);
    r.push(Expr::Lookup { set, sreg: key, into: LookupInto::Reg(into), invert: false });
}

/// `meta mark set X meta mark set meta mark`: the number of a register through the mark into the same and others.
fn through_mark(r: &mut RuleBuilder, of: Reg, also: &[Reg]) {
    r.push(Expr::SetMark { sreg: of });
    for dreg in [of].iter().chain(also) {
        r.push(Expr::Meta { key: MetaKey::Mark, dreg: *dreg });
    }
    r.push(Expr::SetMark { sreg: OWN });
}

/// `dnat ip to meta mark . meta mark . meta l4proto map @sticky_endpoints`, in which `between` comes after the lookup: what
/// is done only when the endpoint is there.
fn translate(mut r: RuleBuilder, pick: Pick, between: Vec<Expr>) -> Rule {
    r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(ENDPOINT_KEY.0 + 2) });
    let set = if pick.local { "local_sticky_endpoints" } else { "sticky_endpoints" };
    lookup(&mut r, pick, set, ENDPOINT_KEY, TARGET);
    between.into_iter().for_each(|e| r.push(e));
    r.then(Expr::Nat {
        dnat: true,
        v6: pick.family == Family::V6,
        addr: Some(TARGET),
        port: Some(Reg(TARGET.0 + words(pick.family))),
        flags: 0,
    })
}

fn remember(pick: Pick, op: DynsetOp, timeout: Option<u32>) -> Expr {
    Expr::Dynset {
        set: in_family("affinity", pick.family),
        op,
        key: CLIENT_KEY,
        data: Some(ENDPOINT),
        timeout: timeout.map(|s| u64::from(s) * 1000),
    }
}

/// `.. update @affinity { meta mark . ip saddr timeout T : meta mark } dnat ..`: to the one remembered, from now on for as
/// long again.
fn remembered(pick: Pick, timeout: u32) -> Rule {
    let mut r = begin(pick);
    r.push(r.saddr(next(CLIENT_KEY)));
    lookup(&mut r, pick, "affinity", CLIENT_KEY, ENDPOINT);
    through_mark(&mut r, ENDPOINT, &[ENDPOINT_KEY]);
    translate(r, pick, vec![remember(pick, DynsetOp::Update, Some(timeout))])
}

/// `.. delete @affinity { .. } update @affinity { .. } dnat ..`: an element that is there keeps its data in an update, so
/// one that is no good is taken out first.
fn random(pick: Pick, timeout: Option<u32>) -> Rule {
    let mut r = begin(pick);
    r.push(Expr::Numgen { dreg: SLOT_KEY, modulus: pick.count, offset: pick.slot_mark(0), random: true });
    through_mark(&mut r, SLOT_KEY, &[]);
    lookup(&mut r, pick, "sticky_slots", SLOT_KEY, ENDPOINT);
    through_mark(&mut r, ENDPOINT, &[ENDPOINT_KEY]);
    r.push(r.saddr(next(CLIENT_KEY)));
    let memory = match timeout {
        Some(_) => vec![remember(pick, DynsetOp::Delete, None), remember(pick, DynsetOp::Update, timeout)],
        None => Vec::new(),
    };
    translate(r, pick, memory)
}

/// The number of each Service port with session affinity: made from its name, so that it outlives everything else. Of
/// two that meet, the later by name takes the next free one, and with it loses what was remembered, no more.
pub(crate) fn service_ids(intent: &NodeIntent) -> BTreeMap<&ServiceKey, u32> {
    let sticky = intent.services.iter().filter(|(_, s)| s.affinity != Affinity::None).map(|(k, _)| k);
    distinct(sticky, |k| {
        let ServiceKey { service, port, proto } = k;
        hash(&[service.namespace.as_bytes(), service.name.as_bytes(), port.as_bytes(), &[proto.number()]])
    })
}

/// The number of each endpoint within its Service port.
pub(crate) fn endpoint_ids(endpoints: &BTreeSet<Endpoint>) -> BTreeMap<&Endpoint, u32> {
    distinct(endpoints, |e| {
        let port = e.port.to_be_bytes();
        match e.addr {
            std::net::IpAddr::V4(a) => hash(&[&a.octets(), &port]),
            std::net::IpAddr::V6(a) => hash(&[&a.octets(), &port]),
        }
    })
}

fn distinct<'a, T: Ord>(all: impl IntoIterator<Item = &'a T>, of: impl Fn(&T) -> u32) -> BTreeMap<&'a T, u32> {
    let mut taken = BTreeSet::new();
    let mut out = BTreeMap::new();
    for t in all {
        let mut id = of(t);
        while !taken.insert(id) {
            id = id.wrapping_add(1);
        }
        out.insert(t, id);
    }
    out
}

/// FNV-1a of 32 bits (draft-eastlake-fnv), each part ended by a byte that no name has. It is in kernels: it never
/// changes.
fn hash(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|p| p.iter().chain(&[0xff]));
    bytes.fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_change_and_are_distinct() {
        // What is in a kernel was made by an agent of another version.
        assert_eq!(hash(&[b"default", b"web", b"http", &[6]]), 0xa31c_f316);
        assert_eq!(hash(&[&[10, 244, 0, 2], &[0x1f, 0x90]]), 0x4998_db3e);
        let met = distinct(&[1u8, 2, 3], |n| u32::MAX - u32::from(*n) % 2);
        assert_eq!(met.into_values().collect::<Vec<_>>(), [u32::MAX - 1, u32::MAX, 0]);
    }
}
