//! Alerts, dashboard and runbook speak of metrics that an agent serves, and of each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use telemetry::{Build, Metrics};

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// The labels of a series, and the values that each has.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// Every series that an agent serves, from what one serves before anything has happened: all of them, at zero.
fn served() -> BTreeMap<String, Labels> {
    let text = Metrics::new(Build { version: "v", commit: "c" }).encode();
    let mut all = BTreeMap::from([("up".to_owned(), Labels::new())]);
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = all.entry(name.to_owned()).or_default();
        for (label, value) in labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('=')) {
            known.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    assert!(all.len() > 40 && all["seaway_reconcile_total"]["result"].contains("failed"), "{all:?}");
    assert!(all["seaway_reconcile_duration_seconds_bucket"].contains_key("le"));
    all
}

/// The labels that Prometheus gives to whatever it scrapes.
const OF_TARGETS: [&str; 2] = ["instance", "job"];
/// How the alerts take agents to be scraped.
const JOB: &str = "seaway-agent";
/// Functions and operators of PromQL that ours use.
const KNOWN: &[&str] = &[
    "and",
    "by",
    "count",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "or",
    "rate",
    "sum",
    "time",
    "vector",
];
const AGGREGATIONS: [&str; 4] = ["count", "max", "min", "sum"];

/// What is asked of a label: its name, an operator, a value.
type Matcher = (String, String, String);

/// What an expression asks for.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    /// Metrics with what is asked of their labels.
    metrics: Vec<(String, Vec<Matcher>)>,
    /// Labels that are kept by an aggregation.
    by: BTreeSet<String>,
    aggregates: bool,
}

impl Asked {
    /// Reads the small part of PromQL that ours are written in.
    fn read(expr: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut rest = expr;
        while let Some(c) = rest.chars().next() {
            if c.is_ascii_alphabetic() {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let (word, more) = rest.split_at(end);
                rest = more.trim_start();
                if KNOWN.contains(&word) {
                    asked.aggregates |= AGGREGATIONS.contains(&word);
                    if let ("by", Some(list)) = (word, rest.strip_prefix('(')) {
                        let (names, more) = list.split_once(')').ok_or("by (")?;
                        asked.by.extend(names.split(',').map(|n| n.trim().to_owned()));
                        rest = more;
                    } else if word == "label_values" {
                        let (metric, label) = rest.trim_matches(['(', ')']).split_once(',').ok_or(word)?;
                        asked.metrics.push((metric.into(), vec![(label.trim().into(), "=~".into(), String::new())]));
                        rest = "";
                    }
                    continue;
                }
                let mut labels = Vec::new();
                if let Some(list) = rest.strip_prefix('{') {
                    let (inner, more) = list.split_once('}').ok_or_else(|| format!("{word} {{"))?;
                    for m in inner.split(',') {
                        let at = m.find(['=', '!']).ok_or(m)?;
                        let (label, m) = m.split_at(at);
                        let (op, value) = m.split_at(m.find('"').ok_or(m)?);
                        labels.push((label.trim().into(), op.into(), value.trim_matches('"').into()));
                    }
                    rest = more;
                }
                asked.metrics.push((word.into(), labels));
            } else if c == '[' {
                rest = rest.split_once(']').ok_or("[")?.1;
            } else if c.is_ascii_digit() {
                // Numbers, with an exponent.
                rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == 'e');
            } else {
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
            }
        }
        Ok(asked)
    }

    /// What of it no agent serves.
    fn wrong(&self, served: &BTreeMap<String, Labels>) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.metrics.is_empty() {
            wrong.push("asks nothing".to_owned());
        }
        for (metric, labels) in &self.metrics {
            let Some(has) = served.get(metric) else {
                wrong.push(format!("no metric {metric}"));
                continue;
            };
            for (label, op, value) in labels {
                match (has.get(label), label.as_str(), op.as_str()) {
                    (None, "job", "=") if value == JOB => {}
                    (None, "instance", _) => {}
                    (Some(values), _, "=" | "!=") if !values.contains(value) => {
                        wrong.push(format!("{metric} never has {label}={value:?}, but {values:?}"));
                    }
                    (Some(_), ..) => {}
                    (None, ..) => wrong.push(format!("{metric} has no label {label}{op}{value:?}")),
                }
            }
            for label in self.by.iter().filter(|l| !has.contains_key(*l) && !OF_TARGETS.contains(&l.as_str())) {
                wrong.push(format!("by {label}, which {metric} has not"));
            }
        }
        wrong
    }

    /// What of a text's `{{...}}` the result has not; `mark` is what stands before a label's name.
    fn unfilled(&self, served: &BTreeMap<String, Labels>, text: &str, mark: &str) -> Vec<String> {
        let words = text.split("{{").skip(1).filter_map(|t| t.split("}}").next());
        let labels = words.flat_map(|w| w.split(['|', ' '])).filter_map(|w| w.trim().strip_prefix(mark));
        let first = self.metrics.first().and_then(|(m, _)| served.get(m));
        let has = |l: &str| {
            if self.aggregates {
                self.by.contains(l) && l != "le"
            } else {
                OF_TARGETS.contains(&l) || first.is_some_and(|m| m.contains_key(l))
            }
        };
        labels
            .filter(|l| !l.is_empty() && !l.starts_with('$') && !has(l))
            .map(|l| format!("{{{{{l}}}}} is empty"))
            .collect()
    }
}

#[test]
fn wrong_expressions_are_found() {
    let served = served();
    let wrong = |expr: &str| Asked::read(expr).unwrap().wrong(&served);
    for (expr, part) in [
        ("seaway_peer > 0", "no metric seaway_peer"),
        ("rate(seaway_reconcile_total{plain=\"fabric\"}[5m])", "no label plain"),
        ("rate(seaway_reconcile_total{result=\"failure\"}[5m])", "never has result=\"failure\""),
        ("sum by (instance, plane) (seaway_peers)", "by plane, which seaway_peers has not"),
        ("up{job=\"seaway\"}", "no label job"),
        ("label_values(seaway_peers, plane)", "no label plane"),
        ("time() - 5e3", "asks nothing"),
    ] {
        let found = wrong(expr);
        assert!(found.len() == 1 && found[0].contains(part), "{expr}: {found:?}");
    }
    let good = "histogram_quantile(0.99, sum by (plane, le) (rate(seaway_reconcile_duration_seconds_bucket{instance=~\"$i\"}[5m]))) > 200e6";
    assert_eq!(wrong(good), [""; 0]);
    let unfilled = |text| Asked::read(good).unwrap().unfilled(&served, text, "$labels.");
    assert_eq!(unfilled("{{ $labels.plane }} {{ $value | humanize }}"), [""; 0]);
    assert_eq!(unfilled("{{ $labels.instance }} {{$labels.le}}").len(), 2);
    assert_eq!(Asked::read("seaway_peers").unwrap().unfilled(&served, "{{instance}} {{kind}}", "").len(), 1);
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
        let asked = Asked::read(rule["expr"].as_str().unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(asked.wrong(&served), [""; 0], "{name}");
        assert!(headings.contains(name), "docs/operations.md has no section `### {name}`");
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert_eq!(url, format!("docs/operations.md#{}", name.to_lowercase()));
        for field in ["summary", "description"] {
            let text = rule["annotations"][field].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{name} {field}");
            assert_eq!(asked.unfilled(&served, text, "$labels."), [""; 0], "{name} {field}");
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
    let mut ids = BTreeSet::new();
    let right = |title: &str, expr: &str, legend: &str| {
        let asked = Asked::read(expr).unwrap_or_else(|e| panic!("{title}: {e}"));
        assert_eq!(asked.wrong(&served), [""; 0], "{title}: {expr}");
        assert_eq!(asked.unfilled(&served, legend, ""), [""; 0], "{title}: {expr}");
    };
    for p in board["panels"].as_array().unwrap() {
        let title = p["title"].as_str().unwrap();
        assert!(ids.insert(p["id"].as_u64().unwrap()), "{title} has another's id");
        let targets = p["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for t in targets {
            right(title, t["expr"].as_str().unwrap(), t["legendFormat"].as_str().unwrap_or_default());
        }
    }
    for v in board["templating"]["list"].as_array().unwrap().iter().filter(|v| v["type"] == "query") {
        right("a variable", v["query"]["query"].as_str().unwrap(), "");
    }
}
