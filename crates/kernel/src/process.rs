//! Processes, mounts and locks of the machine.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// See [`set_short_lived`].
static SHORT_LIVED: AtomicBool = AtomicBool::new(false);

/// Says that this process ends soon and that somebody waits for its end: what the kernel would make it wait for on its
/// way out is left to processes of their own.
pub fn set_short_lived() {
    SHORT_LIVED.store(true, Ordering::Relaxed);
}

pub(crate) fn is_short_lived() -> bool {
    SHORT_LIVED.load(Ordering::Relaxed)
}

/// Gives memory that is free back to the system: after something large that seldom happens, such as a look at a whole
/// table, the allocator would keep it.
pub fn release_memory() {
    sys::trim_heap();
}

/// The process ids of all processes in the network namespaces of these inode numbers ([`crate::Netns::inode`]). One
/// that ends meanwhile is left out.
///
/// # Errors
/// When /proc is not mounted.
pub fn processes_in_netns(inodes: &BTreeSet<u64>) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| inodes.contains(&m.ino())) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Kills every process in these namespaces and those they start meanwhile; returns how many. This process itself is
/// left alone.
///
/// # Errors
/// When some are still there after `patience`: `TimedOut`, with their ids.
pub fn end_processes_in_netns(inodes: &BTreeSet<u64>, patience: Duration) -> io::Result<usize> {
    let start = Instant::now();
    let mut killed = BTreeSet::new();
    loop {
        let mut left = processes_in_netns(inodes)?;
        left.retain(|p| *p != std::process::id() && !is_zombie(*p));
        if left.is_empty() {
            return Ok(killed.len());
        }
        if start.elapsed() > patience {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes {left:?} do not end")));
        }
        for p in left {
            if kill_pid(p, libc::SIGKILL)? {
                killed.insert(p);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_zombie(pid: u32) -> bool {
    // The state follows the name, which is in parentheses and may hold anything.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|s| s.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

/// Sends a signal; false when the process has gone. Signal 0 only asks.
///
/// # Errors
/// When it is not ours to signal.
pub fn kill_pid(pid: u32, signal: i32) -> io::Result<bool> {
    // Zero and negative numbers mean groups.
    let pid = i32::try_from(pid).ok().filter(|p| *p > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    match sys::kill(pid, signal) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The process that a process of [`crate::Spawn::own_pids`] attends: its only child; itself when it has none.
#[must_use]
pub fn inner(pid: u32) -> u32 {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .ok()
        .and_then(|s| s.split_whitespace().next().and_then(|c| c.parse().ok()))
        .unwrap_or(pid)
}

/// Waits until the process has ended; false when `timeout` passed first. Works for processes that are not children.
///
/// # Errors
/// When it cannot be watched.
pub fn wait_for_end(pid: u32, timeout: Duration) -> io::Result<bool> {
    let Ok(pid) = i32::try_from(pid) else { return Ok(true) };
    match sys::pidfd_open(pid) {
        Ok(fd) => Ok(crate::poll(&[fd.as_fd()], Some(timeout))?.contains(&true)),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        Err(e) => Err(e),
    }
}

/// A lock on a file (flock(2)), held until dropped or the process ends. The file holds the holder's process id.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Locks the file at `path`, which is made if need be. Without `wait`, a lock held by another is an error at once.
///
/// # Errors
/// `WouldBlock` when another process holds it (the message names that process); else what the file system says.
pub fn lock_file(path: impl AsRef<Path>, wait: bool) -> io::Result<FileLock> {
    let path = path.as_ref();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    let operation = libc::LOCK_EX | if wait { 0 } else { libc::LOCK_NB };
    if let Err(e) = sys::flock(file.as_fd(), operation) {
        if e.kind() != io::ErrorKind::WouldBlock {
            return Err(e);
        }
        let mut holder = String::new();
        let _ = file.take(32).read_to_string(&mut holder);
        let who = holder.trim().parse::<u32>().map_or_else(|_| "another process".into(), |p| format!("process {p}"));
        return Err(io::Error::new(io::ErrorKind::WouldBlock, format!("{} is locked by {who}", path.display())));
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(std::process::id().to_string().as_bytes())?;
    Ok(FileLock { _file: file })
}

fn c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// Bind-mounts `source` at `target`, which must exist.
///
/// # Errors
/// When the kernel refuses.
pub fn bind_mount(source: impl AsRef<Path>, target: impl AsRef<Path>) -> io::Result<()> {
    sys::mount(Some(&c(source.as_ref())?), &c(target.as_ref())?, None, libc::MS_BIND, None)
}

/// Mounts a new file system of type `fstype` (`tmpfs`) at `target`, with options as after `-o`.
///
/// # Errors
/// When the kernel refuses.
pub fn mount(fstype: &str, target: impl AsRef<Path>, options: &str) -> io::Result<()> {
    let kind = c(Path::new(fstype))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(Some(&kind), &c(target.as_ref())?, Some(&kind), flags, Some(&c(Path::new(options))?))
}

/// Unmounts `target`, now or when its last user ends. No error when nothing is mounted there.
///
/// # Errors
/// When the kernel refuses.
pub fn umount(target: impl AsRef<Path>) -> io::Result<()> {
    match sys::umount(&c(target.as_ref())?, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Err(e),
        _ => Ok(()),
    }
}

/// The mount points at or below `dir`, the deepest first: the order to unmount them in.
///
/// # Errors
/// When /proc is not mounted.
pub fn mounts_under(dir: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|p| PathBuf::from(std::ffi::OsString::from_vec(unescape(p))))
        .filter(|p| p.starts_with(dir.as_ref()))
        .collect();
    // A later mount lies over or below an earlier one.
    found.reverse();
    found.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(found)
}

/// mountinfo writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(mut b: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(b.len());
    while let [first, rest @ ..] = b {
        match rest {
            [x @ b'0'..=b'3', y @ b'0'..=b'7', z @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                out.push((x - b'0') << 6 | (y - b'0') << 3 | (z - b'0'));
                b = after;
            }
            _ => {
                out.push(*first);
                b = rest;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/plain\\04"), b"/plain\\04");
    }
}
