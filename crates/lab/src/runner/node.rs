//! The node's own object: addresses as they are, readiness, heartbeat.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel_api::Rtnetlink;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Context;
use crate::api::ApiError;
use crate::shim::now;
use crate::{Doing, LabError};

/// The link to the other nodes; the topology names it so.
const UPLINK: &str = "eth0";
/// How often the addresses are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the status is written though nothing changed, as a kubelet does.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The global addresses of the uplink of this process's namespace, IPv4 first.
fn addresses() -> Result<Vec<IpAddr>, LabError> {
    let mut rt = kernel::Rt::open().doing(|| "rtnetlink")?;
    let all = rt.addresses().doing(|| "read the node's addresses")?;
    let mut v: Vec<IpAddr> = all
        .into_iter()
        .filter(|a| a.link.as_str() == UPLINK && !a.scope_link)
        .map(|a| a.addr)
        .filter(|a| !matches!(a, IpAddr::V6(x) if x.is_unicast_link_local()))
        .collect();
    v.sort();
    Ok(v)
}

/// The machine's architecture by Go's name for it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        a => a,
    }
}

fn status(context: &Context, ips: &[IpAddr], old: &Value, ready: &Result<(), String>) -> Value {
    let at = now();
    let (word, reason, message) = match ready {
        Ok(()) => ("True", "KubeletReady", "pods can be attached".to_owned()),
        Err(e) => ("False", "KubeletNotReady", e.clone()),
    };
    let mut ours = vec![("Ready", word, reason, message)];
    for (kind, why) in [
        ("MemoryPressure", "KubeletHasSufficientMemory"),
        ("DiskPressure", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "KubeletHasSufficientPID"),
    ] {
        ours.push((kind, "False", why, "a lab does not watch this".into()));
    }
    let was = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = ours
        .iter()
        .map(|(kind, word, reason, message)| {
            let since = was
                .iter()
                .find(|c| c["type"] == *kind && c["status"] == *word)
                .and_then(|c| c["lastTransitionTime"].as_str())
                .unwrap_or(&at);
            json!({"type": kind, "status": word, "reason": reason, "message": message,
                "lastHeartbeatTime": at, "lastTransitionTime": since})
        })
        .collect();
    conditions.extend(was.iter().filter(|c| !ours.iter().any(|o| c["type"] == o.0)).cloned());
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = format!("{}Ki", rustix::system::sysinfo().totalram / 1024);
    let resources = json!({"cpu": cpus.to_string(), "memory": memory, "pods": "110"});
    let mut addresses: Vec<Value> = ips.iter().map(|i| json!({"type": "InternalIP", "address": i})).collect();
    addresses.push(json!({"type": "Hostname", "address": context.config.node}));
    json!({"status": {
        "addresses": addresses, "conditions": conditions, "capacity": resources, "allocatable": resources,
        "nodeInfo": {
            "kernelVersion": uname.release().to_string_lossy(), "osImage": "this machine (seaway lab)",
            "operatingSystem": "linux", "architecture": arch(),
            "kubeletVersion": concat!("seaway-lab-", env!("CARGO_PKG_VERSION")), "containerRuntimeVersion": "seaway-lab",
            "kubeProxyVersion": "", "machineID": "", "systemUUID": "", "bootID": "",
        },
    }})
}

/// Registers the node if it is not there and writes its status. What an agent writes there meanwhile is looked at again, so
/// that its condition does not go.
async fn publish(context: &Context, ips: &[IpAddr], ready: &Result<(), String>) -> Result<(), ApiError> {
    loop {
        match publish_over(context, ips, ready).await {
            Err(e) if e.code() == Some(409) => tokio::time::sleep(Duration::from_millis(20)).await,
            done => return done,
        }
    }
}

/// The same over the Node as it is now; 409 when it has become another.
async fn publish_over(context: &Context, ips: &[IpAddr], ready: &Result<(), String>) -> Result<(), ApiError> {
    let name = &context.config.node;
    let path = format!("/api/v1/nodes/{name}");
    let old = match context.api.find(&path).await? {
        Some(v) => v,
        None => {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch(), "seaway.io/lab": context.config.lab.as_str(),
            }}, "spec": {}});
            context.api.create("/api/v1/nodes", &node).await?
        }
    };
    let mut patch = status(context, ips, &old, ready);
    patch["metadata"] = json!({"resourceVersion": old["metadata"]["resourceVersion"]});
    context.api.merge(&format!("{path}/status"), &patch).await?;
    Ok(())
}

/// Renews the node's Lease, where the API server keeps Leases.
async fn renew(context: &Context) -> Result<(), ApiError> {
    let name = &context.config.node;
    let base = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let at = now().replace('Z', ".000000Z");
    let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": at}});
    match context.api.merge(&format!("{base}/{name}"), &patch).await {
        Err(e) if e.code() == Some(404) => {
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": patch["spec"]});
            context.api.create(base, &lease).await.map(drop)
        }
        r => r.map(drop),
    }
}

/// Keeps the Node object true, for ever.
pub async fn keep(context: Arc<Context>, tx: watch::Sender<Vec<IpAddr>>) {
    let mut written: Option<(Vec<IpAddr>, Result<(), String>, Instant)> = None;
    loop {
        let ips = match tokio::task::spawn_blocking(addresses).await {
            Ok(Ok(ips)) => ips,
            Ok(Err(e)) => {
                tracing::warn!("{e}");
                tx.borrow().clone()
            }
            Err(_) => return,
        };
        // While an address is being replaced there is none; the last one known stands until then.
        let ips = if ips.is_empty() { tx.borrow().clone() } else { ips };
        let ready = context.conf_list().map(drop).map_err(|e| e.to_string());
        let due = match &written {
            None => true,
            Some((i, r, at)) => *i != ips || *r != ready || at.elapsed() >= HEARTBEAT,
        };
        tx.send_if_modified(|old| {
            let changed = *old != ips;
            old.clone_from(&ips);
            changed
        });
        if due {
            match publish(&context, &ips, &ready).await {
                Ok(()) => {
                    if let Err(e) = renew(&context).await {
                        tracing::debug!("lease: {e}");
                    }
                    written = Some((ips, ready.clone(), Instant::now()));
                }
                Err(e) => {
                    tracing::warn!("node {}: {e}", context.config.node);
                    written = None;
                }
            }
        }
        // The first seconds of a lab are watched by a person.
        let soon = written.is_none() || ready.is_err();
        tokio::time::sleep(if soon { Duration::from_millis(100) } else { LOOK }).await;
    }
}
