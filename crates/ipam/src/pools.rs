//! What the agent lets the plugin give out: `pools.json` beside the journal. The plugin reads it while it holds the
//! journal's lock; so an agent that has taken an address out of the file and then, under the lock, does not find it in
//! the journal knows that nobody here has it or will get it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use types::{Cidr, Family};

use crate::IpamError;
use crate::alloc::{Set, Space};
use crate::there::IfThere;

/// The file's name.
pub const POOLS: &str = "pools.json";
/// The file's format.
const FORMAT: u32 = 1;
/// A file of that size is none of the agent's.
const MAX_BYTES: u64 = 8 << 20;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pools {
    /// Format, 1.
    version: u32,
    /// What may be given, by pool.
    pub pools: BTreeMap<Box<str>, PoolRanges>,
    /// What of it may not.
    pub except: Vec<Cidr>,
    /// Pools of attachments that name none, in order; of each family the first that has an address.
    pub default: Vec<Box<str>>,
}

/// What may be given of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRanges {
    /// The pool's whole range; none of its addresses may be given but those of `ranges`.
    pub cidr: Cidr,
    /// This node's blocks, and borrowed addresses as host ranges.
    pub ranges: Vec<Cidr>,
    /// What to wait for when all are used, for a person; empty: nothing is under way.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub wait: Box<str>,
    /// The network outside that the range is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,
}

/// A network outside the cluster, for interfaces that are stations of it themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// What its stations take for on-link.
    pub subnet: Cidr,
    /// Its router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

impl Default for Pools {
    fn default() -> Self {
        Self { version: FORMAT, pools: BTreeMap::new(), except: Vec::new(), default: Vec::new() }
    }
}

impl Pools {
    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not what an agent of this version writes.
    pub fn read(path: &Path) -> Result<Option<Self>, IpamError> {
        let bad = |why: String| IpamError::Pools { file: path.to_owned(), why };
        let opened = File::open(path).if_there().map_err(|e| IpamError::io("open", path, e))?;
        let Some(file) = opened else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| IpamError::io("read", path, e))?;
        Self::parse(&bytes).map(Some).map_err(bad)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// Why they are not what an agent of this version writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("it has more than {MAX_BYTES} bytes"));
        }
        let pools: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if pools.version != FORMAT {
            return Err(format!("it is of format {}, this binary reads format {FORMAT}", pools.version));
        }
        Ok(pools)
    }

    /// The network outside that an address is of, if it is of a pool that has one.
    #[must_use]
    pub fn underlay(&self, addr: IpAddr) -> Option<Underlay> {
        self.pools.values().find(|p| p.cidr.contains(addr)).and_then(|p| p.underlay)
    }

    /// What an attachment that asks for the pools of these names, or for none, may be given.
    pub(crate) fn space(self, names: &[Box<str>]) -> Space {
        let names = if names.is_empty() { &self.default } else { names };
        let mut sets = Vec::new();
        for name in names {
            match self.pools.get(name) {
                Some(p) => sets.push(Set::whole(format!("IPPool {name}"), p.cidr.family(), &p.ranges, &p.wait)),
                // Its family is not known: whoever asks for it gets nothing else instead.
                None => sets.push(Set::none(format!("IPPool {name}"), Family::V4)),
            }
        }
        Space { sets, except: self.except }
    }
}
