//! Manifests: reading them, and bringing them to the API server as `kubectl apply` does for simple cases.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::Api;
use crate::{Doing, LabError};

/// The largest manifest file read.
const MAX_FILE: u64 = 8 << 20;

/// An object and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// File and number of the document in it.
    pub at: String,
    /// The object.
    pub object: Value,
}

/// Reads a file, or all `.yaml`, `.yml` and `.json` files of a folder and its folders, in order of name. Lists are
/// taken apart; what others need comes first (namespaces, then configuration, services, workloads).
///
/// # Errors
/// The first that cannot be read, with its file and document.
pub fn read(path: &Path) -> Result<Vec<Manifest>, LabError> {
    let mut files = Vec::new();
    collect(path, &mut files)?;
    if files.is_empty() {
        return Err(LabError::new(format!("{}: holds no .yaml, .yml or .json file", path.display())));
    }
    let mut all = Vec::new();
    for f in files {
        let size = std::fs::metadata(&f).doing(|| format!("{}", f.display()))?.len();
        if size > MAX_FILE {
            return Err(LabError::new(format!("{}: {size} bytes: split it, {MAX_FILE} is the most", f.display())));
        }
        let text = std::fs::read_to_string(&f).doing(|| format!("{}", f.display()))?;
        all.extend(parse(&f.display().to_string(), &text)?);
    }
    all.sort_by_key(|m| rank(m.object["kind"].as_str().unwrap_or_default()));
    Ok(all)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), LabError> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    let mut inside: Vec<PathBuf> =
        std::fs::read_dir(path).doing(|| format!("{}", path.display()))?.flatten().map(|e| e.path()).collect();
    inside.sort();
    for p in inside {
        if p.is_dir() {
            collect(&p, files)?;
        } else if p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(p);
        }
    }
    Ok(())
}

/// Reads the documents of one text.
///
/// # Errors
/// The first that is no object with `apiVersion`, `kind` and `metadata.name`.
pub fn parse(file: &str, text: &str) -> Result<Vec<Manifest>, LabError> {
    let mut out = Vec::new();
    for (i, doc) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let at = format!("{file}: document {}", i + 1);
        let v = Value::deserialize(doc).doing(|| &at)?;
        if v.is_null() {
            continue;
        }
        let items = match v["items"].as_array() {
            Some(a) if v["kind"].as_str().is_some_and(|k| k.ends_with("List")) => a.clone(),
            _ => vec![v],
        };
        for object in items {
            for field in ["/apiVersion", "/kind", "/metadata/name"] {
                if !object.pointer(field).is_some_and(Value::is_string) {
                    let dotted = field[1..].replace('/', ".");
                    return Err(LabError::new(format!("{at}: field {dotted}: missing: every object needs it")));
                }
            }
            out.push(Manifest { at: at.clone(), object });
        }
    }
    Ok(out)
}

fn rank(kind: &str) -> u8 {
    match kind {
        "Namespace" | "CustomResourceDefinition" => 0,
        "ConfigMap" | "Secret" | "ServiceAccount" => 1,
        "Service" | "NetworkPolicy" => 2,
        _ => 3,
    }
}

/// A kind of object that the API server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `v1`, `apps/v1`...
    pub group_version: String,
    /// `pods`.
    pub name: String,
    /// `pod`.
    pub singular: String,
    /// `Pod`.
    pub kind: String,
    /// `po`.
    pub short: Vec<String>,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// The collection's path; over all namespaces without one.
    #[must_use]
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let root = if self.group_version.contains('/') { "/apis/" } else { "/api/" };
        match namespace.filter(|_| self.namespaced) {
            Some(ns) => format!("{root}{}/namespaces/{ns}/{}", self.group_version, self.name),
            None => format!("{root}{}/{}", self.group_version, self.name),
        }
    }

    fn said(&self, name: &str) -> String {
        match self.group_version.split_once('/') {
            Some((group, _)) => format!("{}.{group}/{name}", self.singular),
            None => format!("{}/{name}", self.singular),
        }
    }
}

/// Everything an API server has, by its discovery documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery(Vec<Resource>);

impl Discovery {
    /// Asks.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn load(api: &Api) -> Result<Self, LabError> {
        let mut versions = vec!["/api/v1".to_owned()];
        for g in api.get("/apis").await?["groups"].as_array().into_iter().flatten() {
            versions.extend(g["preferredVersion"]["groupVersion"].as_str().map(|v| format!("/apis/{v}")));
        }
        let mut all = Vec::new();
        for path in versions {
            let list = api.get(&path).await?;
            let gv = list["groupVersion"].as_str().unwrap_or_default().to_owned();
            for r in list["resources"].as_array().into_iter().flatten() {
                let text = |k: &str| r[k].as_str().unwrap_or_default().to_owned();
                let name = text("name");
                if name.contains('/') {
                    continue;
                }
                let kind = text("kind");
                let singular = Some(text("singularName")).filter(|s| !s.is_empty());
                all.push(Resource {
                    group_version: gv.clone(),
                    name,
                    singular: singular.unwrap_or_else(|| kind.to_ascii_lowercase()),
                    kind,
                    short: r["shortNames"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|s| Some(s.as_str()?.into()))
                        .collect(),
                    namespaced: r["namespaced"] == true,
                });
            }
        }
        Ok(Self(all))
    }

    /// The resource of an object.
    ///
    /// # Errors
    /// When the server does not know its kind.
    pub fn of(&self, m: &Manifest) -> Result<&Resource, LabError> {
        let (gv, kind) =
            (m.object["apiVersion"].as_str().unwrap_or_default(), m.object["kind"].as_str().unwrap_or_default());
        self.0.iter().find(|r| r.group_version == gv && r.kind == kind).ok_or_else(|| {
            LabError::new(format!("{}: field kind: the API server of a lab has no {kind} of {gv}", m.at))
        })
    }

    /// The resource a person means: plural, singular, kind or short name, in any case.
    ///
    /// # Errors
    /// When there is none; the text lists all.
    pub fn named(&self, word: &str) -> Result<&Resource, LabError> {
        let w = word.to_ascii_lowercase();
        self.0
            .iter()
            .find(|r| r.name == w || r.singular == w || r.kind.to_ascii_lowercase() == w || r.short.contains(&w))
            .ok_or_else(|| {
                let all = self.0.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(" ");
                LabError::new(format!("{word:?} is no kind of object here. There are: {all}"))
            })
    }
}

/// Where an object is.
fn place(r: &Resource, m: &Manifest) -> (String, String) {
    let ns = m.object["metadata"]["namespace"].as_str().unwrap_or("default");
    let collection = r.collection(Some(ns));
    let name = m.object["metadata"]["name"].as_str().unwrap_or_default();
    let item = format!("{collection}/{name}");
    (collection, item)
}

/// Creates what is not there and patches what is; one line per object says what happened.
///
/// # Errors
/// The first refusal, with its file.
pub async fn apply(api: &Api, manifests: &[Manifest]) -> Result<Vec<String>, LabError> {
    let discovery = Discovery::load(api).await?;
    let mut said = Vec::new();
    for m in manifests {
        let r = discovery.of(m)?;
        let (collection, item) = place(r, m);
        let what = match api.find(&item).await? {
            None => {
                api.create(&collection, &m.object).await.doing(|| &m.at)?;
                "created"
            }
            Some(old) => {
                let new = api.merge(&item, &m.object).await.doing(|| &m.at)?;
                let version = |v: &Value| v["metadata"]["resourceVersion"].clone();
                if version(&old) == version(&new) { "unchanged" } else { "configured" }
            }
        };
        said.push(format!("{} {what}", r.said(m.object["metadata"]["name"].as_str().unwrap_or_default())));
    }
    Ok(said)
}

/// Deletes the objects, last first; one line per object.
///
/// # Errors
/// The first refusal.
pub async fn delete(api: &Api, manifests: &[Manifest]) -> Result<Vec<String>, LabError> {
    let discovery = Discovery::load(api).await?;
    let mut said = Vec::new();
    for m in manifests.iter().rev() {
        let r = discovery.of(m)?;
        let (_, item) = place(r, m);
        let what = if api.find(&item).await?.is_some() {
            api.delete(&item, &json!({"propagationPolicy": "Background"})).await.doing(|| &m.at)?;
            "deleted"
        } else {
            "not found"
        };
        said.push(format!("{} {what}", r.said(m.object["metadata"]["name"].as_str().unwrap_or_default())));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_order() {
        let d = tempfile::tempdir().unwrap();
        let w = |n: &str, t: &str| std::fs::write(d.path().join(n), t).unwrap();
        w(
            "1.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\n",
        );
        w("2.yml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: n}}\n");
        w("notes.txt", "not read");
        let kinds: Vec<_> =
            read(d.path()).unwrap().iter().map(|m| m.object["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["Namespace", "Service", "Deployment"]);
        for (text, word) in [
            ("kind: A\nmetadata: {name: x}", "document 1: field apiVersion"),
            ("apiVersion: v1\nkind: A\nmetadata: {}", "field metadata.name"),
            ("a: [", "document 1"),
        ] {
            let e = parse("f.yaml", text).unwrap_err().to_string();
            assert!(e.starts_with("f.yaml") && e.contains(word), "{e}");
        }
        assert!(read(&d.path().join("none")).is_err());
    }

    #[test]
    fn resources_by_any_name() {
        let r = |gv: &str, name: &str, kind: &str, short: &str, namespaced| Resource {
            group_version: gv.into(),
            name: name.into(),
            singular: kind.to_lowercase(),
            kind: kind.into(),
            short: vec![short.into()],
            namespaced,
        };
        let d = Discovery(vec![
            r("v1", "nodes", "Node", "no", false),
            r("apps/v1", "deployments", "Deployment", "deploy", true),
        ]);
        for w in ["deploy", "Deployment", "deployments"] {
            assert_eq!(d.named(w).unwrap().collection(Some("x")), "/apis/apps/v1/namespaces/x/deployments");
        }
        assert_eq!(d.named("no").unwrap().collection(Some("x")), "/api/v1/nodes");
        assert!(d.named("frob").unwrap_err().to_string().contains("There are: nodes deployments"));
    }
}
