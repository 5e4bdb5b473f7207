//! One body per decoder of foreign bytes. Each says with asserts what must hold beyond "it does not panic". Run by
//! libFuzzer (`fuzz_targets/`) and, on random and on seeded bytes, by `tests/tests/fuzz_smoke.rs`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use plan::Dataplane as _;
use resolve::{ClusterSnapshot, Event, Kind, LocalState};
use serde_json::{Value, json};

/// A body.
pub type Body = fn(&[u8]);

/// Every target by its name, which is also that of its file in `fuzz_targets/` and of its folder in `seeds/`.
pub const BODIES: &[(&str, Body)] = &[
    ("cni_config", cni_config),
    ("cni_env", cni_env),
    ("dhcp_call", plugins::fuzz::dhcp_call),
    ("dhcp_lease", plugins::fuzz::dhcp_lease),
    ("dhcp_packet", plugins::fuzz::dhcp_packet),
    ("ipam_index", ipam::fuzz::index),
    ("ipam_journal", ipam_journal),
    ("ipam_pools", ipam::fuzz::pools),
    ("plugin_answer", cni::fuzz::answer),
    ("pod_spec", cni::fuzz::pod_spec),
    ("netlink_rt", kernel::fuzz::rt_message),
    ("netlink_nft", kernel::fuzz::nft_message),
    ("netlink_ct", kernel::fuzz::ct_message),
    ("foreign_rules", foreign_rules),
    ("nft_table", nft_table),
    ("services", services),
    ("neighbour_question", kernel::fuzz::neighbour_question),
    ("api_object", api_object),
    ("node_annotations", node_annotations),
    ("manifest", manifest),
    ("pod_networks", pod_networks),
    ("network_definition", network_definition),
    ("apiserver_object", apiserver::fuzz::object),
    ("apiserver_patch", apiserver::fuzz::patch),
    ("apiserver_selector", apiserver::fuzz::selector),
    ("apiserver_custom", apiserver::fuzz::custom),
    ("plugin_config", plugins::fuzz::config),
];

/// The configuration on standard input, and the answer to an ADD with it.
pub fn cni_config(data: &[u8]) {
    let Ok(conf) = cni::NetConf::parse(data) else { return };
    let _ = conf.for_add();
    let record = r#"{"key":{"container":"c","ifname":"eth0"},"network":"n","netns":"/run/netns/x","inode":1,
        "link":"seae07ed1ff0a9a","addresses":["10.0.0.2","fd00::2"],"mtu":1500,"time":0}"#;
    let Ok(record) = serde_json::from_str::<ipam::Record>(record) else { return };
    let v = cni::merged(&record, &conf).write(conf.version);
    assert_eq!(v["cniVersion"].as_str(), Some(conf.version.as_str()), "the answer speaks the version it was asked in");
}

/// `CNI_COMMAND`, `CNI_CONTAINERID`, `CNI_NETNS`, `CNI_IFNAME`, `CNI_ARGS`, a line each.
pub fn cni_env(data: &[u8]) {
    let mut lines = data.split(|b| *b == b'\n').map(|l| Some(OsString::from_vec(l.to_vec())));
    let mut next = || lines.next().flatten();
    let env =
        cni::Env { command: next(), container_id: next(), netns: next(), ifname: next(), args: next(), path: None };
    if let Ok(call) = cni::Call::parse(&env) {
        let named = matches!(call.command, cni::Command::Add | cni::Command::Del | cni::Command::Check);
        assert_eq!(call.key.is_some(), named, "an interface is named when one is needed");
        let entered = matches!(call.command, cni::Command::Add | cni::Command::Check);
        assert!(!entered || call.netns.is_some(), "ADD and CHECK have a namespace");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = cni::parse_args(text);
    }
}

/// A journal. Random bytes never have a right checksum: after an even first byte the checksums of all lines are mended.
pub fn journal(data: &[u8]) -> Vec<u8> {
    let Some((mend, journal)) = data.split_first() else { return Vec::new() };
    if mend % 2 == 1 {
        return journal.to_vec();
    }
    let line = |l: &[u8]| match l {
        [kind, b' ', _, _, _, _, _, _, _, _, b' ', body @ ..] => {
            // A line voided in place keeps the checksum of the kind it had.
            let sum = crc32(if *kind == b'X' { b'A' } else { *kind }, body);
            [&[*kind], format!(" {sum:08x} ").as_bytes(), body].concat()
        }
        l => l.to_vec(),
    };
    journal.split(|b| *b == b'\n').map(line).collect::<Vec<_>>().join(&b'\n')
}

/// The journal of addresses.
pub fn ipam_journal(data: &[u8]) {
    if let Ok(records) = ipam::parse(Path::new("journal"), &journal(data), "boot") {
        let keys: BTreeSet<_> = records.iter().map(|r| &r.key).collect();
        assert_eq!(keys.len(), records.len(), "one record per interface");
        let mut seen = BTreeSet::new();
        for a in records.iter().flat_map(|r| &r.addresses) {
            assert!(seen.insert(a), "{a} belongs to two interfaces");
        }
    }
}

/// CRC-32 of IEEE 802.3, bit by bit: written apart from the journal's own on purpose.
fn crc32(kind: u8, body: &[u8]) -> u32 {
    let mut c = !0u32;
    for b in std::iter::once(kind).chain(body.iter().copied()) {
        c ^= u32::from(b);
        for _ in 0..8 {
            c = if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 };
        }
    }
    !c
}

/// Two nodes with ranges and annotations, one Service with an endpoint: enough for every reader to have something to
/// look up.
fn cluster() -> ClusterSnapshot {
    let node = |n: u8| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{n}"), "resourceVersion": "1"},
            "spec": {"podCIDRs": [format!("10.244.{n}.0/24"), format!("fd00:{n}::/64")]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{n}")}]}})
    };
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "resourceVersion": "1"},
        "spec": {"clusterIPs": ["10.96.0.10"], "clusterIP": "10.96.0.10", "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "default", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": true}, "nodeName": "node1"}]});
    let mut s = ClusterSnapshot::default();
    for v in [node(1), node(2), service, slice] {
        put(&mut s, &v);
    }
    s
}

fn put(s: &mut ClusterSnapshot, v: &Value) {
    if let Some(p) = resolve::parse(v) {
        resolve::apply(s, Event::Put(p));
    }
}

fn resolved(s: &ClusterSnapshot) -> Option<resolve::Resolved> {
    Some(resolve::resolve(s, &local()?))
}

/// node1.
fn local() -> Option<LocalState> {
    Some(LocalState {
        node: "node1".parse().ok()?,
        attachments: Default::default(),
        on_link: vec!["192.0.2.0/24".parse().ok()?],
        addresses: Default::default(),
        vxlan_mac: "02:00:00:00:00:01".parse().ok()?,
        vxlan_supported: true,
        vxlan_in_use: false,
        services_elsewhere: false,
        networks: Default::default(),
        ports: Default::default(),
    })
}

/// An object of the API: the first byte chooses the kind. Taking it in and out again leaves nothing behind.
pub fn api_object(data: &[u8]) {
    let Some((kind, json)) = data.split_first() else { return };
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let Ok(v) = serde_json::from_slice::<Value>(json) else { return };
    let before = cluster();
    let parsed = resolve::parse_as(kind, &v);
    let key = parsed.key.clone();
    let mut s = before.clone();
    resolve::apply(&mut s, Event::Put(parsed.clone()));
    let once = s.clone();
    resolve::apply(&mut s, Event::Put(parsed));
    assert_eq!(s, once, "the same event twice");
    let _ = resolved(&s);
    let mut without = before;
    resolve::apply(&mut without, Event::Delete(key.clone()));
    resolve::apply(&mut s, Event::Delete(key));
    assert_eq!(s, without, "a deleted object leaves nothing");
}

/// What another node published about itself: pod ranges, backend, VXLAN data, subnets, own address; a line each.
pub fn node_annotations(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let ranges: Vec<&str> = next().split(',').collect();
    let annotations = json!({
        resolve::annotations::BACKEND: next(),
        resolve::annotations::VXLAN: next(),
        resolve::annotations::SUBNETS: next(),
    });
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node3", "resourceVersion": "1", "annotations": annotations},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": [{"type": "InternalIP", "address": next()}]}});
    let mut s = cluster();
    put(&mut s, &node);
    let Some(r) = resolved(&s) else { return };
    // Whatever one node says of itself, our own ranges and the honest peer's way stay.
    assert_eq!(r.intent.pod_cidrs.len(), 2, "{:?}", r.intent.pod_cidrs);
    let peer = "node2".parse().ok().and_then(|n| r.intent.peers.get(&n));
    assert!(peer.is_some_and(|p| p.routes.len() == 2), "{peer:?}");
}

/// The annotations of a pod that say which networks it is to have: `k8s.v1.cni.cncf.io/networks`,
/// `v1.multus-cni.io/default-network` and `cni`, a line each; an empty line is none.
pub fn pod_networks(data: &[u8]) {
    use resolve::networks::{Definition, Known, READ, config};
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split('\n').collect();
    let note =
        |key: &str| READ.iter().position(|k| *k == key).and_then(|i| lines.get(i).copied()).filter(|t| !t.is_empty());
    let Ok(bridge) = config(r#"{"cniVersion": "1.0.0", "type": "bridge"}"#, "a") else { return };
    let name = |ns: &str, n: &str| types::ObjectName::new(ns, n);
    let definitions = [
        (name("default", "a"), Definition { config: Some(bridge.clone()) }),
        (name("kube-system", "a"), Definition { config: Some(bridge.clone()) }),
        (name("ns", "b"), Definition { config: None }),
    ];
    let known = Known {
        definitions: &definitions.into(),
        broken: &|n| (&*n.name == "broken").then(|| "it is broken".to_owned()),
        files: &[("b".into(), Ok(bridge)), ("bad".into(), Err("it is bad".to_owned()))].into(),
    };
    match resolve::networks::pod_networks(&name("default", "web"), note, &known) {
        Ok(found) => {
            let all: Vec<&intent::Network> = found.first.iter().chain(&found.further).collect();
            let names: BTreeSet<&str> = all.iter().map(|n| n.ifname.as_str()).collect();
            assert_eq!(names.len(), all.len(), "two networks have one interface");
            assert!(found.first.iter().all(|n| n.ifname.as_str() == "eth0"), "the first interface is eth0");
            assert!(all.iter().all(|n| !n.plugins.is_empty()), "a network without plugin");
            // What the agent writes for the plugin is read back as it was.
            for n in all {
                let text = serde_json::to_string(n).unwrap_or_default();
                assert_eq!(serde_json::from_str::<intent::Network>(&text).ok().as_ref(), Some(n));
            }
        }
        Err(p) => {
            assert!(p.object == "Pod/default/web" && p.field.starts_with("metadata.annotations[") && !p.why.is_empty())
        }
    }
}

/// `spec.config` of a NetworkAttachmentDefinition.
pub fn network_definition(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let v = json!({"metadata": {"namespace": "default", "name": "n"}, "spec": {"config": text}});
    let parsed = resolve::parse_as(Kind::NetworkAttachmentDefinition, &v);
    match &parsed.object {
        Some(resolve::Object::NetworkAttachmentDefinition(d)) => {
            assert!(parsed.problems.is_empty());
            if let Some(c) = &d.config {
                let named = |p: &std::collections::BTreeMap<String, Value>| {
                    p.get("type").and_then(Value::as_str).is_some_and(|t| !t.is_empty() && !t.contains('/'))
                };
                assert!(!c.plugins.is_empty() && c.plugins.iter().all(named), "{c:?}");
            }
        }
        _ => assert_eq!(parsed.problems.len(), 1, "what cannot be used is named"),
    }
}

/// Others' rules as the kernel tells of them, and what is made of them for pods. The first byte says whether kube-proxy runs.
pub fn foreign_rules(data: &[u8]) {
    let Some((beside, data)) = data.split_first() else { return };
    let rules = kernel::fuzz::foreign(data, &plane_nft::foreign::MARKERS);
    let pods = ["10.244.0.0/16", "fd00:10:244::/56"].into_iter().filter_map(|c| c.parse().ok()).collect();
    let found = plane_nft::foreign::findings(&rules, &pods, beside % 2 == 1);
    let kube_proxy = plane_nft::foreign::has_kube_proxy(&rules);
    for f in &found {
        assert!(!f.object.is_empty() && !f.field.is_empty() && !f.why.is_empty());
        let of_a_hook = rules.chains.iter().any(|c| c.hook.is_some() && f.object.ends_with(&c.name));
        assert!(of_a_hook || kube_proxy, "what no packet meets is in nobody's way: {f}");
    }
}

/// Services and EndpointSlices, one a line, that come one after the other: followed, they mean what they mean from
/// scratch, and the rules that are made of them do with packets what the specification says.
pub fn services(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (mut s, mut resolver) = (cluster(), resolve::Resolver::default());
    let Some(local) = local() else { return };
    let mut changed = resolve::Changes::All;
    for line in text.lines().take(12) {
        drop(resolver.follow(&s, &local, &changed));
        let parsed = serde_json::from_str::<Value>(line).ok().and_then(|v| resolve::parse(&v));
        changed = resolve::Changes::Some(match parsed {
            Some(p) => resolve::apply(&mut s, Event::Put(p)).into_iter().collect(),
            None => BTreeSet::new(),
        });
    }
    let r = resolve::resolve(&s, &local);
    let followed = resolver.follow(&s, &local, &changed);
    assert!(*followed.intent == r.intent && followed.problems == r.problems, "followed, it is another");
    let image = plane_nft::NftPlane.compile(&r.intent, &plan::Caps::default()).image;
    for p in r.intent.services.iter().take(12).flat_map(|(k, p)| packets(&r.intent, k, p)) {
        let want = intent::translate(&r.intent, &p).without_paths();
        assert_eq!(plane_nft::NftPlane.trace(&image, &p), want, "{p:?}");
    }
    let names = || s.services.keys();
    for view in names().filter_map(|n| resolve::explain::explain(&s, &r.intent, &r.problems, n)) {
        let (used, all) = view.counts();
        assert!(used <= all && view.notes.iter().all(|n| !n.is_empty()));
    }
}

/// From the node, a pod of another node and the world, to everything that a Service port is asked by.
fn packets(i: &intent::NodeIntent, key: &intent::ServiceKey, p: &intent::ServicePort) -> Vec<intent::Packet> {
    use intent::{L4, Origin, Packet};
    let at = p.cluster_ips.iter().copied().chain(p.outside_ips()).take(6).map(|a| (a, p.port));
    let node_port = p.node_port.into_iter().flat_map(|n| i.node_port_addresses.iter().map(move |a| (*a, n)));
    let mut out = Vec::new();
    for (dst, port) in at.chain(node_port) {
        let own = i.addresses.iter().copied().find(|a| a.is_ipv4() == dst.is_ipv4());
        let [far, world] = if dst.is_ipv4() { ["10.244.2.9", "203.0.113.77"] } else { ["fd00:2::9", "2001:db8:77::1"] };
        let outside = [far, world].into_iter().filter_map(|a| Some((Origin::Outside, a.parse().ok()?)));
        for (origin, src) in own.map(|a| (Origin::Host, a)).into_iter().chain(outside) {
            let l4 = L4::Ports { proto: key.proto, src: 40_000, dst: port };
            out.push(Packet { origin, src, dst, l4 });
        }
    }
    out
}

/// Our own table as the kernel tells of it, damaged: it is read, and from there the way to what should be is planned.
pub fn nft_table(data: &[u8]) {
    let table = kernel::fuzz::table(data);
    let have = plane_nft::parse(Some(&table));
    let Some(r) = resolved(&cluster()) else { return };
    let want = plane_nft::NftPlane.compile(&r.intent, &plan::Caps::default()).image;
    let batches = plane_nft::NftPlane.plan(&want, &have);
    assert!(have != want || batches.iter().all(Vec::is_empty), "nothing is to be done where all is as it should be");
    for op in batches.iter().flatten() {
        assert!(!op.to_string().is_empty());
    }
    // And away with it.
    let _ = plane_nft::NftPlane.plan(&plane_nft::Image::default(), &have);
    let _ = plane_nft::render::image(&have);
}

/// A manifest as `seaway plan --from` reads it.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let folder = source::read_text(Path::new("x.yaml"), text);
    let _ = resolved(&folder.snapshot);
    for p in &folder.problems {
        assert!(!p.to_string().is_empty());
    }
}

/// Runs the body of a name.
///
/// # Panics
/// When there is none, or when the body finds that something does not hold.
pub fn run(name: &str, data: &[u8]) {
    match BODIES.iter().find(|(n, _)| *n == name) {
        Some((_, body)) => body(data),
        None => panic!("{name} is no fuzz body"),
    }
}
