//! A node: network, mount, host name and process namespaces of its own, with /run, /etc, /var/lib, /var/log, /var/tmp
//! and /opt of its own, so that every runtime runs with its standard paths and nothing of it is seen outside. All of
//! it ends with the value, also when a test fails or is killed.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kernel::process::{inner, wait_for_end};
use kernel::{Netns, Rt, Spawn};
use kernel_api::Rtnetlink;
use kernel_api::rt::ROUTE_PROTOCOL;
use serde_json::{Value, json};
use types::OwnedName;

use crate::tools::{Go, REFERENCE, debian, plugin};

/// The node's own addresses on its uplink.
pub const ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Of the machine at the other end of the uplink, network namespace `outside`.
pub const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// Where the agent writes the network's configuration.
pub const CONFLIST: &str = "/etc/cni/net.d/10-seaway.conflist";
/// Where the journal is when a configuration does not say.
pub const JOURNAL: &str = ipam::DEFAULT_DIR;

/// No command of a test takes longer.
const PATIENCE: &str = "60";

/// What the first process does; its argument is the node's directory.
const BOOT: &str = r#"
set -eu
D=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$D/etc,workdir=$D/work" /etc
mount --bind "$D/lib" /var/lib; mount --bind "$D/opt" /opt; mount --bind "$D/log" /var/log; mount --bind "$D/tmp" /var/tmp
mkdir -p /run/netns /opt/cni/bin /etc/cni/net.d
[ -e "$D/booted" ] || rm -f /etc/cni/net.d/*
ip link set lo up
mount --bind /run/netns /run/netns; mount --make-shared /run/netns
ip netns add outside
ip link add up0 type veth peer name up0 netns outside
ip address add 192.0.2.1/24 dev up0; ip address add 2001:db8::1/64 dev up0 nodad; ip link set up0 up
ip -n outside address add 192.0.2.2/24 dev up0; ip -n outside address add 2001:db8::2/64 dev up0 nodad
ip -n outside link set up0 up; ip -n outside link set lo up
ip -n outside route add 10.0.0.0/8 via 192.0.2.1; ip -n outside route add fd00::/8 via 2001:db8::1
echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
touch "$D/booted" "$D/up"
exec 2>/dev/null
# Reaps what is handed to it.
while :; do sleep 1000 & wait $! || true; done
"#;

/// See the module.
#[derive(Debug)]
pub struct Node {
    boot: Child,
    pid: u32,
    started: Vec<Child>,
    /// Seen from the node under the same path.
    dir: tempfile::TempDir,
    /// The node's network.
    pub ns: Netns,
    /// A cgroup of its own for everything a runtime starts, as a path from a hierarchy's root.
    pub cgroup: String,
}

impl Node {
    /// A node that forwards, with our plugin and the reference plugins in /opt/cni/bin and no configuration.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    pub fn boot() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cgroup = format!("/seaway-interop-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let _ = debian("bridge", "containernetworking-plugins");
        let dir = tempfile::tempdir().unwrap();
        for d in ["etc", "work", "lib", "opt", "log", "tmp"] {
            fs::create_dir(dir.path().join(d)).unwrap();
        }
        let (boot, ns) = first_process(dir.path());
        let mut node = Self { pid: 0, boot, started: Vec::new(), dir, ns, cgroup };
        node.came_up();
        let bin = node.path("/opt/cni/bin");
        for p in fs::read_dir(REFERENCE).unwrap().flatten() {
            fs::copy(p.path(), bin.join(p.file_name())).unwrap();
        }
        fs::copy(plugin(), bin.join("seaway-cni")).unwrap();
        node
    }

    fn came_up(&mut self) {
        wait("the node is up", || self.dir.path().join("up").exists());
        fs::remove_file(self.dir.path().join("up")).unwrap();
        self.pid = inner(self.boot.id());
    }

    /// Ends all processes, mounts and namespaces; everything outside /run stays.
    fn down(&mut self) {
        let _ = self.boot.kill();
        let _ = self.boot.wait();
        if self.pid != 0 {
            let _ = wait_for_end(self.pid, Duration::from_secs(10));
        }
        for mut c in self.started.drain(..) {
            let _ = c.kill();
            let _ = c.wait();
        }
        remove_cgroups(&self.cgroup);
    }

    /// As after a loss of power: nothing runs, /run is empty, everything else is as it was.
    pub fn reboot(&mut self) {
        self.down();
        (self.boot, self.ns) = first_process(self.dir.path());
        self.came_up();
    }

    /// Puts plugins into /opt/cni/bin, in place of those of the same names.
    pub fn install(&self, plugins: &Go) {
        for p in fs::read_dir(plugins.dir()).unwrap().flatten() {
            let place = self.path("/opt/cni/bin").join(p.file_name());
            // A link to our own program may be there.
            let _ = fs::remove_file(&place);
            fs::copy(p.path(), place).unwrap();
        }
    }

    /// Lets our program be the plugins of these names, as `make install` links them.
    pub fn install_ours(&self, names: &[&str]) {
        for name in names {
            let link = self.path("/opt/cni/bin").join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink("seaway-cni", link).unwrap();
        }
    }

    /// A path of the node's as this process sees it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// A directory that node and test see under the same path.
    #[must_use]
    pub fn shared(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file of the node's, with its directories.
    pub fn write(&self, path: &str, text: &str) {
        let file = self.path(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Reads a file of the node's; empty when it is not there.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    fn spawn(&self, args: &[&str]) -> Spawn {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let s = Spawn::new(args[0]).args(&args[1..]).env("PATH", path).beside(self.pid).directory("/");
        s.die_with_parent()
    }

    /// A command on the node, to be started by the test; it ends with the node.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.spawn(args).into_command().unwrap()
    }

    /// Runs a command on the node.
    #[must_use]
    pub fn output(&self, args: &[&str], stdin: &str) -> Output {
        let args = [&["timeout", "-k1", PATIENCE], args].concat();
        let mut c = self.command(&args);
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Who does not read it does not need it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// What a command prints; `Err` holds both its outputs.
    ///
    /// # Errors
    /// When it fails.
    pub fn attempt(&self, args: &[&str]) -> Result<String, String> {
        let out = self.output(args, "");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stdout) + &text(&out.stderr)) }
    }

    /// The same; it must succeed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        self.attempt(args).unwrap_or_else(|e| panic!("{}: {e}", args.join(" ")))
    }

    /// A command on the machine outside, at the other end of the uplink; it must succeed.
    #[track_caller]
    pub fn outside(&self, args: &[&str]) -> String {
        self.run(&[&["nsenter", "--net=/run/netns/outside"], args].concat())
    }

    /// A shell script on the node; it must succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script])
    }

    /// Starts a command that keeps running, its output in /var/log/NAME.log; gives its place in [`Node::kill`].
    pub fn start(&mut self, name: &str, args: &[&str]) -> usize {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("/var/log/{name}.log")));
        let log = log.unwrap();
        let child = self.spawn(args).session().stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.started.push(child);
        self.started.len() - 1
    }

    /// kill -9, and waits.
    pub fn kill(&mut self, started: usize) {
        let child = &mut self.started[started];
        // The one that attends it is ours; the program itself is below.
        let _ = Command::new("kill").args(["-9", &inner(child.id()).to_string()]).status();
        child.wait().unwrap();
    }

    /// kill -9 of every process on the node but its first.
    pub fn kill_all(&mut self) {
        // Whoever sends it is left alone, the one that waits for it is not.
        let _ = self.output(&["sh", "-c", "kill -9 -1"], "");
        for mut c in self.started.drain(..) {
            c.wait().unwrap();
        }
    }

    /// One call of a plugin on the node, as a runtime makes it; `Err` holds the error object.
    ///
    /// # Errors
    /// When the plugin says so.
    pub fn plugin(&self, env: &[(&str, &str)], conf: &Value) -> Result<Value, Value> {
        let program = format!("/opt/cni/bin/{}", conf["type"].as_str().unwrap());
        let mut args = vec!["env".to_owned(), "-i".to_owned(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        args.extend(env.iter().map(|(k, v)| format!("{k}={v}")));
        args.extend(["CNI_PATH=/opt/cni/bin".to_owned(), program]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let out = self.output(&args, &conf.to_string());
        let text = String::from_utf8_lossy(&out.stdout);
        let v = if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(json!(text)) };
        if out.status.success() { Ok(v) } else { Err(v) }
    }

    /// The end of a log.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let text = self.read(&format!("/var/log/{name}.log"));
        let lines: Vec<&str> = text.lines().rev().filter(|l| !l.contains("level=info")).take(30).collect();
        lines.into_iter().rev().fold(String::new(), |s, l| s + l + "\n")
    }

    /// Rtnetlink of the node.
    #[must_use]
    pub fn rt(&self) -> Rt {
        Rt::open_in(&self.ns).unwrap()
    }

    /// The records of a journal of the node.
    #[must_use]
    pub fn records(&self, journal: &str) -> Vec<ipam::Record> {
        ipam::read(&self.path(journal)).unwrap()
    }

    /// Addresses that our records hold.
    #[must_use]
    pub fn allocated(&self) -> Vec<IpAddr> {
        self.records(JOURNAL).into_iter().flat_map(|r| r.addresses).collect()
    }

    /// The host ends of our pods.
    #[must_use]
    pub fn pod_links(&self) -> Vec<String> {
        let links = self.rt().links().unwrap().into_iter().map(|l| l.name);
        links.filter(|l| OwnedName::recognise(l).is_ok_and(|n| n.is_pod_link())).map(|l| l.to_string()).collect()
    }

    /// Journal, links, routes, filter rules, namespaces and runtime caches know of no pod.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.records(JOURNAL), [], "the journal");
        // A DEL leaves the kernel's wait for a link's end to a process of its own.
        wait_for("no link is left", 5, || self.pod_links().is_empty());
        let routes = self.rt().routes().unwrap();
        let ours: Vec<_> = routes.into_iter().filter(|r| r.protocol == ROUTE_PROTOCOL).map(|r| r.route).collect();
        assert_eq!(ours, [], "routes");
        for tool in ["iptables-save", "ip6tables-save"] {
            let rules = self.run(&[tool]);
            assert!(!rules.contains("10.244.") && !rules.contains("fd00:10:244:"), "{tool}:\n{rules}");
        }
        let rules = self.run(&["nft", "list", "ruleset"]);
        assert!(!rules.contains("10.244.") && !rules.contains("fd00:10:244:"), "nft:\n{rules}");
        let kinds = self.run(&["ip", "-br", "link"]);
        assert!(!kinds.lines().any(|l| l.starts_with("ifb") || l.starts_with("bwp")), "{kinds}");
        let names: Vec<_> = fs::read_dir(self.path("/run/netns")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["outside"], "network namespaces");
        let cached = self.sh("find /var/lib/cni/results /var/lib/cni/networks -type f 2>/dev/null || true");
        let stays = ["/lock", "/last_reserved_ip.0", "/last_reserved_ip.1", "/.index"];
        let cached: Vec<&str> = cached.lines().filter(|f| !stays.iter().any(|s| f.ends_with(s))).collect();
        assert_eq!(cached, [""; 0], "caches of runtimes and of reference plugins");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for f in fs::read_dir(self.path("/var/log")).into_iter().flatten().flatten() {
                if let Some(name) = f.file_name().to_string_lossy().strip_suffix(".log") {
                    eprintln!("== {name}\n{}", self.log(name));
                }
            }
        }
        self.down();
    }
}

/// Starts a node's first process in a network of its own.
fn first_process(dir: &Path) -> (Child, Netns) {
    let ns = Netns::new().expect("make a network namespace: run as root");
    let boot = Spawn::new("bash").args(["-c", BOOT, "boot"]).args([dir]);
    let boot = boot.netns(&ns).own_pids().hostname("interop").session().die_with_parent();
    (boot.spawn().unwrap(), ns)
}

/// Removes a cgroup with all below it, in every hierarchy.
fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    for h in hierarchies.chain([root.to_owned()]) {
        let top = h.join(name.trim_start_matches('/'));
        let start = Instant::now();
        // Its processes were just killed; they leave when they are gone.
        while top.is_dir() && start.elapsed() < Duration::from_secs(5) {
            remove_tree(&top);
            if top.is_dir() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn remove_tree(dir: &Path) {
    for e in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&e.path());
    }
    let _ = fs::remove_dir(dir);
}

/// Waits until something is so.
///
/// # Panics
/// After 90 s: two containerds and a cold disk are slow at times.
#[track_caller]
pub fn wait(what: &str, so: impl FnMut() -> bool) {
    wait_for(what, 90, so);
}

/// Waits until something is so.
///
/// # Panics
/// After as many seconds.
#[track_caller]
pub fn wait_for(what: &str, seconds: u64, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
