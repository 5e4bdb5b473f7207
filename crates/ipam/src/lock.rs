//! One attachment is worked on by one process at a time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use types::OwnedName;

use crate::IpamError;

/// Held while an attachment is being made, checked or removed; released on drop and by the death of the process.
///
/// It is one byte of the file `busy`, which is always empty and stays: making a file for each would cost more than most
/// of an ADD, would fail on a full disk when a pod wants to go, and would leave files behind whoever is killed.
#[derive(Debug)]
pub struct KeyLock {
    file: File,
}

impl KeyLock {
    /// Waits for the lock of the attachment whose host end is `link`. Makes `dir` when it is missing. `lock` waits until
    /// it alone holds one byte of a file, until the file is closed: an open file description lock (`F_OFD_SETLKW`,
    /// fcntl(2)), so that threads exclude each other as well.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn take(
        dir: &Path,
        link: &OwnedName,
        lock: impl FnOnce(&File, u64) -> io::Result<()>,
    ) -> Result<Self, IpamError> {
        let path = dir.join("busy");
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_dir(dir)?;
                open()
            }
            r => r,
        }
        .map_err(|e| IpamError::io("open lock file", &path, e))?;
        lock(&file, link.digits()).map_err(|e| IpamError::io("lock", &path, e))?;
        Ok(Self { file })
    }
}

/// Whoever has a copy of the descriptor holds the lock as well.
impl AsFd for KeyLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `flock`, again after a signal.
pub(crate) fn lock(file: &File, how: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, how) {
            Err(rustix::io::Errno::INTR) => {}
            r => return r.map_err(Into::into),
        }
    }
}

/// Makes a directory and its parents, readable by all: the files inside have their own modes.
pub(crate) fn make_dir(dir: &Path) -> Result<(), IpamError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|e| IpamError::io("create directory", dir, e))
}
