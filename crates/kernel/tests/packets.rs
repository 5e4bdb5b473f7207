//! What was committed does to packets what it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{fresh, name, new_veth};
use kernel::{Ct, Netns, Nftables, Rt, Sysctls};
use kernel_api::conntrack::Among;
use kernel_api::nft::{
    Chain, ChainKind, CmpOp, CtKey, DataType, Element, ElementData, Expr, Hook, HookPoint, LookupInto, MetaKey,
    NftRequest, PayloadBase, Reg, RejectWith, Rule, Set, SetData, TableName, Verdict,
};
use kernel_api::rt::{
    Address, FdbEntry, Neighbour, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink, VxlanParams,
};
use kernel_api::{Conntrack as _, Nft as _, Rtnetlink as _, Sysctl as _};
use types::{Cidr, Family, Mac, OwnedName, Proto};

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn raw(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The one-map layout in small: a map from service to chain, a chain that picks an endpoint by number, a reject behind.
fn service(t: &TableName, v6: bool, vip: IpAddr, endpoints: &[SocketAddr]) -> Vec<NftRequest> {
    let tag = if v6 { "6" } else { "4" };
    let (addr, offset, len) = if v6 { (DataType::Ipv6Addr, 24, 16) } else { (DataType::Ipv4Addr, 16, 4) };
    let words = (len / 4) as u8;
    let r = Reg;
    let set = |name: &str, key: Vec<DataType>, data| Set { data: Some(data), ..Set::new(format!("{name}{tag}"), key) };
    let chain = format!("pick{tag}");
    let rule = |chain: &str, exprs| {
        NftRequest::RuleAdd(t.clone(), Rule { chain: chain.into(), handle: 0, exprs, comment: None })
    };
    let family = vec![
        Expr::Meta { key: MetaKey::NfProto, dreg: r(0) },
        Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![if v6 { 10 } else { 2 }] },
    ];
    let key = |port: u16| {
        let mut k = raw(vip);
        k.extend([6, 0, 0, 0]);
        k.extend(port.to_be_bytes());
        k.extend([0, 0]);
        k
    };
    let load = vec![
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg: r(0) },
        Expr::Meta { key: MetaKey::L4Proto, dreg: r(words) },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: r(words + 1) },
    ];
    let services = || [addr, DataType::InetProto, DataType::InetService].to_vec();
    let goto = |c: &str| Some(ElementData::Verdict(Verdict::Goto(c.into())));
    let slots = endpoints.iter().zip(0u32..).map(|(e, i)| {
        let mut data = raw(e.ip());
        data.extend(e.port().to_be_bytes());
        data.extend([0, 0]);
        Element { key: i.to_ne_bytes().to_vec(), key_end: None, data: Some(ElementData::Value(data)), comment: None }
    });
    let lookup = |set: &str, into| Expr::Lookup { set: format!("{set}{tag}"), sreg: r(0), into, invert: false };
    vec![
        NftRequest::ChainAdd(t.clone(), Chain { name: chain.clone(), hook: None }),
        NftRequest::ChainAdd(t.clone(), Chain { name: format!("reset{tag}"), hook: None }),
        NftRequest::SetAdd(t.clone(), set("services", services(), SetData::Verdict)),
        NftRequest::SetAdd(t.clone(), set("none", services(), SetData::Verdict)),
        NftRequest::SetAdd(
            t.clone(),
            set("slots", vec![DataType::Mark], SetData::Value(vec![addr, DataType::InetService])),
        ),
        NftRequest::ElementsAdd(
            t.clone(),
            format!("services{tag}"),
            vec![Element { key: key(80), key_end: None, data: goto(&chain), comment: None }],
        ),
        NftRequest::ElementsAdd(
            t.clone(),
            format!("none{tag}"),
            vec![Element { key: key(81), key_end: None, data: goto(&format!("reset{tag}")), comment: None }],
        ),
        NftRequest::ElementsAdd(t.clone(), format!("slots{tag}"), slots.collect()),
        rule(
            &format!("reset{tag}"),
            vec![
                Expr::Meta { key: MetaKey::L4Proto, dreg: r(0) },
                Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![6] },
                Expr::Reject(RejectWith::TcpReset),
            ],
        ),
        rule("out", [family.clone(), load.clone(), vec![lookup("services", LookupInto::Verdict)]].concat()),
        rule("refuse", [family, load, vec![lookup("none", LookupInto::Verdict)]].concat()),
        rule(
            &chain,
            vec![
                Expr::Numgen { dreg: r(0), modulus: endpoints.len() as u32, offset: 0, random: false },
                lookup("slots", LookupInto::Reg(r(4))),
                Expr::Meta { key: MetaKey::L4Proto, dreg: r(0) },
                Expr::Cmp { sreg: r(0), op: CmpOp::Eq, data: vec![6] },
                Expr::Nat { dnat: true, v6, addr: Some(r(4)), port: Some(r(4 + words)), flags: 0 },
            ],
        ),
    ]
}

#[test]
fn services_lead_to_every_endpoint_in_turn_and_refuse_without() {
    fresh(|| {
        let t = TableName::recognise("seaway").unwrap();
        let mut rt = Rt::open().unwrap();
        let mut n = Nftables::open().unwrap();
        let hook = |name: &str, kind, point, priority| {
            let hook = Some(Hook { kind, point, priority, drop: false });
            NftRequest::ChainAdd(t.clone(), Chain { name: name.into(), hook })
        };
        let mut all = vec![
            NftRequest::TableAdd(t.clone()),
            hook("out", ChainKind::Nat, HookPoint::Output, -100),
            hook("refuse", ChainKind::Filter, HookPoint::Output, 0),
        ];
        let mut servers = Vec::new();
        for (vip, endpoints) in
            [("10.96.0.1", ["10.244.0.2", "10.244.0.3"]), ("fd00:96::1", ["fd00:244::2", "fd00:244::3"])]
        {
            let vip = ip(vip);
            let mut at = Vec::new();
            for (e, port) in endpoints.into_iter().zip([8080, 9090]) {
                let addr = ip(e);
                let prefix_len = if addr.is_ipv4() { 32 } else { 128 };
                rt.run(&[RtRequest::AddressAdd(Address::new(name("lo"), addr, prefix_len))]).unwrap();
                let server = TcpListener::bind(SocketAddr::new(addr, port)).unwrap();
                at.push(server.local_addr().unwrap());
                servers.push(std::thread::spawn(move || {
                    for _ in 0..2 {
                        let mut c = server.accept().unwrap().0;
                        c.write_all(server.local_addr().unwrap().to_string().as_bytes()).unwrap();
                    }
                }));
            }
            // The virtual address needs a route for the packet to leave by, before it is translated.
            rt.run(&[RtRequest::RouteReplace(Route {
                metric: 1,
                ..Route::new(Cidr::host(vip), RouteTo::Link(name("lo")))
            })])
            .unwrap();
            all.extend(service(&t, vip.is_ipv6(), vip, &at));
        }
        n.commit(&all).unwrap();
        let talk = |to: SocketAddr| {
            let mut c = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            let mut s = String::new();
            c.read_to_string(&mut s).map(|_| s)
        };
        for (vip, want) in [
            ("10.96.0.1", ["10.244.0.2:8080", "10.244.0.3:9090"]),
            ("fd00:96::1", ["[fd00:244::2]:8080", "[fd00:244::3]:9090"]),
        ] {
            let vip = ip(vip);
            let mut got: Vec<String> = (0..4).map(|_| talk(SocketAddr::new(vip, 80)).unwrap()).collect();
            got.sort();
            assert_eq!(got, [want[0], want[0], want[1], want[1]]);
            let e = talk(SocketAddr::new(vip, 81)).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{vip}");
        }
        servers.into_iter().for_each(|s| s.join().unwrap());
        // The flows are known with both sides of the translation.
        let mut ct = Ct::open().unwrap();
        let mut seen = 0;
        for family in Family::BOTH {
            let among = Among { proto: Proto::Tcp, family, addr: None, port: Some(80) };
            seen += ct.delete(&among, &mut |f| f.dnat && f.reply.sport != 80).unwrap();
        }
        assert_eq!(seen, 8);
    });
}

/// Two nodes on one wire; what the fabric's three rows per remote node do.
#[test]
fn an_overlay_carries_packets_over_both_families() {
    for (local, remote) in [("192.168.9.1", "192.168.9.2"), ("fd00:9::1", "fd00:9::2")] {
        let other = Netns::new().unwrap();
        fresh(|| {
            let mut here = Rt::open().unwrap();
            let mut there = Rt::open_in(&other).unwrap();
            let wire = NewLink {
                kind: NewLinkKind::Veth { peer: name("up0"), peer_netns: Some(other.fd()), peer_mac: None },
                ..new_veth("up0", "up0")
            };
            here.run(&[RtRequest::LinkAdd(wire)]).unwrap();
            let dev = OwnedName::vxlan(1);
            let mac = |n: u8| Mac::local([2, 0, 0, 0, 9, n]);
            for (rt, me, us, them) in [(&mut here, 1u8, local, remote), (&mut there, 2, remote, local)] {
                let you = 3 - me;
                let prefix_len = if ip(us).is_ipv4() { 24 } else { 64 };
                let address = |link: &str, a: &str, prefix_len| {
                    RtRequest::AddressAdd(Address::new(name(link), ip(a), prefix_len))
                };
                rt.run(&[RtRequest::LinkSet(SetLink::up(name("up0"))), address("up0", us, prefix_len)]).unwrap();
                let lower = rt.link(&name("up0")).unwrap().unwrap().index;
                let params =
                    VxlanParams { vni: 1, port: 8472, local: Some(ip(us)), lower: Some(lower), learning: false };
                let d = dev.name().as_str();
                let mut all = vec![
                    RtRequest::LinkAdd(NewLink {
                        mtu: Some(1400),
                        mac: Some(mac(me)),
                        up: true,
                        ..NewLink::new(dev.name().clone(), NewLinkKind::Vxlan(params))
                    }),
                    RtRequest::FdbReplace(FdbEntry { link: dev.name().clone(), mac: mac(you), remote: ip(them) }),
                ];
                for (net, len, host) in [("10.244", 24, 32), ("fd00:10:244", 64, 128)] {
                    let at = |n: u8, h: &str| match len {
                        24 => format!("{net}.{n}.{h}"),
                        _ => format!("{net}:{n}::{h}"),
                    };
                    all.push(address(d, &at(me, "1"), host));
                    let gateway = ip(&at(you, if len == 24 { "0" } else { "" }));
                    all.push(RtRequest::RouteReplace(Route {
                        metric: if len == 24 { 0 } else { 1024 },
                        src: Some(ip(&at(me, "1"))),
                        ..Route::new(
                            Cidr::new(gateway, len).unwrap(),
                            RouteTo::Via { gateway, link: dev.name().clone(), onlink: true },
                        )
                    }));
                    let entry = Neighbour { link: dev.name().clone(), addr: gateway, mac: mac(you) };
                    all.push(RtRequest::NeighbourReplace(entry));
                }
                rt.run(&all).unwrap();
            }
            for a in ["10.244.2.1", "fd00:10:244:2::1"] {
                let to = SocketAddr::new(ip(a), 7);
                let server = other.run(|| UdpSocket::bind(to).unwrap()).unwrap();
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let client = UdpSocket::bind(any).unwrap();
                for s in [&server, &client] {
                    s.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                }
                let mut buf = [0u8; 2000];
                // The wire's own neighbours may take a moment to be found.
                let heard = (0..25).find_map(|_| {
                    client.send_to(&[7; 1300], to).unwrap();
                    server.recv_from(&mut buf).ok()
                });
                let (n, from) = heard.unwrap_or_else(|| panic!("nothing came to {a} over {local}"));
                assert_eq!(n, 1300);
                server.send_to(b"back", from).unwrap();
                assert_eq!(client.recv(&mut buf).unwrap(), 4);
            }
        });
    }
}

/// Masquerade and the first packet's destination, as the planes use them, over a router.
#[test]
fn forwarded_packets_are_masqueraded_by_their_first_destination() {
    let (pod, outside) = (Netns::new().unwrap(), Netns::new().unwrap());
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        for (link, ns) in [("p", &pod), ("o", &outside)] {
            let kind = NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(ns.fd()), peer_mac: None };
            rt.run(&[RtRequest::LinkAdd(NewLink { kind, up: true, ..new_veth(link, "eth0") })]).unwrap();
        }
        let mut s = Sysctls::open().unwrap();
        s.set("net/ipv4/ip_forward", "1").unwrap();
        let address = |link: &str, a: &str| RtRequest::AddressAdd(Address::new(name(link), ip(a), 24));
        rt.run(&[address("p", "10.244.1.1"), address("o", "192.0.2.1")]).unwrap();
        let default = Route {
            metric: 0,
            ..Route::new(
                "0.0.0.0/0".parse().unwrap(),
                RouteTo::Via { gateway: ip("10.244.1.1"), link: name("eth0"), onlink: false },
            )
        };
        Rt::open_in(&pod)
            .unwrap()
            .run(&[
                RtRequest::LinkSet(SetLink::up(name("eth0"))),
                address("eth0", "10.244.1.2"),
                RtRequest::RouteReplace(default),
            ])
            .unwrap();
        Rt::open_in(&outside)
            .unwrap()
            .run(&[RtRequest::LinkSet(SetLink::up(name("eth0"))), address("eth0", "192.0.2.9")])
            .unwrap();
        let t = TableName::recognise("seaway").unwrap();
        let hook = Some(Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100, drop: false });
        let mut out = b"o".to_vec();
        out.resize(16, 0);
        let exprs = vec![
            Expr::Meta { key: MetaKey::NfProto, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![2] },
            Expr::Meta { key: MetaKey::OifName, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: out },
            Expr::Meta { key: MetaKey::Iif, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, data: vec![0; 4] },
            Expr::Ct { key: CtKey::OriginalDaddr4, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![192, 0, 2, 9] },
            Expr::Ct { key: CtKey::OriginalDport, dreg: Reg(0) },
            Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![0, 7] },
            Expr::Masquerade { flags: 16 },
        ];
        Nftables::open()
            .unwrap()
            .commit(&[
                NftRequest::TableAdd(t.clone()),
                NftRequest::ChainAdd(t.clone(), Chain { name: "post".into(), hook }),
                NftRequest::RuleAdd(t, Rule { chain: "post".into(), handle: 0, exprs, comment: None }),
            ])
            .unwrap();
        let server = outside.run(|| UdpSocket::bind("192.0.2.9:7").unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let client = pod.run(|| UdpSocket::bind("10.244.1.2:5000").unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.send_to(b"out", "192.0.2.9:7").unwrap();
        let mut buf = [0; 8];
        let (_, from) = server.recv_from(&mut buf).unwrap();
        assert_eq!(from.ip(), ip("192.0.2.1"), "masqueraded");
        server.send_to(b"back", from).unwrap();
        assert_eq!(client.recv(&mut buf).unwrap(), 4);
    });
}
