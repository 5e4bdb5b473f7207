//! Reads and writes of single objects of any kind, as JSON.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, Request};
use kube::Client;
use resolve::Kind;
use resolve::api::{ApiWrite, Resource, WriteOp};
use serde_json::{Value, json};
use types::{NodeName, ObjectName};

use crate::denied::Denials;
use crate::error::SourceError;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A connection to an API server; cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub(crate) client: Client,
    /// Discovery answers by `apiVersion`.
    discovered: Arc<Mutex<BTreeMap<String, Vec<ApiResource>>>>,
    pub(crate) denials: Denials,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

/// A resource as discovery tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiResource {
    /// Its names.
    pub resource: Resource,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// Short names: `svc`.
    pub short_names: Vec<String>,
    /// Singular name: `service`.
    pub singular: String,
}

impl Api {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, discovered: Arc::default(), denials: Denials::default() }
    }

    /// The rights that the server denies us, by any request or watch of this connection.
    #[must_use]
    pub fn denials(&self) -> Denials {
        self.denials.clone()
    }

    /// One object; `None` when it does not exist.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn get(&self, resource: &Resource, name: &ObjectName) -> Result<Option<Value>, SourceError> {
        match self.send(Method::GET, &object_path(resource, name)?, None).await {
            Ok(v) => Ok(Some(v)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All objects of a resource, of one namespace when it is not empty.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn list(&self, resource: &Resource, namespace: &str) -> Result<Vec<Value>, SourceError> {
        let mut out = Vec::new();
        let mut next = String::new();
        let path = collection_path(resource, namespace)?;
        loop {
            let page = if next.is_empty() { String::new() } else { format!("&continue={}", escape(&next)) };
            let mut list = self.send(Method::GET, &format!("{path}?limit=500{page}"), None).await?;
            if let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) {
                out.extend(items);
            }
            match list.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(c) if !c.is_empty() => next = c.into(),
                _ => return Ok(out),
            }
        }
    }

    /// Makes an object; `apiVersion`, `kind`, name and namespace are filled in. With `generateName` in the body's
    /// metadata the name may be empty.
    ///
    /// # Errors
    /// `is_conflict` when it exists.
    pub async fn create(&self, resource: &Resource, name: &ObjectName, mut body: Value) -> Result<Value, SourceError> {
        fill(&mut body, resource, name);
        self.send(Method::POST, &collection_path(resource, &name.namespace)?, Some((JSON, &body))).await
    }

    /// Replaces an object. With `metadata.resourceVersion` in the body only that version of it.
    ///
    /// # Errors
    /// `is_conflict` when the version is another, `is_not_found`.
    pub async fn replace(&self, resource: &Resource, name: &ObjectName, mut body: Value) -> Result<Value, SourceError> {
        fill(&mut body, resource, name);
        self.send(Method::PUT, &object_path(resource, name)?, Some((JSON, &body))).await
    }

    /// Makes the object or replaces its content: what `apply` means where no field has two owners.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn create_or_merge(
        &self,
        resource: &Resource,
        name: &ObjectName,
        body: Value,
    ) -> Result<Value, SourceError> {
        match self.create(resource, name, body.clone()).await {
            Err(e) if e.is_conflict() => self.merge(resource, name, &body).await,
            other => other,
        }
    }

    /// JSON merge patch (RFC 7386).
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn merge(&self, resource: &Resource, name: &ObjectName, patch: &Value) -> Result<Value, SourceError> {
        self.send(Method::PATCH, &object_path(resource, name)?, Some((MERGE, patch))).await
    }

    /// JSON merge patch of the status subresource: the body holds `status`.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn merge_status(
        &self,
        resource: &Resource,
        name: &ObjectName,
        patch: &Value,
    ) -> Result<Value, SourceError> {
        self.send(Method::PATCH, &format!("{}/status", object_path(resource, name)?), Some((MERGE, patch))).await
    }

    /// Strategic merge patch of the status subresource: lists that have a merge key, such as a Node's conditions, keep the
    /// elements that the patch does not name. For built-in kinds only.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn merge_conditions(
        &self,
        resource: &Resource,
        name: &ObjectName,
        patch: &Value,
    ) -> Result<Value, SourceError> {
        self.send(Method::PATCH, &format!("{}/status", object_path(resource, name)?), Some((STRATEGIC, patch))).await
    }

    /// Deletes an object; `false` when it was not there. A uid that is not empty must be the object's. `grace` is
    /// `gracePeriodSeconds`; 0 is at once.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn delete(
        &self,
        resource: &Resource,
        name: &ObjectName,
        uid: &str,
        grace: Option<u32>,
    ) -> Result<bool, SourceError> {
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        if let Some(seconds) = grace {
            options["gracePeriodSeconds"] = seconds.into();
        }
        if !uid.is_empty() {
            options["preconditions"] = json!({"uid": uid});
        }
        match self.send(Method::DELETE, &object_path(resource, name)?, Some((JSON, &options))).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sets annotations of a Node; `None` removes one. Others stay.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn annotate_node<'a>(
        &self,
        node: &NodeName,
        annotations: impl IntoIterator<Item = (&'a str, Option<String>)>,
    ) -> Result<(), SourceError> {
        let map: serde_json::Map<String, Value> =
            annotations.into_iter().map(|(k, v)| (k.to_owned(), v.map_or(Value::Null, Value::String))).collect();
        let name = ObjectName::new("", node.as_str());
        self.merge(&Kind::Node.into(), &name, &json!({"metadata": {"annotations": map}})).await.map(|_| ())
    }

    /// Runs one write of a controller. What is already so is no error: a create of what exists, a delete of what is
    /// gone.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn run(&self, write: &ApiWrite) -> Result<(), SourceError> {
        let (r, name) = (&write.resource, &write.name);
        match &write.op {
            WriteOp::Create(body) => match self.create(r, name, body.clone()).await {
                Err(SourceError::Api { reason, .. }) if reason == "AlreadyExists" => Ok(()),
                other => other.map(|_| ()),
            },
            WriteOp::Patch(patch) => self.merge(r, name, patch).await.map(|_| ()),
            WriteOp::PatchStatus(patch) => self.merge_status(r, name, patch).await.map(|_| ()),
            WriteOp::Bind { node } => {
                let body = json!({
                    "apiVersion": "v1", "kind": "Binding",
                    "metadata": {"name": &*name.name, "namespace": &*name.namespace},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": node},
                });
                let path = format!("{}/binding", object_path(r, name)?);
                self.send(Method::POST, &path, Some((JSON, &body))).await.map(|_| ())
            }
            WriteOp::Delete { uid, force } => self.delete(r, name, uid, force.then_some(0)).await.map(|_| ()),
        }
    }

    /// The resource that a manifest's `apiVersion` and `kind` name; `None` when the server has none. Asked once of
    /// each group version, and again while the kind is not there.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn discover(&self, api_version: &str, kind: &str) -> Result<Option<ApiResource>, SourceError> {
        let found = |all: &[ApiResource]| all.iter().find(|r| r.resource.kind == kind).cloned();
        let known = self.discovered.lock().unwrap_or_else(PoisonError::into_inner).get(api_version).map(|a| found(a));
        // A kind that was not there may have been defined meanwhile.
        if let Some(Some(answer)) = known {
            return Ok(Some(answer));
        }
        let (prefix, group, version) = match api_version.split_once('/') {
            Some((g, v)) => (format!("/apis/{}/{}", segment(g)?, segment(v)?), g, v),
            None => (format!("/api/{}", segment(api_version)?), "", api_version),
        };
        let list = match self.send(Method::GET, &prefix, None).await {
            Ok(v) => v,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        let all: Vec<ApiResource> = list
            .get("resources")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            // A slash is a subresource.
            .filter(|r| !text(r, "name").contains('/'))
            .map(|r| ApiResource {
                resource: Resource {
                    group: group.to_owned().into(),
                    version: version.to_owned().into(),
                    kind: text(r, "kind").into(),
                    plural: text(r, "name").into(),
                },
                namespaced: r.get("namespaced").and_then(Value::as_bool).unwrap_or(false),
                short_names: r
                    .get("shortNames")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|s| s.as_str().map(Into::into))
                    .collect(),
                singular: text(r, "singularName"),
            })
            .collect();
        let answer = found(&all);
        self.discovered.lock().unwrap_or_else(PoisonError::into_inner).insert(api_version.into(), all);
        Ok(answer)
    }

    /// Whether the server answers and says that it is ready (`/readyz`).
    ///
    /// # Errors
    /// When it does not.
    pub async fn ready(&self) -> Result<(), SourceError> {
        let doing = "GET /readyz";
        let request = Request::get("/readyz")
            .body(Vec::new())
            .map_err(|e| SourceError::Request { doing: doing.into(), why: e.to_string() })?;
        self.client.request_text(request).await.map(|_| ()).map_err(|e| SourceError::of(doing, e))
    }

    /// A GET of any path whose answer is JSON (discovery, tables), with an `Accept` header of the caller's choice.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn get_path(&self, path: &str, accept: &str) -> Result<Value, SourceError> {
        let doing = format!("GET {path}");
        let request = Request::get(path)
            .header("Accept", accept)
            .body(Vec::new())
            .map_err(|e| SourceError::Request { doing: doing.clone(), why: e.to_string() })?;
        self.client.request(request).await.map_err(|e| SourceError::of(doing, e))
    }

    async fn send(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Value, SourceError> {
        let doing = format!("{method} {path}");
        let request = Request::builder().method(method.clone()).uri(path).header("Accept", JSON);
        let request = match body {
            Some((kind, body)) => request.header("Content-Type", kind).body(body.to_string().into_bytes()),
            None => request.body(Vec::new()),
        }
        .map_err(|e| SourceError::Request { doing: doing.clone(), why: e.to_string() })?;
        let answer = self.client.request(request).await;
        match &answer {
            Err(kube::Error::Api(s)) if s.code == 403 => {
                if let Some(d) = self.denials.note(&s.message) {
                    return Err(SourceError::Denied { doing, denied: Box::new(d) });
                }
            }
            // Not found, conflict, invalid: RBAC is asked before.
            Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409 | 422) => self.denials.let_through(&method, path),
            Ok(_) => self.denials.let_through(&method, path),
            Err(_) => {}
        }
        answer.map_err(|e| SourceError::of(doing, e))
    }
}

/// Writes what the path says into the body.
fn fill(body: &mut Value, resource: &Resource, name: &ObjectName) {
    if !body.is_object() {
        *body = json!({});
    }
    body["apiVersion"] = resource.api_version().into();
    body["kind"] = resource.kind.as_ref().into();
    if !body.get("metadata").is_some_and(Value::is_object) {
        body["metadata"] = json!({});
    }
    if !name.name.is_empty() {
        body["metadata"]["name"] = (*name.name).into();
    }
    if !name.namespace.is_empty() {
        body["metadata"]["namespace"] = (*name.namespace).into();
    }
}

/// A name as one segment of a path: names of the API never need escapes, and one that does is refused, so that no
/// manifest can reach another path.
fn segment(name: &str) -> Result<&str, SourceError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if !name.is_empty() && name != "." && name != ".." && name.len() <= 253 && name.bytes().all(fine) {
        Ok(name)
    } else {
        Err(SourceError::Request {
            doing: "request".into(),
            why: format!("{name:?} is no object name: use lower-case letters, digits, '-' and '.', at most 253"),
        })
    }
}

fn collection_path(r: &Resource, namespace: &str) -> Result<String, SourceError> {
    let base = if r.group.is_empty() {
        format!("/api/{}", segment(&r.version)?)
    } else {
        format!("/apis/{}/{}", segment(&r.group)?, segment(&r.version)?)
    };
    let plural = segment(&r.plural)?;
    Ok(if namespace.is_empty() {
        format!("{base}/{plural}")
    } else {
        format!("{base}/namespaces/{}/{plural}", segment(namespace)?)
    })
}

fn object_path(r: &Resource, name: &ObjectName) -> Result<String, SourceError> {
    Ok(format!("{}/{}", collection_path(r, &name.namespace)?, segment(&name.name)?))
}

/// Percent-escapes a query value (RFC 3986 section 2.3: unreserved characters stay).
fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// The time of day as the API writes it.
#[must_use]
pub fn now() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// The time of day with microseconds, as leases have it (`metav1.MicroTime`).
#[must_use]
pub fn now_micros() -> String {
    let t = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}Z", rfc3339(t.as_secs()).trim_end_matches('Z'), t.subsec_micros())
}

/// Seconds since 1970 as the API writes times (RFC 3339, UTC). The civil date from the day count follows the
/// Gregorian 400-year cycle of 146,097 days.
#[must_use]
pub(crate) fn rfc3339(secs: u64) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Days from 0000-03-01, so that the leap day is a year's last.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_the_api_writes_them() {
        for (secs, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_792_540_800, "2026-10-21T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(secs), want);
        }
    }

    #[test]
    fn no_name_leads_to_another_path() {
        let pods: Resource = Kind::Pod.into();
        assert_eq!(
            object_path(&pods, &ObjectName::new("default", "web-1")).unwrap(),
            "/api/v1/namespaces/default/pods/web-1"
        );
        let slices: Resource = Kind::EndpointSlice.into();
        assert_eq!(collection_path(&slices, "").unwrap(), "/apis/discovery.k8s.io/v1/endpointslices");
        for bad in ["", ".", "..", "a/b", "a?b", "a#b", "a%2fb", "a b"] {
            let e = object_path(&pods, &ObjectName::new("default", bad)).unwrap_err().to_string();
            assert!(e.contains("no object name"), "{bad:?}: {e}");
        }
        assert_eq!(escape("a+/=~"), "a%2B%2F%3D~");
    }
}
