//! Goldens of what the encoders write, as text that a reviewer can hold against the kernel's headers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod nft;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kernel_api::rt::*;
use kernel_api::tc::{Filter, FilterKind, Hook, Htb, Qdisc, QdiscKind, QdiscSlot, Tbf};
use types::{Mac, OwnedName};

use crate::netlink::{Builder, Messages};
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

/// Each request as it prints, and its messages.
fn shown(requests: &[RtRequest]) -> BTreeMap<String, String> {
    let mut cases = BTreeMap::new();
    for r in requests {
        let mut b = Builder::new();
        encode::request(&mut b, r, if encode::needs_index(r).is_some() { 7 } else { 0 }).unwrap();
        let header = |kind| match kind {
            16..=19 => 16,
            20..=22 => 8,
            36..=46 => 20,
            _ => 12,
        };
        let clash = cases.insert(r.to_string(), show(b.as_bytes(), header));
        assert!(clash.is_none(), "two cases of {r}");
    }
    cases
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
    check("rtnetlink.txt", shown(&requests));
}

/// What CNI plugins ask for. Links of kinds were held against what iproute2 6.1 sends.
#[test]
fn rtnetlink_requests_of_plugins() {
    let add = |n: &str, kind| RtRequest::LinkAdd(NewLink::new(name(n), kind));
    let set = SetLink::new(name("eth0"));
    let change = |s| RtRequest::LinkSet(s);
    let macvlan = |mode| NewLinkKind::Macvlan { lower: 3, params: MacvlanParams { mode, ..MacvlanParams::default() } };
    let sources = vec![Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let source = MacvlanParams { mode: MacvlanMode::Source, sources, bc_queue_len: Some(77) };
    let ipvlan = |mode, flag| NewLinkKind::Ipvlan { lower: 3, params: IpvlanParams { mode, flag } };
    let vlan = |id, ad| NewLinkKind::Vlan { lower: 3, params: VlanParams { id, ad } };
    let filtering = BridgeParams { vlan_filtering: true, default_pvid: 0 };
    let address = |a: &str, len| Address::new(name("eth0"), a.parse().unwrap(), len);
    let rule = |src: &str, table| Rule::from(src.parse().unwrap(), table);
    let via = |table| Route {
        table,
        ..Route::new("10.9.0.0/16".parse().unwrap(), RouteTo::via("10.0.0.2".parse().unwrap(), name("eth0")))
    };
    let vlans = |vid, last| PortVlan { last, ..PortVlan::tagged(name("eth0"), vid) };
    let qdisc = |kind| RtRequest::QdiscReplace(Qdisc { link: name("eth0"), kind });
    let tbf = |rate| qdisc(QdiscKind::Tbf(Tbf { rate, burst: 10_000, limit: 13_125 }));
    let redirect =
        Filter { link: name("eth0"), hook: Hook::Ingress, priority: 2, kind: FilterKind::Redirect { to: 9 } };
    let moved = SetLink { netns: Some(NetnsFd(9)), rename: Some(name("net1")), up: Some(true), ..set.clone() };
    let requests = [
        RtRequest::LinkAdd(NewLink {
            netns: Some(NetnsFd(9)),
            txqlen: Some(500),
            group: Some(4),
            master: Some(5),
            ..NewLink::new(name("mv"), macvlan(MacvlanMode::Bridge))
        }),
        add("mvp", macvlan(MacvlanMode::Passthru)),
        add("mvs", NewLinkKind::Macvlan { lower: 3, params: source }),
        add("iv2", ipvlan(IpvlanMode::L2, IpvlanFlag::Bridge)),
        add("iv3", ipvlan(IpvlanMode::L3, IpvlanFlag::Private)),
        add("iv3s", ipvlan(IpvlanMode::L3s, IpvlanFlag::Vepa)),
        add("vlan", vlan(4094, false)),
        add("vlanad", vlan(1, true)),
        add("dummy", NewLinkKind::Dummy),
        add("vrf", NewLinkKind::Vrf { table: 1007 }),
        add("ifb", NewLinkKind::Ifb),
        add("br", NewLinkKind::Bridge(filtering)),
        change(moved),
        change(SetLink { rename: Some(name("net1")), ..set.clone() }),
        change(SetLink {
            promisc: Some(true),
            allmulti: Some(false),
            multicast: Some(true),
            txqlen: Some(9),
            alias: Some("x".into()),
            ..set.clone()
        }),
        change(SetLink { macvlan_mode: Some(MacvlanMode::Vepa), ..set.clone() }),
        change(SetLink { vlan_filtering: Some(true), ..set.clone() }),
        change(SetLink { isolated: Some(true), hairpin: Some(false), master: Some(3), ..set }),
        RtRequest::AddressAdd(Address {
            broadcast: address("10.0.0.1", 24).usual_broadcast(),
            ..address("10.0.0.1", 24)
        }),
        RtRequest::AddressAdd(Address { peer: Some("10.2.0.9".parse().unwrap()), ..address("10.2.0.1", 32) }),
        RtRequest::AddressAdd(Address { no_prefix_route: true, detect_duplicates: true, ..address("fd00::1", 64) }),
        RtRequest::RouteAdd(via(100)),
        RtRequest::RouteAdd(Route { advmss: Some(1200), scope: Some(0), ..via(70_000) }),
        RtRequest::RouteDel(via(70_000)),
        RtRequest::RuleAdd(Rule { priority: Some(100), ..rule("10.0.0.0/8", 100) }),
        RtRequest::RuleAdd(Rule { iif: Some(name("eth0")), mark: Some((1, 0xff)), ..rule("fd00::1/128", 70_000) }),
        RtRequest::RuleDel(rule("10.0.0.1/32", 100)),
        RtRequest::PortVlanAdd(PortVlan::access(name("eth0"), 100)),
        RtRequest::PortVlanAdd(vlans(100, 200)),
        RtRequest::PortVlanDel(PortVlan { on_bridge: true, ..vlans(7, 7) }),
        tbf(125_000),
        tbf(10_000_000_000),
        qdisc(QdiscKind::Htb(Htb {
            rate: 125_000,
            burst: 10_000,
            listed: true,
            destinations: ["10.0.0.0/8", "fd00::/64"].map(|p| p.parse().unwrap()).into(),
        })),
        qdisc(QdiscKind::Clsact),
        RtRequest::QdiscDel(name("eth0"), QdiscSlot::Root),
        RtRequest::QdiscDel(name("eth0"), QdiscSlot::Clsact),
        RtRequest::FilterReplace(redirect),
        RtRequest::FilterDel(name("eth0"), Hook::Egress, 2),
    ];
    check("rtnetlink_plugins.txt", shown(&requests));
}
