//! Ports of a pod, for a client: each connection is a pair of SPDY streams, one for its bytes, one for why there are none
//! (`portforward.k8s.io`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

use super::spdy::{Connection, Stream};
use crate::{Doing, LabError, ns};

/// The only protocol.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// How long a connection inside the pod may take to come up.
const CONNECTING: Duration = Duration::from_secs(5);
/// Pairs of which one stream is missing; the oldest goes.
const MAX_HALVES: usize = 256;

/// The pod whose ports they are.
#[derive(Debug, Clone)]
pub struct Pod {
    /// `NAMESPACE_NAME`, for messages.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its network namespace.
    pub netns: PathBuf,
}

/// Serves a client to its end.
pub async fn serve(io: impl AsyncRead + AsyncWrite + Send + 'static, pod: Pod) {
    let mut connection = Connection::new(io);
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut running = JoinSet::new();
    while let Some(s) = connection.accept().await {
        while running.try_join_next().is_some() {}
        let kind = s.header("streamtype").unwrap_or_default().to_owned();
        let port = s.header("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
        let (Some(port), "data" | "error") = (port, kind.as_str()) else {
            let (_, say) = s.split();
            let _ = say.reset().await;
            continue;
        };
        // Older clients give no number: their two streams are numbered one after the other.
        let id = s.header("requestid").map_or_else(
            || format!("stream {}", if kind == "error" { s.id() } else { s.id().saturating_sub(2) }),
            str::to_owned,
        );
        let Some(other) = halves.remove(&id) else {
            if halves.len() < MAX_HALVES {
                halves.insert(id, s);
            }
            continue;
        };
        let (data, error) = if kind == "data" { (s, other) } else { (other, s) };
        let pod = pod.clone();
        running.spawn(async move { one(data, error, port, &pod).await });
    }
    running.shutdown().await;
}

/// Connects inside the pod's namespace, to its own loopback: what listens there is meant, whichever family.
fn connect(netns: &Path, port: u16) -> Result<TcpStream, LabError> {
    ns::within(netns, move || {
        let to = |ip: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECTING);
        to(Ipv4Addr::LOCALHOST.into())
            .or_else(|e| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| e))
            .doing(|| format!("connect to port {port} of the pod's localhost"))
    })
}

async fn one(data: Stream, error: Stream, port: u16, pod: &Pod) {
    let (_, say_error) = error.split();
    let (mut from_client, to_client) = data.split();
    let netns = pod.netns.clone();
    let connected = tokio::task::spawn_blocking(move || connect(&netns, port)).await;
    let connected = connected.map_err(|e| LabError::new(e.to_string())).flatten().and_then(|s| {
        s.set_nonblocking(true).doing(|| "socket")?;
        tokio::net::TcpStream::from_std(s).doing(|| "socket")
    });
    let socket = match connected {
        Ok(s) => s,
        Err(e) => {
            let why = format!("error forwarding port {port} to pod {}, uid {}: {e}", pod.name, pod.uid);
            let _ = say_error.send(why.into()).await;
            let _ = say_error.finish().await;
            let _ = to_client.reset().await;
            return;
        }
    };
    let _ = socket.set_nodelay(true);
    let (mut read, mut write) = socket.into_split();
    let up = async {
        while let Some(b) = from_client.recv().await {
            if write.write_all(&b).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    let down = async {
        let mut buf = bytes::BytesMut::new();
        loop {
            buf.reserve(32 << 10);
            match read.read_buf(&mut buf).await {
                Ok(0) | Err(_) => break,
                Ok(_) if to_client.send(buf.split().freeze()).await.is_err() => break,
                Ok(_) => {}
            }
        }
        let _ = to_client.finish().await;
    };
    // The pod's end of the connection decides: a client that has nothing more to say may still be answered.
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
    let _ = say_error.finish().await;
}
