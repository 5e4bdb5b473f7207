//! `seaway`: the network of a container cluster in one binary. Each subcommand is a module; `--help` teaches.

mod agent;
mod apiserver_cmd;
mod controller_cmd;
mod controller_http;
mod docs_cmd;
mod install_cmd;
mod ipam_cmd;
mod kube_proxy;
mod lab_cmd;
mod logging;
mod plan_cmd;
mod report_cmd;
mod services_cmd;
#[cfg(test)]
mod settings_table;
mod signals;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The network of a container cluster: pods, nodes and services, from one agent that can explain every packet.
#[derive(Parser)]
#[command(
    name = "seaway",
    version,
    max_term_width = 100,
    after_help = "Start here:\n  \
        seaway lab up examples/shop      a three-node cluster on this machine\n  \
        seaway lab test                  does every path work? A table\n  \
        seaway trace POD SERVICE:PORT    where does a packet go, and why\n  \
        seaway services [NAME]           Services, their endpoints, and why one is not used\n  \
        seaway plan --from DIR --node N  what would be programmed, without touching anything\n\n\
        Exit codes: 0 it is so, 1 it is not so or it failed, 2 the command line is wrong."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the network of one node
    Agent(Box<agent::AgentArgs>),
    /// Run the controllers that a cluster lacks
    Controller(controller_cmd::ControllerArgs),
    /// Print what a node would be told, from a folder of manifests
    Plan(plan_cmd::PlanArgs),
    /// Print Services as a node sees them, and why an endpoint is not used
    Services(services_cmd::ServicesArgs),
    /// Print where a packet goes, and why
    Trace(trace::TraceArgs),
    /// A whole cluster on this machine
    Lab(lab_cmd::LabArgs),
    /// Print and mend this node's records of pod addresses
    Ipam(ipam_cmd::IpamArgs),
    /// Write a support bundle of this node, without secrets
    Report(report_cmd::ReportArgs),
    /// Run the embedded Kubernetes-compatible API server
    Apiserver(apiserver_cmd::ApiserverArgs),
    /// Put the CNI plugin where container runtimes look for it
    InstallCni(install_cmd::InstallArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man(docs_cmd::ManArgs),
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions(docs_cmd::CompletionsArgs),
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Agent(a) => agent::run(*a),
        Command::Controller(a) => controller_cmd::run(a),
        Command::Plan(a) => plan_cmd::run(&a),
        Command::Services(a) => services_cmd::run(&a),
        Command::Trace(a) => trace::run(&a),
        Command::Lab(a) => lab_cmd::run(a),
        Command::Ipam(a) => ipam_cmd::run(&a),
        Command::Report(a) => report_cmd::run(&a),
        Command::Apiserver(a) => apiserver_cmd::run(a),
        Command::InstallCni(a) => install_cmd::run(&a),
        Command::Man(a) => docs_cmd::man(&a),
        Command::Completions(a) => docs_cmd::completions(&a),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run(cli).unwrap_or_else(|e| {
        eprintln!("seaway: {e:#}");
        ExitCode::from(1)
    })
}
