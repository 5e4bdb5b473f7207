//! A kubelet's own API, as far as `kubectl` reaches it through the API server: logs, commands and ports of the node's pods.
//!
//! Paths and parameters are a kubelet's; they are served on a unix socket that only root may open.

mod exec;
mod forward;
pub mod logs;
mod remote;
mod spdy;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::pods::{self, Found};
use crate::runner::Config;
use crate::{Doing, LabError};
use remote::{Out, Session, Wanted};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The header by which SPDY clients and servers agree on what the streams mean.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// Pieces of a log on their way.
const QUEUE: usize = 4;

/// A refusal: a status and why, in plain words.
struct No(StatusCode, String);

fn bad(why: impl Into<String>) -> No {
    No(StatusCode::BAD_REQUEST, why.into())
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let mut r = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *r.status_mut() = status;
    r
}

/// Serves for ever; when the socket cannot be made, says so and tries again.
pub async fn serve(config: Config) {
    let config = Arc::new(config);
    loop {
        match listen(&config.dir.kubelet_sock()) {
            Ok(l) => accept(l, &config).await,
            Err(e) => tracing::warn!("logs, commands and ports of pods are not served: {e}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn listen(path: &std::path::Path) -> Result<UnixListener, LabError> {
    let what = || format!("{}", path.display());
    // Of a runner that was killed. A lab has one runner per node.
    let _ = std::fs::remove_file(path);
    let l = UnixListener::bind(path).doing(what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).doing(what)?;
    Ok(l)
}

async fn accept(l: UnixListener, config: &Arc<Config>) {
    loop {
        match l.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, config.clone()))),
            // Out of files: wait for some to close.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: UnixStream, config: Arc<Config>) {
    let service = service_fn(move |req| {
        let config = config.clone();
        async move { Ok::<_, Infallible>(route(&config, req).await.unwrap_or_else(|No(code, why)| answer(code, why))) }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(e) = served.with_upgrades().await {
        tracing::debug!("kubelet connection ended: {e}");
    }
}

/// The parameters of a request; those of one name in their order.
struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn parse(text: &str) -> Self {
        let mut all: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            all.entry(unescape(k)).or_default().push(unescape(v));
        }
        Self(all)
    }
    fn get(&self, key: &str) -> Option<String> {
        self.0.get(key)?.first().cloned()
    }
    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| matches!(v.as_str(), "" | "1" | "true"))
    }
}

fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = |c: u8| char::from(c).to_digit(16);
        rest = tail;
        match (first, tail) {
            (b'+', _) => out.push(b' '),
            (b'%', [a, b, more @ ..]) if hex(*a).is_some() && hex(*b).is_some() => {
                out.push(u8::try_from(hex(*a).unwrap_or(0) << 4 | hex(*b).unwrap_or(0)).unwrap_or_default());
                rest = more;
            }
            (c, _) => out.push(*c),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn route(config: &Arc<Config>, req: Request<Incoming>) -> Result<Response<Body>, No> {
    let path = req.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let q = Query::parse(req.uri().query().unwrap_or(""));
    if !matches!(*req.method(), Method::GET | Method::POST) {
        return Err(No(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for {path}", req.method())));
    }
    match parts.as_slice() {
        ["containerLogs", ns, pod, container] => logs_of(&find(config, ns, pod)?, container, &q),
        ["exec", ns, pod, container] => {
            let what = command(config, &find(config, ns, pod)?, container, &q)?;
            let wanted = wanted(&q)?;
            remote(req, wanted, move |session| exec::run(what, wanted, session))
        }
        ["attach", ns, pod, container] => {
            let (pod, container, wanted) = (find(config, ns, pod)?, (*container).to_owned(), wanted(&q)?);
            running(&pod, &container)?;
            remote(req, wanted, move |session| attach(pod, container, session))
        }
        ["portForward", ns, pod] => {
            let pod = find(config, ns, pod)?;
            let netns = pod.netns.clone().ok_or_else(|| bad(format!("pod {} has ended", pod.name)))?;
            ports(req, forward::Pod { name: format!("{}_{}", pod.namespace, pod.name), uid: pod.uid, netns })
        }
        _ => Err(No(StatusCode::NOT_FOUND, format!("{path} is not served here"))),
    }
}

/// The pod of that name. Of two, one is on its way out: the one that is not finished is meant.
fn find(config: &Config, namespace: &str, name: &str) -> Result<Found, No> {
    let here = pods::of_node(&config.node, &config.lab.node_netns(&config.node), &config.dir);
    let here = here.into_iter().filter(|p| p.namespace == namespace && p.name == name);
    here.min_by_key(|p| (p.record.finished, std::cmp::Reverse(p.record.admitted.clone()))).ok_or_else(|| {
        let why = format!("pod {name}: node {} has not begun it yet: wait until it is", config.node);
        No(StatusCode::NOT_FOUND, why)
    })
}

/// Which run of a container, if any.
fn attempt(pod: &Found, container: &str) -> Result<u32, No> {
    let waiting =
        || bad(format!("container {container:?} in pod {:?} is waiting to start: ContainerCreating", pod.name));
    pod.dir.attempt(container).ok_or_else(waiting)
}

fn running(pod: &Found, container: &str) -> Result<(), No> {
    let files = pod.dir.run_files(container, attempt(pod, container)?);
    match files.read_started() {
        Some(s) if s.process.alive() => Ok(()),
        _ => Err(bad(format!("container {container:?} in pod {:?} does not run", pod.name))),
    }
}

fn logs_of(pod: &Found, container: &str, q: &Query) -> Result<Response<Body>, No> {
    let o = logs::Options::parse(|k| q.get(k), logs::now()).map_err(bad)?;
    let last = attempt(pod, container)?;
    let n = match last.checked_sub(u32::from(o.previous)) {
        Some(n) => n,
        None => {
            let why = format!("previous terminated container {container:?} in pod {:?} not found", pod.name);
            return Err(bad(why));
        }
    };
    let files = pod.dir.run_files(container, n);
    if !files.log().is_file() {
        return Err(bad(format!(
            "container {container:?} in pod {:?} is waiting to start: ContainerCreating",
            pod.name
        )));
    }
    let (tx, rx) = mpsc::channel::<Bytes>(QUEUE);
    read_log(pod.clone(), container.to_owned(), n, o, move |piece| match piece {
        Some(p) => tx.blocking_send(p.into()).is_ok(),
        None => !tx.is_closed(),
    });
    let pieces = futures::stream::unfold(rx, |mut rx| async move {
        rx.recv().await.map(|b| (Ok::<_, Infallible>(Frame::data(b)), rx))
    });
    let mut r = Response::new(StreamBody::new(pieces).boxed_unsync());
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(r)
}

/// Reads a log on a thread that may wait; `out` as [`logs::copy`] has it.
fn read_log(
    pod: Found,
    container: String,
    n: u32,
    o: logs::Options,
    out: impl FnMut(Option<Vec<u8>>) -> bool + Send + 'static,
) {
    tokio::task::spawn_blocking(move || {
        let files = pod.dir.run_files(&container, n);
        let over = || files.read_ended().is_some() || pod.dir.attempt(&container) != Some(n) || !files.log().exists();
        if let Err(e) = logs::copy(&files, &o, over, out) {
            tracing::debug!("log of {}/{container}: {e}", pod.name);
        }
    });
}

fn wanted(q: &Query) -> Result<Wanted, No> {
    let w = Wanted { stdin: q.flag("input"), stdout: q.flag("output"), stderr: q.flag("error"), tty: q.flag("tty") };
    if !(w.stdin || w.stdout || w.stderr) {
        return Err(bad("you must specify at least 1 of stdin, stdout, stderr"));
    }
    // A terminal has one output.
    Ok(Wanted { stderr: w.stderr && !w.tty, ..w })
}

fn command(config: &Config, pod: &Found, container: &str, q: &Query) -> Result<exec::What, No> {
    running(pod, container)?;
    let argv = q.0.get("command").cloned().unwrap_or_default();
    if argv.is_empty() {
        return Err(bad("you must specify at least 1 command for the container"));
    }
    let (enter, env) = pod.inside(Some(container)).map_err(|e| bad(e.to_string()))?;
    let spec = pod.record.pod.spec.iter();
    let all = spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let cwd = all.filter(|c| c.name == container).find_map(|c| c.working_dir.clone()).map(PathBuf::from);
    Ok(exec::What { exe: config.exe.clone(), enter, env, cwd, argv })
}

/// What a container prints from now on, to its end. Containers of a lab have no standard input: what comes is dropped.
async fn attach(pod: Found, container: String, session: Session) {
    let Session { mut input, output } = session;
    let ending = output.clone();
    let Some(n) = pod.dir.attempt(&container) else { return };
    let (done_tx, done) = tokio::sync::oneshot::channel::<()>();
    let o = logs::Options { follow: true, tail: Some(0), ..logs::Options::default() };
    read_log(pod, container, n, o, move |piece| {
        let _ = &done_tx;
        match piece {
            Some(p) => output.blocking_send(Out::Stdout(p.into())).is_ok(),
            None => !output.is_closed(),
        }
    });
    tokio::spawn(async move { while input.recv().await.is_some() {} });
    let _ = done.await;
    let _ = ending.send(Out::Status(exec::status(0))).await;
}

fn header_words<'a>(h: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let all = h.get_all(name).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty())
}

/// How a client wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upgrade {
    WebSocket,
    Spdy,
}

/// The answer that agrees, and how; `websocket` and `spdy` are the protocols that are spoken inside, the best first.
fn agree(h: &HeaderMap, websocket: &[&str], spdy: &[&str]) -> Result<(Response<Body>, Upgrade), No> {
    let asks = |word: &str| header_words(h, "upgrade").any(|w| w.eq_ignore_ascii_case(word));
    let (how, word, name, ours) = if asks("websocket") {
        (Upgrade::WebSocket, "websocket", header::SEC_WEBSOCKET_PROTOCOL.as_str(), websocket)
    } else if asks("SPDY/3.1") {
        (Upgrade::Spdy, "SPDY/3.1", STREAM_PROTOCOL, spdy)
    } else {
        return Err(bad("Upgrade request required: to websocket or SPDY/3.1"));
    };
    let asked: Vec<&str> = header_words(h, name).collect();
    let Some(protocol) = ours.iter().find(|p| asked.contains(p)) else {
        return Err(bad(format!("{name}: {asked:?}: none of {ours:?}, which are spoken here")));
    };
    let mut r = answer(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let mut put = |name: header::HeaderName, value: &str| {
        if let Ok(v) = HeaderValue::from_str(value) {
            r.headers_mut().insert(name, v);
        }
    };
    put(header::CONNECTION, "Upgrade");
    put(header::UPGRADE, word);
    if how == Upgrade::WebSocket {
        let key = h.get(header::SEC_WEBSOCKET_KEY).and_then(|k| k.to_str().ok());
        let key = key.ok_or_else(|| bad("Sec-WebSocket-Key is missing"))?;
        put(header::SEC_WEBSOCKET_ACCEPT, &websocket::accept(key));
        put(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    } else {
        put(header::HeaderName::from_static(STREAM_PROTOCOL), protocol);
    }
    Ok((r, how))
}

/// Upgrades, and gives the client to `run`.
fn remote<F>(
    req: Request<Incoming>,
    wanted: Wanted,
    run: impl FnOnce(Session) -> F + Send + 'static,
) -> Result<Response<Body>, No>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (response, how) = agree(req.headers(), &remote::WEBSOCKET, &remote::SPDY)?;
    tokio::spawn(async move {
        let Ok(io) = hyper::upgrade::on(req).await else { return };
        let io = TokioIo::new(io);
        let session = match how {
            Upgrade::WebSocket => Some(remote::websocket(io)),
            Upgrade::Spdy => remote::spdy(io, wanted).await,
        };
        if let Some(s) = session {
            run(s).await;
        }
    });
    Ok(response)
}

fn ports(req: Request<Incoming>, pod: forward::Pod) -> Result<Response<Body>, No> {
    let tunneled = format!("SPDY/3.1+{}", forward::PROTOCOL);
    let (response, how) = agree(req.headers(), &[&tunneled], &[forward::PROTOCOL])?;
    tokio::spawn(async move {
        let Ok(io) = hyper::upgrade::on(req).await else { return };
        let io = TokioIo::new(io);
        match how {
            Upgrade::WebSocket => forward::serve(remote::tunnel(io), pod).await,
            Upgrade::Spdy => forward::serve(io, pod).await,
        }
    });
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (k, v) in list {
            h.append(*k, v.parse().unwrap());
        }
        h
    }

    #[test]
    fn the_best_protocol_of_both_is_agreed_on() {
        let both = ["v5", "v4"];
        let ws = [("upgrade", "websocket"), ("sec-websocket-key", "k"), ("sec-websocket-protocol", "x, v4, v5")];
        let (r, how) = agree(&headers(&ws), &both, &[]).ok().unwrap();
        assert_eq!((how, r.status().as_u16()), (Upgrade::WebSocket, 101));
        assert_eq!(r.headers()["sec-websocket-protocol"], "v5");
        let spdy = [("upgrade", "SPDY/3.1"), (STREAM_PROTOCOL, "v9"), (STREAM_PROTOCOL, "v4")];
        let (r, how) = agree(&headers(&spdy), &[], &both).ok().unwrap();
        assert_eq!((how, &r.headers()[STREAM_PROTOCOL]), (Upgrade::Spdy, &HeaderValue::from_static("v4")));
        assert!(agree(&headers(&spdy), &both, &["v1"]).is_err());
        assert!(agree(&headers(&[]), &both, &both).is_err());
    }

    #[test]
    fn parameters_keep_their_order() {
        let q = Query::parse("command=sh&command=-c&command=echo+a%26b%zz&tty=1&input");
        assert_eq!(q.0["command"], ["sh", "-c", "echo a&b%zz"]);
        assert!(q.flag("tty") && q.flag("input") && !q.flag("output"));
    }
}
