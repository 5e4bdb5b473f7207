//! What must hold for every intent and packet: the trace agrees with the specification, and the four properties of a
//! plane, on the fake that refuses what the kernel refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use intent::generate::{intent_and_packets, node_intent};
use intent::{Endpoint, NodeIntent, Origin, Packet, ServiceKey, TrafficPolicy, Verdict, translate};
use kernel_api::conntrack::{Flow, Tuple};
use kernel_api::nft::{self, Expr, TableName};
use kernel_fake::conntrack::FakeConntrack;
use kernel_fake::fault::Fault;
use kernel_fake::nft::FakeNft;
use plan::{Caps, Dataplane, Kernel, Plan, converge};
use plane_nft::{Data, Image, NftKernel, NftPlane, Op};
use proptest::prelude::*;
use proptest::sample::Index;
use types::{Family, FlatSet, Proto};

type Fake = NftKernel<FakeNft, FakeConntrack>;

fn fake() -> Fake {
    let mut nft = FakeNft::new();
    nft.foreign.insert("inet kube-proxy".into(), "chain services { }".into());
    NftKernel::new(nft, FakeConntrack::new())
}

/// On a machine whose one interface has the node's addresses.
fn compile(i: &NodeIntent) -> Image {
    let addresses = i.addresses.iter().map(|a| (*a, 24)).collect();
    let eth0 = ("eth0".parse().unwrap(), plan::HostLink { mtu: 1500, addresses });
    NftPlane.compile(i, &Caps { links: [eth0].into(), ..Caps::default() }).image
}

fn ours() -> TableName {
    TableName::recognise("seaway").unwrap()
}

/// A plane that does not route says nothing of paths.
fn spec(i: &NodeIntent, p: &Packet) -> Verdict {
    translate(i, p).without_paths()
}

fn pass(fake: &mut Fake, want: &Image) {
    converge(&NftPlane, fake, want, None).unwrap();
}

/// The plan that remains, as text for a failing case.
fn remaining(fake: &mut Fake, want: &Image) -> String {
    let have = fake.observe().unwrap();
    Plan { batches: NftPlane.plan(want, &have) }.to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The image says what the specification says, before and after it went through the kernel.
    #[test]
    fn trace_agrees_with_the_specification((i, packets) in intent_and_packets(12)) {
        let want = compile(&i);
        let mut k = fake();
        pass(&mut k, &want);
        let have = k.observe().unwrap();
        prop_assert_eq!(&have, &want);
        for p in &packets {
            prop_assert_eq!(NftPlane.trace(&have, p), spec(&i, p), "{:?}\n{}", p, plane_nft::render::image(&want));
        }
    }

    /// From any image to any other in one pass, and then there is nothing to do.
    #[test]
    fn one_pass_converges_and_the_next_plan_is_empty(a in node_intent(), b in node_intent()) {
        let mut k = fake();
        for want in [compile(&a), compile(&b), Image::default(), compile(&b)] {
            pass(&mut k, &want);
            prop_assert_eq!(remaining(&mut k, &want), "");
            prop_assert_eq!(&k.observe().unwrap(), &want);
        }
        prop_assert_eq!(k.nft().foreign.len(), 1);
    }

    /// Whatever transaction or conntrack pass fails, in whatever way, the next pass ends where it should, and no stale
    /// connection survives it.
    #[test]
    fn a_fault_anywhere_heals(
        a in node_intent(),
        b in node_intent(),
        at in 0usize..4,
        in_conntrack: bool,
        kind in 0u8..3,
    ) {
        let mut k = fake();
        pass(&mut k, &compile(&a));
        k.conntrack().flows = flows_of(&a);
        let want = compile(&b);
        let fault = [Fault::Refused(16), Fault::Unanswered(105), Fault::Crash][usize::from(kind)];
        let faults = if in_conntrack { &mut k.conntrack().faults } else { &mut k.nft().faults };
        faults.script(at, fault);
        let _ = converge(&NftPlane, &mut k, &want, None);
        k.nft().faults.heal();
        k.conntrack().faults.heal();
        pass(&mut k, &want);
        prop_assert_eq!(remaining(&mut k, &want), "");
        prop_assert_eq!(&k.observe().unwrap(), &want);
        check_flows(&a, &b, &k.conntrack().flows)?;
    }

    /// A chain has its rules one transaction before anything leads to it, where packets may be on their way through the
    /// table: rules are those of a packet's generation, elements those of the moment.
    #[test]
    fn a_chain_is_whole_before_anything_leads_to_it(a in node_intent(), b in node_intent()) {
        for batch in NftPlane.plan(&compile(&b), &compile(&a)) {
            let new: BTreeSet<&String> =
                batch.iter().filter_map(|op| if let Op::ChainAdd(n, _) = op { Some(n) } else { None }).collect();
            let leads = |op: &&Op| matches!(op, Op::ElementAdd(_, _, _, Data::Verdict(nft::Verdict::Goto(to))) if new.contains(to));
            prop_assert_eq!(batch.iter().find(leads), None);
        }
    }

    /// However many endpoints go, the connections are walked over once per protocol and family, never for TCP, and the
    /// walk is over all that may be stale.
    #[test]
    fn one_walk_over_the_connections_per_protocol_and_family(a in node_intent(), b in node_intent()) {
        let mut k = fake();
        pass(&mut k, &compile(&a));
        k.conntrack().flows = flows_of(&a);
        k.conntrack().walks.clear();
        pass(&mut k, &compile(&b));
        let walks = std::mem::take(&mut k.conntrack().walks);
        let kinds: BTreeSet<_> = walks.iter().map(|w| (w.proto, w.family)).collect();
        prop_assert_eq!(kinds.len(), walks.len());
        prop_assert!(walks.iter().all(|w| w.proto != Proto::Tcp));
        check_flows(&a, &b, &k.conntrack().flows)?;
    }

    /// Given to another proxy, Services leave without their connections: these are the other's by then. Taken back, those
    /// to endpoints that live go on.
    #[test]
    fn services_that_another_serves_keep_their_connections(i in node_intent()) {
        let elsewhere = NodeIntent { services: [].into(), services_elsewhere: true, ..i.clone() };
        let mut k = fake();
        pass(&mut k, &compile(&i));
        let flows = flows_of(&i);
        k.conntrack().flows = flows.clone();
        pass(&mut k, &compile(&elsewhere));
        prop_assert_eq!(remaining(&mut k, &compile(&elsewhere)), "");
        prop_assert_eq!(&k.conntrack().flows, &flows);
        pass(&mut k, &compile(&i));
        check_flows(&i, &i, &k.conntrack().flows)?;
    }

    /// A small transaction limit changes nothing but the number of transactions.
    #[test]
    fn chunks_end_in_the_same_image(a in node_intent(), b in node_intent(), max in 1usize..40) {
        let mut k = fake();
        for want in [compile(&a), compile(&b)] {
            let have = k.observe().unwrap();
            for batch in plane_nft::plan_in_chunks(&want, &have, max) {
                k.commit(&batch).unwrap();
                // At no time does a packet meet an endpoint that neither image has for it: no half-made Service.
                let now = k.observe().unwrap();
                prop_assert!(no_slot_is_missing(&now));
            }
            prop_assert_eq!(&k.observe().unwrap(), &want);
        }
    }

    /// Someone edits our table: one pass puts it right.
    #[test]
    fn damage_is_healed_in_one_pass(i in node_intent(), kind in 0u8..12, at: Index) {
        let want = compile(&i);
        let mut k = fake();
        pass(&mut k, &want);
        k.nft().tamper(&ours(), |t| damage(t, kind, at));
        pass(&mut k, &want);
        prop_assert_eq!(remaining(&mut k, &want), "");
        prop_assert_eq!(&k.observe().unwrap(), &want);
    }

    /// The number of chains and sets is that of the node without Services, but for one chain per distinct number of
    /// endpoints and timeout of session affinity.
    #[test]
    fn chains_and_sets_do_not_grow_with_services(i in node_intent()) {
        let empty = compile(&NodeIntent { services: [].into(), ..i.clone() });
        let image = compile(&i);
        prop_assert_eq!(image.sets.len(), empty.sets.len());
        let mut counts = BTreeSet::new();
        for s in i.services.values() {
            let timeout = if let intent::Affinity::ClientIp { timeout } = s.affinity { timeout } else { 0 };
            for set in [&s.endpoints, &s.local_endpoints] {
                for f in Family::BOTH {
                    counts.insert((f, set.iter().filter(|e| Family::of(e.addr) == f).count(), timeout));
                }
            }
        }
        // By address or by node port, of all endpoints or of local ones.
        prop_assert!(image.chains.len() <= empty.chains.len() + 4 * counts.len());
    }

    /// A change of one Service plans only its own elements.
    #[test]
    fn a_change_of_one_service_touches_only_its_elements(i in node_intent(), which: Index, add in 1u16..4) {
        prop_assume!(!i.services.is_empty());
        let keys: Vec<&ServiceKey> = i.services.keys().collect();
        let key = (*which.get(&keys)).clone();
        let mut j = i.clone();
        let svc = Arc::make_mut(j.services.get_mut(&key).unwrap());
        for n in 0..add {
            let f = svc.families.iter().next().unwrap();
            svc.endpoints.insert(Endpoint { addr: intent::generate::pod_addr(f, 2, 50), port: 7000 + n });
        }
        let svc = svc.clone();
        let ops: Vec<Op> = NftPlane.plan(&compile(&j), &compile(&i)).into_iter().flatten().collect();
        for op in &ops {
            let text = op.to_string();
            match op {
                Op::ElementAdd(set, ..) | Op::ElementDel(set, ..) if set.starts_with("hairpin") => {}
                // By its number: those of others are other numbers.
                Op::ElementAdd(set, ..) | Op::ElementDel(set, ..) if set.contains("sticky_slots") || set.contains("sticky_endpoints") => {
                    let id = number_of(&compile(&j), &svc, &key);
                    prop_assert!(text.contains(&format!(". {id}")), "{} {}", id, text);
                }
                Op::ElementAdd(..) | Op::ElementDel(..) | Op::Forget(_) => {
                    let vips = svc.cluster_ips.iter().copied().chain(svc.outside_ips());
                    let mut places: Vec<String> =
                        vips.flat_map(|a| [format!("{a} . "), a.to_string(), format!("[{a}]")]).collect();
                    places.extend(svc.node_port.map(|p| p.to_string()));
                    prop_assert!(places.iter().any(|p| text.contains(p.as_str())), "{}", text);
                }
                Op::ChainAdd(name, None) | Op::ChainFlush(name) | Op::ChainDel(name) | Op::RuleAdd(name, ..) => {
                    prop_assert!(["pick", "node", "sticky"].iter().any(|p| name.starts_with(p)), "{}", text);
                }
                other => prop_assert!(false, "{}", other),
            }
        }
        // New chains, the elements of the table and its marks in one transaction, then what is to be forgotten.
        prop_assert!(NftPlane.plan(&compile(&j), &compile(&i)).len() <= 3);
    }
}

/// The number by which the rules know a Service port with session affinity, as nft prints it.
fn number_of(image: &Image, svc: &intent::ServicePort, key: &ServiceKey) -> String {
    let proto = key.proto.to_string().to_lowercase();
    let mut fronts: Vec<String> = svc
        .cluster_ips
        .iter()
        .copied()
        .chain(svc.outside_ips())
        .map(|ip| format!("{ip} . {proto} . {} : ", svc.port))
        .collect();
    fronts.extend(svc.node_port.map(|p| format!("{proto} . {p} : ")));
    let text = plane_nft::render::image(image);
    let sticky: Vec<&str> = text.split("\tmap ").filter(|m| m.starts_with("sticky")).flat_map(str::lines).collect();
    let find = |f: &String| sticky.iter().find_map(|l| l.split_once(f.as_str()).map(|(_, n)| n[..10].to_owned()));
    fronts.iter().find_map(find).unwrap_or_else(|| panic!("none of {fronts:?} is in {text}"))
}

/// Every chain that picks one of N finds N slots, wherever it is used.
fn no_slot_is_missing(image: &Image) -> bool {
    let own = |p: &Packet| NftPlane.trace(image, p);
    let services = image.sets.iter().filter(|(n, _)| n.starts_with("services"));
    let mut ok = true;
    for (_, set) in services {
        for key in set.elements.iter().map(|e| e.key) {
            let v6 = key.len() == 24;
            let addr = if v6 {
                IpAddr::from(<[u8; 16]>::try_from(&key[..16]).unwrap())
            } else {
                IpAddr::from(<[u8; 4]>::try_from(&key[..4]).unwrap())
            };
            let rest = &key[if v6 { 16 } else { 4 }..];
            let proto = Proto::from_number(rest[0]).unwrap();
            let dst = u16::from_be_bytes([rest[4], rest[5]]);
            let src = if v6 { "fd00:10:244::9".parse().unwrap() } else { "10.244.0.9".parse().unwrap() };
            let p = Packet { origin: Origin::Host, src, dst: addr, l4: intent::L4::Ports { proto, src: 1, dst } };
            // A missing slot is a drop without a reason of ours.
            ok &= own(&p) != Verdict::Drop(intent::Drop::Policy);
        }
    }
    ok
}

/// Connections of every UDP and SCTP port to each of its endpoints.
fn flows_of(i: &NodeIntent) -> Vec<Flow> {
    let mut out = Vec::new();
    for (to, proto, endpoints) in fronts(i) {
        for e in endpoints {
            out.push(flow(proto, to, e));
        }
    }
    out
}

fn flow(proto: Proto, to: (IpAddr, u16), e: Endpoint) -> Flow {
    let client: IpAddr = if to.0.is_ipv4() { [10, 244, 0, 77].into() } else { "fd00:10:244::77".parse().unwrap() };
    Flow {
        proto,
        original: Tuple { src: client, dst: to.0, sport: 999, dport: to.1 },
        reply: Tuple { src: e.addr, dst: client, sport: e.port, dport: 999 },
        dnat: true,
        over: false,
    }
}

/// Where each Service port is reached first of all, and what may answer there.
fn fronts(i: &NodeIntent) -> Vec<((IpAddr, u16), Proto, BTreeSet<Endpoint>)> {
    let mut out = Vec::new();
    let places: BTreeSet<(IpAddr, u16)> = i
        .services
        .values()
        .flat_map(|s| {
            let vips = s.cluster_ips.iter().copied().chain(s.outside_ips()).map(|a| (a, s.port));
            vips.chain(s.node_port.into_iter().flat_map(|p| i.addresses.iter().map(move |a| (*a, p))))
        })
        .collect();
    for to in places {
        for proto in [Proto::Udp, Proto::Sctp] {
            // From inside and outside, so that local endpoints count too.
            let world = intent::generate::world(Family::of(to.0), 1);
            let mut answers = BTreeSet::new();
            for (origin, src) in [(Origin::Host, to.0), (Origin::Outside, world)] {
                let l4 = intent::L4::Ports { proto, src: 1, dst: to.1 };
                if let Verdict::Forward(legs) = translate(i, &Packet { origin, src, dst: to.0, l4 }) {
                    answers.extend(legs.into_iter().filter_map(|l| l.translated));
                }
            }
            out.push((to, proto, answers));
        }
    }
    out
}

/// What was left: nothing of an endpoint that went, everything of one that stayed.
fn check_flows(a: &NodeIntent, b: &NodeIntent, left: &[Flow]) -> Result<(), TestCaseError> {
    let now = fronts(b);
    for (to, proto, endpoints) in fronts(a) {
        let serving = now.iter().find(|(t, p, _)| *t == to && *p == proto).map(|(.., e)| e.clone());
        // Whoever may still be chosen by some source, source ranges aside.
        let serving = serving.unwrap_or_default();
        for e in endpoints {
            let there = left.contains(&flow(proto, to, e));
            let firewalled = [a, b].iter().any(|i| i.services.values().any(|s| !s.source_ranges.is_empty()));
            if !firewalled {
                prop_assert_eq!(there, serving.contains(&e), "{} {:?} {}", proto, to, e);
            } else if serving.contains(&e) {
                prop_assert!(there, "{} {:?} {}", proto, to, e);
            }
        }
    }
    Ok(())
}

/// One way of spoiling the table; each leaves something that another tool could leave.
fn damage(mut t: nft::Table, kind: u8, at: Index) -> Option<nft::Table> {
    let nth = |len: usize| at.index(len.max(1));
    match kind {
        0 => return None,
        1 => t.rules.clear(),
        2 if !t.rules.is_empty() => {
            let n = nth(t.rules.len());
            t.rules.remove(n);
        }
        3 => t.rules.insert(
            nth(t.rules.len()),
            nft::Rule { chain: "prerouting".into(), handle: 900, exprs: vec![Expr::Other("xt".into())], comment: None },
        ),
        4 => t.elements.iter_mut().for_each(|(_, e)| e.clear()),
        5 => {
            let n = nth(t.elements.len());
            t.elements[n].1.pop();
        }
        6 => {
            // An endpoint replaced by hand.
            for e in t.elements.iter_mut().filter(|(n, _)| n.starts_with("endpoints")).flat_map(|(_, e)| e) {
                if let Some(nft::ElementData::Value(v)) = &mut e.data {
                    v[0] ^= 1;
                }
            }
        }
        7 => {
            t.chains.push(nft::Chain { name: "theirs".into(), hook: None });
            let accept = Expr::Verdict(nft::Verdict::Goto("theirs".into()));
            t.rules.push(nft::Rule { chain: "output".into(), handle: 901, exprs: vec![accept], comment: None });
            t.sets.push(nft::Set { name: "mine".into(), ..t.sets[0].clone() });
        }
        8 => t.flags = 1,
        9 => t.chains.iter_mut().for_each(|c| {
            if let Some(h) = &mut c.hook {
                h.priority += 5;
            }
        }),
        10 => t.sets.iter_mut().for_each(|s| s.timeout = true),
        _ => {
            // A foreign chain that one of our verdict maps is made to lead to.
            t.chains.push(nft::Chain { name: "theirs".into(), hook: None });
            for e in t.elements.iter_mut().filter(|(n, _)| n.starts_with("services")).flat_map(|(_, e)| e) {
                e.data = Some(nft::ElementData::Verdict(nft::Verdict::Goto("theirs".into())));
            }
        }
    }
    Some(t)
}

/// The property has teeth: without any one rule, some packet of the generator goes another way.
#[test]
fn every_rule_matters() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = intent_and_packets(60);
    let empty = compile(&NodeIntent::empty("node0".parse().unwrap()));
    let mut idle: BTreeSet<(String, usize)> =
        empty.chains.iter().flat_map(|(n, c)| (0..c.rules.len()).map(|r| (n.clone(), r))).collect();
    // TCP reset or port unreachable is one verdict here; real packets tell them apart (tests/kernel_nft.rs).
    idle.retain(|(n, r)| !(n.starts_with("reject_") && *r == 0));
    // Which of the node's addresses a packet takes is not in a verdict; real packets tell (bins/seaway/tests/node.rs).
    idle.retain(|(n, r)| !(n.starts_with("as_node") && *r == 0));
    // Untracked or not, a tunnel's packet between nodes is nobody's Service: the verdict is the same.
    idle.retain(|(n, _)| !n.starts_with("raw_"));
    let generated = (0..2000).map(|_| {
        let tree = proptest::strategy::Strategy::new_tree(&strategy, &mut runner).unwrap();
        proptest::strategy::ValueTree::current(&tree)
    });
    // And one that the generator has not: a local endpoint beyond the pod ranges that speaks to itself.
    for (i, packets) in Family::BOTH.map(stranger).into_iter().chain(generated) {
        let image = compile(&i);
        let base: Vec<Verdict> = packets.iter().map(|p| NftPlane.trace(&image, p)).collect();
        packets.iter().zip(&base).for_each(|(p, v)| assert_eq!(*v, spec(&i, p)));
        idle.retain(|(name, rule)| {
            let mut without = image.clone();
            without.chains.get_mut(name).unwrap().rules.remove(*rule);
            packets.iter().zip(&base).all(|(p, v)| NftPlane.trace(&without, p) == *v)
        });
        if idle.is_empty() {
            return;
        }
    }
    panic!("no packet meets these rules: {idle:?}");
}

fn stranger(f: Family) -> (NodeIntent, Vec<Packet>) {
    let mut i = NodeIntent::empty("node0".parse().unwrap());
    i.families = [f].into_iter().collect();
    i.addresses.insert(intent::generate::node_addr(f, 0));
    let own = Endpoint { addr: intent::generate::world(f, 9), port: 8080 };
    let svc = intent::ServicePort {
        cluster_ips: FlatSet::new(),
        external_ips: FlatSet::from([intent::generate::external_ip(f, 1)]),
        port: 80,
        node_port: None,
        families: i.families,
        endpoints: FlatSet::from([own]),
        local_endpoints: FlatSet::from([own]),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Local,
        affinity: intent::Affinity::None,
        ..intent::ServicePort::default()
    };
    let service = types::ObjectName::new("default", "own");
    i.services.insert(ServiceKey { service, port: "".into(), proto: Proto::Tcp }, svc.into());
    let l4 = intent::L4::Ports { proto: Proto::Tcp, src: 1, dst: 80 };
    let dst = intent::generate::external_ip(f, 1);
    let packets = [own.addr, intent::generate::world(f, 8)].map(|src| Packet { origin: Origin::Outside, src, dst, l4 });
    (i, packets.into())
}

/// What cannot be said is said to be so, and the Service works without it.
#[test]
fn refusals_name_object_field_and_way_out() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let tree = proptest::strategy::Strategy::new_tree(&node_intent(), &mut runner).unwrap();
    let mut i = proptest::strategy::ValueTree::current(&tree);
    let svc = intent::ServicePort {
        cluster_ips: FlatSet::from([[10, 96, 0, 1].into()]),
        external_ips: FlatSet::new(),
        port: 80,
        node_port: None,
        families: [Family::V4].into_iter().collect(),
        endpoints: FlatSet::new(),
        local_endpoints: FlatSet::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: intent::Affinity::ClientIp { timeout: 1 },
        ..intent::ServicePort::default()
    };
    let service = types::ObjectName::new("default", "web");
    i.services = [(ServiceKey { service, port: "http".into(), proto: Proto::Tcp }, svc.into())].into_iter().collect();
    let policy = intent::Policy { selects: BTreeSet::new(), ingress: None, egress: None };
    i.policies.insert(types::ObjectName::new("default", "deny"), policy);
    let refused: Vec<String> = NftPlane.compile(&i, &Caps::default()).refused.iter().map(ToString::to_string).collect();
    assert!(refused.iter().all(|r| !r.contains("sessionAffinity")), "{refused:?}");
    assert!(refused.iter().any(|r| r.starts_with("NetworkPolicy/default/deny spec: ")), "{refused:?}");

    let caps = Caps { missing: ["nft_numgen".into()].into(), ..Caps::default() };
    let none = NftPlane.compile(&i, &caps);
    assert_eq!(none.image, Image::default());
    assert!(none.refused[0].why.contains("nft_numgen"), "{:?}", none.refused);
}
