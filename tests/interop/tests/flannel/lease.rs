//! How a lease is held: renewed in time, without being written anew, through an outage of the store, and past its holder.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use interop::tools;
use seaway_tests_interop as interop;
use source::etcd::{Change, Etcd, EtcdConfig, EtcdError, KeyValue};
use source::flannel::{Own, Store, start};

/// In place of a day.
const TTL: Duration = Duration::from_secs(6);

/// A server on this machine's loopback; ends with the value.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(dir: &Path, port: u16) -> Self {
        let free = || std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{}", if port == 0 { free() } else { port });
        let peer = format!("http://127.0.0.1:{}", free());
        let mut c = Command::new(tools::ETCD.program("server"));
        c.arg("--data-dir").arg(dir).args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        c.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--unsafe-no-fsync"]);
        c.args(["--initial-cluster", &format!("default={peer}")]);
        let child = c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, url };
        let up = || {
            let o = Command::new("curl").args(["-sf", &format!("{}/readyz", server.url)]).output().unwrap();
            o.status.success()
        };
        interop::node::wait_for("etcd answers", 60, up);
        server
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ours(etcd: &Etcd) -> Option<KeyValue> {
    let (all, _) = etcd.list("/n/subnets/").await.ok()?;
    all.into_iter().find(|kv| kv.value.contains("192.0.2.1"))
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut so: impl FnMut() -> F) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(v) = so().await {
            return v;
        }
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_in_time_and_outlives_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 0);
    let config = EtcdConfig { endpoints: vec![server.url.clone()], ..EtcdConfig::default() };
    let etcd = Etcd::new(&config).unwrap();
    let network = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    etcd.create("/n/config", network, 0).await.unwrap().unwrap();
    let own = Own { v4: Some("192.0.2.1".parse().unwrap()), ..Own::default() };
    let (_own, owned) = tokio::sync::watch::channel(own);
    let store = Store { etcd: Etcd::new(&config).unwrap(), prefix: "n".into(), ttl: TTL };
    let mut source = start(store, "n1".parse().unwrap(), owned);
    tokio::time::timeout(Duration::from_secs(60), source.wait_in_sync()).await.unwrap();
    let first = ours(&etcd).await.unwrap();
    assert!(first.lease != 0);

    // Far past its end it is the same key of the same lease, written once.
    let end = Instant::now() + TTL * 4;
    while Instant::now() < end {
        assert_eq!(ours(&etcd).await.as_ref(), Some(&first));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // The store is away for longer than a lease holds, and comes back.
    let port = server.port();
    drop(server);
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    let server = Server::start(dir.path(), port);
    let back = until("the lease after the outage", || ours(&etcd)).await;
    assert_eq!(back.key, first.key, "the same range");
    let end = Instant::now() + TTL * 3;
    while Instant::now() < end {
        // Should it have run out before the holder was heard again, the same range is taken again at once.
        until("it is held", || async { ours(&etcd).await.filter(|kv| kv.key == first.key) }).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // The holder ends: the range stays its own for as long as the lease says, and is free then.
    drop(source);
    assert_eq!(ours(&etcd).await.map(|kv| kv.key), Some(first.key));
    until("the lease has run out", || async { ours(&etcd).await.is_none().then_some(()) }).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_has_forgotten_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 0);
    let etcd = Etcd::new(&EtcdConfig { endpoints: vec![server.url.clone()], ..EtcdConfig::default() }).unwrap();
    let mut last = 0;
    for n in 0..5 {
        last = etcd.create(&format!("/n/{n}"), "x", 0).await.unwrap().unwrap();
    }
    assert_eq!(etcd.create("/n/0", "y", 0).await.unwrap(), None, "it is there");
    let mut watch = etcd.watch("/n/", last).await.unwrap();
    let (changes, at) = loop {
        let got = watch.next().await.unwrap();
        if !got.0.is_empty() {
            break got;
        }
    };
    assert!(matches!(&changes[..], [Change::Put(kv)] if kv.key == "/n/4") && at >= last, "{changes:?}");
    let body = format!(r#"{{"revision": "{last}", "physical": true}}"#);
    let o =
        Command::new("curl").args(["-sf", &format!("{}/v3/kv/compaction", server.url), "-d", &body]).output().unwrap();
    assert!(o.status.success());
    let mut watch = etcd.watch("/n/", 1).await.unwrap();
    let gone = loop {
        match watch.next().await {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert_eq!(gone, EtcdError::Compacted(last));
}
