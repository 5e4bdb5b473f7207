//! A netlink socket. It stays in the network namespace it was opened in, whatever its thread does later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use kernel_api::RequestError;

use super::wire::{Attrs, Builder, Message, Messages, cstr, ne32};
use super::{ACK_TLVS, CAPPED, DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use crate::sys;

/// `NETLINK_EXT_ACK`
const EXT_ACK: i32 = 11;
/// `NETLINK_CAP_ACK`
const CAP_ACK: i32 = 10;
/// `NETLINK_GET_STRICT_CHK`
const STRICT_CHK: i32 = 12;
/// `NLMSGERR_ATTR_MSG`
const ERR_ATTR_MSG: u16 = 1;
/// How long the kernel may take to answer. It answers within the send; this only bounds a lost answer.
const PATIENCE_S: i64 = 20;
/// Wanted receive buffer in bytes; the kernel doubles it.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// Bytes that one datagram may have before the buffer grows; the kernel's replies to dumps have at most half.
const RECEIVE: usize = 64 << 10;
/// How long a reading that changes by others interrupt is tried again. While a hundred processes make links at once, a dump
/// may be interrupted dozens of times.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const READ_PAUSE_MS: u64 = 20;

/// Reads until a reading was not interrupted, with pauses that let those who interrupt get on.
pub(crate) fn until_whole<T>(why: &str, mut read: impl FnMut() -> Result<Option<T>, Refusal>) -> Result<T, Refusal> {
    let start = Instant::now();
    for n in 0u64.. {
        if let Some(whole) = read()? {
            return Ok(whole);
        }
        if start.elapsed() > READ_PATIENCE {
            break;
        }
        if n > 2 {
            std::thread::sleep(Duration::from_millis(n.min(READ_PAUSE_MS)));
        }
    }
    Err(Refusal { errno: libc::EINTR, message: Some(why.into()) })
}
/// A reply larger than this is refused rather than held (the kernel's own bound on one is 64 KiB per attribute).
const LARGEST_REPLY: usize = 16 << 20;

/// What the kernel answered, not yet tied to the request it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: i32,
    pub(crate) message: Option<String>,
}

impl Refusal {
    pub(crate) fn of(self, request: impl Into<String>, index: Option<usize>) -> RequestError {
        RequestError { request: request.into(), errno: self.errno, message: self.message, index }
    }

    pub(crate) fn no_link(name: &types::IfName) -> Self {
        Self { errno: libc::ENODEV, message: Some(format!("there is no link {name} in this namespace")) }
    }

    pub(crate) fn errno(errno: i32) -> Self {
        Self { errno, message: None }
    }
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        let errno = e.raw_os_error().unwrap_or(libc::EIO);
        // The receive timeout reads as "would block"; say what it is.
        if errno == libc::EAGAIN {
            return Self { errno: libc::ETIMEDOUT, message: Some("the kernel did not answer".into()) };
        }
        Self { errno, message: e.raw_os_error().is_none().then(|| e.to_string()) }
    }
}

/// A bound netlink socket with its receive buffer.
pub(crate) struct Socket {
    fd: OwnedFd,
    port: u32,
    seq: u32,
    buf: Vec<u8>,
}

impl Socket {
    /// Opens a socket of `protocol` (`NETLINK_*`) in the calling thread's network namespace.
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        let (fd, port) = sys::netlink_socket(protocol)?;
        let s = fd.as_fd();
        // Older kernels lack some of these; everything works without, with poorer messages and unfiltered dumps.
        for option in [EXT_ACK, CAP_ACK, STRICT_CHK] {
            let _ = sys::set_option(s, libc::SOL_NETLINK, option, 1);
        }
        sys::set_receive_timeout(s, PATIENCE_S)?;
        let socket = Self { fd, port, seq: 0, buf: Vec::with_capacity(RECEIVE) };
        socket.receive_buffer(RECEIVE_BUFFER);
        Ok(socket)
    }

    /// Asks for a receive buffer; beyond the system's limit only with the right to (`SO_RCVBUFFORCE`).
    pub(crate) fn receive_buffer(&self, bytes: i32) {
        let s = self.fd.as_fd();
        if sys::set_option(s, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
            let _ = sys::set_option(s, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
        }
    }

    /// Makes sure that one send of `bytes` is accepted: a netlink message must fit the send buffer.
    pub(crate) fn reserve_send(&self, bytes: usize) -> io::Result<()> {
        let s = self.fd.as_fd();
        let want = i32::try_from(bytes.saturating_add(4096)).unwrap_or(i32::MAX / 2);
        if sys::get_option(s, libc::SOL_SOCKET, libc::SO_SNDBUF)? < want {
            // The kernel doubles what it is given, so this is more than asked for.
            sys::set_option(s, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, want.min(i32::MAX / 2))
                .or_else(|_| sys::set_option(s, libc::SOL_SOCKET, libc::SO_SNDBUF, want))?;
        }
        Ok(())
    }

    /// The port id that the kernel writes into notifications our requests cause.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A sequence number range of `n`, never 0; the first is returned.
    pub(crate) fn sequence(&mut self, n: usize) -> u32 {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        if self.seq.checked_add(n).is_none_or(|e| e == u32::MAX) {
            self.seq = 0;
        }
        let first = self.seq + 1;
        self.seq = self.seq.saturating_add(n);
        first
    }

    pub(crate) fn send(&self, data: &[u8]) -> io::Result<()> {
        sys::send(self.fd.as_fd(), data).map(drop)
    }

    /// Sends from a process of its own: see [`sys::fork::send_apart`].
    pub(crate) fn send_apart(&self, data: &[u8], keep: Option<BorrowedFd<'_>>) -> io::Result<()> {
        sys::fork::send_apart(self.fd.as_fd(), data, keep)
    }

    /// Leaves the close of the socket, and whatever the kernel lets who closes it wait for, to a process of its own. When
    /// there can be none, the close is this one's.
    pub(crate) fn close_apart(&self) {
        let _ = sys::fork::close_apart(self.fd.as_fd());
    }

    /// Receives one datagram from the kernel. One that did not fit is lost: the buffer has grown and EMSGSIZE asks for
    /// another try. `Ok(None)` only without `wait`, when nothing is there.
    pub(crate) fn receive(&mut self, wait: bool) -> io::Result<Option<&[u8]>> {
        loop {
            match sys::recv(self.fd.as_fd(), &mut self.buf, wait) {
                // Only the kernel (port 0) may answer; another process could send to our port.
                Ok((_, port)) if port != 0 => {}
                Ok((n, _)) if n > self.buf.len() => {
                    if n <= LARGEST_REPLY {
                        self.buf.reserve(n.next_power_of_two() - self.buf.len());
                    }
                    return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
                }
                Ok(_) => return Ok(Some(&self.buf)),
                Err(e) if !wait && e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends messages numbered from `first` on, of which the last one, `last`, asks for an acknowledgement, and gives
    /// everything that comes back to `each`: replies and refusals, with the number of the request they answer. Returns
    /// when the last is answered.
    pub(crate) fn exchange(
        &mut self,
        data: &[u8],
        first: u32,
        last: u32,
        each: &mut dyn FnMut(u32, Result<Message<'_>, Refusal>),
    ) -> Result<(), Refusal> {
        self.send(data)?;
        loop {
            let Some(b) = self.receive(true)? else { return Err(Refusal::errno(libc::EIO)) };
            for m in Messages(b) {
                // What an earlier, abandoned exchange left behind is not ours.
                if m.seq < first || m.seq > last {
                    continue;
                }
                if m.kind == NLMSG_ERROR {
                    match parse_error(&m) {
                        Some(refusal) => each(m.seq, Err(refusal)),
                        None if m.seq != last => continue,
                        None => {}
                    }
                    if m.seq == last {
                        return Ok(());
                    }
                } else {
                    each(m.seq, Ok(m));
                }
            }
        }
    }

    /// One dump. `Ok(false)`: it was interrupted by a change and what came is not to be relied on.
    pub(crate) fn dump_once(
        &mut self,
        build: &mut dyn FnMut(&mut Builder, u32),
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<bool, Refusal> {
        let seq = self.sequence(1);
        let mut b = Builder::new();
        build(&mut b, seq);
        self.send(b.as_bytes())?;
        let mut whole = true;
        loop {
            let data = match self.receive(true) {
                Ok(Some(d)) => d,
                Ok(None) => return Err(Refusal::errno(libc::EIO)),
                // A part is lost, the rest must still be read.
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                    whole = false;
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            for m in Messages(data) {
                if m.seq != seq {
                    continue;
                }
                if m.flags & DUMP_INTR != 0 {
                    whole = false;
                }
                match m.kind {
                    NLMSG_DONE => {
                        // The payload is the dump's own error, negative, or zero.
                        return match ne32(m.payload).map_or(0, |e| e.cast_signed()) {
                            0 => Ok(whole),
                            e if e == -libc::EINTR || e == -libc::EAGAIN => Ok(false),
                            e => Err(Refusal::errno(e.saturating_neg())),
                        };
                    }
                    NLMSG_ERROR => match parse_error(&m) {
                        Some(r) if r.errno == libc::EINTR || r.errno == libc::EAGAIN => return Ok(false),
                        Some(r) => return Err(r),
                        None => return Ok(whole),
                    },
                    _ => each(&m),
                }
            }
        }
    }

    /// A dump decoded into a list, tried again when a change interrupts it. `decode` gives nothing for messages that
    /// are not wanted.
    pub(crate) fn dump<T>(
        &mut self,
        build: &mut dyn FnMut(&mut Builder, u32),
        decode: &mut dyn FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        until_whole("the dump was interrupted by changes every time", || {
            let mut out = Vec::new();
            let whole = self.dump_once(build, &mut |m| out.extend(decode(m)))?;
            Ok(whole.then_some(out))
        })
    }
}

/// The refusal in an `NLMSG_ERROR`, or nothing when it is an acknowledgement.
pub(crate) fn parse_error(m: &Message<'_>) -> Option<Refusal> {
    let code = ne32(m.payload)?.cast_signed();
    if code == 0 {
        return None;
    }
    let mut message = None;
    if m.flags & ACK_TLVS != 0 {
        // After the code comes the header of the refused message, and its payload unless capped.
        let inner = m.payload.get(4..).and_then(ne32).unwrap_or(16) as usize;
        let skip = if m.flags & CAPPED != 0 { 4 + 16 } else { 4usize.saturating_add(inner.max(16)) };
        let skip = skip.checked_add(3).map_or(usize::MAX, |n| n & !3);
        message = Attrs(m.payload.get(skip..).unwrap_or(&[])).get(ERR_ATTR_MSG).and_then(cstr).map(str::to_owned);
    }
    Some(Refusal { errno: code.saturating_neg(), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{DUMP, REQUEST};

    /// `RTM_GETLINK` and `RTM_NEWLINK`
    const LINKS: (u16, u16) = (18, 16);

    #[test]
    fn a_buffer_too_small_grows_and_the_dump_is_tried_again() {
        let ns = crate::Netns::new().unwrap();
        let mut s = ns.run(|| Socket::open(libc::NETLINK_ROUTE).unwrap()).unwrap();
        s.buf = Vec::with_capacity(32);
        let mut tries = 0;
        let found = s
            .dump(
                &mut |b, seq| {
                    tries += 1;
                    b.begin(LINKS.0, REQUEST | DUMP, seq);
                    b.bytes(&[0; 16]);
                    b.end();
                },
                &mut |m| (m.kind == LINKS.1).then_some(()),
            )
            .unwrap();
        assert_eq!(found.len(), 1, "the loopback");
        assert!(tries > 1 && s.buf.capacity() > 32);
    }

    #[test]
    fn a_reading_is_tried_far_more_often_than_a_storm_can_interrupt_it() {
        let mut n = 0;
        let read = || {
            n += 1;
            Ok((n == 60).then_some(n))
        };
        assert_eq!(until_whole("interrupted", read), Ok(60));
        let e = until_whole("interrupted", || -> Result<Option<()>, _> { Err(Refusal::errno(libc::EPERM)) });
        assert_eq!(e, Err(Refusal::errno(libc::EPERM)), "a refusal is no interruption");
    }

    #[test]
    fn numbers_are_never_zero_and_wrap_as_a_range() {
        let ns = crate::Netns::new().unwrap();
        let mut s = ns.run(|| Socket::open(libc::NETLINK_ROUTE).unwrap()).unwrap();
        assert_eq!((s.sequence(3), s.sequence(1)), (1, 4));
        s.seq = u32::MAX - 5;
        assert_eq!(s.sequence(10), 1);
    }

    #[test]
    fn refusals_read_with_and_without_the_refused_message() {
        let mut attr = Builder::new();
        attr.attr_str(ERR_ATTR_MSG, "Nexthop has invalid gateway");
        let header = [20u8, 0, 0, 0, 24, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let code = (-101i32).to_ne_bytes();
        let capped = [&code[..], &header, attr.as_bytes()].concat();
        let whole = [&code[..], &header, &[9, 9, 9, 9], attr.as_bytes()].concat();
        for (payload, flags) in [(&capped, ACK_TLVS | CAPPED), (&whole, ACK_TLVS)] {
            let m = Message { kind: NLMSG_ERROR, flags, seq: 1, port: 0, payload };
            let message = Some("Nexthop has invalid gateway".into());
            assert_eq!(parse_error(&m), Some(Refusal { errno: 101, message }));
        }
        let m = Message { kind: NLMSG_ERROR, flags: 0, seq: 1, port: 0, payload: &code };
        assert_eq!(parse_error(&m), Some(Refusal::errno(101)));
        let m = Message { kind: NLMSG_ERROR, flags: 0, seq: 1, port: 0, payload: &[0; 20] };
        assert_eq!(parse_error(&m), None);
    }
}
