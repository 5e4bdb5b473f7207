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
use crate::late;
use crate::layout::{self, Pick, in_family};
use crate::ranges::{merged, own_pods, ranges};
use crate::sticky::{self, ServiceId};
use crate::tracker::Tracker;

/// Kernel features without which nothing of this plane works, as [`Caps::missing`] names them.
const NEEDED: [&str; 7] = ["nf_tables", "nft_nat", "nft_masq", "nft_numgen", "nft_reject", "nft_ct", "nf_conntrack"];

/// The one without which unused ports and addresses are not refused.
const FIB: &str = "nft_fib";

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
    if !caps.missing.contains(FIB) {
        for (name, hook, rules) in late::chains() {
            image.chains.insert(name, Chain { hook, rules });
        }
    }
    for f in Family::BOTH {
        for (name, shape) in layout::shapes(f) {
            image.sets.insert(in_family(name, f), Set { shape, elements: BTreeMap::new() });
        }
    }
    for v in intent.tunnels() {
        for (name, hook, rules) in layout::tunnel_chains(Family::of(v.local)) {
            image.chains.entry(name).or_insert_with(|| Chain { hook, rules: Vec::new() }).rules.extend(rules);
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
    caps: &Caps,
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
    if caps.missing.contains(FIB) {
        refused.push(Refused {
            object: format!("Node/{}", intent.node),
            field: "service mode nftables".into(),
            why: format!(
                "the kernel has no {FIB}: packets to Services' addresses that no Service serves are not refused; enable it"
            ),
        });
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
    /// An address for traffic from outside, of some port.
    Outside(IpAddr),
}

impl Shared {
    pub(crate) fn element(self) -> (String, Key, Data) {
        match self {
            Self::Hairpin(a) => {
                let pair = KeyBytes::new().addr(a).addr(a).done();
                (in_family("hairpin", Family::of(a)), Key::one(pair), Data::Member)
            }
            Self::Outside(a) => {
                let key = Key::one(KeyBytes::new().addr(a).done());
                (in_family("outside_ips", Family::of(a)), key, Data::Member)
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
            out.port(Of { key, svc, id: (svc.affinity != Affinity::None).then(|| sticky::service_id(key)) });
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
            self.put_range(set, first, last);
        }
    }

    fn put_range(&mut self, set: &str, first: IpAddr, last: IpAddr) {
        let key = Key::range(KeyBytes::new().addr(first).done(), KeyBytes::new().addr(last).done());
        self.put(in_family(set, Family::of(first)), key, Data::Member);
    }

    /// Addresses and ranges of the cluster.
    fn cluster(&mut self, intent: &NodeIntent) {
        self.put_ranges("cluster_cidrs", &intent.cluster_cidrs);
        self.put_ranges("masqueraded", &intent.masqueraded);
        self.put_ranges("service_cidrs", &intent.service_cidrs);
        for (first, last) in merged(intent.balancer_ranges.iter().copied().collect()) {
            self.put_range("balancer_ranges", first, last);
        }
        for a in intent.addresses.iter().chain(intent.peers.values().flat_map(|p| &p.addresses)) {
            self.put_addr("node_addresses", *a);
        }
        for a in &intent.addresses {
            self.put_addr("own_addresses", *a);
        }
        for a in &intent.node_port_addresses {
            self.put_addr("node_port_addresses", *a);
        }
        for (first, last) in own_pods(intent) {
            self.put_range("own_pods", first, last);
        }
        for v in intent.tunnels() {
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
    fn port(&mut self, of: Of<'_>) {
        let svc = of.svc;
        for ip in &svc.cluster_ips {
            self.put_addr("cluster_ips", *ip);
            self.internal(of, *ip);
        }
        for ip in svc.outside_ips() {
            self.shared.push(Shared::Outside(ip));
            if svc.balancer_ips.contains(&ip) {
                self.firewall(of, ip);
            }
            self.external(of, Front::Vip(ip), svc.port);
        }
        for f in svc.families.iter() {
            let Some(port) = svc.node_port else { continue };
            self.external(of, Front::Node(f), port);
        }
    }

    fn internal(&mut self, of: Of<'_>, ip: IpAddr) {
        let (svc, front) = (of.svc, Front::Vip(ip));
        let all = of_family(&svc.endpoints, front.family());
        let local = of_family(&svc.local_endpoints, front.family());
        let verdict = if svc.internal_policy == TrafficPolicy::Local && local != all {
            self.endpoints(of, front, svc.port, &local, !all.is_empty(), true)
        } else {
            self.endpoints(of, front, svc.port, &all, false, false)
        };
        let services = front.set("services", "nodeports");
        self.put(services, Key::one(front.key(None, of.key.proto, svc.port).done()), Data::Verdict(verdict));
    }

    fn external(&mut self, of: Of<'_>, front: Front, port: u16) {
        let at = || Key::one(front.key(None, of.key.proto, port).done());
        let all = of_family(&of.svc.endpoints, front.family());
        let verdict = self.endpoints(of, front, port, &all, false, false);
        self.put(front.set("services", "nodeports"), at(), Data::Verdict(verdict));
        let masquerade = match of.svc.external_policy {
            TrafficPolicy::Cluster => layout::MASQUERADE_EXTERNAL.into(),
            TrafficPolicy::Local => {
                // Sources inside the cluster use all endpoints; only those outside need the other entry.
                let local = of_family(&of.svc.local_endpoints, front.family());
                if local != all {
                    let verdict = self.endpoints(of, front, port, &local, !all.is_empty(), true);
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
        of: Of<'_>,
        front: Front,
        port: u16,
        endpoints: &[Endpoint],
        elsewhere: bool,
        local: bool,
    ) -> Verdict {
        let usable = endpoints.get(..layout::MAX_ENDPOINTS).unwrap_or(endpoints);
        if usable.len() < endpoints.len() {
            self.refused.push(Refused {
                object: service(of.key),
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
        let sticky = match of.svc.affinity {
            Affinity::None => None,
            Affinity::ClientIp { timeout } => Some(timeout),
        };
        let pick = Pick { family: front.family(), node: matches!(front, Front::Node(_)), local, count, sticky };
        self.shared.extend(usable.iter().map(|e| Shared::Hairpin(e.addr)));
        match of.id {
            Some(id) => self.sticky(of, id, front, port, pick, usable),
            None => {
                let set = front.set("endpoints", "node_endpoints");
                for (slot, e) in (0u32..).zip(usable) {
                    let at = front.key(Some(pick.slot_mark(slot)), of.key.proto, port).done();
                    self.put(set.clone(), Key::one(at), target(*e));
                }
            }
        }
        self.picks.insert(pick);
        Verdict::Goto(pick.chain())
    }

    /// The slots and endpoints of a Service port with session affinity: the same for all its fronts, so put more than
    /// once.
    fn sticky(&mut self, of: Of<'_>, id: ServiceId, front: Front, port: u16, pick: Pick, usable: &[Endpoint]) {
        let at = || Key::one(front.key(None, of.key.proto, port).done());
        self.put(front.set("sticky_a", "sticky_node_a"), at(), number(id.a));
        self.put(front.set("sticky_b", "sticky_node_b"), at(), number(id.b));
        let everyone = of.svc.endpoints.union(&of.svc.local_endpoints).copied();
        let everyone: BTreeSet<Endpoint> = everyone.filter(|e| Family::of(e.addr) == pick.family).collect();
        let ids = sticky::endpoint_ids(&everyone);
        let set = in_family(if pick.local { "local_sticky_endpoints" } else { "sticky_endpoints" }, pick.family);
        for (slot, e) in (0u32..).zip(usable) {
            let Some(endpoint) = ids.get(e).copied() else { continue };
            let slot = KeyBytes::new().mark(pick.slot_mark(slot)).mark(id.a).mark(id.b).done();
            self.put(in_family("sticky_slots", pick.family), Key::one(slot), number(endpoint));
            let key = KeyBytes::new().mark(endpoint).mark(id.a).mark(id.b).proto(of.key.proto).done();
            self.put(set.clone(), Key::one(key), target(*e));
        }
    }

    fn firewall(&mut self, of: Of<'_>, ip: IpAddr) {
        let family = Family::of(ip);
        let svc = of.svc;
        let allowed: Vec<Cidr> = svc.source_ranges.iter().filter(|c| c.family() == family).copied().collect();
        if allowed.is_empty() {
            return;
        }
        let at = || Front::Vip(ip).key(None, of.key.proto, svc.port);
        self.put(in_family("firewalled", family), Key::one(at().done()), Data::Member);
        for (first, last) in ranges(&allowed) {
            let key = Key::range(at().addr(first).done(), at().addr(last).done());
            self.put(in_family("source_ranges", family), key, Data::Member);
        }
    }
}

/// A Service port, with its number if it has session affinity.
#[derive(Clone, Copy)]
struct Of<'a> {
    key: &'a ServiceKey,
    svc: &'a ServicePort,
    id: Option<ServiceId>,
}

fn target(e: Endpoint) -> Data {
    Data::Value(KeyBytes::new().addr(e.addr).port(e.port).done().into())
}

fn number(id: u32) -> Data {
    Data::Value(KeyBytes::new().mark(id).done().into())
}

fn of_family(endpoints: &BTreeSet<Endpoint>, family: Family) -> Vec<Endpoint> {
    endpoints.iter().copied().filter(|e| Family::of(e.addr) == family).collect()
}
