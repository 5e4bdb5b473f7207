//! Links: making, changing, deleting.

use std::collections::BTreeSet;

use kernel_api::errno;
use kernel_api::rt::{
    BridgeParams, Link, LinkKind, MacvlanMode, MacvlanParams, NewLink, NewLinkKind, NewTun, Port, PortVlan, SetLink,
    TunParams,
};
use types::{IfName, Mac};

use super::check;
use super::state::Namespace;

/// The MTUs that an Ethernet link takes, and those of kinds that do not care.
fn mtu_fits(kind: &LinkKind, mtu: u32) -> bool {
    match kind {
        LinkKind::Veth | LinkKind::Bridge(_) | LinkKind::Vxlan(_) | LinkKind::Tun(_) => (68..=65535).contains(&mtu),
        // ether_setup() without more: 68 to 1500; ifb, dummy and VRF take any.
        LinkKind::Vlan(_) | LinkKind::Macvlan(_) | LinkKind::Ipvlan(_) => (68..=65535).contains(&mtu),
        LinkKind::Ifb => (68..=1500).contains(&mtu),
        LinkKind::Dummy | LinkKind::Vrf { .. } | LinkKind::Other(_) => true,
    }
}

fn mac_fits(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

impl Namespace {
    fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    pub(crate) fn link_mut(&mut self, name: &IfName) -> Option<&mut Link> {
        self.links.iter_mut().find(|l| l.name == *name)
    }

    /// The kind that a new link will be seen as, and the lower link's index; what its driver refuses.
    fn new_kind(&self, l: &NewLink) -> Result<(LinkKind, Option<u32>), i32> {
        let lower = |index: u32| self.by_index(index).ok_or(errno::ENODEV);
        Ok(match &l.kind {
            NewLinkKind::Veth { .. } => (LinkKind::Veth, None),
            NewLinkKind::Bridge(p) => {
                if p.default_pvid >= 4095 {
                    return Err(errno::EINVAL);
                }
                (LinkKind::Bridge(*p), None)
            }
            NewLinkKind::Vxlan(v) => {
                check::vxlan(self, v)?;
                (LinkKind::Vxlan(v.clone()), None)
            }
            NewLinkKind::Macvlan { lower: index, params } => {
                self.macvlan_fits(lower(*index)?, params)?;
                let mut sources = params.sources.clone();
                sources.sort();
                sources.dedup();
                let bc_queue_len = Some(params.bc_queue_len.unwrap_or(1000));
                (LinkKind::Macvlan(MacvlanParams { sources, bc_queue_len, ..params.clone() }), Some(*index))
            }
            NewLinkKind::Ipvlan { lower: index, params } => {
                let l = lower(*index)?;
                if l.name.as_str() == "lo" {
                    return Err(errno::EINVAL);
                }
                // A link is shared by macvlans or by ipvlans, and has no other master.
                if l.master.is_some() || self.shared_by(*index).any(|k| matches!(k, LinkKind::Macvlan(_))) {
                    return Err(errno::EBUSY);
                }
                (LinkKind::Ipvlan(*params), Some(*index))
            }
            NewLinkKind::Vlan { lower: index, params } => {
                if params.id >= 4095 {
                    return Err(errno::ERANGE);
                }
                lower(*index)?;
                if self.shared_by(*index).any(|k| *k == LinkKind::Vlan(*params)) {
                    return Err(errno::EEXIST);
                }
                (LinkKind::Vlan(*params), Some(*index))
            }
            NewLinkKind::Dummy => (LinkKind::Dummy, None),
            NewLinkKind::Vrf { table } => {
                if *table == 0 {
                    return Err(errno::EINVAL);
                }
                (LinkKind::Vrf { table: *table }, None)
            }
            NewLinkKind::Ifb => (LinkKind::Ifb, None),
        })
    }

    /// The kinds of the links of this namespace that are over the link with this index.
    fn shared_by(&self, index: u32) -> impl Iterator<Item = &LinkKind> {
        let here = self.links.iter().filter(move |l| l.lower == Some(index) && l.lower_netns.is_none());
        let sent = self.away.iter().filter(move |(lower, _)| *lower == index).map(|(_, kind)| kind);
        here.map(|l| &l.kind).chain(sent)
    }

    /// `macvlan_common_newlink`
    fn macvlan_fits(&self, lower: &Link, p: &MacvlanParams) -> Result<(), i32> {
        let loopback = lower.name.as_str() == "lo";
        if loopback || matches!(lower.kind, LinkKind::Tun(t) if !t.tap) {
            return Err(errno::EINVAL);
        }
        if !p.sources.is_empty() && p.mode != MacvlanMode::Source {
            return Err(errno::EINVAL);
        }
        let mut others = self.shared_by(lower.index).peekable();
        if others.peek().is_none() && lower.master.is_some() {
            return Err(errno::EBUSY);
        }
        let others: Vec<&LinkKind> = others.collect();
        if others.iter().any(|k| matches!(k, LinkKind::Ipvlan(_))) {
            return Err(errno::EBUSY);
        }
        let mut modes =
            others.into_iter().filter_map(|k| if let LinkKind::Macvlan(p) = k { Some(p.mode) } else { None });
        let passthru = |m: MacvlanMode| m == MacvlanMode::Passthru;
        // Passthru takes the link whole.
        if modes.any(|m| passthru(m) || passthru(p.mode)) { Err(errno::EINVAL) } else { Ok(()) }
    }

    pub(crate) fn link_add(&mut self, l: &NewLink) -> Result<(), i32> {
        if l.netns.is_none() && self.link(&l.name).is_some() {
            return Err(errno::EEXIST);
        }
        if l.mac.is_some_and(|m| !mac_fits(m)) {
            return Err(errno::EADDRNOTAVAIL);
        }
        let takes_ports =
            |m: u32| self.by_index(m).is_some_and(|b| matches!(b.kind, LinkKind::Bridge(_) | LinkKind::Vrf { .. }));
        if l.netns.is_none() && l.master.is_some_and(|m| !takes_ports(m)) {
            return Err(errno::EINVAL);
        }
        let (kind, lower) = self.new_kind(l)?;
        let under = lower.and_then(|i| self.by_index(i));
        let mtu =
            l.mtu.or(under.map(|u| u.mtu)).unwrap_or(if matches!(kind, LinkKind::Vrf { .. }) { 65575 } else { 1500 });
        if !mtu_fits(&kind, mtu) || matches!(kind, LinkKind::Vlan(_)) && under.is_some_and(|u| mtu > u.mtu) {
            return Err(errno::EINVAL);
        }
        // Without one of its own, a VLAN, an ipvlan or a passthru macvlan has that of the link below.
        let shares = match &kind {
            LinkKind::Vlan(_) | LinkKind::Ipvlan(_) => true,
            LinkKind::Macvlan(p) => p.mode == MacvlanMode::Passthru,
            _ => false,
        };
        let mac = l.mac.or(under.filter(|_| shares).and_then(|u| u.mac));
        let multicast = match &kind {
            LinkKind::Ifb | LinkKind::Dummy | LinkKind::Vrf { .. } => false,
            // It has its lower link's flags.
            LinkKind::Vlan(_) => under.is_some_and(|u| u.multicast),
            _ => true,
        };
        let mut peer_index = None;
        if let NewLinkKind::Veth { peer, peer_netns, peer_mac } = &l.kind {
            if peer_netns.is_none() && (l.netns.is_none() && *peer == l.name || self.link(peer).is_some()) {
                return Err(errno::EEXIST);
            }
            // The peer first, as the kernel numbers them.
            let index = self.push_link(peer.clone(), *peer_mac, mtu, false, LinkKind::Veth);
            peer_index = Some(index);
            if let Some(ns) = peer_netns {
                self.send_new(index, *ns);
            }
        }
        let index = self.push_link(l.name.clone(), mac, mtu, false, kind);
        let port = matches!(l.master.and_then(|m| self.by_index(m)), Some(Link { kind: LinkKind::Bridge(_), .. }));
        if let Some(link) = self.links.iter_mut().find(|x| x.index == index) {
            link.master = l.master;
            link.port = port.then(Port::default);
            link.lower = lower;
            link.peer_index = peer_index;
            link.multicast = multicast;
            link.txqlen = l.txqlen.unwrap_or(if link.kind == LinkKind::Ifb { 32 } else { 1000 });
        }
        if let Some(p) = peer_index {
            for other in self.links.iter_mut().chain(self.sent.iter_mut().map(|(_, l)| l)).filter(|x| x.index == p) {
                other.peer_index = Some(index);
            }
        }
        if let Some(ns) = l.netns {
            if let Some(link) = self.links.iter_mut().find(|x| x.index == index) {
                link.up = l.up;
            }
            self.send_new(index, ns);
            return Ok(());
        }
        if port {
            self.joined(&l.name);
        }
        match self.link(&l.name).map(|x| x.kind.clone()) {
            // All over one link have the mode of the last (`ipvlan_set_port_mode`).
            Some(LinkKind::Ipvlan(p)) => {
                for x in self.links.iter_mut().filter(|x| x.lower == lower && x.lower_netns.is_none()) {
                    if let LinkKind::Ipvlan(q) = &mut x.kind {
                        *q = p;
                    }
                }
            }
            Some(LinkKind::Bridge(p)) if p.default_pvid != 0 => {
                let own = PortVlan::access(l.name.clone(), p.default_pvid);
                self.port_vlans.push(PortVlan { on_bridge: true, ..own });
            }
            _ => {}
        }
        if matches!(l.kind, NewLinkKind::Vrf { .. }) {
            self.add_vrf_rules();
        }
        if l.up {
            self.set_up(&l.name, true);
        }
        Ok(())
    }

    /// Gives a link that was just made to another namespace: by index, since one here may have its name.
    fn send_new(&mut self, index: u32, ns: kernel_api::rt::NetnsFd) {
        if let Some(at) = self.links.iter().position(|l| l.index == index) {
            let link = self.links.remove(at);
            if let Some(lower) = link.lower {
                self.away.push((lower, link.kind.clone()));
            }
            self.sent.push((ns, link));
        }
    }

    /// Gives a link to another namespace; its rows here are gone.
    fn send(&mut self, name: &IfName, ns: kernel_api::rt::NetnsFd) {
        let Some(link) = self.link(name).cloned() else { return };
        self.forget(name);
        if let Some(lower) = link.lower {
            self.away.push((lower, link.kind.clone()));
        }
        self.sent.push((ns, link));
    }

    /// A link became a bridge's port: it is in the bridge's default VLAN.
    fn joined(&mut self, name: &IfName) {
        let master = self.link(name).and_then(|l| l.master).and_then(|m| self.by_index(m));
        let Some(LinkKind::Bridge(BridgeParams { default_pvid, .. })) = master.map(|m| m.kind.clone()) else { return };
        if default_pvid != 0 {
            self.port_vlans.push(PortVlan::access(name.clone(), default_pvid));
        }
    }

    pub(crate) fn link_set(&mut self, s: &SetLink) -> Result<(), i32> {
        let link = self.need(&s.name)?.clone();
        // Each part is a request of its own to the kernel, in this order, and a refused one does not stop the next.
        let kind = self.set_kind(&link, s);
        let plain = self.set_plain(&link, s);
        let name = s.rename.as_ref().filter(|_| plain.is_ok()).unwrap_or(&s.name).clone();
        let port = self.set_port(&name, s);
        kind.and(plain).and(port)
    }

    fn set_kind(&mut self, link: &Link, s: &SetLink) -> Result<(), i32> {
        let found = self.link_mut(&link.name).map(|l| &mut l.kind);
        match (found, s.macvlan_mode, s.vlan_filtering) {
            (_, Some(_), Some(_)) => Err(errno::EINVAL),
            (_, None, None) => Ok(()),
            (Some(LinkKind::Macvlan(p)), Some(mode), None) => {
                if mode != p.mode && [mode, p.mode].contains(&MacvlanMode::Passthru) {
                    return Err(errno::EINVAL);
                }
                p.mode = mode;
                Ok(())
            }
            (Some(LinkKind::Bridge(p)), None, Some(on)) => {
                p.vlan_filtering = on;
                Ok(())
            }
            _ => Err(errno::EOPNOTSUPP),
        }
    }

    fn set_plain(&mut self, link: &Link, s: &SetLink) -> Result<(), i32> {
        if s.mtu.is_some_and(|m| !mtu_fits(&link.kind, m)) {
            return Err(errno::EINVAL);
        }
        if s.mac.is_some_and(|m| !mac_fits(m)) {
            return Err(errno::EADDRNOTAVAIL);
        }
        if s.alias.as_ref().is_some_and(|a| a.len() > 255) {
            return Err(errno::ERANGE);
        }
        if let Some(new) = &s.rename
            && s.netns.is_none()
            && *new != s.name
            && self.link(new).is_some()
        {
            return Err(errno::EEXIST);
        }
        let new_master = s.master.filter(|m| *m != 0 && Some(*m) != link.master);
        let master = new_master.and_then(|m| self.by_index(m)).map(|m| m.kind.clone());
        match master {
            None if new_master.is_some() => return Err(errno::EINVAL),
            Some(LinkKind::Bridge(_) | LinkKind::Vrf { .. }) | None => {}
            Some(_) => return Err(errno::EOPNOTSUPP),
        }
        let port = matches!(master, Some(LinkKind::Bridge(_)));
        if port && (link.name.as_str() == "lo" || matches!(link.kind, LinkKind::Bridge(_))) {
            return Err(if link.name.as_str() == "lo" { errno::EINVAL } else { 40 });
        }
        // One takes its frames already (`netdev_rx_handler_register`).
        let taken = |k: &LinkKind| matches!(k, LinkKind::Macvlan(_) | LinkKind::Ipvlan(_));
        if port && self.shared_by(link.index).any(taken) {
            return Err(errno::EBUSY);
        }
        if let Some(l) = self.link_mut(&s.name) {
            l.mtu = s.mtu.unwrap_or(l.mtu);
            l.mac = s.mac.or(l.mac);
            l.txqlen = s.txqlen.unwrap_or(l.txqlen);
            l.promisc = s.promisc.unwrap_or(l.promisc);
            l.allmulti = s.allmulti.unwrap_or(l.allmulti);
            l.multicast = s.multicast.unwrap_or(l.multicast);
            if let Some(a) = &s.alias {
                l.alias = Some(a.clone()).filter(|a| !a.is_empty());
            }
        }
        if s.master.is_some_and(|m| (m != 0).then_some(m) != link.master) {
            // A VRF takes the link down and up for its routes to be made anew (`cycle_netdev`).
            let vrf = |m: Option<u32>| {
                m.and_then(|m| self.by_index(m)).is_some_and(|m| matches!(m.kind, LinkKind::Vrf { .. }))
            };
            let cycle = link.up && (vrf(link.master) || vrf(s.master));
            if cycle {
                self.set_up(&s.name, false);
            }
            if let Some(l) = self.link_mut(&s.name) {
                l.master = s.master.filter(|m| *m != 0);
                l.port = port.then(Port::default);
            }
            self.port_vlans.retain(|v| v.link != s.name);
            if port {
                self.joined(&s.name);
            }
            if cycle {
                self.set_up(&s.name, true);
            }
        }
        if let Some(up) = s.up.filter(|_| s.netns.is_none()) {
            self.set_up(&s.name, up);
        }
        if let Some(new) = &s.rename {
            self.rename(&s.name, new);
        }
        if let Some(ns) = s.netns {
            let name = s.rename.as_ref().unwrap_or(&s.name);
            if let Some(l) = self.link_mut(name) {
                l.up = s.up == Some(true);
                l.master = None;
                l.port = None;
            }
            self.send(name, ns);
        }
        Ok(())
    }

    fn set_port(&mut self, name: &IfName, s: &SetLink) -> Result<(), i32> {
        if s.hairpin.is_none() && s.isolated.is_none() {
            return Ok(());
        }
        let port = self.link_mut(name).and_then(|l| l.port.as_mut()).ok_or(errno::EOPNOTSUPP)?;
        port.hairpin = s.hairpin.unwrap_or(port.hairpin);
        port.isolated = s.isolated.unwrap_or(port.isolated);
        Ok(())
    }

    fn rename(&mut self, old: &IfName, new: &IfName) {
        let Self { links, addresses, routes, neighbours, fdb, port_vlans, qdiscs, filters, .. } = self;
        let names = links.iter_mut().map(|l| &mut l.name);
        let names = names.chain(addresses.iter_mut().map(|a| &mut a.link));
        let names = names.chain(neighbours.iter_mut().map(|n| &mut n.link)).chain(fdb.iter_mut().map(|e| &mut e.link));
        let names =
            names.chain(port_vlans.iter_mut().map(|v| &mut v.link)).chain(qdiscs.iter_mut().map(|q| &mut q.link));
        let names = names.chain(filters.iter_mut().map(|f| &mut f.link));
        let names = names.chain(routes.iter_mut().filter_map(|r| match &mut r.route.to {
            kernel_api::rt::RouteTo::Link(l) | kernel_api::rt::RouteTo::Via { link: l, .. } => Some(l),
            _ => None,
        }));
        for n in names.filter(|n| **n == *old) {
            *n = new.clone();
        }
    }

    /// Any link: it, its veth peer here, and what is over them.
    pub(crate) fn link_del(&mut self, name: &IfName) -> Result<(), i32> {
        let link = self.need(name)?;
        if matches!(&link.kind, LinkKind::Other(_)) {
            return Err(errno::EOPNOTSUPP);
        }
        let mut gone = BTreeSet::new();
        let mut more = vec![link.index];
        while let Some(index) = more.pop() {
            if !gone.insert(index) {
                continue;
            }
            let peer = self.by_index(index).filter(|l| l.kind == LinkKind::Veth && l.lower_netns.is_none());
            let peer = peer.and_then(|l| l.peer_index).and_then(|p| self.by_index(p));
            more.extend(peer.filter(|p| p.peer_index == Some(index)).map(|p| p.index));
            more.extend(
                self.links.iter().filter(|l| l.lower == Some(index) && l.lower_netns.is_none()).map(|l| l.index),
            );
        }
        for index in gone {
            if let Some(name) = self.by_index(index).map(|l| l.name.clone()) {
                self.forget(&name);
            }
            for l in self.links.iter_mut().filter(|l| l.master == Some(index)) {
                l.master = None;
                l.port = None;
            }
            let orphans: Vec<IfName> = self.links.iter().filter(|l| l.port.is_none()).map(|l| l.name.clone()).collect();
            self.port_vlans.retain(|v| v.on_bridge || !orphans.contains(&v.link));
            self.away.retain(|(lower, _)| *lower != index);
        }
        Ok(())
    }

    /// `tun_set_iff` with `IFF_TUN_EXCL`.
    pub(crate) fn tun_add(&mut self, t: &NewTun) -> Result<(), i32> {
        if self.link(&t.name).is_some() {
            return Err(errno::EBUSY);
        }
        let kind = LinkKind::Tun(TunParams {
            tap: t.tap,
            persist: true,
            multi_queue: t.multi_queue,
            vnet_hdr: false,
            owner: t.owner,
            group: t.group,
        });
        self.push_link(t.name.clone(), None, 1500, false, kind);
        Ok(())
    }
}
