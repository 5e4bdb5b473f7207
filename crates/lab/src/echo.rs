//! The built-in server: says who answered and who asked, over HTTP, raw TCP and UDP on one port number.
//!
//! One line, the same everywhere:
//! `pod=shop/web-1 node=node1 client=10.244.1.5:53412 server=10.244.2.3:8080 proto=tcp`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kernel::Rt;
use kernel_api::Rtnetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::{Doing, LabError};

/// The port of a container that declares none.
pub const DEFAULT_PORT: u16 = 8080;

/// The longest request head accepted.
const MAX_HEAD: usize = 16 * 1024;

/// How long a raw client may stay silent before it is greeted.
const GREET_AFTER: Duration = Duration::from_millis(300);

/// Who the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `namespace/pod`, or a host's name.
    pub pod: String,
    /// The node.
    pub node: String,
}

impl Identity {
    /// The line that answers a client.
    #[must_use]
    pub fn line(&self, client: SocketAddr, server: SocketAddr, proto: &str) -> String {
        format!(
            "pod={} node={} client={} server={} proto={proto}\n",
            self.pod,
            self.node,
            canonical(client),
            canonical(server)
        )
    }
}

/// What a client read out of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `namespace/pod`.
    pub pod: String,
    /// The node.
    pub node: String,
    /// The client as the server saw it.
    pub client: SocketAddr,
}

impl Answer {
    /// Finds the line in a text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find(|l| l.starts_with("pod="))?;
        let f: BTreeMap<&str, &str> = line.split_ascii_whitespace().filter_map(|w| w.split_once('=')).collect();
        Some(Self {
            pod: (*f.get("pod")?).to_owned(),
            node: (*f.get("node")?).to_owned(),
            client: f.get("client")?.parse().ok()?,
        })
    }
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn canonical(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(a.ip().to_canonical(), a.port())
}

fn listen_tcp(port: u16) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let make = |family, addr: IpAddr| -> rustix::io::Result<_> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        if family == AddressFamily::INET6 {
            sockopt::set_ipv6_v6only(&fd, false)?;
        }
        bind(&fd, &SocketAddr::new(addr, port))?;
        listen(&fd, 1024)?;
        Ok(fd)
    };
    match make(AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()) {
        // A host without IPv6.
        Err(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL) => {
            make(AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into())
        }
        r => r,
    }
}

/// The addresses that a client may ask at.
fn own_addresses() -> Vec<IpAddr> {
    let all = Rt::open().ok().and_then(|mut rt| rt.addresses().ok()).unwrap_or_default();
    let local = |a: &IpAddr| matches!(a, IpAddr::V6(x) if x.is_unicast_link_local());
    all.into_iter().map(|a| a.addr).filter(|a| !local(a)).collect()
}

/// Serves on all `ports`, TCP and UDP, both families, until dropped.
///
/// # Errors
/// When a port cannot be bound.
pub async fn serve(id: Identity, ports: &[u16]) -> Result<(), LabError> {
    let id = Arc::new(id);
    let mut tasks = tokio::task::JoinSet::new();
    for &port in ports {
        let tcp = listen_tcp(port).doing(|| format!("listen on TCP port {port}"))?;
        let tcp = TcpListener::from_std(tcp.into()).doing(|| format!("TCP port {port}"))?;
        tasks.spawn(serve_tcp(id.clone(), tcp));
        tasks.spawn(serve_udp(id.clone(), port));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// One socket per address, so that an answer comes from where it was asked: a socket of all addresses would answer
/// from the one that the route back prefers. Addresses that come later are found.
async fn serve_udp(id: Arc<Identity>, port: u16) {
    let mut open: BTreeMap<IpAddr, tokio::task::JoinHandle<()>> = BTreeMap::new();
    loop {
        let have = own_addresses();
        open.retain(|a, task| {
            let stays = have.contains(a) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for a in have {
            if open.contains_key(&a) {
                continue;
            }
            match UdpSocket::bind((a, port)).await {
                Ok(s) => {
                    open.insert(a, tokio::spawn(answer_udp(id.clone(), s)));
                }
                Err(e) => eprintln!("UDP {a} port {port}: {e}"),
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn serve_tcp(id: Arc<Identity>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let id = id.clone();
                tokio::spawn(async move {
                    // A client that goes away mid-sentence is no fault of the server's.
                    let _ = session(&id, stream, client).await;
                });
            }
            // Out of descriptors: give the open connections a chance to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn answer_udp(id: Arc<Identity>, socket: UdpSocket) {
    let mut buf = vec![0u8; 65536];
    let local = socket.local_addr().unwrap_or_else(|_| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0));
    loop {
        // An error here is an ICMP answer to an earlier reply.
        if let Ok((n, client)) = socket.recv_from(&mut buf).await {
            let mut answer = id.line(client, local, "udp").into_bytes();
            answer.extend_from_slice(&buf[..n.min(1024)]);
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS "];

fn may_be_http(head: &[u8]) -> bool {
    METHODS.iter().any(|m| head.starts_with(m) || m.starts_with(head))
}

async fn session(id: &Identity, mut s: TcpStream, client: SocketAddr) -> std::io::Result<()> {
    let server = s.local_addr()?;
    let mut head = Vec::new();
    let mut buf = [0u8; 4096];
    let first = tokio::time::timeout(GREET_AFTER, s.read(&mut buf)).await;
    if let Ok(n) = first {
        head.extend_from_slice(&buf[..n?]);
    }
    if head.is_empty() || !may_be_http(&head) {
        // A raw client: the line, then everything it said and says, back.
        let mut answer = id.line(client, server, "tcp").into_bytes();
        answer.extend_from_slice(&head);
        s.write_all(&answer).await?;
        loop {
            let n = s.read(&mut buf).await?;
            if n == 0 {
                return Ok(());
            }
            s.write_all(&buf[..n]).await?;
        }
    }
    loop {
        let end = loop {
            if let Some(e) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                break e + 4;
            }
            if head.len() > MAX_HEAD {
                return s.write_all(b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n").await;
            }
            let n = s.read(&mut buf).await?;
            if n == 0 {
                return Ok(());
            }
            head.extend_from_slice(&buf[..n]);
        };
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let (status, body_len, close) = understand(&text);
        // The body is counted, not kept; never a byte of the next request is read with it.
        let mut left = body_len.saturating_sub(head.len() - end);
        head.drain(..head.len().min(end.saturating_add(body_len)));
        while left > 0 {
            let most = left.min(buf.len());
            let n = s.read(&mut buf[..most]).await?;
            if n == 0 {
                return Ok(());
            }
            left -= n;
        }
        let request = text.lines().next().unwrap_or_default();
        let body = format!("{}request={request}\n", id.line(client, server, "http"));
        let shown = if request.starts_with("HEAD ") { "" } else { body.as_str() };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nX-Pod: {}\r\nX-Node: {}\r\n{}\r\n{shown}",
            body.len(),
            id.pod,
            id.node,
            if close { "Connection: close\r\n" } else { "" },
        );
        s.write_all(answer.as_bytes()).await?;
        if close {
            return s.shutdown().await;
        }
    }
}

/// Status line (`/status/NNN` asks for one), length of the body, and whether the client wants the connection closed.
fn understand(head: &str) -> (String, usize, bool) {
    let mut lines = head.lines();
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or("/");
    let code = path.strip_prefix("/status/").and_then(|c| c.parse::<u16>().ok()).filter(|c| (200..600).contains(c));
    let mut len = 0;
    let mut close = request.ends_with("HTTP/1.0");
    for l in lines {
        let Some((k, v)) = l.split_once(':') else { continue };
        if k.eq_ignore_ascii_case("content-length") {
            len = v.trim().parse().unwrap_or(0);
        } else if k.eq_ignore_ascii_case("connection") {
            close |= v.trim().eq_ignore_ascii_case("close");
        }
    }
    let status = match code {
        None | Some(200) => "200 OK".to_owned(),
        Some(c) => format!("{c} As Asked"),
    };
    (status, len, close)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Identity {
        Identity { pod: "shop/web-1".into(), node: "node1".into() }
    }

    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn an_answer_reads_back() {
        let client = "[::ffff:10.0.0.1]:5".parse().unwrap();
        let line = id().line(client, "[::1]:8080".parse().unwrap(), "udp");
        assert_eq!(line, "pod=shop/web-1 node=node1 client=10.0.0.1:5 server=[::1]:8080 proto=udp\n");
        let a = Answer::parse(&format!("HTTP/1.1 200 OK\r\n\r\n{line}x")).unwrap();
        assert_eq!(a, Answer { pod: "shop/web-1".into(), node: "node1".into(), client: "10.0.0.1:5".parse().unwrap() });
        assert_eq!(Answer::parse("pod=x"), None);
    }

    #[tokio::test]
    async fn http_raw_tcp_and_udp_on_one_port() {
        let port = free_port().await;
        let server = tokio::spawn(async move { serve(id(), &[port]).await });
        let mut s = loop {
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(s) => break s,
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let me = s.local_addr().unwrap();
        // Two requests on one connection, the first with a body, the second asking for a status.
        s.write_all(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
        let mut buf = vec![0; 2048];
        let n = s.read(&mut buf).await.unwrap();
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("X-Pod: shop/web-1"), "{text}");
        assert_eq!(Answer::parse(&text).unwrap().client, me);
        s.write_all(b"GET /status/503 HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut rest = String::new();
        s.read_to_string(&mut rest).await.unwrap();
        assert!(rest.starts_with("HTTP/1.1 503 "), "{rest}");

        let mut s = TcpStream::connect(("::1", port)).await.unwrap();
        s.write_all(b"hello\n").await.unwrap();
        let n = s.read(&mut buf).await.unwrap();
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        assert!(text.ends_with("proto=tcp\nhello\n"), "{text}");
        // A silent client is greeted.
        let mut s = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let n = s.read(&mut buf).await.unwrap();
        assert!(Answer::parse(&String::from_utf8_lossy(&buf[..n])).is_some());

        let u = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        u.send_to(b"x", ("127.0.0.1", port)).await.unwrap();
        let n = u.recv(&mut buf).await.unwrap();
        assert_eq!(Answer::parse(&String::from_utf8_lossy(&buf[..n])).unwrap().client, u.local_addr().unwrap());
        server.abort();
    }
}
