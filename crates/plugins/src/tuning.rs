//! `tuning`: sysctls of the container's network namespace, and hardware address, MTU, queue length and the promiscuous
//! and all-multicast flags of its interface. DEL puts the interface's own values back, from the reference plugin's file.

mod backup;
mod sysctl;

use cni::{Call, CniResult, Code, Context, Error, Fields, Plugin, bad};
use kernel_api::Rtnetlink;
use kernel_api::machine::{Machine, Netns};
use kernel_api::rt::{Link, RtRequest, SetLink};
use types::{IfName, Mac};

use crate::{envargs, inside};
use backup::Backup;

/// See the module.
pub struct Tuning;

/// Where previous values are kept.
const DATA_DIR: &str = "/run/cni/tuning";
/// `IFNAMSIZ`'s sibling for queues: more is a mistake.
const QUEUE_MAX: u32 = 1 << 24;

/// The configuration, checked.
#[derive(Debug, Default)]
pub(crate) struct Conf {
    /// Paths below /proc/sys with slashes, and values.
    pub(crate) sysctls: Vec<(String, String)>,
    mac: Option<Mac>,
    mtu: Option<u32>,
    txqlen: Option<u32>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
}

impl Conf {
    pub(crate) fn read(f: &Fields<'_>, call: &Call, ifname: &IfName) -> Result<Self, Error> {
        let mut raw = Vec::new();
        let mut out = Self::default();
        out.take(f, &mut raw)?;
        let [mac] = envargs::known(call, ["MAC"])?;
        if let Some(m) = mac {
            let wrong = |e| Error::new(Code::InvalidEnvironment, format!("invalid environment: CNI_ARGS: MAC: {e}"));
            out.mac = Some(m.parse().map_err(wrong)?);
        }
        if let Some(r) = f.object("runtimeConfig")? {
            out.mac = r.parsed("mac")?.or(out.mac);
        }
        if let Some(a) = f.object("args")?
            && let Some(c) = a.object("cni")?
        {
            out.take(&c, &mut raw)?;
        }
        // A flag that is not wanted is left as it is; only `allmulti` can be told to go.
        out.promisc = out.promisc.filter(|p| *p);
        let list = sysctl::allowlist(std::path::Path::new(sysctl::ALLOWLIST))?;
        for (key, value) in raw {
            if let Some(list) = &list {
                sysctl::allowed(list, &key)?;
            }
            out.sysctls.push((sysctl::path(&key, ifname)?, value));
        }
        Ok(out)
    }

    /// What one object says over what was said before.
    fn take(&mut self, f: &Fields<'_>, raw: &mut Vec<(String, String)>) -> Result<(), Error> {
        for (key, value) in f.map("sysctl")?.into_iter().flatten() {
            let at = f.name("sysctl");
            let value =
                value.as_str().ok_or_else(|| bad(format!("{at}.{key} is no text: write the value in quotes")))?;
            if key.len() > 256 || value.len() > 4096 {
                return Err(bad(format!("{at}: {:.40}... is too long", key)));
            }
            raw.retain(|(k, _)| k != key);
            raw.push((key.clone(), value.into()));
        }
        self.mac = f.parsed("mac")?.or(self.mac);
        self.mtu = f.number("mtu", 0..=65535)?.filter(|n| *n > 0).or(self.mtu);
        self.txqlen = f.number("txQLen", 0..=QUEUE_MAX)?.or(self.txqlen);
        self.promisc = f.choice("promisc")?.or(self.promisc);
        self.allmulti = f.choice("allmulti")?.or(self.allmulti);
        Ok(())
    }

    fn link(&self, name: IfName) -> Option<SetLink> {
        let set = SetLink {
            mac: self.mac,
            mtu: self.mtu,
            txqlen: self.txqlen,
            promisc: self.promisc,
            allmulti: self.allmulti,
            ..SetLink::new(name.clone())
        };
        (set != SetLink::new(name)).then_some(set)
    }
}

/// The container's interface.
fn link<N: Netns>(netns: &N, path: &str, name: &IfName) -> Result<Link, Error> {
    let found = inside(netns, path)?.link(name)?;
    found.ok_or_else(|| Error::new(Code::InvalidEnvironment, format!("there is no interface {name} in {path}")))
}

fn data_dir<M: Machine>(cx: &Context<'_, M>) -> Result<std::path::PathBuf, Error> {
    Ok(cx.fields().text("dataDir")?.filter(|d| !d.is_empty()).unwrap_or(DATA_DIR).into())
}

impl<M: Machine> Plugin<M> for Tuning {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(&cx.fields(), cx.call, &cx.ifname()?)?;
        let mut out = cx.chained()?.clone();
        let (ifname, dir) = (cx.ifname()?, data_dir(cx)?);
        let netns = cx.netns()?;
        let path = cx.netns_path();
        let mut before = Vec::new();
        let done = (|| {
            for (key, value) in &conf.sysctls {
                let old = netns.get_sysctl(key)?;
                before.push((key.clone(), old));
                netns.set_sysctl(key, value)?;
            }
            let Some(set) = conf.link(ifname.clone()) else { return Ok(()) };
            let now = link(&netns, path, &ifname)?;
            let kept = Backup::of(&now, &set).keep(&dir, cx.network(), cx.key()?)?;
            let run = inside(&netns, path)?.run(&[RtRequest::LinkSet(set)]);
            run.map_err(|e| {
                // What was set of it goes back.
                let _ = inside(&netns, path).and_then(|mut rt| Ok(rt.run(&kept.requests(&ifname))?));
                let _ = cx.key().map(|k| Backup::forget(&dir, k));
                Error::new(Code::Kernel, format!("in {path}: {e}"))
            })
        })();
        if let Err(e) = done {
            for (key, old) in before.into_iter().rev() {
                let _ = old.map(|v| netns.set_sysctl(&key, &v));
            }
            return Err(e);
        }
        for i in out.interfaces.iter_mut().filter(|i| i.name == ifname.as_str()) {
            if let Some(m) = conf.mac {
                i.mac = m.to_string();
            }
            if let Some(m) = conf.mtu.filter(|_| i.mtu > 0) {
                i.mtu = m;
            }
        }
        Ok(out)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let dir = data_dir(cx)?;
        let key = cx.key()?.clone();
        let Some(backup) = Backup::find(&dir, &key)? else { return Ok(()) };
        if let Some(netns) = cx.netns_if_there()? {
            let mut rt = inside(&netns, cx.netns_path())?;
            // An interface that is gone needs nothing back.
            if rt.link(&key.ifname)?.is_some() {
                rt.run(&backup.requests(&key.ifname))?;
            }
        }
        Backup::forget(&dir, &key)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(&cx.fields(), cx.call, &cx.ifname()?)?;
        cx.chained()?;
        let ifname = cx.ifname()?;
        let netns = cx.netns()?;
        let path = cx.netns_path();
        let mut out = Vec::new();
        for (key, want) in &conf.sysctls {
            match netns.get_sysctl(key)? {
                Some(have) if sysctl::same(want, &have) => {}
                Some(have) => out.push(format!("sysctl {key} is {have:?}, not {want:?}")),
                None => out.push(format!("there is no sysctl {key}")),
            }
        }
        let have = link(&netns, path, &ifname)?;
        if conf.mac.is_some_and(|m| have.mac != Some(m)) {
            out.push(format!("its hardware address is {}", have.mac.map(|m| m.to_string()).unwrap_or_default()));
        }
        if conf.mtu.is_some_and(|m| have.mtu != m) {
            out.push(format!("its MTU is {}", have.mtu));
        }
        if conf.txqlen.is_some_and(|n| have.txqlen != n) {
            out.push(format!("its queue holds {} packets", have.txqlen));
        }
        for (name, want, have) in
            [("promiscuous", conf.promisc, have.promisc), ("all-multicast", conf.allmulti, have.allmulti)]
        {
            if want.is_some_and(|w| w != have) {
                out.push(format!("it is {}{name}", if have { "" } else { "not " }));
            }
        }
        if out.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::Differs, format!("{ifname} in {path} is not as ADD tuned it")).with(out.join("; ")))
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        backup::sweep(&data_dir(cx)?, cx.network(), &cx.valid_attachments()?)
    }
}
