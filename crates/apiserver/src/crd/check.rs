//! Whether an object is what its definition says, in the words of the API (kube-openapi `validation`,
//! apiextensions-apiserver `ValidateCustomResource`).

use serde_json::Value;

use super::node::{Additional, ListType, Node, Type};
use crate::error::Causes;

/// Checks `v`, an object of the kind or a part of one; `old` is what stood there before.
pub(crate) fn check(v: &Value, old: Option<&Value>, node: &Node, path: &str, c: &mut Causes) {
    Checker { root: true, c }.value(v, old, node, path);
}

/// Checks a value that stands inside of an object.
pub(crate) fn check_part(v: &Value, node: &Node, path: &str, c: &mut Causes) {
    Checker { root: false, c }.value(v, None, node, path);
}

/// The field of what is wrong with combined schemas: upstream tells none, and the place in the sentence.
const NOWHERE: &str = "<nil>";

struct Checker<'a> {
    /// The metadata of this object is checked elsewhere.
    root: bool,
    c: &'a mut Causes,
}

fn type_of(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is(v: &Value, ty: Type) -> bool {
    match ty {
        Type::Object => v.is_object(),
        Type::Array => v.is_array(),
        Type::Str => v.is_string(),
        Type::Bool => v.is_boolean(),
        Type::Num => v.is_number(),
        // 1.0 is a whole number too.
        Type::Int => v.as_i64().is_some() || v.as_u64().is_some() || v.as_f64().is_some_and(|f| f.fract() == 0.0),
    }
}

fn number_format(v: &Value) -> &'static str {
    match v {
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        _ => "",
    }
}

/// The path of a field; the root's is empty.
fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// How a place is called in a sentence.
fn place(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => a == b || (x - y).abs() < f64::EPSILON,
        _ => a == b,
    }
}

impl Checker<'_> {
    fn value(&mut self, v: &Value, old: Option<&Value>, node: &Node, path: &str) {
        let root = std::mem::take(&mut self.root);
        if v.is_null() && node.nullable {
            return;
        }
        let wanted = match node.ty {
            _ if node.int_or_string => Some("integer,string").filter(|_| !is(v, Type::Int) && !v.is_string()),
            Some(ty) => Some(ty.name()).filter(|_| !is(v, ty)),
            None => None,
        };
        if let Some(want) = wanted {
            // A format of text is told instead of the type, with what a number would be called, as upstream has it.
            let (want, got) = match node.checks.format.filter(|f| f.is_text() && !v.is_null() && !v.is_array()) {
                Some(f) => (f.name(), number_format(v)),
                None => (want, type_of(v)),
            };
            self.c.type_invalid(path, &got.into(), &format!("{} in body must be of type {want}: {got:?}", place(path)));
        }
        if let (Some(message), Some(old)) = (&node.checks.immutable, old)
            && !equal(v, old)
        {
            let why = if message.is_empty() { "failed rule: self == oldSelf" } else { message };
            self.c.invalid(path, v, why);
        }
        self.logic(v, node, path);
        if !node.checks.allowed.is_empty() && !node.checks.allowed.iter().any(|a| equal(a, v)) {
            let all: Vec<String> =
                node.checks.allowed.iter().map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned)).collect();
            self.c.unsupported(path, v, &all.iter().map(String::as_str).collect::<Vec<_>>());
        }
        if wanted.is_some() {
            return;
        }
        match v {
            Value::String(s) => self.text(s, v, node, path),
            Value::Number(_) => self.number(v, node, path),
            Value::Array(items) => self.array(items, old, node, path),
            Value::Object(_) => self.object(v, old, node, path, root),
            _ => {}
        }
    }

    fn text(&mut self, s: &str, v: &Value, node: &Node, path: &str) {
        let k = &node.checks;
        let n = s.chars().count() as u64;
        if let Some(max) = k.length.1.filter(|m| n > *m) {
            self.c.too_long(path, usize::try_from(max).unwrap_or(usize::MAX));
        } else if let Some(min) = k.length.0.filter(|m| n < *m) {
            self.c.invalid(path, v, &format!("{path} in body should be at least {min} chars long"));
        } else if let Some((text, r)) = &k.pattern
            && !r.is_match(s)
        {
            self.c.invalid(path, v, &format!("{path} in body should match '{text}'"));
        }
        if let Some(f) = k.format.filter(|f| !f.takes(s)) {
            self.c.type_invalid(path, v, &format!("{path} in body must be of type {}: {v}", f.name()));
        }
    }

    fn number(&mut self, v: &Value, node: &Node, path: &str) {
        let k = &node.checks;
        let Some(n) = v.as_f64() else { return };
        if let Some(m) = k.multiple_of.filter(|m| (n / m).fract().abs() > 1e-9) {
            self.c.invalid(path, v, &format!("{path} in body should be a multiple of {m}"));
        }
        if let Some((min, exclusive)) = k.minimum
            && (n < min || exclusive && n <= min)
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            self.c.invalid(path, v, &format!("{path} in body should be greater than{or_equal} {min}"));
        }
        if let Some((max, exclusive)) = k.maximum
            && (n > max || exclusive && n >= max)
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            self.c.invalid(path, v, &format!("{path} in body should be less than{or_equal} {max}"));
        }
        // Formats of numbers are hints upstream; what no machine word holds is refused all the same.
        if node.ty == Some(Type::Int) && v.as_i64().is_none() && !v.is_f64() {
            self.c.invalid(path, v, &format!("Checked value must be of type integer with format int64 in {path}"));
        }
    }

    fn array(&mut self, items: &[Value], old: Option<&Value>, node: &Node, path: &str) {
        let k = &node.checks;
        let n = items.len();
        if let Some(max) = k.items.1.and_then(|m| usize::try_from(m).ok()).filter(|m| n > *m) {
            self.c.too_many(path, n, max);
        }
        if let Some(min) = k.items.0.filter(|m| (n as u64) < *m) {
            let shown = Value::from(n);
            self.c.invalid(path, &shown, &format!("{path} in body should have at least {min} items"));
        }
        let id = |v: &Value| match &node.list {
            ListType::Atomic => None,
            ListType::Set => Some(v.clone()),
            ListType::Map(keys) => {
                Some(Value::Object(keys.iter().filter_map(|k| Some((k.clone(), v.get(k)?.clone()))).collect()))
            }
        };
        let mut seen = std::collections::HashSet::new();
        for (i, x) in items.iter().enumerate() {
            if let Some(id) = id(x)
                && !seen.insert(id.to_string())
            {
                self.c.duplicate(&format!("{path}[{i}]"), &id);
            }
        }
        let Some(sub) = &node.items else { return };
        for (i, x) in items.iter().enumerate() {
            // Entries are the same ones only where something tells them apart.
            let was = id(x)
                .filter(|_| matches!(node.list, ListType::Map(_)))
                .and_then(|mine| old?.as_array()?.iter().find(|o| id(o).as_ref() == Some(&mine)));
            self.value(x, was, sub, &format!("{path}[{i}]"));
        }
    }

    fn object(&mut self, v: &Value, old: Option<&Value>, node: &Node, path: &str, root: bool) {
        let Value::Object(m) = v else { return };
        let k = &node.checks;
        let n = m.len();
        if let Some(min) = k.properties.0.filter(|x| (n as u64) < *x) {
            self.c.invalid(path, &n.into(), &format!("{} in body should have at least {min} properties", place(path)));
        }
        if let Some(max) = k.properties.1.and_then(|x| usize::try_from(x).ok()).filter(|x| n > *x) {
            self.c.too_many(path, n, max);
        }
        for (name, x) in m {
            if (root || node.embedded) && name == "metadata" {
                continue;
            }
            let sub = match (node.properties.get(name), &node.additional) {
                (Some(sub), _) => sub,
                (None, Additional::Schema(sub)) => sub,
                _ => continue,
            };
            self.value(x, old.and_then(|o| o.get(name)), sub, &below(path, name));
        }
        for name in k.required.iter().filter(|r| !m.contains_key(*r)) {
            self.c.required(&below(path, name), "");
        }
        if node.embedded && !root {
            for name in ["apiVersion", "kind"] {
                if v[name].as_str().is_none_or(str::is_empty) {
                    self.c.required(&below(path, name), "must not be empty");
                }
            }
        }
    }

    /// allOf, anyOf, oneOf, not.
    fn logic(&mut self, v: &Value, node: &Node, path: &str) {
        let k = &node.checks;
        let found = |sub: &Node| {
            let mut causes = Causes::default();
            Checker { root: false, c: &mut causes }.value(v, None, sub, path);
            causes
        };
        // Of alternatives that all fail, the one with the fewest complaints is told.
        let best = |all: Vec<Causes>| all.into_iter().min_by_key(|c| c.0.len()).unwrap_or_default();
        let valid = |all: &[Causes]| all.iter().filter(|c| c.0.is_empty()).count();
        if !k.any_of.is_empty() {
            let all: Vec<Causes> = k.any_of.iter().map(found).collect();
            if valid(&all) == 0 {
                self.c.invalid(NOWHERE, &"".into(), &format!("{path:?} must validate at least one schema (anyOf)"));
                self.c.extend(best(all));
            }
        }
        if !k.one_of.is_empty() {
            let all: Vec<Causes> = k.one_of.iter().map(found).collect();
            let n = valid(&all);
            if n != 1 {
                let how = if n == 0 { "Found none valid".into() } else { format!("Found {n} valid alternatives") };
                let why = format!("{path:?} must validate one and only one schema (oneOf). {how}");
                self.c.invalid(NOWHERE, &"".into(), &why);
                if n == 0 {
                    self.c.extend(best(all));
                }
            }
        }
        let all: Vec<Causes> = k.all_of.iter().map(found).collect();
        let n = valid(&all);
        if n < all.len() {
            all.into_iter().for_each(|c| self.c.extend(c));
            let none = if n == 0 { ". None validated" } else { "" };
            self.c.invalid(NOWHERE, &"".into(), &format!("{path:?} must validate all the schemas (allOf){none}"));
        }
        if let Some(sub) = &k.not
            && found(sub).0.is_empty()
        {
            self.c.invalid(NOWHERE, &"".into(), &format!("{path:?} must not validate the schema (not)"));
        }
    }
}
