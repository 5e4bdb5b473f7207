//! Owns: metrics, health texts, log set-up, and the one table of settings with the page generated from it.
//! Never does: listen, spawn, read a clock for a decision; sees no cluster object and no kernel object.
//! Tested by: unit tests here; `docs/settings.md` is a golden of the table.

mod health;
mod log;
mod metrics;
mod page;
mod process;
pub mod settings;

pub use health::{Answer, Health, answer};
pub use log::{LogError, LogFormat, init, reconcile_line};
pub use metrics::{Build, Kind, Metrics, NodeCounts, Outcome, Plane};
pub use page::settings_page;
pub use process::{Process, parse_statm};
