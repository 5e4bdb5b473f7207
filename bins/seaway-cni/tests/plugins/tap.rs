//! tap. Debian's reference plugins are older than this one: what it must give is its page's.

use serde_json::{Value, json};

use crate::twin::{Twin, Whose, the_page_works, with};

fn conf(t: &Twin, more: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "tap",
        "ipam": {"type": "host-local", "dataDir": t.dir("store"), "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}});
    for (k, v) in more.as_object().unwrap() {
        c[k] = v.clone();
    }
    c
}

#[test]
fn the_device_has_what_is_said_and_goes_again() {
    let t = Twin::new(Whose::Ours);
    for (i, more) in [
        json!({}),
        json!({"mtu": 1400, "mac": "02:11:22:33:44:55", "multiQueue": true, "owner": 1001, "group": 1002}),
        json!({"bridge": "br7", "ipam": {}}),
    ]
    .iter()
    .enumerate()
    {
        let id = format!("c{i}");
        t.node.pod(&id);
        t.node.sh_pod(&id, "ip link add br7 type bridge; ip link set br7 up");
        let c = conf(&t, more);
        let before = (t.inside(&id), t.outside());
        let said = t.add(&id, &c);
        let eth0 = t.json_pod(&id, "ip -j -d addr show eth0")[0].clone();
        let data = &eth0["linkinfo"]["info_data"];
        assert_eq!(data["type"], "tap", "{eth0}");
        assert_eq!(said["interfaces"][0]["mac"], eth0["address"]);
        assert!(eth0["flags"].as_array().unwrap().contains(&"UP".into()), "{eth0}");
        match i {
            0 => {
                let text = eth0["addr_info"].to_string();
                assert!(text.contains("10.1.2.2") && text.contains("fd00:1::2"), "{eth0}");
                assert_eq!(said["ips"][1]["interface"], 0);
            }
            1 => {
                assert_eq!((&eth0["mtu"], &eth0["address"]), (&1400.into(), &"02:11:22:33:44:55".into()));
                assert_eq!(data["multi_queue"], true, "{data}");
                assert!(data["user"] == 1001 || data["user"] == "1001", "{data}");
                assert!(data["group"] == 1002 || data["group"] == "1002", "{data}");
            }
            _ => assert_eq!(eth0["master"], "br7"),
        }
        t.call("CHECK", &id, &with(&c, "prevResult", said)).unwrap();
        t.del(&id, &c);
        t.del(&id, &c);
        assert_eq!((t.inside(&id), t.outside()), before);
    }
}

#[test]
fn a_wrong_configuration_is_refused_and_leaves_nothing() {
    let t = Twin::new(Whose::Ours);
    t.node.pod("c1");
    let before = (t.inside("c1"), t.outside());
    for (more, why) in [
        (json!({"selinuxContext": "system_u:object_r:x:s0"}), "selinuxContext"),
        (json!({"owner": "root"}), "owner"),
        (json!({"group": -1}), "group"),
        (json!({"bridge": "nosuch0"}), "bridge is nosuch0"),
        (json!({"mac": "01:00:00:00:00:01"}), "eth0"),
        (json!({"ipam": {"type": "static"}}), "no address"),
    ] {
        let e = t.call("ADD", "c1", &conf(&t, &more)).unwrap_err();
        assert!(format!("{} {}", e["msg"], e["details"]).contains(why), "{why}: {e}");
        assert_eq!((t.inside("c1"), t.outside()), before, "{why}");
    }
}

#[test]
fn the_pages_configuration_works() {
    let t = Twin::new(Whose::Ours);
    the_page_works(&t, "tap");
}
