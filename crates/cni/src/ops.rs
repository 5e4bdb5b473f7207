//! The commands: read, decide, run.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use intent::PodSpec;
use ipam::{Ask, Journal, Key, KeyLock, PodRef, Record, Request};
use kernel_api::rt::{RtRequest, SetLink};
use kernel_api::{RequestError, Rtnetlink, errno};
use types::{Family, OwnedName};

use crate::args::parse_args;
use crate::config::NetConf;
use crate::observe::{View, differences, differences_after, paired};
use crate::plan::{self, AddPlan};
use crate::result::CniResult;
use crate::settle::settle;
use crate::skel::{Context, Plugin};
use crate::{
    Code, Error, Machine, Netns, Registry, extras, gc, ipam_plugin, led, names, networks, podspec, reply, runtime,
};

/// Seaway's own plugin: wiring mode `routed`, addresses from the journal.
pub struct Seaway;

impl Seaway {
    fn conf<M: Machine>(cx: &Context<'_, M>) -> Result<NetConf, Error> {
        NetConf::from_object(cx.version, cx.conf.clone())
    }
}

impl<M: Machine> Plugin<M> for Seaway {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let mut conf = Self::conf(cx)?;
        let (pod, ips) = parse_args(&cx.call.args)?;
        conf.mac = conf.mac.or(cx.call.mac()?);
        // What the agent says of the pod, before anything is done: this may wait.
        let spec = match (&conf.pods, &pod) {
            (Some(dir), Some(pod)) => podspec::wait(dir, pod)?,
            _ => PodSpec::default(),
        };
        let record = add(cx, &conf, &spec, pod.as_ref(), &ips)?;
        Ok(reply::merged(&record, &conf))
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Self::conf(cx)?;
        parse_args(&cx.call.args)?;
        let (dir, key) = (&conf.data_dir, cx.key()?.clone());
        // Without a directory nothing was ever added; a DEL leaves none behind.
        let lock = if dir.exists() { Some(lock(cx.machine, dir, &key.link())?) } else { None };
        remove_locked(cx.machine, cx.registry, dir, &key, Wait::Apart(lock.as_ref())).map(drop)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Self::conf(cx)?;
        check(cx, &conf)
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Self::conf(cx)?;
        gc::run(cx.machine, cx.registry, &conf)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Self::conf(cx)?;
        status(cx.machine, &conf)
    }
}

/// A failed deed, and what became of undoing it.
#[must_use]
pub fn undone(e: Error, undo: Result<(), Error>) -> Error {
    match undo {
        Ok(()) => e,
        Err(u) => {
            let details = [e.details.as_str(), "; undoing it failed as well: ", &u.to_string()].concat();
            e.with(details.trim_start_matches("; "))
        }
    }
}

pub(crate) fn open_netns<M: Machine>(machine: &mut M, path: &str) -> Result<M::Netns, Error> {
    let netns = machine.open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Error::new(Code::UnknownContainer, format!("CNI_NETNS {path}: there is no such network namespace"))
        }
        _ => Error::new(Code::InvalidEnvironment, format!("invalid environment: CNI_NETNS {path}: {e}")),
    })?;
    if netns.is_own().map_err(|e| Error::new(Code::Io, format!("look at the own network namespace: {e}")))? {
        let msg = format!("invalid environment: CNI_NETNS {path} is the network namespace of the node itself");
        return Err(Error::new(Code::InvalidEnvironment, msg));
    }
    Ok(netns)
}

/// The attachment's lock: see [`KeyLock`].
pub(crate) fn lock(machine: &mut impl Machine, dir: &Path, link: &OwnedName) -> Result<KeyLock, Error> {
    Ok(KeyLock::take(dir, link, |file, at| machine.lock(file, at))?)
}

pub(crate) fn host<M: Machine>(machine: &mut M) -> Result<<M::Netns as Netns>::Rt, Error> {
    machine.host().map_err(|e| Error::new(Code::Kernel, format!("open rtnetlink in the node's namespace: {e}")))
}

fn inside<N: Netns>(netns: &N, path: &str) -> Result<N::Rt, Error> {
    netns.rtnetlink().map_err(|e| Error::new(Code::Kernel, format!("open rtnetlink in {path}: {e}")))
}

/// ADD: the record first, so that whatever a crash leaves behind is known; then the kernel.
fn add<M: Machine>(
    cx: &mut Context<'_, M>,
    conf: &NetConf,
    spec: &PodSpec,
    pod: Option<&PodRef>,
    ips: &[IpAddr],
) -> Result<Record, Error> {
    let mtu = conf.for_add()?;
    let netns = cx.netns()?;
    let (path, key, now) = (cx.netns_path(), cx.key()?, cx.now);
    let wiring = spec.wiring.as_ref().unwrap_or(&conf.wiring);
    let delegates = networks::delegates(conf, spec, wiring, &key.ifname)?;
    let _lock = lock(cx.machine, &conf.data_dir, &key.link())?;
    // The pod's own annotation before the runtime's wish before the arguments.
    let (ports, limits) = extras::wanted(conf, Some(spec).filter(|_| conf.pods.is_some() && pod.is_some()));
    let requested = [&spec.addresses[..], &conf.ips[..], ips].into_iter().find(|l| !l.is_empty()).unwrap_or_default();
    // An `ipam` of the options' own gives the addresses instead, or that of the network in place of the cluster's.
    let other = spec.default_network.is_some();
    let own = !other && !wiring.options.contains_key("ipam");
    let ranges = if own { &conf.ranges[..] } else { &[][..] };
    let requested = if other { &[][..] } else { requested };
    let wanted = ipam_plugin::pools_of(conf, spec)?;
    let mac = spec.mac.or(conf.mac).map(|m| runtime::station("the pod's hardware address", m)).transpose()?;
    let request = Request {
        key,
        network: &conf.name,
        netns: path,
        inode: netns.inode(),
        pod,
        ranges,
        within: &conf.within,
        pools: conf.pools.as_deref().filter(|_| own).map(|file| Ask { file, names: &wanted }),
        outside: spec.outside_ipam && !other,
        requested,
        mtu,
        now,
    };
    // The journal's lock is held for these calls only; what follows needs the attachment's lock alone.
    let (known, mut record) = {
        let mut journal = Journal::open(&conf.data_dir)?;
        let (mut record, known) = journal.allocate(&request)?;
        let before = record.clone();
        if !known && !delegates.is_empty() {
            (record.delegates, record.path) = (delegates, cx.env.path_text().into());
        }
        // What is there already is changed below, once it is known to be there.
        if !known || !ports.is_empty() {
            record.ports.clone_from(&ports);
        }
        if !known {
            record.limits = limits.clone();
            record.mac = mac.filter(|_| record.is_routed());
            record.routes.clone_from(&conf.routes);
            record.names.clone_from(&conf.names);
        }
        if record != before
            && let Err(e) = journal.amend(&record)
        {
            let undo = if known { Ok(()) } else { journal.release(key).map(drop).map_err(Into::into) };
            return Err(undone(e.into(), undo));
        }
        (known, record)
    };
    let done = names::write(&conf.data_dir, &record)
        .and_then(|()| connect(cx, conf, spec, &mut record, known, &netns))
        .and_then(|()| extras::make(cx.machine, &record, &netns, !known))
        .and_then(|()| extras::change(cx.machine, &conf.data_dir, &mut record, &netns, &limits).map(drop));
    match done {
        Ok(()) => Ok(record),
        // The pod had this address before this call and may be using it: only DEL takes it away.
        Err(e) if known => Err(e),
        Err(e) => Err(undone(e, unmake(cx.machine, cx.registry, &conf.data_dir, &record, Wait::Here))),
    }
}

/// Makes the interfaces of a record.
fn connect<M: Machine>(
    cx: &mut Context<'_, M>,
    conf: &NetConf,
    spec: &PodSpec,
    record: &mut Record,
    known: bool,
    netns: &M::Netns,
) -> Result<(), Error> {
    if record.is_routed() {
        let (machine, dir) = (&mut *cx.machine, &*conf.data_dir);
        if known { heal(machine, dir, record, netns) } else { wire(machine, dir, record, netns) }?;
    } else {
        inside(netns, &record.netns)?.run(&plan::loopback())?;
    }
    if record.delegates.is_empty() {
        return Ok(());
    }
    if known {
        if networks::complete(record) && networks::check(cx, record).is_ok() {
            return Ok(());
        }
        // Half made, by an ADD that was killed, or half unmade by somebody: anew, with the same addresses.
        networks::undo(cx.machine, cx.registry, record)?;
    }
    networks::attach(cx, record)?;
    networks::default_routes(&spec.networks, &record.key.ifname, netns)?;
    if let Some(mut journal) = Journal::open_existing(&conf.data_dir)? {
        journal.amend(record)?;
    }
    Ok(())
}

/// Makes everything, for an attachment that was not known.
fn wire<M: Machine>(machine: &mut M, dir: &Path, r: &Record, netns: &M::Netns) -> Result<(), Error> {
    let mut plan = plan::add(r, netns.fd());
    let mut rt = host(machine)?;
    if r.limits.is_none() {
        // In as few sends as can be.
        plan.create.append(&mut plan.up);
    }
    if let Err(e) = rt.run(&plan.create) {
        if !e.exists() {
            return Err(e.into());
        }
        // Either our own host end, left by a container whose record was lost, or an interface in the pod.
        delete_link(&mut rt, &r.link)?;
        if let Err(e) = rt.run(&plan.create) {
            if !e.exists() || !leaving(machine, dir, r, netns)? {
                return Err(taken(e, r));
            }
            rt.run(&plan.create).map_err(|e| taken(e, r))?;
        }
    }
    extras::limit_new(&mut rt, r)?;
    rt.run(&plan.up)?;
    finish(&mut rt, r, &plan, netns)
}

/// Whether the interface in the way is one of another container's that is going (see [`Wait::Apart`]): waits until it is
/// gone.
fn leaving<M: Machine>(machine: &mut M, dir: &Path, r: &Record, netns: &M::Netns) -> Result<bool, Error> {
    let there = inside(netns, &r.netns)?.links()?.into_iter().find(|l| l.name == r.key.ifname);
    let Some(peer) = there.and_then(|l| l.peer_index) else { return Ok(false) };
    let links = host(machine)?.links()?;
    let Some(h) = links.iter().find(|l| l.index == peer && !l.up) else { return Ok(false) };
    match OwnedName::recognise(&h.name) {
        Ok(link) if link.is_pod_link() && link != r.link => remove_orphan(machine, dir, &link),
        _ => Ok(false),
    }
}

fn taken(e: RequestError, r: &Record) -> Error {
    if e.exists() {
        let msg = format!(
            "interface {} exists already in {}: remove it, or choose another CNI_IFNAME",
            r.key.ifname, r.netns
        );
        return Error::new(Code::InvalidEnvironment, msg);
    }
    e.into()
}

/// What comes after the pair is there and the host end is up.
///
/// When the second end of a pair comes up, the first gets its carrier; the kernel starts sending through it from a work
/// queue only (net/core/link_watch.c), unless somebody asks for that very link before (`rtnl_getlink`, since Linux
/// 6.8). Requests that name a link by name are preceded by such a question, so with the host's requests after the
/// pod's no packet is lost to that either.
fn finish<N: Netns>(rt: &mut N::Rt, r: &Record, plan: &AddPlan, netns: &N) -> Result<(), Error> {
    let mut pod = inside(netns, &r.netns)?;
    if let Err(e) = pod.run(&plan.pod) {
        let v6 = r.addresses.iter().any(|a| Family::of(*a) == Family::V6);
        if !(v6 && matches!(e.errno, errno::EACCES | errno::EPERM)) {
            return Err(in_pod(e, r));
        }
        // Some runtimes make namespaces with IPv6 switched off: on again, for this interface. All requests can be
        // repeated.
        netns.set_sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", r.key.ifname), "0")?;
        pod.run(&plan.pod).map_err(|e| in_pod(e, r))?;
    }
    host_side(rt, r, plan)?;
    settle(r, netns)
}

fn host_side(rt: &mut impl Rtnetlink, r: &Record, plan: &AddPlan) -> Result<(), Error> {
    match rt.run(&plan.host) {
        Ok(()) => Ok(()),
        Err(e) if e.exists() => {
            // The agent may have been quicker to make the very same route.
            let there = rt.routes()?;
            for &addr in &r.addresses {
                if let Some(o) = led::claim(rt, &there, plan::host_route(r, addr))? {
                    let msg = format!(
                        "address {addr} of {} is routed elsewhere: `{}`; if that interface is stale, remove the route",
                        r.key, o.route
                    );
                    return Err(Error::new(Code::TryAgainLater, msg));
                }
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

fn in_pod(e: RequestError, r: &Record) -> Error {
    Error::new(Code::Kernel, format!("in {}: {e}", r.netns))
}

/// ADD of what is known: nothing when all is well, the rest when half is there, everything when the pair is not.
fn heal<M: Machine>(machine: &mut M, dir: &Path, r: &Record, netns: &M::Netns) -> Result<(), Error> {
    let mut rt = host(machine)?;
    let (h, p) = (View::of_host(&mut rt, r)?, View::of(&mut inside(netns, &r.netns)?)?);
    if differences(r, &h, &p).is_empty() {
        return Ok(());
    }
    if !paired(r, &h, &p) {
        if h.link(r.link.name()).is_some() {
            delete_link(&mut rt, &r.link)?;
        }
        return wire(machine, dir, r, netns);
    }
    let mut plan = plan::add(r, netns.fd());
    let up = |name: &types::IfName, mac| {
        RtRequest::LinkSet(SetLink { mtu: Some(r.mtu), mac: Some(mac), ..SetLink::up(name.clone()) })
    };
    plan.pod.insert(0, up(&r.key.ifname, plan::mac(r)));
    // First, as in an ADD: see `finish`.
    rt.run(&[up(r.link.name(), plan::HOST_MAC)])?;
    rt.run(&plan::guard_requests(r))?;
    // Routes that are there already, though not through this link, are still refused.
    finish(&mut rt, r, &plan, netns)
}

/// Makes whatever of a living pod's attachment is missing, with the same addresses: for the agent, when somebody
/// deleted the interface.
///
/// # Errors
/// Code 3 when the pod's namespace is gone; otherwise what failed.
pub fn rewire(machine: &mut impl Machine, dir: &Path, key: &Key) -> Result<(), Error> {
    let _lock = lock(machine, dir, &key.link())?;
    let (record, netns) = living(machine, dir, key)?;
    heal(machine, dir, &record, &netns)?;
    extras::make(machine, &record, &netns, false)
}

/// The same of a pod whose interfaces other plugins made, with the default routes of its further networks: for the agent.
/// Says whether something was missing.
///
/// # Errors
/// As [`rewire`].
pub fn reattach<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    key: &Key,
    further: &[intent::Network],
) -> Result<bool, Error> {
    let _lock = lock(machine, dir, &key.link())?;
    let (mut record, netns) = living(machine, dir, key)?;
    if !networks::mend(machine, registry, &mut record)? {
        return Ok(false);
    }
    networks::default_routes(further, &key.ifname, &netns)?;
    if let Some(mut journal) = Journal::open_existing(dir)? {
        journal.amend(&record)?;
    }
    extras::make(machine, &record, &netns, false).map(|()| true)
}

/// Gives a living pod's interface another MTU, in bytes: for the agent, when the uplink or the backend changed.
///
/// # Errors
/// Code 3 when the pod or its namespace is gone; otherwise what failed.
pub fn set_mtu(machine: &mut impl Machine, dir: &Path, key: &Key, mtu: u32) -> Result<(), Error> {
    let _lock = lock(machine, dir, &key.link())?;
    let (mut record, netns) = living(machine, dir, key)?;
    record.mtu = mtu;
    if let Some(mut journal) = Journal::open_existing(dir)? {
        journal.amend(&record)?;
    }
    let set = |name: &types::IfName| RtRequest::LinkSet(SetLink { mtu: Some(mtu), ..SetLink::new(name.clone()) });
    inside(&netns, &record.netns)?.run(&[set(&record.key.ifname)]).map_err(|e| in_pod(e, &record))?;
    Ok(host(machine)?.run(&[set(record.link.name())])?)
}

/// The record and namespace of a pod that lives; its lock is held, and still a DEL may have removed it before that.
fn living<M: Machine>(machine: &mut M, dir: &Path, key: &Key) -> Result<(Record, M::Netns), Error> {
    let record = ipam::find(dir, key)?;
    let Some(record) = record else {
        return Err(Error::new(Code::UnknownContainer, format!("there is no attachment {key} in {}", dir.display())));
    };
    let netns = open_netns(machine, &record.netns)?;
    if netns.inode() != record.inode {
        let msg = format!("the network namespace of {key} is gone; {} is another one now", record.netns);
        return Err(Error::new(Code::UnknownContainer, msg));
    }
    Ok((record, netns))
}

/// Who waits until the kernel is done with a host end that is to go: tens of milliseconds, whatever the machine.
enum Wait<'a> {
    /// This process.
    Here,
    /// Another, which holds the attachment's lock meanwhile: who adds the same again, or removes what is left over, waits
    /// for it. The host end is down when this process goes on, so that nothing leads to the pod and nothing comes from it.
    Apart(Option<&'a KeyLock>),
}

/// Removes an attachment: the interface first, the record last, so that a crash in between leaves something to find.
/// Everything may be gone already; then nothing happens. Gives the record that was removed.
///
/// # Errors
/// When the kernel refuses, or the journal cannot be read or written.
pub fn remove<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    key: &Key,
) -> Result<Option<Record>, Error> {
    let _lock = lock(machine, dir, &key.link())?;
    remove_locked(machine, registry, dir, key, Wait::Here)
}

/// Removes an attachment if, looked at under its lock, its namespace is gone: for the agent's sweep. The answer to
/// [`crate::gone`] may be stale by the time it is acted on, when the same container is added again meanwhile. Says
/// whether it was removed.
///
/// # Errors
/// As [`remove`].
pub fn remove_if_gone<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    key: &Key,
) -> Result<bool, Error> {
    let _lock = lock(machine, dir, &key.link())?;
    match ipam::find(dir, key)? {
        Some(r) if gc::namespace_gone(&r) => {
            remove_locked(machine, registry, dir, key, Wait::Here).map(|r| r.is_some())
        }
        _ => Ok(false),
    }
}

fn remove_locked<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    key: &Key,
    wait: Wait<'_>,
) -> Result<Option<Record>, Error> {
    match ipam::find(dir, key)? {
        Some(r) => unmake(machine, registry, dir, &r, wait).map(|()| Some(r)),
        // Perhaps the record was lost and the link was not.
        None => {
            extras::unmake_unknown(machine, key)?;
            unlink(machine, &key.link(), None, wait, |_| Ok(())).map(|()| None)
        }
    }
}

/// Undoes everything of a record, and forgets it last, so that a failure leaves something to try again with.
fn unmake<M: Machine>(
    machine: &mut M,
    registry: Registry<M>,
    dir: &Path,
    record: &Record,
    wait: Wait<'_>,
) -> Result<(), Error> {
    // Who comes by a port of the node no longer comes before the interface goes.
    extras::unmake(machine, record)?;
    names::remove(dir, record)?;
    networks::undo(machine, registry, record)?;
    unlink(machine, &record.link, extras::links(record), wait, |_| {
        if let Some(mut j) = Journal::open_existing(dir)? {
            j.release(&record.key)?;
        }
        Ok(())
    })
}

/// Takes a host end away, and another link with it, with `forget` in between: after this nothing leads to the pod any
/// more.
fn unlink<M: Machine>(
    machine: &mut M,
    link: &OwnedName,
    other: Option<OwnedName>,
    wait: Wait<'_>,
    forget: impl FnOnce(&mut M) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut rt = host(machine)?;
    let mut links: Vec<OwnedName> = other.into_iter().collect();
    let Wait::Apart(held) = wait else {
        links.push(link.clone());
        links.iter().try_for_each(|l| delete_link(&mut rt, l))?;
        return forget(machine);
    };
    // Its routes and neighbours go with this.
    let down = SetLink { up: Some(false), ..SetLink::new(link.name().clone()) };
    match rt.run(&[RtRequest::LinkSet(down)]) {
        Err(e) if e.absent() => {}
        r => {
            r?;
            links.push(link.clone());
        }
    }
    forget(machine)?;
    if links.is_empty() || machine.discard(&links, held.map(AsFd::as_fd)).is_ok() {
        return Ok(());
    }
    // No further process to be had.
    Ok(links.iter().try_for_each(|l| delete_link(&mut rt, l))?)
}

/// Deletes a host end that belongs to no attachment: its record was lost, or who was to wait for its end was killed.
/// Looked at under its lock; says whether it was so.
///
/// # Errors
/// When the kernel refuses, or the journal cannot be read.
pub fn remove_orphan(machine: &mut impl Machine, dir: &Path, link: &OwnedName) -> Result<bool, Error> {
    let _lock = lock(machine, dir, link)?;
    // Perhaps an ADD of the same name came since.
    if ipam::read(dir)?.iter().any(|r| r.link == *link) {
        return Ok(false);
    }
    delete_link(&mut host(machine)?, link)?;
    Ok(true)
}

/// Deletes a host end; its peer, and all addresses, routes and neighbours of both, go with it.
pub(crate) fn delete_link(rt: &mut impl Rtnetlink, link: &OwnedName) -> Result<(), RequestError> {
    match rt.run(&[RtRequest::LinkDel(link.clone())]) {
        Err(e) if !e.absent() => Err(e),
        _ => Ok(()),
    }
}

fn check<M: Machine>(cx: &mut Context<'_, M>, conf: &NetConf) -> Result<(), Error> {
    let key = cx.key()?.clone();
    let Some(prev) = &cx.prev else {
        let msg = "invalid network configuration: prevResult is missing: CHECK needs the result of ADD";
        return Err(Error::new(Code::InvalidConfig, msg));
    };
    // A plugin after this one (tuning) may have made it smaller; before 1.1.0 a result does not say so.
    let mtu =
        prev.interfaces.iter().find(|i| i.name == key.ifname.as_str() && !i.sandbox.is_empty()).map_or(0, |i| i.mtu);
    let told: Vec<_> = prev.ips.iter().map(|i| i.address).collect();
    let _lock = lock(cx.machine, &conf.data_dir, &key.link())?;
    let record = ipam::find(&conf.data_dir, &key)?;
    let Some(r) = record else {
        return Err(Error::new(Code::UnknownContainer, format!("{key} is not attached to network {}", conf.name)));
    };
    let netns = cx.netns()?;
    let path = cx.netns_path();
    let mut out = Vec::new();
    if netns.inode() != r.inode {
        out.push(format!("pod: {path} is another network namespace than the one that {key} was added in"));
    }
    for &addr in &r.addresses {
        if !told.iter().any(|t| t.addr == addr) {
            out.push(format!("prevResult.ips lacks {addr}, which the record has"));
        }
    }
    if r.is_routed() {
        let inside = View::of(&mut inside(&netns, path)?)?;
        let mtu = if mtu == 0 { 0..=r.mtu } else { mtu..=mtu };
        out.extend(differences_after(&r, &View::of_host(&mut cx.host()?, &r)?, &inside, &mtu));
    }
    if out.is_empty() {
        out.extend(extras::differences(cx.machine, &r, &netns)?);
    }
    if out.is_empty() {
        return networks::check(cx, &r);
    }
    Err(Error::new(Code::Differs, format!("{key} is not as ADD made it")).with(out.join("; ")))
}

fn status(machine: &mut impl Machine, conf: &NetConf) -> Result<(), Error> {
    let no = |e: Error| Error { code: Code::NotAvailable, ..e };
    conf.for_add().map_err(no)?;
    let mut journal = Journal::open(&conf.data_dir).map_err(|e| no(e.into()))?;
    journal.probe().map_err(|e| no(e.into()))?;
    journal.has_room(&conf.ranges, conf.pools.as_deref()).map_err(|e| no(e.into()))?;
    drop(journal);
    // The namespaces' own loopback is always there: an empty answer or a refusal means that nothing can be wired, and
    // that what is wired can no longer be seen to.
    let links = host(machine).and_then(|mut rt| Ok(rt.links()?));
    links.map(drop).map_err(|e| Error { code: Code::LimitedConnectivity, ..e })
}
