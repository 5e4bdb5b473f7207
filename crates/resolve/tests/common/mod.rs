//! Small clusters as text.

#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;

use resolve::{ClusterSnapshot, Event, LocalState, Resolved, apply, parse, resolve};
use serde_json::{Value, json};

/// A cluster of these objects.
pub fn cluster(objects: &[Value]) -> ClusterSnapshot {
    let mut s = ClusterSnapshot::default();
    for o in objects {
        apply(&mut s, Event::Put(parse(o).unwrap_or_else(|| panic!("not ours: {o}"))));
    }
    s
}

/// node1 on 192.168.0.0/24 and fd00:1::/64.
pub fn local() -> LocalState {
    LocalState {
        node: "node1".parse().unwrap(),
        attachments: BTreeMap::new(),
        on_link: ["192.168.0.0/24", "fd00:1::/64", "10.9.9.9/32"].map(|c| c.parse().unwrap()).into(),
        addresses: ["192.168.0.1", "fd00:1::1", "10.9.9.9"].map(|a| a.parse().unwrap()).into(),
        vxlan_mac: "02:00:00:00:00:01".parse().unwrap(),
        vxlan_supported: true,
        vxlan_in_use: false,
        services_elsewhere: false,
        networks: Default::default(),
        ports: Default::default(),
    }
}

/// What the objects mean for node1.
pub fn on_node1(objects: &[Value]) -> Resolved {
    resolve(&cluster(objects), &local())
}

pub fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {}, "labels": {}},
           "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses}})
}

/// The node as its agent publishes itself when it sends with vxlan.
pub fn with_vxlan(mut node: Value, address: &str) -> Value {
    node["metadata"]["annotations"] = json!({
        "seaway.io/backend": "vxlan",
        "seaway.io/vxlan": format!(r#"{{"vni":1,"port":8472,"mac":"02:00:00:00:00:02","address":"{address}"}}"#),
    });
    node
}

pub fn settings(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway", "namespace": "kube-system"}, "data": data})
}

/// Service default/web of cluster IP 10.96.0.10, port http 80, with more spec.
pub fn service(spec: Value) -> Value {
    let mut v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default", "labels": {}},
        "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80}]}});
    for (k, x) in spec.as_object().unwrap() {
        v["spec"][k] = x.clone();
    }
    v
}

/// A slice of default/web: port http 8080, endpoints as (address, node, conditions).
pub fn slice(name: &str, endpoints: &[(&str, &str, Value)]) -> Value {
    let family = if endpoints.iter().any(|e| e.0.contains(':')) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(a, node, conditions)| json!({"addresses": [a], "nodeName": node, "conditions": conditions}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

/// node1 and node2 on one network, one range each.
pub fn two() -> Vec<Value> {
    vec![node("node1", &["192.168.0.1"], &["10.244.1.0/24"]), node("node2", &["192.168.0.2"], &["10.244.2.0/24"])]
}
