//! 200 rounds of kill -9 under traffic: agents, API server and CNI plugin at random points. Established connections
//! live; afterwards what is allocated, linked, routed and on disk is exactly what the living pods have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Lab, PATIENCE, Proc, Talk, eventually, eventually_or, ok, run};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop");
const ROUNDS: u32 = 200;

/// Numbers that look random and are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A sandbox as a second runtime on the node would have it.
struct Sandbox {
    id: String,
    node: &'static str,
}

impl Sandbox {
    fn netns(&self, lab: &Lab) -> String {
        format!("/run/netns/{}-pod-{}", lab.name, self.id)
    }

    fn call(&self, lab: &Lab, command: &str) -> Child {
        let list = std::fs::read_to_string(lab.conflist(self.node)).unwrap();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let mut conf = list["plugins"][0].clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        let mut child = lab
            .on_node(self.node, &[common::plugin().to_str().unwrap()])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", self.netns(lab))
            .env("CNI_PATH", common::plugin().parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A child that is killed at once may never read it.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), conf.to_string().as_bytes());
        child
    }
}

#[test]
fn two_hundred_kills_break_no_connection_and_leak_nothing() {
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "dual"]);
    let mut dice = Dice(0x5ea_7a11);

    // Traffic: to a pod and to a Service, both families, from a pod on another node. The pods it is between are not
    // among those that churn.
    let pods = lab.pods();
    let server = pods.iter().find(|p| p.name.starts_with("cart-") || p.name.starts_with("api-")).unwrap();
    let client = pods.iter().find(|p| p.name.starts_with("api-") && p.node != server.node).unwrap();
    let records = lab.records(&client.node);
    let ns =
        records.iter().find(|r| r.pod.as_ref().is_some_and(|p| *p.name == *client.name)).unwrap().netns.to_string();
    let api = lab.objects("services", "shop").into_iter().find(|s| s["metadata"]["name"] == "api").unwrap();
    let port = if server.name.starts_with("cart-") { 6379 } else { 8080 };
    let mut targets: Vec<SocketAddr> = server.ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    for ip in api["spec"]["clusterIPs"].as_array().unwrap() {
        targets.push(SocketAddr::new(ip.as_str().unwrap().parse::<IpAddr>().unwrap(), 80));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (said, slowest) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Duration::ZERO)));
    let talkers: Vec<_> = targets
        .iter()
        .map(|to| {
            let mut talk = Talk::open(&ns, *to).unwrap_or_else(|e| panic!("{to}: {e}"));
            let (stop, said, slowest, to) = (Arc::clone(&stop), Arc::clone(&said), Arc::clone(&slowest), *to);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    talk.once().map_err(|e| format!("the connection to {to} broke: {e}"))?;
                    said.fetch_add(1, Ordering::Relaxed);
                    let mut s = slowest.lock().unwrap();
                    *s = (*s).max(start.elapsed());
                    drop(s);
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok::<(), String>(())
            })
        })
        .collect();

    let mut sandboxes: Vec<Sandbox> = Vec::new();
    let mut kills = [0u32; 3];
    for round in 0..ROUNDS {
        match dice.roll(4) {
            0 => {
                let node = ["node1", "node2"][dice.roll(2) as usize];
                let found = eventually(&format!("round {round}: the agent of {node}"), PATIENCE, || {
                    Some(Proc::find(&lab, &["agent", node])).filter(|f| f.len() == 1)
                });
                found[0].kill();
                std::thread::sleep(Duration::from_millis(dice.roll(30)));
                lab.run(&["heal"]);
                kills[0] += 1;
            }
            1 => {
                let found = eventually(&format!("round {round}: the API server"), PATIENCE, || {
                    Some(Proc::find(&lab, &["apiserver"])).filter(|f| f.len() == 1)
                });
                found[0].kill();
                std::thread::sleep(Duration::from_millis(dice.roll(30)));
                lab.run(&["heal"]);
                // A node without an API server for a moment is the point; a pod that cannot be deleted is not.
                eventually("the API server answers", PATIENCE, || {
                    let sock = lab.dir().join("api.sock");
                    let out =
                        run(Command::new("curl").args(["-sf", "--unix-socket"]).arg(sock).arg("http://lab/readyz"));
                    out.status.success().then_some(())
                });
                kills[1] += 1;
            }
            _ => {
                let node = ["node1", "node2"][dice.roll(2) as usize];
                let s = Sandbox { id: format!("chaos{round}"), node };
                ok(Command::new("ip").args(["netns", "add", s.netns(&lab).trim_start_matches("/run/netns/")]));
                let mut add = s.call(&lab, "ADD");
                std::thread::sleep(Duration::from_micros(dice.roll(6000)));
                let _ = add.kill();
                let _ = add.wait();
                if dice.roll(2) == 0 {
                    // A DEL that is killed too; the last word is below.
                    let mut del = s.call(&lab, "DEL");
                    std::thread::sleep(Duration::from_micros(dice.roll(4000)));
                    let _ = del.kill();
                    let _ = del.wait();
                }
                sandboxes.push(s);
                kills[2] += 1;
            }
        }
        if round % 20 == 7 {
            // Churn among the pods that nobody talks to.
            let pods = lab.objects("pods", "shop");
            if let Some(p) =
                pods.iter().find(|p| p["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("metrics-")))
            {
                let name = p["metadata"]["name"].as_str().unwrap();
                // It may be gone by itself by now: then there is churn enough.
                let url = format!("http://lab/api/v1/namespaces/shop/pods/{name}");
                let sock = lab.dir().join("api.sock");
                run(Command::new("curl").args(["-s", "-X", "DELETE", "--unix-socket"]).arg(sock).arg(url));
            }
        }
    }
    assert!(kills.iter().all(|k| *k > 20), "{kills:?}");

    // Every runtime sends a DEL in the end.
    for s in &sandboxes {
        let out = s.call(&lab, "DEL").wait_with_output().unwrap();
        assert!(out.status.success(), "DEL of {}: {out:?}", s.id);
        ok(Command::new("ip").args(["netns", "del", s.netns(&lab).trim_start_matches("/run/netns/")]));
    }
    stop.store(true, Ordering::Relaxed);
    for t in talkers {
        t.join().unwrap().unwrap();
    }
    eprintln!(
        "kills of agent, API server, plugin: {kills:?}; {} lines through {} connections, the slowest {:?}",
        said.load(Ordering::Relaxed),
        targets.len(),
        slowest.lock().unwrap()
    );

    for node in ["node1", "node2"] {
        let why = Mutex::new(String::new());
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("what is on the node is what its pods have", PATIENCE, || match leaks(&lab, node) {
                None => Some(()),
                Some(w) => {
                    *why.lock().unwrap() = w;
                    None
                }
            });
        }));
        assert!(found.is_ok(), "{node}: {}", why.lock().unwrap());
    }
    // And everything still works, as soon as all have heard of the last pod that was replaced.
    let mut last = String::new();
    let works = eventually_or(PATIENCE, || {
        let out = run(&mut lab.cmd(&["test"]));
        last = String::from_utf8_lossy(&out.stdout).into_owned();
        out.status.success().then_some(())
    });
    assert!(works.is_some(), "{last}");
    let name = lab.name.clone();
    drop(lab);
    let left = ok(Command::new("ip").args(["netns", "list"]));
    assert!(!left.contains(&format!("{name}-")), "namespaces are left: {left}");
    assert!(!std::path::Path::new("/run/seaway/labs").join(&name).exists(), "files are left");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&format!("/{name}")), "mounts are left");
}

#[test]
fn a_rebooted_node_has_its_pods_again_and_leaks_nothing() {
    let lab = Lab::up(&[SHOP, "--nodes", "2", "--backend", "vxlan", "--ip", "dual"]);
    let on = |node: &str| -> BTreeSet<String> {
        let pods = lab.pods().into_iter().filter(|p| p.node == node && !p.host_network);
        pods.map(|p| format!("{}/{}", p.namespace, p.name)).collect()
    };
    let (pods, before) = (on("node1"), lab.records("node1"));
    assert!(!pods.is_empty() && before.len() == pods.len(), "{pods:?} {before:?}");
    // Everything that lives only in memory goes: processes, namespaces, links, routes, rules. Files stay.
    for words in [&["lab", "node"][..], &["agent", "node1"]] {
        Proc::find(&lab, words).iter().for_each(Proc::kill);
    }
    for pod in &pods {
        Proc::find(&lab, &["--pod", pod]).iter().for_each(Proc::kill);
    }
    for r in &before {
        ok(Command::new("umount").arg(&*r.netns));
        std::fs::remove_file(&*r.netns).unwrap();
    }
    ok(&mut lab.on_node(
        "node1",
        &[
            "sh",
            "-c",
            "nft flush ruleset; for l in $(ip -o link | grep -o ' sea[^:@]*'); do ip link del $l 2> /dev/null; done
             ip route flush proto 83; ip -6 route flush proto 83; true",
        ],
    ));
    assert_eq!(lab.records("node1").len(), before.len(), "the journal stays");
    // Records tell the second in which they were made; the kernel gives a new namespace the number of one that is gone.
    std::thread::sleep(Duration::from_secs(1));
    lab.run(&["heal"]);
    let mut why = String::new();
    let again = eventually_or(Duration::from_secs(120), || {
        let now = lab.records("node1");
        let anew = now.iter().all(|r| !before.iter().any(|b| (b.inode, b.time) == (r.inode, r.time)));
        why = if !anew || now.len() != pods.len() || on("node1") != pods {
            format!("pods {:?}, before {before:?}, now {now:?}", on("node1"))
        } else {
            leaks(&lab, "node1").unwrap_or_default()
        };
        why.is_empty().then_some(())
    });
    assert!(again.is_some(), "not the pods again and nothing else: {why}");
    // From the other node's pods to these, by the overlay.
    let pods = lab.pods();
    let from = pods.iter().find(|p| p.node == "node2" && !p.host_network).unwrap();
    for ip in pods.iter().filter(|p| p.node == "node1" && !p.host_network).flat_map(|p| &p.ips) {
        let who = format!("{}/{}", from.namespace, from.name);
        let ping = ["exec", &who, "--", "ping", "-n", "-c1", "-W1", &ip.to_string()].map(str::to_owned);
        let words: Vec<&str> = ping.iter().map(String::as_str).collect();
        eventually(&format!("{ip} answers {who}"), PATIENCE, || {
            run(&mut lab.cmd(&words)).status.success().then_some(())
        });
    }
}

/// What a node has that its living pods do not, or the other way round; nothing when they agree.
fn leaks(lab: &Lab, node: &str) -> Option<String> {
    let alive: BTreeSet<IpAddr> =
        lab.pods().iter().filter(|p| p.node == node && !p.host_network).flat_map(|p| p.ips.clone()).collect();
    let records = lab.records(node);
    let recorded: BTreeSet<IpAddr> = records.iter().flat_map(|r| r.addresses.iter().copied()).collect();
    if recorded != alive {
        return Some(format!("recorded {recorded:?}, alive {alive:?}"));
    }
    let want: BTreeSet<String> = records.iter().map(|r| r.link.to_string()).collect();
    let text = ok(&mut lab.on_node(node, &["ip", "-o", "link"]));
    let links: BTreeSet<String> = text
        .lines()
        .filter_map(|l| l.split(": ").nth(1)?.split('@').next().map(str::to_owned))
        .filter(|n| n.starts_with("sea") && n != "seaway.1")
        .collect();
    if links != want {
        return Some(format!("links {links:?}, wanted {want:?}"));
    }
    let mut routed = BTreeSet::new();
    for family in ["-4", "-6"] {
        let text = ok(&mut lab.on_node(node, &["ip", family, "route", "show", "proto", "83"]));
        routed.extend(
            text.lines().filter(|l| !l.contains('/')).filter_map(|l| l.split(' ').next()?.parse::<IpAddr>().ok()),
        );
    }
    if routed != alive {
        return Some(format!("routed {routed:?}, alive {alive:?}"));
    }
    // Rules: what another pass would change is nothing.
    let out = ok(&mut lab.on_node(node, &["nft", "list", "table", "inet", "seaway"]));
    let chains = out.lines().filter(|l| l.trim_start().starts_with("chain ")).count();
    (chains == 0 || chains > 60).then(|| format!("{chains} chains"))
}
