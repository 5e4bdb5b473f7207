//! Which address is next: a pure function of what is used and what was given out last.

use std::net::IpAddr;

use types::{AddressRange, Cidr, Family};

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
    pub used: Used,
    /// The address given out last, per family.
    pub last: [Option<IpAddr>; 2],
}

fn slot(addr: IpAddr) -> usize {
    usize::from(addr.is_ipv6())
}

/// Addresses and whose they are, each family sorted: they mostly come in order, and whoever reads a thousand wants to write
/// to as little memory as can be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Used([Vec<(IpAddr, u64)>; 2]);

impl Used {
    fn find(&self, addr: &IpAddr) -> Result<usize, usize> {
        let all = &self.0[slot(*addr)];
        // The newest is mostly the last.
        match all.last() {
            Some((last, _)) if last < addr => Err(all.len()),
            _ => all.binary_search_by(|(a, _)| a.cmp(addr)),
        }
    }

    pub(crate) fn with_capacity(n: usize) -> Self {
        Self([Vec::with_capacity(n), Vec::with_capacity(n)])
    }

    pub(crate) fn get(&self, addr: &IpAddr) -> Option<&u64> {
        self.find(addr).ok().and_then(|i| self.0[slot(*addr)].get(i)).map(|(_, link)| link)
    }

    pub(crate) fn insert(&mut self, addr: IpAddr, link: u64) {
        let at = self.find(&addr);
        let all = &mut self.0[slot(addr)];
        match at {
            Ok(i) => all[i].1 = link,
            Err(i) => all.insert(i, (addr, link)),
        }
    }

    pub(crate) fn remove(&mut self, addr: &IpAddr) {
        if let Ok(i) = self.find(addr) {
            self.0[slot(*addr)].remove(i);
        }
    }

    /// How many are in a range.
    fn count(&self, range: &Cidr) -> usize {
        self.0[slot(range.addr())].iter().filter(|(a, _)| range.contains(*a)).count()
    }
}

impl Pool {
    pub(crate) fn take(&mut self, addr: IpAddr, link: u64) {
        self.used.insert(addr, link);
        self.last[slot(addr)] = Some(addr);
    }

    pub(crate) fn usage(&self, range: Cidr) -> Usage {
        let used = self.used.count(&range) as u128;
        Usage { range, used, usable: usable(&range).map_or(0, |(f, l)| (l - f).saturating_add(1)) }
    }

    /// The next free address of a range of which the indices `first..=last` may be given: next fit after the one given
    /// out last, so that a released address rests until the range has been gone through once.
    ///
    /// Steps over used and excepted addresses one by one: the cost depends on the number of pods, never on the size of
    /// the range.
    fn next(&self, span: &Span, except: &[Cidr]) -> Option<IpAddr> {
        let Span { range, first, last } = span;
        let (first, last) = (*first, *last);
        let mut at = self.last[usize::from(range.family() == Family::V6)]
            .and_then(|a| range.index_of(a))
            .map_or(first, |i| i.saturating_add(1));
        let count = (last - first).saturating_add(1);
        let mut seen: u128 = 0;
        while seen < count {
            if at < first || at > last {
                at = first;
            }
            let a = range.nth(at)?;
            if let Some(e) = except.iter().find(|e| e.contains(a)) {
                // Behind the whole exception at once: it may be a /64.
                let end = range.index_of(e.last()).unwrap_or(last).min(last);
                (seen, at) = (seen.saturating_add(end - at + 1), end.saturating_add(1));
            } else if self.used.get(&a).is_some() {
                (seen, at) = (seen + 1, at + 1);
            } else {
                return Some(a);
            }
        }
        None
    }

    /// One address of each family that the space has; `requested` ones first. `by` finds who is known by some digits.
    pub(crate) fn choose(
        &self,
        space: &Space,
        requested: &[IpAddr],
        by: impl Fn(u64) -> Result<Key, IpamError>,
    ) -> Result<Vec<IpAddr>, IpamError> {
        for (i, &addr) in requested.iter().enumerate() {
            if let Some(&b) = requested[i + 1..].iter().find(|b| b.is_ipv4() == addr.is_ipv4()) {
                return Err(IpamError::TwoRequested { a: addr, b });
            }
            let spans = || space.sets.iter().flat_map(|s| &s.spans);
            let Some(span) = spans().find(|s| s.range.contains(addr)) else {
                let here = space.sets.iter().filter(|s| s.family == Family::of(addr));
                if let Some(wait) = here.map(|s| &s.wait).find(|w| !w.is_empty()) {
                    return Err(IpamError::NotYet { addr, wait: wait.clone() });
                }
                let ranges = spans().map(|s| s.range.to_string()).collect::<Vec<_>>().join(", ");
                return Err(IpamError::OutOfRange { addr, ranges });
            };
            let free = span.range.index_of(addr).is_some_and(|i| (span.first..=span.last).contains(&i))
                && !space.except.iter().any(|e| e.contains(addr));
            if !free {
                return Err(IpamError::Reserved { addr, range: span.range });
            }
            if let Some(link) = self.used.get(&addr) {
                return Err(IpamError::Taken { addr, by: by(*link)? });
            }
        }
        let mut out = Vec::new();
        for family in Family::BOTH {
            let sets = || space.sets.iter().filter(|s| s.family == family);
            if let Some(a) = requested.iter().find(|a| Family::of(**a) == family) {
                out.push(*a);
            } else if sets().next().is_some() {
                let mut spans = sets().flat_map(|s| &s.spans);
                match spans.find_map(|s| self.next(s, &space.except)) {
                    Some(a) => out.push(a),
                    None => return Err(self.exhausted(&sets().collect::<Vec<_>>())),
                }
            }
        }
        Ok(out)
    }

    /// No set of a family has an address.
    fn exhausted(&self, sets: &[&Set]) -> IpamError {
        let (mut used, mut usable) = (0, 0);
        for s in sets.iter().flat_map(|s| &s.spans) {
            used += self.used.count(&s.range) as u128;
            usable += (s.last - s.first).saturating_add(1);
        }
        let names = sets.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(", ");
        let wait: Vec<&str> = sets.iter().map(|s| &*s.wait).filter(|w| !w.is_empty()).collect();
        IpamError::Exhausted { of: names, used, usable, wait: wait.join("; ") }
    }
}

/// What may be given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Space {
    /// In order: of each family, the first that has an address gives it.
    pub sets: Vec<Set>,
    /// What is never given.
    pub except: Vec<Cidr>,
}

/// Ranges of one family that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    name: String,
    family: Family,
    spans: Vec<Span>,
    wait: String,
}

/// A range, and the first and last index of it that may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    range: Cidr,
    first: u128,
    last: u128,
}

impl Set {
    /// Ranges of which every address may be given: pods have them as host addresses.
    pub(crate) fn whole(name: String, family: Family, ranges: &[Cidr], wait: &str) -> Self {
        let span = |r: &Cidr| Span { range: *r, first: 0, last: r.size() - 1 };
        let spans = ranges.iter().filter(|r| r.family() == family).map(span).collect();
        Self { name, family, spans, wait: wait.into() }
    }

    /// No addresses at all.
    pub(crate) fn none(name: String, family: Family) -> Self {
        Self { wait: format!("{name} has given this node nothing yet"), name, family, spans: Vec::new() }
    }
}

impl Space {
    /// A node's own ranges, at most one per family; one address of each is given.
    pub(crate) fn of_ranges(ranges: &[Cidr]) -> Result<Self, IpamError> {
        let mut sets = Vec::new();
        for (i, a) in ranges.iter().enumerate() {
            if let Some(b) = ranges[i + 1..].iter().find(|b| b.family() == a.family()) {
                return Err(IpamError::TwoRanges { a: *a, b: *b });
            }
            let spans = usable(a).map(|(first, last)| Span { range: *a, first, last }).into_iter().collect();
            sets.push(Set { name: format!("range {a}"), family: a.family(), spans, wait: String::new() });
        }
        Ok(Self { sets, except: Vec::new() })
    }

    /// Leaves of the ranges that hold such a part only that part.
    pub(crate) fn narrow(&mut self, within: &[AddressRange]) {
        for s in self.sets.iter_mut().flat_map(|s| &mut s.spans) {
            for part in within {
                if let (Some(from), Some(to)) = (s.range.index_of(part.first()), s.range.index_of(part.last())) {
                    (s.first, s.last) = (s.first.max(from), s.last.min(to));
                }
            }
        }
        // What has nothing left gives nothing.
        self.sets.iter_mut().for_each(|s| s.spans.retain(|s| s.first <= s.last));
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
        let one = Space::of_ranges(&[range]).unwrap();
        let mut p = Pool::default();
        for (n, want) in ["10.0.0.2", "10.0.0.3", "10.0.0.4"].into_iter().zip(0..).map(|(w, n)| (n, w)) {
            let a = p.choose(&one, &[], key).unwrap()[0];
            assert_eq!(a, ip(want));
            p.take(a, n);
        }
        p.used.remove(&ip("10.0.0.3"));
        for (n, want) in ["10.0.0.5", "10.0.0.6", "10.0.0.3"].into_iter().zip(0..).map(|(w, n)| (n, w)) {
            let a = p.choose(&one, &[], key).unwrap()[0];
            assert_eq!(a, ip(want));
            p.take(a, 10 + n);
        }
        let e = p.choose(&one, &[], key).unwrap_err().to_string();
        assert!(e.contains("10.0.0.0/29 has no free address: 5 of 5"), "{e}");
    }

    #[test]
    fn requests_are_judged_by_name() {
        let mut p = Pool::default();
        p.take(ip("10.0.0.9"), 9);
        let ranges = Space::of_ranges(&[c("10.0.0.0/24"), c("fd00::/64")]).unwrap();
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
        let e = Space::of_ranges(&[c("10.0.0.0/24"), c("10.1.0.0/24")]).unwrap_err().to_string();
        assert!(e.contains("10.0.0.0/24 and 10.1.0.0/24 are both IPv4"), "{e}");
    }

    #[test]
    fn pools_give_whole_blocks_one_after_the_other() {
        let blocks = [c("10.0.0.0/30"), c("10.0.0.8/30"), c("10.0.9.9/32")];
        let sets = vec![
            Set::whole("IPPool a".into(), Family::V4, &blocks, "a block is being claimed"),
            Set::whole("IPPool b".into(), Family::V4, &[c("10.1.0.0/31")], ""),
        ];
        let space = Space { sets, except: vec![c("10.0.0.2/31"), c("10.0.0.8/32")] };
        let mut p = Pool::default();
        let want = ["10.0.0.0", "10.0.0.1", "10.0.0.9", "10.0.0.10", "10.0.0.11", "10.0.9.9", "10.1.0.0", "10.1.0.1"];
        for (n, want) in want.into_iter().enumerate() {
            let got = p.choose(&space, &[], key).unwrap();
            assert_eq!(got, [ip(want)]);
            p.take(got[0], n as u64);
        }
        let e = p.choose(&space, &[], key).unwrap_err();
        assert!(e.is_exhausted());
        let says = "IPPool a, IPPool b has no free address: 8 of 11 are in use; a block is being claimed";
        assert!(e.to_string().contains(says), "{e}");
        p.used.remove(&ip("10.0.0.9"));
        assert_eq!(p.choose(&space, &[], key).unwrap(), [ip("10.0.0.9")]);
        for (a, says) in [
            ("10.0.0.8", "reserved in 10.0.0.8/30"),
            ("10.0.0.10", "in use by c3/eth0"),
            ("10.0.0.99", "10.0.0.99 is not this node's yet: a block is being claimed"),
            ("fd00::1", "lies in none of this node's ranges"),
        ] {
            let e = p.choose(&space, &[ip(a)], key).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
    }
}
