//! What the API fills in when an object leaves it out (`pkg/apis/*/v1/defaults.go` of Kubernetes is the reference).

use serde_json::{Map, Value, json};

use crate::util::{default, list_at, obj, str_at};

pub(crate) fn none(_: &mut Value) {}

fn items<'a>(v: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    v.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

pub(crate) fn namespace(v: &mut Value) {
    let name = str_at(v, &["metadata", "name"]).to_owned();
    let meta = obj(v, "metadata");
    let labels = meta.entry("labels").or_insert_with(|| json!({}));
    if let Some(l) = labels.as_object_mut() {
        l.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    default(obj(v, "spec"), "finalizers", json!(["kubernetes"]));
    default(obj(v, "status"), "phase", "Active");
}

pub(crate) fn node(v: &mut Value) {
    let spec = obj(v, "spec");
    // The two ways to write the pod ranges are kept equal, as the API's conversion does.
    match (spec.get("podCIDR").cloned(), spec.get("podCIDRs").and_then(Value::as_array).cloned()) {
        (Some(one), None) => {
            spec.insert("podCIDRs".into(), json!([one]));
        }
        (None, Some(many)) if !many.is_empty() => {
            spec.insert("podCIDR".into(), many[0].clone());
        }
        _ => {}
    }
    obj(v, "status");
}

fn probe(c: &mut Map<String, Value>, key: &str) {
    if let Some(p) = c.get_mut(key).and_then(Value::as_object_mut) {
        for (k, n) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
            // Zero means unset.
            if p.get(k).and_then(Value::as_i64).unwrap_or(0) == 0 {
                p.insert(k.into(), n.into());
            }
        }
        if let Some(h) = p.get_mut("httpGet").and_then(Value::as_object_mut) {
            default(h, "path", "/");
            default(h, "scheme", "HTTP");
        }
    }
}

fn container(c: &mut Map<String, Value>, host_network: bool) {
    let image = c.get("image").and_then(Value::as_str).unwrap_or("");
    // A tag of its own or a digest is taken to be fixed; `latest`, said or meant, is not.
    let tag = image.rsplit('/').next().unwrap_or("");
    let latest = !image.contains('@') && (!tag.contains(':') || tag.ends_with(":latest"));
    default(c, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    default(c, "terminationMessagePath", "/dev/termination-log");
    default(c, "terminationMessagePolicy", "File");
    default(c, "resources", json!({}));
    for p in c.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        default(p, "protocol", "TCP");
        if host_network && let Some(port) = p.get("containerPort").cloned() {
            default(p, "hostPort", port);
        }
    }
    for e in c.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(f) = e.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")).and_then(Value::as_object_mut) {
            default(f, "apiVersion", "v1");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        probe(c, key);
    }
    // A limit is also the request where none is said.
    if let Some(r) = c.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(limits) = r.get("limits").and_then(Value::as_object).cloned()
    {
        let requests = r.entry("requests").or_insert_with(|| json!({}));
        if let Some(requests) = requests.as_object_mut() {
            for (k, q) in limits {
                requests.entry(k).or_insert(q);
            }
        }
    }
}

fn pod_spec(v: &mut Value) {
    let host = crate::util::bool_at(v, &["hostNetwork"]);
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        items(v, key).for_each(|c| container(c, host));
    }
    for vol in items(v, "volumes") {
        if vol.len() == 1 {
            vol.insert("emptyDir".into(), json!({}));
        }
        for key in ["configMap", "secret", "projected", "downwardAPI"] {
            if let Some(s) = vol.get_mut(key).and_then(Value::as_object_mut) {
                default(s, "defaultMode", 420);
            }
        }
        if let Some(s) = vol.get_mut("hostPath").and_then(Value::as_object_mut) {
            default(s, "type", "");
        }
    }
    if let Some(m) = v.as_object_mut() {
        default(m, "restartPolicy", "Always");
        default(m, "terminationGracePeriodSeconds", 30);
        default(m, "dnsPolicy", "ClusterFirst");
        default(m, "securityContext", json!({}));
        default(m, "schedulerName", "default-scheduler");
        // Both names of the account are kept equal.
        match (m.get("serviceAccountName").cloned(), m.get("serviceAccount").cloned()) {
            (Some(n), None) => default(m, "serviceAccount", n),
            (None, Some(n)) => default(m, "serviceAccountName", n),
            _ => {}
        }
    }
}

fn qos(v: &Value) -> &'static str {
    let (mut any, mut all) = (false, true);
    for c in list_at(v, &["spec", "containers"]).iter().chain(list_at(v, &["spec", "initContainers"])) {
        for r in ["cpu", "memory"] {
            let (req, lim) = (&c["resources"]["requests"][r], &c["resources"]["limits"][r]);
            any |= !req.is_null() || !lim.is_null();
            all &= !lim.is_null() && req == lim;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        _ => "Burstable",
    }
}

pub(crate) fn pod(v: &mut Value) {
    obj(v, "spec");
    if let Some(spec) = v.get_mut("spec") {
        pod_spec(spec);
        if let Some(m) = spec.as_object_mut() {
            default(m, "enableServiceLinks", true);
            default(m, "serviceAccountName", "default");
            default(m, "serviceAccount", "default");
            default(m, "preemptionPolicy", "PreemptLowerPriority");
            default(m, "priority", 0);
            if !m.contains_key("tolerations") {
                m.insert(
                    "tolerations".into(),
                    json!([
                        {"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
                        {"effect": "NoExecute", "key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 300}
                    ]),
                );
            }
        }
    }
    let qos = qos(v);
    let status = obj(v, "status");
    default(status, "phase", "Pending");
    default(status, "qosClass", qos);
}

fn template(v: &mut Value) {
    if let Some(t) = v.get_mut("spec").and_then(|s| s.get_mut("template")) {
        obj(t, "metadata");
        if t.get("spec").is_some_and(Value::is_object)
            && let Some(spec) = t.get_mut("spec")
        {
            pod_spec(spec);
        }
    }
}

pub(crate) fn deployment(v: &mut Value) {
    template(v);
    let spec = obj(v, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
    if let Some(s) = strategy.as_object_mut() {
        default(s, "type", "RollingUpdate");
        if s["type"] == "RollingUpdate" {
            let r = s.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Some(r) = r.as_object_mut() {
                default(r, "maxUnavailable", "25%");
                default(r, "maxSurge", "25%");
            }
        }
    }
    obj(v, "status");
}

pub(crate) fn replica_set(v: &mut Value) {
    template(v);
    default(obj(v, "spec"), "replicas", 1);
    default(obj(v, "status"), "replicas", 0);
}

pub(crate) fn stateful_set(v: &mut Value) {
    template(v);
    let spec = obj(v, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "podManagementPolicy", "OrderedReady");
    default(spec, "updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
    let status = obj(v, "status");
    default(status, "replicas", 0);
    default(status, "availableReplicas", 0);
}

pub(crate) fn daemon_set(v: &mut Value) {
    template(v);
    let spec = obj(v, "spec");
    default(spec, "revisionHistoryLimit", 10);
    let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
    if let Some(s) = strategy.as_object_mut() {
        default(s, "type", "RollingUpdate");
        if s["type"] == "RollingUpdate" {
            let r = s.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Some(r) = r.as_object_mut() {
                default(r, "maxUnavailable", 1);
                default(r, "maxSurge", 0);
            }
        }
    }
    let status = obj(v, "status");
    for key in ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"] {
        default(status, key, 0);
    }
}

pub(crate) fn service(v: &mut Value) {
    obj(v, "spec");
    for p in v.get_mut("spec").into_iter().flat_map(|s| items(s, "ports")) {
        default(p, "protocol", "TCP");
        let unset = match p.get("targetPort") {
            None => true,
            Some(t) => t == &json!(0) || t == &json!(""),
        };
        if unset && let Some(port) = p.get("port").cloned() {
            p.insert("targetPort".into(), port);
        }
    }
    let spec = obj(v, "spec");
    default(spec, "sessionAffinity", "None");
    default(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        let c = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
        let c = obj(c, "clientIP");
        default(c, "timeoutSeconds", 10_800);
    } else {
        spec.remove("sessionAffinityConfig");
    }
    let ty = spec["type"].as_str().unwrap_or("").to_owned();
    if ty == "NodePort" || ty == "LoadBalancer" {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if ty != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if ty == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    let status = obj(v, "status");
    default(status, "loadBalancer", json!({}));
}

pub(crate) fn endpoints(v: &mut Value) {
    for s in items(v, "subsets") {
        for p in s.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
        {
            default(p, "protocol", "TCP");
        }
    }
}

pub(crate) fn endpoint_slice(v: &mut Value) {
    for p in items(v, "ports") {
        default(p, "name", "");
        default(p, "protocol", "TCP");
    }
    if let Some(m) = v.as_object_mut()
        && !m.contains_key("endpoints")
    {
        m.insert("endpoints".into(), json!([]));
    }
}

pub(crate) fn secret(v: &mut Value) {
    use base64::Engine;
    if let Some(Value::Object(text)) = crate::util::remove(v, "stringData") {
        let data = obj(v, "data");
        for (k, t) in text {
            let t = t.as_str().unwrap_or("");
            data.insert(k, base64::engine::general_purpose::STANDARD.encode(t).into());
        }
    }
    if let Some(m) = v.as_object_mut() {
        default(m, "type", "Opaque");
    }
}

pub(crate) fn network_policy(v: &mut Value) {
    let spec = obj(v, "spec");
    default(spec, "podSelector", json!({}));
    let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty());
    default(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    for dir in ["ingress", "egress"] {
        for rule in v.get_mut("spec").into_iter().flat_map(|s| items(s, dir)) {
            for p in rule
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                default(p, "protocol", "TCP");
            }
        }
    }
}
