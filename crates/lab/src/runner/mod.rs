//! The pod runner of one node: a kubelet's part, for pods that are processes of this machine.
//!
//! It runs inside its node's network namespace. Everything it starts outlives it: a runner that is killed and started
//! again finds its pods by their records and goes on as if nothing had been.

mod container;
mod events;
mod node;
mod pod;
mod probe;
mod state;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use probe::Gate;
pub use state::{Network, PodDir, Record};
pub use status::{Observed, build as build_status, phase};

use crate::api::{Api, Change};
use crate::cni::{ConfList, Runtime};
use crate::name::{LabName, NodeDir};
use crate::{Doing, LabError, pod_env};

/// What a runner is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The lab.
    pub lab: LabName,
    /// The node it speaks for.
    pub node: String,
    /// The API server's socket.
    pub api: PathBuf,
    /// The node's directory.
    pub dir: NodeDir,
    /// Directories with CNI plugins.
    pub cni_path: Vec<PathBuf>,
    /// The program to start for shims and the built-in server: `seaway` itself.
    pub exe: PathBuf,
}

/// What all pods of a node share.
struct Context {
    config: Config,
    api: Api,
    cni: Runtime,
    events: events::Events,
    /// The node's addresses, kept current.
    host_ips: watch::Receiver<Vec<IpAddr>>,
    services: RwLock<BTreeMap<String, Service>>,
    /// Whether the services were listed once.
    services_known: watch::Sender<bool>,
    /// Held shared by every ADD, alone by GC.
    attach: tokio::sync::RwLock<()>,
}

impl Context {
    /// The variables of the services a pod of this namespace sees.
    fn service_env(&self, namespace: &str) -> pod_env::Env {
        let all = self.services.read().unwrap_or_else(PoisonError::into_inner);
        pod_env::service_env(
            all.values()
                .filter(|s| s.metadata.namespace.as_deref() == Some(namespace))
                .chain(all.get("default/kubernetes")),
        )
    }

    /// The addresses of the cluster's DNS, if it has one.
    fn cluster_dns(&self) -> Vec<IpAddr> {
        let all = self.services.read().unwrap_or_else(PoisonError::into_inner);
        all.get("kube-system/kube-dns")
            .and_then(|s| s.spec.as_ref())
            .into_iter()
            .flat_map(|s| s.cluster_ips.iter().flatten())
            .filter_map(|i| i.parse().ok())
            .collect()
    }

    fn conf_list(&self) -> Result<ConfList, LabError> {
        let dir = self.config.dir.cni();
        ConfList::load(&dir)?.ok_or_else(|| {
            LabError::new(format!("network is not ready: no CNI configuration in {} yet", dir.display()))
        })
    }
}

/// What the API wants of a pod.
#[derive(Debug, Clone)]
enum Desired {
    /// Run it.
    Run(Arc<Pod>),
    /// End it, in its grace period, then delete the object.
    Stop(Arc<Pod>),
    /// The object is gone.
    Gone,
}

fn desired(pod: Pod) -> Desired {
    let pod = Arc::new(pod);
    if pod.metadata.deletion_timestamp.is_some() { Desired::Stop(pod) } else { Desired::Run(pod) }
}

fn uid_of(v: &Value) -> Option<String> {
    v["metadata"]["uid"].as_str().map(str::to_owned)
}

/// Runs until SIGTERM or SIGINT. The pods go on.
///
/// # Errors
/// When the directories cannot be made.
pub async fn run(config: Config) -> Result<(), LabError> {
    std::fs::create_dir_all(config.dir.pods()).doing(|| format!("{}", config.dir.pods().display()))?;
    let api = Api::new(&config.api);
    let (host_ips_tx, host_ips) = watch::channel(Vec::new());
    let context = Arc::new(Context {
        cni: Runtime { path: config.cni_path.clone() },
        events: events::Events::new(api.clone(), &config.node),
        api: api.clone(),
        config,
        host_ips,
        services: RwLock::default(),
        services_known: watch::Sender::new(false),
        attach: tokio::sync::RwLock::new(()),
    });
    let mut background = JoinSet::new();
    background.spawn(node::keep(context.clone(), host_ips_tx));
    background.spawn(crate::kubelet::serve(context.config.clone()));
    background.spawn(follow_services(context.clone()));
    background.spawn(collect_garbage(context.clone()));

    let selector = crate::api::encode(&format!("spec.nodeName={}", context.config.node));
    let mut pods = api.watch(&format!("/api/v1/pods?fieldSelector={selector}"));
    let mut workers = Workers { context, running: BTreeMap::new(), tasks: JoinSet::new() };
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).doing(|| "SIGTERM")?;
    loop {
        tokio::select! {
            change = pods.recv() => match change {
                Some(c) => workers.take(c),
                None => return Err(LabError::new("the watch of pods ended")),
            },
            Some(done) = workers.tasks.join_next(), if !workers.tasks.is_empty() => match done {
                Ok(uid) => { workers.running.remove(&uid); }
                Err(e) => tracing::error!("a pod's worker died: {e}"),
            },
            _ = term.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// One task per pod.
struct Workers {
    context: Arc<Context>,
    running: BTreeMap<String, watch::Sender<Desired>>,
    tasks: JoinSet<String>,
}

impl Workers {
    fn set(&mut self, uid: String, want: Desired) {
        if let Some(tx) = self.running.get(&uid) {
            tx.send_replace(want);
            return;
        }
        let (tx, rx) = watch::channel(want);
        self.running.insert(uid.clone(), tx);
        let context = self.context.clone();
        self.tasks.spawn(async move {
            if let Err(e) = pod::run(context, &uid, rx).await {
                tracing::error!("pod {uid}: {e}");
            }
            uid
        });
    }

    fn put(&mut self, object: Value) {
        let Some(uid) = uid_of(&object) else { return };
        match serde_json::from_value::<Pod>(object) {
            Ok(pod) => self.set(uid, desired(pod)),
            Err(e) => tracing::error!("pod {uid}: the API server sent what is no pod: {e}"),
        }
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::All(list) => {
                let here: BTreeSet<String> = list.iter().filter_map(uid_of).collect();
                list.into_iter().for_each(|v| self.put(v));
                // Those whose object went while nobody watched, from memory and from disk.
                let known = PodDir::all(&self.context.config.dir.pods()).into_iter().map(|(uid, _)| uid);
                let all: BTreeSet<String> = self.running.keys().cloned().chain(known).collect();
                all.difference(&here).for_each(|uid| self.set(uid.clone(), Desired::Gone));
            }
            Change::Put(v) => self.put(v),
            Change::Gone(v) => {
                if let Some(uid) = uid_of(&v) {
                    self.set(uid, Desired::Gone);
                }
            }
        }
    }
}

async fn follow_services(context: Arc<Context>) {
    let mut rx = context.api.watch("/api/v1/services");
    let key = |v: &Value| {
        let m = &v["metadata"];
        format!("{}/{}", m["namespace"].as_str().unwrap_or_default(), m["name"].as_str().unwrap_or_default())
    };
    while let Some(change) = rx.recv().await {
        {
            let mut all = context.services.write().unwrap_or_else(PoisonError::into_inner);
            let put = |all: &mut BTreeMap<String, Service>, v: Value| {
                let k = key(&v);
                if let Ok(s) = serde_json::from_value(v) {
                    all.insert(k, s);
                }
            };
            match change {
                Change::All(list) => {
                    all.clear();
                    list.into_iter().for_each(|v| put(&mut all, v));
                }
                Change::Put(v) => put(&mut all, v),
                Change::Gone(v) => {
                    all.remove(&key(&v));
                }
            }
        }
        context.services_known.send_replace(true);
    }
}

/// Tells the plugins once, when they are configured, which attachments are alive: what a lost DEL left goes.
async fn collect_garbage(context: Arc<Context>) {
    let list = loop {
        match context.conf_list() {
            Ok(l) => break l,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
        }
    };
    // No ADD runs meanwhile, and a record precedes its ADD: no living attachment is missing from the list.
    let _lock = context.attach.write().await;
    let valid: Vec<String> = PodDir::all(&context.config.dir.pods())
        .into_iter()
        .filter_map(|(_, d)| match d.load().ok().flatten()?.network {
            Network::Begun { attachment, .. } | Network::Attached { attachment, .. } => Some(attachment.container_id),
            Network::Host | Network::Released => None,
        })
        .collect();
    if let Err(e) = context.cni.gc(&list, &valid).await {
        tracing::warn!("{e}");
    }
}
