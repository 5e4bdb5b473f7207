//! Header blocks of SPDY/3 (draft-mbelshe-httpbis-spdy-00 section 2.6.10): name and value pairs, compressed with zlib, one
//! stream of it per connection and direction, on a dictionary of its own.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::BadSpdy;

/// The beginning of the dictionary: words, each with its length before it (section 2.6.10.1).
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent \
vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";
/// The rest of it.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1\
,utf-,*,enq=0.";
/// Its checksum (Adler-32, RFC 1950), by which the other side says that it uses it.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

/// The most that one block may unpack to.
const MAX_BLOCK: usize = 64 << 10;
/// What deflate looks back to, twice: the unpacker wants a power of two.
const WINDOW: usize = 64 << 10;

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        out.extend(u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        out.extend(word.replace('_', " ").bytes());
    }
    out.extend(REST.bytes());
    out
}

/// Names, in lower case, and their values; of several values the text between zeros.
pub type Headers = Vec<(String, String)>;

/// Unpacks the blocks of one direction of a connection.
pub struct Unpacker {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Default for Unpacker {
    fn default() -> Self {
        Self { state: Box::default(), window: vec![0; WINDOW], at: 0, begun: false }
    }
}

impl Unpacker {
    /// The headers of the next block.
    ///
    /// # Errors
    /// When it is none: the connection is of no use then, since all later blocks build on it.
    pub fn next(&mut self, mut block: &[u8]) -> Result<Headers, BadSpdy> {
        if !self.begun {
            block = self.begin(block)?;
        }
        parse(&self.inflate(block)?)
    }

    /// The head of a zlib stream (RFC 1950 section 2.2).
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], BadSpdy> {
        let [cmf, flags, rest @ ..] = block else { return Err(BadSpdy::Compression) };
        if cmf & 0x0f != 8 || u16::from_be_bytes([*cmf, *flags]) % 31 != 0 {
            return Err(BadSpdy::Compression);
        }
        self.begun = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let dictionary = dictionary();
        self.window[..dictionary.len()].copy_from_slice(&dictionary);
        self.at = dictionary.len();
        rest.strip_prefix(&DICTIONARY_ID).ok_or(BadSpdy::Compression)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, BadSpdy> {
        let mut out = Vec::new();
        loop {
            let (status, read, written) =
                decompress(&mut self.state, block, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            out.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            block = &block[read..];
            if out.len() > MAX_BLOCK {
                return Err(BadSpdy::TooLong);
            }
            match status {
                TINFLStatus::NeedsMoreInput if block.is_empty() => return Ok(out),
                TINFLStatus::HasMoreOutput => {}
                // A stream that ended has no further blocks; SPDY's never ends.
                _ => return Err(BadSpdy::Compression),
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, BadSpdy> {
    let mut rest = block;
    let number = |rest: &mut &[u8]| -> Result<usize, BadSpdy> {
        let (n, tail) = rest.split_first_chunk::<4>().ok_or(BadSpdy::Frame)?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*n)).map_err(|_| BadSpdy::Frame)
    };
    let count = number(&mut rest)?;
    let mut out = Headers::new();
    for _ in 0..count {
        let mut text = || -> Result<String, BadSpdy> {
            let len = number(&mut rest)?;
            let (text, tail) = rest.split_at_checked(len).ok_or(BadSpdy::Frame)?;
            rest = tail;
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        let name = text()?.to_ascii_lowercase();
        out.push((name, text()?));
    }
    Ok(out)
}

/// Packs the blocks of one direction: as stored blocks, which every unpacker understands, and ends each with an empty one,
/// so that what was packed can be read at once (RFC 1951 section 3.2.4).
#[derive(Debug, Default)]
pub struct Packer {
    begun: bool,
}

impl Packer {
    /// The next block.
    pub fn next(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap_or_default().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(k, v)| [*k, *v]) {
            plain.extend(u32::try_from(text.len()).unwrap_or_default().to_be_bytes());
            plain.extend(text.bytes());
        }
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.extend([0x78, 0x01]);
        }
        for part in plain.chunks(0xffff).chain([&[][..]]) {
            let len = u16::try_from(part.len()).unwrap_or_default();
            out.push(0);
            out.extend(len.to_le_bytes());
            out.extend((!len).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_its_number() {
        let d = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for x in &d {
            a = (a + u32::from(*x)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((d.len(), (b << 16 | a).to_be_bytes()), (1423, DICTIONARY_ID));
    }

    #[test]
    fn a_stream_on_the_dictionary_is_read() {
        // Two blocks of one stream on the dictionary, as zlib writes them (level 9, flushed after each).
        let wire: [&str; 2] = ZLIB;
        let bytes = |s: &str| -> Vec<u8> {
            (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
        };
        let mut u = Unpacker::default();
        for (block, kind) in wire.iter().zip(["error", "data"]) {
            let have = u.next(&bytes(block)).unwrap();
            let want = [("streamtype", kind), ("port", "8080"), ("requestid", "0")];
            assert_eq!(have, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn packed_and_unpacked(blocks in prop::collection::vec(prop::collection::vec(("[a-z]{1,9}", "[ -~]{0,60}"), 0..9), 1..9)) {
            let (mut p, mut u) = (Packer::default(), Unpacker::default());
            for b in blocks {
                let refs: Vec<(&str, &str)> = b.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                prop_assert_eq!(u.next(&p.next(&refs)).unwrap(), b);
            }
        }

        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut zlib = vec![0x78, 0x01];
            zlib.extend(&data);
            let _ = (Unpacker::default().next(&data), Unpacker::default().next(&zlib), parse(&data));
        }
    }

    const ZLIB: [&str; 2] = [
        "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff",
        "c2aa19540e2512d60b000000ffff",
    ];
}
