//! flannel: what it makes of the subnet file and has another plugin do. Debian has no reference of it; the delegates are
//! its reference plugins and ours.

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, result, with};

const BOTH_FAMILIES: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n\
    FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

fn conf(t: &Twin, more: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "subnetFile": t.dir("subnet.env"),
        "dataDir": t.dir("flannel"), "ipam": {"dataDir": t.dir("store")}});
    for (k, v) in more.as_object().unwrap() {
        c[k] = v.clone();
    }
    c
}

/// Our flannel with the delegates of `whose`.
fn twin(whose: Whose) -> Twin {
    let mut t = Twin::new(whose);
    if whose == Whose::Theirs {
        let dir = t.node.dir.path().join("bin");
        std::fs::create_dir(&dir).unwrap();
        for e in std::fs::read_dir(&t.path).unwrap().flatten() {
            std::os::unix::fs::symlink(e.path(), dir.join(e.file_name())).unwrap();
        }
        std::os::unix::fs::symlink(crate::common::program(), dir.join("flannel")).unwrap();
        t.path = dir;
    }
    std::fs::write(t.dir("subnet.env"), BOTH_FAMILIES).unwrap();
    t
}

fn files(t: &Twin) -> Vec<String> {
    let entries = std::fs::read_dir(t.dir("flannel")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_bridge_with_the_nodes_subnet_by_our_delegates_and_the_references() {
    let both = BOTH.map(|whose| {
        let t = twin(whose);
        let c = conf(&t, &json!({"delegate": {"hairpinMode": true, "isDefaultGateway": true, "bridge": "cbr0"},
            "runtimeConfig": {"mac": "02:11:22:33:44:55"}}));
        t.node.pod("c1");
        let before = t.inside("c1");
        let said = t.add("c1", &c);
        let kept: Value = serde_json::from_slice(&std::fs::read(t.dir("flannel/c1")).unwrap()).unwrap();
        let store = t.dir("store");
        let want = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cbr0", "hairpinMode": true,
            "isDefaultGateway": true, "isGateway": true, "ipMasq": true, "mtu": 1450,
            "runtimeConfig": {"mac": "02:11:22:33:44:55"},
            "ipam": {"type": "host-local", "dataDir": store, "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:0:1::/64"}]],
                "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:244::/48"}]}});
        assert_eq!(kept, want);
        if whose == Whose::Ours {
            t.call("CHECK", "c1", &with(&c, "prevResult", said.clone())).unwrap();
        }
        let eth0 = t.json_pod("c1", "ip -j link show eth0")[0].clone();
        assert_eq!((&eth0["mtu"], &eth0["address"]), (&1450.into(), &"02:11:22:33:44:55".into()));
        let during = json!([result(&said), t.inside("c1"), t.ports()]);
        // The subnet has changed since: what was kept is what counts.
        std::fs::remove_file(t.dir("subnet.env")).unwrap();
        t.del("c1", &c);
        t.del("c1", &c);
        assert_eq!((t.inside("c1"), files(&t)), (before, Vec::<String>::new()));
        during
    });
    assert_eq!(both[0], both[1]);
}

#[test]
fn a_failed_add_leaves_nothing_and_a_second_one_keeps_the_first() {
    let t = twin(Whose::Ours);
    t.node.pod("c1");
    let before = (t.inside("c1"), t.outside());
    for (more, file, why) in [
        (json!({"delegate": {"name": "x"}}), BOTH_FAMILIES, "delegate.name"),
        (json!({"delegate": {"ipam": {}}}), BOTH_FAMILIES, "delegate.ipam"),
        (json!({"delegate": {"type": 5}}), BOTH_FAMILIES, "delegate.type"),
        (json!({"delegate": {"type": "nothing"}}), BOTH_FAMILIES, "no such plugin"),
        (json!({"delegate": {"type": "bridge", "vlan": 5000}}), BOTH_FAMILIES, "vlan"),
        (json!({}), "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", "FLANNEL_SUBNET"),
        (json!({}), "FLANNEL_NETWORK=x", "FLANNEL_NETWORK"),
        (json!({"subnetFile": "/nonexistent/subnet.env"}), BOTH_FAMILIES, "/nonexistent/subnet.env"),
        (json!({"ipam": {"routes": 5}}), BOTH_FAMILIES, "ipam.routes"),
    ] {
        std::fs::write(t.dir("subnet.env"), file).unwrap();
        let e = t.call("ADD", "c1", &conf(&t, &more)).unwrap_err();
        assert!(format!("{} {}", e["msg"], e["details"]).contains(why), "{why}: {e}");
        assert_eq!((t.inside("c1"), t.outside()), before, "{why}");
        assert_eq!(files(&t), Vec::<String>::new(), "{why}");
    }
    std::fs::write(t.dir("subnet.env"), BOTH_FAMILIES).unwrap();
    let c = conf(&t, &json!({}));
    t.add("c1", &c);
    let during = t.inside("c1");
    t.call("ADD", "c1", &c).unwrap_err();
    assert_eq!((t.inside("c1"), files(&t)), (during, vec!["c1".to_owned()]));
    t.del("c1", &c);
    assert_eq!(files(&t), Vec::<String>::new());
    t.del("gone", &c);
}

#[test]
fn two_interfaces_of_a_container_the_references_file_gc_and_status() {
    let t = twin(Whose::Ours);
    t.node.pod("c1");
    let c = conf(&t, &json!({}));
    let second = with(&with(&c, "name", "two".into()), "delegate", json!({"bridge": "br2"}));
    t.add("c1", &c);
    let net1 = [("CNI_IFNAME", "net1")];
    t.call_with("ADD", "c1", &second, &net1).unwrap();
    assert_eq!(files(&t), ["c1", "c1@net1"]);
    t.call_with("DEL", "c1", &second, &net1).unwrap();
    assert_eq!(files(&t), ["c1"]);
    // A DEL of another network does not take this one's.
    t.call_with("DEL", "c1", &second, &net1).unwrap();
    assert_eq!(files(&t), ["c1"]);
    // A DEL that never came.
    let gc = |valid: Value| with(&with(&c, "cniVersion", "1.1.0".into()), "cni.dev/valid-attachments", valid);
    t.call("GC", "", &gc(json!([{"containerID": "c1", "ifname": "eth0"}]))).unwrap();
    assert_eq!(files(&t), ["c1"]);
    std::fs::remove_file(t.dir("subnet.env")).unwrap();
    t.call("GC", "", &gc(json!([]))).unwrap();
    assert_eq!(files(&t), Vec::<String>::new());
    let held = std::fs::read_dir(t.dir("store/cbr0")).unwrap().flatten();
    assert_eq!(held.filter(|e| e.file_name().to_string_lossy().starts_with("10.244.")).count(), 0);
    let status = with(&c, "cniVersion", "1.1.0".into());
    assert_eq!(t.call("STATUS", "", &status).unwrap_err()["code"], 50);
    std::fs::write(t.dir("subnet.env"), BOTH_FAMILIES).unwrap();
    t.call("STATUS", "", &status).unwrap();
}

#[test]
fn the_pages_configuration_works() {
    let t = twin(Whose::Ours);
    let mut c = page("flannel");
    c["subnetFile"] = t.dir("subnet.env").into();
    c["dataDir"] = t.dir("flannel").into();
    c["ipam"] = json!({"dataDir": t.dir("store")});
    t.node.pod("c1");
    let said = t.add("c1", &c);
    t.call("CHECK", "c1", &with(&c, "prevResult", said)).unwrap();
    t.del("c1", &c);
}
