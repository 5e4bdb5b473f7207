//! As cases.rs, for what CNI plugins use: links of each kind, renames, rules, tables, buckets, filters. The tables, and
//! what runs them: here on this kernel (kinds.rs), in tests/vm what needs another.
#![allow(dead_code)] // each of the two uses a part

use std::collections::BTreeSet;
use std::time::Duration;

use kernel::Rt;
use kernel_api::rt::*;
use kernel_api::tc::*;
use kernel_api::{Rtnetlink, errno};
use kernel_fake::rt::FakeRt;
use types::{IfName, Mac};

const OK: i32 = 0;
/// `ELOOP`
const ELOOP: i32 = 40;
/// `ENOTSUPP`'s neighbour: what a link of another kind says to a change of its kind's parameters.
const EOPNOTSUPP: i32 = errno::EOPNOTSUPP;

fn name(s: &str) -> IfName {
    s.parse().unwrap()
}

/// A request, given the indexes of links by name: they differ between kernel and fake.
pub type Case = (Box<dyn Fn(&dyn Fn(&str) -> u32) -> RtRequest>, i32);

fn case(errno: i32, r: RtRequest) -> Case {
    (Box::new(move |_| r.clone()), errno)
}

fn link(errno: i32, n: &'static str, kind: NewLinkKind) -> Case {
    case(errno, RtRequest::LinkAdd(NewLink::new(name(n), kind)))
}

fn macvlan(errno: i32, n: &'static str, lower: &'static str, mode: MacvlanMode) -> Case {
    let make = move |index: &dyn Fn(&str) -> u32| {
        let params = MacvlanParams { mode, ..MacvlanParams::default() };
        RtRequest::LinkAdd(NewLink::new(name(n), NewLinkKind::Macvlan { lower: index(lower), params }))
    };
    (Box::new(make), errno)
}

fn set(errno: i32, n: &str, change: impl Fn(SetLink) -> SetLink) -> Case {
    case(errno, RtRequest::LinkSet(change(SetLink::new(name(n)))))
}

fn join(errno: i32, n: &'static str, master: &'static str) -> Case {
    let make = move |index: &dyn Fn(&str) -> u32| {
        RtRequest::LinkSet(SetLink { master: Some(index(master)), ..SetLink::new(name(n)) })
    };
    (Box::new(make), errno)
}

fn address(errno: i32, link: &str, a: &str, len: u8, change: impl Fn(Address) -> Address) -> Case {
    case(errno, RtRequest::AddressAdd(change(Address::new(name(link), a.parse().unwrap(), len))))
}

fn via(dst: &str, gateway: &str, link: &str, table: u32) -> Route {
    Route { table, ..Route::new(dst.parse().unwrap(), RouteTo::via(gateway.parse().unwrap(), name(link))) }
}

fn rule(src: &str, table: u32, priority: u32) -> Rule {
    Rule { priority: Some(priority), ..Rule::from(src.parse().unwrap(), table) }
}

fn tbf(link: &str, rate: u64, burst: u32) -> RtRequest {
    let kind = QdiscKind::Tbf(Tbf::new(rate, burst, Duration::from_millis(25)));
    RtRequest::QdiscReplace(Qdisc { link: name(link), kind })
}

fn htb(link: &str, destinations: &[&str]) -> RtRequest {
    let destinations = destinations.iter().map(|d| d.parse().unwrap()).collect();
    let kind = QdiscKind::Htb(Htb { rate: 125_000, burst: 20_000, listed: true, destinations });
    RtRequest::QdiscReplace(Qdisc { link: name(link), kind })
}

fn clsact(link: &str) -> RtRequest {
    RtRequest::QdiscReplace(Qdisc { link: name(link), kind: QdiscKind::Clsact })
}

fn guard(link: &str, priority: u16, own: &str) -> RtRequest {
    let guard = Guard::new(Mac([2, 0, 0, 0, 0, 7]), [own.parse().unwrap()], false).unwrap();
    let kind = FilterKind::Guard(guard);
    RtRequest::FilterReplace(Filter { link: name(link), hook: Hook::Ingress, priority, kind })
}

fn redirect(errno: i32, link: &'static str, priority: u16, to: &'static str) -> Case {
    let make = move |index: &dyn Fn(&str) -> u32| {
        let kind = FilterKind::Redirect { to: index(to) };
        RtRequest::FilterReplace(Filter { link: name(link), hook: Hook::Ingress, priority, kind })
    };
    (Box::new(make), errno)
}

/// In order: each case finds what those before it left.
#[allow(clippy::too_many_lines)] // a table
pub fn table() -> Vec<Case> {
    use RtRequest as R;
    let veth = |peer: &str| NewLinkKind::Veth { peer: name(peer), peer_netns: None, peer_mac: None };
    let bridge = || NewLinkKind::Bridge(BridgeParams::default());
    let up = |s: SetLink| SetLink { up: Some(true), ..s };
    let same = |a: Address| a;
    let qdel = |l: &str, s| R::QdiscDel(name(l), s);
    let fdel = |p| R::FilterDel(name("eth0"), Hook::Ingress, p);
    vec![
        link(OK, "eth0", veth("eth0p")),
        link(OK, "br0", bridge()),
        link(OK, "br1", bridge()),
        link(OK, "ifb0", NewLinkKind::Ifb),
        link(errno::EEXIST, "ifb0", NewLinkKind::Ifb),
        set(OK, "eth0", up),
        set(OK, "eth0p", up),
        set(OK, "ifb0", up),
        // Macvlans.
        macvlan(OK, "mv0", "eth0", MacvlanMode::Bridge),
        macvlan(OK, "mv1", "eth0", MacvlanMode::Private),
        macvlan(errno::EEXIST, "mv0", "eth0", MacvlanMode::Bridge),
        macvlan(errno::EINVAL, "mv2", "eth0", MacvlanMode::Passthru),
        macvlan(errno::EINVAL, "mv2", "lo", MacvlanMode::Bridge),
        macvlan(errno::ENODEV, "mv2", "nodev", MacvlanMode::Bridge),
        set(OK, "mv1", |s| SetLink { macvlan_mode: Some(MacvlanMode::Vepa), ..s }),
        set(errno::EINVAL, "mv1", |s| SetLink { macvlan_mode: Some(MacvlanMode::Passthru), ..s }),
        set(EOPNOTSUPP, "ifb0", |s| SetLink { macvlan_mode: Some(MacvlanMode::Vepa), ..s }),
        join(errno::EBUSY, "eth0", "br0"),
        // Ports.
        join(ELOOP, "br0", "br1"),
        join(OK, "eth0p", "br0"),
        join(OK, "eth0p", "br1"),
        join(errno::EINVAL, "lo", "br0"),
        join(EOPNOTSUPP, "mv0", "ifb0"),
        macvlan(errno::EBUSY, "mv2", "eth0p", MacvlanMode::Bridge),
        set(OK, "eth0p", |s| SetLink { hairpin: Some(true), isolated: Some(true), ..s }),
        set(EOPNOTSUPP, "eth0", |s| SetLink { hairpin: Some(true), ..s }),
        set(OK, "eth0p", |s| SetLink { master: Some(0), ..s }),
        set(EOPNOTSUPP, "eth0p", |s| SetLink { isolated: Some(true), ..s }),
        // Flags and names.
        set(OK, "eth0", |s| SetLink { promisc: Some(true), allmulti: Some(true), multicast: Some(false), ..s }),
        set(OK, "eth0", |s| SetLink { promisc: Some(false), txqlen: Some(55), alias: Some("x".into()), ..s }),
        set(OK, "eth0", |s| SetLink { alias: Some(String::new()), ..s }),
        set(errno::ERANGE, "eth0", |s| SetLink { alias: Some("x".repeat(300)), ..s }),
        set(errno::EEXIST, "mv1", |s| SetLink { rename: Some(name("mv0")), ..s }),
        set(errno::ENODEV, "mv9", |s| SetLink { rename: Some(name("mv8")), ..s }),
        set(OK, "mv1", |s| SetLink { rename: Some(name("pod0")), ..s }),
        set(errno::ENODEV, "mv1", up),
        set(OK, "pod0", |s| SetLink { rename: Some(name("mv1")), ..s }),
        // Addresses.
        address(OK, "eth0", "10.0.0.1", 24, |a| Address { broadcast: a.usual_broadcast(), ..a }),
        address(OK, "eth0", "10.1.0.1", 24, |a| Address { no_prefix_route: true, ..a }),
        address(OK, "eth0", "10.2.0.1", 32, |a| Address { peer: Some("10.2.0.9".parse().unwrap()), ..a }),
        address(OK, "eth0", "fd00::1", 64, |a| Address { no_prefix_route: true, ..a }),
        address(OK, "eth0", "fd01::1", 64, same),
        // Tables.
        case(OK, R::RouteAdd(via("0.0.0.0/0", "10.0.0.2", "eth0", 100))),
        case(OK, R::RouteAdd(via("0.0.0.0/0", "10.0.0.2", "eth0", 70_000))),
        case(errno::EEXIST, R::RouteAdd(via("0.0.0.0/0", "10.0.0.3", "eth0", 100))),
        case(OK, R::RouteReplace(via("0.0.0.0/0", "10.0.0.3", "eth0", 100))),
        case(errno::ENETUNREACH, R::RouteAdd(via("10.9.0.0/16", "10.7.0.3", "eth0", 100))),
        case(
            OK,
            R::RouteAdd(Route {
                table: 100,
                ..Route::new("10.7.0.0/24".parse().unwrap(), RouteTo::Link(name("eth0")))
            }),
        ),
        case(OK, R::RouteAdd(via("10.9.0.0/16", "10.7.0.3", "eth0", 100))),
        case(errno::ENETUNREACH, R::RouteAdd(via("10.9.0.0/16", "10.7.0.3", "eth0", 101))),
        case(OK, R::RouteAdd(via("::/0", "fd01::2", "eth0", 100))),
        case(errno::ESRCH, R::RouteDel(via("::/0", "fd01::2", "eth0", 101))),
        case(OK, R::RouteDel(via("::/0", "fd01::2", "eth0", 100))),
        case(OK, R::RouteAdd(Route { advmss: Some(1000), ..via("10.8.0.0/16", "10.0.0.2", "eth0", MAIN_TABLE) })),
        // Rules.
        case(OK, R::RuleAdd(rule("10.0.0.1/32", 100, 100))),
        case(errno::EEXIST, R::RuleAdd(rule("10.0.0.1/32", 100, 100))),
        case(OK, R::RuleAdd(rule("10.0.0.1/32", 70_000, 100))),
        case(OK, R::RuleAdd(rule("fd01::1/128", 100, 100))),
        case(OK, R::RuleAdd(Rule { priority: None, ..rule("10.0.0.2/32", 100, 0) })),
        case(OK, R::RuleAdd(Rule { priority: None, ..rule("fd01::2/128", 100, 0) })),
        case(errno::ENOENT, R::RuleDel(rule("10.0.0.1/32", 101, 100))),
        case(OK, R::RuleDel(rule("10.0.0.1/32", 100, 100))),
        case(errno::ENOENT, R::RuleDel(rule("10.0.0.1/32", 100, 100))),
        case(OK, R::RuleDel(Rule { priority: None, ..rule("10.0.0.2/32", 100, 0) })),
        case(OK, R::RuleAdd(Rule { iif: Some(name("eth0")), mark: Some((1, 0xff)), ..rule("10.0.0.9/32", 100, 50) })),
        // Buckets and filters.
        case(errno::ENOENT, qdel("eth0", QdiscSlot::Root)),
        case(errno::ENOENT, qdel("eth0", QdiscSlot::Clsact)),
        case(errno::ENODEV, qdel("nodev", QdiscSlot::Root)),
        case(OK, tbf("eth0", 125_000, 20_000)),
        case(OK, tbf("eth0", 250_000, 20_000)),
        case(errno::EINVAL, tbf("eth0", 250_000, 0)),
        case(errno::ENODEV, tbf("nodev", 250_000, 20_000)),
        case(errno::EINVAL, guard("eth0", 1, "10.0.0.7/32")),
        case(errno::EINVAL, htb("eth0", &["10.0.0.0/8"])),
        case(OK, qdel("eth0", QdiscSlot::Root)),
        case(errno::EINVAL, htb("eth0", &[])),
        case(OK, htb("eth0", &["10.0.0.0/8", "fd00::/64"])),
        case(errno::EINVAL, htb("eth0", &["10.0.0.0/8"])),
        case(errno::EINVAL, tbf("eth0", 250_000, 20_000)),
        case(errno::ENODEV, htb("nodev", &["10.0.0.0/8"])),
        case(OK, clsact("eth0")),
        case(OK, clsact("eth0")),
        case(OK, guard("eth0", 1, "10.0.0.7/32")),
        case(OK, guard("eth0", 1, "10.0.0.8/32")),
        redirect(errno::EINVAL, "eth0", 1, "ifb0"),
        redirect(errno::ENODEV, "eth0", 2, "nodev"),
        redirect(OK, "eth0", 2, "ifb0"),
        case(errno::ENOENT, fdel(3)),
        case(OK, fdel(1)),
        case(errno::ENOENT, fdel(1)),
        set(OK, "eth0", |s| SetLink { up: Some(false), ..s }),
        set(OK, "eth0", |s| SetLink { rename: Some(name("net0")), ..s }),
        case(errno::ENODEV, qdel("eth0", QdiscSlot::Clsact)),
        case(OK, qdel("net0", QdiscSlot::Root)),
        case(OK, qdel("net0", QdiscSlot::Clsact)),
    ]
}

/// Rows as sorted text, indexes as names; without what the kernel makes by itself.
fn rows(k: &mut dyn Rtnetlink) -> BTreeSet<String> {
    let links = k.links().unwrap();
    let of = |i: Option<u32>| i.and_then(|i| links.iter().find(|l| l.index == i)).map_or("", |l| l.name.as_str());
    let mut out = BTreeSet::new();
    for l in links.iter().filter(|l| l.name.as_str() != "lo") {
        let flags = (l.up, l.promisc, l.allmulti, l.multicast);
        let ends = (of(l.master), of(l.peer_index), of(l.lower));
        out.insert(format!(
            "{} {} {:?} {flags:?} {ends:?} {} {:?} {:?}",
            l.name, l.mtu, l.kind, l.txqlen, l.alias, l.port
        ));
    }
    let ours = |a: &str| !a.starts_with("fe80") && !a.starts_with("ff00");
    for a in k.addresses().unwrap() {
        if ours(&a.addr.to_string()) && a.link.as_str() != "lo" {
            out.insert(format!("address {a} {}", a.detect_duplicates));
        }
    }
    for r in k.all_routes().unwrap() {
        if ours(&r.route.to_string()) {
            out.insert(format!("route {} proto {}", r.route, r.protocol));
        }
    }
    out.extend(k.rules().unwrap().iter().map(|r| format!("rule {:?} {} proto {}", r.rule.family, r.rule, r.protocol)));
    for q in k.qdiscs().unwrap() {
        let kind = match &q.kind {
            // The bucket is rounded.
            QdiscKind::Tbf(t) => format!("tbf {} {} {}", t.rate, t.burst / 100, t.limit),
            QdiscKind::Htb(h) => format!("htb {} {} {} {:?}", h.rate, h.burst / 100, h.listed, h.destinations),
            k => k.to_string(),
        };
        out.insert(format!("qdisc {} {kind}", q.link));
    }
    for l in &links {
        for f in k.filters(&l.name, Hook::Ingress).unwrap() {
            let kind = match f.kind {
                FilterKind::Redirect { to } => format!("redirect {}", of(Some(to))),
                k => format!("{k:?}"),
            };
            out.insert(format!("filter {} {} {kind}", f.link, f.priority));
        }
    }
    out
}

/// Links, VLANs of ports and VRFs that need a kernel with them.
pub fn of_other_kernels() -> Vec<Case> {
    use RtRequest as R;
    let up = |s: SetLink| SetLink { up: Some(true), ..s };
    let over = |errno, n: &'static str, lower: &'static str, kind: fn(u32) -> NewLinkKind| -> Case {
        (Box::new(move |index| R::LinkAdd(NewLink::new(name(n), kind(index(lower))))), errno)
    };
    let veth = |peer: &str| NewLinkKind::Veth { peer: name(peer), peer_netns: None, peer_mac: None };
    let filtering = |default_pvid| NewLinkKind::Bridge(BridgeParams { vlan_filtering: true, default_pvid });
    let add = |errno, v| case(errno, R::PortVlanAdd(v));
    let del = |errno, v| case(errno, R::PortVlanDel(v));
    let tagged = |n: &str, vid, last| PortVlan { last, ..PortVlan::tagged(name(n), vid) };
    vec![
        link(OK, "d0", NewLinkKind::Dummy),
        link(OK, "d1", NewLinkKind::Dummy),
        link(OK, "d2", NewLinkKind::Dummy),
        link(OK, "p0", veth("p1")),
        set(OK, "d0", up),
        set(OK, "d1", up),
        // VLANs.
        over(OK, "vl5", "d0", |lower| NewLinkKind::Vlan { lower, params: VlanParams { id: 5, ad: false } }),
        over(errno::EEXIST, "vl5b", "d0", |lower| NewLinkKind::Vlan { lower, params: VlanParams { id: 5, ad: false } }),
        over(OK, "vl5c", "d0", |lower| NewLinkKind::Vlan { lower, params: VlanParams { id: 5, ad: true } }),
        over(errno::ERANGE, "vl6", "d0", |lower| NewLinkKind::Vlan {
            lower,
            params: VlanParams { id: 4095, ad: false },
        }),
        over(errno::ENODEV, "vl6", "no", |lower| NewLinkKind::Vlan { lower, params: VlanParams { id: 6, ad: false } }),
        set(OK, "vl5", up),
        // Ipvlans share a mode, and a link with nobody else.
        over(OK, "iv0", "d1", |lower| NewLinkKind::Ipvlan { lower, params: IpvlanParams::default() }),
        over(OK, "iv1", "d1", |lower| NewLinkKind::Ipvlan {
            lower,
            params: IpvlanParams { mode: IpvlanMode::L3, flag: IpvlanFlag::Private },
        }),
        macvlan(errno::EBUSY, "mv0", "d1", MacvlanMode::Bridge),
        macvlan(OK, "mv0", "d0", MacvlanMode::Bridge),
        over(errno::EBUSY, "iv2", "d0", |lower| NewLinkKind::Ipvlan { lower, params: IpvlanParams::default() }),
        over(errno::EINVAL, "iv2", "lo", |lower| NewLinkKind::Ipvlan { lower, params: IpvlanParams::default() }),
        // VRFs take a link's routes along, and its IPv6 addresses are lost.
        link(OK, "vrf0", NewLinkKind::Vrf { table: 10 }),
        link(errno::EINVAL, "vrf1", NewLinkKind::Vrf { table: 0 }),
        set(OK, "vrf0", up),
        set(OK, "d2", up),
        address(OK, "d2", "10.0.0.1", 24, |a| a),
        address(OK, "d2", "fd00::1", 64, |a| a),
        case(OK, R::RouteAdd(via("10.9.0.0/16", "10.0.0.2", "d2", MAIN_TABLE))),
        join(OK, "d2", "vrf0"),
        address(OK, "d2", "fd00::1", 64, |a| a),
        case(OK, R::RouteAdd(via("10.8.0.0/16", "10.0.0.2", "d2", 10))),
        set(OK, "d2", |s| SetLink { master: Some(0), ..s }),
        // VLANs of ports.
        link(OK, "br0", filtering(0)),
        link(OK, "br1", filtering(1)),
        link(errno::EINVAL, "br2", filtering(4095)),
        add(errno::EOPNOTSUPP, tagged("p0", 7, 7)),
        join(OK, "p0", "br0"),
        join(OK, "p1", "br1"),
        add(OK, PortVlan::access(name("p0"), 100)),
        add(OK, tagged("p0", 200, 210)),
        add(OK, tagged("p0", 205, 215)),
        add(OK, PortVlan::access(name("p0"), 101)),
        add(errno::EINVAL, tagged("p0", 4095, 4095)),
        add(errno::EINVAL, tagged("p0", 10, 9)),
        add(errno::EINVAL, PortVlan { pvid: true, ..tagged("p0", 10, 12) }),
        del(OK, tagged("p0", 203, 204)),
        del(OK, tagged("p0", 203, 203)),
        add(OK, PortVlan { on_bridge: true, ..tagged("br0", 100, 100) }),
        set(OK, "br1", |s| SetLink { vlan_filtering: Some(false), ..s }),
        set(OK, "p0", |s| SetLink { master: Some(0), ..s }),
    ]
}

/// Runs a table on both. `vlans`: this kernel has VLANs of ports.
pub fn agree(mut real: Rt, table: Vec<Case>, vlans: bool) {
    real.run(&[RtRequest::LinkSet(SetLink::up(name("lo")))]).unwrap();
    let mut fake = FakeRt::new();
    let (mut wrong, mut before) = (Vec::new(), (Vec::new(), Vec::new()));
    for (n, (make, want)) in table.into_iter().enumerate() {
        let mut request = String::new();
        for (who, k) in [("kernel", &mut real as &mut dyn Rtnetlink), ("fake", &mut fake)] {
            let links = k.links().unwrap();
            let index = |n: &str| links.iter().find(|l| l.name.as_str() == n).map_or(9999, |l| l.index);
            let r = make(&index);
            let got = k.run(std::slice::from_ref(&r)).err();
            request = r.to_string();
            if got.as_ref().map_or(0, |e| e.errno) != want {
                wrong.push(format!("{who}, case {n}: {request}: {got:?} instead of {want}"));
            }
        }
        let all = |k: &mut dyn Rtnetlink| {
            let mut out = rows(k);
            // Every namespace has one of these once some test has loaded the module of its kind.
            const FALLBACK: [&str; 7] = ["tunl0 ", "sit0 ", "gre0 ", "gretap0 ", "erspan0 ", "ip6tnl0 ", "ip6gre0 "];
            out.retain(|row| !FALLBACK.iter().any(|f| row.starts_with(f)));
            if vlans {
                out.extend(k.port_vlans().unwrap().iter().map(|v| format!("vlan {v}")));
            }
            out
        };
        let (r, f) = (all(&mut real), all(&mut fake));
        let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
        // A difference is told where it begins.
        let differ = (only(&r, &f), only(&f, &r));
        if differ != before && differ.0 != differ.1 {
            wrong.push(format!("(kernel, fake) after case {n}: {request}: {differ:#?}"));
        }
        before = differ;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
