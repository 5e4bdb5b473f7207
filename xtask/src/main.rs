//! Owns: the checks of the house that the compiler cannot make: doors between crates, licences of dependencies, the
//! opening lines of each library, the length of files; and image archives out of what was built.
//! Never does: build, download or change anything but the archive it is asked for.
//! Tested by: unit tests here, on this workspace and on made-up ones that break each rule.

mod chart;
mod deps;
mod doors;
mod image;
mod licences;
mod manifest;
mod metadata;
mod settings;
mod sources;
mod tar;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use metadata::Metadata;

const HELP: &str = "\
cargo xtask COMMAND: the checks of the house that the compiler cannot make

  check            all of the below
  check-deps       no edge between our crates that docs/design.md does not draw; who sees tokio; who has unsafe
  check-licences   every dependency has a licence that fits Apache-2.0
  check-lib-docs   each lib.rs opens with what it owns, never does and is tested by
  check-files      no source file grows past 600 lines unless listed with a reason
  check-manifest   deploy/seaway.yaml has the definitions of deploy/crds and the table of settings, the chart is the manifest
  manifest         write them
  doors            print the doors with the reason for each
  image            write an OCI image archive; `cargo xtask image` alone says how

Exit code 0: nothing found. 1: findings, one a line.
";

/// The folder of the workspace: cargo sets the variable when it runs us.
fn root() -> Result<PathBuf> {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as: cargo xtask COMMAND")?;
    Ok(PathBuf::from(xtask).parent().context("xtask has a parent folder")?.to_path_buf())
}

fn run(command: &str) -> Result<Vec<String>> {
    let root = root()?;
    Ok(match command {
        "check-deps" => {
            let mut found = deps::check(&Metadata::load(&root)?);
            found.extend(deps::check_unsafe(&root)?);
            found
        }
        "check-licences" => licences::check(&Metadata::load(&root)?),
        "check-lib-docs" => sources::check_lib_docs(&root)?,
        "check-files" => sources::check_lengths(&root)?,
        "check-manifest" => manifest::check(&root)?,
        "manifest" => {
            manifest::write(&root)?;
            Vec::new()
        }
        "check" => {
            let meta = Metadata::load(&root)?;
            let mut found = deps::check(&meta);
            found.extend(deps::check_unsafe(&root)?);
            found.extend(licences::check(&meta));
            found.extend(sources::check_lib_docs(&root)?);
            found.extend(sources::check_lengths(&root)?);
            found.extend(manifest::check(&root)?);
            found
        }
        "doors" => {
            for d in doors::DOORS {
                println!("{:<12} may use {:<12}{} {}", d.from, d.to, if d.dev { " in tests:" } else { ":" }, d.why);
            }
            Vec::new()
        }
        other => bail!("{other:?} is no command\n\n{HELP}"),
    })
}

fn written(image: Result<image::Written>) -> ExitCode {
    match image {
        Ok(w) => {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let packed =
                if w.layer == w.unpacked { String::new() } else { format!(", {:.1} MiB packed", mib(w.layer)) };
            println!("{} {:.1} MiB{packed}", w.digest, mib(w.unpacked));
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("image: {e:#}");
            ExitCode::from(1)
        }
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|a| a == "image").is_some() {
        return written(image::Spec::parse(args).and_then(|s| image::write(&s)));
    }
    let (Some(command), None) = (args.next(), args.next()) else {
        print!("{HELP}");
        return ExitCode::from(2);
    };
    match run(&command) {
        Ok(found) if found.is_empty() => {
            if command.starts_with("check") {
                println!("{command}: ok");
            }
            ExitCode::SUCCESS
        }
        Ok(found) => {
            for f in &found {
                eprintln!("{f}");
            }
            eprintln!("{command}: {} found", found.len());
            ExitCode::from(1)
        }
        Err(e) => {
            eprintln!("{command}: {e:#}");
            ExitCode::from(1)
        }
    }
}
