//! Interfaces that other plugins make for us: wiring modes, and further networks; with the reference plugins (Debian's
//! containernetworking-plugins) as the others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::{Command, Stdio};

use common::{Node, answer};
use serde_json::{Value, json};

/// A node, a folder with our plugin by its names, and the reference ones after it.
struct World {
    node: Node,
    path: String,
}

impl World {
    fn new() -> Self {
        let node = Node::new();
        let bin = node.dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for name in ["seaway-cni", "seaway-ipam"] {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_seaway-cni"), bin.join(name)).unwrap();
        }
        let reference = "/usr/lib/cni";
        assert!(
            std::path::Path::new(reference).join("ptp").exists(),
            "the reference plugins are missing: apt-get install containernetworking-plugins"
        );
        Self { path: format!("{}:{reference}", bin.display()), node }
    }

    fn call(&self, command: &str, container: &str, conf: &Value) -> Result<Value, Value> {
        let mut c = Command::new(env!("CARGO_BIN_EXE_seaway-cni"));
        c.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", &self.path);
        c.env("CNI_COMMAND", command).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        c.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1");
        let netns = self.node.dir.path().join("netns").join(container);
        if netns.exists() {
            c.env("CNI_NETNS", netns);
        }
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.node.ns.run(|| c.spawn().unwrap()).unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), conf.to_string().as_bytes()).unwrap();
        let mut out = child.wait_with_output().unwrap();
        // The reference plugins chat.
        out.stderr.clear();
        answer(out)
    }

    /// Says what pod default/web shall have; gives a configuration that looks there.
    fn with_spec(&self, spec: &Value) -> Value {
        let dir = self.node.dir.path().join("pods");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(cni::podspec::file_name("default", "web")), spec.to_string()).unwrap();
        self.node.conf_with("pods", json!(dir))
    }

    /// No address, link, rule of a container is left.
    fn assert_empty(&self) {
        assert_eq!(ipam::read(&self.node.data_dir()).unwrap(), []);
        assert_eq!(self.node.pod_links(), []);
        // The kernel takes a dead namespace's links away in its own time.
        let links = || self.node.sh("ip -br link");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while links().contains("veth") {
            assert!(std::time::Instant::now() < until, "{}", links());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let store = self.node.dir.path().join("store");
        let left: Vec<_> = std::fs::read_dir(store.join("second")).into_iter().flatten().flatten().collect();
        let left = left.iter().filter(|e| e.file_name().to_str().unwrap().starts_with("10.")).count();
        assert_eq!(left, 0, "addresses of the second network");
    }

    /// A further network of the reference bridge and host-local.
    fn second(&self, kind: &str) -> Value {
        let store = self.node.dir.path().join("store");
        json!({"name": "default/second", "ifname": "net1", "network": "second", "cniVersion": "1.0.0", "plugins": [{
            "type": kind, "bridge": "second0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": store, "subnet": "10.77.0.0/24"}}]})
    }
}

#[test]
fn mode_ptp_with_addresses_of_the_journal() {
    let w = World::new();
    let conf = w.node.conf_with("mode", json!("ptp"));
    for c in ["a", "b"] {
        w.node.pod(c);
        let r = w.call("ADD", c, &conf).unwrap();
        assert_eq!(r["ips"][0]["gateway"], "10.244.1.1", "{r}");
        let mut check = conf.clone();
        check["prevResult"] = r.clone();
        w.call("CHECK", c, &check).unwrap();
        assert_eq!(w.call("ADD", c, &conf).unwrap(), r, "again: the same answer");
    }
    let a = ipam::read(&w.node.data_dir()).unwrap()[0].clone();
    assert!(!a.is_routed() && a.delegates[0].result.is_some());
    let b = ipam::read(&w.node.data_dir()).unwrap()[1].addresses.clone();
    for addr in b {
        w.node.sh_pod("a", &format!("ping -c 1 -w 5 {addr}"));
    }
    w.call("DEL", "a", &conf).unwrap();
    // A namespace that is gone before its DEL.
    kernel::Netns::delete(w.node.dir.path().join("netns/b")).unwrap();
    w.call("DEL", "b", &conf).unwrap();
    w.call("DEL", "b", &conf).unwrap();
    w.assert_empty();
}

#[test]
fn a_pod_with_a_second_network_has_both_and_loses_both() {
    let w = World::new();
    let conf = w.with_spec(&json!({"uid": "u1", "networks": [w.second("bridge")]}));
    w.node.pod("a");
    let r = w.call("ADD", "a", &conf).unwrap();
    assert_eq!(r["interfaces"].as_array().unwrap().len(), 2, "the runtime is told of the first network only: {r}");
    let shown = w.node.sh_pod("a", "ip -br addr");
    assert!(shown.contains("net1") && shown.contains("10.77.0.2/24"), "{shown}");
    w.node.sh_pod("a", "ping -c 1 -W 2 10.77.0.1");
    let record = &ipam::read(&w.node.data_dir()).unwrap()[0];
    let told = record.delegates[0].result.as_ref().unwrap();
    assert_eq!(told["ips"][0]["address"], "10.77.0.2/24", "for network-status: {told}");
    // Neither the definition nor the agent's file is needed to undo it.
    std::fs::remove_dir_all(w.node.dir.path().join("pods")).unwrap();
    w.call("DEL", "a", &conf).unwrap();
    assert!(!w.node.sh_pod("a", "ip -br link").contains("net1"));
    w.assert_empty();
}

#[test]
fn a_second_network_that_fails_undoes_the_first() {
    let w = World::new();
    let mut bad = w.second("bridge");
    bad["ifname"] = json!("net2");
    bad["plugins"][0]["bridge"] = json!("up0"); // is there and no bridge
    let conf = w.with_spec(&json!({"uid": "u1", "networks": [w.second("bridge"), bad]}));
    w.node.pod("a");
    let e = w.call("ADD", "a", &conf).unwrap_err();
    let msg = e["msg"].as_str().unwrap();
    assert!(msg.contains("network default/second: interface net2: bridge") && msg.contains("up0"), "{msg}");
    let shown = w.node.sh_pod("a", "ip -br link");
    assert!(!shown.contains("net1") && !shown.contains("eth0"), "{shown}");
    w.assert_empty();
    let missing = w.with_spec(&json!({"uid": "u1", "networks": [w.second("no-such-plugin")]}));
    let e = w.call("ADD", "a", &missing).unwrap_err();
    assert!(e["msg"].as_str().unwrap().contains("no such plugin in CNI_PATH"), "{e}");
    w.assert_empty();
}

#[test]
fn a_pod_is_waited_for_and_one_that_is_refused_is_not_attached() {
    let w = World::new();
    w.node.pod("a");
    // The pod of before, under the same name.
    let conf = w.with_spec(&json!({"uid": "u0"}));
    let e = w.call("ADD", "a", &conf).unwrap_err();
    assert_eq!((e["code"].as_u64(), e["msg"].as_str().unwrap().contains("default/web")), (Some(11), true), "{e}");
    let why = "Pod/default/web metadata.annotations[seaway.io/mode]: \"x\": write one of routed";
    let e = w.call("ADD", "a", &w.with_spec(&json!({"uid": "u1", "refused": why}))).unwrap_err();
    assert_eq!((e["code"].as_u64(), e["msg"].as_str()), (Some(7), Some(why)), "{e}");
    w.assert_empty();
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            w.with_spec(&json!({"uid": "u1", "addresses": ["10.244.1.77"]}));
        });
        let r = w.call("ADD", "a", &w.with_spec(&json!({"uid": "u0"}))).unwrap();
        assert_eq!(r["ips"][0]["address"], "10.244.1.77/32", "{r}");
    });
    w.call("DEL", "a", &conf).unwrap();
    w.assert_empty();
}
