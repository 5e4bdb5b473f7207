//! Strategic merge patch: JSON merge that knows which lists are sets and which are maps in disguise
//! (`k8s.io/apimachinery/pkg/util/strategicpatch` is the reference).

use serde_json::{Map, Value};

use crate::error::{Result, Status};
use crate::schema::{self, Ty};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

fn bad(why: impl Into<String>) -> Status {
    Status::bad_request(format!("invalid strategic merge patch: {}", why.into()))
}

fn list<'a>(v: &'a Value, what: &str) -> Result<&'a Vec<Value>> {
    v.as_array().ok_or_else(|| bad(format!("{what} must be a list")))
}

/// Applies `patch` to an object of the named type.
pub(crate) fn strategic_merge(target: &mut Value, patch: &Value, ty: &'static str) -> Result<()> {
    let Value::Object(p) = patch else { return Err(bad("it is no object")) };
    object(target, p, Some(&Ty::Ref(ty)))
}

/// The type of a field of an object of type `ty`.
fn child(ty: Option<&Ty>, field: &str) -> Option<&'static Ty> {
    match ty {
        Some(Ty::Ref(n)) => schema::field(n, field),
        _ => None,
    }
}

fn object(target: &mut Value, patch: &Map<String, Value>, ty: Option<&Ty>) -> Result<()> {
    match patch.get(PATCH).map(|d| d.as_str().unwrap_or("")) {
        None | Some("merge") => {}
        Some("replace") => {
            let mut new = patch.clone();
            new.remove(PATCH);
            *target = Value::Object(new);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(bad(format!("unknown $patch directive {other:?}: use merge, replace or delete"))),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(t) = target else { return Ok(()) };
    if let Some(keep) = patch.get(RETAIN) {
        let keep = list(keep, RETAIN)?;
        t.retain(|k, _| keep.iter().any(|x| x.as_str() == Some(k)));
    }
    for (k, v) in patch {
        if let Some(field) = k.strip_prefix(DELETE_FROM) {
            let gone = list(v, k)?;
            if let Some(have) = t.get_mut(field).and_then(Value::as_array_mut) {
                have.retain(|x| !gone.contains(x));
            }
        }
    }
    for (k, v) in patch {
        if k == PATCH || k == RETAIN || k.starts_with(DELETE_FROM) || k.starts_with(ORDER) {
            continue;
        }
        let ty = child(ty, k);
        let order = patch.get(&format!("{ORDER}{k}"));
        match v {
            Value::Null => {
                t.remove(k);
            }
            Value::Object(p) => object(t.entry(k.clone()).or_insert_with(|| Value::Object(Map::new())), p, ty)?,
            Value::Array(items) => {
                let slot = t.entry(k.clone()).or_insert_with(|| Value::Array(Vec::new()));
                match ty {
                    Some(Ty::List(inner, Some(key))) => {
                        if !slot.is_array() {
                            *slot = Value::Array(Vec::new());
                        }
                        if let Value::Array(have) = slot {
                            merge_list(have, items, key, inner, k)?;
                        }
                    }
                    _ => *slot = clean(v),
                }
            }
            other => {
                t.insert(k.clone(), other.clone());
            }
        }
        if let (Some(order), Some(Ty::List(_, Some(key)))) = (order, ty)
            && let Some(have) = t.get_mut(k).and_then(Value::as_array_mut)
        {
            reorder(have, list(order, ORDER)?, key);
        }
    }
    // An order can come alone, for a list that only changes its order.
    for (k, v) in patch {
        if let Some(field) = k.strip_prefix(ORDER)
            && !patch.contains_key(field)
            && let Some(Ty::List(_, Some(key))) = child(ty, field)
            && let Some(have) = t.get_mut(field).and_then(Value::as_array_mut)
        {
            reorder(have, list(v, k)?, key);
        }
    }
    Ok(())
}

/// A new value without directives and without nulls of objects.
fn clean(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter().filter(|(k, v)| !k.starts_with('$') && !v.is_null()).map(|(k, v)| (k.clone(), clean(v))).collect(),
        ),
        Value::Array(a) => Value::Array(a.iter().map(clean).collect()),
        other => other.clone(),
    }
}

fn merge_list(have: &mut Vec<Value>, items: &[Value], key: &str, inner: &Ty, field: &str) -> Result<()> {
    if key.is_empty() {
        for i in items {
            if !have.contains(i) {
                have.push(i.clone());
            }
        }
        return Ok(());
    }
    let directive = |v: &Value| v.get(PATCH).and_then(Value::as_str).unwrap_or("").to_owned();
    if items.iter().any(|i| directive(i) == "replace") {
        *have = items.iter().filter(|i| directive(i) != "replace").map(clean).collect();
        return Ok(());
    }
    for i in items {
        let Value::Object(p) = i else { return Err(bad(format!("the entries of {field} must be objects"))) };
        let Some(id) = p.get(key) else {
            return Err(bad(format!("an entry of {field} does not contain declared merge key: {key}")));
        };
        let at = have.iter().position(|h| h.get(key) == Some(id));
        if directive(i) == "delete" {
            have.retain(|h| h.get(key) != Some(id));
        } else if let Some(at) = at {
            object(&mut have[at], p, Some(inner))?;
        } else {
            let mut new = Value::Object(Map::new());
            object(&mut new, p, Some(inner))?;
            have.push(new);
        }
    }
    Ok(())
}

/// Puts the listed entries in the listed order; the others stay where they stood relative to those.
fn reorder(have: &mut Vec<Value>, order: &[Value], key: &str) {
    let id = |v: &Value| if key.is_empty() { Some(v.clone()) } else { v.get(key).cloned() };
    let place = |v: &Value| {
        let mine = id(v);
        order.iter().position(|o| id(o) == mine)
    };
    let all: Vec<(usize, Value)> = have.drain(..).enumerate().collect();
    let (mut listed, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, v)| place(v).is_some());
    listed.sort_by_key(|(_, v)| place(v));
    let mut others = others.into_iter().peekable();
    for (was, v) in listed {
        while let Some((_, o)) = others.next_if(|(o, _)| *o < was) {
            have.push(o);
        }
        have.push(v);
    }
    have.extend(others.map(|(_, v)| v));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(mut target: Value, patch: Value) -> Value {
        strategic_merge(&mut target, &patch, "Pod").unwrap();
        target
    }

    #[test]
    fn lists_merge_by_their_key() {
        let t = json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]}});
        let got = pod(
            t,
            json!({"spec": {"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}, {"name": "b", "$patch": "delete"}, {"name": "c", "image": "3"}]}}),
        );
        assert_eq!(
            got["spec"]["containers"],
            json!([{"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}, {"name": "c", "image": "3"}])
        );
    }

    #[test]
    fn conditions_by_type_owners_by_uid_ports_by_port() {
        let t = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]},
            "metadata": {"ownerReferences": [{"uid": "1", "name": "a"}]}});
        let got = pod(
            t,
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "metadata": {"ownerReferences": [{"uid": "2", "name": "b"}]}}),
        );
        assert_eq!(
            got["status"]["conditions"],
            json!([{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}])
        );
        assert_eq!(got["metadata"]["ownerReferences"], json!([{"uid": "1", "name": "a"}, {"uid": "2", "name": "b"}]));
        let mut svc = json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}]}});
        strategic_merge(&mut svc, &json!({"spec": {"ports": [{"port": 80, "name": "x"}, {"port": 81}]}}), "Service")
            .unwrap();
        assert_eq!(svc["spec"]["ports"], json!([{"port": 80, "nodePort": 30000, "name": "x"}, {"port": 81}]));
    }

    #[test]
    fn directives() {
        let t = json!({"metadata": {"finalizers": ["a/a", "b/b"]}, "spec": {"tolerations": [1, 2], "nodeSelector": {"a": "1"}}});
        let got = pod(
            t,
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/a"], "finalizers": ["c/c", "b/b"], "$setElementOrder/finalizers": ["c/c", "b/b"]},
                "spec": {"tolerations": [3], "nodeSelector": {"$patch": "replace", "b": "2"}}}),
        );
        assert_eq!(
            got,
            json!({"metadata": {"finalizers": ["c/c", "b/b"]}, "spec": {"tolerations": [3], "nodeSelector": {"b": "2"}}})
        );
        let got = pod(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
        );
        assert_eq!(got["spec"]["containers"], json!([{"name": "z"}]));
        let got = pod(
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
        );
        assert_eq!(got["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
    }

    #[test]
    fn order_keeps_what_only_the_server_has() {
        let got = pod(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "sidecar"}, {"name": "b"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
        );
        let names: Vec<&str> =
            got["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().position(|n| *n == "b") < names.iter().position(|n| *n == "a"), "{names:?}");
    }

    #[test]
    fn bad_patches_are_refused() {
        for p in [
            json!([]),
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"$patch": "explode"}}),
            json!({"spec": {"containers": [1]}}),
        ] {
            let mut t = json!({"spec": {"containers": []}});
            assert_eq!(strategic_merge(&mut t, &p, "Pod").unwrap_err().code, 400, "{p}");
        }
    }

    proptest! {
        /// Where no list has a key, it is a JSON merge patch.
        #[test]
        fn agrees_with_json_merge_without_keyed_lists(t in super::super::tests::values(), p in super::super::tests::values()) {
            let (t, p) = (json!({"x": t}), json!({"x": p}));
            let (mut a, mut b) = (t.clone(), t);
            strategic_merge(&mut a, &p, "Nothing").unwrap();
            super::super::merge(&mut b, &p);
            // Lists of objects lose their nulls here and keep them there.
            prop_assume!(clean(&b) == b);
            prop_assert_eq!(a, b);
        }

        #[test]
        fn twice_is_once(names in prop::collection::vec("[a-d]", 0..5), patch in prop::collection::btree_map("[a-d]", ("[xyz]", any::<bool>()), 0..4)) {
            let mut seen = std::collections::BTreeSet::new();
            let have: Vec<Value> = names.into_iter().filter(|n| seen.insert(n.clone())).map(|n| json!({"name": n, "image": "i"})).collect();
            let items: Vec<Value> = patch.into_iter().map(|(n, (image, del))| if del { json!({"name": n, "$patch": "delete"}) } else { json!({"name": n, "image": image}) }).collect();
            let p = json!({"spec": {"containers": items}});
            let once = pod(json!({"spec": {"containers": have}}), p.clone());
            prop_assert_eq!(pod(once.clone(), p), once);
        }
    }
}
