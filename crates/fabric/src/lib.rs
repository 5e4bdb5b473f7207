//! Owns: node-to-node and pod links as a dataplane: the VXLAN device with its addresses, routes, permanent neighbours,
//! FDB entries, pod links' host routes, and the sysctls forwarding needs; one module per backend.
//! Never does: services, policy, masquerade; an effect outside `adapter`; it never touches a foreign link, route or
//! address.
//! Tested by: properties and goldens here (tests/), the same requests against kernel and fake, and real packets in
//! fresh network namespaces (the workspace's tests/).

mod adapter;
mod backend;
mod compile;
mod image;
mod parse;
mod plan;
mod render;
mod trace;

pub use adapter::{FabricKernel, Joined};
pub use image::{ForeignRoute, Image, Index, VxlanDevice, knob};
pub use parse::{Observation, parse};
pub use render::Op;
pub use trace::{Step, Way, way};

use ::plan::{Caps, Compiled, Dataplane};
use intent::{NodeIntent, Packet, Verdict};

/// The fabric as a [`Dataplane`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Fabric;

impl Dataplane for Fabric {
    type Image = Image;
    type Op = Op;

    fn name(&self) -> &'static str {
        "fabric"
    }

    fn compile(&self, intent: &NodeIntent, caps: &Caps) -> Compiled<Image> {
        compile::compile(intent, caps)
    }

    fn plan(&self, want: &Image, have: &Image) -> Vec<Vec<Op>> {
        plan::plan(want, have)
    }

    fn trace(&self, image: &Image, packet: &Packet) -> Verdict {
        trace::trace(image, packet)
    }
}
