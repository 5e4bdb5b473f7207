//! Packet sockets (packet(7)).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{again, check, check_len};

/// `ETH_P_IP`, include/uapi/linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;

/// An address of layer 2: IPv4 on a link, to everybody.
fn everybody(index: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain integers, for which zero is valid.
    let mut a: libc::sockaddr_ll = unsafe { mem::zeroed() };
    a.sll_family = libc::AF_PACKET as libc::c_ushort;
    a.sll_protocol = ETH_P_IP.to_be();
    a.sll_ifindex = index.cast_signed();
    a.sll_halen = 6;
    a.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    a
}

const LEN: libc::socklen_t = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;

/// A socket for whole IPv4 packets, in the calling thread's namespace. It hears nothing before [`packet_bind`].
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hears the IPv4 packets of one link from now on.
pub(crate) fn packet_bind(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let a = everybody(index);
    // SAFETY: the address is live and its length given.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const a).cast(), LEN) }).map(drop)
}

/// Sends an IPv4 packet to the broadcast address of a link.
pub(crate) fn packet_broadcast(fd: BorrowedFd<'_>, index: u32, packet: &[u8]) -> io::Result<()> {
    let to = everybody(index);
    // SAFETY: packet and address are live and their lengths given.
    again(|| {
        check_len(unsafe {
            libc::sendto(fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, (&raw const to).cast(), LEN)
        })
    })
    .map(drop)
}
