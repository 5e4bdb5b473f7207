//! The same transactions on the kernel and on the fake: both accept, or both refuse the same request with the same
//! error, and then both hold the same table.

use kernel::{Netns, Nftables};
use kernel_api::nft::{
    Chain, ChainKind, CmpOp, CtKey, DataType, DynsetOp, Element, ElementData, Expr, Hook, HookPoint, LookupInto,
    MetaKey, NftRequest as R, PayloadBase, Reg, RejectWith, Rule, Set, SetData, Table, TableName, Verdict,
};
use kernel_api::{Nft, errno};
use kernel_fake::nft::FakeNft;

fn t() -> TableName {
    TableName::recognise("seaway").unwrap()
}

fn chain(name: &str) -> R {
    R::ChainAdd(t(), Chain { name: name.into(), hook: None })
}

fn base(name: &str, kind: ChainKind, point: HookPoint, priority: i32) -> R {
    let hook = Some(Hook { kind, point, priority, drop: false });
    R::ChainAdd(t(), Chain { name: name.into(), hook })
}

fn rule(chain: &str, exprs: Vec<Expr>) -> R {
    R::RuleAdd(t(), Rule { chain: chain.into(), handle: 0, exprs, comment: None })
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.into()))
}

fn set_of(name: &str, key: &[DataType], data: Option<SetData>, interval: bool) -> Set {
    Set { name: name.into(), key: key.to_vec(), data, interval, constant: false, timeout: false, dynamic: None }
}

fn set(name: &str, key: &[DataType], data: Option<SetData>, interval: bool) -> R {
    R::SetAdd(t(), set_of(name, key, data, interval))
}

fn el(key: &[u8]) -> Element {
    Element { key: key.to_vec(), key_end: None, data: None, comment: None }
}

fn range(first: &[u8], last: &[u8]) -> Element {
    Element { key: first.to_vec(), key_end: Some(last.to_vec()), data: None, comment: None }
}

fn to(key: &[u8], v: Verdict) -> Element {
    Element { data: Some(ElementData::Verdict(v)), ..el(key) }
}

fn add(set: &str, e: Element) -> R {
    R::ElementsAdd(t(), set.into(), vec![e])
}

fn del(set: &str, e: Element) -> R {
    R::ElementsDel(t(), set.into(), vec![e])
}

fn daddr(reg: u8) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dreg: Reg(reg) }
}

fn lookup(set: &str, into: LookupInto, invert: bool) -> Expr {
    Expr::Lookup { set: set.into(), sreg: Reg(0), into, invert }
}

/// From an address in register 0 to that of register 1.
fn dynset(set: &str, op: DynsetOp, data: bool, timeout: bool) -> Vec<Expr> {
    let timeout = timeout.then_some(1000);
    let pair = |r| Expr::Immediate { dreg: Reg(r), data: vec![10, 0, 0, 1] };
    let e = Expr::Dynset { set: set.into(), op, key: Reg(0), data: data.then_some(Reg(1)), timeout };
    vec![pair(0), pair(1), pair(2), e]
}

/// A map of addresses that rules fill.
fn learned() -> R {
    let data = Some(SetData::Value(vec![DataType::Ipv4Addr]));
    R::SetAdd(t(), Set { timeout: true, dynamic: Some(100), ..set_of("learned", V4, data, false) })
}

fn dnat(v6: bool) -> Expr {
    Expr::Nat { dnat: true, v6, addr: Some(Reg(0)), port: None, flags: 0 }
}

fn addr() -> Expr {
    Expr::Immediate { dreg: Reg(0), data: vec![10, 0, 0, 1] }
}

const V4: &[DataType] = &[DataType::Ipv4Addr];

/// What each case begins with: chains a and b, base chains of several kinds, sets and maps with an element each.
fn ground() -> Vec<R> {
    use ChainKind::{Filter, Nat};
    vec![
        R::TableAdd(t()),
        chain("a"),
        chain("b"),
        chain("c"),
        base("pre", Nat, HookPoint::Prerouting, -100),
        base("out", Nat, HookPoint::Output, -100),
        base("post", Nat, HookPoint::Postrouting, 100),
        base("filter", Filter, HookPoint::Forward, 0),
        set("plain", V4, None, false),
        set("cidrs", V4, None, true),
        set("boxes", &[DataType::Ipv4Addr, DataType::InetService], None, true),
        set("verdicts", V4, Some(SetData::Verdict), false),
        set("values", V4, Some(SetData::Value(vec![DataType::Ipv4Addr, DataType::InetService])), false),
        add("plain", el(&[1, 1, 1, 1])),
        add("cidrs", range(&[10, 0, 0, 0], &[10, 255, 255, 255])),
        add("boxes", range(&[10, 0, 0, 0, 0, 80, 0, 0], &[10, 0, 0, 255, 0, 80, 0, 0])),
        add("verdicts", to(&[1, 1, 1, 1], Verdict::Goto("c".into()))),
        add("values", Element { data: Some(ElementData::Value(vec![10, 0, 0, 1, 0, 80, 0, 0])), ..el(&[1, 1, 1, 1]) }),
        rule("b", vec![addr(), Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![10, 0, 0, 1] }]),
    ]
}

/// Sixteen chains that call each other, from a base chain.
fn deep() -> Vec<R> {
    let name = |n: usize| format!("d{n}");
    let mut out: Vec<R> = (0..16).map(|n| chain(&name(n))).collect();
    out.push(rule("filter", vec![Expr::Verdict(Verdict::Jump(name(0)))]));
    // The last call is the one too many.
    out.extend((0..15).rev().map(|n| rule(&name(n), vec![Expr::Verdict(Verdict::Jump(name(n + 1)))])));
    out
}

/// Name, transaction, and the expected refusal: which request and which error.
type Case = (&'static str, Vec<R>, Option<(usize, i32)>);

const EMLINK: i32 = 31;
const ENODATA: i32 = 61;
const EOVERFLOW: i32 = 75;

fn accepted() -> Vec<Case> {
    let ok = |name, rs| (name, rs, None);
    vec![
        ok("nothing", vec![]),
        ok("the same again", ground()),
        ok(
            "a chain with a rule, emptied and deleted",
            vec![R::ChainFlush(t(), "b".into()), R::ChainDel(t(), "b".into())],
        ),
        ok("a map looked up as a set", vec![rule("a", vec![daddr(0), lookup("values", LookupInto::Nothing, false)])]),
        ok(
            "a verdict map looked up as a set",
            vec![rule("a", vec![daddr(0), lookup("verdicts", LookupInto::Nothing, true)])],
        ),
        ok("a chain with its rules", vec![R::ChainDel(t(), "b".into())]),
        ok("a circle nobody reaches", vec![rule("a", vec![goto("b")]), rule("b", vec![goto("a")])]),
        ok(
            "reject in nat chains",
            vec![
                rule("pre", vec![Expr::Reject(RejectWith::PortUnreachable)]),
                rule("out", vec![Expr::Reject(RejectWith::TcpReset)]),
            ],
        ),
        ok(
            "masquerade behind a verdict map at postrouting",
            vec![
                rule("c", vec![Expr::Masquerade { flags: 16 }]),
                rule("post", vec![daddr(0), lookup("verdicts", LookupInto::Verdict, false)]),
            ],
        ),
        ok(
            "dnat through a map",
            vec![rule(
                "pre",
                vec![
                    Expr::Meta { key: MetaKey::NfProto, dreg: Reg(0) },
                    Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![2] },
                    daddr(0),
                    lookup("values", LookupInto::Reg(Reg(0)), false),
                    Expr::Nat { dnat: true, v6: false, addr: Some(Reg(0)), port: Some(Reg(1)), flags: 0 },
                ],
            )],
        ),
        ok(
            "an element replaced in one transaction",
            vec![del("verdicts", el(&[1, 1, 1, 1])), add("verdicts", to(&[1, 1, 1, 1], Verdict::Goto("a".into())))],
        ),
        ok(
            "a range replaced by a larger one",
            vec![
                del("cidrs", range(&[10, 0, 0, 0], &[10, 255, 255, 255])),
                add("cidrs", range(&[10, 0, 0, 0], &[11, 255, 255, 255])),
            ],
        ),
        ok(
            "a box replaced by a larger one",
            vec![
                del("boxes", range(&[10, 0, 0, 0, 0, 80, 0, 0], &[10, 0, 0, 255, 0, 80, 0, 0])),
                add("boxes", range(&[10, 0, 0, 0, 0, 80, 0, 0], &[10, 0, 255, 255, 0, 80, 0, 0])),
            ],
        ),
        ok("every address", vec![R::SetFlush(t(), "cidrs".into()), add("cidrs", range(&[0; 4], &[255; 4]))]),
        ok(
            "ranges at both ends, one of a single key",
            vec![add("cidrs", range(&[0; 4], &[0; 4])), add("cidrs", range(&[255, 255, 255, 255], &[255; 4]))],
        ),
        ok(
            "the last user of a chain goes with it",
            vec![del("verdicts", el(&[1, 1, 1, 1])), R::ChainDel(t(), "c".into())],
        ),
        ok(
            "a map with verdicts, and then its chain",
            vec![R::SetDel(t(), "verdicts".into()), R::ChainDel(t(), "c".into())],
        ),
        ok("the table replaced in one transaction", [vec![R::TableDel(t())], ground()].concat()),
        ok("the table deleted", vec![R::TableDel(t())]),
        ok(
            "facts of the connection",
            vec![rule(
                "post",
                vec![
                    Expr::Ct { key: CtKey::OriginalDaddr4, dreg: Reg(0) },
                    Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(1) },
                    Expr::Ct { key: CtKey::OriginalDport, dreg: Reg(2) },
                    Expr::Ct { key: CtKey::OriginalDaddr6, dreg: Reg(3) },
                    Expr::Meta { key: MetaKey::Iif, dreg: Reg(7) },
                    Expr::Ct { key: CtKey::Status, dreg: Reg(8) },
                    Expr::Ct { key: CtKey::State, dreg: Reg(9) },
                ],
            )],
        ),
        ok(
            "a map that rules fill, with an element of ours",
            vec![
                learned(),
                rule("a", dynset("learned", DynsetOp::Delete, true, false)),
                rule("a", dynset("learned", DynsetOp::Update, true, true)),
                add("learned", Element::new(vec![1; 4], Some(ElementData::Value(vec![2; 4])))),
            ],
        ),
        ok(
            "a set that rules fill though it was not made for it",
            vec![rule("a", dynset("plain", DynsetOp::Update, false, false))],
        ),
        ok("sixteen bytes of name", vec![chain(&"x".repeat(16))]),
        ok("the longest name", vec![chain(&"x".repeat(255)), set(&"y".repeat(255), V4, None, false)]),
        ok("a base chain asked for without its hook", vec![chain("pre")]),
        ok(
            "an expression of every register",
            vec![rule(
                "a",
                vec![
                    Expr::Meta { key: MetaKey::Mark, dreg: Reg(15) },
                    Expr::SetMark { sreg: Reg(15) },
                    Expr::Payload { base: PayloadBase::Network, offset: 8, len: 16, dreg: Reg(1) },
                    Expr::Bitwise { sreg: Reg(1), dreg: Reg(1), mask: vec![0xff; 16], xor: vec![0; 16] },
                ],
            )],
        ),
    ]
}

fn refused() -> Vec<Case> {
    use errno::{EBUSY, EEXIST, EINVAL, ENOENT, EOPNOTSUPP, ERANGE};
    let no = |name, rs, at, e| (name, rs, Some((at, e)));
    vec![
        no("a rule in no chain", vec![rule("nope", vec![])], 0, ENOENT),
        no("a rule to no chain", vec![rule("a", vec![goto("nope")])], 0, ENOENT),
        no("a rule to a base chain", vec![rule("a", vec![goto("pre")])], 0, EOPNOTSUPP),
        no("a rule on no set", vec![rule("a", vec![daddr(0), lookup("nope", LookupInto::Nothing, false)])], 0, ENOENT),
        no(
            "a register that nobody wrote",
            vec![rule("a", vec![lookup("plain", LookupInto::Nothing, false)])],
            0,
            ENODATA,
        ),
        no(
            "a register beyond the last",
            vec![rule("a", vec![Expr::Payload { base: PayloadBase::Network, offset: 8, len: 16, dreg: Reg(13) }])],
            0,
            ERANGE,
        ),
        no(
            "a verdict map as values",
            vec![rule("a", vec![daddr(0), lookup("verdicts", LookupInto::Reg(Reg(0)), false)])],
            0,
            EINVAL,
        ),
        no("a long key", vec![add("plain", el(&[2; 8]))], 0, EINVAL),
        no("the end of a range in a set without", vec![add("plain", range(&[2; 4], &[3; 4]))], 0, EINVAL),
        no("a long name", vec![chain(&"x".repeat(256))], 0, ERANGE),
        no("a long set name", vec![set(&"x".repeat(256), V4, None, false)], 0, ERANGE),
        no("a key longer than all registers", vec![set("long", &[DataType::Ipv6Addr; 5], None, false)], 0, EINVAL),
        no("too deep", deep(), 31, EMLINK),
        no(
            "a set looked up as a map",
            vec![rule("a", vec![daddr(0), lookup("plain", LookupInto::Reg(Reg(0)), false)])],
            0,
            EINVAL,
        ),
        no("no set to fill", vec![rule("a", dynset("nope", DynsetOp::Update, false, false))], 0, ENOENT),
        no("a map to fill without data", vec![rule("a", dynset("values", DynsetOp::Update, false, false))], 0, EINVAL),
        no("a set to fill with data", vec![rule("a", dynset("plain", DynsetOp::Update, true, false))], 0, EOPNOTSUPP),
        no("verdicts to fill", vec![rule("a", dynset("verdicts", DynsetOp::Update, true, false))], 0, EOPNOTSUPP),
        no("ranges to fill", vec![rule("a", dynset("cidrs", DynsetOp::Update, false, false))], 0, EOPNOTSUPP),
        no(
            "a lifetime where there is none",
            vec![rule("a", dynset("plain", DynsetOp::Update, false, true))],
            0,
            EOPNOTSUPP,
        ),
        no(
            "a set of the same name that rules fill",
            vec![learned(), set("learned", V4, Some(SetData::Value(vec![DataType::Ipv4Addr])), false)],
            1,
            EEXIST,
        ),
        no("no chain to delete", vec![R::ChainDel(t(), "nope".into())], 0, ENOENT),
        no("no chain to flush", vec![R::ChainFlush(t(), "nope".into())], 0, ENOENT),
        no("a chain that an element names", vec![R::ChainDel(t(), "c".into())], 0, EBUSY),
        no("a chain that a rule names", vec![rule("b", vec![goto("a")]), R::ChainDel(t(), "a".into())], 1, EBUSY),
        no(
            "a set that a rule names",
            vec![
                rule("a", vec![daddr(0), lookup("plain", LookupInto::Nothing, false)]),
                R::SetDel(t(), "plain".into()),
            ],
            1,
            EBUSY,
        ),
        no("no set to delete", vec![R::SetDel(t(), "nope".into())], 0, ENOENT),
        no("a set of another kind", vec![set("plain", V4, Some(SetData::Verdict), false)], 0, EEXIST),
        no("an element in no set", vec![add("nope", el(&[1, 1, 1, 1]))], 0, ENOENT),
        no(
            "an element with another verdict",
            vec![add("verdicts", to(&[1, 1, 1, 1], Verdict::Goto("a".into())))],
            0,
            EEXIST,
        ),
        no("an element to no chain", vec![add("verdicts", to(&[2; 4], Verdict::Goto("nope".into())))], 0, ENOENT),
        no(
            "an element to a base chain",
            vec![add("verdicts", to(&[2; 4], Verdict::Goto("pre".into())))],
            0,
            EOPNOTSUPP,
        ),
        no("an element without data", vec![add("values", el(&[2; 4]))], 0, EINVAL),
        no("an element with data in a set", vec![add("plain", to(&[2; 4], Verdict::Accept))], 0, EINVAL),
        no("a short key", vec![add("plain", el(&[2; 3]))], 0, EINVAL),
        no("no element to delete", vec![del("plain", el(&[9; 4]))], 0, ENOENT),
        no("a range within another", vec![add("cidrs", range(&[10, 1, 0, 0], &[10, 1, 255, 255]))], 0, EEXIST),
        no(
            "a box within another",
            vec![add("boxes", range(&[10, 0, 0, 7, 0, 80, 0, 0], &[10, 0, 0, 8, 0, 80, 0, 0]))],
            0,
            EEXIST,
        ),
        no("all or nothing", vec![add("plain", el(&[3; 4])), chain("d"), del("plain", el(&[9; 4]))], 2, ENOENT),
        no("dnat in a filter chain", vec![rule("filter", vec![addr(), dnat(false)])], 0, EOPNOTSUPP),
        no("dnat at postrouting", vec![rule("post", vec![addr(), dnat(false)])], 0, EOPNOTSUPP),
        no("masquerade at prerouting", vec![rule("pre", vec![Expr::Masquerade { flags: 16 }])], 0, EOPNOTSUPP),
        no(
            "masquerade reached from prerouting",
            vec![
                rule("c", vec![Expr::Masquerade { flags: 16 }]),
                rule("pre", vec![daddr(0), lookup("verdicts", LookupInto::Verdict, false)]),
            ],
            1,
            EOPNOTSUPP,
        ),
        no("reject at postrouting", vec![rule("post", vec![Expr::Reject(RejectWith::PortUnreachable)])], 0, EOPNOTSUPP),
        no("a nat chain at forward", vec![base("x", ChainKind::Nat, HookPoint::Forward, 0)], 0, EOPNOTSUPP),
        no("a nat chain before conntrack", vec![base("x", ChainKind::Nat, HookPoint::Prerouting, -200)], 0, EOPNOTSUPP),
        no(
            "a circle",
            vec![
                rule("pre", vec![goto("a")]),
                rule("a", vec![goto("b")]),
                R::ChainFlush(t(), "b".into()),
                rule("b", vec![goto("a")]),
            ],
            3,
            EMLINK,
        ),
        no(
            "numgen of nothing",
            vec![rule("a", vec![Expr::Numgen { dreg: Reg(0), modulus: 0, offset: 0, random: true }])],
            0,
            ERANGE,
        ),
        no(
            "numgen beyond 32 bits",
            vec![rule("a", vec![Expr::Numgen { dreg: Reg(0), modulus: 9, offset: u32::MAX - 3, random: true }])],
            0,
            EOVERFLOW,
        ),
        no("a base chain moved", vec![base("pre", ChainKind::Nat, HookPoint::Prerouting, -90)], 0, EOPNOTSUPP),
        no("no table to delete", vec![R::TableDel(t()), R::TableDel(t())], 1, ENOENT),
        no("a rule in no table", vec![R::TableDel(t()), rule("a", vec![])], 1, ENOENT),
    ]
}

/// The table without what the kernel is free to choose: handles and the order of sets and elements.
fn plain(t: Option<Table>) -> Option<Table> {
    t.map(|mut t| {
        for r in &mut t.rules {
            r.handle = 0;
        }
        t.rules.sort_by(|a, b| a.chain.cmp(&b.chain));
        t.chains.sort_by(|a, b| a.name.cmp(&b.name));
        t.sets.sort_by(|a, b| a.name.cmp(&b.name));
        let ranged: Vec<String> = t.sets.iter().filter(|s| s.interval).map(|s| s.name.clone()).collect();
        for (name, es) in &mut t.elements {
            // A range of one key may come without its end.
            for e in es.iter_mut().filter(|_| ranged.contains(name)) {
                e.key_end.get_or_insert_with(|| e.key.clone());
            }
            es.sort();
        }
        t.elements.retain(|(_, es)| !es.is_empty());
        t.elements.sort();
        t
    })
}

#[test]
fn kernel_and_fake_say_the_same() {
    let mut wrong = Vec::new();
    for (name, requests, expected) in accepted().into_iter().chain(refused()) {
        let ns = Netns::new().unwrap();
        let (mut real, mut fake) = (Nftables::open_in(&ns).unwrap(), FakeNft::new());
        for nft in [&mut real as &mut dyn Nft, &mut fake] {
            nft.commit(&ground()).unwrap_or_else(|e| panic!("{name}: the ground: {e}"));
        }
        let before = plain(real.table(&t()).unwrap());
        assert_eq!(before, plain(fake.table(&t()).unwrap()), "{name}: before");
        for (who, nft) in [("kernel", &mut real as &mut dyn Nft), ("fake", &mut fake)] {
            let got = nft.commit(&requests).map_err(|e| (e.index, e.errno)).err();
            let want = expected.map(|(i, e)| (Some(i), e));
            if got != want {
                wrong.push(format!("{name}: the {who} says {got:?}, not {want:?}"));
            }
        }
        let (k, f) = (plain(real.table(&t()).unwrap()), plain(fake.table(&t()).unwrap()));
        if k != f {
            wrong.push(format!("{name}: after\n  kernel {k:?}\n  fake {f:?}"));
        }
        if expected.is_some() && k != before {
            wrong.push(format!("{name}: refused, and yet something changed"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_generation_tells_that_somebody_changed_something() {
    let ns = Netns::new().unwrap();
    let (mut real, mut fake) = (Nftables::open_in(&ns).unwrap(), FakeNft::new());
    for nft in [&mut real as &mut dyn Nft, &mut fake] {
        let g = nft.generation().unwrap();
        assert_eq!(nft.generation().unwrap(), g);
        nft.commit(&ground()).unwrap();
        let after = nft.generation().unwrap();
        assert_ne!(after, g);
        nft.commit(&[R::ChainDel(t(), "nope".into())]).unwrap_err();
        assert_eq!(nft.generation().unwrap(), after, "a refused transaction is none");
        let e = nft.commit_at(g, &[chain("late")]).unwrap_err();
        assert_eq!((e.errno, e.index), (errno::ERESTART, None));
        assert_eq!(nft.generation().unwrap(), after);
        nft.commit_at(after, &[chain("at-once")]).unwrap();
        let comments = |nft: &mut dyn Nft| {
            let t = nft.table(&t()).unwrap().unwrap();
            let all = t.elements.into_iter().flat_map(|(_, e)| e).filter_map(|e| e.comment);
            all.collect::<Vec<_>>()
        };
        let with = |c: &str| Element { comment: Some(c.into()), ..el(&[9, 9, 9, 9]) };
        nft.commit(&[add("plain", with("first"))]).unwrap();
        nft.commit(&[add("plain", with("second"))]).unwrap();
        assert_eq!(comments(nft), ["first"], "the comment stays what it was");
        let e = nft.commit(&[add("plain", Element { key: vec![8; 4], ..with(&"x".repeat(128)) })]).unwrap_err();
        assert_eq!((e.errno, e.index), (errno::EINVAL, Some(0)));
    }
}
