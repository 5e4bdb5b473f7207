//! Address ranges of either family.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Family;

/// An address range: a network address and a prefix length (RFC 4632, RFC 4291 section 2.3).
///
/// The host bits are always zero; [`Cidr::new`] clears them and [`FromStr`] refuses them, because a range that a
/// person wrote with host bits set is usually a range they did not mean.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    addr: IpAddr,
    len: u8,
}

/// Why a text is no [`Cidr`]. The message names the value and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// No `/LEN` at the end.
    #[error("{0:?} has no prefix length: write it as ADDRESS/LENGTH, e.g. 10.244.0.0/16 or fd00:10:244::/56")]
    NoLength(String),
    /// The part before the slash is no address.
    #[error("{0:?} does not start with an IPv4 or IPv6 address")]
    BadAddress(String),
    /// The part after the slash is no length of that family.
    #[error("{text:?}: the prefix length must be a number from 0 to {max}")]
    BadLength {
        /// The text as given.
        text: String,
        /// 32 for IPv4, 128 for IPv6.
        max: u8,
    },
    /// The address has bits beyond the prefix.
    #[error("{text:?} has host bits set: the range that holds this address is {fix}")]
    HostBits {
        /// The text as given.
        text: String,
        /// The range with those bits cleared.
        fix: Cidr,
    },
}

/// An address as a number.
pub(crate) fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        // The value was made from 32 bits, so the upper ones are zero.
        Family::V4 => IpAddr::V4(Ipv4Addr::from((bits & 0xffff_ffff) as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

impl Cidr {
    /// The range of `len` bits that holds `addr`; host bits are cleared. `None` when `len` exceeds the family's.
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let family = Family::of(addr);
        if len > family.bits() {
            return None;
        }
        let host = family.bits() - len;
        let b = bits(addr);
        let net = if host >= 128 { 0 } else { (b >> host) << host };
        Some(Self { addr: from_bits(family, net), len })
    }

    /// The range of exactly one address: /32 or /128.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: Family::of(addr).bits() }
    }

    /// Every address of a family.
    #[must_use]
    pub fn any(family: Family) -> Self {
        Self { addr: family.unspecified(), len: 0 }
    }

    /// The network address: the first of the range.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // a prefix length, not a size
    pub fn len(&self) -> u8 {
        self.len
    }

    /// The family of the range.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }

    /// Whether `addr` lies in the range. An address of the other family never does.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family() && Self::new(addr, self.len) == Some(*self)
    }

    /// Whether every address of `other` lies in the range.
    #[must_use]
    pub fn contains_cidr(&self, other: &Cidr) -> bool {
        other.len >= self.len && self.contains(other.addr)
    }

    /// Whether any address lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains_cidr(other) || other.contains_cidr(self)
    }

    /// The last address of the range (IPv4: the broadcast address).
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let host = u32::from(self.family().bits() - self.len);
        let mask = if host >= 128 { u128::MAX } else { (1u128 << host) - 1 };
        from_bits(self.family(), bits(self.addr) | mask)
    }

    /// How many addresses the range holds, at most `u128::MAX`.
    #[must_use]
    pub fn size(&self) -> u128 {
        1u128.checked_shl(u32::from(self.family().bits() - self.len)).unwrap_or(u128::MAX)
    }

    /// The `n`th address, counted from zero; `None` beyond the end.
    #[must_use]
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        (n < self.size()).then(|| from_bits(self.family(), bits(self.addr) | n))
    }

    /// Where `addr` stands in the range, counted from zero; `None` outside.
    #[must_use]
    pub fn index_of(&self, addr: IpAddr) -> Option<u128> {
        self.contains(addr).then(|| bits(addr) - bits(self.addr))
    }

    /// The `n`th sub-range of `len` bits; `None` beyond the end or when `len` is shorter than the range's own.
    #[must_use]
    pub fn nth_subnet(&self, len: u8, n: u128) -> Option<Cidr> {
        if len < self.len || len > self.family().bits() {
            return None;
        }
        let step = u32::from(self.family().bits() - len);
        let count = 1u128.checked_shl(u32::from(len - self.len)).unwrap_or(u128::MAX);
        if n >= count {
            return None;
        }
        let off = n.checked_shl(step).unwrap_or(0);
        Some(Self { addr: from_bits(self.family(), bits(self.addr) | off), len })
    }

    /// The netmask as an address of the range's family.
    #[must_use]
    pub fn netmask(&self) -> IpAddr {
        let host = u32::from(self.family().bits() - self.len);
        let all = match self.family() {
            Family::V4 => u128::from(u32::MAX),
            Family::V6 => u128::MAX,
        };
        let mask = if host >= 128 { 0 } else { (all >> host) << host };
        from_bits(self.family(), mask)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(s: &str) -> Result<Self, CidrError> {
        let (a, l) = s.split_once('/').ok_or_else(|| CidrError::NoLength(s.into()))?;
        let addr: IpAddr = a.parse().map_err(|_| CidrError::BadAddress(s.into()))?;
        let max = Family::of(addr).bits();
        let bad = || CidrError::BadLength { text: s.into(), max };
        // `u8::from_str` takes "+8" and "08": a length is digits only, as Go's netip has it.
        if l.is_empty() || l.len() > 3 || !l.bytes().all(|b| b.is_ascii_digit()) || (l.len() > 1 && l.starts_with('0'))
        {
            return Err(bad());
        }
        let len: u8 = l.parse().map_err(|_| bad())?;
        let cidr = Self::new(addr, len).ok_or_else(bad)?;
        if cidr.addr != addr {
            return Err(CidrError::HostBits { text: s.into(), fix: cidr });
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn c(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    #[test]
    fn bad_text_is_refused_with_the_fix() {
        for (text, says) in [
            ("10.0.0.0", "has no prefix length"),
            ("ten/8", "does not start with"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/08", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("10.0.0.1/8", "is 10.0.0.0/8"),
            ("fd00::1/64", "is fd00::/64"),
        ] {
            let e = text.parse::<Cidr>().unwrap_err().to_string();
            assert!(e.contains(says), "{text}: {e}");
        }
    }

    #[test]
    fn subnets_and_members() {
        let p = c("10.244.0.0/16");
        assert_eq!(p.nth_subnet(24, 3), Some(c("10.244.3.0/24")));
        assert_eq!(p.nth_subnet(24, 256), None);
        assert_eq!(p.nth_subnet(8, 0), None);
        assert_eq!(c("fd00::/48").nth_subnet(64, 0xffff), Some(c("fd00:0:0:ffff::/64")));
        assert_eq!(p.nth(256), Some("10.244.1.0".parse().unwrap()));
        assert_eq!(p.index_of("10.244.1.0".parse().unwrap()), Some(256));
        assert_eq!(p.last(), "10.244.255.255".parse::<IpAddr>().unwrap());
        assert_eq!(c("::/0").size(), u128::MAX);
        assert_eq!(c("::/0").last(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse::<IpAddr>().unwrap());
        assert_eq!(c("10.0.0.0/24").netmask(), "255.255.255.0".parse::<IpAddr>().unwrap());
        assert!(p.contains_cidr(&c("10.244.9.0/24")) && p.overlaps(&c("10.0.0.0/8")));
        assert!(!p.overlaps(&c("10.245.0.0/16")) && !p.contains("::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn print_and_parse_are_inverse(b: u128, v4: bool, l in 0u8..=128) {
            let addr = if v4 { from_bits(Family::V4, b & 0xffff_ffff) } else { from_bits(Family::V6, b) };
            if let Some(cidr) = Cidr::new(addr, l) {
                prop_assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
                prop_assert!(cidr.contains(addr) && cidr.contains(cidr.last()));
                prop_assert_eq!(cidr.nth(cidr.index_of(addr).unwrap_or(0)), (cidr.len() > 0 || v4).then_some(addr).or(cidr.nth(cidr.index_of(addr).unwrap_or(0))));
            }
        }
        #[test]
        fn parsing_never_panics(s in "\\PC{0,40}") { let _ = s.parse::<Cidr>(); }
    }
}
