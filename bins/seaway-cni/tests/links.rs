//! `deploy/cni-links`: names that are free become links to seaway-cni; others' files stay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

fn run(what: &str, dir: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/cni-links");
    let out = Command::new(script).args([what, dir.to_str().unwrap()]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn links_are_made_and_removed_and_others_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n);
    fs::copy(env!("CARGO_BIN_EXE_seaway-cni"), at("seaway-cni")).unwrap();
    fs::write(at("bridge"), "the reference").unwrap();
    symlink("/usr/lib/cni/ptp", at("ptp")).unwrap();
    symlink("seaway-cni", at("static")).unwrap();
    for _ in 0..2 {
        let said = run("install", dir.path());
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("bridge is another's") && said.contains("ptp is another's"));
    }
    for name in plugins::NAMES.iter().filter(|n| !["bridge", "ptp"].contains(n)) {
        assert_eq!(fs::read_link(at(name)).unwrap(), Path::new("seaway-cni"), "{name}");
        let out = Command::new(at(name)).env("CNI_COMMAND", "VERSION").output().unwrap();
        assert!(String::from_utf8(out.stdout).unwrap().contains("supportedVersions"), "{name}");
    }
    run("remove", dir.path());
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["bridge", "ptp", "seaway-cni"]);
    assert_eq!(fs::read_to_string(at("bridge")).unwrap(), "the reference");
}
