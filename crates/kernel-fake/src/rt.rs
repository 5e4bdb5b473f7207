//! A fake rtnetlink of one network namespace.
//!
//! It holds links, addresses, routes, rules, permanent neighbours, forwarding entries, VLANs of ports, queueing
//! disciplines and filters, refuses what the kernel refuses with
//! the kernel's errno, and lets go of what the kernel lets go of when a link goes down or away. What it leaves out:
//! link-local addresses, learned neighbours, multipath, the choice of a table by rules.

mod check;
mod link;
mod policy;
mod state;
mod tc;

use kernel_api::rt::{
    Address, FdbEntry, Link, MAIN_TABLE, Neighbour, NewTun, ObservedRoute, ObservedRule, PortVlan, ROUTE_PROTOCOL,
    RtRequest,
};
use kernel_api::tc::{Filter, Hook, Qdisc};
use kernel_api::{RequestError, Rtnetlink, Sysctl, errno};

use crate::fault::{Faults, apply};
use crate::sysctl::FakeSysctls;

pub use state::Namespace;

/// A network namespace with links and sysctls, and faults to come.
#[derive(Debug, Clone, Default)]
pub struct FakeRt {
    /// What is there.
    pub state: Namespace,
    /// Its knobs.
    pub sysctls: FakeSysctls,
    /// Faults to come; each request and each sysctl write is one effect.
    pub faults: Faults,
    /// Every request that was done, in order.
    pub log: Vec<RtRequest>,
}

impl FakeRt {
    /// A namespace with loopback up and nothing else.
    #[must_use]
    pub fn new() -> Self {
        let mut this = Self::default();
        this.state.add_loopback();
        this.state.add_rules();
        this.sysctls.link_added("lo");
        this
    }

    /// What another program does with `ip`: adds a hardware link, up, with addresses.
    pub fn plug(&mut self, name: &types::IfName, mtu: u32, addresses: &[(std::net::IpAddr, u8)]) {
        self.state.plug(name, mtu, addresses);
        self.sysctls.link_added(name.as_str());
    }

    /// What another program does with `ip route`: adds a route with its own protocol number, unchecked.
    pub fn foreign_route(&mut self, route: kernel_api::rt::Route, protocol: u8) {
        self.state.routes.push(ObservedRoute { protocol, route });
    }

    /// Makes a tap or tun device, which rtnetlink cannot.
    ///
    /// # Errors
    /// EBUSY when the name is taken, and what is scripted.
    pub fn add_tun(&mut self, tun: &NewTun) -> Result<(), RequestError> {
        let what = format!("tuntap add {}", tun.name);
        let fault = self.faults.step();
        apply(fault, &what, || self.with_knobs(|s| s.tun_add(tun)).map_err(|e| RequestError::new(what.as_str(), e)))
    }

    /// Runs a change of the links, after which the knobs are of those that are there.
    pub(crate) fn with_knobs(&mut self, run: impl FnOnce(&mut Namespace) -> Result<(), i32>) -> Result<(), i32> {
        let before: Vec<_> = self.state.links.iter().map(|l| l.name.clone()).collect();
        let done = run(&mut self.state);
        for link in &self.state.links {
            if !before.contains(&link.name) {
                self.sysctls.link_added(link.name.as_str());
            }
        }
        for name in before {
            if self.state.link(&name).is_none() {
                self.sysctls.link_gone(&name);
            }
        }
        done
    }

    fn alive(&self, what: &str) -> Result<(), RequestError> {
        if self.faults.crashed() { Err(RequestError::new(what, errno::EIO)) } else { Ok(()) }
    }

    fn one(&mut self, r: &RtRequest) -> Result<(), RequestError> {
        let fault = self.faults.step();
        let what = r.to_string();
        apply(fault, &what, || {
            let done = self.with_knobs(|s| s.apply(r, ROUTE_PROTOCOL));
            done.map_err(|e| RequestError::new(what.as_str(), e))?;
            self.log.push(r.clone());
            Ok(())
        })
    }
}

impl Rtnetlink for FakeRt {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        self.alive("link show")?;
        Ok(self.state.links.clone())
    }
    fn link(&mut self, name: &types::IfName) -> Result<Option<Link>, RequestError> {
        self.alive("link show")?;
        Ok(self.state.link(name).cloned())
    }
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        self.alive("address show")?;
        Ok(self.state.addresses.clone())
    }
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.alive("route show")?;
        Ok(self.state.routes.iter().filter(|r| r.route.table == MAIN_TABLE).cloned().collect())
    }
    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.alive("route show table all")?;
        Ok(self.state.routes.clone())
    }
    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError> {
        self.alive("rule show")?;
        Ok(self.state.rules.clone())
    }
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        self.alive("neigh show nud permanent")?;
        Ok(self.state.neighbours.clone())
    }
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        self.alive("fdb show")?;
        Ok(self.state.fdb.clone())
    }
    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError> {
        self.alive("vlan show")?;
        Ok(self.state.port_vlans.clone())
    }
    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError> {
        self.alive("qdisc show")?;
        Ok(self.state.qdiscs.clone())
    }
    fn filters(&mut self, link: &types::IfName, hook: Hook) -> Result<Vec<Filter>, RequestError> {
        self.alive("filter show")?;
        self.state.need(link).map_err(|e| RequestError::new(format!("filter show dev {link} {hook}"), e))?;
        let mut found: Vec<Filter> =
            self.state.filters.iter().filter(|f| f.link == *link && f.hook == hook).cloned().collect();
        found.sort_by_key(|f| f.priority);
        Ok(found)
    }
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        let mut first = None;
        for (index, r) in requests.iter().enumerate() {
            if let Err(e) = self.one(r) {
                first.get_or_insert(RequestError { index: Some(index), ..e });
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Sysctl for FakeRt {
    fn get(&mut self, path: &str) -> Result<Option<String>, RequestError> {
        self.alive(path)?;
        Ok(self.sysctls.value(path).map(Into::into))
    }
    fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
        let fault = self.faults.step();
        apply(fault, &format!("sysctl -w {path}={value}"), || self.sysctls.write(path, value))
    }
}
