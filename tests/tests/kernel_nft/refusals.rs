//! What is not served is refused at once, with the right kind of answer.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use intent::generate::{cluster_ip, node_addr, world};
use types::{Family, Proto};

use crate::world::{DUAL, PODS, Server, World, at, cluster, key, service, tcp, to_pods, udp};

/// Refused at once; `send` says that a datagram of the node itself may be refused when it is sent (EPERM), which is how
/// the kernel tells of any reject at output.
fn refused(what: &str, send: bool, f: impl FnOnce() -> std::io::Result<crate::world::Answer>) {
    let started = Instant::now();
    let e = f().expect_err(what);
    let as_it_should = e.kind() == ErrorKind::ConnectionRefused || (send && e.kind() == ErrorKind::PermissionDenied);
    assert!(as_it_should, "{what}: {e}");
    assert!(started.elapsed() < Duration::from_millis(500), "{what} took {:?}", started.elapsed());
}

#[test]
fn no_endpoints_and_unused_ports_are_refused_at_once_from_everywhere() {
    let mut w = World::new();
    let mut i = cluster(DUAL);
    let mut empty = service(DUAL, 1, 80);
    empty.node_port = Some(30080);
    i.services.insert(key("empty", Proto::Tcp), empty.clone().into());
    i.services.insert(key("empty", Proto::Udp), empty.into());
    w.converge(&i);
    for f in Family::BOTH {
        for (place, ns, src) in
            [("pod", &w.pods[0], None), ("node", &w.node, None), ("world", &w.out, Some(world(f, 1)))]
        {
            for (what, to) in [
                ("no endpoints", at(cluster_ip(f, 1), 80)),
                ("unused port", at(cluster_ip(f, 1), 81)),
                ("node port without endpoints", at(node_addr(f, 0), 30080)),
            ] {
                refused(&format!("{f} tcp {place} {what}"), false, || tcp(ns, src, to));
                refused(&format!("{f} udp {place} {what}"), place == "node", || udp(ns, src, to));
            }
        }
    }
}

#[test]
fn a_cluster_address_does_not_answer_ping() {
    let mut w = World::new();
    let _server = Server::start(&w.pods[0], "pod0", 8080);
    let mut i = cluster(DUAL);
    let mut web = service(DUAL, 1, 80);
    to_pods(&mut web, &[PODS[0]], 8080);
    i.services.insert(key("web", Proto::Tcp), web.into());
    w.converge(&i);
    for f in Family::BOTH {
        for ns in [&w.pods[1], &w.node] {
            let started = Instant::now();
            let to = cluster_ip(f, 1).to_string();
            let out = ns.run(|| std::process::Command::new("ping").args(["-n", "-c1", "-W3", &to]).output());
            let out = out.unwrap().unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(!out.status.success(), "{text}");
            assert!(text.contains("nreachable"), "told at once: {text}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
        // Its port is served all the while.
        assert_eq!(tcp(&w.pods[1], None, at(cluster_ip(f, 1), 80)).unwrap().0, "pod0");
    }
}
