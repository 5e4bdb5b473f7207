//! A real lab, brought up by the real binary, and taken down however the test ends.
#![allow(dead_code)] // each test file uses its own part

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test; the CNI plugin is beside it.
pub const SEAWAY: &str = env!("CARGO_BIN_EXE_seaway");

/// How long a test waits for what must come: no promise, and long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A lab that is gone when this is.
pub struct Lab {
    pub name: String,
}

/// Runs a command to its end and gives what it printed; panics with all of it when it fails.
pub fn ok(cmd: &mut Command) -> String {
    let out = run(cmd);
    assert!(
        out.status.success(),
        "{cmd:?}: {}\nstdout:\n{}\nstderr:\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn run(cmd: &mut Command) -> Output {
    cmd.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{cmd:?}: {e}"))
}

/// Waits until `f` gives a value; panics with `what` after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, f: impl FnMut() -> Option<T>) -> T {
    eventually_or(limit, f).unwrap_or_else(|| panic!("not within {limit:?}: {what}"))
}

/// Waits until `f` gives a value; none after `limit`.
pub fn eventually_or<T>(limit: Duration, mut f: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(v) = f() {
            return Some(v);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The plugin must be there before a lab is: `cargo test -p seaway` alone does not build it.
pub fn plugin() -> PathBuf {
    let path = Path::new(SEAWAY).with_file_name("seaway-cni");
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-q", "-p", "seaway-cni"]);
        if !Path::new(SEAWAY).parent().is_some_and(|p| p.ends_with("debug")) {
            build.arg("--release");
        }
        ok(&mut build);
    }
    assert!(path.exists(), "{} is missing: cargo build -p seaway-cni", path.display());
    path
}

impl Lab {
    /// `seaway lab up` with these arguments, under a name of its own.
    pub fn up(args: &[&str]) -> Self {
        plugin();
        let name = format!("t{}x{}", std::process::id() % 100_000, COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { name };
        ok(Command::new(SEAWAY).args(["lab", "up", "--name", &lab.name]).args(args));
        lab
    }

    pub fn cmd(&self, args: &[&str]) -> Command {
        let mut c = Command::new(SEAWAY);
        c.args(["lab", args[0], "--name", &self.name]).args(&args[1..]);
        c
    }

    pub fn run(&self, args: &[&str]) -> String {
        ok(&mut self.cmd(args))
    }

    pub fn dir(&self) -> PathBuf {
        PathBuf::from("/run/seaway/labs").join(&self.name)
    }

    /// Where a node's agent writes the CNI configuration.
    pub fn conflist(&self, node: &str) -> PathBuf {
        self.dir().join(node).join("cni/10-seaway.conflist")
    }

    /// A command in a node's network namespace.
    pub fn on_node(&self, node: &str, cmd: &[&str]) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{}-{node}", self.name)).args(cmd);
        c
    }

    /// A request to the lab's API server, by its socket; gives the answer.
    pub fn api(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Value {
        let mut c = Command::new("curl");
        c.args(["-s", "--fail-with-body", "-X", method, "--unix-socket"]).arg(self.dir().join("api.sock"));
        if let Some((kind, body)) = body {
            c.args(["-H", &format!("Content-Type: {kind}"), "-d", body]);
        }
        serde_json::from_str(&ok(c.arg(format!("http://lab{path}")))).unwrap()
    }

    /// A JSON merge patch.
    pub fn patch(&self, path: &str, patch: &str) -> Value {
        self.api("PATCH", path, Some(("application/merge-patch+json", patch)))
    }

    /// The objects of a resource of the core group.
    pub fn objects(&self, plural: &str, namespace: &str) -> Vec<Value> {
        let path = match namespace {
            "" | "-A" => format!("/api/v1/{plural}"),
            n => format!("/api/v1/namespaces/{n}/{plural}"),
        };
        self.api("GET", &path, None)["items"].as_array().cloned().unwrap_or_default()
    }

    /// Running pods: (namespace, name, node, addresses).
    pub fn pods(&self) -> Vec<Pod> {
        self.objects("pods", "-A")
            .iter()
            .filter(|p| p["status"]["phase"] == "Running")
            .map(|p| Pod {
                namespace: p["metadata"]["namespace"].as_str().unwrap_or("").into(),
                name: p["metadata"]["name"].as_str().unwrap_or("").into(),
                node: p["spec"]["nodeName"].as_str().unwrap_or("").into(),
                ips: p["status"]["podIPs"]
                    .as_array()
                    .map(|a| a.iter().filter_map(|i| i["ip"].as_str()?.parse().ok()).collect())
                    .unwrap_or_default(),
                host_network: p["spec"]["hostNetwork"] == true,
            })
            .collect()
    }

    /// The records of the CNI plugin on a node.
    pub fn records(&self, node: &str) -> Vec<ipam::Record> {
        ipam::read(&self.dir().join(node).join("ipam")).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in std::fs::read_dir(self.dir().join("logs")).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(15).collect();
                eprintln!("--- {}", log.path().display());
                tail.iter().rev().for_each(|l| eprintln!("{l}"));
            }
        }
        let out = run(&mut self.cmd(&["down"]));
        if !out.status.success() {
            eprintln!("lab down: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

#[derive(Debug, Clone)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub node: String,
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
}

/// A process of a lab.
pub struct Proc {
    pub pid: i32,
}

impl Proc {
    /// The processes of a lab whose command line has all of `words`.
    pub fn find(lab: &Lab, words: &[&str]) -> Vec<Self> {
        let mut found = Vec::new();
        for e in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = e.file_name().to_str().and_then(|s| s.parse::<i32>().ok()) else { continue };
            let split = |f: &str| -> Vec<String> {
                let bytes = std::fs::read(e.path().join(f)).unwrap_or_default();
                bytes.split(|b| *b == 0).filter(|p| !p.is_empty()).map(|p| String::from_utf8_lossy(p).into()).collect()
            };
            let args = split("cmdline");
            let ours = split("environ").iter().any(|l| *l == format!("SEAWAY_LAB={}", lab.name));
            if ours && words.iter().all(|w| args.iter().any(|a| a == w)) {
                found.push(Self { pid });
            }
        }
        found
    }

    pub fn kill(&self) {
        let _ = Command::new("kill").args(["-9", &self.pid.to_string()]).status();
        // A leader that is a zombie may have threads that still hold its sockets.
        eventually("a killed process is gone", Duration::from_secs(60), || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count);
            let zombie = stat.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('Z'));
            (stat.is_empty() || (zombie && threads <= 1)).then_some(())
        });
    }
}

/// A TCP connection out of a pod or node, to an echo server: one line there and back at a time.
pub struct Talk {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    n: u64,
}

impl Talk {
    /// Connects from the network namespace at `netns`; the socket stays in it.
    pub fn open(netns: &str, to: SocketAddr) -> std::io::Result<Self> {
        let ns = kernel::Netns::open(netns)?;
        let stream = ns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader, n: 0 })
    }

    /// One line there and back.
    pub fn once(&mut self) -> std::io::Result<()> {
        self.n += 1;
        writeln!(self.stream, "line {}", self.n)?;
        let mut line = String::new();
        let end = format!("line {}", self.n);
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("the other end closed the connection"));
            }
            if line.contains(&end) {
                return Ok(());
            }
        }
    }
}
