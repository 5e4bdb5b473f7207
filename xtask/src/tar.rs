//! Writing tar archives (POSIX.1-2001, "pax"): the same files give the same bytes.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A folder.
    Folder,
    /// A file of this machine.
    File(PathBuf),
    /// A small file.
    Bytes(Vec<u8>),
    /// A symbolic link to this.
    Link(String),
}

/// An entry of an archive. It belongs to root, and its time is the epoch's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub what: What,
}

impl Entry {
    /// A folder with mode 0755.
    pub fn folder(path: &str) -> Self {
        Self { path: path.into(), mode: 0o755, what: What::Folder }
    }

    /// A small file with mode 0644.
    pub fn bytes(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.into(), mode: 0o644, what: What::Bytes(bytes) }
    }
}

/// Everything below a folder, sorted by path. Devices, sockets and pipes are left out.
pub fn below(root: &Path) -> Result<Vec<Entry>> {
    let (mut out, mut todo) = (Vec::new(), vec![(root.to_path_buf(), String::new())]);
    while let Some((dir, at)) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                bail!("{}: a name that is no UTF-8", entry.path().display());
            };
            let path = if at.is_empty() { name } else { format!("{at}/{name}") };
            let meta = entry.metadata()?;
            let what = if meta.is_dir() {
                todo.push((entry.path(), path.clone()));
                What::Folder
            } else if meta.is_symlink() {
                What::Link(fs::read_link(entry.path())?.to_string_lossy().into_owned())
            } else if meta.is_file() {
                What::File(entry.path())
            } else {
                continue;
            };
            out.push(Entry { path, mode: meta.permissions().mode() & 0o7777, what });
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

/// Writes the archive.
pub fn write(entries: &[Entry], out: &mut impl Write) -> Result<()> {
    for e in entries {
        entry(e, out).with_context(|| format!("archive {}", e.path))?;
    }
    // The end is two empty records.
    out.write_all(&[0; 1024])?;
    Ok(())
}

fn entry(e: &Entry, out: &mut impl Write) -> Result<()> {
    let (kind, size, link) = match &e.what {
        What::Folder => (b'5', 0, ""),
        What::File(f) => (b'0', fs::metadata(f).with_context(|| format!("read {}", f.display()))?.len(), ""),
        What::Bytes(b) => (b'0', b.len() as u64, ""),
        What::Link(to) => (b'2', 0, to.as_str()),
    };
    let path = if kind == b'5' { format!("{}/", e.path) } else { e.path.clone() };
    // What a field of 100 bytes does not hold stands before the entry, as "LENGTH KEY=VALUE\n".
    let long: String = [("path", path.as_str()), ("linkpath", link)]
        .into_iter()
        .filter(|(_, v)| v.len() > 100 || !v.is_ascii())
        .map(|(k, v)| record(k, v))
        .collect();
    if !long.is_empty() {
        out.write_all(&header("pax", 0o644, long.len() as u64, b'x', "")?)?;
        out.write_all(long.as_bytes())?;
        pad(long.len() as u64, out)?;
    }
    out.write_all(&header(&path, e.mode, size, kind, link)?)?;
    match &e.what {
        What::File(f) => {
            let copied = io::copy(&mut fs::File::open(f)?.take(size), out)?;
            if copied != size {
                bail!("{} changed while it was read", f.display());
            }
        }
        What::Bytes(b) => out.write_all(b)?,
        What::Folder | What::Link(_) => {}
    }
    pad(size, out)
}

fn record(key: &str, value: &str) -> String {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

fn pad(size: u64, out: &mut impl Write) -> Result<()> {
    let more = usize::try_from(size.next_multiple_of(512) - size)?;
    Ok(out.write_all(&[0; 512][..more])?)
}

/// A header of the format "ustar".
fn header(path: &str, mode: u32, size: u64, kind: u8, link: &str) -> Result<[u8; 512]> {
    let mut h = [0; 512];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let n = bytes.len().min(most);
        h[at..at + n].copy_from_slice(&bytes[..n]);
    };
    put(0, 100, path.as_bytes());
    put(100, 8, format!("{mode:07o}").as_bytes());
    put(108, 8, b"0000000");
    put(116, 8, b"0000000");
    if size >= 1 << 33 {
        bail!("has {size} bytes: at most 8 GiB fit");
    }
    put(124, 12, format!("{size:011o}").as_bytes());
    put(136, 12, b"00000000000");
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link.as_bytes());
    put(257, 8, b"ustar\x0000");
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(h)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_what_we_write() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let deep = format!("{}/{}", "d".repeat(90), "f".repeat(120));
        fs::create_dir_all(root.join(&deep).parent().unwrap()).unwrap();
        fs::write(root.join(&deep), "long").unwrap();
        fs::write(root.join("run"), vec![7; 1025]).unwrap();
        fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("t".repeat(130), root.join("far")).unwrap();
        symlink("run", root.join("near")).unwrap();
        let mut entries = below(&root).unwrap();
        entries.push(Entry::bytes("note", b"hello".to_vec()));
        let (mut one, mut two) = (Vec::new(), Vec::new());
        write(&entries, &mut one).unwrap();
        write(&entries, &mut two).unwrap();
        assert_eq!(one, two);
        let archive = dir.path().join("a.tar");
        fs::write(&archive, one).unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let done = Command::new("tar").arg("-xpf").arg(&archive).arg("-C").arg(&out).output().unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::write(root.join("note"), "hello").unwrap();
        let same = |p: &str| assert_eq!(fs::read(out.join(p)).unwrap(), fs::read(root.join(p)).unwrap(), "{p}");
        [deep.as_str(), "run", "note"].into_iter().for_each(same);
        assert_eq!(fs::metadata(out.join("run")).unwrap().permissions().mode() & 0o7777, 0o4711);
        for l in ["far", "near"] {
            assert_eq!(fs::read_link(out.join(l)).unwrap(), fs::read_link(root.join(l)).unwrap());
        }
    }

    #[test]
    fn a_records_length_counts_itself() {
        for n in [1, 90, 91, 92, 93, 980, 990, 991, 992, 993] {
            let r = record("path", &"x".repeat(n));
            assert_eq!(r.split_once(' ').unwrap().0, r.len().to_string());
        }
    }
}
