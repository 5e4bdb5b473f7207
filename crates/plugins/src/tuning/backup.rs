//! What an interface was before, in the reference plugin's file: `CONTAINER_IFNAME.json` in `dataDir`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::{Code, Error};
use ipam::{IfThere, Key};
use kernel_api::rt::{Link, RtRequest, SetLink};
use serde_json::{Map, Value, json};
use types::IfName;

/// Previous values of what is set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Backup(SetLink);

fn file(dir: &Path, key: &Key) -> PathBuf {
    // Neither has a slash.
    dir.join(format!("{}_{}.json", key.container, key.ifname))
}

fn says(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |e| Error::new(Code::Io, format!("{}: {e}", path.display()))
}

impl Backup {
    /// Of those values of a link that `set` changes.
    pub(super) fn of(now: &Link, set: &SetLink) -> Self {
        Self(SetLink {
            mac: set.mac.and(now.mac),
            mtu: set.mtu.map(|_| now.mtu),
            txqlen: set.txqlen.map(|_| now.txqlen),
            promisc: set.promisc.map(|_| now.promisc),
            allmulti: set.allmulti.map(|_| now.allmulti),
            ..SetLink::new(now.name.clone())
        })
    }

    /// Writes it, unless an earlier ADD did: then what that one found is what goes back.
    pub(super) fn keep(mut self, dir: &Path, network: &str, key: &Key) -> Result<Self, Error> {
        if let Some(Self(old)) = Self::find(dir, key)? {
            let new = &mut self.0;
            new.mac = old.mac.or(new.mac);
            new.mtu = old.mtu.or(new.mtu);
            new.txqlen = old.txqlen.or(new.txqlen);
            new.promisc = old.promisc.or(new.promisc);
            new.allmulti = old.allmulti.or(new.allmulti);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(says(dir))?;
        let path = file(dir, key);
        let temp = path.with_extension("new");
        let write = || {
            let mut f = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
            io::Write::write_all(&mut f, self.text(network, key).as_bytes())?;
            fs::rename(&temp, &path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&temp))).map_err(says(&path))?;
        Ok(self)
    }

    /// The reference's fields, and whose it is, which the reference does not say.
    fn text(&self, network: &str, key: &Key) -> String {
        let s = &self.0;
        let mut out = Map::new();
        out.insert("network".into(), network.into());
        out.insert("attachment".into(), json!(key));
        let mut put = |name: &str, v: Option<Value>| drop(v.map(|v| out.insert(name.into(), v)));
        put("mac", s.mac.map(|m| json!(m.to_string())));
        put("promisc", s.promisc.map(Value::from));
        put("mtu", s.mtu.map(Value::from));
        put("allmulti", s.allmulti.map(Value::from));
        put("txQLen", s.txqlen.map(Value::from));
        Value::Object(out).to_string()
    }

    /// Reads it. One that is no JSON was cut short while the reference wrote it: there is none.
    pub(super) fn find(dir: &Path, key: &Key) -> Result<Option<Self>, Error> {
        let path = file(dir, key);
        let Some(text) = fs::read(&path).if_there().map_err(says(&path))? else { return Ok(None) };
        let Ok(v) = serde_json::from_slice::<Value>(&text) else { return Ok(None) };
        let number = |k: &str| v[k].as_u64().and_then(|n| u32::try_from(n).ok());
        Ok(Some(Self(SetLink {
            mac: v["mac"].as_str().and_then(|m| m.parse().ok()),
            mtu: number("mtu").filter(|n| *n > 0),
            txqlen: number("txQLen"),
            promisc: v["promisc"].as_bool(),
            allmulti: v["allmulti"].as_bool(),
            ..SetLink::new(key.ifname.clone())
        })))
    }

    /// What puts the values back.
    pub(super) fn requests(&self, name: &IfName) -> Vec<RtRequest> {
        let set = SetLink { name: name.clone(), ..self.0.clone() };
        if set == SetLink::new(name.clone()) { Vec::new() } else { vec![RtRequest::LinkSet(set)] }
    }

    /// Removes the file.
    pub(super) fn forget(dir: &Path, key: &Key) -> Result<(), Error> {
        let path = file(dir, key);
        fs::remove_file(&path).if_there().map(|_| ()).map_err(says(&path))
    }
}

/// Removes the files of a network's attachments that do not live. Those of the reference do not say whose they are and
/// stay.
pub(super) fn sweep(dir: &Path, network: &str, valid: &[Key]) -> Result<(), Error> {
    let Some(entries) = fs::read_dir(dir).if_there().map_err(says(dir))? else { return Ok(()) };
    for e in entries {
        let path = e.map_err(says(dir))?.path();
        let Some(v) = fs::read(&path).ok().and_then(|t| serde_json::from_slice::<Value>(&t).ok()) else { continue };
        let key = serde_json::from_value::<Key>(v["attachment"].clone()).ok();
        if let Some(key) = key.filter(|k| v["network"] == network && !valid.contains(k)) {
            Backup::forget(dir, &key)?;
        }
    }
    Ok(())
}
