//! What there is to ask and to be asked: read from API objects, pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;
use types::Proto;

use crate::echo::DEFAULT_PORT;
use crate::up::condition;

/// A pod whose built-in server says who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoPod {
    /// `namespace/name`: what it answers.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Ports it answers on, TCP and UDP alike.
    pub ports: Vec<u16>,
}

/// A host that runs a server for the test: a node or the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name; what its server answers is `host/NAME`.
    pub name: String,
    /// Addresses it is asked at.
    pub addresses: Vec<IpAddr>,
    /// Every address that packets of its own may carry.
    pub own: Vec<IpAddr>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; may be empty.
    pub name: String,
    /// TCP or UDP.
    pub proto: Proto,
    /// Port of the cluster address.
    pub port: u16,
    /// Port of every node, if it has one.
    pub node_port: Option<u16>,
    /// Endpoints: pod name, address, port.
    pub endpoints: Vec<(String, IpAddr, u16)>,
}

/// A Service all of whose endpoints are echo pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// Addresses; none for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// Load balancer addresses.
    pub balancer_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Only endpoints of the node asked answer from outside.
    pub local: bool,
    /// Affinity to one endpoint: drawing another is impossible.
    pub sticky: bool,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Nodes.
    pub nodes: Vec<Host>,
    /// The host outside.
    pub outside: Option<Host>,
    /// Pods that are ready.
    pub pods: Vec<EchoPod>,
    /// Services.
    pub services: Vec<Service>,
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn full_name(o: &Value) -> String {
    format!("{}/{}", text(&o["metadata"]["namespace"]), text(&o["metadata"]["name"]))
}

fn array(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn port(v: &Value) -> Option<u16> {
    u16::try_from(v.as_u64()?).ok().filter(|p| *p > 0)
}

/// The pods that are ready and have a container without a command.
#[must_use]
pub fn echo_pods(pods: &[Value]) -> Vec<EchoPod> {
    let usable = |p: &&Value| {
        p["metadata"]["deletionTimestamp"].is_null()
            && p["spec"]["hostNetwork"] != true
            && condition(p, "Ready").is_some_and(|c| c["status"] == "True")
    };
    pods.iter()
        .filter(usable)
        .filter_map(|p| {
            let mut ports = Vec::new();
            for c in array(&p["spec"]["containers"]).filter(|c| array(&c["command"]).next().is_none()) {
                let declared: Vec<u16> = array(&c["ports"]).filter_map(|x| port(&x["containerPort"])).collect();
                ports.extend(if declared.is_empty() { vec![DEFAULT_PORT] } else { declared });
            }
            ports.sort_unstable();
            ports.dedup();
            let ips: Vec<IpAddr> =
                array(&p["status"]["podIPs"]).filter_map(|i| i["ip"].as_str()?.parse().ok()).collect();
            (!ports.is_empty() && !ips.is_empty()).then(|| EchoPod {
                name: full_name(p),
                node: text(&p["spec"]["nodeName"]),
                ips,
                ports,
            })
        })
        .collect()
}

/// The Services whose endpoints, by their slices, are all echo pods. A Service without endpoints is left out.
#[must_use]
pub fn services(services: &[Value], slices: &[Value], pods: &[EchoPod]) -> Vec<Service> {
    let by_ip: BTreeMap<IpAddr, &EchoPod> = pods.iter().flat_map(|p| p.ips.iter().map(move |i| (*i, p))).collect();
    services
        .iter()
        .filter_map(|s| {
            let name = full_name(s);
            let mine: Vec<&Value> = slices
                .iter()
                .filter(|e| e["metadata"]["namespace"] == s["metadata"]["namespace"])
                .filter(|e| e["metadata"]["labels"]["kubernetes.io/service-name"] == s["metadata"]["name"])
                .collect();
            let mut ports = Vec::new();
            for p in array(&s["spec"]["ports"]) {
                let proto: Proto = p["protocol"].as_str().unwrap_or("TCP").parse().ok()?;
                if proto == Proto::Sctp {
                    continue;
                }
                let mut endpoints = Vec::new();
                for slice in &mine {
                    let Some(target) = array(&slice["ports"])
                        .find(|x| {
                            text(&x["name"]) == text(&p["name"])
                                && x["protocol"].as_str().unwrap_or("TCP") == proto.to_string()
                        })
                        .and_then(|x| port(&x["port"]))
                    else {
                        continue;
                    };
                    for e in array(&slice["endpoints"]).filter(|e| e["conditions"]["ready"] != false) {
                        for a in array(&e["addresses"]).filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()) {
                            // One stranger and the answers prove nothing.
                            let pod = by_ip.get(&a).filter(|p| p.ports.contains(&target))?;
                            endpoints.push((pod.name.clone(), a, target));
                        }
                    }
                }
                if !endpoints.is_empty() {
                    let node_port = port(&p["nodePort"]);
                    ports.push(ServicePort {
                        name: text(&p["name"]),
                        proto,
                        port: port(&p["port"])?,
                        node_port,
                        endpoints,
                    });
                }
            }
            (!ports.is_empty()).then(|| Service {
                name,
                cluster_ips: array(&s["spec"]["clusterIPs"]).filter_map(|i| i.as_str()?.parse().ok()).collect(),
                balancer_ips: array(&s["status"]["loadBalancer"]["ingress"])
                    .filter_map(|i| i["ip"].as_str()?.parse().ok())
                    .collect(),
                ports,
                local: s["spec"]["externalTrafficPolicy"] == "Local",
                sticky: s["spec"]["sessionAffinity"] == "ClientIP",
            })
        })
        .collect()
}
