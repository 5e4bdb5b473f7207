//! A whole node: our API server and agent, containerd, pods.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use interop::cri::{HELLO, Release, Runtime, url};
use interop::node::{ADDRESSES, CONFLIST, JOURNAL, OUTSIDE, wait, wait_for};
use interop::{Node, page, tools};
use seaway_tests_interop as interop;
use serde_json::{Value, json};

const API: &str = "/run/seaway/api.sock";

fn seaway() -> &'static str {
    tools::seaway().to_str().unwrap()
}

/// An API server with one node in it.
fn api(n: &mut Node) {
    n.sh("mkdir -p /run/seaway /var/lib/seaway");
    n.start("apiserver", &[seaway(), "apiserver", "--store", "/var/lib/seaway/api.redb", "--unix", API]);
    wait("the API server answers", || post(n, "GET", "/readyz", "").is_ok());
    let addresses: Vec<_> = ADDRESSES.map(|a| json!({"type": "InternalIP", "address": a})).into();
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "interop"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    });
    post(n, "POST", "/api/v1/nodes", &node.to_string()).unwrap();
    let status = json!({"status": {"addresses": addresses}}).to_string();
    post(n, "PATCH", "/api/v1/nodes/interop/status", &status).unwrap();
}

fn post(n: &Node, method: &str, path: &str, body: &str) -> Result<String, String> {
    let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
    let kind = format!("Content-Type: application/{kind}");
    let url = format!("http://api{path}");
    n.attempt(&["curl", "-sS", "--fail-with-body", "-X", method, "--unix-socket", API, "-H", &kind, "-d", body, &url])
}

/// A Pod of the API, and what the kubelet would have the runtime make of it. Of a static pod the API has a mirror, whose
/// UID is another.
fn declared(r: &Runtime, name: &str, is_static: bool) -> Value {
    let of_the_file = format!("static-{name}");
    let annotations = if is_static { json!({"kubernetes.io/config.mirror": of_the_file}) } else { json!({}) };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {"nodeName": "interop", "containers": [{"name": "web", "image": "web"}]},
    });
    let made = post(&r.node, "POST", "/api/v1/namespaces/default/pods", &pod.to_string()).unwrap();
    let made: Value = serde_json::from_str(&made).unwrap();
    let uid = if is_static { json!(of_the_file) } else { made["metadata"]["uid"].clone() };
    json!({"metadata": {"name": name, "namespace": "default", "uid": uid, "attempt": 0}})
}

fn agent(n: &mut Node) -> usize {
    let api = format!("unix:{API}");
    n.start("agent", &[seaway(), "agent", "--node", "interop", "--api", &api, "--listen", "127.0.0.1:9642"])
}

#[test]
fn the_agent_makes_a_node_ready_and_its_pods_outlive_it() {
    let mut r = Runtime::new(Release::Two);
    api(&mut r.node);
    assert!(!r.network_ready(), "before the agent is there");
    let started = agent(&mut r.node);
    wait("the agent has written the configuration", || r.network_ready());
    // What the page says is in what it writes; the MTU is that of this node's uplink.
    let [written, said]: [Value; 2] =
        [r.node.read(CONFLIST), page::file("The network", CONFLIST)].map(|t| serde_json::from_str(&t).unwrap());
    for field in ["cniVersion", "cniVersions", "name"] {
        assert_eq!(written[field], said[field]);
    }
    for (field, value) in said["plugins"][0].as_object().unwrap().iter().filter(|(f, _)| *f != "mtu") {
        assert_eq!(written["plugins"][0][field], *value, "{field}");
    }

    r.node.sh("ip -n outside route delete 10.0.0.0/8; ip -n outside route delete fd00::/8");
    let mut with_port = declared(&r, "b", true);
    with_port["port_mappings"] = json!([{"protocol": 0, "container_port": 80, "host_port": 8080}]);
    let (a, b) = (r.pod("a", &declared(&r, "a", false)), r.pod("b", &with_port));
    for ((ip, node), outside) in b.ips.iter().zip(ADDRESSES).zip(OUTSIDE) {
        assert_eq!(r.exec(&a, &["wget", "-qO-", &url(ip)]), HELLO);
        r.exec(&a, &["ping", "-c1", "-W2", node]);
        let port = url(node).trim_end_matches('/').to_owned() + ":8080/";
        assert_eq!(r.node.outside(&["curl", "-sS", "--max-time", "5", &port]), HELLO);
        // To where nobody knows of pods: with the node's address.
        r.exec(&a, &["ping", "-c1", "-W2", outside]);
    }
    // A pod that the agent has heard of can be made while it is away.
    let c = declared(&r, "c", false);
    wait("the agent has heard of it", || r.node.sh("ls /run/seaway/ipam/pods").contains("default_c"));
    r.node.kill(started);
    let c = r.pod("c", &c);
    assert_eq!(r.exec(&a, &["wget", "-qO-", &url(&c.ips[1])]), HELLO, "without the agent");
    r.remove(&c);
    agent(&mut r.node);

    // Everything dies with all that the runtime knew; the agent alone is started again.
    r.lose_everything();
    assert_eq!(r.node.records(JOURNAL).len(), 2, "nobody has told the plugin");
    r.node.start("apiserver", &[seaway(), "apiserver", "--store", "/var/lib/seaway/api.redb", "--unix", API]);
    agent(&mut r.node);
    // It looks every 10 s, and leaves a DEL 20 s to come.
    wait_for("the agent has found the pods gone", 60, || r.node.records(JOURNAL).is_empty());
    wait_for("their links are gone", 5, || r.node.pod_links().is_empty());
}
