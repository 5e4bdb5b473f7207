//! What it costs to forget the flows of one UDP endpoint among very many. Run by bench/forget, as root, in no
//! namespace of anybody's: it makes its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use kernel::{Ct, Netns};
use kernel_api::Conntrack as _;
use kernel_api::conntrack::Among;
use types::{Family, Proto};

/// The Service whose endpoint goes has so many flows.
const STALE: u32 = 100;
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 96, 0, 10));

fn main() {
    // The kernel's limit is one of each namespace's, the table is one of all: so many namespaces share the flows.
    let limit: u32 =
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap().trim().parse().unwrap();
    let buckets = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets").unwrap();
    println!("table of {} buckets; {STALE} flows to the endpoint that goes", buckets.trim());
    println!("{:>10} {:>14} {:>14} {:>8}", "flows", "whole dump", "filtered", "ratio");
    for total in [10_000, 100_000, 250_000, 1_000_000] {
        let each = (limit - limit / 16).min(total);
        let spaces: Vec<Netns> = (0..total.div_ceil(each)).map(|n| filled(each.min(total - n * each))).collect();
        let ns = &spaces[0];
        let dnat = udp(ns, SERVICE, 53);
        let mut ct = Ct::open_in(ns).unwrap();
        // As a program does that has no filter: read all that is there, of this namespace; the others' entries are
        // walked over and not told.
        let (mut whole, mut filtered) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            send(&dnat);
            let began = Instant::now();
            let mut n = 0;
            ct.each(None, &mut |f| n += u32::from(f.original.dst == SERVICE)).unwrap();
            whole.push(began.elapsed());
            assert_eq!(n, STALE);
            let among = Among { proto: Proto::Udp, family: Family::V4, addr: Some(SERVICE), port: Some(53) };
            let began = Instant::now();
            assert_eq!(ct.delete(&among, &mut |_| true).unwrap(), STALE as usize);
            filtered.push(began.elapsed());
        }
        let (w, f) = (median(whole), median(filtered));
        let ratio = w.as_secs_f64() / f.as_secs_f64();
        println!("{total:>10} {:>11.2} ms {:>11.2} ms {ratio:>7.1}x", millis(w), millis(f));
    }
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// Sockets that each make one flow when they send.
fn udp(ns: &Netns, to: IpAddr, port: u16) -> Vec<UdpSocket> {
    let open = || {
        let s = UdpSocket::bind("127.0.0.1:0").unwrap();
        s.connect(SocketAddr::new(to, port)).unwrap();
        s
    };
    ns.run(|| (0..STALE).map(|_| open()).collect()).unwrap()
}

fn send(all: &[UdpSocket]) {
    for s in all {
        s.send(b"x").unwrap();
    }
}

/// A namespace with so many tracked flows, of no Service.
fn filled(flows: u32) -> Netns {
    let ns = Netns::new().unwrap();
    ns.run(|| {
        let rules = "table inet t { chain o { type filter hook output priority 0; ct state new accept; }; \
                     chain i { type filter hook input priority 0; drop; }; }";
        for (program, args) in [("ip", vec!["link", "set", "lo", "up"]), ("nft", vec![rules])] {
            assert!(Command::new(program).args(args).status().unwrap().success(), "{program}");
        }
        for t in ["udp_timeout", "udp_timeout_stream"] {
            std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{t}"), "600").unwrap();
        }
        let s = UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..flows {
            let [a, b, c, _] = (n << 8).to_be_bytes();
            // 16,777,216 addresses, one port: as many flows.
            let to = Ipv4Addr::new(127, a | 128, b, c);
            s.send_to(b"x", (to, 9)).unwrap();
        }
    })
    .unwrap();
    ns
}
