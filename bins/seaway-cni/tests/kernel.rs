//! The real binary on the real kernel, in fresh namespaces, with real packets. Needs root, iproute2 and iputils-ping.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside #[test] functions are tests too

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{Node, answer};
use serde_json::{Value, json};

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|i| i["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn pods_and_node_reach_each_other_without_waiting() {
    let n = Node::new();
    n.pod("a");
    n.pod("b");
    let (a, b) = (n.add("a"), n.add("b"));
    let (a, b) = (addresses(&a), addresses(&b));
    assert_eq!((&*a[0], &*b[0]), ("10.244.1.2", "10.244.1.3"));
    assert_eq!((&*a[1], &*b[1]), ("fd00:10:244:1::2", "fd00:10:244:1::3"));
    // The very first packet arrives: no ARP, no neighbour discovery, no duplicate address detection.
    for to in [&b[0], &b[1], "192.0.2.1", "2001:db8::1"] {
        n.sh_pod("a", &format!("ping -nq -c1 -W1 {to}"));
    }
    for to in a.iter().chain(&b) {
        n.sh(&format!("ping -nq -c1 -W1 {to}"));
    }
    // Packets of full size.
    n.sh_pod("a", &format!("ping -nq -c1 -W1 -M do -s {} {}", 1450 - 28, b[0]));
    n.sh_pod("a", &format!("ping -nq -c1 -W1 -M do -s {} {}", 1450 - 48, b[1]));

    assert_eq!(
        lines(&n.sh_pod("a", "ip route")),
        ["default via 169.254.1.1 dev eth0 proto 83", "169.254.1.1 dev eth0 proto 83 scope link"]
    );
    let link = n.pod_links().into_iter().map(|l| l.name.to_string()).collect::<BTreeSet<_>>();
    for l in &link {
        let shown = n.sh(&format!("ip address show dev {l}"));
        assert!(!shown.contains(" inet ") && !shown.contains("scope global"), "the host end has no address: {shown}");
    }
    let routes = n.sh("ip route");
    assert!(
        lines(&routes).iter().any(|r| r.starts_with("10.244.1.2 dev sea") && r.ends_with("scope link")),
        "{routes}"
    );
    assert!(n.sh_pod("a", "ip -o link show dev eth0").contains("mtu 1450"));
    n.assert_exactly(&set(&["a", "b"]));
    n.del("a");
    n.assert_exactly(&set(&["b"]));
    n.del("b");
    n.assert_exactly(&set(&[]));
}

#[test]
fn one_family_is_enough() {
    for (range, to) in [("10.9.0.0/24", "192.0.2.1"), ("fd00:9::/64", "2001:db8::1")] {
        let n = Node::new();
        n.pod("a");
        let conf = n.conf_with("ranges", json!([range]));
        let r = n.call("ADD", "a", &conf).unwrap();
        assert_eq!(addresses(&r).len(), 1);
        n.sh_pod("a", &format!("ping -nq -c1 -W1 {to}"));
        n.call("DEL", "a", &conf).unwrap();
        n.assert_exactly(&set(&[]));
    }
}

#[test]
fn ipv6_works_where_the_runtime_switched_it_off() {
    let n = Node::new();
    n.pod("a");
    n.sh_pod("a", "for i in default all; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done");
    n.add("a");
    n.sh_pod("a", "ping -nq -c1 -W1 2001:db8::1");
}

#[test]
fn every_version_from_add_to_del() {
    let n = Node::new();
    for v in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = format!("pod-{v}");
        n.pod(&pod);
        let conf = n.conf_with("cniVersion", json!(v));
        let r = n.call("ADD", &pod, &conf).unwrap();
        assert_eq!(r["cniVersion"], v);
        if v >= "0.4.0" {
            let mut check = conf.clone();
            check["prevResult"] = r;
            n.call("CHECK", &pod, &check).unwrap();
        }
        n.call("DEL", &pod, &conf).unwrap();
    }
    n.assert_exactly(&set(&[]));
    let r = n.call("VERSION", "x", &json!({"cniVersion": "1.1.0"})).unwrap();
    assert_eq!(r["supportedVersions"].as_array().unwrap().len(), 5);
}

#[test]
fn add_again_gives_the_same_and_heals_what_is_half_made() {
    let n = Node::new();
    n.pod("a");
    let first = n.add("a");
    let link = first["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let index = || n.pod_links()[0].index;
    let before = index();
    assert_eq!(n.add("a"), first);
    assert_eq!(index(), before, "nothing was touched");
    // Each way of being half-made; the link is kept where it can be.
    for (what, kept) in [
        ("ip route del 10.244.1.2", true),
        ("ip -6 route del fd00:10:244:1::2", true),
        (&*format!("ip neigh flush nud permanent dev {link}"), true),
        (&*format!("ip link set {link} down"), true),
        (&*format!("ip link set {link} mtu 1400"), true),
        (&*format!("ip link del {link}"), false),
    ] {
        let before = index();
        n.sh(what);
        assert_eq!(n.add("a"), first, "{what}");
        assert_eq!(index() == before, kept, "{what}");
        n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1 && ping -nq -c1 -W1 2001:db8::1");
        n.sh("ping -nq -c1 -W1 10.244.1.2");
    }
    for what in
        ["ip route flush table main", "ip address flush dev eth0", "ip link set eth0 down", "ip link set lo down"]
    {
        n.sh_pod("a", what);
        assert_eq!(n.add("a"), first, "{what}");
        n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1 && ping -nq -c1 -W1 127.0.0.1");
    }
    n.sh_pod("a", "ip link del eth0");
    assert_eq!(n.add("a"), first);
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
    n.assert_exactly(&set(&["a"]));
}

#[test]
fn a_container_id_in_a_new_namespace_is_wired_anew_with_its_address() {
    let n = Node::new();
    n.pod("a");
    let first = n.add("a");
    kernel::Netns::delete(n.dir.path().join("netns/a")).unwrap();
    n.pod("a");
    assert_eq!(n.add("a"), first);
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
    n.assert_exactly(&set(&["a"]));
}

#[test]
fn an_interface_in_the_way_is_named_and_nothing_is_left() {
    let n = Node::new();
    n.pod("a");
    n.sh_pod("a", "ip link add eth0 type veth peer name other");
    let e = n.call("ADD", "a", &n.conf).unwrap_err();
    assert!(e["msg"].as_str().unwrap().starts_with("interface eth0 exists already in "), "{e}");
    n.assert_exactly(&set(&[]));
    n.sh_pod("a", "ip link show dev eth0");
}

#[test]
fn an_address_that_is_routed_elsewhere_is_not_stolen() {
    let n = Node::new();
    n.pod("a");
    n.sh("ip route add 10.244.1.2/32 dev up0");
    let e = n.call("ADD", "a", &n.conf).unwrap_err();
    assert!(e["msg"].as_str().unwrap().contains("10.244.1.2 of a/eth0 is routed elsewhere"), "{e}");
    assert_eq!(e["code"], 11);
    assert!(n.pod_links().is_empty() && ipam::read(&n.data_dir()).unwrap().is_empty());
    // Tried again, as a runtime does: another address.
    assert_eq!(addresses(&n.add("a"))[0], "10.244.1.3");
    assert!(n.sh("ip route").contains("10.244.1.2 dev up0"));
}

#[test]
fn del_is_idempotent_in_every_state() {
    let n = Node::new();
    // Nothing was ever there, with and without CNI_NETNS.
    n.del("ghost");
    assert!(!n.data_dir().exists());
    n.pod("a");
    n.del("a");
    n.add("a");
    n.del("a");
    n.del("a");
    n.assert_exactly(&set(&[]));
    // The namespace went first, as when a container is killed.
    n.pod("b");
    n.add("b");
    kernel::Netns::delete(n.dir.path().join("netns/b")).unwrap();
    n.del("b");
    n.assert_exactly(&set(&[]));
    // The link went first; the journal went first.
    n.pod("c");
    n.add("c");
    n.sh(&format!("ip link del {}", n.pod_links()[0].name));
    n.del("c");
    n.pod("d");
    n.add("d");
    std::fs::remove_file(n.data_dir().join("journal")).unwrap();
    n.del("d");
    n.assert_exactly(&set(&[]));
}

#[test]
fn check_tells_what_differs() {
    let n = Node::new();
    n.pod("a");
    let r = n.add("a");
    let conf = n.conf_with("prevResult", r);
    n.call("CHECK", "a", &conf).unwrap();
    n.sh("ip route del 10.244.1.2");
    n.sh_pod("a", "ip link set eth0 mtu 1300");
    let e = n.call("CHECK", "a", &conf).unwrap_err();
    let d = e["details"].as_str().unwrap();
    assert!(
        d.contains("host: route `10.244.1.2/32 dev sea") && d.contains("pod: eth0 has MTU 1300 instead of 1450"),
        "{e}"
    );
    n.del("a");
    let e = n.call("CHECK", "a", &conf).unwrap_err();
    assert_eq!(e["code"], 3, "{e}");
}

#[test]
fn check_allows_what_a_plugin_after_it_did_to_the_mtu() {
    let n = Node::new();
    for version in ["1.0.0", "1.1.0"] {
        n.pod(version);
        let mut conf = n.conf_with("cniVersion", json!(version));
        let mut r = n.call("ADD", version, &conf).unwrap();
        n.sh_pod(version, "ip link set eth0 mtu 1400");
        if version == "1.1.0" {
            // The result has the MTU since then, and who changes one says so.
            r["interfaces"][1]["mtu"] = json!(1400);
        }
        conf["prevResult"] = r;
        n.call("CHECK", version, &conf).unwrap();
        n.sh_pod(version, "ip link set eth0 mtu 1500");
        let e = n.call("CHECK", version, &conf).unwrap_err();
        assert!(e["details"].as_str().unwrap().contains("pod: eth0 has MTU 1500 instead of 14"), "{e}");
    }
}

#[test]
fn gc_leaves_what_is_listed_and_nothing_else_of_ours() {
    let n = Node::new();
    for p in ["a", "b", "c"] {
        n.pod(p);
        n.add(p);
    }
    // Of another network in the same directory; a host end without record; a foreign interface.
    n.pod("other");
    n.call("ADD", "other", &n.conf_with("name", json!("other"))).unwrap();
    n.sh("ip link add sea00000000dead type veth peer name x; ip link add seahorse type veth peer name y");
    let list = json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "never", "ifname": "eth0"}]);
    let conf = n.conf_with("cni.dev/valid-attachments", list);
    assert_eq!(n.call("GC", "-", &conf), Ok(Value::Null));
    n.assert_exactly(&set(&["b", "other"]));
    n.sh("ip link show dev seahorse");
    n.sh_pod("b", "ping -nq -c1 -W1 192.0.2.1");
    assert_eq!(n.call("GC", "-", &conf), Ok(Value::Null));
    n.assert_exactly(&set(&["b", "other"]));
    // Named as in the released text of 1.1.0.
    let list = json!([{"containerID": "b", "ifname": "eth0"}]);
    assert_eq!(n.call("GC", "-", &n.conf_with("cni.dev/attachments", list)), Ok(Value::Null));
    n.assert_exactly(&set(&["b", "other"]));
    // libcni leaves out a list that a runtime did not give: nothing lives.
    assert_eq!(n.call("GC", "-", &n.conf), Ok(Value::Null));
    n.assert_exactly(&set(&["other"]));
}

#[test]
fn status_says_when_add_would_fail() {
    let n = Node::new();
    assert_eq!(n.call("STATUS", "-", &n.conf), Ok(Value::Null));
    let tiny = n.conf_with("ranges", json!(["10.0.0.0/30"]));
    n.pod("a");
    n.call("ADD", "a", &tiny).unwrap();
    let e = n.call("STATUS", "-", &tiny).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
    assert!(e["msg"].as_str().unwrap().contains("10.0.0.0/30 has no free address: 1 of 1"), "{e}");
    n.pod("b");
    let e = n.call("ADD", "b", &tiny).unwrap_err();
    assert_eq!(e["code"], 11, "{e}");
    n.assert_exactly(&set(&["a"]));
    let e = n.call("STATUS", "-", &n.conf_with("dataDir", json!("/proc/seaway"))).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
    std::fs::write(n.data_dir().join("journal"), "damaged\n").unwrap();
    let e = n.call("STATUS", "-", &n.conf).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
    assert!(e["msg"].as_str().unwrap().contains("is damaged at line 1"), "{e}");
}

#[test]
fn a_fixed_address_is_given_or_refused_by_name() {
    let n = Node::new();
    n.pod("a");
    n.pod("b");
    let conf = n.conf_with("runtimeConfig", json!({"ips": ["10.244.1.77/24"]}));
    assert_eq!(addresses(&n.call("ADD", "a", &conf).unwrap()), ["10.244.1.77", "fd00:10:244:1::2"]);
    let e = n.call("ADD", "b", &conf).unwrap_err();
    assert_eq!(
        (&e["code"], e["msg"].as_str().unwrap()),
        (&json!(102), "requested address 10.244.1.77 is in use by a/eth0")
    );
    n.assert_exactly(&set(&["a"]));
}

#[test]
fn a_hundred_at_once() {
    let n = Node::new();
    let names: Vec<String> = (0..100).map(|i| format!("p{i}")).collect();
    for p in &names {
        n.pod(p);
    }
    let all = |command: &str| {
        let netns = |p: &str| n.dir.path().join("netns").join(p).to_str().unwrap().to_owned();
        let running: Vec<_> = names.iter().map(|p| n.start(command, p, Some(&netns(p)), &n.conf)).collect();
        running.into_iter().map(|c| answer(c.wait_with_output().unwrap())).collect::<Vec<_>>()
    };
    let results: Vec<Value> = all("ADD").into_iter().map(|r| r.unwrap()).collect();
    let distinct: BTreeSet<String> = results.iter().flat_map(addresses).collect();
    assert_eq!(distinct.len(), 200);
    n.assert_exactly(&names.iter().cloned().collect());
    for p in ["p0", "p50", "p99"] {
        n.sh_pod(p, "ping -nq -c1 -W1 192.0.2.1");
    }
    assert!(all("DEL").iter().all(Result::is_ok));
    n.assert_exactly(&set(&[]));
}

#[test]
fn add_racing_del_of_one_pod_ends_in_one_of_both() {
    let n = Node::new();
    let netns = n.pod("a");
    let netns = netns.to_str().unwrap();
    for _ in 0..30 {
        let both: Vec<_> = ["ADD", "DEL", "ADD", "DEL"].map(|c| n.start(c, "a", Some(netns), &n.conf)).into();
        for c in both {
            answer(c.wait_with_output().unwrap()).unwrap();
        }
        let living = ipam::read(&n.data_dir()).unwrap().len();
        n.assert_exactly(&if living == 1 { set(&["a"]) } else { set(&[]) });
        if living == 1 {
            n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1");
        }
    }
}

#[test]
fn a_pod_sends_from_its_own_addresses_alone() {
    let n = Node::new();
    n.pod("a");
    n.pod("b");
    n.add("a");
    let b = addresses(&n.add("b"));
    let to = |family: char| b.iter().find(|a| a.contains(':') == (family == '6')).unwrap().split('/').next().unwrap();
    let ping = |family: char, from: &str| {
        let script = format!("ping -{family} -c 1 -W 1 -I {from} {} >/dev/null && echo yes || echo no", to(family));
        n.sh_pod("a", &script).trim() == "yes"
    };
    n.sh_pod("a", "ip address add 10.244.1.99/32 dev eth0; ip address add fd00:10:244:1::99/128 dev eth0 nodad");
    // The replies would find their way.
    let a = ipam::read(&n.data_dir()).unwrap().into_iter().find(|r| &*r.key.container == "a").unwrap();
    n.sh(&format!("ip route add 10.244.1.99 dev {0}; ip -6 route add fd00:10:244:1::99 dev {0}", a.link));
    let own = |v4: bool| a.addresses.iter().find(|x| x.is_ipv4() == v4).unwrap().to_string();
    assert!(ping('4', &own(true)) && ping('6', &own(false)), "its own");
    assert!(!ping('4', "10.244.1.99") && !ping('6', "fd00:10:244:1::99"), "another's");
    n.sh_pod("a", "ip link set eth0 address 02:00:00:00:00:77");
    assert!(!ping('4', &own(true)), "another's hardware address");
    // The kernel forgets a link's neighbours with its address: ADD brings both back.
    n.add("a");
    assert!(ping('4', &own(true)) && ping('6', &own(false)));
    // Somebody took the filter away: CHECK tells, ADD puts it back.
    n.sh(&format!("tc qdisc del dev {} clsact", a.link));
    assert!(ping('4', "10.244.1.99"), "the test's own packets would arrive");
    let mut check = n.conf.clone();
    check["prevResult"] = n.call("ADD", "b", &n.conf).unwrap();
    n.call("CHECK", "b", &check).unwrap();
    let again = n.add("a");
    assert!(!ping('4', "10.244.1.99") && ping('4', &own(true)));
    check["prevResult"] = again;
    n.sh(&format!("tc filter del dev {} ingress", a.link));
    let e = n.call("CHECK", "a", &check).unwrap_err();
    assert!(e["details"].as_str().unwrap().contains("addresses that are not its own"), "{e}");
}

#[test]
fn the_agent_remakes_a_deleted_interface_with_the_same_address() {
    let n = Node::new();
    n.pod("a");
    n.add("a");
    let key = ipam::read(&n.data_dir()).unwrap()[0].key.clone();
    let rewire = || n.ns.run(|| cni::rewire(&mut kernel::Linux, &n.data_dir(), &key)).unwrap();
    let mac = || n.sh_pod("a", "ip -o link show eth0").split("link/ether ").nth(1).unwrap().to_owned();
    let before = mac();
    n.sh(&format!("ip link del {}", n.pod_links()[0].name));
    rewire().unwrap();
    n.sh_pod("a", "ping -nq -c1 -W1 192.0.2.1 && ping -nq -c1 -W1 2001:db8::1");
    assert_eq!(mac()[..17], before[..17]);
    n.assert_exactly(&set(&["a"]));
    rewire().unwrap();
    n.assert_exactly(&set(&["a"]));

    // The namespace goes, and no DEL ever comes.
    assert!(cni::gone(&ipam::read(&n.data_dir()).unwrap()).is_empty());
    let sweep = || {
        n.ns.run(|| cni::remove_if_gone(&mut kernel::Linux, plugins::by_name, &n.data_dir(), &key)).unwrap().unwrap()
    };
    assert!(!sweep(), "it lives");
    kernel::Netns::delete(n.dir.path().join("netns/a")).unwrap();
    let e = rewire().unwrap_err();
    assert_eq!(e.code, cni::Code::UnknownContainer, "{e}");
    assert_eq!(cni::gone(&ipam::read(&n.data_dir()).unwrap()).len(), 1);
    assert!(sweep() && !sweep());
    n.assert_exactly(&set(&[]));
    assert!(rewire().unwrap_err().msg.contains("there is no attachment a/eth0"));
}

#[test]
fn by_hand_it_says_what_it_is() {
    let out = Command::new(env!("CARGO_BIN_EXE_seaway-cni")).env_clear().output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.starts_with("seaway-cni ") && text.contains("CNI_COMMAND=ADD"), "{text}");
}
