//! Nodes that agree by leases of a server, with messages that are late or lost, partitions, pauses and crashes: never
//! two answer for one address, and one does as soon as one can.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use announce::Announcer;
use announce::l2::{Action, Answer, HOLD, LEASE, Machine, Seen, View, Wanted, address_lease, node_lease};
use proptest::prelude::*;
use types::NodeName;

type Leases = BTreeMap<Box<str>, Seen>;

const TICK: Duration = Duration::from_millis(10);
/// No answer after so long is none.
const TIMEOUT: Duration = Duration::from_millis(700);

/// A request or its answer on the way.
struct Message {
    action: Action,
    sent: Duration,
    /// When it comes to the server; `None` once it was there.
    lands: Option<Duration>,
    back: Duration,
    answer: Answer,
    life: u32,
}

struct Node {
    name: NodeName,
    machine: Machine,
    view: Leases,
    /// Changes that the watch has not brought yet.
    news: VecDeque<(Duration, Box<str>, Option<Seen>)>,
    sent: Vec<Message>,
    /// What the responder was told.
    answers: BTreeMap<IpAddr, Duration>,
    up: bool,
    life: u32,
    /// Cannot reach the server.
    apart: bool,
    /// Stands still until then.
    frozen: Duration,
    /// Its watch brings nothing until then, though requests go through.
    deaf: Duration,
    able: bool,
    told: Vec<IpAddr>,
}

struct World {
    now: Duration,
    server: Leases,
    away: bool,
    version: u64,
    nodes: Vec<Node>,
    want: BTreeMap<IpAddr, BTreeMap<NodeName, bool>>,
    delay: Box<dyn FnMut() -> Duration>,
    gap: BTreeMap<IpAddr, Duration>,
    writes: usize,
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn name(i: usize) -> NodeName {
    format!("n{i}").parse().unwrap()
}

impl World {
    fn new(nodes: usize, addresses: u8, delay: impl FnMut() -> Duration + 'static) -> Self {
        let all: BTreeMap<NodeName, bool> = (0..nodes).map(|i| (name(i), true)).collect();
        Self {
            now: Duration::from_secs(1),
            server: Leases::new(),
            away: false,
            version: 0,
            nodes: (0..nodes)
                .map(|i| Node {
                    name: name(i),
                    machine: Machine::new(name(i)),
                    view: Leases::new(),
                    news: VecDeque::new(),
                    sent: Vec::new(),
                    answers: BTreeMap::new(),
                    up: true,
                    life: 0,
                    apart: false,
                    frozen: Duration::ZERO,
                    deaf: Duration::ZERO,
                    able: true,
                    told: Vec::new(),
                })
                .collect(),
            want: (0..addresses).map(|n| (ip(n), all.clone())).collect(),
            delay: Box::new(delay),
            gap: BTreeMap::new(),
            writes: 0,
        }
    }

    /// The server's side of a request.
    fn serve(&mut self, who: usize, action: &Action) -> Answer {
        let me = self.nodes[who].name.clone();
        let lease: Box<str> = action.lease(&me).into();
        let have = self.server.get(&lease).cloned();
        let new = match action {
            Action::Ask { .. } => return Answer::Is(have),
            Action::Renew { seconds } => {
                Some(Seen { holder: me.as_str().into(), seconds: *seconds, ..have.unwrap_or_default() })
            }
            Action::Take { seen, .. } => {
                if have != *seen {
                    return Answer::Conflict;
                }
                Some(Seen { holder: me.as_str().into(), ..have.unwrap_or_default() })
            }
            Action::Release { version, .. } => match have {
                Some(h) if h.version == *version => Some(Seen { holder: "".into(), ..h }),
                _ => return Answer::Conflict,
            },
            Action::Forget { uid, .. } => match have {
                Some(h) if h.uid == *uid => None,
                _ => return Answer::Conflict,
            },
        };
        self.version += 1;
        self.writes += 1;
        let new = new.map(|mut l| {
            l.version = self.version.to_string().into();
            if l.uid.is_empty() {
                l.uid = format!("u{}", self.version).into();
            }
            l
        });
        match &new {
            Some(l) => self.server.insert(lease.clone(), l.clone()),
            None => self.server.remove(&lease),
        };
        for n in 0..self.nodes.len() {
            let last = self.nodes[n].news.back().map_or(Duration::ZERO, |x| x.0);
            let at = (self.now + (self.delay)()).max(last);
            self.nodes[n].news.push_back((at, lease.clone(), new.clone()));
        }
        Answer::Is(new)
    }

    fn tick(&mut self) {
        self.now += TICK;
        let now = self.now;
        for i in 0..self.nodes.len() {
            // Requests land whether or not the sender still lives.
            if !self.nodes[i].apart && !self.away {
                let mut sent = std::mem::take(&mut self.nodes[i].sent);
                for m in &mut sent {
                    if m.lands.is_some_and(|at| at <= now) {
                        m.lands = None;
                        m.answer = self.serve(i, &m.action);
                    }
                }
                sent.append(&mut self.nodes[i].sent);
                self.nodes[i].sent = sent;
            }
            let away = self.away;
            let n = &mut self.nodes[i];
            if !n.apart && !away && now >= n.deaf {
                while n.news.front().is_some_and(|x| x.0 <= now) {
                    let (_, name, lease) = n.news.pop_front().unwrap();
                    match lease {
                        Some(l) => n.view.insert(name, l),
                        None => n.view.remove(&name),
                    };
                }
            }
            if n.up && now >= n.frozen {
                self.run(i);
            }
        }
        for addr in self.want.keys() {
            let who: Vec<&str> =
                self.nodes.iter().filter(|n| self.answering(n, *addr)).map(|n| n.name.as_str()).collect();
            assert!(who.len() <= 1, "{addr} is answered by {who:?} at {now:?}");
            let gap = self.gap.entry(*addr).or_default();
            *gap = if who.is_empty() { *gap + TICK } else { Duration::ZERO };
        }
    }

    fn answering(&self, n: &Node, addr: IpAddr) -> bool {
        n.up && self.now >= n.frozen && n.answers.get(&addr).is_some_and(|until| self.now < *until)
    }

    fn run(&mut self, i: usize) {
        let now = self.now;
        let connected = !self.nodes[i].apart && !self.away;
        let n = &mut self.nodes[i];
        let life = n.life;
        let (came, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut n.sent).into_iter().partition(|m| {
            m.life == life && ((m.lands.is_none() && connected && now >= m.back) || now >= m.sent + TIMEOUT)
        });
        // What nobody waits for any more may land all the same.
        n.sent = rest.into_iter().filter(|m| m.lands.is_some() || m.life == life).collect();
        for m in came {
            let answered = m.lands.is_none() && connected && now >= m.back;
            let answer = if answered { m.answer.clone() } else { Answer::Failed };
            n.machine.done(&m.action, &answer, now);
            if m.lands.is_some() {
                n.sent.push(Message { life: u32::MAX, ..m });
            }
        }
        let want: BTreeMap<IpAddr, Wanted> =
            self.want.iter().map(|(ip, nodes)| (*ip, Wanted { nodes: nodes.clone(), able: n.able })).collect();
        // That a watch is broken is noticed when the server goes, not when the way to it is cut.
        let actions = n.machine.step(&View { want: &want, leases: &n.view, live: !self.away }, now);
        n.answers = n.machine.announced();
        n.told.extend(n.machine.tell(now));
        for action in actions {
            let (there, back) = ((self.delay)(), (self.delay)());
            n.sent.push(Message {
                action,
                sent: now,
                lands: Some(now + there),
                back: now + there + back,
                answer: Answer::Failed,
                life,
            });
        }
    }

    fn for_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.tick();
        }
    }

    fn crash(&mut self, i: usize) {
        let n = &mut self.nodes[i];
        n.up = false;
        n.life += 1;
        n.answers.clear();
    }

    fn start(&mut self, i: usize) {
        let server = self.server.clone();
        let n = &mut self.nodes[i];
        if n.up {
            return;
        }
        n.up = true;
        n.machine = Machine::new(n.name.clone());
        // A new watch begins with a list.
        n.view = server;
        n.news.clear();
    }

    fn holder(&self, n: u8) -> Option<usize> {
        self.nodes.iter().position(|x| self.answering(x, ip(n)))
    }

    /// Ends a process as SIGTERM does.
    fn stop(&mut self, i: usize, keep: u32) {
        for a in self.nodes[i].machine.leave(keep) {
            self.serve(i, &a);
        }
        self.crash(i);
    }
}

fn quick() -> Duration {
    Duration::from_millis(10)
}

#[test]
fn one_takes_each_and_all_take_their_share() {
    let mut w = World::new(3, 12, quick);
    w.for_ms(1500);
    let mut load = [0; 3];
    for n in 0..12 {
        load[w.holder(n).unwrap()] += 1;
    }
    assert_eq!(load, [4, 4, 4]);
    // One write a node for each renewal, however many addresses.
    let before = w.writes;
    w.for_ms(4000);
    assert!(w.writes - before <= 3 * 11, "{}", w.writes - before);
    // It is told at once, and again.
    assert!(w.nodes.iter().map(|n| n.told.len()).sum::<usize>() >= 12 * 5);
    // Nothing moves without need.
    let holders: Vec<_> = (0..12).map(|n| w.holder(n)).collect();
    w.for_ms(20_000);
    assert_eq!((0..12).map(|n| w.holder(n)).collect::<Vec<_>>(), holders);
}

#[test]
fn a_dead_nodes_addresses_move_in_less_than_three_seconds_and_only_those() {
    let mut w = World::new(4, 12, quick);
    w.for_ms(1500);
    let before: Vec<_> = (0..12).map(|n| w.holder(n)).collect();
    w.crash(1);
    let mut longest = Duration::ZERO;
    for _ in 0..300 {
        w.tick();
        longest = longest.max(*w.gap.values().max().unwrap());
    }
    assert!(longest > LEASE / 2 && longest < Duration::from_millis(2600), "{longest:?}");
    let mut load = [0; 4];
    for n in 0..12 {
        let now = w.holder(n).unwrap();
        load[now] += 1;
        assert!(before[usize::from(n)] == Some(now) || before[usize::from(n)] == Some(1));
    }
    assert_eq!(load, [4, 0, 4, 4], "shared out among the others");
    // It comes back: what moved stays.
    w.start(1);
    w.for_ms(5000);
    assert_eq!((0..12).filter(|n| w.holder(*n) == Some(1)).count(), 0);
}

#[test]
fn a_link_that_goes_and_a_label_that_comes_move_at_once() {
    let mut w = World::new(3, 3, quick);
    w.for_ms(1500);
    let first = w.holder(0).unwrap();
    w.nodes[first].able = false;
    w.for_ms(400);
    assert!(w.holder(0).is_some_and(|h| h != first));
    let second = w.holder(0).unwrap();
    let gone = name(second);
    w.want.values_mut().for_each(|n| n.retain(|x, _| *x != gone));
    w.for_ms(600);
    assert!(w.holder(0).is_some_and(|h| h != second && h != first));
    // Nobody may: nobody does.
    w.want.values_mut().for_each(BTreeMap::clear);
    w.for_ms(400);
    assert_eq!(w.holder(0), None);
    // Nobody asks for it any more: nothing of it stays.
    w.want.clear();
    w.for_ms(400);
    assert!(w.server.keys().all(|k| !k.starts_with("seaway-l2-")), "{:?}", w.server.keys());
}

#[test]
fn a_restart_moves_nothing_when_it_is_quick_enough() {
    for (pause, keep, moves) in [(500, 8, false), (6000, 8, false), (10_500, 8, true), (300, 0, true)] {
        let mut w = World::new(2, 1, quick);
        w.for_ms(1500);
        let had = w.holder(0).unwrap();
        w.stop(had, keep);
        w.for_ms(pause);
        if keep == 0 {
            assert!(w.holder(0).is_some_and(|h| h != had), "handed over at once");
        }
        w.start(had);
        w.for_ms(1500);
        assert_eq!(w.holder(0) != Some(had), moves, "{pause} ms, {keep} s");
    }
}

#[test]
fn a_server_that_was_away_moves_nothing() {
    let mut w = World::new(3, 6, quick);
    w.for_ms(1500);
    let before: Vec<_> = (0..6).map(|n| w.holder(n)).collect();
    w.away = true;
    w.for_ms(10_000);
    assert!((0..6).all(|n| w.holder(n).is_none()), "who cannot renew must be silent");
    w.away = false;
    w.for_ms(1200);
    assert_eq!((0..6).map(|n| w.holder(n)).collect::<Vec<_>>(), before);
}

#[test]
fn who_is_cut_off_is_silent_before_another_speaks() {
    let mut w = World::new(2, 1, quick);
    w.for_ms(1500);
    let had = w.holder(0).unwrap();
    w.nodes[had].apart = true;
    let mut silent = Duration::ZERO;
    while w.holder(0) == Some(had) {
        w.tick();
        silent += TICK;
    }
    assert!(silent <= HOLD && w.holder(0).is_none());
    w.for_ms(1300);
    assert_eq!(w.holder(0), Some(1 - had));
    w.nodes[had].apart = false;
    w.for_ms(3000);
    assert_eq!(w.holder(0), Some(1 - had));
    assert!(w.server.contains_key(&*node_lease(&name(had))) && w.server.contains_key(&*address_lease(ip(0))));
}

/// A write that was on its way when the node fell silent is not this node's any more when its answer comes, though a renewal
/// stands again: in between another may have taken the address, of which the watch has told nothing yet.
#[test]
fn what_was_begun_before_a_lapse_is_not_held_after_it() {
    let ms = Duration::from_millis;
    let want: BTreeMap<IpAddr, Wanted> = [(ip(0), Wanted { nodes: [(name(0), true)].into(), able: true })].into();
    for lapses in [false, true] {
        let mut m = Machine::new(name(0));
        let leases = Leases::new();
        let view = View { want: &want, leases: &leases, live: true };
        let renewed = Answer::Is(Some(Seen { version: "1".into(), holder: "n0".into(), ..Seen::default() }));
        let mut now = ms(1000);
        let mut take = None;
        // Until the address is being taken: what was asked for before is answered at once.
        while take.is_none() {
            for action in m.step(&view, now) {
                match action {
                    Action::Take { .. } => take = Some((action, now)),
                    Action::Renew { .. } => m.done(&action, &renewed, now),
                    other => panic!("{other:?}"),
                }
            }
            now += ms(10);
            assert!(now < ms(20_000), "it never takes the address");
        }
        let (take, began) = take.unwrap();
        // Renewals go on, or fail for longer than they hold and then go through again.
        let silent = if lapses { HOLD + ms(500) } else { Duration::ZERO };
        while now < began + HOLD + ms(1500) {
            for action in m.step(&view, now) {
                match action {
                    Action::Renew { .. } if now < began + silent => m.done(&action, &Answer::Failed, now),
                    Action::Renew { .. } => m.done(&action, &renewed, now),
                    other => panic!("a second action on the same lease: {other:?}"),
                }
            }
            assert!(m.announced().is_empty(), "nobody has said yet that it is ours");
            now += ms(10);
        }
        let written = Seen { version: "2".into(), holder: "n0".into(), ..Seen::default() };
        m.done(&take, &Answer::Is(Some(written)), now);
        assert_eq!(m.announced().contains_key(&ip(0)), !lapses, "it lapsed: {lapses}");
    }
}

#[derive(Debug, Clone)]
enum Fault {
    Crash(usize),
    Start(usize),
    Stop(usize, bool),
    Cut(usize),
    Join(usize),
    Freeze(usize, u64),
    Deaf(usize, u64),
    Link(usize),
    ServerAway,
    ServerBack,
    Bar(usize, u8),
    Allow(usize, u8),
    Delete(u8),
}

fn fault() -> impl Strategy<Value = Fault> {
    let n = 0usize..3;
    prop_oneof![
        n.clone().prop_map(Fault::Crash),
        n.clone().prop_map(Fault::Start),
        (n.clone(), any::<bool>()).prop_map(|(i, k)| Fault::Stop(i, k)),
        n.clone().prop_map(Fault::Cut),
        n.clone().prop_map(Fault::Join),
        (n.clone(), 100u64..4000).prop_map(|(i, ms)| Fault::Freeze(i, ms)),
        (n.clone(), 100u64..6000).prop_map(|(i, ms)| Fault::Deaf(i, ms)),
        n.clone().prop_map(Fault::Link),
        Just(Fault::ServerAway),
        Just(Fault::ServerBack),
        (n.clone(), 0u8..3).prop_map(|(i, a)| Fault::Bar(i, a)),
        (n, 0u8..3).prop_map(|(i, a)| Fault::Allow(i, a)),
        (0u8..3).prop_map(Fault::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn never_two_answer_whatever_happens(
        faults in prop::collection::vec((fault(), 0u64..2500), 1..40), seed: u64, slow in 1u64..600,
    ) {
        let mut state = seed | 1;
        // Mostly quick, sometimes slow, so that messages overtake nothing but come late.
        let delay = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            Duration::from_millis(if state % 10 < 7 { 1 + state % 30 } else { 1 + state % slow })
        };
        let mut w = World::new(3, 3, delay);
        for (f, ms) in faults {
            match f {
                Fault::Crash(i) => w.crash(i),
                Fault::Start(i) => w.start(i),
                Fault::Stop(i, keep) => if w.nodes[i].up && !w.nodes[i].apart && !w.away { w.stop(i, if keep { 5 } else { 0 }) },
                Fault::Cut(i) => w.nodes[i].apart = true,
                Fault::Join(i) => w.nodes[i].apart = false,
                Fault::Freeze(i, ms) => w.nodes[i].frozen = w.now + Duration::from_millis(ms),
                Fault::Deaf(i, ms) => w.nodes[i].deaf = w.now + Duration::from_millis(ms),
                Fault::Link(i) => w.nodes[i].able = !w.nodes[i].able,
                Fault::ServerAway => w.away = true,
                Fault::ServerBack => w.away = false,
                Fault::Bar(i, a) => { w.want.get_mut(&ip(a)).unwrap().remove(&name(i)); }
                Fault::Allow(i, a) => { w.want.get_mut(&ip(a)).unwrap().insert(name(i), true); }
                // Somebody deletes a node's lease by hand.
                Fault::Delete(i) => {
                    let lease: Box<str> = node_lease(&name(usize::from(i))).into();
                    if w.server.remove(&lease).is_some() {
                        for n in &mut w.nodes {
                            let at = n.news.back().map_or(w.now, |x| x.0.max(w.now));
                            n.news.push_back((at, lease.clone(), None));
                        }
                    }
                }
            }
            w.for_ms(ms);
        }
        // All is well again: each address is somebody's, and stays so.
        w.away = false;
        let all: BTreeMap<NodeName, bool> = (0..3).map(|i| (name(i), true)).collect();
        w.want.values_mut().for_each(|n| n.clone_from(&all));
        for i in 0..3 {
            w.start(i);
            (w.nodes[i].apart, w.nodes[i].able) = (false, true);
            (w.nodes[i].frozen, w.nodes[i].deaf) = (Duration::ZERO, Duration::ZERO);
        }
        w.delay = Box::new(quick);
        w.for_ms(9000);
        for n in 0..3 {
            prop_assert!(w.holder(n).is_some(), "nobody has {}: {:#?}", ip(n), w.server);
        }
    }
}
