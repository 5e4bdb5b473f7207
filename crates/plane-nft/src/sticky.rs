//! Session affinity: what the rules remember of clients, and how.
//!
//! ```text
//! sticky_a4, sticky_b4            address . protocol . port     -> service     every place where it is reached
//! sticky_node_a4, sticky_node_b4  protocol . port               -> service
//! sticky_slots4                   slot . service                -> endpoint    for the random choice
//! sticky_endpoints4               endpoint . service . protocol -> address . port
//! affinity4                       service . client              -> endpoint    dynamic: written by the rules
//! ```
//!
//! A service is a number of 64 bits here, in two halves, and an endpoint one of 32, made from their names alone
//! ([`service_id`], [`endpoint_ids`]): what is remembered stays good over every change that is not of that very endpoint,
//! over a restart and over an upgrade of the agent, and is the same for all addresses and ports of a Service. An endpoint
//! that is gone has no element in `sticky_endpoints4`, so nobody is sent to it, from the very transaction that takes it
//! away: the client is given another and that is remembered. For policy Local, `local_sticky_endpoints4` holds this
//! node's.
//!
//! `affinity4` holds [`REMEMBERED`] clients at most. When it is full, clients it does not know choose anew each time.
//!
//! Each number goes through the packet mark, as the slot does (see `layout`): that is how the rule can be written as
//! text, and listed and loaded by nft. The packet's own mark is put back at once each time, before a lookup that may
//! find nothing and so end the rule.

use std::collections::{BTreeMap, BTreeSet};

use intent::{Endpoint, ServiceKey};
use kernel_api::nft::{DynsetOp, Expr, LookupInto, MetaKey, Reg};
use types::Family;

use crate::image::Rule;
use crate::layout::{OWN, Pick, RuleBuilder, dport, in_family, words};

/// The most clients and Services that are remembered, of each family. An IPv6 client takes about 120 bytes of kernel
/// memory.
pub(crate) const REMEMBERED: u32 = 262_144;

/// The two halves of the service; then the client's address.
const CLIENT_KEY: Reg = Reg(0);
/// The endpoint as a number, to be remembered.
const ENDPOINT: Reg = Reg(6);
/// The same again; then the service and the protocol.
const ENDPOINT_KEY: Reg = Reg(7);
/// The slot; then the service.
const SLOT_KEY: Reg = Reg(10);
/// The endpoint's address; then its port.
const TARGET: Reg = Reg(10);

/// The rules of a sticky choice: the endpoint that is remembered; a random one, to be remembered from now on; a random
/// one when there is no room to remember it.
pub(crate) fn rules(pick: Pick, timeout: u32) -> [Rule; 3] {
    [remembered(pick, timeout), random(pick, Some(timeout)), random(pick, None)]
}

/// Begins with the service of the place that the packet came to, in all registers that want it.
fn begin(pick: Pick) -> RuleBuilder {
    let mut r = RuleBuilder::of(pick.family);
    r.push(Expr::Meta { key: MetaKey::Mark, dreg: OWN });
    for (half, set) in [(0, ["sticky_a", "sticky_node_a"]), (1, ["sticky_b", "sticky_node_b"])] {
        // Beyond the halves themselves, which stay where they are.
        if pick.node {
            r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(2) });
            r.push(dport(Reg(3)));
        } else {
            r.load_vip_at(Reg(2));
        }
        lookup(&mut r, pick, set[usize::from(pick.node)], Reg(2), plus(CLIENT_KEY, half));
        let also = [plus(ENDPOINT_KEY, half + 1), plus(SLOT_KEY, half + 1)];
        through_mark(&mut r, plus(CLIENT_KEY, half), &also);
    }
    r
}

fn plus(r: Reg, n: u8) -> Reg {
    Reg(r.0 + n)
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

/// `dnat ip to meta mark . meta mark . meta mark . meta l4proto map @sticky_endpoints`, in which `between` comes after the lookup: what
/// is done only when the endpoint is there.
fn translate(mut r: RuleBuilder, pick: Pick, between: Vec<Expr>) -> Rule {
    r.push(Expr::Meta { key: MetaKey::L4Proto, dreg: plus(ENDPOINT_KEY, 3) });
    let set = if pick.local { "local_sticky_endpoints" } else { "sticky_endpoints" };
    lookup(&mut r, pick, set, ENDPOINT_KEY, TARGET);
    between.into_iter().for_each(|e| r.push(e));
    r.then(Expr::Nat {
        dnat: true,
        v6: pick.family == Family::V6,
        addr: Some(TARGET),
        port: Some(plus(TARGET, words(pick.family))),
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

/// `.. update @affinity { meta mark . meta mark . ip saddr timeout T : meta mark } dnat ..`: to the one remembered, from now on for as
/// long again.
fn remembered(pick: Pick, timeout: u32) -> Rule {
    let mut r = begin(pick);
    r.push(r.saddr(plus(CLIENT_KEY, 2)));
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
    r.push(r.saddr(plus(CLIENT_KEY, 2)));
    let memory = match timeout {
        Some(_) => vec![remember(pick, DynsetOp::Delete, None), remember(pick, DynsetOp::Update, timeout)],
        None => Vec::new(),
    };
    translate(r, pick, memory)
}

/// A Service port as a number, in two halves. Two that meet would take each other's endpoints, so it is of a keyed hash
/// that nobody can be expected to find a second name for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceId {
    pub a: u32,
    pub b: u32,
}

/// The number of a Service port, made from its name, so that it outlives everything else.
pub(crate) fn service_id(key: &ServiceKey) -> ServiceId {
    let ServiceKey { service, port, proto } = key;
    // No part has a zero byte.
    let text = format!("{}\0{}\0{port}\0{}", service.namespace, service.name, proto.number());
    let h = hash(text.as_bytes());
    ServiceId { a: (h >> 32) as u32, b: h as u32 }
}

/// The number of each endpoint within its Service port. Of two that meet, the later takes the next free one, and with it
/// loses what was remembered when the other comes or goes, no more.
pub(crate) fn endpoint_ids(endpoints: &BTreeSet<Endpoint>) -> BTreeMap<&Endpoint, u32> {
    let mut taken = BTreeSet::new();
    let mut out = BTreeMap::new();
    for e in endpoints {
        let mut id = hash(e.to_string().as_bytes()) as u32;
        while !taken.insert(id) {
            id = id.wrapping_add(1);
        }
        out.insert(e, id);
    }
    out
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012). What it gives is in kernels, made by agents of other versions: it never
/// changes.
fn hash(bytes: &[u8]) -> u64 {
    siphash(*b"seaway affinity.", bytes)
}

fn siphash(key: [u8; 16], bytes: &[u8]) -> u64 {
    let word = |b: &[u8]| {
        let mut w = [0; 8];
        w.iter_mut().zip(b).for_each(|(w, b)| *w = *b);
        u64::from_le_bytes(w)
    };
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut chunks = bytes.chunks_exact(8);
    let mut words: Vec<u64> = chunks.by_ref().map(word).collect();
    words.push(word(chunks.remainder()) | (bytes.len() as u64) << 56);
    for m in words {
        v[3] ^= m;
        round(&mut v);
        round(&mut v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use types::{ObjectName, Proto};

    use super::*;

    #[test]
    fn numbers_never_change_and_endpoints_are_distinct() {
        // The paper's appendix A.
        let key: [u8; 16] = std::array::from_fn(|i| i as u8);
        let text: [u8; 15] = std::array::from_fn(|i| i as u8);
        assert_eq!(siphash(key, &text), 0xa129_ca61_49be_45e5);
        let web = ServiceKey { service: ObjectName::new("default", "web"), port: "http".into(), proto: Proto::Tcp };
        assert_eq!(service_id(&web), ServiceId { a: 0xd22c_54bc, b: 0x7582_7ff8 });
        let all: BTreeSet<Endpoint> =
            (0..=255u8).flat_map(|a| (0..40).map(move |p| Endpoint { addr: [10, 0, a, 1].into(), port: p })).collect();
        let ids: BTreeSet<u32> = endpoint_ids(&all).into_values().collect();
        assert_eq!(ids.len(), all.len());
    }
}
