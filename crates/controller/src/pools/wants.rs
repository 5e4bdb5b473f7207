//! What a node wants of pools: addresses for the pods that wait, and some at hand.

use std::collections::BTreeSet;
use std::net::IpAddr;

use resolve::ClusterSnapshot;
use resolve::pools::{Choice, choose, default_choice};
use resolve::settings::Ipam;
use resolve::wiring_of;
use types::{Family, NodeName, ObjectName};

use super::Want;

/// Of each block, so many parts are wanted free: with fewer left the next is claimed.
const PART: u32 = 8;
/// Free addresses at hand at most.
const MOST: usize = 16;

/// What is wanted on `node`, where the pods of `attached` have their addresses already.
#[must_use]
pub fn wants(snapshot: &ClusterSnapshot, node: &NodeName, attached: &BTreeSet<ObjectName>) -> Vec<Want> {
    let mut out = Vec::new();
    if snapshot.settings.ipam != Ipam::Pools {
        return out;
    }
    let mut put = |pools: &[Box<str>], waiting: usize, spare: usize, fixed: Option<IpAddr>| {
        if pools.is_empty() {
            return;
        }
        match out.iter_mut().find(|w: &&mut Want| w.pools == pools && w.fixed.is_none() && fixed.is_none()) {
            Some(w) => w.waiting += waiting,
            None => out.push(Want { pools: pools.to_vec(), waiting, spare, fixed }),
        }
    };
    let usual = &snapshot.settings.wiring;
    let usual = if usual.has_own_ipam() { Choice::default() } else { default_choice(snapshot, node, None, usual) };
    for family in Family::BOTH {
        put(usual.pools(family), 0, spare(snapshot, usual.pools(family)), None);
    }
    let waiting = snapshot.pods.iter().filter(|(name, p)| {
        p.node.as_ref() == Some(node)
            && !p.host_network
            && !p.phase.ended()
            && !p.terminating
            && p.ips.is_empty()
            && !attached.contains(name)
    });
    for (name, pod) in waiting {
        let wiring = wiring_of(snapshot, name, pod);
        if wiring.has_own_ipam() {
            continue;
        }
        let choice = match pod.notes.as_deref() {
            Some(notes) => choose(snapshot, node, &name.namespace, notes, &wiring).unwrap_or_default(),
            None => default_choice(snapshot, node, Some(&name.namespace), &wiring),
        };
        let Choice { fixed, .. } = &choice;
        for family in Family::BOTH {
            let fixed = fixed.iter().find(|a| Family::of(**a) == family).copied();
            put(choice.pools(family), 1, 0, fixed);
        }
    }
    out
}

/// Addresses of no pool that pods on `node` name, where that is allowed.
pub(super) fn outside(snapshot: &ClusterSnapshot, node: &NodeName) -> BTreeSet<IpAddr> {
    let s = &snapshot.settings;
    if s.ipam != Ipam::Pools || !s.outside_addresses {
        return BTreeSet::new();
    }
    let here = snapshot.pods.iter().filter(|(name, p)| {
        let has = p.node.as_ref() == Some(node) && !p.host_network && !p.phase.ended() && p.notes.is_some();
        has && !wiring_of(snapshot, name, p).on_wire()
    });
    let named = here.filter_map(|(_, p)| p.notes.as_deref()).filter(|n| n.wrong.is_empty()).flat_map(|n| &n.outside);
    named.filter(|a| !snapshot.pools.values().any(|p| p.cidr.contains(**a))).copied().collect()
}

/// How many addresses of these pools should be free.
fn spare(snapshot: &ClusterSnapshot, pools: &[Box<str>]) -> usize {
    let first = pools.first().and_then(|p| snapshot.pools.get(p));
    let size = first.map_or(0, |p| u32::from(p.cidr.family().bits() - p.size()).min(16));
    usize::try_from((1u32 << size) / PART).unwrap_or(MOST).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use resolve::{Event, apply, parse};
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, annotations: Value, spec: Value, status: Value) -> Value {
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "annotations": annotations},
               "spec": spec, "status": status})
    }

    #[test]
    fn pods_that_wait_and_a_few_at_hand() {
        let pool = |name: &str, cidr: &str| {
            json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool",
            "metadata": {"name": name}, "spec": {"cidr": cidr}})
        };
        let all = [
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway", "namespace": "kube-system"}, "data": {"ipam": "pools", "ipPools": "a, six"}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
            pool("a", "10.0.0.0/24"),
            pool("b", "10.1.0.0/24"),
            pool("six", "fd00::/64"),
            pod("w1", json!({}), json!({}), json!({})),
            pod("w2", json!({}), json!({}), json!({})),
            pod("has", json!({}), json!({}), json!({})),
            pod("host", json!({}), json!({"hostNetwork": true}), json!({})),
            pod("old", json!({}), json!({}), json!({"podIPs": [{"ip": "10.0.0.5"}]})),
            pod("done", json!({}), json!({}), json!({"phase": "Succeeded"})),
            pod("picky", json!({"seaway.io/ipv4pools": "b"}), json!({}), json!({})),
            pod("fixed", json!({"seaway.io/ip-addrs": "10.0.0.7"}), json!({}), json!({})),
            pod("wrong", json!({"seaway.io/ip-addrs": "10.9.0.7"}), json!({}), json!({})),
        ];
        let mut s = ClusterSnapshot::default();
        for o in &all {
            apply(&mut s, Event::Put(parse(o).unwrap()));
        }
        let names = |list: &[&str]| list.iter().map(|n| Box::from(*n)).collect::<Vec<Box<str>>>();
        let attached = [ObjectName::new("default", "has")].into();
        let want = |pools: &[&str], waiting, spare| Want { pools: names(pools), waiting, spare, fixed: None };
        let got = wants(&s, &"n1".parse().unwrap(), &attached);
        let fixed = Want { fixed: Some("10.0.0.7".parse().unwrap()), ..want(&["a"], 1, 0) };
        assert_eq!(got, [want(&["a"], 2, 8), want(&["six"], 4, 8), fixed, want(&["b"], 1, 0)]);
        s.settings.ipam = Ipam::NodeCidr;
        assert!(wants(&s, &"n1".parse().unwrap(), &attached).is_empty());
    }
}
