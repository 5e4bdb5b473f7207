//! Network namespaces: handles, persistent ones at a path, and running code inside.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use kernel_api::rt::NetnsFd;

use crate::sys;

/// `NSFS_MAGIC`, include/uapi/linux/magic.h
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by an open descriptor. Clones share it.
#[derive(Debug, Clone)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    inode: u64,
}

impl Netns {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::from_file(File::open(OWN)?)
    }

    /// The namespace at `path`: a bind mount (`/run/netns/NAME`) or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When nothing is there (`NotFound`), or something that is no network namespace (`InvalidInput`; the message
    /// names the path), such as the empty file a half-made one leaves.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        // Not blocking: the path may be a fifo somebody put there.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Self::from_file(file).map_err(|e| {
            if e.kind() == io::ErrorKind::InvalidInput {
                let text = format!("{} is no network namespace: give a bind mount of one", path.display());
                io::Error::new(io::ErrorKind::InvalidInput, text)
            } else {
                e
            }
        })
    }

    fn from_file(file: File) -> io::Result<Self> {
        let is_netns = sys::filesystem_magic(file.as_fd())? == NSFS_MAGIC
            && sys::namespace_kind(file.as_fd()).is_ok_and(|k| k == libc::CLONE_NEWNET);
        if !is_netns {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no network namespace"));
        }
        let inode = file.metadata()?.ino();
        Ok(Self { fd: Arc::new(file.into()), inode })
    }

    /// Whether `path` is a network namespace. False when nothing is there.
    #[must_use]
    pub fn is_netns(path: impl AsRef<Path>) -> bool {
        Self::open(path).is_ok()
    }

    /// A new namespace without a name; it ends with the last handle to it or process in it. Its loopback is down.
    ///
    /// # Errors
    /// When the kernel refuses (rights, limits).
    pub fn new() -> io::Result<Self> {
        let made = thread::Builder::new().name("netns-new".into()).spawn(|| {
            sys::unshare(libc::CLONE_NEWNET)?;
            Self::current()
        })?;
        joined(made.join())
    }

    /// A new namespace with a name: a bind mount at `path`, as `ip netns add` makes it. Under `/run/netns` the
    /// directory becomes a shared mount first, so that namespaces come and go for every mount namespace (as iproute2
    /// does). An empty file left by a process that died half-way is used.
    ///
    /// # Errors
    /// When a namespace is there already (`AlreadyExists`), or the kernel refuses.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let target = cpath(path)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        if dir == Path::new("/run/netns") || dir == Path::new("/var/run/netns") {
            share(dir)?;
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o444).open(path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let leftover = fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0) && !Self::is_netns(path);
                if !leftover {
                    let text = format!("{} exists already", path.display());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
            }
            Err(e) => return Err(e),
        }
        let made = thread::Builder::new().name("netns-create".into()).spawn(move || {
            sys::unshare(libc::CLONE_NEWNET)?;
            sys::mount(Some(c"/proc/thread-self/ns/net"), &target, Some(c"none"), libc::MS_BIND, None)?;
            Self::current()
        })?;
        joined(made.join()).inspect_err(|_| {
            let _ = fs::remove_file(path);
        })
    }

    /// Removes the name at `path`. The namespace itself ends with its last process and handle. No error when nothing
    /// is there, or only the empty file.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let target = cpath(path)?;
        // Once per mount: two creators that raced may have stacked two.
        loop {
            match sys::umount(&target, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => break,
                Err(e) => return Err(e),
            }
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The inode number, which tells namespaces apart while they live.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The descriptor, for requests that name a namespace. Valid while this handle lives.
    #[must_use]
    pub fn fd(&self) -> NetnsFd {
        NetnsFd(self.fd.as_raw_fd())
    }

    /// Whether the calling thread is in it.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn is_current(&self) -> io::Result<bool> {
        Ok(fs::metadata(OWN)?.ino() == self.inode)
    }

    /// Runs `f` on a thread of its own inside the namespace. Sockets it opens stay in there. A panic of `f` goes on in
    /// the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered; then `f` has not run.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|s| {
            let inside = thread::Builder::new().name("netns-run".into()).spawn_scoped(s, || {
                sys::setns(self.fd.as_fd(), libc::CLONE_NEWNET)?;
                Ok(f())
            })?;
            joined(inside.join())
        })
    }

    /// Runs `f` on the calling thread inside the namespace, and comes back: for what belongs to the namespace it is opened
    /// in, wherever it is used.
    ///
    /// # Errors
    /// When the namespace cannot be entered; then `f` has not run. Else what `f` says.
    pub fn inside<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _inside = self.enter()?;
        f()
    }

    /// Moves the calling thread into the namespace until the guard is dropped.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn enter(&self) -> io::Result<Inside> {
        let before = Netns::current()?;
        sys::setns(self.fd.as_fd(), libc::CLONE_NEWNET)?;
        Ok(Inside { before, thread: PhantomData })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for Netns {}

/// The calling thread is in another namespace; dropping this brings it back. Cannot leave its thread.
#[derive(Debug)]
#[must_use = "the thread returns when this is dropped"]
pub struct Inside {
    before: Netns,
    thread: PhantomData<*const ()>,
}

impl Inside {
    /// Brings the thread back now.
    pub fn restore(self) {}
}

impl Drop for Inside {
    fn drop(&mut self) {
        if sys::setns(self.before.as_fd(), libc::CLONE_NEWNET).is_err() {
            // Going on would act on the wrong namespace.
            std::process::abort();
        }
    }
}

/// Makes `dir` a shared mount, by binding it to itself first if it is no mount.
fn share(dir: &Path) -> io::Result<()> {
    let target = cpath(dir)?;
    let lock = File::open(dir)?;
    sys::flock(lock.as_fd(), libc::LOCK_EX)?;
    let shared = libc::MS_SHARED | libc::MS_REC;
    match sys::mount(None, &target, Some(c"none"), shared, None) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            sys::mount(Some(&target), &target, Some(c"none"), libc::MS_BIND | libc::MS_REC, None)?;
            sys::mount(None, &target, Some(c"none"), shared, None)
        }
        r => r,
    }
}

fn cpath(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn joined<T>(r: thread::Result<io::Result<T>>) -> io::Result<T> {
    match r {
        Ok(r) => r,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a mount namespace of its own, so that this machine's /run stays as it is.
    #[test]
    fn run_netns_becomes_a_shared_mount_once() {
        thread::spawn(|| {
            sys::unshare(libc::CLONE_NEWNS).unwrap();
            sys::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None).unwrap();
            sys::mount(Some(c"tmpfs"), c"/run", Some(c"tmpfs"), 0, None).unwrap();
            for name in ["blue", "red"] {
                Netns::create(Path::new("/run/netns").join(name)).unwrap();
            }
            let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            // This machine may have one below.
            let ours = |l: &&str| l.split(' ').nth(4) == Some("/run/netns") && l.contains(" - tmpfs ");
            let mounts: Vec<&str> = text.lines().filter(ours).collect();
            assert_eq!(mounts.len(), 1, "{mounts:?}");
            assert!(mounts[0].contains(" shared:"), "{mounts:?}");
            Netns::delete("/run/netns/blue").unwrap();
            assert!(!Path::new("/run/netns/blue").exists() && Netns::is_netns("/run/netns/red"));
        })
        .join()
        .unwrap();
    }
}
