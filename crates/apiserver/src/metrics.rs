//! Counters of the server, as Prometheus text (exposition format 0.0.4). Labels come from the tables of this crate only:
//! no name of an object is ever one.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, StatusCode};

use crate::resource::RESOURCES;
use crate::store::Store;

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];
const CLASSES: [&str; 4] = ["2xx", "4xx", "5xx", "other"];

/// Requests answered, by method and class of code.
#[derive(Debug, Default)]
pub(crate) struct Metrics([[AtomicU64; CLASSES.len()]; METHODS.len()]);

impl Metrics {
    pub(crate) fn count(&self, method: &Method, code: StatusCode) {
        let m = METHODS.iter().position(|m| *m == method.as_str()).unwrap_or(METHODS.len() - 1);
        let class = match code.as_u16() / 100 {
            2 => 0,
            4 => 1,
            5 => 2,
            _ => 3,
        };
        self.0[m][class].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn render(&self, store: &Store) -> String {
        let mut out = String::from(
            "# HELP seaway_apiserver_requests_total Requests answered.\n# TYPE seaway_apiserver_requests_total counter\n",
        );
        for (method, row) in METHODS.iter().zip(&self.0) {
            for (class, n) in CLASSES.iter().zip(row) {
                let n = n.load(Ordering::Relaxed);
                if n > 0 {
                    let _ =
                        writeln!(out, "seaway_apiserver_requests_total{{method=\"{method}\",code=\"{class}\"}} {n}");
                }
            }
        }
        let state = store.read();
        out.push_str("# HELP seaway_apiserver_objects Objects stored.\n# TYPE seaway_apiserver_objects gauge\n");
        for r in RESOURCES.iter().filter(|r| !r.view) {
            let n = state.kind(r).objects.len();
            let _ = writeln!(out, "seaway_apiserver_objects{{resource=\"{}\"}} {n}", r.qualified());
        }
        // Names of custom kinds are the clients': they are one number.
        let custom: usize = state.custom.storages().iter().map(|r| state.kind(r).objects.len()).sum();
        let _ = writeln!(out, "seaway_apiserver_objects{{resource=\"custom\"}} {custom}");
        out.push_str("# HELP seaway_apiserver_watches Watches open, one of them the server's own.\n# TYPE seaway_apiserver_watches gauge\n");
        let watches: usize = state.kinds.values().map(crate::store::Kind::watchers).sum();
        let _ = writeln!(out, "seaway_apiserver_watches {watches}");
        out.push_str(
            "# HELP seaway_apiserver_revision The last revision given.\n# TYPE seaway_apiserver_revision gauge\n",
        );
        let _ = writeln!(out, "seaway_apiserver_revision {}", state.revision);
        out
    }
}
