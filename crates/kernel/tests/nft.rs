//! nf_tables against the running kernel, compared with nft as an independent witness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::time::Instant;

use common::{fresh, nft};
use kernel::Nftables;
use kernel_api::nft::{
    Chain, ChainKind, CmpOp, CtKey, DataType, Element, ElementData, Expr, Hook, HookPoint, LookupInto, MetaKey,
    NftRequest, PayloadBase, Reg, RejectWith, Rule, Set, SetData, Table, TableName, Verdict,
};
use kernel_api::{Nft as _, errno};

fn seaway() -> TableName {
    TableName::recognise("seaway").unwrap()
}

fn chain(name: &str) -> Chain {
    Chain { name: name.into(), hook: None }
}

fn base(name: &str, kind: ChainKind, point: HookPoint, priority: i32) -> Chain {
    Chain { name: name.into(), hook: Some(Hook { kind, point, priority, drop: false }) }
}

fn set(name: &str, key: &[DataType], data: Option<SetData>) -> Set {
    Set { name: name.into(), key: key.to_vec(), data, interval: false, constant: false, timeout: false, dynamic: None }
}

fn rule(chain: &str, comment: &str, exprs: Vec<Expr>) -> Rule {
    Rule { chain: chain.into(), handle: 0, exprs, comment: (!comment.is_empty()).then(|| comment.into()) }
}

/// `10.0.I.J . tcp . PORT : goto svc`-like elements.
fn service(i: u32) -> Element {
    let mut key = (0x0a00_0000 + i).to_be_bytes().to_vec();
    key.extend([6, 0, 0, 0, 0, 80, 0, 0]);
    let mut data = (0x0af4_0000 + i).to_be_bytes().to_vec();
    data.extend([0x1f, 0x90, 0, 0]);
    Element { key, key_end: None, data: Some(ElementData::Value(data)), comment: None }
}

const SERVICE: [DataType; 3] = [DataType::Ipv4Addr, DataType::InetProto, DataType::InetService];
const ENDPOINT: [DataType; 2] = [DataType::Ipv4Addr, DataType::InetService];

/// The table without handles, which only the kernel gives.
fn plain(mut t: Table) -> Table {
    for r in &mut t.rules {
        assert_ne!(r.handle, 0);
        r.handle = 0;
    }
    t.elements.iter_mut().for_each(|(_, e)| e.sort());
    t
}

fn commit_table(n: &mut Nftables, t: &Table) {
    let name = seaway();
    let mut all = vec![NftRequest::TableAdd(name.clone())];
    all.extend(t.chains.iter().map(|c| NftRequest::ChainAdd(name.clone(), c.clone())));
    all.extend(t.sets.iter().map(|s| NftRequest::SetAdd(name.clone(), s.clone())));
    all.extend(t.elements.iter().map(|(s, e)| NftRequest::ElementsAdd(name.clone(), s.clone(), e.clone())));
    all.extend(t.rules.iter().map(|r| NftRequest::RuleAdd(name.clone(), r.clone())));
    n.commit(&all).unwrap();
}

/// One rule per kind of expression, as nft itself would write them, with what nft prints for it.
fn every_expression() -> (Table, Vec<&'static str>) {
    use DataType as T;
    let r = Reg;
    let nfproto = |n: u8| {
        vec![Expr::Meta { key: MetaKey::NfProto, dreg: r(0) }, Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![n] }]
    };
    let l4 = |n: u8| {
        vec![Expr::Meta { key: MetaKey::L4Proto, dreg: r(0) }, Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![n] }]
    };
    let daddr = |dreg| Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dreg };
    let dport = |dreg| Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg };
    let ifname = |s: &str| {
        let mut b = s.as_bytes().to_vec();
        b.resize(16, 0);
        b
    };
    let join = |parts: Vec<Vec<Expr>>| parts.concat();
    let key3 = || vec![daddr(r(0)), Expr::Meta { key: MetaKey::L4Proto, dreg: r(1) }, dport(r(2))];
    let rules = vec![
        (
            rule(
                "forwarding",
                "to services",
                join(vec![
                    nfproto(2),
                    key3(),
                    vec![Expr::Lookup { set: "svc".into(), sreg: r(0), into: LookupInto::Verdict, invert: false }],
                ]),
            ),
            "ip daddr . meta l4proto . th dport vmap @svc comment \"to services\"",
        ),
        (
            rule(
                "forwarding",
                "",
                join(vec![
                    nfproto(2),
                    vec![
                        daddr(r(0)),
                        Expr::Lookup { set: "nets".into(), sreg: r(0), into: LookupInto::Nothing, invert: true },
                        Expr::Counter,
                        Expr::Verdict(Verdict::Drop),
                    ],
                ]),
            ),
            "ip daddr != @nets counter packets 0 bytes 0 drop",
        ),
        (
            rule(
                "forwarding",
                "",
                vec![
                    Expr::Meta { key: MetaKey::IifName, dreg: r(0) },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: ifname("eth0") },
                    Expr::Meta { key: MetaKey::OifName, dreg: r(0) },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Neq, data: ifname("eth1") },
                    Expr::Verdict(Verdict::Jump("out".into())),
                ],
            ),
            "iifname \"eth0\" oifname != \"eth1\" jump out",
        ),
        (
            rule(
                "forwarding",
                "",
                vec![
                    Expr::Meta { key: MetaKey::Mark, dreg: r(0) },
                    Expr::Bitwise { sreg: r(0), dreg: r(0), mask: vec![0, 0, 0xf0, 0xff], xor: vec![0; 4] },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![0, 0, 0xa0, 0x5e] },
                    Expr::Immediate { dreg: r(0), data: vec![7, 0, 0, 0] },
                    Expr::SetMark { sreg: r(0) },
                ],
            ),
            "meta mark 0x5ea00000/12 meta mark set 0x00000007",
        ),
        (
            rule(
                "forwarding",
                "",
                vec![
                    Expr::Ct { key: CtKey::State, dreg: r(0) },
                    Expr::Bitwise { sreg: r(0), dreg: r(0), mask: vec![6, 0, 0, 0], xor: vec![0; 4] },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Neq, data: vec![0; 4] },
                    Expr::Verdict(Verdict::Accept),
                ],
            ),
            "ct state established,related accept",
        ),
        (
            rule(
                "forwarding",
                "",
                vec![
                    Expr::Ct { key: CtKey::Status, dreg: r(0) },
                    Expr::Bitwise { sreg: r(0), dreg: r(0), mask: vec![32, 0, 0, 0], xor: vec![0; 4] },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Neq, data: vec![0; 4] },
                    Expr::Ct { key: CtKey::Mark, dreg: r(4) },
                    Expr::Cmp { sreg: r(4), op: CmpOp::Eq, data: vec![1, 0, 0, 0] },
                    Expr::Immediate { dreg: r(4), data: vec![9, 0, 0, 0] },
                    Expr::SetCtMark { sreg: r(4) },
                    Expr::Verdict(Verdict::Return),
                ],
            ),
            "ct status dnat ct mark 0x00000001 ct mark set 0x00000009 return",
        ),
        (
            rule(
                "forwarding",
                "",
                join(vec![
                    l4(6),
                    vec![
                        dport(r(0)),
                        Expr::Cmp { sreg: r(0), op: CmpOp::Gte, data: vec![0x75, 0x30] },
                        Expr::Cmp { sreg: r(0), op: CmpOp::Lte, data: vec![0x7f, 0xff] },
                        Expr::Reject(RejectWith::TcpReset),
                    ],
                ]),
            ),
            "tcp dport 30000-32767 reject with tcp reset",
        ),
        (rule("forwarding", "", vec![Expr::Reject(RejectWith::PortUnreachable)]), "reject"),
        (
            rule(
                "forwarding",
                "",
                vec![
                    Expr::FibDaddrType { dreg: r(0) },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![2, 0, 0, 0] },
                    Expr::Verdict(Verdict::Goto("out".into())),
                ],
            ),
            "fib daddr type local goto out",
        ),
        (
            rule(
                "forwarding",
                "",
                join(vec![
                    l4(6),
                    vec![
                        Expr::Ct { key: CtKey::OriginalDaddr4, dreg: r(0) },
                        Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![10, 0, 0, 1] },
                        Expr::Ct { key: CtKey::OriginalDport, dreg: r(0) },
                        Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![0, 80] },
                        Expr::Meta { key: MetaKey::Iif, dreg: r(0) },
                        Expr::Cmp { sreg: r(0), op: CmpOp::Neq, data: vec![0; 4] },
                        Expr::Verdict(Verdict::Continue),
                    ],
                ]),
            ),
            "meta l4proto tcp ct original ip daddr 10.0.0.1 ct original proto-dst 80 iif != 0 continue",
        ),
        (
            rule(
                "forwarding",
                "",
                vec![
                    Expr::Ct { key: CtKey::OriginalDaddr6, dreg: r(0) },
                    Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![0xfd; 16] },
                ],
            ),
            "ct original ip6 daddr fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd",
        ),
        (
            rule(
                "pre",
                "",
                join(vec![
                    l4(6),
                    nfproto(2),
                    vec![
                        Expr::Numgen { dreg: r(0), modulus: 3, offset: 0, random: true },
                        Expr::Lookup { set: "slots".into(), sreg: r(0), into: LookupInto::Reg(r(0)), invert: false },
                        Expr::Nat { dnat: true, v6: false, addr: Some(r(0)), port: Some(r(1)), flags: 0 },
                    ],
                ]),
            ),
            "meta l4proto tcp meta nfproto ipv4 dnat ip to numgen random mod 3 map @slots",
        ),
        (
            rule(
                "pre",
                "",
                join(vec![
                    l4(17),
                    nfproto(10),
                    vec![
                        Expr::Immediate { dreg: r(0), data: vec![0xfd; 16] },
                        Expr::Immediate { dreg: r(4), data: vec![0, 53] },
                        Expr::Nat { dnat: true, v6: true, addr: Some(r(0)), port: Some(r(4)), flags: 0 },
                    ],
                ]),
            ),
            "meta l4proto udp meta nfproto ipv6 dnat ip6 to [fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:53",
        ),
        (
            rule(
                "post",
                "",
                vec![
                    Expr::Immediate { dreg: r(0), data: vec![192, 0, 2, 1] },
                    Expr::Nat { dnat: false, v6: false, addr: Some(r(0)), port: None, flags: 16 },
                ],
            ),
            "snat ip to 192.0.2.1 fully-random",
        ),
        (rule("post", "", vec![Expr::Masquerade { flags: 16 }]), "masquerade fully-random"),
        (rule("post", "", vec![Expr::Masquerade { flags: 0 }]), "masquerade"),
    ];
    let sets = vec![
        set("svc", &SERVICE, Some(SetData::Verdict)),
        Set { interval: true, ..set("nets", &[T::Ipv4Addr], None) },
        set("slots", &[T::Mark], Some(SetData::Value(ENDPOINT.to_vec()))),
    ];
    let mut goto = service(1);
    goto.data = Some(ElementData::Verdict(Verdict::Goto("out".into())));
    let elements = vec![
        ("svc".to_owned(), vec![goto]),
        (
            "nets".to_owned(),
            vec![
                Element { key: vec![10, 0, 0, 0], key_end: Some(vec![10, 255, 255, 255]), data: None, comment: None },
                Element { key: vec![192, 168, 0, 1], key_end: None, data: None, comment: None },
            ],
        ),
        (
            "slots".to_owned(),
            vec![Element {
                key: vec![0, 0, 0, 0],
                key_end: None,
                data: Some(ElementData::Value(vec![10, 244, 0, 2, 0x1f, 0x90, 0, 0])),
                comment: Some("who made it".into()),
            }],
        ),
    ];
    let chains = vec![
        chain("out"),
        base("forwarding", ChainKind::Filter, HookPoint::Forward, 0),
        base("pre", ChainKind::Nat, HookPoint::Prerouting, -100),
        base("post", ChainKind::Nat, HookPoint::Postrouting, 100),
    ];
    let (rules, texts) = rules.into_iter().unzip();
    (Table { flags: 0, chains, sets, elements, rules }, texts)
}

#[test]
fn every_expression_reads_back_and_nft_prints_it_as_a_person_would() {
    fresh(|| {
        let mut n = Nftables::open().unwrap();
        assert_eq!(n.table(&seaway()).unwrap(), None);
        let (want, texts) = every_expression();
        commit_table(&mut n, &want);
        let have = plain(n.table(&seaway()).unwrap().unwrap());
        for (w, h) in want.rules.iter().zip(&have.rules) {
            assert_eq!(w, h);
        }
        assert_eq!(have, want);

        let shown = nft("list table inet seaway");
        println!("{shown}");
        let lines: Vec<&str> = shown.lines().map(str::trim).collect();
        for t in texts {
            assert!(lines.contains(&t), "nft does not print {t:?}:\n{shown}");
        }
        for t in [
            "type ipv4_addr . inet_proto . inet_service : verdict",
            "elements = { 10.0.0.1 . tcp . 80 : goto out }",
            "elements = { 10.0.0.0/8, 192.168.0.1 }",
            "type mark : ipv4_addr . inet_service",
            "elements = { 0x00000000 comment \"who made it\" : 10.244.0.2 . 8080 }",
            "type nat hook prerouting priority dstnat; policy accept;",
        ] {
            assert!(lines.contains(&t), "nft does not print {t:?}:\n{shown}");
        }
        let json = nft("-j list table inet seaway");
        assert_eq!(json.matches("{\"rule\": ").count(), want.rules.len());
        assert_eq!(json.matches("{\"chain\": ").count(), want.chains.len());
        assert_eq!(
            json.matches("{\"map\": {\"family\"").count() + json.matches("{\"set\": {\"family\"").count(),
            want.sets.len()
        );
    });
}

/// What nft prints of our table, it loads again, and then prints the same: our encoding is nft's own.
#[test]
fn nft_loads_what_it_prints_of_ours() {
    let (mut want, _) = every_expression();
    // nft cannot read this one back: a numgen is of no type that a set can have.
    want.rules.retain(|r| !r.exprs.iter().any(|e| matches!(e, Expr::Numgen { .. })));
    let ours = fresh(|| {
        commit_table(&mut Nftables::open().unwrap(), &want);
        nft("list table inet seaway")
    });
    fresh(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.nft");
        std::fs::write(&file, &ours).unwrap();
        nft(&format!("-f {}", file.display()));
        assert_eq!(nft("list table inet seaway"), ours);
        let have = plain(Nftables::open().unwrap().table(&seaway()).unwrap().unwrap());
        assert_eq!((&have.sets, &have.elements), (&want.sets, &want.elements));
        assert_eq!(have.rules.len(), want.rules.len());
    });
}

#[test]
fn ten_thousand_elements_are_one_transaction() {
    fresh(|| {
        let mut n = Nftables::open().unwrap();
        let t = seaway();
        let elements: Vec<Element> = (0..10_000).map(service).collect();
        n.commit(&[
            NftRequest::TableAdd(t.clone()),
            NftRequest::SetAdd(t.clone(), set("svc", &SERVICE, Some(SetData::Value(ENDPOINT.to_vec())))),
        ])
        .unwrap();
        let before = n.generation().unwrap();
        let start = Instant::now();
        n.commit(&[NftRequest::ElementsAdd(t.clone(), "svc".into(), elements.clone())]).unwrap();
        let wrote = start.elapsed();
        assert_eq!(n.generation().unwrap(), before + 1, "one transaction");
        let start = Instant::now();
        let have = n.table(&t).unwrap().unwrap();
        println!("10000 elements: written in {wrote:?}, read in {:?}", start.elapsed());
        assert_eq!(have.elements, [("svc".to_owned(), elements.clone())]);
        // Without them, and some by their keys.
        let frame = n.frame(&t).unwrap().unwrap();
        assert_eq!(frame, Table { elements: vec![("svc".into(), vec![])], ..have });
        let keys: Vec<Vec<u8>> = (9_900..10_100).map(|i| service(i).key).collect();
        let start = Instant::now();
        assert_eq!(n.find_elements(&t, "svc", &keys).unwrap(), elements[9_900..]);
        println!("100 of 200 keys found in {:?}", start.elapsed());
        assert_eq!(n.find_elements(&t, "svc", &keys[190..]).unwrap(), []);
        assert_eq!(n.find_elements(&t, "svc", &[]).unwrap(), []);
        assert_eq!(n.find_elements(&t, "other", &keys).unwrap(), []);
        let absent = TableName::recognise("seaway-absent").unwrap();
        assert_eq!(n.find_elements(&absent, "svc", &keys).unwrap(), []);
        assert_eq!(n.frame(&absent).unwrap(), None);

        // The same again is no error, other data is.
        n.commit(&[NftRequest::ElementsAdd(t.clone(), "svc".into(), elements.clone())]).unwrap();
        let mut other = elements[9_999].clone();
        other.data = service(1).data;
        let e = n
            .commit(&[
                NftRequest::ElementsDel(t.clone(), "svc".into(), elements[..5000].to_vec()),
                NftRequest::ElementsAdd(t.clone(), "svc".into(), vec![other]),
            ])
            .unwrap_err();
        assert_eq!((e.errno, e.index), (errno::EEXIST, Some(1)), "{e}");
        assert_eq!(n.table(&t).unwrap().unwrap().elements[0].1.len(), 10_000, "nothing changed");

        let start = Instant::now();
        n.commit(&[NftRequest::ElementsDel(t.clone(), "svc".into(), elements[1..].to_vec())]).unwrap();
        println!("9999 elements deleted in {:?}", start.elapsed());
        assert_eq!(n.table(&t).unwrap().unwrap().elements[0].1, elements[..1]);
        n.commit(&[NftRequest::ElementsDel(t.clone(), "svc".into(), Vec::new())]).unwrap();
        assert_eq!(n.table(&t).unwrap().unwrap().elements[0].1.len(), 1, "deleting none deletes none");
        n.commit(&[NftRequest::SetFlush(t.clone(), "svc".into())]).unwrap();
        assert!(n.table(&t).unwrap().unwrap().elements[0].1.is_empty());
    });
}

#[test]
fn a_failed_batch_changes_nothing_and_names_the_request() {
    fresh(|| {
        let mut n = Nftables::open().unwrap();
        let t = seaway();
        let e = n.commit(&[NftRequest::TableDel(t.clone())]).unwrap_err();
        assert!(e.absent(), "{e}");
        n.commit(&[NftRequest::TableAdd(t.clone()), NftRequest::ChainAdd(t.clone(), chain("a"))]).unwrap();
        let (before, generation) = (n.table(&t).unwrap(), n.generation().unwrap());
        let jump = |from: &str, to: &str| rule(from, "", vec![Expr::Verdict(Verdict::Jump(to.into()))]);
        let e = n
            .commit(&[
                NftRequest::ChainAdd(t.clone(), chain("b")),
                NftRequest::RuleAdd(t.clone(), rule("a", "", vec![Expr::Counter])),
                NftRequest::RuleAdd(t.clone(), jump("a", "nosuch")),
                NftRequest::ChainAdd(t.clone(), chain("c")),
            ])
            .unwrap_err();
        assert_eq!((e.index, e.errno), (Some(2), errno::ENOENT), "{e}");
        assert!(e.to_string().starts_with("add rule inet seaway a "), "{e}");
        assert_eq!(n.table(&t).unwrap(), before);
        assert_eq!(n.generation().unwrap(), generation);

        // A loop is only seen at the end.
        let e = n
            .commit(&[
                NftRequest::ChainAdd(t.clone(), base("in", ChainKind::Filter, HookPoint::Input, 0)),
                NftRequest::ChainAdd(t.clone(), chain("b")),
                NftRequest::RuleAdd(t.clone(), jump("in", "a")),
                NftRequest::RuleAdd(t.clone(), jump("a", "b")),
                NftRequest::RuleAdd(t.clone(), jump("b", "a")),
            ])
            .unwrap_err();
        assert_eq!((e.index, e.errno), (Some(4), libc::EMLINK), "{e}");
        assert_eq!(n.table(&t).unwrap(), before);

        let other = Expr::Other("log".into());
        let e = n.commit(&[NftRequest::RuleAdd(t.clone(), rule("a", "", vec![other]))]).unwrap_err();
        assert_eq!((e.index, e.errno), (Some(0), errno::EOPNOTSUPP));
        let long = "x".repeat(128);
        let e = n.commit(&[NftRequest::RuleAdd(t.clone(), rule("a", &long, vec![]))]).unwrap_err();
        assert_eq!((e.index, e.errno), (Some(0), errno::EINVAL));
        let e = n.commit(&[NftRequest::ElementsAdd(t.clone(), "nosuch".into(), vec![service(0)])]).unwrap_err();
        assert_eq!((e.index, e.errno), (Some(0), errno::ENOENT));
        n.commit(&[NftRequest::SetAdd(t.clone(), set("s", &SERVICE, Some(SetData::Verdict)))]).unwrap();
        let mut accept = service(0);
        accept.data = Some(ElementData::Verdict(Verdict::Accept));
        let add = NftRequest::ElementsAdd(t.clone(), "s".into(), vec![accept]);
        let e = n.commit(&[add, NftRequest::ElementsDel(t.clone(), "s".into(), vec![service(9)])]).unwrap_err();
        assert_eq!((e.index, e.errno), (Some(1), errno::ENOENT), "{e}");
        n.commit(&[]).unwrap();
    });
}

#[test]
fn rules_and_chains_come_and_go_by_handle() {
    fresh(|| {
        let mut n = Nftables::open().unwrap();
        let t = seaway();
        let mark = |m: u8| {
            vec![
                Expr::Meta { key: MetaKey::Mark, dreg: Reg(0) },
                Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![m, 0, 0, 0] },
            ]
        };
        let mut all = vec![NftRequest::TableAdd(t.clone()), NftRequest::ChainAdd(t.clone(), chain("a"))];
        all.extend((0..5).map(|i| NftRequest::RuleAdd(t.clone(), rule("a", &format!("rule {i}"), mark(i)))));
        n.commit(&all).unwrap();
        let rules = n.table(&t).unwrap().unwrap().rules;
        let comments = |r: &[Rule]| r.iter().filter_map(|r| r.comment.clone()).collect::<Vec<_>>();
        assert_eq!(comments(&rules), ["rule 0", "rule 1", "rule 2", "rule 3", "rule 4"]);
        n.commit(&[NftRequest::RuleDel(t.clone(), "a".into(), rules[2].handle)]).unwrap();
        assert_eq!(comments(&n.table(&t).unwrap().unwrap().rules), ["rule 0", "rule 1", "rule 3", "rule 4"]);
        let jump = rule("b", "", vec![Expr::Verdict(Verdict::Jump("a".into()))]);
        n.commit(&[NftRequest::ChainAdd(t.clone(), chain("b")), NftRequest::RuleAdd(t.clone(), jump)]).unwrap();
        assert_eq!(n.commit(&[NftRequest::ChainDel(t.clone(), "a".into())]).unwrap_err().errno, errno::EBUSY);
        n.commit(&[NftRequest::ChainFlush(t.clone(), "b".into())]).unwrap();
        n.commit(&[NftRequest::ChainFlush(t.clone(), "a".into()), NftRequest::ChainDel(t.clone(), "a".into())])
            .unwrap();
        // Adding what is there is no error, also for base chains, sets and tables.
        let again = [
            NftRequest::TableAdd(t.clone()),
            NftRequest::ChainAdd(t.clone(), base("in", ChainKind::Filter, HookPoint::Input, -5)),
            NftRequest::SetAdd(t.clone(), set("s", &[DataType::IfName], None)),
        ];
        n.commit(&again).unwrap();
        n.commit(&again).unwrap();
        n.commit(&[NftRequest::SetDel(t.clone(), "s".into()), NftRequest::TableDel(t.clone())]).unwrap();
        assert_eq!(n.table(&t).unwrap(), None);
    });
}

#[test]
fn only_the_named_table_is_read() {
    fresh(|| {
        nft("add table inet other");
        nft("add chain inet other seaway");
        nft("add rule inet other seaway counter");
        nft("add table ip seaway");
        nft("add chain ip seaway x");
        let mut n = Nftables::open().unwrap();
        assert_eq!(n.table(&seaway()).unwrap(), None);
        n.commit(&[NftRequest::TableAdd(seaway())]).unwrap();
        assert_eq!(n.table(&seaway()).unwrap(), Some(Table::default()));
        nft("add chain inet seaway x");
        nft("add rule inet seaway x log prefix \"hello\" ct original packets > 5 counter");
        let rules = n.table(&seaway()).unwrap().unwrap().rules;
        assert!(rules[0].exprs.contains(&Expr::Other("log".into())), "{rules:?}");
        n.commit(&[NftRequest::TableDel(seaway())]).unwrap();
        assert!(nft("list ruleset").contains("table ip seaway"));
    });
}

#[test]
fn intervals_of_one_field_and_of_several() {
    use DataType as T;
    fresh(|| {
        let mut n = Nftables::open().unwrap();
        let t = seaway();
        let e = |a: &[u8], b: &[u8]| Element {
            key: a.to_vec(),
            key_end: (a != b).then(|| b.to_vec()),
            data: None,
            comment: None,
        };
        let nets = vec![
            e(&[0, 0, 0, 0], &[0, 255, 255, 255]),
            e(&[10, 0, 0, 0], &[10, 0, 0, 255]),
            e(&[10, 0, 1, 0], &[10, 0, 1, 0]),
            e(&[192, 168, 0, 0], &[255, 255, 255, 255]),
        ];
        let ports = vec![
            e(&[10, 0, 0, 0, 0, 80, 0, 0], &[10, 255, 255, 255, 0, 90, 0, 0]),
            e(&[1, 2, 3, 4, 0, 5, 0, 0], &[1, 2, 3, 4, 0, 5, 0, 0]),
        ];
        let interval = |s: Set| Set { interval: true, ..s };
        n.commit(&[
            NftRequest::TableAdd(t.clone()),
            NftRequest::SetAdd(t.clone(), interval(set("nets", &[T::Ipv4Addr], None))),
            NftRequest::SetAdd(t.clone(), interval(set("ports", &ENDPOINT, None))),
            NftRequest::ElementsAdd(t.clone(), "ports".into(), ports.clone()),
            NftRequest::ElementsAdd(t.clone(), "nets".into(), nets.clone()),
        ])
        .unwrap();
        let have = plain(n.table(&t).unwrap().unwrap());
        let find = |t: &Table, s: &str| t.elements.iter().find(|(n, _)| n == s).unwrap().1.clone();
        assert_eq!(find(&have, "nets"), nets);
        assert_eq!(find(&have, "ports"), [ports[1].clone(), ports[0].clone()]);
        let shown = nft("list table inet seaway");
        for want in
            ["0.0.0.0/8, 10.0.0.0/24", "10.0.1.0, 192.168.0.0-255.255.255.255", "10.0.0.0/8 . 80-90", "1.2.3.4 . 5"]
        {
            assert!(shown.contains(want), "{want}: {shown}");
        }
        // In a later transaction the kernel is asked how the set keeps its elements.
        n.commit(&[
            NftRequest::ElementsDel(t.clone(), "nets".into(), nets[1..].to_vec()),
            NftRequest::ElementsDel(t.clone(), "ports".into(), ports[..1].to_vec()),
        ])
        .unwrap();
        let have = n.table(&t).unwrap().unwrap();
        assert_eq!(find(&have, "nets"), nets[..1]);
        assert_eq!(find(&have, "ports"), ports[1..]);
    });
}
