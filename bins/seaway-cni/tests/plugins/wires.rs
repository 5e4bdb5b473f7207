//! Containers wired by hand, and talk between them: for plugins that are chained after others.
#![allow(dead_code)] // each test file uses a part

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kernel::Netns;
use serde_json::{Value, json};

use crate::common::Node;

/// How long an answer is waited for where none is expected, too.
const PATIENCE: Duration = Duration::from_millis(400);

/// A container by hand, as the bridge plugin would: on cni0, 10.88.0.0/24 and fd88::/64, port `vN`. Gives the result.
pub fn bridged(node: &Node, name: &str, n: u8) -> Value {
    on_bridge(node, name, n, ("cni0", 88))
}

/// The same on another bridge: cni9, 10.89.0.0/24 and fd89::/64.
pub fn beyond(node: &Node, name: &str, n: u8) -> Value {
    on_bridge(node, name, n, ("cni9", 89))
}

/// The bridge of that name is made when it is not there; `net` is in both its subnets.
fn on_bridge(node: &Node, name: &str, n: u8, (bridge, net): (&str, u8)) -> Value {
    let path = node.pod(name);
    let path = path.to_str().unwrap();
    if !node.sh("ip -o link").contains(&format!(" {bridge}:")) {
        node.sh(&format!(
            "ip link add {bridge} address 02:00:00:00:00:{net:02} type bridge; ip link set {bridge} up
             ip address add 10.{net}.0.1/24 dev {bridge}; ip address add fd{net}::1/64 dev {bridge} nodad"
        ));
    }
    node.sh(&format!(
        "ip link add v{n} type veth peer name e{n}; ip link set v{n} master {bridge} up
         bridge link set dev v{n} hairpin on; ip link set e{n} netns {path}"
    ));
    node.sh_pod(
        name,
        &format!(
            "ip link set lo up; ip link set e{n} name eth0; ip link set eth0 up
             ip address add 10.{net}.0.{n}/24 dev eth0; ip address add fd{net}::{n}/64 dev eth0 nodad
             ip route add default via 10.{net}.0.1; ip -6 route add default via fd{net}::1
             for a in 10.{net}.0.1 fd{net}::1; do n=0; until ping -c 1 -W 0.2 -q $a > /dev/null; do
             n=$((n+1)); [ $n -lt 30 ]; done; done"
        ),
    );
    json!({"cniVersion": "1.0.0",
        "interfaces": [{"name": bridge}, {"name": format!("v{n}")}, {"name": "eth0", "sandbox": path}],
        "ips": [{"interface": 2, "address": format!("10.{net}.0.{n}/24"), "gateway": format!("10.{net}.0.1")},
                {"interface": 2, "address": format!("fd{net}::{n}/64"), "gateway": format!("fd{net}::1")}],
        "dns": {}})
}

/// A machine beyond the uplink: 192.0.2.9 and 2001:db8::9, which knows no way to containers.
pub fn world(node: &Node) {
    let path = node.pod("world");
    node.sh(&format!("ip link set up1 netns {}", path.to_str().unwrap()));
    node.sh_pod(
        "world",
        "ip link set lo up; ip link set up1 up; ip address add 192.0.2.9/24 dev up1
         ip address add 2001:db8::9/64 dev up1 nodad",
    );
}

/// The namespace of a container, or the node's.
pub fn ns(node: &Node, name: &str) -> Netns {
    if name == "node" { node.ns.clone() } else { Netns::open(node.dir.path().join("netns").join(name)).unwrap() }
}

/// Answers on ports with its name and whom it sees, until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn start(node: &Node, name: &str, tcp: &[u16], udp: &[u16]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for port in tcp {
            let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
            let l = ns(node, name).run(|| TcpListener::bind(any)).unwrap().unwrap();
            l.set_nonblocking(true).unwrap();
            let (stop, name) = (stop.clone(), name.to_owned());
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match l.accept() {
                        Ok((mut s, from)) => {
                            let _ = s.write_all(format!("{name} saw {}", from.ip().to_canonical()).as_bytes());
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            }));
        }
        for port in udp {
            let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
            let s = ns(node, name).run(|| UdpSocket::bind(any)).unwrap().unwrap();
            s.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            let (stop, name) = (stop.clone(), name.to_owned());
            threads.push(std::thread::spawn(move || {
                let mut b = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = s.recv_from(&mut b) {
                        let _ = s.send_to(format!("{name} saw {}", from.ip().to_canonical()).as_bytes(), from);
                    }
                }
            }));
        }
        Self { stop, threads }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// What `from` gets of an [`Echo`] at an address: its answer, or "refused" or "nothing".
pub fn tcp(node: &Node, from: &str, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let talk = || -> std::io::Result<String> {
        let mut s = TcpStream::connect_timeout(&to, PATIENCE)?;
        s.set_read_timeout(Some(PATIENCE))?;
        let mut out = String::new();
        s.read_to_string(&mut out)?;
        Ok(out)
    };
    said(ns(node, from).run(talk).unwrap())
}

/// The same over UDP, from a port of the kernel's choice or the given one.
pub fn udp(node: &Node, from: &str, to: &str, port: u16) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let talk = || -> std::io::Result<String> {
        let s = UdpSocket::bind((any, port))?;
        s.set_read_timeout(Some(PATIENCE))?;
        s.connect(to)?;
        s.send(b"?")?;
        let mut b = [0; 128];
        let n = s.recv(&mut b)?;
        Ok(String::from_utf8_lossy(&b[..n]).into_owned())
    };
    said(ns(node, from).run(talk).unwrap())
}

fn said(r: std::io::Result<String>) -> String {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, TimedOut, WouldBlock};
    match r {
        Ok(s) => s,
        Err(e) => match e.kind() {
            ConnectionRefused | ConnectionReset => "refused".into(),
            TimedOut | WouldBlock => "nothing".into(),
            _ => format!("{e}"),
        },
    }
}
