//! The image: one nf_tables table as a plain value.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernel_api::nft::{DataType, Expr, Hook, SetData, TableName, Verdict};

use crate::elements::{Element, Elements};

/// The table `inet seaway`, or that it is not there.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Image {
    /// Whether the table exists. Without it everything else is empty: the image of a node where this mode is off.
    pub present: bool,
    /// `NFT_TABLE_F_*`; ours has none. A dormant table (1) does nothing.
    pub flags: u32,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Sets, maps and verdict maps by name.
    pub sets: BTreeMap<String, Set>,
}

/// A chain and its rules in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chain {
    /// Where it hangs; `None` when it is only jumped to.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule, without the kernel's handle.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its expressions.
    pub exprs: Vec<Expr>,
    /// Its comment.
    pub comment: Option<String>,
}

/// A set and its elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Set {
    /// What its keys and values are. Shared with the ops on its elements, which print by it.
    pub shape: Arc<Shape>,
    /// The elements.
    pub elements: Elements,
}

/// The types of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Fields of a key.
    pub key: Vec<DataType>,
    /// What a key maps to.
    pub data: Option<SetData>,
    /// Keys are ranges.
    pub interval: bool,
    /// Elements may have a timeout.
    pub timeout: bool,
    /// A constant set; ours never is.
    pub constant: bool,
    /// Rules put elements in, at most so many: state that the datapath makes itself. The image of a node has none of
    /// them, whatever there are.
    pub dynamic: Option<u32>,
}

/// A key; of an interval set, a range.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The key, or the first of the range.
    pub first: Box<[u8]>,
    /// The last of the range, inclusive; set exactly in interval sets.
    pub last: Option<Box<[u8]>>,
}

/// What a key maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Nothing: a plain set.
    Member,
    /// Bytes.
    Value(Box<[u8]>),
    /// A verdict.
    Verdict(Verdict),
}

impl Image {
    /// The number of elements of all sets.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.sets.values().map(|s| s.elements.len()).sum()
    }

    /// The data of a key in a set that has no ranges.
    pub(crate) fn get(&self, set: &str, key: &[u8]) -> Option<Element<'_>> {
        self.sets.get(set)?.elements.get(key)
    }
}

/// The one table of this plane.
#[must_use]
pub fn table() -> TableName {
    // The constructor accepts exactly this name; there is no other branch to take.
    TableName::recognise("seaway").unwrap_or_else(|| unreachable!("seaway is a table of ours"))
}
