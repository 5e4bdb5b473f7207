//! The fabric's effects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kernel_api::rt::{Address, FdbEntry, Link, Neighbour, ObservedRoute, ObservedRule, PortVlan, RtRequest};
use kernel_api::tc::{Filter, Hook, Qdisc};
use kernel_api::{RequestError, Rtnetlink, Sysctl, errno};
use plan::{Caps, Kernel, KernelError, Next};
use types::{IfName, OwnedName};

use crate::Fabric;
use crate::image::{Image, knob, route_link};
use crate::parse::{Observation, parse};
use crate::render::Op;

/// Observes and commits through a kernel, the real one or its fake.
#[derive(Debug)]
pub struct FabricKernel<K> {
    kernel: K,
    /// Links whose sysctls matter: those by which other nodes may be reached.
    uplinks: Vec<IfName>,
}

impl<K: Rtnetlink + Sysctl> FabricKernel<K> {
    /// The fabric on `kernel`, on a machine with these capabilities.
    #[must_use]
    pub fn new(kernel: K, caps: &Caps) -> Self {
        let mut this = Self { kernel, uplinks: Vec::new() };
        this.set_caps(caps);
        this
    }

    /// The machine's links have changed.
    pub fn set_caps(&mut self, caps: &Caps) {
        let mut links: Vec<IfName> = caps.uplink.iter().map(|u| &u.name).chain(caps.links.keys()).cloned().collect();
        links.retain(|l| OwnedName::recognise(l).is_err());
        links.sort();
        links.dedup();
        self.uplinks = links;
    }

    /// The kernel underneath.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    fn sysctls(&mut self, devices: &[IfName]) -> Result<BTreeMap<String, String>, RequestError> {
        let mut paths: Vec<String> = vec![knob::FORWARD_V4.into(), knob::FORWARD_V6.into(), knob::RP_FILTER_ALL.into()];
        paths.extend(knob::CONNECTION_TRACKING.map(String::from));
        paths.extend(self.uplinks.iter().chain(devices).map(knob::rp_filter));
        paths.extend(self.uplinks.iter().map(knob::accept_ra));
        let mut out = BTreeMap::new();
        for path in paths {
            if let Some(value) = self.kernel.get(&path)? {
                out.insert(path, value);
            }
        }
        Ok(out)
    }

    /// Everything the kernel says of links and what is on them; sysctls are read when an image is made of it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn rows(&mut self) -> Result<Observation, KernelError> {
        // Links first: a row on a link that comes later is not looked at, one on a link that went is dropped.
        let rows = |k: &mut K| {
            Ok(Observation {
                links: k.links()?,
                addresses: k.addresses()?,
                routes: k.routes()?,
                neighbours: k.neighbours()?,
                fdb: k.fdb()?,
                sysctls: BTreeMap::new(),
            })
        };
        rows(&mut self.kernel).map_err(|e| unseen("links, addresses, routes, neighbours and forwarding entries", e))
    }

    /// What of it is the fabric's.
    ///
    /// # Errors
    /// When sysctls cannot be read.
    pub fn image(&mut self, rows: Observation) -> Result<Image, KernelError> {
        let ours = |l: &&Link| OwnedName::recognise(&l.name).is_ok_and(|n| !n.is_pod_link());
        let devices: Vec<IfName> = rows.links.iter().filter(ours).map(|l| l.name.clone()).collect();
        let sysctls = self.sysctls(&devices).map_err(|e| unseen("sysctls", e))?;
        Ok(parse(Observation { sysctls, ..rows }))
    }

    /// Runs requests as one send; the deletes among them that find nothing have what they wanted.
    fn run(&mut self, ops: &[&RtRequest]) -> Result<(), KernelError> {
        let mut rest: Vec<RtRequest> = ops.iter().map(|r| (*r).clone()).collect();
        let mut again = false;
        while !rest.is_empty() {
            let Err(e) = self.kernel.run(&rest) else { return Ok(()) };
            let at = e.index.filter(|i| *i < rest.len()).unwrap_or(0);
            let request = rest[at].clone();
            // The kernel took each request by itself, so those after the refused one were tried, but of several
            // refusals only the first is told. A second run tells the next; what it finds done is no refusal.
            let benign = (is_delete(&request) && e.absent())
                || (again && is_add(&request) && e.exists())
                || (on_pod_link(&request) && e.errno == errno::ENODEV);
            if !benign {
                return Err(failed(&Op::Rt(request), e));
            }
            rest.drain(..=at);
            again = true;
        }
        Ok(())
    }
}

/// Whether it concerns a pod link: the CNI plugin may delete one at any moment, and then nothing is left to do on it.
fn on_pod_link(r: &RtRequest) -> bool {
    let link = match r {
        RtRequest::RouteReplace(r) => route_link(r),
        RtRequest::LinkSet(s) => Some(&s.name),
        _ => None,
    };
    link.is_some_and(|l| OwnedName::recognise(l).is_ok_and(|n| n.is_pod_link()))
}

fn is_add(r: &RtRequest) -> bool {
    matches!(r, RtRequest::LinkAdd(_) | RtRequest::RouteAdd(_))
}

fn is_delete(r: &RtRequest) -> bool {
    matches!(
        r,
        RtRequest::LinkDel(_)
            | RtRequest::AddressDel(_)
            | RtRequest::RouteDel(_)
            | RtRequest::NeighbourDel(_)
            | RtRequest::FdbDel(_)
            | RtRequest::RuleDel(_)
            | RtRequest::PortVlanDel(_)
            | RtRequest::QdiscDel(..)
            | RtRequest::FilterDel(..)
    )
}

fn failed(op: &Op, mut e: RequestError) -> KernelError {
    let next = match e.errno {
        errno::EPERM | errno::EACCES | errno::EOPNOTSUPP | errno::EAFNOSUPPORT => Next::FailClosed,
        errno::EBUSY | errno::ENOBUFS => Next::RetrySoon,
        // Something is there that we did not see, or is not there that we saw.
        _ => Next::Reobserve,
    };
    let hint = match (op, e.errno) {
        (Op::Rt(RtRequest::RouteAdd(_)), errno::EEXIST) => {
            Some("another program has a route to this destination: remove it, or the program")
        }
        (Op::Rt(RtRequest::LinkAdd(_)), errno::EEXIST | errno::EADDRINUSE) => {
            Some("another device has this VNI and port: remove it, or choose another VNI")
        }
        (Op::Rt(RtRequest::LinkAdd(_)), errno::EOPNOTSUPP) => {
            Some("this kernel has no VXLAN: load the module `vxlan` (CONFIG_VXLAN), or use backend host-gw")
        }
        (_, errno::EPERM | errno::EACCES) => Some("the agent needs CAP_NET_ADMIN in the node's network namespace"),
        _ => None,
    };
    if let Some(h) = hint {
        e.message = Some(e.message.map_or_else(|| h.into(), |m| format!("{m}; {h}")));
    }
    KernelError { op: op.to_string(), source: Box::new(e), next }
}

fn unseen(what: &str, e: RequestError) -> KernelError {
    KernelError { op: format!("observe {what}"), source: Box::new(e), next: Next::RetrySoon }
}

impl<K: Rtnetlink + Sysctl> Kernel<Fabric> for FabricKernel<K> {
    fn observe(&mut self) -> Result<Image, KernelError> {
        let rows = self.rows()?;
        self.image(rows)
    }

    fn commit(&mut self, batch: &[Op]) -> Result<(), KernelError> {
        let mut run: Vec<&RtRequest> = Vec::new();
        for op in batch {
            match op {
                Op::Rt(r) => run.push(r),
                Op::Sysctl { path, value } => {
                    self.run(&std::mem::take(&mut run))?;
                    self.kernel.set(path, value).map_err(|e| failed(op, e))?;
                }
            }
        }
        self.run(&run)
    }
}

/// Two halves of a kernel as one: the real one opens netlink and /proc/sys apart.
#[derive(Debug)]
pub struct Joined<R, S> {
    /// Links and their rows.
    pub rt: R,
    /// Sysctls.
    pub sysctls: S,
}

impl<R: Rtnetlink, S> Rtnetlink for Joined<R, S> {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        self.rt.links()
    }
    fn link(&mut self, name: &IfName) -> Result<Option<Link>, RequestError> {
        self.rt.link(name)
    }
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        self.rt.addresses()
    }
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.rt.routes()
    }
    fn link_towards(&mut self, to: IpAddr) -> Result<Option<IfName>, RequestError> {
        self.rt.link_towards(to)
    }
    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        self.rt.all_routes()
    }
    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError> {
        self.rt.rules()
    }
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        self.rt.neighbours()
    }
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        self.rt.fdb()
    }
    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError> {
        self.rt.port_vlans()
    }
    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError> {
        self.rt.qdiscs()
    }
    fn filters(&mut self, link: &IfName, hook: Hook) -> Result<Vec<Filter>, RequestError> {
        self.rt.filters(link, hook)
    }
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        self.rt.run(requests)
    }
}

impl<R, S: Sysctl> Sysctl for Joined<R, S> {
    fn get(&mut self, path: &str) -> Result<Option<String>, RequestError> {
        self.sysctls.get(path)
    }
    fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
        self.sysctls.set(path, value)
    }
}
