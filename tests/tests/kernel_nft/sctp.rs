//! SCTP without SCTP sockets: an INIT chunk on a raw socket, and what arrives.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use intent::generate::{cluster_ip, node_addr, world};
use kernel::Netns;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, sockopt};
use types::{Family, Proto};

use crate::world::{DUAL, PODS, World, cluster, key, service, to_pods};

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
fn init(sport: u16, dport: u16) -> Vec<u8> {
    let mut p = Vec::new();
    p.extend(sport.to_be_bytes());
    p.extend(dport.to_be_bytes());
    p.extend([0; 8]); // verification tag 0 in INIT; checksum below
    p.extend([1, 0, 0, 20]); // INIT, no flags, length 20
    p.extend(0x1234_5678u32.to_be_bytes()); // initiate tag, not zero
    p.extend(65536u32.to_be_bytes()); // receiver window
    p.extend([0, 10, 0, 10]); // streams out, in
    p.extend(1u32.to_be_bytes()); // initial TSN
    let sum = crc32c(&p);
    p[8..12].copy_from_slice(&sum.to_le_bytes());
    p
}

fn raw(ns: &Netns, f: Family) -> std::os::fd::OwnedFd {
    let fam = if f == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let s = ns.run(|| rustix::net::socket(fam, SocketType::RAW, Protocol::from_raw(SCTP.try_into().unwrap()).into()));
    let s = s.unwrap().unwrap();
    sockopt::set_socket_timeout(&s, sockopt::Timeout::Recv, Some(Duration::from_secs(2))).unwrap();
    s
}

/// Sends an INIT and gives the ports and source of what arrives in `server`, whose checksum is right.
fn probe(client: &Netns, src: Option<IpAddr>, server: &Netns, f: Family, to: IpAddr, port: u16) -> (u16, IpAddr) {
    let (tx, rx) = (raw(client, f), raw(server, f));
    if let Some(src) = src {
        rustix::net::bind(&tx, &SocketAddr::new(src, 0)).unwrap();
    }
    rustix::net::sendto(&tx, &init(4711, port), SendFlags::empty(), &SocketAddr::new(to, 0)).unwrap();
    let mut buf = [0; 256];
    let (_, n, from) = rustix::net::recvfrom(&rx, &mut buf[..], RecvFlags::empty())
        .unwrap_or_else(|e| panic!("{f} to {to}:{port}: nothing arrived: {e}"));
    // A raw IPv4 socket gives the IP header too.
    let mut p = buf[..n].to_vec();
    if f == Family::V4 {
        p.drain(..usize::from(p[0] & 15) * 4);
    }
    let sum: [u8; 4] = p[8..12].try_into().unwrap();
    p[8..12].fill(0);
    assert_eq!(u32::from_le_bytes(sum), crc32c(&p), "the checksum of what arrived");
    assert_eq!(p[12], 1, "an INIT");
    let from = SocketAddr::try_from(from.unwrap()).unwrap();
    (u16::from_be_bytes([p[2], p[3]]), from.ip())
}

#[test]
fn an_init_chunk_reaches_the_endpoint() {
    // RFC 9260's check value of the polynomial.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let mut w = World::new();
    let mut i = cluster(DUAL);
    let mut svc = service(DUAL, 5, 3868);
    svc.node_port = Some(30868);
    to_pods(&mut svc, &[PODS[0]], 9999);
    i.services.insert(key("diameter", Proto::Sctp), svc.into());
    w.converge(&i);
    for f in Family::BOTH {
        let pod1 = intent::generate::pod_addr(f, 0, PODS[1]);
        let got = probe(&w.pods[1], None, &w.pods[0], f, cluster_ip(f, 5), 3868);
        assert_eq!(got, (9999, pod1), "{f} cluster IP");
        let (port, seen) = probe(&w.out, Some(world(f, 1)), &w.pods[0], f, node_addr(f, 0), 30868);
        assert!(port == 9999 && seen != world(f, 1), "{f} node port: {port} from {seen}");
        let (port, _) = probe(&w.node, None, &w.pods[0], f, cluster_ip(f, 5), 3868);
        assert_eq!(port, 9999, "{f} from the node");
    }
}
