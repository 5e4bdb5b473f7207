//! Who has which address and port. Of two Services that claim one, the older has it (then the one whose name sorts
//! first), so that a newcomer's mistake breaks nothing that works. What a Service claims depends on itself alone, so
//! who has it does not depend on the order in which the Services were met.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::{Ports, ServiceKey, ServicePort};
use types::{Family, ObjectName, PortKey};

use super::{Env, served, unusable_endpoint};
use crate::problem::Problem;
use crate::snapshot::{ClusterSnapshot, Service, ServiceType, SvcPort};

/// Something that only one Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// An address inside the cluster, with all its ports.
    Cluster(IpAddr),
    /// A port of an address for traffic from outside.
    External(IpAddr, PortKey),
    /// A port of every node.
    NodePort(PortKey),
}

/// A claim as the Service's fields make it.
pub(super) struct Wanted {
    pub claim: Claim,
    pub field: String,
    /// Why nobody may have it.
    pub bad: Option<String>,
}

/// What a Service claims with its cluster addresses.
pub(super) fn cluster_ips(svc: &Service, env: &Env) -> Vec<Wanted> {
    let mut families: BTreeSet<Family> = BTreeSet::new();
    let each = svc.cluster_ips.iter().enumerate().map(|(i, ip)| {
        let bad = if env.nodes.contains(ip) {
            Some(format!("{ip} is the address of a node: delete this Service and make it anew without clusterIP"))
        } else if let Some(c) = env.cluster_cidrs.iter().find(|c| c.contains(*ip)) {
            Some(format!(
                "{ip} lies in the pod range {c}: pods and Services need ranges apart; change the service range of the API server or data.clusterCIDR of ConfigMap kube-system/seaway"
            ))
        } else if let Some(why) = unusable_endpoint(*ip) {
            Some(format!("{ip} is {why}: no Service can have it"))
        } else if !families.insert(Family::of(*ip)) {
            Some(format!("{ip} is a second {} address: a Service has one of each family", Family::of(*ip)))
        } else {
            None
        };
        Wanted { claim: Claim::Cluster(*ip), field: format!("spec.clusterIPs[{i}]"), bad }
    });
    each.collect()
}

/// What it claims outside the cluster for one of its ports.
pub(super) fn external_ips(svc: &Service, port: PortKey) -> Vec<Wanted> {
    let ingress: &[IpAddr] = if svc.kind == ServiceType::LoadBalancer { &svc.ingress_ips } else { &[] };
    let spec = svc.external_ips.iter().map(|ip| ("spec.externalIPs", *ip));
    let status = ingress.iter().map(|ip| ("status.loadBalancer.ingress", *ip));
    let families = super::families(svc);
    let each = spec.chain(status).map(|(field, ip)| Wanted {
        claim: Claim::External(ip, port),
        field: field.into(),
        bad: match unusable_endpoint(ip) {
            Some(why) => Some(format!("{ip} is {why}: no Service can have it")),
            None if families.has(Family::of(ip)) => None,
            None => Some(format!(
                "the Service has no {} cluster address, so {ip} is not served: add the family to spec.ipFamilies, or remove the address",
                Family::of(ip)
            )),
        },
    });
    each.collect()
}

/// The node port it claims for one of its ports.
pub(super) fn node_port(svc: &Service, index: usize) -> Option<Wanted> {
    if !matches!(svc.kind, ServiceType::NodePort | ServiceType::LoadBalancer) {
        return None;
    }
    let port = svc.ports.get(index)?;
    let key = PortKey { proto: port.port.proto, port: port.node_port? };
    let same = |p: &SvcPort| p.port.proto == key.proto && p.node_port == Some(key.port);
    let earlier = super::ports(svc).find(|(i, p)| *i < index && same(p));
    let bad = earlier.map(|(_, p)| {
        format!("{key} is already that of port {:?}: choose another, or remove the field to be given one", &*p.name)
    });
    Some(Wanted { claim: Claim::NodePort(key), field: format!("spec.ports[{index}].nodePort"), bad })
}

/// Everything that a Service claims and may have.
fn all(svc: &Service, env: &Env) -> BTreeSet<Claim> {
    if !served(svc) {
        return BTreeSet::new();
    }
    let mut out = cluster_ips(svc, env);
    for (i, port) in super::ports(svc) {
        out.extend(external_ips(svc, port.port));
        out.extend(node_port(svc, i));
    }
    out.into_iter().filter(|w| w.bad.is_none()).map(|w| w.claim).collect()
}

/// What the ports of an intent show of a Service's claims.
fn shown(ports: &Ports) -> BTreeSet<Claim> {
    let of = |(key, p): &(ServiceKey, std::sync::Arc<ServicePort>)| {
        let at = PortKey { proto: key.proto, port: p.port };
        let mut out: Vec<Claim> = p.cluster_ips.iter().map(|ip| Claim::Cluster(*ip)).collect();
        out.extend(p.outside_ips().map(|ip| Claim::External(ip, at)));
        out.extend(p.node_port.map(|port| Claim::NodePort(PortKey { proto: key.proto, port })));
        out
    };
    ports.iter().flat_map(of).collect()
}

/// Who claims what.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Nearly all have one claimant.
    by: BTreeMap<Claim, Claimants>,
    /// The claims of a Service that its ports in the intent do not show: those it lost, and those of a Service without
    /// ports. So the others need not be kept twice.
    hidden: BTreeMap<ObjectName, Vec<Claim>>,
}

#[derive(Debug)]
enum Claimants {
    One(ObjectName),
    More(BTreeSet<ObjectName>),
}

impl Claimants {
    fn iter(&self) -> impl Iterator<Item = &ObjectName> {
        let (one, more) = match self {
            Self::One(n) => (Some(n), None),
            Self::More(all) => (None, Some(all)),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

impl Claims {
    fn add(&mut self, claim: Claim, name: &ObjectName) {
        match self.by.get_mut(&claim) {
            None => {
                self.by.insert(claim, Claimants::One(name.clone()));
            }
            Some(Claimants::More(all)) => {
                all.insert(name.clone());
            }
            Some(c) => {
                let both: BTreeSet<ObjectName> = c.iter().cloned().chain([name.clone()]).collect();
                if both.len() > 1 {
                    *c = Claimants::More(both);
                }
            }
        }
    }

    fn remove(&mut self, claim: Claim, name: &ObjectName) {
        let Some(c) = self.by.get_mut(&claim) else { return };
        let left: BTreeSet<ObjectName> = c.iter().filter(|n| *n != name).cloned().collect();
        match (left.len(), left.first().cloned()) {
            (1, Some(n)) => *c = Claimants::One(n),
            (_, Some(_)) => *c = Claimants::More(left),
            _ => {
                self.by.remove(&claim);
            }
        }
    }

    /// The Services that claim what their ports do not show.
    pub(super) fn hidden(&self) -> impl Iterator<Item = &ObjectName> {
        self.hidden.keys()
    }

    /// The Service is another than it was, when its ports were `was`. Gives all whose claims may now fare otherwise.
    pub(super) fn update(
        &mut self,
        name: &ObjectName,
        was: &Ports,
        snapshot: &ClusterSnapshot,
        env: &Env,
    ) -> BTreeSet<ObjectName> {
        let mut old = shown(was);
        old.extend(self.hidden.get(name).into_iter().flatten());
        let new = snapshot.services.get(name).map(|s| all(s, env)).unwrap_or_default();
        let mut affected = BTreeSet::new();
        // Before and after: the age of a Service may be another even where its claims are not.
        self.rivals(old.union(&new), &mut affected);
        for c in old.difference(&new) {
            self.remove(*c, name);
        }
        for c in new.difference(&old) {
            self.add(*c, name);
        }
        self.rivals(old.union(&new), &mut affected);
        affected
    }

    /// Who claims the same, and where it is a cluster address, who claims it as an external one.
    fn rivals<'a>(&self, claims: impl Iterator<Item = &'a Claim>, out: &mut BTreeSet<ObjectName>) {
        for c in claims {
            if let Some(Claimants::More(all)) = self.by.get(c) {
                out.extend(all.iter().cloned());
            }
            if let Claim::Cluster(ip) = c {
                let first = PortKey { proto: types::Proto::ALL[0], port: 0 };
                let of_ip = self.by.range(Claim::External(*ip, first)..);
                let of_ip = of_ip.take_while(|(k, _)| matches!(k, Claim::External(a, _) if a == ip));
                out.extend(of_ip.flat_map(|(_, who)| who.iter().cloned()));
            }
        }
    }

    /// Keeps in mind what the ports do not show.
    pub(super) fn remember(&mut self, name: &ObjectName, now: &Ports, snapshot: &ClusterSnapshot, env: &Env) {
        let claims = snapshot.services.get(name).map(|s| all(s, env)).unwrap_or_default();
        let hidden: Vec<Claim> = claims.difference(&shown(now)).copied().collect();
        if hidden.is_empty() {
            self.hidden.remove(name);
        } else {
            self.hidden.insert(name.clone(), hidden);
        }
    }

    /// Whether `name` has what it wants; else a word on it.
    pub(super) fn has(
        &self,
        name: &ObjectName,
        wanted: &Wanted,
        snapshot: &ClusterSnapshot,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let holder = |c: Claim| {
            let who = self.by.get(&c)?.iter();
            who.min_by_key(|n| (snapshot.services.get(*n).map(|s| &s.created), *n))
        };
        let why = if let Some(why) = &wanted.bad {
            Some(why.clone())
        } else {
            let other = holder(wanted.claim).filter(|n| *n != name);
            match (wanted.claim, other) {
                (Claim::Cluster(ip), Some(other)) => Some(format!(
                    "{ip} is also the address of Service {other}, which has it: delete this Service and make it anew without clusterIP"
                )),
                (Claim::NodePort(key), Some(other)) => Some(format!(
                    "{key} already belongs to Service {other}: choose another node port, or remove the field to be given one"
                )),
                (Claim::External(ip, port), other) => match (holder(Claim::Cluster(ip)), other) {
                    // All of a cluster address is its Service's, however old who wants a port of it.
                    (Some(holder), _) => Some(format!(
                        "{ip} is the cluster address of Service {holder}: choose an address outside the service range"
                    )),
                    (None, Some(other)) => Some(format!(
                        "{ip} port {port} is already served by Service {other}: choose another address or port"
                    )),
                    (None, None) => None,
                },
                (_, None) => None,
            }
        };
        let has = why.is_none();
        problems.extend(why.map(|why| Problem::new(super::object(name), wanted.field.clone(), why)));
        has
    }
}
