//! Controllers against a simulated cluster: manifests in, the settled state out.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod sim;

use std::collections::{BTreeMap, BTreeSet};

use controller::offline::stand_in_nodes;
use controller::{MANAGED_BY, Options, reconcile};
use proptest::prelude::*;
use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Event, apply};
use serde_json::{Value, json};
use sim::{node, run, service, settings, workload};
use types::ObjectName;

#[test]
fn plain_manifests_become_a_working_cluster() {
    let s = run(&[
        settings("10.244.0.0/16,fd00:10:244::/56"),
        node("node1"),
        node("node2"),
        node("node3"),
        workload("Deployment", "web", 4, "a"),
        workload("DaemonSet", "log", 0, "a"),
        service(
            "web",
            json!({"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}),
        ),
        service("headless", json!({"clusterIP": "None", "selector": {"app": "log"}, "ports": [{"port": 80}]})),
        service("alias", json!({"type": "ExternalName", "externalName": "example.org"})),
        service("manual", json!({"ports": [{"port": 80}]})),
    ]);
    assert_eq!(s.problems, []);
    let snap = &s.snapshot;
    let cidrs: BTreeSet<String> =
        snap.nodes.values().flat_map(|n| n.pod_cidrs.iter().map(ToString::to_string)).collect();
    assert_eq!(cidrs.len(), 6);
    assert!(cidrs.contains("10.244.2.0/24") && cidrs.contains("fd00:10:244:2::/64"));
    assert_eq!(snap.pods.len(), 7);
    let mut per_node: BTreeMap<_, usize> = BTreeMap::new();
    for p in snap.pods.values() {
        *per_node.entry(p.node.clone().unwrap()).or_default() += 1;
        assert!(p.ready && p.ips.len() == 2);
        let n = &snap.nodes[p.node.as_ref().unwrap()];
        assert!(p.ips.iter().all(|ip| n.pod_cidrs.iter().any(|c| c.contains(*ip))));
    }
    assert_eq!(per_node.values().copied().collect::<Vec<_>>(), [3, 2, 2], "round robin over a daemon each");
    let web = &snap.services[&ObjectName::new("shop", "web")];
    assert_eq!(web.cluster_ips.len(), 2);
    assert!(web.ports[0].node_port.is_some_and(|p| p >= 30000));
    let slices: Vec<_> = snap.slices.values().filter(|x| &*x.service == "web").collect();
    assert_eq!(slices.len(), 2, "one a family");
    for x in slices {
        assert_eq!((x.endpoints.len(), x.ports[0].port.port, &*x.managed_by), (4, 8080, MANAGED_BY));
    }
    let headless: Vec<_> = snap.slices.values().filter(|x| &*x.service == "headless").collect();
    assert_eq!(headless.len(), 1);
    assert_eq!((headless[0].endpoints.len(), headless[0].ports[0].port.port), (3, 80));
    assert!(snap.slices.values().all(|x| &*x.service != "alias" && &*x.service != "manual"));
    assert!(reconcile(snap, &Options::default()).writes.is_empty());
    assert!(snap.nodes.values().all(|n| n.vxlan.is_some_and(|v| n.internal_ips.contains(&v.address))));
    assert!(s.assumed.iter().any(|a| a.contains("Service/shop/web has cluster IP 10.96.")), "{:?}", s.assumed);
}

#[test]
fn without_nodes_and_ranges_some_stand_in() {
    let mut objects = vec![workload("Deployment", "web", 3, "a")];
    let nodes = stand_in_nodes(&objects, &"n".parse().unwrap());
    objects.extend(nodes);
    assert!(stand_in_nodes(&objects, &"n".parse().unwrap()).is_empty());
    let s = run(&objects);
    assert_eq!(s.problems, []);
    assert_eq!(s.snapshot.nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["n", "node1", "node2"]);
    assert!(s.snapshot.pods.values().all(|p| p.ips.len() == 2));
    assert!(s.assumed.iter().any(|a| a.contains("data.clusterCIDR 10.244.0.0/16")), "{:?}", s.assumed);
    // A range that is given badly is a problem, and none stands in for it.
    objects.push(settings("10.0.0.0"));
    assert!(run(&objects).snapshot.pods.values().all(|p| p.ips.is_empty()));
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}, "spec": {"nodeSelector": {"disk": "tape"}}});
    let s = run(&[node("node1"), pod.clone()]);
    assert_eq!(s.problems.len(), 1);
    assert!(s.problems[0].to_string().starts_with("Pod/shop/p spec.nodeName: 0 of 1 nodes fit"), "{}", s.problems[0]);
    pod["spec"]["nodeSelector"]["disk"] = "ssd".into();
    assert_eq!(
        run(&[node("node2"), node("node1"), pod])
            .snapshot
            .pods
            .values()
            .next()
            .unwrap()
            .node
            .as_ref()
            .unwrap()
            .as_str(),
        "node1"
    );
    let mut cordoned = node("node1");
    cordoned["spec"] = json!({"unschedulable": true});
    assert_eq!(run(&[cordoned, workload("Deployment", "web", 1, "a")]).problems.len(), 1);
}

#[test]
fn pods_go_where_their_host_ports_are_free() {
    let mut nodes = [node("node1"), node("node2"), node("node3")];
    // node3 has room for one random port, and a Service has the other two.
    nodes[2]["metadata"]["annotations"] = json!({"seaway.io/host-port-range": "21000-21002"});
    let ports = json!([{"port": 1, "nodePort": 21_000}, {"port": 2, "nodePort": 21_001}]);
    let service = service("s", json!({"type": "NodePort", "ports": ports}));
    let pod = |name: &str, port: Value, asks: Option<&str>, node: Option<&str>| {
        let mut v = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"containers": [{"name": "c", "ports": [port]}]}});
        if let Some(a) = asks {
            v["metadata"]["annotations"] = json!({"seaway.io/random-host-ports": a});
        }
        if let Some(n) = node {
            v["spec"]["nodeName"] = n.into();
        }
        v
    };
    let fixed = |port: u16, ip: &str| json!({"containerPort": 80, "hostPort": port, "hostIP": ip});
    let plain = json!({"containerPort": 80});
    let taken = json!({"seaway.io/host-ports": "[{\"containerPort\":80,\"protocol\":\"TCP\",\"hostPort\":25000}]"});
    let mut told = pod("told", plain.clone(), None, Some("node2"));
    told["metadata"]["annotations"] = taken;
    for (name, new, others, want) in [
        (
            "the same port",
            pod("n", fixed(80, ""), None, None),
            vec![pod("a", fixed(80, ""), None, Some("node1"))],
            Some("node2"),
        ),
        (
            "on every address and on one",
            pod("n", fixed(80, "192.0.2.1"), None, None),
            vec![pod("a", fixed(80, "0.0.0.0"), None, Some("node1"))],
            Some("node2"),
        ),
        (
            "on two addresses",
            pod("n", fixed(80, "192.0.2.1"), None, None),
            vec![
                pod("a", fixed(80, "192.0.2.2"), None, Some("node1")),
                pod("b", plain.clone(), None, Some("node2")),
                pod("c", plain.clone(), None, Some("node3")),
                pod("d", plain.clone(), None, Some("node2")),
                pod("e", plain.clone(), None, Some("node3")),
            ],
            Some("node1"),
        ),
        (
            "one that was given at random",
            pod("n", fixed(25_000, ""), None, None),
            vec![
                told.clone(),
                pod("a", plain.clone(), None, Some("node1")),
                pod("b", plain.clone(), None, Some("node1")),
            ],
            Some("node3"),
        ),
        (
            "a random one",
            pod("n", plain.clone(), Some("80, 81"), None),
            vec![pod("a", plain.clone(), None, Some("node1")), pod("b", plain.clone(), None, Some("node2"))],
            Some("node1"),
        ),
        (
            "none is left",
            pod("n", plain.clone(), Some("80"), None),
            vec![pod("a", plain.clone(), Some("80"), Some("node3"))],
            Some("node1"),
        ),
    ] {
        let all: Vec<Value> = nodes.iter().cloned().chain([service.clone(), new]).chain(others).collect();
        let s = run(&all);
        let n = &s.snapshot.pods[&types::ObjectName::new("shop", "n")];
        assert_eq!(n.node.as_ref().map(|n| n.as_str()), want, "{name}: {:?}", s.problems);
    }
    let alone = [nodes[2].clone(), service, pod("n", plain, Some("80, 81"), None)];
    let says = run(&alone).problems[0].to_string();
    assert!(says.contains("0 of 1 nodes have the host ports free: node3: 2 random host ports (TCP) are asked for, 1 of 21000-21002 are free"), "{says}");
}

fn pod(name: &str, ip: &str, ready: bool, extra: Value) -> Value {
    let mut v = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}});
    for (k, x) in extra.as_object().unwrap() {
        *v.pointer_mut(k).unwrap() = x.clone();
    }
    v
}

fn slices_of(objects: &[Value]) -> (ClusterSnapshot, Vec<ApiWrite>) {
    let mut s = ClusterSnapshot::default();
    for o in objects {
        apply(&mut s, Event::Put(resolve::parse(o).unwrap()));
    }
    let options = Options { which: [controller::Which::EndpointSlice].into(), ..Options::default() };
    let writes = reconcile(&s, &options).writes;
    (s, writes)
}

#[test]
fn readiness_termination_and_named_ports() {
    let svc = |extra: Value| {
        let mut v = service(
            "web",
            json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "selector": {"app": "web"}, "ports": [{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "targetPort": 9090}]}),
        );
        v["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        v
    };
    let mut going = pod("going", "10.244.0.3", true, json!({}));
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut other_port = pod("other", "10.244.0.4", true, json!({}));
    other_port["spec"]["containers"][0]["ports"][0]["containerPort"] = 8081.into();
    let pods = vec![
        pod("ok", "10.244.0.1", true, json!({})),
        pod("unready", "10.244.0.2", false, json!({})),
        going,
        other_port,
        pod("done", "10.244.0.5", true, json!({"/status/phase": "Succeeded"})),
        pod("foreign", "10.244.0.6", true, json!({"/metadata/namespace": "other"})),
        pod("unlike", "10.244.0.7", true, json!({"/metadata/labels": {"app": "db"}})),
    ];
    let all = |s: Value| [pods.clone(), vec![s]].concat();
    let (_, writes) = slices_of(&all(svc(json!({}))));
    assert_eq!(writes.len(), 2, "two sets of port numbers");
    let mut seen = BTreeMap::new();
    for w in &writes {
        let WriteOp::Create(v) = &w.op else { panic!("{w}") };
        let port = v["ports"].as_array().unwrap().iter().find(|p| p["name"] == "a").unwrap()["port"].as_u64().unwrap();
        assert_eq!(v["ports"].as_array().unwrap().iter().find(|p| p["name"] == "b").unwrap()["port"], 9090);
        for e in v["endpoints"].as_array().unwrap() {
            let c = &e["conditions"];
            let flags = [&c["ready"], &c["serving"], &c["terminating"]].map(|b| b.as_bool().unwrap());
            seen.insert(e["targetRef"]["name"].as_str().unwrap().to_owned(), (port, flags));
            assert_eq!(e["nodeName"], "node1");
        }
    }
    assert_eq!(
        seen,
        BTreeMap::from([
            ("ok".into(), (8080, [true, true, false])),
            ("unready".into(), (8080, [false, false, false])),
            ("going".into(), (8080, [false, true, true])),
            ("other".into(), (8081, [true, true, false])),
        ])
    );
    let (_, writes) = slices_of(&all(svc(json!({"publishNotReadyAddresses": true}))));
    for w in &writes {
        let WriteOp::Create(v) = &w.op else { panic!("{w}") };
        assert!(v["endpoints"].as_array().unwrap().iter().all(|e| e["conditions"]["ready"] == true));
    }
    assert!(slices_of(&all(svc(json!({"selector": {}})))).1.is_empty(), "without a selector nothing is written");
}

#[test]
fn a_change_touches_one_slice_of_many() {
    let mut objects: Vec<Value> = (0..250)
        .map(|i| pod(&format!("p{i}"), &format!("10.244.{}.{}", i / 250, i % 250 + 1), true, json!({})))
        .collect();
    objects.push(service(
        "web",
        json!({"clusterIPs": ["10.96.0.9"], "selector": {"app": "web"}, "ports": [{"port": 80}]}),
    ));
    let (_, writes) = slices_of(&objects);
    assert_eq!(writes.len(), 3, "100, 100 and 50");
    for w in writes {
        let WriteOp::Create(mut v) = w.op else { panic!() };
        v["metadata"]["name"] = (*w.name.name).into();
        v["metadata"]["namespace"] = (*w.name.namespace).into();
        objects.push(v);
    }
    assert_eq!(slices_of(&objects).1, [], "settled");
    objects.remove(120);
    let (_, writes) = slices_of(&objects);
    assert_eq!(writes.len(), 1);
    let WriteOp::Patch(v) = &writes[0].op else { panic!("{}", writes[0]) };
    assert!(v.get("addressType").is_none(), "immutable");
    // A slice of somebody else's is left alone, whatever it holds.
    let mut foreign = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "someone"}}, "endpoints": [], "ports": []});
    objects.push(foreign.clone());
    assert_eq!(slices_of(&objects).1.len(), 1);
    // One of ours whose Service is gone goes.
    foreign["metadata"]["labels"] =
        json!({"kubernetes.io/service-name": "gone", "endpointslice.kubernetes.io/managed-by": MANAGED_BY});
    let (_, writes) = slices_of(&[foreign]);
    assert!(matches!(writes[0].op, WriteOp::Delete { .. }));
}

/// Who knows only Endpoints is served as well: both families of them, whoever is not ready as such.
#[test]
fn endpoints_of_a_service_without_a_selector_are_mirrored() {
    let endpoints = |subsets: Value| {
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "outside", "namespace": "shop", "uid": "e"},
            "subsets": subsets})
    };
    let subsets = json!([
        {"addresses": [{"ip": "192.0.2.1", "nodeName": "node1"}, {"ip": "2001:db8::1"}],
         "notReadyAddresses": [{"ip": "192.0.2.2", "targetRef": {"kind": "Pod", "name": "p"}}, {"ip": "192.0.2.1"}],
         "ports": [{"name": "web", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
        {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "web", "port": 9090, "protocol": "TCP"}]},
    ]);
    let outside = service("outside", json!({"ports": [{"name": "web", "port": 80}]}));
    let objects = [outside.clone(), endpoints(subsets.clone())];
    let s = run(&objects);
    assert_eq!(s.problems, []);
    let told: BTreeSet<String> = s
        .snapshot
        .slices
        .values()
        .flat_map(|x| {
            assert_eq!((&*x.service, &*x.owner_uid), ("outside", "e"));
            let ports: Vec<String> = x.ports.iter().map(|p| format!("{}:{}", p.name, p.port)).collect();
            x.endpoints.iter().map(move |e| {
                format!("{} {} {:?} {:?} {}", e.addr, ports.join(","), e.node.as_deref(), e.pod.as_deref(), e.ready)
            })
        })
        .collect();
    let want = [
        "192.0.2.1 dns:53/UDP,web:8080/TCP Some(\"node1\") None true",
        "192.0.2.2 dns:53/UDP,web:8080/TCP None Some(\"p\") false",
        "192.0.2.3 web:9090/TCP None None true",
        "2001:db8::1 dns:53/UDP,web:8080/TCP None None true",
    ];
    assert_eq!(told, want.map(str::to_owned).into());
    assert_eq!(reconcile(&s.snapshot, &Options::default()).writes, []);

    // What changes is changed; what is said not to be, or of a Service with a selector, or gone, has no slices.
    let after = |event: Event| {
        let mut snapshot = s.snapshot.clone();
        apply(&mut snapshot, event);
        reconcile(&snapshot, &Options::default()).writes
    };
    let put = |v: &Value| Event::Put(resolve::parse(v).unwrap());
    let fewer = after(put(&endpoints(json!([subsets[0]]))));
    assert!(fewer.len() == 1 && matches!(fewer[0].op, WriteOp::Delete { .. }), "{fewer:?}");
    let more =
        json!([subsets[0], {"addresses": [{"ip": "192.0.2.3"}, {"ip": "192.0.2.4"}], "ports": subsets[1]["ports"]}]);
    let more = after(put(&endpoints(more)));
    assert!(more.len() == 1 && matches!(more[0].op, WriteOp::Patch(_)), "{more:?}");
    let mut apart = objects[1].clone();
    apart["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let mut leader = objects[1].clone();
    leader["metadata"]["annotations"] = json!({"control-plane.alpha.kubernetes.io/leader": "{}"});
    let mut selecting = outside.clone();
    selecting["spec"]["selector"] = json!({"app": "none"});
    let key = |v: &Value| resolve::parse(v).unwrap().key;
    for event in
        [put(&apart), put(&leader), put(&selecting), Event::Delete(key(&outside)), Event::Delete(key(&objects[1]))]
    {
        let writes = after(event.clone());
        let all = writes.iter().filter(|w| matches!(w.op, WriteOp::Delete { .. })).count();
        assert_eq!((all, writes.len()), (3, 3), "{event:?}: {writes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_cluster_settles_and_stays(
        nodes in 1usize..5, deployments in prop::collection::vec((0i64..6, 0usize..3), 0..4), daemons in 0usize..3, v6: bool,
    ) {
        let mut objects = vec![settings(if v6 { "10.244.0.0/16,fd00:10:244::/56" } else { "10.244.0.0/16" })];
        objects.extend((1..=nodes).map(|i| node(&format!("node{i}"))));
        for (i, (replicas, services)) in deployments.iter().enumerate() {
            objects.push(workload("Deployment", &format!("d{i}"), *replicas, "a"));
            for s in 0..*services {
                objects.push(service(&format!("s{i}-{s}"), json!({"selector": {"app": format!("d{i}")}, "ports": [{"port": 80 + s}]})));
            }
        }
        objects.extend((0..daemons).map(|i| workload("DaemonSet", &format!("ds{i}"), 0, "a")));
        let s = run(&objects);
        prop_assert_eq!(&s.problems, &vec![]);
        prop_assert!(reconcile(&s.snapshot, &Options::default()).writes.is_empty());
        let wanted: i64 = deployments.iter().map(|d| d.0).sum();
        prop_assert_eq!(s.snapshot.pods.len(), usize::try_from(wanted).unwrap() + daemons * nodes);
        let ips: BTreeSet<_> = s.snapshot.pods.values().flat_map(|p| p.ips.iter()).collect();
        prop_assert_eq!(ips.len(), s.snapshot.pods.len() * if v6 { 2 } else { 1 });
        let cidrs: Vec<_> = s.snapshot.nodes.values().flat_map(|n| n.pod_cidrs.iter()).collect();
        for (i, a) in cidrs.iter().enumerate() {
            prop_assert!(cidrs[i + 1..].iter().all(|b| !a.overlaps(b)));
        }
        prop_assert!(s.snapshot.services.values().all(|s| s.cluster_ips.len() == 1));
    }
}
