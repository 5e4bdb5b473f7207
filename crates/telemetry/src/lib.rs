//! Owns: metrics, health texts, log set-up, and the one table of settings with the page generated from it.
//! Never does: listen, spawn, read a clock for a decision; sees no cluster object and no kernel object.
//! Tested by: unit tests here; `docs/settings.md` and `docs/metrics.md` are goldens of the tables.

mod announcing;
mod controllers;
mod health;
mod log;
mod metrics;
mod page;
mod process;
mod proxy;
pub mod settings;

pub use announcing::Announcing;
pub use controllers::{Controllers, Write};
pub use health::{Answer, Health, answer};
pub use log::{LogError, LogFormat, PassLine, controllers_line, counted, init, reconcile_line};
pub use metrics::{Build, Kind, Metrics, NodeCounts, Outcome, Plane};
pub use page::{metrics_page, settings_page};
pub use process::{Process, parse_statm};
pub use proxy::{IpFamily, LocalPolicy, Page, Proxy, Synced, Verdict};
