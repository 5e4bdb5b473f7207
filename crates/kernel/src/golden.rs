//! Goldens of what the encoders write, as text that a reviewer can hold against the kernel's headers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kernel_api::nft::Rule;
use kernel_api::nft::*;
use kernel_api::rt::*;
use types::{Mac, OwnedName};

use crate::netlink::{Builder, Messages};
use crate::nft::encode::{Batch, Shapes};
use crate::rt::encode;

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

/// Attributes, one per line, those in a nest below it.
fn attrs(out: &mut String, mut b: &[u8], depth: usize) {
    while b.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([b[0], b[1]]));
        let kind = u16::from_ne_bytes([b[2], b[3]]);
        if len == 0 {
            // The peer of a veth starts with a struct ifinfomsg.
            let (head, rest) = b.split_at(16);
            let _ = writeln!(out, "{:1$}| {2}", "", depth * 2 + 3, hex(head));
            b = rest;
            continue;
        }
        let data = &b[4..len];
        let _ = write!(out, "{:1$}{2:>2}", "", depth * 2 + 2, kind & 0x3fff);
        if kind & 0x8000 != 0 {
            out.push_str(":\n");
            attrs(out, data, depth + 1);
        } else {
            let text = data.strip_suffix(&[0]).filter(|t| t.len() > 1 && t.iter().all(u8::is_ascii_graphic));
            match text {
                Some(t) => writeln!(out, " {:?}", String::from_utf8_lossy(t)),
                None => writeln!(out, " {}", hex(data)),
            }
            .unwrap();
        }
        b = &b[len.next_multiple_of(4).min(b.len())..];
    }
}

/// `type flags | family header`, then the attributes.
fn show(data: &[u8], header: impl Fn(u16) -> usize) -> String {
    let mut out = String::new();
    for m in Messages(data) {
        let (head, rest) = m.payload.split_at(header(m.kind));
        let _ = writeln!(out, "type {:#x} flags {:#x} | {}", m.kind, m.flags, hex(head));
        attrs(&mut out, rest, 0);
    }
    out
}

/// Compares with tests/golden/NAME, or writes it when BLESS=1.
fn check(name: &str, cases: BTreeMap<String, String>) {
    let text: String = cases.iter().map(|(k, v)| format!("# {k}\n{v}\n")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some_and(|v| v == "1") {
        std::fs::write(&path, &text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{name} changed: look at the difference, then BLESS=1 cargo test -p seaway-kernel golden");
}

fn name(s: &str) -> types::IfName {
    s.parse().unwrap()
}

#[test]
fn rtnetlink_requests() {
    let veth = |mac, mtu, peer_netns| NewLink {
        mtu,
        mac,
        up: mtu.is_some(),
        ..NewLink::new(name("sea0123456789ab"), NewLinkKind::Veth { peer: name("eth0"), peer_netns, peer_mac: mac })
    };
    let vxlan = |local: &str| NewLink {
        mtu: Some(1450),
        up: true,
        ..NewLink::new(
            name("seaway.1"),
            NewLinkKind::Vxlan(VxlanParams {
                vni: 1,
                port: 8472,
                local: Some(local.parse().unwrap()),
                lower: Some(2),
                learning: false,
            }),
        )
    };
    let bridge = NewLink::new(name("br0"), NewLinkKind::Bridge(BridgeParams::default()));
    let mac = Mac::local([2, 0, 0, 0, 0, 1]);
    let via = |g: &str, onlink| RouteTo::Via { gateway: g.parse().unwrap(), link: name("eth0"), onlink };
    let route = |dst: &str, metric, to| Route { metric, ..Route::new(dst.parse().unwrap(), to) };
    let full = Route {
        src: Some("10.0.0.1".parse().unwrap()),
        mtu: Some(1400),
        ..route("10.244.2.0/24", 5, via("10.0.0.2", true))
    };
    let address = |a: &str, prefix_len, scope_link| Address {
        scope_link,
        ..Address::new(name("eth0"), a.parse().unwrap(), prefix_len)
    };
    let neighbour = |a: &str| Neighbour { link: name("eth0"), addr: a.parse().unwrap(), mac };
    let fdb = |a: &str, mac| FdbEntry { link: name("eth0"), mac, remote: a.parse().unwrap() };
    let set = SetLink::new(name("eth0"));
    let requests = [
        RtRequest::LinkAdd(veth(None, None, None)),
        RtRequest::LinkAdd(veth(Some(mac), Some(1450), Some(NetnsFd(9)))),
        RtRequest::LinkAdd(bridge),
        RtRequest::LinkAdd(vxlan("10.0.0.1")),
        RtRequest::LinkAdd(vxlan("fd00::1")),
        RtRequest::LinkSet(SetLink::up(name("lo"))),
        RtRequest::LinkSet(SetLink {
            mtu: Some(1400),
            mac: Some(mac),
            master: Some(3),
            up: Some(false),
            ..set.clone()
        }),
        RtRequest::LinkSet(SetLink { netns: Some(NetnsFd(9)), ..set.clone() }),
        RtRequest::LinkSet(SetLink { hairpin: Some(true), ..set }),
        RtRequest::LinkDel(OwnedName::vxlan(1)),
        RtRequest::AddressAdd(address("10.0.0.1", 24, false)),
        RtRequest::AddressAdd(address("fd00::1", 64, false)),
        RtRequest::AddressDel(address("10.244.1.0", 32, true)),
        RtRequest::RouteReplace(full.clone()),
        RtRequest::RouteAdd(route("fd00:10:244:2::/64", 1024, via("fd00::2", false))),
        RtRequest::RouteAdd(route("10.244.1.2/32", 0, RouteTo::Link(name("eth0")))),
        RtRequest::RouteReplace(route("10.244.0.0/16", 0, RouteTo::Blackhole)),
        RtRequest::RouteReplace(route("fd00::/48", 0, RouteTo::Unreachable)),
        RtRequest::RouteDel(full),
        RtRequest::RouteDel(route("fd00::/48", 1024, RouteTo::Unreachable)),
        RtRequest::NeighbourReplace(neighbour("10.244.2.0")),
        RtRequest::NeighbourDel(neighbour("fe80::1")),
        RtRequest::FdbReplace(fdb("10.0.0.2", mac)),
        RtRequest::FdbReplace(fdb("fd00::2", Mac([0; 6]))),
        RtRequest::FdbDel(fdb("10.0.0.2", mac)),
    ];
    let mut cases = BTreeMap::new();
    for r in &requests {
        let mut b = Builder::new();
        encode::request(&mut b, r, if encode::needs_index(r).is_some() { 7 } else { 0 }).unwrap();
        let header = |kind| match kind {
            16..=19 => 16,
            20..=22 => 8,
            _ => 12,
        };
        let clash = cases.insert(r.to_string(), show(b.as_bytes(), header));
        assert!(clash.is_none(), "two cases of {r}");
    }
    check("rtnetlink.txt", cases);
}

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
