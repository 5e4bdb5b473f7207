//! The harness itself: a test that fails, crashes, hangs or takes the machine with it is seen as such. The cases are
//! ignored tests of this file; the tests run this binary again for some of them and read what it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kernel::Spawn;
use vm::in_vm;

/// Runs cases of this file in one machine; what libtest says of them.
fn cases(prefix: &str) -> String {
    let out = Command::new(std::env::current_exe().unwrap())
        .args([prefix, "--ignored", "--test-threads=1"])
        .env(vm::LIMIT, "5")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn each_case_has_its_own_end_and_the_next_one_runs() {
    let said = cases("case_");
    for (name, how) in [
        ("case_a_passes", "ok"),
        ("case_b_fails", "FAILED"),
        ("case_c_aborts", "FAILED"),
        ("case_d_never_ends", "FAILED"),
        ("case_e_sees_nothing_of_the_others", "ok"),
    ] {
        assert!(said.contains(&format!("test {name} ... {how}\n")), "{name} is not {how}:\n{said}");
    }
    assert!(said.contains("two is three") && said.contains("ended after 5 s"), "{said}");
}

#[test]
fn a_panic_of_the_kernel_fails_what_had_no_result_and_shows_the_console() {
    let said = cases("crash_");
    assert!(said.contains("test crash_a_passes ... ok\n"), "{said}");
    assert!(said.contains("test crash_b_panics ... FAILED\n") && said.contains("test crash_c ... FAILED\n"), "{said}");
    // The panic's own first line may be above what is shown.
    assert!(said.contains("Kernel panic") || said.contains("sysrq_handle_crash"), "{said}");
}

#[test]
fn a_killed_test_leaves_no_machine() {
    let exe = std::env::current_exe().unwrap();
    let out = tempfile::tempfile().unwrap();
    let mut test = Spawn::new(exe)
        .args(["case_d", "--ignored"])
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .die_with_parent()
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let qemu = loop {
        if let Some(pid) = child_of(test.id()) {
            break pid;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "no machine was started");
        std::thread::sleep(Duration::from_millis(20));
    };
    test.kill().unwrap();
    test.wait().unwrap();
    assert!(kernel::process::wait_for_end(qemu, Duration::from_secs(5)).unwrap(), "qemu {qemu} lives on");
}

/// A qemu that is a child of any thread of this process.
fn child_of(pid: u32) -> Option<u32> {
    std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.find_map(|task| {
        let children = std::fs::read_to_string(task.ok()?.path().join("children")).ok()?;
        children.split_whitespace().find_map(|c| {
            let name = std::fs::read_to_string(format!("/proc/{c}/comm")).ok()?;
            name.starts_with("qemu").then(|| c.parse().ok())?
        })
    })
}

#[test]
#[ignore = "a case of the tests above"]
#[allow(clippy::zombie_processes)] // that is the case
fn case_a_passes() {
    in_vm!();
    // Left to the end of the test's namespaces.
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    std::fs::write("/tmp/left", "").unwrap();
    std::fs::create_dir("/run/netns").unwrap();
    assert!(Command::new("ip").args(["link", "add", "d0", "type", "dummy"]).status().unwrap().success());
    kernel::Netns::create("/run/netns/left").unwrap();
}

#[test]
#[ignore = "a case of the tests above"]
fn case_b_fails() {
    in_vm!();
    panic!("two is three");
}

#[test]
#[ignore = "a case of the tests above"]
fn case_c_aborts() {
    in_vm!();
    std::process::abort();
}

#[test]
#[ignore = "a case of the tests above"]
fn case_d_never_ends() {
    in_vm!();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
#[ignore = "a case of the tests above"]
fn case_e_sees_nothing_of_the_others() {
    in_vm!();
    assert!(!Path::new("/tmp/left").exists() && !Path::new("/run/netns").exists());
    let names = |dir: &str| {
        let mut all: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        all.sort();
        all
    };
    // /sys shows this namespace, not the machine's first one.
    assert_eq!(names("/sys/class/net"), ["lo"]);
    let pids: Vec<String> = names("/proc").into_iter().filter(|n| n.parse::<u32>().is_ok()).collect();
    assert_eq!(pids, ["1"], "only this test's process");
}

#[test]
#[ignore = "a case of the tests above"]
fn crash_a_passes() {
    in_vm!();
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/panic").unwrap().trim(), "-1");
}

#[test]
#[ignore = "a case of the tests above"]
fn crash_b_panics() {
    in_vm!();
    std::fs::write("/proc/sysrq-trigger", "c").unwrap();
}

#[test]
#[ignore = "a case of the tests above"]
fn crash_c() {
    in_vm!();
}
