//! Three keepers of real files and journals against the real API server, killed at random.

use std::path::Path;

use apiserver::{Config, Server};
use ipam::{Ask, Journal, Key, PodRef, Request};
use resolve::api::Resource;
use serde_json::{Value, json};
use source::{Source, Target, WatchConfig, connect};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

/// Numbers that look random and are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

struct Node {
    name: NodeName,
    dir: PathBuf,
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    /// Pods of this node, and which address each has.
    pods: Vec<(String, Option<IpAddr>)>,
}

impl Node {
    /// An agent's part, as `agent::main` runs it; what ran before dies in the middle of whatever it did.
    fn start(&mut self, api: &Api) {
        if let Some(t) = self.task.take() {
            t.abort();
        }
        let (api, node, dir, shared) = (api.clone(), self.name.clone(), self.dir.clone(), Arc::clone(&self.shared));
        self.task = Some(tokio::spawn(async move {
            let mut source = Source::start(&api, WatchConfig { pods_of: Some(node.clone()), ..WatchConfig::agent() });
            let keeper = Pools::new(api, node, source.reader(), dir, Arc::clone(&shared));
            let told = async {
                loop {
                    source.changed().await;
                    shared.changed.notify_one();
                }
            };
            tokio::join!(keeper.run(), told);
        }));
    }

    fn key(pod: &str) -> Key {
        Key { container: pod.into(), ifname: "eth0".parse().unwrap() }
    }

    /// What the plugin does at ADD.
    fn add(&self, pod: &str) -> Result<IpAddr, ipam::IpamError> {
        let key = Self::key(pod);
        let of = PodRef { namespace: "default".into(), name: pod.into(), uid: None };
        let file = self.dir.join(ipam::POOLS);
        let request = Request {
            key: &key,
            network: "seaway",
            netns: "/run/netns/x",
            inode: 1,
            pod: Some(&of),
            ranges: &[],
            within: &[],
            pools: Some(Ask { file: &file, names: &[] }),
            outside: false,
            requested: &[],
            mtu: 1500,
            now: 0,
        };
        let (record, _) = Journal::open(&self.dir)?.allocate(&request)?;
        self.shared.changed.notify_one();
        Ok(record.addresses[0])
    }

    fn del(&self, pod: &str) {
        Journal::open(&self.dir).unwrap().release(&Self::key(pod)).unwrap();
        self.shared.changed.notify_one();
    }
}

async fn server(dir: &Path) -> (Api, oneshot::Sender<()>, JoinHandle<()>) {
    let mut config = Config::new(dir.join("api.redb"));
    let socket = dir.join("api.sock");
    config.unix = Some(socket.clone());
    let server = Server::start(config).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move { server.run(async { stopped.await.unwrap_or(()) }).await.unwrap() });
    (connect(&Target::Unix(socket)).await.unwrap(), stop, task)
}

async fn create(api: &Api, kind: Kind, namespace: &str, name: &str, body: Value) {
    api.create(&Resource::from(kind), &ObjectName::new(namespace, name), body).await.unwrap();
}

fn no_address_twice(nodes: &[Node]) {
    let mut all: Vec<IpAddr> = nodes.iter().flat_map(|n| n.pods.iter().filter_map(|p| p.1)).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "an address lives twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_share_sixteen_addresses_whatever_dies() {
    let dir = tempfile::tempdir().unwrap();
    let (api, stop, task) = server(dir.path()).await;
    let pool = json!({"spec": {"cidr": "10.0.0.0/28", "blockSize": 30}});
    create(&api, Kind::IPPool, "", "p", pool).await;
    create(&api, Kind::ConfigMap, "kube-system", "seaway", json!({"data": {"ipam": "pools"}})).await;
    let mut nodes = Vec::new();
    for n in ["a", "b", "c"] {
        create(&api, Kind::Node, "", n, json!({})).await;
        let mut node = Node {
            name: n.parse().unwrap(),
            dir: dir.path().join(n),
            shared: Arc::default(),
            task: None,
            pods: Vec::new(),
        };
        node.start(&api);
        nodes.push(node);
    }
    let mut dice = Dice(0x5ea_f00d);
    let mut made = 0;
    for _ in 0..150 {
        let i = dice.roll(3);
        let living: usize = nodes.iter().map(|n| n.pods.len()).sum();
        match dice.roll(8) {
            0 => nodes[i].start(&api),
            // The first address of each block is not lent, and an owner may hold one back for itself.
            1..=4 if living < 10 => {
                made += 1;
                let pod = format!("p{made}");
                let spec = json!({"nodeName": nodes[i].name.as_str(), "containers": [{"name": "c", "image": "i"}]});
                create(&api, Kind::Pod, "default", &pod, json!({"spec": spec})).await;
                nodes[i].pods.push((pod, None));
            }
            _ if !nodes[i].pods.is_empty() => {
                let at = dice.roll(nodes[i].pods.len());
                let (pod, had) = nodes[i].pods.swap_remove(at);
                if had.is_some() {
                    nodes[i].del(&pod);
                }
                let name = ObjectName::new("default", &pod);
                api.delete(&Resource::from(Kind::Pod), &name, "", Some(0)).await.unwrap();
            }
            _ => {}
        }
        // Runtimes try again and again.
        for n in &mut nodes {
            for p in 0..n.pods.len() {
                if n.pods[p].1.is_none() {
                    n.pods[p].1 = n.add(&n.pods[p].0).ok();
                }
            }
        }
        no_address_twice(&nodes);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Whoever waits is served in the end, wherever the free addresses are.
    let start = Instant::now();
    while nodes.iter().any(|n| n.pods.iter().any(|p| p.1.is_none())) {
        for n in &mut nodes {
            for p in 0..n.pods.len() {
                if n.pods[p].1.is_none() {
                    match n.add(&n.pods[p].0) {
                        Ok(a) => n.pods[p].1 = Some(a),
                        Err(e) => assert!(e.is_exhausted(), "{e}"),
                    }
                }
            }
        }
        no_address_twice(&nodes);
        assert!(start.elapsed() < Duration::from_secs(60), "a pod waits in vain");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The API knows whose each address is.
    let blocks = api.list(&Resource::from(Kind::IPBlock), "").await.unwrap();
    let blocks: Vec<_> = blocks
        .iter()
        .filter_map(|b| match parse_as(Kind::IPBlock, b).object {
            Some(resolve::Object::IPBlock(b)) => Some(b),
            _ => None,
        })
        .collect();
    for n in &nodes {
        for (pod, a) in &n.pods {
            let a = a.unwrap();
            assert!(blocks.iter().any(|b| b.ranges_of(&n.name).any(|c| c.contains(a))), "{pod} has {a}: {blocks:#?}");
        }
    }
    for n in &mut nodes {
        n.task.take().unwrap().abort();
    }
    let _ = stop.send(());
    task.await.unwrap();
}
