//! Server-side apply (KEP-555): each applier owns the fields it set; a field no applier sets any more goes away.
//!
//! Ownership is kept in `metadata.managedFields` in the API's own form (`FieldsV1`), for appliers only: plain updates do
//! not take part, so they never conflict.

use serde_json::{Map, Value, json};

use crate::crd::{Additional, ListType, Node};
use crate::error::{Result, Status};
use crate::resource::Resource;
use crate::schema::{self, Ty};
use crate::util::{list_at, obj, rfc3339, str_at, unix_now};

static META: Ty = Ty::Ref("ObjectMeta");

/// What stands at a place of an object: by the table of types, or by the schema of a custom kind.
#[derive(Clone, Copy)]
enum Place<'a> {
    Type(&'a Ty),
    /// An object of a custom kind.
    Custom(&'a Node),
    Node(&'a Node),
    /// Nothing is known: replaced whole.
    Free,
}

/// How the entries of a list are told apart.
enum Keys<'a> {
    /// By themselves.
    Value,
    Fields(Vec<&'a str>),
}

impl<'a> Place<'a> {
    fn child(self, field: &str) -> Place<'a> {
        let known = |n: &'a Node| match (n.properties.get(field), &n.additional) {
            (Some(sub), _) => Place::Node(sub),
            (None, Additional::Schema(sub)) => Place::Node(sub),
            _ => Place::Free,
        };
        match self {
            Place::Type(Ty::Ref(n)) => schema::field(n, field).map_or(Place::Free, Place::Type),
            Place::Type(Ty::Map(inner)) => Place::Type(inner),
            Place::Custom(_) if field == "metadata" => Place::Type(&META),
            Place::Custom(n) | Place::Node(n) => known(n),
            _ => Place::Free,
        }
    }

    /// An object whose fields have owners of their own.
    fn is_struct(self) -> bool {
        match self {
            Place::Type(t) => matches!(t, Ty::Ref(_) | Ty::Map(_)),
            Place::Custom(_) => true,
            Place::Node(n) => !n.atomic && (!n.properties.is_empty() || matches!(n.additional, Additional::Schema(_))),
            Place::Free => false,
        }
    }

    /// A list whose entries have owners of their own.
    fn list(self) -> Option<(Place<'a>, Keys<'a>)> {
        match self {
            Place::Type(Ty::List(inner, Some(key))) => {
                Some((Place::Type(inner), if key.is_empty() { Keys::Value } else { Keys::Fields(vec![key]) }))
            }
            Place::Node(n) => {
                let keys = match &n.list {
                    ListType::Atomic => return None,
                    ListType::Set => Keys::Value,
                    ListType::Map(keys) => Keys::Fields(keys.iter().map(String::as_str).collect()),
                };
                n.items.as_deref().map(|i| (Place::Node(i), keys))
            }
            _ => None,
        }
    }
}

/// The name of one entry of a list: `k:{"name":"a"}` or `v:"a"`.
fn entry(item: &Value, keys: &Keys<'_>) -> String {
    match keys {
        Keys::Value => format!("v:{item}"),
        Keys::Fields(keys) => {
            let named: Map<String, Value> =
                keys.iter().map(|k| ((*k).to_owned(), item.get(k).cloned().unwrap_or(Value::Null))).collect();
            format!("k:{}", Value::Object(named))
        }
    }
}

/// The fields that a value sets, as a `FieldsV1` tree.
fn fields(v: &Value, place: Place<'_>) -> Value {
    let mut out = Map::new();
    match v {
        Value::Object(m) if place.is_struct() => {
            for (k, x) in m {
                out.insert(format!("f:{k}"), fields(x, place.child(k)));
            }
        }
        Value::Array(items) => {
            let Some((inner, keys)) = place.list() else { return json!({}) };
            for i in items {
                let mut sub = fields(i, inner);
                if let (Keys::Fields(_), Value::Object(m)) = (&keys, &mut sub) {
                    m.insert(".".into(), json!({}));
                }
                out.insert(entry(i, &keys), sub);
            }
        }
        _ => {}
    }
    Value::Object(out)
}

/// Sets in `live` what `config` says.
fn merge(live: &mut Value, config: &Value, place: Place<'_>) {
    match (config, place.list()) {
        (Value::Object(c), _) if place.is_struct() => {
            if !live.is_object() {
                *live = json!({});
            }
            if let Value::Object(l) = live {
                for (k, x) in c {
                    merge(l.entry(k.clone()).or_insert(Value::Null), x, place.child(k));
                }
            }
        }
        (Value::Array(items), Some((inner, keys))) => {
            if !live.is_array() {
                *live = json!([]);
            }
            if let Value::Array(l) = live {
                for i in items {
                    let id = entry(i, &keys);
                    match l.iter_mut().find(|x| entry(x, &keys) == id) {
                        Some(x) => merge(x, i, inner),
                        None => l.push(i.clone()),
                    }
                }
            }
        }
        _ => live.clone_from(config),
    }
}

/// Removes from `live` the fields of `mine` that are neither in `now` nor in any of `others`.
fn prune(live: &mut Value, place: Place<'_>, mine: &Value, now: Option<&Value>, others: &[&Value]) {
    for (name, sub) in mine.as_object().into_iter().flatten().filter(|(n, _)| *n != ".") {
        let still = now.and_then(|n| n.get(name));
        let theirs: Vec<&Value> = others.iter().filter_map(|o| o.get(name)).collect();
        let kept = still.is_some() || !theirs.is_empty();
        match (name.split_once(':'), &mut *live) {
            (Some(("f", field)), Value::Object(m)) => {
                let leaf = sub.as_object().is_none_or(Map::is_empty);
                let inner = place.child(field);
                // An empty struct that was applied goes only while it is empty: what is in it now is somebody else's.
                let filled =
                    inner.is_struct() && m.get(field).and_then(Value::as_object).is_some_and(|o| !o.is_empty());
                if !kept && leaf {
                    if !filled {
                        m.remove(field);
                    }
                } else if let Some(x) = m.get_mut(field) {
                    prune(x, inner, sub, still, &theirs);
                    // What held only fields that went away goes too, unless somebody wants it empty.
                    let empty = match &*x {
                        Value::Object(o) => o.is_empty(),
                        Value::Array(a) => a.is_empty(),
                        _ => false,
                    };
                    if !kept && empty {
                        m.remove(field);
                    }
                }
            }
            (Some(_), Value::Array(a)) => {
                let Some((inner, keys)) = place.list() else { continue };
                if let Some(at) = a.iter().position(|x| entry(x, &keys) == *name) {
                    if kept {
                        prune(&mut a[at], inner, sub, still, &theirs);
                    } else {
                        a.remove(at);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A field that two appliers want different: for people, and as keys of the `FieldsV1` tree.
struct Conflict {
    shown: String,
    keys: Vec<String>,
}

/// The leaves that both trees have and whose values differ.
fn conflicts(
    at: &Conflict,
    mine: &Value,
    theirs: &Value,
    config: Option<&Value>,
    live: Option<&Value>,
    place: Place<'_>,
    out: &mut Vec<Conflict>,
) {
    let below = |name: &String, step: String| {
        let mut keys = at.keys.clone();
        keys.push(name.clone());
        Conflict { shown: format!("{}{step}", at.shown), keys }
    };
    for (name, sub) in mine.as_object().into_iter().flatten().filter(|(n, _)| *n != ".") {
        let Some(other) = theirs.get(name) else { continue };
        let (c, l, inner, step) = match name.split_once(':') {
            Some(("f", f)) => {
                (config.and_then(|v| v.get(f)), live.and_then(|v| v.get(f)), place.child(f), format!(".{f}"))
            }
            Some((_, id)) => {
                let Some((inner, keys)) = place.list() else { continue };
                let find = |v: Option<&'_ Value>| -> Option<usize> {
                    v.and_then(Value::as_array).and_then(|a| a.iter().position(|x| entry(x, &keys) == *name))
                };
                let (ci, li) = (find(config), find(live));
                let pick = |v: Option<&'_ Value>, i: Option<usize>| v.zip(i).and_then(|(v, i)| v.get(i)).cloned();
                let (cv, lv) = (pick(config, ci), pick(live, li));
                conflicts(&below(name, format!("[{id}]")), sub, other, cv.as_ref(), lv.as_ref(), inner, out);
                continue;
            }
            None => continue,
        };
        let leaf = |v: &Value| v.as_object().is_none_or(Map::is_empty);
        let here = below(name, step);
        if leaf(sub) || leaf(other) {
            // Structs meet in their fields; two that are both there do not differ by themselves.
            let structs = inner.is_struct() && c.is_some_and(Value::is_object) && l.is_some_and(Value::is_object);
            if c != l && !structs {
                out.push(here);
            }
        } else {
            conflicts(&here, sub, other, c, l, inner, out);
        }
    }
}

/// Takes one leaf out of a tree.
fn take(tree: &mut Value, keys: &[String]) {
    match keys {
        [] => {}
        [last] => drop(crate::util::remove(tree, last)),
        [first, rest @ ..] => {
            if let Some(sub) = tree.get_mut(first) {
                take(sub, rest);
            }
        }
    }
}

/// Whose fields would be taken: the managers and paths, as clients know the sentence (apimachinery `managedfields`).
fn refusal(found: &[(String, String)]) -> String {
    if let [(who, path)] = found {
        return format!("Apply failed with 1 conflict: conflict with {who:?}: {path}");
    }
    let mut by_manager: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
    for (who, path) in found {
        by_manager.entry(who).or_default().push(path);
    }
    let each = |(who, paths): (&str, Vec<&str>)| format!("conflicts with {who:?}:\n- {}", paths.join("\n- "));
    let list = by_manager.into_iter().map(each).collect::<Vec<_>>().join("\n");
    format!("Apply failed with {} conflicts: {list}", found.len())
}

/// What an apply makes of the live object. `config` has been checked and stripped by the caller.
///
/// # Errors
/// 409 with one cause per field when another applier owns a field with another value and `force` is not set.
pub(crate) fn apply(res: &Resource, live: &Value, config: &Value, manager: &str, force: bool) -> Result<Value> {
    let ty = Ty::Ref(res.schema);
    let place = res.custom.as_ref().map_or(Place::Type(&ty), |c| Place::Custom(&c.schema));
    let mut mine = config.clone();
    if let Some(m) = mine.as_object_mut() {
        m.retain(|k, _| k != "apiVersion" && k != "kind" && k != "status");
        if let Some(meta) = m.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.retain(|k, _| matches!(k.as_str(), "labels" | "annotations" | "ownerReferences" | "finalizers"));
        }
    }
    let now = fields(&mine, place);
    let mut entries: Vec<Value> = list_at(live, &["metadata", "managedFields"]).to_vec();
    let is_mine = |e: &Value| str_at(e, &["manager"]) == manager && str_at(e, &["operation"]) == "Apply";
    let mut found = Vec::new();
    for e in entries.iter_mut().filter(|e| !is_mine(e)) {
        let mut paths = Vec::new();
        let root = Conflict { shown: String::new(), keys: Vec::new() };
        conflicts(&root, &now, &e["fieldsV1"], Some(&mine), Some(live), place, &mut paths);
        if force {
            for p in &paths {
                take(&mut e["fieldsV1"], &p.keys);
            }
        }
        let who = str_at(e, &["manager"]).to_owned();
        found.extend(paths.into_iter().map(|p| (who.clone(), p.shown)));
    }
    if !force && !found.is_empty() {
        let causes: Vec<Value> = found
            .iter()
            .map(|(who, p)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {who:?}"), "field": p}))
            .collect();
        return Err(Status {
            code: 409,
            reason: "Conflict",
            message: refusal(&found),
            details: json!({"causes": causes}),
        });
    }
    let mut out = live.clone();
    if let Some(old) = entries.iter().find(|e| is_mine(e)) {
        let others: Vec<&Value> = entries.iter().filter(|e| !is_mine(e)).map(|e| &e["fieldsV1"]).collect();
        prune(&mut out, place, &old["fieldsV1"], Some(&now), &others);
    }
    merge(&mut out, &mine, place);
    entries.retain(|e| !is_mine(e) && e["fieldsV1"].as_object().is_some_and(|m| !m.is_empty()));
    let time = list_at(live, &["metadata", "managedFields"])
        .iter()
        .find(|e| is_mine(e) && e["fieldsV1"] == now)
        .map_or_else(|| rfc3339(unix_now()), |e| str_at(e, &["time"]).to_owned());
    entries.push(json!({"manager": manager, "operation": "Apply", "apiVersion": res.api_version(), "time": time,
        "fieldsType": "FieldsV1", "fieldsV1": now}));
    obj(&mut out, "metadata").insert("managedFields".into(), entries.into());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::core;

    #[test]
    fn fields_that_are_no_longer_applied_go_away_and_foreign_ones_stay() {
        let svc = core("services");
        let live = json!({"metadata": {"name": "a", "labels": {"foreign": "1"}}, "spec": {"clusterIP": "10.0.0.1"}});
        let one = json!({"metadata": {"name": "a", "labels": {"x": "1", "y": "1"}}, "spec": {"ports": [{"port": 80}, {"port": 81}]}});
        let a = apply(svc, &live, &one, "me", false).unwrap();
        assert_eq!(a["metadata"]["labels"], json!({"foreign": "1", "x": "1", "y": "1"}));
        let two =
            json!({"metadata": {"name": "a", "labels": {"x": "2"}}, "spec": {"ports": [{"port": 81, "name": "b"}]}});
        let b = apply(svc, &a, &two, "me", false).unwrap();
        assert_eq!(b["metadata"]["labels"], json!({"foreign": "1", "x": "2"}));
        assert_eq!(b["spec"], json!({"clusterIP": "10.0.0.1", "ports": [{"port": 81, "name": "b"}]}));
        assert_eq!(apply(svc, &b, &two, "me", false).unwrap(), b, "applying again changes nothing");
    }

    #[test]
    fn two_appliers_conflict_until_forced() {
        let svc = core("services");
        let a = apply(
            svc,
            &json!({"metadata": {}}),
            &json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "name": "x"}]}}),
            "one",
            false,
        )
        .unwrap();
        let other = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "name": "y"}]}});
        let e = apply(svc, &a, &other, "two", false).unwrap_err();
        assert_eq!(e.code, 409);
        assert!(e.message.contains("2 conflicts") && e.message.contains(".spec.type"), "{}", e.message);
        let b = apply(svc, &a, &other, "two", true).unwrap();
        assert_eq!(b["spec"]["type"], "ClusterIP");
        // The same value may be owned twice, and stays while one of them wants it.
        let c = apply(svc, &b, &json!({"spec": {"type": "ClusterIP"}}), "three", false).unwrap();
        let d = apply(svc, &c, &json!({"spec": {}}), "two", false).unwrap();
        assert_eq!(d["spec"]["type"], "ClusterIP");
        assert_eq!(
            d["spec"]["ports"],
            json!([{"port": 80}]),
            "the entry is still the first one's, its name is nobody's"
        );
    }
}
