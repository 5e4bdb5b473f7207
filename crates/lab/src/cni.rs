//! Calls CNI plugins as a container runtime does (CNI specification 1.1.0, section 3 and 4).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{Doing, LabError};

/// The longest one plugin may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The interface of a pod's first network.
pub const IFNAME: &str = "eth0";

/// The versions of the specification that are spoken here, oldest first.
const SPOKEN: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network configuration list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfList {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

impl ConfList {
    /// The first configuration by file name in a directory, as every runtime chooses. `None` when there is none yet.
    ///
    /// # Errors
    /// When the first is malformed.
    pub fn load(dir: &Path) -> Result<Option<Self>, LabError> {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(dir) {
            Ok(d) => d.flatten().map(|e| e.path()).collect(),
            Err(_) => return Ok(None),
        };
        files.retain(|f| f.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json"));
        files.sort();
        let Some(file) = files.first() else { return Ok(None) };
        let text = match std::fs::read_to_string(file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            r => r.doing(|| format!("{}", file.display()))?,
        };
        Self::parse(&text).map(Some).map_err(|e| LabError::new(format!("{}: {e}", file.display())))
    }

    /// Reads a list, or a single plugin's configuration as a list of one.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn parse(text: &str) -> Result<Self, LabError> {
        let v: Value = serde_json::from_str(text).doing(|| "not JSON")?;
        let need =
            |k: &str| v[k].as_str().map(str::to_owned).ok_or_else(|| LabError::new(format!("field {k:?}: missing")));
        let plugins = match &v["plugins"] {
            Value::Array(a) => a
                .iter()
                .map(|p| p.as_object().cloned().ok_or_else(|| LabError::new("field \"plugins\": holds a non-object")))
                .collect::<Result<_, _>>()?,
            _ => v.as_object().cloned().into_iter().collect::<Vec<_>>(),
        };
        if plugins.is_empty() || plugins.iter().any(|p| !p.get("type").is_some_and(Value::is_string)) {
            return Err(LabError::new("field \"plugins\": each needs a \"type\""));
        }
        // As libcni chooses: the newest of `cniVersions` that is spoken here.
        let newest = SPOKEN.iter().rfind(|s| v["cniVersions"].as_array().is_some_and(|a| a.contains(&json!(s))));
        let version = match newest {
            Some(v) => (*v).to_owned(),
            None => need("cniVersion")?,
        };
        Ok(Self { name: need("name")?, version, plugins })
    }

    /// What one plugin gets on standard input.
    fn request(&self, plugin: &Map<String, Value>, args: &Attachment, previous: Option<&Value>) -> Value {
        let mut c = plugin.clone();
        c.insert("name".into(), json!(self.name));
        c.insert("cniVersion".into(), json!(self.version));
        // Only what the plugin says it understands.
        let caps = plugin.get("capabilities").and_then(Value::as_object);
        let wants = |k: &str| caps.and_then(|c| c.get(k)).and_then(Value::as_bool) == Some(true);
        let mut runtime = Map::new();
        if wants("portMappings") && !args.port_mappings.is_empty() {
            runtime.insert("portMappings".into(), Value::Array(args.port_mappings.clone()));
        }
        c.remove("capabilities");
        if !runtime.is_empty() {
            c.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(p) = previous {
            c.insert("prevResult".into(), p.clone());
        }
        Value::Object(c)
    }
}

/// One pod's attachment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Container id: unique for the sandbox.
    pub container_id: String,
    /// The namespace's path.
    pub netns: PathBuf,
    /// Pod name, namespace and UID for `CNI_ARGS`.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// `runtimeConfig.portMappings`.
    pub port_mappings: Vec<Value>,
}

impl Attachment {
    fn cni_args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.pod, self.container_id, self.uid
        )
    }
}

/// The caller: where plugins are and how they are started.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Directories with plugins, searched in order.
    pub path: Vec<PathBuf>,
}

impl Runtime {
    fn plugin(&self, kind: &str) -> Result<PathBuf, LabError> {
        let listed = || self.path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
        if kind.contains('/') {
            return Err(LabError::new(format!("CNI plugin type {kind:?}: must be a plain name")));
        }
        self.path.iter().map(|d| d.join(kind)).find(|p| p.is_file()).ok_or_else(|| {
            LabError::new(format!("CNI plugin {kind:?}: not found in {}: build or install it there", listed()))
        })
    }

    async fn call(&self, kind: &str, command: &str, a: &Attachment, config: &Value) -> Result<Value, LabError> {
        let program = self.plugin(kind)?;
        let path: Vec<_> = self.path.iter().map(|p| p.display().to_string()).collect();
        let what = || format!("CNI {command} by {kind}");
        let mut c = Command::new(&program);
        // A plugin survives being killed: what it began is undone by DEL.
        c.kill_on_drop(true);
        c.env("CNI_COMMAND", command).env("CNI_PATH", path.join(":"));
        if !a.container_id.is_empty() {
            c.env("CNI_CONTAINERID", &a.container_id)
                .env("CNI_NETNS", &a.netns)
                .env("CNI_IFNAME", IFNAME)
                .env("CNI_ARGS", a.cni_args());
        }
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().doing(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read is told off by its exit status.
            let _ = stdin.write_all(config.to_string().as_bytes()).await;
        }
        let out = match tokio::time::timeout(TIMEOUT, child.wait_with_output()).await {
            Ok(r) => r.doing(what)?,
            Err(_) => return Err(LabError::new(format!("{}: no answer in {} s", what(), TIMEOUT.as_secs()))),
        };
        let answer: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
        if out.status.success() {
            return Ok(answer);
        }
        let said = match (answer["msg"].as_str(), answer["details"].as_str()) {
            (Some(m), Some(d)) if !d.is_empty() => format!("{m}: {d}"),
            (Some(m), _) => m.to_owned(),
            _ => {
                let err = String::from_utf8_lossy(&out.stderr);
                format!("{}: {}", out.status, err.trim().lines().last().unwrap_or("it said nothing"))
            }
        };
        Err(LabError::new(format!("{}: {said}", what())))
    }

    /// ADD through the whole list; the last plugin's result.
    ///
    /// # Errors
    /// The first plugin's error. What the ones before it did is undone by DEL.
    pub async fn add(&self, list: &ConfList, a: &Attachment) -> Result<Value, LabError> {
        let mut previous = None;
        for p in &list.plugins {
            let kind = p.get("type").and_then(Value::as_str).unwrap_or_default();
            previous = Some(self.call(kind, "ADD", a, &list.request(p, a, previous.as_ref())).await?);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// DEL through the list backwards, each with the result of ADD if it is known.
    ///
    /// # Errors
    /// The first error; the caller tries again.
    pub async fn del(&self, list: &ConfList, a: &Attachment, result: Option<&Value>) -> Result<(), LabError> {
        for p in list.plugins.iter().rev() {
            let kind = p.get("type").and_then(Value::as_str).unwrap_or_default();
            self.call(kind, "DEL", a, &list.request(p, a, result)).await?;
        }
        Ok(())
    }

    /// GC: tells every plugin which attachments are valid.
    ///
    /// # Errors
    /// The first error.
    pub async fn gc(&self, list: &ConfList, valid: &[String]) -> Result<(), LabError> {
        let valid: Vec<_> = valid.iter().map(|id| json!({"containerID": id, "ifname": IFNAME})).collect();
        for p in &list.plugins {
            let kind = p.get("type").and_then(Value::as_str).unwrap_or_default();
            let none = Attachment::default();
            let mut config = list.request(p, &none, None);
            config["cni.dev/valid-attachments"] = Value::Array(valid.clone());
            self.call(kind, "GC", &none, &config).await?;
        }
        Ok(())
    }
}

/// The addresses in an ADD result, in its order, without prefix lengths.
#[must_use]
pub fn addresses(result: &Value) -> Vec<std::net::IpAddr> {
    result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|i| i["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, name: &str, body: &str) {
        let p = dir.join(name);
        std::fs::write(&p, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&p, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    const LIST: &str = r#"{"cniVersion":"1.1.0","name":"net","plugins":[
        {"type":"one","capabilities":{"portMappings":true}},{"type":"two","x":1}]}"#;

    #[tokio::test]
    async fn the_list_is_run_in_order_with_previous_results() {
        let d = tempfile::tempdir().unwrap();
        let log = d.path().join("log");
        let say = format!("echo \"$CNI_COMMAND $0 $CNI_IFNAME $CNI_ARGS $(cat)\" >> {}", log.display());
        script(d.path(), "one", &format!("{say}\necho '{{\"ips\":[{{\"address\":\"10.0.0.2/32\"}}]}}'"));
        script(d.path(), "two", &format!("{say}\necho '{{\"ips\":[{{\"address\":\"10.0.0.3/32\"}}]}}'"));
        let r = Runtime { path: vec![d.path().to_path_buf()] };
        let list = ConfList::parse(LIST).unwrap();
        let a = Attachment {
            container_id: "c".into(),
            netns: "/run/netns/x".into(),
            namespace: "shop".into(),
            pod: "web".into(),
            uid: "u".into(),
            port_mappings: vec![json!({"hostPort": 80})],
        };
        let result = r.add(&list, &a).await.unwrap();
        assert_eq!(addresses(&result), ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()]);
        r.del(&list, &a, Some(&result)).await.unwrap();
        r.gc(&list, &["c".into()]).await.unwrap();
        let log = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<_> = log.lines().collect();
        assert!(lines[0].starts_with("ADD") && lines[0].contains("/one eth0 IgnoreUnknown=1;K8S_POD_NAMESPACE=shop"));
        assert!(lines[0].contains("\"portMappings\":[{\"hostPort\":80}]") && !lines[0].contains("prevResult"));
        assert!(lines[1].contains("/two") && lines[1].contains("prevResult") && lines[1].contains("10.0.0.2/32"));
        assert!(!lines[1].contains("portMappings") && lines[1].contains("\"name\":\"net\""));
        assert!(lines[2].starts_with("DEL") && lines[2].contains("/two") && lines[2].contains("10.0.0.3/32"));
        assert!(lines[3].contains("/one"));
        assert!(lines[4].starts_with("GC") && lines[4].contains("valid-attachments\":[{\"containerID\":\"c\""));
    }

    #[tokio::test]
    async fn a_plugins_own_words_are_kept() {
        let d = tempfile::tempdir().unwrap();
        script(d.path(), "one", "echo '{\"code\":11,\"msg\":\"agent is away\",\"details\":\"try later\"}'; exit 1");
        script(d.path(), "two", "echo boom >&2; exit 3");
        let r = Runtime { path: vec![d.path().to_path_buf()] };
        let e = r.add(&ConfList::parse(LIST).unwrap(), &Attachment::default()).await.unwrap_err();
        assert_eq!(e.to_string(), "CNI ADD by one: agent is away: try later");
        let two = r#"{"cniVersion":"1.0.0","name":"n","type":"two"}"#;
        let e = r.add(&ConfList::parse(two).unwrap(), &Attachment::default()).await.unwrap_err();
        assert!(e.to_string().contains("exit status: 3: boom"), "{e}");
        let none = r#"{"cniVersion":"1.0.0","name":"n","type":"none"}"#;
        let e = r.add(&ConfList::parse(none).unwrap(), &Attachment::default()).await.unwrap_err();
        assert!(e.to_string().contains("not found in"), "{e}");
    }

    #[test]
    fn of_several_versions_the_newest_spoken_is_chosen() {
        let chosen = |versions: &str| {
            let text = format!("{{\"name\":\"n\",\"type\":\"t\",\"cniVersion\":\"0.4.0\"{versions}}}");
            ConfList::parse(&text).unwrap().version
        };
        assert_eq!(chosen(""), "0.4.0");
        assert_eq!(chosen(",\"cniVersions\":[\"1.1.0\",\"0.4.0\",\"1.0.0\",\"9.0.0\"]"), "1.1.0");
        assert_eq!(chosen(",\"cniVersions\":[\"9.0.0\"]"), "0.4.0");
    }

    #[test]
    fn the_first_file_wins_and_bad_ones_are_named() {
        let d = tempfile::tempdir().unwrap();
        assert_eq!(ConfList::load(d.path()), Ok(None));
        std::fs::write(d.path().join("10-a.conflist"), LIST).unwrap();
        std::fs::write(d.path().join("99-b.conflist"), "{}").unwrap();
        std::fs::write(d.path().join("00-a.conflist.tmp"), "{").unwrap();
        assert_eq!(ConfList::load(d.path()).unwrap().unwrap().name, "net");
        std::fs::write(d.path().join("05-c.conflist"), "{\"plugins\":[{}]}").unwrap();
        let e = ConfList::load(d.path()).unwrap_err().to_string();
        assert!(e.contains("05-c.conflist") && e.contains("\"type\""), "{e}");
    }
}
