//! containerd, through its container runtime interface and through `ctr`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use std::process::Stdio;
use std::time::Duration;

use interop::cri::{HELLO, Release, Runtime, url};
use interop::image::{self, BOX};
use interop::node::{ADDRESSES, CONFLIST, JOURNAL, wait};
use interop::page;
use seaway_tests_interop as interop;
use serde_json::json;

fn pods_reach_each_other_and_the_node(release: Release) {
    let r = Runtime::new(release);
    assert!(!r.network_ready(), "without a configuration");
    r.network();
    let (a, b) = (r.pod("a", &json!({})), r.pod("b", &json!({})));
    assert_eq!((a.ips.len(), b.ips.len()), (2, 2));
    assert_eq!(r.node.records(JOURNAL).len(), 2);
    for (ip, node) in b.ips.iter().zip(ADDRESSES) {
        r.exec(&a, &["ping", "-c1", "-W2", ip]);
        r.exec(&a, &["ping", "-c1", "-W2", node]);
        assert_eq!(r.exec(&a, &["wget", "-qO-", &url(ip)]), HELLO);
        assert_eq!(r.node.run(&["curl", "-sS", &url(ip)]), HELLO);
        assert_eq!(r.node.outside(&["curl", "-sS", &url(ip)]), HELLO);
    }
    r.remove(&a);
    r.remove(&b);
    r.node.assert_nothing_left();
}

/// Without the container runtime interface.
fn ctr_run(release: Release) {
    let r = Runtime::new(release);
    r.network();
    let archive = image::archive(r.node.shared());
    r.node.run(&[&r.ctr, "image", "import", archive.to_str().unwrap()]);
    let parent = format!("{}/ctr", r.node.cgroup);
    let run = [&*r.ctr, "run", "--rm", "--cni", "--cgroup", &parent, "--cap-add", "CAP_NET_RAW", BOX];
    for node in ADDRESSES {
        let said = r.node.run(&[&run[..], &["one", "/bin/ping", "-c1", "-W2", node]].concat());
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    let links = r.node.run(&[&run[..], &["two", "/bin/ip", "address"]].concat());
    assert!(links.contains("eth0@") && links.contains("10.244.1."), "{links}");
    r.node.assert_nothing_left();
}

#[test]
fn debians_ctr_runs_with_cni() {
    ctr_run(Release::One);
}

#[test]
fn ctr_2_runs_with_cni() {
    ctr_run(Release::Two);
}

#[test]
fn debians_containerd_runs_pods() {
    pods_reach_each_other_and_the_node(Release::One);
}

#[test]
fn containerd_2_runs_pods() {
    pods_reach_each_other_and_the_node(Release::Two);
}

/// What the container runtime interface passes on of a pod's configuration.
fn host_ports_and_bandwidth_reach_the_plugins(release: Release) {
    let r = Runtime::new(release);
    r.network();
    let a = r.pod(
        "a",
        &json!({
            "port_mappings": [
                {"protocol": 0, "container_port": 80, "host_port": 8080},
                {"protocol": 0, "container_port": 80, "host_port": 8081, "host_ip": ADDRESSES[0]},
            ],
            "annotations": {
                "kubernetes.io/ingress-bandwidth": "10M",
                "kubernetes.io/egress-bandwidth": "20M",
            },
        }),
    );
    for node in ADDRESSES {
        let at = url(node).trim_end_matches('/').to_owned();
        assert_eq!(r.node.outside(&["curl", "-sS", "--max-time", "5", &format!("{at}:8080/")]), HELLO);
    }
    assert_eq!(r.node.outside(&["curl", "-sS", "--max-time", "5", &format!("http://{}:8081/", ADDRESSES[0])]), HELLO);
    let link = &r.node.pod_links()[0];
    let qdiscs = r.node.run(&["tc", "qdisc", "show"]);
    let rate =
        |dev: &str| qdiscs.lines().find(|l| l.contains(&format!("dev {dev} "))).is_some_and(|l| l.contains("tbf"));
    assert!(rate(link), "to the pod\n{qdiscs}");
    assert!(qdiscs.contains("rate 10Mbit") && qdiscs.contains("rate 20Mbit"), "{qdiscs}");
    r.exec(&a, &["ping", "-c1", "-W2", ADDRESSES[0]]);
    r.remove(&a);
    r.node.assert_nothing_left();
}

/// containerd dies in the middle of many calls; what it finds when it is back, it removes.
fn killed_in_the_middle(release: Release) {
    let mut r = Runtime::new(release);
    r.network();
    let before = r.pod("before", &json!({}));
    for round in 0..3 {
        let runs: Vec<_> = (0..4)
            .map(|i| {
                let file = r.pod_json(&format!("pod-{round}-{i}"), &json!({}));
                let mut c = r.node.command(&["timeout", "-k1", "20", &r.crictl, "runp", &file]);
                c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        std::thread::sleep(Duration::from_millis(60 + 70 * round));
        r.node.kill(r.started);
        for mut c in runs {
            c.wait().unwrap();
        }
        // The datapath does not depend on it.
        r.node.run(&["ping", "-nq", "-c1", "-W2", &before.ips[0]]);
        r.start();
        r.exec(&before, &["ping", "-c1", "-W2", ADDRESSES[0]]);
    }
    // As the kubelet does with sandboxes that it does not know.
    wait("every sandbox is removed", || {
        let _ = r.node.attempt(&[&r.crictl, "rmp", "-f", "-a"]);
        r.crictl(&["pods", "-q"]).trim().is_empty()
    });
    // A pod whose network was being made when containerd died may not be in its store: no DEL comes for it.
    r.gc();
    r.remove_namespaces();
    r.node.assert_nothing_left();
}

/// Everything on the node dies, and what the runtime knew of its pods is lost: no DEL will come.
fn lost_dels(release: Release) {
    let mut r = Runtime::new(release);
    r.network();
    r.pod("a", &json!({}));
    r.pod("b", &json!({}));
    r.lose_everything();
    assert_eq!(r.node.records(JOURNAL).len(), 2, "nobody has told the plugin");
    r.gc();
    r.node.assert_nothing_left();
    r.begin();
    let c = r.pod("c", &json!({}));
    r.exec(&c, &["ping", "-c1", "-W2", ADDRESSES[0]]);
    r.remove(&c);
    r.node.assert_nothing_left();
}

/// The namespaces are gone; what containerd and libcni keep on disk is not.
fn reboot(release: Release) {
    let mut r = Runtime::new(release);
    r.network();
    let pods = [
        r.pod("a", &json!({"port_mappings": [{"protocol": 0, "container_port": 80, "host_port": 8080}]})),
        r.pod("b", &json!({})),
    ];
    r.node.reboot();
    r.start();
    wait("the network is ready", || r.network_ready());
    let c = r.pod("c", &json!({}));
    r.exec(&c, &["ping", "-c1", "-W2", ADDRESSES[0]]);
    for p in &pods {
        r.remove(p);
    }
    assert_eq!(r.node.records(JOURNAL).len(), 1, "a DEL of before takes nothing from who came after");
    r.exec(&c, &["ping", "-c1", "-W2", ADDRESSES[1]]);
    r.remove(&c);
    r.node.assert_nothing_left();
}

#[test]
fn debians_containerd_after_a_reboot() {
    reboot(Release::One);
}

#[test]
fn containerd_2_after_a_reboot() {
    reboot(Release::Two);
}

/// As a kubelet that comes back makes all its pods at once.
#[test]
fn many_pods_at_once() {
    const PODS: usize = 24;
    let r = Runtime::new(Release::Two);
    r.network();
    let all = |verb: &str, what: &[String]| {
        let start = |w: &String| {
            let mut c = r.node.command(&["timeout", "-k1", "60", &r.crictl, verb, w]);
            c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let running: Vec<_> = what.iter().map(start).collect();
        let done = running.into_iter().map(|c| c.wait_with_output().unwrap());
        let text = |o: std::process::Output| {
            assert!(o.status.success(), "{verb}: {}", String::from_utf8_lossy(&o.stderr));
            String::from_utf8(o.stdout).unwrap().trim().to_owned()
        };
        done.map(text).collect::<Vec<_>>()
    };
    let files: Vec<String> = (0..PODS).map(|i| r.pod_json(&format!("pod-{i}"), &json!({}))).collect();
    let sandboxes = all("runp", &files);
    let mut addresses = r.node.allocated();
    for a in &addresses {
        r.node.run(&["ping", "-nq", "-c1", "-W2", &a.to_string()]);
    }
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 2 * PODS, "no address twice");
    all("stopp", &sandboxes);
    all("rmp", &sandboxes);
    r.node.assert_nothing_left();
}

#[test]
fn debians_containerd_passes_on_ports_and_limits() {
    host_ports_and_bandwidth_reach_the_plugins(Release::One);
}

#[test]
fn containerd_2_passes_on_ports_and_limits() {
    host_ports_and_bandwidth_reach_the_plugins(Release::Two);
}

#[test]
fn debians_containerd_is_killed_in_the_middle() {
    killed_in_the_middle(Release::One);
}

#[test]
fn containerd_2_is_killed_in_the_middle() {
    killed_in_the_middle(Release::Two);
}

#[test]
fn debians_containerd_loses_its_dels() {
    lost_dels(Release::One);
}

#[test]
fn containerd_2_loses_its_dels() {
    lost_dels(Release::Two);
}

/// From libcni 1.2 on the runtime asks STATUS; code 50 makes the node not ready.
#[test]
fn a_node_is_ready_while_status_says_so() {
    let r = Runtime::new(Release::Two);
    r.network();
    // One address, and a pod that has it.
    let full = page::file("The network", CONFLIST).replace("10.244.1.0/24", "10.244.1.0/30");
    r.node.write(CONFLIST, &full);
    let a = r.pod("a", &json!({}));
    wait("the node is not ready", || !r.network_ready());
    let says = r.network_condition();
    assert!(says["message"].as_str().unwrap().contains("10.244.1.0/30 has no free address"), "{says}");
    r.remove(&a);
    wait("the node is ready again", || r.network_ready());
    std::fs::remove_file(r.node.path(CONFLIST)).unwrap();
    wait("the node is not ready without a configuration", || !r.network_ready());
}
