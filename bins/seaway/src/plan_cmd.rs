//! `seaway plan`: what a node would do, from a folder of manifests, without touching anything.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use fabric::Fabric;
use plan::{Caps, Dataplane, HostLink, Plan, Refused, Uplink};
use plane_nft::NftPlane;
use resolve::{LocalState, Resolved};
use serde::Serialize;
use types::{Cidr, IfName, NodeName};

/// Ranges for Services' addresses.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";

/// Print what a node would be told and every op that would bring an empty one there.
#[derive(clap::Args)]
#[command(
    after_help = "Nothing is touched: no API server, no kernel. Exit code 1 when something would be refused.\n\n\
    Example:\n  seaway plan --from examples/shop --node node1"
)]
pub struct PlanArgs {
    /// A folder of Kubernetes manifests (YAML or JSON)
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The node, one of the Node objects in the folder
    #[arg(long, value_name = "NAME")]
    node: NodeName,
    /// The interface to assume as uplink
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    uplink: IfName,
    /// Its MTU in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// The ranges in which other nodes are neighbours [default: every node's address is one]
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    on_link: Vec<Cidr>,
    /// Ranges to give Services addresses from, where the manifests name none
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', default_value = SERVICE_RANGES)]
    service_cidr: Vec<Cidr>,
    /// text, json or yaml
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The ranges that Services get addresses from where manifests name none, as `--service-cidr` has them.
pub fn service_ranges() -> Vec<Cidr> {
    SERVICE_RANGES.split(',').filter_map(|c| c.parse().ok()).collect()
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

#[derive(Serialize)]
struct Printed {
    /// What stood in for a running cluster.
    assumed: Vec<String>,
    intent: intent::NodeIntent,
    refused: Vec<Refused>,
    plans: Vec<PrintedPlan>,
}

#[derive(Serialize)]
struct PrintedPlan {
    dataplane: &'static str,
    batches: Vec<Vec<String>>,
}

fn printed<D: Dataplane>(
    plane: &D,
    intent: &intent::NodeIntent,
    caps: &Caps,
    empty: &D::Image,
) -> (PrintedPlan, Vec<Refused>) {
    let compiled = plane.compile(intent, caps);
    let plan = Plan { batches: plane.plan(&compiled.image, empty) };
    let batches = plan.batches.iter().map(|b| b.iter().map(ToString::to_string).collect()).collect();
    (PrintedPlan { dataplane: plane.name(), batches }, compiled.refused)
}

/// Reads, resolves, compiles and prints.
pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let folder = source::read_dir(&args.from)?;
    for p in &folder.problems {
        eprintln!("seaway: {p}");
    }
    let mut objects = folder.objects;
    let invented = controller::offline::stand_in_nodes(&objects, &args.node);
    let mut assumed = Vec::new();
    if !invented.is_empty() {
        assumed.push(format!("the folder has no Node: {} with two more on one network stand in", args.node));
    }
    objects.extend(invented);
    let settled = controller::offline::settle(&objects, &controller::Options::default(), &args.service_cidr);
    let snapshot = settled.snapshot;
    let Some(node) = snapshot.nodes.get(&args.node) else {
        let known: Vec<&str> = snapshot.nodes.keys().map(NodeName::as_str).collect();
        bail!(
            "--node {}: no such Node in {}; {}",
            args.node,
            args.from.display(),
            if known.is_empty() {
                "the folder has no Node objects".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            }
        );
    };
    // An assumed machine: one uplink with the Node's addresses, and every other node a neighbour unless told otherwise.
    let mut on_link = args.on_link.clone();
    if on_link.is_empty() {
        on_link = snapshot.nodes.values().flat_map(|n| n.addresses().map(Cidr::host)).collect();
        on_link = on_link.iter().filter_map(|c| Cidr::new(c.addr(), if c.addr().is_ipv4() { 0 } else { 1 })).collect();
    }
    let addresses = node
        .addresses()
        .map(|a| {
            let len = on_link.iter().filter(|c| c.contains(a)).map(Cidr::len).max();
            (a, len.unwrap_or(types::Family::of(a).bits()))
        })
        .collect();
    let caps = Caps {
        uplink: Some(Uplink { name: args.uplink.clone(), mtu: args.mtu }),
        links: [(args.uplink.clone(), HostLink { mtu: args.mtu, addresses })].into(),
        missing: BTreeSet::new(),
    };
    let local = LocalState {
        node: args.node.clone(),
        attachments: std::collections::BTreeMap::new(),
        on_link,
        addresses: node.addresses().collect(),
        vxlan_mac: crate::agent::vxlan_mac(&args.node, snapshot.settings.vni),
        vxlan_supported: true,
        vxlan_in_use: false,
        services_elsewhere: false,
        networks: Default::default(),
        ports: Default::default(),
    };
    let Resolved { intent, problems } = resolve::resolve(&snapshot, &local);
    let mut refused: Vec<Refused> = settled
        .problems
        .into_iter()
        .chain(problems)
        .map(|p| Refused { object: p.object, field: p.field, why: p.why })
        .collect();
    let (fabric, more) = printed(&Fabric, &intent, &caps, &fabric::Image::default());
    refused.extend(more);
    let (nft, more) = printed(&NftPlane, &intent, &caps, &plane_nft::Image::default());
    refused.extend(more);
    let ok = refused.is_empty() && folder.problems.is_empty();
    assumed.extend(settled.assumed);
    let out = Printed { assumed, intent, refused, plans: vec![fabric, nft] };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&out).context("print as JSON")?),
        Output::Yaml => print!("{}", serde_yaml::to_string(&out).context("print as YAML")?),
        Output::Text => text(&out)?,
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn text(out: &Printed) -> anyhow::Result<()> {
    if !out.assumed.is_empty() {
        println!("# Assumed, since nothing runs");
        out.assumed.iter().for_each(|a| println!("#   {a}"));
    }
    println!("# What {} must do", out.intent.node);
    print!("{}", serde_yaml::to_string(&out.intent).context("print the intent")?);
    for p in &out.plans {
        let ops: usize = p.batches.iter().map(Vec::len).sum();
        println!("\n# {}: {ops} ops in {} transactions", p.dataplane, p.batches.len());
        for (n, b) in p.batches.iter().enumerate() {
            println!("  transaction {}", n + 1);
            for op in b {
                println!("    {op}");
            }
        }
    }
    if !out.refused.is_empty() {
        println!("\n# Refused");
        for r in &out.refused {
            println!("  {r}");
        }
    }
    Ok(())
}
