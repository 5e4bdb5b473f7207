//! Patches over HTTP; the units beside the code test their details.

use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn each_kind_of_patch_changes_what_it_says() {
    let h = Host::new().await;
    let made = h.create(DEPLOYS, deployment("a")).await;
    let d = format!("{DEPLOYS}/a");
    let (code, v) = h
        .patch(&d, "application/merge-patch+json", json!({"metadata": {"labels": {"x": "1"}}, "spec": {"replicas": 3}}))
        .await;
    assert_eq!((code, &v["spec"]["replicas"], &v["metadata"]["labels"]["x"]), (200, &json!(3), &json!("1")));
    let (code, v) = h
        .patch(
            &d,
            "application/strategic-merge-patch+json",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}, {"name": "d", "image": "e"}]}}}}),
        )
        .await;
    let containers = &v["spec"]["template"]["spec"]["containers"];
    assert_eq!((code, &containers[0]["image"], &containers[1]["name"]), (200, &json!("i:1"), &json!("d")), "{v}");
    let (code, v) = h
        .patch(&d, "application/json-patch+json", json!([{"op": "test", "path": "/spec/replicas", "value": 3}, {"op": "replace", "path": "/spec/replicas", "value": 4}]))
        .await;
    assert_eq!((code, &v["spec"]["replicas"]), (200, &json!(4)));
    let (code, e) =
        h.patch(&d, "application/json-patch+json", json!([{"op": "test", "path": "/spec/replicas", "value": 3}])).await;
    assert_eq!(code, 422, "{e}");
    assert_eq!(v["metadata"]["generation"], 4);
    // A patch may carry the revision it was made for.
    let stale = json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"replicas": 9}});
    assert_eq!(h.patch(&d, "application/merge-patch+json", stale).await.0, 409);
    assert_eq!(h.patch(&d, "text/plain", json!({})).await.0, 415);
    assert_eq!(h.patch(&format!("{DEPLOYS}/none"), "application/merge-patch+json", json!({})).await.0, 404);
    // What comes out of a patch is validated like any object.
    let (code, e) = h.patch(&d, "application/merge-patch+json", json!({"spec": {"replicas": -1}})).await;
    assert_eq!((code, &e["details"]["causes"][0]["field"]), (422, &json!("spec.replicas")));
    assert_eq!(h.patch(&d, "application/merge-patch+json", json!({"spec": {"replicas": "x"}})).await.0, 400);
}

#[tokio::test]
async fn a_node_status_patch_keeps_other_conditions() {
    let h = Host::new().await;
    h.create("/api/v1/nodes", node("n")).await;
    let p = |ty: &str, s: &str| json!({"status": {"conditions": [{"type": ty, "status": s}]}});
    for (ty, s) in [("Ready", "True"), ("NetworkUnavailable", "False"), ("Ready", "False")] {
        let (code, v) = h.patch("/api/v1/nodes/n/status", "application/strategic-merge-patch+json", p(ty, s)).await;
        assert_eq!(code, 200, "{v}");
    }
    let v = h.get("/api/v1/nodes/n").await;
    assert_eq!(
        v["status"]["conditions"],
        json!([{"type": "Ready", "status": "False"}, {"type": "NetworkUnavailable", "status": "False"}])
    );
    let (_, v) = h
        .patch(
            "/api/v1/nodes/n/status",
            "application/merge-patch+json",
            json!({"metadata": {"annotations": {"a": "b"}}}),
        )
        .await;
    assert_eq!(v["metadata"]["annotations"]["a"], "b", "nodes publish annotations beside their status");
}

#[tokio::test]
async fn server_side_apply_creates_owns_and_conflicts() {
    let h = Host::new().await;
    let p = |who: &str, extra: &str| format!("{CMS}/a?fieldManager={who}{extra}");
    let body = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let kind = "application/apply-patch+yaml";
    let (code, _) = h.patch(&p("one", ""), kind, body(json!({"x": "1", "y": "1"}))).await;
    assert_eq!(code, 201);
    let (code, v) = h.patch(&p("one", ""), kind, body(json!({"x": "1"}))).await;
    assert_eq!((code, &v["data"]), (200, &json!({"x": "1"})));
    let (code, e) = h.patch(&p("two", ""), kind, body(json!({"x": "2"}))).await;
    assert_eq!((code, &e["details"]["causes"][0]["reason"]), (409, &json!("FieldManagerConflict")));
    let (code, v) = h.patch(&p("two", "&force=true"), kind, body(json!({"x": "2"}))).await;
    assert_eq!((code, &v["data"]["x"]), (200, &json!("2")));
    let again = h.patch(&p("two", ""), kind, body(json!({"x": "2"}))).await.1;
    assert_eq!(rv(&again), rv(&v), "the same again is no change");
    assert_eq!(h.patch(&format!("{CMS}/a"), kind, body(json!({}))).await.0, 400, "an applier has a name");
}
