//! The ports of this node's pods: those they have, those they were told, new ones for the rest.

use std::collections::BTreeSet;

use intent::{HostPort, Mode, NodeIntent};
use types::{Family, NodeName, ObjectName, PortKey};

use super::load::{declared, node_ports};
use super::{ASK, Ask, PortRange, PortsHere, asks, choose, told};
use crate::LocalState;
use crate::pods::{annotation, uid};
use crate::problem::Problem;
use crate::snapshot::{ClusterSnapshot, Pod};

/// The range of a node: its own annotation before the cluster's setting.
#[must_use]
pub fn node_range(snapshot: &ClusterSnapshot, node: &NodeName) -> PortRange {
    let own = snapshot.nodes.get(node).and_then(|n| n.host_port_range);
    own.unwrap_or(snapshot.settings.host_port_range)
}

/// Whether a port may have to be chosen on a node: what the node itself knows of its ports ([`PortsHere::held`]) is
/// needed then, and only then.
#[must_use]
pub fn unsettled(snapshot: &ClusterSnapshot, node: &NodeName, attached: &BTreeSet<Box<str>>) -> bool {
    let waits = |p: &&Pod| p.asks.get(ASK).is_some() && !p.phase.ended() && !attached.contains(&uid(p));
    snapshot.pods.values().filter(|p| p.node.as_ref() == Some(node)).any(|p| waits(&p))
}

/// One port to be found.
struct Slot<'a> {
    name: &'a ObjectName,
    uid: Box<str>,
    ask: Ask,
    got: Option<u16>,
}

/// Gives each pod of the node the ports that it asks for, or refuses it.
pub(crate) fn fill(
    intent: &mut NodeIntent,
    snapshot: &ClusterSnapshot,
    local: &LocalState,
    problems: &mut Vec<Problem>,
) {
    let here = &local.ports;
    let asks_here = |p: &Pod| p.node.as_ref() == Some(&intent.node) && p.asks.get(ASK).is_some();
    if !snapshot.pods.values().any(asks_here) {
        return;
    }
    let mut slots: Vec<Slot<'_>> = Vec::new();
    let of_services = node_ports(snapshot);
    let mut taken = of_services.clone();
    for (name, pod) in &snapshot.pods {
        if pod.node.as_ref() != Some(&intent.node) || pod.phase.ended() {
            continue;
        }
        taken.extend(declared(pod).map(|p| p.0));
        let Some(spec) = intent.pods.get(name).filter(|s| s.refused.is_none()) else { continue };
        let mode = spec.wiring.as_ref().map_or(intent.wiring.mode, |w| w.mode);
        match asked(intent, pod, mode) {
            Ok(list) => {
                slots.extend(list.into_iter().map(|ask| Slot { name, uid: uid(pod), ask, got: None }));
            }
            Err(why) => refuse(intent, name, why, problems),
        }
    }
    if slots.is_empty() {
        return;
    }
    let range = node_range(snapshot, &intent.node);
    // What attached pods have stays, whatever has come since.
    for s in &mut slots {
        s.got = before(here, snapshot, s).filter(|p| holder(here, s.key(*p)) == Some(Some(&s.uid)));
        taken.extend(s.got.map(|p| s.key(p)));
    }
    // What was chosen before stays if nobody else has it by now: somebody may have been told.
    for s in slots.iter_mut().filter(|s| s.got.is_none() && !here.attached.contains(&s.uid)) {
        let free = |p: &u16| range.contains(*p) && !taken.contains(&s.key(*p)) && holder(here, s.key(*p)).is_none();
        s.got = before(here, snapshot, s).filter(free);
        taken.extend(s.got.map(|p| s.key(p)));
    }
    for s in slots.iter_mut().filter(|s| s.got.is_none() && !here.attached.contains(&s.uid)) {
        s.got = choose(range, &s.uid, s.ask.to, |k| taken.contains(&k) || here.held.contains_key(&k));
        taken.extend(s.got.map(|p| s.key(p)));
    }
    for Slot { name, uid, ask, got } in slots {
        match got {
            Some(port) => {
                let host = PortKey { proto: ask.to.proto, port };
                if of_services.contains(&host) {
                    let why = format!(
                        "got port {host}, which is the node port of a Service by now and leads there: make the pod anew"
                    );
                    problems.push(annotation(&format!("Pod/{name}"), ASK, why));
                }
                let got = HostPort { host, host_ip: ask.host_ip, container_port: ask.to.port };
                let tells = snapshot.pods.get(name).map(told).unwrap_or_default();
                if let Some(spec) = intent.pods.get_mut(name) {
                    spec.host_ports.push(got);
                    spec.untold = spec.host_ports != tells;
                    spec.in_environment = snapshot.pods.get(name).is_some_and(|p| p.host_port_in_env);
                }
            }
            None if here.attached.contains(&uid) => {
                let why = format!("asks for port {} since the pod was attached: make the pod anew", ask.to);
                problems.push(annotation(&format!("Pod/{name}"), ASK, why));
            }
            None => {
                let why = format!(
                    "no port of {range} is free on Node {} for port {}: widen hostPortRange in ConfigMap kube-system/seaway or \
                     annotation {} of the Node, or schedule the pod elsewhere (request {})",
                    intent.node,
                    ask.to,
                    super::RANGE,
                    super::RESOURCE
                );
                refuse(intent, name, why, problems);
            }
        }
    }
}

impl Slot<'_> {
    fn key(&self, port: u16) -> PortKey {
        PortKey { proto: self.ask.to.proto, port }
    }
}

/// Who has a port, as far as the node knows.
fn holder(here: &PortsHere, port: PortKey) -> Option<Option<&Box<str>>> {
    here.held.get(&port).map(Option::as_ref)
}

/// What was chosen for an ask before.
fn before(here: &PortsHere, snapshot: &ClusterSnapshot, s: &Slot<'_>) -> Option<u16> {
    let same =
        |p: &&HostPort| (p.host.proto, p.container_port, p.host_ip) == (s.ask.to.proto, s.ask.to.port, s.ask.host_ip);
    let known = here.chosen.get(&s.uid).and_then(|all| all.iter().find(same).copied());
    known.or_else(|| told(snapshot.pods.get(s.name)?).iter().find(same).copied()).map(|p| p.host.port)
}

/// What a pod asks for, as far as this node can give it.
fn asked(intent: &NodeIntent, pod: &Pod, mode: Mode) -> Result<Vec<Ask>, String> {
    let list = asks(pod)?;
    if !list.is_empty() && matches!(mode, Mode::Macvlan | Mode::Ipvlan) {
        return Err(format!(
            "a pod of mode {mode} has no way from its node, so none of the node's ports can lead to it: use another mode"
        ));
    }
    for a in list.iter().filter_map(|a| a.host_ip).filter(|a| !a.is_unspecified()) {
        if !intent.families.has(Family::of(a)) {
            return Err(format!(
                "asks for {a}, and pods here have no address of that family: ask for an address of the other"
            ));
        }
        if !intent.addresses.contains(&a) && !a.is_loopback() {
            return Err(format!(
                "asks for {a}, which is no address of Node {}: remove it, or name one of the node's",
                intent.node
            ));
        }
    }
    Ok(list)
}

fn refuse(intent: &mut NodeIntent, name: &ObjectName, why: String, problems: &mut Vec<Problem>) {
    let p = annotation(&format!("Pod/{name}"), ASK, why);
    if let Some(spec) = intent.pods.get_mut(name) {
        spec.refused = Some(p.to_string());
        spec.host_ports.clear();
    }
    problems.push(p);
}
