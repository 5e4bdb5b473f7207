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
struct Name {
    /// Which lab [default: the only one that is up]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Name {
    fn lab(&self) -> anyhow::Result<Lab> {
        Ok(Lab::load(&lab::choose(self.name.as_deref())?)?)
    }
}

#[derive(clap::Args)]
struct NamedArgs {
    #[command(flatten)]
    name: Name,
    /// Print JSON
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(clap::Args)]
struct FileArgs {
    #[command(flatten)]
    name: Name,
    /// A manifest or a folder of them; `-` for standard input
    #[arg(short, long, value_name = "PATH")]
    filename: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GetOutput {
    Wide,
    Name,
    Json,
    Yaml,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  seaway lab get pods -A -o wide\n  seaway lab get svc -n shop\n  \
    seaway lab get node/node1 -o yaml")]
struct GetArgs {
    #[command(flatten)]
    lab: Name,
    /// pods, svc, nodes, endpointslices, events...; KIND/NAME for one
    #[arg(value_name = "KIND")]
    kind: String,
    /// One object
    #[arg(value_name = "OBJECT")]
    object: Option<String>,
    /// The namespace [default: all]
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces; the default, for fingers that know kubectl
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// How to print [default: a table]
    #[arg(short, long, value_enum)]
    output: Option<GetOutput>,
}

#[derive(clap::Args)]
#[command(after_help = "POD is NAMESPACE/NAME, NAME, or the beginning of one: `web` for web-7d4b9-x2x1z.\n\n\
    Example:\n  seaway lab exec web -- ip route")]
struct ExecArgs {
    #[command(flatten)]
    name: Name,
    /// The container whose environment is taken [default: the first]
    #[arg(short, long)]
    container: Option<String>,
    /// The pod
    #[arg(value_name = "POD")]
    pod: String,
    /// The command, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

#[derive(clap::Args)]
struct ShellArgs {
    #[command(flatten)]
    name: Name,
    /// A node, `outside`, `switch`, or a pod
    #[arg(value_name = "NODE")]
    place: String,
}

#[derive(clap::Args)]
struct LogsArgs {
    #[command(flatten)]
    name: Name,
    /// The pod, as for `exec`
    #[arg(value_name = "POD")]
    pod: String,
    /// The container [default: the first]
    #[arg(short, long)]
    container: Option<String>,
    /// Go on as long as the pod is there
    #[arg(short, long)]
    follow: bool,
    /// Of the run before the last
    #[arg(short, long)]
    previous: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  seaway lab capture node1 udp port 8472\n  seaway lab capture web -w web.pcap")]
struct CaptureArgs {
    #[command(flatten)]
    name: Name,
    /// A node, `outside`, `switch`, or a pod
    #[arg(value_name = "PLACE")]
    place: String,
    /// Arguments of tcpdump [default interface: any]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "TCPDUMP")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exit code 1 when a path fails. Every packet that got no answer is counted and shown, also where\n\
    a later one did. Pods that run the built-in echo server are asked; where the lab has too few, the test\n\
    runs its own in namespace seaway-test and removes them."
)]
struct TestArgs {
    #[command(flatten)]
    name: Name,
    /// Ask only pods of the test's own
    #[arg(long)]
    own_pods: bool,
    /// text or json
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
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
        Command::Status(a) => status(&a),
        Command::Apply(a) => files(&a, true),
        Command::Delete(a) => files(&a, false),
        Command::Get(a) => get(a),
        Command::Exec(a) => exec(&a),
        Command::Shell(a) => shell(&a),
        Command::Logs(a) => logs(&a),
        Command::Capture(a) => capture(&a),
        Command::Test(a) => test(&a),
        Command::Heal(a) => heal(&a),
        Command::Down(a) => down(a),
        Command::Probe => {
            let asks: Vec<lab::prober::Ask> = serde_json::from_reader(std::io::stdin().lock())?;
            serde_json::to_writer(std::io::stdout().lock(), &lab::prober::run(&asks))?;
            Ok(ExitCode::SUCCESS)
        }
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

fn api(l: &Lab) -> lab::api::Api {
    lab::api::Api::new(&l.spec.name.dir().api_sock())
}

fn status(a: &NamedArgs) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let s = runtime()?.block_on(lab::view::status(&l));
    match a.output {
        Output::Text => print!("{}", lab::view::render(&s)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&s)?),
    }
    Ok(if s.healthy() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn files(a: &FileArgs, apply: bool) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let manifests = if a.filename.as_os_str() == "-" {
        lab::manifest::parse("standard input", &std::io::read_to_string(std::io::stdin())?)?
    } else {
        lab::manifest::read(&a.filename)?
    };
    let said = runtime()?.block_on(async {
        if apply {
            lab::manifest::apply(&api(&l), &manifests).await
        } else {
            lab::manifest::delete(&api(&l), &manifests).await
        }
    })?;
    said.iter().for_each(|s| println!("{s}"));
    Ok(ExitCode::SUCCESS)
}

fn get(a: GetArgs) -> anyhow::Result<ExitCode> {
    use lab::view::Format;
    let l = a.lab.lab()?;
    let format = match a.output {
        None => Format::Table,
        Some(GetOutput::Wide) => Format::Wide,
        Some(GetOutput::Name) => Format::Name,
        Some(GetOutput::Json) => Format::Json,
        Some(GetOutput::Yaml) => Format::Yaml,
    };
    let g = lab::view::Get { kind: a.kind, name: a.object, namespace: a.namespace, selector: a.selector, format };
    print!("{}", runtime()?.block_on(lab::view::get(&api(&l), &g))?);
    Ok(ExitCode::SUCCESS)
}

/// Becomes a command inside a place of a lab; returns only when that fails.
fn become_command(l: &Lab, enter: &Enter, env: Vec<(String, String)>, argv: &[String]) -> anyhow::Error {
    let exe = match lab::record::own_program() {
        Ok(e) => e,
        Err(e) => return e.into(),
    };
    use std::os::unix::process::CommandExt;
    let mut c = std::process::Command::new(exe);
    c.args(["lab", "enter"]).args(enter.to_args()).arg("--").args(argv);
    if !env.is_empty() {
        c.env_clear().envs(env);
        c.envs(["TERM", "LANG"].into_iter().filter_map(|k| Some((k, std::env::var_os(k)?))));
    }
    c.env(lab::name::LAB_MARKER, l.spec.name.as_str());
    anyhow::Error::new(c.exec())
}

fn exec(a: &ExecArgs) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let (enter, env) = lab::pods::find(&l, &a.pod)?.inside(a.container.as_deref())?;
    Err(become_command(&l, &enter, env, &a.argv))
}

/// A node, `outside`, `switch` or a pod.
fn place(l: &Lab, text: &str) -> anyhow::Result<(Enter, Vec<(String, String)>)> {
    let name = &l.spec.name;
    let netns = match text {
        "outside" => Some(name.outside_netns()),
        "switch" => Some(name.switch_netns()),
        n => l.node(n).map(|n| n.netns.clone()),
    };
    match netns {
        Some(n) => {
            let enter = Enter { netns: Some(lab::netns_path(&n)), hostname: Some(text.to_owned()), ..Enter::default() };
            Ok((enter, Vec::new()))
        }
        None => Ok(lab::pods::find(l, text)?.inside(None)?),
    }
}

fn shell(a: &ShellArgs) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let (enter, env) = place(&l, &a.place)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    Err(become_command(&l, &enter, env, &[shell]))
}

fn logs(a: &LogsArgs) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let pod = lab::pods::find(&l, &a.pod)?;
    lab::pods::logs(&pod, a.container.as_deref(), a.previous, a.follow, &mut std::io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn capture(a: &CaptureArgs) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let (enter, _) = place(&l, &a.place)?;
    let found =
        std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("tcpdump").is_file()));
    anyhow::ensure!(found, "tcpdump is not installed: install Debian package tcpdump");
    let mut argv = vec!["tcpdump".to_owned(), "-n".into()];
    if !a.args.iter().any(|x| x.starts_with("-i") || x == "--interface") {
        argv.extend(["-i".into(), "any".into()]);
    }
    argv.extend(a.args.iter().cloned());
    Err(become_command(&l, &enter, Vec::new(), &argv))
}

fn test(a: &TestArgs) -> anyhow::Result<ExitCode> {
    use std::io::IsTerminal;
    let l = a.name.lab()?;
    let progress = lab::progress::Progress::new();
    let options = lab::matrix::Options { only_own: a.own_pods };
    let report = lab::matrix::test(&l, options, &progress, &|src, dst, family| why(&l, src, dst, family))?;
    drop(progress);
    match a.output {
        Output::Text => {
            let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            print!("{}", lab::matrix::render(&report, colour));
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Where `seaway trace` says that a packet stops: `NODE: why`.
fn why(l: &Lab, src: &str, dst: &str, family: types::Family) -> Option<String> {
    let exe = lab::record::own_program().ok()?;
    let mut c = std::process::Command::new(exe);
    c.args(["trace", src, dst, "--name", l.spec.name.as_str(), "-o", "json"]);
    if family == types::Family::V6 {
        c.arg("-6");
    }
    let v: serde_json::Value = serde_json::from_slice(&c.output().ok()?.stdout).ok()?;
    let hops = |v: &serde_json::Value| v.as_array().cloned().unwrap_or_default();
    let all = hops(&v["common"]).into_iter().chain(hops(&v["ways"]).into_iter().flat_map(|w| hops(&w["hops"])));
    let mut last = None;
    for h in all {
        let text = format!("{}: {}", h["node"].as_str()?, h["text"].as_str()?);
        if h["stage"] == "stop" {
            return Some(text);
        }
        last = Some(text);
    }
    last.map(|l| format!("no hop that `seaway trace` knows; by the programmed state it arrives ({l})"))
}

fn heal(a: &NamedArgs) -> anyhow::Result<ExitCode> {
    let l = a.name.lab()?;
    let started = lab::up::heal(&l)?;
    match a.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&started)?),
        Output::Text if started.is_empty() => println!("lab {}: every process lives", l.spec.name),
        Output::Text => started.iter().for_each(|s| println!("started {s}")),
    }
    Ok(ExitCode::SUCCESS)
}
