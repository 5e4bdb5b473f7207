//! Get, list and watch.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::Response;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{Result, Status};
use crate::http::{Out, Query, View, json_bytes, stream as respond};
use crate::objects::{converted, to_client};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::store::{Event, State, Store, Stored};
use crate::table;
use crate::util::str_at;

/// Bytes of a list that are put together before they are sent.
const CHUNK: usize = 64 << 10;
/// Events that one turn of a watch takes from the history.
const TURN: usize = 256;

/// How a client sees the objects of a resource.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) res: Arc<Resource>,
    pub(crate) view: View,
    /// `includeObject` of a table: `None`, `Metadata`, `Object`.
    include: Include,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Include {
    None,
    Metadata,
    Object,
}

fn partial(v: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": v["metadata"]})
}

impl Shown {
    pub(crate) fn new(res: Arc<Resource>, view: View, q: &Query) -> Result<Self> {
        let include = match q.get("includeObject") {
            "None" => Include::None,
            "" | "Metadata" => Include::Metadata,
            "Object" => Include::Object,
            other => {
                return Err(Status::bad_request(format!(
                    "includeObject: unknown value {other:?}: use None, Metadata or Object"
                )));
            }
        };
        Ok(Self { res, view, include })
    }

    fn row(&self, v: &Value) -> Value {
        let object = match self.include {
            Include::None => None,
            Include::Metadata => Some(partial(v)),
            Include::Object => Some(to_client(v.clone(), &self.res)),
        };
        let cells = match &self.res.custom {
            Some(c) => c.cells(v),
            None => table::cells(self.res.columns, v),
        };
        table::row(cells, object)
    }

    fn columns(&self) -> Value {
        match &self.res.custom {
            Some(c) => c.columns(),
            None => table::definitions(self.res.columns),
        }
    }

    /// One entry of a list.
    fn item(&self, o: &Stored) -> Bytes {
        match self.view {
            View::Full if !converted(&self.res, o.rev) => o.json.clone(),
            View::Full => to_client(o.value(), &self.res).to_string().into(),
            View::Metadata => partial(&o.value()).to_string().into(),
            View::Table => self.row(&o.value()).to_string().into(),
        }
    }

    /// One object by itself, also inside a watch event; `head` asks for the columns of a table.
    pub(crate) fn one(&self, o: &Stored, head: bool) -> Bytes {
        if self.view != View::Table {
            return self.item(o);
        }
        let v = o.value();
        let columns = if head { self.columns() } else { Value::Null };
        let rv = str_at(&v, &["metadata", "resourceVersion"]).to_owned();
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": rv},
            "columnDefinitions": columns, "rows": [self.row(&v)]})
        .to_string()
        .into()
    }

    fn bookmark(&self, rev: u64, initial_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": rev.to_string()});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let v = match self.view {
            View::Full => json!({"kind": self.res.kind, "apiVersion": self.res.api_version(), "metadata": meta}),
            View::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta})
            }
            View::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": rev.to_string()},
                "columnDefinitions": null, "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1", "metadata": meta}}]})
            }
        };
        v.to_string().into()
    }

    /// What stands before the entries of a list.
    fn head(&self, meta: &Value) -> String {
        match self.view {
            View::Full => format!(
                "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
                self.res.list_kind,
                self.res.api_version()
            ),
            View::Metadata => format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{meta},\"items\":["
            ),
            View::Table => format!(
                "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{meta},\"columnDefinitions\":{},\"rows\":[",
                self.columns()
            ),
        }
    }
}

/// One object.
pub(crate) fn get(store: &Store, shown: &Shown, ns: &str, name: &str) -> Result<Response<Out>> {
    let key = shown.res.key(ns, name);
    let o = store.read().kind(&shown.res).objects.get(key.as_str()).cloned();
    let o = o.ok_or_else(|| Status::not_found(&shown.res, name))?;
    Ok(json_bytes(200, shown.one(&o, true)))
}

type Entry = (Box<str>, Arc<Stored>);

/// The objects of a kind as they were at a revision: the present ones with the history undone.
fn as_of(state: &State, res: &Resource, prefix: &str, after: Option<&str>, rev: u64) -> Option<Vec<Entry>> {
    let kind = state.kind(res);
    let now = kind.range(prefix, after).map(|(k, o)| (Box::from(k), o.clone()));
    if rev == state.revision {
        return Some(now.collect());
    }
    let mut all: std::collections::BTreeMap<Box<str>, Arc<Stored>> = now.collect();
    let mut seen = std::collections::HashSet::new();
    for e in kind.after(rev)? {
        // The first event after the revision says what was there at it.
        let within = e.key.starts_with(prefix) && after.is_none_or(|a| &*e.key > a);
        if within && seen.insert(e.key.clone()) {
            match &e.prev {
                Some(p) => all.insert(e.key.clone(), p.clone()),
                None => all.remove(&e.key),
            };
        }
    }
    Some(all.into_iter().collect())
}

fn revision(text: &str) -> Result<Option<u64>> {
    match text {
        "" => Ok(None),
        t => t
            .parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("resourceVersion: Invalid value: {t:?}: it is no number"))),
    }
}

/// The objects of a resource that a request means, the revision they are of, where to continue, how many remain.
fn select(store: &Store, res: &Resource, ns: &str, selector: &Selector, q: &Query) -> Result<(Vec<Entry>, Value)> {
    let limit = q.number("limit")?.unwrap_or(0);
    let state = store.read();
    let prefix = res.prefix(ns);
    let (mut rev, mut after) = (state.revision, None::<String>);
    let token = q.get("continue");
    if token.is_empty() {
        if let Some(want) = revision(q.get("resourceVersion"))?.filter(|r| *r > 0) {
            if want > state.revision {
                return Err(Status {
                    code: 504,
                    reason: "Timeout",
                    message: format!("Too large resource version: {want}, current: {}", state.revision),
                    details: json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1}),
                });
            }
            if q.get("resourceVersionMatch") == "Exact" {
                rev = want;
            }
        }
    } else {
        let bad = || Status::bad_request("continue key is not valid: begin the list again without it");
        let raw = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
        let v: Value = serde_json::from_slice(&raw).map_err(|_| bad())?;
        rev = v["rv"].as_u64().filter(|r| *r <= state.revision).ok_or_else(bad)?;
        after = Some(v["start"].as_str().ok_or_else(bad)?.to_owned());
    }
    // One name in one namespace is one look-up.
    let single =
        selector.name().filter(|_| after.is_none() && rev == state.revision && (!res.namespaced || !ns.is_empty()));
    let all = match single {
        Some(name) => {
            let key = res.key(ns, name);
            let found = state.kind(res).objects.get(key.as_str());
            found.map(|o| vec![(key.into(), o.clone())]).unwrap_or_default()
        }
        None => as_of(&state, res, &prefix, after.as_deref(), rev).ok_or_else(|| {
            Status::expired("The provided continue parameter is too old to display a consistent list result: begin the list again without it")
        })?,
    };
    drop(state);
    let mut meta = json!({"resourceVersion": rev.to_string()});
    let mut picked: Vec<Entry> = Vec::new();
    let total = all.len();
    for (i, (k, o)) in all.into_iter().enumerate() {
        if !selector.matches(&k, &o) {
            continue;
        }
        if limit > 0 && picked.len() as u64 == limit {
            let last = picked.last().map_or("", |(k, _)| k);
            meta["continue"] = URL_SAFE_NO_PAD.encode(json!({"rv": rev, "start": last}).to_string()).into();
            if selector.is_empty() {
                meta["remainingItemCount"] = (total - i).into();
            }
            break;
        }
        picked.push((k, o));
    }
    Ok((picked, meta))
}

/// The keys of the objects that a request means.
pub(crate) fn keys(store: &Store, res: &Resource, ns: &str, selector: &Selector, q: &Query) -> Result<Vec<Box<str>>> {
    Ok(select(store, res, ns, selector, q)?.0.into_iter().map(|(k, _)| k).collect())
}

/// A list, sent piece by piece: it is never in memory as a whole.
pub(crate) fn list(store: &Store, shown: Shown, ns: &str, selector: &Selector, q: &Query) -> Result<Response<Out>> {
    let (picked, meta) = select(store, &shown.res, ns, selector, q)?;
    let mut head = Some(shown.head(&meta));
    let mut items = picked.into_iter().peekable();
    let mut done = false;
    Ok(respond(stream::iter(std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut buf = BytesMut::new();
        if let Some(h) = head.take() {
            buf.put_slice(h.as_bytes());
        }
        while buf.len() < CHUNK {
            let Some((_, o)) = items.next() else {
                buf.put_slice(b"]}\n");
                done = true;
                break;
            };
            buf.put_slice(&shown.item(&o));
            if items.peek().is_some() {
                buf.put_u8(b',');
            }
        }
        Some(buf.freeze())
    }))))
}

struct Watch {
    store: Arc<Store>,
    shown: Shown,
    selector: Selector,
    prefix: String,
    cursor: u64,
    changed: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    bookmarks: bool,
    bookmark_every: Duration,
    next_bookmark: Instant,
    end: Instant,
    /// Objects still to be sent before the live events.
    initial: std::vec::IntoIter<Entry>,
    initial_end: bool,
    head: bool,
    over: bool,
}

/// Settings of the server that a watch needs.
pub(crate) struct WatchSettings {
    pub(crate) bookmark_every: Duration,
    pub(crate) stop: watch::Receiver<bool>,
}

fn frame(buf: &mut BytesMut, ty: &str, object: &[u8]) {
    buf.put_slice(b"{\"type\":\"");
    buf.put_slice(ty.as_bytes());
    buf.put_slice(b"\",\"object\":");
    buf.put_slice(object);
    buf.put_slice(b"}\n");
}

impl Watch {
    /// The kind of event that this watcher sees: an object can come into its selection and leave it.
    fn sees(&self, e: &Event) -> Option<&'static str> {
        if !e.key.starts_with(&self.prefix) {
            return None;
        }
        let was = e.prev.as_ref().is_some_and(|p| self.selector.matches(&e.key, p));
        let is = !e.deleted && self.selector.matches(&e.key, &e.object);
        match (was, is) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }

    /// What an event that left the selection shows: its last selected state, at the revision of the change.
    fn departed(e: &Event) -> Option<Stored> {
        if e.deleted {
            return None;
        }
        let prev = e.prev.as_ref()?;
        let mut v = prev.value();
        crate::util::obj(&mut v, "metadata").insert("resourceVersion".into(), e.rev.to_string().into());
        Some(Stored {
            rev: e.rev,
            json: v.to_string().into(),
            labels: Box::default(),
            fields: Box::default(),
            uid: Box::default(),
            owners: Box::default(),
            claims: Box::default(),
        })
    }

    /// Puts what has happened since the cursor into `buf`.
    fn turn(&mut self, buf: &mut BytesMut) {
        let mut out: Vec<(&'static str, Arc<Stored>, Option<Stored>)> = Vec::new();
        let over;
        let expired = {
            let state = self.store.read();
            let kind = state.kind(&self.shown.res);
            over = kind.over;
            match kind.after(self.cursor) {
                None => true,
                Some(events) => {
                    let mut n = 0;
                    let mut last = None;
                    for e in events {
                        n += 1;
                        last = Some(e.rev);
                        if let Some(ty) = self.sees(e) {
                            let departed = if ty == "DELETED" { Self::departed(e) } else { None };
                            out.push((ty, e.object.clone(), departed));
                        }
                        if n >= TURN {
                            break;
                        }
                    }
                    self.cursor = if n >= TURN { last.unwrap_or(self.cursor) } else { self.cursor.max(state.revision) };
                    false
                }
            }
        };
        if expired {
            // Too slow or too old: its place in the history is forgotten.
            let e = Status::expired(format!("too old resource version: {}", self.cursor));
            frame(buf, "ERROR", e.to_value().to_string().as_bytes());
            self.over = true;
            return;
        }
        // The kind is no longer defined, and its last events are told.
        self.over = over && out.is_empty();
        for (ty, o, departed) in out {
            let bytes = self.shown.one(departed.as_ref().unwrap_or(&o), std::mem::take(&mut self.head));
            frame(buf, ty, &bytes);
        }
    }

    async fn next(mut self) -> Option<(Bytes, Self)> {
        if self.over {
            return None;
        }
        let mut buf = BytesMut::new();
        while buf.len() < CHUNK {
            let Some((_, o)) = self.initial.next() else { break };
            let bytes = self.shown.one(&o, std::mem::take(&mut self.head));
            frame(&mut buf, "ADDED", &bytes);
        }
        if self.initial.len() == 0 && std::mem::take(&mut self.initial_end) {
            frame(&mut buf, "BOOKMARK", &self.shown.bookmark(self.cursor, true));
        }
        loop {
            if !buf.is_empty() {
                return Some((buf.freeze(), self));
            }
            self.changed.mark_unchanged();
            self.turn(&mut buf);
            if !buf.is_empty() {
                continue;
            }
            if self.over {
                return None;
            }
            let wake = if self.bookmarks { self.next_bookmark.min(self.end) } else { self.end };
            tokio::select! {
                r = self.changed.changed() => if r.is_err() { return None },
                r = self.stop.changed() => if r.is_err() || *self.stop.borrow() { return None },
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if self.bookmarks {
                        // Also the last thing before the end: the client resumes from there.
                        frame(&mut buf, "BOOKMARK", &self.shown.bookmark(self.cursor, false));
                        self.next_bookmark = now + self.bookmark_every;
                    }
                    if now >= self.end {
                        self.over = true;
                        if buf.is_empty() {
                            return None;
                        }
                    }
                }
            }
        }
    }
}

/// A watch: the past from a revision on, then the present as it happens.
pub(crate) fn watch(
    store: &Arc<Store>,
    shown: Shown,
    ns: &str,
    selector: Selector,
    q: &Query,
    settings: WatchSettings,
) -> Result<Response<Out>> {
    let changed = store.subscribe(&shown.res);
    let from = revision(q.get("resourceVersion"))?.unwrap_or(0);
    let bookmarks = q.flag("allowWatchBookmarks");
    let send_initial = q.flag("sendInitialEvents");
    if send_initial && q.get("resourceVersionMatch") != "NotOlderThan" {
        let why =
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Status::bad_request(why));
    }
    // Half an hour to an hour, so that clients do not all come back at once.
    let seconds = q.number("timeoutSeconds")?.filter(|s| *s > 0).unwrap_or(1800 + crate::util::random_u64() % 1800);
    let prefix = shown.res.prefix(ns);
    let (initial, cursor) = {
        let state = store.read();
        let wanted = send_initial || (from == 0 && q.get("sendInitialEvents") != "false");
        let initial: Vec<Entry> = if wanted {
            let all = state.kind(&shown.res).range(&prefix, None);
            all.filter(|(k, o)| selector.matches(k, o)).map(|(k, o)| (k.into(), o.clone())).collect()
        } else {
            Vec::new()
        };
        // A revision from the future is of another store's life: zero is always too old, so the client lists again.
        let cursor = match from {
            _ if wanted => state.revision,
            0 => state.revision,
            r if r > state.revision => {
                let e = Status::expired(format!("resource version {r} is newer than this store's {}", state.revision));
                let mut buf = BytesMut::new();
                frame(&mut buf, "ERROR", e.to_value().to_string().as_bytes());
                return Ok(respond(stream::iter([buf.freeze()])));
            }
            r => r,
        };
        (initial, cursor)
    };
    let now = Instant::now();
    let w = Watch {
        store: store.clone(),
        shown,
        selector,
        prefix,
        cursor,
        changed,
        stop: settings.stop,
        bookmarks,
        bookmark_every: settings.bookmark_every,
        next_bookmark: now + settings.bookmark_every,
        end: now + Duration::from_secs(seconds.min(86_400)),
        initial: initial.into_iter(),
        initial_end: send_initial && bookmarks,
        head: true,
        over: false,
    };
    Ok(respond(stream::unfold(w, Watch::next)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::resource::core;

    type Names = BTreeMap<String, u64>;

    /// Writes (`true`) and deletions of a few names; the state after each, by revision.
    async fn history(store: &Store, ops: Vec<(u8, bool)>) -> Vec<(u64, Names)> {
        let res = core("configmaps");
        let mut states: Vec<(u64, Names)> = vec![(store.read().revision, Names::new())];
        for (n, write) in ops {
            let key = format!("default/c{n}");
            let rev = store
                .write(false, move |tx| {
                    let v = json!({"metadata": {"name": format!("c{n}")}});
                    let there = tx.get(res, &key).is_some();
                    Ok(match (write, there) {
                        (true, _) => Some(tx.put(res, &key, v).rev),
                        (false, true) => Some(tx.remove(res, &key, v).rev),
                        (false, false) => None,
                    })
                })
                .await
                .unwrap();
            let Some(rev) = rev else { continue };
            let mut next = states.last().unwrap().1.clone();
            if write {
                next.insert(format!("default/c{n}"), rev);
            } else {
                next.remove(&format!("default/c{n}"));
            }
            states.push((rev, next));
        }
        states
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// At every revision that is remembered, the list is what was stored then; the list and the events after it end
        /// in the present; and what is forgotten is said to be.
        #[test]
        fn a_list_and_what_follows_make_the_present(ops in prop::collection::vec((0u8..6, any::<bool>()), 0..40), limit in 4usize..50) {
            let dir = tempfile::tempdir().unwrap();
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (store, writer) = Store::open(&dir.path().join("s.redb"), limit).unwrap();
            let states = rt.block_on(history(&store, ops));
            let last = &states.last().unwrap().1;
            {
                let state = store.read();
                let res = core("configmaps");
                for (rev, want) in &states {
                    let Some(list) = as_of(&state, res, "default/", None, *rev) else {
                        prop_assert!(*rev < state.kind(res).since);
                        continue;
                    };
                    let mut have: Names = list.into_iter().map(|(k, o)| (k.into(), o.rev)).collect();
                    prop_assert_eq!(&have, want);
                    for e in state.kind(res).after(*rev).unwrap() {
                        if e.deleted { have.remove(&*e.key); } else { have.insert((*e.key).into(), e.rev); }
                    }
                    prop_assert_eq!(&have, last);
                }
            }
            // And so it is after a restart.
            drop(store);
            writer.join();
            let (store, writer) = Store::open(&dir.path().join("s.redb"), limit).unwrap();
            prop_assert!(store.read().revision >= states.last().unwrap().0);
            let have: Names = store.read().kind(core("configmaps")).range("", None).map(|(k, o)| (k.to_owned(), o.rev)).collect();
            prop_assert_eq!(&have, last);
            drop(store);
            writer.join();
        }
    }
}
