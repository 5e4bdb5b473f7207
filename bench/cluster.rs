//! What bench/cluster is made of: writes fake nodes and pods into a real API server, and asks Services as soon as pods are ready.
//! Plain std, compiled by the script with rustc alone.

mod api;

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

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

/// One question to a web server: whether it answered.
fn answers(address: SocketAddr) -> bool {
    let most = Duration::from_millis(300);
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&address, most)?;
        stream.set_read_timeout(Some(most))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0; 64])
    };
    ask().is_ok_and(|n| n > 0)
}

/// Reads what `kubectl get pods --watch` prints, and asks the Service of each pod, again and again, from when it is first
/// said to be ready until it answers. Prints the seconds of each: nobody is asked before, so that asking costs nothing.
fn reach(services: &str) {
    let text = std::fs::read_to_string(services).expect("a file of lines NAME ADDRESS");
    let mut to_ask: BTreeMap<&str, SocketAddr> = text
        .lines()
        .filter_map(|l| l.split_once('\t'))
        .map(|(name, ip)| (name, SocketAddr::new(ip.parse().expect("an address"), 80)))
        .collect();
    let mut asked = Vec::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut words = line.split_whitespace();
        let (Some(name), Some("1/1")) = (words.next(), words.next()) else { continue };
        let Some(address) = to_ask.remove(name) else { continue };
        let ready = Instant::now();
        asked.push(thread::spawn(move || {
            while !answers(address) {
                assert!(ready.elapsed() < Duration::from_secs(300), "{address} does not answer");
                thread::sleep(Duration::from_millis(2));
            }
            println!("{:.4}", ready.elapsed().as_secs_f64());
        }));
        if to_ask.is_empty() {
            break;
        }
    }
    asked.into_iter().for_each(|t| t.join().expect("an answer"));
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
        // reach FILE: in the client's network
        Some("reach") => return reach(&args[1]),
        // The range of a node, for the script.
        Some("range") => return println!("{}", range(number(1))),
        _ => panic!("nodes SOCKET FROM TO | pods SOCKET NODES PODS | reach FILE | range N"),
    }
    println!("{:.1}", began.elapsed().as_secs_f64());
}
