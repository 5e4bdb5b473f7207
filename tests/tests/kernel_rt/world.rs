//! Nodes on one bridge, pods behind them, each a network namespace without a name: it ends with the last handle, so
//! nothing is left behind however a test ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fabric::{Fabric, FabricKernel, Image, Joined};
use intent::generate::{node_addr, node_name, pod_addr, pod_cidr, vtep_mac};
use intent::{Attachment, AttachmentKey, Backend, NodeIntent, Peer, PeerRoute, Reach, Vxlan};
use kernel::{Netns, Rt, Sysctls};
use kernel_api::rt::{Address, BridgeParams, NewLink, NewLinkKind, RtRequest, SetLink};
use kernel_api::{Rtnetlink, Sysctl};
use plan::{Caps, Compiled, Converged, Dataplane, HostLink, Kernel, KernelError, Uplink, converge};
use types::{Cidr, Family, FamilySet, IfName, OwnedName};

pub const V4: FamilySet = FamilySet { v4: true, v6: false };
pub const V6: FamilySet = FamilySet { v4: false, v6: true };
pub const DUAL: FamilySet = FamilySet { v4: true, v6: true };

pub type Kern = FabricKernel<Joined<Rt, Sysctls>>;

pub fn name(s: &str) -> IfName {
    s.parse().unwrap()
}

/// What a cluster is, as far as intents depend on it.
#[derive(Clone)]
pub struct Cluster {
    pub families: FamilySet,
    pub underlay: Family,
    /// What each node sends with.
    pub sends: Vec<Backend>,
    /// Whether all nodes have the VXLAN device, whatever they send with.
    pub device: bool,
    /// Node addresses that are not the usual ones.
    pub moved: BTreeMap<u8, Vec<IpAddr>>,
}

impl Cluster {
    pub fn new(nodes: usize, families: FamilySet, backend: Backend) -> Self {
        let underlay = if families.v4 { Family::V4 } else { Family::V6 };
        Self { families, underlay, sends: vec![backend; nodes], device: false, moved: BTreeMap::new() }
    }

    pub fn addr(&self, family: Family, n: u8) -> IpAddr {
        let moved = self.moved.get(&n).and_then(|a| a.iter().copied().find(|a| Family::of(*a) == family));
        moved.unwrap_or_else(|| node_addr(family, n))
    }

    /// The intent of node `n` with its one pod.
    pub fn intent(&self, n: u8) -> NodeIntent {
        let mut i = NodeIntent::empty(node_name(n));
        i.families = self.families;
        i.backend = self.sends[usize::from(n)];
        i.addresses = Family::BOTH.into_iter().map(|f| self.addr(f, n)).collect();
        i.pod_cidrs = self.families.iter().map(|f| pod_cidr(f, n)).collect();
        if self.device || self.sends.contains(&Backend::Vxlan) {
            i.vxlan = Some(Vxlan {
                vni: 1,
                port: 8472,
                mac: vtep_mac(n),
                local: self.addr(self.underlay, n),
                addresses: i.pod_cidrs.iter().map(Cidr::addr).collect(),
            });
        }
        for p in (0..self.sends.len() as u8).filter(|p| *p != n) {
            let reach = |f: Family| match i.backend {
                Backend::HostGw => Reach::Direct { next_hop: self.addr(f, p) },
                Backend::Vxlan => Reach::Vxlan {
                    remote: self.addr(self.underlay, p),
                    mac: vtep_mac(p),
                    gateway: pod_cidr(f, p).addr(),
                },
            };
            let routes = self.families.iter().map(|f| PeerRoute { cidr: pod_cidr(f, p), reach: reach(f) }).collect();
            let addresses = Family::BOTH.into_iter().map(|f| self.addr(f, p)).collect();
            i.peers.insert(node_name(p), Peer { addresses, routes });
        }
        let key = AttachmentKey { container_id: format!("pod-of-{n}").into(), ifname: "eth0".into() };
        let addresses = self.families.iter().map(|f| pod_addr(f, n, 2)).collect();
        i.attachments.insert(key, Attachment { pod: None, link: pod_link(n), addresses, host_ports: vec![] });
        i
    }
}

pub fn pod_link(n: u8) -> OwnedName {
    OwnedName::for_container(&format!("pod-of-{n}"), "eth0")
}

/// A node with one pod.
pub struct Node {
    pub n: u8,
    pub ns: Netns,
    pub pod: Netns,
    pub kernel: Kern,
}

/// Runs a shell line in a namespace; its standard output.
pub fn sh(ns: &Netns, line: &str) -> String {
    let out = ns.run(|| Command::new("sh").args(["-ec", line]).output()).unwrap().unwrap();
    assert!(
        out.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&out.stderr),
        String::from_utf8_lossy(&out.stdout)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Sorted lines of a shell line's output, without trailing spaces.
pub fn rows(ns: &Netns, line: &str) -> Vec<String> {
    let mut rows: Vec<String> = sh(ns, line).lines().map(|l| l.trim_end().to_owned()).collect();
    rows.sort();
    rows
}

/// A namespace with loopback up, and addresses that need not wait for duplicate detection.
pub fn netns() -> Netns {
    // iproute2 and ping are what a person checks with; so do the tests.
    for (tool, package) in [
        ("ip", "iproute2"),
        ("bridge", "iproute2"),
        ("ping", "iputils-ping"),
        ("tcpdump", "tcpdump"),
        ("sysctl", "procps"),
    ] {
        let there = std::env::var("PATH").unwrap().split(':').any(|d| std::path::Path::new(d).join(tool).exists());
        assert!(there, "{tool} is missing: install the Debian package {package}");
    }
    let ns = Netns::new().unwrap();
    let mut s = Sysctls::open_in(&ns);
    for which in ["all", "default"] {
        s.set(&format!("net/ipv6/conf/{which}/accept_dad"), "0").unwrap();
    }
    Rt::open_in(&ns).unwrap().run(&[RtRequest::LinkSet(SetLink::up(name("lo")))]).unwrap();
    ns
}

pub fn bridge(ns: &Netns, bridge: &str) -> u32 {
    let mut rt = Rt::open_in(ns).unwrap();
    let (name, kind) = (name(bridge), NewLinkKind::Bridge(BridgeParams::default()));
    rt.run(&[RtRequest::LinkAdd(NewLink { up: true, ..NewLink::new(name.clone(), kind) })]).unwrap();
    rt.link(&name).unwrap().unwrap().index
}

/// A cable from a port of `hub`'s bridge to `eth0` of `ns`.
pub fn cable(hub: &Netns, master: Option<u32>, port: &IfName, ns: &Netns, peer: &str) {
    let kind = NewLinkKind::Veth { peer: name(peer), peer_netns: Some(ns.fd()), peer_mac: None };
    let link = NewLink { master, up: true, ..NewLink::new(port.clone(), kind) };
    Rt::open_in(hub).unwrap().run(&[RtRequest::LinkAdd(link)]).unwrap();
    Rt::open_in(ns).unwrap().run(&[RtRequest::LinkSet(SetLink::up(name(peer)))]).unwrap();
}

pub fn address(ns: &Netns, link: &str, addr: IpAddr, prefix_len: u8) {
    let a = Address::new(name(link), addr, prefix_len);
    Rt::open_in(ns).unwrap().run(&[RtRequest::AddressAdd(a)]).unwrap();
}

pub fn world(nodes: u8, families: FamilySet) -> (Netns, Vec<Node>) {
    let hub = netns();
    let master = bridge(&hub, "br0");
    let nodes = (0..nodes)
        .map(|n| {
            let ns = netns();
            cable(&hub, Some(master), &name(&format!("n{n}")), &ns, "eth0");
            address(&ns, "eth0", node_addr(Family::V4, n), 24);
            address(&ns, "eth0", node_addr(Family::V6, n), 64);
            // As distributions set it: strict, so that a switch meets it.
            let mut s = Sysctls::open_in(&ns);
            s.set("net/ipv4/conf/all/rp_filter", "1").unwrap();
            let pod = netns();
            wire_pod(n, &ns, &pod, families);
            let rt = Rt::open_in(&ns).unwrap();
            let caps = caps(&ns);
            let kernel = FabricKernel::new(Joined { rt, sysctls: s }, &caps);
            Node { n, ns, pod, kernel }
        })
        .collect();
    (hub, nodes)
}

/// What the CNI plugin does in mode `routed`, but for the host's route, which is the fabric's to heal.
pub fn wire_pod(n: u8, node: &Netns, pod: &Netns, families: FamilySet) {
    let link = pod_link(n);
    cable(node, None, link.name(), pod, "eth0");
    let host = Rt::open_in(node).unwrap().link(link.name()).unwrap().unwrap().mac.unwrap();
    for f in families.iter() {
        let a = pod_addr(f, n, 2);
        address(pod, "eth0", a, f.bits());
        let gw = if f == Family::V4 { "169.254.1.1" } else { "fe80::1" };
        let six = if f == Family::V4 { "" } else { "-6" };
        sh(
            pod,
            &format!(
                "ip {six} route add {gw} dev eth0; ip {six} neigh replace {gw} lladdr {host} dev eth0 nud permanent; \
             ip {six} route add default via {gw} dev eth0"
            ),
        );
    }
}

/// The machine as the agent sees it.
pub fn caps(ns: &Netns) -> Caps {
    let mut rt = Rt::open_in(ns).unwrap();
    let mut links: BTreeMap<IfName, HostLink> = BTreeMap::new();
    for l in rt.links().unwrap().iter().filter(|l| l.name.as_str() == "eth0") {
        links.insert(l.name.clone(), HostLink { mtu: l.mtu, addresses: vec![] });
    }
    for a in rt.addresses().unwrap() {
        if let Some(l) = links.get_mut(&a.link) {
            l.addresses.push((a.addr, a.prefix_len));
        }
    }
    Caps { uplink: Some(Uplink { name: name("eth0"), mtu: 1500 }), links, missing: BTreeSet::new() }
}

impl Node {
    pub fn compile(&self, c: &Cluster) -> Compiled<Image> {
        Fabric.compile(&c.intent(self.n), &caps(&self.ns))
    }

    pub fn pass(&mut self, want: &Image) -> Result<Converged, KernelError> {
        converge(&Fabric, &mut self.kernel, want, None)
    }

    /// One pass to what `c` says; then the kernel is so, and there is nothing left to do.
    pub fn converge(&mut self, c: &Cluster) -> Image {
        let compiled = self.compile(c);
        assert_eq!(compiled.refused, vec![], "node {}", self.n);
        let want = compiled.image;
        self.pass(&want).unwrap_or_else(|e| panic!("node {}: {e}", self.n));
        self.check(&want);
        want
    }

    pub fn check(&mut self, want: &Image) {
        let have = self.kernel.observe().unwrap();
        let left: Vec<String> = Fabric.plan(want, &have).iter().flatten().map(ToString::to_string).collect();
        assert!(left.is_empty(), "node {}: {left:#?}", self.n);
        assert_eq!(have.restricted_to(want), *want, "node {}", self.n);
    }
}

pub fn converge_all(nodes: &mut [Node], c: &Cluster) {
    for n in nodes {
        n.converge(c);
    }
}

/// Echo requests every 10 ms; all are answered.
pub fn ping(ns: &Netns, to: IpAddr) {
    let out = ns
        .run(|| Command::new("ping").args(["-n", "-c3", "-i0.01", "-W2", &to.to_string()]).output())
        .unwrap()
        .unwrap();
    assert!(out.status.success(), "ping {to}: {}", String::from_utf8_lossy(&out.stdout));
}

/// One TCP connection with 256 KiB there and back: more than a window, in packets of full size.
pub fn tcp(client: &Netns, server: &Netns, to: IpAddr) {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(to, 0))).unwrap().unwrap();
    let at = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut s, from) = listener.accept().unwrap();
        let mut all = Vec::new();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        s.read_to_end(&mut all).unwrap();
        s.write_all(&all).unwrap();
        from
    });
    let data: Vec<u8> = (0..256 * 1024u32).map(|n| (n % 251) as u8).collect();
    let mut s = client.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap().unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    s.write_all(&data).unwrap();
    s.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    s.read_to_end(&mut back).unwrap();
    assert!(back == data, "the echo differs: {} of {} bytes", back.len(), data.len());
    let from = echo.join().unwrap();
    assert_eq!(from.ip(), s.local_addr().unwrap().ip(), "the server sees the client's own address");
}

/// Ping and TCP between the pods of all pairs of nodes, and from node to pod, of each family.
pub fn all_pairs(nodes: &[Node], families: FamilySet) {
    for f in families.iter() {
        for a in nodes {
            for b in nodes.iter().filter(|b| b.n != a.n) {
                let to = pod_addr(f, b.n, 2);
                ping(&a.pod, to);
                ping(&a.ns, to);
                tcp(&a.pod, &b.pod, to);
            }
        }
    }
}

/// A process that ends with its guard.
pub struct Running(pub Child);

impl Running {
    pub fn start(ns: &Netns, program: &str, args: &[&str]) -> Self {
        let mut c = Command::new(program);
        c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(ns.run(|| c.spawn()).unwrap().unwrap())
    }

    /// Asks it to end and gives what it printed.
    pub fn finish(mut self, signal: &str) -> String {
        Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status().unwrap();
        self.output()
    }

    /// Waits for its end and gives what it printed.
    pub fn output(&mut self) -> String {
        let mut out = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.wait().unwrap();
        out
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
