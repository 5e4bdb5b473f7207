//! The loop that runs controllers: snapshot in, writes out, again at every change.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use resolve::ClusterSnapshot;
use resolve::api::ApiWrite;

use crate::api::Api;
use crate::error::SourceError;
use crate::watch::{Source, WatchConfig};

/// Changes that come within this time are one pass.
const GATHER: Duration = Duration::from_millis(10);
/// A pass at least so often.
const RESYNC: Duration = Duration::from_secs(30);
/// The first and the longest pause after a pass in which a write failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What became of a write.
#[derive(Debug)]
pub struct Applied<'a> {
    /// The write.
    pub write: &'a ApiWrite,
    /// Why it failed, if it did.
    pub error: Option<SourceError>,
}

/// A pass that had something to write.
#[derive(Debug)]
pub struct Passed<'a> {
    /// What was tried, in order. When the server cannot be reached, the rest is left to the next pass.
    pub applied: Vec<Applied<'a>>,
    /// From the look at the snapshot to the last answer.
    pub took: Duration,
}

/// Runs `reconcile` on the snapshot of `watch` at every change and carries out what it returns, until `shutdown`. With the
/// writes it says after how long to be run again although nothing has changed, if that matters. `report` hears of every
/// pass that writes, once.
///
/// Level-triggered: a write that fails, a conflict, an event that was lost are all healed by the next pass, since
/// `reconcile` compares what is with what should be. It is never called before every kind is in sync.
pub async fn run_controllers(
    api: &Api,
    watch: WatchConfig,
    mut reconcile: impl FnMut(&ClusterSnapshot) -> (Vec<ApiWrite>, Option<Duration>),
    mut report: impl FnMut(Passed<'_>),
    shutdown: impl Future<Output = ()>,
) {
    let mut source = Source::start(api, watch);
    let mut shutdown = pin!(shutdown);
    tokio::select! {
        () = source.wait_in_sync() => {}
        () = &mut shutdown => return,
    }
    let mut pause = RETRY.0;
    loop {
        let began = Instant::now();
        let (writes, again) = source.read(|snapshot, _| reconcile(snapshot));
        let mut applied = Vec::new();
        for write in &writes {
            let outcome = tokio::select! {
                o = api.run(write) => o,
                () = &mut shutdown => return,
            };
            let error = outcome.err();
            // The rest would fail alike, each after its own wait.
            let unreachable = error.as_ref().is_some_and(SourceError::is_transport);
            applied.push(Applied { write, error });
            if unreachable {
                break;
            }
        }
        let failed = applied.iter().any(|a| a.error.is_some());
        if !applied.is_empty() {
            report(Passed { applied, took: began.elapsed() });
        }
        let next = async {
            if failed {
                // Without the pause a failing write would spin on the changes that its successful neighbours make.
                tokio::time::sleep(pause).await;
            } else {
                // Whichever comes first.
                let _ = tokio::time::timeout(again.map_or(RESYNC, |a| a.min(RESYNC)), source.changed()).await;
                tokio::time::sleep(GATHER).await;
            }
        };
        tokio::select! {
            () = next => {}
            () = &mut shutdown => return,
        }
        pause = if failed { (pause * 2).min(RETRY.1) } else { RETRY.0 };
    }
}
