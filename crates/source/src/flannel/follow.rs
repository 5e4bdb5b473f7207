//! The network's key space as a [`Source`]: listed and watched, with our own lease taken and kept.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use resolve::annotations::{vxlan_mac, vxlan6_mac};
use resolve::{Kind, Problem};
use tokio::sync::watch;
use tokio::time::Instant;
use types::NodeName;

use super::config::{Backend, Config};
use super::lease::{Attrs, BackendData, Subnets, free};
use super::nodes::{Held, Me, snapshot};
use crate::etcd::{Change, Etcd, EtcdError, KeyValue};
use crate::watch::{Shared, Source};

/// First and longest pause after something failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A watch that says nothing for so long is begun anew: its connection may be dead.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a range is looked for when others take it first.
const RACES: u64 = 10;

/// What this node says of itself, and what it had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Own {
    /// The address of the interface to other nodes.
    pub v4: Option<Ipv4Addr>,
    /// Likewise.
    pub v6: Option<Ipv6Addr>,
    /// Where other nodes reach it instead, where packets are translated on their way.
    pub public_v4: Option<Ipv4Addr>,
    /// Likewise.
    pub public_v6: Option<Ipv6Addr>,
    /// The range it had before, from flannel's subnet file.
    pub previous: Option<Subnets>,
}

/// The store, and how our lease is held there.
#[derive(Clone)]
pub struct Store {
    /// The client.
    pub etcd: Etcd,
    /// Flannel's own is `/coreos.com/network`.
    pub prefix: String,
    /// How long our lease outlives us; flannel's are 24 hours.
    pub ttl: Duration,
}

/// Starts following. Must be called inside a tokio runtime. In sync once the whole network is read and this node has its
/// lease; `own` may change later.
#[must_use]
pub fn start(store: Store, me: NodeName, own: watch::Receiver<Own>) -> Source {
    let prefix = format!("/{}", store.prefix.trim_matches('/'));
    Source::fed([Kind::ConfigMap, Kind::Node], |shared| {
        let fleet = Fleet {
            store: Store { prefix, ..store },
            me,
            own,
            shared,
            config: None,
            broken: None,
            leases: BTreeMap::new(),
            held: None,
            renew: None,
        };
        fleet.run()
    })
}

/// What ended a turn.
enum End {
    Failed(EtcdError),
    /// There is no range for this node, or no configuration, until something changes.
    Stuck(Kind, String),
}

impl From<EtcdError> for End {
    fn from(e: EtcdError) -> Self {
        Self::Failed(e)
    }
}

struct Fleet {
    store: Store,
    me: NodeName,
    own: watch::Receiver<Own>,
    shared: Arc<Shared>,
    /// The last configuration that could be used.
    config: Option<Config>,
    /// Why the present one cannot.
    broken: Option<Problem>,
    /// By the last part of the key.
    leases: BTreeMap<String, Held>,
    /// Our key.
    held: Option<String>,
    /// When our lease is to be renewed.
    renew: Option<Instant>,
}

impl Fleet {
    async fn run(mut self) {
        let mut pause = BACKOFF.0;
        loop {
            let began = Instant::now();
            let (kind, why) = match self.turn().await {
                End::Failed(EtcdError::Compacted(oldest)) => {
                    tracing::debug!(oldest, "the store was compacted: reading everything anew");
                    continue;
                }
                End::Failed(e) => (Kind::Node, e.to_string()),
                End::Stuck(kind, why) => (kind, why),
            };
            tracing::warn!(%why, "the network in etcd cannot be followed: trying again");
            self.shared.change(|s| {
                s.sync.failing.insert(kind, why);
            });
            pause = if began.elapsed() > SILENCE { BACKOFF.0 } else { (pause * 2).min(BACKOFF.1) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Lists, settles, and follows until something fails.
    async fn turn(&mut self) -> End {
        match self.follow().await {
            Err(e) => e,
            Ok(never) => match never {},
        }
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, End> {
        let mut revision = self.list().await?;
        self.settle().await?;
        self.publish();
        loop {
            let mut watch = self.store.etcd.watch(&self.below(""), revision + 1).await?;
            tracing::debug!(revision, "watching the network in etcd");
            loop {
                let renew = self.renew.unwrap_or_else(|| Instant::now() + SILENCE);
                tokio::select! {
                    got = tokio::time::timeout(SILENCE, watch.next()) => match got {
                        Ok(got) => {
                            let (changes, now) = got?;
                            revision = revision.max(now);
                            if changes.is_empty() {
                                continue;
                            }
                            changes.into_iter().for_each(|c| self.take(c));
                        }
                        Err(_) => break,
                    },
                    () = tokio::time::sleep_until(renew) => {}
                    changed = self.own.changed() => if changed.is_err() {
                        // The agent ends.
                        std::future::pending::<()>().await;
                    },
                }
                self.settle().await?;
                self.publish();
            }
        }
    }

    /// A key of the network.
    fn below(&self, rest: &str) -> String {
        format!("{}/{rest}", self.store.prefix)
    }

    fn lease_key(&self, key: &str) -> String {
        self.below(&format!("subnets/{key}"))
    }

    async fn list(&mut self) -> Result<i64, End> {
        let (all, revision) = self.store.etcd.list(&self.below("")).await?;
        self.leases.clear();
        let config = self.below("config");
        if !all.iter().any(|kv| kv.key == config) {
            self.take(Change::Delete(config));
        }
        all.into_iter().for_each(|kv| self.take(Change::Put(kv)));
        Ok(revision)
    }

    /// Takes one change in.
    fn take(&mut self, change: Change) {
        let (config, subnets) = (self.below("config"), self.below("subnets/"));
        match change {
            Change::Put(kv) if kv.key == config => match Config::parse(&kv.value) {
                Ok(c) => (self.config, self.broken) = (Some(c), None),
                Err((field, why)) => self.broken = Some(Problem::new(format!("etcd {config}"), field, why)),
            },
            Change::Delete(key) if key == config => {
                let why =
                    "is not there: write the network's configuration, as for flannel, with the API version 3 of etcd";
                self.broken = Some(Problem::new(format!("etcd {config}"), "", why));
            }
            Change::Put(KeyValue { key, value, created, modified, lease }) => {
                if let Some(key) = key.strip_prefix(&subnets) {
                    self.leases.insert(key.to_owned(), Held { value, created, modified, lease });
                }
            }
            Change::Delete(key) => {
                if let Some(key) = key.strip_prefix(&subnets) {
                    self.leases.remove(key);
                }
            }
        }
    }

    /// What our lease is to say; nothing while no address is known.
    fn attrs(&self, config: &Config) -> Result<Attrs, End> {
        let own = self.own.borrow().clone();
        let need = |family: &str| {
            let why = format!(
                "the interface to other nodes has no {family} address, and the network has {family}: choose another with --iface"
            );
            End::Stuck(Kind::Node, why)
        };
        let v4 = config.v4.map(|_| own.v4.ok_or_else(|| need("IPv4"))).transpose()?;
        let v6 = config.v6.map(|_| own.v6.ok_or_else(|| need("IPv6"))).transpose()?;
        let (mut data, mut data6) = (None, None);
        if let Backend::Vxlan { vni, .. } = config.backend {
            let mac = vxlan_mac(&self.me, vni);
            data = v4.map(|_| BackendData { vni, mac });
            data6 = v6.map(|_| BackendData { vni, mac: vxlan6_mac(mac) });
        }
        let (v4, v6) = (v4.map(|a| own.public_v4.unwrap_or(a)), v6.map(|a| own.public_v6.unwrap_or(a)));
        Ok(Attrs { v4, v6, backend: config.backend.name().to_owned(), data, data6 })
    }

    /// Brings our lease to what it should be: takes one by flannel's rules, or keeps the one we have.
    async fn settle(&mut self) -> Result<(), End> {
        let Some(config) = self.config.clone() else {
            let why = self.broken.as_ref().map_or_else(|| "no configuration".into(), ToString::to_string);
            return Err(End::Stuck(Kind::ConfigMap, why));
        };
        let attrs = self.attrs(&config)?;
        let value = attrs.value();
        let same_node = |h: &Held| Attrs::parse(&h.value).is_ok_and(|a| a.same_node(&attrs));
        if let Some(key) = self.held.clone() {
            match self.leases.get(&key).cloned() {
                Some(h) if h.value == value => return self.keep(&key, &h).await,
                Some(h) if same_node(&h) => return self.overwrite(&key, &h, &value).await,
                Some(h) => {
                    tracing::error!(
                        range = %key, by = %h.value,
                        "this node's range was taken by another node: pods that have addresses in it are cut off; a new range is taken, make them anew"
                    );
                    self.held = None;
                }
                None => {
                    tracing::warn!(range = %key, "this node's lease was lost: taking it again");
                    if self.make(&key, &value).await? {
                        return Ok(());
                    }
                    self.list().await?;
                }
            }
        }
        for pick in 0..RACES {
            // Whoever was here before, we or flannel's daemon, had our address.
            let mine = self.leases.iter().filter(|(_, h)| same_node(h)).max_by_key(|(_, h)| h.created);
            if let Some((key, h)) = mine.map(|(k, h)| (k.clone(), h.clone())) {
                if Subnets::parse(&key).is_some_and(|s| s.fit(&config)) {
                    tracing::info!(range = %key, "found this node's lease: keeping it");
                    return self.overwrite(&key, &h, &value).await;
                }
                tracing::info!(range = %key, "this node's lease does not fit the network any more: giving it back");
                self.store.etcd.remove(&self.lease_key(&key), h.modified).await?;
                self.list().await?;
                continue;
            }
            let held: Vec<Subnets> = self.leases.keys().filter_map(|k| Subnets::parse(k)).collect();
            let free_again = |s: &Subnets| {
                s.fit(&config) && !held.iter().any(|h| h.each().any(|c| s.each().any(|o| o.overlaps(&c))))
            };
            let previous = self.own.borrow().previous.filter(free_again);
            let subnets = match previous {
                Some(s) => s,
                None => free(&config, &held, fnv(self.me.as_str()).wrapping_add(pick)).map_err(|range| {
                    End::Stuck(Kind::Node, format!("no range is left in {range} of {}/config: widen the network, or delete leases of nodes that are gone", self.store.prefix))
                })?,
            };
            if self.make(&subnets.key(), &value).await? {
                tracing::info!(range = %subnets.key(), "took a range for this node");
                return Ok(());
            }
            self.list().await?;
        }
        Err(End::Stuck(Kind::Node, "other nodes were faster at every range that was free: trying again".into()))
    }

    fn hold(&mut self, key: &str, value: &str, at: (i64, i64), lease: i64) {
        let held = Held { value: value.to_owned(), created: at.0, modified: at.1, lease };
        self.leases.insert(key.to_owned(), held);
        self.held = Some(key.to_owned());
        self.renew = (lease != 0).then(|| Instant::now() + self.store.ttl / 3);
    }

    /// Makes our key. `false`: another has it.
    async fn make(&mut self, key: &str, value: &str) -> Result<bool, End> {
        let etcd = self.store.etcd.clone();
        let lease = etcd.grant(self.store.ttl.as_secs().max(1)).await?;
        let made = etcd.create(&self.lease_key(key), value, lease).await;
        match made {
            Ok(Some(revision)) => {
                self.hold(key, value, (revision, revision), lease);
                Ok(true)
            }
            other => {
                // It would only wait for its end.
                let _ = etcd.revoke(lease).await;
                other.map(|_| false).map_err(End::from)
            }
        }
    }

    /// Writes a key that is ours, with a lease of its own; one without a lease stays so: somebody reserved the range.
    async fn overwrite(&mut self, key: &str, h: &Held, value: &str) -> Result<(), End> {
        let etcd = self.store.etcd.clone();
        let lease = if h.lease == 0 { 0 } else { etcd.grant(self.store.ttl.as_secs().max(1)).await? };
        match etcd.replace(&self.lease_key(key), value, lease, h.modified).await? {
            Some(revision) => {
                self.hold(key, value, (h.created, revision), lease);
                Ok(())
            }
            None => {
                if lease != 0 {
                    let _ = etcd.revoke(lease).await;
                }
                // Changed by another meanwhile: look again.
                self.list().await?;
                Err(End::Stuck(Kind::Node, format!("{} was changed while this node wrote it", self.lease_key(key))))
            }
        }
    }

    /// Renews our lease when it is time.
    async fn keep(&mut self, key: &str, h: &Held) -> Result<(), End> {
        let due = self.renew.is_none_or(|t| t <= Instant::now()) && h.lease != 0;
        if !due {
            return Ok(());
        }
        if self.store.etcd.keep_alive(h.lease).await? == 0 {
            // It has run out this moment; the key goes with it.
            self.leases.remove(key);
            if !self.make(key, &h.value).await? {
                return Err(End::Stuck(Kind::Node, "this node's lease ran out".into()));
            }
            return Ok(());
        }
        tracing::debug!(range = key, "renewed this node's lease");
        self.renew = Some(Instant::now() + self.store.ttl / 3);
        Ok(())
    }

    /// Tells the snapshot.
    fn publish(&self) {
        let Some(config) = &self.config else { return };
        let (me, at) = (&self.me, self.own.borrow().clone());
        let me = Me { name: me, lease: self.held.as_deref(), v4: at.v4, v6: at.v6 };
        let events = snapshot(&self.store.prefix, config, self.broken.as_ref(), &self.leases, &me);
        self.shared.change(|s| {
            for e in events {
                s.apply(e);
            }
            s.sync.failing.clear();
            for kind in [Kind::ConfigMap, Kind::Node] {
                s.sync.kinds.insert(kind, true);
            }
        });
    }
}

/// FNV-1a, 64 bits: where a node begins to look.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
