//! The reason of every endpoint that is not used, and that what is said to be used is what the intent has.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use std::collections::BTreeSet;

use common::{cluster, local, node, service, slice};
use proptest::prelude::*;
use resolve::explain::{ServiceView, State, ZONE, explain};
use resolve::resolve;
use serde_json::{Value, json};
use types::ObjectName;

/// node1 in zone a, node2 in zone b.
fn zones() -> Vec<Value> {
    let mut out = common::two();
    for (n, zone) in out.iter_mut().zip(["a", "b"]) {
        n["metadata"]["labels"][ZONE] = zone.into();
    }
    out
}

/// default/web as node1 sees it.
fn view(objects: &[Value]) -> ServiceView {
    let all: Vec<Value> = zones().into_iter().chain(objects.iter().cloned()).collect();
    let snapshot = cluster(&all);
    let r = resolve(&snapshot, &local());
    explain(&snapshot, &r.intent, &r.problems, &ObjectName::new("default", "web")).unwrap()
}

/// Address, and why neither inside nor outside traffic goes there.
fn reasons(v: &ServiceView) -> Vec<(String, Option<&str>, Option<&str>)> {
    v.endpoints
        .iter()
        .map(|e| {
            let port = e.port.map_or_else(|| "-".into(), |p| p.to_string());
            (format!("{}:{port}", e.address), e.internal_unused.as_deref(), e.external_unused.as_deref())
        })
        .collect()
}

#[test]
fn each_reason() {
    let going = json!({"ready": false, "serving": true, "terminating": true});
    let out = json!({"ready": false, "serving": false, "terminating": true});
    let v = view(&[
        service(json!({})),
        slice(
            "s",
            &[
                ("10.244.1.2", "node1", json!({})),
                ("10.244.1.3", "node1", json!({"ready": false})),
                ("10.244.2.4", "node2", going.clone()),
                ("10.244.2.5", "node2", out),
                ("169.254.0.9", "node2", json!({})),
            ],
        ),
    ]);
    let got = reasons(&v);
    let internal: Vec<(&str, Option<&str>)> = got.iter().map(|(a, i, _)| (a.as_str(), *i)).collect();
    assert_eq!(
        internal,
        [
            ("10.244.1.2:8080", None),
            ("10.244.1.3:8080", Some("not ready")),
            ("10.244.2.4:8080", Some("terminating, and others are ready")),
            ("10.244.2.5:8080", Some("terminating, and it no longer serves")),
            ("169.254.0.9:8080", Some("forbidden: a link-local address (169.254.0.0/16)")),
        ]
    );
    assert!(got.iter().all(|(_, _, external)| external.is_none()), "nothing from outside comes to a ClusterIP");
    assert_eq!(v.counts(), (1, 5));
    assert_eq!(v.endpoints[0].zone.as_deref(), Some("a"));
    assert!(v.problems[0].why.contains("169.254.0.9"), "{:?}", v.problems);

    // A port that the slice has not; a family that the Service has not.
    let v = view(&[
        service(json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]})),
        slice("s", &[("10.244.1.2", "node1", json!({}))]),
    ]);
    assert_eq!(reasons(&v), [("10.244.1.2:-".into(), Some("its slice has no UDP port \"dns\""), None)]);
    let v = view(&[service(json!({})), slice("s", &[("fd00:10:244::2", "node1", json!({}))])]);
    assert_eq!(reasons(&v)[0].1, Some("the Service has no IPv6"));

    // Policies.
    let v = view(&[
        service(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
        slice("s", &[("10.244.1.2", "node1", json!({})), ("10.244.2.2", "node2", json!({}))]),
    ]);
    assert_eq!(
        reasons(&v),
        [
            ("10.244.1.2:8080".into(), None, None),
            ("10.244.2.2:8080".into(), None, Some("policy Local, and it is not on node1")),
        ]
    );
    assert!(v.endpoints.iter().all(|e| e.used));

    // Hints.
    let mut s = slice("s", &[("10.244.1.2", "node1", json!({})), ("10.244.2.2", "node2", json!({}))]);
    for (e, zone) in s["endpoints"].as_array_mut().unwrap().iter_mut().zip(["a", "b"]) {
        e["hints"] = json!({"forZones": [{"name": zone}]});
    }
    let v = view(&[service(json!({})), s]);
    assert_eq!(reasons(&v)[1].1, Some("meant for zone b (hints); node1 is in zone a"));
    let mut s = slice("s", &[("10.244.1.2", "node1", json!({})), ("10.244.2.2", "node2", json!({}))]);
    for (e, n) in s["endpoints"].as_array_mut().unwrap().iter_mut().zip(["node1", "node2"]) {
        e["hints"] = json!({"forNodes": [{"name": n}]});
    }
    let v = view(&[service(json!({"trafficDistribution": "PreferSameNode"})), s]);
    assert_eq!(reasons(&v)[1].1, Some("meant for clients on node2 (hints)"));

    // None that is ready: those that serve are used after all.
    let v = view(&[service(json!({})), slice("s", &[("10.244.1.2", "node1", going)])]);
    assert_eq!((v.endpoints[0].state, v.endpoints[0].used), (State::TerminatingServing, true));
}

/// Address, node, conditions, zones and nodes that it is meant for.
type Hinted<'a> = (&'a str, &'a str, Value, &'a [&'a str], &'a [&'a str]);

/// What is said of the Service as a whole.
#[test]
fn whether_hints_are_followed_and_what_is_dropped() {
    let hinted = |list: &[Hinted<'_>]| {
        let plain: Vec<_> = list.iter().map(|(a, on, c, ..)| (*a, *on, c.clone())).collect();
        let mut s = slice("s", &plain);
        for (e, (.., zones, nodes)) in s["endpoints"].as_array_mut().unwrap().iter_mut().zip(list) {
            let names = |of: &[&str]| of.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            e["hints"] = json!({"forZones": names(zones), "forNodes": names(nodes)});
        }
        s
    };
    let (ok, none): (Value, &[&str]) = (json!({}), &[]);
    let (here, there) = (("10.244.1.2", "node1"), ("10.244.2.2", "node2"));
    let of = |zones: [&[&str]; 2], nodes: [&[&str]; 2]| {
        let list =
            [(here.0, here.1, ok.clone(), zones[0], nodes[0]), (there.0, there.1, ok.clone(), zones[1], nodes[1])];
        view(&[service(json!({})), hinted(&list)]).notes
    };
    assert_eq!(of([none, none], [none, none]), Vec::<String>::new());
    assert_eq!(of([&["a"], &["b"]], [none, none]), ["hints are followed: those meant for zone a"]);
    assert_eq!(of([none, none], [&["node1"], &["node2"]]), ["hints are followed: those meant for clients on node1"]);
    assert_eq!(of([&["a"], none], [none, none]), ["hints are not followed: only 1 of 2 ready endpoints have any"]);
    assert_eq!(of([&["c"], &["b"]], [none, none]), ["hints are not followed: none is meant for zone a"]);
    assert_eq!(of([none, none], [&["x"], &["y"]]), ["hints are not followed: none is meant for clients on node1"]);

    let going = json!({"ready": false, "serving": true, "terminating": true});
    let local = |policy: Value, endpoints: &[(&str, &str, Value)]| {
        let mut spec = json!({"type": "LoadBalancer", "healthCheckNodePort": 32000});
        spec.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        view(&[service(spec), slice("s", endpoints)])
    };
    let both = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    let v = local(both.clone(), &[(there.0, there.1, ok.clone())]);
    assert_eq!(v.health_check_port, Some(32000));
    assert_eq!(
        v.notes,
        [
            "inside the cluster: dropped on node1, as the policy is Local and no endpoint is here",
            "from outside: dropped on node1, as the policy is Local and no endpoint is here"
        ]
    );
    let v = local(both, &[(here.0, here.1, going.clone()), (there.0, there.1, ok.clone())]);
    assert!(v.notes[1].starts_with("from outside: none on node1 is ready, those that still serve"), "{:?}", v.notes);
    let v = local(json!({}), &[(here.0, here.1, going)]);
    assert_eq!(v.notes, ["no endpoint is ready: those that still serve while they terminate are used"]);

    // Of two ports, one of which has no endpoint here.
    let ports =
        json!({"externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53}]});
    let mut dns = slice("t", &[(there.0, there.1, ok.clone())]);
    dns["ports"] = json!([{"name": "dns", "port": 53, "protocol": "TCP"}]);
    let mut spec = json!({"type": "NodePort"});
    spec.as_object_mut().unwrap().extend(ports.as_object().unwrap().clone());
    let v = view(&[service(spec), slice("s", &[(here.0, here.1, ok.clone())]), dns]);
    assert_eq!(v.notes, ["dns: from outside: dropped on node1, as the policy is Local and no endpoint is here"]);
    let v = view(&[service(json!({})), slice("s", &[(here.0, here.1, json!({"ready": false}))])]);
    assert_eq!(v.notes, ["no endpoint is ready: connections are refused at once"]);
}

#[test]
fn one_listed_twice_is_one_and_as_the_slice_says_that_was_written_last() {
    let mut old = slice("old", &[("10.244.1.2", "node1", json!({"ready": false}))]);
    let mut new = slice("new", &[("10.244.1.2", "node1", json!({}))]);
    old["metadata"]["resourceVersion"] = "99".into();
    new["metadata"]["resourceVersion"] = "100".into();
    let v = view(&[service(json!({})), old, new]);
    assert_eq!(v.endpoints.len(), 1);
    assert_eq!((v.endpoints[0].state, v.endpoints[0].used), (State::Ready, true));
    assert_eq!(v.endpoints[0].slices, ["new", "old"]);
}

#[test]
fn services_that_are_not_translated_say_why() {
    for (spec, kind, why) in [
        (json!({"clusterIP": "None", "clusterIPs": ["None"]}), "Headless", "headless"),
        (json!({"type": "ExternalName", "externalName": "example.org"}), "ExternalName", "alias"),
    ] {
        let v = view(&[service(spec), slice("s", &[("10.244.1.2", "node1", json!({}))])]);
        assert_eq!(v.kind, kind);
        assert!(v.not_proxied.as_ref().unwrap().contains(why));
        assert!(v.endpoints.iter().all(|e| !e.used));
    }
}

#[test]
fn a_view_survives_json() {
    let v = view(&[
        service(
            json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
        ),
        slice("s", &[("10.244.1.2", "node1", json!({})), ("127.0.0.1", "node2", json!({}))]),
    ]);
    let text = serde_json::to_string(&v).unwrap();
    assert_eq!(serde_json::from_str::<ServiceView>(&text).unwrap(), v);
}

fn endpoint() -> impl Strategy<Value = (usize, usize, Value, Option<&'static str>, Option<&'static str>)> {
    let state = prop_oneof![
        4 => Just(json!({})),
        1 => Just(json!({"ready": false})),
        1 => Just(json!({"ready": false, "serving": true, "terminating": true})),
        1 => Just(json!({"ready": false, "serving": false, "terminating": true})),
    ];
    let hint = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
    let node = prop_oneof![Just(None), Just(Some("node1")), Just(Some("node2"))];
    (0usize..5, 0usize..2, state, hint, node)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// What is said to be used is what the intent has, and whatever is not used has a reason that names something.
    #[test]
    fn agrees_with_the_intent(
        lists in prop::collection::vec(prop::collection::vec(endpoint(), 0..5), 1..4),
        internal in prop_oneof![Just("Cluster"), Just("Local")],
        external in prop_oneof![Just("Cluster"), Just("Local")],
        kind in prop_oneof![Just("ClusterIP"), Just("NodePort")],
        distribution in prop_oneof![Just("PreferClose"), Just("PreferSameNode")],
    ) {
        let addresses = ["10.244.1.2", "10.244.1.3", "10.244.2.2", "127.0.0.1", "10.244.2.3"];
        let svc = service(json!({"type": kind, "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "trafficDistribution": distribution}));
        let mut objects = vec![svc, node("node3", &["192.168.0.3"], &["10.244.3.0/24"])];
        for (n, list) in lists.iter().enumerate() {
            let all: Vec<_> =
                list.iter().map(|(a, on, c, ..)| (addresses[*a], ["node1", "node2"][*on], c.clone())).collect();
            let mut s = slice(&format!("s{n}"), &all);
            for (e, (.., zone, to)) in s["endpoints"].as_array_mut().unwrap().iter_mut().zip(list) {
                e["hints"] = json!({
                    "forZones": zone.iter().map(|z| json!({"name": z})).collect::<Vec<_>>(),
                    "forNodes": to.iter().map(|n| json!({"name": n})).collect::<Vec<_>>(),
                });
            }
            objects.push(s);
        }
        let all: Vec<Value> = zones().into_iter().chain(objects).collect();
        let snapshot = cluster(&all);
        let r = resolve(&snapshot, &local());
        let v = explain(&snapshot, &r.intent, &r.problems, &ObjectName::new("default", "web")).unwrap();
        let port = r.intent.services.values().next().unwrap();
        let set = |policy: &str| {
            let of = if policy == "Local" { &port.local_endpoints } else { &port.endpoints };
            of.iter().map(|e| e.addr).collect::<BTreeSet<_>>()
        };
        let said = |why: fn(&resolve::explain::EndpointView) -> &Option<String>| {
            v.endpoints.iter().filter(|e| why(e).is_none()).map(|e| e.address).collect::<BTreeSet<_>>()
        };
        prop_assert_eq!(said(|e| &e.internal_unused), set(internal));
        if kind == "NodePort" {
            prop_assert_eq!(said(|e| &e.external_unused), set(external));
        }
        for e in &v.endpoints {
            for why in [&e.internal_unused, &e.external_unused].into_iter().flatten() {
                prop_assert!(!why.contains("zone  ") && !why.contains("see problems"), "{}", why);
            }
        }
    }
}
