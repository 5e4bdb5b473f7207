//! Any order, split or repetition of events ends in the same intent.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{local, node, service, settings, slice, with_vxlan};
use intent::{ServiceChanges, ServiceKey, ServicePort};
use proptest::prelude::*;
use resolve::{Changes, ClusterSnapshot, Event, Followed, Key, Kind, Resolver, apply, parse, resolve};
use serde_json::{Value, json};

/// A small world in which everything can clash with everything: few names, few addresses, some of them bad.
fn object() -> impl Strategy<Value = Value> {
    let cidr = prop_oneof![
        Just("10.244.1.0/24"),
        Just("10.244.2.0/24"),
        Just("10.244.0.0/22"),
        Just("bad"),
        Just("fd00:2::/64")
    ];
    let addr = prop_oneof![
        Just("192.168.0.1"),
        Just("192.168.0.2"),
        Just("10.244.1.7"),
        Just("172.16.0.3"),
        Just("::1"),
        Just("fd00:1::3")
    ];
    let nodes = ("node[1-4]", addr, cidr, any::<bool>(), 0u8..3).prop_map(|(name, a, c, vxlan, age)| {
        let mut n = node(&name, &[a], &[c]);
        n["metadata"]["creationTimestamp"] = format!("2026-01-0{}T00:00:00Z", age + 1).into();
        if vxlan { with_vxlan(n, a) } else { n }
    });
    let ip = prop_oneof![Just("10.96.0.10"), Just("10.96.0.11"), Just("10.244.1.9"), Just("None")];
    let kind = prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer"), Just("Odd")];
    // Outside addresses among which is one that another Service has inside.
    let outside = || {
        prop::collection::vec(
            prop_oneof![Just("198.51.100.1"), Just("198.51.100.2"), Just("10.96.0.11"), Just("127.0.0.1")],
            0..2,
        )
    };
    let port = ("[pq]", 80u16..82, 0u16..3)
        .prop_map(|(name, port, np)| json!({"name": name, "port": port, "nodePort": 30000 + np}));
    let services = ("[abc]", ip, kind, prop::collection::vec(port, 0..3), outside(), outside(), 0u8..3).prop_map(
        |(name, ip, kind, ports, external, ingress, age)| {
            let ingress: Vec<Value> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
            let mut s = service(
                json!({"type": kind, "clusterIP": ip, "clusterIPs": [ip], "ports": ports, "externalIPs": external}),
            );
            s["status"] = json!({"loadBalancer": {"ingress": ingress}});
            s["metadata"]["name"] = name.into();
            s["metadata"]["creationTimestamp"] = format!("2026-01-0{}T00:00:00Z", age + 1).into();
            s
        },
    );
    let slices =
        ("[xy]", "[abc]", prop::collection::vec((0u8..4, any::<bool>()), 0..4)).prop_map(|(name, svc, list)| {
            let eps: Vec<(String, Value)> = list
                .iter()
                .map(|(i, r)| {
                    (
                        ["10.244.1.2", "10.244.2.2", "127.0.0.1", "10.244.1.3"][usize::from(*i)].to_owned(),
                        json!({"ready": r}),
                    )
                })
                .collect();
            let eps: Vec<(&str, &str, Value)> = eps.iter().map(|(a, c)| (a.as_str(), "node1", c.clone())).collect();
            let mut s = slice(&name, &eps);
            s["metadata"]["labels"]["kubernetes.io/service-name"] = svc.into();
            s["ports"][0]["name"] = "p".into();
            s
        });
    let config = prop_oneof![
        Just(settings(json!({"backend": "host-gw"}))),
        Just(settings(json!({"clusterCIDR": "10.244.0.0/16"}))),
        Just(settings(json!({"clusterCIDR": "oops", "x": "y"}))),
    ];
    let ranges = prop_oneof![Just("10.244.1.0/28"), Just("10.9.0.0/28"), Just("10.9.0.0/30"), Just("fd00:9::/124")];
    let pooled = (ranges, "[pq]", "node[1-3]", any::<bool>(), any::<bool>()).prop_map(|(c, pool, node, block, nat)| {
        if !block {
            return json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPPool", "metadata": {"name": pool}, "spec": {"cidr": c, "natOutgoing": nat}});
        }
        let cidr: types::Cidr = c.parse().unwrap();
        let lent = if nat { json!([{"address": cidr.last(), "node": "node2"}]) } else { json!([]) };
        json!({"apiVersion": "seaway.io/v1alpha1", "kind": "IPBlock", "metadata": {"name": resolve::pools::IpBlock::name_of(cidr)},
            "spec": {"cidr": c, "pool": pool, "node": node, "lent": lent}})
    });
    prop_oneof![3 => nodes, 3 => services, 3 => slices, 2 => pooled, 1 => config]
}

/// The history of each object, oldest first; `None` is its deletion. The last entry is what is so in the end.
type Histories = BTreeMap<Key, Vec<Option<Value>>>;

fn histories() -> impl Strategy<Value = Histories> {
    prop::collection::vec((object(), prop::bool::weighted(0.2)), 1..40).prop_map(|list| {
        let mut out = Histories::new();
        for (v, delete) in list {
            let history = out.entry(parse(&v).unwrap().key).or_default();
            history.push(Some(v));
            if delete {
                history.push(None);
            }
        }
        out
    })
}

fn event(key: &Key, v: &Option<Value>) -> Event {
    match v {
        Some(v) => Event::Put(parse(v).unwrap()),
        None => Event::Delete(key.clone()),
    }
}

fn last(h: &Histories) -> Vec<Value> {
    h.values().filter_map(|v| v.last().cloned().flatten()).collect()
}

/// Follows events as an agent does, now and then looking at what they mean.
#[derive(Default)]
struct Follower {
    snapshot: ClusterSnapshot,
    resolver: Resolver,
    touched: BTreeSet<Key>,
    /// The Services of the last look, as its changes and those before add up.
    services: BTreeMap<ServiceKey, Arc<ServicePort>>,
}

impl Follower {
    fn apply(&mut self, e: Event) {
        self.touched.extend(apply(&mut self.snapshot, e));
    }

    /// What is kept gives what looking at everything gives, and the changes are true.
    fn look(&mut self) {
        let changed = Changes::Some(std::mem::take(&mut self.touched));
        let Followed { intent, problems, services, endpoints } =
            self.resolver.follow(&self.snapshot, &local(), &changed);
        let want = resolve(&self.snapshot, &local());
        assert_eq!(*intent, want.intent);
        assert_eq!(problems, want.problems);
        assert_eq!(endpoints, intent.services.values().map(|p| p.endpoints.len()).sum::<usize>());
        match services {
            ServiceChanges::All => self.services = intent.services.clone(),
            ServiceChanges::Some(changes) => {
                for (name, was) in changes {
                    let before: Vec<_> = self.services.iter().filter(|(k, _)| k.service == name).collect();
                    assert!(before.into_iter().eq(was.iter().map(|(k, p)| (k, p))), "{name}");
                    self.services.retain(|k, _| k.service != name);
                    let now: Vec<_> = intent.ports_of(&name).map(|(k, p)| (k.clone(), p.clone())).collect();
                    assert_ne!(now, was, "{name} did not change");
                    self.services.extend(now);
                }
            }
        }
        assert_eq!(self.services, intent.services);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_order_split_and_repetition(h in histories(), picks in prop::collection::vec((any::<prop::sample::Index>(), 0u8..5), 0..200), relist: bool) {
        // From scratch: each object once, as it is in the end, in the order of keys.
        let mut want = ClusterSnapshot::default();
        for v in last(&h) {
            apply(&mut want, Event::Put(parse(&v).unwrap()));
        }
        // Interleaved: each object's own events in order, everything else as it comes; some events come again, and
        // now and then a stale list of one kind replaces what there is.
        let keys: Vec<&Key> = h.keys().collect();
        let mut at: BTreeMap<&Key, usize> = BTreeMap::new();
        let mut got = Follower::default();
        for (index, what) in &picks {
            let key = keys[index.index(keys.len())];
            let next = at.entry(key).or_default();
            match what {
                0 if *next > 0 => got.apply(event(key, &h[key][*next - 1])),
                1 => {
                    let list = h.iter().filter(|(k, _)| k.kind == key.kind).filter_map(|(k, v)| {
                        let n = at.get(k).copied().unwrap_or(0);
                        v.get(n.checked_sub(1)?).cloned().flatten()
                    });
                    let list: Vec<_> = list.map(|v| parse(&v).unwrap()).collect();
                    got.apply(Event::Replace(key.kind, list));
                }
                2 => got.look(),
                _ => {
                    if let Some(v) = h[key].get(*next) {
                        got.apply(event(key, v));
                        *next += 1;
                    }
                }
            }
        }
        // The rest, so that every object reaches its end.
        for key in keys.iter().rev() {
            for v in &h[*key][at.get(*key).copied().unwrap_or(0)..] {
                got.apply(event(key, v));
            }
        }
        if relist {
            for kind in Kind::ALL {
                let list = last(&h).iter().filter_map(parse).filter(|p| p.key.kind == kind).collect();
                got.apply(Event::Replace(kind, list));
            }
        }
        got.look();
        prop_assert_eq!(resolve(&got.snapshot, &local()), resolve(&want, &local()));
        prop_assert_eq!(got.snapshot, want);
    }

    /// What resolve lets through is sound, whatever came in.
    #[test]
    fn the_intent_is_always_sound(h in histories()) {
        let mut s = ClusterSnapshot::default();
        for v in last(&h) {
            apply(&mut s, Event::Put(parse(&v).unwrap()));
        }
        let i = resolve(&s, &local()).intent;
        let ranges: Vec<_> = i.pod_cidrs.iter().chain(i.peers.values().flat_map(|p| p.routes.iter().map(|r| &r.cidr))).collect();
        for (n, a) in ranges.iter().enumerate() {
            // A borrowed address lies in its owner's block.
            let lent = |b: &types::Cidr| a != &b && (a.size() == 1 || b.size() == 1);
            prop_assert!(ranges[n + 1..].iter().all(|b| !a.overlaps(b) || lent(b)), "{ranges:?}");
            prop_assert!(i.cluster_cidrs.iter().any(|c| c.contains_cidr(a)));
            prop_assert!(!i.addresses.iter().any(|x| a.contains(*x)));
        }
        let mut vips = BTreeMap::new();
        let (mut ports, mut outside) = (BTreeSet::new(), BTreeSet::new());
        for (k, p) in &i.services {
            for ip in &p.cluster_ips {
                prop_assert_eq!(vips.entry(*ip).or_insert(k.service.clone()).clone(), k.service.clone());
            }
            // Of an address outside, one Service has a port; and it is nobody's inside.
            for ip in &p.external_ips {
                prop_assert!(outside.insert((*ip, k.proto, p.port)));
                prop_assert!(i.services.values().all(|o| !o.cluster_ips.contains(ip)));
            }
            if let Some(n) = p.node_port {
                prop_assert!(ports.insert((k.proto, n)));
            }
            prop_assert!(p.endpoints.iter().chain(&p.local_endpoints).all(|e| resolve::unusable_endpoint(e.addr).is_none()));
        }
    }

    #[test]
    fn no_json_makes_parsing_panic(text in "\\{\"apiVersion\":\"v1\",\"kind\":\"(Node|Pod|Service)\",\"(metadata|spec|status)\":(\\{\"(name|ports|podCIDRs|addresses|annotations)\":(7|\"x\"|\\[\\{\\}\\]|null)\\}|7|\\[\\])\\}") {
        let v: Value = serde_json::from_str(&text).unwrap();
        let _ = parse(&v).unwrap();
    }
}
