//! The datapath thread: sleeps until something changes, runs a pass, tells what it did.

use std::collections::BTreeMap;
use std::io::PipeReader;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use fabric::FabricKernel;
use kernel::{Ct, DirWatch, Monitor, Nftables};
use kernel_api::conntrack::Flow;
use plan::{Caps, Next, Pacer, PacerInput, PacerState, Refused};
use plane_nft::NftKernel;
use resolve::settings::Ipam;
use source::{InSync, Reader, Recorder};
use telemetry::{Kind, NodeCounts, Outcome, PassLine, Plane};
use tokio::sync::watch;
use types::Proto;

use super::condition::{Condition, Network};
use super::conflist;
use super::datapath::{Datapath, Pass, Setup, refused_input};
use super::events;
use super::flannel;
use super::foreign::{self, ServiceProxy};
use super::health_check;
use super::host_ports;
use super::http::Shared;
use super::look::{self, Eyes, Host, Look};
use super::mend::{self, Mend};
use super::network_status::{Statuses, statuses};
use super::node_ports::Taken;
use super::pools;
use super::publish::Wanted;
use super::report;
use super::status;
use super::table::Table;

/// Events that come within this time are one pass. A pass over Services alone is soon over, and what comes meanwhile waits
/// for three times as long as it takes: a burst is gathered by that.
const GATHER: Duration = Duration::from_millis(5);
const GATHER_SERVICES: Duration = Duration::from_millis(1);
/// First and longest pause after a failed pass.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often the loop turns while a look at the machine lasts.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A look that lasts for so long does not end any more: the loop is stuck.
const BLIND: Duration = Duration::from_secs(30);

/// What the thread is given.
pub struct Turn {
    /// Fixed facts.
    pub setup: Setup,
    /// Writes the CNI configuration.
    pub conflist: conflist::Writer,
    /// Where flannel's plugin looks for the node's subnet, if it is to.
    pub flannel_subnet_file: Option<PathBuf>,
    /// How often to look at everything anew.
    pub resync: Duration,
    /// Health, metrics, status.
    pub shared: Arc<Shared>,
    /// The snapshot.
    pub reader: Reader,
    /// What should stand on the Node.
    pub published: watch::Sender<Wanted>,
    /// What should stand among the Node's conditions, once it is known.
    pub condition: watch::Sender<Option<Condition>>,
    /// What leads to it.
    pub network: Network,
    /// Writes Events.
    pub recorder: Recorder,
    /// Which of them were written.
    pub told: events::Told,
    /// What should stand at pods with several networks.
    pub network_status: watch::Sender<Statuses>,
    /// What the files of pods say.
    pub pods: cni::podspec::Published,
    /// The keeper of address pools.
    pub pools: Arc<pools::Shared>,
    /// Whether this agent serves Services.
    pub service_proxy: ServiceProxy,
    /// What of others' rules gets in the way, as last seen; `None` when it is to be looked at.
    pub foreign: Option<Vec<Refused>>,
    /// Node ports that processes have too.
    pub taken: Taken,
    /// What load balancers are told.
    pub checks: watch::Sender<health_check::Checks>,
    /// Services that are dropped here.
    pub no_local: report::NoLocal,
    /// What was heard of and not yet programmed.
    pub unprogrammed: report::Unprogrammed,
    /// What is wrong with a plane since its last pass.
    pub failing: BTreeMap<Plane, String>,
}

/// The datapath of the real kernel.
pub type Real = Datapath<Host, Nftables, NftKernel<Nftables, Ct>, Monitor>;

/// The datapath of this thread's namespace, with a monitor of what others do to it.
pub fn open(setup: Setup) -> anyhow::Result<Real> {
    let host = look::host()?;
    let nft = || Nftables::open().context("open nf_tables: the kernel needs CONFIG_NF_TABLES");
    let ct = Ct::open().context("open conntrack: the kernel needs CONFIG_NF_CT_NETLINK")?;
    let (reads, writes) = (nft()?, nft()?);
    let mut monitor = Monitor::open().context("subscribe to the kernel's changes")?;
    // What we do ourselves is no news.
    for port in [host.rt.port(), writes.port()] {
        monitor.ignore(port).context("leave our own changes out")?;
    }
    monitor.watch_table(plane_nft::table());
    let fabric = FabricKernel::new(host, &Caps::default());
    let mut flows = Ct::open().context("open conntrack")?;
    let in_use = Box::new(move |ours: &[IpAddr]| {
        let mut found = false;
        let mut look = |f: &Flow| {
            found |=
                f.proto == Proto::Tcp && !f.over && (ours.contains(&f.original.src) || ours.contains(&f.reply.dst));
        };
        flows.each(None, &mut look).context("look at the node's connections")?;
        Ok(found)
    });
    let table = Table::new(reads, NftKernel::new(writes, ct), monitor);
    Ok(Datapath::new(setup, fabric, table, in_use))
}

impl Turn {
    /// Runs until the process ends or the kernel can no longer be asked at all.
    ///
    /// # Errors
    /// When a socket to the kernel cannot be opened: a right or a feature is missing, and trying again is no cure.
    pub fn run(mut self, mut woken: PipeReader) -> anyhow::Result<()> {
        let mut datapath = open(self.setup.clone())?;
        std::fs::create_dir_all(&self.setup.ipam_dir)
            .with_context(|| format!("--ipam-dir {}: create it", self.setup.ipam_dir.display()))?;
        let mut records = DirWatch::open(&self.setup.ipam_dir)
            .with_context(|| format!("--ipam-dir {}: watch it", self.setup.ipam_dir.display()))?;
        let mut eyes = Eyes::open(self.setup.clone())?;
        let mut mend = Mend::default();
        // Of whole passes, and of those over Services alone.
        let mut whole = Pacer::new(GATHER, RETRY.0, RETRY.1);
        let mut quick = Pacer::new(GATHER_SERVICES, RETRY.0, RETRY.1);
        let mut last = Duration::ZERO;
        quick.step(PacerInput::Dirty, Duration::ZERO);
        loop {
            let now = self.shared.start.elapsed();
            let until = |p: &Pacer| match p.state() {
                PacerState::Idle => Duration::MAX,
                PacerState::At(t) => t.saturating_sub(now),
            };
            let resync = (last + self.resync).saturating_sub(now);
            let next = if eyes.busy().is_some() { LOOK_AGAIN } else { resync.min(until(&whole)) };
            let wait = if datapath.table.ears.has_heard() { Duration::ZERO } else { next.min(until(&quick)) };
            let fds = [woken.as_fd(), records.as_fd(), datapath.table.ears.as_fd(), eyes.as_fd()];
            let ready = kernel::poll(&fds, Some(wait)).context("wait for changes")?;
            let now = self.shared.start.elapsed();
            if ready.first() == Some(&true) {
                let mut buffer = [0; 4096];
                std::io::Read::read(&mut woken, &mut buffer).context("read the wake-up pipe")?;
                quick.step(PacerInput::Dirty, now);
            }
            if records.changed().context("read what changed among the CNI plugin's records")? {
                self.pools.changed.notify_one();
                datapath.recorded();
                quick.step(PacerInput::Dirty, now);
                whole.step(PacerInput::Dirty, now);
            }
            let changed = datapath.table.ears.changed().context("read the kernel's changes")?;
            if changed.table {
                datapath.table.forget();
                quick.step(PacerInput::Dirty, now);
            } else if let Some(generation) = changed.generation {
                datapath.table.others_went_to(generation);
            }
            let resync = eyes.busy().is_none() && now >= last + self.resync;
            if changed.rt || changed.nft || resync {
                if changed.nft || resync {
                    self.foreign = None;
                }
                whole.step(PacerInput::Dirty, now);
            }
            if eyes.busy().is_none_or(|t| t < BLIND) {
                self.shared.health(|h| h.turned(now));
            }
            if let Some(seen) = eyes.take()? {
                let outcome = self.whole(&mut datapath, &mut mend, seen);
                whole.step(outcome, self.shared.start.elapsed());
                // It was over Services too.
                quick.cancel();
            }
            if quick.take(now) && self.in_sync() {
                if !self.services(&mut datapath) {
                    whole.step(PacerInput::Dirty, now);
                }
                quick.step(PacerInput::Succeeded, self.shared.start.elapsed());
            }
            if eyes.busy().is_none() && whole.take(now) {
                last = now;
                if self.in_sync() {
                    eyes.ask(self.setup.node_addresses(&self.reader))?;
                }
            }
        }
    }

    fn in_sync(&self) -> bool {
        self.reader.read(|_, sync| sync.all())
    }

    /// A whole pass and everything that follows from it.
    fn whole(&mut self, datapath: &mut Real, mend: &mut Mend, seen: anyhow::Result<Look>) -> PacerInput {
        let began = seen.as_ref().map_or_else(|_| Instant::now(), |s| s.began);
        let pass = match seen.and_then(|s| datapath.pass(&self.reader, s)) {
            Ok(p) => p,
            Err(e) => return self.unplanned(&e, began),
        };
        let told = self.follow(datapath, &pass, began);
        let mended = mend.run(&self.setup.ipam_dir, &pass, self.shared.start.elapsed());
        if pass.ok() {
            tell(&self.published, Some(resolve::annotations::published(&pass.intent, pass.vxlan_up())));
            let pools = self.reader.read(|s, _| s.settings.ipam == Ipam::Pools);
            let written = self.conflist.update(&pass, pools);
            let told = self.flannel_subnet_file.as_deref().map(|f| flannel::update(f, &pass, pools));
            let written = written.and(told.unwrap_or(Ok(())));
            self.shared.health(|h| h.conflist(written.clone()));
            self.network(written.map_err(|why| ("NoPodNetwork", why)));
        } else {
            self.network(fabric_failure(&pass));
        }
        let done = pass.ok() && told && mended && !pass.lingers && !datapath.table.is_uncertain();
        if done { PacerInput::Succeeded } else { PacerInput::Failed }
    }

    /// A pass over Services alone, of the machine as it was last seen. Says false when a whole one is needed.
    fn services(&mut self, datapath: &mut Real) -> bool {
        let began = Instant::now();
        match datapath.services(&self.reader) {
            Ok(Some(pass)) => {
                let told = self.follow(datapath, &pass, began);
                let limited = mend::limits(&self.setup.ipam_dir, &pass);
                pass.ok() && told && limited && !pass.unfinished && !datapath.table.is_uncertain()
            }
            Ok(None) => false,
            Err(e) => {
                self.unplanned(&e, began);
                false
            }
        }
    }

    /// A pass that could not even begin.
    fn unplanned(&mut self, e: &anyhow::Error, began: Instant) -> PacerInput {
        let why = format!("nothing was planned: {e:#}");
        let took = began.elapsed();
        telemetry::reconcile_line(&PassLine { heard: "", planes: &[], refused: 0, took, why: Some(&why) });
        let now = self.shared.start.elapsed();
        self.shared.health(|h| {
            for p in Plane::ALL {
                h.pass(*p, Err(why.clone()), now);
            }
        });
        PacerInput::Failed
    }

    /// What follows from every pass. Says whether all went well.
    fn follow(&mut self, datapath: &mut Real, pass: &Pass, began: Instant) -> bool {
        let mut refused = pass.refused.clone();
        let problems = self.pools.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        refused.extend(problems.into_iter().map(refused_input));
        let mode = self.service_proxy;
        let anew = self.foreign.is_none();
        self.taken.follow(&pass.intent, &pass.services, anew, host_ports::listeners);
        refused.extend(self.taken.all().cloned());
        let look = || Nftables::open().map(|mut n| foreign::look(&mut n, mode, &pass.intent)).unwrap_or_default();
        refused.extend(self.foreign.get_or_insert_with(look).iter().cloned());
        self.report(pass, refused, began.elapsed());
        self.no_local.follow(&self.shared.metrics.proxy, &pass.intent, &pass.services);
        let walks = datapath.table.kernel.take_walks();
        report::proxy(&self.shared.metrics.proxy, pass, &walks, &mut self.unprogrammed);
        // Also of a pass that failed: endpoints that are gone are gone.
        let _ = self.checks.send_if_modified(|c| c.update(&pass.intent, &pass.services));
        tell(&self.network_status, self.reader.read(|s, _| statuses(&pass.intent, &pass.records, s)));
        // Early: runtimes may be waiting for them.
        let pods = self.setup.ipam_dir.join(conflist::PODS);
        let told = self.pods.follow(&pods, &pass.intent.pods);
        if let Err(e) = &told {
            tracing::error!("{}: {e}", pods.display());
        }
        if pass.planes.iter().any(|p| matches!(&p.result, Err(e) if e.next() != Next::RetrySoon)) {
            datapath.table.forget();
        }
        told.is_ok()
    }

    /// Tells the Node's condition.
    fn network(&mut self, outcome: Result<(), (&'static str, String)>) {
        let now = self.network.follow(outcome, self.shared.start.elapsed());
        tell(&self.condition, now);
    }

    fn report(&mut self, pass: &Pass, refused: Vec<Refused>, took: Duration) {
        let due = self.told.due(&refused, self.shared.start.elapsed());
        events::tell(&self.recorder, Some(&self.setup.node), &due);
        let (now, m) = (self.shared.start.elapsed(), &self.shared.metrics);
        let mut planes = Vec::new();
        for p in &pass.planes {
            let (outcome, ops, why) = match &p.result {
                Ok(0) => (Outcome::Unchanged, 0, None),
                Ok(n) => (Outcome::Changed, *n, None),
                Err(e) => (Outcome::Failed, 0, Some(e.to_string())),
            };
            m.reconciled(p.plane, outcome, p.took, ops, SystemTime::now());
            m.refused(p.plane, p.refused);
            planes.push((p.plane, outcome, ops));
            match &why {
                Some(e) => self.failing.insert(p.plane, format!("{}: {e}", p.plane)),
                None => self.failing.remove(&p.plane),
            };
            self.shared.health(|h| h.pass(p.plane, why.map_or(Ok(()), Err), now));
        }
        let wrong: Vec<&str> =
            pass.planes.iter().filter_map(|p| self.failing.get(&p.plane)).map(String::as_str).collect();
        let (heard, why) = (pass.heard.to_string(), wrong.join("; "));
        telemetry::reconcile_line(&PassLine {
            heard: &heard,
            planes: &planes,
            refused: refused.len(),
            took,
            why: Some(why.as_str()).filter(|w| !w.is_empty()),
        });
        let i = &pass.intent;
        m.node(NodeCounts {
            attachments: i.attachments.len(),
            services: i.services.len(),
            endpoints: pass.endpoints,
            peers: i.peers.len(),
        });
        let mut status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        for r in refused.iter().filter(|r| !status.refused.contains(r)) {
            tracing::warn!("refused: {r}");
        }
        for r in status.refused.iter().filter(|r: &&Refused| !refused.contains(r)) {
            tracing::info!("no longer refused: {r}");
        }
        let announcing = std::mem::take(&mut status.announcing);
        *status = status::Status {
            announcing,
            node: i.node.to_string(),
            backend: i.backend.to_string(),
            pod_cidrs: i.pod_cidrs.iter().map(ToString::to_string).collect(),
            peers: status::peers(i),
            attachments: i.attachments.len(),
            services: i.services.len(),
            service_proxy: self.service_proxy.to_string(),
            foreign: self.foreign.clone().unwrap_or_default(),
            refused,
            // Told by who is asked for the status.
            denied: Vec::new(),
            failing: self.failing.values().cloned().collect(),
        };
    }
}

/// Says what is so now, if it was not said yet.
fn tell<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    let _ = to.send_if_modified(|said| {
        let changed = *said != now;
        *said = now;
        changed
    });
}

/// What keeps packets from other nodes, if the fabric's pass failed. Service rules that cannot be written are told
/// otherwise: pods are reached without them.
fn fabric_failure(pass: &Pass) -> Result<(), (&'static str, String)> {
    let failed = pass.planes.iter().find(|p| p.plane == Plane::Fabric).and_then(|p| p.result.as_ref().err());
    failed.map_or(Ok(()), |e| Err(("RoutesNotProgrammed", e.to_string())))
}

/// Takes what the source says of its kinds into health and metrics.
pub fn heard(shared: &Shared, sync: &InSync) {
    for (kind, yes) in &sync.kinds {
        let Some(k) = Kind::named(kind.as_str()) else { continue };
        shared.metrics.in_sync(k, *yes);
        let state = match (yes, sync.failing.get(kind)) {
            (true, _) => Ok(()),
            (false, Some(why)) => Err(why.clone()),
            (false, None) => Err("the first list has not ended".to_owned()),
        };
        shared.health(|h| h.source(k, state));
    }
}
