//! What an attachment has beside its interface: ports of the node that lead to it, and limits. The same functions serve
//! the plugins `portmap` and `bandwidth`; here they belong to one ADD, and the record says what to undo.

use std::path::Path;

use ipam::{Journal, Key, Limits, PortMapping, Record};
use kernel_api::Rtnetlink;
use kernel_api::machine::{Machine, Netns};
use kernel_api::rt::{Link, LinkKind};
use types::{IfName, OwnedName};

use crate::config::NetConf;
use crate::ports::{self, Masquerade, Owner, Ports};
use crate::shape::{self, Place};
use crate::{Code, Error, IpNet, ops, reply};

/// What a call asks for: ports from the runtime, and those that the agent chose; limits from the agent, who follows the pod's annotations while it lives,
/// or from the runtime where no agent speaks for the pod.
pub(crate) fn wanted(conf: &NetConf, spec: Option<&intent::PodSpec>) -> (Vec<PortMapping>, Limits) {
    let mut ports = conf.ports.clone();
    ports.extend(spec.iter().flat_map(|s| &s.host_ports).map(|p| PortMapping {
        proto: p.host.proto,
        host_ip: p.host_ip,
        host_port: p.host.port,
        container_port: p.container_port,
    }));
    (ports, spec.map_or_else(|| conf.limits.clone(), |s| of_spec(&s.bandwidth)))
}

/// The limits that the agent writes down for a pod.
#[must_use]
pub fn of_spec(b: &intent::Bandwidth) -> Limits {
    let one = |rate: u64, burst: u64| (rate >= 8).then_some(ipam::Rate { rate, burst: Some(burst).filter(|b| *b > 0) });
    Limits {
        ingress: one(b.ingress_rate, b.ingress_burst),
        egress: one(b.egress_rate, b.egress_burst),
        ..Limits::default()
    }
}

fn owner(r: &Record) -> Owner {
    Owner::new(&r.network, &r.key)
}

/// Its addresses as the result has them: with the prefix lengths of whoever made the interface.
fn addresses(r: &Record) -> Vec<IpNet> {
    reply::own(r).addresses_of(&r.key.ifname)
}

fn ports<'a>(r: &'a Record, addresses: &'a [IpNet]) -> Ports<'a> {
    Ports { owner: owner(r), mappings: &r.ports, addresses, masquerade: Masquerade::Near, when: &[] }
}

fn nft<M: Machine>(machine: &mut M) -> Result<M::Nft, Error> {
    machine.nft().map_err(|e| Error::new(Code::Kernel, format!("open nf_tables in the node's namespace: {e}")))
}

fn place(r: &Record, link: IfName) -> Place {
    Place { link, ifb: r.link.shaper_of(), alias: owner(r).as_str().to_owned() }
}

/// The host end that limits are put on.
fn host_end<M: Machine>(machine: &mut M, r: &Record, netns: &M::Netns) -> Result<IfName, Error> {
    if r.is_routed() {
        return Ok(r.link.name().clone());
    }
    let open = |e| Error::new(Code::Kernel, format!("open rtnetlink in {}: {e}", r.netns));
    shape::host_end(&mut ops::host(machine)?, &mut netns.rtnetlink().map_err(open)?, &reply::own(r), &r.key.ifname)
}

/// Makes what the record says; what is there already stays. An attachment that is `new` has nothing of it, and its limits
/// were made with its interface ([`limit_new`]) if that is of our own making.
pub(crate) fn make<M: Machine>(machine: &mut M, r: &Record, netns: &M::Netns, new: bool) -> Result<(), Error> {
    if !(r.limits.is_none() || new && r.is_routed()) {
        let link = host_end(machine, r, netns)?;
        shape::apply(&mut ops::host(machine)?, &place(r, link), &r.limits)?;
    }
    if r.ports.is_empty() {
        return Ok(());
    }
    let addresses = addresses(r);
    let link = r.is_routed().then(|| r.link.name().clone());
    let attach = if new { ports::attach_new } else { ports::attach };
    attach(machine, &ports(r, &addresses), link.as_ref())
}

/// Limits a host end that was just made and is not up yet: a queue on a link that is up makes the kernel wait.
pub(crate) fn limit_new(rt: &mut impl Rtnetlink, r: &Record) -> Result<(), Error> {
    if r.limits.is_none() { Ok(()) } else { shape::apply_new(rt, &place(r, r.link.name().clone()), r.mtu, &r.limits) }
}

/// Undoes what the record says, but for [`links`].
pub(crate) fn unmake<M: Machine>(machine: &mut M, r: &Record) -> Result<(), Error> {
    match r.ports.is_empty() {
        true => Ok(()),
        // The record has all that the ports were made from.
        false if r.is_routed() => ports::detach_these(machine, &ports(r, &addresses(r))),
        false => ports::detach(machine, &owner(r)),
    }
}

/// The links beside the interface itself; the rest of the limits goes with that.
pub(crate) fn links(r: &Record) -> Option<OwnedName> {
    r.limits.egress.map(|_| r.link.shaper_of())
}

/// For a DEL of what no record tells of.
pub(crate) fn unmake_unknown<M: Machine>(machine: &mut M, key: &Key) -> Result<(), Error> {
    Ok(shape::remove_ifb(&mut ops::host(machine)?, &key.link().shaper_of())?)
}

/// Takes away the port mappings and the `ifb`s of a network that no record tells of.
///
/// # Errors
/// When the kernel refuses, or the journal cannot be read.
pub fn sweep<M: Machine>(machine: &mut M, dir: &Path, network: &str) -> Result<(), Error> {
    // The machine before the records: an ADD writes its record before it makes anything.
    let mut rt = ops::host(machine)?;
    let ifb = |l: &Link| {
        let owner = Owner::of_comment(l.alias.as_deref()?);
        OwnedName::recognise_shaper(&l.name)
            .filter(|_| owner.is_of(network) && l.kind == LinkKind::Ifb)
            .map(|n| (n, owner))
    };
    let ifbs: Vec<(OwnedName, Owner)> = rt.links()?.iter().filter_map(ifb).collect();
    let owners = ports::observe(&mut nft(machine)?)?.owners();
    let known: Vec<Owner> = ipam::read(dir)?.iter().map(owner).collect();
    for (name, _) in ifbs.iter().filter(|(_, o)| !known.contains(o)) {
        shape::remove_ifb(&mut rt, name)?;
    }
    let lost = owners.iter().filter(|o| o.is_of(network) && !known.contains(o));
    lost.into_iter().try_for_each(|o| ports::detach(machine, o))
}

/// What differs from the record, as text.
pub(crate) fn differences<M: Machine>(machine: &mut M, r: &Record, netns: &M::Netns) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    if !r.limits.is_none() {
        let place = place(r, host_end(machine, r, netns)?);
        let have = shape::observe(&mut ops::host(machine)?, &place)?;
        out.extend(shape::differences(&place, &r.limits, &have));
    }
    if !r.ports.is_empty() {
        let addresses = addresses(r);
        out.extend(ports::check(&mut nft(machine)?, &ports(r, &addresses))?);
    }
    Ok(out)
}

/// Which of these attachments' ports do not lead to them as they should: for the agent, after somebody changed nf_tables.
///
/// # Errors
/// When the table cannot be read.
pub fn unmapped<'a, M: Machine>(machine: &mut M, records: &'a [Record]) -> Result<Vec<&'a Key>, Error> {
    let image = ports::observe(&mut nft(machine)?)?;
    let lacks = |r: &&Record| !image.lacks(&ports(r, &addresses(r))).is_empty();
    Ok(records.iter().filter(|r| !r.ports.is_empty()).filter(lacks).map(|r| &r.key).collect())
}

/// Makes an attachment's ports lead to it again: for the agent. Says whether something was to do: its ADD or DEL may
/// just have been at it.
///
/// # Errors
/// Code 104 when another container has one of them, code 100 when the kernel refuses.
pub fn remap<M: Machine>(machine: &mut M, dir: &Path, key: &Key) -> Result<bool, Error> {
    let _lock = ops::lock(machine, dir, &key.link())?;
    // Looked up under the lock: a DEL may just have removed it.
    match &ipam::find(dir, key)? {
        Some(r) if !r.ports.is_empty() && !ports::check(&mut nft(machine)?, &ports(r, &addresses(r)))?.is_empty() => {
            let (addresses, link) = (addresses(r), r.is_routed().then(|| r.link.name().clone()));
            ports::attach(machine, &ports(r, &addresses), link.as_ref()).map(|()| true)
        }
        _ => Ok(false),
    }
}

/// Gives a living attachment other limits: for the agent, when the pod's annotations change. Says whether something was
/// to do.
///
/// # Errors
/// When the kernel refuses or the journal cannot be written.
pub fn reshape<M: Machine>(machine: &mut M, dir: &Path, key: &Key, limits: &Limits) -> Result<bool, Error> {
    let _lock = ops::lock(machine, dir, &key.link())?;
    let Some(mut r) = ipam::find(dir, key)? else { return Ok(false) };
    let netns = ops::open_netns(machine, &r.netns)?;
    change(machine, dir, &mut r, &netns, limits)
}

/// The same under the attachment's lock.
pub(crate) fn change<M: Machine>(
    machine: &mut M,
    dir: &Path,
    r: &mut Record,
    netns: &M::Netns,
    limits: &Limits,
) -> Result<bool, Error> {
    if r.limits == *limits {
        return Ok(false);
    }
    let write = |r: &Record| -> Result<(), Error> {
        if let Some(mut j) = Journal::open_existing(dir)? {
            j.amend(r)?;
        }
        Ok(())
    };
    let link = host_end(machine, r, netns)?;
    // The record tells of an `ifb` as long as there may be one.
    let either = Limits { egress: limits.egress.or(r.limits.egress), ..limits.clone() };
    if r.limits != either {
        r.limits = either;
        write(r)?;
    }
    shape::apply(&mut ops::host(machine)?, &place(r, link), limits)?;
    if r.limits != *limits {
        r.limits = limits.clone();
        write(r)?;
    }
    Ok(true)
}
