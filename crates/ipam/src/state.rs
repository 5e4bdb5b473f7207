//! What a journal's bytes mean: replay, from the beginning or from a checkpoint on.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;

use types::OwnedName;

use crate::alloc::Pool;
use crate::frame::{Frame, Line, Slim, VERSION};
use crate::{IpamError, Key, Record};

/// What replay keeps of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    /// Where its line begins.
    pub at: u64,
    pub addresses: Few,
}

/// Mostly one address of each family: these need no memory of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Few {
    UpToTwo([Option<IpAddr>; 2]),
    More(Box<[IpAddr]>),
}

impl Few {
    pub(crate) fn of(addresses: &[IpAddr]) -> Self {
        match addresses {
            [] => Self::UpToTwo([None, None]),
            [a] => Self::UpToTwo([Some(*a), None]),
            [a, b] => Self::UpToTwo([Some(*a), Some(*b)]),
            more => Self::More(more.into()),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let (two, more) = match self {
            Self::UpToTwo(two) => (two.as_slice(), [].as_slice()),
            Self::More(more) => ([].as_slice(), &**more),
        };
        two.iter().flatten().chain(more).copied()
    }
}

/// The attachments, by the digits of their host ends' names.
pub(crate) type Lives = HashMap<u64, Live, BuildHasherDefault<Digits>>;

/// The digits are a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Digits(u64);

impl Hasher for Digits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, n: u64) {
        // They have 52 bits, and a table looks at the highest of 64 as well (2^64 divided by the golden ratio).
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Who lives and who has which address. An attachment is known by the digits of its host end's name, which no two that
/// live share; the rest of its record stays in the file until somebody asks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub live: Lives,
    pub pool: Pool,
    /// Complete lines.
    pub lines: usize,
    /// Bytes up to and including the last complete line.
    pub good: u64,
}

/// A journal's file, and what of it is in memory.
pub(crate) struct Text<'a> {
    pub path: &'a Path,
    pub file: Option<&'a File>,
    /// Its bytes from `from` on.
    pub bytes: &'a [u8],
    pub from: u64,
}

impl State {
    /// The digits that `key` is known by.
    pub(crate) fn digits(key: &Key) -> u64 {
        OwnedName::digits_for(&key.container, key.ifname.as_str())
    }

    /// What all of a journal's bytes mean. `None` when they are void: empty, torn within the header, or of another boot.
    pub(crate) fn replay(path: &Path, bytes: &[u8], boot: &str) -> Result<Option<Self>, IpamError> {
        let mut s = Self::default();
        let current = s.go_on(&Text { path, file: None, bytes, from: 0 }, boot)?;
        Ok((current && s.lines > 0).then_some(s))
    }

    /// Takes in the lines of `text`, which begin where this ends. False when the header is of another boot.
    pub(crate) fn go_on(&mut self, text: &Text<'_>, boot: &str) -> Result<bool, IpamError> {
        let mut at = 0;
        while let Some(n) = text.bytes[at..].iter().position(|b| *b == b'\n') {
            let offset = text.from + at as u64;
            let corrupt = |line, why| IpamError::Corrupt { file: text.path.to_owned(), line, offset, why };
            let number = self.lines + 1;
            let line = Line::decode(&text.bytes[at..at + n]).map_err(|why| corrupt(number, why))?;
            match (self.lines, line) {
                (0, Line::Header(h)) => {
                    if h.version != VERSION {
                        let why = format!("it is of format {}, this binary reads format {VERSION}", h.version);
                        return Err(corrupt(number, why));
                    }
                    if *h.boot != *boot {
                        return Ok(false);
                    }
                }
                (0, _) => return Err(corrupt(number, "the first line is not a header".into())),
                (_, Line::Header(_)) => return Err(corrupt(number, "a second header".into())),
                (_, Line::Add(slim)) => self.take_in(text, offset, &slim).map_err(|why| corrupt(number, why))?,
                (_, Line::Last(last)) => {
                    for a in last {
                        self.pool.last[usize::from(a.is_ipv6())] = Some(a);
                    }
                }
                (_, Line::Del(k)) => self.del(Self::digits(&k)),
            }
            self.lines += 1;
            at += n + 1;
        }
        self.good = text.from + at as u64;
        Ok(true)
    }

    /// An `A` line at `at`.
    fn take_in(&mut self, text: &Text<'_>, at: u64, slim: &Slim<'_>) -> Result<(), String> {
        slim.key.check()?;
        let link = slim.key.digits();
        if slim.link.strip_prefix("sea").and_then(|d| u64::from_str_radix(d, 16).ok()) != Some(link) {
            return Err(format!("its link {} is not that of its key", slim.link));
        }
        let name = |link: &u64| match self.record(text, *link) {
            Ok(r) => r.map_or_else(String::new, |r| r.key.to_string()),
            Err(e) => e.to_string(),
        };
        let me = format_args!("{}/{}", slim.key.container, slim.key.ifname).to_string();
        if self.live.contains_key(&link) && name(&link) != me {
            return Err(format!("{me} has the host end {}, which {} has", slim.link, name(&link)));
        }
        for a in &slim.addresses {
            if let Some(by) = self.pool.used.get(a).filter(|by| **by != link) {
                return Err(format!("{me} is given the address {a}, which {} has", name(by)));
            }
        }
        self.add(link, at, &slim.addresses);
        Ok(())
    }

    pub(crate) fn add(&mut self, link: u64, at: u64, addresses: &[IpAddr]) {
        self.del(link);
        for a in addresses {
            self.pool.take(*a, link);
        }
        self.live.insert(link, Live { at, addresses: Few::of(addresses) });
    }

    pub(crate) fn del(&mut self, link: u64) {
        for a in self.live.remove(&link).iter().flat_map(|l| l.addresses.iter()) {
            self.pool.used.remove(&a);
        }
    }

    /// A living attachment's record in full.
    pub(crate) fn record(&self, text: &Text<'_>, link: u64) -> Result<Option<Record>, IpamError> {
        let Some(at) = self.live.get(&link).map(|l| l.at) else { return Ok(None) };
        let line = text.line(at)?;
        let why = match Frame::decode(&line) {
            Ok(Frame::Add(r)) if r.link.digits() == link => return Ok(Some(r)),
            Ok(_) => "it is another than the attachment that was here".into(),
            Err(why) => why,
        };
        let before = text.whole()?;
        let line = 1 + before.iter().zip(0..at).filter(|(b, _)| **b == b'\n').count();
        Err(IpamError::Corrupt { file: text.path.to_owned(), line, offset: at, why })
    }

    /// All of them, in key order.
    pub(crate) fn records(&self, text: &Text<'_>) -> Result<Vec<Record>, IpamError> {
        let whole = text.whole()?;
        let text = Text { bytes: &whole, from: 0, ..*text };
        let all = self.live.keys().filter_map(|link| self.record(&text, *link).transpose());
        let mut all = all.collect::<Result<Vec<_>, _>>()?;
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }
}

impl Text<'_> {
    /// All of the file.
    fn whole(&self) -> Result<std::borrow::Cow<'_, [u8]>, IpamError> {
        match self.file {
            Some(file) if self.from > 0 => {
                let mut all = vec![0; usize::try_from(self.from).unwrap_or(0)];
                file.read_exact_at(&mut all, 0).map_err(|e| IpamError::io("read", self.path, e))?;
                all.extend_from_slice(self.bytes);
                Ok(all.into())
            }
            _ => Ok(self.bytes.into()),
        }
    }

    /// The line that begins at `at`, newline excluded.
    fn line(&self, at: u64) -> Result<Vec<u8>, IpamError> {
        let end = |b: &[u8]| b.iter().position(|b| *b == b'\n');
        if let Some(n) = at.checked_sub(self.from) {
            let rest = usize::try_from(n).ok().and_then(|n| self.bytes.get(n..)).unwrap_or_default();
            return Ok(rest[..end(rest).unwrap_or(rest.len())].to_vec());
        }
        let Some(file) = self.file else { return Ok(Vec::new()) };
        let mut line = Vec::new();
        loop {
            let had = line.len();
            line.resize(had + 1024, 0);
            let n = file.read_at(&mut line[had..], at + had as u64).map_err(|e| IpamError::io("read", self.path, e))?;
            line.truncate(had + n);
            match end(&line[had..]) {
                Some(n) => {
                    line.truncate(had + n);
                    return Ok(line);
                }
                None if n == 0 => return Ok(line),
                None => {}
            }
        }
    }
}
