//! Reading tables back.

use kernel_api::RequestError;
use kernel_api::nft::{DataRef, Element, Piece, Rule, Set, Table, TableName};

use super::consts::*;
use super::encode::{self, Shape};
use super::others::Others;
use super::{Nftables, decode, interval, message_type};
use crate::netlink::{DUMP, Message, REQUEST, Refusal, until_whole};

/// Readings that others' commits may overtake before we listen to what they commit.
const UNHEARD: usize = 4;

/// What is wanted of the elements of sets.
pub(super) enum Elements<'a> {
    /// Nothing.
    Left,
    /// A list, by key.
    Listed,
    /// Each told, in no order.
    Told(&'a mut dyn FnMut(Piece<'_>)),
}

/// How a reading ended.
enum Reading {
    NotThere,
    /// By a commit of others.
    Interrupted,
    Whole(Table),
}

impl Nftables {
    pub(super) fn read_still(
        &mut self,
        table: &TableName,
        mut want: Elements<'_>,
    ) -> Result<Option<Table>, RequestError> {
        let (mut tries, mut others) = (0, None);
        until_whole("commits by others overtook every reading", || {
            tries += 1;
            if tries > UNHEARD && others.is_none() {
                // Told of is what happens in the namespace that the socket listens in.
                others = Some(match &self.netns {
                    Some(ns) => ns.inside(Others::open)?,
                    None => Others::open()?,
                });
            }
            if let Some(o) = &mut others {
                o.forget()?;
            }
            let before = self.read_generation()?;
            if let Elements::Told(each) = &mut want {
                each(Piece::Begin);
            }
            let found = match self.read(table.as_str(), &mut want, others.is_some()) {
                // One answer: it was not there at that moment.
                Ok(Reading::NotThere) => return Ok(Some(None)),
                Ok(Reading::Interrupted) => return Ok(None),
                // Deleted while reading.
                Err(r) if r.errno == libc::ENOENT => return Ok(None),
                Ok(Reading::Whole(found)) => found,
                Err(r) => return Err(r),
            };
            let after = self.read_generation()?;
            let touched = match &mut others {
                _ if after == before => false,
                Some(o) => o.touched(table.as_str(), after)?,
                None => true,
            };
            Ok((!touched).then_some(Some(found)))
        })
        .map_err(|r| r.of(format!("list table inet {table}"), None))
    }

    /// The table as of one moment if nothing was committed to it meanwhile, with the elements of its sets or without.
    /// `others`: see [`Nftables::dump`].
    fn read(&mut self, table: &str, want: &mut Elements<'_>, others: bool) -> Result<Reading, Refusal> {
        let names = [(TABLE_NAME, table)];
        let Some(flags) = self.get(GETTABLE, NEWTABLE, &names, &mut |m| Some(decode::table_flags(m)))? else {
            return Ok(Reading::NotThere);
        };
        let chains = self.dump(GETCHAIN, NEWCHAIN, &names, others, &mut |m| {
            decode::is_of(m, CHAIN_TABLE, table).then(|| decode::chain(m)).flatten()
        })?;
        let sets = self.dump(GETSET, NEWSET, &names, others, &mut |m| {
            decode::is_of(m, SET_TABLE, table).then(|| decode::set(m)).flatten()
        })?;
        let mut elements = Vec::with_capacity(sets.len());
        for s in &sets {
            let of = match want {
                Elements::Listed if s.dynamic.is_none() => self.read_elements(table, s, others)?,
                Elements::Told(each) if s.dynamic.is_none() => {
                    if !self.tell_elements(table, s, others, each)? {
                        return Ok(Reading::Interrupted);
                    }
                    Vec::new()
                }
                _ => Vec::new(),
            };
            elements.push((s.name.clone(), of));
        }
        let rules: Vec<Rule> = self.dump(GETRULE, NEWRULE, &names, others, &mut |m| {
            decode::is_of(m, RULE_TABLE, table).then(|| decode::rule(m)).flatten()
        })?;
        Ok(Reading::Whole(Table { flags, chains, sets, elements, rules }))
    }

    /// The elements of a set, sorted by key.
    pub(super) fn read_elements(&mut self, table: &str, set: &Set, others: bool) -> Result<Vec<Element>, Refusal> {
        until_whole("commits by others interrupted the dump every time", || {
            let (mut found, mut ends) = (Vec::new(), Vec::new());
            let each = &mut |m: &Message<'_>| decode::elements(m, &mut found, &mut ends);
            let whole = self.dump_elements(table, &set.name, each)? || others;
            if Shape::of(set) == Shape::Pairs {
                return Ok(whole.then(|| interval::join(found, ends)));
            }
            found.sort_unstable();
            Ok(whole.then_some(found))
        })
    }

    /// The same, each told as it comes, but ranges that are kept as pairs, which are few. False: it was interrupted.
    fn tell_elements(
        &mut self,
        table: &str,
        set: &Set,
        others: bool,
        each: &mut dyn FnMut(Piece<'_>),
    ) -> Result<bool, Refusal> {
        if Shape::of(set) == Shape::Pairs {
            for Element { key, key_end, data, .. } in self.read_elements(table, set, others)? {
                let data = data.as_ref().map(DataRef::from);
                each(Piece::Element { set, key: &key, key_end: key_end.as_deref(), data });
            }
            return Ok(true);
        }
        let whole = self.dump_elements(table, &set.name, &mut |m| {
            decode::parts(m, &mut |p| {
                if !p.is_end {
                    each(Piece::Element { set, key: p.key, key_end: p.key_end, data: p.data() });
                }
            });
        })?;
        Ok(whole || others)
    }

    fn dump_elements(&mut self, table: &str, set: &str, each: &mut dyn FnMut(&Message<'_>)) -> Result<bool, Refusal> {
        self.socket.dump_once(
            &mut |b, seq| {
                b.begin(message_type(GETSETELEM), REQUEST | DUMP, seq);
                encode::nfgen(b, INET, 0);
                b.attr_str(ELEMS_TABLE, table);
                b.attr_str(ELEMS_SET, set);
                b.end();
            },
            &mut |m| {
                if m.kind == message_type(NEWSETELEM) {
                    each(m);
                }
            },
        )
    }
}
