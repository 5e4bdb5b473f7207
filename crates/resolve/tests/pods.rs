//! What a pod of this node is to have.
#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use common::{on_node1, two};
use serde_json::{Value, json};

fn pod(annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "web", "uid": "of-the-api", "annotations": annotations},
        "spec": {"nodeName": "node1"},
    })
}

#[test]
fn a_static_pod_is_known_by_the_uid_that_the_runtime_says() {
    let uid = |annotations: Value| {
        let mut all = two();
        all.push(pod(&annotations));
        let r = on_node1(&all);
        assert_eq!(r.problems, []);
        let (_, spec) = r.intent.pods.iter().next().unwrap();
        spec.uid.to_string()
    };
    assert_eq!(uid(json!({})), "of-the-api");
    assert_eq!(uid(json!({"kubernetes.io/config.mirror": "of-the-file"})), "of-the-file");
}

#[test]
fn a_hardware_address_by_either_name() {
    for key in ["seaway.io/mac", "cni.projectcalico.org/hwAddr"] {
        let spec = |value: &str, more: Value| {
            let mut all = two();
            let mut annotations = json!({key: value});
            annotations.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all.push(pod(&annotations));
            let r = on_node1(&all);
            let told = r.problems.iter().map(ToString::to_string).collect::<Vec<_>>();
            (r.intent.pods.values().next().unwrap().clone(), told)
        };
        let (right, told) = spec("02:00:00:00:00:17", json!({}));
        assert_eq!((right.mac.map(|m| m.to_string()).as_deref(), told.len()), (Some("02:00:00:00:00:17"), 0));
        for (value, more, why) in [
            ("01:00:5e:00:00:01", json!({}), "a hardware address of one station is needed"),
            ("x", json!({}), "a hardware address of one station is needed"),
            (
                "02:00:00:00:00:17",
                json!({"seaway.io/mode": "ipvlan"}),
                "an ipvlan has the hardware address of its parent",
            ),
        ] {
            let (spec, told) = spec(value, more);
            let refused = spec.refused.unwrap();
            assert!(refused.contains(why) && refused.contains(key), "{refused}");
            assert_eq!(told, [refused]);
        }
    }
}
