//! What Services do to a packet, and why, in the words of a trace. Pure.

use std::collections::BTreeSet;

use intent::{
    Affinity, Choice, Drop, Front, Leg, Masquerade, NodeIntent, Packet, Path, Reject, Scope, ServicePort,
    TrafficPolicy, front,
};
use types::Family;

use super::walk::Names;

/// The Service by which of its addresses, `Service shop/web (port http) at its cluster address`.
fn asked(intent: &NodeIntent, packet: &Packet) -> Option<String> {
    let (key, port, front) = front(intent, packet)?;
    let name = if key.port.is_empty() { String::new() } else { format!(" (port {})", key.port) };
    let at = match front {
        Front::Cluster => "its cluster address".to_owned(),
        Front::Balancer => "its load balancer's address".to_owned(),
        Front::External => "its external address".to_owned(),
        Front::NodePort => format!("node port {}", port.node_port.unwrap_or_default()),
    };
    Some(format!("Service {}{name} at {at}", key.service))
}

/// The policy that a Service has for who asks by this address.
fn policy(port: &ServicePort, front: Front) -> TrafficPolicy {
    if front == Front::Cluster { port.internal_policy } else { port.external_policy }
}

/// Where a packet to a Service goes: one of which endpoints, and why of those.
pub fn choice(intent: &NodeIntent, packet: &Packet, legs: &BTreeSet<Leg>, named: Names<'_>) -> Option<String> {
    let list: Vec<String> = legs
        .iter()
        .filter_map(|l| l.translated)
        .map(|e| named(e.addr).map_or_else(|| e.to_string(), |n| format!("{e} ({n})")))
        .collect();
    let how = legs.iter().find_map(|l| l.choice)?;
    let list = if list.len() > 1 { format!("one of {}", list.join(", ")) } else { list.concat() };
    let who = asked(intent, packet).unwrap_or_else(|| named(packet.dst).unwrap_or_else(|| packet.dst.to_string()));
    let mut why = Vec::new();
    if let Some((_, port, front)) = front(intent, packet) {
        let family = Family::of(packet.dst);
        let local = how == Choice::Local;
        let scope = *if local { port.local_scope.get(family) } else { port.scope.get(family) };
        match (how, policy(port, front)) {
            (Choice::Local, _) => why.push(format!("policy Local: only endpoints on {}", intent.node)),
            (Choice::Any, TrafficPolicy::Local) if front != Front::Cluster && all_of(port, legs, family) => {
                why.push("policy Local is for clients outside the cluster".into());
            }
            _ => {}
        }
        if scope != Scope::Ready {
            why.push(scope.to_string());
        }
        match (how, port.affinity) {
            (Choice::Remembered, _) => why.push("session affinity: this client had it before".into()),
            (_, Affinity::ClientIp { timeout }) => {
                why.push(format!("session affinity: this client then keeps it for {timeout} s"));
            }
            _ => {}
        }
    } else if how == Choice::Remembered {
        why.push(how.to_string());
    }
    let why = if why.is_empty() { String::new() } else { format!("; {}", why.join("; ")) };
    Some(format!("{who}: {list}{why}"))
}

/// Whether endpoints are among these that policy Local would leave out.
fn all_of(port: &ServicePort, legs: &BTreeSet<Leg>, family: Family) -> bool {
    let here = |l: &Leg| l.translated.is_some_and(|e| port.local_endpoints.contains(&e));
    let none = port.local_endpoints.iter().all(|e| Family::of(e.addr) != family);
    none || !legs.iter().all(here)
}

/// Why a source is replaced, for who did not expect it.
pub fn masquerade(why: Masquerade) -> &'static str {
    match why {
        Masquerade::LeavesCluster => "it leaves the cluster, where nobody knows the way to a pod's address",
        Masquerade::PolicyCluster => {
            "externalTrafficPolicy Cluster: the endpoint may be on another node, and its answer must come back this way"
        }
        Masquerade::InsideToOutside => {
            "it comes from inside the cluster to an address for outside: the answer must come back this way"
        }
        Masquerade::NoPod => "it comes from no pod to a cluster address: the answer must come back this way",
        Masquerade::Hairpin => "the pod reaches itself: answered there, the answer would not come back this way",
    }
}

/// Why a packet is rejected.
pub fn rejected(intent: &NodeIntent, packet: &Packet, why: Reject) -> String {
    let what = match why {
        Reject::NoEndpoints => match asked(intent, packet) {
            Some(who) => {
                let name = front(intent, packet).map(|(k, ..)| k.service.to_string()).unwrap_or_default();
                format!("{who} has no ready endpoint; why none is, says `seaway services {name}`")
            }
            None => why.to_string(),
        },
        Reject::UnusedPort => {
            let mut whose = intent.services.iter().filter(|(_, s)| {
                s.cluster_ips.contains(&packet.dst)
                    || s.external_ips.contains(&packet.dst)
                    || s.balancer_ips.contains(&packet.dst)
            });
            match whose.next() {
                Some((key, _)) => {
                    let ports: BTreeSet<String> =
                        intent.ports_of(&key.service).map(|(k, p)| format!("{}/{}", p.port, k.proto)).collect();
                    let ports: Vec<String> = ports.into_iter().collect();
                    format!(
                        "{} is an address of Service {}, which serves {} there",
                        packet.dst,
                        key.service,
                        ports.join(", ")
                    )
                }
                None => why.to_string(),
            }
        }
    };
    format!("nftables rejects it: {what}")
}

/// Why a packet is dropped.
pub fn dropped(intent: &NodeIntent, packet: &Packet, why: Drop) -> String {
    let who = || asked(intent, packet).map(|w| format!("{w}: ")).unwrap_or_default();
    let what = match (why, front(intent, packet)) {
        (Drop::NoLocalEndpoints, Some((_, port, _))) => {
            let family = Family::of(packet.dst);
            let on: BTreeSet<String> = port
                .endpoints
                .iter()
                .filter(|e| Family::of(e.addr) == family)
                .filter_map(|e| match intent::path(intent, e.addr) {
                    Path::Peer { node, .. } => Some(node.to_string()),
                    _ => None,
                })
                .collect();
            let on: Vec<String> = on.into_iter().collect();
            let elsewhere =
                if on.is_empty() { String::new() } else { format!("; there are some on {}", on.join(", ")) };
            format!("{}policy Local, and no endpoint is on {}{elsewhere}", who(), intent.node)
        }
        (Drop::SourceRange, Some((_, port, _))) => {
            let ranges: Vec<String> = port.source_ranges.iter().map(ToString::to_string).collect();
            format!("{}{} is in none of loadBalancerSourceRanges {}", who(), packet.src, ranges.join(", "))
        }
        (other, _) => other.to_string(),
    };
    format!("nftables drops it: {what}")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use intent::{ByFamily, Endpoint, L4, Origin, Peer, PeerRoute, Reach, ServiceKey, Verdict, translate};
    use types::{FamilySet, ObjectName, Proto};

    use super::*;

    const POD: &str = "10.244.0.2";
    const FAR: &str = "10.244.1.4";
    const NODE: &str = "192.168.7.10";
    const WORLD: &str = "203.0.113.1";
    const VIP: &str = "10.96.0.1";
    const LB: &str = "198.51.100.1";

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    /// shop/web with an endpoint here and one on node2.
    fn intent(change: impl FnOnce(&mut ServicePort)) -> NodeIntent {
        let mut i = NodeIntent::empty("node1".parse().unwrap());
        i.families = FamilySet { v4: true, v6: false };
        i.addresses.insert(ip(NODE));
        i.node_port_addresses.insert(ip(NODE));
        i.pod_cidrs.push("10.244.0.0/24".parse().unwrap());
        i.masqueraded.insert("10.244.0.0/24".parse().unwrap());
        i.cluster_cidrs.insert("10.244.0.0/16".parse().unwrap());
        let route =
            PeerRoute { cidr: "10.244.1.0/24".parse().unwrap(), reach: Reach::Direct { next_hop: ip("192.168.7.11") } };
        i.peers.insert("node2".parse().unwrap(), Peer { addresses: BTreeSet::new(), routes: vec![route] });
        let to = |a: &str| Endpoint { addr: ip(a), port: 8080 };
        let mut port = ServicePort {
            cluster_ips: [ip(VIP)].into(),
            balancer_ips: [ip(LB)].into(),
            port: 80,
            node_port: Some(30080),
            families: i.families,
            endpoints: [to(POD), to(FAR)].into(),
            local_endpoints: [to(POD)].into(),
            ..ServicePort::default()
        };
        change(&mut port);
        let service = ObjectName::new("shop", "web");
        i.services.insert(ServiceKey { service, port: "http".into(), proto: Proto::Tcp }, port.into());
        i
    }

    /// What a trace says of a packet that the specification lets go so.
    fn says(i: &NodeIntent, src: &str, dst: &str, port: u16) -> String {
        let origin = match src {
            NODE => Origin::Host,
            _ => Origin::Outside,
        };
        let p =
            Packet { origin, src: ip(src), dst: ip(dst), l4: L4::Ports { proto: Proto::Tcp, src: 40_000, dst: port } };
        let named = |a: IpAddr| (a == ip(POD)).then(|| "shop/web-1".to_owned());
        match translate(i, &p) {
            Verdict::Forward(legs) => choice(i, &p, &legs, &named).unwrap_or_else(|| "as it is".into()),
            Verdict::Reject(r) => rejected(i, &p, r),
            Verdict::Drop(d) => dropped(i, &p, d),
        }
    }

    #[test]
    fn which_endpoints_and_why() {
        let both = "one of 10.244.0.2:8080 (shop/web-1), 10.244.1.4:8080";
        let plain = intent(|_| ());
        let at = |front: &str| format!("Service shop/web (port http) at {front}: ");
        assert_eq!(says(&plain, FAR, VIP, 80), at("its cluster address") + both);
        assert_eq!(says(&plain, WORLD, NODE, 30080), at("node port 30080") + both);
        assert_eq!(says(&plain, WORLD, FAR, 80), "as it is");

        let local = intent(|p| p.external_policy = TrafficPolicy::Local);
        let here = "10.244.0.2:8080 (shop/web-1); policy Local: only endpoints on node1";
        assert_eq!(says(&local, WORLD, LB, 80), at("its load balancer's address") + here);
        let inside = format!("{both}; policy Local is for clients outside the cluster");
        assert_eq!(says(&local, NODE, LB, 80), at("its load balancer's address") + &inside);
        assert_eq!(says(&local, FAR, VIP, 80), at("its cluster address") + both);

        let zone = intent(|p| p.scope = ByFamily { v4: Scope::SameZone, v6: Scope::Ready });
        assert_eq!(says(&zone, FAR, VIP, 80), at("its cluster address") + both + "; those meant for this zone");
        let sticky = intent(|p| p.affinity = Affinity::ClientIp { timeout: 60 });
        let keeps = "; session affinity: this client then keeps it for 60 s";
        assert_eq!(says(&sticky, FAR, VIP, 80), at("its cluster address") + both + keeps);
        let had = Leg {
            translated: Some(Endpoint { addr: ip(POD), port: 8080 }),
            choice: Some(Choice::Remembered),
            snat: intent::Snat::Keep,
            path: None,
        };
        let l4 = L4::Ports { proto: Proto::Tcp, src: 1, dst: 80 };
        let p = Packet { origin: Origin::Outside, src: ip(FAR), dst: ip(VIP), l4 };
        let text = choice(&sticky, &p, &[had].into(), &|_| None).unwrap();
        assert_eq!(text, at("its cluster address") + "10.244.0.2:8080; session affinity: this client had it before");
    }

    #[test]
    fn why_not() {
        let none = intent(|p| (p.endpoints, p.local_endpoints) = Default::default());
        let text = says(&none, FAR, VIP, 80);
        assert!(
            text.contains("rejects it: Service shop/web (port http) at its cluster address has no ready"),
            "{text}"
        );
        assert!(text.ends_with("`seaway services shop/web`"), "{text}");
        let text = says(&none, FAR, VIP, 81);
        assert!(text.ends_with("10.96.0.1 is an address of Service shop/web, which serves 80/TCP there"), "{text}");
        let elsewhere = intent(|p| {
            p.external_policy = TrafficPolicy::Local;
            p.local_endpoints = Default::default();
            p.source_ranges = ["203.0.113.0/24".parse().unwrap()].into();
        });
        let text = says(&elsewhere, WORLD, LB, 80);
        assert!(
            text.ends_with("address: policy Local, and no endpoint is on node1; there are some on node2"),
            "{text}"
        );
        let text = says(&elsewhere, "192.0.2.1", LB, 80);
        assert!(text.ends_with("192.0.2.1 is in none of loadBalancerSourceRanges 203.0.113.0/24"), "{text}");
    }
}
