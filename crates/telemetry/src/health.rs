//! What `/healthz` and `/readyz` say and why. A plain value: time is an argument, the listener is elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::metrics::{Kind, Metrics, Plane};

/// How long a dataplane may fail, or the loop may stand still, before the agent calls itself unhealthy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The check that the agent's loop turns.
const LOOP: &str = "loop";

#[derive(Debug, Clone, Default)]
struct PlaneState {
    /// When a pass last ended well.
    succeeded: Option<Duration>,
    failing: Option<(Duration, String)>,
}

/// The state that health is judged by. `now` everywhere is monotonic time since the agent started.
///
/// *Ready*: every kind is in sync, every dataplane has ended a pass well and its last one did not fail, and the CNI
/// configuration is written: a pod can be attached and its packets are carried. *Healthy*: the loop turns, and no
/// dataplane has failed for more than a minute. A restart of the agent would not cure what only makes it not ready.
#[derive(Debug, Clone)]
pub struct Health {
    in_sync: BTreeMap<Kind, Result<(), String>>,
    planes: BTreeMap<Plane, PlaneState>,
    conflist: Result<(), String>,
    turned: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(Kind::ALL, Plane::ALL)
    }
}

impl Health {
    /// Nothing has happened yet; these kinds and dataplanes are expected.
    #[must_use]
    pub fn new(kinds: &[Kind], planes: &[Plane]) -> Self {
        Self {
            in_sync: kinds.iter().map(|k| (*k, Err("the first list has not ended".to_owned()))).collect(),
            planes: planes.iter().map(|p| (*p, PlaneState::default())).collect(),
            conflist: Err("not written: it is written when the node can carry a pod's packets".to_owned()),
            turned: Duration::ZERO,
        }
    }

    /// The source has, or has lost, the whole list of a kind; the reason is what a person should look at.
    pub fn source(&mut self, kind: Kind, state: Result<(), String>) {
        self.in_sync.insert(kind, state);
    }

    /// A pass of a dataplane ended.
    pub fn pass(&mut self, plane: Plane, result: Result<(), String>, now: Duration) {
        self.turned = now;
        let s = self.planes.entry(plane).or_default();
        match result {
            Ok(()) => *s = PlaneState { succeeded: Some(now), failing: None },
            Err(why) => {
                let since = s.failing.take().map_or(now, |(since, _)| since);
                s.failing = Some((since, why));
            }
        }
    }

    /// The loop turned without a pass.
    pub fn turned(&mut self, now: Duration) {
        self.turned = now;
    }

    /// The CNI configuration is in place, or could not be written.
    pub fn conflist(&mut self, state: Result<(), String>) {
        self.conflist = state;
    }

    /// Whether every kind is in sync; before that nothing is committed.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.in_sync.values().all(Result::is_ok)
    }

    /// Whether pods can be attached.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready_checks().iter().all(|(_, r)| r.is_ok())
    }

    fn ready_checks(&self) -> Vec<(String, Result<(), String>)> {
        let source = self.in_sync.iter().map(|(k, r)| (format!("{k} in sync"), r.clone()));
        let planes = self.planes.iter().map(|(p, s)| {
            let r = match (&s.failing, s.succeeded) {
                (Some((_, why)), _) => Err(why.clone()),
                (None, None) => Err("no pass has ended yet".to_owned()),
                (None, Some(_)) => Ok(()),
            };
            (format!("{p} programmed"), r)
        });
        source.chain(planes).chain([("CNI configuration".to_owned(), self.conflist.clone())]).collect()
    }

    fn health_checks(&self, now: Duration) -> Vec<(String, Result<(), String>)> {
        let still = now.saturating_sub(self.turned);
        let turning = if still > PATIENCE {
            Err(format!("no pass for {} s: the loop is stuck", still.as_secs()))
        } else {
            Ok(())
        };
        let planes = self.planes.iter().map(|(p, s)| {
            let r = match &s.failing {
                Some((since, why)) if now.saturating_sub(*since) > PATIENCE => {
                    Err(format!("failing for {} s: {why}", now.saturating_sub(*since).as_secs()))
                }
                _ => Ok(()),
            };
            (p.to_string(), r)
        });
        std::iter::once((LOOP.to_owned(), turning)).chain(planes).collect()
    }

    /// Whether Services are served as they should be, by the measure of [`Self::healthz`], and when their rules were last
    /// known to be right. What kube-proxy's health server tells.
    #[must_use]
    pub fn proxy(&self, now: Duration) -> (bool, Option<Duration>) {
        let concerns = |check: &str| check == LOOP || check == Plane::Nftables.as_str();
        let healthy = self.health_checks(now).iter().all(|(check, r)| r.is_ok() || !concerns(check));
        (healthy, self.planes.get(&Plane::Nftables).and_then(|p| p.succeeded))
    }

    /// Whether the agent is healthy, and the text that says why: one line a check.
    #[must_use]
    pub fn healthz(&self, now: Duration) -> (bool, String) {
        text("healthz", &self.health_checks(now))
    }

    /// Whether the node is ready, and the text that says why: one line a check.
    #[must_use]
    pub fn readyz(&self) -> (bool, String) {
        text("readyz", &self.ready_checks())
    }
}

/// The form of kube-apiserver's verbose health pages.
pub(crate) fn text(name: &str, checks: &[(String, Result<(), String>)]) -> (bool, String) {
    let mut out = String::new();
    for (check, r) in checks {
        let _ = match r {
            Ok(()) => writeln!(out, "[+]{check}"),
            Err(why) => writeln!(out, "[-]{check}: {why}"),
        };
    }
    let ok = checks.iter().all(|(_, r)| r.is_ok());
    let _ = writeln!(out, "{name} check {}", if ok { "passed" } else { "failed" });
    (ok, out)
}

/// An HTTP answer to a GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// Answers a GET of a path: `/healthz`, `/livez` (the same), `/readyz`, `/metrics`, and a list of these at `/`.
#[must_use]
pub fn answer(path: &str, health: &Health, metrics: &Metrics, now: Duration) -> Answer {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, content_type, body) = match path {
        "/healthz" | "/livez" => {
            let (ok, body) = health.healthz(now);
            (if ok { 200 } else { 503 }, PLAIN, body)
        }
        "/readyz" => {
            let (ok, body) = health.readyz();
            (if ok { 200 } else { 503 }, PLAIN, body)
        }
        "/metrics" => (200, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.encode()),
        "/" => (200, PLAIN, "/healthz\n/livez\n/metrics\n/readyz\n".to_owned()),
        _ => (404, PLAIN, "not found: try /\n".to_owned()),
    };
    Answer { status, content_type, body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Build;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn ready() -> Health {
        let mut h = Health::default();
        Kind::ALL.iter().for_each(|k| h.source(*k, Ok(())));
        Plane::ALL.iter().for_each(|p| h.pass(*p, Ok(()), s(1)));
        h.conflist(Ok(()));
        h
    }

    #[test]
    fn ready_only_when_everything_is_and_each_reason_is_named() {
        assert!(ready().ready() && ready().in_sync());
        let (ok, text) = Health::default().readyz();
        assert!(!ok);
        assert_eq!(
            text.lines().filter(|l| l.starts_with("[-]")).count(),
            Kind::ALL.len() + Plane::ALL.len() + 1,
            "{text}"
        );

        let mut h = ready();
        h.source(Kind::Pod, Err("watch of pods: connection refused".into()));
        let (ok, text) = h.readyz();
        assert!(!ok && !h.in_sync());
        assert!(text.contains("[-]Pod in sync: watch of pods: connection refused\n"), "{text}");
        assert!(text.contains("[+]Service in sync\n") && text.ends_with("readyz check failed\n"), "{text}");

        let mut h = ready();
        h.pass(Plane::Fabric, Err("replace route 10.0.0.0/24: ENETUNREACH".into()), s(2));
        assert!(!h.ready() && h.readyz().1.contains("[-]fabric programmed: replace route 10.0.0.0/24"));
        h.pass(Plane::Fabric, Ok(()), s(3));
        assert!(h.ready());
    }

    #[test]
    fn unhealthy_only_after_patience() {
        let mut h = ready();
        h.pass(Plane::Fabric, Err("x".into()), s(10));
        h.pass(Plane::Fabric, Err("y".into()), s(60));
        assert!(h.healthz(s(70)).0, "60 s are allowed");
        let (ok, text) = h.healthz(s(71));
        assert!(!ok && text.contains("[-]fabric: failing for 61 s: y"), "{text}");
        h.pass(Plane::Fabric, Ok(()), s(72));
        assert!(h.healthz(s(132)).0);
        assert!(!h.healthz(s(133)).0, "the loop stands still");
        h.turned(s(133));
        assert!(h.healthz(s(133)).0);
    }

    #[test]
    fn the_proxy_is_as_healthy_as_its_own_plane() {
        let mut h = ready();
        assert_eq!(h.proxy(s(5)), (true, Some(s(1))));
        h.pass(Plane::Fabric, Err("x".into()), s(10));
        h.pass(Plane::Nftables, Err("x".into()), s(40));
        h.turned(s(90));
        assert_eq!(h.proxy(s(90)), (true, Some(s(1))), "the fabric is another's, and 60 s are allowed");
        h.turned(s(101));
        assert!(!h.proxy(s(101)).0);
        h.pass(Plane::Nftables, Ok(()), s(102));
        assert_eq!(h.proxy(s(103)), (true, Some(s(102))));
        assert!(!h.proxy(s(163)).0, "the loop stands still");
        assert_eq!(Health::default().proxy(s(1)), (true, None));
    }

    #[test]
    fn the_pages() {
        let m = Metrics::new(Build { version: "1", commit: "" });
        let (good, bad) = (ready(), Health::default());
        for (path, health, status) in [
            ("/healthz", &good, 200),
            ("/livez", &bad, 200),
            ("/readyz", &good, 200),
            ("/readyz", &bad, 503),
            ("/metrics", &bad, 200),
            ("/", &bad, 200),
            ("/nope", &good, 404),
        ] {
            let a = answer(path, health, &m, s(1));
            assert_eq!(a.status, status, "{path}: {}", a.body);
            assert!(!a.body.is_empty() && a.body.ends_with('\n'), "{path}");
        }
    }
}
