//! Create, get, list, update, delete.

use serde_json::{Value, json};

use crate::harness::*;

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let h = Host::new().await;
    let made = h.create(CMS, config_map("a")).await;
    let m = &made["metadata"];
    assert_eq!((&m["name"], &m["namespace"]), (&json!("a"), &json!("default")));
    assert_eq!(m["uid"].as_str().unwrap().len(), 36);
    assert!(m["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(h.get(&format!("{CMS}/a")).await, made);

    let (code, e) = h.call("POST", CMS, config_map("a")).await;
    assert_eq!((code, &e["reason"], &e["kind"]), (409, &json!("AlreadyExists"), &json!("Status")));
    assert_eq!(e["message"], "configmaps \"a\" already exists");

    let mut new = made.clone();
    new["data"]["k"] = "w".into();
    let changed = h.put(&format!("{CMS}/a"), &new).await;
    assert!(rv(&changed) > rv(&made));
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
    // The old revision is refused, and none at all is taken.
    let (code, e) = h.call("PUT", &format!("{CMS}/a"), new.clone()).await;
    assert_eq!((code, &e["reason"]), (409, &json!("Conflict")));
    assert!(e["message"].as_str().unwrap().contains("the object has been modified"), "{e}");
    new["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    // Nothing changes, so no revision is spent.
    assert_eq!(rv(&h.put(&format!("{CMS}/a"), &new).await), rv(&changed));

    let gone = h.delete(&format!("{CMS}/a")).await;
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
    let (code, e) = h.call("GET", &format!("{CMS}/a"), Value::Null).await;
    assert_eq!((code, &e["message"]), (404, &json!("configmaps \"a\" not found")));
    assert_eq!(e["details"], json!({"name": "a", "group": "", "kind": "configmaps"}));
}

#[tokio::test]
async fn what_a_client_may_not_set_is_not_set() {
    let h = Host::new().await;
    let mut d = deployment("a");
    d["status"] = json!({"readyReplicas": 7});
    d["metadata"]["uid"] = "mine".into();
    d["metadata"]["generation"] = 99.into();
    let made = h.create(DEPLOYS, d).await;
    assert_eq!(made["metadata"]["generation"], 1);
    assert_ne!(made["metadata"]["uid"], "mine");
    assert_eq!(made["status"].get("readyReplicas"), None);

    let mut d = made.clone();
    d["spec"]["replicas"] = 5.into();
    d["status"] = json!({"readyReplicas": 7});
    let d = h.put(&format!("{DEPLOYS}/a"), &d).await;
    assert_eq!((&d["metadata"]["generation"], d["status"].get("readyReplicas")), (&json!(2), None));

    let mut s = d.clone();
    s["spec"]["replicas"] = 9.into();
    s["status"] = json!({"readyReplicas": 7, "replicas": 7});
    let s = h.put(&format!("{DEPLOYS}/a/status"), &s).await;
    assert_eq!((&s["spec"]["replicas"], &s["status"]["readyReplicas"]), (&json!(5), &json!(7)));
    assert_eq!(s["metadata"]["generation"], 2, "a status is no new generation");
    let (code, s) = h
        .patch(
            &format!("{DEPLOYS}/a/status"),
            "application/merge-patch+json",
            json!({"spec": {"replicas": 1}, "status": {"readyReplicas": 8}}),
        )
        .await;
    assert_eq!((code, &s["spec"]["replicas"], &s["status"]["readyReplicas"]), (200, &json!(5), &json!(8)));
    // A wrong uid means another object.
    let mut other = s.clone();
    other["metadata"]["uid"] = "0".into();
    assert_eq!(h.call("PUT", &format!("{DEPLOYS}/a"), other).await.0, 409);
    let mut future = deployment("b");
    future["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(h.call("POST", DEPLOYS, future).await.0, 400);
}

#[tokio::test]
async fn generated_names_and_yaml_bodies() {
    let h = Host::new().await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let v =
            h.create(CMS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x-"}})).await;
        let name = v["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("x-") && name.len() == 7, "{name}");
        assert!(seen.insert(name));
    }
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: from-yaml\ndata:\n  a: \"1\"\n";
    let (code, v) = h.raw("POST", CMS, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!((code, &v["data"]["a"]), (201, &json!("1")), "{v}");
}

#[tokio::test]
async fn lists_select_and_page_consistently() {
    let h = Host::new().await;
    for i in 0..25 {
        let mut c = config_map(&format!("c{i:02}"));
        c["metadata"]["labels"] = json!({"even": (i % 2 == 0).to_string(), "app": "x"});
        h.create(CMS, c).await;
    }
    let all = h.get(CMS).await;
    assert_eq!((names(&all).len(), &all["kind"]), (25, &json!("ConfigMapList")));
    assert_eq!(names(&h.get(&format!("{CMS}?labelSelector=even%3Dtrue")).await).len(), 13);
    assert_eq!(names(&h.get(&format!("{CMS}?labelSelector=even+notin+(true),app")).await).len(), 12);
    assert_eq!(names(&h.get(&format!("{CMS}?fieldSelector=metadata.name%3Dc07")).await), ["c07"]);
    assert_eq!(names(&h.get("/api/v1/configmaps?fieldSelector=metadata.namespace%3Dkube-system").await).len(), 0);

    // Pages are of one revision, whatever happens between them.
    let first = h.get(&format!("{CMS}?limit=10")).await;
    assert_eq!((names(&first).len(), &first["metadata"]["remainingItemCount"]), (10, &json!(15)));
    h.delete(&format!("{CMS}/c12")).await;
    h.create(CMS, config_map("c11-new")).await;
    let (mut got, mut token) = (names(&first), first["metadata"]["continue"].as_str().unwrap().to_owned());
    loop {
        let page = h.get(&format!("{CMS}?limit=10&continue={token}")).await;
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        got.extend(names(&page));
        match page["metadata"]["continue"].as_str() {
            Some(t) => token = t.to_owned(),
            None => break,
        }
    }
    assert_eq!(got, names(&all));
    assert!(rv(&h.get(CMS).await) > rv(&all));
    assert_eq!(h.call("GET", &format!("{CMS}?limit=1&continue=rubbish"), Value::Null).await.0, 400);
    assert_eq!(h.call("GET", &format!("{CMS}?resourceVersion=99999"), Value::Null).await.0, 504);
}

#[tokio::test]
async fn an_old_page_token_is_gone() {
    let h = Host::with(|c| c.history = 4).await;
    for i in 0..6 {
        h.create(CMS, config_map(&format!("c{i}"))).await;
    }
    let token = h.get(&format!("{CMS}?limit=2")).await["metadata"]["continue"].as_str().unwrap().to_owned();
    for i in 6..16 {
        h.create(CMS, config_map(&format!("c{i}"))).await;
    }
    let (code, e) = h.call("GET", &format!("{CMS}?limit=2&continue={token}"), Value::Null).await;
    assert_eq!((code, &e["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn namespaces_hold_their_objects_and_take_them_along() {
    let h = Host::new().await;
    let ns = names(&h.get("/api/v1/namespaces").await);
    for want in ["default", "kube-system", "kube-public"] {
        assert!(ns.iter().any(|n| n == want), "{want} is missing");
    }
    let (code, e) = h.call("POST", "/api/v1/namespaces/none/configmaps", config_map("a")).await;
    assert_eq!((code, &e["message"]), (404, &json!("namespaces \"none\" not found")));
    let made = h
        .create("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "t"}}))
        .await;
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "t");
    assert_eq!(made["status"]["phase"], "Active");
    h.create("/api/v1/namespaces/t/configmaps", config_map("a")).await;
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = "n1".into();
    h.create("/api/v1/namespaces/t/pods", bound).await;
    h.create("/api/v1/namespaces/t/services", service("s", json!({"ports": [{"port": 1}]}))).await;

    h.delete("/api/v1/namespaces/t").await;
    // The pod may be running: the namespace waits for it, and takes nothing new.
    assert_eq!(h.get("/api/v1/namespaces/t").await["status"]["phase"], "Terminating");
    let (code, e) = h.call("POST", "/api/v1/namespaces/t/configmaps", config_map("b")).await;
    assert_eq!((code, &e["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    // What is in it goes a moment later, also when the server is started again in between.
    let h = Host::within(h.stop().await, |_| {}).await;
    let mut w = h.watch("/api/v1/namespaces/t/configmaps?watch=1").await;
    loop {
        if w.brief().await == ("DELETED".to_owned(), "a".to_owned()) {
            break;
        }
    }
    assert_eq!(h.get("/api/v1/namespaces/t/pods/p").await["metadata"]["deletionGracePeriodSeconds"], 30);
    h.delete("/api/v1/namespaces/t/pods/p?gracePeriodSeconds=0").await;
    assert_eq!(h.call("GET", "/api/v1/namespaces/t", Value::Null).await.0, 404);
    assert_eq!(h.call("DELETE", "/api/v1/namespaces/default", Value::Null).await.0, 403);
}

#[tokio::test]
async fn pods_end_gracefully_and_finalizers_are_waited_for() {
    let h = Host::new().await;
    h.create(PODS, pod("idle")).await;
    h.delete(&format!("{PODS}/idle")).await;
    assert_eq!(h.call("GET", &format!("{PODS}/idle"), Value::Null).await.0, 404, "a pod on no node goes at once");

    h.create(PODS, pod("p")).await;
    let bind = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    h.create(&format!("{PODS}/p/binding"), bind.clone()).await;
    let p = h.get(&format!("{PODS}/p")).await;
    assert_eq!(p["spec"]["nodeName"], "n1");
    assert_eq!(p["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(h.call("POST", &format!("{PODS}/p/binding"), bind).await.0, 409);
    let marked = h.delete(&format!("{PODS}/p")).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let again = h.delete(&format!("{PODS}/p")).await;
    assert_eq!(again["metadata"]["deletionTimestamp"], marked["metadata"]["deletionTimestamp"]);
    // The runner reports, then says it is gone.
    let mut s = again.clone();
    s["status"]["phase"] = "Succeeded".into();
    h.put(&format!("{PODS}/p/status"), &s).await;
    let (code, _) = h
        .call("DELETE", &format!("{PODS}/p"), json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}}))
        .await;
    assert_eq!(code, 409);
    let uid = p["metadata"]["uid"].clone();
    let (code, _) =
        h.call("DELETE", &format!("{PODS}/p"), json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})).await;
    assert_eq!(code, 200);
    assert_eq!(h.call("GET", &format!("{PODS}/p"), Value::Null).await.0, 404);

    let mut f = config_map("f");
    f["metadata"]["finalizers"] = json!(["example.com/hold"]);
    h.create(CMS, f).await;
    let held = h.delete(&format!("{CMS}/f")).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let (code, e) = h
        .patch(
            &format!("{CMS}/f"),
            "application/merge-patch+json",
            json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}}),
        )
        .await;
    assert_eq!(code, 422, "{e}");
    h.patch(&format!("{CMS}/f"), "application/merge-patch+json", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(h.call("GET", &format!("{CMS}/f"), Value::Null).await.0, 404);

    h.create(PODS, pod("e")).await;
    h.create(
        &format!("{PODS}/e/eviction"),
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "e"}}),
    )
    .await;
    assert_eq!(h.call("GET", &format!("{PODS}/e"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector_and_owners_can_be_forgotten() {
    let h = Host::new().await;
    for (n, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut c = config_map(n);
        c["metadata"]["labels"] = json!({"app": app});
        h.create(CMS, c).await;
    }
    let (code, gone) = h.call("DELETE", &format!("{CMS}?labelSelector=app%3Dx"), Value::Null).await;
    assert_eq!((code, names(&gone)), (200, vec!["a".into(), "b".into()]));
    assert_eq!(names(&h.get(CMS).await), ["c"]);

    let owner = h.create(CMS, config_map("owner")).await;
    let mut child = config_map("child");
    child["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}]);
    h.create(CMS, child).await;
    h.delete(&format!("{CMS}/owner?propagationPolicy=Orphan")).await;
    assert_eq!(h.get(&format!("{CMS}/child")).await["metadata"]["ownerReferences"], json!([]));
}

#[tokio::test]
async fn an_owner_waits_in_the_foreground_for_what_belongs_to_it() {
    let h = Host::new().await;
    let owner = h.create(CMS, config_map("owner")).await;
    let refs = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}]);
    let mut quick = config_map("quick");
    quick["metadata"]["ownerReferences"] = refs.clone();
    h.create(CMS, quick).await;
    // Somebody must end this one first.
    let mut slow = pod("slow");
    slow["metadata"]["ownerReferences"] = refs;
    slow["spec"]["nodeName"] = "n".into();
    h.create(PODS, slow).await;
    // A rehearsal of its eviction is none.
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "slow"},
        "deleteOptions": {"dryRun": ["All"]}});
    h.create(&format!("{PODS}/slow/eviction"), eviction).await;
    assert_eq!(h.get(&format!("{PODS}/slow")).await["metadata"]["deletionTimestamp"], Value::Null);

    h.delete(&format!("{CMS}/owner?propagationPolicy=Foreground")).await;
    let waiting = h.get(&format!("{CMS}/owner")).await;
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(h.call("GET", &format!("{CMS}/quick"), Value::Null).await.0, 404);
    assert!(h.get(&format!("{PODS}/slow")).await["metadata"]["deletionTimestamp"].is_string());
    h.delete(&format!("{PODS}/slow?gracePeriodSeconds=0")).await;
    assert_eq!(h.call("GET", &format!("{CMS}/owner"), Value::Null).await.0, 404);

    // Nothing belongs to it: it goes at once.
    h.create(CMS, config_map("alone")).await;
    h.delete(&format!("{CMS}/alone?propagationPolicy=Foreground")).await;
    assert_eq!(h.call("GET", &format!("{CMS}/alone"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn without_kubelets_logs_are_refused_and_the_flag_is_named() {
    let h = Host::new().await;
    let mut p = pod("p");
    p["spec"]["nodeName"] = "n".into();
    h.create(PODS, p).await;
    let (code, why) = h.call("GET", &format!("{PODS}/p/log"), Value::Null).await;
    assert_eq!(code, 503);
    assert!(why["message"].as_str().unwrap().contains("--kubelet-socket"), "{why}");
    assert_eq!(h.call("GET", &format!("{PODS}/none/log"), Value::Null).await.0, 404);
    assert_eq!(h.call("POST", &format!("{PODS}/p/log"), Value::Null).await.0, 405);
    h.create(PODS, pod("nowhere")).await;
    let (code, why) = h.call("GET", &format!("{PODS}/nowhere/log"), Value::Null).await;
    assert_eq!((code, why["message"].as_str()), (400, Some("pod nowhere does not have a host assigned")));
    let (code, _) = h.call("GET", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", Value::Null).await;
    assert_eq!(code, 405);
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let h = Host::new().await;
    let before = rv(&h.get(CMS).await);
    h.create(&format!("{CMS}?dryRun=All"), config_map("a")).await;
    assert_eq!(h.call("GET", &format!("{CMS}/a"), Value::Null).await.0, 404);
    let (code, s) = h
        .call(
            "POST",
            &format!("{SVCS}?dryRun=All"),
            service("s", json!({"clusterIP": "10.96.0.77", "ports": [{"port": 1}]})),
        )
        .await;
    assert_eq!((code, &s["spec"]["clusterIP"]), (201, &json!("10.96.0.77")));
    h.create(CMS, config_map("b")).await;
    h.delete(&format!("{CMS}/b?dryRun=All")).await;
    h.get(&format!("{CMS}/b")).await;
    assert_eq!(rv(&h.get(CMS).await), before + 1);
    // The address was not kept.
    h.create(SVCS, service("t", json!({"clusterIP": "10.96.0.77", "ports": [{"port": 1}]}))).await;
    assert_eq!(h.call("POST", &format!("{CMS}?dryRun=Some"), config_map("x")).await.0, 400);
}

#[tokio::test]
async fn the_first_objects_are_there() {
    let h =
        Host::with(|c| c.advertise = vec!["192.0.2.1:6443".parse().unwrap(), "[2001:db8::1]:6443".parse().unwrap()])
            .await;
    let s = h.get(&format!("{SVCS}/kubernetes")).await;
    assert_eq!((&s["spec"]["clusterIP"], &s["spec"]["ports"][0]["port"]), (&json!("10.96.0.1"), &json!(443)));
    assert_eq!(s["spec"]["ports"][0]["targetPort"], 6443);
    let v4 = h.get(&format!("{SLICES}/kubernetes")).await;
    assert_eq!(v4["endpoints"][0]["addresses"], json!(["192.0.2.1"]));
    assert_eq!(v4["metadata"]["labels"]["kubernetes.io/service-name"], "kubernetes");
    assert_eq!(names(&h.get(SLICES).await).len(), 2);
    // Advertised no longer, the slices go; a restart changes nothing else.
    let h = Host::within(h.stop().await, |_| {}).await;
    assert_eq!(names(&h.get(SLICES).await).len(), 0);
    assert_eq!(h.get(&format!("{SVCS}/kubernetes")).await["metadata"]["uid"], s["metadata"]["uid"]);
}

#[tokio::test]
async fn events_have_two_views() {
    let h = Host::new().await;
    let e = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "Started", "note": "hello", "type": "Normal",
        "reportingController": "x/y", "reportingInstance": "i", "action": "Start"});
    h.create("/apis/events.k8s.io/v1/namespaces/default/events", e).await;
    let old = h.get("/api/v1/namespaces/default/events/e").await;
    assert_eq!(
        (&old["message"], &old["involvedObject"]["name"], &old["apiVersion"]),
        (&json!("hello"), &json!("p"), &json!("v1"))
    );
    let new = h.get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp").await;
    assert_eq!(
        (&new["items"][0]["note"], &new["items"][0]["apiVersion"]),
        (&json!("hello"), &json!("events.k8s.io/v1"))
    );
    let by =
        h.get("/api/v1/events?fieldSelector=involvedObject.name%3Dp,involvedObject.kind%3DPod,reason%3DStarted").await;
    assert_eq!(names(&by), ["e"]);
}

#[tokio::test]
async fn scale_is_a_part_of_a_deployment() {
    let h = Host::new().await;
    h.create(DEPLOYS, deployment("a")).await;
    let s = h.get(&format!("{DEPLOYS}/a/scale")).await;
    assert_eq!(
        (&s["kind"], &s["spec"]["replicas"], &s["status"]["selector"]),
        (&json!("Scale"), &json!(2), &json!("app=a"))
    );
    let mut s2 = s.clone();
    s2["spec"]["replicas"] = 4.into();
    h.put(&format!("{DEPLOYS}/a/scale"), &s2).await;
    assert_eq!(h.get(&format!("{DEPLOYS}/a")).await["spec"]["replicas"], 4);
    assert_eq!(h.call("PUT", &format!("{DEPLOYS}/a/scale"), s2).await.0, 409, "the revision is old");
    let (code, _) =
        h.patch(&format!("{DEPLOYS}/a/scale"), "application/merge-patch+json", json!({"spec": {"replicas": -1}})).await;
    assert_eq!(code, 422);
}

/// An Event goes some time after it was seen last, not after it was made.
#[tokio::test]
async fn events_are_kept_for_a_while() {
    let h = Host::with(|c| c.event_ttl = std::time::Duration::from_secs(1)).await;
    let events = "/api/v1/namespaces/default/events";
    let event = |name: &str, last: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "reason": "R", "lastTimestamp": last,
            "involvedObject": {"kind": "ConfigMap", "namespace": "default", "name": "x"}})
    };
    h.create(events, event("seen", "2999-01-01T00:00:00Z")).await;
    h.create(events, event("old", "2020-01-01T00:00:00Z")).await;
    let end = std::time::Instant::now() + PATIENCE;
    while names(&h.get(events).await) != ["seen"] {
        assert!(std::time::Instant::now() < end, "the old event stays");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
