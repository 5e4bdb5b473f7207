//! A node, a client beside its pods, one outside, a namespace in which every endpoint lives, and what the kernel counted
//! in each.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use kernel::Netns;

use crate::common::{ok, run};

/// An address here and one there.
type Pair = (&'static str, &'static str);

/// Links of the node: name, namespace at the other end, addresses of each family.
const LINKS: [(&str, &str, [Pair; 2]); 3] = [
    ("to-in", "in", [("10.244.1.1/32", "10.244.1.2/24"), ("fd00:10:244:1::1/128", "fd00:10:244:1::2/64")]),
    ("eth0", "out", [("192.0.2.1/24", "192.0.2.9/24"), ("2001:db8::1/64", "2001:db8::9/64")]),
    ("to-ends", "ends", [("10.92.0.1/30", "10.92.0.2/30"), ("fd00:92::1/64", "fd00:92::2/64")]),
];

pub struct World {
    prefix: String,
    pub dir: tempfile::TempDir,
    procs: Vec<Child>,
}

impl World {
    pub fn new() -> Self {
        let w =
            Self { prefix: format!("nw{}", std::process::id()), dir: tempfile::tempdir().unwrap(), procs: Vec::new() };
        let node = w.ns("node");
        for n in ["node", "in", "out", "ends"] {
            ok(Command::new("ip").args(["netns", "add", &w.ns(n)]));
            w.at(n, "ip link set lo up");
        }
        for (name, other, addresses) in LINKS {
            w.at("node", &format!("ip link add {name} type veth peer name eth0x netns {}", w.ns(other)));
            w.at("node", &format!("ip link set {name} up"));
            w.at(other, "ip link set eth0x up");
            for (here, there) in addresses {
                let nodad = if here.contains(':') { "nodad" } else { "" };
                w.at("node", &format!("ip address add {here} dev {name} {nodad}"));
                w.at(other, &format!("ip address add {there} dev eth0x {nodad}"));
                w.at(other, &format!("ip route add default via {}", here.split('/').next().unwrap()));
            }
        }
        w.at("node", "ip route add 10.244.1.2/32 dev to-in");
        w.at("node", "ip route add fd00:10:244:1::2/128 dev to-in");
        w.at("node", "ip route add 10.244.64.0/18 via 10.92.0.2");
        w.at("node", "ip route add fd00:10:244:64::/64 via fd00:92::2");
        w.at("ends", "ip route add local 10.244.64.0/18 dev lo");
        w.at("ends", "ip route add local fd00:10:244:64::/64 dev lo");
        // Of IPv6 a route alone does not let a process have its addresses.
        w.at("ends", "sysctl -qw net.ipv6.ip_nonlocal_bind=1");
        // A client may use a port again that it closed a second ago: there are more connections a minute than ports.
        for n in ["in", "out"] {
            w.at(n, "sysctl -qw net.ipv4.tcp_tw_reuse=1");
        }
        w.at("node", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        assert!(Path::new("/run/netns").join(node).exists());
        w
    }

    pub fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub fn netns(&self, name: &str) -> Netns {
        Netns::open(Path::new("/run/netns").join(self.ns(name))).unwrap()
    }

    pub fn enter(ns: &str, program: &Path) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{ns}")).arg(program);
        c
    }

    fn at(&self, name: &str, cmd: &str) {
        let mut words = cmd.split_whitespace();
        ok(Self::enter(&self.ns(name), Path::new(words.next().unwrap())).args(words));
    }

    pub fn api(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn spawn(&mut self, mut c: Command, log: &str) {
        let log = File::options().append(true).create(true).open(self.dir.path().join(log)).unwrap();
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.procs.push(c.spawn().unwrap());
    }

    /// Starts the agent from this binary; the node's last process is it.
    pub fn agent(&mut self, binary: &Path) {
        let mut c = Self::enter(&self.ns("node"), binary);
        let dir = self.dir.path();
        c.args(["agent", "--node", "node1", "--iface", "eth0", "--resync", "1", "--log-level", "warn", "--api"]);
        c.arg(format!("unix:{}", self.api().display()));
        c.arg("--ipam-dir").arg(dir.join("ipam")).arg("--cni-conf-dir").arg(dir.join("cni"));
        self.spawn(c, "agent.log");
    }

    pub fn kill_last(&mut self) {
        let mut p = self.procs.pop().unwrap();
        p.kill().unwrap();
        p.wait().unwrap();
    }

    /// Where the node's connection tracking has the connections to an address that nobody has answered yet.
    pub fn unanswered(node: &str, to: &str) -> String {
        let family = if to.contains(':') { "ipv6" } else { "ipv4" };
        let mut c = Self::enter(node, Path::new("conntrack"));
        let out = run(c.args(["-L", "-f", family, "-p", "tcp", "--orig-dst", to, "--state", "SYN_SENT"]));
        String::from_utf8_lossy(&out.stdout).lines().take(20).collect::<Vec<_>>().join("\n")
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

/// What the kernel counts that may make a connection slow: of the machine, packets that it was too busy to take from one
/// device to another; of the node, entries of connection tracking that clashed or were dropped; of clients, handshakes
/// that were sent again; of endpoints, connections that nobody took in time and handshakes that met one just closed.
pub fn counters(w: &World) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    let softnet = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let dropped = softnet.lines().filter_map(|l| u64::from_str_radix(l.split(' ').nth(1)?, 16).ok()).sum();
    out.insert("backlog dropped".into(), dropped);
    let read = |ns: &str, file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        w.netns(ns).inside(|| std::fs::read_to_string(path)).unwrap_or_default()
    };
    let conntrack = ok(World::enter(&w.ns("node"), Path::new("conntrack")).arg("-S"));
    for (name, value) in conntrack.split_whitespace().filter_map(|w| w.split_once('=')) {
        if ["insert_failed", "drop", "early_drop", "clash_resolve"].contains(&name) {
            *out.entry(format!("conntrack {name}")).or_default() += value.parse::<u64>().unwrap_or(0);
        }
    }
    let endpoints =
        ["ListenOverflows", "ListenDrops", "TCPACKSkippedTimeWait", "PAWSEstab", "PAWSTimewait", "TWRecycled"];
    for (ns, wanted) in [("in", &["TCPSynRetrans"][..]), ("out", &["TCPSynRetrans"]), ("ends", &endpoints)] {
        let text = read(ns, "netstat");
        let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
        for pair in rows.chunks_exact(2) {
            for (name, value) in pair[0].iter().zip(&pair[1]).filter(|(n, _)| wanted.contains(n)) {
                out.insert(format!("{ns} {name}"), value.parse().unwrap_or(0));
            }
        }
    }
    out
}
