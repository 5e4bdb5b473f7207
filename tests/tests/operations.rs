//! Alerts, dashboard and runbook speak of metrics that an agent serves, and of each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// Every series that a scrape can show, from the page that is written from the metrics themselves.
fn served() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let rows =
        page.lines().filter_map(|l| l.strip_prefix("| `")).map(|l| l.split('|').map(str::trim).collect::<Vec<_>>());
    let mut all = BTreeSet::from(["up".to_owned()]);
    for row in rows {
        let name = row[0].trim_end_matches('`').to_owned();
        if row[1] == "histogram" {
            all.extend(["_bucket", "_sum", "_count"].map(|s| format!("{name}{s}")));
        } else {
            all.insert(name);
        }
    }
    assert!(all.len() > 25, "{all:?}");
    all
}

/// The metrics that an expression names: words that are neither functions, keywords, labels nor numbers.
fn metrics(expr: &str) -> BTreeSet<String> {
    let mut bare = String::new();
    let mut depth = 0;
    for c in expr.chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            c if depth == 0 => bare.push(c),
            _ => {}
        }
        if depth > 0 {
            bare.push(' ');
        }
    }
    let known = ["up", "seaway_", "kubeproxy_", "process_"];
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<String> = bare.split(|c| !word(c)).map(str::to_owned).collect();
    let functions = [
        "sum",
        "min",
        "max",
        "count",
        "by",
        "rate",
        "increase",
        "time",
        "and",
        "or",
        "vector",
        "histogram_quantile",
        "label_values",
        "instance",
        "kind",
        "plane",
        "result",
        "le",
        "traffic_policy",
        "ip_family",
        "version",
    ];
    for w in words.iter().filter(|w| w.starts_with(|c: char| c.is_ascii_alphabetic())) {
        let fine = functions.contains(&w.as_str()) || known.iter().any(|k| w.starts_with(k));
        assert!(fine, "{w:?} in {expr:?} is neither a function nor a metric of ours");
    }
    words.into_iter().filter(|w| known.iter().any(|k| w == k || (k.ends_with('_') && w.starts_with(k)))).collect()
}

#[test]
fn every_alert_speaks_of_metrics_there_are_and_has_a_runbook() {
    let alerts: Value = serde_yaml::from_str(&read("deploy/alerts.yaml")).unwrap();
    let (served, runbook) = (served(), read("docs/operations.md"));
    let headings: BTreeSet<&str> = runbook.lines().filter_map(|l| l.strip_prefix("### ")).collect();
    let mut names = BTreeSet::new();
    for rule in alerts["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()) {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} twice");
        let used = metrics(rule["expr"].as_str().unwrap());
        assert!(!used.is_empty(), "{name} asks nothing");
        let unknown: Vec<_> = used.difference(&served).collect();
        assert!(unknown.is_empty(), "{name}: no such metric: {unknown:?}");
        assert!(headings.contains(name), "docs/operations.md has no section `### {name}`");
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert_eq!(url, format!("docs/operations.md#{}", name.to_lowercase()));
        for field in ["summary", "description"] {
            assert!(rule["annotations"][field].as_str().is_some_and(|t| !t.is_empty()), "{name} {field}");
        }
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(rule["for"].is_string(), "{name}");
    }
    let stale: Vec<_> = headings.iter().filter(|h| h.starts_with("Seaway") && !names.contains(*h)).collect();
    assert!(stale.is_empty(), "sections of alerts that are no more: {stale:?}");
}

#[test]
fn every_panel_speaks_of_metrics_there_are() {
    let board: Value = serde_json::from_str(&read("deploy/dashboard.json")).unwrap();
    let served = served();
    let mut used = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for p in board["panels"].as_array().unwrap() {
        assert!(ids.insert(p["id"].as_u64().unwrap()), "{} has another's id", p["title"]);
        let targets = p["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", p["title"]);
        for t in targets {
            used.extend(metrics(t["expr"].as_str().unwrap()));
        }
    }
    for v in board["templating"]["list"].as_array().unwrap().iter().filter(|v| v["type"] == "query") {
        used.extend(metrics(v["query"]["query"].as_str().unwrap()));
    }
    let unknown: Vec<_> = used.difference(&served).collect();
    assert!(unknown.is_empty(), "no such metric: {unknown:?}");
}
