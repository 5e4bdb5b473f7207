//! How each pod of this node is to be attached: annotations of the pod before those of its namespace before the
//! cluster's settings.

use std::collections::BTreeMap;

use intent::{Mode, NodeIntent, PodSpec, Wiring};
use serde_json::Value;
use types::{Mac, ObjectName};

use crate::LocalState;
use crate::annotations::{MAC, MIRROR, MODE, MODE_OPTIONS};
use crate::host_ports;
use crate::labels::Labels;
use crate::networks::{self, DEFAULT, Known, OLDER, PodNetworks, pod_networks};
use crate::pools::{Choice, Notes as Asked, OUTSIDE, choose, outside_allowed};
use crate::problem::Problem;
use crate::settings::Ipam;
use crate::snapshot::{ClusterSnapshot, Key, Kind, Phase, Pod};

/// Where an annotation was read.
pub(crate) struct Note<'a> {
    /// `Pod/default/web` or `Namespace/default`.
    pub object: String,
    /// Its value.
    pub value: &'a str,
}

/// The annotations that count for a pod: its own, then its namespace's.
pub(crate) struct Notes<'a> {
    name: &'a ObjectName,
    own: &'a Labels,
    namespace: Option<&'a Labels>,
}

impl<'a> Notes<'a> {
    /// The first that says something about `key`.
    pub(crate) fn get(&self, key: &str) -> Option<Note<'a>> {
        let own = self.own.get(key).map(|value| Note { object: format!("Pod/{}", self.name), value });
        own.or_else(|| {
            let value = self.namespace?.get(key)?;
            Some(Note { object: format!("Namespace/{}", self.name.namespace), value })
        })
    }
}

pub(crate) fn fill(
    intent: &mut NodeIntent,
    snapshot: &ClusterSnapshot,
    local: &LocalState,
    problems: &mut Vec<Problem>,
) {
    intent.wiring = snapshot.settings.wiring.clone();
    let broken = |name: &ObjectName| {
        let key = Key { kind: Kind::NetworkAttachmentDefinition, name: name.clone() };
        Some(snapshot.problems.get(&key)?.first()?.to_string())
    };
    let known = Known { definitions: &snapshot.networks, broken: &broken, files: &local.networks };
    for (name, pod) in &snapshot.pods {
        let here = pod.node.as_ref() == Some(&intent.node);
        if !here || matches!(pod.phase, Phase::Succeeded | Phase::Failed) {
            continue;
        }
        if pod.host_network {
            // Nobody calls the plugin for it.
            if let Some(key) = networks::READ.into_iter().find(|k| pod.asks.get(k).is_some()) {
                let why = "a pod with spec.hostNetwork has the node's interfaces and no others: remove one of the two";
                problems.push(annotation(&format!("Pod/{name}"), key, why));
            }
            if pod.asks.get(host_ports::ASK).is_some() {
                let why = "a pod with spec.hostNetwork listens on the node's own ports: remove one of the two";
                problems.push(annotation(&format!("Pod/{name}"), host_ports::ASK, why));
            }
            continue;
        }
        let namespace = snapshot.namespaces.get(&*name.namespace).map(|n| &n.asks);
        let notes = Notes { name, own: &pod.asks, namespace };
        let spec = match spec(&notes, pod, &known).and_then(|s| addresses(snapshot, intent, name, pod, s)) {
            Ok(s) => s,
            // Attached in another way than it asks, it would be reachable where it must not be: not at all, then.
            Err(p) => {
                let refused = Some(p.to_string());
                problems.push(p);
                PodSpec { uid: uid(pod), refused, ..PodSpec::default() }
            }
        };
        intent.pods.insert(name.clone(), spec);
    }
}

/// How a pod is wired. A pod whose annotations say it wrongly is wired in no way; it is as if it said nothing.
#[must_use]
pub fn wiring_of(snapshot: &ClusterSnapshot, name: &ObjectName, pod: &Pod) -> Wiring {
    let namespace = snapshot.namespaces.get(&*name.namespace).map(|n| &n.asks);
    let said = wiring(&Notes { name, own: &pod.asks, namespace }).ok().flatten();
    said.unwrap_or_else(|| snapshot.settings.wiring.clone())
}

/// The UID that a runtime says in `K8S_POD_UID`.
pub(crate) fn uid(pod: &Pod) -> Box<str> {
    pod.asks.get(MIRROR).map_or_else(|| pod.uid.clone(), Into::into)
}

fn spec(notes: &Notes<'_>, pod: &Pod, known: &Known<'_>) -> Result<PodSpec, Problem> {
    let PodNetworks { first, further } = pod_networks(notes.name, |key| notes.own.get(key), known)?;
    let wiring = wiring(notes)?;
    // The namespace's wiring is a default, the pod's own a contradiction.
    if first.is_some() && notes.own.get(MODE).is_some() {
        let why = format!("speaks of the cluster's network, which {DEFAULT} or {OLDER} replaces: remove one of them");
        return Err(annotation(&format!("Pod/{}", notes.name), MODE, why));
    }
    let bandwidth = crate::bandwidth::of(notes)?;
    let mac = mac(notes)?;
    if let (Some((key, _)), Some(_)) = (mac, &first) {
        let why = format!("is of the cluster's network, which {DEFAULT} or {OLDER} replaces: remove one of them");
        return Err(annotation(&format!("Pod/{}", notes.name), key, why));
    }
    let mac = mac.map(|(_, m)| m);
    Ok(PodSpec {
        uid: uid(pod),
        wiring,
        mac,
        bandwidth,
        default_network: first,
        networks: further,
        ..PodSpec::default()
    })
}

/// The hardware address that a pod asks for, and by which annotation. A namespace has none for all of its pods.
fn mac(notes: &Notes<'_>) -> Result<Option<(&'static str, Mac)>, Problem> {
    let Some((key, text)) = MAC.into_iter().find_map(|k| Some((k, notes.own.get(k)?))) else { return Ok(None) };
    let parsed: Option<Mac> = text.trim().parse().ok().filter(|m: &Mac| m.is_station());
    let why = || format!("is {text:.80?}: a hardware address of one station is needed, e.g. 02:00:00:00:00:17");
    let mac = parsed.ok_or_else(|| annotation(&format!("Pod/{}", notes.name), key, why()))?;
    Ok(Some((key, mac)))
}

/// Where the pod's addresses come from, and which they must be.
fn addresses(
    snapshot: &ClusterSnapshot,
    intent: &NodeIntent,
    name: &ObjectName,
    pod: &Pod,
    mut spec: PodSpec,
) -> Result<PodSpec, Problem> {
    let nothing = Asked::default();
    let asked = pod.notes.as_deref().unwrap_or(&nothing);
    let wrong = |key: &str, why: String| annotation(&format!("Pod/{name}"), key, why);
    if spec.default_network.is_some() {
        // That network gives the addresses.
        let given = [("seaway.io/ip-addrs", &asked.fixed), (OUTSIDE, &asked.outside)];
        return match given.into_iter().find(|(_, list)| !list.is_empty()) {
            Some((key, _)) => {
                let why =
                    format!("is of the cluster's network, which {DEFAULT} or {OLDER} replaces: remove one of them");
                Err(wrong(key, why))
            }
            None => Ok(spec),
        };
    }
    let usual = &snapshot.settings.wiring;
    let wiring = spec.wiring.as_ref().unwrap_or(usual);
    if spec.mac.is_some() && wiring.mode == Mode::Ipvlan {
        let key = MAC.into_iter().find(|k| pod.asks.get(k).is_some()).unwrap_or(MAC[0]);
        return Err(wrong(
            key,
            "an ipvlan has the hardware address of its parent: remove it, or choose another mode".into(),
        ));
    }
    let choice = match snapshot.settings.ipam {
        Ipam::Pools => choose(snapshot, &intent.node, &name.namespace, asked, wiring),
        Ipam::NodeCidr => of_node_ranges(snapshot, intent, asked),
    };
    let choice = choice.map_err(|all| match all.into_iter().next() {
        Some((key, why)) => wrong(&key, why),
        None => wrong("seaway.io/ip-addrs", "cannot be honoured".into()),
    })?;
    let none = choice.v4.is_empty() && choice.v6.is_empty() && choice.outside.is_empty();
    // A pod without pools of its own is given those of the cluster's mode.
    if snapshot.settings.ipam == Ipam::Pools && none && !wiring.has_own_ipam() && (wiring.on_wire() || usual.on_wire())
    {
        let needs = if wiring.on_wire() { "with" } else { "without" };
        let why = format!(
            "{}: no IPPool {needs} spec.underlay gives addresses to Namespace {} on Node {}: make one, or widen a selector",
            wiring.mode.as_str(),
            name.namespace,
            intent.node
        );
        return Err(wrong(MODE, why));
    }
    spec.pools = choice.v4.into_iter().chain(choice.v6).collect();
    spec.outside_ipam = !choice.outside.is_empty();
    spec.addresses = if spec.outside_ipam { choice.outside } else { choice.fixed };
    Ok(spec)
}

/// What can be asked for where addresses come from the nodes' own ranges.
fn of_node_ranges(
    snapshot: &ClusterSnapshot,
    intent: &NodeIntent,
    asked: &Asked,
) -> Result<Choice, Vec<(Box<str>, String)>> {
    let mut wrong: Vec<(Box<str>, String)> = asked.wrong.iter().map(|(k, w)| (k.clone(), w.to_string())).collect();
    for (given, key) in [(&asked.v4, "seaway.io/ipv4pools"), (&asked.v6, "seaway.io/ipv6pools")] {
        if given.is_some() {
            let why = "addresses come from the nodes' own ranges: set ipam: pools in ConfigMap kube-system/seaway, or remove the annotation";
            wrong.push((key.into(), why.into()));
        }
    }
    for a in &asked.fixed {
        if !intent.pod_cidrs.iter().any(|c| c.contains(*a)) {
            let why = format!(
                "{a} lies in no pod range of Node {}: choose another address, or schedule the pod elsewhere",
                intent.node
            );
            wrong.push(("seaway.io/ip-addrs".into(), why));
        }
    }
    outside_allowed(snapshot, asked, &mut wrong);
    for a in &asked.outside {
        if let Some(c) = intent.cluster_cidrs.iter().find(|c| c.contains(*a)) {
            wrong.push((
                OUTSIDE.into(),
                format!("{a} lies in {c}, a range of pods: ask for it with seaway.io/ip-addrs"),
            ));
        }
    }
    let choice = Choice { fixed: asked.fixed.to_vec(), outside: asked.outside.to_vec(), ..Choice::default() };
    if wrong.is_empty() { Ok(choice) } else { Err(wrong) }
}

fn wiring(notes: &Notes<'_>) -> Result<Option<Wiring>, Problem> {
    let (mode, options) = (notes.get(MODE), notes.get(MODE_OPTIONS));
    let Some(mode) = mode else {
        return match options {
            Some(o) => {
                Err(annotation(&o.object, MODE_OPTIONS, format!("speaks of no mode: add the annotation {MODE}")))
            }
            None => Ok(None),
        };
    };
    let parsed = mode.value.trim().parse().map_err(|e: String| annotation(&mode.object, MODE, e))?;
    let options = match options {
        // Options of another place speak of another mode.
        Some(o) if o.object == mode.object => {
            mode_options(o.value).map_err(|e| annotation(&o.object, MODE_OPTIONS, e))?
        }
        _ => BTreeMap::new(),
    };
    Ok(Some(Wiring { mode: parsed, options }))
}

/// Reads the JSON object that says more about a mode.
pub(crate) fn mode_options(text: &str) -> Result<BTreeMap<String, Value>, String> {
    let options: BTreeMap<String, Value> =
        serde_json::from_str(text).map_err(|e| format!("is no JSON object, e.g. {{\"master\": \"eth1\"}}: {e}"))?;
    // What the agent and the plugin set themselves.
    const OURS: [&str; 5] = ["type", "name", "cniVersion", "prevResult", "runtimeConfig"];
    match OURS.iter().find(|k| options.contains_key(**k)) {
        Some(k) => Err(format!("has the field {k:?}, which is not an option of a mode: remove it")),
        None => Ok(options),
    }
}

/// What is wrong with an annotation.
pub(crate) fn annotation(object: &str, key: &str, why: impl Into<String>) -> Problem {
    Problem::new(object, format!("metadata.annotations[{key}]"), why)
}
