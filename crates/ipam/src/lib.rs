//! Owns: which address on this node belongs to which container interface: the [`Journal`] of attachments that
//! survives kill -9, allocation from per-node ranges, and the per-attachment lock; and [`IfThere`], for files that may
//! be gone.
//! Never does: netlink, the CNI protocol, or anything that knows the cluster.
//! Tested by: the properties in tests/ (no address twice; a kill at any byte leaves the state of a prefix) and the
//! full-disk, read-only and corruption cases there; kill -9 rounds of the real binary in bins/seaway-cni/tests.
//!
//! # What is on disk
//! A directory (by default [`DEFAULT_DIR`]) with four things:
//! - `journal`: one record per line, `KIND CRC JSON`, appended. `H` is the header (always first: format version, boot
//!   id), `A` an attachment added, `D` one removed, `X` an `A` that was removed in place because the disk had no room
//!   for a `D`, `L` the addresses given out last (after a compaction). The CRC is CRC-32 (IEEE 802.3) of kind and JSON.
//! - `lock`: an empty file; `flock` on it guards the journal. Locks die with their process.
//! - `index`: where the journal stood some lines ago; a copy, rewritten every few lines, that may go at any time.
//! - `busy`: an empty file; a byte of it is locked for each attachment that is being worked on right now.
//!
//! # What survives what
//! A record is one `write`; kill -9 cannot tear what the kernel has taken, and the page cache outlives the process, so
//! nothing is synced to the disk. A write cut short leaves a last line without its newline: the next to lock the
//! journal drops it. After a reboot or power loss no network namespace of before lives, so no record means anything:
//! the header's boot id (`/proc/sys/kernel/random/boot_id`) differs and the journal starts anew. A line that is
//! damaged while later lines stand is never skipped: [`IpamError::Corrupt`] says where, [`check`] lists what is intact
//! and [`repair`] keeps it.

mod alloc;
mod check;
mod error;
mod extras;
mod frame;
pub mod fuzz;
mod index;
mod journal;
mod lock;
mod pools;
mod record;
mod state;
mod there;

pub use alloc::{Usage, usable};
pub use check::{Fault, Report, check, repair};
pub use error::IpamError;
pub use extras::{Limits, PortMapping, Rate, Scope};
pub use journal::{Ask, Journal, Request, boot_id, find, parse, read, read_settled};
pub use lock::KeyLock;
pub use pools::{POOLS, PoolRanges, Pools, Underlay};
pub use record::{Delegate, Key, PodRef, Record};
pub use there::IfThere;

/// Where the journal is unless the configuration says otherwise. On a tmpfs on every distribution with systemd.
pub const DEFAULT_DIR: &str = "/run/seaway/ipam";
