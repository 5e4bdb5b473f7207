//! What a server is started with, and why it may not start.

use std::net::{SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use types::Cidr;

/// Everything a server needs to know. [`Config::new`] fills in the defaults; the fields are public.
#[derive(Debug)]
pub struct Config {
    /// The redb file. Created with mode 0600 when missing; its directory too.
    pub store: PathBuf,
    /// A unix socket (mode 0600): whoever may open it is trusted. A stale socket file is replaced.
    pub unix: Option<PathBuf>,
    /// HTTPS with client certificates. With neither this nor `unix` the server refuses to start.
    pub tls: Option<TlsConfig>,
    /// Where CA, server and admin key pairs live (keys mode 0600). Default: the store's path with the extension `pki`.
    pub pki_dir: Option<PathBuf>,
    /// The ranges of Service cluster IPs: one, or one of each family; the first is the default family.
    pub service_cidrs: Vec<Cidr>,
    /// Node ports that Services may have.
    pub node_ports: RangeInclusive<u16>,
    /// Where the API is reachable for pods: the endpoints of `default/kubernetes`. Empty: no EndpointSlice is written.
    pub advertise: Vec<SocketAddr>,
    /// Where the kubelets serve logs, commands and ports of pods: the path of a unix socket with `{node}` in it. `None`: the
    /// server has none of these.
    pub kubelet_sockets: Option<PathBuf>,
    /// How many past events each kind keeps for watches that resume.
    pub history: usize,
    /// How long an Event is kept after it was seen last.
    pub event_ttl: Duration,
    /// How often an idle watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
}

/// The HTTPS side of a [`Config`].
#[derive(Debug, Default)]
pub struct TlsConfig {
    /// Addresses to bind; port 0 takes a free one (see [`crate::Server::tls_addrs`]).
    pub addrs: Vec<SocketAddr>,
    /// Listeners that are bound already, e.g. in another network namespace.
    pub listeners: Vec<TcpListener>,
    /// More names and addresses of the server certificate. Always in it: localhost, 127.0.0.1, ::1, the bound addresses,
    /// the advertised ones, the first address of each service range, and `kubernetes.default.svc`.
    pub sans: Vec<String>,
}

impl Config {
    /// Defaults: IPv4 services in 10.96.0.0/16 and IPv6 services in fd00:10:96::/112, node ports 30000-32767, 4096
    /// events of history per kind, Events kept for an hour, a bookmark every 30 s, nothing to listen on.
    #[must_use]
    pub fn new(store: impl AsRef<Path>) -> Self {
        let cidrs = ["10.96.0.0/16", "fd00:10:96::/112"];
        Self {
            store: store.as_ref().to_path_buf(),
            unix: None,
            tls: None,
            pki_dir: None,
            service_cidrs: cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
            node_ports: 30000..=32767,
            advertise: Vec::new(),
            kubelet_sockets: None,
            history: 4096,
            event_ttl: Duration::from_secs(3600),
            bookmark_interval: Duration::from_secs(30),
        }
    }

    /// The directory of the key pairs.
    #[must_use]
    pub fn pki_dir(&self) -> PathBuf {
        self.pki_dir.clone().unwrap_or_else(|| self.store.with_extension("pki"))
    }
}

/// Why the server could not start or had to stop. Each message names the object and the fix.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting makes no sense.
    #[error("{setting}: {problem}: {fix}")]
    Config {
        /// The field of [`Config`].
        setting: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do.
        fix: &'static str,
    },
    /// Another process holds the store.
    #[error("{}: another API server has this store open: stop that one, or give this one a store of its own", .0.display())]
    StoreBusy(PathBuf),
    /// The store cannot be opened, read or written.
    #[error("{path}: {problem}: {fix}", path = path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What failed.
        problem: String,
        /// What to do.
        fix: &'static str,
    },
    /// A key pair cannot be made, read or written.
    #[error("{path}: {problem}: remove {dir} to have new keys made (old kubeconfigs stop working)", dir = dir.display(), path = path.display())]
    Pki {
        /// The file.
        path: PathBuf,
        /// The folder of keys.
        dir: PathBuf,
        /// What failed.
        problem: String,
    },
    /// An address or socket cannot be listened on.
    #[error("cannot listen on {on}: {source}: free that address or choose another")]
    Listen {
        /// The address or path.
        on: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Anything else, from the caller's own code.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl ServeError {
    /// Wraps a foreign error.
    pub fn other(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(e.into())
    }
}
