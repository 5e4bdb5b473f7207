//! Owns: hosts, links, pods, probes and captures of a cluster on one machine, as network namespaces and processes.
//! Never does: touch the host's own namespace, or decide anything that the agent, the API server or a controller does.
//! Tested by: unit tests of each pure part, and tests/ that bring real labs up and take them down.

pub mod api;
pub mod cni;
pub mod dns_files;
pub mod down;
pub mod echo;
mod error;
pub mod kubelet;
pub mod manifest;
pub mod matrix;
pub mod name;
pub mod ns;
pub mod pod_env;
pub mod pods;
pub mod prober;
pub mod procs;
pub mod progress;
pub mod record;
pub mod runner;
pub mod shim;
pub mod topology;
pub mod up;
pub mod view;
pub mod wire;

pub use error::{Doing, LabError};
pub use name::{LabDir, LabName, NodeDir};
pub use record::{Lab, choose, list, netns_path, outside_addresses};
