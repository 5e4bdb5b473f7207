//! Which packet a person means.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use intent::{AttachmentKey, L4, Origin, Packet};
use lab::LabName;
use resolve::{ClusterSnapshot, Pod};
use types::{Family, NodeName, ObjectName, Proto};

use super::observe::Seen;

/// The source port of a traced packet: any ephemeral one, since nothing we program looks at it.
const SOURCE_PORT: u16 = 40_000;

/// A packet, where it starts, and the namespace a probe is sent from.
pub struct Ends {
    /// The node whose dataplane it meets first.
    pub node: NodeName,
    /// The packet.
    pub packet: Packet,
    /// The network namespace of its sender.
    pub netns: PathBuf,
}

struct From {
    node: NodeName,
    origin: Origin,
    addrs: Vec<IpAddr>,
    netns: PathBuf,
}

impl Ends {
    /// Finds both ends.
    pub fn find(seen: &Seen, lab: &LabName, src: &str, dst: &str, prefer: Family) -> anyhow::Result<Self> {
        let (host, port) = split_port(dst)?;
        let (targets, l4) = target(&seen.snapshot, host, port.as_ref()).with_context(|| format!("DST {dst:?}"))?;
        let from = from(seen, lab, src, &targets).with_context(|| format!("SRC {src:?}"))?;
        let mut families = [prefer, if prefer == Family::V4 { Family::V6 } else { Family::V4 }].into_iter();
        let of = |list: &[IpAddr], f| list.iter().copied().find(|a| Family::of(*a) == f);
        let pair = families.find_map(|f| Some((of(&from.addrs, f)?, of(&targets, f)?)));
        let Some((a, b)) = pair else {
            bail!("{src} and {dst} have no family in common: {:?} and {targets:?}", from.addrs);
        };
        Ok(Self { node: from.node, packet: Packet { origin: from.origin, src: a, dst: b, l4 }, netns: from.netns })
    }
}

/// `host`, `host:port`, `host:port/proto`, `[v6]:port`; a bare IPv6 address has no port.
fn split_port(dst: &str) -> anyhow::Result<(&str, Option<(String, Proto)>)> {
    let (rest, proto) = match dst.rsplit_once('/') {
        Some((rest, p)) if rest.contains(':') => match p.parse::<Proto>() {
            Ok(p) => (rest, p),
            Err(_) => (dst, Proto::Tcp),
        },
        _ => (dst, Proto::Tcp),
    };
    if rest.parse::<IpAddr>().is_ok() {
        return Ok((rest, None));
    }
    if let Some(inner) = rest.strip_prefix('[') {
        let (host, port) = inner.split_once("]:").context("write an IPv6 address with a port as [ADDRESS]:PORT")?;
        return Ok((host, Some((port.to_owned(), proto))));
    }
    Ok(match rest.split_once(':') {
        Some((host, port)) => (host, Some((port.to_owned(), proto))),
        None => (rest, None),
    })
}

/// A Service by the name that DNS knows it by: `web.shop.svc` or `web.shop.svc.cluster.local`.
fn dns_name(host: &str) -> Option<String> {
    let mut labels = host.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(name), Some(ns), Some("svc")) if !name.is_empty() && !ns.is_empty() => Some(format!("svc/{ns}/{name}")),
        _ => None,
    }
}

fn number(port: &str) -> anyhow::Result<u16> {
    port.parse().ok().filter(|p| *p > 0).with_context(|| format!("{port:?} is no port: write 1 to 65535"))
}

/// The addresses of a destination and what the packet carries.
fn target(s: &ClusterSnapshot, host: &str, port: Option<&(String, Proto)>) -> anyhow::Result<(Vec<IpAddr>, L4)> {
    let plain = |port: Option<&(String, Proto)>| -> anyhow::Result<L4> {
        Ok(match port {
            None => L4::Echo,
            Some((p, proto)) => L4::Ports { proto: *proto, src: SOURCE_PORT, dst: number(p)? },
        })
    };
    if let Ok(a) = host.parse::<IpAddr>() {
        return Ok((vec![a], plain(port)?));
    }
    if let Some((_, n)) = s.nodes.iter().find(|(n, _)| n.as_str() == host) {
        return Ok((n.addresses().collect(), plain(port)?));
    }
    // A name in full beats the beginning of one; where both are in full, `svc/` says which is meant.
    let named = dns_name(host);
    let host = named.as_deref().unwrap_or(host);
    let bare = host.strip_prefix("svc/").unwrap_or(host);
    let exact = if bare == host { pod(s, host, false)? } else { None };
    if let Some((_, p)) = exact {
        return Ok((p.ips.to_vec(), plain(port)?));
    }
    if let Some((name, svc)) = pick(&s.services, bare, None)? {
        if svc.cluster_ips.is_empty() {
            bail!("Service {name} is headless: it has no address of its own; name one of its pods");
        }
        let l4 = match port {
            Some((p, proto)) if p.parse::<u16>().is_err() => {
                let Some(sp) = svc.ports.iter().find(|x| *x.name == **p) else {
                    let known: Vec<String> = svc.ports.iter().map(|x| format!("{} ({})", x.name, x.port)).collect();
                    bail!("Service {name} has no port {p:?}; it has {}", known.join(", "));
                };
                let _ = proto;
                L4::Ports { proto: sp.port.proto, src: SOURCE_PORT, dst: sp.port.port }
            }
            other => plain(other)?,
        };
        return Ok((svc.cluster_ips.to_vec(), l4));
    }
    if let Some((_, p)) = pod(s, bare, true)? {
        return Ok((p.ips.to_vec(), plain(port)?));
    }
    bail!("no pod, Service or node of that name, and no address; `seaway lab get pods -A` lists pods")
}

/// Whether a pod can be an end of a packet.
type Usable<'a, V> = Option<&'a dyn Fn(&V) -> bool>;

fn usable(p: &Pod) -> bool {
    !p.ips.is_empty() && !p.phase.ended()
}

/// The pod that `text` names; with `prefix` a Deployment's name stands for any of its pods.
fn pod<'a>(s: &'a ClusterSnapshot, text: &str, prefix: bool) -> anyhow::Result<Option<(&'a ObjectName, &'a Pod)>> {
    let found = pick(&s.pods, text, if prefix { Some(&usable) } else { None })?;
    Ok(found.filter(|(_, p)| usable(p)))
}

/// The object that `text` names: `namespace/name`, or a name that only one namespace has. Where there is none, the
/// first whose name begins so and that `prefix` accepts.
fn pick<'a, V>(
    map: &'a BTreeMap<ObjectName, V>,
    text: &str,
    prefix: Usable<'_, V>,
) -> anyhow::Result<Option<(&'a ObjectName, &'a V)>> {
    let (ns, name) = match text.split_once('/') {
        Some((ns, name)) => (Some(ns), name),
        None => (None, text),
    };
    let here = |n: &ObjectName| ns.is_none_or(|ns| ns == &*n.namespace);
    let exact: Vec<_> = map.iter().filter(|(n, _)| here(n) && &*n.name == name).collect();
    match exact.as_slice() {
        [one] => return Ok(Some(*one)),
        [] => {}
        many => {
            let list: Vec<String> = many.iter().map(|(n, _)| n.to_string()).collect();
            bail!("{text:?} is in several namespaces: say {}", list.join(" or "));
        }
    }
    let begin = format!("{name}-");
    Ok(prefix.and_then(|ok| map.iter().find(|(n, v)| here(n) && n.name.starts_with(&begin) && ok(v))))
}

/// The node that answers on the link for one of these addresses.
fn announcer<'a>(s: &'a ClusterSnapshot, targets: &[IpAddr]) -> Option<(&'a NodeName, &'a resolve::Node)> {
    let lease = |ip: &IpAddr| {
        let name = ObjectName::new(resolve::settings::NAMESPACE, &announce::l2::address_lease(*ip));
        s.leases.get(&name).map(|l| &*l.holder)
    };
    let holder = targets.iter().find_map(lease)?;
    s.nodes.iter().find(|(n, _)| n.as_str() == holder)
}

fn from(seen: &Seen, lab: &LabName, src: &str, targets: &[IpAddr]) -> anyhow::Result<From> {
    let s = &seen.snapshot;
    if src == "outside" {
        // A packet from outside comes to the node that it is addressed to, or that answers for a load balancer's
        // address, or to the first by the outside's route.
        let at = s.nodes.iter().find(|(_, n)| n.addresses().any(|a| targets.contains(&a)));
        let node = at.or_else(|| announcer(s, targets)).or_else(|| s.nodes.iter().next());
        let (node, _) = node.context("the lab has no nodes")?;
        return Ok(From {
            node: node.clone(),
            origin: Origin::Outside,
            addrs: lab::outside_addresses(lab)?,
            netns: lab::netns_path(&lab.outside_netns()),
        });
    }
    if let Some((name, n)) = s.nodes.iter().find(|(n, _)| n.as_str() == src) {
        return Ok(From {
            node: name.clone(),
            origin: Origin::Host,
            addrs: n.internal_ips.to_vec(),
            netns: lab::netns_path(&lab.node_netns(name.as_str())),
        });
    }
    let by_addr = src.parse::<IpAddr>().ok().and_then(|a| s.pods.iter().find(|(_, p)| p.ips.contains(&a)));
    let found = match by_addr {
        Some(p) => Some(p),
        None => pod(s, src, true)?,
    };
    let Some((name, pod)) = found else {
        bail!(
            "no pod or node of that name; `seaway lab get pods -A` lists pods, and `outside` is the host beyond the cluster"
        );
    };
    let node = pod.node.clone().with_context(|| format!("pod {name} is not scheduled to a node yet"))?;
    if pod.host_network {
        return Ok(From {
            addrs: pod.ips.to_vec(),
            origin: Origin::Host,
            netns: lab::netns_path(&lab.node_netns(node.as_str())),
            node,
        });
    }
    let record = seen.records.get(&node).and_then(|r| {
        r.iter().find(|r| r.pod.as_ref().is_some_and(|p| *p.namespace == *name.namespace && *p.name == *name.name))
    });
    let r =
        record.with_context(|| format!("pod {name} has no interface on {node}: the CNI plugin has no record of it"))?;
    Ok(From {
        origin: Origin::Pod(AttachmentKey {
            container_id: r.key.container.clone(),
            ifname: r.key.ifname.as_str().into(),
        }),
        addrs: r.addresses.clone(),
        netns: PathBuf::from(&*r.netns),
        node,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_split_from_hosts() {
        let p = |s: &str, proto| Some((s.to_owned(), proto));
        for (text, host, port) in [
            ("shop/web", "shop/web", None),
            ("shop/web:80", "shop/web", p("80", Proto::Tcp)),
            ("shop/web:http", "shop/web", p("http", Proto::Tcp)),
            ("shop/dns:53/udp", "shop/dns", p("53", Proto::Udp)),
            ("10.0.0.1", "10.0.0.1", None),
            ("10.0.0.1:80/sctp", "10.0.0.1", p("80", Proto::Sctp)),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]:80", "fd00::1", p("80", Proto::Tcp)),
        ] {
            assert_eq!(split_port(text).unwrap(), (host, port), "{text}");
        }
        assert!(split_port("[fd00::1").is_err());
        assert_eq!(dns_name("web.shop.svc").as_deref(), Some("svc/shop/web"));
        assert_eq!(dns_name("web.shop.svc.cluster.local").as_deref(), Some("svc/shop/web"));
        for other in ["web", "shop/web", "web.shop", "10.0.0.1", "web..svc"] {
            assert_eq!(dns_name(other), None, "{other}");
        }
    }
}
