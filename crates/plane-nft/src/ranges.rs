//! Ranges of addresses as interval sets want them.

use intent::NodeIntent;
use types::{AddressRange, Cidr};

/// The addresses of some ranges as ranges that neither overlap nor touch: the kernel refuses the former and cannot tell
/// the latter from one.
pub(crate) fn ranges<'a>(cidrs: impl IntoIterator<Item = &'a Cidr>) -> Vec<AddressRange> {
    AddressRange::merged(cidrs.into_iter().map(|c| (*c).into()).collect())
}

/// The addresses of this node's pods, see [`NodeIntent::is_own_pod`]: its ranges without those in them that are a peer's.
pub(crate) fn own_pods(intent: &NodeIntent) -> Vec<AddressRange> {
    let mut out = Vec::new();
    for own in &intent.pod_cidrs {
        let peers = intent.peers.values().flat_map(|p| &p.routes).map(|r| r.cidr);
        let theirs: Vec<Cidr> = peers.filter(|c| c.len() > own.len() && own.contains_cidr(c)).collect();
        let mut rest = Some(AddressRange::from(*own));
        // Sorted and apart: what is behind one is what the next may take from.
        for theirs in ranges(&theirs) {
            let [before, behind] = rest.map(|r| r.around(&theirs)).unwrap_or_default();
            out.extend(before);
            rest = behind;
        }
        out.extend(rest);
    }
    AddressRange::merged(out)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn own_pods_are_without_what_peers_borrowed() {
        let mut i = NodeIntent::empty("node0".parse().unwrap());
        i.pod_cidrs = ["10.244.0.0/24", "10.244.0.7/32", "fd00::/64"].map(|c| c.parse().unwrap()).into();
        let routes =
            ["10.244.0.0/32", "10.244.0.7/32", "10.244.0.8/31", "10.244.0.255/32", "10.244.0.0/16", "fd00::/128"];
        let reach = intent::Reach::Direct { next_hop: [192, 168, 7, 11].into() };
        let routes = routes.map(|c| intent::PeerRoute { cidr: c.parse().unwrap(), reach: reach.clone() }).into();
        i.peers.insert("node1".parse().unwrap(), intent::Peer { addresses: [].into(), routes });
        let got: Vec<String> = own_pods(&i).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["10.244.0.1-10.244.0.7", "10.244.0.10-10.244.0.254", "fd00::1-fd00::ffff:ffff:ffff:ffff"]);
        for n in 0..=255u8 {
            let a = IpAddr::from([10, 244, 0, n]);
            assert_eq!(own_pods(&i).iter().any(|r| r.contains(a)), i.is_own_pod(a), "{a}");
        }
    }
}
