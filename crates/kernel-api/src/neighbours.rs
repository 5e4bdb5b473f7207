//! Frames by which neighbours learn where an address is: announcements, and answers to those who ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::Mac;

/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, lengths 6 and 4.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement: it answers, and it overrides what is known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// A gratuitous ARP request (RFC 5227 section 3) or an unsolicited neighbour advertisement (RFC 4861 section 7.2.6), to
/// everybody on the link.
#[must_use]
pub fn announcement(mac: Mac, addr: IpAddr) -> Vec<u8> {
    match addr {
        // The target's hardware address is not known.
        IpAddr::V4(a) => arp(1, EVERYBODY, (mac, a), (Mac([0; 6]), a)),
        IpAddr::V6(a) => advertisement(mac, a, None),
    }
}

/// A gratuitous ARP reply: some devices learn from replies only (RFC 5944 section 4.6 allows both). `None` for IPv6,
/// which has one form.
#[must_use]
pub fn gratuitous_reply(mac: Mac, addr: IpAddr) -> Option<Vec<u8>> {
    match addr {
        IpAddr::V4(a) => Some(arp(2, EVERYBODY, (mac, a), (EVERYBODY, a))),
        IpAddr::V6(_) => None,
    }
}

const EVERYBODY: Mac = Mac([0xff; 6]);

/// Who asks where an address is: an ARP request or a neighbour solicitation, probes for duplicates included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The address that is asked for.
    pub target: IpAddr,
    /// Who asks; unspecified in a probe for duplicates.
    pub from: IpAddr,
    /// Where the answer goes.
    pub mac: Mac,
}

impl Question {
    /// Reads an Ethernet frame. `None` when it is no such question, is damaged, or speaks of the sender's own address.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let kind: [u8; 2] = *frame.get(12..)?.first_chunk()?;
        let q = match kind {
            ARP => Self::of_arp(frame.get(14..)?),
            IPV6 => Self::of_solicitation(frame.get(14..)?, Mac(*frame.get(6..)?.first_chunk()?)),
            _ => None,
        }?;
        let group = q.mac.0[0] & 1 == 1;
        (q.target != q.from && !group).then_some(q)
    }

    /// RFC 826.
    fn of_arp(body: &[u8]) -> Option<Self> {
        let request = body.starts_with(&ARP_HEAD) && body.get(6..8)? == [0, 1];
        let v4 = |at: usize| Some(IpAddr::from(*body.get(at..)?.first_chunk::<4>()?));
        let mac = Mac(*body.get(8..)?.first_chunk()?);
        request.then_some(Self { target: v4(24)?, from: v4(14)?, mac })
    }

    /// RFC 4861 sections 4.3 and 7.1.1.
    fn of_solicitation(packet: &[u8], sender: Mac) -> Option<Self> {
        let v6 = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
        let (from, to) = (v6(8)?, v6(24)?);
        let len = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
        let icmp = packet.get(40..)?.get(..len)?;
        let fits = packet[0] >> 4 == 6 && packet[6] == ICMPV6 && packet[7] == 255;
        if !fits || icmp.len() < 24 || icmp[0] != SOLICITATION || icmp[1] != 0 || checksum(from, to, icmp) != 0 {
            return None;
        }
        let target = Ipv6Addr::from(*icmp.get(8..)?.first_chunk::<16>()?);
        let mac = source_option(icmp.get(24..)?).unwrap_or(sender);
        (!target.is_multicast()).then_some(Self { target: target.into(), from: from.into(), mac })
    }

    /// The answer that the target is at `mac`.
    #[must_use]
    pub fn answer(&self, mac: Mac) -> Option<Vec<u8>> {
        match (self.target, self.from) {
            (IpAddr::V4(t), IpAddr::V4(f)) => Some(arp(2, self.mac, (mac, t), (self.mac, f))),
            (IpAddr::V6(t), IpAddr::V6(f)) => {
                Some(advertisement(mac, t, (!f.is_unspecified()).then_some((self.mac, f))))
            }
            _ => None,
        }
    }
}

/// The source link-layer address among the options (type 1, length in units of 8 bytes).
fn source_option(mut options: &[u8]) -> Option<Mac> {
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        let option = options.get(..len).filter(|o| !o.is_empty())?;
        if (kind, units) == (1, 1) {
            return option.get(2..)?.first_chunk().map(|m| Mac(*m));
        }
        options = options.get(len..)?;
    }
    None
}

fn arp(op: u8, to: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let (from, from_ip, of, of_ip) = (sender.0.0, sender.1.octets(), target.0.0, target.1.octets());
    let head: [&[u8]; 5] = [&to.0, &from, &ARP, &ARP_HEAD, &[0, op]];
    let body: [&[u8]; 4] = [&from, &from_ip, &of, &of_ip];
    [head.concat(), body.concat()].concat()
}

/// To somebody who asked, or to everybody.
fn advertisement(mac: Mac, addr: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>) -> Vec<u8> {
    let flags = if to.is_some() { SOLICITED | OVERRIDE } else { OVERRIDE };
    let (to_mac, to) = to.unwrap_or((Mac([0x33, 0x33, 0, 0, 0, 1]), ALL_NODES));
    // Type, code, checksum, flags; target; target link-layer address.
    let option: [&[u8]; 2] = [&[2, 1], &mac.0];
    let mut icmp = [&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0], &addr.octets()[..], &option.concat()[..]].concat();
    let sum = checksum(addr, to, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let ethernet: [&[u8]; 3] = [&to_mac.0, &mac.0, &IPV6];
    let [hi, lo] = (icmp.len() as u16).to_be_bytes();
    [&ethernet.concat()[..], &[0x60, 0, 0, 0, hi, lo, ICMPV6, 255], &addr.octets(), &to.octets(), &icmp].concat()
}

/// Of an ICMPv6 message with its pseudo-header (RFC 4443 section 2.3); 0 when it holds its own right one.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, icmp: &[u8]) -> u16 {
    let len = (icmp.len() as u32).to_be_bytes();
    let mut all = [&from.octets()[..], &to.octets(), &len, &[0, 0, 0, ICMPV6], icmp].concat();
    if all.len() % 2 == 1 {
        all.push(0);
    }
    sum(&all)
}

/// RFC 1071, of an even number of bytes.
fn sum(data: &[u8]) -> u16 {
    let sum = data.chunks_exact(2).fold(0u32, |s, w| s + u32::from(u16::from_be_bytes([w[0], w[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tc::Guard;

    #[test]
    fn a_guard_lets_its_own_announcements_out_and_no_others() {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let own: [IpAddr; 2] = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let other: [IpAddr; 2] = ["10.0.0.8".parse().unwrap(), "fd00::8".parse().unwrap()];
        let g = Guard::new(mac, own.map(types::Cidr::host), false).unwrap();
        for a in own {
            assert!(g.passes(&announcement(mac, a), false), "{a}");
            assert!(!g.passes(&announcement(Mac([2, 0, 0, 0, 0, 8]), a), false), "{a}");
        }
        for a in other {
            assert!(!g.passes(&announcement(mac, a), false), "{a}");
        }
    }

    #[test]
    fn the_checksum_is_right() {
        // RFC 1071 section 3.
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    /// A neighbour solicitation as Linux sends it.
    fn solicitation(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, option: bool) -> Vec<u8> {
        let mut icmp = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat();
        if option {
            icmp.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        }
        let sum = checksum(from, to, &icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let head = [&[0x33, 0x33, 0xff, 0, 0, 7], &[2, 0, 0, 0, 0, 9][..], &IPV6].concat();
        let ip = [&[0x60, 0, 0, 0, 0, icmp.len() as u8, ICMPV6, 255], &from.octets()[..], &to.octets()].concat();
        [head, ip, icmp].concat()
    }

    #[test]
    fn questions_are_read_and_answered() {
        let (asker, mine) = (Mac([2, 0, 0, 0, 0, 9]), Mac([2, 0, 0, 0, 0, 7]));
        let v4 = |n| Ipv4Addr::new(10, 0, 0, n);
        let q = Question::parse(&arp(1, EVERYBODY, (asker, v4(9)), (Mac([0; 6]), v4(7)))).unwrap();
        assert_eq!(q, Question { target: v4(7).into(), from: v4(9).into(), mac: asker });
        let a = q.answer(mine).unwrap();
        assert_eq!(a, arp(2, asker, (mine, v4(7)), (asker, v4(9))));
        assert_eq!(Question::parse(&a), None, "an answer is no question");
        // A gratuitous one speaks of its own; a probe (RFC 5227) asks.
        assert_eq!(Question::parse(&announcement(mine, v4(7).into())), None);
        assert!(Question::parse(&arp(1, EVERYBODY, (asker, v4(0)), (Mac([0; 6]), v4(7)))).is_some());

        let v6 = |n| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 7);
        for option in [true, false] {
            let q = Question::parse(&solicitation(v6(9), group, v6(7), option)).unwrap();
            assert_eq!(q, Question { target: v6(7).into(), from: v6(9).into(), mac: asker });
            let a = q.answer(mine).unwrap();
            assert_eq!((&a[..6], a[58], checksum(v6(7), v6(9), &a[54..])), (&asker.0[..], SOLICITED | OVERRIDE, 0));
        }
        // Asked by somebody who wants the address for itself: everybody hears that it is taken.
        let q = Question::parse(&solicitation(Ipv6Addr::UNSPECIFIED, group, v6(7), false)).unwrap();
        assert_eq!(q.answer(mine), Some(announcement(mine, v6(7).into())));
        let mut bad = solicitation(v6(9), group, v6(7), true);
        bad[70] ^= 1;
        assert_eq!(Question::parse(&bad), None, "a damaged one");
        let mut far = solicitation(v6(9), group, v6(7), true);
        far[21] = 64;
        assert_eq!(Question::parse(&far), None, "one that came over a router");
    }

    #[test]
    fn nothing_that_comes_is_too_short_or_too_long() {
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
        let whole = solicitation(v6, ALL_NODES, Ipv6Addr::LOCALHOST, true);
        for n in 0..whole.len() {
            assert_eq!(Question::parse(&whole[..n]), None);
        }
        assert!(Question::parse(&[&whole[..], &[0; 40]].concat()).is_some(), "padding is none of it");
        assert_eq!(source_option(&[1, 0, 1, 1]), None, "an option without length ends the reading");
    }
}
