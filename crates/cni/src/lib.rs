//! Owns: the CNI protocol (specification 1.1.0 and, on request, 1.0.0, 0.4.0, 0.3.1, 0.3.0) and what ADD, DEL, CHECK,
//! GC and STATUS do to the machine, as plans that are run over [`kernel_api::Rtnetlink`].
//! Never does: anything that needs the agent or the cluster; no async, no clock (time is an argument).
//! Tested by: protocol tables and golden plans in tests/; the real binary on the real kernel in bins/seaway-cni/tests.
//!
//! # How a pod is wired (`"mode": "routed"`)
//! A veth pair whose peer is made inside the pod's namespace under its final name. The pod end has its addresses as /32
//! and /128 and a default route through [`plan::GATEWAY_V4`] and [`plan::GATEWAY_V6`], which no interface owns: a
//! permanent neighbour entry resolves them to [`plan::HOST_MAC`], the fixed hardware address of every host end. The host
//! end has no address; one route per pod address leads to it, and a permanent neighbour entry there resolves the pod.
//! So no packet ever waits for ARP, neighbour discovery or duplicate address detection, and no sysctl (`proxy_arp`,
//! `proxy_ndp`) is involved. Traffic from the node to a pod takes the node's own global address as its source, since
//! the host end has none.
//!
//! Forwarding between pods needs `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding`, which are the agent's to set.

mod args;
mod config;
mod conflist;
mod delegate;
mod error;
mod extras;
mod fields;
pub mod fuzz;
mod gc;
pub mod iface;
mod ipam_call;
mod ipam_plugin;
mod led;
pub mod masq;
pub mod names;
mod networks;
pub mod node;
mod observe;
mod ops;
pub mod plan;
pub mod podspec;
pub mod ports;
mod reply;
mod result;
mod runtime;
mod settle;
pub mod shape;
mod skel;
mod version;

pub use args::{Call, Command, Env, parse_args};
pub use config::NetConf;
pub use conflist::{ConflistSpec, conflist, write_atomically};
pub use error::{Code, Error};
pub use extras::{of_spec, remap, reshape, sweep, unmapped};
pub use fields::{Fields, bad};
pub use gc::{gone, namespace_gone};
pub use ipam_plugin::{IPAM_TYPE, SeawayIpam};
pub use kernel_api::machine::{Machine, Netns};
pub use networks::{has_interface, not_led};
pub use observe::{View, differences};
pub use ops::{Seaway, reattach, remove, remove_if_gone, remove_orphan, rewire, set_mtu, undone};
pub use reply::{merged, result};
pub use result::{CniResult, Dns, Interface, Ip, IpNet, RouteConf, route};
pub use runtime::{CAPABILITIES, range};
pub use skel::{Context, Outcome, Plugin, Registry, serve};
pub use version::Version;

/// The plugin's name: the `type` of a configuration and the name of the binary.
pub const TYPE: &str = "seaway-cni";
