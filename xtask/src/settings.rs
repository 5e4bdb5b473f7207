//! The table of settings as the manifest, the chart's values and their schema show it.

use serde_json::{Map, Value, json};
use telemetry::settings::{Place, SETTINGS, Setting};

/// Variables that the manifest gives a pod itself: which node, which Lease, where the API server is.
const GIVEN: &[&str] = &["SEAWAY_NODE", "SEAWAY_API", "SEAWAY_API_SERVER", "SEAWAY_LEASE", "SEAWAY_PROC_SYS"];

/// Every key of the ConfigMap.
pub fn keys() -> impl Iterator<Item = (&'static str, &'static Setting)> {
    SETTINGS.iter().filter_map(|s| match s.place {
        Place::ConfigMap { key } => Some((key, s)),
        Place::Process { .. } => None,
    })
}

/// Every variable that a command reads and the manifest does not give.
pub fn variables(command: &str) -> impl Iterator<Item = (&'static str, &'static Setting)> {
    SETTINGS.iter().filter(move |s| s.is_flag_of(command)).filter_map(|s| match s.place {
        Place::Process { env: Some(env), .. } if !GIVEN.contains(&env) => Some((env, s)),
        _ => None,
    })
}

/// A value as YAML text that is a string whatever it looks like.
pub fn quoted(value: &str) -> String {
    Value::from(value).to_string()
}

/// The help of a row for a file: no markdown, links by their page.
fn plain(help: &str) -> String {
    let mut out = String::new();
    let mut rest = help;
    while let Some((before, link)) = rest.split_once('[') {
        // `[::]` is no link.
        let Some((text, (page, after))) = link
            .split_once("](")
            .and_then(|(t, r)| r.split_once(')').map(|pa| (t, pa)))
            .filter(|(t, _)| !t.contains(']'))
        else {
            out.push_str(before);
            out.push('[');
            rest = link;
            continue;
        };
        let docs = if before.ends_with('(') { format!(", docs/{page}") } else { format!(" (docs/{page})") };
        out.push_str(&format!("{before}{text}{docs}"));
        rest = after;
    }
    out.push_str(rest);
    out.replace('`', "")
}

/// Comment lines of at most 120 columns.
pub fn comment(text: &str, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let (mut out, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + 2 + line.chars().count() + 1 + word.chars().count() > 120 {
            out.push_str(&format!("{pad}# {line}\n"));
            line.clear();
        }
        line.push_str(if line.is_empty() { "" } else { " " });
        line.push_str(word);
    }
    if !line.is_empty() {
        out.push_str(&format!("{pad}# {line}\n"));
    }
    out
}

/// A row as a comment, and its line: what is set, or the default as a comment.
pub fn row(name: &str, s: &Setting, set: Option<&str>, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let kind = s.kind.replace('`', "");
    let mut out = comment(&format!("{} Value: {kind}.", plain(s.help)), indent);
    match set {
        Some(v) => out.push_str(&format!("{pad}{name}: {v}\n")),
        None => out.push_str(&format!("{pad}# {name}: {}\n", quoted(s.default))),
    }
    out
}

/// What a value may be, from the words of its type.
pub fn schema(s: &Setting) -> Value {
    let described = |mut v: Map<String, Value>| {
        v.insert("description".into(), plain(s.help).into());
        Value::Object(v)
    };
    let object = |v: Value| v.as_object().cloned().unwrap_or_default();
    let words: Vec<&str> = s.kind.split('`').skip(1).step_by(2).collect();
    // Only words between backticks, commas and "or": one of them.
    let between: String = s.kind.split('`').step_by(2).collect();
    let choice = words.len() > 1 && between.split([',', ' ']).all(|w| w.is_empty() || w == "or");
    let range = s.kind.strip_prefix("number from ").or_else(|| s.kind.strip_prefix("seconds from "));
    if let Some((from, to)) = range.and_then(|r| r.split_once(" to ")) {
        let bounds = |t: &str| t.parse::<u64>().unwrap_or_default();
        return described(object(json!({"anyOf": [
            {"type": "integer", "minimum": bounds(from), "maximum": bounds(to)},
            {"type": "string", "pattern": "^[0-9]*$"},
        ]})));
    }
    if s.kind == "UDP port" {
        return described(object(json!({"anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string", "pattern": "^[0-9]*$"},
        ]})));
    }
    if choice && words == ["true", "false"] {
        return described(object(json!({"enum": [true, false, "true", "false", ""]})));
    }
    if choice {
        return described(object(json!({"enum": words.iter().copied().chain([""]).collect::<Vec<_>>()})));
    }
    if s.kind == "JSON object" {
        return described(object(json!({"type": ["object", "string"]})));
    }
    // Lists are written with commas, or as lists.
    if s.kind.contains("comma") {
        return described(object(json!({"type": ["string", "array"], "items": {"type": "string"}})));
    }
    described(object(json!({"type": "string"})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str) -> &'static Setting {
        SETTINGS.iter().find(|s| s.name() == name).unwrap_or_else(|| panic!("{name} is in the table"))
    }

    #[test]
    fn types_follow_the_words_of_the_table() {
        assert_eq!(schema(setting("backend"))["enum"], json!(["vxlan", "host-gw", ""]));
        assert_eq!(schema(setting("masquerade"))["enum"][0], true);
        assert_eq!(schema(setting("vni"))["anyOf"][0], json!({"type": "integer", "minimum": 1, "maximum": 16_777_215}));
        assert_eq!(schema(setting("vxlanPort"))["anyOf"][0]["maximum"], 65535);
        assert_eq!(schema(setting("modeOptions"))["type"], json!(["object", "string"]));
        assert_eq!(schema(setting("clusterCIDR"))["type"], json!(["string", "array"]));
        assert_eq!(schema(setting("apiServer"))["type"], "string");
        assert_eq!(schema(setting("mode"))["enum"].as_array().map(Vec::len), Some(6));
        assert_eq!(schema(setting("resync"))["anyOf"][0]["maximum"], 3600);
    }

    #[test]
    fn comments_are_plain_and_narrow() {
        let all: String = keys().map(|(k, s)| row(k, s, None, 2)).collect();
        assert!(all.lines().all(|l| l.starts_with("  # ") && l.chars().count() <= 120), "{all}");
        let words = all.replace("\n  # ", " ");
        assert!(words.contains("(address pools, docs/ipam.md)") && !all.contains('`') && !all.contains("]("), "{all}");
        assert_eq!(plain("`[::]` is IPv4 as well. [a](b.md)."), "[::] is IPv4 as well. a (docs/b.md).");
    }

    #[test]
    fn pods_do_not_set_what_the_manifest_gives_them() {
        let agent: Vec<_> = variables("agent").map(|(n, _)| n).collect();
        assert!(agent.contains(&"SEAWAY_LOG") && !agent.contains(&"SEAWAY_NODE"), "{agent:?}");
        assert!(variables("controller").all(|(n, _)| n != "SEAWAY_LEASE"));
    }
}
