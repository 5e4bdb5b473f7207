//! What Services cost one node in memory and time, step by step, without an API server: objects are read as they come
//! from the wire, resolved, compiled and committed to a network namespace of their own, then changed one by one.
//! `bench/cost` runs it and prints bytes by Service and endpoint. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a measurement, not a library

use std::time::{Duration, Instant};

use intent::ServiceChanges;
use kernel::{Ct, Netns, Nftables};
use plan::{Caps, Dataplane, HostLink, Kernel, converge};
use plane_nft::{NftKernel, NftPlane, Tracker};
use resolve::{Changes, ClusterSnapshot, Event, LocalState, Resolver, apply, parse};
use serde_json::{Value, json};

fn rss(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn say(what: &str, began: Instant) {
    println!("{what:<34} {:>9.2} ms   {:>7.1} MiB", began.elapsed().as_secs_f64() * 1e3, rss("VmRSS"));
}

fn addr(base: u32, n: u32) -> std::net::Ipv4Addr {
    (base + n).into()
}

fn service(n: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("service-{n}"), "namespace": format!("namespace-{}", n % 100),
        "uid": format!("0b7e8a2c-5d0f-4f4e-9d2a-{n:012}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "ClusterIP", "clusterIP": addr(0x0a60_0100, n), "clusterIPs": [addr(0x0a60_0100, n)], "ipFamilies": ["IPv4"],
            "selector": {"app": format!("service-{n}")}, "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
}

fn slice(n: u32, endpoints: u32, shift: u32) -> Value {
    let each: Vec<Value> = (0..endpoints)
        .map(|i| {
            json!({"addresses": [addr(0x0a80_0000, n * endpoints + i + shift)], "nodeName": format!("node-{}", (n + i) % 200),
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "name": format!("service-{n}-5c9f7d{i:05}")}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("service-{n}-abcde"), "namespace": format!("namespace-{}", n % 100),
            "labels": {"kubernetes.io/service-name": format!("service-{n}"), "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "ownerReferences": [{"controller": true, "kind": "Service", "name": format!("service-{n}"), "uid": format!("0b7e8a2c-5d0f-4f4e-9d2a-{n:012}")}]},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": each})
}

fn main() {
    let arg = |n: usize, default: u32| std::env::args().nth(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (services, endpoints) = (arg(1, 1000), arg(2, 4));
    let ns = Netns::new().unwrap();
    let open = || ns.inside(|| Ok(NftKernel::new(Nftables::open()?, Ct::open()?))).unwrap();
    let mut k = open();
    let local = LocalState {
        node: "node-1".parse().unwrap(),
        attachments: Default::default(),
        on_link: vec!["192.168.0.0/16".parse().unwrap()],
        vxlan_mac: "02:00:00:00:00:01".parse().unwrap(),
        vxlan_supported: true,
        vxlan_in_use: false,
        services_elsewhere: false,
        networks: Default::default(),
        addresses: Default::default(),
        ports: Default::default(),
    };
    let link = HostLink { mtu: 1500, addresses: vec![("192.168.0.1".parse().unwrap(), 16)] };
    let caps = Caps { links: [("eth0".parse().unwrap(), link)].into(), ..Caps::default() };
    let base = rss("VmRSS");
    println!("{services} Services with {endpoints} endpoints each; before: {base:.1} MiB");

    let mut s = ClusterSnapshot::default();
    let put = |s: &mut ClusterSnapshot, v: &Value| apply(s, Event::Put(parse(v).unwrap()));
    for n in 0..200u32 {
        let (a, c) = (addr(0xc0a8_0000, n), format!("10.{}.{}.0/24", 128 + n / 100, n % 100));
        put(
            &mut s,
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"podCIDRs": [c]}, "status": {"addresses": [{"type": "InternalIP", "address": a}]}}),
        );
    }
    let began = Instant::now();
    for n in 0..services {
        put(&mut s, &service(n));
        put(&mut s, &slice(n, endpoints, 0));
    }
    say("objects read into the snapshot", began);
    let held = rss("VmRSS");

    let began = Instant::now();
    let mut resolver = Resolver::new();
    let first = resolver.follow(&s, &local, &Changes::All);
    say("resolved", began);
    let resolved = rss("VmRSS");

    let began = Instant::now();
    let mut tracker = Tracker::default();
    let want = tracker.full(&first.intent, &caps).image;
    let elements = want.elements();
    say("compiled to a whole image", began);
    let began = Instant::now();
    let done = converge(&NftPlane, &mut k, &want, None).unwrap();
    say(&format!("committed ({} ops, {} batches)", done.ops, done.batches), began);
    let began = Instant::now();
    let have = k.observe().unwrap();
    say("observed", began);
    let began = Instant::now();
    assert!(NftPlane.plan(&want, &have).iter().all(Vec::is_empty), "an equal image plans to something");
    say("compared: nothing to do", began);
    drop((want, have, first));
    kernel::release_memory();
    println!("{:<34} {:>12} {:>9.1} MiB   peak {:.1} MiB", "at rest", "", rss("VmRSS"), rss("VmHWM"));

    let (mut each, mut rounds) = ([Duration::ZERO; 4], 0);
    for n in (0..services).step_by((services / 50).max(1) as usize) {
        let began = Instant::now();
        let touched = put(&mut s, &slice(n, endpoints, 1));
        each[0] += began.elapsed();
        let began = Instant::now();
        let f = resolver.follow(&s, &local, &Changes::Some(touched.into_iter().collect()));
        each[1] += began.elapsed();
        let began = Instant::now();
        let ServiceChanges::Some(changes) = &f.services else { panic!("everything changed") };
        let delta = tracker.follow(&f.intent, &caps, changes).unwrap().image;
        each[2] += began.elapsed();
        let began = Instant::now();
        converge(&NftPlane, &mut k, &delta.want, Some(&delta.have)).unwrap();
        each[3] += began.elapsed();
        rounds += 1;
    }
    let [read, resolve, compile, commit] = each.map(|d| d.as_secs_f64() * 1e3 / f64::from(rounds));
    println!(
        "one slice changed: {:.2} ms (read {read:.3}, resolve {resolve:.3}, compile {compile:.3}, plan and commit {commit:.3})",
        read + resolve + compile + commit
    );
    let (of, ends) = (f64::from(services), f64::from(services * endpoints));
    let bytes = |mib: f64| mib * 1024.0 * 1024.0;
    println!(
        "bytes a Service with its {endpoints} endpoints: {:.0} in the snapshot, {:.0} resolved; an endpoint's quarter of both {:.0}; {elements} elements",
        bytes(held - base) / of,
        bytes(resolved - held) / of,
        bytes(resolved - base) / ends,
    );
}
