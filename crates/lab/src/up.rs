//! Brings a lab up.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::manifest::{self, Manifest};
use crate::matrix;
use crate::name::{LAB_MARKER, LABS_DIR};
use crate::ns::{self, Enter};
use crate::procs::{ProcId, record, recorded};
use crate::progress::Progress;
use crate::record::{Backend, Lab, cni_path, own_program};
use crate::topology::{self, Node, Spec};
use crate::{Doing, LabError, shim, wire};

/// The longest wait for nodes, and again for pods.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest wait for every node to know every endpoint.
const SETTLING: Duration = Duration::from_secs(10);

/// What a person asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name, nodes, segments, families.
    pub spec: Spec,
    /// How packets travel between nodes.
    pub backend: Backend,
    /// A folder of manifests to apply.
    pub manifests: Option<PathBuf>,
    /// Whether to wait until every pod is ready.
    pub wait: bool,
}

/// Brings a lab up. On an error everything made so far stays, for a look; `down` removes it.
///
/// # Errors
/// What went wrong, with the log to read.
pub fn up(o: &Options, progress: &Progress) -> Result<Lab, LabError> {
    let manifests = o.manifests.as_deref().map(manifest::read).transpose()?.unwrap_or_default();
    let lab = prepare(o)?;
    let exe = own_program()?;
    progress.doing("network");
    spawn_apiserver(&lab, &exe)?;
    let t = topology::plan(&o.spec)?;
    wire::build(&t)?;
    let segments = if o.spec.segments == 1 { "1 segment" } else { "2 segments and a router" };
    progress.done(&format!("network: {} nodes on {segments}, and a host outside", lab.nodes.len()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "tokio")?;
    runtime.block_on(start(&lab, &exe, &manifests, o.wait, progress))?;
    let lab = Lab { complete: true, ..lab };
    lab.save()?;
    Ok(lab)
}

/// Checks that the name is free and makes the directory.
fn prepare(o: &Options) -> Result<Lab, LabError> {
    let name = &o.spec.name;
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::new("a lab is made of network namespaces, which need root: run it with sudo"));
    }
    if o.backend == Backend::HostGw && o.spec.segments == 2 {
        return Err(LabError::new(
            "--backend host-gw --segments 2: host-gw needs all nodes on one segment: use --backend vxlan, or one segment",
        ));
    }
    let dir = name.dir();
    if dir.root().exists() {
        let alive = recorded(&dir.pids()).iter().any(|(_, p)| p.alive());
        return Err(LabError::new(if alive {
            format!(
                "lab {name}: is up already: use it, choose another --name, or `seaway lab down --name {name}` first"
            )
        } else {
            format!(
                "lab {name}: an earlier one was not taken down: `seaway lab down --name {name}` removes what is left"
            )
        }));
    }
    if let Some(n) = ns::list().into_iter().find(|n| name.owns_netns(n)) {
        return Err(LabError::new(format!(
            "lab {name}: network namespace {n} exists already: choose another --name, or remove it with `seaway lab down --name {name}`"
        )));
    }
    let t = topology::plan(&o.spec)?;
    std::fs::create_dir_all(LABS_DIR).doing(|| LABS_DIR)?;
    DirBuilder::new().mode(0o700).create(dir.root()).doing(|| format!("{}", dir.root().display()))?;
    std::fs::create_dir_all(dir.root().join("logs")).doing(|| "logs")?;
    let lab = Lab {
        spec: o.spec.clone(),
        backend: o.backend,
        nodes: t.nodes,
        outside: t.outside,
        cluster_cidrs: o.spec.families.iter().map(topology::cluster_cidr).collect(),
        service_cidrs: o.spec.families.iter().map(topology::service_cidr).collect(),
        manifests: o.manifests.clone(),
        created: shim::now(),
        complete: false,
    };
    lab.save()?;
    Ok(lab)
}

/// Starts a process of the lab: its own session, its log, its pid recorded.
fn spawn(lab: &Lab, exe: &Path, process: &str, netns: Option<&str>, args: &[String]) -> Result<(), LabError> {
    let dir = lab.spec.name.dir();
    let path = dir.log(process);
    let log = File::options().create(true).append(true).open(&path).doing(|| format!("{}", path.display()))?;
    let enter = Enter { netns: netns.map(ns::path), ..Enter::default() };
    let child = Command::new(exe)
        .args(["lab", "enter", "--session"])
        .args(enter.to_args())
        .arg("--")
        .arg(exe)
        .args(args)
        .env(LAB_MARKER, lab.spec.name.as_str())
        .stdin(Stdio::null())
        .stdout(log.try_clone().doing(|| "log")?)
        .stderr(log)
        .spawn()
        .doing(|| format!("start {process}"))?;
    let pid = i32::try_from(child.id()).doing(|| "pid")?;
    // It keeps pid and start time when it becomes the program.
    let id = ProcId::of(pid).ok_or_else(|| failed(lab, process))?;
    record(&dir.pids(), process, id)
}

/// What a process that ended said last.
fn failed(lab: &Lab, process: &str) -> LabError {
    let path = lab.spec.name.dir().log(process);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    LabError::new(format!("{process} ended: {} (log: {})", last.join(" | "), path.display()))
}

fn list<T: ToString>(v: &[T]) -> String {
    v.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn text(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn shown(p: &Path) -> String {
    p.display().to_string()
}

fn spawn_apiserver(lab: &Lab, exe: &Path) -> Result<(), LabError> {
    let dir = lab.spec.name.dir();
    let mut args = text(&["apiserver", "--tls", "127.0.0.1:0"]);
    args.extend(["--store".into(), shown(&dir.api_store()), "--unix".into(), shown(&dir.api_sock())]);
    args.extend(["--kubeconfig".into(), shown(&dir.kubeconfig())]);
    args.extend(["--cluster-name".into(), format!("seaway-{}", lab.spec.name)]);
    args.extend(["--service-cidr".into(), list(&lab.service_cidrs)]);
    args.extend(["--kubelet-socket".into(), shown(&dir.node("{node}").kubelet_sock())]);
    spawn(lab, exe, "apiserver", None, &args)
}

fn api_target(lab: &Lab) -> String {
    format!("unix:{}", lab.spec.name.dir().api_sock().display())
}

/// Starts the agent of a node.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_agent(lab: &Lab, exe: &Path, node: &Node) -> Result<(), LabError> {
    let d = lab.spec.name.dir().node(&node.name);
    let mut args = text(&["agent", "--node", &node.name, "--listen", "127.0.0.1:9642", "--api", &api_target(lab)]);
    args.extend(["--cni-conf-dir".into(), shown(&d.cni()), "--ipam-dir".into(), shown(&d.ipam())]);
    spawn(lab, exe, &format!("agent-{}", node.name), Some(&node.netns), &args)
}

/// Starts the pod runner of a node.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_runner(lab: &Lab, exe: &Path, node: &Node) -> Result<(), LabError> {
    let d = lab.spec.name.dir();
    let mut args = text(&["lab", "node", "--lab", lab.spec.name.as_str(), "--node", &node.name]);
    args.extend(["--api".into(), shown(&d.api_sock()), "--dir".into(), shown(d.node(&node.name).root())]);
    for p in cni_path(exe) {
        args.extend(["--cni-path".into(), shown(&p)]);
    }
    spawn(lab, exe, &format!("runner-{}", node.name), Some(&node.netns), &args)
}

/// Starts the controllers.
///
/// # Errors
/// When they cannot be started.
pub fn spawn_controller(lab: &Lab, exe: &Path) -> Result<(), LabError> {
    spawn(lab, exe, "controller", None, &text(&["controller", "--api", &api_target(lab)]))
}

/// Starts again what is not running: for a lab some of whose processes were killed.
///
/// # Errors
/// What could not be started.
pub fn heal(lab: &Lab) -> Result<Vec<String>, LabError> {
    let exe = own_program()?;
    let alive: Vec<String> =
        recorded(&lab.spec.name.dir().pids()).into_iter().filter(|(_, p)| p.alive()).map(|(n, _)| n).collect();
    let mut started = Vec::new();
    let missing = |n: &str| !alive.iter().any(|a| a == n);
    if missing("apiserver") {
        spawn_apiserver(lab, &exe)?;
        started.push("apiserver".to_owned());
    }
    if missing("controller") {
        spawn_controller(lab, &exe)?;
        started.push("controller".to_owned());
    }
    for n in &lab.nodes {
        let (agent, runner) = (format!("agent-{}", n.name), format!("runner-{}", n.name));
        if missing(&agent) {
            spawn_agent(lab, &exe, n)?;
            started.push(agent);
        }
        if missing(&runner) {
            spawn_runner(lab, &exe, n)?;
            started.push(runner);
        }
    }
    Ok(started)
}

async fn start(lab: &Lab, exe: &Path, manifests: &[Manifest], wait: bool, progress: &Progress) -> Result<(), LabError> {
    let dir = lab.spec.name.dir();
    let api = Api::new(&dir.api_sock());
    progress.doing("API server");
    poll(lab, "the API server answers", async || match api.get("/version").await {
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    })
    .await?;
    settings(lab, &api).await?;
    progress.done(&format!("API server: kubectl --kubeconfig {}", dir.kubeconfig().display()));
    for n in &lab.nodes {
        let d = dir.node(&n.name);
        for p in [d.root().to_path_buf(), d.cni(), d.ipam(), d.pods()] {
            std::fs::create_dir_all(&p).doing(|| format!("{}", p.display()))?;
        }
        spawn_runner(lab, exe, n)?;
    }
    spawn_controller(lab, exe)?;
    for n in &lab.nodes {
        spawn_agent(lab, exe, n)?;
    }
    progress.doing("nodes");
    poll(lab, "every node is ready", async || nodes_ready(lab, &api).await).await?;
    progress.done(&format!("nodes: {} ready, backend {}", lab.nodes.len(), lab.backend.as_str()));
    if !manifests.is_empty() {
        progress.doing("manifests");
        let said = manifest::apply(&api, manifests).await?;
        progress.done(&format!("manifests: {} objects", said.len()));
        if wait {
            progress.doing("pods");
            let count = poll(lab, "every pod is ready", async || pods_ready(&api).await).await?;
            progress.done(&format!("pods: {count} ready; images are not pulled here: commands run as processes of"));
            progress.done("this machine, containers without one run the built-in echo server");
            progress.doing("services");
            let until = Instant::now() + SETTLING;
            loop {
                let asked = match endpoints_complete(&api, lab).await {
                    Ok(()) => matrix::settled(lab, &api, exe).await,
                    Err(e) => Err(e),
                };
                match asked {
                    Ok(n) => {
                        progress.done(&format!("services: {n} answer on every node"));
                        break;
                    }
                    // No reason to call the lab down: it can be looked at.
                    Err(e) if Instant::now() > until => {
                        progress.done(&format!("services: not all answer: {e}"));
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(40)).await,
                }
            }
        }
    }
    Ok(())
}

async fn settings(lab: &Lab, api: &Api) -> Result<(), LabError> {
    for ns in ["kube-system", "default"] {
        if api.find(&format!("/api/v1/namespaces/{ns}")).await?.is_none() {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}});
            match api.create("/api/v1/namespaces", &object).await {
                Err(e) if e.code() != Some(409) => return Err(e.into()),
                _ => {}
            }
        }
    }
    let data = json!({
        "backend": lab.backend.as_str(), "clusterCIDR": list(&lab.cluster_cidrs), "masquerade": "true",
    });
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "seaway", "namespace": "kube-system"}, "data": data});
    api.create("/api/v1/namespaces/kube-system/configmaps", &object).await?;
    Ok(())
}

/// Asks until the answer is yes; a process of the lab that ended ends the wait.
async fn poll<T>(lab: &Lab, what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> Result<T, LabError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let no = match ask().await {
            Ok(v) => return Ok(v),
            Err(no) => no,
        };
        if let Some((name, _)) = recorded(&lab.spec.name.dir().pids()).into_iter().find(|(_, p)| !p.alive()) {
            return Err(failed(lab, &name));
        }
        if Instant::now() > until {
            return Err(LabError::new(format!(
                "after {} s it is not so that {what}: {no}; logs are in {}",
                PATIENCE.as_secs(),
                lab.spec.name.dir().root().join("logs").display()
            )));
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// A condition of an object.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

async fn nodes_ready(lab: &Lab, api: &Api) -> Result<(), String> {
    let nodes = api.list("/api/v1/nodes").await.map_err(|e| e.to_string())?;
    for n in &lab.nodes {
        let Some(o) = nodes.iter().find(|o| o["metadata"]["name"] == n.name.as_str()) else {
            return Err(format!("{} is not registered", n.name));
        };
        let ready = condition(o, "Ready");
        if ready.is_none_or(|c| c["status"] != "True") {
            let why = ready.and_then(|c| c["message"].as_str()).unwrap_or("no word from its runner");
            return Err(format!("{}: {why}", n.name));
        }
    }
    Ok(())
}

/// Whether every workload has all its pods, and every pod is ready; how many pods there are.
async fn pods_ready(api: &Api) -> Result<usize, String> {
    let get = async |p: &str| api.list(p).await.map_err(|e| e.to_string());
    let name = |o: &Value| {
        let m = &o["metadata"];
        format!("{}/{}", m["namespace"].as_str().unwrap_or_default(), m["name"].as_str().unwrap_or_default())
    };
    let number = |v: &Value| v.as_i64().unwrap_or(0);
    for d in get("/apis/apps/v1/deployments").await? {
        let (want, have) = (d["spec"]["replicas"].as_i64().unwrap_or(1), number(&d["status"]["readyReplicas"]));
        if have < want {
            return Err(format!("deployment {}: {have} of {want} pods ready{}", name(&d), why(api).await));
        }
    }
    for d in get("/apis/apps/v1/daemonsets").await? {
        let (want, have) = (number(&d["status"]["desiredNumberScheduled"]), number(&d["status"]["numberReady"]));
        if want == 0 || have < want {
            return Err(format!("daemonset {}: {have} of {want} pods ready{}", name(&d), why(api).await));
        }
    }
    let pods = get("/api/v1/pods").await?;
    for p in &pods {
        let done = matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if !done && condition(p, "Ready").is_none_or(|c| c["status"] != "True") {
            return Err(format!("pod {} is not ready{}", name(p), why(api).await));
        }
    }
    Ok(pods.len())
}

/// Whether the slices of every Service with a selector hold all its ready pods, in each family of the Service.
async fn endpoints_complete(api: &Api, lab: &Lab) -> Result<(), String> {
    let get = async |p: &str| api.list(p).await.map_err(|e| e.to_string());
    let pods = get("/api/v1/pods").await?;
    let slices = get("/apis/discovery.k8s.io/v1/endpointslices").await?;
    for s in get("/api/v1/services").await? {
        let Some(selector) = s["spec"]["selector"].as_object().filter(|m| !m.is_empty()) else { continue };
        let here = |o: &&Value| o["metadata"]["namespace"] == s["metadata"]["namespace"];
        let chosen = |p: &&Value| selector.iter().all(|(k, v)| p["metadata"]["labels"][k] == *v);
        let ready = |p: &&Value| condition(p, "Ready").is_some_and(|c| c["status"] == "True");
        let want = pods.iter().filter(here).filter(chosen).filter(ready).count();
        let families = s["spec"]["ipFamilies"].as_array().map_or(lab.spec.families.iter().count(), Vec::len);
        let have = slices
            .iter()
            .filter(here)
            .filter(|e| e["metadata"]["labels"]["kubernetes.io/service-name"] == s["metadata"]["name"])
            .flat_map(|e| e["endpoints"].as_array().into_iter().flatten())
            .filter(|e| e["conditions"]["ready"] == true)
            .count();
        if have < want * families {
            return Err(format!("{}: {have} of {} endpoints", s["metadata"]["name"], want * families));
        }
    }
    Ok(())
}

/// The last warning, as a hint.
async fn why(api: &Api) -> String {
    let events = api.list("/api/v1/events").await.unwrap_or_default();
    let last = events
        .iter()
        .filter(|e| e["type"] == "Warning")
        .max_by_key(|e| e["lastTimestamp"].as_str().unwrap_or_default().to_owned());
    last.map_or_else(String::new, |e| {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        format!(" (last warning: {}: {})", text(&e["involvedObject"]["name"]), text(&e["message"]))
    })
}

/// The text after `up`: what to look at next. At most 80 columns.
#[must_use]
pub fn closing(lab: &Lab) -> String {
    let name = &lab.spec.name;
    let flag = if name.as_str() == "lab" { String::new() } else { format!(" --name {name}") };
    let families: Vec<String> = lab.spec.families.iter().map(|f| f.to_string()).collect();
    let first = lab.nodes.first().map_or("node1", |n| n.name.as_str());
    let s = if lab.nodes.len() == 1 { "" } else { "s" };
    let mut out = format!(
        "Lab {name} is up: {} node{s}, {}, {}. To look around:\n",
        lab.nodes.len(),
        lab.backend.as_str(),
        families.join(" and ")
    );
    for (command, what) in [
        ("status", "nodes, processes, addresses"),
        ("get pods -o wide", "what runs where"),
        ("test", "does every path work? A table"),
        (&format!("shell {first}"), "a shell on a node: try `ip route`"),
        ("down", "removes all of it"),
    ] {
        let command = format!("seaway lab {command}{flag}");
        out.push_str(&format!("  {command:<42} {what}\n"));
    }
    out
}
