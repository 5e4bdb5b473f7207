//! `seaway ipam`: pods' addresses: who has which, which pools and blocks there are, and what does not agree.

mod check;
mod find;
mod pools;
mod release;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use source::{Api, ClusterSnapshot, Source, Target, WatchConfig};
use types::NodeName;

use crate::plan_cmd::Output;

/// How long an API server may take to say what there is.
const API: Duration = Duration::from_secs(10);

/// Addresses of pods: who has which, pools and blocks, and what does not agree.
#[derive(clap::Args)]
#[command(after_help = "Without --api only this node is looked at: its records and its kernel.\n\n\
    Exit code of check: 0 everything agrees, 1 something does not and is not mended.\n\n\
    Examples:\n  seaway ipam show\n  seaway ipam pools --api in-cluster\n  \
    seaway ipam check --fix --api /etc/kubernetes/kubelet.conf --node node1\n  seaway ipam release 10.244.1.7")]
pub struct IpamArgs {
    /// Where the CNI plugin keeps its records
    #[arg(long, value_name = "DIR", env = "SEAWAY_IPAM_DIR", default_value = ipam::DEFAULT_DIR, global = true)]
    ipam_dir: PathBuf,
    /// The API server: unix:PATH, a kubeconfig's path, or in-cluster [default: none is asked]
    #[arg(long, value_name = "TARGET", env = "SEAWAY_API", global = true)]
    api: Option<Target>,
    /// This node's Node object
    #[arg(long, value_name = "NAME", env = "SEAWAY_NODE", global = true)]
    node: Option<NodeName>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List attachments of this node: pod, addresses, host end, namespace
    Show {
        /// Blocks of the whole cluster instead: whose, of which pool, what is lent (needs --api)
        #[arg(long)]
        blocks: bool,
        /// text, json or yaml
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// List address pools: range, blocks, nodes, addresses in use (needs --api)
    Pools {
        /// text, json or yaml
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Compare API, records, kernel and pods, and say what does not agree
    Check {
        /// Mend it
        #[arg(long, alias = "repair")]
        fix: bool,
        /// text, json or yaml
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Free the addresses of an attachment, by address or container id
    Release {
        /// An address, or a container id or its beginning
        #[arg(value_name = "ADDRESS|CONTAINER")]
        what: String,
        /// Even if its pod lives: it loses its network
        #[arg(long)]
        force: bool,
    },
}

/// Runs one of them.
pub fn run(args: &IpamArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Show { blocks: true, output } => pools::blocks(&args.cluster()?.1, *output),
        Command::Show { blocks: false, output } => show::run(&args.ipam_dir, *output),
        Command::Pools { output } => pools::run(&args.cluster()?.1, *output),
        Command::Check { fix, output } => check::run(args, *fix, *output),
        Command::Release { what, force } => release::run(&args.ipam_dir, what, *force),
    }
}

impl IpamArgs {
    /// What the API says.
    fn cluster(&self) -> anyhow::Result<(tokio::runtime::Runtime, ClusterSnapshot)> {
        let target =
            self.api.as_ref().context("--api: say which API server, e.g. --api unix:PATH or --api in-cluster")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let snapshot = runtime.block_on(async {
            let api = source::connect(target).await?;
            snapshot(&api, None).await
        });
        Ok((runtime, snapshot.with_context(|| format!("--api {target}"))?))
    }
}

/// The whole cluster; only the pods of a node when one is named.
async fn snapshot(api: &Api, pods_of: Option<NodeName>) -> anyhow::Result<ClusterSnapshot> {
    let mut source = Source::start(api, WatchConfig { pods_of, ..WatchConfig::agent() });
    if tokio::time::timeout(API, source.wait_in_sync()).await.is_err() {
        let sync = source.in_sync();
        let why = sync.failing.values().next().cloned().unwrap_or_else(|| "no answer".into());
        let kinds: Vec<String> = sync.missing().map(|k| k.to_string()).collect();
        bail!("{} could not be listed within {} s: {why}", kinds.join(", "), API.as_secs());
    }
    Ok(source.read(|s, _| s.clone()))
}

/// Prints a value as JSON or YAML; says whether it did.
fn print<T: serde::Serialize>(value: &T, output: Output) -> anyhow::Result<bool> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Output::Yaml => print!("{}", serde_yaml::to_string(value)?),
        Output::Text => return Ok(false),
    }
    Ok(true)
}

/// A table that fits the terminal.
fn table<const N: usize>(head: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
        .set_header(head);
    table
}
