//! The configuration of `host-local`.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::{Call, Error, Fields, RouteConf, bad, route};
use serde_json::{Map, Value};

use super::range::RangeSet;
use crate::envargs;

/// Where the stores are unless `dataDir` says otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/cni/networks";
/// Bytes of `rangeFromFile` and `resolvConf` that are read at most.
const MAX_FILE: u64 = 64 << 10;

/// `ipam` of a configuration, with what runtime and environment add to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// The network's store: `dataDir`/`name`.
    pub dir: PathBuf,
    /// At least one.
    pub sets: Vec<RangeSet>,
    /// Addresses asked for.
    pub requested: Vec<IpAddr>,
    /// Handed on.
    pub routes: Vec<RouteConf>,
    /// A resolv.conf to read name resolution from.
    pub resolv_conf: Option<PathBuf>,
}

/// The store's directory, which is all that DEL and GC need to know.
///
/// # Errors
/// Code 7.
pub fn dir(conf: &Fields<'_>) -> Result<PathBuf, Error> {
    let ipam = ipam(conf)?;
    let base = ipam.text("dataDir")?.filter(|d| !d.is_empty()).unwrap_or(DEFAULT_DIR);
    if base.contains('\0') {
        return Err(bad(format!("{} has a zero byte", ipam.name("dataDir"))));
    }
    Ok(PathBuf::from(base).join(conf.needed("name")?))
}

fn ipam<'a>(conf: &Fields<'a>) -> Result<Fields<'a>, Error> {
    conf.object("ipam")?.ok_or_else(|| bad("ipam is missing"))
}

impl Conf {
    /// Reads it all.
    ///
    /// # Errors
    /// Code 4 or 7, naming key or field.
    pub fn read(conf: &Fields<'_>, call: &Call) -> Result<Self, Error> {
        let ipam = ipam(conf)?;
        let routes = ipam.objects("routes")?.iter().map(route).collect::<Result<_, _>>()?;
        let resolv_conf = ipam.text("resolvConf")?.filter(|p| !p.is_empty()).map(PathBuf::from);
        let requested = requested(conf, call)?;
        Ok(Self { dir: dir(conf)?, sets: sets(conf, &ipam)?, requested, routes, resolv_conf })
    }
}

/// `CNI_ARGS`' `IP`, `args.cni.ips` and `runtimeConfig.ips`, together; each with or without a prefix length.
fn requested(conf: &Fields<'_>, call: &Call) -> Result<Vec<IpAddr>, Error> {
    let [ip] = envargs::known(call, ["IP"])?;
    let mut texts: Vec<(String, String)> = ip.map(|ip| ("CNI_ARGS' IP".into(), ip.into())).into_iter().collect();
    let args = conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten();
    for f in [args, conf.object("runtimeConfig")?].into_iter().flatten() {
        texts.extend(f.texts("ips")?.into_iter().map(|t| (f.name("ips"), t)));
    }
    let mut out: Vec<IpAddr> = Vec::new();
    for (at, text) in texts {
        let says = || bad(format!("{at} has {text:?}, which is no address"));
        let a = text.split('/').next().and_then(|a| a.parse().ok()).ok_or_else(says)?;
        if text.contains('/') {
            text.parse::<cni::IpNet>().map_err(|_| says())?;
        }
        if !out.contains(&a) {
            out.push(a);
        }
    }
    Ok(out)
}

/// The runtime's `ipRanges`, then the old single range, then `ranges`; `rangeFromFile` when there is none of them.
fn sets(conf: &Fields<'_>, ipam: &Fields<'_>) -> Result<Vec<RangeSet>, Error> {
    let mut out = Vec::new();
    let several = |f: &Fields<'_>, field: &str, out: &mut Vec<RangeSet>| {
        for (i, v) in f.list(field)?.iter().enumerate() {
            let at = format!("{}[{i}]", f.name(field));
            out.push(RangeSet::read(&set(v, &at)?, &at)?);
        }
        Ok::<_, Error>(())
    };
    if let Some(rc) = conf.object("runtimeConfig")? {
        several(&rc, "ipRanges", &mut out)?;
    }
    if ipam.value("subnet").is_some() {
        out.push(RangeSet::read(std::slice::from_ref(ipam), &ipam.name("subnet"))?);
    }
    several(ipam, "ranges", &mut out)?;
    if out.is_empty()
        && let Some(path) = ipam.text("rangeFromFile")?.filter(|p| !p.is_empty())
    {
        let at = format!("{} {path}", ipam.name("rangeFromFile"));
        let text = bounded(path).map_err(|e| bad(format!("{at}: {e}")))?;
        let object: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| bad(format!("{at} is no range: {e}")))?;
        out.push(RangeSet::read(&[Fields::new(&object, at.clone())], &at)?);
    }
    if out.is_empty() {
        return Err(bad(format!("{} is missing: there is no range to give addresses from", ipam.name("ranges"))));
    }
    for (i, s) in out.iter().enumerate() {
        if let Some(o) = out.iter().skip(i + 1).find(|o| o.overlaps(s)) {
            return Err(bad(format!("{}: the range sets {s} and {o} overlap", ipam.name("ranges"))));
        }
    }
    Ok(out)
}

fn set<'a>(v: &'a Value, at: &str) -> Result<Vec<Fields<'a>>, Error> {
    let says = || bad(format!("{at} is no list of ranges, e.g. [{{\"subnet\": \"10.1.2.0/24\"}}]"));
    let list = v.as_array().ok_or_else(says)?;
    let one = |(i, v): (usize, &'a Value)| v.as_object().map(|m| Fields::new(m, format!("{at}[{i}]"))).ok_or_else(says);
    list.iter().enumerate().map(one).collect()
}

/// Reads a text file within bounds.
pub(super) fn bounded(path: impl AsRef<std::path::Path>) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}
