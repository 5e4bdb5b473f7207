//! A pass in kube-proxy's numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plane_nft::Walk;
use telemetry::{IpFamily, Plane, Proxy, Synced};
use types::Family;

use super::datapath::Pass;

fn of(family: Family) -> IpFamily {
    match family {
        Family::V4 => IpFamily::V4,
        Family::V6 => IpFamily::V6,
    }
}

/// Tells how the Service rules fared.
pub fn proxy(m: &Proxy, pass: &Pass, walks: &[Walk]) {
    let Some(nft) = pass.planes.iter().find(|p| p.plane == Plane::Nftables) else { return };
    let families: Vec<IpFamily> = pass.intent.families.iter().map(of).collect();
    let (now, ok) = (SystemTime::now(), nft.result.is_ok());
    m.changed(pass.heard.services, pass.heard.slices);
    m.synced(&families, Synced { took: nft.took, ok, full: pass.full, at: now });
    for w in walks {
        m.forgot(of(w.family), w.deleted, w.took);
    }
    if ok {
        let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        for (family, at) in &pass.heard.triggered {
            let ago = u64::try_from(millis).unwrap_or(u64::MAX).saturating_sub(*at);
            m.programmed(of(*family), Duration::from_millis(ago));
        }
    }
}
