//! The two traits and the pass that joins them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::net::IpAddr;

use intent::{NodeIntent, Packet, Verdict};
use serde::{Deserialize, Serialize};
use types::{Cidr, Family, IfName};

/// One kernel mechanism's way to say an intent. Pure: property-tested.
pub trait Dataplane {
    /// The kernel objects this plane owns, as a plain value.
    type Image: Debug + Clone + PartialEq;
    /// One change of one object. `Display` is the line a person reads in `seaway plan`.
    type Op: Debug + fmt::Display;

    /// A short stable name: `fabric`, `nftables`.
    fn name(&self) -> &'static str;
    /// The image that says the intent on a machine with these capabilities.
    fn compile(&self, intent: &NodeIntent, caps: &Caps) -> Compiled<Self::Image>;
    /// What brings `have` to `want`: each inner vector is one kernel transaction; the outer order is make before use,
    /// stop using before break.
    fn plan(&self, want: &Self::Image, have: &Self::Image) -> Vec<Vec<Self::Op>>;
    /// [`Dataplane::plan`], each transaction made when the one before has run: so that one is held at a time, not all.
    fn batches<'a>(
        &'a self,
        want: &'a Self::Image,
        have: &'a Self::Image,
    ) -> Box<dyn Iterator<Item = Vec<Self::Op>> + 'a> {
        Box::new(self.plan(want, have).into_iter())
    }
    /// What the objects of an image do to a packet.
    fn trace(&self, image: &Self::Image, packet: &Packet) -> Verdict;
}

/// The effects of one dataplane: thin.
pub trait Kernel<D: Dataplane> {
    /// Reads back only what the plane owns.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn observe(&mut self) -> Result<D::Image, KernelError>;

    /// Runs one batch as one transaction where the mechanism has them, else op by op up to the first failure.
    ///
    /// # Errors
    /// The first op that failed.
    fn commit(&mut self, batch: &[D::Op]) -> Result<(), KernelError>;
}

/// What the machine is and can do, as far as compiling depends on it. Observed by the agent, a plain value here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Caps {
    /// The interface that other nodes are reached by, when known.
    pub uplink: Option<Uplink>,
    /// Other interfaces with addresses, by name.
    pub links: BTreeMap<IfName, HostLink>,
    /// Kernel features that are missing, by the name a person would search for (`vxlan`, `nft_numgen`).
    pub missing: BTreeSet<String>,
}

/// The interface that other nodes are reached by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// An interface of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostLink {
    /// MTU in bytes.
    pub mtu: u32,
    /// Its addresses with the prefix each makes on-link.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl Caps {
    /// The interface on which `addr` is a neighbour, by the longest on-link prefix; `None` when a router is between.
    #[must_use]
    pub fn on_link(&self, addr: IpAddr) -> Option<&IfName> {
        self.links
            .iter()
            .flat_map(|(name, l)| l.addresses.iter().map(move |(a, len)| (name, *a, *len)))
            .filter(|(_, a, len)| {
                // A host prefix makes nothing but itself on-link.
                *len < Family::of(*a).bits() && Cidr::new(*a, *len).is_some_and(|c| c.contains(addr))
            })
            .max_by_key(|(_, _, len)| *len)
            .map(|(name, _, _)| name)
    }
}

/// An image and what could not be said in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled<I> {
    /// The wanted objects.
    pub image: I,
    /// What this plane cannot express on this machine. Shown in status and events, never dropped silently.
    pub refused: Vec<Refused>,
}

/// One thing of the intent that a plane cannot express.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refused {
    /// The object: `Node/node2`, `Service/default/web:http`.
    pub object: String,
    /// The field of it: `spec.sessionAffinity`.
    pub field: String,
    /// Why not, and what to do.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.object, self.field, self.why)
    }
}

/// What the agent does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same pass again, soon.
    RetrySoon,
    /// The kernel is not as we believed: observe before planning.
    Reobserve,
    /// Leave what is programmed and wait for a person: a missing feature or right does not come back by trying.
    FailClosed,
}

/// An effect that failed.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {source}")]
pub struct KernelError {
    /// The op or query as printed in a plan; names the object.
    pub op: String,
    /// What the kernel said.
    pub source: Box<dyn std::error::Error + Send + Sync>,
    /// What the agent does next.
    pub next: Next,
}

impl KernelError {
    /// What the agent does next.
    #[must_use]
    pub fn next(&self) -> Next {
        self.next
    }
}

/// A plan of one plane: printable before it runs.
#[derive(Debug)]
pub struct Plan<Op> {
    /// Transactions in order.
    pub batches: Vec<Vec<Op>>,
}

impl<Op> Plan<Op> {
    /// The number of ops.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batches.iter().map(Vec::len).sum()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<Op: fmt::Display> fmt::Display for Plan<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, batch) in self.batches.iter().enumerate() {
            writeln!(f, "  batch {} ({} ops)", n + 1, batch.len())?;
            for op in batch {
                writeln!(f, "    {op}")?;
            }
        }
        Ok(())
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Converged {
    /// Ops committed.
    pub ops: usize,
    /// Transactions committed.
    pub batches: usize,
}

/// One pass: plan from `have` (observed now when absent) to `want` and commit. Returns what was done; the caller may
/// keep `want` as the next `have` until something foreign changes the kernel.
///
/// # Errors
/// The first effect that failed; what was committed before it stays, and the next pass starts from an observation.
pub fn converge<D: Dataplane, K: Kernel<D> + ?Sized>(
    plane: &D,
    kernel: &mut K,
    want: &D::Image,
    have: Option<&D::Image>,
) -> Result<Converged, KernelError> {
    let observed;
    let have = match have {
        Some(h) => h,
        None => {
            observed = kernel.observe()?;
            &observed
        }
    };
    commit_all(plane, kernel, want, have, &mut |_| {})
}

/// The second half of [`converge`]: plans and commits. `before` is told the number of ops of each transaction before it
/// runs.
///
/// # Errors
/// As [`converge`].
pub fn commit_all<D: Dataplane, K: Kernel<D> + ?Sized>(
    plane: &D,
    kernel: &mut K,
    want: &D::Image,
    have: &D::Image,
    before: &mut dyn FnMut(usize),
) -> Result<Converged, KernelError> {
    let mut done = Converged::default();
    for batch in plane.batches(want, have) {
        if batch.is_empty() {
            continue;
        }
        before(batch.len());
        kernel.commit(&batch)?;
        done.ops += batch.len();
        done.batches += 1;
    }
    Ok(done)
}
