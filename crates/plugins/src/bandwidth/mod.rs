//! `bandwidth`: how much the container may send and receive ([`cni::shape`]).

mod sha512;

use cni::ports::Owner;
use cni::shape::{self, Place};
use cni::{CniResult, Code, Context, Error, Interface, Plugin};
use ipam::Key;
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use kernel_api::rt::LinkKind;
use types::{IfName, OwnedName};

use crate::inside;

/// See the module.
pub struct Bandwidth;

/// The name that the reference plugin gives: the first 12 digits of the SHA-512 of network and container.
fn ifb(network: &str, container: &str) -> OwnedName {
    OwnedName::shaper(sha512::sha512_64(&format!("{network}{container}")) >> 16)
}

/// Where the limits of the call's container are; `link` is the host end. A pod of Seaway's own that the agent limits has
/// its `ifb` already: the runtime says the same limits again, and a second `ifb` would take the packets from the first.
fn place<M: Machine>(cx: &mut Context<'_, M>, link: IfName) -> Result<Place, Error> {
    let key = cx.key()?;
    let alias = Owner::new(cx.network(), key).as_str().to_owned();
    let own = OwnedName::recognise(&link).ok().filter(OwnedName::is_pod_link).map(|l| l.shaper_of());
    let there = own.map(|o| Ok::<_, Error>(cx.host()?.link(o.name())?.map(|_| o))).transpose()?.flatten();
    Ok(Place { link, ifb: there.unwrap_or_else(|| ifb(cx.network(), &key.container)), alias })
}

/// The host end of the container's veth.
fn host_end<M: Machine>(cx: &mut Context<'_, M>) -> Result<IfName, Error> {
    let ifname = cx.ifname()?;
    let netns = cx.netns()?;
    let prev = cx.chained()?.clone();
    let mut inside = inside(&netns, cx.netns_path())?;
    shape::host_end(&mut cx.host()?, &mut inside, &prev, &ifname)
}

impl<M: Machine> Plugin<M> for Bandwidth {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let limits = shape::limits(&cx.fields())?;
        let mut out = cx.chained()?.clone();
        if limits.is_none() {
            return Ok(out);
        }
        let link = host_end(cx)?;
        let place = place(cx, link)?;
        let mut rt = cx.host()?;
        shape::apply(&mut rt, &place, &limits)?;
        if limits.egress.is_some() {
            let mac = rt.link(place.ifb.name())?.and_then(|l| l.mac);
            let mac = mac.map(|m| m.to_string()).unwrap_or_default();
            out.interfaces.push(Interface { name: place.ifb.to_string(), mac, ..Interface::default() });
        }
        Ok(out)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        // Whatever the configuration says now. The host end mostly goes with the container; it need not.
        let link = match cx.prev.is_some() && cx.netns_if_there()?.is_some() {
            true => host_end(cx).ok(),
            false => None,
        };
        let mut rt = cx.host()?;
        match link {
            Some(link) => shape::remove(&mut rt, &place(cx, link)?)?,
            None => shape::remove_ifb(&mut rt, &ifb(cx.network(), &cx.key()?.container))?,
        }
        Ok(())
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let limits = shape::limits(&cx.fields())?;
        let link = host_end(cx)?;
        let place = place(cx, link)?;
        let have = shape::observe(&mut cx.host()?, &place)?;
        let lacks = shape::differences(&place, &limits, &have);
        if lacks.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::Differs, format!("{}: limits are not as ADD made them", cx.key()?)).with(lacks.join("; ")))
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let valid = cx.valid_attachments()?;
        let keep = |k: &Key| Owner::new(cx.network(), k);
        let valid: Vec<Owner> = valid.iter().map(keep).collect();
        let mut rt = cx.host()?;
        let mut gone = Vec::new();
        for l in rt.links()? {
            let owner = l.alias.as_deref().map(Owner::of_comment);
            let dead = owner.is_some_and(|o| o.is_of(cx.network()) && !valid.contains(&o));
            gone.extend(OwnedName::recognise_shaper(&l.name).filter(|_| dead && l.kind == LinkKind::Ifb));
        }
        for name in gone {
            shape::remove_ifb(&mut rt, &name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_as_the_reference_names_it() {
        // printf netabc | sha512sum
        assert_eq!(ifb("net", "abc").as_str(), format!("bwp{}", NETABC));
    }

    const NETABC: &str = "3ce8a0924fde";
}
