//! Packet sockets (packet(7)).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
    socket(libc::SOCK_DGRAM)
}

fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket for whole Ethernet frames, in the calling thread's namespace. It hears nothing before [`listen`].
pub(crate) fn frame_socket() -> io::Result<OwnedFd> {
    socket(libc::SOCK_RAW)
}

/// Hears the IPv4 packets of one link from now on.
pub(crate) fn packet_bind(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    listen(fd, index, ETH_P_IP)
}

/// Hears what of one protocol (`ETH_P_*`) one link receives, from now on.
pub(crate) fn listen(fd: BorrowedFd<'_>, index: u32, protocol: u16) -> io::Result<()> {
    let mut a = everybody(index);
    a.sll_protocol = protocol.to_be();
    // SAFETY: the address is live and its length given.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const a).cast(), LEN) }).map(drop)
}

/// Sends an IPv4 packet to the broadcast address of a link.
pub(crate) fn packet_broadcast(fd: BorrowedFd<'_>, index: u32, packet: &[u8]) -> io::Result<()> {
    send(fd, &everybody(index), packet)
}

/// Sends one Ethernet frame out of a link of the calling thread's namespace, past all that the network stack does.
pub(crate) fn frame_send(index: u32, frame: &[u8]) -> io::Result<()> {
    frame_send_by(frame_socket()?.as_fd(), index, frame)
}

/// As [`frame_send`], by a socket that is there.
pub(crate) fn frame_send_by(fd: BorrowedFd<'_>, index: u32, frame: &[u8]) -> io::Result<()> {
    let mut to = everybody(index);
    // What the frame itself says, for filters that look beside it.
    to.sll_protocol = frame.get(12..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_ne_bytes(*b));
    send(fd, &to, frame)
}

fn send(fd: BorrowedFd<'_>, to: &libc::sockaddr_ll, data: &[u8]) -> io::Result<()> {
    // SAFETY: data and address are live and their lengths given.
    again(|| {
        check_len(unsafe {
            libc::sendto(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), 0, (&raw const *to).cast(), LEN)
        })
    })
    .map(drop)
}
