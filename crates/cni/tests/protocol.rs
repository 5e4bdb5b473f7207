//! The protocol: what each call answers, byte for byte. Goldens are re-blessed by hand: `BLESS=1 cargo test -p
//! seaway-cni-lib`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod common;

use std::fmt::Write;

use cni::{Call, ConflistSpec, Env, NetConf, Version};
use common::{Mock, dual, env, execute, golden, record};
use proptest::prelude::*;
use serde_json::{Value, json};

fn run(e: &Env, stdin: &str) -> cni::Outcome {
    execute(&mut Mock::default(), e, &mut stdin.as_bytes(), 1_700_000_000)
}

/// Indented, for a reviewer.
fn pretty(text: &str) -> String {
    if text.is_empty() {
        return "(nothing)".into();
    }
    let v: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    format!("{v:#}")
}

#[test]
fn results_of_every_version() {
    let dns = cni::Dns { nameservers: vec!["10.96.0.10".into()], ..cni::Dns::default() };
    let mut out = String::new();
    for v in Version::ALL {
        writeln!(out, "# {v}\n{:#}", cni::result(&dual(), Some(&dns)).write(v)).unwrap();
    }
    golden("results.txt", &out);
}

#[test]
fn results_after_another_plugin() {
    let mut out = String::new();
    for v in [Version::V0_4_0, Version::V1_1_0] {
        let prev = json!({
            "cniVersion": v.as_str(),
            "interfaces": [{"name": "net1", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "192.0.2.7/24", "interface": 0}],
            "routes": null,
            "dns": {"nameservers": ["192.0.2.1"]},
        });
        let conf = conf(&json!({"prevResult": prev, "cniVersion": v.as_str()}));
        let conf = NetConf::parse(conf.as_bytes()).unwrap();
        writeln!(out, "# {v}\n{:#}", cni::merged(&record("c1", &["10.244.1.2"]), &conf).write(v)).unwrap();
    }
    golden("chained.txt", &out);
}

/// The agent's configuration with some fields changed; a null removes one.
fn conf(change: &Value) -> String {
    let mut v = json!({
        "cniVersion": "1.1.0", "name": "seaway", "type": "seaway-cni", "mode": "routed", "mtu": 1450,
        "ranges": ["10.244.1.0/24", "fd00:10:244:1::/64"], "dataDir": "/nonexistent/seaway/ipam",
    });
    for (k, x) in change.as_object().unwrap() {
        if x.is_null() {
            v.as_object_mut().unwrap().remove(k);
        } else {
            v[k] = x.clone();
        }
    }
    v.to_string()
}

#[test]
fn every_error_names_object_field_and_fix() {
    let long = "x".repeat(5000);
    // Title, environment, standard input.
    let cases: Vec<(&str, Env, String)> = vec![
        ("no CNI_COMMAND", Env::default(), "{}".into()),
        ("unknown CNI_COMMAND", env("ATTACH", "c1", "/run/netns/x", "eth0"), "{}".into()),
        ("ADD without anything", env("ADD", "", "", ""), conf(&json!({}))),
        ("DEL needs no CNI_NETNS, but the rest", env("DEL", "", "", ""), conf(&json!({}))),
        ("bad container id", env("ADD", "-c1", "/run/netns/x", "eth0"), conf(&json!({}))),
        ("long container id", env("ADD", &long, "/run/netns/x", "eth0"), conf(&json!({}))),
        ("bad ifname", env("ADD", "c1", "/run/netns/x", "eth/0"), conf(&json!({}))),
        ("long ifname", env("ADD", "c1", "/run/netns/x", "sixteen-bytes-xx"), conf(&json!({}))),
        ("relative netns", env("ADD", "c1", "run/netns/x", "eth0"), conf(&json!({}))),
        ("unknown key in CNI_ARGS", args("FOO=1"), conf(&json!({}))),
        ("CNI_ARGS without =", args("FOO"), conf(&json!({}))),
        ("bad IP in CNI_ARGS", args("IP=10.244.1.x"), conf(&json!({}))),
        ("bad MAC in CNI_ARGS", args("MAC=02:00"), conf(&json!({}))),
        ("a group's MAC in CNI_ARGS", args("MAC=01:00:5e:00:00:01"), conf(&json!({}))),
        ("bad IgnoreUnknown", args("IgnoreUnknown=maybe"), conf(&json!({}))),
        ("no namespace there", env("ADD", "c1", "/nonexistent/netns", "eth0"), conf(&json!({}))),
        ("no namespace but a file", env("ADD", "c1", "/etc/hostname", "eth0"), conf(&json!({}))),
        ("the node's own namespace", env("ADD", "c1", "/proc/self/ns/net", "eth0"), conf(&json!({}))),
        ("no JSON", add(), "ranges: []".into()),
        ("empty input", add(), String::new()),
        ("no object", add(), "[1]".into()),
        ("no cniVersion", add(), conf(&json!({"cniVersion": null}))),
        ("future cniVersion", add(), conf(&json!({"cniVersion": "2.0.0"}))),
        ("cniVersion is a number", add(), conf(&json!({"cniVersion": 1}))),
        ("CHECK in 0.3.1", env("CHECK", "c1", "/run/netns/x", "eth0"), conf(&json!({"cniVersion": "0.3.1"}))),
        ("GC in 1.0.0", env("GC", "", "", ""), conf(&json!({"cniVersion": "1.0.0"}))),
        ("STATUS in 1.0.0", env("STATUS", "", "", ""), conf(&json!({"cniVersion": "1.0.0"}))),
        ("no name", add(), conf(&json!({"name": null}))),
        ("bad name", add(), conf(&json!({"name": "my net"}))),
        ("unknown field", add(), conf(&json!({"bridge": "cni0"}))),
        ("misspelt field, in an old version", add(), conf(&json!({"cniVersion": "0.3.0", "range": ["10.0.0.0/24"]}))),
        ("unknown mode", add(), conf(&json!({"mode": "macvlan"}))),
        ("no ranges", add(), conf(&json!({"ranges": null}))),
        ("ranges is a text", add(), conf(&json!({"ranges": "10.244.1.0/24"}))),
        ("a range is a number", add(), conf(&json!({"ranges": [10]}))),
        ("a range with host bits", add(), conf(&json!({"ranges": ["10.244.1.1/24"]}))),
        ("a range without length", add(), conf(&json!({"ranges": ["10.244.1.0"]}))),
        ("two ranges of one family", add(), conf(&json!({"ranges": ["10.244.1.0/24", "10.244.2.0/24"]}))),
        ("a range too small", add(), conf(&json!({"ranges": ["10.244.1.0/31"]}))),
        ("a multicast range", add(), conf(&json!({"ranges": ["ff00::/64"]}))),
        ("no mtu", add(), conf(&json!({"mtu": null}))),
        ("mtu too small", add(), conf(&json!({"mtu": 67}))),
        ("mtu a text", add(), conf(&json!({"mtu": "1450"}))),
        ("mtu too small for IPv6", add(), conf(&json!({"mtu": 1279}))),
        ("relative dataDir", add(), conf(&json!({"dataDir": "ipam"}))),
        ("dns is a list", add(), conf(&json!({"dns": []}))),
        ("bad requested address", add(), conf(&json!({"runtimeConfig": {"ips": ["ten"]}}))),
        ("a capability we lack", add(), conf(&json!({"runtimeConfig": {"cgroupPath": "/x"}}))),
        ("a group's hardware address", add(), conf(&json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}))),
        ("the hardware address of host ends", add(), conf(&json!({"runtimeConfig": {"mac": "ee:ee:ee:ee:ee:ee"}}))),
        ("dns of the runtime is a list", add(), conf(&json!({"runtimeConfig": {"dns": ["192.0.2.1"]}}))),
        ("ipRanges without lists", add(), conf(&json!({"runtimeConfig": {"ipRanges": [{"subnet": "10.7.0.0/24"}]}}))),
        (
            "ipRanges of one family",
            add(),
            conf(&json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.8.0.0/24"}]]}})),
        ),
        (
            "ipRanges that end before they begin",
            add(),
            conf(&json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24", "rangeEnd": "10.6.0.1"}]]}})),
        ),
        (
            "ipRanges with a gateway",
            add(),
            conf(&json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24", "gateway": "10.7.0.1"}]]}})),
        ),
        ("an alias that is no name", add(), conf(&json!({"runtimeConfig": {"aliases": ["a b"]}}))),
        (
            "an alias of this network that is no name",
            add(),
            conf(&json!({"runtimeConfig": {"aliases": {"seaway": ["-"]}}})),
        ),
        ("routes is a text", add(), conf(&json!({"routes": "10.0.0.0/8"}))),
        ("a route with a gateway", add(), conf(&json!({"routes": [{"dst": "10.0.0.0/8", "gw": "10.1.1.1"}]}))),
        ("a route to nowhere", add(), conf(&json!({"routes": [{}]}))),
        (
            "a family there is not",
            add(),
            conf(&json!({"ranges": null, "ipam": {"type": "seaway", "pools": "/x/pools.json", "family": "4"}})),
        ),
        ("prevResult is a text", add(), conf(&json!({"prevResult": "x"}))),
        ("CHECK without prevResult", env("CHECK", "c1", "/run/netns/x", "eth0"), conf(&json!({}))),
        ("GC with no list", env("GC", "", "", ""), conf(&json!({"cni.dev/valid-attachments": "all"}))),
        (
            "GC with a bad list",
            env("GC", "", "", ""),
            conf(&json!({"cni.dev/valid-attachments": [{"containerID": "c1"}]})),
        ),
        ("STATUS without ranges", env("STATUS", "", "", ""), conf(&json!({"ranges": []}))),
    ];
    let mut out = String::new();
    for (title, env, stdin) in cases {
        let r = run(&env, &stdin);
        assert_eq!(r.exit, 1, "{title}: {}", r.stdout);
        writeln!(out, "# {title}\n{}", pretty(&r.stdout)).unwrap();
    }
    golden("errors.txt", &out);
    assert!(!std::path::Path::new("/nonexistent").exists(), "an error leaves nothing behind");
}

fn add() -> Env {
    env("ADD", "c1", "/run/netns/x", "eth0")
}

fn args(args: &str) -> Env {
    Env { args: Some(args.into()), ..add() }
}

#[test]
fn input_is_bounded() {
    let r = run(&add(), &" ".repeat((4 << 20) + 1));
    assert!(r.stdout.contains("more than 4194304 bytes") && r.stdout.contains("\"code\":6"), "{}", r.stdout);
    let deep = "[".repeat(100_000);
    let r = run(&add(), &deep);
    assert!(r.stdout.contains("\"code\":6"), "{}", r.stdout);
}

#[test]
fn version_answers_any_version() {
    for asked in ["1.1.0", "0.2.0", "9.9.9"] {
        let r = run(&env("VERSION", "", "", ""), &json!({"cniVersion": asked}).to_string());
        let v: Value = serde_json::from_str(&r.stdout).unwrap();
        let all = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!((r.exit, v), (0, json!({"cniVersion": "1.1.0", "supportedVersions": all})));
    }
}

#[test]
fn a_call_as_kubernetes_makes_it() {
    let mut e = add();
    e.args = Some(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1;X=Y"
            .into(),
    );
    let call = Call::parse(&e).unwrap();
    let pod = call.pod.unwrap();
    assert_eq!((&*pod.namespace, &*pod.name, pod.uid.as_deref()), ("default", "web-0", Some("u-1")));
    // What libcni adds to a plugin's part of a conflist is not an unknown field.
    let c = conf(&json!({
        "capabilities": {"ips": true}, "runtimeConfig": {"ips": ["10.244.1.7/24", "fd00:10:244:1::7"]},
        "cni.dev/attachments": [], "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}], "args": {},
    }));
    let c = NetConf::parse(c.as_bytes()).unwrap();
    assert_eq!(c.ips, ["10.244.1.7".parse::<std::net::IpAddr>().unwrap(), "fd00:10:244:1::7".parse().unwrap()]);
    assert_eq!(c.valid.unwrap()[0].to_string(), "c1/eth0");
    assert_eq!(
        NetConf::parse(conf(&json!({"dataDir": null})).as_bytes()).unwrap().data_dir.as_os_str(),
        ipam::DEFAULT_DIR
    );
}

#[test]
fn the_conflist_is_one_we_read() {
    let spec = ConflistSpec {
        name: "seaway".into(),
        pools: None,
        ranges: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        mtu: 1450,
        data_dir: "/run/seaway/ipam".into(),
        wiring: intent::Wiring::default(),
        pods: Some("/run/seaway/ipam/pods".into()),
        chained: vec![json!({"type": "portmap", "capabilities": {"portMappings": true}})],
    };
    let text = cni::conflist(&spec);
    golden("10-seaway.conflist", &text);
    let list: Value = serde_json::from_str(&text).unwrap();
    // As libcni does it: name and version of the list go into the plugin's part.
    let mut ours = list["plugins"][0].clone();
    ours["name"] = list["name"].clone();
    ours["cniVersion"] = list["cniVersion"].clone();
    let c = NetConf::parse(ours.to_string().as_bytes()).unwrap();
    assert_eq!((c.ranges, c.mtu), (spec.ranges, Some(1450)));
}

#[test]
fn files_are_written_whole_and_only_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.d/10-seaway.conflist");
    assert!(cni::write_atomically(&path, "a").unwrap());
    assert!(!cni::write_atomically(&path, "a").unwrap());
    assert!(cni::write_atomically(&path, "b").unwrap());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "b");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    // A directory in the way: the error leaves no temporary file.
    let taken = dir.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    assert!(cni::write_atomically(&taken, "x").is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./:]{0,20}".prop_map(Value::from),
        Just(json!("10.244.0.0/16")),
        Just(json!("fd00::/64")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

const FIELDS: [&str; 15] = [
    "cniVersion",
    "name",
    "type",
    "ranges",
    "mtu",
    "dataDir",
    "mode",
    "dns",
    "capabilities",
    "runtimeConfig",
    "routes",
    "args",
    "prevResult",
    "cni.dev/valid-attachments",
    "other",
];

proptest! {
    #[test]
    fn parsers_never_panic(bytes: Vec<u8>, text in "\\PC{0,60}") {
        let _ = NetConf::parse(&bytes);
        let _ = cni::parse_args(&text);
        let _ = Call::parse(&env("ADD", &text, &text, &text));
    }

    /// Any values in the known fields: an answer in the protocol's form, and a result is never built from nonsense.
    #[test]
    fn any_configuration_is_answered(fields in prop::collection::vec((prop::sample::select(&FIELDS[..]), json_value()), 0..5)) {
        let mut c: Value = serde_json::from_str(&conf(&json!({}))).unwrap();
        for (k, v) in fields { c[k] = v; }
        for command in ["ADD", "CHECK", "STATUS", "GC"] {
            // No namespace is at that path and the data directory cannot be made, so each must fail or do nothing.
            c["dataDir"] = json!("/proc/seaway");
            let r = run(&env(command, "c1", "/nonexistent/netns", "eth0"), &c.to_string());
            if r.exit != 0 {
                let e: Value = serde_json::from_str(&r.stdout).unwrap();
                prop_assert!(e["code"].is_u64() && !e["msg"].as_str().unwrap().is_empty());
                prop_assert!(Version::parse(e["cniVersion"].as_str().unwrap()).is_some());
            } else {
                prop_assert!(command == "GC", "{}", command);
            }
        }
        if let Ok(conf) = NetConf::parse(c.to_string().as_bytes()) {
            let _ = cni::merged(&dual(), &conf).write(conf.version);
        }
    }
}
