//! cnitool, the specification's own client, with our configuration in every version; and the call made by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

use interop::cnitool::{VERSIONS, add, cnitool, reaches};
use interop::node::{ADDRESSES, CONFLIST, JOURNAL};
use interop::{Node, page};
use seaway_tests_interop as interop;
use serde_json::{Value, json};

/// Our network in one version.
fn conflist(version: &str) -> Value {
    let mut v: Value = serde_json::from_str(&page::file("The network", CONFLIST)).unwrap();
    v["cniVersion"] = json!(version);
    v.as_object_mut().unwrap().remove("cniVersions");
    v
}

#[test]
fn every_verb_of_every_version() {
    let n = Node::boot();
    for version in VERSIONS {
        n.write(CONFLIST, &conflist(version).to_string());
        let (a, b) = (add(&n, "a"), add(&n, "b"));
        assert_eq!(a["cniVersion"], version);
        assert_eq!(a["ips"].as_array().unwrap().len(), 2, "{a}");
        assert_eq!(a["ips"][0].get("version").is_some(), version < "1.0.0", "{a}");
        assert_eq!(a["interfaces"][1].get("mtu").is_some(), version >= "1.1.0", "{a}");
        reaches(&n, "a", &a, Some(&b));
        // Twice is once.
        assert_eq!(cnitool(&n, &[], "add", "a").unwrap(), a);
        match cnitool(&n, &[], "check", "a") {
            Err(e) => assert!(version < "0.4.0" && e.contains("does not support the CHECK command"), "{version}: {e}"),
            Ok(_) => assert!(version >= "0.4.0"),
        }
        if version >= "0.4.0" {
            n.run(&["ip", "netns", "exec", "a", "ip", "link", "set", "eth0", "mtu", "1600"]);
            let e = cnitool(&n, &[], "check", "a").unwrap_err();
            assert!(e.contains("MTU 1600 instead of 1450"), "{e}");
        }
        // Before 1.1.0 libcni asks nobody.
        assert_eq!(cnitool(&n, &[], "status", "a").unwrap(), Value::Null);
        cnitool(&n, &[], "del", "a").unwrap();
        cnitool(&n, &[], "del", "a").unwrap();
        // Its namespace goes first.
        n.run(&["ip", "netns", "delete", "b"]);
        cnitool(&n, &[], "del", "b").unwrap();
        n.run(&["ip", "netns", "delete", "a"]);
        n.assert_nothing_left();
    }
}

#[test]
fn gc_removes_what_no_del_came_for() {
    let n = Node::boot();
    n.write(CONFLIST, &conflist("1.1.0").to_string());
    add(&n, "a");
    add(&n, "b");
    // What libcni knows of one of them is lost: only GC can tell.
    n.sh("rm /var/lib/cni/results/*; ip netns delete a");
    assert_eq!(n.records(JOURNAL).len(), 2);
    cnitool(&n, &[], "gc", "b").unwrap();
    n.run(&["ip", "netns", "delete", "b"]);
    n.assert_nothing_left();
}

#[test]
fn status_says_why_a_pod_could_not_be_attached() {
    let n = Node::boot();
    let mut c = conflist("1.1.0");
    c["plugins"][0]["ranges"] = json!(["10.244.1.0/30"]);
    n.write(CONFLIST, &c.to_string());
    n.run(&["ip", "netns", "add", "a"]);
    assert_eq!(cnitool(&n, &[], "status", "a").unwrap(), Value::Null);
    cnitool(&n, &[], "add", "a").unwrap();
    n.run(&["ip", "netns", "add", "b"]);
    let _ = cnitool(&n, &[], "add", "b");
    let e = cnitool(&n, &[], "status", "a").unwrap_err();
    assert!(e.contains("10.244.1.0/30"), "{e}");
    // By hand the code is seen.
    let mut conf = c["plugins"][0].clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["name"] = json!("seaway");
    let e = n.plugin(&[("CNI_COMMAND", "STATUS")], &conf).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
}

#[test]
fn a_runtime_asks_for_addresses() {
    let n = Node::boot();
    n.write(CONFLIST, &conflist("1.1.0").to_string());
    n.run(&["ip", "netns", "add", "a"]);
    let asked = r#"CAP_ARGS={"ips": ["10.244.1.77/24", "fd00:10:244:1::77/64"]}"#;
    let r = cnitool(&n, &[asked], "add", "a").unwrap();
    assert_eq!(r["ips"][0]["address"], "10.244.1.77/32");
    assert_eq!(r["ips"][1]["address"], "fd00:10:244:1::77/128");
    reaches(&n, "a", &r, None);
    n.run(&["ip", "netns", "add", "b"]);
    let e = cnitool(&n, &["CNI_ARGS=IgnoreUnknown=1;IP=10.244.1.77"], "add", "b").unwrap_err();
    assert!(e.contains("10.244.1.77"), "{e}");
    cnitool(&n, &[], "del", "a").unwrap();
    cnitool(&n, &[], "del", "b").unwrap();
    n.sh("ip netns delete a; ip netns delete b");
    n.assert_nothing_left();
}

#[test]
fn the_page_says_how_to_call_it_by_hand() {
    let n = Node::boot();
    n.sh(&format!("PATH=$PATH:/opt/cni/bin\ncd /var/tmp\n{}", page::file("By hand", "add.sh")));
    n.run(&["ip", "netns", "exec", "demo", "ping", "-nq", "-c1", "-W2", ADDRESSES[0]]);
    n.sh(&format!("PATH=$PATH:/opt/cni/bin\ncd /var/tmp\n{}", page::file("By hand", "del.sh")));
    n.assert_nothing_left();
}
