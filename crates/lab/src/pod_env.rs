//! What a container's process finds in its environment, and `$(VAR)` in its command.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

/// An environment, in order of definition; a later value of one name wins.
pub type Env = BTreeMap<String, String>;

/// Where `configMapKeyRef` and its like look. Keys are `configmap/NAME` and `secret/NAME` in the pod's namespace.
pub type Sources = BTreeMap<String, BTreeMap<String, String>>;

/// `redis-master` as it begins a variable: `REDIS_MASTER`.
fn upper(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// The variables of services, as a kubelet sets them: for each with a cluster address `NAME_SERVICE_HOST`,
/// `NAME_SERVICE_PORT`, one `NAME_SERVICE_PORT_PORTNAME` per named port, and the Docker link forms.
///
/// `services` are those of the pod's namespace and `default/kubernetes`.
#[must_use]
pub fn service_env<'a>(services: impl IntoIterator<Item = &'a Service>) -> Env {
    let mut env = Env::new();
    for s in services {
        let (Some(name), Some(spec)) = (&s.metadata.name, &s.spec) else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|i| !i.is_empty() && *i != "None") else { continue };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let p = upper(name);
        env.insert(format!("{p}_SERVICE_HOST"), ip.into());
        env.insert(format!("{p}_SERVICE_PORT"), first.port.to_string());
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (i, port) in ports.iter().enumerate() {
            if let Some(n) = port.name.as_deref().filter(|n| !n.is_empty()) {
                env.insert(format!("{p}_SERVICE_PORT_{}", upper(n)), port.port.to_string());
            }
            let proto = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", proto.to_ascii_lowercase(), port.port);
            if i == 0 {
                env.insert(format!("{p}_PORT"), url.clone());
            }
            let link = format!("{p}_PORT_{}_{proto}", port.port);
            env.insert(link.clone(), url);
            env.insert(format!("{link}_PROTO"), proto.to_ascii_lowercase());
            env.insert(format!("{link}_PORT"), port.port.to_string());
            env.insert(format!("{link}_ADDR"), ip.into());
        }
    }
    env
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; an unknown name stays as it is written.
#[must_use]
pub fn expand(text: &str, env: &Env) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(i) = rest.find('$') {
        out.push_str(&rest[..i]);
        let after = &rest[i + 1..];
        if let Some(r) = after.strip_prefix('$') {
            out.push('$');
            rest = r;
        } else if let Some((name, r)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match env.get(name) {
                Some(v) => out.push_str(v),
                None => out.push_str(&rest[i..i + name.len() + 3]),
            }
            rest = r;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// A field of the pod, by the paths that the downward API knows.
fn field(pod: &Pod, path: &str) -> Option<String> {
    let m = &pod.metadata;
    let st = pod.status.as_ref();
    let keyed = |prefix: &str, map: Option<&BTreeMap<String, String>>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => m.name.clone(),
        "metadata.namespace" => m.namespace.clone(),
        "metadata.uid" => m.uid.clone(),
        "spec.nodeName" => pod.spec.as_ref()?.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.as_ref()?.service_account_name.clone(),
        "status.hostIP" => st?.host_ip.clone(),
        "status.podIP" => st?.pod_ip.clone(),
        "status.hostIPs" => Some(st?.host_ips.iter().flatten().map(|i| i.ip.clone()).collect::<Vec<_>>().join(",")),
        "status.podIPs" => Some(st?.pod_ips.iter().flatten().map(|i| i.ip.clone()).collect::<Vec<_>>().join(",")),
        _ => keyed("metadata.labels", m.labels.as_ref())
            .or_else(|| keyed("metadata.annotations", m.annotations.as_ref())),
    }
}

fn resolve(from: &EnvVarSource, pod: &Pod, sources: &Sources) -> Result<Option<String>, String> {
    let lookup = |kind: &str, name: &str, key: &str, optional: Option<bool>| {
        let object = sources.get(&format!("{}/{name}", kind.to_ascii_lowercase()));
        match object.and_then(|o| o.get(key)) {
            Some(v) => Ok(Some(v.clone())),
            None if optional == Some(true) => Ok(None),
            None if object.is_none() => Err(format!("{kind} {name:?} not found: create it in the pod's namespace")),
            None => Err(format!("couldn't find key {key} in {kind} {name}: add it")),
        }
    };
    if let Some(f) = &from.field_ref {
        return field(pod, &f.field_path)
            .map(Some)
            .ok_or_else(|| format!("fieldRef {:?}: a lab does not know this field", f.field_path));
    }
    if let Some(r) = &from.config_map_key_ref {
        return lookup("ConfigMap", &r.name, &r.key, r.optional);
    }
    if let Some(r) = &from.secret_key_ref {
        return lookup("Secret", &r.name, &r.key, r.optional);
    }
    Err("valueFrom: a lab knows fieldRef, configMapKeyRef and secretKeyRef".into())
}

/// The whole environment of a container: services first, then `envFrom`, then `env` in order, each able to use what
/// stands before it.
///
/// # Errors
/// A sentence that names the variable and what it lacks (a kubelet's CreateContainerConfigError).
pub fn container_env(pod: &Pod, c: &Container, services: Env, sources: &Sources) -> Result<Env, String> {
    let mut env = services;
    env.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    env.insert("HOME".into(), "/root".into());
    env.insert("HOSTNAME".into(), crate::dns_files::hostname(pod));
    for f in c.env_from.iter().flatten() {
        let prefix = f.prefix.as_deref().unwrap_or_default();
        let (key, optional) = match (&f.config_map_ref, &f.secret_ref) {
            (Some(r), _) => (format!("configmap/{}", r.name), r.optional),
            (_, Some(r)) => (format!("secret/{}", r.name), r.optional),
            _ => continue,
        };
        match sources.get(&key) {
            Some(o) => env.extend(o.iter().map(|(k, v)| (format!("{prefix}{k}"), v.clone()))),
            None if optional == Some(true) => {}
            None => return Err(format!("envFrom: {key} not found: create it in the pod's namespace")),
        }
    }
    for v in c.env.iter().flatten() {
        let value = match (&v.value, &v.value_from) {
            (Some(t), _) => Some(expand(t, &env)),
            (None, Some(from)) => resolve(from, pod, sources).map_err(|e| format!("env {}: {e}", v.name))?,
            (None, None) => Some(String::new()),
        };
        if let Some(x) = value {
            env.insert(v.name.clone(), x);
        }
    }
    Ok(env)
}

/// The objects that a container's environment needs, as (kind path segment, name).
#[must_use]
pub fn needs(c: &Container) -> Vec<(&'static str, String)> {
    let mut v = Vec::new();
    for f in c.env_from.iter().flatten() {
        v.extend(f.config_map_ref.as_ref().map(|r| ("configmap", r.name.clone())));
        v.extend(f.secret_ref.as_ref().map(|r| ("secret", r.name.clone())));
    }
    for f in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        v.extend(f.config_map_key_ref.as_ref().map(|r| ("configmap", r.name.clone())));
        v.extend(f.secret_key_ref.as_ref().map(|r| ("secret", r.name.clone())));
    }
    v.sort();
    v.dedup();
    v
}

/// The command line of a container, `None` for the built-in server: `command` then `args`, with `$(VAR)` replaced.
/// `args` alone are the image's business, and there is no image.
#[must_use]
pub fn command_line(c: &Container, env: &Env) -> Option<Vec<String>> {
    let command = c.command.as_ref().filter(|v| !v.is_empty())?;
    Some(command.iter().chain(c.args.iter().flatten()).map(|a| expand(a, env)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(v: Value) -> Service {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn services_as_a_kubelet_says_them() {
        let redis = service(json!({"metadata": {"name": "redis-master"}, "spec": {"clusterIP": "10.0.0.11",
            "ports": [{"port": 6379}, {"name": "m-x", "port": 9, "protocol": "UDP"}]}}));
        let headless =
            service(json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}));
        let v6 = service(json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "fd00::1", "ports": [{"port": 80}]}}));
        let env = service_env([&redis, &headless, &v6]);
        for (k, v) in [
            ("REDIS_MASTER_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_MASTER_SERVICE_PORT", "6379"),
            ("REDIS_MASTER_SERVICE_PORT_M_X", "9"),
            ("REDIS_MASTER_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_MASTER_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_MASTER_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_MASTER_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_MASTER_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("REDIS_MASTER_PORT_9_UDP", "udp://10.0.0.11:9"),
            ("S_PORT", "tcp://[fd00::1]:80"),
        ] {
            assert_eq!(env.get(k).map(String::as_str), Some(v), "{k}");
        }
        assert!(!env.keys().any(|k| k.starts_with("H_")));
    }

    #[test]
    fn expansion() {
        let env = Env::from([("A".into(), "1".into())]);
        for (text, want) in
            [("x$(A)y", "x1y"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A"), ("", "")]
        {
            assert_eq!(expand(text, &env), want);
        }
    }

    #[test]
    fn env_in_order_with_fields_and_references() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": "x"}},
            "spec": {"nodeName": "node1", "containers": []},
            "status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}}))
        .unwrap();
        let c: Container =
            serde_json::from_value(json!({"name": "c", "command": ["echo", "$(B)"], "args": ["$(NONE)"],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
            "env": [{"name": "A", "value": "$(P_K)!"}, {"name": "B", "value": "$(A)$(A)"},
                {"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}}]}))
            .unwrap();
        let sources = Sources::from([("configmap/m".into(), BTreeMap::from([("K".into(), "v".into())]))]);
        let env = container_env(&pod, &c, Env::new(), &sources).unwrap();
        assert_eq!(env["B"], "v!v!");
        assert_eq!(env["IPS"], "10.0.0.2,fd00::2");
        assert_eq!(env["L"], "x");
        assert!(!env.contains_key("O"));
        assert_eq!(command_line(&c, &env).unwrap(), ["echo", "v!v!", "$(NONE)"]);
        assert_eq!(needs(&c), [("configmap", "m".to_owned()), ("secret", "s".to_owned())]);
        let e = container_env(&pod, &c, Env::new(), &Sources::new()).unwrap_err();
        assert!(e.contains("configmap/m not found"), "{e}");
    }
}
