//! The journal: replay, append, compact.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use types::Cidr;

use crate::alloc::{Pool, Usage};
use crate::frame::{Frame, Header, Line, VERSION, VOID};
use crate::lock::{lock, make_dir};
use crate::{IpamError, Key, PodRef, Record};

/// A journal holds about 300 bytes an attachment and is compacted long before; this is for a file that is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// So many dead lines beyond the living ones, and the file is written anew.
const SLACK: usize = 128;

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
    /// Attachments.
    live: BTreeMap<Arc<Key>, Entry>,
    pool: Pool,
    /// Complete lines.
    lines: usize,
    /// Bytes up to and including the last complete line.
    good: u64,
    /// The file's bytes as they were read: entries are read in full only when somebody asks.
    bytes: Vec<u8>,
}

/// An attachment: where its line begins, what it has, and the record when it was made here.
#[derive(Debug)]
struct Entry {
    at: u64,
    /// The host end's name, as a number: see [`tag`].
    link: u64,
    addresses: Vec<IpAddr>,
    record: Option<Record>,
}

/// The last eight bytes of a host end's name: names whose tags differ differ, so only few are compared in full.
fn tag(link: &str) -> u64 {
    link.bytes().rev().take(8).fold(0, |t, b| t << 8 | u64::from(b))
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
    State::replay(file, bytes.to_vec(), boot)?.unwrap_or_default().records(file)
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
    pub(crate) fn replay(file: &Path, bytes: Vec<u8>, boot: &str) -> Result<Option<Self>, IpamError> {
        let mut s = Self::default();
        let mut at = 0;
        while let Some(n) = bytes[at..].iter().position(|b| *b == b'\n') {
            let corrupt = |why| IpamError::Corrupt { file: file.to_owned(), line: s.lines + 1, offset: at as u64, why };
            let line = Line::decode(&bytes[at..at + n]).map_err(corrupt)?;
            match (s.lines, line) {
                (0, Line::Header(h)) => {
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
                (_, Line::Header(_)) => return Err(corrupt("a second header".into())),
                (_, Line::Add(slim)) => {
                    let key = Arc::new(slim.key.owned().map_err(corrupt)?);
                    if let Some(why) = s.clash(&key, &slim.addresses) {
                        return Err(corrupt(why));
                    }
                    s.add(key, Entry { at: at as u64, link: tag(&slim.link), addresses: slim.addresses, record: None });
                }
                (_, Line::Last(last)) => {
                    for a in last {
                        s.pool.last[usize::from(a.is_ipv6())] = Some(a);
                    }
                }
                (_, Line::Del(k)) => {
                    s.del(&k);
                }
            }
            s.lines += 1;
            at += n + 1;
        }
        s.good = at as u64;
        s.bytes = bytes;
        Ok((s.lines > 0).then_some(s))
    }

    /// Why `key` cannot have `addresses` beside what lives.
    fn clash(&self, key: &Key, addresses: &[IpAddr]) -> Option<String> {
        addresses.iter().find_map(|a| {
            let by = self.pool.used.get(a).filter(|by| ***by != *key)?;
            Some(format!("{key} is given the address {a}, which {by} has"))
        })
    }

    fn add(&mut self, key: Arc<Key>, entry: Entry) {
        self.del(&key);
        for a in &entry.addresses {
            self.pool.take(*a, &key);
        }
        self.live.insert(key, entry);
    }

    fn del(&mut self, key: &Key) -> Option<Entry> {
        let gone = self.live.remove(key)?;
        for a in &gone.addresses {
            self.pool.used.remove(a);
        }
        Some(gone)
    }

    /// An entry's record in full.
    fn record(&self, file: &Path, e: &Entry) -> Result<Record, IpamError> {
        if let Some(r) = &e.record {
            return Ok(r.clone());
        }
        let rest = usize::try_from(e.at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
        let why = match Frame::decode(line) {
            Ok(Frame::Add(r)) => return Ok(r),
            Ok(_) => "no attachment".into(),
            Err(why) => why,
        };
        let line = 1 + self.bytes.iter().zip(0..e.at).filter(|(b, _)| **b == b'\n').count();
        Err(IpamError::Corrupt { file: file.to_owned(), line, offset: e.at, why })
    }

    /// All of them, in key order.
    fn records(&self, file: &Path) -> Result<Vec<Record>, IpamError> {
        self.live.values().map(|e| self.record(file, e)).collect()
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
        let size = bytes.len() as u64;
        let state = State::replay(&path, bytes, boot)?;
        let fresh = state.is_none();
        let mut j = Self { path, file, _lock: held, boot: boot.into(), read_only, state: state.unwrap_or_default() };
        if fresh {
            // Void: nothing of it lives. A crash in between leaves an empty file, which is void as well.
            j.truncate(0)?;
            j.append(&header(boot))?;
        } else if size > j.state.good && !read_only {
            // A torn tail.
            j.truncate(j.state.good)?;
        }
        Ok(j)
    }

    /// The attachments, in key order.
    ///
    /// # Errors
    /// [`IpamError::Corrupt`] when one cannot be read in full.
    pub fn attachments(&self) -> Result<Vec<Record>, IpamError> {
        self.state.records(&self.path)
    }

    /// One attachment.
    ///
    /// # Errors
    /// [`IpamError::Corrupt`] when it cannot be read in full.
    pub fn get(&self, key: &Key) -> Result<Option<Record>, IpamError> {
        self.state.live.get(key).map(|e| self.state.record(&self.path, e)).transpose()
    }

    /// Whether an attachment is known.
    #[must_use]
    pub fn knows(&self, key: &Key) -> bool {
        self.state.live.contains_key(key)
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
        let have = self.get(request.key)?;
        let record = Record {
            key: request.key.clone(),
            network: request.network.into(),
            netns: request.netns.into(),
            inode: request.inode,
            pod: request.pod.cloned(),
            link,
            addresses: match &have {
                Some(r) => r.addresses.clone(),
                None => self.state.pool.choose(request.ranges, request.requested)?,
            },
            mtu: request.mtu,
            time: have.as_ref().map_or(request.now, |r| r.time),
        };
        if have.as_ref() == Some(&record) {
            return Ok(record);
        }
        let mine = tag(record.link.as_str());
        let clash = |(k, e): &(&Arc<Key>, &Entry)| e.link == mine && ***k != record.key && k.link() == record.link;
        if let (None, Some((by, _))) = (&have, self.state.live.iter().find(clash)) {
            return Err(IpamError::LinkClash { link: record.link.to_string(), by: Key::clone(by) });
        }
        let at = self.state.good;
        self.append(&Frame::Add(record.clone()))?;
        let entry = Entry { at, link: mine, addresses: record.addresses.clone(), record: Some(record.clone()) };
        self.state.add(Arc::new(record.key.clone()), entry);
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
        let Some(entry) = self.state.live.get(key) else { return Ok(None) };
        let (at, record) = (entry.at, self.state.record(&self.path, entry)?);
        match self.append(&Frame::Del(key.clone())) {
            Err(IpamError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                self.file.write_all_at(&[VOID], at).map_err(|e| IpamError::io("write to", &self.path, e))?;
            }
            r => r?,
        }
        self.state.del(key);
        self.tidy();
        Ok(Some(record))
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
        let records = self.attachments()?;
        let mut bytes = header(&self.boot).encode();
        let mut live = BTreeMap::new();
        for r in records {
            let (at, link, addresses) = (bytes.len() as u64, tag(r.link.as_str()), r.addresses.clone());
            bytes.extend_from_slice(&Frame::Add(r.clone()).encode());
            live.insert(Arc::new(r.key.clone()), Entry { at, link, addresses, record: Some(r) });
        }
        bytes.extend_from_slice(&Frame::Last(self.state.pool.last.iter().flatten().copied().collect()).encode());
        self.file = replace(&new, &self.path, &bytes)?;
        self.state.good = bytes.len() as u64;
        self.state.lines = live.len() + 2;
        self.state.live = live;
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
