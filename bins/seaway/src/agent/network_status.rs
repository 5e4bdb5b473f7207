//! What is told at pods: what those with several networks got, annotation `k8s.v1.cni.cncf.io/network-status` (Network
//! Plumbing Working Group, de-facto standard 1.3, section 5), from the records of the CNI plugin; and the host ports that
//! were chosen for those that asked for any.

use std::collections::BTreeMap;
use std::time::Duration;

use cni::CniResult;
use intent::NodeIntent;
use ipam::Record;
use resolve::host_ports;
use resolve::networks::STATUS;
use resolve::{ClusterSnapshot, Kind};
use serde_json::{Value, json};
use source::Api;
use tokio::sync::watch;
use types::ObjectName;

/// What of a pod is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// Its networks.
    Networks,
    /// Its random host ports.
    HostPorts,
}

/// Annotations of pods, with the pod's uid. Host ports are there only as long as the Pod does not tell them.
pub type Statuses = BTreeMap<(ObjectName, Of), (String, BTreeMap<String, Option<String>>)>;

/// What should stand at the pods of this node, out of its records and the cluster's pods.
pub fn statuses(intent: &NodeIntent, records: &[Record], snapshot: &ClusterSnapshot) -> Statuses {
    let mut out = Statuses::new();
    for r in records {
        let Some(p) = &r.pod else { continue };
        let name = ObjectName::new(&p.namespace, &p.name);
        let asked = intent.pods.get(&name).filter(|s| !s.networks.is_empty() || s.default_network.is_some());
        let (Some(spec), Some(pod)) = (asked, snapshot.pods.get(&name)) else { continue };
        let Some(text) = status(r) else { continue };
        // A record of the pod that had the name before says nothing about this one.
        if p.uid.as_ref().is_none_or(|u| *u == spec.uid) {
            let annotations = BTreeMap::from([(STATUS.to_owned(), Some(text))]);
            out.insert((name, Of::Networks), (pod.uid.to_string(), annotations));
        }
    }
    for (name, spec) in intent.pods.iter().filter(|(_, s)| s.untold) {
        if let Some(pod) = snapshot.pods.get(name) {
            let annotations = host_ports::annotations(&spec.host_ports);
            out.insert((name.clone(), Of::HostPorts), (pod.uid.to_string(), annotations));
        }
    }
    out
}

/// The status of one attachment; `None` while a network has no result yet.
fn status(r: &Record) -> Option<String> {
    let mut list = Vec::new();
    if r.is_routed() {
        list.push(entry(&r.network, r.key.ifname.as_str(), true, &cni::result(r, None)));
    }
    for d in r.delegates.iter().filter(|d| d.last) {
        let told = d.result.as_ref()?.as_object()?;
        let result = CniResult::read(told, "result").ok()?;
        list.push(entry(&d.network, d.ifname.as_str(), d.ifname == r.key.ifname, &result));
    }
    // The first interface's network comes first.
    list.sort_by_key(|e| e["default"] != true);
    serde_json::to_string_pretty(&Value::from(list)).ok()
}

fn entry(network: &str, ifname: &str, default: bool, result: &CniResult) -> Value {
    let inside = |i: &&cni::Interface| i.name == ifname && !i.sandbox.is_empty();
    let mine = result.interfaces.iter().find(inside);
    let ips: Vec<String> = result.ips.iter().map(|i| i.address.addr.to_string()).collect();
    let mut out =
        json!({"name": network, "interface": ifname, "ips": ips, "dns": result.dns.write(), "default": default});
    if let Some(i) = mine {
        if !i.mac.is_empty() {
            out["mac"] = i.mac.as_str().into();
        }
        if i.mtu > 0 {
            out["mtu"] = i.mtu.into();
        }
    }
    let gateways: Vec<String> =
        result.routes.iter().filter(|r| r.dst.len() == 0).filter_map(|r| r.gw).map(|g| g.to_string()).collect();
    if !gateways.is_empty() {
        out["gateway"] = gateways.into();
    }
    out
}

/// Writes the annotations whenever they should change, for ever.
pub async fn run(api: Api, mut wanted: watch::Receiver<Statuses>) {
    let mut written = Statuses::new();
    let mut pause = Duration::from_millis(50);
    loop {
        let want = wanted.borrow_and_update().clone();
        written.retain(|name, _| want.contains_key(name));
        let mut failed = false;
        for (key, status) in &want {
            if written.get(key) == Some(status) {
                continue;
            }
            let (name, (uid, annotations)) = (&key.0, status);
            let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
            match api.merge(&Kind::Pod.into(), name, &patch).await {
                // Gone, or another pod by now: nobody to tell.
                Err(e) if !e.is_not_found() && !e.is_conflict() => {
                    let keys: Vec<&str> = annotations.keys().map(String::as_str).collect();
                    tracing::warn!(
                        "Pod/{name} metadata.annotations[{}] could not be written, trying again: {e}",
                        keys.join(", ")
                    );
                    failed = true;
                }
                _ => {
                    written.insert(key.clone(), status.clone());
                }
            }
        }
        if failed {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        } else {
            pause = Duration::from_millis(50);
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }
}
