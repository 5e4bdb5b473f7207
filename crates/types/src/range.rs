//! Ranges of addresses with any ends.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cidr::bits;
use crate::{Cidr, CidrError, Family};

/// Addresses of one family, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// The next address of the same family; `None` after the last.
fn next(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// The address before, of the same family; `None` before the first.
fn previous(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|n| IpAddr::V6(n.into())),
    }
}

impl AddressRange {
    /// From `first` to `last`, both included; `None` when they are of two families or the wrong way round.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of both.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family() && self.first <= addr && addr <= self.last
    }

    /// Whether an address lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// Whether they have an address in common with a CIDR.
    #[must_use]
    pub fn overlaps_cidr(&self, cidr: &Cidr) -> bool {
        self.overlaps(&Self::from(*cidr))
    }

    /// How many addresses; `u128::MAX` for all of IPv6.
    #[must_use]
    pub fn size(&self) -> u128 {
        (bits(self.last) - bits(self.first)).saturating_add(1)
    }

    /// The address after one of this range; `None` after the last.
    #[must_use]
    pub fn after(&self, addr: IpAddr) -> Option<IpAddr> {
        next(addr).filter(|a| self.contains(*a))
    }

    /// What of it lies before another range, and what behind.
    #[must_use]
    pub fn around(self, other: &Self) -> [Option<Self>; 2] {
        if self.family() != other.family() {
            return [Some(self), None];
        }
        let before = previous(other.first).and_then(|end| Self::new(self.first, end.min(self.last)));
        let behind = next(other.last).and_then(|start| Self::new(start.max(self.first), self.last));
        [before, behind]
    }

    /// What is left of it without another: none, one or two ranges.
    pub fn without(self, other: &Self) -> impl Iterator<Item = Self> {
        self.around(other).into_iter().flatten()
    }

    /// The same addresses as few sorted ranges, which neither overlap nor touch.
    #[must_use]
    pub fn merged(mut all: Vec<Self>) -> Vec<Self> {
        all.sort();
        let mut out: Vec<Self> = Vec::with_capacity(all.len());
        for r in all {
            match out.last_mut() {
                Some(l) if l.overlaps(&r) || next(l.last) == Some(r.first) => l.last = l.last.max(r.last),
                _ => out.push(r),
            }
        }
        out
    }
}

impl From<Cidr> for AddressRange {
    fn from(c: Cidr) -> Self {
        Self { first: c.addr(), last: c.last() }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for AddressRange {
    type Err = String;
    /// `10.0.0.0/28`, `10.0.0.10-10.0.0.20`, or one address.
    fn from_str(s: &str) -> Result<Self, String> {
        let ip = |t: &str| t.trim().parse::<IpAddr>().map_err(|_| format!("{:?} is no IP address", t.trim()));
        if let Some((first, last)) = s.split_once('-') {
            let (first, last) = (ip(first)?, ip(last)?);
            return Self::new(first, last).ok_or_else(|| {
                format!("{s:?}: the first address must be of the same family as, and not above, the last")
            });
        }
        if s.contains('/') {
            return s.trim().parse::<Cidr>().map(Self::from).map_err(|e: CidrError| e.to_string());
        }
        ip(s).map(|a| Self { first: a, last: a })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(s: &str) -> AddressRange {
        s.parse().unwrap()
    }

    #[test]
    fn texts() {
        for (text, shown, size) in [
            ("10.0.0.0/30", "10.0.0.0-10.0.0.3", 4),
            ("10.0.0.9", "10.0.0.9", 1),
            ("10.0.0.9 - 10.0.0.20", "10.0.0.9-10.0.0.20", 12),
            ("fd00::10-fd00::1f", "fd00::10-fd00::1f", 16),
            ("255.255.255.255", "255.255.255.255", 1),
            ("::/0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", u128::MAX),
        ] {
            assert_eq!((r(text).to_string().as_str(), r(text).size()), (shown, size));
        }
        for bad in ["", "x", "10.0.0.9-10.0.0.8", "10.0.0.1-fd00::1", "10.0.0.1/24", "10.0.0.0/33"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn arithmetic_ends_at_the_ends() {
        let all = r("0.0.0.0/0");
        assert_eq!(all.without(&r("0.0.0.0/0")).count(), 0);
        assert_eq!(all.without(&r("0.0.0.0")).map(|x| x.to_string()).collect::<Vec<_>>(), ["0.0.0.1-255.255.255.255"]);
        let both: Vec<String> = r("10.0.0.0/24").without(&r("10.0.0.10-10.0.0.19")).map(|x| x.to_string()).collect();
        assert_eq!(both, ["10.0.0.0-10.0.0.9", "10.0.0.20-10.0.0.255"]);
        let parts = |a: &str, b: &str| r(a).around(&r(b)).map(|p| p.map(|p| p.to_string()));
        assert_eq!(parts("10.0.0.0/30", "10.0.0.8"), [Some("10.0.0.0-10.0.0.3".into()), None]);
        assert_eq!(parts("10.0.0.8/30", "10.0.0.0"), [None, Some("10.0.0.8-10.0.0.11".into())]);
        assert_eq!(all.after("255.255.255.255".parse().unwrap()), None);
        assert_eq!(r("::/0").without(&r("10.0.0.1")).count(), 1);
        let merged =
            AddressRange::merged(vec![r("10.0.0.4/30"), r("fd00::1"), r("10.0.0.0/30"), r("10.0.0.2-10.0.0.5")]);
        assert_eq!(merged, [r("10.0.0.0/29"), r("fd00::1")]);
        let of = |list: &[&str]| -> Vec<String> {
            AddressRange::merged(list.iter().map(|t| r(t)).collect()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of(&["10.1.0.0/16", "10.0.0.0/16", "10.0.3.0/24"]), ["10.0.0.0-10.1.255.255"]);
        assert_eq!(
            of(&["0.0.0.0/0", "10.0.0.0/8", "::/0"]),
            ["0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
        assert_eq!(of(&["255.255.255.255/32", "::/128"]), ["255.255.255.255", "::"]);
        assert_eq!(of(&["10.0.0.0/24", "10.0.2.0/24"]), ["10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"]);
    }
}
