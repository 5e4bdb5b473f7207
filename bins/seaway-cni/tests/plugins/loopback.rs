use serde_json::json;

use crate::twin::{BOTH, Twin, Whose, page, result};

#[test]
fn lo_is_brought_up_and_told_as_the_reference_does() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let conf = json!({"cniVersion": version, "name": "lo", "type": "loopback"});
        let [ours, theirs] = BOTH.map(|whose| {
            let t = Twin::new(whose);
            t.node.pod("c1");
            let added = t.add("c1", &conf);
            let after = t.inside("c1");
            if version >= "0.4.0" {
                t.call("CHECK", "c1", &conf_with_prev(&conf, &added)).unwrap();
            }
            t.del("c1", &conf);
            t.del("c1", &conf);
            (result(&added), after, t.inside("c1"))
        });
        assert_eq!(ours, theirs, "{version}");
        assert_eq!(ours.1["links"][0]["up"], true);
        assert_eq!(ours.2["links"][0]["up"], false);
    }
}

#[test]
fn a_chained_result_is_handed_on_and_a_missing_namespace_is_no_error_in_del() {
    let prev = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"interface": 0, "address": "10.1.2.3/24", "gateway": "10.1.2.1"}], "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.1.2.1"]}});
    let conf = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback", "prevResult": prev});
    let [ours, theirs] = BOTH.map(|whose| {
        let t = Twin::new(whose);
        t.node.pod("c1");
        t.del("gone", &conf);
        result(&t.add("c1", &conf))
    });
    assert_eq!(ours, theirs);
}

fn conf_with_prev(conf: &serde_json::Value, prev: &serde_json::Value) -> serde_json::Value {
    let mut c = conf.clone();
    c["prevResult"] = prev.clone();
    c
}

#[test]
fn the_page_is_true() {
    let c = page("loopback");
    let t = Twin::new(Whose::Ours);
    t.node.pod("c1");
    let said = t.add("c1", &c);
    t.call("CHECK", "c1", &conf_with_prev(&c, &said)).unwrap();
    t.del("c1", &c);
    assert_eq!(t.inside("c1")["links"][0]["up"], false);
}
