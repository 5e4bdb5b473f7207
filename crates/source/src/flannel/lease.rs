//! `PREFIX/subnets/10.5.34.0-24`, or `10.5.34.0-24&fd00:5:34::-64` where there are both families: one node's lease.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;
use types::{Cidr, Family, Mac};

use super::config::{Bad, Config, Fields, Network};

/// The ranges of one node. The key of its lease says them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnets {
    /// IPv4.
    pub v4: Option<Cidr>,
    /// IPv6.
    pub v6: Option<Cidr>,
}

impl Subnets {
    /// From the last part of a key. Without IPv4 flannel writes its empty range there.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let one = |text: &str| {
            let (addr, len) = text.rsplit_once('-')?;
            Some((addr.parse::<IpAddr>().ok()?, len.parse::<u8>().ok()?))
        };
        let (first, second) = key.split_once('&').map_or((key, None), |(a, b)| (a, Some(b)));
        let exact = |(addr, len): (IpAddr, u8)| Cidr::new(addr, len).filter(|c| c.addr() == addr && len > 0);
        let (a, alen) = one(first)?;
        let v4 = match (a, alen) {
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0) => None,
            (IpAddr::V4(_), _) => Some(exact((a, alen))?),
            (IpAddr::V6(_), _) => return None,
        };
        let v6 =
            second.map(|t| one(t).and_then(exact).filter(|c| c.family() == Family::V6).ok_or(())).transpose().ok()?;
        (v4.is_some() || v6.is_some()).then_some(Self { v4, v6 })
    }

    /// The last part of the key.
    #[must_use]
    pub fn key(&self) -> String {
        let text = |c: &Cidr| format!("{}-{}", c.addr(), c.len());
        let first = self.v4.as_ref().map_or_else(|| "0.0.0.0-0".into(), text);
        self.v6.as_ref().map_or(first.clone(), |v6| format!("{first}&{}", text(v6)))
    }

    /// The ranges, IPv4 first.
    pub fn each(&self) -> impl Iterator<Item = Cidr> {
        self.v4.into_iter().chain(self.v6)
    }

    /// Whether a node may have these: a range of each family that the network has and of no other, where ranges may be.
    #[must_use]
    pub fn fit(&self, config: &Config) -> bool {
        let fits = |network: Option<&Network>, own: Option<&Cidr>| match (network, own) {
            (None, None) => true,
            (Some(n), Some(c)) => n.allows(c),
            _ => false,
        };
        fits(config.v4.as_ref(), self.v4.as_ref()) && fits(config.v6.as_ref(), self.v6.as_ref())
    }
}

/// How many free ranges are looked for; one of them is taken, so that nodes that come at once seldom want the same.
const CHOICE: usize = 100;

/// Ranges that nobody holds: of the first hundred free ones the one that `pick` falls on.
///
/// # Errors
/// The network that has none left.
pub fn free(config: &Config, held: &[Subnets], pick: u64) -> Result<Subnets, Cidr> {
    let one = |n: &Network| {
        let mut found: Vec<Cidr> = Vec::new();
        let mut at = n.parts.0;
        let taken: Vec<Cidr> = held.iter().flat_map(Subnets::each).filter(|c| c.overlaps(&n.range)).collect();
        while at <= n.parts.1 && found.len() < CHOICE {
            let Some(c) = n.range.nth_subnet(n.subnet_len, at) else { break };
            if !taken.iter().any(|t| t.overlaps(&c)) {
                found.push(c);
            }
            at += 1;
        }
        let n_found = u64::try_from(found.len()).unwrap_or(1).max(1);
        found.get(usize::try_from(pick % n_found).unwrap_or(0)).copied().ok_or(n.range)
    };
    Ok(Subnets { v4: config.v4.as_ref().map(one).transpose()?, v6: config.v6.as_ref().map(one).transpose()? })
}

/// What a VXLAN node says of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendData {
    /// `VNI`.
    pub vni: u32,
    /// `VtepMAC`.
    pub mac: Mac,
}

/// The value of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attrs {
    /// `PublicIP`.
    pub v4: Option<Ipv4Addr>,
    /// `PublicIPv6`.
    pub v6: Option<Ipv6Addr>,
    /// `BackendType`.
    pub backend: String,
    /// `BackendData`.
    pub data: Option<BackendData>,
    /// `BackendV6Data`.
    pub data6: Option<BackendData>,
}

impl Attrs {
    /// Reads a value.
    ///
    /// # Errors
    /// The field and why.
    pub fn parse(text: &str) -> Result<Self, Bad> {
        let value: Value = serde_json::from_str(text).map_err(|e| (String::new(), format!("is no JSON: {e}")))?;
        let fields = Fields::new(value).ok_or_else(|| (String::new(), "is no JSON object".to_owned()))?;
        let address = |name: &str| -> Result<Option<IpAddr>, Bad> {
            let Some(text) = fields.text(name)? else { return Ok(None) };
            let a: IpAddr = text.parse().map_err(|e| (name.to_owned(), format!("{text:?}: {e}")))?;
            Ok(Some(a).filter(|a| !a.is_unspecified()))
        };
        let backend = fields.text("BackendType")?.unwrap_or_default().to_ascii_lowercase();
        let data = |name: &str| -> Result<Option<BackendData>, Bad> {
            let Some(v) = fields.get(name).filter(|_| backend == "vxlan") else { return Ok(None) };
            let bad = |field: &str, why: String| (format!("{name}.{field}"), why);
            let f = Fields::new(v.clone()).ok_or_else(|| (name.to_owned(), "is no JSON object".to_owned()))?;
            let mac = f.text("VtepMAC")?.ok_or_else(|| bad("VtepMAC", "is missing".into()))?;
            let vni = f.get("VNI").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
            Ok(Some(BackendData {
                vni: vni.ok_or_else(|| bad("VNI", "is missing or no number".into()))?,
                mac: mac.parse().map_err(|e: types::MacError| bad("VtepMAC", e.to_string()))?,
            }))
        };
        let (v4, v6) = (address("PublicIP")?, address("PublicIPv6")?);
        Ok(Self {
            v4: v4.and_then(|a| if let IpAddr::V4(a) = a { Some(a) } else { None }),
            v6: v6.and_then(|a| if let IpAddr::V6(a) = a { Some(a) } else { None }),
            data: data("BackendData")?,
            data6: data("BackendV6Data")?,
            backend,
        })
    }

    /// The value, byte for byte as flannel writes it.
    #[must_use]
    pub fn value(&self) -> String {
        let quoted = |a: Option<String>| a.map_or_else(|| "null".into(), |a| format!("\"{a}\""));
        let data = |name: &str, d: &Option<BackendData>| {
            d.as_ref()
                .map_or_else(String::new, |d| format!(",\"{name}\":{{\"VNI\":{},\"VtepMAC\":\"{}\"}}", d.vni, d.mac))
        };
        format!(
            "{{\"PublicIP\":\"{}\",\"PublicIPv6\":{},\"BackendType\":\"{}\"{}{}}}",
            self.v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            quoted(self.v6.map(|a| a.to_string())),
            self.backend,
            data("BackendData", &self.data),
            data("BackendV6Data", &self.data6),
        )
    }

    /// Whether both are of one node: they share an address.
    #[must_use]
    pub fn same_node(&self, other: &Self) -> bool {
        (self.v4.is_some() && self.v4 == other.v4) || (self.v4.is_none() && self.v6.is_some() && self.v6 == other.v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flannels() {
        for (key, v4, v6) in [
            ("10.5.34.0-24", Some("10.5.34.0/24"), None),
            ("10.5.34.0-24&fd00:5:0:34::-64", Some("10.5.34.0/24"), Some("fd00:5:0:34::/64")),
            ("0.0.0.0-0&fd00:5:0:34::-64", None, Some("fd00:5:0:34::/64")),
        ] {
            let s = Subnets::parse(key).unwrap();
            assert_eq!((s.v4, s.v6), (v4.map(|c| c.parse().unwrap()), v6.map(|c| c.parse().unwrap())), "{key}");
            assert_eq!(s.key(), key);
        }
        for bad in
            ["", "config", "10.5.34.0", "10.5.34.0-33", "10.5.34.1-24", "0.0.0.0-0", "10.5.34.0-24&x", "fd00::-64"]
        {
            assert_eq!(Subnets::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_are_flannels() {
        for text in [
            r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"22:1e:35:0c:d0:92"}}"#,
            r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.168.0.1","PublicIPv6":"fd01::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"22:1e:35:0c:d0:92"},"BackendV6Data":{"VNI":1,"VtepMAC":"22:1e:35:0c:d0:93"}}"#,
        ] {
            assert_eq!(Attrs::parse(text).unwrap().value(), text);
        }
        let old =
            r#"{"PublicIP":"10.0.0.1","BackendType":"VXLAN","BackendData":{"VtepMAC":"22:1e:35:0c:d0:92","VNI":1}}"#;
        assert_eq!(Attrs::parse(old).unwrap().data.unwrap().vni, 1);
        for (bad, field) in [
            ("[]", ""),
            (r#"{"PublicIP": 7}"#, "PublicIP"),
            (r#"{"PublicIP": "x"}"#, "PublicIP"),
            (r#"{"BackendType":"vxlan","BackendData":{"VNI":1}}"#, "BackendData.VtepMAC"),
            (r#"{"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"z"}}"#, "BackendData.VtepMAC"),
            (r#"{"BackendType":"vxlan","BackendData":{"VtepMAC":"22:1e:35:0c:d0:92"}}"#, "BackendData.VNI"),
        ] {
            assert_eq!(Attrs::parse(bad).unwrap_err().0, field, "{bad}");
        }
    }

    #[test]
    fn a_free_range_is_one_nobody_holds() {
        let config = r#"{"Network": "10.5.0.0/22", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}"#;
        let c = Config::parse(config).unwrap();
        let held = |keys: &[&str]| keys.iter().map(|k| Subnets::parse(k).unwrap()).collect::<Vec<_>>();
        let first = |keys: &[&str], pick| free(&c, &held(keys), pick).map(|s| s.key());
        assert_eq!(first(&[], 0).unwrap(), "10.5.1.0-24");
        assert_eq!(first(&[], 5).unwrap(), "10.5.3.0-24");
        assert_eq!(first(&["10.5.1.0-24", "10.5.3.128-25", "10.9.0.0-16"], 7).unwrap(), "10.5.2.0-24");
        assert_eq!(first(&["10.5.0.0-22"], 0).unwrap_err().to_string(), "10.5.0.0/22");
    }
}
