//! Random host ports: a pod asks for free ports of its node, whichever they are, and is told which it got.
//!
//! The agent of the pod's node chooses before the pod is attached and writes the answer to the Pod. An attached pod
//! keeps its ports, and so does one that is attached anew while its Pod still tells them: a choice is made once.

mod ask;
mod choose;
mod fill;
mod load;
mod range;

use std::collections::{BTreeMap, BTreeSet};

use intent::HostPort;
use serde_json::{Value, json};
use types::PortKey;

use crate::snapshot::Pod;

pub use ask::{Ask, asks};
pub use choose::choose;
pub(crate) use fill::fill;
pub use fill::{node_range, unsettled};
pub use load::Load;
pub use range::PortRange;

/// On a Pod: the ports it asks for, `8080, dns/UDP, 9000/SCTP@192.0.2.1`.
pub const ASK: &str = "seaway.io/random-host-ports";
/// On a Pod, by the agent: what it got, see [`told`].
pub const TOLD: &str = "seaway.io/host-ports";
/// On a Pod, by the agent: `host-port.seaway.io/8080-tcp` is the number alone, for `fieldRef` of an environment.
pub const ONE: &str = "host-port.seaway.io/";
/// On a Node: the range to choose from there, instead of the cluster's.
pub const RANGE: &str = "seaway.io/host-port-range";
/// In `status.capacity` of a Node, by the agent: how many ports the range has. A pod that requests as many as it asks for is
/// placed by any scheduler where there are some.
pub const RESOURCE: &str = "seaway.io/host-ports";

/// What a node knows of its ports beyond the cluster's objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortsHere {
    /// Ports in use, with the UID of the pod that has them; none when it is the node itself or a container that is no
    /// pod's.
    pub held: BTreeMap<PortKey, Option<Box<str>>>,
    /// What was chosen for pods, by UID, told or not.
    pub chosen: BTreeMap<Box<str>, Vec<HostPort>>,
    /// UIDs of the pods that are attached: what they have stays.
    pub attached: BTreeSet<Box<str>>,
}

/// What a Pod tells of its ports; nothing when it tells nothing, or what no agent wrote.
#[must_use]
pub fn told(pod: &Pod) -> Vec<HostPort> {
    pod.asks.get(TOLD).map(read).unwrap_or_default()
}

/// Reads the value of [`TOLD`].
#[must_use]
pub fn read(text: &str) -> Vec<HostPort> {
    let list: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    list.iter().filter_map(one).collect()
}

fn one(v: &Value) -> Option<HostPort> {
    let port = |k: &str| v.get(k)?.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    let proto = v.get("protocol")?.as_str()?.parse().ok()?;
    let host_ip = match v.get("hostIP") {
        None => None,
        Some(a) => Some(a.as_str()?.parse().ok()?),
    };
    Some(HostPort { host: PortKey { proto, port: port("hostPort")? }, host_ip, container_port: port("containerPort")? })
}

/// [`TOLD`] for these ports.
#[must_use]
pub fn telling(ports: &[HostPort]) -> String {
    let all = ports.iter().map(|p| {
        let mut v = json!({
            "containerPort": p.container_port, "protocol": p.host.proto.to_string(), "hostPort": p.host.port,
        });
        if let Some(a) = p.host_ip {
            v["hostIP"] = a.to_string().into();
        }
        v
    });
    Value::Array(all.collect()).to_string()
}

/// Every annotation that tells of these ports.
#[must_use]
pub fn annotations(ports: &[HostPort]) -> BTreeMap<String, Option<String>> {
    let one = |p: &HostPort| {
        let proto = p.host.proto.to_string().to_ascii_lowercase();
        (format!("{ONE}{}-{proto}", p.container_port), Some(p.host.port.to_string()))
    };
    let mut out: BTreeMap<_, _> = ports.iter().map(one).collect();
    out.insert(TOLD.into(), Some(telling(ports)));
    out
}

/// What a container of ours finds in its environment: `SEAWAY_HOST_PORT_8080_TCP`, and `SEAWAY_HOST_PORT` when there is one
/// alone.
#[must_use]
pub fn environment(ports: &[HostPort]) -> BTreeMap<String, String> {
    let one =
        |p: &HostPort| (format!("SEAWAY_HOST_PORT_{}_{}", p.container_port, p.host.proto), p.host.port.to_string());
    let mut out: BTreeMap<_, _> = ports.iter().map(one).collect();
    if let [p] = ports {
        out.insert("SEAWAY_HOST_PORT".into(), p.host.port.to_string());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_again() {
        let port = |proto: &str, port, to, ip: Option<&str>| HostPort {
            host: PortKey { proto: proto.parse().unwrap(), port },
            host_ip: ip.map(|i| i.parse().unwrap()),
            container_port: to,
        };
        let ports = [
            port("TCP", 20_001, 80, None),
            port("UDP", 20_002, 80, Some("2001:db8::1")),
            port("SCTP", 3, 4, Some("192.0.2.1")),
        ];
        let pod = Pod { asks: [(TOLD, telling(&ports).as_str())].into_iter().collect(), ..Pod::default() };
        assert_eq!(told(&pod), ports);
        let notes = annotations(&ports);
        assert_eq!(notes["host-port.seaway.io/80-udp"].as_deref(), Some("20002"));
        assert_eq!(notes.len(), 4);
        let env = environment(&ports);
        assert_eq!((env["SEAWAY_HOST_PORT_4_SCTP"].as_str(), env.len()), ("3", 3));
        assert_eq!(environment(&ports[..1])["SEAWAY_HOST_PORT"], "20001");
        for text in
            ["", "{}", "[1]", "[{\"hostPort\":0}]", "[{\"hostPort\":70000,\"containerPort\":1,\"protocol\":\"TCP\"}]"]
        {
            let pod = Pod { asks: [(TOLD, text)].into_iter().collect(), ..Pod::default() };
            assert_eq!(told(&pod), [], "{text}");
        }
    }
}
