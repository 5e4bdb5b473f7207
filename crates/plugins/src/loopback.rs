//! `loopback`: the container's own loopback interface, up. Runtimes call it for every container; `CNI_IFNAME` is not
//! looked at.

use cni::{CniResult, Context, Error, Interface, Ip, IpNet, Plugin, bad};
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use kernel_api::rt::{RtRequest, SetLink};
use types::IfName;

use crate::inside;

/// See the module.
pub struct Loopback;

fn lo() -> Result<IfName, Error> {
    "lo".parse().map_err(bad)
}

impl<M: Machine> Plugin<M> for Loopback {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let mut rt = inside(&cx.netns()?, cx.netns_path())?;
        rt.run(&[RtRequest::LinkSet(SetLink::up(lo()?))])?;
        let addresses = rt.addresses()?;
        let own: Vec<_> = addresses.iter().filter(|a| a.link.as_str() == "lo").collect();
        if let Some(a) = own.iter().find(|a| !a.addr.is_loopback()) {
            return Err(bad(format!(
                "lo in {} has the address {}, which is no loopback address",
                cx.netns_path(),
                a.addr
            )));
        }
        if let Some(prev) = &cx.prev {
            return Ok(prev.clone());
        }
        let interface = Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: cx.netns_path().into(),
            ..Interface::default()
        };
        // One address of each family, as the reference tells.
        let of = |v4: bool| own.iter().find(|a| a.addr.is_ipv4() == v4);
        let ips = [of(true), of(false)].into_iter().flatten().map(|a| Ip {
            interface: Some(0),
            address: IpNet { addr: a.addr, len: a.prefix_len },
            gateway: None,
        });
        Ok(CniResult { interfaces: vec![interface], ips: ips.collect(), ..CniResult::default() })
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let Some(netns) = cx.netns_if_there()? else { return Ok(()) };
        let down = SetLink { up: Some(false), ..SetLink::new(lo()?) };
        Ok(inside(&netns, cx.netns_path())?.run(&[RtRequest::LinkSet(down)])?)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let links = inside(&cx.netns()?, cx.netns_path())?.links()?;
        if links.iter().any(|l| l.name.as_str() == "lo" && l.up) {
            return Ok(());
        }
        Err(Error::new(cni::Code::Differs, format!("in {}: lo is down", cx.netns_path())))
    }
}
