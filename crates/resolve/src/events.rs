//! Changes of the cluster, and how each is applied to a snapshot.

use std::collections::BTreeSet;

use types::NodeName;

use crate::load_balancer::{Lease, LoadBalancerPool};
use crate::networks::Definition;
use crate::pools::{IpBlock, IpPool, IpReservation};
use crate::problem::Problem;
use crate::settings::Settings;
use crate::snapshot::{ClusterSnapshot, EndpointSlice, Key, Kind, Namespace, Node, Pod, Service, Workload};

/// One object, slim.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // short-lived: moved into the snapshot at once
pub enum Object {
    /// A Node.
    Node(Node),
    /// A Pod.
    Pod(Pod),
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Namespace.
    Namespace(Namespace),
    /// ConfigMap `kube-system/seaway`.
    Settings(Settings),
    /// A Deployment or DaemonSet.
    Workload(Workload),
    /// An IPPool.
    IPPool(IpPool),
    /// An IPBlock.
    IPBlock(IpBlock),
    /// An IPReservation.
    IPReservation(IpReservation),
    /// A NetworkAttachmentDefinition.
    NetworkAttachmentDefinition(Definition),
    /// A LoadBalancerPool.
    LoadBalancerPool(LoadBalancerPool),
    /// A Lease of an announcer.
    Lease(Lease),
}

/// What came of reading one object's JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// Which object.
    pub key: Key,
    /// `metadata.resourceVersion`; not kept in the snapshot.
    pub version: String,
    /// The slim object; `None` when it cannot be used at all, or does not concern us (another ConfigMap).
    pub object: Option<Object>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// One change of the cluster.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // short-lived: applied at once
pub enum Event {
    /// The object is now so.
    Put(Parsed),
    /// The object is gone.
    Delete(Key),
    /// These are all the objects of the kind: whatever else is held is gone. What a list gives.
    Replace(Kind, Vec<Parsed>),
}

/// Applies one change. Objects are independent: only the last event of each object counts, so any interleaving,
/// repetition or split of a list into single puts gives the same snapshot.
pub fn apply(snapshot: &mut ClusterSnapshot, event: Event) {
    match event {
        Event::Put(p) => put(snapshot, p),
        Event::Delete(key) => remove(snapshot, &key),
        Event::Replace(kind, all) => {
            let keep: BTreeSet<&Key> = all.iter().map(|p| &p.key).collect();
            for gone in snapshot.keys(kind).into_iter().filter(|k| !keep.contains(k)).collect::<Vec<_>>() {
                remove(snapshot, &gone);
            }
            for p in all {
                put(snapshot, p);
            }
        }
    }
}

fn put(s: &mut ClusterSnapshot, p: Parsed) {
    let Parsed { key, version: _, object, problems } = p;
    let name = key.name.clone();
    match object {
        None => remove(s, &key),
        Some(Object::Node(o)) => {
            // The parser gives no object for a Node whose name is no node name.
            if let Ok(n) = name.name.parse() {
                s.nodes.insert(n, o);
            }
        }
        Some(Object::Pod(o)) => {
            s.pods.insert(name, o);
        }
        Some(Object::Service(o)) => {
            s.services.insert(name, o);
        }
        Some(Object::EndpointSlice(o)) => {
            s.slices.insert(name, o);
        }
        Some(Object::Namespace(o)) => {
            s.namespaces.insert((*name.name).into(), o);
        }
        Some(Object::Settings(o)) => s.settings = o,
        Some(Object::Workload(o)) => {
            s.workloads.insert(key.clone(), o);
        }
        Some(Object::IPPool(o)) => {
            s.pools.insert((*name.name).into(), o);
        }
        Some(Object::IPBlock(o)) => {
            s.blocks.insert((*name.name).into(), o);
        }
        Some(Object::NetworkAttachmentDefinition(o)) => {
            s.networks.insert(name, o);
        }
        Some(Object::IPReservation(o)) => {
            s.reservations.insert((*name.name).into(), o);
        }
        Some(Object::LoadBalancerPool(o)) => {
            s.load_balancer_pools.insert((*name.name).into(), o);
        }
        Some(Object::Lease(o)) => {
            s.leases.insert(name, o);
        }
    }
    if problems.is_empty() {
        s.problems.remove(&key);
    } else {
        s.problems.insert(key, problems);
    }
}

fn remove(s: &mut ClusterSnapshot, key: &Key) {
    match key.kind {
        Kind::Node => {
            if let Ok(n) = key.name.name.parse::<NodeName>() {
                s.nodes.remove(&n);
            }
        }
        Kind::Pod => {
            s.pods.remove(&key.name);
        }
        Kind::Service => {
            s.services.remove(&key.name);
        }
        Kind::EndpointSlice => {
            s.slices.remove(&key.name);
        }
        Kind::Namespace => {
            s.namespaces.remove(&*key.name.name);
        }
        Kind::ConfigMap => {
            if Settings::is_ours(&key.name) {
                s.settings = Settings::default();
            }
        }
        Kind::Deployment | Kind::DaemonSet => {
            s.workloads.remove(key);
        }
        Kind::IPPool => {
            s.pools.remove(&*key.name.name);
        }
        Kind::IPBlock => {
            s.blocks.remove(&*key.name.name);
        }
        Kind::NetworkAttachmentDefinition => {
            s.networks.remove(&key.name);
        }
        Kind::IPReservation => {
            s.reservations.remove(&*key.name.name);
        }
        Kind::LoadBalancerPool => {
            s.load_balancer_pools.remove(&*key.name.name);
        }
        Kind::Lease => {
            s.leases.remove(&key.name);
        }
    }
    s.problems.remove(key);
}
