//! `static`: the addresses that configuration or runtime name, and nothing kept.

use std::net::IpAddr;

use cni::{Call, CniResult, Code, Context, Dns, Error, Fields, Ip, IpNet, Plugin, RouteConf, bad, route};
use kernel_api::machine::Machine;

use crate::envargs;

/// See the module.
pub struct Static;

/// `ipam` of a configuration, with what runtime and environment say instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// Addresses, each with its gateway.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<RouteConf>,
    /// Name resolution.
    pub dns: Dns,
}

impl Conf {
    /// Reads it all. `runtimeConfig.ips` stands instead of `args.cni.ips`, that instead of `ipam.addresses` and
    /// `CNI_ARGS`' `IP`, which stand together.
    ///
    /// # Errors
    /// Code 4 or 7, naming key or field.
    pub fn read(conf: &Fields<'_>, call: &Call) -> Result<Self, Error> {
        let ipam = conf.object("ipam")?.ok_or_else(|| bad("ipam is missing"))?;
        let mut ips = Vec::new();
        for a in ipam.objects("addresses")? {
            let address = a.parsed("address")?.ok_or_else(|| bad(format!("{} is missing", a.name("address"))))?;
            ips.push(Ip { interface: None, address, gateway: a.parsed("gateway")? });
        }
        let [given, gateways] = envargs::known(call, ["IP", "GATEWAY"])?;
        for text in given.into_iter().flat_map(|t| t.split(',')).map(str::trim) {
            ips.push(of_text(text, "CNI_ARGS' IP")?);
        }
        for text in gateways.into_iter().flat_map(|t| t.split(',')).map(str::trim) {
            let gw: IpAddr = text.parse().map_err(|_| bad(format!("CNI_ARGS' GATEWAY has {text:?}: no address")))?;
            for ip in ips.iter_mut().filter(|ip| ip.address.network().contains(gw)) {
                ip.gateway = Some(gw);
            }
        }
        let args = conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten();
        for f in [args, conf.object("runtimeConfig")?].into_iter().flatten() {
            let texts = f.texts("ips")?;
            if !texts.is_empty() {
                let at = f.name("ips");
                ips = texts.iter().map(|t| of_text(t, &at)).collect::<Result<_, _>>()?;
            }
        }
        let routes = ipam.objects("routes")?.iter().map(route).collect::<Result<_, _>>()?;
        let dns = ipam.object("dns")?.map(|d| Dns::read(&d)).transpose()?.unwrap_or_default();
        Ok(Self { ips, routes, dns })
    }
}

fn of_text(text: &str, at: &str) -> Result<Ip, Error> {
    let address: IpNet = text.parse().map_err(|e| bad(format!("{at}: {e}")))?;
    Ok(Ip { interface: None, address, gateway: None })
}

impl<M: Machine> Plugin<M> for Static {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let Conf { ips, routes, dns } = Conf::read(&cx.fields(), cx.call)?;
        Ok(CniResult { ips, routes, dns, ..CniResult::default() })
    }

    fn del(&self, _cx: &mut Context<'_, M>) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields(), cx.call)?;
        let prev = &cx.chained()?.ips;
        for ip in &conf.ips {
            let same = prev.iter().find(|p| p.address.addr == ip.address.addr);
            if same.is_some_and(|p| ip.gateway.is_some() && p.gateway != ip.gateway) {
                let says = format!("prevResult has {} with another gateway than the configuration", ip.address.addr);
                return Err(Error::new(Code::Differs, says));
            }
        }
        Ok(())
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        Conf::read(&cx.fields(), cx.call).map(drop).map_err(|e| Error { code: Code::NotAvailable, ..e })
    }
}
