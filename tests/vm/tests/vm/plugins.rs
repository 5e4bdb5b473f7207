//! CNI plugins where they need this kernel: ours beside the reference's ([`Twin`]), and SCTP.

use std::net::SocketAddr;

use serde_json::json;
use vm::in_vm;

use crate::sctp::{ask, serve};
use crate::twin::{Twin, Whose};
use crate::wires::{bridged, ns, world};

#[test]
fn a_host_port_carries_sctp_associations() {
    in_vm!();
    let t = Twin::new(Whose::Ours);
    world(&t.node);
    let (c1, _c2) = (bridged(&t.node, "c1", 3), bridged(&t.node, "c2", 4));
    let mapping = json!([{"hostPort": 3868, "containerPort": 9999, "protocol": "sctp"}]);
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": mapping}, "prevResult": c1});
    t.add("c1", &conf);
    for (at, from, client, to) in [
        ("10.88.0.3:9999", "world", "192.0.2.9", "192.0.2.1:3868"),
        ("[fd88::3]:9999", "world", "2001:db8::9", "[2001:db8::1]:3868"),
        ("10.88.0.3:9999", "c2", "10.88.0.4", "192.0.2.1:3868"),
        ("[fd88::3]:9999", "c2", "fd88::4", "[2001:db8::1]:3868"),
    ] {
        let (at, to): (SocketAddr, SocketAddr) = (at.parse().unwrap(), to.parse().unwrap());
        let server = serve(&ns(&t.node, "c1"), "c1", at);
        let answer = ask(&ns(&t.node, from), client.parse().unwrap(), to);
        server.join().unwrap();
        let (who, saw) = answer.split_once(' ').unwrap();
        assert_eq!((who, saw.ends_with(" hello")), ("c1", true), "{from}: {answer}");
        if from == "world" {
            assert_eq!(saw, format!("{client} hello"), "the client's own address");
        }
    }
    t.del("c1", &conf);
}
