//! The parent of every container: a process of its own, so that the container's exit status is not lost when the pod
//! runner dies, and a runner that comes back finds everything in files.

use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process_group, setsid};
use serde::{Deserialize, Serialize};

use crate::ns::Enter;
use crate::procs::{ProcId, read_json, write_json};
use crate::{Doing, LabError};

/// What a shim says when its container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The shim.
    pub shim: ProcId,
    /// The container's first process.
    pub process: ProcId,
    /// When (RFC 3339).
    pub at: String,
}

/// What it says when the container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code; 128 + the signal's number when killed by one, 128 when it could not be started.
    pub code: i32,
    /// The signal.
    pub signal: Option<i32>,
    /// Why it could not be started.
    pub error: Option<String>,
    /// When (RFC 3339).
    pub at: String,
}

/// A note on a log: how long it was, and when. Containers write their logs themselves, so that they do not depend on
/// anybody; what they wrote when is noted by their shim, and lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes.
    pub len: u64,
    /// Nanoseconds of the epoch.
    pub nanos: i64,
}

impl Stamp {
    /// Bytes of a note in its file.
    pub const SIZE: usize = 16;
    /// As it is in the file: both numbers, little end first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        (u128::from(self.len) | u128::from(self.nanos.cast_unsigned()) << 64).to_le_bytes()
    }
    /// Reads one.
    #[must_use]
    pub fn from_bytes(b: [u8; Self::SIZE]) -> Self {
        let [a, b] = [0, 8].map(|i| std::array::from_fn(|k| b[i + k]));
        Self { len: u64::from_le_bytes(a), nanos: i64::from_le_bytes(b) }
    }
}

/// At most so often is a note made.
const NOTE_EVERY: Duration = Duration::from_millis(50);

/// Notes the length of a log now.
fn note(log: &Path, times: &mut File) -> Option<()> {
    let stamp = Stamp { len: std::fs::metadata(log).ok()?.len(), nanos: crate::kubelet::logs::now() };
    times.write_all(&stamp.to_bytes()).ok()
}

/// Notes the length of a log whenever it grows, on a thread of its own; without a log, nothing. Whoever holds the file can
/// add the last note.
fn keep_time(files: &RunFiles) -> Option<File> {
    let log = files.log();
    let times = File::options().append(true).create(true).open(files.times()).ok()?;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).ok()?;
    inotify::add_watch(&watch, &log, inotify::WatchFlags::MODIFY).ok()?;
    let mut mine = times.try_clone().ok()?;
    std::thread::spawn(move || {
        let mut buf = [const { MaybeUninit::uninit() }; 4096];
        let mut changes = inotify::Reader::new(watch, &mut buf);
        while changes.next().is_ok() {
            if note(&log, &mut mine).is_none() {
                return;
            }
            std::thread::sleep(NOTE_EVERY);
        }
    });
    Some(times)
}

/// The files of one run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFiles {
    dir: PathBuf,
    attempt: u32,
}

impl RunFiles {
    /// In the container's directory; attempts count from zero.
    #[must_use]
    pub fn new(dir: &Path, attempt: u32) -> Self {
        Self { dir: dir.to_path_buf(), attempt }
    }
    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// [`Started`].
    #[must_use]
    pub fn started(&self) -> PathBuf {
        self.dir.join(format!("run-{}.json", self.attempt))
    }
    /// [`Ended`].
    #[must_use]
    pub fn ended(&self) -> PathBuf {
        self.dir.join(format!("exit-{}.json", self.attempt))
    }
    /// Standard output and error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.attempt))
    }
    /// A [`Stamp`] for each time the log had grown.
    #[must_use]
    pub fn times(&self) -> PathBuf {
        self.dir.join(format!("{}.times", self.attempt))
    }
    /// Reads [`Started`], if it is there.
    #[must_use]
    pub fn read_started(&self) -> Option<Started> {
        read_json(&self.started()).ok().flatten()
    }
    /// Reads [`Ended`], if it is there.
    #[must_use]
    pub fn read_ended(&self) -> Option<Ended> {
        read_json(&self.ended()).ok().flatten()
    }
}

/// The time now, to the second, as the API writes it.
#[must_use]
pub fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Runs a container to its end. For a process of one thread, made for this.
///
/// # Errors
/// When the files cannot be written. A command that cannot run is no error here: it is in [`Ended`].
pub fn run(files: &RunFiles, enter: &Enter, cwd: Option<&Path>, argv: &[String]) -> Result<(), LabError> {
    // Out of the runner's session: Ctrl-C there is no business of the container's. EPERM when it leads one already.
    let _ = setsid();
    let Some(me) = ProcId::current() else { return Err(LabError::new("/proc is not mounted")) };
    let failed = |error: String| {
        eprintln!("{error}");
        write_json(&files.ended(), &Ended { code: 128, signal: None, error: Some(error), at: now() })
    };
    if let Err(e) = enter.enter() {
        return failed(e.to_string());
    }
    let Some((program, args)) = argv.split_first() else { return failed("the command is empty".into()) };
    let mut command = Command::new(program);
    // A process group of its own, to end what the first process leaves behind.
    command.args(args).process_group(0);
    if let Some(d) = cwd {
        command.current_dir(d);
    }
    let mut times = keep_time(files);
    let mut child = match command.spawn() {
        Ok(c) => c,
        Err(e) => {
            return failed(format!(
                "exec {program:?}: {e}: a lab runs commands of this machine, not of the image: name one that exists here"
            ));
        }
    };
    let pid = i32::try_from(child.id()).doing(|| "pid")?;
    // It may have ended already: then its own number is all that is to say.
    let process = ProcId::of(pid).unwrap_or(ProcId { pid, start: 0 });
    write_json(&files.started(), &Started { shim: me, process, at: now() })?;
    let status = child.wait().doing(|| format!("wait for {program}"))?;
    if let Some(group) = Pid::from_raw(pid) {
        // ESRCH when the group is empty, the usual case.
        let _ = kill_process_group(group, Signal::KILL);
    }
    if let Some(t) = &mut times {
        note(&files.log(), t);
    }
    let signal = status.signal();
    let code = status.code().unwrap_or(128 + signal.unwrap_or(0));
    write_json(&files.ended(), &Ended { code, signal, error: None, at: now() })
}

/// Enters and becomes `argv`; returns only when that fails, with the exit code that shells give for it. With `tty` its
/// standard input, a terminal, becomes the one of its session.
#[must_use]
pub fn exec(enter: &Enter, session: bool, tty: bool, argv: &[String]) -> (LabError, u8) {
    if session {
        let _ = setsid();
    }
    if tty && let Err(e) = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()) {
        return (LabError::new(format!("terminal: {e}")), 126);
    }
    if let Err(e) = enter.enter() {
        return (e, 126);
    }
    let Some((program, args)) = argv.split_first() else { return (LabError::new("the command is empty"), 126) };
    let e = Command::new(program).args(args).exec();
    let code = if e.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    (LabError::new(format!("exec {program:?}: {e}")), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_in(dir: &Path, argv: &[&str]) -> (Option<Started>, Ended) {
        let f = RunFiles::new(dir, 3);
        let argv: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
        run(&f, &Enter::default(), None, &argv).unwrap();
        (f.read_started(), f.read_ended().unwrap())
    }

    #[test]
    fn exit_codes_and_signals_reach_the_files() {
        let d = tempfile::tempdir().unwrap();
        let (s, e) = run_in(d.path(), &["sh", "-c", "exit 7"]);
        assert!(s.is_some() && e.code == 7 && e.signal.is_none());
        let (_, e) = run_in(d.path(), &["sh", "-c", "kill -9 $$"]);
        assert_eq!((e.code, e.signal), (137, Some(9)));
    }

    #[test]
    fn a_missing_command_says_what_a_lab_runs() {
        let d = tempfile::tempdir().unwrap();
        let (s, e) = run_in(d.path(), &["/no/such/program"]);
        assert!(s.is_none() && e.code == 128 && e.error.unwrap().contains("commands of this machine"));
    }
}
