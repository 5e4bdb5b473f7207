//! Services as kube-proxy means them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

mod common;

use common::{cluster, local, on_node1, service, slice, two};
use intent::{Affinity, ServicePort, TrafficPolicy};
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

fn texts(set: &std::collections::BTreeSet<intent::Endpoint>) -> Vec<String> {
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
    assert_eq!(p.external_ips, ["203.0.113.7", "203.0.113.8"].map(|a| a.parse().unwrap()).into());
    assert_eq!(p.affinity, Affinity::ClientIp { timeout: 60 });
    assert_eq!(p.source_ranges, ["198.51.100.0/24".parse().unwrap()].into());
    // A Service that is no load balancer any more has neither ingress, source ranges nor node ports.
    s["spec"]["type"] = "ClusterIP".into();
    let p = http(&with([{
        s["spec"]["ports"] = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        s
    }]));
    assert_eq!(p.external_ips, ["203.0.113.7".parse().unwrap()].into());
    assert!(p.source_ranges.is_empty() && p.node_port.is_none());
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

#[test]
fn topology_hints_count_when_all_have_them() {
    let hinted = |zones: [Option<&str>; 2]| {
        let mut s = slice("a", &[("10.244.1.2", "node1", json!({})), ("10.244.2.2", "node2", json!({}))]);
        for (i, z) in zones.iter().enumerate() {
            if let Some(z) = z {
                s["endpoints"][i]["hints"] =
                    json!({"forZones": [{"name": z}], "forNodes": [{"name": format!("node{}", i + 1)}]});
            }
        }
        s
    };
    let mut nodes = two();
    nodes[0]["metadata"]["labels"]["topology.kubernetes.io/zone"] = "a".into();
    let count = |zones, spec: Value| {
        let all: Vec<Value> = nodes.iter().cloned().chain([service(spec), hinted(zones)]).collect();
        http(&all).endpoints.len()
    };
    assert_eq!(count([Some("a"), Some("b")], json!({})), 1);
    assert_eq!(count([Some("a"), None], json!({})), 2, "not all have hints");
    assert_eq!(count([Some("b"), Some("b")], json!({})), 2, "none for this zone");
    assert_eq!(count([Some("a"), Some("a")], json!({})), 2);
    assert_eq!(count([Some("a"), Some("a")], json!({"trafficDistribution": "PreferSameNode"})), 1);
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
