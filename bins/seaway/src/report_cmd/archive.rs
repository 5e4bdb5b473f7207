//! The bundle: small files in one folder, bounded, as a compressed tar or as a folder.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes of one file, and of all, at most. Of a file that is longer the end is kept: there is what happened last.
const LONGEST: usize = 2 << 20;
const MOST: usize = 24 << 20;

/// What was gathered.
#[derive(Debug, Default)]
pub struct Bundle {
    files: Vec<(String, String)>,
    size: usize,
    left_out: Vec<String>,
}

impl Bundle {
    /// Adds a file; its secrets stay outside.
    pub fn add(&mut self, name: impl Into<String>, text: &str) {
        let name = name.into();
        let mut text = super::redact::text(text);
        if text.len() > LONGEST {
            let mut from = text.len() - LONGEST;
            while !text.is_char_boundary(from) {
                from += 1;
            }
            text = format!("[{from} bytes left out]\n{}", text.split_off(from));
        }
        if self.size + text.len() > MOST {
            self.left_out.push(name);
            return;
        }
        self.size += text.len();
        self.files.push((name, text));
    }

    /// Adds what was asked for, or why it could not be had: that, too, tells something.
    pub fn add_result(&mut self, name: impl Into<String>, text: anyhow::Result<String>) {
        let name = name.into();
        match text {
            Ok(t) => self.add(name, &t),
            Err(e) => self.add(format!("{name}.missing"), &format!("{e:#}\n")),
        }
    }

    /// The names of what did not fit.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// How many files there are, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.files.len(), self.size)
    }

    /// Writes it: a name that ends in `.tar.gz` or `.tgz` is an archive, any other a new folder. Only the owner may read it.
    ///
    /// # Errors
    /// When it cannot be written, or the folder is there already.
    pub fn write(&self, to: &Path, folder: &str) -> anyhow::Result<()> {
        let name = to.to_string_lossy();
        if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
            let new = to.with_extension("part");
            let written = self.archive(&new, folder).and_then(|()| Ok(std::fs::rename(&new, to)?));
            if written.is_err() {
                let _ = std::fs::remove_file(&new);
            }
            return written.with_context(|| format!("write {name}"));
        }
        if to.exists() {
            bail!("-o {name}: is there already; name another folder, or a file that ends in .tar.gz");
        }
        for (file, text) in &self.files {
            let path = to.join(file);
            let parent = path.parent().unwrap_or(to);
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        owner_only(to, 0o700)
    }

    fn archive(&self, to: &Path, folder: &str) -> anyhow::Result<()> {
        let file = std::fs::File::create(to)?;
        owner_only(to, 0o600)?;
        let mut gz = GzEncoder::new(file, Compression::default());
        for (name, text) in &self.files {
            gz.write_all(&header(&format!("{folder}/{name}"), text.len())?)?;
            gz.write_all(text.as_bytes())?;
            gz.write_all(&vec![0; text.len().next_multiple_of(512) - text.len()])?;
        }
        gz.write_all(&[0; 1024])?;
        gz.finish()?.sync_all()?;
        Ok(())
    }
}

fn owner_only(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

/// A header of POSIX.1-1988 ("ustar").
fn header(path: &str, size: usize) -> anyhow::Result<[u8; 512]> {
    if path.len() > 100 {
        bail!("{path}: a name in an archive has 100 bytes at most");
    }
    let mut h = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = h.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, path.as_bytes());
    put(100, b"0000600\x000000000\x000000000\0");
    put(124, format!("{size:011o}\0{:011o}\0", 0).as_bytes());
    put(148, b"        0");
    put(257, b"ustar\x0000");
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    if let Some(place) = h.get_mut(148..156) {
        place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_and_what_is_too_much_is_named() {
        let mut b = Bundle::default();
        let long = format!("{}\n", "x".repeat(1000));
        b.add("a", &format!("first\n{}last\n", long.repeat(2200)));
        let (_, text) = &b.files[0];
        assert!(text.len() < LONGEST + 64 && text.ends_with("last\n") && !text.contains("first"), "{}", text.len());
        for n in 0..20 {
            b.add(format!("b{n}"), &long.repeat(1600));
        }
        assert!(b.size().1 <= MOST && !b.left_out().is_empty());
    }

    #[test]
    fn tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut b = Bundle::default();
        b.add("kernel/links.txt", "eth0\n");
        b.add_result("x", Err(anyhow::anyhow!("not here")));
        let file = dir.path().join("r.tar.gz");
        b.write(&file, "seaway-n1").unwrap();
        let out = std::process::Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let read = |f: &str| std::fs::read_to_string(dir.path().join("seaway-n1").join(f)).unwrap();
        assert_eq!((read("kernel/links.txt"), read("x.missing")), ("eth0\n".into(), "not here\n".into()));
        b.write(&dir.path().join("folder"), "").unwrap();
        assert!(b.write(&dir.path().join("folder"), "").unwrap_err().to_string().contains("is there already"));
    }
}
