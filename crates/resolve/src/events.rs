//! Changes of the cluster, and how each is applied to a snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use types::{Cidr, NodeName, ObjectName};

use crate::load_balancer::{Lease, LoadBalancerPool};
use crate::networks::Definition;
use crate::pools::{IpBlock, IpPool, IpReservation};
use crate::problem::Problem;
use crate::settings::Settings;
use crate::slices::{EndpointSlice, Endpoints};
use crate::snapshot::{ClusterSnapshot, Key, Kind, Namespace, Node, Pod, Service};
use crate::workload::{Revision, Workload};

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
    /// A Deployment, ReplicaSet or DaemonSet.
    Workload(Workload),
    /// A ControllerRevision.
    Revision(Revision),
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
    /// A ServiceCIDR: its `spec.cidrs`.
    ServiceCidr(Box<[Cidr]>),
    /// A Lease of an announcer.
    Lease(Lease),
    /// An Endpoints object.
    Endpoints(Endpoints),
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
///
/// Gives what may mean something else now: the objects that changed, and of a slice the Service it is of and was of. An
/// event that changes nothing of what is held gives nothing.
pub fn apply(snapshot: &mut ClusterSnapshot, event: Event) -> Vec<Key> {
    let mut touched = Vec::new();
    match event {
        Event::Put(p) => put(snapshot, p, &mut touched),
        Event::Delete(key) => remove(snapshot, &key, &mut touched),
        Event::Replace(kind, all) => {
            let keep: BTreeSet<&Key> = all.iter().map(|p| &p.key).collect();
            for gone in snapshot.keys(kind).into_iter().filter(|k| !keep.contains(k)).collect::<Vec<_>>() {
                remove(snapshot, &gone, &mut touched);
            }
            for p in all {
                put(snapshot, p, &mut touched);
            }
        }
    }
    touched
}

/// Puts a slice in or takes it out, with its place among those of its Service. Says whether anything changed.
fn set_slice(s: &mut ClusterSnapshot, name: &ObjectName, slice: Option<EndpointSlice>, touched: &mut Vec<Key>) -> bool {
    let old = s.slices.get(name).map(|o| &**o);
    if old == slice.as_ref() {
        return false;
    }
    let index = |service: &Arc<str>| (name.namespace.clone(), service.clone(), name.name.clone());
    let mut of = |service: &Arc<str>| {
        let name = ObjectName { namespace: name.namespace.clone(), name: service.clone() };
        touched.push(Key { kind: Kind::Service, name });
    };
    if let Some(old) = old {
        s.of_service.remove(&index(&old.service));
        of(&old.service);
    }
    match slice {
        Some(new) => {
            s.of_service.insert(index(&new.service));
            of(&new.service);
            s.slices.insert(name.clone(), Box::new(new));
        }
        None => {
            s.slices.remove(name);
        }
    }
    true
}

/// Makes texts of a Service or slice that the snapshot has already the same in memory.
fn share(s: &mut ClusterSnapshot, name: &mut ObjectName, object: Option<&mut Object>) {
    s.texts.share(&mut name.namespace);
    match object {
        Some(Object::Service(svc)) => {
            svc.selector.share(&mut s.texts);
            svc.ports.iter_mut().for_each(|p| s.texts.share(&mut p.name));
            // Its slices may have come first.
            let first = s.slices_of(name).next().map(|(_, slice)| (slice.service.clone(), slice.owner_uid.clone()));
            if let Some((of, uid)) = first {
                name.name = of;
                if svc.uid == uid {
                    svc.uid = uid;
                }
            }
        }
        Some(Object::EndpointSlice(slice)) => {
            s.texts.share(&mut slice.managed_by);
            slice.ports.iter_mut().for_each(|p| s.texts.share(&mut p.name));
            slice.endpoints.iter_mut().filter_map(|e| e.node.as_mut()).for_each(|n| s.texts.share(n));
            let of = ObjectName { namespace: name.namespace.clone(), name: slice.service.clone() };
            if let Some((of, svc)) = s.services.get_key_value(&of) {
                slice.service = of.name.clone();
                if slice.owner_uid == svc.uid {
                    slice.owner_uid = svc.uid.clone();
                }
            }
        }
        _ => {}
    }
}

fn put(s: &mut ClusterSnapshot, p: Parsed, touched: &mut Vec<Key>) {
    let Parsed { mut key, version: _, mut object, problems } = p;
    share(s, &mut key.name, object.as_mut());
    let name = key.name.clone();
    let mut changed = true;
    match object {
        None => remove(s, &key, touched),
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
            changed = s.services.get(&name).map(|o| &**o) != Some(&o);
            if changed {
                s.services.insert(name, Box::new(o));
            }
        }
        Some(Object::EndpointSlice(o)) => changed = set_slice(s, &name, Some(o), touched),
        Some(Object::Namespace(o)) => {
            s.namespaces.insert((*name.name).into(), o);
        }
        Some(Object::Settings(o)) => s.settings = o,
        Some(Object::Workload(o)) => {
            s.workloads.insert(key.clone(), o);
        }
        Some(Object::Revision(o)) => {
            s.revisions.insert(name, o);
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
        Some(Object::ServiceCidr(o)) => {
            s.service_cidrs.insert((*name.name).into(), o);
        }
        Some(Object::Lease(o)) => {
            s.leases.insert(name, o);
        }
        Some(Object::Endpoints(o)) => {
            s.endpoints.insert(name, o);
        }
    }
    if problems.is_empty() {
        changed |= s.problems.remove(&key).is_some();
    } else {
        changed |= s.problems.get(&key) != Some(&problems);
        s.problems.insert(key.clone(), problems);
    }
    if changed {
        touched.push(key);
    }
}

fn remove(s: &mut ClusterSnapshot, key: &Key, touched: &mut Vec<Key>) {
    touched.push(key.clone());
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
            set_slice(s, &key.name, None, touched);
        }
        Kind::Namespace => {
            s.namespaces.remove(&*key.name.name);
        }
        Kind::ConfigMap => {
            if Settings::is_ours(&key.name) {
                s.settings = Settings::default();
            }
        }
        Kind::Deployment | Kind::DaemonSet | Kind::ReplicaSet => {
            s.workloads.remove(key);
        }
        Kind::ControllerRevision => {
            s.revisions.remove(&key.name);
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
        Kind::ServiceCidr => {
            s.service_cidrs.remove(&*key.name.name);
        }
        Kind::Lease => {
            s.leases.remove(&key.name);
        }
        Kind::Endpoints => {
            s.endpoints.remove(&key.name);
        }
    }
    s.problems.remove(key);
}
