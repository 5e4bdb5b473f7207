//! `seaway-ipam`: addresses of our journal for other plugins: for those that wire our pods in a mode of theirs, and for
//! anybody's `"ipam": {"type": "seaway-ipam", "ranges": ["10.1.0.0/24"]}`.

use std::net::IpAddr;
use std::path::PathBuf;

use intent::PodSpec;
use ipam::{Journal, Record, Request};
use kernel_api::machine::{Machine, Netns};
use types::{Cidr, Family};

use crate::args::parse_args;
use crate::config::NetConf;
use crate::fields::{Fields, bad};
use crate::result::{CniResult, Ip, IpNet, RouteConf};
use crate::skel::{Context, Plugin};
use crate::{Code, Error, iface, plan};

/// See the module.
pub struct SeawayIpam;

/// `ipam.type`.
pub const IPAM_TYPE: &str = "seaway-ipam";

/// What leads out of an interface whose address is of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gateway {
    /// The node, by the gateway of mode `routed`: the address is a host's.
    Node,
    /// Nothing but the interface: the node's own table leads what the pod sends (`ipvlan` in mode `l3`).
    None,
    /// The router of the network that the pool is a part of; the address has that network's length.
    Wire,
}

impl Gateway {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::None => "none",
            Self::Wire => "wire",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Node, Self::None, Self::Wire].into_iter().find(|g| g.as_str() == text)
    }
}

struct Conf {
    ranges: Vec<Cidr>,
    /// Of Seaway's own modes.
    pools: Option<(PathBuf, Gateway)>,
    data_dir: PathBuf,
}

impl Conf {
    fn read<M: Machine>(cx: &Context<'_, M>) -> Result<Self, Error> {
        let f: Fields<'_> = cx.fields().object("ipam")?.ok_or_else(|| bad("ipam is missing"))?;
        let data_dir = f.text("dataDir")?.unwrap_or(ipam::DEFAULT_DIR);
        if !data_dir.starts_with('/') {
            return Err(bad(format!("ipam.dataDir is {data_dir:?}: an absolute path is needed")));
        }
        let pools = match (f.text("pools")?, f.text("gateway")?) {
            (None, None) => None,
            (Some(file), Some(g)) if file.starts_with('/') => {
                let says = || bad(format!("ipam.gateway is {g:?}: node, none or wire is needed"));
                Some((file.into(), Gateway::parse(g).ok_or_else(says)?))
            }
            _ => return Err(bad("ipam.pools and ipam.gateway go together: the first is an absolute path")),
        };
        Ok(Self { ranges: f.parsed_list("ranges")?, pools, data_dir: data_dir.into() })
    }
}

impl<M: Machine> Plugin<M> for SeawayIpam {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let conf = Conf::read(cx)?;
        let key = cx.key()?;
        let known = Journal::open_existing(&conf.data_dir)?.map(|j| j.get(key)).transpose()?.flatten();
        let record = match known {
            // Seaway's own: it asked for them already, and holds the attachment's lock.
            Some(r) if !r.delegates.is_empty() => r,
            _ if conf.pools.is_some() => {
                return Err(bad("ipam.pools is for the wiring modes of Seaway's own plugin: give ipam.ranges"));
            }
            _ => allocate(cx, &conf)?,
        };
        match &conf.pools {
            Some((file, gateway)) => of_pools(&record, &ipam::Pools::read(file)?.unwrap_or_default(), *gateway),
            None => Ok(result(&record, &conf.ranges)),
        }
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(cx)?;
        let key = cx.key()?;
        let Some(mut journal) = Journal::open_existing(&conf.data_dir)? else { return Ok(()) };
        match journal.get(key)? {
            // Seaway's own goes with the attachment.
            Some(r) if !r.delegates.is_empty() => Ok(()),
            Some(_) => Ok(journal.release(key).map(drop)?),
            None => Ok(()),
        }
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let conf = Conf::read(cx)?;
        let key = cx.key()?;
        let record = ipam::find(&conf.data_dir, key)?;
        let Some(record) = record else {
            return Err(Error::new(Code::UnknownContainer, format!("{key} has no addresses")));
        };
        let told = cx.prev.as_ref().map(|p| p.ips.iter().map(|i| i.address.addr).collect::<Vec<_>>());
        match record.addresses.iter().find(|a| told.as_ref().is_some_and(|t| !t.contains(a))) {
            Some(a) => Err(Error::new(Code::Differs, format!("prevResult.ips lacks {a}, which the record has"))),
            None => Ok(()),
        }
    }
}

fn allocate<M: Machine>(cx: &mut Context<'_, M>, conf: &Conf) -> Result<Record, Error> {
    if conf.ranges.is_empty() {
        return Err(bad("ipam.ranges is missing: a list of ranges, e.g. [\"10.1.0.0/24\"]"));
    }
    let (pod, ips) = parse_args(&cx.call.args)?;
    let netns = cx.netns()?;
    let key = cx.key()?;
    let _lock = crate::ops::lock(cx.machine, &conf.data_dir, &key.link())?;
    let request = Request {
        key,
        network: cx.network(),
        netns: cx.netns_path(),
        inode: netns.inode(),
        pod: pod.as_ref(),
        ranges: &conf.ranges,
        within: &[],
        pools: None,
        outside: false,
        requested: &ips,
        mtu: 0,
        now: cx.now,
    };
    Ok(Journal::open(&conf.data_dir)?.allocate(&request)?.0)
}

/// The pools that a pod may have addresses of, by name; empty: the default ones. Where the configuration wants one family
/// alone, its pools among them.
pub(crate) fn pools_of(conf: &NetConf, spec: &PodSpec) -> Result<Vec<Box<str>>, Error> {
    let (Some(file), Some(family)) = (&conf.pools, conf.family) else { return Ok(spec.pools.clone()) };
    let pools = ipam::Pools::read(file)?.unwrap_or_default();
    let asked = if spec.pools.is_empty() { &pools.default } else { &spec.pools };
    let of_family = |n: &str| pools.pools.get(n).is_some_and(|p| p.cidr.family() == family);
    let names: Vec<Box<str>> = asked.iter().filter(|n| of_family(n)).cloned().collect();
    if names.is_empty() {
        let says = format!(
            "no IPPool of {family} has given this node addresses that the pod may have: see `seaway ipam pools`"
        );
        return Err(Error::new(Code::TryAgainLater, says));
    }
    Ok(names)
}

/// The record's addresses as other plugins want them: with their range's length, its first address as gateway, and a
/// default route of each family.
fn result(record: &Record, ranges: &[Cidr]) -> CniResult {
    let mut out = CniResult::default();
    for &addr in &record.addresses {
        let range = ranges.iter().find(|r| r.contains(addr));
        let len = range.map_or(Family::of(addr).bits(), Cidr::len);
        let gateway: Option<IpAddr> = range.and_then(|r| r.nth(1)).filter(|g| *g != addr);
        out.ips.push(Ip { interface: None, address: IpNet { addr, len }, gateway });
        out.routes.extend(plan::destinations(record, Family::of(addr)).into_iter().map(|d| RouteConf::new(d, None)));
    }
    out
}

/// The record's addresses, of pools, and what leads out.
fn of_pools(record: &Record, pools: &ipam::Pools, gateway: Gateway) -> Result<CniResult, Error> {
    let mut out = CniResult::default();
    for &addr in &record.addresses {
        let family = Family::of(addr);
        let (underlay, destinations) = (pools.underlay(addr), plan::destinations(record, family));
        let (len, gw) = match (gateway, underlay) {
            (Gateway::Wire, Some(u)) => (u.subnet.len(), u.gateway),
            (Gateway::Wire, None) => {
                let says = format!(
                    "{addr} is of no IPPool with spec.underlay (any more): nothing says of which network it is"
                );
                return Err(bad(says));
            }
            (Gateway::Node, None) => (family.bits(), Some(plan::gateway(addr))),
            (Gateway::None, None) => (family.bits(), None),
            (_, Some(u)) => {
                return Err(bad(format!(
                    "{addr} is of the network {} outside, to which the node does not lead",
                    u.subnet
                )));
            }
        };
        out.ips.push(Ip { interface: None, address: IpNet { addr, len }, gateway: gw });
        match (gateway, gw) {
            (Gateway::Node, Some(gw)) => {
                if addr.is_ipv4() {
                    out.routes.push(on_link(Cidr::host(gw)));
                }
                out.routes.extend(destinations.into_iter().map(|d| RouteConf::new(d, Some(gw))));
            }
            (Gateway::None, _) => out.routes.extend(destinations.into_iter().map(on_link)),
            (_, Some(gw)) => out.routes.extend(destinations.into_iter().map(|d| RouteConf::new(d, Some(gw)))),
            (_, None) => {}
        }
    }
    Ok(out)
}

fn on_link(dst: Cidr) -> RouteConf {
    RouteConf { scope: Some(iface::LINK), ..RouteConf::new(dst, None) }
}
