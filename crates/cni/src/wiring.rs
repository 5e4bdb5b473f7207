//! Pods that are wired by a mode of ours other than `routed`, while they live: for the agent. What somebody took away is
//! put back in place where that is enough; else the interface is made anew, with the same addresses.

use std::path::Path;

use ipam::{Delegate, Journal, Key, Record};
use kernel_api::Rtnetlink;
use kernel_api::machine::Machine;
use kernel_api::rt::{RtRequest, SetLink};
use serde_json::Value;
use types::IfName;

use crate::guarded::wiring;
use crate::ops::{self, living};
use crate::result::CniResult;
use crate::skel::Registry;
use crate::{Code, Error, IPAM_TYPE, extras, iface, networks, reply, shape};

/// The node's end of an attachment's interface, as its ADD told it; none of those that have none on the node, and of mode
/// `routed`.
#[must_use]
pub fn host_end(r: &Record) -> Option<IfName> {
    let d = r.delegates.get(wiring(r)?)?;
    let kind: intent::Mode = d.kind.parse().ok()?;
    if !matches!(kind, intent::Mode::Bridge | intent::Mode::Ptp) {
        return None;
    }
    let bridge = d.conf.get("bridge").and_then(Value::as_str).unwrap_or("cni0");
    let told = reply::own(r);
    let host = told.interfaces.iter().find(|i| i.sandbox.is_empty() && i.name != bridge)?;
    host.name.parse().ok()
}

/// Whether the agent sees to an attachment by [`mend`].
#[must_use]
pub fn is_wired(r: &Record) -> bool {
    wiring(r).is_some() && networks::complete(r)
}

/// Compares an attachment with what its ADD made, and makes it so. Says what was not so; nothing when all was well.
///
/// # Errors
/// Code 3 when the pod's namespace is gone; otherwise what failed: the next pass tries again.
pub fn mend<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    key: &Key,
) -> Result<Option<String>, Error> {
    let _lock = ops::lock(machine, dir, &key.link())?;
    let (mut record, netns) = living(machine, dir, key)?;
    // An ADD that was killed, or a DEL that began: the runtime's affair.
    let Some(n) = wiring(&record).filter(|_| networks::complete(&record)) else { return Ok(None) };
    let Some(d) = record.delegates.get(n).cloned() else { return Ok(None) };
    let look = networks::replay(machine, registry, &record, "CHECK", |cx| {
        networks::check_one(cx, &d, d.result.as_ref(), &record)
    });
    let mut said = match look {
        Ok(()) => None,
        Err(e) if e.code == Code::Differs => Some(e.to_string()),
        Err(e) => return Err(e),
    };
    if said.is_some() {
        let again = |machine: &mut M| {
            // What hangs on the interface from outside first: connections of the pod go on.
            networks::replay(machine, registry, &record, "ADD", |cx| networks::beside(cx, &d, &record))?;
            networks::replay(machine, registry, &record, "CHECK", |cx| {
                networks::check_one(cx, &d, d.result.as_ref(), &record)
            })
        };
        if again(machine).is_err() {
            anew(machine, registry, dir, &mut record, n, &d)?;
        }
    }
    let differ = extras::differences(machine, &record, &netns)?;
    if !differ.is_empty() {
        extras::make(machine, &record, &netns, false)?;
        said = said.or_else(|| Some(differ.join("; ")));
    }
    Ok(said)
}

/// Deletes the interface and makes it again.
fn anew<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    record: &mut Record,
    n: usize,
    d: &Delegate,
) -> Result<(), Error> {
    let ipam = d.conf.get("ipam").and_then(|i| i.get("type")).and_then(Value::as_str);
    if !matches!(ipam, Some(IPAM_TYPE | "static")) {
        let says = format!(
            "its interface is not as it was made, and {} may give it other addresses than the API tells: delete the pod",
            ipam.unwrap_or("no ipam")
        );
        return Err(Error::new(Code::Differs, says));
    }
    networks::replay(machine, registry, record, "DEL", |cx| networks::del_one(cx, d, d.result.as_ref(), record))?;
    let told = networks::replay(machine, registry, record, "ADD", |cx| networks::add_one(cx, d, None, record))?;
    if let Some(d) = record.delegates.get_mut(n) {
        d.result = told.map(|r| r.write(crate::Version::NEWEST));
    }
    if let Some(mut journal) = Journal::open_existing(dir)? {
        journal.amend(record)?;
    }
    Ok(())
}

/// Gives both ends of a living pod's pair, and its bridge, another MTU, in bytes.
pub(crate) fn set_mtu<M: Machine>(
    machine: &mut M,
    record: &mut Record,
    netns: &M::Netns,
    mtu: u32,
) -> Result<(), Error> {
    let Some(d) = wiring(record).and_then(|n| record.delegates.get(n)) else { return Ok(()) };
    if host_end(record).is_none() || d.conf.get("mtu").and_then(Value::as_u64) != Some(record.mtu.into()) {
        // On the underlay, or as the options say.
        return Ok(());
    }
    let told: CniResult = reply::own(record);
    let (mut host, mut inside) = (ops::host(machine)?, iface::inside(netns, &record.netns)?);
    let link = shape::host_end(&mut host, &mut inside, &told, &record.key.ifname)?;
    let set = |name: &IfName| RtRequest::LinkSet(SetLink { mtu: Some(mtu), ..SetLink::new(name.clone()) });
    inside.run(&[set(&record.key.ifname)])?;
    host.run(&[set(&link)])?;
    if let Some(bridge) = d.conf.get("bridge").and_then(Value::as_str).and_then(|b| b.parse().ok()) {
        host.run(&[set(&bridge)])?;
    }
    Ok(())
}

/// Writes another MTU into what the record says of the interface.
pub(crate) fn note_mtu(record: &mut Record, mtu: u32) {
    let before = Some(u64::from(record.mtu));
    record.mtu = mtu;
    let Some(d) = wiring(record).and_then(|n| record.delegates.get_mut(n)) else { return };
    if d.conf.get("mtu").and_then(Value::as_u64) == before {
        d.conf.insert("mtu".into(), mtu.into());
    }
    let told = d.result.as_mut().and_then(|r| r.get_mut("interfaces")).and_then(Value::as_array_mut);
    for i in told.into_iter().flatten().filter(|i| i.get("mtu").and_then(Value::as_u64) == before) {
        i["mtu"] = mtu.into();
    }
}
