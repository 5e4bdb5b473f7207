//! Load balancer addresses that this node announces on its links. Who announces what is agreed by leases
//! ([`announce::l2`]); here are the leases' requests, the links, and the thread that answers.
//!
//! What answers is this process: when it dies, it is silent, and another node takes over when the lease says so. Where
//! neighbours know the way, packets go on meanwhile, since the datapath outlives the agent.

mod leases;
mod responder;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{PipeWriter, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use announce::Announcer as _;
use announce::l2::{Action, Answer, Machine, Seen, View, Wanted};
use anyhow::Context;
use resolve::load_balancer::{Announcement, announcements};
use resolve::{Key, Kind};
use source::{Api, Note, Reader, Recorder, Source, WatchConfig};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use types::NodeName;

use super::datapath::Setup;
use super::http;
use responder::{Entry, Responder, Shared, lock, now};

/// Nothing is waited for longer than this.
const RESYNC: Duration = Duration::from_secs(30);
/// The last requests of an agent that ends.
const FAREWELL: Duration = Duration::from_millis(1500);

/// The announcer's task and the way to end it.
pub struct Handle {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Handle {
    /// Stops answering, says so to the others, and ends.
    pub async fn leave(self) {
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(FAREWELL, self.task).await;
    }
}

/// What the task works with.
pub struct Elector {
    api: Api,
    node: NodeName,
    reader: Reader,
    recorder: Recorder,
    http: Arc<http::Shared>,
    /// The snapshot changed.
    changed: Arc<Notify>,
    shared: Arc<Shared>,
    wake: PipeWriter,
    machine: Machine,
    /// Watches leases while there is an address to announce.
    source: Option<Source>,
    all: BTreeMap<IpAddr, Announcement>,
    uid: Box<str>,
    keep: u32,
    held: BTreeMap<IpAddr, Duration>,
}

/// Starts it. `changed` is notified when the snapshot changes.
///
/// # Errors
/// When no thread or pipe can be had.
pub fn start(
    api: &Api,
    setup: &Setup,
    reader: Reader,
    recorder: Recorder,
    http: Arc<http::Shared>,
    changed: Arc<Notify>,
) -> anyhow::Result<Handle> {
    let shared = Arc::new(Shared::default());
    let (woken, wake) = std::io::pipe().context("make a pipe")?;
    let responder = Responder { setup: setup.clone(), reader: reader.clone(), shared: Arc::clone(&shared) };
    let after = Arc::clone(&shared);
    let run = move || {
        if let Err(e) = responder.run(woken) {
            tracing::error!("no load balancer address is announced any more: {e:#}: restart the agent");
            // Without links the elector gives up what it holds.
            *lock(&after.links) = responder::Links::default();
            after.changed.notify_one();
        }
    };
    std::thread::Builder::new().name("announcer".into()).spawn(run).context("start the announcer's thread")?;
    let elector = Elector {
        api: api.clone(),
        node: setup.node.clone(),
        reader,
        recorder,
        http,
        changed,
        shared,
        wake,
        machine: Machine::new(setup.node.clone()),
        source: None,
        all: BTreeMap::new(),
        uid: Box::default(),
        keep: 0,
        held: BTreeMap::new(),
    };
    let (stop, stopped) = oneshot::channel();
    Ok(Handle { stop, task: tokio::spawn(elector.run(stopped)) })
}

impl Elector {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut flights: JoinSet<(Action, Answer)> = JoinSet::new();
        let mut fresh = true;
        loop {
            if fresh {
                self.look();
                fresh = false;
            }
            for action in self.step() {
                let (api, node, uid) = (self.api.clone(), self.node.clone(), self.uid.clone());
                flights.spawn(async move {
                    let answer = leases::run(&api, &node, &uid, &action).await;
                    (action, answer)
                });
            }
            let wait = self.machine.wake().map_or(RESYNC, |at| at.saturating_sub(now()).min(RESYNC));
            let leases_changed = async {
                match &mut self.source {
                    Some(s) => s.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = &mut stopped => break,
                () = self.changed.notified() => fresh = true,
                () = self.shared.changed.notified() => {}
                () = leases_changed => {}
                Some(done) = flights.join_next() => {
                    if let Ok((action, answer)) = done {
                        self.machine.done(&action, &answer, now());
                        self.count(&action, &answer);
                    }
                }
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
            }
        }
        // Silent first.
        lock(&self.shared.table).clear();
        for action in self.machine.leave(self.keep) {
            let _ = leases::run(&self.api, &self.node, &self.uid, &action).await;
        }
    }

    /// What is to be announced, from the snapshot.
    fn look(&mut self) {
        let node = &self.node;
        let seen = self.reader.read(|s, sync| {
            let uid = s.nodes.get(node).map(|n| n.uid.clone());
            // A snapshot that is not whole takes nothing away.
            sync.all().then(|| (announcements(s), uid.unwrap_or_default(), s.settings.l2_restart))
        });
        if let Some((all, uid, keep)) = seen {
            (self.all, self.uid, self.keep) = (all, uid, keep);
        }
        if self.all.is_empty() && self.held.is_empty() {
            self.source = None;
        } else if self.source.is_none() {
            let kinds = BTreeSet::from([Kind::Lease]);
            self.source = Some(Source::start(&self.api, WatchConfig { kinds, pods_of: None }));
        }
    }

    fn step(&mut self) -> Vec<Action> {
        let Some(source) = &self.source else { return Vec::new() };
        let links = lock(&self.shared.links).clone();
        let want: BTreeMap<IpAddr, Wanted> = self
            .all
            .iter()
            .map(|(ip, a)| (*ip, Wanted { nodes: a.nodes.clone(), able: !links.of(&a.interfaces).is_empty() }))
            .collect();
        let (leases, live): (BTreeMap<Box<str>, Seen>, bool) =
            source.read(|s, sync| (leases::all(&s.leases), sync.all() && sync.failing.is_empty()));
        let time = now();
        let actions = self.machine.step(&View { want: &want, leases: &leases, live }, time);
        let held = self.machine.announced();
        let tell = self.machine.tell(time);
        let table: BTreeMap<IpAddr, Entry> = held
            .iter()
            .map(|(ip, until)| {
                let interfaces = self.all.get(ip).map(|a| a.interfaces.clone()).unwrap_or_default();
                (*ip, Entry { until: *until, interfaces })
            })
            .collect();
        *lock(&self.shared.table) = table;
        lock(&self.shared.tell).extend(tell.iter().copied());
        let same = held.keys().eq(self.held.keys());
        if !same {
            self.report(&held);
        }
        self.held = held;
        if !same || !tell.is_empty() {
            // A full pipe means that the thread has not looked yet, and will.
            let _ = self.wake.write(&[0]);
        }
        actions
    }

    /// What became of a lease of an address, for the metrics.
    fn count(&self, action: &Action, answer: &Answer) {
        let Action::Take { seen, .. } = action else { return };
        let another = |s: &Seen| !s.holder.is_empty() && *s.holder != *self.node.as_str();
        match answer {
            Answer::Conflict => self.http.metrics.announcing.conflict(),
            Answer::Is(_) if seen.as_ref().is_some_and(another) => self.http.metrics.announcing.took_over(),
            _ => {}
        }
    }

    /// Says what is new.
    fn report(&self, held: &BTreeMap<IpAddr, Duration>) {
        for ip in held.keys().filter(|ip| !self.held.contains_key(*ip)) {
            let Some(a) = self.all.get(ip) else { continue };
            let services: Vec<String> = a.services.iter().map(ToString::to_string).collect();
            tracing::info!(%ip, services = services.join(","), "announcing");
            for name in &a.services {
                self.recorder.note(Note {
                    about: Key { kind: Kind::Service, name: name.clone() },
                    warning: false,
                    reason: "Announced".into(),
                    message: format!("node {} answers for {ip} on the link", self.node),
                });
            }
        }
        for ip in self.held.keys().filter(|ip| !held.contains_key(*ip)) {
            tracing::info!(%ip, "no longer announcing");
        }
        let other = |a: &BTreeMap<IpAddr, Duration>, b: &BTreeMap<IpAddr, Duration>| {
            a.keys().filter(|ip| !b.contains_key(*ip)).count() as u64
        };
        self.http.metrics.announcing.now(held.len(), other(held, &self.held), other(&self.held, held));
        lock(&self.http.status).announcing = held.keys().map(ToString::to_string).collect();
    }
}
