//! The program as it is installed: the release build, which starts without any library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kernel::process::{inner, kill_pid, wait_for_end};
use kernel::{Netns, Spawn};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGUSR1: i32 = 10;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// The release build beside the one that cargo made for this test.
fn pause() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_seaway-pause")).parent().unwrap().parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--release", "--package", "seaway-pause", "--target-dir"]);
        assert!(build.arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        target.join("release/seaway-pause")
    })
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(pause()).args(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// One that runs, gone with this.
struct Running {
    child: Child,
    errors: File,
    /// The program itself, as this namespace counts: PID 1 of its own, or the child.
    pid: u32,
}

impl Running {
    fn start(first: bool) -> Self {
        let errors = tempfile();
        let mut p = Spawn::new(pause()).stderr(errors.try_clone().unwrap()).die_with_parent();
        if first {
            p = p.own_pids().netns(&Netns::new().unwrap());
        }
        let child = p.spawn().unwrap();
        let mut me = Self { pid: child.id(), child, errors };
        me.pid = soon(|| {
            let pid = if first { inner(me.child.id()) } else { me.child.id() };
            // Asleep: in its only wait, which it comes to with everything set.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            (status.starts_with("Name:\tseaway-pause\n") && status.contains("\nState:\tS")).then_some(pid)
        });
        me
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        self.errors.rewind().unwrap();
        self.errors.read_to_string(&mut text).unwrap();
        text
    }

    /// Its children: (process id, state letter).
    fn children(&self) -> Vec<(u32, char)> {
        let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap();
        let state = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        };
        text.split_whitespace().map(|p| p.parse().unwrap()).filter_map(|p| Some((p, state(p)?))).collect()
    }

    /// KiB of memory in use.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// Runs a shell in its namespaces, whose background processes become its children when the shell has ended.
    fn orphans(&self, script: &str) {
        let mut shell = Spawn::new("sh").args(["-c", script]).beside(self.pid).spawn().unwrap();
        assert!(shell.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tempfile() -> File {
    let path =
        std::env::temp_dir().join(format!("seaway-pause-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file
}

fn soon<T>(mut f: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "not within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn arguments() {
    let version = concat!("seaway-pause ", env!("CARGO_PKG_VERSION"), "\n");
    for v in ["-v", "-V", "--version"] {
        assert_eq!(run(&[v]), (Some(0), version.into(), String::new()));
    }
    let (code, usage, errors) = run(&["--help"]);
    assert!(code == Some(0) && usage.starts_with("usage: seaway-pause [-v | -h]\n") && errors.is_empty(), "{usage}");
    for bad in ["-x", "", "-vv", "--versio", "sleep"] {
        let (code, out, errors) = run(&[bad]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{bad:?}");
        assert_eq!(errors, format!("seaway-pause: unknown argument {bad}\n{usage}"));
    }
    // A version that nobody can have read is no success.
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(Command::new(pause()).arg("-v").stdout(full).status().unwrap().code(), Some(1));
}

#[test]
fn as_pid_1_it_ends_on_int_and_term_with_0_and_on_nothing_else() {
    for (signal, name) in [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM")] {
        let mut p = Running::start(true);
        assert_eq!(p.said(), "", "no warning for the first process");
        for other in [SIGHUP, SIGUSR1] {
            kill_pid(p.pid, other).unwrap();
        }
        assert!(!wait_for_end(p.pid, Duration::from_millis(100)).unwrap());
        kill_pid(p.pid, signal).unwrap();
        assert!(wait_for_end(p.child.id(), Duration::from_secs(1)).unwrap(), "{name} ends it");
        assert_eq!(p.child.wait().unwrap().code(), Some(0));
        assert_eq!(p.said(), format!("seaway-pause: {name}, ending\n"));
    }
}

#[test]
fn as_another_process_it_warns_and_carries_on() {
    let mut p = Running::start(false);
    assert!(p.said().starts_with("seaway-pause: warning: not the first process (PID 1)"), "{}", p.said());
    assert!(!wait_for_end(p.pid, Duration::from_millis(100)).unwrap());
    kill_pid(p.pid, SIGTERM).unwrap();
    assert_eq!(p.child.wait().unwrap().code(), Some(0));
}

#[test]
fn zombies_are_reaped() {
    let p = Running::start(true);
    // Held still, so that what would be a zombie for ever is seen to be one.
    kill_pid(p.pid, SIGSTOP).unwrap();
    p.orphans("for i in 1 2 3 4 5 6 7 8; do sleep 0.05 & done");
    soon(|| (p.children().len() == 8 && p.children().iter().all(|c| c.1 == 'Z')).then_some(()));
    kill_pid(p.pid, SIGCONT).unwrap();
    let begin = Instant::now();
    soon(|| p.children().is_empty().then_some(()));
    assert!(begin.elapsed() < Duration::from_secs(1));
    // And one at a time.
    p.orphans("sleep 0.05 & sleep 0.1 & sleep 0.15 &");
    assert_eq!(p.children().len(), 3, "{:?}", p.children());
    soon(|| p.children().is_empty().then_some(()));
}

#[test]
fn memory_does_not_grow() {
    let p = Running::start(true);
    let before = p.memory();
    for _ in 0..20 {
        p.orphans("for i in 1 2 3 4 5 6 7 8 9 10; do : & done");
    }
    soon(|| p.children().is_empty().then_some(()));
    let after = p.memory();
    println!("memory in use: {before} KiB, after 200 orphans {after} KiB; {} bytes on disk", size());
    assert!(after <= before && after < 100, "{before} KiB, then {after} KiB");
}

fn size() -> u64 {
    fs::metadata(pause()).unwrap().len()
}

#[test]
fn it_is_small_and_needs_no_dynamic_linker() {
    assert!(size() < 100 * 1024, "{} bytes", size());
    let elf = fs::read(pause()).unwrap();
    let number = |at: usize, len: usize| elf[at..at + len].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    // elf(5): e_ident (64 bit, little endian), e_type (ET_EXEC), e_phoff, e_phentsize, e_phnum; p_type of each
    assert_eq!((&elf[..6], number(16, 2)), (&b"\x7fELF\x02\x01"[..], 2));
    let (first, each, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<usize> = (0..count).map(|n| number(first + n * each, 4)).collect();
    let (load, dynamic, interpreter) = (1, 2, 3);
    assert!(kinds.contains(&load) && !kinds.contains(&dynamic) && !kinds.contains(&interpreter), "{kinds:?}");
}
