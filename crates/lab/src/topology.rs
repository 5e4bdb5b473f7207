//! Which namespaces, links and addresses a lab has, as data: pure, printable, tested by its text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use types::{Cidr, Family, FamilySet};

use crate::{LabError, LabName};

/// The most nodes a lab may have.
pub const MAX_NODES: u16 = 100;

/// What a person asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The lab's name.
    pub name: LabName,
    /// How many nodes, 1 to [`MAX_NODES`].
    pub nodes: u16,
    /// How many L2 segments: 1, or 2 with a router between.
    pub segments: u8,
    /// Which families the nodes, pods and services have.
    pub families: FamilySet,
}

/// The whole network below a lab's cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The namespaces, in the order to make them. The first is the switch, the second the host outside.
    pub namespaces: Vec<Netns>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The addresses of the host outside, one of each family of the lab.
    pub outside: Vec<IpAddr>,
}

/// One namespace and how it comes to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    /// Its name below /run/netns.
    pub name: String,
    /// Sysctls to set, as (path below /proc/sys, value).
    pub sysctls: Vec<(&'static str, &'static str)>,
    /// Commands for `ip -batch`, run in this namespace when all namespaces exist.
    ///
    /// `ip` and not our own netlink layer: every route made by that carries Seaway's protocol number, and the agent of
    /// the node would rightly remove a default route of that number which no intent asks for.
    pub ip: Vec<String>,
}

/// A node as the rest of the lab knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `node1`, `node2`...
    pub name: String,
    /// Its namespace below /run/netns.
    pub netns: String,
    /// 1 or 2.
    pub segment: u8,
    /// Its addresses on the segment, the lab's first family first.
    pub addresses: Vec<IpAddr>,
}

/// The range of pods of one family: what the nodes' pod CIDRs are cut from.
#[must_use]
pub fn cluster_cidr(family: Family) -> Cidr {
    match family {
        Family::V4 => net4([10, 244, 0, 0], 16),
        Family::V6 => net6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56),
    }
}

/// The range of Services of one family.
#[must_use]
pub fn service_cidr(family: Family) -> Cidr {
    match family {
        Family::V4 => net4([10, 96, 0, 0], 16),
        Family::V6 => net6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112),
    }
}

fn net4(a: [u8; 4], len: u8) -> Cidr {
    let addr = IpAddr::from(a);
    Cidr::new(addr, len).unwrap_or_else(|| Cidr::host(addr))
}

fn net6(a: [u16; 8], len: u8) -> Cidr {
    let addr = IpAddr::from(a);
    Cidr::new(addr, len).unwrap_or_else(|| Cidr::host(addr))
}

/// The address with number `host` on a segment. 172.31.S.0/24 (RFC 1918) and fd00:31:S::/64 (RFC 4193).
fn on_segment(family: Family, segment: u8, host: u16) -> IpAddr {
    match family {
        // At most MAX_NODES + 10 < 256 hosts.
        Family::V4 => Ipv4Addr::new(172, 31, segment, (host & 0xff) as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x31, segment.into(), 0, 0, 0, 0, read_alike(host)).into(),
    }
}

/// The number whose hex digits read as `n` does in decimal, so that 172.31.1.11 and fd00:31:1::11 are one host.
fn read_alike(n: u16) -> u16 {
    [1000, 100, 10, 1].into_iter().fold(0, |h, d| (h << 4) | (n / d % 10))
}

/// The address with number `host` on the link to the outside: TEST-NET-3 (RFC 5737) and documentation (RFC 3849).
fn on_outside(family: Family, host: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, (host & 0xff) as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, read_alike(host)).into(),
    }
}

fn prefix_len(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

fn add_address(family: Family, addr: IpAddr, dev: &str) -> String {
    // Duplicate detection would keep an IPv6 address unusable for a second; nobody else is on these links.
    let nodad = if family == Family::V6 { " nodad" } else { "" };
    format!("address add {addr}/{} dev {dev}{nodad}", prefix_len(family))
}

/// Works out the network of a lab.
///
/// # Errors
/// When the numbers are out of range or no family is chosen.
pub fn plan(spec: &Spec) -> Result<Topology, LabError> {
    if spec.nodes == 0 || spec.nodes > MAX_NODES {
        return Err(LabError::new(format!("--nodes {}: choose 1 to {MAX_NODES}", spec.nodes)));
    }
    if !(1..=2).contains(&spec.segments) {
        return Err(LabError::new(format!("--segments {}: choose 1 or 2", spec.segments)));
    }
    if spec.families.iter().count() == 0 {
        return Err(LabError::new("--ip: choose v4, v6 or dual"));
    }
    const QUIET: [(&str, &str); 2] = [("net/ipv6/conf/all/accept_ra", "0"), ("net/ipv6/conf/default/accept_ra", "0")];
    const ROUTER: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
    let outside_name = spec.name.outside_netns();
    let mut switch = Netns {
        name: spec.name.switch_netns(),
        sysctls: QUIET.into_iter().chain(ROUTER).collect(),
        ip: vec!["link set lo up".into()],
    };
    for s in 1..=spec.segments {
        switch.ip.push(format!("link add br{s} type bridge"));
        switch.ip.push(format!("link set br{s} up"));
        for f in spec.families.iter() {
            switch.ip.push(add_address(f, on_segment(f, s, 1), &format!("br{s}")));
        }
    }
    switch.ip.push(format!("link add out0 type veth peer name eth0 netns {outside_name}"));
    switch.ip.push("link set out0 up".into());
    for f in spec.families.iter() {
        switch.ip.push(add_address(f, on_outside(f, 1), "out0"));
    }

    let mut outside = Netns {
        name: outside_name,
        sysctls: QUIET.to_vec(),
        ip: vec!["link set lo up".into(), "link set eth0 up".into()],
    };
    for f in spec.families.iter() {
        outside.ip.push(add_address(f, on_outside(f, 10), "eth0"));
        outside.ip.push(default_route(f, on_outside(f, 1)));
    }

    let mut nodes = Vec::new();
    let mut node_spaces = Vec::new();
    for k in 1..=spec.nodes {
        // Nodes are dealt out in turn, so that two segments are as full as each other.
        let segment = if spec.segments == 2 && k % 2 == 0 { 2 } else { 1 };
        let name = format!("node{k}");
        let netns = spec.name.node_netns(&name);
        switch.ip.push(format!("link add port{k} type veth peer name eth0 netns {netns}"));
        switch.ip.push(format!("link set port{k} master br{segment} up"));
        let mut ip = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        let mut addresses = Vec::new();
        for f in spec.families.iter() {
            let a = on_segment(f, segment, 10 + k);
            addresses.push(a);
            ip.push(add_address(f, a, "eth0"));
            ip.push(default_route(f, on_segment(f, segment, 1)));
        }
        node_spaces.push(Netns { name: netns.clone(), sysctls: QUIET.to_vec(), ip });
        nodes.push(Node { name, netns, segment, addresses });
    }
    let mut namespaces = vec![switch, outside];
    namespaces.extend(node_spaces);
    Ok(Topology { namespaces, nodes, outside: spec.families.iter().map(|f| on_outside(f, 10)).collect() })
}

fn default_route(family: Family, gateway: IpAddr) -> String {
    format!("route add {} via {gateway} dev eth0 proto static", Cidr::any(family))
}

/// The plan as text: what `seaway lab up --dry-run` prints and the goldens hold.
#[must_use]
pub fn render(t: &Topology) -> String {
    let mut out = String::new();
    for n in &t.namespaces {
        out.push_str(&format!("netns {}\n", n.name));
        for (k, v) in &n.sysctls {
            out.push_str(&format!("  sysctl {k} = {v}\n"));
        }
        for l in &n.ip {
            out.push_str(&format!("  {l}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn spec(nodes: u16, segments: u8, v4: bool, v6: bool) -> Spec {
        Spec { name: "t".parse().unwrap(), nodes, segments, families: FamilySet { v4, v6 } }
    }

    #[test]
    fn two_segments_dual_stack_as_text() {
        let got = render(&plan(&spec(2, 2, true, true)).unwrap());
        let want = include_str!("../tests/golden/topology-2x2-dual.txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/topology-2x2-dual.txt"), &got).unwrap();
        }
        assert_eq!(got, want, "re-bless with BLESS=1 after reading the difference");
    }

    #[test]
    fn out_of_range_is_refused() {
        for (s, word) in [
            (spec(0, 1, true, true), "--nodes 0"),
            (spec(MAX_NODES + 1, 1, true, true), "--nodes 101"),
            (spec(1, 3, true, true), "--segments 3"),
            (spec(1, 1, false, false), "--ip"),
        ] {
            assert!(plan(&s).unwrap_err().to_string().contains(word));
        }
    }

    proptest! {
        #[test]
        fn addresses_are_unique_and_of_the_families(n in 1u16..=MAX_NODES, seg in 1u8..=2, v4: bool, v6: bool) {
            prop_assume!(v4 || v6);
            let s = spec(n, seg, v4, v6);
            let t = plan(&s).unwrap();
            prop_assert_eq!(t.nodes.len(), usize::from(n));
            let all: Vec<IpAddr> = t.nodes.iter().flat_map(|n| n.addresses.clone()).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            prop_assert_eq!(all.len(), usize::from(n) * s.families.iter().count());
            for a in all {
                prop_assert!(s.families.has(Family::of(a)));
                prop_assert!(Family::BOTH.iter().all(|f| !cluster_cidr(*f).contains(a) && !service_cidr(*f).contains(a)));
            }
            for ns in &t.namespaces {
                prop_assert!(s.name.owns_netns(&ns.name));
                prop_assert!(v4 || !ns.ip.iter().any(|l| l.contains("0.0.0.0") || l.contains("172.31.")));
            }
        }
    }
}
