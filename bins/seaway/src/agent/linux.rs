//! The kernel, as the CNI plugin's plans want it.

use std::io;

use cni::Machine;
use kernel_api::rt::NetnsFd;
use kernel_api::{RequestError, Sysctl};

/// The machine itself.
pub struct Linux;

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
}
