//! Processes: identified so that a reused pid is never taken for the old one, found by what they carry.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::name::{LAB_MARKER, POD_MARKER};
use crate::{Doing, LabError};

/// A process: its number, and when it started (field 22 of proc_pid_stat(5), clock ticks since boot). The pair does
/// not come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcId {
    /// The number.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

/// State letter and start time of /proc/PID/stat. The name in parentheses may itself hold parentheses and spaces.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let rest = &text[text.rfind(')')? + 1..];
    let mut f = rest.split_ascii_whitespace();
    let state = f.next()?.chars().next()?;
    // `state` is field 3; field 22 is 18 after the one that follows it.
    let start = f.nth(18)?.parse().ok()?;
    Some((state, start))
}

fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

impl ProcId {
    /// The process that has this number now. `None` for one that is dead, also when nobody collected it yet.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let (state, start) = stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start })
    }

    /// This process.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it lives. A zombie does not.
    #[must_use]
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// A descriptor that becomes readable when the process ends. `None` when it has.
    #[must_use]
    pub fn watch(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Between reading /proc and opening, the number may have changed hands: look again with the descriptor held.
        self.alive().then_some(fd)
    }

    /// Sends a signal, if it still is the same process.
    pub fn signal(self, signal: Signal) {
        if let Some(fd) = self.watch() {
            // ESRCH: it ended meanwhile, which is what a signal is for.
            let _ = pidfd_send_signal(&fd, signal);
        }
    }
}

/// What is known about a running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub id: ProcId,
    /// Inode of its network namespace.
    pub netns: Option<u64>,
    /// Value of [`LAB_MARKER`] in its environment.
    pub lab: Option<String>,
    /// Value of [`POD_MARKER`] in its environment.
    pub pod: Option<String>,
    /// First words of its command line.
    pub command: String,
}

/// Every living process of the machine that this one may look at.
#[must_use]
pub fn scan() -> Vec<Seen> {
    let Ok(dir) = std::fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let id = ProcId::of(pid)?;
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let var = |name: &str| {
                env.split(|b| *b == 0).find_map(|v| {
                    let (k, v) = std::str::from_utf8(v).ok()?.split_once('=')?;
                    (k == name).then(|| v.to_owned())
                })
            };
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command: Vec<_> = command.split(|b| *b == 0).take(6).map(String::from_utf8_lossy).collect();
            Some(Seen {
                id,
                netns: crate::ns::inode(Path::new(&format!("/proc/{pid}/ns/net"))),
                lab: var(LAB_MARKER),
                pod: var(POD_MARKER),
                command: command.join(" ").trim_end().to_owned(),
            })
        })
        .collect()
}

/// This process and all above it: what a clean-up must never kill, though the person typed it in a lab's own shell.
#[must_use]
pub fn self_and_ancestors() -> Vec<i32> {
    let mut v = vec![rustix::process::getpid().as_raw_nonzero().get()];
    while let Some(pid) = v.last().copied() {
        let parent = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|t| t[t.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse::<i32>().ok());
        match parent {
            Some(p) if p > 1 && !v.contains(&p) => v.push(p),
            _ => break,
        }
    }
    v
}

/// Writes a file so that a reader sees the old or the new text, never a part.
///
/// # Errors
/// When it cannot be written.
pub fn write_atomic(path: &Path, text: &[u8]) -> Result<(), LabError> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".new");
    std::fs::write(&tmp, text).doing(|| format!("{}", path.display()))?;
    std::fs::rename(&tmp, path).doing(|| format!("{}", path.display()))
}

/// Writes a value as JSON, atomically.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), LabError> {
    write_atomic(path, &serde_json::to_vec_pretty(value).doing(|| format!("{}", path.display()))?)
}

/// Reads what [`write_json`] wrote. `None` when there is no such file.
///
/// # Errors
/// When it holds something else.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, LabError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LabError::new(format!("{}: {e}", path.display()))),
        Ok(b) => serde_json::from_slice(&b).map(Some).doing(|| format!("{}", path.display())),
    }
}

/// Records a process of a lab in its folder of pids.
///
/// # Errors
/// When it cannot be written.
pub fn record(pids: &Path, process: &str, id: ProcId) -> Result<(), LabError> {
    std::fs::create_dir_all(pids).doing(|| format!("{}", pids.display()))?;
    write_json(&pids.join(format!("{process}.json")), &id)
}

/// The recorded processes by name, living or not, sorted.
#[must_use]
pub fn recorded(pids: &Path) -> Vec<(String, ProcId)> {
    let Ok(dir) = std::fs::read_dir(pids) else { return Vec::new() };
    let mut v: Vec<_> = dir
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().to_str()?.strip_suffix(".json")?.to_owned();
            Some((name, read_json(&e.path()).ok()??))
        })
        .collect();
    v.sort_by(|a: &(String, ProcId), b| a.0.cmp(&b.0));
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_an_odd_name() {
        let s = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 987654 1 2 3";
        assert_eq!(parse_stat(s), Some(('S', 987_654)));
        assert_eq!(parse_stat("42 (x"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_reused_number_is_another_process() {
        let me = ProcId::current().unwrap();
        assert!(me.alive());
        let old = ProcId { start: me.start + 1, ..me };
        assert!(!old.alive() && old.watch().is_none());
        old.signal(Signal::KILL); // must not hit this process
    }

    #[test]
    fn a_zombie_is_dead_and_children_carry_the_marker() {
        let mut child = std::process::Command::new("sleep").arg("60").env(LAB_MARKER, "unittest").spawn().unwrap();
        let id = ProcId::of(child.id() as i32).unwrap();
        // The environment is the child's own only after exec.
        let found = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            scan().iter().any(|s| s.id == id && s.lab.as_deref() == Some("unittest") && s.command == "sleep 60")
        });
        id.signal(Signal::KILL);
        let dead = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            !id.alive()
        });
        child.wait().unwrap();
        assert!(found && dead);
    }

    #[test]
    fn ancestors_hold_this_process_and_its_parent() {
        let v = self_and_ancestors();
        assert!(v.len() >= 2 && v.contains(&(std::process::id() as i32)));
    }
}
