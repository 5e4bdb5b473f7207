//! The command line and the ConfigMap's parser against the one table of settings in `telemetry`.

use std::collections::BTreeMap;

use clap::CommandFactory;
use telemetry::settings::{COMMANDS, Place, SETTINGS};

/// Flag, variable and default of every argument that takes a value.
fn flags(command: &str) -> BTreeMap<String, (Option<String>, String)> {
    let mut root = crate::Cli::command();
    root.build();
    let sub = root.find_subcommand(command).unwrap_or_else(|| panic!("seaway {command} exists"));
    sub.get_arguments()
        .filter(|a| !a.is_positional() && a.get_action().takes_values())
        .map(|a| {
            let env = a.get_env().map(|e| e.to_string_lossy().into_owned());
            let default: Vec<_> = a.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
            (a.get_long().unwrap_or_default().to_owned(), (env, default.join(",")))
        })
        .collect()
}

#[test]
fn the_command_line_is_the_table() {
    for command in COMMANDS {
        let table: BTreeMap<_, _> = SETTINGS
            .iter()
            .filter(|s| s.is_flag_of(command))
            .filter_map(|s| match s.place {
                Place::Process { flag, env, .. } => {
                    Some((flag.to_owned(), (env.map(ToOwned::to_owned), s.default.to_owned())))
                }
                Place::ConfigMap { .. } => None,
            })
            .collect();
        assert_eq!(flags(command), table, "seaway {command} (left) and crates/telemetry/src/settings.rs (right)");
    }
}

#[test]
fn the_config_map_is_the_table() {
    let rows: Vec<(&str, &str)> = SETTINGS
        .iter()
        .filter_map(|s| match s.place {
            Place::ConfigMap { key } => Some((key, s.default)),
            Place::Process { .. } => None,
        })
        .collect();
    let (read, problems) = resolve::Settings::parse(rows.iter().copied());
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(read, resolve::Settings { present: true, ..resolve::Settings::default() }, "the table's defaults");
    // The parser's own list of keys, from its answer to one that is none.
    let (_, problems) = resolve::Settings::parse([("no-such-key", "x")]);
    for (key, _) in &rows {
        assert!(problems[0].why.contains(key), "{key}: {}", problems[0].why);
    }
    let listed = problems[0].why.rsplit("correct it to ").next().unwrap_or_default();
    assert_eq!(listed.replace(" or ", ", ").split(", ").count(), rows.len(), "{listed}");
}
