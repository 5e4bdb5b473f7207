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
    EnvFilter::builder().parse(level).map_err(|e| LogError::Level { level: level.to_owned(), problem: e.to_string() })
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

/// The one line of a pass. Nothing to do is debug, so that an idle node is silent; a failure is a warning with its
/// reason, which names the op.
pub fn reconcile_line(plane: Plane, result: Outcome, ops: usize, refused: usize, took: Duration, why: Option<&str>) {
    // Whole microseconds, without the digits that a float would add.
    let ms = (took.as_secs_f64() * 1e6).round() / 1e3;
    let (plane, result) = (plane.as_str(), result.as_str());
    match (result, why) {
        ("failed", why) => {
            tracing::warn!(plane, result, ops, refused, ms, reason = why.unwrap_or("unknown"), "reconcile");
        }
        ("changed", _) => tracing::info!(plane, result, ops, refused, ms, "reconcile"),
        _ => tracing::debug!(plane, result, ops, refused, ms, "reconcile"),
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
            reconcile_line(Plane::Fabric, Outcome::Unchanged, 0, 0, Duration::from_micros(50), None);
            reconcile_line(Plane::Fabric, Outcome::Changed, 4, 1, Duration::from_millis(2), None);
            reconcile_line(Plane::Nftables, Outcome::Failed, 0, 0, Duration::ZERO, Some("add chain x: EPERM"));
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!((lines[0]["plane"].as_str(), lines[0]["ops"].as_u64()), (Some("fabric"), Some(4)));
        assert_eq!(
            (lines[1]["level"].as_str(), lines[1]["reason"].as_str()),
            (Some("WARN"), Some("add chain x: EPERM"))
        );
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
