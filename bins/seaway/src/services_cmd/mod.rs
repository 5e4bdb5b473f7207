//! `seaway services`: Services as a node sees them: what each promises, and why an endpoint is not used.

pub mod gather;
mod leftovers;
mod print;
pub mod takeover;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use source::Target;
use types::NodeName;

use gather::{Report, Which};

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// With external addresses, policies and affinity in the list.
    Wide,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// Services as a node sees them: address, ports, policies, each endpoint, and why one is not used.
#[derive(clap::Args)]
#[command(
    after_help = "Without NAME: a line for each Service. With it: everything of one, each endpoint with node, zone and state,\n\
    and for each that gets no traffic from this node the reason: not ready, terminating, kept by hints for another zone\n\
    or node, elsewhere where a policy says Local, of a family or port the Service does not have, a forbidden address.\n\n\
    Who is asked: --from, --api, --lab or --agent; with none of them the agent of this node if one runs, else the only\n\
    lab that is up. Hints and policies make each node see another thing: --node says whose eyes to use.\n\n\
    Exit code 1 when a Service has a problem that somebody must mend, or when NAME is not there.\n\n\
    Examples:\n  seaway services                      all, from this node's agent or the lab\n  \
    seaway services shop/web             one, with its endpoints\n  \
    seaway services web -n shop --node node2 --api ~/.kube/config\n  \
    seaway services -o wide --from examples/shop --node node1"
)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServicesArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// A Service: NAMESPACE/NAME, or NAME where only one namespace has it
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only this namespace
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The node whose view it is [default: the agent's own, else the first]
    #[arg(long, value_name = "NAME", env = "SEAWAY_NODE")]
    node: Option<NodeName>,
    /// Ask this API server: unix:PATH, a kubeconfig's path, or in-cluster
    #[arg(long, value_name = "TARGET", env = "SEAWAY_API", group = "whom")]
    api: Option<Target>,
    /// Ask the API server of this lab
    #[arg(long, value_name = "NAME", group = "whom")]
    lab: Option<String>,
    /// Ask the agent that listens here [default: 127.0.0.1:9642]
    #[arg(long, value_name = "ADDRESS:PORT", group = "whom")]
    agent: Option<SocketAddr>,
    /// Ask nobody: read a folder of manifests, as `seaway plan` does
    #[arg(long, value_name = "DIR", group = "whom")]
    from: Option<PathBuf>,
    /// text, wide, json or yaml
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Replace kube-proxy on this node while it carries traffic, or give the node back to it
    Takeover(takeover::TakeoverArgs),
}

/// Asks, explains, prints.
pub fn run(args: &ServicesArgs) -> anyhow::Result<ExitCode> {
    if let Some(Command::Takeover(a)) = &args.command {
        return takeover::run(a);
    }
    let which = Which::parse(args.name.as_deref(), args.namespace.as_deref())?;
    let report = ask(args, &which)?;
    let shown = report.services.len();
    match (&which.name, shown) {
        (Some(name), 0) => {
            let place = which.namespace.as_ref().map_or_else(String::new, |n| format!(" in namespace {n}"));
            bail!("no Service {name}{place}: `seaway services` lists what there is");
        }
        (Some(name), 2..) => {
            let all: Vec<String> = report.services.iter().map(|s| format!("{}/{}", s.namespace, s.name)).collect();
            bail!("{name:?} is in several namespaces: say {}", all.join(" or "));
        }
        _ => {}
    }
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Yaml => print!("{}", serde_yaml::to_string(&report)?),
        Output::Text | Output::Wide => {
            let width = comfy_table::Table::new().width();
            let one = if which.name.is_some() { report.services.first() } else { None };
            match one {
                Some(s) => print!("{}", print::one(&report, s, width)),
                None => print!("{}", print::list(&report, args.output == Output::Wide, width)),
            }
        }
    }
    let bad = report.services.iter().any(|s| !s.problems.is_empty());
    Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn ask(args: &ServicesArgs, which: &Which) -> anyhow::Result<Report> {
    if let Some(dir) = &args.from {
        return gather::from_folder(dir, args.node.as_ref(), which);
    }
    if let Some(target) = &args.api {
        return gather::from_api(target, args.node.as_ref(), which).with_context(|| format!("--api {target}"));
    }
    if args.lab.is_none() {
        let at = args.agent.unwrap_or(gather::AGENT);
        match gather::from_agent(at, which) {
            Ok(Some(report)) if args.node.as_ref().is_none_or(|n| n.as_str() == report.node) => return Ok(report),
            Ok(Some(report)) => bail!(
                "--node: the agent at {at} is {}'s and sees only its own node: ask the API server (--api) instead",
                report.node
            ),
            Ok(None) if args.agent.is_none() => {}
            Ok(None) => bail!("--agent {at}: nobody listens there; the agent's --listen says where it does"),
            Err(e) => return Err(e.context(format!("the agent at {at}"))),
        }
    }
    let lab = match (lab::choose(args.lab.as_deref()), &args.lab) {
        (Ok(lab), _) => lab,
        (Err(e), Some(_)) => return Err(e.into()),
        (Err(e), None) => bail!("no agent listens at {}, and {e}; or say --api, --agent or --from", gather::AGENT),
    };
    let target = Target::Unix(lab.dir().api_sock());
    gather::from_api(&target, args.node.as_ref(), which).with_context(|| format!("lab {lab}"))
}
