//! What makes an object wrong, told as causes with field paths (`pkg/apis/*/validation` of Kubernetes is the reference).

mod network;
mod workload;

use std::net::IpAddr;

use serde_json::{Map, Value};
use types::Cidr;

use crate::error::Causes;
use crate::resource::Resource;
use crate::util::{list_at, str_at};

pub(crate) use network::{endpoint_slice, endpoints, ingress, ingress_class, network_policy, service};
pub(crate) use workload::{controller_revision, daemon_set, deployment, pod};

/// How the names of a kind must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label.
    Label1035,
}

pub(crate) const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
     or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
pub(crate) const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
     must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
     alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
     validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

pub(crate) fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&b.len()) && b.iter().all(|c| alnum(*c) || *c == b'-') && alnum(b[0]) && alnum(b[b.len() - 1])
}

pub(crate) fn is_subdomain(s: &str) -> bool {
    // Each part is like a label, but only the whole is limited in length.
    s.len() <= 253
        && s.split('.').all(|p| {
            let b = p.as_bytes();
            let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
            !b.is_empty() && b.iter().all(|c| alnum(*c) || *c == b'-') && alnum(b[0]) && alnum(b[b.len() - 1])
        })
}

impl NameRule {
    /// Why the name is wrong.
    pub(crate) fn check(self, name: &str) -> Option<String> {
        let (ok, why, max) = match self {
            Self::Subdomain => (is_subdomain(name), SUBDOMAIN, 253),
            Self::Label => (is_label(name), LABEL, 63),
            Self::Label1035 => (is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035, 63),
        };
        if ok {
            None
        } else if name.len() > max {
            Some(format!("must be no more than {max} characters"))
        } else {
            Some(why.to_owned())
        }
    }
}

fn qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=63).contains(&b.len())
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
}

/// The key of a label or annotation: `[prefix/]name`.
pub(crate) fn is_qualified_name(s: &str) -> bool {
    match s.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && qualified_part(name),
        None => qualified_part(s),
    }
}

pub(crate) fn is_label_value(s: &str) -> bool {
    s.is_empty() || qualified_part(s)
}

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]'), with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
     must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
     validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

pub(crate) fn labels(m: Option<&Map<String, Value>>, path: &str, c: &mut Causes) {
    for (k, v) in m.into_iter().flatten() {
        if !is_qualified_name(k) {
            c.invalid(path, &k.as_str().into(), QUALIFIED);
        }
        let text = v.as_str().unwrap_or("");
        if !is_label_value(text) {
            let why = if text.len() > 63 { "must be no more than 63 characters" } else { LABEL_VALUE };
            c.invalid(path, v, why);
        }
    }
}

/// A label selector object.
pub(crate) fn label_selector(v: &Value, path: &str, c: &mut Causes) {
    labels(v["matchLabels"].as_object(), &format!("{path}.matchLabels"), c);
    for (i, e) in list_at(v, &["matchExpressions"]).iter().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        let key = str_at(e, &["key"]);
        if !is_qualified_name(key) {
            c.invalid(&format!("{at}.key"), &key.into(), QUALIFIED);
        }
        let values = list_at(e, &["values"]);
        match str_at(e, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                c.required(&format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                c.forbidden(
                    &format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => c.invalid(&format!("{at}.operator"), &other.into(), "not a valid selector operator"),
        }
        for (j, x) in values.iter().enumerate() {
            if !is_label_value(x.as_str().unwrap_or("")) {
                c.invalid(&format!("{at}.values[{j}]"), x, LABEL_VALUE);
            }
        }
    }
}

/// The metadata of any object.
pub(crate) fn meta(res: &Resource, v: &Value, old: Option<&Value>, c: &mut Causes) {
    let m = &v["metadata"];
    let name = str_at(m, &["name"]);
    if name.is_empty() {
        c.required("metadata.name", "name or generateName is required");
    } else if let Some(why) = res.name.check(name) {
        c.invalid("metadata.name", &name.into(), &why);
    }
    labels(m["labels"].as_object(), "metadata.labels", c);
    let mut size = 0;
    for (k, v) in m["annotations"].as_object().into_iter().flatten() {
        size += k.len() + v.as_str().map_or(0, str::len);
        // Keys of annotations may have capitals in the prefix.
        if !is_qualified_name(&k.to_lowercase()) {
            c.invalid("metadata.annotations", &k.as_str().into(), QUALIFIED);
        }
    }
    if size > 256 << 10 {
        c.too_long("metadata.annotations", 256 << 10);
    }
    let mut controllers = 0;
    for (i, o) in list_at(m, &["ownerReferences"]).iter().enumerate() {
        let at = format!("metadata.ownerReferences[{i}]");
        for key in ["apiVersion", "kind", "name", "uid"] {
            if str_at(o, &[key]).is_empty() {
                c.invalid(&format!("{at}.{key}"), &"".into(), "must not be empty");
            }
        }
        controllers += usize::from(crate::util::bool_at(o, &["controller"]));
    }
    if controllers > 1 {
        c.invalid(
            "metadata.ownerReferences",
            &m["ownerReferences"],
            "Only one reference can have Controller set to true",
        );
    }
    for f in list_at(m, &["finalizers"]) {
        if !is_qualified_name(f.as_str().unwrap_or("")) {
            c.invalid("metadata.finalizers", f, QUALIFIED);
        }
    }
    if let Some(old) = old
        && old["metadata"].get("deletionTimestamp").is_some()
    {
        let had = list_at(old, &["metadata", "finalizers"]);
        if let Some(f) = list_at(m, &["finalizers"]).iter().find(|f| !had.contains(f)) {
            c.forbidden(
                "metadata.finalizers",
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers {f}"),
            );
        }
    }
}

pub(crate) fn none(_: &Value, _: Option<&Value>, _: &mut Causes) {}

/// Says so when a field has changed that may not.
pub(crate) fn immutable(new: &Value, old: Option<&Value>, path: &[&str], c: &mut Causes) {
    let Some(old) = old else { return };
    let (n, o) = (crate::util::at(new, path), crate::util::at(old, path));
    if n != o {
        c.invalid(&path.join("."), n.unwrap_or(&Value::Null), "field is immutable");
    }
}

/// An address in its plain form: what Rust parses is what Go parses, without zones and leading zeros.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

pub(crate) fn node(v: &Value, old: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    let ranges = list_at(spec, &["podCIDRs"]);
    let mut parsed: Vec<Cidr> = Vec::new();
    for (i, r) in ranges.iter().enumerate() {
        match r.as_str().unwrap_or("").parse::<Cidr>() {
            Ok(cidr) => parsed.push(cidr),
            Err(e) => c.invalid(
                &format!("spec.podCIDRs[{i}]"),
                r,
                &format!("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64): {e}"),
            ),
        }
    }
    if ranges.len() > 2 || parsed.len() == 2 && parsed[0].family() == parsed[1].family() {
        c.invalid("spec.podCIDRs", &spec["podCIDRs"], "may specify no more than one CIDR for each IP family");
    }
    let single = str_at(spec, &["podCIDR"]);
    if !single.is_empty() && ranges.first().and_then(Value::as_str) != Some(single) {
        c.invalid("spec.podCIDR", &single.into(), "must match the first element of podCIDRs");
    }
    if let Some(old) = old {
        // Set once: routes and addresses of the whole cluster hang on it.
        let had = list_at(old, &["spec", "podCIDRs"]);
        if !had.is_empty() && had != ranges {
            c.forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
        }
        let had = str_at(old, &["spec", "providerID"]);
        if !had.is_empty() && had != str_at(spec, &["providerID"]) {
            c.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
        }
    }
    for (i, t) in list_at(spec, &["taints"]).iter().enumerate() {
        let at = format!("spec.taints[{i}]");
        if !is_qualified_name(str_at(t, &["key"])) {
            c.invalid(&format!("{at}.key"), &t["key"], QUALIFIED);
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !effects.contains(&str_at(t, &["effect"])) {
            c.unsupported(&format!("{at}.effect"), &t["effect"], &effects);
        }
    }
    let mut seen = Vec::new();
    for (i, a) in list_at(v, &["status", "addresses"]).iter().enumerate() {
        if seen.contains(&a) {
            c.duplicate(&format!("status.addresses[{i}]"), a);
        }
        seen.push(a);
    }
}

fn data_keys(v: &Value, fields: &[&str], c: &mut Causes) {
    let mut size = 0;
    for f in fields {
        for (k, text) in v[f].as_object().into_iter().flatten() {
            size += text.as_str().map_or(0, str::len);
            let ok = (1..=253).contains(&k.len())
                && k.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && k != "."
                && !k.starts_with("..");
            if !ok {
                c.invalid(
                    &format!("{f}[{k}]"),
                    &k.as_str().into(),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                     'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                );
            }
        }
    }
    if size > 1 << 20 {
        c.too_long("data", 1 << 20);
    }
}

fn immutable_data(v: &Value, old: Option<&Value>, fields: &[&str], c: &mut Causes) {
    let Some(old) = old.filter(|o| crate::util::bool_at(o, &["immutable"])) else { return };
    if !crate::util::bool_at(v, &["immutable"]) {
        c.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for f in fields {
        if v.get(f) != old.get(f) {
            c.forbidden(f, "field is immutable when `immutable` is set");
        }
    }
}

pub(crate) fn config_map(v: &Value, old: Option<&Value>, c: &mut Causes) {
    data_keys(v, &["data", "binaryData"], c);
    for k in v["data"].as_object().into_iter().flatten().map(|(k, _)| k) {
        if v["binaryData"].get(k).is_some() {
            c.invalid(&format!("data[{k}]"), &k.as_str().into(), "duplicate of key present in binaryData");
        }
    }
    immutable_data(v, old, &["data", "binaryData"], c);
}

pub(crate) fn secret(v: &Value, old: Option<&Value>, c: &mut Causes) {
    data_keys(v, &["data"], c);
    immutable(v, old, &["type"], c);
    immutable_data(v, old, &["data"], c);
    let need: &[&str] = match str_at(v, &["type"]) {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        _ => &[],
    };
    for k in need {
        if v["data"].get(k).is_none() {
            c.required(&format!("data[{k}]"), "");
        }
    }
}

pub(crate) fn event(v: &Value, _: Option<&Value>, c: &mut Causes) {
    let ns = str_at(v, &["metadata", "namespace"]);
    let about = str_at(v, &["involvedObject", "namespace"]);
    // Events about objects without a namespace live in `default` (or in kube-system).
    if !about.is_empty() && about != ns {
        c.invalid("involvedObject.namespace", &about.into(), "does not match event.namespace");
    }
    if about.is_empty() && ns != "default" && ns != "kube-system" && !str_at(v, &["involvedObject", "kind"]).is_empty()
    {
        c.invalid("involvedObject.namespace", &about.into(), "does not match event.namespace");
    }
}

pub(crate) fn lease(v: &Value, _: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        c.invalid("spec.leaseDurationSeconds", &spec["leaseDurationSeconds"], "must be greater than 0");
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
        c.invalid("spec.leaseTransitions", &spec["leaseTransitions"], "must be greater than or equal to 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for ok in ["a", "a-b", "0a", "a.b.c", &"a".repeat(63)] {
            assert_eq!(NameRule::Subdomain.check(ok), None, "{ok}");
        }
        for bad in ["", "-a", "a-", "A", "a..b", ".a", "a_b", &"a".repeat(254)] {
            assert!(NameRule::Subdomain.check(bad).is_some(), "{bad}");
        }
        assert!(NameRule::Label.check("a.b").is_some() && NameRule::Label1035.check("0a").is_some());
        assert!(NameRule::Label.check(&"a".repeat(64)).unwrap().contains("63"));
    }

    #[test]
    fn label_syntax() {
        for ok in ["a", "example.com/Name", "A_b.c-d", "0"] {
            assert!(is_qualified_name(ok), "{ok}");
        }
        for bad in ["", "a/", "/a", "a/b/c", "-a", "a b", "Example.com/a"] {
            assert!(!is_qualified_name(bad), "{bad}");
        }
        assert!(is_label_value("") && is_label_value("v1.2_x") && !is_label_value("a b") && !is_label_value("-"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in "\\PC{0,80}") {
            let _ = (is_label(&s), is_subdomain(&s), is_qualified_name(&s), is_label_value(&s));
        }
    }
}
