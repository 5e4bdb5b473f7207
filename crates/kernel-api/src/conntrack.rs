//! Tracked connections: only what services need, to forget flows to endpoints that are gone.

use std::net::IpAddr;

use types::Proto;

use crate::RequestError;

/// The connection table of one network namespace (nfnetlink, `NFNL_SUBSYS_CTNETLINK`).
pub trait Conntrack {
    /// Deletes every entry that `stale` accepts, of one protocol; returns how many. The dump is streamed, so a large
    /// table costs time and not memory.
    ///
    /// # Errors
    /// When the table cannot be read. An entry that vanished meanwhile is no error.
    fn delete(&mut self, proto: Proto, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError>;
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Transport protocol.
    pub proto: Proto,
    /// As the first packet was.
    pub original: Tuple,
    /// As an answer is.
    pub reply: Tuple,
    /// `IPS_DST_NAT`: the destination was translated.
    pub dnat: bool,
    /// A TCP connection that is over: only its entry lingers (TIME_WAIT or CLOSE).
    pub over: bool,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl<T: Conntrack + ?Sized> Conntrack for &mut T {
    fn delete(&mut self, proto: Proto, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError> {
        (**self).delete(proto, stale)
    }
}
