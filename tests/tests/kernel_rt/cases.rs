//! One table of requests, run against the kernel and against the fake: both accept the same and refuse the same with
//! the same errno, and afterwards hold the same rows.

use std::collections::BTreeSet;

use kernel::{Netns, Rt};
use kernel_api::rt::{
    Address, BridgeParams, FdbEntry, LinkKind, Neighbour, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink,
    VxlanParams,
};
use kernel_api::{Rtnetlink, errno};
use kernel_fake::rt::FakeRt;
use proptest::prelude::*;
use types::{IfName, OwnedName};

const OK: i32 = 0;
const ENETDOWN: i32 = 100;

fn name(s: &str) -> IfName {
    s.parse().unwrap()
}

fn owned(s: &str) -> OwnedName {
    OwnedName::recognise(&name(s)).unwrap()
}

fn bridge(n: &str) -> RtRequest {
    let kind = NewLinkKind::Bridge(BridgeParams::default());
    RtRequest::LinkAdd(NewLink { up: true, ..NewLink::new(name(n), kind) })
}

fn veth(n: &str, peer: &str) -> RtRequest {
    let kind = NewLinkKind::Veth { peer: name(peer), peer_netns: None, peer_mac: None };
    RtRequest::LinkAdd(NewLink { up: true, ..NewLink::new(name(n), kind) })
}

fn vxlan(n: &str, vni: u32, local: &str) -> NewLink {
    let local = Some(local.parse().unwrap());
    let kind = NewLinkKind::Vxlan(VxlanParams { vni, port: 8472, local, lower: None, learning: false });
    let mac = Some("02:5e:a0:00:00:01".parse().unwrap());
    NewLink { mtu: Some(1450), mac, up: true, ..NewLink::new(name(n), kind) }
}

fn addr(link: &str, cidr: &str) -> Address {
    let (a, l) = cidr.split_once('/').unwrap();
    Address::new(name(link), a.parse().unwrap(), l.parse().unwrap())
}

/// `DST via GW dev LINK [onlink] [src A]`, `DST dev LINK`, `blackhole DST`, `unreachable DST`.
fn route(text: &str) -> Route {
    let w: Vec<&str> = text.split(' ').collect();
    let after = |key: &str| w.iter().position(|x| *x == key).map(|i| w[i + 1]);
    let link = || name(after("dev").unwrap());
    let (dst, to) = match w[0] {
        "blackhole" => (w[1], RouteTo::Blackhole),
        "unreachable" => (w[1], RouteTo::Unreachable),
        dst => (
            dst,
            match after("via") {
                Some(g) => RouteTo::Via { gateway: g.parse().unwrap(), link: link(), onlink: w.contains(&"onlink") },
                None => RouteTo::Link(link()),
            },
        ),
    };
    let dst: types::Cidr = dst.parse().unwrap();
    Route { src: after("src").map(|a| a.parse().unwrap()), ..Route::new(dst, to) }
}

fn add(text: &str) -> RtRequest {
    RtRequest::RouteAdd(route(text))
}

fn replace(text: &str) -> RtRequest {
    RtRequest::RouteReplace(route(text))
}

fn del(text: &str) -> RtRequest {
    RtRequest::RouteDel(route(text))
}

fn neigh(link: &str, a: &str, mac: &str) -> Neighbour {
    Neighbour { link: name(link), addr: a.parse().unwrap(), mac: mac.parse().unwrap() }
}

fn fdb(link: &str, mac: &str, remote: &str) -> FdbEntry {
    FdbEntry { link: name(link), mac: mac.parse().unwrap(), remote: remote.parse().unwrap() }
}

fn down(n: &str) -> RtRequest {
    RtRequest::LinkSet(SetLink { up: Some(false), ..SetLink::new(name(n)) })
}

fn up(n: &str) -> RtRequest {
    RtRequest::LinkSet(SetLink::up(name(n)))
}

/// In order: each case finds what those before it left.
#[allow(clippy::too_many_lines)] // a table
fn table() -> Vec<(RtRequest, i32)> {
    use RtRequest as R;
    let mac2 = "02:5e:a0:00:00:02";
    vec![
        // Links.
        (veth("eth0", "eth0p"), OK),
        (up("eth0p"), OK),
        (veth("eth0", "other"), errno::EEXIST),
        (veth("other", "eth0p"), errno::EEXIST),
        (bridge("eth0"), errno::EEXIST),
        (bridge("br0"), OK),
        (up("nodev"), errno::ENODEV),
        (R::LinkDel(owned("seaway.9")), errno::ENODEV),
        (R::AddressAdd(addr("eth0", "192.168.7.10/24")), OK),
        (R::AddressAdd(addr("eth0", "192.168.7.10/24")), OK),
        (R::AddressAdd(addr("eth0", "fd00:7::a/64")), OK),
        (R::AddressAdd(addr("nodev", "192.168.7.10/24")), errno::ENODEV),
        (R::AddressAdd(addr("eth0", "ff02::1/128")), errno::EADDRNOTAVAIL),
        (R::AddressDel(addr("eth0", "192.168.7.99/24")), errno::EADDRNOTAVAIL),
        (R::AddressDel(addr("eth0", "fd00:7::99/64")), errno::EADDRNOTAVAIL),
        (R::LinkAdd(vxlan("seaway.1", 1, "192.168.7.10")), OK),
        (R::LinkAdd(vxlan("seaway.1", 9, "192.168.7.10")), errno::EEXIST),
        (R::LinkAdd(vxlan("seaway.2", 1, "192.168.7.10")), errno::EEXIST),
        (R::LinkAdd(vxlan("seaway.2", 1, "fd00:7::a")), OK),
        (R::LinkDel(owned("seaway.2")), OK),
        (R::LinkAdd(vxlan("seaway.3", 1 << 24, "192.168.7.10")), errno::ERANGE),
        (R::LinkAdd(NewLink { mtu: Some(20), ..vxlan("seaway.4", 4, "192.168.7.10") }), errno::EINVAL),
        (
            R::LinkAdd(NewLink {
                mac: Some("01:00:5e:00:00:01".parse().unwrap()),
                ..vxlan("seaway.4", 4, "192.168.7.10")
            }),
            errno::EADDRNOTAVAIL,
        ),
        (R::LinkSet(SetLink { mtu: Some(20), ..SetLink::new(name("seaway.1")) }), errno::EINVAL),
        (R::AddressAdd(addr("seaway.1", "10.244.1.0/32")), OK),
        (R::AddressAdd(addr("seaway.1", "fd00:10:244:1::/128")), OK),
        // IPv4 routes.
        (add("10.244.2.0/24 via 192.168.7.11 dev eth0"), OK),
        (add("10.244.2.0/24 via 10.244.2.0 dev seaway.1 onlink"), errno::EEXIST),
        (replace("10.244.2.0/24 via 10.244.2.0 dev seaway.1 onlink"), OK),
        (add("10.244.3.0/24 via 172.16.0.1 dev eth0"), errno::ENETUNREACH),
        (add("10.244.3.0/24 via 192.168.7.11 dev br0"), errno::ENETUNREACH),
        (add("10.244.3.0/24 via 192.168.7.255 dev eth0"), errno::EINVAL),
        (add("10.244.3.0/24 via 10.244.1.0 dev seaway.1 onlink"), errno::EINVAL),
        (add("10.244.3.0/24 via 172.16.0.1 dev eth0 onlink"), OK),
        (del("10.244.3.0/24 via 172.16.0.1 dev eth0 onlink"), OK),
        (add("10.244.3.0/24 dev nodev"), errno::ENODEV),
        (add("10.244.3.0/24 dev eth0 src 1.2.3.4"), errno::EINVAL),
        (add("10.244.3.0/24 dev eth0 src 10.244.1.0"), OK),
        (add("blackhole 10.244.1.0/24"), OK),
        (add("unreachable 10.244.1.0/24"), errno::EEXIST),
        (add("unreachable 10.244.9.0/24"), OK),
        (replace("10.244.9.0/24 via 192.168.7.19 dev eth0"), OK),
        (replace("unreachable 10.244.9.0/24"), OK),
        (del("10.99.0.0/24 dev eth0"), errno::ESRCH),
        (del("blackhole 10.244.9.0/24"), errno::ESRCH),
        (del("10.244.2.0/24 via 192.168.7.11 dev eth0"), errno::ESRCH),
        // IPv6 routes.
        (add("fd00:10:244:2::/64 via fd00:7::b dev eth0"), OK),
        (add("unreachable fd00:10:244:2::/64"), errno::EEXIST),
        (add("fd00:10:244:3::/64 via fd00:8::1 dev eth0"), errno::EHOSTUNREACH),
        (add("fd00:10:244:3::/64 via fd00:7::b dev br0"), errno::EHOSTUNREACH),
        (add("fd00:10:244:3::/64 via fd00:7::a dev eth0"), errno::EINVAL),
        (add("fd00:10:244:3::/64 dev eth0 src fd00:99::1"), errno::EINVAL),
        (add("fd00:10:244:3::/64 dev nodev"), errno::ENODEV),
        // The trap of a switch to vxlan: the route to be replaced leads to the gateway by another link.
        (replace("fd00:10:244:2::/64 via fd00:10:244:2:: dev seaway.1 onlink"), errno::EINVAL),
        (add("fd00:10:244:2::/128 dev seaway.1"), OK),
        (replace("fd00:10:244:2::/64 via fd00:10:244:2:: dev seaway.1 onlink"), OK),
        (del("fd00:10:244:2::/128 dev seaway.1"), OK),
        // A route that discards is no hindrance.
        (add("unreachable fd00:10:244:4::/64"), OK),
        (replace("fd00:10:244:4::/64 via fd00:10:244:4:: dev seaway.1 onlink"), OK),
        (replace("unreachable fd00:10:244:4::/64"), OK),
        (add("blackhole fd00:10:244:1::/64"), OK),
        (del("fd00:99::/64 dev eth0"), errno::ESRCH),
        // Neighbours and forwarding entries.
        (R::NeighbourReplace(neigh("seaway.1", "10.244.2.0", mac2)), OK),
        (R::NeighbourReplace(neigh("seaway.1", "fd00:10:244:2::", mac2)), OK),
        (R::NeighbourReplace(neigh("seaway.1", "10.244.2.0", "02:5e:a0:00:00:03")), OK),
        (R::NeighbourReplace(neigh("nodev", "10.244.2.0", mac2)), errno::ENODEV),
        (R::NeighbourDel(neigh("seaway.1", "10.244.9.0", mac2)), errno::ENOENT),
        (R::FdbReplace(fdb("seaway.1", mac2, "192.168.7.11")), OK),
        (R::FdbReplace(fdb("seaway.1", mac2, "192.168.7.12")), OK),
        (R::FdbReplace(fdb("seaway.1", mac2, "fd00:7::b")), errno::EAFNOSUPPORT),
        (R::FdbReplace(fdb("nodev", mac2, "192.168.7.11")), errno::ENODEV),
        (R::FdbDel(fdb("seaway.1", "02:5e:a0:00:00:09", "192.168.7.11")), errno::ENOENT),
        (R::FdbDel(fdb("seaway.1", mac2, "192.168.7.11")), OK),
        // A link that goes down and up again.
        (add("10.244.5.0/24 via 10.244.5.0 dev seaway.1 onlink"), OK),
        (add("fd00:10:244:5::/64 via fd00:10:244:5:: dev seaway.1 onlink"), OK),
        (down("seaway.1"), OK),
        (add("10.244.6.0/24 dev seaway.1"), ENETDOWN),
        (add("10.244.6.0/24 via 10.244.6.0 dev seaway.1 onlink"), ENETDOWN),
        (add("fd00:10:244:6::/64 dev seaway.1"), ENETDOWN),
        (R::NeighbourReplace(neigh("seaway.1", "10.244.6.0", mac2)), OK),
        (R::AddressAdd(addr("seaway.1", "fd00:10:244:1::/128")), OK),
        (up("seaway.1"), OK),
        (add("10.244.6.0/24 dev seaway.1"), OK),
        (R::AddressAdd(addr("seaway.1", "10.0.9.1/24")), OK),
        (add("10.10.0.0/16 via 192.168.7.1 dev eth0 src 10.0.9.1"), OK),
        (R::AddressDel(addr("seaway.1", "10.0.9.1/24")), OK),
        (del("10.10.0.0/16 via 192.168.7.1 dev eth0 src 10.0.9.1"), errno::ESRCH),
        // The last address of a link takes its IPv4 routes along.
        (R::AddressDel(addr("seaway.1", "10.244.1.0/32")), OK),
        (del("10.244.6.0/24 dev seaway.1"), errno::ESRCH),
        (R::AddressAdd(addr("seaway.1", "10.244.1.0/32")), OK),
        (add("10.244.6.0/24 dev seaway.1"), OK),
        (R::LinkDel(owned("seaway.1")), OK),
        (del("10.244.6.0/24 dev seaway.1"), errno::ENODEV),
        (R::FdbDel(fdb("seaway.1", mac2, "192.168.7.12")), errno::ENODEV),
        (down("eth0"), OK),
        (up("eth0"), OK),
    ]
}

/// Rows as sorted text. Left out: indexes and random hardware addresses, the kernel's link-local addresses and their
/// routes, its default links.
fn rows(k: &mut dyn Rtnetlink) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for l in k.links().unwrap() {
        if l.name.as_str() != "lo" {
            let kind = match l.kind {
                LinkKind::Vxlan(v) => format!("{v:?}"),
                LinkKind::Other(s) => s,
                k => format!("{k:?}"),
            };
            out.insert(format!("link {} mtu {} up {} {kind}", l.name, l.mtu, l.up));
        }
    }
    for a in k.addresses().unwrap() {
        if !a.addr.to_string().starts_with("fe80") && a.link.as_str() != "lo" {
            out.insert(format!("address {a}"));
        }
    }
    for r in k.routes().unwrap() {
        let text = r.route.to_string();
        if !text.starts_with("fe80") && !text.starts_with("ff00") {
            out.insert(format!("route {text} proto {}", r.protocol));
        }
    }
    out.extend(k.neighbours().unwrap().iter().map(|n| format!("neigh {n}")));
    out.extend(k.fdb().unwrap().iter().map(|e| format!("fdb {e}")));
    out
}

#[test]
fn kernel_and_fake_accept_and_refuse_the_same() {
    let ns = Netns::new().unwrap();
    let mut real = Rt::open_in(&ns).unwrap();
    real.run(&[up("lo")]).unwrap();
    let mut fake = FakeRt::new();
    for (n, (request, want)) in table().into_iter().enumerate() {
        let errno = |r: Result<(), kernel_api::RequestError>| r.err().map_or(0, |e| e.errno);
        let got = errno(real.run(std::slice::from_ref(&request)));
        assert_eq!(got, want, "kernel, case {n}: {request}");
        let got = errno(fake.run(std::slice::from_ref(&request)));
        assert_eq!(got, want, "fake, case {n}: {request}");
        assert_eq!(rows(&mut real), rows(&mut fake), "(kernel, fake) after case {n}: {request}");
    }
}

/// A refused request in the middle is named by its index, and those after it are done: on both.
#[test]
fn a_refusal_stops_nothing_and_is_named() {
    let ns = Netns::new().unwrap();
    let mut real = Rt::open_in(&ns).unwrap();
    let mut fake = FakeRt::new();
    for k in [&mut real as &mut dyn Rtnetlink, &mut fake] {
        let e = k
            .run(&[bridge("br0"), add("10.244.3.0/24 dev nodev"), bridge("br0"), add("10.244.4.0/24 dev br0")])
            .unwrap_err();
        assert_eq!((e.index, e.errno), (Some(1), errno::ENODEV), "{e}");
        assert!(e.to_string().contains("10.244.3.0/24"), "{e}");
        let routes = k.routes().unwrap();
        assert!(routes.iter().any(|r| r.route == route("10.244.4.0/24 dev br0")), "{routes:?}");
    }
}

/// The same requests in any order: the fake is the kernel's equal not only along one path.
#[test]
fn kernel_and_fake_agree_in_any_order() {
    let requests: Vec<RtRequest> = table().into_iter().map(|(r, _)| r).collect();
    // The links and addresses come first, or nearly all of the rest is refused for want of them.
    let (setup, rest) = requests.split_at(9);
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(order in prop::collection::vec(any::<prop::sample::Index>(), 1..60))| {
        let ns = Netns::new().unwrap();
        let mut real = Rt::open_in(&ns).unwrap();
        real.run(&[up("lo")]).unwrap();
        let mut fake = FakeRt::new();
        let mut done = Vec::new();
        for r in setup.iter().chain(order.iter().map(|i| i.get(rest))) {
            let errno = |r: Result<(), kernel_api::RequestError>| r.err().map_or(0, |e| e.errno);
            let (a, b) = (errno(real.run(std::slice::from_ref(r))), errno(fake.run(std::slice::from_ref(r))));
            done.push(format!("{r} = {a}"));
            prop_assert_eq!(a, b, "(kernel, fake) {:#?}", done);
            prop_assert_eq!(rows(&mut real), rows(&mut fake), "(kernel, fake) {:#?}", done);
        }
    });
}

/// By which link a packet would leave: the kernel's own answer, and what the fake makes of its routes.
#[test]
fn kernel_and_fake_know_the_same_way() {
    let up = |n: &str| RtRequest::LinkSet(SetLink { up: Some(true), ..SetLink::new(name(n)) });
    let requests = [
        veth("eth0", "far0"),
        veth("eth1", "far1"),
        up("far0"),
        up("far1"),
        RtRequest::AddressAdd(addr("eth0", "192.0.2.7/24")),
        RtRequest::AddressAdd(addr("eth1", "198.51.100.7/24")),
        RtRequest::AddressAdd(addr("eth1", "fd00:1::7/64")),
        RtRequest::RouteReplace(route("0.0.0.0/0 via 192.0.2.1 dev eth0")),
        RtRequest::RouteReplace(route("203.0.113.0/24 via 198.51.100.1 dev eth1")),
        RtRequest::RouteReplace(route("blackhole 203.0.113.128/25")),
        RtRequest::RouteReplace(route("fd00:2::/64 via fd00:1::1 dev eth1")),
        RtRequest::RouteReplace(route("unreachable fd00:2:0:0:8000::/65")),
    ];
    let ns = Netns::new().unwrap();
    let (mut kernel, mut fake) = (Rt::open_in(&ns).unwrap(), FakeRt::new());
    kernel.run(&requests).unwrap();
    fake.run(&requests).unwrap();
    for (to, want) in [
        ("192.0.2.9", Some("eth0")),
        ("8.8.8.8", Some("eth0")),
        ("198.51.100.9", Some("eth1")),
        ("203.0.113.9", Some("eth1")),
        ("203.0.113.200", None),
        ("fd00:2::9", Some("eth1")),
        ("fd00:2::8000:0:0:9", None),
        ("2001:db8::1", None),
    ] {
        let (to, want) = (to.parse().unwrap(), want.map(name));
        assert_eq!(kernel.link_towards(to).unwrap(), want, "the kernel, {to}");
        assert_eq!(fake.link_towards(to).unwrap(), want, "the fake, {to}");
    }
}
