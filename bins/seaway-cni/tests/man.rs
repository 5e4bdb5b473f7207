//! The manual pages of the programs that have no table of commands to make them from: they render without a complaint,
//! and say what the programs know.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A page as a person sees it, without what stands for bold and underlined; hyphenation would hide words.
fn rendered(name: &str) -> String {
    let file = root().join("deploy/man").join(name);
    let out = Command::new("groff")
        .args(["-man", "-ww", "-Tascii", "-P-c", "-P-b", "-P-u", "-rHY=0", "-rLL=110n"])
        .arg(&file)
        .output()
        .expect("groff: apt-get install groff-base");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "{name}: {said}");
    String::from_utf8(out.stdout).unwrap()
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_seaway-cni"));
    c.args(args).envs(env.iter().copied()).stdin(std::process::Stdio::null()).output().unwrap()
}

#[test]
fn the_plugins_page_says_what_it_knows() {
    let page = rendered("seaway-cni.1");
    let has = |word: &str| {
        page.split(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c))).any(|w| w.trim_matches('-') == word)
    };
    for section in ["NAME", "SYNOPSIS", "ENVIRONMENT", "CONFIGURATION", "EXIT STATUS", "FILES", "SEE ALSO"] {
        assert!(page.lines().any(|l| l.trim_end() == section), "{section}: {page}");
    }
    let plugins = String::from_utf8(run(&["plugins"], &[]).stdout).unwrap();
    assert!(plugins.lines().count() > 15);
    plugins.lines().for_each(|p| assert!(has(p), "plugin {p}"));
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
        assert!(has(name), "{name}");
    }
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
        assert!(has(verb), "{verb}");
    }
    // An unknown field is refused with the list of those that are known.
    let wrong = br#"{"cniVersion": "1.1.0", "name": "n", "type": "seaway-cni", "nothing": 1}"#;
    let known = cni::NetConf::parse(wrong).unwrap_err().details;
    let known = known.strip_prefix("known are ").unwrap();
    known.split(", ").for_each(|f| assert!(has(f), "field {f}"));
    let help = String::from_utf8(run(&["dhcp", "daemon", "-help"], &[]).stdout).unwrap();
    let flags: Vec<&str> = help.lines().filter_map(|l| l.trim().strip_prefix('-')?.split(' ').next()).collect();
    assert!(flags.len() >= 8, "{flags:?}");
    flags.iter().for_each(|f| assert!(has(f), "flag -{f}"));
}

#[test]
fn the_page_of_the_process_that_holds_a_pod_says_what_it_knows() {
    let page = rendered("seaway-pause.1");
    for word in ["--version", "--help", "-V", "SIGINT", "SIGTERM", "zombies", "PID 1"] {
        assert!(page.contains(word), "{word}: {page}");
    }
}

/// `make install` puts every page that is here where `man` looks, and `make uninstall` takes it away.
#[test]
fn pages_are_installed_and_removed() {
    let make = |target: &str| {
        let mut c = Command::new("make");
        c.args(["-n", "-C"]).arg(root()).args([target, "DESTDIR=/nowhere", "PREFIX=/usr"]);
        let out = c.output().expect("make: apt-get install make");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let (install, remove) = (make("install"), make("uninstall"));
    for page in ["seaway-cni.1", "seaway-pause.1"] {
        let line = install.lines().find(|l| l.contains(&format!("deploy/man/{page}")));
        assert!(line.is_some_and(|l| l.contains("/nowhere/usr/share/man/man1")), "{install}");
    }
    assert!(remove.contains("/nowhere/usr/share/man/man1/seaway-*.1"), "{remove}");
}
