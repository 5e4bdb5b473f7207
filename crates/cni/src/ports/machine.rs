//! A container's mappings on the machine: what they need beside the table, and what must be forgotten with them.

use std::io;
use std::net::IpAddr;

use ipam::PortMapping;
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use types::{IfName, Proto};

use super::owner::Owner;
use super::run::{claim, forget_stale, release, route_localnet, sweep};
use super::want::Ports;
use crate::{Code, Error};

/// An error of opening something of the node's.
fn says(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::new(Code::Kernel, format!("open {what} in the node's namespace: {e}"))
}

/// Gives a container its mappings, all or none. `link` leads to it, when that is known.
///
/// # Errors
/// Code 104 when another container has one of the ports, code 100 when the kernel refuses.
pub fn attach<M: Machine>(machine: &mut M, ports: &Ports<'_>, link: Option<&IfName>) -> Result<(), Error> {
    let mut rt = machine.host().map_err(says("rtnetlink"))?;
    let mut sysctl = machine.sysctl().map_err(says("sysctls"))?;
    route_localnet(&mut rt, &mut sysctl, ports, link)?;
    claim(&mut machine.nft().map_err(says("nf_tables"))?, ports)?;
    forget(machine, &ports.led(), true);
    Ok(())
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
