//! `macvlan`, `ipvlan`, `vlan`, `dummy` and `tap`: plugins that make one interface in the container, mostly on top of
//! one of the node's.

mod conf;

use cni::iface::{self, How};
use cni::{CniResult, Code, Command, Context, Error, Plugin, bad};
use kernel_api::Rtnetlink;
use kernel_api::machine::{Machine, Netns};
use kernel_api::rt::{
    IpvlanParams, Link, LinkKind, MAIN_TABLE, MacvlanParams, NewLink, NewLinkKind, NewTun, RtRequest, SetLink,
    VlanParams,
};
use types::IfName;

pub use conf::{Conf, Device};

use crate::attach;

/// Which of the plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An interface with its own hardware address on top of another.
    Macvlan,
    /// One with the hardware address of the other.
    Ipvlan,
    /// A VLAN of another.
    Vlan,
    /// One that leads nowhere.
    Dummy,
    /// One whose other end is a process.
    Tap,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Macvlan, Self::Ipvlan, Self::Vlan, Self::Dummy, Self::Tap];

    /// Whether it stands on top of another interface.
    fn has_lower(self) -> bool {
        matches!(self, Self::Macvlan | Self::Ipvlan | Self::Vlan)
    }

    /// Whether it may go without addresses.
    fn may_be_bare(self) -> bool {
        matches!(self, Self::Macvlan | Self::Tap)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Vlan => "vlan",
            Self::Dummy => "dummy",
            Self::Tap => "tap",
        }
    }
}

/// See the module.
pub struct Plug(pub Kind);

impl<M: Machine> Plugin<M> for Plug {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(self.0, &cx.fields(), cx.call)?;
        let before = before(self.0, cx)?;
        let netns = cx.netns()?;
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        let (mut host, mut inside) = (cx.host()?, iface::inside(&netns, path)?);
        let lower = lower(self.0, &conf, cx, &mut host, &mut inside)?;
        if inside.link(&ifname)?.is_some() {
            let says = format!("interface {ifname} exists already in the container: DEL comes first");
            return Err(Error::new(Code::InvalidEnvironment, says));
        }
        // Before an address is asked for: a DHCP server is asked by way of it.
        let made = make(cx, &conf, lower.as_ref(), &netns, &mut host, &mut inside);
        let shared = matches!(self.0, Kind::Macvlan | Kind::Ipvlan | Kind::Vlan);
        let mut dress = |cx: &mut Context<'_, M>, mut result: CniResult| {
            let says = || Error::new(Code::TryAgainLater, format!("{ifname} is gone as soon as it was made"));
            let link = inside.link(&ifname)?.ok_or_else(says)?;
            result.interfaces = vec![iface::told(&link, path)];
            for i in &mut result.ips {
                i.interface = Some(0);
            }
            if !result.ips.is_empty() {
                // Others on the wire below may have the address.
                let how = How { detect_duplicates: shared, ..How::default() };
                iface::configure(&netns, &mut inside, &ifname, &result, how)?;
                if shared {
                    attach::announce::<M>(&netns, &result, &ifname);
                }
            }
            attach::dns(cx, &mut result)?;
            Ok(result)
        };
        let wired = made.and_then(|()| match before {
            Some(result) => dress(cx, result),
            None => cx.with_addresses(dress),
        });
        wired.map_err(|e| {
            let left = temporary(cx).and_then(|t| iface::delete_inside(&netns, &t));
            cni::undone(cni::undone(e, left), iface::delete_inside(&netns, &ifname))
        })
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        if let Some(netns) = cx.netns_if_there()? {
            // Of an ADD that was killed.
            iface::delete_inside(&netns, &temporary(cx)?)?;
        }
        attach::detach_plain(cx)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(self.0, &cx.fields(), cx.call)?;
        if let Some(kind) = cx.ipam_type()? {
            cx.ipam_verb(&kind, Command::Check)?;
        }
        let prev = cx.chained()?.clone();
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        let netns = cx.netns()?;
        let (mut host, mut inside) = (cx.host()?, iface::inside(&netns, path)?);
        let (mut out, link) = iface::compared(&mut inside, &prev, &ifname, path)?;
        if let Some(link) = link {
            out.extend(unlike(self.0, &conf, &link));
        }
        if let Some(m) = &conf.master {
            let there = if conf.master_inside { inside.link(m)? } else { host.link(m)? };
            if there.is_none() {
                out.push(format!("there is no interface {m}, the master"));
            }
        }
        attach::verdict(cx, &out)
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        attach::sweep_plain(cx)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let not = |e: Error| Error { code: Code::NotAvailable, ..e };
        let conf = Conf::read(self.0, &cx.fields(), cx.call).map_err(not)?;
        if let Some(m) = conf.master.as_ref().filter(|_| !conf.master_inside)
            && cx.host()?.link(m)?.is_none()
        {
            return Err(not(bad(format!("master is {m}: there is no such interface on the node"))));
        }
        attach::status(cx)
    }
}

/// The result of the plugins before, if its addresses are to be used: `ipvlan` takes over what another has configured.
///
/// # Errors
/// Code 7 when there are no addresses from anywhere and the kind needs some.
fn before<M: Machine>(kind: Kind, cx: &Context<'_, M>) -> Result<Option<CniResult>, Error> {
    if cx.ipam_type()?.is_some() || kind.may_be_bare() {
        return Ok(None);
    }
    match &cx.prev {
        Some(p) if kind == Kind::Ipvlan && !p.ips.is_empty() => Ok(Some(p.clone())),
        _ => Err(bad(format!("ipam.type is missing: {} needs addresses", kind.name()))),
    }
}

/// The interface below.
///
/// # Errors
/// Code 7 when it is not there, or its MTU is less than ours.
fn lower<M: Machine>(
    kind: Kind,
    conf: &Conf,
    cx: &Context<'_, M>,
    host: &mut <M::Netns as Netns>::Rt,
    inside: &mut <M::Netns as Netns>::Rt,
) -> Result<Option<Link>, Error> {
    if !kind.has_lower() {
        return Ok(None);
    }
    let (rt, place) = if conf.master_inside { (inside, "in the container") } else { (host, "on the node") };
    let name = match (&conf.master, &cx.prev) {
        (Some(m), _) => m.clone(),
        (None, Some(prev)) if kind == Kind::Ipvlan => match prev.interfaces.as_slice() {
            [one] if !one.name.is_empty() => one.name.parse().map_err(bad)?,
            _ => return Err(bad("master is missing, and prevResult.interfaces has not one interface to take instead")),
        },
        (None, _) => default_route(rt)?.ok_or_else(|| {
            bad(format!("master is missing, and there is no default route {place} whose interface could be taken"))
        })?,
    };
    let link = rt.link(&name)?.ok_or_else(|| bad(format!("master is {name}: there is no such interface {place}")))?;
    // An ipvlan's is its own affair, as the reference has it.
    if let Some(mtu) = conf.mtu.filter(|m| *m > link.mtu && kind != Kind::Ipvlan) {
        return Err(bad(format!("mtu is {mtu}: the master {name} carries {} at most", link.mtu)));
    }
    Ok(Some(link))
}

/// The interface of the default route; IPv4's comes first, then that of the least metric.
fn default_route(rt: &mut impl Rtnetlink) -> Result<Option<IfName>, Error> {
    let mut all = rt.all_routes()?;
    all.retain(|r| r.route.table == MAIN_TABLE && r.route.dst.len() == 0 && r.route.to.link().is_some());
    all.sort_by_key(|r| (r.route.dst.addr().is_ipv6(), r.route.metric));
    Ok(all.first().and_then(|r| r.route.to.link()).cloned())
}

/// The name of an interface until it is in the container: the final one may be taken on the node.
fn temporary<M: Machine>(cx: &Context<'_, M>) -> Result<IfName, Error> {
    iface::host_end(cx.key()?, 0)
}

/// Makes the interface, up, without addresses. What is there when it fails bears its name or the temporary one.
fn make<M: Machine>(
    cx: &Context<'_, M>,
    conf: &Conf,
    lower: Option<&Link>,
    netns: &M::Netns,
    host: &mut <M::Netns as Netns>::Rt,
    inside: &mut <M::Netns as Netns>::Rt,
) -> Result<(), Error> {
    let ifname = cx.ifname()?;
    let lower = lower.map(|l| l.index).unwrap_or_default();
    let mut up = SetLink::up(ifname.clone());
    let kind = match &conf.device {
        Device::Macvlan { mode, sources, bc_queue_len } => {
            let params = MacvlanParams { mode: *mode, sources: sources.clone(), bc_queue_len: *bc_queue_len };
            NewLinkKind::Macvlan { lower, params }
        }
        Device::Ipvlan(mode) => {
            NewLinkKind::Ipvlan { lower, params: IpvlanParams { mode: *mode, ..IpvlanParams::default() } }
        }
        Device::Vlan(id) => NewLinkKind::Vlan { lower, params: VlanParams { id: *id, ad: false } },
        Device::Dummy => NewLinkKind::Dummy,
        Device::Tap { multi_queue, owner, group, bridge } => {
            if let Some(b) = bridge {
                let there = inside.link(b)?.filter(|l| matches!(l.kind, LinkKind::Bridge(_)));
                let says = || bad(format!("bridge is {b}: there is no such bridge in the container"));
                up.master = Some(there.ok_or_else(says)?.index);
            }
            let tun = NewTun { multi_queue: *multi_queue, owner: *owner, group: *group, ..NewTun::tap(ifname) };
            netns.add_tun(&tun)?;
            return Ok(inside.run(&[RtRequest::LinkSet(SetLink { mtu: conf.mtu, mac: conf.mac, ..up })])?);
        }
    };
    let new = NewLink { mtu: conf.mtu, mac: conf.mac, ..NewLink::new(ifname.clone(), kind) };
    if conf.master_inside || matches!(conf.device, Device::Dummy) {
        inside.run(&[RtRequest::LinkAdd(new)])?;
    } else {
        let name = temporary(cx)?;
        iface::delete_inside(netns, &name)?;
        host.run(&[RtRequest::LinkAdd(NewLink { name: name.clone(), netns: Some(netns.fd()), ..new })])?;
        inside.run(&[RtRequest::LinkSet(SetLink { rename: Some(ifname.clone()), ..SetLink::new(name) })])?;
    }
    // A kernel without IPv6 has none.
    let _ = netns.set_sysctl(&format!("net/ipv6/conf/{ifname}/ndisc_notify"), "1");
    Ok(inside.run(&[RtRequest::LinkSet(up)])?)
}

/// What of a container's interface is not as the configuration has it.
fn unlike(kind: Kind, conf: &Conf, link: &Link) -> Vec<String> {
    let mut out = Vec::new();
    let name = &link.name;
    let mode = |have: String, want: String| {
        (have != want).then(|| format!("the mode of {name} in the container is {have} instead of {want}"))
    };
    match (&conf.device, &link.kind) {
        (Device::Macvlan { mode: want, sources, .. }, LinkKind::Macvlan(p)) => {
            out.extend(mode(p.mode.to_string(), want.to_string()));
            if p.sources != *sources {
                out.push(format!("{name} in the container hears others than sourceMACs lists"));
            }
        }
        (Device::Ipvlan(want), LinkKind::Ipvlan(p)) => {
            out.extend(mode(format!("{:?}", p.mode).to_lowercase(), format!("{want:?}").to_lowercase()));
        }
        (Device::Vlan(want), LinkKind::Vlan(p)) => {
            if p.id != *want {
                out.push(format!("the VLAN of {name} in the container is {} instead of {want}", p.id));
            }
        }
        (Device::Dummy, LinkKind::Dummy) | (Device::Tap { .. }, LinkKind::Tun(_)) => {}
        _ => out.push(format!("{name} in the container is no {}", kind.name())),
    }
    if !link.up {
        out.push(format!("{name} in the container is down"));
    }
    if let Some(mtu) = conf.mtu.filter(|m| *m != link.mtu) {
        out.push(format!("the MTU of {name} in the container is {} instead of {mtu}", link.mtu));
    }
    out
}
