//! Whether kube-proxy is running in this network namespace. Its rules alone do not say: they stay when it ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// The word by which our own answers on that port are known.
pub const OURS: &str = "Server: seaway\r\n";
/// Where kube-proxy tells of its health unless told otherwise.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const PATIENCE: Duration = Duration::from_secs(2);

/// What shows that it runs, for a person; `None` when nothing does.
pub fn active() -> Option<String> {
    process().map(|pid| format!("process {pid}")).or_else(|| healthz().then(|| format!("it answers at {HEALTHZ}")))
}

/// A process of that name whose network is ours. Only those that this process may see.
fn process() -> Option<u32> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|e| {
        let pid: u32 = e.file_name().to_str()?.parse().ok()?;
        let here = |file: &str| e.path().join(file);
        if fs::read_to_string(here("comm")).ok()?.trim_end() != "kube-proxy" {
            return None;
        }
        // One that has ended and is not reaped has no namespaces.
        (fs::read_link(here("ns/net")).ok()? == own).then_some(pid)
    })
}

/// Whether something that is not ours answers as kube-proxy does.
fn healthz() -> bool {
    let ask = || -> std::io::Result<String> {
        let mut s = TcpStream::connect_timeout(&HEALTHZ, PATIENCE)?;
        s.set_read_timeout(Some(PATIENCE))?;
        s.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        s.take(1 << 16).read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|t| is_kube_proxy(&t))
}

fn is_kube_proxy(answer: &str) -> bool {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    !head.contains(OURS.trim_end()) && body.contains("\"lastUpdated\"") && body.contains("\"currentTime\"")
}

#[cfg(test)]
mod tests {
    use super::is_kube_proxy;

    #[test]
    fn answers_are_told_apart() {
        let body = r#"{"lastUpdated":"2026-01-01T00:00:00Z","currentTime":"2026-01-01T00:00:00Z","healthy":true}"#;
        assert!(is_kube_proxy(&format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}")));
        assert!(!is_kube_proxy(&format!("HTTP/1.1 200 OK\r\nServer: seaway\r\n\r\n{body}")));
        assert!(!is_kube_proxy("HTTP/1.0 200 OK\r\n\r\nok"));
        assert!(!is_kube_proxy(""));
    }
}
