//! What the kernel does by itself after it has answered, and that an ADD must not be quicker than.

use std::net::IpAddr;
use std::time::Duration;

use ipam::Record;

use crate::{Code, Error, Netns};

/// Waits until the kernel delivers to the pod's IPv6 address, mostly not at all: the first packet must not be lost.
pub(crate) fn settle(r: &Record, netns: &impl Netns) -> Result<(), Error> {
    // It mostly takes a tenth of a millisecond. Many at once must not keep the kernel's worker from the processor.
    const FIRST: Duration = Duration::from_micros(30);
    const LONGEST: Duration = Duration::from_millis(2);
    const LIMIT: Duration = Duration::from_secs(5);
    for addr in &r.addresses {
        let IpAddr::V6(addr) = addr else { continue };
        let (mut wait, mut waited) = (FIRST, Duration::ZERO);
        loop {
            let look = netns.delivers(*addr);
            if look.map_err(|e| Error::new(Code::Io, format!("look at the IPv6 routes of {}: {e}", r.netns)))? {
                break;
            }
            if waited > LIMIT {
                let msg = format!("the kernel did not bring {addr} of {} into use in time; try again", r.key);
                return Err(Error::new(Code::TryAgainLater, msg));
            }
            std::thread::sleep(wait);
            waited += wait;
            wait = (wait * 2).min(LONGEST);
        }
    }
    Ok(())
}
