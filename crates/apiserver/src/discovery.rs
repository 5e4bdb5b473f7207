//! What the server says about itself: versions, groups, resources, OpenAPI.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::resource::{RESOURCES, Resource, VERBS};
use crate::schema::{self, Ty};

/// The Kubernetes version whose API this is.
pub(crate) fn version() -> Value {
    json!({"major": "1", "minor": "32", "gitVersion": concat!("v1.32.0+seaway-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })})
}

/// `/api`
pub(crate) fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// Groups in the order of the table; the core group is the empty one.
fn groups() -> Vec<(&'static str, &'static str)> {
    let mut out: Vec<(&str, &str)> = Vec::new();
    for r in RESOURCES {
        if !out.contains(&(r.group, r.version)) {
            out.push((r.group, r.version));
        }
    }
    out
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `/apis` and `/apis/GROUP`
pub(crate) fn group(name: &str) -> Option<Value> {
    let (_, version) = groups().into_iter().find(|(g, _)| *g == name && !g.is_empty())?;
    let v = json!({"groupVersion": api_version(name, version), "version": version});
    Some(json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [v], "preferredVersion": v}))
}

pub(crate) fn group_list() -> Value {
    let all: Vec<Value> = groups().into_iter().filter_map(|(g, _)| group(g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})
}

/// Group, version, kind and verbs of a subresource.
fn subresource(r: &Resource, sub: &str) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
    match sub {
        "binding" => ("", "v1", "Binding", &["create"]),
        "eviction" => ("policy", "v1", "Eviction", &["create"]),
        "scale" => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        "finalize" => (r.group, r.version, r.kind, &["update"]),
        _ => (r.group, r.version, r.kind, &["get", "patch", "update"]),
    }
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub(crate) fn resources(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Resource> = RESOURCES.iter().filter(|r| r.group == group && r.version == version).collect();
    if rows.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for r in rows {
        list.push(json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind,
            "verbs": VERBS, "shortNames": r.short, "categories": r.categories}));
        for sub in r.subresources {
            let (g, v, k, verbs) = subresource(r, sub);
            list.push(json!({"name": format!("{}/{sub}", r.plural), "singularName": "", "namespaced": r.namespaced,
                "group": g, "version": v, "kind": k, "verbs": verbs}));
        }
    }
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list}),
    )
}

/// Aggregated discovery (KEP-3352): the core group for `/api`, the others for `/apis`.
pub(crate) fn aggregated(core: bool) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|(g, _)| g.is_empty() == core)
        .map(|(g, version)| {
            let rows: Vec<Value> = RESOURCES
                .iter()
                .filter(|r| r.group == g && r.version == version)
                .map(|r| {
                    let subs: Vec<Value> = r
                        .subresources
                        .iter()
                        .map(|sub| {
                            let (g, v, k, verbs) = subresource(r, sub);
                            json!({"subresource": sub, "responseKind": {"group": g, "version": v, "kind": k}, "verbs": verbs})
                        })
                        .collect();
                    json!({"resource": r.plural, "responseKind": {"group": r.group, "version": r.version, "kind": r.kind},
                        "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": r.singular,
                        "verbs": VERBS, "shortNames": r.short, "categories": r.categories, "subresources": subs})
                })
                .collect();
            json!({"metadata": {"name": g, "creationTimestamp": null},
                "versions": [{"version": version, "resources": rows, "freshness": "Current"}]})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the documents are. The hash lets clients cache them for good.
pub(crate) fn openapi_index() -> Value {
    let paths: Map<String, Value> = groups()
        .into_iter()
        .map(|(g, v)| {
            let b = base(g, v);
            let url = json!({"serverRelativeURL": format!("/openapi/v3/{b}?hash={}", env!("CARGO_PKG_VERSION"))});
            (b, url)
        })
        .collect();
    json!({"paths": paths})
}

fn gvk(r: &Resource) -> Value {
    json!({"group": r.group, "version": r.version, "kind": r.kind})
}

fn parameter(name: &str, place: &str, ty: &str) -> Value {
    json!({"name": name, "in": place, "schema": {"type": ty, "uniqueItems": true}, "required": place == "path"})
}

/// One operation; kubectl looks for the `fieldValidation` parameter to know that the server validates.
fn operation(r: &Resource, action: &str, schema: &str, write: bool) -> Value {
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
    let mut params = vec![parameter("pretty", "query", "string")];
    if write {
        for name in ["dryRun", "fieldManager", "fieldValidation"] {
            params.push(parameter(name, "query", "string"));
        }
    }
    if action == "patch" {
        params.push(parameter("force", "query", "boolean"));
    }
    let mut op = json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(r), "parameters": params,
        "responses": {"200": {"description": "OK", "content": content}}});
    if write {
        op["requestBody"] = json!({"content": content});
    }
    op
}

/// `/openapi/v3/...`: schemas and paths of one group and version.
pub(crate) fn openapi(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&'static Resource> = RESOURCES.iter().filter(|r| r.group == group && r.version == version).collect();
    if rows.is_empty() {
        return None;
    }
    let roots: Vec<&'static str> = rows.iter().map(|r| r.schema).collect();
    let mut schemas: BTreeMap<String, Value> =
        schema::reachable(&roots).into_iter().map(|n| (n.to_owned(), Value::Object(schema::openapi_type(n)))).collect();
    let mut paths = Map::new();
    for r in rows {
        if let Some(s) = schemas.get_mut(r.schema) {
            s["x-kubernetes-group-version-kind"] = json!([gvk(r)]);
        }
        let list = format!("{}List", r.schema);
        let mut l = json!({"type": "object", "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}, "items": schema::openapi(&Ty::List(Box::new(Ty::Ref(r.schema)), None))}});
        l["x-kubernetes-group-version-kind"] =
            json!([{"group": r.group, "version": r.version, "kind": format!("{}List", r.kind)}]);
        schemas.insert(list.clone(), l);
        let ns = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{ns}/{}", base(group, version), r.plural);
        let mut path_params = Vec::new();
        if r.namespaced {
            path_params.push(parameter("namespace", "path", "string"));
        }
        paths.insert(
            collection.clone(),
            json!({"parameters": path_params, "get": operation(r, "list", &list, false), "post": operation(r, "post", r.schema, true)}),
        );
        path_params.push(parameter("name", "path", "string"));
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({"parameters": path_params, "get": operation(r, "get", r.schema, false),
                "put": operation(r, "put", r.schema, true), "patch": operation(r, "patch", r.schema, true),
                "delete": operation(r, "delete", r.schema, true)}),
        );
    }
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.32.0"}, "paths": paths,
        "components": {"schemas": schemas}}))
}

/// `/openapi/v2` for clients that read JSON: the same types without paths.
pub(crate) fn openapi_v2() -> Value {
    let mut definitions = Map::new();
    for r in RESOURCES {
        for n in schema::reachable(&[r.schema]) {
            let text =
                Value::Object(schema::openapi_type(n)).to_string().replace("#/components/schemas/", "#/definitions/");
            definitions.insert(n.to_owned(), serde_json::from_str(&text).unwrap_or_default());
        }
    }
    for r in RESOURCES {
        definitions[r.schema]["x-kubernetes-group-version-kind"] = json!([gvk(r)]);
    }
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.32.0"}, "paths": {}, "definitions": definitions})
}
