//! Leases on disk: a daemon that is started anew goes on with them. One file for each, in a folder that does not outlive
//! the machine's start; times are those of the clock that does not either.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use types::{IfName, Mac};

use super::client::{Lease, Times};
use super::packet::Message;

/// A file of that size is none of ours.
const MAX: u64 = 64 << 10;

/// What must be known to go on with a lease, or to give it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The machine's start (`/proc/sys/kernel/random/boot_id`) that the times count from.
    pub boot: String,
    /// Container, network and interface.
    pub id: (String, String, IfName),
    /// Path of the namespace, and the number that tells it from another at the same path.
    pub netns: (String, u64),
    /// The interface's hardware address.
    pub mac: Mac,
    /// Options of every message.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Metric of the routes.
    pub priority: Option<u32>,
    /// The lease.
    pub lease: Lease,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(v: &Value) -> Option<Vec<u8>> {
    let text = v.as_str()?.as_bytes();
    let digit = |b: &u8| char::from(*b).to_digit(16);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|p| u8::try_from(digit(&p[0])? * 16 + digit(&p[1])?).ok()).collect()
}

impl Kept {
    fn text(&self) -> String {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let l = &self.lease;
        let options: Vec<Value> = self.options.iter().map(|(c, v)| json!([c, hex(v)])).collect();
        json!({
            "boot": self.boot, "container": self.id.0, "network": self.id.1, "ifname": self.id.2.as_str(),
            "netns": self.netns.0, "inode": self.netns.1, "mac": self.mac.to_string(), "options": options,
            "priority": self.priority, "ack": hex(&l.ack.encode()), "server": l.server.to_string(),
            "times": l.times.map(|t| [ms(t.renew), ms(t.rebind), ms(t.expire)]),
        })
        .to_string()
    }

    /// Reads a file's bytes; nothing when they are none of ours or cut short.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let v: Value = serde_json::from_slice(bytes).ok()?;
        let text = |k: &str| v[k].as_str().map(str::to_owned);
        let option = |o: &Value| Some((u8::try_from(o[0].as_u64()?).ok()?, unhex(&o[1])?));
        let options: Option<Vec<_>> = v["options"].as_array()?.iter().map(option).collect();
        let options = options?.into_iter().filter(|(c, v)| !matches!(c, 0 | 255) && v.len() <= 255).collect();
        let ack = Message::decode(&unhex(&v["ack"])?)?;
        let times = match &v["times"] {
            Value::Null => None,
            t => {
                let at = |i: usize| t[i].as_u64().map(Duration::from_millis);
                let (renew, rebind, expire) = (at(0)?, at(1)?, at(2)?);
                Some(Times { renew, rebind, expire }).filter(|_| renew <= rebind && rebind <= expire).map(Some)?
            }
        };
        let server: Ipv4Addr = v["server"].as_str()?.parse().ok()?;
        Some(Self {
            boot: text("boot")?,
            id: (text("container")?, text("network")?, v["ifname"].as_str()?.parse().ok()?),
            netns: (text("netns")?, v["inode"].as_u64()?),
            mac: v["mac"].as_str()?.parse().ok()?,
            options,
            priority: v["priority"].as_u64().and_then(|n| u32::try_from(n).ok()),
            lease: Lease { addr: ack.yiaddr, ack, server, times },
        })
    }
}

/// The folder of leases.
#[derive(Debug, Clone)]
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    fn file(&self, id: &str) -> PathBuf {
        // FNV-1a: ids are of no length that a name may have.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        self.0.join(format!("{hash:016x}.json"))
    }

    /// Writes a lease; a reader sees the old or the new.
    pub(crate) fn keep(&self, id: &str, kept: &Kept) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let file = self.file(id);
        let new = file.with_extension("new");
        let write = || {
            let mut f = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            f.write_all(kept.text().as_bytes())?;
            fs::rename(&new, &file)
        };
        write().inspect_err(|_| drop(fs::remove_file(&new)))
    }

    /// Forgets a lease.
    pub(crate) fn forget(&self, id: &str) {
        let _ = fs::remove_file(self.file(id));
    }

    /// All that are kept of this start of the machine; files of another, and what is none of ours, are removed.
    pub(crate) fn all(&self, boot: &str) -> Vec<Kept> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let mut out = Vec::new();
        for path in entries.flatten().map(|e| e.path()) {
            match read(&path).as_deref().and_then(Kept::parse) {
                Some(k) if k.boot == boot => out.push(k),
                _ => drop(fs::remove_file(&path)),
            }
        }
        out
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::packet::{Kind, code};
    use super::*;

    fn some() -> Kept {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut ack = Message::new(Kind::Ack, 7, mac);
        ack.yiaddr = Ipv4Addr::new(10, 1, 2, 100);
        ack.set(code::MASK, vec![255, 255, 255, 0]);
        let s = Duration::from_secs;
        let times = Some(Times { renew: s(10), rebind: s(20), expire: s(30) });
        Kept {
            boot: "b".into(),
            id: ("c1".into(), "net".into(), "eth0".parse().unwrap()),
            netns: ("/run/netns/x".into(), 4_026_531_840),
            mac,
            options: vec![(12, b"web".to_vec()), (61, vec![0, 255])],
            priority: Some(5),
            lease: Lease { addr: ack.yiaddr, ack, server: Ipv4Addr::new(10, 1, 2, 1), times },
        }
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_forgotten_or_the_machine_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().join("a/b"));
        assert_eq!(folder.all("b"), []);
        let mut endless = some();
        (endless.id.0, endless.lease.times, endless.priority) = ("c2".into(), None, None);
        folder.keep("c1/net/eth0", &some()).unwrap();
        folder.keep("c2/net/eth0", &endless).unwrap();
        fs::write(folder.0.join("torn.json"), &some().text()[..40]).unwrap();
        let mut all = folder.all("b");
        all.sort_by(|a, b| a.id.0.cmp(&b.id.0));
        assert_eq!(all, [some(), endless]);
        assert!(!folder.0.join("torn.json").exists());
        folder.forget("c2/net/eth0");
        assert_eq!(folder.all("b"), [some()]);
        assert_eq!(folder.all("another start"), []);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }
}
