//! What bench/cluster is made of: writes fake nodes and pods into a real API server.
//! Plain std, compiled by the script with rustc alone.

mod api;

use std::thread;
use std::time::Instant;

use api::{Api, JSON, MERGE};

/// Node number n: its address, and its range of pods. The first is the node that is measured.
fn address(n: u32) -> String {
    format!("10.90.{}.{}", n / 250, n % 250 + 2)
}

fn range(n: u32) -> String {
    format!("10.{}.{}.0/24", 128 + n / 256, n % 256)
}

fn pod_address(n: u32, i: u32) -> String {
    format!("10.{}.{}.{}", 128 + n / 256, n % 256, i + 2)
}

fn node(api: &mut Api, n: u32) {
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"node{n}","labels":{{"kubernetes.io/os":"linux","kubernetes.io/arch":"amd64","kubernetes.io/hostname":"node{n}","topology.kubernetes.io/zone":"z{}"}},"annotations":{{"seaway.io/backend":"vxlan","seaway.io/vxlan":"{{\"vni\":1,\"port\":8472,\"mac\":\"02:00:00:00:{:02x}:{:02x}\",\"address\":\"{}\"}}"}}}},"spec":{{"podCIDR":"{}","podCIDRs":["{}"]}}}}"#,
        n % 3, n / 256, n % 256, address(n), range(n), range(n)
    );
    api.must("POST", "/api/v1/nodes", JSON, &body);
    let status = format!(
        r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{}"}},{{"type":"Hostname","address":"node{n}"}}],"conditions":[{{"type":"Ready","status":"True"}}],"capacity":{{"cpu":"4","memory":"8Gi","pods":"110"}}}}}}"#,
        address(n)
    );
    api.must("PATCH", &format!("/api/v1/nodes/node{n}/status"), MERGE, &status);
}

fn pod(api: &mut Api, n: u32, i: u32) {
    let name = format!("p{n}-{i}");
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"a{}","pod-template-hash":"5d78c9869d"}}}},"spec":{{"nodeName":"node{n}","containers":[{{"name":"main","image":"example/app:1.2.3","ports":[{{"containerPort":8080}}],"resources":{{"requests":{{"cpu":"100m","memory":"64Mi"}}}}}}]}}}}"#,
        i % 10
    );
    api.must("POST", "/api/v1/namespaces/default/pods", JSON, &body);
    let a = pod_address(n, i);
    let status = format!(
        r#"{{"status":{{"phase":"Running","podIP":"{a}","podIPs":[{{"ip":"{a}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    );
    api.must("PATCH", &format!("/api/v1/namespaces/default/pods/{name}/status"), MERGE, &status);
}

/// Shares the numbers from..to among connections.
fn share(path: &str, from: u32, to: u32, work: impl Fn(&mut Api, u32) + Copy + Send + 'static) {
    let many = 8;
    let threads: Vec<_> = (0..many)
        .map(|t| {
            let path = path.to_owned();
            thread::spawn(move || {
                let mut api = Api::open(&path);
                (from..to).filter(|n| n % many == t).for_each(|n| work(&mut api, n));
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("a writer"));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<u32>().ok()).expect("a number");
    let began = Instant::now();
    match args.first().map(String::as_str) {
        // nodes SOCKET FROM TO
        Some("nodes") => share(&args[1], number(2), number(3), node),
        // pods SOCKET NODES PODS: on all nodes in turn but the first, which is the measured one's
        Some("pods") => {
            let (nodes, pods) = (number(2), number(3));
            share(&args[1], 0, pods, move |api, p| pod(api, 1 + p % (nodes - 1).max(1), p / (nodes - 1).max(1)));
        }
        // The range of a node, for the script.
        Some("range") => return println!("{}", range(number(1))),
        _ => panic!("nodes SOCKET FROM TO | pods SOCKET NODES PODS | range N"),
    }
    println!("{:.1}", began.elapsed().as_secs_f64());
}
