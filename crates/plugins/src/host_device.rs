//! `host-device`: an interface of the node is moved into the container, and back.

use std::fs;
use std::path::{Path, PathBuf};

use cni::iface::{self, How};
use cni::{CniResult, Code, Command, Context, Error, Fields, Plugin, bad};
use kernel_api::Rtnetlink;
use kernel_api::machine::{Machine, Netns};
use kernel_api::rt::{Link, RtRequest, SetLink};
use types::{IfName, Mac};

use crate::attach;

/// See the module.
pub struct HostDevice;

const PCI: &str = "/sys/bus/pci/devices";
/// Drivers of devices that a process in user space drives: the kernel has no interface of them.
const USERSPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Which of the node's interfaces; the first that is said counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// `device`: by name.
    Name(IfName),
    /// `hwaddr`.
    Mac(Mac),
    /// `kernelpath`: its device's folder below /sys/devices.
    Path(PathBuf),
    /// `pciBusID`, or `runtimeConfig.deviceID`.
    Pci(String),
}

impl Which {
    /// Reads it.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn read(f: &Fields<'_>) -> Result<Self, Error> {
        let path = f.text("kernelpath")?.filter(|p| !p.is_empty());
        let told = f.object("runtimeConfig")?.map(|r| r.text("deviceID")).transpose()?.flatten();
        let pci = told.filter(|d| !d.is_empty()).or(f.text("pciBusID")?.filter(|d| !d.is_empty()));
        // Both are parts of paths.
        if let Some(p) = path
            && (!p.starts_with("/sys/devices/") || p.split('/').any(|c| c == ".."))
        {
            return Err(bad(format!("kernelpath is {p:?}: a folder below /sys/devices/ is needed")));
        }
        if let Some(p) = pci
            && (p.contains('/') || p.starts_with('.'))
        {
            return Err(bad(format!("pciBusID is {p:?}: the address of a PCI device is needed, e.g. 0000:00:1f.6")));
        }
        if let Some(n) = f.parsed("device")? {
            return Ok(Self::Name(n));
        }
        if let Some(m) = f.parsed("hwaddr")? {
            return Ok(Self::Mac(m));
        }
        match (path, pci) {
            (Some(p), _) => Ok(Self::Path(p.into())),
            (None, Some(p)) => Ok(Self::Pci(p.into())),
            _ => Err(bad("one of device, hwaddr, kernelpath and pciBusID is needed: none is given")),
        }
    }

    /// Whether the kernel has no interface of it.
    fn is_userspace(&self) -> bool {
        let Self::Pci(id) = self else { return false };
        let driver = fs::read_link(Path::new(PCI).join(id).join("driver")).ok();
        driver
            .and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()))
            .is_some_and(|d| USERSPACE.contains(&&*d))
    }

    /// The interface among the node's `links`.
    fn find<'a>(&self, links: &'a [Link]) -> Option<&'a Link> {
        let in_folder = |dir: PathBuf| {
            let names = fs::read_dir(dir).ok()?.flatten().map(|e| e.file_name());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names.iter().find_map(|n| links.iter().find(|l| n == l.name.as_str()))
        };
        match self {
            Self::Name(n) => links.iter().find(|l| l.name == *n),
            Self::Mac(m) => links.iter().find(|l| l.mac == Some(*m)),
            Self::Path(p) => in_folder(p.join("net")),
            Self::Pci(id) => {
                let device = Path::new(PCI).join(id);
                // A virtio device's interface is one floor further down.
                let below = || fs::read_dir(&device).ok()?.flatten().map(|e| e.path().join("net")).find_map(in_folder);
                in_folder(device.join("net")).or_else(below)
            }
        }
    }

    fn says(&self) -> String {
        match self {
            Self::Name(n) => format!("device is {n}"),
            Self::Mac(m) => format!("hwaddr is {m}"),
            Self::Path(p) => format!("kernelpath is {}", p.display()),
            Self::Pci(id) => format!("pciBusID is {id}"),
        }
    }
}

/// The name an interface had on the node.
fn old_name(link: &Link) -> Option<IfName> {
    link.alias.as_deref()?.parse().ok()
}

/// Moves an interface into the container, up. It stays where it is when that fails.
fn take<M: Machine>(cx: &mut Context<'_, M>, netns: &M::Netns, link: &Link) -> Result<Link, Error> {
    let ifname = cx.ifname()?;
    let (mut host, mut inside) = (cx.host()?, iface::inside(netns, cx.netns_path())?);
    let set = |s: SetLink| RtRequest::LinkSet(s);
    let bare = SetLink::new(link.name.clone());
    // The old name is said before the interface has another: whoever comes after a crash knows it.
    let moved = host.run(&[
        set(SetLink { up: Some(false), alias: Some(link.name.to_string()), ..bare.clone() }),
        set(SetLink { netns: Some(netns.fd()), rename: Some(ifname.clone()), ..bare.clone() }),
    ]);
    if let Err(e) = moved {
        let alias = Some(link.alias.clone().unwrap_or_default());
        let undo = host.run(&[set(SetLink { up: Some(link.up), alias, ..bare })]);
        return Err(cni::undone(e.into(), undo.map_err(Error::from)));
    }
    inside.run(&[set(SetLink::up(ifname.clone()))])?;
    let says = || Error::new(Code::TryAgainLater, format!("{ifname} is gone as soon as it was moved"));
    inside.link(&ifname)?.ok_or_else(says)
}

/// Moves the container's interface back to the node under its old name, down. Nothing when there is none, or one that
/// was never moved.
fn give_back<M: Machine>(cx: &mut Context<'_, M>, netns: &M::Netns, up: bool) -> Result<(), Error> {
    let ifname = cx.ifname()?;
    let mut inside = iface::inside(netns, cx.netns_path())?;
    let Some(link) = inside.link(&ifname)? else { return Ok(()) };
    let Some(old) = old_name(&link) else { return Ok(()) };
    let mut host = cx.host()?;
    if host.link(&old)?.is_some() {
        let says =
            format!("{ifname} of the container was {old} on the node, where another has that name now: rename that");
        return Err(Error::new(Code::TryAgainLater, says));
    }
    let own = cx.machine.own().map_err(|e| Error::new(Code::Io, format!("open the node's own namespace: {e}")))?;
    let bare = SetLink::new(ifname);
    let moved = inside.run(&[
        RtRequest::LinkSet(SetLink { up: Some(false), ..bare.clone() }),
        RtRequest::LinkSet(SetLink { netns: Some(own.fd()), rename: Some(old.clone()), ..bare.clone() }),
    ]);
    if let Err(e) = moved {
        let undo = inside.run(&[RtRequest::LinkSet(SetLink { up: Some(link.up), ..bare })]);
        return Err(cni::undone(e.into(), undo.map_err(Error::from)));
    }
    let alias = Some(String::new());
    Ok(host.run(&[RtRequest::LinkSet(SetLink { alias, up: up.then_some(true), ..SetLink::new(old) })])?)
}

/// For a container whose namespace is gone: the kernel moves hardware back to the node, under the name it had inside or
/// `devN`. It gets its old name again.
fn recover<M: Machine>(cx: &mut Context<'_, M>, which: &Which) -> Result<(), Error> {
    let mut host = cx.host()?;
    let links = host.links()?;
    let found = match which {
        Which::Name(n) => links.iter().find(|l| l.name != *n && old_name(l).as_ref() == Some(n)),
        which => which.find(&links).filter(|l| old_name(l).is_some_and(|o| o != l.name)),
    };
    let Some((link, old)) = found.and_then(|l| old_name(l).map(|o| (l, o))) else { return Ok(()) };
    if links.iter().any(|l| l.name == old) {
        return Ok(());
    }
    let bare = SetLink::new(link.name.clone());
    Ok(host.run(&[
        RtRequest::LinkSet(SetLink { up: Some(false), ..bare.clone() }),
        RtRequest::LinkSet(SetLink { rename: Some(old.clone()), ..bare }),
        RtRequest::LinkSet(SetLink { alias: Some(String::new()), ..SetLink::new(old) }),
    ])?)
}

impl<M: Machine> Plugin<M> for HostDevice {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let which = Which::read(&cx.fields())?;
        let netns = cx.netns()?;
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        if which.is_userspace() {
            return cx.with_addresses(|cx, mut result| {
                attach::dns(cx, &mut result)?;
                Ok(result)
            });
        }
        if iface::inside(&netns, path)?.link(&ifname)?.is_some() {
            let says = format!("interface {ifname} exists already in the container: DEL comes first");
            return Err(Error::new(Code::InvalidEnvironment, says));
        }
        let links = cx.host()?.links()?;
        let says = || bad(format!("{}: there is no such interface on the node", which.says()));
        let link = which.find(&links).cloned().ok_or_else(says)?;
        let dress = |cx: &mut Context<'_, M>, mut result: CniResult, moved: &Link| {
            let mut inside = iface::inside(&netns, path)?;
            result.interfaces = vec![iface::told(moved, path)];
            for i in &mut result.ips {
                i.interface = Some(0);
            }
            if !result.ips.is_empty() {
                let how = How { detect_duplicates: true, ..How::default() };
                iface::configure(&netns, &mut inside, &ifname, &result, how)?;
                attach::announce::<M>(&netns, &result, &ifname);
            }
            attach::dns(cx, &mut result)?;
            Ok(result)
        };
        let back = |cx: &mut Context<'_, M>, e| cni::undone(e, give_back(cx, &netns, link.up));
        // A DHCP server is asked by way of the interface. Otherwise it is moved when nothing is likely to fail any more:
        // on the node it loses its addresses by that.
        if cx.ipam_type()?.as_deref() == Some("dhcp") {
            let made = take(cx, &netns, &link).and_then(|l| cx.with_addresses(|cx, given| dress(cx, given, &l)));
            return made.map_err(|e| back(cx, e));
        }
        cx.with_addresses(|cx, given| {
            let made = take(cx, &netns, &link).and_then(|l| dress(cx, given, &l));
            made.map_err(|e| back(cx, e))
        })
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let which = Which::read(&cx.fields())?;
        let ipam = cx.ipam_type()?;
        let mut failed = Vec::new();
        let by_wire = ipam.as_deref() == Some("dhcp");
        if let Some(kind) = ipam.as_deref().filter(|_| by_wire) {
            failed.extend(cx.ipam_del(kind).err());
        }
        failed.extend(match cx.netns_if_there()? {
            Some(netns) => give_back(cx, &netns, false).err(),
            None => recover(cx, &which).err(),
        });
        if let Some(kind) = ipam.as_deref().filter(|_| !by_wire) {
            failed.extend(cx.ipam_del(kind).err());
        }
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let which = Which::read(&cx.fields())?;
        if let Some(kind) = cx.ipam_type()? {
            cx.ipam_verb(&kind, Command::Check)?;
        }
        let prev = cx.chained()?.clone();
        if which.is_userspace() {
            return Ok(());
        }
        let (path, ifname) = (cx.netns_path(), cx.ifname()?);
        let netns = cx.netns()?;
        let (out, _) = iface::compared(&mut iface::inside(&netns, path)?, &prev, &ifname, path)?;
        attach::verdict(cx, &out)
    }

    fn gc(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        attach::sweep_plain(cx)
    }

    fn status(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        Which::read(&cx.fields()).map_err(|e| Error { code: Code::NotAvailable, ..e })?;
        attach::status(cx)
    }
}
