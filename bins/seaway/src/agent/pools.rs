//! Address pools on this node: claims, lends, borrows and gives back by the API, and tells the CNI plugin by a file what
//! it may give out. What to do is decided by [`controller::pools::Keeper`]; here is what it needs and what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use controller::pools::{Acks, Keeper, Local, Offer, Step, wants};
use resolve::api::{ApiWrite, WriteOp};
use resolve::pools::default_choice;
use resolve::settings::Ipam;
use resolve::{ClusterSnapshot, Kind, Problem, parse_as};
use source::{Api, Reader, SourceError};
use tokio::sync::Notify;
use types::{Cidr, NodeName, ObjectName};

/// Changes that come within this time are one step.
const GATHER: Duration = Duration::from_millis(5);
/// A step at least so often.
const RESYNC: Duration = Duration::from_secs(30);
/// First and longest pause after something failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What the two threads share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Something changed: the snapshot, or the plugin's records.
    pub changed: Notify,
    /// What could not be had, and why.
    pub problems: Mutex<Vec<Problem>>,
}

/// The keeper and its surroundings.
pub struct Pools {
    api: Api,
    node: NodeName,
    reader: Reader,
    dir: PathBuf,
    shared: Arc<Shared>,
    start: Instant,
    keeper: Keeper,
    acks: Acks,
    /// What the file says.
    file: File,
}

/// What the plugin reads.
enum File {
    /// Not known: it must be read first.
    Unknown,
    /// There is none, or none that the plugin could read either.
    None,
    /// This.
    Says(ipam::Pools),
}

/// What one turn saw and decided.
struct Turn {
    step: Step,
    file: ipam::Pools,
    /// Pools are used, or were: the file is wanted.
    used: bool,
}

impl Pools {
    /// For a plugin that keeps its records in `dir`.
    pub fn new(api: Api, node: NodeName, reader: Reader, dir: PathBuf, shared: Arc<Shared>) -> Self {
        let (keeper, acks, start) = (Keeper::default(), Acks::default(), Instant::now());
        Self { api, node, reader, dir, shared, start, keeper, acks, file: File::Unknown }
    }

    /// For ever.
    pub async fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            let wait = match self.turn().await {
                Ok(wait) => {
                    pause = RETRY.0;
                    wait
                }
                Err(e) => {
                    tracing::warn!("address pools: {e:#}");
                    let now = pause;
                    pause = (pause * 2).min(RETRY.1);
                    tokio::time::sleep(now).await;
                    continue;
                }
            };
            let _ = tokio::time::timeout(wait.min(RESYNC), self.shared.changed.notified()).await;
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Looks, decides, tells the plugin, then the API. Gives how long nothing need be looked at, if nothing changes.
    async fn turn(&mut self) -> anyhow::Result<Duration> {
        // Nothing to keep: an ADD costs the agent nothing here.
        let idle = |s: &ClusterSnapshot| s.settings.ipam == Ipam::NodeCidr && s.pools.is_empty() && s.blocks.is_empty();
        if !matches!(self.file, File::Says(_)) && self.reader.read(|s, sync| !sync.all() || idle(s)) {
            return Ok(RESYNC);
        }
        let path = self.dir.join(ipam::POOLS);
        if matches!(self.file, File::Unknown) {
            self.file = match ipam::Pools::read(&path) {
                Ok(Some(f)) => File::Says(f),
                Ok(None) | Err(ipam::IpamError::Pools { .. }) => File::None,
                Err(e) => return Err(e.into()),
            };
        }
        // After the file was written and while no plugin runs: see `ipam::Pools`.
        let records = ipam::read_settled(&self.dir)?;
        let now = self.start.elapsed();
        let Some(turn) = self.decide(&records, now) else { return Ok(RESYNC) };
        *self.shared.problems.lock().unwrap_or_else(PoisonError::into_inner) = turn.step.problems.clone();
        let mut again = false;
        if turn.used && !matches!(&self.file, File::Says(f) if *f == turn.file) {
            self.file = File::Unknown;
            write(&path, &turn.file).with_context(|| format!("write {}", path.display()))?;
            self.file = File::Says(turn.file);
            again = true;
        }
        let mut failed: BTreeSet<&ObjectName> = BTreeSet::new();
        for w in &turn.step.writes {
            if failed.contains(&w.name) {
                continue;
            }
            tracing::info!("{w}");
            again = true;
            match self.write(w, now).await {
                Ok(()) => {}
                // Another was quicker, or what we saw is old: the watch tells.
                Err(e) if e.is_conflict() || e.is_not_found() => {
                    tracing::debug!("{w}: {e}");
                    failed.insert(&w.name);
                    tokio::time::sleep(RETRY.0).await;
                }
                Err(e) => {
                    // It may have gone through all the same: nothing is decided before that is known.
                    self.ask(w).await;
                    return Err(e).with_context(|| w.to_string());
                }
            }
        }
        if again {
            return Ok(Duration::ZERO);
        }
        Ok(turn.step.wake.map_or(RESYNC, |at| at.saturating_sub(now)))
    }

    /// One step of the keeper on what is known. `None` while the snapshot is not whole.
    fn decide(&mut self, records: &[ipam::Record], now: Duration) -> Option<Turn> {
        let used: BTreeSet<IpAddr> = records.iter().flat_map(|r| r.addresses.iter().copied()).collect();
        let attached =
            records.iter().filter_map(|r| r.pod.as_ref()).map(|p| ObjectName::new(&p.namespace, &p.name)).collect();
        // Without a file the plugin gives nothing; one that cannot be read gives nothing either.
        let offered = match &self.file {
            File::Says(f) => offer(f),
            File::None | File::Unknown => Offer::default(),
        };
        let (node, keeper, acks) = (&self.node, &mut self.keeper, &mut self.acks);
        let mut step = |s: &ClusterSnapshot| {
            let wants = wants(s, node, &attached);
            let step = keeper.step(s, &Local { node, offered: &offered, used: &used, wants: &wants }, now);
            let file = file(s, node, &step);
            let used = s.settings.ipam == Ipam::Pools || !step.offer.ranges.is_empty() || !offered.ranges.is_empty();
            Turn { step, file, used }
        };
        self.reader.read(|s, sync| {
            if !sync.all() {
                return None;
            }
            if acks.is_empty() {
                return Some(step(s));
            }
            // Rare and short: only until the watch has told what the API answered.
            let mut known = s.clone();
            acks.apply(&mut known, now);
            Some(step(&known))
        })
    }

    async fn write(&mut self, w: &ApiWrite, now: Duration) -> Result<(), SourceError> {
        let answer = match &w.op {
            WriteOp::Create(body) => Some(self.api.create(&w.resource, &w.name, body.clone()).await?),
            WriteOp::Patch(patch) => Some(self.api.merge(&w.resource, &w.name, patch).await?),
            WriteOp::Delete { uid, .. } => {
                self.api.delete(&w.resource, &w.name, uid, None).await?;
                self.acks.is_gone(&w.name.name, uid, now);
                None
            }
            other => {
                let why = format!("the keeper of pools never does {other:?}");
                return Err(SourceError::Request { doing: w.to_string(), why });
            }
        };
        if let Some(v) = answer.filter(|_| w.resource.kind == Kind::IPBlock.as_str()) {
            self.acks.is_so(parse_as(Kind::IPBlock, &v), now);
        }
        Ok(())
    }

    /// Asks until the API says what became of a write whose answer was lost.
    async fn ask(&mut self, w: &ApiWrite) {
        if w.resource.kind != Kind::IPBlock.as_str() {
            return;
        }
        let mut pause = RETRY.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
            let now = self.start.elapsed();
            match self.api.get(&w.resource, &w.name).await {
                Ok(Some(v)) => return self.acks.is_so(parse_as(Kind::IPBlock, &v), now),
                Ok(None) => {
                    let uid = self.reader.read(|s, _| s.blocks.get(&*w.name.name).map(|b| b.uid.clone()));
                    return self.acks.is_gone(&w.name.name, &uid.unwrap_or_default(), now);
                }
                Err(e) => tracing::warn!("{w}: what became of it is not known: {e}"),
            }
        }
    }
}

/// The file as the keeper speaks of it.
fn offer(file: &ipam::Pools) -> Offer {
    let ranges = file.pools.iter().filter(|(_, p)| !p.ranges.is_empty());
    Offer {
        ranges: ranges.map(|(n, p)| (n.clone(), p.ranges.iter().copied().collect())).collect(),
        except: file.except.iter().copied().collect(),
    }
}

/// The file that a step asks for.
fn file(s: &ClusterSnapshot, node: &NodeName, step: &Step) -> ipam::Pools {
    let mut out = ipam::Pools::default();
    out.except.extend(&step.offer.except);
    let labels = s.nodes.get(node).map(|n| &n.labels);
    let all: BTreeMap<&str, Cidr> = s.pools.iter().map(|(n, p)| (&**n, p.cidr)).collect();
    for (name, cidr) in all {
        let ranges = step.offer.ranges.get(name).map(|r| r.iter().copied().collect()).unwrap_or_default();
        let pool = s.pools.get(name);
        let wait = match pool {
            Some(p) if !p.open() => format!("IPPool {name} gives no new addresses: it is disabled or being deleted"),
            Some(p) if !labels.is_some_and(|l| p.node_selector.matches(l)) => {
                format!("IPPool {name} does not select Node {node}")
            }
            _ => match step.problems.iter().find(|p| p.why.contains(&format!("IPPool {name}"))) {
                Some(p) => p.why.clone(),
                None => format!("the agent claims a block of IPPool {name}, or borrows an address: try again"),
            },
        };
        let underlay = pool.and_then(|p| p.underlay);
        let underlay = underlay.map(|u| ipam::Underlay { subnet: u.subnet, gateway: u.gateway });
        out.pools.insert(name.into(), ipam::PoolRanges { cidr, ranges, wait: wait.into(), underlay });
    }
    let choice = default_choice(s, node, None, &s.settings.wiring);
    out.default = choice.v4.into_iter().chain(choice.v6).collect();
    out
}

/// A reader sees the old file or the new. Nothing is synced: after a reboot no address of before lives.
fn write(path: &Path, file: &ipam::Pools) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    let write = || {
        let mut f = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        std::io::Write::write_all(&mut f, &serde_json::to_vec(file)?)?;
        std::fs::rename(&new, path)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests;
