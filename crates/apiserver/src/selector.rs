//! Label and field selectors of list, watch and deletecollection.

use crate::error::{Result, Status};
use crate::resource::Resource;
use crate::store::Stored;
use crate::validate::{is_label_value, is_qualified_name};

/// A selector longer than this is refused.
const MAX_LEN: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// Which objects are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<(String, Want)>,
    /// Which value, wanted text, and whether it must be equal.
    fields: Vec<(FieldKey, String, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldKey {
    Name,
    Namespace,
    /// Index into the resource's fields.
    Other(usize),
}

fn bad(text: &str, why: &str) -> Status {
    Status::bad_request(format!("unable to parse requirement {text:?}: {why}"))
}

/// Splits at commas that are outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut from) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                out.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[from..]);
    out
}

fn label_requirement(part: &str) -> Result<(String, Want)> {
    let text = part.trim();
    let value = |v: &str| {
        let v = v.trim();
        if is_label_value(v) { Ok(v.to_owned()) } else { Err(bad(text, &format!("{v:?} is no label value"))) }
    };
    let (key, want) = if let Some(key) = text.strip_prefix('!') {
        (key.trim(), Want::Absent)
    } else if let Some((key, v)) = text.split_once("!=") {
        (key.trim(), Want::NotIn(vec![value(v)?]))
    } else if let Some((key, v)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key.trim(), Want::In(vec![value(v)?]))
    } else if let Some((key, v)) = text.split_once('>') {
        (key.trim(), Want::Greater(v.trim().parse().map_err(|_| bad(text, "a number must follow '>'"))?))
    } else if let Some((key, v)) = text.split_once('<') {
        (key.trim(), Want::Less(v.trim().parse().map_err(|_| bad(text, "a number must follow '<'"))?))
    } else if let Some((key, rest)) = text.split_once(char::is_whitespace) {
        let rest = rest.trim();
        let (op, set) = match rest.strip_prefix("notin") {
            Some(set) => (false, set),
            None => match rest.strip_prefix("in") {
                Some(set) => (true, set),
                None => return Err(bad(text, "found an unknown operator, expected: =, ==, !=, in, notin, >, <")),
            },
        };
        let Some(set) = set.trim().strip_prefix('(').and_then(|s| s.strip_suffix(')')) else {
            return Err(bad(text, "the values of 'in' and 'notin' stand in parentheses: key in (a,b)"));
        };
        let values = set.split(',').map(value).collect::<Result<Vec<_>>>()?;
        (key.trim(), if op { Want::In(values) } else { Want::NotIn(values) })
    } else {
        (text, Want::Exists)
    };
    if !is_qualified_name(key) {
        return Err(bad(text, &format!("{key:?} is no label key")));
    }
    Ok((key.to_owned(), want))
}

/// Undoes the escapes of field selector values: `\\`, `\,`, `\=`.
fn unescape(s: &str) -> String {
    let (mut out, mut chars) = (String::with_capacity(s.len()), s.chars());
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

impl Selector {
    /// Reads the two query parameters.
    pub(crate) fn parse(res: &Resource, labels: &str, fields: &str) -> Result<Self> {
        if labels.len() + fields.len() > MAX_LEN {
            return Err(Status::bad_request(format!("selectors may not be longer than {MAX_LEN} bytes")));
        }
        let mut s = Self::default();
        if !labels.trim().is_empty() {
            s.labels = split(labels).into_iter().map(label_requirement).collect::<Result<_>>()?;
        }
        for part in fields.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value, equal) = if let Some((k, v)) = part.split_once("!=") {
                (k, v, false)
            } else if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (k, v, true)
            } else {
                return Err(Status::bad_request(format!("invalid selector: {part:?}; can't understand {part:?}")));
            };
            let id = match key.trim() {
                "metadata.name" => FieldKey::Name,
                "metadata.namespace" if res.namespaced => FieldKey::Namespace,
                other => {
                    let Some(i) = res.fields.iter().position(|f| f.name == other) else {
                        return Err(Status::bad_request(format!(
                            "Unable to find {:?} that match label selector \"\", field selector {fields:?}: field label \
                             not supported: {other}",
                            res.api_version() + ", Resource=" + &res.plural
                        )));
                    };
                    FieldKey::Other(i)
                }
            };
            s.fields.push((id, unescape(value.trim()), equal));
        }
        Ok(s)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name the selector asks for, when it does.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.iter().find(|(k, _, eq)| *k == FieldKey::Name && *eq).map(|(_, v, _)| v.as_str())
    }

    /// Whether the object under a key is meant.
    pub(crate) fn matches(&self, key: &str, o: &Stored) -> bool {
        let (ns, name) = key.split_once('/').unwrap_or(("", key));
        self.fields.iter().all(|(id, want, equal)| {
            let have = match id {
                FieldKey::Name => name,
                FieldKey::Namespace => ns,
                FieldKey::Other(i) => o.fields.get(*i).map_or("", |f| f),
            };
            (have == want) == *equal
        }) && self.labels_match(&o.labels)
    }

    fn labels_match(&self, labels: &[(Box<str>, Box<str>)]) -> bool {
        self.labels.iter().all(|(k, want)| {
            let have = labels.iter().find(|(n, _)| **n == **k).map(|(_, v)| &**v);
            let number = || have.and_then(|v| v.parse::<i64>().ok());
            match want {
                Want::In(set) => have.is_some_and(|v| set.iter().any(|s| s == v)),
                Want::NotIn(set) => have.is_none_or(|v| set.iter().all(|s| s != v)),
                Want::Exists => have.is_some(),
                Want::Absent => have.is_none(),
                Want::Greater(n) => number().is_some_and(|v| v > *n),
                Want::Less(n) => number().is_some_and(|v| v < *n),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::core;
    use proptest::prelude::*;

    fn picks(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Vec<(Box<str>, Box<str>)> = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Selector::parse(core("pods"), selector, "").unwrap().labels_match(&labels)
    }

    #[test]
    fn label_operators() {
        let l = [("app", "web"), ("tier", "front"), ("n", "5")];
        for (s, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("none!=x", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db,x)", true),
            ("none notin (x)", true),
            ("app", true),
            ("!app", false),
            ("!none", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app=", false),
        ] {
            assert_eq!(picks(s, &l), want, "{s}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        let pods = core("pods");
        for s in ["app=a b", "a b c", "app in web", "-x", "n>x", "in(", ","] {
            assert_eq!(Selector::parse(pods, s, "").unwrap_err().code, 400, "{s}");
        }
        let e = Selector::parse(pods, "", "spec.foo=1").unwrap_err();
        assert!(e.message.contains("field label not supported: spec.foo"), "{}", e.message);
        assert!(Selector::parse(pods, "", "spec.nodeName").is_err());
        let s = Selector::parse(pods, "", "metadata.name=a,spec.nodeName!=n1").unwrap();
        assert_eq!(s.name(), Some("a"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(l in "\\PC{0,60}", f in "\\PC{0,60}") { let _ = Selector::parse(core("pods"), &l, &f); }

        /// `in`, `notin` and presence agree with sets.
        #[test]
        fn operators_agree_with_sets(have in prop::option::of("[a-c]"), set in prop::collection::btree_set("[a-c]", 1..3)) {
            let list = set.iter().cloned().collect::<Vec<_>>().join(",");
            let labels: Vec<(&str, &str)> = have.iter().map(|v| ("k", v.as_str())).collect();
            let within = have.as_ref().is_some_and(|v| set.contains(v));
            prop_assert_eq!(picks(&format!("k in ({list})"), &labels), within);
            prop_assert_eq!(picks(&format!("k notin ({list})"), &labels), !within);
            prop_assert_eq!(picks("k", &labels), !picks("!k", &labels));
        }
    }
}
