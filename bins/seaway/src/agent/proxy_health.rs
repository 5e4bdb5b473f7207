//! What kube-proxy serves beside Services: `/healthz` and `/livez` on port 10256, asked by load balancers in front of the
//! nodes, and `/proxyMode` on port 10249, asked by tools that want to know which kind of rules there are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use resolve::{Key, Kind};
use serde_json::{Map, Value, json};
use source::{Note, Recorder};
use telemetry::{Page, Verdict};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use types::{Family, NodeName, ObjectName};

use super::answers::{self, Answer};
use super::http::Shared;

/// While the port is somebody else's it is tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// Where to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s == "none" {
            return Ok(Self(None));
        }
        s.parse().map(|a| Self(Some(a))).map_err(|_| format!("{s:?}: write ADDRESS:PORT, e.g. [::]:10256, or none"))
    }
}

/// `/healthz` and `/livez`, until dropped.
pub async fn run(listen: Listen, shared: Arc<Shared>, recorder: Recorder) {
    let node = shared.node.clone();
    serve(listen, "--proxy-health-listen", &node, recorder, move |path| answer(&shared, path)).await;
}

/// `/proxyMode`, until dropped: the word that kube-proxy has for the same kernel subsystem.
pub async fn run_mode(listen: Listen, node: NodeName, recorder: Recorder) {
    serve(listen, "--proxy-mode-listen", &node, recorder, |path| match path {
        "/proxyMode" => Answer { status: 200, headers: String::new(), body: "nftables".into() },
        _ => Answer { status: 404, headers: String::new(), body: "{}".into() },
    })
    .await;
}

/// Serves until dropped. The port may be another's for a while, as when kube-proxy is being replaced: it is waited for.
async fn serve(
    listen: Listen,
    flag: &str,
    node: &NodeName,
    recorder: Recorder,
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) {
    let Some(at) = listen.0 else { return };
    let mut told = false;
    let listener = loop {
        match bind(at).await {
            Ok(l) => break l,
            Err(e) => {
                if !told {
                    tracing::warn!("{flag} {at}: {e}: trying again");
                    let why = format!("cannot listen at {at} ({flag}): {e}: is kube-proxy still running?");
                    recorder.note(Note {
                        about: Key { kind: Kind::Node, name: ObjectName::new("", node.as_str()) },
                        warning: true,
                        reason: "FailedToStartProxierHealthcheck".into(),
                        message: why,
                    });
                }
                told = true;
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    let permits = Arc::new(Semaphore::new(answers::CONNECTIONS));
    answers::serve(listener, permits, Arc::new(answer)).await;
}

/// `[::]` where there is no IPv6 is `0.0.0.0`.
async fn bind(at: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(at).await {
        Err(e) if at.is_ipv6() && at.ip().is_unspecified() && e.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), at.port())).await
        }
        other => other,
    }
}

/// A node that is not there, is being deleted, or soon will be, is not eligible; and which families it has.
fn node(shared: &Shared) -> (bool, Vec<Family>) {
    let found = shared.reader.get().and_then(|r| {
        r.read(|s, _| {
            let n = s.nodes.get(&shared.node)?;
            let has = |f: &Family| n.internal_ips.iter().any(|a| Family::of(*a) == *f);
            Some((!n.leaving, Family::BOTH.into_iter().filter(has).collect()))
        })
    });
    found.unwrap_or((false, Vec::new()))
}

fn answer(shared: &Shared, path: &str) -> Answer {
    let page = match path {
        "/healthz" => Page::Healthz,
        "/livez" => Page::Livez,
        _ => return Answer { status: 404, headers: String::new(), body: "{}".into() },
    };
    let now = shared.start.elapsed();
    let (healthy, last) = shared.health.lock().unwrap_or_else(PoisonError::into_inner).proxy(now);
    let (eligible, families) = node(shared);
    let ok = healthy && (page == Page::Livez || eligible);
    shared.metrics.proxy.asked(page, if ok { Verdict::Ok } else { Verdict::Unavailable });
    let time = |ago: Duration| {
        let at = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        Timestamp::try_from(at).map(|t| t.to_string()).unwrap_or_default()
    };
    // As kube-proxy: of a healthy proxy it is now, since what did not change needed no update.
    let current = time(Duration::ZERO);
    let updated = match (ok, last) {
        (true, _) => current.clone(),
        (false, Some(at)) => time(now.saturating_sub(at)),
        (false, None) => "0001-01-01T00:00:00Z".into(),
    };
    let of = |f: &Family| (f.to_string(), json!({ "lastUpdated": updated, "healthy": healthy }));
    let status: Map<String, Value> = families.iter().map(of).collect();
    let mut body = json!({ "lastUpdated": updated, "currentTime": current, "healthy": healthy, "status": status });
    if page == Page::Healthz {
        body["nodeEligible"] = eligible.into();
    }
    Answer { status: if ok { 200 } else { 503 }, headers: String::new(), body: body.to_string() }
}
