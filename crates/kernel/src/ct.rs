//! Tracked connections over ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::IpAddr;

use kernel_api::conntrack::{Among, Flow, Tuple};
use kernel_api::{Conntrack, RequestError};
use types::{Family, Proto};

use crate::netlink::{ACK, Attrs, Builder, DUMP, Message, REQUEST, Refusal, Socket, be16, be32};
use crate::netns::Netns;
use crate::nft::NETLINK_NETFILTER;

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYS: u16 = 1;
const CT_NEW: u16 = SUBSYS << 8;
const CT_GET: u16 = SUBSYS << 8 | 1;
const CT_DELETE: u16 = SUBSYS << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `CTA_PROTOINFO_TCP` and, within, `CTA_PROTOINFO_TCP_STATE`.
const TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_TIME_WAIT` (include/uapi/linux/netfilter/nf_conntrack_tcp.h); the states after it are closed too.
const TIME_WAIT: u8 = 7;
/// `IPS_DST_NAT`
const DST_NAT: u32 = 1 << 5;
/// `CTA_FILTER_F_CTA_IP_DST`, `_PROTO_NUM` and `_PROTO_DST_PORT` (net/netfilter/nf_internals.h): what of the tuple is
/// compared.
const BY_DST: u32 = 1 << 1;
const BY_PROTO: u32 = 1 << 3;
const BY_DPORT: u32 = 1 << 5;
/// Entries deleted in one send; bounds what is held of a dump.
const BATCH: usize = 128;

/// Netlink sockets for the connection table of one network namespace.
pub struct Ct {
    /// Reads the table.
    dump: Socket,
    /// Deletes while the other is in the middle of a dump.
    delete: Socket,
}

/// A stale entry: the attributes that name it, as the kernel gave them.
struct Entry {
    family: u8,
    attrs: Vec<(u16, Vec<u8>)>,
}

impl Ct {
    /// Opens sockets in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Ok(Self { dump: Socket::open(NETLINK_NETFILTER)?, delete: Socket::open(NETLINK_NETFILTER)? })
    }

    /// Opens sockets in `netns`, where they stay.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn open_in(netns: &Netns) -> io::Result<Self> {
        netns.inside(Self::open)
    }

    /// Gives every entry of TCP, UDP and SCTP to `each`, streamed; or what the kernel shows of `among`, which may be
    /// more. An entry may be seen twice when the table changes meanwhile.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn each(&mut self, among: Option<&Among>, each: &mut dyn FnMut(&Flow)) -> Result<(), RequestError> {
        dump(&mut self.dump, among, &mut |m| {
            if let Some(f) = flow(m) {
                each(&f);
            }
        })
        .map_err(|r| r.of("list conntrack entries", None))
    }
}

fn dump(socket: &mut Socket, among: Option<&Among>, each: &mut dyn FnMut(&Message<'_>)) -> Result<(), Refusal> {
    let whole = socket.dump_once(
        &mut |b, seq| {
            b.begin(CT_GET, REQUEST | DUMP, seq);
            match among {
                None => b.bytes(&[0; 4]),
                Some(among) => filter(b, among),
            }
            b.end();
        },
        &mut |m| {
            if m.kind == CT_NEW {
                each(m);
            }
        },
    )?;
    // The kernel never marks this dump interrupted; a message too long for the buffer is the only way.
    if whole { Ok(()) } else { Err(Refusal::errno(libc::EINTR)) }
}

/// The header and attributes by which the kernel shows fewer entries (`ctnetlink_filter_match`). One before 5.8 does
/// not know `CTA_FILTER` and shows all of the family. Every kernel since compares IPv6 addresses the wrong way round
/// (it skips what is equal), so of IPv6 only protocol and port are asked for; and SCTP's ports are not compared.
fn filter(b: &mut Builder, among: &Among) {
    let (family, addr) = match (among.family, among.addr) {
        (Family::V4, Some(IpAddr::V4(a))) => (libc::AF_INET, Some(a)),
        (Family::V4, _) => (libc::AF_INET, None),
        (Family::V6, _) => (libc::AF_INET6, None),
    };
    // Both are small numbers.
    b.bytes(&[u8::try_from(family).unwrap_or(0), 0, 0, 0]);
    let mut flags = BY_PROTO;
    let tuple = b.open(CTA_TUPLE_ORIG);
    if let Some(a) = addr {
        flags |= BY_DST;
        let ip = b.open(CTA_TUPLE_IP);
        b.attr(2, &a.octets());
        b.close(ip);
    }
    let l4 = b.open(CTA_TUPLE_PROTO);
    b.attr_u8(CTA_PROTO_NUM, among.proto.number());
    if let Some(p) = among.port {
        flags |= BY_DPORT;
        b.attr_be16(CTA_PROTO_DST_PORT, p);
    }
    b.close(l4);
    b.close(tuple);
    let by = b.open(CTA_FILTER);
    b.attr_u32(CTA_FILTER_ORIG_FLAGS, flags);
    b.close(by);
}

/// An entry of a protocol with ports.
pub(crate) fn flow(m: &Message<'_>) -> Option<Flow> {
    let a = m.attrs(4);
    let (proto, original) = tuple(a.nested(CTA_TUPLE_ORIG))?;
    let (_, reply) = tuple(a.nested(CTA_TUPLE_REPLY))?;
    let status = a.get(CTA_STATUS).and_then(be32).unwrap_or(0);
    let state = a.nested(CTA_PROTOINFO).nested(TCP).get(TCP_STATE).and_then(|b| b.first().copied());
    Some(Flow {
        proto,
        original,
        reply,
        dnat: status & DST_NAT != 0,
        over: proto == Proto::Tcp && state.is_some_and(|s| s >= TIME_WAIT),
    })
}

fn tuple(a: Attrs<'_>) -> Option<(Proto, Tuple)> {
    let (ip, l4) = (a.nested(CTA_TUPLE_IP), a.nested(CTA_TUPLE_PROTO));
    let addr = |v4: u16, v6: u16| -> Option<IpAddr> {
        ip.get(v4)
            .and_then(|b| <[u8; 4]>::try_from(b).ok())
            .map(IpAddr::from)
            .or_else(|| ip.get(v6).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from))
    };
    let proto = Proto::from_number(*l4.get(CTA_PROTO_NUM)?.first()?)?;
    Some((
        proto,
        Tuple {
            src: addr(1, 3)?,
            dst: addr(2, 4)?,
            sport: l4.get(CTA_PROTO_SRC_PORT).and_then(be16)?,
            dport: l4.get(CTA_PROTO_DST_PORT).and_then(be16)?,
        },
    ))
}

/// What names the entry in a delete. The id keeps a new entry with the same tuple from being hit.
fn entry(m: &Message<'_>) -> Entry {
    let a = m.attrs(4);
    let attrs = [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE]
        .into_iter()
        .filter_map(|k| a.get(k).map(|d| (if k == CTA_TUPLE_ORIG { k | 0x8000 } else { k }, d.to_vec())))
        .collect();
    Entry { family: m.payload.first().copied().unwrap_or(0), attrs }
}

/// Deletes entries; returns how many were still there.
fn delete(socket: &mut Socket, stale: &mut Vec<Entry>) -> Result<usize, Refusal> {
    if stale.is_empty() {
        return Ok(0);
    }
    let first = socket.sequence(stale.len());
    let mut b = Builder::new();
    let mut last = first;
    for (e, seq) in stale.iter().zip(first..) {
        b.begin(CT_DELETE, REQUEST, seq);
        b.bytes(&[e.family, 0, 0, 0]);
        for (k, d) in &e.attrs {
            b.attr(*k, d);
        }
        b.end();
        last = seq;
    }
    b.add_flags(ACK);
    let mut gone = 0;
    let mut refused = None;
    socket.exchange(b.as_bytes(), first, last, &mut |_, answer| match answer {
        Err(r) if r.errno == libc::ENOENT => gone += 1,
        Err(r) => refused = Some(r),
        Ok(_) => {}
    })?;
    let n = stale.len() - gone;
    stale.clear();
    refused.map_or(Ok(n), Err)
}

impl Conntrack for Ct {
    fn delete(&mut self, among: &Among, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<usize, RequestError> {
        let (mut pending, mut count, mut error) = (Vec::new(), 0, None);
        let deleter = &mut self.delete;
        let mut run = |pending: &mut Vec<Entry>, error: &mut Option<Refusal>| match delete(deleter, pending) {
            Ok(n) => count += n,
            Err(r) => *error = error.take().or(Some(r)),
        };
        let read = dump(&mut self.dump, Some(among), &mut |m| {
            if flow(m).is_some_and(|f| among.has(&f) && stale(&f)) {
                pending.push(entry(m));
            }
            if pending.len() >= BATCH {
                run(&mut pending, &mut error);
            }
        });
        run(&mut pending, &mut error);
        match error.map_or(read, Err) {
            Ok(()) => Ok(count),
            Err(r) => Err(r.of(format!("delete stale {} conntrack entries", among.proto), None)),
        }
    }
}
