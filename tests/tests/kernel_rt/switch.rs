//! A switch of backend on a live cluster, node by node, loses no packet and breaks no connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use intent::Backend;
use intent::generate::pod_addr;
use kernel::Netns;
use types::Family;

use crate::world::{Cluster, DUAL, Node, Running, converge_all, world};

/// A TCP connection that carries small and large messages there and back until told to stop; large ones meet the
/// smaller MTU of the tunnel.
struct Talk {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    client: JoinHandle<Result<(), String>>,
    server: JoinHandle<()>,
}

impl Talk {
    fn start(client: &Netns, server: &Netns, to: IpAddr) -> Self {
        let listener = server.run(|| TcpListener::bind(SocketAddr::new(to, 0))).unwrap().unwrap();
        let at = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            let mut buf = vec![0; 65536];
            while let Ok(n @ 1..) = s.read(&mut buf) {
                if s.write_all(&buf[..n]).is_err() {
                    break;
                }
            }
        });
        let mut s = client.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap().unwrap();
        s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counter) = (stop.clone(), rounds.clone());
        let client = thread::spawn(move || {
            let mut back = vec![0; 20_000];
            for round in 0usize.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let size = if round % 4 == 0 { 20_000 } else { 100 };
                let data = vec![(round % 251) as u8; size];
                let said = |e: std::io::Error| format!("round {round}: {e} ({:?})", e.kind() == ErrorKind::WouldBlock);
                s.write_all(&data).map_err(said)?;
                s.read_exact(&mut back[..size]).map_err(said)?;
                if back[..size] != data {
                    return Err(format!("round {round}: other bytes came back"));
                }
                counter.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        Self { stop, rounds, client, server }
    }

    /// Waits until it has talked again, whatever happened before.
    fn goes_on(&self, what: &str) {
        let before = self.rounds.load(Ordering::Relaxed);
        for _ in 0..500 {
            if self.rounds.load(Ordering::Relaxed) > before + 8 {
                return;
            }
            assert!(!self.client.is_finished(), "the connection broke: {what}");
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the connection hangs: {what}");
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.client.join().unwrap().unwrap();
        self.server.join().unwrap();
    }
}

fn pings(nodes: &[Node]) -> Vec<(String, Running)> {
    let mut out = Vec::new();
    for f in Family::BOTH {
        for (a, b) in [(0u8, 1u8), (1, 0)] {
            let to = pod_addr(f, b, 2).to_string();
            let p = Running::start(&nodes[usize::from(a)].pod, "ping", &["-n", "-q", "-i0.01", "-W5", &to]);
            out.push((format!("node {a} to {to}"), p));
        }
    }
    out
}

#[test]
fn a_switch_loses_no_packet_and_breaks_no_connection() {
    let (_hub, mut nodes) = world(3, DUAL);
    let mut c = Cluster::new(3, DUAL, Backend::HostGw);
    converge_all(&mut nodes, &c);
    let talks: Vec<Talk> = Family::BOTH
        .into_iter()
        .flat_map(|f| [(0, 1, f), (1, 0, f)])
        .map(|(a, b, f): (u8, u8, Family)| {
            Talk::start(&nodes[usize::from(a)].pod, &nodes[usize::from(b)].pod, pod_addr(f, b, 2))
        })
        .collect();
    let pings = pings(&nodes);
    let settle = |what: &str| talks.iter().for_each(|t| t.goes_on(what));
    settle("before");
    // Twice there and back, in both orders of nodes, with a state between in which nodes differ.
    for round in 0..2 {
        c.device = true;
        converge_all(&mut nodes, &c);
        settle("all have the device");
        for backend in [Backend::Vxlan, Backend::HostGw] {
            for n in 0..3 {
                let n = if round == 0 { n } else { 2 - n };
                c.sends[n] = backend;
                nodes[n].converge(&c);
                settle(&format!("node {n} sends with {backend}"));
            }
        }
        c.device = false;
        converge_all(&mut nodes, &c);
        settle("no device is left");
    }
    for (who, p) in pings {
        let said = p.finish("INT");
        assert!(said.contains(" 0% packet loss"), "{who}: {said}");
        let sent: u32 =
            said.split(" packets transmitted").next().unwrap().split_whitespace().last().unwrap().parse().unwrap();
        assert!(sent > 50, "{who}: {said}");
    }
    for t in talks {
        t.finish();
    }
}
