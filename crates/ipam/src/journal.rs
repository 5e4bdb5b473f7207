//! The journal: replay, append, compact.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use types::Cidr;

use crate::alloc::{Pool, Usage};
use crate::frame::{Frame, Header, VERSION, VOID};
use crate::lock::{lock, make_dir};
use crate::{IpamError, Key, PodRef, Record};

/// A journal holds about 300 bytes an attachment and is compacted long before; this is for a file that is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// So many dead lines beyond the living ones, and the file is written anew.
const SLACK: usize = 512;

/// What an attachment asks for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Whose.
    pub key: &'a Key,
    /// The network's name.
    pub network: &'a str,
    /// Path of its network namespace.
    pub netns: &'a str,
    /// The namespace's inode.
    pub inode: u64,
    /// The pod, if known.
    pub pod: Option<&'a PodRef>,
    /// This node's ranges, at most one per family; one address of each is given.
    pub ranges: &'a [Cidr],
    /// Addresses that it must be, at most one per family.
    pub requested: &'a [IpAddr],
    /// Bytes.
    pub mtu: u32,
    /// Seconds since 1970.
    pub now: u64,
}

/// The journal, locked: no other process reads-and-writes it until this is dropped.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    _lock: File,
    boot: Box<str>,
    /// The disk is: everything can be looked at, nothing changed.
    read_only: bool,
    state: State,
}

/// What a journal's bytes mean.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Attachments and the offset of each one's line.
    pub live: BTreeMap<Key, (Record, u64)>,
    pub pool: Pool,
    /// Complete lines.
    pub lines: usize,
    /// Bytes up to and including the last complete line.
    pub good: u64,
}

/// This boot's id.
///
/// # Errors
/// When /proc is not there.
pub fn boot_id() -> Result<String, IpamError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let mut buf = [0u8; 64];
    let n = File::open(path).and_then(|mut f| f.read(&mut buf)).map_err(|e| IpamError::io("read", path, e))?;
    Ok(String::from_utf8_lossy(&buf[..n]).trim().to_owned())
}

/// What a journal's bytes hold under `boot`: the records in key order. For tests and fuzzing; never panics.
///
/// # Errors
/// [`IpamError::Corrupt`], naming `file`.
pub fn parse(file: &Path, bytes: &[u8], boot: &str) -> Result<Vec<Record>, IpamError> {
    Ok(State::replay(file, bytes, boot)?.unwrap_or_default().live.into_values().map(|(r, _)| r).collect())
}

/// The attachments of this boot, without holding the lock: for the agent. Nothing there is no attachment.
///
/// # Errors
/// When the journal cannot be read or is damaged.
pub fn read(dir: &Path) -> Result<Vec<Record>, IpamError> {
    let path = dir.join("journal");
    let boot = boot_id()?;
    let once = || match slurp(&path) {
        Ok(bytes) => parse(&path, &bytes, &boot),
        Err(IpamError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    };
    match once() {
        // A writer may have dropped a torn tail and appended between two of our reads: look again while none writes.
        Err(IpamError::Corrupt { .. }) => {
            let _lock = take(dir, FlockOperation::LockShared)?;
            once()
        }
        r => r,
    }
}

pub(crate) fn slurp(path: &Path) -> Result<Vec<u8>, IpamError> {
    let file = File::open(path).map_err(|e| IpamError::io("open", path, e))?;
    slurp_file(&file, path)
}

fn slurp_file(mut file: &File, path: &Path) -> Result<Vec<u8>, IpamError> {
    let size = file.metadata().map_err(|e| IpamError::io("read", path, e))?.len();
    if size > MAX_BYTES {
        return Err(IpamError::TooLarge { file: path.to_owned(), size, max: MAX_BYTES });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.read_to_end(&mut bytes).map_err(|e| IpamError::io("read", path, e))?;
    Ok(bytes)
}

pub(crate) fn take(dir: &Path, how: FlockOperation) -> Result<File, IpamError> {
    let path = dir.join("lock");
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    // Read access is enough to flock, so a journal on a read-only disk can still be looked at.
    let file = match open() {
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path).map_err(|_| e),
        r => r,
    }
    .map_err(|e| IpamError::io("open", &path, e))?;
    lock(&file, how).map_err(|e| IpamError::io("lock", &path, e))?;
    Ok(file)
}

impl State {
    /// `None` when the bytes are void: empty, torn within the header, or of another boot.
    pub(crate) fn replay(file: &Path, bytes: &[u8], boot: &str) -> Result<Option<Self>, IpamError> {
        let mut s = Self::default();
        let mut at = 0;
        while let Some(n) = bytes[at..].iter().position(|b| *b == b'\n') {
            let corrupt = |why| IpamError::Corrupt { file: file.to_owned(), line: s.lines + 1, offset: at as u64, why };
            let frame = Frame::decode(&bytes[at..at + n]).map_err(corrupt)?;
            match (s.lines, frame) {
                (0, Frame::Header(h)) => {
                    if h.version != VERSION {
                        return Err(corrupt(format!(
                            "it is of format {}, this binary reads format {VERSION}",
                            h.version
                        )));
                    }
                    if *h.boot != *boot {
                        return Ok(None);
                    }
                }
                (0, _) => return Err(corrupt("the first line is not a header".into())),
                (_, Frame::Header(_)) => return Err(corrupt("a second header".into())),
                (_, Frame::Add(r)) => {
                    if let Some(why) = s.clash(&r) {
                        return Err(corrupt(why));
                    }
                    s.add(r, at as u64);
                }
                (_, Frame::Void(Record { addresses: last, .. }) | Frame::Last(last)) => {
                    for a in last {
                        s.pool.last[usize::from(a.is_ipv6())] = Some(a);
                    }
                }
                (_, Frame::Del(k)) => {
                    s.del(&k);
                }
            }
            s.lines += 1;
            at += n + 1;
        }
        s.good = at as u64;
        Ok((s.lines > 0).then_some(s))
    }

    /// Why `r` cannot live beside what does.
    fn clash(&self, r: &Record) -> Option<String> {
        r.addresses.iter().find_map(|a| {
            let by = self.pool.used.get(a).filter(|by| **by != r.key)?;
            Some(format!("{} is given the address {a}, which {by} has", r.key))
        })
    }

    fn add(&mut self, r: Record, at: u64) {
        self.del(&r.key);
        for a in &r.addresses {
            self.pool.take(*a, &r.key);
        }
        self.live.insert(r.key.clone(), (r, at));
    }

    fn del(&mut self, key: &Key) -> Option<(Record, u64)> {
        let gone = self.live.remove(key)?;
        for a in &gone.0.addresses {
            self.pool.used.remove(a);
        }
        Some(gone)
    }
}

impl Journal {
    /// Locks and replays the journal in `dir`, which is made when it is missing. Waits while another process holds it.
    ///
    /// # Errors
    /// When a file cannot be made, read or locked, or the journal is damaged.
    pub fn open(dir: &Path) -> Result<Self, IpamError> {
        Self::open_for_boot(dir, &boot_id()?)
    }

    /// Like [`Journal::open`], but `None` when there is no journal: for a DEL, which leaves no directory behind.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_existing(dir: &Path) -> Result<Option<Self>, IpamError> {
        match fs::metadata(dir.join("journal")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::open(dir).map(Some),
        }
    }

    /// Like [`Journal::open`], for another boot's id: for tests.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_for_boot(dir: &Path, boot: &str) -> Result<Self, IpamError> {
        let held = match take(dir, FlockOperation::LockExclusive) {
            Err(IpamError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make_dir(dir)?;
                take(dir, FlockOperation::LockExclusive)?
            }
            r => r?,
        };
        let path = dir.join("journal");
        let open =
            |write| OpenOptions::new().read(true).write(write).create(write).truncate(false).mode(0o600).open(&path);
        let mut read_only = false;
        let file = match open(true) {
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                read_only = true;
                open(false).map_err(|_| e)
            }
            r => r,
        }
        .map_err(|e| IpamError::io("open", &path, e))?;
        let bytes = slurp_file(&file, &path)?;
        let state = State::replay(&path, &bytes, boot)?;
        let fresh = state.is_none();
        let mut j = Self { path, file, _lock: held, boot: boot.into(), read_only, state: state.unwrap_or_default() };
        if fresh {
            // Void: nothing of it lives. A crash in between leaves an empty file, which is void as well.
            j.truncate(0)?;
            j.append(&header(boot))?;
        } else if (bytes.len() as u64) > j.state.good && !read_only {
            // A torn tail.
            j.truncate(j.state.good)?;
        }
        Ok(j)
    }

    /// The attachments.
    pub fn attachments(&self) -> impl Iterator<Item = &Record> {
        self.state.live.values().map(|(r, _)| r)
    }

    /// One attachment.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Record> {
        self.state.live.get(key).map(|(r, _)| r)
    }

    /// How full a range is.
    #[must_use]
    pub fn usage(&self, range: Cidr) -> Usage {
        self.state.pool.usage(range)
    }

    /// Gives `request.key` its addresses and writes them down. The same key again gets the same addresses; what else
    /// changed (namespace, MTU) is written down anew.
    ///
    /// # Errors
    /// When no address is to be had or the record cannot be written; nothing is changed then.
    pub fn allocate(&mut self, request: &Request<'_>) -> Result<Record, IpamError> {
        let link = request.key.link();
        let have = self.get(request.key);
        let record = Record {
            key: request.key.clone(),
            network: request.network.into(),
            netns: request.netns.into(),
            inode: request.inode,
            pod: request.pod.cloned(),
            link,
            addresses: match have {
                Some(r) => r.addresses.clone(),
                None => self.state.pool.choose(request.ranges, request.requested)?,
            },
            mtu: request.mtu,
            time: have.map_or(request.now, |r| r.time),
        };
        if have == Some(&record) {
            return Ok(record);
        }
        if let Some(other) = self.attachments().find(|r| r.link == record.link && r.key != record.key) {
            return Err(IpamError::LinkClash { link: record.link.to_string(), by: other.key.clone() });
        }
        let at = self.state.good;
        self.append(&Frame::Add(record.clone()))?;
        self.state.add(record.clone(), at);
        self.tidy();
        Ok(record)
    }

    /// Forgets an attachment and frees its addresses. `None` when it was not known.
    ///
    /// A full disk does not keep a pod from going: the attachment's line is then voided in place, which needs no room.
    ///
    /// # Errors
    /// When that cannot be written; nothing is changed then.
    pub fn release(&mut self, key: &Key) -> Result<Option<Record>, IpamError> {
        let Some((_, at)) = self.state.live.get(key) else { return Ok(None) };
        let at = *at;
        match self.append(&Frame::Del(key.clone())) {
            Err(IpamError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                self.file.write_all_at(&[VOID], at).map_err(|e| IpamError::io("write to", &self.path, e))?;
            }
            r => r?,
        }
        let gone = self.state.del(key);
        self.tidy();
        Ok(gone.map(|(r, _)| r))
    }

    /// Writes and takes back one byte: whether [`Journal::allocate`] could write now. For STATUS.
    ///
    /// # Errors
    /// When it could not.
    pub fn probe(&mut self) -> Result<(), IpamError> {
        self.writable()?;
        // A blank without newline is a torn tail to whoever comes after a crash right here.
        let r = self.file.write_all_at(&[b' '; 512], self.state.good);
        let back = self.file.set_len(self.state.good);
        r.and(back).map_err(|e| IpamError::io("append to", &self.path, e))
    }

    /// Removes what a compaction that was killed left behind.
    pub fn remove_strays(&mut self) {
        let _ = fs::remove_file(self.path.with_extension("new"));
    }

    fn writable(&self) -> Result<(), IpamError> {
        if self.read_only {
            return Err(IpamError::io("write to", &self.path, rustix::io::Errno::ROFS));
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), IpamError> {
        self.writable()?;
        self.file.set_len(len).map_err(|e| IpamError::io("truncate", &self.path, e))
    }

    /// One write at the end; a part of it that went through is taken back.
    fn append(&mut self, frame: &Frame) -> Result<(), IpamError> {
        self.writable()?;
        let line = frame.encode();
        if let Err(e) = self.file.write_all_at(&line, self.state.good) {
            // If this fails too, the torn tail waits for the next to open the journal.
            let _ = self.file.set_len(self.state.good);
            return Err(IpamError::io("append to", &self.path, e));
        }
        self.state.good += line.len() as u64;
        self.state.lines += 1;
        Ok(())
    }

    /// Writes the file anew when most of its lines are dead. A failure leaves the old file, which is as good.
    fn tidy(&mut self) {
        if self.state.lines > 2 * self.state.live.len() + SLACK {
            let _ = self.compact();
        }
    }

    /// Writes the living attachments to a new file and puts it in the old one's place.
    ///
    /// # Errors
    /// When that fails; the old file then stays as it is.
    pub fn compact(&mut self) -> Result<(), IpamError> {
        let new = self.path.with_extension("new");
        let mut bytes = header(&self.boot).encode();
        let mut at = BTreeMap::new();
        for (r, _) in self.state.live.values() {
            at.insert(r.key.clone(), bytes.len() as u64);
            bytes.extend_from_slice(&Frame::Add(r.clone()).encode());
        }
        bytes.extend_from_slice(&Frame::Last(self.state.pool.last.iter().flatten().copied().collect()).encode());
        self.file = replace(&new, &self.path, &bytes)?;
        self.state.good = bytes.len() as u64;
        self.state.lines = self.state.live.len() + 2;
        for (key, offset) in at {
            if let Some((_, o)) = self.state.live.get_mut(&key) {
                *o = offset;
            }
        }
        Ok(())
    }
}

fn header(boot: &str) -> Frame {
    Frame::Header(Header { version: VERSION, boot: boot.into() })
}

/// Writes `bytes` to `new` and renames it to `path`; on failure `new` is removed.
pub(crate) fn replace(new: &Path, path: &Path, bytes: &[u8]) -> Result<File, IpamError> {
    let write = || {
        let f = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(new)?;
        f.write_all_at(bytes, 0)?;
        fs::rename(new, path)?;
        Ok(f)
    };
    write().map_err(|e: io::Error| {
        let _ = fs::remove_file(new);
        IpamError::io("write", new, e)
    })
}
