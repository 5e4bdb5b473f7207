//! The columns that `kubectl get` prints, computed here as the API does (`as=Table`, meta.k8s.io/v1).

use serde_json::{Value, json};

use crate::util::{at, bool_at, int_at, list_at, parse_rfc3339, str_at, unix_now};

/// One column of a kind.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) ty: &'static str,
    pub(crate) format: &'static str,
    /// 0: always shown; 1: only with `-o wide`.
    pub(crate) priority: u8,
    pub(crate) cell: fn(&Value) -> Value,
}

const fn col(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, ty: "string", format: "", priority: 0, cell }
}
const fn wide(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, ty: "string", format: "", priority: 1, cell }
}
const fn num(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, ty: "integer", format: "", priority: 0, cell }
}

const NAME: Column = Column {
    name: "Name",
    ty: "string",
    format: "name",
    priority: 0,
    cell: |v| str_at(v, &["metadata", "name"]).into(),
};
const AGE: Column = col("Age", |v| age(str_at(v, &["metadata", "creationTimestamp"])).into());

/// The `columnDefinitions` of a table.
pub(crate) fn definitions(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|c| json!({"name": c.name, "type": c.ty, "format": c.format, "description": "", "priority": c.priority}))
        .collect()
}

/// The cells of a row.
pub(crate) fn cells(columns: &[Column], v: &Value) -> Vec<Value> {
    columns.iter().map(|c| (c.cell)(v)).collect()
}

/// One row; `object` is what the client asked to have beside the cells.
pub(crate) fn row(cells: Vec<Value>, object: Option<Value>) -> Value {
    match object {
        Some(o) => json!({"cells": cells, "object": o}),
        None => json!({"cells": cells}),
    }
}

/// Seconds as kubectl words them: the two leading units while small.
pub(crate) fn human(secs: u64) -> String {
    let (m, h, d) = (secs / 60, secs / 3600, secs / 86400);
    let two = |a: u64, ua: &str, b: u64, ub: &str| if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") };
    match secs {
        0..120 => format!("{secs}s"),
        120..600 => two(m, "m", secs % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => two(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        691_200..63_072_000 => format!("{d}d"),
        63_072_000..252_288_000 => two(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

fn age(time: &str) -> String {
    parse_rfc3339(time).map_or_else(|| "<unknown>".into(), |t| human(unix_now().saturating_sub(t)))
}

fn or_none(s: String) -> String {
    if s.is_empty() { "<none>".into() } else { s }
}

fn joined<'a>(items: impl IntoIterator<Item = &'a Value>, key: &str) -> String {
    items.into_iter().map(|c| str_at(c, &[key])).collect::<Vec<_>>().join(",")
}

fn labels(v: Option<&Value>) -> String {
    let pairs = v.and_then(Value::as_object).into_iter().flatten();
    pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect::<Vec<_>>().join(",")
}

fn selector(v: Option<&Value>) -> String {
    let Some(v) = v else { return "<none>".into() };
    let mut parts = Vec::new();
    let plain = labels(v.get("matchLabels"));
    if !plain.is_empty() {
        parts.push(plain);
    }
    for e in list_at(v, &["matchExpressions"]) {
        let key = str_at(e, &["key"]);
        let values = list_at(e, &["values"]).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
        parts.push(match str_at(e, &["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(parts.join(","))
}

fn template(v: &Value, key: &str) -> Value {
    joined(list_at(v, &["spec", "template", "spec", "containers"]), key).into()
}

fn pod_status(v: &Value) -> String {
    let mut reason = str_at(v, &["status", "phase"]).to_owned();
    let own = str_at(v, &["status", "reason"]);
    if !own.is_empty() {
        own.clone_into(&mut reason);
    }
    let gated = list_at(v, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == "PodScheduled" && str_at(c, &["reason"]) == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".into();
    }
    let inits = list_at(v, &["status", "initContainerStatuses"]);
    let total = list_at(v, &["spec", "initContainers"]).len();
    let mut initialising = false;
    for (i, c) in inits.iter().enumerate() {
        let ended = c["state"].get("terminated");
        if ended.is_some_and(|t| int_at(t, &["exitCode"]) == Some(0)) || bool_at(c, &["started"]) {
            continue;
        }
        initialising = true;
        let waiting = str_at(c, &["state", "waiting", "reason"]);
        reason = match ended {
            Some(t) if !str_at(t, &["reason"]).is_empty() => format!("Init:{}", str_at(t, &["reason"])),
            Some(t) if int_at(t, &["signal"]).is_some_and(|s| s != 0) => {
                format!("Init:Signal:{}", int_at(t, &["signal"]).unwrap_or(0))
            }
            Some(t) => format!("Init:ExitCode:{}", int_at(t, &["exitCode"]).unwrap_or(0)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{total}"),
        };
        break;
    }
    if !initialising {
        let mut running = false;
        for c in list_at(v, &["status", "containerStatuses"]).iter().rev() {
            let waiting = str_at(c, &["state", "waiting", "reason"]);
            let ended = c["state"].get("terminated");
            if !waiting.is_empty() {
                waiting.clone_into(&mut reason);
            } else if let Some(t) = ended {
                reason = match (str_at(t, &["reason"]), int_at(t, &["signal"])) {
                    ("", Some(s)) if s != 0 => format!("Signal:{s}"),
                    ("", _) => format!("ExitCode:{}", int_at(t, &["exitCode"]).unwrap_or(0)),
                    (r, _) => r.to_owned(),
                };
            } else if bool_at(c, &["ready"]) && c["state"].get("running").is_some() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            reason = if condition(v, "Ready") == "True" { "Running".into() } else { "NotReady".into() };
        }
    }
    if v["metadata"].get("deletionTimestamp").is_some() {
        reason = if own == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    reason
}

fn condition<'a>(v: &'a Value, ty: &str) -> &'a str {
    let all = list_at(v, &["status", "conditions"]);
    all.iter().find(|c| str_at(c, &["type"]) == ty).map_or("", |c| str_at(c, &["status"]))
}

fn pod_restarts(v: &Value) -> Value {
    let all = list_at(v, &["status", "containerStatuses"]);
    let n: i64 = all.iter().filter_map(|c| int_at(c, &["restartCount"])).sum();
    let last = all.iter().filter_map(|c| parse_rfc3339(str_at(c, &["lastState", "terminated", "finishedAt"]))).max();
    match last {
        Some(t) if n > 0 => format!("{n} ({} ago)", human(unix_now().saturating_sub(t))).into(),
        _ => n.to_string().into(),
    }
}

fn pod_ready(v: &Value) -> Value {
    let ready = list_at(v, &["status", "containerStatuses"]).iter().filter(|c| bool_at(c, &["ready"])).count();
    format!("{ready}/{}", list_at(v, &["spec", "containers"]).len()).into()
}

fn pod_ips(v: &Value) -> Value {
    let ip = list_at(v, &["status", "podIPs"]).first().map_or("", |p| str_at(p, &["ip"]));
    or_none(if ip.is_empty() { str_at(v, &["status", "podIP"]) } else { ip }.to_owned()).into()
}

fn readiness_gates(v: &Value) -> Value {
    let gates = list_at(v, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let yes = gates.iter().filter(|g| condition(v, str_at(g, &["conditionType"])) == "True").count();
    format!("{yes}/{}", gates.len()).into()
}

fn node_status(v: &Value) -> Value {
    let mut s = match condition(v, "Ready") {
        "True" => "Ready".to_owned(),
        "" => "Unknown".into(),
        _ => "NotReady".into(),
    };
    if bool_at(v, &["spec", "unschedulable"]) {
        s.push_str(",SchedulingDisabled");
    }
    s.into()
}

fn node_roles(v: &Value) -> Value {
    let labels = v["metadata"]["labels"].as_object().into_iter().flatten();
    let roles: Vec<&str> = labels
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(r) if !r.is_empty() => Some(r),
            _ => (k == "kubernetes.io/role").then(|| v.as_str().unwrap_or("")),
        })
        .collect();
    or_none(roles.join(",")).into()
}

fn node_address(v: &Value, ty: &str) -> Value {
    let all = list_at(v, &["status", "addresses"]);
    or_none(all.iter().find(|a| str_at(a, &["type"]) == ty).map_or("", |a| str_at(a, &["address"])).to_owned()).into()
}

fn node_info(v: &Value, key: &str, empty: &str) -> Value {
    let s = str_at(v, &["status", "nodeInfo", key]);
    if s.is_empty() { empty.into() } else { s.into() }
}

fn external_ip(v: &Value) -> Value {
    let given = || list_at(v, &["spec", "externalIPs"]).iter().filter_map(Value::as_str);
    let mut all: Vec<&str> = Vec::new();
    match str_at(v, &["spec", "type"]) {
        "ExternalName" => return or_none(str_at(v, &["spec", "externalName"]).to_owned()).into(),
        "LoadBalancer" => {
            for i in list_at(v, &["status", "loadBalancer", "ingress"]) {
                let ip = str_at(i, &["ip"]);
                all.push(if ip.is_empty() { str_at(i, &["hostname"]) } else { ip });
            }
            all.extend(given());
            return if all.is_empty() { "<pending>".into() } else { all.join(",").into() };
        }
        _ => all.extend(given()),
    }
    or_none(all.join(",")).into()
}

fn service_ports(v: &Value) -> Value {
    let all: Vec<String> = list_at(v, &["spec", "ports"])
        .iter()
        .map(|p| {
            let (port, proto) = (int_at(p, &["port"]).unwrap_or(0), str_at(p, &["protocol"]));
            match int_at(p, &["nodePort"]).filter(|n| *n != 0) {
                Some(n) => format!("{port}:{n}/{proto}"),
                None => format!("{port}/{proto}"),
            }
        })
        .collect();
    or_none(all.join(",")).into()
}

/// At most three and how many more, as kubectl does.
fn some(all: &[String], more: usize) -> String {
    if more > 0 { format!("{} + {more} more...", all.join(",")) } else { or_none(all.join(",")) }
}

fn endpoints(v: &Value) -> Value {
    let mut all = Vec::new();
    for s in list_at(v, &["subsets"]) {
        for a in list_at(s, &["addresses"]) {
            let ip = str_at(a, &["ip"]);
            let ports = list_at(s, &["ports"]);
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            for p in ports {
                let port = int_at(p, &["port"]).unwrap_or(0);
                all.push(if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") });
            }
        }
    }
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    some(&all, more).into()
}

fn slice_ports(v: &Value) -> Value {
    let ports = list_at(v, &["ports"]);
    if ports.is_empty() {
        return "<unset>".into();
    }
    let mut all: Vec<String> =
        ports.iter().map(|p| int_at(p, &["port"]).map_or_else(|| "*".to_owned(), |n| n.to_string())).collect();
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    some(&all, more).into()
}

fn slice_endpoints(v: &Value) -> Value {
    let mut all: Vec<String> = list_at(v, &["endpoints"])
        .iter()
        .flat_map(|e| list_at(e, &["addresses"]))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    if all.is_empty() {
        return "<unset>".into();
    }
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    some(&all, more).into()
}

fn event_time(v: &Value, first: bool) -> Value {
    let (a, b) = if first { ("firstTimestamp", "") } else { ("lastTimestamp", "lastObservedTime") };
    for t in [str_at(v, &["series", b]), str_at(v, &[a]), str_at(v, &["eventTime"])] {
        if !t.is_empty() {
            return age(t).into();
        }
    }
    age(str_at(v, &["metadata", "creationTimestamp"])).into()
}

fn count_of(v: &Value, keys: &[&str]) -> Value {
    keys.iter().map(|k| v[k].as_object().map_or(0, serde_json::Map::len)).sum::<usize>().to_string().into()
}

fn hosts(v: &Value) -> Value {
    let all: Vec<String> = list_at(v, &["spec", "rules"])
        .iter()
        .map(|r| str_at(r, &["host"]).to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    if all.is_empty() {
        return "*".into();
    }
    let more = all.len().saturating_sub(3);
    some(&all[..all.len().min(3)], more).into()
}

fn n(v: &Value, path: &[&str]) -> Value {
    int_at(v, path).unwrap_or(0).into()
}

pub(crate) static DEFINITION: &[Column] = &[
    NAME,
    Column { name: "Created At", ty: "date", ..col("", |v| str_at(v, &["metadata", "creationTimestamp"]).into()) },
];
pub(crate) static PLAIN: &[Column] = &[NAME, AGE];
pub(crate) static NAMESPACE: &[Column] = &[NAME, col("Status", |v| str_at(v, &["status", "phase"]).into()), AGE];
pub(crate) static NODE: &[Column] = &[
    NAME,
    col("Status", node_status),
    col("Roles", node_roles),
    AGE,
    col("Version", |v| node_info(v, "kubeletVersion", "")),
    wide("Internal-IP", |v| node_address(v, "InternalIP")),
    wide("External-IP", |v| node_address(v, "ExternalIP")),
    wide("OS-Image", |v| node_info(v, "osImage", "<unknown>")),
    wide("Kernel-Version", |v| node_info(v, "kernelVersion", "<unknown>")),
    wide("Container-Runtime", |v| node_info(v, "containerRuntimeVersion", "<unknown>")),
];
pub(crate) static POD: &[Column] = &[
    NAME,
    col("Ready", pod_ready),
    col("Status", |v| pod_status(v).into()),
    col("Restarts", pod_restarts),
    AGE,
    wide("IP", pod_ips),
    wide("Node", |v| or_none(str_at(v, &["spec", "nodeName"]).to_owned()).into()),
    wide("Nominated Node", |v| or_none(str_at(v, &["status", "nominatedNodeName"]).to_owned()).into()),
    wide("Readiness Gates", readiness_gates),
];
pub(crate) static SERVICE: &[Column] = &[
    NAME,
    col("Type", |v| str_at(v, &["spec", "type"]).into()),
    col("Cluster-IP", |v| or_none(str_at(v, &["spec", "clusterIP"]).to_owned()).into()),
    col("External-IP", external_ip),
    col("Port(s)", service_ports),
    AGE,
    wide("Selector", |v| or_none(labels(at(v, &["spec", "selector"]))).into()),
];
pub(crate) static ENDPOINTS: &[Column] = &[NAME, col("Endpoints", endpoints), AGE];
pub(crate) static CONFIG_MAP: &[Column] = &[NAME, col("Data", |v| count_of(v, &["data", "binaryData"])), AGE];
pub(crate) static SECRET: &[Column] =
    &[NAME, col("Type", |v| str_at(v, &["type"]).into()), col("Data", |v| count_of(v, &["data"])), AGE];
pub(crate) static SERVICE_ACCOUNT: &[Column] = &[NAME, num("Secrets", |v| list_at(v, &["secrets"]).len().into()), AGE];
pub(crate) static EVENT: &[Column] = &[
    col("Last Seen", |v| event_time(v, false)),
    col("Type", |v| str_at(v, &["type"]).into()),
    col("Reason", |v| str_at(v, &["reason"]).into()),
    col("Object", |v| {
        let o = &v["involvedObject"];
        let (kind, name) = (str_at(o, &["kind"]).to_lowercase(), str_at(o, &["name"]));
        if name.is_empty() { kind.into() } else { format!("{kind}/{name}").into() }
    }),
    wide("Subobject", |v| str_at(v, &["involvedObject", "fieldPath"]).into()),
    wide("Source", |v| {
        let (c, h) = (str_at(v, &["source", "component"]), str_at(v, &["source", "host"]));
        let c = if c.is_empty() { str_at(v, &["reportingComponent"]) } else { c };
        if h.is_empty() { c.into() } else { format!("{c}, {h}").into() }
    }),
    col("Message", |v| str_at(v, &["message"]).trim().into()),
    wide("First Seen", |v| event_time(v, true)),
    wide("Count", |v| int_at(v, &["series", "count"]).or_else(|| int_at(v, &["count"])).unwrap_or(1).into()),
    Column { name: "Name", ty: "string", format: "name", priority: 1, cell: NAME.cell },
];
pub(crate) static DEPLOYMENT: &[Column] = &[
    NAME,
    col("Ready", |v| {
        format!("{}/{}", n(v, &["status", "readyReplicas"]), int_at(v, &["spec", "replicas"]).unwrap_or(1)).into()
    }),
    num("Up-to-date", |v| n(v, &["status", "updatedReplicas"])),
    num("Available", |v| n(v, &["status", "availableReplicas"])),
    AGE,
    wide("Containers", |v| template(v, "name")),
    wide("Images", |v| template(v, "image")),
    wide("Selector", |v| selector(at(v, &["spec", "selector"])).into()),
];
pub(crate) static DAEMON_SET: &[Column] = &[
    NAME,
    num("Desired", |v| n(v, &["status", "desiredNumberScheduled"])),
    num("Current", |v| n(v, &["status", "currentNumberScheduled"])),
    num("Ready", |v| n(v, &["status", "numberReady"])),
    num("Up-to-date", |v| n(v, &["status", "updatedNumberScheduled"])),
    num("Available", |v| n(v, &["status", "numberAvailable"])),
    col("Node Selector", |v| or_none(labels(at(v, &["spec", "template", "spec", "nodeSelector"]))).into()),
    AGE,
    wide("Containers", |v| template(v, "name")),
    wide("Images", |v| template(v, "image")),
    wide("Selector", |v| selector(at(v, &["spec", "selector"])).into()),
];
pub(crate) static CONTROLLER_REVISION: &[Column] = &[
    NAME,
    col("Controller", |v| {
        let owner = list_at(v, &["metadata", "ownerReferences"]).iter().find(|o| bool_at(o, &["controller"]));
        let group = |o| str_at(o, &["apiVersion"]).split('/').next().unwrap_or("");
        let kind = |o| str_at(o, &["kind"]).to_ascii_lowercase();
        or_none(owner.map(|o| format!("{}.{}/{}", kind(o), group(o), str_at(o, &["name"]))).unwrap_or_default()).into()
    }),
    num("Revision", |v| n(v, &["revision"])),
    AGE,
];
pub(crate) static REPLICA_SET: &[Column] = &[
    NAME,
    num("Desired", |v| n(v, &["spec", "replicas"])),
    num("Current", |v| n(v, &["status", "replicas"])),
    num("Ready", |v| n(v, &["status", "readyReplicas"])),
    AGE,
    wide("Containers", |v| template(v, "name")),
    wide("Images", |v| template(v, "image")),
    wide("Selector", |v| selector(at(v, &["spec", "selector"])).into()),
];
pub(crate) static STATEFUL_SET: &[Column] = &[
    NAME,
    col("Ready", |v| format!("{}/{}", n(v, &["status", "readyReplicas"]), n(v, &["spec", "replicas"])).into()),
    AGE,
    wide("Containers", |v| template(v, "name")),
    wide("Images", |v| template(v, "image")),
];
pub(crate) static ENDPOINT_SLICE: &[Column] = &[
    NAME,
    col("AddressType", |v| str_at(v, &["addressType"]).into()),
    col("Ports", slice_ports),
    col("Endpoints", slice_endpoints),
    AGE,
];
pub(crate) static NETWORK_POLICY: &[Column] =
    &[NAME, col("Pod-Selector", |v| selector(at(v, &["spec", "podSelector"])).into()), AGE];
pub(crate) static INGRESS: &[Column] = &[
    NAME,
    col("Class", |v| or_none(str_at(v, &["spec", "ingressClassName"]).to_owned()).into()),
    col("Hosts", hosts),
    col("Address", |v| {
        let all = list_at(v, &["status", "loadBalancer", "ingress"]).iter();
        let all: Vec<&str> = all
            .map(|i| Some(str_at(i, &["ip"])).filter(|s| !s.is_empty()).unwrap_or(str_at(i, &["hostname"])))
            .collect();
        all.join(",").into()
    }),
    col("Ports", |v| if list_at(v, &["spec", "tls"]).is_empty() { "80".into() } else { "80, 443".into() }),
    AGE,
];
pub(crate) static INGRESS_CLASS: &[Column] = &[
    NAME,
    col("Controller", |v| str_at(v, &["spec", "controller"]).into()),
    col("Parameters", |v| match at(v, &["spec", "parameters"]) {
        Some(p) => format!("{}/{}", str_at(p, &["kind"]), str_at(p, &["name"])).into(),
        None => "<none>".into(),
    }),
    AGE,
];
pub(crate) static SERVICE_CIDR: &[Column] = &[
    NAME,
    col("CIDRs", |v| {
        let all: Vec<&str> = list_at(v, &["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
        all.join(",").into()
    }),
    AGE,
];
pub(crate) static LEASE: &[Column] = &[NAME, col("Holder", |v| str_at(v, &["spec", "holderIdentity"]).into()), AGE];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_kubectl() {
        for (s, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3599, "59m"),
            (10_860, "3h1m"),
            (100_000, "27h"),
            (180_000, "2d2h"),
            (86_400 * 30, "30d"),
            (86_400 * 800, "2y70d"),
        ] {
            assert_eq!(human(s), want);
        }
    }

    #[test]
    fn pod_status_words() {
        let pod = |status: Value| json!({"metadata": {}, "spec": {"containers": [{}]}, "status": status});
        assert_eq!(pod_status(&pod(json!({"phase": "Pending"}))), "Pending");
        let waiting =
            json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert_eq!(pod_status(&pod(waiting)), "CrashLoopBackOff");
        let done =
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]});
        assert_eq!(pod_status(&pod(done)), "Completed");
        let mut gone = pod(json!({"phase": "Running"}));
        gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(pod_status(&gone), "Terminating");
    }
}
