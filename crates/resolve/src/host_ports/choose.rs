//! Which port it shall be.

use types::PortKey;

use super::PortRange;

/// A free port of a range, none when all are taken. Where the search begins depends on `seed`, the pod's UID, and on the
/// container's port alone: equal arguments give the same port, different pods are spread.
#[must_use]
pub fn choose(range: PortRange, seed: &str, to: PortKey, taken: impl Fn(PortKey) -> bool) -> Option<u16> {
    let size = range.size();
    let text = seed.bytes().chain([to.proto.number()]).chain(to.port.to_be_bytes());
    let hash = text.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    // Without this the last bytes, the only ones in which two ports of a pod differ, reach the low digits alone
    // (the finalizer of MurmurHash3).
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let begin = (mixed >> 32) % u64::from(size);
    (0..u64::from(size)).find_map(|n| {
        let offset = u16::try_from((begin + n) % u64::from(size)).ok()?;
        let port = range.first() + offset;
        (!taken(PortKey { proto: to.proto, port })).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use types::Proto;

    use super::*;

    fn key(port: u16) -> PortKey {
        PortKey { proto: Proto::Tcp, port }
    }

    proptest! {
        #[test]
        fn a_port_of_the_range_that_nobody_has_or_none_when_all_are_taken(
            first in 1024_u16..29_000, size in 1_u16..40, seed in "[a-f0-9-]{0,36}", port in 1_u16..,
            gone in proptest::collection::btree_set(0_u16..40, 0..40),
        ) {
            let range: PortRange = format!("{first}-{}", first + size - 1).parse().unwrap();
            let taken: BTreeSet<u16> = gone.iter().map(|g| first + g).collect();
            let got = choose(range, &seed, key(port), |p| taken.contains(&p.port));
            match got {
                Some(p) => prop_assert!(range.contains(p) && !taken.contains(&p)),
                None => prop_assert!((first..first + size).all(|p| taken.contains(&p))),
            }
            prop_assert_eq!(got, choose(range, &seed, key(port), |p| taken.contains(&p.port)));
        }

        #[test]
        fn as_many_pods_as_the_range_has_ports_get_one_each(first in 1024_u16..29_000, size in 1_u16..60) {
            let range: PortRange = format!("{first}-{}", first + size - 1).parse().unwrap();
            let mut taken = BTreeSet::new();
            for n in 0..size {
                let got = choose(range, &format!("pod-{n}"), key(80), |p| taken.contains(&p.port));
                prop_assert!(taken.insert(got.unwrap()));
            }
            prop_assert_eq!(choose(range, "one more", key(80), |p| taken.contains(&p.port)), None);
        }
    }

    #[test]
    fn pods_and_ports_are_spread() {
        let range = PortRange::default();
        let tenth = |p: u16| (p - range.first()) / 1000;
        let mut of_pods = [0; 10];
        let mut of_ports = [0; 10];
        for n in 0..2000_u16 {
            of_pods[usize::from(tenth(choose(range, &format!("uid-{n}"), key(80), |_| false).unwrap()))] += 1;
            of_ports[usize::from(tenth(choose(range, "uid", key(n + 1), |_| false).unwrap()))] += 1;
        }
        assert!(of_pods.iter().chain(&of_ports).all(|n| (120..280).contains(n)), "{of_pods:?} {of_ports:?}");
    }
}
