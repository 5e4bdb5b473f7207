//! The one seam to the operating system: every unsafe block of the workspace is in this folder, each behind a safe
//! function that checks what C does not.
#![allow(unsafe_code)] // libc calls have no safe form; nothing outside this folder may do the same

pub(crate) mod fork;
mod packet;
pub(crate) mod tun;

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(crate) use packet::{
    frame_send, frame_send_by, frame_socket, listen, packet_bind, packet_broadcast, packet_socket,
};

/// Turns a libc return value into a result: -1 means `errno`.
fn check(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn check_len(r: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}

/// Runs again while a signal interrupts.
fn again<T>(mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match f() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            r => return r,
        }
    }
}

/// A netlink socket of `protocol` (`NETLINK_*`), bound to a port id the kernel chooses; returns that too.
pub(crate) fn netlink_socket(protocol: libc::c_int) -> io::Result<(OwnedFd, u32)> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_nl is plain integers, for which zero is valid.
    let mut addr: libc::sockaddr_nl = unsafe { mem::zeroed() };
    addr.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let mut len = mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the address is a live sockaddr_nl and `len` its size.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) })?;
    // SAFETY: as above; the kernel writes at most `len` bytes.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut addr).cast(), &raw mut len) })?;
    Ok((fd, addr.nl_pid))
}

/// Sets an integer socket option.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value lives across the call and its size is given.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Reads an integer socket option.
pub(crate) fn get_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `value`.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

/// Bounds how long a receive blocks.
pub(crate) fn set_receive_timeout(fd: BorrowedFd<'_>, seconds: i64) -> io::Result<()> {
    let tv = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    // SAFETY: the value lives across the call and its size is given.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const tv).cast(),
            mem::size_of::<libc::timeval>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// The name of a link in the socket's namespace (`SIOCGIFNAME`, netdevice(7)); ENODEV when there is none of that index.
pub(crate) fn link_name(fd: BorrowedFd<'_>, index: u32) -> io::Result<Vec<u8>> {
    // SAFETY: ifreq is plain integers, for which zero is valid.
    let mut r: libc::ifreq = unsafe { mem::zeroed() };
    r.ifr_ifru.ifru_ifindex = libc::c_int::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: the kernel reads and fills the struct it is given.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut r) })?;
    let name = r.ifr_name.iter().take_while(|c| **c != 0);
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // the type differs between architectures
    Ok(name.map(|c| *c as u8).collect())
}

/// Attaches a classic BPF program as the socket's filter. Each instruction is (code, jt, jf, k).
pub(crate) fn attach_filter(fd: BorrowedFd<'_>, program: &[(u16, u8, u8, u32)]) -> io::Result<()> {
    let mut code: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let len = u16::try_from(code.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let prog = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    // SAFETY: `prog` points at `len` live instructions; the kernel copies and verifies them.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const prog).cast(),
            mem::size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Sends one datagram to the kernel.
pub(crate) fn send(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice is live and its length given. A netlink socket that is not connected sends to the kernel.
    again(|| check_len(unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), 0) }))
}

/// Receives one datagram into `buf`, as much of it as `buf` has room for; returns its true length, which exceeds
/// `buf.len()` when it was cut (`MSG_TRUNC`), and the sender's port id (0 is the kernel).
pub(crate) fn recv(fd: BorrowedFd<'_>, buf: &mut Vec<u8>, wait: bool) -> io::Result<(usize, u32)> {
    let flags = libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
    buf.clear();
    // SAFETY: sockaddr_nl is plain integers, for which zero is valid.
    let mut addr: libc::sockaddr_nl = unsafe { mem::zeroed() };
    let mut alen = mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the kernel writes at most buf.capacity() bytes of data and `alen` bytes of address.
    let n = again(|| {
        check_len(unsafe {
            libc::recvfrom(
                fd.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.capacity(),
                flags,
                (&raw mut addr).cast(),
                &raw mut alen,
            )
        })
    })?;
    // SAFETY: the kernel has written as many bytes as it says, and at most the capacity it was given.
    unsafe { buf.set_len(n.min(buf.capacity())) };
    Ok((n, addr.nl_pid))
}

/// Moves the calling thread into the namespace of `fd`, which must be of kind `nstype` (`CLONE_NEW*`).
pub(crate) fn setns(fd: BorrowedFd<'_>, nstype: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(fd.as_raw_fd(), nstype) }).map(drop)
}

/// Moves the calling thread into new namespaces (`CLONE_NEW*`).
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// The kind (`CLONE_NEW*`) of the namespace that `fd` is, or ENOTTY when it is none.
pub(crate) fn namespace_kind(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // _IO(0xb7, 3), include/uapi/linux/nsfs.h
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this ioctl takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })
}

/// The magic number of the file system that `fd` is on.
pub(crate) fn filesystem_magic(fd: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: statfs is plain integers, for which zero is valid.
    let mut st: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the kernel fills the struct it is given.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut st) })?;
    #[allow(clippy::unnecessary_cast)] // the field's type differs between architectures
    Ok(st.f_type as i64)
}

fn ptr(s: Option<&CStr>) -> *const libc::c_char {
    s.map_or(std::ptr::null(), CStr::as_ptr)
}

/// mount(2).
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    // SAFETY: all are NUL-terminated and live, or null where the kernel takes null.
    check(unsafe { libc::mount(ptr(source), target.as_ptr(), ptr(fstype), flags, ptr(data).cast()) }).map(drop)
}

/// umount2(2).
pub(crate) fn umount(target: &CStr, flags: i32) -> io::Result<()> {
    // SAFETY: NUL-terminated and live.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// Waits until every processor has left what it was reading under RCU (a grace period), in about 0.1 ms: a copy of a
/// mount that is in no namespace is dropped (open_tree(2)), for whose readers the kernel waits so, without a lock that
/// others want (`namespace_unlock`, fs/namespace.c). Where it is refused nothing is waited for, so that nothing may
/// depend on it but speed.
pub(crate) fn grace() {
    // SAFETY: the path is NUL-terminated and live.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), OPEN_TREE_CLONE | libc::O_CLOEXEC as u32)
    };
    if let Ok(fd) = libc::c_int::try_from(fd)
        && fd >= 0
    {
        // SAFETY: the kernel just gave us this descriptor. Closing it is what waits.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// `OPEN_TREE_CLONE`, include/uapi/linux/mount.h
const OPEN_TREE_CLONE: u32 = 1;

/// `malloc_trim(3)`: gives free memory of the heap back to the system. Other C libraries than glibc have none.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches nothing that is in use; glibc holds its own locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// flock(2).
pub(crate) fn flock(fd: BorrowedFd<'_>, operation: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    again(|| check(unsafe { libc::flock(fd.as_raw_fd(), operation) }).map(drop))
}

/// Waits for an exclusive lock on one byte of a file, held by the open file description (`F_OFD_SETLKW`, fcntl(2)).
pub(crate) fn lock_byte(fd: BorrowedFd<'_>, at: u64) -> io::Result<()> {
    // SAFETY: flock is plain integers, for which zero is valid; `l_pid` must be zero.
    let mut l: libc::flock = unsafe { mem::zeroed() };
    l.l_type = libc::F_WRLCK as libc::c_short;
    l.l_whence = libc::SEEK_SET as libc::c_short;
    l.l_start = libc::off_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    l.l_len = 1;
    // SAFETY: the struct lives across the call.
    again(|| check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLKW, &raw const l) }).map(drop))
}

/// kill(2); signal 0 only asks whether the process is there.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// poll(2) for reading; true for each descriptor that is ready, in error or hung up. Negative waits for ever.
pub(crate) fn poll(fds: &[RawFd], timeout_ms: i32) -> io::Result<Vec<bool>> {
    let mut set: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array is live and its length given.
    let n = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout_ms) };
    if n < 0 {
        let e = io::Error::last_os_error();
        // A signal is no event of a descriptor; the caller looks at its own state and polls again.
        return if e.kind() == io::ErrorKind::Interrupted { Ok(vec![false; fds.len()]) } else { Err(e) };
    }
    Ok(set.iter().map(|p| p.revents != 0).collect())
}

/// A new inotify instance, non-blocking.
pub(crate) fn inotify() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a watch.
pub(crate) fn inotify_add(fd: BorrowedFd<'_>, path: &CStr, mask: u32) -> io::Result<()> {
    // SAFETY: NUL-terminated and live.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) }).map(drop)
}

/// A pidfd of a process, ready to read once it has ended.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new epoll instance: one descriptor that is readable when any of several is.
pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a descriptor to wait on for reading.
pub(crate) fn epoll_add(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the event is live across the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) }).map(drop)
}

/// A file in memory, empty, for reading and writing.
pub(crate) fn memory_file(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: NUL-terminated and live.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
