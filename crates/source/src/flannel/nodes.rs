//! A network and its leases, as the Nodes and settings of a cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use resolve::{Event, Key, Kind, Node, Object, Parsed, Problem, Settings, annotations::VxlanData};
use types::{NodeName, ObjectName};

use super::config::{Backend, Config};
use super::lease::{Attrs, BackendData, Subnets};

/// A lease as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The value.
    pub value: String,
    /// When the key was made, as a revision of the store.
    pub created: i64,
    /// When it was last written.
    pub modified: i64,
    /// The store's lease that it goes with; 0 is none: a reservation.
    pub lease: i64,
}

/// What a lease says, or why it makes no sense.
type Said = Result<(Subnets, Attrs), Problem>;

/// This node.
#[derive(Debug, Clone, Copy)]
pub struct Me<'a> {
    /// The name that the agent works under; other nodes are named by their keys.
    pub name: &'a NodeName,
    /// The key of its lease.
    pub lease: Option<&'a str>,
    /// The address that its packets leave by, which others may know it by another than.
    pub v4: Option<Ipv4Addr>,
    /// Likewise.
    pub v6: Option<Ipv6Addr>,
}

/// The events that bring a snapshot to what the store says. `leases` by the last part of their key. `config` is the last that could be used and
/// `broken` why the present one cannot. `prefix` is for messages.
#[must_use]
pub fn snapshot(
    prefix: &str,
    config: &Config,
    broken: Option<&Problem>,
    leases: &BTreeMap<String, Held>,
    me: &Me<'_>,
) -> [Event; 2] {
    let mut nodes: BTreeMap<Key, Parsed> = BTreeMap::new();
    // Of leases of one node the newest counts: the others are left from before, and run out.
    let mut read: Vec<(&String, &Held, Said)> =
        leases.iter().map(|(k, h)| (k, h, parse(prefix, k, &h.value))).collect();
    read.sort_by_key(|(_, h, _)| std::cmp::Reverse(h.created));
    let ours = me.lease.and_then(|k| leases.get(k)).and_then(|h| Attrs::parse(&h.value).ok());
    let mut seen: Vec<Attrs> = ours.into_iter().collect();
    for (key, held, parsed) in read {
        let mine = me.lease == Some(key.as_str());
        let name: &str = if mine { me.name.as_str() } else { key.split('&').next().unwrap_or(key) };
        let at = Key { kind: Kind::Node, name: ObjectName::new("", name) };
        let (object, problems) = match parsed {
            Err(p) => (None, vec![p]),
            Ok((_, attrs)) if !mine && seen.iter().any(|s| s.same_node(&attrs)) => {
                tracing::debug!(key, "an older lease of a node that has a newer one");
                continue;
            }
            Ok((subnets, attrs)) => {
                let problems = mismatch(prefix, key, config.backend, &attrs).into_iter().collect();
                let mut n = node(&subnets, &attrs, held, config.backend);
                let own = me.v4.map(IpAddr::from).into_iter().chain(me.v6.map(IpAddr::from));
                if mine {
                    // What this machine does itself it does with addresses that it has.
                    n.internal_ips =
                        own.filter(|a| n.internal_ips.iter().any(|p| p.is_ipv4() == a.is_ipv4())).collect();
                }
                seen.push(attrs);
                (Some(Object::Node(n)), problems)
            }
        };
        nodes.insert(at.clone(), Parsed { key: at, version: held.modified.to_string(), object, problems });
    }
    let problems = broken.cloned().into_iter().collect();
    let object = Some(Object::Settings(settings(config)));
    let settings = Parsed { key: Settings::key(), version: String::new(), object, problems };
    [Event::Put(settings), Event::Replace(Kind::Node, nodes.into_values().collect())]
}

/// How a lease is called in messages.
fn object(prefix: &str, key: &str) -> String {
    format!("etcd {prefix}/subnets/{key}")
}

fn parse(prefix: &str, key: &str, value: &str) -> Said {
    let subnets = Subnets::parse(key).ok_or_else(|| {
        Problem::new(
            object(prefix, key),
            "key",
            "is no range such as 10.5.34.0-24: delete it, or correct who writes it",
        )
    })?;
    let attrs = Attrs::parse(value).map_err(|(field, why)| {
        Problem::new(object(prefix, key), field, format!("{why}: restart the daemon of that node, or delete the key"))
    })?;
    Ok((subnets, attrs))
}

/// A lease whose backend is not the network's: flannel passes over it, so one direction is missing.
fn mismatch(prefix: &str, key: &str, ours: Backend, attrs: &Attrs) -> Option<Problem> {
    let ours = ours.name();
    (attrs.backend != ours).then(|| {
        Problem::new(
            object(prefix, key),
            "BackendType",
            format!(
                "is {:?} and {prefix}/config says {ours}: flannel's daemons take no lease of another type; restart the daemon of that node",
                attrs.backend
            ),
        )
    })
}

fn settings(c: &Config) -> Settings {
    let mut s = Settings {
        present: true,
        cluster_cidrs: c.networks().map(|n| n.range).collect(),
        backend: resolve::Backend::HostGw,
        ..Settings::default()
    };
    if let Backend::Vxlan { vni, port, direct } = c.backend {
        s.backend = resolve::Backend::Vxlan;
        (s.vni, s.vxlan_port, s.direct_routing) = (vni, port, direct);
        // Flannel carries each family over an underlay of its own.
        s.tunnel_by_family = true;
    }
    s
}

fn node(subnets: &Subnets, attrs: &Attrs, held: &Held, ours: Backend) -> Node {
    let port = match ours {
        Backend::Vxlan { port, .. } => port,
        Backend::HostGw => resolve::settings::DEFAULT_VXLAN_PORT,
    };
    let data = |d: Option<BackendData>, address: Option<std::net::IpAddr>| {
        Some(VxlanData { vni: d?.vni, port, mac: d?.mac, address: address? })
    };
    let (v4, v6) = (attrs.v4.map(Into::into), attrs.v6.map(Into::into));
    Node {
        // The older of two that claim the same has it.
        created: format!("{:020}", held.created).into(),
        internal_ips: v4.into_iter().chain(v6).collect(),
        pod_cidrs: subnets.each().collect(),
        backend: attrs.backend.parse().ok(),
        vxlan: data(attrs.data, v4),
        vxlan6: data(attrs.data6, v6),
        ready: true,
        ..Node::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use resolve::{ClusterSnapshot, apply};

    fn held(value: &str, created: i64) -> Held {
        Held { value: value.into(), created, modified: created, lease: 1 }
    }

    fn vxlan(ip: &str) -> String {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"22:1e:35:0c:d0:92"}}}}"#
        )
    }

    #[test]
    fn leases_are_nodes() {
        let config =
            Config::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}"#).unwrap();
        let mut leases = BTreeMap::new();
        for (key, value, created) in [
            ("10.5.1.0-24", vxlan("192.168.0.1"), 5),
            ("10.5.2.0-24", vxlan("192.168.0.2"), 6),
            ("10.5.3.0-24", vxlan("192.168.0.2"), 9),
            ("10.5.4.0-24", "{".into(), 10),
            ("10.5.5.0-24", r#"{"PublicIP":"192.168.0.5","BackendType":"host-gw"}"#.into(), 11),
            ("rubbish", "{}".into(), 12),
            ("10.5.9.0-24", vxlan("192.168.0.1"), 3),
        ] {
            leases.insert(key.to_owned(), held(&value, created));
        }
        let mut s = ClusterSnapshot::default();
        let me = "me".parse().unwrap();
        let own = Me { name: &me, lease: Some("10.5.1.0-24"), v4: Some("10.9.9.1".parse().unwrap()), v6: None };
        for e in snapshot("/p", &config, None, &leases, &own) {
            apply(&mut s, e);
        }
        let names: Vec<&str> = s.nodes.keys().map(NodeName::as_str).collect();
        assert_eq!(names, ["10.5.3.0-24", "10.5.5.0-24", "me"], "the newest of each node, and none of ours but ours");
        let me = &s.nodes[&me];
        assert_eq!(me.vxlan.unwrap().port, 4789);
        assert_eq!(
            (me.pod_cidrs[0].to_string(), me.internal_ips[0].to_string()),
            ("10.5.1.0/24".into(), "10.9.9.1".into()),
            "its own address here, whatever it is to others"
        );
        assert_eq!((s.settings.vxlan_port, s.settings.cluster_cidrs[0].to_string()), (4789, "10.5.0.0/16".into()));
        let said: Vec<String> = s.problems.values().flatten().map(ToString::to_string).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        for part in
            ["etcd /p/subnets/10.5.4.0-24 : is no JSON", "10.5.5.0-24 BackendType: is \"host-gw\"", "rubbish key"]
        {
            assert!(said.iter().any(|t| t.contains(part)), "{part}: {said:?}");
        }
    }
}
