//! No wrong moment: while a hundred things a second change, the agent is killed, replaced by another binary and made to
//! look at everything anew, no connection to a Service that has an endpoint fails, and none reaches an endpoint that is
//! gone. An endpoint listens from before it is told to the API until the table no longer has it; so a connection that is
//! led to one too early or too late is refused, and the test sees it.
//!
//! `SEAWAY_SOAK` is how many seconds it lasts (20), `SEAWAY_CLIENTS` how many connect all the time (24), `SEAWAY_RATE` how
//! many changes a second are asked for (100), `SEAWAY_PAUSE` for how many milliseconds a client rests between two
//! connections (10). `SEAWAY_CLOSES=endpoint` lets endpoints close connections first: some then take longer, and what is
//! counted says why (docs/services.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

#[path = "../common/mod.rs"]
mod common;
mod mill;
mod world;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{SEAWAY, eventually};
use kernel::{Netns, Nftables};
use kernel_api::Nft;
use kernel_api::nft::{ElementData, TableName};
use mill::{Client, SERVICES, SLICES, endpoints, service, slice};
use serde_json::{Value, json};
use world::{World, counters};

/// What a client waits for a connection. A busy machine loses packets by itself (`netdev_max_backlog`), and a SYN repeats
/// after 1, 3 and 7 s; where a rule leads it astray none of these arrives either, as the translation is kept.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Connections that take longer are counted: a SYN was lost, or two.
const SLOW: [Duration; 2] = [Duration::from_millis(900), Duration::from_millis(2500)];
/// Endpoints that come and go together.
const TOGETHER: u16 = 4;
/// Who writes beside the lanes of endpoints.
const WRITERS: u32 = 4;

/// Listeners that answer each connection with their own address, until they are dropped: then connections are refused.
struct Endpoints {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Endpoints {
    fn open(ns: &Netns, at: &[IpAddr]) -> Self {
        let listen = |a: &IpAddr| {
            let l = TcpListener::bind((*a, 8080))?;
            l.set_nonblocking(true)?;
            Ok((*a, l))
        };
        let all = ns.inside(|| at.iter().map(listen).collect::<std::io::Result<Vec<_>>>()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&stop);
        let closes_first = std::env::var("SEAWAY_CLOSES").is_ok_and(|who| who == "endpoint");
        let thread = thread::spawn(move || {
            // What a client has not closed yet.
            let mut answered: Vec<(Instant, TcpStream)> = Vec::new();
            loop {
                let ends = done.load(Ordering::Relaxed);
                let mut any = false;
                for (at, l) in &all {
                    while let Ok((mut s, _)) = l.accept() {
                        any = true;
                        let _ = s.write_all(&sixteen(*at));
                        let _ = s.set_nonblocking(true);
                        if !closes_first {
                            answered.push((Instant::now(), s));
                        }
                    }
                }
                answered.retain_mut(|(since, s)| {
                    let open = s.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
                    open && since.elapsed() < ANSWERS_WITHIN
                });
                // Whoever has arrived is answered before it ends.
                if ends && !any {
                    return;
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// An address of either family in one form.
fn sixteen(a: IpAddr) -> [u8; 16] {
    match a {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// One connection of the calling thread's namespace; who answered. The client closes first: whoever does remembers the
/// connection for a minute, and only the client knows then which of its ports it may use again.
fn connect(to: SocketAddr) -> Result<IpAddr, String> {
    let at = |what: &str, e: std::io::Error| format!("{to}: {what}: {e}");
    let mut s = TcpStream::connect_timeout(&to, ANSWERS_WITHIN).map_err(|e| at("connect", e))?;
    s.set_read_timeout(Some(ANSWERS_WITHIN)).map_err(|e| at("set", e))?;
    let mut who = [0; 16];
    s.read_exact(&mut who).map_err(|e| at("read", e))?;
    Ok(Ipv6Addr::from(who).to_canonical())
}

/// The endpoints that any element of the table leads to.
fn led_to(nft: &mut Nftables) -> Vec<IpAddr> {
    let table = TableName::recognise("seaway").unwrap();
    let mut out = Vec::new();
    for set in ["endpoints4", "node_endpoints4", "endpoints6", "node_endpoints6"] {
        for e in nft.elements(&table, set).unwrap() {
            let Some(ElementData::Value(v)) = e.data else { continue };
            out.extend(if set.ends_with('4') {
                v.first_chunk::<4>().map(|b| IpAddr::from(*b))
            } else {
                v.first_chunk::<16>().map(|b| IpAddr::from(*b))
            });
        }
    }
    out
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// A Service whose endpoints come and go.
struct Lane {
    name: &'static str,
    family: &'static str,
    /// Ready throughout.
    steady: Vec<IpAddr>,
}

impl Lane {
    /// Services of one family have the same steady endpoints.
    fn new(name: &'static str, family: &'static str) -> Self {
        let mut lane = Self { name, family, steady: Vec::new() };
        lane.steady = (1..=3).map(|n| lane.address(n)).collect();
        lane
    }

    fn address(&self, n: u16) -> IpAddr {
        let [hi, lo] = n.to_be_bytes();
        if self.family == "IPv4" {
            Ipv4Addr::new(10, 244, 64 + hi, lo).into()
        } else {
            Ipv6Addr::new(0xfd00, 0x10, 0x244, 0x64, 0, 0, 0, n).into()
        }
    }
}

impl Lane {
    /// Endpoints come and go until told to stop.
    fn turn(&self, number: u16, w: &Shared<'_>) {
        let mut nft = Nftables::open_in(&w.node).unwrap();
        let mut api = Client::open(w.api);
        let path = format!("{SLICES}/{}", self.name);
        let mut n = 0u16;
        while !w.stop.load(Ordering::Relaxed) {
            // Lanes of one family have ranges of their own, none of which is a steady one's.
            let come: Vec<IpAddr> =
                (0..TOGETHER).map(|i| self.address(0x400 + 0x400 * number + (n + i) % 1000 + 1)).collect();
            n = (n + TOGETHER) % 1000;
            let listening = Endpoints::open(&w.ends, &come);
            w.gone.lock().unwrap().retain(|a, _| !come.contains(a));
            let with: Vec<IpAddr> = self.steady.iter().chain(&come).copied().collect();
            api.must("PATCH", &path, &json!({"endpoints": endpoints(&with)}));
            // Seen in the table, so that its absence later means its removal. An agent may have to be started first.
            eventually(&format!("{come:?} are in the table"), Duration::from_secs(90), || {
                let now = led_to(&mut nft);
                come.iter().all(|a| now.contains(a)).then_some(())
            });
            thread::sleep(Duration::from_millis(10));
            api.must("PATCH", &path, &json!({"endpoints": endpoints(&self.steady)}));
            w.changes.fetch_add(2, Ordering::Relaxed);
            eventually(&format!("{come:?} leave the table"), Duration::from_secs(90), || {
                let now = led_to(&mut nft);
                (!come.iter().any(|a| now.contains(a))).then_some(())
            });
            let now = Instant::now();
            w.gone.lock().unwrap().extend(come.iter().map(|a| (*a, now)));
            w.moved.fetch_add(u64::from(TOGETHER), Ordering::Relaxed);
            // What was on its way when the element went has arrived by then.
            thread::sleep(Duration::from_millis(100));
            drop(listening);
        }
    }
}

/// What threads have in common.
struct Shared<'a> {
    api: &'a Path,
    node: Netns,
    ends: Netns,
    stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
    made: AtomicU64,
    slow: [AtomicU64; 2],
    changes: AtomicU64,
    /// Endpoints that came and went.
    moved: AtomicU64,
    /// When each endpoint that comes and goes was found gone.
    gone: Mutex<BTreeMap<IpAddr, Instant>>,
}

/// A client connects all the time.
fn client(node: &str, to: SocketAddr, pause: Duration, w: &Shared<'_>) {
    while !w.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let wrong = match connect(to) {
            Err(e) => Some(format!("{e}\n{}", World::unanswered(node, &to.ip().to_string()))),
            Ok(who) => {
                let gone = w.gone.lock().unwrap().get(&who).is_some_and(|since| *since < began);
                gone.then(|| format!("{to}: {who} answered, which was gone"))
            }
        };
        w.wrong.lock().unwrap().extend(wrong);
        w.made.fetch_add(1, Ordering::Relaxed);
        for (slow, limit) in w.slow.iter().zip(SLOW) {
            slow.fetch_add(u64::from(began.elapsed() > limit), Ordering::Relaxed);
        }
        thread::sleep(pause);
    }
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
        (up && Client::open(&api).send("GET", "/readyz", &Value::Null).0 == 200).then_some(())
    });
    let mut to = Client::open(&api);
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| json!({"type": "InternalIP", "address": a}));
    to.must(
        "POST",
        "/api/v1/nodes",
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"},
        "spec": {"podCIDRs": ["10.244.0.0/16", "fd00:10:244::/56"]}, "status": {"addresses": addresses}}),
    );
    to.must(
        "POST",
        "/api/v1/namespaces/kube-system/configmaps",
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway"},
        "data": {"backend": "host-gw", "clusterCIDR": "10.244.0.0/16,fd00:10:244::/56", "masquerade": "false"}}),
    );

    // Services with endpoints that are ready throughout and others that come and go; one of them from outside too, one of
    // IPv6.
    let ends = w.netns("ends");
    let lanes = [Lane::new("a", "IPv4"), Lane::new("b", "IPv4"), Lane::new("c", "IPv6")];
    let _steady = [&lanes[0], &lanes[2]].map(|l| Endpoints::open(&ends, &l.steady));
    let node_port =
        json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]});
    let v6 = json!({"ipFamilies": ["IPv6"]});
    let specs = [("10.96.0.10", json!({})), ("10.96.0.11", node_port), ("fd00:10:96::c", v6)];
    for (lane, (ip, spec)) in lanes.iter().zip(&specs) {
        to.must("POST", SERVICES, &service(lane.name, ip, spec));
        let port = json!([{"name": "http", "port": 8080}]);
        to.must("POST", SLICES, &slice(lane.name, lane.family, &port, &lane.steady));
    }
    // Another binary: the same program in another file, with something behind its end.
    let upgrade = w.dir.path().join("seaway-next");
    std::fs::copy(SEAWAY, &upgrade).unwrap();
    std::fs::File::options().append(true).open(&upgrade).unwrap().write_all(b"next").unwrap();
    w.agent(Path::new(SEAWAY));
    let (inside, outside) = (w.netns("in"), w.netns("out"));
    let fronts: [(&Netns, SocketAddr); 4] = [
        (&inside, "10.96.0.10:80".parse().unwrap()),
        (&inside, "10.96.0.11:80".parse().unwrap()),
        (&outside, "192.0.2.1:30080".parse().unwrap()),
        (&inside, "[fd00:10:96::c]:80".parse().unwrap()),
    ];
    for (ns, to) in fronts {
        let once = || ns.run(|| connect(to)).unwrap().ok();
        eventually(&format!("{to} is served"), Duration::from_secs(60), once);
    }

    let before = counters(&w);
    let shared = Shared {
        api: &api,
        node: w.netns("node"),
        ends,
        stop: AtomicBool::new(false),
        wrong: Mutex::default(),
        made: AtomicU64::new(0),
        slow: Default::default(),
        changes: AtomicU64::new(0),
        moved: AtomicU64::new(0),
        gone: Mutex::default(),
    };
    let (rate, pause) = (setting("SEAWAY_RATE", 100), Duration::from_millis(setting("SEAWAY_PAUSE", 10)));
    let began = Instant::now();
    let until = began + Duration::from_secs(setting("SEAWAY_SOAK", 20));
    let (mut kills, mut seconds, node) = (0, 0.0, w.ns("node"));
    thread::scope(|scope| {
        let (shared, node) = (&shared, &node);
        for n in 0..setting("SEAWAY_CLIENTS", 24) {
            let (ns, to) = fronts[n as usize % fronts.len()];
            scope.spawn(move || {
                let _inside = ns.enter().unwrap();
                client(node, to, pause, shared);
            });
        }
        for (number, lane) in (0..).zip(&lanes) {
            scope.spawn(move || lane.turn(number, shared));
        }
        for number in 0..WRITERS {
            scope.spawn(move || mill::turn(shared.api, number, WRITERS, rate, &shared.stop, &shared.changes));
        }
        let mut binaries = [upgrade.as_path(), Path::new(SEAWAY)].into_iter().cycle();
        while Instant::now() < until && shared.wrong.lock().unwrap().is_empty() {
            thread::sleep(Duration::from_millis(1500 + 700 * (kills % 3)));
            w.kill_last();
            w.agent(binaries.next().unwrap());
            kills += 1;
        }
        seconds = began.elapsed().as_secs_f64();
        // The lanes end only while an agent runs.
        shared.stop.store(true, Ordering::Relaxed);
    });
    let after = counters(&w);
    let wrong = shared.wrong.into_inner().unwrap();
    let (made, changes) = (shared.made.into_inner(), shared.changes.into_inner());
    let [slow, slower] = shared.slow.map(AtomicU64::into_inner);
    println!(
        "{made} connections ({:.0} a second), {slow} took more than {:?}, {slower} more than {:?}; {changes} changes ({:.0} a \
         second), {} endpoints came and went, {kills} kills",
        made as f64 / seconds,
        SLOW[0],
        SLOW[1],
        changes as f64 / seconds,
        shared.moved.into_inner(),
    );
    for (name, n) in after {
        println!("{name}: {}", n - before.get(&name).copied().unwrap_or(0));
    }
    assert!(wrong.is_empty(), "{} of {made} connections went wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    assert!(
        made > 500 && changes > 100 && kills > 3,
        "too little happened: {made} connections, {changes} changes, {kills} kills"
    );
}
