//! Watching.

use std::time::Duration;

use serde_json::json;

use crate::harness::*;

fn b(ty: &str, name: &str) -> (String, String) {
    (ty.into(), name.into())
}

#[tokio::test]
async fn a_watch_goes_on_from_a_list() {
    let h = Host::new().await;
    h.create(CMS, config_map("a")).await;
    let list = h.get(CMS).await;
    let v = h.create(CMS, config_map("b")).await;
    let mut w = h.watch(&format!("{CMS}?watch=true&resourceVersion={}", rv(&list))).await;
    assert_eq!(w.brief().await, b("ADDED", "b"), "what happened in between is told");
    let mut v2 = v.clone();
    v2["data"] = json!({"k": "w"});
    let v2 = h.put(&format!("{CMS}/b"), &v2).await;
    let e = w.next().await.unwrap();
    assert_eq!((&e["type"], &e["object"]), (&json!("MODIFIED"), &v2));
    h.delete(&format!("{CMS}/b")).await;
    let e = w.next().await.unwrap();
    assert_eq!(e["type"], "DELETED");
    assert!(rv(&e["object"]) > rv(&v2), "a deletion has a revision of its own");
    h.create("/api/v1/namespaces/kube-system/configmaps", config_map("elsewhere")).await;
    h.create(PODS, pod("p")).await;
    assert!(w.silent().await);
    // Without a revision the present comes first.
    let mut w = h.watch(&format!("{CMS}?watch=1")).await;
    assert_eq!(w.brief().await, b("ADDED", "a"));
    let mut w = h.watch("/api/v1/configmaps?watch=1&resourceVersion=0").await;
    assert_eq!((w.brief().await, w.brief().await), (b("ADDED", "a"), b("ADDED", "elsewhere")));
}

#[tokio::test]
async fn objects_come_into_and_leave_a_selection() {
    let h = Host::new().await;
    let mut w = h.watch(&format!("{CMS}?watch=1&labelSelector=on%3D1")).await;
    let patch = |l: &str| json!({"metadata": {"labels": {"on": l}}});
    h.create(CMS, config_map("a")).await;
    h.call("PATCH", &format!("{CMS}/a"), patch("1")).await;
    assert_eq!(w.brief().await, b("ADDED", "a"));
    h.call("PATCH", &format!("{CMS}/a"), json!({"data": {"x": "y"}})).await;
    assert_eq!(w.brief().await, b("MODIFIED", "a"));
    let (_, off) = h.call("PATCH", &format!("{CMS}/a"), patch("0")).await;
    let e = w.next().await.unwrap();
    assert_eq!((&e["type"], rv(&e["object"])), (&json!("DELETED"), rv(&off)));
    assert_eq!(e["object"]["metadata"]["labels"]["on"], "1", "the last state that was selected");
    h.delete(&format!("{CMS}/a")).await;
    assert!(w.silent().await);

    let mut w = h.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    h.create(PODS, pod("p")).await;
    h.create(&format!("{PODS}/p/binding"), json!({"target": {"kind": "Node", "name": "n1"}})).await;
    assert_eq!(w.brief().await, b("ADDED", "p"));
}

#[tokio::test]
async fn bookmarks_and_timeouts() {
    let h = Host::with(|c| c.bookmark_interval = Duration::from_millis(100)).await;
    let mut w = h.watch(&format!("{CMS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=1")).await;
    h.create(PODS, pod("p")).await;
    let now = rv(&h.get(CMS).await);
    let mut last = 0;
    while let Some(e) = w.next().await {
        assert_eq!(
            (&e["type"], &e["object"]["kind"], &e["object"]["apiVersion"]),
            (&json!("BOOKMARK"), &json!("ConfigMap"), &json!("v1"))
        );
        last = rv(&e["object"]);
    }
    assert_eq!(last, now, "bookmarks carry the revision of the whole store; then the time was up");
    let mut w = h.watch(&format!("{CMS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(w.next().await, None, "no bookmarks unless asked for");
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark() {
    let h = Host::new().await;
    h.create(CMS, config_map("a")).await;
    let q = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut w = h.watch(&format!("{CMS}?{q}")).await;
    assert_eq!(w.brief().await, b("ADDED", "a"));
    let e = w.next().await.unwrap();
    assert_eq!(e["type"], "BOOKMARK");
    assert_eq!(e["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    h.create(CMS, config_map("b")).await;
    assert_eq!(w.brief().await, b("ADDED", "b"));
    assert_eq!(h.call("GET", &format!("{CMS}?watch=1&sendInitialEvents=true"), serde_json::Value::Null).await.0, 400);
}

#[tokio::test]
async fn a_revision_that_is_forgotten_or_unknown_is_gone() {
    let h = Host::with(|c| c.history = 4).await;
    let first = h.create(CMS, config_map("a")).await;
    let churn = |from: u32| {
        let h = &h;
        async move {
            for i in from..from + 10 {
                h.call("PATCH", &format!("{CMS}/a"), json!({"data": {"k": i.to_string()}})).await;
            }
        }
    };
    let mut slow = h.watch(&format!("{CMS}?watch=1&resourceVersion={}", rv(&first))).await;
    churn(0).await;
    for path in
        [format!("{CMS}?watch=1&resourceVersion={}", rv(&first)), format!("{CMS}?watch=1&resourceVersion=99999")]
    {
        let mut w = h.watch(&path).await;
        let e = w.next().await.unwrap();
        assert_eq!(
            (&e["type"], &e["object"]["code"], &e["object"]["reason"]),
            (&json!("ERROR"), &json!(410), &json!("Expired"))
        );
        assert_eq!(w.next().await, None);
    }
    // Other kinds have a history of their own.
    let mut w = h.watch(&format!("{PODS}?watch=1&resourceVersion={}", rv(&first))).await;
    h.create(PODS, pod("p")).await;
    assert_eq!(w.brief().await, b("ADDED", "p"));
    // This one was there all along.
    assert_eq!(slow.brief().await, b("MODIFIED", "a"));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off() {
    let h = Host::with(|c| c.history = 8).await;
    let big = "x".repeat(200_000);
    h.create(CMS, config_map("a")).await;
    let mut w = h.watch(&format!("{CMS}?watch=1")).await;
    for i in 0..100 {
        let (code, _) = h.call("PATCH", &format!("{CMS}/a"), json!({"data": {"k": format!("{i}{big}")}})).await;
        assert_eq!(code, 200);
    }
    let mut seen = 0;
    loop {
        let e = w.next().await.expect("the watch ended without saying why");
        if e["type"] == "ERROR" {
            assert_eq!(e["object"]["code"], 410);
            break;
        }
        seen += 1;
    }
    assert!(seen < 100, "all {seen} events were kept for it");
    assert_eq!(w.next().await, None);
}

#[tokio::test]
async fn many_watchers_see_the_same_order() {
    let h = Host::new().await;
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(h.watch(&format!("{CMS}?watch=1")).await);
    }
    let writes = (0..10).map(|i| {
        let h = &h;
        async move { rv(&h.create(CMS, config_map(&format!("c{i}"))).await) }
    });
    let mut revs = futures::future::join_all(writes).await;
    revs.sort_unstable();
    for w in &mut all {
        let mut got = Vec::new();
        for _ in 0..10 {
            got.push(rv(&w.next().await.unwrap()["object"]));
        }
        assert_eq!(got, revs);
    }
}

#[tokio::test]
async fn metadata_and_tables_can_be_watched_and_listed() {
    let h = Host::new().await;
    let meta = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    h.create(CMS, config_map("a")).await;
    let (_, l) =
        h.raw("GET", CMS, &[("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")], "").await;
    assert_eq!(
        (&l["kind"], &l["items"][0]["kind"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"))
    );
    assert_eq!((l["items"][0].get("data"), names(&l)), (None, vec!["a".into()]));
    let mut w = h.watch_as(&format!("{CMS}?watch=1"), meta).await;
    let e = w.next().await.unwrap();
    assert_eq!((&e["object"]["kind"], e["object"].get("data")), (&json!("PartialObjectMetadata"), None));
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let mut w = h.watch_as(&format!("{CMS}?watch=1"), table).await;
    let e = w.next().await.unwrap();
    assert_eq!(e["object"]["columnDefinitions"][1]["name"], "Data");
    assert_eq!(e["object"]["rows"][0]["cells"][0], "a");
    let (_, t) = h.raw("GET", &format!("{CMS}?includeObject=None"), &[("accept", table)], "").await;
    assert_eq!((&t["kind"], t["rows"][0].get("object"), rv(&t) > 0), (&json!("Table"), None, true));
}

#[tokio::test]
async fn a_watch_can_go_on_over_a_restart() {
    let h = Host::new().await;
    h.create(CMS, config_map("a")).await;
    let seen = rv(&h.create(CMS, config_map("b")).await);
    h.create(PODS, pod("p")).await;
    let old = rv(&h.get(CMS).await);
    let h = Host::within(h.stop().await, |_| {}).await;
    assert!(rv(&h.get(CMS).await) >= old);
    // Nothing of this kind has happened since.
    let mut w = h.watch(&format!("{CMS}?watch=1&resourceVersion={seen}")).await;
    h.delete(&format!("{CMS}/a")).await;
    assert_eq!(w.brief().await, b("DELETED", "a"));
    let mut w = h.watch(&format!("{CMS}?watch=1&resourceVersion={}", seen - 1)).await;
    assert_eq!(w.next().await.unwrap()["object"]["code"], 410);
}
