//! The measuring half of bench/attach: runs CNI plugins as a container runtime does and times each call from the start of
//! the process to its end. No dependencies: compiled by `rustc -O`. Runs inside a namespace that bench/attach made.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// One way to attach: plugins in order, each with the inside of its configuration object, in which `@N` is the pod's
/// number.
struct Chain {
    label: String,
    dir: String,
    plugins: Vec<(String, String)>,
}

struct Pod<'a> {
    id: String,
    number: usize,
    netns: String,
    chain: &'a Chain,
    result: String,
}

impl Pod<'_> {
    fn call(&self, plugin: &str, body: &str, command: &str) -> String {
        let prev = if self.result.is_empty() { String::new() } else { format!(",\"prevResult\":{}", self.result) };
        let body = body.replace("@N", &self.number.to_string());
        let conf = format!("{{\"cniVersion\":\"1.0.0\",\"name\":\"bench\",\"type\":\"{plugin}\"{body}{prev}}}");
        let mut child = Command::new(format!("{}/{plugin}", self.chain.dir))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.chain.dir)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.id))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|e| panic!("{plugin} in {}: {e}", self.chain.dir));
        child.stdin.take().expect("a pipe").write_all(conf.as_bytes()).expect("the plugin reads its configuration");
        let out = child.wait_with_output().expect("wait");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{plugin} {command} {}: {text}", self.id);
        text
    }

    fn add(&mut self) -> Duration {
        let start = Instant::now();
        let chain = self.chain;
        for (plugin, body) in &chain.plugins {
            self.result = self.call(plugin, body, "ADD");
        }
        start.elapsed()
    }

    fn del(&mut self) -> Duration {
        let start = Instant::now();
        for (plugin, body) in self.chain.plugins.iter().rev() {
            self.call(plugin, body, "DEL");
        }
        start.elapsed()
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().expect("ip, from Debian's iproute2").success(), "ip {args:?}");
}

/// `first` is the number of the first.
fn pods<'a>(chain: &'a Chain, kind: &str, n: usize, first: usize) -> Vec<Pod<'a>> {
    (0..n)
        .map(|i| {
            let id = format!("{kind}{i}");
            ip(&["netns", "add", &id]);
            Pod { netns: format!("/run/netns/{id}"), id, number: first + i, chain, result: String::new() }
        })
        .collect()
}

fn gone(pods: &[Pod]) {
    for p in pods {
        ip(&["netns", "del", &p.id]);
    }
}

struct Figures {
    add: Vec<Duration>,
    del: Vec<Duration>,
    par_add: Vec<Duration>,
    par_del: Vec<Duration>,
    par_wall: Vec<Duration>,
    par_cpu: Vec<Duration>,
    par_del_wall: Vec<Duration>,
}

/// How often all are attached at once, in turn with the other chain.
const ROUNDS: usize = 3;

/// All at once: each thread's time, and the time until the last is done.
fn at_once<'a>(pods: &mut [Pod<'a>], f: fn(&mut Pod<'a>) -> Duration) -> (Vec<Duration>, Duration) {
    let barrier = Barrier::new(pods.len() + 1);
    std::thread::scope(|s| {
        let threads: Vec<_> = pods
            .iter_mut()
            .map(|p| {
                let barrier = &barrier;
                s.spawn(move || {
                    barrier.wait();
                    f(p)
                })
            })
            .collect();
        let start = Instant::now();
        barrier.wait();
        let times = threads.into_iter().map(|t| t.join().expect("a call")).collect();
        (times, start.elapsed())
    })
}

/// What all processors spent on processes that ended, in them and in the kernel for them (`cutime` and `cstime` of proc(5),
/// ticks of 10 ms). Divided by the number of processors it is what no order of work can beat.
fn children() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc(5)");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_ascii_whitespace().collect();
    let ticks: u64 = fields[13..15].iter().map(|f| f.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

fn at(v: &[Duration], percent: usize) -> f64 {
    let mut v = v.to_vec();
    v.sort_unstable();
    v[(v.len() * percent / 100).min(v.len() - 1)].as_secs_f64() * 1e3
}

/// Ours and the reference's, with the same features on.
struct Pair {
    title: String,
    names: [&'static str; 2],
    chains: [Chain; 2],
}

/// What the runtime hands to the plugins that declare a capability.
fn capability(feature: &str) -> &'static str {
    match feature {
        "portmap" => "\"portMappings\":[{\"hostPort\":@N,\"containerPort\":80,\"protocol\":\"tcp\"}]",
        "bandwidth" => {
            "\"bandwidth\":{\"ingressRate\":10000000,\"ingressBurst\":1000000,\
             \"egressRate\":10000000,\"egressBurst\":1000000}"
        }
        other => panic!("no configuration for {other}"),
    }
}

fn told(features: &[&str]) -> String {
    let all: Vec<&str> = features.iter().map(|f| capability(f)).collect();
    format!(
        ",\"capabilities\":{{\"portMappings\":true,\"bandwidth\":true}},\"runtimeConfig\":{{{}}}",
        all.join(",")
    )
}

fn title(features: &[&str]) -> String {
    match features {
        [] => "attach alone".into(),
        some => format!("with {}", some.join(" and ").replace("portmap", "a host port").replace("bandwidth", "limits")),
    }
}

/// Ours does all of it in one process.
fn mine(work: &str, net: u8, features: &[&str]) -> Vec<(String, String)> {
    let body = format!(
        ",\"ranges\":[\"10.{net}.0.0/16\",\"fd00:{net}::/64\"],\"mtu\":1450,\"dataDir\":\"{work}/seaway{net}\",\
         \"mode\":\"routed\"{}",
        if features.is_empty() { String::new() } else { told(features) }
    );
    vec![("seaway-cni".to_string(), body)]
}

/// One build of ours against another.
fn against(dirs: [&str; 2], work: &str, net: u8, features: &[&str]) -> Pair {
    let [new, old] = [0, 1].map(|k: u8| Chain {
        label: dirs[usize::from(k)].into(),
        dir: dirs[usize::from(k)].into(),
        plugins: mine(work, net + k, features),
    });
    Pair { title: title(features), names: ["new", "old"], chains: [new, old] }
}

fn pair(ours: &str, reference: &str, work: &str, net: u8, features: &[&str]) -> Pair {
    let mine = mine(work, net, features);
    let theirs = net + 1;
    let mut chain = vec![(
        "bridge".to_string(),
        format!(
            ",\"bridge\":\"br{theirs}\",\"isGateway\":true,\"mtu\":1450,\"ipam\":{{\"type\":\"host-local\",\
             \"dataDir\":\"{work}/bridge{theirs}\",\"ranges\":[[{{\"subnet\":\"10.{theirs}.0.0/16\"}}],\
             [{{\"subnet\":\"fd00:{theirs}::/64\"}}]],\"routes\":[{{\"dst\":\"0.0.0.0/0\"}},{{\"dst\":\"::/0\"}}]}}"
        ),
    )];
    match features {
        // In the chain as it is everywhere, with nothing to do.
        [] => chain.push(("portmap".to_string(), ",\"capabilities\":{\"portMappings\":true}".to_string())),
        some => chain.extend(some.iter().map(|f| (f.to_string(), told(&[f])))),
    }
    let label = |plugins: &[(String, String)]| {
        plugins.iter().map(|(p, _)| if p == "bridge" { "bridge+host-local" } else { p }).collect::<Vec<_>>().join("+")
    };
    Pair {
        title: title(features),
        names: ["seaway", "reference"],
        chains: [
            Chain { label: label(&mine), dir: ours.into(), plugins: mine },
            Chain { label: label(&chain), dir: reference.into(), plugins: chain },
        ],
    }
}

/// Attaches and detaches `n` pods of each chain one after the other, then `parallel` at once.
fn measure(chains: &[Chain], n: usize, parallel: usize) -> Vec<Figures> {
    let mut all: Vec<Vec<Pod>> =
        chains.iter().enumerate().map(|(k, c)| pods(c, &format!("seq{k}-"), n + 1, (k + 2) * 10_000)).collect();
    // The first of each makes directories, the bridge and the page cache: not counted.
    for pods in &mut all {
        pods[0].add();
    }
    let mut add = vec![Vec::new(); chains.len()];
    let mut del = vec![Vec::new(); chains.len()];
    // In turns, so that whatever else the machine does falls on all alike.
    for i in 1..=n {
        for (k, pods) in all.iter_mut().enumerate() {
            add[k].push(pods[i].add());
        }
    }
    for i in (0..=n).rev() {
        for (k, pods) in all.iter_mut().enumerate() {
            del[k].push(pods[i].del());
            // Ours leaves the kernel's wait for a link's end to a process of its own: the next must not pay for it.
            std::thread::sleep(Duration::from_millis(60));
        }
    }
    all.iter().for_each(|p| gone(p));
    let mut figures: Vec<Figures> = add
        .into_iter()
        .zip(del)
        .map(|(add, del)| Figures {
            add,
            del,
            par_add: Vec::new(),
            par_del: Vec::new(),
            par_wall: Vec::new(),
            par_cpu: Vec::new(),
            par_del_wall: Vec::new(),
        })
        .collect();
    for _ in 0..ROUNDS {
        for (k, (chain, f)) in chains.iter().zip(&mut figures).enumerate() {
            let mut pods = pods(chain, &format!("par{k}-"), parallel, (k + 2) * 10_000);
            let before = children();
            let (times, wall) = at_once(&mut pods, Pod::add);
            f.par_add.extend(times);
            f.par_wall.push(wall);
            f.par_cpu.push(children() - before);
            let (times, wall) = at_once(&mut pods, Pod::del);
            f.par_del.extend(times);
            f.par_del_wall.push(wall);
            gone(&pods);
            // What ours left to processes of its own is not the other's.
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    figures
}

fn report(pair: &Pair, figures: &[Figures], parallel: usize) {
    let [ours, theirs] = &pair.chains;
    println!("\n{}: {}, and {}", pair.title, ours.label, theirs.label);
    println!("{:<28}{:>13}{:>16}{:>10}", "", pair.names[0], pair.names[1], "ratio");
    let show = |title: &str, f: &dyn Fn(&Figures) -> f64| {
        let (ours, theirs) = (f(&figures[0]), f(&figures[1]));
        println!("{title:<28}{ours:>10.2} ms{theirs:>13.2} ms{:>9.1}x", theirs / ours);
    };
    show("ADD p50", &|f| at(&f.add, 50));
    show("ADD p99", &|f| at(&f.add, 99));
    show("DEL p50", &|f| at(&f.del, 50));
    show("DEL p99", &|f| at(&f.del, 99));
    show(&format!("{parallel} ADD at once: p50"), &|f| at(&f.par_add, 50));
    show(&format!("{parallel} ADD at once: p99"), &|f| at(&f.par_add, 99));
    show(&format!("{parallel} ADD at once: all"), &|f| at(&f.par_wall, 50));
    show(&format!("{parallel} ADD at once: CPU"), &|f| at(&f.par_cpu, 50));
    show(&format!("{parallel} DEL at once: p99"), &|f| at(&f.par_del, 99));
    show(&format!("{parallel} DEL at once: all"), &|f| at(&f.par_del_wall, 50));
    if pair.names[1] != "reference" {
        return;
    }
    let ratio = |f: &dyn Fn(&Figures) -> f64| f(&figures[1]) / f(&figures[0]);
    let aim = |what: &str, met: bool| println!("aim: {what}: {}", if met { "met" } else { "NOT met" });
    let (add, del) = (ratio(&|f| at(&f.add, 50)), ratio(&|f| at(&f.del, 50)));
    aim("ADD under 3 ms at p50", at(&figures[0].add, 50) < 3.0);
    aim("ADD 10 times faster at p50", add >= 10.0);
    aim("DEL 20 times faster at p50", del >= 20.0);
    aim(&format!("{parallel} ADD at once under 50 ms at p99"), at(&figures[0].par_add, 99) < 50.0);
}

/// Runs children of this thread in another network namespace from now on.
fn enter(netns: &str) {
    unsafe extern "C" {
        fn setns(fd: i32, kind: i32) -> i32;
    }
    let file = std::fs::File::open(netns).expect("a namespace");
    // SAFETY: no pointers; setns(2) of the C library that the standard library links.
    assert_eq!(unsafe { setns(std::os::fd::AsRawFd::as_raw_fd(&file), 0) }, 0, "setns {netns}");
}

/// bench/pods: a node with `n` pods against an empty one.
fn many(ours: &str, full: &str, empty: &str, n: usize, rounds: usize, go: &str) {
    let chain = |dir: &str, net: u8| Chain {
        label: "seaway-cni".into(),
        dir: ours.into(),
        plugins: vec![(
            "seaway-cni".to_string(),
            format!(
                ",\"ranges\":[\"10.{net}.0.0/16\",\"fd00:{net}::/64\"],\"mtu\":1450,\"dataDir\":\"{dir}\",\
                 \"mode\":\"routed\""
            ),
        )],
    };
    let (full, empty) = (chain(full, 91), chain(empty, 92));
    let mut here = pods(&full, "pod", n, 20_000);
    let add: Vec<Duration> = here.iter_mut().map(Pod::add).collect();
    let few = (n / 20).max(1);
    println!("{n} pods one after the other: the first {few} took {:.2} ms each, the last {few} {:.2} ms (p50)",
        at(&add[..few], 50), at(&add[n - few..], 50));
    std::io::stdout().flush().expect("standard output");
    while !std::path::Path::new(go).exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut more = pods(&full, "more", rounds, 20_000);
    let mut first = pods(&empty, "first", rounds, 20_000);
    let mut times = [const { Vec::new() }; 4];
    for i in 0..rounds {
        times[0].push(more[i].add());
        times[1].push(more[i].del());
        let (first, times) = (&mut first[i], &mut times);
        std::thread::scope(|s| {
            s.spawn(move || {
                enter("/run/netns/other-node");
                times[2].push(first.add());
                times[3].push(first.del());
            });
        });
    }
    println!("{:<22}{:>16}{:>16}{:>9}", format!("{rounds} rounds, p50"), format!("with {n} pods"), "with none", "ratio");
    for (what, many, none) in [("ADD", 0, 2), ("DEL", 1, 3)] {
        let (many, none) = (at(&times[many], 50), at(&times[none], 50));
        println!("{what:<22}{many:>13.2} ms{none:>13.2} ms{:>9.2}", many / none);
    }
    let ratio = at(&times[0], 50) / at(&times[2], 50);
    println!("aim: ADD of the 1,000th within 1.2 of the first: {}", if ratio <= 1.2 { "met" } else { "NOT met" });
    for p in here.iter_mut() {
        p.del();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, ours, full, empty, n, rounds, go] = &args[..] && mode == "pods" {
        let (n, rounds) = (n.parse().expect("a number"), rounds.parse().expect("a number"));
        return many(ours, full, empty, n, rounds, go);
    }
    if let [_, mode, new, old, work, features, n, parallel] = &args[..] && mode == "against" {
        let (n, parallel): (usize, usize) = (n.parse().expect("a number"), parallel.parse().expect("a number"));
        let features: Vec<&str> = features.split(',').filter(|f| !f.is_empty()).collect();
        for (net, features) in [(90, &[][..]), (96, &features)] {
            let pair = against([new, old], work, net, features);
            report(&pair, &measure(&pair.chains, n, parallel), parallel);
        }
        return;
    }
    let [_, ours, reference, work, features, n, parallel] = &args[..] else {
        panic!("usage: attach OUR-DIR REFERENCE-DIR WORK-DIR FEATURE,... SEQUENTIAL PARALLEL")
    };
    let (n, parallel): (usize, usize) = (n.parse().expect("a number"), parallel.parse().expect("a number"));
    let features: Vec<&str> = features.split(',').filter(|f| !f.is_empty()).collect();
    println!("{n} pods one after the other, then {parallel} at once; dual-stack; CNI 1.0.0; process start to end");
    for pair in [
        pair(ours, reference, work, 90, &[]),
        pair(ours, reference, work, 96, &features),
    ] {
        report(&pair, &measure(&pair.chains, n, parallel), parallel);
    }
}
