//! Links of every kind that this kernel has, read back as made; changes to them; rules and tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use common::{fresh, ip, name, new_veth};
use kernel::{Linux, Netns, Rt};
use kernel_api::machine::{Machine as _, Netns as _};
use kernel_api::rt::*;
use kernel_api::{Rtnetlink, errno};
use types::{Cidr, Family, Mac};

fn add(n: &str, kind: NewLinkKind) -> RtRequest {
    RtRequest::LinkAdd(NewLink::new(name(n), kind))
}

fn set(s: SetLink) -> RtRequest {
    RtRequest::LinkSet(s)
}

fn of(n: &str) -> SetLink {
    SetLink::new(name(n))
}

fn index(rt: &mut Rt, n: &str) -> u32 {
    rt.link(&name(n)).unwrap().unwrap().index
}

fn macvlan(lower: u32, mode: MacvlanMode) -> NewLinkKind {
    NewLinkKind::Macvlan { lower, params: MacvlanParams { mode, ..MacvlanParams::default() } }
}

#[test]
fn macvlans_of_every_mode_here_and_in_a_container() {
    let pod = Netns::new().unwrap();
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        rt.run(&[RtRequest::LinkAdd(NewLink { mtu: Some(1400), ..new_veth("up0", "up1") })]).unwrap();
        let lower = index(&mut rt, "up0");
        for (i, mode) in [MacvlanMode::Private, MacvlanMode::Vepa, MacvlanMode::Bridge].into_iter().enumerate() {
            let n = format!("mv{i}");
            rt.run(&[add(&n, macvlan(lower, mode))]).unwrap();
            let l = rt.link(&name(&n)).unwrap().unwrap();
            let LinkKind::Macvlan(p) = &l.kind else { panic!("{l:?}") };
            assert_eq!((p.mode, l.lower, l.lower_netns, l.mtu), (mode, Some(lower), None, 1400));
            assert!(ip(&format!("-d link show {n}")).contains(&format!("macvlan mode {mode} ")));
        }
        let sources = vec![Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
        let params = MacvlanParams { mode: MacvlanMode::Source, sources: sources.clone(), bc_queue_len: Some(77) };
        rt.run(&[add("mvs", NewLinkKind::Macvlan { lower, params: params.clone() })]).unwrap();
        assert_eq!(rt.link(&name("mvs")).unwrap().unwrap().kind, LinkKind::Macvlan(params));
        // One that takes the link whole cannot be beside others.
        let e = rt.run(&[add("mvp", macvlan(lower, MacvlanMode::Passthru))]).unwrap_err();
        assert_eq!(e.errno, errno::EINVAL, "{e}");
        rt.run(&[set(SetLink { macvlan_mode: Some(MacvlanMode::Private), ..of("mv2") })]).unwrap();
        assert!(ip("-d link show mv2").contains("macvlan mode private"));
        let e = rt.run(&[set(SetLink { macvlan_mode: Some(MacvlanMode::Passthru), ..of("mv2") })]).unwrap_err();
        assert_eq!(e.errno, errno::EINVAL, "{e}");

        // Made in the container directly: nothing of it is ever seen here.
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let new = NewLink {
            netns: Some(pod.fd()),
            mac: Some(mac),
            up: true,
            ..NewLink::new(name("eth0"), macvlan(lower, MacvlanMode::Bridge))
        };
        rt.run(&[RtRequest::LinkAdd(new.clone())]).unwrap();
        assert!(rt.link(&name("eth0")).unwrap().is_none());
        let l = Rt::open_in(&pod).unwrap().link(&name("eth0")).unwrap().unwrap();
        assert_eq!((l.mac, l.up, l.lower), (Some(mac), true, Some(lower)));
        assert!(l.lower_netns.is_some());
        assert!(rt.run(&[RtRequest::LinkAdd(new.clone())]).unwrap_err().exists());
        // One here by that name is no hindrance.
        let second = Netns::new().unwrap();
        let (here, other) = (RtRequest::LinkAdd(new_veth("eth0", "eth0p")), Some(second.fd()));
        let there = RtRequest::LinkAdd(NewLink { netns: other, mac: None, ..new });
        rt.run(&[here, there.clone(), set(SetLink { mtu: Some(1300), ..of("eth0") })]).unwrap();
        assert_eq!(Rt::open_in(&second).unwrap().link(&name("eth0")).unwrap().unwrap().lower, Some(lower));
        assert_eq!(rt.link(&name("eth0")).unwrap().unwrap().kind, LinkKind::Veth);
        assert!(rt.run(&[there]).unwrap_err().exists());
        pod.delete_link(&name("eth0")).unwrap();
        assert!(pod.delete_link(&name("eth0")).unwrap_err().absent());

        rt.run(&[add("mvx", macvlan(9999, MacvlanMode::Bridge))]).unwrap_err();
    });
}

#[test]
fn what_links_have_besides() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        let ifb = NewLink { txqlen: Some(99), ..NewLink::new(name("ifb7"), NewLinkKind::Ifb) };
        rt.run(&[
            RtRequest::LinkAdd(new_veth("a", "b")),
            RtRequest::LinkAdd(ifb),
            set(SetLink {
                promisc: Some(true),
                allmulti: Some(true),
                multicast: Some(false),
                txqlen: Some(500),
                alias: Some("of the pod web-0".into()),
                ..SetLink::up(name("a"))
            }),
        ])
        .unwrap();
        ip("link property add dev a altname a-very-long-name-of-a-link");
        let l = rt.link(&name("a")).unwrap().unwrap();
        assert_eq!((l.promisc, l.allmulti, l.multicast, l.txqlen), (true, true, false, 500));
        assert_eq!((l.alias.as_deref(), l.up), (Some("of the pod web-0"), true));
        assert_eq!(l.altnames, ["a-very-long-name-of-a-link"]);
        let ifb = rt.link(&name("ifb7")).unwrap().unwrap();
        assert_eq!((ifb.kind, ifb.txqlen), (LinkKind::Ifb, 99));
        let off = SetLink { promisc: Some(false), alias: Some(String::new()), multicast: Some(true), ..of("a") };
        rt.run(&[set(off)]).unwrap();
        let l = rt.link(&name("a")).unwrap().unwrap();
        assert_eq!((l.promisc, l.allmulti, l.multicast, l.alias, l.up), (false, true, true, None, true));
        assert_eq!(rt.links().unwrap().into_iter().find(|x| x.name == l.name).unwrap().txqlen, 500);
    });
}

#[test]
fn ports_of_a_bridge() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        rt.run(&[add("br0", NewLinkKind::Bridge(BridgeParams::default())), RtRequest::LinkAdd(new_veth("a", "b"))])
            .unwrap();
        let master = Some(index(&mut rt, "br0"));
        let e = rt.run(&[set(SetLink { isolated: Some(true), ..of("a") })]).unwrap_err();
        assert_eq!(e.errno, errno::EOPNOTSUPP, "{e}");
        rt.run(&[set(SetLink { master, hairpin: Some(true), isolated: Some(true), ..of("a") })]).unwrap();
        let l = rt.link(&name("a")).unwrap().unwrap();
        assert_eq!((l.port, l.master), (Some(Port { hairpin: true, isolated: true }), master));
        rt.run(&[set(SetLink { isolated: Some(false), ..of("a") })]).unwrap();
        assert_eq!(rt.link(&name("a")).unwrap().unwrap().port, Some(Port { hairpin: true, isolated: false }));
        rt.run(&[set(SetLink { master: Some(0), ..of("a") })]).unwrap();
        assert_eq!(rt.link(&name("a")).unwrap().unwrap().port, None);
        // A bridge as seen is one made with the kernel's defaults.
        let br = rt.link(&name("br0")).unwrap().unwrap();
        assert_eq!(br.kind, LinkKind::Bridge(BridgeParams::default()));
    });
}

#[test]
fn renames_and_moves_in_one_request() {
    let pod = Netns::new().unwrap();
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        let mut there = Rt::open_in(&pod).unwrap();
        let home = Linux.own().unwrap();
        // Names change hands within a run.
        rt.run(&[
            RtRequest::LinkAdd(new_veth("a", "b")),
            set(SetLink { rename: Some(name("tmp")), ..of("a") }),
            set(SetLink { rename: Some(name("a")), mtu: Some(1300), ..of("b") }),
            set(SetLink { rename: Some(name("b")), mtu: Some(1200), ..of("tmp") }),
        ])
        .unwrap();
        assert_eq!([rt.link(&name("a")), rt.link(&name("b"))].map(|l| l.unwrap().unwrap().mtu), [1300, 1200]);
        let e = rt.run(&[set(SetLink { rename: Some(name("b")), ..of("a") })]).unwrap_err();
        assert!(e.exists(), "{e}");
        // Into the container under another name, and back under the old one.
        rt.run(&[set(SetLink { netns: Some(pod.fd()), rename: Some(name("eth0")), ..SetLink::up(name("a")) })])
            .unwrap();
        assert!(rt.link(&name("a")).unwrap().is_none());
        let l = there.link(&name("eth0")).unwrap().unwrap();
        assert_eq!((l.up, l.mtu), (true, 1300));
        let e = rt.run(&[set(SetLink { netns: Some(pod.fd()), rename: Some(name("eth0")), ..of("b") })]).unwrap_err();
        assert!(e.exists(), "{e}");
        there.run(&[set(SetLink { netns: Some(home.fd()), rename: Some(name("a")), ..of("eth0") })]).unwrap();
        let l = rt.link(&name("a")).unwrap().unwrap();
        assert_eq!((l.up, l.mtu), (false, 1300), "it comes back down");
    });
}

#[test]
fn addresses_in_every_form() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        rt.run(&[RtRequest::LinkAdd(new_veth("a", "b")), set(SetLink::up(name("a"))), set(SetLink::up(name("b")))])
            .unwrap();
        let a = |x: &str, len| Address::new(name("a"), x.parse().unwrap(), len);
        let with = Address { broadcast: a("10.1.0.1", 16).usual_broadcast(), ..a("10.1.0.1", 16) };
        assert_eq!(with.broadcast, Some("10.1.255.255".parse().unwrap()));
        let all = [
            with,
            Address { peer: Some("10.2.0.9".parse().unwrap()), ..a("10.2.0.1", 32) },
            Address { no_prefix_route: true, ..a("10.3.0.1", 24) },
            Address { no_prefix_route: true, ..a("fd03::1", 64) },
            Address { peer: Some("fd02::9".parse().unwrap()), ..a("fd02::1", 128) },
            Address { detect_duplicates: true, ..a("fd04::1", 64) },
            Address { scope_link: true, ..a("10.5.0.1", 32) },
        ];
        rt.run(&all.clone().map(RtRequest::AddressAdd)).unwrap();
        let seen = rt.addresses().unwrap();
        for a in &all {
            assert!(seen.contains(a), "{a}: {seen:#?}");
        }
        let routes: Vec<String> = rt.routes().unwrap().iter().map(|r| r.route.to_string()).collect();
        assert!(routes.iter().any(|r| r.starts_with("10.2.0.9/32 dev a")), "{routes:?}");
        assert!(!routes.iter().any(|r| r.contains("10.3.0.0") || r.contains("fd03::")), "{routes:?}");
        rt.run(&all.map(RtRequest::AddressDel)).unwrap();
        assert!(rt.addresses().unwrap().iter().all(|a| a.link == name("lo") || a.addr.to_string().starts_with("fe80")));
    });
}

#[test]
fn routes_of_other_tables_and_rules() {
    let pod = Netns::new().unwrap();
    pod.run(|| {
        let mut rt = Rt::open().unwrap();
        let a = Address::new(name("a"), "10.0.0.1".parse().unwrap(), 24);
        let b = Address::new(name("a"), "fd00::1".parse().unwrap(), 64);
        rt.run(&[
            RtRequest::LinkAdd(new_veth("a", "b")),
            set(SetLink::up(name("a"))),
            set(SetLink::up(name("b"))),
            RtRequest::AddressAdd(a),
            RtRequest::AddressAdd(b),
        ])
        .unwrap();
        let via = |dst: &str, g: &str, table| Route {
            table,
            ..Route::new(dst.parse().unwrap(), RouteTo::via(g.parse().unwrap(), name("a")))
        };
        let routes = [
            via("0.0.0.0/0", "10.0.0.2", 100),
            via("::/0", "fd00::2", 100),
            via("0.0.0.0/0", "10.0.0.3", 70_000),
            Route { advmss: Some(1200), mtu: Some(1300), ..via("10.9.0.0/16", "10.0.0.2", MAIN_TABLE) },
            Route {
                scope: Some(0),
                table: 100,
                ..Route::new("10.8.0.0/16".parse().unwrap(), RouteTo::Link(name("a")))
            },
        ];
        rt.run(&routes.clone().map(RtRequest::RouteAdd)).unwrap();
        let all = rt.all_routes().unwrap();
        for r in &routes {
            assert!(all.iter().any(|o| o.route == *r && o.protocol == ROUTE_PROTOCOL), "{r}: {all:#?}");
        }
        assert_eq!(rt.routes().unwrap().iter().filter(|r| r.protocol == ROUTE_PROTOCOL).count(), 1);
        assert!(all.iter().all(|r| r.route.table != 255), "{all:#?}");

        let from = |s: &str, t| Rule::from(s.parse::<Cidr>().unwrap(), t);
        let rules = [
            Rule { priority: Some(100), ..from("10.0.0.1/32", 100) },
            Rule { priority: Some(101), ..from("fd00::1/128", 100) },
            Rule {
                priority: Some(102),
                src: None,
                iif: Some(name("a")),
                mark: Some((0x10, 0xf0)),
                ..from("10.0.0.0/8", 70_000)
            },
        ];
        rt.run(&rules.clone().map(RtRequest::RuleAdd)).unwrap();
        let seen = rt.rules().unwrap();
        for r in &rules {
            assert!(seen.contains(&ObservedRule { protocol: ROUTE_PROTOCOL, rule: r.clone() }), "{r}: {seen:#?}");
            assert!(rt.run(&[RtRequest::RuleAdd(r.clone())]).unwrap_err().exists());
        }
        assert_eq!(seen.iter().filter(|r| r.rule.family == Family::V6 && r.protocol == 2).count(), 2, "{seen:#?}");
        // Without a priority the kernel puts it before the main table.
        rt.run(&[RtRequest::RuleAdd(from("10.0.0.7/32", 100))]).unwrap();
        let seven =
            rt.rules().unwrap().into_iter().find(|r| r.rule.src == Some("10.0.0.7/32".parse().unwrap())).unwrap();
        assert_eq!(seven.rule.priority, Some(99), "one below the lowest but that of table local");
        rt.run(&rules.map(RtRequest::RuleDel)).unwrap();

        // What another program made stays, but in a container where it may go.
        ip("rule add from 10.0.0.9 table 100 priority 77");
        ip("route add 10.7.0.0/16 via 10.0.0.2 table 100");
        let theirs = rt.rules().unwrap().into_iter().find(|r| r.rule.priority == Some(77)).unwrap();
        assert!(rt.run(&[RtRequest::RuleDel(theirs.rule.clone())]).unwrap_err().absent());
        let route =
            rt.all_routes().unwrap().into_iter().find(|r| r.route.dst == "10.7.0.0/16".parse().unwrap()).unwrap();
        assert!(rt.run(&[RtRequest::RouteDel(route.route.clone())]).unwrap_err().absent());
        for e in [pod.delete_rule(&theirs), pod.delete_route(&route), pod.delete_link(&name("a"))] {
            let e = e.unwrap_err();
            assert_eq!(e.errno, errno::EPERM, "{e}");
            assert!(e.to_string().contains("containers only"), "{e}");
        }
        std::thread::scope(|s| {
            let outside = s.spawn(|| {
                Netns::new().unwrap().run(|| {
                    pod.delete_rule(&theirs).unwrap();
                    pod.delete_route(&route).unwrap();
                    assert!(pod.delete_rule(&theirs).unwrap_err().absent());
                    assert!(pod.delete_route(&route).unwrap_err().absent());
                    pod.delete_link(&name("a")).unwrap();
                    assert_eq!(pod.delete_link(&name("lo")).unwrap_err().errno, errno::EOPNOTSUPP);
                })
            });
            outside.join().unwrap().unwrap();
        });
        assert!(rt.link(&name("b")).unwrap().is_none(), "the pair is gone");
    })
    .unwrap();
}

#[test]
fn taps() {
    let pod = Netns::new().unwrap();
    fresh(|| {
        let mut there = Rt::open_in(&pod).unwrap();
        pod.add_tun(&NewTun { owner: Some(1000), group: Some(7), ..NewTun::tap(name("tap0")) }).unwrap();
        pod.add_tun(&NewTun { multi_queue: true, ..NewTun::tap(name("tap1")) }).unwrap();
        pod.add_tun(&NewTun { tap: false, ..NewTun::tap(name("tun0")) }).unwrap();
        let plain =
            TunParams { tap: true, persist: true, multi_queue: false, vnet_hdr: false, owner: None, group: None };
        for (n, want) in [
            ("tap0", TunParams { owner: Some(1000), group: Some(7), ..plain }),
            ("tap1", TunParams { multi_queue: true, ..plain }),
            ("tun0", TunParams { tap: false, ..plain }),
        ] {
            assert_eq!(there.link(&name(n)).unwrap().unwrap().kind, LinkKind::Tun(want), "{n}");
        }
        assert!(Rt::open().unwrap().link(&name("tap0")).unwrap().is_none(), "not here");
        let e = pod.add_tun(&NewTun::tap(name("tap0"))).unwrap_err();
        assert_eq!(e.errno, errno::EBUSY, "{e}");
        there.run(&[RtRequest::LinkAdd(new_veth("v", "w"))]).unwrap();
        assert_eq!(pod.add_tun(&NewTun::tap(name("v"))).unwrap_err().errno, errno::EBUSY);
        pod.delete_link(&name("tap0")).unwrap();
        assert!(there.link(&name("tap0")).unwrap().is_none());
    });
}
