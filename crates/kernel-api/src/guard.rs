//! What one station may send: the meaning of an anti-spoofing filter, in plain Rust.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::{Cidr, Family, Mac};

/// At most so many prefixes: each is looked at in turn.
const MOST_PREFIXES: usize = 64;
/// At most so many options of a neighbour discovery message are looked at; one with more is dropped.
pub const ND_OPTIONS: usize = 4;

/// The sender behind a link: its hardware address and its own addresses. [`Guard::passes`] says what it may send.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    mac: Mac,
    prefixes: Vec<Cidr>,
    dhcp: bool,
    mac_only: bool,
}

/// Why there is no such guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardError(String);

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GuardError {}

impl Guard {
    /// A sender with this hardware address and these addresses or prefixes of either family; its IPv6 link-local
    /// address of the usual form (RFC 4291 appendix A, from the hardware address) is its own too. With `dhcp` it may
    /// ask for an IPv4 address that it does not have yet (RFC 2131; DHCPv6 speaks from the link-local address).
    ///
    /// # Errors
    /// When the hardware address is no station's, or there are more than 64 prefixes.
    pub fn new(mac: Mac, prefixes: impl IntoIterator<Item = Cidr>, dhcp: bool) -> Result<Self, GuardError> {
        Self::checked(mac, prefixes.into_iter().collect(), dhcp, false)
    }

    /// A sender of which only the hardware address is held: any frame that comes from it passes, with a tag too.
    ///
    /// # Errors
    /// When the hardware address is no station's.
    pub fn mac_only(mac: Mac) -> Result<Self, GuardError> {
        Self::checked(mac, Vec::new(), false, true)
    }

    fn checked(mac: Mac, mut prefixes: Vec<Cidr>, dhcp: bool, mac_only: bool) -> Result<Self, GuardError> {
        if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
            return Err(GuardError(format!("{mac} is no station's hardware address")));
        }
        prefixes.sort();
        prefixes.dedup();
        if prefixes.len() > MOST_PREFIXES {
            let n = prefixes.len();
            return Err(GuardError(format!("{n} prefixes behind one link; at most {MOST_PREFIXES} are guarded")));
        }
        Ok(Self { mac, prefixes, dhcp, mac_only })
    }

    /// The hardware address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The sender's own prefixes, in order, without the link-local address.
    #[must_use]
    pub fn prefixes(&self) -> &[Cidr] {
        &self.prefixes
    }

    /// Whether only its hardware address is held ([`Guard::mac_only`]).
    #[must_use]
    pub fn is_mac_only(&self) -> bool {
        self.mac_only
    }

    /// Whether it may ask for an address.
    #[must_use]
    pub fn dhcp(&self) -> bool {
        self.dhcp
    }

    /// The link-local address made of the hardware address.
    #[must_use]
    pub fn link_local(&self) -> Ipv6Addr {
        let m = self.mac.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]])
    }

    /// Whether an address is the sender's own.
    #[must_use]
    pub fn owns(&self, addr: IpAddr) -> bool {
        addr == IpAddr::V6(self.link_local())
            || self.prefixes.iter().any(|p| p.family() == Family::of(addr) && p.contains(addr))
    }

    /// Whether a frame passes: from the destination hardware address on, without preamble. `tagged` when a VLAN tag
    /// was taken off it by the link.
    ///
    /// IPv4: from an own address; with `dhcp`, from 0.0.0.0 port 68 to port 67. ARP: own hardware address, and an own
    /// address or, in a request, none (RFC 5227). IPv6: from an own address; from `::` only what has none yet
    /// (multicast listener reports, router solicitations, duplicate detection of an own address). No router
    /// advertisement and no redirect; neighbour advertisements for own addresses alone, and with the own hardware
    /// address. A packet that hides a neighbour discovery message behind extension headers is known by its hop limit of
    /// 255. Nothing else, so no VLANs.
    #[must_use]
    pub fn passes(&self, frame: &[u8], tagged: bool) -> bool {
        self.check(frame, tagged).unwrap_or(false)
    }

    /// `None`: too short for what it says it is.
    fn check(&self, f: &[u8], tagged: bool) -> Option<bool> {
        let own = f.get(6..12)? == self.mac.0;
        if self.mac_only {
            // A frame has a type.
            return Some(own && f.len() >= 14);
        }
        if tagged || !own {
            return Some(false);
        }
        match u16::from_be_bytes(*f.get(12..)?.first_chunk()?) {
            0x0800 => self.ipv4(f),
            0x0806 => self.arp(f),
            0x86dd => self.ipv6(f),
            _ => Some(false),
        }
    }

    fn ipv4(&self, f: &[u8]) -> Option<bool> {
        f.get(..34)?;
        let src = v4(f, 26)?;
        if self.owns(src.into()) {
            return Some(true);
        }
        if !self.dhcp || !src.is_unspecified() || f.get(14) != Some(&0x45) || f.get(23) != Some(&17) {
            return Some(false);
        }
        let fragment = u16::from_be_bytes([*f.get(20)?, *f.get(21)?]) & 0x1fff != 0;
        Some(!fragment && f.get(34..38)? == [0, 68, 0, 67])
    }

    fn arp(&self, f: &[u8]) -> Option<bool> {
        // Ethernet, IPv4, lengths 6 and 4.
        f.get(..42)?;
        if f.get(14..20)? != [0, 1, 8, 0, 6, 4] || f.get(22..28)? != self.mac.0 {
            return Some(false);
        }
        let sender = v4(f, 28)?;
        let probe = sender.is_unspecified() && f.get(20..22)? == [0, 1];
        Some(probe || self.owns(sender.into()))
    }

    fn ipv6(&self, f: &[u8]) -> Option<bool> {
        f.get(..54)?;
        let (next, hops, src) = (*f.get(20)?, *f.get(21)?, v6(f, 22)?);
        let none = src.is_unspecified();
        if !none && !self.owns(src.into()) {
            return Some(false);
        }
        match next {
            ICMPV6 => {}
            n if EXTENSIONS.contains(&n) && hops == 255 => return Some(false),
            // Multicast listener reports have a router alert before them (RFC 3810 section 5).
            0 if none => return Some(hops == 1 && f.get(54) == Some(&ICMPV6)),
            _ => return Some(!none),
        }
        match *f.get(54)? {
            // Router solicitation
            133 => self.options(f, 62, none),
            // Neighbour solicitation: from nowhere it claims its target.
            135 => {
                if none && !self.owns(v6(f, 62)?.into()) {
                    return Some(false);
                }
                self.options(f, 78, none)
            }
            // Neighbour advertisement
            136 => {
                if none || !self.owns(v6(f, 62)?.into()) {
                    return Some(false);
                }
                self.options(f, 78, false)
            }
            134 | 137 => Some(false),
            _ => Some(!none),
        }
    }

    /// The options of a neighbour discovery message from `at` on: link-layer addresses must be the own one, or absent
    /// when the sender has no address.
    fn options(&self, f: &[u8], mut at: usize, none: bool) -> Option<bool> {
        f.get(..at)?;
        for _ in 0..ND_OPTIONS {
            if at == f.len() {
                return Some(true);
            }
            let (kind, len) = (*f.get(at)?, *f.get(at + 1)?);
            if len == 0 {
                return Some(false);
            }
            // Source (1) or target (2) link-layer address.
            if matches!(kind, 1 | 2) && (none || len != 1 || f.get(at + 2..at + 8)? != self.mac.0) {
                return Some(false);
            }
            at += usize::from(len) * 8;
        }
        Some(at == f.len())
    }
}

const ICMPV6: u8 = 58;
/// Headers that another may follow: hop-by-hop, routing, fragment, authentication, destination, mobility, HIP, shim6.
pub const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

fn v4(f: &[u8], at: usize) -> Option<Ipv4Addr> {
    f.get(at..)?.first_chunk::<4>().map(|a| Ipv4Addr::from(*a))
}

fn v6(f: &[u8], at: usize) -> Option<Ipv6Addr> {
    f.get(at..)?.first_chunk::<16>().map(|a| Ipv6Addr::from(*a))
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mac {}", self.mac)?;
        for p in &self.prefixes {
            write!(f, " from {p}")?;
        }
        f.write_str(if self.dhcp { " dhcp" } else { "" })?;
        f.write_str(if self.mac_only { " only" } else { "" })
    }
}
