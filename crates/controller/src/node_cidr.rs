//! Pod ranges of nodes.

use std::net::IpAddr;

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Key, Kind, Problem, Settings};
use serde_json::json;
use types::{Cidr, Family, ObjectName};

use crate::{Options, Outcome};

/// Gives every node without a range the first free one of each family. A range that a node has is never changed: the
/// API forbids it, and its pods live there.
pub(crate) fn reconcile(snapshot: &ClusterSnapshot, options: &Options, out: &mut Outcome) {
    let cluster = &snapshot.settings.cluster_cidrs;
    if cluster.is_empty() {
        return;
    }
    let mut used: Vec<Cidr> = snapshot.nodes.values().flat_map(|n| n.pod_cidrs.iter().copied()).collect();
    let avoid: Vec<IpAddr> = snapshot
        .nodes
        .values()
        .flat_map(resolve::Node::addresses)
        .chain(snapshot.services.values().flat_map(|s| s.cluster_ips.iter().copied()))
        .collect();
    used.extend(avoid.iter().map(|ip| Cidr::host(*ip)));
    let mut waiting: Vec<_> = snapshot.nodes.iter().filter(|(_, n)| n.pod_cidrs.is_empty()).collect();
    // A Node whose range could not be read has one all the same: it must not be given another.
    waiting.retain(|(name, _)| {
        let key = Key { kind: Kind::Node, name: ObjectName::new("", name.as_str()) };
        !snapshot.problems.get(&key).is_some_and(|p| p.iter().any(|p| p.field.starts_with("spec.podCIDR")))
    });
    waiting.sort_by_key(|(name, n)| (&n.created, *name));
    for (name, _) in waiting {
        let mut mine = Vec::new();
        for range in cluster {
            let mask = match range.family() {
                Family::V4 => options.node_mask_v4,
                Family::V6 => options.node_mask_v6,
            };
            match free(*range, mask, &used) {
                Ok(c) => mine.push(c),
                Err(why) => out.problems.push(Problem::new(
                    Settings::key(),
                    "data.clusterCIDR",
                    format!("no range for Node {name}: {why}"),
                )),
            }
        }
        // All or none: the API takes the field once.
        if mine.len() != cluster.len() {
            continue;
        }
        used.extend(&mine);
        let list: Vec<String> = mine.iter().map(ToString::to_string).collect();
        out.writes.push(ApiWrite {
            resource: Kind::Node.into(),
            name: ObjectName::new("", name.as_str()),
            why: format!("pod range {}", list.join(", ")),
            op: WriteOp::Patch(json!({"spec": {"podCIDR": list.first(), "podCIDRs": list}})),
        });
    }
}

/// The first sub-range of `mask` bits that touches none of `used`.
fn free(range: Cidr, mask: u8, used: &[Cidr]) -> Result<Cidr, String> {
    if mask < range.len() || mask > range.family().bits() {
        return Err(format!(
            "{range} is smaller than one node's /{mask}: write a range of /{} or wider",
            mask.saturating_sub(4)
        ));
    }
    let step = u32::from(range.family().bits() - mask);
    let mut n: u128 = 0;
    // Each turn but the last jumps behind one member of `used`, so there are at most as many.
    loop {
        let Some(c) = range.nth_subnet(mask, n) else {
            return Err(format!(
                "all {} of /{mask} in {range} are taken: delete Nodes that are gone, or widen the range",
                1u128.checked_shl(u32::from(mask - range.len())).unwrap_or(u128::MAX)
            ));
        };
        let Some(hit) = used.iter().find(|u| u.overlaps(&c)) else { return Ok(c) };
        n = match range.index_of(hit.last()) {
            Some(last) => (last.checked_shr(step).unwrap_or(0) + 1).max(n + 1),
            None => return Err(format!("{range} lies within {hit}, which is in use: choose another range")),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use resolve::Node;
    use serde_json::Value;

    fn cluster(cidrs: &[&str], nodes: &[(&str, &[&str], &str)]) -> ClusterSnapshot {
        let mut s = ClusterSnapshot::default();
        s.settings.cluster_cidrs = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        for (name, pod, address) in nodes {
            let node = Node {
                pod_cidrs: pod.iter().map(|c| c.parse().unwrap()).collect(),
                internal_ips: [address.parse().unwrap()].into(),
                ..Node::default()
            };
            s.nodes.insert(name.parse().unwrap(), node);
        }
        s
    }

    fn run(s: &ClusterSnapshot) -> (Vec<(String, Vec<String>)>, Vec<String>) {
        let mut out = Outcome::default();
        reconcile(s, &Options::default(), &mut out);
        let given = out.writes.iter().map(|w| match &w.op {
            WriteOp::Patch(v) => {
                let list: Vec<String> = serde_json::from_value(v["spec"]["podCIDRs"].clone()).unwrap();
                assert_eq!(v["spec"]["podCIDR"], Value::from(list[0].clone()));
                (w.name.name.to_string(), list)
            }
            other => panic!("{other:?}"),
        });
        (given.collect(), out.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_free_range_of_each_family() {
        let s = cluster(
            &["10.244.0.0/16", "fd00:10:244::/56"],
            &[
                ("a", &[], "192.168.0.1"),
                ("b", &["10.244.0.0/24", "fd00:10:244::/64"], "192.168.0.2"),
                ("c", &[], "192.168.0.3"),
            ],
        );
        let (given, problems) = run(&s);
        assert_eq!(
            given,
            [
                ("a".into(), vec!["10.244.1.0/24".to_string(), "fd00:10:244:1::/64".into()]),
                ("c".into(), vec!["10.244.2.0/24".into(), "fd00:10:244:2::/64".into()]),
            ]
        );
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn ranges_that_hold_a_node_address_or_overlap_are_passed_over() {
        let s = cluster(&["10.244.0.0/16"], &[("a", &["10.244.0.0/18"], "10.244.64.7"), ("b", &[], "192.168.0.2")]);
        assert_eq!(run(&s).0, [("b".into(), vec!["10.244.65.0/24".to_string()])]);
    }

    #[test]
    fn what_cannot_be_given_says_why() {
        for (range, taken, want) in [
            ("10.244.0.0/24", "10.244.0.0/24", "all 1 of /24 in 10.244.0.0/24 are taken"),
            ("10.244.0.0/25", "10.9.0.0/24", "10.244.0.0/25 is smaller than one node's /24: write a range of /20"),
            ("10.244.0.0/16", "10.0.0.0/8", "10.244.0.0/16 lies within 10.0.0.0/8, which is in use"),
        ] {
            let (given, problems) =
                run(&cluster(&[range], &[("a", &[taken], "192.168.0.1"), ("b", &[], "192.168.0.2")]));
            assert!(given.is_empty(), "{given:?}");
            assert!(problems[0].contains(want) && problems[0].contains("Node b"), "{problems:?}");
            assert!(problems[0].starts_with("ConfigMap/kube-system/seaway data.clusterCIDR"), "{problems:?}");
        }
    }

    #[test]
    fn without_cluster_ranges_nothing_is_given() {
        assert_eq!(run(&cluster(&[], &[("a", &[], "192.168.0.1")])), (vec![], vec![]));
    }
}
