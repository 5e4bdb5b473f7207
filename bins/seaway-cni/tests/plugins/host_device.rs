//! host-device, ours beside the reference's, with an end of a veth pair: what the container has, and what comes back.

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, refused_by_both, result, the_page_works, with};

/// A node with an interface to give away.
fn world(whose: Whose) -> Twin {
    let t = Twin::new(whose);
    t.node.sh("ip link add nic0 address 02:aa:00:00:00:07 type veth peer name wire0; ip link set nic0 up; ip link set wire0 up");
    t.node.sh("ip link add eth0 type veth peer name eth1");
    t
}

fn conf(t: &Twin, more: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "host-device",
        "ipam": {"type": "host-local", "dataDir": t.dir("store"), "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}});
    for (k, v) in more.as_object().unwrap() {
        c[k] = v.clone();
    }
    c
}

fn nic(t: &Twin) -> Value {
    t.json("ip -j link show nic0")[0].clone()
}

#[test]
fn what_is_said_and_seen_is_the_references() {
    for more in [
        json!({"device": "nic0"}),
        json!({"hwaddr": "02:AA:00:00:00:07"}),
        json!({"device": "nic0", "ipam": {}}),
        json!({"device": "nic0", "dns": {"nameservers": ["10.1.2.1"]}}),
    ] {
        let [ours, theirs] = BOTH.map(|whose| {
            let t = world(whose);
            t.node.pod("c1");
            let c = conf(&t, &more);
            let said = t.add("c1", &c);
            t.call("CHECK", "c1", &with(&c, "prevResult", said.clone())).unwrap();
            let eth0 = t.json_pod("c1", "ip -j link show eth0")[0].clone();
            assert_eq!((&eth0["ifalias"], &eth0["address"]), (&"nic0".into(), &"02:aa:00:00:00:07".into()), "{eth0}");
            let during = json!([result(&said), t.inside("c1"), t.outside()]);
            t.del("c1", &c);
            if whose == Whose::Ours {
                t.del("c1", &c);
                assert!(nic(&t)["ifalias"].is_null(), "{}", nic(&t));
                let held = std::fs::read_dir(t.dir("store/net")).map_or(0, |d| {
                    d.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("10.1.2.")).count()
                });
                assert_eq!(held, 0);
            }
            assert_eq!(nic(&t)["address"], "02:aa:00:00:00:07");
            json!([during, t.inside("c1"), t.outside()])
        });
        assert_eq!(ours, theirs, "{more}");
    }
}

#[test]
fn a_failed_add_gives_it_back_and_another_ones_interface_is_left_alone() {
    let t = world(Whose::Ours);
    t.node.pod("c1");
    let before = (t.inside("c1"), t.outside());
    // The route's gateway is nowhere: it fails when the interface is inside.
    let wrong = json!({"device": "nic0", "ipam": {"type": "static", "addresses": [{"address": "10.3.0.7/16"}],
        "routes": [{"dst": "10.9.0.0/16", "gw": "192.168.7.7"}]}});
    t.call("ADD", "c1", &conf(&t, &wrong)).unwrap_err();
    assert_eq!((t.inside("c1"), t.outside()), before);
    assert!(nic(&t)["ifalias"].is_null(), "{}", nic(&t));
    let e = t.call("ADD", "c1", &conf(&t, &json!({"device": "nic0", "ipam": {"type": "static"}}))).unwrap_err();
    assert!(e.to_string().contains("no address"), "{e}");
    assert_eq!((t.inside("c1"), t.outside()), before);
    // The name is taken: neither ADD nor the DEL that follows does anything to its owner.
    t.node.sh_pod("c1", "ip link add eth0 type veth peer name x1");
    let before = (t.inside("c1"), t.outside());
    let c = conf(&t, &json!({"device": "nic0"}));
    let e = t.call("ADD", "c1", &c).unwrap_err();
    assert!(e.to_string().contains("DEL comes first"), "{e}");
    t.del("c1", &c);
    assert_eq!((t.inside("c1"), t.outside()), before);
}

#[test]
fn an_old_name_that_is_taken_and_a_namespace_that_is_gone() {
    let t = world(Whose::Ours);
    t.node.pod("c1");
    let c = conf(&t, &json!({"device": "nic0"}));
    t.add("c1", &c);
    t.node.sh("ip link add nic0 type veth peer name other0");
    let e = t.call("DEL", "c1", &c).unwrap_err();
    assert!(e.to_string().contains("rename that"), "{e}");
    t.node.sh("ip link del nic0");
    // The kernel gives hardware back as it is named inside, or as devN where that is taken; a veth end would go, so this is
    // done by hand.
    t.node.sh_pod("c1", "ip link set eth0 down; ip link set eth0 name dev7");
    let pid = t.node.sh("sleep 30 >/dev/null 2>&1 & echo $!");
    t.node.sh_pod("c1", &format!("ip link set dev7 netns {}", pid.trim()));
    t.node.sh(&format!("kill {}", pid.trim()));
    assert_eq!(t.json("ip -j link show dev7")[0]["ifalias"], "nic0");
    t.call_with("DEL", "c1", &c, &[("CNI_NETNS", "")]).unwrap();
    assert!(nic(&t)["ifalias"].is_null(), "{}", nic(&t));
    t.call_with("DEL", "c1", &c, &[("CNI_NETNS", "")]).unwrap();
    t.del("gone", &c);
    t.node.pod("c2");
    t.add("c2", &c);
    t.del("c2", &c);
}

#[test]
fn a_wrong_configuration_is_refused_by_both() {
    for (more, why) in [
        (json!({}), "device, hwaddr, kernelpath and pciBusID"),
        (json!({"device": "nosuch0"}), "device is nosuch0"),
        (json!({"hwaddr": "02:00"}), "hwaddr"),
        (json!({"hwaddr": "02:00:00:00:00:01"}), "hwaddr is 02:00:00:00:00:01"),
        (json!({"kernelpath": "/sys/class/net"}), "kernelpath"),
        (json!({"kernelpath": "/sys/devices/nosuch"}), "kernelpath is /sys/devices/nosuch"),
        (json!({"pciBusID": "ffff:ff:ff.7"}), "pciBusID is ffff:ff:ff.7"),
        (json!({"runtimeConfig": {"deviceID": "ffff:ff:ff.7"}}), "pciBusID is ffff:ff:ff.7"),
    ] {
        refused_by_both(|t| conf(t, &more), why);
    }
}

#[test]
fn the_pages_configuration_works() {
    let t = world(Whose::Ours);
    t.node.sh("ip link set nic0 name eth7");
    the_page_works(&t, "host-device");
    t.node.sh("ip link show eth7");
}
