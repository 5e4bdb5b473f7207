//! Whatever table is committed reads back as the same values, by the running kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::collections::BTreeMap;

use common::fresh;
use kernel::{Netns, Nftables};
use kernel_api::Nft as _;
use kernel_api::nft::{
    Chain, ChainKind, CmpOp, CtKey, DataRef, DataType, DynsetOp, Element, ElementData, Expr, Hook, HookPoint,
    LookupInto, MetaKey, NftRequest, PayloadBase, Piece, Reg, RejectWith, Rule, Set, SetData, Table, TableName,
    Verdict,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::TestRunner;

/// A chain that every table has, for verdicts to lead to.
const TARGET: &str = "target";

const TYPES: [DataType; 7] = [
    DataType::Ipv4Addr,
    DataType::Ipv6Addr,
    DataType::InetProto,
    DataType::InetService,
    DataType::Mark,
    DataType::IfName,
    DataType::EtherAddr,
];

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Continue),
        Just(Verdict::Return),
        Just(Verdict::Jump(TARGET.into())),
        Just(Verdict::Goto(TARGET.into())),
    ]
}

/// Bytes of these fields: one alone as it is, several each padded.
fn bytes(fields: Vec<DataType>) -> BoxedStrategy<Vec<u8>> {
    let alone = fields.len() == 1;
    fields
        .into_iter()
        .map(move |f| {
            vec(any::<u8>(), f.len()).prop_map(move |mut b| {
                b.resize(if alone { f.len() } else { f.padded() }, 0);
                b
            })
        })
        .collect::<Vec<_>>()
        .prop_map(|p: Vec<Vec<u8>>| p.concat())
        .boxed()
}

fn data(of: &Option<SetData>) -> BoxedStrategy<Option<ElementData>> {
    match of {
        None => Just(None).boxed(),
        Some(SetData::Verdict) => verdict().prop_map(|v| Some(ElementData::Verdict(v))).boxed(),
        Some(SetData::Value(f)) => bytes(f.clone()).prop_map(|b| Some(ElementData::Value(b))).boxed(),
    }
}

/// Elements that a set of this shape takes: distinct keys, ranges that do not overlap.
fn elements(s: &Set) -> BoxedStrategy<Vec<Element>> {
    let first = s.key[0];
    let (head, rest) = (s.key[..1].to_vec(), s.key[1..].to_vec());
    let data = data(&s.data);
    if !s.interval {
        return btree_set(bytes(s.key.clone()), 0..20)
            .prop_flat_map(move |keys| keys.into_iter().map(|k| (Just(k), data.clone())).collect::<Vec<_>>())
            .prop_map(|all| all.into_iter().map(|(key, data)| Element::new(key, data)).collect())
            .boxed();
    }
    let pad = if rest.is_empty() { first.len() } else { first.padded() };
    let other = if rest.is_empty() {
        Just((Vec::new(), Vec::new())).boxed()
    } else {
        rest.iter()
            .map(|f| {
                let (len, padded) = (f.len(), f.padded());
                (vec(any::<u8>(), len), vec(any::<u8>(), len), any::<bool>()).prop_map(move |(a, b, same)| {
                    let (mut low, mut high) = if a <= b { (a, b) } else { (b, a) };
                    if same {
                        high.clone_from(&low);
                    }
                    low.resize(padded, 0);
                    high.resize(padded, 0);
                    (low, high)
                })
            })
            .collect::<Vec<_>>()
            .prop_map(|p| {
                p.into_iter().fold((Vec::new(), Vec::new()), |(a, b), (c, d)| ([a, c].concat(), [b, d].concat()))
            })
            .boxed()
    };
    btree_set(bytes(head), 0..24)
        .prop_flat_map(move |points| {
            let points: Vec<Vec<u8>> = points.into_iter().collect();
            points
                .chunks_exact(2)
                .map(|p| (Just(p.to_vec()), any::<bool>(), other.clone(), data.clone()))
                .collect::<Vec<_>>()
        })
        .prop_map(move |all| {
            all.into_iter()
                .map(|(p, single, (low, high), data)| {
                    let (mut a, mut b) = (p[0].clone(), if single { p[0].clone() } else { p[1].clone() });
                    a.resize(pad, 0);
                    b.resize(pad, 0);
                    let (key, end) = ([a, low].concat(), [b, high].concat());
                    Element { key_end: (end != key).then_some(end), ..Element::new(key, data) }
                })
                .collect()
        })
        .boxed()
}

fn set(i: usize) -> impl Strategy<Value = (Set, Vec<Element>)> {
    let fields = |n| vec(prop::sample::select(TYPES.to_vec()), 1..n);
    let data = prop_oneof![Just(None), Just(Some(SetData::Verdict)), fields(3).prop_map(|f| Some(SetData::Value(f))),];
    (fields(4), data, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(move |(key, data, interval, constant, timeout, dynamic)| Set {
            name: format!("set-{i}"),
            key,
            data,
            interval,
            constant,
            timeout: timeout && !constant,
            // The size bounds what the test itself puts in, too.
            dynamic: (dynamic && !constant && !interval).then_some(1000),
        })
        .prop_flat_map(|s| (Just(s.clone()), elements(&s)))
}

fn reg() -> impl Strategy<Value = Reg> {
    // A 16-byte value must still fit behind it.
    (0u8..13).prop_map(Reg)
}

/// Loads `len` bytes at a register and compares, so that nothing is read that was not written.
fn load(e: impl Fn(Reg) -> Expr + 'static, len: usize) -> BoxedStrategy<Vec<Expr>> {
    let op = prop::sample::select(vec![CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte]);
    (reg(), op, vec(any::<u8>(), len))
        .prop_map(move |(r, op, data)| vec![e(r), Expr::Cmp { sreg: r, op, data }])
        .boxed()
}

fn matching() -> impl Strategy<Value = Vec<Expr>> {
    let mut all: Vec<BoxedStrategy<Vec<Expr>>> = Vec::new();
    for (key, len) in [
        (MetaKey::Mark, 4),
        (MetaKey::Iif, 4),
        (MetaKey::NfProto, 1),
        (MetaKey::L4Proto, 1),
        (MetaKey::IifName, 16),
        (MetaKey::OifName, 16),
    ] {
        all.push(load(move |dreg| Expr::Meta { key, dreg }, len));
    }
    for (key, len) in [
        (CtKey::State, 4),
        (CtKey::Status, 4),
        (CtKey::Mark, 4),
        (CtKey::OriginalDaddr4, 4),
        (CtKey::OriginalDaddr6, 16),
        (CtKey::OriginalDport, 2),
    ] {
        all.push(load(move |dreg| Expr::Ct { key, dreg }, len));
    }
    for len in [1u32, 2, 4, 6, 16] {
        for base in [PayloadBase::Network, PayloadBase::Transport] {
            all.push(
                (0u32..40)
                    .prop_flat_map(move |offset| {
                        load(move |dreg| Expr::Payload { base, offset, len, dreg }, len as usize)
                    })
                    .boxed(),
            );
        }
    }
    all.push(load(|dreg| Expr::FibDaddrType { dreg }, 4));
    all.push(
        (reg(), 1u32..1000, 0u32..1000, any::<bool>())
            .prop_map(|(dreg, modulus, offset, random)| vec![Expr::Numgen { dreg, modulus, offset, random }])
            .boxed(),
    );
    for len in [4usize, 8, 16] {
        all.push(
            (any::<bool>(), vec(any::<u8>(), len), vec(any::<u8>(), len), vec(any::<u8>(), len))
                .prop_map(|(in_place, data, mask, xor)| {
                    // The same registers or others, no overlap in part.
                    let (sreg, dreg) = (Reg(4), Reg(if in_place { 4 } else { 8 }));
                    vec![Expr::Immediate { dreg: sreg, data }, Expr::Bitwise { sreg, dreg, mask, xor }]
                })
                .boxed(),
        );
    }
    all.push(
        (reg(), vec(any::<u8>(), 4), any::<bool>())
            .prop_map(|(r, data, ct)| {
                let set = if ct { Expr::SetCtMark { sreg: r } } else { Expr::SetMark { sreg: r } };
                vec![Expr::Immediate { dreg: r, data }, set]
            })
            .boxed(),
    );
    all.push(Just(vec![Expr::Counter]).boxed());
    all.push(Just(vec![Expr::Notrack]).boxed());
    Union::new(all)
}

fn comment() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[ -~]{1,127}")
}

fn rule(chain: &'static str, last: BoxedStrategy<Vec<Expr>>) -> impl Strategy<Value = Rule> {
    (vec(matching(), 0..5), last, comment()).prop_map(move |(m, last, comment)| Rule {
        chain: chain.into(),
        handle: 0,
        exprs: [m.concat(), last].concat(),
        comment,
    })
}

fn nat(dnat: bool) -> BoxedStrategy<Vec<Expr>> {
    let flags = prop::sample::select(vec![0u32, 4, 16]);
    prop_oneof![
        (vec(any::<u8>(), 4), flags.clone()).prop_map(move |(data, flags)| vec![
            Expr::Immediate { dreg: Reg(0), data },
            Expr::Nat { dnat, v6: false, addr: Some(Reg(0)), port: None, flags },
        ]),
        (vec(any::<u8>(), 16), vec(any::<u8>(), 2), flags).prop_map(move |(data, port, flags)| vec![
            Expr::Immediate { dreg: Reg(0), data },
            Expr::Immediate { dreg: Reg(5), data: port },
            Expr::Nat { dnat, v6: true, addr: Some(Reg(0)), port: Some(Reg(5)), flags },
        ]),
    ]
    .boxed()
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let end = prop_oneof![
        Just(Vec::new()),
        verdict().prop_map(|v| vec![Expr::Verdict(v)]),
        Just(vec![Expr::Reject(RejectWith::TcpReset)]),
        Just(vec![Expr::Reject(RejectWith::PortUnreachable)]),
    ];
    let masq = prop_oneof![
        prop::sample::select(vec![0u32, 4, 16]).prop_map(|flags| vec![Expr::Masquerade { flags }]),
        nat(false),
    ];
    prop_oneof![rule("in", end.boxed()), rule("pre", nat(true)), rule("post", masq.boxed())]
        .prop_flat_map(|r| vec(Just(r), 1..2))
}

fn lookups(sets: &[Set]) -> Vec<Rule> {
    let mut out = Vec::new();
    for s in sets {
        let len = if s.key.len() == 1 { s.key[0].len() } else { s.key.iter().map(|f| f.padded()).sum() };
        let into = match &s.data {
            None => LookupInto::Nothing,
            Some(SetData::Verdict) => LookupInto::Verdict,
            // 32 bytes of data at most, from register 8 on.
            Some(SetData::Value(_)) => LookupInto::Reg(Reg(8)),
        };
        let mut exprs = Vec::new();
        for (i, part) in vec![0u8; len.next_multiple_of(4)].chunks(16).enumerate() {
            exprs.push(Expr::Immediate { dreg: Reg((i * 4) as u8), data: part.to_vec() });
        }
        let dynamic = s.dynamic.is_some() && s.data != Some(SetData::Verdict);
        let fill = dynamic.then(|| dynset(s, exprs.clone()));
        let invert = into == LookupInto::Nothing;
        exprs.push(Expr::Lookup { set: s.name.clone(), sreg: Reg(0), into, invert });
        out.push(Rule { chain: "in".into(), handle: 0, exprs, comment: Some(s.name.clone()) });
        out.extend(fill);
    }
    out
}

/// A rule that takes an element out and puts it in, after `exprs` have loaded the key.
fn dynset(s: &Set, mut exprs: Vec<Expr>) -> Rule {
    let data = s.data.is_some().then_some(Reg(0));
    let timeout = s.timeout.then_some(10_800_000);
    // Data is read from where the key is; 32 bytes of each at most.
    for i in 0..4 {
        exprs.push(Expr::Immediate { dreg: Reg(i * 4), data: vec![0; 16] });
    }
    for (op, timeout) in [(DynsetOp::Delete, None), (DynsetOp::Update, timeout)] {
        exprs.push(Expr::Dynset { set: s.name.clone(), op, key: Reg(0), data, timeout });
    }
    Rule { chain: "in".into(), handle: 0, exprs, comment: None }
}

fn table() -> impl Strategy<Value = Table> {
    let sets = (0usize..5).prop_flat_map(|n| (0..n).map(set).collect::<Vec<_>>());
    let hook = |kind, point| {
        (-300i32..300, any::<bool>()).prop_map(move |(priority, drop)| {
            Some(Hook {
                kind,
                point,
                priority: if kind == ChainKind::Nat && priority <= -200 { -100 } else { priority },
                drop: drop && kind != ChainKind::Nat,
            })
        })
    };
    let chains = [
        Just(None).boxed(),
        hook(ChainKind::Filter, HookPoint::Input).boxed(),
        hook(ChainKind::Nat, HookPoint::Prerouting).boxed(),
        hook(ChainKind::Nat, HookPoint::Postrouting).boxed(),
        hook(ChainKind::Filter, HookPoint::Forward).boxed(),
        hook(ChainKind::Route, HookPoint::Output).boxed(),
    ];
    (sets, chains.to_vec(), vec(rules(), 0..8)).prop_map(|(sets, hooks, rules)| {
        let names = [TARGET, "in", "pre", "post", "through", "reroute"];
        let chains = names.iter().zip(hooks).map(|(n, hook)| Chain { name: (*n).into(), hook }).collect();
        let (sets, elements): (Vec<Set>, Vec<Vec<Element>>) = sets.into_iter().unzip();
        let mut rules: Vec<Rule> = rules.concat();
        rules.extend(lookups(&sets));
        // The kernel lists them by chain.
        rules.sort_by_key(|r| names.iter().position(|n| *n == r.chain));
        let elements = sets.iter().map(|s| s.name.clone()).zip(elements).collect();
        Table { flags: 0, chains, sets, elements, rules }
    })
}

#[test]
fn a_committed_table_reads_back_equal() {
    fresh(|| {
        let n = std::cell::RefCell::new(Nftables::open().unwrap());
        let name = TableName::recognise("seaway-t").unwrap();
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() });
        runner
            .run(&table(), |mut want| {
                let mut all = vec![
                    NftRequest::TableAdd(name.clone()),
                    NftRequest::TableDel(name.clone()),
                    NftRequest::TableAdd(name.clone()),
                ];
                all.extend(want.chains.iter().map(|c| NftRequest::ChainAdd(name.clone(), c.clone())));
                all.extend(want.sets.iter().map(|s| NftRequest::SetAdd(name.clone(), s.clone())));
                all.extend(
                    want.elements.iter().map(|(s, e)| NftRequest::ElementsAdd(name.clone(), s.clone(), e.clone())),
                );
                all.extend(want.rules.iter().map(|r| NftRequest::RuleAdd(name.clone(), r.clone())));
                n.borrow_mut()
                    .commit(&all)
                    .map_err(|e| TestCaseError::fail(format!("{e}: {:?}", e.index.map(|i| &all[i]))))?;
                let mut have = n.borrow_mut().table(&name).unwrap().unwrap();
                // Told piece by piece it is the same.
                let mut told: BTreeMap<String, Vec<Element>> = BTreeMap::new();
                let frame = n.borrow_mut().pieces(&name, &mut |p| match p {
                    Piece::Begin => told.clear(),
                    Piece::Element { set, key, key_end, data } => {
                        let data = data.map(|d| match d {
                            DataRef::Value(v) => ElementData::Value(v.to_vec()),
                            DataRef::Verdict(v) => ElementData::Verdict(v),
                        });
                        let key_end = key_end.map(<[u8]>::to_vec);
                        told.entry(set.name.clone())
                            .or_default()
                            .push(Element { key_end, ..Element::new(key.to_vec(), data) });
                    }
                });
                let frame = frame.unwrap().unwrap();
                prop_assert!(frame.elements.iter().all(|(_, e)| e.is_empty()));
                prop_assert_eq!((&frame.chains, &frame.sets, &frame.rules), (&have.chains, &have.sets, &have.rules));
                for (set, elements) in &have.elements {
                    let mut plain: Vec<Element> =
                        elements.iter().map(|e| Element { comment: None, ..e.clone() }).collect();
                    plain.sort();
                    let mut told = told.remove(set).unwrap_or_default();
                    told.sort();
                    prop_assert_eq!(told, plain);
                }
                have.rules.iter_mut().for_each(|r| r.handle = 0);
                for s in have.sets.iter().filter(|s| s.dynamic.is_some()) {
                    let of = have.elements.iter_mut().find(|(n, _)| *n == s.name).unwrap();
                    prop_assert_eq!(of.1.len(), 0, "left out");
                    of.1 = n.borrow_mut().elements(&name, &s.name).unwrap();
                }
                want.elements.iter_mut().for_each(|(_, e)| e.sort());
                have.elements.iter_mut().for_each(|(_, e)| e.sort());
                prop_assert_eq!(&have.chains, &want.chains);
                prop_assert_eq!(&have.sets, &want.sets);
                for (h, w) in have.elements.iter().zip(&want.elements) {
                    prop_assert_eq!(h, w);
                }
                for (h, w) in have.rules.iter().zip(&want.rules) {
                    prop_assert_eq!(h, w);
                }
                prop_assert_eq!(&have, &want);
                Ok(())
            })
            .unwrap();
    });
}

/// Others commit without pause, we ourselves now and then: every reading is of one moment, and none is given up.
#[test]
fn a_table_is_read_whole_while_others_commit() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::Duration;

    fresh(|| {
        let table = |s: &str| TableName::recognise(s).unwrap();
        let (t, other, stop) = (table("seaway"), table("seaway-other"), AtomicBool::new(false));
        let add = |s: &str, keys: std::ops::Range<u32>| {
            let elements = keys.map(|i| Element::new(i.to_be_bytes().to_vec(), None));
            NftRequest::ElementsAdd(t.clone(), s.into(), elements.collect())
        };
        let mut all = vec![NftRequest::TableAdd(t.clone())];
        for name in ["one", "two"] {
            let set = Set::new(name, vec![DataType::Ipv4Addr]);
            all.extend([NftRequest::SetAdd(t.clone(), set), add(name, 0..3000)]);
        }
        // Whoever reads may be in another namespace meanwhile.
        let elsewhere = Netns::new().unwrap();
        let mut n = Nftables::open_in(&Netns::current().unwrap()).unwrap();
        n.commit(&all).unwrap();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    let mut nft = Nftables::open().unwrap();
                    while !stop.load(Relaxed) {
                        // The other may have deleted it.
                        let _ = nft.commit(&[NftRequest::TableAdd(other.clone()), NftRequest::TableDel(other.clone())]);
                    }
                });
            }
            s.spawn(|| {
                let mut nft = Nftables::open().unwrap();
                for i in (3000..).take_while(|_| !stop.load(Relaxed)) {
                    nft.commit(&[add("one", i..i + 1), add("two", i..i + 1)]).unwrap();
                    // Longer than a reading takes on a machine with much else to do.
                    std::thread::sleep(Duration::from_millis(400));
                }
            });
            let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..20 {
                    let found = elsewhere.inside(|| Ok(n.table(&t).unwrap().unwrap())).unwrap();
                    let [(_, one), (_, two)] = &found.elements[..] else { panic!("{:?}", found.sets) };
                    assert!(one.len() >= 3000 && one == two, "{} and {}", one.len(), two.len());
                    assert_eq!(n.table(&table("seaway-none")).unwrap(), None);
                }
            }));
            stop.store(true, Relaxed);
            read.unwrap();
        });
    });
}
