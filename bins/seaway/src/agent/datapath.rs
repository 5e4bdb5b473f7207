//! One pass over both dataplanes: observe, resolve, compile, plan, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::{Fabric, FabricKernel};
use intent::{Attachment, AttachmentKey, NodeIntent, ServiceChanges};
use kernel_api::rt::RouteTo;
use kernel_api::{Nft, Rtnetlink, Sysctl};
use plan::{Dataplane, Kernel, KernelError, Refused, converge};
use plane_nft::NftPlane;
use resolve::{Changes, ClusterSnapshot, Followed, Kind, LocalState, Problem, Resolver};
use source::Seen;
use telemetry::Plane;
use types::{Cidr, Family, NodeName};

use super::conf_files;
use super::facts::{self, Facts, IfaceChoice};
use super::host_ports::{self, HostPorts, Uids};
use super::table::{Done, Ears, Table};

/// Where the snapshot is looked at. The watchers wait while it is, so nothing blocks inside.
pub trait Cluster {
    /// Looks.
    fn read<T>(&self, f: impl FnOnce(&ClusterSnapshot) -> T) -> T;
    /// Looks, with what changed since `seen`.
    fn read_since<T>(&self, seen: &mut Seen, f: impl FnOnce(&ClusterSnapshot, &Changes) -> T) -> T;
}

impl Cluster for source::Reader {
    fn read<T>(&self, f: impl FnOnce(&ClusterSnapshot) -> T) -> T {
        source::Reader::read(self, |s, _| f(s))
    }

    fn read_since<T>(&self, seen: &mut Seen, f: impl FnOnce(&ClusterSnapshot, &Changes) -> T) -> T {
        source::Reader::read_since(self, seen, f)
    }
}

/// What a pass needs to know of its surroundings; fixed for the life of the agent.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This node.
    pub node: NodeName,
    /// Where the CNI plugin keeps its records.
    pub ipam_dir: PathBuf,
    /// Where runtimes look for CNI configuration.
    pub cni_conf_dir: PathBuf,
    /// How the uplink was chosen.
    pub iface: Option<IfaceChoice>,
    /// Kernel features that are missing.
    pub missing: BTreeSet<String>,
    /// Another proxy serves Services here.
    pub services_elsewhere: bool,
}

/// The effects of both planes.
pub struct Datapath<K, G, N, M> {
    /// Fixed facts.
    pub setup: Setup,
    /// The fabric's kernel; also what the machine is looked at through.
    pub fabric: FabricKernel<K>,
    /// The nftables plane's table.
    pub table: Table<G, N, M>,
    /// What of the snapshot was looked at, and what it means.
    seen: Seen,
    resolver: Resolver,
    in_use: InUse,
    /// Random host ports of pods.
    host_ports: HostPorts,
}

/// Whether connections that are not over have one of these addresses as their own end: of the node's processes, or
/// masqueraded ones.
pub type InUse = Box<dyn FnMut(&[IpAddr]) -> anyhow::Result<bool>>;

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
    /// The VXLAN device is there only for connections that began when it was needed, or because the Node still
    /// advertises it: no longer published, soon to go.
    pub lingers: bool,
    /// The intent it worked for. Kept beyond the pass, it makes the next one copy the map of Services.
    pub intent: Arc<NodeIntent>,
    /// How many endpoints its Services have.
    pub endpoints: usize,
    /// The machine as it was before.
    pub facts: Facts,
    /// The records of the CNI plugin.
    pub records: Vec<ipam::Record>,
    /// The Node's own pod ranges.
    pub node_ranges: Vec<Cidr>,
    /// By plane.
    pub planes: Vec<PlanePass>,
    /// Which Services are other than in the pass before.
    pub services: ServiceChanges,
    /// Whether the whole table of Services was compared, and not only what changed.
    pub full: bool,
    /// What was heard of since the pass before.
    pub heard: Heard,
    /// Everything that was refused: bad input first, then each plane's.
    pub refused: Vec<Refused>,
}

/// What the cluster said since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Everything is new: the first look, or one from too far behind.
    pub all: bool,
    /// How many changes of which kind.
    pub kinds: BTreeMap<Kind, usize>,
    /// When what they tell of happened, in milliseconds since 1970, by family, of slices that date it.
    pub triggered: Vec<(Family, u64)>,
}

impl Heard {
    fn add(&mut self, snapshot: &ClusterSnapshot, changed: &Changes) {
        // The first look is at everything there is: nothing of it just happened.
        let Changes::Some(keys) = changed else {
            self.all = true;
            return;
        };
        for k in keys {
            *self.kinds.entry(k.kind).or_default() += 1;
            if k.kind == Kind::EndpointSlice {
                let slice = snapshot.slices.get(&k.name);
                self.triggered.extend(slice.and_then(|s| Some((s.family?, s.triggered?))));
            }
        }
    }

    /// How many of a kind changed.
    pub fn of(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).copied().unwrap_or_default()
    }
}

/// For the log: `EndpointSlice 3, Service 1`; `nothing` when the node itself gave reason to look, or time.
impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.all, self.kinds.is_empty()) {
            (true, _) => f.write_str("everything"),
            (false, true) => f.write_str("nothing"),
            (false, false) => f.write_str(&telemetry::counted(self.kinds.iter().map(|(k, n)| (k.as_str(), *n)))),
        }
    }
}

impl Pass {
    /// Whether everything was committed.
    pub fn ok(&self) -> bool {
        self.planes.iter().all(|p| p.result.is_ok())
    }

    /// Whether peers may send to the intent's VXLAN device: the fabric's pass went well, and it is to stay.
    pub fn vxlan_up(&self) -> bool {
        !self.lingers
            && self.intent.tunnels().next().is_some()
            && self.planes.iter().any(|p| p.plane == Plane::Fabric && p.result.is_ok())
    }
}

impl<K, G, N, M> Datapath<K, G, N, M>
where
    K: Rtnetlink + Sysctl,
    G: Nft,
    N: Kernel<NftPlane>,
    M: Ears,
{
    /// A datapath that has seen nothing yet.
    pub fn new(setup: Setup, fabric: FabricKernel<K>, table: Table<G, N, M>, in_use: InUse) -> Self {
        let host_ports = HostPorts::load(&setup.ipam_dir.join(super::conflist::PODS));
        Self { setup, fabric, table, seen: Seen::default(), resolver: Resolver::new(), in_use, host_ports }
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
        // While the Node says that it receives VXLAN, a peer may begin to send.
        let (node_addresses, advertised) = cluster.read(|s| match s.nodes.get(node) {
            Some(n) => (n.internal_ips.iter().copied().collect::<BTreeSet<_>>(), n.vxlan.is_some()),
            None => (BTreeSet::new(), false),
        });
        let began = Instant::now();
        let mut facts =
            facts::observe(self.fabric.kernel(), self.setup.iface.as_ref(), &node_addresses, &self.setup.missing)?;
        facts.networks = conf_files::read(&self.setup.cni_conf_dir);
        self.fabric.set_caps(&facts.caps);
        let fabric_have = self.fabric.observe();
        let mut records = ipam::read(&self.setup.ipam_dir)?;
        let uids = |records: &[ipam::Record]| cluster.read(|s| Uids::of(records, s));
        let mut attached = uids(&records);
        let mut others = None;
        if cluster.read(|s| resolve::host_ports::unsettled(s, node, &attached.all())) {
            // Before the records, as links are: a mapping whose record is not known is none of a pod's.
            others = Some(host_ports::others(&mut self.table.generation)?);
            records = ipam::read(&self.setup.ipam_dir)?;
            attached = uids(&records);
        }
        let ports = self.host_ports.here(&records, &attached, others.unwrap_or_default());
        let setup = &self.setup;
        let (seen, resolver) = (&mut self.seen, &mut self.resolver);
        let mut heard = Heard::default();
        let mut meaning = |vxlan_in_use| {
            cluster.read_since(seen, |s, changed| {
                heard.add(s, changed);
                let local =
                    LocalState { vxlan_in_use, ports: ports.clone(), ..local_state(setup, &facts, &records, s) };
                resolver.follow(s, &local, changed)
            })
        };
        let mut followed = meaning(false);
        let lingers = followed.intent.tunnels().next().is_none()
            && !facts.vxlan.is_empty()
            && (advertised
                || carries(fabric_have.as_ref().ok())
                || (self.in_use)(&first_addresses(&followed.intent)).inspect_err(|_| {
                    // What changed was seen and is not planned: the next pass compares everything.
                    self.table.forget();
                })?);
        if lingers {
            let first = followed.services;
            followed = meaning(true);
            followed.services = first.then(followed.services);
        }
        let Followed { intent, problems, services, endpoints } = followed;
        self.host_ports.remember(&intent);
        let mut refused: Vec<Refused> = problems.into_iter().map(refused_input).collect();

        let want = Fabric.compile(&intent, &facts.caps);
        let result =
            fabric_have.and_then(|have| converge(&Fabric, &mut self.fabric, &want.image, Some(&have))).map(|c| c.ops);
        let fabric = PlanePass { plane: Plane::Fabric, result, took: began.elapsed(), refused: want.refused.len() };
        refused.extend(want.refused);

        let began = Instant::now();
        let Done { result, refused: unsaid, full } = self.table.pass(&intent, &facts.caps, &services);
        let nft = PlanePass { plane: Plane::Nftables, result, took: began.elapsed(), refused: unsaid.len() };
        refused.extend(unsaid);
        let node_ranges =
            cluster.read(|s| s.nodes.get(&self.setup.node).map(|n| n.pod_cidrs.to_vec()).unwrap_or_default());
        let planes = vec![fabric, nft];
        Ok(Pass { node_ranges, lingers, intent, endpoints, facts, records, planes, services, full, heard, refused })
    }
}

/// Bad input, as a plane's refusal is told.
pub fn refused_input(p: Problem) -> Refused {
    Refused { object: p.object, field: p.field, why: p.why }
}

/// Whether routes lead through a VXLAN device. While they do, a connection may begin at any moment.
fn carries(have: Option<&fabric::Image>) -> bool {
    have.is_some_and(|i| {
        i.routes.iter().any(|r| matches!(&r.to, RouteTo::Via { link, .. } if i.vxlan.keys().any(|d| d.name() == link)))
    })
}

/// The addresses that a VXLAN device of this node may have had: see [`intent::Vxlan`]. A pod's is none of them.
fn first_addresses(intent: &NodeIntent) -> Vec<IpAddr> {
    let first = intent.pod_cidrs.iter().map(types::Cidr::addr);
    first.filter(|a| intent.attachment_of(*a).is_none()).collect()
}

/// What only this node knows, as the resolver wants it.
pub fn local_state(setup: &Setup, facts: &Facts, records: &[ipam::Record], snapshot: &ClusterSnapshot) -> LocalState {
    LocalState {
        node: setup.node.clone(),
        attachments: attachments(records),
        on_link: facts.on_link.clone(),
        addresses: facts.addresses.clone(),
        vxlan_mac: facts::vxlan_mac(&setup.node, snapshot.settings.vni),
        vxlan_supported: !setup.missing.contains("vxlan"),
        vxlan_in_use: false,
        services_elsewhere: setup.services_elsewhere,
        networks: facts.networks.clone(),
        ports: resolve::host_ports::PortsHere::default(),
    }
}

/// The plugin's records as intent speaks of them.
pub fn attachments(records: &[ipam::Record]) -> BTreeMap<AttachmentKey, Attachment> {
    records
        .iter()
        // Links of other modes are their plugins'; the bridge or the underlay leads to them.
        .filter(|r| r.is_routed())
        .map(|r| {
            let key = AttachmentKey { container_id: r.key.container.clone(), ifname: r.key.ifname.as_str().into() };
            let pod = r.pod.as_ref().map(|p| types::ObjectName::new(&p.namespace, &p.name));
            let addresses = r.addresses.iter().copied().collect();
            (key, Attachment { pod, link: r.link.clone(), addresses, host_ports: Vec::new() })
        })
        .collect()
}
