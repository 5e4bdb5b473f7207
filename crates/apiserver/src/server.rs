//! Listening, accepting, TLS, and stopping.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::admission::Ranges;
use crate::api::{Api, handle};
use crate::bootstrap::{bootstrap, forget_events, reap};
use crate::config::{Config, ServeError};
use crate::metrics::Metrics;
use crate::pki::{self, Pki, kubeconfig};
use crate::store::{Store, Writer};

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 2048;
/// How long a client may take for its TLS handshake and its headers.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long running requests may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(3);

/// A server that has its store open and its sockets bound, and does not accept yet.
pub struct Server {
    api: Arc<Api>,
    writer: Writer,
    unix: Option<(PathBuf, tokio::net::UnixListener)>,
    tls: Vec<tokio::net::TcpListener>,
    addrs: Vec<SocketAddr>,
    acceptor: Option<TlsAcceptor>,
    pki_dir: PathBuf,
    stop: watch::Sender<bool>,
    event_ttl: Duration,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("unix", &self.unix).field("addrs", &self.addrs).finish_non_exhaustive()
    }
}

fn check(config: &Config) -> Result<(), ServeError> {
    let bad = |setting, problem: String, fix| Err(ServeError::Config { setting, problem, fix });
    let ranges = &config.service_cidrs;
    let same = ranges.len() == 2 && ranges[0].family() == ranges[1].family();
    if ranges.is_empty() || ranges.len() > 2 || same {
        return bad(
            "service_cidrs",
            format!("{ranges:?} is not one range, or one of each family"),
            "give e.g. 10.96.0.0/16 or 10.96.0.0/16,fd00:10:96::/112",
        );
    }
    if let Some(small) = ranges.iter().find(|r| r.size() < 8) {
        return bad("service_cidrs", format!("{small} holds fewer than 8 addresses"), "give a larger range");
    }
    if config.node_ports.is_empty() || *config.node_ports.start() == 0 {
        return bad("node_ports", format!("{:?} holds no port", config.node_ports), "give a range such as 30000-32767");
    }
    let tls = config.tls.as_ref().is_some_and(|t| !t.addrs.is_empty() || !t.listeners.is_empty());
    if let Some(p) = config.kubelet_sockets.as_ref().filter(|p| !p.to_string_lossy().contains("{node}")) {
        return bad(
            "kubelet_sockets",
            format!("{} is one socket for all nodes", p.display()),
            "put {node} where the node's name belongs",
        );
    }
    if config.unix.is_none() && !tls {
        return bad("unix, tls", "there is nothing to listen on".into(), "give a unix socket or a TLS address");
    }
    Ok(())
}

fn listen_unix(path: &Path) -> Result<tokio::net::UnixListener, ServeError> {
    let error = |source| ServeError::Listen { on: path.display().to_string(), source };
    if let Ok(meta) = std::fs::symlink_metadata(path)
        && meta.file_type().is_socket()
    {
        // The store's lock says that no other server of this store is alive; a socket that answers is someone else's.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(error(std::io::ErrorKind::AddrInUse.into()));
        }
        std::fs::remove_file(path).map_err(error)?;
    }
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(error)?;
    }
    // Bound under a name nobody knows, closed to others, then moved into place: never open to all, not for a moment.
    let tmp = path.with_extension(format!("{:x}", crate::util::random_u64() & 0xff_ffff));
    let listener = tokio::net::UnixListener::bind(&tmp).map_err(error)?;
    let placed = std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&tmp, path));
    if let Err(e) = placed {
        let _ = std::fs::remove_file(&tmp);
        return Err(error(e));
    }
    Ok(listener)
}

impl Server {
    /// Opens the store, makes the key pairs, binds the sockets, and puts the first objects in place.
    ///
    /// # Errors
    /// [`ServeError`] says what and how to mend it.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        check(&config)?;
        let (store, writer) = Store::open(&config.store, config.history)?;
        match Self::listen(config, store).await {
            Ok(make) => Ok(make(writer)),
            Err(e) => {
                // The file is free again before the caller hears of the error.
                let _ = tokio::task::spawn_blocking(move || writer.join()).await;
                Err(e)
            }
        }
    }

    /// Everything of a start that comes after the store, so that one place gives the store back when it fails.
    async fn listen(config: Config, store: Store) -> Result<impl FnOnce(Writer) -> Self, ServeError> {
        let pki_dir = config.pki_dir();
        let unix = match config.unix {
            Some(path) => {
                let l = listen_unix(&path)?;
                Some((path, l))
            }
            None => None,
        };
        let (mut tls, mut addrs, mut acceptor) = (Vec::new(), Vec::new(), None);
        if let Some(t) = config.tls {
            let mut std_listeners = t.listeners;
            for a in t.addrs {
                std_listeners
                    .push(TcpListener::bind(a).map_err(|source| ServeError::Listen { on: a.to_string(), source })?);
            }
            let mut sans = t.sans;
            for l in std_listeners {
                let error = |source| ServeError::Listen { on: "a given listener".into(), source };
                l.set_nonblocking(true).map_err(error)?;
                let addr = l.local_addr().map_err(error)?;
                sans.extend(pki::san(addr.ip()));
                addrs.push(addr);
                tls.push(tokio::net::TcpListener::from_std(l).map_err(error)?);
            }
            sans.extend(config.advertise.iter().filter_map(|a| pki::san(a.ip())));
            sans.extend(config.service_cidrs.iter().filter_map(|r| r.nth(1)).map(|ip| ip.to_string()));
            acceptor = Some(TlsAcceptor::from(Arc::new(Pki::open(&pki_dir, &sans)?.server_config()?)));
        }
        let (stop, stopped) = watch::channel(false);
        let ranges = Ranges { services: config.service_cidrs, node_ports: config.node_ports };
        let api = Arc::new(Api {
            store: Arc::new(store),
            ranges,
            bookmark_interval: config.bookmark_interval,
            stop: stopped,
            metrics: Metrics::default(),
            kubelet_sockets: config.kubelet_sockets,
            streams: Arc::new(Semaphore::new(crate::kubelet::MAX_STREAMS)),
        });
        let port = config.advertise.first().or(addrs.first()).map_or(6443, SocketAddr::port);
        bootstrap(&api, &config.advertise, port).await.map_err(|s| ServeError::Store {
            path: config.store.clone(),
            problem: format!("the first objects cannot be written: {}", s.message),
            fix: "if the service range was changed, give the old one or an empty store",
        })?;
        let event_ttl = config.event_ttl;
        Ok(move |writer| Self { api, writer, unix, tls, addrs, acceptor, pki_dir, stop, event_ttl })
    }

    /// The bound TLS addresses, in the order of the settings: given listeners first.
    #[must_use]
    pub fn tls_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// A kubeconfig of the admin for this server under `url`; see [`kubeconfig`].
    ///
    /// # Errors
    /// [`ServeError::Pki`] when the server has no TLS and never had.
    pub fn kubeconfig(&self, cluster: &str, url: &str) -> Result<String, ServeError> {
        kubeconfig(&self.pki_dir, cluster, url)
    }

    /// Serves until `shutdown` ends; then ends the watches, lets running requests finish, and closes the store.
    ///
    /// # Errors
    /// None so far after [`Server::start`]: a failing connection is that connection's end only.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let mut tasks = JoinSet::new();
        let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let socket = self.unix.as_ref().map(|(p, _)| p.clone());
        tasks.spawn(reap(self.api.clone()));
        tasks.spawn(forget_events(self.api.clone(), self.event_ttl));
        if let Some((_, l)) = self.unix {
            tasks.spawn(accept(Listener::Unix(l), self.api.clone(), self.stop.subscribe(), limit.clone()));
        }
        if let Some(acceptor) = self.acceptor {
            for l in self.tls {
                let l = Listener::Tls(l, acceptor.clone());
                tasks.spawn(accept(l, self.api.clone(), self.stop.subscribe(), limit.clone()));
            }
        }
        for a in &self.addrs {
            tracing::info!(address = %a, "API served");
        }
        shutdown.await;
        let _ = self.stop.send(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tasks.shutdown().await;
        }
        if let Some(p) = socket {
            let _ = std::fs::remove_file(p);
        }
        drop(self.api);
        drop(self.stop);
        let writer = self.writer;
        // Every acknowledged write is on disk already; waiting only lets the file be closed tidily.
        let _ = tokio::time::timeout(DRAIN, tokio::task::spawn_blocking(move || writer.join())).await;
        Ok(())
    }
}

/// [`Server::start`] and [`Server::run`] in one.
///
/// # Errors
/// Those of [`Server::start`].
pub async fn serve(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    Server::start(config).await?.run(shutdown).await
}

/// Where connections come from.
enum Listener {
    Unix(tokio::net::UnixListener),
    Tls(tokio::net::TcpListener, TlsAcceptor),
}

/// A connection that nothing was said on yet.
enum Accepted {
    Unix(tokio::net::UnixStream),
    Tls(tokio::net::TcpStream, SocketAddr, TlsAcceptor),
}

impl Listener {
    async fn accept(&self) -> std::io::Result<Accepted> {
        Ok(match self {
            Self::Unix(l) => Accepted::Unix(l.accept().await?.0),
            Self::Tls(l, acceptor) => {
                let (stream, peer) = l.accept().await?;
                Accepted::Tls(stream, peer, acceptor.clone())
            }
        })
    }
}

impl Accepted {
    async fn serve(self, api: Arc<Api>, stop: watch::Receiver<bool>) {
        match self {
            Self::Unix(s) => connection(s, api, stop).await,
            Self::Tls(s, peer, acceptor) => {
                let _ = s.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(s)).await {
                    Ok(Ok(tls)) => connection(tls, api, stop).await,
                    Ok(Err(e)) => tracing::debug!(%peer, error = %e, "TLS handshake refused"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                }
            }
        }
    }
}

async fn accept(l: Listener, api: Arc<Api>, mut stop: watch::Receiver<bool>, limit: Arc<Semaphore>) {
    let mut conns = JoinSet::new();
    loop {
        while conns.try_join_next().is_some() {}
        let Ok(permit) = limit.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            r = l.accept() => r,
            _ = stop.changed() => break,
        };
        match accepted {
            Ok(a) => {
                let served = a.serve(api.clone(), stop.clone());
                conns.spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            // Out of files, most likely: wait for some to close.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    while conns.join_next().await.is_some() {}
}

async fn connection<S>(io: S, api: Arc<Api>, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |req| {
        let api = api.clone();
        async move { Ok::<_, std::convert::Infallible>(handle(api, req).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE * 12).max_buf_size(64 << 10);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256).keep_alive_interval(Duration::from_secs(30));
    let conn = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    tokio::pin!(conn);
    loop {
        tokio::select! {
            r = conn.as_mut() => {
                if let Err(e) = r {
                    tracing::debug!(error = %e, "connection ended");
                }
                return;
            }
            r = stop.changed() => {
                conn.as_mut().graceful_shutdown();
                if r.is_err() {
                    let _ = conn.as_mut().await;
                    return;
                }
            }
        }
    }
}
