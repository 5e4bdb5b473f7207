//! The real kube-proxy is replaced by Seaway on a node that carries traffic, and gets the node back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use std::net::{IpAddr, SocketAddr};

use interop::cluster::{API, CLUSTER_CIDRS, CLUSTER_IPS, Families, SERVED, agent, cluster, of, pods, seaway};
use interop::node::{ADDRESSES, wait};
use interop::traffic::{Server, Traffic, once};
use interop::{Node, tools};
use kernel::Netns;
use seaway_tests_interop as interop;
use types::{Family, Proto};

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
