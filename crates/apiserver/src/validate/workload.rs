//! Pods and what makes pods.

use std::collections::BTreeSet;

use serde_json::Value;

use super::network::{PORT_NAME, PORT_RANGE, int_or_name, port_name, port_ok, protocol};
use super::{NameRule, immutable, ip, is_label, is_subdomain, label_selector, labels};
use crate::error::Causes;
use crate::util::{at, bool_at, int_at, list_at, str_at};

fn container(c: &Value, path: &str, names: &mut BTreeSet<String>, host_network: bool, out: &mut Causes) {
    let name = str_at(c, &["name"]);
    if name.is_empty() {
        out.required(&format!("{path}.name"), "");
    } else if !is_label(name) {
        out.invalid(&format!("{path}.name"), &name.into(), super::LABEL);
    } else if !names.insert(name.to_owned()) {
        out.duplicate(&format!("{path}.name"), &name.into());
    }
    if str_at(c, &["image"]).trim().is_empty() {
        out.required(&format!("{path}.image"), "");
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    if !policies.contains(&str_at(c, &["imagePullPolicy"])) {
        out.unsupported(&format!("{path}.imagePullPolicy"), &c["imagePullPolicy"], &policies);
    }
    let mut port_names = BTreeSet::new();
    for (i, p) in list_at(c, &["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = str_at(p, &["name"]);
        if !name.is_empty() {
            if !port_name(name) {
                out.invalid(&format!("{path}.name"), &name.into(), PORT_NAME);
            } else if !port_names.insert(name) {
                out.duplicate(&format!("{path}.name"), &name.into());
            }
        }
        match int_at(p, &["containerPort"]) {
            None => out.required(&format!("{path}.containerPort"), ""),
            Some(n) if !port_ok(n) => out.invalid(&format!("{path}.containerPort"), &n.into(), PORT_RANGE),
            Some(n) => {
                if host_network && int_at(p, &["hostPort"]).is_some_and(|h| h != n) {
                    out.invalid(
                        &format!("{path}.hostPort"),
                        &p["hostPort"],
                        "must match `containerPort` when `hostNetwork` is true",
                    );
                }
            }
        }
        if let Some(n) = int_at(p, &["hostPort"]).filter(|n| *n != 0)
            && !port_ok(n)
        {
            out.invalid(&format!("{path}.hostPort"), &n.into(), PORT_RANGE);
        }
        protocol(&p["protocol"], &format!("{path}.protocol"), out);
    }
    for (i, e) in list_at(c, &["env"]).iter().enumerate() {
        let name = str_at(e, &["name"]);
        if name.is_empty() {
            out.required(&format!("{path}.env[{i}].name"), "");
        } else if name.contains('=') {
            out.invalid(&format!("{path}.env[{i}].name"), &name.into(), "must not contain '='");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get(key) {
            probe(p, &format!("{path}.{key}"), out);
        }
    }
}

fn probe(p: &Value, path: &str, out: &mut Causes) {
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
    match handlers.iter().filter(|h| p.get(**h).is_some()).count() {
        0 => out.required(path, "must specify a handler type"),
        1 => {}
        _ => out.forbidden(path, "may not specify more than 1 handler type"),
    }
    for key in ["httpGet", "tcpSocket"] {
        if let Some(h) = p.get(key) {
            int_or_name(&h["port"], &format!("{path}.{key}.port"), out);
        }
    }
    if let Some(e) = p.get("exec")
        && list_at(e, &["command"]).is_empty()
    {
        out.required(&format!("{path}.exec.command"), "");
    }
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if int_at(p, &[key]).is_some_and(|n| n < 0) {
            out.invalid(&format!("{path}.{key}"), &p[key], "must be greater than or equal to 0");
        }
    }
}

/// The spec of a pod at `path`; `restart` are the restart policies allowed there.
fn pod_spec(s: &Value, path: &str, restart: &[&str], out: &mut Causes) {
    let host = bool_at(s, &["hostNetwork"]);
    let containers = list_at(s, &["containers"]);
    if containers.is_empty() {
        out.required(&format!("{path}.containers"), "");
    }
    let mut names = BTreeSet::new();
    for key in ["containers", "initContainers"] {
        for (i, c) in list_at(s, &[key]).iter().enumerate() {
            container(c, &format!("{path}.{key}[{i}]"), &mut names, host, out);
        }
    }
    if !restart.contains(&str_at(s, &["restartPolicy"])) {
        out.unsupported(&format!("{path}.restartPolicy"), &s["restartPolicy"], restart);
    }
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    match str_at(s, &["dnsPolicy"]) {
        "None" if list_at(s, &["dnsConfig", "nameservers"]).is_empty() => {
            out.required(
                &format!("{path}.dnsConfig.nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
        p if !dns.contains(&p) => out.unsupported(&format!("{path}.dnsPolicy"), &s["dnsPolicy"], &dns),
        _ => {}
    }
    for (i, a) in list_at(s, &["dnsConfig", "nameservers"]).iter().enumerate() {
        if ip(a.as_str().unwrap_or("")).is_none() {
            out.invalid(&format!("{path}.dnsConfig.nameservers[{i}]"), a, "must be a valid IP address");
        }
    }
    let node = str_at(s, &["nodeName"]);
    if !node.is_empty()
        && let Some(why) = NameRule::Subdomain.check(node)
    {
        out.invalid(&format!("{path}.nodeName"), &node.into(), &why);
    }
    for key in ["hostname", "subdomain"] {
        let name = str_at(s, &[key]);
        if !name.is_empty() && !is_label(name) {
            out.invalid(&format!("{path}.{key}"), &name.into(), super::LABEL);
        }
    }
    for (i, a) in list_at(s, &["hostAliases"]).iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        if ip(str_at(a, &["ip"])).is_none() {
            out.invalid(&format!("{path}.ip"), &a["ip"], "must be a valid IP address");
        }
        for (j, h) in list_at(a, &["hostnames"]).iter().enumerate() {
            if !is_subdomain(h.as_str().unwrap_or("")) {
                out.invalid(&format!("{path}.hostnames[{j}]"), h, super::SUBDOMAIN);
            }
        }
    }
    if int_at(s, &["terminationGracePeriodSeconds"]).is_some_and(|n| n < 0) {
        out.invalid(
            &format!("{path}.terminationGracePeriodSeconds"),
            &s["terminationGracePeriodSeconds"],
            "must be greater than or equal to 0",
        );
    }
    labels(s["nodeSelector"].as_object(), &format!("{path}.nodeSelector"), out);
    volumes(s, path, out);
}

fn volumes(s: &Value, path: &str, out: &mut Causes) {
    let mut names = BTreeSet::new();
    for (i, v) in list_at(s, &["volumes"]).iter().enumerate() {
        let name = str_at(v, &["name"]);
        let at = format!("{path}.volumes[{i}].name");
        if !is_label(name) {
            out.invalid(&at, &name.into(), super::LABEL);
        } else if !names.insert(name) {
            out.duplicate(&at, &name.into());
        }
        if v.as_object().is_some_and(|m| m.len() > 2) {
            out.forbidden(&format!("{path}.volumes[{i}]"), "may not specify more than 1 volume type");
        }
    }
    for key in ["containers", "initContainers"] {
        for (i, c) in list_at(s, &[key]).iter().enumerate() {
            for (j, m) in list_at(c, &["volumeMounts"]).iter().enumerate() {
                let path = format!("{path}.{key}[{i}].volumeMounts[{j}]");
                let name = str_at(m, &["name"]);
                if !names.contains(name) {
                    out.push_not_found(&format!("{path}.name"), &name.into());
                }
                if str_at(m, &["mountPath"]).is_empty() {
                    out.required(&format!("{path}.mountPath"), "");
                }
            }
        }
    }
}

pub(crate) fn pod(v: &Value, old: Option<&Value>, c: &mut Causes) {
    pod_spec(&v["spec"], "spec", &["Always", "OnFailure", "Never"], c);
    for (i, a) in list_at(v, &["status", "podIPs"]).iter().enumerate() {
        if ip(str_at(a, &["ip"])).is_none() {
            c.invalid(&format!("status.podIPs[{i}].ip"), &a["ip"], "must be a valid IP address");
        }
    }
    let phases = ["Failed", "Pending", "Running", "Succeeded", "Unknown"];
    let phase = str_at(v, &["status", "phase"]);
    if !phase.is_empty() && !phases.contains(&phase) {
        c.unsupported("status.phase", &phase.into(), &phases);
    }
    let Some(old) = old else { return };
    // Only these fields of a pod's spec may change after it was made.
    let fixed = |spec: &Value| {
        let mut s = spec.clone();
        if let Some(m) = s.as_object_mut() {
            for key in [
                "activeDeadlineSeconds",
                "tolerations",
                "terminationGracePeriodSeconds",
                "ephemeralContainers",
                "schedulingGates",
            ] {
                m.remove(key);
            }
            for key in ["containers", "initContainers"] {
                for c in m.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                    crate::util::remove(c, "image");
                    crate::util::remove(c, "imagePullPolicy");
                    crate::util::remove(c, "resources");
                }
            }
        }
        s
    };
    if fixed(&v["spec"]) != fixed(&old["spec"]) {
        c.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
}

/// Whether a selector object picks a set of labels.
fn selects(selector: &Value, labels: Option<&Value>) -> bool {
    let get = |k: &str| labels.and_then(|l| l.get(k)).and_then(Value::as_str);
    selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| get(k) == v.as_str())
        && list_at(selector, &["matchExpressions"]).iter().all(|e| {
            let has = get(str_at(e, &["key"]));
            let listed = || list_at(e, &["values"]).iter().any(|v| v.as_str() == has);
            match str_at(e, &["operator"]) {
                "In" => has.is_some() && listed(),
                "NotIn" => has.is_none() || !listed(),
                "Exists" => has.is_some(),
                _ => has.is_none(),
            }
        })
}

/// Selector and template of anything that makes pods.
fn template(v: &Value, old: Option<&Value>, c: &mut Causes) {
    let spec = &v["spec"];
    let selector = &spec["selector"];
    let empty = selector["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty)
        && list_at(selector, &["matchExpressions"]).is_empty();
    let tlabels = at(spec, &["template", "metadata", "labels"]);
    if selector.is_null() {
        c.required("spec.selector", "");
    } else if empty {
        c.invalid("spec.selector", selector, "empty selector is invalid for deployment");
    } else {
        label_selector(selector, "spec.selector", c);
        if !selects(selector, tlabels) {
            c.invalid(
                "spec.template.metadata.labels",
                tlabels.unwrap_or(&Value::Null),
                "`selector` does not match template `labels`",
            );
        }
    }
    labels(tlabels.and_then(Value::as_object), "spec.template.metadata.labels", c);
    pod_spec(&spec["template"]["spec"], "spec.template.spec", &["Always"], c);
    immutable(v, old, &["spec", "selector"], c);
    for key in ["minReadySeconds", "revisionHistoryLimit"] {
        if int_at(spec, &[key]).is_some_and(|n| n < 0) {
            c.invalid(&format!("spec.{key}"), &spec[key], "must be greater than or equal to 0");
        }
    }
}

/// A count or a percentage.
fn int_or_percent(v: &Value, path: &str, c: &mut Causes) -> bool {
    let percent = |s: &str| s.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
    match (v.as_i64(), v.as_str()) {
        (Some(n), _) if n < 0 => c.invalid(path, v, "must be greater than or equal to 0"),
        (None, Some(s)) if percent(s).is_none() => c.invalid(
            path,
            v,
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
             for validation is '[0-9]+%')",
        ),
        (Some(n), _) => return n == 0,
        (None, Some(s)) => return percent(s) == Some(0),
        _ => {}
    }
    false
}

fn strategy(s: &Value, path: &str, types: &[&str], c: &mut Causes) {
    let ty = str_at(s, &["type"]);
    if !types.contains(&ty) {
        c.unsupported(&format!("{path}.type"), &s["type"], types);
        return;
    }
    let Some(r) = s.get("rollingUpdate") else { return };
    if ty != "RollingUpdate" {
        c.forbidden(&format!("{path}.rollingUpdate"), &format!("may not be specified when strategy `type` is '{ty}'"));
        return;
    }
    let at = format!("{path}.rollingUpdate");
    if r.get("maxUnavailable").is_some() && r.get("maxSurge").is_some() {
        let none = int_or_percent(&r["maxUnavailable"], &format!("{at}.maxUnavailable"), c);
        if int_or_percent(&r["maxSurge"], &format!("{at}.maxSurge"), c) && none {
            c.invalid(&format!("{at}.maxUnavailable"), &r["maxUnavailable"], "may not be 0 when `maxSurge` is 0");
        }
    }
}

/// Deployments, and the kinds that have the same selector, template and replicas.
pub(crate) fn deployment(v: &Value, old: Option<&Value>, c: &mut Causes) {
    template(v, old, c);
    let spec = &v["spec"];
    if int_at(spec, &["replicas"]).is_some_and(|n| n < 0) {
        c.invalid("spec.replicas", &spec["replicas"], "must be greater than or equal to 0");
    }
    if let Some(s) = spec.get("strategy") {
        strategy(s, "spec.strategy", &["Recreate", "RollingUpdate"], c);
    }
    if let (Some(d), Some(m)) =
        (int_at(spec, &["progressDeadlineSeconds"]), Some(int_at(spec, &["minReadySeconds"]).unwrap_or(0)))
        && d <= m
    {
        c.invalid("spec.progressDeadlineSeconds", &d.into(), "must be greater than minReadySeconds");
    }
}

pub(crate) fn daemon_set(v: &Value, old: Option<&Value>, c: &mut Causes) {
    template(v, old, c);
    if let Some(s) = v["spec"].get("updateStrategy") {
        strategy(s, "spec.updateStrategy", &["OnDelete", "RollingUpdate"], c);
    }
}

pub(crate) fn controller_revision(v: &Value, old: Option<&Value>, c: &mut Causes) {
    immutable(v, old, &["data"], c);
    if int_at(v, &["revision"]).is_none_or(|n| n < 0) {
        c.invalid("revision", &v["revision"], "must be greater than or equal to 0");
    }
}
