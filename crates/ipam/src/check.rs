//! `seaway ipam check`: what is intact, what is not, and the mending.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::frame::{Frame, Header, VERSION};
use crate::index;
use crate::journal::{INDEX, boot_id, replace, slurp, take};
use crate::{IpamError, Key, Record};

/// One thing wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line, from one.
    pub line: usize,
    /// Byte at which the line begins.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
}

/// What [`check`] found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// The journal file.
    pub file: PathBuf,
    /// Attachments that intact lines tell of, in the order of their addition. When a damaged line removed one of
    /// them, it is still listed: its namespace is then gone, and `GC` or the agent's sweep removes it.
    pub intact: Vec<Record>,
    /// Damaged lines. A torn last line is no fault.
    pub faults: Vec<Fault>,
    /// Bytes of a torn last line.
    pub torn: u64,
    /// Whether the file is of an earlier boot, so that nothing in it lives.
    pub stale: bool,
}

/// Reads the journal of `dir` line by line, past damaged ones.
///
/// # Errors
/// When it cannot be read. A missing journal is an empty report.
pub fn check(dir: &Path) -> Result<Report, IpamError> {
    let path = dir.join("journal");
    let _lock = match take(dir, FlockOperation::LockShared) {
        Err(IpamError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Report { file: path, ..Report::default() });
        }
        r => r?,
    };
    let bytes = match slurp(&path) {
        Err(IpamError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        r => r?,
    };
    Ok(inspect(path, &bytes, &boot_id()?))
}

fn inspect(file: PathBuf, bytes: &[u8], boot: &str) -> Report {
    let mut out = Report { file, ..Report::default() };
    let (mut at, mut line) = (0, 0);
    while let Some(n) = bytes[at..].iter().position(|b| *b == b'\n') {
        line += 1;
        let why = match Frame::decode(&bytes[at..at + n]) {
            Err(why) => Some(why),
            Ok(Frame::Header(h)) if h.version != VERSION => Some(format!("format {} is not known", h.version)),
            Ok(Frame::Header(_)) if line > 1 => Some("a second header".into()),
            Ok(Frame::Header(h)) => {
                out.stale = *h.boot != *boot;
                None
            }
            Ok(Frame::Add(r)) => {
                out.intact.retain(|o| o.key != r.key);
                let taken = |a: &IpAddr| out.intact.iter().find(|o| o.addresses.contains(a)).map(|o| (*a, &o.key));
                match r.addresses.iter().find_map(taken) {
                    Some((a, by)) => Some(format!("{} is given the address {a}, which {by} has", r.key)),
                    None => {
                        out.intact.push(r);
                        None
                    }
                }
            }
            Ok(Frame::Del(k)) => {
                out.intact.retain(|o: &Record| o.key != k);
                None
            }
            Ok(Frame::Void(_) | Frame::Last(_)) => None,
        };
        if let Some(why) = why {
            out.faults.push(Fault { line, offset: at as u64, why });
        }
        at += n + 1;
    }
    out.torn = (bytes.len() - at) as u64;
    if out.stale {
        out.intact.clear();
    }
    out
}

/// Writes a journal of the intact attachments alone, after setting the damaged one aside as `journal.damaged`, and
/// tells what it found. Does nothing when nothing is wrong.
///
/// # Errors
/// When a file cannot be written; the journal is then as before.
pub fn repair(dir: &Path) -> Result<Report, IpamError> {
    let path = dir.join("journal");
    let _lock = take(dir, FlockOperation::LockExclusive)?;
    let bytes = slurp(&path)?;
    let boot = boot_id()?;
    let report = inspect(path.clone(), &bytes, &boot);
    if report.faults.is_empty() {
        return Ok(report);
    }
    let aside = path.with_extension("damaged");
    replace(&path.with_extension("new"), &aside, &bytes)?;
    let mut new = Frame::Header(Header { version: VERSION, boot: boot.into() }).encode();
    for r in &report.intact {
        new.extend_from_slice(&Frame::Add(r.clone()).encode());
    }
    index::drop(&path.with_file_name(INDEX))?;
    replace(&path.with_extension("new"), &path, &new)?;
    Ok(report)
}

impl Report {
    /// Whether the journal needs [`repair`].
    #[must_use]
    pub fn damaged(&self) -> bool {
        !self.faults.is_empty()
    }

    /// One attachment.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Record> {
        self.intact.iter().find(|r| r.key == *key)
    }
}
