//! The store on disk, in the reference plugin's own form, so that either can follow or work beside the other: a file
//! for each address in use, named by it, holding `CONTAINER\r\nIFNAME` (the container alone in files of old releases);
//! `last_reserved_ip.N` with the address that range set N gave out last; `lock`, held by `flock` by whoever works.
//!
//! A process that is killed between making a file and writing it leaves an empty one, which nobody could ever release:
//! it is removed by the next of ours that opens the store.
//!
//! # Not reading a thousand files
//! Who has which address is in `.index` as well: a line per change, the last with the directory's change time, by which
//! one knows whether anybody else (the reference, an administrator) made or removed a file since: then the directory is
//! read again. Change times are as coarse as the kernel's clock tick, so before a change of ours `?` is written: when
//! that is the last line, we were killed. The index is a hint that may be lost or wrong at any time; what a file says is
//! what counts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::{Code, Error};
use ipam::{IfThere, Key};
use rustix::fs::{FlockOperation, flock};

/// Bytes of one file that are looked at.
const MAX_ENTRY: u64 = 4096;
/// Bytes of an index that are believed; a longer one is made anew.
const MAX_INDEX: u64 = 16 << 20;

/// Who has an address: the content of its file, trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner(String);

impl Owner {
    fn is(&self, key: &Key) -> bool {
        let (container, ifname) = self.parts();
        container == &*key.container && ifname.is_none_or(|i| i == key.ifname.as_str())
    }

    /// Container and interface; old releases did not write the latter.
    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.split_once("\r\n") {
            Some((c, i)) => (c, Some(i)),
            None => (&self.0, None),
        }
    }
}

/// A network's store, locked.
pub struct Store {
    dir: PathBuf,
    _lock: File,
    used: BTreeMap<IpAddr, Owner>,
    index_lines: usize,
}

fn io(what: &str, path: &Path, e: impl Into<io::Error>) -> Error {
    Error::new(Code::Io, format!("{what} {}: {}", path.display(), e.into()))
}

impl Store {
    /// Opens the store and waits for its lock; makes it when it is not there.
    ///
    /// # Errors
    /// Code 5.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|e| io("make directory", dir, e))?;
        Self::locked(dir)
    }

    /// Opens the store if it is there.
    ///
    /// # Errors
    /// Code 5.
    pub fn existing(dir: &Path) -> Result<Option<Self>, Error> {
        if dir.is_dir() { Self::locked(dir).map(Some) } else { Ok(None) }
    }

    fn locked(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(&path);
        let lock = open.map_err(|e| io("open lock file", &path, e))?;
        while let Err(e) = flock(&lock, FlockOperation::LockExclusive) {
            if e != rustix::io::Errno::INTR {
                return Err(io("lock", &path, e));
            }
        }
        let mut out = Self { dir: dir.into(), _lock: lock, used: BTreeMap::new(), index_lines: 0 };
        if !out.by_index() {
            out.scan()?;
        }
        Ok(out)
    }

    /// Whether an address is in use.
    pub fn taken(&self, a: IpAddr) -> bool {
        self.used.contains_key(&a)
    }

    /// How many addresses are in use within a range set.
    pub fn count(&self, set: &super::range::RangeSet) -> usize {
        self.used.keys().filter(|a| set.range_of(**a).is_some()).count()
    }

    /// The addresses of an interface.
    pub fn of(&self, key: &Key) -> Vec<IpAddr> {
        self.used.iter().filter(|(_, o)| o.is(key)).map(|(a, _)| *a).collect()
    }

    /// Takes an address; false when somebody has it.
    ///
    /// # Errors
    /// Code 5.
    pub fn reserve(&mut self, a: IpAddr, key: &Key, set: usize) -> Result<bool, Error> {
        let path = self.dir.join(a.to_string());
        let owner = Owner(format!("{}\r\n{}", key.container, key.ifname));
        self.begin();
        match create(&path, owner.0.as_bytes()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.index_lines = 0;
                return Ok(false);
            }
            Err(e) => return Err(io("write", &path, e)),
        }
        let last = self.dir.join(format!("last_reserved_ip.{set}"));
        if let Err(e) = overwrite(&last, a.to_string().as_bytes()) {
            // Nobody is told of this address, so nobody would give it back.
            let _ = fs::remove_file(&path);
            return Err(io("write", &last, e));
        }
        self.used.insert(a, owner.clone());
        self.note('+', a, &owner);
        Ok(true)
    }

    /// The address that a range set gave out last.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        super::conf::bounded(self.dir.join(format!("last_reserved_ip.{set}"))).ok()?.trim().parse().ok()
    }

    /// Gives an address back if it is still this owner's.
    ///
    /// # Errors
    /// Code 5.
    pub fn release(&mut self, a: IpAddr) -> Result<(), Error> {
        let path = self.dir.join(a.to_string());
        let Some(owner) = self.used.get(&a).cloned() else { return Ok(()) };
        if read(&path).is_ok_and(|o| o != owner) {
            self.index_lines = 0;
            return Ok(());
        }
        self.begin();
        fs::remove_file(&path).if_there().map_err(|e| io("remove", &path, e))?;
        self.used.remove(&a);
        self.note('-', a, &owner);
        Ok(())
    }

    /// The addresses whose owner is none of `valid`.
    pub fn stale(&self, valid: &[Key]) -> Vec<IpAddr> {
        self.used.iter().filter(|(_, o)| !valid.iter().any(|k| o.is(k))).map(|(a, _)| *a).collect()
    }

    /// Reads the directory.
    ///
    /// # Errors
    /// Code 5.
    pub fn scan(&mut self) -> Result<(), Error> {
        self.used.clear();
        // Made first, since making it changes the directory.
        let index = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(self.index());
        drop(index);
        let before = self.stamp();
        for entry in fs::read_dir(&self.dir).map_err(|e| io("read directory", &self.dir, e))? {
            let entry = entry.map_err(|e| io("read directory", &self.dir, e))?;
            let Some(a) = entry.file_name().to_str().and_then(|n| n.parse::<IpAddr>().ok()) else { continue };
            let Ok(owner) = read(&entry.path()) else { continue };
            if owner.0.is_empty() {
                // Its writer was killed: we hold the lock. Nobody could ever give it back.
                let _ = fs::remove_file(entry.path());
                continue;
            }
            self.used.insert(a, owner);
        }
        self.rewrite(&before);
        Ok(())
    }

    fn index(&self) -> PathBuf {
        self.dir.join(".index")
    }

    /// The directory's change time: another one after anybody made or removed a file in it.
    fn stamp(&self) -> String {
        fs::metadata(&self.dir).map(|m| format!("{}.{:09}", m.mtime(), m.mtime_nsec())).unwrap_or_default()
    }

    /// Fills `used` from the index; false when it is missing, torn or older than the directory.
    fn by_index(&mut self) -> bool {
        let Ok(mut file) = File::open(self.index()) else { return false };
        if file.metadata().map_or(true, |m| m.len() > MAX_INDEX) {
            return false;
        }
        let mut text = String::new();
        if file.read_to_string(&mut text).is_err() || !text.ends_with('\n') {
            return false;
        }
        let mut stamp = "";
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut next = || words.next().unwrap_or_default();
            let (kind, a, container, ifname) = (next(), next().parse::<IpAddr>(), next(), next());
            stamp = next();
            match (kind, a) {
                ("+", Ok(a)) => {
                    let old = ifname.is_empty();
                    let owner = if old { container.to_owned() } else { format!("{container}\r\n{ifname}") };
                    self.used.insert(a, Owner(owner));
                }
                ("-", Ok(a)) => drop(self.used.remove(&a)),
                ("=" | "?", _) => {}
                _ => return false,
            }
            self.index_lines += 1;
        }
        if stamp.is_empty() || stamp != self.stamp() {
            self.used.clear();
            self.index_lines = 0;
            return false;
        }
        true
    }

    /// Says in the index that a change is coming.
    fn begin(&mut self) {
        self.append("?\n");
    }

    /// Says in the index what has changed.
    fn note(&mut self, kind: char, a: IpAddr, owner: &Owner) {
        let stamp = self.stamp();
        if self.index_lines > 4 * self.used.len() + 256 {
            self.rewrite(&stamp);
        } else {
            self.append(&line(kind, a, owner, &stamp));
        }
    }

    /// One more line. Failures only cost the next call a look at the directory.
    fn append(&mut self, line: &str) {
        if self.index_lines == 0 {
            return;
        }
        let append = OpenOptions::new().append(true).open(self.index());
        let written = append.and_then(|mut f| f.write_all(line.as_bytes()));
        // A line cut short is seen by the next to read; nothing may follow it.
        self.index_lines = if written.is_ok() { self.index_lines + 1 } else { 0 };
    }

    /// Writes the index anew, valid for the directory as it was at `stamp`.
    fn rewrite(&mut self, stamp: &str) {
        let plain = |o: &Owner| !o.0.replacen("\r\n", "", 1).contains(|c: char| c.is_whitespace());
        let valid = self.used.values().all(plain);
        let mut text = String::new();
        if valid {
            text.extend(self.used.iter().map(|(a, o)| line('+', *a, o, "-")));
            text += &format!("= - - - {stamp}\n");
        }
        let written = fs::write(self.index(), &text).is_ok();
        self.index_lines = if written && valid { self.used.len() + 1 } else { 0 };
    }
}

fn line(kind: char, a: IpAddr, owner: &Owner, stamp: &str) -> String {
    let (container, ifname) = owner.parts();
    format!("{kind} {a} {container} {} {stamp}\n", ifname.unwrap_or_default())
}

fn read(path: &Path) -> io::Result<Owner> {
    let mut text = String::new();
    File::open(path)?.take(MAX_ENTRY).read_to_string(&mut text)?;
    Ok(Owner(text.trim().to_owned()))
}

/// Writes over what a file holds. Neither by a truncation to nothing nor by a rename: after either, ext4 writes to the
/// disk at once (`auto_da_alloc`), which takes milliseconds.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(f) => {
            f.write_all_at(content, 0)?;
            f.set_len(content.len() as u64)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(path, content),
        Err(e) => Err(e),
    }
}

/// A new file; `AlreadyExists` when one of that name is there. Whoever is killed between the two leaves an empty one,
/// which the next to look at the directory removes. A nameless file that is linked when it is written would leave none,
/// and costs ext4 up to a millisecond.
fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(content).inspect_err(|_| drop(fs::remove_file(path)))
}
