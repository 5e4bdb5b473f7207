//! `seaway report`: what somebody who helps needs to see of a node, in one file, without its secrets.

mod archive;
mod gather;
mod redact;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use source::{Server, Target};

/// A support bundle: this node's versions, settings, state, kernel objects and logs, without secrets.
#[derive(clap::Args)]
#[command(
    after_help = "Nothing is changed, and nothing leaves the machine: it is a file that you may look at before you give it\n\
    to anybody. Secrets are not asked for; what is called or looks like a password, token or key is replaced by\n\
    [redacted]. Of the cluster's objects only names are in it.\n\n\
    Examples:\n  seaway report                                     seaway-report-NODE.tar.gz here\n  \
    seaway report -o /tmp/r --api ~/.kube/config      a folder, with the names of the cluster's objects\n  \
    kubectl -n kube-system exec seaway-agent-abcde -- seaway report -o /run/seaway/r.tar.gz --api in-cluster"
)]
pub struct ReportArgs {
    /// Where to write it: a name that ends in .tar.gz, or a new folder
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where the agent listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = crate::services_cmd::gather::AGENT)]
    agent: SocketAddr,
    /// Ask this API server for the names of objects: unix:PATH, a kubeconfig's path, or in-cluster
    #[arg(long, value_name = "TARGET")]
    api: Option<Target>,
    /// Where the API server is, with in-cluster
    #[arg(long, value_name = "URL", env = "SEAWAY_API_SERVER", default_value = "", hide_default_value = true)]
    api_server: Server,
    /// Where runtimes look for CNI configuration
    #[arg(long, value_name = "DIR", env = "SEAWAY_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the CNI plugin keeps its records
    #[arg(long, value_name = "DIR", env = "SEAWAY_IPAM_DIR", default_value = ipam::DEFAULT_DIR)]
    ipam_dir: PathBuf,
    /// A log to take the end of; beside those that are found
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
}

/// Gathers and writes.
pub fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut bundle = archive::Bundle::default();
    for (step, gather) in gather::STEPS {
        eprintln!("{step}");
        gather(args, &mut bundle);
    }
    let place = args.output.clone().unwrap_or_else(|| format!("seaway-report-{host}.tar.gz").into());
    bundle.write(&place, &format!("seaway-report-{host}"))?;
    for name in bundle.left_out() {
        eprintln!("left out, since the bundle is full: {name}");
    }
    let (files, bytes) = bundle.size();
    println!("{}: {files} files, {} KiB", place.display(), bytes.div_ceil(1024));
    Ok(ExitCode::SUCCESS)
}
