//! One change of one object, and the line a person reads of it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use intent::Endpoint;
use kernel_api::nft::Hook;
use types::Proto;

use crate::image::{Data, Key, Rule, Shape};
use crate::render;

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Make the table.
    TableAdd,
    /// Delete the table and all in it.
    TableDel,
    /// Make a chain.
    ChainAdd(String, Option<Hook>),
    /// Delete the rules of a chain.
    ChainFlush(String),
    /// Delete an empty chain.
    ChainDel(String),
    /// Append a rule to a chain.
    RuleAdd(String, Rule, RuleText),
    /// Make a set.
    SetAdd(String, Arc<Shape>),
    /// Delete a set.
    SetDel(String),
    /// Add an element to a set.
    ElementAdd(Arc<str>, Arc<Shape>, Key, Data),
    /// Delete an element of a set.
    ElementDel(Arc<str>, Arc<Shape>, Key),
    /// Delete tracked connections, after the rules no longer make such.
    Forget(Forget),
}

/// A rule as text, made where the types of the sets it names are known.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleText(pub(crate) String);

/// Tracked connections to one address and port that another than `keep` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// UDP or SCTP: TCP notices by itself, and its flows to living endpoints are never touched.
    pub proto: Proto,
    /// What the client sent to.
    pub to: (IpAddr, u16),
    /// The endpoints it may stay with. A flow made before anything was translated is answered by `to` itself and goes.
    pub keep: BTreeSet<Endpoint>,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableAdd => f.write_str("add table inet seaway"),
            Self::TableDel => f.write_str("delete table inet seaway"),
            Self::ChainAdd(name, None) => write!(f, "add chain inet seaway {name}"),
            Self::ChainAdd(name, Some(h)) => write!(f, "add chain inet seaway {name} {{ {} }}", render::hook(*h)),
            Self::ChainFlush(name) => write!(f, "flush chain inet seaway {name}"),
            Self::ChainDel(name) => write!(f, "delete chain inet seaway {name}"),
            Self::RuleAdd(chain, _, text) => write!(f, "add rule inet seaway {chain} {}", text.0),
            Self::SetAdd(name, shape) => {
                write!(f, "add {} inet seaway {name} {{ type {};", render::kind(shape), render::types(shape))?;
                if let Some(size) = shape.dynamic {
                    write!(f, " size {size};")?;
                }
                match render::flags(shape) {
                    none if none.is_empty() => f.write_str(" }"),
                    flags => write!(f, " flags {flags}; }}"),
                }
            }
            Self::SetDel(name) => write!(f, "delete set inet seaway {name}"),
            Self::ElementAdd(set, shape, key, data) => {
                write!(f, "add element inet seaway {set} {{ {} }}", render::element(shape, key, data))
            }
            Self::ElementDel(set, shape, key) => {
                write!(f, "delete element inet seaway {set} {{ {} }}", render::element_key(shape, key))
            }
            Self::Forget(Forget { proto, to: (addr, port), keep }) => {
                let to = SocketAddr::new(*addr, *port);
                write!(f, "forget {proto} connections to {to}")?;
                if keep.is_empty() {
                    return Ok(());
                }
                let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
                write!(f, " that are not answered by {}", keep.join(" or "))
            }
        }
    }
}
