//! nf_tables over nfnetlink: one transaction per commit, whole tables read back as values.

pub(crate) mod consts;
pub(crate) mod decode;
pub(crate) mod encode;
mod expr;
pub(crate) mod foreign;
mod interval;
mod others;
mod read;

use std::collections::hash_map::Entry;
use std::io;

use kernel_api::nft::{Element, NftRequest, Piece, Table, TableName};
use kernel_api::{Nft, RequestError};

use crate::netlink::{ACK, Builder, DUMP, Message, Messages, NLMSG_ERROR, REQUEST, Refusal, Socket, parse_error};
use crate::netns::Netns;
use consts::*;
use encode::{Batch, Shape, Shapes};
use read::Elements;

pub(crate) use consts::{NEWGEN, NFNL_SUBSYS_NFTABLES, TABLE_NAME};
pub(crate) use interval::join;

/// `NETLINK_NETFILTER`
pub(crate) const NETLINK_NETFILTER: i32 = 12;
/// At most so many objects asked for in one send: an answer takes some hundred bytes of receive buffer.
const ASK_AT_ONCE: usize = 64;

/// A netlink socket for the nf_tables of one network namespace.
pub struct Nftables {
    socket: Socket,
    committed: Option<u32>,
    /// Something was deleted: the kernel frees it later, and lets who closes the socket before wait for it.
    deleted: bool,
    /// Where the socket is, when that may be another namespace than the calling thread's.
    netns: Option<Netns>,
}

impl Drop for Nftables {
    fn drop(&mut self) {
        if self.deleted && crate::process::is_short_lived() {
            self.socket.close_apart();
        }
    }
}

fn message_type(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

impl Nftables {
    /// Opens a socket in the calling thread's namespace, which the thread is to stay in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)?, committed: None, deleted: false, netns: None })
    }

    /// Opens a socket in `netns`, where it stays.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn open_in(netns: &Netns) -> io::Result<Self> {
        let mut opened = netns.inside(Self::open)?;
        opened.netns = Some(netns.clone());
        Ok(opened)
    }

    /// The socket's port id, which marks the notifications that our own commits cause (`nlmsg_pid`).
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// One request and its one answer of type `want`; `None` when the object is not there.
    fn get<T>(
        &mut self,
        kind: u16,
        want: u16,
        names: &[(u16, &str)],
        decode: &mut dyn FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let family = if names.is_empty() { 0 } else { INET };
        let mut found = None;
        self.get_each(
            kind,
            want,
            family,
            1,
            &mut |b, _| names.iter().for_each(|(k, v)| b.attr_str(*k, v)),
            &mut |_, m| {
                found = decode(m);
            },
        )?;
        Ok(found)
    }

    /// `n` requests of one kind in one send, the attributes of each by `build`; `each` gets the answers of type `want`
    /// with the number of their request. None comes for an object that is not there.
    fn get_each(
        &mut self,
        kind: u16,
        want: u16,
        family: u8,
        n: usize,
        build: &mut dyn FnMut(&mut Builder, usize),
        each: &mut dyn FnMut(usize, &Message<'_>),
    ) -> Result<(), Refusal> {
        let first = self.socket.sequence(n);
        let mut b = Builder::new();
        let mut last = first;
        for (i, seq) in (0..n).zip(first..) {
            b.begin(message_type(kind), REQUEST, seq);
            encode::nfgen(&mut b, family, 0);
            build(&mut b, i);
            b.end();
            last = seq;
        }
        if b.is_empty() {
            return Ok(());
        }
        // To the last.
        b.add_flags(ACK);
        let mut refused = None;
        self.socket.exchange(b.as_bytes(), first, last, &mut |seq, answer| match answer {
            Ok(m) if m.kind == message_type(want) => each((seq - first) as usize, &m),
            Ok(_) => {}
            Err(r) if r.errno == libc::ENOENT => {}
            Err(r) => refused = Some(r),
        })?;
        refused.map_or(Ok(()), Err)
    }

    /// A dump of objects of one table. `others`: a commit meanwhile does not end it, for who asks finds out whether it
    /// was to this table; chains alone the kernel counts over all tables, so that others' may shift ours.
    fn dump<T>(
        &mut self,
        kind: u16,
        want: u16,
        names: &[(u16, &str)],
        others: bool,
        decode: &mut dyn FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        let mut build = |b: &mut Builder, seq: u32| {
            b.begin(message_type(kind), REQUEST | DUMP, seq);
            encode::nfgen(b, INET, 0);
            for (k, v) in names {
                b.attr_str(*k, v);
            }
            b.end();
        };
        let mut decode = |m: &Message<'_>| (m.kind == message_type(want)).then(|| decode(m)).flatten();
        if others && kind != GETCHAIN {
            let mut out = Vec::new();
            self.socket.dump_once(&mut build, &mut |m| out.extend(decode(m)))?;
            return Ok(out);
        }
        self.socket.dump(&mut build, &mut decode)
    }

    fn read_generation(&mut self) -> Result<u32, Refusal> {
        self.get(GETGEN, NEWGEN, &[], &mut decode::generation)?.ok_or_else(|| Refusal::errno(libc::EOPNOTSUPP))
    }

    /// How each set that gets or loses elements keeps them: from the batch itself, else from the kernel.
    fn shapes(&mut self, requests: &[NftRequest]) -> Result<Shapes, Refusal> {
        let mut shapes = Shapes::new();
        let mut ask: Vec<(&TableName, &str)> = Vec::new();
        for r in requests {
            match r {
                NftRequest::SetAdd(t, s) => {
                    shapes.insert((t.clone(), s.name.clone()), Shape::of(s));
                }
                NftRequest::ElementsAdd(t, s, _) | NftRequest::ElementsDel(t, s, _) => {
                    if let Entry::Vacant(e) = shapes.entry((t.clone(), s.clone())) {
                        // One that is not there is refused by the commit, with its index.
                        e.insert(Shape::Plain);
                        ask.push((t, s));
                    }
                }
                _ => {}
            }
        }
        for some in ask.chunks(ASK_AT_ONCE) {
            let mut names = |b: &mut Builder, i: usize| {
                if let Some((t, s)) = some.get(i) {
                    b.attr_str(SET_TABLE, t.as_str());
                    b.attr_str(SET_NAME, s);
                }
            };
            self.get_each(GETSET, NEWSET, INET, some.len(), &mut names, &mut |i, m| {
                if let (Some((t, s)), Some(set)) = (some.get(i), decode::set(m)) {
                    shapes.insert(((*t).clone(), (*s).to_owned()), Shape::of(&set));
                }
            })?;
        }
        Ok(shapes)
    }

    /// The generation that the last commit through this handle made, when nobody committed between it and the look:
    /// for telling our own change from another's.
    #[must_use]
    pub fn last_commit(&self) -> Option<u32> {
        self.committed
    }

    /// Sends a finished batch and gives the first refusal with its place among the messages, begin being none.
    fn transact(&mut self, batch: &Batch, first: u32) -> Result<(), (Option<usize>, Refusal)> {
        let none = |e: io::Error| (None, Refusal::from(e));
        self.socket.reserve_send(batch.out.len()).map_err(none)?;
        self.socket.send(batch.out.as_bytes()).map_err(none)?;
        let last = first + u32::try_from(batch.of.len()).unwrap_or(u32::MAX);
        let mut refused: Option<(u32, Refusal)> = None;
        let mut acknowledged = false;
        // The kernel has run the whole batch within the send: all answers are there.
        while let Some(b) = self.socket.receive(false).map_err(none)? {
            for m in Messages(b) {
                if m.kind != NLMSG_ERROR || m.seq < first || m.seq > last + 1 {
                    continue;
                }
                match parse_error(&m) {
                    None => acknowledged |= m.seq == last,
                    Some(r) => {
                        if refused.as_ref().is_none_or(|(seq, _)| m.seq < *seq) {
                            refused = Some((m.seq, r));
                        }
                    }
                }
            }
        }
        match refused {
            // The begin carries what is wrong with the batch as a whole, such as a loop of chains.
            Some((seq, r)) if seq == first => Err((None, r)),
            Some((seq, r)) => Err((Some((seq - first - 1) as usize), r)),
            None if acknowledged => Ok(()),
            None => Err((None, Refusal { errno: libc::EIO, message: Some("the kernel did not answer".into()) })),
        }
    }
}

impl Nft for Nftables {
    fn generation(&mut self) -> Result<u32, RequestError> {
        self.read_generation().map_err(|r| r.of("get nf_tables generation", None))
    }

    fn table(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        self.read_still(table, Elements::Listed)
    }

    fn frame(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        self.read_still(table, Elements::Left)
    }

    fn pieces(&mut self, table: &TableName, each: &mut dyn FnMut(Piece<'_>)) -> Result<Option<Table>, RequestError> {
        self.read_still(table, Elements::Told(each))
    }

    fn elements(&mut self, table: &TableName, set: &str) -> Result<Vec<Element>, RequestError> {
        let name = format!("list set inet {table} {set}");
        let names = [(SET_TABLE, table.as_str()), (SET_NAME, set)];
        let found = self.get(GETSET, NEWSET, &names, &mut decode::set).map_err(|r| r.of(&name, None))?;
        match found.map(|s| self.read_elements(table.as_str(), &s, false)) {
            None => Ok(Vec::new()),
            // Deleted meanwhile.
            Some(Err(r)) if r.errno == libc::ENOENT => Ok(Vec::new()),
            Some(r) => r.map_err(|r| r.of(&name, None)),
        }
    }

    fn find_elements(&mut self, table: &TableName, set: &str, keys: &[Vec<u8>]) -> Result<Vec<Element>, RequestError> {
        let (mut found, mut ends) = (Vec::with_capacity(keys.len()), Vec::new());
        for some in keys.chunks(ASK_AT_ONCE) {
            let mut ask = |b: &mut Builder, i: usize| {
                b.attr_str(ELEMS_TABLE, table.as_str());
                b.attr_str(ELEMS_SET, set);
                let list = b.open(ELEMS_ELEMENTS);
                encode::key(b, some.get(i).map_or(&[], Vec::as_slice));
                b.close(list);
            };
            self.get_each(GETSETELEM, NEWSETELEM, INET, some.len(), &mut ask, &mut |_, m| {
                decode::elements(m, &mut found, &mut ends);
            })
            .map_err(|r| r.of(format!("get element inet {table} {set}"), None))?;
        }
        Ok(found)
    }

    fn commit(&mut self, requests: &[NftRequest]) -> Result<(), RequestError> {
        self.commit_if(None, requests)
    }

    fn commit_at(&mut self, generation: u32, requests: &[NftRequest]) -> Result<(), RequestError> {
        self.commit_if(Some(generation), requests)
    }
}

impl Nftables {
    fn commit_if(&mut self, generation: Option<u32>, requests: &[NftRequest]) -> Result<(), RequestError> {
        let text = |i: usize| requests.get(i).map(ToString::to_string).unwrap_or_default();
        let whole = || format!("commit of {} nf_tables requests", requests.len());
        let shapes = self.shapes(requests).map_err(|r| r.of(whole(), None))?;
        // More messages than requests only by the chunks of element lists, of at least 500 elements each.
        let chunks: usize = requests
            .iter()
            .map(|r| match r {
                NftRequest::ElementsAdd(_, _, e) | NftRequest::ElementsDel(_, _, e) => 1 + e.len() / 50,
                _ => 1,
            })
            .sum();
        let first = self.socket.sequence(chunks + 2);
        let mut batch = Batch::new(first, generation);
        for (i, r) in requests.iter().enumerate() {
            batch.push(i, r, &shapes).map_err(|refusal| refusal.of(text(i), Some(i)))?;
        }
        if batch.of.is_empty() {
            return Ok(());
        }
        batch.out.add_flags(ACK);
        batch.finish();
        self.transact(&batch, first).map_err(|(at, refusal)| match at.and_then(|n| batch.of.get(n)) {
            Some(i) => refusal.of(text(*i), Some(*i)),
            None => refusal.of(whole(), None),
        })?;
        self.committed = self.read_generation().ok();
        self.deleted |= requests.iter().any(|r| {
            matches!(
                r,
                NftRequest::TableDel(..)
                    | NftRequest::ChainDel(..)
                    | NftRequest::ChainFlush(..)
                    | NftRequest::SetDel(..)
                    | NftRequest::SetFlush(..)
                    | NftRequest::ElementsDel(..)
                    | NftRequest::RuleDel(..)
            )
        });
        Ok(())
    }
}
