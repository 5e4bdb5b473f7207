//! The table of Service cases: cluster objects, packets, and what must become of each. By subject: `rows/`.
//!
//! Names stand for addresses of the family that a case runs in: `p0 p1 p2` are pods of this node (zone a), `far` is a
//! pod of node1 (zone b), `node` and `node2` are this node's first and second address, `node1` is the other node's,
//! `world` is outside the cluster; `vip ext lb proxied` are addresses of Services (`vip2` that of a newcomer), `free` would
//! be one.

mod addresses;
mod endpoints;

pub use addresses::ADDRESSES;
pub use endpoints::ENDPOINTS;

/// Every case.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    ADDRESSES.iter().chain(ENDPOINTS)
}

/// One Service, its slices, and packets.
pub struct Case {
    pub name: &'static str,
    /// Fields of `spec` over those of [`SERVICE`]; `status` and `labels` are of the object. `settings` are the cluster's,
    /// `serviceCIDRs` and `pools` further objects, of these ranges and load balancers' addresses. `zone` is this node's; none
    /// where it is empty. `newcomer` is the `spec` of a younger Service with endpoint p2:8081 behind each of its ports.
    pub service: &'static str,
    /// Endpoints as `name=port,..[@version][ headless]: endpoint condition.., ..`. Conditions: `unready`, `going`
    /// (serving while it terminates), `gone` (no longer serving), `leaving` (terminates, and is said to be ready as
    /// `publishNotReadyAddresses` asks), `zones=a+b`, `nodes=node0`.
    pub slices: &'static [&'static str],
    /// From, to, and what becomes of it: `any` or `local` with endpoints and what becomes of the source, `plain`, `drop`,
    /// `reject`. `4` or `6` in front: only in that family.
    pub asks: &'static [(&'static str, &'static str, &'static str)],
}

/// What a case's Service is unless it says otherwise.
pub const SERVICE: &str = r#"{"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"],
    "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}"#;
