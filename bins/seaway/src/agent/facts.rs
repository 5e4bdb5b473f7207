//! What the machine is: observed from the kernel, handed to the pure rooms as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, bail};
use kernel_api::Rtnetlink;
use kernel_api::rt::{Address, Link, LinkKind, ObservedRoute, RouteTo};
use plan::{Caps, HostLink, Uplink};
use types::{Cidr, Family, IfName, Mac, OwnedName};

/// How a person chose the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfaceChoice {
    /// By name.
    Name(IfName),
    /// The interface that has an address in this range.
    Cidr(Cidr),
    /// The first interface with an address in which it matches, else the first with such a name.
    Pattern(Pattern),
    /// The interface by which packets to this address leave.
    Towards(IpAddr),
}

/// How the interface to other nodes is chosen: one way at most.
#[derive(clap::Args, Debug, Clone)]
#[group(multiple = false)]
pub struct IfaceArgs {
    /// The interface other nodes are reached by: its name, its address, or a CIDR that its address
    /// is in [default: the one with the Node's InternalIP, else the default route's]
    #[arg(long, value_name = "NAME|ADDRESS|CIDR", env = "SEAWAY_IFACE")]
    iface: Option<IfaceChoice>,
    /// Or the first one with an address, else with a name, in which this matches
    #[arg(long, value_name = "REGEX", env = "SEAWAY_IFACE_REGEX")]
    iface_regex: Option<Pattern>,
    /// Or the one by which this machine's routes lead to an address
    #[arg(long, value_name = "ADDRESS", env = "SEAWAY_IFACE_CAN_REACH")]
    iface_can_reach: Option<IpAddr>,
}

impl IfaceArgs {
    /// What was chosen, if anything was.
    pub fn choice(&self) -> Option<IfaceChoice> {
        let pattern = || self.iface_regex.clone().map(IfaceChoice::Pattern);
        self.iface.clone().or_else(pattern).or(self.iface_can_reach.map(IfaceChoice::Towards))
    }
}

/// A regular expression, found anywhere in a text unless it is anchored.
#[derive(Debug, Clone)]
pub struct Pattern(regex_lite::Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl std::str::FromStr for Pattern {
    type Err = regex_lite::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        regex_lite::Regex::new(s).map(Self)
    }
}

impl IfaceChoice {
    /// Of the uplink's addresses, those that the choice speaks of; all of a family that it does not speak of.
    pub fn chosen(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let meant = |a: &IpAddr| match self {
            Self::Cidr(c) => c.contains(*a),
            Self::Pattern(p) => p.0.is_match(&a.to_string()),
            Self::Name(_) | Self::Towards(_) => true,
        };
        let of_family = |f| addresses.iter().any(|a| Family::of(*a) == f && meant(a));
        addresses.iter().copied().filter(|a| meant(a) || !of_family(Family::of(*a))).collect()
    }
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
    of(&links, &addresses, given, |to| match to {
        Some(to) => rt.link_towards(to).context("ask for a route"),
        None => Ok(default_route_link(&rt.routes().context("look at the machine's routes")?)),
    })
}

/// What these links and addresses say. `way` names the link by which packets to an address leave, without one that of the
/// default route.
///
/// # Errors
/// When the chosen interface is not there, and those of `way`.
pub fn of(
    links: &[Link],
    addresses: &[Address],
    given: Given<'_>,
    way: impl FnOnce(Option<IpAddr>) -> anyhow::Result<Option<IfName>>,
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
    facts.caps.uplink = uplink(choice, node_addresses, links, &facts.caps, way)?;
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
    way: impl FnOnce(Option<IpAddr>) -> anyhow::Result<Option<IfName>>,
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
        // As flannel's daemon looks: addresses of all interfaces first, in the order in which these were made.
        Some(IfaceChoice::Pattern(p)) => {
            let theirs: Vec<(&IfName, &HostLink)> =
                links.iter().filter_map(|l| caps.links.get_key_value(&l.name)).collect();
            let by_address =
                |l: &HostLink| l.addresses.iter().any(|(a, _)| !is_link_local(*a) && p.0.is_match(&a.to_string()));
            let found = theirs.iter().find(|(_, l)| by_address(l));
            match found.or_else(|| theirs.iter().find(|(n, _)| p.0.is_match(n.as_str()))) {
                Some((n, _)) => Some((*n).clone()),
                None => bail!(
                    "--iface-regex {}: it is found in no address and no name of this machine's interfaces: {}",
                    p.0.as_str(),
                    caps.links.keys().map(IfName::as_str).collect::<Vec<_>>().join(", ")
                ),
            }
        }
        Some(IfaceChoice::Towards(to)) => match way(Some(*to))? {
            Some(n) if caps.links.contains_key(&n) => Some(n),
            Some(n) => bail!(
                "--iface-can-reach {to}: the route leads to {n}, by which no other machine is reached: name an address \
                 outside this machine and its pods"
            ),
            None => bail!("--iface-can-reach {to}: no route of this machine leads there"),
        },
        // The interface that holds the address other nodes know us by is the one their packets come to; the default
        // route's only stands in while the Node has no address.
        None => match by_addr(&|a| node_addresses.contains(&a)) {
            Some(n) => Some(n),
            None => way(None)?.filter(|n| caps.links.contains_key(n)),
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
    use kernel_api::rt::Route;
    use kernel_fake::rt::FakeRt;
    use types::NodeName;

    #[test]
    fn vxlan_macs_are_stable_and_differ() {
        let n = |s: &str| s.parse::<NodeName>().unwrap();
        assert_eq!(vxlan_mac(&n("node1"), 1), vxlan_mac(&n("node1"), 1));
        assert_ne!(vxlan_mac(&n("node1"), 1), vxlan_mac(&n("node2"), 1));
        assert_ne!(vxlan_mac(&n("node1"), 1), vxlan_mac(&n("node1"), 2));
    }

    fn machine() -> FakeRt {
        let mut rt = FakeRt::new();
        let (a, name) = (|s: &str| s.parse::<IpAddr>().unwrap(), |s: &str| s.parse::<IfName>().unwrap());
        rt.plug(&name("zeth"), 1500, &[(a("192.0.2.7"), 24), (a("fe80::42"), 64)]);
        rt.plug(&name("eth1"), 9000, &[(a("10.42.0.7"), 16), (a("10.9.0.1"), 24), (a("fd00:42::7"), 64)]);
        for (dst, gateway, link, metric) in [
            ("0.0.0.0/0", "192.0.2.1", "zeth", 100),
            ("198.51.100.0/24", "10.42.0.1", "eth1", 0),
            ("::/0", "fd00:42::1", "eth1", 0),
        ] {
            let to = RouteTo::via(gateway.parse().unwrap(), name(link));
            rt.foreign_route(Route { metric, ..Route::new(dst.parse().unwrap(), to) }, 3);
        }
        let own = Route::new("203.0.113.0/24".parse().unwrap(), RouteTo::Link(name("lo")));
        rt.foreign_route(own, 3);
        rt
    }

    fn seen(rt: &mut FakeRt, choice: &IfaceChoice) -> anyhow::Result<Facts> {
        let none = (BTreeSet::new(), BTreeSet::new());
        observe(rt, Given { choice: Some(choice), node_addresses: &none.0, missing: &none.1 })
    }

    fn chosen(choice: &IfaceChoice) -> Result<(String, u32), String> {
        let facts = seen(&mut machine(), choice);
        facts.map(|f| f.caps.uplink.map(|u| (u.name.to_string(), u.mtu)).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_interface_by_an_expression() {
        let by = |p: &str| chosen(&IfaceChoice::Pattern(p.parse().unwrap()));
        let (first, second) = (Ok(("zeth".to_owned(), 1500)), Ok(("eth1".to_owned(), 9000)));
        // Found anywhere, addresses before names, the interface that was made first.
        for (pattern, want) in [
            ("eth", &first),
            ("^eth[0-9]+$", &second),
            ("^192\\.0\\.2\\.", &first),
            ("42", &second),
            ("^fd00:42:", &second),
            ("^(eth9|zeth)$", &first),
        ] {
            assert_eq!(by(pattern), *want, "{pattern}");
        }
        let why = by("^wlan").unwrap_err();
        assert!(why.contains("--iface-regex ^wlan") && why.contains("eth1, zeth"), "{why}");
        assert!("(".parse::<Pattern>().is_err());
    }

    #[test]
    fn an_interface_by_where_its_routes_lead() {
        let by = |a: &str| chosen(&IfaceChoice::Towards(a.parse().unwrap()));
        let (first, second) = (Ok(("zeth".to_owned(), 1500)), Ok(("eth1".to_owned(), 9000)));
        for (to, want) in [("8.8.8.8", &first), ("198.51.100.9", &second), ("2001:db8::1", &second)] {
            assert_eq!(by(to), *want, "{to}");
        }
        assert!(by("203.0.113.9").unwrap_err().contains("leads to lo"));
        let bare = seen(&mut FakeRt::new(), &IfaceChoice::Towards("192.0.2.9".parse().unwrap()));
        assert!(bare.unwrap_err().to_string().contains("--iface-can-reach 192.0.2.9: no route"));
    }

    #[test]
    fn of_several_addresses_those_that_were_meant() {
        let all: Vec<IpAddr> = ["10.42.0.7", "10.9.0.1", "fd00:42::7"].map(|a| a.parse().unwrap()).into();
        let pattern = IfaceChoice::Pattern("^10\\.9".parse().unwrap());
        assert_eq!(pattern.chosen(&all), [all[1], all[2]]);
        assert_eq!(IfaceChoice::Cidr("10.42.0.0/16".parse().unwrap()).chosen(&all), [all[0], all[2]]);
        assert_eq!(IfaceChoice::Pattern("eth".parse().unwrap()).chosen(&all), all);
    }
}
