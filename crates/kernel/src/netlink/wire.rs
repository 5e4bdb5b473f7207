//! Messages and attributes as bytes. Reading never panics: what does not fit its stated length ends the iteration.

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of a `struct nlattr`.
const ATTR: usize = 4;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: without the nested and byte-order flags.
const TYPE_MASK: u16 = 0x3fff;

const fn align(n: usize) -> usize {
    (n + 3) & !3
}

/// Writes messages one after the other into one buffer.
#[derive(Default)]
pub(crate) struct Builder {
    buf: Vec<u8>,
    /// Where the message being written starts.
    at: usize,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Starts a message. The port id stays 0: the kernel knows the sender.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, seq: u32) {
        self.at = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
    }

    /// Writes the length of the message, after its last attribute.
    pub(crate) fn end(&mut self) {
        self.pad();
        // A single message is far below 4 GiB: attributes are at most 64 KiB and bounded in number by the callers.
        let len = u32::try_from(self.buf.len() - self.at).unwrap_or(u32::MAX);
        if let Some(slot) = self.buf.get_mut(self.at..self.at + 4) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Sets more flags on the message written last.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        if let Some(slot) = self.buf.get_mut(self.at + 6..self.at + 8) {
            let old = u16::from_ne_bytes([slot[0], slot[1]]);
            slot.copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    /// Gives the messages sequence numbers, counted from `seq`.
    pub(crate) fn number_from(&mut self, mut seq: u32) {
        let mut at = 0;
        while let Some(len) = self.buf.get(at..).and_then(ne32) {
            if let Some(slot) = self.buf.get_mut(at + 8..at + 12) {
                slot.copy_from_slice(&seq.to_ne_bytes());
            }
            seq = seq.wrapping_add(1);
            at += len.max(16) as usize;
        }
    }

    fn pad(&mut self) {
        self.buf.resize(align(self.buf.len()), 0);
    }

    /// Plain bytes: a family's header.
    pub(crate) fn bytes(&mut self, b: &[u8]) {
        self.buf.extend_from_slice(b);
        self.pad();
    }

    /// An attribute. Data longer than 64 KiB cannot be said; every caller bounds its data.
    pub(crate) fn attr(&mut self, kind: u16, data: &[u8]) {
        let len = u16::try_from(ATTR + data.len()).unwrap_or(u16::MAX);
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&data[..usize::from(len) - ATTR]);
        self.pad();
    }

    pub(crate) fn attr_u8(&mut self, kind: u16, v: u8) {
        self.attr(kind, &[v]);
    }

    /// Host byte order.
    pub(crate) fn attr_u32(&mut self, kind: u16, v: u32) {
        self.attr(kind, &v.to_ne_bytes());
    }

    /// Network byte order.
    pub(crate) fn attr_be16(&mut self, kind: u16, v: u16) {
        self.attr(kind, &v.to_be_bytes());
    }

    /// Network byte order.
    pub(crate) fn attr_be32(&mut self, kind: u16, v: u32) {
        self.attr(kind, &v.to_be_bytes());
    }

    /// A text with its final NUL.
    pub(crate) fn attr_str(&mut self, kind: u16, s: &str) {
        let mut b = Vec::with_capacity(s.len() + 1);
        b.extend_from_slice(s.as_bytes());
        b.push(0);
        self.attr(kind, &b);
    }

    /// Starts an attribute that holds others; returns its place for [`Self::close`].
    pub(crate) fn open(&mut self, kind: u16) -> usize {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0; 2]);
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        at
    }

    /// Ends it.
    pub(crate) fn close(&mut self, at: usize) {
        let len = u16::try_from(self.buf.len() - at).unwrap_or(u16::MAX);
        if let Some(slot) = self.buf.get_mut(at..at + 2) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buf
    }

    pub(crate) fn clear(&mut self) {
        self.buf.clear();
        self.at = 0;
    }
}

/// A message as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// Port id of the socket whose request made it, 0 for the kernel's own.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after a family header of `header` bytes.
    pub(crate) fn attrs(&self, header: usize) -> Attrs<'a> {
        Attrs(self.payload.get(align(header)..).unwrap_or(&[]))
    }
}

/// The messages of a datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;
    fn next(&mut self) -> Option<Message<'a>> {
        let b = self.0;
        let len = ne32(b)? as usize;
        if len < HEADER || len > b.len() {
            self.0 = &[];
            return None;
        }
        let m = Message {
            kind: ne16(b.get(4..)?)?,
            flags: ne16(b.get(6..)?)?,
            seq: ne32(b.get(8..)?)?,
            port: ne32(b.get(12..)?)?,
            payload: b.get(HEADER..len)?,
        };
        self.0 = b.get(align(len)..).unwrap_or(&[]);
        Some(m)
    }
}

/// The attributes in a run of bytes: type without flags, data.
#[derive(Clone, Copy)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let b = self.0;
        let len = usize::from(ne16(b)?);
        let kind = ne16(b.get(2..)?)? & TYPE_MASK;
        if len < ATTR || len > b.len() {
            self.0 = &[];
            return None;
        }
        let data = b.get(ATTR..len)?;
        self.0 = b.get(align(len)..).unwrap_or(&[]);
        Some((kind, data))
    }
}

impl<'a> Attrs<'a> {
    /// The first of a type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, d)| d)
    }

    /// The attributes nested in the first of a type; none when it is absent.
    pub(crate) fn nested(self, kind: u16) -> Attrs<'a> {
        Attrs(self.get(kind).unwrap_or(&[]))
    }
}

/// The first two bytes, host order.
pub(crate) fn ne16(b: &[u8]) -> Option<u16> {
    b.first_chunk().map(|c| u16::from_ne_bytes(*c))
}

/// The first four bytes, host order.
pub(crate) fn ne32(b: &[u8]) -> Option<u32> {
    b.first_chunk().map(|c| u32::from_ne_bytes(*c))
}

/// The first eight bytes, host order.
pub(crate) fn ne64(b: &[u8]) -> Option<u64> {
    b.first_chunk().map(|c| u64::from_ne_bytes(*c))
}

/// The first two bytes, network order.
pub(crate) fn be16(b: &[u8]) -> Option<u16> {
    b.first_chunk().map(|c| u16::from_be_bytes(*c))
}

/// The first four bytes, network order.
pub(crate) fn be32(b: &[u8]) -> Option<u32> {
    b.first_chunk().map(|c| u32::from_be_bytes(*c))
}

/// A text up to its NUL or end; `None` when it is not UTF-8.
pub(crate) fn cstr(b: &[u8]) -> Option<&str> {
    let end = b.iter().position(|c| *c == 0).unwrap_or(b.len());
    b.get(..end).and_then(|s| std::str::from_utf8(s).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back() {
        let mut b = Builder::new();
        b.begin(16, 5, 7);
        b.bytes(&[1, 2, 3, 4]);
        b.attr_str(3, "eth0");
        let n = b.open(18);
        b.attr_u32(1, 42);
        b.attr_u8(2, 9);
        b.close(n);
        b.end();
        b.begin(3, 0, 8);
        b.end();
        b.add_flags(4);
        let all: Vec<_> = Messages(b.as_bytes()).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].flags, all[0].seq, all[0].port), (16, 5, 7, 0));
        assert_eq!((all[1].kind, all[1].flags, all[1].seq), (3, 4, 8));
        let mut numbered = Builder { buf: b.buf.clone(), at: 0 };
        numbered.number_from(100);
        assert_eq!(Messages(numbered.as_bytes()).map(|m| m.seq).collect::<Vec<_>>(), [100, 101]);
        let attrs = all[0].attrs(4);
        assert_eq!(attrs.get(3).and_then(cstr), Some("eth0"));
        assert_eq!(attrs.nested(18).get(1).and_then(ne32), Some(42));
        assert_eq!(attrs.nested(18).get(2), Some(&[9u8][..]));
        assert_eq!(attrs.count(), 2);
    }

    #[test]
    fn cut_short_ends_the_iteration() {
        let mut b = Builder::new();
        b.begin(16, 0, 1);
        b.attr_u32(1, 1);
        b.end();
        for n in 0..b.len() {
            assert_eq!(Messages(&b.as_bytes()[..n]).count(), 0, "{n} bytes");
        }
        assert_eq!(Attrs(&[8, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attrs(&[3, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attrs(&[4, 0, 1, 0]).count(), 1);
    }
}
