//! `firewall`: containers that may be forwarded to and from, and bridges that do not reach each other, by one nf_tables
//! table: chain `forward` at priority `filter`. Each address and each bridge is an element; its comment says whose.

mod table;

use cni::ports::Owner;
use cni::{CniResult, Code, Context, Error, Fields, Plugin, bad};
use kernel_api::Nft;
use kernel_api::machine::Machine;
use std::net::IpAddr;
use types::IfName;

use crate::nft;
use table::{Have, change};

/// See the module.
pub struct Firewall;

/// The configuration, checked.
#[derive(Debug)]
pub(crate) struct Conf {
    /// A chain of the table that is the administrator's.
    admin: String,
    same_bridge: bool,
}

impl Conf {
    pub(crate) fn read(f: &Fields<'_>) -> Result<Self, Error> {
        match f.text("backend")?.unwrap_or_default() {
            "" | "iptables" | "nftables" => {}
            "firewalld" => {
                let says = "firewalld is not spoken to: leave backend out, and add the container's network to a zone by \
                            `firewall-cmd --permanent --zone=trusted --add-source=...`";
                return Err(bad(format!("backend is \"firewalld\": {says}")));
            }
            b => return Err(bad(format!("backend is {b:?}: iptables or nftables is needed, both are nf_tables here"))),
        }
        let same_bridge = match f.text("ingressPolicy")?.unwrap_or_default() {
            "" | "open" => false,
            "same-bridge" => true,
            p => return Err(bad(format!("ingressPolicy is {p:?}: open or same-bridge is needed"))),
        };
        let admin = f.text("iptablesAdminChainName")?.filter(|a| !a.is_empty()).unwrap_or("CNI-ADMIN");
        let ok = admin.len() <= 28 && admin.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !ok || admin == table::FORWARD {
            let says = "at most 28 letters, digits, '-' and '_', and not \"forward\"";
            return Err(bad(format!("iptablesAdminChainName is {admin:?}: {says}")));
        }
        // Of firewalld alone.
        f.text("firewalldZone")?;
        Ok(Self { admin: admin.into(), same_bridge })
    }

    /// The bridge that is cut off from others: what the plugin before made first.
    fn bridge(&self, prev: &CniResult) -> Result<Option<IfName>, Error> {
        if !self.same_bridge {
            return Ok(None);
        }
        let says = "ingressPolicy same-bridge needs prevResult.interfaces to begin with the bridge: chain firewall after \
                    the plugin bridge";
        let first = prev.interfaces.first().filter(|i| !i.name.is_empty()).ok_or_else(|| bad(says))?;
        first.name.parse().map(Some).map_err(bad)
    }
}

/// Every address of the result: the reference, too, asks for no interface.
fn addresses(prev: &CniResult) -> Vec<IpAddr> {
    prev.ips.iter().map(|i| i.address.addr).collect()
}

fn owner<M: Machine>(cx: &Context<'_, M>) -> Result<Owner, Error> {
    Ok(Owner::new(cx.network(), cx.key()?))
}

impl<M: Machine> Plugin<M> for Firewall {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields())?;
        let prev = cx.chained()?.clone();
        let (owner, bridge) = (owner(cx)?, conf.bridge(&prev)?);
        change(&mut nft(cx.machine)?, |have| {
            have.admins.insert(conf.admin.clone());
            have.put(&owner, &addresses(&prev), bridge.as_ref());
            true
        })?;
        Ok(prev)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let owner = owner(cx)?;
        change(&mut nft(cx.machine)?, |have| have.remove(|o| *o == owner))
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields())?;
        let prev = cx.chained()?.clone();
        let (owner, bridge) = (owner(cx)?, conf.bridge(&prev)?);
        let have = Have::observe(&mut nft(cx.machine)?)?;
        let mut out = Vec::new();
        if !have.sound {
            out.push(format!("the rules of table inet {} are not as they were made", table::name()));
        }
        for a in addresses(&prev) {
            if have.accepted.get(&a) != Some(&owner) {
                out.push(format!("{a} is not accepted"));
            }
        }
        if let Some(b) = bridge.filter(|b| !have.members.contains(&(b.clone(), owner.clone()))) {
            out.push(format!("bridge {b} is not kept apart"));
        }
        if out.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::Differs, format!("{}: the firewall is not as ADD made it", cx.key()?))
            .with(out.join("; ")))
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let network = cx.network();
        let valid: Vec<Owner> = cx.valid_attachments()?.iter().map(|k| Owner::new(network, k)).collect();
        change(&mut nft(cx.machine)?, |have| have.remove(|o| o.is_of(network) && !valid.contains(o)))
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let look = nft(cx.machine).and_then(|mut n| Ok(n.generation()?));
        look.map(drop).map_err(|e| Error { code: Code::NotAvailable, ..e })
    }
}
