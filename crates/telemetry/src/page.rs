//! `docs/settings.md`, from the table.

use std::fmt::Write as _;

use crate::settings::SETTINGS;

/// The whole page.
#[must_use]
pub fn settings_page() -> String {
    let mut out = String::from(
        "# Settings\n\n\
        Written from the table in `crates/telemetry/src/settings.rs`; to change this page, change the table and run\n\
        `BLESS=1 cargo test -p seaway-telemetry`.\n\n\
        Each setting of `seaway agent` can be given in three ways. The first that is given wins:\n\n\
        1. on the command line: `--vxlan-port 4789` (or `--vxlan-port=4789`);\n\
        2. in the environment: `SEAWAY_` and the name in capitals, dashes as underscores: `SEAWAY_VXLAN_PORT=4789`;\n\
        3. in a folder named by `--config-dir`, as a file named like the setting: a ConfigMap whose keys are the\n   \
        settings' names, mounted as a volume. A key that is no setting is an error.\n\n\
        A wrong value stops the agent before it touches anything, with the place, the value and what would be right;\n\
        all that is wrong is said at once.\n",
    );
    let mut section = "";
    for s in SETTINGS {
        if s.section != section {
            section = s.section;
            let _ = write!(
                out,
                "\n## {section}\n\n| setting | type | default | environment | ConfigMap key |\n|---|---|---|---|---|\n"
            );
            for row in SETTINGS.iter().filter(|r| r.section == section) {
                let default = if row.default.is_empty() { "not set".to_owned() } else { format!("`{}`", row.default) };
                let _ = writeln!(
                    out,
                    "| `{}` | {} | {default} | `{}` | `{}` |",
                    row.flag(),
                    row.kind,
                    row.env(),
                    row.key()
                );
            }
            out.push('\n');
        }
        let _ = writeln!(out, "- `{}`: {}", s.flag(), s.help);
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
        for s in SETTINGS {
            assert_eq!(page.matches(&format!("- `{}`: ", s.flag())).count(), 1, "{}", s.name);
        }
    }
}
