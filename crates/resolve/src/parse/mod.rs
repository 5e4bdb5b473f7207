//! Kubernetes JSON to slim values: the one place where the API's objects are read, watched or from files.

mod at;
mod load_balancer;
mod objects;
mod pools;
mod workload;

use serde_json::Value;
use types::{NodeName, ObjectName};

use crate::events::{Object, Parsed};
use crate::settings::Settings;
use crate::snapshot::{Key, Kind};
use at::{At, Complaints};
pub use objects::unix_millis;

/// Reads an object that says its own `apiVersion` and `kind`; `None` when they are none of ours.
#[must_use]
pub fn parse(value: &Value) -> Option<Parsed> {
    let text = |k: &str| value.get(k).and_then(Value::as_str);
    let kind = Kind::of(text("apiVersion")?, text("kind")?)?;
    Some(parse_as(kind, value))
}

/// Reads an object of a known kind, as the items of a list are.
///
/// Never fails: what is wrong is in the result's `problems`, and an object that cannot be used is absent.
#[must_use]
pub fn parse_as(kind: Kind, value: &Value) -> Parsed {
    let text = |k: &str| value.pointer(k).and_then(Value::as_str).unwrap_or_default();
    let namespaced = kind.api().3;
    let namespace = match text("/metadata/namespace") {
        _ if !namespaced => "",
        "" => "default",
        n => n,
    };
    let key = Key { kind, name: ObjectName::new(namespace, text("/metadata/name")) };
    let complaints = Complaints::new(key.to_string());
    let root = At::root(value, &complaints);
    let object = read(kind, &key, &root);
    Parsed { version: text("/metadata/resourceVersion").into(), key, object, problems: complaints.into_vec() }
}

fn read(kind: Kind, key: &Key, root: &At<'_>) -> Option<Object> {
    let metadata = root.get("metadata");
    let name = metadata.get("name");
    if key.name.name.is_empty() {
        name.bad("every object needs a name");
        return None;
    }
    match kind {
        Kind::Node => {
            if let Err(e) = key.name.name.parse::<NodeName>() {
                name.bad(e.to_string());
                return None;
            }
            Some(Object::Node(objects::node(root)))
        }
        Kind::Pod => Some(Object::Pod(objects::pod(root))),
        Kind::Service => objects::service(root).map(Object::Service),
        Kind::EndpointSlice => objects::slice(root).map(Object::EndpointSlice),
        Kind::Namespace => Some(Object::Namespace(objects::namespace(root))),
        Kind::ConfigMap => {
            if !Settings::is_ours(&key.name) {
                return None;
            }
            let data = root.get("data");
            let labels = data.labels();
            let (settings, problems) = Settings::parse(labels.iter());
            for p in problems {
                let field = p.field.strip_prefix("data.").unwrap_or(&p.field);
                data.get(field).bad(p.why);
            }
            Some(Object::Settings(settings))
        }
        Kind::IPPool => pools::pool(root).map(Object::IPPool),
        Kind::IPBlock => pools::block(root).map(Object::IPBlock),
        Kind::NetworkAttachmentDefinition => objects::definition(root).map(Object::NetworkAttachmentDefinition),
        Kind::IPReservation => Some(Object::IPReservation(pools::reservation(root))),
        Kind::LoadBalancerPool => load_balancer::pool(root).map(Object::LoadBalancerPool),
        Kind::ServiceCidr => {
            let (spec, key) = (root.get("spec"), "cidrs");
            let cidrs = spec.get(key);
            Some(Object::ServiceCidr(cidrs.items().filter_map(|c| c.parse()).collect()))
        }
        Kind::Endpoints => Some(Object::Endpoints(objects::endpoints(root))),
        Kind::Lease => Some(Object::Lease(load_balancer::lease(root))),
        Kind::Deployment | Kind::DaemonSet | Kind::ReplicaSet => Some(Object::Workload(workload::workload(root))),
        Kind::ControllerRevision => Some(Object::Revision(workload::revision(root))),
    }
}
