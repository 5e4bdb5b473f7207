//! nf_tables over nfnetlink: one transaction per commit, whole tables read back as values.

mod consts;
pub(crate) mod decode;
pub(crate) mod encode;
mod expr;
mod interval;

use std::io;

use kernel_api::nft::{Element, NftRequest, Rule, Set, Table, TableName};
use kernel_api::{Nft, RequestError};

use crate::netlink::{ACK, Builder, DUMP, Message, Messages, NLMSG_ERROR, REQUEST, Refusal, Socket, parse_error};
use crate::netns::Netns;
use consts::*;
use encode::{Batch, Shape, Shapes};

pub(crate) use consts::{NEWGEN, NFNL_SUBSYS_NFTABLES};
pub(crate) use interval::join;

/// `NETLINK_NETFILTER`
pub(crate) const NETLINK_NETFILTER: i32 = 12;
/// How often a read of a table that commits overtake is tried.
const TRIES: usize = 20;

/// A netlink socket for the nf_tables of one network namespace.
pub struct Nftables {
    socket: Socket,
    committed: Option<u32>,
    /// Something was deleted: the kernel frees it later, and lets who closes the socket before wait for it.
    deleted: bool,
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
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)?, committed: None, deleted: false })
    }

    /// Opens a socket in `netns`, where it stays.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn open_in(netns: &Netns) -> io::Result<Self> {
        netns.inside(Self::open)
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
        let seq = self.socket.sequence(1);
        let mut b = Builder::new();
        b.begin(message_type(kind), REQUEST | ACK, seq);
        encode::nfgen(&mut b, if names.is_empty() { 0 } else { INET }, 0);
        for (k, v) in names {
            b.attr_str(*k, v);
        }
        b.end();
        let mut found = None;
        let mut refused = None;
        self.socket.exchange(b.as_bytes(), seq, seq, &mut |_, answer| match answer {
            Ok(m) if m.kind == message_type(want) => found = decode(&m),
            Ok(_) => {}
            Err(r) if r.errno == libc::ENOENT => {}
            Err(r) => refused = Some(r),
        })?;
        refused.map_or(Ok(found), Err)
    }

    /// A dump of objects of one table.
    fn dump<T>(
        &mut self,
        kind: u16,
        want: u16,
        names: &[(u16, &str)],
        decode: &mut dyn FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        self.socket.dump(
            &mut |b, seq| {
                b.begin(message_type(kind), REQUEST | DUMP, seq);
                encode::nfgen(b, INET, 0);
                for (k, v) in names {
                    b.attr_str(*k, v);
                }
                b.end();
            },
            &mut |m| (m.kind == message_type(want)).then(|| decode(m)).flatten(),
        )
    }

    fn read_generation(&mut self) -> Result<u32, Refusal> {
        self.get(GETGEN, NEWGEN, &[], &mut decode::generation)?.ok_or_else(|| Refusal::errno(libc::EOPNOTSUPP))
    }

    /// The table as of one moment if nothing was committed meanwhile.
    fn read(&mut self, table: &str) -> Result<Option<Table>, Refusal> {
        let names = [(TABLE_NAME, table)];
        let Some(flags) = self.get(GETTABLE, NEWTABLE, &names, &mut |m| Some(decode::table_flags(m)))? else {
            return Ok(None);
        };
        let chains = self.dump(GETCHAIN, NEWCHAIN, &names, &mut |m| {
            decode::is_of(m, CHAIN_TABLE, table).then(|| decode::chain(m)).flatten()
        })?;
        let sets = self.dump(GETSET, NEWSET, &names, &mut |m| {
            decode::is_of(m, SET_TABLE, table).then(|| decode::set(m)).flatten()
        })?;
        let mut elements = Vec::with_capacity(sets.len());
        for s in &sets {
            let of = if s.dynamic.is_some() { Vec::new() } else { self.read_elements(table, s)? };
            elements.push((s.name.clone(), of));
        }
        let rules: Vec<Rule> = self.dump(GETRULE, NEWRULE, &names, &mut |m| {
            decode::is_of(m, RULE_TABLE, table).then(|| decode::rule(m)).flatten()
        })?;
        Ok(Some(Table { flags, chains, sets, elements, rules }))
    }

    /// The elements of a set, sorted by key.
    fn read_elements(&mut self, table: &str, set: &Set) -> Result<Vec<Element>, Refusal> {
        for _ in 0..TRIES {
            let (mut found, mut ends) = (Vec::new(), Vec::new());
            let whole = self.socket.dump_once(
                &mut |b, seq| {
                    b.begin(message_type(GETSETELEM), REQUEST | DUMP, seq);
                    encode::nfgen(b, INET, 0);
                    b.attr_str(ELEMS_TABLE, table);
                    b.attr_str(ELEMS_SET, &set.name);
                    b.end();
                },
                &mut |m| {
                    if m.kind == message_type(NEWSETELEM) {
                        decode::elements(m, &mut found, &mut ends);
                    }
                },
            )?;
            if !whole {
                continue;
            }
            if Shape::of(set) == Shape::Pairs {
                return Ok(interval::join(found, ends));
            }
            found.sort_unstable();
            return Ok(found);
        }
        Err(Refusal { errno: libc::EINTR, message: Some("commits by others interrupted the dump every time".into()) })
    }

    /// How each set that gets or loses elements keeps them: from the batch itself, else from the kernel.
    fn shapes(&mut self, requests: &[NftRequest]) -> Result<Shapes, Refusal> {
        let mut shapes = Shapes::new();
        for r in requests {
            match r {
                NftRequest::SetAdd(t, s) => {
                    shapes.insert((t.clone(), s.name.clone()), Shape::of(s));
                }
                NftRequest::ElementsAdd(t, s, _) | NftRequest::ElementsDel(t, s, _) => {
                    let key = (t.clone(), s.clone());
                    if shapes.contains_key(&key) {
                        continue;
                    }
                    let names = [(SET_TABLE, t.as_str()), (SET_NAME, s.as_str())];
                    // One that is not there is refused by the commit, with its index.
                    let set = self.get(GETSET, NEWSET, &names, &mut decode::set)?;
                    shapes.insert(key, set.as_ref().map_or(Shape::Plain, Shape::of));
                }
                _ => {}
            }
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
        let name = format!("list table inet {table}");
        for _ in 0..TRIES {
            let before = self.read_generation().map_err(|r| r.of(&name, None))?;
            match self.read(table.as_str()) {
                // Deleted while reading.
                Err(r) if r.errno == libc::ENOENT => continue,
                Err(r) => return Err(r.of(&name, None)),
                Ok(found) => {
                    if self.read_generation().map_err(|r| r.of(&name, None))? == before {
                        return Ok(found);
                    }
                }
            }
        }
        Err(Refusal { errno: libc::EINTR, message: Some("commits by others overtook every reading".into()) }
            .of(name, None))
    }

    fn elements(&mut self, table: &TableName, set: &str) -> Result<Vec<Element>, RequestError> {
        let name = format!("list set inet {table} {set}");
        let names = [(SET_TABLE, table.as_str()), (SET_NAME, set)];
        let found = self.get(GETSET, NEWSET, &names, &mut decode::set).map_err(|r| r.of(&name, None))?;
        match found.map(|s| self.read_elements(table.as_str(), &s)) {
            None => Ok(Vec::new()),
            // Deleted meanwhile.
            Some(Err(r)) if r.errno == libc::ENOENT => Ok(Vec::new()),
            Some(r) => r.map_err(|r| r.of(&name, None)),
        }
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
