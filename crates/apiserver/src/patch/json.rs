//! JSON patch (RFC 6902) with JSON pointers (RFC 6901).

use serde_json::Value;

use crate::error::{Result, Status};

/// The API's own limit on the number of operations.
const MAX_OPS: usize = 10_000;
/// What `copy` may make of an object, in bytes of text.
const MAX_COPIED: usize = 3 << 20;

fn bad(i: usize, why: impl std::fmt::Display) -> Status {
    Status {
        code: 422,
        reason: "Invalid",
        message: format!("the server rejected our request due to an error in our request: operation {i}: {why}"),
        details: Value::Null,
    }
}

fn pointer(text: &str) -> std::result::Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = text.strip_prefix('/') else { return Err(format!("path {text:?} does not start with '/'")) };
    Ok(rest.split('/').map(|p| p.replace("~1", "/").replace("~0", "~")).collect())
}

fn index(part: &str, len: usize) -> std::result::Result<usize, String> {
    let ok = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    match part.parse::<usize>() {
        Ok(i) if ok && i < len => Ok(i),
        _ => Err(format!("{part:?} is no index of a list of {len}")),
    }
}

fn get<'a>(v: &'a mut Value, path: &[String]) -> std::result::Result<&'a mut Value, String> {
    path.iter().try_fold(v, |v, part| match v {
        Value::Object(m) => m.get_mut(part).ok_or_else(|| format!("there is no {part:?}")),
        Value::Array(a) => {
            let i = index(part, a.len())?;
            a.get_mut(i).ok_or_else(String::new)
        }
        _ => Err(format!("{part:?} is looked up in a value that is neither object nor list")),
    })
}

/// Objects nest at most this deep. Without it a few copies would build a value deeper than the stack of whoever prints
/// or drops it.
const MAX_DEPTH: usize = 100;

/// Whether a value nests deeper than `left`.
fn deeper(v: &Value, left: usize) -> bool {
    left == 0
        || match v {
            Value::Array(a) => a.iter().any(|v| deeper(v, left - 1)),
            Value::Object(m) => m.values().any(|v| deeper(v, left - 1)),
            _ => false,
        }
}

fn add(root: &mut Value, path: &[String], v: Value) -> std::result::Result<(), String> {
    if deeper(&v, MAX_DEPTH.saturating_sub(path.len())) {
        return Err(format!("the object would nest deeper than {MAX_DEPTH}"));
    }
    let Some((last, parents)) = path.split_last() else {
        *root = v;
        return Ok(());
    };
    match get(root, parents)? {
        Value::Object(m) => {
            m.insert(last.clone(), v);
        }
        Value::Array(a) if last == "-" => a.push(v),
        Value::Array(a) => {
            let i = index(last, a.len() + 1)?;
            a.insert(i, v);
        }
        _ => return Err(format!("nothing can be added at {last:?}")),
    }
    Ok(())
}

fn remove(root: &mut Value, path: &[String]) -> std::result::Result<Value, String> {
    let Some((last, parents)) = path.split_last() else { return Ok(root.take()) };
    match get(root, parents)? {
        Value::Object(m) => m.remove(last).ok_or_else(|| format!("there is no {last:?}")),
        Value::Array(a) => {
            let i = index(last, a.len())?;
            Ok(a.remove(i))
        }
        _ => Err(format!("nothing can be removed at {last:?}")),
    }
}

/// Applies every operation in turn; all or none.
pub(crate) fn json_patch(target: &mut Value, patch: &Value) -> Result<()> {
    let Some(ops) = patch.as_array() else {
        return Err(Status::bad_request("a JSON patch is a list of operations"));
    };
    if ops.len() > MAX_OPS {
        return Err(Status::too_large(MAX_OPS));
    }
    let mut work = target.clone();
    let mut copied = 0;
    for (i, op) in ops.iter().enumerate() {
        let text = |k: &str| op.get(k).and_then(Value::as_str);
        let path = pointer(text("path").ok_or_else(|| bad(i, "has no path"))?).map_err(|e| bad(i, e))?;
        let value = || op.get("value").cloned().ok_or_else(|| bad(i, "has no value"));
        let from = || pointer(text("from").unwrap_or("?"));
        let done = match text("op").unwrap_or("") {
            "add" => add(&mut work, &path, value()?),
            "remove" => remove(&mut work, &path).map(drop),
            "replace" => {
                let v = value()?;
                if deeper(&v, MAX_DEPTH.saturating_sub(path.len())) {
                    Err(format!("the object would nest deeper than {MAX_DEPTH}"))
                } else {
                    get(&mut work, &path).map(|slot| *slot = v)
                }
            }
            "move" => from().and_then(|from| {
                if path.len() > from.len() && path.starts_with(&from) {
                    return Err("a value cannot be moved into itself".into());
                }
                let v = remove(&mut work, &from)?;
                add(&mut work, &path, v)
            }),
            "copy" => from().and_then(|from| {
                let v = get(&mut work, &from)?.clone();
                copied += v.to_string().len();
                if copied > MAX_COPIED {
                    return Err("too much is copied".into());
                }
                add(&mut work, &path, v)
            }),
            "test" => {
                let want = value()?;
                get(&mut work, &path).and_then(|have| {
                    if *have == want {
                        Ok(())
                    } else {
                        Err(format!("testing value {} failed", text("path").unwrap_or("")))
                    }
                })
            }
            other => return Err(bad(i, format!("unexpected kind: {other:?}"))),
        };
        done.map_err(|e| bad(i, e))?;
    }
    *target = work;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_operations_of_rfc_6902() {
        for (mut doc, patch, want) in [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "q"}]),
                json!({"foo": "bar", "baz": "q"}),
            ),
            (
                json!({"foo": ["bar", "baz"]}),
                json!([{"op": "add", "path": "/foo/1", "value": "q"}]),
                json!({"foo": ["bar", "q", "baz"]}),
            ),
            (
                json!({"foo": ["bar"]}),
                json!([{"op": "add", "path": "/foo/-", "value": ["a"]}]),
                json!({"foo": ["bar", ["a"]]}),
            ),
            (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/b"}]), json!({"a": 1})),
            (json!({"a": [1, 2, 3]}), json!([{"op": "remove", "path": "/a/1"}]), json!({"a": [1, 3]})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": 2}]), json!({"a": 2})),
            (
                json!({"a": {"x": 1}, "b": {}}),
                json!([{"op": "move", "from": "/a/x", "path": "/b/y"}]),
                json!({"a": {}, "b": {"y": 1}}),
            ),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": 1, "b": 1})),
            (
                json!({"a/b": 1, "m~n": 2}),
                json!([{"op": "test", "path": "/a~1b", "value": 1}, {"op": "test", "path": "/m~0n", "value": 2}]),
                json!({"a/b": 1, "m~n": 2}),
            ),
        ] {
            json_patch(&mut doc, &patch).unwrap();
            assert_eq!(doc, want);
        }
    }

    #[test]
    fn a_failing_operation_changes_nothing() {
        for patch in [
            json!([{"op": "replace", "path": "/a", "value": 9}, {"op": "test", "path": "/a", "value": 1}]),
            json!([{"op": "add", "path": "/new", "value": 9}, {"op": "remove", "path": "/none"}]),
            json!([{"op": "add", "path": "/l/9", "value": 1}]),
            json!([{"op": "add", "path": "/l/01", "value": 1}]),
            json!([{"op": "move", "from": "/o", "path": "/o/x"}]),
            json!([{"op": "bogus", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
        ] {
            let mut doc = json!({"a": 1, "l": [1], "o": {}});
            let before = doc.clone();
            assert!(json_patch(&mut doc, &patch).is_err(), "{patch}");
            assert_eq!(doc, before);
        }
    }

    #[test]
    fn copies_cannot_nest_without_bound() {
        let ops: Vec<Value> = (0..20).map(|i| json!({"op": "copy", "from": "", "path": "/a".repeat(1 << i)})).collect();
        let mut d = json!({});
        assert!(json_patch(&mut d, &Value::from(ops)).is_err());
    }

    proptest! {
        #[test]
        fn adding_then_removing_is_nothing(doc in super::super::tests::values(), v in super::super::tests::values()) {
            let before = json!({"doc": doc});
            let mut d = before.clone();
            json_patch(&mut d, &json!([{"op": "add", "path": "/new", "value": v}, {"op": "remove", "path": "/new"}])).unwrap();
            prop_assert_eq!(d, before);
        }
        #[test]
        fn any_patch_is_survived(doc in super::super::tests::values(), ops in prop::collection::vec(("add|remove|replace|move|copy|test", "(/[a-c0-2~-]{0,2}){0,3}", "(/[a-c0-2]){0,2}", super::super::tests::values()), 0..5)) {
            let ops: Vec<Value> = ops.into_iter().map(|(op, path, from, v)| json!({"op": op, "path": path, "from": from, "value": v})).collect();
            let mut d = doc;
            let _ = json_patch(&mut d, &Value::from(ops));
        }
    }
}
