//! `seaway install-cni`: the plugin and its names into the folder where container runtimes look. It is what the init
//! container of the DaemonSet runs: the image has no shell.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;

/// The plugin's file name.
const NAME: &str = "seaway-cni";

/// The installer's flags.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  seaway install-cni --to /opt/cni/bin\n\n\
    A running plugin is replaced, not written into. A newer version that is there already stays, and so does a file\n\
    of another's that has the name of one of the plugins.")]
pub struct InstallArgs {
    /// Where container runtimes look for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    to: PathBuf,
    /// The plugin to install [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Install it even where a newer one is
    #[arg(long)]
    force: bool,
}

/// Installs.
pub fn run(args: &InstallArgs) -> anyhow::Result<ExitCode> {
    let from = match &args.from {
        Some(f) => f.clone(),
        None => std::env::current_exe().context("where this program is")?.with_file_name(NAME),
    };
    fs::create_dir_all(&args.to).with_context(|| format!("make {}", args.to.display()))?;
    let file = args.to.join(NAME);
    match plugin(&from, &file, args.force).with_context(|| format!("install {}", file.display()))? {
        Did::Installed => println!("installed {} {}", file.display(), env!("CARGO_PKG_VERSION")),
        Did::Same => println!("{} is there already", file.display()),
        Did::Newer(v) => println!("{} is {v}, newer than {}, and stays", file.display(), env!("CARGO_PKG_VERSION")),
    }
    for kept in links(&args.to, plugins::NAMES).with_context(|| format!("link into {}", args.to.display()))? {
        println!("{} is another's and stays", args.to.join(kept).display());
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, PartialEq, Eq)]
enum Did {
    Installed,
    /// Byte for byte.
    Same,
    /// Of this version.
    Newer(String),
}

/// Brings the plugin to `file`, by way of a second name: a runtime finds the old one or the new one, whole.
fn plugin(from: &Path, file: &Path, force: bool) -> io::Result<Did> {
    let named = |e: io::Error, p: &Path| io::Error::new(e.kind(), format!("{}: {e}", p.display()));
    let mut want = Vec::new();
    File::open(from).and_then(|mut f| f.read_to_end(&mut want)).map_err(|e| named(e, from))?;
    if fs::read(file).is_ok_and(|have| have == want) {
        return Ok(Did::Same);
    }
    if !force && let Some(there) = version(file).filter(|v| numbers(v) > numbers(env!("CARGO_PKG_VERSION"))) {
        return Ok(Did::Newer(there));
    }
    let new = file.with_file_name(format!(".{NAME}.new"));
    // A folder or a link of that name is not followed; what an installer that was killed has left is not in the way.
    let _ = fs::remove_file(&new);
    let write = || {
        let mut f = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&new)?;
        f.write_all(&want)?;
        f.sync_all()?;
        drop(f);
        fs::rename(&new, file)?;
        sync(file)
    };
    write().map(|()| Did::Installed).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// The reference plugins' names as links to ours. Gives the names that another's files have.
fn links(dir: &Path, names: &[&'static str]) -> io::Result<Vec<&'static str>> {
    let mut kept = Vec::new();
    for name in names {
        let link = dir.join(name);
        match fs::read_link(&link) {
            Ok(to) if to == Path::new(NAME) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => symlink(NAME, &link)?,
            _ => kept.push(*name),
        }
    }
    sync(&dir.join(NAME))?;
    Ok(kept)
}

/// The names in the folder of `file` outlive a loss of power.
fn sync(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The version that an installed plugin says it is: `seaway-cni 0.1.0: ...`.
fn version(file: &Path) -> Option<String> {
    if !file.is_file() {
        return None;
    }
    let mut c = Command::new(file);
    // What it prints for people; nothing of ours is in its environment.
    let out = c.env_clear().stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut words = text.split_whitespace();
    (words.next()? == NAME).then(|| words.next().map(|v| v.trim_end_matches(':').to_owned()))?
}

/// `1.2.3` as numbers; a pre-release (`1.2.3-rc1`) comes before its release.
fn numbers(version: &str) -> (Vec<u64>, bool) {
    let (core, pre) = version.split_once('-').map_or((version, false), |(c, _)| (c, true));
    (core.split('.').map(|n| n.parse().unwrap_or(0)).collect(), !pre)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(path: &Path, version: &str) {
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path).unwrap();
        write!(f, "#!/bin/sh\necho 'seaway-cni {version}: the CNI plugin of Seaway'\n").unwrap();
    }

    #[test]
    fn a_newer_one_stays_and_an_older_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, file) = (dir.path().join("ours"), dir.path().join("to").join(NAME));
        fs::create_dir(dir.path().join("to")).unwrap();
        script(&ours, env!("CARGO_PKG_VERSION"));
        assert_eq!(plugin(&ours, &file, false).unwrap(), Did::Installed);
        assert_eq!(plugin(&ours, &file, false).unwrap(), Did::Same);
        script(&file, "999.0.1");
        assert_eq!(plugin(&ours, &file, false).unwrap(), Did::Newer("999.0.1".into()));
        assert_eq!(plugin(&ours, &file, true).unwrap(), Did::Installed);
        for old in ["0.0.9", "", "garbage"] {
            script(&file, old);
            assert_eq!(plugin(&ours, &file, false).unwrap(), Did::Installed, "{old:?}");
        }
        fs::write(&file, "no program").unwrap();
        assert_eq!(plugin(&ours, &file, false).unwrap(), Did::Installed);
        assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 1, "nothing is left beside it");
        let e = plugin(&dir.path().join("none"), &file, false).unwrap_err().to_string();
        assert!(e.contains("none"), "{e}");
    }

    #[test]
    fn links_are_made_once_and_anothers_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bridge"), "another's").unwrap();
        symlink("/elsewhere", dir.path().join("tap")).unwrap();
        for _ in 0..2 {
            assert_eq!(links(dir.path(), plugins::NAMES).unwrap(), ["bridge", "tap"]);
        }
        assert_eq!(fs::read_link(dir.path().join("host-local")).unwrap(), Path::new(NAME));
        assert_eq!(fs::read(dir.path().join("bridge")).unwrap(), b"another's");
    }

    #[test]
    fn versions_in_order() {
        let all = ["0.1.0", "0.2.0-rc1", "0.2.0", "0.10.0", "1.0.0"];
        assert!(all.windows(2).all(|w| numbers(w[0]) < numbers(w[1])), "{all:?}");
    }
}
