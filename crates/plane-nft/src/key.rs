//! Bytes of set keys and of what they map to, both ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel_api::nft::DataType;
use types::{Family, Proto};

/// Builds a key field by field, each padded to whole 4-byte registers.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyBytes(Vec<u8>);

impl KeyBytes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().div_ceil(4) * 4, 0);
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

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
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
