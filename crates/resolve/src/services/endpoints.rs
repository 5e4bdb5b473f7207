//! Which endpoints of a Service port may be chosen on one node, as kube-proxy's `CategorizeEndpoints` has it.

use std::collections::BTreeMap;

use intent::{ByFamily, Endpoint, Scope, TrafficPolicy};
use types::{Family, FamilySet, FlatSet, NodeName};

use super::{Env, unusable_endpoint};
use crate::slices::{EndpointSlice, SliceEndpoint};
use crate::snapshot::{Service, SvcPort};

/// What may be chosen.
#[derive(Default)]
pub(super) struct Usable {
    /// For policy Cluster.
    pub cluster: FlatSet<Endpoint>,
    /// For policy Local; empty when no policy is.
    pub local: FlatSet<Endpoint>,
    /// Why those.
    pub scope: ByFamily<Scope>,
    /// Why those of this node.
    pub local_scope: ByFamily<Scope>,
}

/// The endpoints of one port: ready ones, of them those that hints mean for this node; when none is ready, those that
/// still serve while they terminate. Each family is served by its own rules, so each falls back on its own.
pub(super) fn endpoints(
    slices: &[&EndpointSlice],
    port: &SvcPort,
    svc: &Service,
    env: &Env,
    families: FamilySet,
) -> Usable {
    let mut out = Usable::default();
    let Some(node) = &env.node else { return out };
    let is_local = |e: &SliceEndpoint| e.node.as_deref() == Some(node.as_str());
    // The Local set is only asked for when a policy says so.
    let wants_local = svc.internal_policy == TrafficPolicy::Local || svc.external_policy == TrafficPolicy::Local;
    for family in families.iter() {
        let all = of_port(slices, port, family);
        let of = |keep: &dyn Fn(&SliceEndpoint) -> bool| -> FlatSet<Endpoint> {
            all.iter().filter(|(_, e)| keep(e)).map(|(at, _)| *at).collect()
        };
        let fallback = |e: &SliceEndpoint| e.serving && e.terminating;
        let ready: Vec<&SliceEndpoint> = all.values().copied().filter(|e| e.ready).collect();
        let mut scope = hinted(&ready, node, env.zone.as_deref());
        let mut usable = of(&|e| e.ready && within(e, scope, node, env.zone.as_deref()));
        if usable.is_empty() {
            scope = Scope::Terminating;
            usable = of(&fallback);
        }
        // Of no endpoint there is nothing to say.
        *out.scope.get_mut(family) = if usable.is_empty() { Scope::Ready } else { scope };
        out.cluster.extend(usable);
        if !wants_local {
            continue;
        }
        let mut local = of(&|e| e.ready && is_local(e));
        if local.is_empty() {
            local = of(&|e| fallback(e) && is_local(e));
            *out.local_scope.get_mut(family) = if local.is_empty() { Scope::Ready } else { Scope::Terminating };
        }
        out.local.extend(local);
    }
    out
}

/// Of two entries for one endpoint, the greater counts; of equals, the one of the later slice by name.
pub(crate) type Rank = (bool, u64);

/// See [`Rank`].
pub(crate) fn rank(slice: &EndpointSlice, e: &SliceEndpoint) -> Rank {
    (!e.terminating, slice.revision)
}

/// What the slices say of each endpoint of a port in one family. While an endpoint is moved from one slice to another it
/// may be in both: then the slice that was written last speaks. And when a new pod has the address of one that is not
/// quite gone, the new pod's entry does.
pub(crate) fn of_port<'a>(
    slices: &[&'a EndpointSlice],
    port: &SvcPort,
    family: Family,
) -> BTreeMap<Endpoint, &'a SliceEndpoint> {
    let mut out: BTreeMap<Endpoint, (Rank, &SliceEndpoint)> = BTreeMap::new();
    for s in slices.iter().filter(|s| s.family == Some(family) && !s.headless) {
        // A port name may have several numbers, here or in several slices: where pods name different ones.
        for p in s.ports.iter().filter(|p| *p.name == *port.name && p.port.proto == port.port.proto) {
            for e in s.endpoints.iter() {
                if Family::of(e.addr) != family || unusable_endpoint(e.addr).is_some() {
                    continue;
                }
                let at = Endpoint { addr: e.addr, port: p.port.port };
                let rank = rank(s, e);
                if out.get(&at).is_none_or(|(best, _)| rank >= *best) {
                    out.insert(at, (rank, e));
                }
            }
        }
    }
    out.into_iter().map(|(at, (_, e))| (at, e)).collect()
}

/// Which hints of the ready endpoints count on this node (KEP-2433, KEP-3015): those that every one has and that mean
/// some for this node; the node's before the zone's. What the Service asks for (`trafficDistribution`) is the business of
/// whoever writes the hints.
fn hinted(ready: &[&SliceEndpoint], node: &NodeName, zone: Option<&str>) -> Scope {
    let counts = |scope: Scope, given: &dyn Fn(&SliceEndpoint) -> bool| {
        !ready.is_empty() && ready.iter().all(|e| given(e)) && ready.iter().any(|e| within(e, scope, node, zone))
    };
    if counts(Scope::SameNode, &|e| !e.node_hints().is_empty()) {
        Scope::SameNode
    } else if counts(Scope::SameZone, &|e| !e.zone_hints().is_empty()) {
        Scope::SameZone
    } else {
        Scope::Ready
    }
}

fn within(e: &SliceEndpoint, scope: Scope, node: &NodeName, zone: Option<&str>) -> bool {
    match scope {
        Scope::SameNode => e.node_hints().iter().any(|h| **h == *node.as_str()),
        Scope::SameZone => zone.is_some_and(|z| e.zone_hints().iter().any(|h| **h == *z)),
        Scope::Ready | Scope::Terminating => true,
    }
}
