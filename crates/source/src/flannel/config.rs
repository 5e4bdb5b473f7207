//! `PREFIX/config`: the network that all nodes share.

use serde_json::{Map, Value};
use types::{Cidr, Family};

/// How packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `vxlan`.
    Vxlan {
        /// `VNI`.
        vni: u32,
        /// `Port`; 8472 when none is said, as on Linux.
        port: u16,
        /// `DirectRouting`: nodes on one link need no tunnel.
        direct: bool,
    },
    /// `host-gw`.
    HostGw,
}

impl Backend {
    /// Its `Type`, as leases have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// The addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// All of them.
    pub range: Cidr,
    /// The prefix length of a node's part.
    pub subnet_len: u8,
    /// The first and the last part that nodes may have, counted from the start of the range.
    pub parts: (u128, u128),
}

impl Network {
    /// Whether a node may have this part.
    #[must_use]
    pub fn allows(&self, subnet: &Cidr) -> bool {
        let at = self.range.index_of(subnet.addr()).map(|i| i >> self.host_bits());
        subnet.len() == self.subnet_len && at.is_some_and(|i| (self.parts.0..=self.parts.1).contains(&i))
    }

    fn host_bits(&self) -> u32 {
        u32::from(self.range.family().bits() - self.subnet_len)
    }
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// IPv4; none when `EnableIPv4` is false.
    pub v4: Option<Network>,
    /// IPv6, with `EnableIPv6`.
    pub v6: Option<Network>,
    /// `Backend`.
    pub backend: Backend,
}

/// A field that cannot be used, and why with what to do.
pub(super) type Bad = (String, String);

/// The fields of one family.
struct Names {
    family: Family,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// A node's part when none is said, where the network has room for four of them; and the longest that still has
    /// room for a bridge and a pod.
    usual: u8,
    longest: u8,
}

const V4: Names = Names {
    family: Family::V4,
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    usual: 24,
    longest: 30,
};
const V6: Names = Names {
    family: Family::V6,
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    usual: 64,
    longest: 126,
};

/// An object whose field names count in any case, as Go reads JSON.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(v: Value) -> Option<Self> {
        let Value::Object(map) = v else { return None };
        Some(Self(map.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect()))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(&name.to_ascii_lowercase()).filter(|v| !v.is_null())
    }

    fn number(&self, name: &str, most: u64) -> Result<Option<u64>, Bad> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => match v.as_u64().filter(|n| *n <= most) {
                Some(n) => Ok(Some(n)),
                None => Err((name.into(), format!("{v} is no number from 0 to {most}: correct it"))),
            },
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, Bad> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err((name.into(), format!("{v}: write true or false"))),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Bad> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s).filter(|s| !s.is_empty()).map(String::as_str)),
            Some(v) => Err((name.into(), format!("{v}: write a text in quotation marks"))),
        }
    }
}

impl Config {
    /// Reads the value of the key, by flannel's rules for what is not said.
    ///
    /// # Errors
    /// The field and why.
    pub fn parse(text: &str) -> Result<Self, Bad> {
        let value: Value = serde_json::from_str(text).map_err(|e| (String::new(), format!("is no JSON: {e}")))?;
        let fields = Fields::new(value).ok_or_else(|| (String::new(), "is no JSON object".to_owned()))?;
        let v4 = fields.flag("EnableIPv4", true)?.then(|| network(&fields, &V4)).transpose()?;
        let v6 = fields.flag("EnableIPv6", false)?.then(|| network(&fields, &V6)).transpose()?;
        if v4.is_none() && v6.is_none() {
            return Err(("EnableIPv4".into(), "neither family is enabled: set EnableIPv4 or EnableIPv6".into()));
        }
        Ok(Self { v4, v6, backend: backend(&fields)? })
    }

    /// The networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.v4.iter().chain(&self.v6)
    }
}

fn backend(fields: &Fields) -> Result<Backend, Bad> {
    let said = fields.get("Backend").cloned().unwrap_or_else(|| serde_json::json!({"Type": "udp"}));
    let Some(b) = Fields::new(said) else { return Err(("Backend".into(), "is no JSON object".into())) };
    let inside = |(field, why): Bad| (format!("Backend.{field}"), why);
    match b.text("Type").map_err(inside)?.unwrap_or_default().to_ascii_lowercase().as_str() {
        "vxlan" => {
            let vni = b.number("VNI", 0x00ff_ffff).map_err(inside)?.unwrap_or(1);
            let port = b.number("Port", 65_535).map_err(inside)?.filter(|p| *p != 0);
            if b.flag("GBP", false).map_err(inside)? {
                return Err(("Backend.GBP".into(), "group-based policy is not spoken: set it to false".into()));
            }
            Ok(Backend::Vxlan {
                vni: u32::try_from(vni).unwrap_or(1),
                port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(resolve::settings::DEFAULT_VXLAN_PORT),
                direct: b.flag("DirectRouting", false).map_err(inside)?,
            })
        }
        "host-gw" => Ok(Backend::HostGw),
        other => Err(("Backend.Type".into(), format!("{other:?} is not spoken: set it to vxlan or host-gw"))),
    }
}

fn network(fields: &Fields, n: &Names) -> Result<Network, Bad> {
    let bad = |field: &str, why: String| (field.to_owned(), why);
    let text = fields.text(n.network)?.ok_or_else(|| bad(n.network, "is missing: set the pods' range".into()))?;
    let range: Cidr = text.parse().map_err(|e: types::CidrError| bad(n.network, e.to_string()))?;
    if range.family() != n.family {
        return Err(bad(n.network, format!("{range} is not {}", n.family)));
    }
    let said = fields.number(n.len, 128)?.and_then(|l| u8::try_from(l).ok()).filter(|l| *l != 0);
    let subnet_len = match said {
        Some(l) if l > n.longest => return Err(bad(n.len, format!("{l}: at most {} leaves room for pods", n.longest))),
        Some(l) if l < range.len() + 2 => {
            return Err(bad(
                n.len,
                format!("{l}: {range} must hold four nodes' ranges: set {} at least", range.len() + 2),
            ));
        }
        Some(l) => l,
        None if range.len() > n.longest - 2 => {
            return Err(bad(n.network, format!("{range} is too small: at most /{} holds four nodes", n.longest - 2)));
        }
        None if range.len() <= n.usual - 2 => n.usual,
        None => range.len() + 2,
    };
    let host_bits = u32::from(n.family.bits() - subnet_len);
    let place = |field: &str, default: u128| -> Result<u128, Bad> {
        let Some(text) = fields.text(field)? else { return Ok(default) };
        let addr = text.parse().map_err(|e| bad(field, format!("{text:?}: {e}")))?;
        let at = range.index_of(addr).ok_or_else(|| bad(field, format!("{addr} is not in {range}")))?;
        let part = at >> host_bits;
        if part << host_bits != at {
            return Err(bad(field, format!("{addr} is not where a /{subnet_len} begins")));
        }
        Ok(part)
    };
    // The first part is left out unless somebody asks for it: its first address is the network's own.
    let last = (1u128 << (subnet_len - range.len())) - 1;
    let parts = (place(n.min, 1)?, place(n.max, last)?);
    if parts.0 > parts.1 {
        return Err(bad(n.min, format!("is after {}: exchange them", n.max)));
    }
    Ok(Network { range, subnet_len, parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String) {
        let n = Config::parse(text).unwrap().v4.unwrap();
        let at = |i| n.range.nth_subnet(n.subnet_len, i).unwrap().to_string();
        (at(n.parts.0), at(n.parts.1))
    }

    #[test]
    fn what_is_not_said_is_as_flannel_has_it() {
        let c = Config::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
        assert_eq!(c.backend, Backend::Vxlan { vni: 1, port: 8472, direct: false });
        assert!(c.v6.is_none());
        for (text, first, last) in [
            (r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#, "10.5.1.0/24", "10.5.255.0/24"),
            (r#"{"network": "10.5.0.0/24", "backend": {"type": "HOST-GW"}}"#, "10.5.0.64/26", "10.5.0.192/26"),
            (
                r#"{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0",
                    "Backend": {"Type": "vxlan", "Port": 0}}"#,
                "10.10.0.0/20",
                "10.99.0.0/20",
            ),
        ] {
            assert_eq!(parts(text), (first.into(), last.into()), "{text}");
        }
        let c = Config::parse(
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48",
                "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "DirectRouting": true}}"#,
        )
        .unwrap();
        assert_eq!(c.backend, Backend::Vxlan { vni: 7, port: 4789, direct: true });
        let v6 = c.v6.unwrap();
        assert_eq!((c.v4, v6.subnet_len, v6.parts), (None, 64, (1, 0xffff)));
        assert!(v6.allows(&"fd00:5:0:1::/64".parse().unwrap()));
        for other in ["fd00:5::/64", "fd00:5:0:1::/80", "fd00:6:0:1::/64", "10.0.0.0/24"] {
            assert!(!v6.allows(&other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn bad_configurations_name_field_and_fix() {
        for (text, field, why) in [
            ("{", "", "no JSON"),
            ("7", "", "no JSON object"),
            ("{}", "Network", "missing"),
            (r#"{"Network": "10.5.0.0/29"}"#, "Network", "too small"),
            (r#"{"Network": "fd00::/48"}"#, "Network", "is not IPv4"),
            (r#"{"Network": "10.5.0.0/16"}"#, "Backend.Type", "vxlan or host-gw"),
            (r#"{"Network": "10.5.0.0/16", "SubnetLen": 31}"#, "SubnetLen", "at most 30"),
            (r#"{"Network": "10.5.0.0/16", "SubnetLen": 17}"#, "SubnetLen", "set 18"),
            (r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}"#, "SubnetMin", "is not in"),
            (r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.1"}"#, "SubnetMin", "begins"),
            (r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"}"#, "SubnetMin", "after"),
            (r#"{"Network": "10.5.0.0/16", "EnableIPv6": true}"#, "IPv6Network", "missing"),
            (r#"{"EnableIPv4": false}"#, "EnableIPv4", "neither"),
            (r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": -1}}"#, "Backend.VNI", "no number"),
            (r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}"#, "Backend.Type", "not spoken"),
        ] {
            let (f, w) = Config::parse(text).unwrap_err();
            assert!(f == field && w.contains(why), "{text}: {f}: {w}");
        }
    }
}
