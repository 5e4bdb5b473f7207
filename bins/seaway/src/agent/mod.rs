//! `seaway agent`: the network of one node.
//!
//! Two threads. The main one runs tokio: it watches the API, serves health and metrics, publishes the node's
//! annotations. The other owns every socket to the kernel, since a network namespace belongs to a thread and netlink
//! is request and response; it sleeps in `poll` until the snapshot, a record of the CNI plugin or the kernel changes.

mod announce;
mod answers;
mod cleanup;
mod condition;
mod conf_files;
mod conflist;
mod datapath;
mod events;
mod facts;
mod flannel;
mod fleet;
mod foreign;
mod health_check;
mod host_ports;
mod http;
mod lock;
mod look;
mod mend;
mod network_status;
mod node_ports;
mod pools;
mod proxy_health;
mod publish;
mod report;
mod status;
mod table;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use resolve::{Key, Kind};
use source::{Reader, Recorder, Source, Target, WatchConfig};
use telemetry::{Build, Health, Metrics};
use types::NodeName;

pub use datapath::{Setup, local_state, refused_input};
pub use events::{Told, tell};
pub use facts::{IfaceChoice, vxlan_mac};
pub use fleet::SUBNET_FILE;
pub use foreign::ServiceProxy;
pub use lock::one_agent;
pub use look::look;
pub use pools::{Pools as PoolsKeeper, Shared as PoolsShared};

/// The network of one node: run it as root on every node.
#[derive(clap::Args, Debug, Clone)]
#[command(after_help = "What all nodes share (backend, pod ranges, masquerade) is in ConfigMap kube-system/seaway.\n\
    SIGTERM ends the agent and leaves forwarding as it is; `seaway agent --cleanup` removes every trace.\n\n\
    Example:\n  seaway agent --node node1 --api /etc/kubernetes/kubelet.conf")]
pub struct AgentArgs {
    /// The Node object this agent works for; with --source etcd this machine's name when not given
    #[arg(long, value_name = "NAME", env = "SEAWAY_NODE", required_unless_present_any = ["cleanup", "etcd_endpoints"])]
    node: Option<NodeName>,
    /// Where the list of nodes comes from: kubernetes, or etcd in flannel's layout
    #[arg(long, value_enum, value_name = "SOURCE", env = "SEAWAY_SOURCE", default_value_t = fleet::From::Kubernetes)]
    source: fleet::From,
    #[command(flatten)]
    etcd: fleet::EtcdArgs,
    /// The API server: unix:PATH, a kubeconfig's path, or in-cluster
    #[arg(long, value_name = "TARGET", env = "SEAWAY_API", default_value = "in-cluster")]
    api: Target,
    /// Where the API server is, in place of what a pod's environment says: its real address
    #[arg(long, value_name = "URL", env = "SEAWAY_API_SERVER", default_value = "", hide_default_value = true)]
    api_server: source::Server,
    #[command(flatten)]
    iface: facts::IfaceArgs,
    /// Where the CNI plugin keeps its records
    #[arg(long, value_name = "DIR", env = "SEAWAY_IPAM_DIR", default_value = ipam::DEFAULT_DIR)]
    ipam_dir: PathBuf,
    /// Where runtimes look for CNI configuration; 10-seaway.conflist is written there once the node is ready
    #[arg(long, value_name = "DIR", env = "SEAWAY_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Write the node's subnet there as well, as flannel does (/run/flannel/subnet.env), for a `type: flannel`
    /// configuration that is there already
    #[arg(long, value_name = "FILE", env = "SEAWAY_FLANNEL_SUBNET_FILE")]
    flannel_subnet_file: Option<PathBuf>,
    /// Serve /healthz, /readyz, /status and /metrics here
    #[arg(long, value_name = "ADDRESS:PORT", env = "SEAWAY_LISTEN", default_value = "127.0.0.1:9642")]
    listen: SocketAddr,
    /// Serve Services or not: on, beside or off
    #[arg(long, value_enum, value_name = "MODE", env = "SEAWAY_SERVICE_PROXY", default_value_t = ServiceProxy::On)]
    service_proxy: ServiceProxy,
    /// Serve /healthz and /livez as kube-proxy does here; `none` serves them nowhere
    #[arg(long, value_name = "ADDRESS:PORT|none", env = "SEAWAY_PROXY_HEALTH_LISTEN", default_value = "[::]:10256")]
    proxy_health_listen: proxy_health::Listen,
    /// Serve /proxyMode as kube-proxy does here; `none` serves it nowhere
    #[arg(long, value_name = "ADDRESS:PORT|none", env = "SEAWAY_PROXY_MODE_LISTEN", default_value = "127.0.0.1:10249")]
    proxy_mode_listen: proxy_health::Listen,
    /// Compare kernel and intent at least so often, in seconds, even when nothing seems to have changed
    #[arg(long, value_name = "SECONDS", env = "SEAWAY_RESYNC", default_value = "30",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    resync: u64,
    /// Where sysctls can be written: in a container that is not privileged, another mount of the machine's /proc/sys
    #[arg(long, value_name = "DIR", env = "SEAWAY_PROC_SYS", default_value = "/proc/sys")]
    proc_sys: PathBuf,
    /// Remove everything this node's agent and CNI plugin ever made, pods' interfaces included, and end
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    log: crate::logging::LogArgs,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    args.log.init()?;
    kernel::set_proc_sys(&args.proc_sys).with_context(|| format!("--proc-sys {}", args.proc_sys.display()))?;
    if args.cleanup {
        cleanup::run(&args)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.source == fleet::From::Etcd {
        let node = args.node.clone().map_or_else(fleet::hostname, Ok)?;
        let _lock = lock::one_agent()?;
        // Two threads: looking at the machine blocks one for a moment.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(fleet::main(args, node))?;
        return Ok(ExitCode::SUCCESS);
    }
    let node = args.node.clone().context("--node: say which Node object this agent works for")?;
    let _lock = lock::one_agent()?;
    args.service_proxy.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main(args, node))?;
    Ok(ExitCode::SUCCESS)
}

/// What the listener answers from.
fn shared(node: &NodeName, service_proxy: ServiceProxy) -> Arc<http::Shared> {
    Arc::new(http::Shared {
        start: Instant::now(),
        metrics: Metrics::new(Build { version: env!("CARGO_PKG_VERSION"), commit: "" }),
        health: Mutex::new(Health::default()),
        status: Mutex::new(status::Status {
            node: node.to_string(),
            service_proxy: service_proxy.to_string(),
            ..status::Status::default()
        }),
        node: node.clone(),
        reader: std::sync::OnceLock::new(),
        denials: std::sync::OnceLock::new(),
    })
}

/// What this kernel lacks, said once.
fn missing() -> BTreeSet<String> {
    let missing = kernel::missing_features();
    if !missing.is_empty() {
        let list = missing.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        tracing::warn!("this kernel lacks {list}: what needs them is refused");
    }
    missing
}

/// The datapath's thread, not yet started; what it tells goes nowhere unless the caller says where.
fn turn(
    args: &AgentArgs,
    node: &NodeName,
    shared: &Arc<http::Shared>,
    reader: Reader,
    missing: BTreeSet<String>,
    recorder: Recorder,
) -> turn::Turn {
    let (ipam_dir, cni_conf_dir) = (args.ipam_dir.clone(), args.cni_conf_dir.clone());
    turn::Turn {
        conflist: conflist::Writer::new(cni_conf_dir.clone(), ipam_dir.clone()),
        setup: Setup {
            node: node.clone(),
            cni_conf_dir,
            ipam_dir,
            iface: args.iface.choice(),
            missing,
            services_elsewhere: args.service_proxy == ServiceProxy::Off,
        },
        flannel_subnet_file: args.flannel_subnet_file.clone(),
        resync: Duration::from_secs(args.resync),
        shared: Arc::clone(shared),
        reader,
        published: tokio::sync::watch::channel(None).0,
        network: condition::Network::default(),
        condition: tokio::sync::watch::channel(None).0,
        pools: Arc::default(),
        recorder,
        told: events::Told::default(),
        pods: cni::podspec::Published::default(),
        network_status: tokio::sync::watch::channel(network_status::Statuses::new()).0,
        service_proxy: ServiceProxy::Off,
        foreign: None,
        taken: Default::default(),
        checks: tokio::sync::watch::channel(health_check::Checks::default()).0,
        no_local: report::NoLocal::default(),
        unprogrammed: report::Unprogrammed::default(),
        failing: BTreeMap::new(),
    }
}

/// How the datapath's thread ended.
type Ended = tokio::sync::oneshot::Receiver<anyhow::Result<()>>;

/// Starts the datapath's thread.
fn start(turn: turn::Turn, woken: std::io::PipeReader) -> anyhow::Result<Ended> {
    let (ended, datapath) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("datapath".into())
        .spawn(move || drop(ended.send(turn.run(woken))))
        .context("start the datapath thread")?;
    Ok(datapath)
}

/// Wakes the datapath's thread, and whoever `tell` tells, whenever the snapshot changes, until the end.
async fn follow(
    mut source: Source,
    shared: &http::Shared,
    mut wake: std::io::PipeWriter,
    mut datapath: Ended,
    mut stop: impl Future<Output = ()> + Unpin,
    tell: impl Fn(),
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = source.changed() => {
                turn::heard(shared, &source.in_sync());
                shared.metrics.proxy.queued(SystemTime::now());
                tell();
                // A full pipe means that the thread has not looked yet, and will.
                let _ = std::io::Write::write(&mut wake, &[0]);
                // Bursts become one wake-up.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            end = &mut datapath => {
                return end.unwrap_or_else(|_| Err(anyhow::anyhow!("the datapath thread is gone")));
            }
            () = &mut stop => {
                tracing::info!("asked to end: forwarding stays as it is");
                return Ok(());
            }
        }
    }
}

async fn main(args: AgentArgs, node: NodeName) -> anyhow::Result<()> {
    let stop = Box::pin(crate::signals::terminated()?);
    let listener = http::bind(args.listen).await?;
    let shared = shared(&node, args.service_proxy);
    let http = tokio::spawn(http::serve(listener, Arc::clone(&shared)));
    let missing = missing();
    let api = source::connect_at(&args.api, &args.api_server).await.with_context(|| format!("--api {}", args.api))?;
    let _ = shared.denials.set(api.denials());
    let mut watched = WatchConfig { pods_of: Some(node.clone()), ..WatchConfig::agent() };
    if args.service_proxy == ServiceProxy::Off {
        for kind in [Kind::Service, Kind::EndpointSlice] {
            watched.kinds.remove(&kind);
            let known = telemetry::Kind::named(kind.as_str());
            shared.health(|h| known.into_iter().for_each(|k| h.source(k, Ok(()))));
        }
    }
    let source = Source::start(&api, watched);
    let _ = shared.reader.set(source.reader());
    let (published, publish) = tokio::sync::watch::channel(None);
    let (condition, conditions) = tokio::sync::watch::channel(None);
    let (status, statuses) = tokio::sync::watch::channel(network_status::Statuses::new());
    let pools = Arc::new(pools::Shared::default());
    let (woken, wake) = std::io::pipe().context("make a pipe")?;
    let recorder = source::Recorder::start(&api, "seaway-agent", node.as_str());
    let about = Key { kind: Kind::Node, name: types::ObjectName::new("", node.as_str()) };
    let denials = tokio::spawn(api.denials().tell(recorder.clone(), about));
    let balancers = Arc::new(tokio::sync::Notify::new());
    let (checks, checked) = tokio::sync::watch::channel(health_check::Checks::default());
    let healthy = Arc::clone(&shared);
    let healthy = move || {
        let now = healthy.start.elapsed();
        healthy.health.lock().unwrap_or_else(PoisonError::into_inner).proxy(now).0
    };
    let checks_server = health_check::Server::new(recorder.clone(), node.to_string(), Arc::new(healthy));
    let checks_server = tokio::spawn(checks_server.run(checked));
    let turn = turn::Turn {
        published,
        condition,
        pools: Arc::clone(&pools),
        network_status: status,
        service_proxy: args.service_proxy,
        checks,
        ..turn(&args, &node, &shared, source.reader(), missing, recorder.clone())
    };
    let announcer = announce::start(
        &api,
        &turn.setup,
        source.reader(),
        recorder.clone(),
        Arc::clone(&shared),
        Arc::clone(&balancers),
    )?;
    let proxy_health = proxy_health::run(args.proxy_health_listen, Arc::clone(&shared), turn.recorder.clone());
    let proxy_mode = proxy_health::run_mode(args.proxy_mode_listen, node.clone(), turn.recorder.clone());
    // Where kube-proxy serves, the ports are its own.
    let proxy_health = tokio::spawn(async move {
        if args.service_proxy != ServiceProxy::Off {
            tokio::join!(proxy_health, proxy_mode);
        }
    });
    let datapath = start(turn, woken)?;
    let statuses = tokio::spawn(network_status::run(api.clone(), statuses));
    let keeper =
        pools::Pools::new(api.clone(), node.clone(), source.reader(), args.ipam_dir.clone(), Arc::clone(&pools));
    let keeper = tokio::spawn(keeper.run());
    let publisher = tokio::spawn(publish::run(api, node.clone(), source.reader(), publish, conditions));
    tracing::info!(node = %node, api = %args.api, listen = %args.listen, "agent started");
    let result = follow(source, &shared, wake, datapath, stop, || {
        pools.changed.notify_one();
        balancers.notify_one();
    })
    .await;
    http.abort();
    denials.abort();
    proxy_health.abort();
    checks_server.abort();
    publisher.abort();
    statuses.abort();
    keeper.abort();
    announcer.leave().await;
    result
}
