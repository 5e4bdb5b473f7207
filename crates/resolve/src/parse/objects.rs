//! One function a kind.

use std::collections::BTreeSet;
use std::net::IpAddr;

use intent::{Affinity, TrafficPolicy};
use types::{Cidr, Family, PortKey, Proto};

use super::at::At;
use crate::annotations;
use crate::host_ports;
use crate::labels::Labels;
use crate::networks::{self, Definition, RESOURCE};
use crate::pools::{Notes, read_notes};
use crate::slices::{EndpointSlice, Endpoints, Hints, SliceEndpoint, SlicePort, Subset};
use crate::snapshot::{
    ContainerPort, DEFAULT_PROTO, Namespace, Node, Owner, Phase, Pod, Service, ServiceType, SvcPort, TargetPort,
};

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// The status of a condition is True.
fn condition(status: &At<'_>, kind: &str) -> bool {
    status
        .get("conditions")
        .items()
        .any(|c| c.get("type").value().as_str() == Some(kind) && c.get("status").value().as_str() == Some("True"))
}

fn proto(at: &At<'_>) -> Option<Proto> {
    if at.is_set() { at.parse() } else { Some(DEFAULT_PROTO) }
}

/// The addresses of a list, each once.
fn ips(list: &At<'_>) -> Vec<IpAddr> {
    list.items().filter_map(|i| i.ip()).collect()
}

pub(super) fn owner(metadata: &At<'_>) -> Option<Box<Owner>> {
    let refs = metadata.get("ownerReferences");
    for r in refs.items() {
        if r.get("controller").value().as_bool() == Some(true) {
            let (kind, name, uid) = (r.get("kind").boxed(), r.get("name").boxed(), r.get("uid").boxed());
            return Some(Box::new(Owner { kind, name, uid }));
        }
    }
    None
}

/// The taint by which the cluster autoscaler announces that it will remove a node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

pub(super) fn node(root: &At<'_>) -> Node {
    let (metadata, spec, status) = (root.get("metadata"), root.get("spec"), root.get("status"));
    let mut internal = Vec::new();
    let mut external = Vec::new();
    for a in status.get("addresses").items() {
        let list = match a.get("type").str() {
            Some("InternalIP") => &mut internal,
            Some("ExternalIP") => &mut external,
            _ => continue, // Hostname, InternalDNS, ExternalDNS
        };
        if let Some(ip) = a.get("address").ip()
            && !list.contains(&ip)
        {
            list.push(ip);
        }
    }
    let mut pod_cidrs: Vec<Cidr> = spec.get("podCIDRs").items().filter_map(|c| c.parse()).collect();
    if pod_cidrs.is_empty() && !spec.get("podCIDRs").is_set() {
        pod_cidrs.extend(spec.get("podCIDR").parse::<Cidr>());
    }
    let notes = metadata.get("annotations");
    let vxlan = notes.get(annotations::VXLAN);
    let data = vxlan.str().and_then(|text| {
        serde_json::from_str(text)
            .map_err(|e| {
                vxlan.bad(format!(
                    "not what an agent writes ({e}): remove the annotation and restart the agent of this node"
                ))
            })
            .ok()
    });
    Node {
        uid: metadata.get("uid").boxed(),
        created: metadata.get("creationTimestamp").boxed(),
        internal_ips: internal.into(),
        external_ips: external.into(),
        pod_cidrs: pod_cidrs.into(),
        labels: metadata.get("labels").labels(),
        backend: notes.get(annotations::BACKEND).parse(),
        vxlan: data,
        vxlan6: None,
        ready: condition(&status, "Ready"),
        unschedulable: spec.get("unschedulable").bool().unwrap_or(false),
        leaving: metadata.get("deletionTimestamp").is_set()
            || spec.get("taints").items().any(|t| t.get("key").value().as_str() == Some(TO_BE_DELETED)),
        host_port_range: notes.get(host_ports::RANGE).parse(),
        host_port_capacity: status.get("capacity").value().get(host_ports::RESOURCE).and_then(|v| whole(v.as_str()?)),
    }
}

/// A whole number as the API server writes it back (apimachinery's `resource.Quantity`): 10000 is `10k` there.
fn whole(quantity: &str) -> Option<u32> {
    let (number, unit) = match quantity.as_bytes().last()? {
        b'k' => (quantity.strip_suffix('k')?, 1000),
        b'M' => (quantity.strip_suffix('M')?, 1_000_000),
        _ => (quantity, 1),
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// The annotations that are read, of a Pod or a Namespace.
fn asks(metadata: &At<'_>) -> Labels {
    let all = metadata.get("annotations");
    annotations::READ.iter().filter_map(|k| Some((*k, all.get(k).str()?))).collect()
}

pub(super) fn pod(root: &At<'_>) -> Pod {
    let (metadata, spec, status) = (root.get("metadata"), root.get("spec"), root.get("status"));
    let mut ports = Vec::new();
    for list in ["initContainers", "containers"] {
        for c in spec.get(list).items() {
            for p in c.get("ports").items() {
                let (Some(number), Some(proto)) = (p.get("containerPort").port(), proto(&p.get("protocol"))) else {
                    continue;
                };
                ports.push(ContainerPort {
                    name: p.get("name").boxed(),
                    port: PortKey { proto, port: number },
                    // 0 is Go's way to say none.
                    host_port: p.get("hostPort").int(0, 65535).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0),
                    host_ip: p.get("hostIP").ip(),
                });
            }
        }
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    let list = status.get("podIPs");
    for at in list.items() {
        let ip = at.get("ip").ip();
        if let Some(ip) = ip.filter(|ip| addresses.iter().all(|a| Family::of(*a) != Family::of(*ip))) {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        addresses.extend(status.get("podIP").ip());
    }
    Pod {
        uid: metadata.get("uid").boxed(),
        labels: metadata.get("labels").labels(),
        asks: asks(&metadata),
        owner: owner(&metadata),
        node: spec.get("nodeName").parse(),
        node_selector: spec.get("nodeSelector").labels(),
        host_network: spec.get("hostNetwork").bool().unwrap_or(false),
        ports: ports.into(),
        phase: match status.get("phase").str() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Pending,
        },
        ready: condition(&status, "Ready"),
        ips: addresses.into(),
        notes: notes(&metadata, true),
        terminating: metadata.get("deletionTimestamp").is_set(),
        host_port_in_env: host_port_in_env(&spec),
    }
}

/// Whether a container's environment has one of the annotations that tell of host ports.
fn host_port_in_env(spec: &At<'_>) -> bool {
    ["initContainers", "containers"].iter().any(|list| {
        spec.get(list).items().any(|c| {
            c.get("env").items().any(|e| {
                // metadata.annotations['host-port.seaway.io/8080-tcp']
                let path = e.value().pointer("/valueFrom/fieldRef/fieldPath").and_then(serde_json::Value::as_str);
                let key = path.and_then(|p| p.strip_prefix("metadata.annotations['"));
                key.is_some_and(|k| k.starts_with(host_ports::ONE) || k.starts_with(host_ports::TOLD))
            })
        })
    })
}

fn traffic_policy(at: &At<'_>) -> TrafficPolicy {
    match at.str() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            at.bad(format!("{other:?}: write Cluster or Local; taken as Cluster"));
            TrafficPolicy::Cluster
        }
    }
}

fn family(at: &At<'_>) -> Option<Family> {
    match at.str() {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        other => {
            at.bad(format!("{:?}: write IPv4 or IPv6", other.unwrap_or_default()));
            None
        }
    }
}

pub(super) fn service(root: &At<'_>) -> Option<Service> {
    let (metadata, spec, status) = (root.get("metadata"), root.get("spec"), root.get("status"));
    let at = spec.get("type");
    let kind = match at.str() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIP,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            at.bad(format!("{other:?} is no Service type: write ClusterIP, NodePort, LoadBalancer or ExternalName; the Service is left out"));
            return None;
        }
    };
    let first = spec.get("clusterIP");
    let list = spec.get("clusterIPs");
    let headless = first.value().as_str() == Some("None")
        || list.value().get(0).and_then(serde_json::Value::as_str) == Some("None");
    let mut cluster_ips = Vec::new();
    if !headless && kind != ServiceType::ExternalName {
        cluster_ips = ips(&list);
        if !list.is_set() {
            cluster_ips.extend(first.ip());
        }
    }
    let affinity = spec.get("sessionAffinity");
    let affinity = match affinity.str() {
        None | Some("" | "None") => Affinity::None,
        Some("ClientIP") => {
            let config = spec.get("sessionAffinityConfig");
            let client = config.get("clientIP");
            let timeout = client.get("timeoutSeconds").int(1, 86_400).and_then(|n| u32::try_from(n).ok());
            Affinity::ClientIp { timeout: timeout.unwrap_or(AFFINITY_SECONDS) }
        }
        Some(other) => {
            affinity.bad(format!("{other:?}: write None or ClientIP; taken as None"));
            Affinity::None
        }
    };
    let balancer = status.get("loadBalancer");
    let ingress = balancer.get("ingress");
    let ingress_ips: Vec<IpAddr> = ingress
        .items()
        // KEP-1860: with ipMode Proxy the balancer itself must see the traffic.
        .filter(|i| i.get("ipMode").value().as_str() != Some("Proxy"))
        .filter_map(|i| i.get("ip").ip())
        .collect();
    let external_policy = traffic_policy(&spec.get("externalTrafficPolicy"));
    let checked = kind == ServiceType::LoadBalancer && external_policy == TrafficPolicy::Local;
    let check = spec.get("healthCheckNodePort").int(0, 65535).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    Some(Service {
        uid: metadata.get("uid").boxed().into(),
        created: metadata.get("creationTimestamp").boxed(),
        kind,
        headless,
        foreign_proxy: metadata.get("labels").get("service.kubernetes.io/service-proxy-name").is_set(),
        cluster_ips: cluster_ips.into(),
        families: spec.get("ipFamilies").items().filter_map(|f| family(&f)).collect(),
        external_ips: ips(&spec.get("externalIPs")).into(),
        ingress_ips: ingress_ips.into(),
        source_ranges: spec.get("loadBalancerSourceRanges").items().filter_map(|c| range(&c)).collect(),
        ports: spec.get("ports").items().filter_map(|p| service_port(&p)).collect(),
        selector: spec.get("selector").labels(),
        internal_policy: traffic_policy(&spec.get("internalTrafficPolicy")),
        external_policy,
        health_check_port: check.filter(|_| checked),
        affinity,
        publish_not_ready: spec.get("publishNotReadyAddresses").bool().unwrap_or(false),
        balancer: super::load_balancer::ask(&metadata, &spec, &status, kind == ServiceType::LoadBalancer),
    })
}

/// A range, with white space around it: the API server lets that pass here.
fn range(at: &At<'_>) -> Option<Cidr> {
    let text = at.str()?.trim();
    text.parse().map_err(|e| at.bad(format!("{e}"))).ok()
}

fn service_port(p: &At<'_>) -> Option<SvcPort> {
    let at = p.get("port");
    if !at.is_set() {
        at.bad("a Service port needs a number from 1 to 65535");
        return None;
    }
    let port = PortKey { proto: proto(&p.get("protocol"))?, port: at.port()? };
    let target = p.get("targetPort");
    let target = match target.value() {
        serde_json::Value::String(name) => TargetPort::Name(name.as_str().into()),
        // 0 is Go's way to say none.
        serde_json::Value::Number(n) if n.as_u64() == Some(0) => TargetPort::Number(port.port),
        _ => TargetPort::Number(target.port().unwrap_or(port.port)),
    };
    let node_port = p.get("nodePort").int(0, 65535).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    Some(SvcPort { name: p.get("name").boxed().into(), port, target, node_port })
}

pub(super) fn slice(root: &At<'_>) -> Option<EndpointSlice> {
    let metadata = root.get("metadata");
    let labels = metadata.get("labels");
    let at = root.get("addressType");
    let family = match at.str() {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        Some("FQDN") => None,
        other => {
            at.bad(format!("{:?}: write IPv4, IPv6 or FQDN; the slice is left out", other.unwrap_or_default()));
            return None;
        }
    };
    let endpoints = if family.is_some() {
        root.get("endpoints").items().filter_map(|e| endpoint(&e)).collect()
    } else {
        Box::default()
    };
    Some(EndpointSlice {
        service: labels.get("kubernetes.io/service-name").boxed().into(),
        managed_by: labels.get("endpointslice.kubernetes.io/managed-by").boxed().into(),
        headless: labels.get("service.kubernetes.io/headless").is_set(),
        revision: metadata.get("resourceVersion").value().as_str().and_then(|v| v.parse().ok()).unwrap_or(0),
        owner_uid: owner(&metadata).map(|o| o.uid).unwrap_or_default().into(),
        family,
        ports: slice_ports(root),
        endpoints,
        triggered: metadata.get("annotations").get(TRIGGERED).str().and_then(unix_millis),
    })
}

fn slice_ports(of: &At<'_>) -> Box<[SlicePort]> {
    let port = |p: At<'_>| {
        let number = p.get("port");
        if !number.is_set() {
            return None;
        }
        let port = PortKey { proto: proto(&p.get("protocol"))?, port: number.port()? };
        Some(SlicePort { name: p.get("name").boxed().into(), port })
    };
    of.get("ports").items().filter_map(port).collect()
}

pub(super) fn endpoints(root: &At<'_>) -> Endpoints {
    let metadata = root.get("metadata");
    let (labels, notes) = (metadata.get("labels"), metadata.get("annotations"));
    let skip = labels.get("endpointslice.kubernetes.io/skip-mirror").str() == Some("true");
    let leader = notes.get("control-plane.alpha.kubernetes.io/leader").is_set();
    let subset = |s: At<'_>| {
        let (mut all, mut seen): (Vec<SliceEndpoint>, BTreeSet<IpAddr>) = Default::default();
        for (list, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for a in s.get(list).items() {
                let Some(addr) = a.get("ip").ip().filter(|ip| seen.insert(*ip)) else { continue };
                let (node, pod) = (a.get("nodeName").str().map(Into::into), target_pod(&a));
                all.push(SliceEndpoint { addr, ready, serving: ready, terminating: false, node, pod, hints: None });
            }
        }
        Subset { endpoints: all.into(), ports: slice_ports(&s) }
    };
    Endpoints {
        uid: metadata.get("uid").boxed(),
        apart: skip || leader,
        subsets: root.get("subsets").items().map(subset).collect(),
    }
}

/// The pod that an endpoint is.
fn target_pod(endpoint: &At<'_>) -> Option<Box<str>> {
    let target = endpoint.get("targetRef");
    let is_pod = target.get("kind").value().as_str() == Some("Pod");
    if is_pod { target.get("name").str().map(Into::into) } else { None }
}

/// The annotation by which endpoint controllers date a change.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// RFC 3339 in UTC, as the API writes it, to milliseconds since 1970; `None` for anything else.
#[must_use]
pub fn unix_millis(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut d = date.splitn(3, '-').map(|n| n.parse::<u64>().ok());
    let (year, month, day) = (d.next()??, d.next()??, d.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut t = clock.splitn(3, ':').map(|n| n.parse::<u64>().ok());
    let (h, m, s) = (t.next()??, t.next()??, t.next()??);
    let whole = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !whole || h > 23 || m > 59 || s > 60 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Years from March, so that the leap day is the last of one.
    let (y, mp) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = (365 * y + y / 4 - y / 100 + y / 400 + (153 * mp + 2) / 5 + day - 1).checked_sub(719_468)?;
    let millis = format!("{fraction:0<3}").get(..3)?.parse::<u64>().ok()?;
    Some(((days * 24 + h) * 60 + m) * 60_000 + s * 1000 + millis)
}

fn endpoint(e: &At<'_>) -> Option<SliceEndpoint> {
    let addresses = e.get("addresses");
    let addr = match addresses.items().next() {
        Some(a) => a.ip()?,
        None => {
            addresses.bad("an endpoint needs an address");
            return None;
        }
    };
    let conditions = e.get("conditions");
    let ready = conditions.get("ready").bool().unwrap_or(true);
    let hints = e.get("hints");
    let names = |key: &str| -> Box<[Box<str>]> { hints.get(key).items().map(|h| h.get("name").boxed()).collect() };
    let hints = Hints { zones: names("forZones"), nodes: names("forNodes") };
    Some(SliceEndpoint {
        addr,
        ready,
        serving: conditions.get("serving").bool().unwrap_or(true),
        terminating: conditions.get("terminating").bool().unwrap_or(false),
        node: e.get("nodeName").str().map(Into::into),
        pod: target_pod(e),
        hints: (!hints.zones.is_empty() || !hints.nodes.is_empty()).then(|| Box::new(hints)),
    })
}

/// What annotations ask of addresses; only a pod's may name addresses.
fn notes(metadata: &At<'_>, of_pod: bool) -> Option<Box<Notes>> {
    let at = metadata.get("annotations");
    let mut notes = read_notes(|key| at.value().get(key).and_then(serde_json::Value::as_str));
    if !of_pod {
        (notes.fixed, notes.outside) = (Box::default(), Box::default());
    }
    // A pod's are told by the node that it is on.
    for (key, why) in notes.wrong.iter().filter(|_| !of_pod) {
        at.get(key).bad(format!("{why}; no address is given until this is mended"));
    }
    (!notes.is_empty()).then(|| Box::new(notes))
}

pub(super) fn namespace(root: &At<'_>) -> Namespace {
    let metadata = root.get("metadata");
    Namespace {
        labels: metadata.get("labels").labels(),
        notes: notes(&metadata, false),
        asks: asks(&metadata),
        terminating: metadata.get("deletionTimestamp").is_set(),
    }
}

/// A NetworkAttachmentDefinition; `None` for one that cannot be used.
pub(super) fn definition(root: &At<'_>) -> Option<Definition> {
    let metadata = root.get("metadata");
    let notes = metadata.get("annotations");
    if notes.get(RESOURCE).is_set() {
        notes.get(RESOURCE).bad("devices of device plugins are not handed to networks: remove it");
        return None;
    }
    let (name, spec) = (metadata.get("name"), root.get("spec"));
    let at = spec.get("config");
    let text = at.str().unwrap_or_default();
    if !at.is_set() || text.trim().is_empty() && at.value().is_string() {
        return Some(Definition { config: None });
    }
    match networks::config(text, name.str().unwrap_or_default()) {
        Ok(config) => Some(Definition { config: Some(config) }),
        Err((field, why)) => {
            at.bad(if field.is_empty() { why } else { format!("{field}: {why}") });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::unix_millis;

    #[test]
    fn quantities_as_the_api_server_writes_them_back() {
        for (text, want) in [
            ("10000", Some(10000)),
            ("10k", Some(10000)),
            ("65535", Some(65535)),
            ("3M", Some(3_000_000)),
            ("0", Some(0)),
            ("", None),
            ("k", None),
            ("-1", None),
            ("9999999M", None),
            ("1500m", None),
        ] {
            assert_eq!(super::whole(text), want, "{text:?}");
        }
    }

    #[test]
    fn times_as_go_writes_them() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-21T10:20:30Z", Some(1_795_256_430_000)),
            ("2026-11-21T10:20:30.5Z", Some(1_795_256_430_500)),
            ("2024-02-29T23:59:59.123456789Z", Some(1_709_251_199_123)),
            ("2026-11-21T10:20:30+01:00", None),
            ("2026-13-21T10:20:30Z", None),
            ("9999999999999999999-01-01T00:00:00Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(unix_millis(text), want, "{text}");
        }
    }
}
