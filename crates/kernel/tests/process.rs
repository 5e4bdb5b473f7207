//! Processes in namespaces, mounts, locks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kernel::process::{
    bind_mount, end_processes_in_netns, inner, lock_file, mount, mounts_under, umount, wait_for_end,
};
use kernel::{Netns, Spawn, kill_pid, processes_in_netns};

const PATIENCE: Duration = Duration::from_secs(10);

/// Kills and reaps what a failed test leaves.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends what a failed test leaves in a namespace.
struct Ended(BTreeSet<u64>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = end_processes_in_netns(&self.0, PATIENCE);
    }
}

fn sh(script: &str) -> Spawn {
    Spawn::new("sh").args(["-c", script])
}

fn output(s: Spawn) -> (String, i32) {
    let mut child = Reaped(s.stdout(Stdio::piped()).spawn().unwrap());
    let mut text = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (text.trim().to_owned(), child.0.wait().unwrap().code().unwrap())
}

fn until(what: &str, mut f: impl FnMut() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_process_runs_in_its_namespace_with_its_own_files() {
    let ns = Netns::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, "10.244.1.2 web-0\n").unwrap();
    let before = fs::read_to_string("/etc/hosts").unwrap();
    let (text, code) = output(
        sh("readlink /proc/self/ns/net; cat /etc/hosts; hostname 2>/dev/null || cat /proc/sys/kernel/hostname; pwd; \
            echo $COLOUR; echo x 2>/dev/null >> /etc/hosts || echo read-only; exit 7")
        .netns(&ns)
        .bind_read_only(&hosts, "/etc/hosts")
        .hostname("web-0")
        .directory("/usr")
        .env("COLOUR", "blue")
        .session(),
    );
    let want = format!("net:[{}]\n10.244.1.2 web-0\nweb-0\n/usr\nblue\nread-only", ns.inode());
    assert_eq!((text, code), (want, 7));
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), before, "this mount namespace is as it was");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "web-0");
}

#[test]
fn output_goes_to_files_and_errors_come_from_the_step_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let child = sh("echo to out; echo to err >&2; cat")
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    assert!(Reaped(child).0.wait().unwrap().success());
    assert_eq!(fs::read_to_string(out).unwrap(), "to out\n");
    assert_eq!(fs::read_to_string(err).unwrap(), "to err\n");

    assert_eq!(Spawn::new("/nosuch/program").spawn().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(Spawn::new("/nosuch/program").own_pids().spawn().unwrap_err().kind(), ErrorKind::NotFound);
    let e = sh("true").bind(dir.path().join("nosuch"), "/etc/hosts").spawn().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert_eq!(sh("true").directory("/nosuch").spawn().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sh("true").env("A", "b").hostname("a\0b").spawn().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_pid_namespace_ends_as_a_whole_and_hands_on_signals_and_codes() {
    let (text, code) = output(sh("echo $$; ls /proc | grep -c '^[0-9]'; exit 3").own_pids());
    let (first, rest) = text.split_once('\n').unwrap();
    assert_eq!((first, code), ("1", 3));
    assert!(rest.parse::<u32>().unwrap() <= 4, "few processes are seen: {rest}");

    // A handled signal arrives; the code comes back.
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let script = format!("trap 'exit 9' TERM; touch {}; while :; do sleep 0.01; done", ready.display());
    let mut child = Reaped(sh(&script).own_pids().spawn().unwrap());
    until("the script has started", || ready.exists());
    kill_pid(child.0.id(), libc::SIGTERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(9));

    // Killing the one we know ends all inside.
    let ns = Netns::new().unwrap();
    let mut child = Reaped(sh("sleep 100 & sleep 100 & wait").netns(&ns).own_pids().spawn().unwrap());
    let inodes = BTreeSet::from([ns.inode()]);
    until("all have started", || processes_in_netns(&inodes).unwrap().len() == 4);
    let first = inner(child.0.id());
    assert_ne!(first, child.0.id());
    child.0.kill().unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    until("none is left", || processes_in_netns(&inodes).unwrap().is_empty());
}

#[test]
fn a_second_process_goes_beside_the_first() {
    let ns = Netns::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, "pod\n").unwrap();
    let first = sh("sleep 100").netns(&ns).bind(&hosts, "/etc/hosts").hostname("pod-1").own_pids().spawn().unwrap();
    let first = Reaped(first);
    until("it has started", || {
        fs::read_to_string(format!("/proc/{}/comm", inner(first.0.id()))).unwrap().trim() == "sh"
            || fs::read_to_string(format!("/proc/{}/comm", inner(first.0.id()))).unwrap().trim() == "sleep"
    });
    let (text, code) = output(
        sh("cat /etc/hosts /proc/sys/kernel/hostname; readlink /proc/self/ns/net; kill -0 1 && echo sees 1; exit 4")
            .beside(inner(first.0.id())),
    );
    assert_eq!((text, code), (format!("pod\npod-1\nnet:[{}]\nsees 1", ns.inode()), 4));
    let gone = sh("true").beside(u32::MAX >> 2).spawn().unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[test]
fn processes_of_a_namespace_are_found_and_ended() {
    let ns = Netns::new().unwrap();
    let inodes = BTreeSet::from([ns.inode()]);
    let _ended = Ended(inodes.clone());
    let mut children: Vec<Reaped> =
        (0..3).map(|_| Reaped(sh("sleep 100 & sleep 100 & wait").netns(&ns).session().spawn().unwrap())).collect();
    until("all have started", || processes_in_netns(&inodes).unwrap().len() == 9);
    let pid = children[0].0.id();
    assert!(!wait_for_end(pid, Duration::from_millis(1)).unwrap());
    assert!(end_processes_in_netns(&inodes, PATIENCE).unwrap() >= 9);
    assert!(wait_for_end(pid, PATIENCE).unwrap());
    for c in &mut children {
        assert_eq!(c.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    assert!(processes_in_netns(&inodes).unwrap().is_empty());
    assert!(!kill_pid(pid, 0).unwrap());
    assert_eq!(end_processes_in_netns(&inodes, PATIENCE).unwrap(), 0);
    assert!(!processes_in_netns(&BTreeSet::from([Netns::current().unwrap().inode()])).unwrap().is_empty());
}

#[test]
fn a_child_dies_with_the_thread_that_started_it() {
    let pid = std::thread::spawn(|| {
        let child = Reaped(Spawn::new("sleep").args(["100"]).die_with_parent().spawn().unwrap());
        assert!(!wait_for_end(child.0.id(), Duration::from_millis(20)).unwrap());
        let pid = child.0.id();
        std::mem::forget(child);
        pid
    })
    .join()
    .unwrap();
    assert!(wait_for_end(pid, PATIENCE).unwrap());
}

#[test]
fn locks_name_their_holder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let lock = lock_file(&path, false).unwrap();
    let e = lock_file(&path, false).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::WouldBlock);
    assert!(e.to_string().contains(&format!("locked by process {}", std::process::id())), "{e}");
    drop(lock);
    lock_file(&path, true).unwrap();
}

#[test]
fn mounts_come_and_go() {
    struct Undo<'a>(&'a Path);
    impl Drop for Undo<'_> {
        fn drop(&mut self) {
            for m in mounts_under(self.0).unwrap_or_default() {
                let _ = umount(m);
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let _undo = Undo(dir.path());
    let (a, b) = (dir.path().join("a dir"), dir.path().join("b"));
    fs::create_dir(&a).unwrap();
    fs::write(&b, "").unwrap();
    mount("tmpfs", &a, "size=64k").unwrap();
    fs::write(a.join("file"), "text").unwrap();
    bind_mount(a.join("file"), &b).unwrap();
    assert_eq!(fs::read_to_string(&b).unwrap(), "text");
    let found = mounts_under(dir.path()).unwrap();
    assert_eq!(found.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&a, &b]));
    for m in found {
        umount(m).unwrap();
    }
    assert!(mounts_under(dir.path()).unwrap().is_empty());
    umount(&a).unwrap();
    umount(dir.path().join("nosuch")).unwrap();
}
