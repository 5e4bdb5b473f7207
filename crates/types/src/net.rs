//! Small network values: family, transport, port, hardware address, packet mark.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Address length in bits: 32 or 128.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// 0.0.0.0 or ::.
    #[must_use]
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Which families something uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct FamilySet {
    /// IPv4 is in.
    pub v4: bool,
    /// IPv6 is in.
    pub v6: bool,
}

impl FamilySet {
    /// Whether `family` is in.
    #[must_use]
    pub fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The members, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(move |f| self.has(*f))
    }
}

impl FromIterator<Family> for FamilySet {
    fn from_iter<I: IntoIterator<Item = Family>>(iter: I) -> Self {
        iter.into_iter().fold(Self::default(), |s, f| Self { v4: s.v4 || f == Family::V4, v6: s.v6 || f == Family::V6 })
    }
}

/// A transport protocol a Service or policy can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proto {
    /// TCP (protocol number 6).
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP (17).
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP (132).
    #[serde(rename = "SCTP")]
    Sctp,
}

/// A text that names no [`Proto`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no transport protocol: use TCP, UDP or SCTP")]
pub struct ProtoError(pub String);

impl Proto {
    /// All three.
    pub const ALL: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

    /// The IANA protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IANA number.
    #[must_use]
    pub const fn from_number(n: u8) -> Option<Self> {
        match n {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl FromStr for Proto {
    type Err = ProtoError;
    fn from_str(s: &str) -> Result<Self, ProtoError> {
        Self::ALL.into_iter().find(|p| p.to_string().eq_ignore_ascii_case(s)).ok_or_else(|| ProtoError(s.into()))
    }
}

/// A transport port with its protocol: what one address can be reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortKey {
    /// Transport protocol.
    pub proto: Proto,
    /// Port number, 1 to 65535.
    pub port: u16,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.proto)
    }
}

/// A 48-bit hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// A text that is no [`Mac`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address: write six hex pairs, e.g. 0a:58:0a:f4:01:02")]
pub struct MacError(pub String);

impl Mac {
    /// A locally administered unicast address from 48 bits (IEEE 802: bit 1 of the first octet set, bit 0 clear).
    #[must_use]
    pub fn local(mut b: [u8; 6]) -> Self {
        b[0] = (b[0] & 0xfc) | 0x02;
        Self(b)
    }

    /// Whether it is an address that one station may have: neither a group's (IEEE 802: bit 0 of the first octet) nor zero.
    #[must_use]
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = MacError;
    fn from_str(s: &str) -> Result<Self, MacError> {
        let err = || MacError(s.into());
        let mut out = [0u8; 6];
        let mut parts = s.split(':');
        for o in &mut out {
            let p =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(err)?;
            *o = u8::from_str_radix(p, 16).map_err(|_| err())?;
        }
        if parts.next().is_some() { Err(err()) } else { Ok(Self(out)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A packet mark (`skb->mark`), host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Mark(pub u32);

impl Mark {
    /// The upper 12 bits that say "this mark is Seaway's". A packet carries it only between two chains of ours.
    pub const OURS: Mark = Mark(0x5ea0_0000);
    /// The bits [`Mark::OURS`] occupies.
    pub const OURS_MASK: Mark = Mark(0xfff0_0000);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text() {
        assert_eq!("0a:58:0a:f4:01:02".parse::<Mac>().unwrap().to_string(), "0a:58:0a:f4:01:02");
        for bad in ["", "0a:58", "0a:58:0a:f4:01:02:03", "0a58:0a:f4:01:02", "zz:58:0a:f4:01:02", "+a:58:0a:f4:01:02"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert_eq!(Mac::local([0xff; 6]).0[0], 0xfe);
    }

    #[test]
    fn proto_text_and_number() {
        for p in Proto::ALL {
            assert_eq!(Proto::from_number(p.number()), Some(p));
            assert_eq!(p.to_string().to_lowercase().parse(), Ok(p));
        }
        assert!("icmp".parse::<Proto>().unwrap_err().to_string().contains("use TCP, UDP or SCTP"));
    }

    #[test]
    fn family_set() {
        let both: FamilySet = Family::BOTH.into_iter().collect();
        assert!(both.v4 && both.v6);
        assert_eq!(both.iter().count(), 2);
        assert_eq!(FamilySet::default().iter().count(), 0);
    }
}
