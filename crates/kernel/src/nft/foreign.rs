//! Tables and chains of others.

use std::cell::Cell;

use kernel_api::RequestError;
use kernel_api::foreign::{ForeignChain, ForeignRule, ForeignTable, Ruleset};
use kernel_api::nft::{ChainKind, HookPoint, TableName};

use super::consts::*;
use super::{Nftables, decode, encode, message_type};
use crate::netlink::{DUMP, Message, REQUEST, Refusal, cstr};

/// Families by number (include/uapi/linux/netfilter.h `NFPROTO_*`) and name.
const FAMILIES: [(u8, &str); 6] = [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];
/// Rules of others that are looked at; where there are more, none is.
const MOST_RULES: usize = 5000;

/// The name of a family.
fn family(m: &Message<'_>) -> Option<&'static str> {
    let number = m.payload.first()?;
    FAMILIES.iter().find(|(n, _)| n == number).map(|(_, name)| *name)
}

fn table(m: &Message<'_>, kind: u16) -> Option<ForeignTable> {
    let t = ForeignTable { family: family(m)?, name: decode::attrs(m).get(kind).and_then(cstr)?.to_owned() };
    let ours = t.family == "inet" && TableName::recognise(&t.name).is_some();
    (!ours).then_some(t)
}

/// One of others' tables.
pub(crate) fn foreign_table(m: &Message<'_>) -> Option<ForeignTable> {
    if m.kind == message_type(NEWTABLE) { table(m, TABLE_NAME) } else { None }
}

/// One of others' chains: those that the kernel calls, and those of these names.
pub(crate) fn foreign_chain(m: &Message<'_>, names: &[&str]) -> Option<ForeignChain> {
    if m.kind != message_type(NEWCHAIN) {
        return None;
    }
    let table = table(m, CHAIN_TABLE)?;
    let chain = decode::chain(m)?;
    let asked = chain.hook.is_some() || names.contains(&chain.name.as_str());
    asked.then_some(ForeignChain { table, name: chain.name, hook: chain.hook })
}

/// One of others' rules.
pub(crate) fn foreign_rule(m: &Message<'_>) -> Option<ForeignRule> {
    if m.kind != message_type(NEWRULE) {
        return None;
    }
    let table = table(m, RULE_TABLE)?;
    let rule = decode::rule(m)?;
    Some(ForeignRule { table, chain: rule.chain, exprs: rule.exprs })
}

impl Nftables {
    /// Tables of others with the chains that the kernel calls, and further chains of these names. Streamed: others may
    /// have many thousands of chains.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn foreign(&mut self, names: &[&str]) -> Result<Ruleset, RequestError> {
        let mut out = Ruleset::default();
        let of = |e: crate::netlink::Refusal| e.of("list tables and chains of others", None);
        let ask = |kind: u16| {
            move |b: &mut crate::netlink::Builder, seq: u32| {
                b.begin(message_type(kind), REQUEST | DUMP, seq);
                encode::nfgen(b, 0, 0);
                b.end();
            }
        };
        out.tables = self.socket.dump(&mut ask(GETTABLE), &mut foreign_table).map_err(of)?;
        out.chains = self.socket.dump(&mut ask(GETCHAIN), &mut |m| foreign_chain(m, names)).map_err(of)?;
        let mut filters: Vec<ForeignTable> = out
            .chains
            .iter()
            .filter(|c| c.hook.is_some_and(|h| h.kind == ChainKind::Filter && h.point == HookPoint::Forward))
            .map(|c| c.table.clone())
            .filter(|t| matches!(t.family, "inet" | "ip" | "ip6"))
            .collect();
        filters.sort();
        filters.dedup();
        for t in filters {
            out.rules.extend(self.foreign_rules(&t, MOST_RULES.saturating_sub(out.rules.len())).map_err(of)?);
            if out.rules.len() >= MOST_RULES {
                out.rules.clear();
                break;
            }
        }
        let proc = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];
        for file in proc {
            // Not there where the kernel has no such interface.
            let text = std::fs::read_to_string(file).unwrap_or_default();
            out.legacy.extend(text.lines().map(str::to_owned));
        }
        out.legacy.sort();
        out.legacy.dedup();
        Ok(out)
    }

    /// The first `most` rules of a table of others.
    fn foreign_rules(&mut self, t: &ForeignTable, most: usize) -> Result<Vec<ForeignRule>, Refusal> {
        let number = FAMILIES.iter().find(|(_, name)| *name == t.family).map_or(0, |(n, _)| *n);
        let left = Cell::new(most);
        self.socket.dump(
            &mut |b, seq| {
                left.set(most);
                b.begin(message_type(GETRULE), REQUEST | DUMP, seq);
                encode::nfgen(b, number, 0);
                b.attr_str(RULE_TABLE, &t.name);
                b.end();
            },
            &mut |m| {
                if m.kind != message_type(NEWRULE) || table(m, RULE_TABLE).as_ref() != Some(t) {
                    return None;
                }
                left.set(left.get().checked_sub(1)?);
                foreign_rule(m)
            },
        )
    }
}
