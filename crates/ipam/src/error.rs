//! What can go wrong, each with the object and the fix.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use types::Cidr;

use crate::Key;

/// Why the journal or an allocation failed.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// A file operation failed; nothing was changed.
    #[error("{what} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried, e.g. `append to`.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A line of the journal is damaged and is not the last, so a crash cannot be the cause.
    #[error(
        "{} is damaged at line {line}, byte {offset}: {why}. Intact records are kept: `seaway ipam check` lists them, \
         `seaway ipam check --repair` keeps them and sets the damaged file aside; or move the file away to start empty",
        file.display()
    )]
    Corrupt {
        /// The journal.
        file: PathBuf,
        /// Line, from one.
        line: usize,
        /// Byte at which the line begins.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The journal is larger than we ever make it.
    #[error("{} has {size} bytes, more than the {max} a journal may have: move the file away to start empty", file.display())]
    TooLarge {
        /// The journal.
        file: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// No address is free.
    #[error(
        "{of} has no free address: {used} of {usable} are in use; {}",
        if wait.is_empty() { "delete pods, run `seaway ipam check`, or give the node more addresses" } else { wait.as_str() }
    )]
    Exhausted {
        /// Range or pools.
        of: String,
        /// Addresses of it in use.
        used: u128,
        /// Addresses of it that this node may give out.
        usable: u128,
        /// What is under way; empty when nothing is.
        wait: String,
    },
    /// A requested address is none of this node's so far.
    #[error("requested address {addr} is not this node's yet: {wait}")]
    NotYet {
        /// The address.
        addr: IpAddr,
        /// What is under way.
        wait: String,
    },
    /// The agent's list of pools cannot be used.
    #[error("{} is not what this version's agent writes: {why}; restart the agent", file.display())]
    Pools {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The agent has not said what may be given out.
    #[error("{} does not exist: the agent has not yet said which addresses this node may give out; is it running?", file.display())]
    NoPools {
        /// The file.
        file: PathBuf,
    },
    /// Two ranges of one family.
    #[error("ranges {a} and {b} are both {}: give at most one range per family", a.family())]
    TwoRanges {
        /// One.
        a: Cidr,
        /// The other.
        b: Cidr,
    },
    /// A requested address is in none of the ranges.
    #[error("requested address {addr} lies in none of this node's ranges ({ranges})")]
    OutOfRange {
        /// The address.
        addr: IpAddr,
        /// The ranges, comma separated.
        ranges: String,
    },
    /// A requested address is never given out.
    #[error(
        "requested address {addr} is reserved in {range}: the network address, the first host and the IPv4 broadcast \
         address are never given to pods"
    )]
    Reserved {
        /// The address.
        addr: IpAddr,
        /// Its range.
        range: Cidr,
    },
    /// A requested address belongs to another.
    #[error("requested address {addr} is in use by {by}")]
    Taken {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        by: Key,
    },
    /// Two requested addresses of one family.
    #[error("requested addresses {a} and {b} are of one family: request at most one per family")]
    TwoRequested {
        /// One.
        a: IpAddr,
        /// The other.
        b: IpAddr,
    },
    /// Two attachments whose ids hash to one link name.
    #[error("host link {link} already belongs to {by}: the two container ids hash alike; recreate the newer container")]
    LinkClash {
        /// The host link.
        link: String,
        /// Who has it.
        by: Key,
    },
}

impl IpamError {
    pub(crate) fn io(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.to_owned(), source: source.into() }
    }

    /// Whether no space or no address was left, so that a later try may succeed.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::NotYet { .. } | Self::NoPools { .. })
    }
}

/// The fix that an error number suggests.
fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space there",
        io::ErrorKind::ReadOnlyFilesystem => "; remount it writable or set dataDir to a directory that is",
        io::ErrorKind::PermissionDenied => "; run as root or set dataDir to a directory that is writable",
        io::ErrorKind::NotADirectory => "; dataDir must be a directory",
        _ => "",
    }
}
