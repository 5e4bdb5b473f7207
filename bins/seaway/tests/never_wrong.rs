//! No wrong moment: while a hundred things a second change, the agent is killed, replaced by another binary and made to
//! look at everything anew, no connection to a Service that has an endpoint fails, and none reaches an endpoint that is
//! gone. An endpoint listens from before it is told to the API until the table no longer has it; so a connection that is
//! led to one too early or too late is refused, and the test sees it.
//!
//! `SEAWAY_SOAK` is how many seconds it lasts (20), `SEAWAY_CLIENTS` how many connect all the time (24).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{SEAWAY, eventually, ok, run};
use kernel::{Netns, Nftables};
use kernel_api::Nft;
use kernel_api::nft::TableName;
use serde_json::{Value, json};

/// What a client waits for a connection. A busy machine loses packets by itself (`netdev_max_backlog`), and a SYN repeats
/// after 1, 3, 7 and 15 s; where a rule leads it astray none of these arrives either, as the translation is kept.
const PATIENCE: Duration = Duration::from_secs(25);
/// Connections that take longer are counted.
const SLOW: Duration = Duration::from_millis(2500);

/// A node, a client beside its pods, one outside, and a namespace in which every endpoint lives.
struct World {
    prefix: String,
    dir: tempfile::TempDir,
    procs: Vec<Child>,
}

impl World {
    fn new() -> Self {
        let w =
            Self { prefix: format!("nw{}", std::process::id()), dir: tempfile::tempdir().unwrap(), procs: Vec::new() };
        let (node, inside, outside, ends) = (w.ns("node"), w.ns("in"), w.ns("out"), w.ns("ends"));
        for n in [&node, &inside, &outside, &ends] {
            ok(Command::new("ip").args(["netns", "add", n]));
            w.at(n, &["ip", "link", "set", "lo", "up"]);
        }
        for (name, other, here, there) in [
            ("to-in", &inside, "10.244.1.1/32", "10.244.1.2/24"),
            ("eth0", &outside, "192.0.2.1/24", "192.0.2.9/24"),
            ("to-ends", &ends, "10.92.0.1/30", "10.92.0.2/30"),
        ] {
            w.at(&node, &["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0x", "netns", other]);
            w.at(&node, &["ip", "address", "add", here, "dev", name]);
            w.at(&node, &["ip", "link", "set", name, "up"]);
            w.at(other, &["ip", "address", "add", there, "dev", "eth0x"]);
            w.at(other, &["ip", "link", "set", "eth0x", "up"]);
            w.at(other, &["ip", "route", "add", "default", "via", here.split('/').next().unwrap()]);
        }
        w.at(&node, &["ip", "route", "add", "10.244.1.2/32", "dev", "to-in"]);
        w.at(&node, &["ip", "route", "add", "10.244.64.0/18", "via", "10.92.0.2"]);
        w.at(&ends, &["ip", "route", "add", "local", "10.244.64.0/18", "dev", "lo"]);
        w.at(&node, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        w
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn netns(&self, name: &str) -> Netns {
        Netns::open(Path::new("/run/netns").join(self.ns(name))).unwrap()
    }

    fn enter(ns: &str, program: &Path) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{ns}")).arg(program);
        c
    }

    fn at(&self, ns: &str, cmd: &[&str]) {
        ok(Self::enter(ns, Path::new(cmd[0])).args(&cmd[1..]));
    }

    fn api(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn spawn(&mut self, mut c: Command, log: &str) {
        let log = std::fs::File::options().append(true).create(true).open(self.dir.path().join(log)).unwrap();
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.procs.push(c.spawn().unwrap());
    }

    /// Starts the agent from this binary; the node's last process is it.
    fn agent(&mut self, binary: &Path) {
        let mut c = Self::enter(&self.ns("node"), binary);
        let dir = self.dir.path();
        c.args(["agent", "--node", "node1", "--iface", "eth0", "--resync", "1", "--log-level", "warn", "--api"]);
        c.arg(format!("unix:{}", self.api().display()));
        c.arg("--ipam-dir").arg(dir.join("ipam")).arg("--cni-conf-dir").arg(dir.join("cni"));
        self.spawn(c, "agent.log");
    }

    fn kill_last(&mut self) {
        let mut p = self.procs.pop().unwrap();
        p.kill().unwrap();
        p.wait().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for p in &mut self.procs {
            let _ = p.kill();
            let _ = p.wait();
        }
        if thread::panicking() {
            for log in ["agent.log", "api.log"] {
                let text = std::fs::read_to_string(self.dir.path().join(log)).unwrap_or_default();
                eprintln!("--- {log}\n{}", text.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
            }
            let nft = run(Self::enter(&self.ns("node"), Path::new("nft")).args(["list", "table", "inet", "seaway"]));
            eprintln!("{}", String::from_utf8_lossy(&nft.stdout).lines().take(120).collect::<Vec<_>>().join("\n"));
        }
        for n in ["node", "in", "out", "ends"] {
            let _ = run(Command::new("ip").args(["netns", "del", &self.ns(n)]));
        }
    }
}

/// One request on a connection of its own to the API server's socket.
fn send(api: &Path, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let mut s = UnixStream::connect(api).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    s.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

fn must(api: &Path, method: &str, path: &str, body: &Value) {
    let (status, answer) = send(api, method, path, body);
    assert!(status < 300, "{method} {path}: {status} {answer}");
}

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn service(name: &str, ip: &str, spec: &Value) -> Value {
    let mut s = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    for (k, v) in spec.as_object().unwrap() {
        s["spec"][k] = v.clone();
    }
    s
}

/// Endpoints of this node, so that policy Local has some.
fn endpoints(list: &[Ipv4Addr]) -> Value {
    list.iter().map(|a| json!({"addresses": [a], "nodeName": "node1", "conditions": {"ready": true}})).collect()
}

fn slice(name: &str, list: &[Ipv4Addr]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints(list)})
}

/// A listener that answers each connection with its own address, until it is dropped: then connections are refused.
struct Endpoint {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Endpoint {
    fn open(ns: &Netns, at: Ipv4Addr) -> Self {
        let l = ns.run(|| TcpListener::bind((at, 8080)).unwrap()).unwrap();
        l.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            // Whoever has arrived is answered before it ends.
            loop {
                match l.accept() {
                    Ok((mut s, _)) => drop(s.write_all(&at.octets())),
                    Err(_) if done.load(Ordering::Relaxed) => return,
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One connection; who answered.
fn connect(ns: &Netns, to: SocketAddr) -> Result<Ipv4Addr, String> {
    let at = |what: &str, e: std::io::Error| format!("{to}: {what}: {e}");
    let mut s = ns.inside(|| TcpStream::connect_timeout(&to, PATIENCE)).map_err(|e| at("connect", e))?;
    s.set_read_timeout(Some(PATIENCE)).map_err(|e| at("set", e))?;
    let mut who = [0; 4];
    s.read_exact(&mut who).map_err(|e| at("read", e))?;
    Ok(who.into())
}

/// The endpoints that any element of the table leads to.
fn led_to(nft: &mut Nftables) -> Vec<Ipv4Addr> {
    let table = nft.table(&TableName::recognise("seaway").unwrap()).unwrap();
    let of = table.into_iter().flat_map(|t| t.elements).filter(|(n, _)| n.contains("endpoints"));
    of.flat_map(|(_, es)| es)
        .filter_map(|e| match e.data {
            Some(kernel_api::nft::ElementData::Value(v)) => v.first_chunk::<4>().map(|b| Ipv4Addr::from(*b)),
            _ => None,
        })
        .collect()
}

/// Packets that this machine lost between two devices because it was too busy.
fn lost() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    text.lines().filter_map(|l| u64::from_str_radix(l.split(' ').nth(1)?, 16).ok()).sum()
}

/// Where the node's connection tracking has the connections to an address that nobody has answered yet.
fn unanswered(node: &str, to: SocketAddr) -> String {
    let ip = to.ip().to_string();
    let mut c = World::enter(node, Path::new("conntrack"));
    let out = run(c.args(["-L", "-p", "tcp", "--orig-dst", &ip, "--state", "SYN_SENT"]));
    String::from_utf8_lossy(&out.stdout).lines().take(20).collect::<Vec<_>>().join("\n")
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn no_connection_fails_and_none_reaches_who_is_gone() {
    let mut w = World::new();
    let api = w.api();
    let mut server = Command::new(SEAWAY);
    server.args(["apiserver", "--store"]).arg(w.dir.path().join("api.redb")).arg("--unix").arg(&api);
    w.spawn(server, "api.log");
    eventually("the API server answers", Duration::from_secs(60), || {
        let up = UnixStream::connect(&api).is_ok();
        (up && send(&api, "GET", "/readyz", &Value::Null).0 == 200).then_some(())
    });
    must(
        &api,
        "POST",
        "/api/v1/nodes",
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"},
        "spec": {"podCIDRs": ["10.244.0.0/16"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    );
    must(
        &api,
        "POST",
        "/api/v1/namespaces/kube-system/configmaps",
        &json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "seaway"}, "data": {"backend": "host-gw", "clusterCIDR": "10.244.0.0/16", "masquerade": "false"}}),
    );

    // Two Services with endpoints that are ready throughout and others that come and go; one of them from outside too.
    let ends = w.netns("ends");
    let steady: Vec<Ipv4Addr> = (1..=3).map(|n| Ipv4Addr::new(10, 244, 64, n)).collect();
    let _steady: Vec<Endpoint> = steady.iter().map(|a| Endpoint::open(&ends, *a)).collect();
    let node_port =
        json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]});
    for (name, ip, spec) in [("a", "10.96.0.10", json!({})), ("b", "10.96.0.11", node_port)] {
        must(&api, "POST", SERVICES, &service(name, ip, &spec));
        must(&api, "POST", SLICES, &slice(name, &steady));
    }
    // Another binary: the same program in another file, with something behind its end.
    let upgrade = w.dir.path().join("seaway-next");
    std::fs::copy(SEAWAY, &upgrade).unwrap();
    std::fs::File::options().append(true).open(&upgrade).unwrap().write_all(b"next").unwrap();
    w.agent(Path::new(SEAWAY));
    let (inside, outside) = (w.netns("in"), w.netns("out"));
    let fronts: [(&Netns, SocketAddr); 3] = [
        (&inside, "10.96.0.10:80".parse().unwrap()),
        (&inside, "10.96.0.11:80".parse().unwrap()),
        (&outside, "192.0.2.1:30080".parse().unwrap()),
    ];
    for (ns, to) in fronts {
        eventually(&format!("{to} is served"), Duration::from_secs(60), || connect(ns, to).ok());
    }

    let stop = AtomicBool::new(false);
    let wrong: Mutex<Vec<String>> = Mutex::default();
    let (made, changes, slow) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let lost_before = lost();
    // When each endpoint that comes and goes was found gone.
    let gone: Mutex<BTreeMap<Ipv4Addr, Instant>> = Mutex::default();
    let until = Instant::now() + Duration::from_secs(setting("SEAWAY_SOAK", 20));
    let mut kills = 0;
    thread::scope(|scope| {
        for n in 0..setting("SEAWAY_CLIENTS", 24) {
            let (ns, to) = fronts[n as usize % fronts.len()];
            let (stop, wrong, made, slow, gone) = (&stop, &wrong, &made, &slow, &gone);
            let node = w.ns("node");
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match connect(ns, to) {
                        Err(e) => wrong.lock().unwrap().push(format!("{e}\n{}", unanswered(&node, to))),
                        Ok(who) => {
                            if gone.lock().unwrap().get(&who).is_some_and(|since| *since < began) {
                                wrong.lock().unwrap().push(format!("{to}: {who} answered, which was gone"));
                            }
                        }
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                    slow.fetch_add(u64::from(began.elapsed() > SLOW), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        // Endpoints come and go at both Services.
        for (lane, name) in [(0u8, "a"), (1, "b")] {
            let (stop, gone, changes, api, ends, steady, node) =
                (&stop, &gone, &changes, &api, &ends, &steady, w.netns("node"));
            scope.spawn(move || {
                let mut nft = Nftables::open_in(&node).unwrap();
                let mut n = 0u16;
                while !stop.load(Ordering::Relaxed) {
                    n = n % 2000 + 1;
                    let [hi, lo] = n.to_be_bytes();
                    let come = Ipv4Addr::new(10, 244, 72 + 8 * lane + hi, lo);
                    let listening = Endpoint::open(ends, come);
                    gone.lock().unwrap().remove(&come);
                    let with: Vec<Ipv4Addr> = steady.iter().copied().chain([come]).collect();
                    let path = format!("{SLICES}/{name}");
                    must(api, "PATCH", &path, &json!({"endpoints": endpoints(&with)}));
                    // Seen in the table, so that its absence later means its removal.
                    eventually(&format!("{come} is in the table"), Duration::from_secs(60), || {
                        led_to(&mut nft).contains(&come).then_some(())
                    });
                    thread::sleep(Duration::from_millis(10));
                    must(api, "PATCH", &path, &json!({"endpoints": endpoints(steady)}));
                    changes.fetch_add(2, Ordering::Relaxed);
                    // Longer than an agent needs to be started again.
                    eventually(&format!("{come} leaves the table"), Duration::from_secs(60), || {
                        (!led_to(&mut nft).contains(&come)).then_some(())
                    });
                    gone.lock().unwrap().insert(come, Instant::now());
                    // What was on its way when the element went has arrived by then.
                    thread::sleep(Duration::from_millis(100));
                    drop(listening);
                }
            });
        }
        // Other Services are added, scaled, moved to other ports and policies, and removed.
        {
            let (stop, changes, api) = (&stop, &changes, &api);
            scope.spawn(move || {
                let mut n = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let name = format!("noise{}", n % 50);
                    let ip = format!("10.96.1.{}", n % 50 + 1);
                    let list: Vec<Ipv4Addr> = (0..n % 7).map(|i| Ipv4Addr::new(10, 244, 100, i as u8 + 1)).collect();
                    match (n - 1) / 50 % 4 {
                        0 => {
                            must(api, "POST", SERVICES, &service(&name, &ip, &json!({})));
                            must(api, "POST", SLICES, &slice(&name, &list));
                        }
                        1 => must(api, "PATCH", &format!("{SLICES}/{name}"), &json!({"endpoints": endpoints(&list)})),
                        2 => {
                            let policy = if n.is_multiple_of(2) { "Local" } else { "Cluster" };
                            let spec = json!({"internalTrafficPolicy": policy, "ports": [{"name": "http", "port": 81 + n % 3, "targetPort": 8080}]});
                            must(api, "PATCH", &format!("{SERVICES}/{name}"), &json!({"spec": spec}));
                            // And of what is connected to all the time.
                            must(api, "PATCH", &format!("{SERVICES}/b"), &json!({"spec": {"externalTrafficPolicy": policy, "internalTrafficPolicy": policy}}));
                        }
                        _ => {
                            must(api, "DELETE", &format!("{SLICES}/{name}"), &json!({}));
                            must(api, "DELETE", &format!("{SERVICES}/{name}"), &json!({}));
                        }
                    }
                    changes.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        let mut binaries = [upgrade.as_path(), Path::new(SEAWAY)].into_iter().cycle();
        while Instant::now() < until && wrong.lock().unwrap().is_empty() {
            thread::sleep(Duration::from_millis(1500 + 700 * (kills % 3)));
            w.kill_last();
            w.agent(binaries.next().unwrap());
            kills += 1;
        }
        // The lanes end only while an agent runs.
        stop.store(true, Ordering::Relaxed);
    });
    let wrong = wrong.into_inner().unwrap();
    let (made, changes) = (made.into_inner(), changes.into_inner());
    let (slow, lost) = (slow.into_inner(), lost() - lost_before);
    println!("{made} connections, {slow} slow, {changes} changes, {kills} kills; packets the machine lost: {lost}");
    assert!(wrong.is_empty(), "{} of {made} connections went wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    assert!(
        made > 500 && changes > 100 && kills > 3,
        "too little happened: {made} connections, {changes} changes, {kills} kills"
    );
}
