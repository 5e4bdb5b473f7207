//! EndpointSlices of Services that have a selector (KEP-752).

use std::collections::{BTreeMap, BTreeSet};

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, EndpointSlice, Kind, Pod, Service, ServiceType, SliceEndpoint, SlicePort, TargetPort};
use serde_json::{Value, json};
use types::{Family, ObjectName, PortKey};

use crate::Outcome;
use crate::name::free;

/// Value of label `endpointslice.kubernetes.io/managed-by`: slices with another value are not touched.
pub const MANAGED_BY: &str = "endpointslice-controller.seaway.io";
/// Endpoints of one slice at most, as Kubernetes' controller has it.
const MAX_ENDPOINTS: usize = 100;

/// What distinguishes slices of one Service: all endpoints of a slice share family and ports.
type Group = (Family, Box<[SlicePort]>);

/// The endpoints that a Service should have.
pub(crate) type Want = BTreeMap<Group, BTreeSet<SliceEndpoint>>;

/// Whose slices.
pub(crate) struct Of<'a> {
    /// The Service, and the Endpoints where these are mirrored.
    pub(crate) name: &'a ObjectName,
    /// The kind of object that owns them.
    pub(crate) kind: &'static str,
    /// Its uid.
    pub(crate) uid: &'a str,
    pub(crate) headless: bool,
    pub(crate) managed_by: &'static str,
}

/// The slices of one Service.
pub(crate) type Have<'a> = BTreeMap<&'a ObjectName, &'a EndpointSlice>;

/// The slices that one controller manages, by Service.
pub(crate) fn managed<'a>(snapshot: &'a ClusterSnapshot, by: &str) -> BTreeMap<ObjectName, Have<'a>> {
    let mut have: BTreeMap<ObjectName, Have<'a>> = BTreeMap::new();
    for (name, slice) in snapshot.slices.iter().filter(|(_, s)| &*s.managed_by == by) {
        let service = ObjectName { namespace: name.namespace.clone(), name: slice.service.clone() };
        have.entry(service).or_default().insert(name, slice);
    }
    have
}

pub(crate) fn reconcile(snapshot: &ClusterSnapshot, out: &mut Outcome) {
    let mut have = managed(snapshot, MANAGED_BY);
    for (name, svc) in &snapshot.services {
        let mine = have.remove(name).unwrap_or_default();
        // Without a selector the endpoints are somebody else's; slices of ours from before are stale.
        let want = if svc.selector.is_empty() || svc.kind == ServiceType::ExternalName {
            BTreeMap::new()
        } else {
            wanted(snapshot, name, svc)
        };
        let of = Of { name, kind: "Service", uid: &svc.uid, headless: svc.headless, managed_by: MANAGED_BY };
        bring(snapshot, &of, want, mine, out);
    }
    without("Service", have, out);
}

/// Slices of what is gone.
pub(crate) fn without(kind: &str, have: BTreeMap<ObjectName, Have<'_>>, out: &mut Outcome) {
    for (name, slice) in have.into_values().flatten() {
        out.writes.push(delete(name, format!("{kind} {} is gone", slice.service)));
    }
}

fn delete(name: &ObjectName, why: String) -> ApiWrite {
    let op = WriteOp::Delete { uid: Box::default(), force: false };
    ApiWrite { resource: Kind::EndpointSlice.into(), name: name.clone(), op, why }
}

/// The endpoints that a Service should have, by group.
fn wanted(snapshot: &ClusterSnapshot, name: &ObjectName, svc: &Service) -> Want {
    let pods: Vec<(&ObjectName, &Pod)> = snapshot
        .pods
        .iter()
        .filter(|(n, p)| n.namespace == name.namespace && !p.phase.ended() && p.labels.matches(&svc.selector))
        .collect();
    let mut families: BTreeSet<Family> = svc.families.iter().copied().collect();
    if families.is_empty() {
        families = svc.cluster_ips.iter().map(|a| Family::of(*a)).collect();
    }
    let mut out = Want::new();
    for (pod_name, pod) in pods {
        for addr in &pod.ips {
            if !families.contains(&Family::of(*addr)) {
                continue;
            }
            let ready = svc.publish_not_ready || (pod.ready && !pod.terminating);
            let endpoint = SliceEndpoint {
                addr: *addr,
                ready,
                serving: pod.ready,
                terminating: pod.terminating,
                node: pod.node.as_ref().map(|n| n.as_str().into()),
                pod: Some((*pod_name.name).into()),
                hints: None,
            };
            out.entry((Family::of(*addr), ports(svc, pod))).or_default().insert(endpoint);
        }
    }
    out
}

/// A Service's ports as numbers of one pod. A named port that the pod does not have is left out.
fn ports(svc: &Service, pod: &Pod) -> Box<[SlicePort]> {
    let mut out: Vec<SlicePort> = svc
        .ports
        .iter()
        .filter_map(|p| {
            let number = match &p.target {
                TargetPort::Number(n) => *n,
                TargetPort::Name(name) => {
                    pod.ports.iter().find(|c| c.name == *name && c.port.proto == p.port.proto)?.port.port
                }
            };
            Some(SlicePort { name: (*p.name).into(), port: PortKey { proto: p.port.proto, port: number } })
        })
        .collect();
    out.sort();
    out.into()
}

/// Brings the slices of one Service to what they should be, touching no slice whose endpoints did not change.
pub(crate) fn bring(snapshot: &ClusterSnapshot, of: &Of<'_>, want: Want, mut have: Have<'_>, out: &mut Outcome) {
    let name = of.name;
    let mut made: BTreeSet<String> = BTreeSet::new();
    for (group, mut left) in want {
        let (family, ports) = &group;
        let same: Vec<&ObjectName> = have
            .iter()
            .filter(|(_, s)| s.family == Some(*family) && sorted(&s.ports) == *ports)
            .map(|(n, _)| *n)
            .collect();
        let mut plan: Vec<(&ObjectName, &EndpointSlice, BTreeSet<SliceEndpoint>)> = Vec::new();
        for slice_name in same {
            let Some(slice) = have.remove(slice_name) else { continue };
            // Keep each endpoint where it is, in its newest form.
            let mut kept = BTreeSet::new();
            for old in &slice.endpoints {
                let now = left.iter().find(|e| e.addr == old.addr && e.pod == old.pod).cloned();
                if let Some(now) = now.filter(|_| kept.len() < MAX_ENDPOINTS) {
                    left.remove(&now);
                    kept.insert(now);
                }
            }
            plan.push((slice_name, slice, kept));
        }
        for (_, _, kept) in &mut plan {
            while kept.len() < MAX_ENDPOINTS {
                let Some(e) = left.pop_first() else { break };
                kept.insert(e);
            }
        }
        for (slice_name, slice, kept) in plan {
            if kept.is_empty() {
                out.writes.push(delete(slice_name, "no endpoint left in it".into()));
                continue;
            }
            let now: BTreeSet<SliceEndpoint> = slice.endpoints.iter().cloned().collect();
            if now != kept || *slice.owner_uid != *of.uid {
                let mut body = render(of, &group, &kept);
                if let Some(m) = body.as_object_mut() {
                    m.remove("addressType"); // immutable
                }
                out.writes.push(ApiWrite {
                    resource: Kind::EndpointSlice.into(),
                    name: slice_name.clone(),
                    op: WriteOp::Patch(body),
                    why: format!("{} endpoints of Service {name}", kept.len()),
                });
            }
        }
        while !left.is_empty() {
            let mut chunk = BTreeSet::new();
            while chunk.len() < MAX_ENDPOINTS {
                let Some(e) = left.pop_first() else { break };
                chunk.insert(e);
            }
            let family_text = family.to_string();
            let slice_name = free(&name.name, &[of.uid, &family_text], |n| {
                made.contains(n) || snapshot.slices.contains_key(&ObjectName::new(&name.namespace, n))
            });
            made.insert(slice_name.clone());
            out.writes.push(ApiWrite {
                resource: Kind::EndpointSlice.into(),
                name: ObjectName::new(&name.namespace, &slice_name),
                op: WriteOp::Create(render(of, &group, &chunk)),
                why: format!("{} endpoints of Service {name}", chunk.len()),
            });
        }
    }
    for slice_name in have.into_keys() {
        out.writes.push(delete(slice_name, format!("Service {name} has no such endpoints any more")));
    }
}

pub(crate) fn sorted(ports: &[SlicePort]) -> Box<[SlicePort]> {
    let mut p = ports.to_vec();
    p.sort();
    p.into()
}

fn render(of: &Of<'_>, group: &Group, endpoints: &BTreeSet<SliceEndpoint>) -> Value {
    let (family, ports) = group;
    let mut labels = json!({
        "kubernetes.io/service-name": &*of.name.name,
        "endpointslice.kubernetes.io/managed-by": of.managed_by,
    });
    if of.headless {
        labels["service.kubernetes.io/headless"] = "".into();
    }
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|e| {
            let mut v = json!({
                "addresses": [e.addr.to_string()],
                "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
            });
            if let Some(node) = &e.node {
                v["nodeName"] = (**node).into();
            }
            if let Some(pod) = &e.pod {
                v["targetRef"] = json!({"kind": "Pod", "namespace": &*of.name.namespace, "name": &**pod});
            }
            v
        })
        .collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|p| json!({"name": &*p.name, "port": p.port.port, "protocol": p.port.proto.to_string()}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "labels": labels,
            "ownerReferences": [{
                "apiVersion": "v1", "kind": of.kind, "name": &*of.name.name, "uid": of.uid,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": family.to_string(),
        "endpoints": endpoints,
        "ports": ports,
    })
}
