//! One pass over both dataplanes: observe, resolve, compile, plan, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fabric::{Fabric, FabricKernel};
use intent::{Attachment, AttachmentKey, NodeIntent};
use kernel_api::{Nft, Rtnetlink, Sysctl};
use plan::{Dataplane, Kernel, KernelError, Next, Refused, converge};
use plane_nft::NftPlane;
use resolve::{ClusterSnapshot, LocalState, Resolved};
use telemetry::Plane;
use types::NodeName;

use super::facts::{self, Facts, IfaceChoice};

/// Where the snapshot is looked at. The watchers wait while it is, so nothing blocks inside.
pub trait Cluster {
    /// Looks.
    fn read<T>(&self, f: impl FnOnce(&ClusterSnapshot) -> T) -> T;
}

impl Cluster for source::Reader {
    fn read<T>(&self, f: impl FnOnce(&ClusterSnapshot) -> T) -> T {
        source::Reader::read(self, |s, _| f(s))
    }
}

/// What a pass needs to know of its surroundings; fixed for the life of the agent.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This node.
    pub node: NodeName,
    /// Where the CNI plugin keeps its records.
    pub ipam_dir: PathBuf,
    /// How the uplink was chosen.
    pub iface: Option<IfaceChoice>,
    /// Kernel features that are missing.
    pub missing: BTreeSet<String>,
}

/// The effects of both planes.
pub struct Datapath<K, G, N> {
    /// Fixed facts.
    pub setup: Setup,
    /// The fabric's kernel; also what the machine is looked at through.
    pub fabric: FabricKernel<K>,
    /// For the generation id.
    pub nft_generation: G,
    /// The nftables plane's kernel.
    pub nft: N,
    /// What nftables held after our last commit, and the generation it had then.
    nft_have: Option<(u32, <NftPlane as Dataplane>::Image)>,
}

/// How one plane fared.
#[derive(Debug)]
pub struct PlanePass {
    /// Which.
    pub plane: Plane,
    /// Ops committed, or what failed.
    pub result: Result<usize, KernelError>,
    /// From observation to last commit.
    pub took: Duration,
    /// What it could not express.
    pub refused: usize,
}

/// How a pass went.
#[derive(Debug)]
pub struct Pass {
    /// The intent it worked for.
    pub intent: NodeIntent,
    /// The machine as it was before.
    pub facts: Facts,
    /// The records of the CNI plugin.
    pub records: Vec<ipam::Record>,
    /// By plane.
    pub planes: Vec<PlanePass>,
    /// Everything that was refused: bad input first, then each plane's.
    pub refused: Vec<Refused>,
}

impl Pass {
    /// Whether everything was committed.
    pub fn ok(&self) -> bool {
        self.planes.iter().all(|p| p.result.is_ok())
    }

    /// Whether the intent's VXLAN device is there: it was before, or the fabric's pass went well.
    pub fn vxlan_up(&self) -> bool {
        self.intent.vxlan.is_some() && self.planes.iter().any(|p| p.plane == Plane::Fabric && p.result.is_ok())
    }
}

impl<K, G, N> Datapath<K, G, N>
where
    K: Rtnetlink + Sysctl,
    G: Nft,
    N: Kernel<NftPlane>,
{
    /// A datapath that has seen nothing yet.
    pub fn new(setup: Setup, fabric: FabricKernel<K>, nft_generation: G, nft: N) -> Self {
        Self { setup, fabric, nft_generation, nft, nft_have: None }
    }

    /// Somebody else may have changed nftables.
    pub fn forget_nft(&mut self) {
        self.nft_have = None;
    }

    /// One pass.
    ///
    /// The kernel is observed before the CNI plugin's records are read. The plugin writes a record before it makes a
    /// link and removes it after the link is gone, so a link seen here without a record is a leak, never a pod that
    /// is just being made.
    ///
    /// # Errors
    /// When the machine cannot be looked at or the records cannot be read: then nothing was planned.
    pub fn pass(&mut self, cluster: &impl Cluster) -> anyhow::Result<Pass> {
        let node = &self.setup.node;
        let node_addresses = cluster.read(|s| {
            s.nodes.get(node).map(|n| n.internal_ips.iter().copied().collect::<BTreeSet<_>>()).unwrap_or_default()
        });
        let began = Instant::now();
        let facts =
            facts::observe(self.fabric.kernel(), self.setup.iface.as_ref(), &node_addresses, &self.setup.missing)?;
        self.fabric.set_caps(&facts.caps);
        let fabric_have = self.fabric.observe();
        let records = ipam::read(&self.setup.ipam_dir)?;
        let setup = &self.setup;
        let Resolved { intent, problems } =
            cluster.read(|s| resolve::resolve(s, &local_state(setup, &facts, &records, s)));
        let mut refused: Vec<Refused> =
            problems.into_iter().map(|p| Refused { object: p.object, field: p.field, why: p.why }).collect();

        let want = Fabric.compile(&intent, &facts.caps);
        let result =
            fabric_have.and_then(|have| converge(&Fabric, &mut self.fabric, &want.image, Some(&have))).map(|c| c.ops);
        let fabric = PlanePass { plane: Plane::Fabric, result, took: began.elapsed(), refused: want.refused.len() };
        refused.extend(want.refused);

        let began = Instant::now();
        let want = NftPlane.compile(&intent, &facts.caps);
        let result = self.nft_pass(&want.image);
        let nft = PlanePass { plane: Plane::Nftables, result, took: began.elapsed(), refused: want.refused.len() };
        refused.extend(want.refused);
        Ok(Pass { intent, facts, records, planes: vec![fabric, nft], refused })
    }

    /// The nftables part of a pass. What we committed last is what is there as long as the generation id says that
    /// nobody has committed since; so a change of one Service costs neither a dump nor a comparison with the kernel.
    fn nft_pass(&mut self, want: &<NftPlane as Dataplane>::Image) -> Result<usize, KernelError> {
        let generation = |g: &mut G| {
            g.generation().map_err(|e| KernelError {
                op: "read the nf_tables generation".into(),
                source: Box::new(e),
                next: Next::RetrySoon,
            })
        };
        let now = generation(&mut self.nft_generation)?;
        let have = match self.nft_have.take() {
            Some((seen, image)) if seen == now => image,
            _ => self.nft.observe()?,
        };
        let done = converge(&NftPlane, &mut self.nft, want, Some(&have))?;
        // Another may have committed between ours and this reading; the monitor tells, and forgets.
        self.nft_have = Some((generation(&mut self.nft_generation)?, want.clone()));
        Ok(done.ops)
    }
}

/// What only this node knows, as the resolver wants it.
pub fn local_state(setup: &Setup, facts: &Facts, records: &[ipam::Record], snapshot: &ClusterSnapshot) -> LocalState {
    LocalState {
        node: setup.node.clone(),
        attachments: attachments(records),
        on_link: facts.on_link.clone(),
        vxlan_mac: facts::vxlan_mac(&setup.node, snapshot.settings.vni),
        vxlan_supported: !setup.missing.contains("vxlan"),
    }
}

/// The plugin's records as intent speaks of them.
pub fn attachments(records: &[ipam::Record]) -> BTreeMap<AttachmentKey, Attachment> {
    records
        .iter()
        .map(|r| {
            let key = AttachmentKey { container_id: r.key.container.clone(), ifname: r.key.ifname.as_str().into() };
            let pod = r.pod.as_ref().map(|p| types::ObjectName::new(&p.namespace, &p.name));
            let addresses = r.addresses.iter().copied().collect();
            (key, Attachment { pod, link: r.link.clone(), addresses, host_ports: Vec::new() })
        })
        .collect()
}
