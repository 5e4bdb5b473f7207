//! The machine's namespaces, for code that works in two of them at once: a pod's and the node's.

use std::fs::File;
use std::io;
use std::net::Ipv6Addr;

use crate::rt::NetnsFd;
use crate::{RequestError, Rtnetlink};

/// The machine as seen from the process's own network namespace, the node's.
pub trait Machine {
    /// An open namespace.
    type Netns: Netns;

    /// Rtnetlink of the own namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    fn host(&mut self) -> io::Result<<Self::Netns as Netns>::Rt>;

    /// The namespace at `path`.
    ///
    /// # Errors
    /// `NotFound` when nothing is there, `InvalidInput` when it is no network namespace.
    fn open(&mut self, path: &str) -> io::Result<Self::Netns>;

    /// Waits until nobody else holds byte `at` (below 2^63) of `file`, which is open for writing, and holds it until
    /// every copy of the descriptor is closed: an open file description lock (`F_OFD_SETLKW`, fcntl(2)).
    ///
    /// # Errors
    /// When the file system has no locks.
    fn lock(&mut self, file: &File, at: u64) -> io::Result<()>;
}

/// An open network namespace.
pub trait Netns {
    /// Its rtnetlink.
    type Rt: Rtnetlink;

    /// The descriptor, valid while this lives.
    fn fd(&self) -> NetnsFd;

    /// Its inode on nsfs.
    fn inode(&self) -> u64;

    /// Whether the plugin itself is in it.
    ///
    /// # Errors
    /// When /proc is not there.
    fn is_own(&self) -> io::Result<bool>;

    /// A socket inside.
    ///
    /// # Errors
    /// When it cannot be entered.
    fn rtnetlink(&self) -> io::Result<Self::Rt>;

    /// Writes a sysctl inside; `path` relative to /proc/sys, with slashes.
    ///
    /// # Errors
    /// When it is missing or refuses.
    fn set_sysctl(&self, path: &str, value: &str) -> Result<(), RequestError>;

    /// Whether packets to `addr`, an address of an interface inside, are delivered there yet. The kernel answers the
    /// request for an IPv6 address before it has made the local route: a work queue does that (`addrconf_dad_work`,
    /// net/ipv6/addrconf.c), also without duplicate detection.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn delivers(&self, addr: Ipv6Addr) -> io::Result<bool>;
}
