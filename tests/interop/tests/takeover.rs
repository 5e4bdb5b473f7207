//! The real kube-proxy is replaced by Seaway on a node that carries traffic, and gets the node back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use interop::node::{ADDRESSES, OUTSIDE, wait};
use interop::{Node, tools};
use kernel::Netns;
use seaway_tests_interop as interop;
use serde_json::{Value, json};

const API: &str = "/run/seaway/api.sock";
const CONFIG: &str = "/run/seaway/kubeconfig";
const VIP: &str = "10.96.0.10:80";
const NODE_PORT: u16 = 30080;
/// How long a connection may take on a busy machine; a lost packet is sent again within it.
const PATIENCE: Duration = Duration::from_secs(10);

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
                ip route add 10.244.1.{i} dev veth{i}
                ip -n pod{i} link set lo up; ip -n pod{i} link set eth0 up
                ip -n pod{i} address add 10.244.1.{i}/32 dev eth0
                ip -n pod{i} route add 169.254.1.1 dev eth0; ip -n pod{i} route add default via 169.254.1.1 dev eth0"
            ));
            Netns::open(n.path(&format!("/run/netns/pod{i}"))).unwrap()
        })
        .collect()
}

/// An API server with a node and Service default/web of `pod1` and `pod2`.
fn cluster(n: &mut Node) {
    // Nobody answers for Services' addresses, but a route there must be for the node's own packets to be made at all.
    n.sh(&format!("mkdir -p /run/seaway /var/lib/seaway; ip route add default via {}", OUTSIDE[0]));
    let store = ["--store", "/var/lib/seaway/api.redb", "--unix", API];
    let tls = ["--tls", "127.0.0.1:6443", "--kubeconfig", CONFIG];
    n.start("apiserver", &[&[seaway(), "apiserver"], &store[..], &tls[..]].concat());
    wait("the API server answers", || post(n, "GET", "/readyz", &json!({})).is_ok());
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "interop"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
    });
    post(n, "POST", "/api/v1/nodes", &node).unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": ADDRESSES[0]}]}});
    post(n, "PATCH", "/api/v1/nodes/interop/status", &status).unwrap();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalTrafficPolicy": "Local",
                 "healthCheckNodePort": 32000,
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]},
    });
    post(n, "POST", "/api/v1/namespaces/default/services", &service).unwrap();
    let ready =
        |i: u8| json!({"addresses": [format!("10.244.1.{i}")], "nodeName": "interop", "conditions": {"ready": true}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [ready(1), ready(2)],
    });
    post(n, "POST", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).unwrap();
}

/// Sends back what comes, until it is dropped.
struct Echo(Arc<AtomicBool>, JoinHandle<()>);

impl Echo {
    fn start(pod: &Netns) -> Self {
        let listener = pod.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut c, _)) => {
                        c.set_nonblocking(false).unwrap();
                        std::thread::spawn(move || {
                            let mut b = [0; 64];
                            while let Ok(n @ 1..) = c.read(&mut b) {
                                if c.write_all(&b[..n]).is_err() {
                                    break;
                                }
                            }
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self(stop, thread)
    }

    fn stop(self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.join().unwrap();
    }
}

fn open(from: &Netns, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let s = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
    s.set_read_timeout(Some(PATIENCE))?;
    Ok(s)
}

fn echo(s: &mut TcpStream) -> std::io::Result<()> {
    s.write_all(b"ping")?;
    let mut b = [0; 4];
    s.read_exact(&mut b)?;
    assert_eq!(&b, b"ping");
    Ok(())
}

/// Clients that connect all the time, and connections that stay open, from a pod and from the node, by cluster address
/// and node port.
struct Traffic {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(n: &Node, pod: &Netns) -> Self {
        let (stop, made, failures) = (Arc::default(), Arc::default(), Arc::default());
        let mut t = Self { stop, made, failures, threads: Vec::new() };
        let outside = Netns::open(n.path("/run/netns/outside")).unwrap();
        let node_port = format!("{}:{NODE_PORT}", ADDRESSES[0]);
        for (who, ns, to) in [
            ("pod", pod.clone(), VIP.to_owned()),
            ("node", n.ns.clone(), VIP.to_owned()),
            ("outside", outside, node_port),
        ] {
            let mut long = open(&ns, &to).unwrap();
            let (stop, made, failures) = (Arc::clone(&t.stop), Arc::clone(&t.made), Arc::clone(&t.failures));
            t.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let one = open(&ns, &to).and_then(|mut s| echo(&mut s));
                    let tell = |what: &str, e: std::io::Error| {
                        failures.lock().unwrap().push(format!("{what} from {who} to {to}: {e}"));
                    };
                    one.unwrap_or_else(|e| tell("a new connection", e));
                    echo(&mut long).unwrap_or_else(|e| tell("the old connection", e));
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(3));
                }
            }));
        }
        t
    }

    /// Every one has connected some times more.
    fn goes_on(&self, when: &str) {
        let before = self.made.load(Ordering::Relaxed);
        wait(&format!("traffic {when}"), || self.made.load(Ordering::Relaxed) > before + 60);
        assert_eq!(*self.failures.lock().unwrap(), [""; 0], "{when}");
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*self.failures.lock().unwrap(), [""; 0]);
    }
}

fn kube_proxy(n: &mut Node, mode: &str) -> usize {
    let program = tools::KUBE_PROXY.program("kube-proxy");
    let mode = format!("--proxy-mode={mode}");
    let fixed = ["--hostname-override=interop", "--cluster-cidr=10.244.0.0/16", "--kubeconfig=/run/seaway/kubeconfig"];
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

fn there_and_back(mode: &str) {
    let mut n = Node::boot();
    cluster(&mut n);
    let pods = pods(&n);
    let servers: Vec<Echo> = pods[..2].iter().map(Echo::start).collect();
    let mut proxy = kube_proxy(&mut n, mode);
    wait("kube-proxy serves", || open(&pods[2], VIP).and_then(|mut s| echo(&mut s)).is_ok());
    let node_port = format!("{}:{NODE_PORT}", ADDRESSES[0]);
    let outside = Netns::open(n.path("/run/netns/outside")).unwrap();
    wait("and the node port", || open(&outside, &node_port).and_then(|mut s| echo(&mut s)).is_ok());
    let traffic = Traffic::start(&n, &pods[2]);
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
    assert!(seen.contains("10.244.1.1:8080") && seen.contains("yes"), "{seen}");
    // Its health is where kube-proxy's was.
    let health = || n.attempt(&["curl", "-sSf", "http://127.0.0.1:10256/healthz"]);
    wait("its health is told", || health().is_ok_and(|t| t.contains("\"nodeEligible\":true")));

    // And load balancers get kube-proxy's answer.
    let asked = || n.attempt(&["curl", "-sSf", "-i", &format!("http://{}:32000/", ADDRESSES[0])]);
    let told = |t: String| t.contains("\"localEndpoints\": 2") && t.contains("X-Load-Balancing-Endpoint-Weight: 2");
    wait("the health check port answers", || asked().is_ok_and(told));

    proxy = kube_proxy(&mut n, mode);
    n.start("giveback", &[seaway(), "services", "takeover", "--give-back", "--wait", "90"]);
    wait("kube-proxy's rules are in", || n.read("/var/log/giveback.log").contains("Start the agent anew"));
    traffic.goes_on("with both again");
    n.kill(ours);
    ours = agent(&mut n, "off");
    wait("it was given back", || n.read("/var/log/giveback.log").contains("Services of this node are kube-proxy's."));
    let table = n.run(&["nft", "list", "table", "inet", "seaway"]);
    assert!(!table.contains("10.96.0.10") && !table.contains("30080"), "{table}");
    traffic.goes_on("with kube-proxy again");
    traffic.end();
    n.kill(ours);
    n.kill(proxy);
    servers.into_iter().for_each(Echo::stop);
}

#[test]
fn from_kube_proxy_in_nftables_mode_and_back() {
    there_and_back("nftables");
}

#[test]
fn from_kube_proxy_in_iptables_mode_and_back() {
    there_and_back("iptables");
}
