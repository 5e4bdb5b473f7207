//! tuning, ours beside the reference's: what the container's interface and namespace have during and after.

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page};
use crate::wires::bridged;

const SYSCTLS: &str = "for f in ipv4/conf/eth0/arp_filter ipv4/ip_unprivileged_port_start core/somaxconn \
    ipv6/conf/all/forwarding ipv4/ip_local_port_range; do cat /proc/sys/net/$f; done";

fn conf(t: &Twin, prev: &Value, fields: Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": t.dir("tuning"),
        "prevResult": prev});
    c.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    c
}

/// Sysctls, and the interface's own settings.
fn seen(t: &Twin) -> Value {
    let l = &t.json_pod("c1", "ip -j -d link show eth0")[0];
    json!({"sysctls": t.node.sh_pod("c1", SYSCTLS), "mac": l["address"], "mtu": l["mtu"], "promisc": l["promiscuity"],
        "flags": l["flags"], "queue": l["txqlen"]})
}

fn files(t: &Twin) -> usize {
    std::fs::read_dir(t.dir("tuning")).map_or(0, Iterator::count)
}

#[test]
fn the_interface_is_tuned_and_put_back_as_with_the_reference() {
    let cases = [
        json!({"sysctl": {"net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.conf.IFNAME.arp_filter": "1",
            "net.core.somaxconn": "500", "net.ipv4.ip_local_port_range": "2000 3000"}}),
        json!({"mac": "02:11:22:33:44:55", "mtu": 1400, "promisc": true, "allmulti": true}),
        json!({"runtimeConfig": {"mac": "02:11:22:33:44:66"}, "mac": "02:00:00:00:00:02"}),
        json!({"args": {"cni": {"mac": "02:11:22:33:44:77", "mtu": 1300, "promisc": true, "allmulti": true,
            "sysctl": {"net.core.somaxconn": "600"}}}, "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1500}),
        json!({"allmulti": false}),
        json!({}),
    ];
    for fields in cases {
        let [ours, theirs] = BOTH.map(|whose| {
            let t = Twin::new(whose);
            let c1 = bridged(&t.node, "c1", 3);
            t.node.sh_pod("c1", "ip link set eth0 address 02:aa:00:00:00:03");
            let c = conf(&t, &c1, fields.clone());
            let before = seen(&t);
            let mut added = t.add("c1", &c);
            added["interfaces"][2]["sandbox"] = "c1".into();
            let during = seen(&t);
            let has_ifname = c["sysctl"]["net.ipv4.conf.IFNAME.arp_filter"].is_string();
            if whose == Whose::Ours || !(has_ifname || during["promisc"] != 0) {
                t.call("CHECK", "c1", &c).unwrap();
            }
            t.del("c1", &c);
            t.del("c1", &c);
            let after = seen(&t);
            assert_eq!(
                (&after["mac"], &after["mtu"], &after["flags"]),
                (&before["mac"], &before["mtu"], &before["flags"])
            );
            assert_eq!(files(&t), 0);
            (before, added, during, after)
        });
        assert_eq!(ours, theirs, "{fields}");
    }
}

#[test]
fn arguments_queue_length_and_check() {
    let t = Twin::new(Whose::Ours);
    let c1 = bridged(&t.node, "c1", 3);
    let c = conf(&t, &c1, json!({"txQLen": 77, "mtu": 1400, "sysctl": {"net.core.somaxconn": "700"}}));
    let before = seen(&t);
    t.call_with("ADD", "c1", &c, &[("CNI_ARGS", "MAC=02:00:00:00:00:09;IgnoreUnknown=1;K8S_POD_NAME=x")]).unwrap();
    let during = seen(&t);
    assert_eq!((&during["queue"], &during["mac"]), (&77.into(), &"02:00:00:00:00:09".into()));
    // Again, with another value: what goes back is what was there at first.
    t.add("c1", &conf(&t, &c1, json!({"txQLen": 78, "mtu": 1400})));
    for (harm, says) in [
        ("ip link set eth0 mtu 1380", "its MTU is 1380"),
        ("ip link set eth0 mtu 1400 txqueuelen 9", "its queue holds 9 packets"),
        ("ip link set eth0 txqueuelen 77; echo 5 > /proc/sys/net/core/somaxconn", "sysctl net/core/somaxconn is \"5\""),
    ] {
        t.node.sh_pod("c1", harm);
        let e = t.call("CHECK", "c1", &c).unwrap_err();
        assert!(e["details"].as_str().unwrap().contains(says), "{e}");
    }
    t.del("c1", &json!({"cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": t.dir("tuning")}));
    let after = seen(&t);
    assert_eq!((&after["queue"], &after["mac"], &after["mtu"]), (&before["queue"], &before["mac"], &before["mtu"]));
    // A DEL that never came.
    t.add("c1", &c);
    let gc = |network: &str, valid: Value| {
        json!({"cniVersion": "1.1.0", "name": network, "type": "tuning", "dataDir": t.dir("tuning"),
            "cni.dev/valid-attachments": valid})
    };
    t.call("GC", "", &gc("other", json!([]))).unwrap();
    t.call("GC", "", &gc("net", json!([{"containerID": "c1", "ifname": "eth0"}]))).unwrap();
    assert_eq!(files(&t), 1);
    t.call("GC", "", &gc("net", json!([]))).unwrap();
    assert_eq!(files(&t), 0);
}

#[test]
fn a_refused_value_leaves_everything_as_it_was() {
    let t = Twin::new(Whose::Ours);
    let c1 = bridged(&t.node, "c1", 3);
    let before = seen(&t);
    for (fields, says) in [
        (json!({"sysctl": {"net.core.somaxconn": "500", "net.ipv4.nosuch": "1"}}), "net/ipv4/nosuch"),
        (
            json!({"sysctl": {"net.core.somaxconn": "500", "kernel.hostname": "x"}}),
            "sysctl kernel.hostname is not of the network",
        ),
        (json!({"sysctl": {"net.core.somaxconn": "many"}}), "net/core/somaxconn"),
        (json!({"sysctl": {"net.core.somaxconn": 5}}), "sysctl.net.core.somaxconn is no text"),
        (json!({"sysctl": {"net.core.somaxconn": "500"}, "mac": "01:00:00:00:00:01", "mtu": 1400}), "link set eth0"),
        (json!({"mac": "02:00"}), "mac is \"02:00\""),
        (json!({"mtu": 70000}), "mtu is 70000"),
        (json!({"promisc": "yes"}), "promisc is \"yes\""),
    ] {
        let e = t.call("ADD", "c1", &conf(&t, &c1, fields)).expect_err(says);
        assert!(e["msg"].as_str().unwrap().contains(says), "{says}: {e}");
        assert_eq!((seen(&t), files(&t)), (before.clone(), 0), "{says}");
    }
    let mut unchained = conf(&t, &c1, json!({"mtu": 1400}));
    unchained.as_object_mut().unwrap().remove("prevResult");
    t.call("ADD", "c1", &unchained).unwrap_err();
    t.del("gone", &unchained);
}

#[test]
fn the_page_tells_the_truth() {
    let t = Twin::new(Whose::Ours);
    let mut c = page("tuning");
    c["prevResult"] = bridged(&t.node, "c1", 3);
    c["dataDir"] = t.dir("tuning").into();
    t.add("c1", &c);
    t.call("CHECK", "c1", &c).unwrap();
    let during = seen(&t);
    assert!(during["sysctls"].as_str().unwrap().contains("\n4096\n"), "{during}");
    t.del("c1", &c);
}
