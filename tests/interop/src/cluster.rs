//! A cluster of one node that needs no runtime: our API server, pods by hand, and a Service of TCP and UDP.

use kernel::Netns;
use serde_json::{Value, json};
use types::{Family, Proto};

use crate::node::{ADDRESSES, Node, OUTSIDE, wait};
use crate::tools;
use crate::traffic::PORT;

/// Where the API server listens on the node.
pub const API: &str = "/run/seaway/api.sock";
/// What others than us reach it by.
pub const CONFIG: &str = "/run/seaway/kubeconfig";
/// Of Service default/web, by family.
pub const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// Of all pods.
pub const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
/// Of the node's pods.
pub const POD_CIDRS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];
/// Where Service default/web is served: protocol, port of its addresses, port of the node.
pub const SERVED: [(Proto, u16, u16); 2] = [(Proto::Tcp, 80, 30080), (Proto::Udp, 80, 30053)];

/// Which families a cluster has, first the primary one.
pub type Families = &'static [Family];

/// What of a pair is of these families.
#[must_use]
pub fn of<T: Copy>(pair: [T; 2], families: Families) -> Vec<T> {
    families.iter().map(|f| pair[usize::from(*f == Family::V6)]).collect()
}

/// Our program.
#[must_use]
pub fn seaway() -> &'static str {
    tools::seaway().to_str().unwrap()
}

/// A request to the API server; `Err` holds its answer.
///
/// # Errors
/// When it refuses.
pub fn post(n: &Node, method: &str, path: &str, body: &Value) -> Result<String, String> {
    let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
    let kind = format!("Content-Type: application/{kind}");
    let (url, body) = (format!("http://api{path}"), body.to_string());
    n.attempt(&["curl", "-sS", "--fail-with-body", "-X", method, "--unix-socket", API, "-H", &kind, "-d", &body, &url])
}

/// Pods `pod1`, `pod2` and `pod3` by hand, since who attaches pods does not matter here.
#[must_use]
pub fn pods(n: &Node) -> Vec<Netns> {
    (1..=3)
        .map(|i| {
            n.sh(&format!(
                "ip netns add pod{i}; ip link add veth{i} type veth peer name eth0 netns pod{i}
                ip link set veth{i} up; ip address add 169.254.1.1/32 dev veth{i} scope link
                ip address add fe80::1/64 dev veth{i} nodad
                ip route add 10.244.1.{i} dev veth{i}; ip route add fd00:10:244:1::{i} dev veth{i}
                ip -n pod{i} link set lo up; ip -n pod{i} link set eth0 up
                ip -n pod{i} address add 10.244.1.{i}/32 dev eth0
                ip -n pod{i} address add fd00:10:244:1::{i}/128 dev eth0 nodad
                ip -n pod{i} route add 169.254.1.1 dev eth0; ip -n pod{i} route add default via 169.254.1.1 dev eth0
                ip -n pod{i} route add default via fe80::1 dev eth0"
            ));
            Netns::open(n.path(&format!("/run/netns/pod{i}"))).unwrap()
        })
        .collect()
}

/// An API server with a node and Service default/web of `pod1` and `pod2`.
pub fn cluster(n: &mut Node, families: Families) {
    // Nobody answers for Services' addresses, but a route there must be for the node's own packets to be made at all.
    n.sh(&format!(
        "mkdir -p /run/seaway /var/lib/seaway; ip route add default via {}; ip route add default via {}",
        OUTSIDE[0], OUTSIDE[1]
    ));
    let store = ["--store", "/var/lib/seaway/api.redb", "--unix", API];
    let tls = ["--tls", "127.0.0.1:6443", "--kubeconfig", CONFIG];
    n.start("apiserver", &[&[seaway(), "apiserver"], &store[..], &tls[..]].concat());
    wait("the API server answers", || post(n, "GET", "/readyz", &json!({})).is_ok());
    let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway"},
        "data": {"clusterCIDR": of(CLUSTER_CIDRS, families).join(",")}});
    post(n, "POST", "/api/v1/namespaces/kube-system/configmaps", &settings).unwrap();
    let cidrs = of(POD_CIDRS, families);
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "interop"},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
    });
    post(n, "POST", "/api/v1/nodes", &node).unwrap();
    let addresses = of(ADDRESSES, families).into_iter().map(|a| json!({"type": "InternalIP", "address": a}));
    let status = json!({"status": {"addresses": addresses.collect::<Value>()}});
    post(n, "PATCH", "/api/v1/nodes/interop/status", &status).unwrap();
    let ips = of(CLUSTER_IPS, families);
    let ports = SERVED.iter().map(|(proto, port, node)| {
        json!({"name": format!("p{node}"), "protocol": proto, "port": port, "targetPort": PORT, "nodePort": node})
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families,
                 "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
                 "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "ports": ports.collect::<Value>()},
    });
    post(n, "POST", "/api/v1/namespaces/default/services", &service).unwrap();
    for f in families {
        let pod = |i: u8| if *f == Family::V4 { format!("10.244.1.{i}") } else { format!("fd00:10:244:1::{i}") };
        let ready = |i: u8| json!({"addresses": [pod(i)], "nodeName": "interop", "conditions": {"ready": true}});
        let ports =
            SERVED.iter().map(|(proto, _, node)| json!({"name": format!("p{node}"), "port": PORT, "protocol": proto}));
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("web-{f}").to_lowercase(), "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": f, "ports": ports.collect::<Value>(), "endpoints": [ready(1), ready(2)],
        });
        post(n, "POST", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).unwrap();
    }
}

/// Starts the agent with this `--service-proxy`; its place in [`Node::kill`].
pub fn agent(n: &mut Node, mode: &str) -> usize {
    let api = format!("unix:{API}");
    n.start("agent", &[seaway(), "agent", "--node", "interop", "--api", &api, "--service-proxy", mode])
}
