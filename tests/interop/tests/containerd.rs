//! containerd, through its container runtime interface and through `ctr`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use std::fs;
use std::path::PathBuf;

use interop::image::{self, BOX};
use interop::node::{ADDRESSES, CONFLIST, JOURNAL, wait};
use interop::tools::{CONTAINERD, CRICTL, debian};
use interop::{Node, page};
use seaway_tests_interop as interop;
use serde_json::{Value, json};

/// A node with a running containerd.
struct Runtime {
    node: Node,
    /// containerd and ctr.
    containerd: String,
    ctr: String,
    crictl: String,
    started: usize,
}

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Release {
    /// Debian's: libcni before 1.2, no STATUS.
    One,
    /// libcni from 1.2 on.
    Two,
}

impl Runtime {
    fn new(release: Release) -> Self {
        let _ = debian("runc", "runc");
        let text = |p: PathBuf| p.to_str().unwrap().to_owned();
        let (containerd, ctr, section) = match release {
            Release::One => (debian("containerd", "containerd"), debian("ctr", "containerd"), "containerd 1"),
            Release::Two => (CONTAINERD.program("containerd"), CONTAINERD.program("ctr"), "containerd 2"),
        };
        let crictl = text(CRICTL.program("crictl"));
        let node = Node::boot();
        let path = "/etc/containerd/config.toml";
        node.write(path, &page::file(section, path));
        node.write("/etc/crictl.yaml", &page::file("crictl", "/etc/crictl.yaml"));
        let mut r = Self { node, containerd: text(containerd), ctr: text(ctr), crictl, started: 0 };
        r.start();
        let archive = image::archive(r.node.shared(), &["localhost/seaway/pause:1"]);
        r.node.run(&[&r.ctr, "-n", "k8s.io", "image", "import", archive.to_str().unwrap()]);
        r
    }

    fn start(&mut self) {
        // The shim is found beside it.
        let dir = self.containerd.rsplit_once('/').unwrap().0;
        let path = format!("PATH={dir}:/usr/sbin:/usr/bin:/sbin:/bin");
        self.started = self.node.start("containerd", &["env", &path, &self.containerd]);
        wait("containerd answers", || self.node.attempt(&[&self.crictl, "info"]).is_ok());
    }

    fn conflist(&self) {
        self.node.write(CONFLIST, &page::file("The network", CONFLIST));
        wait("the network is ready", || self.network_ready());
    }

    fn crictl(&self, args: &[&str]) -> String {
        self.node.run(&[&[&*self.crictl], args].concat())
    }

    fn network_ready(&self) -> bool {
        let info: Value = serde_json::from_str(&self.crictl(&["info"])).unwrap();
        let conditions = info["status"]["conditions"].as_array().unwrap();
        let c = conditions.iter().find(|c| c["type"] == "NetworkReady").unwrap();
        c["status"].as_bool().unwrap()
    }

    /// Writes what crictl reads.
    fn json(&self, name: &str, v: &Value) -> String {
        let file = self.node.shared().join(name);
        fs::write(&file, v.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn pod_json(&self, name: &str, more: &Value) -> (String, Value) {
        let mut v = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0},
            "log_directory": "/var/log/pods",
            "linux": {"cgroup_parent": self.node.cgroup},
        });
        more.as_object().unwrap().iter().for_each(|(k, x)| v[k] = x.clone());
        (self.json(&format!("{name}.pod.json"), &v), v)
    }

    /// A pod with one container that serves HTTP.
    fn pod(&self, name: &str, more: &Value) -> Pod {
        let (file, _) = self.pod_json(name, more);
        let sandbox = self.crictl(&["runp", &file]).trim().to_owned();
        let container = self.json(
            &format!("{name}.json"),
            &json!({
                "metadata": {"name": "web"}, "image": {"image": BOX}, "log_path": format!("{name}.log"),
                "command": ["/bin/httpd", "-f", "-h", "/www"], "linux": {},
            }),
        );
        let container = self.crictl(&["create", &sandbox, &container, &file]).trim().to_owned();
        self.crictl(&["start", &container]);
        let v: Value = serde_json::from_str(&self.crictl(&["inspectp", &sandbox])).unwrap();
        let net = &v["status"]["network"];
        let more = net["additionalIps"].as_array().into_iter().flatten().map(|a| &a["ip"]);
        let ips = std::iter::once(&net["ip"]).chain(more).map(|a| a.as_str().unwrap().to_owned()).collect();
        Pod { sandbox, container, ips }
    }

    fn exec(&self, pod: &Pod, args: &[&str]) -> String {
        self.crictl(&[&["exec", &pod.container], args].concat())
    }

    fn remove(&self, pod: &Pod) {
        self.crictl(&["stopp", &pod.sandbox]);
        self.crictl(&["rmp", &pod.sandbox]);
    }
}

struct Pod {
    sandbox: String,
    container: String,
    ips: Vec<String>,
}

fn url(ip: &str) -> String {
    if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") }
}

fn pods_reach_each_other_and_the_node(release: Release) {
    let r = Runtime::new(release);
    assert!(!r.network_ready(), "without a configuration");
    r.conflist();
    let (a, b) = (r.pod("a", &json!({})), r.pod("b", &json!({})));
    assert_eq!((a.ips.len(), b.ips.len()), (2, 2));
    assert_eq!(r.node.records(JOURNAL).len(), 2);
    for (ip, node) in b.ips.iter().zip(ADDRESSES) {
        r.exec(&a, &["ping", "-c1", "-W2", ip]);
        r.exec(&a, &["ping", "-c1", "-W2", node]);
        assert_eq!(r.exec(&a, &["wget", "-qO-", &url(ip)]), "hello from a pod\n");
        assert_eq!(r.node.run(&["curl", "-sS", &url(ip)]), "hello from a pod\n");
        assert_eq!(r.node.run(&["nsenter", "--net=/run/netns/outside", "curl", "-sS", &url(ip)]), "hello from a pod\n");
    }
    r.remove(&a);
    r.remove(&b);
    r.node.assert_nothing_left();
}

#[test]
fn debians_containerd_runs_pods() {
    pods_reach_each_other_and_the_node(Release::One);
}

#[test]
fn containerd_2_runs_pods() {
    pods_reach_each_other_and_the_node(Release::Two);
}
