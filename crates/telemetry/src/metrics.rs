//! The metrics of an agent. Names that operators know (kube-proxy's, the Prometheus process collector's) where they
//! exist and mean the same, `seaway_` otherwise. Every label value is a variant of an enum: nothing grows with the
//! cluster.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::announcing::Announcing;
use crate::process::Process;
use crate::proxy::Proxy;

/// A set of words, each a label value and a word in logs and health texts.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The one that a word names.
            #[must_use]
            pub fn named(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> std::fmt::Result {
                prometheus_client::encoding::EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}
pub(crate) use words;

words! {
    /// A dataplane, by the name that `Dataplane::name` gives.
    Plane {
        /// Links, addresses, routes, neighbours, FDB entries.
        Fabric = "fabric",
        /// Services and masquerade in nf_tables.
        Nftables = "nftables",
    }
}

words! {
    /// How a pass ended.
    Outcome {
        /// It committed ops.
        Changed = "changed",
        /// There was nothing to do.
        Unchanged = "unchanged",
        /// An effect failed.
        Failed = "failed",
    }
}

words! {
    /// A kind of object that the source watches, by its Kubernetes name.
    Kind {
        /// v1 Node.
        Node = "Node",
        /// v1 Namespace.
        Namespace = "Namespace",
        /// v1 Pod.
        Pod = "Pod",
        /// v1 Service.
        Service = "Service",
        /// discovery.k8s.io/v1 EndpointSlice.
        EndpointSlice = "EndpointSlice",
        /// v1 ConfigMap: `kube-system/seaway`.
        ConfigMap = "ConfigMap",
    }
}

/// What a node has to do, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeCounts {
    /// Pod interfaces on this node.
    pub attachments: usize,
    /// Service ports.
    pub services: usize,
    /// Endpoints over all service ports.
    pub endpoints: usize,
    /// Other nodes.
    pub peers: usize,
}

/// What was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// The version, e.g. `CARGO_PKG_VERSION`.
    pub version: &'static str,
    /// The commit, empty when not known.
    pub commit: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaneLabel {
    plane: Plane,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaneOutcome {
    plane: Plane,
    result: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: Kind,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The agent's metrics. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<PlaneOutcome, Counter>,
    duration: Family<PlaneLabel, Histogram, fn() -> Histogram>,
    /// kube-proxy's.
    pub proxy: Proxy,
    /// Of load balancers' addresses.
    pub announcing: Announcing,
    ops: Family<PlaneLabel, Counter>,
    refused: Family<PlaneLabel, Gauge>,
    last_success: Family<PlaneLabel, Seconds>,
    in_sync: Family<KindLabel, Gauge>,
    attachments: Gauge,
    services: Gauge,
    endpoints: Gauge,
    peers: Gauge,
    own: Own,
}

/// What agent and controllers say of themselves alike: the process, what it was built from, and what it may not do.
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub(crate) missing_rights: Gauge,
    resident: Gauge,
    virtual_size: Gauge,
}

impl Own {
    pub(crate) fn register(&self, r: &mut Registry, build: Build) {
        r.register(
            "seaway_missing_rights",
            "Rights that the API server denies now; /status names the rules",
            self.missing_rights.clone(),
        );
        r.register("process_resident_memory_bytes", "Resident memory size in bytes", self.resident.clone());
        r.register("process_virtual_memory_bytes", "Virtual memory size in bytes", self.virtual_size.clone());
        r.register(
            "seaway_build",
            "What was built",
            Info::new(vec![("version", build.version), ("commit", build.commit)]),
        );
    }

    /// The OpenMetrics text of all that is registered, with this process's memory as it is now.
    pub(crate) fn encode(&self, registry: &Registry) -> String {
        if let Some(p) = Process::own() {
            self.resident.set(i64::try_from(p.resident).unwrap_or(i64::MAX));
            self.virtual_size.set(i64::try_from(p.virtual_size).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing to a String does not fail; a half text is still better than none if a metric's own encoder did.
        let _ = encode(&mut text, registry);
        text
    }
}

/// 1 ms doubled 15 times: to 16 s, as kube-proxy's.
pub(crate) fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

pub(crate) fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Metrics {
    /// All metrics at zero, so that a first scrape shows every series that will ever exist.
    #[must_use]
    pub fn new(build: Build) -> Self {
        let mut m = Self {
            registry: Registry::default(),
            reconciles: Family::default(),
            duration: Family::new_with_constructor(buckets as fn() -> Histogram),
            proxy: Proxy::default(),
            announcing: Announcing::default(),
            ops: Family::default(),
            refused: Family::default(),
            last_success: Family::default(),
            in_sync: Family::default(),
            attachments: Gauge::default(),
            services: Gauge::default(),
            endpoints: Gauge::default(),
            peers: Gauge::default(),
            own: Own::default(),
        };
        m.register(build);
        for plane in Plane::ALL.iter().copied() {
            for result in Outcome::ALL.iter().copied() {
                drop(m.reconciles.get_or_create(&PlaneOutcome { plane, result }));
            }
            let label = PlaneLabel { plane };
            drop(m.duration.get_or_create(&label));
            drop(m.ops.get_or_create(&label));
            drop(m.refused.get_or_create(&label));
            drop(m.last_success.get_or_create(&label));
        }
        for kind in Kind::ALL.iter().copied() {
            m.in_sync(kind, false);
        }
        m
    }

    fn register(&mut self, build: Build) {
        let r = &mut self.registry;
        r.register("seaway_reconcile", "Passes of a dataplane by how they ended", self.reconciles.clone());
        r.register(
            "seaway_reconcile_duration_seconds",
            "Time of one pass: plan and commit, and observe where it was needed",
            self.duration.clone(),
        );
        r.register("seaway_ops_committed", "Kernel objects changed by a dataplane", self.ops.clone());
        r.register("seaway_refused", "Things of the intent that a dataplane cannot express now", self.refused.clone());
        r.register(
            "seaway_last_success_timestamp_seconds",
            "When a pass last ended well, in seconds since 1970; 0 is never",
            self.last_success.clone(),
        );
        r.register("seaway_in_sync", "Whether the source has the whole list of a kind: 1 or 0", self.in_sync.clone());
        r.register("seaway_attachments", "Pod interfaces on this node", self.attachments.clone());
        r.register("seaway_services", "Service ports in this node's intent", self.services.clone());
        r.register("seaway_endpoints", "Endpoints over all service ports", self.endpoints.clone());
        r.register("seaway_peers", "Other nodes", self.peers.clone());
        self.announcing.register(r);
        self.proxy.register(r);
        self.own.register(r, build);
    }

    /// A pass ended: how, how long it took, how many ops were committed (also by one that failed later), and when.
    pub fn reconciled(&self, plane: Plane, result: Outcome, took: Duration, ops: usize, at: SystemTime) {
        let label = PlaneLabel { plane };
        self.reconciles.get_or_create(&PlaneOutcome { plane, result }).inc();
        self.duration.get_or_create(&label).observe(took.as_secs_f64());
        self.ops.get_or_create(&label).inc_by(ops as u64);
        if result != Outcome::Failed {
            let secs = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.last_success.get_or_create(&label).set(secs);
        }
    }

    /// How much of the intent a plane refuses now.
    pub fn refused(&self, plane: Plane, n: usize) {
        self.refused.get_or_create(&PlaneLabel { plane }).set(count(n));
    }

    /// Whether the source has the whole list of a kind.
    pub fn in_sync(&self, kind: Kind, yes: bool) {
        self.in_sync.get_or_create(&KindLabel { kind }).set(i64::from(yes));
    }

    /// How many rights the API server denies.
    pub fn missing_rights(&self, n: usize) {
        self.own.missing_rights.set(count(n));
    }

    /// What the node has to do.
    pub fn node(&self, n: NodeCounts) {
        self.attachments.set(count(n.attachments));
        self.services.set(count(n.services));
        self.endpoints.set(count(n.endpoints));
        self.peers.set(count(n.peers));
    }

    /// The OpenMetrics text of everything, with this process's memory as it is now.
    #[must_use]
    pub fn encode(&self) -> String {
        self.own.encode(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{IpFamily, LocalPolicy, Page, Synced, Verdict};

    fn metrics() -> Metrics {
        Metrics::new(Build { version: "1.2.3", commit: "abc" })
    }

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn a_pass_shows_in_every_metric_it_concerns() {
        let m = metrics();
        let at = UNIX_EPOCH + Duration::from_secs(1_000);
        m.reconciled(Plane::Nftables, Outcome::Changed, Duration::from_millis(3), 7, at);
        m.reconciled(Plane::Nftables, Outcome::Failed, Duration::from_millis(3), 2, at + Duration::from_secs(5));
        m.refused(Plane::Fabric, 2);
        m.in_sync(Kind::Pod, true);
        m.missing_rights(2);
        m.node(NodeCounts { attachments: 3, services: 4, endpoints: 5, peers: 6 });
        let p = &m.proxy;
        let sync = |ok, full| Synced { took: Duration::from_millis(3), ok, full, at };
        p.changed(2, 5);
        p.synced(&[IpFamily::V4], sync(true, true));
        p.changed(1, 2);
        p.synced(&[IpFamily::V4], sync(false, false));
        p.queued(at);
        p.programmed(IpFamily::V6, Duration::from_millis(2500));
        p.no_local(LocalPolicy::External, IpFamily::V4, 4);
        p.forgot(IpFamily::V4, 9, Duration::from_millis(1));
        p.asked(Page::Healthz, Verdict::Unavailable);
        p.asked(Page::Livez, Verdict::Ok);
        let t = m.encode();
        for (series, want) in [
            (r#"seaway_reconcile_total{plane="nftables",result="changed"}"#, 1.0),
            (r#"seaway_reconcile_total{plane="nftables",result="failed"}"#, 1.0),
            (r#"seaway_reconcile_total{plane="fabric",result="failed"}"#, 0.0),
            (r#"seaway_reconcile_duration_seconds_count{plane="nftables"}"#, 2.0),
            (r#"seaway_reconcile_duration_seconds_bucket{le="0.004",plane="nftables"}"#, 2.0),
            (r#"seaway_reconcile_duration_seconds_bucket{le="0.002",plane="nftables"}"#, 0.0),
            (r#"seaway_ops_committed_total{plane="nftables"}"#, 9.0),
            (r#"seaway_refused{plane="fabric"}"#, 2.0),
            (r#"seaway_in_sync{kind="Pod"}"#, 1.0),
            (r#"seaway_in_sync{kind="Node"}"#, 0.0),
            ("seaway_missing_rights", 2.0),
            (r#"seaway_last_success_timestamp_seconds{plane="nftables"}"#, 1000.0),
            (r#"seaway_last_success_timestamp_seconds{plane="fabric"}"#, 0.0),
            (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}"#, 1000.0),
            (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"}"#, 0.0),
            (r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#, 2.0),
            (r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#, 1.0),
            (r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"}"#, 1.0),
            ("kubeproxy_sync_proxy_rules_service_changes_total", 3.0),
            ("kubeproxy_sync_proxy_rules_service_changes_pending", 1.0),
            ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 7.0),
            ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 2.0),
            (r#"kubeproxy_network_programming_duration_seconds_bucket{le="3.0",ip_family="IPv6"}"#, 1.0),
            (r#"kubeproxy_network_programming_duration_seconds_bucket{le="2.0",ip_family="IPv6"}"#, 0.0),
            (r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv4"}"#, 4.0),
            (r#"kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"}"#, 9.0),
            (r#"kubeproxy_proxy_healthz_total{code="503"}"#, 1.0),
            (r#"kubeproxy_proxy_livez_total{code="200"}"#, 1.0),
            ("seaway_attachments", 3.0),
            ("seaway_services", 4.0),
            ("seaway_endpoints", 5.0),
            ("seaway_peers", 6.0),
            (r#"seaway_build_info{version="1.2.3",commit="abc"}"#, 1.0),
        ] {
            assert_eq!(value(&t, series), Some(want), "{series} in\n{t}");
        }
        assert!(value(&t, "process_resident_memory_bytes").is_some_and(|b| b > 100_000.0));
        assert!(t.ends_with("# EOF\n"));
    }

    #[test]
    fn the_number_of_series_does_not_depend_on_what_happens() {
        let m = metrics();
        let lines = |t: String| t.lines().filter(|l| !l.starts_with('#')).count();
        let before = lines(m.encode());
        for plane in Plane::ALL.iter().copied() {
            for result in Outcome::ALL.iter().copied() {
                m.reconciled(plane, result, Duration::from_secs(100), 10_000, SystemTime::now());
            }
        }
        assert_eq!(lines(m.encode()), before);
    }

    #[test]
    fn words_name_themselves() {
        for p in Plane::ALL {
            assert_eq!(Plane::named(p.as_str()), Some(*p));
        }
        assert_eq!(Kind::named("Ingress"), None);
    }
}
