//! What a chain of others does to the first packet between two pods of this node: followed rule by rule, as far as the rules
//! can be read. What a rule asks that cannot be told from here, it may find or not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kernel_api::foreign::{ForeignChain, Ruleset};
use kernel_api::nft::{CmpOp, CtKey, Expr, MetaKey, PayloadBase, Reg, Verdict};
use types::{Family, POD_LINK_PREFIX, Proto};

/// Chains within chains that are followed (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// Rules that are followed for one packet.
const STEPS: usize = 20_000;
/// `NF_CT_STATE_BIT` of a new connection, in host order.
const NEW: u32 = 8;

/// What may become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fate {
    /// It may go on.
    pub passes: bool,
    /// It may be dropped or rejected by a rule.
    pub ends: bool,
    /// It may come to the end of the chain, where the policy says.
    pub falls: bool,
}

/// Whether a rule matches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Maybe,
}

/// What a register holds.
#[derive(Clone)]
enum Value {
    Bytes(Vec<u8>),
    /// The state of its connection, which is new.
    State,
    /// The name of a pod's link on this node, whichever.
    Link,
    Unknown,
}

/// What `chain` makes of a new TCP connection from one pod to another.
pub(super) fn fate(rules: &Ruleset, chain: &ForeignChain, from: IpAddr, to: IpAddr) -> Fate {
    let mut by_chain: BTreeMap<&str, Vec<&[Expr]>> = BTreeMap::new();
    for r in rules.rules.iter().filter(|r| r.table == chain.table) {
        by_chain.entry(&r.chain).or_default().push(&r.exprs);
    }
    let mut walk = Walk { chains: &by_chain, header: header(from, to), family: Family::of(from), steps: 0 };
    walk.chain(&chain.name, 0)
}

/// The network header, as far as it is known.
fn header(from: IpAddr, to: IpAddr) -> Vec<Option<u8>> {
    let (len, at, proto) = if from.is_ipv4() { (20, 12, 9) } else { (40, 8, 6) };
    let mut out = vec![None; len];
    let octets = |a: IpAddr| match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let both = octets(from).into_iter().chain(octets(to));
    out.iter_mut().skip(at).zip(both).for_each(|(o, b)| *o = Some(b));
    if let Some(p) = out.get_mut(proto) {
        *p = Some(Proto::Tcp.number());
    }
    out
}

struct Walk<'a> {
    chains: &'a BTreeMap<&'a str, Vec<&'a [Expr]>>,
    header: Vec<Option<u8>>,
    family: Family,
    steps: usize,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> Fate {
        let mut fate = Fate::default();
        if depth > DEPTH {
            return Fate { falls: true, ..fate };
        }
        for exprs in self.chains.get(name).into_iter().flatten() {
            self.steps += 1;
            if self.steps > STEPS {
                // Too much to follow: anything.
                return Fate { passes: true, ends: true, falls: true };
            }
            let (found, verdict) = self.rule(exprs);
            let Some(verdict) = verdict.filter(|_| found != Match::No) else { continue };
            let returns = match verdict {
                End::Passes => {
                    fate.passes = true;
                    false
                }
                End::Ends => {
                    fate.ends = true;
                    false
                }
                End::Returns => {
                    fate.falls = true;
                    false
                }
                End::Jump(to) => {
                    let sub = self.chain(&to, depth + 1);
                    fate.passes |= sub.passes;
                    fate.ends |= sub.ends;
                    sub.falls
                }
                End::Goto(to) => {
                    let sub = self.chain(&to, depth + 1);
                    fate.passes |= sub.passes;
                    fate.ends |= sub.ends;
                    fate.falls |= sub.falls;
                    false
                }
            };
            if found == Match::Yes && !returns {
                return fate;
            }
        }
        fate.falls = true;
        fate
    }

    /// Whether a rule matches, and its verdict.
    fn rule(&self, exprs: &[Expr]) -> (Match, Option<End>) {
        let mut regs: BTreeMap<u8, Value> = BTreeMap::new();
        let mut found = Match::Yes;
        for e in exprs {
            match e {
                Expr::Meta { key, dreg } => {
                    regs.insert(dreg.0, self.meta(*key));
                }
                Expr::Payload { base, offset, len, dreg } => {
                    regs.insert(dreg.0, self.payload(*base, *offset as usize, *len as usize));
                }
                Expr::Ct { key: CtKey::State, dreg } => {
                    regs.insert(dreg.0, Value::State);
                }
                // It is from pod to pod as it is: nobody has translated it.
                Expr::Ct { key: CtKey::Status, dreg } => {
                    regs.insert(dreg.0, Value::Bytes(vec![0; 4]));
                }
                // Who lists states lists those of connections that were let through before, or of none.
                Expr::Lookup { sreg, .. } if matches!(value(&regs, *sreg), Value::State) => return (Match::No, None),
                Expr::Ct { dreg, .. } | Expr::FibDaddrType { dreg } | Expr::Numgen { dreg, .. } => {
                    regs.insert(dreg.0, Value::Unknown);
                }
                Expr::Immediate { dreg, data } => {
                    regs.insert(dreg.0, Value::Bytes(data.clone()));
                }
                Expr::Bitwise { sreg, dreg, mask, xor } => {
                    let value = match plain(value(&regs, *sreg)) {
                        Value::Bytes(b) => {
                            Value::Bytes(b.iter().zip(mask).zip(xor).map(|((b, m), x)| b & m ^ x).collect())
                        }
                        _ => Value::Unknown,
                    };
                    regs.insert(dreg.0, value);
                }
                Expr::Cmp { sreg, op, data } => match compare(&plain(value(&regs, *sreg)), *op, data) {
                    Match::Yes => {}
                    Match::No => return (Match::No, None),
                    Match::Maybe => found = Match::Maybe,
                },
                Expr::Verdict(v) => {
                    let end = match v {
                        Verdict::Accept => End::Passes,
                        Verdict::Drop => End::Ends,
                        Verdict::Return => End::Returns,
                        Verdict::Jump(to) => End::Jump(to.clone()),
                        Verdict::Goto(to) => End::Goto(to.clone()),
                        Verdict::Continue => return (found, None),
                    };
                    return (found, Some(end));
                }
                Expr::Reject(_) => return (found, Some(End::Ends)),
                Expr::Other(name) if name == "reject" => return (found, Some(End::Ends)),
                Expr::Other(name) if name == "log" => {}
                Expr::Counter | Expr::SetMark { .. } | Expr::SetCtMark { .. } | Expr::Notrack => {}
                // A set, a limit, a match or target of xtables: who knows; it may also be the verdict.
                _ => found = Match::Maybe,
            }
        }
        (found, None)
    }

    fn meta(&self, key: MetaKey) -> Value {
        match key {
            MetaKey::NfProto => Value::Bytes(vec![if self.family == Family::V4 { 2 } else { 10 }]),
            MetaKey::L4Proto => Value::Bytes(vec![Proto::Tcp.number()]),
            MetaKey::IifName | MetaKey::OifName => Value::Link,
            MetaKey::Mark | MetaKey::Iif => Value::Unknown,
        }
    }

    fn payload(&self, base: PayloadBase, offset: usize, len: usize) -> Value {
        let bytes = self.header.get(offset..offset.saturating_add(len));
        match bytes.filter(|_| base == PayloadBase::Network).map(|b| b.iter().copied().collect::<Option<Vec<u8>>>()) {
            Some(Some(b)) => Value::Bytes(b),
            _ => Value::Unknown,
        }
    }
}

enum End {
    Passes,
    Ends,
    Returns,
    Jump(String),
    Goto(String),
}

fn value(regs: &BTreeMap<u8, Value>, reg: Reg) -> Value {
    regs.get(&reg.0).cloned().unwrap_or(Value::Unknown)
}

/// The same with a connection's state as its bits.
fn plain(value: Value) -> Value {
    match value {
        Value::State => Value::Bytes(NEW.to_ne_bytes().to_vec()),
        other => other,
    }
}

fn compare(have: &Value, op: CmpOp, data: &[u8]) -> Match {
    let holds = match have {
        Value::Unknown | Value::State => return Match::Maybe,
        // A name of ours is compared with, or one that all of ours begin with; another is none of ours.
        Value::Link if data.starts_with(POD_LINK_PREFIX.as_bytes()) => return Match::Maybe,
        Value::Link => op == CmpOp::Neq,
        Value::Bytes(b) if b.len() < data.len() => return Match::Maybe,
        Value::Bytes(b) => {
            let b = b.get(..data.len()).unwrap_or(b);
            match op {
                CmpOp::Eq => b == data,
                CmpOp::Neq => b != data,
                CmpOp::Lt => b < data,
                CmpOp::Lte => b <= data,
                CmpOp::Gt => b > data,
                CmpOp::Gte => b >= data,
            }
        }
    };
    if holds { Match::Yes } else { Match::No }
}
