//! firewall by packets: which containers reach which, ours beside the reference's.

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, result};
use crate::wires::{Echo, beyond, bridged, tcp};

fn conf(prev: &Value, fields: Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "firewall", "prevResult": prev});
    c.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    c
}

fn reach(t: &Twin) -> Vec<String> {
    [
        ("c1", "10.89.0.5:80"),
        ("c1", "[fd89::5]:80"),
        ("c2", "10.88.0.3:80"),
        ("c2", "[fd88::3]:80"),
        ("c3", "10.88.0.3:80"),
        ("node", "10.88.0.3:80"),
        ("node", "[fd89::5]:80"),
    ]
    .iter()
    .map(|(from, to)| format!("{from} to {to}: {}", tcp(&t.node, from, to)))
    .collect()
}

#[test]
fn bridges_are_kept_apart_as_by_the_reference() {
    for policy in
        [json!({}), json!({"ingressPolicy": "open", "backend": "iptables"}), json!({"ingressPolicy": "same-bridge"})]
    {
        let [ours, theirs] = BOTH.map(|whose| {
            let t = Twin::new(whose);
            let (c1, c3, c2) = (bridged(&t.node, "c1", 3), bridged(&t.node, "c3", 4), beyond(&t.node, "c2", 5));
            let _echo = (Echo::start(&t.node, "c1", &[80], &[]), Echo::start(&t.node, "c2", &[80], &[]));
            let before = reach(&t);
            let added = t.add("c1", &conf(&c1, policy.clone()));
            let one = reach(&t);
            t.add("c3", &conf(&c3, policy.clone()));
            t.add("c2", &conf(&c2, policy.clone()));
            let all = reach(&t);
            t.call("CHECK", "c1", &conf(&c1, policy.clone())).unwrap();
            t.del("c1", &conf(&c1, policy.clone()));
            t.del("c1", &conf(&c1, policy.clone()));
            (before, result(&added), one, all)
        });
        assert_eq!(ours, theirs, "{policy}");
    }
}

fn left(t: &Twin) -> String {
    t.node.sh("nft list table inet seaway-firewall 2>/dev/null || true")
}

#[test]
fn an_administrator_has_the_first_word_and_del_takes_exactly_its_own() {
    let t = Twin::new(Whose::Ours);
    let (c1, c2) = (bridged(&t.node, "c1", 3), beyond(&t.node, "c2", 5));
    let _echo = Echo::start(&t.node, "c2", &[80], &[]);
    let with = json!({"iptablesAdminChainName": "MY-RULES", "ingressPolicy": "same-bridge"});
    t.add("c1", &conf(&c1, json!({})));
    t.node.sh("nft add rule inet seaway-firewall CNI-ADMIN ip saddr 10.88.0.3 tcp dport 80 reject");
    assert_eq!(tcp(&t.node, "c1", "10.89.0.5:80"), "refused");
    t.add("c2", &conf(&c2, with.clone()));
    t.add("c1", &conf(&c1, json!({})));
    assert_eq!(tcp(&t.node, "c1", "10.89.0.5:80"), "refused", "{}", left(&t));
    for harm in ["nft flush chain inet seaway-firewall forward", "nft flush set inet seaway-firewall members"] {
        t.node.sh(harm);
        let e = t.call("CHECK", "c2", &conf(&c2, with.clone())).unwrap_err();
        assert_eq!(e["code"], 101, "{harm}: {e}");
        t.add("c2", &conf(&c2, with.clone()));
        t.call("CHECK", "c2", &conf(&c2, with.clone())).unwrap();
    }
    assert!(left(&t).contains("reject"), "{}", left(&t));
    t.del("c2", &json!({"cniVersion": "1.0.0", "name": "net", "type": "firewall"}));
    assert!(
        !left(&t).contains("c2/eth0") && !left(&t).contains("\"cni9\"") && left(&t).contains("c1/eth0"),
        "{}",
        left(&t)
    );
    let gc = json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "cni.dev/valid-attachments": []});
    t.call("GC", "", &gc).unwrap();
    assert!(!left(&t).contains("comment"), "{}", left(&t));
    t.node.sh("nft flush ruleset");
    t.del("c1", &conf(&c1, json!({})));
    t.call("STATUS", "", &gc).unwrap();
    assert_eq!(left(&t), "");
}

#[test]
fn many_at_once_and_what_is_refused() {
    let t = Twin::new(Whose::Ours);
    let env = [("CNI_NETNS", "/proc/1/ns/net")];
    let made_up = |n: u16| {
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": format!("br{}", n % 3)}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"interface": 1, "address": format!("10.88.1.{n}/24")}]})
    };
    let at_once = |command: &str| {
        std::thread::scope(|s| {
            for n in 1..60 {
                let (t, command, env) = (&t, command, &env);
                let c = conf(&made_up(n), json!({"ingressPolicy": "same-bridge"}));
                s.spawn(move || t.call_with(command, &format!("c{n}"), &c, env).unwrap());
            }
        });
    };
    at_once("ADD");
    assert_eq!(left(&t).matches("comment").count(), 2 * 59);
    at_once("DEL");
    assert!(!left(&t).contains("comment") && !left(&t).contains("br1"), "{}", left(&t));
    let before = left(&t);
    for (fields, says) in [
        (json!({"backend": "firewalld"}), "backend is \"firewalld\": firewalld is not spoken to"),
        (json!({"ingressPolicy": "none"}), "ingressPolicy is \"none\""),
        (json!({"iptablesAdminChainName": "forward"}), "iptablesAdminChainName is \"forward\""),
        (json!({"ingressPolicy": "same-bridge", "prevResult": {"cniVersion": "1.0.0"}}), "chain firewall after"),
        (json!({"prevResult": null}), "prevResult is missing"),
    ] {
        let e = t.call_with("ADD", "c1", &conf(&made_up(1), fields), &env).unwrap_err();
        assert!(e["msg"].as_str().unwrap().contains(says), "{e}");
        assert_eq!(left(&t), before);
    }
}

#[test]
fn the_page_tells_the_truth() {
    let t = Twin::new(Whose::Ours);
    let (c1, _c2) = (bridged(&t.node, "c1", 3), beyond(&t.node, "c2", 5));
    let _echo = Echo::start(&t.node, "c1", &[80], &[]);
    let mut c = page("firewall");
    assert_eq!(c["ingressPolicy"], "same-bridge");
    c["prevResult"] = c1;
    t.add("c1", &c);
    // The other bridge asked for nothing.
    assert_eq!(tcp(&t.node, "c2", "10.88.0.3:80"), "c1 saw 10.89.0.5");
    t.call("CHECK", "c1", &c).unwrap();
}
