//! Cluster IPs and node ports: which one next, and whether a wanted one may be had. Pure: what is taken comes in as a
//! question, randomness as a seed, so the API server's admission can ask inside its own transaction.
//!
//! Ranges are split in two bands, as the API does (KEP-3070 for addresses, KEP-3668 for ports): the lower one is handed
//! out last, so that people can choose fixed values there with little risk of a clash.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use types::Cidr;

/// Why nothing was given. The words are the API's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The wanted address is none of the range's, or its first (network) or last (IPv4 broadcast).
    #[error("failed to allocate IP {ip}: the provided IP is not in the valid range. The range of valid IPs is {range}")]
    IpOutside {
        /// The wanted address.
        ip: IpAddr,
        /// The range.
        range: Cidr,
    },
    /// Another object has the address.
    #[error("failed to allocate IP {0}: provided IP is already allocated")]
    IpTaken(IpAddr),
    /// No address is left.
    #[error("failed to allocate a serviceIP: range is full: {0}")]
    IpsFull(Cidr),
    /// The wanted port is none of the range's.
    #[error("provided port is not in the valid range. The range of valid ports is {from}-{to}")]
    PortOutside {
        /// First port.
        from: u16,
        /// Last port.
        to: u16,
    },
    /// Another object has the port.
    #[error("provided port is already allocated")]
    PortTaken(u16),
    /// No port is left.
    #[error("failed to allocate a nodePort: range is full: {from}-{to}")]
    PortsFull {
        /// First port.
        from: u16,
        /// Last port.
        to: u16,
    },
}

/// How many values at the start of a range of `size` are kept for people: `min(max(16, size/step), most)`, none of a
/// range that is too small to be split.
fn band(size: u128, step: u128, most: u128) -> u128 {
    if size < 16 * 2 { 0 } else { (size / step).clamp(16, most) }
}

/// First and count of the offsets of a range that a Service may have.
fn usable(range: &Cidr) -> (u128, u128) {
    // The network address is never given; in IPv4 the last one is the broadcast address.
    let size = range.size();
    let lost = if range.family() == types::Family::V4 { 2 } else { 1 };
    (1, size.saturating_sub(lost))
}

/// Walks the offsets `[0, n)` from a start chosen by the seed, the upper band first, and returns the first that `free`
/// likes. Looks at no more than `LIMIT` values, so a huge full range costs no more than a big one.
fn walk(n: u128, lower: u128, seed: u64, free: impl Fn(u128) -> bool) -> Option<u128> {
    const LIMIT: u128 = 1 << 20;
    let upper = n - lower;
    let start = |count: u128| if count == 0 { 0 } else { u128::from(seed) % count };
    let band = |from: u128, count: u128| {
        let s = start(count);
        (0..count.min(LIMIT)).map(move |i| from + (s + i) % count)
    };
    band(lower, upper).chain(band(0, lower)).find(|o| free(*o))
}

/// An address of `range` that is free.
///
/// # Errors
/// [`AllocError::IpsFull`] when none is.
pub fn next_ip(range: &Cidr, seed: u64, taken: impl Fn(IpAddr) -> bool) -> Result<IpAddr, AllocError> {
    let (first, n) = usable(range);
    walk(n, band(n, 16, 256), seed, |o| range.nth(first + o).is_some_and(|ip| !taken(ip)))
        .and_then(|o| range.nth(first + o))
        .ok_or(AllocError::IpsFull(*range))
}

/// Whether the wanted address may be had.
///
/// # Errors
/// [`AllocError::IpOutside`], [`AllocError::IpTaken`].
pub fn wanted_ip(range: &Cidr, ip: IpAddr, taken: impl Fn(IpAddr) -> bool) -> Result<(), AllocError> {
    let (first, n) = usable(range);
    match range.index_of(ip) {
        Some(i) if i >= first && i - first < n => {
            if taken(ip) {
                Err(AllocError::IpTaken(ip))
            } else {
                Ok(())
            }
        }
        _ => Err(AllocError::IpOutside { ip, range: *range }),
    }
}

/// A node port that is free.
///
/// # Errors
/// [`AllocError::PortsFull`] when none is.
pub fn next_port(range: &RangeInclusive<u16>, seed: u64, taken: impl Fn(u16) -> bool) -> Result<u16, AllocError> {
    let full = || AllocError::PortsFull { from: *range.start(), to: *range.end() };
    let n = range.len() as u128;
    let port = |o: u128| u16::try_from(u128::from(*range.start()) + o).ok();
    walk(n, band(n, 32, 128), seed, |o| port(o).is_some_and(|p| !taken(p))).and_then(port).ok_or_else(full)
}

/// Whether the wanted node port may be had.
///
/// # Errors
/// [`AllocError::PortOutside`], [`AllocError::PortTaken`].
pub fn wanted_port(range: &RangeInclusive<u16>, port: u16, taken: impl Fn(u16) -> bool) -> Result<(), AllocError> {
    if !range.contains(&port) {
        Err(AllocError::PortOutside { from: *range.start(), to: *range.end() })
    } else if taken(port) {
        Err(AllocError::PortTaken(port))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn c(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    #[test]
    fn the_lower_band_is_given_last() {
        let r = c("10.96.0.0/24");
        for seed in 0..500 {
            let IpAddr::V4(ip) = next_ip(&r, seed, |_| false).unwrap() else { panic!("no IPv4 address") };
            assert!(ip.octets()[3] > 16, "{ip}");
        }
        let upper_taken = |ip: IpAddr| r.index_of(ip).is_some_and(|i| i > 16);
        assert!(r.index_of(next_ip(&r, 7, upper_taken).unwrap()).unwrap() <= 16);
    }

    #[test]
    fn every_address_is_given_once_and_then_the_range_is_full() {
        for (r, n) in
            [("10.0.0.0/29", 6), ("10.0.0.0/24", 254), ("fd00::/121", 127), ("10.0.0.0/31", 0), ("10.0.0.1/32", 0)]
        {
            let (r, mut taken) = (c(r), BTreeSet::new());
            for _ in 0..n {
                let ip = next_ip(&r, 12345, |ip| taken.contains(&ip)).unwrap();
                assert!(taken.insert(ip), "{ip} was given twice");
            }
            assert_eq!(next_ip(&r, 1, |ip| taken.contains(&ip)), Err(AllocError::IpsFull(r)));
            assert!(!taken.contains(&r.addr()));
        }
    }

    #[test]
    fn wanted_values() {
        let r = c("10.96.0.0/16");
        assert_eq!(wanted_ip(&r, "10.96.0.10".parse().unwrap(), |_| false), Ok(()));
        let e = wanted_ip(&r, "10.97.0.10".parse().unwrap(), |_| false).unwrap_err().to_string();
        assert!(e.contains("not in the valid range") && e.contains("10.96.0.0/16"), "{e}");
        let e = wanted_ip(&r, "10.96.0.10".parse().unwrap(), |_| true).unwrap_err().to_string();
        assert!(e.contains("provided IP is already allocated"), "{e}");
        for edge in ["10.96.0.0", "10.96.255.255"] {
            assert!(wanted_ip(&r, edge.parse().unwrap(), |_| false).is_err(), "{edge}");
        }
        let p = 30000..=32767;
        assert_eq!(wanted_port(&p, 30000, |_| false), Ok(()));
        assert_eq!(wanted_port(&p, 80, |_| false), Err(AllocError::PortOutside { from: 30000, to: 32767 }));
        assert_eq!(wanted_port(&p, 30001, |_| true).unwrap_err().to_string(), "provided port is already allocated");
        assert_eq!(next_port(&(5..=5), 9, |_| false), Ok(5));
        assert_eq!(next_port(&(5..=6), 9, |_| true), Err(AllocError::PortsFull { from: 5, to: 6 }));
    }

    proptest! {
        #[test]
        fn what_is_given_may_be_wanted(bits: u32, len in 16u8..=30, seed: u64, holes in prop::collection::btree_set(0u128..64, 0..40)) {
            let r = Cidr::new(IpAddr::V4(bits.into()), len).unwrap();
            let taken = |ip: IpAddr| r.index_of(ip).is_some_and(|i| holes.contains(&i));
            if let Ok(ip) = next_ip(&r, seed, taken) {
                prop_assert_eq!(wanted_ip(&r, ip, taken), Ok(()));
            }
        }
        #[test]
        fn ports_given_are_free_and_inside(from in 1u16..60000, n in 0u16..3000, seed: u64, holes in prop::collection::btree_set(0u16..3000, 0..200)) {
            let r = from..=from.saturating_add(n);
            if let Ok(p) = next_port(&r, seed, |p| holes.contains(&(p - from))) {
                prop_assert!(r.contains(&p) && !holes.contains(&(p - from)));
            }
        }
    }
}
