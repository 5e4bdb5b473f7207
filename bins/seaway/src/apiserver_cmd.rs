//! `seaway apiserver`: the embedded Kubernetes API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use apiserver::{Config, Server, TlsConfig};
use types::Cidr;

/// The embedded API server's flags.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    seaway apiserver --store /var/lib/seaway/api.redb --unix /run/seaway/api.sock \\\n    \
    --tls 127.0.0.1:6443 --kubeconfig /run/seaway/kubeconfig\n  \
    kubectl --kubeconfig /run/seaway/kubeconfig get nodes")]
pub struct ApiserverArgs {
    /// The file that keeps the objects; made when missing, held by one server at a time
    #[arg(long, value_name = "FILE", default_value = "/var/lib/seaway/api.redb")]
    store: PathBuf,
    /// Listen on a unix socket of mode 0600
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Listen with TLS and client certificates; port 0 takes a free one; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    tls: Vec<SocketAddr>,
    /// Write an admin's kubeconfig for the first TLS address to this file (mode 0600)
    #[arg(long, value_name = "FILE", requires = "tls")]
    kubeconfig: Option<PathBuf>,
    /// The name of the cluster in that kubeconfig
    #[arg(long, value_name = "NAME", default_value = "seaway")]
    cluster_name: String,
    /// Ranges of Service addresses, one or one of each family
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112")]
    service_cidr: Vec<Cidr>,
    /// Where pods reach this API: the endpoints of default/kubernetes
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    advertise: Vec<SocketAddr>,
    /// Where the nodes' kubelets serve logs, commands and ports of pods: a unix socket, with {node} for the node's name
    #[arg(long, value_name = "PATH")]
    kubelet_socket: Option<PathBuf>,
    #[command(flatten)]
    log: crate::logging::LogArgs,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: ApiserverArgs) -> anyhow::Result<ExitCode> {
    args.log.init()?;
    let mut config = Config::new(&args.store);
    config.unix = args.unix;
    config.service_cidrs = args.service_cidr;
    config.advertise = args.advertise;
    config.kubelet_sockets = args.kubelet_socket;
    if !args.tls.is_empty() {
        config.tls = Some(TlsConfig { addrs: args.tls, ..TlsConfig::default() });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let server = Server::start(config).await?;
        if let Some(file) = &args.kubeconfig {
            let addr = server.tls_addrs().first().copied().context("--kubeconfig needs --tls ADDRESS:PORT")?;
            let text = server.kubeconfig(&args.cluster_name, &format!("https://{addr}"))?;
            write_private(file, &text)?;
        }
        server.run(crate::signals::terminated()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(file: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let tmp = file.with_extension("tmp");
    let mut f = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&tmp)
        .with_context(|| format!("create {}", tmp.display()))?;
    f.write_all(text.as_bytes()).with_context(|| format!("write {}", tmp.display()))?;
    std::fs::rename(&tmp, file).with_context(|| format!("rename {} to {}", tmp.display(), file.display()))
}
