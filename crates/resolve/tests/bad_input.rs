//! Every kind of bad input: the problem names object, field and fix, and the rest of the intent stands.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use common::{node, on_node1, service, settings, slice, two};
use serde_json::{Value, json};

/// One bad cluster: what is added to (or put in place of) two good nodes, and the problem it gives.
fn case(objects: Vec<Value>, object: &str, field: &str, why: &[&str]) {
    let r = on_node1(&objects);
    let found = r.problems.iter().find(|p| p.object == object && p.field == field);
    let Some(found) = found else { panic!("no problem of {object} {field}, only {:#?}", r.problems) };
    for w in why {
        assert!(found.why.contains(w), "{found}\nwants {w}");
    }
    // The rest goes on.
    assert!(r.intent.peers.contains_key(&"node2".parse().unwrap()), "{r:#?}");
}

fn plus(extra: impl IntoIterator<Item = Value>) -> Vec<Value> {
    two().into_iter().chain(extra).collect()
}

fn younger(mut v: Value) -> Value {
    v["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    v
}

fn named(mut v: Value, name: &str) -> Value {
    v["metadata"]["name"] = name.into();
    v
}

#[test]
fn nodes() {
    for cidr in ["10.244.2.0/24", "10.244.2.128/25", "10.244.0.0/16"] {
        // The younger one loses, though its name sorts first.
        case(
            plus([younger(node("a-node", &["192.168.0.9"], &[cidr]))]),
            "Node/a-node",
            "spec.podCIDRs[0]",
            &[cidr, "overlaps 10.244.", "which has it", "delete Node a-node"],
        );
    }
    case(plus([node("bad", &["192.168.0.9"], &["10.244.9.0/33"])]), "Node/bad", "spec.podCIDRs[0]", &["from 0 to 32"]);
    case(
        plus([node("bad", &["192.168.0.9"], &["10.244.8.0/24", "10.244.9.0/24"])]),
        "Node/bad",
        "spec.podCIDRs[1]",
        &["is a second IPv4 range"],
    );
    case(
        plus([node("bad", &[], &["10.244.9.0/24"])]),
        "Node/bad",
        "status.addresses",
        &["no usable address", "InternalIP"],
    );
    for ip in ["127.0.0.1", "169.254.1.1", "::1", "fe80::1", "0.0.0.0", "224.0.0.1"] {
        case(
            plus([node("bad", &[ip], &["10.244.9.0/24"])]),
            "Node/bad",
            "status.addresses[InternalIP]",
            &[ip, "no node can be reached there"],
        );
    }
    case(
        plus([younger(node("bad", &["192.168.0.2"], &["10.244.9.0/24"]))]),
        "Node/bad",
        "status.addresses[InternalIP]",
        &["192.168.0.2 is also the address of Node node2"],
    );
    case(
        plus([node("bad", &["10.244.2.7"], &["10.244.9.0/24"])]),
        "Node/bad",
        "status.addresses[InternalIP]",
        &["10.244.2.7 lies in the pod range 10.244.2.0/24 (spec.podCIDRs of Node node2)"],
    );
    case(
        plus([settings(json!({"clusterCIDR": "10.0.0.0/8"})), node("bad", &["10.1.2.3"], &["10.244.9.0/24"])]),
        "Node/bad",
        "status.addresses[InternalIP]",
        &["10.1.2.3 lies in the pod range 10.0.0.0/8 (data.clusterCIDR of ConfigMap kube-system/seaway)"],
    );
    case(
        plus([settings(json!({"clusterCIDR": "10.99.0.0/16"}))]),
        "Node/node2",
        "spec.podCIDRs[0]",
        &["10.244.2.0/24 lies outside data.clusterCIDR"],
    );
    let mut bad = node("bad", &["192.168.0.9"], &["10.244.9.0/24"]);
    bad["metadata"]["annotations"] = json!({"seaway.io/backend": "carrier-pigeon"});
    case(plus([bad]), "Node/bad", "metadata.annotations.seaway.io/backend", &["is no backend: use host-gw or vxlan"]);
    // This node itself.
    case(vec![two()[1].clone()], "Node/node1", "metadata.name", &["no such Node", "--node node1"]);
    case(
        vec![node("node1", &["192.168.0.1"], &[]), two()[1].clone()],
        "Node/node1",
        "spec.podCIDRs",
        &["no pod range", "data.clusterCIDR"],
    );
}

#[test]
fn an_overlapping_range_is_left_out_and_the_older_node_keeps_it() {
    let r = on_node1(&plus([younger(node("a-node", &["192.168.0.9"], &["10.244.2.0/24", "fd00:9::/64"]))]));
    let routes =
        |n: &str| r.intent.peers[&n.parse().unwrap()].routes.iter().map(|x| x.cidr.to_string()).collect::<Vec<_>>();
    assert_eq!(routes("node2"), ["10.244.2.0/24"]);
    assert_eq!(routes("a-node"), ["fd00:9::/64"]);
    // Were it this node's own range, the node would have none.
    let mut mine = two();
    mine[0] = younger(node("node1", &["192.168.0.1"], &["10.244.2.0/24"]));
    assert!(on_node1(&mine).intent.pod_cidrs.is_empty());
}

#[test]
fn the_settings() {
    for (data, key, why) in [
        (json!({"backend": "bgp"}), "backend", "\"bgp\" is no backend: use host-gw or vxlan"),
        (json!({"clusterCIDR": "10.0.0.0"}), "clusterCIDR", "has no prefix length: write it as ADDRESS/LENGTH"),
        (json!({"clusterCIDR": "10.0.0.1/8"}), "clusterCIDR", "is 10.0.0.0/8"),
        (json!({"clusterCIDR": "10.0.0.0/16,10.1.0.0/16"}), "clusterCIDR", "two ranges of one family"),
        (json!({"masquerade": "yes"}), "masquerade", "write true or false"),
        (json!({"vni": "0"}), "vni", "from 1 to 16777215"),
        (json!({"vni": "16777216"}), "vni", "from 1 to 16777215"),
        (json!({"vxlanPort": "0"}), "vxlanPort", "from 1 to 65535"),
        (json!({"vxlanport": "4789"}), "vxlanport", "no such setting: remove it, or correct it to addresses"),
        (json!({"vni": 7}), "vni", "must be text, is a number"),
    ] {
        case(plus([settings(data)]), "ConfigMap/kube-system/seaway", &format!("data.{key}"), &[why]);
    }
}

#[test]
fn services() {
    let web = "Service/default/web";
    case(
        plus([service(json!({"type": "Magic"}))]),
        web,
        "spec.type",
        &["\"Magic\" is no Service type: write ClusterIP, NodePort"],
    );
    case(plus([service(json!({"clusterIPs": ["10.96.0.300"]}))]), web, "spec.clusterIPs[0]", &["is no IP address"]);
    case(plus([service(json!({"clusterIPs": ["127.0.0.1"]}))]), web, "spec.clusterIPs[0]", &["a loopback address"]);
    case(
        plus([service(json!({"clusterIPs": ["10.244.2.5"]}))]),
        web,
        "spec.clusterIPs[0]",
        &["lies in the pod range 10.244.2.0/24"],
    );
    case(
        plus([service(json!({"clusterIPs": ["192.168.0.2"]}))]),
        web,
        "spec.clusterIPs[0]",
        &["is the address of a node"],
    );
    case(
        plus([service(json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}))]),
        web,
        "spec.clusterIPs[1]",
        &["second IPv4 address"],
    );
    case(
        plus([service(json!({"externalTrafficPolicy": "Near"}))]),
        web,
        "spec.externalTrafficPolicy",
        &["write Cluster or Local"],
    );
    case(
        plus([service(json!({"sessionAffinity": "Cookie"}))]),
        web,
        "spec.sessionAffinity",
        &["write None or ClientIP"],
    );
    case(
        plus([service(json!({"loadBalancerSourceRanges": ["10.0.0.1/8"]}))]),
        web,
        "spec.loadBalancerSourceRanges[0]",
        &["10.0.0.0/8"],
    );
    case(plus([service(json!({"externalIPs": ["169.254.169.254"]}))]), web, "spec.externalIPs", &["link-local"]);
    case(plus([service(json!({"ports": [{"port": 0}]}))]), web, "spec.ports[0].port", &["from 1 to 65535"]);
    case(plus([service(json!({"ports": [{}]}))]), web, "spec.ports[0].port", &["needs a number"]);
    case(
        plus([service(json!({"ports": [{"port": 80}, {"port": 81}]}))]),
        web,
        "spec.ports[1].name",
        &["a second TCP port"],
    );
    // Two Services that claim the same.
    let young = |spec| younger(named(service(spec), "a-web"));
    case(
        plus([service(json!({})), young(json!({}))]),
        "Service/default/a-web",
        "spec.clusterIPs[0]",
        &["also the address of Service default/web"],
    );
    let ext = |ip: &str| json!({"clusterIPs": [ip], "clusterIP": ip, "externalIPs": ["203.0.113.1", "2001:db8::1"]});
    case(
        plus([service(ext("10.96.0.1"))]),
        web,
        "spec.externalIPs",
        &["no IPv6 cluster address, so 2001:db8::1 is not served: add the family to spec.ipFamilies"],
    );
    case(
        plus([service(ext("10.96.0.1")), young(ext("10.96.0.2"))]),
        "Service/default/a-web",
        "spec.externalIPs",
        &["203.0.113.1 port 80/TCP is already served by Service default/web"],
    );
    let nodeport = |ip: &str| json!({"type": "NodePort", "clusterIPs": [ip], "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    case(
        plus([service(nodeport("10.96.0.1")), young(nodeport("10.96.0.2"))]),
        "Service/default/a-web",
        "spec.ports[0].nodePort",
        &["30080/TCP already belongs to Service default/web"],
    );
}

#[test]
fn endpoints() {
    let s = "EndpointSlice/default/a";
    for ip in [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
        "::ffff:10.0.0.1",
    ] {
        let good = if ip.contains(':') { "fd00:244:2::2" } else { "10.244.2.2" };
        let spec = json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]});
        let all = plus([service(spec), slice("a", &[(ip, "node2", json!({})), (good, "node2", json!({}))])]);
        case(all.clone(), s, "endpoints[0].addresses[0]", &["endpoints there are refused"]);
        let r = on_node1(&all);
        let left: Vec<_> =
            r.intent.services.values().flat_map(|p| p.endpoints.iter().map(|e| e.addr.to_string())).collect();
        assert_eq!(left, [good], "{ip}");
    }
    let mut mixed = slice("a", &[("10.244.2.2", "node2", json!({}))]);
    mixed["addressType"] = "IPv6".into();
    case(plus([service(json!({})), mixed.clone()]), s, "endpoints[0].addresses[0]", &["is no IPv6 address"]);
    mixed["addressType"] = "IPX".into();
    case(plus([mixed.clone()]), s, "addressType", &["write IPv4, IPv6 or FQDN"]);
    mixed["addressType"] = "IPv4".into();
    mixed["endpoints"][0]["addresses"] = json!([]);
    case(plus([mixed]), s, "endpoints[0].addresses", &["needs an address"]);
}

#[test]
fn wrong_types_are_named_and_never_stop_the_rest() {
    for (pointer, field) in [
        ("/metadata/labels", "metadata.labels"),
        ("/spec/podCIDRs", "spec.podCIDRs"),
        ("/spec/unschedulable", "spec.unschedulable"),
        ("/status/addresses", "status.addresses"),
    ] {
        let mut bad = node("bad", &["192.168.0.9"], &["10.244.9.0/24"]);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[key] = 7.into();
        case(plus([bad]), "Node/bad", field, &["must be", "is a number"]);
    }
    // A thousand wrong entries are not a thousand lines.
    let many: Vec<Value> = (0..1000).map(|_| json!("x")).collect();
    let r = on_node1(&plus([service(json!({"externalIPs": many}))]));
    assert!(r.problems.len() < 50, "{}", r.problems.len());
}

#[test]
fn networks_of_pods() {
    const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
    let pod = |text: &str, host: bool| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "default", "annotations": {NETWORKS: text}},
            "spec": {"nodeName": "node1", "hostNetwork": host}})
    };
    let nad = |config: &str| {
        json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": "n", "namespace": "default"}, "spec": {"config": config}})
    };
    let field = |place: &str| format!("metadata.annotations[{NETWORKS}]{place}");
    let definition = "NetworkAttachmentDefinition/default/n";
    case(plus([pod("a@eth0", false)]), "Pod/default/p", &field("[0].interface"), &["choose another name"]);
    case(plus([pod("none", false)]), "Pod/default/p", &field("[0]"), &["create it, or correct the name"]);
    case(plus([pod("n", true), nad("{}")]), "Pod/default/p", &field(""), &["hostNetwork", "remove one"]);
    case(plus([nad("{")]), definition, "spec.config", &["is no JSON"]);
    case(plus([nad("{}")]), definition, "spec.config", &["neither type"]);
    let broken = r#"{"type": "a", "cniVersion": "7"}"#;
    case(plus([pod("n", false), nad(broken)]), "Pod/default/p", &field("[0]"), &["cannot be used", "cniVersion"]);
    // What cannot be attached as it asks is not attached in another way.
    let r = on_node1(&plus([pod("n", false), nad(broken)]));
    let spec = r.intent.pods.values().next().unwrap();
    assert!(spec.refused.is_some() && spec.networks.is_empty(), "{spec:?}");
    let r = on_node1(&plus([pod("n", false), nad(r#"{"type": "bridge"}"#)]));
    let spec = r.intent.pods.values().next().unwrap();
    assert_eq!((spec.refused.as_ref(), spec.networks.len()), (None, 1), "{spec:?}");
}
