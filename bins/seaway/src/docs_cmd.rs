//! `seaway man` and `seaway completions`: written from the same table of commands that parses them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

/// Where manual pages go.
#[derive(clap::Args)]
pub struct ManArgs {
    /// An existing folder
    dir: PathBuf,
}

/// Which shell.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    shell: clap_complete::Shell,
}

/// Writes one page per command.
pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let mut root = crate::Cli::command();
    root.build();
    pages(&root, "seaway", &args.dir)?;
    Ok(ExitCode::SUCCESS)
}

fn pages(cmd: &clap::Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(cmd.clone().name(name.to_owned()).bin_name(name.replace('-', " ")))
        .render(&mut page)
        .context("render a manual page")?;
    let file = dir.join(format!("{name}.1"));
    std::fs::write(&file, page).with_context(|| format!("write {}", file.display()))?;
    for sub in cmd.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "seaway", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
