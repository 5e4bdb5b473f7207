//! The DHCPv4 client as a state machine (RFC 2131 section 4.4): messages and time in, messages and leases out.

use std::net::Ipv4Addr;
use std::time::Duration;

use types::Mac;

use super::packet::{Kind, Message, code};

/// Unanswered requests for one offer before another is looked for.
const REQUESTS: u32 = 4;
/// A renewal is not asked for more often (RFC 2131 section 4.4.5), unless the lease is so short that one lost packet would
/// end it: then an eighth of what comes after T1.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// The lease of a server that does not say how long.
const USUAL_LEASE: Duration = Duration::from_secs(3600);
/// A server that says no gets this much time to think better.
const AFTER_NAK: Duration = Duration::from_secs(1);

/// What a client says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// Its hardware address.
    pub mac: Mac,
    /// Options of every message: client identifier, host name, parameters asked for, ...
    pub options: Vec<(u8, Vec<u8>)>,
    /// Whether answers shall be broadcast.
    pub broadcast: bool,
    /// Longest pause between two tries.
    pub resend_max: Duration,
}

/// An address and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The server's acknowledgement.
    pub ack: Message,
    /// The address.
    pub addr: Ipv4Addr,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// When it is to be renewed, rebound, and given up; `None` for a lease without end.
    pub times: Option<Times>,
}

/// Points in time of a lease, in the caller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// T1: ask the server.
    pub renew: Duration,
    /// T2: ask everybody.
    pub rebind: Duration,
    /// The end.
    pub expire: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send to everybody on the link, from no address.
    Broadcast(Message),
    /// Send to the server, from the lease's address.
    Unicast(Message, Ipv4Addr),
    /// A lease, new or longer than before.
    Bound(Lease),
    /// The address must not be used any longer.
    Lost(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Selecting,
    Requesting(Ipv4Addr, Ipv4Addr),
    Bound,
    Renewing,
    Rebinding,
    Done,
}

/// A client of one interface. Times are since any fixed moment, and never run backwards.
#[derive(Debug, Clone)]
pub struct Client {
    params: Params,
    state: State,
    lease: Option<Lease>,
    xid: u32,
    tries: u32,
    began: Duration,
    deadline: Duration,
    random: u64,
}

impl Client {
    /// A client that has just begun to ask. `seed` should differ from client to client.
    #[must_use]
    pub fn new(params: Params, seed: u64, now: Duration) -> (Self, Vec<Output>) {
        let mut out = Self {
            params,
            state: State::Selecting,
            lease: None,
            xid: 0,
            tries: 0,
            began: now,
            deadline: now,
            random: seed | 1,
        };
        let first = out.discover(now);
        (out, first)
    }

    /// A client that goes on with a lease of before.
    #[must_use]
    pub fn resume(params: Params, lease: Lease, seed: u64, now: Duration) -> Self {
        let state = State::Bound;
        Self { params, state, lease: Some(lease), xid: 0, tries: 0, began: now, deadline: now, random: seed | 1 }
    }

    /// When [`Client::tick`] wants to be called; `None` when nothing is to come.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Done => None,
            State::Bound => self.lease.as_ref().and_then(|l| l.times).map(|t| t.renew),
            _ => Some(self.deadline),
        }
    }

    /// Whether it waits for an answer.
    #[must_use]
    pub fn listens(&self) -> bool {
        !matches!(self.state, State::Bound | State::Done)
    }

    /// The lease in force.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) -> Vec<Output> {
        if self.deadline().is_none_or(|d| now < d) {
            return Vec::new();
        }
        let times = self.lease.as_ref().and_then(|l| l.times);
        if times.is_some_and(|t| now >= t.expire) {
            return self.lose("the lease ran out and no server renewed it");
        }
        match (&self.state, times) {
            (State::Selecting, _) => self.discover(now),
            (State::Requesting(..), _) if self.tries >= REQUESTS => {
                self.tries = 0;
                self.discover(now)
            }
            (State::Requesting(..), _) => self.request(now),
            (State::Bound | State::Renewing | State::Rebinding, Some(t)) => {
                if self.state == State::Bound {
                    self.new_transaction(now);
                }
                self.renew(now, t)
            }
            _ => Vec::new(),
        }
    }

    /// A message has come.
    pub fn receive(&mut self, m: &Message, now: Duration) -> Vec<Output> {
        if !self.listens() || !m.reply || m.xid != self.xid || m.chaddr != self.params.mac {
            return Vec::new();
        }
        let server = match m.addresses(code::SERVER).as_slice() {
            [s] => Some(*s),
            _ => None,
        };
        match (&self.state, m.kind(), server) {
            (State::Selecting, Some(Kind::Offer), Some(server)) if usable(m.yiaddr) => {
                self.state = State::Requesting(m.yiaddr, server);
                self.tries = 0;
                self.request(now)
            }
            (State::Requesting(addr, chosen), Some(Kind::Ack), Some(s)) if s == *chosen && m.yiaddr == *addr => {
                self.bind(m, s, now)
            }
            (State::Requesting(_, chosen), Some(Kind::Nak), Some(s)) if s == *chosen => {
                // Another transaction, then.
                (self.state, self.xid) = (State::Selecting, 0);
                self.deadline = now + AFTER_NAK;
                Vec::new()
            }
            (State::Renewing | State::Rebinding, Some(Kind::Ack), server) => {
                let Some(old) = &self.lease else { return Vec::new() };
                let from = server.unwrap_or(old.server);
                if self.state == State::Renewing && from != old.server {
                    return Vec::new();
                }
                if m.yiaddr != old.addr {
                    // The interface has its address from ADD; it cannot change.
                    return self.lose("the server gave another address");
                }
                self.bind(m, from, now)
            }
            (State::Renewing | State::Rebinding, Some(Kind::Nak), server) => {
                let known = self.lease.as_ref().map(|l| l.server);
                if self.state == State::Renewing && server.is_some() && server != known {
                    return Vec::new();
                }
                self.lose("the server took it back")
            }
            _ => Vec::new(),
        }
    }

    /// The address is no longer needed.
    pub fn release(&mut self) -> Vec<Output> {
        self.state = State::Done;
        let Some(lease) = self.lease.take() else { return Vec::new() };
        self.xid = self.next();
        let mut m = self.message(Kind::Release);
        m.options.retain(|(c, _)| !matches!(*c, code::PARAMETERS | code::MAX_SIZE));
        m.broadcast = false;
        m.ciaddr = lease.addr;
        m.set(code::SERVER, lease.server.octets().to_vec());
        vec![Output::Unicast(m, lease.server)]
    }

    fn lose(&mut self, why: &'static str) -> Vec<Output> {
        self.state = State::Done;
        self.lease = None;
        vec![Output::Lost(why)]
    }

    fn discover(&mut self, now: Duration) -> Vec<Output> {
        if self.state != State::Selecting || self.xid == 0 {
            self.state = State::Selecting;
            self.new_transaction(now);
        }
        self.pause(now);
        vec![Output::Broadcast(self.at(Kind::Discover, now))]
    }

    fn request(&mut self, now: Duration) -> Vec<Output> {
        let State::Requesting(addr, server) = self.state else { return Vec::new() };
        self.pause(now);
        let mut m = self.at(Kind::Request, now);
        m.set(code::REQUESTED, addr.octets().to_vec());
        m.set(code::SERVER, server.octets().to_vec());
        vec![Output::Broadcast(m)]
    }

    /// Asks again after half of what is left (RFC 2131 section 4.4.5).
    fn renew(&mut self, now: Duration, t: Times) -> Vec<Output> {
        let Some((addr, server)) = self.lease.as_ref().map(|l| (l.addr, l.server)) else { return Vec::new() };
        let all = now >= t.rebind;
        let end = if all { t.expire } else { t.rebind };
        self.state = if all { State::Rebinding } else { State::Renewing };
        let half = end.saturating_sub(now) / 2;
        let again = RENEW_AGAIN.min(t.expire.saturating_sub(t.renew) / 8);
        self.deadline = end.min(now + half.max(again));
        let mut m = self.at(Kind::Request, now);
        m.ciaddr = addr;
        m.broadcast = false;
        vec![if all { Output::Broadcast(m) } else { Output::Unicast(m, server) }]
    }

    fn bind(&mut self, ack: &Message, server: Ipv4Addr, now: Duration) -> Vec<Output> {
        let secs = |c: u8| ack.number(c);
        let times = match secs(code::LEASE_TIME) {
            Some(u32::MAX) => None,
            n => {
                let lease = n.map_or(USUAL_LEASE, |n| Duration::from_secs(n.max(1).into()));
                let (half, most) = (lease / 2, lease * 7 / 8);
                let of = |c: u8| secs(c).map(|n| Duration::from_secs(n.into()));
                let (t1, t2) = match (of(code::T1).unwrap_or(half), of(code::T2).unwrap_or(most)) {
                    (t1, t2) if !t1.is_zero() && t1 < t2 && t2 < lease => (t1, t2),
                    // What a server says makes no sense.
                    _ => (half, most),
                };
                Some(Times { renew: now + t1, rebind: now + t2, expire: now + lease })
            }
        };
        self.state = State::Bound;
        let addr = ack.yiaddr;
        let lease = Lease { ack: ack.clone(), addr, server, times };
        self.lease = Some(lease.clone());
        vec![Output::Bound(lease)]
    }

    fn new_transaction(&mut self, now: Duration) {
        self.xid = self.next();
        self.began = now;
        self.tries = 0;
    }

    /// Two seconds a few times, as the reference, then as RFC 2131 section 4.1 wants; each give or take one.
    fn pause(&mut self, now: Duration) {
        let base = match self.tries {
            0..4 => Duration::from_secs(2),
            n => Duration::from_secs(4 << (n - 4).min(6)).min(self.params.resend_max),
        };
        let jitter = Duration::from_millis(u64::from(self.next()) % 2000);
        self.deadline = now + (base + jitter).saturating_sub(Duration::from_secs(1)).max(Duration::from_millis(500));
        self.tries += 1;
    }

    fn at(&self, kind: Kind, now: Duration) -> Message {
        let mut m = self.message(kind);
        m.secs = u16::try_from(now.saturating_sub(self.began).as_secs()).unwrap_or(u16::MAX);
        m
    }

    fn message(&self, kind: Kind) -> Message {
        let mut m = Message::new(kind, self.xid, self.params.mac);
        m.broadcast = self.params.broadcast;
        m.set(code::MAX_SIZE, 1500u16.to_be_bytes().to_vec());
        for (c, v) in &self.params.options {
            m.set(*c, v.clone());
        }
        m
    }

    /// xorshift64*: enough to be told apart.
    fn next(&mut self) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        #[allow(clippy::cast_possible_truncation)] // the upper half
        let n = (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        n.max(1)
    }
}

fn usable(a: Ipv4Addr) -> bool {
    !(a.is_unspecified() || a.is_broadcast() || a.is_multicast() || a.is_loopback())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
