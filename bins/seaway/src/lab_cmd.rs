//! `seaway lab`: a whole cluster on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use lab::ns::Enter;
use lab::topology::Spec;
use lab::{Lab, LabName};
use types::FamilySet;

/// A cluster's network on this machine: nodes and pods as network namespaces, real agents, real packets.
#[derive(clap::Args)]
#[command(after_help = "Start here:\n  seaway lab up examples/shop --nodes 3 --backend vxlan --ip dual\n  \
    seaway lab test\n  seaway lab get pods -A -o wide\n  seaway lab exec web -- curl -s http://api:8080\n  \
    seaway lab down\n\nEverything is in namespaces of its own; this machine's own network is not touched.")]
pub struct LabArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster
    Up(UpArgs),
    /// Remove a cluster: every process, namespace, mount and file
    Down(DownArgs),
    /// Run one node's pods (started by `up`)
    #[command(hide = true)]
    Node(NodeArgs),
    /// Be a container's parent (started by a pod runner)
    #[command(hide = true)]
    Shim(ShimArgs),
    /// Enter namespaces and become a command
    #[command(hide = true)]
    Enter(EnterArgs),
    /// Answer HTTP, TCP and UDP with who answers and who asks
    #[command(hide = true)]
    Echo(EchoArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendArg {
    HostGw,
    Vxlan,
}

#[derive(Clone, Copy, ValueEnum)]
enum IpArg {
    V4,
    V6,
    Dual,
}

#[derive(clap::Args)]
struct UpArgs {
    /// A folder of manifests to apply when the nodes are ready
    #[arg(value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The lab's name; several may be up at once
    #[arg(long, default_value = "lab")]
    name: LabName,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: u16,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value_t = BackendArg::Vxlan)]
    backend: BackendArg,
    /// Which families nodes, pods and Services have
    #[arg(long, value_enum, default_value_t = IpArg::Dual)]
    ip: IpArg,
    /// 1: all nodes on one switch. 2: two switches with a router between (not with host-gw)
    #[arg(long, default_value_t = 1, value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2))]
    segments: u8,
    /// Do not wait for the pods
    #[arg(long)]
    no_wait: bool,
    /// Print the namespaces, links and addresses, and make nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
struct DownArgs {
    /// Which lab [default: the only one]
    #[arg(long, conflicts_with = "all")]
    name: Option<LabName>,
    /// Every lab of which anything is left
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args)]
struct NodeArgs {
    #[arg(long)]
    lab: LabName,
    #[arg(long)]
    node: String,
    #[arg(long)]
    api: PathBuf,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    cni_path: Vec<PathBuf>,
    #[command(flatten)]
    log: crate::logging::LogArgs,
}

#[derive(clap::Args)]
struct Namespaces {
    #[arg(long)]
    netns: Option<PathBuf>,
    #[arg(long)]
    hosts: Option<PathBuf>,
    #[arg(long)]
    resolv: Option<PathBuf>,
    #[arg(long)]
    hostname: Option<String>,
}

impl From<Namespaces> for Enter {
    fn from(n: Namespaces) -> Self {
        Self { netns: n.netns, hosts: n.hosts, resolv: n.resolv, hostname: n.hostname }
    }
}

#[derive(clap::Args)]
struct ShimArgs {
    #[command(flatten)]
    namespaces: Namespaces,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    attempt: u32,
    #[arg(long)]
    cwd: Option<PathBuf>,
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

#[derive(clap::Args)]
struct EnterArgs {
    #[command(flatten)]
    namespaces: Namespaces,
    #[arg(long)]
    session: bool,
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

#[derive(clap::Args)]
struct EchoArgs {
    #[arg(long)]
    pod: String,
    #[arg(long)]
    node: String,
    #[arg(long = "port", default_values_t = [lab::echo::DEFAULT_PORT])]
    ports: Vec<u16>,
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs it.
pub fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Up(a) => up(a),
        Command::Down(a) => down(a),
        Command::Node(a) => {
            a.log.init()?;
            let config = lab::runner::Config {
                lab: a.lab,
                node: a.node,
                api: a.api,
                dir: lab::NodeDir::at(&a.dir),
                cni_path: a.cni_path,
                exe: lab::record::own_program()?,
            };
            runtime()?.block_on(lab::runner::run(config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Shim(a) => {
            let files = lab::shim::RunFiles::new(&a.dir, a.attempt);
            lab::shim::run(&files, &a.namespaces.into(), a.cwd.as_deref(), &a.argv)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Enter(a) => Err(lab::shim::exec(&a.namespaces.into(), a.session, &a.argv).into()),
        Command::Echo(a) => {
            let id = lab::echo::Identity { pod: a.pod, node: a.node };
            runtime()?.block_on(lab::echo::serve(id, &a.ports))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(a: UpArgs) -> anyhow::Result<ExitCode> {
    let families = match a.ip {
        IpArg::V4 => FamilySet { v4: true, v6: false },
        IpArg::V6 => FamilySet { v4: false, v6: true },
        IpArg::Dual => FamilySet { v4: true, v6: true },
    };
    let spec = Spec { name: a.name, nodes: a.nodes, segments: a.segments, families };
    if a.dry_run {
        print!("{}", lab::topology::render(&lab::topology::plan(&spec)?));
        return Ok(ExitCode::SUCCESS);
    }
    let backend = match a.backend {
        BackendArg::HostGw => lab::record::Backend::HostGw,
        BackendArg::Vxlan => lab::record::Backend::Vxlan,
    };
    let name = spec.name.clone();
    let options = lab::up::Options { spec, backend, manifests: a.manifests, wait: !a.no_wait };
    let progress = lab::progress::Progress::new();
    let made = lab::up::up(&options, &progress);
    drop(progress);
    match made {
        Ok(l) => {
            print!("{}", lab::up::closing(&l));
            Ok(ExitCode::SUCCESS)
        }
        Err(e) => {
            eprintln!("seaway: {e}");
            if Lab::load(&name).is_ok_and(|l| !l.complete) {
                eprintln!("What was made is left for a look; `seaway lab down --name {name}` removes it.");
            }
            Ok(ExitCode::from(1))
        }
    }
}

fn down(a: DownArgs) -> anyhow::Result<ExitCode> {
    let names = match (a.all, a.name) {
        (true, _) => lab::down::remains(),
        (false, Some(n)) => vec![n],
        (false, None) => match lab::down::remains().as_slice() {
            [] => Vec::new(),
            [one] => vec![one.clone()],
            _ => vec![lab::choose(None)?],
        },
    };
    if names.is_empty() {
        println!("no lab is up");
    }
    for n in names {
        let r = lab::down::down(&n)?;
        if r == lab::down::Removed::default() {
            println!("lab {n}: nothing is left of it");
        } else {
            println!("lab {n}: removed {} processes, {} namespaces and its files", r.processes, r.namespaces);
        }
    }
    Ok(ExitCode::SUCCESS)
}
