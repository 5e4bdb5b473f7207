//! podman, with its CNI backend.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use interop::cri::{HELLO, url};
use interop::image::{self, BOX};
use interop::node::{ADDRESSES, CONFLIST, JOURNAL};
use interop::tools::debian;
use interop::{Node, page};
use seaway_tests_interop as interop;
use serde_json::Value;

const CONTAINERS_CONF: &str = "/etc/containers/containers.conf";

struct Podman {
    node: Node,
}

impl Podman {
    /// With our plugin alone, or the reference's after it.
    fn new(ours: bool) -> Self {
        for (program, package) in [("podman", "podman"), ("conmon", "conmon"), ("runc", "runc")] {
            let _ = debian(program, package);
        }
        let node = Node::boot();
        node.write(CONTAINERS_CONF, &page::file("podman", CONTAINERS_CONF));
        node.write(CONFLIST, &page::file(if ours { "The network" } else { "With other plugins" }, CONFLIST));
        let archive = image::archive(node.shared());
        let p = Self { node };
        p.podman(&["load", "-i", archive.to_str().unwrap()]);
        p
    }

    #[track_caller]
    fn podman(&self, args: &[&str]) -> String {
        self.node.run(&[&["podman"], args].concat())
    }

    /// A container that serves HTTP; gives its addresses.
    fn web(&self, name: &str, more: &[&str]) -> Vec<String> {
        let parent = format!("--cgroup-parent={}", self.node.cgroup);
        let run = ["run", "-d", "--network=seaway", "--name", name, &parent, "--cap-add=NET_RAW"];
        self.podman(&[&run, more, &[BOX, "/bin/httpd", "-f", "-h", "/www"]].concat());
        let v: Value = serde_json::from_str(&self.podman(&["inspect", name])).unwrap();
        let net = &v[0]["NetworkSettings"]["Networks"]["seaway"];
        ["IPAddress", "GlobalIPv6Address"].map(|k| net[k].as_str().unwrap().to_owned()).into()
    }
}

#[test]
fn containers_reach_each_other_and_the_host() {
    let p = Podman::new(true);
    assert!(p.podman(&["network", "ls"]).contains("seaway"));
    let (a, b) = (p.web("a", &[]), p.web("b", &[]));
    assert_eq!(p.node.records(JOURNAL).len(), 2);
    assert_ne!(a, b);
    for (ip, node) in b.iter().zip(ADDRESSES) {
        p.podman(&["exec", "a", "ping", "-c1", "-W2", ip]);
        p.podman(&["exec", "a", "ping", "-c1", "-W2", node]);
        assert_eq!(p.podman(&["exec", "a", "wget", "-qO-", &url(ip)]), HELLO);
        assert_eq!(p.node.run(&["curl", "-sS", &url(ip)]), HELLO);
    }
    // A stopped container has no address; started again it has one.
    p.podman(&["stop", "-t0", "a"]);
    assert_eq!(p.node.records(JOURNAL).len(), 1);
    p.podman(&["start", "a"]);
    p.podman(&["exec", "a", "ping", "-c1", "-W2", &b[0]]);
    p.podman(&["rm", "-f", "-t0", "a", "b"]);
    p.node.assert_nothing_left();
}

#[test]
fn published_ports_and_fixed_addresses() {
    published(true);
}

#[test]
fn published_ports_by_the_reference_plugin() {
    published(false);
}

fn published(ours: bool) {
    let p = Podman::new(ours);
    // With other plugins ours is not asked for a hardware address.
    let mac = if ours { &["--mac-address", "02:00:00:00:00:77"][..] } else { &[] };
    let a = p.web("a", &[&["-p", "8080:80", "--ip", "10.244.1.77"], mac].concat());
    assert_eq!(a[0], "10.244.1.77");
    if ours {
        assert_eq!(p.podman(&["exec", "a", "cat", "/sys/class/net/eth0/address"]).trim(), "02:00:00:00:00:77");
    }
    for node in ADDRESSES {
        let (at, body) = (url(node).trim_end_matches('/').to_owned() + ":8080/", HELLO);
        assert_eq!(p.node.outside(&["curl", "-sS", "--max-time", "5", &at]), body);
        assert_eq!(p.node.run(&["curl", "-sS", "--max-time", "5", &at]), body);
    }
    p.podman(&["rm", "-f", "-t0", "a"]);
    p.node.assert_nothing_left();
}

#[test]
fn a_container_killed_with_its_monitor_leaves_nothing_once_it_is_removed() {
    let p = Podman::new(true);
    p.web("a", &["-p", "8080:80"]);
    p.node.sh("kill -9 $(cat /run/containers/storage/overlay-containers/*/userdata/conmon.pid) $(cat /run/containers/storage/overlay-containers/*/userdata/pidfile)");
    p.podman(&["rm", "-f", "-t0", "a"]);
    p.node.assert_nothing_left();
}
