//! Names: of nodes, of API objects, of interfaces, and the one proof that an interface is ours.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Every pod interface's host end starts so; the rest is 12 hex digits of a hash of the container id and ifname.
pub const POD_LINK_PREFIX: &str = "sea";
/// Every VXLAN device of ours starts so; the VNI follows.
pub const VXLAN_LINK_PREFIX: &str = "seaway.";
/// The same, of the second device where IPv6 has a tunnel of its own. Shorter, since a name has 15 bytes.
pub const VXLAN6_LINK_PREFIX: &str = "seaw6.";

/// Every `ifb` that a bandwidth limit made starts so; 12 hex digits follow, as the reference plugin bandwidth has it.
pub const SHAPER_PREFIX: &str = "bwp";

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not an interface name.
    #[error("{0:?} is no interface name: 1 to 15 bytes, no slash, colon or white space, not . or ..")]
    Interface(String),
    /// Not one of our interfaces.
    #[error("interface {0:?} is not Seaway's: its name does not start as ours do")]
    NotOwned(String),
    /// Not a node name.
    #[error(
        "{0:?} is no node name: lower-case letters, digits, '-' and '.', starting and ending with a letter or digit, at most 253 (RFC 1123)"
    )]
    Node(String),
}

/// A network interface's name (`IFNAMSIZ` 16 with the final NUL; `dev_valid_name` in net/core/dev.c).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName(Box<str>);

impl IfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let ok = (1..=15).contains(&s.len())
            && s != "."
            && s != ".."
            && s.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if ok { Ok(Self(s.into())) } else { Err(NameError::Interface(s.into())) }
    }
}

/// The name of an interface that Seaway made. Deletes take only this, so a foreign interface cannot be deleted: the
/// constructors recognise or make our prefixes and shapes, nothing else.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnedName(IfName);

impl OwnedName {
    /// Recognises a name of ours: `seaway.<VNI>`, `seaw6.<VNI>`, or `sea` and exactly 12 lower-case hex digits.
    ///
    /// # Errors
    /// [`NameError::NotOwned`] for any other name.
    pub fn recognise(name: &IfName) -> Result<Self, NameError> {
        let s = name.as_str();
        let vxlan =
            s.strip_prefix(VXLAN_LINK_PREFIX).or_else(|| s.strip_prefix(VXLAN6_LINK_PREFIX)).is_some_and(|vni| {
                !vni.is_empty()
                    && vni.bytes().all(|b| b.is_ascii_digit())
                    && vni.parse::<u32>().is_ok_and(|v| v < 1 << 24)
            });
        let pod = s
            .strip_prefix(POD_LINK_PREFIX)
            .is_some_and(|h| h.len() == 12 && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        if vxlan || pod { Ok(Self(name.clone())) } else { Err(NameError::NotOwned(s.into())) }
    }

    /// The `ifb` of the limits of a pod's interface, from the name of its host end; of any other link's, one that no
    /// pod's has.
    #[must_use]
    pub fn shaper_of(&self) -> Self {
        let digits = self.0.as_str().strip_prefix(POD_LINK_PREFIX).and_then(|d| u64::from_str_radix(d, 16).ok());
        Self::shaper(digits.unwrap_or_default())
    }

    /// The `ifb` of a bandwidth limit, from the 48 low bits of a hash of whose it is.
    #[must_use]
    pub fn shaper(hash: u64) -> Self {
        Self(IfName(format!("{SHAPER_PREFIX}{:012x}", hash & 0xffff_ffff_ffff).into()))
    }

    /// Recognises the name of a bandwidth limit's `ifb`. The reference plugin's are named alike: whoever deletes one must
    /// know by more than the name that it is theirs to delete.
    #[must_use]
    pub fn recognise_shaper(name: &IfName) -> Option<Self> {
        let hash = name.as_str().strip_prefix(SHAPER_PREFIX)?;
        let ok = hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ok.then(|| Self(name.clone()))
    }

    /// The VXLAN device of a VNI.
    #[must_use]
    pub fn vxlan(vni: u32) -> Self {
        // Seven bytes and at most eight digits (24-bit VNI) make at most 15.
        Self(IfName(format!("{VXLAN_LINK_PREFIX}{}", vni & 0x00ff_ffff).into()))
    }

    /// The second VXLAN device of a VNI, for IPv6 pod addresses over an IPv6 underlay.
    #[must_use]
    pub fn vxlan6(vni: u32) -> Self {
        Self(IfName(format!("{VXLAN6_LINK_PREFIX}{}", vni & 0x00ff_ffff).into()))
    }

    /// The host end of a pod's interface, from the 48 low bits of a hash of (container id, interface name).
    #[must_use]
    pub fn pod_link(hash: u64) -> Self {
        Self(IfName(format!("{POD_LINK_PREFIX}{:012x}", hash & 0xffff_ffff_ffff).into()))
    }

    /// The host end of the interface `ifname` of container `container_id`: the same pair always gives the same name,
    /// so that a repeated ADD or a DEL after a crash finds the link without any record (FNV-1a, 64 bit).
    #[must_use]
    pub fn for_container(container_id: &str, ifname: &str) -> Self {
        Self::pod_link(Self::digits_for(container_id, ifname))
    }

    /// [`Self::digits`] of what [`Self::for_container`] gives, without making the name.
    #[must_use]
    pub fn digits_for(container_id: &str, ifname: &str) -> u64 {
        let mut h: u64 = 0xcbf2_9ce4_8422_2325;
        for b in container_id.bytes().chain([0]).chain(ifname.bytes()) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // Fold, so that the 48 bits kept depend on all 64.
        (h ^ (h >> 48)) & 0xffff_ffff_ffff
    }

    /// Whether this is the host end of a pod's interface.
    #[must_use]
    pub fn is_pod_link(&self) -> bool {
        let s = self.0.as_str();
        s.starts_with(POD_LINK_PREFIX) && ![VXLAN_LINK_PREFIX, VXLAN6_LINK_PREFIX].iter().any(|p| s.starts_with(p))
    }

    /// The number at the end of a pod link's name: below 2^48, different for different names.
    #[must_use]
    pub fn digits(&self) -> u64 {
        let name = self.as_str();
        u64::from_str_radix(name.get(name.len().saturating_sub(12)..).unwrap_or_default(), 16).unwrap_or(1)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &IfName {
        &self.0
    }
}

/// A node's name (RFC 1123 subdomain, as `metadata.name` of a Node).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Box<str>);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if s.len() <= 253 && s.split('.').all(label) { Ok(Self(s.into())) } else { Err(NameError::Node(s.into())) }
    }
}

/// A namespaced API object: `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace; empty for cluster-scoped objects. Shared, so that a clone costs no copy.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

macro_rules! text_name {
    ($t:ty, $as:ident) => {
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.$as())
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.$as())
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.$as())
            }
        }
    };
}

impl OwnedName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

text_name!(IfName, as_str);
text_name!(OwnedName, as_str);
text_name!(NodeName, as_str);

impl<'de> Deserialize<'de> for IfName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for OwnedName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::recognise(&IfName::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_our_shapes_are_owned() {
        for ours in ["seaway.1", "seaway.16777215", "sea0123456789ab"] {
            assert!(OwnedName::recognise(&ours.parse().unwrap()).is_ok(), "{ours}");
        }
        for foreign in [
            "eth0",
            "sea",
            "seaway",
            "seaway.",
            "seaway.16777216",
            "seaway.x",
            "sea0123456789AB",
            "sea0123456789a",
            "flannel.1",
            "seahorse",
        ] {
            let e = OwnedName::recognise(&foreign.parse().unwrap()).unwrap_err();
            assert!(e.to_string().contains("is not Seaway's"), "{foreign}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn node_names_follow_rfc_1123() {
        for ok in ["node1", "a.b.c", "0", "ip-10-0-0-1.ec2.internal"] {
            assert!(ok.parse::<NodeName>().is_ok(), "{ok}");
        }
        for bad in ["", "Node", "a..b", "-a", "a-", "a_b", "a/b"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_we_name_we_recognise(id in ".{0,64}", ifname in "[a-z0-9]{1,15}", vni in 0u32..1 << 24) {
            let n = OwnedName::for_container(&id, &ifname);
            prop_assert_eq!(OwnedName::recognise(n.name()), Ok(n.clone()));
            prop_assert!(n.is_pod_link() && n.as_str().parse::<IfName>().is_ok());
            for v in [OwnedName::vxlan(vni), OwnedName::vxlan6(vni)] {
                prop_assert_eq!(OwnedName::recognise(v.name()), Ok(v.clone()));
                prop_assert!(!v.is_pod_link() && v.as_str().parse::<IfName>().is_ok());
            }
        }
    }
}
