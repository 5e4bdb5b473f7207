//! List-then-watch of every kind into one snapshot.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::ListParams;
use kube::core::DynamicResourceScope;
use kube::runtime::watcher;
use resolve::{Changes, ClusterSnapshot, Event, Key, Kind, apply, parse_as};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use types::NodeName;

use crate::api::Api;
use crate::error::chain;

/// Objects a page of a list: while a page is read its objects are held in full, so this bounds the peak.
const PAGE: u32 = 50;
/// First and longest pause after a failed list or watch.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchConfig {
    /// The kinds.
    pub kinds: BTreeSet<Kind>,
    /// Only the pods of this node, when set.
    pub pods_of: Option<NodeName>,
}

impl WatchConfig {
    /// What an agent needs.
    #[must_use]
    pub fn agent() -> Self {
        Self { kinds: Kind::AGENT.into(), pods_of: None }
    }

    /// What controllers need.
    #[must_use]
    pub fn controllers() -> Self {
        // Leases change several times a second, and only announcers ask for them; for ranges of Services only
        // agents, for Endpoints only who mirrors them.
        let others = [Kind::Endpoints, Kind::Lease, Kind::ServiceCidr];
        Self { kinds: Kind::ALL.into_iter().filter(|k| !others.contains(k)).collect(), pods_of: None }
    }
}

/// How far each kind is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InSync {
    /// For each watched kind: whether a whole list of it has been read since the start. It stays true when the server
    /// goes away later: what was known is still the best that is.
    pub kinds: BTreeMap<Kind, bool>,
    /// How many whole lists of each kind were read: more than one means that a watch could not be resumed.
    pub lists: BTreeMap<Kind, u64>,
    /// Kinds that cannot be watched right now, and why.
    pub failing: BTreeMap<Kind, String>,
    /// Kinds that the server does not have, because their definition is missing: in sync, without objects, and looked
    /// for again every few seconds.
    pub absent: BTreeSet<Kind>,
}

impl InSync {
    /// Every kind is in sync: the snapshot is whole, and may be acted on.
    #[must_use]
    pub fn all(&self) -> bool {
        self.kinds.values().all(|s| *s)
    }

    /// The kinds still missing.
    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        self.kinds.iter().filter(|(_, s)| !**s).map(|(k, _)| *k)
    }
}

/// Changes that are kept for those who follow them. Who is further behind looks at everything.
const KEPT: usize = 4096;

#[derive(Default)]
pub(crate) struct State {
    snapshot: ClusterSnapshot,
    pub(crate) sync: InSync,
    /// What changed last, oldest first, and how many changes there were before.
    log: VecDeque<Key>,
    forgotten: u64,
}

impl State {
    pub(crate) fn apply(&mut self, event: Event) {
        for key in apply(&mut self.snapshot, event) {
            if self.log.len() == KEPT {
                self.log.pop_front();
                self.forgotten += 1;
            }
            self.log.push_back(key);
        }
    }

    /// What changed since, and until when this is so.
    fn since(&self, seen: Seen) -> (Changes, Seen) {
        let now = Seen(Some(self.forgotten + self.log.len() as u64));
        let skip = seen.0.and_then(|n| n.checked_sub(self.forgotten)).and_then(|n| usize::try_from(n).ok());
        let changes = skip.map_or(Changes::All, |n| Changes::Some(self.log.iter().skip(n).cloned().collect()));
        (changes, now)
    }
}

/// How far somebody has followed a source's changes; at first, nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen(Option<u64>);

impl Seen {
    /// So many changes since the beginning, of a log that others keep.
    #[must_use]
    pub fn upto(count: u64) -> Self {
        Self(Some(count))
    }

    /// How many changes since the beginning; `None` when nothing was looked at.
    #[must_use]
    pub fn count(self) -> Option<u64> {
        self.0
    }
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Counts changes.
    version: watch::Sender<u64>,
}

impl Shared {
    fn in_sync(&self, kind: Kind) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).sync.kinds.get(&kind) == Some(&true)
    }

    fn absent(&self, kind: Kind) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).sync.absent.contains(&kind)
    }

    pub(crate) fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.version.send_modify(|v| *v += 1);
    }
}

/// A snapshot that follows the API server. Watching ends when this is dropped.
pub struct Source {
    shared: Arc<Shared>,
    seen: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

impl Source {
    /// Starts watching. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(api: &Api, config: WatchConfig) -> Self {
        let mut state = State::default();
        state.sync.kinds = config.kinds.iter().map(|k| (*k, false)).collect();
        let (version, seen) = watch::channel(0);
        let shared = Arc::new(Shared { state: Mutex::new(state), version });
        let mut tasks = JoinSet::new();
        for kind in config.kinds {
            let pods_of = config.pods_of.clone().filter(|_| kind == Kind::Pod);
            tasks.spawn(follow(api.client.clone(), kind, pods_of, Arc::clone(&shared), api.denials()));
        }
        Self { shared, seen, _tasks: tasks }
    }

    /// A source that `feed` fills; its kinds are in sync when it says so. Must be called inside a tokio runtime.
    pub(crate) fn fed<F>(kinds: impl IntoIterator<Item = Kind>, feed: impl FnOnce(Arc<Shared>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut state = State::default();
        state.sync.kinds = kinds.into_iter().map(|k| (k, false)).collect();
        let (version, seen) = watch::channel(0);
        let shared = Arc::new(Shared { state: Mutex::new(state), version });
        let mut tasks = JoinSet::new();
        tasks.spawn(feed(Arc::clone(&shared)));
        Self { shared, seen, _tasks: tasks }
    }

    /// Waits for a change since the last call, of objects or of `InSync`. Many changes may be one.
    pub async fn changed(&mut self) {
        // The sender is in `shared`, which we hold: it cannot be gone.
        let _ = self.seen.changed().await;
    }

    /// Looks at the snapshot. The watchers wait meanwhile: compute, but do not block.
    pub fn read<R>(&self, f: impl FnOnce(&ClusterSnapshot, &InSync) -> R) -> R {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&state.snapshot, &state.sync)
    }

    /// How far each kind is.
    #[must_use]
    pub fn in_sync(&self) -> InSync {
        self.read(|_, s| s.clone())
    }

    /// Waits until every kind is in sync.
    pub async fn wait_in_sync(&mut self) {
        while !self.read(|_, s| s.all()) {
            self.changed().await;
        }
    }

    /// A handle for other threads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// A counter that grows with every change: equal numbers mean an equal snapshot.
    #[must_use]
    pub fn version(&self) -> u64 {
        *self.seen.borrow()
    }
}

/// Looks at a [`Source`]'s snapshot from anywhere, a thread without a runtime included. Cheap to clone; what it shows
/// no longer changes once the source is dropped.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    /// Looks at the snapshot. The watchers wait meanwhile: compute, but do not block.
    pub fn read<R>(&self, f: impl FnOnce(&ClusterSnapshot, &InSync) -> R) -> R {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&state.snapshot, &state.sync)
    }
}

impl Reader {
    /// Looks at the snapshot with what changed since `seen`, and moves it on. The watchers wait meanwhile.
    pub fn read_since<R>(&self, seen: &mut Seen, f: impl FnOnce(&ClusterSnapshot, &Changes) -> R) -> R {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (changes, now) = state.since(*seen);
        *seen = now;
        f(&state.snapshot, &changes)
    }
}

/// How a kind's objects are first read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// As the beginning of a watch (KEP-3157): one object in full at a time.
    Streamed,
    /// In pages, from servers that do not stream.
    Paged,
}

/// One kind, for ever. kube's watcher lists, watches, resumes from the last resource version, and lists anew when the
/// server no longer has it (410), or could not be reached: one whose etcd was restored to an older revision would take up a
/// watch from a version of its future, and say nothing until it gets there.
async fn follow(
    client: kube::Client,
    kind: Kind,
    pods_of: Option<NodeName>,
    shared: Arc<Shared>,
    denials: crate::Denials,
) {
    let (api, fields) = match kind {
        Kind::ConfigMap => {
            let (ns, name) = (resolve::settings::NAMESPACE, resolve::settings::NAME);
            (kube::Api::<Watched>::namespaced_with(client, ns, &kind), Some(format!("metadata.name={name}")))
        }
        Kind::Lease => (kube::Api::<Watched>::namespaced_with(client, resolve::settings::NAMESPACE, &kind), None),
        _ => (kube::Api::all_with(client, &kind), pods_of.map(|n| format!("spec.nodeName={n}"))),
    };
    let mut first = First::Streamed;
    let mut pause = BACKOFF.0;
    loop {
        let config = watcher::Config {
            page_size: Some(PAGE),
            field_selector: fields.clone(),
            // Those of other programs change as often, and are none of ours.
            label_selector: (kind == Kind::Lease).then(|| resolve::load_balancer::ANNOUNCER.to_owned()),
            initial_list_strategy: match first {
                First::Streamed => watcher::InitialListStrategy::StreamingList,
                First::Paged => watcher::InitialListStrategy::ListWatch,
            },
            ..watcher::Config::default()
        };
        let mut stream = pin!(watcher(api.clone(), config));
        let mut listed: Option<BTreeSet<Key>> = None;
        let mut newest = 0;
        while let Some(event) = stream.next().await {
            let e = match event {
                Ok(event) => {
                    pause = BACKOFF.0;
                    if let Some(verb) = verb_of(&event, first) {
                        denials.granted(verb, kind.api().0, kind.api().2);
                    }
                    newest = newest.max(version_of(&event));
                    shared.change(|s| take(s, kind, &mut listed, event));
                    continue;
                }
                Err(e) => e,
            };
            let (refused, message) = match &e {
                watcher::Error::WatchStartFailed(kube::Error::Api(s))
                | watcher::Error::InitialListFailed(kube::Error::Api(s)) => (s.code, s.message.as_str()),
                watcher::Error::WatchError(s) => (s.code, s.message.as_str()),
                _ => (0, ""),
            };
            match refused {
                // The server no longer has our version, the protocol's normal course. The watcher lists anew by
                // itself when a watch says so, but not when the request for one does.
                410 => {
                    tracing::debug!(%kind, "listing anew");
                    tokio::time::sleep(BACKOFF.0).await;
                    if matches!(e, watcher::Error::WatchStartFailed(_)) {
                        break;
                    }
                }
                // A server older than 1.32, or with the feature gate WatchList off.
                400 | 422 if first == First::Streamed && !shared.in_sync(kind) => {
                    tracing::debug!(%kind, "the server does not stream lists: reading pages");
                    first = First::Paged;
                    break;
                }
                // An account that was made before the agent asked for the kind does without it as well.
                404 | 403 if refused == 404 && optional(kind) || kind == Kind::ServiceCidr => {
                    if refused == 403 {
                        denials.note(message);
                    }
                    if !shared.absent(kind) {
                        tracing::info!(%kind, "the server has no such kind: none is what there is, until it is defined");
                        shared.change(|s| gone(s, kind));
                    }
                    tokio::time::sleep(BACKOFF.1).await;
                    break;
                }
                _ => {
                    // A missing right is said once, by `denials`.
                    let denied = (refused == 403).then(|| denials.note(message)).flatten();
                    let why = denied.as_ref().map_or_else(|| chain(&e), ToString::to_string);
                    if denied.is_none() {
                        tracing::warn!(%kind, %why, "cannot watch: trying again");
                    }
                    // Pods that name such a network are refused by name; all others need not wait for it.
                    if denied.is_some() && kind == Kind::NetworkAttachmentDefinition && !shared.in_sync(kind) {
                        shared.change(|s| gone(s, kind));
                    }
                    shared.change(|s| {
                        s.sync.failing.insert(kind, why);
                    });
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                    // Until it answers there is nothing to resume either.
                    let one = ListParams { field_selector: fields.clone(), ..ListParams::default().limit(1) };
                    let now = loop {
                        match api.list(&one).await {
                            Ok(l) => break l.metadata.resource_version.and_then(|v| v.parse::<u64>().ok()),
                            // Who may not list may watch all the same: that right is not missed.
                            Err(kube::Error::Api(s)) if matches!(s.code, 403 | 404) => break None,
                            Err(_) => {}
                        }
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(BACKOFF.1);
                    };
                    let behind = now.is_some_and(|now| now < newest);
                    if behind {
                        tracing::warn!(%kind, newest, ?now, "the server is behind what it said before, as after a restore of etcd");
                    }
                    // A watch is also moved on by bookmarks, which are not shown to us: who could not be reached, or could
                    // not reach its own store, may be behind those as well.
                    if behind || refused == 0 || refused >= 500 {
                        break;
                    }
                }
            }
        }
    }
}

/// The right that let an event through: a list that is streamed is a watch, and one in pages begins before it is asked for.
fn verb_of(event: &watcher::Event<Watched>, first: First) -> Option<&'static str> {
    match event {
        watcher::Event::Apply(_) | watcher::Event::Delete(_) => Some("watch"),
        _ if first == First::Streamed => Some("watch"),
        watcher::Event::Init => None,
        watcher::Event::InitApply(_) | watcher::Event::InitDone => Some("list"),
    }
}

/// The resource version of an event's object; 0 of one without, or that is no number. They can be compared as numbers
/// (KEP-5504); a list's objects are no newer than the list.
fn version_of(event: &watcher::Event<Watched>) -> u64 {
    match event {
        watcher::Event::Init | watcher::Event::InitDone => 0,
        watcher::Event::InitApply(o) | watcher::Event::Apply(o) | watcher::Event::Delete(o) => {
            o.meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
        }
    }
}

/// Whether a server may do without a kind: it is served only where a `CustomResourceDefinition` says so (the API's own
/// groups have no dot or end in `k8s.io`), or from Kubernetes 1.33 on.
fn optional(kind: Kind) -> bool {
    let group = kind.api().0;
    kind == Kind::ServiceCidr || group.contains('.') && !group.ends_with(".k8s.io")
}

/// A kind that the server does not have: nothing is left of it, and that is the whole truth.
fn gone(s: &mut State, kind: Kind) {
    s.sync.failing.remove(&kind);
    for key in s.snapshot.keys(kind) {
        s.apply(Event::Delete(key));
    }
    s.sync.absent.insert(kind);
    s.sync.kinds.insert(kind, true);
}

/// Applies one event. During a list objects are taken one by one, so that no second copy of the kind is ever held;
/// what the list did not name goes at its end.
fn take(s: &mut State, kind: Kind, listed: &mut Option<BTreeSet<Key>>, event: watcher::Event<Watched>) {
    s.sync.failing.remove(&kind);
    match event {
        watcher::Event::Init => *listed = Some(BTreeSet::new()),
        watcher::Event::InitApply(o) | watcher::Event::Apply(o) => {
            let parsed = parse_as(kind, &o.value);
            if let Some(listed) = listed {
                listed.insert(parsed.key.clone());
            }
            s.apply(Event::Put(parsed));
        }
        watcher::Event::Delete(o) => {
            let key = parse_as(kind, &o.value).key;
            s.apply(Event::Delete(key));
        }
        watcher::Event::InitDone => {
            s.sync.absent.remove(&kind);
            if let Some(listed) = listed.take() {
                for key in s.snapshot.keys(kind).difference(&listed) {
                    s.apply(Event::Delete(key.clone()));
                }
            }
            s.sync.kinds.insert(kind, true);
            *s.sync.lists.entry(kind).or_default() += 1;
        }
    }
}

/// An object on its way from the wire to its slim form: JSON, and the little metadata that kube's watcher asks for.
#[derive(Debug, Clone)]
struct Watched {
    meta: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(d)?;
        let text = |p: &str| value.pointer(p).and_then(Value::as_str).map(Into::into);
        let meta = ObjectMeta {
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            resource_version: text("/metadata/resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, value })
    }
}

impl Resource for Watched {
    type DynamicType = Kind;
    type Scope = DynamicResourceScope;

    fn kind(dt: &Kind) -> Cow<'_, str> {
        dt.as_str().into()
    }
    fn group(dt: &Kind) -> Cow<'_, str> {
        dt.api().0.into()
    }
    fn version(dt: &Kind) -> Cow<'_, str> {
        dt.api().1.into()
    }
    fn plural(dt: &Kind) -> Cow<'_, str> {
        dt.api().2.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_falls_behind_looks_at_everything() {
        let mut s = State::default();
        let put = |s: &mut State, name: &str, ip: &str| {
            let v = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n"},
                "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}});
            s.apply(Event::Put(parse_as(Kind::Service, &v)));
        };
        let names = |c: Changes| match c {
            Changes::All => None,
            Changes::Some(keys) => Some(keys.iter().map(|k| k.name.name.to_string()).collect::<Vec<_>>()),
        };
        put(&mut s, "a", "10.0.0.1");
        let (changes, seen) = s.since(Seen::default());
        assert_eq!(names(changes), None);
        assert_eq!(names(s.since(seen).0), Some(vec![]));
        put(&mut s, "a", "10.0.0.1");
        assert_eq!(names(s.since(seen).0), Some(vec![]), "nothing of what is held is another");
        for n in 0..KEPT {
            put(&mut s, "b", &format!("10.0.{}.{}", n / 256, n % 256));
        }
        let (changes, later) = s.since(seen);
        assert_eq!(names(changes), Some(vec!["b".into()]));
        put(&mut s, "c", "10.1.0.0");
        assert_eq!(names(s.since(seen).0), None);
        assert_eq!(names(s.since(later).0), Some(vec!["c".into()]));
    }
}
