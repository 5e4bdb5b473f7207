//! What Services are given.

use serde_json::{Value, json};

use crate::harness::*;

fn ports() -> Value {
    json!([{"port": 80}])
}

async fn refused(h: &Host, svc: Value) -> (String, String) {
    let (code, e) = h.call("POST", SVCS, svc).await;
    assert_eq!((code, &e["reason"]), (422, &json!("Invalid")), "{e}");
    let c = &e["details"]["causes"][0];
    (c["field"].as_str().unwrap().to_owned(), c["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn cluster_ips_are_given_kept_and_freed() {
    let h = Host::with(|c| c.service_cidrs = vec!["10.9.0.0/28".parse().unwrap()]).await;
    // 14 usable addresses, the first is `kubernetes`.
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..13 {
        let s = h.create(SVCS, service(&format!("s{i}"), json!({"ports": ports()}))).await;
        assert_eq!(s["spec"]["clusterIPs"], json!([s["spec"]["clusterIP"]]));
        assert_eq!((&s["spec"]["ipFamilies"], &s["spec"]["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
        assert!(seen.insert(s["spec"]["clusterIP"].as_str().unwrap().to_owned()), "given twice");
    }
    let (_, why) = refused(&h, service("full", json!({"ports": ports()}))).await;
    assert!(why.contains("range is full"), "{why}");
    let ip = h.get(&format!("{SVCS}/s5")).await["spec"]["clusterIP"].clone();
    let (field, why) = refused(&h, service("twin", json!({"clusterIP": ip, "ports": ports()}))).await;
    assert_eq!(field, "spec.clusterIPs");
    assert!(why.contains("provided IP is already allocated"), "{why}");
    h.delete(&format!("{SVCS}/s5")).await;
    let s = h.create(SVCS, service("next", json!({"clusterIP": ip, "ports": ports()}))).await;
    assert_eq!(s["spec"]["clusterIP"], ip);
    let (_, why) = refused(&h, service("far", json!({"clusterIP": "10.10.0.1", "ports": ports()}))).await;
    assert!(why.contains("not in the valid range") && why.contains("10.9.0.0/28"), "{why}");
    // Addresses are known again after a restart.
    const RANGE: &str = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let first = h.get(RANGE).await;
    let h = Host::within(h.stop().await, |c| c.service_cidrs = vec!["10.9.0.0/28".parse().unwrap()]).await;
    let (_, why) = refused(&h, service("twin", json!({"clusterIP": ip, "ports": ports()}))).await;
    assert!(why.contains("already allocated"), "{why}");
    // The range can be looked at, and says what the server was told this time.
    assert_eq!((&first["spec"]["cidrs"], &h.get(RANGE).await), (&json!(["10.9.0.0/28"]), &first));
    assert_eq!(first["status"]["conditions"][0]["type"], "Ready");
    let patch = json!({"spec": {"cidrs": ["10.8.0.0/16"]}});
    assert_eq!(h.call("PUT", RANGE, patch).await.0, 405, "nobody else writes it");
    let h = Host::within(h.stop().await, |c| c.service_cidrs = vec!["10.9.0.0/24".parse().unwrap()]).await;
    assert_eq!(h.get(RANGE).await["spec"]["cidrs"], json!(["10.9.0.0/24"]));
}

#[tokio::test]
async fn many_services_at_once_never_share() {
    let h = Host::new().await;
    let all = (0..60).map(|i| {
        let h = &h;
        async move { h.create(SVCS, service(&format!("s{i}"), json!({"type": "NodePort", "ports": ports()}))).await }
    });
    let all = futures::future::join_all(all).await;
    let ips: std::collections::BTreeSet<_> = all.iter().map(|s| s["spec"]["clusterIP"].to_string()).collect();
    let node_ports: std::collections::BTreeSet<_> =
        all.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).collect();
    assert_eq!((ips.len(), node_ports.len()), (60, 60));
    assert!(node_ports.iter().all(|p| (30000..=32767).contains(p)));
}

#[tokio::test]
async fn families_follow_the_rules_of_dual_stack() {
    let h = Host::new().await;
    let mut n = 0;
    let mut make = |spec: Value| {
        n += 1;
        let mut s = spec;
        s["ports"] = ports();
        service(&format!("s{n}"), s)
    };
    for (spec, families, policy) in [
        (json!({}), json!(["IPv4"]), "SingleStack"),
        (json!({"ipFamilies": ["IPv6"]}), json!(["IPv6"]), "SingleStack"),
        (json!({"ipFamilyPolicy": "PreferDualStack"}), json!(["IPv4", "IPv6"]), "PreferDualStack"),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            json!(["IPv6", "IPv4"]),
            "RequireDualStack",
        ),
        (json!({"clusterIP": "fd00:10:96::77"}), json!(["IPv6"]), "SingleStack"),
        (
            json!({"clusterIPs": ["fd00:10:96::78", "10.96.0.78"], "clusterIP": "fd00:10:96::78", "ipFamilyPolicy": "RequireDualStack"}),
            json!(["IPv6", "IPv4"]),
            "RequireDualStack",
        ),
        (json!({"clusterIP": "None", "selector": {"a": "b"}}), json!(["IPv4"]), "SingleStack"),
        (json!({"clusterIP": "None"}), json!(["IPv4", "IPv6"]), "RequireDualStack"),
    ] {
        let s = h.create(SVCS, make(spec.clone())).await;
        assert_eq!((&s["spec"]["ipFamilies"], &s["spec"]["ipFamilyPolicy"]), (&families, &json!(policy)), "{spec}");
        let headless = s["spec"]["clusterIP"] == "None";
        let ips = s["spec"]["clusterIPs"].as_array().unwrap();
        assert_eq!(ips.len(), if headless { 1 } else { families.as_array().unwrap().len() });
        for (ip, f) in ips.iter().zip(families.as_array().unwrap()).filter(|_| !headless) {
            assert_eq!(ip.as_str().unwrap().contains(':'), f == "IPv6");
        }
    }
    for (spec, field) in [
        (json!({"ipFamilies": ["IPv4", "IPv6"]}), "spec.ipFamilyPolicy"),
        (json!({"ipFamilies": ["IPv4", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}), "spec.ipFamilies[1]"),
        (json!({"ipFamilies": ["IPX"]}), "spec.ipFamilies[0]"),
        (json!({"ipFamilyPolicy": "Both"}), "spec.ipFamilyPolicy"),
        (json!({"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.5"}), "spec.clusterIPs[0]"),
        (json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.6"]}), "spec.clusterIPs"),
        (json!({"clusterIP": "not-an-ip"}), "spec.clusterIPs[0]"),
        (json!({"clusterIP": "None", "type": "NodePort"}), "spec.clusterIPs[0]"),
    ] {
        assert_eq!(refused(&h, make(spec.clone())).await.0, field, "{spec}");
    }
    let h = Host::with(|c| c.service_cidrs.truncate(1)).await;
    let (field, why) = refused(&h, make(json!({"ipFamilyPolicy": "RequireDualStack"}))).await;
    assert_eq!(field, "spec.ipFamilyPolicy");
    assert!(why.contains("not configured for dual-stack"), "{why}");
    let s = h.create(SVCS, make(json!({"ipFamilyPolicy": "PreferDualStack"}))).await;
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
}

#[tokio::test]
async fn a_service_may_change_its_mind() {
    let h = Host::new().await;
    let s = format!("{SVCS}/s");
    let made = h
        .create(SVCS, service("s", json!({"ports": [{"port": 80, "name": "web"}, {"port": 53, "name": "dns", "protocol": "UDP"}, {"port": 53, "name": "dns-tcp"}]})))
        .await;
    let ip = made["spec"]["clusterIP"].clone();
    let merge = "application/merge-patch+json";
    let (code, np) = h.patch(&s, merge, json!({"spec": {"type": "NodePort"}})).await;
    assert_eq!(
        (code, &np["spec"]["clusterIP"], &np["spec"]["externalTrafficPolicy"]),
        (200, &ip, &json!("Cluster")),
        "{np}"
    );
    let port = |v: &Value, i: usize| v["spec"]["ports"][i]["nodePort"].clone();
    assert!(port(&np, 0).is_u64() && port(&np, 1) == port(&np, 2), "one port number, two protocols: one node port");
    // Written again as a client would that knows nothing of what was given.
    let mut bare = service("s", json!({"type": "NodePort", "ports": made["spec"]["ports"]}));
    bare["metadata"]["resourceVersion"] = np["metadata"]["resourceVersion"].clone();
    let kept = h.put(&s, &bare).await;
    assert_eq!((&kept["spec"]["clusterIP"], port(&kept, 0), port(&kept, 1)), (&ip, port(&np, 0), port(&np, 1)));
    let (_, why) =
        refused(&h, service("t", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port(&np, 0)}]}))).await;
    assert!(why.contains("provided port is already allocated"), "{why}");
    let (field, why) =
        refused(&h, service("t", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}))).await;
    assert_eq!(field, "spec.ports[0].nodePort");
    assert!(why.contains("30000-32767"), "{why}");

    let (code, v) =
        h.patch(&s, merge, json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}})).await;
    assert_eq!(code, 200, "{v}");
    assert!(v["spec"]["healthCheckNodePort"].is_u64() && v["spec"]["allocateLoadBalancerNodePorts"] == true);
    let (code, v) = h.patch(&s, merge, json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(
        (code, port(&v, 0), v["spec"].get("healthCheckNodePort"), v["spec"].get("externalTrafficPolicy")),
        (200, Value::Null, None, None),
        "{v}"
    );
    h.create(SVCS, service("t", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port(&np, 0)}]}))).await;

    let (code, e) = h.patch(&s, merge, json!({"spec": {"clusterIP": "10.96.9.9"}})).await;
    assert_eq!((code, &e["details"]["causes"][0]["field"]), (422, &json!("spec.clusterIPs[0]")));
    let (code, v) = h.patch(&s, merge, json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).await;
    assert_eq!(
        (code, v["spec"]["clusterIPs"].as_array().unwrap().len(), &v["spec"]["clusterIPs"][0]),
        (200, 2, &ip),
        "{v}"
    );
    let (code, v) = h.patch(&s, merge, json!({"spec": {"ipFamilyPolicy": "SingleStack"}})).await;
    assert_eq!(
        (code, &v["spec"]["clusterIPs"], &v["spec"]["ipFamilies"]),
        (200, &json!([ip]), &json!(["IPv4"])),
        "{v}"
    );
    let (code, v) = h.patch(&s, merge, json!({"spec": {"type": "ExternalName", "externalName": "example.com"}})).await;
    assert_eq!((code, v["spec"].get("clusterIP"), v["spec"].get("ipFamilies")), (200, None, None), "{v}");
    h.create(SVCS, service("u", json!({"clusterIP": ip, "ports": ports()}))).await;
    let (code, v) = h.patch(&s, merge, json!({"spec": {"type": "ClusterIP", "externalName": null}})).await;
    assert_eq!(code, 200, "{v}");
    assert!(v["spec"]["clusterIP"].is_string() && v["spec"]["clusterIP"] != ip);
}

#[tokio::test]
async fn defaults_are_the_apis() {
    let h = Host::new().await;
    let s = h.create(SVCS, service("s", json!({"ports": ports(), "sessionAffinity": "ClientIP"}))).await;
    let spec = &s["spec"];
    assert_eq!(spec["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
    assert_eq!((&spec["type"], &spec["internalTrafficPolicy"]), (&json!("ClusterIP"), &json!("Cluster")));
    assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
    let p = h.create(PODS, pod("p")).await;
    let spec = &p["spec"];
    for (k, want) in [
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("serviceAccountName", "default"),
    ] {
        assert_eq!(spec[k], want);
    }
    assert_eq!(
        (&spec["terminationGracePeriodSeconds"], &spec["containers"][0]["imagePullPolicy"]),
        (&json!(30), &json!("IfNotPresent"))
    );
    assert_eq!((&p["status"]["phase"], &p["status"]["qosClass"]), (&json!("Pending"), &json!("BestEffort")));
    let d = h.create(DEPLOYS, deployment("d")).await;
    assert_eq!(
        d["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    assert_eq!(d["spec"]["template"]["spec"]["restartPolicy"], "Always");
    let n = h
        .create(
            "/api/v1/nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}}),
        )
        .await;
    assert_eq!(n["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
    let s = h
        .create(
            "/api/v1/namespaces/default/secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}),
        )
        .await;
    assert_eq!((&s["type"], &s["data"]["a"], s.get("stringData")), (&json!("Opaque"), &json!("Yg=="), None));
}
