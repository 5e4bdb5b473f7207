//! A node and pods as network namespaces of their own; gone with the value, also when a test fails.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kernel::{Netns, Rt};
use kernel_api::Rtnetlink;
use kernel_api::rt::{Link, ROUTE_PROTOCOL, Route};
use serde_json::{Value, json};
use types::OwnedName;

/// The program under test: cargo's, or where the machine of tests/vm, which has these modules too, keeps it.
pub fn program() -> &'static str {
    option_env!("CARGO_BIN_EXE_seaway-cni").unwrap_or("/opt/cni/bin/seaway-cni")
}

/// A folder of the repository; that machine has a copy of some.
pub fn repository(folder: &str) -> PathBuf {
    let here = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(folder);
    if here.exists() { here } else { PathBuf::from("/repository").join(folder) }
}

pub struct Node {
    /// The node's namespace: no path leads to it.
    pub ns: Netns,
    pub dir: tempfile::TempDir,
    /// The plugin's configuration.
    pub conf: Value,
}

impl Drop for Node {
    fn drop(&mut self) {
        let entries = std::fs::read_dir(self.dir.path().join("netns")).into_iter().flatten().flatten();
        for e in entries {
            let _ = Netns::delete(e.path());
        }
    }
}

impl Node {
    /// A node that forwards, with an uplink that has an address of each family.
    pub fn new() -> Self {
        let ns = Netns::new().expect("make a network namespace: run as root");
        let dir = tempfile::tempdir().unwrap();
        let conf = json!({
            "cniVersion": "1.1.0", "name": "seaway", "type": "seaway-cni", "mode": "routed", "mtu": 1450,
            "ranges": ["10.244.1.0/24", "fd00:10:244:1::/64"], "dataDir": dir.path().join("ipam"),
        });
        let node = Self { ns, dir, conf };
        node.boot();
        node
    }

    /// The machine goes down and comes up: no namespace and no process of before is there, the files are.
    pub fn reboot(&mut self) {
        for e in std::fs::read_dir(self.dir.path().join("netns")).into_iter().flatten().flatten() {
            let _ = Netns::delete(e.path());
        }
        self.ns = Netns::new().expect("make a network namespace: run as root");
        self.boot();
    }

    fn boot(&self) {
        let node = self;
        // As the agent does it on a real node.
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        node.sh("ip link set lo up; ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
        node.sh("ip address add 192.0.2.1/24 dev up0; ip address add 2001:db8::1/64 dev up0 nodad");
    }

    /// A namespace for a pod; gives its path.
    pub fn pod(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join("netns").join(name);
        Netns::create(&path).expect("make a network namespace");
        path
    }

    /// Runs a shell command in the node's namespace and gives what it prints; it must succeed.
    pub fn sh(&self, script: &str) -> String {
        sh_in(&self.ns, script)
    }

    /// The same in a pod's.
    pub fn sh_pod(&self, name: &str, script: &str) -> String {
        sh_in(&Netns::open(self.dir.path().join("netns").join(name)).unwrap(), script)
    }

    /// Starts the plugin as a runtime does.
    pub fn start(&self, command: &str, container: &str, netns: Option<&str>, conf: &Value) -> Child {
        self.start_as(&PathBuf::from(program()), command, container, netns, conf)
    }

    /// The same of another program, or of ours by another name.
    pub fn start_as(&self, program: &Path, command: &str, container: &str, netns: Option<&str>, conf: &Value) -> Child {
        let mut c = Command::new(program);
        c.env_clear().env("CNI_COMMAND", command).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        c.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web");
        if let Some(n) = netns {
            c.env("CNI_NETNS", n);
        }
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.ns.run(|| c.spawn().expect("start the plugin")).unwrap();
        // A plugin that was killed or refused early may not read it.
        let _ = child.stdin.take().unwrap().write_all(conf.to_string().as_bytes());
        child
    }

    /// One call; `Err` holds the error object.
    pub fn call(&self, command: &str, container: &str, conf: &Value) -> Result<Value, Value> {
        let netns = self.dir.path().join("netns").join(container);
        let netns = netns.exists().then(|| netns.to_str().unwrap().to_owned());
        answer(self.start(command, container, netns.as_deref(), conf).wait_with_output().unwrap())
    }

    pub fn add(&self, container: &str) -> Value {
        self.call("ADD", container, &self.conf).unwrap_or_else(|e| panic!("ADD {container}: {e}"))
    }

    pub fn del(&self, container: &str) {
        self.call("DEL", container, &self.conf).unwrap_or_else(|e| panic!("DEL {container}: {e}"));
    }

    pub fn conf_with(&self, key: &str, v: Value) -> Value {
        let mut c = self.conf.clone();
        c[key] = v;
        c
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("ipam")
    }

    pub fn rt(&self) -> Rt {
        Rt::open_in(&self.ns).unwrap()
    }

    /// Host ends of pods.
    pub fn pod_links(&self) -> Vec<Link> {
        let mut links = self.rt().links().unwrap();
        links.retain(|l| OwnedName::recognise(&l.name).is_ok_and(|n| n.is_pod_link()));
        links
    }

    /// Our routes.
    pub fn our_routes(&self) -> Vec<Route> {
        let routes = self.rt().routes().unwrap();
        routes.into_iter().filter(|r| r.protocol == ROUTE_PROTOCOL).map(|r| r.route).collect()
    }

    /// Journal, links, routes and neighbours tell of exactly these containers, and no file is left over.
    pub fn assert_exactly(&self, living: &BTreeSet<String>) {
        let records = ipam::read(&self.data_dir()).unwrap();
        let have: BTreeSet<String> = records.iter().map(|r| r.key.container.to_string()).collect();
        assert_eq!(&have, living, "the journal");
        let want: BTreeSet<String> = records.iter().map(|r| r.link.to_string()).collect();
        // A DEL leaves the kernel's wait for a link's end to a process of its own.
        let until = Instant::now() + Duration::from_secs(5);
        let links = || self.pod_links().into_iter().map(|l| l.name.to_string()).collect::<BTreeSet<_>>();
        while links() != want && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(links(), want, "links");
        let addresses =
            records.iter().flat_map(|r| r.addresses.iter().map(move |a| (a.to_string(), r.link.to_string())));
        let addresses: BTreeSet<_> = addresses.collect();
        let routes: BTreeSet<_> = self.our_routes().iter().map(|r| (r.dst.addr().to_string(), dev(r))).collect();
        assert_eq!(routes, addresses, "routes");
        let neighbours = self.rt().neighbours().unwrap();
        let neighbours: BTreeSet<_> = neighbours.iter().map(|n| (n.addr.to_string(), n.link.to_string())).collect();
        assert_eq!(neighbours, addresses, "neighbours");
        for e in std::fs::read_dir(self.data_dir()).into_iter().flatten().flatten() {
            let name = e.file_name().into_string().unwrap();
            assert!(["journal", "index", "lock", "busy"].contains(&&*name), "a file is left over: {name}");
        }
    }
}

fn dev(r: &Route) -> String {
    match &r.to {
        kernel_api::rt::RouteTo::Link(l) => l.to_string(),
        other => panic!("{other:?}"),
    }
}

pub fn answer(out: Output) -> Result<Value, Value> {
    let text = String::from_utf8(out.stdout).unwrap();
    let v = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(v) } else { Err(v) }
}

pub fn sh_in(ns: &Netns, script: &str) -> String {
    let out = ns.run(|| Command::new("sh").args(["-ec", script]).output()).unwrap().expect("sh");
    let err = String::from_utf8_lossy(&out.stderr);
    let hint = if err.contains("not found") { " (apt-get install iproute2 iputils-ping)" } else { "" };
    assert!(out.status.success(), "{script}: {}{err}{hint}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8(out.stdout).unwrap()
}
