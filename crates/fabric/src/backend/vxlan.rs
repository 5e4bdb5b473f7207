//! vxlan: one device, and per remote node one FDB entry and per range one route and one neighbour (RFC 7348, all
//! static: nothing is learned, no miss reaches userspace).

use std::net::IpAddr;

use intent::Vxlan;
use kernel_api::rt::{FdbEntry, Neighbour, Route, RouteTo};
use plan::Caps;
use types::{Cidr, Family, Mac, OwnedName};

use crate::image::VxlanDevice;

/// Outer IP, UDP and VXLAN headers and the inner Ethernet header (RFC 7348 section 5): 20+8+8+14, or 40+8+8+14.
#[must_use]
pub const fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The smallest MTU of a link that carries the family (RFC 791; RFC 8200 section 5). Below 1280 the kernel turns IPv6
/// off on the link.
const fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

/// The device, or the field that stands against it and why.
pub fn device(v: &Vxlan, caps: &Caps, families: &[Family]) -> Result<VxlanDevice, (&'static str, String)> {
    if caps.missing.contains("vxlan") {
        return Err((
            "spec.backend",
            "this kernel has no VXLAN: load the module `vxlan` (CONFIG_VXLAN), or use backend host-gw".into(),
        ));
    }
    let Some(uplink) = &caps.uplink else {
        return Err((
            "status.uplink",
            "no interface towards the other nodes is known, so the MTU of the VXLAN device cannot be told: give the \
             node a default route, or name the interface with --iface"
                .into(),
        ));
    };
    let over = overhead(Family::of(v.local));
    let mtu = uplink.mtu.saturating_sub(over);
    for f in families {
        if mtu < least_mtu(*f) {
            return Err((
                "status.uplink",
                format!(
                    "the MTU of {} is {}: {mtu} would be left inside VXLAN, and {f} needs {}; raise it to {} at least, \
                     or use backend host-gw",
                    uplink.name,
                    uplink.mtu,
                    least_mtu(*f),
                    least_mtu(*f) + over
                ),
            ));
        }
    }
    Ok(VxlanDevice { vni: v.vni, port: v.port, local: Some(v.local), mac: Some(v.mac), mtu, up: true, alien: false })
}

/// The three rows of one range.
#[must_use]
pub fn rows(device: &OwnedName, cidr: Cidr, remote: IpAddr, mac: Mac, gateway: IpAddr) -> (Route, Neighbour, FdbEntry) {
    let link = device.name().clone();
    let to = RouteTo::Via { gateway, link: link.clone(), onlink: true };
    (Route::new(cidr, to), Neighbour { link: link.clone(), addr: gateway, mac }, FdbEntry { link, mac, remote })
}
