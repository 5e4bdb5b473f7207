//! `docs/settings.md`, from the table, and `docs/metrics.md`, from the metrics themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::controllers::Controllers;
use crate::metrics::{Build, Metrics};
use crate::settings::{COMMANDS, Place, SETTINGS, Setting};

const OPENING: &str = "\
# Settings

Written from the table in `crates/telemetry/src/settings.rs`. To change this page, change the table and run
`BLESS=1 cargo test -p seaway-telemetry`.

Two kinds of things can be set:

- what is the same on every node: in the data of ConfigMap `kube-system/seaway`. Agents and controllers watch it; a
  change needs no restart. An unknown key or a wrong value keeps the default and is said in the log and in the
  agent's `/status`, with the key and what would be right;
- what belongs to one process: a flag, else an environment variable, else the default. A wrong value ends the process
  before it touches anything.

## The cluster: ConfigMap `kube-system/seaway`

```yaml
apiVersion: v1
kind: ConfigMap
metadata: { name: seaway, namespace: kube-system }
data:
  backend: host-gw
  clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
```

| key | type | default | what it does |
|---|---|---|---|
";

fn default(s: &Setting) -> String {
    if s.default.is_empty() { "not set".to_owned() } else { format!("`{}`", s.default) }
}

/// The whole page.
#[must_use]
pub fn settings_page() -> String {
    let mut out = OPENING.to_owned();
    for s in SETTINGS {
        if let Place::ConfigMap { key } = s.place {
            let _ = writeln!(out, "| `{key}` | {} | {} | {} |", s.kind, default(s), s.help);
        }
    }
    for command in COMMANDS {
        let _ = write!(
            out,
            "\n## `seaway {command}`\n\n| flag | environment | type | default | what it does |\n|---|---|---|---|---|\n"
        );
        for s in SETTINGS.iter().filter(|s| s.is_flag_of(command)) {
            if let Place::Process { flag, env, .. } = s.place {
                let env = env.map_or_else(String::new, |e| format!("`{e}`"));
                let _ = writeln!(out, "| `--{flag}` | {env} | {} | {} | {} |", s.kind, default(s), s.help);
            }
        }
    }
    out
}

const METRICS: &str = "\
# Metrics

Written from the metrics that an agent serves at `/metrics` (OpenMetrics). To change this page, change
`crates/telemetry/src/metrics.rs` or `proxy.rs` and run `BLESS=1 cargo test -p seaway-telemetry`.

Label values come from fixed sets, so the number of series does not grow with the cluster. Names that begin with
`kubeproxy_` are kube-proxy's, with its labels and buckets, where the meaning is the same, so its dashboards and alerts go on
working. A pass serves both families at once: what it says is said of each family that the node has. kube-proxy's other
metrics speak of what is not here: iptables rules, cleanups of nftables chains.

| metric | type | labels | what |
|---|---|---|---|
";

const CONTROLLERS: &str = "
## `seaway controller`

What controllers serve with `--status-listen`, from `crates/telemetry/src/controllers.rs`:

| metric | type | labels | what |
|---|---|---|---|
";

/// The whole page of metrics.
#[must_use]
pub fn metrics_page() -> String {
    let build = Build { version: "", commit: "" };
    let agent = rows(&Metrics::new(build).encode());
    format!("{METRICS}{agent}{CONTROLLERS}{}", rows(&Controllers::new(build).encode(0)))
}

/// A row for each metric of a scrape.
fn rows(text: &str) -> String {
    let (mut help, mut kind, mut labels) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match *words.as_slice() {
            ["#", "HELP", name, what] => drop(help.insert(name, what.trim_end_matches('.'))),
            ["#", "TYPE", name, what] => drop(kind.insert(name, what)),
            ["#", ..] => {}
            _ => {
                let (series, rest) = line.split_once('{').unwrap_or((line, ""));
                let set = rest.split('}').next().unwrap_or_default();
                let names = set.split(',').filter_map(|l| l.split_once('=')).map(|(n, _)| n).filter(|n| *n != "le");
                labels
                    .entry(series.split(' ').next().unwrap_or(series))
                    .or_insert(names.collect::<Vec<_>>().join(", "));
            }
        }
    }
    let mut out = String::new();
    for (name, what) in help {
        let kind = kind.get(name).copied().unwrap_or_default();
        // A sample is the name, or the name with what its type adds.
        let (end, shown) = match kind {
            "counter" => ("_total", "_total"),
            "info" => ("_info", "_info"),
            "histogram" => ("_count", ""),
            _ => ("", ""),
        };
        let labels = labels.get(format!("{name}{end}").as_str()).cloned().unwrap_or_default();
        let _ = writeln!(out, "| `{name}{shown}` | {kind} | {labels} | {what} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_page_in_docs_is_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
        let page = settings_page();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &page).unwrap();
        }
        let have = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(have, page, "docs/settings.md is old: BLESS=1 cargo test -p seaway-telemetry");
    }

    #[test]
    fn the_page_of_metrics_is_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let page = metrics_page();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &page).unwrap();
        }
        let have = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(have, page, "docs/metrics.md is old: BLESS=1 cargo test -p seaway-telemetry");
        assert!(page.contains("| `kubeproxy_proxy_healthz_total` | counter | code |"), "{page}");
    }

    #[test]
    fn every_setting_is_on_the_page() {
        let page = settings_page();
        for s in SETTINGS {
            let (cell, times) = match s.place {
                Place::ConfigMap { key } => (format!("| `{key}` |"), 1),
                Place::Process { flag, commands, .. } => (format!("| `--{flag}` |"), commands.len()),
            };
            assert_eq!(page.matches(&cell).count(), times, "{}", s.name());
        }
    }
}
