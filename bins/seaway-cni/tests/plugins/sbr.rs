//! sbr, ours beside the reference's: rules, tables and routes of the container.

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page};
use crate::wires::bridged;

fn conf(prev: &Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "type": "sbr", "prevResult": prev})
}

/// A second interface with addresses and routes, and its result.
fn second(t: &Twin) -> Value {
    t.node.sh_pod(
        "c1",
        "ip link add net1 type veth peer name far1; ip link set net1 up; ip link set far1 up
         ip address add 198.51.100.7/24 dev net1; ip address add 2001:db8:7::7/64 dev net1 nodad
         ip route add 203.0.113.0/24 via 198.51.100.1; ip -6 route add 2001:db8:8::/64 via 2001:db8:7::1",
    );
    json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": "/x"}],
        "ips": [{"interface": 0, "address": "198.51.100.7/24", "gateway": "198.51.100.1"},
                {"interface": 0, "address": "2001:db8:7::7/64", "gateway": "2001:db8:7::1"}], "dns": {}})
}

/// Rules and routes, with the tables they are in, as text; the kernel's own of table local left out.
fn seen(t: &Twin) -> Vec<String> {
    let text = t.node.sh_pod("c1", "ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all");
    let mut lines: Vec<String> = text
        .lines()
        // The reference also puts the IPv6 subnet into the table of the IPv4 address, where nothing asks for it.
        .filter(|l| !(l.contains("2001:db8:7::/64") && l.contains("table 100 ")))
        .filter(|l| !(l.contains("fd88::/64") && l.contains("table 102 ")))
        .filter(|l| !l.contains("table local") && !l.contains("fe80::") && !l.contains("ff00::"))
        .map(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            let mut out = Vec::new();
            let mut i = 0;
            while i < words.len() {
                // Who made a route, and what the kernel prefers it by, are not its meaning.
                if matches!(words[i], "proto" | "pref" | "src") {
                    i += 1;
                } else {
                    out.push(words[i]);
                }
                i += 1;
            }
            out.join(" ")
        })
        .collect();
    lines.sort();
    lines
}

const NET1: [(&str, &str); 1] = [("CNI_IFNAME", "net1")];

#[test]
fn rules_and_tables_are_the_reference_s() {
    let [ours, theirs] = BOTH.map(|whose| {
        let t = Twin::new(whose);
        let c1 = bridged(&t.node, "c1", 3);
        let net1 = second(&t);
        let before = seen(&t);
        t.call_with("ADD", "c1", &conf(&net1), &NET1).unwrap();
        let one = seen(&t);
        t.add("c1", &conf(&c1));
        let two = seen(&t);
        t.call_with("CHECK", "c1", &conf(&net1), &NET1).unwrap();
        t.call("CHECK", "c1", &conf(&c1)).unwrap();
        t.call_with("DEL", "c1", &conf(&net1), &NET1).unwrap();
        let gone = seen(&t);
        t.call_with("DEL", "c1", &conf(&net1), &NET1).unwrap();
        t.del("c1", &conf(&c1));
        (before, one, two, gone, seen(&t))
    });
    assert_eq!(ours.0, theirs.0);
    assert_eq!(ours.1, theirs.1, "one interface");
    assert_eq!(ours.2, theirs.2, "two");
    assert_eq!(ours.3, theirs.3, "the second gone");
    assert_eq!(ours.4, theirs.4, "both gone");
}

#[test]
fn again_by_number_and_refused() {
    let t = Twin::new(Whose::Ours);
    bridged(&t.node, "c1", 3);
    let net1 = second(&t);
    let mut c = conf(&net1);
    c["table"] = 777.into();
    t.call_with("ADD", "c1", &c, &NET1).unwrap();
    let once = seen(&t);
    assert!(once.iter().any(|l| l.contains("from 198.51.100.7 lookup 777")), "{once:?}");
    t.call_with("ADD", "c1", &c, &NET1).unwrap();
    assert_eq!(seen(&t), once, "the same again");
    t.call_with("CHECK", "c1", &c, &NET1).unwrap();
    t.node.sh_pod("c1", "ip route del default table 777");
    let e = t.call_with("CHECK", "c1", &c, &NET1).unwrap_err();
    assert!(e["details"].as_str().unwrap().contains("table 777 has no default route by net1"), "{e}");
    // What the address was, when the interface is gone.
    t.node.sh_pod("c1", "ip link del net1");
    t.call_with("DEL", "c1", &c, &NET1).unwrap();
    assert!(!seen(&t).iter().any(|l| l.contains("777")));
    t.call_with("DEL", "gone", &c, &NET1).unwrap();

    let before = seen(&t);
    let nowhere = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": "/x"}],
        "ips": [{"interface": 0, "address": "198.51.100.7/24"}]});
    for (c, says) in [
        (conf(&nowhere), "there is no interface net1"),
        (conf(&json!({"cniVersion": "1.0.0"})), "prevResult has no address of net1"),
        (json!({"cniVersion": "1.0.0", "name": "net", "type": "sbr"}), "prevResult is missing"),
        (
            {
                let mut c = conf(&nowhere);
                c["table"] = 254.into();
                c
            },
            "table is 254",
        ),
    ] {
        let e = t.call_with("ADD", "c1", &c, &NET1).unwrap_err();
        assert!(e["msg"].as_str().unwrap().contains(says), "{e}");
        assert_eq!(seen(&t), before);
    }
}

#[test]
fn a_gateway_that_cannot_be_leaves_everything_as_it_was() {
    let t = Twin::new(Whose::Ours);
    bridged(&t.node, "c1", 3);
    let mut net1 = second(&t);
    net1["ips"][1]["gateway"] = "2001:db8:99::1".into();
    t.node.sh_pod("c1", "ip -6 route del 2001:db8:8::/64");
    let before = seen(&t);
    t.call_with("ADD", "c1", &conf(&net1), &NET1).unwrap_err();
    assert_eq!(seen(&t), before);
}

#[test]
fn the_page_tells_the_truth() {
    let t = Twin::new(Whose::Ours);
    bridged(&t.node, "c1", 3);
    let mut c = page("sbr");
    c["prevResult"] = second(&t);
    t.call_with("ADD", "c1", &c, &NET1).unwrap();
    let shown = t.node.sh_pod("c1", "ip route get 8.8.8.8 from 198.51.100.7");
    assert!(shown.contains("dev net1"), "{shown}");
    let shown = t.node.sh_pod("c1", "ip route get 8.8.8.8 from 10.88.0.3");
    assert!(shown.contains("dev eth0"), "{shown}");
}
