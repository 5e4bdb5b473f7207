//! Create, update, patch and delete: what happens to one object inside one write.

mod cascade;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::admission::{self, Ranges};
use crate::error::{Causes, Result, Status};
use crate::resource::{Resource, core};
use crate::store::{Stored, Tx};
use crate::util::{at, int_at, list_at, obj, parse_rfc3339, remove, rfc3339, str_at, suffix, uid, unix_now};
use crate::{crd, schema, validate};

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Main,
    Status,
    /// The server's own change, e.g. a binding: everything but what identifies the object.
    Own,
}

/// How unknown fields are taken (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Ignore,
    Warn,
    Refuse,
}

/// Reads an incoming object: right kind, right types, no unknown fields left. Returns warnings.
pub(crate) fn shape(res: &Resource, v: &mut Value, unknown: Unknown) -> Result<Vec<String>> {
    if !v.is_object() {
        return Err(Status::bad_request("the body must be one object"));
    }
    let (api, kind) = (str_at(v, &["apiVersion"]).to_owned(), str_at(v, &["kind"]).to_owned());
    if kind.is_empty() {
        return Err(Status::bad_request("Object 'Kind' is missing"));
    }
    if api.is_empty() {
        return Err(Status::bad_request("Object 'apiVersion' is missing"));
    }
    if api != res.api_version() || kind != res.kind {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): got {kind} of {api}, want {}",
            res.kind,
            res.api_version()
        )));
    }
    let list = match &res.custom {
        Some(c) => c.shape(v, &res.kind, &res.version)?,
        None => known(res, v)?,
    };
    let mut list: Vec<String> = list.iter().map(|p| format!("unknown field {p:?}")).collect();
    if unknown == Unknown::Refuse && !list.is_empty() {
        return Err(Status::bad_request(format!("strict decoding error: {}", list.join(", "))));
    }
    if unknown != Unknown::Warn {
        list.clear();
    }
    if res.schema == "CustomResourceDefinition" {
        list.extend(crd::warnings(v));
    }
    Ok(list)
}

/// Checks an object of the table; the paths of unknown fields.
fn known(res: &Resource, v: &mut Value) -> Result<Vec<String>> {
    let found = schema::check(v, res.schema);
    if !found.wrong.is_empty() {
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {}",
            res.kind,
            res.version,
            res.kind,
            found.wrong.join(", ")
        )));
    }
    Ok(found.unknown)
}

/// Pairs of field names: core event, events.k8s.io event.
const EVENT_NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn renamed(mut v: Value, res: &Resource, to_stored: bool) -> Value {
    if res.schema == "EventV1"
        && let Some(m) = v.as_object_mut()
    {
        for (old, new) in EVENT_NAMES {
            let (from, to) = if to_stored { (new, old) } else { (old, new) };
            if let Some(x) = m.remove(from) {
                m.insert(to.into(), x);
            }
        }
        m.insert("apiVersion".into(), if to_stored { "v1".into() } else { res.api_version().into() });
    }
    v
}

/// The form in which the resource's objects are stored.
pub(crate) fn to_stored(mut v: Value, res: &Resource) -> Value {
    if let Some(c) = &res.custom {
        c.to_stored(&mut v);
        return v;
    }
    renamed(v, res, true)
}

/// The form in which the resource's clients see a stored object.
pub(crate) fn to_client(mut v: Value, res: &Resource) -> Value {
    if let Some(c) = &res.custom {
        c.to_client(&mut v, &res.api_version());
        return v;
    }
    renamed(v, res, false)
}

/// Whether an object stored at a revision must be changed before the resource's clients see it.
pub(crate) fn converted(res: &Resource, rev: u64) -> bool {
    res.custom.as_ref().map_or(res.view, |c| c.converts(rev))
}

fn meta(v: &mut Value) -> &mut Map<String, Value> {
    obj(v, "metadata")
}

/// Gives an object its namespace, or says that it names another.
pub(crate) fn place(res: &Resource, v: &mut Value, ns: &str) -> Result<()> {
    let said = str_at(v, &["metadata", "namespace"]).to_owned();
    if !res.namespaced {
        meta(v).remove("namespace");
        return Ok(());
    }
    if !said.is_empty() && said != ns {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta(v).insert("namespace".into(), ns.into());
    Ok(())
}

fn finish(
    tx: &Tx<'_>,
    res: &Resource,
    key: &str,
    v: &mut Value,
    old: Option<&Value>,
    part: Part,
    ranges: &Ranges,
) -> Result<()> {
    let mut causes = Causes::default();
    (res.default)(v);
    if res.schema == "Service" && part == Part::Main {
        admission::service(tx, res, key, v, old, ranges, &mut causes);
    }
    validate::meta(res, v, old, &mut causes);
    let prior = if part == Part::Own { None } else { old };
    (res.validate)(v, prior, &mut causes);
    if let Some(c) = &res.custom {
        c.check(v, prior, &mut causes);
    }
    causes.finish(res, str_at(v, &["metadata", "name"]))?;
    if res.schema == "CustomResourceDefinition" {
        crd::settle(tx, v);
    }
    Ok(())
}

/// Creates an object that [`shape`] and [`place`] have passed.
pub(crate) fn create(tx: &mut Tx<'_>, res: &Resource, mut v: Value, ranges: &Ranges) -> Result<Arc<Stored>> {
    let ns = str_at(&v, &["metadata", "namespace"]).to_owned();
    if !str_at(&v, &["metadata", "resourceVersion"]).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let base = str_at(&v, &["metadata", "generateName"]).to_owned();
    let mut name = str_at(&v, &["metadata", "name"]).to_owned();
    if name.is_empty() && !base.is_empty() {
        // Room for the five characters; a clash is as likely as it is in the API, and retried here.
        let cut: String = base.chars().take(58).collect();
        for _ in 0..8 {
            name = format!("{cut}{}", suffix());
            if tx.get(res, &res.key(&ns, &name)).is_none() {
                break;
            }
        }
        meta(&mut v).insert("name".into(), name.clone().into());
    }
    if res.namespaced {
        let namespaces = core("namespaces");
        let Some(home) = tx.get(namespaces, &ns) else { return Err(Status::not_found(namespaces, &ns)) };
        if at(&home.value(), &["metadata", "deletionTimestamp"]).is_some() {
            let mut e = Status::forbidden(
                res,
                &name,
                &format!("unable to create new content in namespace {ns} because it is being terminated"),
            );
            e.details["causes"] = json!([{"reason": "NamespaceTerminating", "message": format!("namespace {ns} is being terminated"), "field": "metadata.namespace"}]);
            return Err(e);
        }
    }
    if res.custom.as_ref().is_some_and(|c| c.terminating) {
        return Err(Status::being_deleted(res, &name));
    }
    let key = res.key(&ns, &name);
    if !name.is_empty() && tx.get(res, &key).is_some() {
        return Err(Status::already_exists(res, &name));
    }
    let m = meta(&mut v);
    for k in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "clusterName"] {
        m.remove(k);
    }
    m.insert("uid".into(), uid().into());
    m.insert("creationTimestamp".into(), rfc3339(unix_now()).into());
    if res.generation {
        m.insert("generation".into(), 1.into());
    }
    // A status is earned, not brought along; nodes register with theirs, as kubelets do.
    if res.has_status() && res.schema != "Node" {
        remove(&mut v, "status");
    }
    finish(tx, res, &key, &mut v, None, Part::Main, ranges)?;
    Ok(tx.put(res, &key, v))
}

/// The fields of metadata that a client cannot change.
const FIXED: [&str; 6] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName"];

/// Replaces an object by `new`, of which only `part` counts. The answer is what is stored then.
pub(crate) fn replace(
    tx: &mut Tx<'_>,
    res: &Resource,
    key: &str,
    old: &Arc<Stored>,
    mut new: Value,
    part: Part,
    ranges: &Ranges,
) -> Result<Arc<Stored>> {
    let before = old.value();
    let name = str_at(&before, &["metadata", "name"]).to_owned();
    let said = str_at(&new, &["metadata", "name"]);
    if said != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        )));
    }
    let id = str_at(&new, &["metadata", "uid"]);
    if !id.is_empty() && id != &*old.uid {
        return Err(Status::conflict(
            res,
            &name,
            &format!(
                "StorageError: invalid object, Precondition failed: UID in precondition: {id}, UID in object meta: {}",
                old.uid
            ),
        ));
    }
    let rv = str_at(&new, &["metadata", "resourceVersion"]);
    if !rv.is_empty() && rv != old.rev.to_string() {
        return Err(Status::stale(res, &name));
    }
    let was = before["metadata"].clone();
    let m = meta(&mut new);
    for k in FIXED {
        match was.get(k) {
            Some(x) => drop(m.insert(k.into(), x.clone())),
            None => drop(m.remove(k)),
        }
    }
    m.remove("selfLink");
    m.insert("resourceVersion".into(), old.rev.to_string().into());
    if !m.contains_key("managedFields")
        && let Some(x) = was.get("managedFields")
    {
        m.insert("managedFields".into(), x.clone());
    }
    match part {
        Part::Main => {
            if res.has_status() {
                keep(&mut new, &before, "status");
            }
            if res.schema == "Namespace" {
                keep(&mut new, &before, "spec");
            }
        }
        Part::Status => {
            // Labels and annotations may be set beside the status, as the API has it; nothing else.
            let mut whole = before.clone();
            for k in ["labels", "annotations"] {
                match new["metadata"].get(k) {
                    Some(x) => drop(meta(&mut whole).insert(k.into(), x.clone())),
                    None => drop(meta(&mut whole).remove(k)),
                }
            }
            keep(&mut whole, &new, "status");
            new = whole;
        }
        Part::Own => {}
    }
    finish(tx, res, key, &mut new, Some(&before), part, ranges)?;
    if res.generation && part != Part::Status && body(res, &new) != body(res, &before) {
        let n = int_at(&before, &["metadata", "generation"]).unwrap_or(0) + 1;
        meta(&mut new).insert("generation".into(), n.into());
    }
    if new == before {
        // Nothing changed: no revision, no event.
        return Ok(old.clone());
    }
    if ready_to_go(res, &new) {
        return Ok(erase(tx, res, key, new));
    }
    Ok(tx.put(res, key, new))
}

fn keep(new: &mut Value, before: &Value, field: &str) {
    match (before.get(field), new.as_object_mut()) {
        (Some(x), Some(m)) => drop(m.insert(field.into(), x.clone())),
        (None, Some(m)) => drop(m.remove(field)),
        _ => {}
    }
}

/// The object without metadata and without what its status subresource holds.
fn body(res: &Resource, v: &Value) -> Map<String, Value> {
    let mut m = v.as_object().cloned().unwrap_or_default();
    m.remove("metadata");
    if res.custom.is_none() || res.has_status() {
        m.remove("status");
    }
    m
}

/// Whether a deleted object has nothing left to wait for.
fn ready_to_go(res: &Resource, v: &Value) -> bool {
    at(v, &["metadata", "deletionTimestamp"]).is_some()
        && list_at(v, &["metadata", "finalizers"]).is_empty()
        && int_at(v, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && res.schema != "Namespace"
}

/// Removes an object, and the terminating namespace whose last object it was.
fn erase(tx: &mut Tx<'_>, res: &Resource, key: &str, v: Value) -> Arc<Stored> {
    if res.schema == "CustomResourceDefinition" {
        return crd::erase(tx, key, v);
    }
    let owners = list_at(&v, &["metadata", "ownerReferences"]).to_vec();
    let gone = tx.remove(res, key, v);
    cascade::release(tx, key, &owners);
    if let Some(c) = &res.custom {
        crd::collect(tx, &c.definition);
    }
    if let Some((ns, _)) = key.split_once('/').filter(|_| res.namespaced) {
        collect_namespace(tx, ns);
    }
    gone
}

fn collect_namespace(tx: &mut Tx<'_>, ns: &str) {
    let res = core("namespaces");
    let Some(home) = tx.get(res, ns).map(|h| h.value()) else { return };
    if at(&home, &["metadata", "deletionTimestamp"]).is_none()
        || !list_at(&home, &["metadata", "finalizers"]).is_empty()
    {
        return;
    }
    let prefix = format!("{ns}/");
    let empty = tx.storages().iter().filter(|r| r.namespaced).all(|r| tx.list(r, &prefix).is_empty());
    if empty {
        tx.remove(res, ns, home);
    }
}

/// How an object is to be deleted.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) grace: Option<u64>,
    pub(crate) orphan: bool,
    /// What belongs to the object goes first.
    pub(crate) foreground: bool,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` object; an empty body is none.
    pub(crate) fn parse(v: &Value) -> Result<Self> {
        let grace = match v.get("gracePeriodSeconds") {
            None | Some(Value::Null) => None,
            Some(n) => Some(n.as_u64().ok_or_else(|| Status::bad_request("gracePeriodSeconds must be 0 or more"))?),
        };
        let text = |k: &str| Some(str_at(v, &["preconditions", k]).to_owned()).filter(|s| !s.is_empty());
        Ok(Self {
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            grace,
            orphan: str_at(v, &["propagationPolicy"]) == "Orphan" || v["orphanDependents"] == Value::Bool(true),
            foreground: str_at(v, &["propagationPolicy"]) == "Foreground",
        })
    }
}

/// Deletes an object: at once, or by marking it when something (a finalizer, a running pod, a namespace's content)
/// must end first. The flag says whether it is gone.
pub(crate) fn delete(tx: &mut Tx<'_>, res: &Resource, key: &str, o: &DeleteOptions) -> Result<(Arc<Stored>, bool)> {
    let name = key.rsplit('/').next().unwrap_or(key);
    let Some(old) = tx.get(res, key) else { return Err(Status::not_found(res, name)) };
    if let Some(want) = o.uid.as_ref().filter(|u| ***u != *old.uid) {
        return Err(Status::conflict(
            res,
            name,
            &format!("Precondition failed: UID in precondition: {want}, UID in object meta: {}", old.uid),
        ));
    }
    if let Some(want) = o.resource_version.as_ref().filter(|r| **r != old.rev.to_string()) {
        return Err(Status::conflict(
            res,
            name,
            &format!(
                "Precondition failed: ResourceVersion in precondition: {want}, ResourceVersion in object meta: {}",
                old.rev
            ),
        ));
    }
    let mut v = old.value();
    if res.schema == "Namespace" {
        return delete_namespace(tx, res, key, v);
    }
    if res.schema == "CustomResourceDefinition" {
        return crd::delete(tx, key, v);
    }
    if o.orphan {
        cascade::orphan(tx, &old.uid);
    }
    let below = if o.foreground { cascade::dependents(tx, &old.uid) } else { Vec::new() };
    if !below.is_empty() {
        cascade::hold(&mut v);
    }
    let grace = grace_of(res, &v, o);
    let waits = grace > 0 || !list_at(&v, &["metadata", "finalizers"]).is_empty();
    if !waits {
        let m = meta(&mut v);
        m.insert("deletionTimestamp".into(), rfc3339(unix_now()).into());
        m.insert("deletionGracePeriodSeconds".into(), 0.into());
        return Ok((erase(tx, res, key, v), true));
    }
    let marked = at(&v, &["metadata", "deletionTimestamp"]).is_some();
    let shorter =
        int_at(&v, &["metadata", "deletionGracePeriodSeconds"]).is_none_or(|g| i64::try_from(grace).unwrap_or(0) < g);
    if marked && !shorter {
        return Ok((old, false));
    }
    let m = meta(&mut v);
    let at = m.get("deletionTimestamp").and_then(Value::as_str).and_then(parse_rfc3339);
    let end = unix_now() + grace;
    m.insert("deletionTimestamp".into(), rfc3339(at.map_or(end, |t| t.min(end))).into());
    m.insert("deletionGracePeriodSeconds".into(), grace.into());
    if res.generation && !marked {
        let n = m.get("generation").and_then(Value::as_i64).unwrap_or(0) + 1;
        m.insert("generation".into(), n.into());
    }
    let waiting = tx.put(res, key, v);
    for (res, key) in below {
        delete(tx, &res, &key, &DeleteOptions { foreground: true, ..DeleteOptions::default() })?;
    }
    Ok((waiting, false))
}

/// Only a pod that may be running somewhere is waited for; its runner then deletes it with a grace of 0.
fn grace_of(res: &Resource, v: &Value, o: &DeleteOptions) -> u64 {
    let running = res.schema == "Pod"
        && !str_at(v, &["spec", "nodeName"]).is_empty()
        && !matches!(str_at(v, &["status", "phase"]), "Succeeded" | "Failed");
    if !running {
        return 0;
    }
    let own = int_at(v, &["spec", "terminationGracePeriodSeconds"]).and_then(|n| u64::try_from(n).ok());
    o.grace.or(own).unwrap_or(30).min(86_400 * 365)
}

fn delete_namespace(tx: &mut Tx<'_>, res: &Resource, name: &str, mut v: Value) -> Result<(Arc<Stored>, bool)> {
    if matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(Status::forbidden(res, name, "this namespace may not be deleted"));
    }
    if at(&v, &["metadata", "deletionTimestamp"]).is_none() {
        meta(&mut v).insert("deletionTimestamp".into(), rfc3339(unix_now()).into());
        obj(&mut v, "status").insert("phase".into(), "Terminating".into());
        tx.put(res, name, v);
    }
    let Some(marked) = tx.get(res, name) else { return Err(Status::not_found(res, name)) };
    // The content goes a moment later (see `bootstrap::reap`), as on a cluster: whoever deletes a namespace and then the
    // objects in it, as `kubectl delete -f` does, still finds them.
    collect_namespace(tx, name);
    match tx.get(res, name) {
        Some(left) => Ok((left, false)),
        None => Ok((marked, true)),
    }
}

/// Deletes what is in a terminating namespace; the last object takes the namespace with it.
pub(crate) fn empty_namespace(tx: &mut Tx<'_>, name: &str) -> Result<()> {
    let home = tx.get(core("namespaces"), name).map(|h| h.value()).unwrap_or_default();
    if at(&home, &["metadata", "deletionTimestamp"]).is_none() {
        return Ok(());
    }
    let prefix = format!("{name}/");
    for r in tx.storages().iter().filter(|r| r.namespaced) {
        for (key, _) in tx.list(r, &prefix) {
            delete(tx, r, &key, &DeleteOptions::default())?;
        }
    }
    collect_namespace(tx, name);
    Ok(())
}

/// Assigns a pod to a node.
pub(crate) fn bind(tx: &mut Tx<'_>, ns: &str, name: &str, binding: &Value, ranges: &Ranges) -> Result<()> {
    let pods = core("pods");
    let key = pods.key(ns, name);
    let Some(old) = tx.get(pods, &key) else { return Err(Status::not_found(pods, name)) };
    let node = str_at(binding, &["target", "name"]);
    let kind = str_at(binding, &["target", "kind"]);
    if node.is_empty() || !matches!(kind, "" | "Node") {
        let mut c = Causes::default();
        if node.is_empty() {
            c.required("target.name", "");
        } else {
            c.unsupported("target.kind", &kind.into(), &["Node", ""]);
        }
        return c.finish(pods, name);
    }
    let mut v = old.value();
    if at(&v, &["metadata", "deletionTimestamp"]).is_some() {
        return Err(Status::conflict(
            pods,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let has = str_at(&v, &["spec", "nodeName"]);
    if !has.is_empty() {
        return Err(Status::conflict(pods, name, &format!("pod {name} is already assigned to node {has:?}")));
    }
    obj(&mut v, "spec").insert("nodeName".into(), node.into());
    let status = obj(&mut v, "status");
    let mut conditions: Vec<Value> = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    conditions.retain(|c| str_at(c, &["type"]) != "PodScheduled");
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": rfc3339(unix_now())}));
    status.insert("conditions".into(), conditions.into());
    replace(tx, pods, &key, &old, v, Part::Own, ranges).map(drop)
}
