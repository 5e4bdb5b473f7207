//! `seaway controller`: what turns objects into other objects, where the cluster has nobody who does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};

use anyhow::Context;
use resolve::settings::{NAME, NAMESPACE};
use source::{Target, WatchConfig};
use types::ObjectName;

use crate::controller_http::{self, Shared};

/// The controllers' flags.
#[derive(clap::Args)]
#[command(after_help = "On a cluster with a control plane of its own, run only what it lacks, if anything:\n  \
    seaway controller --only node-cidr --api /etc/kubernetes/admin.conf")]
pub struct ControllerArgs {
    /// The API server: unix:PATH, a kubeconfig's path, or in-cluster
    #[arg(long, value_name = "TARGET", env = "SEAWAY_API", default_value = "in-cluster")]
    api: Target,
    /// Where the API server is, in place of what a pod's environment says: its real address
    #[arg(long, value_name = "URL", env = "SEAWAY_API_SERVER", default_value = "", hide_default_value = true)]
    api_server: source::Server,
    /// Work only while holding this Lease, so that several may run [default: work at once]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "SEAWAY_LEASE", value_parser = lease)]
    lease: Option<ObjectName>,
    /// Serve /healthz, /readyz, /status and /metrics here [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "SEAWAY_STATUS_LISTEN")]
    status_listen: Option<SocketAddr>,
    /// Which to run; all when not given
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<controller::Which>,
    #[command(flatten)]
    log: crate::logging::LogArgs,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: ControllerArgs) -> anyhow::Result<ExitCode> {
    args.log.init()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let mut stop = Box::pin(crate::signals::terminated()?);
        let api =
            source::connect_at(&args.api, &args.api_server).await.with_context(|| format!("--api {}", args.api))?;
        let mut leader = None;
        let recorder = source::Recorder::start(&api, "seaway-controller", "");
        let shared = Arc::new(Shared {
            metrics: telemetry::Controllers::new(telemetry::Build { version: env!("CARGO_PKG_VERSION"), commit: "" }),
            denials: api.denials(),
            problems: std::sync::Mutex::default(),
        });
        if let Some(at) = args.status_listen {
            controller_http::start(at, Arc::clone(&shared)).await?;
        }
        // Where `kubectl describe` looks for who works and what keeps them from it; without a Lease, where their settings are.
        let (kind, name) = match &args.lease {
            Some(lease) => (resolve::Kind::Lease, lease.clone()),
            None => (resolve::Kind::ConfigMap, ObjectName::new(NAMESPACE, NAME)),
        };
        tokio::spawn(api.denials().tell(recorder.clone(), resolve::Key { kind, name }));
        if let Some(lease) = args.lease {
            tracing::info!(%lease, "waiting for the Lease");
            shared.metrics.waits(Some(format!("for Lease {lease}")));
            tokio::select! {
                l = source::lead(&api, lease, identity()) => leader = Some(l),
                () = &mut stop => return Ok(ExitCode::SUCCESS),
            }
        }
        let mut lost = None;
        let shutdown = async {
            let unled = async {
                match &mut leader {
                    Some(l) => l.lost().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut stop => {}
                why = unled => lost = Some(why),
            }
        };
        let mut options = controller::Options::default();
        if !args.only.is_empty() {
            options.which = args.only.into_iter().collect();
        }
        let (mut told, mut events) = (Vec::new(), crate::agent::Told::default());
        let (mut memory, start) = (controller::lb::Memory::default(), std::time::Instant::now());
        tracing::info!(api = %args.api, "controllers started");
        shared.metrics.waits(None);
        let told_to = Arc::clone(&shared);
        source::run_controllers(
            &api,
            WatchConfig { kinds: options.kinds(), pods_of: None },
            move |snapshot| {
                let controller::Outcome { writes, problems, again } =
                    controller::reconcile_with(snapshot, &options, &mut memory, &source::now());
                let refused: Vec<_> =
                    problems.iter().filter(|p| on_balancers(p)).cloned().map(crate::agent::refused_input).collect();
                crate::agent::tell(&recorder, None, &events.due(&refused, start.elapsed()));
                for p in problems.iter().filter(|p| !told.contains(*p)) {
                    tracing::warn!("{p}");
                }
                told_to.metrics.problems(problems.len());
                told_to.problems.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&problems);
                told = problems;
                (writes, again)
            },
            |pass| report(&shared.metrics, &pass),
            shutdown,
        )
        .await;
        if let Some(why) = lost {
            // What is in flight ends with the process; another may lead already.
            anyhow::bail!("no longer the leader: {why}");
        }
        if let Some(l) = leader {
            l.resign().await;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One line for a pass that writes, each write for those who debug.
fn report(metrics: &telemetry::Controllers, pass: &source::Passed<'_>) {
    let (mut wrote, mut failures) = (BTreeMap::<&str, usize>::new(), Vec::new());
    for a in &pass.applied {
        match &a.error {
            Some(e) => failures.push(format!("{}: {e}", a.write)),
            None => *wrote.entry(&a.write.resource.kind).or_default() += 1,
        }
        tracing::debug!(failed = a.error.is_some(), "{}", a.write);
    }
    let done = pass.applied.len() - failures.len();
    metrics.wrote(done, failures.len());
    let wrote = telemetry::counted(wrote);
    telemetry::controllers_line(&wrote, done, failures.len(), pass.took, failures.first().map(String::as_str));
}

fn lease(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((ns, name)) if !ns.is_empty() && !name.is_empty() && !name.contains('/') => Ok(ObjectName::new(ns, name)),
        _ => Err("write NAMESPACE/NAME, as in kube-system/seaway-controller".into()),
    }
}

/// A name that no other process has: the host's for people, the time for difference.
fn identity() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{host}_{}_{:x}", std::process::id(), now.as_nanos())
}

/// What a Service asks for and cannot have is told as an Event; of pools, their status says what is wrong.
fn on_balancers(p: &resolve::Problem) -> bool {
    p.object.starts_with("Service/")
}
