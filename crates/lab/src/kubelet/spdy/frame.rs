//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00 section 2.6), as far as port forwarding and remote commands use them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::BadSpdy;
use super::headers::{Headers, Packer, Unpacker};

/// The longest frame taken. Clients send at most 32 KiB at a time.
const MAX_FRAME: usize = 1 << 20;
/// The last frame of its sender in a stream.
const FIN: u8 = 1;
/// RST_STREAM: the stream is not wanted.
pub const REFUSED: u32 = 3;
/// RST_STREAM: it is of no use any more.
pub const CANCEL: u32 = 5;

/// A frame from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// SYN_STREAM: a new stream; whether its sender has nothing more to say.
    Open(u32, Headers, bool),
    /// Data of a stream; whether it was the last.
    Data(u32, Bytes, bool),
    /// RST_STREAM.
    Reset(u32),
    /// PING: to be sent back as it is.
    Ping(u32),
    /// GOAWAY.
    Away,
    /// What needs no answer: SETTINGS, WINDOW_UPDATE, HEADERS, SYN_REPLY and what is not known.
    Other,
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    headers: Unpacker,
}

impl Decoder {
    /// Where the next bytes of the connection belong.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// When the client does not speak SPDY/3; the connection is of no use then.
    pub fn next(&mut self) -> Result<Option<Frame>, BadSpdy> {
        let Some(head) = self.buf.first_chunk::<8>().copied() else { return Ok(None) };
        let len = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if len > MAX_FRAME {
            return Err(BadSpdy::TooLong);
        }
        if self.buf.len() < 8 + len {
            return Ok(None);
        }
        self.buf.advance(8);
        let mut body = self.buf.split_to(len).freeze();
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let fin = head[4] & FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data(first, body, fin)));
        }
        if (first >> 16) & 0x7fff != 3 {
            return Err(BadSpdy::Frame);
        }
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| BadSpdy::Frame);
        Ok(Some(match first & 0xffff {
            1 => {
                let id = number(&mut body)? & 0x7fff_ffff;
                // The stream it belongs to, its priority, a slot: nothing here.
                let block = body.get(6..).ok_or(BadSpdy::Frame)?;
                Frame::Open(id, self.headers.next(block)?, fin)
            }
            // What is compressed must be read, or the next block is not.
            2 | 8 => {
                self.headers.next(body.get(4..).ok_or(BadSpdy::Frame)?)?;
                Frame::Other
            }
            3 => Frame::Reset(number(&mut body)? & 0x7fff_ffff),
            6 => Frame::Ping(number(&mut body)?),
            7 => Frame::Away,
            _ => Frame::Other,
        }))
    }
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// SYN_REPLY: the stream is taken.
    Take(u32),
    /// Data of a stream; whether it is the last.
    Data(u32, Bytes, bool),
    /// RST_STREAM and why.
    Reset(u32, u32),
    /// The answer to a PING.
    Pong(u32),
    /// GOAWAY: the last thing.
    Away,
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, body: &[u8]) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | u32::try_from(body.len()).unwrap_or_default() & 0x00ff_ffff);
    out.put_slice(body);
}

/// The bytes of a frame. Data is at most 16 MiB (its length has 24 bits).
pub fn encode(packer: &mut Packer, say: &Say) -> Bytes {
    let mut out = BytesMut::new();
    match say {
        Say::Take(id) => {
            let mut body = id.to_be_bytes().to_vec();
            body.extend(packer.next(&[]));
            control(&mut out, 2, 0, &body);
        }
        Say::Data(id, data, fin) => {
            out.put_u32(*id);
            out.put_u32(u32::from(*fin) << 24 | u32::try_from(data.len()).unwrap_or_default() & 0x00ff_ffff);
            out.put_slice(data);
        }
        Say::Reset(id, why) => control(&mut out, 3, 0, &[id.to_be_bytes(), why.to_be_bytes()].concat()),
        Say::Pong(id) => control(&mut out, 6, 0, &id.to_be_bytes()),
        Say::Away => control(&mut out, 7, 0, &[0; 8]),
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(packer: &mut Packer, id: u32, headers: &[(&str, &str)], fin: u8) -> BytesMut {
        let mut body = id.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(packer.next(headers));
        let mut out = BytesMut::new();
        control(&mut out, 1, fin, &body);
        out
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let (mut p, mut say) = (Packer::default(), Packer::default());
        let mut wire = open(&mut p, 1, &[("streamtype", "data")], 0);
        wire.extend(encode(&mut say, &Say::Data(1, Bytes::from_static(b"abc"), true)));
        wire.extend(open(&mut p, 3, &[("streamtype", "error")], FIN));
        wire.extend(encode(&mut say, &Say::Pong(7)));
        wire.extend(encode(&mut say, &Say::Reset(3, CANCEL)));
        wire.extend(encode(&mut say, &Say::Away));
        let header = |v: &str| vec![("streamtype".to_owned(), v.to_owned())];
        let want = [
            Frame::Open(1, header("data"), false),
            Frame::Data(1, Bytes::from_static(b"abc"), true),
            Frame::Open(3, header("error"), true),
            Frame::Ping(7),
            Frame::Reset(3),
            Frame::Away,
        ];
        for step in 1..40 {
            let (mut d, mut have) = (Decoder::default(), Vec::new());
            for part in wire.chunks(step) {
                d.buffer().extend_from_slice(part);
                while let Some(f) = d.next().unwrap() {
                    have.push(f);
                }
            }
            assert_eq!(have, want);
        }
    }

    #[test]
    fn another_version_and_a_frame_too_long_are_refused() {
        let next = |b: &[u8]| {
            let mut d = Decoder::default();
            d.buffer().extend_from_slice(b);
            d.next()
        };
        assert_eq!(next(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]), Err(BadSpdy::Frame));
        assert_eq!(next(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]), Err(BadSpdy::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut d = Decoder::default();
            d.buffer().extend_from_slice(&data);
            while let Ok(Some(_)) = d.next() {}
        }
    }
}
