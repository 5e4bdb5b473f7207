//! What there is to say of a Service on a node as a whole: whether hints are followed and why not, what is dropped here.

use std::collections::BTreeMap;

use intent::{Scope, ServicePort, TrafficPolicy};
use types::{Family, NodeName, Proto};

use super::ZONE;
use crate::services::of_port;
use crate::slices::{EndpointSlice, SliceEndpoint};
use crate::snapshot::{ClusterSnapshot, Service};

/// Where a Service is looked at.
pub(super) struct Here<'a> {
    pub snapshot: &'a ClusterSnapshot,
    pub node: &'a NodeName,
    pub has_outside: bool,
}

/// One sentence for each thing, with the ports and families that it is true of where it is not true of all.
pub(super) fn all(
    here: &Here<'_>,
    svc: &Service,
    ports_of: &BTreeMap<(&str, Proto), &ServicePort>,
    slices: &[&EndpointSlice],
) -> Vec<String> {
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    if slices.is_empty() {
        return Vec::new();
    }
    let mut places = 0;
    for port in &*svc.ports {
        let Some(programmed) = ports_of.get(&(&*port.name, port.port.proto)) else { continue };
        let families: Vec<Family> = programmed.families.iter().collect();
        for family in &families {
            places += 1;
            let mut place = Vec::new();
            if svc.ports.len() > 1 {
                place.push(if port.name.is_empty() { port.port.to_string() } else { port.name.to_string() });
            }
            if families.len() > 1 {
                place.push(family.to_string());
            }
            let place = place.join(" ");
            let endpoints = of_port(slices, port, *family);
            let ready: Vec<&SliceEndpoint> = endpoints.values().copied().filter(|e| e.ready).collect();
            for text in here.of(programmed, *family, &ready) {
                match said.iter_mut().find(|(t, _)| *t == text) {
                    Some((_, all)) => all.push(place.clone()),
                    None => said.push((text, vec![place.clone()])),
                }
            }
        }
    }
    let line = |(text, at): (String, Vec<String>)| {
        if at.len() == places { text } else { format!("{}: {text}", at.join(", ")) }
    };
    said.into_iter().map(line).collect()
}

impl Here<'_> {
    fn of(&self, p: &ServicePort, family: Family, ready: &[&SliceEndpoint]) -> Vec<String> {
        let (node, mut out) = (self.node, Vec::new());
        let of_family = |set: &types::FlatSet<intent::Endpoint>| set.iter().any(|e| Family::of(e.addr) == family);
        let (any, any_here) = (of_family(&p.endpoints), of_family(&p.local_endpoints));
        if !any && !any_here {
            return vec!["no endpoint is ready: connections are refused at once".into()];
        }
        let local = |policy: TrafficPolicy| policy == TrafficPolicy::Local;
        // Traffic from outside goes by hints as well, unless its policy is Local.
        let by_hints = !local(p.internal_policy) || self.has_outside && !local(p.external_policy);
        match p.scope.get(family) {
            Scope::SameNode if by_hints => out.push(format!("hints are followed: those meant for clients on {node}")),
            Scope::SameZone if by_hints => {
                out.push(format!("hints are followed: those meant for zone {}", self.zone()))
            }
            Scope::Terminating if by_hints => {
                out.push("no endpoint is ready: those that still serve while they terminate are used".into());
            }
            Scope::Ready if by_hints => out.extend(self.ignored(ready)),
            _ => {}
        }
        for (on, policy, whose) in
            [(true, p.internal_policy, "inside the cluster"), (self.has_outside, p.external_policy, "from outside")]
        {
            if !on || !local(policy) {
                continue;
            }
            if any && !any_here {
                out.push(format!("{whose}: dropped on {node}, as the policy is Local and no endpoint is here"));
            } else if *p.local_scope.get(family) == Scope::Terminating {
                out.push(format!(
                    "{whose}: none on {node} is ready, those that still serve while they terminate are used"
                ));
            }
        }
        out
    }

    /// Why hints that there are do not count here.
    fn ignored(&self, ready: &[&SliceEndpoint]) -> Option<String> {
        let with = |has: fn(&SliceEndpoint) -> &[Box<str>]| ready.iter().filter(|e| !has(e).is_empty()).count();
        let (zones, nodes) = (with(SliceEndpoint::zone_hints), with(SliceEndpoint::node_hints));
        let all = ready.len();
        let why = if zones == all && zones > 0 {
            match self.zone() {
                "none" => format!("{} has no label {ZONE}", self.node),
                zone => format!("none is meant for zone {zone}"),
            }
        } else if nodes == all && nodes > 0 {
            format!("none is meant for clients on {}", self.node)
        } else if zones.max(nodes) > 0 {
            format!("only {} of {all} ready endpoints have any", zones.max(nodes))
        } else {
            return None;
        };
        Some(format!("hints are not followed: {why}"))
    }

    fn zone(&self) -> &str {
        self.snapshot.nodes.get(self.node).and_then(|n| n.labels.get(ZONE)).unwrap_or("none")
    }
}
