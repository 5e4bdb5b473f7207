//! IPv4 packets of one link, seen and sent before the link has an address (packet(7)): for a DHCP client.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::{Netns, sys};

/// Longer packets are cut short.
const LONGEST: usize = 4096;

/// A socket that sees the UDP datagrams to one port of one link.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    index: u32,
    buffer: Vec<u8>,
}

impl PacketSocket {
    /// Opens it in `netns` on the link with this index, for unfragmented UDP to `port`.
    ///
    /// # Errors
    /// `NotConnected` (ENETDOWN) when the link is down, ENODEV when it is gone.
    pub fn open(netns: &Netns, index: u32, port: u16) -> io::Result<Self> {
        let fd = netns.inside(sys::packet_socket)?;
        // Before it is bound, so that nothing else is ever queued. The packet begins with the IPv4 header.
        sys::attach_filter(
            fd.as_fd(),
            &[
                (0x30, 0, 0, 9),               // ldb [9]: the protocol
                (0x15, 0, 6, 17),              // jeq UDP
                (0x28, 0, 0, 6),               // ldh [6]: flags and fragment offset
                (0x45, 4, 0, 0x1fff),          // jset: not the first fragment
                (0xb1, 0, 0, 0),               // ldxb 4*([0]&0xf): length of the header
                (0x48, 0, 0, 2),               // ldh [x + 2]: the destination port
                (0x15, 0, 1, u32::from(port)), // jeq
                (0x06, 0, 0, u32::MAX),        // keep whole
                (0x06, 0, 0, 0),               // drop
            ],
        )?;
        sys::packet_bind(fd.as_fd(), index)?;
        Ok(Self { fd, index, buffer: Vec::with_capacity(LONGEST) })
    }

    /// Sends an IPv4 packet to everybody on the link.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        sys::packet_broadcast(self.fd.as_fd(), self.index, packet)
    }

    /// The next packet, from its IPv4 header on; `None` when there is none within `timeout`.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<Option<&[u8]>> {
        let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        if !sys::poll(&[self.fd.as_raw_fd()], ms)?.contains(&true) {
            return Ok(None);
        }
        match sys::recv(self.fd.as_fd(), &mut self.buffer, false) {
            Ok(_) => Ok(Some(&self.buffer)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// A UDP socket in `netns` with this address and port of its own.
///
/// # Errors
/// When it has no such address, or the port is taken.
pub fn udp_socket(netns: &Netns, addr: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    netns.inside(|| UdpSocket::bind(SocketAddr::V4(SocketAddrV4::new(addr, port))))
}
