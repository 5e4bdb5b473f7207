//! One machine: started, listened to, ended.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::Spawn;

use crate::debian::{Kernel, tool};
use crate::wire::{Decoder, Event};
use crate::{BOOT_LIMIT, LIMIT, tell, test_limit};

/// MiB.
const MEMORY: &str = "1024";
/// Where the console goes.
const CONSOLE: &str = "console.log";
/// Lines of the console in an error.
const TAIL: usize = 40;

/// A machine that ends with its holder. It also ends with the thread that started it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a machine to its end, gives its messages as they come.
///
/// # Errors
/// When it does not start, does not boot, says nothing for too long, panics or ends early. The error has the last lines
/// of its console.
pub fn run(cache: &Path, kernel: &Kernel, initramfs: &Path, on_event: &mut dyn FnMut(Event)) -> Result<()> {
    // Where KVM is there it may still not work: the first run finds out.
    let verdict = cache.join("accel");
    let known = std::fs::read_to_string(&verdict).unwrap_or_default();
    if known.trim() != "tcg" && File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        match attempt("kvm", Duration::from_secs(30), cache, kernel, initramfs, on_event) {
            Err(End::NoBoot(e)) => tell(&format!("KVM does not work here, going on with TCG: {e:#}")),
            r => return r.map_err(End::into_error),
        }
    }
    let _ = std::fs::write(&verdict, "tcg\n");
    attempt("tcg", BOOT_LIMIT, cache, kernel, initramfs, on_event).map_err(End::into_error)
}

/// The last lines of the console of the machine that ran last.
pub fn console(cache: &Path) -> String {
    tail(&cache.join(CONSOLE), TAIL)
}

/// Why a machine did not come to a good end.
enum End {
    /// Before its first message.
    NoBoot(anyhow::Error),
    /// After it.
    Later(anyhow::Error),
}

impl End {
    fn into_error(self) -> anyhow::Error {
        match self {
            Self::NoBoot(e) | Self::Later(e) => e,
        }
    }
}

fn attempt(
    accel: &str,
    boot: Duration,
    cache: &Path,
    kernel: &Kernel,
    initramfs: &Path,
    on_event: &mut dyn FnMut(Event),
) -> Result<(), End> {
    let console = cache.join(CONSOLE);
    let mut ready = false;
    let mut seen = |e: Event| {
        ready |= matches!(e, Event::Ready { .. });
        on_event(e);
    };
    let result = start(accel, &console, cache, kernel, initramfs).and_then(|m| listen(m, boot, &mut seen));
    result.map_err(|e| {
        let e =
            e.context(format!("the machine ({accel}); its console ends with:\n{}\nthe error", tail(&console, TAIL)));
        if ready { End::Later(e) } else { End::NoBoot(e) }
    })
}

fn start(accel: &str, console: &Path, cache: &Path, kernel: &Kernel, initramfs: &Path) -> Result<Machine> {
    let (program, package, machine, port) = if cfg!(target_arch = "x86_64") {
        ("qemu-system-x86_64", "qemu-system-x86", "q35", "ttyS0")
    } else {
        bail!("the machine is described for x86_64 only: add this one's to tests/vm/src/qemu.rs");
    };
    let program = tool(program, package)?;
    let _ = std::fs::remove_file(console);
    // A panic reboots, a reboot ends qemu.
    // The last words are the environment of the first process.
    let append = format!(
        "console={port} quiet loglevel=4 panic=-1 oops=panic mitigations=off random.trust_cpu=on {LIMIT}={}",
        test_limit().as_secs()
    );
    let console_port = format!("file:{}", console.display());
    let errors = File::create(cache.join("qemu.log")).context("make qemu.log")?;
    let child = Spawn::new(program)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"])
        .args(["-machine", machine, "-accel", accel, "-cpu", "max", "-smp", "1", "-m", MEMORY])
        .args([OsStr::new("-kernel"), kernel.image.as_os_str()])
        .args([OsStr::new("-initrd"), initramfs.as_os_str()])
        .args(["-append", &append])
        .args(["-serial", &console_port, "-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .die_with_parent()
        .spawn()
        .context("start qemu")?;
    Ok(Machine(child))
}

/// Reads messages until the last one, or until one is late.
fn listen(mut machine: Machine, boot: Duration, on_event: &mut dyn FnMut(Event)) -> Result<()> {
    let mut from = machine.0.stdout.take().context("qemu's output is a pipe")?;
    let (send, bytes) = mpsc::channel();
    // Ends with the pipe.
    std::thread::Builder::new().name("vm-wire".into()).spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 || send.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    })?;
    let mut decoder = Decoder::default();
    let mut doing = "boot".to_owned();
    let mut limit = boot;
    let mut since = Instant::now();
    loop {
        let left = limit.saturating_sub(since.elapsed());
        let got = match bytes.recv_timeout(left) {
            Ok(got) => got,
            Err(RecvTimeoutError::Timeout) => bail!("{doing}: nothing for {} s", limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{doing}: it ended ({})", machine.0.wait().context("wait for qemu")?)
            }
        };
        for event in decoder.push(&got) {
            // The machine itself ends a test that takes too long; it gets time to say so.
            limit = test_limit() + Duration::from_secs(30);
            since = Instant::now();
            match &event {
                Event::Ready { .. } => doing = "ready".into(),
                Event::Started { name } => doing.clone_from(name),
                Event::Result { name, .. } => doing = format!("after {name}"),
                Event::Broken { why } => bail!("its first process gave up: {why}"),
                Event::End => return Ok(()),
            }
            on_event(event);
        }
    }
}

/// The last lines of a file.
fn tail(file: &Path, lines: usize) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut f) = File::open(file) {
        let len = f.metadata().map_or(0, |m| m.len());
        let _ = f.seek(SeekFrom::Start(len.saturating_sub(64 * 1024)));
        let _ = f.read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().map(|l| l.trim_end_matches('\r')).collect();
    if all.is_empty() { "(nothing)".into() } else { all[all.len().saturating_sub(lines)..].join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A "machine" that is a shell.
    fn shell(script: &str) -> Machine {
        let out = Spawn::new("sh").args(["-c", script]).stdout(Stdio::piped()).die_with_parent().spawn();
        Machine(out.unwrap())
    }

    fn heard(script: &str) -> (Vec<Event>, String) {
        let mut events = Vec::new();
        let r = listen(shell(script), Duration::from_millis(300), &mut |e| events.push(e));
        (events, r.err().map(|e| format!("{e:#}")).unwrap_or_default())
    }

    #[test]
    fn silence_an_early_end_and_giving_up_are_errors() {
        let (events, e) = heard("sleep 100");
        assert_eq!((events.len(), e.as_str()), (0, "boot: nothing for 0 s"));
        let (events, e) = heard("echo seaway-vm ready 6.1; echo seaway-vm start a::b; exit 3");
        assert_eq!((events.len(), e.as_str()), (2, "a::b: it ended (exit status: 3)"));
        let (_, e) = heard("echo seaway-vm broken no port; sleep 100");
        assert_eq!(e, "its first process gave up: no port");
        let (events, e) = heard("echo seaway-vm ready 6.1; echo seaway-vm end; sleep 100");
        assert_eq!((events.len(), e.as_str()), (1, ""));
    }

    #[test]
    fn a_machine_ends_with_its_holder() {
        let m = shell("sleep 100");
        let pid = m.0.id();
        drop(m);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn the_console_is_cut_to_its_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(tail(file.path(), 2), "(nothing)");
        std::fs::write(file.path(), "a\r\nb\nc\n").unwrap();
        assert_eq!(tail(file.path(), 2), "b\nc");
    }
}
