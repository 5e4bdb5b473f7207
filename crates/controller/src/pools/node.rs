//! What one node does about pools: a pure state machine, run by its agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use resolve::api::{ApiWrite, WriteOp};
use resolve::pools::{BLOCK_SIZE, FINALIZER, IpBlock, IpPool, Request, eligible, sound};
use resolve::{ClusterSnapshot, Kind, Problem};
use serde_json::json;
use types::{Cidr, NodeName};

use super::space::{free_block, seed};
use super::wants::outside;
use super::{Offer, create, named, problem, update};

mod giving;

/// An owner that does not answer for so long is left alone for [`AVOID`].
const UNANSWERED: Duration = Duration::from_secs(5);
/// See [`UNANSWERED`].
const AVOID: Duration = Duration::from_secs(30);
/// Blocks claimed, and addresses asked for, in one step at most.
const BURST: usize = 8;

/// What is wanted on this node: of these pools, in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// Pools of one family.
    pub pools: Vec<Box<str>>,
    /// Pods that wait for an address.
    pub waiting: usize,
    /// Free addresses that should be at hand beyond those, so that a pod need not wait.
    pub spare: usize,
    /// This address, for one of the pods that wait.
    pub fixed: Option<IpAddr>,
}

/// What only the node knows.
#[derive(Debug, Clone)]
pub struct Local<'a> {
    /// Its name.
    pub node: &'a NodeName,
    /// What the CNI plugin may give out, as it reads it now.
    pub offered: &'a Offer,
    /// Addresses that the plugin's records have, read after `offered` was written and while no plugin ran.
    pub used: &'a BTreeSet<IpAddr>,
    /// What is wanted.
    pub wants: &'a [Want],
}

/// What a step says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// What the plugin may give out from now on. The writes do not wait for it.
    pub offer: Offer,
    /// What to tell the API, in order; of two of one object the second only if the first went well.
    pub writes: Vec<ApiWrite>,
    /// Look again then, even if nothing changes.
    pub wake: Option<Duration>,
    /// What cannot be had, and why.
    pub problems: Vec<Problem>,
}

/// What a node remembers between steps; all of it may be lost without harm.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    /// Since when a block of ours, or a borrowed address, is of no use.
    idle: BTreeMap<Cidr, Duration>,
    /// Since when the owner of a block was asked.
    asked: BTreeMap<Box<str>, Duration>,
    /// Until when the owner of a block is not asked.
    avoid: BTreeMap<Box<str>, Duration>,
}

impl Keeper {
    /// One step at time `now`. `snapshot` is up to date with what the API answered to this node ([`super::Acks`]).
    pub fn step(&mut self, snapshot: &ClusterSnapshot, local: &Local<'_>, now: Duration) -> Step {
        let mut pass = Pass::new(self, snapshot, local, now);
        pass.offer();
        pass.used_elsewhere();
        pass.outside();
        for want in local.wants {
            pass.want(want);
        }
        pass.withdraw();
        pass.requests();
        pass.release();
        pass.protect();
        pass.give_back();
        pass.let_go();
        pass.finish()
    }
}

/// A block as it will be, and why it changes.
struct Edit {
    block: IpBlock,
    why: Vec<String>,
}

struct Pass<'a> {
    keeper: &'a mut Keeper,
    snapshot: &'a ClusterSnapshot,
    local: &'a Local<'a>,
    now: Duration,
    /// Pools that count.
    pools: BTreeMap<&'a str, &'a IpPool>,
    /// Of those, the ones that may give new addresses here.
    open: BTreeSet<&'a str>,
    reserved: Vec<Cidr>,
    /// Ranges that no new block may touch.
    taken: Vec<Cidr>,
    edits: BTreeMap<&'a str, Edit>,
    /// Addresses that are wanted of each block, by this node, after this step.
    asking: BTreeMap<&'a str, usize>,
    idle: BTreeMap<Cidr, Duration>,
    /// Addresses of no pool that pods of this node name.
    outside: BTreeSet<IpAddr>,
    out: Step,
}

impl<'a> Pass<'a> {
    fn new(keeper: &'a mut Keeper, snapshot: &'a ClusterSnapshot, local: &'a Local<'a>, now: Duration) -> Self {
        let (pools, _) = sound(snapshot);
        let labels = snapshot.nodes.get(local.node).map(|n| n.labels.clone()).unwrap_or_default();
        // A node that is not registered can claim nothing: its blocks would be taken away at once.
        let known = snapshot.nodes.contains_key(local.node);
        let open = pools.iter().filter(|(_, p)| known && eligible(p, &labels)).map(|(n, _)| *n).collect();
        let nodes = snapshot.nodes.values();
        let taken = snapshot
            .blocks
            .values()
            .map(|b| b.cidr)
            .chain(nodes.clone().flat_map(|n| n.pod_cidrs.iter().copied()))
            .chain(nodes.flat_map(resolve::Node::addresses).map(Cidr::host))
            .chain(snapshot.services.values().flat_map(|s| s.cluster_ips.iter().map(|ip| Cidr::host(*ip))))
            .collect();
        let withheld = snapshot.pools.values().filter_map(|p| p.underlay).flat_map(|u| u.withheld());
        let reserved = snapshot.reservations.values().flat_map(|r| r.cidrs.iter().copied()).chain(withheld).collect();
        keeper.avoid.retain(|_, until| *until > now);
        Self {
            keeper,
            snapshot,
            local,
            now,
            pools,
            open,
            reserved,
            taken,
            edits: BTreeMap::new(),
            asking: BTreeMap::new(),
            idle: BTreeMap::new(),
            outside: outside(snapshot, local.node),
            out: Step::default(),
        }
    }

    fn own(&self) -> impl Iterator<Item = (&'a str, &'a IpBlock)> + use<'a> {
        let (node, blocks) = (self.local.node, &self.snapshot.blocks);
        blocks.iter().filter(move |(_, b)| b.node.as_ref() == Some(node)).map(|(n, b)| (&**n, b))
    }

    /// Addresses that this node borrowed, with their blocks.
    fn borrowed(&self) -> impl Iterator<Item = (&'a str, &'a IpBlock, IpAddr)> + use<'a> {
        let (node, blocks) = (self.local.node, &self.snapshot.blocks);
        blocks
            .iter()
            .flat_map(move |(n, b)| b.lent.iter().filter(move |l| l.node == *node).map(move |l| (&**n, b, l.address)))
    }

    fn is_reserved(&self, a: IpAddr) -> bool {
        self.reserved.iter().any(|c| c.contains(a))
    }

    fn edit(&mut self, name: &'a str, block: &'a IpBlock, why: String) -> &mut IpBlock {
        let e = self.edits.entry(name).or_insert_with(|| Edit { block: block.clone(), why: Vec::new() });
        e.why.push(why);
        &mut e.block
    }

    fn wake(&mut self, at: Duration) {
        let at = at.max(self.now);
        self.out.wake = Some(self.out.wake.map_or(at, |w| w.min(at)));
    }

    /// What is ours and open is offered.
    fn offer(&mut self) {
        for (_, b) in self.own() {
            if self.open.contains(&*b.pool) && !b.terminating && b.protected {
                self.out.offer.ranges.entry(b.pool.clone()).or_default().insert(b.cidr);
                self.out.offer.except.extend(b.lent.iter().map(|l| Cidr::host(l.address)));
                let inside = self.reserved.iter().filter(|r| r.overlaps(&b.cidr)).copied();
                self.out.offer.except.extend(inside);
            }
        }
        for (_, b, a) in self.borrowed() {
            if self.open.contains(&*b.pool) && !b.terminating && !self.is_reserved(a) {
                self.out.offer.ranges.entry(b.pool.clone()).or_default().insert(Cidr::host(a));
            }
        }
    }

    /// Addresses that the plugin could give now: offered, not used.
    fn free_in(&self, pool: &str, most: usize) -> usize {
        let Some(ranges) = self.out.offer.ranges.get(pool) else { return 0 };
        let mut n = 0;
        for r in ranges {
            for i in 0..r.size() {
                let Some(a) = r.nth(i) else { break };
                if !self.local.used.contains(&a) && !self.out.offer.except.iter().any(|c| c.contains(a)) {
                    n += 1;
                    if n >= most {
                        return n;
                    }
                }
            }
        }
        n
    }

    /// Addresses that our records have and the API does not give us: an object was deleted by hand, or the node was
    /// away for long. What can be had back is asked for.
    fn used_elsewhere(&mut self) {
        let mine: Vec<Cidr> = self.own().map(|(_, b)| b.cidr).collect();
        let borrowed: BTreeSet<IpAddr> = self.borrowed().map(|(_, _, a)| a).collect();
        let lost: Vec<IpAddr> = self
            .local
            .used
            .iter()
            .filter(|a| !borrowed.contains(a) && !mine.iter().any(|c| c.contains(**a)))
            .copied()
            .collect();
        for a in lost {
            let _ = self.have(a, true);
        }
    }

    /// An address of no pool gets a block of its own, so that it is one node's, and peers know whose.
    fn outside(&mut self) {
        for a in self.outside.clone() {
            let range = Cidr::host(a);
            if !self.taken.iter().any(|t| t.overlaps(&range)) {
                self.claim("", range, "a pod names this address, which is of no pool".into());
            }
        }
    }

    /// Sees to it that this very address will be ours. Says why it cannot be.
    fn have(&mut self, a: IpAddr, in_use: bool) -> Result<(), String> {
        let Some((pool_name, pool)) = self.pools.iter().find(|(_, p)| p.cidr.contains(a)).map(|(n, p)| (*n, *p)) else {
            return Err(format!("{a} lies in no IPPool"));
        };
        let holder = self.snapshot.blocks.iter().find(|(_, b)| b.cidr.contains(a)).map(|(n, b)| (&**n, b));
        let Some((name, block)) = holder else {
            if !self.adopt(pool_name, pool) {
                return Ok(());
            }
            let Some(cidr) = pool.block_of(a) else {
                return Err(format!("{a} lies in no block of IPPool {pool_name}"));
            };
            if self.taken.iter().any(|t| t.overlaps(&cidr)) {
                return Err(format!("{a} lies in a range of nodes or Services"));
            }
            self.claim(pool_name, cidr, format!("{a} is wanted"));
            return Ok(());
        };
        if block.node.as_ref() == Some(self.local.node) {
            return match block.lent.iter().find(|l| l.address == a) {
                Some(l) => Err(format!("{a} is lent to Node {}", l.node)),
                None => Ok(()),
            };
        }
        if block.lent.iter().any(|l| l.address == a && l.node == *self.local.node) {
            return Ok(());
        }
        let Some(owner) = &block.node else {
            self.take_orphan(name, block);
            return Ok(());
        };
        let owner = owner.to_string();
        if pool.strict_affinity && !in_use {
            return Err(format!(
                "{a} lies in a block of Node {owner}, and IPPool {pool_name} lends nothing (strictAffinity)"
            ));
        }
        let me = self.local.node.clone();
        *self.asking.entry(name).or_default() += 1;
        if block.requests.iter().any(|r| r.node == me && r.address == Some(a)) {
            return Err(format!("{a} lies in a block of Node {owner}, which is asked for it"));
        }
        if self.keeper.avoid.contains_key(name) {
            return Err(format!(
                "{a} lies in a block of Node {owner}, which did not lend it: it is in use there, or its agent is away"
            ));
        }
        let edit = self.edit(name, block, format!("{me} asks for {a}"));
        let mut requests = edit.requests.to_vec();
        requests.push(Request { node: me, address: Some(a) });
        edit.requests = requests.into();
        Err(format!("{a} lies in a block of Node {owner}, which is asked for it"))
    }

    /// Whether blocks of a pool may be claimed; if not yet, the pool is told so first: from then on its block size
    /// stands and its deletion waits for its addresses.
    fn adopt(&mut self, name: &str, pool: &IpPool) -> bool {
        if pool.adopted && pool.fixed_size.is_some() {
            return true;
        }
        if pool.terminating {
            return false;
        }
        let mut finalizers: Vec<&str> = pool.finalizers.iter().map(|f| &**f).collect();
        finalizers.push(FINALIZER);
        let patch = json!({"metadata": {
            "resourceVersion": pool.version,
            "finalizers": finalizers,
            "annotations": {BLOCK_SIZE: pool.size().to_string()},
        }});
        let write =
            named(Kind::IPPool, name, WriteOp::Patch(patch), "its first block is about to be claimed".to_owned());
        if !self.out.writes.contains(&write) {
            self.out.writes.push(write);
        }
        false
    }

    fn claim(&mut self, pool: &str, cidr: Cidr, why: String) {
        self.taken.push(cidr);
        self.out.writes.push(create(cidr, pool, self.local.node, format!("{cidr} for {}: {why}", self.local.node)));
    }

    fn take_orphan(&mut self, name: &'a str, block: &'a IpBlock) {
        let me = self.local.node.clone();
        let why = format!("{me} takes the block, whose node is gone");
        let block = self.edit(name, block, why);
        (block.node, block.protected) = (Some(me), true);
    }

    /// One want: claims blocks while there are any, then asks other nodes for what pods wait for.
    fn want(&mut self, want: &Want) {
        if let Some(a) = want.fixed {
            if let Err(why) = self.have(a, false) {
                self.out.problems.push(problem(Kind::Node, self.local.node.as_str(), "fixed address", why));
            }
            return;
        }
        let target = want.waiting + want.spare;
        let mut free = 0;
        for p in &want.pools {
            free += self.free_in(p, target.saturating_sub(free));
        }
        let mut claimed = 0;
        let snapshot = self.snapshot;
        let open: Vec<(&'a str, &'a IpPool)> = want
            .pools
            .iter()
            .filter_map(|n| self.pools.get_key_value(&**n).map(|(n, p)| (*n, *p)))
            .filter(|(n, _)| self.open.contains(n))
            .collect();
        for (name, pool) in &open {
            while free < target && claimed < BURST {
                let orphan = snapshot.blocks.iter().find(|(n, b)| {
                    b.node.is_none() && *b.pool == **name && !b.terminating && !self.edits.contains_key(&***n)
                });
                let size = usize::try_from(1u128 << (pool.cidr.family().bits() - pool.size())).unwrap_or(usize::MAX);
                if let Some((n, b)) = orphan {
                    self.take_orphan(n, b);
                } else {
                    let from = seed(self.local.node.as_str());
                    let Some(cidr) = free_block(pool, &self.taken, &self.reserved, from) else { break };
                    if !self.adopt(name, pool) {
                        // The pool's answer wakes us.
                        return;
                    }
                    self.claim(name, cidr, format!("{free} of {target} addresses of IPPool {name} are free here"));
                }
                claimed += 1;
                free = free.saturating_add(size);
            }
        }
        if free < want.waiting && claimed == 0 {
            self.borrow(want, &open, want.waiting - free);
        }
    }

    /// Asks owners of blocks for `missing` addresses.
    fn borrow(&mut self, want: &Want, open: &[(&'a str, &'a IpPool)], missing: usize) {
        let me = self.local.node;
        let mut missing = missing.min(BURST);
        let lenders: Vec<(&'a str, &'a IpBlock)> = open
            .iter()
            .filter(|(_, p)| !p.strict_affinity)
            .flat_map(|(pool, _)| self.snapshot.blocks.iter().filter(move |(_, b)| *b.pool == **pool))
            .map(|(n, b)| (&**n, b))
            .filter(|(_, b)| {
                !b.terminating && b.node.as_ref().is_some_and(|n| n != me && self.snapshot.nodes.contains_key(n))
            })
            .collect();
        // What is asked already counts.
        for (name, b) in &lenders {
            let n = b.requests.iter().filter(|r| r.node == *me && r.address.is_none()).count().min(missing);
            if n > 0 {
                *self.asking.entry(name).or_default() += n;
                missing -= n;
            }
        }
        let from = usize::try_from(seed(me.as_str()) % 1024).unwrap_or(0);
        let (n, count) = (lenders.len().max(1), lenders.len());
        for i in 0..count {
            if missing == 0 {
                return;
            }
            let (name, b) = lenders[(from + i) % n];
            let asked = b.requests.iter().any(|r| r.node == *me);
            if b.full || asked || self.keeper.avoid.contains_key(name) {
                continue;
            }
            // A small block hardly has more than one to spare.
            let ask = missing.min(usize::try_from(b.cidr.size() / 4).unwrap_or(usize::MAX).max(1));
            *self.asking.entry(name).or_default() += ask;
            let edit = self.edit(name, b, format!("{me} asks for {ask}"));
            let mut requests = edit.requests.to_vec();
            requests.extend((0..ask).map(|_| Request { node: me.clone(), address: None }));
            edit.requests = requests.into();
            missing -= ask;
        }
        if missing > 0 {
            let why = if open.is_empty() {
                format!("none of {} gives addresses on this node", list(&want.pools))
            } else {
                format!(
                    "{missing} more addresses of {} are wanted: all blocks are claimed and no other node has one to lend; \
                     delete pods, or add a pool",
                    list(&want.pools)
                )
            };
            self.out.problems.push(problem(Kind::Node, me.as_str(), "addresses", why));
        }
    }

    /// Requests of ours that are no longer needed, or that nobody answers, are withdrawn.
    fn withdraw(&mut self) {
        let me = self.local.node;
        let snapshot = self.snapshot;
        let mut asked = BTreeMap::new();
        for (name, b) in &snapshot.blocks {
            let mine = b.requests.iter().filter(|r| r.node == *me).count();
            if mine == 0 {
                continue;
            }
            let since = self.keeper.asked.get(name).copied().unwrap_or(self.now);
            let late = self.now.saturating_sub(since) >= UNANSWERED;
            if late {
                self.keeper.avoid.insert(name.clone(), self.now + AVOID);
            }
            if late || !self.asking.contains_key(&**name) {
                let why = if late { "no answer" } else { "no longer needed" };
                let edit = self.edit(name, b, format!("{me} withdraws its request: {why}"));
                edit.requests = edit.requests.iter().filter(|r| r.node != *me).cloned().collect();
            } else {
                self.wake(since + UNANSWERED);
                asked.insert(name.clone(), since);
            }
        }
        // An owner that answered without lending is asked again later.
        for name in self.keeper.asked.keys().filter(|n| !asked.contains_key(*n)) {
            let got = snapshot.blocks.get(name).is_some_and(|b| b.lent.iter().any(|l| l.node == *me));
            if !got && self.asking.contains_key(&**name) {
                self.keeper.avoid.insert(name.clone(), self.now + AVOID);
            }
        }
        if let Some(first) = self.keeper.avoid.values().min().copied() {
            self.wake(first);
        }
        self.keeper.asked = asked;
    }

    /// Deleted pools of which no block is left: of the nodes that say so one is heard.
    fn let_go(&mut self) {
        for (name, pool) in self.snapshot.pools.iter().filter(|(_, p)| p.terminating && p.adopted) {
            if !self.snapshot.blocks.values().any(|b| b.pool == *name) {
                self.out.writes.push(super::let_go(name, pool));
            }
        }
    }

    fn finish(mut self) -> Step {
        self.out.offer.ranges.retain(|_, r| !r.is_empty());
        // Only what lies in an offered range need be excepted.
        let mut except = std::mem::take(&mut self.out.offer.except);
        except.retain(|e| self.out.offer.touches(*e));
        self.out.offer.except = except;
        for (name, e) in self.edits {
            self.out.writes.push(update(name, &e.block, e.why.join("; ")));
        }
        self.keeper.idle = self.idle;
        self.out.problems.sort();
        self.out.problems.dedup();
        self.out
    }
}

fn list(pools: &[Box<str>]) -> String {
    let names: Vec<String> = pools.iter().map(|p| format!("IPPool {p}")).collect();
    if names.is_empty() { "no IPPool".into() } else { names.join(", ") }
}
