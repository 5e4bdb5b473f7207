//! One table of cases, run three ways: what `intent::verdict` says of the resolved objects, what the trace says of the
//! rules as the kernel holds them, and where real packets go.

mod packets;
mod rows;
mod sticky;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::generate::{cluster_ip, external_ip, node_addr, pod_addr, world};
use intent::{Attachment, AttachmentKey, Choice, L4, NodeIntent, Origin, Packet, Snat, Verdict};
use plan::{Caps, Dataplane};
use plane_nft::NftPlane;
use resolve::{ClusterSnapshot, Event, LocalState, apply, parse, resolve};
use serde_json::{Value, json};
use types::{Family, ObjectName, OwnedName, Proto};

use crate::world::{PODS, World};
use rows::{Case, SERVICE, cases};

/// The address of a name in one family, see [`rows`].
fn addr(name: &str, f: Family) -> IpAddr {
    let special = |v4: &str, v6: &str| if f == Family::V4 { v4 } else { v6 }.parse().unwrap();
    match name {
        "p0" | "p1" | "p2" => pod_addr(f, 0, PODS[usize::from(name.as_bytes()[1] - b'0')]),
        "far" => pod_addr(f, 1, 10),
        "node" => node_addr(f, 0),
        "node2" => node_addr(f, 200),
        "node1" => node_addr(f, 1),
        "world" => world(f, 1),
        "vip" => cluster_ip(f, 1),
        "vip2" => cluster_ip(f, 2),
        "free" => cluster_ip(f, 200),
        "ext" => external_ip(f, 1),
        "lb" => external_ip(f, 2),
        "proxied" => external_ip(f, 3),
        "loopback" => special("127.0.0.1", "::1"),
        "linklocal" => special("169.254.169.254", "fe80::9"),
        "multicast" => special("224.0.0.9", "ff02::9"),
        _ => panic!("no such place: {name}"),
    }
}

const NAMES: [&str; 8] = ["p0", "p1", "p2", "far", "node", "node2", "node1", "world"];

fn name_of(a: IpAddr) -> &'static str {
    NAMES.into_iter().find(|n| addr(n, Family::of(a)) == a).unwrap_or("?")
}

/// Where a packet may go, in the words of the table.
fn text(v: &Verdict) -> String {
    let word = |v: &dyn std::fmt::Debug| {
        let s = format!("{v:?}");
        s[..1].to_lowercase() + &s[1..]
    };
    let snat = |s: &Snat| match s {
        Snat::Keep => "keep".into(),
        Snat::Masquerade(why) => word(why),
    };
    match v {
        Verdict::Reject(r) => format!("reject {}", word(r)),
        Verdict::Drop(d) => format!("drop {}", word(d)),
        Verdict::Forward(legs) => {
            let choice = legs.iter().next().and_then(|l| l.choice);
            let each = legs.iter().map(|l| match l.translated {
                Some(e) => format!("{}:{} {}", name_of(e.addr), e.port, snat(&l.snat)),
                None => snat(&l.snat),
            });
            let each: Vec<String> = each.collect();
            let how = match choice {
                None => "plain",
                Some(Choice::Any) => "any",
                Some(Choice::Local) => "local",
                Some(Choice::Remembered) => "remembered",
            };
            format!("{how} {}", each.join(", "))
        }
    }
}

/// The same with the endpoints in the order of their addresses.
fn sorted(want: &str, f: Family) -> String {
    let Some((how, list)) = want.split_once(' ').filter(|(how, _)| matches!(*how, "any" | "local")) else {
        return want.into();
    };
    let mut all: Vec<&str> = list.split(", ").collect();
    all.sort_by_key(|e| {
        let (name, rest) = e.split_once(':').unwrap();
        (addr(name, f), rest.split(' ').next().unwrap().parse::<u16>().unwrap())
    });
    format!("{how} {}", all.join(", "))
}

/// `vip:80/udp`, `vip ping`
fn l4_of(to: &str) -> (&str, L4) {
    if let Some(name) = to.strip_suffix(" ping") {
        return (name, L4::Echo);
    }
    let (name, rest) = to.split_once(':').unwrap();
    let (port, proto) = match rest.split_once('/') {
        Some((p, "udp")) => (p, Proto::Udp),
        Some((p, "sctp")) => (p, Proto::Sctp),
        _ => (rest, Proto::Tcp),
    };
    (name, L4::Ports { proto, src: 40000, dst: port.parse().unwrap() })
}

fn key(pod: &str) -> AttachmentKey {
    AttachmentKey { container_id: pod.into(), ifname: "eth0".into() }
}

fn packet(from: &str, to: &str, f: Family) -> Packet {
    let origin = match from {
        "p0" | "p1" | "p2" => Origin::Pod(key(from)),
        "node" => Origin::Host,
        _ => Origin::Outside,
    };
    let (to, l4) = l4_of(to);
    Packet { origin, src: addr(from, f), dst: addr(to, f), l4 }
}

/// Both addresses of a name, for the text of objects: `$vip4`, `$vip6`.
fn fill(text: &str) -> String {
    let mut out = text.to_owned();
    for name in ["vip", "ext", "lb", "proxied", "node", "node1", "node2"] {
        for (f, digit) in [(Family::V4, '4'), (Family::V6, '6')] {
            out = out.replace(&format!("${name}{digit}"), &addr(name, f).to_string());
        }
    }
    out
}

fn node(name: &str, zone: &str, addresses: &[IpAddr], n: u8) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    let cidrs = Family::BOTH.map(|f| intent::generate::pod_cidr(f, n).to_string());
    let labels = if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses}})
}

/// The slices of one line, one of each family.
fn slices(service: &str, n: usize, line: &str) -> Vec<Value> {
    let (families, line) = match line.split_once(' ') {
        Some(("4", rest)) => (&Family::BOTH[..1], rest),
        Some(("6", rest)) => (&Family::BOTH[1..], rest),
        _ => (&Family::BOTH[..], line),
    };
    let (head, endpoints) = line.split_once(": ").unwrap();
    let (head, headless) = match head.strip_suffix(" headless") {
        Some(h) => (h, true),
        None => (head, false),
    };
    let (ports, version) = head.split_once('@').unwrap_or((head, "1"));
    let port = |p: &str| {
        let (name, number) = p.split_once('=').unwrap();
        let (name, proto) = name.split_once('/').unwrap_or((name, "tcp"));
        json!({"name": name, "port": number.parse::<u16>().unwrap(), "protocol": proto.to_uppercase()})
    };
    let ports: Vec<Value> = ports.split(',').map(port).collect();
    let endpoint = |e: &str, f: Family| {
        let mut words = e.split(' ');
        let name = words.next().unwrap();
        let on = if ["p0", "p1", "p2", "node"].contains(&name) { "node0" } else { "node1" };
        let mut v = json!({"addresses": [addr(name, f)], "nodeName": on});
        for w in words {
            let names = |list: &str| list.split('+').map(|n| json!({"name": n})).collect::<Vec<_>>();
            match w.split_once('=') {
                Some(("zones", z)) => v["hints"]["forZones"] = names(z).into(),
                Some(("nodes", n)) => v["hints"]["forNodes"] = names(n).into(),
                _ => {
                    v["conditions"] = match w {
                        "unready" => json!({"ready": false}),
                        "going" => json!({"ready": false, "serving": true, "terminating": true}),
                        "gone" => json!({"ready": false, "serving": false, "terminating": true}),
                        "leaving" => json!({"ready": true, "serving": false, "terminating": true}),
                        _ => panic!("no such condition: {w}"),
                    }
                }
            }
        }
        v
    };
    let each = families.iter().map(|f| {
        let list: Vec<Value> = endpoints.split(", ").map(|e| endpoint(e, *f)).collect();
        let mut labels = json!({"kubernetes.io/service-name": service});
        if headless {
            labels["service.kubernetes.io/headless"] = "".into();
        }
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-{n}-{}", f.to_string().to_lowercase()), "namespace": "default",
                "resourceVersion": version, "labels": labels},
            "addressType": f.to_string(), "ports": ports, "endpoints": list})
    });
    each.collect()
}

/// The objects of a case, as the API has them.
fn objects(case: &Case) -> Vec<Value> {
    let over: BTreeMap<String, Value> = serde_json::from_str(&fill(case.service)).unwrap();
    let mut spec: Value = serde_json::from_str(SERVICE).unwrap();
    let vips = Family::BOTH.map(|f| addr("vip", f).to_string());
    spec["clusterIPs"] = json!(vips);
    let mut service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "labels": {}}, "status": {"loadBalancer": {}}});
    let mut data = json!({"clusterCIDR": "10.244.0.0/16,fd00:10:244::/48", "backend": "host-gw"});
    let (mut further, mut zone) = (Vec::new(), "a".to_owned());
    for (k, v) in over {
        match k.as_str() {
            "labels" => service["metadata"]["labels"] = v,
            "status" => service["status"]["loadBalancer"]["ingress"] = v,
            "serviceCIDRs" => further.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"}, "spec": {"cidrs": v}})),
            "pools" => further.push(json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool",
                "metadata": {"name": "public"}, "spec": {"addresses": v}})),
            "zone" => zone = v.as_str().unwrap().to_owned(),
            "newcomer" => further.extend(newcomer(v)),
            "settings" => v.as_object().unwrap().iter().for_each(|(k, v)| data[k] = v.clone()),
            _ => spec[k] = v,
        }
    }
    spec["clusterIP"] = spec["clusterIPs"][0].clone();
    service["spec"] = spec;
    let own: Vec<IpAddr> = Family::BOTH.iter().flat_map(|f| [addr("node", *f), addr("node2", *f)]).collect();
    let other = Family::BOTH.map(|f| addr("node1", f));
    let mut out = vec![node("node0", &zone, &own, 0), node("node1", "b", &other, 1), service];
    out.push(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "seaway", "namespace": "kube-system"}, "data": data}));
    out.append(&mut further);
    out.extend(case.slices.iter().enumerate().flat_map(|(n, s)| slices("web", n, s)));
    out
}

/// A younger Service at `vip2` with an endpoint p2:8081 behind each of its ports.
fn newcomer(mut spec: Value) -> Vec<Value> {
    let vips = Family::BOTH.map(|f| addr("vip2", f).to_string());
    spec["clusterIP"] = json!(vips[0]);
    spec["clusterIPs"] = json!(vips);
    spec["ipFamilies"] = json!(["IPv4", "IPv6"]);
    let ports: Vec<String> =
        spec["ports"].as_array().unwrap().iter().map(|p| format!("{}=8081", p["name"].as_str().unwrap())).collect();
    let mut out = slices("new", 0, &format!("{}: p2", ports.join(",")));
    out.push(json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": {"name": "new", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}}));
    out
}

/// What the objects mean for node0, whose pods are p0, p1 and p2.
pub(super) fn intent_of(objects: &[Value]) -> NodeIntent {
    let mut snapshot = ClusterSnapshot::default();
    for o in objects {
        apply(&mut snapshot, Event::Put(parse(o).unwrap_or_else(|| panic!("not ours: {o}"))));
    }
    let attachment = |pod: &str| Attachment {
        pod: Some(ObjectName::new("default", pod)),
        link: OwnedName::for_container(pod, "eth0"),
        addresses: Family::BOTH.map(|f| addr(pod, f)).into(),
        host_ports: Vec::new(),
    };
    let local = LocalState {
        node: "node0".parse().unwrap(),
        attachments: ["p0", "p1", "p2"].map(|p| (key(p), attachment(p))).into(),
        on_link: ["192.168.7.0/24", "fd00:7::/64"].map(|c| c.parse().unwrap()).into(),
        addresses: BTreeSet::new(),
        vxlan_mac: "02:00:00:00:00:01".parse().unwrap(),
        vxlan_supported: true,
        vxlan_in_use: false,
        services_elsewhere: false,
        networks: Default::default(),
        ports: Default::default(),
    };
    resolve(&snapshot, &local).intent
}

/// The asks of a case in every family it is for: from, to, what is wanted.
fn asks(case: &Case) -> Vec<(Family, &str, &str, String)> {
    let mut out = Vec::new();
    for f in Family::BOTH {
        for (from, to, want) in case.asks {
            let digit = if f == Family::V4 { "4:" } else { "6:" };
            let from = match from.strip_prefix(digit) {
                Some(rest) => rest,
                None if from.contains(':') => continue,
                None => from,
            };
            out.push((f, from, *to, sorted(want, f)));
        }
    }
    out
}

/// The specification and the compiled rules, for every row.
#[test]
fn verdict_and_trace() {
    let mut wrong = Vec::new();
    for case in cases() {
        let intent = intent_of(&objects(case));
        let image = NftPlane.compile(&intent, &Caps::default()).image;
        for (f, from, to, want) in asks(case) {
            let p = packet(from, to, f);
            let says = text(&intent::verdict(&intent, &p).without_paths());
            let traced = text(&NftPlane.trace(&image, &p));
            if says != want || traced != want {
                wrong.push(format!(
                    "{}: {f} {from} to {to}\n  want    {want}\n  verdict {says}\n  trace   {traced}",
                    case.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The rules as the kernel has them say the same, and real packets go there.
#[test]
fn the_kernel_and_real_packets() {
    let mut w = World::new();
    let _servers = packets::servers(&w);
    let mut wrong = Vec::new();
    let mut sources = packets::Sources::default();
    for case in cases() {
        let intent = intent_of(&objects(case));
        let image = w.converge(&intent);
        for (f, from, to, want) in asks(case) {
            let traced = text(&NftPlane.trace(&image, &packet(from, to, f)));
            if traced != want {
                wrong.push(format!("{}: {f} {from} to {to}: trace {traced}, want {want}", case.name));
            }
            if let Err(why) = packets::ask(&w, from, to, f, &want, case.service.contains("ClientIP")) {
                wrong.push(format!("{}: {f} {from} to {to}: {why}, want {want}", case.name));
            }
        }
        sources.look(&w);
    }
    wrong.extend(sources.not_random());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
