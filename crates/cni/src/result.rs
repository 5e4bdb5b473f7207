//! A result of ADD as a value: read from any version's form (`prevResult`, an IPAM plugin's answer), written in any
//! version's (CNI specification, section 5 "ADD Success").
//!
//! From 0.3.0 to 1.1.0 the forms differ little: `ips[].version` is there before 1.0.0, `mtu`, `socketPath` and `pciID`
//! of interfaces and `mtu`, `advmss`, `priority`, `table`, `scope` of routes are there since 1.1.0.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use types::{Cidr, Family};

use crate::fields::{Fields, bad};
use crate::{Error, Version};

/// What an attachment has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces, the host's and the container's.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes inside the container.
    pub routes: Vec<RouteConf>,
    /// Name resolution.
    pub dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address as text; empty when it has none.
    pub mac: String,
    /// Its MTU in bytes; 0 when not told.
    pub mtu: u32,
    /// Path of the namespace it is in; empty for the host's.
    pub sandbox: String,
    /// Path of a socket of a user-space interface.
    pub socket_path: String,
    /// PCI address of the device behind it.
    pub pci_id: String,
}

/// An address with its prefix length; the host bits stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpNet {
    /// The address.
    pub addr: IpAddr,
    /// Length of the prefix.
    pub len: u8,
}

impl IpNet {
    /// The network it lies in.
    #[must_use]
    pub fn network(self) -> Cidr {
        // The length was checked against the family when it was read; a host route is the safe rest.
        Cidr::new(self.addr, self.len).unwrap_or_else(|| Cidr::host(self.addr))
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl std::str::FromStr for IpNet {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let says = || format!("{s:?} is no address with a prefix length, e.g. 10.1.2.3/24");
        let (addr, len) = s.split_once('/').ok_or_else(says)?;
        let addr: IpAddr = addr.parse().map_err(|_| says())?;
        let len: u8 = len.parse().map_err(|_| says())?;
        if len > Family::of(addr).bits() { Err(says()) } else { Ok(Self { addr, len }) }
    }
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// Index in [`CniResult::interfaces`].
    pub interface: Option<usize>,
    /// The address.
    pub address: IpNet,
    /// The default gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// A route inside the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConf {
    /// Destination.
    pub dst: Cidr,
    /// Next hop; the gateway of the address of its family when absent.
    pub gw: Option<IpAddr>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// Advertised maximum segment size.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope (`rtm_scope`).
    pub scope: Option<u8>,
}

impl RouteConf {
    /// A route to `dst` with nothing special.
    #[must_use]
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name resolution of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the object at `f`.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn read(f: &Fields<'_>) -> Result<Self, Error> {
        Ok(Self {
            nameservers: f.texts("nameservers")?,
            domain: f.text("domain")?.unwrap_or_default().into(),
            search: f.texts("search")?,
            options: f.texts("options")?,
        })
    }

    /// The object as results have it.
    #[must_use]
    pub fn write(&self) -> Value {
        let mut out = Map::new();
        let list = |out: &mut Map<String, Value>, name: &str, v: &[String]| {
            if !v.is_empty() {
                out.insert(name.into(), v.into());
            }
        };
        list(&mut out, "nameservers", &self.nameservers);
        if !self.domain.is_empty() {
            out.insert("domain".into(), self.domain.as_str().into());
        }
        list(&mut out, "search", &self.search);
        list(&mut out, "options", &self.options);
        Value::Object(out)
    }
}

impl CniResult {
    /// Reads a result of any version; `at` names it in errors (`prevResult`).
    ///
    /// # Errors
    /// Code 7, naming the field; code 1 when its version is none of ours.
    pub fn read(m: &Map<String, Value>, at: &str) -> Result<Self, Error> {
        let f = Fields::new(m, at);
        if let Some(v) = f.text("cniVersion")?
            && Version::parse(v).is_none()
        {
            return Err(Error::new(crate::Code::IncompatibleVersion, "incompatible CNI versions")
                .with(format!("{at}.cniVersion is {v:?}")));
        }
        let mut out = Self::default();
        for i in f.objects("interfaces")? {
            out.interfaces.push(Interface {
                name: i.text("name")?.unwrap_or_default().into(),
                mac: i.text("mac")?.unwrap_or_default().into(),
                mtu: i.number("mtu", 0..=u32::MAX)?.unwrap_or(0),
                sandbox: i.text("sandbox")?.unwrap_or_default().into(),
                socket_path: i.text("socketPath")?.unwrap_or_default().into(),
                pci_id: i.text("pciID")?.unwrap_or_default().into(),
            });
        }
        for i in f.objects("ips")? {
            let interface = i.number("interface", 0..=1024)?.map(|n| n as usize);
            if interface.is_some_and(|n| n >= out.interfaces.len()) {
                return Err(bad(format!("{} names no interface of the result", i.name("interface"))));
            }
            let address = i.parsed("address")?.ok_or_else(|| bad(format!("{} is missing", i.name("address"))))?;
            out.ips.push(Ip { interface, address, gateway: i.parsed("gateway")? });
        }
        for r in f.objects("routes")? {
            out.routes.push(route(&r)?);
        }
        if let Some(d) = f.object("dns")? {
            out.dns = Dns::read(&d)?;
        }
        Ok(out)
    }

    /// The object for standard output.
    #[must_use]
    pub fn write(&self, version: Version) -> Value {
        let newest = version >= Version::V1_1_0;
        let mut out = json!({"cniVersion": version.as_str()});
        if !self.interfaces.is_empty() {
            out["interfaces"] = self.interfaces.iter().map(|i| interface(i, newest)).collect();
        }
        if !self.ips.is_empty() {
            out["ips"] = self.ips.iter().map(|i| ip(i, version)).collect();
        }
        if !self.routes.is_empty() {
            out["routes"] = self.routes.iter().map(|r| route_value(r, newest)).collect();
        }
        out["dns"] = self.dns.write();
        out
    }

    /// The addresses of the container's interface of that name, and those that no interface is told of.
    #[must_use]
    pub fn addresses_of(&self, ifname: &types::IfName) -> Vec<IpNet> {
        let ours = |n: Option<usize>| {
            n.and_then(|n| self.interfaces.get(n)).is_none_or(|i| i.name == ifname.as_str() && !i.sandbox.is_empty())
        };
        self.ips.iter().filter(|i| ours(i.interface)).map(|i| i.address).collect()
    }

    /// The container's interface of that name.
    #[must_use]
    pub fn in_container(&self, ifname: &str) -> Option<(usize, &Interface)> {
        self.interfaces.iter().enumerate().find(|(_, i)| i.name == ifname && !i.sandbox.is_empty())
    }
}

/// Reads one route: of a result, or of a configuration's `routes`.
///
/// # Errors
/// Code 7, naming the field.
pub fn route(r: &Fields<'_>) -> Result<RouteConf, Error> {
    let dst: IpNet = r.parsed("dst")?.ok_or_else(|| bad(format!("{} is missing", r.name("dst"))))?;
    Ok(RouteConf {
        dst: dst.network(),
        gw: r.parsed("gw")?,
        mtu: r.number("mtu", 0..=u32::MAX)?.filter(|n| *n > 0),
        advmss: r.number("advmss", 0..=u32::MAX)?.filter(|n| *n > 0),
        priority: r.number("priority", 0..=u32::MAX)?.filter(|n| *n > 0),
        table: r.number("table", 0..=u32::MAX)?,
        scope: r.number("scope", 0..=255)?.and_then(|n| u8::try_from(n).ok()),
    })
}

fn interface(i: &Interface, newest: bool) -> Value {
    let mut out = json!({"name": i.name});
    let mut put = |name: &str, v: &str| {
        if !v.is_empty() {
            out[name] = v.into();
        }
    };
    put("mac", &i.mac);
    put("sandbox", &i.sandbox);
    if newest {
        put("socketPath", &i.socket_path);
        put("pciID", &i.pci_id);
        if i.mtu > 0 {
            out["mtu"] = i.mtu.into();
        }
    }
    out
}

fn ip(i: &Ip, version: Version) -> Value {
    let mut out = json!({"address": i.address.to_string()});
    if version < Version::V1_0_0 {
        out["version"] = if i.address.addr.is_ipv4() { "4" } else { "6" }.into();
    }
    if let Some(n) = i.interface {
        out["interface"] = n.into();
    }
    if let Some(g) = i.gateway {
        out["gateway"] = g.to_string().into();
    }
    out
}

fn route_value(r: &RouteConf, newest: bool) -> Value {
    let mut out = json!({"dst": r.dst.to_string()});
    if let Some(g) = r.gw {
        out["gw"] = g.to_string().into();
    }
    if newest {
        let numbers = [("mtu", r.mtu), ("advmss", r.advmss), ("priority", r.priority), ("table", r.table)];
        for (name, n) in numbers.into_iter().chain([("scope", r.scope.map(u32::from))]) {
            if let Some(n) = n {
                out[name] = n.into();
            }
        }
    }
    out
}
