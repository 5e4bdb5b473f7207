//! `index`: where the journal stood some lines ago, so that an ADD on a node of a thousand pods reads a few lines and
//! not a thousand.
//!
//! It is a copy: it may be missing, old, torn or damaged at any time, and then the journal is read from its beginning.
//! It holds for one journal, told by the boot and by the bytes before the place up to which it was read; whoever
//! changes the journal otherwise than at its end removes it first.
//!
//! Little-endian: CRC-32 of the rest; format; boot id (length, bytes); place in the journal; its lines; the bytes before
//! that place; the addresses given out last; the number of attachments; each one's digits, place and addresses, in the
//! order of its first address, which is mostly that of the others as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::IpamError;
use crate::alloc::{Pool, Used};
use crate::frame::crc;
use crate::state::{Few, Live, Lives, State};
use crate::there::IfThere;

/// The format's number.
const FORMAT: u32 = 1;
/// So many bytes of the journal before the place are compared.
const WITNESS: usize = 96;
/// So many lines after the place, and it is written anew.
const LINES: usize = 32;
/// What [`crc`] is given for a kind.
pub(crate) const KIND: u8 = b'I';

/// The state that the index of `journal` holds, with `only` one attachment of it or with all: none when it does not hold.
pub(crate) fn load(path: &Path, journal: &File, size: u64, boot: &str, only: Option<u64>) -> Option<State> {
    let mut bytes = Vec::with_capacity(16 << 10);
    File::open(path).ok()?.read_to_end(&mut bytes).ok()?;
    let (state, witness) = decode(&bytes, boot, only)?;
    let mut seen = [0; WITNESS];
    let seen = seen.get_mut(..witness.len())?;
    let from = state.good.checked_sub(witness.len() as u64)?;
    (state.good <= size && journal.read_exact_at(seen, from).is_ok() && seen == witness).then_some(state)
}

/// For fuzzing: the bytes of the state that an index holds, written again, and what the journal must have had.
pub(crate) fn read(bytes: &[u8], boot: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let (state, witness) = decode(bytes, boot, None)?;
    Some((encode(&state, boot, witness), witness.to_vec()))
}

/// Whether it is time to write the index anew, `lines` after it was written.
pub(crate) fn is_due(lines: usize) -> bool {
    lines >= LINES
}

/// Writes the index for `state` of `journal`. A write that is cut short fails its checksum.
pub(crate) fn store(path: &Path, journal: &File, state: &State, boot: &str) -> io::Result<()> {
    let mut witness = [0; WITNESS];
    let n = WITNESS.min(usize::try_from(state.good).unwrap_or(WITNESS));
    let witness = &mut witness[..n];
    journal.read_exact_at(witness, state.good - n as u64)?;
    let bytes = encode(state, boot, witness);
    let f = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    f.write_all_at(&bytes, 0)?;
    f.set_len(bytes.len() as u64)
}

/// Removes the index, before the journal changes otherwise than at its end.
pub(crate) fn drop(path: &Path) -> Result<(), IpamError> {
    fs::remove_file(path).if_there().map(|_| ()).map_err(|e| IpamError::io("remove", path, e))
}

fn encode(state: &State, boot: &str, witness: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    let long = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_le_bytes());
    let short =
        |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    let text = |out: &mut Vec<u8>, b: &[u8]| {
        short(out, b.len());
        out.extend_from_slice(b);
    };
    out.extend_from_slice(&FORMAT.to_le_bytes());
    text(&mut out, boot.as_bytes());
    long(&mut out, state.good);
    long(&mut out, state.lines as u64);
    text(&mut out, witness);
    let addresses = |out: &mut Vec<u8>, all: &mut dyn Iterator<Item = IpAddr>| {
        let at = out.len();
        out.push(0);
        for a in all {
            match a {
                IpAddr::V4(a) => out.extend_from_slice(&[&[4][..], &a.octets()].concat()),
                IpAddr::V6(a) => out.extend_from_slice(&[&[6][..], &a.octets()].concat()),
            }
            out[at] = out[at].saturating_add(1);
        }
    };
    addresses(&mut out, &mut state.pool.last.iter().flatten().copied());
    short(&mut out, state.live.len());
    let mut live: Vec<(&u64, &Live)> = state.live.iter().collect();
    live.sort_unstable_by_key(|(_, l)| l.addresses.iter().next());
    for (link, l) in live {
        long(&mut out, *link);
        long(&mut out, l.at);
        addresses(&mut out, &mut l.addresses.iter());
    }
    let sum = crc(KIND, &out[4..]).to_le_bytes();
    out[..4].copy_from_slice(&sum);
    out
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn some<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.some().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.some().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.some()? {
            [4] => self.some::<4>().map(|a| Ipv4Addr::from(a).into()),
            [6] => self.some::<16>().map(|a| Ipv6Addr::from(a).into()),
            _ => None,
        }
    }

    fn addresses(&mut self) -> Option<Few> {
        Some(match self.some()? {
            [0] => Few::UpToTwo([None, None]),
            [1] => Few::UpToTwo([Some(self.address()?), None]),
            [2] => Few::UpToTwo([Some(self.address()?), Some(self.address()?)]),
            [n] => Few::of(&(0..n).map(|_| self.address()).collect::<Option<Vec<_>>>()?),
        })
    }
}

/// The state, and the bytes that the journal must have before the place.
fn decode<'a>(bytes: &'a [u8], boot: &str, only: Option<u64>) -> Option<(State, &'a [u8])> {
    let mut r = Reader(bytes);
    if r.u32()? != crc(KIND, r.0) || r.u32()? != FORMAT || r.text()? != boot.as_bytes() {
        return None;
    }
    let (good, lines) = (r.u64()?, usize::try_from(r.u64()?).ok()?);
    let witness = r.text()?;
    let mut last = [None; 2];
    for a in r.addresses()?.iter() {
        last[usize::from(a.is_ipv6())] = Some(a);
    }
    let n = r.u32()? as usize;
    // Each has at least 17 bytes: a number that is not true asks for no memory.
    let room = if only.is_some() { 1 } else { n.min(r.0.len() / 17) };
    let mut live = Lives::with_capacity_and_hasher(room, Default::default());
    // In the order of the first address, and so mostly of each family's.
    let mut used = Used::with_capacity(room);
    for _ in 0..n {
        let link = r.u64()?;
        let entry = Live { at: r.u64()?, addresses: r.addresses()? };
        if only.is_some_and(|o| o != link) {
            continue;
        }
        entry.addresses.iter().for_each(|a| used.insert(a, link));
        live.insert(link, entry);
    }
    let pool = Pool { used, last };
    Some((State { live, pool, lines, good }, witness))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> State {
        let mut s = State { lines: 7, good: 1000, ..State::default() };
        s.add(0xabc, 50, &["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]);
        s.add(0x12, 400, &["10.0.0.3".parse().unwrap()]);
        s.add(0xffff_ffff_ffff, 700, &["fd00::3", "10.0.0.4", "fd00::4"].map(|a| a.parse().unwrap()));
        s
    }

    #[test]
    fn what_is_written_is_read() {
        for s in [State::default(), some()] {
            let bytes = encode(&s, "boot", b"witness");
            assert_eq!(decode(&bytes, "another", None), None);
            // One of them.
            for link in [0xabc, 0x12, 0x13] {
                let (one, _) = decode(&bytes, "boot", Some(link)).unwrap();
                assert_eq!(one.live.get(&link), s.live.get(&link));
                assert_eq!((one.live.len(), one.good), (usize::from(s.live.contains_key(&link)), s.good));
            }
            assert_eq!(decode(&bytes, "boot", None), Some((s, &b"witness"[..])));
        }
    }

    #[test]
    fn a_torn_or_changed_index_is_none() {
        let bytes = encode(&some(), "boot", b"witness");
        for n in 0..bytes.len() {
            assert_eq!(decode(&bytes[..n], "boot", None), None, "{n} bytes");
            let mut bad = bytes.clone();
            bad[n] ^= 0x10;
            assert_eq!(decode(&bad, "boot", None), None, "byte {n}");
        }
        // With a right checksum, too, nothing is believed beyond the end.
        for n in 4..bytes.len() {
            let mut bad = bytes[..n].to_vec();
            let sum = crc(KIND, &bad[4..]).to_le_bytes();
            bad[..4].copy_from_slice(&sum);
            assert_eq!(decode(&bad, "boot", None), None, "{n} bytes");
        }
    }
}
