//! Owns: the CNI plugins that users know by name (`bridge`, `host-local`, `portmap`, ...): each takes the reference
//! plugin's configuration and gives the same observable result.
//! Never does: the protocol around the verbs and delegation (crate `cni`); anything of the agent or the cluster.
//! Tested by: tests/ (the kernel, in fresh namespaces; the reference plugins beside ours), tests/vm for devices that
//! not every kernel has.

mod attach;
mod bandwidth;
mod bridge;
mod calico;
mod device;
pub mod dhcp;
mod envargs;
mod firewall;
pub mod flannel;
pub mod fuzz;
mod host_device;
mod host_local;
mod loopback;
mod portmap;
mod ptp;
mod sbr;
mod static_ips;
mod tuning;
mod vrf;

use cni::{Code, Error, Plugin};
use kernel_api::machine::{Machine, Netns};

/// The names that [`by_name`] knows, sorted.
#[rustfmt::skip] // a line each, so that two additions do not meet
pub const NAMES: &[&str] = &[
    "bandwidth",
    "bridge",
    "calico",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    cni::IPAM_TYPE,
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];

/// The plugin of that name.
#[must_use]
pub fn by_name<M: Machine>(name: &str) -> Option<Box<dyn Plugin<M>>> {
    Some(match name {
        "bandwidth" => Box::new(bandwidth::Bandwidth),
        "bridge" => Box::new(bridge::Bridge),
        "calico" => Box::new(calico::Calico),
        "dhcp" => Box::new(dhcp::Dhcp),
        "dummy" => Box::new(device::Plug(device::Kind::Dummy)),
        "firewall" => Box::new(firewall::Firewall),
        "flannel" => Box::new(flannel::Flannel),
        "host-device" => Box::new(host_device::HostDevice),
        "host-local" => Box::new(host_local::HostLocal),
        "ipvlan" => Box::new(device::Plug(device::Kind::Ipvlan)),
        "loopback" => Box::new(loopback::Loopback),
        "macvlan" => Box::new(device::Plug(device::Kind::Macvlan)),
        "portmap" => Box::new(portmap::Portmap),
        "ptp" => Box::new(ptp::Ptp),
        "sbr" => Box::new(sbr::Sbr),
        cni::IPAM_TYPE => Box::new(cni::SeawayIpam),
        "static" => Box::new(static_ips::Static),
        "tap" => Box::new(device::Plug(device::Kind::Tap)),
        "tuning" => Box::new(tuning::Tuning),
        "vlan" => Box::new(device::Plug(device::Kind::Vlan)),
        "vrf" => Box::new(vrf::Vrf),
        _ => return None,
    })
}

/// Rtnetlink inside a container's namespace, which is at `path`.
pub(crate) fn inside<N: Netns>(netns: &N, path: &str) -> Result<N::Rt, Error> {
    netns.rtnetlink().map_err(|e| Error::new(Code::Kernel, format!("open rtnetlink in {path}: {e}")))
}

/// nf_tables of the node's own namespace.
pub(crate) fn nft<M: Machine>(machine: &mut M) -> Result<M::Nft, Error> {
    machine.nft().map_err(says("open nf_tables in the node's namespace"))
}

/// An error of opening something of the kernel's.
pub(crate) fn says(what: &str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::new(Code::Kernel, format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_served_and_in_order() {
        assert!(NAMES.is_sorted());
        for name in NAMES {
            assert!(by_name::<kernel::Linux>(name).is_some(), "{name}");
        }
        assert!(by_name::<kernel::Linux>("nothing").is_none());
    }
}
