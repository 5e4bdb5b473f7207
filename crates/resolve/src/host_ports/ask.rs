//! What a pod asks for.

use std::net::IpAddr;

use types::{PortKey, Proto};

use super::ASK;
use crate::snapshot::{DEFAULT_PROTO, Pod};

/// A port of the container that any port of the node shall lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// The container's port.
    pub to: PortKey,
    /// Only on this address of the node; on every one when absent.
    pub host_ip: Option<IpAddr>,
}

/// More than any pod needs.
const MOST: usize = 64;

/// What a pod asks for; nothing without the annotation [`ASK`].
///
/// # Errors
/// What is wrong with it and how to write it, for a person.
pub fn asks(pod: &Pod) -> Result<Vec<Ask>, String> {
    let Some(text) = pod.asks.get(ASK) else { return Ok(Vec::new()) };
    let mut out: Vec<Ask> = Vec::new();
    for word in text.split([',', ' ', '\n', '\t']).filter(|w| !w.is_empty()) {
        let (rest, ip) = match word.split_once('@') {
            Some((rest, ip)) => (rest, Some(address(word, ip)?)),
            None => (word, None),
        };
        for to in ports(pod, word, rest)? {
            if out.iter().any(|a| a.to == to) {
                return Err(format!("has port {to} twice: ask for each once"));
            }
            if let Some(fixed) = pod.ports.iter().find(|p| p.port == to && p.host_port.is_some()) {
                let port = fixed.host_port.unwrap_or_default();
                return Err(format!(
                    "asks for port {to}, which has hostPort {port} in the pod's spec: remove one of the two"
                ));
            }
            out.push(Ask { to, host_ip: ip });
        }
        if out.len() > MOST {
            return Err(format!("asks for more than {MOST} ports: ask for fewer"));
        }
    }
    if out.is_empty() {
        return Err(
            "asks for nothing: write ports, e.g. \"8080, 53/UDP\", or \"*\" for all that the containers have".into()
        );
    }
    out.sort();
    Ok(out)
}

fn address(word: &str, ip: &str) -> Result<IpAddr, String> {
    let bare = ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).unwrap_or(ip);
    bare.parse().map_err(|_| format!("has {word:?}: an address of the node is needed after @, e.g. 8080/TCP@192.0.2.1"))
}

/// The ports of a word without its address.
fn ports(pod: &Pod, word: &str, rest: &str) -> Result<Vec<PortKey>, String> {
    let (port, proto) = match rest.split_once('/') {
        Some((port, proto)) => {
            let read: Proto =
                proto.parse().map_err(|_| format!("has {word:?}: TCP, UDP or SCTP is needed after /, e.g. 53/UDP"))?;
            (port, Some(read))
        }
        None => (rest, None),
    };
    if port == "*" {
        let of = |p: &&crate::ContainerPort| p.host_port.is_none() && proto.is_none_or(|q| q == p.port.proto);
        let mut all: Vec<PortKey> = pod.ports.iter().filter(of).map(|p| p.port).collect();
        all.sort();
        all.dedup();
        return if all.is_empty() {
            Err(format!("has {word:?}, and no container has such a port: name them"))
        } else {
            Ok(all)
        };
    }
    if port.bytes().all(|b| b.is_ascii_digit()) {
        let number = port.parse::<u16>().ok().filter(|n| *n > 0);
        let port = number.ok_or_else(|| format!("has {word:?}: a port from 1 to 65535 is needed"))?;
        return Ok(vec![PortKey { proto: proto.unwrap_or(DEFAULT_PROTO), port }]);
    }
    let named = pod.ports.iter().find(|p| *p.name == *port && proto.is_none_or(|q| q == p.port.proto));
    named.map(|p| vec![p.port]).ok_or_else(|| {
        format!("has {word:?}, and no container has a port of that name: write a number, or a name of spec.containers[].ports[]")
    })
}
