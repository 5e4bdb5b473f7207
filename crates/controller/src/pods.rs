//! What Deployment and DaemonSet share: their pods, and how one is made and deleted.

use resolve::api::{ApiWrite, WriteOp};
use resolve::{ClusterSnapshot, Key, Kind, Pod, Workload};
use serde_json::{Value, json};
use types::ObjectName;

use crate::name::Hash;

/// A workload's pods that count: not ended, not being deleted.
pub(crate) struct Pods<'a> {
    /// Those that count, by name.
    pub(crate) active: Vec<(&'a ObjectName, &'a Pod)>,
    /// Those that are going but still there.
    pub(crate) terminating: Vec<(&'a ObjectName, &'a Pod)>,
    /// Those that have ended for good.
    pub(crate) ended: Vec<(&'a ObjectName, &'a Pod)>,
}

impl<'a> Pods<'a> {
    /// The pods that the owner reference makes the workload's.
    pub(crate) fn of(snapshot: &'a ClusterSnapshot, workload: &Workload) -> Self {
        let mut out = Self { active: Vec::new(), terminating: Vec::new(), ended: Vec::new() };
        for (name, pod) in &snapshot.pods {
            if !pod.owner.as_ref().is_some_and(|o| !o.uid.is_empty() && o.uid == workload.uid) {
                continue;
            }
            if pod.terminating {
                out.terminating.push((name, pod));
            } else if pod.phase.ended() {
                out.ended.push((name, pod));
            } else {
                out.active.push((name, pod));
            }
        }
        out
    }
}

/// The template's hash: what distinguishes pods of before and after a change.
pub(crate) fn template_hash(workload: &Workload) -> String {
    Hash::new().json(workload.spec.get("template").unwrap_or(&Value::Null)).letters(10)
}

/// Makes a pod of the template.
pub(crate) fn create(owner: &Key, workload: &Workload, name: &str, hash: (&str, &str), node: Option<&str>) -> ApiWrite {
    let template = workload.spec.get("template").cloned().unwrap_or_default();
    let pick = |k: &str| template.pointer(&format!("/metadata/{k}")).cloned().filter(Value::is_object);
    let mut labels = pick("labels").unwrap_or_else(|| json!({}));
    labels[hash.0] = hash.1.into();
    let mut spec = template.get("spec").cloned().filter(Value::is_object).unwrap_or_else(|| json!({}));
    if let Some(node) = node {
        spec["nodeName"] = node.into();
    }
    let mut metadata = json!({
        "labels": labels,
        "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": owner.kind.as_str(), "name": &*owner.name.name, "uid": &*workload.uid,
            "controller": true, "blockOwnerDeletion": true,
        }],
    });
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
    ApiWrite {
        resource: Kind::Pod.into(),
        name: name.clone(),
        op: WriteOp::Delete { uid: pod.uid.clone(), force: false },
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
            Value::Array(conditions) => conditions.iter().all(|c| {
                have.and_then(Value::as_array).is_some_and(|h| {
                    h.iter().any(|h| h.get("type") == c.get("type") && h.get("status") == c.get("status"))
                })
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
