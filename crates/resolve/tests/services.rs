//! Services as kube-proxy means them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use common::{cluster, local, on_node1, service, slice, two};
use intent::{Affinity, Scope, ServicePort, TrafficPolicy};
use resolve::{Event, apply, parse, resolve};
use serde_json::{Value, json};

fn with(extra: impl IntoIterator<Item = Value>) -> Vec<Value> {
    two().into_iter().chain(extra).collect()
}

fn http(objects: &[Value]) -> ServicePort {
    let r = on_node1(objects);
    assert_eq!(r.intent.services.len(), 1, "{:?}", r.intent.services);
    (*r.intent.services.into_values().next().unwrap()).clone()
}

fn texts(set: &types::FlatSet<intent::Endpoint>) -> Vec<String> {
    set.iter().map(ToString::to_string).collect()
}

#[test]
fn a_port_takes_its_slices_port() {
    let p = http(&with([
        service(json!({})),
        slice("a", &[("10.244.1.2", "node1", json!({})), ("10.244.2.2", "node2", json!({"ready": true}))]),
    ]));
    assert_eq!(texts(&p.endpoints), ["10.244.1.2:8080", "10.244.2.2:8080"]);
    assert_eq!((p.port, p.node_port, p.affinity), (80, None, Affinity::None));
    assert!(p.local_endpoints.is_empty(), "nobody asks for them");
    // Another name or protocol is another port.
    let p = http(&with([
        service(json!({"ports": [{"name": "other", "port": 80}]})),
        slice("a", &[("10.244.1.2", "node1", json!({}))]),
    ]));
    assert!(p.endpoints.is_empty());
}

#[test]
fn readiness_and_the_fallback_to_terminating_ones() {
    let going = json!({"ready": false, "serving": true, "terminating": true});
    let out = json!({"ready": false, "serving": false, "terminating": true});
    let unready = json!({"ready": false});
    for (endpoints, want) in [
        (vec![("10.244.1.2", &going), ("10.244.2.2", &json!({"ready": true}))], vec!["10.244.2.2:8080"]),
        (vec![("10.244.1.2", &going), ("10.244.2.2", &out), ("10.244.2.3", &unready)], vec!["10.244.1.2:8080"]),
        (vec![("10.244.2.2", &out), ("10.244.2.3", &unready)], vec![]),
    ] {
        let list: Vec<_> = endpoints.iter().map(|(a, c)| (*a, "node2", (*c).clone())).collect();
        assert_eq!(texts(&http(&with([service(json!({})), slice("a", &list)])).endpoints), want);
    }
}

#[test]
fn local_policies_have_local_endpoints_with_their_own_fallback() {
    let going = json!({"ready": false, "serving": true, "terminating": true});
    let p = http(&with([
        service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"})),
        slice("a", &[("10.244.1.2", "node1", going), ("10.244.2.2", "node2", json!({}))]),
    ]));
    assert_eq!(texts(&p.endpoints), ["10.244.2.2:8080"]);
    assert_eq!(texts(&p.local_endpoints), ["10.244.1.2:8080"]);
    assert_eq!((p.internal_policy, p.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
}

#[test]
fn services_that_no_proxy_serves() {
    let mut foreign = service(json!({}));
    foreign["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "other".into();
    for s in [
        service(json!({"clusterIP": "None", "clusterIPs": ["None"]})),
        service(json!({"type": "ExternalName", "externalName": "example.org"})),
        foreign,
    ] {
        let r = on_node1(&with([s]));
        assert!(r.intent.services.is_empty());
        assert_eq!(r.problems.len(), on_node1(&two()).problems.len());
    }
}

#[test]
fn addresses_ports_affinity_and_ranges() {
    let mut s = service(json!({
        "type": "LoadBalancer", "externalIPs": ["203.0.113.7"], "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 0}],
    }));
    s["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}, {"ip": "203.0.113.9", "ipMode": "Proxy"}, {"hostname": "lb.example.org"}]}});
    let r = on_node1(&with([s.clone()]));
    let ports: Vec<_> = r.intent.services.iter().map(|(k, p)| (k.to_string(), p.port, p.node_port)).collect();
    assert_eq!(ports, [("default/web:dns UDP".into(), 53, None), ("default/web:http TCP".into(), 80, Some(30080))]);
    let p = r.intent.services.into_values().next().unwrap();
    assert_eq!(p.external_ips, ["203.0.113.7".parse().unwrap()].into());
    assert_eq!(p.balancer_ips, ["203.0.113.8".parse().unwrap()].into());
    assert_eq!(p.affinity, Affinity::ClientIp { timeout: 60 });
    assert_eq!(p.source_ranges, ["198.51.100.0/24".parse().unwrap()].into());
    // A Service that is no load balancer any more has neither ingress, source ranges nor node ports.
    s["spec"]["type"] = "ClusterIP".into();
    let p = http(&with([{
        s["spec"]["ports"] = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        s
    }]));
    assert_eq!(p.external_ips, ["203.0.113.7".parse().unwrap()].into());
    assert!(p.balancer_ips.is_empty() && p.source_ranges.is_empty() && p.node_port.is_none());
}

#[test]
fn both_families() {
    let s = service(json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]}));
    let v4 = slice("a", &[("10.244.1.2", "node1", json!({}))]);
    let v6 = slice("b", &[("fd00:244:1::2", "node1", json!({}))]);
    let p = http(&with([s.clone(), v4.clone(), v6.clone()]));
    assert_eq!(p.cluster_ips.len(), 2);
    assert_eq!(texts(&p.endpoints), ["10.244.1.2:8080", "[fd00:244:1::2]:8080"]);
    // The fallback is each family's own.
    let v6_going =
        slice("b", &[("fd00:244:1::2", "node1", json!({"ready": false, "serving": true, "terminating": true}))]);
    assert_eq!(http(&with([s, v4.clone(), v6_going])).endpoints.len(), 2);
    // A family that the Service does not have is not served.
    assert_eq!(texts(&http(&with([service(json!({})), v4, v6])).endpoints), ["10.244.1.2:8080"]);
}

/// node1 of zone a; endpoints on node1 and node2 with these hints, as zones and as nodes.
fn hinted(zones: [&[&str]; 2], nodes: [&[&str]; 2], ready: [bool; 2]) -> ServicePort {
    let mut all = two();
    all[0]["metadata"]["labels"]["topology.kubernetes.io/zone"] = "a".into();
    let conditions = ready.map(|r| json!({"ready": r}));
    let [c1, c2] = conditions;
    let mut s = slice("a", &[("10.244.1.2", "node1", c1), ("10.244.2.2", "node2", c2)]);
    for i in 0..2 {
        let names = |of: &[&str]| of.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
        s["endpoints"][i]["hints"] = json!({"forZones": names(zones[i]), "forNodes": names(nodes[i])});
    }
    all.extend([service(json!({})), s]);
    http(&all)
}

#[test]
fn hints_count_when_every_ready_endpoint_has_them() {
    let none: [&[&str]; 2] = [&[], &[]];
    let yes = [true, true];
    for (zones, nodes, ready, count, scope) in [
        (none, none, yes, 2, Scope::Ready),
        ([&["a"], &["b"]], none, yes, 1, Scope::SameZone),
        ([&["a"], &["a", "b"]], none, yes, 2, Scope::SameZone),
        ([&["a"], &[]], none, yes, 2, Scope::Ready),
        ([&["b"], &["b"]], none, yes, 2, Scope::Ready),
        // Nodes before zones, whatever the Service says in trafficDistribution.
        ([&["a"], &["a"]], [&["node1"], &["node2"]], yes, 1, Scope::SameNode),
        ([&["a"], &["a"]], [&["node1"], &[]], yes, 2, Scope::SameZone),
        (none, [&["node2"], &["node2"]], yes, 2, Scope::Ready),
        (none, [&["node1", "node2"], &["node2"]], yes, 1, Scope::SameNode),
        // Those that are not ready have no say.
        ([&["a"], &[]], none, [true, false], 1, Scope::SameZone),
        ([&["a"], &["b"]], none, [false, true], 1, Scope::Ready),
    ] {
        let p = hinted(zones, nodes, ready);
        assert_eq!((p.endpoints.len(), p.scope.v4), (count, scope), "{zones:?} {nodes:?} {ready:?}");
    }
}

#[test]
fn an_endpoint_in_two_slices_is_as_the_newer_one_says() {
    let written = |name: &str, version: &str, conditions: Value| {
        let mut s = slice(name, &[("10.244.1.2", "node1", conditions)]);
        s["metadata"]["resourceVersion"] = version.into();
        s
    };
    let (ready, not) = (json!({"ready": true}), json!({"ready": false}));
    let going = json!({"ready": false, "serving": true, "terminating": true});
    for (old, new, usable) in [(&ready, &not, 0), (&not, &ready, 1), (&ready, &ready, 1), (&not, &not, 0)] {
        // As numbers, whichever name sorts first.
        for [a, b] in [["a", "b"], ["b", "a"]] {
            let all = with([service(json!({})), written(a, "999", old.clone()), written(b, "1000", new.clone())]);
            assert_eq!(http(&all).endpoints.len(), usable, "{a} {old} {b} {new}");
        }
    }
    // A new pod at the address of one that is not quite gone.
    let all = with([service(json!({})), written("a", "5", ready), written("b", "6", going.clone())]);
    let p = http(&all);
    assert_eq!((p.endpoints.len(), p.scope.v4), (1, Scope::Ready));
    let p = http(&with([service(json!({})), written("b", "6", going)]));
    assert_eq!((p.endpoints.len(), p.scope.v4), (1, Scope::Terminating));
}

#[test]
fn several_slices_and_numbers_make_one_port() {
    let mut one = slice("a", &[("10.244.1.2", "node1", json!({}))]);
    one["ports"] =
        json!([{"name": "http", "port": 8080}, {"name": "http", "port": 8081}, {"name": "metrics", "port": 9}]);
    let mut two = slice("b", &[("10.244.2.2", "node2", json!({})), ("10.244.2.3", "node2", json!({"ready": false}))]);
    two["ports"] = json!([{"name": "http", "port": 3000}]);
    let mut foreign = slice("c", &[("10.244.2.9", "node2", json!({}))]);
    foreign["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    let p = http(&with([service(json!({"publishNotReadyAddresses": true})), one, two, foreign]));
    assert_eq!(texts(&p.endpoints), ["10.244.1.2:8080", "10.244.1.2:8081", "10.244.2.2:3000"]);
}

#[test]
fn node_ports_are_served_at_the_nodes_first_addresses_or_where_they_are_set_to_be() {
    let mut nodes = two();
    nodes[0]["status"]["addresses"] = json!([
        {"type": "ExternalIP", "address": "203.0.113.5"}, {"type": "InternalIP", "address": "192.168.0.1"},
        {"type": "InternalIP", "address": "192.168.0.7"}, {"type": "ExternalIP", "address": "fd00:1::1"}]);
    let of = |data: Value| {
        let all: Vec<Value> = nodes.iter().cloned().chain([common::settings(data)]).collect();
        let r = on_node1(&all);
        let at: Vec<String> = r.intent.node_port_addresses.iter().map(ToString::to_string).collect();
        (at.join(" "), r.problems)
    };
    let primary = "192.168.0.1 fd00:1::1";
    assert_eq!(of(json!({})).0, primary);
    assert_eq!(of(json!({"nodePortAddresses": "primary"})).0, primary);
    // The Node's and the machine's; all of a family without a range.
    assert_eq!(
        of(json!({"nodePortAddresses": "10.9.0.0/16, 192.168.0.0/29"})).0,
        "10.9.9.9 192.168.0.1 192.168.0.7 fd00:1::1"
    );
    assert_eq!(of(json!({"nodePortAddresses": "127.0.0.0/8,::1/128"})).0, "");
    let (at, problems) = of(json!({"nodePortAddresses": "everywhere"}));
    assert_eq!(at, primary);
    assert!(
        problems.iter().any(|p| p.field == "data.nodePortAddresses" && p.why.contains("write primary")),
        "{problems:?}"
    );
}

#[test]
fn a_service_is_served_in_the_families_of_its_cluster_addresses() {
    // Not yet given an address: nothing, not even its node port.
    let none = service(
        json!({"clusterIP": "", "clusterIPs": [], "type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
    );
    assert!(on_node1(&with([none])).intent.services.is_empty());
    for (policy, ips, families) in [
        ("SingleStack", vec!["10.96.0.10"], (true, false)),
        ("SingleStack", vec!["fd00:96::10"], (false, true)),
        ("PreferDualStack", vec!["10.96.0.10"], (true, false)),
        ("PreferDualStack", vec!["fd00:96::10", "10.96.0.10"], (true, true)),
        ("RequireDualStack", vec!["10.96.0.10", "fd00:96::10"], (true, true)),
    ] {
        let kinds: Vec<&str> = ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
        let spec = json!({"clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": kinds, "ipFamilyPolicy": policy,
            "externalIPs": ["203.0.113.7", "2001:db8::7"]});
        let v4 = slice("a", &[("10.244.1.2", "node1", json!({}))]);
        let v6 = slice("b", &[("fd00:244:1::2", "node1", json!({}))]);
        let p = http(&with([service(spec), v4, v6]));
        assert_eq!((p.families.v4, p.families.v6), families, "{policy} {ips:?}");
        assert_eq!(p.endpoints.len(), ips.len());
        assert_eq!(p.external_ips.len(), ips.len());
    }
}

#[test]
fn host_ports_come_from_the_pod_behind_an_attachment() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": "node1", "containers": [{"ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "protocol": "UDP", "hostPort": 0}]}]},
        "status": {"podIPs": [{"ip": "10.244.1.2"}]}});
    let mut here = local();
    let attachment = |ip: &str| intent::Attachment {
        pod: Some(types::ObjectName::new("default", "p")),
        link: types::OwnedName::for_container("c", "eth0"),
        addresses: [ip.parse().unwrap()].into(),
        host_ports: Vec::new(),
    };
    let key = |c: &str| intent::AttachmentKey { container_id: c.into(), ifname: "eth0".into() };
    here.attachments.insert(key("new"), attachment("10.244.1.2"));
    here.attachments.insert(key("old"), attachment("10.244.1.9"));
    let r = resolve(&cluster(&with([pod])), &here);
    let ports = |c: &str| {
        r.intent.attachments[&key(c)]
            .host_ports
            .iter()
            .map(|h| (h.host.to_string(), h.container_port))
            .collect::<Vec<_>>()
    };
    assert_eq!(ports("new"), [("8080/TCP".into(), 80)]);
    assert_eq!(ports("old"), [], "the interface of an earlier pod of the same name");
}

#[test]
fn deletes_and_replaced_lists() {
    let mut s = cluster(&with([service(json!({})), slice("a", &[("10.244.1.2", "node1", json!({}))])]));
    let web = parse(&service(json!({}))).unwrap();
    let mut other = service(json!({"clusterIPs": ["10.96.0.11"]}));
    other["metadata"]["name"] = "api".into();
    apply(&mut s, Event::Replace(resolve::Kind::Service, vec![parse(&other).unwrap()]));
    assert_eq!(s.services.keys().map(ToString::to_string).collect::<Vec<_>>(), ["default/api"]);
    apply(&mut s, Event::Put(web.clone()));
    apply(&mut s, Event::Delete(web.key));
    assert_eq!(s.services.len(), 1);
    apply(&mut s, Event::Put(parse(&common::settings(json!({"vni": "9", "what": "x"}))).unwrap()));
    assert_eq!((s.settings.vni, s.problems.len()), (9, 1));
    apply(&mut s, Event::Replace(resolve::Kind::ConfigMap, vec![]));
    assert_eq!((s.settings.vni, s.problems.len()), (1, 0), "the defaults again");
}

/// Which cluster addresses nobody has is known to the proxy that serves Services.
#[test]
fn ranges_of_cluster_addresses_are_left_to_another_proxy() {
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16"]}});
    for object in [range, common::settings(json!({"serviceCIDR": "10.96.0.0/16"}))] {
        let snapshot = cluster(&[object]);
        let of = |services_elsewhere| {
            let local = resolve::LocalState { services_elsewhere, ..local() };
            resolve(&snapshot, &local).intent
        };
        assert_eq!(of(false).service_cidrs, ["10.96.0.0/16".parse().unwrap()].into());
        assert!(of(true).service_cidrs.is_empty() && of(true).services_elsewhere);
    }
}
