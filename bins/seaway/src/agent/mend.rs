//! What the CNI plugin made and somebody unmade: interfaces of living pods are made again, records of dead ones go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use ipam::Key;
use kernel::Linux;
use kernel_api::{Machine, Nft, Rtnetlink};
use types::OwnedName;

use super::conflist::pod_mtu;
use super::datapath::Pass;

/// A link must be missing, and a namespace gone, for so long before it is acted on: an ADD or DEL may be at it.
const GRACE: Duration = Duration::from_millis(500);
/// A runtime that lost a DEL will not send it again; one that is merely slow has this long.
const DEAD: Duration = Duration::from_secs(20);

/// Since when what is missing.
#[derive(Debug, Default)]
pub struct Mend {
    links: BTreeMap<Key, Duration>,
    dead: BTreeMap<Key, Duration>,
    delegated: BTreeMap<Key, Duration>,
    orphans: BTreeMap<OwnedName, Duration>,
    /// The generation of nf_tables at which every port led where it should, and the records with ports then.
    ports: Option<(u32, Vec<ipam::Record>)>,
}

impl Mend {
    /// Looks at every record of a pass. Says false when there is something that must be looked at again soon.
    pub fn run(&mut self, ipam_dir: &Path, pass: &Pass, now: Duration) -> bool {
        let mut done = true;
        let mtu = pod_mtu(pass).filter(|_| pass.ok());
        let mut links = BTreeMap::new();
        let mut dead = BTreeMap::new();
        for r in pass.records.iter() {
            if cni::namespace_gone(r) {
                let since = self.dead.get(&r.key).copied().unwrap_or(now);
                if now.saturating_sub(since) >= DEAD {
                    match cni::remove_if_gone(&mut Linux, plugins::by_name, ipam_dir, &r.key) {
                        Ok(true) => {
                            tracing::warn!("{}: its namespace {} is gone and no DEL came: released", r.key, r.netns)
                        }
                        Ok(false) => {}
                        Err(e) => tracing::error!("{}: cannot be released: {}", r.key, e.msg),
                    }
                } else {
                    dead.insert(r.key.clone(), since);
                }
            } else if r.is_routed() && !pass.facts.pod_links.contains(&r.link) {
                let since = self.links.get(&r.key).copied().unwrap_or(now);
                if now.saturating_sub(since) >= GRACE {
                    match cni::rewire(&mut Linux, ipam_dir, &r.key) {
                        Ok(()) => tracing::warn!("{}: {} was gone and is there again", r.key, r.link),
                        Err(e) => {
                            tracing::error!("{}: {} is gone and cannot be made again: {}", r.key, r.link, e.msg);
                            links.insert(r.key.clone(), since);
                        }
                    }
                } else {
                    links.insert(r.key.clone(), since);
                }
                done = false;
            } else if let Some(mtu) = mtu.filter(|m| r.is_routed() && *m != r.mtu) {
                match cni::set_mtu(&mut Linux, ipam_dir, &r.key, mtu) {
                    Ok(()) => tracing::info!("{}: MTU {} became {mtu}", r.key, r.mtu),
                    Err(e) => {
                        tracing::error!("{}: MTU {} cannot become {mtu}: {}", r.key, r.mtu, e.msg);
                        done = false;
                    }
                }
            }
        }
        // Host ends that a DEL took down and that are still there: who waits for the kernel in its place was killed. One
        // that is up may be a living pod's whose record was lost.
        let owned: BTreeSet<&OwnedName> = pass.records.iter().map(|r| &r.link).collect();
        let mut orphans = BTreeMap::new();
        for link in pass.facts.pod_links_down.iter().filter(|l| !owned.contains(l)) {
            let since = self.orphans.get(link).copied().unwrap_or(now);
            if now.saturating_sub(since) >= GRACE {
                match cni::remove_orphan(&mut Linux, ipam_dir, link) {
                    Ok(true) => tracing::warn!("{link} belonged to nobody: deleted"),
                    Ok(false) => {}
                    Err(e) => tracing::error!("{link} belongs to nobody and cannot be deleted: {}", e.msg),
                }
            } else {
                orphans.insert(link.clone(), since);
            }
            done = false;
        }
        (self.links, self.dead, self.orphans) = (links, dead, orphans);
        let ports = self.ports(ipam_dir, pass).unwrap_or_else(|e| {
            tracing::error!("host ports cannot be looked at: {}", e.msg);
            false
        });
        let delegated = self.delegated(ipam_dir, pass, now);
        let limits = limits(ipam_dir, pass);
        done && ports && delegated && limits
    }

    /// Pods whose first interface another plugin made (`bridge`, `macvlan`, ...) and somebody deleted, or to which the node
    /// no longer leads. A deletion inside a pod wakes nobody: it is seen in the next pass.
    fn delegated(&mut self, ipam_dir: &Path, pass: &Pass, now: Duration) -> bool {
        let living = |r: &&ipam::Record| !r.is_routed() && !cni::namespace_gone(r);
        let records: Vec<&ipam::Record> = pass.records.iter().filter(living).collect();
        if records.is_empty() {
            self.delegated.clear();
            return true;
        }
        let routes = Linux.host().map_err(|e| e.to_string()).and_then(|mut rt| rt.routes().map_err(|e| e.to_string()));
        let routes = match routes {
            Ok(r) => r,
            Err(e) => {
                tracing::error!("the node's routes to pods cannot be looked at: {e}");
                return false;
            }
        };
        let not_led = cni::not_led(&pass.records, &routes);
        let mut missing = BTreeMap::new();
        for r in records {
            if !not_led.contains(&r.key) && cni::has_interface(&mut Linux, r) {
                continue;
            }
            let since = self.delegated.get(&r.key).copied().unwrap_or(now);
            missing.insert(r.key.clone(), since);
            if now.saturating_sub(since) < GRACE {
                continue;
            }
            let name = r.pod.as_ref().map(|p| types::ObjectName::new(&p.namespace, &p.name));
            let further = name.and_then(|n| pass.intent.pods.get(&n)).map_or(&[][..], |s| &s.networks);
            match cni::reattach(&mut Linux, plugins::by_name, ipam_dir, &r.key, further) {
                Ok(true) => {
                    tracing::warn!("{}: what was gone of its interfaces or the routes to it is there again", r.key)
                }
                // An ADD that was killed: its runtime's to undo.
                Ok(false) => drop(missing.remove(&r.key)),
                Err(e) => tracing::error!("{}: its interfaces are gone and cannot be made again: {}", r.key, e.msg),
            }
        }
        self.delegated = missing;
        self.delegated.is_empty()
    }

    /// Ports of the node that no longer lead to their pods, as after `nft flush ruleset`. Nothing is read while nobody
    /// commits to nf_tables and no record changes.
    fn ports(&mut self, ipam_dir: &Path, pass: &Pass) -> Result<bool, cni::Error> {
        let with: Vec<ipam::Record> = pass.records.iter().filter(|r| !r.ports.is_empty()).cloned().collect();
        if with.is_empty() {
            self.ports = None;
            return Ok(true);
        }
        let mut nft = Linux.nft().map_err(|e| cni::Error::new(cni::Code::Kernel, format!("open nf_tables: {e}")))?;
        let now = nft.generation()?;
        if self.ports.as_ref().is_some_and(|(seen, records)| *seen == now && *records == with) {
            return Ok(true);
        }
        let mut done = true;
        for key in cni::unmapped(&mut Linux, &with)? {
            match cni::remap(&mut Linux, ipam_dir, key) {
                Ok(false) => {}
                Ok(true) => tracing::warn!("{key}: its host ports were gone and are there again"),
                Err(e) => {
                    done = false;
                    tracing::error!("{key}: its host ports are gone and cannot be made again: {}", e.msg);
                }
            }
        }
        // What was just committed is looked at once more in the next pass.
        self.ports = Some((now, with)).filter(|_| done);
        Ok(done)
    }
}

/// Limits that the pods' annotations say otherwise by now.
pub fn limits(ipam_dir: &Path, pass: &Pass) -> bool {
    let mut done = true;
    for r in pass.records.iter() {
        let name = r.pod.as_ref().map(|p| types::ObjectName::new(&p.namespace, &p.name));
        let Some(spec) = name.and_then(|n| pass.intent.pods.get(&n)) else { continue };
        let another = r.pod.as_ref().and_then(|p| p.uid.as_ref()).is_some_and(|u| *u != spec.uid);
        let want = cni::of_spec(&spec.bandwidth);
        if another || spec.refused.is_some() || want == r.limits {
            continue;
        }
        match cni::reshape(&mut Linux, ipam_dir, &r.key, &want) {
            Ok(true) => tracing::info!("{}: its limits are as its annotations say now", r.key),
            Ok(false) => {}
            Err(e) => {
                done = false;
                tracing::error!("{}: its limits cannot be changed: {}", r.key, e.msg);
            }
        }
    }
    done
}
