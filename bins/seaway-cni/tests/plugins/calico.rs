//! calico: Calico's configurations, and what a pod has by them.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::twin::{Twin, Whose, page, with};

/// A machine whose agent has said what the node and pod default/web are to have.
fn world(node: &Value, pod: &Value) -> Twin {
    let t = Twin::new(Whose::Ours);
    let dir = PathBuf::from(t.dir("ipam"));
    std::fs::create_dir_all(dir.join("pods")).unwrap();
    if !node.is_null() {
        std::fs::write(dir.join(cni::node::FILE), node.to_string()).unwrap();
    }
    std::fs::write(dir.join("pods").join(cni::podspec::file_name("default", "web")), pod.to_string()).unwrap();
    t
}

fn own_ranges() -> Value {
    json!({"version": 1, "ranges": ["10.1.0.0/24", "fd00:1::/64"], "pools": false, "mtu": 1440})
}

fn call(t: &Twin, command: &str, container: &str, conf: &Value) -> Result<Value, Value> {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1";
    t.call_with(command, container, &with(conf, "dataDir", t.dir("ipam").into()), &[("CNI_ARGS", args)])
}

fn conf(ipam: Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": "k8s-pod-network", "type": "calico", "log_level": "info", "nodename": "n",
        "datastore_type": "kubernetes", "ipam": ipam, "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": "/x"}})
}

fn addresses(said: &Value) -> Vec<&str> {
    said["ips"].as_array().unwrap().iter().map(|i| i["address"].as_str().unwrap()).collect()
}

/// ADD twice, CHECK, packets both ways, DEL twice; gives the result.
fn life(t: &Twin, c: &Value) -> Value {
    t.node.pod("c1");
    let said = call(t, "ADD", "c1", c).unwrap_or_else(|e| panic!("ADD of {c}: {e}"));
    assert_eq!(call(t, "ADD", "c1", c).unwrap(), said);
    call(t, "CHECK", "c1", &with(c, "prevResult", said.clone())).unwrap();
    for a in addresses(&said) {
        let own = a.split('/').next().unwrap();
        t.node.sh(&format!("ping -nq -c1 -W1 {own}"));
    }
    assert_eq!(t.json_pod("c1", "ip -j link show eth0")[0]["mtu"], 1440);
    said
}

fn ends(t: &Twin, c: &Value) {
    for _ in 0..2 {
        call(t, "DEL", "c1", c).unwrap();
    }
    assert_eq!(ipam::read(&PathBuf::from(t.dir("ipam"))).unwrap(), []);
    kernel::Netns::delete(t.node.dir.path().join("netns/c1")).unwrap();
}

#[test]
fn the_nodes_own_range_by_its_word() {
    let t = world(&own_ranges(), &json!({"uid": "u1"}));
    for (ipam, families, routes) in [
        (json!({"type": "host-local", "subnet": "usePodCidr"}), 1, "default via 169.254.1.1 dev eth0"),
        (
            json!({"type": "host-local", "ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]],
                "routes": [{"dst": "192.0.2.0/24"}, {"dst": "::/0"}]}),
            2,
            "192.0.2.0/24 via 169.254.1.1 dev eth0",
        ),
        (json!({"type": "calico-ipam"}), 1, "default via 169.254.1.1 dev eth0"),
        (json!({"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}), 2, "default via"),
    ] {
        let c = conf(ipam);
        let said = life(&t, &c);
        let given = addresses(&said);
        assert!(given.len() == families && given[0].starts_with("10.1.0."), "{c}: {given:?}");
        let have = t.node.sh_pod("c1", "ip route");
        assert!(have.contains(routes), "{c}: {have}");
        assert!(families == 1 || given[1].starts_with("fd00:1::"), "{c}: {given:?}");
        ends(&t, &c);
    }
    let six = conf(json!({"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}));
    assert!(addresses(&life(&t, &six))[0].starts_with("fd00:1::"));
    ends(&t, &six);
}

#[test]
fn addresses_of_pools_and_what_the_pods_annotations_say() {
    let node = json!({"version": 1, "ranges": [], "pools": true, "mtu": 1440});
    let t = world(&node, &json!({"uid": "u1", "addresses": ["10.9.0.7"], "mac": "02:00:00:00:00:17"}));
    let pools = json!({"version": 1, "except": [], "default": ["four", "six"], "pools": {
        "four": {"cidr": "10.9.0.0/24", "ranges": ["10.9.0.0/28"]}, "six": {"cidr": "fd09::/64", "ranges": ["fd09::/124"]}}});
    std::fs::write(PathBuf::from(t.dir("ipam")).join(ipam::POOLS), pools.to_string()).unwrap();
    let both = conf(
        json!({"type": "calico-ipam", "assign_ipv6": "true", "ipv4_pools": ["10.9.0.0/24"], "ipv6_pools": ["six"]}),
    );
    assert_eq!(addresses(&life(&t, &both)), ["10.9.0.7/32", "fd09::/128"]);
    assert_eq!(t.json_pod("c1", "ip -j link show eth0")[0]["address"], "02:00:00:00:00:17");
    ends(&t, &both);
    let four = conf(json!({"type": "calico-ipam"}));
    assert_eq!(addresses(&life(&t, &four)), ["10.9.0.7/32"]);
    ends(&t, &four);
    // An address that is asked for in a family that is not given.
    let six = conf(json!({"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}));
    t.node.pod("c2");
    let e = call(&t, "ADD", "c2", &six).unwrap_err();
    assert!(e["code"] == 102 && e["msg"].as_str().unwrap().contains("10.9.0.7"), "{e}");
    assert_eq!(ipam::read(&PathBuf::from(t.dir("ipam"))).unwrap(), []);
}

#[test]
fn without_an_agent_or_a_range_it_says_so() {
    let t = world(&Value::Null, &json!({"uid": "u1"}));
    t.node.pod("c1");
    let c = conf(json!({"type": "calico-ipam"}));
    let e = call(&t, "ADD", "c1", &c).unwrap_err();
    assert!(e["code"] == 11 && e["msg"].as_str().unwrap().contains("is `seaway agent` running"), "{e}");
    assert_eq!(call(&t, "STATUS", "", &c).unwrap_err()["code"], 50);
    std::fs::write(PathBuf::from(t.dir("ipam")).join(cni::node::FILE), own_ranges().to_string()).unwrap();
    call(&t, "STATUS", "", &c).unwrap();
    for (ipam, why) in [
        (json!({"type": "host-local"}), "ipam.subnet is missing"),
        (json!({"type": "host-local", "subnet": "usePodCidr", "gateway": "10.1.0.1"}), ""),
        (json!({"type": "calico-ipam", "ipv4_pools": ["x"]}), "ipPools of ConfigMap"),
        (json!({"type": "dhcp"}), "calico-ipam or host-local"),
    ] {
        let said = call(&t, "ADD", "c1", &conf(ipam.clone()));
        if why.is_empty() {
            // A gateway of host-local's means nothing to a routed pod, in Calico neither.
            said.unwrap();
            call(&t, "DEL", "c1", &c).unwrap();
            continue;
        }
        let e = said.unwrap_err();
        assert!(e["code"] == 7 && e["msg"].as_str().unwrap().contains(why), "{ipam}: {e}");
    }
    let forwards = with(&c, "container_settings", json!({"allow_ip_forwarding": true}));
    assert!(call(&t, "ADD", "c1", &forwards).unwrap_err()["msg"].as_str().unwrap().contains("allow_ip_forwarding"));
    assert!(!t.node.sh_pod("c1", "ip -br link").contains("eth0"));
    assert_eq!(ipam::read(&PathBuf::from(t.dir("ipam"))).unwrap(), []);
}

/// The page's chain, whole. The limits of the pod's annotations are said to two: by the agent to the first plugin, by the
/// runtime to the last.
#[test]
fn the_pages_chain_works_and_gc_finds_a_lost_del() {
    let t =
        world(&own_ranges(), &json!({"uid": "u1", "bandwidth": {"ingressRate": 8_000_000, "egressRate": 4_000_000}}));
    let list = page("calico");
    let of = |i: usize| {
        let mut c = list["plugins"][i].clone();
        (c["name"], c["cniVersion"]) = (list["name"].clone(), list["cniVersion"].clone());
        with(&c, "dataDir", t.dir("ipam").into())
    };
    let runtime = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 4_294_967_295_u64, "egressRate": 4_000_000, "egressBurst": 4_294_967_295_u64}});
    t.node.pod("c1");
    let mut said = Value::Null;
    for i in 0..3 {
        let mut c = of(i);
        if i > 0 {
            (c["prevResult"], c["runtimeConfig"]) = (said, runtime.clone());
        }
        said = call(&t, "ADD", "c1", &c).unwrap_or_else(|e| panic!("{c}: {e}"));
    }
    assert_eq!(said["ips"].as_array().unwrap().len(), 2, "{said}");
    let limits = t.node.sh("tc qdisc show | grep tbf");
    assert!(limits.contains("rate 8Mbit") && limits.contains("rate 4Mbit"), "{limits}");
    for i in 0..3 {
        let mut c = with(&of(i), "cniVersion", "1.0.0".into());
        (c["prevResult"], c["runtimeConfig"]) = (said.clone(), if i > 0 { runtime.clone() } else { json!({}) });
        call(&t, "CHECK", "c1", &c).unwrap_or_else(|e| panic!("{c}: {e}"));
    }
    let ports = || t.node.sh("nft list ruleset").contains("tcp . 8080");
    assert!(ports());
    t.node.sh_pod("c1", "ping -nq -c1 -W2 192.0.2.1");
    for i in [2, 1] {
        call(&t, "DEL", "c1", &with(&of(i), "prevResult", said.clone())).unwrap();
    }
    assert!(!ports());
    // No DEL of the first ever comes.
    call(&t, "GC", "", &with(&of(0), "cniVersion", "1.1.0".into())).unwrap();
    assert_eq!(ipam::read(&PathBuf::from(t.dir("ipam"))).unwrap(), []);
    assert_eq!(t.node.sh("ip -br link show type ifb"), "");
}
