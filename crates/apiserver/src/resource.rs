//! The table of resources: everything that differs from kind to kind is a row or a function named in a row.

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json::Value;

use crate::defaults;
use crate::error::Causes;
use crate::table::{self, Column};
use crate::util::{bool_at, int_at, list_at, str_at};
use crate::validate;

/// Something that only one Service may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// A cluster IP.
    Ip(IpAddr),
    /// A node port, of whatever protocol.
    Port(u16),
}

/// A field that selectors may name.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) get: for<'a> fn(&'a Value) -> Cow<'a, str>,
}

/// One kind of the API.
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) subresources: &'static [&'static str],
    /// Index in [`RESOURCES`] of the row under which objects are stored: its own, except for a second view.
    pub(crate) storage: usize,
    /// Type name in the schema.
    pub(crate) schema: &'static str,
    pub(crate) columns: &'static [Column],
    /// Beside `metadata.name` and `metadata.namespace`.
    pub(crate) fields: &'static [Field],
    /// Whether `metadata.generation` counts changes of the spec.
    pub(crate) generation: bool,
    pub(crate) name: validate::NameRule,
    pub(crate) default: fn(&mut Value),
    /// New object, old object on update, causes.
    pub(crate) validate: fn(&Value, Option<&Value>, &mut Causes),
    pub(crate) claims: fn(&Value) -> Vec<Claim>,
}

impl Resource {
    /// `pods`, `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
    /// The first part of a key in the file.
    pub(crate) fn storage_name(&self) -> String {
        self.qualified()
    }
    pub(crate) fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }
    /// The key of an object in the store.
    pub(crate) fn key(&self, ns: &str, name: &str) -> String {
        if self.namespaced { format!("{ns}/{name}") } else { name.to_owned() }
    }
    /// The prefix of the keys of a namespace; of all when `ns` is empty.
    pub(crate) fn prefix(&self, ns: &str) -> String {
        if self.namespaced && !ns.is_empty() { format!("{ns}/") } else { String::new() }
    }
}

/// Every verb a main resource has.
pub(crate) const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The row of a group, version and plural.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// A row by group and plural; for the rows that the server itself needs.
pub(crate) fn core(plural: &'static str) -> &'static Resource {
    // Every name used is in the table: the test `rows_are_consistent` says so.
    RESOURCES.iter().find(|r| r.group.is_empty() && r.plural == plural).unwrap_or(&RESOURCES[0])
}

fn no_claims(_: &Value) -> Vec<Claim> {
    Vec::new()
}

fn service_claims(v: &Value) -> Vec<Claim> {
    let spec = &v["spec"];
    let mut out: Vec<Claim> = Vec::new();
    for ip in list_at(spec, &["clusterIPs"]) {
        if let Some(ip) = ip.as_str().and_then(|s| s.parse().ok()) {
            out.push(Claim::Ip(ip));
        }
    }
    let ports = list_at(spec, &["ports"]).iter().filter_map(|p| int_at(p, &["nodePort"]));
    for p in ports.chain(int_at(spec, &["healthCheckNodePort"])) {
        if let Some(p) = u16::try_from(p).ok().filter(|p| *p != 0) {
            out.push(Claim::Port(p));
        }
    }
    out.dedup();
    out
}

macro_rules! fields {
    ($($name:literal = $($part:literal).+),* $(,)?) => {
        &[$(Field { name: $name, get: |v| Cow::Borrowed(str_at(v, &[$($part),+])) }),*]
    };
}

static POD_FIELDS: &[Field] = &[
    Field { name: "spec.nodeName", get: |v| Cow::Borrowed(str_at(v, &["spec", "nodeName"])) },
    Field { name: "spec.restartPolicy", get: |v| Cow::Borrowed(str_at(v, &["spec", "restartPolicy"])) },
    Field { name: "spec.schedulerName", get: |v| Cow::Borrowed(str_at(v, &["spec", "schedulerName"])) },
    Field { name: "spec.serviceAccountName", get: |v| Cow::Borrowed(str_at(v, &["spec", "serviceAccountName"])) },
    Field { name: "spec.hostNetwork", get: |v| Cow::Owned(bool_at(v, &["spec", "hostNetwork"]).to_string()) },
    Field { name: "status.phase", get: |v| Cow::Borrowed(str_at(v, &["status", "phase"])) },
    Field { name: "status.podIP", get: |v| Cow::Borrowed(str_at(v, &["status", "podIP"])) },
    Field { name: "status.nominatedNodeName", get: |v| Cow::Borrowed(str_at(v, &["status", "nominatedNodeName"])) },
];
static NODE_FIELDS: &[Field] =
    &[Field { name: "spec.unschedulable", get: |v| Cow::Owned(bool_at(v, &["spec", "unschedulable"]).to_string()) }];
static REPLICA_FIELDS: &[Field] = &[Field {
    name: "status.replicas",
    get: |v| Cow::Owned(int_at(v, &["status", "replicas"]).unwrap_or(0).to_string()),
}];
static EVENT_FIELDS: &[Field] = fields![
    "involvedObject.kind" = "involvedObject"."kind",
    "involvedObject.namespace" = "involvedObject"."namespace",
    "involvedObject.name" = "involvedObject"."name",
    "involvedObject.uid" = "involvedObject"."uid",
    "involvedObject.apiVersion" = "involvedObject"."apiVersion",
    "involvedObject.resourceVersion" = "involvedObject"."resourceVersion",
    "involvedObject.fieldPath" = "involvedObject"."fieldPath",
    "reason" = "reason",
    "reportingComponent" = "reportingComponent",
    "source" = "source"."component",
    "type" = "type",
];
// The same values under the names of the other view.
static EVENT_V1_FIELDS: &[Field] = fields![
    "regarding.kind" = "involvedObject"."kind",
    "regarding.namespace" = "involvedObject"."namespace",
    "regarding.name" = "involvedObject"."name",
    "regarding.uid" = "involvedObject"."uid",
    "regarding.apiVersion" = "involvedObject"."apiVersion",
    "regarding.resourceVersion" = "involvedObject"."resourceVersion",
    "regarding.fieldPath" = "involvedObject"."fieldPath",
    "reason" = "reason",
    "reportingController" = "reportingComponent",
    "source" = "source"."component",
    "type" = "type",
];

const BASE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    short: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    storage: 0,
    schema: "",
    columns: table::PLAIN,
    fields: &[],
    generation: false,
    name: validate::NameRule::Subdomain,
    default: defaults::none,
    validate: validate::none,
    claims: no_claims,
};

/// The rows. The order is that of `kubectl api-resources`; `storage` is the row's own index.
pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short: &["ns"],
        namespaced: false,
        subresources: &["status", "finalize"],
        storage: 0,
        schema: "Namespace",
        columns: table::NAMESPACE,
        fields: fields!["status.phase" = "status"."phase"],
        name: validate::NameRule::Label,
        default: defaults::namespace,
        ..BASE
    },
    Resource {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short: &["no"],
        namespaced: false,
        subresources: &["status"],
        storage: 1,
        schema: "Node",
        columns: table::NODE,
        fields: NODE_FIELDS,
        default: defaults::node,
        validate: validate::node,
        ..BASE
    },
    Resource {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short: &["po"],
        categories: &["all"],
        subresources: &["status", "binding", "eviction", "ephemeralcontainers"],
        storage: 2,
        schema: "Pod",
        columns: table::POD,
        fields: POD_FIELDS,
        generation: true,
        default: defaults::pod,
        validate: validate::pod,
        ..BASE
    },
    Resource {
        plural: "services",
        singular: "service",
        kind: "Service",
        short: &["svc"],
        categories: &["all"],
        subresources: &["status"],
        storage: 3,
        schema: "Service",
        columns: table::SERVICE,
        fields: fields!["spec.clusterIP" = "spec"."clusterIP", "spec.type" = "spec"."type"],
        name: validate::NameRule::Label1035,
        default: defaults::service,
        validate: validate::service,
        claims: service_claims,
        ..BASE
    },
    Resource {
        plural: "endpoints",
        singular: "endpoints",
        kind: "Endpoints",
        short: &["ep"],
        storage: 4,
        schema: "Endpoints",
        columns: table::ENDPOINTS,
        default: defaults::endpoints,
        validate: validate::endpoints,
        ..BASE
    },
    Resource {
        plural: "configmaps",
        singular: "configmap",
        kind: "ConfigMap",
        short: &["cm"],
        storage: 5,
        schema: "ConfigMap",
        columns: table::CONFIG_MAP,
        validate: validate::config_map,
        ..BASE
    },
    Resource {
        plural: "secrets",
        singular: "secret",
        kind: "Secret",
        storage: 6,
        schema: "Secret",
        columns: table::SECRET,
        fields: fields!["type" = "type"],
        default: defaults::secret,
        validate: validate::secret,
        ..BASE
    },
    Resource {
        plural: "serviceaccounts",
        singular: "serviceaccount",
        kind: "ServiceAccount",
        short: &["sa"],
        storage: 7,
        schema: "ServiceAccount",
        columns: table::SERVICE_ACCOUNT,
        ..BASE
    },
    Resource {
        plural: "events",
        singular: "event",
        kind: "Event",
        short: &["ev"],
        storage: 8,
        schema: "Event",
        columns: table::EVENT,
        fields: EVENT_FIELDS,
        validate: validate::event,
        ..BASE
    },
    Resource {
        group: "apps",
        plural: "daemonsets",
        singular: "daemonset",
        kind: "DaemonSet",
        short: &["ds"],
        categories: &["all"],
        subresources: &["status"],
        storage: 9,
        schema: "DaemonSet",
        columns: table::DAEMON_SET,
        generation: true,
        default: defaults::daemon_set,
        validate: validate::daemon_set,
        ..BASE
    },
    Resource {
        group: "apps",
        plural: "deployments",
        singular: "deployment",
        kind: "Deployment",
        short: &["deploy"],
        categories: &["all"],
        subresources: &["status", "scale"],
        storage: 10,
        schema: "Deployment",
        columns: table::DEPLOYMENT,
        generation: true,
        default: defaults::deployment,
        validate: validate::deployment,
        ..BASE
    },
    Resource {
        group: "apps",
        plural: "replicasets",
        singular: "replicaset",
        kind: "ReplicaSet",
        short: &["rs"],
        categories: &["all"],
        subresources: &["status", "scale"],
        storage: 11,
        schema: "ReplicaSet",
        columns: table::REPLICA_SET,
        fields: REPLICA_FIELDS,
        generation: true,
        default: defaults::replica_set,
        validate: validate::deployment,
        ..BASE
    },
    Resource {
        group: "apps",
        plural: "statefulsets",
        singular: "statefulset",
        kind: "StatefulSet",
        short: &["sts"],
        categories: &["all"],
        subresources: &["status", "scale"],
        storage: 12,
        schema: "StatefulSet",
        columns: table::STATEFUL_SET,
        generation: true,
        default: defaults::stateful_set,
        validate: validate::deployment,
        ..BASE
    },
    Resource {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        singular: "endpointslice",
        kind: "EndpointSlice",
        storage: 13,
        schema: "EndpointSlice",
        columns: table::ENDPOINT_SLICE,
        generation: true,
        default: defaults::endpoint_slice,
        validate: validate::endpoint_slice,
        ..BASE
    },
    Resource {
        group: "networking.k8s.io",
        plural: "networkpolicies",
        singular: "networkpolicy",
        kind: "NetworkPolicy",
        short: &["netpol"],
        storage: 14,
        schema: "NetworkPolicy",
        columns: table::NETWORK_POLICY,
        generation: true,
        default: defaults::network_policy,
        validate: validate::network_policy,
        ..BASE
    },
    Resource {
        group: "networking.k8s.io",
        plural: "ingresses",
        singular: "ingress",
        kind: "Ingress",
        short: &["ing"],
        subresources: &["status"],
        storage: 15,
        schema: "Ingress",
        columns: table::INGRESS,
        generation: true,
        validate: validate::ingress,
        ..BASE
    },
    Resource {
        group: "networking.k8s.io",
        plural: "ingressclasses",
        singular: "ingressclass",
        kind: "IngressClass",
        namespaced: false,
        storage: 16,
        schema: "IngressClass",
        columns: table::INGRESS_CLASS,
        generation: true,
        validate: validate::ingress_class,
        ..BASE
    },
    Resource {
        group: "coordination.k8s.io",
        plural: "leases",
        singular: "lease",
        kind: "Lease",
        storage: 17,
        schema: "Lease",
        columns: table::LEASE,
        validate: validate::lease,
        ..BASE
    },
    // The newer view of core events; stored as those.
    Resource {
        group: "events.k8s.io",
        plural: "events",
        singular: "event",
        kind: "Event",
        short: &["ev"],
        storage: 8,
        schema: "EventV1",
        columns: table::EVENT,
        fields: EVENT_V1_FIELDS,
        validate: validate::event,
        ..BASE
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_consistent() {
        for (i, r) in RESOURCES.iter().enumerate() {
            assert!(r.storage == i || (r.group == "events.k8s.io" && RESOURCES[r.storage].plural == "events"), "{i}");
            assert!(!crate::schema::fields(r.schema).is_empty(), "{} has no schema", r.plural);
            assert!(!r.columns.is_empty() && !r.kind.is_empty() && !r.singular.is_empty());
            assert_eq!(RESOURCES[r.storage].fields.len(), r.fields.len(), "both views index the same values");
        }
        for p in ["namespaces", "nodes", "pods", "services", "events"] {
            assert_eq!(core(p).plural, p);
        }
    }
}
