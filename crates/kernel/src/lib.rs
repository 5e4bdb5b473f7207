//! Owns: the effects. [`Rt`] (rtnetlink), [`Nftables`], [`Ct`], [`Sysctls`], [`Netns`], notifications, processes.
//! Never does: decide. It is synchronous, knows no cluster object, and runs what it is given.
//! Tested by: unit and property tests of the codecs, and tests/ as root in fresh network namespaces.

mod ct;
pub mod fuzz;
#[cfg(all(test, target_endian = "little"))]
mod golden;
mod machine;
pub mod monitor;
mod netlink;
pub mod netns;
mod nft;
pub mod packet;
mod probe;
pub mod process;
mod rt;
pub mod spawn;
mod sys;
mod sysctl;

pub use ct::Ct;
pub use machine::Linux;
pub use monitor::{Changed, DirWatch, Monitor, poll};
pub use netns::Netns;
pub use nft::Nftables;
pub use probe::missing_features;
pub use process::{kill_pid, lock_file, processes_in_netns, release_memory};
pub use rt::Rt;
pub use spawn::Spawn;
pub use sysctl::{Sysctls, set_proc_sys};
