//! Kinds that clients define.

use serde_json::{Value, json};

use crate::harness::*;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn schema() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["cidr"], "properties": {
            "cidr": {"type": "string", "format": "cidr"},
            "gateway": {"type": "string", "format": "ipv4", "nullable": true},
            "mode": {"type": "string", "enum": ["Routed", "Bridge"], "default": "Routed"},
            "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 128, "default": 26},
            "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 2},
            "rules": {"type": "array", "minItems": 1, "maxItems": 2, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "weight": {"type": "number", "exclusiveMinimum": true, "minimum": 0, "default": 1.5}}}},
            "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "may not change"}]},
            "few": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 2},
            "all": {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]},
            "never": {"type": "string", "not": {"pattern": "x"}},
            "mult": {"type": "integer", "multipleOf": 5},
            "when": {"type": "string", "format": "date-time"},
            "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
        }},
        "status": {"type": "object", "properties": {"used": {"type": "integer"},
            "conditions": {"type": "array", "items": {"type": "object", "properties": {"type": {"type": "string"}, "status": {"type": "string"}}}}}}
    }})
}

pub fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pools.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "pools", "kind": "Pool", "shortNames": ["pl"], "categories": ["net"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Cidr", "type": "string", "jsonPath": ".spec.cidr"},
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}})
}

pub fn pool(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Pool", "metadata": {"name": name}, "spec": {"cidr": "10.0.0.0/8"}})
}

pub const POOLS: &str = "/apis/example.com/v1/namespaces/default/pools";

fn causes(v: &Value) -> Vec<(String, String)> {
    let list = v["details"]["causes"].as_array().unwrap_or_else(|| panic!("{v}"));
    let text = |c: &Value, k: &str| c[k].as_str().unwrap_or("").to_owned();
    list.iter().map(|c| (text(c, "field"), text(c, "message"))).collect()
}

#[tokio::test]
async fn a_definition_is_served_at_once_and_goes_with_its_objects() {
    let h = Host::new().await;
    assert_eq!(h.call("GET", POOLS, Value::Null).await.0, 404);
    let crd = h.create(CRDS, definition()).await;
    assert_eq!(crd["spec"]["names"]["singular"], "pool");
    assert_eq!(crd["spec"]["names"]["listKind"], "PoolList");
    assert_eq!(crd["status"]["acceptedNames"]["shortNames"], json!(["pl"]));
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    let conditions = crd["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|c| c["status"] == "True") && conditions.len() == 2, "{crd}");

    let list = h.get("/apis/example.com/v1").await;
    assert_eq!(list["resources"][0]["shortNames"], json!(["pl"]));
    assert_eq!(list["resources"][1]["name"], "pools/status");
    assert_eq!(h.get("/apis/example.com").await["preferredVersion"]["version"], "v1");
    assert!(h.get("/apis").await.to_string().contains("\"example.com\""));
    let agg = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (_, v) = h.raw("GET", "/apis", &[("accept", agg)], "").await;
    assert!(v.to_string().contains("\"singularResource\":\"pool\""));

    let empty = h.get(POOLS).await;
    assert_eq!((&empty["kind"], names(&empty).len()), (&json!("PoolList"), 0));
    let mut w = h
        .watch(&format!("{POOLS}?watch=1&resourceVersion={}", empty["metadata"]["resourceVersion"].as_str().unwrap()))
        .await;
    let a = h.create(POOLS, pool("a")).await;
    assert_eq!(a["spec"], json!({"cidr": "10.0.0.0/8", "mode": "Routed", "size": 26}), "defaults");
    assert_eq!((&a["metadata"]["generation"], &a["metadata"]["namespace"]), (&json!(1), &json!("default")));
    assert_eq!(w.brief().await, ("ADDED".into(), "a".into()));
    h.create(&POOLS.replace("default", "kube-system"), pool("b")).await;
    assert_eq!(names(&h.get("/apis/example.com/v1/pools").await), ["a", "b"]);
    assert_eq!(names(&h.get(&format!("{POOLS}?labelSelector=x%3Dy")).await).len(), 0);

    // Status and spec are written apart.
    let s = json!({"spec": {"size": 5}, "status": {"used": 3, "conditions": [{"type": "Ready", "status": "True"}]}});
    let (code, v) = h.patch(&format!("{POOLS}/a/status"), "application/merge-patch+json", s.clone()).await;
    assert_eq!(
        (code, &v["spec"]["size"], &v["status"]["used"], &v["metadata"]["generation"]),
        (200, &json!(26), &json!(3), &json!(1))
    );
    let (code, v) = h
        .patch(
            &format!("{POOLS}/a"),
            "application/merge-patch+json",
            json!({"spec": {"size": 5}, "status": {"used": 9}}),
        )
        .await;
    assert_eq!(
        (code, &v["spec"]["size"], &v["status"]["used"], &v["metadata"]["generation"]),
        (200, &json!(5), &json!(3), &json!(2))
    );
    let (code, _) = h
        .patch(&format!("{POOLS}/a"), "application/json-patch+json", json!([{"op": "remove", "path": "/spec/size"}]))
        .await;
    assert_eq!(code, 200);
    assert_eq!(h.get(&format!("{POOLS}/a")).await["spec"]["size"], 26, "a removed field is its default again");
    let (code, v) = h.patch(&format!("{POOLS}/a"), "application/strategic-merge-patch+json", s).await;
    assert_eq!((code, &v["reason"]), (415, &json!("UnsupportedMediaType")), "{v}");

    let (_, t) = h.raw("GET", POOLS, &[("accept", TABLE)], "").await;
    let heads: Vec<&str> =
        t["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(heads, ["Name", "Cidr", "Size", "Ready", "Age"]);
    assert_eq!(
        t["rows"][0]["cells"].as_array().unwrap()[..4],
        [json!("a"), json!("10.0.0.0/8"), json!(26), json!("True")]
    );

    for (ty, n) in [("MODIFIED", 3)] {
        for _ in 0..n {
            assert_eq!(w.brief().await, (ty.into(), "a".into()));
        }
    }
    h.delete(&format!("{CRDS}/pools.example.com")).await;
    assert_eq!(w.brief().await, ("DELETED".into(), "a".into()));
    assert!(w.next().await.is_none(), "a watch of what is gone ends");
    assert_eq!(h.call("GET", POOLS, Value::Null).await.0, 404);
    assert_eq!(h.call("POST", POOLS, pool("c")).await.0, 404);
    assert!(!h.get("/apis").await.to_string().contains("example.com"));
    h.create(CRDS, definition()).await;
    assert_eq!(names(&h.get(POOLS).await).len(), 0, "old objects do not come back");
}

#[tokio::test]
async fn objects_are_checked_against_the_schema() {
    let h = Host::new().await;
    h.create(CRDS, definition()).await;
    let with = |field: &str, v: Value| {
        let mut p = pool("x");
        p["spec"][field] = v;
        p
    };
    let says: &[(&str, Value, &str, &str)] = &[
        (
            "cidr",
            json!("10.0.0.0"),
            "spec.cidr",
            "Invalid value: \"10.0.0.0\": spec.cidr in body must be of type cidr: \"10.0.0.0\"",
        ),
        ("cidr", json!(5), "spec.cidr", "Invalid value: \"int64\": spec.cidr in body must be of type cidr: \"int64\""),
        ("mode", json!("Odd"), "spec.mode", "Unsupported value: \"Odd\": supported values: \"Routed\", \"Bridge\""),
        ("size", json!(200), "spec.size", "Invalid value: 200: spec.size in body should be less than or equal to 128"),
        ("size", json!(0), "spec.size", "Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ("name", json!("A1"), "spec.name", "Invalid value: \"A1\": spec.name in body should match '^[a-z]+$'"),
        ("name", json!("a"), "spec.name", "Invalid value: \"a\": spec.name in body should be at least 2 chars long"),
        ("name", json!("abcdef"), "spec.name", "Too long: may not be more than 5 bytes"),
        (
            "port",
            json!(true),
            "spec.port",
            "Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (
            "labels",
            json!({"a": 1}),
            "spec.labels.a",
            "Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
        ),
        ("labels", json!({"a": "1", "b": "", "c": ""}), "spec.labels", "Too many: 3: must have at most 2 items"),
        ("rules", json!([]), "spec.rules", "Invalid value: 0: spec.rules in body should have at least 1 items"),
        ("rules", json!([{"name": "a"}, {"name": "a"}]), "spec.rules[1]", "Duplicate value: {\"name\":\"a\"}"),
        ("rules", json!([{}]), "spec.rules[0].name", "Required value"),
        (
            "rules",
            json!([{"name": "a", "weight": 0}]),
            "spec.rules[0].weight",
            "Invalid value: 0: spec.rules[0].weight in body should be greater than 0",
        ),
        ("cidr", json!(true), "spec.cidr", "Invalid value: \"\": spec.cidr in body must be of type cidr: \"\""),
        ("mode", json!(5), "spec.mode", "Unsupported value: 5: supported values: \"Routed\", \"Bridge\""),
        ("port", json!(true), "<nil>", "Invalid value: \"\": \"spec.port\" must validate at least one schema (anyOf)"),
        ("either", json!({}), "spec.either.a", "Required value"),
        ("few", json!({"a": "b"}), "spec.few", "Invalid value: 1: spec.few in body should have at least 2 properties"),
        ("all", json!("c"), "spec.all", "Invalid value: \"c\": spec.all in body should match 'b$'"),
        (
            "all",
            json!("c"),
            "<nil>",
            "Invalid value: \"\": \"spec.all\" must validate all the schemas (allOf). None validated",
        ),
        ("all", json!("ac"), "<nil>", "Invalid value: \"\": \"spec.all\" must validate all the schemas (allOf)"),
        ("never", json!("x"), "<nil>", "Invalid value: \"\": \"spec.never\" must not validate the schema (not)"),
        ("mult", json!(7), "spec.mult", "Invalid value: 7: spec.mult in body should be a multiple of 5"),
        (
            "size",
            json!(1.5),
            "spec.size",
            "Invalid value: \"number\": spec.size in body must be of type integer: \"number\"",
        ),
        ("when", json!("x"), "spec.when", "Invalid value: \"x\": spec.when in body must be of type date-time: \"x\""),
        (
            "either",
            json!({"a": "", "b": ""}),
            "<nil>",
            "Invalid value: \"\": \"spec.either\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
        ),
    ];
    for (field, v, path, message) in says {
        let (code, e) = h.call("POST", POOLS, with(field, v.clone())).await;
        assert_eq!(code, 422, "{field}={v}: {e}");
        assert!(causes(&e).contains(&((*path).into(), (*message).into())), "{field}={v}: {:?}", causes(&e));
    }
    let (_, e) =
        h.call("POST", POOLS, json!({"apiVersion": "example.com/v1", "kind": "Pool", "metadata": {"name": "x"}})).await;
    assert_eq!(e["message"], "Pool.example.com \"x\" is invalid: spec: Required value");
    for (field, v) in [
        ("port", json!(5)),
        ("port", json!("http")),
        ("free", json!({"any": [1, {"x": null}]})),
        ("gateway", json!(null)),
        ("size", json!(2.0)),
    ] {
        let (code, o) = h.call("POST", &format!("{POOLS}?dryRun=All"), with(field, v.clone())).await;
        assert_eq!((code, &o["spec"][field]), (201, &v), "{o}");
    }
    let o = h.create(POOLS, with("rules", json!([{"name": "a", "odd": 1}]))).await;
    assert_eq!(o["spec"]["rules"], json!([{"name": "a", "weight": 1.5}]), "pruned and filled in");
    let odd = with("odd", json!(1));
    let r = h
        .send("POST", &format!("{POOLS}?dryRun=All"), &[], {
            let mut o = odd.clone();
            o["metadata"]["name"] = "y".into();
            o.to_string()
        })
        .await;
    assert_eq!(r.headers()["warning"], "299 - \"unknown field \\\"spec.odd\\\"\"");
    let (code, e) = h.call("POST", &format!("{POOLS}?fieldValidation=Strict"), odd).await;
    assert_eq!((code, e["message"].as_str().unwrap()), (400, "strict decoding error: unknown field \"spec.odd\""));
    // An immutable field.
    h.create(POOLS, {
        let mut o = with("fixed", json!("one"));
        o["metadata"]["name"] = "f".into();
        o
    })
    .await;
    let (code, e) =
        h.patch(&format!("{POOLS}/f"), "application/merge-patch+json", json!({"spec": {"fixed": "two"}})).await;
    assert_eq!((code, causes(&e)[0].1.as_str()), (422, "Invalid value: \"two\": may not change"));
}

#[tokio::test]
async fn bad_definitions_are_refused_by_field() {
    let h = Host::new().await;
    let root = "spec.versions[0].schema.openAPIV3Schema";
    let change = |pointer: &str, v: Value| {
        let mut d = definition();
        match d.pointer_mut(pointer) {
            Some(x) => *x = v,
            None => {
                let (above, key) = pointer.rsplit_once('/').unwrap();
                d.pointer_mut(above).unwrap()[key] = v;
            }
        }
        d
    };
    let s = "/spec/versions/0/schema/openAPIV3Schema";
    for (pointer, v, field, text) in [
        (
            "/metadata/name".to_owned(),
            json!("x.example.com"),
            "metadata.name".to_owned(),
            "must be spec.names.plural+\".\"+spec.group",
        ),
        ("/spec/group".into(), json!("apps"), "spec.group".into(), "this server serves the group itself"),
        ("/spec/scope".into(), json!("Global"), "spec.scope".into(), "Unsupported value"),
        (
            "/spec/versions/0/storage".into(),
            json!(false),
            "spec.versions".into(),
            "exactly one version marked as storage version",
        ),
        (
            "/spec/conversion".into(),
            json!({"strategy": "Webhook"}),
            "spec.conversion.strategy".into(),
            "calls no webhooks",
        ),
        (
            "/spec/versions/0/additionalPrinterColumns/0/jsonPath".into(),
            json!("spec"),
            "spec.versions[0].additionalPrinterColumns[0].jsonPath".into(),
            "invalid path",
        ),
        (
            format!("{s}/properties/spec/properties/cidr"),
            json!({}),
            format!("{root}.properties[spec].properties[cidr].type"),
            "must not be empty for specified object fields",
        ),
        (
            format!("{s}/properties/spec/properties/size/default"),
            json!(500),
            format!("{root}.properties[spec].properties[size].default"),
            "less than or equal to 128",
        ),
        (
            format!("{s}/properties/spec/properties/name/pattern"),
            json!("("),
            format!("{root}.properties[spec].properties[name].pattern"),
            "must be a valid regular expression",
        ),
        (
            format!("{s}/properties/spec/properties/rules/uniqueItems"),
            json!(true),
            format!("{root}.properties[spec].properties[rules].uniqueItems"),
            "cannot be set to true",
        ),
        (
            format!("{s}/properties/spec/properties/fixed/x-kubernetes-validations/0/rule"),
            json!(" "),
            format!("{root}.properties[spec].properties[fixed].x-kubernetes-validations[0].rule"),
            "rule is not specified",
        ),
        (
            format!("{s}/properties/metadata"),
            json!({"type": "object", "properties": {"labels": {"type": "object"}}}),
            format!("{root}.properties[metadata]"),
            "must not specify anything other than name",
        ),
    ] {
        let (code, e) = h.call("POST", CRDS, change(&pointer, v)).await;
        assert_eq!(code, 422, "{pointer}: {e}");
        assert!(causes(&e).iter().any(|(f, m)| *f == field && m.contains(text)), "{pointer}: {:?}", causes(&e));
    }
    let (code, e) = h
        .call(
            "POST",
            CRDS,
            change("/spec/versions/0/schema", json!({"openAPIV3Schema": {"type": "object", "properties": 5}})),
        )
        .await;
    assert_eq!(code, 400, "{e}");
    // Names are whose came first; they are free again when it goes.
    h.create(CRDS, definition()).await;
    let mut second = change("/metadata/name", json!("pools2.example.com"));
    second["spec"]["names"] = json!({"plural": "pools2", "kind": "Pool2", "shortNames": ["pl"]});
    let o = h.create(CRDS, second).await;
    let find = |o: &Value, ty: &str| {
        o["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == ty).unwrap().clone()
    };
    assert_eq!(find(&o, "NamesAccepted")["reason"], "ShortNamesConflict");
    assert_eq!(find(&o, "Established")["status"], "False");
    assert_eq!(h.call("GET", "/apis/example.com/v1/pools2", Value::Null).await.0, 404);
    h.delete(&format!("{CRDS}/pools.example.com")).await;
    assert_eq!(find(&h.get(&format!("{CRDS}/pools2.example.com")).await, "Established")["status"], "True");
    assert_eq!(h.call("GET", "/apis/example.com/v1/pools2", Value::Null).await.0, 200);
}

#[tokio::test]
async fn versions_finalizers_namespaces_and_a_restart() {
    let h = Host::new().await;
    let mut d = definition();
    let mut old = d["spec"]["versions"][0].clone();
    old["name"] = "v1beta1".into();
    old["storage"] = false.into();
    old["deprecated"] = true.into();
    d["spec"]["versions"].as_array_mut().unwrap().push(old);
    h.create(CRDS, d.clone()).await;
    h.create("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .await;
    h.create(&POOLS.replace("default", "shop"), pool("gone")).await;
    let beta = POOLS.replace("v1", "v1beta1");
    let mut b = pool("b");
    b["apiVersion"] = "example.com/v1beta1".into();
    b["metadata"]["finalizers"] = json!(["example.com/wait"]);
    let r = h.send("POST", &beta, &[], b.to_string()).await;
    assert_eq!(
        (r.status().as_u16(), r.headers()["warning"].to_str().unwrap()),
        (201, "299 - \"example.com/v1beta1 Pool is deprecated\"")
    );
    assert_eq!(h.get(&format!("{POOLS}/b")).await["apiVersion"], "example.com/v1");
    assert_eq!(h.get(&beta).await["items"][0]["apiVersion"], "example.com/v1beta1");

    // A new default is seen in old objects.
    let crd = format!("{CRDS}/pools.example.com");
    let (code, _) = h.patch(&crd, "application/json-patch+json", json!([{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/name/default", "value": "abc"}])).await;
    assert_eq!(code, 200);
    assert_eq!(h.get(&format!("{POOLS}/b")).await["spec"]["name"], "abc");

    let h = Host::within(h.stop().await, |_| {}).await;
    assert_eq!(names(&h.get("/apis/example.com/v1/pools").await), ["b", "gone"]);
    assert_eq!(h.get(&format!("{POOLS}/b")).await["spec"]["name"], "abc");
    h.delete("/api/v1/namespaces/shop").await;
    let end = std::time::Instant::now() + PATIENCE;
    while h.call("GET", "/api/v1/namespaces/shop", Value::Null).await.0 != 404 {
        assert!(std::time::Instant::now() < end, "the namespace does not go");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(names(&h.get("/apis/example.com/v1/pools").await), ["b"]);

    // The definition waits for its objects.
    h.delete(&crd).await;
    let v = h.get(&crd).await;
    assert!(v["metadata"]["deletionTimestamp"].is_string() && v.to_string().contains("Terminating"), "{v}");
    let (code, e) = h.call("POST", POOLS, pool("late")).await;
    assert_eq!(code, 405, "{e}");
    let (code, _) =
        h.patch(&format!("{POOLS}/b"), "application/merge-patch+json", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    assert_eq!(h.call("GET", &crd, Value::Null).await.0, 404);
    assert_eq!(h.call("GET", POOLS, Value::Null).await.0, 404);
}

#[tokio::test]
async fn server_side_apply_and_scale() {
    let h = Host::new().await;
    let mut d = definition();
    d["spec"]["versions"][0]["subresources"]["scale"] =
        json!({"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.used"});
    h.create(CRDS, d).await;
    let mut a = pool("a");
    a["spec"]["rules"] = json!([{"name": "one", "weight": 2}]);
    let apply = |who: &str| format!("{POOLS}/a?fieldManager={who}");
    let (code, v) = h.patch(&apply("me"), "application/apply-patch+yaml", a.clone()).await;
    assert_eq!(code, 201, "{v}");
    let mut b = pool("a");
    b["spec"] = json!({"cidr": "10.0.0.0/8", "rules": [{"name": "two"}]});
    let (code, v) = h.patch(&apply("you"), "application/apply-patch+yaml", b.clone()).await;
    assert_eq!(code, 200, "{v}");
    assert_eq!(v["spec"]["rules"].as_array().unwrap().len(), 2, "entries are told apart by name");
    b["spec"]["rules"] = json!([{"name": "one", "weight": 3}]);
    let (code, v) = h.patch(&apply("you"), "application/apply-patch+yaml", b).await;
    assert_eq!((code, v["details"]["causes"][0]["reason"].as_str()), (409, Some("FieldManagerConflict")), "{v}");
    let s = h.get(&format!("{POOLS}/a/scale")).await;
    assert_eq!(s["spec"]["replicas"], 26);
    let (code, s) =
        h.patch(&format!("{POOLS}/a/scale"), "application/merge-patch+json", json!({"spec": {"replicas": 7}})).await;
    assert_eq!((code, &s["spec"]["replicas"]), (200, &json!(7)));
    assert_eq!(h.get(&format!("{POOLS}/a")).await["spec"]["size"], 7);
}

/// Every definition of `deploy/` is served from the first start on, and one that somebody changed is as shipped again.
#[tokio::test]
async fn shipped_kinds_are_there() {
    let h = Host::new().await;
    let shipped = [
        "ipblocks.seaway.io",
        "ippools.seaway.io",
        "ipreservations.seaway.io",
        "loadbalancerpools.seaway.io",
        "network-attachment-definitions.k8s.cni.cncf.io",
    ];
    assert_eq!(names(&h.get(CRDS).await), shipped);
    let ippool = |spec: Value| json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "p"}, "spec": spec});
    let pools = "/apis/seaway.io/v1alpha1/ippools";
    let spec = json!({"cidr": "10.0.0.0/16", "blockSize": 26, "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
        "namespaceSelector": {"matchLabels": {"a": "b"}}, "allowedUses": ["OnRequest"], "natOutgoing": false, "strictAffinity": true, "disabled": false,
        "underlay": {"subnet": "10.0.0.0/15"}});
    assert_eq!(h.create(pools, ippool(spec.clone())).await["spec"], spec, "nothing is pruned");
    for (field, other) in [
        ("cidr", json!("10.1.0.0/16")),
        ("blockSize", json!(27)),
        ("underlay", json!({"subnet": "10.0.0.0/15", "gateway": "10.1.0.1"})),
    ] {
        let patch = json!({"spec": {field: other}});
        let (code, e) = h.patch(&format!("{pools}/p"), "application/merge-patch+json", patch).await;
        assert_eq!((code, causes(&e)[0].0.as_str()), (422, &*format!("spec.{field}")), "{e}");
    }
    let nad = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "n"}, "spec": {"config": "{}"}});
    h.create("/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions", nad).await;
    let crd = format!("{CRDS}/ippools.seaway.io");
    h.patch(&crd, "application/merge-patch+json", json!({"spec": {"names": {"shortNames": ["odd"]}}})).await;
    let h = Host::within(h.stop().await, |_| {}).await;
    assert_eq!(h.get(&crd).await["spec"]["names"]["shortNames"], json!(["ipp"]));
    assert_eq!(names(&h.get(pools).await), ["p"]);
}

/// A definition whose rules nobody here evaluates is taken, and says so for as long as it has them.
#[tokio::test]
async fn rules_that_are_not_evaluated_are_told() {
    let h = Host::new().await;
    let mut d = definition();
    let at = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let rules = json!([{"rule": "self.startsWith('a') || !has(oldSelf.x)", "message": "no"}]);
    d.pointer_mut(at).unwrap()["name"]["x-kubernetes-validations"] = rules;
    let r = h.send("POST", CRDS, &[], d.to_string()).await;
    let said = r.headers()["warning"].to_str().unwrap().to_owned();
    assert!(
        said.contains("properties[name].x-kubernetes-validations[0].rule") && said.contains("evaluates no CEL"),
        "{said}"
    );
    let crd = format!("{CRDS}/pools.example.com");
    let condition = |v: &Value| {
        let all = v["status"]["conditions"].as_array().unwrap();
        let c = all.iter().find(|c| c["type"] == "RulesEvaluated");
        c.map(|c| (c["status"].as_str().unwrap().to_owned(), c["message"].as_str().unwrap().to_owned()))
    };
    let (status, message) = condition(&h.get(&crd).await).unwrap();
    assert_eq!(status, "False");
    assert!(message.contains("properties[name]") && !message.contains("properties[fixed]"), "{message}");
    let mut p = pool("a");
    p["spec"]["name"] = "zz".into();
    h.create(POOLS, p).await;
    // The one that is understood counts as ever, and without the others all are evaluated.
    let none = json!([{"op": "remove", "path": format!("{at}/name/x-kubernetes-validations")}]);
    h.patch(&crd, "application/json-patch+json", none).await;
    assert_eq!(condition(&h.get(&crd).await).unwrap().0, "True");
}
