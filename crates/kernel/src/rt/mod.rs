//! Links, addresses, routes, neighbours and forwarding entries over rtnetlink(7).

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod guard;
pub(crate) mod htb;
pub(crate) mod link;
pub(crate) mod names;
pub(crate) mod tc;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use kernel_api::rt::{
    Address, FdbEntry, Link, MAIN_TABLE, Neighbour, NewLink, ObservedRoute, ObservedRule, PortVlan, RtRequest,
};
use kernel_api::tc::{Filter, Hook, Qdisc, QdiscKind};
use kernel_api::{RequestError, Rtnetlink};
use types::{IfName, OwnedName};

use crate::netlink::{ACK, Builder, DUMP, ECHO, REQUEST, Refusal, Socket};
use crate::netns::Netns;
use crate::sys;
use encode::{
    RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTM_GETRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
    RTM_NEWROUTE, RTM_NEWRULE,
};
use link::{IFLA_EXT_MASK, IFLA_IFNAME};
use names::Names;

/// At most so many requests in one send: their refusals must fit the receive buffer even at its default size.
const BATCH: usize = 128;
/// At most so many links asked for in one send: an answer is some kilobytes of receive buffer.
const ASK_AT_ONCE: usize = 32;

/// `RTEXT_FILTER_SKIP_STATS`: counters are most of a link's message.
const SKIP_STATS: u32 = 1 << 3;
/// `RTEXT_FILTER_BRVLAN_COMPRESSED`: VLANs of bridge ports, as ranges.
const VLAN_RANGES: u32 = 1 << 2;

/// A netlink socket for links, addresses, routes, neighbours and forwarding entries of one network namespace.
pub struct Rt {
    socket: Socket,
}

/// The state of one [`Rtnetlink::run`].
#[derive(Default)]
struct Run {
    out: Builder,
    /// Which request each message in `out` is, in order.
    sent: Vec<usize>,
    /// Whether `out` may make or rename links.
    makes: bool,
    index: HashMap<IfName, u32>,
    /// Asked for and not there, since the last message that may have made it.
    missing: HashSet<IfName>,
    /// Links whose `clsact` may be new, and without a grace period since.
    fresh: HashSet<IfName>,
    error: Option<(usize, Refusal)>,
}

impl Run {
    fn fail(&mut self, i: usize, refusal: Refusal) {
        if self.error.as_ref().is_none_or(|(first, _)| i < *first) {
            self.error = Some((i, refusal));
        }
    }
}

impl Rt {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(libc::NETLINK_ROUTE)? })
    }

    /// Deletes links without waiting: a process of its own does it, which holds `keep` until they are gone. Nobody hears
    /// when the kernel refuses. A veth pair takes tens of milliseconds to delete, all of it waiting until no
    /// processor looks at it any more (`synchronize_net` and `rcu_barrier` in net/core/dev.c).
    ///
    /// # Errors
    /// When there can be no further process.
    pub fn delete_apart(&mut self, links: &[OwnedName], keep: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut b = Builder::new();
        for link in links {
            // A deletion by name is one message, whatever the index.
            let _ = encode::request(&mut b, &RtRequest::LinkDel(link.clone()), 0);
        }
        self.socket.send_apart(b.as_bytes(), keep)
    }

    /// Opens a socket in `netns`, where it stays.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn open_in(netns: &Netns) -> io::Result<Self> {
        netns.inside(Self::open)
    }

    /// The socket's port id, which marks the notifications that our own requests cause (`nlmsg_pid`).
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Links by name or alternative name; those not there are left out.
    fn get_links<'n>(&mut self, names: &[&'n IfName]) -> Result<Vec<(&'n IfName, Link)>, Refusal> {
        let first = self.socket.sequence(names.len());
        let mut b = Builder::new();
        let mut last = first;
        for (n, seq) in names.iter().zip(first..) {
            b.begin(RTM_GETLINK, REQUEST, seq);
            b.bytes(&[0; 16]);
            b.attr_u32(IFLA_EXT_MASK, SKIP_STATS);
            b.attr_str(IFLA_IFNAME, n.as_str());
            b.end();
            last = seq;
        }
        if b.is_empty() {
            return Ok(Vec::new());
        }
        b.add_flags(ACK);
        let mut found = Vec::with_capacity(names.len());
        let mut refused = None;
        self.socket.exchange(b.as_bytes(), first, last, &mut |seq, answer| match answer {
            Ok(m) if m.kind == RTM_NEWLINK => {
                found.extend(names.get((seq - first) as usize).copied().zip(decode::link(&m)));
            }
            Ok(_) => {}
            Err(r) if r.errno == libc::ENODEV => {}
            Err(r) => refused = Some(r),
        })?;
        refused.map_or(Ok(found), Err)
    }

    fn dump<T>(
        &mut self,
        what: &str,
        kind: u16,
        header: &[u8],
        attrs: &[(u16, u32)],
        decode: &mut dyn FnMut(&crate::netlink::Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, RequestError> {
        self.socket
            .dump(
                &mut |b, seq| {
                    b.begin(kind, REQUEST | DUMP, seq);
                    b.bytes(header);
                    for (k, v) in attrs {
                        b.attr_u32(*k, *v);
                    }
                    b.end();
                },
                decode,
            )
            .map_err(|r| r.of(what, None))
    }

    /// A dump of both families, headers of 12 bytes that start with the family. Without IPv6, or without what is asked
    /// for in it, there is nothing of it.
    fn dump_families<T>(
        &mut self,
        what: &str,
        kind: u16,
        attrs: &[(u16, u32)],
        decode: &mut dyn FnMut(&crate::netlink::Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, RequestError> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = [0u8; 12];
            header[0] = family as u8;
            match self.dump(what, kind, &header, attrs, decode) {
                Ok(r) => all.extend(r),
                Err(e) if matches!(e.errno, libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// With classes and filters, where it has them.
    fn whole(&mut self, q: Qdisc, root: Option<(u32, htb::Seen)>) -> Result<Qdisc, RequestError> {
        let Some((index, mut seen)) = root else { return Ok(q) };
        let parts = [
            ("class", htb::RTM_GETTCLASS, tc::header(index, 0, 0, 0)),
            ("filter", tc::RTM_GETTFILTER, tc::header(index, 0, tc::OUR_ROOT, 0)),
        ];
        for (what, kind, header) in parts {
            self.dump(&format!("{what} show dev {}", q.link), kind, &header, &[], &mut |m| seen.take(m))?;
        }
        Ok(Qdisc { kind: QdiscKind::Htb(seen.htb()), ..q })
    }

    fn routes_of(&mut self, table: Option<u32>) -> Result<Vec<ObservedRoute>, RequestError> {
        let names = self.names("route show")?;
        let attrs: Vec<_> = table.map(|t| (encode::RTA_TABLE, t)).into_iter().collect();
        self.dump_families("route show", RTM_GETROUTE, &attrs, &mut |m| {
            (m.kind == RTM_NEWROUTE).then(|| decode::route(m, &names, table)).flatten()
        })
    }

    /// Sends one message that `build` writes, whose reply is an acknowledgement.
    pub(crate) fn one(
        &mut self,
        what: &str,
        build: impl FnOnce(&mut Builder) -> Result<(), Refusal>,
    ) -> Result<(), RequestError> {
        self.send_one(build).map_err(|r| r.of(what, None))
    }

    fn send_one(&mut self, build: impl FnOnce(&mut Builder) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let mut b = Builder::new();
        build(&mut b)?;
        b.end();
        b.add_flags(ACK);
        let seq = self.socket.sequence(1);
        b.number_from(seq);
        let mut refused = None;
        self.socket.exchange(b.as_bytes(), seq, seq, &mut |_, answer| refused = answer.err().or(refused.take()))?;
        refused.map_or(Ok(()), Err)
    }

    fn names(&self, what: &str) -> Result<Names, RequestError> {
        Names::of(self.socket.fd()).map_err(|e| Refusal::from(e).of(what, None))
    }

    /// Looks up the indexes that `requests` need and `run` does not have yet. Asks for each: a dump of all links would
    /// be interrupted again and again while pods come and go.
    fn resolve(&mut self, run: &mut Run, requests: &[RtRequest]) -> Result<(), Refusal> {
        let mut names: Vec<&IfName> = Vec::new();
        for n in requests.iter().filter_map(encode::needs_index) {
            if !run.index.contains_key(n) && run.missing.insert(n.clone()) {
                names.push(n);
            }
        }
        for some in names.chunks(ASK_AT_ONCE) {
            for (name, l) in self.get_links(some)? {
                run.missing.remove(name);
                run.index.insert(name.clone(), l.index);
            }
        }
        Ok(())
    }

    /// Makes a link in another namespace though one here has its name. Kernels before 6.14 look for the name in the
    /// namespace of the request (`__rtnl_newlink`, net/core/rtnetlink.c), unless the link is asked for by an index that
    /// is free there.
    fn add_elsewhere(&mut self, l: &NewLink) -> Result<(), Refusal> {
        let mut refused = Refusal::errno(libc::EEXIST);
        for _ in 0..8 {
            // Far above what is counted up to, so that it is hardly ever taken there.
            let random = RandomState::new().build_hasher().finish();
            let index = (random & 0x3fff_ffff | 0x4000_0000) as u32;
            match self.send_one(|b| {
                link::add(b, l, index);
                Ok(())
            }) {
                Err(r) if r.errno == libc::EBUSY => refused = r,
                done => return done,
            }
        }
        Err(refused)
    }

    /// The first filter of a `clsact` is installed only when a grace period has passed since the `clsact` was, and the
    /// kernel waits for it with RTNL held, for which everybody else waits then (`mini_qdisc_pair_swap`,
    /// net/sched/sch_generic.c). So it passes here, before.
    fn await_readers(&mut self, run: &mut Run, requests: &[RtRequest], next: &RtRequest) {
        match next {
            RtRequest::QdiscReplace(Qdisc { link, kind: QdiscKind::Clsact }) => {
                run.fresh.insert(link.clone());
            }
            RtRequest::FilterReplace(f) if run.fresh.contains(&f.link) => {
                self.flush(run, requests);
                sys::grace();
                run.fresh.clear();
            }
            _ => {}
        }
    }

    /// Sends what is gathered and takes in the refusals.
    fn flush(&mut self, run: &mut Run, requests: &[RtRequest]) {
        if run.sent.is_empty() {
            return;
        }
        run.out.add_flags(ACK);
        let sent = std::mem::take(&mut run.sent);
        let first = self.socket.sequence(sent.len());
        let last = first + u32::try_from(sent.len() - 1).unwrap_or(0);
        run.out.number_from(first);
        let mut refused = Vec::new();
        let r = self.socket.exchange(run.out.as_bytes(), first, last, &mut |seq, answer| {
            if let Err(r) = answer {
                refused.push((seq, r));
            }
        });
        for (seq, r) in refused {
            let Some(i) = sent.get((seq - first) as usize) else { continue };
            let again = match requests.get(*i) {
                Some(RtRequest::LinkAdd(l)) if r.errno == libc::EEXIST && l.netns.is_some() => self.add_elsewhere(l),
                _ => Err(r),
            };
            if let Err(r) = again {
                run.fail(*i, r);
            }
        }
        if let (Err(r), Some(i)) = (r, sent.first()) {
            run.fail(*i, r);
        }
        run.out.clear();
        if run.makes {
            run.missing.clear();
            run.makes = false;
        }
    }
}

impl Rtnetlink for Rt {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        let attrs = [(IFLA_EXT_MASK, SKIP_STATS)];
        self.dump("link show", RTM_GETLINK, &[0; 16], &attrs, &mut |m| {
            (m.kind == RTM_NEWLINK).then(|| decode::link(m)).flatten()
        })
    }

    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        let names = self.names("address show")?;
        self.dump("address show", RTM_GETADDR, &[0; 8], &[], &mut |m| {
            (m.kind == RTM_NEWADDR).then(|| decode::address(m, &names)).flatten()
        })
    }

    fn link(&mut self, name: &IfName) -> Result<Option<Link>, RequestError> {
        let mut found = self.get_links(&[name]).map_err(|r| r.of(format!("link show {name}"), None))?;
        Ok(found.pop().map(|(_, l)| l))
    }

    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.routes_of(Some(MAIN_TABLE))
    }

    fn link_towards(&mut self, to: IpAddr) -> Result<Option<IfName>, RequestError> {
        let what = format!("route get {to}");
        let names = self.names(&what)?;
        let seq = self.socket.sequence(1);
        let mut b = Builder::new();
        encode::route_lookup(&mut b, to, seq);
        b.add_flags(ACK);
        let (mut found, mut refused) = (None, None);
        let done = self.socket.exchange(b.as_bytes(), seq, seq, &mut |_, answer| match answer {
            Ok(m) if m.kind == RTM_NEWROUTE => found = decode::leaves_by(&m, &names),
            Ok(_) => {}
            // No route, or one whose kind says so: unreachable, prohibit, blackhole.
            Err(r) if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].contains(&r.errno) => {}
            Err(r) => refused = Some(r),
        });
        done.err().or(refused).map_or(Ok(found), |r| Err(r.of(what, None)))
    }

    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.routes_of(None)
    }

    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError> {
        self.dump_families("rule show", RTM_GETRULE, &[], &mut |m| {
            (m.kind == RTM_NEWRULE).then(|| decode::rule(m)).flatten()
        })
    }

    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        let names = self.names("neigh show")?;
        self.dump("neigh show", RTM_GETNEIGH, &[0; 12], &[], &mut |m| {
            (m.kind == RTM_NEWNEIGH).then(|| decode::neighbour(m, &names)).flatten()
        })
    }

    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        let names = self.names("fdb show")?;
        let mut header = [0u8; 12];
        header[0] = libc::AF_BRIDGE as u8;
        self.dump("fdb show", RTM_GETNEIGH, &header, &[], &mut |m| {
            (m.kind == RTM_NEWNEIGH).then(|| decode::fdb(m, &names)).flatten()
        })
    }

    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError> {
        let mut header = [0u8; 16];
        header[0] = libc::AF_BRIDGE as u8;
        let attrs = [(IFLA_EXT_MASK, VLAN_RANGES)];
        let ports = self.dump("vlan show", RTM_GETLINK, &header, &attrs, &mut |m| {
            let mut some = Vec::new();
            if m.kind == RTM_NEWLINK {
                decode::port_vlans(m, &mut some);
            }
            Some(some)
        })?;
        Ok(ports.concat())
    }

    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError> {
        let names = self.names("qdisc show")?;
        let found = self.dump("qdisc show", tc::RTM_GETQDISC, &[0; tc::HEADER], &[], &mut |m| {
            let q = (m.kind == tc::RTM_NEWQDISC).then(|| tc::qdisc(m, &names)).flatten()?;
            Some((q, htb::Seen::root(m)))
        })?;
        found.into_iter().map(|(q, root)| self.whole(q, root)).collect()
    }

    fn qdiscs_of(&mut self, link: &Link) -> Result<Vec<Qdisc>, RequestError> {
        let names = Names::from_iter([(link.index, link.name.clone())]);
        let first = self.socket.sequence(tc::PLACES.len());
        let mut b = Builder::new();
        let mut last = first;
        for (parent, seq) in tc::PLACES.into_iter().zip(first..) {
            // Without the echo the answer goes to listeners only (`rtnetlink_send`).
            b.begin(tc::RTM_GETQDISC, REQUEST | ECHO, seq);
            b.bytes(&tc::header(link.index, 0, parent, 0));
            b.end();
            last = seq;
        }
        b.add_flags(ACK);
        let (mut found, mut refused) = (Vec::new(), None);
        let done = self.socket.exchange(b.as_bytes(), first, last, &mut |_, answer| match answer {
            Ok(m) if m.kind == tc::RTM_NEWQDISC => {
                found.extend(tc::qdisc(&m, &names).map(|q| (q, htb::Seen::root(&m))));
            }
            Ok(_) => {}
            // Nothing there, or the link is gone.
            Err(r) if matches!(r.errno, libc::ENOENT | libc::ENODEV) => {}
            Err(r) => refused = Some(r),
        });
        match done.err().or(refused) {
            None => found.into_iter().map(|(q, root)| self.whole(q, root)).collect(),
            Some(r) => Err(r.of(format!("qdisc show dev {}", link.name), None)),
        }
    }

    fn filters(&mut self, link: &IfName, hook: Hook) -> Result<Vec<Filter>, RequestError> {
        let what = format!("filter show dev {link} {hook}");
        let Some(index) = Rtnetlink::link(self, link)?.map(|l| l.index) else {
            return Err(Refusal::no_link(link).of(what, None));
        };
        let header = tc::header(index, 0, tc::hook_parent(hook), 0);
        self.dump(&what, tc::RTM_GETTFILTER, &header, &[], &mut |m| {
            (m.kind == tc::RTM_NEWTFILTER).then(|| tc::filter(m, link, hook)).flatten()
        })
    }

    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        let mut run = Run::default();
        for (i, r) in requests.iter().enumerate() {
            let mut index = 0;
            if let Some(name) = encode::needs_index(r) {
                if !run.index.contains_key(name) {
                    // An earlier request may make it.
                    self.flush(&mut run, requests);
                    if !run.missing.contains(name)
                        && let Err(refusal) = self.resolve(&mut run, requests.get(i..).unwrap_or(&[]))
                    {
                        run.missing.clear();
                        run.fail(i, refusal);
                        continue;
                    }
                }
                match run.index.get(name) {
                    Some(n) => index = *n,
                    None => {
                        run.fail(i, Refusal::no_link(name));
                        continue;
                    }
                }
            }
            self.await_readers(&mut run, requests, r);
            match encode::request(&mut run.out, r, index) {
                Ok(messages) => run.sent.extend(std::iter::repeat_n(i, messages)),
                Err(refusal) => {
                    run.fail(i, refusal);
                    continue;
                }
            }
            match r {
                RtRequest::LinkAdd(_) => run.makes = true,
                RtRequest::LinkDel(n) => {
                    run.index.remove(n.name());
                }
                RtRequest::LinkSet(s) if s.netns.is_some() => {
                    run.index.remove(&s.name);
                }
                RtRequest::LinkSet(kernel_api::rt::SetLink { name, rename: Some(new), .. }) => {
                    run.index.remove(name);
                    // Looked up again when needed: the kernel may have refused.
                    run.makes = true;
                    run.index.remove(new);
                }
                _ => {}
            }
            if run.sent.len() >= BATCH {
                self.flush(&mut run, requests);
            }
        }
        self.flush(&mut run, requests);
        match run.error {
            None => Ok(()),
            Some((i, refusal)) => {
                Err(refusal.of(requests.get(i).map(ToString::to_string).unwrap_or_default(), Some(i)))
            }
        }
    }
}
