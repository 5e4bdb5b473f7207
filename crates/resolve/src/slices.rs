//! EndpointSlices, and Endpoints that become such: who serves.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{Family, PortKey};

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Label `kubernetes.io/service-name`: a Service of the same namespace.
    pub service: Arc<str>,
    /// Label `endpointslice.kubernetes.io/managed-by`; empty when not set.
    pub managed_by: Arc<str>,
    /// Label `service.kubernetes.io/headless` is set: its endpoints are for names, not for a proxy.
    pub headless: bool,
    /// `metadata.resourceVersion` as the number it is (KEP-5504): the greater was written later. 0 when it is none.
    pub revision: u64,
    /// The controlling owner reference's uid; empty when there is none.
    pub owner_uid: Arc<str>,
    /// `addressType`; `None` for FQDN, which no proxy serves.
    pub family: Option<Family>,
    /// `ports`; one without a number (any port) is left out, as no proxy can serve it.
    pub ports: Box<[SlicePort]>,
    /// `endpoints`.
    pub endpoints: Box<[SliceEndpoint]>,
    /// When what it tells of happened, in milliseconds since 1970 (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggered: Option<u64>,
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlicePort {
    /// `name`; empty when unnamed.
    pub name: Arc<str>,
    /// `port` and `protocol`.
    pub port: PortKey,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// The first of `addresses`: by the API's contract all are the same endpoint.
    pub addr: IpAddr,
    /// `conditions.ready`; unset is true.
    pub ready: bool,
    /// `conditions.serving`; unset is true.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `targetRef.name` when it is a Pod.
    pub pod: Option<Box<str>>,
    /// `hints`, where there are any.
    pub hints: Option<Box<Hints>>,
}

/// An Endpoints object: what EndpointSlices took the place of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoints {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// No endpoints of a Service: label `endpointslice.kubernetes.io/skip-mirror` is `true`, or annotation
    /// `control-plane.alpha.kubernetes.io/leader` is set.
    pub apart: bool,
    /// `subsets`: each address with each port, those of `notReadyAddresses` as not ready.
    pub subsets: Box<[Subset]>,
}

/// Addresses that have the same ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subset {
    /// `addresses` and `notReadyAddresses`.
    pub endpoints: Box<[SliceEndpoint]>,
    /// `ports`.
    pub ports: Box<[SlicePort]>,
}

/// For whom an endpoint is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Box<[Box<str>]>,
    /// `hints.forNodes[].name`.
    pub nodes: Box<[Box<str>]>,
}

impl SliceEndpoint {
    /// The zones that it is meant for.
    #[must_use]
    pub fn zone_hints(&self) -> &[Box<str>] {
        self.hints.as_ref().map_or(&[], |h| &h.zones)
    }

    /// The nodes that it is meant for.
    #[must_use]
    pub fn node_hints(&self) -> &[Box<str>] {
        self.hints.as_ref().map_or(&[], |h| &h.nodes)
    }
}
