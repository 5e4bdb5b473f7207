//! What `kubectl explain` says of each type and field.

use std::collections::BTreeMap;
use std::sync::OnceLock;

const TEXTS: [&str; 2] = [include_str!("texts.txt"), include_str!("texts-more.txt")];

/// Texts by type and field; a type's own has no field.
fn texts() -> &'static BTreeMap<(&'static str, &'static str), &'static str> {
    static ALL: OnceLock<BTreeMap<(&'static str, &'static str), &'static str>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut ty = "";
        let mut out = BTreeMap::new();
        for line in TEXTS.iter().flat_map(|t| t.lines()).filter(|l| !l.starts_with('#')) {
            let (name, text) = line.trim_start().split_once(": ").unwrap_or((line, ""));
            if line.starts_with(' ') {
                out.insert((ty, name), text);
            } else if !name.is_empty() {
                ty = name;
                out.insert((ty, ""), text);
            }
        }
        out
    })
}

/// What a type is; empty for one that is unknown.
pub(crate) fn of_type(name: &str) -> &'static str {
    texts().get(&(name, "")).copied().unwrap_or("")
}

/// What a field is.
pub(crate) fn of_field(ty: &str, field: &str) -> &'static str {
    // What a type does not say itself is the same everywhere.
    texts().get(&(ty, field)).or_else(|| texts().get(&("*", field))).copied().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn every_type_and_field_is_explained_and_nothing_else() {
        for (ty, fields) in schema::types() {
            assert!(!of_type(ty).is_empty(), "{ty} has no text");
            for (field, _) in fields {
                assert!(!of_field(ty, field).is_empty(), "{ty}.{field} has no text");
            }
        }
        for (ty, field) in texts().keys().filter(|(_, f)| !f.is_empty()) {
            let mut of = schema::types().iter().filter(|(t, _)| *ty == "*" || *t == ty);
            assert!(of.any(|(_, fields)| fields.iter().any(|(f, _)| f == field)), "{ty}.{field} is no field");
        }
    }
}
