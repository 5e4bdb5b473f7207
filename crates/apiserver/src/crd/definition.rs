//! A `CustomResourceDefinition` itself: defaults, what makes one wrong, the names it is accepted under, its end.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::path::Path;
use super::{check, node, value};
use crate::error::Causes;
use crate::resource::{RESOURCES, definitions};
use crate::store::Tx;
use crate::util::{at, bool_at, default as set, list_at, obj, rfc3339, str_at, unix_now};
use crate::validate::NameRule;

/// Keeps a definition until the objects of its kind are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Fills in what may be left out.
pub(crate) fn default(v: &mut Value) {
    let kind = str_at(v, &["spec", "names", "kind"]).to_owned();
    if !v["spec"].is_object() {
        return;
    }
    let spec = obj(v, "spec");
    set(spec, "conversion", json!({"strategy": "None"}));
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut).filter(|_| !kind.is_empty()) {
        set(names, "singular", kind.to_lowercase());
        set(names, "listKind", format!("{kind}List"));
    }
}

/// The status of a condition.
pub(crate) fn condition<'a>(v: &'a Value, ty: &str) -> &'a str {
    let all = list_at(v, &["status", "conditions"]);
    all.iter().find(|c| str_at(c, &["type"]) == ty).map_or("", |c| str_at(c, &["status"]))
}

fn set_condition(v: &mut Value, ty: &str, status: &str, reason: &str, message: &str) {
    let same = condition(v, ty) == status;
    let list = obj(v, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let since =
        list.iter().find(|c| same && str_at(c, &["type"]) == ty).map(|c| str_at(c, &["lastTransitionTime"]).to_owned());
    let new = json!({"type": ty, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| rfc3339(unix_now()))});
    match list.iter_mut().find(|c| str_at(c, &["type"]) == ty) {
        Some(c) => *c = new,
        None => list.push(new),
    }
}

fn name_rule(rule: NameRule, text: &str, path: &str, c: &mut Causes) {
    if text.is_empty() {
        c.required(path, "");
    } else if let Some(why) = rule.check(text) {
        c.invalid(path, &text.into(), &why);
    }
}

/// What is wrong with a definition.
pub(crate) fn validate(v: &Value, old: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    let (group, names) = (str_at(spec, &["group"]), &spec["names"]);
    let plural = str_at(names, &["plural"]);
    let name = str_at(v, &["metadata", "name"]);
    if name != format!("{plural}.{group}") {
        c.invalid("metadata.name", &name.into(), "must be spec.names.plural+\".\"+spec.group");
    }
    if group.is_empty() {
        c.required("spec.group", "");
    } else if let Some(why) = NameRule::Subdomain.check(group) {
        c.invalid("spec.group", &group.into(), &why);
    } else if !group.contains('.') {
        c.invalid("spec.group", &group.into(), "should be a domain with at least one dot");
    }
    if RESOURCES.iter().any(|r| r.group == group) {
        c.forbidden("spec.group", "this server serves the group itself: choose a group of your own");
    }
    let protected = [".k8s.io", ".kubernetes.io"].iter().any(|s| group.ends_with(s) || group == &s[1..]);
    let approval = "api-approved.kubernetes.io";
    if protected && v["metadata"]["annotations"].get(approval).is_none() {
        let why = format!(
            "protected groups must have approval annotation {approval:?}, see https://github.com/kubernetes/enhancements/pull/1111"
        );
        c.required(&format!("metadata.annotations[{approval}]"), &why);
    }
    match str_at(spec, &["scope"]) {
        "" => c.required("spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        other => c.unsupported("spec.scope", &other.into(), &["Cluster", "Namespaced"]),
    }
    for (key, lower) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let text = str_at(names, &[key]);
        let text = if lower { text.to_lowercase() } else { text.to_owned() };
        name_rule(NameRule::Label1035, &text, &format!("spec.names.{key}"), c);
    }
    for key in ["shortNames", "categories"] {
        for (i, s) in list_at(names, &[key]).iter().enumerate() {
            name_rule(NameRule::Label1035, s.as_str().unwrap_or(""), &format!("spec.names.{key}[{i}]"), c);
        }
    }
    if !str_at(names, &["kind"]).is_empty() && names["kind"] == names["listKind"] {
        c.invalid("spec.names.listKind", &names["listKind"], "kind and listKind may not be the same");
    }
    if bool_at(spec, &["preserveUnknownFields"]) {
        let why = "must be false in order to use defaults in the schema: use x-kubernetes-preserve-unknown-fields in the schema";
        c.invalid("spec.preserveUnknownFields", &true.into(), why);
    }
    match str_at(spec, &["conversion", "strategy"]) {
        "None" => {}
        "Webhook" => c.forbidden(
            "spec.conversion.strategy",
            "this server calls no webhooks: keep the versions' schemas compatible and use None",
        ),
        other => c.unsupported("spec.conversion.strategy", &other.into(), &["None", "Webhook"]),
    }
    versions(v, c);
    if let Some(old) = old {
        unchanged(v, old, c);
    }
}

fn versions(v: &Value, c: &mut Causes) {
    let all = list_at(v, &["spec", "versions"]);
    if all.is_empty() {
        c.required("spec.versions", "must have exactly one version marked as storage version");
        return;
    }
    if all.iter().filter(|x| bool_at(x, &["storage"])).count() != 1 {
        c.invalid("spec.versions", &v["spec"]["versions"], "must have exactly one version marked as storage version");
    }
    let mut seen = BTreeSet::new();
    for (i, x) in all.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = str_at(x, &["name"]);
        name_rule(NameRule::Label1035, name, &format!("{path}.name"), c);
        if !seen.insert(name) {
            c.duplicate(&format!("{path}.name"), &x["name"]);
        }
        for key in ["served", "storage"] {
            if x.get(key).is_none() {
                c.required(&format!("{path}.{key}"), "");
            }
        }
        if !list_at(x, &["selectableFields"]).is_empty() {
            let why = "this server selects custom objects by metadata.name and metadata.namespace only: use labels";
            c.forbidden(&format!("{path}.selectableFields"), why);
        }
        if !str_at(x, &["deprecationWarning"]).is_empty() && !bool_at(x, &["deprecated"]) {
            let why = "can only be set for deprecated versions";
            c.invalid(&format!("{path}.deprecationWarning"), &x["deprecationWarning"], why);
        }
        columns(x, &path, c);
        scale(x, &path, c);
        let at = format!("{path}.schema.openAPIV3Schema");
        match x["schema"].get("openAPIV3Schema") {
            Some(s) => {
                let schema = node::parse(s, &at, c);
                defaults(&schema, &at, c);
            }
            None => c.required(&at, "schemas are required"),
        }
    }
}

fn columns(x: &Value, path: &str, c: &mut Causes) {
    for (i, p) in list_at(x, &["additionalPrinterColumns"]).iter().enumerate() {
        let at = format!("{path}.additionalPrinterColumns[{i}]");
        for key in ["name", "type", "jsonPath"] {
            if str_at(p, &[key]).is_empty() {
                c.required(&format!("{at}.{key}"), "");
            }
        }
        let types = ["boolean", "date", "integer", "number", "string"];
        if !str_at(p, &["type"]).is_empty() && !types.contains(&str_at(p, &["type"])) {
            c.unsupported(&format!("{at}.type"), &p["type"], &types);
        }
        let formats = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
        if !matches!(str_at(p, &["format"]), "") && !formats.contains(&str_at(p, &["format"])) {
            c.unsupported(&format!("{at}.format"), &p["format"], &formats);
        }
        let text = str_at(p, &["jsonPath"]);
        if !text.is_empty() && Path::parse(text).is_none() {
            c.invalid(&format!("{at}.jsonPath"), &text.into(), "is an invalid path: write one such as .spec.replicas");
        }
    }
}

fn scale(x: &Value, path: &str, c: &mut Causes) {
    let Some(s) = x["subresources"].get("scale") else { return };
    for (key, under, needed) in
        [("specReplicasPath", "spec", true), ("statusReplicasPath", "status", true), ("labelSelectorPath", "", false)]
    {
        let (text, at) = (str_at(s, &[key]), format!("{path}.subresources.scale.{key}"));
        if text.is_empty() {
            if needed {
                c.required(&at, "");
            }
            continue;
        }
        let parsed = Path::parse(text);
        let fields = parsed.as_ref().and_then(Path::fields).unwrap_or_default();
        let right = match under {
            "" => matches!(fields.first(), Some(&("spec" | "status"))),
            u => fields.first() == Some(&u),
        };
        if fields.len() < 2 || !right {
            let root = if under.is_empty() { "spec or .status" } else { under };
            c.invalid(&at, &text.into(), &format!("should be a json path of fields under .{root}"));
        }
    }
}

/// Defaults must be what their schema says, with nothing that would be pruned.
fn defaults(n: &node::Node, path: &str, c: &mut Causes) {
    if let Some(d) = &n.default {
        let (mut pruned, mut unknown) = (d.clone(), Vec::new());
        value::prune_part(&mut pruned, n, &mut unknown);
        if let Some(first) = unknown.first() {
            c.invalid(&format!("{path}.default"), d, &format!("must not have unknown field {first:?}"));
        }
        check::check_part(d, n, &format!("{path}.default"), c);
    }
    for (name, sub) in &n.properties {
        defaults(sub, &format!("{path}.properties[{name}]"), c);
    }
    if let Some(sub) = &n.items {
        defaults(sub, &format!("{path}.items"), c);
    }
    if let node::Additional::Schema(sub) = &n.additional {
        defaults(sub, &format!("{path}.additionalProperties"), c);
    }
}

/// What may not change once a definition is established.
fn unchanged(v: &Value, old: &Value, c: &mut Causes) {
    let established = condition(old, "Established") == "True";
    for path in [&["spec", "group"][..], &["spec", "names", "plural"]] {
        crate::validate::immutable(v, Some(old), path, c);
    }
    if established {
        for path in [&["spec", "scope"][..], &["spec", "names", "kind"]] {
            crate::validate::immutable(v, Some(old), path, c);
        }
    }
    let now: Vec<&str> = list_at(v, &["spec", "versions"]).iter().map(|x| str_at(x, &["name"])).collect();
    for (i, s) in list_at(v, &["status", "storedVersions"]).iter().enumerate() {
        if !now.contains(&s.as_str().unwrap_or("")) {
            c.invalid(&format!("status.storedVersions[{i}]"), s, "missing from spec.versions; to stop serving a version set served to false, to remove it store every object anew and take it out of status.storedVersions first");
        }
    }
}

/// Why rules in CEL are named at all: objects may be taken that a cluster refuses.
const NO_CEL: &str =
    "this server evaluates no CEL but the rule \"self == oldSelf\": objects are not checked against it";
/// Rules that a warning or a condition names at most.
const NAMED: usize = 4;

/// Which rules nobody here evaluates, if there are any: one line for all versions.
fn unevaluated(v: &Value) -> Option<String> {
    let each = list_at(v, &["spec", "versions"]).iter().enumerate();
    let rules = each.flat_map(|(i, x)| {
        let at = format!("spec.versions[{i}].schema.openAPIV3Schema");
        node::unevaluated(&x["schema"]["openAPIV3Schema"], &at, NAMED + 1)
    });
    let rules: Vec<String> = rules.take(NAMED + 1).collect();
    let more = if rules.len() > NAMED { " and more" } else { "" };
    let named = rules.get(..rules.len().min(NAMED)).filter(|n| !n.is_empty())?;
    Some(format!("{NO_CEL}: {}{more}", named.join(", ")))
}

/// What whoever writes a definition should know: formats that nobody checks, and rules that nobody evaluates.
pub(crate) fn warnings(v: &Value) -> Vec<String> {
    fn walk(v: &Value, path: &str, out: &mut Vec<String>) {
        if out.len() >= 16 {
            return;
        }
        let known = |f: &str| super::format::Format::parse(f).is_some();
        if let Some(f) = v.get("format").and_then(Value::as_str).filter(|f| !f.is_empty() && !known(f)) {
            out.push(format!("{path}.format: unrecognized format {f:?}: values are not checked against it"));
        }
        for (k, sub) in v["properties"].as_object().into_iter().flatten() {
            walk(sub, &format!("{path}.properties[{k}]"), out);
        }
        for k in ["items", "additionalProperties"] {
            if let Some(sub) = v.get(k) {
                walk(sub, &format!("{path}.{k}"), out);
            }
        }
    }
    let mut out = Vec::new();
    for (i, x) in list_at(v, &["spec", "versions"]).iter().enumerate() {
        walk(&x["schema"]["openAPIV3Schema"], &format!("spec.versions[{i}].schema.openAPIV3Schema"), &mut out);
    }
    out.extend(unevaluated(v));
    out
}

/// The names by which a definition claims requests, by field.
fn claimed(names: &Value) -> Vec<(&'static str, String)> {
    let one = |key: &'static str| Some((key, str_at(names, &[key]).to_owned())).filter(|(_, s)| !s.is_empty());
    let short = list_at(names, &["shortNames"]).iter().filter_map(Value::as_str).map(|s| ("shortNames", s.to_owned()));
    [one("plural"), one("singular")]
        .into_iter()
        .flatten()
        .chain(short)
        .chain([one("kind"), one("listKind")].into_iter().flatten())
        .collect()
}

/// Decides under which names a definition is served, and says so in its status: whoever of its group came first keeps
/// a name.
pub(crate) fn settle(tx: &Tx<'_>, v: &mut Value) {
    let spec = v["spec"].clone();
    let (name, group) = (str_at(v, &["metadata", "name"]).to_owned(), str_at(&spec, &["group"]).to_owned());
    let (mut resources, mut kinds): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    for (_, o) in tx.list(definitions(), "") {
        let o = o.value();
        if str_at(&o, &["metadata", "name"]) == name || str_at(&o, &["spec", "group"]) != group {
            continue;
        }
        for (key, text) in claimed(&o["status"]["acceptedNames"]) {
            if matches!(key, "kind" | "listKind") {
                kinds.insert(text)
            } else {
                resources.insert(text)
            };
        }
    }
    let taken = claimed(&spec["names"]).into_iter().find(|(key, text)| {
        if matches!(*key, "kind" | "listKind") { kinds.contains(text) } else { resources.contains(text) }
    });
    let status = obj(v, "status");
    status.entry("conditions").or_insert_with(|| json!([]));
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    let storage = list_at(&spec, &["versions"]).iter().find(|x| bool_at(x, &["storage"])).map(|x| x["name"].clone());
    if let (Some(list), Some(s)) = (stored.as_array_mut(), storage)
        && !list.contains(&s)
    {
        list.push(s);
    }
    match unevaluated(v) {
        Some(message) => set_condition(v, "RulesEvaluated", "False", "UnsupportedRules", &message),
        None if condition(v, "RulesEvaluated").is_empty() => {}
        None => set_condition(v, "RulesEvaluated", "True", "NoUnsupportedRules", "all rules are evaluated"),
    }
    let established = condition(v, "Established") == "True";
    match taken {
        None => {
            obj(v, "status").insert("acceptedNames".into(), spec["names"].clone());
            set_condition(v, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
            set_condition(v, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted");
        }
        Some((key, text)) => {
            // What was accepted before stays; a newcomer gets nothing.
            obj(v, "status").entry("acceptedNames").or_insert_with(|| json!({"plural": "", "kind": ""}));
            let reason = format!("{}{}Conflict", key[..1].to_uppercase(), &key[1..]);
            set_condition(v, "NamesAccepted", "False", &reason, &format!("{text:?} is already in use"));
            if !established {
                set_condition(v, "Established", "False", "NotAccepted", "not all names are accepted");
            }
        }
    }
}

/// Marks a definition whose objects are about to go.
pub(crate) fn terminating(v: &mut Value) {
    if at(v, &["metadata", "deletionTimestamp"]).is_none() {
        obj(v, "metadata").insert("deletionTimestamp".into(), rfc3339(unix_now()).into());
    }
    let list = obj(v, "metadata").entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut().filter(|l| !l.iter().any(|f| f == FINALIZER)) {
        list.push(FINALIZER.into());
    }
    set_condition(v, "Terminating", "True", "InstanceDeletionInProgress", "CustomResource deletion is in progress");
}
