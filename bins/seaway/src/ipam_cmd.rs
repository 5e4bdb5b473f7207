//! `seaway ipam`: what the CNI plugin's journal on this node says, and its mending.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

/// Addresses of pods on this node: who has which.
#[derive(clap::Args)]
#[command(after_help = "Exit code of check: 0 the journal is whole, 1 it is damaged.\n\n\
    Example:\n  seaway ipam show\n  seaway ipam check --repair")]
pub struct IpamArgs {
    /// Where the CNI plugin keeps its records
    #[arg(long, value_name = "DIR", env = "SEAWAY_IPAM_DIR", default_value = ipam::DEFAULT_DIR, global = true)]
    ipam_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List attachments: pod, addresses, host end, namespace
    Show {
        /// text, json or yaml
        #[arg(short, long, value_enum, default_value_t = crate::plan_cmd::Output::Text)]
        output: crate::plan_cmd::Output,
    },
    /// Read the journal line by line and say what is damaged
    Check {
        /// Keep the intact records and set the damaged file aside
        #[arg(long)]
        repair: bool,
    },
}

/// Shows or checks.
pub fn run(args: &IpamArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Show { output } => {
            let records = ipam::read(&args.ipam_dir)?;
            match output {
                crate::plan_cmd::Output::Json => println!("{}", serde_json::to_string_pretty(&records)?),
                crate::plan_cmd::Output::Yaml => print!("{}", serde_yaml::to_string(&records)?),
                crate::plan_cmd::Output::Text => show(&records),
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { repair } => {
            let report = if repair { ipam::repair(&args.ipam_dir)? } else { ipam::check(&args.ipam_dir)? };
            for f in &report.faults {
                println!("{}: line {}, byte {}: {}", report.file.display(), f.line, f.offset, f.why);
            }
            let stale = if report.stale { ", all of an earlier boot" } else { "" };
            println!("{} intact records{stale}, {} damaged lines", report.intact.len(), report.faults.len());
            match (report.damaged(), repair) {
                (true, true) => {
                    println!("repaired: the intact records are kept, the damaged file is set aside as journal.damaged")
                }
                (true, false) => println!("`seaway ipam check --repair` keeps the intact records"),
                (false, _) => {}
            }
            Ok(if report.damaged() && !repair { ExitCode::from(1) } else { ExitCode::SUCCESS })
        }
    }
}

fn show(records: &[ipam::Record]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["POD", "ADDRESSES", "LINK", "NAMESPACE"]);
    for r in records {
        let pod = r.pod.as_ref().map_or_else(|| r.key.to_string(), |p| format!("{}/{}", p.namespace, p.name));
        let addresses: Vec<String> = r.addresses.iter().map(ToString::to_string).collect();
        table.add_row([pod, addresses.join(" "), r.link.to_string(), r.netns.to_string()]);
    }
    println!("{table}");
}
