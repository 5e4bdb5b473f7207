//! macvlan, ours beside the reference's: what is answered, and what the container and the node have.

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, dual_stack, page, refused_by_both, result, the_page_works, with};

fn conf(t: &Twin, more: &Value) -> Value {
    let mut c = json!({"master": "up0"});
    c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    dual_stack(t, "macvlan", "10.1.2.9", &c)
}

#[test]
fn what_is_said_and_seen_is_the_references() {
    let table = [
        json!({}),
        json!({"mode": "bridge", "mtu": 1400}),
        json!({"mode": "private", "mac": "02:11:22:33:44:55"}),
        json!({"mode": "vepa", "dns": {"nameservers": ["10.1.2.1"], "domain": "d"}}),
        json!({"mode": "passthru"}),
        json!({"mac": "02:11:22:33:44:55", "runtimeConfig": {"mac": "02:11:22:33:44:66"}}),
        json!({"ipam": {}}),
        json!({"ipam": {"type": "static", "addresses": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1"}], "routes": [{"dst": "0.0.0.0/0"}]}}),
    ];
    for more in table {
        for version in if more == json!({}) { &["0.3.0", "0.3.1", "0.4.0", "1.0.0"][..] } else { &["1.0.0"] } {
            let [ours, theirs] = BOTH.map(|whose| {
                let t = Twin::new(whose);
                // The name is taken on the node, as it mostly is.
                t.node.sh("ip link add eth0 type veth peer name eth1");
                let c = with(&conf(&t, &more), "cniVersion", (*version).into());
                t.node.pod("c1");
                let before = (t.inside("c1"), t.outside());
                let said = t.add("c1", &c);
                if *version >= "0.4.0" {
                    t.call("CHECK", "c1", &with(&c, "prevResult", said.clone())).unwrap();
                }
                let mac = t.json_pod("c1", "ip -j link show eth0")[0]["address"].clone();
                assert_eq!(said["interfaces"][0]["mac"], mac);
                let told = more.to_string().contains("02:11:22");
                let out = json!([result(&said), t.inside("c1"), t.outside(), told.then_some(mac)]);
                t.del("c1", &c);
                t.del("c1", &c);
                assert_eq!((t.inside("c1"), t.outside()), before, "{whose:?}: after DEL of {c}");
                out
            });
            assert_eq!(ours, theirs, "{version} {more}");
        }
    }
}

#[test]
fn the_master_is_the_default_routes_when_none_is_named() {
    for whose in BOTH {
        let t = Twin::new(whose);
        t.node.sh("ip route add default via 192.0.2.9");
        t.node.pod("c1");
        let mut c = conf(&t, &json!({}));
        c.as_object_mut().unwrap().remove("master");
        t.call_with("ADD", "c1", &c, &[("CNI_ARGS", "MAC=02:00:00:00:00:09;IgnoreUnknown=1;K8S_POD_NAME=x")]).unwrap();
        let eth0 = &t.json_pod("c1", "ip -j -d link show eth0")[0];
        assert_eq!(eth0["link_index"], t.json("ip -j link show up0")[0]["ifindex"], "{whose:?}");
        assert_eq!(eth0["address"], "02:00:00:00:00:09");
        t.del("c1", &c);
    }
}

#[test]
fn packets_go_between_containers_and_to_the_wire() {
    let t = Twin::new(Whose::Ours);
    let c = conf(&t, &json!({"bcqueuelen": 2000}));
    for id in ["c1", "c2", "out"] {
        t.node.pod(id);
    }
    t.node.sh(&format!("ip link set up1 netns {}", t.node.dir.path().join("netns/out").display()));
    t.node.sh_pod(
        "out",
        "ip link set up1 up; ip address add 10.1.2.1/24 dev up1; ip address add fd00:1::1/64 dev up1 nodad",
    );
    t.add("c1", &c);
    t.add("c2", &c);
    let queue = &t.json_pod("c1", "ip -j -d link show eth0")[0]["linkinfo"]["info_data"]["bcqueuelen"];
    assert!(queue.is_null() || *queue == 2000, "{queue}");
    t.node.sh_pod("c1", "ping -c1 -W2 10.1.2.3; ping -c1 -W2 10.1.2.1; ping -c1 -W2 fd00:1::3; ping -c1 -W2 fd00:1::1");
    // Parent and child do not see each other, whichever way.
    t.node.sh("ip address add 10.1.2.200/24 dev up0; ! ping -c1 -W1 10.1.2.2 > /dev/null");
    t.node.sh_pod("c1", "! ping -c1 -W1 10.1.2.200 > /dev/null");
    // An address that another on the wire has: nothing is left of the ADD.
    t.node.sh_pod("out", "ip address add fd00:1::4/64 dev up1 nodad");
    t.node.pod("c3");
    let before = t.inside("c3");
    let leases = || std::fs::read_dir(t.dir("store/net")).unwrap().count();
    let held = leases();
    let e = t.call("ADD", "c3", &c).unwrap_err();
    assert_eq!(e["code"], 11, "{e}");
    assert_eq!((t.inside("c3"), leases()), (before, held), "something is left");
}

/// Mode `source`, which the reference lacks: who is not listed is not heard.
#[test]
fn mode_source_hears_who_is_listed() {
    let t = Twin::new(Whose::Ours);
    for id in ["c1", "out"] {
        t.node.pod(id);
    }
    t.node.sh(&format!("ip link set up1 netns {}", t.node.dir.path().join("netns/out").display()));
    t.node.sh_pod(
        "out",
        "ip link set up1 address 02:00:00:00:00:99; ip link set up1 up; ip address add 10.1.2.1/24 dev up1",
    );
    for (sources, heard) in [("02:00:00:00:00:98", false), ("02:00:00:00:00:99", true)] {
        let c = conf(&t, &json!({"mode": "source", "sourceMACs": ["02:00:00:00:00:01", sources]}));
        let said = t.add("c1", &c);
        let shown = t.node.sh_pod("c1", "ip -d link show eth0");
        assert!(shown.contains("macvlan mode source") && shown.contains(sources), "{shown}");
        t.node.sh_pod("c1", &format!("{} ping -c1 -W1 10.1.2.1 > /dev/null", if heard { "" } else { "!" }));
        let checked = with(&c, "prevResult", said);
        t.call("CHECK", "c1", &checked).unwrap();
        t.node.sh_pod("c1", &format!("ip link set eth0 type macvlan macaddr del {sources}"));
        let e = t.call("CHECK", "c1", &checked).unwrap_err();
        assert!(e["details"].as_str().unwrap().contains("sourceMACs"), "{e}");
        t.del("c1", &c);
    }
    for (more, why) in [
        (json!({"mode": "source"}), "sourceMACs is missing"),
        (json!({"sourceMACs": ["02:00:00:00:00:01"]}), "sourceMACs is for mode source"),
        (json!({"mode": "source", "sourceMACs": ["01:00:5e:00:00:01"]}), "no station's"),
    ] {
        let e = t.call("ADD", "c1", &conf(&t, &more)).unwrap_err();
        assert!(e["msg"].as_str().unwrap().contains(why), "{e}");
    }
}

#[test]
fn a_master_in_the_container_a_killed_add_and_a_check_that_finds_it() {
    let t = Twin::new(Whose::Ours);
    t.node.pod("c1");
    t.node.sh_pod("c1", "ip link add low0 mtu 1450 type veth peer name low1; ip link set low0 up; ip link set low1 up");
    let c = conf(&t, &json!({"master": "low0", "linkInContainer": true}));
    let before = t.inside("c1");
    let said = t.add("c1", &c);
    assert_eq!(t.json_pod("c1", "ip -j link show eth0")[0]["mtu"], 1450);
    let e = t.call("ADD", "c1", &c).unwrap_err();
    assert!(e.to_string().contains("DEL comes first"), "{e}");
    let checked = with(&c, "prevResult", said);
    t.call("CHECK", "c1", &checked).unwrap();
    for (harm, mend, says) in [
        ("ip link set eth0 down", "", "down"),
        ("ip link set eth0 up; ip link set eth0 type macvlan mode private", "", "mode of eth0"),
        (
            "ip link set eth0 type macvlan mode bridge; ip address del 10.1.2.2/24 dev eth0",
            "",
            "10.1.2.2/24 is missing",
        ),
        ("ip link del low0", "", "the master"),
    ] {
        t.node.sh_pod("c1", &format!("{harm}; {mend}"));
        let e = t.call("CHECK", "c1", &checked).unwrap_err();
        assert!(e["details"].as_str().unwrap().contains(says), "{e}");
    }
    t.del("c1", &c);
    assert_ne!(t.inside("c1"), before, "low0 is gone");
    // Killed between making and naming; then by a runtime without the namespace.
    let c = conf(&t, &json!({}));
    t.node.pod("c2");
    let before = (t.inside("c2"), t.outside());
    let said = t.add("c2", &c);
    let key = ipam::Key { container: "c2".to_owned().into(), ifname: "eth0".parse().unwrap() };
    let temporary = cni::iface::host_end(&key, 0).unwrap();
    t.node.sh_pod("c2", &format!("ip link set eth0 down; ip link set eth0 name {temporary}"));
    t.add("c2", &with(&c, "name", "second".into()));
    t.del("c2", &with(&c, "name", "second".into()));
    t.del("c2", &c);
    assert_eq!((t.inside("c2"), t.outside()), before, "{said}");
    t.del("gone", &c);
}

#[test]
fn a_wrong_configuration_is_refused_by_both() {
    for (more, why) in [
        (json!({"master": "nosuch0"}), "nosuch0"),
        (json!({"master": ""}), "default route"),
        (json!({"mode": "x"}), "mode is"),
        (json!({"mtu": 9000}), "the master up0 carries 1500"),
        (json!({"mtu": -1}), "mtu"),
        (json!({"mac": "02:00"}), "mac"),
        (json!({"ipam": {"type": "nothing"}}), "no such plugin"),
        (json!({"ipam": {"type": "static"}}), "no address"),
    ] {
        refused_by_both(|t| conf(t, &more), why);
    }
}

#[test]
fn the_pages_configuration_works() {
    let t = Twin::new(Whose::Ours);
    t.node.sh("ip link set up0 name eth1; ip link set eth1 up");
    the_page_works(&t, "macvlan");
    t.call("STATUS", "", &with(&page("macvlan"), "cniVersion", "1.1.0".into())).unwrap();
}
