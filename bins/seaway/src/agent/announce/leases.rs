//! The leases of announcers at the API: what each action of the machine is as a request, and what its answer means.

use std::collections::BTreeMap;
use std::time::Duration;

use announce::l2::{Action, Answer, LEASE, Seen};
use resolve::load_balancer::{ANNOUNCER, Lease};
use resolve::{Kind, Object, parse_as};
use serde_json::{Value, json};
use source::{Api, SourceError};
use types::{NodeName, ObjectName};

/// Leases are in the namespace of our settings.
const NAMESPACE: &str = resolve::settings::NAMESPACE;
/// An answer that takes longer is none: within the time that a renewal holds there must be room for another try.
const PATIENCE: Duration = Duration::from_millis(700);

/// A lease as the machine speaks of it.
pub fn seen(l: &Lease) -> Seen {
    Seen {
        version: l.version.clone(),
        uid: l.uid.clone(),
        holder: l.holder.clone(),
        seconds: l.seconds,
        transitions: l.transitions,
    }
}

/// All leases that a watch has told.
pub fn all(leases: &BTreeMap<ObjectName, Lease>) -> BTreeMap<Box<str>, Seen> {
    leases.iter().map(|(n, l)| ((*n.name).into(), seen(l))).collect()
}

fn read(v: &Value) -> Option<Seen> {
    match parse_as(Kind::Lease, v).object {
        Some(Object::Lease(l)) => Some(seen(&l)),
        _ => None,
    }
}

/// Carries out an action; `uid` is the Node's, so that its lease goes with it.
pub async fn run(api: &Api, me: &NodeName, uid: &str, action: &Action) -> Answer {
    match tokio::time::timeout(PATIENCE, request(api, me, uid, action)).await {
        Ok(Ok(seen)) => Answer::Is(seen),
        Ok(Err(e)) if e.is_conflict() || e.is_not_found() => {
            tracing::debug!("{action:?}: {e}");
            Answer::Conflict
        }
        Ok(Err(e)) => {
            tracing::warn!("lease {}: {e}", action.lease(me));
            Answer::Failed
        }
        Err(_) => {
            tracing::warn!("lease {}: no answer in {} ms", action.lease(me), PATIENCE.as_millis());
            Answer::Failed
        }
    }
}

async fn request(api: &Api, me: &NodeName, uid: &str, action: &Action) -> Result<Option<Seen>, SourceError> {
    let resource = Kind::Lease.into();
    let name = ObjectName::new(NAMESPACE, &action.lease(me));
    let now = source::now_micros();
    let seconds = LEASE.as_secs();
    let v = match action {
        Action::Renew { seconds } => {
            let spec = json!({"holderIdentity": me.as_str(), "leaseDurationSeconds": seconds, "renewTime": now});
            match api.merge(&resource, &name, &json!({"spec": spec})).await {
                Err(e) if e.is_not_found() => {
                    let mut metadata = json!({"labels": {ANNOUNCER: "l2"}});
                    if !uid.is_empty() {
                        metadata["ownerReferences"] =
                            json!([{"apiVersion": "v1", "kind": "Node", "name": me.as_str(), "uid": uid}]);
                    }
                    api.create(&resource, &name, json!({"metadata": metadata, "spec": spec})).await?
                }
                other => other?,
            }
        }
        Action::Take { ip, seen: None } => {
            let body = json!({
                "metadata": {"labels": {ANNOUNCER: "l2"}, "annotations": {"seaway.io/address": ip}},
                "spec": {"holderIdentity": me.as_str(), "leaseDurationSeconds": seconds, "acquireTime": now,
                    "renewTime": now, "leaseTransitions": 0},
            });
            api.create(&resource, &name, body).await?
        }
        Action::Take { seen: Some(seen), .. } => {
            let other = *seen.holder != *me.as_str();
            let body = json!({
                "metadata": {"resourceVersion": seen.version},
                "spec": {"holderIdentity": me.as_str(), "leaseDurationSeconds": seconds, "acquireTime": now,
                    "renewTime": now, "leaseTransitions": seen.transitions.saturating_add(other.into())},
            });
            api.merge(&resource, &name, &body).await?
        }
        Action::Release { version, .. } => {
            let body = json!({"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": null}});
            api.merge(&resource, &name, &body).await?
        }
        Action::Forget { uid, .. } => {
            api.delete(&resource, &name, uid, None).await?;
            return Ok(None);
        }
        Action::Ask { .. } => match api.get(&resource, &name).await? {
            Some(v) => v,
            None => return Ok(None),
        },
    };
    Ok(read(&v))
}
