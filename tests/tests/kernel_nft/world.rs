//! One node as a router between three pods and the world, each a network namespace without a name: it ends with the
//! last handle, so nothing is left behind however a test ends.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use intent::generate::{cluster_ip, node_addr, node_name, pod_addr, pod_cidr, world};
use intent::{Endpoint, NodeIntent, Peer, ServiceKey, ServicePort};
use kernel::{Ct, Netns, Nftables, Rt, Sysctls};
use kernel_api::rt::{NewLink, NewLinkKind, RtRequest, SetLink};
use kernel_api::{Rtnetlink, Sysctl};
use plan::{Caps, Dataplane, Kernel, Plan, converge};
use plane_nft::{Image, NftKernel, NftPlane};
use rustix::net::{AddressFamily, SocketType, sockopt};
use types::{Cidr, Family, FamilySet, ObjectName, Proto};

pub const DUAL: FamilySet = FamilySet { v4: true, v6: true };
/// The pods of this node, by the last number of their addresses.
pub const PODS: [u8; 3] = [2, 3, 4];

/// Runs a shell line in a namespace; its standard output.
pub fn sh(ns: &Netns, line: &str) -> String {
    let out = ns.run(|| Command::new("sh").args(["-ec", line]).output()).unwrap().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{line}: {err}");
    String::from_utf8(out.stdout).unwrap()
}

/// Loads a ruleset with nft, as a person does. A semicolon may end a line.
pub fn nft(ns: &Netns, text: &str) {
    let text = text.replace("; ", "\n").replace("{ chain", "{\nchain");
    let mut child = ns
        .run(|| Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn())
        .unwrap()
        .expect("nft is missing: install the Debian package nftables");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}\n{text}", String::from_utf8_lossy(&out.stderr));
}

fn netns() -> Netns {
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables"), ("ping", "iputils-ping")] {
        let there = std::env::var("PATH").unwrap().split(':').any(|d| std::path::Path::new(d).join(tool).exists());
        assert!(there, "{tool} is missing: install the Debian package {package}");
    }
    let ns = Netns::new().unwrap();
    let mut s = Sysctls::open_in(&ns);
    for which in ["all", "default"] {
        s.set(&format!("net/ipv6/conf/{which}/accept_dad"), "0").unwrap();
    }
    Rt::open_in(&ns).unwrap().run(&[RtRequest::LinkSet(SetLink::up("lo".parse().unwrap()))]).unwrap();
    ns
}

fn cable(node: &Netns, port: &str, ns: &Netns) {
    let (eth0, port) = ("eth0".parse().unwrap(), port.parse().unwrap());
    let kind = NewLinkKind::Veth { peer: eth0, peer_netns: Some(ns.fd()), peer_mac: None };
    let link = NewLink { up: true, ..NewLink::new(port, kind) };
    Rt::open_in(node).unwrap().run(&[RtRequest::LinkAdd(link)]).unwrap();
    Rt::open_in(ns).unwrap().run(&[RtRequest::LinkSet(SetLink::up("eth0".parse().unwrap()))]).unwrap();
}

/// The node, its pods and the world.
pub struct World {
    pub node: Netns,
    pub pods: Vec<Netns>,
    /// Node 1, a pod of it and a machine of the world, all in one namespace behind the uplink.
    pub out: Netns,
    pub kernel: NftKernel<Nftables, Ct>,
}

impl World {
    pub fn new() -> Self {
        let (node, out) = (netns(), netns());
        cable(&node, "up", &out);
        let mut pods = Vec::new();
        for (n, slot) in PODS.into_iter().enumerate() {
            let pod = netns();
            cable(&node, &format!("pod{n}"), &pod);
            for (f, six, gw) in [(Family::V4, "-4", "169.254.1.1"), (Family::V6, "-6", "fe80::1")] {
                let (a, bits) = (pod_addr(f, 0, slot), f.bits());
                sh(&node, &format!("ip addr add {gw}/{bits} dev pod{n} scope link; ip {six} route add {a} dev pod{n}"));
                let via = format!("ip addr add {a}/{bits} dev eth0; ip {six} route add {gw} dev eth0");
                sh(&pod, &format!("{via}; ip {six} route add default via {gw} dev eth0 onlink"));
            }
            pods.push(pod);
        }
        let mut s = Sysctls::open_in(&node);
        s.set("net/ipv4/ip_forward", "1").unwrap();
        s.set("net/ipv6/conf/all/forwarding", "1").unwrap();
        for (f, six, len) in [(Family::V4, "-4", 24), (Family::V6, "-6", 64)] {
            let (here, there) = (node_addr(f, 0), node_addr(f, 1));
            sh(&node, &format!("ip addr add {here}/{len} dev up"));
            sh(&out, &format!("ip addr add {there}/{len} dev eth0"));
            for a in [world(f, 1), pod_addr(f, 1, 10)] {
                sh(&out, &format!("ip addr add {a}/{} dev lo", f.bits()));
            }
            sh(&node, &format!("ip {six} route add default via {there}"));
            sh(&out, &format!("ip {six} route add default via {here}"));
        }
        let kernel = NftKernel::new(Nftables::open_in(&node).unwrap(), Ct::open_in(&node).unwrap());
        Self { node, pods, out, kernel }
    }

    /// One pass; then the kernel is so and there is nothing left to do.
    pub fn converge(&mut self, i: &NodeIntent) -> Image {
        let want = NftPlane.compile(i, &Caps::default()).image;
        converge(&NftPlane, &mut self.kernel, &want, None).unwrap();
        let have = self.kernel.observe().unwrap();
        assert_eq!(Plan { batches: NftPlane.plan(&want, &have) }.to_string(), "");
        want
    }
}

/// Node 0 of a cluster with one peer, and no Service.
pub fn cluster(families: FamilySet) -> NodeIntent {
    let mut i = NodeIntent::empty(node_name(0));
    i.families = families;
    for f in families.iter() {
        i.addresses.insert(node_addr(f, 0));
        i.node_port_addresses.insert(node_addr(f, 0));
        i.pod_cidrs.push(pod_cidr(f, 0));
        i.masqueraded.insert(pod_cidr(f, 0));
        let whole: Cidr = if f == Family::V4 { "10.244.0.0/16" } else { "fd00:10:244::/48" }.parse().unwrap();
        i.cluster_cidrs.insert(whole);
    }
    let addresses = families.iter().map(|f| node_addr(f, 1)).collect();
    i.peers.insert(node_name(1), Peer { addresses, routes: vec![] });
    i
}

/// A Service with no endpoints yet, at cluster address `n`.
pub fn service(families: FamilySet, n: u8, port: u16) -> ServicePort {
    ServicePort {
        cluster_ips: families.iter().map(|f| cluster_ip(f, n)).collect(),
        port,
        families,
        ..ServicePort::default()
    }
}

pub fn key(name: &str, proto: Proto) -> ServiceKey {
    ServiceKey { service: ObjectName::new("default", name), port: "p".into(), proto }
}

/// These pods at this port, of both families.
pub fn to_pods(svc: &mut ServicePort, slots: &[u8], port: u16) {
    svc.endpoints = slots
        .iter()
        .flat_map(|s| Family::BOTH.map(|f| Endpoint { addr: pod_addr(f, 0, *s), port }))
        .filter(|e| svc.families.has(Family::of(e.addr)))
        .collect();
    svc.local_endpoints = svc.endpoints.clone();
}

/// Service `n` of many, with endpoints all over the cluster.
pub fn add_service(i: &mut NodeIntent, n: u16, endpoints: u8) {
    let mut s = service(i.families, 1, 80);
    let [hi, lo] = n.to_be_bytes();
    s.cluster_ips = [IpAddr::from([10, 100, hi, lo]), format!("fd00:10:100::{n:x}").parse().unwrap()].into();
    s.node_port = Some(30000 + n % 2768);
    for e in 0..endpoints {
        for f in i.families.iter() {
            s.endpoints.insert(Endpoint { addr: pod_addr(f, e, lo), port: 8080 });
        }
    }
    i.services.insert(key(&format!("svc{n}"), if n.is_multiple_of(10) { Proto::Udp } else { Proto::Tcp }), s.into());
}

/// A server that answers everybody with its name and the client's address, until it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// TCP and UDP on this port, both families.
    pub fn start(ns: &Netns, name: &str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for any in ["0.0.0.0", "::"] {
            let (tcp, udp) = ns
                .run(|| {
                    let fam = if any == "::" { AddressFamily::INET6 } else { AddressFamily::INET };
                    let at = SocketAddr::new(any.parse().unwrap(), port);
                    let sock = |t| {
                        let s = rustix::net::socket(fam, t, None).unwrap();
                        if any == "::" {
                            sockopt::set_ipv6_v6only(&s, true).unwrap();
                        }
                        sockopt::set_socket_reuseaddr(&s, true).unwrap();
                        rustix::net::bind(&s, &at).unwrap();
                        s
                    };
                    let tcp = sock(SocketType::STREAM);
                    rustix::net::listen(&tcp, 128).unwrap();
                    (TcpListener::from(tcp), UdpSocket::from(sock(SocketType::DGRAM)))
                })
                .unwrap();
            tcp.set_nonblocking(true).unwrap();
            udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let (s, n) = (stop.clone(), name.to_owned());
            threads.push(std::thread::spawn(move || {
                while !s.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((mut c, from)) => drop(c.write_all(format!("{n} {}", from.ip()).as_bytes())),
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            }));
            let (s, n) = (stop.clone(), name.to_owned());
            threads.push(std::thread::spawn(move || {
                let mut buf = [0; 64];
                while !s.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = udp.recv_from(&mut buf) {
                        let _ = udp.send_to(format!("{n} {}", from.ip()).as_bytes(), from);
                    }
                }
            }));
        }
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// Who answered, and which address they saw.
pub type Answer = (String, IpAddr);

fn answer(text: &str) -> Answer {
    let (name, ip) = text.split_once(' ').unwrap_or_else(|| panic!("an odd answer: {text:?}"));
    (name.into(), ip.parse().unwrap())
}

/// Opens a TCP connection from `src` (or any) and asks who is there.
pub fn tcp(ns: &Netns, src: Option<IpAddr>, to: SocketAddr) -> io::Result<Answer> {
    let mut s = ns.run(|| connect(src, to))??;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    Ok(answer(&text))
}

pub fn connect(src: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let fam = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let s = rustix::net::socket(fam, SocketType::STREAM, None)?;
    // Well under the second after which a SYN would be repeated.
    sockopt::set_socket_timeout(&s, sockopt::Timeout::Send, Some(Duration::from_millis(800)))?;
    if let Some(src) = src {
        rustix::net::bind(&s, &SocketAddr::new(src, 0))?;
    }
    rustix::net::connect(&s, &to)?;
    let s = TcpStream::from(s);
    s.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(s)
}

/// A UDP socket that speaks with one peer.
pub fn udp_socket(ns: &Netns, src: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    udp_socket_at(ns, src, 0, to)
}

/// The same with a source port; 0 is any.
pub fn udp_socket_at(ns: &Netns, src: Option<IpAddr>, port: u16, to: SocketAddr) -> io::Result<UdpSocket> {
    let s = ns.run(|| {
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let s = UdpSocket::bind(SocketAddr::new(src.unwrap_or(any), port))?;
        s.connect(to)?;
        io::Result::Ok(s)
    })??;
    s.set_read_timeout(Some(Duration::from_millis(800)))?;
    Ok(s)
}

/// Asks over UDP who is there.
pub fn udp(ns: &Netns, src: Option<IpAddr>, to: SocketAddr) -> io::Result<Answer> {
    udp_ask(&udp_socket(ns, src, to)?)
}

pub fn udp_ask(s: &UdpSocket) -> io::Result<Answer> {
    s.send(b"who?")?;
    let mut buf = [0; 64];
    let n = s.recv(&mut buf)?;
    Ok(answer(&String::from_utf8_lossy(&buf[..n])))
}

pub fn at(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr, port)
}
