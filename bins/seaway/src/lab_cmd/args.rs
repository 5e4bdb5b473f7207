//! The command line of `seaway lab`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use lab::ns::Enter;
use lab::{Lab, LabName};

/// A cluster's network on this machine: nodes and pods as network namespaces, real agents, real packets.
#[derive(clap::Args)]
#[command(after_help = "Start here:\n  seaway lab up examples/shop --nodes 3 --backend vxlan --ip dual\n  \
    seaway lab test\n  seaway lab get pods -A -o wide\n  seaway lab exec web -- sh -c 'curl -s $API_SERVICE_HOST'\n  \
    seaway lab down\n\nEverything is in namespaces of its own; this machine's own network is not touched.")]
pub struct LabArgs {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Start a cluster
    Up(UpArgs),
    /// Show nodes, processes and addresses
    Status(NamedArgs),
    /// Create or change the objects of a manifest or a folder of them
    Apply(FileArgs),
    /// Delete the objects of a manifest or a folder of them
    Delete(FileArgs),
    /// Print objects of a kind
    Get(GetArgs),
    /// Run a command inside a pod
    Exec(ExecArgs),
    /// Open a shell on a node, on `outside` or `switch`, or in a pod
    Shell(ShellArgs),
    /// Print what a container printed
    Logs(LogsArgs),
    /// Print the packets of a node, a pod, `outside` or `switch` (tcpdump)
    Capture(CaptureArgs),
    /// Does every path work? Asks with real packets and prints a table
    Test(TestArgs),
    /// Start again the processes of a lab that died
    Heal(NamedArgs),
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
    /// Send packets: questions on standard input, answers on standard output, JSON
    #[command(hide = true)]
    Probe,
}

/// Which lab.
#[derive(clap::Args)]
pub struct Name {
    /// Which lab [default: the only one that is up]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

impl Name {
    /// Its record.
    pub fn lab(&self) -> anyhow::Result<Lab> {
        Ok(Lab::load(&lab::choose(self.name.as_deref())?)?)
    }
}

#[derive(clap::Args)]
pub struct NamedArgs {
    #[command(flatten)]
    pub name: Name,
    /// Print JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(clap::Args)]
pub struct FileArgs {
    #[command(flatten)]
    pub name: Name,
    /// A manifest or a folder of them; `-` for standard input
    #[arg(short, long, value_name = "PATH")]
    pub filename: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GetOutput {
    Wide,
    Name,
    Json,
    Yaml,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  seaway lab get pods -A -o wide\n  seaway lab get svc -n shop\n  \
    seaway lab get node/node1 -o yaml")]
pub struct GetArgs {
    #[command(flatten)]
    pub lab: Name,
    /// pods, svc, nodes, endpointslices, events...; KIND/NAME for one
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// One object
    #[arg(value_name = "OBJECT")]
    pub object: Option<String>,
    /// The namespace [default: all]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces; the default, for fingers that know kubectl
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long)]
    pub selector: Option<String>,
    /// How to print [default: a table]
    #[arg(short, long, value_enum)]
    pub output: Option<GetOutput>,
}

#[derive(clap::Args)]
#[command(after_help = "POD is NAMESPACE/NAME, NAME, or the beginning of one: `web` for web-7d4b9-x2x1z.\n\n\
    Example:\n  seaway lab exec web -- ip route")]
pub struct ExecArgs {
    #[command(flatten)]
    pub name: Name,
    /// The container whose environment is taken [default: the first]
    #[arg(short, long)]
    pub container: Option<String>,
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The command, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub argv: Vec<String>,
}

#[derive(clap::Args)]
pub struct ShellArgs {
    #[command(flatten)]
    pub name: Name,
    /// A node, `outside`, `switch`, or a pod
    #[arg(value_name = "NODE")]
    pub place: String,
}

#[derive(clap::Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub name: Name,
    /// The pod, as for `exec`
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The container [default: the first]
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on as long as the pod is there
    #[arg(short, long)]
    pub follow: bool,
    /// Of the run before the last
    #[arg(short, long)]
    pub previous: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  seaway lab capture node1 udp port 8472\n  seaway lab capture web -w web.pcap")]
pub struct CaptureArgs {
    #[command(flatten)]
    pub name: Name,
    /// A node, `outside`, `switch`, or a pod
    #[arg(value_name = "PLACE")]
    pub place: String,
    /// Arguments of tcpdump [default interface: any]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "TCPDUMP")]
    pub args: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exit code 1 when a path fails. Every packet that got no answer is counted and shown, also where\n\
    a later one did. Pods that run the built-in echo server are asked; where the lab has too few, the test\n\
    runs its own in namespace seaway-test and removes them."
)]
pub struct TestArgs {
    #[command(flatten)]
    pub name: Name,
    /// Ask only pods of the test's own
    #[arg(long)]
    pub own_pods: bool,
    /// text or json
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum BackendArg {
    HostGw,
    Vxlan,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum IpArg {
    V4,
    V6,
    Dual,
}

#[derive(clap::Args)]
pub struct UpArgs {
    /// A folder of manifests to apply when the nodes are ready
    #[arg(value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// The lab's name; several may be up at once
    #[arg(long, default_value = "lab")]
    pub name: LabName,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub nodes: u16,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value_t = BackendArg::Vxlan)]
    pub backend: BackendArg,
    /// Which families nodes, pods and Services have
    #[arg(long, value_enum, default_value_t = IpArg::Dual)]
    pub ip: IpArg,
    /// 1: all nodes on one switch. 2: two switches with a router between (not with host-gw)
    #[arg(long, default_value_t = 1, value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub segments: u8,
    /// Do not wait for the pods
    #[arg(long)]
    pub no_wait: bool,
    /// Print the namespaces, links and addresses, and make nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(clap::Args)]
pub struct DownArgs {
    /// Which lab [default: the only one]
    #[arg(long, conflicts_with = "all")]
    pub name: Option<LabName>,
    /// Every lab of which anything is left
    #[arg(long)]
    pub all: bool,
}

#[derive(clap::Args)]
pub struct NodeArgs {
    #[arg(long)]
    pub lab: LabName,
    #[arg(long)]
    pub node: String,
    #[arg(long)]
    pub api: PathBuf,
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub cni_path: Vec<PathBuf>,
    #[command(flatten)]
    pub log: crate::logging::LogArgs,
}

#[derive(clap::Args)]
pub struct Namespaces {
    #[arg(long)]
    pub netns: Option<PathBuf>,
    #[arg(long)]
    pub hosts: Option<PathBuf>,
    #[arg(long)]
    pub resolv: Option<PathBuf>,
    #[arg(long)]
    pub hostname: Option<String>,
}

impl From<Namespaces> for Enter {
    fn from(n: Namespaces) -> Self {
        Self { netns: n.netns, hosts: n.hosts, resolv: n.resolv, hostname: n.hostname }
    }
}

#[derive(clap::Args)]
pub struct ShimArgs {
    #[command(flatten)]
    pub namespaces: Namespaces,
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub attempt: u32,
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    #[arg(last = true, required = true)]
    pub argv: Vec<String>,
}

#[derive(clap::Args)]
pub struct EnterArgs {
    #[command(flatten)]
    pub namespaces: Namespaces,
    #[arg(long)]
    pub session: bool,
    #[arg(long)]
    pub tty: bool,
    #[arg(last = true, required = true)]
    pub argv: Vec<String>,
}

#[derive(clap::Args)]
pub struct EchoArgs {
    #[arg(long)]
    pub pod: String,
    #[arg(long)]
    pub node: String,
    #[arg(long = "port", default_values_t = [lab::echo::DEFAULT_PORT])]
    pub ports: Vec<u16>,
}
