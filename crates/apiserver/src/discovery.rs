//! What the server says about itself: versions, groups, resources, OpenAPI.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::resource::Resource;
use crate::schema;

/// The Kubernetes version whose API this is.
pub(crate) fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": concat!("v1.36.0+seaway-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })})
}

/// `/api`
pub(crate) fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// Everything that is served, as the store tells it.
type All = [Arc<Resource>];

/// How versions of one group are ranked: stable before beta before alpha, newer before older, other names last
/// (apimachinery `version.CompareKubeAwareVersionStrings`).
fn rank(version: &str) -> Reverse<(u8, u64, u64)> {
    let number = |s: &str| s.parse::<u64>().ok().filter(|_| !s.starts_with('0'));
    let ranked = version.strip_prefix('v').and_then(|v| {
        for (word, class) in [("alpha", 1), ("beta", 2)] {
            if let Some((major, minor)) = v.split_once(word) {
                return Some((class, number(major)?, number(minor)?));
            }
        }
        Some((3, number(v)?, 0))
    });
    Reverse(ranked.unwrap_or((0, 0, 0)))
}

/// Groups in the order of the table, custom ones after it; the core group is the empty one. Versions: the preferred
/// first.
fn groups(all: &All) -> Vec<(&str, Vec<&str>)> {
    let mut out: Vec<(&str, Vec<&str>)> = Vec::new();
    for r in all {
        match out.iter_mut().find(|(g, _)| *g == r.group) {
            Some((_, versions)) if versions.contains(&r.version.as_ref()) => {}
            Some((_, versions)) => versions.push(&r.version),
            None => out.push((&r.group, vec![&r.version])),
        }
    }
    for (_, versions) in &mut out {
        versions.sort_by_key(|v| (rank(v), *v));
    }
    out
}

fn rows<'a>(all: &'a All, group: &str, version: &str) -> Vec<&'a Resource> {
    all.iter().map(|r| &**r).filter(|r| r.group == group && r.version == version).collect()
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `/apis` and `/apis/GROUP`
pub(crate) fn group(all: &All, name: &str) -> Option<Value> {
    let (_, versions) = groups(all).into_iter().find(|(g, _)| *g == name && !g.is_empty())?;
    let list: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": api_version(name, v), "version": v})).collect();
    Some(json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "preferredVersion": list[0], "versions": list}))
}

pub(crate) fn group_list(all: &All) -> Value {
    let list: Vec<Value> = groups(all).into_iter().filter_map(|(g, _)| group(all, g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// Group, version, kind and verbs of a subresource.
fn subresource<'a>(r: &'a Resource, sub: &str) -> (&'a str, &'a str, &'a str, &'static [&'static str]) {
    match sub {
        "binding" => ("", "v1", "Binding", &["create"]),
        "eviction" => ("policy", "v1", "Eviction", &["create"]),
        "attach" => ("", "v1", "PodAttachOptions", &["create", "get"]),
        "exec" => ("", "v1", "PodExecOptions", &["create", "get"]),
        "portforward" => ("", "v1", "PodPortForwardOptions", &["create", "get"]),
        "log" => (&r.group, &r.version, &r.kind, &["get"]),
        "scale" => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        "finalize" => (&r.group, &r.version, &r.kind, &["update"]),
        _ => (&r.group, &r.version, &r.kind, &["get", "patch", "update"]),
    }
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub(crate) fn resources(all: &All, group: &str, version: &str) -> Option<Value> {
    let rows = rows(all, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for r in rows {
        list.push(json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind,
            "verbs": r.verbs, "shortNames": r.short, "categories": r.categories}));
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

fn aggregated_row(r: &Resource) -> Value {
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
        "verbs": r.verbs, "shortNames": r.short, "categories": r.categories, "subresources": subs})
}

/// Aggregated discovery (KEP-3352): the core group for `/api`, the others for `/apis`.
pub(crate) fn aggregated(all: &All, core: bool) -> Value {
    let items: Vec<Value> = groups(all)
        .into_iter()
        .filter(|(g, _)| g.is_empty() == core)
        .map(|(g, versions)| {
            let each: Vec<Value> = versions
                .into_iter()
                .map(|v| {
                    let list: Vec<Value> = rows(all, g, v).into_iter().map(aggregated_row).collect();
                    json!({"version": v, "resources": list, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": g, "creationTimestamp": null}, "versions": each})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the documents are. The hash lets clients cache them for good.
pub(crate) fn openapi_index(all: &All) -> Value {
    let mut paths = Map::new();
    for (g, versions) in groups(all) {
        for v in versions {
            let b = base(g, v);
            // Of a custom kind, the revision of its definition.
            let rev: u64 = rows(all, g, v).iter().filter_map(|r| r.custom.as_ref()).map(|c| c.rev).sum();
            let url = format!("/openapi/v3/{b}?hash={}-{rev}", env!("CARGO_PKG_VERSION"));
            paths.insert(b, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// The name of a kind's schema. Those of custom kinds begin with the group turned round, as upstream has it.
fn component(r: &Resource) -> String {
    if r.custom.is_none() {
        return r.schema.to_owned();
    }
    let mut parts: Vec<&str> = r.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), r.version, r.kind)
}

/// The schemas of some kinds, by name.
fn components(rows: &[&Resource]) -> BTreeMap<String, Value> {
    let mut roots: Vec<&'static str> = rows.iter().map(|r| r.schema).filter(|s| !s.is_empty()).collect();
    roots.push("ObjectMeta");
    let mut out: BTreeMap<String, Value> =
        schema::reachable(&roots).into_iter().map(|n| (n.to_owned(), Value::Object(schema::openapi_type(n)))).collect();
    for r in rows {
        let name = component(r);
        if let Some(c) = &r.custom {
            out.insert(name.clone(), c.openapi());
        }
        if let Some(s) = out.get_mut(&name) {
            s["x-kubernetes-group-version-kind"] = json!([gvk(r)]);
        }
    }
    out
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
pub(crate) fn openapi(all: &All, group: &str, version: &str) -> Option<Value> {
    let rows = rows(all, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut schemas = components(&rows);
    let mut paths = Map::new();
    for r in rows {
        let name = component(r);
        let list = format!("{name}List");
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        let mut l = json!({"type": "object", "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}, "items": {"type": "array", "x-kubernetes-list-type": "atomic",
            "items": {"allOf": [reference], "default": {}}}}});
        l["x-kubernetes-group-version-kind"] = json!([{"group": r.group, "version": r.version, "kind": r.list_kind}]);
        schemas.insert(list.clone(), l);
        let ns = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{ns}/{}", base(group, version), r.plural);
        let mut path_params = Vec::new();
        if r.namespaced {
            path_params.push(parameter("namespace", "path", "string"));
        }
        paths.insert(
            collection.clone(),
            json!({"parameters": path_params, "get": operation(r, "list", &list, false), "post": operation(r, "post", &name, true)}),
        );
        path_params.push(parameter("name", "path", "string"));
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({"parameters": path_params, "get": operation(r, "get", &name, false),
                "put": operation(r, "put", &name, true), "patch": operation(r, "patch", &name, true),
                "delete": operation(r, "delete", &name, true)}),
        );
    }
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths,
        "components": {"schemas": schemas}}))
}

/// `/openapi/v2` for clients that read JSON: the same types without paths.
pub(crate) fn openapi_v2(all: &All) -> Value {
    let rows: Vec<&Resource> = all.iter().map(|r| &**r).collect();
    let text = json!(components(&rows)).to_string().replace("#/components/schemas/", "#/definitions/");
    let definitions: Value = serde_json::from_str(&text).unwrap_or_default();
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": {}, "definitions": definitions})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked_as_clients_expect() {
        let mut all = vec!["v1alpha1", "foo", "v2beta1", "v1", "v10", "v2", "v1beta2", "v2alpha1"];
        all.sort_by_key(|v| (rank(v), *v));
        assert_eq!(all, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v2alpha1", "v1alpha1", "foo"]);
    }
}
