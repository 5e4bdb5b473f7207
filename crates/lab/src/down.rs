//! Removes a lab, whatever is left of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use kernel::Netns;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::name::{LABS_DIR, LabName};
use crate::procs::{ProcId, recorded, scan, self_and_ancestors};
use crate::{LabError, ns, record};

/// So many looks in a row must find no process of the lab.
const QUIET: u32 = 4;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes ended.
    pub processes: usize,
    /// Namespaces removed.
    pub namespaces: usize,
    /// Whether there was a directory.
    pub directory: bool,
}

/// Every lab of which anything is left: a directory, a namespace or a process.
#[must_use]
pub fn remains() -> Vec<LabName> {
    let mut v: BTreeSet<LabName> = record::list().into_iter().collect();
    v.extend(scan().into_iter().filter_map(|s| s.lab?.parse::<LabName>().ok()));
    for n in ns::list() {
        if let Some(name) = n.split('-').next().and_then(|p| p.parse::<LabName>().ok()).filter(|l| l.owns_netns(&n)) {
            v.insert(name);
        }
    }
    v.into_iter().collect()
}

/// The living processes of a lab: recorded, marked, or inside one of its namespaces. Never this one or one above it.
#[must_use]
pub fn processes(name: &LabName) -> Vec<ProcId> {
    let spared = self_and_ancestors();
    let host = ["/proc/1/ns/net", "/proc/self/ns/net"].map(|p| ns::inode(Path::new(p)));
    let inside: BTreeSet<u64> = ns::list()
        .into_iter()
        .filter(|n| name.owns_netns(n))
        .filter_map(|n| Netns::open(ns::path(&n)).ok().map(|n| n.inode()))
        .filter(|i| !host.contains(&Some(*i)))
        .collect();
    let mut all: BTreeSet<(i32, u64)> =
        recorded(&name.dir().pids()).into_iter().filter(|(_, p)| p.alive()).map(|(_, p)| (p.pid, p.start)).collect();
    for s in scan() {
        if s.lab.as_deref() == Some(name.as_str()) || s.netns.is_some_and(|n| inside.contains(&n)) {
            all.insert((s.id.pid, s.id.start));
        }
    }
    all.into_iter().filter(|(pid, _)| !spared.contains(pid)).map(|(pid, start)| ProcId { pid, start }).collect()
}

/// Ends every process, removes every namespace, mount and file of a lab. What is not there is no error, so it can be
/// called at any time, also after an `up` that was interrupted.
///
/// # Errors
/// What would not go.
pub fn down(name: &LabName) -> Result<Removed, LabError> {
    let mut removed = Removed::default();
    let until = Instant::now() + Duration::from_secs(10);
    let mut killed = BTreeSet::new();
    let mut quiet = 0;
    // Again and again: one may have been about to start another, and one that is just becoming another program has no
    // environment to know it by.
    while quiet < QUIET {
        let left = processes(name);
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        if Instant::now() > until {
            let pids = left.iter().map(|p| p.pid.to_string()).collect::<Vec<_>>().join(", ");
            return Err(LabError::new(format!(
                "lab {name}: processes {pids} survive SIGKILL: what keeps them (ps -o stat)?"
            )));
        }
        for p in left {
            p.signal(Signal::KILL);
            killed.insert(p.pid);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    removed.processes = killed.len();
    for n in ns::list().into_iter().filter(|n| name.owns_netns(n)) {
        ns::delete(&n)?;
        removed.namespaces += 1;
    }
    let dir = name.dir();
    for m in mounts_below(dir.root()) {
        let _ = unmount(&m, UnmountFlags::DETACH);
    }
    removed.directory = dir.root().exists();
    if removed.directory {
        std::fs::remove_dir_all(dir.root()).map_err(|e| LabError::new(format!("{}: {e}", dir.root().display())))?;
    }
    // The parents, when this was the last lab; another's files keep them.
    let _ = std::fs::remove_dir(LABS_DIR);
    if let Some(parent) = Path::new(LABS_DIR).parent() {
        let _ = std::fs::remove_dir(parent);
    }
    Ok(removed)
}

/// Mount points at or below a directory, deepest first.
fn mounts_below(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut v: Vec<String> = text
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|m| Path::new(m).starts_with(dir))
        .map(str::to_owned)
        .collect();
    v.sort_by_key(|m| std::cmp::Reverse(m.len()));
    v
}
