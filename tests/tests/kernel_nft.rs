//! nf_tables, conntrack and the Services plane against the real kernel, in fresh network namespaces, with real packets;
//! and the same requests against the kernel and its fake.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

#[path = "kernel_nft/cases.rs"]
mod cases;
#[path = "kernel_nft/foreign.rs"]
mod foreign;
#[path = "kernel_nft/packets.rs"]
mod packets;
#[path = "kernel_nft/plane.rs"]
mod plane;
#[path = "kernel_nft/refusals.rs"]
mod refusals;
#[path = "kernel_nft/sctp.rs"]
mod sctp;
#[path = "kernel_nft/stale.rs"]
mod stale;
#[path = "kernel_nft/table/mod.rs"]
mod table;
#[path = "kernel_nft/tunnel.rs"]
mod tunnel;
#[path = "kernel_nft/world.rs"]
mod world;
