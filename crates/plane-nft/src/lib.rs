//! Owns: Services and masquerade in the nf_tables table `inet seaway`, in a layout whose chains and sets do not grow
//! with the number of Services: [`NftPlane`] (compile, plan, trace), [`render`], [`parse()`], and [`NftKernel`].
//! Never does: I/O beyond the traits of `kernel-api`; touches no table, mark or connection mark of others.
//! Tested by: tests/properties.rs (trace agrees with `intent::translate`; the four properties), tests/goldens.rs, and
//! with real packets tests/kernel_nft.rs of the workspace.

mod adapter;
mod compile;
mod elements;
pub mod foreign;
mod image;
mod key;
mod late;
mod layout;
mod op;
mod parse;
mod plan;
mod ranges;
pub mod render;
mod slots;
mod stale;
mod sticky;
mod trace;
mod tracker;

use ::plan::{Caps, Compiled, Dataplane};
use intent::{NodeIntent, Packet, Verdict};

pub use adapter::{NftKernel, Walk};
pub use elements::{Element, Elements};
pub use image::{Chain, Data, Image, Key, Rule, Set, Shape, table};
pub use layout::MAX_ENDPOINTS;
pub use op::{Forget, Op, RuleText};
pub use parse::parse;
pub use tracker::{Delta, Tracker};

/// [`Dataplane::plan`] with another limit on the ops of one transaction than the default of 8192, which is about 1 MB of
/// netlink. What must change together is never split, so a transaction may be longer.
#[must_use]
pub fn plan_in_chunks(want: &Image, have: &Image, max: usize) -> Vec<Vec<Op>> {
    plan::batches(want, have, max).collect()
}

/// The dataplane of Services on nf_tables (`docs/design.md`; service mode `nftables`).
#[derive(Debug, Clone, Copy, Default)]
pub struct NftPlane;

impl Dataplane for NftPlane {
    type Image = Image;
    type Op = Op;

    fn name(&self) -> &'static str {
        "nftables"
    }

    fn compile(&self, intent: &NodeIntent, caps: &Caps) -> Compiled<Image> {
        compile::compile(intent, caps)
    }

    fn plan(&self, want: &Image, have: &Image) -> Vec<Vec<Op>> {
        self.batches(want, have).collect()
    }

    fn batches<'a>(&'a self, want: &'a Image, have: &'a Image) -> Box<dyn Iterator<Item = Vec<Op>> + 'a> {
        Box::new(plan::batches(want, have, plan::MAX_OPS))
    }

    fn trace(&self, image: &Image, packet: &Packet) -> Verdict {
        trace::trace(image, packet)
    }
}
