//! Answers for the addresses that this node announces, on a thread of its own, since a packet socket belongs to a network
//! namespace and since nothing else may hold it up. It answers for an address only until the time that comes with it, so
//! that whoever hands it the table may stand still or be gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::PipeReader;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use kernel::packet::NeighbourSocket;
use kernel::{Monitor, Rt};
use kernel_api::Rtnetlink;
use kernel_api::neighbours::{Question, announcement, gratuitous_reply};
use source::Reader;
use tokio::sync::Notify;
use types::{Family, IfName, Mac};

use crate::agent::Setup;
use crate::agent::facts;

/// After a change of links, until they are looked at: many come together.
const GATHER: Duration = Duration::from_millis(10);
/// Links are looked at so often at least.
const RESYNC: Duration = Duration::from_secs(10);
/// Questions answered in one go.
const AT_ONCE: usize = 256;

/// The time since the machine was started, its sleep included: a node that slept must not wake up answering.
pub fn now() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(t.tv_sec.try_into().unwrap_or(0), t.tv_nsec.try_into().unwrap_or(0))
}

/// A link of this node that can carry frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    index: u32,
    mac: Mac,
}

/// The links, as far as they are up, with something at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links {
    uplink: Option<Box<str>>,
    ports: BTreeMap<Box<str>, Port>,
}

impl Links {
    /// Those of `names` that work; none named: the uplink.
    pub fn of(&self, names: &BTreeSet<Box<str>>) -> BTreeSet<Box<str>> {
        let wanted = names.iter().chain(self.uplink.iter().filter(|_| names.is_empty()));
        wanted.filter(|n| self.ports.contains_key(*n)).cloned().collect()
    }
}

/// An address to answer for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Not from then on ([`now`]).
    pub until: Duration,
    /// On these interfaces; none named: the uplink.
    pub interfaces: BTreeSet<Box<str>>,
}

/// What both sides see.
#[derive(Debug, Default)]
pub struct Shared {
    /// What to answer for.
    pub table: Mutex<BTreeMap<IpAddr, Entry>>,
    /// What to tell the link about, once.
    pub tell: Mutex<BTreeSet<IpAddr>>,
    /// The links, from the responder.
    pub links: Mutex<Links>,
    /// The links changed.
    pub changed: Notify,
}

pub fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Socket {
    socket: NeighbourSocket,
    port: Port,
    joined: BTreeSet<IpAddr>,
}

/// The thread.
pub struct Responder {
    /// For the uplink.
    pub setup: Setup,
    /// For the Node's addresses.
    pub reader: Reader,
    /// The other side.
    pub shared: Arc<Shared>,
}

impl Responder {
    /// Runs until the process ends. `woken` has bytes whenever the table changed.
    ///
    /// # Errors
    /// When the kernel can no longer be asked at all.
    pub fn run(self, mut woken: PipeReader) -> anyhow::Result<()> {
        let mut rt = Rt::open().context("open rtnetlink")?;
        let mut monitor = Monitor::open_rt().context("subscribe to the kernel's changes")?;
        let mut sockets: BTreeMap<(Box<str>, Family), Socket> = BTreeMap::new();
        let mut look = Some(Duration::ZERO);
        loop {
            if look.is_some_and(|at| now() >= at) {
                look = Some(now() + RESYNC);
                match self.links(&mut rt) {
                    Ok(links) => {
                        let changed = {
                            let mut have = lock(&self.shared.links);
                            let changed = *have != links;
                            *have = links;
                            changed
                        };
                        if changed {
                            self.shared.changed.notify_one();
                        }
                    }
                    Err(e) => {
                        tracing::warn!("announcer: {e:#}");
                        look = Some(now() + Duration::from_secs(1));
                    }
                }
            }
            self.open(&mut sockets);
            self.tell(&sockets);
            let wait = look.map_or(RESYNC, |at| at.saturating_sub(now()));
            let mut fds = vec![woken.as_fd(), monitor.as_fd()];
            fds.extend(sockets.values().map(|s| s.socket.as_fd()));
            let ready = kernel::poll(&fds, Some(wait.max(Duration::from_millis(1)))).context("wait for questions")?;
            drop(fds);
            if ready.first() == Some(&true) {
                let mut buffer = [0; 4096];
                if std::io::Read::read(&mut woken, &mut buffer).context("read the wake-up pipe")? == 0 {
                    return Ok(());
                }
            }
            if monitor.changed().context("read the kernel's changes")?.rt {
                look = Some(look.map_or(now() + GATHER, |at| at.min(now() + GATHER)));
            }
            sockets.retain(|(link, _), s| match self.answer(link, s) {
                Ok(()) => true,
                Err(e) => {
                    tracing::debug!("{link}: {e}");
                    look = Some(now() + GATHER);
                    false
                }
            });
        }
    }

    fn links(&self, rt: &mut Rt) -> anyhow::Result<Links> {
        let facts = facts::observe(rt, self.setup.given(&self.setup.node_addresses(&self.reader)))?;
        let ports = rt
            .links()
            .context("look at the machine's interfaces")?
            .into_iter()
            .filter(|l| l.up && l.carrier)
            .filter_map(|l| Some((Box::from(l.name.as_str()), Port { index: l.index, mac: l.mac? })))
            .collect();
        Ok(Links { uplink: facts.caps.uplink.map(|u| IfName::as_str(&u.name).into()), ports })
    }

    /// Opens and closes sockets as the table wants, and joins groups.
    fn open(&self, sockets: &mut BTreeMap<(Box<str>, Family), Socket>) {
        let links = lock(&self.shared.links).clone();
        let mut want: BTreeMap<(Box<str>, Family), BTreeSet<IpAddr>> = BTreeMap::new();
        for (ip, e) in &*lock(&self.shared.table) {
            for link in links.of(&e.interfaces) {
                want.entry((link, Family::of(*ip))).or_default().insert(*ip);
            }
        }
        sockets.retain(|k, s| want.contains_key(k) && links.ports.get(&k.0) == Some(&s.port));
        for (k, addresses) in want {
            let Some(port) = links.ports.get(&k.0) else { continue };
            if !sockets.contains_key(&k) {
                match NeighbourSocket::open(port.index, k.1) {
                    Ok(socket) => {
                        sockets.insert(k.clone(), Socket { socket, port: *port, joined: BTreeSet::new() });
                    }
                    Err(e) => tracing::warn!("{}: cannot answer for load balancer addresses: {e}", k.0),
                }
            }
            let Some(s) = sockets.get_mut(&k) else { continue };
            let (joined, socket) = (&mut s.joined, &s.socket);
            for ip in addresses.iter().filter(|ip| !joined.contains(ip)) {
                // Two addresses may have one group; then it is joined already.
                if let Err(e) = socket.listen_for(*ip, true) {
                    tracing::debug!("{}: join the group of {ip}: {e}", k.0);
                }
            }
            for ip in joined.iter().filter(|ip| !addresses.contains(ip)) {
                let _ = socket.listen_for(*ip, false);
            }
            *joined = addresses;
        }
    }

    /// Whether an address may be answered for on a link, now.
    fn ours(&self, ip: IpAddr, link: &str) -> bool {
        let interfaces = match lock(&self.shared.table).get(&ip) {
            Some(e) if now() < e.until => e.interfaces.clone(),
            _ => return false,
        };
        lock(&self.shared.links).of(&interfaces).contains(link)
    }

    fn tell(&self, sockets: &BTreeMap<(Box<str>, Family), Socket>) {
        let all = std::mem::take(&mut *lock(&self.shared.tell));
        for ip in all {
            for ((link, family), s) in sockets {
                if *family != Family::of(ip) || !self.ours(ip, link) {
                    continue;
                }
                let frames = std::iter::once(announcement(s.port.mac, ip)).chain(gratuitous_reply(s.port.mac, ip));
                for f in frames {
                    if let Err(e) = s.socket.send(&f) {
                        tracing::debug!("{link}: announce {ip}: {e}");
                    }
                }
            }
        }
    }

    fn answer(&self, link: &str, s: &mut Socket) -> std::io::Result<()> {
        for _ in 0..AT_ONCE {
            let Some(frame) = s.socket.receive()? else { break };
            let Some(q) = Question::parse(frame) else { continue };
            if q.mac == s.port.mac || !self.ours(q.target, link) {
                continue;
            }
            if let Some(frame) = q.answer(s.port.mac) {
                s.socket.send(&frame)?;
            }
        }
        Ok(())
    }
}
