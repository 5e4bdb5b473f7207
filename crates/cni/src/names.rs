//! Names that stand for a pod's addresses (capability `aliases`): one file for each attachment, in the form of
//! `/etc/hosts`, in a folder that a resolver reads (`dnsmasq --hostsdir`). The record says them too; the file is a copy.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use ipam::{IfThere, Record};

use crate::fields::bad;
use crate::{Code, Error};

/// The folder beside the journal.
pub const FOLDER: &str = "names";
/// Of one attachment at most.
const MOST: usize = 64;

/// Checks names that somebody wishes.
///
/// # Errors
/// Code 7, naming the field.
pub(crate) fn read(field: &str, list: &[String]) -> Result<Vec<Box<str>>, Error> {
    if list.len() > MOST {
        return Err(bad(format!("{field} has {} names, at most {MOST} are taken", list.len())));
    }
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&l.len()) && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    let wrong = list.iter().find(|n| n.len() > 253 || !n.split('.').all(label));
    match wrong {
        Some(n) => Err(bad(format!("{field} has {n:?}: a host's name is needed, e.g. \"db\" or \"db.example\""))),
        None => Ok(list.iter().map(|n| n.as_str().into()).collect()),
    }
}

fn io(doing: &str, path: &Path, e: &io::Error) -> Error {
    Error::new(Code::Io, format!("{doing} {}: {e}", path.display()))
}

/// Brings the file of an attachment to what its record says.
pub(crate) fn write(dir: &Path, r: &Record) -> Result<(), Error> {
    if r.names.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for a in &r.addresses {
        let _ = writeln!(text, "{a} {}", r.names.join(" "));
    }
    let path = dir.join(FOLDER).join(r.link.as_str());
    // A resolver may run as somebody else.
    crate::write_atomically(&path, &text).map(drop).map_err(|e| io("write", &path, &e))
}

/// Takes the file of an attachment away.
pub(crate) fn remove(dir: &Path, r: &Record) -> Result<(), Error> {
    if r.names.is_empty() { Ok(()) } else { delete(&dir.join(FOLDER), r.link.as_str()) }
}

fn delete(folder: &Path, file: &str) -> Result<(), Error> {
    let path = folder.join(file);
    fs::remove_file(&path).if_there().map(|_| ()).map_err(|e| io("remove", &path, &e))
}

/// Takes away what belongs to no record: of an ADD that was killed while it wrote.
pub(crate) fn sweep(dir: &Path) -> Result<(), Error> {
    let folder = dir.join(FOLDER);
    let there = fs::read_dir(&folder).if_there().map_err(|e| io("look into", &folder, &e))?;
    let Some(files) = there else { return Ok(()) };
    // The files before the records: an ADD writes its record first.
    let files: Vec<_> = files.flatten().map(|f| f.file_name()).collect();
    let records = ipam::read(dir)?;
    let known: BTreeSet<&str> = records.iter().filter(|r| !r.names.is_empty()).map(|r| r.link.as_str()).collect();
    for name in files {
        if let Some(n) = name.to_str().filter(|n| !known.contains(n.trim_end_matches(".new"))) {
            delete(&folder, n)?;
        }
    }
    Ok(())
}
