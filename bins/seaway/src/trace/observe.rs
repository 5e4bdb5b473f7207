//! Looks at every node of a lab: kernel, records, cluster objects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context;
use fabric::{Fabric, FabricKernel, Joined};
use kernel::{Ct, Netns, Nftables, Rt, Sysctls};
use lab::LabName;
use plan::{Caps, Dataplane, Kernel};
use plane_nft::NftKernel;
use resolve::{ClusterSnapshot, Kind};
use source::{Source, Target, WatchConfig};
use types::NodeName;

use super::walk::NodeView;
use crate::agent::{Setup, local_state, look};

/// Everything a trace looks at.
pub struct Seen {
    /// The cluster's objects.
    pub snapshot: ClusterSnapshot,
    /// The nodes.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// The CNI plugin's records, by node.
    pub records: BTreeMap<NodeName, Vec<ipam::Record>>,
}

impl Seen {
    /// What has an address, for people.
    pub fn name_of(&self, addr: IpAddr) -> Option<String> {
        let s = &self.snapshot;
        let pod = s.pods.iter().find(|(_, p)| !p.host_network && p.ips.contains(&addr)).map(|(n, _)| n.to_string());
        let node = || s.nodes.iter().find(|(_, n)| n.addresses().any(|a| a == addr)).map(|(n, _)| n.to_string());
        let has = |v: &resolve::Service| {
            v.cluster_ips.contains(&addr) || v.external_ips.contains(&addr) || v.ingress_ips.contains(&addr)
        };
        let service = || s.services.iter().find(|(_, v)| has(v)).map(|(n, _)| format!("Service {n}"));
        pod.or_else(node).or_else(service)
    }
}

/// Observes a lab. Works with every agent dead: kernels and records are read directly, objects from the API server.
pub fn observe(lab: &LabName) -> anyhow::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let snapshot = runtime.block_on(async {
        let target = Target::Unix(lab.dir().api_sock());
        let api = source::connect(&target).await?;
        let mut config = WatchConfig::agent();
        // Who answers for a load balancer's address.
        config.kinds.insert(Kind::Lease);
        let mut source = Source::start(&api, config);
        tokio::time::timeout(std::time::Duration::from_secs(10), source.wait_in_sync())
            .await
            .with_context(|| format!("{target}: the lab's API server does not answer; see `seaway lab status`"))?;
        anyhow::Ok(source.read(|s, _| s.clone()))
    })?;
    let mut seen = Seen { nodes: BTreeMap::new(), records: BTreeMap::new(), snapshot };
    let names: Vec<NodeName> = seen.snapshot.nodes.keys().cloned().collect();
    for name in names {
        let path = lab::netns_path(&lab.node_netns(name.as_str()));
        // A node that is gone is no error: a trace that comes to it says so.
        let Ok(netns) = Netns::open(&path) else { continue };
        let records = ipam::read(&lab.dir().node(name.as_str()).ipam())?;
        let view = node(&netns, &name, &records, &seen.snapshot).with_context(|| format!("look at {name}"))?;
        seen.nodes.insert(name.clone(), view);
        seen.records.insert(name, records);
    }
    Ok(seen)
}

fn node(
    netns: &Netns,
    name: &NodeName,
    records: &[ipam::Record],
    snapshot: &ClusterSnapshot,
) -> anyhow::Result<NodeView> {
    let addresses = snapshot.nodes.get(name).map(|n| n.internal_ips.iter().copied().collect()).unwrap_or_default();
    let host = Joined { rt: Rt::open_in(netns)?, sysctls: Sysctls::open_in(netns) };
    let mut fabric = FabricKernel::new(host, &Caps::default());
    let setup = Setup {
        node: name.clone(),
        cni_conf_dir: Default::default(),
        ipam_dir: Default::default(),
        iface: None,
        missing: Default::default(),
        services_elsewhere: false,
    };
    let seen = look(&mut fabric, &setup, &addresses)?;
    let (facts, observed) = (seen.facts, seen.have?);
    let mut nft = NftKernel::new(Nftables::open_in(netns)?, Ct::open_in(netns)?);
    let mut image = nft.observe()?;
    // Which clients of session affinity keep which endpoint.
    nft.remembered(&mut image)?;
    let intent = resolve::resolve(snapshot, &local_state(&setup, &facts, records, snapshot)).intent;
    let compiled = Fabric.compile(&intent, &facts.caps).image;
    let uplink = facts.caps.uplink.as_ref().map_or_else(|| "?".to_owned(), |u| u.name.to_string());
    Ok(NodeView { fabric: observed.named_by(&compiled), nft: image, intent, uplink })
}
