//! Looking at the machine's links, addresses and routes, in a thread of its own. While pods come and go their links are
//! made under one lock of the kernel's, and a dump can wait for seconds until it gets it; Services do not wait with it.

use std::collections::BTreeSet;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use fabric::{FabricKernel, Image, Joined};
use kernel::{Rt, Sysctls};
use kernel_api::{Rtnetlink, Sysctl};
use plan::{Caps, KernelError};

use super::datapath::Setup;
use super::facts::{self, Facts};

/// Links, routes and sysctls of one namespace behind one value.
pub type Host = Joined<Rt, Sysctls>;

/// Those of the calling thread's.
///
/// # Errors
/// When the kernel refuses.
pub fn host() -> anyhow::Result<Host> {
    Ok(Joined { rt: Rt::open().context("open rtnetlink")?, sysctls: Sysctls::open().context("open sysctls")? })
}

/// What was seen.
#[derive(Debug)]
pub struct Look {
    /// Of the machine.
    pub facts: Facts,
    /// Of what is the fabric's.
    pub have: Result<Image, KernelError>,
    /// When it began.
    pub began: Instant,
}

/// Looks once; each kind of row is asked for once.
///
/// # Errors
/// When the kernel cannot be asked, or the chosen interface is not there.
pub fn look<K: Rtnetlink + Sysctl>(
    fabric: &mut FabricKernel<K>,
    setup: &Setup,
    node_addresses: &BTreeSet<IpAddr>,
) -> anyhow::Result<Look> {
    let began = Instant::now();
    let rows = fabric.rows()?;
    let facts = facts::of(&rows.links, &rows.addresses, setup.given(node_addresses), |to| match to {
        Some(to) => fabric.kernel().link_towards(to).context("ask for a route"),
        None => Ok(facts::default_route_link(&rows.routes)),
    })?;
    fabric.set_caps(&facts.caps);
    Ok(Look { facts, have: fabric.image(rows), began })
}

/// Who looks when asked. Its descriptor ([`AsFd`]) is readable when there is something to [take](Eyes::take).
pub struct Eyes {
    ask: Sender<BTreeSet<IpAddr>>,
    told: Receiver<anyhow::Result<Look>>,
    ready: PipeReader,
    /// Since when they look.
    since: Option<Instant>,
}

impl Eyes {
    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// When a socket, a pipe or a thread cannot be had.
    pub fn open(setup: Setup) -> anyhow::Result<Self> {
        let mut fabric = FabricKernel::new(host()?, &Caps::default());
        let (ask, asked) = channel::<BTreeSet<IpAddr>>();
        let (tell, told) = channel();
        let (ready, mut wake): (PipeReader, PipeWriter) = std::io::pipe().context("make a pipe")?;
        let run = move || {
            for addresses in asked {
                // An end that is closed: nobody waits any more.
                if tell.send(look(&mut fabric, &setup, &addresses)).is_err() || wake.write_all(&[0]).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("look".into()).spawn(run).context("start the thread that looks")?;
        Ok(Self { ask, told, ready, since: None })
    }

    /// For how long they have been looking; `None` while they rest.
    pub fn busy(&self) -> Option<Duration> {
        self.since.map(|t| t.elapsed())
    }

    /// Looks, once they rest.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn ask(&mut self, node_addresses: BTreeSet<IpAddr>) -> anyhow::Result<()> {
        self.since = Some(Instant::now());
        self.ask.send(node_addresses).map_err(|_| gone())
    }

    /// What was seen since it was asked for.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn take(&mut self) -> anyhow::Result<Option<anyhow::Result<Look>>> {
        match self.told.try_recv() {
            Ok(seen) => {
                self.ready.read_exact(&mut [0]).context("read the pipe of the thread that looks")?;
                self.since = None;
                Ok(Some(seen))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }
}

impl AsFd for Eyes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the thread that looks at the machine's links has ended")
}
