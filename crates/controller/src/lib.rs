//! Owns: what a control plane writes, as pure functions from a snapshot to API writes: node pod ranges, endpoint slices of Services and of Endpoints, Deployments' ReplicaSets, pods of these and of DaemonSets, scheduling, garbage collection; and the allocators of cluster IPs and node ports.
//! Never does: I/O, clocks, or anything on a cluster that the cluster's own controllers do already: each is switched on by itself.
//! Tested by: one module of cases each; a property in `tests/` that any cluster settles, in few passes, into a state that the next pass leaves alone.

pub mod alloc;
mod daemonset;
mod deployment;
mod gc;
pub mod lb;
mod mirror;
mod name;
mod node_cidr;
pub mod offline;
mod pods;
pub mod pools;
mod progress;
mod replicaset;
mod scheduler;
mod slices;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use resolve::api::ApiWrite;
use resolve::{ClusterSnapshot, Kind, Problem};

pub use slices::MANAGED_BY;

/// A controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// Gives each Node a pod range out of `clusterCIDR`.
    NodeCidr,
    /// Writes EndpointSlices for Services with a selector.
    EndpointSlice,
    /// Writes EndpointSlices for Endpoints of Services without one.
    EndpointSliceMirroring,
    /// Makes the ReplicaSets of Deployments, and moves their pods from one to the next.
    Deployment,
    /// Makes and replaces the pods of ReplicaSets.
    ReplicaSet,
    /// Makes and replaces the pods of DaemonSets, and remembers their templates.
    DaemonSet,
    /// Binds pods to nodes.
    Scheduler,
    /// Deletes pods whose owner or node is gone.
    GarbageCollector,
    /// Frees address blocks of nodes that are gone, lets deleted pools go, says what each pool has.
    Pools,
    /// Gives addresses of LoadBalancerPools to Services.
    LoadBalancers,
}

impl Which {
    /// All of them: a lab or a standalone host, where nobody else does any.
    pub const ALL: [Which; 10] = [
        Which::NodeCidr,
        Which::EndpointSlice,
        Which::EndpointSliceMirroring,
        Which::Deployment,
        Which::ReplicaSet,
        Which::DaemonSet,
        Which::Scheduler,
        Which::GarbageCollector,
        Which::Pools,
        Which::LoadBalancers,
    ];

    /// Its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeCidr => "node-cidr",
            Self::EndpointSlice => "endpointslice",
            Self::EndpointSliceMirroring => "endpointslice-mirroring",
            Self::Deployment => "deployment",
            Self::ReplicaSet => "replicaset",
            Self::DaemonSet => "daemonset",
            Self::Scheduler => "scheduler",
            Self::GarbageCollector => "garbage-collector",
            Self::Pools => "pools",
            Self::LoadBalancers => "load-balancers",
        }
    }

    /// What it looks at; it needs no right to read anything else.
    #[must_use]
    pub const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::NodeCidr => &[Kind::Node, Kind::ConfigMap, Kind::Service],
            Self::EndpointSlice => &[Kind::Service, Kind::EndpointSlice, Kind::Pod],
            Self::EndpointSliceMirroring => &[Kind::Service, Kind::EndpointSlice, Kind::Endpoints],
            Self::Deployment => &[Kind::Deployment, Kind::ReplicaSet, Kind::Pod],
            Self::ReplicaSet => &[Kind::ReplicaSet, Kind::Pod],
            Self::DaemonSet => &[Kind::DaemonSet, Kind::ControllerRevision, Kind::Node, Kind::Pod],
            Self::Scheduler => &[Kind::Node, Kind::Pod],
            Self::GarbageCollector => {
                &[Kind::Deployment, Kind::ReplicaSet, Kind::DaemonSet, Kind::ControllerRevision, Kind::Node, Kind::Pod]
            }
            Self::Pools => &[Kind::Node, Kind::Pod, Kind::IPPool, Kind::IPBlock],
            Self::LoadBalancers => {
                &[Kind::Service, Kind::LoadBalancerPool, Kind::Namespace, Kind::Node, Kind::ConfigMap]
            }
        }
    }
}

impl FromStr for Which {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|w| w.as_str() == s)
            .ok_or_else(|| format!("{s:?} is no controller: use {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// Which controllers run, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Those that run.
    pub which: BTreeSet<Which>,
    /// Prefix length of a node's IPv4 pod range.
    pub node_mask_v4: u8,
    /// Prefix length of a node's IPv6 pod range.
    pub node_mask_v6: u8,
}

impl Default for Options {
    /// All, /24 and /64: Kubernetes' own defaults.
    fn default() -> Self {
        Self { which: Which::ALL.into(), node_mask_v4: 24, node_mask_v6: 64 }
    }
}

impl Options {
    /// What the controllers that are on look at.
    #[must_use]
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.which.iter().flat_map(|w| w.kinds()).copied().collect()
    }
}

/// What a pass found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// What to write, in order.
    pub writes: Vec<ApiWrite>,
    /// What cannot be done, and the fix.
    pub problems: Vec<Problem>,
    /// After how long there may be more to do although nothing has changed.
    pub again: Option<Duration>,
}

/// The time of a pass that has none.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// One pass of every controller that is on. Empty writes: everything is as it should be.
#[must_use]
pub fn reconcile(snapshot: &ClusterSnapshot, options: &Options) -> Outcome {
    reconcile_with(snapshot, options, &mut lb::Memory::default(), EPOCH)
}

/// As [`reconcile`], with what earlier passes decided and the watch may not have told yet, at the time `now` (RFC 3339).
#[must_use]
pub fn reconcile_with(snapshot: &ClusterSnapshot, options: &Options, memory: &mut lb::Memory, now: &str) -> Outcome {
    let mut out = Outcome::default();
    // For those that make pods, where any of them is on.
    let owned = OnceCell::new();
    let owned = || owned.get_or_init(|| pods::by_owner(snapshot));
    for which in &options.which {
        match which {
            Which::NodeCidr => node_cidr::reconcile(snapshot, options, &mut out),
            Which::EndpointSlice => slices::reconcile(snapshot, &mut out),
            Which::EndpointSliceMirroring => mirror::reconcile(snapshot, &mut out),
            Which::Deployment => deployment::reconcile(snapshot, owned(), now, &mut out),
            Which::ReplicaSet => replicaset::reconcile(snapshot, owned(), &mut out),
            Which::DaemonSet => daemonset::reconcile(snapshot, owned(), &mut out),
            Which::Scheduler => scheduler::reconcile(snapshot, &mut out),
            Which::GarbageCollector => gc::reconcile(snapshot, &mut out),
            Which::Pools => pools::reconcile(snapshot, &mut out),
            Which::LoadBalancers => lb::reconcile(snapshot, memory, now, &mut out),
        }
    }
    out
}
