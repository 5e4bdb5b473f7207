//! A fake machine: several namespaces whose links know each other, one nf_tables, one connection table, programs, and
//! one script of faults over all of it. Handles share it, so that what dies in the middle of two namespaces' work leaves
//! what it would leave.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use kernel_api::conntrack::{Among, Flow};
use kernel_api::machine::{Exec, Machine, Netns, Output};
use kernel_api::nft::{Element, NftRequest, Table, TableName};
use kernel_api::rt::{
    Address, FdbEntry, Link, LinkKind, Neighbour, NetnsFd, NewTun, ObservedRoute, ObservedRule, PortVlan, RtRequest,
};
use kernel_api::tc::{Filter, Hook, Qdisc};
use kernel_api::{Conntrack, Nft, RequestError, Rtnetlink, Sysctl, errno};
use types::{IfName, OwnedName};

use crate::conntrack::FakeConntrack;
use crate::fault::{Faults, apply};
use crate::nft::FakeNft;
use crate::rt::FakeRt;

/// What the first namespace's descriptor is; the others follow.
const FIRST_FD: i32 = 100;
/// What the first namespace's inode is.
const FIRST_INODE: u64 = 4_026_531_840;
/// `EBADF`
const EBADF: i32 = 9;
/// `ENETDOWN`
const ENETDOWN: i32 = 100;

/// A program that the machine has.
pub type Program = Rc<dyn Fn(&FakeMachine, &Exec) -> io::Result<Output>>;

/// A machine. Clones are the same one.
#[derive(Clone, Default)]
pub struct FakeMachine(Rc<RefCell<World>>);

/// All that a machine holds.
pub struct World {
    /// Namespaces; the first is the machine's own. One that was removed is left empty. Their own scripts of faults and
    /// counts are not used.
    pub namespaces: Vec<FakeRt>,
    /// nf_tables of the own namespace.
    pub nft: FakeNft,
    /// Tracked connections of the own namespace.
    pub conntrack: FakeConntrack,
    /// Faults to come. A request, a sysctl write, an nf_tables transaction, a deletion of connections, a program, a
    /// device, an announcement is one effect.
    pub faults: Faults,
    /// Every rtnetlink request that was done, in order, with the number of its namespace.
    pub log: Vec<(usize, RtRequest)>,
    /// What was announced: namespace, link, address.
    pub announced: Vec<(usize, IfName, IpAddr)>,
    paths: BTreeMap<String, usize>,
    programs: BTreeMap<PathBuf, Program>,
    /// Links have indexes that no other link of any namespace has.
    next: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            namespaces: vec![FakeRt::new()],
            nft: FakeNft::new(),
            conntrack: FakeConntrack::new(),
            faults: Faults::default(),
            log: Vec::new(),
            announced: Vec::new(),
            paths: BTreeMap::new(),
            programs: BTreeMap::new(),
            next: 1,
        }
    }
}

impl FakeMachine {
    /// A machine with its own namespace, which has loopback only.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything, to look at, to change behind everybody's back, and to script faults. Not to be held across a call.
    #[must_use]
    pub fn world(&self) -> RefMut<'_, World> {
        self.0.borrow_mut()
    }

    /// What a runtime does: a new namespace at `path`, in the place of one that was there. Its number.
    pub fn add_netns(&self, path: &str) -> usize {
        let mut w = self.world();
        w.namespaces.push(FakeRt::new());
        let n = w.namespaces.len() - 1;
        w.paths.insert(path.to_owned(), n);
        n
    }

    /// What a runtime does, or a reboot: the namespace at `path` ends, and all in it but hardware, which comes home.
    pub fn remove_netns(&self, path: &str) {
        let mut w = self.world();
        let Some(n) = w.paths.remove(path) else { return };
        let Some(ns) = w.namespaces.get_mut(n) else { return };
        let hardware: Vec<Link> = ns
            .state
            .links
            .iter()
            .filter(|l| matches!(&l.kind, LinkKind::Other(_)) && l.name.as_str() != "lo")
            .cloned()
            .collect();
        *ns = FakeRt::new();
        if let Some(home) = w.namespaces.first_mut() {
            for l in hardware {
                home.sysctls.link_added(l.name.as_str());
                home.state.links.push(Link { up: false, ..l });
            }
        }
        w.settle();
    }

    /// Gives the machine a program at `path`.
    pub fn add_program(&self, path: impl AsRef<Path>, run: impl Fn(&Self, &Exec) -> io::Result<Output> + 'static) {
        self.world().programs.insert(path.as_ref().to_owned(), Rc::new(run));
    }

    /// Plugs hardware into the own namespace: up, with addresses.
    pub fn plug(&self, name: &IfName, mtu: u32, addresses: &[(IpAddr, u8)]) {
        let mut w = self.world();
        w.number(0);
        let w = &mut *w;
        if let Some(ns) = w.namespaces.first_mut() {
            ns.plug(name, mtu, addresses);
            w.next = ns.state.next;
        }
        w.settle();
    }

    fn ns(&self, index: usize) -> FakeNetns {
        FakeNetns { machine: self.clone(), index }
    }
}

impl World {
    /// Lets the namespace count its next link from where the machine is.
    fn number(&mut self, ns: usize) {
        if let Some(ns) = self.namespaces.get_mut(ns) {
            ns.state.next = self.next;
        }
    }

    /// Runs `f` on one namespace. When it fails, or sends a link where its name is taken, nothing has changed.
    fn change(&mut self, ns: usize, f: impl FnOnce(&mut FakeRt) -> Result<(), i32>) -> Result<(), i32> {
        self.number(ns);
        let before = self.namespaces.clone();
        let done = self.namespaces.get_mut(ns).ok_or(EBADF).and_then(f).and_then(|()| self.deliver(ns));
        match done {
            Ok(()) => {
                self.settle();
                Ok(())
            }
            Err(e) => {
                self.namespaces = before;
                Err(e)
            }
        }
    }

    /// Takes the links that one namespace sent into those they were sent to.
    fn deliver(&mut self, from: usize) -> Result<(), i32> {
        let Some(ns) = self.namespaces.get_mut(from) else { return Ok(()) };
        self.next = self.next.max(ns.state.next);
        for (fd, mut link) in std::mem::take(&mut ns.state.sent) {
            let to = usize::try_from(fd.0 - FIRST_FD).map_err(|_| EBADF)?;
            let to = self.namespaces.get_mut(to).ok_or(EBADF)?;
            if to.state.links.iter().any(|l| l.name == link.name) {
                return Err(errno::EEXIST);
            }
            let up = std::mem::replace(&mut link.up, false);
            let name = link.name.clone();
            to.sysctls.link_added(name.as_str());
            to.state.links.push(link);
            to.state.set_up(&name, up);
        }
        Ok(())
    }

    /// A link whose other half or lower link is gone is gone too; the others say where theirs is.
    fn settle(&mut self) {
        loop {
            let places: BTreeMap<u32, usize> = self
                .namespaces
                .iter()
                .enumerate()
                .flat_map(|(n, ns)| ns.state.links.iter().map(move |l| (l.index, n)))
                .filter(|(index, _)| *index != 1)
                .collect();
            let mut orphans = Vec::new();
            let mut over: Vec<(usize, u32, LinkKind)> = Vec::new();
            for (n, ns) in self.namespaces.iter_mut().enumerate() {
                for l in &mut ns.state.links {
                    let Some(leads_to) = l.peer_index.or(l.lower) else { continue };
                    match places.get(&leads_to) {
                        None => orphans.push((n, l.name.clone())),
                        Some(there) => {
                            l.lower_netns = (*there != n).then(|| i32::try_from(*there).unwrap_or(i32::MAX));
                            if l.lower.is_some() && *there != n {
                                over.push((*there, leads_to, l.kind.clone()));
                            }
                        }
                    }
                }
                ns.state.away.clear();
            }
            for (n, lower, kind) in over {
                if let Some(ns) = self.namespaces.get_mut(n) {
                    ns.state.away.push((lower, kind));
                }
            }
            if orphans.is_empty() {
                return;
            }
            for (n, name) in orphans {
                if let Some(ns) = self.namespaces.get_mut(n) {
                    ns.state.forget(&name);
                    ns.sysctls.link_gone(&name);
                }
            }
        }
    }

    /// One effect on a namespace.
    fn effect(
        &mut self,
        ns: usize,
        what: &str,
        f: impl FnOnce(&mut FakeRt) -> Result<(), i32>,
    ) -> Result<(), RequestError> {
        let fault = self.faults.step();
        apply(fault, what, || self.change(ns, f).map_err(|e| RequestError::new(what, e)))
    }

    fn alive(&self, what: &str) -> Result<(), RequestError> {
        if self.faults.crashed() { Err(RequestError::new(what, errno::EIO)) } else { Ok(()) }
    }
}

impl Machine for FakeMachine {
    type Netns = FakeNetns;
    type Nft = Self;
    type Conntrack = Self;
    type Sysctl = FakeNetns;

    fn host(&mut self) -> io::Result<FakeNetns> {
        Ok(self.ns(0))
    }
    fn open(&mut self, path: &str) -> io::Result<FakeNetns> {
        let n = self.world().paths.get(path).copied();
        n.map(|n| self.ns(n)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn lock(&mut self, _: &File, _: u64) -> io::Result<()> {
        Ok(())
    }
    /// At once.
    fn discard(&mut self, links: &[OwnedName], _: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut host = self.host()?;
        for link in links {
            match host.run(&[RtRequest::LinkDel(link.clone())]) {
                Err(e) if !e.absent() => return Err(io::Error::from_raw_os_error(e.errno)),
                _ => {}
            }
        }
        Ok(())
    }
    fn own(&mut self) -> io::Result<FakeNetns> {
        Ok(self.ns(0))
    }
    fn nft(&mut self) -> io::Result<Self> {
        Ok(self.clone())
    }
    fn conntrack(&mut self) -> io::Result<Self> {
        Ok(self.clone())
    }
    fn sysctl(&mut self) -> io::Result<FakeNetns> {
        Ok(self.ns(0))
    }
    fn exec(&mut self, program: &Exec) -> io::Result<Output> {
        let (fault, run) = {
            let mut w = self.world();
            (w.faults.step(), w.programs.get(&program.program).cloned())
        };
        let mut out = Err(io::Error::from(io::ErrorKind::NotFound));
        let done = apply(fault, "exec", || {
            if let Some(run) = run {
                out = run(self, program);
            }
            Ok(())
        });
        done.map_err(|e| io::Error::from_raw_os_error(e.errno)).and(out)
    }
}

impl Nft for FakeMachine {
    fn generation(&mut self) -> Result<u32, RequestError> {
        let mut w = self.world();
        w.alive("generation").and_then(|()| w.nft.generation())
    }
    fn table(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        let mut w = self.world();
        w.alive("list table").and_then(|()| w.nft.table(table))
    }
    fn elements(&mut self, table: &TableName, set: &str) -> Result<Vec<Element>, RequestError> {
        let mut w = self.world();
        w.alive("list set").and_then(|()| w.nft.elements(table, set))
    }
    fn commit(&mut self, requests: &[NftRequest]) -> Result<(), RequestError> {
        let mut w = self.world();
        let fault = w.faults.step();
        apply(fault, "commit", || w.nft.commit(requests))
    }
    fn commit_at(&mut self, generation: u32, requests: &[NftRequest]) -> Result<(), RequestError> {
        let mut w = self.world();
        let fault = w.faults.step();
        apply(fault, "commit", || w.nft.commit_at(generation, requests))
    }
}

impl Conntrack for FakeMachine {
    fn delete(&mut self, among: &Among, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError> {
        let mut w = self.world();
        let fault = w.faults.step();
        apply(fault, "forget connections", || w.conntrack.delete(among, stale))
    }
}

/// A namespace of a fake machine, and its rtnetlink.
#[derive(Clone)]
pub struct FakeNetns {
    machine: FakeMachine,
    index: usize,
}

impl FakeNetns {
    fn look<T>(&self, what: &str, f: impl FnOnce(&mut FakeRt) -> Result<T, RequestError>) -> Result<T, RequestError> {
        let mut w = self.machine.world();
        w.alive(what)?;
        w.namespaces.get_mut(self.index).ok_or_else(|| RequestError::new(what, EBADF)).and_then(f)
    }

    fn container(&self, what: &str) -> Result<(), RequestError> {
        if self.index == 0 { Err(RequestError::new(what, errno::EPERM)) } else { Ok(()) }
    }
}

impl Netns for FakeNetns {
    type Rt = Self;
    fn fd(&self) -> NetnsFd {
        NetnsFd(i32::try_from(self.index).map_or(-1, |n| n + FIRST_FD))
    }
    fn inode(&self) -> u64 {
        FIRST_INODE + self.index as u64
    }
    fn is_own(&self) -> io::Result<bool> {
        Ok(self.index == 0)
    }
    fn rtnetlink(&self) -> io::Result<Self> {
        Ok(self.clone())
    }
    fn set_sysctl(&self, path: &str, value: &str) -> Result<(), RequestError> {
        let mut w = self.machine.world();
        let fault = w.faults.step();
        let ns = w.namespaces.get_mut(self.index).ok_or_else(|| RequestError::new(path, EBADF))?;
        apply(fault, path, || ns.sysctls.write(path, value))
    }
    fn get_sysctl(&self, path: &str) -> Result<Option<String>, RequestError> {
        self.look(path, |ns| Ok(ns.sysctls.value(path).map(Into::into)))
    }
    fn delete_link(&self, name: &IfName) -> Result<(), RequestError> {
        let what = format!("link del {name}");
        self.container(&what)?;
        self.machine.world().effect(self.index, &what, |ns| ns.with_knobs(|s| s.link_del(name)))
    }
    fn delete_route(&self, r: &ObservedRoute) -> Result<(), RequestError> {
        let what = format!("route del {} proto {}", r.route, r.protocol);
        self.container(&what)?;
        self.machine.world().effect(self.index, &what, |ns| ns.state.route_del(&r.route, r.protocol))
    }
    fn delete_rule(&self, r: &ObservedRule) -> Result<(), RequestError> {
        let what = format!("rule del {} proto {}", r.rule, r.protocol);
        self.container(&what)?;
        self.machine.world().effect(self.index, &what, |ns| ns.state.rule_del(&r.rule, r.protocol))
    }
    fn add_tun(&self, tun: &NewTun) -> Result<(), RequestError> {
        let what = format!("tuntap add {}", tun.name);
        self.machine.world().effect(self.index, &what, |ns| ns.with_knobs(|s| s.tun_add(tun)))
    }
    fn announce(&self, link: &IfName, addr: IpAddr) -> Result<(), RequestError> {
        let what = format!("announce {addr} on {link}");
        let mut w = self.machine.world();
        let mut sent = false;
        let done = w.effect(self.index, &what, |ns| {
            let l = ns.state.need(link)?;
            l.mac.ok_or(errno::ENODEV)?;
            sent = l.up;
            if l.up { Ok(()) } else { Err(ENETDOWN) }
        });
        if sent {
            w.announced.push((self.index, link.clone(), addr));
        }
        done
    }
    fn delivers(&self, addr: Ipv6Addr) -> io::Result<bool> {
        let w = self.machine.world();
        let ns = w.namespaces.get(self.index).ok_or_else(|| io::Error::from_raw_os_error(EBADF))?;
        let up = |l: &IfName| ns.state.links.iter().any(|x| x.name == *l && x.up);
        Ok(ns.state.addresses.iter().any(|a| a.addr == IpAddr::V6(addr) && up(&a.link)))
    }
}

impl Sysctl for FakeNetns {
    fn get(&mut self, path: &str) -> Result<Option<String>, RequestError> {
        self.get_sysctl(path)
    }
    fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
        self.set_sysctl(path, value)
    }
}

impl Rtnetlink for FakeNetns {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        self.look("link show", FakeRt::links)
    }
    fn link(&mut self, name: &IfName) -> Result<Option<Link>, RequestError> {
        self.look("link show", |ns| ns.link(name))
    }
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        self.look("address show", FakeRt::addresses)
    }
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.look("route show", FakeRt::routes)
    }
    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.look("route show table all", FakeRt::all_routes)
    }
    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError> {
        self.look("rule show", FakeRt::rules)
    }
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        self.look("neigh show", FakeRt::neighbours)
    }
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        self.look("fdb show", FakeRt::fdb)
    }
    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError> {
        self.look("vlan show", FakeRt::port_vlans)
    }
    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError> {
        self.look("qdisc show", FakeRt::qdiscs)
    }
    fn filters(&mut self, link: &IfName, hook: Hook) -> Result<Vec<Filter>, RequestError> {
        self.look("filter show", |ns| ns.filters(link, hook))
    }
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        let mut w = self.machine.world();
        let mut first = None;
        for (index, r) in requests.iter().enumerate() {
            let what = r.to_string();
            let mut done = false;
            let ran = w.effect(self.index, &what, |ns| {
                ns.with_knobs(|s| s.apply(r, kernel_api::rt::ROUTE_PROTOCOL))?;
                done = true;
                Ok(())
            });
            if done {
                w.log.push((self.index, r.clone()));
            }
            if let Err(e) = ran {
                first.get_or_insert(RequestError { index: Some(index), ..e });
            }
        }
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
