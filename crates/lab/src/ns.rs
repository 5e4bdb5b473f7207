//! Network namespaces by name, and entering them.
//!
//! A namespace belongs to a thread; the lab is async. So work inside one is done either on a thread made for it
//! ([`within`]) or by a process that enters and then becomes the program ([`Enter`]), which needs no code between fork
//! and exec and so no `unsafe`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kernel::{Netns, Rt};
use kernel_api::Rtnetlink;
use kernel_api::rt::{RtRequest, SetLink};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use types::IfName;

use crate::name::NETNS_DIR;
use crate::{Doing, LabError};

/// The path of a named namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Leaves the namespaces named by `flags`. Only ever called with flags that concern this thread alone and no file
/// descriptor (`CLONE_NEWNS`, `CLONE_NEWUTS`).
#[expect(deprecated, reason = "the replacement is an unsafe fn because of CLONE_FILES, which is never passed here")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(flags)
}

/// Makes an empty namespace.
///
/// # Errors
/// When one of that name exists, or without CAP_SYS_ADMIN.
pub fn create(name: &str) -> Result<(), LabError> {
    Netns::create(path(name)).map(drop).doing(|| format!("network namespace {name} (making one needs root)"))
}

/// Removes a namespace's name and mount. The namespace itself goes when its last process does. Removing one that is
/// not there succeeds.
///
/// # Errors
/// When the name cannot be removed.
pub fn delete(name: &str) -> Result<(), LabError> {
    Netns::delete(path(name)).doing(|| format!("remove network namespace {name}"))
}

/// Brings the loopback of a namespace up, as a runtime does before it calls CNI.
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses.
pub fn loopback_up(name: &str) -> Result<(), LabError> {
    let lo = "lo".parse::<IfName>().doing(|| "lo")?;
    within(&path(name), move || {
        let mut rt = Rt::open().doing(|| "rtnetlink")?;
        rt.run(&[RtRequest::LinkSet(SetLink::up(lo))]).doing(|| "loopback")
    })
}

/// The names of all namespaces below /run/netns.
#[must_use]
pub fn list() -> Vec<String> {
    let Ok(dir) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let mut v: Vec<String> = dir.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    v.sort();
    v
}

/// The identity of the namespace a file stands for: the inode of nsfs.
#[must_use]
pub fn inode(file: &Path) -> Option<u64> {
    std::fs::metadata(file).ok().map(|m| m.ino())
}

/// Runs `f` on a thread of its own inside the namespace at `netns`.
///
/// # Errors
/// When the namespace cannot be entered, and the errors of `f`.
pub fn within<T: Send>(netns: &Path, f: impl FnOnce() -> Result<T, LabError> + Send) -> Result<T, LabError> {
    let what = || format!("network namespace {}", netns.display());
    Netns::open(netns).doing(what)?.run(f).doing(what)?
}

fn enter_netns(netns: &Path) -> Result<(), LabError> {
    let ns = File::open(netns).doing(|| format!("network namespace {}", netns.display()))?;
    move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network))
        .doing(|| format!("enter network namespace {}", netns.display()))
}

/// The namespaces that a process enters before it becomes something else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enter {
    /// The network namespace.
    pub netns: Option<PathBuf>,
    /// A file to see at /etc/hosts.
    pub hosts: Option<PathBuf>,
    /// A file to see at /etc/resolv.conf.
    pub resolv: Option<PathBuf>,
    /// The host name (a UTS namespace of its own).
    pub hostname: Option<String>,
}

impl Enter {
    /// As arguments of the hidden subcommands that take one; read back by the binary's parser.
    #[must_use]
    pub fn to_args(&self) -> Vec<String> {
        let mut v = Vec::new();
        let mut put = |flag: &str, value: Option<String>| v.extend(value.into_iter().flat_map(|x| [flag.into(), x]));
        put("--netns", self.netns.as_ref().map(|p| p.display().to_string()));
        put("--hosts", self.hosts.as_ref().map(|p| p.display().to_string()));
        put("--resolv", self.resolv.as_ref().map(|p| p.display().to_string()));
        put("--hostname", self.hostname.clone());
        v
    }

    /// Enters. For a process of one thread, before it starts any other.
    ///
    /// # Errors
    /// When a namespace cannot be made or entered, or a file cannot be mounted.
    pub fn enter(&self) -> Result<(), LabError> {
        if let Some(h) = &self.hostname {
            unshare(UnshareFlags::NEWUTS).doing(|| "UTS namespace")?;
            rustix::system::sethostname(h.as_bytes()).doing(|| format!("host name {h}"))?;
        }
        if self.hosts.is_some() || self.resolv.is_some() {
            unshare(UnshareFlags::NEWNS).doing(|| "mount namespace")?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .doing(|| "make mounts private")?;
            for (from, to) in [(&self.hosts, "/etc/hosts"), (&self.resolv, "/etc/resolv.conf")] {
                if let Some(from) = from {
                    mount_bind(from, to).doing(|| format!("mount {} over {to} (does {to} exist?)", from.display()))?;
                }
            }
        }
        if let Some(n) = &self.netns {
            enter_netns(n)?;
        }
        if self.hosts.is_some() || self.resolv.is_some() {
            // This mount namespace has copies of the mounts of every other pod's namespace; they would keep those
            // alive after their removal.
            while unmount(NETNS_DIR, UnmountFlags::DETACH).is_ok() {}
        }
        Ok(())
    }
}
