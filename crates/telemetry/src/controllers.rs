//! The controllers' metrics and health.

use std::sync::Mutex;
use std::sync::PoisonError;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::health::{Answer, text};
use crate::metrics::{Build, Own, count, words};

words! {
    /// What became of a write.
    Write {
        /// The server took it.
        Done = "done",
        /// It failed, and is tried again if it is still wanted.
        Failed = "failed",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabel {
    result: Write,
}

/// What `seaway controller` says of itself. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Controllers {
    registry: Registry,
    leading: Gauge,
    writes: Family<WriteLabel, Counter>,
    problems: Gauge,
    own: Own,
    /// What keeps them from working, if anything does.
    waiting: Mutex<Option<String>>,
}

impl Controllers {
    /// All metrics at zero; they do not work yet.
    #[must_use]
    pub fn new(build: Build) -> Self {
        let mut m = Self {
            registry: Registry::default(),
            leading: Gauge::default(),
            writes: Family::default(),
            problems: Gauge::default(),
            own: Own::default(),
            waiting: Mutex::new(Some("not started".into())),
        };
        for result in Write::ALL.iter().copied() {
            drop(m.writes.get_or_create(&WriteLabel { result }));
        }
        let r = &mut m.registry;
        r.register(
            "seaway_controller_leading",
            "Whether this one works, 1 or 0: of several the holder of the Lease does",
            m.leading.clone(),
        );
        r.register("seaway_controller_writes", "Writes to the API by what became of them", m.writes.clone());
        r.register(
            "seaway_controller_problems",
            "Things that the controllers cannot do now; the log and Events name them",
            m.problems.clone(),
        );
        m.own.register(r, build);
        m
    }

    /// They wait, for this; or, when nothing is given, work.
    pub fn waits(&self, why: Option<String>) {
        self.leading.set(i64::from(why.is_none()));
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// A pass wrote so much, and so much failed.
    pub fn wrote(&self, done: usize, failed: usize) {
        for (result, n) in [(Write::Done, done), (Write::Failed, failed)] {
            self.writes.get_or_create(&WriteLabel { result }).inc_by(n as u64);
        }
    }

    /// How much cannot be done.
    pub fn problems(&self, n: usize) {
        self.problems.set(count(n));
    }

    /// The OpenMetrics text of everything, with this process's memory as it is now.
    #[must_use]
    pub fn encode(&self, denied: usize) -> String {
        self.own.missing_rights.set(count(denied));
        self.own.encode(&self.registry)
    }

    /// Answers a GET of a path: `/healthz`, `/livez` (the same), `/readyz`, `/metrics`, and a list of these at `/`.
    /// `denied` are the rules that are missing, one text each.
    ///
    /// A process that answers is healthy: a missing right is cured by no restart, and is named all the same. It is ready
    /// when it works with every right it asked for, or waits for another to cease.
    #[must_use]
    pub fn answer(&self, path: &str, denied: &[String]) -> Answer {
        const PLAIN: &str = "text/plain; charset=utf-8";
        let rights = if denied.is_empty() { Ok(()) } else { Err(denied.join("; ")) };
        let (status, content_type, body) = match path {
            "/healthz" | "/livez" => {
                let (_, told) = text("healthz", &[("process".to_owned(), Ok(()))]);
                let note: String = denied.iter().map(|d| format!("[!]rights: {d}\n")).collect();
                (200, PLAIN, note + &told)
            }
            "/readyz" => {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let standby = waiting.map_or_else(|| "works".to_owned(), |w| format!("waits: {w}"));
                let (ok, told) = text("readyz", &[(standby, Ok(())), ("rights".to_owned(), rights)]);
                (if ok { 200 } else { 503 }, PLAIN, told)
            }
            "/metrics" => {
                (200, "application/openmetrics-text; version=1.0.0; charset=utf-8", self.encode(denied.len()))
            }
            "/" => (200, PLAIN, "/healthz\n/livez\n/metrics\n/readyz\n/status\n".to_owned()),
            _ => (404, PLAIN, "not found: try /\n".to_owned()),
        };
        Answer { status, content_type, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_seen_wherever_one_looks() {
        let m = Controllers::new(Build { version: "1", commit: "" });
        let none: [String; 0] = [];
        let one = ["RBAC does not let x list pods: add it".to_owned()];
        assert_eq!(m.answer("/readyz", &none).status, 200);
        assert!(m.answer("/readyz", &none).body.contains("[+]waits: not started"));
        m.waits(None);
        m.wrote(3, 1);
        m.problems(2);
        let ready = m.answer("/readyz", &one);
        assert!(ready.status == 503 && ready.body.contains("[+]works\n[-]rights: RBAC does not let x"), "{ready:?}");
        let healthy = m.answer("/healthz", &one);
        assert!(healthy.status == 200 && healthy.body.contains("[!]rights: RBAC does not let x"), "{healthy:?}");
        let text = m.answer("/metrics", &one).body;
        for line in [
            "seaway_missing_rights 1",
            "seaway_controller_leading 1",
            "seaway_controller_writes_total{result=\"done\"} 3",
            "seaway_controller_writes_total{result=\"failed\"} 1",
            "seaway_controller_problems 2",
            "seaway_build_info{version=\"1\",commit=\"\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(m.answer("/metrics", &none).body.contains("seaway_missing_rights 0\n"));
        assert_eq!((m.answer("/", &none).status, m.answer("/nope", &none).status), (200, 404));
    }
}
