use serde_json::{Value, json};

use super::*;
use crate::events::{Event, Object, apply};
use crate::snapshot::Kind;

fn read(kind: Kind, v: &Value) -> (Option<Object>, Vec<String>) {
    let p = crate::parse_as(kind, v);
    (p.object, p.problems.iter().map(ToString::to_string).collect())
}

fn pool(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": name}, "spec": spec})
}

#[test]
fn pools_that_cannot_be_are_told_by_field() {
    for (spec, ranges, why) in [
        (json!({}), None, "spec.addresses: is missing"),
        (json!({"addresses": ["10.0.0.0/30", "10.0.0.9-10.0.0.3"]}), Some(1), "spec.addresses[1]"),
        (json!({"addresses": ["127.0.0.1"]}), Some(0), "loopback"),
        (json!({"addresses": ["fe80::1-fe80::9", "fd00::/120"]}), Some(1), "link-local"),
        (json!({"addresses": ["239.0.0.1"]}), Some(0), "multicast"),
        (json!({"addresses": ["10.0.0.1"], "announce": "BGP"}), Some(1), "spec.announce: \"BGP\": write L2"),
        (json!({"addresses": ["10.0.0.1"], "nodeSelector": 7}), Some(1), "spec.nodeSelector"),
    ] {
        let (o, problems) = read(Kind::LoadBalancerPool, &pool("p", &spec));
        let have = o.map(|o| match o {
            Object::LoadBalancerPool(p) => p.ranges.len(),
            _ => panic!(),
        });
        assert_eq!(have, ranges, "{spec}: {problems:?}");
        assert!(problems.iter().any(|p| p.contains(why)), "{spec}: {problems:?}");
    }
}

fn service(name: &str, annotations: &Value, spec: Value, ingress: &Value) -> Value {
    let mut v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "d", "annotations": annotations},
        "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
    v["spec"]["ports"] = json!([{"port": 80}]);
    v
}

#[test]
fn what_a_service_asks_for_in_anybodys_words() {
    let lb = |notes: Value, more: Value| {
        let mut spec = json!({"type": "LoadBalancer"});
        for (k, v) in more.as_object().unwrap() {
            spec[k] = v.clone();
        }
        let (o, problems) = read(Kind::Service, &service("s", &notes, spec, &json!(null)));
        let Some(Object::Service(s)) = o else { panic!("{problems:?}") };
        (*s.balancer.unwrap(), problems)
    };
    for key in WANTED {
        let (a, p) = lb(json!({key: "10.0.0.1, fd00::1"}), json!({"loadBalancerIP": "10.0.0.9"}));
        assert_eq!((a.wanted.len(), a.unreadable, p.len()), (2, false, 0), "{key}");
        assert!(a.wanted_field.contains(key));
    }
    let (a, _) = lb(json!({}), json!({"loadBalancerIP": "10.0.0.9", "loadBalancerClass": "x/y"}));
    assert_eq!((a.wanted.len(), &*a.wanted_field, a.class.as_deref()), (1, "spec.loadBalancerIP", Some("x/y")));
    let (a, p) = lb(json!({WANTED[0]: "10.0.0.1,10.0.0.2"}), json!({}));
    assert!(a.unreadable && p[0].contains("a second IPv4 address"), "{p:?}");
    let (a, p) = lb(json!({WANTED[0]: "web"}), json!({}));
    assert!(a.unreadable && p[0].contains("Service/d/s metadata.annotations.seaway.io/load-balancer-ips"), "{p:?}");
    let (a, _) = lb(json!({SHARING[1]: "k", SHARING_ACROSS[1]: "a,b", FROM[1]: "one"}), json!({}));
    assert_eq!((&*a.sharing, a.sharing_across.len(), &*a.pools[0]), ("k", 2, "one"));
    let (o, _) = read(Kind::Service, &service("s", &json!({}), json!({"type": "ClusterIP"}), &json!(null)));
    assert!(matches!(o, Some(Object::Service(s)) if s.balancer.is_none()), "no cost for others");
}

#[test]
fn who_may_announce() {
    let mut s = ClusterSnapshot::default();
    let mut put = |v: Value| apply(&mut s, Event::Put(crate::parse(&v).unwrap()));
    for (name, labels) in [("a", json!({})), ("b", json!({"rack": "1"})), ("c", json!({EXCLUDE: ""}))] {
        put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    }
    put(pool("p", &json!({"addresses": ["10.0.0.0/28"], "interfaces": ["eth1"]})));
    put(pool("rack", &json!({"addresses": ["10.0.1.0/28"], "nodeSelector": {"matchLabels": {"rack": "1"}}})));
    put(pool("quiet", &json!({"addresses": ["10.0.2.0/28"], "announce": "None"})));
    let lb = json!({"type": "LoadBalancer"});
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    put(service("plain", &json!({}), lb.clone(), &json!([{"ip": "10.0.0.1"}])));
    put(service("racked", &json!({}), lb.clone(), &json!([{"ip": "10.0.1.1"}])));
    put(service("quiet", &json!({}), lb.clone(), &json!([{"ip": "10.0.2.1"}])));
    put(service("foreign", &json!({}), lb.clone(), &json!([{"ip": "192.0.2.1"}])));
    put(service("proxied", &json!({}), lb.clone(), &json!([{"ip": "10.0.0.2", "ipMode": "Proxy"}])));
    put(service("shrunk", &json!({GIVEN_FROM: "p"}), lb, &json!([{"ip": "10.0.9.9"}])));
    put(service("was", &json!({}), json!({"type": "ClusterIP"}), &json!([{"ip": "10.0.0.4"}])));
    put(service("local", &json!({}), local, &json!([{"ip": "10.0.0.5"}])));
    put(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "local-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "local"}},
        "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "b"}, {"addresses": ["10.1.0.2"], "nodeName": "a", "conditions": {"ready": false}}]}));
    let all = announcements(&s);
    let nodes = |ip: &str| all[&ip.parse().unwrap()].nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>();
    assert_eq!(all.len(), 4, "{all:?}");
    assert_eq!((nodes("10.0.0.1"), nodes("10.0.1.1"), nodes("10.0.9.9")), (vec!["a", "b"], vec!["b"], vec!["a", "b"]));
    assert_eq!(nodes("10.0.0.5"), ["b"], "only where an endpoint is ready");
    assert_eq!(all[&"10.0.0.1".parse().unwrap()].interfaces.len(), 1);
}
