//! Sysctls of one network namespace.
//!
//! A path below /proc/sys/net leads to the knobs of the namespace that the *opening thread* is in (net/sysctl_net.c),
//! whatever process's /proc it is. So each access runs inside the namespace; the thread returns before the call does.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kernel_api::{RequestError, Sysctl};

use crate::netns::{Inside, Netns};

/// See [`set_proc_sys`].
static PROC_SYS: OnceLock<PathBuf> = OnceLock::new();

/// Says where the machine's /proc/sys can be written, for this process and from now on: in a container that is not
/// privileged, /proc/sys itself is read-only, and the same files can be mounted elsewhere.
///
/// # Errors
/// When no sysctl is below `dir`, or another place was said before.
pub fn set_proc_sys(dir: &Path) -> io::Result<()> {
    // One that every kernel with a network has.
    fs::metadata(dir.join("net/core"))?;
    PROC_SYS.set(dir.to_owned()).map_err(|_| io::Error::other("the place of sysctls was said before"))
}

/// Sysctls of the network namespace it was opened in. Knobs outside `net/` are the machine's.
#[derive(Debug)]
pub struct Sysctls {
    netns: Netns,
}

impl Sysctls {
    /// Of the calling thread's namespace.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netns: Netns::current()? })
    }

    /// Of `netns`.
    #[must_use]
    pub fn open_in(netns: &Netns) -> Self {
        Self { netns: netns.clone() }
    }

    fn inside(&self) -> io::Result<Option<Inside>> {
        if self.netns.is_current()? { Ok(None) } else { self.netns.enter().map(Some) }
    }
}

/// The file of a knob. Only plain relative paths: a name from outside (an interface's) must not lead elsewhere.
fn file(path: &str) -> io::Result<PathBuf> {
    let plain = !path.is_empty()
        && path.len() < 256
        && path.split('/').all(|c| !c.is_empty() && c != "." && c != ".." && !c.contains('\0'));
    if plain {
        Ok(PROC_SYS.get().map_or(Path::new("/proc/sys"), PathBuf::as_path).join(path))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path relative to /proc/sys"))
    }
}

impl Sysctl for Sysctls {
    fn get(&mut self, path: &str) -> Result<Option<String>, RequestError> {
        let read = || {
            let file = file(path)?;
            let _inside = self.inside()?;
            match fs::read_to_string(file) {
                Ok(s) => Ok(Some(s.trim_end_matches('\n').to_owned())),
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
                Err(e) => Err(e),
            }
        };
        read().map_err(|e: io::Error| RequestError::io(format!("read sysctl {path}"), &e))
    }

    fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
        let write = || {
            let file = file(path)?;
            let _inside = self.inside()?;
            // One write: the kernel takes each as a whole value.
            fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
        };
        write().map_err(|e: io::Error| RequestError::io(format!("write sysctl {path} = {value}"), &e))
    }
}
