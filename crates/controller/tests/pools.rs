//! Pools under every interleaving: nodes that lag behind the API, crash between any two effects, and race for the same
//! blocks, while CNI plugins give out and take back addresses. No address is ever in use twice, and nothing leaks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that fails panics

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use controller::offline::merge;
use controller::pools::{Acks, Keeper, Local, Offer, Want};
use controller::{Options, Which};
use proptest::prelude::*;
use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Event, Kind, apply, parse, parse_as};
use serde_json::{Value, json};
use types::{Cidr, Family, NodeName};

/// An API server with optimistic locks and finalizers.
#[derive(Default, Clone)]
struct Api {
    objects: BTreeMap<(String, String), Value>,
    rev: u64,
    writes: usize,
}

impl Api {
    fn put(&mut self, mut v: Value) {
        self.rev += 1;
        v["metadata"]["resourceVersion"] = self.rev.to_string().into();
        if v["metadata"]["uid"].is_null() {
            v["metadata"]["uid"] = format!("u{}", self.rev).into();
            v["metadata"]["creationTimestamp"] = format!("2026-01-01T00:00:{:02}Z", self.rev.min(59)).into();
        }
        let key = (v["kind"].as_str().unwrap().to_owned(), v["metadata"]["name"].as_str().unwrap().to_owned());
        let done = !v["metadata"]["deletionTimestamp"].is_null()
            && v["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        if done {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, v);
        }
    }

    fn delete(&mut self, kind: &str, name: &str, uid: Option<&str>) -> bool {
        let key = (kind.to_owned(), name.to_owned());
        let Some(mut v) = self.objects.get(&key).cloned() else { return false };
        if uid.is_some_and(|u| v["metadata"]["uid"] != u) {
            return false;
        }
        v["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
        self.put(v);
        true
    }

    /// The object as it then is, `None` when it is gone; or a refusal.
    fn run(&mut self, w: &ApiWrite) -> Result<Option<Value>, ()> {
        self.writes += 1;
        let key = (w.resource.kind.to_string(), w.name.name.to_string());
        match &w.op {
            WriteOp::Create(body) => {
                if self.objects.contains_key(&key) {
                    return Err(());
                }
                let mut v = body.clone();
                v["apiVersion"] = w.resource.api_version().into();
                v["kind"] = key.0.clone().into();
                v["metadata"]["name"] = key.1.clone().into();
                self.put(v);
            }
            WriteOp::Patch(p) | WriteOp::PatchStatus(p) => {
                let mut v = self.objects.get(&key).ok_or(())?.clone();
                let wants = p["metadata"]["resourceVersion"].as_str();
                if wants.is_some_and(|r| v["metadata"]["resourceVersion"] != r) {
                    return Err(());
                }
                merge(&mut v, p);
                self.put(v);
            }
            WriteOp::Delete { uid, .. } => {
                if !self.delete(&key.0, &key.1, Some(uid)) {
                    return Err(());
                }
            }
            other => panic!("{other:?}"),
        }
        Ok(self.objects.get(&key).cloned())
    }

    fn snapshot(&self) -> ClusterSnapshot {
        let mut s = ClusterSnapshot::default();
        for v in self.objects.values() {
            apply(&mut s, Event::Put(parse(v).unwrap()));
        }
        s
    }

    fn kind(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|((k, _), _)| k == kind).map(|(_, v)| v).collect()
    }
}

enum Effect {
    File(Offer),
    Write(ApiWrite),
}

/// An agent and a CNI plugin on one machine.
struct Machine {
    name: NodeName,
    /// What its watches have told; behind the API.
    seen: ClusterSnapshot,
    keeper: Keeper,
    acks: Acks,
    file: Offer,
    journal: BTreeSet<IpAddr>,
    todo: Vec<Effect>,
    waiting: usize,
    fixed: Option<IpAddr>,
}

struct World {
    api: Api,
    machines: Vec<Machine>,
    now: Duration,
    pools: Vec<String>,
    strict: bool,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn pool(name: &str, cidr: &str, size: u8, strict: bool) -> Value {
    json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name},
           "spec": {"cidr": cidr, "blockSize": size, "strictAffinity": strict}})
}

impl World {
    fn new(pools: &[Value]) -> Self {
        let mut api = Api::default();
        for n in NAMES {
            api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": n}}));
        }
        for p in pools {
            api.put(p.clone());
        }
        let machine = |n: &str| Machine {
            name: n.parse().unwrap(),
            seen: api.snapshot(),
            keeper: Keeper::default(),
            acks: Acks::default(),
            file: Offer::default(),
            journal: BTreeSet::new(),
            todo: Vec::new(),
            waiting: 0,
            fixed: None,
        };
        let machines = NAMES.iter().map(|n| machine(n)).collect();
        let names = pools.iter().map(|p| p["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        let strict = pools.iter().any(|p| p["spec"]["strictAffinity"] == true);
        Self { api, machines, now: Duration::ZERO, pools: names, strict }
    }

    fn step(&mut self, i: usize) {
        let m = &mut self.machines[i];
        if !m.todo.is_empty() {
            return;
        }
        let mut view = m.seen.clone();
        m.acks.apply(&mut view, self.now);
        let pools: Vec<Box<str>> = self.pools.iter().map(|p| p.as_str().into()).collect();
        let mut wants = vec![Want { pools: pools.clone(), waiting: m.waiting, spare: 1, fixed: None }];
        if let Some(a) = m.fixed {
            wants.push(Want { pools, waiting: 1, spare: 0, fixed: Some(a) });
        }
        let local = Local { node: &m.name, offered: &m.file, used: &m.journal, wants: &wants };
        let step = m.keeper.step(&view, &local, self.now);
        if step.offer != m.file {
            m.todo.push(Effect::File(step.offer));
        }
        m.todo.extend(step.writes.into_iter().map(Effect::Write));
        m.todo.reverse();
    }

    fn effect(&mut self, i: usize) {
        let m = &mut self.machines[i];
        match m.todo.pop() {
            None => {}
            Some(Effect::File(f)) => m.file = f,
            Some(Effect::Write(w)) => match self.api.run(&w) {
                Ok(Some(v)) if w.resource.kind == "IPBlock" => m.acks.is_so(parse_as(Kind::IPBlock, &v), self.now),
                Ok(None) => {
                    if let WriteOp::Delete { uid, .. } = &w.op {
                        m.acks.is_gone(&w.name.name, uid, self.now);
                    }
                    if let (WriteOp::Patch(_), Some(b)) = (&w.op, m.seen.blocks.get(&*w.name.name)) {
                        m.acks.is_gone(&w.name.name, &b.uid, self.now);
                    }
                }
                Ok(_) => {}
                // The second write of an object holds only after the first.
                Err(()) => m.todo.retain(|e| !matches!(e, Effect::Write(o) if o.name == w.name)),
            },
        }
    }

    fn watch(&mut self, i: usize) {
        self.machines[i].seen = self.api.snapshot();
    }

    /// The agent dies and comes back: what it had in mind is gone, and it lists everything anew.
    fn crash(&mut self, i: usize) {
        let m = &mut self.machines[i];
        (m.todo, m.keeper, m.acks) = (Vec::new(), Keeper::default(), Acks::default());
        self.watch(i);
    }

    /// The plugin gives out one of the addresses that the file offers.
    fn add(&mut self, i: usize, which: Option<&Index>) {
        let m = &self.machines[i];
        let all = m.file.ranges.values().flatten().flat_map(|c| (0..c.size()).filter_map(|n| c.nth(n)));
        let free: Vec<IpAddr> = all.filter(|a| m.file.gives(*a) && !m.journal.contains(a)).collect();
        if free.is_empty() {
            return;
        }
        let a = match m.fixed.filter(|a| free.contains(a)) {
            Some(a) => a,
            // As the plugin does: the first free one.
            None => which.map_or(free[0], |w| *w.get(&free)),
        };
        for other in &self.machines {
            assert!(!other.journal.contains(&a), "{a} is given out on {} and lives on {}", m.name, other.name);
        }
        let m = &mut self.machines[i];
        m.journal.insert(a);
        if m.fixed == Some(a) {
            m.fixed = None;
        } else {
            m.waiting = m.waiting.saturating_sub(1);
        }
    }

    fn del(&mut self, i: usize, which: &Index) {
        let m = &mut self.machines[i];
        let all: Vec<IpAddr> = m.journal.iter().copied().collect();
        if !all.is_empty() {
            m.journal.remove(which.get(&all));
        }
    }

    fn controller(&mut self) {
        let options = Options { which: [Which::Pools].into(), ..Options::default() };
        for w in controller::reconcile(&self.api.snapshot(), &options).writes {
            let _ = self.api.run(&w);
        }
    }

    fn spec(&mut self, pool: &str, patch: Value) {
        let key = ("IPPool".to_owned(), pool.to_owned());
        if let Some(mut v) = self.api.objects.get(&key).cloned() {
            merge(&mut v, &json!({"spec": patch}));
            self.api.put(v);
        }
    }

    /// Everybody is up to date and acts, until nothing changes.
    fn settle(&mut self, adds: bool) {
        for round in 0..400 {
            let before = self.api.rev;
            for i in 0..self.machines.len() {
                self.watch(i);
                self.step(i);
                while !self.machines[i].todo.is_empty() {
                    self.effect(i);
                }
                while adds && self.machines[i].waiting > 0 {
                    let had = self.machines[i].journal.len();
                    self.add(i, None);
                    if self.machines[i].journal.len() == had {
                        break;
                    }
                }
            }
            self.controller();
            self.now += Duration::from_secs(if round % 4 == 3 { 61 } else { 1 });
            if round > 40 && self.api.rev == before {
                return;
            }
        }
        panic!("does not come to rest:\n{}", self.show());
    }

    fn show(&self) -> String {
        let blocks: Vec<String> = self.api.kind("IPBlock").iter().map(|b| b["spec"].to_string()).collect();
        let nodes = self
            .machines
            .iter()
            .map(|m| format!("{} waits {} has {:?} offers {:?}", m.name, m.waiting, m.journal, m.file));
        blocks.into_iter().chain(nodes).collect::<Vec<_>>().join("\n")
    }

    fn in_use(&self) -> usize {
        self.machines.iter().map(|m| m.journal.len()).sum()
    }

    fn check(&self) {
        let s = self.api.snapshot();
        for m in &self.machines {
            for a in &m.journal {
                let holders: Vec<Cidr> =
                    s.blocks.values().flat_map(|b| b.ranges_of(&m.name)).filter(|c| c.contains(*a)).collect();
                assert!(!holders.is_empty(), "{a} lives on {} and the API does not know", m.name);
                let route = s
                    .blocks
                    .values()
                    .flat_map(|b| {
                        NAMES.iter().flat_map(move |n| {
                            let n: NodeName = n.parse().unwrap();
                            b.ranges_of(&n).map(|c| (c, n.clone())).collect::<Vec<_>>()
                        })
                    })
                    .filter(|(c, _)| c.contains(*a))
                    .max_by_key(|(c, _)| c.len())
                    .unwrap();
                assert_eq!(route.1, m.name, "{a} is routed to {}", route.1);
            }
            if self.strict {
                assert!(s.blocks.values().all(|b| b.lent.is_empty()), "strict affinity never borrows");
            }
        }
    }
}

/// A place in a list of any length.
#[derive(Debug, Clone, Copy)]
struct Index(u64);

impl Index {
    fn index(self, len: usize) -> usize {
        usize::try_from((u128::from(self.0) * len as u128) >> 64).unwrap()
    }
    fn get<T>(self, list: &[T]) -> &T {
        &list[self.index(list.len())]
    }
}

#[derive(Debug, Clone)]
enum Act {
    Watch(usize),
    Step(usize),
    Effect(usize),
    Add(usize, Index),
    Del(usize, Index),
    Wait(usize, usize),
    Fixed(usize, Index),
    Crash(usize),
    Controller,
    Time(u64),
    Disable(usize, bool),
    DeleteBlock(Index),
    Reserve(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let n = || 0usize..3;
    let one = prop_oneof![
        6 => n().prop_map(Act::Watch),
        10 => n().prop_map(Act::Step),
        20 => n().prop_map(Act::Effect),
        12 => (n(), any::<u64>().prop_map(Index)).prop_map(|(i, x)| Act::Add(i, x)),
        6 => (n(), any::<u64>().prop_map(Index)).prop_map(|(i, x)| Act::Del(i, x)),
        4 => (n(), 0usize..6).prop_map(|(i, k)| Act::Wait(i, k)),
        1 => (n(), any::<u64>().prop_map(Index)).prop_map(|(i, x)| Act::Fixed(i, x)),
        1 => n().prop_map(Act::Crash),
        1 => Just(Act::Controller),
        4 => prop_oneof![Just(1u64), Just(6), Just(15), Just(61)].prop_map(Act::Time),
        1 => (0usize..2, any::<bool>()).prop_map(|(p, d)| Act::Disable(p, d)),
        1 => any::<u64>().prop_map(Index).prop_map(Act::DeleteBlock),
        1 => (0u8..16).prop_map(Act::Reserve),
    ];
    prop::collection::vec(one, 20..400)
}

fn play(w: &mut World, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Watch(i) => w.watch(*i),
            Act::Step(i) => w.step(*i),
            Act::Effect(i) => w.effect(*i),
            Act::Add(i, x) => w.add(*i, Some(x)),
            Act::Del(i, x) => w.del(*i, x),
            Act::Wait(i, k) => w.machines[*i].waiting = *k,
            Act::Fixed(i, x) => w.machines[*i].fixed = Some(IpAddr::from([10, 0, 0, x.index(16) as u8])),
            Act::Crash(i) => w.crash(*i),
            Act::Controller => w.controller(),
            Act::Time(s) => w.now += Duration::from_secs(*s),
            Act::Disable(p, d) => {
                let name = w.pools[p % w.pools.len()].clone();
                w.spec(&name, json!({"disabled": d}));
            }
            Act::DeleteBlock(x) => {
                let names: Vec<String> =
                    w.api.kind("IPBlock").iter().map(|b| b["metadata"]["name"].as_str().unwrap().to_owned()).collect();
                if !names.is_empty() {
                    w.api.delete("IPBlock", &names[x.index(names.len())], None);
                }
            }
            Act::Reserve(n) => w.api.put(json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPReservation",
                "metadata": {"name": "r"}, "spec": {"reservedCIDRs": [format!("10.0.0.{n}/32")]}})),
        }
    }
}

fn pools() -> impl Strategy<Value = Vec<Value>> {
    prop_oneof![
        3 => Just(vec![pool("p", "10.0.0.0/28", 30, false)]),
        1 => Just(vec![pool("p", "10.0.0.0/28", 30, true)]),
        1 => Just(vec![pool("p", "10.0.0.0/29", 30, false)]),
        1 => Just(vec![pool("p", "10.0.0.0/29", 31, false), pool("q", "10.0.1.0/30", 32, false)]),
        1 => Just(vec![pool("p", "fd00::/124", 126, false)]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order, no address lives twice; once all is quiet, every living address is known to
    /// the API and routed to where it lives; and once the pods are gone, nothing is borrowed and no pool stays.
    #[test]
    fn no_address_twice_and_none_lost(pools in pools(), acts in acts()) {
        let mut w = World::new(&pools);
        play(&mut w, &acts);
        for p in w.pools.clone() {
            w.spec(&p, json!({"disabled": false}));
        }
        for m in &mut w.machines {
            (m.waiting, m.fixed) = (0, None);
        }
        w.settle(false);
        w.check();
        for m in &mut w.machines {
            m.journal.clear();
        }
        w.settle(false);
        for b in w.api.kind("IPBlock") {
            prop_assert!(b["spec"]["lent"].as_array().unwrap().is_empty(), "still lent: {}", b);
            prop_assert!(b["spec"]["requests"].as_array().unwrap().is_empty(), "still asked: {}", b);
        }
        for p in w.pools.clone() {
            w.api.delete("IPPool", &p, None);
        }
        w.settle(false);
        prop_assert!(w.api.kind("IPBlock").is_empty(), "{:?}", w.api.kind("IPBlock"));
        prop_assert!(w.api.kind("IPPool").is_empty(), "{:?}", w.api.kind("IPPool"));
    }

    /// As long as the pool has addresses, whoever waits gets one, wherever the free ones are.
    #[test]
    fn who_waits_is_served(acts in acts(), want in [0usize..9, 0usize..9, 0usize..9]) {
        let mut w = World::new(&[pool("p", "10.0.0.0/28", 30, false)]);
        // A block that somebody deleted gives nothing new until it is empty.
        let acts: Vec<Act> = acts.into_iter().filter(|a| !matches!(a, Act::DeleteBlock(_))).collect();
        play(&mut w, &acts);
        w.spec("p", json!({"disabled": false}));
        w.api.objects.retain(|(k, _), _| k != "IPReservation");
        // The first address of a block is not lent.
        let room = 12usize.saturating_sub(w.in_use());
        let mut left = room;
        for (m, n) in w.machines.iter_mut().zip(want) {
            m.waiting = n.min(left);
            m.fixed = None;
            left -= m.waiting;
        }
        w.settle(true);
        for m in &w.machines {
            prop_assert_eq!(m.waiting, 0, "{} of 16 places were free, {} waits in vain:\n{}", room, m.name, w.show());
        }
        w.check();
    }
}

#[test]
fn two_nodes_race_for_the_last_block() {
    let mut w = World::new(&[pool("p", "10.0.0.0/30", 30, true)]);
    for i in 0..3 {
        w.machines[i].waiting = 1;
        w.step(i);
    }
    // All adopt the pool from the same version of it: one write holds.
    for i in 0..3 {
        w.effect(i);
    }
    for i in 0..3 {
        w.watch(i);
        w.step(i);
    }
    for i in [2, 0, 1] {
        w.effect(i);
    }
    let blocks = w.api.kind("IPBlock");
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0]["spec"]["node"], "c");
}

#[test]
fn a_pool_that_is_deleted_waits_for_its_last_pod_and_says_whose_it_is() {
    let mut w = World::new(&[pool("p", "10.0.0.0/28", 30, false)]);
    w.machines[0].waiting = 2;
    w.settle(true);
    let a = *w.machines[0].journal.iter().next().unwrap();
    w.api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"nodeName": "a"}, "status": {"phase": "Running", "podIPs": [{"ip": a.to_string()}]}}));
    w.api.delete("IPPool", "p", None);
    w.settle(true);
    let pools = w.api.kind("IPPool");
    assert_eq!(pools[0]["status"]["message"], "1 pods have addresses of it: default/web on a");
    assert_eq!(pools[0]["status"]["blocks"], 1);
    assert!(w.machines[0].file.ranges.is_empty(), "nothing new");
    w.check();
    w.machines[0].journal.clear();
    w.settle(true);
    assert!(w.api.kind("IPPool").is_empty() && w.api.kind("IPBlock").is_empty());
}

#[test]
fn blocks_of_a_node_that_is_gone_are_free_again_except_what_is_lent() {
    let mut w = World::new(&[pool("p", "10.0.0.0/29", 30, false)]);
    for i in 0..2 {
        w.machines[i].waiting = 1;
    }
    w.settle(true);
    w.machines[2].waiting = 2;
    w.settle(true);
    let lent: usize = w.api.kind("IPBlock").iter().map(|b| b["spec"]["lent"].as_array().unwrap().len()).sum();
    assert!(lent > 0, "{}", w.show());
    for n in ["a", "b"] {
        w.api.objects.remove(&("Node".into(), n.into()));
    }
    w.machines[0].journal.clear();
    w.machines[1].journal.clear();
    w.machines.drain(..2);
    w.settle(true);
    w.check();
    let s = w.api.snapshot();
    let c: NodeName = "c".parse().unwrap();
    assert!(s.blocks.values().all(|b| b.node.as_ref() == Some(&c) || b.lent.iter().all(|l| l.node == c)));
}

#[test]
fn both_families_and_a_fixed_address_of_another_nodes_block() {
    for (range, size, fixed) in [("10.0.0.0/28", 30u8, "10.0.0.9"), ("fd00::/124", 126, "fd00::8")] {
        let mut w = World::new(&[pool("p", range, size, false)]);
        let fixed: IpAddr = fixed.parse().unwrap();
        for m in &mut w.machines {
            m.waiting = 5;
        }
        w.settle(true);
        assert_eq!(w.in_use(), 15);
        let holder = w.machines.iter().position(|m| m.journal.contains(&fixed)).unwrap_or(0);
        w.machines[holder].journal.remove(&fixed);
        let other = (holder + 1) % 3;
        w.machines[other].fixed = Some(fixed);
        w.settle(true);
        assert!(w.machines[other].file.gives(fixed) || w.machines[other].journal.contains(&fixed), "{fixed}");
        assert_eq!(Family::of(fixed).bits() - size, 2);
        w.check();
    }
}
