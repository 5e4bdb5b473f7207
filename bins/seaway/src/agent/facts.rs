//! What the machine is: observed from the kernel, handed to the pure rooms as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, bail};
use kernel_api::Rtnetlink;
use kernel_api::rt::{Address, Link, LinkKind, ObservedRoute, RouteTo};
use plan::{Caps, HostLink, Uplink};
use types::{Cidr, IfName, Mac, OwnedName};

/// How a person chose the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfaceChoice {
    /// By name.
    Name(IfName),
    /// The interface that has an address in this range.
    Cidr(Cidr),
}

impl std::str::FromStr for IfaceChoice {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> anyhow::Result<Self> {
        if s.contains('/') {
            return Ok(Self::Cidr(s.parse()?));
        }
        // As flannel's daemon takes it.
        if let Ok(a) = s.parse::<IpAddr>() {
            return Ok(Self::Cidr(Cidr::host(a)));
        }
        Ok(Self::Name(s.parse()?))
    }
}

/// What the kernel says of this machine's interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// For the planes.
    pub caps: Caps,
    /// Every address of the machine's own interfaces.
    pub addresses: BTreeSet<IpAddr>,
    /// The ranges in which another machine is a neighbour.
    pub on_link: Vec<Cidr>,
    /// Our VXLAN devices that exist, with hardware address.
    pub vxlan: BTreeMap<IfName, Mac>,
    /// Host ends of pod interfaces that exist.
    pub pod_links: BTreeSet<OwnedName>,
    /// Those of them that are down.
    pub pod_links_down: BTreeSet<OwnedName>,
    /// CNI configuration files, see [`resolve::LocalState::networks`]; not of the kernel, filled in by the agent.
    pub networks: BTreeMap<Box<str>, Result<resolve::networks::Config, String>>,
}

/// What nobody observes: how the uplink is chosen, and what this kernel lacks.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// A person's choice.
    pub choice: Option<&'a IfaceChoice>,
    /// The Node's InternalIPs decide the uplink where neither a choice nor a default route does.
    pub node_addresses: &'a BTreeSet<IpAddr>,
    /// Kernel features that are missing.
    pub missing: &'a BTreeSet<String>,
}

/// Looks at links, addresses and routes.
///
/// # Errors
/// When the kernel cannot be asked, or the chosen interface is not there.
pub fn observe(rt: &mut impl Rtnetlink, given: Given<'_>) -> anyhow::Result<Facts> {
    let links = rt.links().context("look at the machine's interfaces")?;
    let addresses = rt.addresses().context("look at the machine's addresses")?;
    of(&links, &addresses, given, || Ok(default_route_link(&rt.routes().context("look at the machine's routes")?)))
}

/// What these links and addresses say. `default` names the link of the default route.
///
/// # Errors
/// When the chosen interface is not there, and those of `default`.
pub fn of(
    links: &[Link],
    addresses: &[Address],
    given: Given<'_>,
    default: impl FnOnce() -> anyhow::Result<Option<IfName>>,
) -> anyhow::Result<Facts> {
    let Given { choice, node_addresses, missing } = given;
    let mut facts = Facts { caps: Caps { missing: missing.clone(), ..Caps::default() }, ..Facts::default() };
    let mut up: BTreeSet<&IfName> = BTreeSet::new();
    for l in links {
        match OwnedName::recognise(&l.name) {
            Ok(n) if n.is_pod_link() => {
                if !l.up {
                    facts.pod_links_down.insert(n.clone());
                }
                facts.pod_links.insert(n);
            }
            Ok(_) => {
                if let (LinkKind::Vxlan(_), Some(mac)) = (&l.kind, l.mac) {
                    facts.vxlan.insert(l.name.clone(), mac);
                }
            }
            Err(_) if l.name.as_str() == "lo" => {}
            Err(_) => {
                if l.up {
                    up.insert(&l.name);
                }
                facts.caps.links.insert(l.name.clone(), HostLink { mtu: l.mtu, addresses: Vec::new() });
            }
        }
    }
    for a in addresses {
        let Some(link) = facts.caps.links.get_mut(&a.link) else { continue };
        facts.addresses.insert(a.addr);
        link.addresses.push((a.addr, a.prefix_len));
        if let (true, Some(c)) = (up.contains(&a.link), Cidr::new(a.addr, a.prefix_len))
            && c.size() > 1
            && !is_link_local(a.addr)
        {
            facts.on_link.push(c);
        }
    }
    facts.on_link.sort();
    facts.on_link.dedup();
    for l in facts.caps.links.values_mut() {
        l.addresses.sort();
    }
    facts.caps.uplink = uplink(choice, node_addresses, links, &facts.caps, default)?;
    Ok(facts)
}

fn is_link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

fn uplink(
    choice: Option<&IfaceChoice>,
    node_addresses: &BTreeSet<IpAddr>,
    links: &[Link],
    caps: &Caps,
    default: impl FnOnce() -> anyhow::Result<Option<IfName>>,
) -> anyhow::Result<Option<Uplink>> {
    let by_addr = |want: &dyn Fn(IpAddr) -> bool| {
        caps.links.iter().find(|(_, l)| l.addresses.iter().any(|(a, _)| want(*a))).map(|(n, _)| n.clone())
    };
    let name = match choice {
        Some(IfaceChoice::Name(n)) if caps.links.contains_key(n) => Some(n.clone()),
        Some(IfaceChoice::Name(n)) => bail!(
            "--iface {n}: this machine has no such interface; it has {}",
            caps.links.keys().map(IfName::as_str).collect::<Vec<_>>().join(", ")
        ),
        Some(IfaceChoice::Cidr(c)) => match by_addr(&|a| c.contains(a)) {
            Some(n) => Some(n),
            None => bail!("--iface {c}: no interface of this machine has an address in that range"),
        },
        // The interface that holds the address other nodes know us by is the one their packets come to; the default
        // route's only stands in while the Node has no address.
        None => match by_addr(&|a| node_addresses.contains(&a)) {
            Some(n) => Some(n),
            None => default()?.filter(|n| caps.links.contains_key(n)),
        },
    };
    Ok(name.and_then(|n| links.iter().find(|l| l.name == n)).map(|l| Uplink { name: l.name.clone(), mtu: l.mtu }))
}

/// The link that the best default route leads through.
pub fn default_route_link(routes: &[ObservedRoute]) -> Option<IfName> {
    let mut defaults: Vec<_> = routes.iter().map(|r| &r.route).filter(|r| r.dst.len() == 0).collect();
    defaults.sort_by_key(|r| (r.family(), r.metric));
    defaults.into_iter().find_map(|r| match &r.to {
        RouteTo::Via { link, .. } | RouteTo::Link(link) => Some(link.clone()),
        _ => None,
    })
}

pub use resolve::annotations::vxlan_mac;

#[cfg(test)]
mod tests {
    use super::*;
    use types::NodeName;

    #[test]
    fn vxlan_macs_are_stable_and_differ() {
        let n = |s: &str| s.parse::<NodeName>().unwrap();
        assert_eq!(vxlan_mac(&n("node1"), 1), vxlan_mac(&n("node1"), 1));
        assert_ne!(vxlan_mac(&n("node1"), 1), vxlan_mac(&n("node2"), 1));
        assert_ne!(vxlan_mac(&n("node1"), 1), vxlan_mac(&n("node1"), 2));
    }
}
