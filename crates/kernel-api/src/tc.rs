//! Traffic control: queueing disciplines and filters of links (tc(8); include/uapi/linux/{pkt_sched,pkt_cls}.h).

use std::fmt;
use std::time::Duration;

use types::{Cidr, IfName};

pub use crate::guard::{EXTENSIONS, Guard, GuardError, ND_OPTIONS};

/// A queueing discipline of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Qdisc {
    /// The link.
    pub link: IfName,
    /// What it is.
    pub kind: QdiscKind,
}

/// What a queueing discipline is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum QdiscKind {
    /// At the root: token bucket filter.
    Tbf(Tbf),
    /// At the root: hierarchical token bucket with a class that is limited and one that is not. It is made as a whole:
    /// EINVAL where one or a token bucket is, and for a token bucket where one is.
    Htb(Htb),
    /// A place for filters on what comes in and goes out (`TC_H_CLSACT`). It goes with its link.
    Clsact,
    /// A place for filters on what comes in (`TC_H_INGRESS`), as other programs make it. Only observed.
    Ingress,
    /// Any other that is not the kernel's default, by its name. Only observed.
    Other(String),
}

impl QdiscKind {
    /// Where it is.
    #[must_use]
    pub fn slot(&self) -> QdiscSlot {
        match self {
            Self::Clsact | Self::Ingress => QdiscSlot::Clsact,
            Self::Tbf(_) | Self::Htb(_) | Self::Other(_) => QdiscSlot::Root,
        }
    }
}

/// Where a queueing discipline is on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QdiscSlot {
    /// What goes out queues there.
    Root,
    /// The place of `clsact` and `ingress`, of which a link has one.
    Clsact,
}

/// A token bucket filter (tc-tbf(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tbf {
    /// Rate in bytes per second.
    pub rate: u64,
    /// Bucket in bytes: what may be sent at once. Longer packets than that are dropped, but segmented ones are cut.
    pub burst: u32,
    /// What may wait, in bytes.
    pub limit: u32,
}

impl Tbf {
    /// Packets wait `latency` at most, as after `latency` of `tc qdisc add ... tbf`.
    #[must_use]
    pub fn new(rate: u64, burst: u32, latency: Duration) -> Self {
        let waiting = u128::from(rate) * latency.as_micros() / 1_000_000 + u128::from(burst);
        Self { rate, burst, limit: u32::try_from(waiting).unwrap_or(u32::MAX) }
    }

    /// Whether `observed` is this one. The kernel keeps the bucket as a time in ticks of 64 ns, so that its bytes come
    /// back rounded.
    #[must_use]
    pub fn is(&self, observed: &Self) -> bool {
        let tick = self.rate.saturating_mul(64) / 1_000_000_000 + 1;
        (self.rate, self.limit) == (observed.rate, observed.limit)
            && u64::from(self.burst.abs_diff(observed.burst)) <= tick
    }
}

/// Destinations of an [`Htb`] at most: its classifier looks at each packet.
pub const DESTINATIONS: usize = 128;

/// A hierarchical token bucket (tc-htb(8)) with two classes and one classifier that looks at where a packet goes. As
/// observed it may lack parts: then the rate is 0 or there are no destinations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Htb {
    /// Rate of the limited class in bytes per second.
    pub rate: u64,
    /// Its bucket in bytes.
    pub burst: u32,
    /// Whether the packets to `destinations` are those that are limited; else all others are.
    pub listed: bool,
    /// Of both families, at most [`DESTINATIONS`].
    pub destinations: Vec<Cidr>,
}

impl Htb {
    /// The class that is limited, and the one that is not (`1:30` and `1:1`, as the reference plugin has them).
    pub const LIMITED: u16 = 0x30;
    /// See [`Self::LIMITED`].
    pub const FREE: u16 = 1;
}

/// A filter of a link's `clsact`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The link.
    pub link: IfName,
    /// On what comes in or what goes out.
    pub hook: Hook,
    /// Lower ones look first (`pref`), 1 to 65535. One filter of ours per link, hook and priority.
    pub priority: u16,
    /// What it does.
    pub kind: FilterKind,
}

/// Where a filter looks, as its link sees it. What a pod sends comes in at the host's end of its veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `TC_H_MIN_INGRESS`
    Ingress,
    /// `TC_H_MIN_EGRESS`
    Egress,
}

/// What a filter does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterKind {
    /// Drops what does not carry the sender's own addresses; the rest goes on to the next filter.
    Guard(Guard),
    /// Everything leaves by another link, whose index this is (an `ifb`).
    Redirect {
        /// The index.
        to: u32,
    },
    /// Anything we never make, by its classifier. Only observed.
    Other(String),
}

impl fmt::Display for QdiscKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tbf(t) => write!(f, "root tbf rate {}bps burst {}b limit {}b", t.rate, t.burst, t.limit),
            Self::Htb(h) => {
                write!(
                    f,
                    "root htb rate {}bps burst {}b {} dst",
                    h.rate,
                    h.burst,
                    if h.listed { "for" } else { "but" }
                )?;
                h.destinations.iter().try_for_each(|d| write!(f, " {d}"))
            }
            Self::Clsact => f.write_str("clsact"),
            Self::Ingress => f.write_str("ingress"),
            Self::Other(k) => f.write_str(k),
        }
    }
}

impl fmt::Display for Qdisc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev {} {}", self.link, self.kind)
    }
}

impl fmt::Display for QdiscSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Clsact => "clsact",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev {} {} pref {} ", self.link, self.hook, self.priority)?;
        match &self.kind {
            FilterKind::Guard(g) => write!(f, "guard {g}"),
            FilterKind::Redirect { to } => write!(f, "u32 match u32 0 0 action mirred egress redirect dev #{to}"),
            FilterKind::Other(k) => f.write_str(k),
        }
    }
}
