//! Readiness, liveness and startup probes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Counts answers against thresholds: pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    good: bool,
    streak: i32,
    success_threshold: i32,
    failure_threshold: i32,
}

impl Gate {
    /// With the thresholds of a probe, from a given verdict.
    #[must_use]
    pub fn new(p: &Probe, good: bool) -> Self {
        Self {
            good,
            streak: 0,
            success_threshold: p.success_threshold.unwrap_or(1).max(1),
            failure_threshold: p.failure_threshold.unwrap_or(3).max(1),
        }
    }

    /// Takes one answer; the verdict when it changes.
    pub fn observe(&mut self, answer: bool) -> Option<bool> {
        if answer == self.good {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = if answer { self.success_threshold } else { self.failure_threshold };
        (self.streak >= needed).then(|| {
            self.streak = 0;
            self.good = answer;
            answer
        })
    }

    /// Answers in a row against the verdict.
    #[must_use]
    pub fn streak(&self) -> i32 {
        self.streak
    }
}

/// Seconds of a field, with its default and least value.
#[must_use]
pub fn seconds(value: Option<i32>, default: i32, least: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(default).max(least)).unwrap_or(1))
}

fn port(p: &IntOrString, c: &Container) -> Result<u16, String> {
    let number = match p {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => c
            .ports
            .iter()
            .flatten()
            .find(|x| x.name.as_deref() == Some(name))
            .map(|x| x.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("port {p:?} is no port of container {}", c.name))
}

/// What one probe needs besides itself.
pub struct Target<'a> {
    /// The container.
    pub container: &'a Container,
    /// The pod's first address.
    pub ip: IpAddr,
    /// A command that runs another inside the container; the probe's own is appended.
    pub exec: &'a (dyn Fn(&[String]) -> tokio::process::Command + Sync),
}

/// Asks once.
///
/// # Errors
/// Why the answer is no.
pub async fn ask(p: &Probe, t: &Target<'_>) -> Result<(), String> {
    let limit = seconds(p.timeout_seconds, 1, 1);
    let asked = async {
        if let Some(a) = &p.tcp_socket {
            let at = SocketAddr::new(host(a.host.as_deref(), t.ip)?, port(&a.port, t.container)?);
            TcpStream::connect(at).await.map(drop).map_err(|e| format!("dial tcp {at}: {e}"))
        } else if let Some(a) = &p.http_get {
            if a.scheme.as_deref() == Some("HTTPS") {
                return Err("a lab's probes speak no HTTPS: use HTTP or tcpSocket".into());
            }
            let at = SocketAddr::new(host(a.host.as_deref(), t.ip)?, port(&a.port, t.container)?);
            let path = a.path.as_deref().unwrap_or("/");
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            let headers = a.http_headers.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str()));
            http(at, &path, headers.collect()).await
        } else if let Some(a) = &p.exec {
            let out = (t.exec)(a.command.as_deref().unwrap_or_default())
                .kill_on_drop(true)
                .output()
                .await
                .map_err(|e| e.to_string())?;
            let said =
                String::from_utf8_lossy(if out.stdout.is_empty() { &out.stderr } else { &out.stdout }).into_owned();
            if out.status.success() { Ok(()) } else { Err(format!("{}: {}", out.status, said.trim())) }
        } else {
            Err("a lab's probes are tcpSocket, httpGet and exec".into())
        }
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer in {} s", limit.as_secs())))
}

fn host(name: Option<&str>, pod: IpAddr) -> Result<IpAddr, String> {
    match name.filter(|h| !h.is_empty()) {
        None => Ok(pod),
        Some("localhost") => Ok(IpAddr::from([127, 0, 0, 1])),
        Some(h) => h.parse().map_err(|_| format!("host {h:?}: a lab's probes take an address")),
    }
}

async fn http(at: SocketAddr, path: &str, headers: Vec<(&str, &str)>) -> Result<(), String> {
    let mut s = TcpStream::connect(at).await.map_err(|e| format!("dial tcp {at}: {e}"))?;
    let mut head = format!("GET {path} HTTP/1.1\r\nConnection: close\r\nUser-Agent: kube-probe/seaway\r\n");
    if !headers.iter().any(|(k, _)| k.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {at}\r\n"));
    }
    for (k, v) in headers.into_iter().filter(|(k, v)| !format!("{k}{v}").contains(['\r', '\n'])) {
        head.push_str(&format!("{k}: {v}\r\n"));
    }
    head.push_str("\r\n");
    s.write_all(head.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let mut buf = [0u8; 512];
    while answer.len() < 64 && !answer.windows(2).any(|w| w == b"\r\n") {
        let n = s.read(&mut buf).await.map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        answer.extend_from_slice(&buf[..n]);
    }
    let text = String::from_utf8_lossy(&answer);
    let code: u16 = text.split(' ').nth(1).and_then(|c| c.parse().ok()).ok_or("no HTTP answer")?;
    if (200..400).contains(&code) { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {code}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn probe(v: Value) -> Probe {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn thresholds() {
        let mut g = Gate::new(&probe(json!({"successThreshold": 2, "failureThreshold": 2})), false);
        let said: Vec<_> =
            [true, false, true, true, false, true, false, false].into_iter().map(|a| g.observe(a)).collect();
        assert_eq!(said, [None, None, None, Some(true), None, None, None, Some(false)]);
    }

    #[tokio::test]
    async fn each_kind_against_a_real_server() {
        let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = l.local_addr().unwrap().port();
        drop(l);
        let id = crate::echo::Identity { pod: "a/b".into(), node: "n".into() };
        let server = tokio::spawn(async move { crate::echo::serve(id, &[port]).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let c: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]})).unwrap();
        let exec = |argv: &[String]| {
            let mut c = tokio::process::Command::new(&argv[0]);
            c.args(&argv[1..]);
            c
        };
        let t = Target { container: &c, ip: "127.0.0.1".parse().unwrap(), exec: &exec };
        for (p, want) in [
            (json!({"tcpSocket": {"port": "web"}}), None),
            (json!({"tcpSocket": {"port": 1}}), Some("refused")),
            (json!({"tcpSocket": {"port": "nope"}}), Some("no port of container c")),
            (json!({"httpGet": {"port": port, "path": "healthz"}}), None),
            (json!({"httpGet": {"port": port, "path": "/status/500"}}), Some("statuscode: 500")),
            (json!({"exec": {"command": ["true"]}}), None),
            (json!({"exec": {"command": ["sh", "-c", "echo no; exit 3"]}}), Some("exit status: 3: no")),
            (json!({"exec": {"command": ["sleep", "5"]}}), Some("no answer in 1 s")),
        ] {
            let got = ask(&probe(p.clone()), &t).await;
            match want {
                None => assert_eq!(got, Ok(()), "{p}"),
                Some(w) => assert!(got.as_ref().is_err_and(|e| e.contains(w)), "{p}: {got:?}"),
            }
        }
        server.abort();
    }
}
