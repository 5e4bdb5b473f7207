//! A Deployment's conditions: whether enough pods serve, and whether its newest template gets anywhere within
//! `spec.progressDeadlineSeconds`.
//!
//! Reasons and order are those of Kubernetes' own controller (`pkg/controller/deployment/progress.go` and
//! `util/deployment_util.go`): `kubectl rollout status` ends with an error at `ProgressDeadlineExceeded`.

use std::time::Duration;

use resolve::{Workload, unix_millis};
use serde_json::{Value, json};

/// Where a rollout stands.
pub(crate) struct Rollout<'a> {
    /// The time of the pass, RFC 3339.
    pub(crate) now: &'a str,
    /// `spec.replicas`, and how many of them must serve.
    pub(crate) want: i64,
    pub(crate) least: i64,
    /// Pods there are, those of the newest template, those that serve.
    pub(crate) total: i64,
    pub(crate) updated: i64,
    pub(crate) ready: i64,
    /// `spec.paused`.
    pub(crate) paused: bool,
    /// The newest template's set is made in this pass.
    pub(crate) made: bool,
    /// Its name.
    pub(crate) set: &'a str,
}

/// What of a condition differs.
struct Said<'a> {
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
    message: String,
}

/// The conditions, those of others included, and after how long to look again although nothing has changed.
pub(crate) fn conditions(d: &Workload, r: &Rollout<'_>) -> (Vec<Value>, Option<Duration>) {
    let have = d.status.get("conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let of = |kind: &str| have.iter().find(|c| text(c, "type") == kind);
    let (progressing, wait) = progressing(d, r, of("Progressing"));
    let mut all = vec![dated(available(r), of("Available"), r.now)];
    all.extend(progressing);
    all.extend(have.iter().filter(|c| !["Available", "Progressing"].contains(&text(c, "type"))).cloned());
    (all, wait)
}

fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// With its times: when its status last changed, and when anything of it did.
fn dated(said: Said<'_>, have: Option<&Value>, now: &str) -> Value {
    let same = |field, value| have.is_some_and(|h| text(h, field) == value);
    if let Some(h) = have.filter(|_| same("status", said.status) && same("reason", said.reason)) {
        return h.clone();
    }
    anew(said, have, now)
}

/// The same, as news though it says what it said.
fn anew(said: Said<'_>, have: Option<&Value>, now: &str) -> Value {
    let since = have.filter(|h| text(h, "status") == said.status).map(|h| text(h, "lastTransitionTime"));
    json!({
        "type": said.kind, "status": said.status, "reason": said.reason, "message": said.message,
        "lastUpdateTime": now, "lastTransitionTime": since.filter(|t| !t.is_empty()).unwrap_or(now),
    })
}

fn available(r: &Rollout<'_>) -> Said<'static> {
    let (status, reason, has) = if r.ready >= r.least {
        ("True", "MinimumReplicasAvailable", "has")
    } else {
        ("False", "MinimumReplicasUnavailable", "does not have")
    };
    Said { kind: "Available", status, reason, message: format!("Deployment {has} minimum availability.") }
}

/// Seconds within which a rollout must get a step further. Kubernetes takes the greatest number for none.
fn deadline(d: &Workload) -> Option<u64> {
    let seconds = d.spec.get("progressDeadlineSeconds").and_then(Value::as_i64).unwrap_or(600);
    (seconds < i64::from(i32::MAX)).then(|| u64::try_from(seconds).unwrap_or(0))
}

fn progressing(d: &Workload, r: &Rollout<'_>, have: Option<&Value>) -> (Option<Value>, Option<Duration>) {
    let Some(deadline) = deadline(d) else { return (None, None) };
    let (set, reason) = (r.set, have.map_or("", |h| text(h, "reason")));
    let say = |status, reason, message| Said { kind: "Progressing", status, reason, message };
    let of_set = |what: &str| format!("ReplicaSet {set:?} {what}.");
    if r.paused {
        return (Some(dated(say("Unknown", "DeploymentPaused", "Deployment is paused".into()), have, r.now)), None);
    }
    if r.updated == r.want && r.total == r.want && r.ready == r.want {
        let said = say("True", "NewReplicaSetAvailable", of_set("has successfully progressed"));
        return (Some(dated(said, have, r.now)), None);
    }
    // Complete once: pods that are lost or added later are no rollout.
    if let Some(h) = have.filter(|_| reason == "NewReplicaSetAvailable" && !r.made && r.total == r.updated) {
        return (Some(h.clone()), None);
    }
    let now = if reason == "DeploymentPaused" {
        anew(say("Unknown", "DeploymentResumed", "Deployment is resumed".into()), have, r.now)
    } else if r.made && reason != "NewReplicaSetCreated" {
        anew(say("True", "NewReplicaSetCreated", format!("Created new replica set {set:?}")), have, r.now)
    } else if further(d, r) {
        anew(say("True", "ReplicaSetUpdated", of_set("is progressing")), have, r.now)
    } else if let Some(h) = have {
        // The last template's success is no beginning of this one.
        if ["NewReplicaSetAvailable", "ProgressDeadlineExceeded"].contains(&reason) {
            return (Some(h.clone()), None);
        }
        match left(h, deadline, r.now) {
            Some(wait) => return (Some(h.clone()), Some(wait)),
            None => {
                let said = say("False", "ProgressDeadlineExceeded", of_set("has timed out progressing"));
                return (Some(anew(said, have, r.now)), None);
            }
        }
    } else {
        anew(say("True", "FoundNewReplicaSet", format!("Found new replica set {set:?}")), None, r.now)
    };
    let wait = left(&now, deadline, r.now);
    (Some(now), wait)
}

/// Whether more pods are of the newest template, or serve, or fewer are of old ones, than were told.
fn further(d: &Workload, r: &Rollout<'_>) -> bool {
    let told = |k: &str| d.status.get(k).and_then(Value::as_i64).unwrap_or(0);
    r.updated > told("updatedReplicas")
        || r.total - r.updated < told("replicas") - told("updatedReplicas")
        || r.ready > told("readyReplicas")
}

/// How long until the deadline has passed; `None` when it has. The API's times are whole seconds, so it has passed with
/// the second after it.
fn left(condition: &Value, deadline: u64, now: &str) -> Option<Duration> {
    let (from, now) = (unix_millis(text(condition, "lastUpdateTime")), unix_millis(now)?);
    // Without a time that can be read it begins now.
    let end = from.unwrap_or(now).saturating_add(deadline.saturating_mul(1000));
    (now <= end).then(|| Duration::from_millis(end - now + 1000))
}
