//! `docs/settings.md`, from the table.

use std::fmt::Write as _;

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
