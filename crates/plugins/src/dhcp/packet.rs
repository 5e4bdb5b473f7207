//! DHCPv4 messages (RFC 2131 section 2, RFC 2132) and the IPv4 and UDP headers around them.

use std::net::Ipv4Addr;

use types::Mac;

/// Port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// Port of clients.
pub const CLIENT_PORT: u16 = 68;
/// Of the fixed part, up to and without the magic cookie.
const FIXED: usize = 236;
/// "99.130.83.99" (RFC 2131 section 3).
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// A relay agent of BOOTP may drop what is shorter (RFC 1542 section 2.1).
const SHORTEST: usize = 300;

/// Option codes (RFC 2132 and where noted).
pub mod code {
    /// Subnet mask.
    pub const MASK: u8 = 1;
    /// Routers on the client's subnet.
    pub const ROUTER: u8 = 3;
    /// Name servers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Domain name.
    pub const DOMAIN: u8 = 15;
    /// Pairs of a destination, whose class says its length, and a router.
    pub const STATIC_ROUTES: u8 = 33;
    /// The address that a client would like.
    pub const REQUESTED: u8 = 50;
    /// Seconds.
    pub const LEASE_TIME: u8 = 51;
    /// Whether `sname` and `file` hold options as well.
    pub const OVERLOAD: u8 = 52;
    /// What the message is; see [`super::Kind`].
    pub const KIND: u8 = 53;
    /// Whom a client chose, or who answers.
    pub const SERVER: u8 = 54;
    /// Options that the client would like to know.
    pub const PARAMETERS: u8 = 55;
    /// Why a server says no.
    pub const MESSAGE: u8 = 56;
    /// Longest message that the client takes.
    pub const MAX_SIZE: u8 = 57;
    /// Renewal time, seconds.
    pub const T1: u8 = 58;
    /// Rebinding time, seconds.
    pub const T2: u8 = 59;
    /// Vendor class identifier.
    pub const VENDOR_CLASS: u8 = 60;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// User class (RFC 3004).
    pub const USER_CLASS: u8 = 77;
    /// Classless static routes (RFC 3442).
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// What a message is (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who has an address for me?
    Discover = 1,
    /// I have this one.
    Offer = 2,
    /// I take it; or: may I keep it?
    Request = 3,
    /// The address turned out to be in use.
    Decline = 4,
    /// It is yours.
    Ack = 5,
    /// It is not.
    Nak = 6,
    /// I no longer need it.
    Release = 7,
    /// Only parameters, please.
    Inform = 8,
}

impl Kind {
    fn of(n: u8) -> Option<Self> {
        use Kind::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform].into_iter().find(|k| *k as u8 == n)
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From a server (`BOOTREPLY`).
    pub reply: bool,
    /// Transaction.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client cannot take unicast before it has its address.
    pub broadcast: bool,
    /// The address that the client has and answers for.
    pub ciaddr: Ipv4Addr,
    /// The address that the server gives.
    pub yiaddr: Ipv4Addr,
    /// The client's hardware address.
    pub chaddr: Mac,
    /// Options by code, each once, in order of first appearance.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    /// A message of a client that has no address yet.
    #[must_use]
    pub fn new(kind: Kind, xid: u32, chaddr: Mac) -> Self {
        let none = Ipv4Addr::UNSPECIFIED;
        let options = vec![(code::KIND, vec![kind as u8])];
        Self { reply: false, xid, secs: 0, broadcast: false, ciaddr: none, yiaddr: none, chaddr, options }
    }

    /// An option's bytes.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, v)| v.as_slice())
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self.option(code::KIND) {
            Some([n]) => Kind::of(*n),
            _ => None,
        }
    }

    /// An option that is a number of 32 bits.
    #[must_use]
    pub fn number(&self, code: u8) -> Option<u32> {
        self.option(code)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// An option's addresses.
    #[must_use]
    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let one = |b: &[u8]| <[u8; 4]>::try_from(b).ok().map(Ipv4Addr::from);
        self.option(code).map(|v| v.chunks_exact(4).filter_map(one).collect()).unwrap_or_default()
    }

    /// Sets an option, instead of one of that code if there is one.
    pub fn set(&mut self, code: u8, value: Vec<u8>) {
        match self.options.iter_mut().find(|(c, _)| *c == code) {
            Some((_, v)) => *v = value,
            None => self.options.push((code, value)),
        }
    }

    /// The bytes of the UDP payload. Long options are split (RFC 3396).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED];
        let mut put = |at: usize, bytes: &[u8]| {
            for (o, b) in out.iter_mut().skip(at).zip(bytes) {
                *o = *b;
            }
        };
        // Ethernet, 6 bytes of address.
        put(0, &[if self.reply { 2 } else { 1 }, 1, 6, 0]);
        put(4, &self.xid.to_be_bytes());
        put(8, &self.secs.to_be_bytes());
        put(10, &[if self.broadcast { 0x80 } else { 0 }, 0]);
        put(12, &self.ciaddr.octets());
        put(16, &self.yiaddr.octets());
        put(28, &self.chaddr.0);
        out.extend(MAGIC);
        for (code, value) in self.options.iter().filter(|(c, _)| !matches!(c, 0 | 255)) {
            let mut part = |bytes: &[u8]| {
                out.extend([*code, u8::try_from(bytes.len()).unwrap_or(u8::MAX)]);
                out.extend(bytes);
            };
            if value.is_empty() {
                part(&[]);
            }
            value.chunks(255).for_each(part);
        }
        out.push(255);
        out.resize(out.len().max(SHORTEST), 0);
        out
    }

    /// Reads a UDP payload; `None` when it is no message of Ethernet hardware.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let at = |i: usize| bytes.get(i).copied();
        let four = |i: usize| bytes.get(i..i + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        if !matches!(at(0)?, 1 | 2) || at(1)? != 1 || at(2)? != 6 || four(FIXED)? != MAGIC {
            return None;
        }
        let mut options = Vec::new();
        walk(bytes.get(FIXED + 4..)?, &mut options);
        // RFC 2131 section 4.1: first the options field, then file, then sname.
        let overload = options.iter().find(|(c, _): &&(u8, Vec<u8>)| *c == code::OVERLOAD).and_then(|(_, v)| v.first());
        let overload = overload.copied().unwrap_or(0);
        if overload & 1 != 0 {
            walk(bytes.get(108..236)?, &mut options);
        }
        if overload & 2 != 0 {
            walk(bytes.get(44..108)?, &mut options);
        }
        Some(Self {
            reply: at(0)? == 2,
            xid: u32::from_be_bytes(four(4)?),
            secs: u16::from_be_bytes([at(8)?, at(9)?]),
            broadcast: at(10)? & 0x80 != 0,
            ciaddr: four(12)?.into(),
            yiaddr: four(16)?.into(),
            chaddr: Mac(bytes.get(28..34)?.try_into().ok()?),
            options,
        })
    }
}

/// Reads options to the end mark or as far as they are whole; parts of one code are joined (RFC 3396).
fn walk(mut bytes: &[u8], out: &mut Vec<(u8, Vec<u8>)>) {
    loop {
        match bytes {
            [0, rest @ ..] => bytes = rest,
            [255, ..] | [] | [_] => return,
            [code, len, rest @ ..] => {
                let Some((value, rest)) = rest.split_at_checked(usize::from(*len)) else { return };
                match out.iter_mut().find(|(c, _)| c == code) {
                    Some((_, v)) => v.extend_from_slice(value),
                    None => out.push((*code, value.to_vec())),
                }
                bytes = rest;
            }
        }
    }
}

/// An IPv4 packet with a UDP datagram.
#[must_use]
pub fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut udp = Vec::with_capacity(payload.len() + 8);
    for n in [from.1, to.1, udp_len, 0] {
        udp.extend(n.to_be_bytes());
    }
    udp.extend(payload);
    let mut pseudo = Vec::with_capacity(12 + udp.len());
    pseudo.extend(from.0.octets());
    pseudo.extend(to.0.octets());
    pseudo.extend([0, 17]);
    pseudo.extend(udp_len.to_be_bytes());
    pseudo.extend(&udp);
    // Zero would say that there is none.
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        n => n,
    };
    udp.splice(6..8, sum.to_be_bytes());
    let mut ip = vec![0x45, 0x10];
    ip.extend(udp_len.saturating_add(20).to_be_bytes());
    // No identification, don't fragment, 64 hops, UDP.
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.0.octets());
    ip.extend(to.0.octets());
    let sum = checksum(&ip);
    ip.splice(10..12, sum.to_be_bytes());
    ip.extend(udp);
    ip
}

/// The payload of an IPv4 packet, if it is a whole UDP datagram to a DHCP client from a server. Checksums of UDP are not
/// looked at: on a veth they are mostly not filled in.
#[must_use]
pub fn payload(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff;
    if first >> 4 != 4 || header < 20 || *packet.get(9)? != 17 || fragment != 0 {
        return None;
    }
    let udp = packet.get(header..total)?;
    let two = |i: usize| udp.get(i..i + 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes);
    let len = usize::from(two(4)?);
    if two(0)? != SERVER_PORT || two(2)? != CLIENT_PORT {
        return None;
    }
    udp.get(8..len)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word =
        |c: &[u8]| u32::from(u16::from_be_bytes([c.first().copied().unwrap_or(0), c.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).fold(0, |a, b| {
        let s = a + b;
        (s & 0xffff) + (s >> 16)
    });
    sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Message> {
        let options = prop::collection::btree_map(1u8..255, prop::collection::vec(any::<u8>(), 0..600), 0..6);
        (any::<(bool, u32, u16, bool, u32, u32, [u8; 6])>(), options).prop_map(|(f, options)| Message {
            reply: f.0,
            xid: f.1,
            secs: f.2,
            broadcast: f.3,
            ciaddr: f.4.into(),
            yiaddr: f.5.into(),
            chaddr: Mac(f.6),
            // Would be read from the fields of names.
            options: options.into_iter().filter(|(c, _)| *c != code::OVERLOAD).collect(),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(m in message(), from: u32, to: u32) {
            let bytes = m.encode();
            prop_assert_eq!(Message::decode(&bytes), Some(m));
            let packet = datagram((from.into(), SERVER_PORT), (to.into(), CLIENT_PORT), &bytes);
            prop_assert_eq!(payload(&packet), Some(&*bytes));
            // Both sums are right: summed with themselves they give nothing.
            prop_assert_eq!(checksum(&packet[..20]), 0);
        }

        #[test]
        fn anything_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..800)) {
            let _ = Message::decode(&bytes);
            let _ = payload(&bytes);
        }
    }
}
