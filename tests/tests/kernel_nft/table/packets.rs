//! A row of the table with real packets.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use intent::L4;
use kernel::{Ct, Netns};
use types::{Family, Proto};

use super::{addr, l4_of};
use crate::sctp;
use crate::world::{Answer, Server, World, at, sh, tcp, udp};

/// Ports that endpoints of the table listen at.
const PORTS: [u16; 2] = [8080, 8081];

/// A server at each place where an endpoint may be, named `p0:8080`. `far`, `world` and `node1` are one machine here.
pub fn servers(w: &World) -> Vec<Server> {
    for (f, len) in [(Family::V4, 24), (Family::V6, 64)] {
        sh(&w.node, &format!("ip addr add {}/{len} dev up", addr("node2", f)));
    }
    let all = places(w).into_iter();
    all.flat_map(|(name, ns)| PORTS.map(|p| Server::start(ns, &format!("{name}:{p}"), p))).collect()
}

fn places(w: &World) -> [(&str, &Netns); 5] {
    [("p0", &w.pods[0]), ("p1", &w.pods[1]), ("p2", &w.pods[2]), ("out", &w.out), ("node", &w.node)]
}

fn netns<'a>(w: &'a World, from: &str) -> &'a Netns {
    match from {
        "p0" => &w.pods[0],
        "p1" => &w.pods[1],
        "p2" => &w.pods[2],
        "node" => &w.node,
        _ => &w.out,
    }
}

/// The name under which the server of an endpoint answers.
fn server(endpoint: &str) -> String {
    let (name, port) = endpoint.split_once(':').unwrap();
    let name = if ["far", "world", "node1"].contains(&name) { "out" } else { name };
    format!("{name}:{port}")
}

/// The same again while nobody answers, for 20 seconds: on a busy machine a packet may be late.
pub fn patient(once: impl Fn() -> io::Result<Answer>) -> io::Result<Answer> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match once() {
            Err(e) if !refused(&e) && Instant::now() < until => {}
            done => return done,
        }
    }
}

/// Told at once. A process of the node itself that sends what has no connection is told so by the kernel as EPERM.
fn refused(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied)
}

/// Asks until every endpoint that is wanted has answered, and that none else does; and which address they see.
pub fn ask(w: &World, from: &str, to: &str, f: Family, want: &str, sticky: bool) -> Result<(), String> {
    let ns = netns(w, from);
    let (name, l4) = l4_of(to);
    let L4::Ports { proto, dst, .. } = l4 else { return ping(ns, addr(name, f)) };
    let to = at(addr(name, f), dst);
    // What the node and the pods send comes from their own address anyway.
    let src = Some(addr(from, f)).filter(|_| std::ptr::eq(ns, &w.out));
    let once = || match proto {
        Proto::Tcp => tcp(ns, src, to),
        Proto::Udp => udp(ns, src, to),
        Proto::Sctp => sctp::reached(ns, src, to, &places(w)),
    };
    let (how, rest) = want.split_once(' ').unwrap();
    // The node's own address is what it would take, too.
    let sees = |seen: IpAddr| from == "node" || (seen == addr(from, f)) == (rest == "keep");
    match how {
        "any" | "local" => {
            let list: Vec<(&str, &str)> = rest.split(", ").map(|e| e.split_once(' ').unwrap()).collect();
            let wanted: BTreeSet<String> = list.iter().map(|(e, _)| server(e)).collect();
            let mut met = BTreeSet::new();
            for _ in 0..120 {
                if sticky {
                    sh(&w.node, "nft flush map inet seaway affinity4; nft flush map inet seaway affinity6");
                }
                let (who, seen): Answer = patient(once).map_err(|e| format!("{e}, having met {met:?}"))?;
                let snats: BTreeSet<&str> = list.iter().filter(|(e, _)| server(e) == who).map(|(_, s)| *s).collect();
                let kept = seen == addr(from, f);
                match snats.len() {
                    0 => return Err(format!("{who} answered")),
                    // The node's own address is what it would take, too. Of two endpoints on one machine, either.
                    1 if from != "node" && kept != snats.contains("keep") => {
                        return Err(format!("{who} saw {seen}"));
                    }
                    _ => {}
                }
                met.insert(who);
                if met == wanted {
                    return Ok(());
                }
            }
            Err(format!("only {met:?} answered"))
        }
        "reject" => match patient(once) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused || from == "node" && refused(&e) => Ok(()),
            other => Err(format!("{other:?}")),
        },
        "drop" => match once() {
            Err(e) if !matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable) => Ok(()),
            other => Err(format!("{other:?}")),
        },
        // Nobody's Service: an endpoint answers as it is, the node has nothing there.
        _ if ["p0", "world", "node1"].contains(&name) => match patient(once) {
            Ok((who, seen)) if who == server(&format!("{name}:{dst}")) && sees(seen) => Ok(()),
            other => Err(format!("{other:?}")),
        },
        _ if ["node", "node2"].contains(&name) => match once() {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Ok((who, seen)) if who == format!("node:{dst}") && sees(seen) => Ok(()),
            // Errors of ICMPv6 are told so many a second, no more.
            Err(_) if proto == Proto::Udp => Ok(()),
            other => Err(format!("{other:?}")),
        },
        // To addresses that nothing in this world has.
        _ => Ok(()),
    }
}

fn ping(ns: &Netns, to: IpAddr) -> Result<(), String> {
    let out = ns.run(|| Command::new("ping").args(["-c1", "-W1", &to.to_string()]).output()).unwrap().unwrap();
    if out.status.success() { Err("it answers".into()) } else { Ok(()) }
}

/// The source ports of connections whose source was replaced. Fully random, hardly any is what it was; kept where it is
/// free, as without that flag, nearly all are.
#[derive(Default)]
pub struct Sources {
    seen: BTreeSet<(Proto, IpAddr, u16, IpAddr, u16)>,
    kept: usize,
}

impl Sources {
    /// Takes in what the node tracks now.
    pub fn look(&mut self, w: &World) {
        let mut all = Vec::new();
        Ct::open_in(&w.node).unwrap().each(None, &mut |f| all.push(*f)).unwrap();
        for f in all.into_iter().filter(|f| f.reply.dst != f.original.src) {
            let (o, r) = (f.original, f.reply);
            if self.seen.insert((f.proto, o.src, o.sport, o.dst, o.dport)) {
                self.kept += usize::from(o.sport == r.dport);
            }
        }
    }

    /// What is wrong with them.
    pub fn not_random(&self) -> Option<String> {
        let (all, kept) = (self.seen.len(), self.kept);
        (all < 100 || kept > 3).then(|| format!("{kept} of {all} replaced sources kept their port"))
    }
}
