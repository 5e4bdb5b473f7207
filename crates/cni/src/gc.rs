//! GC, and finding the attachments whose pods are gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use ipam::{Journal, Record};
use kernel_api::Rtnetlink;
use types::OwnedName;

use crate::config::NetConf;
use crate::ops::{remove, remove_orphan};
use crate::{Code, Error, Machine, Registry};

/// Removes every attachment of this network that the runtime does not list as valid, every host end that belongs to no
/// attachment.
///
/// One data directory serves one network namespace: host ends are recognised by their name, and one without a record
/// there is taken for left over.
pub(crate) fn run<M: Machine>(machine: &mut M, registry: Registry<M>, conf: &NetConf) -> Result<(), Error> {
    let valid: BTreeSet<_> = conf.valid.iter().flatten().collect();
    let dir = &conf.data_dir;
    let mut failed: Vec<Error> = Vec::new();

    // Links before records: an ADD writes its record before it makes its link, so each link seen here that is in use
    // has its record by now.
    let mut rt =
        machine.host().map_err(|e| Error::new(Code::Kernel, format!("open rtnetlink in the node's namespace: {e}")))?;
    let links: Vec<OwnedName> =
        rt.links()?.iter().filter_map(|l| OwnedName::recognise(&l.name).ok()).filter(OwnedName::is_pod_link).collect();
    let records = ipam::read(dir)?;
    for r in records.iter().filter(|r| *r.network == *conf.name && !valid.contains(&r.key)) {
        failed.extend(remove(machine, registry, dir, &r.key).err());
    }
    let kept: BTreeSet<_> = records.iter().map(|r| r.link.clone()).chain(valid.iter().map(|k| k.link())).collect();
    for link in links.iter().filter(|l| !kept.contains(*l)) {
        failed.extend(remove_orphan(machine, dir, link).err());
    }
    failed.extend(crate::extras::sweep(machine, dir, &conf.name).err());
    failed.extend(crate::names::sweep(dir).err());
    if dir.exists() {
        match Journal::open_existing(dir) {
            Ok(Some(mut j)) => j.remove_strays(),
            Ok(None) => {}
            Err(e) => failed.push(e.into()),
        }
    }
    let count = failed.len();
    match failed.into_iter().next() {
        None => Ok(()),
        Some(e) if count == 1 => Err(e),
        Some(e) => Err(Error { msg: format!("{} (and {} more failures)", e.msg, count - 1), ..e }),
    }
}

/// The attachments whose network namespaces no longer exist: nothing can use their addresses. For the agent's sweep,
/// which hands each to [`crate::remove_if_gone`].
#[must_use]
pub fn gone(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|r| namespace_gone(r)).collect()
}

/// Whether the namespace of an attachment is gone: nothing at its path, or something else. A path that cannot be looked
/// at says nothing: then it is not gone.
#[must_use]
pub fn namespace_gone(r: &Record) -> bool {
    match fs::metadata(r.netns.as_ref()) {
        Ok(m) => {
            // A bind mount that was undone leaves a plain file behind.
            m.ino() != r.inode || !is_nsfs(r)
        }
        Err(e) => matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

fn is_nsfs(r: &Record) -> bool {
    /// `NSFS_MAGIC`, include/uapi/linux/magic.h
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    match rustix::fs::statfs(r.netns.as_ref()) {
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // the type differs between architectures
        Ok(s) => s.f_type as u64 == NSFS_MAGIC,
        Err(_) => true,
    }
}
