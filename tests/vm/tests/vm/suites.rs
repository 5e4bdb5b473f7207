//! The tests of crate `kernel`, on this kernel too: Debian's is older than the one that Seaway is developed on.

use std::process::Command;

use vm::in_vm;

/// Need a machine where a dump of 120 or 240 links, or of some thousand elements, is done between two changes of a loop
/// that makes changes only: not this one.
const TOO_FAST: [&str; 3] = [
    "dumps_are_whole_while_links_come_and_go",
    "readings_are_whole_while_everything_changes",
    "a_table_is_read_whole_while_others_commit",
];

/// Runs a test binary of that crate.
fn suite(name: &str) {
    let mut tests = Command::new(format!("{}/{name}", vm::SUITES));
    tests.arg("--test-threads=1").args(TOO_FAST.iter().flat_map(|t| ["--skip", t]));
    let out = tests.output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name}: {}", out.status);
}

/// One that is added there is added here.
#[test]
fn none_is_missing() {
    in_vm!();
    let mut there: Vec<String> = std::fs::read_dir(vm::SUITES)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n != "decoders") // knows no kernel
        .collect();
    there.sort();
    let here = [
        "exec",
        "links",
        "neighbours",
        "netns",
        "nft",
        "nft_roundtrip",
        "packets",
        "proc_sys",
        "process",
        "rt",
        "tc",
        "watch",
    ];
    assert_eq!(there, here);
}

#[test]
fn kernel_exec() {
    in_vm!();
    suite("exec");
}

#[test]
fn kernel_links() {
    in_vm!();
    suite("links");
}

#[test]
fn kernel_neighbours() {
    in_vm!();
    suite("neighbours");
}

#[test]
fn kernel_netns() {
    in_vm!();
    suite("netns");
}

#[test]
fn kernel_nft() {
    in_vm!();
    suite("nft");
}

#[test]
fn kernel_nft_roundtrip() {
    in_vm!();
    suite("nft_roundtrip");
}

#[test]
fn kernel_packets() {
    in_vm!();
    suite("packets");
}

#[test]
fn kernel_proc_sys() {
    in_vm!();
    suite("proc_sys");
}

#[test]
fn kernel_process() {
    in_vm!();
    suite("process");
}

#[test]
fn kernel_rt() {
    in_vm!();
    suite("rt");
}

#[test]
fn kernel_tc() {
    in_vm!();
    suite("tc");
}

#[test]
fn kernel_watch() {
    in_vm!();
    suite("watch");
}
