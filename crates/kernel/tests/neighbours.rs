//! Answers in place of addresses that no interface has: a neighbour that asks finds the way, and nothing else is heard.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::{fresh, ip, name};
use kernel::packet::NeighbourSocket;
use kernel::{Netns, Rt};
use kernel_api::Rtnetlink as _;
use kernel_api::neighbours::{Question, announcement, gratuitous_reply};
use kernel_api::rt::{NewLink, NewLinkKind, RtRequest, SetLink};
use types::{Family, Mac};

/// Reads questions until one is for `want`, or for a while; gives what else was heard.
fn heard(s: &mut NeighbourSocket, want: IpAddr, patience: Duration) -> (Option<Question>, Vec<Question>) {
    let (until, mut others) = (Instant::now() + patience, Vec::new());
    while Instant::now() < until {
        if !kernel::poll(&[std::os::fd::AsFd::as_fd(&*s)], Some(Duration::from_millis(50))).unwrap()[0] {
            continue;
        }
        while let Some(frame) = s.receive().unwrap() {
            match Question::parse(frame) {
                Some(q) if q.target == want => return (Some(q), others),
                Some(q) => others.push(q),
                None => panic!("a frame that is no question came through the filter: {frame:02x?}"),
            }
        }
    }
    (None, others)
}

#[test]
fn who_asks_is_answered_and_believes_it() {
    fresh(|| {
        let asker = Netns::new().unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut rt = Rt::open().unwrap();
        let kind = NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(asker.fd()), peer_mac: None };
        rt.run(&[
            RtRequest::LinkAdd(NewLink { mac: Some(mac), ..NewLink::new(name("up0"), kind) }),
            RtRequest::LinkSet(SetLink::up(name("up0"))),
        ])
        .unwrap();
        asker
            .run(|| {
                ip("link set eth0 up");
                ip("addr add 10.0.0.9/24 dev eth0");
                ip("addr add fd00::9/64 dev eth0 nodad");
            })
            .unwrap();
        let up = rt.links().unwrap().into_iter().find(|l| l.name.as_str() == "up0").unwrap();
        assert!(up.up && up.carrier);
        for (family, vip, other) in [(Family::V4, "10.0.0.200", "10.0.0.201"), (Family::V6, "fd00::c8", "fd00::1:c8")] {
            let (vip, other): (IpAddr, IpAddr) = (vip.parse().unwrap(), other.parse().unwrap());
            let mut s = NeighbourSocket::open(up.index, family).unwrap();
            s.listen_for(vip, true).unwrap();
            // Two addresses of one group: left once, it stays for the other while its socket lives.
            assert_eq!(s.listen_for(vip, true).is_err(), family == Family::V6, "a group is joined once");
            let send = |to: IpAddr| {
                asker
                    .run(move || {
                        let from: IpAddr = if to.is_ipv4() { [10, 0, 0, 9].into() } else { "fd00::9".parse().unwrap() };
                        UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (to, 9)).unwrap();
                    })
                    .unwrap();
            };
            send(vip);
            let (q, _) = heard(&mut s, vip, Duration::from_secs(20));
            let q = q.expect("the question");
            assert_eq!(Family::of(q.from), family);
            s.send(&q.answer(mac).unwrap()).unwrap();
            let known = |to: IpAddr| asker.run(move || ip(&format!("neigh show {to} dev eth0"))).unwrap();
            let until = Instant::now() + Duration::from_secs(20);
            while !known(vip).contains("02:00:00:00:00:01") {
                assert!(Instant::now() < until, "{}", known(vip));
                std::thread::sleep(Duration::from_millis(20));
            }
            // Another took it, and told so: who knew the old way knows the new.
            let next = Mac([2, 0, 0, 0, 0, 2]);
            for f in std::iter::once(announcement(next, vip)).chain(gratuitous_reply(next, vip)) {
                s.send(&f).unwrap();
            }
            let until = Instant::now() + Duration::from_secs(20);
            while !known(vip).contains("02:00:00:00:00:02") {
                assert!(Instant::now() < until, "{}", known(vip));
                // Linux does not believe a second change within a second (net.ipv4.neigh.*.locktime).
                std::thread::sleep(Duration::from_millis(300));
                s.send(&announcement(next, vip)).unwrap();
            }
            // What this link sends itself is not heard, and what nobody answers stays unknown.
            send(other);
            let (q, _) = heard(&mut s, other, Duration::from_secs(20));
            assert!(q.is_some());
            assert!(!known(other).contains("02:00:00"), "{}", known(other));
        }
    });
}

#[test]
fn questions_in_a_vlan_are_another_links() {
    fresh(|| {
        let asker = Netns::new().unwrap();
        let mut rt = Rt::open().unwrap();
        let kind = NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(asker.fd()), peer_mac: None };
        rt.run(&[RtRequest::LinkAdd(NewLink::new(name("up0"), kind)), RtRequest::LinkSet(SetLink::up(name("up0")))])
            .unwrap();
        let index = rt.links().unwrap().into_iter().find(|l| l.name.as_str() == "up0").unwrap().index;
        let mut s = NeighbourSocket::open(index, Family::V4).unwrap();
        let vip: IpAddr = [10, 0, 0, 200].into();
        let request = |tag: &[u8]| {
            let arp = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 200];
            [&[0xff; 6], &[2, 0, 0, 0, 0, 9][..], tag, &[8, 6], &arp].concat()
        };
        asker
            .run(|| {
                ip("link set eth0 up");
                let mut rt = Rt::open().unwrap();
                let index = rt.links().unwrap().into_iter().find(|l| l.name.as_str() == "eth0").unwrap().index;
                let s = NeighbourSocket::open(index, Family::V4).unwrap();
                s.send(&request(&[0x81, 0, 0, 10])).unwrap();
                s.send(&request(&[])).unwrap();
            })
            .unwrap();
        assert!(heard(&mut s, vip, Duration::from_secs(20)).0.is_some(), "the plain one");
        assert!(heard(&mut s, vip, Duration::from_millis(300)).0.is_none(), "the one of VLAN 10");
    });
}
