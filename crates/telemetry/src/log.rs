//! Log set-up: human lines on a terminal, coloured only there; JSON on request; everything on stderr.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::metrics::{Outcome, Plane};

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people: colours on a terminal unless `NO_COLOR` is set, none elsewhere.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(format!("{s:?} is no log format: use human or json")),
        }
    }
}

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level text is wrong.
    #[error(
        "log level {level:?}: {problem}: use error, warn, info, debug or trace, or directives such as info,source=debug"
    )]
    Level {
        /// As given.
        level: String,
        /// What the parser said.
        problem: String,
    },
    /// A second set-up in one process.
    #[error("logs are already set up in this process")]
    Twice,
}

/// The filter of a level text: a level, or `target=level` directives with commas.
///
/// # Errors
/// When the text is neither.
pub(crate) fn filter(level: &str) -> Result<EnvFilter, LogError> {
    // It warns of every request that RBAC denies; what is missing is said once, in words of ours.
    let ours = format!("kube_runtime=error,{level}");
    EnvFilter::builder().parse(ours).map_err(|e| LogError::Level { level: level.to_owned(), problem: e.to_string() })
}

/// Sends the logs of this process to stderr.
///
/// # Errors
/// When the level is wrong, or logs were set up before.
pub fn init(level: &str, format: LogFormat) -> Result<(), LogError> {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colours);
    match format {
        LogFormat::Human => base.try_init(),
        LogFormat::Json => base.json().flatten_event(true).with_target(true).try_init(),
    }
    .map_err(|_| LogError::Twice)
}

/// Whole microseconds, without the digits that a float would add.
fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

/// How many of what: `EndpointSlice 3, Service 1`.
#[must_use]
pub fn counted<'a>(what: impl IntoIterator<Item = (&'a str, usize)>) -> String {
    what.into_iter().map(|(word, n)| format!("{word} {n}")).collect::<Vec<_>>().join(", ")
}

/// A pass of an agent, for its line.
#[derive(Debug, Clone, Copy)]
pub struct PassLine<'a> {
    /// What of the cluster had changed since the pass before, by kind.
    pub heard: &'a str,
    /// How each plane fared, and how many kernel objects it changed. None: nothing could be planned.
    pub planes: &'a [(Plane, Outcome, usize)],
    /// What the planes could not express.
    pub refused: usize,
    /// The whole pass.
    pub took: Duration,
    /// What failed, if anything: it names the op.
    pub why: Option<&'a str>,
}

/// The one line of a pass. Nothing to do is debug, so that an idle node is silent; a failure is a warning with its
/// reason.
pub fn reconcile_line(pass: &PassLine<'_>) {
    let PassLine { heard, planes, refused, took, why } = *pass;
    let of = |plane| planes.iter().find(|p| p.0 == plane).map(|p| p.2);
    let (fabric, nftables) = (of(Plane::Fabric), of(Plane::Nftables));
    let ops: usize = planes.iter().map(|p| p.2).sum();
    let any = |outcome| planes.iter().any(|p| p.1 == outcome);
    let ms = millis(took);
    if why.is_some() || any(Outcome::Failed) {
        let (result, reason) = (Outcome::Failed.as_str(), why.unwrap_or("unknown"));
        tracing::warn!(result, heard, ops, fabric, nftables, refused, ms, reason, "reconcile");
    } else if any(Outcome::Changed) {
        tracing::info!(result = Outcome::Changed.as_str(), heard, ops, fabric, nftables, refused, ms, "reconcile");
    } else {
        tracing::debug!(result = Outcome::Unchanged.as_str(), heard, ops, fabric, nftables, refused, ms, "reconcile");
    }
}

/// The one line of a controllers' pass that wrote something: what, by kind, how many writes failed, and why the first did.
pub fn controllers_line(wrote: &str, ops: usize, failed: usize, took: Duration, why: Option<&str>) {
    let ms = millis(took);
    match why {
        Some(reason) => {
            tracing::warn!(result = Outcome::Failed.as_str(), wrote, ops, failed, ms, reason, "reconcile");
        }
        None => tracing::info!(result = Outcome::Changed.as_str(), wrote, ops, failed, ms, "reconcile"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_line_per_pass_and_none_when_idle() {
        let sink = Sink::default();
        let out = sink.clone();
        let sub = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(filter("info").unwrap())
            .with_writer(move || out.clone())
            .finish();
        tracing::subscriber::with_default(sub, || {
            let line = |heard, planes, why| {
                reconcile_line(&PassLine { heard, planes, refused: 1, took: Duration::from_micros(2500), why });
            };
            line("", &[(Plane::Fabric, Outcome::Unchanged, 0), (Plane::Nftables, Outcome::Unchanged, 0)], None);
            let heard = counted([("EndpointSlice", 2), ("Service", 1)]);
            line(&heard, &[(Plane::Fabric, Outcome::Changed, 4), (Plane::Nftables, Outcome::Changed, 3)], None);
            let planes = [(Plane::Fabric, Outcome::Changed, 1), (Plane::Nftables, Outcome::Failed, 0)];
            line("", &planes, Some("add chain x: EPERM"));
            line("", &[], Some("no uplink"));
            controllers_line("Service 2", 2, 0, Duration::ZERO, None);
            controllers_line("Service 2", 1, 1, Duration::ZERO, Some("a"));
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 5, "{text}");
        let said = |n: usize, keys: &[&str]| keys.iter().map(|k| lines[n][k].clone()).collect::<Vec<_>>();
        let keys = ["level", "result", "heard", "ops", "fabric", "nftables", "refused", "ms", "reason"];
        let want = |v: serde_json::Value| v.as_array().unwrap().clone();
        use serde_json::json;
        assert_eq!(
            said(0, &keys),
            want(json!(["INFO", "changed", "EndpointSlice 2, Service 1", 7, 4, 3, 1, 2.5, null]))
        );
        assert_eq!(said(1, &keys), want(json!(["WARN", "failed", "", 1, 1, 0, 1, 2.5, "add chain x: EPERM"])));
        assert_eq!(said(2, &keys), want(json!(["WARN", "failed", "", 0, null, null, 1, 2.5, "no uplink"])));
        let keys = ["level", "result", "wrote", "ops", "failed", "reason"];
        assert_eq!(said(3, &keys), want(json!(["INFO", "changed", "Service 2", 2, 0, null])));
        assert_eq!(said(4, &keys), want(json!(["WARN", "failed", "Service 2", 1, 1, "a"])));
        assert!(lines.iter().all(|l| l["message"] == "reconcile"));
    }

    #[test]
    fn levels() {
        for good in ["info", "debug", "warn,source=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        let e = filter("a=b=c").unwrap_err().to_string();
        assert!(e.contains("a=b=c") && e.contains("use error, warn"), "{e}");
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
