//! One line of the journal: `KIND CRC JSON`.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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

const TABLE: [u32; 256] = {
    let mut t = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            k += 1;
        }
        t[i] = c;
        i += 1;
    }
    t
};

/// CRC-32 of IEEE 802.3 (reflected, 0xedb88320), over `kind` and `body`.
fn crc(kind: u8, body: &[u8]) -> u32 {
    let step = |c: u32, b: u8| TABLE[((c ^ u32::from(b)) & 0xff) as usize] ^ (c >> 8);
    !body.iter().fold(step(!0, kind), |c, &b| step(c, b))
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
        let json = |e: serde_json::Error| e.to_string();
        match kind {
            b'H' => serde_json::from_slice(body).map(Self::Header).map_err(json),
            b'A' => serde_json::from_slice(body).map(Self::Add).map_err(json),
            VOID => serde_json::from_slice(body).map(Self::Void).map_err(json),
            b'D' => serde_json::from_slice(body).map(Self::Del).map_err(json),
            b'L' => serde_json::from_slice(body).map(Self::Last).map_err(json),
            k => Err(format!("its kind {:?} is none of H, A, D, X, L", char::from(k))),
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
