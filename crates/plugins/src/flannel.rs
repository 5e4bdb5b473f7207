//! `flannel`: reads which subnet the node has from the file that flannel (or Seaway's agent) writes, and has another
//! plugin attach the container with addresses of it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::{CniResult, Code, Command, Context, Error, Fields, IpNet, Plugin, bad};
use ipam::IfThere;
use kernel_api::machine::Machine;
use serde_json::{Map, Value, json};
use types::Cidr;

/// See the module.
pub struct Flannel;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";
/// Bytes of a file that are read at most.
const MAX_FILE: u64 = 1 << 20;

/// What the subnet file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// The cluster's networks: IPv4's, then IPv6's.
    pub networks: Vec<Cidr>,
    /// The node's subnets: IPv4's, then IPv6's.
    pub subnets: Vec<Cidr>,
    /// Bytes.
    pub mtu: u32,
    /// Whether flannel masquerades itself.
    pub masquerades: bool,
}

/// What lines of the subnet file say, be it all or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// The cluster's networks, of IPv4 and of IPv6.
    pub networks: [Vec<Cidr>; 2],
    /// The node's subnet, of IPv4 and of IPv6.
    pub subnets: [Option<Cidr>; 2],
    mtu: Option<u32>,
    masquerades: Option<bool>,
}

impl Lines {
    /// Reads `text`, one `NAME=VALUE` a line; other names are left alone.
    ///
    /// # Errors
    /// Which line is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        let nets = |v: &str| -> Result<Vec<Cidr>, String> {
            // An address within the subnet stands for it: flannel writes the node's own.
            v.split(',').map(|n| n.trim().parse::<IpNet>().map(IpNet::network)).collect()
        };
        let mut out = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.trim().split_once('=') else { continue };
            let says = |e: String| format!("{name}={value}: {e}");
            let one = |v: Vec<Cidr>| match v[..] {
                [one] => Ok(Some(one)),
                _ => Err("one subnet is needed".to_owned()),
            };
            match name {
                "FLANNEL_NETWORK" => out.networks[0] = nets(value).map_err(says)?,
                "FLANNEL_IPV6_NETWORK" => out.networks[1] = nets(value).map_err(says)?,
                "FLANNEL_SUBNET" => out.subnets[0] = nets(value).and_then(one).map_err(says)?,
                "FLANNEL_IPV6_SUBNET" => out.subnets[1] = nets(value).and_then(one).map_err(says)?,
                "FLANNEL_MTU" => out.mtu = Some(value.parse::<u32>().map_err(|e| says(e.to_string()))?),
                "FLANNEL_IPMASQ" => out.masquerades = Some(value == "true"),
                _ => {}
            }
        }
        Ok(out)
    }
}

impl Env {
    /// Reads the file's `text`, which must say everything.
    ///
    /// # Errors
    /// Which line is wrong, or which names are missing.
    pub fn read(text: &str) -> Result<Self, String> {
        let Lines { networks, subnets, mtu, masquerades } = Lines::read(text)?;
        let (networks, subnets) = (networks.concat(), subnets.into_iter().flatten().collect::<Vec<_>>());
        let lacks = [
            (networks.is_empty(), "FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK"),
            (subnets.is_empty(), "FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET"),
            (mtu.is_none(), "FLANNEL_MTU"),
            (masquerades.is_none(), "FLANNEL_IPMASQ"),
        ];
        let missing: Vec<&str> = lacks.into_iter().filter(|(l, _)| *l).map(|(_, n)| n).collect();
        match (mtu, masquerades) {
            (Some(mtu), Some(masquerades)) if missing.is_empty() => Ok(Self { networks, subnets, mtu, masquerades }),
            _ => Err(format!("lacks {}", missing.join(", "))),
        }
    }
}

/// The delegate's whole configuration.
///
/// # Errors
/// Code 7, naming the field.
pub fn delegate(f: &Fields<'_>, network: &str, version: &str, env: &Env) -> Result<Map<String, Value>, Error> {
    let mut out = f.map("delegate")?.cloned().unwrap_or_default();
    let d = f.object("delegate")?;
    d.as_ref().map(|d| d.text("type")).transpose()?;
    for field in ["name", "ipam"] {
        if out.contains_key(field) {
            return Err(bad(format!("delegate.{field} is set: flannel sets it itself; leave it out")));
        }
    }
    if let Some(r) = f.map("runtimeConfig")? {
        out.insert("runtimeConfig".into(), Value::Object(r.clone()));
    }
    out.insert("name".into(), network.into());
    out.insert("cniVersion".into(), version.into());
    out.entry("type").or_insert_with(|| "bridge".into());
    out.entry("ipMasq").or_insert_with(|| (!env.masquerades).into());
    out.entry("mtu").or_insert_with(|| env.mtu.into());
    if out.get("type").is_some_and(|t| t == "bridge") {
        out.entry("isGateway").or_insert_with(|| true.into());
    }
    let mut ipam = f.map("ipam")?.cloned().unwrap_or_default();
    let mut routes = match f.object("ipam")? {
        Some(i) => i.list("routes")?.to_vec(),
        None => Vec::new(),
    };
    routes.extend(env.networks.iter().map(|n| json!({"dst": n.to_string()})));
    ipam.entry("type").or_insert_with(|| "host-local".into());
    ipam.insert("ranges".into(), env.subnets.iter().map(|s| json!([{"subnet": s.to_string()}])).collect());
    ipam.insert("routes".into(), routes.into());
    out.insert("ipam".into(), Value::Object(ipam));
    Ok(out)
}

fn says(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |e| Error::new(Code::Io, format!("{}: {e}", path.display()))
}

fn bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

fn env(f: &Fields<'_>) -> Result<Env, Error> {
    let path = Path::new(f.text("subnetFile")?.filter(|p| !p.is_empty()).unwrap_or(SUBNET_FILE));
    let text = bounded(path).map_err(|e| {
        let says = format!("subnetFile {}: {e}; flannel writes it once the node has its subnet", path.display());
        Error::new(Code::Io, says)
    })?;
    Env::read(&text).map_err(|e| bad(format!("subnetFile {}: {e}", path.display())))
}

/// A file and what it holds.
type KeptConf = (PathBuf, Map<String, Value>);

/// Where delegates' configurations are kept from ADD to DEL.
struct Kept {
    dir: PathBuf,
}

impl Kept {
    fn of(f: &Fields<'_>) -> Result<Self, Error> {
        Ok(Self { dir: f.text("dataDir")?.filter(|p| !p.is_empty()).unwrap_or(DATA_DIR).into() })
    }

    /// The reference's file is the container's; a further interface has its own.
    fn path(&self, key: &ipam::Key) -> PathBuf {
        if key.ifname.as_str() == "eth0" {
            self.dir.join(&*key.container)
        } else {
            self.dir.join(format!("{}@{}", key.container, key.ifname))
        }
    }

    fn put(&self, path: &Path, conf: &Map<String, Value>) -> Result<(), Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(says(&self.dir))?;
        let mut temp = path.as_os_str().to_owned();
        temp.push("@new");
        let write = || {
            let mut f = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
            f.write_all(Value::Object(conf.clone()).to_string().as_bytes())?;
            fs::rename(&temp, path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&temp))).map_err(says(path))
    }

    /// The file of an attachment and what it holds; one that is no JSON holds nothing.
    fn find(&self, key: &ipam::Key, network: &str) -> Result<Option<KeptConf>, Error> {
        // The reference keeps one file for all interfaces of a container.
        for path in [self.path(key), self.dir.join(&*key.container)] {
            let Some(text) = bounded(&path).if_there().map_err(says(&path))? else { continue };
            let conf: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
            if conf.get("name").and_then(Value::as_str).is_none_or(|n| n == network) {
                return Ok(Some((path, conf)));
            }
        }
        Ok(None)
    }

    /// Files of a network whose attachments are not among `valid`.
    fn stale(&self, network: &str, valid: &[ipam::Key]) -> Result<Vec<KeptConf>, Error> {
        let mut out = Vec::new();
        let Some(entries) = fs::read_dir(&self.dir).if_there().map_err(says(&self.dir))? else { return Ok(out) };
        for e in entries {
            let path = e.map_err(says(&self.dir))?.path();
            if valid.iter().any(|k| self.path(k) == path || self.dir.join(&*k.container) == path) {
                continue;
            }
            let conf = bounded(&path).ok().and_then(|t| serde_json::from_str::<Map<String, Value>>(&t).ok());
            if let Some(conf) = conf.filter(|c| c.get("name").is_some_and(|n| n == network)) {
                out.push((path, conf));
            }
        }
        Ok(out)
    }

    fn forget(path: &Path) -> Result<(), Error> {
        fs::remove_file(path).if_there().map(|_| ()).map_err(says(path))
    }
}

fn kind(conf: &Map<String, Value>) -> String {
    conf.get("type").and_then(Value::as_str).unwrap_or("bridge").to_owned()
}

fn rendered<M: Machine>(cx: &Context<'_, M>) -> Result<Map<String, Value>, Error> {
    delegate(&cx.fields(), cx.network(), cx.version.as_str(), &env(&cx.fields())?)
}

impl<M: Machine> Plugin<M> for Flannel {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = rendered(cx)?;
        let kind = kind(&conf);
        if !cx.has_plugin(&kind) {
            // Before anything is kept: a DEL could not have it undone.
            return Err(bad(format!(
                "delegate.type is {kind:?}: there is no such plugin in CNI_PATH and none is built in"
            )));
        }
        let (kept, key) = (Kept::of(&cx.fields())?, cx.key()?.clone());
        let path = kept.path(&key);
        let before = kept.find(&key, cx.network())?.filter(|(p, _)| *p == path);
        kept.put(&path, &conf)?;
        let made = cx.delegate(&kind, conf.clone(), Command::Add).map(Option::unwrap_or_default);
        made.map_err(|e| {
            let undo = match before {
                // That of an ADD that went well, or may have: its DEL is to come.
                Some((_, old)) => kept.put(&path, &old),
                None => cx.delegate(&kind, conf, Command::Del).and_then(|_| Kept::forget(&path)),
            };
            cni::undone(e, undo)
        })
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let kept = Kept::of(&cx.fields())?;
        let Some((path, conf)) = kept.find(cx.key()?, cx.network())? else { return Ok(()) };
        if !conf.is_empty() {
            cx.delegate(&kind(&conf), conf, Command::Del)?;
        }
        Kept::forget(&path)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let found = Kept::of(&cx.fields())?.find(cx.key()?, cx.network())?;
        let says = || Error::new(Code::Differs, format!("{}: what flannel delegated is not there", cx.network()));
        let (_, mut conf) = found.filter(|(_, c)| !c.is_empty()).ok_or_else(says)?;
        if let Some(prev) = cx.fields().map("prevResult")? {
            conf.insert("prevResult".into(), Value::Object(prev.clone()));
        }
        // An ADD of an older version may have written it.
        conf.insert("cniVersion".into(), cx.version.as_str().into());
        cx.delegate(&kind(&conf), conf, Command::Check).map(drop)
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let (kept, valid) = (Kept::of(&cx.fields())?, cx.valid_attachments()?);
        let mut failed = Vec::new();
        // What is kept knows the subnet of its own time.
        let mut all = kept.stale(cx.network(), &valid)?;
        let stale = all.len();
        all.extend(rendered(cx).ok().map(|c| (PathBuf::new(), c)));
        for (i, (path, mut conf)) in all.into_iter().enumerate() {
            conf.insert("cniVersion".into(), cx.version.as_str().into());
            conf.insert("cni.dev/valid-attachments".into(), json!(valid.iter().map(attachment).collect::<Vec<_>>()));
            let done = cx.delegate(&kind(&conf), conf, Command::Gc).map(drop);
            failed.extend(done.and_then(|()| if i < stale { Kept::forget(&path) } else { Ok(()) }).err());
        }
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = rendered(cx).map_err(|e| Error { code: Code::NotAvailable, ..e })?;
        cx.delegate(&kind(&conf), conf, Command::Status).map(drop)
    }
}

fn attachment(key: &ipam::Key) -> Value {
    json!({"containerID": &*key.container, "ifname": key.ifname.as_str()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_either_family_and_of_both() {
        let both = "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
            FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nOTHER=1\n";
        let env = Env::read(both).unwrap();
        assert_eq!((env.networks.len(), env.mtu, env.masquerades), (3, 1450, true));
        assert_eq!(env.subnets, ["10.244.1.0/24".parse().unwrap(), "fd00:0:0:1::/64".parse().unwrap()]);
        let six: Vec<&str> =
            both.lines().filter(|l| !l.contains("FLANNEL_NETWORK") && !l.contains("FLANNEL_SUBNET")).collect();
        assert_eq!(Env::read(&six.join("\n")).unwrap().subnets.len(), 1);
        let lacks = Env::read("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_IPMASQ=no").unwrap_err();
        assert_eq!(lacks, "lacks FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, FLANNEL_MTU");
        for wrong in ["FLANNEL_MTU=x", "FLANNEL_SUBNET=10.1.0.0/33", "FLANNEL_SUBNET=10.1.0.0/16,10.2.0.0/16"] {
            assert!(Env::read(&format!("{both}{wrong}")).unwrap_err().starts_with(wrong), "{wrong}");
        }
    }
}
