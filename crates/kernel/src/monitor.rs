//! Noticing that somebody changed the kernel's state, or a directory: descriptors to wait on, and what changed.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use kernel_api::nft::TableName;
use kernel_api::rt::MAIN_TABLE;

use crate::netlink::{Message, Messages, Socket, ne16, ne32};
use crate::netns::Netns;
use crate::nft::{NETLINK_NETFILTER, NEWGEN, NFNL_SUBSYS_NFTABLES, TABLE_NAME, decode};
use crate::rt::encode::{
    NUD_NOARP, NUD_PERMANENT, RTA_TABLE, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE,
};
use crate::sys;

/// `NETLINK_ADD_MEMBERSHIP`
const ADD_MEMBERSHIP: i32 = 1;
/// `NETLINK_DROP_MEMBERSHIP`
const DROP_MEMBERSHIP: i32 = 2;
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
    /// nf_tables, any table: somebody else committed.
    pub nft: bool,
    /// nf_tables, the table that is [watched](Monitor::watch_table), or what cannot be known not to be: notifications
    /// were lost.
    pub table: bool,
    /// The generation that the last of others' commits made, when it is known.
    pub generation: Option<u32>,
}

impl Changed {
    /// Whether anything did.
    #[must_use]
    pub fn any(self) -> bool {
        self.rt || self.nft || self.table
    }

    fn add(&mut self, more: Self) {
        self.rt |= more.rt;
        self.nft |= more.nft;
        self.table |= more.table;
        self.generation = more.generation.or(self.generation);
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
    /// The table whose changes are told apart.
    table: Option<TableName>,
    /// Seen by [`Monitor::settle`], not yet told.
    pending: Changed,
}

impl Monitor {
    /// Subscribes in the calling thread's namespace. A kernel without nf_tables has nothing to say about them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut monitor = Self::open_rt()?;
        match Socket::open(NETLINK_NETFILTER) {
            Ok(s) => {
                join_group(s.fd(), NFT_GROUP)?;
                sys::epoll_add(monitor.wait.as_fd(), s.fd())?;
                monitor.nft = Some(s);
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPROTONOSUPPORT)) => {}
            Err(e) => return Err(e),
        }
        Ok(monitor)
    }

    /// The same without nf_tables. Who does not need to hear of those should not: the kernel makes a page of memory of
    /// every element of every commit in any namespace as soon as one socket of the machine listens.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_rt() -> io::Result<Self> {
        let rt = Socket::open(libc::NETLINK_ROUTE)?;
        for g in RT_GROUPS {
            join_group(rt.fd(), g)?;
        }
        let wait = sys::epoll()?;
        sys::epoll_add(wait.as_fd(), rt.fd())?;
        Ok(Self { wait, rt, nft: None, ours: BTreeSet::new(), table: None, pending: Changed::default() })
    }

    /// Subscribes in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn open_in(netns: &Netns) -> io::Result<Self> {
        netns.inside(Self::open)
    }

    /// From now on leaves out what requests of the socket with this port id cause ([`crate::Rt::port`],
    /// [`crate::Nftables::port`]). Of nf_tables they do not even reach this process.
    ///
    /// # Errors
    /// When the kernel does not take the filter.
    pub fn ignore(&mut self, port: u32) -> io::Result<()> {
        self.ours.insert(port);
        match &self.nft {
            Some(s) => not_of(s.fd(), &self.ours),
            None => Ok(()),
        }
    }

    /// From now on tells changes of this table of family inet apart from others' ([`Changed::table`]). Without, every
    /// commit counts.
    pub fn watch_table(&mut self, table: TableName) {
        self.table = Some(table);
    }

    /// Stops listening to nf_tables, for a commit of many elements: the kernel makes a message of a page for each, and
    /// holds them all until it ends, which takes longer than the commit. Whoever does this compares generations to know
    /// whether anybody else committed until [`Monitor::listen`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn deaf(&mut self) -> io::Result<()> {
        self.nft.as_ref().map_or(Ok(()), |s| sys::set_option(s.fd(), libc::SOL_NETLINK, DROP_MEMBERSHIP, NFT_GROUP))
    }

    /// Listens to nf_tables again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen(&mut self) -> io::Result<()> {
        self.nft.as_ref().map_or(Ok(()), |s| join_group(s.fd(), NFT_GROUP))
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
        let mut now = std::mem::take(&mut self.pending);
        now.add(Changed { rt, ..Changed::default() });
        now.add(self.nft_changed(true, &|_| true)?);
        Ok(now)
    }

    /// What others did to nf_tables and was not told yet. It is still told by [`Monitor::changed`], which is to be called
    /// soon: this takes in all that has arrived, so that the descriptor says nothing of it.
    ///
    /// # Errors
    /// As [`Monitor::changed`].
    pub fn hear(&mut self) -> io::Result<Changed> {
        let nft = self.nft_changed(true, &|_| true)?;
        self.pending.add(nft);
        Ok(Changed { rt: false, ..self.pending })
    }

    /// Whether there is something to tell that the descriptor says nothing of.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        self.pending.any()
    }

    /// To call right after a commit: forgets what it caused, so that it does not wake its maker. What other processes
    /// asked for meanwhile is kept for [`Monitor::changed`]. Without any [`Monitor::ignore`] all is taken for our own.
    ///
    /// # Errors
    /// When a socket fails for another reason than lost notifications.
    pub fn settle(&mut self) -> io::Result<()> {
        let ours = &self.ours;
        // Port 0: the kernel itself, as a consequence of what was asked.
        let foreign = |port: u32| !ours.is_empty() && port != 0 && !ours.contains(&port);
        let rt = drain(&mut self.rt, false, &mut |m| foreign(m.port) && rt_counts(m))?;
        let named = !self.ours.is_empty();
        let nft = self.nft_changed(false, &|port| named && port != 0)?;
        self.pending.add(Changed { rt, ..nft });
        Ok(())
    }

    /// What others did to nf_tables, of those whose port counts; `lost` is what lost notifications mean.
    fn nft_changed(&mut self, lost: bool, counts: &dyn Fn(u32) -> bool) -> io::Result<Changed> {
        let (ours, table) = (&self.ours, self.table.as_ref().map(TableName::as_str));
        let mut found = Changed::default();
        let Some(socket) = &mut self.nft else { return Ok(found) };
        let unknown = drain(socket, lost, &mut |m| {
            if ours.contains(&m.port) || !counts(m.port) {
                return false;
            }
            found.nft = true;
            if m.kind == NFNL_SUBSYS_NFTABLES << 8 | NEWGEN {
                // Told last of all that a commit did.
                found.generation = decode::generation(m);
                found.table |= table.is_none();
            } else {
                // In every object's message the first attribute is the name of its table.
                found.table |= table.is_none_or(|t| decode::is_of(m, TABLE_NAME, t));
            }
            false
        })?;
        if unknown {
            found = Changed { nft: true, table: true, generation: None, rt: false };
        }
        Ok(found)
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

/// Drops what these ports caused before it takes room in the socket. All messages of a datagram are of one commit.
fn not_of(fd: BorrowedFd<'_>, ports: &BTreeSet<u32>) -> io::Result<()> {
    // ldw [12]: nlmsg_pid of the first message
    let mut program = vec![(0x20, 0, 0, 12)];
    // More than the jumps of a filter reach are told apart by us alone.
    for (left, port) in (1..=ports.len().min(200)).rev().zip(ports) {
        // jeq: to the last. A word is read as network order, the field is in host order.
        program.push((0x15, left as u8, 0, u32::from_be_bytes(port.to_ne_bytes())));
    }
    program.extend([
        (0x06, 0, 0, u32::MAX), // keep whole
        (0x06, 0, 0, 0),        // drop
    ]);
    sys::attach_filter(fd, &program)
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
