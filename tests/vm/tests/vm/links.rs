//! Every kind of link that crate `kernel` makes and observes, against iproute2's view: what we make, it describes the
//! same; what it makes, we observe the same.

use kernel::{Netns, Rt};
use kernel_api::Rtnetlink as _;
use kernel_api::errno;
use kernel_api::rt::{
    Address, BridgeParams, IpvlanFlag, IpvlanMode, IpvlanParams, Link, LinkKind, MacvlanMode, MacvlanParams, NewLink,
    NewLinkKind, PortVlan, Route, RouteTo, RtRequest, SetLink, VlanParams,
};
use serde_json::{Value, json};
use types::Mac;
use vm::in_vm;

use crate::tools::{ip, link, name, tool};

/// A dummy `d0`, up, to put links on: its index.
fn lower(rt: &mut Rt) -> u32 {
    let d0 = NewLink { up: true, ..NewLink::new(name("d0"), NewLinkKind::Dummy) };
    rt.run(&[RtRequest::LinkAdd(d0)]).unwrap();
    rt.link(&name("d0")).unwrap().unwrap().index
}

fn observed(rt: &mut Rt) -> Link {
    rt.link(&name("x0")).unwrap().unwrap()
}

/// Makes `x0` with us; iproute2 must describe it by these fields of its kind, and we observe it as `want`.
fn made_by_us(rt: &mut Rt, kind: NewLinkKind, word: &str, data: &Value, want: &LinkKind) {
    rt.run(&[RtRequest::LinkAdd(NewLink::new(name("x0"), kind))]).unwrap();
    let info = &link("x0")["linkinfo"];
    assert_eq!(info["info_kind"], word);
    for (field, value) in data.as_object().unwrap() {
        assert_eq!(&info["info_data"][field], value, "{field} of {info}");
    }
    assert_eq!(&observed(rt).kind, want);
    ip("link del x0");
}

/// Makes `x0` with iproute2; we must observe `want`.
fn made_by_ip(rt: &mut Rt, words: &str, want: &LinkKind) {
    ip(&format!("link add x0 {words}"));
    assert_eq!(&observed(rt).kind, want, "{words}");
    ip("link del x0");
}

const MACVLAN: [(MacvlanMode, &str); 5] = [
    (MacvlanMode::Private, "private"),
    (MacvlanMode::Vepa, "vepa"),
    (MacvlanMode::Bridge, "bridge"),
    (MacvlanMode::Passthru, "passthru"),
    (MacvlanMode::Source, "source"),
];

#[test]
fn macvlan_in_every_mode() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let lower = lower(&mut rt);
    for (mode, word) in MACVLAN {
        let params = MacvlanParams { mode, ..MacvlanParams::default() };
        let kind = NewLinkKind::Macvlan { lower, params: params.clone() };
        rt.run(&[RtRequest::LinkAdd(NewLink::new(name("x0"), kind))]).unwrap();
        assert_eq!(link("x0")["linkinfo"]["info_data"]["mode"], word);
        let seen = observed(&mut rt);
        assert_eq!(seen.lower, Some(lower));
        let LinkKind::Macvlan(seen) = seen.kind else { panic!("{seen:?}") };
        assert_eq!((seen.mode, &seen.sources), (mode, &params.sources));
        ip("link del x0");
        ip(&format!("link add x0 link d0 type macvlan mode {word}"));
        assert!(matches!(observed(&mut rt).kind, LinkKind::Macvlan(p) if p.mode == mode), "{word}");
        ip("link del x0");
    }
}

#[test]
fn macvlan_sources_queue_and_a_changed_mode() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let lower = lower(&mut rt);
    let sources = vec![Mac::local([2, 0, 0, 0, 0, 1]), Mac::local([2, 0, 0, 0, 0, 2])];
    let params = MacvlanParams { mode: MacvlanMode::Source, sources: sources.clone(), bc_queue_len: Some(4000) };
    let kind = NewLinkKind::Macvlan { lower, params };
    rt.run(&[RtRequest::LinkAdd(NewLink::new(name("x0"), kind))]).unwrap();
    let shown = ip("-d link show x0");
    assert!(sources.iter().all(|m| shown.contains(&m.to_string())) && shown.contains("bcqueuelen 4000"), "{shown}");
    let LinkKind::Macvlan(mut seen) = observed(&mut rt).kind else { panic!("no macvlan") };
    seen.sources.sort();
    assert_eq!((seen.mode, seen.sources, seen.bc_queue_len), (MacvlanMode::Source, sources, Some(4000)));
    ip("link del x0");

    ip("link add x0 link d0 type macvlan mode bridge");
    let vepa = SetLink { macvlan_mode: Some(MacvlanMode::Vepa), ..SetLink::new(name("x0")) };
    rt.run(&[RtRequest::LinkSet(vepa)]).unwrap();
    assert_eq!(link("x0")["linkinfo"]["info_data"]["mode"], "vepa");
}

#[test]
fn ipvlan_in_every_mode_with_every_flag() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let lower = lower(&mut rt);
    for (mode, word) in [(IpvlanMode::L2, "l2"), (IpvlanMode::L3, "l3"), (IpvlanMode::L3s, "l3s")] {
        for (flag, flag_word) in
            [(IpvlanFlag::Bridge, "bridge"), (IpvlanFlag::Private, "private"), (IpvlanFlag::Vepa, "vepa")]
        {
            let params = IpvlanParams { mode, flag };
            // iproute2 has a switch of the flag's name.
            let data = json!({"mode": word, flag_word: true});
            made_by_us(&mut rt, NewLinkKind::Ipvlan { lower, params }, "ipvlan", &data, &LinkKind::Ipvlan(params));
            let words = format!("link d0 type ipvlan mode {word} {flag_word}");
            made_by_ip(&mut rt, &words, &LinkKind::Ipvlan(params));
        }
    }
}

#[test]
fn vlan_of_both_protocols_at_both_ends_of_the_range() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let lower = lower(&mut rt);
    for (ad, protocol) in [(false, "802.1Q"), (true, "802.1ad")] {
        for id in [1, 4094] {
            let params = VlanParams { id, ad };
            let data = json!({"id": id, "protocol": protocol});
            made_by_us(&mut rt, NewLinkKind::Vlan { lower, params }, "vlan", &data, &LinkKind::Vlan(params));
            let words = format!("link d0 type vlan protocol {protocol} id {id}");
            made_by_ip(&mut rt, &words, &LinkKind::Vlan(params));
        }
    }
}

#[test]
fn dummy_and_ifb_and_vrf() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let none = json!({});
    made_by_us(&mut rt, NewLinkKind::Dummy, "dummy", &none, &LinkKind::Dummy);
    made_by_us(&mut rt, NewLinkKind::Ifb, "ifb", &none, &LinkKind::Ifb);
    made_by_ip(&mut rt, "type dummy", &LinkKind::Dummy);
    made_by_ip(&mut rt, "type ifb", &LinkKind::Ifb);
    for table in [7, 1007, u32::MAX - 1] {
        let vrf = LinkKind::Vrf { table };
        made_by_us(&mut rt, NewLinkKind::Vrf { table }, "vrf", &json!({"table": table}), &vrf);
        made_by_ip(&mut rt, &format!("type vrf table {table}"), &vrf);
    }
}

#[test]
fn a_vrf_has_its_links_and_their_routes_in_its_table() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    lower(&mut rt);
    let vrf = NewLink { up: true, ..NewLink::new(name("x0"), NewLinkKind::Vrf { table: 1007 }) };
    rt.run(&[RtRequest::LinkAdd(vrf)]).unwrap();
    let index = observed(&mut rt).index;
    rt.run(&[
        RtRequest::LinkSet(SetLink { master: Some(index), ..SetLink::new(name("d0")) }),
        RtRequest::AddressAdd(Address::new(name("d0"), "192.0.2.1".parse().unwrap(), 24)),
        RtRequest::AddressAdd(Address::new(name("d0"), "2001:db8::1".parse().unwrap(), 64)),
    ])
    .unwrap();
    let via = |gateway: &str| RouteTo::Via { gateway: gateway.parse().unwrap(), link: name("d0"), onlink: false };
    let routes = [("198.51.100.0/24", 0, "192.0.2.9"), ("2001:db8:1::/64", 1024, "2001:db8::9")]
        .map(|(dst, metric, gateway)| Route { metric, table: 1007, ..Route::new(dst.parse().unwrap(), via(gateway)) });
    rt.run(&routes.clone().map(RtRequest::RouteReplace)).unwrap();
    assert_eq!(rt.link(&name("d0")).unwrap().unwrap().master, Some(index));
    // The main table knows nothing of it, the vrf's has it and the connected routes.
    assert_eq!(ip("route show table main"), "");
    let shown = ip("route show vrf x0");
    assert!(shown.contains("198.51.100.0/24 via 192.0.2.9 dev d0 proto 83"), "{shown}");
    assert!(shown.contains("192.0.2.0/24 dev d0 proto kernel"), "{shown}");
    let all = rt.all_routes().unwrap();
    assert!(routes.iter().all(|r| all.iter().any(|o| o.route == *r)), "{all:?}");
}

#[test]
fn links_are_made_right_in_another_namespace() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let lower = lower(&mut rt);
    let kinds = [
        NewLinkKind::Macvlan { lower, params: MacvlanParams::default() },
        NewLinkKind::Vlan { lower, params: VlanParams { id: 5, ad: false } },
        NewLinkKind::Dummy,
        NewLinkKind::Vrf { table: 9 },
        // Last, and in a namespace of its own: a link carries either kind of sub-interface.
        NewLinkKind::Ipvlan { lower, params: IpvlanParams::default() },
    ];
    for kind in kinds {
        if matches!(kind, NewLinkKind::Ipvlan { .. }) {
            ip("link set d0 down");
        }
        let there = Netns::new().unwrap();
        let words = kind.to_string();
        let has_lower = !matches!(kind, NewLinkKind::Dummy | NewLinkKind::Vrf { .. });
        let new = NewLink { netns: Some(there.fd()), mtu: Some(1400), up: true, ..NewLink::new(name("x0"), kind) };
        rt.run(&[RtRequest::LinkAdd(new)]).unwrap_or_else(|e| panic!("{words}: {e}"));
        assert_eq!(rt.link(&name("x0")).unwrap(), None, "{words}: it was never here");
        let seen = Rt::open_in(&there).unwrap().link(&name("x0")).unwrap().unwrap();
        assert!(seen.mtu == 1400 || matches!(seen.kind, LinkKind::Vrf { .. }), "{words}: {seen:?}");
        assert!(seen.up, "{words}");
        assert_eq!(seen.lower, has_lower.then_some(lower), "{words}");
        assert_eq!(seen.lower_netns.is_some(), has_lower, "{words}");
    }
}

/// The VLANs of one link as iproute2 lists them: id, last id, flags.
fn vlans(dev: &str) -> Value {
    let all: Value = serde_json::from_str(&tool("bridge", &["-j", "vlan", "show", "dev", dev])).unwrap();
    all[0]["vlans"].clone()
}

#[test]
fn bridge_vlans() {
    in_vm!();
    let mut rt = Rt::open().unwrap();
    let params = BridgeParams { vlan_filtering: true, default_pvid: 0 };
    let kind = NewLinkKind::Veth { peer: name("p1"), peer_netns: None, peer_mac: None };
    rt.run(&[
        RtRequest::LinkAdd(NewLink::new(name("x0"), NewLinkKind::Bridge(params))),
        RtRequest::LinkAdd(NewLink::new(name("p0"), kind)),
    ])
    .unwrap();
    let br = observed(&mut rt);
    assert_eq!(br.kind, LinkKind::Bridge(params));
    let access = PortVlan::access(name("p0"), 100);
    let trunk = PortVlan { last: 210, ..PortVlan::tagged(name("p0"), 200) };
    let own = PortVlan { on_bridge: true, ..PortVlan::tagged(name("x0"), 100) };
    let e = rt.run(&[RtRequest::PortVlanAdd(access.clone())]).unwrap_err();
    assert_eq!(e.errno, errno::EOPNOTSUPP, "no port: {e}");
    rt.run(&[RtRequest::LinkSet(SetLink { master: Some(br.index), ..SetLink::new(name("p0")) })]).unwrap();
    assert_eq!(rt.port_vlans().unwrap(), [], "no default");
    rt.run(&[access.clone(), trunk.clone(), own.clone()].map(RtRequest::PortVlanAdd)).unwrap();
    let mut seen = rt.port_vlans().unwrap();
    seen.sort();
    assert_eq!(seen, [access.clone(), trunk.clone(), own]);
    let shown = vlans("p0");
    assert_eq!(shown[0], json!({"vlan": 100, "flags": ["PVID", "Egress Untagged"]}), "{shown}");
    assert_eq!(shown.as_array().unwrap().len(), 12, "{shown}");
    rt.run(&[RtRequest::PortVlanDel(PortVlan { last: 209, ..trunk.clone() })]).unwrap();
    assert!(rt.port_vlans().unwrap().contains(&PortVlan::tagged(name("p0"), 210)));
    let bad = |v: PortVlan| rt_errno(&mut Rt::open().unwrap(), RtRequest::PortVlanAdd(v));
    assert_eq!(bad(PortVlan { vid: 4095, last: 4095, ..trunk.clone() }), errno::EINVAL);
    assert_eq!(bad(PortVlan { pvid: true, ..trunk }), errno::EINVAL, "a range cannot be the PVID");
    // A port that joins a bridge with a default is in it.
    let off = SetLink { vlan_filtering: Some(false), ..SetLink::new(name("x0")) };
    rt.run(&[RtRequest::LinkSet(off)]).unwrap();
    assert!(matches!(observed(&mut rt).kind, LinkKind::Bridge(p) if !p.vlan_filtering));
}

fn rt_errno(rt: &mut Rt, r: RtRequest) -> i32 {
    rt.run(&[r]).unwrap_err().errno
}

#[test]
fn kernel_and_fake_accept_and_refuse_the_same() {
    in_vm!();
    crate::agree::agree(Rt::open().unwrap(), crate::agree::of_other_kernels(), true);
}
