//! [`cni::Machine`] over the real kernel. The agent compiles this same file for [`cni::rewire`] and [`cni::remove`]:
//! `#[path = "../../seaway-cni/src/linux.rs"] mod linux;`.

use std::io;
use std::net::Ipv6Addr;

use cni::Machine;
use kernel_api::rt::NetnsFd;
use kernel_api::{RequestError, Sysctl};

/// The machine itself.
#[derive(Debug)]
pub struct Linux;

/// A namespace of it.
#[derive(Debug)]
pub struct Ns(kernel::Netns);

impl Machine for Linux {
    type Netns = Ns;
    fn host(&mut self) -> io::Result<kernel::Rt> {
        kernel::Rt::open()
    }
    fn open(&mut self, path: &str) -> io::Result<Ns> {
        kernel::Netns::open(path).map(Ns)
    }
}

impl cni::Netns for Ns {
    type Rt = kernel::Rt;
    fn fd(&self) -> NetnsFd {
        self.0.fd()
    }
    fn inode(&self) -> u64 {
        self.0.inode()
    }
    fn is_own(&self) -> io::Result<bool> {
        self.0.is_current()
    }
    fn rtnetlink(&self) -> io::Result<kernel::Rt> {
        kernel::Rt::open_in(&self.0)
    }
    fn set_sysctl(&self, path: &str, value: &str) -> Result<(), RequestError> {
        kernel::Sysctls::open_in(&self.0).set(path, value)
    }
    fn delivers(&self, addr: Ipv6Addr) -> io::Result<bool> {
        /// Bit of the flags' column (`RTF_LOCAL`, include/uapi/linux/ipv6_route.h).
        const LOCAL: u32 = 0x8000_0000;
        let routes = {
            let _inside = self.0.enter()?;
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
