//! Queueing disciplines and filters: read back as made, and what they do to packets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{fresh, ip, name, new_veth, tool};
use kernel::{Netns, Rt};
use kernel_api::machine::Netns as _;
use kernel_api::rt::*;
use kernel_api::tc::*;
use kernel_api::{Rtnetlink, errno};
use types::Mac;

fn qdisc(link: &str, kind: QdiscKind) -> Qdisc {
    Qdisc { link: name(link), kind }
}

fn filter(link: &str, hook: Hook, priority: u16, kind: FilterKind) -> Filter {
    Filter { link: name(link), hook, priority, kind }
}

/// The queueing disciplines of one link.
fn of(rt: &mut Rt, link: &str) -> Vec<Qdisc> {
    let link = rt.link(&name(link)).unwrap().unwrap();
    rt.qdiscs_of(&link).unwrap()
}

fn tc(args: &str) -> String {
    tool("tc", &args.split_whitespace().collect::<Vec<_>>(), "iproute2")
}

#[test]
fn token_buckets() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        rt.run(&[RtRequest::LinkAdd(new_veth("a", "b"))]).unwrap();
        let e = rt.run(&[RtRequest::QdiscDel(name("a"), QdiscSlot::Root)]).unwrap_err();
        assert_eq!(e.errno, errno::ENOENT, "{e}");
        // From a trickle to 80 Gbit/s, which does not fit 32 bits.
        for (rate, burst) in [(125, 2000), (125_000, 10_000), (1_250_000_000, 1_000_000), (10_000_000_000, 4_000_000)] {
            let want = Tbf::new(rate, burst, Duration::from_millis(25));
            rt.run(&[RtRequest::QdiscReplace(qdisc("a", QdiscKind::Tbf(want)))]).unwrap();
            let seen = rt.qdiscs().unwrap();
            assert_eq!(of(&mut rt, "a"), seen);
            assert_eq!(of(&mut rt, "b"), []);
            let [Qdisc { link, kind: QdiscKind::Tbf(got) }] = &seen[..] else { panic!("{seen:?}") };
            assert_eq!((link.as_str(), got.rate, got.limit), ("a", want.rate, want.limit));
            assert!(want.is(got), "{want:?} {got:?}");
            assert!(!Tbf { burst: want.burst * 2, ..want }.is(got));
        }
        rt.run(&[RtRequest::QdiscReplace(qdisc(
            "a",
            QdiscKind::Tbf(Tbf::new(125_000, 10_000, Duration::from_millis(25))),
        ))])
        .unwrap();
        let shown = tc("qdisc show dev a");
        assert!(shown.contains("tbf 1: root") && shown.contains("rate 1Mbit burst 10000b lat 25ms"), "{shown}");
        let none = Tbf { rate: 1000, burst: 0, limit: 1 };
        assert_eq!(
            rt.run(&[RtRequest::QdiscReplace(qdisc("a", QdiscKind::Tbf(none)))]).unwrap_err().errno,
            errno::EINVAL
        );
        rt.run(&[RtRequest::QdiscDel(name("a"), QdiscSlot::Root)]).unwrap();
        assert_eq!(rt.qdiscs().unwrap(), []);
        // Others' are seen by name.
        tc("qdisc add dev a root handle 5: htb");
        tc("qdisc add dev b ingress");
        let seen = rt.qdiscs().unwrap();
        assert!(seen.contains(&qdisc("a", QdiscKind::Other("htb".into()))), "{seen:?}");
        assert!(seen.contains(&qdisc("b", QdiscKind::Ingress)), "{seen:?}");
        assert_eq!(of(&mut rt, "a"), [qdisc("a", QdiscKind::Other("htb".into()))]);
        assert_eq!(of(&mut rt, "b"), [qdisc("b", QdiscKind::Ingress)]);
        let gone = rt.link(&name("a")).unwrap().unwrap();
        tool("ip", &["link", "del", "dev", "a"], "iproute2");
        assert_eq!(rt.qdiscs_of(&gone).unwrap(), []);
    });
}

#[test]
fn classes_by_destination() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        rt.run(&[RtRequest::LinkAdd(new_veth("a", "b"))]).unwrap();
        let put = |kind: QdiscKind| RtRequest::QdiscReplace(qdisc("a", kind));
        let tbf = QdiscKind::Tbf(Tbf::new(125_000, 10_000, Duration::from_millis(25)));
        let del = RtRequest::QdiscDel(name("a"), QdiscSlot::Root);
        let many: Vec<types::Cidr> = (0..DESTINATIONS as u128)
            .map(|n| types::Cidr::host(std::net::Ipv6Addr::from(0xfd00_u128 << 112 | n << 64 | n).into()))
            .collect();
        let lists = [
            vec!["10.0.0.0/8".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
            vec!["0.0.0.0/0".parse().unwrap()],
            vec!["fd00:1:2:3:8000::/65".parse().unwrap()],
            many,
        ];
        for ((rate, burst), destinations) in
            [(125, 2000), (1_250_000, 62_500), (1_250_000_000, 1_000_000), (10_000_000_000, 4_000_000)]
                .into_iter()
                .zip(lists)
        {
            for listed in [true, false] {
                let want = Htb { rate, burst, listed, destinations: destinations.clone() };
                rt.run(&[put(QdiscKind::Htb(want.clone()))]).unwrap();
                let all = rt.qdiscs().unwrap();
                assert_eq!(of(&mut rt, "a"), all);
                let [Qdisc { link, kind: QdiscKind::Htb(got) }] = &all[..] else { panic!("{all:?}") };
                assert_eq!((link.as_str(), Htb { burst, ..got.clone() }), ("a", want));
                assert!(u64::from(got.burst.abs_diff(burst)) <= rate / 1_000_000 + 1, "{got:?}");
                let e = rt.run(&[put(QdiscKind::Htb(got.clone()))]).unwrap_err();
                assert_eq!(e.errno, errno::EINVAL, "made, not changed: {e}");
                // Nor does one take the other's place.
                assert_eq!(rt.run(&[put(tbf.clone())]).unwrap_err().errno, errno::EINVAL);
                rt.run(&[del.clone(), put(tbf.clone())]).unwrap();
                assert_eq!(rt.run(&[put(QdiscKind::Htb(got.clone()))]).unwrap_err().errno, errno::EINVAL);
                rt.run(std::slice::from_ref(&del)).unwrap();
            }
        }
        let want =
            Htb { rate: 1_250_000, burst: 10_000, listed: true, destinations: vec!["10.0.0.0/8".parse().unwrap()] };
        rt.run(&[put(QdiscKind::Htb(want))]).unwrap();
        let shown = tc("class show dev a");
        assert!(shown.contains("class htb 1:30 root prio 0 rate 10Mbit ceil 10Mbit burst 10000b"), "{shown}");
        assert!(shown.contains("class htb 1:1 root prio 0 rate 800Gbit"), "{shown}");
        assert!(
            tc("qdisc show dev a").contains("htb 1: root refcnt") && tc("filter show dev a").contains("flowid 1:30")
        );
        // What lacks a part is no other's, and says so.
        for (harm, lacks) in [
            ("filter del dev a pref 1", "no destinations"),
            ("class change dev a classid 1:1 htb rate 1mbit", "no rate"),
            ("class add dev a classid 1:2 htb rate 1mbit", "no rate"),
            ("filter add dev a pref 2 protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:1", "no destinations"),
        ] {
            let whole = of(&mut rt, "a");
            tc(harm);
            let [Qdisc { kind: QdiscKind::Htb(got), .. }] = &of(&mut rt, "a")[..] else { panic!("{harm}") };
            let (rate, list) = (got.rate == 0, got.destinations.is_empty());
            assert_eq!((rate, list), (lacks == "no rate", lacks == "no destinations"), "{harm}: {got:?}");
            rt.run(&[del.clone(), RtRequest::QdiscReplace(whole[0].clone())]).unwrap();
            assert_eq!(of(&mut rt, "a"), whole);
        }
        rt.run(&[del]).unwrap();
        assert_eq!(rt.qdiscs().unwrap(), []);
        for destinations in [vec![], vec!["::1/128".parse().unwrap(); DESTINATIONS + 1]] {
            let none = Htb { rate: 125, burst: 2000, listed: true, destinations };
            assert_eq!(rt.run(&[put(QdiscKind::Htb(none))]).unwrap_err().errno, errno::EINVAL);
        }
    });
}

#[test]
fn filters_come_and_go() {
    fresh(|| {
        let mut rt = Rt::open().unwrap();
        let ifb = NewLink { up: true, ..NewLink::new(name("ifb7"), NewLinkKind::Ifb) };
        rt.run(&[RtRequest::LinkAdd(new_veth("a", "b")), RtRequest::LinkAdd(ifb)]).unwrap();
        let to = rt.link(&name("ifb7")).unwrap().unwrap().index;
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let guard = |a: &str| FilterKind::Guard(Guard::new(mac, [a.parse().unwrap()], true).unwrap());
        let one = filter("a", Hook::Ingress, 1, guard("10.0.0.7/32"));
        let e = rt.run(&[RtRequest::FilterReplace(one.clone())]).unwrap_err();
        assert_eq!(e.errno, errno::EINVAL, "no clsact: {e}");
        let two = filter("a", Hook::Ingress, 2, FilterKind::Redirect { to });
        let out = filter("a", Hook::Egress, 1, guard("fd00::/64"));
        let clsact = RtRequest::QdiscReplace(qdisc("a", QdiscKind::Clsact));
        rt.run(&[
            clsact.clone(),
            clsact,
            RtRequest::FilterReplace(two.clone()),
            RtRequest::FilterReplace(one.clone()),
            RtRequest::FilterReplace(one.clone()),
            RtRequest::FilterReplace(out.clone()),
        ])
        .unwrap();
        assert_eq!(rt.qdiscs().unwrap(), [qdisc("a", QdiscKind::Clsact)]);
        assert_eq!(rt.filters(&name("a"), Hook::Ingress).unwrap(), [one.clone(), two.clone()]);
        assert_eq!(rt.filters(&name("a"), Hook::Egress).unwrap(), [out]);
        assert_eq!(rt.filters(&name("b"), Hook::Egress).unwrap(), []);
        assert_eq!(rt.filters(&name("nodev"), Hook::Egress).unwrap_err().errno, errno::ENODEV);
        let shown = tc("filter show dev a ingress");
        assert!(shown.contains("mirred (Egress Redirect to device ifb7) stolen"), "{shown}");
        assert!(shown.contains("direct-action"), "{shown}");
        // Changed in place.
        let new = filter("a", Hook::Ingress, 1, guard("10.0.0.8/32"));
        rt.run(&[RtRequest::FilterReplace(new.clone()), RtRequest::FilterReplace(two.clone())]).unwrap();
        assert_eq!(rt.filters(&name("a"), Hook::Ingress).unwrap(), [new.clone(), two.clone()]);
        let wrong = filter("a", Hook::Ingress, 1, FilterKind::Redirect { to });
        assert_eq!(rt.run(&[RtRequest::FilterReplace(wrong)]).unwrap_err().errno, errno::EINVAL);
        let nowhere = filter("a", Hook::Ingress, 5, FilterKind::Redirect { to: 9999 });
        assert_eq!(rt.run(&[RtRequest::FilterReplace(nowhere)]).unwrap_err().errno, errno::ENODEV);
        // Others' are seen by classifier.
        tc(
            "filter add dev a ingress pref 9 protocol ip u32 match ip src 1.2.3.4/32 action mirred egress redirect dev b",
        );
        let words = "filter add dev a ingress pref 10 bpf da bytecode".split(' ').chain(["1,6 0 0 0"]);
        tool("tc", &words.collect::<Vec<_>>(), "iproute2");
        let seen = rt.filters(&name("a"), Hook::Ingress).unwrap();
        let other = |p: u16, k: &str| filter("a", Hook::Ingress, p, FilterKind::Other(k.into()));
        assert_eq!(seen[2..], [other(9, "u32"), other(10, "bpf")]);
        rt.run(&[RtRequest::FilterDel(name("a"), Hook::Ingress, 1)]).unwrap();
        let e = rt.run(&[RtRequest::FilterDel(name("a"), Hook::Ingress, 1)]).unwrap_err();
        assert!(e.absent(), "{e}");
        rt.run(&[RtRequest::QdiscDel(name("a"), QdiscSlot::Clsact)]).unwrap();
        assert_eq!(rt.filters(&name("a"), Hook::Ingress).unwrap(), []);
        for link in ["a", "b"] {
            let e = rt.run(&[RtRequest::QdiscDel(name(link), QdiscSlot::Clsact)]).unwrap_err();
            assert_eq!(e.errno, errno::ENOENT, "{e}");
        }
    });
}

/// A pod behind a guarded veth, 10.0.0.7/24 and fd00::7/64; the host is .1. The guard is on the host's end, or, as for a
/// link that has none, where the pod's own sends.
fn guarded(pod: &Netns, host: &mut Rt, on_host: bool) {
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let kind = NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(pod.fd()), peer_mac: Some(mac) };
    let own = ["10.0.0.7/32", "fd00::7/128"].map(|p| p.parse().unwrap());
    let guard = FilterKind::Guard(Guard::new(mac, own, false).unwrap());
    let at = |l: &str, a: &str, len| RtRequest::AddressAdd(Address::new(name(l), a.parse().unwrap(), len));
    host.run(&[RtRequest::LinkAdd(NewLink::new(name("veth0"), kind))]).unwrap();
    let mut rt = Rt::open_in(pod).unwrap();
    let (at_link, link, hook) =
        if on_host { (&mut *host, "veth0", Hook::Ingress) } else { (&mut rt, "eth0", Hook::Egress) };
    at_link
        .run(&[
            RtRequest::QdiscReplace(qdisc(link, QdiscKind::Clsact)),
            RtRequest::FilterReplace(filter(link, hook, 1, guard)),
        ])
        .unwrap();
    host.run(&[
        RtRequest::LinkSet(SetLink::up(name("veth0"))),
        at("veth0", "10.0.0.1", 24),
        at("veth0", "fd00::1", 64),
    ])
    .unwrap();
    let detect = Address { detect_duplicates: true, ..Address::new(name("eth0"), "fd00::7".parse().unwrap(), 64) };
    rt.run(&[RtRequest::LinkSet(SetLink::up(name("eth0"))), at("eth0", "10.0.0.7", 24), RtRequest::AddressAdd(detect)])
        .unwrap();
}

fn ping(args: &str) -> bool {
    let mut c = Command::new("ping");
    c.args(["-n", "-c1", "-W1"]).args(args.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::null());
    c.stderr(Stdio::null()).status().expect("ping: install the package iputils-ping").success()
}

fn until(what: &str, mut yes: impl FnMut() -> bool) {
    let start = Instant::now();
    while !yes() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guarded_pod_speaks_for_itself_alone() {
    speaks_for_itself_alone(true);
}

#[test]
fn a_pod_guarded_where_it_sends_speaks_for_itself_alone() {
    speaks_for_itself_alone(false);
}

fn speaks_for_itself_alone(on_host: bool) {
    let pod = Netns::new().unwrap();
    fresh(|| {
        let mut host = Rt::open().unwrap();
        guarded(&pod, &mut host, on_host);
        pod.run(|| {
            until("IPv4 from the own address", || ping("10.0.0.1"));
            // With duplicate detection first, and the link-local address's own.
            until("IPv6 from the own address", || ping("fd00::1"));
            ip("address add 10.0.0.8/24 dev eth0");
            ip("address add fd00::8/64 dev eth0 nodad");
            assert!(!ping("-I 10.0.0.8 10.0.0.1") && !ping("-I fd00::8 fd00::1"), "another's address");
            until("the own addresses still", || ping("-I 10.0.0.7 10.0.0.1") && ping("-I fd00::7 fd00::1"));
        })
        .unwrap();
        // Neighbours learn from announcements of the own addresses, and only those.
        ip("neigh flush dev veth0");
        let known = |a: &str| ip(&format!("neigh show {a} dev veth0")).contains("02:00:00:00:00:07");
        for a in ["10.0.0.8", "fd00::8", "10.0.0.7", "fd00::7"] {
            // Announcements change entries, they make none: give each a wrong one.
            ip(&format!("neigh replace {a} lladdr 02:00:00:00:00:99 dev veth0 nud stale"));
            // Dropped where it is sent, it is told so.
            let told = pod.announce(&name("eth0"), a.parse().unwrap()).err().map(|e| e.errno);
            assert_eq!(told, (!on_host && a.ends_with('8')).then_some(errno::ENOBUFS), "{a}");
        }
        until("both are learned", || known("10.0.0.7") && known("fd00::7"));
        assert!(!known("10.0.0.8") && !known("fd00::8"), "{}", ip("neigh show"));
        pod.run(|| {
            ip("link set eth0 address 02:00:00:00:00:08");
            assert!(!ping("10.0.0.1"), "another's hardware address");
        })
        .unwrap();
        let e = pod.announce(&name("nodev"), "10.0.0.7".parse().unwrap()).unwrap_err();
        assert_eq!(e.errno, errno::ENODEV, "{e}");
        pod.run(|| ip("link set eth0 down")).unwrap();
        assert_eq!(pod.announce(&name("eth0"), "10.0.0.7".parse().unwrap()).unwrap_err().errno, 100, "ENETDOWN");
        pod.delete_link(&name("eth0")).unwrap();
        assert_eq!(host.qdiscs().unwrap(), [], "the guard went with its link");
    });
}
