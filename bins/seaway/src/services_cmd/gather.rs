//! Where the views come from: a cluster's API, a folder, or an agent that answers with them ready.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use resolve::explain::{ServiceView, explain};
use resolve::{ClusterSnapshot, Kind, LocalState, resolve};
use serde::{Deserialize, Serialize};
use source::{Source, Target, WatchConfig};
use types::{NodeName, ObjectName};

/// Where agents listen unless told otherwise.
pub const AGENT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9642));
/// How long anybody may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The most that an agent's answer may have: some 500 bytes an endpoint, for 200,000 of them.
pub const MOST: u64 = 128 << 20;

/// Services as one node sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The node.
    pub node: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The Services.
    pub services: Vec<ServiceView>,
    /// What of others' rules on the node gets in the way, as its agent sees it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<plan::Refused>,
    /// What stood in for a running cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
}

/// Which Services are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only of this name.
    pub name: Option<String>,
}

impl Which {
    /// From `[NAMESPACE/]NAME` and `-n`. `svc/NAME` is taken as kubectl takes it.
    pub fn parse(name: Option<&str>, namespace: Option<&str>) -> anyhow::Result<Self> {
        let name = name.map(|n| n.strip_prefix("svc/").or_else(|| n.strip_prefix("service/")).unwrap_or(n));
        Ok(match (name.and_then(|n| n.split_once('/')), namespace) {
            (Some((ns, _)), Some(other)) if ns != other => {
                bail!("{}: says namespace {ns}, -n says {other}", name.unwrap_or_default())
            }
            (Some((ns, n)), _) => Self { namespace: Some(ns.into()), name: Some(n.into()) },
            (None, _) => Self { namespace: namespace.map(Into::into), name: name.map(Into::into) },
        })
    }

    fn has(&self, name: &ObjectName) -> bool {
        self.namespace.as_ref().is_none_or(|n| **n == *name.namespace)
            && self.name.as_ref().is_none_or(|n| **n == *name.name)
    }
}

/// What the snapshot says of these Services on a node.
pub fn report(snapshot: &ClusterSnapshot, node: &NodeName, which: &Which) -> Report {
    let local = LocalState {
        node: node.clone(),
        attachments: Default::default(),
        on_link: Vec::new(),
        addresses: Default::default(),
        vxlan_mac: crate::agent::vxlan_mac(node, snapshot.settings.vni),
        vxlan_supported: true,
        vxlan_in_use: false,
        services_elsewhere: false,
        networks: Default::default(),
        ports: Default::default(),
    };
    let resolved = resolve(snapshot, &local);
    let names = snapshot.services.keys().filter(|n| which.has(n));
    Report {
        node: node.to_string(),
        zone: snapshot.nodes.get(node).and_then(|n| n.labels.get(resolve::explain::ZONE)).map(str::to_owned),
        services: names.filter_map(|n| explain(snapshot, &resolved.intent, &resolved.problems, n)).collect(),
        foreign: Vec::new(),
        assumed: Vec::new(),
    }
}

/// The node whose view is wanted.
fn node_of(snapshot: &ClusterSnapshot, node: Option<&NodeName>) -> anyhow::Result<NodeName> {
    match node {
        Some(n) if snapshot.nodes.contains_key(n) => Ok(n.clone()),
        Some(n) => {
            let known: Vec<&str> = snapshot.nodes.keys().map(NodeName::as_str).collect();
            bail!("--node {n}: no such Node; there are {}", known.join(", "))
        }
        None => snapshot.nodes.keys().next().cloned().context("the cluster has no Node objects"),
    }
}

/// From an API server.
pub fn from_api(target: &Target, node: Option<&NodeName>, which: &Which) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let api = source::connect(target).await?;
        let kinds = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::ConfigMap, Kind::Namespace].into();
        let mut source = Source::start(&api, WatchConfig { kinds, pods_of: None });
        if tokio::time::timeout(PATIENCE, source.wait_in_sync()).await.is_err() {
            let sync = source.in_sync();
            let why = sync.failing.values().next().cloned().unwrap_or_else(|| "no answer".into());
            let kinds: BTreeSet<String> = sync.missing().map(|k| k.to_string()).collect();
            let kinds: Vec<String> = kinds.into_iter().collect();
            bail!("{} could not be listed within {} s: {why}", kinds.join(", "), PATIENCE.as_secs());
        }
        source.read(|s, _| Ok(report(s, &node_of(s, node)?, which)))
    })
}

/// From a folder of manifests.
pub fn from_folder(dir: &Path, node: Option<&NodeName>, which: &Which) -> anyhow::Result<Report> {
    let folder = source::read_dir(dir)?;
    for p in &folder.problems {
        eprintln!("seaway: {p}");
    }
    let mut objects = folder.objects;
    let first: NodeName = match node {
        Some(n) => n.clone(),
        None => "node1".parse()?,
    };
    let invented = controller::offline::stand_in_nodes(&objects, &first);
    let mut assumed = Vec::new();
    if !invented.is_empty() {
        assumed.push(format!("the folder has no Node: {first} with two more on one network stand in"));
    }
    objects.extend(invented);
    let ranges = crate::plan_cmd::service_ranges();
    let settled = controller::offline::settle(&objects, &controller::Options::default(), &ranges);
    assumed.extend(settled.assumed);
    let mut out = report(&settled.snapshot, &node_of(&settled.snapshot, node)?, which);
    out.assumed = assumed;
    Ok(out)
}

/// From an agent: `None` when nobody listens there.
pub fn from_agent(at: SocketAddr, which: &Which) -> anyhow::Result<Option<Report>> {
    let mut query = Vec::new();
    for (key, value) in [("namespace", &which.namespace), ("name", &which.name)] {
        if let Some(v) = value {
            // Names of objects are letters, digits, dots and hyphens; anything else names nothing.
            if !v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
                bail!("{v:?} is no name of an object");
            }
            query.push(format!("{key}={v}"));
        }
    }
    match super::takeover::get(at, &format!("/services?{}", query.join("&")))? {
        None => Ok(None),
        Some((200, body)) => Ok(Some(serde_json::from_str(&body).context("it is no agent of this version")?)),
        Some((status, body)) => bail!("it answers {status}: {}", body.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_services_a_person_means() {
        let which = |name, ns| Which::parse(name, ns).map(|w| (w.namespace, w.name)).map_err(|e| e.to_string());
        let of = |ns: &str, n: &str| {
            let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
            Ok((some(ns), some(n)))
        };
        assert_eq!(which(None, None), of("", ""));
        assert_eq!(which(Some("web"), None), of("", "web"));
        assert_eq!(which(Some("shop/web"), None), of("shop", "web"));
        assert_eq!(which(Some("shop/web"), Some("shop")), of("shop", "web"));
        assert_eq!(which(Some("svc/web"), Some("shop")), of("shop", "web"));
        assert!(which(Some("shop/web"), Some("other")).unwrap_err().contains("-n says other"));
    }
}
