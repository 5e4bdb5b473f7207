//! What brings an observed image to a wanted one, in an order that leaves no moment without a way.

use std::collections::{BTreeMap, BTreeSet};

use kernel_api::rt::{Address, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink, VxlanParams};
use types::{Cidr, Family, IfName, OwnedName};

use crate::image::{Image, VxlanDevice, knob, route_link};
use crate::render::Op;

/// Batches in the order of the inner comments: make before use, stop using before break.
pub fn plan(want: &Image, have: &Image) -> Vec<Vec<Op>> {
    let devices = Devices::new(want, have);
    // A link that is deleted or comes up from down has none of its rows; what the kernel removed is planned anew.
    let before = have;
    let have = &devices.surviving(have);
    let routes = Routes::new(want, before, have);
    let mut fdb = Rows::new(&want.fdb, &have.fdb, |e| (e.link.clone(), e.mac));
    let neighbours = Rows::new(&want.neighbours, &have.neighbours, |n| (n.link.clone(), n.addr));
    fdb.del.retain(|e| want.vxlan.keys().any(|d| *d.name() == e.link));
    let address = |(device, addr): &(OwnedName, std::net::IpAddr)| {
        Address::new(device.name().clone(), *addr, Family::of(*addr).bits())
    };
    let on_wanted = |link: &IfName| want.vxlan.keys().any(|d| d.name() == link);

    let mut batches: Vec<Vec<Op>> = Vec::new();
    let mut batch = |ops: Vec<Op>| {
        if !ops.is_empty() {
            batches.push(ops);
        }
    };
    // Loosen and open before packets may come another way. Sysctls of a device that is yet to be made follow it.
    let (of_new, of_old): (Vec<_>, Vec<_>) = sysctls(want, have)
        .into_iter()
        .partition(|(path, _)| devices.makes().any(|d| path.contains(&format!("/{d}/"))));
    batch(of_old.into_iter().map(|(_, op)| op).collect());
    // Pod links up, or the kernel takes no route on them.
    batch(
        want.pod_links
            .iter()
            .filter(|(name, up)| **up && have.pod_links.get(*name) == Some(&false))
            .map(|(name, _)| RtRequest::LinkSet(SetLink::up(name.name().clone())).into())
            .collect(),
    );
    // Routes that need no device of ours come first, so that what leaves a device has left before it is made anew.
    // Each replace is one step of the kernel's: a lookup finds the old route or the new one, never none.
    batch(routes.direct);
    // A name, and a VNI with its port, can be held once: an incompatible device goes before its successor comes.
    batch(devices.make.clone());
    batch(of_new.into_iter().map(|(_, op)| op).collect());
    batch(devices.raise.clone());
    // All that a tunnelled packet needs, before the first route sends one.
    batch(
        want.addresses
            .difference(&have.addresses)
            .map(|a| RtRequest::AddressAdd(address(a)).into())
            .chain(fdb.put.into_iter().map(|e| RtRequest::FdbReplace(e).into()))
            .chain(neighbours.put.into_iter().map(|n| RtRequest::NeighbourReplace(n).into()))
            .collect(),
    );
    batch(routes.helpers_add);
    batch(routes.tunnel);
    batch(routes.helpers_del);
    batch(routes.del);
    // Nothing leads there any more.
    batch(
        neighbours
            .del
            .into_iter()
            .filter(|n| on_wanted(&n.link))
            .map(|n| RtRequest::NeighbourDel(n).into())
            .chain(fdb.del.into_iter().map(|e| RtRequest::FdbDel(e).into()))
            .chain(
                have.addresses
                    .difference(&want.addresses)
                    .filter(|(d, _)| want.vxlan.contains_key(d))
                    .map(|a| RtRequest::AddressDel(address(a)).into()),
            )
            .collect(),
    );
    // A device takes its rows with it; a pod link without a record is a leak.
    batch(
        have.vxlan
            .keys()
            .filter(|d| !want.vxlan.contains_key(*d))
            .chain(have.pod_links.keys().filter(|l| !want.pod_links.contains_key(*l)))
            .map(|n| RtRequest::LinkDel(n.clone()).into())
            .collect(),
    );
    // Last, so that the refusal of these stops nothing else: another program has a route to the same destination with
    // the same metric, and we do not replace what is not ours.
    batch(routes.contested);
    batches
}

fn sysctls(want: &Image, have: &Image) -> Vec<(Box<str>, Op)> {
    let mut out: Vec<_> = want
        .sysctls
        .iter()
        .filter(|(path, value)| have.sysctls.get(*path) != Some(*value))
        .filter(|(path, _)| have.sysctls.contains_key(*path) || !knob::CONNECTION_TRACKING.contains(&&***path))
        .map(|(path, value)| (path.clone(), Op::Sysctl { path: path.clone(), value: value.clone() }))
        .collect();
    // Links are told to go on taking router advertisements before forwarding makes the kernel forget what they said.
    out.sort_by_key(|(path, _)| !path.contains("/conf/") || path.contains("/conf/all/"));
    out
}

/// Links that a route of ours may use: the wanted devices, and the pod links that are there. A missing pod link is the
/// agent's to rewire; until then its addresses fall to the blackhole.
fn present_links(want: &Image, have: &Image) -> BTreeSet<IfName> {
    want.vxlan
        .keys()
        .chain(want.pod_links.keys().filter(|l| have.pod_links.contains_key(*l)))
        .map(|n| n.name().clone())
        .collect()
}

/// Changes of the VXLAN devices, and which devices lose their rows by them.
struct Devices {
    make: Vec<Op>,
    /// Brings up what was made, once its sysctls are set.
    raise: Vec<Op>,
    /// Deleted first and made anew, or absent.
    anew: BTreeSet<OwnedName>,
    /// Down: routes, neighbours and IPv6 addresses are gone, and what the observation still shows of them goes now.
    raised: BTreeSet<OwnedName>,
    /// To be deleted before anything is made, since they hold the VNI and port of a wanted one.
    gone: BTreeSet<OwnedName>,
}

impl Devices {
    fn new(want: &Image, have: &Image) -> Self {
        let mut d = Self {
            make: Vec::new(),
            raise: Vec::new(),
            anew: BTreeSet::new(),
            raised: BTreeSet::new(),
            gone: BTreeSet::new(),
        };
        let stays =
            |name: &OwnedName| have.vxlan.get(name).zip(want.vxlan.get(name)).is_some_and(|(h, w)| h.compatible(w));
        let made: Vec<_> = want.vxlan.iter().filter(|(name, _)| !stays(name)).collect();
        // What a device holds that comes: its name, or its VNI and port in the family of its underlay.
        let held = |v: &VxlanDevice| (v.vni, v.port, v.local.map(Family::of));
        for (name, h) in &have.vxlan {
            let in_the_way = |(n, w): &(&OwnedName, &VxlanDevice)| *n == name || held(w) == held(h);
            if !stays(name) && made.iter().any(in_the_way) {
                d.make.push(RtRequest::LinkDel(name.clone()).into());
                d.gone.insert(name.clone());
            }
        }
        for (name, w) in &want.vxlan {
            match have.vxlan.get(name) {
                Some(h) if stays(name) => d.adjust(name, w, h),
                _ => {
                    d.anew.insert(name.clone());
                    d.make.push(RtRequest::LinkAdd(new_link(name, w)).into());
                    d.raise.push(RtRequest::LinkSet(SetLink::up(name.name().clone())).into());
                }
            }
        }
        d
    }

    fn adjust(&mut self, name: &OwnedName, w: &VxlanDevice, h: &VxlanDevice) {
        let set = SetLink {
            mac: (h.mac != w.mac).then_some(w.mac).flatten(),
            mtu: (h.mtu != w.mtu).then_some(w.mtu),
            up: (!h.up).then_some(true),
            ..SetLink::new(name.name().clone())
        };
        if set != SetLink::new(name.name().clone()) {
            self.make.push(RtRequest::LinkSet(set).into());
        }
        if !h.up {
            self.raised.insert(name.clone());
        }
    }

    /// Names of links that this plan makes: their sysctls do not exist before.
    fn makes(&self) -> impl Iterator<Item = &OwnedName> {
        self.anew.iter()
    }

    /// What of the observed image is still there once the devices are as wanted.
    fn surviving(&self, have: &Image) -> Image {
        let anew = |l: &IfName| self.anew.iter().chain(&self.gone).any(|n| n.name() == l);
        let raised = |l: &IfName| self.raised.iter().any(|n| n.name() == l);
        let mut image = have.clone();
        image.vxlan.retain(|n, _| !self.gone.contains(n));
        image.addresses.retain(|(d, _)| !self.anew.contains(d) && !self.gone.contains(d));
        image.neighbours.retain(|n| !anew(&n.link) && !raised(&n.link));
        image.fdb.retain(|e| !anew(&e.link));
        image.routes.retain(|r| route_link(r).is_none_or(|l| !anew(l)));
        image.sysctls.retain(|path, _| !self.anew.iter().any(|n| path.contains(&format!("/{n}/"))));
        image
    }
}

fn new_link(name: &OwnedName, w: &VxlanDevice) -> NewLink {
    let params = VxlanParams { vni: w.vni, port: w.port, local: w.local, lower: None, learning: false };
    NewLink { mtu: Some(w.mtu), mac: w.mac, ..NewLink::new(name.name().clone(), NewLinkKind::Vxlan(params)) }
}

/// The difference of two sets of rows of which the kernel holds at most a few per key.
struct Rows<T> {
    put: Vec<T>,
    del: Vec<T>,
}

impl<T: Ord + Clone> Rows<T> {
    fn new<K: Ord>(want: &BTreeSet<T>, have: &BTreeSet<T>, key: impl Fn(&T) -> K) -> Self {
        let put: Vec<T> = want.difference(have).cloned().collect();
        let mut held: BTreeMap<K, usize> = BTreeMap::new();
        for h in have {
            *held.entry(key(h)).or_default() += 1;
        }
        let replaced: BTreeSet<K> = put.iter().map(&key).collect();
        // The single row of a key goes by being replaced; of several, the kernel replaces one we cannot choose, so
        // each is deleted by name and the one that is gone already is no error.
        let del = have
            .difference(want)
            .filter(|h| !(replaced.contains(&key(h)) && held.get(&key(h)) == Some(&1)))
            .cloned()
            .collect();
        Self { put, del }
    }
}

struct Routes {
    direct: Vec<Op>,
    helpers_add: Vec<Op>,
    tunnel: Vec<Op>,
    helpers_del: Vec<Op>,
    del: Vec<Op>,
    contested: Vec<Op>,
}

impl Routes {
    /// `before` is what is there when the first route is put, `have` what is there when the devices are as wanted.
    fn new(want: &Image, before: &Image, have: &Image) -> Self {
        let links = present_links(want, before);
        let usable = |r: &Route| route_link(r).is_none_or(|l| OwnedName::recognise(l).is_err() || links.contains(l));
        let key = |r: &Route| (r.dst, r.metric);
        let wanted: BTreeSet<Route> = want.routes.iter().filter(|r| usable(r)).cloned().collect();
        let keys = |image: &Image| image.routes.iter().map(key).collect::<BTreeSet<_>>();
        let (held_before, held_now) = (keys(before), keys(have));
        let foreign: BTreeSet<(Cidr, u32)> = before.index.foreign.iter().map(|f| (f.dst, f.metric)).collect();
        let ways = Ways::new(have, &wanted);
        let rows = Rows::new(&wanted, &have.routes, key);
        let mut out = Self {
            direct: vec![],
            helpers_add: vec![],
            tunnel: vec![],
            helpers_del: vec![],
            del: vec![],
            contested: vec![],
        };
        let mut helped: BTreeSet<Route> = BTreeSet::new();
        for r in rows.put {
            let tunnel = matches!(&r.to, RouteTo::Via { onlink: true, .. });
            let ours = (if tunnel { &held_now } else { &held_before }).contains(&key(&r));
            if foreign.contains(&key(&r)) && !ours {
                out.contested.push(RtRequest::RouteAdd(r).into());
                continue;
            }
            helped.extend(ways.helper(&r));
            // The CNI plugin may write a pod's route at the same moment; the same one twice is no conflict.
            let pod = matches!(&r.to, RouteTo::Link(_));
            let op = if ours || pod { RtRequest::RouteReplace(r) } else { RtRequest::RouteAdd(r) };
            if tunnel { out.tunnel.push(op.into()) } else { out.direct.push(op.into()) }
        }
        // A helper that an interrupted pass left is used and then deleted like any other.
        out.helpers_add = helped
            .iter()
            .filter(|h| !have.routes.contains(h))
            .map(|h| RtRequest::RouteReplace(h.clone()).into())
            .collect();
        out.helpers_del = helped.iter().map(|h| RtRequest::RouteDel(h.clone()).into()).collect();
        out.del = rows.del.into_iter().filter(|r| !helped.contains(r)).map(|r| RtRequest::RouteDel(r).into()).collect();
        out
    }
}

/// Which links the main table may lead to while routes are put, by destination: `None` is a route that discards.
struct Ways<'a>(BTreeMap<Cidr, BTreeSet<Option<&'a IfName>>>);

impl<'a> Ways<'a> {
    /// Of what is there and of what comes in the same pass, ours and others'.
    fn new(have: &'a Image, wanted: &'a BTreeSet<Route>) -> Self {
        let mut ways: BTreeMap<Cidr, BTreeSet<Option<&IfName>>> = BTreeMap::new();
        let ours = have.routes.iter().chain(wanted).map(|r| (r.dst, route_link(r)));
        let theirs = have.index.foreign.iter().map(|f| (f.dst, f.link.as_ref()));
        for (dst, link) in ours.chain(theirs) {
            ways.entry(dst).or_default().insert(link);
        }
        Self(ways)
    }

    /// The route that lets the kernel accept an IPv6 route with an on-link gateway, if it takes one: the kernel looks
    /// the gateway up in the main table and refuses when a route other than the default leads there by another link
    /// (`ip6_route_check_nh_onlink`). In a switch from host-gw that other route is the very one to be replaced. A host
    /// route to the gateway on the right device, for the length of the replace, answers the lookup; no pod has that
    /// address.
    fn helper(&self, r: &Route) -> Option<Route> {
        let RouteTo::Via { gateway, link, onlink: true } = &r.to else { return None };
        if gateway.is_ipv4() {
            return None;
        }
        let misleads = (1..=128)
            .filter_map(|len| self.0.get(&Cidr::new(*gateway, len)?))
            .any(|links| links.iter().flatten().any(|l| *l != link));
        misleads.then(|| Route { dst: Cidr::host(*gateway), to: RouteTo::Link(link.clone()), ..r.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_tracking_that_is_not_there_yet_waits_for_a_later_pass() {
        let mut want = Image::default();
        for path in knob::CONNECTION_TRACKING {
            want.sysctls.insert(path.into(), "1".into());
        }
        let mut have = Image::default();
        assert!(sysctls(&want, &have).is_empty());
        have.sysctls.insert(knob::CT_LIBERAL.into(), "0".into());
        let set: Vec<String> = sysctls(&want, &have).into_iter().map(|(_, op)| op.to_string()).collect();
        assert_eq!(set, ["sysctl -w net/netfilter/nf_conntrack_tcp_be_liberal=1"]);
    }
}
