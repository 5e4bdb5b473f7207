//! WebSocket as a server speaks it (RFC 6455): bytes in, messages out, and back. No sockets here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use sha1::{Digest, Sha1};

/// The largest message taken, also in pieces.
const MAX_MESSAGE: usize = 16 << 20;
/// Normal closure (RFC 6455 section 7.4.1).
pub const NORMAL: u16 = 1000;

/// What a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Data, binary or text.
    Data(Bytes),
    /// To be answered with a pong of the same bytes.
    Ping(Bytes),
    /// The answer to a ping.
    Pong,
    /// The end.
    Close,
}

/// What may not be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// RFC 6455 section 5.1: clients mask.
    #[error("a client's frame is not masked")]
    Unmasked,
    /// Reserved bits, an unknown opcode, or a control frame in pieces or too long (section 5.5).
    #[error("a frame is not of RFC 6455")]
    Unknown,
    /// Longer than is taken here.
    #[error("a message is longer than 16 MiB")]
    TooLong,
}

/// The answer to a client's key (RFC 6455 section 4.2.2).
#[must_use]
pub fn accept(key: &str) -> String {
    let mut h = Sha1::new();
    h.update(key.as_bytes());
    h.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(h.finalize())
}

/// Takes bytes as they come and gives whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    /// The pieces of a message so far.
    pieces: Option<BytesMut>,
}

impl Decoder {
    /// Where the next bytes of the connection belong.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// When the client does not speak WebSocket; the connection is of no use then.
    pub fn next(&mut self) -> Result<Option<Message>, BadFrame> {
        loop {
            let Some((fin, op, data)) = self.frame()? else { return Ok(None) };
            return Ok(Some(match (op, fin) {
                (1 | 2, true) if self.pieces.is_none() => Message::Data(data),
                (1 | 2, false) if self.pieces.is_none() => {
                    self.pieces = Some(BytesMut::from(&data[..]));
                    continue;
                }
                (0, _) => {
                    let Some(pieces) = &mut self.pieces else { return Err(BadFrame::Unknown) };
                    if pieces.len() + data.len() > MAX_MESSAGE {
                        return Err(BadFrame::TooLong);
                    }
                    pieces.extend_from_slice(&data);
                    if !fin {
                        continue;
                    }
                    Message::Data(self.pieces.take().unwrap_or_default().freeze())
                }
                (8, true) => Message::Close,
                (9, true) => Message::Ping(data),
                (10, true) => Message::Pong,
                _ => return Err(BadFrame::Unknown),
            }));
        }
    }

    /// The next frame: whether it is the last of its message, its opcode, its data (section 5.2).
    fn frame(&mut self) -> Result<Option<(bool, u8, Bytes)>, BadFrame> {
        let b = &self.buf;
        if b.len() < 2 {
            return Ok(None);
        }
        let (fin, op, masked, short) = (b[0] & 0x80 != 0, b[0] & 0x0f, b[1] & 0x80 != 0, b[1] & 0x7f);
        if !masked {
            return Err(BadFrame::Unmasked);
        }
        if b[0] & 0x70 != 0 || op >= 8 && short > 125 {
            return Err(BadFrame::Unknown);
        }
        let wide = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let head = 2 + wide + 4;
        if b.len() < head {
            return Ok(None);
        }
        let len = match wide {
            0 => u64::from(short),
            _ => b[2..2 + wide].iter().fold(0u64, |n, x| n << 8 | u64::from(*x)),
        };
        let len = usize::try_from(len).ok().filter(|n| *n <= MAX_MESSAGE).ok_or(BadFrame::TooLong)?;
        let mask = [b[head - 4], b[head - 3], b[head - 2], b[head - 1]];
        if b.len() < head + len {
            return Ok(None);
        }
        self.buf.advance(head);
        let mut data = self.buf.split_to(len);
        for (x, m) in data.iter_mut().zip(mask.iter().cycle()) {
            *x ^= m;
        }
        Ok(Some((fin, op, data.freeze())))
    }
}

fn frame(op: u8, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = BytesMut::with_capacity(len + 10);
    out.extend_from_slice(&[0x80 | op]);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(n), _) if n < 126 => out.extend_from_slice(&[n]),
        (_, Ok(n)) => {
            out.extend_from_slice(&[126]);
            out.extend_from_slice(&n.to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    for p in parts {
        out.extend_from_slice(p);
    }
    out.freeze()
}

/// A binary message, of parts that follow each other.
#[must_use]
pub fn binary(parts: &[&[u8]]) -> Bytes {
    frame(2, parts)
}

/// The answer to a ping.
#[must_use]
pub fn pong(data: &[u8]) -> Bytes {
    frame(10, &[data])
}

/// The end, and why.
#[must_use]
pub fn close(code: u16) -> Bytes {
    frame(8, &[&code.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a client sends it.
    fn masked(first: u8, data: &[u8]) -> Vec<u8> {
        let plain = frame(first & 0x0f, &[data]);
        let head = plain.len() - data.len();
        let mut v = plain[..head].to_vec();
        v[0] = first;
        v[1] |= 0x80;
        v.extend([1, 2, 3, 4]);
        v.extend(data.iter().zip([1u8, 2, 3, 4].iter().cycle()).map(|(x, m)| x ^ m));
        v
    }

    fn decode(bytes: &[u8], step: usize) -> Result<Vec<Message>, BadFrame> {
        let mut d = Decoder::default();
        let mut out = Vec::new();
        for part in bytes.chunks(step.max(1)) {
            d.buffer().extend_from_slice(part);
            while let Some(m) = d.next()? {
                out.push(m);
            }
        }
        Ok(out)
    }

    #[test]
    fn the_rfcs_own_examples() {
        // Section 1.3 and section 5.7.
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decode(&hello, 1).unwrap(), [Message::Data(Bytes::from_static(b"Hello"))]);
    }

    #[test]
    fn what_a_client_may_not_say() {
        assert_eq!(decode(&[0x81, 0x05], 2), Err(BadFrame::Unmasked));
        assert_eq!(decode(&masked(0x83, b"x"), 9), Err(BadFrame::Unknown));
        assert_eq!(decode(&masked(0x80, b"x"), 9), Err(BadFrame::Unknown), "a piece of nothing");
        assert_eq!(decode(&masked(0x09, b"x"), 9), Err(BadFrame::Unknown), "a ping in pieces");
        let long = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(decode(&long, 20), Err(BadFrame::TooLong));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn messages_come_whole_however_they_are_cut(data in prop::collection::vec(any::<u8>(), 0..70_000), cut in 0usize..70_000, step in 1usize..9000) {
            let cut = cut.min(data.len());
            let mut wire = masked(0x02, &data[..cut]);
            wire.extend(masked(0x89, b"ping"));
            wire.extend(masked(0x80, &data[cut..]));
            wire.extend(masked(0x88, &[3, 232]));
            let want = [Message::Ping(Bytes::from_static(b"ping")), Message::Data(data.into()), Message::Close];
            prop_assert_eq!(decode(&wire, step).unwrap(), want);
        }

        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let _ = decode(&data, step);
        }
    }
}
