//! Each controller needs to read what it says it looks at, and nothing else.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

use controller::lb::Memory;
use controller::{Options, Which, reconcile_with};
use resolve::{ClusterSnapshot, Event, Kind, apply, parse};
use serde_json::{Value, json};

/// Something to do for each of them.
fn objects() -> Vec<Value> {
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway", "namespace": "kube-system"},
               "data": {"clusterCIDR": "10.244.0.0/16", "ipam": "pools"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "1"},
               "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "default", "uid": "2"},
               "spec": {"selector": {"app": "a"}, "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default", "uid": "3", "labels": {"app": "a"}},
               "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
               "conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b", "namespace": "default", "uid": "4"}, "spec": {"containers": []}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c", "namespace": "default", "uid": "5"},
               "spec": {"nodeName": "gone", "containers": []}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default", "uid": "6"},
               "spec": {"replicas": 2, "selector": selector, "template": template}}),
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "e", "namespace": "default", "uid": "7"},
               "spec": {"selector": selector, "template": template}}),
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "f", "namespace": "default", "uid": "9",
               "labels": {"app": "a"}, "ownerReferences": [{"kind": "Deployment", "name": "d", "uid": "6", "controller": true}]},
               "spec": {"replicas": 1, "selector": selector, "template": template}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "e-old", "namespace": "default", "uid": "10",
               "ownerReferences": [{"kind": "DaemonSet", "name": "e", "uid": "7", "controller": true}]}, "revision": 4}),
        json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/24"}}),
        json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "l"},
               "spec": {"addresses": ["192.0.2.0/28"]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "l", "namespace": "default", "uid": "8"},
               "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.2", "ports": [{"port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "l", "namespace": "default", "uid": "11"},
               "subsets": [{"addresses": [{"ip": "192.0.2.99"}], "ports": [{"port": 8080}]}]}),
        json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPBlock", "metadata": {"name": "10-0-0-0-26"},
               "spec": {"cidr": "10.0.0.0/26", "pool": "p", "node": "gone"}}),
    ]
}

#[test]
fn what_is_not_looked_at_changes_nothing() {
    let all = objects();
    for which in Which::ALL {
        let options = Options { which: [which].into(), ..Options::default() };
        let of = |see: &dyn Fn(Kind) -> bool| {
            let mut s = ClusterSnapshot::default();
            for p in all.iter().map(|v| parse(v).unwrap()).filter(|p| see(p.key.kind)) {
                apply(&mut s, Event::Put(p));
            }
            reconcile_with(&s, &options, &mut Memory::default(), "2026-01-01T00:00:00Z")
        };
        let whole = of(&|_| true);
        assert!(!whole.writes.is_empty(), "{which:?} has something to do");
        assert_eq!(of(&|k| options.kinds().contains(&k)), whole, "{which:?}");
        for kind in which.kinds() {
            assert!(options.kinds().contains(kind));
        }
    }
}
