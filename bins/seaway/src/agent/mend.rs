//! What the CNI plugin made and somebody unmade: interfaces of living pods are made again, records of dead ones go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use ipam::Key;
use kernel::Linux;
use types::OwnedName;

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
    orphans: BTreeMap<OwnedName, Duration>,
}

impl Mend {
    /// Looks at every record of a pass. Says false when there is something that must be looked at again soon.
    pub fn run(&mut self, ipam_dir: &Path, pass: &Pass, now: Duration) -> bool {
        let mut done = true;
        let mut links = BTreeMap::new();
        let mut dead = BTreeMap::new();
        for r in &pass.records {
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
        done
    }
}
