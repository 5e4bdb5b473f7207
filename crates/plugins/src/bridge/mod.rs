//! `bridge`: containers on a bridge of the node, by a veth pair each.

mod conf;
mod wire;

use std::net::IpAddr;

use cni::iface::{self, How, Pair};
use cni::{CniResult, Code, Command, Context, Error, IpNet, Plugin, RouteConf, masq};
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use kernel_api::rt::LinkKind;
use types::{Cidr, Family};

pub use conf::Conf;

use crate::{attach, nft};

/// See the module.
pub struct Bridge;

impl<M: Machine> Plugin<M> for Bridge {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields(), cx.call)?;
        let masquerade = attach::masquerades(&cx.fields())?;
        let netns = cx.netns()?;
        let (path, ifname, key) = (cx.netns_path(), cx.ifname()?, cx.key()?.clone());
        let (mut host, mut inside) = (cx.host()?, iface::inside(&netns, path)?);
        let bridge = wire::bridge(cx.machine, &mut host, &conf)?;
        let pair = Pair { key: &key, inside: &ifname, mac: conf.mac, mtu: conf.mtu, master: Some(bridge.index) };
        // Before an address is asked for: a DHCP server is asked by way of it.
        let ends = iface::make_pair(cx.machine, &mut host, &netns, &mut inside, &pair)?;
        let mut make = |cx: &mut Context<'_, M>, given: CniResult| {
            let mut result = given;
            result.interfaces =
                vec![iface::told(&bridge, ""), iface::told(&ends.host, ""), iface::told(&ends.inside, path)];
            gateways(&conf, &mut result);
            if !result.ips.is_empty() {
                let how = How { detect_duplicates: conf.detect_duplicates, ..How::default() };
                iface::configure(&netns, &mut inside, &ifname, &result, how)?;
                if conf.gateway {
                    let own = wire::addresses(cx.machine, &mut host, &conf, &bridge, &result)?;
                    result.interfaces.extend(own.map(|l| iface::told(&l, "")));
                }
                if masquerade {
                    let owner = attach::owner(cx)?;
                    masq::claim(&mut nft(cx.machine)?, &owner, &attach::of_result(&result))?;
                }
                attach::announce::<M>(&netns, &result, &ifname);
            }
            attach::dns(cx, &mut result)?;
            // A bridge takes the least hardware address of its ports unless it was given one.
            if let (Some(l), Some(told)) = (host.link(&conf.bridge)?, result.interfaces.first_mut()) {
                *told = iface::told(&l, "");
            }
            Ok(result)
        };
        let wired = wire::port(&mut cx.host()?, &mut iface::inside(&netns, path)?, &conf, &ends)
            .and_then(|()| cx.with_addresses(&mut make));
        wired.map_err(|e| attach::undo(cx, &netns, &ifname, masquerade, e))
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        attach::detach(cx)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields(), cx.call)?;
        if let Some(kind) = cx.ipam_type()? {
            cx.ipam_verb(&kind, Command::Check)?;
        }
        let prev = cx.chained()?.clone();
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        let netns = cx.netns()?;
        let (mut out, inside) = iface::differences(&mut iface::inside(&netns, path)?, &prev, &ifname, path)?;
        let mut host = cx.host()?;
        let bridge = host.link(&conf.bridge)?;
        match &bridge {
            None => out.push(format!("there is no bridge {}", conf.bridge)),
            Some(b) if !matches!(b.kind, LinkKind::Bridge(_)) => out.push(format!("{} is no bridge", conf.bridge)),
            Some(b) => {
                let mac = b.mac.map(|m| m.to_string()).unwrap_or_default();
                let told = prev.interfaces.iter().find(|i| i.name == conf.bridge.as_str() && i.sandbox.is_empty());
                match told {
                    None => out.push(format!("prevResult.interfaces lacks the bridge {}", conf.bridge)),
                    Some(t) if !t.mac.is_empty() && !t.mac.eq_ignore_ascii_case(&mac) => {
                        out.push(format!("{} has the hardware address {mac} instead of {}", conf.bridge, t.mac));
                    }
                    Some(_) => {}
                }
                if b.promisc != conf.promisc {
                    out.push(format!("promiscMode of {} is {}", conf.bridge, b.promisc));
                }
            }
        }
        if let (Some(b), Some(i)) = (bridge, inside) {
            let peer =
                host.links()?.into_iter().find(|l| Some(l.index) == i.peer_index && l.peer_index == Some(i.index));
            if peer.is_none_or(|p| p.master != Some(b.index)) {
                out.push(format!("the other end of {ifname} is no port of {}", conf.bridge));
            }
        }
        if attach::masquerades(&cx.fields())? && cx.ipam_type()?.is_some() {
            out.extend(attach::unmasqueraded(cx, &prev)?);
        }
        attach::verdict(cx, &out)
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        attach::sweep(cx)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields(), cx.call).and_then(|_| attach::masquerades(&cx.fields()));
        conf.map_err(|e| Error { code: Code::NotAvailable, ..e })?;
        attach::status(cx)
    }
}

/// The first address of a network.
fn first(net: IpNet) -> Option<IpAddr> {
    net.network().nth(1)
}

/// Says which interface the addresses are on, which gateways they have, and the default routes.
fn gateways(conf: &Conf, result: &mut CniResult) {
    let CniResult { ips, routes, .. } = result;
    for i in ips {
        i.interface = Some(2);
        if conf.gateway && i.gateway.is_none() {
            i.gateway = first(i.address);
        }
        let everywhere = Cidr::any(Family::of(i.address.addr));
        if conf.default_gateway && !routes.iter().any(|r| r.dst == everywhere && r.gw.is_some()) {
            routes.push(RouteConf::new(everywhere, i.gateway));
        }
    }
}
