//! Which addresses are announced outside, and by which nodes they may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::TrafficPolicy;
use types::{Family, NodeName, ObjectName};

use super::Means;
use crate::services::unusable_endpoint;
use crate::snapshot::{ClusterSnapshot, Service, ServiceType};

/// Label of a Node that takes it out of load balancing (Kubernetes' own, KEP-1143).
pub const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// One address that nodes announce outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announcement {
    /// How.
    pub means: Means,
    /// The nodes that may, each with the condition Ready or not. With `externalTrafficPolicy: Local` those with an
    /// endpoint that is used.
    pub nodes: BTreeMap<NodeName, bool>,
    /// On which interfaces; empty: the uplink.
    pub interfaces: BTreeSet<Box<str>>,
    /// The Services that have it.
    pub services: BTreeSet<ObjectName>,
}

/// Every address of a pool that a Service of type LoadBalancer has, by what its status says.
#[must_use]
pub fn announcements(snapshot: &ClusterSnapshot) -> BTreeMap<IpAddr, Announcement> {
    let mut out: BTreeMap<IpAddr, Announcement> = BTreeMap::new();
    for (name, svc) in &snapshot.services {
        let Some(ask) = svc.balancer.as_deref().filter(|_| svc.kind == ServiceType::LoadBalancer) else { continue };
        if svc.foreign_proxy {
            continue;
        }
        for (i, ip) in svc.ingress_ips.iter().enumerate() {
            // An address that the pool no longer names is still its until the Service lets it go.
            let from = ask.given_from.get(i).and_then(|p| snapshot.load_balancer_pools.get(p));
            let Some(pool) = from.or_else(|| snapshot.load_balancer_pools.values().find(|p| p.contains(*ip))) else {
                continue;
            };
            if pool.means == Means::None {
                continue;
            }
            let local = (svc.external_policy == TrafficPolicy::Local)
                .then(|| nodes_with_endpoints(snapshot, name, svc, Family::of(*ip)));
            let nodes: BTreeMap<NodeName, bool> = snapshot
                .nodes
                .iter()
                .filter(|(n, node)| {
                    node.labels.get(EXCLUDE).is_none()
                        && pool.node_selector.matches(&node.labels)
                        && local.as_ref().is_none_or(|l| l.contains(n.as_str()))
                })
                .map(|(n, node)| (n.clone(), node.ready))
                .collect();
            match out.get_mut(ip) {
                // Shared: a node must be right for all of its Services.
                Some(a) => {
                    a.nodes.retain(|n, _| nodes.contains_key(n));
                    a.interfaces.extend(pool.interfaces.iter().cloned());
                    a.services.insert(name.clone());
                }
                None => {
                    let interfaces = pool.interfaces.iter().cloned().collect();
                    let services = BTreeSet::from([name.clone()]);
                    out.insert(*ip, Announcement { means: pool.means, nodes, interfaces, services });
                }
            }
        }
    }
    out
}

/// The nodes that have an endpoint of a Service that is used: ready ones, and on a node without any, those that still
/// serve while they terminate.
fn nodes_with_endpoints<'a>(
    snapshot: &'a ClusterSnapshot,
    name: &'a ObjectName,
    svc: &Service,
    family: Family,
) -> BTreeSet<&'a str> {
    snapshot
        .slices_of(name)
        .filter(|(_, s)| s.family == Some(family))
        .flat_map(|(_, s)| s.endpoints.iter())
        .filter(|e| e.ready || (e.serving && e.terminating) || svc.publish_not_ready)
        .filter(|e| unusable_endpoint(e.addr).is_none())
        .filter_map(|e| e.node.as_deref())
        .collect()
}
