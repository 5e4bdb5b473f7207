//! The whole machine behind one value: what works in two namespaces at once opens them here.

use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;

use kernel_api::machine::{Machine, Netns as Opened};
use kernel_api::rt::NetnsFd;
use kernel_api::{RequestError, Sysctl};

use crate::{Netns, Rt, Sysctls, sys};

/// The machine itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

impl Machine for Linux {
    type Netns = Netns;
    fn host(&mut self) -> io::Result<Rt> {
        Rt::open()
    }
    fn open(&mut self, path: &str) -> io::Result<Netns> {
        Netns::open(path)
    }
    fn lock(&mut self, file: &File, at: u64) -> io::Result<()> {
        sys::lock_byte(file.as_fd(), at)
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
    fn delivers(&self, addr: Ipv6Addr) -> io::Result<bool> {
        /// Bit of the flags' column (`RTF_LOCAL`, include/uapi/linux/ipv6_route.h).
        const LOCAL: u32 = 0x8000_0000;
        let routes = {
            let _inside = self.enter()?;
            match std::fs::read_to_string("/proc/thread-self/net/ipv6_route") {
                // A kernel without IPv6 has refused the address already.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
                r => r?,
            }
        };
        // Destination, its length in hex, source, its length, next hop, metric, references, uses, flags, interface.
        let want = format!("{:032x} 80 ", u128::from(addr));
        Ok(routes.lines().filter(|l| l.starts_with(&want)).any(|l| {
            let flags = l.split_ascii_whitespace().nth(8).and_then(|f| u32::from_str_radix(f, 16).ok());
            flags.is_some_and(|f| f & LOCAL != 0)
        }))
    }
}
