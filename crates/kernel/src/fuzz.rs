//! Doors for fuzzing: every decoder of the kernel's bytes, on any bytes. They must not panic, hang or hold much memory.

use crate::rt::names::Names;
use kernel_api::nft::Element;
use kernel_api::tc::Hook;

use crate::netlink::{Message, Messages, parse_error};
use crate::{ct, monitor, nft, rt};

/// The messages in `data`, or `data` as the payload of one of any type.
fn each(data: &[u8], mut f: impl FnMut(&Message<'_>)) {
    for m in Messages(data) {
        f(&m);
    }
    if let [kind, flags, payload @ ..] = data {
        f(&Message { kind: u16::from(*kind), flags: u16::from(*flags) << 8, seq: 1, port: 0, payload });
    }
}

fn names() -> Names {
    (0..4).filter_map(|i| Some((i, format!("if{i}").parse().ok()?))).collect()
}

/// rtnetlink: links, addresses, routes, neighbours, forwarding entries, notifications, refusals.
pub fn rt_message(data: &[u8]) {
    let names = names();
    each(data, |m| {
        let _ = rt::decode::link(m);
        let _ = rt::decode::address(m, &names);
        let _ = rt::decode::route(m, &names, None);
        let _ = rt::decode::rule(m);
        rt::decode::port_vlans(m, &mut Vec::new());
        let _ = rt::tc::qdisc(m, &names);
        let mut parts = rt::htb::Seen::root(m).unwrap_or_default().1;
        let _ = parts.take(m);
        let _ = parts.htb();
        for (link, hook) in [0, 1].into_iter().filter_map(|i| names.get(i)).zip([Hook::Ingress, Hook::Egress]) {
            let _ = rt::tc::filter(m, &link, hook);
        }
        let _ = rt::decode::neighbour(m, &names);
        let _ = rt::decode::fdb(m, &names);
        let _ = monitor::rt_counts(m);
        let _ = parse_error(m);
    });
}

/// nf_tables: tables, chains, sets, elements, rules, generations, refusals.
pub fn nft_message(data: &[u8]) {
    let (mut elements, mut ends): (Vec<Element>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
    each(data, |m| {
        let _ = nft::decode::generation(m);
        let _ = nft::decode::table_flags(m);
        let _ = nft::decode::chain(m);
        let _ = nft::decode::set(m);
        let _ = nft::decode::rule(m);
        let _ = parse_error(m);
        nft::decode::elements(m, &mut elements, &mut ends);
    });
    let _ = nft::join(elements, ends);
}

/// One table with its chains, sets, rules and elements, as far as these bytes tell of one.
#[must_use]
pub fn table(data: &[u8]) -> kernel_api::nft::Table {
    use nft::consts::{ELEMS_SET, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE};
    let mut out = kernel_api::nft::Table::default();
    each(data, |m| match m.kind & 0xff {
        NEWTABLE => out.flags = nft::decode::table_flags(m),
        NEWCHAIN => out.chains.extend(nft::decode::chain(m)),
        NEWSET => out.sets.extend(nft::decode::set(m)),
        NEWRULE => out.rules.extend(nft::decode::rule(m)),
        NEWSETELEM => {
            let (mut elements, mut ends): (Vec<Element>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
            nft::decode::elements(m, &mut elements, &mut ends);
            let set = nft::decode::attrs(m).get(ELEMS_SET).and_then(crate::netlink::cstr).unwrap_or_default();
            let more = nft::join(elements, ends);
            // A long list comes in several messages.
            match out.elements.iter_mut().find(|(name, _)| name == set) {
                Some((_, list)) => list.extend(more),
                None => out.elements.push((set.to_owned(), more)),
            }
        }
        _ => {}
    });
    out
}

/// Others' tables, chains and rules, as far as these bytes tell of any.
#[must_use]
pub fn foreign(data: &[u8], names: &[&str]) -> kernel_api::foreign::Ruleset {
    let mut out = kernel_api::foreign::Ruleset::default();
    each(data, |m| {
        out.tables.extend(nft::foreign::foreign_table(m));
        out.chains.extend(nft::foreign::foreign_chain(m, names));
        out.rules.extend(nft::foreign::foreign_rule(m));
    });
    out
}

/// Who asks where an address is, and the answer.
pub fn neighbour_question(data: &[u8]) {
    if let Some(q) = kernel_api::neighbours::Question::parse(data) {
        let _ = q.answer(types::Mac([2, 0, 0, 0, 0, 1]));
    }
}

/// ctnetlink: entries, refusals.
pub fn ct_message(data: &[u8]) {
    each(data, |m| {
        let _ = ct::flow(m);
        let _ = parse_error(m);
    });
}
