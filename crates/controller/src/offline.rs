//! What a folder of manifests would become: the controllers run on plain values until nothing changes, with stand-ins
//! for what only a running cluster has (uids, addresses, ready pods). Pure, so that `seaway plan --from` needs no server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use resolve::annotations::{BACKEND, VXLAN, VxlanData, vxlan_mac};
use resolve::api::{ApiWrite, WriteOp};
use resolve::{Backend, ClusterSnapshot, Event, Key, Kind, Problem, Settings, apply, parse, parse_as};
use serde_json::{Value, json};
use types::{Cidr, Family, NodeName, ObjectName};

use crate::{Options, Outcome, alloc, reconcile};

/// Passes at most: a cluster settles in about five.
const PASSES: usize = 64;

/// Pod ranges of a cluster whose manifests say none.
const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/56";

/// Nodes for manifests that have none: the named one and enough others to make three, on one network of
/// documentation addresses (RFC 5737, RFC 3849). Empty when there are Nodes already.
#[must_use]
pub fn stand_in_nodes(objects: &[Value], name: &NodeName) -> Vec<Value> {
    if objects.iter().filter_map(parse).any(|p| p.key.kind == Kind::Node) {
        return Vec::new();
    }
    let others = (1..=3).map(|n| format!("node{n}")).filter(|n| n != name.as_str());
    std::iter::once(name.to_string())
        .chain(others)
        .take(3)
        .enumerate()
        .map(|(i, name)| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": format!("192.0.2.{}", i + 1)},
                    {"type": "InternalIP", "address": format!("2001:db8::{}", i + 1)},
                ]},
            })
        })
        .collect()
}

/// A settled cluster.
#[derive(Debug, Clone, Default)]
pub struct Settled {
    /// The cluster.
    pub snapshot: ClusterSnapshot,
    /// Its objects in full.
    pub objects: BTreeMap<Key, Value>,
    /// What the controllers could not do.
    pub problems: Vec<Problem>,
    /// What stood in for a running cluster, for a person: one line each.
    pub assumed: Vec<String>,
}

/// Settles the objects of a folder: `service_cidrs` are the ranges of cluster IPs, one of each family at most.
#[must_use]
pub fn settle(objects: &[Value], options: &Options, service_cidrs: &[Cidr]) -> Settled {
    let mut world = World { objects: BTreeMap::new(), assumed: BTreeSet::new() };
    for value in objects {
        if let Some(p) = parse(value) {
            let mut value = value.clone();
            if value.pointer("/metadata/uid").and_then(Value::as_str).is_none_or(str::is_empty) {
                set(&mut value, "metadata", json!({"uid": format!("offline-{}", p.key)}));
            }
            world.objects.entry(p.key).or_insert(value);
        }
    }
    world.ranges();
    world.nodes();
    let mut problems = Vec::new();
    for _ in 0..PASSES {
        let snapshot = world.snapshot();
        let Outcome { writes, problems: found, .. } = reconcile(&snapshot, options);
        problems = found;
        let before = world.objects.clone();
        for w in &writes {
            world.write(w);
        }
        world.services(&snapshot, service_cidrs);
        world.pods();
        if world.objects == before {
            break;
        }
    }
    problems.sort();
    problems.dedup();
    Settled {
        snapshot: world.snapshot(),
        objects: world.objects,
        problems,
        assumed: world.assumed.into_iter().collect(),
    }
}

struct World {
    objects: BTreeMap<Key, Value>,
    assumed: BTreeSet<String>,
}

/// Sets members of the object under a key, which is made when it is none.
fn set(v: &mut Value, key: &str, members: Value) {
    merge(v, &json!({key: members}));
}

/// JSON merge patch (RFC 7396 section 2): null removes, objects merge, anything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Value::Object(t) = target {
        for (k, v) in patch {
            if v.is_null() {
                t.remove(k);
            } else {
                merge(t.entry(k.clone()).or_insert(Value::Null), v);
            }
        }
    }
}

impl World {
    fn snapshot(&self) -> ClusterSnapshot {
        let mut s = ClusterSnapshot::default();
        for (key, value) in &self.objects {
            apply(&mut s, Event::Put(parse_as(key.kind, value)));
        }
        s
    }

    fn write(&mut self, w: &ApiWrite) {
        let Some(kind) = Kind::of(&w.resource.api_version(), &w.resource.kind) else { return };
        let key = Key { kind, name: w.name.clone() };
        match &w.op {
            WriteOp::Create(body) => {
                let mut body = body.clone();
                let uid = format!("offline-{key}");
                set(&mut body, "metadata", json!({"name": &*w.name.name, "namespace": &*w.name.namespace, "uid": uid}));
                self.objects.entry(key).or_insert(body);
            }
            WriteOp::Patch(p) | WriteOp::PatchStatus(p) => {
                if let Some(o) = self.objects.get_mut(&key) {
                    merge(o, p);
                }
            }
            WriteOp::Bind { node } => {
                if let Some(o) = self.objects.get_mut(&key) {
                    set(o, "spec", json!({"nodeName": node}));
                }
            }
            WriteOp::Delete { .. } => {
                self.objects.remove(&key);
            }
        }
    }

    /// Without any word on pod ranges there could be no pods.
    fn ranges(&mut self) {
        let snapshot = self.snapshot();
        let told = !snapshot.settings.cluster_cidrs.is_empty()
            || snapshot.problems.contains_key(&Settings::key())
            || snapshot.nodes.values().any(|n| !n.pod_cidrs.is_empty());
        if told || snapshot.nodes.is_empty() {
            return;
        }
        let (key, data) = (Settings::key(), json!({"clusterCIDR": POD_RANGES}));
        let (ns, name) = (&*key.name.namespace, &*key.name.name);
        self.assumed.insert(format!("{key} has data.clusterCIDR {POD_RANGES}"));
        let fresh = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": ns}});
        let value = self.objects.entry(key.clone()).or_insert(fresh);
        set(value, "data", data);
    }

    /// A Node of a manifest has no status: it is taken to be ready, and its agent to have published what it would.
    fn nodes(&mut self) {
        let snapshot = self.snapshot();
        let settings = &snapshot.settings;
        for (key, value) in self.objects.iter_mut().filter(|(k, _)| k.kind == Kind::Node) {
            if value.pointer("/status/conditions").is_none() {
                set(value, "status", json!({"conditions": [{"type": "Ready", "status": "True"}]}));
                self.assumed.insert(format!("{key} is Ready"));
            }
            let Ok(name) = key.name.name.parse::<NodeName>() else { continue };
            let Some(node) = snapshot.nodes.get(&name) else { continue };
            // As the agent chooses: IPv4 when the node has it.
            let outer = node.addresses().find(IpAddr::is_ipv4).or_else(|| node.addresses().next());
            if let (Backend::Vxlan, None, Some(address)) = (settings.backend, node.vxlan, outer) {
                let mac = vxlan_mac(&name, settings.vni);
                let data = VxlanData { vni: settings.vni, port: settings.vxlan_port, mac, address };
                let text = serde_json::to_string(&data).unwrap_or_default();
                set(value, "metadata", json!({"annotations": {BACKEND: "vxlan", VXLAN: text}}));
                self.assumed.insert(format!("{key} is reached through VXLAN at {address}"));
            }
        }
    }

    /// Cluster IPs and node ports, as the API server's admission gives them.
    fn services(&mut self, snapshot: &ClusterSnapshot, ranges: &[Cidr]) {
        // The families that pods have; without any word on that, those of the ranges.
        let pods: BTreeSet<Family> =
            snapshot.nodes.values().flat_map(|n| n.pod_cidrs.iter().map(Cidr::family)).collect();
        let usable: Vec<Cidr> =
            ranges.iter().copied().filter(|r| pods.is_empty() || pods.contains(&r.family())).collect();
        let mut ips: BTreeSet<IpAddr> =
            snapshot.services.values().flat_map(|s| s.cluster_ips.iter().copied()).collect();
        let mut ports: BTreeSet<u16> =
            snapshot.services.values().flat_map(|s| s.ports.iter().filter_map(|p| p.node_port)).collect();
        for (key, value) in self.objects.iter_mut().filter(|(k, _)| k.kind == Kind::Service) {
            let Some(svc) = snapshot.services.get(&key.name) else { continue };
            if svc.kind == resolve::ServiceType::ExternalName {
                continue;
            }
            let mut families: Vec<Family> = svc.families.to_vec();
            if families.is_empty() {
                let dual = matches!(
                    value.pointer("/spec/ipFamilyPolicy").and_then(Value::as_str),
                    Some("PreferDualStack" | "RequireDualStack")
                );
                families = if svc.cluster_ips.is_empty() {
                    usable.iter().map(Cidr::family).take(if dual { 2 } else { 1 }).collect()
                } else {
                    svc.cluster_ips.iter().map(|ip| Family::of(*ip)).collect()
                };
                let list: Vec<String> = families.iter().map(ToString::to_string).collect();
                set(value, "spec", json!({"ipFamilies": list}));
            }
            if !svc.headless && svc.cluster_ips.is_empty() {
                let mine: Vec<IpAddr> = families
                    .iter()
                    .filter_map(|f| usable.iter().find(|r| r.family() == *f))
                    .filter_map(|range| first_free(range, &ips))
                    .collect();
                ips.extend(&mine);
                let list: Vec<String> = mine.iter().map(ToString::to_string).collect();
                if let Some(first) = list.first() {
                    self.assumed.insert(format!("{key} has cluster IP {}", list.join(", ")));
                    set(value, "spec", json!({"clusterIP": first, "clusterIPs": list}));
                }
            }
            let wants = match svc.kind {
                resolve::ServiceType::NodePort => true,
                resolve::ServiceType::LoadBalancer => {
                    value.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false)
                }
                _ => false,
            };
            let list = value.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
            for p in list.into_iter().flatten().filter(|_| wants) {
                if p.get("nodePort").and_then(Value::as_u64).unwrap_or(0) > 0 || !p.is_object() {
                    continue;
                }
                if let Some(free) = (30_000..=32_767).find(|n| !ports.contains(n)) {
                    ports.insert(free);
                    p["nodePort"] = free.into();
                    self.assumed.insert(format!("{key} has node port {free}"));
                }
            }
        }
    }

    /// Pods that are bound run: with the next addresses of their node's ranges, and ready.
    fn pods(&mut self) {
        let snapshot = self.snapshot();
        let mut taken: BTreeSet<IpAddr> = snapshot.pods.values().flat_map(|p| p.ips.iter().copied()).collect();
        for (name, pod) in &snapshot.pods {
            let Some(node) = pod.node.as_ref().and_then(|n| snapshot.nodes.get(n)) else { continue };
            if !pod.ips.is_empty() {
                continue;
            }
            let ips: Vec<IpAddr> = if pod.host_network {
                Family::BOTH.into_iter().filter_map(|f| node.addresses().find(|a| Family::of(*a) == f)).collect()
            } else {
                node.pod_cidrs.iter().filter_map(|c| first_pod(c, &taken)).collect()
            };
            if ips.is_empty() {
                continue;
            }
            taken.extend(ips.iter().filter(|_| !pod.host_network));
            let key = Key { kind: Kind::Pod, name: ObjectName::clone(name) };
            let Some(value) = self.objects.get_mut(&key) else { continue };
            let list: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            let given = |k: &str| value.pointer(&format!("/status/{k}")).cloned();
            let phase = given("phase").unwrap_or_else(|| "Running".into());
            let conditions = given("conditions").unwrap_or_else(|| json!([{"type": "Ready", "status": "True"}]));
            set(
                value,
                "status",
                json!({
                    "podIP": ips.first().map(ToString::to_string), "podIPs": list,
                    "phase": phase, "conditions": conditions,
                }),
            );
            self.assumed.insert(format!("{key} is ready on {}", pod.node.as_ref().map_or("", |n| n.as_str())));
        }
    }
}

/// The first address of a range that a pod can have, as `ipam` gives them: neither of the first two (the range's own and
/// the gateway's) nor an IPv4 range's last.
fn first_pod(range: &Cidr, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let last = if range.family() == Family::V4 { 1 } else { 0 };
    (2..range.size().saturating_sub(last)).filter_map(|n| range.nth(n)).find(|ip| !taken.contains(ip))
}

/// A free cluster IP, as the allocator gives it, but always the same.
fn first_free(range: &Cidr, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    alloc::next_ip(range, 0, |ip| taken.contains(&ip)).ok()
}
