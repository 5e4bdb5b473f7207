//! `portmap`: ports of the node that lead into the container, by one nf_tables table ([`cni::ports`]).
//!
//! What the reference plugin says in iptables or in nft tables of its own is said here in elements of maps; `backend`
//! only tells in whose words `conditionsV4` and `conditionsV6` are. Nothing is marked, so `markMasqBit` and
//! `externalSetMarkChain` have nothing to do: what they are for, masquerading, is done without.

use cni::ports::{self, Masquerade, Owner, Ports, Syntax, When};
use cni::{CniResult, Code, Context, Error, IpNet, Plugin, bad};
use ipam::PortMapping;
use kernel_api::Nft;
use kernel_api::machine::Machine;
use types::Family;

use crate::{nft, says};

/// See the module.
pub struct Portmap;

/// The configuration, checked.
#[derive(Debug)]
struct Conf {
    mappings: Vec<PortMapping>,
    masquerade: Masquerade,
    when: Vec<When>,
}

impl Conf {
    fn read<M: Machine>(cx: &Context<'_, M>) -> Result<Self, Error> {
        let f = cx.fields();
        let snat = f.choice("snat")?.unwrap_or(true);
        let all = f.flag("masqAll")?;
        let bit = f.number("markMasqBit", 0..=31)?;
        if bit.is_some() && f.text("externalSetMarkChain")?.is_some() {
            return Err(bad("markMasqBit and externalSetMarkChain cannot both be given: leave one out"));
        }
        let syntax = match f.text("backend")? {
            None => None,
            Some("iptables") => Some(Syntax::Iptables),
            Some("nftables") => Some(Syntax::Nft),
            Some(b) => return Err(bad(format!("backend is {b:?}: iptables or nftables is needed"))),
        };
        let mut when = Vec::new();
        for (field, family) in [("conditionsV4", Family::V4), ("conditionsV6", Family::V6)] {
            let words = f.texts(field)?;
            let dashes = words.first().is_some_and(|w| w.starts_with(['-', '!']));
            let guess = if dashes { Syntax::Iptables } else { Syntax::Nft };
            when.extend(When::read(field, family, syntax.unwrap_or(guess), &words)?);
        }
        let masquerade = match (snat, all) {
            (false, _) => Masquerade::Never,
            (true, false) => Masquerade::Near,
            (true, true) => Masquerade::All,
        };
        let mappings = f.object("runtimeConfig")?.map(|r| ports::mappings(&r)).transpose()?.unwrap_or_default();
        Ok(Self { mappings, masquerade, when })
    }

    fn ports<'a>(&'a self, owner: Owner, addresses: &'a [IpNet]) -> Ports<'a> {
        Ports { owner, mappings: &self.mappings, addresses, masquerade: self.masquerade, when: &self.when }
    }
}

/// The container's addresses: those of `CNI_IFNAME` inside, and those that no interface is told of.
pub(crate) fn addresses(prev: &CniResult, ifname: &str) -> Vec<IpNet> {
    let ours = |n: Option<usize>| {
        n.and_then(|n| prev.interfaces.get(n)).is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
    };
    prev.ips.iter().filter(|i| ours(i.interface)).map(|i| i.address).collect()
}

fn owner<M: Machine>(cx: &Context<'_, M>) -> Result<Owner, Error> {
    Ok(Owner::new(cx.network(), cx.key()?))
}

impl<M: Machine> Plugin<M> for Portmap {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(cx)?;
        let prev = cx.chained()?.clone();
        if conf.mappings.is_empty() {
            return Ok(prev);
        }
        let addresses = addresses(&prev, cx.key()?.ifname.as_str());
        let ports = conf.ports(owner(cx)?, &addresses);
        attach(cx.machine, &ports)?;
        Ok(prev)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        // Whatever the configuration says now: what is to go says in the kernel whose it is.
        detach(cx.machine, &owner(cx)?)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(cx)?;
        let addresses = addresses(cx.chained()?, cx.key()?.ifname.as_str());
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let lacks = ports::check(&mut nft(cx.machine)?, &conf.ports(owner(cx)?, &addresses))?;
        if lacks.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::Differs, format!("{}: port mappings are not as ADD made them", cx.key()?))
            .with(lacks.join("; ")))
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let valid: Vec<Owner> = cx.valid_attachments()?.iter().map(|k| Owner::new(cx.network(), k)).collect();
        let gone = ports::sweep(&mut nft(cx.machine)?, cx.network(), &valid)?;
        forget(cx.machine, &gone, false);
        Ok(())
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let look = nft(cx.machine).and_then(|mut n| Ok(n.generation()?));
        look.map(drop).map_err(|e| Error { code: Code::NotAvailable, ..e })
    }
}

/// Gives a container its mappings, all or none.
fn attach<M: Machine>(machine: &mut M, ports: &Ports<'_>) -> Result<(), Error> {
    let mut rt = machine.host().map_err(says("open rtnetlink in the node's namespace"))?;
    let mut sysctl = machine.sysctl().map_err(says("open the node's sysctls"))?;
    ports::route_localnet(&mut rt, &mut sysctl, ports)?;
    ports::claim(&mut nft(machine)?, ports)?;
    forget(machine, &ports.led(), true);
    Ok(())
}

fn detach<M: Machine>(machine: &mut M, owner: &Owner) -> Result<(), Error> {
    let gone = ports::release(&mut nft(machine)?, owner)?;
    forget(machine, &gone, false);
    Ok(())
}

/// Forgets stale connections. The mappings stand or are gone whether this succeeds or not, and what is not forgotten
/// now times out: not worth a failed ADD or DEL.
fn forget<M: Machine>(machine: &mut M, mappings: &[(PortMapping, std::net::IpAddr)], added: bool) {
    let datagrams = |(m, _): &(PortMapping, _)| m.proto != types::Proto::Tcp;
    if !mappings.iter().any(datagrams) {
        return;
    }
    let local =
        machine.host().ok().and_then(|mut rt| kernel_api::Rtnetlink::addresses(&mut rt).ok()).unwrap_or_default();
    let local: Vec<_> = local.into_iter().map(|a| a.addr).collect();
    if let Ok(mut c) = machine.conntrack() {
        let _ = ports::forget_stale(&mut c, mappings, added, &local);
    }
}
