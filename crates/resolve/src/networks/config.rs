//! The CNI configuration that a NetworkAttachmentDefinition holds, or a file of the node: a single one, or a list.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Plugins of one list at most.
const MOST: usize = 32;
/// Bytes of one configuration at most: all of a pod's are handed to the plugin in one file.
const LARGEST: usize = 64 << 10;
/// Versions of the protocol that attachments of ours speak, newest first.
const VERSIONS: [&str; 5] = ["1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0"];
/// What a configuration without version is taken for: what every plugin of the last years speaks.
const UNSAID: &str = "0.3.1";

/// A configuration list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `name`.
    pub name: Box<str>,
    /// `cniVersion`, one that we speak.
    pub version: Box<str>,
    /// `plugins`, at least one, each with a `type`.
    pub plugins: Vec<BTreeMap<String, Value>>,
}

impl Eq for Config {}

/// Reads a configuration. `name` is what one without a name is called.
///
/// # Errors
/// The field, empty for the whole, and what is wrong with it.
pub fn config(text: &str, name: &str) -> Result<Config, (String, String)> {
    let bad = |field: &str, why: String| Err((field.to_owned(), why));
    if text.len() > LARGEST {
        return bad("", format!("has {} bytes: at most {LARGEST} are taken", text.len()));
    }
    let m: Map<String, Value> = match serde_json::from_str(text) {
        Ok(Value::Object(m)) => m,
        Ok(_) => return bad("", "must be a JSON object: a CNI configuration, or a list of them".into()),
        Err(e) => return bad("", format!("is no JSON: {e}")),
    };
    let named = match m.get("name") {
        None | Some(Value::Null) => name,
        Some(Value::String(s)) if s.is_empty() => name,
        Some(Value::String(s)) => s.as_str(),
        Some(other) => return bad("name", format!("{other} must be text")),
    };
    // CNI specification, section 1: name.
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !named.starts_with(|c: char| c.is_ascii_alphanumeric()) || !named.chars().all(fine) || named.len() > 253 {
        return bad(
            "name",
            format!("{named:?} must begin with a letter or digit and have only those, '.', '_' and '-'"),
        );
    }
    let version = version(&m)?;
    let list = match (m.get("plugins"), m.get("type")) {
        (Some(_), Some(_)) => return bad("type", "stands beside plugins: it belongs into each of them".into()),
        (Some(Value::Array(l)), None) => l.iter().map(|p| p.as_object().cloned()).collect::<Option<Vec<_>>>(),
        (Some(_), None) => None,
        (None, Some(_)) => Some(vec![m.clone()]),
        (None, None) => return bad("", "has neither type, as a configuration has, nor plugins, as a list".into()),
    };
    let Some(list) = list else { return bad("plugins", "must be a list of objects".into()) };
    if list.is_empty() || list.len() > MOST {
        return bad("plugins", format!("has {} entries: there must be 1 to {MOST}", list.len()));
    }
    let single = m.contains_key("type");
    for (i, p) in list.iter().enumerate() {
        let field = if single { "type".to_owned() } else { format!("plugins[{i}].type") };
        match p.get("type").and_then(Value::as_str) {
            Some(t) if !t.is_empty() && !t.contains(['/', '\0']) && !t.starts_with('.') => {}
            Some(t) => return bad(&field, format!("{t:?} is no name of a plugin's program")),
            None => return bad(&field, "is missing: it names the plugin".into()),
        }
    }
    let plugins = list.into_iter().map(|p| p.into_iter().collect()).collect();
    Ok(Config { name: named.into(), version: version.into(), plugins })
}

/// The version to speak: the newest of `cniVersions` that is ours, else `cniVersion`.
fn version(m: &Map<String, Value>) -> Result<&'static str, (String, String)> {
    let ours = |s: &str| VERSIONS.into_iter().find(|v| *v == s);
    let speaks = || VERSIONS.join(", ");
    if let Some(list) = m.get("cniVersions").and_then(Value::as_array) {
        let said: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        if let Some(v) = VERSIONS.into_iter().find(|v| said.contains(v)) {
            return Ok(v);
        }
    }
    match m.get("cniVersion") {
        None | Some(Value::Null) => Ok(UNSAID),
        Some(Value::String(s)) if s.is_empty() => Ok(UNSAID),
        Some(Value::String(s)) => {
            ours(s).ok_or_else(|| ("cniVersion".into(), format!("{s:?}: write one of {}", speaks())))
        }
        Some(other) => Err(("cniVersion".into(), format!("{other} must be text: one of {}", speaks()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn configurations_and_lists() {
        let c = config(r#"{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1"}"#, "default").unwrap();
        assert_eq!((&*c.name, &*c.version, c.plugins.len()), ("default", "1.0.0", 1));
        assert_eq!(c.plugins[0]["master"], "eth1");
        let c = config(r#"{"name": "n", "cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "plugins": [{"type": "bridge"}, {"type": "tuning"}]}"#, "x").unwrap();
        assert_eq!((&*c.name, &*c.version, c.plugins.len()), ("n", "1.1.0", 2));
        assert_eq!(&*config(r#"{"type": "x"}"#, "n").unwrap().version, UNSAID);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, field, why) in [
            ("", "", "is no JSON"),
            ("[]", "", "must be a JSON object"),
            ("{}", "", "neither type"),
            (r#"{"type": "a", "plugins": []}"#, "type", "belongs into each"),
            (r#"{"plugins": []}"#, "plugins", "1 to 32"),
            (r#"{"plugins": [5]}"#, "plugins", "list of objects"),
            (r#"{"plugins": [{}]}"#, "plugins[0].type", "is missing"),
            (r#"{"type": "../x"}"#, "type", "no name of a plugin"),
            (r#"{"type": ""}"#, "type", "no name of a plugin"),
            (r#"{"type": "a", "cniVersion": "0.2.0"}"#, "cniVersion", "write one of 1.1.0, 1.0.0"),
            (r#"{"type": "a", "cniVersion": 1}"#, "cniVersion", "must be text"),
            (r#"{"type": "a", "name": "a b"}"#, "name", "must begin with"),
            (r#"{"type": "a", "name": []}"#, "name", "must be text"),
        ] {
            let (f, w) = config(text, "n").unwrap_err();
            assert!(f == field && w.contains(why), "{text}: {f}: {w}");
        }
        let long = format!(r#"{{"type": "{}"}}"#, "a".repeat(LARGEST));
        assert!(config(&long, "n").unwrap_err().1.contains("at most 65536"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}") { let _ = config(&text, "n"); }
    }
}
