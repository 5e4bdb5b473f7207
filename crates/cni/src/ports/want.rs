//! What one container is to have.

use std::fmt;
use std::net::IpAddr;

use ipam::PortMapping;
use types::{Cidr, Family, PortKey, Proto};

use super::layout::{SetName, mask};
use super::owner::Owner;
use super::when::When;
use crate::IpNet;

/// Which connections get the node's own address as their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Masquerade {
    /// None.
    Never,
    /// Those from the container's own subnet, itself among them, and from 127.0.0.0/8.
    #[default]
    Near,
    /// All.
    All,
}

/// The mappings of one interface of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Ports<'a> {
    /// Whose.
    pub owner: Owner,
    /// What is mapped. A `host_ip` of a family that no address is of maps nothing.
    pub mappings: &'a [PortMapping],
    /// The container's addresses; the first of each family is mapped to.
    pub addresses: &'a [IpNet],
    /// Which connections are masqueraded.
    pub masquerade: Masquerade,
    /// Conditions for IPv4 and IPv6.
    pub when: &'a [When],
}

/// An element that is to be there: its set, its key, what it maps to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    pub(super) set: SetName,
    pub(super) key: Vec<u8>,
    pub(super) data: Vec<u8>,
    /// Where it leads.
    pub(super) to: IpAddr,
}

/// Two containers ask for the same port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// On which address; on every one when absent.
    pub host_ip: Option<IpAddr>,
    /// Which port.
    pub port: PortKey,
    /// Who has it.
    pub holder: Owner,
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_ip, port, holder } = self;
        write!(f, "host port {port} of ")?;
        match host_ip {
            Some(a) => write!(f, "{a}")?,
            None => f.write_str("every address")?,
        }
        write!(f, " leads to container {holder} already: choose another hostPort or hostIP, or remove that container")
    }
}

impl Ports<'_> {
    /// The first address of a family.
    pub(super) fn address(&self, family: Family) -> Option<IpNet> {
        self.addresses.iter().copied().find(|a| Family::of(a.addr) == family)
    }

    /// Each mapping with the address it leads to, and the address of the node it is for.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (PortMapping, IpNet, Option<IpAddr>)> {
        self.mappings.iter().flat_map(move |m| {
            Family::BOTH.into_iter().filter_map(move |family| {
                let bound = m.host_ip.filter(|a| !a.is_unspecified());
                if m.host_ip.is_some_and(|a| Family::of(a) != family) {
                    return None;
                }
                self.address(family).map(|to| (*m, to, bound))
            })
        })
    }

    /// The mappings and where each leads.
    #[must_use]
    pub fn led(&self) -> Vec<(PortMapping, IpAddr)> {
        self.pairs().map(|(m, to, _)| (m, to.addr)).collect()
    }

    pub(super) fn items(&self) -> Vec<Item> {
        let mut out = Vec::new();
        for (m, to, bound) in self.pairs() {
            let family = Family::of(to.addr);
            let number = self.when.iter().find(|w| w.family() == family).map(When::number);
            let set = if bound.is_some() { SetName::Bound(family, number) } else { SetName::Any(family, number) };
            let mut key = Bytes::default();
            if let Some(a) = bound {
                key = key.addr(a);
            }
            let (key, data) =
                (key.proto(m.proto).port(m.host_port), Bytes::default().addr(to.addr).port(m.container_port));
            out.push(Item { set, key: key.0, data: data.0, to: to.addr });
            let near = |net: Cidr| {
                let key = Bytes::default().raw(&masked(net)).addr(to.addr).proto(m.proto).port(m.host_port);
                Item { set: SetName::Near(family, net.len()), key: key.0, data: Vec::new(), to: to.addr }
            };
            match self.masquerade {
                Masquerade::Never => {}
                Masquerade::All => out.extend(cidr(to.addr, 0).map(near)),
                Masquerade::Near => {
                    out.push(near(to.network()));
                    if family == Family::V4 {
                        out.extend(cidr([127, 0, 0, 0].into(), 8).map(near));
                    }
                }
            }
        }
        out.sort();
        out.dedup();
        out
    }
}

fn cidr(addr: IpAddr, len: u8) -> Option<Cidr> {
    Cidr::new(addr, len)
}

fn masked(net: Cidr) -> Vec<u8> {
    let bytes = octets(net.addr());
    bytes.iter().zip(mask(net.family(), net.len())).map(|(b, m)| b & m).collect()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A key or value in the making: fields padded to whole registers.
#[derive(Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().div_ceil(4) * 4, 0);
        self
    }

    fn addr(self, addr: IpAddr) -> Self {
        self.raw(&octets(addr))
    }

    fn proto(self, proto: Proto) -> Self {
        self.raw(&[proto.number()])
    }

    fn port(self, port: u16) -> Self {
        self.raw(&port.to_be_bytes())
    }
}

/// The address that a mapping's data begins with.
pub(super) fn leads_to(family: Family, data: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => data.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        Family::V6 => data.first_chunk::<16>().map(|b| IpAddr::from(*b)),
    }
}

/// The mapping that a key and its data say, for messages and for forgetting connections.
pub(super) fn read(set: SetName, key: &[u8], data: &[u8]) -> Option<(PortMapping, IpAddr)> {
    let family = set.family();
    let words = usize::from(family.bits() / 8);
    let (host_ip, rest) = match set {
        SetName::Bound(..) => (Some(leads_to(family, key)?), key.get(words..)?),
        SetName::Any(..) => (None, key),
        SetName::Near(..) => return None,
    };
    let port = |b: &[u8]| b.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
    let mapping = PortMapping {
        proto: Proto::from_number(*rest.first()?)?,
        host_ip,
        host_port: port(rest.get(4..)?)?,
        container_port: port(data.get(words..)?)?,
    };
    Some((mapping, leads_to(family, data)?))
}
