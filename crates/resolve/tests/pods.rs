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
