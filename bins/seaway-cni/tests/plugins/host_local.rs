use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::twin::{BOTH, Twin, Whose, page, refused_by_both, result, with};

fn conf(t: &Twin, ipam: &Value) -> Value {
    let mut c = json!({"cniVersion": "1.0.0", "name": "net", "type": "host-local",
        "ipam": {"type": "host-local", "dataDir": t.dir("store")}});
    for (k, v) in ipam.as_object().unwrap() {
        c["ipam"][k] = v.clone();
    }
    c
}

/// Every file of a store with its content; what only ours has is left out.
fn store(t: &Twin) -> Vec<(String, String)> {
    let dir = Path::new(&t.dir("store")).join("net");
    let mut out: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap()))
        .filter(|(n, _)| !n.starts_with('.'))
        .collect();
    out.sort();
    out
}

#[test]
fn results_and_store_are_the_references() {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        resolv.path(),
        "# c\nnameserver 10.0.0.1\nnameserver fd00::1\ndomain d.example\nsearch a b\noptions ndots:5 rotate\nx\n",
    )
    .unwrap();
    let table = [
        json!({"subnet": "10.1.2.0/24"}),
        json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.254"}),
        json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}),
        json!({"ranges": [[{"subnet": "10.1.2.0/30"}, {"subnet": "10.1.3.0/30"}], [{"subnet": "fd00:1::/126"}]]}),
        json!({"subnet": "10.1.2.0/24", "ranges": [[{"subnet": "10.1.3.0/24"}]]}),
        json!({"subnet": "10.1.2.0/24", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.7"}]}),
        json!({"subnet": "10.1.2.0/24", "resolvConf": resolv.path()}),
        json!({"subnet": "fd00:1::/112", "rangeStart": "fd00:1::ff"}),
    ];
    for ipam in table {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let [ours, theirs] = BOTH.map(|whose| {
                let t = Twin::new(whose);
                let c = with(&conf(&t, &ipam), "cniVersion", version.into());
                let mut said = Vec::new();
                for id in ["c1", "c2"] {
                    t.node.pod(id);
                    said.push(result(&t.add(id, &c)));
                }
                if version >= "0.4.0" {
                    t.call("CHECK", "c1", &c).unwrap();
                }
                t.call("ADD", "c1", &c).unwrap_err();
                let full = store(&t);
                t.del("c1", &c);
                t.del("c1", &c);
                t.del("never", &c);
                if version >= "0.4.0" {
                    t.node.pod("never");
                    t.call("CHECK", "never", &c).unwrap_err();
                }
                (said, full, store(&t))
            });
            assert_eq!(ours, theirs, "{version} {ipam}");
        }
    }
}

#[test]
fn requested_addresses_come_from_environment_args_and_capability() {
    let ranges = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]});
    let table = [
        (json!({}), "IP=10.1.2.77", true),
        (json!({"args": {"cni": {"ips": ["10.1.2.78", "fd00:1::78"]}}}), "", true),
        (json!({"runtimeConfig": {"ips": ["10.1.2.79/24", "fd00:1::79"]}}), "", true),
        (json!({"args": {"cni": {"ips": ["10.1.2.78"]}}}), "IP=fd00:1::80;IgnoreUnknown=1;K8S_POD_NAME=x", true),
        (json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}}), "", true),
        (json!({}), "IP=10.99.0.1", false),
        (json!({}), "IP=10.1.2.1", false),
        (json!({}), "IP=nonsense", false),
        (json!({}), "K8S_POD_NAME=x", false),
        (json!({}), "noequals", false),
        (json!({"args": {"cni": {"ips": ["10.1.2.78", "10.1.2.79"]}}}), "", false),
    ];
    for (more, args, good) in table {
        let [ours, theirs] = BOTH.map(|whose| {
            let t = Twin::new(whose);
            t.node.pod("c1");
            let mut c = conf(&t, &ranges);
            for (k, v) in more.as_object().unwrap() {
                c[k] = v.clone();
            }
            let said = t.call_with("ADD", "c1", &c, &[("CNI_ARGS", args)]);
            (
                said.map(|v| result(&v)).map_err(drop),
                store(&t).into_iter().filter(|(n, _)| !n.starts_with("last")).collect::<Vec<_>>(),
            )
        });
        assert_eq!(ours.0.is_ok(), good, "{more} {args}: {ours:?}");
        if good {
            assert_eq!(ours, theirs, "{more} {args}");
        } else {
            assert_eq!(ours.0, theirs.0, "{more} {args}");
            assert_eq!(
                ours.1,
                [("lock".to_owned(), String::new())].into_iter().filter(|_| !ours.1.is_empty()).collect::<Vec<_>>(),
                "nothing is left: {more} {args}"
            );
        }
    }
}

#[test]
fn an_address_that_somebody_has_is_refused_and_the_other_family_given_back() {
    for whose in BOTH {
        let t = Twin::new(whose);
        t.node.pod("c1");
        t.node.pod("c2");
        let c = conf(&t, &json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}));
        let c = with(&c, "runtimeConfig", json!({"ips": ["fd00:1::5"]}));
        t.add("c1", &c);
        t.call("ADD", "c2", &c).unwrap_err();
        assert!(!store(&t).iter().any(|(_, owner)| owner.starts_with("c2")), "{whose:?}");
    }
}

#[test]
fn wrong_ranges_are_refused_by_both() {
    let refused = [
        (json!({"dataDir": "/nonexistent"}), "ipam.ranges is missing"),
        (json!({"subnet": "10.1.2.3/24"}), "host bits"),
        (json!({"subnet": "10.1.2.0/31"}), "too small"),
        (json!({"subnet": "fd00::/127"}), "too small"),
        (json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"}), "not in the subnet"),
        (json!({"subnet": "10.1.2.0/24", "rangeEnd": "10.1.3.1"}), "not in the subnet"),
        (json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}), "before rangeStart"),
        (json!({"subnet": "10.1.2.0/24", "rangeStart": "fd00::1"}), "not in the subnet"),
        (json!({"subnet": "10.1.2.0"}), "prefix length"),
        (json!({"subnet": 7}), "ipam.subnet"),
        (json!({"ranges": [[]]}), "empty range set"),
        (json!({"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]}), "mixes address families"),
        (json!({"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.0.0/16"}]]}), "overlap"),
        (json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.0.0/16"}]]}), "overlap"),
        (json!({"subnet": "10.1.2.0/24", "ranges": [[{"subnet": "10.1.2.128/25"}]]}), "overlap"),
        (json!({"subnet": "10.1.2.0/24", "routes": [{"dst": "nonsense"}]}), "ipam.routes[0].dst"),
        (json!({"subnet": "10.1.2.0/24", "resolvConf": "/nonexistent"}), "resolvConf"),
        (json!({"subnet": "10.1.2.0/24", "gateway": "nonsense"}), "ipam.gateway"),
    ];
    for (ipam, why) in refused {
        refused_by_both(|t| conf(t, &ipam), why);
    }
    refused_by_both(|_| json!({"cniVersion": "1.0.0", "name": "net", "type": "host-local"}), "ipam is missing");
}

#[test]
fn either_follows_the_other_in_one_store() {
    let (ours, theirs) = (Twin::new(Whose::Ours), Twin::new(Whose::Theirs));
    let c = conf(&ours, &json!({"subnet": "10.1.2.0/28"}));
    let mut given = BTreeSet::new();
    for i in 0..13 {
        let t = if i % 3 == 0 { &theirs } else { &ours };
        let id = format!("c{i}");
        t.node.pod(&id);
        let a = t.add(&id, &c)["ips"][0]["address"].as_str().unwrap().to_owned();
        assert!(given.insert(a.clone()), "{a} twice");
    }
    // All are in use: both say so.
    for t in [&ours, &theirs] {
        t.node.pod("more");
        t.call("ADD", "more", &c).unwrap_err();
    }
    // Each gives back what the other gave out.
    for i in 0..13 {
        let t = if i % 3 == 0 { &ours } else { &theirs };
        t.del(&format!("c{i}"), &c);
    }
    let left: Vec<_> = store(&ours).into_iter().map(|(n, _)| n).collect();
    assert_eq!(left, ["last_reserved_ip.0", "lock"]);
    // Files of old releases name the container alone.
    std::fs::write(Path::new(&ours.dir("store")).join("net/10.1.2.9"), "old").unwrap();
    ours.node.pod("old");
    ours.call("ADD", "old", &c).unwrap_err();
    ours.del("old", &c);
    assert_eq!(store(&ours).len(), 2);
}

#[test]
fn a_torn_file_is_mended_and_an_index_that_lies_believed_by_nobody() {
    let t = Twin::new(Whose::Ours);
    let c = conf(&t, &json!({"subnet": "10.1.2.0/29"}));
    let dir = Path::new(&t.dir("store")).join("net");
    std::fs::create_dir_all(&dir).unwrap();
    // As a reference leaves it that is killed between making and writing.
    std::fs::write(dir.join("10.1.2.3"), "").unwrap();
    for (i, want) in [2, 3, 4].into_iter().enumerate() {
        let id = format!("c{i}");
        t.node.pod(&id);
        assert_eq!(t.add(&id, &c)["ips"][0]["address"], format!("10.1.2.{want}/29"));
    }
    for lie in ["", "torn", "+ 10.1.2.5 x eth0 0\n", "nonsense\n", "\u{0}"] {
        std::fs::write(dir.join(".index"), lie).unwrap();
        t.call("CHECK", "c1", &c).unwrap();
        t.del("c1", &c);
        t.add("c1", &c);
    }
    // An address that went away behind our back can be given again.
    std::fs::remove_file(dir.join("10.1.2.2")).unwrap();
    t.node.pod("c9");
    t.add("c9", &c);
    t.call("CHECK", "c0", &c).unwrap_err();
}

#[test]
fn gc_and_status() {
    let t = Twin::new(Whose::Ours);
    let c = with(&conf(&t, &json!({"subnet": "10.1.2.0/29"})), "cniVersion", "1.1.0".into());
    t.call("GC", "x", &with(&c, "cni.dev/valid-attachments", json!([]))).unwrap();
    for i in 0..5 {
        t.call("STATUS", "x", &c).unwrap();
        t.node.pod(&format!("c{i}"));
        t.add(&format!("c{i}"), &c);
    }
    assert_eq!(t.call("STATUS", "x", &c).unwrap_err()["code"], 50);
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth1"}]);
    t.call("GC", "x", &with(&c, "cni.dev/valid-attachments", valid)).unwrap();
    let owners: Vec<_> = store(&t).into_iter().filter(|(n, _)| n.starts_with("10.")).map(|(_, o)| o).collect();
    assert_eq!(owners, ["c1\r\neth0"]);
    t.call("STATUS", "x", &c).unwrap();
    assert_eq!(t.call("STATUS", "x", &conf(&t, &json!({"subnet": "10.1.2.3/29"}))).unwrap_err()["code"], 1);
    let wrong = with(&conf(&t, &json!({"subnet": "10.1.2.3/29"})), "cniVersion", "1.1.0".into());
    assert_eq!(t.call("STATUS", "x", &wrong).unwrap_err()["code"], 50);
}

#[test]
fn a_hundred_at_once_get_a_hundred_addresses_and_kills_leave_none() {
    let t = Twin::new(Whose::Ours);
    let c = conf(&t, &json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}));
    let ids: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
    t.node.pod("c");
    let netns = t.node.dir.path().join("netns/c");
    let env = [("CNI_NETNS", netns.to_str().unwrap())];
    let given: Vec<String> = thread::scope(|s| {
        let all: Vec<_> = ids
            .chunks(25)
            .map(|ids| {
                s.spawn(|| {
                    ids.iter()
                        .flat_map(|id| {
                            let v = t.call_with("ADD", id, &c, &env).unwrap();
                            [0, 1].map(|i| v["ips"][i]["address"].as_str().unwrap().to_owned())
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        all.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 200);
    // Killed anywhere, and then deleted: nothing is left.
    for round in 0..60u64 {
        let mut child = t.spawn("ADD", "killed", &c, &env);
        thread::sleep(std::time::Duration::from_micros(round * 40));
        let _ = child.kill();
        let _ = child.wait();
        t.call_with("DEL", "killed", &c, &env).unwrap();
        // At its first making, the last address given out may be lost; nothing hangs on it.
        let torn = |(n, o): &(String, String)| n.starts_with(['1', 'f']) && (o.is_empty() || o.starts_with("killed"));
        assert_eq!(store(&t).into_iter().find(torn), None, "round {round}");
    }
    thread::scope(|s| {
        for ids in ids.chunks(25) {
            s.spawn(|| ids.iter().for_each(|id| drop(t.call_with("DEL", id, &c, &env).unwrap())));
        }
    });
    assert_eq!(store(&t).len(), 3, "lock and two last_reserved_ip: {:?}", store(&t));
}

#[test]
fn the_pages_configuration_works() {
    let t = Twin::new(Whose::Ours);
    let mut c = page("host-local");
    c["ipam"]["dataDir"] = t.dir("store").into();
    // The page shows it inside the plugin that asks; here it is asked directly.
    c["type"] = "host-local".into();
    t.node.pod("c1");
    let v = t.add("c1", &c);
    assert_eq!(v["ips"].as_array().unwrap().len(), 2);
    t.del("c1", &c);
}
