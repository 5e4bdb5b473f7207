//! `host-local`: gives each interface an address of every range set, from a store on this node's disk that the
//! reference plugin can share.

mod conf;
mod range;
mod store;

use std::net::IpAddr;

use cni::{CniResult, Code, Context, Dns, Error, Ip, IpNet, Plugin};
use ipam::Key;
use kernel_api::machine::Machine;

pub use conf::Conf;
use range::{Range, RangeSet};
use store::Store;

/// See the module.
pub struct HostLocal;

impl<M: Machine> Plugin<M> for HostLocal {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields(), cx.call)?;
        let dns = match &conf.resolv_conf {
            Some(path) => {
                let text = conf::bounded(path);
                let says = |e| Error::new(Code::Io, format!("read ipam.resolvConf {}: {e}", path.display()));
                resolv_conf(&text.map_err(says)?)
            }
            None => Dns::default(),
        };
        let ips = allocate(&mut Store::open(&conf.dir)?, &conf, cx.key()?)?;
        Ok(CniResult { ips, routes: conf.routes, dns, ..CniResult::default() })
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let key = cx.key()?;
        let Some(mut store) = Store::existing(&conf::dir(&cx.fields())?)? else { return Ok(()) };
        let mut own = store.of(key);
        if own.is_empty() {
            // The rare case is worth a look at every file.
            store.scan()?;
            own = store.of(key);
        }
        release(&mut store, &own)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let key = cx.key()?;
        let conf = Conf::read(&cx.fields(), cx.call)?;
        let found = Store::existing(&conf.dir)?.is_some_and(|s| !s.of(key).is_empty());
        let says = || format!("{key} has no address in {}", conf.dir.display());
        if found { Ok(()) } else { Err(Error::new(Code::Differs, says())) }
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let valid = cx.valid_attachments()?;
        let Some(mut store) = Store::existing(&conf::dir(&cx.fields())?)? else { return Ok(()) };
        store.scan()?;
        let stale = store.stale(&valid);
        release(&mut store, &stale)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let no = |e: Error| Error { code: Code::NotAvailable, ..e };
        let conf = Conf::read(&cx.fields(), cx.call).map_err(no)?;
        let store = Store::open(&conf.dir).map_err(no)?;
        match conf.sets.iter().find(|s| store.count(s) as u128 >= s.usable()) {
            Some(s) => Err(no(exhausted(s))),
            None => Ok(()),
        }
    }
}

fn exhausted(set: &RangeSet) -> Error {
    Error::new(Code::TryAgainLater, format!("no address is free in the range set {set}"))
}

/// One address of every set, or none at all.
fn allocate(store: &mut Store, conf: &Conf, key: &Key) -> Result<Vec<Ip>, Error> {
    let mut requested = conf.requested.clone();
    let mut out: Vec<Ip> = Vec::new();
    let mut result = Ok(());
    for (i, set) in conf.sets.iter().enumerate() {
        let wish = requested.iter().position(|a| set.range_of(*a).is_some()).map(|at| requested.remove(at));
        match one(store, set, i, key, wish) {
            Ok((addr, r)) => {
                let address = IpNet { addr, len: r.subnet.len() };
                out.push(Ip { interface: None, address, gateway: Some(r.gateway) });
            }
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    if result.is_ok() && !requested.is_empty() {
        let list = requested.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        result = Err(Error::new(Code::Address, format!("requested and in no range set, or one too many: {list}")));
    }
    match result {
        Ok(()) => Ok(out),
        Err(e) => {
            // What could not be given back is the owner's until its DEL.
            let taken: Vec<_> = out.iter().map(|i| i.address.addr).collect();
            Err(match release(store, &taken) {
                Ok(()) => e,
                Err(u) => Error { details: format!("giving the others back failed as well: {u}"), ..e },
            })
        }
    }
}

fn one<'a>(
    store: &mut Store,
    set: &'a RangeSet,
    index: usize,
    key: &Key,
    wish: Option<IpAddr>,
) -> Result<(IpAddr, &'a Range), Error> {
    let no = |what: String| Error::new(Code::Address, what);
    if let Some((a, r)) = wish.and_then(|a| set.range_of(a).map(|r| (a, r))) {
        if a == r.gateway {
            return Err(no(format!("the requested address {a} is the gateway of {}", r.subnet)));
        }
        return if store.reserve(a, key, index)? {
            Ok((a, r))
        } else {
            Err(no(format!("the requested address {a} of the range set {set} is in use")))
        };
    }
    if let Some(a) = store.of(key).into_iter().find(|a| set.range_of(*a).is_some()) {
        return Err(no(format!("{key} has {a} of the range set {set} already: one address only; DEL comes first")));
    }
    for again in [false, true] {
        if again {
            // Perhaps the index knows of addresses that are long free.
            store.scan()?;
        }
        // Every address in use is passed by at most once.
        for (a, r) in set.from(store.last(index)) {
            if !store.taken(a) && store.reserve(a, key, index)? {
                return Ok((a, r));
            }
        }
    }
    Err(exhausted(set))
}

fn release(store: &mut Store, addresses: &[IpAddr]) -> Result<(), Error> {
    let failed: Vec<Error> = addresses.iter().filter_map(|a| store.release(*a).err()).collect();
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// What must hold of every configuration that is accepted: an address of a range set is in exactly one of its ranges,
/// and no gateway is given out.
pub fn fuzzed(conf: &Conf) {
    for set in &conf.sets {
        assert!(set.usable() < u128::MAX);
        for (a, r) in set.from(conf.requested.first().copied()).take(5) {
            assert!(set.0.iter().filter(|r| r.contains(a)).count() == 1 && r.contains(a) && a != r.gateway);
            assert!(r.subnet.contains(a));
        }
    }
}

/// resolv.conf(5), as the reference reads it.
fn resolv_conf(text: &str) -> Dns {
    let mut out = Dns::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_ascii_whitespace().map(String::from);
        let (kind, Some(first)) = (words.next(), words.next()) else { continue };
        match kind.as_deref() {
            Some("nameserver") => out.nameservers.push(first),
            Some("domain") => out.domain = first,
            Some("search") => out.search.extend(std::iter::once(first).chain(words)),
            Some("options") => out.options.extend(std::iter::once(first).chain(words)),
            _ => {}
        }
    }
    out
}
