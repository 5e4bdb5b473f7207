//! Addresses of LoadBalancerPools: who gets which, who keeps what, and what is said of the rest.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use controller::lb::Memory;
use controller::offline::merge;
use controller::{Options, Which, reconcile_with};
use proptest::prelude::*;
use resolve::api::WriteOp;
use resolve::load_balancer::{CONDITION, GIVEN_FROM};
use resolve::{ClusterSnapshot, Event, apply, parse};
use serde_json::{Value, json};
use types::Family;

const NOW: &str = "2026-01-01T00:00:00Z";

/// An API server as far as this controller needs one.
#[derive(Default, Clone)]
struct World {
    objects: BTreeMap<(String, String), Value>,
    memory: Memory,
    clock: u32,
}

fn key(v: &Value) -> (String, String) {
    (v["kind"].as_str().unwrap().into(), v["metadata"]["name"].as_str().unwrap().into())
}

impl World {
    fn put(&mut self, mut v: Value) -> &mut Self {
        self.clock += 1;
        if v["metadata"]["creationTimestamp"].is_null() {
            v["metadata"]["creationTimestamp"] =
                format!("2026-01-01T00:{:02}:{:02}Z", self.clock / 60, self.clock % 60).into();
        }
        v["metadata"]["uid"] = format!("u{}", self.clock).into();
        self.objects.insert(key(&v), v);
        self
    }

    fn patch(&mut self, kind: &str, name: &str, patch: &Value) -> &mut Self {
        merge(self.objects.get_mut(&(kind.into(), name.into())).unwrap(), patch);
        self
    }

    fn remove(&mut self, kind: &str, name: &str) -> &mut Self {
        self.objects.remove(&(kind.into(), name.into()));
        self
    }

    fn snapshot<'a>(objects: impl Iterator<Item = &'a Value>) -> ClusterSnapshot {
        let mut s = ClusterSnapshot::default();
        for v in objects {
            apply(&mut s, Event::Put(parse(v).unwrap()));
        }
        s
    }

    /// One pass on what is there; how many writes, and the problems.
    fn pass(&mut self) -> (usize, Vec<String>) {
        let s = Self::snapshot(self.objects.values());
        self.pass_on(&s)
    }

    fn pass_on(&mut self, s: &ClusterSnapshot) -> (usize, Vec<String>) {
        let options = Options { which: BTreeSet::from([Which::LoadBalancers]), ..Options::default() };
        let out = reconcile_with(s, &options, &mut self.memory, NOW);
        for w in &out.writes {
            let Some(v) = self.objects.get_mut(&(w.resource.kind.to_string(), w.name.name.to_string())) else {
                continue;
            };
            match &w.op {
                WriteOp::Patch(p) => {
                    assert!(p.get("status").is_none());
                    merge(v, p);
                }
                WriteOp::PatchStatus(p) => {
                    assert_eq!(p.as_object().unwrap().keys().collect::<Vec<_>>(), ["status"]);
                    merge(v, p);
                }
                other => panic!("{other:?}"),
            }
        }
        (out.writes.len(), out.problems.iter().map(ToString::to_string).collect())
    }

    /// Passes until nothing is written; the problems of the last.
    fn settle(&mut self) -> Vec<String> {
        for _ in 0..4 {
            let (n, problems) = self.pass();
            if n == 0 {
                return problems;
            }
        }
        panic!("does not settle");
    }

    fn ips(&self, name: &str) -> Vec<String> {
        let v = &self.objects[&("Service".to_owned(), name.to_owned())];
        let list = v["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        list.iter().map(|i| i["ip"].as_str().unwrap().to_owned()).collect()
    }

    fn condition(&self, name: &str) -> (String, String) {
        let v = &self.objects[&("Service".to_owned(), name.to_owned())];
        let all = v["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let c = all.iter().find(|c| c["type"] == CONDITION).cloned().unwrap_or_default();
        (c["status"].as_str().unwrap_or("").into(), c["reason"].as_str().unwrap_or("").into())
    }

    fn status(&self, pool: &str) -> Value {
        self.objects[&("LoadBalancerPool".to_owned(), pool.to_owned())]["status"].clone()
    }
}

fn pool(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "seaway.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": name}, "spec": spec})
}

fn addresses(name: &str, list: &[&str]) -> Value {
    pool(name, json!({"addresses": list}))
}

fn service(name: &str, notes: Value, spec: Value) -> Value {
    let mut v = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "d", "annotations": notes},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "ipFamilies": ["IPv4"], "selector": {"app": name}}});
    merge(&mut v["spec"], &spec);
    v
}

fn plain(name: &str) -> Value {
    service(name, json!({}), json!({}))
}

fn has(problems: &[String], parts: &[&str]) -> bool {
    problems.iter().any(|p| parts.iter().all(|x| p.contains(x)))
}

#[test]
fn the_older_gets_the_lower_and_status_says_so() {
    let mut w = World::default();
    w.put(addresses("p", &["10.0.0.8-10.0.0.9", "fd00::/127"])).put(plain("b")).put(plain("a"));
    w.put(service("dual", json!({}), json!({"ipFamilies": ["IPv6", "IPv4"]})));
    let problems = w.settle();
    assert_eq!(
        (w.ips("b"), w.ips("a"), w.ips("dual")),
        (vec!["10.0.0.8".into()], vec!["10.0.0.9".into()], vec!["fd00::".into()])
    );
    assert!(has(&problems, &["Service/d/dual spec.ipFamilies (IPv4)", "LoadBalancerPool p is in use"]), "{problems:?}");
    assert_eq!(w.condition("a"), ("True".into(), "Assigned".into()));
    assert_eq!(w.condition("dual"), ("False".into(), "PoolExhausted".into()));
    let ingress = &w.objects[&("Service".to_owned(), "a".to_owned())];
    assert_eq!(ingress["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert_eq!(ingress["metadata"]["annotations"][GIVEN_FROM], "p");
    assert_eq!(w.status("p"), json!({"free": "1", "used": 3, "services": 3, "message": ""}));
    // One goes, the one that waits comes to its address; nobody else moves.
    w.remove("Service", "b");
    assert!(w.settle().is_empty());
    assert_eq!((w.ips("a"), w.ips("dual")), (vec!["10.0.0.9".into()], vec!["fd00::".into(), "10.0.0.8".into()]));
    // A controller that starts anew writes nothing.
    let before = w.objects.clone();
    w.memory = Memory::default();
    assert_eq!(w.pass().0, 0);
    assert!(before == w.objects);
}

#[test]
fn whose_services_are_served() {
    let mut w = World::default();
    // No pool: nothing is said or done.
    w.put(plain("a"));
    assert_eq!(w.pass(), (0, vec![]));
    w.put(addresses("p", &["10.0.0.0/28"]));
    w.put(service("mine", json!({}), json!({"loadBalancerClass": "seaway.io/load-balancer"})));
    w.put(service("other", json!({}), json!({"loadBalancerClass": "cloud.example/lb"})));
    w.put(service("inside", json!({}), json!({"type": "ClusterIP"})));
    let mut foreign = plain("foreign");
    foreign["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.1"}]);
    w.put(foreign);
    let problems = w.settle();
    assert_eq!((w.ips("a").len(), w.ips("mine").len(), w.ips("other").len(), w.ips("inside").len()), (1, 1, 0, 0));
    assert_eq!(w.ips("foreign"), ["192.0.2.1"]);
    assert!(has(&problems, &["Service/d/foreign status.loadBalancer.ingress", "left alone"]), "{problems:?}");
    w.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway", "namespace": "kube-system"},
        "data": {"loadBalancerDefault": "false"}}));
    w.settle();
    assert_eq!((w.ips("a").len(), w.ips("mine").len()), (0, 1), "those without class are no longer ours");
    // A type that changes gives back, with every trace.
    w.patch("Service", "mine", &json!({"spec": {"type": "ClusterIP"}}));
    w.settle();
    assert!(w.ips("mine").is_empty());
    let mine = &w.objects[&("Service".to_owned(), "mine".to_owned())];
    assert!(mine["metadata"]["annotations"][GIVEN_FROM].is_null() && mine["status"]["conditions"].is_null(), "{mine}");
}

#[test]
fn nothing_moves_without_need() {
    let mut w = World::default();
    w.put(addresses("p", &["10.0.0.0/29"])).put(plain("a")).put(plain("b"));
    w.settle();
    let given = (w.ips("a"), w.ips("b"));
    for (patch, what) in [
        (json!({"spec": {"disabled": true}}), "disabled"),
        (json!({"spec": {"addresses": ["10.0.0.4/30"]}}), "shrunk"),
        (json!({"spec": {"serviceSelector": {"matchLabels": {"x": "y"}}}}), "selects others"),
        (json!({"spec": {"avoidBuggyIPs": true}}), "avoids .0"),
    ] {
        let mut v = w.clone();
        v.patch("LoadBalancerPool", "p", &patch);
        v.settle();
        assert_eq!((v.ips("a"), v.ips("b")), given, "{what}");
        v.put(plain("c"));
        let problems = v.settle();
        let none = matches!(what, "disabled" | "selects others");
        assert_eq!(v.ips("c").is_empty(), none, "{what}");
        assert_eq!(has(&problems, &["Service/d/c", "no LoadBalancerPool has IPv4 addresses"]), none, "{problems:?}");
        v.memory = Memory::default();
        assert_eq!(v.pass().0, 0, "{what}: a restart");
        if what == "shrunk" {
            assert!(v.status("p")["message"].as_str().unwrap().contains("still in use: 10.0.0.0, 10.0.0.1"));
            assert_eq!(v.ips("c"), ["10.0.0.4"]);
        }
        if what == "disabled" {
            assert!(v.status("p")["message"].as_str().unwrap().contains("2 Services have addresses of it: d/a, d/b"));
        }
    }
    // A pool that goes takes its addresses along; another steps in.
    w.put(addresses("q", &["10.9.0.0/29"]));
    w.remove("LoadBalancerPool", "p");
    w.settle();
    assert_eq!((w.ips("a"), w.ips("b")), (vec!["10.9.0.0".into()], vec!["10.9.0.1".into()]));
    w.remove("LoadBalancerPool", "q");
    w.settle();
    assert!(w.ips("a").is_empty());
    assert_eq!(w.condition("a").1, "NoPool");
}

#[test]
fn addresses_that_are_asked_for() {
    let mut w = World::default();
    w.put(addresses("p", &["10.0.0.0/29", "fd00::/125"]))
        .put(pool("named", json!({"addresses": ["10.1.0.0/30"], "autoAssign": false})));
    w.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}));
    w.put(plain("early"));
    let want = |name: &str, ips: &str| {
        service(name, json!({"seaway.io/load-balancer-ips": ips}), json!({"ipFamilies": ["IPv4", "IPv6"]}))
    };
    w.put(want("both", "fd00::5,10.0.0.5"));
    w.put(service("old", json!({}), json!({"loadBalancerIP": "10.0.0.4"})));
    w.put(service("from", json!({"metallb.io/address-pool": "named"}), json!({})));
    w.put(plain("any"));
    let problems = w.settle();
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(w.ips("early"), ["10.0.0.0"]);
    assert_eq!(w.ips("both"), ["10.0.0.5", "fd00::5"]);
    assert_eq!((w.ips("old"), w.ips("from")), (vec!["10.0.0.4".into()], vec!["10.1.0.0".into()]));
    assert_eq!(w.ips("any"), ["10.0.0.2"], "not the node's own, and lower than what was asked for");
    for (name, ip, why, reason) in [
        ("taken", "10.0.0.4", "is Service d/old's, and it cannot be shared: they have no sharing key", "AddressInUse"),
        ("node", "10.0.0.1", "belongs to Node n", "AddressInUse"),
        ("outside", "192.0.2.1", "is in no LoadBalancerPool", "NoPool"),
        ("family", "fd00::1", "has no IPv6 in spec.ipFamilies", "InvalidRequest"),
        ("text", "web", "cannot be read, so none is given", "InvalidRequest"),
    ] {
        w.put(service(name, json!({"seaway.io/load-balancer-ips": ip}), json!({})));
        let problems = w.settle();
        assert!(
            has(&problems, &[&format!("Service/d/{name} metadata.annotations[seaway.io/load-balancer-ips]"), why]),
            "{problems:?}"
        );
        assert_eq!(w.condition(name), ("False".into(), reason.into()));
        let got = w.ips(name);
        assert!(got.is_empty() == (name != "family"), "{name}: {got:?}");
    }
    // One that is asked for later moves there if it can, and stays where it is if not.
    w.patch("Service", "any", &json!({"spec": {"loadBalancerIP": "10.0.0.4"}}));
    w.settle();
    assert_eq!(w.ips("any"), ["10.0.0.2"]);
    w.remove("Service", "old");
    w.settle();
    assert!(w.ips("any") == ["10.0.0.4"] || w.ips("taken") == ["10.0.0.4"]);
}

#[test]
fn sharing() {
    let mut w = World::default();
    w.put(addresses("p", &["10.0.0.0/30"]));
    let s = |name: &str, port: u16, spec: Value| {
        let mut v = service(name, json!({"seaway.io/sharing-key": "k"}), spec);
        v["spec"]["ports"] = json!([{"port": port}]);
        v
    };
    w.put(s("a", 80, json!({}))).put(s("b", 443, json!({}))).put(s("clash", 80, json!({})));
    w.put(s("local", 8080, json!({"externalTrafficPolicy": "Local"})));
    w.settle();
    let of = |w: &World, n: &str| w.ips(n)[0].clone();
    assert_eq!(of(&w, "a"), of(&w, "b"));
    assert_eq!(w.ips("clash"), ["10.0.0.1"]);
    assert_eq!(w.ips("local"), ["10.0.0.2"]);
    // Ports that come to clash: the younger moves.
    w.patch("Service", "b", &json!({"spec": {"ports": [{"port": 80}]}}));
    w.settle();
    assert_eq!((of(&w, "a"), of(&w, "b")), ("10.0.0.0".into(), "10.0.0.3".into()));
    // Another namespace only when both allow it.
    let mut x = World::default();
    x.put(addresses("p", &["10.0.0.0/30"])).put(s("a", 80, json!({})));
    let mut far = s("far", 81, json!({}));
    far["metadata"]["namespace"] = "e".into();
    far["metadata"]["annotations"]["seaway.io/sharing-namespaces"] = "d".into();
    x.put(far);
    x.settle();
    assert_eq!(x.ips("far"), ["10.0.0.1"]);
    x.patch("Service", "a", &json!({"metadata": {"annotations": {"seaway.io/sharing-namespaces": "*"}}}));
    x.patch("Service", "far", &json!({"metadata": {"annotations": {"seaway.io/load-balancer-ips": "10.0.0.0"}}}));
    x.settle();
    assert_eq!(x.ips("far"), x.ips("a"));
}

#[test]
fn pools_that_overlap_each_other_or_pods() {
    let mut w = World::default();
    w.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seaway", "namespace": "kube-system"},
        "data": {"clusterCIDR": "10.244.0.0/16"}}));
    w.put(addresses("old", &["10.0.0.0-10.0.0.1"])).put(addresses("young", &["10.0.0.1-10.0.0.2", "10.244.0.0/30"]));
    for n in ["a", "b", "c", "d"] {
        w.put(plain(n));
    }
    let problems = w.settle();
    assert!(
        has(
            &problems,
            &["LoadBalancerPool/young spec.addresses", "also in LoadBalancerPool old", "pod range 10.244.0.0/16"]
        ),
        "{problems:?}"
    );
    let all: BTreeSet<String> = ["a", "b", "c", "d"].iter().flat_map(|n| w.ips(n)).collect();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["10.0.0.0", "10.0.0.1", "10.0.0.2"]);
}

#[test]
fn selectors_choose_the_pool() {
    let mut w = World::default();
    w.put(addresses("all", &["10.0.0.0/28"]));
    w.put(pool("red", json!({"addresses": ["10.1.0.0/28"], "namespaceSelector": {"matchLabels": {"team": "red"}}})));
    w.put(pool("web", json!({"addresses": ["10.2.0.0/28"], "serviceSelector": {"matchLabels": {"tier": "web"}}})));
    w.put(plain("a"));
    let mut web = plain("b");
    web["metadata"]["labels"] = json!({"tier": "web"});
    w.put(web);
    w.settle();
    assert_eq!((w.ips("a"), w.ips("b")), (vec!["10.0.0.0".into()], vec!["10.2.0.0".into()]));
    w.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "d", "labels": {"team": "red"}}}));
    w.put(plain("c"));
    w.settle();
    assert_eq!((w.ips("a"), w.ips("c")), (vec!["10.0.0.0".into()], vec!["10.1.0.0".into()]));
}

#[test]
fn a_watch_that_lags_gives_nothing_twice() {
    let mut w = World::default();
    w.put(addresses("p", &["10.0.0.0/29"])).put(plain("a"));
    w.settle();
    let old = w.objects[&("Service".to_owned(), "a".to_owned())].clone();
    w.patch("Service", "a", &json!({"spec": {"loadBalancerIP": "10.0.0.5"}}));
    w.pass();
    assert_eq!(w.ips("a"), ["10.0.0.5"]);
    // The next pass still sees where it was, and somebody new who asks for where it is.
    w.put(service("b", json!({}), json!({"loadBalancerIP": "10.0.0.5"})));
    let mut seen = w.objects.clone();
    seen.insert(("Service".into(), "a".into()), old);
    let s = World::snapshot(seen.values());
    w.pass_on(&s);
    assert_eq!((w.ips("a"), w.ips("b")), (vec!["10.0.0.5".to_owned()], vec![]));
}

#[derive(Debug, Clone)]
enum Act {
    Service(u8, u8, u8),
    Gone(u8),
    Pool(u8, u8, u8, bool),
    PoolGone(u8),
    Want(u8, u8),
    Restart,
    /// A pass on what was there so many acts ago for Services, as a watch that lags shows it.
    Stale,
    Pass,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0u8..8, 0u8..4, 0u8..3).prop_map(|(n, port, key)| Act::Service(n, port, key)),
        1 => (0u8..8).prop_map(Act::Gone),
        2 => (0u8..3, 0u8..12, 1u8..6, any::<bool>()).prop_map(|(n, from, len, closed)| Act::Pool(n, from, len, closed)),
        1 => (0u8..3).prop_map(Act::PoolGone),
        1 => (0u8..8, 0u8..16).prop_map(|(n, ip)| Act::Want(n, ip)),
        1 => Just(Act::Restart),
        2 => Just(Act::Stale),
        4 => Just(Act::Pass),
    ]
}

/// No address is two Services' that do not share: same key, no port in common.
fn check(w: &World) -> Result<(), TestCaseError> {
    let mut by_ip: BTreeMap<IpAddr, Vec<&Value>> = BTreeMap::new();
    for ((kind, name), v) in &w.objects {
        if kind == "Service" {
            for ip in w.ips(name) {
                by_ip.entry(ip.parse().unwrap()).or_default().push(v);
            }
            let families: BTreeSet<Family> = w.ips(name).iter().map(|i| Family::of(i.parse().unwrap())).collect();
            prop_assert_eq!(families.len(), w.ips(name).len());
        }
    }
    for (ip, who) in by_ip {
        for (i, a) in who.iter().enumerate() {
            for b in who.iter().skip(i + 1) {
                let key =
                    |v: &Value| v["metadata"]["annotations"]["seaway.io/sharing-key"].as_str().unwrap_or("").to_owned();
                prop_assert!(
                    !key(a).is_empty() && key(a) == key(b),
                    "{ip}: {} and {}",
                    a["metadata"]["name"],
                    b["metadata"]["name"]
                );
                prop_assert!(a["spec"]["ports"] != b["spec"]["ports"], "{ip}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn never_one_address_for_two_that_do_not_share(acts in prop::collection::vec(act(), 1..60)) {
        let mut w = World::default();
        let mut before = w.objects.clone();
        for a in acts {
            match a {
                Act::Service(n, port, key) => {
                    let name = format!("s{n}");
                    // Ports and keys are fixed for life: to change them makes two clash until the next pass.
                    if !w.objects.contains_key(&("Service".to_owned(), name.clone())) {
                        let key = if key == 0 { Value::Null } else { format!("k{key}").into() };
                        let families = if n % 2 == 0 { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
                        let mut v = service(&name, json!({"seaway.io/sharing-key": key}), json!({"ipFamilies": families}));
                        v["spec"]["ports"] = json!([{"port": 80 + u16::from(port)}]);
                        w.put(v);
                    }
                }
                Act::Gone(n) => { w.remove("Service", &format!("s{n}")); }
                Act::Pool(n, from, len, closed) => {
                    let list = [format!("10.0.0.{from}-10.0.0.{}", from + len), format!("fd00::{from:x}-fd00::{:x}", from + len)];
                    w.put(pool(&format!("p{n}"), json!({"addresses": list, "disabled": closed})));
                }
                Act::PoolGone(n) => { w.remove("LoadBalancerPool", &format!("p{n}")); }
                Act::Want(n, ip) => {
                    let name = format!("s{n}");
                    if w.objects.contains_key(&("Service".to_owned(), name.clone())) {
                        w.patch("Service", &name, &json!({"spec": {"loadBalancerIP": format!("10.0.0.{ip}")}}));
                    }
                }
                Act::Restart => {
                    // What the new process sees next is never older than what it saw first.
                    w.memory = Memory::default();
                    before = w.objects.clone();
                    w.pass();
                }
                Act::Stale => {
                    // Everything as it is, but the Services as they were: only what exists can be seen.
                    let mut seen = w.objects.clone();
                    for (k, v) in &before {
                        if k.0 == "Service" && seen.get(k).is_some_and(|n| n["metadata"]["uid"] == v["metadata"]["uid"]) {
                            seen.insert(k.clone(), v.clone());
                        }
                    }
                    let s = World::snapshot(seen.values());
                    w.pass_on(&s);
                }
                Act::Pass => {
                    before = w.objects.clone();
                    w.pass();
                }
            }
            check(&w)?;
        }
        w.settle();
        check(&w)?;
        // A restart changes nothing, and neither does the order in which objects come.
        w.memory = Memory::default();
        prop_assert_eq!(w.pass().0, 0);
        let s = World::snapshot(w.objects.values().rev());
        prop_assert_eq!(w.pass_on(&s).0, 0);
    }
}
