//! `portmap`: ports of the node that lead into the container, by one nf_tables table ([`cni::ports`]).
//!
//! What the reference plugin says in iptables or in nft tables of its own is said here in elements of maps; `backend`
//! only tells in whose words `conditionsV4` and `conditionsV6` are. Nothing is marked, so `markMasqBit` and
//! `externalSetMarkChain` have nothing to do: what they are for, masquerading, is done without.

use cni::ports::{self, Masquerade, Owner, Ports, Syntax, When};
use cni::{CniResult, Code, Context, Error, Fields, IpNet, Plugin, bad};
use ipam::PortMapping;
use kernel_api::Nft;
use kernel_api::machine::Machine;
use types::Family;

use crate::nft;

/// See the module.
pub struct Portmap;

/// The configuration, checked.
#[derive(Debug)]
pub(crate) struct Conf {
    mappings: Vec<PortMapping>,
    masquerade: Masquerade,
    when: Vec<When>,
}

impl Conf {
    pub(crate) fn read(f: &Fields<'_>) -> Result<Self, Error> {
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

    pub(crate) fn ports<'a>(&'a self, owner: Owner, addresses: &'a [IpNet]) -> Ports<'a> {
        Ports { owner, mappings: &self.mappings, addresses, masquerade: self.masquerade, when: &self.when }
    }
}

fn owner<M: Machine>(cx: &Context<'_, M>) -> Result<Owner, Error> {
    Ok(Owner::new(cx.network(), cx.key()?))
}

impl<M: Machine> Plugin<M> for Portmap {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields())?;
        let prev = cx.chained()?.clone();
        if conf.mappings.is_empty() {
            return Ok(prev);
        }
        let addresses = prev.addresses_of(&cx.ifname()?);
        let ports = conf.ports(owner(cx)?, &addresses);
        ports::attach(cx.machine, &ports, None)?;
        Ok(prev)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        // Whatever the configuration says now: what is to go says in the kernel whose it is.
        let owner = owner(cx)?;
        ports::detach(cx.machine, &owner)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields())?;
        let addresses = cx.chained()?.addresses_of(&cx.ifname()?);
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
        let network = cx.network().to_owned();
        ports::collect(cx.machine, &network, &valid)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let look = nft(cx.machine).and_then(|mut n| Ok(n.generation()?));
        look.map(drop).map_err(|e| Error { code: Code::NotAvailable, ..e })
    }
}
