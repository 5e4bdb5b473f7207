//! Frames that tell neighbours where an address is now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::Mac;

/// A gratuitous ARP request (RFC 5227 section 3) or an unsolicited neighbour advertisement (RFC 4861 section 7.2.6), to
/// everybody on the link.
pub(crate) fn frame(mac: Mac, addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => arp(mac, a),
        IpAddr::V6(a) => advertisement(mac, a),
    }
}

fn arp(mac: Mac, addr: Ipv4Addr) -> Vec<u8> {
    let (mac, addr) = (mac.0, addr.octets());
    // Ethernet, IPv4, lengths 6 and 4, request; the target's hardware address is not known.
    let head: [&[u8]; 3] = [&[0xff; 6], &mac, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]];
    let body: [&[u8]; 4] = [&mac, &addr, &[0; 6], &addr];
    [head.concat(), body.concat()].concat()
}

fn advertisement(mac: Mac, addr: Ipv6Addr) -> Vec<u8> {
    /// All nodes of the link.
    const TO: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let (src, to) = (addr.octets(), TO.octets());
    // Type 136, checksum, the override flag; target; target link-layer address.
    let option: [&[u8]; 2] = [&[2, 1], &mac.0];
    let mut icmp = [&[136, 0, 0, 0, 0x20, 0, 0, 0], &src[..], &option.concat()[..]].concat();
    let len = icmp.len() as u16;
    let pseudo = [&src[..], &to[..], &[0, 0], &len.to_be_bytes()[..], &[0, 0, 0, 58], &icmp[..]].concat();
    icmp[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let ethernet: [&[u8]; 3] = [&[0x33, 0x33, 0, 0, 0, 1], &mac.0, &[0x86, 0xdd]];
    let [hi, lo] = len.to_be_bytes();
    [&ethernet.concat()[..], &[0x60, 0, 0, 0, hi, lo, 58, 255], &src, &to, &icmp].concat()
}

/// RFC 1071, of an even number of bytes.
fn checksum(data: &[u8]) -> u16 {
    let sum = data.chunks_exact(2).fold(0u32, |s, w| s + u32::from(u16::from_be_bytes([w[0], w[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_api::tc::Guard;

    #[test]
    fn a_guard_lets_its_own_announcements_out_and_no_others() {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let own: [IpAddr; 2] = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let other: [IpAddr; 2] = ["10.0.0.8".parse().unwrap(), "fd00::8".parse().unwrap()];
        let g = Guard::new(mac, own.map(types::Cidr::host), false).unwrap();
        for a in own {
            assert!(g.passes(&frame(mac, a), false), "{a}");
            assert!(!g.passes(&frame(Mac([2, 0, 0, 0, 0, 8]), a), false), "{a}");
        }
        for a in other {
            assert!(!g.passes(&frame(mac, a), false), "{a}");
        }
    }

    #[test]
    fn the_checksum_is_right() {
        // RFC 1071 section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
