//! A container's mappings on the machine: what they need beside the table, and what must be forgotten with them.

use std::io;
use std::net::IpAddr;

use ipam::PortMapping;
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use types::{IfName, Proto};

use super::owner::Owner;
use super::run::{claim, claim_first, forget_stale, leads_by, localnet, on_loopback, release, release_these, sweep};
use super::want::Ports;
use crate::{Code, Error};

/// An error of opening something of the node's.
fn says(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::new(Code::Kernel, format!("open {what} in the node's namespace: {e}"))
}

/// Gives a container its mappings, all or none, instead of those it has. `link` leads to it, when that is known.
///
/// # Errors
/// Code 104 when another container has one of the ports, code 100 when the kernel refuses.
pub fn attach<M: Machine>(machine: &mut M, ports: &Ports<'_>, link: Option<&IfName>) -> Result<(), Error> {
    give(machine, ports, link, |nft| claim(nft, ports))
}

/// The same for a container that is new and has none.
///
/// # Errors
/// As [`attach`].
pub(crate) fn attach_new<M: Machine>(machine: &mut M, ports: &Ports<'_>, link: Option<&IfName>) -> Result<(), Error> {
    give(machine, ports, link, |nft| if claim_first(nft, ports)? { Ok(()) } else { claim(nft, ports) })
}

fn give<M: Machine>(
    machine: &mut M,
    ports: &Ports<'_>,
    link: Option<&IfName>,
    claim: impl FnOnce(&mut M::Nft) -> Result<(), Error>,
) -> Result<(), Error> {
    route_localnet(machine, ports, link)?;
    claim(&mut machine.nft().map_err(says("nf_tables"))?)?;
    forget(machine, &ports.led(), true);
    Ok(())
}

/// Takes these mappings of a container away, so far as it has them.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn detach_these<M: Machine>(machine: &mut M, ports: &Ports<'_>) -> Result<(), Error> {
    let mut nft = machine.nft().map_err(says("nf_tables"))?;
    let gone = match release_these(&mut nft, ports)? {
        Some(gone) => gone,
        None => release(&mut nft, &ports.owner)?,
    };
    drop(nft);
    forget(machine, &gone, false);
    Ok(())
}

/// See [`localnet`]; the routes are looked at only where `link` is not known.
fn route_localnet<M: Machine>(machine: &mut M, ports: &Ports<'_>, link: Option<&IfName>) -> Result<(), Error> {
    let Some(to) = on_loopback(ports) else { return Ok(()) };
    let link = match link {
        Some(l) => Some(l.clone()),
        None => leads_by(&machine.host().map_err(says("rtnetlink"))?.routes()?, to.addr),
    };
    let Some(link) = link else { return Ok(()) };
    Ok(localnet(&mut machine.sysctl().map_err(says("sysctls"))?, &link)?)
}

/// Takes a container's mappings away, whichever they are.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn detach<M: Machine>(machine: &mut M, owner: &Owner) -> Result<(), Error> {
    let gone = release(&mut machine.nft().map_err(says("nf_tables"))?, owner)?;
    forget(machine, &gone, false);
    Ok(())
}

/// Takes the mappings of a network away whose owners are not `valid`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn collect<M: Machine>(machine: &mut M, network: &str, valid: &[Owner]) -> Result<(), Error> {
    let gone = sweep(&mut machine.nft().map_err(says("nf_tables"))?, network, valid)?;
    forget(machine, &gone, false);
    Ok(())
}

/// Forgets stale connections. The mappings stand or are gone whether this succeeds or not, and what is not forgotten
/// now times out: not worth a failed ADD or DEL.
fn forget<M: Machine>(machine: &mut M, mappings: &[(PortMapping, IpAddr)], added: bool) {
    if mappings.iter().all(|(m, _)| m.proto == Proto::Tcp) {
        return;
    }
    let local = machine.host().ok().and_then(|mut rt| rt.addresses().ok()).unwrap_or_default();
    let local: Vec<IpAddr> = local.into_iter().map(|a| a.addr).collect();
    if let Ok(mut c) = machine.conntrack() {
        let _ = forget_stale(&mut c, mappings, added, &local);
    }
}
