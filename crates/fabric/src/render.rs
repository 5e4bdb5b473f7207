//! One change, printed as the command that does the same.

use std::fmt;

use kernel_api::rt::{ROUTE_PROTOCOL, RtRequest};
use types::Family;

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A link, address, route, neighbour or forwarding entry.
    Rt(RtRequest),
    /// A sysctl.
    Sysctl {
        /// Path relative to /proc/sys.
        path: Box<str>,
        /// The value to write.
        value: Box<str>,
    },
}

impl From<RtRequest> for Op {
    fn from(r: RtRequest) -> Self {
        Self::Rt(r)
    }
}

/// A shell in the node's namespace takes every line (iproute2 6.1, procps).
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { path, value } => write!(f, "sysctl -w {path}={value}"),
            Self::Rt(r @ (RtRequest::FdbReplace(_) | RtRequest::FdbDel(_))) => write!(f, "bridge {r}"),
            // The kernel is told never to look for duplicates of these addresses: no one else has them, and a packet
            // may be sent from them at once.
            Self::Rt(RtRequest::AddressAdd(a)) if a.addr.is_ipv6() => write!(f, "ip address replace {a} nodad"),
            Self::Rt(RtRequest::AddressAdd(a)) => write!(f, "ip address replace {a}"),
            Self::Rt(
                r @ (RtRequest::RouteReplace(route) | RtRequest::RouteAdd(route) | RtRequest::RouteDel(route)),
            ) => {
                let six = if route.family() == Family::V6 { " -6" } else { "" };
                write!(f, "ip{six} {r} proto {ROUTE_PROTOCOL}")
            }
            Self::Rt(r) => write!(f, "ip {r}"),
        }
    }
}
