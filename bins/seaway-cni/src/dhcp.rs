//! `dhcp daemon`: the reference's flags, its socket or systemd's, and the kernel's interfaces.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use kernel::packet::{PacketSocket, udp_socket};
use kernel::{Netns, Rt};
use kernel_api::Rtnetlink;
use kernel_api::rt::{Link, RtRequest, SetLink};
use plugins::dhcp::conf::SOCKET;
use plugins::dhcp::daemon::{Daemon, Settings, Wire, Wires};
use plugins::dhcp::packet::{CLIENT_PORT, SERVER_PORT, datagram};
use rustix::process::{ForeignRawFd, Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use types::{IfName, Mac};

/// Where leases are kept.
const STATE: &str = "/run/cni/dhcp";

const HELP: &str = "\
dhcp daemon: asks DHCP servers for the addresses of containers and keeps the leases

  -pidfile PATH        write the process's number there
  -hostprefix PREFIX   put before the socket's path and every network namespace's
  -socketpath PATH     listen there instead of /run/cni/dhcp.sock
  -statedir DIR        keep the leases there, to go on with them after a restart, instead of /run/cni/dhcp
  -broadcast           ask servers to broadcast their answers
  -timeout D           wait at most so long for an answer before asking again (10s)
  -resendmax D         longest pause between two tries (62s)
  -resendtimeout D     how long one container may wait for a lease (208s)

D is a number with a unit: 500ms, 10s, 2m, 1h30m. Under systemd the socket may be passed in (LISTEN_FDS).
";

struct Flags {
    pidfile: Option<String>,
    prefix: String,
    socket: String,
    state: String,
    broadcast: bool,
    timeout: Duration,
    resend_max: Duration,
    patience: Duration,
}

/// Runs until it fails; what to print then.
pub fn main(args: &[String]) -> Result<(), String> {
    let Some(flags) = parse(args)? else {
        print!("{HELP}");
        return Ok(());
    };
    if let Some(path) = &flags.pidfile {
        if !path.starts_with('/') {
            return Err(format!("-pidfile is {path:?}: an absolute path is needed"));
        }
        std::fs::write(path, std::process::id().to_string()).map_err(|e| format!("write {path}: {e}"))?;
    }
    let path = format!("{}{}", flags.prefix, flags.socket);
    let listener = listener(Path::new(&path)).map_err(|e| format!("listen on {path}: {e}"))?;
    let state = Some(flags.state).filter(|d| !d.is_empty()).map(|d| format!("{}{d}", flags.prefix).into());
    let settings = Settings {
        state,
        host_prefix: flags.prefix,
        broadcast: flags.broadcast,
        resend_max: flags.resend_max.min(flags.timeout),
        patience: flags.patience,
    };
    let daemon = Daemon::new(Kernel, settings, |line| eprintln!("{line}"));
    daemon.resume();
    daemon.serve(&listener).map_err(|e| format!("accept on {path}: {e}"))
}

/// As Go's package flag: one or two dashes, the value after `=` or as the next word. `None`: help is wanted.
fn parse(args: &[String]) -> Result<Option<Flags>, String> {
    let mut out = Flags {
        pidfile: None,
        prefix: String::new(),
        socket: SOCKET.into(),
        state: STATE.into(),
        broadcast: false,
        timeout: Duration::from_secs(10),
        resend_max: Duration::from_secs(62),
        patience: Duration::from_secs(208),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix('-').map(|f| f.strip_prefix('-').unwrap_or(f)) else {
            return Err(format!("{arg:?} is no flag\n\n{HELP}"));
        };
        let (name, given) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v.to_owned())));
        let mut value = || given.clone().or_else(|| args.next().cloned()).ok_or(format!("-{name} needs a value"));
        match name {
            "h" | "help" => return Ok(None),
            "pidfile" => out.pidfile = Some(value()?).filter(|p| !p.is_empty()),
            "hostprefix" => out.prefix = value()?,
            "socketpath" => out.socket = Some(value()?).filter(|p| !p.is_empty()).unwrap_or(SOCKET.into()),
            "statedir" => out.state = value()?,
            "broadcast" => {
                out.broadcast = match given.as_deref() {
                    None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
                    Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
                    Some(v) => return Err(format!("-broadcast is {v:?}: true or false")),
                }
            }
            "timeout" => out.timeout = duration(name, &value()?)?,
            "resendmax" => out.resend_max = duration(name, &value()?)?,
            "resendtimeout" => out.patience = duration(name, &value()?)?,
            _ => return Err(format!("there is no flag -{name}\n\n{HELP}")),
        }
    }
    Ok(Some(out))
}

/// As Go's `time.ParseDuration`, of a second or what is a thousandth of one.
fn duration(flag: &str, text: &str) -> Result<Duration, String> {
    let wrong = || format!("-{flag} is {text:?}: a number with a unit is needed, e.g. 10s");
    let (mut rest, mut out) = (text, 0.0);
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let number: f64 = rest[..unit].parse().map_err(|_| wrong())?;
        let end = rest[unit..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| n + unit);
        out += number
            * match &rest[unit..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                _ => return Err(wrong()),
            };
        rest = &rest[end..];
    }
    match Duration::try_from_secs_f64(out) {
        Ok(d) if !d.is_zero() && d < Duration::from_secs(1 << 32) => Ok(d),
        _ => Err(wrong()),
    }
}

fn listener(path: &Path) -> io::Result<UnixListener> {
    if let Some(fd) = passed()? {
        return Ok(fd.into());
    }
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(e.kind(), "another daemon listens there"));
            }
            // Left by one that died.
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        r => r,
    }
}

/// The socket that systemd has opened for us (sd_listen_fds(3)): the first descriptor after the standard ones.
fn passed() -> io::Result<Option<OwnedFd>> {
    let is = |name: &str, want: &str| std::env::var(name).is_ok_and(|v| v == want);
    let me = std::process::id();
    if !is("LISTEN_PID", &me.to_string()) || std::env::var("LISTEN_FDS").map_or(true, |n| n == "0") {
        return Ok(None);
    }
    if !is("LISTEN_FDS", "1") {
        return Err(io::Error::other("LISTEN_FDS: one socket is needed"));
    }
    let pid = i32::try_from(me).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let own = pidfd_open(pid, PidfdFlags::empty())?;
    let fd: ForeignRawFd = 3;
    Ok(Some(pidfd_getfd(own, fd, PidfdGetfdFlags::empty())?))
}

/// The kernel's interfaces.
#[derive(Clone, Copy)]
struct Kernel;

struct KernelWire {
    mac: Mac,
    socket: PacketSocket,
    netns: String,
    inode: u64,
    /// Kept, so that the server's answer finds somebody who listens.
    udp: Option<UdpSocket>,
}

impl KernelWire {
    fn routed(&mut self, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        if self.udp.is_none() {
            let ns = Netns::open(&self.netns)?;
            if ns.inode() != self.inode {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the namespace is another one now"));
            }
            self.udp = Some(udp_socket(&ns, from, CLIENT_PORT)?);
        }
        match &self.udp {
            Some(s) => s.send_to(payload, (to, SERVER_PORT)).map(drop),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn link(rt: &mut Rt, ifname: &IfName) -> io::Result<Link> {
    let links = rt.links().map_err(io::Error::other)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {ifname}"));
    links.into_iter().find(|l| l.name == *ifname).ok_or_else(gone)
}

impl Wires for Kernel {
    type Wire = KernelWire;

    fn open(&self, netns: &str, ifname: &IfName) -> io::Result<(KernelWire, u64)> {
        let ns = Netns::open(netns)?;
        if ns.is_current()? {
            let says = format!("{netns} is the daemon's own network namespace");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, says));
        }
        let mut rt = Rt::open_in(&ns)?;
        let link = link(&mut rt, ifname)?;
        if !link.up {
            rt.run(&[RtRequest::LinkSet(SetLink::up(ifname.clone()))]).map_err(io::Error::other)?;
        }
        let mac = link.mac.ok_or_else(|| io::Error::other(format!("{ifname} has no hardware address")))?;
        let socket = PacketSocket::open(&ns, link.index, CLIENT_PORT)?;
        let inode = ns.inode();
        Ok((KernelWire { mac, socket, netns: netns.to_owned(), inode, udp: None }, inode))
    }

    fn there(&self, netns: &str, ifname: &IfName) -> Option<u64> {
        let ns = Netns::open(netns).ok()?;
        link(&mut Rt::open_in(&ns).ok()?, ifname).ok()?;
        Some(ns.inode())
    }

    fn down(&self, netns: &str, ifname: &IfName) -> io::Result<()> {
        let ns = Netns::open(netns)?;
        let down = SetLink { up: Some(false), ..SetLink::new(ifname.clone()) };
        Rt::open_in(&ns)?.run(&[RtRequest::LinkSet(down)]).map_err(io::Error::other)
    }

    fn send_from_node(&self, to: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(payload, (to, SERVER_PORT)).map(drop)
    }

    fn now(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (s, ns) = (u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0));
        Duration::new(s, ns)
    }
}

impl Wire for KernelWire {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn broadcast(&mut self, packet: &[u8]) -> io::Result<()> {
        self.socket.broadcast(packet)
    }

    fn unicast(&mut self, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        if self.routed(from, to, payload).is_ok() {
            return Ok(());
        }
        // The plugin that made the interface has not given it the address, or has taken it away already. A server on
        // the link hears it in this way.
        self.socket.broadcast(&datagram((from, CLIENT_PORT), (to, SERVER_PORT), payload))
    }

    fn receive(&mut self, timeout: Duration, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        if let Some(p) = self.socket.receive(timeout)? {
            take(p);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_and_flags_are_gos() {
        for (text, ms) in [("10s", 10_000), ("1h30m", 5_400_000), ("1.5s", 1500), ("250ms", 250), ("1m0.5s", 60_500)] {
            assert_eq!(duration("x", text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "10", "s", "10x", "-1s", "0s", "1e3s"] {
            assert!(duration("x", text).is_err(), "{text}");
        }
        let words = |t: &str| t.split(' ').map(String::from).collect::<Vec<_>>();
        let f = parse(&words("-pidfile /x --hostprefix=/host -broadcast -timeout 3s")).unwrap().unwrap();
        assert_eq!(
            (f.pidfile.as_deref(), &*f.prefix, f.broadcast, f.timeout),
            (Some("/x"), "/host", true, Duration::from_secs(3))
        );
        assert!(!parse(&words("-broadcast=false")).unwrap().unwrap().broadcast);
        for wrong in ["daemon", "-nothing", "-timeout", "-broadcast=x"] {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
        assert!(parse(&words("-help")).unwrap().is_none());
    }
}
