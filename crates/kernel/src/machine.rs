//! The whole machine behind one value: what works in two namespaces at once opens them here.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{ChildStderr, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use kernel_api::machine::{Exec, Machine, Netns as Opened, Output};
use kernel_api::rt::{NetnsFd, NewTun, ObservedRoute, ObservedRule};
use kernel_api::{RequestError, Rtnetlink, Sysctl, errno, neighbours};
use types::{IfName, OwnedName};

use crate::netlink::Refusal;
use crate::rt::{encode, link};
use crate::{Ct, Netns, Nftables, Rt, Spawn, Sysctls, sys};

/// The machine itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

impl Machine for Linux {
    type Netns = Netns;
    type Nft = Nftables;
    type Conntrack = Ct;
    type Sysctl = Sysctls;

    fn host(&mut self) -> io::Result<Rt> {
        Rt::open()
    }
    fn open(&mut self, path: &str) -> io::Result<Netns> {
        Netns::open(path)
    }
    fn lock(&mut self, file: &File, at: u64) -> io::Result<()> {
        sys::lock_byte(file.as_fd(), at)
    }
    fn discard(&mut self, links: &[OwnedName], keep: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Rt::open()?.delete_apart(links, keep)
    }
    fn own(&mut self) -> io::Result<Netns> {
        Netns::current()
    }
    fn nft(&mut self) -> io::Result<Nftables> {
        Nftables::open()
    }
    fn conntrack(&mut self) -> io::Result<Ct> {
        Ct::open()
    }
    fn sysctl(&mut self) -> io::Result<Sysctls> {
        Sysctls::open()
    }
    fn exec(&mut self, program: &Exec) -> io::Result<Output> {
        exec(program)
    }
}

impl Opened for Netns {
    type Rt = Rt;
    fn fd(&self) -> NetnsFd {
        Self::fd(self)
    }
    fn inode(&self) -> u64 {
        Self::inode(self)
    }
    fn is_own(&self) -> io::Result<bool> {
        self.is_current()
    }
    fn rtnetlink(&self) -> io::Result<Rt> {
        Rt::open_in(self)
    }
    fn set_sysctl(&self, path: &str, value: &str) -> Result<(), RequestError> {
        Sysctls::open_in(self).set(path, value)
    }
    fn get_sysctl(&self, path: &str) -> Result<Option<String>, RequestError> {
        Sysctls::open_in(self).get(path)
    }

    fn delete_link(&self, name: &IfName) -> Result<(), RequestError> {
        let what = format!("link del {name}");
        inside_container(self, &what)?.one(&what, |b| {
            link::del(b, name);
            Ok(())
        })
    }

    fn delete_route(&self, r: &ObservedRoute) -> Result<(), RequestError> {
        let what = format!("route del {} proto {}", r.route, r.protocol);
        let mut rt = inside_container(self, &what)?;
        let index = match r.route.to.link() {
            None => 0,
            Some(name) => {
                rt.link(name)?.map(|l| l.index).ok_or_else(|| Refusal::no_link(name).of(what.as_str(), None))?
            }
        };
        rt.one(&what, |b| encode::route_del(b, &r.route, r.protocol, index))
    }

    fn delete_rule(&self, r: &ObservedRule) -> Result<(), RequestError> {
        let what = format!("rule del {} proto {}", r.rule, r.protocol);
        inside_container(self, &what)?.one(&what, |b| encode::rule_del(b, &r.rule, r.protocol))
    }

    fn add_tun(&self, t: &NewTun) -> Result<(), RequestError> {
        let kind = if t.tap { "tap" } else { "tun" };
        let add = || {
            // The device is made in the namespace of whoever opens this file.
            let file = self.inside(|| File::options().read(true).write(true).open("/dev/net/tun"))?;
            sys::tun::make(file.as_fd(), t)
        };
        add().map_err(|e: io::Error| RequestError {
            message: (e.kind() == io::ErrorKind::NotFound)
                .then(|| "there is no /dev/net/tun: load the module `tun`, or give it to this container".into()),
            ..RequestError::io(format!("tuntap add {} mode {kind}", t.name), &e)
        })
    }

    fn announce(&self, name: &IfName, addr: IpAddr) -> Result<(), RequestError> {
        let what = format!("announce {addr} on {name}");
        let failed = |e: io::Error| RequestError::io(what.as_str(), &e);
        let link = Rt::open_in(self).map_err(failed)?.link(name)?;
        let link = link.ok_or_else(|| Refusal::no_link(name).of(what.as_str(), None))?;
        let mac = link.mac.ok_or_else(|| RequestError {
            message: Some(format!("{name} has no hardware address")),
            ..RequestError::new(what.as_str(), errno::ENODEV)
        })?;
        self.inside(|| sys::frame_send(link.index, &neighbours::announcement(mac, addr))).map_err(failed)
    }

    fn delivers(&self, addr: Ipv6Addr) -> io::Result<bool> {
        /// Bit of the flags' column (`RTF_LOCAL`, include/uapi/linux/ipv6_route.h).
        const LOCAL: u32 = 0x8000_0000;
        let routes = match self.inside(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route")) {
            // A kernel without IPv6 has refused the address already.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            r => r?,
        };
        // Destination, its length in hex, source, its length, next hop, metric, references, uses, flags, interface.
        let want = format!("{:032x} 80 ", u128::from(addr));
        Ok(routes.lines().filter(|l| l.starts_with(&want)).any(|l| {
            let flags = l.split_ascii_whitespace().nth(8).and_then(|f| u32::from_str_radix(f, 16).ok());
            flags.is_some_and(|f| f & LOCAL != 0)
        }))
    }
}

/// A socket in a container. The process's own namespace is none: what is not ours stays there.
fn inside_container(ns: &Netns, what: &str) -> Result<Rt, RequestError> {
    if ns.is_current().map_err(|e| RequestError::io(what, &e))? {
        return Err(RequestError {
            message: Some(
                "what is not Seaway's is deleted in containers only, and this is the node's namespace".into(),
            ),
            ..RequestError::new(what, errno::EPERM)
        });
    }
    Rt::open_in(ns).map_err(|e| RequestError::io(what, &e))
}

fn exec(program: &Exec) -> io::Result<Output> {
    let start = Instant::now();
    // A file, not a pipe: nobody has to write while the other side reads.
    let mut stdin = File::from(sys::memory_file(c"stdin")?);
    stdin.write_all(&program.stdin)?;
    stdin.rewind()?;
    let mut child = program
        .env
        .iter()
        .fold(Spawn::new(&program.program).env_clear(), |s, (k, v)| s.env(k, v))
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .die_with_parent()
        .spawn()?;
    let said = listen(&mut child, program, start);
    if said.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let (stdout, stderr) = said?;
    Ok(Output { code: status.code(), stdout, stderr })
}

/// Reads until the process has ended and said all. What it started and left running may hold the pipes: they are not
/// waited for.
fn listen(child: &mut std::process::Child, program: &Exec, start: Instant) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let ended = sys::pidfd_open(child.id().cast_signed())?;
    let (mut out, mut err) =
        (Pipe::<ChildStdout>::new(child.stdout.take()), Pipe::<ChildStderr>::new(child.stderr.take()));
    let mut gone = false;
    loop {
        let left = if gone { Duration::ZERO } else { program.timeout.saturating_sub(start.elapsed()) };
        let fds: Vec<_> = [Some(ended.as_fd()), out.fd(), err.fd()].into_iter().flatten().collect();
        let ready = crate::poll(&fds, Some(left))?;
        let mut ready = ready.into_iter();
        gone |= ready.next() == Some(true);
        let mut some = false;
        if out.fd().is_some() && ready.next() == Some(true) {
            some |= out.read(program.limit)?;
        }
        if err.fd().is_some() && ready.next() == Some(true) {
            some |= err.read(program.limit)?;
        }
        if gone && !some {
            return Ok((out.said, err.said));
        }
        if !gone && start.elapsed() >= program.timeout {
            let text = format!("{} did not end in {:?}", program.program.display(), program.timeout);
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
    }
}

/// One end of a child's output and what came so far.
struct Pipe<T> {
    from: Option<T>,
    said: Vec<u8>,
}

impl<T: Read + AsFd> Pipe<T> {
    fn new(from: Option<T>) -> Self {
        Self { from, said: Vec::new() }
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// One read of a pipe that is ready; whether something came.
    fn read(&mut self, limit: usize) -> io::Result<bool> {
        let Some(from) = &mut self.from else { return Ok(false) };
        let mut buf = [0u8; 4096];
        let n = match from.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            r => r?,
        };
        if n == 0 {
            self.from = None;
        }
        self.said.extend(buf.get(..n).unwrap_or(&[]));
        if self.said.len() > limit {
            let text = format!("it said more than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(n > 0)
    }
}
