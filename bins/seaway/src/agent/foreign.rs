//! Others on the node that Services meet: their rules, and kube-proxy.

use std::fmt;

use anyhow::bail;
use kernel::Nftables;
use plan::Refused;
use plane_nft::foreign::{MARKERS, findings};

use crate::kube_proxy;

/// `--service-proxy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceProxy {
    /// Serve Services; refuse to start beside a kube-proxy that is running
    On,
    /// Serve Services although kube-proxy is running, to take over from it
    Beside,
    /// Leave Services to kube-proxy
    Off,
}

impl fmt::Display for ServiceProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Beside => "beside",
            Self::Off => "off",
        })
    }
}

impl ServiceProxy {
    /// Two proxies at once is what nobody wants by accident.
    ///
    /// # Errors
    /// When kube-proxy is running and nobody said that it may.
    pub fn check(self) -> anyhow::Result<()> {
        if self != Self::On {
            return Ok(());
        }
        if let Some(how) = kube_proxy::active() {
            bail!(
                "kube-proxy is running on this node ({how}) and serves Services already. To replace it without losing a \
                 connection: start this agent with --service-proxy beside, then run `seaway services takeover`. To leave \
                 Services to it: --service-proxy off. See docs/takeover.md"
            );
        }
        Ok(())
    }
}

/// What gets in the way now.
pub fn look(nft: &mut Nftables, mode: ServiceProxy, intent: &intent::NodeIntent) -> Vec<Refused> {
    let rules = match nft.foreign(&MARKERS) {
        Ok(r) => r,
        Err(e) => {
            tracing::warn!("others' rules cannot be looked at: {e}");
            return Vec::new();
        }
    };
    let pods = if intent.cluster_cidrs.is_empty() {
        intent.pod_cidrs.iter().copied().collect()
    } else {
        intent.cluster_cidrs.clone()
    };
    // Where its rules are, it may be running; where they are not, nobody needs to look for it.
    let theirs = plane_nft::foreign::has_kube_proxy(&rules);
    let running = if theirs { kube_proxy::active() } else { None };
    let mut out = findings(&rules, &pods, running.is_some() || mode == ServiceProxy::Off);
    if let (Some(how), ServiceProxy::On) = (running, mode) {
        out.push(Refused {
            object: "kube-proxy".into(),
            field: "process".into(),
            why: format!(
                "it was started beside Seaway ({how}), and both serve Services: stop it and run `seaway services \
                 takeover`, or give it the node (docs/takeover.md)"
            ),
        });
    }
    out
}
