use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, refused_by_both, result, the_page_works, with};

fn conf(t: &Twin, more: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br7",
        "ipam": {"type": "host-local", "dataDir": t.dir("store"), "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}});
    for (k, v) in more.as_object().unwrap() {
        c[k] = v.clone();
    }
    c
}

fn forwarding(t: &Twin) -> String {
    t.node.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")
}

/// One life of two containers: what is said and seen at each step.
fn life(whose: Whose, more: &Value, version: &str) -> Vec<Value> {
    let t = Twin::new(whose);
    t.node.sh("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
    let c = with(&conf(&t, more), "cniVersion", version.into());
    let mut out = Vec::new();
    for id in ["c1", "c2"] {
        t.node.pod(id);
        let said = t.add(id, &c);
        // Debian's release does not know how to check an interface without addresses.
        if version >= "0.4.0" && (whose == Whose::Ours || c["ipam"] != json!({})) {
            t.call("CHECK", id, &with(&c, "prevResult", said.clone())).unwrap();
        }
        out.push(json!([result(&said), t.inside(id)]));
    }
    out.push(json!([t.outside(), t.ports(), forwarding(&t)]));
    // A second time is refused, and harms nothing.
    t.call("ADD", "c1", &c).unwrap_err();
    assert_eq!(t.outside(), out[2][0], "{whose:?}: after a second ADD");
    t.del("c1", &c);
    t.del("c1", &c);
    t.node.pod("c3");
    t.del("c3", &c);
    // Its namespace is gone; the kernel takes a moment to take its interfaces away.
    kernel::Netns::delete(t.node.dir.path().join("netns/c2")).unwrap();
    t.del("c2", &c);
    let veths = || t.outside()["links"].to_string().contains("veth*");
    for _ in 0..100 {
        if !veths() {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(20));
    }
    out.push(json!([t.inside("c1"), t.outside()]));
    assert!(!veths(), "{whose:?}: {}", t.outside());
    out
}

#[test]
fn what_is_said_and_seen_is_the_references() {
    let off = json!({});
    let table = [
        json!({}),
        json!({"isGateway": true}),
        json!({"isDefaultGateway": true}),
        json!({"isGateway": true, "ipMasq": true, "mtu": 1400}),
        json!({"isDefaultGateway": true, "hairpinMode": true}),
        json!({"isDefaultGateway": true, "promiscMode": true}),
        json!({"isGateway": true, "dns": {"nameservers": ["10.1.2.1"], "search": ["s"]}}),
        json!({"ipam": off, "mtu": 1300}),
        json!({"ipam": off, "hairpinMode": true}),
        json!({"isGateway": true, "ipam": {"type": "static", "addresses": [{"address": "10.3.0.7/16"}, {"address": "fd03::7/48", "gateway": "fd03::9"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.3.0.200"}, {"dst": "::/0"}]}}),
        json!({"runtimeConfig": {"mac": "02:11:22:33:44:55"}}),
    ];
    // The references wait more than they work.
    thread::scope(|s| {
        for more in &table {
            s.spawn(move || {
                let all = more.get("isDefaultGateway").is_some() && more.as_object().unwrap().len() == 1;
                for version in if all { &["0.3.0", "0.3.1", "0.4.0", "1.0.0"][..] } else { &["1.0.0"] } {
                    let [ours, theirs] = BOTH.map(|whose| life(whose, more, version));
                    assert_eq!(ours.len(), 4);
                    for (o, t) in ours.iter().zip(&theirs) {
                        assert_eq!(o, t, "{version} {more}");
                    }
                }
            });
        }
    });
}

#[test]
fn the_hardware_address_is_as_asked_by_whom() {
    let asked = |more: Value, args: &str| {
        BOTH.map(|whose| {
            let t = Twin::new(whose);
            t.node.pod("c1");
            let said = t.call_with("ADD", "c1", &conf(&t, &more), &[("CNI_ARGS", args)]).unwrap();
            let link = t.json_pod("c1", "ip -j link show eth0");
            assert_eq!(link[0]["address"], said["interfaces"][2]["mac"]);
            said["interfaces"][2]["mac"].as_str().unwrap().to_owned()
        })
    };
    let (a, b, c) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c");
    assert_eq!(asked(json!({}), &format!("IgnoreUnknown=1;MAC={a}")), [a; 2]);
    assert_eq!(asked(json!({"args": {"cni": {"mac": b}}}), &format!("IgnoreUnknown=1;MAC={a}")), [b; 2]);
    assert_eq!(asked(json!({"args": {"cni": {"mac": b}}, "runtimeConfig": {"mac": c}}), ""), [c; 2]);
}

#[test]
fn a_wrong_configuration_is_refused_by_both() {
    let refused = [
        (json!({"hairpinMode": true, "promiscMode": true}), "hairpinMode"),
        (json!({"vlan": 4095}), "vlan is 4095"),
        (json!({"vlan": -1}), "vlan is -1"),
        (json!({"runtimeConfig": {"mac": "nonsense"}}), "runtimeConfig.mac"),
        (json!({"bridge": "a-name-that-is-too-long"}), "bridge is"),
        (json!({"bridge": "up0"}), "no bridge"),
        (json!({"ipam": {"type": "nothing"}}), "no such plugin"),
        (json!({"isGateway": "yes"}), "isGateway"),
        (json!({"mtu": "big"}), "mtu"),
        (json!({"ipam": {"type": "host-local"}}), "ranges"),
    ];
    for (more, why) in refused {
        // Bridges stay with both.
        refused_by_both_but_bridges(&more, why);
    }
    // What Debian's release does not know yet, by the words of the newest.
    let newer = [
        (json!({"vlan": 5, "vlanTrunk": [{"id": 6}]}), "vlan and vlanTrunk"),
        (json!({"vlanTrunk": [{"minID": 6}]}), "maxID is missing"),
        (json!({"vlanTrunk": [{"maxID": 6}]}), "minID is missing"),
        (json!({"vlanTrunk": [{"minID": 7, "maxID": 6}]}), "greater than maxID"),
        (json!({"vlanTrunk": [{"id": 0}]}), "vlanTrunk[0].id"),
        (json!({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}), "vlanTrunk[0].maxID"),
        (json!({"ipMasqBackend": "ebpf"}), "ipMasqBackend"),
        (json!({"disableContainerInterface": true}), "disableContainerInterface"),
        (json!({"activateInterface": false}), "disableContainerInterface"),
    ];
    for (more, why) in newer {
        let t = Twin::new(Whose::Ours);
        t.node.pod("c1");
        let e = t.call("ADD", "c1", &conf(&t, &more)).unwrap_err();
        assert!(e.to_string().contains(why), "{more}: {e}");
        assert_eq!(e["code"], 7, "{e}");
    }
}

fn refused_by_both_but_bridges(more: &Value, why: &str) {
    for whose in BOTH {
        let t = Twin::new(whose);
        t.node.pod("c1");
        let inside = t.inside("c1");
        let e = t.call("ADD", "c1", &conf(&t, more)).expect_err(&format!("{whose:?} takes {more}"));
        if whose == Whose::Ours {
            assert!(e.to_string().contains(why), "{more}: {e}");
            assert_eq!(t.inside("c1"), inside, "{more}");
            assert!(!t.outside()["links"].to_string().contains("veth*"), "{more}");
        }
    }
}

#[test]
fn another_address_of_the_bridge_is_refused_or_replaced() {
    for whose in BOTH {
        let t = Twin::new(whose);
        // The reference cannot cope with a bridge that has lost its last port and with it its hardware address.
        let address = if whose == Whose::Theirs { "address 02:00:00:00:00:01" } else { "" };
        t.node.sh(&format!("ip link add br7 {address} type bridge"));
        t.node.sh("ip address add 10.1.2.254/24 dev br7; ip address add fd00:1::f/64 dev br7 nodad; ip address add fd02::1/64 dev br7 nodad");
        t.node.pod("c1");
        let c = conf(&t, &json!({"isGateway": true}));
        t.call("ADD", "c1", &c).unwrap_err();
        assert!(!t.outside()["links"].to_string().contains("veth*") || whose == Whose::Theirs);
        if whose == Whose::Theirs {
            // It leaves the interface behind.
            t.node.sh_pod("c1", "ip link del eth0 2>/dev/null || true");
        }
        t.add("c1", &with(&c, "forceAddress", true.into()));
        let shown = t.node.sh("ip -o address show dev br7 scope global");
        assert!(
            shown.contains("10.1.2.1/24") && shown.contains("fd00:1::1/64") && shown.contains("fd02::1/64"),
            "{shown}"
        );
        assert!(!shown.contains("10.1.2.254") && !shown.contains("fd00:1::f"), "{whose:?} {shown}");
    }
}

#[test]
fn isolation_and_what_else_is_newer_than_debians() {
    let t = Twin::new(Whose::Ours);
    t.node.pod("c1");
    let c = conf(&t, &json!({"ipam": {}, "portIsolation": true}));
    t.add("c1", &c);
    assert_eq!(t.ports()["ports"], json!([["veth*", false, true]]));
    t.del("c1", &c);
    let c = conf(&t, &json!({"ipam": {}, "disableContainerInterface": true}));
    t.add("c1", &c);
    assert!(t.node.sh_pod("c1", "ip -o link show eth0").contains("state DOWN"));
    t.del("c1", &c);
    // Duplicate detection: another that has the address is noticed.
    let c = conf(&t, &json!({"enabledad": true, "isGateway": true, "ipMasqBackend": "iptables", "ipMasq": true}));
    t.add("c1", &c);
    assert_eq!(t.node.sh_pod("c1", "cat /proc/sys/net/ipv6/conf/eth0/accept_dad").trim(), "1");
    assert_eq!(t.node.sh_pod("c1", "cat /proc/sys/net/ipv4/conf/eth0/arp_notify").trim(), "1");
    assert!(!t.node.sh_pod("c1", "ip -6 -o address show dev eth0 scope global").contains("tentative"));
}

#[test]
fn a_container_sends_from_its_own_hardware_address_only_when_it_must() {
    let t = Twin::new(Whose::Ours);
    let c = conf(&t, &json!({"isGateway": true, "macspoofchk": true}));
    for id in ["c1", "c2"] {
        t.node.pod(id);
        t.add(id, &c);
    }
    t.node.sh_pod("c1", "ping -c1 -W2 10.1.2.3; ping -c1 -W2 fd00:1::3");
    t.node
        .sh_pod("c1", "ip link set eth0 address 02:00:00:00:00:77; ! ping -c1 -W1 10.1.2.3; ! ping -c1 -W1 fd00:1::3");
}

#[test]
fn packets_go_between_containers_to_the_node_and_masqueraded_outside() {
    for whose in BOTH {
        let t = Twin::new(whose);
        let c = conf(&t, &json!({"isDefaultGateway": true, "ipMasq": true, "hairpinMode": true}));
        for id in ["c1", "c2"] {
            t.node.pod(id);
            t.add(id, &c);
        }
        t.node.pod("out");
        t.node.sh(&format!(
            "ip link set up1 down; ip link set up1 netns {}",
            t.node.dir.path().join("netns/out").display()
        ));
        // Outside knows no way back: only the node's own address is answered.
        t.node.sh_pod("out", "ip link set lo up; ip link set up1 up; ip address add 192.0.2.2/24 dev up1; ip address add 2001:db8::2/64 dev up1 nodad");
        t.node.sh_pod("c1", "ping -c1 -W2 10.1.2.3; ping -c1 -W2 10.1.2.1; ping -c1 -W2 192.0.2.2");
        t.node.sh_pod(
            "c1",
            "ping -c1 -W2 fd00:1::3; for i in 1 2 3 4 5; do ping -c1 -W1 2001:db8::2 && exit 0; done; exit 1",
        );
        if whose == Whose::Ours {
            let table = t.node.sh("nft list table inet seaway-masq");
            assert!(table.contains("10.1.2.2") && table.contains("fd00:1::3"), "{table}");
            t.del("c1", &c);
            assert!(!t.node.sh("nft list table inet seaway-masq").contains("10.1.2.2"));
            t.del("c2", &c);
            assert!(!t.node.sh("nft list tables").contains("seaway"));
        }
    }
}

#[test]
fn masquerading_knows_whose_an_address_is() {
    let t = Twin::new(Whose::Ours);
    let of = |ip: &str| {
        with(
            &conf(&t, &json!({"ipMasq": true, "ipam": {"type": "static", "addresses": [{"address": ip}]}})),
            "cniVersion",
            "1.1.0".into(),
        )
    };
    for id in ["a", "b", "c"] {
        t.node.pod(id);
    }
    let listed = || t.node.sh("nft list map inet seaway-masq source4");
    let added = t.add("a", &of("10.5.0.2/24"));
    // The DEL of a is lost; b gets its address.
    t.add("b", &of("10.5.0.2/24"));
    assert!(listed().contains("net b/eth0") && !listed().contains("net a/eth0"), "{}", listed());
    t.call("CHECK", "a", &with(&of("10.5.0.2/24"), "prevResult", added)).unwrap_err();
    t.del("a", &of("10.5.0.2/24"));
    assert!(listed().contains("net b/eth0"));
    // Another length of prefix comes to a table that is there.
    let said = t.add("c", &of("10.6.0.2/16"));
    t.call("CHECK", "c", &with(&of("10.6.0.2/16"), "prevResult", said.clone())).unwrap();
    let gc = with(&of("10.5.0.2/24"), "cni.dev/valid-attachments", json!([{"containerID": "c", "ifname": "eth0"}]));
    t.call("GC", "x", &gc).unwrap();
    assert!(!listed().contains("10.5.0.2") && listed().contains("10.6.0.2"));
    t.node.sh("nft delete table inet seaway-masq");
    let e = t.call("CHECK", "c", &with(&of("10.6.0.2/16"), "prevResult", said)).unwrap_err();
    assert!(e.to_string().contains("masqueraded"), "{e}");
    t.call("STATUS", "x", &of("10.5.0.2/24")).unwrap();
}

#[test]
fn check_finds_what_somebody_changed() {
    for whose in BOTH {
        let t = Twin::new(whose);
        let c = conf(&t, &json!({"isDefaultGateway": true}));
        t.node.pod("c1");
        let said = t.add("c1", &c);
        let check = || t.call("CHECK", "c1", &with(&c, "prevResult", said.clone()));
        check().unwrap();
        let changes = [
            ("ip route del default", "ip route add default via 10.1.2.1"),
            (
                "ip address del 10.1.2.2/24 dev eth0",
                "ip address add 10.1.2.2/24 dev eth0; ip route add default via 10.1.2.1",
            ),
        ];
        for (change, back) in changes {
            t.node.sh_pod("c1", change);
            check().expect_err(change);
            t.node.sh_pod("c1", back);
            check().unwrap();
        }
        t.node.sh("ip link set dev br7 promisc on");
        check().expect_err("promisc");
        t.node.sh("ip link set dev br7 promisc off");
        let port = said["interfaces"][1]["name"].as_str().unwrap();
        t.node.sh(&format!("ip link set {port} nomaster"));
        check().expect_err("nomaster");
        t.node.sh(&format!("ip link set {port} master br7"));
        check().unwrap();
        t.call("CHECK", "c1", &c).expect_err("no prevResult");
        t.node.sh_pod("c1", "ip link del eth0");
        check().expect_err("no eth0");
    }
}

#[test]
fn a_hundred_at_once_and_deletes_between() {
    let t = Twin::new(Whose::Ours);
    let c = conf(&t, &json!({"isDefaultGateway": true, "ipMasq": true}));
    let ids: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
    for id in &ids {
        t.node.pod(id);
    }
    let given: Vec<String> = thread::scope(|s| {
        let of = |id: String| {
            let (t, c) = (&t, &c);
            move || {
                let v = t.add(&id, c);
                [0, 1].map(|i| v["ips"][i]["address"].as_str().unwrap().to_owned())
            }
        };
        let all: Vec<_> = ids.iter().cloned().map(|id| s.spawn(of(id))).collect();
        all.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 200);
    t.node.sh_pod("c99", "ping -c1 -W2 10.1.2.1");
    // ADD, ADD again and DEL of one container race; afterwards one DEL leaves nothing of it.
    thread::scope(|s| {
        for command in ["DEL", "ADD", "DEL", "ADD", "DEL"] {
            for id in &ids[..10] {
                let (t, c) = (&t, &c);
                s.spawn(move || t.call(command, id, c));
            }
        }
    });
    thread::scope(|s| ids.iter().for_each(|id| drop(s.spawn(|| t.del(id, &c)))));
    assert!(!t.node.sh("nft list tables").contains("seaway"), "{}", t.node.sh("nft list ruleset"));
    assert!(!t.outside()["links"].to_string().contains("veth*"));
    let left: Vec<_> = std::fs::read_dir(std::path::Path::new(&t.dir("store")).join("net"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .filter(|n| n.to_str().unwrap().starts_with("10."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_pages_configuration_works() {
    let t = Twin::new(Whose::Ours);
    the_page_works(&t, "bridge");
    refused_by_both(|t| with(&conf(t, &json!({})), "name", "../x".into()), "name");
}
