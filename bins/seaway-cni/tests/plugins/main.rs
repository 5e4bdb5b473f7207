//! The reference plugins' names: ours beside the reference ones (Debian's containernetworking-plugins) with the same
//! configuration, in namespaces of their own; what both answer and leave in the kernel is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod twin;

mod bandwidth;
mod bridge;
mod calico;
mod dhcp;
mod firewall;
mod flannel;
mod host_device;
mod host_local;
mod loopback;
mod macvlan;
mod portmap;
mod ptp;
mod sbr;
mod static_ips;
mod tap;
mod tuning;
mod wires;
