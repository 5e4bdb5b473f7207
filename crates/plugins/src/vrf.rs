//! `vrf`: puts the interface that a plugin before it made into a VRF of the container, a routing domain of its own.

use std::collections::BTreeSet;

use cni::{CniResult, Code, Context, Error, Fields, Plugin, bad};
use kernel_api::Rtnetlink;
use kernel_api::machine::{Machine, Netns};
use kernel_api::rt::{Link, LinkKind, MAIN_TABLE, NewLink, NewLinkKind, Route, RouteTo, RtRequest, SetLink};
use types::IfName;

use crate::inside;

/// See the module.
pub struct Vrf;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    name: IfName,
    table: Option<u32>,
}

impl Conf {
    /// Reads it.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn read(f: &Fields<'_>) -> Result<Self, Error> {
        let name = f.parsed("vrfname")?.ok_or_else(|| bad("vrfname is missing: the VRF's name is needed"))?;
        Ok(Self { name, table: f.number("table", 0..=u32::MAX)?.filter(|t| *t > 0) })
    }
}

/// The VRF of that name with its table; an error when another kind of interface has the name.
fn find(rt: &mut impl Rtnetlink, name: &IfName) -> Result<Option<(Link, u32)>, Error> {
    match rt.link(name)? {
        None => Ok(None),
        Some(l) => match l.kind {
            LinkKind::Vrf { table } => Ok(Some((l, table))),
            _ => Err(bad(format!("vrfname is {name}: there is such an interface, but it is no VRF; choose another"))),
        },
    }
}

/// The first table that no VRF has.
fn free_table(links: &[Link]) -> u32 {
    let of = |l: &Link| if let LinkKind::Vrf { table } = l.kind { Some(table) } else { None };
    let used: BTreeSet<u32> = links.iter().filter_map(of).collect();
    (1..).find(|t| !used.contains(t) && !(253..=255).contains(t)).unwrap_or(1)
}

fn gone(name: &IfName) -> Error {
    Error::new(Code::TryAgainLater, format!("{name} is gone as soon as it was made"))
}

/// The VRF, made if it is not there, and whether it was made.
fn vrf<M: Machine>(rt: &mut <M::Netns as Netns>::Rt, conf: &Conf) -> Result<(Link, u32, bool), Error> {
    if let Some((link, table)) = find(rt, &conf.name)? {
        return match conf.table.filter(|t| *t != table) {
            Some(t) => Err(bad(format!("table is {t}: the VRF {} is there with table {table}", conf.name))),
            None => Ok((link, table, false)),
        };
    }
    let table = match conf.table {
        Some(t) => t,
        None => free_table(&rt.links()?),
    };
    let new = NewLink { up: true, ..NewLink::new(conf.name.clone(), NewLinkKind::Vrf { table }) };
    rt.run(&[RtRequest::LinkAdd(new), RtRequest::LinkSet(SetLink::up(conf.name.clone()))])?;
    let (link, table) = find(rt, &conf.name)?.ok_or_else(|| gone(&conf.name))?;
    Ok((link, table, true))
}

/// Puts the interface into the VRF. The kernel takes it down and up for that: it loses its IPv6 addresses, and its routes
/// but those that addresses bring, which it gets anew in the VRF's table.
fn join(rt: &mut impl Rtnetlink, vrf: &Link, table: u32, port: &IfName) -> Result<(), Error> {
    let of = |a: &kernel_api::rt::Address| a.link == *port && a.addr.is_ipv6();
    let before: Vec<_> = rt.addresses()?.into_iter().filter(of).collect();
    let mut routes: Vec<Route> = rt
        .all_routes()?
        .into_iter()
        .filter(|r| r.route.table == MAIN_TABLE && r.route.to.link() == Some(port) && r.protocol != KERNEL)
        .map(|r| Route { table, ..r.route })
        .collect();
    // A gateway must be reachable by what is there already.
    routes.sort_by_key(|r| matches!(r.to, RouteTo::Via { .. }));
    rt.run(&[RtRequest::LinkSet(SetLink { master: Some(vrf.index), ..SetLink::new(port.clone()) })])?;
    let after: Vec<_> = rt.addresses()?.into_iter().filter(of).collect();
    let missing =
        before.into_iter().filter(|b| !after.iter().any(|a| (a.addr, a.prefix_len) == (b.addr, b.prefix_len)));
    let link_local =
        |a: &kernel_api::rt::Address| matches!(a.addr, std::net::IpAddr::V6(a) if a.is_unicast_link_local());
    // The kernel gives a link-local address by itself.
    for a in missing.filter(|a| !link_local(a)) {
        match rt.run(&[RtRequest::AddressAdd(a)]) {
            Err(e) if !e.exists() => return Err(e.into()),
            _ => {}
        }
    }
    Ok(rt.run(&routes.into_iter().map(RtRequest::RouteReplace).collect::<Vec<_>>())?)
}

/// `RTPROT_KERNEL`
const KERNEL: u8 = 2;

/// Takes the interface out, and the VRF away when it was the last.
fn leave<M: Machine>(
    netns: &M::Netns,
    rt: &mut <M::Netns as Netns>::Rt,
    vrf: &Link,
    port: &IfName,
) -> Result<(), Error> {
    if rt.link(port)?.is_some_and(|l| l.master == Some(vrf.index)) {
        rt.run(&[RtRequest::LinkSet(SetLink { master: Some(0), ..SetLink::new(port.clone()) })])?;
    }
    if rt.links()?.iter().any(|l| l.master == Some(vrf.index)) {
        return Ok(());
    }
    match netns.delete_link(&vrf.name) {
        Err(e) if !e.absent() => Err(e.into()),
        _ => Ok(()),
    }
}

impl<M: Machine> Plugin<M> for Vrf {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields())?;
        let prev = cx.chained()?.clone();
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        let netns = cx.netns()?;
        let mut rt = inside(&netns, path)?;
        let says = || Error::new(Code::InvalidEnvironment, format!("there is no interface {ifname} in {path}"));
        let port = rt.link(&ifname)?.ok_or_else(says)?;
        let (vrf, table, made) = vrf::<M>(&mut rt, &conf)?;
        let joined = match port.master {
            Some(m) if m == vrf.index => Ok(()),
            Some(m) => {
                let of = rt.links()?.into_iter().find(|l| l.index == m).map(|l| l.name.to_string());
                Err(bad(format!("{ifname} is a port of {} already", of.unwrap_or_else(|| format!("#{m}")))))
            }
            None => join(&mut rt, &vrf, table, &ifname),
        };
        match joined {
            Ok(()) => Ok(prev),
            // One that was there before keeps its other ports; the interface goes with the chain's undoing.
            Err(e) if made || port.master.is_none() => Err(cni::undone(e, leave::<M>(&netns, &mut rt, &vrf, &ifname))),
            Err(e) => Err(e),
        }
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields())?;
        let Some(netns) = cx.netns_if_there()? else { return Ok(()) };
        let ifname = cx.ifname()?;
        let mut rt = inside(&netns, cx.netns_path())?;
        match find(&mut rt, &conf.name)? {
            Some((vrf, _)) => leave::<M>(&netns, &mut rt, &vrf, &ifname),
            None => Ok(()),
        }
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields())?;
        cx.chained()?;
        let ifname = cx.ifname()?;
        let mut rt = inside(&cx.netns()?, cx.netns_path())?;
        let differs = |what: String| Err(Error::new(Code::Differs, format!("in {}: {what}", cx.netns_path())));
        let Some((vrf, table)) = find(&mut rt, &conf.name)? else {
            return differs(format!("there is no VRF {}", conf.name));
        };
        if let Some(t) = conf.table.filter(|t| *t != table) {
            return differs(format!("the VRF {} has table {table} instead of {t}", conf.name));
        }
        if rt.link(&ifname)?.is_none_or(|l| l.master != Some(vrf.index)) {
            return differs(format!("{ifname} is not in the VRF {}", conf.name));
        }
        Ok(())
    }
}
