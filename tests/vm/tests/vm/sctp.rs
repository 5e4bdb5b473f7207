//! SCTP with real associations, where the tests of other machines send one INIT chunk on a raw socket.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::Duration;

use intent::generate::{cluster_ip, node_addr, pod_addr, world};
use kernel::Netns;
use rustix::io;
use rustix::net::{AddressFamily, SocketType, accept, bind, connect, ipproto, listen, socket, sockopt};
use types::{Family, Proto};
use vm::in_vm;

use crate::world::{DUAL, PODS, World, cluster, key, service, to_pods};

fn sctp(ns: &Netns, at: SocketAddr) -> OwnedFd {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let s = ns.run(|| socket(family, SocketType::STREAM, Some(ipproto::SCTP))).unwrap().unwrap();
    for which in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&s, which, Some(Duration::from_secs(5))).unwrap();
    }
    bind(&s, &at).unwrap();
    s
}

/// Serves one association: answers the first message with its name and where it saw the client.
pub fn serve(ns: &Netns, name: &str, at: SocketAddr) -> JoinHandle<()> {
    let server = sctp(ns, at);
    listen(&server, 4).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let Ok(client) = accept(&server) else { return };
        let from = SocketAddr::try_from(rustix::net::getpeername(&client).unwrap().unwrap()).unwrap();
        let mut buffer = [0; 256];
        let n = io::read(&client, &mut buffer).unwrap();
        let said = String::from_utf8_lossy(&buffer[..n]).into_owned();
        io::write(&client, format!("{name} {} {said}", from.ip()).as_bytes()).unwrap();
        // Until the client has closed.
        let _ = io::read(&client, &mut buffer);
    })
}

/// Says `hello` to an address and gives the answer.
pub fn ask(ns: &Netns, from: IpAddr, to: SocketAddr) -> String {
    let s = sctp(ns, SocketAddr::new(from, 0));
    connect(&s, &to).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
    io::write(&s, b"hello").unwrap();
    let mut buffer = [0; 256];
    let n = io::read(&s, &mut buffer).unwrap_or_else(|e| panic!("{from} to {to}: no answer: {e}"));
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[test]
fn a_service_carries_associations_by_cluster_ip_and_node_port() {
    in_vm!();
    let mut w = World::new();
    let mut i = cluster(DUAL);
    let mut svc = service(DUAL, 5, 3868);
    svc.node_port = Some(30868);
    to_pods(&mut svc, &[PODS[0]], 9999);
    i.services.insert(key("diameter", Proto::Sctp), svc.into());
    w.converge(&i);
    for f in Family::BOTH {
        let (pod0, pod1) = (pod_addr(f, 0, PODS[0]), pod_addr(f, 0, PODS[1]));
        let at = SocketAddr::new(pod0, 9999);
        let by_cluster_ip = SocketAddr::new(cluster_ip(f, 5), 3868);
        let by_node_port = SocketAddr::new(node_addr(f, 0), 30868);

        let server = serve(&w.pods[0], "pod0", at);
        assert_eq!(ask(&w.pods[1], pod1, by_cluster_ip), format!("pod0 {pod1} hello"));
        server.join().unwrap();

        let server = serve(&w.pods[0], "pod0", at);
        let answer = ask(&w.out, world(f, 1), by_node_port);
        server.join().unwrap();
        assert!(answer.starts_with("pod0 ") && !answer.contains(&world(f, 1).to_string()), "masqueraded: {answer}");
    }
}
