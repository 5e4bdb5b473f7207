//! nf_tables objects as plain values (include/uapi/linux/netfilter/nf_tables.h).
//!
//! Registers are the 4-byte ones, [`Reg`] 0 to 15 (`NFT_REG32_00` ..). A value longer than 4 bytes takes consecutive
//! registers. Data is in network byte order where the packet's is, host order where the kernel's is (marks).

mod effects;

use std::fmt;

pub use effects::{DataRef, Nft, Piece};

/// A table of ours: family inet, name `seaway` or `seaway-*`. The only constructor checks the name, so no other table
/// can be named in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName(Box<str>);

impl TableName {
    /// Recognises a table name of ours.
    #[must_use]
    pub fn recognise(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("seaway")?;
        let ok = rest.is_empty()
            || (rest.len() <= 24
                && rest.strip_prefix('-').is_some_and(|r| {
                    !r.is_empty() && r.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                }));
        ok.then(|| Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole table, as dumped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// `NFT_TABLE_F_*`.
    pub flags: u32,
    /// Chains, in the kernel's order.
    pub chains: Vec<Chain>,
    /// Sets and maps, without elements. Anonymous sets of others' making are in, with their generated names.
    pub sets: Vec<Set>,
    /// Elements by set name; of a dynamic set none.
    pub elements: Vec<(String, Vec<Element>)>,
    /// Rules, in order within each chain.
    pub rules: Vec<Rule>,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftRequest {
    /// Make the table; no error when it is there.
    TableAdd(TableName),
    /// Delete the table and all in it; ENOENT when it is not there.
    TableDel(TableName),
    /// Make a chain; no error when the same is there.
    ChainAdd(TableName, Chain),
    /// Delete a chain and its rules; EBUSY when a rule elsewhere or an element refers to it.
    ChainDel(TableName, String),
    /// Delete the rules of a chain.
    ChainFlush(TableName, String),
    /// Make a set or map; no error when the same is there.
    SetAdd(TableName, Set),
    /// Delete a set that nothing refers to.
    SetDel(TableName, String),
    /// Add elements; no error for those that are there with the same data, EEXIST for another.
    ElementsAdd(TableName, String, Vec<Element>),
    /// Delete elements; ENOENT when one is not there.
    ElementsDel(TableName, String, Vec<Element>),
    /// Delete all elements.
    SetFlush(TableName, String),
    /// Append a rule to its chain; `handle` is ignored.
    RuleAdd(TableName, Rule),
    /// Delete a rule by chain and handle.
    RuleDel(TableName, String, u64),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, at most 255 bytes (`NFT_NAME_MAXLEN` with the final NUL).
    pub name: String,
    /// Where it hangs; `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Chain type.
    pub kind: ChainKind,
    /// Hook point.
    pub point: HookPoint,
    /// Priority: -100 dstnat, 0 filter, 100 srcnat.
    pub priority: i32,
    /// Policy drop instead of accept.
    pub drop: bool,
}

/// `NFTA_CHAIN_TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// filter
    Filter,
    /// nat
    Nat,
    /// route
    Route,
}

/// `NF_INET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum HookPoint {
    /// prerouting
    Prerouting = 0,
    /// input
    Input = 1,
    /// forward
    Forward = 2,
    /// output
    Output = 3,
    /// postrouting
    Postrouting = 4,
}

/// A set, map or verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, at most 255 bytes (`NFT_NAME_MAXLEN` with the final NUL).
    pub name: String,
    /// The fields of a key, each padded to 4 bytes in elements. Several make a concatenation.
    pub key: Vec<DataType>,
    /// What an element maps to.
    pub data: Option<SetData>,
    /// `NFT_SET_INTERVAL`: elements are ranges (for concatenations: `NFT_SET_CONCAT`).
    pub interval: bool,
    /// A constant set: elements can only be added with it in its own transaction.
    pub constant: bool,
    /// Elements may have a timeout (`NFT_SET_TIMEOUT`).
    pub timeout: bool,
    /// Rules put elements in ([`Expr::Dynset`]), at most so many (`NFT_SET_EVAL` and `NFTA_SET_DESC_SIZE`).
    pub dynamic: Option<u32>,
}

impl Set {
    /// A plain set: no map, no ranges, open to elements, none of which times out.
    #[must_use]
    pub fn new(name: impl Into<String>, key: Vec<DataType>) -> Self {
        Self { name: name.into(), key, data: None, interval: false, constant: false, timeout: false, dynamic: None }
    }
}

/// What elements of a map map to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetData {
    /// A value; several fields make a concatenation.
    Value(Vec<DataType>),
    /// A verdict.
    Verdict,
}

/// The data types we use, with nft's own type ids (nftables `include/datatype.h`), so that `nft list` prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// ipv4_addr, 4 bytes (type id 7).
    Ipv4Addr,
    /// ipv6_addr, 16 bytes (8).
    Ipv6Addr,
    /// inet_proto, 1 byte (12).
    InetProto,
    /// inet_service, 2 bytes, network order (13).
    InetService,
    /// mark, 4 bytes, host order (19).
    Mark,
    /// ifname, 16 bytes (41).
    IfName,
    /// ether_addr, 6 bytes (9).
    EtherAddr,
}

impl DataType {
    /// Length in bytes, without padding.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Self::Ipv4Addr | Self::Mark => 4,
            Self::Ipv6Addr | Self::IfName => 16,
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::EtherAddr => 6,
        }
    }

    /// Never: every type has a length.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Length padded to whole registers.
    #[must_use]
    pub const fn padded(self) -> usize {
        self.len().div_ceil(4) * 4
    }

    /// nft's id of the type.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::IfName => 41,
        }
    }

    /// The type of nft's id.
    #[must_use]
    pub const fn from_id(id: u32) -> Option<Self> {
        match id {
            7 => Some(Self::Ipv4Addr),
            8 => Some(Self::Ipv6Addr),
            9 => Some(Self::EtherAddr),
            12 => Some(Self::InetProto),
            13 => Some(Self::InetService),
            19 => Some(Self::Mark),
            41 => Some(Self::IfName),
            _ => None,
        }
    }
}

/// A set element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Key bytes; in a concatenation each field padded to 4 bytes.
    pub key: Vec<u8>,
    /// For an interval: the last key of the range, inclusive, of the same length.
    pub key_end: Option<Vec<u8>>,
    /// What it maps to.
    pub data: Option<ElementData>,
    /// The comment, at most 127 bytes (`NFTNL_UDATA_SET_ELEM_COMMENT` in the user data, as nft writes it). It stays what
    /// it was when the element was made; it is no part of its identity.
    pub comment: Option<String>,
}

impl Element {
    /// A key that is no range, with what it maps to.
    #[must_use]
    pub fn new(key: Vec<u8>, data: Option<ElementData>) -> Self {
        Self { key, key_end: None, data, comment: None }
    }
}

/// What an element maps to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ElementData {
    /// Bytes; in a concatenation each field padded to 4 bytes.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// A verdict (`NFT_*`, `NF_*`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Accept in this chain's hook.
    Accept,
    /// Drop.
    Drop,
    /// Go on with the next rule.
    Continue,
    /// Back to the caller.
    Return,
    /// Call a chain.
    Jump(String),
    /// Go to a chain without coming back here.
    Goto(String),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain it is in.
    pub chain: String,
    /// The kernel's handle; 0 before it is there.
    pub handle: u64,
    /// Its expressions.
    pub exprs: Vec<Expr>,
    /// The comment, at most 128 bytes (`NFTNL_UDATA_RULE_COMMENT` in the user data, as nft writes it).
    pub comment: Option<String>,
}

/// A 4-byte register, 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reg(pub u8);

/// An expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Load packet metadata.
    Meta {
        /// What.
        key: MetaKey,
        /// Into.
        dreg: Reg,
    },
    /// Set the packet mark from a register.
    SetMark {
        /// From.
        sreg: Reg,
    },
    /// Load bytes of the packet.
    Payload {
        /// From which header.
        base: PayloadBase,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Into.
        dreg: Reg,
    },
    /// Go on only if the comparison holds.
    Cmp {
        /// Register.
        sreg: Reg,
        /// Comparison.
        op: CmpOp,
        /// With these bytes.
        data: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// From.
        sreg: Reg,
        /// Into.
        dreg: Reg,
        /// Mask; its length is the operation's.
        mask: Vec<u8>,
        /// Xor, of the same length.
        xor: Vec<u8>,
    },
    /// Look a key up; go on if it is there (or is not, if inverted), with its data in `dreg`.
    Lookup {
        /// Set name.
        set: String,
        /// Key.
        sreg: Reg,
        /// Where the data goes: a register, the verdict, or nothing for a plain set.
        into: LookupInto,
        /// Go on when the key is not there.
        invert: bool,
    },
    /// Load constant bytes.
    Immediate {
        /// Into.
        dreg: Reg,
        /// Bytes.
        data: Vec<u8>,
    },
    /// A verdict.
    Verdict(Verdict),
    /// A number: `offset + random % modulus`, or counting up, host order.
    Numgen {
        /// Into.
        dreg: Reg,
        /// Modulus, not zero.
        modulus: u32,
        /// Added.
        offset: u32,
        /// Random instead of incremental.
        random: bool,
    },
    /// `fib daddr type`: the kind of route to the destination, into `dreg` as a u32 (`RTN_LOCAL` is 2).
    FibDaddrType {
        /// Into.
        dreg: Reg,
    },
    /// Load a fact of the connection.
    Ct {
        /// What.
        key: CtKey,
        /// Into.
        dreg: Reg,
    },
    /// Set the connection's mark.
    SetCtMark {
        /// From.
        sreg: Reg,
    },
    /// Translate the source or destination.
    Nat {
        /// Destination instead of source.
        dnat: bool,
        /// IPv6 instead of IPv4.
        v6: bool,
        /// Address.
        addr: Option<Reg>,
        /// Port, network order.
        port: Option<Reg>,
        /// `NF_NAT_RANGE_*` beyond what the registers imply (`PROTO_RANDOM_FULLY` is 16).
        flags: u32,
    },
    /// Masquerade; flags as in `Nat`.
    Masquerade {
        /// Flags.
        flags: u32,
    },
    /// Put an element into a dynamic set, or take one out. Goes on, unless an element was to be put into a full set.
    Dynset {
        /// Set name.
        set: String,
        /// What to do.
        op: DynsetOp,
        /// Key.
        key: Reg,
        /// What the key maps to; set exactly for maps, also when deleting.
        data: Option<Reg>,
        /// Lifetime in milliseconds; that of the set when absent.
        timeout: Option<u64>,
    },
    /// Tell the sender.
    Reject(RejectWith),
    /// Count packets and bytes; the numbers are not part of the rule's identity.
    Counter,
    /// Leave the packet's connection untracked; only before tracking looks at it (priority below -200).
    Notrack,
    /// An expression we never write, by name. Makes the rule differ from any of ours.
    Other(String),
}

/// `NFT_DYNSET_OP_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DynsetOp {
    /// Put the element in if it is not there; if it is, only its lifetime begins anew.
    Update = 1,
    /// Take it out if it is there (Linux 5.4).
    Delete = 2,
}

/// Where a lookup's data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupInto {
    /// A plain set: nowhere.
    Nothing,
    /// A register.
    Reg(Reg),
    /// It is the verdict (`NFT_REG_VERDICT`).
    Verdict,
}

/// `NFT_META_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Packet mark.
    Mark,
    /// NFPROTO of the packet (1 byte: 2 IPv4, 10 IPv6).
    NfProto,
    /// Transport protocol (1 byte).
    L4Proto,
    /// Incoming interface's name (16 bytes).
    IifName,
    /// Outgoing interface's name (16 bytes).
    OifName,
    /// Incoming interface's index, host order; 0 for a packet that this machine made, in output and postrouting.
    Iif,
}

/// `NFT_CT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// State bits (`NF_CT_STATE_BIT`: new 8, established 2, related 4, invalid 1).
    State,
    /// Status bits (`IPS_*`: SRC_NAT 16, DST_NAT 32).
    Status,
    /// Mark.
    Mark,
    /// The destination that the first packet had before translation, 4 bytes (`NFT_CT_DST_IP`, direction original).
    OriginalDaddr4,
    /// The same of IPv6, 16 bytes (`NFT_CT_DST_IP6`, direction original).
    OriginalDaddr6,
    /// Its destination port, 2 bytes in network order (`NFT_CT_PROTO_DST`, direction original).
    OriginalDport,
}

/// `NFT_PAYLOAD_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// Network header.
    Network,
    /// Transport header.
    Transport,
}

/// `NFT_CMP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// ==
    Eq,
    /// !=
    Neq,
    /// <
    Lt,
    /// <=
    Lte,
    /// >
    Gt,
    /// >=
    Gte,
}

/// How a reject tells the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectWith {
    /// TCP reset.
    TcpReset,
    /// ICMP or ICMPv6 port unreachable, by the packet's family (`NFT_REJECT_ICMPX_UNREACH`, port).
    PortUnreachable,
}

impl fmt::Display for NftRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableAdd(t) => write!(f, "add table inet {t}"),
            Self::TableDel(t) => write!(f, "delete table inet {t}"),
            Self::ChainAdd(t, c) => write!(f, "add chain inet {t} {}", c.name),
            Self::ChainDel(t, c) => write!(f, "delete chain inet {t} {c}"),
            Self::ChainFlush(t, c) => write!(f, "flush chain inet {t} {c}"),
            Self::SetAdd(t, s) => {
                write!(f, "add {} inet {t} {}", if s.data.is_some() { "map" } else { "set" }, s.name)
            }
            Self::SetDel(t, s) => write!(f, "delete set inet {t} {s}"),
            Self::ElementsAdd(t, s, e) => write!(f, "add element inet {t} {s} ({})", e.len()),
            Self::ElementsDel(t, s, e) => write!(f, "delete element inet {t} {s} ({})", e.len()),
            Self::SetFlush(t, s) => write!(f, "flush set inet {t} {s}"),
            Self::RuleAdd(t, r) => {
                write!(f, "add rule inet {t} {} {}", r.chain, r.comment.as_deref().unwrap_or("(no comment)"))
            }
            Self::RuleDel(t, c, h) => write!(f, "delete rule inet {t} {c} handle {h}"),
        }
    }
}
