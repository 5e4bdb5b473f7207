//! `seaway lab`: a whole cluster on this machine.

mod args;

use std::process::ExitCode;

pub use args::LabArgs;
use args::*;
use lab::Lab;
use lab::ns::Enter;
use lab::topology::Spec;
use types::FamilySet;

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
        Command::Enter(a) => {
            let (e, code) = lab::shim::exec(&a.namespaces.into(), a.session, a.tty, &a.argv);
            eprintln!("error: {e}");
            Ok(ExitCode::from(code))
        }
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
    // Everything after the place is tcpdump's, which has no --name: one written there is meant for us.
    let mut args = a.args.clone();
    let mut name = Name { name: a.name.name.clone() };
    if let Some(i) = args.iter().position(|x| x == "--name").filter(|i| i + 1 < args.len()) {
        name.name = args.drain(i..=i + 1).nth(1);
    }
    let l = name.lab()?;
    let (enter, _) = place(&l, &a.place)?;
    let found =
        std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("tcpdump").is_file()));
    anyhow::ensure!(found, "tcpdump is not installed: install Debian package tcpdump");
    let mut argv = vec!["tcpdump".to_owned(), "-n".into()];
    if !args.iter().any(|x| x.starts_with("-i") || x == "--interface") {
        argv.extend(["-i".into(), "any".into()]);
    }
    argv.extend(args);
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
