//! Ranges of addresses: what the configuration may say, and in which order they are given out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Error, Fields, IpNet, bad};
use types::{Cidr, Family};

/// Addresses to give out, from `start` to `end`, within a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet; its length is that of the addresses given out.
    pub subnet: Cidr,
    /// First, inclusive.
    pub start: IpAddr,
    /// Last, inclusive.
    pub end: IpAddr,
    /// Never given out.
    pub gateway: IpAddr,
}

/// Ranges of one family; an attachment gets one address of each set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

/// An address as a number.
pub(super) fn number(a: IpAddr) -> u128 {
    match a {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// The address of that number; stays within the family.
fn address(n: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(n).into(),
    }
}

impl Range {
    /// Reads one; `f` is the object with `subnet`, `rangeStart`, `rangeEnd` and `gateway`.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn read(f: &Fields<'_>) -> Result<Self, Error> {
        let net: IpNet = f.parsed("subnet")?.ok_or_else(|| bad(format!("{} is missing", f.name("subnet"))))?;
        let (subnet, family) = (net.network(), Family::of(net.addr));
        if subnet.addr() != net.addr {
            return Err(bad(format!(
                "{} is {net}: it has host bits set; the network's address is {subnet}",
                f.name("subnet")
            )));
        }
        if net.len > family.bits() - 2 {
            return Err(bad(format!("{} is {net}: too small to give addresses from", f.name("subnet"))));
        }
        let first = address(number(subnet.addr()) + 1, family);
        // IPv4 has a broadcast address.
        let last = match family {
            Family::V4 => address(number(subnet.last()) - 1, family),
            Family::V6 => subnet.last(),
        };
        let gateway = f.parsed("gateway")?.unwrap_or(first);
        let within = |field: &str, from: IpAddr, usual: IpAddr| {
            let Some(a) = f.parsed::<IpAddr>(field)? else { return Ok(usual) };
            if !subnet.contains(a) {
                return Err(bad(format!("{} is {a}: not in the subnet {subnet}", f.name(field))));
            }
            if number(a) < number(from) {
                return Err(bad(format!("{} is {a}: before rangeStart {from}", f.name(field))));
            }
            Ok(a)
        };
        let start = within("rangeStart", subnet.addr(), first)?;
        let end = within("rangeEnd", start, last)?;
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether `a` is from `start` to `end`.
    pub fn contains(&self, a: IpAddr) -> bool {
        Family::of(a) == self.family() && (number(self.start)..=number(self.end)).contains(&number(a))
    }

    fn family(&self) -> Family {
        self.subnet.family()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family()
            && number(self.start) <= number(other.end)
            && number(other.start) <= number(self.end)
    }

    fn size(&self) -> u128 {
        // A range never spans all of IPv6: the subnet's own address is out, unless asked for.
        (number(self.end) - number(self.start)).saturating_add(1)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    /// Reads the list of ranges that stands at `at`.
    ///
    /// # Errors
    /// Code 7: an empty set, mixed families, ranges that overlap.
    pub fn read(ranges: &[Fields<'_>], at: &str) -> Result<Self, Error> {
        let out = ranges.iter().map(Range::read).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = out.first() else { return Err(bad(format!("{at} is an empty range set"))) };
        if out.iter().any(|r| r.family() != first.family()) {
            return Err(bad(format!("{at} mixes address families: give each its own range set")));
        }
        for (i, r) in out.iter().enumerate() {
            if let Some(other) = out.iter().skip(i + 1).find(|o| o.overlaps(r)) {
                return Err(bad(format!("{at}: the ranges {r} and {other} overlap")));
            }
        }
        Ok(Self(out))
    }

    /// The range that `a` is in.
    pub fn range_of(&self, a: IpAddr) -> Option<&Range> {
        self.0.iter().find(|r| r.contains(a))
    }

    /// Whether any address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|r| other.0.iter().any(|o| r.overlaps(o)))
    }

    /// How many addresses can be given out.
    pub fn usable(&self) -> u128 {
        let one = |r: &Range| r.size() - u128::from(r.contains(r.gateway));
        self.0.iter().map(one).fold(0, u128::saturating_add)
    }

    /// Every address once, round robin: the one after `last` first. Gateways are left out.
    pub fn from(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let place = last.and_then(|a| self.0.iter().position(|r| r.contains(a)).map(|i| (i, number(a))));
        let (at, after) = place.unwrap_or((0, 0));
        let tail =
            self.0.get(at).map(|r| (r, if place.is_some() { after + 1 } else { number(r.start) }, number(r.end)));
        let rest = self.0.iter().enumerate().cycle().skip(at + 1).take(self.0.len().saturating_sub(1));
        let rest = rest.map(|(_, r)| (r, number(r.start), number(r.end)));
        // What of the first range lies before the place.
        let head = self.0.get(at).filter(|_| place.is_some()).map(|r| (r, number(r.start), after));
        tail.into_iter().chain(rest).chain(head).flat_map(|(r, from, to)| {
            (from..=to).map(move |n| (address(n, r.family()), r)).filter(|(a, r)| *a != r.gateway)
        })
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            write!(f, "{}{r}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn set(v: &Value) -> Result<RangeSet, Error> {
        let fields: Vec<_> = v.as_array().unwrap().iter().map(|o| Fields::new(o.as_object().unwrap(), "r")).collect();
        RangeSet::read(&fields, "r")
    }

    #[test]
    fn every_address_once_and_in_turn() {
        let s = set(&json!([{"subnet": "10.1.2.0/29"}, {"subnet": "10.1.3.0/29", "rangeStart": "10.1.3.4"}])).unwrap();
        let all = |last: Option<&str>| {
            s.from(last.map(|l| l.parse().unwrap())).map(|(a, _)| a.to_string()).collect::<Vec<_>>().join(" ")
        };
        let first = "10.1.2.2 10.1.2.3 10.1.2.4 10.1.2.5 10.1.2.6 10.1.3.4 10.1.3.5 10.1.3.6";
        assert_eq!(all(None), first);
        assert_eq!(all(Some("10.9.9.9")), first);
        assert_eq!(all(Some("10.1.2.5")), "10.1.2.6 10.1.3.4 10.1.3.5 10.1.3.6 10.1.2.2 10.1.2.3 10.1.2.4 10.1.2.5");
        assert_eq!(all(Some("10.1.3.6")), first);
        assert_eq!(s.usable(), 8);
    }

    #[test]
    fn sixes_have_no_broadcast_and_huge_ranges_no_cost() {
        let s = set(&json!([{"subnet": "fd00::/64"}])).unwrap();
        assert_eq!(s.0[0].end.to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(s.from(Some("fd00::ffff".parse().unwrap())).next().unwrap().0.to_string(), "fd00::1:0");
        assert_eq!(s.usable(), (1 << 64) - 2);
    }
}
