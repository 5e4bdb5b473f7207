//! A pass in kube-proxy's numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use intent::{Endpoint, NodeIntent, ServiceChanges, ServicePort, TrafficPolicy};
use plane_nft::Walk;
use resolve::Kind;
use telemetry::{IpFamily, LocalPolicy, Plane, Proxy, Synced};
use types::{Family, ObjectName};

use super::datapath::Pass;

fn of(family: Family) -> IpFamily {
    match family {
        Family::V4 => IpFamily::V4,
        Family::V6 => IpFamily::V6,
    }
}

/// Services with a policy Local and no endpoint on this node, though others have some: their traffic is dropped here.
#[derive(Debug, Default)]
pub struct NoLocal(BTreeMap<ObjectName, Vec<(LocalPolicy, IpFamily)>>);

impl NoLocal {
    /// Follows an intent, and tells how many there are.
    pub fn follow(&mut self, m: &Proxy, intent: &NodeIntent, changed: &ServiceChanges) {
        match changed {
            ServiceChanges::All => {
                self.0.clear();
                let local = |p: &ServicePort| [p.internal_policy, p.external_policy].contains(&TrafficPolicy::Local);
                let names: BTreeSet<_> =
                    intent.services.iter().filter(|(_, p)| local(p)).map(|(k, _)| &k.service).collect();
                names.into_iter().for_each(|n| self.one(intent, n));
            }
            ServiceChanges::Some(names) => names.keys().for_each(|n| self.one(intent, n)),
        }
        for policy in LocalPolicy::ALL {
            for family in IpFamily::ALL {
                let n = self.0.values().flatten().filter(|x| **x == (*policy, *family)).count();
                m.no_local(*policy, *family, n);
            }
        }
    }

    fn one(&mut self, intent: &NodeIntent, name: &ObjectName) {
        let mut found = Vec::new();
        for (_, p) in intent.ports_of(name) {
            let outside = p.node_port.is_some() || p.outside_ips().next().is_some();
            let asked = [
                (LocalPolicy::Internal, p.internal_policy == TrafficPolicy::Local),
                (LocalPolicy::External, p.external_policy == TrafficPolicy::Local && outside),
            ];
            for f in p.families.iter() {
                let has = |set: &types::FlatSet<Endpoint>| set.iter().any(|e| Family::of(e.addr) == f);
                if has(&p.endpoints) && !has(&p.local_endpoints) {
                    found.extend(asked.iter().filter(|a| a.1).map(|a| (a.0, of(f))));
                }
            }
        }
        if found.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name.clone(), found);
        }
    }
}

/// When what no pass has programmed yet happened, in milliseconds since 1970: a pass that fails leaves it to the next.
#[derive(Debug, Default)]
pub struct Unprogrammed(Vec<(Family, u64)>);

impl Unprogrammed {
    /// The oldest are those that tell of trouble; beyond so many, later ones are not kept.
    const MOST: usize = 65_536;

    fn add(&mut self, more: &[(Family, u64)]) {
        let room = Self::MOST.saturating_sub(self.0.len());
        self.0.extend(more.iter().take(room));
    }
}

/// Tells how the Service rules fared.
pub fn proxy(m: &Proxy, pass: &Pass, walks: &[Walk], unprogrammed: &mut Unprogrammed) {
    let Some(nft) = pass.planes.iter().find(|p| p.plane == Plane::Nftables) else { return };
    let families: Vec<IpFamily> = pass.intent.families.iter().map(of).collect();
    let (now, ok) = (SystemTime::now(), nft.result.is_ok());
    m.changed(pass.heard.of(Kind::Service), pass.heard.of(Kind::EndpointSlice));
    m.synced(&families, Synced { took: nft.took, ok, full: pass.full, at: now });
    for w in walks {
        m.forgot(of(w.family), w.deleted, w.took);
    }
    unprogrammed.add(&pass.heard.triggered);
    if ok {
        let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        for (family, at) in unprogrammed.0.drain(..) {
            let ago = u64::try_from(millis).unwrap_or(u64::MAX).saturating_sub(at);
            m.programmed(of(family), Duration::from_millis(ago));
        }
    }
}

#[cfg(test)]
mod tests {
    use telemetry::{Build, Metrics};
    use types::{FamilySet, Proto};

    use super::*;

    #[test]
    fn services_that_are_dropped_here_are_counted() {
        let m = Metrics::new(Build { version: "", commit: "" });
        let mut i = NodeIntent::empty("n".parse().unwrap());
        let mut p = ServicePort {
            node_port: Some(30080),
            families: FamilySet { v4: true, v6: false },
            external_policy: TrafficPolicy::Local,
            ..ServicePort::default()
        };
        p.endpoints = [Endpoint { addr: "10.0.0.1".parse().unwrap(), port: 80 }].into();
        let name = ObjectName::new("shop", "web");
        let key = intent::ServiceKey { service: name.clone(), port: "".into(), proto: Proto::Tcp };
        i.services.insert(key.clone(), p.clone().into());
        let mut all = NoLocal::default();
        let said = |policy: &str| {
            let series = format!(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{traffic_policy=\"{policy}\",ip_family=\"IPv4\"}} "
            );
            m.encode().lines().find_map(|l| l.strip_prefix(&series).map(str::to_owned)).unwrap()
        };
        all.follow(&m.proxy, &i, &ServiceChanges::All);
        assert_eq!((said("external"), said("internal")), ("1".into(), "0".into()));
        p.local_endpoints = p.endpoints.clone();
        i.services.insert(key, p.into());
        all.follow(&m.proxy, &i, &ServiceChanges::Some([(name, Vec::new())].into()));
        assert_eq!(said("external"), "0");
    }
}
