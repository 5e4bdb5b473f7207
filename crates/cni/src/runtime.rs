//! `runtimeConfig`: what a runtime hands to a plugin that declares the capability (CNI conventions, "Dynamic Plugin
//! specific fields").

use std::net::IpAddr;

use serde_json::{Map, Value};
use types::{AddressRange, Cidr, Mac};

use crate::args::address;
use crate::config::{NetConf, range_of_pods, wrong};
use crate::fields::{Fields, bad, shown};
use crate::plan::HOST_MAC;
use crate::{Code, Error, names};

/// Capabilities of Seaway's own plugin; the agent's configuration declares each.
pub const CAPABILITIES: [&str; 7] = ["aliases", "bandwidth", "dns", "ipRanges", "ips", "mac", "portMappings"];

/// Reads the object into the configuration.
///
/// # Errors
/// Code 2 or 7, naming the field.
pub(crate) fn read(conf: &mut NetConf, rc: &Map<String, Value>) -> Result<(), Error> {
    let f = Fields::new(rc, "runtimeConfig");
    for (k, v) in rc {
        match (k.as_str(), v) {
            ("ips", Value::Array(list)) if list.len() <= 2 => {
                for v in list {
                    let ip = v.as_str().and_then(address);
                    conf.ips.push(ip.ok_or_else(|| wrong("runtimeConfig.ips", v, "an address is needed"))?);
                }
            }
            ("ips", v) => {
                return Err(wrong("runtimeConfig.ips", v, "a list of at most one address per family is needed"));
            }
            ("portMappings", _) => conf.ports = crate::ports::mappings(&f)?,
            ("bandwidth", _) => {
                let said = f.object("bandwidth")?.map(|b| crate::shape::read(&b)).transpose()?;
                conf.limits = said.flatten().unwrap_or_default();
            }
            ("mac", _) => conf.mac = f.parsed("mac")?.map(|m| station("runtimeConfig.mac", m)).transpose()?,
            ("dns", _) => {
                if let Some(d) = f.object("dns")? {
                    let dns = conf.dns.get_or_insert_default();
                    dns.nameservers = d.texts("servers")?;
                    dns.search = d.texts("searches")?;
                    dns.options = d.texts("options")?;
                }
            }
            ("ipRanges", _) => ranges(conf, &f)?,
            // Podman gives those of every network, by its name.
            ("aliases", Value::Object(by_network)) => {
                let own = Fields::new(by_network, "runtimeConfig.aliases");
                conf.names = names::read(&own.name(&conf.name), &own.texts(&conf.name)?)?;
            }
            ("aliases", _) => conf.names = names::read("runtimeConfig.aliases", &f.texts("aliases")?)?,
            // A runtime hands a capability only to a plugin that declares it.
            _ => {
                let msg = format!("unsupported field in the network configuration: runtimeConfig.{k} = {}", shown(v));
                let says = format!("the capabilities are {}", CAPABILITIES.join(", "));
                return Err(Error::new(Code::UnsupportedField, msg).with(says));
            }
        }
    }
    Ok(())
}

/// A hardware address that one interface may have.
pub(crate) fn station(field: &str, mac: Mac) -> Result<Mac, Error> {
    if !mac.is_station() {
        return Err(bad(format!("{field} is {mac}: an address of one station is needed, its first octet even")));
    }
    if mac == HOST_MAC {
        return Err(bad(format!("{field} is {mac}, which the node's end of every pod has: choose another")));
    }
    Ok(mac)
}

/// Ranges instead of the configuration's: a list of lists; an address of each list's range is given.
fn ranges(conf: &mut NetConf, f: &Fields<'_>) -> Result<(), Error> {
    let (mut all, mut within): (Vec<Cidr>, Vec<AddressRange>) = (Vec::new(), Vec::new());
    for (i, set) in f.list("ipRanges")?.iter().enumerate() {
        let at = format!("runtimeConfig.ipRanges[{i}]");
        let one = match set {
            Value::Array(list) => match &list[..] {
                [Value::Object(one)] => one,
                _ => {
                    return Err(wrong(&at, set, "a list of one range is needed: a pod has one address of each family"));
                }
            },
            v => return Err(wrong(&at, v, "a list of one range is needed, e.g. [{\"subnet\": \"10.1.2.0/24\"}]")),
        };
        range(&Fields::new(one, format!("{at}[0]")), &mut all, &mut within)?;
    }
    if !all.is_empty() {
        (conf.ranges, conf.within, conf.pools) = (all, within, None);
    }
    Ok(())
}

/// One range as `host-local` writes it: `subnet`, `rangeStart`, `rangeEnd`; added to those before.
///
/// # Errors
/// Code 7, naming the field.
pub fn range(f: &Fields<'_>, all: &mut Vec<Cidr>, within: &mut Vec<AddressRange>) -> Result<(), Error> {
    let subnet = range_of_pods(&f.name("subnet"), f.needed("subnet")?, all)?;
    if f.value("gateway").is_some() {
        let says = "the way out of a pod is the node, whatever its range: leave it out";
        return Err(bad(format!("{} is set: {says}", f.name("gateway"))));
    }
    let (from, to): (Option<IpAddr>, Option<IpAddr>) = (f.parsed("rangeStart")?, f.parsed("rangeEnd")?);
    let (from, to) = (from.unwrap_or(subnet.addr()), to.unwrap_or(subnet.last()));
    let part = AddressRange::new(from, to).filter(|_| subnet.contains(from) && subnet.contains(to));
    let part = part.ok_or_else(|| {
        let says = format!("from {from} to {to} is no part of {subnet}");
        bad(format!("{} and {}: {says}", f.name("rangeStart"), f.name("rangeEnd")))
    })?;
    if part != subnet.into() {
        within.push(part);
    }
    all.push(subnet);
    Ok(())
}
