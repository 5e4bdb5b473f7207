//! What people look at: objects as the API server's own tables, and a lab at a glance.

use std::collections::BTreeMap;

use http::Method;
use serde::Serialize;
use serde_json::Value;

use crate::api::Api;
use crate::manifest::Discovery;
use crate::procs::recorded;
use crate::record::Lab;
use crate::up::condition;
use crate::{Doing, LabError};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A table.
    Table,
    /// A table with all columns.
    Wide,
    /// `kind/name` lines.
    Name,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What to get.
#[derive(Debug, Clone)]
pub struct Get {
    /// Kind, by any of its names; `KIND/NAME` too.
    pub kind: String,
    /// One object.
    pub name: Option<String>,
    /// Namespace; all when absent.
    pub namespace: Option<String>,
    /// Label selector.
    pub selector: Option<String>,
    /// How to print.
    pub format: Format,
}

/// Gets objects and prints them.
///
/// # Errors
/// When the kind or the object is not there.
pub async fn get(api: &Api, g: &Get) -> Result<String, LabError> {
    let discovery = Discovery::load(api).await?;
    let (kind, name) = match (g.kind.split_once('/'), &g.name) {
        (Some((k, n)), None) => (k.to_owned(), Some(n.to_owned())),
        _ => (g.kind.clone(), g.name.clone()),
    };
    let r = discovery.named(&kind)?;
    let namespace = match (&g.namespace, &name) {
        (None, Some(_)) => Some("default"),
        (n, _) => n.as_deref(),
    };
    let mut path = r.collection(namespace);
    if let Some(n) = &name {
        path = format!("{path}/{n}");
    } else if let Some(s) = &g.selector {
        path = format!("{path}?labelSelector={}", crate::api::encode(s));
    }
    let accept = match g.format {
        Format::Table | Format::Wide => "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        _ => "application/json",
    };
    let v = api.request(Method::GET, &path, accept, None).await?;
    Ok(match g.format {
        Format::Json => serde_json::to_string_pretty(&v).doing(|| "json")? + "\n",
        Format::Yaml => serde_yaml::to_string(&v).doing(|| "yaml")?,
        Format::Name => {
            let one = [v.clone()];
            let items = v["items"].as_array().map_or(&one[..], Vec::as_slice);
            items
                .iter()
                .map(|o| format!("{}/{}\n", r.singular, o["metadata"]["name"].as_str().unwrap_or_default()))
                .collect()
        }
        Format::Table | Format::Wide => {
            table(&v, g.format == Format::Wide, r.namespaced && namespace.is_none() && name.is_none())
        }
    })
}

/// A meta.k8s.io/v1 Table as text.
fn table(v: &Value, wide: bool, with_namespace: bool) -> String {
    let all = v["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let shown: Vec<usize> = all
        .iter()
        .enumerate()
        .filter(|(_, c)| wide || c["priority"].as_i64().unwrap_or(0) == 0)
        .map(|(i, _)| i)
        .collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut head: Vec<String> =
        shown.iter().map(|i| all[*i]["name"].as_str().unwrap_or_default().to_ascii_uppercase()).collect();
    if with_namespace {
        head.insert(0, "NAMESPACE".into());
    }
    rows.push(head);
    for row in v["rows"].as_array().into_iter().flatten() {
        let cell = |i: &usize| match &row["cells"][*i] {
            Value::String(s) => s.clone(),
            Value::Null => "<none>".into(),
            x => x.to_string(),
        };
        let mut line: Vec<String> = shown.iter().map(cell).collect();
        if with_namespace {
            line.insert(0, row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().into());
        }
        rows.push(line);
    }
    if rows.len() == 1 { "No resources found\n".into() } else { columns(&rows) }
}

/// Rows with columns aligned, three blanks between.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    rows.iter()
        .map(|r| {
            let line: String = r.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}   ")).collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

/// A node at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Whether its Node object is ready, and if not why.
    pub ready: Result<(), String>,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Pod ranges.
    pub pod_cidrs: Vec<String>,
    /// Pods that are ready, and all.
    pub pods: (usize, usize),
}

/// A lab at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its record.
    pub lab: Lab,
    /// Its processes: name, pid, whether it lives.
    pub processes: Vec<(String, i32, bool)>,
    /// Its nodes, or why the API server does not say.
    pub nodes: Result<Vec<NodeStatus>, String>,
    /// Load balancer addresses: the Services that have each, and the node that answers for it.
    pub balancers: BTreeMap<String, (Vec<String>, Option<String>)>,
}

impl Status {
    /// Whether all that should live lives and all that should be ready is.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.lab.complete
            && self.processes.iter().all(|(_, _, alive)| *alive)
            && self.nodes.as_ref().is_ok_and(|n| n.iter().all(|n| n.ready.is_ok() && n.pods.0 == n.pods.1))
    }
}

/// Looks at a lab.
pub async fn status(lab: &Lab) -> Status {
    let dir = lab.spec.name.dir();
    let processes = recorded(&dir.pids()).into_iter().map(|(n, p)| (n, p.pid, p.alive())).collect();
    let api = Api::new(&dir.api_sock());
    let nodes = nodes(&api).await.map_err(|e| e.to_string());
    let balancers = balancers(&api).await.unwrap_or_default();
    Status { lab: lab.clone(), processes, nodes, balancers }
}

async fn balancers(api: &Api) -> Result<BTreeMap<String, (Vec<String>, Option<String>)>, LabError> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut out: BTreeMap<String, (Vec<String>, Option<String>)> = BTreeMap::new();
    for s in api.list("/api/v1/services").await? {
        let name = format!("{}/{}", text(&s["metadata"]["namespace"]), text(&s["metadata"]["name"]));
        for i in s["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten() {
            out.entry(text(&i["ip"])).or_default().0.push(name.clone());
        }
    }
    if !out.is_empty() {
        for l in api.list("/apis/coordination.k8s.io/v1/leases").await? {
            let holder = text(&l["spec"]["holderIdentity"]);
            if let Some(b) = out.get_mut(&text(&l["metadata"]["annotations"]["seaway.io/address"])) {
                b.1 = Some(holder).filter(|h| !h.is_empty());
            }
        }
    }
    Ok(out)
}

async fn nodes(api: &Api) -> Result<Vec<NodeStatus>, LabError> {
    let mut pods: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for p in api.list("/api/v1/pods").await? {
        if matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            continue;
        }
        let e = pods.entry(p["spec"]["nodeName"].as_str().unwrap_or_default().into()).or_default();
        e.1 += 1;
        e.0 += usize::from(condition(&p, "Ready").is_some_and(|c| c["status"] == "True"));
    }
    let strings = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|x| x.as_str().map(str::to_owned)).collect()
    };
    Ok(api
        .list("/api/v1/nodes")
        .await?
        .iter()
        .map(|o| {
            let name = o["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let ready = match condition(o, "Ready") {
                Some(c) if c["status"] == "True" => Ok(()),
                Some(c) => Err(c["message"].as_str().unwrap_or_default().to_owned()),
                None => Err("no word from its runner".into()),
            };
            let addresses = o["status"]["addresses"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|a| a["type"] == "InternalIP")
                .filter_map(|a| a["address"].as_str().map(str::to_owned))
                .collect();
            let pods = pods.get(&name).copied().unwrap_or_default();
            NodeStatus { name, ready, addresses, pod_cidrs: strings(&o["spec"]["podCIDRs"]), pods }
        })
        .collect())
}

/// The glance as text of at most 80 columns, as far as addresses allow.
#[must_use]
pub fn render(s: &Status) -> String {
    let name = &s.lab.spec.name;
    let dir = name.dir();
    let mut out = format!(
        "Lab {name}: {} nodes, {}, {} segment(s), since {}{}\nkubectl --kubeconfig {}\n\n",
        s.lab.nodes.len(),
        s.lab.backend.as_str(),
        s.lab.spec.segments,
        s.lab.created,
        if s.lab.complete { "" } else { " (up did not come to its end)" },
        dir.kubeconfig().display(),
    );
    match &s.nodes {
        Ok(nodes) => {
            let mut rows = vec![["NODE", "READY", "PODS", "ADDRESSES", "POD RANGES"].map(str::to_owned).to_vec()];
            for n in nodes {
                let ready = if n.ready.is_ok() { "yes" } else { "NO" };
                let pods = format!("{}/{}", n.pods.0, n.pods.1);
                for i in 0..n.addresses.len().max(n.pod_cidrs.len()).max(1) {
                    let first = |s: &str| if i == 0 { s.to_owned() } else { String::new() };
                    let at = |v: &[String]| v.get(i).cloned().unwrap_or_default();
                    rows.push(vec![first(&n.name), first(ready), first(&pods), at(&n.addresses), at(&n.pod_cidrs)]);
                }
            }
            out.push_str(&columns(&rows));
            for n in nodes {
                if let Err(why) = &n.ready {
                    out.push_str(&format!("{}: {why}\n", n.name));
                }
            }
        }
        Err(e) => out.push_str(&format!("{e}\n")),
    }
    if !s.balancers.is_empty() {
        let mut rows = vec![["LOAD BALANCER", "ANSWERS", "SERVICES"].map(str::to_owned).to_vec()];
        rows.extend(s.balancers.iter().map(|(ip, (services, node))| {
            vec![ip.clone(), node.clone().unwrap_or_else(|| "nobody".into()), services.join(", ")]
        }));
        out.push('\n');
        out.push_str(&columns(&rows));
    }
    let dead: Vec<&str> = s.processes.iter().filter(|p| !p.2).map(|p| p.0.as_str()).collect();
    out.push_str(&format!("\nProcesses: {} of {} alive", s.processes.len() - dead.len(), s.processes.len()));
    if dead.is_empty() {
        out.push('\n');
    } else {
        out.push_str(&format!("; dead: {}\n", dead.join(", ")));
        out.push_str("`seaway lab heal` starts them again; pods and forwarding go on without them.\n");
    }
    out.push_str(&format!("Logs: {}\n", dir.root().join("logs").display()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_print_as_kubectl_prints_them() {
        let v = json!({"columnDefinitions": [{"name": "Name"}, {"name": "Ready"}, {"name": "IP", "priority": 1}],
            "rows": [{"cells": ["web-1", "1/1", "10.0.0.1"], "object": {"metadata": {"namespace": "shop"}}},
                {"cells": ["a", 3, null], "object": {"metadata": {"namespace": "b"}}}]});
        assert_eq!(table(&v, false, false), "NAME    READY\nweb-1   1/1\na       3\n");
        assert_eq!(
            table(&v, true, true),
            "NAMESPACE   NAME    READY   IP\nshop        web-1   1/1     10.0.0.1\nb           a       3       <none>\n"
        );
        assert_eq!(
            table(&json!({"columnDefinitions": [{"name": "x"}], "rows": []}), false, false),
            "No resources found\n"
        );
    }
}
