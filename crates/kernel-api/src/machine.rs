//! The machine's namespaces, for code that works in two of them at once: a pod's and the node's.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use types::{IfName, OwnedName};

use crate::rt::{NetnsFd, NewTun, ObservedRoute, ObservedRule};
use crate::{Conntrack, Nft, RequestError, Rtnetlink, Sysctl};

/// The machine as seen from the process's own network namespace, the node's.
pub trait Machine {
    /// An open namespace.
    type Netns: Netns;
    /// nf_tables of the own namespace.
    type Nft: Nft;
    /// Tracked connections of the own namespace.
    type Conntrack: Conntrack;
    /// Sysctls of the own namespace.
    type Sysctl: Sysctl;

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

    /// Begins to delete links of the own namespace, those that are there, and does not wait for the end of it: a process
    /// of its own does, and holds `keep` until they are gone.
    ///
    /// # Errors
    /// When it cannot be begun; then nothing happens to them.
    fn discard(&mut self, links: &[OwnedName], keep: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// The own namespace, to move links back to.
    ///
    /// # Errors
    /// When /proc is not there.
    fn own(&mut self) -> io::Result<Self::Netns>;

    /// nf_tables of the own namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    fn nft(&mut self) -> io::Result<Self::Nft>;

    /// Tracked connections of the own namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    fn conntrack(&mut self) -> io::Result<Self::Conntrack>;

    /// Sysctls of the own namespace.
    ///
    /// # Errors
    /// When /proc is not there.
    fn sysctl(&mut self) -> io::Result<Self::Sysctl>;

    /// Runs a program to its end, without a shell: another CNI plugin to delegate to. It ends when its caller does.
    ///
    /// # Errors
    /// `NotFound` and the like when it cannot be started, `TimedOut` when it did not end in time and was killed,
    /// `FileTooLarge` when it said more than the limit and was killed.
    fn exec(&mut self, program: &Exec) -> io::Result<Output>;
}

/// A program to run ([`Machine::exec`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Its file; never searched in PATH.
    pub program: PathBuf,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// How many bytes it may say on standard output, and on standard error.
    pub limit: usize,
    /// How long it may take.
    pub timeout: Duration,
}

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// Exit code; absent when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// An open network namespace.
///
/// What is not ours can be deleted here, in a container, and nowhere else: each `delete_*` refuses with EPERM when the
/// namespace is the process's own.
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

    /// Reads a sysctl inside; `None` when the kernel has no such knob.
    ///
    /// # Errors
    /// When it exists but cannot be read.
    fn get_sysctl(&self, path: &str) -> Result<Option<String>, RequestError>;

    /// Deletes any link inside.
    ///
    /// # Errors
    /// ENODEV when it is not there, EOPNOTSUPP for hardware and loopback, EPERM in the own namespace.
    fn delete_link(&self, name: &IfName) -> Result<(), RequestError>;

    /// Deletes any route inside, also of another protocol than ours.
    ///
    /// # Errors
    /// ESRCH when it is not there, EPERM in the own namespace.
    fn delete_route(&self, route: &ObservedRoute) -> Result<(), RequestError>;

    /// Deletes any rule inside, also of another protocol than ours.
    ///
    /// # Errors
    /// ENOENT when it is not there, EPERM in the own namespace.
    fn delete_rule(&self, rule: &ObservedRule) -> Result<(), RequestError>;

    /// Makes a persistent tap or tun device inside (`TUNSETIFF`, `TUNSETPERSIST`, `TUNSETOWNER`, `TUNSETGROUP`). None is
    /// left when it fails half-way.
    ///
    /// # Errors
    /// EBUSY when the name is taken, ENOENT without /dev/net/tun.
    fn add_tun(&self, tun: &NewTun) -> Result<(), RequestError>;

    /// Tells the neighbours of a link inside where its address is now: a gratuitous ARP request (RFC 5227 section 3) or
    /// an unsolicited neighbour advertisement with the override flag (RFC 4861 section 7.2.6), once.
    ///
    /// # Errors
    /// ENODEV when there is no such link or it has no hardware address, ENETDOWN when it is down.
    fn announce(&self, link: &IfName, addr: IpAddr) -> Result<(), RequestError>;

    /// Whether packets to `addr`, an address of an interface inside, are delivered there yet. The kernel answers the
    /// request for an IPv6 address before it has made the local route: a work queue does that (`addrconf_dad_work`,
    /// net/ipv6/addrconf.c), also without duplicate detection.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn delivers(&self, addr: Ipv6Addr) -> io::Result<bool>;
}
