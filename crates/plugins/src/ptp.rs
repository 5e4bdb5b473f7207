//! `ptp`: a veth pair between container and node, without a bridge. Everything the container sends goes to the host end,
//! which has the gateway's address; the node routes each address to its pair.

use cni::iface::{self, How, Pair};
use cni::{CniResult, Command, Context, Error, Fields, Plugin, bad, masq};
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use kernel_api::rt::{Address, Link, Route, RouteTo, RtRequest};
use types::{Cidr, Family};

use crate::{attach, nft};

/// See the module.
pub struct Ptp;

/// The configuration, checked; `ipam` and `dns` are read where they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    ip_masq: bool,
    mtu: Option<u32>,
}

impl Conf {
    /// Reads it.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn read(f: &Fields<'_>) -> Result<Self, Error> {
        let mtu = f.number("mtu", 0..=65_535)?.filter(|m| *m > 0);
        Ok(Self { ip_masq: attach::masquerades(f)?, mtu })
    }
}

impl<M: Machine> Plugin<M> for Ptp {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields())?;
        if cx.ipam_type()?.is_none() {
            return Err(bad("ipam.type is missing: the other end of the pair needs an address to lead to"));
        }
        // Before an address is asked for.
        let netns = cx.netns()?;
        cx.with_addresses(|cx, given| wire(cx, &netns, &conf, given))
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        attach::detach(cx)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields())?;
        if let Some(kind) = cx.ipam_type()? {
            cx.ipam_verb(&kind, Command::Check)?;
        }
        let prev = cx.chained()?.clone();
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        let netns = cx.netns()?;
        let (mut out, _) = iface::differences(&mut iface::inside(&netns, path)?, &prev, &ifname, path)?;
        if conf.ip_masq {
            out.extend(attach::unmasqueraded(cx, &prev)?);
        }
        attach::verdict(cx, &out)
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        attach::sweep(cx)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        Conf::read(&cx.fields()).map_err(|e| Error { code: cni::Code::NotAvailable, ..e })?;
        attach::status(cx)
    }
}

fn wire<M: Machine>(
    cx: &mut Context<'_, M>,
    netns: &M::Netns,
    conf: &Conf,
    mut result: CniResult,
) -> Result<CniResult, Error> {
    let (path, ifname, key) = (cx.netns_path(), cx.ifname()?, cx.key()?.clone());
    let families: Vec<Family> = result.ips.iter().map(|i| Family::of(i.address.addr)).collect();
    iface::forward(cx.machine, &families)?;
    let (mut host, mut inside) = (cx.host()?, iface::inside(netns, path)?);
    let pair = Pair { key: &key, inside: &ifname, mac: None, mtu: conf.mtu, master: None };
    let ends = iface::make_pair(cx.machine, &mut host, netns, &mut inside, &pair)?;
    let rest = |cx: &mut Context<'_, M>| {
        for i in &mut result.ips {
            i.interface = Some(1);
        }
        result.interfaces = vec![iface::told(&ends.host, ""), iface::told(&ends.inside, path)];
        let how = How { point_to_point: true, ..How::default() };
        iface::configure(netns, &mut inside, &ifname, &result, how)?;
        lead(&mut host, &ends.host, &result)?;
        attach::dns(cx, &mut result)?;
        if conf.ip_masq {
            let owner = attach::owner(cx)?;
            masq::claim(&mut nft(cx.machine)?, &owner, &attach::of_result(&result))?;
        }
        Ok(result)
    };
    rest(cx).map_err(|e| attach::undo(cx, netns, &ifname, conf.ip_masq, e))
}

/// Gives the host end the gateways' addresses and leads the container's to it.
fn lead(rt: &mut impl Rtnetlink, host: &Link, result: &CniResult) -> Result<(), Error> {
    /// `RT_SCOPE_HOST`, as the reference has it.
    const HOST: u8 = 254;
    let mut out = Vec::new();
    for i in &result.ips {
        if let Some(gw) = i.gateway {
            out.push(RtRequest::AddressAdd(Address::new(host.name.clone(), gw, Family::of(gw).bits())));
        }
    }
    for i in &result.ips {
        let scope = i.address.addr.is_ipv4().then_some(HOST);
        let to = RouteTo::Link(host.name.clone());
        out.push(RtRequest::RouteAdd(Route { scope, ..Route::new(Cidr::host(i.address.addr), to) }));
    }
    rt.run(&out).map_err(|e| {
        if !e.exists() {
            return e.into();
        }
        let says =
            format!("an address of the container is routed elsewhere: {e}; if that interface is stale, remove it");
        Error::new(cni::Code::TryAgainLater, says)
    })
}
