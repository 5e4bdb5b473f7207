//! CNI plugins where they need this kernel: ours beside the reference's ([`Twin`]), and SCTP.

use std::net::SocketAddr;

use serde_json::json;
use vm::in_vm;

use crate::sctp::{ask, serve};
use crate::twin::{BOTH, Twin, Whose, result, with};
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

/// Two containers on a bridge with these fields; what is said and seen, and seen after both are gone.
fn on_a_bridge(whose: Whose, more: &serde_json::Value) -> Vec<serde_json::Value> {
    let t = Twin::new(whose);
    let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br7", "ipam": {
        "type": "host-local", "dataDir": t.dir("ipam"), "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]],
    }});
    for (k, x) in more.as_object().unwrap() {
        conf[k] = x.clone();
    }
    let mut seen = Vec::new();
    for id in ["c1", "c2"] {
        t.node.pod(id);
        let added = t.add(id, &conf);
        seen.push(json!([result(&added), t.inside(id), t.outside(), t.ports()]));
        if conf["ipam"] != json!({}) {
            let checked = with(&conf, "prevResult", added);
            t.call("CHECK", id, &checked).unwrap_or_else(|e| panic!("{whose:?}: CHECK {checked}: {e}"));
            t.node.sh_pod("c1", "ping -c1 -W2 10.7.0.1");
        }
    }
    for id in ["c1", "c2"] {
        t.del(id, &conf);
    }
    seen.push(json!([t.outside(), t.ports()]));
    seen
}

#[test]
fn the_vlans_of_a_bridge_are_the_references() {
    in_vm!();
    for more in [
        json!({"isDefaultGateway": true, "vlan": 100, "mtu": 1400}),
        json!({"ipam": {}, "vlan": 7, "hairpinMode": true}),
    ] {
        let [ours, theirs] = BOTH.map(|whose| on_a_bridge(whose, &more));
        for (o, t) in ours.iter().zip(&theirs) {
            assert_eq!(o, t, "{more}");
        }
    }
}

/// What the releases after Debian's have.
#[test]
fn a_trunk_has_its_vlans_and_the_default_one_goes_when_it_must() {
    in_vm!();
    let vlans = |more: serde_json::Value| {
        let seen = on_a_bridge(Whose::Ours, &more).remove(0);
        let ports = seen[3]["vlans"].as_array().unwrap().clone();
        let port = ports.into_iter().find(|p| p[0] == "veth*").unwrap();
        let one = |v: &serde_json::Value| {
            let flags =
                v["flags"].as_array().map(|f| format!(" {}", serde_json::Value::from(f.clone()))).unwrap_or_default();
            format!("{}{flags}", v["vlan"])
        };
        port[1].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let trunk = json!([{"minID": 10, "maxID": 12}, {"id": 20}]);
    let default = "1 [\"PVID\",\"Egress Untagged\"]";
    assert_eq!(vlans(json!({"ipam": {}, "vlanTrunk": trunk})), format!("{default}; 10; 11; 12; 20"));
    assert_eq!(vlans(json!({"ipam": {}, "vlanTrunk": trunk, "preserveDefaultVlan": false})), "10; 11; 12; 20");
    let own = "5 [\"PVID\",\"Egress Untagged\"]";
    assert_eq!(vlans(json!({"ipam": {}, "vlan": 5, "preserveDefaultVlan": false})), own);
    assert_eq!(vlans(json!({"isGateway": true, "vlan": 5, "preserveDefaultVlan": false})), own);
}
