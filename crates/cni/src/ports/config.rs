//! `portMappings` of a runtime's call.

use ipam::PortMapping;
use types::{Proto, ProtoError};

use crate::{Error, Fields, bad};

/// More than any sane container has; each is an element in the kernel.
const MOST: usize = 4096;

/// Reads `runtimeConfig.portMappings`.
///
/// # Errors
/// Code 7, naming the field.
pub fn mappings(runtime: &Fields<'_>) -> Result<Vec<PortMapping>, Error> {
    let list = runtime.objects("portMappings")?;
    if list.len() > MOST {
        return Err(bad(format!(
            "{} has {} entries; at most {MOST} are taken",
            runtime.name("portMappings"),
            list.len()
        )));
    }
    list.iter().map(mapping).collect()
}

fn mapping(f: &Fields<'_>) -> Result<PortMapping, Error> {
    let port = |field: &str| {
        let n = f.number(field, 1..=65535)?.and_then(|n| u16::try_from(n).ok());
        n.ok_or_else(|| bad(format!("{} is missing: a port from 1 to 65535 is needed", f.name(field))))
    };
    let proto: Proto = f
        .needed("protocol")?
        .parse()
        .map_err(|e: ProtoError| bad(format!("{} is {:?}: tcp, udp or sctp is needed", f.name("protocol"), e.0)))?;
    Ok(PortMapping {
        proto,
        host_ip: f.parsed("hostIP")?,
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
    })
}
