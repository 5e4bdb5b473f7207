//! The metrics that operators know from kube-proxy (`pkg/proxy/metrics` of Kubernetes 1.36), where they mean the same
//! here. A pass does both families at once, so what it says is said of each family that the node has.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::{buckets, count, words};

words! {
    /// An address family, as kube-proxy labels it.
    IpFamily {
        /// IPv4.
        V4 = "IPv4",
        /// IPv6.
        V6 = "IPv6",
    }
}

words! {
    /// A traffic policy that is Local.
    LocalPolicy {
        /// `internalTrafficPolicy`.
        Internal = "internal",
        /// `externalTrafficPolicy`.
        External = "external",
    }
}

words! {
    /// A page of the proxy's health.
    Page {
        /// `/healthz`.
        Healthz = "healthz",
        /// `/livez`.
        Livez = "livez",
    }
}

words! {
    /// What it answered.
    Verdict {
        /// Healthy.
        Ok = "200",
        /// Not.
        Unavailable = "503",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: IpFamily,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: LocalPolicy,
    ip_family: IpFamily,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: Verdict,
}

type Seconds = Gauge<f64, AtomicU64>;
type Times = Family<OfFamily, Histogram, fn() -> Histogram>;

/// From a quarter of a second to five minutes, as kube-proxy's.
fn programming() -> Histogram {
    let whole = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(f64::from);
    Histogram::new([0.25, 0.5].into_iter().chain(whole(1, 59, 1)).chain(whole(60, 115, 5)).chain(whole(120, 300, 30)))
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// How one pass over the Service rules went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synced {
    /// How long it took.
    pub took: Duration,
    /// Whether all was committed.
    pub ok: bool,
    /// Whether the whole table was compared, and not only what changed.
    pub full: bool,
    /// When it ended.
    pub at: SystemTime,
}

/// kube-proxy's metrics.
#[derive(Debug)]
pub struct Proxy {
    duration: Times,
    full: Times,
    partial: Times,
    last: Family<OfFamily, Seconds>,
    queued: Family<OfFamily, Seconds>,
    programming: Times,
    failures: Family<OfFamily, Counter>,
    endpoint_changes: Counter,
    endpoint_pending: Gauge,
    service_changes: Counter,
    service_pending: Gauge,
    no_local: Family<OfPolicy, Gauge>,
    walks: Times,
    deleted: Family<OfFamily, Counter>,
    healthz: Family<OfCode, Counter>,
    livez: Family<OfCode, Counter>,
}

impl Default for Proxy {
    fn default() -> Self {
        let times = || Times::new_with_constructor(buckets as fn() -> Histogram);
        let p = Self {
            duration: times(),
            full: times(),
            partial: times(),
            last: Family::default(),
            queued: Family::default(),
            programming: Times::new_with_constructor(programming as fn() -> Histogram),
            failures: Family::default(),
            endpoint_changes: Counter::default(),
            endpoint_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_pending: Gauge::default(),
            no_local: Family::default(),
            walks: times(),
            deleted: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        };
        for ip_family in IpFamily::ALL.iter().copied() {
            let of = OfFamily { ip_family };
            for t in [&p.duration, &p.full, &p.partial, &p.programming, &p.walks] {
                drop(t.get_or_create(&of));
            }
            drop(p.last.get_or_create(&of));
            drop(p.queued.get_or_create(&of));
            drop(p.failures.get_or_create(&of));
            drop(p.deleted.get_or_create(&of));
            for traffic_policy in LocalPolicy::ALL.iter().copied() {
                drop(p.no_local.get_or_create(&OfPolicy { traffic_policy, ip_family }));
            }
        }
        for code in Verdict::ALL.iter().copied() {
            drop(p.healthz.get_or_create(&OfCode { code }));
            drop(p.livez.get_or_create(&OfCode { code }));
        }
        p
    }
}

impl Proxy {
    pub(crate) fn register(&self, r: &mut Registry) {
        let rules = "kubeproxy_sync_proxy_rules";
        r.register(
            format!("{rules}_duration_seconds"),
            "Time of one pass over the Service rules",
            self.duration.clone(),
        );
        let full = "The same of passes that compared the whole table";
        r.register("kubeproxy_sync_full_proxy_rules_duration_seconds", full, self.full.clone());
        let partial = "The same of passes that looked at what changed only";
        r.register("kubeproxy_sync_partial_proxy_rules_duration_seconds", partial, self.partial.clone());
        let last = "When the Service rules were last known to be right, in seconds since 1970; 0 is never";
        r.register(format!("{rules}_last_timestamp_seconds"), last, self.last.clone());
        let queued = "When a change last asked for a pass, in seconds since 1970; 0 is never";
        r.register(format!("{rules}_last_queued_timestamp_seconds"), queued, self.queued.clone());
        let failures = "Passes over the Service rules that failed";
        r.register(format!("{rules}_nftables_sync_failures"), failures, self.failures.clone());
        let text = "EndpointSlices that changed";
        r.register(format!("{rules}_endpoint_changes"), text, self.endpoint_changes.clone());
        let text = "EndpointSlices that changed and are not programmed yet";
        r.register(format!("{rules}_endpoint_changes_pending"), text, self.endpoint_pending.clone());
        r.register(format!("{rules}_service_changes"), "Services that changed", self.service_changes.clone());
        let text = "Services that changed and are not programmed yet";
        r.register(format!("{rules}_service_changes_pending"), text, self.service_pending.clone());
        let text = "Service ports with a policy Local and no endpoint on this node";
        r.register(format!("{rules}_no_local_endpoints_total"), text, self.no_local.clone());
        let text = "From the change of a pod or Service, as its EndpointSlice dates it, until the rules have it";
        r.register("kubeproxy_network_programming_duration_seconds", text, self.programming.clone());
        let text = "Time of one walk over the connections to forget stale ones";
        r.register("kubeproxy_conntrack_reconciler_sync_duration_seconds", text, self.walks.clone());
        let text = "Stale connections that were forgotten";
        r.register("kubeproxy_conntrack_reconciler_deleted_entries", text, self.deleted.clone());
        let text = "Answers of /healthz on --proxy-health-listen";
        r.register("kubeproxy_proxy_healthz", text, self.healthz.clone());
        r.register("kubeproxy_proxy_livez", "Answers of /livez on --proxy-health-listen", self.livez.clone());
    }

    /// A pass over the Service rules ended.
    pub fn synced(&self, families: &[IpFamily], s: Synced) {
        for of in families.iter().map(|f| OfFamily { ip_family: *f }) {
            let took = s.took.as_secs_f64();
            self.duration.get_or_create(&of).observe(took);
            let kind = if s.full { &self.full } else { &self.partial };
            kind.get_or_create(&of).observe(took);
            if s.ok {
                self.last.get_or_create(&of).set(seconds(s.at));
            } else {
                self.failures.get_or_create(&of).inc();
            }
        }
        if s.ok {
            self.service_pending.set(0);
            self.endpoint_pending.set(0);
        }
    }

    /// Something changed, and a pass will follow.
    pub fn queued(&self, at: SystemTime) {
        for f in IpFamily::ALL {
            self.queued.get_or_create(&OfFamily { ip_family: *f }).set(seconds(at));
        }
    }

    /// So many Services and EndpointSlices changed; they are pending until a pass ends well.
    pub fn changed(&self, services: usize, slices: usize) {
        self.service_changes.inc_by(services as u64);
        self.endpoint_changes.inc_by(slices as u64);
        self.service_pending.inc_by(count(services));
        self.endpoint_pending.inc_by(count(slices));
    }

    /// The rules have what changed so long ago.
    pub fn programmed(&self, family: IpFamily, ago: Duration) {
        self.programming.get_or_create(&OfFamily { ip_family: family }).observe(ago.as_secs_f64());
    }

    /// So many Service ports have a policy Local and no endpoint here.
    pub fn no_local(&self, policy: LocalPolicy, family: IpFamily, n: usize) {
        self.no_local.get_or_create(&OfPolicy { traffic_policy: policy, ip_family: family }).set(count(n));
    }

    /// A walk over the connections ended.
    pub fn forgot(&self, family: IpFamily, entries: usize, took: Duration) {
        let of = OfFamily { ip_family: family };
        self.walks.get_or_create(&of).observe(took.as_secs_f64());
        self.deleted.get_or_create(&of).inc_by(entries as u64);
    }

    /// A page was asked for.
    pub fn asked(&self, page: Page, code: Verdict) {
        let of = match page {
            Page::Healthz => &self.healthz,
            Page::Livez => &self.livez,
        };
        of.get_or_create(&OfCode { code }).inc();
    }
}
