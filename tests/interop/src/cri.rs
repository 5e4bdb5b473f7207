//! containerd on a node, through the container runtime interface.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::image::{self, BOX};
use crate::node::{CONFLIST, wait};
use crate::tools::{CNITOOL, CONTAINERD, CRICTL, PLUGINS, debian};
use crate::{Node, page};

/// What the pods serve.
pub const HELLO: &str = "hello from a pod\n";

/// A node with a running containerd.
#[derive(Debug)]
pub struct Runtime {
    /// The node.
    pub node: Node,
    release: Release,
    containerd: String,
    /// The path of its client.
    pub ctr: String,
    /// The path of the client of the interface.
    pub crictl: String,
    /// Its place in [`Node::kill`].
    pub started: usize,
}

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Release {
    /// Debian's: libcni before 1.2, no STATUS.
    One,
    /// libcni from 1.2 on.
    Two,
}

impl Runtime {
    /// Runs with the page's configuration, and without a network.
    ///
    /// # Panics
    /// When a program is missing.
    #[must_use]
    pub fn new(release: Release) -> Self {
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
        if release == Release::Two {
            // The reference's, and in their place all that we have.
            node.install(&PLUGINS);
            node.install_ours(plugins::NAMES);
        } else {
            // What a pod sends is limited by ours alone: docs/runtimes.md.
            node.install_ours(&["bandwidth"]);
        }
        node.write("/etc/crictl.yaml", &page::file("crictl", "/etc/crictl.yaml"));
        let mut r = Self { node, release, containerd: text(containerd), ctr: text(ctr), crictl, started: 0 };
        r.begin();
        r
    }

    /// With an empty store.
    pub fn begin(&mut self) {
        self.start();
        for archive in [image::archive(self.node.shared()), image::pause(self.node.shared())] {
            self.node.run(&[&self.ctr, "-n", "k8s.io", "image", "import", archive.to_str().unwrap()]);
        }
    }

    /// With the store that it has.
    pub fn start(&mut self) {
        // The shim is found beside it.
        let dir = self.containerd.rsplit_once('/').unwrap().0;
        let path = format!("PATH={dir}:/usr/sbin:/usr/bin:/sbin:/bin");
        self.started = self.node.start("containerd", &["env", &path, &self.containerd]);
        wait("containerd answers", || self.node.attempt(&[&self.crictl, "info"]).is_ok());
    }

    /// Writes the page's configuration of the network; for the older release that with other plugins.
    pub fn network(&self) {
        let section = if self.release == Release::One { "With other plugins" } else { "The network" };
        self.node.write(CONFLIST, &page::file(section, CONFLIST));
        wait("the network is ready", || self.network_ready());
    }

    /// One call of its client; it must succeed.
    #[track_caller]
    pub fn crictl(&self, args: &[&str]) -> String {
        self.node.run(&[&[&*self.crictl], args].concat())
    }

    /// DEL of everything that libcni remembers, then GC with an empty list: nothing lives.
    pub fn gc(&self) {
        let cnitool = CNITOOL.program("cnitool");
        let whole = page::file("With other plugins", CONFLIST).replace(", \"1.1.0\"", "");
        for conf in [whole, page::file("The network", CONFLIST)] {
            self.node.write("/var/tmp/gc/10-seaway.conflist", &conf);
            let env = ["env", "CNI_PATH=/opt/cni/bin", "NETCONFPATH=/var/tmp/gc"];
            self.node.run(&[&env[..], &[cnitool.to_str().unwrap(), "gc", "seaway", "/none"]].concat());
        }
    }

    /// Everything on the node dies, and what containerd and libcni knew is lost with the pods' namespaces.
    pub fn lose_everything(&mut self) {
        self.node.kill_all();
        self.node.sh(
            "for m in $(awk '$5 ~ \"^/(run|var/lib)/containerd/\" {print $5}' /proc/self/mountinfo); do umount $m; done
         rm -rf /var/lib/containerd /run/containerd /var/lib/cni",
        );
        self.remove_namespaces();
    }

    /// The namespaces that containerd has left behind.
    pub fn remove_namespaces(&self) {
        self.node.sh("for n in /run/netns/cni-*; do [ ! -e $n ] || ip netns delete ${n##*/}; done");
    }

    /// Whether it says that its network is ready.
    #[must_use]
    pub fn network_ready(&self) -> bool {
        self.network_condition()["status"].as_bool().unwrap()
    }

    /// What it says of its network.
    #[must_use]
    pub fn network_condition(&self) -> Value {
        let info: Value = serde_json::from_str(&self.crictl(&["info"])).unwrap();
        let conditions = info["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|c| c["type"] == "NetworkReady").unwrap().clone()
    }

    /// Writes what crictl reads; gives the path.
    fn json(&self, name: &str, v: &Value) -> String {
        let file = self.node.shared().join(name);
        fs::write(&file, v.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Writes a pod's configuration; gives the path.
    #[must_use]
    pub fn pod_json(&self, name: &str, more: &Value) -> String {
        let mut v = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0},
            "log_directory": "/var/log/pods",
            "linux": {"cgroup_parent": self.node.cgroup},
        });
        more.as_object().unwrap().iter().for_each(|(k, x)| v[k] = x.clone());
        self.json(&format!("{name}.pod.json"), &v)
    }

    /// A pod with one container that serves HTTP.
    #[track_caller]
    pub fn pod(&self, name: &str, more: &Value) -> Pod {
        let file = self.pod_json(name, more);
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

    /// Runs a command in a pod's container.
    #[track_caller]
    pub fn exec(&self, pod: &Pod, args: &[&str]) -> String {
        self.crictl(&[&["exec", &pod.container], args].concat())
    }

    /// StopPodSandbox and RemovePodSandbox.
    #[track_caller]
    pub fn remove(&self, pod: &Pod) {
        self.crictl(&["stopp", &pod.sandbox]);
        self.crictl(&["rmp", &pod.sandbox]);
    }
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    /// The id of its sandbox.
    pub sandbox: String,
    /// The id of its container.
    pub container: String,
    /// Its addresses, the first one first.
    pub ips: Vec<String>,
}

/// The page at an address.
#[must_use]
pub fn url(ip: &str) -> String {
    if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") }
}
