//! A few fixed answers over HTTP to whoever asks, as load balancers do: bounded in connections, bytes and time, whatever
//! is sent. One request a connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections that are answered at once, of all listeners together. More wait in the kernel's queue.
pub const CONNECTIONS: usize = 64;
/// The longest head of a request, in bytes.
const HEAD: usize = 4096;
/// How long a client may take to ask and to read.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is answered to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200, 404 or 503.
    pub status: u16,
    /// Headers besides those that every answer has.
    pub headers: String,
    /// JSON.
    pub body: String,
}

/// Answers until the task is dropped.
pub async fn serve(listener: TcpListener, permits: Arc<Semaphore>, answer: Arc<dyn Fn(&str) -> Answer + Send + Sync>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // After the accept: listeners that nobody asks hold nothing.
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, one(stream, &*answer)).await;
                    drop(permit);
                });
            }
            Err(e) => {
                // Out of descriptors, perhaps: they come back.
                tracing::debug!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(mut s: TcpStream, answer: &(dyn Fn(&str) -> Answer + Send + Sync)) -> std::io::Result<()> {
    let mut head = [0; HEAD];
    let mut n = 0;
    let ended = |h: &[u8]| h.windows(4).any(|w| w == b"\r\n\r\n") || h.windows(2).any(|w| w == b"\n\n");
    while !head.get(..n).is_some_and(ended) {
        let Some(rest) = head.get_mut(n..).filter(|r| !r.is_empty()) else { return Ok(()) };
        match s.read(rest).await? {
            0 => return Ok(()),
            more => n += more,
        }
    }
    let text = String::from_utf8_lossy(head.get(..n).unwrap_or_default());
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let a = answer(path.split('?').next().unwrap_or(path));
    let reason = match a.status {
        200 => "OK",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let Answer { status, headers, body } = a;
    let mut out = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n{}{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        crate::kube_proxy::OURS,
        body.len()
    );
    if method != "HEAD" {
        out += &body;
    }
    s.write_all(out.as_bytes()).await?;
    s.shutdown().await
}
