//! The archive that the kernel unpacks as its first file system: cpio, "newc" form (kernel
//! Documentation/driver-api/early-userspace/buffer-format.rst). Files, folders and symbolic links; all of root.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file: its bytes and permission bits.
    File(Vec<u8>, u32),
    /// A symbolic link to this.
    Link(String),
}

/// A file system: paths without a leading slash, sorted, so that a folder comes before what is in it.
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Puts a node at a path, with the folders above it. What was there goes.
    pub fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert(Node::Folder);
        }
        self.0.insert(path.to_owned(), node);
    }

    /// Whether something is at a path.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path.trim_start_matches('/'))
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When the writer fails, or a file has 4 GiB or more (`InvalidInput`).
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (n, (path, node)) in (1u32..).zip(&self.0) {
            let (mode, data) = match node {
                Node::Folder => (0o040_755, &[][..]),
                Node::File(bytes, permissions) => (0o100_000 | permissions, &bytes[..]),
                Node::Link(to) => (0o120_777, to.as_bytes()),
            };
            entry(out, n, mode, path, data)?;
        }
        entry(out, 0, 0, "TRAILER!!!", &[])
    }
}

/// Header, name and data, each padded to four bytes. The header has a multiple of four less two, so that the name's
/// padding counts from the header on.
fn entry(out: &mut impl Write, inode: u32, mode: u32, name: &str, data: &[u8]) -> io::Result<()> {
    let size = u32::try_from(data.len()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: a file of 4 GiB or more does not fit"))
    })?;
    let links = if mode & 0o040_000 != 0 && mode & 0o100_000 == 0 { 2 } else { 1 };
    let name_size = u32::try_from(name.len() + 1).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    write!(out, "070701")?;
    // inode, mode, owner, group, links, time, size, device and its kind (major, minor) twice, name, checksum
    for field in [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0; 4][..1 + padding(110 + name.len() + 1)])?;
    out.write_all(data)?;
    out.write_all(&[0; 4][..padding(data.len())])
}

fn padding(len: usize) -> usize {
    (4 - len % 4) % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: (path, mode, data).
    fn read(mut b: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut out = Vec::new();
        loop {
            assert_eq!(&b[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&b[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(b[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(b[110 + name_size - 1], 0, "{name}");
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(b.len(), data);
                return out;
            }
            out.push((name, mode as u32, b[data..data + size].to_vec()));
            b = &b[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_put_is_read_back_in_order_and_aligned() {
        let mut tree = Tree::default();
        for len in 0..9 {
            let name = "n".repeat(len + 1);
            tree.put(&format!("/usr/bin/{name}"), Node::File(vec![7; len], 0o755));
        }
        tree.put("bin", Node::Link("usr/bin".into()));
        assert!(tree.has("/usr") && tree.has("usr/bin/n") && !tree.has("/etc"));
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        let back = read(&bytes);
        assert_eq!(back.len(), 12);
        assert_eq!(back[0], ("bin".into(), 0o120_777, b"usr/bin".to_vec()));
        assert_eq!(back[1], ("usr".into(), 0o040_755, vec![]));
        assert_eq!(back[2], ("usr/bin".into(), 0o040_755, vec![]));
        for (len, file) in back[3..].iter().enumerate() {
            assert_eq!((file.1, &file.2), (0o100_755, &vec![7; len]), "{}", file.0);
        }
    }

    #[test]
    fn the_bytes_of_an_entry_by_hand() {
        let mut tree = Tree::default();
        tree.put("a/b/c", Node::File(b"hello".to_vec(), 0o600));
        tree.put("a/l", Node::Link("b/c".into()));
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        // The header's own arithmetic, by hand: 110 + 2 is a multiple of four, so "a\0" needs no padding.
        assert_eq!(&bytes[110..118], b"a\x00070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
