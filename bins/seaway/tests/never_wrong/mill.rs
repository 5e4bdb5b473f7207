//! What changes: writes to the API server, so many a second.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub const SERVICES: &str = "/api/v1/namespaces/default/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// Services of each writer, beside those that are connected to.
const SERVICES_EACH: u32 = 25;

/// A connection to the API server, for one request after the other.
pub struct Client(BufReader<UnixStream>);

impl Client {
    pub fn open(api: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(api).unwrap()))
    }

    /// Status and body.
    pub fn send(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{method} {path}: {line:?}")).parse().unwrap();
        let mut length = None;
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
        }
        let mut body = vec![0; length.unwrap_or_else(|| panic!("{method} {path}: an answer of unknown length"))];
        self.0.read_exact(&mut body).unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    pub fn must(&mut self, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.send(method, path, body);
        assert!(status < 300, "{method} {path}: {status} {answer}");
    }
}

pub fn service(name: &str, ip: &str, spec: &Value) -> Value {
    let mut s = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    for (k, v) in spec.as_object().unwrap() {
        s["spec"][k] = v.clone();
    }
    s
}

/// Endpoints of this node, so that policy Local has some.
pub fn endpoints(list: &[IpAddr]) -> Value {
    list.iter().map(|a| json!({"addresses": [a], "nodeName": "node1", "conditions": {"ready": true}})).collect()
}

pub fn slice(name: &str, family: &str, ports: &Value, list: &[IpAddr]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": family, "ports": ports, "endpoints": endpoints(list)})
}

/// Does what happens in a cluster beside the Services that are connected to, until told to stop: writer `number` of `of`
/// adds Services of TCP and UDP with their slices, scales them, moves them to other ports and policies, and removes them;
/// and it flips the policies of Service `b`, which is connected to all the time. All writers together do `rate` changes a
/// second, if the server and this machine can.
pub fn turn(api: &Path, number: u32, of: u32, rate: u64, stop: &AtomicBool, changes: &AtomicU64) {
    let mut to = Client::open(api);
    let pause = Duration::from_secs(u64::from(of)).div_f64(rate as f64);
    let mut next = Instant::now() + pause.mul_f64(f64::from(number) / f64::from(of));
    let mut write = |method: &str, path: &str, body: &Value| {
        // One that is late does not hurry afterwards.
        let now = Instant::now();
        thread::sleep(next.saturating_duration_since(now));
        next = next.max(now) + pause;
        to.must(method, path, body);
        changes.fetch_add(1, Ordering::Relaxed);
    };
    let mut n = 0u32;
    while !stop.load(Ordering::Relaxed) {
        let (which, round) = (n % SERVICES_EACH, n / SERVICES_EACH);
        n += 1;
        let name = format!("noise{number}-{which}");
        let ip = format!("10.96.{}.{}", number + 1, which + 1);
        let list = |count: u32| -> Vec<IpAddr> {
            (0..count).map(|i| Ipv4Addr::new(10, 244, 100 + number as u8, 1 + i as u8).into()).collect()
        };
        let of_slice = format!("{SLICES}/{name}");
        match round % 5 {
            0 => {
                let ports = json!([{"name": "http", "port": 80, "targetPort": 8080},
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}]);
                write("POST", SERVICES, &service(&name, &ip, &json!({"ports": ports})));
                let ports = json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]);
                write("POST", SLICES, &slice(&name, "IPv4", &ports, &list(which % 7)));
            }
            1 | 2 => {
                write("PATCH", &of_slice, &json!({"endpoints": endpoints(&list((which + 3 * round) % 9))}));
            }
            3 => {
                let policy = if n.is_multiple_of(2) { "Local" } else { "Cluster" };
                let port = json!({"name": "http", "port": 81 + n % 3, "targetPort": 8080});
                let spec = json!({"internalTrafficPolicy": policy, "ports": [port]});
                write("PATCH", &format!("{SERVICES}/{name}"), &json!({"spec": spec}));
                let spec = json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": policy});
                write("PATCH", &format!("{SERVICES}/b"), &json!({"spec": spec}));
            }
            _ => {
                write("DELETE", &of_slice, &Value::Null);
                write("DELETE", &format!("{SERVICES}/{name}"), &Value::Null);
            }
        }
    }
}
