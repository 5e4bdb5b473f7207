//! What others have in nf_tables, as far as it can get in our way: read, never written.

use crate::nft::{Expr, Hook};

/// A protocol family's name and a table's, as `nft` writes them: `ip filter`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignTable {
    /// `ip`, `ip6`, `inet`, `bridge`, `netdev`, `arp`.
    pub family: &'static str,
    /// The table's name.
    pub name: String,
}

/// A chain of such a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChain {
    /// Its table.
    pub table: ForeignTable,
    /// Its name.
    pub name: String,
    /// Where the kernel calls it; `None` when only rules do.
    pub hook: Option<Hook>,
}

/// A rule of such a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// Its table.
    pub table: ForeignTable,
    /// Its chain.
    pub chain: String,
    /// What it does; an expression that is not ours to read is [`Expr::Other`].
    pub exprs: Vec<Expr>,
}

/// Everything of others in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Tables that are not ours.
    pub tables: Vec<ForeignTable>,
    /// Their chains that the kernel calls, and those with a name that was asked for.
    pub chains: Vec<ForeignChain>,
    /// The rules of tables that filter what is forwarded, chain by chain in order; empty where there are too many to read.
    pub rules: Vec<ForeignRule>,
    /// Tables of the older interface that iptables-legacy uses (`/proc/net/ip_tables_names`, `ip6_tables_names`).
    pub legacy: Vec<String>,
}
