//! Goldens of nf_tables requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeMap;

use kernel_api::nft::*;

use super::{check, show};
use crate::nft::encode::{Batch, Shapes};

fn nft_case(cases: &mut BTreeMap<String, String>, title: &str, requests: &[NftRequest]) {
    let mut batch = Batch::new(1, None);
    let mut shapes = Shapes::new();
    for r in requests {
        if let NftRequest::SetAdd(t, s) = r {
            shapes.insert((t.clone(), s.name.clone()), crate::nft::encode::Shape::of(s));
        }
    }
    for (i, r) in requests.iter().enumerate() {
        batch.push(i, r, &shapes).unwrap();
    }
    batch.finish();
    assert!(cases.insert(title.into(), show(batch.out.as_bytes(), |_| 4)).is_none());
}

#[test]
fn nf_tables_requests() {
    let t = TableName::recognise("seaway").unwrap();
    let mut cases = BTreeMap::new();
    let c = "c".to_owned();
    let hook =
        |kind, point, priority, drop| Chain { name: "c".into(), hook: Some(Hook { kind, point, priority, drop }) };
    nft_case(
        &mut cases,
        "table, chains",
        &[
            NftRequest::TableAdd(t.clone()),
            NftRequest::ChainAdd(t.clone(), Chain { name: "c".into(), hook: None }),
            NftRequest::ChainAdd(t.clone(), hook(ChainKind::Nat, HookPoint::Prerouting, -100, false)),
            NftRequest::ChainAdd(t.clone(), hook(ChainKind::Filter, HookPoint::Forward, 0, true)),
            NftRequest::ChainFlush(t.clone(), c.clone()),
            NftRequest::ChainDel(t.clone(), c.clone()),
            NftRequest::TableDel(t.clone()),
        ],
    );
    let set = |key: &[DataType], data, interval| Set {
        name: "s".into(),
        key: key.to_vec(),
        data,
        interval,
        constant: false,
        timeout: false,
        dynamic: None,
    };
    let e = |key: &[u8], end: Option<&[u8]>, data| Element {
        key: key.to_vec(),
        key_end: end.map(<[u8]>::to_vec),
        data,
        comment: None,
    };
    let add = |s: Set, e: Element| {
        let s = [NftRequest::SetAdd(t.clone(), s), NftRequest::ElementsAdd(t.clone(), "s".into(), vec![e.clone()])];
        [s.to_vec(), vec![NftRequest::ElementsDel(t.clone(), "s".into(), vec![e])]].concat()
    };
    use DataType as T;
    nft_case(
        &mut cases,
        "map of services",
        &add(
            set(&[T::Ipv4Addr, T::InetProto, T::InetService], Some(SetData::Verdict), false),
            e(&[10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0], None, Some(ElementData::Verdict(Verdict::Goto("svc".into())))),
        ),
    );
    nft_case(
        &mut cases,
        "map of marks to endpoints",
        &add(
            set(&[T::Mark], Some(SetData::Value(vec![T::Ipv4Addr, T::InetService])), false),
            e(&[1, 0, 0, 0], None, Some(ElementData::Value(vec![10, 244, 0, 2, 31, 144, 0, 0]))),
        ),
    );
    nft_case(
        &mut cases,
        "set of ranges",
        &add(set(&[T::Ipv4Addr], None, true), e(&[10, 0, 0, 0], Some(&[10, 255, 255, 255]), None)),
    );
    nft_case(
        &mut cases,
        "set of ranges of a concatenation",
        &add(
            set(&[T::Ipv4Addr, T::InetService], None, true),
            e(&[10, 0, 0, 0, 0, 80, 0, 0], Some(&[10, 0, 0, 255, 0, 90, 0, 0]), None),
        ),
    );
    nft_case(
        &mut cases,
        "sets end",
        &[
            NftRequest::ElementsDel(t.clone(), "s".into(), Vec::new()),
            NftRequest::SetFlush(t.clone(), "s".into()),
            NftRequest::SetDel(t.clone(), "s".into()),
        ],
    );
    let r = Reg;
    let exprs = [
        Expr::Meta { key: MetaKey::NfProto, dreg: r(0) },
        Expr::SetMark { sreg: r(1) },
        Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dreg: r(4) },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: r(15) },
        Expr::Cmp { sreg: r(0), op: CmpOp::Neq, data: vec![2] },
        Expr::Bitwise { sreg: r(0), dreg: r(0), mask: vec![0xff, 0, 0, 0], xor: vec![0; 4] },
        Expr::Lookup { set: "s1".into(), sreg: r(0), into: LookupInto::Nothing, invert: true },
        Expr::Lookup { set: "s2".into(), sreg: r(0), into: LookupInto::Reg(r(8)), invert: false },
        Expr::Lookup { set: "s3".into(), sreg: r(0), into: LookupInto::Verdict, invert: false },
        Expr::Immediate { dreg: r(0), data: vec![1, 2, 3, 4] },
        Expr::Verdict(Verdict::Drop),
        Expr::Verdict(Verdict::Jump("cc".into())),
        Expr::Numgen { dreg: r(0), modulus: 3, offset: 7, random: true },
        Expr::FibDaddrType { dreg: r(0) },
        Expr::Ct { key: CtKey::State, dreg: r(0) },
        Expr::Ct { key: CtKey::OriginalDaddr4, dreg: r(0) },
        Expr::SetCtMark { sreg: r(0) },
        Expr::Nat { dnat: true, v6: true, addr: Some(r(0)), port: Some(r(4)), flags: 0 },
        Expr::Nat { dnat: false, v6: false, addr: Some(r(0)), port: None, flags: 16 },
        Expr::Masquerade { flags: 16 },
        Expr::Reject(RejectWith::TcpReset),
        Expr::Reject(RejectWith::PortUnreachable),
        Expr::Counter,
    ];
    for e in exprs {
        let rule = Rule { chain: "c".into(), handle: 0, exprs: vec![e.clone()], comment: None };
        nft_case(&mut cases, &format!("rule {e:?}"), &[NftRequest::RuleAdd(t.clone(), rule)]);
    }
    let commented = Rule { chain: "c".into(), handle: 0, exprs: Vec::new(), comment: Some("why".into()) };
    nft_case(
        &mut cases,
        "rules come and go",
        &[NftRequest::RuleAdd(t.clone(), commented), NftRequest::RuleDel(t.clone(), c, 42)],
    );
    check("nf_tables.txt", cases);
}
