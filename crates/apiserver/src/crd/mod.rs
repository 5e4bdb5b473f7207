//! Kinds that clients define: `CustomResourceDefinition` (apiextensions.k8s.io/v1).
//!
//! A definition is an object like any other. What it serves is derived from it, whenever it is stored or loaded, into
//! rows of the same type as the table's: requests cannot tell a custom kind from a built-in one.

mod check;
mod definition;
mod end;
mod format;
mod node;
mod path;
mod pattern;
mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Causes, Result, Status};
use crate::resource::{Resource, Text, base};
use crate::util::{bool_at, int_at, list_at, parse_rfc3339, remove, str_at, unix_now};
use crate::{schema, table};
pub(crate) use definition::{default, settle, validate, warnings};
pub(crate) use end::{collect, delete, erase};
pub(crate) use node::{Additional, ListType, Node};
use path::Path;

/// A column of `kubectl get`.
#[derive(Debug)]
pub(crate) struct Printer {
    name: String,
    ty: String,
    format: String,
    description: String,
    priority: i64,
    path: Path,
}

/// Where the scale subresource finds its numbers.
#[derive(Debug)]
pub(crate) struct Scale {
    pub(crate) spec: Vec<String>,
    pub(crate) status: Vec<String>,
    pub(crate) selector: Vec<String>,
}

/// What a custom kind has beyond a row of the table.
#[derive(Debug)]
pub(crate) struct Custom {
    /// The name of the definition.
    pub(crate) definition: Box<str>,
    /// The revision of the definition: objects that are older may lack its defaults.
    pub(crate) rev: u64,
    pub(crate) schema: Node,
    /// The schema as it was written, for OpenAPI.
    raw: Value,
    printers: Vec<Printer>,
    pub(crate) scale: Option<Scale>,
    /// The `apiVersion` of stored objects.
    stored_as: String,
    /// Objects may be stored under another version than this one.
    versions: bool,
    /// No new objects: the definition is being deleted.
    pub(crate) terminating: bool,
    /// What users of this version are told.
    pub(crate) warning: Option<String>,
}

/// What one definition means.
#[derive(Debug, Clone)]
struct Defined {
    /// The row under which objects are stored, whether or not it is served.
    storage: Arc<Resource>,
    served: Vec<Arc<Resource>>,
}

/// What all definitions mean, by their names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry(BTreeMap<Box<str>, Defined>);

impl Registry {
    /// The kinds that are served, one for each version.
    pub(crate) fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.values().flat_map(|d| &d.served)
    }

    /// One row for each definition: where its objects are.
    pub(crate) fn storages(&self) -> Vec<Arc<Resource>> {
        self.0.values().map(|d| d.storage.clone()).collect()
    }

    /// Follows a definition; `None` when it is gone.
    pub(crate) fn set(&mut self, name: &str, v: Option<&Value>, rev: u64) {
        self.0.remove(name);
        if let Some(defined) = v.and_then(|v| defined(name, v, rev)) {
            self.0.insert(name.into(), defined);
        }
    }
}

fn texts(v: &Value, key: &str) -> Vec<Text> {
    list_at(v, &[key]).iter().filter_map(Value::as_str).map(|s| s.to_owned().into()).collect()
}

/// What a stored definition means. `None` only for one that today's checks would refuse.
fn defined(name: &str, v: &Value, rev: u64) -> Option<Defined> {
    let versions = list_at(v, &["spec", "versions"]);
    let storage = versions.iter().find(|x| bool_at(x, &["storage"]))?;
    let established = definition::condition(v, "Established") == "True";
    let rows: Vec<Arc<Resource>> = versions.iter().map(|x| Arc::new(row(name, v, x, rev))).collect();
    let storage = rows.iter().find(|r| r.version == str_at(storage, &["name"]))?.clone();
    let is_served = |r: &Arc<Resource>| {
        established && versions.iter().any(|x| r.version == str_at(x, &["name"]) && bool_at(x, &["served"]))
    };
    Some(Defined { storage, served: rows.into_iter().filter(is_served).collect() })
}

fn row(name: &str, v: &Value, version: &Value, rev: u64) -> Resource {
    let (spec, mut ignored) = (&v["spec"], Causes::default());
    let names = &v["status"]["acceptedNames"];
    let text = |v: &Value, key: &str| Text::from(str_at(v, &[key]).to_owned());
    let group = str_at(spec, &["group"]);
    let all = list_at(spec, &["versions"]);
    let stored = all.iter().find(|x| bool_at(x, &["storage"])).map_or("", |x| str_at(x, &["name"]));
    let raw = version["schema"]["openAPIV3Schema"].clone();
    let subresources = &version["subresources"];
    let scale = subresources.get("scale").map(|s| {
        let path = |key: &str| {
            let p = Path::parse(str_at(s, &[key])).unwrap_or_default();
            p.fields().unwrap_or_default().into_iter().map(str::to_owned).collect()
        };
        Scale {
            spec: path("specReplicasPath"),
            status: path("statusReplicasPath"),
            selector: path("labelSelectorPath"),
        }
    });
    let status = subresources.get("status").is_some_and(|s| !s.is_null());
    let printers = list_at(version, &["additionalPrinterColumns"]);
    let custom = Custom {
        definition: name.into(),
        rev,
        schema: node::parse(&raw, "", &mut ignored),
        raw,
        printers: printers
            .iter()
            .map(|p| Printer {
                name: str_at(p, &["name"]).to_owned(),
                ty: str_at(p, &["type"]).to_owned(),
                format: str_at(p, &["format"]).to_owned(),
                description: str_at(p, &["description"]).to_owned(),
                priority: int_at(p, &["priority"]).unwrap_or(0),
                path: Path::parse(str_at(p, &["jsonPath"])).unwrap_or_default(),
            })
            .collect(),
        stored_as: format!("{group}/{stored}"),
        versions: all.len() > 1 || list_at(v, &["status", "storedVersions"]).len() > 1,
        terminating: v["metadata"].get("deletionTimestamp").is_some(),
        warning: bool_at(version, &["deprecated"]).then(|| match str_at(version, &["deprecationWarning"]) {
            "" => format!("{group}/{} {} is deprecated", str_at(version, &["name"]), str_at(names, &["kind"])),
            said => said.to_owned(),
        }),
        scale,
    };
    Resource {
        group: group.to_owned().into(),
        version: text(version, "name"),
        plural: text(&spec["names"], "plural"),
        singular: text(names, "singular"),
        kind: text(names, "kind"),
        list_kind: text(names, "listKind"),
        short: texts(names, "shortNames"),
        categories: texts(names, "categories"),
        namespaced: str_at(spec, &["scope"]) == "Namespaced",
        subresources: match (status, custom.scale.is_some()) {
            (true, true) => &["status", "scale"],
            (true, false) => &["status"],
            (false, true) => &["scale"],
            (false, false) => &[],
        },
        storage: name.into(),
        view: str_at(version, &["name"]) != stored,
        custom: Some(Arc::new(custom)),
        generation: true,
        ..base()
    }
}

impl Custom {
    /// The form in which an object is stored.
    pub(crate) fn to_stored(&self, v: &mut Value) {
        v["apiVersion"] = self.stored_as.as_str().into();
    }

    /// Whether a stored object must be changed before a client of this version sees it.
    pub(crate) fn converts(&self, rev: u64) -> bool {
        self.versions || rev < self.rev
    }

    /// The form in which clients of the version see a stored object.
    pub(crate) fn to_client(&self, v: &mut Value, version: &str) {
        v["apiVersion"] = version.into();
        value::prune(v, &self.schema, &mut Vec::new());
        value::default(v, &self.schema);
    }

    /// Prunes and fills in defaults; the paths of unknown fields.
    pub(crate) fn shape(&self, v: &mut Value, kind: &str, version: &str) -> Result<Vec<String>> {
        let mut unknown = Vec::new();
        let mut meta = v["metadata"].take();
        if meta.is_null() {
            meta = json!({});
        }
        let found = schema::check(&mut meta, "ObjectMeta");
        if let Some(wrong) = found.wrong.first() {
            let why = wrong.replace("into field ", "into field metadata.").replace("metadata.the object", "metadata");
            return Err(Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
            )));
        }
        unknown.extend(found.unknown.iter().map(|p| format!("metadata.{p}")));
        v["metadata"] = meta;
        let mut more = Vec::new();
        value::prune(v, &self.schema, &mut more);
        unknown.extend(more);
        value::default(v, &self.schema);
        Ok(unknown)
    }

    /// What is wrong with an object.
    pub(crate) fn check(&self, v: &Value, old: Option<&Value>, c: &mut Causes) {
        check::check(v, old, &self.schema, "", c);
    }

    /// The `columnDefinitions` of a table.
    pub(crate) fn columns(&self) -> Value {
        if self.printers.is_empty() {
            return table::definitions(table::PLAIN);
        }
        let mut all = table::definitions(&table::PLAIN[..1]);
        if let Value::Array(list) = &mut all {
            list.extend(self.printers.iter().map(|p| {
                json!({"name": p.name, "type": p.ty, "format": p.format, "description": p.description, "priority": p.priority})
            }));
        }
        all
    }

    /// The cells of a row.
    pub(crate) fn cells(&self, v: &Value) -> Vec<Value> {
        if self.printers.is_empty() {
            return table::cells(table::PLAIN, v);
        }
        let mut out = table::cells(&table::PLAIN[..1], v);
        out.extend(self.printers.iter().map(|p| cell(&p.ty, p.path.find(v).first().copied())));
        out
    }

    /// The schema as OpenAPI v3 publishes it.
    pub(crate) fn openapi(&self) -> Value {
        let mut s = self.raw.clone();
        for (key, what) in [
            ("apiVersion", "The group and version by which the object is written, such as example.com/v1."),
            ("kind", "What the object is. It cannot be changed."),
        ] {
            s["properties"][key] = json!({"type": "string", "description": what});
        }
        s["properties"]["metadata"] = json!({"allOf": [{"$ref": "#/components/schemas/ObjectMeta"}], "default": {},
            "description": "Name, labels, annotations and what else every object has."});
        if let Some(Value::Object(p)) = s.get_mut("properties") {
            for (_, sub) in p.iter_mut().filter(|(k, _)| *k != "metadata") {
                strip(sub);
            }
        }
        s
    }
}

/// Rules of ours only; readers of OpenAPI need them not.
fn strip(v: &mut Value) {
    remove(v, "x-kubernetes-validations");
}

/// What a column shows of the first value its path leads to (apiextensions-apiserver `tableconvertor`).
fn cell(ty: &str, v: Option<&Value>) -> Value {
    let Some(v) = v.filter(|v| !v.is_null()) else { return Value::Null };
    match ty {
        "string" => v.as_str().map_or_else(|| v.to_string(), str::to_owned).into(),
        "integer" => v.as_i64().or_else(|| v.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64)).into(),
        "number" => Some(v.clone()).filter(Value::is_number).into(),
        "boolean" => Some(v.clone()).filter(Value::is_boolean).into(),
        "date" => match v.as_str().map(|s| (s, parse_rfc3339(s))) {
            Some((_, Some(t))) => table::human(unix_now().saturating_sub(t)).into(),
            Some(_) => "<invalid>".into(),
            None => Value::Null,
        },
        _ => Value::Null,
    }
}
