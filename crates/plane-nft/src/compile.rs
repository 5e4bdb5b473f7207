//! From an intent to the image that says it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use intent::{Affinity, Endpoint, NodeIntent, ServiceKey, ServicePort, TrafficPolicy};
use kernel_api::nft::Verdict;
use plan::{Caps, Compiled, Refused};
use types::{AddressRange, Cidr, Family, FlatSet, Proto};

use crate::elements::{Elements, Pending};
use crate::image::{Chain, Data, Image, Set};
use crate::key::{KeyBytes, endpoint_of};
use crate::late;
use crate::layout::{self, Pick, SetId, in_family};
use crate::ranges::{own_pods, ranges};
use crate::slots::{self, Orders, Place, Slots};
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
            // Nothing is ever stale of Services that another serves: without the set no plan forgets anything.
            if name == "stale" && intent.services_elsewhere {
                continue;
            }
            image.sets.insert(in_family(name, f), Set { shape, elements: Elements::default() });
        }
    }
    for v in intent.tunnels() {
        for (name, hook, rules) in layout::tunnel_chains(v) {
            image.chains.entry(name).or_insert_with(|| Chain { hook, rules: Vec::new() }).rules.extend(rules);
        }
    }
    let mut f = Fragment::default();
    f.cluster(intent);
    f.sources(intent, caps);
    let mut sheets = Sheets::default();
    sheets.put(&f);
    sheets.into_image(&mut image);
    image
}

/// Elements on their way into an image, set by set.
#[derive(Default)]
pub(crate) struct Sheets(BTreeMap<SetId, Pending>);

impl Sheets {
    /// Those of a fragment too.
    pub(crate) fn put(&mut self, fragment: &Fragment) {
        for (set, e) in fragment.sets.iter().zip(fragment.elements.iter()) {
            self.0.entry(*set).or_default().push_element(e);
        }
    }

    /// Into an image that has their sets.
    pub(crate) fn into_image(self, image: &mut Image) {
        for ((name, family), mut all) in self.0 {
            let Some(set) = image.sets.get_mut(&in_family(name, family)) else { continue };
            if !set.elements.is_empty() {
                let mut both = std::mem::take(&mut set.elements);
                all.iter().for_each(|e| both.push_element(e));
                all = both;
            }
            all.sort();
            set.elements = all;
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
    fn set(self, vip: &'static str, node: &'static str) -> SetId {
        (if matches!(self, Self::Vip(_)) { vip } else { node }, self.family())
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
    /// A fragment of these elements.
    pub(crate) fn fragment(all: impl IntoIterator<Item = Self>) -> Fragment {
        let mut out = Fragment::default();
        for shared in all {
            match shared {
                Self::Hairpin(a) => out.put_member(("hairpin", Family::of(a)), KeyBytes::new().addr(a).addr(a)),
                Self::Outside(a) => out.put_addr("outside_ips", a),
            }
        }
        out
    }
}

/// A part of an image: the elements of the base, or those of one Service, which depend on nothing but its ports.
#[derive(Default)]
pub(crate) struct Fragment {
    /// Nobody else's elements, in the order in which they were put, not sorted.
    elements: Pending,
    /// The set of each.
    sets: Vec<SetId>,
    /// What another may have as well.
    pub shared: Vec<Shared>,
    /// The chains that its verdicts name.
    pub picks: BTreeSet<Pick>,
    /// What cannot be said.
    pub refused: Vec<Refused>,
    /// Which endpoint has which slot.
    pub slots: Slots,
}

impl Fragment {
    /// All the ports of one Service.
    pub(crate) fn of<'a>(
        ports: impl IntoIterator<Item = (&'a ServiceKey, &'a Arc<ServicePort>)>,
        order: Order<'_>,
    ) -> Self {
        let mut out = Self::default();
        for (key, svc) in ports {
            let id = (svc.affinity != Affinity::None).then(|| sticky::service_id(key));
            out.port(Of { key, svc, id, order });
        }
        out
    }

    /// The endpoints by slot: as at the places before, of which there may be one with the same.
    fn slots(&mut self, of: Of<'_>, front: Front, port: u16, pick: Pick, usable: &[Endpoint]) -> Vec<Endpoint> {
        let place = Place { key: of.key.clone(), family: pick.family, local: pick.local };
        if let Some(found) = slots::of(&self.slots, &place) {
            return found.to_vec();
        }
        let listed = |was: Option<&[Endpoint]>| match was {
            Some(was) => slots::arrange(|n| was.get(n).copied(), usable),
            None => usable.to_vec(),
        };
        let found = match of.order {
            Order::Sorted => listed(None),
            Order::Of(orders) => listed(orders.get(&place)),
            Order::After(slots) => listed(slots::of(slots, &place)),
            Order::In(image) => self.seen(image, of, front, port, pick, usable),
        };
        self.slots.push((place, found.clone()));
        found
    }

    /// As an image has them.
    fn seen(
        &self,
        image: &Image,
        of: Of<'_>,
        front: Front,
        port: u16,
        pick: Pick,
        usable: &[Endpoint],
    ) -> Vec<Endpoint> {
        let set = |(name, family): SetId| image.sets.get(&in_family(name, family)).map(|s| &s.elements);
        let mark = |n: usize| u32::try_from(n).ok().map(|n| pick.slot_mark(n));
        let Some(id) = of.id else {
            let Some(there) = set(front.set("endpoints", "node_endpoints")) else { return usable.to_vec() };
            let at = |n: usize| {
                let key = front.key(Some(mark(n)?), of.key.proto, port);
                endpoint_of(there.get(&key)?.value()?, pick.family)
            };
            return slots::arrange(at, usable);
        };
        let Some(there) = set(("sticky_slots", pick.family)) else { return usable.to_vec() };
        let everyone = everyone(of.svc, pick.family);
        let by_id: BTreeMap<u32, Endpoint> =
            sticky::endpoint_ids(&everyone).into_iter().map(|(e, id)| (id, *e)).collect();
        let at = |n: usize| {
            let key = KeyBytes::new().mark(mark(n)?).mark(id.a).mark(id.b);
            let number = there.get(&key)?.value()?.try_into().ok()?;
            by_id.get(&u32::from_ne_bytes(number)).copied()
        };
        slots::arrange(at, usable)
    }

    fn put_member(&mut self, set: SetId, key: KeyBytes) {
        self.sets.push(set);
        self.elements.push(&key, None, &Data::Member);
    }

    fn put_value(&mut self, set: SetId, key: KeyBytes, value: &[u8]) {
        self.sets.push(set);
        self.elements.push_value(&key, value);
    }

    fn put_verdict(&mut self, set: SetId, key: KeyBytes, chain: Cow<'_, str>) {
        self.sets.push(set);
        self.elements.push(&key, None, &Data::Verdict(Verdict::Goto(chain.into_owned())));
    }

    fn put_addr(&mut self, set: &'static str, addr: IpAddr) {
        self.put_member((set, Family::of(addr)), KeyBytes::new().addr(addr));
    }

    fn put_ranges<'a>(&mut self, set: &'static str, cidrs: impl IntoIterator<Item = &'a Cidr>) {
        for r in ranges(cidrs) {
            self.put_range(set, KeyBytes::new(), r);
        }
    }

    /// A range whose key begins like this.
    fn put_range(&mut self, set: &'static str, begin: KeyBytes, range: AddressRange) {
        self.sets.push((set, range.family()));
        self.elements.push(&begin.addr(range.first()), Some(&begin.addr(range.last())), &Data::Member);
    }

    /// Addresses and ranges of the cluster.
    fn cluster(&mut self, intent: &NodeIntent) {
        self.put_ranges("cluster_cidrs", &intent.cluster_cidrs);
        self.put_ranges("masqueraded", &intent.masqueraded);
        self.put_ranges("service_cidrs", &intent.service_cidrs);
        for r in AddressRange::merged(intent.balancer_ranges.iter().copied().collect()) {
            self.put_range("balancer_ranges", KeyBytes::new(), r);
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
        for r in own_pods(intent) {
            self.put_range("own_pods", KeyBytes::new(), r);
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
                self.put_value(("sources", family), KeyBytes::alone(&[p.number()]), &KeyBytes::new().addr(*own));
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
        self.put_verdict(services, front.key(None, of.key.proto, svc.port), verdict);
    }

    fn external(&mut self, of: Of<'_>, front: Front, port: u16) {
        let at = front.key(None, of.key.proto, port);
        let all = of_family(&of.svc.endpoints, front.family());
        let verdict = self.endpoints(of, front, port, &all, false, false);
        self.put_verdict(front.set("services", "nodeports"), at, verdict);
        let masquerade = match of.svc.external_policy {
            TrafficPolicy::Cluster => Cow::Borrowed(layout::MASQUERADE_EXTERNAL),
            TrafficPolicy::Local => {
                // Sources inside the cluster use all endpoints; only those outside need the other entry.
                let local = of_family(&of.svc.local_endpoints, front.family());
                if local != all {
                    let verdict = self.endpoints(of, front, port, &local, !all.is_empty(), true);
                    self.put_verdict(front.set("local_services", "local_nodeports"), at, verdict);
                }
                in_family("masquerade_local", front.family()).into()
            }
        };
        self.put_verdict(front.set("externals", "external_ports"), at, masquerade);
    }

    /// Fills the slots of one front and gives the chain that leads to them.
    fn endpoints(
        &mut self,
        of: Of<'_>,
        front: Front,
        port: u16,
        endpoints: &[Endpoint],
        elsewhere: bool,
        local: bool,
    ) -> Cow<'static, str> {
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
            return if elsewhere { layout::DROP_NO_LOCAL } else { layout::REJECT_NO_ENDPOINTS }.into();
        }
        let sticky = match of.svc.affinity {
            Affinity::None => None,
            Affinity::ClientIp { timeout } => Some(timeout),
        };
        let pick = Pick { family: front.family(), node: matches!(front, Front::Node(_)), local, count, sticky };
        self.shared.extend(usable.iter().map(|e| Shared::Hairpin(e.addr)));
        let usable = &self.slots(of, front, port, pick, usable);
        match of.id {
            Some(id) => self.sticky(of, id, front, port, pick, usable),
            None => {
                let set = front.set("endpoints", "node_endpoints");
                for (slot, e) in (0u32..).zip(usable) {
                    let at = front.key(Some(pick.slot_mark(slot)), of.key.proto, port);
                    self.put_value(set, at, &target(*e));
                }
            }
        }
        self.picks.insert(pick);
        pick.chain().into()
    }

    /// The slots and endpoints of a Service port with session affinity: the same for all its fronts, so put more than
    /// once.
    fn sticky(&mut self, of: Of<'_>, id: ServiceId, front: Front, port: u16, pick: Pick, usable: &[Endpoint]) {
        let at = front.key(None, of.key.proto, port);
        self.put_value(front.set("sticky_a", "sticky_node_a"), at, &number(id.a));
        self.put_value(front.set("sticky_b", "sticky_node_b"), at, &number(id.b));
        let everyone = everyone(of.svc, pick.family);
        let ids = sticky::endpoint_ids(&everyone);
        let set = (if pick.local { "local_sticky_endpoints" } else { "sticky_endpoints" }, pick.family);
        for (slot, e) in (0u32..).zip(usable) {
            let Some(endpoint) = ids.get(e).copied() else { continue };
            let slot = KeyBytes::new().mark(pick.slot_mark(slot)).mark(id.a).mark(id.b);
            self.put_value(("sticky_slots", pick.family), slot, &number(endpoint));
            let key = KeyBytes::new().mark(endpoint).mark(id.a).mark(id.b).proto(of.key.proto);
            self.put_value(set, key, &target(*e));
        }
    }

    fn firewall(&mut self, of: Of<'_>, ip: IpAddr) {
        let family = Family::of(ip);
        let svc = of.svc;
        let allowed: Vec<Cidr> = svc.source_ranges.iter().filter(|c| c.family() == family).copied().collect();
        if allowed.is_empty() {
            return;
        }
        let at = Front::Vip(ip).key(None, of.key.proto, svc.port);
        self.put_member(("firewalled", family), at);
        for r in ranges(&allowed) {
            self.put_range("source_ranges", at, r);
        }
    }
}

/// A Service port, with its number if it has session affinity.
#[derive(Clone, Copy)]
struct Of<'a> {
    key: &'a ServiceKey,
    svc: &'a ServicePort,
    id: Option<ServiceId>,
    order: Order<'a>,
}

/// Where the order of a Service's slots comes from.
#[derive(Clone, Copy)]
pub(crate) enum Order<'a> {
    /// From the endpoints themselves.
    Sorted,
    /// It is one of these, if it is another than that.
    Of(&'a Orders),
    /// Follows these.
    After(&'a Slots),
    /// As it is in an image.
    In(&'a Image),
}

/// Every endpoint of a family that a port may be translated to.
fn everyone(svc: &ServicePort, family: Family) -> BTreeSet<Endpoint> {
    svc.endpoints.union(&svc.local_endpoints).copied().filter(|e| Family::of(e.addr) == family).collect()
}

fn target(e: Endpoint) -> KeyBytes {
    KeyBytes::new().addr(e.addr).port(e.port)
}

fn number(id: u32) -> KeyBytes {
    KeyBytes::new().mark(id)
}

fn of_family(endpoints: &FlatSet<Endpoint>, family: Family) -> Vec<Endpoint> {
    endpoints.iter().copied().filter(|e| Family::of(e.addr) == family).collect()
}
