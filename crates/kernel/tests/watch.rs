//! Conntrack, notifications, feature probe: with real packets and other processes' changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use common::{bridge, fresh, ip, name, nft, veth};
use kernel::{Changed, Ct, DirWatch, Monitor, Netns, Nftables, Rt, Sysctls, missing_features, poll};
use kernel_api::conntrack::{Among, Flow};
use kernel_api::nft::{DataType, Element, NftRequest, Set, TableName};
use kernel_api::rt::{Address, Route, RouteTo, RtRequest};
use kernel_api::{Conntrack as _, Nft as _, Rtnetlink as _, Sysctl as _};
use types::{Family, Proto};

/// Tracks what goes over loopback, with a translation of port 53 to 5353.
fn track() {
    nft("add table inet t");
    nft("add chain inet t out { type nat hook output priority -100 ; }");
    nft("add rule inet t out udp dport 53 redirect to :5353");
    nft("add chain inet t f { type filter hook output priority 0 ; }");
    nft("add rule inet t f ct state established counter");
}

fn flows(ct: &mut Ct) -> Vec<Flow> {
    let mut all = Vec::new();
    ct.each(None, &mut |f| all.push(*f)).unwrap();
    all
}

/// Every flow of a protocol and family.
fn all_of(proto: Proto, family: Family) -> Among {
    Among { proto, family, addr: None, port: None }
}

#[test]
fn stale_flows_are_deleted_and_others_stay() {
    fresh(|| {
        track();
        let mut ct = Ct::open().unwrap();
        for a in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let server = UdpSocket::bind(SocketAddr::new(a, 5353)).unwrap();
            for port in [53, 5353, 99] {
                let client = UdpSocket::bind(SocketAddr::new(a, 0)).unwrap();
                client.send_to(b"q", SocketAddr::new(a, port)).unwrap();
                if port != 99 {
                    let mut buf = [0; 8];
                    let (_, from) = server.recv_from(&mut buf).unwrap();
                    server.send_to(b"a", from).unwrap();
                    client.recv_from(&mut buf).unwrap();
                }
            }
        }
        let all = flows(&mut ct);
        assert_eq!(all.len(), 6, "{all:?}");
        for f in &all {
            assert_eq!(f.proto, Proto::Udp);
            assert_eq!(f.dnat, f.original.dport == 53, "{f:?}");
            assert_eq!((f.original.src, f.original.sport), (f.reply.dst, f.reply.dport));
            assert_eq!(f.reply.sport, if f.dnat { 5353 } else { f.original.dport });
        }
        for (family, local) in
            [(Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST)), (Family::V6, Ipv6Addr::LOCALHOST.into())]
        {
            // Another protocol is not even asked.
            assert_eq!(ct.delete(&all_of(Proto::Tcp, family), &mut |_| panic!("no TCP flow")).unwrap(), 0);
            let udp = all_of(Proto::Udp, family);
            // The kernel itself leaves out what differs in protocol, family, port, and address where it can.
            let mut shown = |among: Among| {
                let mut n = 0;
                ct.each(Some(&among), &mut |_| n += 1).unwrap();
                n
            };
            assert_eq!(shown(udp), 3);
            assert_eq!(shown(all_of(Proto::Sctp, family)), 0);
            assert_eq!(shown(Among { port: Some(53), ..udp }), 1);
            assert_eq!(shown(Among { addr: Some(local), port: Some(99), ..udp }), 1);
            let elsewhere: IpAddr = if local.is_ipv4() { "127.0.0.9" } else { "fd00::9" }.parse().unwrap();
            let of_another = Among { addr: Some(elsewhere), ..udp };
            assert_eq!(shown(of_another), if local.is_ipv4() { 0 } else { 3 }, "IPv6 addresses are left to us");
            assert_eq!(ct.delete(&of_another, &mut |_| panic!("none is sent there")).unwrap(), 0);
            let mut seen = 0;
            let deleted = ct.delete(&udp, &mut |f| {
                seen += 1;
                f.dnat
            });
            assert_eq!((deleted.unwrap(), seen), (1, 3));
            let to_local = Among { addr: Some(local), port: Some(5353), ..udp };
            assert_eq!(ct.delete(&to_local, &mut |f| f.original.dst == local).unwrap(), 1);
        }
        let left = flows(&mut ct);
        assert!(left.iter().all(|f| !f.dnat && f.original.dport == 99), "{left:?}");
        assert_eq!(left.len(), 2);
    });
}

#[test]
fn thousands_of_flows_are_deleted_in_one_pass() {
    fresh(|| {
        track();
        let server = UdpSocket::bind("127.0.0.1:9000").unwrap();
        let to = server.local_addr().unwrap();
        for i in 0..3000u32 {
            let from = SocketAddr::from((Ipv4Addr::from(0x7f00_0100 + i), 7000));
            UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap();
        }
        let mut ct = Ct::open().unwrap();
        let deleted =
            ct.delete(&all_of(Proto::Udp, Family::V4), &mut |f| f.original.src.to_string().ends_with('7')).unwrap();
        let left = flows(&mut ct).len();
        assert!(deleted > 200, "{deleted}");
        assert_eq!(deleted + left, 3000);
    });
}

const NOTHING: Changed = Changed { rt: false, nft: false, table: false, generation: None };
const RT: Changed = Changed { rt: true, ..NOTHING };
/// Of no table in particular, where none is watched.
const NFT: Changed = Changed { nft: true, table: true, ..NOTHING };

fn is_ready(m: &Monitor, ms: u64) -> bool {
    poll(&m.fds(), Some(Duration::from_millis(ms))).unwrap()[0]
}

/// What `f` makes the monitor say.
fn seen(m: &mut Monitor, f: impl FnOnce()) -> Changed {
    // What the kernel still says of what was before, such as new links' IPv6 addresses.
    while is_ready(m, 30) {
        m.changed().unwrap();
    }
    assert_eq!(m.changed().unwrap(), NOTHING);
    f();
    let ready = is_ready(m, 0);
    let c = m.changed().unwrap();
    assert!(ready || c == NOTHING, "what changed makes it ready");
    assert!(c.generation.is_none() || c.nft);
    Changed { generation: None, ..c }
}

fn quiet() {
    let mut s = Sysctls::open().unwrap();
    for path in ["net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad"] {
        s.set(path, "0").unwrap();
    }
    for path in ["net/ipv6/conf/default/addr_gen_mode", "net/ipv6/conf/all/addr_gen_mode"] {
        s.set(path, "1").unwrap();
    }
}

#[test]
fn changes_of_others_are_noticed_each_kind() {
    fresh(|| {
        quiet();
        veth(&mut Rt::open().unwrap(), "a", "b");
        let mut m = Monitor::open().unwrap();
        for (command, kind) in [
            ("address add 10.0.0.1/24 dev a", RT),
            ("-6 address add fd00::1/64 dev a nodad", RT),
            ("route add 10.1.0.0/16 via 10.0.0.2", RT),
            ("-6 route add fd01::/48 via fd00::2", RT),
            ("neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev a", RT),
            ("neigh del 10.0.0.7 dev a", RT),
            ("-6 neigh add fd00::7 lladdr 02:00:00:00:00:07 dev a", RT),
            ("-6 neigh del fd00::7 dev a", RT),
            ("neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev a nud stale", NOTHING),
            ("route add 10.9.0.0/16 via 10.0.0.2 table 77", NOTHING),
            ("route del 10.1.0.0/16", RT),
            ("-6 route del fd01::/48", RT),
            ("link set dev a mtu 1400", RT),
            ("link add v type vxlan id 7 dstport 8472 local 10.0.0.1", RT),
        ] {
            assert_eq!(seen(&mut m, || drop(ip(command))), kind, "ip {command}");
        }
        let entry = "02:00:00:00:00:09 dev v dst 10.0.0.9 self permanent";
        assert_eq!(seen(&mut m, || drop(bridge(&format!("fdb add {entry}")))), RT);
        assert_eq!(seen(&mut m, || drop(bridge(&format!("fdb del {entry}")))), RT);
        assert_eq!(seen(&mut m, || drop(ip("link del v"))), RT);
        assert_eq!(seen(&mut m, || drop(nft("add table inet x"))), NFT);
        assert_eq!(seen(&mut m, || drop(nft("add set inet x s { type ipv4_addr ; }"))), NFT);
        assert_eq!(seen(&mut m, || drop(nft("add element inet x s { 1.2.3.4 }"))), NFT);
        assert_eq!(seen(&mut m, || drop(nft("flush ruleset"))), NFT);
        assert_eq!(seen(&mut m, || drop(nft("list ruleset"))), NOTHING);
    });
}

#[test]
fn our_own_commits_do_not_wake_us() {
    fresh(|| {
        quiet();
        let (mut rt, mut n) = (Rt::open().unwrap(), Nftables::open().unwrap());
        veth(&mut rt, "a", "b");
        let mut m = Monitor::open().unwrap();
        m.ignore(rt.port()).unwrap();
        m.ignore(n.port()).unwrap();
        let t = TableName::recognise("seaway").unwrap();
        let set = Set::new("s", vec![DataType::Ipv4Addr]);
        let elements: Vec<Element> = (0..20_000u32).map(|i| Element::new(i.to_be_bytes().to_vec(), None)).collect();
        let c = seen(&mut m, || {
            n.commit(&[
                NftRequest::TableAdd(t.clone()),
                NftRequest::SetAdd(t.clone(), set),
                NftRequest::ElementsAdd(t.clone(), "s".into(), elements),
            ])
            .unwrap();
        });
        assert_eq!(c, NOTHING, "a large commit is one message, and ours");

        let address = Address::new(name("a"), "10.0.0.1".parse().unwrap(), 24);
        let route = Route {
            metric: 0,
            ..Route::new(
                "10.1.0.0/16".parse().unwrap(),
                RouteTo::Via { gateway: "10.0.0.2".parse().unwrap(), link: name("a"), onlink: false },
            )
        };
        rt.run(&[RtRequest::AddressAdd(address)]).unwrap();
        let c = seen(&mut m, || {
            rt.run(&[RtRequest::RouteReplace(route.clone())]).unwrap();
            rt.run(&[RtRequest::RouteDel(route)]).unwrap();
        });
        assert_eq!(c, NOTHING);

        // Settling forgets what has no name, and keeps what another asked for.
        assert_eq!(seen(&mut m, || drop(ip("link set dev a mtu 1300"))), RT);
        while is_ready(&m, 30) {
            m.changed().unwrap();
        }
        rt.run(&[RtRequest::LinkSet(kernel_api::rt::SetLink {
            mtu: Some(1400),
            ..kernel_api::rt::SetLink::new(name("a"))
        })])
        .unwrap();
        m.settle().unwrap();
        assert_eq!(m.changed().unwrap(), NOTHING);
        ip("route add 10.7.0.0/16 via 10.0.0.2");
        nft("flush ruleset");
        m.settle().unwrap();
        let generation = Some(n.generation().unwrap());
        assert_eq!(m.changed().unwrap(), Changed { rt: true, generation, ..NFT });
    });
}

#[test]
fn commits_to_other_tables_are_told_apart_from_those_to_ours() {
    fresh(|| {
        let mut n = Nftables::open().unwrap();
        let mut m = Monitor::open().unwrap();
        m.ignore(n.port()).unwrap();
        let t = TableName::recognise("seaway").unwrap();
        m.watch_table(t.clone());
        n.commit(&[NftRequest::TableAdd(t.clone())]).unwrap();
        let theirs = Changed { nft: true, ..NOTHING };
        let big = (0..3000).map(|i| format!("{}.{}.0.1", i / 250, i % 250)).collect::<Vec<_>>().join(",");
        for (command, want) in [
            ("add table inet x", theirs),
            ("add table ip seaway", theirs),
            ("add chain ip seaway c { type nat hook output priority 0 ; }", theirs),
            ("add table inet seaway-ports", theirs),
            (&format!("add set inet x s {{ type ipv4_addr ; elements = {{ {big} }} ; }}"), theirs),
            ("add chain inet seaway c", NFT),
            ("add rule inet seaway c counter", NFT),
            ("add set inet seaway s { type ipv4_addr ; }", NFT),
            ("add element inet seaway s { 1.2.3.4 }", NFT),
            ("add counter inet seaway k", NFT),
            ("delete element inet seaway s { 1.2.3.4 }", NFT),
            ("flush chain inet seaway c", NFT),
            // One transaction, whose first messages are of others.
            ("flush ruleset", NFT),
            ("list ruleset", NOTHING),
        ] {
            assert_eq!(seen(&mut m, || drop(nft(command))), want, "nft {}", &command[..command.len().min(60)]);
        }
        // What is heard early is still told, and the generation is that of the last commit.
        nft("add table inet y");
        let generation = Some(n.generation().unwrap());
        assert_eq!(m.hear().unwrap(), Changed { generation, ..theirs });
        assert!(m.has_heard() && !is_ready(&m, 0));
        assert_eq!(m.changed().unwrap(), Changed { generation, ..theirs });
        assert!(!m.has_heard());
        // Ours do not even reach us, however many.
        let elements = |n: u32| (0..n).map(|i| Element::new(i.to_be_bytes().to_vec(), None)).collect::<Vec<_>>();
        let set = |name: &str| Set::new(name, vec![DataType::Ipv4Addr]);
        n.commit(&[
            NftRequest::TableAdd(t.clone()),
            NftRequest::SetAdd(t.clone(), set("big")),
            NftRequest::ElementsAdd(t.clone(), "big".into(), elements(20_000)),
        ])
        .unwrap();
        assert!(!is_ready(&m, 0));
        assert_eq!(m.changed().unwrap(), NOTHING);
        // Deaf for a while: nothing is told of what happens then, and all of what happens after.
        m.deaf().unwrap();
        nft("add table inet z");
        assert_eq!(m.changed().unwrap(), NOTHING);
        m.listen().unwrap();
        assert_eq!(seen(&mut m, || drop(nft("delete table inet z"))), theirs);
        // A commit that is more than the socket holds: what is lost may have been of ours.
        let mut other = Nftables::open().unwrap();
        let o = TableName::recognise("seaway-other").unwrap();
        let mut many = elements(40_000);
        many.iter_mut().for_each(|e| e.comment = Some("more to tell of each".repeat(5)));
        let flood = NftRequest::ElementsAdd(o.clone(), "big".into(), many);
        other.commit(&[NftRequest::TableAdd(o.clone()), NftRequest::SetAdd(o, set("big")), flood]).unwrap();
        let c = m.changed().unwrap();
        assert!(c.nft && c.table, "{c:?}");
        while m.changed().unwrap().any() {}
        assert_eq!(seen(&mut m, || drop(nft("add table inet z"))), theirs, "and it goes on working");
    });
}

#[test]
fn who_does_not_ask_for_nf_tables_hears_nothing_of_them() {
    fresh(|| {
        let mut m = Monitor::open_rt().unwrap();
        assert_eq!(seen(&mut m, || drop(nft("add table inet x"))), NOTHING);
        assert_eq!(seen(&mut m, || drop(ip("link set lo mtu 1400"))), RT);
    });
}

#[test]
fn a_flood_counts_as_a_change() {
    fresh(|| {
        quiet();
        let mut rt = Rt::open().unwrap();
        veth(&mut rt, "a", "b");
        let mut m = Monitor::open().unwrap();
        m.ignore(rt.port()).unwrap();
        let c = seen(&mut m, || {
            // More than the socket holds, of a kind that is named as ours: what is lost cannot be known.
            let all: Vec<_> = (0..40_000u32)
                .map(|i| {
                    RtRequest::RouteReplace(Route {
                        metric: 0,
                        ..Route::new(
                            types::Cidr::new(Ipv4Addr::from(0x0b00_0000 + i * 256).into(), 24).unwrap(),
                            RouteTo::Blackhole,
                        )
                    })
                })
                .collect();
            rt.run(&all).unwrap();
        });
        assert_eq!(c, RT);
        while m.changed().unwrap() != NOTHING {}
        assert_eq!(m.changed().unwrap(), NOTHING, "and it goes on working");
    });
}

#[test]
fn a_directory_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = DirWatch::open(dir.path()).unwrap();
    let ready = |w: &DirWatch| poll(&[w.as_fd()], Some(Duration::ZERO)).unwrap()[0];
    assert!(!ready(&w) && !w.changed().unwrap());
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let steps: [(&str, &dyn Fn()); 4] = [
        ("made", &|| fs::write(&a, "").unwrap()),
        ("written", &|| fs::write(&a, "text").unwrap()),
        ("moved", &|| fs::rename(&a, &b).unwrap()),
        ("deleted", &|| fs::remove_file(&b).unwrap()),
    ];
    for (what, f) in steps {
        f();
        assert!(ready(&w), "{what}");
        assert!(w.changed().unwrap(), "{what}");
        assert!(!ready(&w) && !w.changed().unwrap(), "{what}");
    }
    assert!(DirWatch::open(dir.path().join("nosuch")).is_err());
}

#[test]
fn this_kernel_lacks_nothing_and_probing_leaves_nothing() {
    let before = Netns::current().unwrap();
    assert_eq!(missing_features(), [].into());
    assert_eq!(Netns::current().unwrap(), before);
}
