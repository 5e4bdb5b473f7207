//! What was observed, to an image of what is ours.

use std::collections::{BTreeMap, BTreeSet};

use kernel_api::rt::{Address, FdbEntry, Link, LinkKind, Neighbour, ObservedRoute, ROUTE_PROTOCOL, Route, RouteTo};
use types::{Family, IfName, OwnedName};

use crate::image::{ForeignRoute, Image, VxlanDevice, knob, route_link};

/// Everything the kernel said, of all owners.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes of the main table.
    pub routes: Vec<ObservedRoute>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Permanent forwarding entries.
    pub fdb: Vec<FdbEntry>,
    /// Sysctls that exist, by path.
    pub sysctls: BTreeMap<String, String>,
}

/// Picks out what is ours: links by name, routes by protocol number, addresses, neighbours and forwarding entries by
/// the device they are on. The rest is context.
#[must_use]
pub fn parse(o: Observation) -> Image {
    let mut image = Image::default();
    for link in &o.links {
        let Ok(name) = OwnedName::recognise(&link.name) else { continue };
        if name.is_pod_link() {
            image.pod_links.insert(name, link.up);
        } else {
            image.vxlan.insert(name, device(link));
        }
    }
    let on_device =
        |image: &Image, link: &IfName| OwnedName::recognise(link).ok().filter(|n| image.vxlan.contains_key(n));
    for a in o.addresses {
        if let Some(device) = on_device(&image, &a.link) {
            // A longer on-link prefix on our device is not ours to reason about, and the link-local address is the
            // kernel's.
            if a.prefix_len == Family::of(a.addr).bits() && !is_link_local(&a) {
                image.addresses.insert((device, a.addr));
            }
        } else if OwnedName::recognise(&a.link).is_err() {
            image.index.local.insert(a.addr);
        }
    }
    for r in o.routes {
        if r.protocol == ROUTE_PROTOCOL && !is_plugins(&r.route) {
            image.routes.insert(r.route);
        } else {
            let link = route_link(&r.route).cloned();
            image.index.foreign.insert(ForeignRoute { dst: r.route.dst, metric: r.route.metric, link });
        }
    }
    image.neighbours =
        o.neighbours.into_iter().filter(|n| on_device(&image, &n.link).is_some()).collect::<BTreeSet<_>>();
    image.fdb = o.fdb.into_iter().filter(|e| on_device(&image, &e.link).is_some()).collect::<BTreeSet<_>>();
    image.sysctls = sysctls(&o.sysctls);
    image
}

/// Whether a route of our protocol number is a CNI plugin's (`ptp`): a host route through a link that is not ours. It goes
/// with that link, and the node must not take it away from a pod that lives.
fn is_plugins(r: &Route) -> bool {
    let RouteTo::Link(link) = &r.to else { return false };
    r.dst.len() == r.dst.family().bits() && OwnedName::recognise(link).is_err()
}

fn is_link_local(a: &Address) -> bool {
    matches!(a.addr, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn device(link: &Link) -> VxlanDevice {
    let (mac, mtu, up) = (link.mac, link.mtu, link.up);
    match &link.kind {
        LinkKind::Vxlan(p) => VxlanDevice {
            vni: p.vni,
            port: p.port,
            local: p.local,
            mac,
            mtu,
            up,
            alien: p.learning || p.lower.is_some(),
        },
        // Our name on something else: replaced.
        _ => VxlanDevice { vni: 0, port: 0, local: None, mac, mtu, up, alien: true },
    }
}

/// What each sysctl amounts to, so that "good enough" equals what we would write and a laxer setting that someone
/// chose is left alone.
fn sysctls(raw: &BTreeMap<String, String>) -> BTreeMap<Box<str>, Box<str>> {
    let all = raw.get(knob::RP_FILTER_ALL).map_or("0", String::as_str);
    let mut out = BTreeMap::new();
    for (path, value) in raw {
        let value = match path.as_str() {
            knob::RP_FILTER_ALL => continue,
            // The kernel takes the larger of the two (IN_DEV_RPFILTER); only 1 is strict.
            p if p.ends_with("/rp_filter") => {
                if all.max(value.as_str()) == "1" {
                    "1"
                } else {
                    knob::LOOSE
                }
            }
            // 0: no advertisements wanted, so none are lost.
            p if p.ends_with("/accept_ra") => {
                if value == "1" {
                    "1"
                } else {
                    knob::ACCEPT_RA_ROUTER
                }
            }
            // Longer was somebody's choice.
            knob::CT_CLOSE_WAIT if value.parse().is_ok_and(|v: u32| v >= knob::CLOSE_WAIT) => knob::CLOSE_WAIT_SECONDS,
            _ => value.as_str(),
        };
        out.insert(path.as_str().into(), value.into());
    }
    out
}
