//! Owns: the way to a Kubernetes API, ours or a real one: connection, list-then-watch into one slim [`ClusterSnapshot`], writes; the same of flannel's layout in etcd; and the offline reader of manifests.
//! Never does: decide what an object means (that is `resolve`) or what to write (that is `controller`).
//! Tested by: tables of bad manifests; `tests/` against the embedded API server: in sync, relist after 410, server killed and started again, writes; a flannel network against a real etcd.

mod api;
mod connect;
mod controllers;
mod denied;
mod error;
pub mod etcd;
mod events;
pub mod flannel;
mod folder;
mod leader;
mod watch;

pub use api::{Api, ApiResource, now, now_micros};
pub use connect::{Server, Target, connect, connect_at};
pub use controllers::{Applied, Passed, run_controllers};
pub use denied::{Denials, Denied};
pub use error::SourceError;
pub use events::{Note, Recorder};
pub use folder::{FileProblem, Folder, FolderError, read_dir, read_text};
pub use leader::{Leadership, lead};
pub use resolve::ClusterSnapshot;
pub use watch::{InSync, Reader, Seen, Source, WatchConfig};
