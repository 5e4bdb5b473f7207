//! Tables and chains of others.

use kernel_api::RequestError;
use kernel_api::foreign::{ForeignChain, ForeignTable, Ruleset};
use kernel_api::nft::TableName;

use super::consts::*;
use super::{Nftables, decode, encode, message_type};
use crate::netlink::{DUMP, Message, REQUEST, cstr};

/// The name of a family (include/uapi/linux/netfilter.h `NFPROTO_*`).
fn family(m: &Message<'_>) -> Option<&'static str> {
    Some(match m.payload.first()? {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    })
}

fn table(m: &Message<'_>, kind: u16) -> Option<ForeignTable> {
    let t = ForeignTable { family: family(m)?, name: decode::attrs(m).get(kind).and_then(cstr)?.to_owned() };
    let ours = t.family == "inet" && TableName::recognise(&t.name).is_some();
    (!ours).then_some(t)
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
        out.tables = self
            .socket
            .dump(&mut ask(GETTABLE), &mut |m| {
                if m.kind == message_type(NEWTABLE) { table(m, TABLE_NAME) } else { None }
            })
            .map_err(of)?;
        out.chains = self
            .socket
            .dump(&mut ask(GETCHAIN), &mut |m| {
                if m.kind != message_type(NEWCHAIN) {
                    return None;
                }
                let table = table(m, CHAIN_TABLE)?;
                let chain = decode::chain(m)?;
                let asked = chain.hook.is_some() || names.contains(&chain.name.as_str());
                asked.then_some(ForeignChain { table, name: chain.name, hook: chain.hook })
            })
            .map_err(of)?;
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
}
