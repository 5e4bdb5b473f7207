//! Tun and tap devices (include/uapi/linux/if_tun.h).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use kernel_api::rt::NewTun;

use super::check;

/// Makes the device of an open /dev/net/tun and lets it stay. If a later step is refused, it goes with the descriptor.
pub(crate) fn make(fd: BorrowedFd<'_>, t: &NewTun) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut r: libc::ifreq = unsafe { mem::zeroed() };
    // A name is at most 15 bytes, so that a final NUL stays.
    for (to, from) in r.ifr_name.iter_mut().zip(t.name.as_str().bytes().take(15)) {
        *to = from as libc::c_char;
    }
    let kind = if t.tap { libc::IFF_TAP } else { libc::IFF_TUN };
    let queues = if t.multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    r.ifr_ifru.ifru_flags = (kind | queues | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as libc::c_short;
    // SAFETY: the request is live, and the kernel reads and writes within it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut r) })?;
    for (request, id) in [(libc::TUNSETOWNER, t.owner), (libc::TUNSETGROUP, t.group)] {
        if let Some(id) = id {
            number(fd, request as _, libc::c_ulong::from(id))?;
        }
    }
    number(fd, libc::TUNSETPERSIST as _, 1)
}

fn number(fd: BorrowedFd<'_>, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these take a number where others take a pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) }).map(drop)
}
