//! What the agent says of its node to plugins whose configuration somebody else wrote: `node.json` beside the journal.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use types::Cidr;

use crate::{Code, Error};

/// The file's name.
pub const FILE: &str = "node.json";
/// The file's format.
const FORMAT: u32 = 1;
/// A file of that size is none of the agent's.
const MAX_BYTES: u64 = 1 << 20;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Format, 1.
    version: u32,
    /// The node's own pod ranges, at most one per family, IPv4 first; `spec.podCIDRs`.
    pub ranges: Vec<Cidr>,
    /// Pods' addresses come from address pools instead ([`ipam::Pools`]).
    pub pools: bool,
    /// The MTU of pods' interfaces, in bytes.
    pub mtu: u32,
}

impl Node {
    /// A node's.
    #[must_use]
    pub fn new(mut ranges: Vec<Cidr>, pools: bool, mtu: u32) -> Self {
        ranges.sort_by_key(|r| r.addr().is_ipv6());
        Self { version: FORMAT, ranges, pools, mtu }
    }

    /// The file's text.
    ///
    /// # Errors
    /// None that a value of this type has; it is serde's.
    pub fn text(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// Reads the file of a folder.
    ///
    /// # Errors
    /// Code 11 when there is none yet, code 5 when it cannot be read or is not what an agent of this version writes.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let damaged = |e: String| Error::new(Code::Io, format!("{}: {e}", path.display()));
        let file = match std::fs::File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let says = "the agent has not said which pod ranges the node has: is `seaway agent` running, and does its \
                            /readyz answer?";
                return Err(Error::new(Code::TryAgainLater, format!("{}: {says}", path.display())));
            }
            r => r.map_err(|e| damaged(e.to_string()))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| damaged(e.to_string()))?;
        Self::parse(&bytes).map_err(damaged)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Why they are not what an agent of this version writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let node: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if node.version == FORMAT {
            return Ok(node);
        }
        Err(format!("it is of format {}, this binary reads format {FORMAT}", node.version))
    }
}
