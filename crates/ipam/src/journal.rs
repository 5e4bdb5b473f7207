//! The journal: open, append, compact.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use types::{AddressRange, Cidr};

use crate::alloc::{Set, Space, Usage};
use crate::frame::{Frame, Header, VERSION, VOID};
use crate::index;
use crate::lock::{lock, make_dir};
use crate::state::{State, Text};
use crate::{IpamError, Key, PodRef, Pools, Record};

/// A journal holds about 300 bytes an attachment and is compacted long before; this is for a file that is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// So many dead lines beyond the living ones, and the file is written anew.
const SLACK: usize = 128;

/// The index's file name.
pub(crate) const INDEX: &str = "index";

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
    /// Of `ranges` only these parts.
    pub within: &'a [AddressRange],
    /// Instead of `ranges`: pools.
    pub pools: Option<Ask<'a>>,
    /// `requested` are out of no range or pool: nobody gives them out, they only must be nobody's.
    pub outside: bool,
    /// Addresses that it must be, at most one per family.
    pub requested: &'a [IpAddr],
    /// Bytes.
    pub mtu: u32,
    /// Seconds since 1970.
    pub now: u64,
}

/// Which pools.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The file that says what they have: [`crate::Pools`].
    pub file: &'a Path,
    /// Their names, in order; the default ones when empty.
    pub names: &'a [Box<str>],
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
    /// The file's bytes from `from` to the last complete line: records are read in full only when somebody asks.
    bytes: Vec<u8>,
    from: u64,
    /// Lines that the index has; none when there is no index.
    indexed: usize,
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
    let state = State::replay(file, bytes, boot)?.unwrap_or_default();
    state.records(&Text { path: file, file: None, bytes, from: 0 })
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

/// One attachment of this boot, without a look at the others. Nothing there is no attachment.
///
/// # Errors
/// As [`read`].
pub fn find(dir: &Path, key: &Key) -> Result<Option<Record>, IpamError> {
    let path = dir.join("journal");
    // A look leaves no lock file in a directory that has no journal.
    if matches!(fs::metadata(&path), Err(e) if e.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let _lock = take(dir, FlockOperation::LockShared)?;
    let (boot, link) = (boot_id()?, State::digits(key));
    // Under the lock: another file may have taken its place.
    let file = File::open(&path).map_err(|e| IpamError::io("open", &path, e))?;
    let size = size_of(&file, &path)?;
    let mut state = index::load(&path.with_file_name(INDEX), &file, size, &boot, Some(link)).unwrap_or_default();
    let from = state.good;
    let mut bytes = vec![0; usize::try_from(size - from).unwrap_or(0)];
    file.read_exact_at(&mut bytes, from).map_err(|e| IpamError::io("read", &path, e))?;
    let text = Text { path: &path, file: Some(&file), bytes: &bytes, from };
    if !state.go_on(&text, &boot)? {
        return Ok(None);
    }
    Ok(state.record(&text, link)?.filter(|r| r.key == *key))
}

/// The attachments of this boot, read while no plugin is between looking for a free address and writing down that it
/// took it: what was taken out of [`crate::Pools`] before and is not in here, nobody has or will get.
///
/// # Errors
/// As [`read`].
pub fn read_settled(dir: &Path) -> Result<Vec<Record>, IpamError> {
    make_dir(dir)?;
    let path = dir.join("journal");
    let boot = boot_id()?;
    // Plugins wait for the reading, not for the understanding.
    let lock = take(dir, FlockOperation::LockShared)?;
    let bytes = slurp(&path);
    drop(lock);
    match bytes {
        Ok(bytes) => parse(&path, &bytes, &boot),
        Err(IpamError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

pub(crate) fn slurp(path: &Path) -> Result<Vec<u8>, IpamError> {
    let mut file = File::open(path).map_err(|e| IpamError::io("open", path, e))?;
    let mut bytes = Vec::with_capacity(usize::try_from(size_of(&file, path)?).unwrap_or(0) + 1);
    file.read_to_end(&mut bytes).map_err(|e| IpamError::io("read", path, e))?;
    Ok(bytes)
}

fn size_of(file: &File, path: &Path) -> Result<u64, IpamError> {
    let size = file.metadata().map_err(|e| IpamError::io("read", path, e))?.len();
    if size > MAX_BYTES {
        return Err(IpamError::TooLarge { file: path.to_owned(), size, max: MAX_BYTES });
    }
    Ok(size)
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
        let size = size_of(&file, &path)?;
        let known = index::load(&path.with_file_name(INDEX), &file, size, boot, None);
        let mut j = Self {
            path,
            file,
            _lock: held,
            boot: boot.into(),
            read_only,
            bytes: Vec::new(),
            from: known.as_ref().map_or(0, |s| s.good),
            indexed: known.as_ref().map_or(0, |s| s.lines),
            state: known.unwrap_or_default(),
        };
        // Nobody else writes: the lock is held.
        j.bytes = vec![0; usize::try_from(size - j.from).unwrap_or(0)];
        j.file.read_exact_at(&mut j.bytes, j.from).map_err(|e| IpamError::io("read", &j.path, e))?;
        let mut state = std::mem::take(&mut j.state);
        let current = state.go_on(&j.text(), boot)?;
        if !current || state.lines == 0 {
            // Void: nothing of it lives. A crash in between leaves an empty file, which is void as well.
            j.writable()?;
            index::drop(&j.index())?;
            (j.bytes, j.from, j.indexed) = (Vec::new(), 0, 0);
            j.truncate(0)?;
            j.append(&header(boot))?;
            return Ok(j);
        }
        j.state = state;
        if size > j.state.good {
            // A torn tail.
            j.bytes.truncate(usize::try_from(j.state.good - j.from).unwrap_or(0));
            if !read_only {
                j.truncate(j.state.good)?;
            }
        }
        Ok(j)
    }

    fn index(&self) -> PathBuf {
        self.path.with_file_name(INDEX)
    }

    fn text(&self) -> Text<'_> {
        Text { path: &self.path, file: Some(&self.file), bytes: &self.bytes, from: self.from }
    }

    fn record(&self, link: u64) -> Result<Option<Record>, IpamError> {
        self.state.record(&self.text(), link)
    }

    /// The attachments, in key order.
    ///
    /// # Errors
    /// [`IpamError::Corrupt`] when one cannot be read in full.
    pub fn attachments(&self) -> Result<Vec<Record>, IpamError> {
        self.state.records(&self.text())
    }

    /// One attachment.
    ///
    /// # Errors
    /// [`IpamError::Corrupt`] when it cannot be read in full.
    pub fn get(&self, key: &Key) -> Result<Option<Record>, IpamError> {
        Ok(self.record(State::digits(key))?.filter(|r| r.key == *key))
    }

    /// How full a range is.
    #[must_use]
    pub fn usage(&self, range: Cidr) -> Usage {
        self.state.pool.usage(range)
    }

    /// Gives `request.key` its addresses and writes them down; says whether it had them before. The same key again gets
    /// the same addresses; what else changed (namespace, MTU) is written down anew.
    ///
    /// # Errors
    /// When no address is to be had or the record cannot be written; nothing is changed then.
    pub fn allocate(&mut self, request: &Request<'_>) -> Result<(Record, bool), IpamError> {
        let link = request.key.link();
        let mine = link.digits();
        let have = self.record(mine)?;
        if let Some(by) = have.as_ref().filter(|r| r.key != *request.key) {
            return Err(IpamError::LinkClash { link: link.to_string(), by: by.key.clone() });
        }
        let by = |link| {
            let nobody = || IpamError::io("find the holder of an address in", &self.path, rustix::io::Errno::NOENT);
            self.record(link)?.map(|r| r.key).ok_or_else(nobody)
        };
        let record = Record {
            key: request.key.clone(),
            network: request.network.into(),
            netns: request.netns.into(),
            inode: request.inode,
            pod: request.pod.cloned(),
            link,
            addresses: match &have {
                Some(r) => r.addresses.clone(),
                None => self.state.pool.choose(&space(request)?, request.requested, by)?,
            },
            mtu: request.mtu,
            time: have.as_ref().map_or(request.now, |r| r.time),
            delegates: have.as_ref().map_or_else(Vec::new, |r| r.delegates.clone()),
            ports: have.as_ref().map_or_else(Vec::new, |r| r.ports.clone()),
            limits: have.as_ref().map_or_else(Default::default, |r| r.limits.clone()),
            mac: have.as_ref().and_then(|r| r.mac),
            routes: have.as_ref().map_or_else(Vec::new, |r| r.routes.clone()),
            names: have.as_ref().map_or_else(Vec::new, |r| r.names.clone()),
            path: have.as_ref().map_or_else(Box::default, |r| r.path.clone()),
        };
        let known = have.is_some();
        if have.as_ref() == Some(&record) {
            return Ok((record, known));
        }
        self.write(&record)?;
        Ok((record, known))
    }

    /// Writes down anew what an attachment that is known consists of; its addresses stay.
    ///
    /// # Errors
    /// When it cannot be written; nothing is changed then.
    pub fn amend(&mut self, record: &Record) -> Result<(), IpamError> {
        match self.get(&record.key)? {
            Some(have) if have == *record || have.addresses != record.addresses => Ok(()),
            Some(_) => self.write(record),
            None => Ok(()),
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), IpamError> {
        let at = self.state.good;
        self.append(&Frame::Add(record.clone()))?;
        self.state.add(record.link.digits(), at, &record.addresses);
        self.tidy();
        Ok(())
    }

    /// Forgets an attachment and frees its addresses. `None` when it was not known.
    ///
    /// A full disk does not keep a pod from going: the attachment's line is then voided in place, which needs no room.
    ///
    /// # Errors
    /// When that cannot be written; nothing is changed then.
    pub fn release(&mut self, key: &Key) -> Result<Option<Record>, IpamError> {
        let link = State::digits(key);
        let Some(at) = self.state.live.get(&link).map(|l| l.at) else { return Ok(None) };
        let Some(record) = self.get(key)? else { return Ok(None) };
        match self.append(&Frame::Del(key.clone())) {
            Err(IpamError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                index::drop(&self.index())?;
                self.indexed = 0;
                self.file.write_all_at(&[VOID], at).map_err(|e| IpamError::io("write to", &self.path, e))?;
            }
            r => r?,
        }
        self.state.del(link);
        self.tidy();
        Ok(Some(record))
    }

    /// Whether addresses can be given: for STATUS. Of pools only whether the agent has said anything: when they are used
    /// up the next block is under way, and a node that says it is not ready loses the pods that it has.
    ///
    /// # Errors
    /// Why not.
    pub fn has_room(&self, ranges: &[Cidr], pools: Option<&Path>) -> Result<(), IpamError> {
        match pools {
            Some(file) => room(&[], Some(Ask { file, names: &[] })).map(drop),
            None => {
                let nobody = |_| Err(IpamError::io("look in", &self.path, rustix::io::Errno::NOENT));
                self.state.pool.choose(&Space::of_ranges(ranges)?, &[], nobody).map(drop)
            }
        }
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
        self.bytes.extend_from_slice(&line);
        self.state.good += line.len() as u64;
        self.state.lines += 1;
        Ok(())
    }

    /// Writes the file anew when most of its lines are dead, and the index when it is old. A failure leaves what was,
    /// which is as good.
    fn tidy(&mut self) {
        if self.state.lines > 2 * self.state.live.len() + SLACK {
            let _ = self.compact();
        }
        if index::is_due(self.state.lines.saturating_sub(self.indexed)) {
            // A full disk may have taken half of it: that is worse than none, which costs no reading.
            match index::store(&self.index(), &self.file, &self.state, &self.boot) {
                Ok(()) => self.indexed = self.state.lines,
                Err(_) => drop(index::drop(&self.index())),
            }
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
        let mut state = State::default();
        for r in &records {
            state.add(r.link.digits(), bytes.len() as u64, &r.addresses);
            bytes.extend_from_slice(&Frame::Add(r.clone()).encode());
        }
        state.pool.last = self.state.pool.last;
        bytes.extend_from_slice(&Frame::Last(state.pool.last.iter().flatten().copied().collect()).encode());
        state.good = bytes.len() as u64;
        state.lines = records.len() + 2;
        index::drop(&self.index())?;
        self.file = replace(&new, &self.path, &bytes)?;
        (self.state, self.bytes, self.from, self.indexed) = (state, bytes, 0, 0);
        Ok(())
    }
}

/// What may be given for a request. Called while the journal is locked: see [`crate::Pools`].
fn space(request: &Request<'_>) -> Result<Space, IpamError> {
    if request.outside {
        let exact = |a: &IpAddr| Set::whole("no pool".into(), types::Family::of(*a), &[Cidr::host(*a)], "");
        return Ok(Space { sets: request.requested.iter().map(exact).collect(), except: Vec::new() });
    }
    let mut space = room(request.ranges, request.pools)?;
    space.narrow(request.within);
    Ok(space)
}

fn room(ranges: &[Cidr], pools: Option<Ask<'_>>) -> Result<Space, IpamError> {
    match pools {
        Some(ask) => match Pools::read(ask.file)? {
            Some(pools) => match pools.space(ask.names) {
                // Without a pool there would be an interface without an address.
                space if space.sets.is_empty() => Err(IpamError::Exhausted {
                    of: "no IPPool".to_owned(),
                    used: 0,
                    usable: 0,
                    wait: "no IPPool gives addresses on this node: make one, or widen a nodeSelector".to_owned(),
                }),
                space => Ok(space),
            },
            None => Err(IpamError::NoPools { file: ask.file.to_owned() }),
        },
        None => Space::of_ranges(ranges),
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
