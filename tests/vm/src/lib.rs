//! Owns: a small virtual machine with Debian's kernel, and tests that run inside it: for what this machine's kernel
//! may lack (ipvlan, vlan, vrf, dummy, ipip, wireguard, IPVS, SCTP sockets, netem).
//! Never does: install a kernel, need KVM or root, give the machine a way out to a network.
//! Tested by: unit tests of the archive, the wire and the image here; tests/vm, which are the tests it runs.
//!
//! A test that runs in the machine is an ordinary test whose first line is [`in_vm!`]:
//!
//! ```ignore
//! #[test]
//! fn a_dummy_link_is_made() {
//!     in_vm!();
//!     ip("link add d0 type dummy");
//! }
//! ```
//!
//! The file is run twice. Outside, the first test that reaches `in_vm!` boots one machine, which runs every test that
//! the command line selects, one after the other, from the same binary; each test outside then passes or fails as it did
//! inside, with what it printed there. So `cargo test -p seaway-tests-vm links::` is one boot and those tests.
//!
//! Inside, every test is a process of its own in fresh network, mount and PID namespaces, as root, with loopback up: what
//! it leaves behind ends with it. It has [`TEST_LIMIT`] of time. The tools of [`image::TOOLS`] are in PATH, kernel modules are loaded on demand as
//! on any host (`ip link add ... type vrf` finds its module), our own programs are in [`PROGRAMS`]. /tmp and /run are
//! memory. Two kinds of module have more: `suites` the test binaries of crate `kernel` ([`SUITES`]), `plugins` and
//! `devices`, `pages` the reference CNI plugins ([`REFERENCE`]) and the pages of docs/plugins.

pub mod cpio;
pub mod debian;
pub mod image;
mod qemu;
pub mod wire;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wire::{Event, Outcome};

/// How long one test may take inside, unless [`LIMIT`] says another time.
pub const TEST_LIMIT: Duration = Duration::from_secs(120);
/// A variable of the environment, outside: seconds that one test may take.
pub const LIMIT: &str = "SEAWAY_VM_TEST_SECONDS";
/// How long the machine may take from power on to the first test. It takes 3 s; a busy machine is slower.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Where our own programs are inside.
pub const PROGRAMS: &str = "/opt/cni/bin";
/// Where the reference plugins are, outside and inside, when a test of module `plugins` or `devices` is selected.
pub const REFERENCE: &str = "/usr/lib/cni";
/// Where test binaries of other packages are inside, when a test of module `suites` is selected.
pub const SUITES: &str = "/suites";
/// Set inside, by the machine's first process.
pub const INSIDE: &str = "SEAWAY_VM_INSIDE";
/// What the host tells the first process: the names of the tests to run, one a line.
pub const LIST: &str = "/tests.list";
/// The tests' binary inside.
pub const BINARY: &str = "/tests.bin";

/// Runs the rest of the test inside the machine. Outside it boots the machine if that was not done yet, and passes or
/// fails as the test did inside.
#[macro_export]
macro_rules! in_vm {
    () => {
        fn here() {}
        if !$crate::inside() {
            let vm = $crate::Vm { init: env!("CARGO_BIN_EXE_vm-init"), cache: env!("CARGO_TARGET_TMPDIR") };
            return vm.report($crate::name_of(&here));
        }
    };
}

/// How long one test may take: what [`LIMIT`] says, else [`TEST_LIMIT`]. Inside it is the kernel that hands the variable
/// on to its first process.
#[must_use]
pub fn test_limit() -> Duration {
    std::env::var(LIMIT).ok().and_then(|s| s.parse().ok()).map_or(TEST_LIMIT, Duration::from_secs)
}

/// Whether this process runs in the machine.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The name of the test that a function is declared in, as libtest knows it: its path without the crate.
#[must_use]
pub fn name_of<F>(_: &F) -> &'static str {
    let path = std::any::type_name::<F>();
    let path = path.strip_suffix("::here").unwrap_or(path);
    path.split_once("::").map_or(path, |(_, rest)| rest)
}

/// The machine of a test binary.
#[derive(Debug)]
pub struct Vm {
    /// The program that is the machine's first process.
    pub init: &'static str,
    /// A folder that outlives the run: the kernel is kept there.
    pub cache: &'static str,
}

/// What a run gave: the result of each test that has one, and why others have none.
#[derive(Debug)]
struct Run {
    results: BTreeMap<String, Outcome>,
    missing: String,
    /// The end of what the kernel said meanwhile.
    console: String,
}

impl Vm {
    /// Ends as the test of this name did inside.
    ///
    /// # Panics
    /// When it failed there, or has no result: the machine did not boot, hung, panicked, or a tool is missing. The
    /// message has what it printed or the last lines of the console.
    #[allow(clippy::panic)] // how a test fails
    pub fn report(&self, name: &str) {
        static RUN: OnceLock<Run> = OnceLock::new();
        let run = RUN.get_or_init(|| {
            let mut results = BTreeMap::new();
            let missing = match self.run(&mut results) {
                Ok(()) => "the machine ended without running it".to_owned(),
                Err(e) => format!("{e:#}"),
            };
            Run { results, missing, console: qemu::console(Path::new(self.cache)) }
        });
        match run.results.get(name) {
            Some(o) if o.passed => println!("{}in the machine: {} ms", o.text(), o.millis),
            Some(o) => {
                panic!("in the machine, after {} ms:\n{}\nits console ends with:\n{}", o.millis, o.text(), run.console)
            }
            None => panic!("{name} has no result: {}", run.missing),
        }
    }

    /// Boots, runs every selected test, fills `results` as they come.
    fn run(&self, results: &mut BTreeMap<String, Outcome>) -> Result<()> {
        let started = Instant::now();
        let cache = Path::new(self.cache);
        std::fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
        // Two machines at once would make each other slow on two cores.
        let lock = std::env::temp_dir().join(format!("seaway-vm-{}.lock", rustix::process::getuid().as_raw()));
        let _one_at_a_time = kernel::lock_file(&lock, false).or_else(|e| {
            tell(&format!("waiting for another machine to end: {e}"));
            kernel::lock_file(&lock, true).with_context(|| format!("lock {}", lock.display()))
        })?;
        let tests = selected()?;
        let kernel = debian::kernel(cache)?;
        let initramfs = Scratch(cache.join("initramfs"));
        let mut programs = ours()?;
        // Tests of other packages, for those of ours that run them.
        if tests.iter().any(|t| t.starts_with("suites::")) {
            programs.extend(suites("seaway-kernel")?.into_iter().map(|(name, p)| (format!("{SUITES}/{name}"), p)));
        }
        if tests.iter().any(|t| ["plugins::", "devices::", "pages::"].iter().any(|m| t.starts_with(m))) {
            programs.extend(reference()?);
            programs.extend(pages()?);
        }
        image::write(&initramfs.0, &kernel, Path::new(self.init), &std::env::current_exe()?, &programs, &tests)?;
        let mut booted = None;
        let mut on_event = |event: Event| match event {
            Event::Ready { release } => booted = Some((release, started.elapsed())),
            Event::Started { .. } => {}
            Event::Result { name, outcome } => {
                results.insert(name, outcome);
            }
            Event::Broken { .. } | Event::End => {}
        };
        qemu::run(cache, &kernel, &initramfs.0, &mut on_event)?;
        if let Some((release, after)) = booted {
            tell(&format!(
                "machine: Linux {release}, first test after {:.1} s, {} tests in {:.1} s",
                after.as_secs_f32(),
                results.len(),
                started.elapsed().as_secs_f32()
            ));
        }
        Ok(())
    }
}

/// Says something to the person who waits: libtest keeps what a test prints until it has ended.
pub(crate) fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// A file that goes with its holder.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The tests that this process's command line selects.
fn selected() -> Result<Vec<String>> {
    let out = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--list", "--format", "terse"])
        .output()
        .context("list the tests")?;
    if !out.status.success() {
        bail!("the test binary does not list its tests: {}", String::from_utf8_lossy(&out.stderr));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect())
}

/// A cargo of the profile and the target folder that this test was built with.
fn cargo(args: &[&str]) -> Result<(Command, PathBuf)> {
    let exe = std::env::current_exe()?;
    let folder = exe.parent().and_then(Path::parent).context("a test binary lies two folders below the target's")?;
    let target = folder.parent().context("the profile's folder lies in the target's")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).arg("--quiet").arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    Ok((cargo, folder.to_owned()))
}

/// Our own programs: where to put which.
fn ours() -> Result<Vec<(String, PathBuf)>> {
    let (mut build, folder) = cargo(&["build", "--package", "seaway-cni"])?;
    if !build.status().context("run cargo")?.success() {
        bail!("cargo build -p seaway-cni failed");
    }
    Ok(vec![(format!("{PROGRAMS}/seaway-cni"), folder.join("seaway-cni"))])
}

/// The files of a folder, to be put below `to`.
fn files(from: &Path, to: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() {
            all.push((format!("{to}/{name}"), path));
        }
    }
    Ok(all)
}

/// The reference plugins, where Debian has them.
fn reference() -> Result<Vec<(String, PathBuf)>> {
    files(Path::new(REFERENCE), REFERENCE)
        .context("the reference plugins: apt-get install --no-install-recommends containernetworking-plugins")
}

/// The pages whose configurations tests run.
fn pages() -> Result<Vec<(String, PathBuf)>> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins"), "/repository/docs/plugins")
}

/// The integration tests of a package, built: their names and binaries.
fn suites(package: &str) -> Result<Vec<(String, PathBuf)>> {
    let (mut build, _) = cargo(&["test", "--no-run", "--message-format", "json", "--test", "*", "--package", package])?;
    let out = build.stderr(std::process::Stdio::inherit()).output().context("run cargo")?;
    if !out.status.success() {
        bail!("cargo test --no-run -p {package} failed");
    }
    Ok(executables(&String::from_utf8_lossy(&out.stdout)))
}

/// The tests in cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|m| m["target"]["kind"] == serde_json::json!(["test"]))
        .filter_map(|m| Some((m["target"]["name"].as_str()?.to_owned(), m["executable"].as_str()?.into())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_knows_its_name() {
        fn here() {}
        assert_eq!(name_of(&here), "tests::a_test_knows_its_name");
    }

    /// A test that forgets the line would run on this machine.
    #[test]
    fn every_test_of_the_machine_starts_with_in_vm() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm");
        let mut seen = 0;
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap().path();
            let text = std::fs::read_to_string(&file).unwrap();
            for test in text.split("#[test]\n").skip(1) {
                let body = test.split_once("{\n").unwrap().1;
                assert_eq!(body.lines().next().unwrap().trim(), "in_vm!();", "{}: {test}", file.display());
                seen += 1;
            }
        }
        assert!(seen > 8, "{seen} tests found");
    }
}
