//! `sbr`: source-based routing. What an address of this interface sends leaves by this interface: a rule and a table for
//! each address, and the interface's routes there instead of in the main table.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{CniResult, Code, Context, Error, Ip, Plugin, bad};
use kernel_api::Rtnetlink;
use kernel_api::machine::{Machine, Netns};
use kernel_api::rt::{MAIN_TABLE, ObservedRoute, Route, RouteTo, RtRequest, Rule, RuleTo};
use types::{Cidr, Family, IfName};

use crate::inside;

/// See the module.
pub struct Sbr;

/// Where the search for a free table begins.
const FIRST_TABLE: u32 = 100;

/// Held while rules and tables of a namespace are chosen: the reference plugin takes the same lock.
fn locked(path: &str) -> Result<File, Error> {
    let lock = || {
        let f = File::open(path)?;
        f.lock()?;
        Ok(f)
    };
    lock().map_err(|e: std::io::Error| Error::new(Code::Io, format!("lock {path}: {e}")))
}

/// The interface's addresses in the result, and those that no interface is told of.
fn addresses<'a>(prev: &'a CniResult, ifname: &str) -> Vec<&'a Ip> {
    let ours = |n: Option<usize>| n.and_then(|n| prev.interfaces.get(n)).is_none_or(|i| i.name == ifname);
    prev.ips.iter().filter(|i| ours(i.interface)).collect()
}

fn default_of(addr: IpAddr) -> Cidr {
    match addr {
        IpAddr::V4(_) => Cidr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => Cidr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
    .unwrap_or_else(|| Cidr::host(addr))
}

/// What is there.
struct Have {
    rules: Vec<kernel_api::rt::ObservedRule>,
    routes: Vec<ObservedRoute>,
}

impl Have {
    fn of(rt: &mut impl Rtnetlink) -> Result<Self, Error> {
        Ok(Self { rules: rt.rules()?, routes: rt.all_routes()? })
    }

    /// The table that a rule for this very address asks.
    fn table_of(&self, addr: IpAddr) -> Option<u32> {
        let host = Cidr::host(addr);
        self.rules.iter().find_map(|r| match r.rule.to {
            RuleTo::Table(t) if r.rule.src == Some(host) => Some(t),
            _ => None,
        })
    }

    /// The first table from [`FIRST_TABLE`] on that nothing is in and nothing asks, and that is not `taken`.
    fn free_table(&self, taken: &[u32]) -> u32 {
        let asked = self.rules.iter().filter_map(|r| match r.rule.to {
            RuleTo::Table(t) => Some(t),
            _ => None,
        });
        let used: BTreeSet<u32> =
            asked.chain(self.routes.iter().map(|r| r.route.table)).chain(taken.iter().copied()).collect();
        (FIRST_TABLE..).find(|t| !used.contains(t)).unwrap_or(FIRST_TABLE)
    }

    /// A table for each address: the one said, the one it has, or a free one.
    fn tables(&self, ips: &[&Ip], said: Option<u32>) -> Vec<u32> {
        let mut out: Vec<u32> = Vec::new();
        for ip in ips {
            let table = said.or_else(|| self.table_of(ip.address.addr)).unwrap_or_else(|| self.free_table(&out));
            out.push(table);
        }
        out
    }

    /// The interface's routes of the main table.
    fn main_of(&self, link: &IfName) -> Vec<ObservedRoute> {
        let of = |r: &&ObservedRoute| r.route.table == MAIN_TABLE && r.route.to.link() == Some(link);
        self.routes.iter().filter(of).cloned().collect()
    }
}

/// Whether a route belongs to an address rather than to others of its interface.
fn is_of(route: &Route, ip: &Ip) -> bool {
    let addr = ip.address.addr;
    let on_link = match route.to {
        RouteTo::Via { gateway, .. } => {
            Family::of(gateway) == Family::of(addr) && ip.address.network().contains(gateway)
        }
        _ => true,
    };
    route.family() == Family::of(addr) && route.src.is_none_or(|s| s == addr) && on_link
}

/// What is to be made: routes, then rules, so that no packet asks an empty table.
fn plan(have: &Have, ips: &[&Ip], link: &IfName, tables: &[u32]) -> (Vec<RtRequest>, Vec<Rule>) {
    let mut routes: Vec<Route> = Vec::new();
    let main = have.main_of(link);
    for (ip, table) in ips.iter().zip(tables) {
        let addr = ip.address.addr;
        let mut own: Vec<Route> = Vec::new();
        for r in &main {
            // What is of no address is of all: nothing is lost.
            let nobodys = r.route.family() == Family::of(addr) && !ips.iter().any(|i| is_of(&r.route, i));
            if is_of(&r.route, ip) || nobodys {
                own.push(Route { table: *table, ..r.route.clone() });
            }
        }
        if let Some(gateway) = ip.gateway {
            let dst = default_of(gateway);
            // The one that the plugin before made may say more; it moves.
            if !own.iter().any(|r| r.dst == dst) {
                own.push(Route { table: *table, ..Route::new(dst, RouteTo::via(gateway, link.clone())) });
            }
        }
        routes.extend(own);
    }
    // A gateway must be reachable by what is there already.
    routes.sort_by_key(|r| matches!(r.to, RouteTo::Via { .. }));
    routes.dedup();
    let new = ips.iter().zip(tables).filter(|(i, _)| have.table_of(i.address.addr).is_none());
    let rules = new.map(|(i, t)| Rule::from(Cidr::host(i.address.addr), *t)).collect();
    (routes.into_iter().map(RtRequest::RouteReplace).collect(), rules)
}

impl<M: Machine> Plugin<M> for Sbr {
    fn add(&self, cx: &mut Context<'_, M>) -> Result<CniResult, Error> {
        let wanted = cx.fields().number("table", 0..=u32::MAX)?.filter(|t| *t > 0);
        if let Some(t @ 253..=255) = wanted {
            return Err(bad(format!("table is {t}: that is one of the kernel's own tables; choose another")));
        }
        let prev = cx.chained()?.clone();
        let ifname = cx.ifname()?;
        let ips = addresses(&prev, ifname.as_str());
        if ips.is_empty() {
            return Err(bad(format!("prevResult has no address of {ifname}: there is no source to route by")));
        }
        let netns = cx.netns()?;
        let path = cx.netns_path();
        let _lock = locked(path)?;
        let mut rt = inside(&netns, path)?;
        if rt.link(&ifname)?.is_none() {
            return Err(Error::new(Code::InvalidEnvironment, format!("there is no interface {ifname} in {path}")));
        }
        let have = Have::of(&mut rt)?;
        let (routes, rules) = plan(&have, &ips, &ifname, &have.tables(&ips, wanted));
        let mut moved = have.main_of(&ifname);
        // Those through a gateway go first: whatever is left half-way, a gateway is reachable where it is needed.
        moved.sort_by_key(|r| !matches!(r.route.to, RouteTo::Via { .. }));
        let done = (|| {
            rt.run(&routes)?;
            rt.run(&rules.iter().cloned().map(RtRequest::RuleAdd).collect::<Vec<_>>())?;
            for r in &moved {
                match netns.delete_route(r) {
                    Err(e) if !e.absent() => return Err(e),
                    _ => {}
                }
            }
            Ok(())
        })();
        if let Err(e) = done {
            // Everything back to where it was.
            for r in moved.iter().rev() {
                let _ = rt.run(&[RtRequest::RouteReplace(r.route.clone())]);
            }
            for r in rules {
                let _ = rt.run(&[RtRequest::RuleDel(r)]);
            }
            for r in routes {
                if let RtRequest::RouteReplace(r) = r
                    && !have.routes.iter().any(|h| h.route == r)
                {
                    let _ = rt.run(&[RtRequest::RouteDel(r)]);
                }
            }
            return Err(Error::new(Code::Kernel, format!("in {path}: {e}")));
        }
        Ok(prev)
    }

    fn del(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let key = cx.key()?.clone();
        let Some(netns) = cx.netns_if_there()? else { return Ok(()) };
        let path = cx.netns_path();
        let _lock = locked(path)?;
        let mut rt = inside(&netns, path)?;
        // Those the interface has, and those it had.
        let mut ours: BTreeSet<IpAddr> =
            rt.addresses()?.into_iter().filter(|a| a.link == key.ifname).map(|a| a.addr).collect();
        let prev = cx.prev.iter().flat_map(|p| addresses(p, key.ifname.as_str()));
        ours.extend(prev.map(|i| i.address.addr));
        for r in rt.rules()? {
            let host = r.rule.src.filter(|s| s.len() == Family::of(s.addr()).bits());
            if host.is_some_and(|s| ours.contains(&s.addr())) {
                match netns.delete_rule(&r) {
                    Err(e) if !e.absent() => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn check(&self, cx: &mut Context<'_, M>) -> Result<(), Error> {
        let prev = cx.chained()?.clone();
        let ifname = cx.ifname()?;
        let netns = cx.netns()?;
        let path = cx.netns_path();
        let have = Have::of(&mut inside(&netns, path)?)?;
        let mut out = Vec::new();
        for ip in addresses(&prev, ifname.as_str()) {
            let addr = ip.address.addr;
            let Some(table) = have.table_of(addr) else {
                out.push(format!("there is no rule for packets from {addr}"));
                continue;
            };
            let Some(gateway) = ip.gateway else { continue };
            let leads = |r: &ObservedRoute| {
                r.route.table == table && r.route.dst == default_of(gateway) && r.route.to.link() == Some(&ifname)
            };
            if !have.routes.iter().any(leads) {
                out.push(format!("table {table} has no default route by {ifname}"));
            }
        }
        if out.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::Differs, format!("{ifname} in {path}: routing is not as ADD made it"))
            .with(out.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_free_when_nothing_is_in_it_and_nothing_asks_it() {
        let link: IfName = "eth0".parse().unwrap();
        let dst = "10.0.0.0/8".parse().unwrap();
        let route = Route { table: 101, ..Route::new(dst, RouteTo::Link(link)) };
        let rule = Rule { priority: Some(1), ..Rule::from("10.0.0.1/32".parse().unwrap(), 100) };
        use kernel_api::rt::ROUTE_PROTOCOL;
        let have = Have {
            rules: vec![kernel_api::rt::ObservedRule { protocol: ROUTE_PROTOCOL, rule }],
            routes: vec![ObservedRoute { protocol: 2, route }],
        };
        assert_eq!((have.free_table(&[]), have.free_table(&[102])), (102, 103));
        assert_eq!(have.table_of([10, 0, 0, 1].into()), Some(100));
        assert_eq!(have.table_of([10, 0, 0, 2].into()), None);
    }
}
