//! `seaway controller`: what turns objects into other objects, where the cluster has nobody who does.

use std::process::ExitCode;

use anyhow::Context;
use source::{Target, WatchConfig};

/// The controllers' flags.
#[derive(clap::Args)]
#[command(after_help = "On a cluster with a control plane of its own, run only what it lacks, if anything:\n  \
    seaway controller --only node-cidr --api /etc/kubernetes/admin.conf")]
pub struct ControllerArgs {
    /// The API server: unix:PATH, a kubeconfig's path, or in-cluster
    #[arg(long, value_name = "TARGET", env = "SEAWAY_API", default_value = "in-cluster")]
    api: Target,
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
        let stop = crate::signals::terminated()?;
        let api = source::connect(&args.api).await.with_context(|| format!("--api {}", args.api))?;
        let mut options = controller::Options::default();
        if !args.only.is_empty() {
            options.which = args.only.into_iter().collect();
        }
        let recorder = source::Recorder::start(&api, "seaway-controller", "");
        let (mut told, mut events) = (Vec::new(), crate::agent::Told::default());
        let (mut memory, start) = (controller::lb::Memory::default(), std::time::Instant::now());
        tracing::info!(api = %args.api, "controllers started");
        source::run_controllers(
            &api,
            WatchConfig { kinds: options.kinds(), pods_of: None },
            move |snapshot| {
                let controller::Outcome { writes, problems } =
                    controller::reconcile_with(snapshot, &options, &mut memory, &source::now());
                let refused: Vec<_> =
                    problems.iter().filter(|p| on_balancers(p)).cloned().map(crate::agent::refused_input).collect();
                crate::agent::tell(&recorder, None, &events.due(&refused, start.elapsed()));
                for p in problems.iter().filter(|p| !told.contains(*p)) {
                    tracing::warn!("{p}");
                }
                told = problems;
                writes
            },
            |applied| match applied.error {
                Some(e) => tracing::warn!("{}: {e}", applied.write),
                None => tracing::debug!("{}", applied.write),
            },
            stop,
        )
        .await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Problems of load balancers are told as Events: nobody else says them at the object.
fn on_balancers(p: &resolve::Problem) -> bool {
    ["Service/", "LoadBalancerPool/"].iter().any(|k| p.object.starts_with(k))
}
