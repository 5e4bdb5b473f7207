//! The kernel features for which the machine is there: each is made once by a tool that is not ours, so that a failing
//! test of ours is known to be ours. Modules come on demand, as on any host.

use rustix::net::{AddressFamily, SocketType, ipproto};
use vm::in_vm;

use crate::tools::{ip, link, tool};

/// Makes a link of a kind over a dummy `d0` and asserts that iproute2 sees it as that kind.
fn made(kind: &str, more: &str) {
    ip("link add d0 type dummy");
    ip(&format!("link add x0 {more}"));
    assert_eq!(link("x0")["linkinfo"]["info_kind"], kind);
}

#[test]
fn dummy() {
    in_vm!();
    ip("link add d0 type dummy");
    assert_eq!(link("d0")["linkinfo"]["info_kind"], "dummy");
}

#[test]
fn vlan() {
    in_vm!();
    made("vlan", "link d0 type vlan id 7");
    assert_eq!(link("x0")["linkinfo"]["info_data"]["id"], 7);
}

#[test]
fn vrf() {
    in_vm!();
    made("vrf", "type vrf table 1007");
}

#[test]
fn macvlan() {
    in_vm!();
    made("macvlan", "link d0 type macvlan mode bridge");
}

#[test]
fn ipvlan_in_every_mode() {
    in_vm!();
    for mode in ["l2", "l3", "l3s"] {
        made("ipvlan", &format!("link d0 type ipvlan mode {mode}"));
        assert_eq!(link("x0")["linkinfo"]["info_data"]["mode"], mode);
        ip("link del d0");
    }
}

#[test]
fn ipip() {
    in_vm!();
    made("ipip", "type ipip local 192.0.2.1 remote 192.0.2.2");
}

#[test]
fn wireguard() {
    in_vm!();
    made("wireguard", "type wireguard");
}

#[test]
fn netem() {
    in_vm!();
    ip("link add d0 type dummy");
    ip("link set d0 up");
    tool("tc", &["qdisc", "add", "dev", "d0", "root", "netem", "delay", "10ms"]);
    assert!(tool("tc", &["qdisc", "show", "dev", "d0"]).contains("netem"), "netem is listed");
}

#[test]
fn ipvs() {
    in_vm!();
    tool("ipvsadm", &["-A", "-t", "192.0.2.10:80", "-s", "rr"]);
    tool("ipvsadm", &["-a", "-t", "192.0.2.10:80", "-r", "192.0.2.11:8080", "-m"]);
    let text = std::fs::read_to_string("/proc/net/ip_vs").unwrap();
    assert!(text.contains("C000020A:0050 rr") && text.contains("C000020B:1F90"), "{text}");
}

#[test]
fn sctp_sockets_of_both_families() {
    in_vm!();
    for (family, address) in [(AddressFamily::INET, "127.0.0.1:9000"), (AddressFamily::INET6, "[::1]:9000")] {
        let address: std::net::SocketAddr = address.parse().unwrap();
        let server = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP)).unwrap();
        rustix::net::bind(&server, &address).unwrap();
        rustix::net::listen(&server, 1).unwrap();
        let client = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP)).unwrap();
        rustix::net::connect(&client, &address).unwrap();
        let inside = rustix::net::accept(&server).unwrap();
        rustix::io::write(&client, b"hello").unwrap();
        let mut buffer = [0; 16];
        let n = rustix::io::read(&inside, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"hello", "{address}");
    }
}
