//! `seaway trace`: where a packet goes, and why, from what the kernels of a lab's nodes hold right now.

mod ends;
mod observe;
mod probe;
pub mod walk;
mod words;

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use types::Family;

use ends::Ends;
use walk::{Hop, Report, Stage};

/// Print the way of a packet over the nodes: interface, service translation, route, encapsulation, delivery.
#[derive(clap::Args)]
#[command(
    after_help = "SRC is a pod (NAMESPACE/NAME or NAME), a node, or `outside`. DST is a pod, a Service, a node or an address,\n\
    with :PORT for TCP, :PORT/udp or :PORT/sctp; without a port it is a ping. A Service's port may be its name.\n\n\
    Exit code 1 when the packet does not arrive, or when --probe disagrees.\n\n\
    Examples:\n  seaway trace shop/web shop/api:80\n  seaway trace outside node1:30080 --probe\n  seaway trace node2 10.244.1.5"
)]
pub struct TraceArgs {
    /// Where the packet comes from
    #[arg(value_name = "SRC")]
    src: String,
    /// Where it goes
    #[arg(value_name = "DST[:PORT]")]
    dst: String,
    /// The lab [default: the only one that is up]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Use IPv6 where both ends have both families
    #[arg(short = '6')]
    v6: bool,
    /// Send the real packet too, and say whether it agreed
    #[arg(long)]
    probe: bool,
    /// text, json or yaml
    #[arg(short, long, value_enum, default_value_t = crate::plan_cmd::Output::Text)]
    output: crate::plan_cmd::Output,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    report: Report,
    arrives: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<probe::Outcome>,
}

/// Observes, walks, prints.
pub fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let lab = lab::choose(args.name.as_deref())?;
    let seen = observe::observe(&lab)?;
    let family = if args.v6 { Family::V6 } else { Family::V4 };
    let ends = Ends::find(&seen, &lab, &args.src, &args.dst, family)?;
    let name = |a| seen.name_of(a);
    let report = walk::walk(&seen.nodes, &ends.node, &ends.packet, &name);
    let probe = if args.probe { Some(probe::send(&ends, &report).context("--probe: send the packet")?) } else { None };
    let answer = Answer { arrives: report.arrives(), report, probe };
    match args.output {
        crate::plan_cmd::Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        crate::plan_cmd::Output::Yaml => print!("{}", serde_yaml::to_string(&answer)?),
        crate::plan_cmd::Output::Text => print(&answer),
    }
    let agrees = answer.probe.as_ref().is_none_or(|p| p.agrees);
    Ok(if answer.arrives && agrees { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(answer: &Answer) {
    let r = &answer.report;
    println!("{}", r.packet);
    r.common.iter().for_each(|h| line(h, 1));
    let many = r.ways.len() > 1;
    for way in &r.ways {
        if let (true, Some(e)) = (many, &way.endpoint) {
            println!("  to {e}");
        }
        way.hops.iter().for_each(|h| line(h, if many { 2 } else { 1 }));
    }
    let end = match (r.stop(), many) {
        (None, false) => "It arrives.".to_owned(),
        (None, true) => "It arrives, whichever endpoint is chosen.".to_owned(),
        (Some(h), _) if r.ways.iter().any(|w| w.arrives) => {
            format!("Some ways arrive, one does not: it stops on {}.", h.node)
        }
        (Some(h), _) => format!("It does not arrive: it stops on {}.", h.node),
    };
    println!("{end}");
    if let Some(p) = &answer.probe {
        println!("Probe: {}: {}", p.result, if p.agrees { "agrees" } else { "DISAGREES with the above" });
    }
}

fn line(h: &Hop, depth: usize) {
    use std::io::IsTerminal;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let word = match (h.stage, colour) {
        (Stage::Stop, true) => format!("\x1b[31;1m{:<8}\x1b[0m", h.stage.word()),
        (s, true) => format!("\x1b[36m{:<8}\x1b[0m", s.word()),
        (s, false) => format!("{:<8}", s.word()),
    };
    println!("{:indent$}{:<8} {word} {}", "", h.node, h.text, indent = depth * 2);
}
