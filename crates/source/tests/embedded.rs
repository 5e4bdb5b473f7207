//! The source against the embedded API server, over its real sockets.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

use std::path::{Path, PathBuf};
use std::time::Duration;

use apiserver::{Config, Server, TlsConfig};
use resolve::api::Resource;
use resolve::{ClusterSnapshot, Key, Kind};
use serde_json::{Value, json};
use source::{Api, Note, Recorder, Source, Target, WatchConfig, connect, run_controllers};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use types::ObjectName;

/// A running server; stopping drops every connection.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(store: &Path, socket: &Path, history: usize) -> Self {
        let mut config = Config::new(store);
        config.unix = Some(socket.into());
        config.history = history;
        let server = Server::start(config).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move { server.run(async { stopped.await.unwrap_or(()) }).await.unwrap() });
        Self { stop, task }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    async fn server(&self) -> Running {
        Running::start(&self.at("api.redb"), &self.at("api.sock"), 4096).await
    }
    async fn api(&self) -> Api {
        connect(&Target::Unix(self.at("api.sock"))).await.unwrap()
    }
}

fn named(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn node(n: u8) -> (ObjectName, Value) {
    let name = ObjectName::new("", &format!("node{n}"));
    (name, json!({"metadata": {"labels": {"n": n.to_string()}}}))
}

async fn add_node(api: &Api, n: u8) {
    let (name, body) = node(n);
    api.create(&Kind::Node.into(), &name, body).await.unwrap();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": format!("192.168.0.{n}")}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    api.merge_status(&Kind::Node.into(), &name, &status).await.unwrap();
}

async fn add_namespace(api: &Api, name: &str) {
    api.create(&Kind::Namespace.into(), &ObjectName::new("", name), json!({})).await.unwrap();
}

/// Waits until the snapshot is so, at most ten seconds.
async fn until(source: &mut Source, what: &str, check: impl Fn(&ClusterSnapshot) -> bool) {
    let wait = async {
        while !source.read(|s, sync| sync.all() && check(s)) {
            source.changed().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
        panic!("not within 10 s: {what}\n{:#?}", source.read(|s, sync| (s.clone(), sync.clone())));
    }
}

#[tokio::test]
async fn in_sync_is_known_of_each_kind_also_when_the_server_comes_later() {
    let place = Place::new();
    let api = place.api().await;
    let mut source = Source::start(&api, WatchConfig::agent());
    while source.in_sync().failing.len() < Kind::AGENT.len() {
        source.changed().await;
    }
    let sync = source.in_sync();
    assert!(!sync.all());
    assert_eq!(sync.missing().count(), Kind::AGENT.len());
    assert!(sync.failing.values().all(|why| why.contains("api.sock")), "{sync:?}");
    let server = place.server().await;
    until(&mut source, "in sync", |_| true).await;
    assert!(source.in_sync().failing.is_empty());
    assert!(source.read(|s, _| s.namespaces.contains_key("kube-system")));
    server.stop().await;
}

#[tokio::test]
async fn changes_arrive_slim_and_bad_settings_as_problems() {
    let place = Place::new();
    let server = place.server().await;
    let api = place.api().await;
    add_node(&api, 1).await;
    let mut source = Source::start(&api, WatchConfig::agent());
    until(&mut source, "node1", |s| s.nodes.len() == 1).await;
    api.annotate_node(&"node1".parse().unwrap(), [("seaway.io/backend", Some("vxlan".to_owned()))]).await.unwrap();
    until(&mut source, "annotation", |s| s.nodes.values().any(|n| n.backend == Some(intent_backend("vxlan")))).await;
    api.annotate_node(&"node1".parse().unwrap(), [("seaway.io/backend", None)]).await.unwrap();
    until(&mut source, "no annotation", |s| s.nodes.values().all(|n| n.backend.is_none())).await;
    let web = json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    api.create(&Kind::Service.into(), &named("web"), web).await.unwrap();
    until(&mut source, "service with an address", |s| {
        s.services.get(&named("web")).is_some_and(|s| s.cluster_ips.len() == 1 && s.ports.len() == 1)
    })
    .await;
    let settings = json!({"data": {"backend": "host-gw", "typo": "x"}});
    let name = ObjectName::new("kube-system", "seaway");
    api.create(&Kind::ConfigMap.into(), &name, settings).await.unwrap();
    until(&mut source, "settings", |s| {
        s.settings.backend == intent_backend("host-gw") && s.problems.values().flatten().any(|p| p.field == "data.typo")
    })
    .await;
    // Other ConfigMaps do not count.
    api.create(&Kind::ConfigMap.into(), &named("seaway"), json!({"data": {"backend": "vxlan"}})).await.unwrap();
    api.delete(&Kind::Service.into(), &named("web"), "", None).await.unwrap();
    until(&mut source, "service gone", |s| !s.services.contains_key(&named("web"))).await;
    assert_eq!(source.read(|s, _| s.settings.backend), intent_backend("host-gw"));
    api.delete(&Kind::ConfigMap.into(), &name, "", None).await.unwrap();
    until(&mut source, "defaults", |s| !s.settings.present && s.problems.is_empty()).await;
    server.stop().await;
}

fn intent_backend(name: &str) -> resolve::Backend {
    name.parse().unwrap()
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_nothing_is_lost() {
    let place = Place::new();
    let mut server = place.server().await;
    let api = place.api().await;
    let mut source = Source::start(&api, WatchConfig::agent());
    add_namespace(&api, "n0").await;
    until(&mut source, "n0", |s| s.namespaces.contains_key("n0")).await;
    for round in 1..=3 {
        server.stop().await;
        // What is known stays known while the server is away.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(source.read(|s, sync| sync.all() && s.namespaces.contains_key("n0")));
        server = place.server().await;
        let name = format!("n{round}");
        add_namespace(&api, &name).await;
        until(&mut source, &name, |s| s.namespaces.contains_key(&*name)).await;
        let version = source.version();
        api.delete(&Kind::Namespace.into(), &ObjectName::new("", &name), "", None).await.unwrap();
        until(&mut source, "deletion", |s| !s.namespaces.contains_key(&*name)).await;
        assert!(source.version() > version);
    }
    // Once for each time that it could not be reached, in which it could have been restored to an older revision.
    assert!(source.in_sync().lists.values().all(|n| *n <= 1 + 3), "{:?}", source.in_sync().lists);
    server.stop().await;
}

#[tokio::test]
async fn a_history_that_is_gone_means_a_new_list() {
    let place = Place::new();
    let server = Running::start(&place.at("api.redb"), &place.at("api.sock"), 8).await;
    let api = place.api().await;
    for n in 1..=3 {
        add_node(&api, n).await;
    }
    let mut source = Source::start(&api, WatchConfig::agent());
    until(&mut source, "3 nodes", |s| s.nodes.len() == 3).await;
    server.stop().await;
    // Behind the source's back, on another socket: more events than the server remembers.
    let server = Running::start(&place.at("api.redb"), &place.at("other.sock"), 8).await;
    let hidden = connect(&Target::Unix(place.at("other.sock"))).await.unwrap();
    hidden.delete(&Kind::Node.into(), &ObjectName::new("", "node2"), "", None).await.unwrap();
    for i in 0..40 {
        hidden.annotate_node(&"node1".parse().unwrap(), [("x", Some(i.to_string()))]).await.unwrap();
    }
    add_node(&hidden, 4).await;
    server.stop().await;
    let server = Running::start(&place.at("api.redb"), &place.at("api.sock"), 8).await;
    until(&mut source, "node2 gone, node4 there", |s| {
        s.nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>() == ["node1", "node3", "node4"]
    })
    .await;
    assert_eq!(source.in_sync().lists[&Kind::Node], 2, "the watch could not be resumed");
    server.stop().await;
}

#[tokio::test]
async fn over_tls_with_a_kubeconfig() {
    let place = Place::new();
    let mut config = Config::new(place.at("api.redb"));
    config.tls = Some(TlsConfig { addrs: vec!["127.0.0.1:0".parse().unwrap()], ..TlsConfig::default() });
    let server = Server::start(config).await.unwrap();
    let url = format!("https://{}", server.tls_addrs()[0]);
    std::fs::write(place.at("admin.conf"), server.kubeconfig("seaway", &url).unwrap()).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(async { stopped.await.unwrap_or(()) }));
    let api = connect(&Target::Kubeconfig(place.at("admin.conf"))).await.unwrap();
    api.ready().await.unwrap();
    add_node(&api, 1).await;
    let mut source = Source::start(&api, WatchConfig::agent());
    until(&mut source, "node1 over TLS", |s| s.nodes.len() == 1).await;
    drop(source);
    let _ = stop.send(());
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn lists_longer_than_a_page() {
    let place = Place::new();
    let server = place.server().await;
    let api = place.api().await;
    for n in 0..130 {
        add_namespace(&api, &format!("n{n}")).await;
    }
    let mut source = Source::start(&api, WatchConfig { kinds: [Kind::Namespace].into(), pods_of: None });
    until(&mut source, "130 namespaces and the server's own", |s| s.namespaces.len() >= 130).await;
    assert!(api.list(&Kind::Namespace.into(), "").await.unwrap().len() >= 130);
    server.stop().await;
}

#[tokio::test]
async fn an_agent_may_watch_its_own_pods_only() {
    let place = Place::new();
    let server = place.server().await;
    let api = place.api().await;
    for n in ["node1", "node2"] {
        let pod = json!({"spec": {"nodeName": n, "containers": [{"name": "c", "image": "i"}]}});
        api.create(&Kind::Pod.into(), &named(&format!("on-{n}")), pod).await.unwrap();
    }
    let config = WatchConfig { kinds: [Kind::Pod].into(), pods_of: Some("node2".parse().unwrap()) };
    let mut source = Source::start(&api, config);
    until(&mut source, "one pod", |s| s.pods.keys().map(|p| &*p.name).collect::<Vec<_>>() == ["on-node2"]).await;
    server.stop().await;
}

#[tokio::test]
async fn writes_and_their_errors() {
    let place = Place::new();
    let server = place.server().await;
    let api = place.api().await;
    let maps: Resource = Kind::ConfigMap.into();
    let made = api.create(&maps, &named("a"), json!({"data": {"k": "1"}})).await.unwrap();
    let again = api.create(&maps, &named("a"), json!({})).await.unwrap_err();
    assert!(again.is_conflict() && again.to_string().contains("AlreadyExists"), "{again}");
    api.merge(&maps, &named("a"), &json!({"data": {"k": "2"}})).await.unwrap();
    // The version that `made` has is no more the newest.
    let stale = api.replace(&maps, &named("a"), made).await.unwrap_err();
    assert!(stale.is_conflict() && stale.to_string().contains("Conflict"), "{stale}");
    assert_eq!(api.get(&maps, &named("a")).await.unwrap().unwrap()["data"]["k"], "2");
    assert!(api.get(&maps, &named("none")).await.unwrap().is_none());
    let other = api.delete(&maps, &named("a"), "not-its-uid", None).await.unwrap_err();
    assert!(other.is_conflict(), "{other}");
    assert!(api.delete(&maps, &named("a"), "", None).await.unwrap());
    assert!(!api.delete(&maps, &named("a"), "", None).await.unwrap(), "gone already");
    assert!(api.merge(&maps, &named("a"), &json!({})).await.unwrap_err().is_not_found());
    let magic = json!({"spec": {"type": "Magic", "ports": [{"port": 80}]}});
    let wrong = api.create(&Kind::Service.into(), &named("s"), magic).await;
    let wrong = wrong.unwrap_err().to_string();
    assert!(wrong.contains("422") && wrong.contains("spec.type"), "{wrong}");
    let found = api.discover("apps/v1", "Deployment").await.unwrap().unwrap();
    assert_eq!((&*found.resource.plural, found.namespaced), ("deployments", true));
    assert!(api.discover("apps/v1", "Gadget").await.unwrap().is_none());
    assert!(api.discover("example.org/v1", "Gadget").await.unwrap().is_none());
    server.stop().await;
}

/// A kind that nobody defined holds nothing up; it is seen once it is defined, and gone when its definition is.
#[tokio::test]
async fn a_kind_that_is_not_defined_is_one_without_objects() {
    let place = Place::new();
    let server = place.server().await;
    let api = place.api().await;
    let crds = Resource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    };
    let name = ObjectName::new("", "ippools.seaway.io");
    let mut crd = api.get(&crds, &name).await.unwrap().unwrap();
    assert!(api.delete(&crds, &name, "", None).await.unwrap());
    let mut source = Source::start(&api, WatchConfig::agent());
    tokio::time::timeout(Duration::from_secs(5), source.wait_in_sync()).await.expect("in sync without the kind");
    assert_eq!(source.in_sync().absent, [Kind::IPPool].into());
    assert!(source.in_sync().failing.is_empty());
    let object = crd.as_object_mut().unwrap();
    object.remove("status");
    object.insert("metadata".into(), json!({"name": "ippools.seaway.io"}));
    api.create(&crds, &name, crd.clone()).await.unwrap();
    api.create(&Kind::IPPool.into(), &ObjectName::new("", "p"), json!({"spec": {"cidr": "10.0.0.0/16"}}))
        .await
        .unwrap();
    until(&mut source, "the pool of a kind that was defined late", |s| s.pools.len() == 1).await;
    assert_eq!(source.in_sync().absent, [].into());
    api.delete(&crds, &name, "", None).await.unwrap();
    until(&mut source, "no pool of a kind that is gone", |s| s.pools.is_empty()).await;
    server.stop().await;
}

/// One Event for what is said often, with its count; it goes on counting after a restart, also of the server.
#[tokio::test]
async fn events_are_counted_at_their_object() {
    let place = Place::new();
    let mut server = place.server().await;
    let api = place.api().await;
    add_node(&api, 1).await;
    let note = |name: &str, message: &str| Note {
        about: Key { kind: Kind::Node, name: ObjectName::new("", name) },
        warning: true,
        reason: "NotOnLink".into(),
        message: message.into(),
    };
    let events = Resource { group: "".into(), version: "v1".into(), kind: "Event".into(), plural: "events".into() };
    let counts = async |api: &Api| {
        let mut all: Vec<(String, u64)> = api
            .list(&events, "default")
            .await
            .unwrap()
            .iter()
            .map(|e| (e["message"].as_str().unwrap().to_owned(), e["count"].as_u64().unwrap()))
            .collect();
        all.sort();
        all
    };
    let wait = async |api: &Api, want: &[(&str, u64)]| {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let have = counts(api).await;
            if have.iter().map(|(m, n)| (m.as_str(), *n)).eq(want.iter().copied()) {
                return;
            }
            assert!(std::time::Instant::now() < end, "want {want:?}, have {have:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let recorder = Recorder::start(&api, "seaway-agent", "node2");
    for _ in 0..3 {
        recorder.note(note("node1", "a"));
    }
    recorder.note(note("node1", "b"));
    recorder.note(note("gone", "nobody looks"));
    wait(&api, &[("a", 3), ("b", 1)]).await;
    recorder.note(note("node1", "a"));
    wait(&api, &[("a", 4), ("b", 1)]).await;
    let name = ObjectName::new("", "node1");
    let node = api.get(&Kind::Node.into(), &name).await.unwrap().unwrap();
    let event = api.list(&events, "default").await.unwrap().remove(0);
    assert_eq!(event["involvedObject"]["uid"], node["metadata"]["uid"]);
    assert_eq!((&event["type"], &event["source"]["host"]), (&json!("Warning"), &json!("node2")));
    // The same said of a node that was made anew is another Event: the old one's count is not its own.
    api.delete(&Kind::Node.into(), &name, "", None).await.unwrap();
    add_node(&api, 1).await;
    recorder.note(note("node1", "a"));
    wait(&api, &[("a", 1), ("a", 4), ("b", 1)]).await;
    let anew = api.get(&Kind::Node.into(), &name).await.unwrap().unwrap()["metadata"]["uid"].clone();
    assert_ne!(anew, node["metadata"]["uid"]);
    let uids: Vec<_> = api.list(&events, "default").await.unwrap();
    let of = |uid| uids.iter().filter(|e| e["involvedObject"]["uid"] == uid).count();
    assert_eq!((of(node["metadata"]["uid"].clone()), of(anew)), (2, 1));
    drop(recorder);
    // Told while the server is away, by somebody who knows nothing of before.
    server.stop().await;
    let recorder = Recorder::start(&api, "seaway-agent", "node2");
    recorder.note(note("node1", "a"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    server = place.server().await;
    wait(&api, &[("a", 2), ("a", 4), ("b", 1)]).await;
    server.stop().await;
}

/// What the lab's runner does: bound pods run and are ready, deleted ones go.
async fn runner(api: Api) {
    let mut source = Source::start(&api, WatchConfig { kinds: [Kind::Pod].into(), pods_of: None });
    let mut next = 1;
    loop {
        let pods = source.read(|s, _| s.pods.clone());
        for (name, pod) in pods {
            if pod.terminating {
                let _ = api.delete(&Kind::Pod.into(), &name, &pod.uid, Some(0)).await;
            } else if pod.node.is_some() && pod.ips.is_empty() {
                let ip = format!("10.244.1.{next}");
                next += 1;
                let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                let _ = api.merge_status(&Kind::Pod.into(), &name, &status).await;
            }
        }
        source.changed().await;
    }
}

#[tokio::test]
async fn controllers_make_a_deployment_reachable_and_follow_it() {
    let place = Place::new();
    let mut server = place.server().await;
    let api = place.api().await;
    let name = ObjectName::new("kube-system", "seaway");
    api.create(&Kind::ConfigMap.into(), &name, json!({"data": {"clusterCIDR": "10.244.0.0/16"}})).await.unwrap();
    for n in 1..=2 {
        add_node(&api, n).await;
    }
    let controllers = tokio::spawn({
        let api = api.clone();
        async move {
            let options = controller::Options::default();
            let report = |pass: source::Passed<'_>| {
                for a in pass.applied {
                    a.error.into_iter().for_each(|e| eprintln!("{}: {e}", a.write));
                }
            };
            let watch = WatchConfig { kinds: options.kinds(), pods_of: None };
            let reconcile = |s: &_| (controller::reconcile(s, &options).writes, None);
            run_controllers(&api, watch, reconcile, report, std::future::pending()).await;
        }
    });
    let runner = tokio::spawn(runner(api.clone()));
    let web = json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "a", "ports": [{"name": "http", "containerPort": 8080}]}]}}}});
    api.create(&Kind::Deployment.into(), &named("web"), web).await.unwrap();
    let svc = json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    api.create(&Kind::Service.into(), &named("web"), svc).await.unwrap();
    let mut source = Source::start(&api, WatchConfig::controllers());
    let ready = |s: &ClusterSnapshot| {
        s.slices_of(&named("web")).flat_map(|(_, x)| x.endpoints.iter()).filter(|e| e.ready).count()
    };
    until(&mut source, "3 ready endpoints on 2 nodes with ranges", |s| {
        let nodes: std::collections::BTreeSet<_> = s.pods.values().filter_map(|p| p.node.clone()).collect();
        ready(s) == 3 && nodes.len() == 2 && s.nodes.values().all(|n| n.pod_cidrs.len() == 1)
    })
    .await;
    // The server goes and comes back under everyone's feet.
    server.stop().await;
    server = place.server().await;
    let scale = json!({"spec": {"replicas": 1, "template": {"metadata": {"labels": {"app": "web", "v": "2"}}}}});
    let deployment: Resource = Kind::Deployment.into();
    let scaled = async {
        while api.merge(&deployment, &named("web"), &scale).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), scaled).await.unwrap();
    until(&mut source, "one new pod", |s| {
        let new = |p: &resolve::Pod| p.labels.get("v") == Some("2") && p.ready && !p.terminating;
        let status = s.workloads.values().next().map(|w| w.status["availableReplicas"].clone());
        ready(s) == 1 && s.pods.len() == 1 && s.pods.values().all(new) && status == Some(json!(1))
    })
    .await;
    api.delete(&deployment, &named("web"), "", None).await.unwrap();
    until(&mut source, "nothing left", |s| s.pods.is_empty() && ready(s) == 0).await;
    controllers.abort();
    runner.abort();
    server.stop().await;
}
