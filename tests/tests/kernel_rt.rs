//! rtnetlink and the fabric against the real kernel, in fresh network namespaces, with real packets; and the same
//! requests against the kernel and its fake.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests, helpers included

#[path = "kernel_rt/agree.rs"]
mod agree;
#[path = "kernel_rt/backends.rs"]
mod backends;
#[path = "kernel_rt/cases.rs"]
mod cases;
#[path = "kernel_rt/changes.rs"]
mod changes;
#[path = "kernel_rt/kinds.rs"]
mod kinds;
#[path = "kernel_rt/switch.rs"]
mod switch;
#[path = "kernel_rt/world.rs"]
mod world;
