//! Which address is next: a pure function of what is used and what was given out last.

use std::collections::BTreeMap;
use std::net::IpAddr;

use types::{Cidr, Family};

use crate::{IpamError, Key};

/// How full a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The range.
    pub range: Cidr,
    /// Addresses of it in use.
    pub used: u128,
    /// Addresses of it that may be given out.
    pub usable: u128,
}

/// First and last index of `range` that may be given out. Index 0 is the network (IPv6: subnet-router anycast)
/// address, which in routed mode is the tunnel device's; index 1 is kept for a bridge's gateway; the last of an IPv4
/// range is its broadcast address. `None` when nothing is left: /31, /32, /127, /128.
#[must_use]
pub fn usable(range: &Cidr) -> Option<(u128, u128)> {
    let last = match range.family() {
        Family::V4 => range.size().checked_sub(2)?,
        Family::V6 => range.size().checked_sub(1)?,
    };
    (last >= 2).then_some((2, last))
}

/// The state that allocation looks at.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Who has which address, by the digits of the host end's name.
    pub used: BTreeMap<IpAddr, u64>,
    /// The address given out last, per family.
    pub last: [Option<IpAddr>; 2],
}

fn slot(addr: IpAddr) -> usize {
    usize::from(addr.is_ipv6())
}

impl Pool {
    pub(crate) fn take(&mut self, addr: IpAddr, link: u64) {
        self.used.insert(addr, link);
        self.last[slot(addr)] = Some(addr);
    }

    pub(crate) fn usage(&self, range: Cidr) -> Usage {
        let used = self.used.range(range.addr()..=range.last()).count() as u128;
        Usage { range, used, usable: usable(&range).map_or(0, |(f, l)| (l - f).saturating_add(1)) }
    }

    /// The next free address of `range`: next fit after the one given out last, so that a released address rests
    /// until the range has been gone through once.
    ///
    /// Steps over used addresses one by one, at most as many as are used: the cost depends on the number of pods, never
    /// on the size of the range.
    pub(crate) fn next(&self, range: Cidr) -> Result<IpAddr, IpamError> {
        let full = || {
            let usage = self.usage(range);
            IpamError::Exhausted { range, used: usage.used, usable: usage.usable }
        };
        let Some((first, last)) = usable(&range) else { return Err(full()) };
        let mut at = self.last[usize::from(range.family() == Family::V6)]
            .and_then(|a| range.index_of(a))
            .map_or(first, |i| i.saturating_add(1));
        // One more than what is used must hold a free one, unless all are used.
        for _ in 0..=self.used.len() {
            if at < first || at > last {
                at = first;
            }
            match range.nth(at) {
                Some(a) if !self.used.contains_key(&a) => return Ok(a),
                _ => at += 1,
            }
        }
        Err(full())
    }

    /// One address per range; `requested` ones first. `by` finds who is known by some digits.
    pub(crate) fn choose(
        &self,
        ranges: &[Cidr],
        requested: &[IpAddr],
        by: impl Fn(u64) -> Result<Key, IpamError>,
    ) -> Result<Vec<IpAddr>, IpamError> {
        for (i, a) in ranges.iter().enumerate() {
            if let Some(b) = ranges[i + 1..].iter().find(|b| b.family() == a.family()) {
                return Err(IpamError::TwoRanges { a: *a, b: *b });
            }
        }
        for (i, &addr) in requested.iter().enumerate() {
            if let Some(&b) = requested[i + 1..].iter().find(|b| b.is_ipv4() == addr.is_ipv4()) {
                return Err(IpamError::TwoRequested { a: addr, b });
            }
            let Some(range) = ranges.iter().find(|r| r.contains(addr)) else {
                let ranges = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(IpamError::OutOfRange { addr, ranges });
            };
            let free =
                usable(range).zip(range.index_of(addr)).is_some_and(|((first, last), i)| (first..=last).contains(&i));
            if !free {
                return Err(IpamError::Reserved { addr, range: *range });
            }
            if let Some(link) = self.used.get(&addr) {
                return Err(IpamError::Taken { addr, by: by(*link)? });
            }
        }
        let mut out = ranges
            .iter()
            .map(|r| match requested.iter().find(|a| r.contains(**a)) {
                Some(a) => Ok(*a),
                None => self.next(*r),
            })
            .collect::<Result<Vec<_>, _>>()?;
        out.sort_unstable(); // IPv4 first
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Result<Key, IpamError> {
        Ok(Key { container: format!("c{n}").into(), ifname: "eth0".parse().unwrap() })
    }
    fn c(s: &str) -> Cidr {
        s.parse().unwrap()
    }
    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn what_may_be_given_out() {
        for (range, want) in [
            ("10.0.0.0/24", Some(("10.0.0.2", "10.0.0.254"))),
            ("10.0.0.0/30", Some(("10.0.0.2", "10.0.0.2"))),
            ("10.0.0.0/31", None),
            ("10.0.0.0/32", None),
            ("fd00::/64", Some(("fd00::2", "fd00::ffff:ffff:ffff:ffff"))),
            ("fd00::/126", Some(("fd00::2", "fd00::3"))),
            ("fd00::/127", None),
            ("fd00::/128", None),
        ] {
            let have = usable(&c(range)).map(|(f, l)| (c(range).nth(f).unwrap(), c(range).nth(l).unwrap()));
            assert_eq!(have, want.map(|(f, l)| (ip(f), ip(l))), "{range}");
        }
    }

    #[test]
    fn a_released_address_rests_until_the_range_was_gone_through() {
        let range = c("10.0.0.0/29"); // .2 to .6
        let mut p = Pool::default();
        for (n, want) in ["10.0.0.2", "10.0.0.3", "10.0.0.4"].into_iter().zip(0..).map(|(w, n)| (n, w)) {
            let a = p.next(range).unwrap();
            assert_eq!(a, ip(want));
            p.take(a, n);
        }
        p.used.remove(&ip("10.0.0.3"));
        for (n, want) in ["10.0.0.5", "10.0.0.6", "10.0.0.3"].into_iter().zip(0..).map(|(w, n)| (n, w)) {
            let a = p.next(range).unwrap();
            assert_eq!(a, ip(want));
            p.take(a, 10 + n);
        }
        let e = p.next(range).unwrap_err().to_string();
        assert!(e.contains("10.0.0.0/29 has no free address: 5 of 5"), "{e}");
    }

    #[test]
    fn requests_are_judged_by_name() {
        let mut p = Pool::default();
        p.take(ip("10.0.0.9"), 9);
        let ranges = [c("10.0.0.0/24"), c("fd00::/64")];
        assert_eq!(p.choose(&ranges, &[ip("fd00::77")], key).unwrap(), [ip("10.0.0.10"), ip("fd00::77")]);
        for (req, says) in [
            (vec!["10.0.1.1"], "lies in none of this node's ranges (10.0.0.0/24, fd00::/64)"),
            (vec!["10.0.0.0"], "reserved in 10.0.0.0/24"),
            (vec!["10.0.0.255"], "reserved in 10.0.0.0/24"),
            (vec!["10.0.0.9"], "in use by c9/eth0"),
            (vec!["10.0.0.3", "10.0.0.4"], "at most one per family"),
        ] {
            let req: Vec<_> = req.into_iter().map(ip).collect();
            let e = p.choose(&ranges, &req, key).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        let e = p.choose(&[c("10.0.0.0/24"), c("10.1.0.0/24")], &[], key).unwrap_err().to_string();
        assert!(e.contains("10.0.0.0/24 and 10.1.0.0/24 are both IPv4"), "{e}");
    }
}
