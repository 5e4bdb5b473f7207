//! Wrong objects and wrong requests: each gets the API's own kind of error.

use serde_json::{Value, json};

use crate::harness::*;

fn with(mut v: Value, pointer: &str, x: Value) -> Value {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    v.pointer_mut(parent).unwrap()[last] = x;
    v
}

fn slice(ty: &str, addr: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"}, "addressType": ty,
        "endpoints": [{"addresses": [addr]}], "ports": [{"port": 80}]})
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": spec})
}

const NODES: &str = "/api/v1/nodes";
const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";

#[tokio::test]
async fn invalid_objects_name_their_field() {
    let h = Host::new().await;
    let svc = || service("s", json!({"ports": [{"port": 80}]}));
    let cidrs = |c: Value| with(node("n"), "/spec", json!({"podCIDRs": c}));
    let ing = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {}});
    let cases: Vec<(&str, Value, &str, &str)> = vec![
        (SVCS, service("S_", json!({"ports": [{"port": 80}]})), "metadata.name", "DNS-1035"),
        (SVCS, service("0a", json!({"ports": [{"port": 80}]})), "metadata.name", "DNS-1035"),
        (CMS, config_map("A"), "metadata.name", "RFC 1123"),
        (CMS, with(config_map("a"), "/metadata/labels", json!({"bad key": "x"})), "metadata.labels", "name part must"),
        (CMS, with(config_map("a"), "/metadata/labels", json!({"k": "bad value"})), "metadata.labels", "a valid label"),
        (CMS, with(config_map("a"), "/data", json!({"a/b": "x"})), "data[a/b]", "valid config key"),
        (SVCS, with(svc(), "/spec/type", json!("Bogus")), "spec.type", "supported values: \"ClusterIP\""),
        (SVCS, with(svc(), "/spec/ports", json!([])), "spec.ports", "Required value"),
        (SVCS, with(svc(), "/spec/ports", json!([{"port": 70000}])), "spec.ports[0].port", "between 1 and 65535"),
        (SVCS, with(svc(), "/spec/ports", json!([{"port": 0}])), "spec.ports[0].port", "between 1 and 65535"),
        (
            SVCS,
            with(svc(), "/spec/ports", json!([{"port": 1, "protocol": "ICMP"}])),
            "spec.ports[0].protocol",
            "\"TCP\"",
        ),
        (
            SVCS,
            with(svc(), "/spec/ports", json!([{"port": 1, "name": "a"}, {"port": 2}])),
            "spec.ports[1].name",
            "Required",
        ),
        (
            SVCS,
            with(svc(), "/spec/ports", json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b"}])),
            "spec.ports[1]",
            "Duplicate",
        ),
        (
            SVCS,
            with(svc(), "/spec/ports", json!([{"port": 1, "targetPort": "Not A Port"}])),
            "spec.ports[0].targetPort",
            "must contain",
        ),
        (
            SVCS,
            with(svc(), "/spec/ports", json!([{"port": 1, "nodePort": 30000}])),
            "spec.ports[0].nodePort",
            "may not be used",
        ),
        (SVCS, with(svc(), "/spec/externalIPs", json!(["127.0.0.1"])), "spec.externalIPs[0]", "loopback"),
        (SVCS, with(svc(), "/spec/sessionAffinity", json!("Maybe")), "spec.sessionAffinity", "supported"),
        (
            SVCS,
            with(svc(), "/spec/loadBalancerSourceRanges", json!(["10.0.0.0/8"])),
            "spec.loadBalancerSourceRanges",
            "LoadBalancer",
        ),
        (SVCS, service("s", json!({"type": "ExternalName"})), "spec.externalName", "Required"),
        (SVCS, with(svc(), "/spec/selector", json!({"a b": "c"})), "spec.selector", "name part"),
        (NODES, cidrs(json!(["10.0.0.0/33"])), "spec.podCIDRs[0]", "must be a valid CIDR"),
        (NODES, cidrs(json!(["10.0.0.1/24"])), "spec.podCIDRs[0]", "host bits"),
        (NODES, cidrs(json!(["10.0.0.0/24", "10.1.0.0/24"])), "spec.podCIDRs", "one CIDR for each IP family"),
        (
            NODES,
            cidrs(json!(["10.0.0.0/24", "fd00::/64", "fd01::/64"])),
            "spec.podCIDRs",
            "one CIDR for each IP family",
        ),
        (SLICES, slice("IPv4", "127.0.0.1"), "endpoints[0].addresses[0]", "loopback"),
        (SLICES, slice("IPv4", "169.254.1.1"), "endpoints[0].addresses[0]", "link-local"),
        (SLICES, slice("IPv4", "224.0.0.5"), "endpoints[0].addresses[0]", "multicast"),
        (SLICES, slice("IPv6", "fe80::1"), "endpoints[0].addresses[0]", "link-local"),
        (SLICES, slice("IPv6", "::1"), "endpoints[0].addresses[0]", "loopback"),
        (SLICES, slice("IPv6", "10.0.0.1"), "endpoints[0].addresses[0]", "must be an IPv6 address"),
        (SLICES, slice("IPv5", "10.0.0.1"), "addressType", "supported values"),
        (
            SLICES,
            with(slice("IPv4", "10.0.0.1"), "/endpoints", json!([{"addresses": []}])),
            "endpoints[0].addresses",
            "at least 1",
        ),
        (
            SLICES,
            with(slice("IPv4", "10.0.0.1"), "/ports", json!([{"port": 1}, {"port": 2}])),
            "ports[1].name",
            "Duplicate",
        ),
        (PODS, with(pod("p"), "/spec/containers", json!([])), "spec.containers", "Required"),
        (PODS, with(pod("p"), "/spec/containers/0/image", json!("")), "spec.containers[0].image", "Required"),
        (PODS, with(pod("p"), "/spec/restartPolicy", json!("Sometimes")), "spec.restartPolicy", "supported"),
        (
            PODS,
            with(pod("p"), "/spec/containers/0/ports", json!([{"containerPort": 0}])),
            "spec.containers[0].ports[0].containerPort",
            "65535",
        ),
        (
            PODS,
            with(pod("p"), "/spec/containers/0/volumeMounts", json!([{"name": "v", "mountPath": "/x"}])),
            "spec.containers[0].volumeMounts[0].name",
            "Not found",
        ),
        (
            PODS,
            with(pod("p"), "/spec/containers/0/readinessProbe", json!({"periodSeconds": 1})),
            "spec.containers[0].readinessProbe",
            "handler",
        ),
        (DEPLOYS, with(deployment("d"), "/spec/selector", json!({})), "spec.selector", "empty selector"),
        (
            DEPLOYS,
            with(deployment("d"), "/spec/template/metadata/labels", json!({"app": "other"})),
            "spec.template.metadata.labels",
            "does not match",
        ),
        (DEPLOYS, with(deployment("d"), "/spec/strategy", json!({"type": "Wild"})), "spec.strategy.type", "supported"),
        (
            DEPLOYS,
            with(deployment("d"), "/spec/strategy", json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})),
            "spec.strategy.rollingUpdate.maxUnavailable",
            "may not be 0",
        ),
        (
            POLICIES,
            policy(
                json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}]}),
            ),
            "spec.ingress[0].from[0].ipBlock.except[0]",
            "strict subset",
        ),
        (
            POLICIES,
            policy(json!({"podSelector": {}, "egress": [{"ports": [{"port": 5, "endPort": 4}]}]})),
            "spec.egress[0].ports[0].endPort",
            "greater",
        ),
        (
            POLICIES,
            policy(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}})),
            "spec.podSelector.matchExpressions[0].operator",
            "not a valid",
        ),
        (INGRESSES, ing.clone(), "spec", "either"),
        (
            INGRESSES,
            with(
                ing,
                "/spec/rules",
                json!([{"host": "*bad", "http": {"paths": [{"path": "/", "pathType": "Exact", "backend": {"service": {"name": "s", "port": {"number": 1}}}}]}}]),
            ),
            "spec.rules[0].host",
            "RFC 1123",
        ),
    ];
    for (path, body, field, says) in cases {
        let (code, e) = h.call("POST", path, body.clone()).await;
        assert_eq!(
            (code, &e["reason"], &e["kind"], &e["status"]),
            (422, &json!("Invalid"), &json!("Status"), &json!("Failure")),
            "{body}\n{e}"
        );
        let causes = e["details"]["causes"].as_array().unwrap();
        let hit = causes.iter().find(|c| c["field"] == field);
        let message = hit.unwrap_or_else(|| panic!("no cause at {field}: {e}"))["message"].as_str().unwrap();
        assert!(message.contains(says), "{field}: {message:?} does not say {says:?}");
        assert!(e["message"].as_str().unwrap().contains(field), "{e}");
    }
}

#[tokio::test]
async fn what_was_set_once_stays() {
    let h = Host::new().await;
    let merge = "application/merge-patch+json";
    h.create(NODES, node("n")).await;
    let (code, v) =
        h.patch("/api/v1/nodes/n", merge, json!({"spec": {"podCIDRs": ["10.1.0.0/24", "fd00::/64"]}})).await;
    assert_eq!((code, &v["spec"]["podCIDR"]), (200, &json!("10.1.0.0/24")));
    let (code, e) = h
        .patch("/api/v1/nodes/n", merge, json!({"spec": {"podCIDR": "10.2.0.0/24", "podCIDRs": ["10.2.0.0/24"]}}))
        .await;
    assert_eq!((code, &e["details"]["causes"][0]["field"]), (422, &json!("spec.podCIDRs")));
    h.create(DEPLOYS, deployment("d")).await;
    let (code, e) = h
        .patch(&format!("{DEPLOYS}/d"), merge, json!({"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}}}}}))
        .await;
    assert_eq!((code, &e["details"]["causes"][0]["field"]), (422, &json!("spec.selector")));
    h.create(SLICES, slice("IPv4", "10.0.0.1")).await;
    let (code, e) = h
        .patch(&format!("{SLICES}/s"), merge, json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}))
        .await;
    assert_eq!((code, &e["details"]["causes"][0]["field"]), (422, &json!("addressType")));
    h.create(PODS, pod("p")).await;
    let (code, e) = h.patch(&format!("{PODS}/p"), merge, json!({"spec": {"hostNetwork": true}})).await;
    assert_eq!((code, &e["details"]["causes"][0]["reason"]), (422, &json!("FieldValueForbidden")));
    let mut c = config_map("c");
    c["immutable"] = true.into();
    h.create(CMS, c).await;
    assert_eq!(h.patch(&format!("{CMS}/c"), merge, json!({"data": {"k": "w"}})).await.0, 422);
}

#[tokio::test]
async fn unknown_fields_are_warned_of_or_refused() {
    let h = Host::new().await;
    let mut s = service("s", json!({"ports": [{"port": 80, "prto": "TCP"}], "selectr": {}}));
    s["extra"] = 1.into();
    let (code, e) = h.call("POST", &format!("{SVCS}?fieldValidation=Strict"), s.clone()).await;
    assert_eq!((code, &e["reason"]), (400, &json!("BadRequest")));
    for f in ["\"extra\"", "\"spec.selectr\"", "\"spec.ports[0].prto\""] {
        assert!(e["message"].as_str().unwrap().contains(&format!("unknown field {f}")), "{e}");
    }
    let r = h.send("POST", SVCS, &[("content-type", "application/json")], s.to_string()).await;
    assert_eq!(r.status(), 201);
    let warnings: Vec<&str> = r.headers().get_all("warning").iter().map(|w| w.to_str().unwrap()).collect();
    assert_eq!(warnings.len(), 3);
    assert!(warnings[0].starts_with("299 - \"unknown field"), "{warnings:?}");
    let v = h.get(&format!("{SVCS}/s")).await;
    assert_eq!(
        (v.get("extra"), v["spec"].get("selectr"), v["spec"]["ports"][0].get("prto")),
        (None, None, None),
        "they are not kept"
    );
    h.create(&format!("{SVCS}?fieldValidation=Ignore"), with(s.clone(), "/metadata/name", json!("t"))).await;
    assert_eq!(h.call("POST", &format!("{SVCS}?fieldValidation=Hm"), s).await.0, 400);
    let (code, e) = h
        .patch(
            &format!("{SVCS}/s?fieldValidation=Strict"),
            "application/merge-patch+json",
            json!({"spec": {"typ": "NodePort"}}),
        )
        .await;
    assert_eq!(code, 400, "{e}");
}

#[tokio::test]
async fn wrong_requests() {
    let h = Host::new().await;
    let ct = |s: &'static str| [("content-type", s)];
    type Case = (&'static str, String, Vec<(&'static str, &'static str)>, String, u16, &'static str);
    let cases: Vec<Case> = vec![
        ("POST", CMS.into(), ct("application/json").into(), "{".into(), 400, "BadRequest"),
        ("POST", CMS.into(), ct("application/json").into(), "[]".into(), 400, "BadRequest"),
        ("POST", CMS.into(), ct("application/json").into(), "{\"kind\":\"ConfigMap\"}".into(), 400, "BadRequest"),
        ("POST", CMS.into(), ct("application/json").into(), pod("p").to_string(), 400, "BadRequest"),
        ("POST", CMS.into(), ct("application/yaml").into(), ":\n - a: [".into(), 400, "BadRequest"),
        ("POST", CMS.into(), ct("application/vnd.kubernetes.protobuf").into(), "k8s\0\u{7f}".into(), 400, "BadRequest"),
        ("POST", CMS.into(), ct("text/plain").into(), "hello".into(), 415, "UnsupportedMediaType"),
        (
            "GET",
            CMS.into(),
            vec![("accept", "application/vnd.kubernetes.protobuf")],
            String::new(),
            406,
            "NotAcceptable",
        ),
        (
            "POST",
            "/api/v1/configmaps".into(),
            ct("application/json").into(),
            config_map("a").to_string(),
            405,
            "MethodNotAllowed",
        ),
        ("PUT", CMS.into(), ct("application/json").into(), config_map("a").to_string(), 405, "MethodNotAllowed"),
        ("PUT", format!("{CMS}/a"), ct("application/json").into(), config_map("a").to_string(), 404, "NotFound"),
        ("PUT", format!("{CMS}/a"), ct("application/json").into(), config_map("b").to_string(), 404, "NotFound"),
        ("DELETE", format!("{CMS}/a"), vec![], String::new(), 404, "NotFound"),
        ("GET", "/api/v1/namespaces/default/nothings".into(), vec![], String::new(), 404, "NotFound"),
        ("GET", "/apis/apps/v9/deployments".into(), vec![], String::new(), 404, "NotFound"),
        ("GET", "/apis/none/v1".into(), vec![], String::new(), 404, "NotFound"),
        ("GET", "/nothing/here".into(), vec![], String::new(), 404, "NotFound"),
        ("GET", format!("{PODS}/p/nonsense"), vec![], String::new(), 404, "NotFound"),
        ("GET", format!("{CMS}?labelSelector=a+b+c"), vec![], String::new(), 400, "BadRequest"),
        ("GET", format!("{CMS}?fieldSelector=data.x%3D1"), vec![], String::new(), 400, "BadRequest"),
        ("GET", format!("{CMS}?limit=x"), vec![], String::new(), 400, "BadRequest"),
        ("GET", format!("{CMS}?watch=1&resourceVersion=x"), vec![], String::new(), 400, "BadRequest"),
        (
            "POST",
            format!("{CMS}?dryRun=No"),
            ct("application/json").into(),
            config_map("a").to_string(),
            400,
            "BadRequest",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/pods".into(),
            ct("application/json").into(),
            with(pod("p"), "/metadata/namespace", json!("other")).to_string(),
            400,
            "BadRequest",
        ),
        (
            "POST",
            SVCS.into(),
            ct("application/json").into(),
            service("s", json!({"ports": [{"port": "80"}]})).to_string(),
            400,
            "BadRequest",
        ),
        (
            "POST",
            CMS.into(),
            ct("application/json").into(),
            format!("\"{}\"", "x".repeat(4 << 20)),
            413,
            "RequestEntityTooLarge",
        ),
    ];
    for (method, path, headers, body, code, reason) in cases {
        let (got, e) = h.raw(method, &path, &headers, body.clone()).await;
        let shown: String = body.chars().take(80).collect();
        assert_eq!(
            (got, &e["reason"], &e["kind"]),
            (code, &json!(reason), &json!("Status")),
            "{method} {path} {shown}: {e}"
        );
        assert_eq!(e["code"], code);
    }
    let (_, e) = h
        .raw("POST", SVCS, &ct("application/json"), service("s", json!({"ports": [{"port": "80"}]})).to_string())
        .await;
    assert!(e["message"].as_str().unwrap().contains("spec.ports[0].port of type integer"), "{e}");
}

#[tokio::test]
async fn a_body_nested_without_end_is_refused_and_the_server_lives() {
    let h = Host::new().await;
    let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    assert_eq!(h.raw("POST", CMS, &[("content-type", "application/json")], deep.clone()).await.0, 400);
    assert_eq!(h.raw("POST", CMS, &[("content-type", "application/yaml")], deep).await.0, 400);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    assert_eq!(h.raw("POST", CMS, &[("content-type", "application/yaml")], bomb).await.0, 400);
    h.get("/api/v1/namespaces").await;
}
