//! Ranges of addresses as interval sets want them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use intent::NodeIntent;
use types::{Cidr, Family};

/// The addresses of some ranges as ranges that neither overlap nor touch: the kernel refuses the former and cannot tell
/// the latter from one.
pub(crate) fn ranges<'a>(cidrs: impl IntoIterator<Item = &'a Cidr>) -> Vec<(IpAddr, IpAddr)> {
    merged(cidrs.into_iter().map(|c| (c.addr(), c.last())).collect())
}

/// The same of first and last addresses.
pub(crate) fn merged(mut sorted: Vec<(IpAddr, IpAddr)>) -> Vec<(IpAddr, IpAddr)> {
    sorted.sort();
    let mut out: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match out.last_mut() {
            Some((_, end)) if first <= *end || follows(*end) == Some(first) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

/// The next address of the same family.
fn follows(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// The address before, of the same family.
fn precedes(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// The addresses of this node's pods, see [`NodeIntent::is_own_pod`]: its ranges without those in them that are a peer's.
pub(crate) fn own_pods(intent: &NodeIntent) -> Vec<(IpAddr, IpAddr)> {
    let mut out = Vec::new();
    for own in &intent.pod_cidrs {
        let peers = intent.peers.values().flat_map(|p| &p.routes).map(|r| r.cidr);
        let theirs: Vec<Cidr> = peers.filter(|c| c.len() > own.len() && own.contains_cidr(c)).collect();
        let mut from = Some(own.addr());
        for (first, last) in ranges(&theirs) {
            if let (Some(start), Some(end)) = (from, precedes(first))
                && start <= end
                && Family::of(end) == own.family()
            {
                out.push((start, end));
            }
            from = follows(last);
        }
        if let Some(start) = from.filter(|s| *s <= own.last()) {
            out.push((start, own.last()));
        }
    }
    merged(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_neither_overlap_nor_touch() {
        let parse = |s: &str| s.parse::<Cidr>().unwrap();
        let of = |s: &[&str]| -> Vec<String> {
            let cidrs: Vec<Cidr> = s.iter().map(|c| parse(c)).collect();
            ranges(&cidrs).into_iter().map(|(a, b)| format!("{a}-{b}")).collect()
        };
        assert_eq!(of(&["10.1.0.0/16", "10.0.0.0/16", "10.0.3.0/24"]), ["10.0.0.0-10.1.255.255"]);
        assert_eq!(
            of(&["0.0.0.0/0", "10.0.0.0/8", "::/0"]),
            ["0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
        assert_eq!(of(&["255.255.255.255/32", "::/128"]), ["255.255.255.255-255.255.255.255", "::-::"]);
        assert_eq!(of(&["10.0.0.0/24", "10.0.2.0/24"]), ["10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"]);
    }

    #[test]
    fn own_pods_are_without_what_peers_borrowed() {
        let mut i = NodeIntent::empty("node0".parse().unwrap());
        i.pod_cidrs = ["10.244.0.0/24", "10.244.0.7/32", "fd00::/64"].map(|c| c.parse().unwrap()).into();
        let routes =
            ["10.244.0.0/32", "10.244.0.7/32", "10.244.0.8/31", "10.244.0.255/32", "10.244.0.0/16", "fd00::/128"];
        let reach = intent::Reach::Direct { next_hop: [192, 168, 7, 11].into() };
        let routes = routes.map(|c| intent::PeerRoute { cidr: c.parse().unwrap(), reach: reach.clone() }).into();
        i.peers.insert("node1".parse().unwrap(), intent::Peer { addresses: [].into(), routes });
        let got: Vec<String> = own_pods(&i).into_iter().map(|(a, b)| format!("{a}-{b}")).collect();
        assert_eq!(got, ["10.244.0.1-10.244.0.7", "10.244.0.10-10.244.0.254", "fd00::1-fd00::ffff:ffff:ffff:ffff"]);
        for n in 0..=255u8 {
            let a = IpAddr::from([10, 244, 0, n]);
            assert_eq!(own_pods(&i).iter().any(|(lo, hi)| *lo <= a && a <= *hi), i.is_own_pod(a), "{a}");
        }
    }
}
