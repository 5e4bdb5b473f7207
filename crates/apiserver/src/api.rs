//! From a request to its verb.

mod scale;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use hyper::body::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::admission::Ranges;
use crate::error::{Result, Status};
use crate::http::{
    Out, Query, View, content_type, decode, json as respond, json_bytes, negotiate, read_body, segments, text,
    wants_aggregated, warn, yaml,
};
use crate::metrics::Metrics;
use crate::objects::{self, DeleteOptions, Part, Unknown, bind, place, shape, to_client, to_stored};
use crate::read::{self, Shown, WatchSettings};
use crate::resource::{Resource, core};
use crate::selector::Selector;
use crate::store::{Store, Stored, Tx};
use crate::util::{list_at, obj, str_at};
use crate::{discovery, kubelet, patch, review};

/// The running API: everything a request needs.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) store: Arc<Store>,
    pub(crate) ranges: Ranges,
    pub(crate) bookmark_interval: Duration,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) metrics: Metrics,
    /// Where the kubelets listen: a path with `{node}` in it.
    pub(crate) kubelet_sockets: Option<std::path::PathBuf>,
    /// What is open to kubelets.
    pub(crate) streams: Arc<tokio::sync::Semaphore>,
}

/// What a path means.
struct Target {
    res: Arc<Resource>,
    ns: String,
    name: String,
    sub: String,
}

struct Call<'a> {
    api: &'a Api,
    target: Target,
    q: Query,
    view: View,
    content_type: String,
    body: Bytes,
}

fn target(store: &Store, group: &str, version: &str, rest: &[String]) -> Result<Target> {
    let s = |i: usize| rest.get(i).map_or("", String::as_str);
    // `namespaces/NS/PLURAL...` unless it is the namespace itself or a subresource of it.
    let inner = s(0) == "namespaces" && rest.len() >= 3 && !(group.is_empty() && matches!(s(2), "status" | "finalize"));
    let (ns, rest) = if inner { (s(1), &rest[2..]) } else { ("", rest) };
    let plural = rest.first().map_or("", String::as_str);
    let res = store.read().find(group, version, plural).ok_or_else(Status::no_such_path)?;
    if inner && !res.namespaced || rest.len() > 3 {
        return Err(Status::no_such_path());
    }
    let part = |i: usize| rest.get(i).cloned().unwrap_or_default();
    let t = Target { res: res.clone(), ns: ns.to_owned(), name: part(1), sub: part(2) };
    if !t.sub.is_empty() && !res.subresources.contains(&t.sub.as_str()) {
        return Err(Status::no_such_path());
    }
    if res.namespaced && t.ns.is_empty() && !t.name.is_empty() {
        return Err(Status::no_such_path());
    }
    Ok(t)
}

fn fixed(store: &Store, path: &[String], aggregated: bool) -> Option<Response<Out>> {
    let all = || store.read().resources();
    let s: Vec<&str> = path.iter().map(String::as_str).collect();
    let agg = |core| {
        let mut r = respond(200, &discovery::aggregated(&all(), core));
        r.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
        );
        r.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
        r
    };
    let v = match s.as_slice() {
        [] => {
            json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]})
        }
        ["healthz" | "livez" | "readyz", ..] => return Some(text(200, "ok")),
        ["version"] => discovery::version(),
        ["api"] if aggregated => return Some(agg(true)),
        ["apis"] if aggregated => return Some(agg(false)),
        ["api"] => discovery::core_versions(),
        ["apis"] => discovery::group_list(&all()),
        ["apis", g] => discovery::group(&all(), g)?,
        ["api", v] => discovery::resources(&all(), "", v)?,
        ["apis", g, v] => discovery::resources(&all(), g, v)?,
        ["openapi", "v2"] => discovery::openapi_v2(&all()),
        ["openapi", "v3"] => discovery::openapi_index(&all()),
        ["openapi", "v3", "api", v] => discovery::openapi(&all(), "", v)?,
        ["openapi", "v3", "apis", g, v] => discovery::openapi(&all(), g, v)?,
        _ => return None,
    };
    Some(respond(200, &v))
}

/// Answers one request; never fails: an error is an answer too.
pub(crate) async fn handle<B>(api: Arc<Api>, req: Request<B>) -> Response<Out>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (method, path) = (req.method().clone(), req.uri().path().to_owned());
    let answer = match serve(&api, req).await {
        Ok(r) => r,
        Err(s) => respond(s.code, &s.to_value()),
    };
    api.metrics.count(&method, answer.status());
    tracing::debug!(%method, path, code = answer.status().as_u16(), "request");
    answer
}

async fn serve<B>(api: &Arc<Api>, req: Request<B>) -> Result<Response<Out>>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = segments(req.uri().path());
    if req.method() == Method::GET && path == ["metrics"] {
        return Ok(text(200, &api.metrics.render(&api.store)));
    }
    if req.method() == Method::GET
        && let Some(r) = fixed(&api.store, &path, wants_aggregated(req.headers()))
    {
        return Ok(r);
    }
    let (group, version, rest) = match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["api", v, ..] => ("", (*v).to_owned(), &path[2..]),
        ["apis", g, v, ..] => (*g, (*v).to_owned(), &path[3..]),
        _ => return Err(Status::no_such_path()),
    };
    // The old form of a binding.
    if let [_, ns, b] = rest
        && group.is_empty()
        && b == "bindings"
        && rest[0] == "namespaces"
        && req.method() == Method::POST
    {
        let ns = ns.clone();
        let body = decode(&content_type(req.headers()), &read_body(req.into_body()).await?)?;
        let name = str_at(&body, &["metadata", "name"]).to_owned();
        return binding(api, ns, name, body, false).await;
    }
    let q = Query::parse(req.uri().query());
    let target = target(&api.store, group, &version, rest)?;
    if target.res.schema == "Pod" && kubelet::SUBRESOURCES.contains(&target.sub.as_str()) {
        let allowed = req.method() == Method::GET || req.method() == Method::POST && target.sub != "log";
        if !allowed || target.name.is_empty() {
            return Err(Status::method_not_allowed(req.method().as_str()));
        }
        return kubelet::serve(api, &target.ns, &target.name, &target.sub, q.get("container"), req).await;
    }
    let view = negotiate(req.headers())?;
    let method = req.method().clone();
    let content_type = content_type(req.headers());
    let body = read_body(req.into_body()).await?;
    if review::is(&target.res) {
        if method != Method::POST || !target.name.is_empty() {
            return Err(Status::method_not_allowed(method.as_str()));
        }
        let mut v = decode(&content_type, &body)?;
        shape(&target.res, &mut v, Unknown::Ignore)?;
        return review::answer(&target.res, v).map(|v| respond(201, &v));
    }
    let deprecated: Vec<String> = target.res.custom.iter().filter_map(|c| c.warning.clone()).collect();
    let call = Call { api, target, q, view, content_type, body };
    let mut answer = verb(call, &method).await?;
    warn(&mut answer, &deprecated);
    Ok(answer)
}

async fn verb(call: Call<'_>, method: &Method) -> Result<Response<Out>> {
    let named = !call.target.name.is_empty();
    if call.target.res.is_read_only() && *method != Method::GET {
        return Err(Status::method_not_allowed(method.as_str()));
    }
    match (method.as_str(), named, call.target.sub.as_str()) {
        ("GET", _, "") => call.read(),
        ("GET", true, "scale") => call.get_scale(),
        ("GET", true, "status" | "ephemeralcontainers") => call.read(),
        ("POST", false, "") => call.create().await,
        ("POST", true, "binding") => {
            let body = decode(&call.content_type, &call.body)?;
            binding(call.api, call.target.ns.clone(), call.target.name.clone(), body, call.q.dry_run()?).await
        }
        ("POST", true, "eviction") => call.evict().await,
        ("PUT" | "PATCH", true, "scale") => call.put_scale(*method == Method::PATCH).await,
        ("PUT", true, "finalize") => call.finalize().await,
        ("PUT", true, "" | "status" | "ephemeralcontainers") => call.update().await,
        ("PATCH", true, "" | "status" | "ephemeralcontainers") => call.patch().await,
        ("DELETE", true, "") => call.delete().await,
        ("DELETE", false, "") => call.delete_collection().await,
        _ => Err(Status::method_not_allowed(method.as_str())),
    }
}

fn success(code: u16, details: Value) -> Response<Out> {
    respond(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code, "details": details}),
    )
}

async fn binding(api: &Api, ns: String, name: String, body: Value, dry: bool) -> Result<Response<Out>> {
    let ranges = api.ranges.clone();
    api.store.write(dry, move |tx| bind(tx, &ns, &name, &body, &ranges)).await?;
    Ok(respond(201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})))
}

impl Call<'_> {
    fn shown(&self) -> Result<Shown> {
        Shown::new(self.target.res.clone(), self.view, &self.q)
    }

    fn selector(&self) -> Result<Selector> {
        Selector::parse(&self.target.res, self.q.get("labelSelector"), self.q.get("fieldSelector"))
    }

    fn unknown(&self) -> Result<Unknown> {
        match self.q.get("fieldValidation") {
            "" | "Warn" => Ok(Unknown::Warn),
            "Strict" => Ok(Unknown::Refuse),
            "Ignore" => Ok(Unknown::Ignore),
            other => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
            ))),
        }
    }

    fn part(&self) -> Part {
        if self.target.sub == "status" { Part::Status } else { Part::Main }
    }

    fn answer(&self, code: u16, o: &Stored, warnings: &[String]) -> Result<Response<Out>> {
        let mut r = json_bytes(code, self.shown()?.one(o, true));
        warn(&mut r, warnings);
        Ok(r)
    }

    fn read(&self) -> Result<Response<Out>> {
        let (t, shown) = (&self.target, self.shown()?);
        let watch = self.q.flag("watch");
        if !t.name.is_empty() && !watch {
            return read::get(&self.api.store, &shown, &t.ns, &t.name);
        }
        let selector = if t.name.is_empty() {
            self.selector()?
        } else {
            Selector::parse(&t.res, "", &format!("metadata.name={}", t.name))?
        };
        if watch {
            let settings = WatchSettings { bookmark_every: self.api.bookmark_interval, stop: self.api.stop.clone() };
            return read::watch(&self.api.store, shown, &t.ns, selector, &self.q, settings);
        }
        read::list(&self.api.store, shown, &t.ns, &selector, &self.q)
    }

    async fn create(self) -> Result<Response<Out>> {
        let res = self.target.res.clone();
        if res.namespaced && self.target.ns.is_empty() {
            return Err(Status::method_not_allowed("POST"));
        }
        let mut v = self.object()?;
        let warnings = shape(&res, &mut v, self.unknown()?)?;
        place(&res, &mut v, &self.target.ns)?;
        let v = to_stored(v, &res);
        let ranges = self.api.ranges.clone();
        let write = move |tx: &mut Tx<'_>| objects::create(tx, &*tx.current(&res)?, v, &ranges);
        let o = self.api.store.write(self.q.dry_run()?, write).await?;
        self.answer(201, &o, &warnings)
    }

    /// The object of the body.
    fn object(&self) -> Result<Value> {
        // Custom kinds have no protobuf form.
        if self.target.res.custom.is_some() && self.content_type == "application/vnd.kubernetes.protobuf" {
            return Err(Status::unsupported_media(&self.content_type, "application/json, application/yaml"));
        }
        decode(&self.content_type, &self.body)
    }

    /// The object that a PUT carries, checked against the path.
    fn incoming(&self, v: &mut Value) -> Result<Vec<String>> {
        let res = &self.target.res;
        let warnings = shape(res, v, self.unknown()?)?;
        place(res, v, &self.target.ns)?;
        if str_at(v, &["metadata", "name"]).is_empty() {
            return Err(Status::bad_request(format!(
                "the name of the object (\"\") does not match the name on the URL ({:?})",
                self.target.name
            )));
        }
        Ok(warnings)
    }

    async fn update(self) -> Result<Response<Out>> {
        let (res, part) = (self.target.res.clone(), self.part());
        let mut v = self.object()?;
        let warnings = self.incoming(&mut v)?;
        let v = to_stored(v, &res);
        let (name, key) = (self.target.name.clone(), res.key(&self.target.ns, &self.target.name));
        let ranges = self.api.ranges.clone();
        let o = self
            .api
            .store
            .write(self.q.dry_run()?, move |tx| {
                let res = tx.current(&res)?;
                let old = tx.get(&res, &key).ok_or_else(|| Status::not_found(&res, &name))?;
                objects::replace(tx, &res, &key, &old, v, part, &ranges)
            })
            .await?;
        self.answer(200, &o, &warnings)
    }

    async fn patch(self) -> Result<Response<Out>> {
        let (res, part, unknown) = (self.target.res.clone(), self.part(), self.unknown()?);
        let custom = res.custom.is_some();
        let kind = match self.content_type.as_str() {
            "application/json-patch+json" => Patch::Json(decode("", &self.body)?),
            "application/merge-patch+json" => Patch::Merge(decode("", &self.body)?),
            "application/strategic-merge-patch+json" if !custom => Patch::Strategic(decode("", &self.body)?),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                let manager = self.q.get("fieldManager");
                if manager.is_empty() || manager.len() > 128 {
                    return Err(Status::bad_request(
                        "fieldManager: Required value: is required for apply patch, at most 128 bytes",
                    ));
                }
                Patch::Apply(yaml(&self.body)?, manager.to_owned(), self.q.flag("force"))
            }
            other => {
                let strategic = if custom { "" } else { "application/strategic-merge-patch+json, " };
                return Err(Status::unsupported_media(
                    other,
                    &format!(
                        "application/json-patch+json, application/merge-patch+json, {strategic}application/apply-patch+yaml"
                    ),
                ));
            }
        };
        let (ns, name) = (self.target.ns.clone(), self.target.name.clone());
        let ranges = self.api.ranges.clone();
        let (o, created, warnings) = self
            .api
            .store
            .write(self.q.dry_run()?, move |tx| {
                let res = &*tx.current(&res)?;
                let key = res.key(&ns, &name);
                let old = tx.get(res, &key);
                let patched = match (&old, kind) {
                    (_, Patch::Apply(config, manager, force)) => {
                        applied(res, old.as_deref(), config, &manager, force, &ns, &name, unknown)?
                    }
                    (None, _) => return Err(Status::not_found(res, &name)),
                    (Some(old), kind) => {
                        let mut v = to_client(old.value(), res);
                        match kind {
                            Patch::Json(p) => patch::json_patch(&mut v, &p)?,
                            Patch::Merge(p) => patch::merge(&mut v, &p),
                            Patch::Strategic(p) => patch::strategic_merge(&mut v, &p, res.schema)?,
                            Patch::Apply(..) => {}
                        }
                        let warnings = shape(res, &mut v, unknown)?;
                        place(res, &mut v, &ns)?;
                        (v, warnings)
                    }
                };
                let (v, warnings) = patched;
                let v = to_stored(v, res);
                match old {
                    Some(old) => Ok((objects::replace(tx, res, &key, &old, v, part, &ranges)?, false, warnings)),
                    None => Ok((objects::create(tx, res, v, &ranges)?, true, warnings)),
                }
            })
            .await?;
        self.answer(if created { 201 } else { 200 }, &o, &warnings)
    }

    fn delete_options(&self) -> Result<DeleteOptions> {
        let mut v = if self.body.is_empty() { json!({}) } else { decode(&self.content_type, &self.body)? };
        if let Some(n) = self.q.number("gracePeriodSeconds")? {
            v["gracePeriodSeconds"] = n.into();
        }
        if !self.q.get("propagationPolicy").is_empty() {
            v["propagationPolicy"] = self.q.get("propagationPolicy").into();
        }
        DeleteOptions::parse(&v)
    }

    /// Nothing is stored when the query or the options say so.
    fn dry(&self) -> Result<bool> {
        let body: Value = if self.body.is_empty() { Value::Null } else { decode(&self.content_type, &self.body)? };
        Ok(self.q.dry_run()? || list_at(&body, &["dryRun"]).iter().any(|d| d == "All"))
    }

    async fn delete(self) -> Result<Response<Out>> {
        let (res, options) = (self.target.res.clone(), self.delete_options()?);
        let key = res.key(&self.target.ns, &self.target.name);
        let kind = res.clone();
        let (o, gone) = self.api.store.write(self.dry()?, move |tx| objects::delete(tx, &kind, &key, &options)).await?;
        if gone && res.schema != "Pod" {
            let d = json!({"name": self.target.name, "group": res.group, "kind": res.plural, "uid": o.uid});
            return Ok(success(200, d));
        }
        self.answer(200, &o, &[])
    }

    async fn delete_collection(self) -> Result<Response<Out>> {
        let (res, options, selector) = (self.target.res.clone(), self.delete_options()?, self.selector()?);
        if res.namespaced && self.target.ns.is_empty() {
            return Err(Status::method_not_allowed("DELETE"));
        }
        let keys = read::keys(&self.api.store, &res, &self.target.ns, &selector, &self.q)?;
        let kind = res.clone();
        let gone = self
            .api
            .store
            .write(self.dry()?, move |tx| {
                let mut gone = Vec::new();
                for key in keys {
                    match objects::delete(tx, &kind, &key, &options) {
                        Ok((o, _)) => gone.push(to_client(o.value(), &kind)),
                        // Somebody else was faster.
                        Err(e) if e.code == 404 => {}
                        Err(e) => return Err(e),
                    }
                }
                Ok(gone)
            })
            .await?;
        let rev = self.api.store.read().revision.to_string();
        Ok(respond(
            200,
            &json!({"kind": res.list_kind, "apiVersion": res.api_version(), "metadata": {"resourceVersion": rev}, "items": gone}),
        ))
    }

    async fn evict(self) -> Result<Response<Out>> {
        let body = if self.body.is_empty() { json!({}) } else { decode(&self.content_type, &self.body)? };
        let options = DeleteOptions::parse(&body["deleteOptions"])?;
        let (res, key) = (self.target.res.clone(), self.target.res.key(&self.target.ns, &self.target.name));
        let dry = self.dry()? || list_at(&body, &["deleteOptions", "dryRun"]).iter().any(|d| d == "All");
        self.api.store.write(dry, move |tx| objects::delete(tx, &res, &key, &options)).await?;
        Ok(respond(
            201,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
        ))
    }

    async fn finalize(self) -> Result<Response<Out>> {
        let mut v = decode(&self.content_type, &self.body)?;
        let warnings = self.incoming(&mut v)?;
        let name = self.target.name.clone();
        // Finalizers of a namespace are the server's own: it removes a namespace when it is empty, so this only echoes.
        let res = core("namespaces");
        let o = self.api.store.read().kind(res).objects.get(name.as_str()).cloned();
        self.answer(200, &*o.ok_or_else(|| Status::not_found(res, &name))?, &warnings)
    }
}

enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply(Value, String, bool),
}

/// The object that a server-side apply makes, and warnings.
#[allow(clippy::too_many_arguments)] // one caller; a struct would only rename them
fn applied(
    res: &Resource,
    old: Option<&Stored>,
    mut config: Value,
    manager: &str,
    force: bool,
    ns: &str,
    name: &str,
    unknown: Unknown,
) -> Result<(Value, Vec<String>)> {
    let warnings = shape(res, &mut config, unknown)?;
    place(res, &mut config, ns)?;
    let said = str_at(&config, &["metadata", "name"]);
    if said != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        )));
    }
    if !list_at(&config, &["metadata", "managedFields"]).is_empty() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let rv = str_at(&config, &["metadata", "resourceVersion"]).to_owned();
    let live = match old {
        Some(o) => to_client(o.value(), res),
        None => {
            let mut m = json!({"apiVersion": res.api_version(), "kind": res.kind, "metadata": {"name": name}});
            if res.namespaced {
                m["metadata"]["namespace"] = ns.into();
            }
            m
        }
    };
    let mut v = patch::apply::apply(res, &live, &config, manager, force)?;
    if !rv.is_empty() && old.is_some() {
        obj(&mut v, "metadata").insert("resourceVersion".into(), rv.into());
    }
    Ok((v, warnings))
}
