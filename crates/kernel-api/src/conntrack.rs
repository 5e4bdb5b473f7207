//! Tracked connections: only what services need, to forget flows to endpoints that are gone.

use std::net::IpAddr;

use types::{Family, Proto};

use crate::RequestError;

/// The connection table of one network namespace (nfnetlink, `NFNL_SUBSYS_CTNETLINK`).
pub trait Conntrack {
    /// Deletes every entry among these that `stale` accepts; returns how many. One walk over the table: the kernel shows
    /// what is among these (`CTA_FILTER`, since Linux 5.8; before, all of the family) and perhaps more, `stale` is asked
    /// about those that are. Streamed, so a large table costs time and not memory.
    ///
    /// # Errors
    /// When the table cannot be read. An entry that vanished meanwhile is no error.
    fn delete(&mut self, among: &Among, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError>;
}

/// Which entries are looked at: those whose first packet was so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Among {
    /// Transport protocol.
    pub proto: Proto,
    /// Address family.
    pub family: Family,
    /// Sent to this address; `None` is any.
    pub addr: Option<IpAddr>,
    /// Sent to this port; `None` is any.
    pub port: Option<u16>,
}

impl Among {
    /// The fewest entries that hold every flow to one of these; `None` as an address is any.
    pub fn all(proto: Proto, family: Family, to: impl Iterator<Item = (Option<IpAddr>, u16)> + Clone) -> Self {
        let first = to.clone().next();
        let addr = first.and_then(|t| t.0).filter(|a| to.clone().all(|t| t.0 == Some(*a)));
        let port = first.map(|t| t.1).filter(|p| to.clone().all(|t| t.1 == *p));
        Self { proto, family, addr, port }
    }

    /// Whether a flow is one of them.
    #[must_use]
    pub fn has(&self, f: &Flow) -> bool {
        f.proto == self.proto
            && Family::of(f.original.dst) == self.family
            && self.addr.is_none_or(|a| a == f.original.dst)
            && self.port.is_none_or(|p| p == f.original.dport)
    }
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
    fn delete(&mut self, among: &Among, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError> {
        (**self).delete(among, stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_have_in_common_narrows() {
        let (a, b) = (IpAddr::from([10, 96, 0, 1]), IpAddr::from([10, 96, 0, 2]));
        let of = |to: &[(Option<IpAddr>, u16)]| {
            let among = Among::all(Proto::Udp, Family::V4, to.iter().copied());
            (among.addr, among.port)
        };
        assert_eq!(of(&[(Some(a), 53)]), (Some(a), Some(53)));
        assert_eq!(of(&[(Some(a), 53), (Some(a), 54)]), (Some(a), None));
        assert_eq!(of(&[(Some(a), 53), (Some(b), 53)]), (None, Some(53)));
        assert_eq!(of(&[(Some(a), 53), (None, 53)]), (None, Some(53)));
        assert_eq!(of(&[(None, 53), (Some(a), 53)]), (None, Some(53)));
        assert_eq!(of(&[]), (None, None));
    }
}
