//! The machine's file system: its first process, the tests, tools of this machine with their libraries, kernel modules.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::{Node, Tree};
use crate::debian::{Kernel, tool};
use crate::{BINARY, LIST};

/// The tools inside, copied from this machine: name, Debian package. Add what a test needs; Makefile's `NEEDS_TEST`
/// installs it.
pub const TOOLS: &[(&str, &str)] = &[
    ("sh", "dash"),
    ("grep", "grep"),
    ("sed", "sed"),
    ("hostname", "hostname"),
    ("modprobe", "kmod"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("conntrack", "conntrack"),
    ("ipvsadm", "ipvsadm"),
    ("tcpdump", "tcpdump"),
    ("dnsmasq", "dnsmasq-base"),
];

/// And these, of Debian's coreutils.
const COREUTILS: &str = "cat chmod cp cut dd echo env false head ln ls mkdir mktemp mv printf readlink rm seq sleep sort \
                         stat tail tee test timeout touch tr true uname wc";

/// Modules inside: these folders of the kernel's.
const MODULES: &[&str] = &["kernel/net", "kernel/drivers/net", "kernel/crypto", "kernel/lib", "kernel/arch/x86/crypto"];
/// But not these: drivers of hardware, and file systems.
const NOT_MODULES: &[&str] = &[
    "kernel/drivers/net/ethernet",
    "kernel/drivers/net/wwan",
    "kernel/net/ceph",
    "kernel/net/sunrpc",
    "kernel/net/tipc",
];
/// Files of this machine that tools read, where they are.
const FILES: &[&str] = &["/etc/protocols", "/etc/services", "/etc/iproute2/rt_protos", "/etc/iproute2/rt_tables"];

/// Writes the archive to `file`. `programs` are where to put which; `tests` are the names to run.
///
/// # Errors
/// When a tool is missing (the error names its package), or a file cannot be read or written.
pub fn write(
    file: &Path,
    kernel: &Kernel,
    init: &Path,
    binary: &Path,
    programs: &[(String, PathBuf)],
    tests: &[String],
) -> Result<()> {
    let mut tree = Tree::default();
    for dir in ["bin", "sbin", "lib", "lib64"] {
        tree.put(&format!("usr/{dir}"), Node::Folder);
        tree.put(dir, Node::Link(format!("usr/{dir}")));
    }
    for dir in ["dev", "proc", "sys", "run", "tmp", "root", "var"] {
        tree.put(dir, Node::Folder);
    }
    tree.put("var/run", Node::Link("/run".into()));
    tree.put("etc/passwd", Node::File(b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644));
    tree.put("etc/group", Node::File(b"root:x:0:\n".to_vec(), 0o644));
    tree.put("etc/hosts", Node::File(b"127.0.0.1 localhost\n::1 localhost\n".to_vec(), 0o644));
    tree.put(LIST, Node::File(format!("{}\n", tests.join("\n")).into_bytes(), 0o644));
    let mut linked = Vec::new();
    let mut program = |tree: &mut Tree, from: &Path, to: &str| -> Result<()> {
        copy(tree, from, to)?;
        linked.push(from.to_owned());
        Ok(())
    };
    program(&mut tree, init, "init")?;
    program(&mut tree, binary, BINARY)?;
    for (to, from) in programs {
        program(&mut tree, from, to)?;
    }
    let coreutils = COREUTILS.split(' ').map(|name| (name, "coreutils"));
    for (name, package) in TOOLS.iter().copied().chain(coreutils) {
        program(&mut tree, &tool(name, package)?, &format!("usr/bin/{name}"))?;
    }
    // What the kernel starts when it wants a module (/proc/sys/kernel/modprobe).
    tree.put("usr/sbin/modprobe", Node::Link("../bin/modprobe".into()));
    for library in libraries(&linked)? {
        let at = library.to_string_lossy().into_owned();
        copy(&mut tree, &library, at.strip_prefix("/usr").unwrap_or(&at)).context("copy a library")?;
    }
    for from in FILES.iter().filter(|f| Path::new(f).is_file()) {
        copy(&mut tree, Path::new(from), from)?;
    }
    modules(&mut tree, kernel)?;
    let out = File::create(file).with_context(|| format!("make {}", file.display()))?;
    let mut out = BufWriter::new(out);
    tree.write(&mut out).and_then(|()| out.flush()).with_context(|| format!("write {}", file.display()))
}

/// Copies a file, through links; `to` below /bin, /sbin, /lib lands where those links lead.
fn copy(tree: &mut Tree, from: &Path, to: &str) -> Result<()> {
    let read =
        || Ok::<_, std::io::Error>((std::fs::read(from)?, std::fs::metadata(from)?.permissions().mode() & 0o777));
    let (bytes, mode) = read().with_context(|| format!("read {}", from.display()))?;
    let to = to.trim_start_matches('/');
    let merged = ["bin/", "sbin/", "lib/", "lib64/"].iter().any(|d| to.starts_with(d));
    tree.put(&if merged { format!("usr/{to}") } else { to.to_owned() }, Node::File(bytes, mode));
    Ok(())
}

/// The shared libraries, and the dynamic linker, of programs.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let ldd = tool("ldd", "libc-bin")?;
    let mut found = BTreeSet::new();
    for p in programs {
        // Fails for a static program, which has none.
        let out = Command::new(&ldd).arg(p).output().context("run ldd")?;
        found.extend(listed(&String::from_utf8_lossy(&out.stdout)));
    }
    Ok(found)
}

/// The paths in ldd's output: after an arrow, or alone for the dynamic linker.
fn listed(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    text.lines().filter_map(|l| {
        let path = l.split_once("=>").map_or(l, |(_, path)| path).trim();
        let path = path.split(" (0x").next().unwrap_or(path);
        path.starts_with('/').then(|| PathBuf::from(path))
    })
}

/// The modules and what modprobe reads to find them.
fn modules(tree: &mut Tree, kernel: &Kernel) -> Result<()> {
    let to = format!("usr/lib/modules/{}", kernel.release);
    let mut todo: Vec<PathBuf> = MODULES.iter().map(|m| kernel.modules.join(m)).collect();
    let skipped: Vec<PathBuf> = NOT_MODULES.iter().map(|m| kernel.modules.join(m)).collect();
    for index in std::fs::read_dir(&kernel.modules)? {
        let path = index?.path();
        if path.is_file() {
            todo.push(path);
        }
    }
    while let Some(path) = todo.pop() {
        if skipped.contains(&path) {
            continue;
        }
        if path.is_dir() {
            for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                todo.push(entry?.path());
            }
        } else {
            let name = path.strip_prefix(&kernel.modules)?.to_string_lossy();
            copy(tree, &path, &format!("{to}/{name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_lists() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n\tlibgone.so => not found\n";
        let want = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(listed(text).collect::<Vec<_>>(), want.map(PathBuf::from));
        assert_eq!(listed("\tstatically linked\n").count(), 0);
    }

    #[test]
    fn a_file_below_a_merged_folder_lands_where_the_link_leads() {
        let mut tree = Tree::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        for to in ["/lib/x/libc.so", "/opt/cni/bin/p", "/library"] {
            copy(&mut tree, file.path(), to).unwrap();
        }
        assert!(tree.has("usr/lib/x/libc.so") && tree.has("opt/cni/bin/p") && tree.has("library"));
        assert!(!tree.has("lib"));
    }
}
