//! One pass over both dataplanes, resolve, compile, plan, commit, of what was [seen](super::look) of the machine; and
//! passes over Services alone, of what was seen before.

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
use plan::{Compiled, Dataplane, Kernel, KernelError, Refused, converge};
use plane_nft::NftPlane;
use resolve::host_ports::PortsHere;
use resolve::{Changes, ClusterSnapshot, Followed, Kind, LocalState, Problem, Resolver};
use source::Seen;
use telemetry::Plane;
use types::{Cidr, Family, NodeName};

use super::conf_files;
use super::facts::{self, Facts, Given, IfaceChoice};
use super::host_ports::{self, HostPorts, Uids};
use super::look::Look;
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

impl Setup {
    /// The Node's own addresses, for a look at the machine.
    pub fn node_addresses(&self, cluster: &impl Cluster) -> BTreeSet<IpAddr> {
        let addresses = |n: &resolve::Node| n.internal_ips.iter().copied().collect();
        cluster.read(|s| s.nodes.get(&self.node).map(addresses).unwrap_or_default())
    }

    /// What is given to it.
    pub fn given<'a>(&'a self, node_addresses: &'a BTreeSet<IpAddr>) -> Given<'a> {
        Given { choice: self.iface.as_ref(), node_addresses, missing: &self.missing }
    }
}

/// The effects of both planes.
pub struct Datapath<K, G, N, M> {
    /// Fixed facts.
    pub setup: Setup,
    /// The fabric's kernel.
    pub fabric: FabricKernel<K>,
    /// The nftables plane's table.
    pub table: Table<G, N, M>,
    /// What of the snapshot was looked at, and what it means.
    seen: Seen,
    resolver: Resolver,
    in_use: InUse,
    /// Random host ports of pods.
    host_ports: HostPorts,
    /// What passes over Services stand on, once there was a whole one.
    ground: Option<Ground>,
}

/// What of a whole pass those over Services alone use until the next.
struct Ground {
    facts: Arc<Facts>,
    records: Arc<[ipam::Record]>,
    /// The records may be others by now.
    stale: bool,
    lingers: bool,
    /// What the fabric was to be, with what it refused.
    want: Compiled<fabric::Image>,
}

/// What changes so that the machine is looked at before anything is planned: it says how nodes reach each other.
const WHOLE: [Kind; 2] = [Kind::Node, Kind::ConfigMap];

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
    pub facts: Arc<Facts>,
    /// The records of the CNI plugin.
    pub records: Arc<[ipam::Record]>,
    /// The Node's own pod ranges.
    pub node_ranges: Vec<Cidr>,
    /// By plane; of a pass over Services only theirs.
    pub planes: Vec<PlanePass>,
    /// Which Services are other than in the pass before.
    pub services: ServiceChanges,
    /// Whether the whole table of Services was compared, and not only what changed.
    pub full: bool,
    /// What was heard of since the pass before.
    pub heard: Heard,
    /// Everything that was refused: bad input first, then each plane's.
    pub refused: Vec<Refused>,
    /// It was over Services alone, and there is more to do than that.
    pub unfinished: bool,
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
        let (seen, resolver) = (Seen::default(), Resolver::new());
        Self { setup, fabric, table, seen, resolver, in_use, host_ports, ground: None }
    }

    /// The CNI plugin wrote a record, or removed one.
    pub fn recorded(&mut self) {
        if let Some(g) = &mut self.ground {
            g.stale = true;
        }
    }

    /// A whole pass.
    ///
    /// The kernel was observed before the CNI plugin's records are read. The plugin writes a record before it makes a
    /// link and removes it after the link is gone, so a link seen there without a record is a leak, never a pod that
    /// is just being made.
    ///
    /// # Errors
    /// When the records cannot be read or the node's connections not be looked at: then nothing was planned.
    pub fn pass(&mut self, cluster: &impl Cluster, look: Look) -> anyhow::Result<Pass> {
        let node = &self.setup.node;
        // While the Node says that it receives VXLAN, a peer may begin to send.
        let advertised = cluster.read(|s| s.nodes.get(node).is_some_and(|n| n.vxlan.is_some()));
        let Look { mut facts, have: fabric_have, began } = look;
        facts.networks = conf_files::read(&self.setup.cni_conf_dir);
        self.fabric.set_caps(&facts.caps);
        let mut records = ipam::read(&self.setup.ipam_dir)?;
        let mut attached = cluster.read(|s| Uids::of(&records, s));
        let mut others = None;
        if cluster.read(|s| resolve::host_ports::unsettled(s, node, &attached.all())) {
            // Before the records, as links are: a mapping whose record is not known is none of a pod's.
            others = Some(host_ports::others(&mut self.table.generation)?);
            records = ipam::read(&self.setup.ipam_dir)?;
            attached = cluster.read(|s| Uids::of(&records, s));
        }
        let ports = self.host_ports.here(&records, &attached, others.unwrap_or_default());
        let mut heard = Heard::default();
        let mut followed = self.meaning(cluster, &facts, &records, &ports, false, &mut heard);
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
            followed = self.meaning(cluster, &facts, &records, &ports, true, &mut heard);
            followed.services = first.then(followed.services);
        }

        let want = Fabric.compile(&followed.intent, &facts.caps);
        let result =
            fabric_have.and_then(|have| converge(&Fabric, &mut self.fabric, &want.image, Some(&have))).map(|c| c.ops);
        let fabric = PlanePass { plane: Plane::Fabric, result, took: began.elapsed(), refused: want.refused.len() };
        let (facts, records) = (Arc::new(facts), Arc::from(records));
        let ground = Ground { facts, records, stale: false, lingers, want };
        let mut pass = self.serve(cluster, &ground, followed, heard);
        pass.planes.insert(0, fabric);
        self.ground = Some(ground);
        Ok(pass)
    }

    /// A pass over what pods and Services make of the machine as it was last seen. `None` when that is not enough: the
    /// machine is to be looked at, for a [whole pass](Self::pass).
    ///
    /// # Errors
    /// When the records cannot be read: then nothing was planned.
    pub fn services(&mut self, cluster: &impl Cluster) -> anyhow::Result<Option<Pass>> {
        let Some(mut ground) = self.ground.take() else { return Ok(None) };
        let pass = self.on(cluster, &mut ground);
        self.ground = Some(ground);
        pass
    }

    /// On this ground. Where that is not enough, nothing was taken note of.
    fn on(&mut self, cluster: &impl Cluster, ground: &mut Ground) -> anyhow::Result<Option<Pass>> {
        let enough = |_: &ClusterSnapshot, changed: &Changes| match changed {
            Changes::All => false,
            Changes::Some(keys) => !keys.iter().any(|k| WHOLE.contains(&k.kind)),
        };
        let mut peek = self.seen;
        if !cluster.read_since(&mut peek, enough) {
            return Ok(None);
        }
        if ground.stale {
            ground.records = Arc::from(ipam::read(&self.setup.ipam_dir)?);
            ground.stale = false;
        }
        let attached = cluster.read(|s| Uids::of(&ground.records, s));
        if cluster.read(|s| resolve::host_ports::unsettled(s, &self.setup.node, &attached.all())) {
            return Ok(None);
        }
        let ports = self.host_ports.here(&ground.records, &attached, BTreeSet::new());
        let mut heard = Heard::default();
        let followed = self.meaning(cluster, &ground.facts, &ground.records, &ports, ground.lingers, &mut heard);
        // What came since the peek, and what changes the fabric though its kind seldom does, such as the first Service.
        let unfinished = heard.all
            || WHOLE.iter().any(|k| heard.of(*k) > 0)
            || Fabric.compile(&followed.intent, &ground.facts.caps) != ground.want;
        Ok(Some(Pass { unfinished, ..self.serve(cluster, ground, followed, heard) }))
    }

    /// What the cluster means for this node.
    fn meaning(
        &mut self,
        cluster: &impl Cluster,
        facts: &Facts,
        records: &[ipam::Record],
        ports: &PortsHere,
        vxlan_in_use: bool,
        heard: &mut Heard,
    ) -> Followed {
        let (setup, resolver) = (&self.setup, &mut self.resolver);
        cluster.read_since(&mut self.seen, |s, changed| {
            heard.add(s, changed);
            let local = LocalState { vxlan_in_use, ports: ports.clone(), ..local_state(setup, facts, records, s) };
            resolver.follow(s, &local, changed)
        })
    }

    /// The table of Services.
    fn serve(&mut self, cluster: &impl Cluster, ground: &Ground, followed: Followed, heard: Heard) -> Pass {
        let Followed { intent, problems, services, endpoints } = followed;
        self.host_ports.remember(&intent);
        let mut refused: Vec<Refused> = problems.into_iter().map(refused_input).collect();
        refused.extend(ground.want.refused.iter().cloned());
        let began = Instant::now();
        let Done { result, refused: unsaid, full } = self.table.pass(&intent, &ground.facts.caps, &services);
        let nft = PlanePass { plane: Plane::Nftables, result, took: began.elapsed(), refused: unsaid.len() };
        refused.extend(unsaid);
        let node_ranges =
            cluster.read(|s| s.nodes.get(&self.setup.node).map(|n| n.pod_cidrs.to_vec()).unwrap_or_default());
        let Ground { facts, records, lingers, .. } = ground;
        let (facts, records) = (Arc::clone(facts), Arc::clone(records));
        Pass {
            node_ranges,
            lingers: *lingers,
            intent,
            endpoints,
            facts,
            records,
            planes: vec![nft],
            services,
            full,
            heard,
            refused,
            unfinished: false,
        }
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
        ports: PortsHere::default(),
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

#[cfg(test)]
mod tests;
