//! Bytes of set keys and of what they map to, both ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use intent::Endpoint;
use kernel_api::nft::DataType;
use types::{Family, Proto};

use crate::image::Key;

/// The longest key: address, protocol, port and source of an IPv6 source range.
const LONGEST: usize = 16 + 4 + 4 + 16;

/// Builds a key field by field, each padded to whole 4-byte registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyBytes {
    bytes: [u8; LONGEST],
    len: usize,
}

impl std::ops::Deref for KeyBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl KeyBytes {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LONGEST], len: 0 }
    }

    /// The key of a set with one field: as long as that is.
    pub(crate) fn alone(field: &[u8]) -> Self {
        Self { len: field.len().min(LONGEST), ..Self::new().field(field) }
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        let rest = self.bytes.get_mut(self.len..).unwrap_or(&mut []);
        rest.iter_mut().zip(bytes).for_each(|(to, b)| *to = *b);
        self.len = (self.len + bytes.len().div_ceil(4) * 4).min(LONGEST);
        self
    }

    pub(crate) fn addr(self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => self.field(&a.octets()),
            IpAddr::V6(a) => self.field(&a.octets()),
        }
    }

    pub(crate) fn proto(self, proto: Proto) -> Self {
        self.field(&[proto.number()])
    }

    /// Network order.
    pub(crate) fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Host order, as the kernel holds a mark.
    pub(crate) fn mark(self, mark: u32) -> Self {
        self.field(&mark.to_ne_bytes())
    }

    /// The key as it is kept.
    pub(crate) fn key(self) -> Key {
        Key { first: (&*self).into(), last: None }
    }
}

/// Reads a key field by field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyReader<'a>(&'a [u8]);

impl<'a> KeyReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        // A key of one field has no padding.
        let padded = (len.div_ceil(4) * 4).min(self.0.len().max(len));
        let (field, rest) = self.0.split_at_checked(padded)?;
        self.0 = rest;
        field.get(..len)
    }

    pub(crate) fn field(&mut self, t: DataType) -> Option<&'a [u8]> {
        self.take(t.len())
    }

    pub(crate) fn addr(&mut self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.take(4).and_then(addr_of),
            Family::V6 => self.take(16).and_then(addr_of),
        }
    }

    pub(crate) fn proto(&mut self) -> Option<Proto> {
        Proto::from_number(*self.take(1)?.first()?)
    }

    pub(crate) fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }
}

/// The address that 4 or 16 bytes are.
pub(crate) fn addr_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(b) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(b).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).into())
}

/// The endpoint that an address and a port are.
pub(crate) fn endpoint_of(bytes: &[u8], family: Family) -> Option<Endpoint> {
    let mut r = KeyReader::new(bytes);
    Some(Endpoint { addr: r.addr(family)?, port: r.port()? })
}

/// The data type of a family's addresses.
pub(crate) const fn addr_type(family: Family) -> DataType {
    match family {
        Family::V4 => DataType::Ipv4Addr,
        Family::V6 => DataType::Ipv6Addr,
    }
}

/// The length of a key or value of these fields: each padded where there are several.
pub(crate) fn padded_len(fields: &[DataType]) -> usize {
    match fields {
        [one] => one.len(),
        many => many.iter().map(|t| t.padded()).sum(),
    }
}
