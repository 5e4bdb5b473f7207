//! The simple JSON paths of printer columns and of the scale subresource: `.spec.replicas`, `.status.addresses[0].ip`,
//! `.spec.ports[*].port`, `.status.conditions[?(@.type=="Ready")].status`.

use serde_json::Value;

/// One step.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Entries whose field at a path compares so with a value.
    Where(Vec<String>, bool, Value),
}

/// A path from the root of an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Path(Vec<Step>);

fn literal(s: &str) -> Option<Value> {
    let quoted = |q: char| s.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    if let Some(t) = quoted('"').or_else(|| quoted('\'')) {
        return Some(t.into());
    }
    serde_json::from_str(s).ok().filter(|v: &Value| v.is_number() || v.is_boolean())
}

fn bracket(s: &str) -> Option<Step> {
    if s == "*" {
        return Some(Step::All);
    }
    if let Some(name) = literal(s).as_ref().and_then(Value::as_str) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(test) = s.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, equal, right) = match (test.split_once("=="), test.split_once("!=")) {
            (Some((l, r)), _) => (l, true, r),
            (None, Some((l, r))) => (l, false, r),
            _ => return None,
        };
        let fields = left.trim().strip_prefix("@.")?.split('.').map(str::to_owned).collect();
        return Some(Step::Where(fields, equal, literal(right.trim())?));
    }
    s.parse().ok().map(Step::Index)
}

impl Path {
    /// Reads a path; `None` when it is none of the simple ones.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        while !rest.is_empty() {
            if let Some(t) = rest.strip_prefix('.') {
                // A dot of a name is written `\.`
                let (mut name, mut end) = (String::new(), t.len());
                let mut chars = t.char_indices();
                while let Some((i, c)) = chars.next() {
                    match c {
                        '\\' => name.extend(chars.next().map(|(_, c)| c)),
                        '.' | '[' => {
                            end = i;
                            break;
                        }
                        c => name.push(c),
                    }
                }
                rest = &t[end..];
                match name.as_str() {
                    "" if rest.is_empty() && steps.is_empty() => {}
                    "" => return None,
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
            } else {
                let t = rest.strip_prefix('[')?;
                // A quoted bracket does not close.
                let mut quote = None;
                let close = t.char_indices().find(|(_, c)| match (quote, *c) {
                    (None, ']') => true,
                    (None, '"' | '\'') => {
                        quote = Some(*c);
                        false
                    }
                    (Some(q), c) => {
                        if q == c {
                            quote = None;
                        }
                        false
                    }
                    _ => false,
                })?;
                steps.push(bracket(t[..close.0].trim())?);
                rest = &t[close.0 + 1..];
            }
        }
        Some(Self(steps))
    }

    /// The values it leads to.
    pub(crate) fn find<'a>(&self, v: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![v];
        for step in &self.0 {
            let mut next = Vec::new();
            for v in found {
                match (step, v) {
                    (Step::Field(k), _) => next.extend(v.get(k)),
                    (Step::Index(i), Value::Array(a)) => {
                        let n = if *i < 0 { i64::try_from(a.len()).unwrap_or(0) + i } else { *i };
                        next.extend(usize::try_from(n).ok().and_then(|n| a.get(n)));
                    }
                    (Step::All, Value::Array(a)) => next.extend(a),
                    (Step::All, Value::Object(m)) => next.extend(m.values()),
                    (Step::Where(fields, equal, want), Value::Array(a)) => next.extend(a.iter().filter(|x| {
                        let have = fields.iter().try_fold(*x, |v, k| v.get(k));
                        have.is_some_and(|h| (h == want) == *equal)
                    })),
                    _ => {}
                }
            }
            found = next;
        }
        found
    }

    /// The fields of a path of fields only.
    pub(crate) fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|s| if let Step::Field(f) = s { Some(f.as_str()) } else { None }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn paths_of_columns() {
        let v = json!({"spec": {"a.b": 1, "ports": [{"port": 80}, {"port": 81}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "x]y", "status": "False"}]}});
        for (p, want) in [
            (".spec.ports[0].port", json!([80])),
            (".spec.ports[-1].port", json!([81])),
            (".spec.ports[*].port", json!([80, 81])),
            (r".spec.a\.b", json!([1])),
            (".spec['a.b']", json!([1])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (r#".status.conditions[?(@.type=='x]y')].status"#, json!(["False"])),
            (r#".status.conditions[?(@.type!="Ready")].status"#, json!(["False"])),
            (".spec.none.more", json!([])),
            ("$.spec.ports[1].port", json!([81])),
        ] {
            assert_eq!(json!(Path::parse(p).unwrap_or_else(|| panic!("{p}")).find(&v)), want, "{p}");
        }
        for p in ["spec", ".spec..x", ".a[", ".a[?(x)]", ".a[b]", "..", ".spec[?(@.a<1)]"] {
            assert_eq!(Path::parse(p), None, "{p}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in "\\PC{0,40}") { if let Some(p) = Path::parse(&s) { let _ = p.find(&json!({"a": [1]})); } }
    }
}
