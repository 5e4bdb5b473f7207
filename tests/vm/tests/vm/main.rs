//! Tests that run in the machine: see the crate's own page (`src/lib.rs`). A new one is a function whose first line is
//! `in_vm!();`, in the file of its subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod devices;
mod features;
mod links;
mod pages;
mod plugins;
mod rt;
mod sctp;
mod suites;
mod tools;

// What the tests of the CNI plugins make use of: a node, ours and the reference's plugins, containers wired by hand.
/// Requests on the kernel and on its fake.
#[path = "../../../tests/kernel_rt/agree.rs"]
mod agree;
#[path = "../../../../bins/seaway-cni/tests/common/mod.rs"]
mod common;
#[path = "../../../../bins/seaway-cni/tests/plugins/twin.rs"]
mod twin;
#[path = "../../../../bins/seaway-cni/tests/plugins/wires.rs"]
mod wires;
/// One node as a router between pods and the world, as the tests of the nftables plane have it.
#[allow(dead_code)] // a part of it is used here
#[path = "../../../tests/kernel_nft/world.rs"]
mod world;
