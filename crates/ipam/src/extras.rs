//! What an attachment may have beyond its addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use types::{Cidr, Proto};

/// A port of the node that leads into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Transport protocol.
    pub proto: Proto,
    /// On this address of the node alone; on every one when absent or unspecified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The node's port, 1 to 65535.
    pub host_port: u16,
    /// The container's, 1 to 65535.
    pub container_port: u16,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(a) => write!(f, "host port {}/{}", SocketAddr::new(a, self.host_port), self.proto)?,
            None => write!(f, "host port {}/{}", self.host_port, self.proto)?,
        }
        write!(f, " -> {}", self.container_port)
    }
}

/// What an attachment may send and receive. The directions are the container's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// What it receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// What it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
    /// Which of it.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// Which packets limits are for, by destination, both ways. Lists are sorted, without repeats and not empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Every one.
    #[default]
    All,
    /// Those to one of these.
    Only(Vec<Cidr>),
    /// Those to none of these.
    AllBut(Vec<Cidr>),
}

impl Scope {
    /// Whether it is every one.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// A rate and what may go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bits per second, at least 8.
    pub rate: u64,
    /// Bits; chosen by the rate when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s", self.rate)?;
        self.burst.map_or(Ok(()), |b| write!(f, ", bursts of {b} bit"))
    }
}
