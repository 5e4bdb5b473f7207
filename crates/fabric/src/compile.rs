//! Intent to image.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intent::{NodeIntent, Reach, Vxlan};
use kernel_api::rt::{FdbEntry, Neighbour, Route, RouteTo};
use plan::{Caps, Compiled, Refused};
use types::{Cidr, Family, IfName, Mac, NodeName, OwnedName};

use crate::backend::{host_gw, vxlan};
use crate::image::{Image, Index, STRAY_METRIC, knob};

/// The image that says `intent`, and what it cannot say. A range that cannot be reached gets an unreachable route, so
/// that its packets are answered here and do not wander off by the default route.
pub fn compile(intent: &NodeIntent, caps: &Caps) -> Compiled<Image> {
    let mut c = Compiler {
        image: Image { index: index(intent), ..Image::default() },
        refused: BTreeSet::new(),
        ways: BTreeMap::new(),
        devices: BTreeMap::new(),
        gateways: BTreeMap::new(),
        tunnels: BTreeMap::new(),
        links: caps.uplink.iter().map(|u| u.name.clone()).collect(),
    };
    c.devices(intent, caps);
    c.peers(intent, caps);
    c.own(intent);
    c.sysctls(intent);
    for way in c.ways.into_values() {
        c.image.routes.insert(way.route);
        if let Some((neighbour, fdb)) = way.tunnel {
            c.image.neighbours.insert(neighbour);
            c.image.fdb.insert(fdb);
        }
    }
    Compiled { image: c.image, refused: c.refused.into_iter().collect() }
}

fn index(intent: &NodeIntent) -> Index {
    Index {
        local: intent.addresses.clone(),
        foreign: BTreeSet::new(),
        peers: intent.peers.iter().flat_map(|(n, p)| p.routes.iter().map(|r| (r.cidr, n.clone()))).collect(),
        pods: intent.attachments.iter().map(|(k, a)| (a.link.clone(), k.clone())).collect(),
    }
}

/// The field that stands against a thing, and why with what to do.
type Why = (&'static str, String);

/// The rows that carry packets to one destination.
struct Way {
    route: Route,
    tunnel: Option<(Neighbour, FdbEntry)>,
}

impl Way {
    fn plain(dst: Cidr, to: RouteTo) -> Self {
        let mut route = Route::new(dst, to);
        if route.to == RouteTo::Blackhole {
            // A bridge that pods are wired to has a connected route to the very range: that one counts then.
            route.metric = STRAY_METRIC;
        }
        Self { route, tunnel: None }
    }
}

struct Compiler {
    image: Image,
    refused: BTreeSet<Refused>,
    /// By destination: a destination has one route.
    ways: BTreeMap<Cidr, Way>,
    /// The device by the family of its underlay, or the field and reason why there is none.
    devices: BTreeMap<Family, Result<OwnedName, Why>>,
    /// Whose hardware address leads where: one address cannot lead to two nodes.
    tunnels: BTreeMap<Mac, (NodeName, IpAddr)>,
    /// Whose gateway an overlay address is: nested ranges may begin with the same one.
    gateways: BTreeMap<IpAddr, (NodeName, Mac)>,
    /// Links by which peers' packets come in.
    links: BTreeSet<IfName>,
}

impl Compiler {
    fn refuse(&mut self, node: &NodeName, field: impl Into<String>, why: impl Into<String>) {
        self.refused.insert(Refused { object: format!("Node/{node}"), field: field.into(), why: why.into() });
    }

    fn devices(&mut self, intent: &NodeIntent, caps: &Caps) {
        let second = intent.vxlan6.as_ref().map(|v| (v, OwnedName::vxlan6(v.vni)));
        for (v, name) in intent.vxlan.iter().map(|v| (v, OwnedName::vxlan(v.vni))).chain(second) {
            let device = self.device(intent, caps, v, name);
            self.devices.insert(Family::of(v.local), device);
        }
    }

    fn device(&mut self, intent: &NodeIntent, caps: &Caps, v: &Vxlan, name: OwnedName) -> Result<OwnedName, Why> {
        // Where each family has a tunnel, this one carries its own.
        let one = intent.vxlan6.is_none();
        let families: Vec<Family> = intent.families.iter().filter(|f| one || *f == Family::of(v.local)).collect();
        match vxlan::device(v, caps, &families) {
            Ok(device) => {
                self.image.vxlan.insert(name.clone(), device);
                self.tunnels.insert(v.mac, (intent.node.clone(), v.local));
                self.image.addresses.extend(v.addresses.iter().map(|a| (name.clone(), *a)));
                Ok(name)
            }
            Err((field, why)) => {
                self.refuse(&intent.node, field, why.clone());
                Err((field, why))
            }
        }
    }

    /// From the last peer to the first, since the last by name has a range that several claim, as in the intent.
    fn peers(&mut self, intent: &NodeIntent, caps: &Caps) {
        for (node, peer) in intent.peers.iter().rev() {
            for r in &peer.routes {
                if intent.pod_cidrs.contains(&r.cidr) {
                    let why = format!(
                        "{} is this node's own range too: packets to it stay here; give each node its own range",
                        r.cidr
                    );
                    self.refuse(node, "spec.podCIDRs", why);
                } else if self.ways.contains_key(&r.cidr) {
                    let why = format!(
                        "{} is the range of node {} too, and packets to it go there; give each node its own range",
                        r.cidr,
                        self.image.index.peers.get(&r.cidr).map_or("?".into(), ToString::to_string)
                    );
                    self.refuse(node, "spec.podCIDRs", why);
                } else {
                    let way = self.peer(node, r.cidr, &r.reach, caps).unwrap_or_else(|(field, why)| {
                        self.refuse(node, field, why);
                        Way::plain(r.cidr, RouteTo::Unreachable)
                    });
                    self.ways.insert(r.cidr, way);
                }
            }
        }
    }

    fn peer(&mut self, node: &NodeName, cidr: Cidr, reach: &Reach, caps: &Caps) -> Result<Way, Why> {
        match reach {
            Reach::None { why } => Err(("status.reach", why.clone())),
            Reach::Direct { next_hop } => {
                let (route, link) = host_gw::route(cidr, *next_hop, caps).map_err(|why| ("status.addresses", why))?;
                self.links.insert(link.clone());
                Ok(Way { route, tunnel: None })
            }
            Reach::Vxlan { remote, mac, gateway } => {
                let device = match (self.devices.get(&Family::of(*remote)), self.devices.first_key_value()) {
                    (Some(Ok(d)), _) => d.clone(),
                    (Some(Err(e)), _) | (None, Some((_, Err(e)))) => return Err(e.clone()),
                    (None, Some((underlay, Ok(_)))) => {
                        return Err((
                            "status.addresses",
                            format!(
                                "its outer address {remote} is not {underlay} as this node's is: publish one of that family"
                            ),
                        ));
                    }
                    (None, None) => {
                        return Err(("spec.backend", "reached by VXLAN, but this node has no VXLAN device".into()));
                    }
                };
                let known = self.tunnels.entry(*mac).or_insert_with(|| (node.clone(), *remote));
                if known.1 != *remote {
                    return Err((
                        "metadata.annotations",
                        format!(
                            "its VXLAN hardware address {mac} is node {}'s too: restart the agent on one of them",
                            known.0
                        ),
                    ));
                }
                let first = self.gateways.entry(*gateway).or_insert_with(|| (node.clone(), *mac));
                if first.1 != *mac {
                    return Err((
                        "spec.podCIDRs",
                        format!(
                            "{cidr} begins as a range of node {} does, and the gateway {gateway} cannot be both: give each \
                             node its own range",
                            first.0
                        ),
                    ));
                }
                let (route, neighbour, fdb) = vxlan::rows(&device, cidr, *remote, *mac, *gateway);
                Ok(Way { route, tunnel: Some((neighbour, fdb)) })
            }
        }
    }

    /// The node's own ranges and pods. A stray address of an own range is discarded here; a pod's host route is longer
    /// and wins.
    fn own(&mut self, intent: &NodeIntent) {
        let mut put = |dst: Cidr, to: RouteTo| {
            self.ways.insert(dst, Way::plain(dst, to));
        };
        for dst in &intent.pod_cidrs {
            put(*dst, RouteTo::Blackhole);
        }
        // Reversed, so that the first holder of an address wins, as in the intent.
        for a in intent.attachments.values().rev() {
            for addr in &a.addresses {
                put(Cidr::host(*addr), RouteTo::Link(a.link.name().clone()));
            }
        }
        self.image.pod_links = intent.attachments.values().map(|a| (a.link.clone(), true)).collect();
    }

    fn sysctls(&mut self, intent: &NodeIntent) {
        let s = &mut self.image.sysctls;
        let mut put = |path: String, value: &str| s.insert(path.into(), value.into());
        if !intent.services.is_empty() {
            put(knob::CT_LIBERAL.into(), "1");
            put(knob::CT_CLOSE_WAIT.into(), knob::CLOSE_WAIT_SECONDS);
        }
        if intent.families.v4 {
            put(knob::FORWARD_V4.into(), "1");
            for link in self.links.iter().chain(self.image.vxlan.keys().map(OwnedName::name)) {
                put(knob::rp_filter(link), knob::LOOSE);
            }
        }
        if intent.families.v6 {
            put(knob::FORWARD_V6.into(), "1");
            for link in &self.links {
                put(knob::accept_ra(link), knob::ACCEPT_RA_ROUTER);
            }
        }
    }
}

/// The FDB entries that lead a hardware address somewhere.
pub(crate) fn fdb_of<'a>(fdb: &'a BTreeSet<FdbEntry>, link: &IfName, mac: Mac) -> impl Iterator<Item = &'a FdbEntry> {
    let link = link.clone();
    fdb.iter().filter(move |e| e.link == link && e.mac == mac)
}
