//! From facts to probes, each with what must come of it: pure.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use types::{Family, FamilySet, Proto};

use super::facts::{EchoPod, Facts, Host, ServicePort};
use crate::prober::{Ask, Kind, Said};

/// The port of the servers that the test starts on nodes and outside.
pub const HOST_PORT: u16 = 17007;
/// Senders, and receivers, taken of each node.
const PER_NODE: usize = 2;

/// A row of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Two pods of one node.
    PodPodSameNode,
    /// Two pods of two nodes.
    PodPodOtherNode,
    /// A pod and its own node.
    PodOwnNode,
    /// A pod and another node.
    PodOtherNode,
    /// A node and a pod on it.
    NodeOwnPod,
    /// A node and a pod of another.
    NodeOtherPod,
    /// A cluster address, TCP.
    ClusterIpTcp,
    /// A cluster address, UDP.
    ClusterIpUdp,
    /// A cluster address from a node.
    NodeClusterIp,
    /// A pod that reaches itself through its Service.
    Hairpin,
    /// The pods behind a headless Service.
    Headless,
    /// A node port, from outside, at every node.
    NodePort,
    /// A load balancer's address, from outside.
    LoadBalancer,
    /// The host outside, which must see the node's address.
    Masquerade,
}

impl Check {
    /// All, in the order of the table.
    pub const ALL: [Check; 14] = [
        Self::PodPodSameNode,
        Self::PodPodOtherNode,
        Self::PodOwnNode,
        Self::PodOtherNode,
        Self::NodeOwnPod,
        Self::NodeOtherPod,
        Self::ClusterIpTcp,
        Self::ClusterIpUdp,
        Self::NodeClusterIp,
        Self::Hairpin,
        Self::Headless,
        Self::NodePort,
        Self::LoadBalancer,
        Self::Masquerade,
    ];

    /// The row's title.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::PodPodSameNode => "pod to pod, same node",
            Self::PodPodOtherNode => "pod to pod, other node",
            Self::PodOwnNode => "pod to its node",
            Self::PodOtherNode => "pod to another node",
            Self::NodeOwnPod => "node to its pod",
            Self::NodeOtherPod => "node to another node's pod",
            Self::ClusterIpTcp => "pod to Service, TCP",
            Self::ClusterIpUdp => "pod to Service, UDP",
            Self::NodeClusterIp => "node to Service",
            Self::Hairpin => "pod to itself by its Service",
            Self::Headless => "pod to headless endpoints",
            Self::NodePort => "outside to NodePort",
            Self::LoadBalancer => "outside to load balancer",
            Self::Masquerade => "pod to outside, masqueraded",
        }
    }

    /// Whether it takes two nodes.
    #[must_use]
    pub const fn needs_two_nodes(self) -> bool {
        matches!(self, Self::PodPodOtherNode | Self::PodOtherNode | Self::NodeOtherPod)
    }
}

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A pod, `namespace/name`.
    Pod(String),
    /// A node.
    Node(String),
    /// The host outside.
    Outside,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(p) | Self::Node(p) => f.write_str(p),
            Self::Outside => f.write_str("outside"),
        }
    }
}

/// Which address the server must have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// The sender's own: nobody translated it.
    OneOf(Vec<IpAddr>),
    /// Anyone's.
    Any,
}

/// What must come of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// Who may answer; empty when the answer has no name (a ping).
    pub pods: Vec<String>,
    /// Who must have answered at least once.
    pub must: Option<String>,
    /// The address that the server must have seen.
    pub client: Client,
}

/// One question and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The row.
    pub check: Check,
    /// The column.
    pub family: Family,
    /// Who asks.
    pub source: Source,
    /// The destination, in words.
    pub label: String,
    /// The question.
    pub ask: Ask,
    /// What must come of it.
    pub expect: Expect,
}

impl Expect {
    /// Why an answer is not what it must be.
    ///
    /// # Errors
    /// A sentence for the table's notes.
    pub fn judge(&self, said: &Said) -> Result<(), String> {
        if !said.answered() {
            let why = said.error.as_deref().unwrap_or("no answer");
            return Err(format!("{why} ({} of {} tries lost)", said.lost, said.tries));
        }
        for (pod, client) in &said.answers {
            if !self.pods.contains(pod) {
                return Err(format!("{pod} answered, which is none of {}", self.pods.join(", ")));
            }
            match &self.client {
                Client::OneOf(v) if !v.contains(client) => {
                    let v = v.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
                    return Err(format!("the server saw {client} as the client instead of {v}"));
                }
                _ => {}
            }
        }
        match &self.must {
            Some(m) if !said.answers.iter().any(|(p, _)| p == m) => {
                Err(format!("{m} never answered itself in {} connections", said.tries))
            }
            _ => Ok(()),
        }
    }
}

fn of(list: &[IpAddr], f: Family) -> Option<IpAddr> {
    list.iter().copied().find(|a| Family::of(*a) == f)
}

/// At most [`PER_NODE`] pods of each node that have the family.
fn sample(facts: &Facts, f: Family) -> Vec<&EchoPod> {
    let mut out = Vec::new();
    for n in &facts.nodes {
        out.extend(facts.pods.iter().filter(|p| p.node == n.name && of(&p.ips, f).is_some()).take(PER_NODE));
    }
    out
}

struct Planner<'a> {
    facts: &'a Facts,
    family: Family,
    out: Vec<Probe>,
}

impl Planner<'_> {
    fn push(&mut self, check: Check, source: Source, label: String, ask: Ask, expect: Expect) {
        self.out.push(Probe { check, family: self.family, source, label, ask, expect });
    }

    /// TCP, UDP and a ping to one address.
    fn all_kinds(&mut self, check: Check, source: &Source, to: (&str, IpAddr, u16), pod: String, client: &Client) {
        let (name, addr, port) = to;
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
            let (port, label) = match kind {
                Kind::Tcp => (port, format!("{name}:{port}")),
                Kind::Udp => (port, format!("{name}:{port}/udp")),
                Kind::Ping => (0, format!("{name} (ping)")),
            };
            let expect = Expect { pods: vec![pod.clone()], must: None, client: client.clone() };
            let ask = Ask { kind, to: SocketAddr::new(addr, port), until: None };
            self.push(check, source.clone(), label, ask, expect);
        }
    }

    fn direct(&mut self) {
        let f = self.family;
        let pods = sample(self.facts, f);
        for a in &pods {
            let Some(own) = of(&a.ips, f) else { continue };
            let source = Source::Pod(a.name.clone());
            let client = Client::OneOf(vec![own]);
            for b in pods.iter().filter(|b| b.name != a.name) {
                let Some(to) = of(&b.ips, f) else { continue };
                let check = if a.node == b.node { Check::PodPodSameNode } else { Check::PodPodOtherNode };
                self.all_kinds(check, &source, (&b.name, to, b.ports[0]), b.name.clone(), &client);
            }
            for n in &self.facts.nodes {
                let Some(to) = of(&n.addresses, f) else { continue };
                let check = if a.node == n.name { Check::PodOwnNode } else { Check::PodOtherNode };
                self.all_kinds(check, &source, (&n.name, to, HOST_PORT), format!("host/{}", n.name), &client);
            }
            let node = self.facts.nodes.iter().find(|n| n.name == a.node);
            if let (Some(o), Some(n)) = (&self.facts.outside, node)
                && let Some(to) = of(&o.addresses, f)
            {
                let seen: Vec<IpAddr> = n.addresses.iter().copied().filter(|a| Family::of(*a) == f).collect();
                let to = ("outside", to, HOST_PORT);
                self.all_kinds(Check::Masquerade, &source, to, "host/outside".into(), &Client::OneOf(seen));
            }
        }
        for n in &self.facts.nodes {
            for b in &pods {
                let Some(to) = of(&b.ips, f) else { continue };
                let check = if n.name == b.node { Check::NodeOwnPod } else { Check::NodeOtherPod };
                let client = Client::OneOf(n.own.clone());
                let source = Source::Node(n.name.clone());
                self.all_kinds(check, &source, (&b.name, to, b.ports[0]), b.name.clone(), &client);
            }
        }
    }

    fn services(&mut self) {
        let f = self.family;
        let pods = sample(self.facts, f);
        for s in &self.facts.services {
            for p in &s.ports {
                let mine: Vec<(String, IpAddr, u16)> =
                    p.endpoints.iter().filter(|e| Family::of(e.1) == f).cloned().collect();
                if mine.is_empty() {
                    continue;
                }
                let names: Vec<String> = mine.iter().map(|e| e.0.clone()).collect();
                let suffix = if p.proto == Proto::Udp { "/udp" } else { "" };
                let label = format!("{}:{}{suffix}", s.name, p.port);
                let any = Expect { pods: names.clone(), must: None, client: Client::Any };
                match of(&s.cluster_ips, f) {
                    Some(vip) => self.cluster_ip(p, vip, &label, &any, &pods, s.sticky),
                    None if s.cluster_ips.is_empty() => self.headless(&s.name, p, &mine, &pods),
                    None => {}
                }
                if let (Some(to), Some(o)) = (of(&s.balancer_ips, f), &self.facts.outside) {
                    let client = if s.local { Client::OneOf(o.addresses.clone()) } else { Client::Any };
                    let ask = Ask { kind: kind_of(p), to: SocketAddr::new(to, p.port), until: None };
                    let expect = Expect { pods: names.clone(), must: None, client };
                    self.push(Check::LoadBalancer, Source::Outside, label.clone(), ask, expect);
                }
                if let Some(port) = p.node_port {
                    for n in &self.facts.nodes {
                        let local: Vec<String> = self
                            .facts
                            .pods
                            .iter()
                            .filter(|x| x.node == n.name && names.contains(&x.name))
                            .map(|x| x.name.clone())
                            .collect();
                        let answerers = if s.local { local } else { names.clone() };
                        let Some(to) = of(&n.addresses, f) else { continue };
                        // With policy Local, a node without an endpoint must not answer: no probe of that here.
                        if answerers.is_empty() {
                            continue;
                        }
                        let client = match &self.facts.outside {
                            Some(o) if s.local => Client::OneOf(o.addresses.clone()),
                            _ => Client::Any,
                        };
                        let ask = Ask { kind: kind_of(p), to: SocketAddr::new(to, port), until: None };
                        let expect = Expect { pods: answerers, must: None, client };
                        let label = format!("{}:{port}{suffix}", n.name);
                        self.push(Check::NodePort, Source::Outside, label, ask, expect);
                    }
                }
            }
        }
    }

    fn cluster_ip(&mut self, p: &ServicePort, vip: IpAddr, label: &str, any: &Expect, pods: &[&EchoPod], sticky: bool) {
        let check = if p.proto == Proto::Udp { Check::ClusterIpUdp } else { Check::ClusterIpTcp };
        let ask = |until| Ask { kind: kind_of(p), to: SocketAddr::new(vip, p.port), until };
        for n in &self.facts.nodes {
            if let Some(a) = pods.iter().find(|a| a.node == n.name) {
                // A pod's address reaches the endpoint untouched, unless the endpoint is the pod itself.
                let client = match of(&a.ips, self.family) {
                    Some(own) if !any.pods.contains(&a.name) => Client::OneOf(vec![own]),
                    _ => Client::Any,
                };
                let expect = Expect { client, ..any.clone() };
                self.push(check, Source::Pod(a.name.clone()), label.into(), ask(None), expect);
            }
            self.push(Check::NodeClusterIp, Source::Node(n.name.clone()), label.into(), ask(None), any.clone());
        }
        let own = any.pods.iter().filter(|n| self.facts.pods.iter().any(|x| x.name == **n));
        // An affinity could tie the pod to another endpoint for hours.
        for pod in own.take(if sticky && any.pods.len() > 1 { 0 } else { PER_NODE }) {
            let expect = Expect { must: Some(pod.clone()), ..any.clone() };
            let source = Source::Pod(pod.clone());
            self.out.push(Probe {
                check: Check::Hairpin,
                family: self.family,
                source,
                label: label.into(),
                ask: ask(Some(pod.clone())),
                expect,
            });
        }
    }

    fn headless(&mut self, name: &str, p: &ServicePort, mine: &[(String, IpAddr, u16)], pods: &[&EchoPod]) {
        for n in &self.facts.nodes {
            let Some(a) = pods.iter().find(|a| a.node == n.name) else { continue };
            for (pod, addr, port) in mine.iter().filter(|e| e.0 != a.name) {
                let client = of(&a.ips, self.family).map_or(Client::Any, |o| Client::OneOf(vec![o]));
                let expect = Expect { pods: vec![pod.clone()], must: None, client };
                let ask = Ask { kind: kind_of(p), to: SocketAddr::new(*addr, *port), until: None };
                let label = format!("{pod}:{port} of {name}");
                self.push(Check::Headless, Source::Pod(a.name.clone()), label, ask, expect);
            }
        }
    }
}

fn kind_of(p: &ServicePort) -> Kind {
    if p.proto == Proto::Udp { Kind::Udp } else { Kind::Tcp }
}

/// Every probe, for each family.
#[must_use]
pub fn plan(facts: &Facts, families: FamilySet) -> Vec<Probe> {
    let mut all = Vec::new();
    for family in families.iter() {
        let mut p = Planner { facts, family, out: Vec::new() };
        p.direct();
        p.services();
        all.extend(p.out);
    }
    all
}

/// One probe per node, Service port and endpoint, to know whether every node forwards to every endpoint.
#[must_use]
pub fn plan_settled(facts: &Facts, families: FamilySet) -> Vec<Probe> {
    let mut out = Vec::new();
    for family in families.iter() {
        for s in facts.services.iter().filter(|s| !s.sticky) {
            let Some(vip) = of(&s.cluster_ips, family) else { continue };
            for p in &s.ports {
                let mine = p.endpoints.iter().filter(|e| Family::of(e.1) == family);
                let pods: Vec<String> = mine.map(|e| e.0.clone()).collect();
                for (n, pod) in facts.nodes.iter().flat_map(|n| pods.iter().map(move |p| (n, p))) {
                    out.push(Probe {
                        check: Check::NodeClusterIp,
                        family,
                        source: Source::Node(n.name.clone()),
                        label: format!("{}:{}", s.name, p.port),
                        ask: Ask { kind: kind_of(p), to: SocketAddr::new(vip, p.port), until: Some(pod.clone()) },
                        expect: Expect { pods: pods.clone(), must: Some(pod.clone()), client: Client::Any },
                    });
                }
            }
        }
    }
    out
}

/// The rows that have no probe in some family though the lab could have one.
#[must_use]
pub fn missing(probes: &[Probe], facts: &Facts, families: FamilySet) -> Vec<Check> {
    Check::ALL
        .into_iter()
        // There is a pool only where somebody made one.
        .filter(|c| *c != Check::LoadBalancer)
        .filter(|c| !c.needs_two_nodes() || facts.nodes.len() > 1)
        .filter(|c| families.iter().any(|f| !probes.iter().any(|p| p.check == *c && p.family == f)))
        .collect()
}

/// A node as a host of the test, with what packets of its own may carry.
#[must_use]
pub fn host(name: &str, addresses: &[IpAddr], own: Vec<IpAddr>) -> Host {
    Host { name: name.into(), addresses: addresses.to_vec(), own }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{echo_pods, services};
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, ips: [&str; 2], command: bool) -> Value {
        json!({"metadata": {"namespace": "s", "name": name}, "spec": {"nodeName": node, "containers": [
            {"name": "c", "command": if command { json!(["x"]) } else { json!([]) }, "ports": [{"containerPort": 80}]}]},
            "status": {"podIPs": [{"ip": ips[0]}, {"ip": ips[1]}], "conditions": [{"type": "Ready", "status": "True"}]}})
    }

    fn facts() -> Facts {
        let pods = echo_pods(&[
            pod("a", "node1", ["10.0.1.1", "fd00::11"], false),
            pod("b", "node1", ["10.0.1.2", "fd00::12"], false),
            pod("c", "node2", ["10.0.2.1", "fd00::21"], false),
            pod("x", "node2", ["10.0.2.9", "fd00::29"], true),
        ]);
        let slice = |svc: &str, ip: &str| {
            json!({"metadata": {"namespace": "s", "labels": {"kubernetes.io/service-name": svc}},
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}], "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}]})
        };
        let svc = |name: &str, ips: &[&str], np: Option<u16>| {
            json!({"metadata": {"namespace": "s", "name": name}, "spec": {"clusterIPs": ips,
            "ports": [{"port": 8, "protocol": "TCP", "nodePort": np}]}})
        };
        let services = services(
            &[
                svc("v", &["10.96.0.1", "fd00:96::1"], Some(30000)),
                svc("h", &["None"], None),
                svc("stranger", &["10.96.0.2"], None),
            ],
            &[slice("v", "10.0.1.1"), slice("v", "fd00::11"), slice("h", "10.0.2.1"), slice("stranger", "10.0.2.9")],
            &pods,
        );
        let host = |n: &str, a: &str| host(n, &[a.parse().unwrap()], vec![a.parse().unwrap()]);
        Facts {
            nodes: vec![host("node1", "172.31.1.11"), host("node2", "172.31.1.12")],
            outside: Some(host("outside", "203.0.113.10")),
            pods,
            services,
        }
    }

    #[test]
    fn only_pods_that_say_who_they_are_are_asked() {
        let f = facts();
        assert_eq!(f.pods.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["s/a", "s/b", "s/c"]);
        assert_eq!(f.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["s/v", "s/h"]);
    }

    #[test]
    fn every_row_is_planned_and_lacks_are_named() {
        let f = facts();
        let v4 = FamilySet { v4: true, v6: false };
        let probes = plan(&f, v4);
        assert_eq!(missing(&probes, &f, v4), [Check::ClusterIpUdp]);
        let count = |c: Check| probes.iter().filter(|p| p.check == c).count();
        // a to b and b to a; by TCP, UDP and ping.
        assert_eq!(count(Check::PodPodSameNode), 6);
        // a and b to c and back.
        assert_eq!(count(Check::PodPodOtherNode), 12);
        assert_eq!(count(Check::NodePort), 2);
        assert_eq!(count(Check::Hairpin), 1);
        let m = probes.iter().find(|p| p.check == Check::Masquerade).unwrap();
        assert_eq!(m.expect.client, Client::OneOf(vec!["172.31.1.11".parse().unwrap()]));
        // IPv6: the hosts of these facts have none, the pods do.
        let v6 = plan(&f, FamilySet { v4: false, v6: true });
        assert!(v6.iter().all(|p| p.ask.to.is_ipv6()));
        assert!(!v6.iter().any(|p| p.check == Check::NodePort) && v6.iter().any(|p| p.check == Check::Hairpin));
    }

    #[test]
    fn answers_are_judged() {
        let e = Expect {
            pods: vec!["s/a".into(), "s/b".into()],
            must: None,
            client: Client::OneOf(vec!["10.0.0.1".parse().unwrap()]),
        };
        let said = |pod: &str, client: &str| Said {
            tries: 1,
            answers: vec![(pod.into(), client.parse().unwrap())],
            ..Said::default()
        };
        assert_eq!(e.judge(&said("s/a", "10.0.0.1")), Ok(()));
        assert!(e.judge(&said("s/c", "10.0.0.1")).unwrap_err().contains("none of s/a, s/b"));
        assert!(
            e.judge(&said("s/a", "10.0.0.2")).unwrap_err().contains("saw 10.0.0.2 as the client instead of 10.0.0.1")
        );
        let lost = Said { tries: 3, lost: 3, error: Some("timed out".into()), ..Said::default() };
        assert!(e.judge(&lost).unwrap_err().contains("3 of 3 tries lost"));
        let must = Expect { must: Some("s/b".into()), ..e };
        assert!(must.judge(&said("s/a", "10.0.0.1")).unwrap_err().contains("never answered itself"));
    }
}
