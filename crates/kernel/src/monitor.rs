//! Noticing that somebody changed the kernel's state, or a directory: descriptors to wait on, and what changed.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use kernel_api::rt::MAIN_TABLE;

use crate::netlink::{Message, Messages, Socket, ne16, ne32};
use crate::netns::Netns;
use crate::nft::{NETLINK_NETFILTER, NEWGEN, NFNL_SUBSYS_NFTABLES};
use crate::rt::encode::{
    NUD_NOARP, NUD_PERMANENT, RTA_TABLE, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE,
};
use crate::sys;

/// `NETLINK_ADD_MEMBERSHIP`
const ADD_MEMBERSHIP: i32 = 1;
/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`
const RT_GROUPS: [i32; 6] = [1, 3, 5, 7, 9, 11];
/// `NFNLGRP_NFTABLES`
pub(crate) const NFT_GROUP: i32 = 7;
/// Datagrams taken in by one look, so that a flood cannot hold the caller.
const AT_ONCE: usize = 4096;
/// `NUD_FAILED`: what a deleted permanent neighbour becomes first.
const NUD_FAILED: u16 = 0x20;
const RTM_F_CLONED: u32 = 0x200;

/// What changed since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// Links, addresses, routes of the main table, permanent neighbours or forwarding entries.
    pub rt: bool,
    /// nf_tables, any table.
    pub nft: bool,
}

impl Changed {
    /// Whether anything did.
    #[must_use]
    pub fn any(self) -> bool {
        self.rt || self.nft
    }
}

/// Subscriptions to changes in one network namespace. Its descriptor ([`AsFd`]) is readable when there is something to
/// look at with [`Monitor::changed`].
///
/// What our own sockets caused can be left out ([`Monitor::ignore`]). The kernel does not name the cause of
/// everything: links set up or down, IPv6 addresses and VXLAN forwarding entries come without it, so a commit of those
/// still wakes its maker once; the pass that follows finds nothing to do and that ends it.
pub struct Monitor {
    wait: OwnedFd,
    rt: Socket,
    nft: Option<Socket>,
    ours: BTreeSet<u32>,
    /// Seen by [`Monitor::settle`], not yet told.
    pending: Changed,
}

impl Monitor {
    /// Subscribes in the calling thread's namespace. A kernel without nf_tables has nothing to say about them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let rt = Socket::open(libc::NETLINK_ROUTE)?;
        for g in RT_GROUPS {
            join_group(rt.fd(), g)?;
        }
        let nft = match Socket::open(NETLINK_NETFILTER) {
            Ok(s) => {
                only_generations(s.fd())?;
                join_group(s.fd(), NFT_GROUP)?;
                Some(s)
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPROTONOSUPPORT)) => None,
            Err(e) => return Err(e),
        };
        let wait = sys::epoll()?;
        sys::epoll_add(wait.as_fd(), rt.fd())?;
        if let Some(s) = &nft {
            sys::epoll_add(wait.as_fd(), s.fd())?;
        }
        Ok(Self { wait, rt, nft, ours: BTreeSet::new(), pending: Changed::default() })
    }

    /// Subscribes in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn open_in(netns: &Netns) -> io::Result<Self> {
        netns.inside(Self::open)
    }

    /// From now on leaves out what requests of the socket with this port id cause ([`crate::Rt::port`],
    /// [`crate::Nftables::port`]).
    pub fn ignore(&mut self, port: u32) {
        self.ours.insert(port);
    }

    /// The descriptors to wait on.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; 1] {
        [self.wait.as_fd()]
    }

    /// Takes in everything that has arrived, without waiting. Notifications that were lost for lack of room count as
    /// changes.
    ///
    /// # Errors
    /// When a socket fails for another reason.
    pub fn changed(&mut self) -> io::Result<Changed> {
        let ours = &self.ours;
        let rt = drain(&mut self.rt, true, &mut |m| !ours.contains(&m.port) && rt_counts(m))?;
        let nft = match &mut self.nft {
            Some(s) => drain(s, true, &mut |m| !ours.contains(&m.port))?,
            None => false,
        };
        let before = std::mem::take(&mut self.pending);
        Ok(Changed { rt: before.rt || rt, nft: before.nft || nft })
    }

    /// To call right after a commit: forgets what it caused, so that it does not wake its maker. What other processes
    /// asked for meanwhile is kept for [`Monitor::changed`]. Without any [`Monitor::ignore`] all is taken for our own.
    ///
    /// # Errors
    /// When a socket fails for another reason than lost notifications.
    pub fn settle(&mut self) -> io::Result<()> {
        let ours = &self.ours;
        // Port 0: the kernel itself, as a consequence of what was asked.
        let foreign = |m: &Message<'_>| !ours.is_empty() && m.port != 0 && !ours.contains(&m.port);
        self.pending.rt |= drain(&mut self.rt, false, &mut |m| foreign(m) && rt_counts(m))?;
        if let Some(s) = &mut self.nft {
            self.pending.nft |= drain(s, false, &mut |m| foreign(m))?;
        }
        Ok(())
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wait.as_fd()
    }
}

/// Subscribes a netlink socket to a group of notifications.
pub(crate) fn join_group(fd: BorrowedFd<'_>, group: i32) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_NETLINK, ADD_MEMBERSHIP, group)
}

/// Keeps only the end-of-commit message of each transaction: one per commit, however many elements it held.
fn only_generations(fd: BorrowedFd<'_>) -> io::Result<()> {
    // A half word is read as network order, the field is in host order.
    let want = u16::from_be_bytes((NFNL_SUBSYS_NFTABLES << 8 | NEWGEN).to_ne_bytes());
    sys::attach_filter(
        fd,
        &[
            (0x28, 0, 0, 4),               // ldh [4]: nlmsg_type of the first message
            (0x15, 0, 1, u32::from(want)), // jeq: else skip one
            (0x06, 0, 0, u32::MAX),        // keep whole
            (0x06, 0, 0, 0),               // drop
        ],
    )
}

/// Reads what is there; `lost` is what lost notifications mean.
fn drain(socket: &mut Socket, lost: bool, counts: &mut dyn FnMut(&Message<'_>) -> bool) -> io::Result<bool> {
    let mut changed = false;
    for _ in 0..AT_ONCE {
        match socket.receive(false) {
            Ok(None) => return Ok(changed),
            Ok(Some(b)) => changed |= Messages(b).any(|m| counts(&m)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EMSGSIZE)) => changed |= lost,
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Whether a notification is of something that images hold; learned neighbours come and go by themselves.
pub(crate) fn rt_counts(m: &Message<'_>) -> bool {
    match m.kind {
        RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => true,
        RTM_NEWROUTE | RTM_DELROUTE => {
            let table = m.attrs(12).get(RTA_TABLE).and_then(ne32);
            let table = table.or_else(|| m.payload.get(4).copied().map(u32::from));
            let flags = m.payload.get(8..).and_then(ne32).unwrap_or(0);
            table == Some(MAIN_TABLE) && flags & RTM_F_CLONED == 0
        }
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            let state = m.payload.get(8..).and_then(ne16).unwrap_or(0);
            state & (NUD_PERMANENT | NUD_NOARP) != 0 || m.kind == RTM_DELNEIGH && state & NUD_FAILED != 0
        }
        _ => false,
    }
}

/// Watches a directory: files made, written, moved or deleted in it. Its descriptor is readable when something did.
pub struct DirWatch {
    fd: File,
}

impl DirWatch {
    /// Starts watching `dir`.
    ///
    /// # Errors
    /// When it is not there or the system's limit of watches is reached.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<Self> {
        let path = CString::new(dir.as_ref().as_os_str().as_bytes())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let fd = sys::inotify()?;
        let mask = libc::IN_CREATE
            | libc::IN_MODIFY
            | libc::IN_MOVED_FROM
            | libc::IN_MOVED_TO
            | libc::IN_DELETE
            | libc::IN_DELETE_SELF
            | libc::IN_ONLYDIR;
        sys::inotify_add(fd.as_fd(), &path, mask)?;
        Ok(Self { fd: fd.into() })
    }

    /// Whether anything happened since the last look.
    ///
    /// # Errors
    /// When the descriptor fails.
    pub fn changed(&mut self) -> io::Result<bool> {
        let mut buf = [0u8; 16 << 10];
        let mut changed = false;
        for _ in 0..AT_ONCE {
            match self.fd.read(&mut buf) {
                Ok(n) => changed |= n > 0,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(changed)
    }
}

impl AsFd for DirWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of `fds` is readable, or `timeout` has passed (`None`: for ever). True for each that is ready. A
/// signal ends the wait early, with none ready.
///
/// # Errors
/// When a descriptor is no longer open, or there are too many.
pub fn poll(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // Rounded up, so that a wait for less than a millisecond is not a busy loop.
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
    sys::poll(&raw, ms)
}
