//! The measuring half of bench/attach: runs CNI plugins as a container runtime does and times each call from the start of
//! the process to its end. No dependencies: compiled by `rustc -O`. Runs inside a namespace that bench/attach made.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// One way to attach: plugins in order, each with the inside of its configuration object.
struct Chain {
    label: &'static str,
    dir: String,
    plugins: Vec<(&'static str, String)>,
}

struct Pod<'a> {
    id: String,
    netns: String,
    chain: &'a Chain,
    result: String,
}

impl Pod<'_> {
    fn call(&self, plugin: &str, body: &str, command: &str) -> String {
        let prev = if self.result.is_empty() { String::new() } else { format!(",\"prevResult\":{}", self.result) };
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

fn pods<'a>(chain: &'a Chain, kind: &str, n: usize) -> Vec<Pod<'a>> {
    (0..n)
        .map(|i| {
            let id = format!("{kind}{i}");
            ip(&["netns", "add", &id]);
            Pod { netns: format!("/run/netns/{id}"), id, chain, result: String::new() }
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
    par_wall: Duration,
    par_del_wall: Duration,
}

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

fn at(v: &[Duration], percent: usize) -> f64 {
    let mut v = v.to_vec();
    v.sort_unstable();
    v[(v.len() * percent / 100).min(v.len() - 1)].as_secs_f64() * 1e3
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, ours, reference, work, n, parallel] = &args[..] else {
        panic!("usage: attach OUR-DIR REFERENCE-DIR WORK-DIR SEQUENTIAL PARALLEL")
    };
    let (n, parallel): (usize, usize) = (n.parse().expect("a number"), parallel.parse().expect("a number"));
    let bridge = |name: &str, net: u8, masq: bool| {
        format!(
            ",\"bridge\":\"{name}\",\"isGateway\":true,\"ipMasq\":{masq},\"mtu\":1450,\"ipam\":{{\"type\":\"host-local\",\
             \"dataDir\":\"{work}/{name}\",\"ranges\":[[{{\"subnet\":\"10.{net}.0.0/16\"}}],\
             [{{\"subnet\":\"fd00:{net}::/64\"}}]],\"routes\":[{{\"dst\":\"0.0.0.0/0\"}},{{\"dst\":\"::/0\"}}]}}"
        )
    };
    let portmap = || ("portmap", ",\"capabilities\":{\"portMappings\":true}".to_string());
    let chains = [
        Chain {
            label: "seaway-cni",
            dir: ours.clone(),
            plugins: vec![(
                "seaway-cni",
                format!(
                    ",\"ranges\":[\"10.99.0.0/16\",\"fd00:99::/64\"],\"mtu\":1450,\"dataDir\":\"{work}/seaway\",\
                     \"mode\":\"routed\""
                ),
            )],
        },
        Chain {
            label: "bridge+host-local+portmap",
            dir: reference.clone(),
            plugins: vec![("bridge", bridge("br0", 97, false)), portmap()],
        },
        Chain {
            label: "the same with ipMasq",
            dir: reference.clone(),
            plugins: vec![("bridge", bridge("br1", 98, true)), portmap()],
        },
    ];
    let mut figures = Vec::new();
    let mut all: Vec<Vec<Pod>> =
        chains.iter().enumerate().map(|(k, c)| pods(c, &format!("seq{k}-"), n + 1)).collect();
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
        }
    }
    all.iter().for_each(|p| gone(p));
    for ((k, chain), (add, del)) in chains.iter().enumerate().zip(add.into_iter().zip(del)) {
        let mut pods = pods(chain, &format!("par{k}-"), parallel);
        let (par_add, par_wall) = at_once(&mut pods, Pod::add);
        let (par_del, par_del_wall) = at_once(&mut pods, Pod::del);
        gone(&pods);
        figures.push(Figures { add, del, par_add, par_del, par_wall, par_del_wall });
    }

    let show = |title: &str, f: &dyn Fn(&Figures) -> f64| {
        let ours = f(&figures[0]);
        print!("{title:<26}{ours:>10.2} ms");
        for x in &figures[1..] {
            print!("{:>14.2} ms {:>6.1}x", f(x), f(x) / ours);
        }
        println!();
    };
    println!("{n} pods one after the other, then {parallel} at once; dual-stack; CNI 1.0.0; process start to end");
    println!("{:<26}{:>13}{:>26}{:>25}", "", chains[0].label, chains[1].label, chains[2].label);
    show("ADD p50", &|f| at(&f.add, 50));
    show("ADD p99", &|f| at(&f.add, 99));
    show("DEL p50", &|f| at(&f.del, 50));
    show("DEL p99", &|f| at(&f.del, 99));
    show(&format!("{parallel} ADD at once: p50"), &|f| at(&f.par_add, 50));
    show(&format!("{parallel} ADD at once: p99"), &|f| at(&f.par_add, 99));
    show(&format!("{parallel} ADD at once: all"), &|f| f.par_wall.as_secs_f64() * 1e3);
    show(&format!("{parallel} DEL at once: p99"), &|f| at(&f.par_del, 99));
    show(&format!("{parallel} DEL at once: all"), &|f| f.par_del_wall.as_secs_f64() * 1e3);
    let (ours, theirs) = (at(&figures[0].add, 50), at(&figures[1].add, 50));
    let verdict = if ours < 3.0 && theirs / ours >= 10.0 { "met" } else { "NOT met" };
    println!("aim: ADD p50 under 3 ms and 10 times faster than bridge+host-local+portmap: {verdict}");
}
