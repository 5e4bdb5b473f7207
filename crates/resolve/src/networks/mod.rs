//! Several networks for one pod: the Network Plumbing Working Group's "Kubernetes Network Custom Resource Definition
//! De-facto Standard", version 1.3, and the older ways to say it. Pure: from annotations, NetworkAttachmentDefinitions
//! and the node's configuration files to what the plugin runs.
//!
//! A pod whose annotation is wrong gets no network at all: attached in another way than it asks, it would be reachable
//! where it must not be.

mod config;
mod selection;

use std::collections::{BTreeMap, BTreeSet};

use intent::Network;
use serde::{Deserialize, Serialize};
use types::{IfName, ObjectName};

use crate::problem::Problem;

pub use config::{Config, config};
pub use selection::{MOST, Selection, Wrong, plain, selections};

/// API group of NetworkAttachmentDefinitions.
pub const GROUP: &str = "k8s.cni.cncf.io";
/// Its version.
pub const VERSION: &str = "v1";
/// Annotation of a pod: its further networks, in short or JSON form.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Annotation of a pod: the network of its first interface, in place of the cluster's.
pub const DEFAULT: &str = "v1.multus-cni.io/default-network";
/// Annotation of a pod, older: all its networks by name, the first interface's first.
pub const OLDER: &str = "cni";
/// Annotation of a pod, written by the agent: what it got.
pub const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// Annotation of a NetworkAttachmentDefinition that asks for devices of a device plugin.
pub const RESOURCE: &str = "k8s.v1.cni.cncf.io/resourceName";
/// The annotations of a pod that say which networks it is to have.
pub const READ: [&str; 3] = [NETWORKS, DEFAULT, OLDER];
/// The name of the cluster's own network, in the configuration that the agent writes.
pub const OWN: &str = "seaway";
/// Where names in [`DEFAULT`] without a namespace are looked for, as Multus has it.
const DEFAULT_NAMESPACE: &str = "kube-system";
/// The pod's first interface, as every Kubernetes runtime calls it.
const FIRST: &str = "eth0";

/// A NetworkAttachmentDefinition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// `spec.config`; `None`: the configuration of that name among the node's files.
    pub config: Option<Config>,
}

/// What a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNetworks {
    /// The network of its first interface; the cluster's when `None`.
    pub first: Option<Network>,
    /// Its further ones, in order.
    pub further: Vec<Network>,
}

/// Where networks are looked up.
pub struct Known<'a> {
    /// NetworkAttachmentDefinitions that can be used.
    pub definitions: &'a BTreeMap<ObjectName, Definition>,
    /// What is wrong with one that cannot.
    pub broken: &'a dyn Fn(&ObjectName) -> Option<String>,
    /// The node's configuration files by the name they give their network, or why one cannot be used.
    pub files: &'a BTreeMap<Box<str>, Result<Config, String>>,
}

impl Known<'_> {
    /// The configuration of a network, or why there is none.
    fn config(&self, name: &ObjectName) -> Result<Config, String> {
        let object = format!("NetworkAttachmentDefinition/{name}");
        match self.definitions.get(name) {
            Some(Definition { config: Some(c) }) => Ok(c.clone()),
            Some(Definition { config: None }) => self.file(&name.name).unwrap_or_else(|| {
                Err(format!(
                    "{object} has no spec.config, and no configuration file of this node has the name {:?}: write one of the two",
                    name.name
                ))
            }),
            None => Err(match (self.broken)(name) {
                Some(why) => format!("it cannot be used: {why}"),
                None => format!("there is no {object}: create it, or correct the name"),
            }),
        }
    }

    fn file(&self, name: &str) -> Option<Result<Config, String>> {
        self.files.get(name).map(|c| c.clone().map_err(|why| format!("the node's configuration of {name:?}: {why}")))
    }
}

/// The networks that a pod's annotations ask for. `note` gives the pod's own annotations.
///
/// # Errors
/// The first thing that is wrong, by pod, annotation and place in it.
pub fn pod_networks<'a>(
    pod: &ObjectName,
    note: impl Fn(&str) -> Option<&'a str>,
    known: &Known<'_>,
) -> Result<PodNetworks, Problem> {
    let problem =
        |key: &str, w: Wrong| Problem::new(format!("Pod/{pod}"), format!("metadata.annotations[{key}]{}", w.at), w.why);
    let (networks, default, older) = (note(NETWORKS), note(DEFAULT), note(OLDER));
    if let Some(text) = older {
        if let Some((other, _)) = [(NETWORKS, networks), (DEFAULT, default)].into_iter().find(|(_, t)| t.is_some()) {
            let why = format!("says the same as {other} in another way: remove one of them");
            return Err(problem(OLDER, selection::wrong("", why)));
        }
        return all_by_name(text, &pod.namespace, known).map_err(|w| problem(OLDER, w));
    }
    let mut out = PodNetworks::default();
    if let Some(text) = default {
        out.first = first(text, known).map_err(|w| problem(DEFAULT, w))?;
    }
    if let Some(text) = networks.filter(|t| !t.trim().is_empty()) {
        let all = selections(text, &pod.namespace).map_err(|w| problem(NETWORKS, w))?;
        out.further = further(all, known, "net").map_err(|w| problem(NETWORKS, w))?;
    }
    Ok(out)
}

fn network(s: Selection, ifname: IfName, config: Config) -> Network {
    let name = format!("{}/{}", s.name.namespace, s.name.name).into();
    Network {
        name,
        ifname,
        plugins: config.plugins,
        network: config.name,
        cni_version: config.version,
        ips: s.ips,
        mac: s.mac,
        default_route: s.default_route,
        args: s.args,
    }
}

fn eth0() -> Result<IfName, Wrong> {
    // Never refused; said this way because a name is a checked type.
    FIRST.parse().map_err(|_| selection::wrong("", "eth0 is no name"))
}

/// The value of [`DEFAULT`]: one network.
fn first(text: &str, known: &Known<'_>) -> Result<Option<Network>, Wrong> {
    let mut all = selections(text, DEFAULT_NAMESPACE)?;
    let Some(s) = all.pop().filter(|_| all.is_empty()) else {
        return Err(selection::wrong("", format!("must name one network: further ones stand in {NETWORKS}")));
    };
    if let Some(other) = s.ifname.as_ref().filter(|i| i.as_str() != FIRST) {
        return Err(selection::wrong(
            "",
            format!("the first interface is {FIRST}, not {other}: leave the interface out"),
        ));
    }
    if !s.default_route.is_empty() {
        let why = "default routes are the network's own here: default-route is for further networks, leave it out";
        return Err(selection::wrong("[0].default-route", why));
    }
    let config = known.config(&s.name).map_err(|why| selection::wrong("", format!("{}: {why}", s.name)))?;
    Ok(Some(network(s, eth0()?, config)))
}

/// Gives each network its configuration and interface: what it asks for, else the first of `prefix1`, `prefix2`... that
/// nobody asks for.
fn further(all: Vec<Selection>, known: &Known<'_>, prefix: &str) -> Result<Vec<Network>, Wrong> {
    let asked: BTreeSet<IfName> = all.iter().filter_map(|s| s.ifname.clone()).collect();
    let mut next = 0;
    let mut out = Vec::new();
    for (i, s) in all.into_iter().enumerate() {
        let at = format!("[{i}]");
        let ifname = match &s.ifname {
            Some(n) if n.as_str() == FIRST => {
                let why = format!(
                    "{FIRST} is the pod's first interface: choose another name, or use the annotation {DEFAULT}"
                );
                return Err(selection::wrong(format!("{at}.interface"), why));
            }
            Some(n) => n.clone(),
            None => loop {
                next += 1;
                let name: IfName =
                    format!("{prefix}{next}").parse().map_err(|_| selection::wrong(&*at, "has no name"))?;
                if !asked.contains(&name) {
                    break name;
                }
            },
        };
        let config = known.config(&s.name).map_err(|why| selection::wrong(at, format!("{}: {why}", s.name)))?;
        out.push(network(s, ifname, config));
    }
    Ok(out)
}

/// The value of [`OLDER`]: the first is the first interface's, the others are `eth1`, `eth2`... A name is a
/// NetworkAttachmentDefinition of the pod's namespace, or else the name of a configuration file's network; [`OWN`] is
/// the cluster's own.
fn all_by_name(text: &str, namespace: &str, known: &Known<'_>) -> Result<PodNetworks, Wrong> {
    let mut out = PodNetworks::default();
    for (i, s) in plain(text, namespace)?.into_iter().enumerate() {
        let at = format!("[{i}]");
        if &*s.name.name == OWN && !known.definitions.contains_key(&s.name) {
            if i > 0 {
                let why = format!("{OWN} is the cluster's own network and has the first interface: write it first");
                return Err(selection::wrong(at, why));
            }
            continue;
        }
        let defined = known.definitions.contains_key(&s.name) || (known.broken)(&s.name).is_some();
        let config = match known.file(&s.name.name).filter(|_| !defined) {
            Some(c) => c,
            None => known.config(&s.name),
        };
        let config = config.map_err(|why| selection::wrong(&*at, format!("{}: {why}", s.name.name)))?;
        if i == 0 {
            out.first = Some(network(s, eth0()?, config));
        } else {
            let ifname = format!("eth{i}").parse().map_err(|_| selection::wrong(&*at, "has no name"))?;
            out.further.push(network(s, ifname, config));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ObjectName {
        let (ns, n) = text.split_once('/').unwrap();
        ObjectName::new(ns, n)
    }

    fn look(notes: &[(&str, &str)]) -> Result<PodNetworks, String> {
        let plugin = |t: &str| config(&format!(r#"{{"cniVersion": "1.0.0", "type": "{t}"}}"#), t).unwrap();
        let definitions = BTreeMap::from([
            (name("default/a"), Definition { config: Some(plugin("bridge")) }),
            (name("ns/b"), Definition { config: Some(plugin("macvlan")) }),
            (name("default/filed"), Definition { config: None }),
            (name("default/lost"), Definition { config: None }),
            (name("kube-system/main"), Definition { config: Some(plugin("ptp")) }),
        ]);
        let files = BTreeMap::from([
            ("filed".into(), Ok(plugin("ipvlan"))),
            ("plain".into(), Ok(plugin("vlan"))),
            ("bad".into(), Err("/etc/cni/net.d/20-bad.conf: is no JSON".into())),
        ]);
        let broken = |n: &ObjectName| (&*n.name == "broken").then(|| "spec.config: is no JSON".to_owned());
        let known = Known { definitions: &definitions, broken: &broken, files: &files };
        pod_networks(&name("default/web"), |k| notes.iter().find(|(n, _)| *n == k).map(|(_, v)| *v), &known)
            .map_err(|p| p.to_string())
    }

    fn shown(n: &PodNetworks) -> Vec<String> {
        n.first
            .iter()
            .chain(&n.further)
            .map(|n| format!("{} {} {}", n.name, n.ifname, n.plugins[0]["type"].as_str().unwrap()))
            .collect()
    }

    #[test]
    fn interfaces_and_configurations() {
        for (notes, want) in [
            (vec![], vec![]),
            (vec![(NETWORKS, "")], vec![]),
            (vec![(NETWORKS, "a, ns/b")], vec!["default/a net1 bridge", "ns/b net2 macvlan"]),
            (vec![(NETWORKS, "a@net1,a")], vec!["default/a net1 bridge", "default/a net2 bridge"]),
            (
                vec![(NETWORKS, "a,a@net1,filed")],
                vec!["default/a net2 bridge", "default/a net1 bridge", "default/filed net3 ipvlan"],
            ),
            (vec![(DEFAULT, "main"), (NETWORKS, "a")], vec!["kube-system/main eth0 ptp", "default/a net1 bridge"]),
            (vec![(DEFAULT, "default/a@eth0")], vec!["default/a eth0 bridge"]),
            (vec![(OLDER, "seaway, a")], vec!["default/a eth1 bridge"]),
            (vec![(OLDER, "a,plain")], vec!["default/a eth0 bridge", "default/plain eth1 vlan"]),
        ] {
            assert_eq!(shown(&look(&notes).unwrap()), want, "{notes:?}");
        }
    }

    #[test]
    fn what_is_wrong_names_pod_annotation_place_and_fix() {
        for (notes, want) in [
            (
                vec![(NETWORKS, "none")],
                "Pod/default/web metadata.annotations[k8s.v1.cni.cncf.io/networks][0]: default/none: there is no NetworkAttachmentDefinition/default/none: create it, or correct the name",
            ),
            (vec![(NETWORKS, "a,broken")], "[1]: default/broken: it cannot be used: spec.config: is no JSON"),
            (
                vec![(NETWORKS, "lost")],
                "NetworkAttachmentDefinition/default/lost has no spec.config, and no configuration file of this node has the name \"lost\"",
            ),
            (vec![(NETWORKS, "a@eth0")], "networks][0].interface: eth0 is the pod's first interface"),
            (vec![(DEFAULT, "a,b")], "default-network]: must name one network"),
            (vec![(DEFAULT, "default/a@net1")], "the first interface is eth0, not net1"),
            (
                vec![(DEFAULT, r#"[{"name": "main", "default-route": ["10.0.0.1"]}]"#)],
                "[0].default-route: default routes are the network's own here",
            ),
            (
                vec![(OLDER, "a"), (NETWORKS, "a")],
                "annotations[cni]: says the same as k8s.v1.cni.cncf.io/networks in another way: remove one of them",
            ),
            (vec![(OLDER, "a,seaway")], "annotations[cni][1]: seaway is the cluster's own network"),
            (
                vec![(OLDER, "bad")],
                "annotations[cni][0]: bad: the node's configuration of \"bad\": /etc/cni/net.d/20-bad.conf: is no JSON",
            ),
        ] {
            let e = look(&notes).unwrap_err();
            assert!(e.contains(want), "{notes:?}: {e}");
        }
    }

    proptest! {
        /// Whatever the annotations say: interfaces are told apart, the first is nobody else's, and an order is kept.
        #[test]
        fn no_two_networks_share_an_interface(words in prop::collection::vec(("(a|ns/b|filed)", prop::option::of("net[1-4]")), 0..8), first in prop::option::of(Just("main"))) {
            let text: Vec<String> = words.iter().map(|(n, i)| format!("{n}{}", i.as_ref().map(|i| format!("@{i}")).unwrap_or_default())).collect();
            let text = text.join(",");
            let mut notes = vec![(NETWORKS, text.as_str())];
            notes.extend(first.map(|f| (DEFAULT, f)));
            if let Ok(n) = look(&notes) {
                let names: Vec<&str> = n.first.iter().chain(&n.further).map(|n| n.ifname.as_str()).collect();
                let distinct: BTreeSet<&str> = names.iter().copied().collect();
                prop_assert_eq!(distinct.len(), names.len());
                prop_assert!(n.further.iter().all(|n| n.ifname.as_str() != "eth0"));
                let order: Vec<&str> = n.further.iter().map(|n| n.name.rsplit('/').next().unwrap()).collect();
                let want: Vec<&str> = words.iter().map(|(n, _)| n.rsplit('/').next().unwrap()).collect();
                prop_assert_eq!(order, want);
            } else {
                let asked: Vec<&String> = words.iter().filter_map(|(_, i)| i.as_ref()).collect();
                prop_assert!(asked.iter().collect::<BTreeSet<_>>().len() < asked.len(), "only a name asked for twice is wrong here");
            }
        }
    }
}
