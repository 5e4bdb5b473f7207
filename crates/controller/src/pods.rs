//! What Deployments, ReplicaSets and DaemonSets share: their pods, and how one is made and deleted.

use std::collections::BTreeMap;

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Key, Kind, Labels, Pod, Problem, Workload};
use serde_json::{Map, Value, json};
use types::ObjectName;

use crate::name::Hash;

/// A pod and its name.
pub(crate) type Member<'a> = (&'a ObjectName, &'a Pod);

/// A workload's pods.
#[derive(Default)]
pub(crate) struct Pods<'a> {
    /// Those that count: not ended, not being deleted; by name.
    pub(crate) active: Vec<Member<'a>>,
    /// Those that are going but still there.
    pub(crate) terminating: Vec<Member<'a>>,
    /// Those that have ended for good.
    pub(crate) ended: Vec<Member<'a>>,
}

impl Pods<'_> {
    /// How many of those that count are ready.
    pub(crate) fn ready(&self) -> i64 {
        count(&self.active.iter().filter(|(_, p)| p.ready).collect::<Vec<_>>())
    }
}

/// Pods by the UID of the owner that controls them.
pub(crate) type Owned<'a> = BTreeMap<&'a str, Pods<'a>>;

/// The cluster's.
pub(crate) fn by_owner(snapshot: &ClusterSnapshot) -> Owned<'_> {
    let mut out = Owned::new();
    for (name, pod) in &snapshot.pods {
        let Some(owner) = pod.owner.as_ref().filter(|o| !o.uid.is_empty()) else { continue };
        let pods = out.entry(&owner.uid).or_default();
        let list = if pod.terminating {
            &mut pods.terminating
        } else if pod.phase.ended() {
            &mut pods.ended
        } else {
            &mut pods.active
        };
        list.push((name, pod));
    }
    out
}

/// A length, as the API counts.
pub(crate) fn count<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}

/// `spec.replicas`.
pub(crate) fn replicas(workload: &Workload) -> i64 {
    workload.spec.get("replicas").and_then(Value::as_i64).unwrap_or(1).clamp(0, 100_000)
}

/// Why what is [`beyond_history`] goes.
pub(crate) const BEYOND_HISTORY: &str = "more than spec.revisionHistoryLimit";

/// Of templates that no pod has any more, oldest first, those that are more than `spec.revisionHistoryLimit`.
pub(crate) fn beyond_history<'a, T>(workload: &Workload, unused: &'a [T]) -> &'a [T] {
    let limit = workload.spec.get("revisionHistoryLimit").and_then(Value::as_i64).unwrap_or(10).max(0);
    let over = usize::try_from(count(unused) - limit).unwrap_or(0);
    unused.get(..over).unwrap_or_default()
}

/// The texts of an object within a workload's spec, as labels.
pub(crate) fn labels_at(workload: &Workload, pointer: &str) -> Labels {
    let map = workload.spec.pointer(pointer).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(k, v)| v.as_str().map(|v| (k.as_str(), v))).collect()
}

/// The template's hash: what distinguishes pods of before and after a change.
pub(crate) fn template_hash(workload: &Workload) -> String {
    Hash::new().json(&meant(workload.spec.get("template").unwrap_or(&Value::Null))).letters(10)
}

/// A template without what says nothing: clients that know the types write a template back (`kubectl rollout undo`) with
/// fields that nobody set.
fn meant(v: &Value) -> Value {
    let empty = |k: &str, v: &Value| {
        v.is_null()
            || matches!(k, "resources" | "securityContext" | "metadata") && v.as_object().is_some_and(Map::is_empty)
    };
    match v {
        Value::Object(m) => {
            let each = m.iter().map(|(k, v)| (k, meant(v))).filter(|(k, v)| !empty(k, v));
            each.map(|(k, v)| (k.clone(), v)).collect::<Map<_, _>>().into()
        }
        Value::Array(a) => a.iter().map(meant).collect(),
        other => other.clone(),
    }
}

/// The owner reference of what a workload makes.
pub(crate) fn reference(owner: &Key, workload: &Workload) -> Value {
    json!({
        "apiVersion": owner.kind.api_version(), "kind": owner.kind.as_str(), "name": &*owner.name.name,
        "uid": &*workload.uid, "controller": true, "blockOwnerDeletion": true,
    })
}

/// Makes an object without owner the workload's.
pub(crate) fn adopt(owner: &Key, workload: &Workload, kind: Kind, name: &ObjectName) -> ApiWrite {
    ApiWrite {
        resource: kind.into(),
        name: name.clone(),
        op: WriteOp::Patch(json!({"metadata": {"ownerReferences": [reference(owner, workload)]}})),
        why: format!("{owner} selects it, and nobody owns it"),
    }
}

/// Somebody else has the name of what a workload should make.
pub(crate) fn taken(owner: &Key, kind: Kind, name: &ObjectName) -> Problem {
    Problem::new(
        owner,
        "spec.template",
        format!("{kind}/{name}, which should be of this template, belongs to another owner: delete that one"),
    )
}

/// Makes a pod of the template, with one label more and on a node where these are given.
pub(crate) fn create(
    owner: &Key,
    workload: &Workload,
    name: &str,
    label: Option<(&str, &str)>,
    node: Option<&str>,
) -> ApiWrite {
    let template = workload.spec.get("template").cloned().unwrap_or_default();
    let pick = |k: &str| template.pointer(&format!("/metadata/{k}")).cloned().filter(Value::is_object);
    let mut labels = pick("labels").unwrap_or_else(|| json!({}));
    if let Some((k, v)) = label {
        labels[k] = v.into();
    }
    let mut spec = template.get("spec").cloned().filter(Value::is_object).unwrap_or_else(|| json!({}));
    if let Some(node) = node {
        spec["nodeName"] = node.into();
    }
    let mut metadata = json!({"labels": labels, "ownerReferences": [reference(owner, workload)]});
    if let Some(annotations) = pick("annotations") {
        metadata["annotations"] = annotations;
    }
    ApiWrite {
        resource: Kind::Pod.into(),
        name: ObjectName::new(&owner.name.namespace, name),
        op: WriteOp::Create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})),
        why: format!("wanted by {owner}"),
    }
}

/// Deletes a pod, this very one.
pub(crate) fn delete(name: &ObjectName, pod: &Pod, why: impl Into<String>) -> ApiWrite {
    erase(Kind::Pod, name, &pod.uid, why)
}

/// Deletes an object, this very one.
pub(crate) fn erase(kind: Kind, name: &ObjectName, uid: &str, why: impl Into<String>) -> ApiWrite {
    ApiWrite {
        resource: kind.into(),
        name: name.clone(),
        op: WriteOp::Delete { uid: uid.into(), force: false },
        why: why.into(),
    }
}

/// A number or a percentage of `whole`, as `maxSurge` and `maxUnavailable` are written.
pub(crate) fn share(v: Option<&Value>, default: &str, whole: i64, up: bool) -> i64 {
    let text = match v {
        Some(Value::Number(n)) => return n.as_i64().unwrap_or(0).clamp(0, i64::from(i32::MAX)),
        Some(Value::String(s)) => s.as_str(),
        _ => default,
    };
    match text.strip_suffix('%').map_or_else(|| (text.parse::<i64>(), false), |p| (p.parse(), true)) {
        (Ok(n), false) => n.clamp(0, i64::from(i32::MAX)),
        (Ok(p), true) => {
            let product = p.clamp(0, 100) * whole;
            if up { (product + 99) / 100 } else { product / 100 }
        }
        (Err(_), _) => 0,
    }
}

/// Writes the status when a number or condition in it differs; numbers that are absent are 0.
pub(crate) fn status(key: &Key, workload: &Workload, want: Value) -> Option<ApiWrite> {
    let fields = want.as_object()?;
    let same = fields.iter().all(|(k, v)| {
        let have = workload.status.get(k);
        match v {
            Value::Number(n) => have.and_then(Value::as_i64).unwrap_or(0) == n.as_i64().unwrap_or(0),
            Value::Array(conditions) => have.and_then(Value::as_array).is_some_and(|have| {
                let said =
                    |c: &Value| have.iter().any(|h| ["type", "status", "reason"].iter().all(|k| h.get(k) == c.get(k)));
                have.len() == conditions.len() && conditions.iter().all(said)
            }),
            other => have == Some(other),
        }
    });
    (!same).then(|| ApiWrite {
        resource: key.kind.into(),
        name: key.name.clone(),
        op: WriteOp::PatchStatus(json!({"status": want})),
        why: "its pods changed".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_a_client_wrote_back_is_the_same() {
        let hash = |metadata: Value, c: Value| {
            let spec =
                json!({"template": {"metadata": metadata, "spec": {"containers": [c], "volumes": [{"emptyDir": {}}]}}});
            template_hash(&Workload { spec, ..Workload::default() })
        };
        let plain = hash(json!({"labels": {"a": "b"}}), json!({"name": "c"}));
        let full = json!({"name": "c", "resources": {}, "securityContext": {}, "ports": null});
        assert_eq!(plain, hash(json!({"labels": {"a": "b"}, "creationTimestamp": null}), full));
        assert_ne!(plain, hash(json!({"labels": {"a": "c"}}), json!({"name": "c"})));
        assert_ne!(plain, hash(json!({"labels": {"a": "b"}}), json!({"name": "c", "image": "x"})));
    }

    #[test]
    fn shares() {
        for (v, whole, up, want) in [
            (json!(2), 10, true, 2),
            (json!("25%"), 3, true, 1),
            (json!("25%"), 3, false, 0),
            (json!("100%"), 7, false, 7),
            (json!("3"), 7, false, 3),
            (json!(-4), 7, false, 0),
            (json!("many"), 7, false, 0),
            (json!(null), 8, true, 2),
        ] {
            assert_eq!(share(Some(&v), "25%", whole, up), want, "{v}");
        }
        assert_eq!(share(None, "25%", 4, false), 1);
    }
}
