//! The table of types: what decides unknown fields, wrong types, merge keys and the published OpenAPI.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

/// The type of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ty {
    Str,
    Int,
    Num,
    Bool,
    IntOrStr,
    Quantity,
    Time,
    Bytes,
    Any,
    Ref(&'static str),
    /// That type, or a boolean.
    OrBool(&'static str),
    /// The merge key of a list of objects; `Some("")` for a list of distinct scalars.
    List(Box<Ty>, Option<&'static str>),
    Map(Box<Ty>),
}

pub(crate) type Fields = Vec<(&'static str, Ty)>;

const TEXT: &str = include_str!("schema.txt");

fn parse_type(s: &'static str) -> Ty {
    if let Some(inner) = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
        return match inner.split_once('@') {
            Some((t, key)) => Ty::List(Box::new(parse_type(t)), Some(key)),
            None => Ty::List(Box::new(parse_type(inner)), None),
        };
    }
    if let Some(inner) = s.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
        return Ty::Map(Box::new(parse_type(inner)));
    }
    match s {
        "s" => Ty::Str,
        "i" => Ty::Int,
        "n" => Ty::Num,
        "b" => Ty::Bool,
        "x" => Ty::IntOrStr,
        "q" => Ty::Quantity,
        "t" => Ty::Time,
        "y" => Ty::Bytes,
        "o" => Ty::Any,
        name if name.starts_with('?') => Ty::OrBool(&name[1..]),
        name => Ty::Ref(name),
    }
}

/// A field of the protobuf form: its numbers from the outside in, whether zero values count, its name and type.
pub(crate) struct Numbered {
    pub(crate) path: Vec<u32>,
    pub(crate) pointer: bool,
    pub(crate) name: &'static str,
    pub(crate) ty: Ty,
}

/// The words of the text with the type they belong to.
fn words() -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut current = "";
    TEXT.lines().filter(|l| !l.starts_with('#')).flat_map(move |line| {
        let mut words = line.split_whitespace();
        if !line.starts_with(' ')
            && let Some(name) = words.next()
        {
            current = name;
        }
        let ty = current;
        words.map(move |w| (ty, w)).collect::<Vec<_>>()
    })
}

/// The protobuf fields of a type.
pub(crate) fn numbered(name: &str) -> &'static [Numbered] {
    static ALL: OnceLock<BTreeMap<&'static str, Vec<Numbered>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let mut out: BTreeMap<&'static str, Vec<Numbered>> = BTreeMap::new();
        for (ty, word) in words() {
            let Some((field, rest)) = word.split_once(':') else { continue };
            let Some(at) = rest.find(['#', '*']) else { continue };
            let path = rest[at + 1..].split('.').filter_map(|n| n.parse().ok()).collect();
            let pointer = rest.as_bytes()[at] == b'*';
            out.entry(ty).or_default().push(Numbered { path, pointer, name: field, ty: parse_type(&rest[..at]) });
        }
        out
    });
    all.get(name).map_or(&[], Vec::as_slice)
}

fn parse() -> BTreeMap<&'static str, Fields> {
    let mut out: BTreeMap<&'static str, Fields> = BTreeMap::new();
    for (ty, word) in words() {
        if let Some((field, rest)) = word.split_once(':') {
            let plain = rest.split(['#', '*']).next().unwrap_or(rest);
            out.entry(ty).or_default().push((field, parse_type(plain)));
        }
    }
    out
}

/// Every type by name.
pub(crate) fn types() -> &'static BTreeMap<&'static str, Fields> {
    static TYPES: OnceLock<BTreeMap<&'static str, Fields>> = OnceLock::new();
    TYPES.get_or_init(parse)
}

/// The fields of a type; empty for an unknown name.
pub(crate) fn fields(name: &str) -> &'static [(&'static str, Ty)] {
    types().get(name).map_or(&[], Vec::as_slice)
}

pub(crate) fn field(name: &str, field: &str) -> Option<&'static Ty> {
    fields(name).iter().find(|(n, _)| *n == field).map(|(_, t)| t)
}

/// What is wrong with the shape of an object.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// Paths that no type knows; they have been removed.
    pub(crate) unknown: Vec<String>,
    /// Paths with a value of the wrong type, as sentences.
    pub(crate) wrong: Vec<String>,
}

/// Checks `v` against the type, removing unknown fields and nulls (the API reads null as absent).
pub(crate) fn check(v: &mut Value, ty: &str) -> Shape {
    let mut shape = Shape::default();
    object(v, ty, &mut String::new(), &mut shape);
    shape
}

const MAX_REPORTED: usize = 32;

fn wrong(path: &str, want: &str, v: &Value, shape: &mut Shape) {
    let got = match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if shape.wrong.len() < MAX_REPORTED {
        let at = if path.is_empty() { "the object" } else { path };
        shape.wrong.push(format!("cannot unmarshal {got} into field {at} of type {want}"));
    }
}

fn with<R>(path: &mut String, part: std::fmt::Arguments<'_>, f: impl FnOnce(&mut String) -> R) -> R {
    use std::fmt::Write;
    let len = path.len();
    let _ = path.write_fmt(part);
    let r = f(path);
    path.truncate(len);
    r
}

fn object(v: &mut Value, ty: &str, path: &mut String, shape: &mut Shape) {
    let Value::Object(map) = v else {
        wrong(path, ty, v, shape);
        return;
    };
    let known = fields(ty);
    let dot = if path.is_empty() { "" } else { "." };
    map.retain(|k, val| {
        let Some((_, t)) = known.iter().find(|(n, _)| n == k) else {
            if shape.unknown.len() < MAX_REPORTED {
                shape.unknown.push(format!("{path}{dot}{k}"));
            }
            return false;
        };
        if val.is_null() && *t != Ty::Any {
            return false;
        }
        with(path, format_args!("{dot}{k}"), |p| value(val, t, p, shape));
        true
    });
}

fn value(v: &mut Value, ty: &Ty, path: &mut String, shape: &mut Shape) {
    let ok = match ty {
        Ty::Any => true,
        Ty::Str => v.is_string(),
        Ty::Time => v.as_str().is_some_and(crate::util::is_rfc3339),
        Ty::Bytes => v.as_str().is_some_and(|s| {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(s).is_ok()
        }),
        Ty::Int => v.is_i64(),
        Ty::Num => v.is_number(),
        Ty::Bool => v.is_boolean(),
        Ty::IntOrStr => v.is_string() || v.is_i64(),
        Ty::Quantity => {
            // Numbers are read as their decimal text, as the API does.
            if v.is_number() {
                *v = Value::from(v.to_string());
            }
            v.as_str().is_some_and(crate::util::is_quantity)
        }
        Ty::OrBool(_) if v.is_boolean() => true,
        Ty::Ref(name) | Ty::OrBool(name) => return object(v, name, path, shape),
        Ty::List(inner, _) => match v {
            Value::Array(list) => {
                for (n, item) in list.iter_mut().enumerate() {
                    with(path, format_args!("[{n}]"), |p| value(item, inner, p, shape));
                }
                return;
            }
            _ => false,
        },
        Ty::Map(inner) => match v {
            Value::Object(map) => {
                for (k, item) in map.iter_mut() {
                    if item.is_null() && **inner == Ty::Str {
                        *item = Value::from("");
                    }
                    with(path, format_args!(".{k}"), |p| value(item, inner, p, shape));
                }
                return;
            }
            _ => false,
        },
    };
    if !ok {
        let want = match ty {
            Ty::Str => "string",
            Ty::Time => "time (RFC 3339)",
            Ty::Bytes => "base64 text",
            Ty::Int => "integer",
            Ty::Num => "number",
            Ty::Bool => "bool",
            Ty::IntOrStr => "integer or string",
            Ty::Quantity => "quantity",
            Ty::List(..) => "list",
            _ => "map",
        };
        wrong(path, want, v, shape);
    }
}

/// The types that `root` reaches, itself included.
pub(crate) fn reachable(roots: &[&'static str]) -> Vec<&'static str> {
    fn inner(t: &'static Ty) -> Option<&'static str> {
        match t {
            Ty::Ref(n) | Ty::OrBool(n) => Some(n),
            Ty::List(t, _) | Ty::Map(t) => inner(t),
            _ => None,
        }
    }
    let mut seen: Vec<&'static str> = roots.to_vec();
    let mut next = 0;
    while next < seen.len() {
        for (_, t) in fields(seen[next]) {
            if let Some(n) = inner(t)
                && !seen.contains(&n)
            {
                seen.push(n);
            }
        }
        next += 1;
    }
    seen
}

/// The OpenAPI v3 schema of a type.
pub(crate) fn openapi(ty: &Ty) -> Value {
    match ty {
        Ty::Str => json!({"type": "string"}),
        Ty::Time => json!({"type": "string", "format": "date-time"}),
        Ty::Bytes => json!({"type": "string", "format": "byte"}),
        Ty::Int => json!({"type": "integer", "format": "int64"}),
        Ty::Num => json!({"type": "number"}),
        Ty::Bool => json!({"type": "boolean"}),
        Ty::IntOrStr | Ty::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Ty::Any => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        Ty::OrBool(n) => json!({"oneOf": [{"type": "boolean"}, {"$ref": format!("#/components/schemas/{n}")}]}),
        Ty::Ref(n) => json!({"allOf": [{"$ref": format!("#/components/schemas/{n}")}], "default": {}}),
        Ty::List(inner, key) => {
            let mut v = json!({"type": "array", "items": openapi(inner)});
            match key {
                None => v["x-kubernetes-list-type"] = "atomic".into(),
                Some("") => {
                    v["x-kubernetes-list-type"] = "set".into();
                    v["x-kubernetes-patch-strategy"] = "merge".into();
                }
                Some(k) => {
                    v["x-kubernetes-list-type"] = "map".into();
                    v["x-kubernetes-list-map-keys"] = json!([k]);
                    v["x-kubernetes-patch-merge-key"] = (*k).into();
                    v["x-kubernetes-patch-strategy"] = "merge".into();
                }
            }
            v
        }
        Ty::Map(inner) => json!({"type": "object", "additionalProperties": openapi(inner)}),
    }
}

/// The OpenAPI v3 schema of a named type.
pub(crate) fn openapi_type(name: &str) -> Map<String, Value> {
    let property = |n: &str, t: &Ty| {
        let mut v = openapi(t);
        v["description"] = crate::texts::of_field(name, n).into();
        v
    };
    let props: Map<String, Value> = fields(name).iter().map(|(n, t)| ((*n).to_owned(), property(n, t))).collect();
    let mut m = Map::new();
    m.insert("description".into(), crate::texts::of_type(name).into());
    m.insert("type".into(), "object".into());
    m.insert("properties".into(), Value::Object(props));
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_used_is_a_type() {
        for name in types().keys() {
            for r in reachable(&[name]) {
                assert!(types().contains_key(r), "{name} uses {r}, which schema.txt does not define");
            }
        }
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_named_by_path() {
        let mut v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"a": 1}},
            "spec": {"prots": [], "ports": [{"port": "80", "nam": "x"}], "selector": null}});
        let s = check(&mut v, "Service");
        assert_eq!(s.unknown, ["spec.ports[0].nam", "spec.prots"]);
        assert_eq!(
            s.wrong,
            [
                "cannot unmarshal number into field metadata.labels.a of type string",
                "cannot unmarshal string into field spec.ports[0].port of type integer"
            ]
        );
        assert_eq!(v["spec"], json!({"ports": [{"port": "80"}]}), "unknown fields and nulls are dropped");
    }

    #[test]
    fn protobuf_numbers_are_distinct() {
        for name in types().keys() {
            let mut seen = std::collections::BTreeSet::new();
            for f in numbered(name) {
                assert!(!f.path.is_empty() && seen.insert(f.path.clone()), "{name}.{}: {:?}", f.name, f.path);
            }
        }
        let ports = numbered("ServiceSpec").iter().find(|f| f.name == "ports").unwrap();
        assert_eq!((ports.path.as_slice(), ports.pointer), ([1].as_slice(), false));
    }

    #[test]
    fn merge_keys_are_known() {
        assert_eq!(field("PodSpec", "containers"), Some(&Ty::List(Box::new(Ty::Ref("Container")), Some("name"))));
        assert_eq!(field("ObjectMeta", "finalizers"), Some(&Ty::List(Box::new(Ty::Str), Some(""))));
    }
}
