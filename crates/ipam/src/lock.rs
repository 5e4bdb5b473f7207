//! One attachment is worked on by one process at a time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use types::OwnedName;

use crate::IpamError;

/// Held while an attachment is being made, checked or removed; released on drop and by the death of the process.
///
/// The file is removed while it is still held. Who waited on the removed file notices that the path no longer leads to
/// it and starts over, so two holders never exist and no file stays behind.
#[derive(Debug)]
pub struct KeyLock {
    path: PathBuf,
    _file: File,
}

impl KeyLock {
    /// Waits for the lock of the attachment whose host end is `link`. Makes `dir` when it is missing.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn take(dir: &Path, link: &OwnedName) -> Result<Self, IpamError> {
        let keys = dir.join("keys");
        let path = keys.join(link.as_str());
        loop {
            let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = match open() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    make_dir(&keys)?;
                    open()
                }
                r => r,
            }
            .map_err(|e| IpamError::io("create lock file", &path, e))?;
            lock(&file, FlockOperation::LockExclusive).map_err(|e| IpamError::io("lock", &path, e))?;
            let same = match (file.metadata(), fs::metadata(&path)) {
                (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
                _ => false,
            };
            if same {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Fails only when the directory was taken away or became read-only; then there is nothing to tidy.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the lock files of processes that died; gives their names. Files in use are left alone.
///
/// # Errors
/// When the directory cannot be read.
pub fn stray_key_locks(dir: &Path) -> Result<Vec<String>, IpamError> {
    let keys = dir.join("keys");
    let entries = match fs::read_dir(&keys) {
        Ok(e) => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(IpamError::io("read directory", &keys, e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| IpamError::io("read directory", &keys, e))?;
        let Ok(file) = File::open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        // As in `KeyLock::drop`: removed while held.
        let same = match (file.metadata(), fs::metadata(entry.path())) {
            (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
            _ => false,
        };
        if same && fs::remove_file(entry.path()).is_ok() {
            out.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    out.sort();
    Ok(out)
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
