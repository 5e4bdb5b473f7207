//! The real kubectl v1.36 against a real lab: each command that the documentation shows, and what it prints.
//!
//! kubectl is built from its released Go module by `tests/k8s/build kubectl`, once, outside the tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod changing;
mod inside;
mod reading;
mod rollouts;
mod shown;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Lab, PATIENCE};

/// Where `tests/k8s/build` puts what it builds.
fn program() -> PathBuf {
    let var = |k: &str| std::env::var_os(k).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = var("SEAWAY_K8S_CACHE").unwrap_or_else(|| {
        let home = || var("HOME").unwrap_or_else(|| "/root".into()).join(".cache");
        var("XDG_CACHE_HOME").unwrap_or_else(home).join("seaway/k8s")
    });
    let path = cache.join("bin/kubectl");
    assert!(path.exists(), "{} is missing: run tests/k8s/build kubectl (Debian package golang-go)", path.display());
    path
}

/// A lab, and kubectl for it with a home of its own.
struct Kube {
    lab: Lab,
    program: PathBuf,
    home: tempfile::TempDir,
}

impl Kube {
    fn up(args: &[&str]) -> Self {
        let program = program();
        Self { lab: Lab::up(args), program, home: tempfile::tempdir().unwrap() }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.home().join(name), text).unwrap();
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut c = Command::new(&self.program);
        c.args(line).env("HOME", self.home()).env("KUBECONFIG", self.lab.dir().join("kubeconfig"));
        c.current_dir(self.home()).stdin(Stdio::null());
        c
    }

    /// Words apart by blanks; those with blanks are given as `more`.
    fn with(&self, line: &str, more: &[&str]) -> Output {
        let words: Vec<&str> = line.split(' ').chain(more.iter().copied()).collect();
        common::run(&mut self.command(&words))
    }

    /// What it printed; it must succeed.
    fn ok(&self, line: &str) -> String {
        self.ok_with(line, &[])
    }

    fn ok_with(&self, line: &str, more: &[&str]) -> String {
        let o = self.with(line, more);
        let (out, err) = (text(&o.stdout), text(&o.stderr));
        assert!(o.status.success(), "kubectl {line} {more:?}: {}\n{out}{err}", o.status);
        out
    }

    /// Exit code and everything it printed; it must fail.
    fn fails(&self, line: &str) -> (i32, String) {
        let o = self.with(line, &[]);
        assert!(!o.status.success(), "kubectl {line} succeeded: {}", text(&o.stdout));
        (o.status.code().unwrap(), text(&o.stdout) + &text(&o.stderr))
    }

    /// Waits until a command prints this.
    fn until(&self, line: &str, want: &str) {
        let mut last = String::new();
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            last = text(&self.with(line, &[]).stdout);
            if last.contains(want) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("kubectl {line} never said {want:?}, but {last:?}");
    }

    /// Starts it, to be read line by line.
    fn follow(&self, line: &str, env: &[(&str, &str)]) -> Follow {
        let words: Vec<&str> = line.split(' ').collect();
        let mut c = self.command(&words);
        let mut child = c.envs(env.iter().copied()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for l in out.lines() {
                let Ok(l) = l else { return };
                if tx.send(l).is_err() {
                    return;
                }
            }
        });
        Follow { child, lines }
    }
}

/// A kubectl that goes on. Dropping it ends it.
struct Follow {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Follow {
    /// The next line that has this in it.
    fn line(&self, want: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(l) if l.contains(want) => return l,
                Ok(l) => seen.push(l),
                Err(_) => panic!("no line with {want:?}, but {seen:?}"),
            }
        }
    }

    /// Whether it ends by itself, and well.
    fn ends(&mut self) -> bool {
        common::eventually("kubectl ends", PATIENCE, || self.child.try_wait().unwrap()).success()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(b: &[u8]) -> String {
    String::from_utf8_lossy(b).into_owned()
}

/// The names of the columns.
fn head(out: &str) -> Vec<&str> {
    let first = out.lines().next().unwrap_or("");
    first.split("  ").map(str::trim).filter(|s| !s.is_empty()).collect()
}

/// The first words of the lines after the head.
fn firsts(out: &str) -> Vec<&str> {
    out.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect()
}
