//! What happens to an object before it is checked: unknown fields are pruned, defaults filled in (KEP-1002).

use serde_json::{Map, Value};

use super::node::{Additional, Node};

/// How many unknown fields are named.
const MAX_REPORTED: usize = 32;

/// Fields that every object has, whatever its schema says.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes what the schema does not know; paths of it go to `unknown`.
pub(crate) fn prune(v: &mut Value, node: &Node, unknown: &mut Vec<String>) {
    inner(v, node, &mut String::new(), true, unknown);
    unknown.sort();
}

/// The same for a value inside of an object.
pub(crate) fn prune_part(v: &mut Value, node: &Node, unknown: &mut Vec<String>) {
    inner(v, node, &mut String::new(), false, unknown);
}

fn inner(v: &mut Value, node: &Node, path: &mut String, object: bool, unknown: &mut Vec<String>) {
    let len = path.len();
    match v {
        Value::Object(m) => {
            let object = object || node.embedded;
            m.retain(|k, x| {
                if object && META.contains(&k.as_str()) {
                    return true;
                }
                let sub = match (node.properties.get(k), &node.additional) {
                    (Some(n), _) => n,
                    (None, Additional::Schema(n)) => n,
                    (None, Additional::Any) => return true,
                    (None, Additional::None) if node.preserve => return true,
                    (None, Additional::None) => {
                        if unknown.len() < MAX_REPORTED {
                            unknown.push(format!("{path}{}{k}", if path.is_empty() { "" } else { "." }));
                        }
                        return false;
                    }
                };
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(k);
                inner(x, sub, path, false, unknown);
                path.truncate(len);
                true
            });
        }
        Value::Array(items) => {
            let Some(sub) = &node.items else { return };
            for (i, x) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{i}]"));
                inner(x, sub, path, false, unknown);
                path.truncate(len);
            }
        }
        _ => {}
    }
}

/// Fills in defaults, and drops nulls where null is no value.
pub(crate) fn default(v: &mut Value, node: &Node) {
    match v {
        Value::Object(m) => {
            for (k, sub) in &node.properties {
                let absent = match m.get(k) {
                    None => true,
                    Some(Value::Null) if !sub.nullable => {
                        m.remove(k);
                        true
                    }
                    Some(_) => false,
                };
                if let (true, Some(d)) = (absent, &sub.default) {
                    m.insert(k.clone(), d.clone());
                }
                if let Some(x) = m.get_mut(k) {
                    default(x, sub);
                }
            }
            if let Additional::Schema(sub) = &node.additional {
                rest(m, node, sub);
            }
        }
        Value::Array(items) => {
            if let Some(sub) = &node.items {
                items.iter_mut().for_each(|x| default(x, sub));
            }
        }
        _ => {}
    }
}

fn rest(m: &mut Map<String, Value>, node: &Node, sub: &Node) {
    m.retain(|k, x| node.properties.contains_key(k) || !x.is_null() || sub.nullable || sub.default.is_some());
    for (k, x) in m.iter_mut() {
        if node.properties.contains_key(k) {
            continue;
        }
        if let (true, false, Some(d)) = (x.is_null(), sub.nullable, &sub.default) {
            *x = d.clone();
        }
        default(x, sub);
    }
}
