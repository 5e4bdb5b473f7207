//! From a target to a client: unix socket, kubeconfig, or the cluster around us.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::UnixStream;
use tower::util::{MapRequestLayer, option_layer};
use tower::{BoxError, Layer, Service, ServiceExt};

use crate::api::Api;
use crate::error::{SourceError, chain};

/// Which API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The embedded server's socket. Works from any network namespace of the machine.
    Unix(PathBuf),
    /// A kubeconfig file, its current context.
    Kubeconfig(PathBuf),
    /// The service account of the pod we run in.
    InCluster,
}

impl FromStr for Target {
    type Err = SourceError;
    /// `unix:/run/seaway/api.sock`, `in-cluster`, or a kubeconfig's path.
    fn from_str(s: &str) -> Result<Self, SourceError> {
        match s {
            "in-cluster" => Ok(Self::InCluster),
            "" => Err(SourceError::Target(s.into())),
            _ => match s.strip_prefix("unix:") {
                Some("") => Err(SourceError::Target(s.into())),
                Some(path) => Ok(Self::Unix(path.into())),
                None => Ok(Self::Kubeconfig(s.into())),
            },
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
            Self::Kubeconfig(p) => write!(f, "{}", p.display()),
            Self::InCluster => f.write_str("in-cluster"),
        }
    }
}

/// Where the server is, when that differs from what a pod's environment says: its real address works before Service
/// addresses do. Empty text: nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Server(Option<Uri>);

impl FromStr for Server {
    type Err = String;
    /// `https://10.0.0.1:6443`.
    fn from_str(s: &str) -> Result<Self, String> {
        if s.is_empty() {
            return Ok(Self(None));
        }
        let bad = || format!("{s:?} is no address of an API server: write https://HOST:PORT");
        let uri: Uri = s.trim_end_matches('/').parse().map_err(|_| bad())?;
        let plain =
            uri.scheme_str() == Some("https") && uri.path().trim_matches('/').is_empty() && uri.query().is_none();
        if plain && uri.host().is_some_and(|h| !h.is_empty()) { Ok(Self(Some(uri))) } else { Err(bad()) }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |u| write!(f, "{u}"))
    }
}

/// Makes a client. Sends nothing yet: a server that is down shows at the first request, and may come up meanwhile.
/// Must be called inside a tokio runtime.
///
/// # Errors
/// When the kubeconfig or service account cannot be read or makes no sense.
pub async fn connect(target: &Target) -> Result<Api, SourceError> {
    connect_at(target, &Server::default()).await
}

/// [`connect`], with the server of [`Target::InCluster`] somewhere else than the environment says.
///
/// # Errors
/// As [`connect`].
pub async fn connect_at(target: &Target, server: &Server) -> Result<Api, SourceError> {
    let client = match target {
        Target::Unix(path) => unix(path.clone()),
        Target::Kubeconfig(path) => {
            let bad = |e: &dyn std::error::Error| SourceError::Kubeconfig { path: path.clone(), why: chain(e) };
            let file = Kubeconfig::read_from(path).map_err(|e| bad(&e))?;
            let config =
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|e| bad(&e))?;
            over_tls(&config)?
        }
        Target::InCluster => {
            let mut config = Config::incluster().map_err(|e| SourceError::InCluster(chain(&e)))?;
            if let Some(uri) = &server.0 {
                config.cluster_url = uri.clone();
            }
            over_tls(&config)?
        }
    };
    Ok(Api::new(client))
}

/// How long the other side of a connection may be silent before it is asked whether it is there, how often it is then
/// asked, and how long sent bytes may stay unacknowledged. A watch says nothing for minutes when nothing happens: without
/// this an agent whose node lost the address that it connected from, or whose server lost its power, would hear of neither.
const IDLE: Duration = Duration::from_secs(10);
const PROBE: (Duration, u32) = (Duration::from_secs(5), 3);
const UNACKNOWLEDGED: Duration = Duration::from_secs(25);

/// A client as `Client::try_from` makes it (without proxies), whose connections notice that the other side is gone.
fn over_tls(config: &Config) -> Result<Client, SourceError> {
    let bad = |e: kube::Error| SourceError::Client(chain(&e));
    if config.proxy_url.is_some() {
        return Client::try_from(config.clone()).map_err(bad);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_keepalive(Some(IDLE));
    tcp.set_keepalive_interval(Some(PROBE.0));
    tcp.set_keepalive_retries(Some(PROBE.1));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(bad)?;
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(tls).map_err(BoxError::from);
    let signed = option_layer(config.auth_layer().map_err(bad)?).layer(http);
    let addressed = config.base_uri_layer().layer(signed);
    Ok(Client::new(MapRequestLayer::new(of_now).layer(addressed), config.default_namespace.clone()))
}

/// kube's watcher begins with what there is at revision 0, and a server answers that with whatever its cache holds: from
/// one that lags behind, an agent that starts would bring back Services of the past for a moment. Without a revision it is
/// what there is when the server is asked (KEP-3157, "Consistent reads").
fn of_now(mut request: http::Request<Body>) -> http::Request<Body> {
    let uri = request.uri();
    let Some(query) = uri.query().filter(|q| q.split('&').any(|p| p == "sendInitialEvents=true")) else {
        return request;
    };
    let rest: Vec<&str> = query.split('&').filter(|p| *p != "resourceVersion=0").collect();
    let mut parts = uri.clone().into_parts();
    // What was taken out of an address that is one leaves one; if ever not, it goes as it was.
    if let Ok(to) = format!("{}?{}", uri.path(), rest.join("&")).parse() {
        parts.path_and_query = Some(to);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

fn unix(path: PathBuf) -> Client {
    // The host is never resolved: the connector ignores it, and the server sees it in the Host header only.
    let config = Config::new(Uri::from_static("http://localhost"));
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(UnixConnector { path });
    Client::new(config.base_uri_layer().layer(http), "default")
}

/// Connects every request to one unix socket.
#[derive(Clone)]
struct UnixConnector {
    path: PathBuf,
}

impl Service<Uri> for UnixConnector {
    type Response = UnixIo;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<UnixIo, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move {
            let stream = UnixStream::connect(&path)
                .await
                .map_err(|e| std::io::Error::new(e.kind(), format!("unix socket {}: {e}", path.display())))?;
            Ok(UnixIo(TokioIo::new(stream)))
        })
    }
}

/// A unix stream as hyper's pool wants it.
struct UnixIo(TokioIo<UnixStream>);

impl Connection for UnixIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for UnixIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for UnixIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_text() {
        for (text, want) in [
            ("unix:/run/a.sock", Target::Unix("/run/a.sock".into())),
            ("in-cluster", Target::InCluster),
            ("/etc/k.conf", Target::Kubeconfig("/etc/k.conf".into())),
        ] {
            let t: Target = text.parse().unwrap();
            assert_eq!(t, want);
            assert_eq!(t.to_string(), text);
        }
        for bad in ["", "unix:"] {
            assert!(bad.parse::<Target>().unwrap_err().to_string().contains("write unix:/path"), "{bad:?}");
        }
    }

    #[test]
    fn a_first_list_is_of_now_and_a_watch_goes_on_from_where_it_was() {
        let of = |params: &kube::api::WatchParams, version: &str| {
            let request = kube::core::Request::new("/api/v1/services").watch(params, version).unwrap();
            of_now(request.map(|_| Body::empty())).uri().to_string()
        };
        let first = of(&kube::api::WatchParams::default().initial_events().labels("a=b"), "0");
        assert!(first.starts_with("/api/v1/services?&watch=true"), "{first}");
        assert!(first.contains("&sendInitialEvents=true") && first.contains("&labelSelector=a%3Db"), "{first}");
        assert!(first.contains("&resourceVersionMatch=NotOlderThan") && !first.contains("resourceVersion="), "{first}");
        // From there on, and where a server has no streamed lists, nothing is taken out.
        let later = of(&kube::api::WatchParams::default(), "7");
        assert!(later.contains("&resourceVersion=7"), "{later}");
        assert!(of(&kube::api::WatchParams::default(), "0").contains("&resourceVersion=0"));
    }

    #[test]
    fn server_text() {
        for good in ["https://10.0.0.1:6443", "https://[fd00::1]:6443", "https://api.example", "https://10.0.0.1/"] {
            assert!(good.parse::<Server>().unwrap().0.is_some(), "{good}");
        }
        assert_eq!("".parse::<Server>().unwrap(), Server::default());
        for bad in ["10.0.0.1:6443", "http://10.0.0.1", "https://", "https://a/path", "https://a?x=1", "a b"] {
            assert!(bad.parse::<Server>().unwrap_err().contains("https://HOST:PORT"), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_missing_or_bad_kubeconfig_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.conf");
        let e = connect(&Target::Kubeconfig(path.clone())).await.err().unwrap().to_string();
        assert!(e.contains("k.conf") && e.contains("No such file"), "{e}");
        std::fs::write(&path, "clusters: 7\n").unwrap();
        let e = connect(&Target::Kubeconfig(path)).await.err().unwrap().to_string();
        assert!(e.contains("k.conf") && e.contains("kubectl --kubeconfig"), "{e}");
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_a_transport_error() {
        let dir = tempfile::tempdir().unwrap();
        let api = connect(&Target::Unix(dir.path().join("none.sock"))).await.unwrap();
        let e = api.get(&resolve::Kind::Node.into(), &types::ObjectName::new("", "n")).await.unwrap_err();
        assert!(e.is_transport() && e.to_string().contains("none.sock"), "{e}");
    }
}
