//! Packets of one link, past the network stack (packet(7)): IPv4 before the link has an address, for a DHCP client; and
//! the questions of neighbours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use types::Family;

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

/// `ETH_P_ARP`, `ETH_P_IPV6` (include/uapi/linux/if_ether.h).
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE` (include/uapi/linux/filter.h), as loads take it.
const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
/// `PACKET_MULTICAST` (include/uapi/linux/if_packet.h). What is beyond is not for us: frames to other hosts, frames with
/// the tag of a VLAN that has no link here (`__netif_receive_skb_core`, net/core/dev.c), our own.
const MULTICAST: u32 = 2;

/// A socket that sees who on a link asks where an address of a family is (ARP requests, neighbour solicitations), and
/// sends frames there. Frames of a VLAN are another link's.
#[derive(Debug)]
pub struct NeighbourSocket {
    fd: OwnedFd,
    index: u32,
    buffer: Vec<u8>,
    /// Where IPv6 groups are joined: the driver then lets their frames in, and switches that listen to MLD send them.
    groups: UdpSocket,
}

impl NeighbourSocket {
    /// Opens it in the calling thread's namespace on the link with this index.
    ///
    /// # Errors
    /// `NotConnected` (ENETDOWN) when the link is down, ENODEV when it is gone.
    pub fn open(index: u32, family: Family) -> io::Result<Self> {
        let fd = sys::frame_socket()?;
        let (protocol, filter) = match family {
            Family::V4 => (
                ETH_P_ARP,
                vec![
                    (0x30, 0, 0, PACKET_TYPE), // ldb
                    (0x25, 3, 0, MULTICAST),   // jgt: not for us
                    (0x28, 0, 0, 20),          // ldh [20]: the operation
                    (0x15, 0, 1, 1),           // jeq request
                    (0x06, 0, 0, 128),         // keep
                    (0x06, 0, 0, 0),           // drop
                ],
            ),
            Family::V6 => (
                ETH_P_IPV6,
                vec![
                    (0x30, 0, 0, PACKET_TYPE), // ldb
                    (0x25, 5, 0, MULTICAST),   // jgt: not for us
                    (0x30, 0, 0, 20),          // ldb [20]: next header
                    (0x15, 0, 3, 58),          // jeq ICMPv6
                    (0x30, 0, 0, 54),          // ldb [54]: its type
                    (0x15, 0, 1, 135),         // jeq neighbour solicitation
                    (0x06, 0, 0, 1500),        // keep
                    (0x06, 0, 0, 0),           // drop
                ],
            ),
        };
        // Before it listens, so that nothing else is ever queued.
        sys::attach_filter(fd.as_fd(), &filter)?;
        sys::listen(fd.as_fd(), index, protocol)?;
        let groups = UdpSocket::bind((
            if family == Family::V6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() },
            0,
        ))?;
        Ok(Self { fd, index, buffer: Vec::with_capacity(LONGEST), groups })
    }

    /// Listens to those who look for an address (RFC 4291 section 2.7.1), or no longer. Nothing to do for IPv4.
    ///
    /// # Errors
    /// When the link is gone, or has no room for another group.
    pub fn listen_for(&self, addr: IpAddr, on: bool) -> io::Result<()> {
        let IpAddr::V6(a) = addr else { return Ok(()) };
        let [.., x, y, z] = a.octets();
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
        if on {
            self.groups.join_multicast_v6(&group, self.index)
        } else {
            self.groups.leave_multicast_v6(&group, self.index)
        }
    }

    /// The next frame; `None` when there is none.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match sys::recv(self.fd.as_fd(), &mut self.buffer, false) {
            Ok(_) => Ok(Some(&self.buffer)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        sys::frame_send_by(self.fd.as_fd(), self.index, frame)
    }
}

impl AsFd for NeighbourSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
