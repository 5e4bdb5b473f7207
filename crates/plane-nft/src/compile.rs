//! From an intent to the image that says it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::{Affinity, Endpoint, NodeIntent, ServiceKey, ServicePort, TrafficPolicy};
use kernel_api::nft::Verdict;
use plan::{Caps, Compiled, Refused};
use types::{Cidr, Family, Proto};

use crate::image::{Chain, Data, Image, Key, Set};
use crate::key::KeyBytes;
use crate::layout::{self, Pick, in_family};
use crate::tracker::Tracker;

/// Kernel features without which nothing of this plane works, as [`Caps::missing`] names them.
const NEEDED: [&str; 7] = ["nf_tables", "nft_nat", "nft_masq", "nft_numgen", "nft_reject", "nft_ct", "nf_conntrack"];

/// See [`plan::Dataplane::compile`].
pub(crate) fn compile(intent: &NodeIntent, caps: &Caps) -> Compiled<Image> {
    Tracker::default().full(intent, caps)
}

/// That nothing can be done on this machine.
pub(crate) fn unable(intent: &NodeIntent, caps: &Caps) -> Option<Refused> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|n| caps.missing.contains(*n)).collect();
    (!missing.is_empty()).then(|| Refused {
        object: format!("Node/{}", intent.node),
        field: "service mode nftables".into(),
        why: format!("the kernel has no {}: enable it, or choose another service mode", missing.join(", ")),
    })
}

/// The image but for its Services.
pub(crate) fn base(intent: &NodeIntent, caps: &Caps) -> Image {
    let mut image = Image { present: true, ..Image::default() };
    for (name, hook, rules) in layout::chains() {
        image.chains.insert(name, Chain { hook, rules });
    }
    for f in Family::BOTH {
        for (name, shape) in layout::shapes(f) {
            image.sets.insert(in_family(name, f), Set { shape, elements: BTreeMap::new() });
        }
    }
    if let Some(v) = &intent.vxlan {
        for (name, hook, rules) in layout::tunnel_chains(Family::of(v.local)) {
            image.chains.insert(name, Chain { hook, rules });
        }
    }
    let mut f = Fragment::default();
    f.cluster(intent);
    f.sources(intent, caps);
    put(&mut image, f.elements);
    image
}

/// Adds elements to an image that has their sets.
pub(crate) fn put(image: &mut Image, elements: impl IntoIterator<Item = (String, Key, Data)>) {
    for (set, key, data) in elements {
        if let Some(s) = image.sets.get_mut(&set) {
            s.elements.insert(key, data);
        }
    }
}

/// What this plane does not express of what is no Service; `node_ports` says whose each is.
pub(crate) fn refuse_unsupported(
    intent: &NodeIntent,
    node_ports: &BTreeMap<(Proto, u16), ServiceKey>,
    refused: &mut Vec<Refused>,
) {
    // Host ports are the plugin's, in a table of their own that asks after this one.
    for (key, a) in &intent.attachments {
        for p in &a.host_ports {
            let Some(svc) = node_ports.get(&(p.host.proto, p.host.port)) else { continue };
            refused.push(Refused {
                object: a.pod.as_ref().map_or_else(|| format!("Sandbox/{key}"), |p| format!("Pod/{p}")),
                field: "spec.containers[].ports[].hostPort".into(),
                why: format!(
                    "{} is also the node port of {}, which comes first: choose another hostPort, or another nodePort",
                    p.host,
                    service(svc)
                ),
            });
        }
    }
    for name in intent.policies.keys() {
        refused.push(Refused {
            object: format!("NetworkPolicy/{name}"),
            field: "spec".into(),
            why: "network policies are not enforced yet: traffic is allowed as if this policy were not there".into(),
        });
    }
}

fn service(key: &ServiceKey) -> String {
    if key.port.is_empty() {
        format!("Service/{}", key.service)
    } else {
        format!("Service/{}:{}", key.service, key.port)
    }
}

/// Where a Service port is reached.
#[derive(Clone, Copy)]
enum Front {
    Vip(IpAddr),
    Node(Family),
}

impl Front {
    fn family(self) -> Family {
        match self {
            Self::Vip(a) => Family::of(a),
            Self::Node(f) => f,
        }
    }

    /// The key of its elements; with a mark, of its endpoints.
    fn key(self, mark: Option<u32>, proto: Proto, port: u16) -> KeyBytes {
        let k = mark.map_or(KeyBytes::new(), |m| KeyBytes::new().mark(m));
        let k = match self {
            Self::Vip(a) => k.addr(a),
            Self::Node(_) => k,
        };
        k.proto(proto).port(port)
    }

    /// The set of the kind, by whether this is an address or a port of the node.
    fn set(self, vip: &str, node: &str) -> String {
        match self {
            Self::Vip(_) => in_family(vip, self.family()),
            Self::Node(_) => in_family(node, self.family()),
        }
    }
}

/// An element that several Services may have: it is there as long as one of them has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shared {
    /// The endpoint speaks to itself through a Service.
    Hairpin(IpAddr),
}

impl Shared {
    pub(crate) fn element(self) -> (String, Key, Data) {
        match self {
            Self::Hairpin(a) => {
                let pair = KeyBytes::new().addr(a).addr(a).done();
                (in_family("hairpin", Family::of(a)), Key::one(pair), Data::Member)
            }
        }
    }
}

/// A part of an image: the elements of the base, or those of one Service, which depend on nothing but its ports.
#[derive(Default)]
pub(crate) struct Fragment {
    /// Set, key, data; nobody else's.
    pub elements: Vec<(String, Key, Data)>,
    /// What another may have as well.
    pub shared: Vec<Shared>,
    /// The chains that its verdicts name.
    pub picks: BTreeSet<Pick>,
    /// What cannot be said.
    pub refused: Vec<Refused>,
}

impl Fragment {
    /// All the ports of one Service.
    pub(crate) fn of<'a>(ports: impl IntoIterator<Item = (&'a ServiceKey, &'a Arc<ServicePort>)>) -> Self {
        let mut out = Self::default();
        for (key, svc) in ports {
            out.port(key, svc);
        }
        out
    }

    fn put(&mut self, set: String, key: Key, data: Data) {
        self.elements.push((set, key, data));
    }

    fn put_addr(&mut self, set: &str, addr: IpAddr) {
        self.put(in_family(set, Family::of(addr)), Key::one(KeyBytes::new().addr(addr).done()), Data::Member);
    }

    fn put_ranges<'a>(&mut self, set: &str, cidrs: impl IntoIterator<Item = &'a Cidr>) {
        for (first, last) in ranges(cidrs) {
            let key = Key::range(KeyBytes::new().addr(first).done(), KeyBytes::new().addr(last).done());
            self.put(in_family(set, Family::of(first)), key, Data::Member);
        }
    }

    /// Addresses and ranges of the cluster.
    fn cluster(&mut self, intent: &NodeIntent) {
        self.put_ranges("cluster_cidrs", &intent.cluster_cidrs);
        self.put_ranges("masqueraded", &intent.masqueraded);
        for a in intent.addresses.iter().chain(intent.peers.values().flat_map(|p| &p.addresses)) {
            self.put_addr("node_addresses", *a);
        }
        for a in &intent.addresses {
            self.put_addr("own_addresses", *a);
        }
        if let Some(v) = &intent.vxlan {
            let key = Key::one(v.port.to_be_bytes().to_vec());
            self.put(in_family("tunnel_ports", Family::of(v.local)), key, Data::Member);
        }
    }

    /// The address that this node's own packets to pods have: the first of the Node's that an interface of the machine
    /// has. A cloud's external address is on none.
    fn sources(&mut self, intent: &NodeIntent, caps: &Caps) {
        let here: BTreeSet<IpAddr> = caps.links.values().flat_map(|l| l.addresses.iter().map(|(a, _)| *a)).collect();
        for family in Family::BOTH {
            let own = intent.addresses.iter().find(|a| Family::of(**a) == family && here.contains(*a));
            let Some(own) = own else { continue };
            for p in Proto::ALL {
                let key = Key::one(vec![p.number()]);
                self.put(in_family("sources", family), key, Data::Value(KeyBytes::new().addr(*own).done().into()));
            }
        }
    }

    /// Every place where a Service port is reached, none of which is another's ([`NodeIntent::services`]).
    fn port(&mut self, key: &ServiceKey, svc: &ServicePort) {
        for ip in &svc.cluster_ips {
            self.put_addr("cluster_ips", *ip);
            self.internal(key, svc, *ip);
        }
        for ip in &svc.external_ips {
            self.firewall(key, svc, *ip);
            self.external(key, svc, Front::Vip(*ip), svc.port);
        }
        for f in svc.families.iter() {
            let Some(port) = svc.node_port else { continue };
            self.external(key, svc, Front::Node(f), port);
        }
        if let Affinity::ClientIp { .. } = svc.affinity {
            self.refused.push(Refused {
                object: service(key),
                field: "spec.sessionAffinity".into(),
                why: "ClientIP is not done yet in mode nftables: the Service works, but each connection chooses its \
                      endpoint anew; set None to say so"
                    .into(),
            });
        }
    }

    fn internal(&mut self, key: &ServiceKey, svc: &ServicePort, ip: IpAddr) {
        let front = Front::Vip(ip);
        let all = of_family(&svc.endpoints, front.family());
        let verdict = if svc.internal_policy == TrafficPolicy::Local {
            let local = of_family(&svc.local_endpoints, front.family());
            self.endpoints(key, front, svc.port, &local, !all.is_empty(), false)
        } else {
            self.endpoints(key, front, svc.port, &all, false, false)
        };
        let services = front.set("services", "nodeports");
        self.put(services, Key::one(front.key(None, key.proto, svc.port).done()), Data::Verdict(verdict));
    }

    fn external(&mut self, key: &ServiceKey, svc: &ServicePort, front: Front, port: u16) {
        let at = || Key::one(front.key(None, key.proto, port).done());
        let all = of_family(&svc.endpoints, front.family());
        let verdict = self.endpoints(key, front, port, &all, false, false);
        self.put(front.set("services", "nodeports"), at(), Data::Verdict(verdict));
        let masquerade = match svc.external_policy {
            TrafficPolicy::Cluster => layout::MASQUERADE_EXTERNAL.into(),
            TrafficPolicy::Local => {
                // Sources inside the cluster use all endpoints; only those outside need the other entry.
                let local = of_family(&svc.local_endpoints, front.family());
                if local != all {
                    let verdict = self.endpoints(key, front, port, &local, !all.is_empty(), true);
                    self.put(front.set("local_services", "local_nodeports"), at(), Data::Verdict(verdict));
                }
                in_family("masquerade_local", front.family())
            }
        };
        self.put(front.set("externals", "external_ports"), at(), Data::Verdict(Verdict::Goto(masquerade)));
    }

    /// Fills the slots of one front and gives the verdict that leads to them.
    fn endpoints(
        &mut self,
        key: &ServiceKey,
        front: Front,
        port: u16,
        endpoints: &[Endpoint],
        elsewhere: bool,
        local: bool,
    ) -> Verdict {
        let usable = endpoints.get(..layout::MAX_ENDPOINTS).unwrap_or(endpoints);
        if usable.len() < endpoints.len() {
            self.refused.push(Refused {
                object: service(key),
                field: "endpoints".into(),
                why: format!(
                    "{} endpoints, of which the first {} are used: split the Service",
                    endpoints.len(),
                    usable.len()
                ),
            });
        }
        let count = u32::try_from(usable.len()).unwrap_or(0);
        if count == 0 {
            return Verdict::Goto(if elsewhere { layout::DROP_NO_LOCAL } else { layout::REJECT_NO_ENDPOINTS }.into());
        }
        let family = front.family();
        let pick = Pick { family, node: matches!(front, Front::Node(_)), local, count };
        let set = front.set("endpoints", "node_endpoints");
        for (slot, e) in (0u32..).zip(usable) {
            let at = front.key(Some(pick.slot_mark(slot)), key.proto, port).done();
            let to = KeyBytes::new().addr(e.addr).port(e.port).done();
            self.put(set.clone(), Key::one(at), Data::Value(to.into()));
            self.shared.push(Shared::Hairpin(e.addr));
        }
        self.picks.insert(pick);
        Verdict::Goto(pick.chain())
    }

    fn firewall(&mut self, key: &ServiceKey, svc: &ServicePort, ip: IpAddr) {
        if svc.source_ranges.is_empty() {
            return;
        }
        let family = Family::of(ip);
        let at = || Front::Vip(ip).key(None, key.proto, svc.port);
        self.put(in_family("firewalled", family), Key::one(at().done()), Data::Member);
        for (first, last) in ranges(svc.source_ranges.iter().filter(|c| c.family() == family)) {
            let key = Key::range(at().addr(first).done(), at().addr(last).done());
            self.put(in_family("source_ranges", family), key, Data::Member);
        }
    }
}

fn of_family(endpoints: &BTreeSet<Endpoint>, family: Family) -> Vec<Endpoint> {
    endpoints.iter().copied().filter(|e| Family::of(e.addr) == family).collect()
}

/// The addresses of some ranges as ranges that neither overlap nor touch: the kernel refuses the former and cannot tell
/// the latter from one.
fn ranges<'a>(cidrs: impl IntoIterator<Item = &'a Cidr>) -> Vec<(IpAddr, IpAddr)> {
    let mut sorted: Vec<(IpAddr, IpAddr)> = cidrs.into_iter().map(|c| (c.addr(), c.last())).collect();
    sorted.sort();
    let mut out: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match out.last_mut() {
            Some((_, end)) if first <= *end || follows(*end) == Some(first) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

/// The next address of the same family.
fn follows(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| std::net::Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| std::net::Ipv6Addr::from(n).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_neither_overlap_nor_touch() {
        let parse = |s: &str| s.parse::<Cidr>().unwrap();
        let of = |s: &[&str]| -> Vec<String> {
            let cidrs: Vec<Cidr> = s.iter().map(|c| parse(c)).collect();
            ranges(&cidrs).into_iter().map(|(a, b)| format!("{a}-{b}")).collect()
        };
        assert_eq!(of(&["10.1.0.0/16", "10.0.0.0/16", "10.0.3.0/24"]), ["10.0.0.0-10.1.255.255"]);
        assert_eq!(
            of(&["0.0.0.0/0", "10.0.0.0/8", "::/0"]),
            ["0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
        assert_eq!(of(&["255.255.255.255/32", "::/128"]), ["255.255.255.255-255.255.255.255", "::-::"]);
        assert_eq!(of(&["10.0.0.0/24", "10.0.2.0/24"]), ["10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"]);
    }
}
