//! The objects: a redb file that holds them, an index in memory that serves them, and a bounded history for watches.
//!
//! One thread owns the file. It takes the waiting writes, runs each against the state plus what the batch has done so
//! far, commits the batch durably, publishes it to memory, and only then answers. So an acknowledged write is on disk,
//! a reader never sees an object that a crash could take back, and many writers share one fsync.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableTable, TableDefinition};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ServeError;
use crate::crd::Registry;
use crate::error::{Result, Status};
use crate::resource::{Claim, RESOURCES, Resource, definitions};
use crate::util::{obj, str_at};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// `revision`: the last one given; `kind/<storage>`: the last one that touched that kind; `format`: of this file.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// How many writes share one commit at most.
const BATCH: usize = 64;
/// How many bytes of objects the history of one kind keeps alive at most.
const HISTORY_BYTES: usize = 8 << 20;

/// One version of one object, as JSON text ready to send, with what selectors need.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) rev: u64,
    pub(crate) json: Bytes,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// In the order of the resource's `fields`.
    pub(crate) fields: Box<[Box<str>]>,
    pub(crate) uid: Box<str>,
    /// Uids of the owners.
    pub(crate) owners: Box<[Box<str>]>,
    pub(crate) claims: Box<[Claim]>,
}

impl Stored {
    fn new(res: &Resource, rev: u64, v: &Value) -> Self {
        let labels = v["metadata"]["labels"].as_object();
        let fields = res.fields.iter().map(|f| (f.get)(v).into_owned().into_boxed_str()).collect();
        let owners = crate::util::list_at(v, &["metadata", "ownerReferences"]);
        Self {
            rev,
            json: Bytes::from(v.to_string()),
            labels: labels
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or("").into()))
                .collect(),
            fields,
            uid: str_at(v, &["metadata", "uid"]).into(),
            owners: owners.iter().map(|o| str_at(o, &["uid"]).into()).collect(),
            claims: (res.claims)(v).into(),
        }
    }

    /// The object as a value.
    pub(crate) fn value(&self) -> Value {
        // What is stored was printed from a value, so it parses.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

/// What happened to one object.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) rev: u64,
    pub(crate) key: Box<str>,
    /// The object now; of a deletion its last state, with the deletion's revision.
    pub(crate) object: Arc<Stored>,
    pub(crate) prev: Option<Arc<Stored>>,
    pub(crate) deleted: bool,
}

/// Everything of one kind. Keys are `namespace/name`, or `name` for kinds without namespace.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) objects: BTreeMap<Box<str>, Arc<Stored>>,
    history: VecDeque<Event>,
    history_bytes: usize,
    /// A watch from before this revision may have missed something.
    pub(crate) since: u64,
    notify: watch::Sender<u64>,
    /// The definition of this custom kind is gone: whoever watches has nothing more to wait for.
    pub(crate) over: bool,
}

impl Kind {
    fn new(since: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            since,
            notify: watch::Sender::new(0),
            over: false,
        }
    }

    /// The events after `rev`, oldest first; `None` when some are forgotten.
    pub(crate) fn after(&self, rev: u64) -> Option<impl Iterator<Item = &Event>> {
        if rev < self.since {
            return None;
        }
        let from = self.history.partition_point(|e| e.rev <= rev);
        Some(self.history.range(from..))
    }

    /// How many wait for changes.
    pub(crate) fn watchers(&self) -> usize {
        self.notify.receiver_count()
    }

    /// The objects under a prefix and after a key, in key order.
    pub(crate) fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Stored>)> + use<'a> {
        let from: Bound<Box<str>> = match after {
            Some(a) if a >= prefix => Bound::Excluded(a.into()),
            _ => Bound::Included(prefix.into()),
        };
        self.objects
            .range((from, Bound::Unbounded))
            .map(|(k, v)| (&**k, v))
            .take_while(move |(k, _)| k.starts_with(prefix))
    }

    fn push(&mut self, e: Event, limit: usize) {
        self.history_bytes += e.object.json.len();
        self.history.push_back(e);
        while self.history.len() > limit || (self.history_bytes > HISTORY_BYTES && self.history.len() > 1) {
            if let Some(old) = self.history.pop_front() {
                self.history_bytes -= old.object.json.len();
                self.since = old.rev;
            }
        }
    }
}

/// The state in memory: what readers see.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: u64,
    /// By [`Resource::storage`].
    pub(crate) kinds: HashMap<Arc<str>, Kind>,
    /// What the stored definitions serve.
    pub(crate) custom: Arc<Registry>,
    /// Who holds an address or a port.
    claims: HashMap<Claim, Box<str>>,
    /// Stands for a kind that is gone.
    none: Kind,
    /// Kinds whose definition is gone, oldest first: kept a while for watchers to read their last events.
    ended: VecDeque<Arc<str>>,
}

/// How many kinds without definition are remembered.
const ENDED: usize = 16;

impl State {
    pub(crate) fn kind(&self, res: &Resource) -> &Kind {
        self.kinds.get(&res.storage).unwrap_or(&self.none)
    }

    /// The kind of a group, version and plural.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let hit = |r: &&Arc<Resource>| r.group == group && r.version == version && r.plural == plural;
        RESOURCES.iter().find(hit).or_else(|| self.custom.resources().find(hit)).cloned()
    }

    /// Every kind that is served, the table's first.
    pub(crate) fn resources(&self) -> Vec<Arc<Resource>> {
        RESOURCES.iter().chain(self.custom.resources()).cloned().collect()
    }

    /// Follows a change of a definition: its kinds are served from now on, or no longer.
    fn redefine(&mut self, name: &str, object: Option<&Stored>, rev: u64) {
        let mut custom = Registry::clone(&self.custom);
        custom.set(name, object.map(Stored::value).as_ref(), rev);
        self.custom = Arc::new(custom);
        if object.is_some() {
            self.ended.retain(|n| **n != *name);
            self.kinds.entry(name.into()).or_insert_with(|| Kind::new(rev)).over = false;
        } else if let Some(kind) = self.kinds.get_mut(name) {
            kind.over = true;
            kind.notify.send_replace(rev);
            self.ended.push_back(name.into());
            if self.ended.len() > ENDED
                && let Some(oldest) = self.ended.pop_front()
            {
                self.kinds.remove(&oldest);
            }
        }
    }
}

#[derive(Debug)]
struct Change {
    storage: Arc<str>,
    key: Box<str>,
    object: Arc<Stored>,
    deleted: bool,
}

/// The view of one write: the state plus what this batch has changed.
pub(crate) struct Tx<'a> {
    state: &'a State,
    log: Vec<Change>,
    /// Index into `log` of the last change of an object.
    overlay: HashMap<(Arc<str>, Box<str>), usize>,
}

impl Tx<'_> {
    pub(crate) fn get(&self, res: &Resource, key: &str) -> Option<Arc<Stored>> {
        match self.overlay.get(&(res.storage.clone(), key.into())) {
            Some(i) => self.log.get(*i).filter(|c| !c.deleted).map(|c| c.object.clone()),
            None => self.state.kind(res).objects.get(key).cloned(),
        }
    }

    fn next(&self) -> u64 {
        self.state.revision + self.log.len() as u64 + 1
    }

    fn record(&mut self, res: &Resource, key: &str, mut v: Value, deleted: bool) -> Arc<Stored> {
        let rev = self.next();
        obj(&mut v, "metadata").insert("resourceVersion".into(), rev.to_string().into());
        let object = Arc::new(Stored::new(res, rev, &v));
        self.overlay.insert((res.storage.clone(), key.into()), self.log.len());
        self.log.push(Change { storage: res.storage.clone(), key: key.into(), object: object.clone(), deleted });
        object
    }

    /// The kind as it is now: a custom kind may have been redefined or have gone since the request was read.
    pub(crate) fn current(&self, res: &Arc<Resource>) -> Result<Arc<Resource>> {
        let Some(custom) = &res.custom else { return Ok(res.clone()) };
        let gone = Status::no_such_path;
        let place = (definitions().storage.clone(), Box::from(&*custom.definition));
        match self.overlay.get(&place).and_then(|i| self.log.get(*i)) {
            None => self.state.find(&res.group, &res.version, &res.plural).ok_or_else(gone),
            Some(c) if c.deleted => Err(gone()),
            Some(c) => {
                let mut registry = Registry::default();
                registry.set(&c.key, Some(&c.object.value()), c.object.rev);
                registry.resources().find(|r| r.version == res.version).cloned().ok_or_else(gone)
            }
        }
    }

    /// Every kind that objects are stored under, each once.
    pub(crate) fn storages(&self) -> Vec<Arc<Resource>> {
        RESOURCES.iter().filter(|r| !r.view).cloned().chain(self.state.custom.storages()).collect()
    }

    /// Writes an object, giving it the next revision.
    pub(crate) fn put(&mut self, res: &Resource, key: &str, v: Value) -> Arc<Stored> {
        self.record(res, key, v, false)
    }

    /// Removes an object; `v` is the state that watchers are told.
    pub(crate) fn remove(&mut self, res: &Resource, key: &str, v: Value) -> Arc<Stored> {
        self.record(res, key, v, true)
    }

    /// The objects of a kind under a prefix, in key order.
    pub(crate) fn list(&self, res: &Resource, prefix: &str) -> Vec<(Box<str>, Arc<Stored>)> {
        let mut out: BTreeMap<Box<str>, Arc<Stored>> =
            self.state.kind(res).range(prefix, None).map(|(k, v)| (k.into(), v.clone())).collect();
        for ((storage, key), i) in &self.overlay {
            if *storage == res.storage && key.starts_with(prefix) {
                match self.log.get(*i) {
                    Some(c) if !c.deleted => out.insert(key.clone(), c.object.clone()),
                    _ => out.remove(key),
                };
            }
        }
        out.into_iter().collect()
    }

    /// Whether another object than `key` holds the claim.
    pub(crate) fn claimed(&self, res: &Resource, claim: &Claim, key: &str) -> bool {
        let held = self.state.claims.get(claim);
        if let Some(holder) = held
            && &**holder != key
            && !self.overlay.contains_key(&(res.storage.clone(), holder.clone()))
        {
            return true;
        }
        self.overlay.iter().any(|((s, k), i)| {
            *s == res.storage
                && &**k != key
                && self.log.get(*i).is_some_and(|c| !c.deleted && c.object.claims.contains(claim))
        })
    }

    fn rollback(&mut self, mark: usize) {
        self.log.truncate(mark);
        self.overlay.clear();
        for (i, c) in self.log.iter().enumerate() {
            self.overlay.insert((c.storage.clone(), c.key.clone()), i);
        }
    }
}

type Done = Box<dyn FnOnce(std::result::Result<(), Status>) + Send>;
type Job = Box<dyn FnOnce(&mut Tx<'_>) -> Done + Send>;

/// The open store.
#[derive(Debug)]
pub(crate) struct Store {
    state: Arc<RwLock<State>>,
    jobs: mpsc::Sender<Job>,
}

/// Waits for the writer thread, so that the file is closed.
#[derive(Debug)]
pub(crate) struct Writer(std::thread::JoinHandle<()>);

impl Writer {
    pub(crate) fn join(self) {
        let _ = self.0.join();
    }
}

fn store_error(path: &Path, e: &dyn std::fmt::Display) -> ServeError {
    let text = e.to_string();
    let full = text.contains("No space left") || text.contains("os error 28");
    ServeError::Store {
        path: path.to_path_buf(),
        problem: text,
        fix: if full {
            "free some space on that file system"
        } else {
            "check that the file is a store of this server and readable and writable for this user; move it away to begin empty"
        },
    }
}

fn open_db(path: &Path) -> std::result::Result<Database, ServeError> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| store_error(path, &e))?;
    }
    // Secrets live here: the file is the user's own from its first byte.
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    drop(file.map_err(|e| store_error(path, &e))?);
    Database::builder().set_cache_size(4 << 20).create(path).map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => ServeError::StoreBusy(path.to_path_buf()),
        other => store_error(path, &other),
    })
}

fn db_key(storage: &str, key: &str) -> String {
    format!("{storage}/{key}")
}

/// The stored objects of one kind.
fn read_kind(
    objects: &impl ReadableTable<&'static str, &'static [u8]>,
    res: &Resource,
    since: u64,
    claims: &mut HashMap<Claim, Box<str>>,
) -> std::result::Result<Kind, redb::Error> {
    let mut kind = Kind::new(since);
    let (from, to) = (format!("{}/", res.storage), format!("{}0", res.storage));
    for row in objects.range(from.as_str()..to.as_str())? {
        let (k, v) = row?;
        let key: Box<str> = k.value()[from.len()..].into();
        let value: Value = serde_json::from_slice(v.value())
            .map_err(|e| redb::Error::Corrupted(format!("object {} is no JSON: {e}", k.value())))?;
        let rev = str_at(&value, &["metadata", "resourceVersion"]).parse().unwrap_or(0);
        let stored = Arc::new(Stored::new(res, rev, &value));
        for c in &stored.claims {
            claims.insert(*c, key.clone());
        }
        kind.objects.insert(key, stored);
    }
    Ok(kind)
}

fn load(db: &Database) -> std::result::Result<State, redb::Error> {
    let mut state = State {
        revision: 1,
        kinds: HashMap::new(),
        custom: Arc::default(),
        claims: HashMap::new(),
        none: Kind { over: true, ..Kind::new(0) },
        ended: VecDeque::new(),
    };
    let tx = db.begin_write()?;
    {
        let mut meta = tx.open_table(META)?;
        let found = meta.get("format")?.map(|v| v.value());
        match found {
            None => drop(meta.insert("format", FORMAT)?),
            Some(FORMAT) => {}
            Some(other) => {
                return Err(redb::Error::Corrupted(format!("the file has format {other}, this server knows {FORMAT}")));
            }
        }
        state.revision = meta.get("revision")?.map_or(1, |v| v.value());
        let objects = tx.open_table(OBJECTS)?;
        let since = |storage: &str| {
            Ok::<_, redb::Error>(meta.get(format!("kind/{storage}").as_str())?.map_or(0, |v| v.value()))
        };
        for res in RESOURCES.iter().filter(|r| !r.view) {
            let kind = read_kind(&objects, res, since(&res.storage)?, &mut state.claims)?;
            state.kinds.insert(res.storage.clone(), kind);
        }
        let defined: Vec<(Box<str>, Arc<Stored>)> =
            state.kind(definitions()).objects.iter().map(|(k, o)| (k.clone(), o.clone())).collect();
        for (name, o) in defined {
            state.redefine(&name, Some(&o), o.rev);
        }
        for res in state.custom.storages() {
            let kind = read_kind(&objects, &res, since(&res.storage)?, &mut state.claims)?;
            state.kinds.insert(res.storage.clone(), kind);
        }
    }
    tx.commit()?;
    Ok(state)
}

fn persist(db: &Database, revision: u64, log: &[Change]) -> std::result::Result<(), redb::Error> {
    let tx = db.begin_write()?;
    {
        let mut objects = tx.open_table(OBJECTS)?;
        let mut meta = tx.open_table(META)?;
        for c in log {
            let key = db_key(&c.storage, &c.key);
            if c.deleted {
                objects.remove(key.as_str())?;
            } else {
                objects.insert(key.as_str(), &*c.object.json)?;
            }
            meta.insert(format!("kind/{}", c.storage).as_str(), c.object.rev)?;
        }
        meta.insert("revision", revision)?;
    }
    tx.commit()?;
    Ok(())
}

fn publish(state: &mut State, log: Vec<Change>, history: usize) {
    for c in log {
        let rev = c.object.rev;
        state.revision = rev;
        if c.storage == definitions().storage {
            state.redefine(&c.key, Some(&*c.object).filter(|_| !c.deleted), rev);
        }
        // A definition and the objects of its kind may come and go in one batch.
        let kind = state.kinds.entry(c.storage).or_insert_with(|| Kind::new(rev));
        let prev =
            if c.deleted { kind.objects.remove(&c.key) } else { kind.objects.insert(c.key.clone(), c.object.clone()) };
        for claim in prev.iter().flat_map(|p| p.claims.iter()) {
            if state.claims.get(claim) == Some(&c.key) {
                state.claims.remove(claim);
            }
        }
        if !c.deleted {
            for claim in &c.object.claims {
                state.claims.insert(*claim, c.key.clone());
            }
        }
        kind.push(Event { rev, key: c.key, object: c.object, prev, deleted: c.deleted }, history);
        kind.notify.send_replace(rev);
    }
}

/// Closes and opens the file after an error of the system below: redb wants it so. What is on disk then may be one commit
/// ahead of memory, when the error came after the point of no return; memory follows, and watchers list again.
fn reopen(path: &Path, state: &RwLock<State>) -> std::result::Result<Database, ServeError> {
    let db = open_db(path)?;
    let disk = load(&db).map_err(|e| store_error(path, &e))?;
    let mut memory = state.write().unwrap_or_else(PoisonError::into_inner);
    if disk.revision != memory.revision {
        memory.revision = disk.revision;
        memory.claims = disk.claims;
        memory.custom = disk.custom;
        let mut kinds = disk.kinds;
        for (storage, old) in &mut memory.kinds {
            let new = kinds.remove(storage);
            old.over = new.is_none();
            old.objects = new.map(|k| k.objects).unwrap_or_default();
            old.history.clear();
            old.history_bytes = 0;
            old.since = disk.revision;
            old.notify.send_replace(disk.revision);
        }
        memory.kinds.extend(kinds.into_iter().map(|(s, k)| (s, Kind { since: disk.revision, ..k })));
    }
    Ok(db)
}

/// The writer: see the head of this file.
fn run(db: Database, path: &Path, state: &RwLock<State>, jobs: &mut mpsc::Receiver<Job>, history: usize) {
    let mut open = Some(db);
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let mut result = Ok(());
        if open.is_none() {
            open = reopen(path, state).map_err(|e| result = Err(Status::unavailable(e.to_string()))).ok();
        }
        let (log, done) = {
            let guard = read(state);
            let mut tx = Tx { state: &guard, log: Vec::new(), overlay: HashMap::new() };
            let done: Vec<Done> = batch.into_iter().map(|job| job(&mut tx)).collect();
            (tx.log, done)
        };
        if let (Some(db), Some(last)) = (&open, log.last()) {
            match persist(db, last.object.rev, &log) {
                Ok(()) => publish(&mut state.write().unwrap_or_else(PoisonError::into_inner), log, history),
                Err(e) => {
                    let e = store_error(path, &e);
                    tracing::error!(error = %e, "a write could not be stored");
                    result = Err(Status::unavailable(e.to_string()));
                    open = None;
                }
            }
        }
        for d in done {
            d(result.clone());
        }
    }
}

fn read(state: &RwLock<State>) -> RwLockReadGuard<'_, State> {
    // A panic while publishing cannot leave the maps half-written in a way that reading makes worse.
    state.read().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens or creates the file, loads every object, starts the writer.
    pub(crate) fn open(path: &Path, history: usize) -> std::result::Result<(Self, Writer), ServeError> {
        let db = open_db(path)?;
        let state = Arc::new(RwLock::new(load(&db).map_err(|e| store_error(path, &e))?));
        let (jobs, mut queue) = mpsc::channel::<Job>(256);
        let (shared, file) = (state.clone(), path.to_path_buf());
        let thread = std::thread::Builder::new()
            .name("api-store".into())
            .spawn(move || run(db, &file, &shared, &mut queue, history.max(1)))
            .map_err(|e| store_error(path, &e))?;
        Ok((Self { state, jobs }, Writer(thread)))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        read(&self.state)
    }

    /// Wakes when the kind changes.
    pub(crate) fn subscribe(&self, res: &Resource) -> watch::Receiver<u64> {
        self.read().kind(res).notify.subscribe()
    }

    /// Runs `f` on the writer thread. What it changed is durable when this returns `Ok`, and gone when `f` refused or
    /// `dry` is set.
    pub(crate) async fn write<T, F>(&self, dry: bool, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |tx| {
            let mark = tx.log.len();
            let result = f(tx);
            if dry || result.is_err() {
                tx.rollback(mark);
            }
            Box::new(move |stored| {
                let _ = reply.send(stored.and(result));
            })
        });
        let closed = || Status::unavailable("the server is stopping");
        self.jobs.send(job).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}
