//! The table of resources: everything that differs from kind to kind is a row or a function named in a row.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

use crate::crd::Custom;
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

/// A name of a kind: of the table, or of a `CustomResourceDefinition`.
pub(crate) type Text = Cow<'static, str>;

/// One kind of the API: a row of [`RESOURCES`], or one served version of a `CustomResourceDefinition`.
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: Text,
    pub(crate) version: Text,
    pub(crate) plural: Text,
    pub(crate) singular: Text,
    pub(crate) kind: Text,
    pub(crate) list_kind: Text,
    pub(crate) short: Vec<Text>,
    pub(crate) categories: Vec<Text>,
    pub(crate) namespaced: bool,
    /// What clients may do with it.
    pub(crate) verbs: &'static [&'static str],
    pub(crate) subresources: &'static [&'static str],
    /// The first part of a key in the file, and the name of the objects' place in memory: `pods`, `deployments.apps`.
    /// Two views of the same objects share one.
    pub(crate) storage: Arc<str>,
    /// A second view: its objects are those of another row.
    pub(crate) view: bool,
    /// Type name in the schema; empty for a custom kind.
    pub(crate) schema: &'static str,
    /// What only a custom kind has.
    pub(crate) custom: Option<Arc<Custom>>,
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

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.api_version(), self.plural)
    }
}

impl Resource {
    /// `pods`, `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }
    pub(crate) fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }
    /// Whether only the server itself writes it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.verbs == READ
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

/// Every verb of objects that are kept.
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Of what only the server itself writes.
const READ: &[&str] = &["get", "list", "watch"];

/// A row of the core group; for the rows that the server itself needs.
pub(crate) fn core(plural: &'static str) -> &'static Arc<Resource> {
    // Every name used is in the table: the test `rows_are_consistent` says so.
    RESOURCES.iter().find(|r| r.group.is_empty() && r.plural == plural).unwrap_or(&RESOURCES[0])
}

fn of_schema(schema: &str) -> &'static Arc<Resource> {
    RESOURCES.iter().find(|r| r.schema == schema).unwrap_or(&RESOURCES[0])
}

/// The row of the ranges of cluster IPs.
pub(crate) fn service_cidrs() -> &'static Arc<Resource> {
    of_schema("ServiceCIDR")
}

/// The row of the definitions of custom kinds.
pub(crate) fn definitions() -> &'static Arc<Resource> {
    of_schema("CustomResourceDefinition")
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

/// A kind with nothing of its own.
pub(crate) fn base() -> Resource {
    Resource {
        group: "".into(),
        version: "v1".into(),
        plural: "".into(),
        singular: "".into(),
        kind: "".into(),
        list_kind: "".into(),
        short: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: VERBS,
        subresources: &[],
        storage: "".into(),
        view: false,
        schema: "",
        custom: None,
        columns: table::PLAIN,
        fields: &[],
        generation: false,
        name: validate::NameRule::Subdomain,
        default: defaults::none,
        validate: validate::none,
        claims: no_claims,
    }
}

/// The rows. The order is that of `kubectl api-resources`.
pub(crate) static RESOURCES: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| {
    let complete = |mut r: Resource| {
        r.list_kind = format!("{}List", r.kind).into();
        // The newer view of core events is stored as those.
        r.storage = if r.view { r.plural.as_ref().into() } else { r.qualified().into() };
        Arc::new(r)
    };
    rows().into_iter().map(complete).collect()
});

/// A question that is answered and not kept.
fn review(group: &'static str, kind: &'static str, namespaced: bool) -> Resource {
    let singular = kind.to_ascii_lowercase();
    Resource {
        group: group.into(),
        plural: format!("{singular}s").into(),
        singular: singular.into(),
        kind: kind.into(),
        namespaced,
        verbs: &["create"],
        schema: kind,
        ..base()
    }
}

#[allow(clippy::too_many_lines)] // a table
fn rows() -> Vec<Resource> {
    vec![
        Resource {
            plural: "namespaces".into(),
            singular: "namespace".into(),
            kind: "Namespace".into(),
            short: vec!["ns".into()],
            namespaced: false,
            subresources: &["status", "finalize"],
            schema: "Namespace",
            columns: table::NAMESPACE,
            fields: fields!["status.phase" = "status"."phase"],
            name: validate::NameRule::Label,
            default: defaults::namespace,
            ..base()
        },
        Resource {
            plural: "nodes".into(),
            singular: "node".into(),
            kind: "Node".into(),
            short: vec!["no".into()],
            namespaced: false,
            subresources: &["status"],
            schema: "Node",
            columns: table::NODE,
            fields: NODE_FIELDS,
            default: defaults::node,
            validate: validate::node,
            ..base()
        },
        Resource {
            plural: "pods".into(),
            singular: "pod".into(),
            kind: "Pod".into(),
            short: vec!["po".into()],
            categories: vec!["all".into()],
            subresources: &[
                "status",
                "attach",
                "binding",
                "ephemeralcontainers",
                "eviction",
                "exec",
                "log",
                "portforward",
            ],
            schema: "Pod",
            columns: table::POD,
            fields: POD_FIELDS,
            generation: true,
            default: defaults::pod,
            validate: validate::pod,
            ..base()
        },
        Resource {
            plural: "services".into(),
            singular: "service".into(),
            kind: "Service".into(),
            short: vec!["svc".into()],
            categories: vec!["all".into()],
            subresources: &["status"],
            schema: "Service",
            columns: table::SERVICE,
            fields: fields!["spec.clusterIP" = "spec"."clusterIP", "spec.type" = "spec"."type"],
            name: validate::NameRule::Label1035,
            default: defaults::service,
            validate: validate::service,
            claims: service_claims,
            ..base()
        },
        Resource {
            plural: "endpoints".into(),
            singular: "endpoints".into(),
            kind: "Endpoints".into(),
            short: vec!["ep".into()],
            schema: "Endpoints",
            columns: table::ENDPOINTS,
            default: defaults::endpoints,
            validate: validate::endpoints,
            ..base()
        },
        Resource {
            plural: "configmaps".into(),
            singular: "configmap".into(),
            kind: "ConfigMap".into(),
            short: vec!["cm".into()],
            schema: "ConfigMap",
            columns: table::CONFIG_MAP,
            validate: validate::config_map,
            ..base()
        },
        Resource {
            plural: "secrets".into(),
            singular: "secret".into(),
            kind: "Secret".into(),
            schema: "Secret",
            columns: table::SECRET,
            fields: fields!["type" = "type"],
            default: defaults::secret,
            validate: validate::secret,
            ..base()
        },
        Resource {
            plural: "serviceaccounts".into(),
            singular: "serviceaccount".into(),
            kind: "ServiceAccount".into(),
            short: vec!["sa".into()],
            schema: "ServiceAccount",
            columns: table::SERVICE_ACCOUNT,
            ..base()
        },
        Resource {
            plural: "events".into(),
            singular: "event".into(),
            kind: "Event".into(),
            short: vec!["ev".into()],
            schema: "Event",
            columns: table::EVENT,
            fields: EVENT_FIELDS,
            validate: validate::event,
            ..base()
        },
        Resource {
            group: "apps".into(),
            plural: "controllerrevisions".into(),
            singular: "controllerrevision".into(),
            kind: "ControllerRevision".into(),
            schema: "ControllerRevision",
            columns: table::CONTROLLER_REVISION,
            validate: validate::controller_revision,
            ..base()
        },
        Resource {
            group: "apps".into(),
            plural: "daemonsets".into(),
            singular: "daemonset".into(),
            kind: "DaemonSet".into(),
            short: vec!["ds".into()],
            categories: vec!["all".into()],
            subresources: &["status"],
            schema: "DaemonSet",
            columns: table::DAEMON_SET,
            generation: true,
            default: defaults::daemon_set,
            validate: validate::daemon_set,
            ..base()
        },
        Resource {
            group: "apps".into(),
            plural: "deployments".into(),
            singular: "deployment".into(),
            kind: "Deployment".into(),
            short: vec!["deploy".into()],
            categories: vec!["all".into()],
            subresources: &["status", "scale"],
            schema: "Deployment",
            columns: table::DEPLOYMENT,
            generation: true,
            default: defaults::deployment,
            validate: validate::deployment,
            ..base()
        },
        Resource {
            group: "apps".into(),
            plural: "replicasets".into(),
            singular: "replicaset".into(),
            kind: "ReplicaSet".into(),
            short: vec!["rs".into()],
            categories: vec!["all".into()],
            subresources: &["status", "scale"],
            schema: "ReplicaSet",
            columns: table::REPLICA_SET,
            fields: REPLICA_FIELDS,
            generation: true,
            default: defaults::replica_set,
            validate: validate::deployment,
            ..base()
        },
        Resource {
            group: "apps".into(),
            plural: "statefulsets".into(),
            singular: "statefulset".into(),
            kind: "StatefulSet".into(),
            short: vec!["sts".into()],
            categories: vec!["all".into()],
            subresources: &["status", "scale"],
            schema: "StatefulSet",
            columns: table::STATEFUL_SET,
            generation: true,
            default: defaults::stateful_set,
            validate: validate::deployment,
            ..base()
        },
        Resource {
            group: "discovery.k8s.io".into(),
            plural: "endpointslices".into(),
            singular: "endpointslice".into(),
            kind: "EndpointSlice".into(),
            schema: "EndpointSlice",
            columns: table::ENDPOINT_SLICE,
            generation: true,
            default: defaults::endpoint_slice,
            validate: validate::endpoint_slice,
            ..base()
        },
        Resource {
            group: "networking.k8s.io".into(),
            plural: "networkpolicies".into(),
            singular: "networkpolicy".into(),
            kind: "NetworkPolicy".into(),
            short: vec!["netpol".into()],
            schema: "NetworkPolicy",
            columns: table::NETWORK_POLICY,
            generation: true,
            default: defaults::network_policy,
            validate: validate::network_policy,
            ..base()
        },
        Resource {
            group: "networking.k8s.io".into(),
            plural: "ingresses".into(),
            singular: "ingress".into(),
            kind: "Ingress".into(),
            short: vec!["ing".into()],
            subresources: &["status"],
            schema: "Ingress",
            columns: table::INGRESS,
            generation: true,
            validate: validate::ingress,
            ..base()
        },
        Resource {
            group: "networking.k8s.io".into(),
            plural: "ingressclasses".into(),
            singular: "ingressclass".into(),
            kind: "IngressClass".into(),
            namespaced: false,
            schema: "IngressClass",
            columns: table::INGRESS_CLASS,
            generation: true,
            validate: validate::ingress_class,
            ..base()
        },
        Resource {
            group: "networking.k8s.io".into(),
            plural: "servicecidrs".into(),
            singular: "servicecidr".into(),
            kind: "ServiceCIDR".into(),
            namespaced: false,
            verbs: READ,
            schema: "ServiceCIDR",
            columns: table::SERVICE_CIDR,
            ..base()
        },
        Resource {
            group: "coordination.k8s.io".into(),
            plural: "leases".into(),
            singular: "lease".into(),
            kind: "Lease".into(),
            schema: "Lease",
            columns: table::LEASE,
            validate: validate::lease,
            ..base()
        },
        Resource {
            group: "apiextensions.k8s.io".into(),
            plural: "customresourcedefinitions".into(),
            singular: "customresourcedefinition".into(),
            kind: "CustomResourceDefinition".into(),
            short: vec!["crd".into(), "crds".into()],
            categories: vec!["api-extensions".into()],
            namespaced: false,
            subresources: &["status"],
            schema: "CustomResourceDefinition",
            columns: table::DEFINITION,
            generation: true,
            default: crate::crd::default,
            validate: crate::crd::validate,
            ..base()
        },
        review("authentication.k8s.io", "SelfSubjectReview", false),
        review("authorization.k8s.io", "LocalSubjectAccessReview", true),
        review("authorization.k8s.io", "SelfSubjectAccessReview", false),
        review("authorization.k8s.io", "SelfSubjectRulesReview", false),
        review("authorization.k8s.io", "SubjectAccessReview", false),
        // The newer view of core events; stored as those.
        Resource {
            group: "events.k8s.io".into(),
            plural: "events".into(),
            singular: "event".into(),
            kind: "Event".into(),
            short: vec!["ev".into()],
            view: true,
            schema: "EventV1",
            columns: table::EVENT,
            fields: EVENT_V1_FIELDS,
            validate: validate::event,
            ..base()
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_consistent() {
        for r in RESOURCES.iter() {
            assert!(!crate::schema::fields(r.schema).is_empty(), "{} has no schema", r.plural);
            assert!(!r.columns.is_empty() && !r.kind.is_empty() && !r.singular.is_empty());
            let first = RESOURCES.iter().find(|o| o.storage == r.storage && !o.view).unwrap();
            assert_eq!(first.fields.len(), r.fields.len(), "both views index the same values");
        }
        for p in ["namespaces", "nodes", "pods", "services", "events"] {
            assert_eq!(core(p).plural, p);
        }
    }
}
