//! rtnetlink against the running kernel, compared with iproute2 as an independent witness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::net::IpAddr;

use common::{bridge, fresh, ip, name, new_veth, veth};
use kernel::{Netns, Rt};
use kernel_api::rt::{
    Address, BridgeParams, FdbEntry, LinkKind, Neighbour, NewLink, NewLinkKind, ROUTE_PROTOCOL, Route, RouteTo,
    RtRequest, SetLink, VxlanParams,
};
use kernel_api::{Rtnetlink as _, errno};
use types::{Mac, OwnedName};

fn addr(link: &str, a: &str, prefix_len: u8) -> Address {
    Address::new(name(link), a.parse().unwrap(), prefix_len)
}

fn route(dst: &str, metric: u32, to: RouteTo) -> Route {
    Route { metric, ..Route::new(dst.parse().unwrap(), to) }
}

fn via(gw: &str, link: &str, onlink: bool) -> RouteTo {
    RouteTo::Via { gateway: gw.parse().unwrap(), link: name(link), onlink }
}

#[test]
fn a_pod_is_attached_with_the_peer_in_another_namespace() {
    let pod = Netns::new().unwrap();
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        let host = OwnedName::pod_link(0xabc);
        let (mac, peer_mac) = (Mac::local([2, 0, 0, 0, 0, 1]), Mac::local([2, 0, 0, 0, 0, 2]));
        rt.run(&[
            RtRequest::LinkAdd(NewLink {
                mtu: Some(1450),
                mac: Some(mac),
                up: true,
                ..NewLink::new(
                    host.name().clone(),
                    NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(pod.fd()), peer_mac: Some(peer_mac) },
                )
            }),
            RtRequest::RouteReplace(route("10.244.1.2/32", 0, RouteTo::Link(host.name().clone()))),
            RtRequest::RouteReplace(route("fd00:10:244:1::2/128", 1024, RouteTo::Link(host.name().clone()))),
            RtRequest::NeighbourReplace(Neighbour {
                link: host.name().clone(),
                addr: "10.244.1.2".parse().unwrap(),
                mac: peer_mac,
            }),
        ])
        .unwrap();
        let mut inside = Rt::open_in(&pod).unwrap();
        inside
            .run(&[
                RtRequest::LinkSet(SetLink::up(name("lo"))),
                RtRequest::LinkSet(SetLink::up(name("eth0"))),
                RtRequest::AddressAdd(addr("eth0", "10.244.1.2", 32)),
                RtRequest::AddressAdd(addr("eth0", "fd00:10:244:1::2", 128)),
                RtRequest::RouteReplace(route("169.254.1.1/32", 0, RouteTo::Link(name("eth0")))),
                RtRequest::RouteReplace(route("0.0.0.0/0", 0, via("169.254.1.1", "eth0", true))),
                RtRequest::RouteReplace(route("::/0", 1024, via("fe80::1", "eth0", true))),
                RtRequest::NeighbourReplace(Neighbour {
                    link: name("eth0"),
                    addr: "169.254.1.1".parse().unwrap(),
                    mac,
                }),
                RtRequest::NeighbourReplace(Neighbour { link: name("eth0"), addr: "fe80::1".parse().unwrap(), mac }),
            ])
            .unwrap();

        let here = rt.link(host.name()).unwrap().unwrap();
        let there = inside.link(&name("eth0")).unwrap().unwrap();
        assert_eq!((here.mtu, here.mac, here.up, &here.kind), (1450, Some(mac), true, &LinkKind::Veth));
        assert_eq!((there.mtu, there.mac, there.up), (1450, Some(peer_mac), true));
        assert_eq!(here.peer_index, Some(there.index));
        assert_eq!(there.peer_index, Some(here.index));
        assert_eq!(rt.link(&name("eth0")).unwrap(), None, "the peer was never here");

        let routes: Vec<_> = rt.routes().unwrap().into_iter().filter(|r| r.protocol == ROUTE_PROTOCOL).collect();
        assert_eq!(routes.len(), 2, "{routes:?}");
        assert!(routes.iter().any(|r| r.route.to_string().starts_with("10.244.1.2/32 dev sea")));
        assert_eq!(rt.neighbours().unwrap().len(), 1);
        let addresses = inside.addresses().unwrap();
        assert!(addresses.contains(&addr("eth0", "10.244.1.2", 32)), "{addresses:?}");
        assert!(addresses.contains(&addr("eth0", "fd00:10:244:1::2", 128)), "{addresses:?}");
        assert_eq!(inside.neighbours().unwrap().len(), 2);
        pod.run(|| {
            let shown = ip("-6 address show dev eth0 scope global");
            assert!(shown.contains("nodad") && !shown.contains("tentative"), "{shown}");
            let shown = ip("route show default");
            assert!(shown.contains("default via 169.254.1.1 dev eth0 proto 83 onlink"), "{shown}");
            let shown = ip("-6 route show default");
            assert!(shown.contains("default via fe80::1 dev eth0 proto 83 metric 1024 onlink"), "{shown}");
        })
        .unwrap();

        // Deleting the host end takes the peer with it.
        rt.run(&[RtRequest::LinkDel(host)]).unwrap();
        assert_eq!(inside.link(&name("eth0")).unwrap(), None);
    });
}

#[test]
fn a_vxlan_device_with_its_three_rows_per_remote() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        veth(&mut rt, "up0", "up1");
        rt.run(&[
            RtRequest::AddressAdd(addr("up0", "192.168.9.1", 24)),
            RtRequest::AddressAdd(addr("up0", "fd00:9::1", 64)),
        ])
        .unwrap();
        let lower = rt.link(&name("up0")).unwrap().unwrap().index;
        for (vni, local, remote) in [(1, "192.168.9.1", "192.168.9.2"), (2, "fd00:9::1", "fd00:9::2")] {
            let dev = OwnedName::vxlan(vni);
            let params = VxlanParams {
                vni,
                port: 8472,
                local: Some(local.parse().unwrap()),
                lower: Some(lower),
                learning: false,
            };
            let mac = Mac::local([2, 0, 0, 0, 1, vni as u8]);
            let entry = FdbEntry { link: dev.name().clone(), mac, remote: remote.parse().unwrap() };
            let neighbours: Vec<Neighbour> = ["10.244.2.0", "fd00:10:244:2::"]
                .iter()
                .map(|a| Neighbour { link: dev.name().clone(), addr: a.parse().unwrap(), mac })
                .collect();
            rt.run(&[
                RtRequest::LinkAdd(NewLink {
                    mtu: Some(1430),
                    mac: Some(Mac::local([2, 9, 9, 9, 9, 9])),
                    up: true,
                    ..NewLink::new(dev.name().clone(), NewLinkKind::Vxlan(params.clone()))
                }),
                RtRequest::AddressAdd(Address { scope_link: true, ..addr(dev.name().as_str(), "10.244.1.0", 32) }),
                RtRequest::RouteReplace(route("10.244.2.0/24", vni, via("10.244.2.0", dev.name().as_str(), true))),
                RtRequest::NeighbourReplace(neighbours[0].clone()),
                RtRequest::NeighbourReplace(neighbours[1].clone()),
                RtRequest::FdbReplace(entry.clone()),
                RtRequest::FdbReplace(entry.clone()),
            ])
            .unwrap();
            let link = rt.link(dev.name()).unwrap().unwrap();
            assert_eq!(link.kind, LinkKind::Vxlan(params));
            assert_eq!(link.mtu, 1430);
            let ours: Vec<_> = rt.fdb().unwrap().into_iter().filter(|e| e.link == *dev.name()).collect();
            assert_eq!(ours, std::slice::from_ref(&entry));
            let shown = bridge(&format!("fdb show dev {}", dev.name()));
            assert!(shown.contains(&format!("{mac} dst {remote} self permanent")), "{shown}");
            let shown = ip(&format!("-d link show {}", dev.name()));
            assert!(shown.contains("nolearning"), "{shown}");
            let found = rt.neighbours().unwrap();
            assert!(neighbours.iter().all(|n| found.contains(n)), "{found:?}");
            // A replaced entry has one destination.
            let moved = FdbEntry { remote: local.parse().unwrap(), ..entry.clone() };
            rt.run(&[RtRequest::FdbReplace(moved.clone())]).unwrap();
            assert!(rt.fdb().unwrap().contains(&moved) && !rt.fdb().unwrap().contains(&entry));
            rt.run(&[RtRequest::FdbDel(moved), RtRequest::NeighbourDel(neighbours[0].clone())]).unwrap();
            assert!(rt.fdb().unwrap().iter().all(|e| e.link != *dev.name()));
            assert!(!rt.neighbours().unwrap().contains(&neighbours[0]));
            rt.run(&[RtRequest::LinkDel(dev)]).unwrap();
        }
    });
}

#[test]
fn every_kind_of_route_reads_back_as_it_was_written() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        veth(&mut rt, "a", "b");
        rt.run(&[RtRequest::AddressAdd(addr("a", "10.0.0.1", 24)), RtRequest::AddressAdd(addr("a", "fd00::1", 64))])
            .unwrap();
        let mut routes = vec![
            route("10.1.0.0/16", 0, via("10.0.0.2", "a", false)),
            route("10.2.0.0/16", 7, via("172.16.0.1", "a", true)),
            route("10.3.0.0/16", 0, RouteTo::Link(name("a"))),
            route("10.4.0.0/16", 4_000_000, RouteTo::Blackhole),
            route("10.5.0.0/16", 0, RouteTo::Unreachable),
            route("fd01::/48", 1024, via("fd00::2", "a", false)),
            route("fd02::/48", 7, via("fe80::7", "a", true)),
            route("fd03::/48", 1024, RouteTo::Link(name("a"))),
            route("fd04::/48", 4_000_000, RouteTo::Blackhole),
            route("fd05::/48", 1024, RouteTo::Unreachable),
            route("0.0.0.0/0", 9, via("10.0.0.9", "a", false)),
            route("::/0", 9, via("fd00::9", "a", false)),
        ];
        routes[0].src = Some("10.0.0.1".parse().unwrap());
        routes[0].mtu = Some(1300);
        routes[5].src = Some("fd00::1".parse().unwrap());
        routes[5].mtu = Some(1300);
        let adds: Vec<_> = routes.iter().cloned().map(RtRequest::RouteReplace).collect();
        rt.run(&adds).unwrap();
        rt.run(&adds).unwrap();
        ip("route add 10.9.0.0/16 dev a metric 5");
        ip("-6 route add fd09::/48 nexthop via fd00::3 dev a nexthop via fd00::4 dev a");
        let seen = rt.routes().unwrap();
        let ours: Vec<_> = seen.iter().filter(|r| r.protocol == ROUTE_PROTOCOL).map(|r| r.route.clone()).collect();
        let sorted = |mut v: Vec<Route>| {
            v.sort();
            v
        };
        assert_eq!(sorted(ours), sorted(routes.clone()));
        assert!(
            seen.iter().any(|r| r.protocol == 2 && r.route.to_string() == "10.0.0.0/24 dev a scope link src 10.0.0.1")
        );
        assert!(seen.iter().any(|r| r.protocol == 3 && r.route.dst.to_string() == "10.9.0.0/16"));
        assert!(seen.iter().any(|r| r.route.dst.to_string() == "fd09::/48" && matches!(r.route.to, RouteTo::Other(_))));

        // Exclusive adds refuse, and say which.
        for (i, r) in routes.iter().enumerate() {
            let e = rt.run(&[RtRequest::LinkSet(SetLink::up(name("a"))), RtRequest::RouteAdd(r.clone())]).unwrap_err();
            assert!(e.exists(), "{i}: {e}");
            assert_eq!(e.index, Some(1));
        }
        // Deletes take only our protocol.
        let e = rt.run(&[RtRequest::RouteDel(route("10.9.0.0/16", 5, RouteTo::Link(name("a"))))]).unwrap_err();
        assert!(e.absent(), "{e}");
        rt.run(&routes.iter().cloned().map(RtRequest::RouteDel).collect::<Vec<_>>()).unwrap();
        let left = rt.routes().unwrap();
        assert!(left.iter().all(|r| r.protocol != ROUTE_PROTOCOL), "{left:?}");
        assert!(left.iter().any(|r| r.route.dst.to_string() == "10.9.0.0/16"));
    });
}

#[test]
fn ipv6_without_a_metric_gets_1024_from_the_kernel() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        rt.run(&[RtRequest::RouteReplace(route("fd07::/48", 0, RouteTo::Unreachable))]).unwrap();
        let seen = rt.routes().unwrap();
        let r = seen.iter().find(|r| r.protocol == ROUTE_PROTOCOL).unwrap();
        assert_eq!((r.route.metric, &r.route.to), (1024, &RouteTo::Unreachable));
    });
}

#[test]
fn a_refusal_names_its_request_and_does_not_stop_the_others() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        veth(&mut rt, "a", "b");
        let e = rt
            .run(&[
                RtRequest::AddressAdd(addr("a", "10.0.0.1", 24)),
                RtRequest::RouteReplace(route("10.1.0.0/16", 0, via("192.168.7.7", "a", false))),
                RtRequest::AddressAdd(addr("nosuch", "10.0.0.1", 24)),
                RtRequest::AddressAdd(addr("b", "10.0.1.1", 24)),
            ])
            .unwrap_err();
        assert_eq!((e.index, e.errno), (Some(1), errno::ENETUNREACH), "{e}");
        assert_eq!(e.message.as_deref(), Some("Nexthop has invalid gateway"));
        assert!(e.to_string().starts_with("route replace 10.1.0.0/16 via 192.168.7.7 dev a: "), "{e}");
        assert!(rt.addresses().unwrap().contains(&addr("b", "10.0.1.1", 24)));

        let e = rt.run(&[RtRequest::AddressAdd(addr("nosuch", "10.0.0.1", 24))]).unwrap_err();
        assert_eq!((e.index, e.errno), (Some(0), errno::ENODEV));
        assert!(e.to_string().contains("there is no link nosuch"), "{e}");
        let e = rt.run(&[RtRequest::LinkAdd(new_veth("a", "c"))]).unwrap_err();
        assert!(e.exists(), "{e}");
        let gone = OwnedName::pod_link(1);
        assert!(rt.run(&[RtRequest::LinkDel(gone)]).unwrap_err().absent());
        let none = route("10.1.0.0/16", 0, via("fd00::1", "a", false));
        assert_eq!(rt.run(&[RtRequest::RouteReplace(none)]).unwrap_err().errno, errno::EAFNOSUPPORT);
    });
}

#[test]
fn bridges_ports_and_hairpin() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        let br = NewLink { up: true, ..NewLink::new(name("br0"), NewLinkKind::Bridge(BridgeParams::default())) };
        rt.run(&[RtRequest::LinkAdd(br)]).unwrap();
        let index = rt.link(&name("br0")).unwrap().unwrap().index;
        rt.run(&[
            RtRequest::LinkAdd(NewLink { master: Some(index), up: true, ..new_veth("p0", "p1") }),
            RtRequest::LinkSet(SetLink { hairpin: Some(true), ..SetLink::new(name("p0")) }),
            RtRequest::LinkSet(SetLink { mtu: Some(1400), mac: Some(Mac::local([2; 6])), ..SetLink::up(name("p1")) }),
        ])
        .unwrap();
        let port = rt.link(&name("p0")).unwrap().unwrap();
        assert_eq!((port.master, port.up), (Some(index), true));
        let shown = bridge("-d link show dev p0");
        assert!(shown.contains("hairpin on"), "{shown}");
        let other = rt.link(&name("p1")).unwrap().unwrap();
        assert_eq!((other.mtu, other.mac, other.up), (1400, Some(Mac::local([2; 6])), true));
        rt.run(&[RtRequest::LinkSet(SetLink { master: Some(0), up: Some(false), ..SetLink::new(name("p0")) })])
            .unwrap();
        let port = rt.link(&name("p0")).unwrap().unwrap();
        assert_eq!((port.master, port.up), (None, false));
    });
}

#[test]
fn moving_a_link_and_sockets_that_stay() {
    let other = Netns::new().unwrap();
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        let mut there = Rt::open_in(&other).unwrap();
        rt.run(&[RtRequest::LinkAdd(new_veth("a", "b"))]).unwrap();
        rt.run(&[RtRequest::LinkSet(SetLink { netns: Some(other.fd()), ..SetLink::new(name("b")) })]).unwrap();
        assert!(rt.link(&name("b")).unwrap().is_none());
        assert!(there.link(&name("b")).unwrap().is_some());
        // The socket sees its own namespace from anywhere.
        other.run(|| assert!(rt.link(&name("a")).unwrap().is_some())).unwrap();
    });
}

#[test]
fn thousands_of_routes_in_one_run_and_whole_dumps() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        veth(&mut rt, "a", "b");
        rt.run(&[RtRequest::AddressAdd(addr("a", "10.0.0.1", 24))]).unwrap();
        let all: Vec<_> = (0..5000u32)
            .map(|i| {
                let a: IpAddr = std::net::Ipv4Addr::from(0x0b00_0000 + i * 256).into();
                RtRequest::RouteReplace(Route {
                    metric: 0,
                    ..Route::new(types::Cidr::new(a, 24).unwrap(), via("10.0.0.2", "a", false))
                })
            })
            .collect();
        let start = std::time::Instant::now();
        rt.run(&all).unwrap();
        let took = start.elapsed();
        let start = std::time::Instant::now();
        let seen = rt.routes().unwrap();
        println!("5000 routes: written in {took:?}, read in {:?}", start.elapsed());
        assert_eq!(seen.iter().filter(|r| r.protocol == ROUTE_PROTOCOL).count(), 5000);
    });
}

/// What the CNI plugin does for a pod, in its order; printed, not asserted, since the machine is shared.
#[test]
fn how_long_an_attach_takes() {
    fresh(|| {
        let mut took = Vec::new();
        for i in 0..50u8 {
            let pod = Netns::new().unwrap();
            let start = std::time::Instant::now();
            let mut rt = Rt::open().unwrap();
            let host = OwnedName::pod_link(u64::from(i));
            let (mac, peer_mac) = (Mac::local([2, 0, 0, 0, 1, i]), Mac::local([2, 0, 0, 0, 2, i]));
            let (v4, v6) = (format!("10.244.1.{i}"), format!("fd00:10:244:1::{i:x}"));
            let neighbour = |link: &str, a: &str, mac| {
                RtRequest::NeighbourReplace(Neighbour { link: name(link), addr: a.parse().unwrap(), mac })
            };
            let h = host.name().as_str();
            rt.run(&[
                RtRequest::LinkAdd(NewLink {
                    mtu: Some(1450),
                    mac: Some(mac),
                    up: true,
                    ..NewLink::new(
                        host.name().clone(),
                        NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(pod.fd()), peer_mac: Some(peer_mac) },
                    )
                }),
                RtRequest::RouteReplace(route(&format!("{v4}/32"), 0, RouteTo::Link(name(h)))),
                RtRequest::RouteReplace(route(&format!("{v6}/128"), 1024, RouteTo::Link(name(h)))),
                neighbour(h, &v4, peer_mac),
                neighbour(h, &v6, peer_mac),
            ])
            .unwrap();
            Rt::open_in(&pod)
                .unwrap()
                .run(&[
                    RtRequest::LinkSet(SetLink::up(name("lo"))),
                    RtRequest::LinkSet(SetLink::up(name("eth0"))),
                    RtRequest::AddressAdd(addr("eth0", &v4, 32)),
                    RtRequest::AddressAdd(addr("eth0", &v6, 128)),
                    RtRequest::RouteReplace(route("169.254.1.1/32", 0, RouteTo::Link(name("eth0")))),
                    RtRequest::RouteReplace(route("0.0.0.0/0", 0, via("169.254.1.1", "eth0", true))),
                    RtRequest::RouteReplace(route("::/0", 1024, via("fe80::1", "eth0", true))),
                    neighbour("eth0", "169.254.1.1", mac),
                    neighbour("eth0", "fe80::1", mac),
                ])
                .unwrap();
            took.push(start.elapsed());
        }
        took.sort();
        println!("attach: p50 {:?}, slowest {:?}", took[25], took[49]);
    });
}

#[test]
fn dumps_are_whole_while_links_come_and_go() {
    let ns = Netns::new().unwrap();
    ns.run(|| {
        let mut rt = Rt::open().unwrap();
        for i in 0..120 {
            rt.run(&[RtRequest::LinkAdd(new_veth(&format!("keep{i}"), &format!("peer{i}")))]).unwrap();
        }
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            // Threads are born into their parent's namespace.
            s.spawn(|| {
                let mut rt = Rt::open().unwrap();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let host = OwnedName::pod_link(7);
                    rt.run(&[RtRequest::LinkAdd(new_veth(host.name().as_str(), "x"))]).unwrap();
                    rt.run(&[RtRequest::LinkDel(host)]).unwrap();
                }
            });
            for _ in 0..20 {
                let links = rt.links();
                let kept = links.as_ref().map(|l| l.iter().filter(|l| l.name.as_str().starts_with("keep")).count());
                if kept != Ok(120) {
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                assert_eq!(kept, Ok(120));
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    })
    .unwrap();
}

/// Links that come and go interrupt dumps of more than one part: each is read until it is whole.
#[test]
fn readings_are_whole_while_everything_changes() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    fresh(|| {
        let mut rt = Rt::open().unwrap();
        // More than one part of any dump.
        for i in 0..60 {
            veth(&mut rt, &format!("a{i}"), &format!("b{i}"));
            rt.run(&[RtRequest::AddressAdd(addr(&format!("a{i}"), &format!("10.0.{i}.1"), 24))]).unwrap();
        }
        let (stop, link, rounds) = (AtomicBool::new(false), OwnedName::pod_link(1), 25);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut rt = Rt::open().unwrap();
                while !stop.load(Relaxed) {
                    let pair = NewLinkKind::Veth { peer: name("other"), peer_netns: None, peer_mac: None };
                    rt.run(&[RtRequest::LinkAdd(NewLink::new(link.name().clone(), pair))]).unwrap();
                    rt.run(&[RtRequest::LinkDel(link.clone())]).unwrap();
                }
            });
            let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..rounds {
                    let all = rt.links().unwrap();
                    assert_eq!(all.iter().filter(|l| l.name.as_str().starts_with(['a', 'b'])).count(), 120);
                    assert_eq!(
                        rt.addresses().unwrap().iter().filter(|a| a.link.as_str() != "lo" && a.addr.is_ipv4()).count(),
                        60
                    );
                }
            }));
            stop.store(true, Relaxed);
            read.unwrap();
        });
    });
}
