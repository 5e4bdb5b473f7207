//! The configuration on standard input (CNI specification, section 1).

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use intent::Wiring;
use ipam::{Key, Limits, PortMapping};
use serde_json::{Map, Value};
use types::{AddressRange, Cidr, Family, Mac};

use crate::args::is_identifier;
use crate::fields::{Fields, bad, shown};
use crate::result::{CniResult, Dns};
use crate::{Code, Error, TYPE, Version};

/// Bytes of configuration that are read at most. A GC lists every attachment of the node.
const MAX_CONFIG: u64 = 4 << 20;

/// A configuration, checked. Fields that only some commands need are checked by [`NetConf::for_add`].
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: Version,
    /// `name`: the network's.
    pub name: Box<str>,
    /// `ranges`: this node's, at most one per family.
    pub ranges: Vec<Cidr>,
    /// Of `ranges` only these parts (`runtimeConfig.ipRanges`).
    pub within: Vec<AddressRange>,
    /// `ipam.pools`, instead of `ranges`: the agent's list of what may be given out of address pools.
    pub pools: Option<PathBuf>,
    /// `ipam.family`: the only one of whose pools an address is given.
    pub family: Option<Family>,
    /// `routes`: where a pod's routes lead; everywhere when empty.
    pub routes: Vec<Cidr>,
    /// `mtu` in bytes.
    pub mtu: Option<u32>,
    /// `dataDir`.
    pub data_dir: PathBuf,
    /// `dns`: handed on as it is.
    pub dns: Option<Dns>,
    /// `runtimeConfig.ips`: addresses asked for.
    pub ips: Vec<IpAddr>,
    /// `runtimeConfig.portMappings`: ports of the node that lead to the container.
    pub ports: Vec<PortMapping>,
    /// `runtimeConfig.bandwidth`: limits, where the agent says none.
    pub limits: Limits,
    /// `runtimeConfig.mac`: the pod's hardware address.
    pub mac: Option<Mac>,
    /// `runtimeConfig.aliases`: names that stand for the pod's addresses.
    pub names: Vec<Box<str>>,
    /// `prevResult`: the answer of the plugin before us.
    pub prev_result: Option<CniResult>,
    /// `mode` and `modeOptions`: how pods are wired whose own specs do not say.
    pub wiring: Wiring,
    /// `pods`: where the agent says what each pod is to have; without it no pod is waited for, and none is special.
    pub pods: Option<PathBuf>,
    /// `cni.dev/valid-attachments`; none is an empty list, as libcni leaves out a list with nothing in it.
    pub valid: Option<Vec<Key>>,
}

pub(crate) fn wrong(field: &str, v: &Value, want: &str) -> Error {
    bad(format!("{field} is {}: {want}", shown(v)))
}

/// Reads all of standard input, within bounds.
///
/// # Errors
/// Code 5 or 6.
pub fn read(input: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(4096);
    input
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new(Code::Io, format!("read the configuration from standard input: {e}")))?;
    if bytes.len() as u64 > MAX_CONFIG {
        let msg = format!("the configuration on standard input has more than {MAX_CONFIG} bytes");
        return Err(Error::new(Code::Decode, msg));
    }
    Ok(bytes)
}

/// Reads the JSON object and its version; the object with whatever version it has.
///
/// # Errors
/// Code 6 when it is no JSON object.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(m)) => Ok(m),
        Ok(v) => {
            Err(Error::new(Code::Decode, format!("the configuration on standard input is no object: {}", shown(&v))))
        }
        Err(e) => Err(Error::new(Code::Decode, "the configuration on standard input is no JSON").with(e.to_string())),
    }
}

/// `cniVersion` of an object.
///
/// # Errors
/// Code 1 when it is missing or not one of ours.
pub fn version(m: &Map<String, Value>) -> Result<Version, Error> {
    let spoken = Version::ALL.map(Version::as_str).join(", ");
    let says = match m.get("cniVersion") {
        Some(Value::String(s)) => match Version::parse(s) {
            Some(v) => return Ok(v),
            None => format!("the configuration's cniVersion is {s:?}, this plugin speaks {spoken}"),
        },
        Some(v) => format!("the configuration's cniVersion is {}, this plugin speaks {spoken}", shown(v)),
        None => format!("the configuration has no cniVersion, this plugin speaks {spoken}"),
    };
    Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions").with(says))
}

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Code 1, 2, 6 or 7, naming the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let m = object(bytes)?;
        let version = version(&m)?;
        Self::from_object(version, m)
    }

    /// Reads a configuration whose version is known.
    ///
    /// # Errors
    /// Code 2 or 7, naming the field.
    pub fn from_object(version: Version, m: Map<String, Value>) -> Result<Self, Error> {
        let mut out = Self {
            version,
            name: "".into(),
            ranges: Vec::new(),
            within: Vec::new(),
            pools: None,
            family: None,
            routes: Vec::new(),
            mtu: None,
            data_dir: ipam::DEFAULT_DIR.into(),
            dns: None,
            ips: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
            mac: None,
            names: Vec::new(),
            prev_result: None,
            wiring: Wiring::default(),
            pods: None,
            valid: None,
        };
        let mut runtime = None;
        for (field, v) in m {
            match (&*field, v) {
                // Last: it comes before what the configuration says.
                ("runtimeConfig", Value::Object(rc)) => runtime = Some(rc),
                (_, v) => out.field(&field, v)?,
            }
        }
        if out.name.is_empty() {
            return Err(bad("name is missing"));
        }
        if let Some(rc) = runtime {
            crate::runtime::read(&mut out, &rc)?;
        }
        Ok(out)
    }

    fn field(&mut self, field: &str, v: Value) -> Result<(), Error> {
        match (field, v) {
            ("cniVersion", _) => {}
            ("name", Value::String(s)) if is_identifier(&s) && s.len() <= 253 => self.name = s.into(),
            ("name", v) => {
                return Err(wrong(field, &v, "letters, digits, '_', '.' and '-', the first a letter or digit"));
            }
            // The runtime chose the binary by it.
            ("type", Value::String(_)) => {}
            ("type", v) => return Err(wrong(field, &v, &format!("the text {TYPE:?} is needed"))),
            ("mode", Value::String(s)) => self.wiring.mode = s.parse().map_err(|e| bad(format!("mode is {e}")))?,
            ("mode", v) => return Err(wrong(field, &v, "a text is needed, e.g. \"routed\"")),
            ("modeOptions", Value::Object(m)) => self.wiring.options = m.into_iter().collect(),
            ("modeOptions", v) => return Err(wrong(field, &v, "an object is needed")),
            ("pods", Value::String(s)) if s.starts_with('/') && !s.contains('\0') => self.pods = Some(s.into()),
            ("pods", v) => return Err(wrong(field, &v, "an absolute path is needed")),
            ("mtu", v) => {
                let n = v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (68..=65535).contains(n));
                self.mtu = Some(n.ok_or_else(|| wrong(field, &v, "a number of bytes from 68 to 65535 is needed"))?);
            }
            ("dataDir", Value::String(s)) if s.starts_with('/') && !s.contains('\0') => self.data_dir = s.into(),
            ("dataDir", v) => return Err(wrong(field, &v, "an absolute path is needed")),
            ("ranges", Value::Array(list)) => self.ranges = ranges(&list)?,
            ("ranges", v) => return Err(wrong(field, &v, "a list of ranges is needed, e.g. [\"10.244.1.0/24\"]")),
            ("ipam", Value::Object(m)) => {
                let f = Fields::new(&m, "ipam");
                self.pools = Some(pools(&f)?);
                self.family = match f.text("family")? {
                    None => None,
                    Some("IPv4") => Some(Family::V4),
                    Some("IPv6") => Some(Family::V6),
                    Some(o) => return Err(bad(format!("ipam.family is {o:?}: IPv4 or IPv6 is needed, or nothing"))),
                };
            }
            ("ipam", v) => return Err(wrong(field, &v, "an object is needed")),
            ("routes", Value::Array(list)) => self.routes = routes(&list)?,
            ("routes", v) => return Err(wrong(field, &v, "a list is needed, e.g. [{\"dst\": \"10.0.0.0/8\"}]")),
            ("dns", Value::Object(m)) => self.dns = Some(Dns::read(&Fields::new(&m, "dns"))?),
            ("dns", v) => return Err(wrong(field, &v, "an object is needed")),
            ("runtimeConfig", v) => return Err(wrong(field, &v, "an object is needed")),
            ("prevResult", Value::Object(p)) => self.prev_result = Some(CniResult::read(&p, "prevResult")?),
            ("prevResult", Value::Null) => {}
            ("prevResult", v) => return Err(wrong(field, &v, "an object is needed")),
            ("cni.dev/valid-attachments", Value::Array(list)) => self.valid = Some(attachments(&list)?),
            // The released specification 1.1.0 names it so (containernetworking/cni issue 1101).
            ("cni.dev/attachments", Value::Array(list)) if self.valid.is_none() => {
                self.valid = Some(attachments(&list)?)
            }
            ("cni.dev/valid-attachments" | "cni.dev/attachments", Value::Null) => {}
            ("cni.dev/valid-attachments", v) => return Err(wrong(field, &v, "a list is needed")),
            // What the runtime, not the administrator, puts there.
            ("capabilities" | "args", Value::Object(_)) | ("cniVersions", Value::Array(_)) => {}
            (f, _) if f.starts_with("cni.dev/") => {}
            (_, v) => {
                let msg = format!("unsupported field in the network configuration: {field} = {}", shown(&v));
                let known = "known are cniVersion, name, type, ranges, ipam, routes, mtu, dataDir, mode, modeOptions, pods, dns, \
                             capabilities, runtimeConfig, args, prevResult";
                return Err(Error::new(Code::UnsupportedField, msg).with(known));
            }
        }
        Ok(())
    }

    /// What only ADD needs: ranges to give from and the MTU.
    ///
    /// # Errors
    /// Code 7.
    pub fn for_add(&self) -> Result<u32, Error> {
        if self.pools.is_some() && !self.ranges.is_empty() {
            return Err(bad("ranges and ipam exclude each other: addresses come from the one or from the other"));
        }
        if self.ranges.is_empty() && self.pools.is_none() {
            return Err(bad("ranges is missing: the node's pod ranges, e.g. [\"10.244.1.0/24\"]"));
        }
        let Some(mtu) = self.mtu else {
            return Err(bad("mtu is missing: the uplink's minus what the backend adds (vxlan: 50), e.g. 1450"));
        };
        if mtu < 1280 && self.ranges.iter().any(|r| r.family() == Family::V6) {
            return Err(bad(format!("mtu is {mtu}: IPv6 needs at least 1280 (RFC 8200 section 5)")));
        }
        Ok(mtu)
    }
}

/// `ipam`: our own, of address pools.
fn pools(f: &Fields<'_>) -> Result<PathBuf, Error> {
    if f.text("type")? != Some("seaway") {
        return Err(bad(
            "ipam.type must be \"seaway\" here; ipam of other types is for the plugins that delegate to them",
        ));
    }
    match f.needed("pools")? {
        p if p.starts_with('/') && !p.contains('\0') => Ok(p.into()),
        p => Err(bad(format!("ipam.pools is {p:?}: an absolute path is needed"))),
    }
}

fn ranges(list: &[Value]) -> Result<Vec<Cidr>, Error> {
    let mut out: Vec<Cidr> = Vec::new();
    for (i, v) in list.iter().enumerate() {
        let field = format!("ranges[{i}]");
        let Value::String(s) = v else { return Err(wrong(&field, v, "a range is needed, e.g. \"10.244.1.0/24\"")) };
        let range = range_of_pods(&field, s, &out)?;
        out.push(range);
    }
    Ok(out)
}

/// A range that pods may have addresses of, beside those `before` it.
pub(crate) fn range_of_pods(field: &str, text: &str, before: &[Cidr]) -> Result<Cidr, Error> {
    let range: Cidr = text.parse().map_err(|e| bad(format!("{field}: {e}")))?;
    if let Some(other) = before.iter().find(|r| r.family() == range.family()) {
        return Err(bad(format!(
            "{field} is {range}, and {other} is of the same family: give at most one range per family"
        )));
    }
    let (unusable, max) = match range.family() {
        Family::V4 => (range.addr().is_multicast() || range.addr().is_loopback(), 30),
        Family::V6 => (range.addr().is_multicast() || range.addr().is_loopback(), 126),
    };
    if unusable || range.len() == 0 {
        return Err(bad(format!("{field} is {range}: pods cannot have such addresses")));
    }
    if ipam::usable(&range).is_none() {
        return Err(bad(format!("{field} is {range}: it holds no address for pods; use /{max} or larger")));
    }
    Ok(range)
}

/// Routes of a pod: more than a person writes would fill its table.
const MOST_ROUTES: usize = 64;

fn routes(list: &[Value]) -> Result<Vec<Cidr>, Error> {
    if list.len() > MOST_ROUTES {
        return Err(bad(format!("routes has {} entries, at most {MOST_ROUTES} are taken", list.len())));
    }
    let mut out: Vec<Cidr> = Vec::new();
    for (i, v) in list.iter().enumerate() {
        let at = format!("routes[{i}]");
        let Value::Object(m) = v else {
            return Err(wrong(&at, v, "an object is needed, e.g. {\"dst\": \"10.0.0.0/8\"}"));
        };
        if let Some(k) = m.keys().find(|k| *k != "dst") {
            let says = "a pod's next hop is its node; only dst is taken";
            return Err(bad(format!("{at}.{k} is set: {says}")));
        }
        let dst = Fields::new(m, &*at).parsed("dst")?;
        let dst = dst.ok_or_else(|| bad(format!("{at}.dst is missing: a range, e.g. 10.0.0.0/8")))?;
        if !out.contains(&dst) {
            out.push(dst);
        }
    }
    Ok(out)
}

pub(crate) fn attachments(list: &[Value]) -> Result<Vec<Key>, Error> {
    let field = |i| format!("cni.dev/valid-attachments[{i}]");
    list.iter()
        .enumerate()
        .map(|(i, v)| {
            let get = |k| v.get(k).and_then(Value::as_str);
            let (Some(container), Some(ifname)) = (get("containerID"), get("ifname")) else {
                return Err(wrong(&field(i), v, "an object with containerID and ifname is needed"));
            };
            let ifname = ifname.parse().map_err(|e| bad(format!("{}.ifname: {e}", field(i))))?;
            Ok(Key { container: container.into(), ifname })
        })
        .collect()
}
