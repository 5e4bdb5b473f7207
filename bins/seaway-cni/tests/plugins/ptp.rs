use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, dual_stack, refused_by_both, result, the_page_works, with};

fn conf(t: &Twin, more: &Value) -> Value {
    dual_stack(t, "ptp", "10.1.2.1", more)
}

#[test]
fn what_is_said_and_seen_is_the_references() {
    let table = [
        json!({}),
        json!({"mtu": 1400, "ipMasq": true}),
        json!({"dns": {"nameservers": ["10.1.2.1"], "domain": "d"}}),
        json!({"ipam": {"type": "static", "addresses": [{"address": "10.3.0.7/16", "gateway": "10.3.9.9"}]}}),
        json!({"ipam": {"type": "static", "addresses": [{"address": "fd03::7/48", "gateway": "fd03::9"}], "routes": [{"dst": "::/0"}],
            "dns": {"search": ["x"]}}}),
    ];
    for more in table {
        let fixed = more["ipam"]["type"] == "static";
        for version in if more == json!({}) { &["0.3.0", "0.3.1", "0.4.0", "1.0.0"][..] } else { &["1.0.0"] } {
            let [ours, theirs] = BOTH.map(|whose| {
                let t = Twin::new(whose);
                t.node.sh("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
                let c = with(&conf(&t, &more), "cniVersion", (*version).into());
                let mut out = Vec::new();
                for id in if fixed { &["c1"][..] } else { &["c1", "c2"] } {
                    t.node.pod(id);
                    let said = t.add(id, &c);
                    if *version >= "0.4.0" {
                        t.call("CHECK", id, &with(&c, "prevResult", said.clone())).unwrap();
                    }
                    out.push(json!([result(&said), t.inside(id)]));
                }
                out.push(t.outside());
                out.push(t.node.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding").into());
                t.del("c1", &c);
                t.del("c1", &c);
                out.push(json!([t.inside("c1"), t.outside()]));
                out
            });
            for (o, t) in ours.iter().zip(&theirs) {
                assert_eq!(o, t, "{version} {more}");
            }
        }
    }
}

#[test]
fn packets_go_between_containers_to_the_node_and_masqueraded_outside() {
    for whose in BOTH {
        let t = Twin::new(whose);
        let c = conf(&t, &json!({"ipMasq": true}));
        for id in ["c1", "c2"] {
            t.node.pod(id);
            t.add(id, &c);
        }
        t.node.pod("out");
        t.node.sh(&format!("ip link set up1 netns {}", t.node.dir.path().join("netns/out").display()));
        t.node.sh_pod("out", "ip link set lo up; ip link set up1 up; ip address add 192.0.2.2/24 dev up1; ip address add 2001:db8::2/64 dev up1 nodad");
        t.node.sh_pod("c1", "ping -c1 -W2 10.1.2.3; ping -c1 -W2 10.1.2.1; ping -c1 -W2 192.0.2.2");
        t.node.sh_pod(
            "c1",
            "for i in 1 2 3 4 5; do ping -c1 -W1 fd00:1::3 && ping -c1 -W1 2001:db8::2 && exit 0; done; exit 1",
        );
        t.node.sh("ping -c1 -W2 10.1.2.2");
        t.del("c1", &c);
        t.del("c2", &c);
        assert!(!t.node.sh("nft list tables; nft list ruleset").contains("10.1.2."));
    }
}

#[test]
fn a_wrong_configuration_is_refused_by_both() {
    for (more, why) in [
        (json!({"ipam": {}}), "ipam.type"),
        (json!({"ipam": {"type": "nothing"}}), "no such plugin"),
        (json!({"ipam": {"type": "static"}}), "no address"),
        (json!({"ipam": {"type": "static", "addresses": [{"address": "10.3.0.7/16"}]}}), "gateway"),
        (json!({"mtu": "x"}), "mtu"),
        (json!({"ipMasq": 1}), "ipMasq"),
    ] {
        refused_by_both(|t| conf(t, &more), why);
    }
    let t = Twin::new(Whose::Ours);
    t.node.pod("c1");
    let e = t.call("ADD", "c1", &conf(&t, &json!({"ipMasqBackend": "x"}))).unwrap_err();
    assert!(e.to_string().contains("ipMasqBackend"), "{e}");
    // An address that another interface has.
    t.node.sh("ip route add 10.1.2.2/32 dev up0");
    let before = t.outside();
    let e = t.call("ADD", "c1", &conf(&t, &json!({}))).unwrap_err();
    assert!(e.to_string().contains("routed elsewhere"), "{e}");
    assert_eq!(t.outside(), before);
    t.node.sh_pod("c1", "! ip link show eth0");
}

#[test]
fn the_pages_configuration_works() {
    let t = Twin::new(Whose::Ours);
    the_page_works(&t, "ptp");
}
