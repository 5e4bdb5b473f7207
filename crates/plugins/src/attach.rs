//! What `bridge` and `ptp` do around their own wiring: addresses, masquerading, name resolution, and taking all of it
//! back.

use cni::ports::Owner;
use cni::{CniResult, Code, Command, Context, Dns, Error, Fields, IpNet, Netns as _, iface, masq};
use kernel_api::machine::Machine;

use crate::nft;

pub(crate) fn owner<M: Machine>(cx: &Context<'_, M>) -> Result<Owner, Error> {
    Ok(Owner::new(cx.network(), cx.key()?))
}

/// `ipMasqBackend`: either is said in one nf_tables table here; a wrong one is refused as the reference does.
pub(crate) fn masquerades(f: &Fields<'_>) -> Result<bool, Error> {
    match f.text("ipMasqBackend")? {
        None | Some("iptables" | "nftables") => f.flag("ipMasq"),
        Some(b) => Err(cni::bad(format!("ipMasqBackend is {b:?}: iptables or nftables is needed"))),
    }
}

pub(crate) fn of_result(r: &CniResult) -> Vec<IpNet> {
    r.ips.iter().map(|i| i.address).collect()
}

/// The configuration's `dns` instead of the IPAM plugin's, if it says anything.
pub(crate) fn dns<M: Machine>(cx: &Context<'_, M>, result: &mut CniResult) -> Result<(), Error> {
    if let Some(d) = cx.fields().object("dns")? {
        let d = Dns::read(&d)?;
        if !d.is_empty() {
            result.dns = d;
        }
    }
    Ok(())
}

/// Takes away what ADD made, whatever of it is there: the interface, the addresses, the masquerading. Each is tried,
/// also when another fails.
pub(crate) fn detach<M: Machine>(cx: &mut Context<'_, M>) -> Result<(), Error> {
    let owner = owner(cx)?;
    let plain = detach_plain(cx);
    let masq = nft(cx.machine).and_then(|mut n| masq::release(&mut n, &owner));
    plain.and(masq)
}

/// As [`detach`], of plugins that do not masquerade.
pub(crate) fn detach_plain<M: Machine>(cx: &mut Context<'_, M>) -> Result<(), Error> {
    let ipam = cx.ipam_type()?;
    let mut failed = Vec::new();
    // A DHCP server is told by way of the interface; every other address must not be given again while it is there.
    let by_wire = ipam.as_deref() == Some("dhcp");
    if let Some(kind) = ipam.as_deref().filter(|_| by_wire) {
        failed.extend(cx.ipam_del(kind).err());
    }
    failed.extend(unwire(cx).err());
    if let Some(kind) = ipam.as_deref().filter(|_| !by_wire) {
        failed.extend(cx.ipam_del(kind).err());
    }
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Takes back what an ADD that failed with `e` has made: its interface, and masquerading if there was to be any.
pub(crate) fn undo<M: Machine>(
    cx: &mut Context<'_, M>,
    netns: &M::Netns,
    ifname: &types::IfName,
    masquerade: bool,
    e: Error,
) -> Error {
    let owner = owner(cx).and_then(|o| if masquerade { masq::release(&mut nft(cx.machine)?, &o) } else { Ok(()) });
    cni::undone(cni::undone(e, owner), iface::delete_inside(netns, ifname))
}

fn unwire<M: Machine>(cx: &mut Context<'_, M>) -> Result<(), Error> {
    match cx.netns_if_there()? {
        Some(netns) => iface::delete_inside(&netns, &cx.ifname()?),
        None => Ok(()),
    }
}

/// GC: of the IPAM plugin, and masquerading of what does not live. Interfaces go with their namespaces.
pub(crate) fn sweep<M: Machine>(cx: &mut Context<'_, M>) -> Result<(), Error> {
    let valid: Vec<Owner> = cx.valid_attachments()?.iter().map(|k| Owner::new(cx.network(), k)).collect();
    let mut failed = Vec::new();
    if let Some(kind) = cx.ipam_type()? {
        failed.extend(cx.ipam_verb(&kind, Command::Gc).err());
    }
    let network = cx.network().to_owned();
    failed.extend(nft(cx.machine).and_then(|mut n| masq::sweep(&mut n, &network, &valid)).err());
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// GC of plugins that do not masquerade.
pub(crate) fn sweep_plain<M: Machine>(cx: &mut Context<'_, M>) -> Result<(), Error> {
    match cx.ipam_type()? {
        Some(kind) => cx.ipam_verb(&kind, Command::Gc),
        None => Ok(()),
    }
}

/// STATUS: of the IPAM plugin.
pub(crate) fn status<M: Machine>(cx: &mut Context<'_, M>) -> Result<(), Error> {
    match cx.ipam_type()? {
        Some(kind) => cx.ipam_verb(&kind, Command::Status),
        None => Ok(()),
    }
}

/// Says in the container's name where its addresses are now; nobody waits for it, and nothing fails without it.
pub(crate) fn announce<M: Machine>(netns: &M::Netns, result: &CniResult, ifname: &types::IfName) {
    for i in &result.ips {
        let _ = netns.announce(ifname, i.address.addr);
    }
}

/// CHECK's answer.
pub(crate) fn verdict<M: Machine>(cx: &Context<'_, M>, differences: &[String]) -> Result<(), Error> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::Differs, format!("{} is not as ADD made it", cx.key()?)).with(differences.join("; ")))
}

/// CHECK of masquerading.
pub(crate) fn unmasqueraded<M: Machine>(cx: &mut Context<'_, M>, prev: &CniResult) -> Result<Vec<String>, Error> {
    let owner = owner(cx)?;
    let lacks = masq::lacks(&mut nft(cx.machine)?, &owner, &of_result(prev))?;
    Ok(lacks.into_iter().map(|a| format!("what {a} sends is not masqueraded")).collect())
}
