//! Events: what a person sees at the end of `kubectl describe`.

mod correlate;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use resolve::Key;
use resolve::api::Resource;
use serde_json::{Value, json};
use tokio::sync::Notify;
use types::ObjectName;

use crate::api::{Api, rfc3339};
use crate::error::SourceError;
use correlate::{Correlator, Due, Id};

/// Between two writes, and after one that failed at most.
const PACE: Duration = Duration::from_millis(100);
const BACKOFF: Duration = Duration::from_secs(30);
/// How often a write that the server cannot take is tried.
const TRIES: u32 = 12;
/// Event objects whose count is remembered.
const REMEMBERED: usize = 1024;
/// The longest message that the API takes.
const LONGEST: usize = 1000;

/// Something that a person should see at an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub about: Key,
    /// `Warning`, else `Normal`.
    pub warning: bool,
    /// One word: `NotOnLink`.
    pub reason: String,
    /// For a person: what is wrong and what to do.
    pub message: String,
}

struct Shared {
    correlator: Mutex<Correlator>,
    start: Instant,
    wake: Notify,
}

/// Writes Events. Telling it something never waits; writing happens in a task of its own, at most ten a second, merged
/// and bounded. Ends when the last handle is dropped. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    _task: Arc<tokio::task::JoinSet<()>>,
}

impl Recorder {
    /// Starts the task. Must be called inside a tokio runtime. `component` says who speaks (`seaway-agent`), `host` on
    /// which node, empty when on none.
    #[must_use]
    pub fn start(api: &Api, component: &str, host: &str) -> Self {
        let shared = Arc::new(Shared { correlator: Mutex::default(), start: Instant::now(), wake: Notify::new() });
        let mut task = tokio::task::JoinSet::new();
        let writer = Writer {
            api: api.clone(),
            component: component.into(),
            host: host.into(),
            counts: BTreeMap::new(),
            order: VecDeque::new(),
        };
        task.spawn(run(writer, Arc::clone(&shared)));
        Self { shared, _task: Arc::new(task) }
    }

    /// One that writes nothing, where there is no API.
    #[must_use]
    pub fn silent() -> Self {
        let shared = Arc::new(Shared { correlator: Mutex::default(), start: Instant::now(), wake: Notify::new() });
        Self { shared, _task: Arc::default() }
    }

    /// Tells something; from any thread, without waiting.
    pub fn note(&self, note: Note) {
        let now = self.shared.start.elapsed();
        self.shared.correlator.lock().unwrap_or_else(PoisonError::into_inner).take(note, now);
        self.shared.wake.notify_one();
    }
}

async fn run(mut writer: Writer, shared: Arc<Shared>) {
    let lock = || shared.correlator.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut pause, mut tries) = (PACE, 0);
    loop {
        let (next, dropped) = {
            let mut c = lock();
            (c.next(), c.dropped())
        };
        if dropped > 0 {
            tracing::debug!(dropped, "events left out: too many at once");
        }
        let Some((id, due)) = next else {
            shared.wake.notified().await;
            continue;
        };
        match writer.write(&id, &due, shared.start).await {
            Ok(()) => (pause, tries) = (PACE, 0),
            Err(e) if e.is_transport() && tries < TRIES => {
                tries += 1;
                pause = (pause * 2).min(BACKOFF);
                lock().back(id, due);
            }
            Err(e) => {
                tries = 0;
                tracing::debug!("an event about {} could not be written: {e}", id.about);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

struct Writer {
    api: Api,
    component: String,
    host: String,
    /// The counts of events written, by name, and the order they came in.
    counts: BTreeMap<ObjectName, u64>,
    order: VecDeque<ObjectName>,
}

fn events() -> Resource {
    Resource { group: "".into(), version: "v1".into(), kind: "Event".into(), plural: "events".into() }
}

/// FNV-1a, 64 bits: the same text has the same name also after a restart.
fn fnv(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|p| p.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

impl Writer {
    /// The Event of a note about the object of this uid. Those of cluster-scoped objects are in namespace `default`, as
    /// Kubernetes has it. The same note has the same name, so that after a restart it goes on counting; of an object that
    /// was made anew it is another, as `kubectl describe` asks by uid and what was said of the old one goes with time.
    fn name(&self, id: &Id, uid: &str) -> ObjectName {
        let about = &id.about.name;
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
        let (kind, warning) = (id.about.kind.as_str(), if id.warning { "w" } else { "" });
        let hash = fnv(&[&self.component, &self.host, kind, uid, &id.reason, &id.message, warning]);
        // The whole may have 253 characters.
        let short: String = about.name.chars().take(230).collect();
        ObjectName::new(namespace, &format!("{}.{hash:016x}", short.trim_end_matches(['.', '-'])))
    }

    async fn write(&mut self, id: &Id, due: &Due, start: Instant) -> Result<(), SourceError> {
        let about = &id.about;
        // Its uid is what `kubectl describe` looks for; an object that is gone has nobody who looks.
        let Some(object) = self.api.get(&about.kind.into(), &about.name).await? else { return Ok(()) };
        let meta = |k: &str| object["metadata"][k].clone();
        let name = self.name(id, meta("uid").as_str().unwrap_or_default());
        // The time of day now, less how long ago it was.
        let at = |t: Duration| {
            let ago = start.elapsed().saturating_sub(t);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            rfc3339(now.saturating_sub(ago).as_secs())
        };
        let message: String = due.note.message.chars().take(LONGEST).collect();
        if let Some(count) = self.counts.get(&name).map(|n| n + due.count)
            && self.again(&name, count, &at(due.last), &message).await?
        {
            return Ok(());
        }
        let mut involved = json!({"apiVersion": about.kind.api_version(), "kind": about.kind.as_str(),
            "name": &*about.name.name, "uid": meta("uid"), "resourceVersion": meta("resourceVersion")});
        if !about.name.namespace.is_empty() {
            involved["namespace"] = (*about.name.namespace).into();
        }
        let source = if self.host.is_empty() {
            json!({"component": self.component})
        } else {
            json!({"component": self.component, "host": self.host})
        };
        let body = json!({
            "involvedObject": involved, "reason": id.reason, "message": message,
            "type": if id.warning { "Warning" } else { "Normal" }, "source": source,
            "reportingComponent": self.component, "reportingInstance": self.host,
            "firstTimestamp": at(due.first), "lastTimestamp": at(due.last), "count": due.count,
        });
        match self.api.create(&events(), &name, body).await {
            Ok(_) => self.remember(name, due.count),
            // Of a time before a restart.
            Err(e) if e.is_conflict() => {
                let old = self.api.get(&events(), &name).await?.unwrap_or_default();
                let count = old["count"].as_u64().unwrap_or(0) + due.count;
                self.again(&name, count, &at(due.last), &message).await?;
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Counts an Event that is there; `false` when it is not.
    async fn again(&mut self, name: &ObjectName, count: u64, at: &str, message: &str) -> Result<bool, SourceError> {
        let patch: Value = json!({"count": count, "lastTimestamp": at, "message": message});
        match self.api.merge(&events(), name, &patch).await {
            Ok(_) => {
                self.remember(name.clone(), count);
                Ok(true)
            }
            // Events go after a while.
            Err(e) if e.is_not_found() => {
                self.counts.remove(name);
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn remember(&mut self, name: ObjectName, count: u64) {
        if self.counts.insert(name.clone(), count).is_none() {
            self.order.push_back(name);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.counts.remove(&oldest);
            }
        }
    }
}
