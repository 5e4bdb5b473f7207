//! The real kube-proxy is replaced by Seaway on a node that carries traffic, and gets the node back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod traffic;

use std::net::{IpAddr, SocketAddr};

use interop::node::{ADDRESSES, OUTSIDE, wait};
use interop::{Node, tools};
use kernel::Netns;
use seaway_tests_interop as interop;
use serde_json::{Value, json};
use traffic::{PORT, Server, Traffic, once};
use types::{Family, Proto};

const API: &str = "/run/seaway/api.sock";
const CONFIG: &str = "/run/seaway/kubeconfig";
const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const POD_CIDRS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];
/// Both protocols are served at this one, and at these ports of the node.
const SERVED: [(Proto, u16, u16); 2] = [(Proto::Tcp, 80, 30080), (Proto::Udp, 80, 30053)];

/// Which families a cluster has, first the primary one.
type Families = &'static [Family];

/// What of a pair is of these families.
fn of<T: Copy>(pair: [T; 2], families: Families) -> Vec<T> {
    families.iter().map(|f| pair[usize::from(*f == Family::V6)]).collect()
}

fn seaway() -> &'static str {
    tools::seaway().to_str().unwrap()
}

fn post(n: &Node, method: &str, path: &str, body: &Value) -> Result<String, String> {
    let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
    let kind = format!("Content-Type: application/{kind}");
    let (url, body) = (format!("http://api{path}"), body.to_string());
    n.attempt(&["curl", "-sS", "--fail-with-body", "-X", method, "--unix-socket", API, "-H", &kind, "-d", &body, &url])
}

/// Pods `pod1`, `pod2` and `pod3` by hand, since who attaches pods does not matter here.
fn pods(n: &Node) -> Vec<Netns> {
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
fn cluster(n: &mut Node, families: Families) {
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

/// Who connects where: from a pod and from the node by cluster address, from outside by node port, with each protocol.
fn clients(n: &Node, pod: &Netns, families: Families) -> Vec<(&'static str, Netns, Proto, SocketAddr)> {
    let outside = Netns::open(n.path("/run/netns/outside")).unwrap();
    let at = |ip: &str, port: u16| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port);
    let mut out = Vec::new();
    for (vip, address) in of(CLUSTER_IPS, families).into_iter().zip(of(ADDRESSES, families)) {
        for (proto, port, node_port) in SERVED {
            out.push(("pod", pod.clone(), proto, at(vip, port)));
            out.push(("node", n.ns.clone(), proto, at(vip, port)));
            out.push(("outside", outside.clone(), proto, at(address, node_port)));
        }
    }
    out
}

fn kube_proxy(n: &mut Node, mode: &str, families: Families) -> usize {
    let program = tools::KUBE_PROXY.program("kube-proxy");
    let mode = format!("--proxy-mode={mode}");
    let cidrs = format!("--cluster-cidr={}", of(CLUSTER_CIDRS, families).join(","));
    let fixed = ["--hostname-override=interop", &cidrs, "--kubeconfig=/run/seaway/kubeconfig"];
    // The sizes of the connection table are the machine's, not a namespace's.
    let sizes =
        ["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"];
    n.start("kube-proxy", &[&[program.to_str().unwrap(), &mode], &fixed[..], &sizes[..]].concat())
}

fn agent(n: &mut Node, mode: &str) -> usize {
    let api = format!("unix:{API}");
    n.start("agent", &[seaway(), "agent", "--node", "interop", "--api", &api, "--service-proxy", mode])
}

/// Every rule that kube-proxy made.
fn theirs(n: &Node) -> String {
    let all = n.run(&["nft", "list", "ruleset"]) + &n.run(&["iptables-save"]) + &n.run(&["ip6tables-save"]);
    let of_kube_proxy = |l: &&str| {
        l.contains("kube-proxy")
            || ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-SEP-", "KUBE-FORWARD"].iter().any(|c| l.contains(c))
    };
    all.lines().filter(of_kube_proxy).fold(String::new(), |s, l| s + l + "\n")
}

fn there_and_back(mode: &str, families: Families) {
    let mut n = Node::boot();
    cluster(&mut n, families);
    let pods = pods(&n);
    let servers = [1, 2].map(|i| Server::start(&pods[usize::from(i) - 1], i));
    let mut proxy = kube_proxy(&mut n, mode, families);
    let clients = clients(&n, &pods[2], families);
    for (who, ns, proto, to) in &clients {
        wait(&format!("kube-proxy serves {proto} from {who} at {to}"), || once(ns, *proto, *to).is_ok());
    }
    let traffic = Traffic::start(clients);
    traffic.goes_on("with kube-proxy");

    // Two at once are refused.
    let api = format!("unix:{API}");
    let refused = n.attempt(&[seaway(), "agent", "--node", "interop", "--api", &api]).unwrap_err();
    assert!(refused.contains("kube-proxy is running on this node") && refused.contains("takeover"), "{refused}");
    assert!(n.run(&["nft", "list", "tables"]).lines().all(|l| !l.contains("seaway")), "nothing was touched");
    let early = n.attempt(&[seaway(), "services", "takeover", "--wait", "0"]).unwrap_err();
    assert!(early.contains("--service-proxy beside"), "{early}");

    let mut ours = agent(&mut n, "beside");
    n.start("takeover", &[seaway(), "services", "takeover", "--wait", "90"]);
    wait("Seaway's rules are in", || n.read("/var/log/takeover.log").contains("kube-proxy is running"));
    traffic.goes_on("with both");
    n.kill(proxy);
    wait("the takeover has ended", || n.read("/var/log/takeover.log").contains("Services of this node are Seaway's."));
    assert_eq!(theirs(&n), "");
    traffic.goes_on("with Seaway");
    let seen = n.run(&[seaway(), "services", "default/web"]);
    for pod in of(["10.244.1.1:8080", "[fd00:10:244:1::1]:8080"], families) {
        assert!(seen.contains(pod) && seen.contains("yes"), "{seen}");
    }
    // Its health is where kube-proxy's was.
    let health = || n.attempt(&["curl", "-sSf", "http://127.0.0.1:10256/healthz"]);
    wait("its health is told", || health().is_ok_and(|t| t.contains("\"nodeEligible\":true")));

    // And load balancers get kube-proxy's answer.
    for address in of(["192.0.2.1", "[2001:db8::1]"], families) {
        let asked = || n.attempt(&["curl", "-sSf", "-i", &format!("http://{address}:32000/")]);
        let told = |t: String| t.contains("\"localEndpoints\": 2") && t.contains("X-Load-Balancing-Endpoint-Weight: 2");
        wait("the health check port answers", || asked().is_ok_and(told));
    }

    proxy = kube_proxy(&mut n, mode, families);
    n.start("giveback", &[seaway(), "services", "takeover", "--give-back", "--wait", "90"]);
    wait("kube-proxy's rules are in", || n.read("/var/log/giveback.log").contains("Start the agent anew"));
    traffic.goes_on("with both again");
    n.kill(ours);
    ours = agent(&mut n, "off");
    wait("it was given back", || n.read("/var/log/giveback.log").contains("Services of this node are kube-proxy's."));
    let table = n.run(&["nft", "list", "table", "inet", "seaway"]);
    assert!(!CLUSTER_IPS.iter().any(|ip| table.contains(ip)) && !table.contains("30080"), "{table}");
    traffic.goes_on("with kube-proxy again");
    traffic.end();
    n.kill(ours);
    n.kill(proxy);
    drop(servers);
}

#[test]
fn from_kube_proxy_in_nftables_mode_and_back() {
    there_and_back("nftables", &[Family::V4]);
}

#[test]
fn from_kube_proxy_in_nftables_mode_and_back_where_all_is_ipv6() {
    there_and_back("nftables", &[Family::V6]);
}

#[test]
fn from_kube_proxy_in_nftables_mode_and_back_with_both_families() {
    there_and_back("nftables", &Family::BOTH);
}

#[test]
fn from_kube_proxy_in_iptables_mode_and_back_with_both_families() {
    there_and_back("iptables", &Family::BOTH);
}
