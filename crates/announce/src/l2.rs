//! Announcement on the link: of all nodes that may, one answers for an address.
//!
//! Each address has a Lease that says who has it, changed only as compare-and-swap of what was seen. Each node that has
//! addresses has a Lease that it renews: one write each [`RENEW`] for a node, however many addresses it has. The rules:
//!
//! - A node answers for an address while its own write of the address's lease stands and its last renewal was *sent* less
//!   than [`HOLD`] ago.
//! - When it misses that, it has nothing: it must write each address's lease again before it answers.
//! - Another takes an address only when it has *seen* the holder's lease unchanged for as long as that lease says (at
//!   least [`LEASE`], which is longer), and a reading of the server after that shows it still unchanged. Every renewal
//!   that comes later comes after the holder has stopped, and the holder's next write of the address fails.
//!
//! No two clocks are compared, so none need agree; they must only run at about the same speed. A node that cannot reach
//! the server, or stands still, stops; so does a process that ends, since the process is what answers.

mod rank;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use types::NodeName;

use crate::Announcer;

/// How long others wait for a node that is silent. Whole seconds, as the API has them.
pub const LEASE: Duration = Duration::from_secs(2);
/// How long after its last renewal a node goes on answering. What lies between this and [`LEASE`] is for a responder
/// that was held up between looking and sending.
pub const HOLD: Duration = Duration::from_millis(1500);
/// How often a node with addresses renews.
pub const RENEW: Duration = Duration::from_millis(400);
/// After a write that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Between the node that is to take an address and the next that tries.
const STAGGER: Duration = Duration::from_millis(150);
/// After the server was away, holders get this long to renew before they are taken for dead.
const RETURN: Duration = Duration::from_secs(1);
/// When a taken address is told to the link, after it was taken.
const TELL: [u64; 8] = [0, 100, 300, 700, 1500, 3000, 6000, 12_000];

/// Name of the lease of a node. It sorts before those of addresses, so that a list tells nodes first.
#[must_use]
pub fn node_lease(node: &NodeName) -> String {
    format!("seaway-announcer-{node}")
}

/// Name of the lease of an address.
#[must_use]
pub fn address_lease(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(a) => format!("seaway-l2-{a}"),
        // A name may not end in what "::" would become.
        IpAddr::V6(a) => a.segments().iter().fold("seaway-l2".to_owned(), |mut s, g| {
            let _ = write!(s, "-{g:x}");
            s
        }),
    }
}

/// A lease as somebody saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// `metadata.resourceVersion`.
    pub version: Box<str>,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `spec.holderIdentity`; empty: nobody.
    pub holder: Box<str>,
    /// `spec.leaseDurationSeconds`.
    pub seconds: u32,
    /// `spec.leaseTransitions`.
    pub transitions: u32,
}

/// An address that is to be announced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The nodes that may, each Ready or not.
    pub nodes: BTreeMap<NodeName, bool>,
    /// This node has a link that works for it.
    pub able: bool,
}

/// What a machine looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The addresses.
    pub want: &'a BTreeMap<IpAddr, Wanted>,
    /// The leases as the watch tells them, by name.
    pub leases: &'a BTreeMap<Box<str>, Seen>,
    /// The watch has told everything, and is not broken.
    pub live: bool,
}

/// What a machine wants done. Each is answered with [`Machine::done`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Writes the lease of this node, whatever it is now.
    Renew {
        /// `leaseDurationSeconds`.
        seconds: u32,
    },
    /// Writes the lease of an address with this node as holder.
    Take {
        /// The address.
        ip: IpAddr,
        /// Only this version of it; `None`: only if there is none.
        seen: Option<Seen>,
    },
    /// Writes the lease of an address without holder, if it is this version.
    Release {
        /// The address.
        ip: IpAddr,
        /// The version.
        version: Box<str>,
    },
    /// Deletes the lease of an address that is no longer announced by anybody.
    Forget {
        /// Its name.
        lease: Box<str>,
        /// Only with this uid.
        uid: Box<str>,
    },
    /// Reads the lease of a node from the server, not from a cache.
    Ask {
        /// The node's name.
        node: Box<str>,
    },
}

impl Action {
    /// The lease that it is about.
    #[must_use]
    pub fn lease(&self, me: &NodeName) -> String {
        match self {
            Self::Renew { .. } => node_lease(me),
            Self::Take { ip, .. } | Self::Release { ip, .. } => address_lease(*ip),
            Self::Forget { lease, .. } => lease.to_string(),
            Self::Ask { node } => format!("seaway-announcer-{node}"),
        }
    }
}

/// What became of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The lease is now so; `None`: there is none.
    Is(Option<Seen>),
    /// Somebody else was quicker.
    Conflict,
    /// Nobody knows: no answer in time, or an error.
    Failed,
}

/// A lease that was seen, and since when it is this version.
#[derive(Debug, Clone)]
struct Sighting {
    version: Box<str>,
    seconds: u32,
    since: Duration,
}

/// An address that is ours.
#[derive(Debug, Clone)]
struct Held {
    version: Box<str>,
    since: Duration,
    /// How often it was told.
    told: usize,
    /// The watch has shown our write.
    shown: bool,
}

/// An action that is on its way.
#[derive(Debug, Clone)]
struct Flight {
    since: Duration,
    period: u64,
}

/// One node's part.
#[derive(Debug)]
pub struct Machine {
    me: NodeName,
    /// When the last renewal that went through was sent.
    beat: Option<Duration>,
    /// Grows whenever the time since the last renewal was too long.
    period: u64,
    held: BTreeMap<IpAddr, Held>,
    nodes: BTreeMap<Box<str>, Sighting>,
    /// Since when the lease of a wanted address has no holder.
    free: BTreeMap<IpAddr, Duration>,
    /// Holders of which the server said that they are dead: the version that did not change.
    dead: BTreeMap<Box<str>, Box<str>>,
    flights: BTreeMap<String, Flight>,
    /// Not before.
    pause: BTreeMap<String, Duration>,
    live_since: Option<Duration>,
    wake: Option<Duration>,
}

/// Whether version `a` came after `b`; that a lease is not there is older than any.
fn newer(a: &str, b: &str) -> bool {
    if a.is_empty() || b.is_empty() {
        return b.is_empty() && !a.is_empty();
    }
    // Versions of one resource compare as numbers (KEP-5504); in a server where they do not, any other is newer.
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a > b,
        _ => a != b,
    }
}

impl Machine {
    /// Of this node, with nothing.
    #[must_use]
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            beat: None,
            period: 0,
            held: BTreeMap::new(),
            nodes: BTreeMap::new(),
            free: BTreeMap::new(),
            dead: BTreeMap::new(),
            flights: BTreeMap::new(),
            pause: BTreeMap::new(),
            live_since: None,
            wake: None,
        }
    }

    /// Until when this node may answer.
    fn until(&self) -> Option<Duration> {
        self.beat.map(|b| b + HOLD)
    }

    fn valid(&self, now: Duration) -> bool {
        self.until().is_some_and(|u| now < u)
    }

    /// Notices that the last renewal is too long ago: nothing is ours any more.
    fn lapse(&mut self, now: Duration) {
        if self.beat.is_some() && !self.valid(now) {
            self.beat = None;
            self.period += 1;
            self.held.clear();
        }
    }

    fn look_again(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    /// Takes in what became of an action that [`Announcer::step`] gave at an earlier time.
    pub fn done(&mut self, action: &Action, answer: &Answer, now: Duration) {
        self.lapse(now);
        let lease = action.lease(&self.me);
        let Some(flight) = self.flights.remove(&lease) else { return };
        if !matches!(answer, Answer::Is(_)) {
            self.pause.insert(lease.clone(), now + RETRY);
        }
        match (action, answer) {
            // It counts from when it was sent: the others cannot have seen it before.
            (Action::Renew { .. }, Answer::Is(_)) if now < flight.since + HOLD => {
                self.beat = self.beat.max(Some(flight.since));
            }
            // Written while a renewal stood, without a gap since: from here on it is ours.
            (Action::Take { ip, .. }, Answer::Is(Some(seen)))
                if *seen.holder == *self.me.as_str() && flight.period == self.period && self.valid(now) =>
            {
                let held = Held { version: seen.version.clone(), since: now, told: 0, shown: false };
                self.held.insert(*ip, held);
            }
            (Action::Ask { node }, Answer::Is(seen)) => self.asked(node, seen.as_ref(), &flight, now),
            _ => {}
        }
    }

    /// The server's own word on a holder that seems dead.
    fn asked(&mut self, node: &str, seen: Option<&Seen>, flight: &Flight, now: Duration) {
        let version = seen.map(|s| s.version.clone()).unwrap_or_default();
        // What was deleted may have been renewed before that, unseen: the time begins anew.
        if seen.is_none() && self.nodes.get(node).is_some_and(|s| !s.version.is_empty()) {
            self.nodes.insert(node.into(), Sighting { version, seconds: 0, since: now });
            return;
        }
        match self.nodes.get(node) {
            // It was asked when the time was over, and nothing had come.
            Some(s) if s.version == version && flight.since >= s.since + wait(s.seconds) => {
                self.dead.insert(node.into(), version);
            }
            _ => self.sight(node, &version, seen.map_or(0, |s| s.seconds), now),
        }
    }

    fn sight(&mut self, node: &str, version: &str, seconds: u32, now: Duration) {
        let same = self.nodes.get(node).is_some_and(|s| *s.version == *version || newer(&s.version, version));
        if !same {
            self.dead.remove(node);
            self.nodes.insert(node.into(), Sighting { version: version.into(), seconds, since: now });
        }
    }

    /// Since when a holder may be taken for dead, if its lease does not change before.
    fn silent_at(&self, holder: &str) -> Option<Duration> {
        let s = self.nodes.get(holder)?;
        Some((s.since + wait(s.seconds)).max(self.live_since? + RETURN))
    }

    /// The last actions, before this node ends. With `keep` the others wait so many seconds for it to come back;
    /// without, they take over at once. Nothing may be answered once this was called.
    pub fn leave(&mut self, keep: u32) -> Vec<Action> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return Vec::new();
        }
        if keep > 0 {
            return vec![Action::Renew { seconds: keep.max(whole(LEASE)) }];
        }
        held.into_iter().map(|(ip, h)| Action::Release { ip, version: h.version }).collect()
    }

    /// The addresses to tell the link about now.
    pub fn tell(&mut self, now: Duration) -> Vec<IpAddr> {
        let mut out = Vec::new();
        if !self.valid(now) {
            return out;
        }
        let due = |h: &Held| TELL.get(h.told).map(|ms| h.since + Duration::from_millis(*ms));
        for (ip, h) in &mut self.held {
            if due(h).is_some_and(|d| d <= now) {
                out.push(*ip);
            }
            while due(h).is_some_and(|d| d <= now) {
                h.told += 1;
            }
        }
        if let Some(next) = self.held.values().filter_map(due).min() {
            self.look_again(next);
        }
        out
    }

    /// What the watch says of leases of ours and of other nodes.
    fn observe(&mut self, view: &View<'_>, now: Duration) {
        self.live_since = if view.live { self.live_since.or(Some(now)) } else { None };
        let me = self.me.as_str().to_owned();
        self.held.retain(|ip, h| match view.leases.get(&*address_lease(*ip)) {
            Some(l) if newer(&l.version, &h.version) => {
                h.version = l.version.clone();
                *l.holder == *me
            }
            Some(l) => {
                h.shown |= l.version == h.version;
                true
            }
            // Somebody deleted it: it is anybody's.
            None => !h.shown,
        });
        let mut holders: BTreeSet<&str> = BTreeSet::new();
        for ip in view.want.keys() {
            match view.leases.get(&*address_lease(*ip)) {
                Some(l) if !l.holder.is_empty() => {
                    self.free.remove(ip);
                    holders.insert(&l.holder);
                }
                _ => {
                    self.free.entry(*ip).or_insert(now);
                }
            }
        }
        self.free.retain(|ip, _| view.want.contains_key(ip));
        for holder in holders {
            match view.leases.get(&*format!("seaway-announcer-{holder}")) {
                Some(l) => self.sight(holder, &l.version, l.seconds, now),
                None if self.nodes.contains_key(holder) => {}
                None => self.sight(holder, "", 0, now),
            }
        }
        self.pause.retain(|_, at| *at > now);
    }

    /// An action, unless one of the same lease is on its way or has just failed.
    fn act(&mut self, action: Action, now: Duration, out: &mut Vec<Action>) {
        let lease = action.lease(&self.me);
        if let Some(at) = self.pause.get(&lease) {
            let at = *at;
            return self.look_again(at);
        }
        if !self.flights.contains_key(&lease) {
            self.flights.insert(lease, Flight { since: now, period: self.period });
            out.push(action);
        }
    }
}

/// How long a lease of so many seconds is waited for.
fn wait(seconds: u32) -> Duration {
    Duration::from_secs(seconds.min(120).into()).max(LEASE)
}

/// Whole seconds.
fn whole(d: Duration) -> u32 {
    u32::try_from(d.as_secs()).unwrap_or(u32::MAX)
}

impl Announcer for Machine {
    type View<'a> = View<'a>;
    type Action = Action;

    fn step(&mut self, view: &View<'_>, now: Duration) -> Vec<Action> {
        self.wake = None;
        self.lapse(now);
        self.observe(view, now);
        let mut out = Vec::new();
        if !view.live {
            // What is held is held on; nothing new is begun on old news.
            self.renew(now, !self.held.is_empty(), &mut out);
            return out;
        }
        let me = self.me.as_str().to_owned();
        let turns = self.turns(view, now);
        let mut takes = Vec::new();
        for (ip, w) in view.want {
            let lease = view.leases.get(&*address_lease(*ip));
            let mine = lease.is_some_and(|l| *l.holder == *me);
            if !(w.able && w.nodes.contains_key(&self.me)) {
                // Stop first; say so then.
                let held = self.held.remove(ip).map(|h| h.version);
                if let Some(version) = held.or_else(|| lease.filter(|_| mine).map(|l| l.version.clone())) {
                    self.act(Action::Release { ip: *ip, version }, now, &mut out);
                }
                continue;
            }
            if self.held.contains_key(ip) {
                continue;
            }
            let Some(at) = self.turn(*ip, lease, &turns) else { continue };
            if now < at {
                self.look_again(at);
                continue;
            }
            match lease {
                Some(l) if !l.holder.is_empty() && !mine && !self.is_dead(&l.holder) => {
                    self.act(Action::Ask { node: l.holder.clone() }, now, &mut out);
                }
                _ => takes.push(Action::Take { ip: *ip, seen: lease.cloned() }),
            }
        }
        self.renew(now, !self.held.is_empty() || !takes.is_empty(), &mut out);
        if self.valid(now) {
            for t in takes {
                self.act(t, now, &mut out);
            }
        }
        self.forget(view, now, &mut out);
        out
    }

    fn announced(&self) -> BTreeMap<IpAddr, Duration> {
        let until = self.until();
        self.held.keys().filter_map(|ip| Some((*ip, until?))).collect()
    }

    fn wake(&self) -> Option<Duration> {
        self.wake
    }
}

impl Machine {
    /// Renews, while there is something to renew for.
    fn renew(&mut self, now: Duration, needed: bool, out: &mut Vec<Action>) {
        if !needed {
            return;
        }
        match self.beat {
            Some(b) if now < b + RENEW => self.look_again(b + RENEW),
            _ => self.act(Action::Renew { seconds: whole(LEASE) }, now, out),
        }
        if let Some(until) = self.until() {
            self.look_again(until);
        }
    }

    fn is_dead(&self, holder: &str) -> bool {
        self.dead.get(holder).is_some_and(|v| self.nodes.get(holder).is_some_and(|s| s.version == *v))
    }

    /// Leases of addresses that nobody announces any more: by their holder, or by whoever finds that it is dead.
    fn forget(&mut self, view: &View<'_>, now: Duration, out: &mut Vec<Action>) {
        let wanted: BTreeSet<String> = view.want.keys().map(|ip| address_lease(*ip)).collect();
        self.held.retain(|ip, _| view.want.contains_key(ip));
        for (name, l) in view.leases.iter().filter(|(n, _)| n.starts_with("seaway-l2-") && !wanted.contains(&***n)) {
            let orphan = l.holder.is_empty() || view.leases.get(&*format!("seaway-announcer-{}", l.holder)).is_none();
            let silent = self.silent_at(&l.holder).is_some_and(|at| now >= at + 10 * LEASE);
            if *l.holder == *self.me.as_str() || orphan || silent {
                self.act(Action::Forget { lease: name.clone(), uid: l.uid.clone() }, now, out);
            }
        }
    }
}
