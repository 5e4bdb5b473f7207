//! One agent per network namespace.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The name is in the abstract namespace, which belongs to the network namespace (unix(7)): it is free again as soon
/// as the process is gone, however it went, and two labs' nodes do not meet.
const NAME: &str = "seaway-agent";

/// A process that was killed keeps its sockets until its last thread has left the kernel.
const LAST_THREAD: Duration = Duration::from_secs(2);

/// Holds the place of the one agent here, as long as it lives.
///
/// # Errors
/// When another agent has it.
pub fn one_agent() -> anyhow::Result<UnixListener> {
    let addr = SocketAddr::from_abstract_name(NAME).context("name the agent's lock")?;
    let start = Instant::now();
    let mut bound = UnixListener::bind_addr(&addr);
    while matches!(&bound, Err(e) if e.kind() == ErrorKind::AddrInUse) && start.elapsed() < LAST_THREAD {
        std::thread::sleep(Duration::from_millis(20));
        bound = UnixListener::bind_addr(&addr);
    }
    match bound {
        Ok(l) => Ok(l),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let who = holder(&addr).map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!(
                "another seaway agent{who} runs in this network namespace: two would undo each other's work; \
                 stop that one first, or run this one on its own node"
            )
        }
        Err(e) => Err(e).context("take the agent's lock"),
    }
}

/// The process that listens there, by its credentials.
fn holder(addr: &SocketAddr) -> Option<i32> {
    let s = std::os::unix::net::UnixStream::connect_addr(addr).ok()?;
    rustix::net::sockopt::socket_peercred(&s).ok().map(|c| c.pid.as_raw_nonzero().get())
}
