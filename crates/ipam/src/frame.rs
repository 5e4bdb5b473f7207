//! One line of the journal: `KIND CRC JSON`.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use types::{IfName, OwnedName};

use crate::{Key, Record};

/// The header's format version.
pub(crate) const VERSION: u32 = 1;

/// `KIND`, a blank, eight hex digits, a blank.
const PREFIX: usize = 11;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// Format version.
    pub version: u32,
    /// Boot id of the kernel that the records live under.
    pub boot: Box<str>,
}

/// A line's meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Header(Header),
    Add(Record),
    Del(Key),
    /// An [`Frame::Add`] whose attachment was removed in place.
    Void(Record),
    /// The address given out last in each family: written after compaction, so that the next does not start over.
    Last(Vec<IpAddr>),
}

/// The kind byte that voids an `A` line in place.
pub(crate) const VOID: u8 = b'X';

/// What replay needs of an `A` line: reading the rest for every attachment would be most of what an ADD costs us.
#[derive(Debug, Deserialize)]
pub(crate) struct Slim<'a> {
    #[serde(borrow)]
    pub key: SlimKey<'a>,
    #[serde(borrow)]
    pub link: Cow<'a, str>,
    pub addresses: Vec<IpAddr>,
}

/// A key without its own memory.
#[derive(Debug, Deserialize)]
pub(crate) struct SlimKey<'a> {
    #[serde(borrow)]
    pub container: Cow<'a, str>,
    #[serde(borrow)]
    pub ifname: Cow<'a, str>,
}

impl SlimKey<'_> {
    /// Whether it is a key at all.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.ifname.parse::<IfName>().map(drop).map_err(|e| e.to_string())
    }

    /// The digits of its host end's name.
    pub(crate) fn digits(&self) -> u64 {
        OwnedName::digits_for(&self.container, &self.ifname)
    }
}

/// A line as replay needs it.
pub(crate) enum Line<'a> {
    Header(Header),
    Add(Slim<'a>),
    Del(Key),
    /// Addresses that were given out, though nobody here has them now.
    Last(Vec<IpAddr>),
}

/// `TABLES[0]` is the table of the bytewise algorithm; `TABLES[n]` carries a byte over n more.
const TABLES: [[u32; 256]; 8] = {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            k += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut i = 0;
        while i < 256 {
            t[n][i] = (t[n - 1][i] >> 8) ^ t[0][(t[n - 1][i] & 0xff) as usize];
            i += 1;
        }
        n += 1;
    }
    t
};

/// CRC-32 of IEEE 802.3 (reflected, 0xedb88320), over `kind` and `body`, eight bytes at a time.
pub(crate) fn crc(kind: u8, body: &[u8]) -> u32 {
    let at = |n: usize, b: u32| TABLES[n][(b & 0xff) as usize];
    let step = |c: u32, b: u8| at(0, c ^ u32::from(b)) ^ (c >> 8);
    let mut c = step(!0, kind);
    let (chunks, rest) = body.as_chunks::<8>();
    for &[a, b, d, e, f, g, h, i] in chunks {
        let x = c ^ u32::from_le_bytes([a, b, d, e]);
        c = at(7, x)
            ^ at(6, x >> 8)
            ^ at(5, x >> 16)
            ^ at(4, x >> 24)
            ^ at(3, f.into())
            ^ at(2, g.into())
            ^ at(1, h.into())
            ^ at(0, i.into());
    }
    !rest.iter().fold(c, |c, &b| step(c, b))
}

/// Kind and body of a line, newline excluded, if its checksum is right.
fn verified(line: &[u8]) -> Result<(u8, &[u8]), String> {
    if line.len() < PREFIX || line[1] != b' ' || line[10] != b' ' {
        return Err("no `KIND CRC JSON` line".into());
    }
    let kind = line[0];
    let want = std::str::from_utf8(&line[2..10])
        .ok()
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
        .and_then(|t| u32::from_str_radix(t, 16).ok())
        .ok_or("its checksum is not eight hex digits")?;
    let body = &line[PREFIX..];
    let have = crc(if kind == VOID { b'A' } else { kind }, body);
    if want != have {
        return Err(format!("its checksum is {have:08x} and should be {want:08x}"));
    }
    Ok((kind, body))
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

fn unknown(kind: u8) -> String {
    format!("its kind {:?} is none of H, A, D, X, L", char::from(kind))
}

impl<'a> Line<'a> {
    /// Reads a line, newline excluded.
    pub(crate) fn decode(line: &'a [u8]) -> Result<Self, String> {
        let (kind, body) = verified(line)?;
        match kind {
            b'H' => json(body).map(Self::Header),
            b'A' => json(body).map(Self::Add),
            VOID => json(body).map(|s: Slim<'_>| Self::Last(s.addresses)),
            b'D' => json(body).map(Self::Del),
            b'L' => json(body).map(Self::Last),
            k => Err(unknown(k)),
        }
    }
}

impl Frame {
    /// The line, newline included.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Header(h) => (b'H', serde_json::to_vec(h)),
            Self::Add(r) | Self::Void(r) => (b'A', serde_json::to_vec(r)),
            Self::Del(k) => (b'D', serde_json::to_vec(k)),
            Self::Last(a) => (b'L', serde_json::to_vec(a)),
        };
        // Plain structs of text and numbers always serialise; an empty body would fail its own decoding, loudly.
        let body = body.unwrap_or_default();
        let mut line = Vec::with_capacity(PREFIX + body.len() + 1);
        line.push(if matches!(self, Self::Void(_)) { VOID } else { kind });
        line.extend_from_slice(format!(" {:08x} ", crc(kind, &body)).as_bytes());
        line.extend_from_slice(&body);
        line.push(b'\n');
        line
    }

    /// Reads a line, newline excluded.
    pub(crate) fn decode(line: &[u8]) -> Result<Self, String> {
        let (kind, body) = verified(line)?;
        match kind {
            b'H' => json(body).map(Self::Header),
            b'A' => json(body).map(Self::Add),
            VOID => json(body).map(Self::Void),
            b'D' => json(body).map(Self::Del),
            b'L' => json(body).map(Self::Last),
            k => Err(unknown(k)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc(b'1', b"23456789"), 0xcbf4_3926);
        // Long enough for the eightfold step; the value is zlib's.
        assert_eq!(crc(b'0', b"123456789abcdef"), 0x68c4_f033);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let frame = Frame::Del(Key { container: "c1".into(), ifname: "eth0".parse().unwrap() });
        let line = frame.encode();
        assert_eq!(Frame::decode(&line[..line.len() - 1]), Ok(frame));
        for i in 0..line.len() - 1 {
            for bit in 0..8 {
                let mut bad = line[..line.len() - 1].to_vec();
                bad[i] ^= 1 << bit;
                assert!(Frame::decode(&bad).is_err(), "byte {i} bit {bit}");
            }
        }
    }
}
