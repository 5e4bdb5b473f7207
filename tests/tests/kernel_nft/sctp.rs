//! SCTP without SCTP sockets: an INIT chunk on a raw socket, and where it comes out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kernel::Netns;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType};
use types::Family;

use crate::world::Answer;

const SCTP: u32 = 132;

/// CRC32c (RFC 9260 appendix A): reflected polynomial 0x82f63b78.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut crc, b| {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        crc
    })
}

/// A packet with one INIT chunk (RFC 9260 section 3.3.2).
fn init(sport: u16, dport: u16, tag: u32) -> Vec<u8> {
    let mut p = Vec::new();
    p.extend(sport.to_be_bytes());
    p.extend(dport.to_be_bytes());
    p.extend([0; 8]); // verification tag 0 in INIT; checksum below
    p.extend([1, 0, 0, 20]); // INIT, no flags, length 20
    p.extend(tag.to_be_bytes()); // initiate tag, not zero
    p.extend(65536u32.to_be_bytes()); // receiver window
    p.extend([0, 10, 0, 10]); // streams out, in
    p.extend(1u32.to_be_bytes()); // initial TSN
    let sum = crc32c(&p);
    p[8..12].copy_from_slice(&sum.to_le_bytes());
    p
}

fn raw(ns: &Netns, f: Family) -> OwnedFd {
    let fam = if f == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let s = ns.run(|| rustix::net::socket(fam, SocketType::RAW, Protocol::from_raw(SCTP.try_into().unwrap()).into()));
    s.unwrap().unwrap()
}

/// The port of an INIT with this tag, whose checksum must be right, and who sent it; nothing where none has come.
fn arrived(rx: &OwnedFd, f: Family, tag: u32) -> Option<(u16, IpAddr)> {
    let mut buf = [0; 256];
    while let Ok((_, n, from)) = rustix::net::recvfrom(rx, &mut buf[..], RecvFlags::DONTWAIT) {
        // A raw IPv4 socket gives the IP header too.
        let mut p = buf[..n].to_vec();
        if f == Family::V4 {
            p.drain(..usize::from(p[0] & 15) * 4);
        }
        if p.len() < 20 || p[12] != 1 || p[16..20] != tag.to_be_bytes() {
            continue;
        }
        let sum: [u8; 4] = p[8..12].try_into().unwrap();
        p[8..12].fill(0);
        assert_eq!(u32::from_le_bytes(sum), crc32c(&p), "the checksum of what arrived");
        let from = SocketAddr::try_from(from.unwrap()).unwrap();
        return Some((u16::from_be_bytes([p[2], p[3]]), from.ip()));
    }
    None
}

/// Sends an INIT, of a flow of its own, and says at which of these places it came out, as `NAME:PORT`, and from which
/// address; or how it was refused.
pub fn reached(client: &Netns, src: Option<IpAddr>, to: SocketAddr, places: &[(&str, &Netns)]) -> io::Result<Answer> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let (tag, sport) = (0x1234_0000 + n, 20_000 + u16::try_from(n % 10_000).unwrap());
    let f = Family::of(to.ip());
    let receivers: Vec<_> = places.iter().map(|(name, ns)| (name, raw(ns, f))).collect();
    let tx = raw(client, f);
    if let Some(src) = src {
        rustix::net::bind(&tx, &SocketAddr::new(src, 0))?;
    }
    // Connected, it is told of what ICMP says.
    rustix::net::connect(&tx, &SocketAddr::new(to.ip(), 0))?;
    rustix::net::send(&tx, &init(sport, to.port(), tag), SendFlags::empty())?;
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        for (name, rx) in &receivers {
            if let Some((port, from)) = arrived(rx, f, tag) {
                return Ok((format!("{name}:{port}"), from));
            }
        }
        match rustix::net::recv(&tx, &mut [0; 256][..], RecvFlags::DONTWAIT) {
            Err(e) if e != Errno::AGAIN => return Err(e.into()),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// RFC 9260's check value of the polynomial. Where INIT chunks go: the rows of the table with `/sctp`.
#[test]
fn the_checksum_is_sctps() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
