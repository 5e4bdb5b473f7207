//! The four properties of every plane, agreement with the specification, and a switch without a gap.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::{Fabric, FabricKernel, Image, Op, way};
use intent::generate::{self, Reaches, node_addr, node_intent, node_intent_with};
use intent::{Leg, NodeIntent, Path, Reach, Snat, Verdict};
use kernel_api::rt::{Address, LinkKind, NewLink, NewLinkKind, Route, RouteTo, RtRequest};
use kernel_api::{Rtnetlink, Sysctl, errno};
use kernel_fake::fault::Fault;
use kernel_fake::rt::FakeRt;
use plan::{Caps, Dataplane, HostLink, Kernel, Uplink, converge};
use proptest::prelude::*;
use types::{Cidr, Family, IfName, OwnedName};

fn name(s: &str) -> IfName {
    s.parse().unwrap()
}

fn uplink_addresses() -> Vec<(IpAddr, u8)> {
    vec![(node_addr(Family::V4, 0), 24), (node_addr(Family::V6, 0), 64)]
}

fn caps() -> Caps {
    Caps {
        uplink: Some(Uplink { name: name("eth0"), mtu: 1500 }),
        links: [(name("eth0"), HostLink { mtu: 1500, addresses: uplink_addresses() })].into(),
        missing: BTreeSet::new(),
    }
}

/// A machine with an uplink that has the node's addresses, things of others, and the pod links that the CNI plugin made
/// for `intents`.
fn machine(intents: &[&NodeIntent]) -> FakeRt {
    let mut rt = FakeRt::new();
    let mut addresses = uplink_addresses();
    for a in intents.iter().flat_map(|i| &i.addresses) {
        if !addresses.iter().any(|(b, _)| a == b) {
            addresses.push((*a, if Family::of(*a) == Family::V4 { 24 } else { 64 }));
        }
    }
    rt.plug(&name("eth0"), 1500, &addresses);
    rt.plug(&name("docker0"), 1500, &[("172.17.0.1".parse().unwrap(), 16)]);
    rt.plug(&name("flannel.1"), 1450, &[("10.99.0.0".parse().unwrap(), 32)]);
    for (dst, via) in [("0.0.0.0/0", "192.168.7.1"), ("::/0", "fd00:7::1"), ("10.244.0.0/15", "192.168.7.250")] {
        let to = RouteTo::Via { gateway: via.parse().unwrap(), link: name("eth0"), onlink: false };
        rt.foreign_route(Route { metric: 100, ..Route::new(dst.parse().unwrap(), to) }, 3);
    }
    rt.sysctls.write("net/ipv4/conf/all/rp_filter", "1").unwrap();
    let links: BTreeSet<&OwnedName> = intents.iter().flat_map(|i| i.attachments.values().map(|a| &a.link)).collect();
    for link in links {
        add_pod_link(&mut rt, link);
    }
    rt
}

fn add_pod_link(rt: &mut FakeRt, link: &OwnedName) {
    let kind = NewLinkKind::Veth { peer: name("eth0"), peer_netns: Some(kernel_api::rt::NetnsFd(9)), peer_mac: None };
    let new = NewLink { up: true, ..NewLink::new(link.name().clone(), kind) };
    rt.run(&[RtRequest::LinkAdd(new)]).unwrap();
}

fn compile(i: &NodeIntent) -> Image {
    let c = Fabric.compile(i, &caps());
    // The uplink holds every next hop and there are no clashes: only peers that cannot be reached are refused.
    let none = i.peers.values().flat_map(|p| &p.routes).filter(|r| matches!(r.reach, Reach::None { .. })).count();
    assert!(c.refused.len() <= none, "{:?}", c.refused);
    c.image
}

/// Everything that is not ours.
fn foreign(rt: &FakeRt) -> Vec<String> {
    let theirs = |l: &IfName| OwnedName::recognise(l).is_err();
    let s = &rt.state;
    let links = s.links.iter().filter(|l| theirs(&l.name)).map(|l| format!("{l:?}"));
    let addresses = s.addresses.iter().filter(|a| theirs(&a.link)).map(|a| format!("{a:?}"));
    let routes = s
        .routes
        .iter()
        .filter(|r| r.protocol != 83)
        .filter(|r| !matches!(&r.route.to, RouteTo::Link(l) if !theirs(l)))
        .map(|r| format!("{r:?}"));
    // Forwarding is what a node is for; the reverse path filter of the uplink and connection tracking are ours to loosen.
    let own = ["forward", "/sea", "/eth0/", "/netfilter/"];
    let knobs = rt.sysctls.all().iter().filter(|(k, _)| !own.iter().any(|o| k.contains(o))).map(|k| format!("{k:?}"));
    links.chain(addresses).chain(routes).chain(knobs).collect()
}

fn observed(k: &mut FabricKernel<FakeRt>, want: &Image) -> Image {
    k.observe().unwrap().restricted_to(want)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trace_agrees_with_the_specification(
        (i, packets) in generate::intent_and_packets(30),
    ) {
        let image = compile(&i);
        // Before and after the kernel has it.
        let mut k = FabricKernel::new(machine(&[&i]), &caps());
        converge(&Fabric, &mut k, &image, None).unwrap();
        let mut seen = k.observe().unwrap().named_by(&image);
        // The summary route of another program has no part in what the fabric promises.
        seen.index.foreign.retain(|f| f.metric != 100);
        for p in &packets {
            let want = Verdict::one(Leg { translated: None, choice: None, snat: Snat::Keep, path: Some(intent::path(&i, p.dst)) });
            prop_assert_eq!(Fabric.trace(&image, p), want.clone(), "{:?}", p);
            prop_assert_eq!(Fabric.trace(&seen, p), want, "observed: {:?}", p);
        }
    }

    /// On a machine that lacks something, what is not as specified is refused by name, and nothing leaks outside.
    #[test]
    fn what_cannot_be_said_is_refused(
        (i, packets) in generate::intent_and_packets(30),
        no_vxlan: bool,
        no_uplink: bool,
        far in prop::collection::btree_set(0usize..2, 0..2),
        mtu in prop::sample::select(&[1500u32, 1300][..]),
    ) {
        let mut caps = caps();
        if no_vxlan {
            caps.missing.insert("vxlan".into());
        }
        if let Some(u) = &mut caps.uplink {
            u.mtu = mtu;
        }
        if no_uplink {
            caps.uplink = None;
        }
        for n in far {
            caps.links.get_mut(&name("eth0")).unwrap().addresses[n].1 = if n == 0 { 32 } else { 128 };
        }
        let c = Fabric.compile(&i, &caps);
        for p in &packets {
            let want = intent::path(&i, p.dst);
            let got = way(&c.image, p.dst).path;
            if got == want {
                continue;
            }
            let object = match &want {
                Path::Peer { node, .. } => format!("Node/{node}"),
                _ => format!("Node/{}", i.node),
            };
            prop_assert!(c.refused.iter().any(|r| r.object == object), "{} -> {:?}, not {:?}: {:?}", p.dst, got, want, c.refused);
            prop_assert!(got == Path::Nowhere, "{} leaks: {:?}", p.dst, got);
        }
        for r in &c.refused {
            prop_assert!(!r.field.is_empty() && r.why.contains([':', ';']), "no fix in {}", r);
        }
        // It still converges.
        let mut rt = machine(&[&i]);
        rt.sysctls.write("net/ipv4/conf/all/rp_filter", "0").unwrap();
        let mut k = FabricKernel::new(rt, &caps);
        converge(&Fabric, &mut k, &c.image, None).unwrap();
        prop_assert_eq!(observed(&mut k, &c.image), c.image);
    }

    #[test]
    fn one_pass_converges_and_the_next_plan_is_empty(a in node_intent(), b in node_intent()) {
        let (wa, wb) = (compile(&a), compile(&b));
        let mut k = FabricKernel::new(machine(&[&a, &b]), &caps());
        let before = foreign(k.kernel());
        // From nothing, from another intent, and away.
        for (i, want) in [(&a, &wa), (&b, &wb), (&a, &wa)] {
            for att in i.attachments.values() {
                if !k.kernel().state.links.iter().any(|l| l.name == *att.link.name()) {
                    add_pod_link(k.kernel(), &att.link);
                }
            }
            converge(&Fabric, &mut k, want, None).unwrap();
            prop_assert_eq!(&observed(&mut k, want), want);
            let have = k.observe().unwrap();
            let again = Fabric.plan(want, &have);
            prop_assert!(again.is_empty(), "{:?}", again);
            prop_assert_eq!(&foreign(k.kernel()), &before);
        }
        converge(&Fabric, &mut k, &Image::default(), None).unwrap();
        let have = k.observe().unwrap();
        prop_assert_eq!(have.restricted_to(&Image::default()), Image::default());
        prop_assert_eq!(&foreign(k.kernel()), &before);
    }

    #[test]
    fn a_fault_at_any_op_heals_on_the_next_pass(
        a in node_intent(),
        b in node_intent(),
        at in any::<prop::sample::Index>(),
        kind in 0u8..3,
    ) {
        let (wa, wb) = (compile(&a), compile(&b));
        let mut k = FabricKernel::new(machine(&[&a, &b]), &caps());
        let before = foreign(k.kernel());
        converge(&Fabric, &mut k, &wa, None).unwrap();
        for att in b.attachments.values() {
            if !k.kernel().state.links.iter().any(|l| l.name == *att.link.name()) {
                add_pod_link(k.kernel(), &att.link);
            }
        }
        let have = k.observe().unwrap();
        let ops: usize = Fabric.plan(&wb, &have).iter().map(Vec::len).sum();
        if ops == 0 {
            return Ok(());
        }
        let at = at.index(ops);
        k.kernel().faults.script(at, match kind {
            0 => Fault::Refused(errno::ENOBUFS),
            1 => Fault::Unanswered(errno::ENOBUFS),
            _ => Fault::Crash,
        });
        let failed = converge(&Fabric, &mut k, &wb, None);
        prop_assert!(failed.is_err(), "op {} of {} failed and nobody said so", at, ops);
        k.kernel().faults.heal();
        converge(&Fabric, &mut k, &wb, None).unwrap();
        prop_assert_eq!(&observed(&mut k, &wb), &wb);
        let have = k.observe().unwrap();
        prop_assert!(Fabric.plan(&wb, &have).is_empty());
        prop_assert_eq!(&foreign(k.kernel()), &before);
    }

    /// Somebody deletes or breaks anything of ours: one pass.
    #[test]
    fn any_damage_heals_in_one_pass(i in node_intent(), what in 0u8..7, which in any::<prop::sample::Index>()) {
        let want = compile(&i);
        let mut k = FabricKernel::new(machine(&[&i]), &caps());
        converge(&Fabric, &mut k, &want, None).unwrap();
        let rt = k.kernel();
        let ours: Vec<IfName> = rt.state.links.iter().filter(|l| OwnedName::recognise(&l.name).is_ok()).map(|l| l.name.clone()).collect();
        let vx: Vec<IfName> = ours.iter().filter(|l| ["seaway.", "seaw6."].iter().any(|p| l.as_str().starts_with(p))).cloned().collect();
        match what {
            0 => rt.state.routes.retain(|r| r.protocol != 83),
            1 => rt.state.neighbours.clear(),
            2 => rt.state.fdb.clear(),
            3 => for l in vx {
                rt.run(&[RtRequest::LinkDel(OwnedName::recognise(&l).unwrap())]).unwrap();
            },
            4 if !ours.is_empty() => {
                let l = which.get(&ours).clone();
                rt.run(&[RtRequest::LinkSet(kernel_api::rt::SetLink { up: Some(false), ..kernel_api::rt::SetLink::new(l) })]).unwrap();
            }
            5 => for link in &mut rt.state.links {
                if let LinkKind::Vxlan(p) = &mut link.kind {
                    p.learning = true;
                }
            },
            _ => {
                rt.set("net/ipv4/ip_forward", "0").unwrap();
                for l in vx {
                    let alien = Address::new(l, "10.1.2.3".parse().unwrap(), 32);
                    rt.run(&[RtRequest::AddressAdd(alien)]).unwrap();
                }
            }
        }
        converge(&Fabric, &mut k, &want, None).unwrap();
        prop_assert_eq!(&observed(&mut k, &want), &want);
    }

    /// Between any two ops of a switch, each range that had a way and keeps one has one.
    #[test]
    fn a_backend_switch_never_leaves_a_range_without_a_way(
        i in node_intent_with(Reaches::Direct),
        to_vxlan: bool,
        underlay6: bool,
    ) {
        let mut tunnelled = i.clone();
        let f = match i.families.iter().collect::<Vec<_>>()[..] {
            [only] => only,
            _ => if underlay6 { Family::V6 } else { Family::V4 },
        };
        for (n, p) in (1u8..).zip(tunnelled.peers.values_mut()) {
            for r in &mut p.routes {
                r.reach = Reach::vxlan(r.cidr, node_addr(f, n), generate::vtep_mac(n));
            }
        }
        tunnelled.vxlan = Some(intent::Vxlan {
            vni: 1, port: 8472, mac: generate::vtep_mac(0), local: node_addr(f, 0),
            addresses: i.pod_cidrs.iter().filter(|c| i.attachment_of(c.addr()).is_none()).map(Cidr::addr).collect(),
        });
        tunnelled.vxlan6 = None;
        let (from, to) = if to_vxlan { (&i, &tunnelled) } else { (&tunnelled, &i) };
        let (from, to) = (compile(from), compile(to));
        let mut k = FabricKernel::new(machine(&[&i]), &caps());
        converge(&Fabric, &mut k, &from, None).unwrap();
        let ranges: Vec<Cidr> = i.peers.values().flat_map(|p| p.routes.iter().map(|r| r.cidr)).collect();
        let have = k.observe().unwrap();
        for batch in Fabric.plan(&to, &have) {
            for op in batch {
                k.commit(std::slice::from_ref(&op)).unwrap();
                let mut now = k.observe().unwrap().named_by(&to);
                now.index.foreign.clear();
                for c in &ranges {
                    let path = way(&now, c.nth(77).unwrap_or(c.addr())).path;
                    prop_assert!(matches!(path, Path::Peer { .. }), "after {}: {} is {:?}", op, c, path);
                }
            }
        }
        prop_assert_eq!(&observed(&mut k, &to), &to);
    }
}

/// A pod link that is missing has no route yet, one that nobody names is deleted, and neither holds up the rest.
#[test]
fn missing_and_leaked_pod_links() {
    let mut i = NodeIntent::empty(generate::node_name(0));
    i.families = [Family::V4].into_iter().collect();
    i.pod_cidrs = vec![generate::pod_cidr(Family::V4, 0)];
    let key = |c: &str| intent::AttachmentKey { container_id: c.into(), ifname: "eth0".into() };
    for (n, c) in ["there", "missing"].iter().enumerate() {
        i.attachments.insert(
            key(c),
            intent::Attachment {
                pod: None,
                link: OwnedName::for_container(c, "eth0"),
                addresses: [generate::pod_addr(Family::V4, 0, 2 + n as u8)].into(),
                host_ports: vec![],
            },
        );
    }
    let want = compile(&i);
    let mut rt = machine(&[]);
    add_pod_link(&mut rt, &OwnedName::for_container("there", "eth0"));
    add_pod_link(&mut rt, &OwnedName::for_container("leaked", "eth0"));
    let mut k = FabricKernel::new(rt, &caps());
    converge(&Fabric, &mut k, &want, None).unwrap();
    let have = k.observe().unwrap().named_by(&want);
    assert_eq!(have.pod_links.len(), 1);
    let path = |n| way(&have, generate::pod_addr(Family::V4, 0, n)).path;
    assert_eq!(path(2), Path::Pod(key("there")));
    assert_eq!(path(3), Path::Nowhere, "the blackhole holds its address until the link is back");
    assert!(Fabric.plan(&want, &have).is_empty(), "a missing link is not ours to make");
    add_pod_link(k.kernel(), &OwnedName::for_container("missing", "eth0"));
    converge(&Fabric, &mut k, &want, None).unwrap();
    assert_eq!(observed(&mut k, &want), want);
}

/// The CNI plugin deletes a link between our look and our change: nobody is told, and the rest is done.
#[test]
fn a_pod_link_that_vanishes_meanwhile_is_no_error() {
    let mut i = NodeIntent::empty(generate::node_name(0));
    i.families = [Family::V4].into_iter().collect();
    i.pod_cidrs = vec![generate::pod_cidr(Family::V4, 0)];
    for (n, c) in ["a", "b", "c"].into_iter().enumerate() {
        let key = intent::AttachmentKey { container_id: c.into(), ifname: "eth0".into() };
        let link = OwnedName::for_container(c, "eth0");
        let addresses = [generate::pod_addr(Family::V4, 0, 2 + n as u8)].into();
        i.attachments.insert(key, intent::Attachment { pod: None, link, addresses, host_ports: vec![] });
    }
    let want = compile(&i);
    let mut k = FabricKernel::new(machine(&[&i]), &caps());
    let have = k.observe().unwrap();
    k.kernel().run(&[RtRequest::LinkDel(OwnedName::for_container("b", "eth0"))]).unwrap();
    converge(&Fabric, &mut k, &want, Some(&have)).unwrap();
    let have = k.observe().unwrap();
    assert_eq!(have.routes.len(), want.routes.len() - 1);
}

/// Another program's route to a peer's range is named in the error, and everything else is in place.
#[test]
fn a_contested_route_is_an_error_and_stops_nothing_else() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let i = loop {
        let i = node_intent_with(Reaches::Vxlan).new_tree(&mut runner).unwrap().current();
        if i.peers.len() > 1 && i.families.v4 {
            break i;
        }
    };
    use proptest::strategy::ValueTree;
    let want = compile(&i);
    let mut rt = machine(&[&i]);
    let dst = generate::pod_cidr(Family::V4, 1);
    let theirs = Route { metric: 0, ..Route::new(dst, RouteTo::Link(name("docker0"))) };
    rt.foreign_route(theirs.clone(), 4);
    let mut k = FabricKernel::new(rt, &caps());
    let e = converge(&Fabric, &mut k, &want, None).unwrap_err();
    let text = e.to_string();
    assert!(text.contains("10.244.1.0/24") && text.contains("another program has a route"), "{text}");
    let have = k.observe().unwrap();
    assert_eq!(want.routes.difference(&have.routes).count(), 1);
    assert!(k.kernel().state.routes.iter().any(|r| r.protocol == 4 && r.route == theirs));
    assert_eq!(
        Fabric.plan(&want, &have),
        vec![vec![Op::Rt(RtRequest::RouteAdd(want.routes.iter().find(|r| r.dst == dst).unwrap().clone()))]]
    );
}
