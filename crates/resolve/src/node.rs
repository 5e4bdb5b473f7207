//! Nodes: this one's addresses and ranges, and the way to every other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::{Backend, NodeIntent, Peer, PeerRoute, Reach, Vxlan};
use types::{Cidr, Family, NodeName};

use crate::pools::routes::{self, Ranges};
use crate::problem::Problem;
use crate::settings::{Ipam, NodePorts, Settings};
use crate::snapshot::{ClusterSnapshot, Key, Kind, Node};
use crate::{LocalState, annotations};

/// What of a Node's claims holds, after comparing it with the others.
struct Sound<'a> {
    node: &'a Node,
    internal: Vec<IpAddr>,
    external: Vec<IpAddr>,
    cidrs: Vec<Cidr>,
}

impl Sound<'_> {
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.internal.iter().chain(&self.external).copied().collect()
    }
}

/// The object's name in problems.
fn object(name: &NodeName) -> String {
    format!("Node/{name}")
}

/// Fills in everything but attachments, services and policies.
pub(crate) fn fill(
    intent: &mut NodeIntent,
    snapshot: &ClusterSnapshot,
    local: &LocalState,
    problems: &mut Vec<Problem>,
) {
    let settings = &snapshot.settings;
    let (sound, pooled) = compare(snapshot, problems);
    intent.backend = settings.backend;
    // A range that lies outside the configured ones still holds pods; between pods nothing is masqueraded.
    intent.cluster_cidrs = settings.cluster_cidrs.iter().chain(&pooled.all).copied().collect();
    for c in sound.values().flat_map(|s| &s.cidrs) {
        if !settings.cluster_cidrs.iter().any(|all| all.contains_cidr(c)) {
            intent.cluster_cidrs.insert(*c);
        }
    }
    intent.services_elsewhere = local.services_elsewhere;
    // Whoever serves them knows which addresses nobody has.
    if !local.services_elsewhere {
        let listed: BTreeSet<Cidr> = snapshot.service_cidrs.values().flatten().copied().collect();
        intent.service_cidrs =
            if listed.is_empty() { settings.service_cidrs.iter().copied().collect() } else { listed };
    }
    intent.balancer_ranges = snapshot.load_balancer_pools.values().flat_map(|p| &p.ranges).copied().collect();
    intent.families = intent.cluster_cidrs.iter().map(Cidr::family).collect();
    let of_blocks = |name: &NodeName| pooled.of.get(name).map(Vec::as_slice).unwrap_or_default();
    let own = sound.get(&local.node);
    match own {
        Some(own) => {
            intent.addresses = own.addresses();
            intent.node_port_addresses = node_port_addresses(own, settings, local);
            intent.pod_cidrs = own.cidrs.iter().chain(of_blocks(&local.node)).copied().collect();
            if settings.masquerade {
                intent.masqueraded = own.cidrs.iter().copied().collect();
            }
            intent.masqueraded.extend(of_blocks(&local.node).iter().filter(|c| pooled.masqueraded.contains(c)));
            if own.cidrs.is_empty() && settings.ipam == Ipam::NodeCidr {
                problems.push(Problem::new(
                    object(&local.node),
                    "spec.podCIDRs",
                    "this node has no pod range, so it can have no pods: set data.clusterCIDR of ConfigMap kube-system/seaway and run `seaway controller`, or set the field yourself",
                ));
            }
        }
        None if !snapshot.problems.contains_key(&key(&local.node)) => problems.push(Problem::new(
            object(&local.node),
            "metadata.name",
            format!(
                "no such Node: register it, or start the agent with the name of one that exists (--node {})",
                local.node
            ),
        )),
        None => {}
    }
    let outer = own.and_then(|o| outer_address(&o.internal, &o.external));
    let first: Vec<IpAddr> = own.map(|o| o.cidrs.iter().map(Cidr::addr).collect()).unwrap_or_default();
    if settings.tunnel_by_family {
        let of = |f: Family| {
            let outer = own.and_then(|o| o.internal.iter().copied().find(|a| Family::of(*a) == f));
            let first: Vec<IpAddr> = first.iter().copied().filter(|a| Family::of(*a) == f).collect();
            (outer.filter(|_| !first.is_empty()), first)
        };
        let ((outer4, first4), (outer6, first6)) = (of(Family::V4), of(Family::V6));
        intent.vxlan = outer4.and_then(|a| vxlan(snapshot, local, Some(a), first4, problems));
        intent.vxlan6 = outer6
            .and_then(|a| vxlan(snapshot, local, Some(a), first6, problems))
            .map(|v| Vxlan { mac: annotations::vxlan6_mac(v.mac), ..v });
    } else {
        intent.vxlan = vxlan(snapshot, local, outer, first, problems);
    }
    for (name, peer) in sound.iter().filter(|(n, _)| **n != local.node) {
        let routes = peer
            .cidrs
            .iter()
            .chain(of_blocks(name))
            .map(|c| PeerRoute { cidr: *c, reach: reach(name, peer, *c, intent, settings, local) })
            .collect::<Vec<_>>();
        for r in &routes {
            if let Reach::None { why } = &r.reach {
                problems.push(Problem::new(object(name), format!("route to {}", r.cidr), why.clone()));
            }
        }
        intent.peers.insert(name.clone(), Peer { addresses: peer.addresses(), routes });
    }
}

/// Where node ports are served, as kube-proxy's `--nodeport-addresses` has it.
fn node_port_addresses(own: &Sound<'_>, settings: &Settings, local: &LocalState) -> BTreeSet<IpAddr> {
    let of_family = |f: Family| move |a: &IpAddr| Family::of(*a) == f;
    match &settings.node_ports {
        NodePorts::Primary => {
            let first = |f| own.internal.iter().chain(&own.external).copied().find(of_family(f));
            Family::BOTH.into_iter().filter_map(first).collect()
        }
        NodePorts::In(ranges) => {
            let all = own.addresses().into_iter().chain(local.addresses.iter().copied());
            all.filter(|a| {
                let mut of = ranges.iter().filter(|c| c.family() == Family::of(*a)).peekable();
                crate::services::unusable_endpoint(*a).is_none() && (of.peek().is_none() || of.any(|c| c.contains(*a)))
            })
            .collect()
        }
    }
}

fn key(name: &NodeName) -> Key {
    Key { kind: Kind::Node, name: types::ObjectName::new("", name.as_str()) }
}

/// Compares the nodes' claims. Of two nodes that claim overlapping ranges, or the same address, the older (then the
/// one whose name sorts first) has it, so that a newcomer's mistake breaks nothing that works.
fn compare<'a>(snapshot: &'a ClusterSnapshot, problems: &mut Vec<Problem>) -> (BTreeMap<NodeName, Sound<'a>>, Ranges) {
    let mut by_age: Vec<(&NodeName, &Node)> = snapshot.nodes.iter().collect();
    by_age.sort_by_key(|(name, n)| (&n.created, *name));
    let cluster = &snapshot.settings.cluster_cidrs;
    let mut taken: Vec<(Cidr, &NodeName)> = Vec::new();
    let mut held: BTreeMap<IpAddr, &NodeName> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (name, node) in by_age {
        let mut cidrs: Vec<Cidr> = Vec::new();
        for (i, c) in node.pod_cidrs.iter().enumerate() {
            let field = format!("spec.podCIDRs[{i}]");
            if let Some((other, owner)) = taken.iter().find(|(t, _)| t.overlaps(c)) {
                problems.push(Problem::new(
                    object(name),
                    field,
                    format!("{c} overlaps {other} of Node {owner}, which has it: delete Node {name} and let it register anew, so that it gets a range of its own"),
                ));
            } else if cidrs.iter().any(|o| o.family() == c.family()) {
                problems.push(Problem::new(
                    object(name),
                    field,
                    format!("{c} is a second {} range: a node has one of each family; remove it", c.family()),
                ));
            } else {
                if !cluster.is_empty() && !cluster.iter().any(|all| all.contains_cidr(c)) {
                    problems.push(Problem::new(
                        object(name),
                        field,
                        format!("{c} lies outside data.clusterCIDR of ConfigMap kube-system/seaway: it is routed all the same; widen clusterCIDR, or delete the Node and let it register anew"),
                    ));
                }
                taken.push((*c, name));
                cidrs.push(*c);
            }
        }
        let mut sift = |list: &'a [IpAddr], kind: &str, problems: &mut Vec<Problem>| -> Vec<IpAddr> {
            let mut good = Vec::new();
            for ip in list {
                let field = format!("status.addresses[{kind}]");
                let why = if let Some(why) = crate::services::unusable_endpoint(*ip) {
                    Some(format!(
                        "{ip} is {why}: no node can be reached there; register the node with an address of its own"
                    ))
                } else {
                    held.get(ip).filter(|o| **o != name).map(|owner| {
                        format!("{ip} is also the address of Node {owner}, which has it: give each node an address of its own")
                    })
                };
                match why {
                    Some(why) => problems.push(Problem::new(object(name), field, why)),
                    None => {
                        held.insert(*ip, name);
                        good.push(*ip);
                    }
                }
            }
            good
        };
        let internal = sift(&node.internal_ips, "InternalIP", problems);
        let external = sift(&node.external_ips, "ExternalIP", problems);
        out.insert(name.clone(), Sound { node, internal, external, cidrs });
    }
    let pooled = routes::ranges(snapshot, &taken, problems);
    // An address inside a pod range would be routed into the overlay that it carries.
    let ranges: Vec<(Cidr, String)> = cluster
        .iter()
        .map(|c| (*c, "data.clusterCIDR of ConfigMap kube-system/seaway".to_owned()))
        .chain(taken.iter().map(|(c, n)| (*c, format!("spec.podCIDRs of Node {n}"))))
        .collect();
    let in_block = |ip: &IpAddr| {
        let blocks = || pooled.of.iter().flat_map(|(n, list)| list.iter().map(move |c| (*c, n)));
        let found = pooled.all.iter().any(|c| c.contains(*ip)).then(|| blocks().find(|(c, _)| c.contains(*ip)));
        found.flatten().map(|(c, n)| (c, format!("an IPBlock of Node {n}")))
    };
    for (name, s) in &mut out {
        for (list, kind) in [(&mut s.internal, "InternalIP"), (&mut s.external, "ExternalIP")] {
            list.retain(|ip| match ranges.iter().find(|(c, _)| c.contains(*ip)).cloned().or_else(|| in_block(ip)) {
                Some((c, whose)) => {
                    problems.push(Problem::new(
                        object(name),
                        format!("status.addresses[{kind}]"),
                        format!("{ip} lies in the pod range {c} ({whose}): pods and nodes need ranges apart; change the pod range"),
                    ));
                    false
                }
                None => true,
            });
        }
        if s.internal.is_empty() && s.external.is_empty() {
            problems.push(Problem::new(
                object(name),
                "status.addresses",
                "the node has no usable address, so no other node reaches its pods: its agent or kubelet must report an InternalIP",
            ));
        }
    }
    (out, pooled)
}

/// The address that VXLAN packets start from: IPv4 when the node has it.
fn outer_address(internal: &[IpAddr], external: &[IpAddr]) -> Option<IpAddr> {
    [internal, external]
        .into_iter()
        .find(|l| !l.is_empty())
        .and_then(|l| l.iter().find(|a| a.is_ipv4()).or_else(|| l.first()))
        .copied()
}

/// The device: needed to send, while a peer may still send to us, and while connections use its addresses.
fn vxlan(
    snapshot: &ClusterSnapshot,
    local: &LocalState,
    outer: Option<IpAddr>,
    addresses: Vec<IpAddr>,
    problems: &mut Vec<Problem>,
) -> Option<Vxlan> {
    let settings = &snapshot.settings;
    let sending = settings.backend == Backend::Vxlan;
    let received = snapshot.nodes.iter().any(|(n, node)| *n != local.node && node.backend == Some(Backend::Vxlan));
    if !sending && !received && !local.vxlan_in_use {
        return None;
    }
    if !local.vxlan_supported {
        if sending {
            problems.push(Problem::new(
                Settings::key(),
                "data.backend",
                format!("backend is vxlan, but the kernel of node {} has no VXLAN (CONFIG_VXLAN): load the module vxlan there, or set backend: host-gw", local.node),
            ));
        }
        return None;
    }
    Some(Vxlan { vni: settings.vni, port: settings.vxlan_port, mac: local.vxlan_mac, local: outer?, addresses })
}

/// The way to one range of a peer.
fn reach(
    name: &NodeName,
    peer: &Sound<'_>,
    cidr: Cidr,
    intent: &NodeIntent,
    settings: &Settings,
    local: &LocalState,
) -> Reach {
    let sends_vxlan = intent.backend == Backend::Vxlan;
    let family = cidr.family();
    let candidates: Vec<IpAddr> =
        peer.internal.iter().chain(&peer.external).copied().filter(|a| Family::of(*a) == family).collect();
    let on_link = |a: &IpAddr| local.on_link.iter().any(|c| c.len() < family.bits() && c.contains(*a));
    let neighbour = candidates.iter().copied().find(on_link);
    let (device, published) = match family {
        Family::V6 if settings.tunnel_by_family => (&intent.vxlan6, peer.node.vxlan6),
        _ => (&intent.vxlan, peer.node.vxlan),
    };
    if let (true, Some(dev)) = (sends_vxlan, device)
        && let Some(data) = published.filter(|d| fits(d, dev))
        && (neighbour.is_none() || !settings.direct_routing)
    {
        return Reach::vxlan(cidr, data.address, data.mac);
    }
    if let Some(next_hop) = neighbour {
        return Reach::Direct { next_hop };
    }
    let why = if sends_vxlan {
        match published {
            _ if device.is_none() => format!(
                "Node {name} cannot be reached: this node has no VXLAN device (see its other problems) and {name} is not on a network that this node is on"
            ),
            Some(d) => format!(
                "Node {name} cannot be reached: its annotation {} says vni {}, port {}, outer address {}, this node has vni {}, port {}, outer address {}: wait for its agent to follow ConfigMap kube-system/seaway, or restart that agent",
                annotations::VXLAN,
                d.vni,
                d.port,
                d.address,
                settings.vni,
                settings.vxlan_port,
                device.as_ref().map_or_else(|| "none".into(), |v| v.local.to_string())
            ),
            None => format!(
                "Node {name} cannot be reached yet: it has not published annotation {}: start or look at the agent on {name}",
                annotations::VXLAN
            ),
        }
    } else if let Some(next_hop) = candidates.first() {
        format!(
            "next hop {next_hop} of Node {name} is not on-link, and backend host-gw needs all nodes on one layer-2 network: set backend: vxlan in ConfigMap kube-system/seaway, or attach both nodes to one network"
        )
    } else {
        format!(
            "backend host-gw needs an {family} address of Node {name} as next hop for {cidr}, and it has none: give the node an {family} InternalIP, or set backend: vxlan in ConfigMap kube-system/seaway"
        )
    };
    Reach::None { why }
}

/// Whether a peer's published data can be sent to through our device.
fn fits(data: &annotations::VxlanData, dev: &Vxlan) -> bool {
    data.vni == dev.vni && data.port == dev.port && Family::of(data.address) == Family::of(dev.local)
}
