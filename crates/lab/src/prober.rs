//! Sends real packets from inside a namespace: one process per sender, its questions on standard input, its answers on
//! standard output, both JSON.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::echo::Answer;

/// How one packet waits for its answer.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Tries of one question. A try that failed is counted and shown, never forgotten.
pub const TRIES: u32 = 3;
/// Connections made until a given endpoint has answered.
const DRAWS: u32 = 60;
/// Questions asked at once.
const AT_ONCE: usize = 16;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A TCP connection with a line and its answer.
    Tcp,
    /// A UDP datagram and its answer.
    Udp,
    /// An ICMP echo request and its reply.
    Ping,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// What to send.
    pub kind: Kind,
    /// Where; the port of a ping is 0.
    pub to: SocketAddr,
    /// Ask again until this pod has answered.
    pub until: Option<String>,
}

/// What came of a question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Packets or connections tried.
    pub tries: u32,
    /// Those that got no answer.
    pub lost: u32,
    /// Who answered: pod and client address as the server saw it. Empty for a ping.
    pub answers: Vec<(String, IpAddr)>,
    /// Why the last lost one was lost.
    pub error: Option<String>,
}

impl Said {
    /// Whether it was answered in the end.
    #[must_use]
    pub fn answered(&self) -> bool {
        self.lost < self.tries && self.lost < TRIES
    }
}

fn tcp(to: SocketAddr) -> Result<Answer, String> {
    let mut s = TcpStream::connect_timeout(&to, TIMEOUT).map_err(|e| e.to_string())?;
    let limit = |s: &TcpStream| s.set_read_timeout(Some(TIMEOUT)).and_then(|()| s.set_write_timeout(Some(TIMEOUT)));
    limit(&s).map_err(|e| e.to_string())?;
    s.write_all(b"probe\n").map_err(|e| format!("connected, then {e}"))?;
    let mut buf = [0u8; 1024];
    let mut have = Vec::new();
    let until = Instant::now() + TIMEOUT;
    while !have.contains(&b'\n') {
        match s.read(&mut buf) {
            Ok(0) => return Err("connected, then closed without an answer".into()),
            Ok(n) => have.extend_from_slice(&buf[..n]),
            Err(e) => return Err(format!("connected, then {e}")),
        }
        if Instant::now() > until {
            break;
        }
    }
    Answer::parse(&String::from_utf8_lossy(&have)).ok_or_else(|| "an answer that is no echo server's".into())
}

fn udp(to: SocketAddr) -> Result<Answer, String> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let s = UdpSocket::bind(any).map_err(|e| e.to_string())?;
    s.set_read_timeout(Some(TIMEOUT)).map_err(|e| e.to_string())?;
    s.connect(to).map_err(|e| e.to_string())?;
    s.send(b"probe").map_err(|e| e.to_string())?;
    let mut buf = [0u8; 2048];
    let n = s.recv(&mut buf).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => e.to_string(),
    })?;
    Answer::parse(&String::from_utf8_lossy(&buf[..n])).ok_or_else(|| "an answer that is no echo server's".into())
}

/// The Internet checksum (RFC 1071).
fn checksum(b: &[u8]) -> u16 {
    let sum: u32 = b.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

/// RFC 792 type 8 and 0, RFC 4443 type 128 and 129.
fn ping(to: IpAddr) -> Result<(), String> {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let say = |e: rustix::io::Errno| match e {
        rustix::io::Errno::AGAIN => "no answer".to_owned(),
        e => e.to_string(),
    };
    let (family, proto, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let fd = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(proto)).map_err(say)?;
    set_socket_timeout(&fd, Timeout::Recv, Some(TIMEOUT)).map_err(say)?;
    connect(&fd, &SocketAddr::new(to, 0)).map_err(say)?;
    let id = ((std::process::id() as u16) ^ 0x5ea0).to_be_bytes();
    let seq = (NEXT.fetch_add(1, Ordering::Relaxed) as u16).to_be_bytes();
    let mut packet = vec![request, 0, 0, 0, id[0], id[1], seq[0], seq[1]];
    packet.extend_from_slice(b"seaway lab probe");
    if to.is_ipv4() {
        // The kernel fills in ICMPv6's, which covers a pseudo-header.
        let c = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&c);
    }
    send(&fd, &packet, SendFlags::empty()).map_err(say)?;
    let until = Instant::now() + TIMEOUT;
    let mut buf = [0u8; 2048];
    while Instant::now() < until {
        let (n, _) = recv(&fd, &mut buf, RecvFlags::empty()).map_err(say)?;
        let head = if to.is_ipv4() { usize::from(buf[0] & 0xf) * 4 } else { 0 };
        // A raw socket hears every ICMP packet of this host: other replies, unreachables, our own request on loopback.
        let Some(m) = buf[..n].get(head..head + 8) else { continue };
        if m[0] == reply && m[4..6] == id && m[6..8] == seq {
            return Ok(());
        }
    }
    Err("no answer".into())
}

fn ask(a: &Ask) -> Said {
    let mut said = Said::default();
    loop {
        said.tries += 1;
        let one = match a.kind {
            Kind::Tcp => tcp(a.to).map(Some),
            Kind::Udp => udp(a.to).map(Some),
            Kind::Ping => ping(a.to.ip()).map(|()| None),
        };
        match one {
            Ok(answer) => {
                let pod = answer.as_ref().map(|x| x.pod.clone());
                said.answers.extend(answer.map(|x| (x.pod, x.client.ip())));
                if a.until.is_none() || a.until == pod {
                    return said;
                }
                if said.tries >= DRAWS {
                    return said;
                }
            }
            Err(e) => {
                said.lost += 1;
                said.error = Some(e);
                if said.lost >= TRIES {
                    return said;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Asks everything, several at a time, in no order; answers in the order of the questions.
#[must_use]
pub fn run(asks: &[Ask]) -> Vec<Said> {
    let next = AtomicUsize::new(0);
    let out: Mutex<Vec<(usize, Said)>> = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..AT_ONCE.min(asks.len()) {
            s.spawn(|| {
                while let Some((i, a)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    asks.get(i).map(|a| (i, a))
                } {
                    let said = ask(a);
                    out.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, said));
                }
            });
        }
    });
    let mut out = out.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    out.sort_by_key(|(i, _)| *i);
    out.into_iter().map(|(_, s)| s).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), 0x00ff);
    }

    #[test]
    fn lost_packets_are_counted() {
        // Port 1 of loopback: refused at once.
        let to: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let said = run(&[
            Ask { kind: Kind::Tcp, to, until: None },
            Ask { kind: Kind::Udp, to, until: None },
            Ask { kind: Kind::Ping, to, until: None },
            Ask { kind: Kind::Ping, to: "[::1]:0".parse().unwrap(), until: None },
        ]);
        assert_eq!((said[0].tries, said[0].lost, said[0].answered()), (3, 3, false));
        assert!(
            said[0].error.as_ref().unwrap().contains("refused") && said[1].error.as_ref().unwrap().contains("refused")
        );
        assert!(said[2].answered() && said[2].lost == 0, "{:?}", said[2]);
        assert!(said[3].answered(), "{:?}", said[3]);
    }
}
