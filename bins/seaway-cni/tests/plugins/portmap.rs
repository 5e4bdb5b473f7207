//! portmap by packets, ours beside the reference's: who reaches what by which port of the node, and whom it sees.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, result};
use crate::wires::{Echo, bridged, tcp, udp, world};

/// A configuration of version 1.0.0 (1.1.0 is not the reference's everywhere) with these mappings.
fn conf(prev: &Value, mappings: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": mappings}, "prevResult": prev})
}

fn map(host: u16, container: u16, proto: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": proto})
}

fn on(ip: &str, host: u16, container: u16, proto: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": proto, "hostIP": ip})
}

/// What everybody gets at these places.
fn reach(t: &Twin, places: &[(&str, &str, &str)]) -> BTreeMap<String, String> {
    let ask = |(from, proto, to): &(&str, &str, &str)| {
        let answer = if *proto == "tcp" { tcp(&t.node, from, to) } else { udp(&t.node, from, to, 0) };
        (format!("{from} {proto} {to}"), answer)
    };
    places.iter().map(ask).collect()
}

#[test]
fn everybody_reaches_a_mapped_port_as_with_the_reference() {
    let places = [
        ("world", "tcp", "192.0.2.1:8080"),
        ("world", "tcp", "[2001:db8::1]:8080"),
        ("world", "udp", "192.0.2.1:5353"),
        ("world", "udp", "[2001:db8::1]:5353"),
        ("world", "tcp", "192.0.2.1:9090"),
        ("world", "tcp", "[2001:db8::1]:9090"),
        ("world", "tcp", "192.0.2.1:9191"),
        ("world", "tcp", "192.0.2.1:80"),
        ("node", "tcp", "127.0.0.1:8080"),
        ("node", "tcp", "127.0.0.1:9191"),
        ("node", "tcp", "192.0.2.1:8080"),
        ("node", "tcp", "10.88.0.1:8080"),
        ("node", "tcp", "10.88.0.1:9090"),
        ("node", "tcp", "[2001:db8::1]:8080"),
        ("node", "udp", "127.0.0.1:5353"),
        ("c1", "tcp", "192.0.2.1:8080"),
        ("c1", "tcp", "[2001:db8::1]:8080"),
        ("c1", "udp", "10.88.0.1:5353"),
        ("c2", "tcp", "192.0.2.1:8080"),
        ("c2", "tcp", "[2001:db8::1]:8080"),
        ("c2", "udp", "192.0.2.1:5353"),
        ("c2", "tcp", "10.88.0.3:80"),
    ];
    let [ours, theirs] = BOTH.map(|whose| {
        let t = Twin::new(whose);
        world(&t.node);
        let (c1, _c2) = (bridged(&t.node, "c1", 3), bridged(&t.node, "c2", 4));
        let _echo = Echo::start(&t.node, "c1", &[80, 90], &[53]);
        let mappings = json!([
            map(8080, 80, "tcp"),
            map(5353, 53, "udp"),
            on("192.0.2.1", 9090, 90, "tcp"),
            on("127.0.0.1", 9191, 90, "tcp"),
            on("0.0.0.0", 8082, 80, "tcp")
        ]);
        let conf = conf(&c1, mappings);
        let before = reach(&t, &places);
        let added = t.add("c1", &conf);
        assert_eq!(result(&added), result(&c1), "the result is handed on");
        let during = reach(&t, &places);
        if whose == Whose::Ours {
            // The reference's finds its own IPv6 rules missing in the IPv4 table.
            t.call("CHECK", "c1", &conf).unwrap();
        }
        t.del("c1", &conf);
        t.del("c1", &conf);
        let after = reach(&t, &places);
        assert_eq!(before, after, "{whose:?}");
        (before, during)
    });
    assert_eq!(ours.0, theirs.0);
    for (place, answer) in &ours.1 {
        assert_eq!(Some(answer), theirs.1.get(place), "{place}");
    }
    assert_eq!(ours.1["world tcp 192.0.2.1:8080"], "c1 saw 192.0.2.9");
    assert_eq!(ours.1["world tcp 192.0.2.1:9191"], "refused");
    assert_eq!(ours.1["node tcp 127.0.0.1:8080"], "c1 saw 10.88.0.1");
    assert_eq!(ours.1["c1 tcp 192.0.2.1:8080"], "c1 saw 10.88.0.1");
}

/// The elements of our table, as `nft` tells them.
fn elements(t: &Twin) -> usize {
    let v = t.json("nft -j list ruleset");
    let sets = v["nftables"].as_array().unwrap().iter().filter_map(|o| o.get("map").or_else(|| o.get("set")));
    sets.filter(|s| s["table"] == "seaway-hostports").filter_map(|s| s["elem"].as_array()).map(Vec::len).sum()
}

fn chains(t: &Twin) -> usize {
    let v = t.json("nft -j list ruleset");
    v["nftables"].as_array().unwrap().iter().filter(|o| o["chain"]["table"] == "seaway-hostports").count()
}

/// The result of a plugin before us, for a container that nothing is sent to.
fn made_up(n: u8) -> Value {
    json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/proc/1/ns/net"}], "dns": {},
        "ips": [{"interface": 0, "address": format!("10.88.0.{n}/24")},
                {"interface": 0, "address": format!("fd88::{n}/64")}]})
}

/// Any namespace will do where nothing is sent.
const ANY: [(&str, &str); 1] = [("CNI_NETNS", "/proc/1/ns/net")];

fn add(t: &Twin, container: &str, conf: &Value) {
    t.call_with("ADD", container, conf, &ANY).unwrap_or_else(|e| panic!("ADD {container}: {e}"));
}

fn check(t: &Twin, container: &str, conf: &Value) -> Result<Value, Value> {
    t.call_with("CHECK", container, conf, &ANY)
}

#[test]
fn a_port_has_one_container_and_what_is_refused_leaves_nothing() {
    let t = Twin::new(Whose::Ours);
    let (c1, c2) = (bridged(&t.node, "c1", 3), bridged(&t.node, "c2", 4));
    let _echo = (Echo::start(&t.node, "c1", &[80], &[]), Echo::start(&t.node, "c2", &[80], &[]));
    let first = conf(&c1, json!([map(8080, 80, "tcp")]));
    t.add("c1", &first);
    let alone = elements(&t);
    t.add("c1", &first);
    assert_eq!(elements(&t), alone, "the same again");
    // A free port beside the taken one: neither is mapped.
    let second = conf(&c2, json!([map(8081, 80, "tcp"), map(8080, 80, "tcp")]));
    let e = t.call("ADD", "c2", &second).unwrap_err();
    assert_eq!(e["code"], 104, "{e}");
    let says = e["msg"].as_str().unwrap();
    assert!(says.contains("host port 8080/TCP of every address leads to container c1/eth0 of network net"), "{says}");
    assert_eq!(elements(&t), alone);
    assert_eq!(tcp(&t.node, "c2", "10.88.0.1:8081"), "refused");
    // What was refused does not free what another has.
    t.del("c2", &second);
    assert_eq!(tcp(&t.node, "node", "127.0.0.1:8080"), "c1 saw 10.88.0.1");
    // Another protocol, and one address of the node, are other ports. The one address comes before all.
    let beside = conf(&c2, json!([map(8080, 80, "udp"), on("192.0.2.1", 8080, 80, "tcp")]));
    t.add("c2", &beside);
    assert_eq!(tcp(&t.node, "node", "192.0.2.1:8080"), "c2 saw 192.0.2.1");
    assert_eq!(tcp(&t.node, "node", "10.88.0.1:8080"), "c1 saw 10.88.0.1");
    // An ADD with other mappings replaces those of before.
    t.add("c2", &conf(&c2, json!([map(8082, 80, "tcp")])));
    assert_eq!(tcp(&t.node, "node", "192.0.2.1:8080"), "c1 saw 192.0.2.1");
    assert_eq!(tcp(&t.node, "node", "192.0.2.1:8082"), "c2 saw 192.0.2.1");
    // One call may not ask twice for the same.
    let before = elements(&t);
    let e = t.call("ADD", "c2", &conf(&c2, json!([map(8090, 80, "tcp"), map(8090, 81, "tcp")]))).unwrap_err();
    assert_eq!((&e["code"], elements(&t)), (&104.into(), before), "{e}");
    t.del("c1", &first);
    t.add("c2", &second);
    assert_eq!(tcp(&t.node, "node", "127.0.0.1:8080"), "c2 saw 10.88.0.1");
    t.del("c2", &second);
    assert_eq!(elements(&t), 0);
}

#[test]
fn del_knows_its_own_without_being_told_and_a_stale_owner_of_the_same_address_loses_it() {
    let t = Twin::new(Whose::Ours);
    let bare = json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap"});
    let other = json!({"cniVersion": "1.0.0", "name": "other", "type": "portmap"});
    // Before any ADD: not even a table is made.
    t.del("c1", &bare);
    assert_eq!(chains(&t), 0);
    add(&t, "c1", &conf(&made_up(3), json!([map(8080, 80, "tcp"), map(8081, 81, "sctp")])));
    add(&t, "c2", &conf(&made_up(4), json!([map(9080, 80, "tcp")])));
    let (all, frame) = (elements(&t), chains(&t));
    t.del("c1", &other);
    t.call_with("DEL", "c1", &bare, &[("CNI_IFNAME", "eth1")]).unwrap();
    assert_eq!(elements(&t), all, "another network's and another interface's");
    // c1 was lost without a DEL, and its address and port given to c3.
    add(&t, "c3", &conf(&made_up(3), json!([map(8080, 80, "tcp")])));
    t.del("c1", &bare);
    assert_eq!(elements(&t), all - 5, "8081 is gone, 8080 is c3's");
    t.del("c3", &bare);
    t.del("c2", &bare);
    assert_eq!((elements(&t), chains(&t)), (0, frame));
}

#[test]
fn gc_removes_what_does_not_live_and_check_sees_what_others_changed() {
    let t = Twin::new(Whose::Ours);
    let c = |n: u8| conf(&made_up(n), json!([map(8000 + u16::from(n), 80, "tcp")]));
    for n in [3, 4, 5] {
        add(&t, &format!("c{n}"), &c(n));
    }
    let one = elements(&t) / 3;
    let mut elsewhere = c(6);
    elsewhere["name"] = "other".into();
    add(&t, "c6", &elsewhere);
    let gc = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "cni.dev/valid-attachments": [{"containerID": "c4", "ifname": "eth0"}, {"containerID": "c5", "ifname": "net1"}]});
    t.call("GC", "", &gc).unwrap();
    assert_eq!(elements(&t), 2 * one);
    check(&t, "c4", &c(4)).unwrap();
    check(&t, "c6", &elsewhere).unwrap();
    let e = check(&t, "c5", &c(5)).unwrap_err();
    assert_eq!(e["code"], 101);
    assert!(e["details"].as_str().unwrap().contains("host port 8005/TCP -> 80 to 10.88.0.5 is missing"), "{e}");
    t.node.sh("nft flush chain inet seaway-hostports hostports");
    let e = check(&t, "c4", &c(4)).unwrap_err();
    assert!(e["details"].as_str().unwrap().contains("the rules of chain inet seaway-hostports hostports"), "{e}");
    // The next ADD of anybody puts it right, whatever it is.
    for harm in [
        "nft flush chain inet seaway-hostports postrouting",
        "nft delete chain inet seaway-hostports output",
        "nft add chain inet seaway-hostports other; nft add table inet seaway-hostports '{ flags dormant; }'",
        "nft add set inet seaway-hostports other '{ type ipv4_addr; }'",
    ] {
        t.node.sh(harm);
        add(&t, "c5", &c(5));
        check(&t, "c4", &c(4)).unwrap_or_else(|e| panic!("{harm}: {e}"));
        check(&t, "c5", &c(5)).unwrap_or_else(|e| panic!("{harm}: {e}"));
    }
    t.node.sh("nft flush ruleset");
    assert_eq!(check(&t, "c4", &c(4)).unwrap_err()["code"], 101);
    t.call("GC", "", &gc).unwrap();
    t.del("c4", &c(4));
    t.call("STATUS", "", &gc).unwrap();
}

#[test]
fn a_hundred_at_once_and_del_against_add() {
    let t = Twin::new(Whose::Ours);
    let at_once = |command: &str, n: std::ops::Range<u16>| {
        std::thread::scope(|s| {
            for i in n {
                let (t, command) = (&t, command);
                s.spawn(move || {
                    let c = conf(&made_up(10 + i as u8), json!([map(8000 + i, 80, "tcp"), map(8000 + i, 80, "udp")]));
                    // The same container twice: whoever is first, the end is the same.
                    for _ in 0..2 {
                        t.call_with(command, &format!("c{i}"), &c, &ANY).unwrap();
                    }
                });
            }
        });
    };
    at_once("ADD", 0..100);
    // Each mapping of each family, and masquerading: of its subnet, and of 127.0.0.0/8.
    assert_eq!(elements(&t), 100 * (4 + 4 + 2));
    let frame = chains(&t);
    at_once("DEL", 0..50);
    assert_eq!((elements(&t), chains(&t)), (50 * 10, frame));
    // One ADD and one DEL of the same container race; a DEL afterwards leaves nothing.
    std::thread::scope(|s| {
        for i in 0..10_u8 {
            let t = &t;
            s.spawn(move || {
                let c = conf(&made_up(200 + i), json!([map(9000 + u16::from(i), 80, "tcp")]));
                let name = format!("r{i}");
                let env = ANY;
                std::thread::scope(|s| {
                    s.spawn(|| t.call_with("ADD", &name, &c, &env).unwrap());
                    s.spawn(|| t.call_with("DEL", &name, &c, &env).unwrap());
                });
                t.call_with("DEL", &name, &c, &env).unwrap();
            });
        }
    });
    at_once("DEL", 50..100);
    assert_eq!((elements(&t), chains(&t)), (0, frame));
}

#[test]
fn what_the_reference_refuses_is_refused_and_named() {
    let with = |key: &str, v: Value| {
        let mut c = conf(&made_up(3), json!([map(8080, 80, "tcp")]));
        c[key] = v;
        c
    };
    let mappings = |v: Value| conf(&made_up(3), v);
    let cases = [
        (mappings(json!([map(0, 80, "tcp")])), "portMappings[0].hostPort is 0"),
        (mappings(json!([map(8080, 0, "tcp")])), "portMappings[0].containerPort is 0"),
        (mappings(json!([map(80, 80, "tcp"), map(81, 80, "icmp")])), "portMappings[1].protocol is \"icmp\""),
        (mappings(json!([{"hostPort": 1, "containerPort": 1}])), "portMappings[0].protocol is missing"),
        (mappings(json!([on("nowhere", 80, 80, "tcp")])), "portMappings[0].hostIP is \"nowhere\""),
        (with("markMasqBit", json!(32)), "markMasqBit is 32"),
        (with("conditionsV4", json!(["-m", "nosuch"])), "conditionsV4 has \"-m\""),
        (
            {
                let mut c = with("markMasqBit", json!(5));
                c["externalSetMarkChain"] = "KUBE-MARK-MASQ".into();
                c
            },
            "markMasqBit and externalSetMarkChain",
        ),
        (
            {
                let mut c = with("x", json!(1));
                c.as_object_mut().unwrap().remove("prevResult");
                c
            },
            "prevResult is missing",
        ),
    ];
    for (c, says) in &cases {
        let [ours, theirs] = BOTH.map(|whose| {
            let t = Twin::new(whose);
            (t.call_with("ADD", "c1", c, &ANY), elements(&t))
        });
        let e = ours.0.unwrap_err();
        assert!(e["msg"].as_str().unwrap().contains(says), "{e}");
        assert_eq!(ours.1, 0);
        assert!(theirs.0.is_err(), "the reference takes {c}");
    }
    // Only newer references know it.
    let t = Twin::new(Whose::Ours);
    let e = t.call_with("ADD", "c1", &with("backend", json!("ebpf")), &ANY).unwrap_err();
    assert!(e["msg"].as_str().unwrap().contains("backend is \"ebpf\""), "{e}");
}

#[test]
fn conditions_masquerading_of_all_and_none() {
    let [ours, theirs] = BOTH.map(|whose| {
        let mut out = BTreeMap::new();
        for (case, fields) in [
            ("from", json!({"conditionsV4": ["-s", "192.0.2.0/24"], "conditionsV6": ["!", "-s", "2001:db8::/32"]})),
            ("not from", json!({"conditionsV4": ["!", "-i", "up0"], "conditionsV6": ["-d", "2001:db8::1"]})),
            ("never", json!({"snat": false, "masqAll": true})),
            ("none", json!({"snat": false})),
            ("marked", json!({"markMasqBit": 14})),
        ] {
            let t = Twin::new(whose);
            world(&t.node);
            let c1 = bridged(&t.node, "c1", 3);
            bridged(&t.node, "c2", 4);
            let _echo = Echo::start(&t.node, "c1", &[80], &[]);
            let mut c = conf(&c1, json!([map(8080, 80, "tcp"), on("192.0.2.1", 9090, 80, "tcp")]));
            c.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            t.add("c1", &c);
            if whose == Whose::Ours {
                t.call("CHECK", "c1", &c).unwrap();
            }
            let places = [
                ("world", "tcp", "192.0.2.1:8080"),
                ("world", "tcp", "192.0.2.1:9090"),
                ("world", "tcp", "[2001:db8::1]:8080"),
                ("node", "tcp", "192.0.2.1:8080"),
                ("c2", "tcp", "192.0.2.1:8080"),
                ("c2", "tcp", "[2001:db8::1]:8080"),
                ("c1", "tcp", "192.0.2.1:8080"),
            ];
            out.extend(reach(&t, &places).into_iter().map(|(k, v)| (format!("{case}: {k}"), v)));
            t.del("c1", &c);
        }
        out
    });
    for (place, answer) in &ours {
        assert_eq!(Some(answer), theirs.get(place), "{place}");
    }
}

#[test]
fn a_client_that_spoke_before_the_mapping_is_heard_after_it_and_another_container_after_that() {
    let t = Twin::new(Whose::Ours);
    world(&t.node);
    let (c1, c2) = (bridged(&t.node, "c1", 3), bridged(&t.node, "c2", 4));
    let _echo = (Echo::start(&t.node, "c1", &[], &[53]), Echo::start(&t.node, "c2", &[], &[53]));
    // One port of the client's: one tracked connection, however it is answered.
    for to in ["192.0.2.1:5353", "[2001:db8::1]:5353"] {
        let ask = || udp(&t.node, "world", to, 40_000);
        assert_eq!(ask(), "refused");
        t.add("c1", &conf(&c1, json!([map(5353, 53, "udp")])));
        assert!(ask().starts_with("c1 saw "), "{to}: {}", ask());
        t.del("c1", &conf(&c1, json!([])));
        t.add("c2", &conf(&c2, json!([map(5353, 53, "udp")])));
        assert!(ask().starts_with("c2 saw "), "{to}: {}", ask());
        t.del("c2", &conf(&c2, json!([])));
        assert_eq!(ask(), "refused");
    }
}

#[test]
fn all_connections_are_masqueraded_on_demand() {
    // The reference of Debian does not know `masqAll` yet.
    let t = Twin::new(Whose::Ours);
    world(&t.node);
    let c1 = bridged(&t.node, "c1", 3);
    bridged(&t.node, "c2", 4);
    let _echo = Echo::start(&t.node, "c1", &[80], &[]);
    let mut c = conf(&c1, json!([map(8080, 80, "tcp")]));
    c["masqAll"] = true.into();
    t.add("c1", &c);
    t.call("CHECK", "c1", &c).unwrap();
    for (from, to, saw) in [
        ("world", "192.0.2.1:8080", "10.88.0.1"),
        ("world", "[2001:db8::1]:8080", "fd88::1"),
        ("node", "127.0.0.1:8080", "10.88.0.1"),
        ("c1", "192.0.2.1:8080", "10.88.0.1"),
        ("c2", "[2001:db8::1]:8080", "fd88::1"),
        // Not by the mapped port: as it is.
        ("c2", "10.88.0.3:80", "10.88.0.4"),
    ] {
        assert_eq!(tcp(&t.node, from, to), format!("c1 saw {saw}"), "{from} {to}");
    }
}

#[test]
fn the_page_tells_the_truth() {
    let t = Twin::new(Whose::Ours);
    let c1 = bridged(&t.node, "c1", 3);
    let _echo = Echo::start(&t.node, "c1", &[80], &[]);
    let mut c = page("portmap");
    // As a runtime does for the capability.
    assert_eq!(c["capabilities"]["portMappings"], true);
    c["runtimeConfig"] = json!({"portMappings": [map(8080, 80, "tcp")]});
    c["prevResult"] = c1;
    t.add("c1", &c);
    assert_eq!(tcp(&t.node, "node", "127.0.0.1:8080"), "c1 saw 10.88.0.1");
    let shown = t.node.sh("nft list table inet seaway-hostports");
    assert!(shown.contains("tcp . 8080 comment \"mynet c1/eth0\" : 10.88.0.3 . 80"), "{shown}");
    t.del("c1", &c);
}
