//! What is written: the status of Services and pools.

use std::collections::BTreeSet;
use std::net::IpAddr;

use resolve::api::{ApiWrite, WriteOp};
use resolve::load_balancer::{Ask, CONDITION, GIVEN_FROM};
use resolve::{Kind, Problem};
use serde_json::{Value, json};
use types::ObjectName;

use super::assign::Assigned;
use super::space::Space;
use super::{Client, is_so};
use crate::pools::problem_of;

/// Services that the status of a pool names at most.
const NAMED: usize = 10;

fn service(name: &ObjectName, op: WriteOp, why: &str) -> ApiWrite {
    ApiWrite { resource: Kind::Service.into(), name: name.clone(), op, why: why.to_owned() }
}

/// Takes away what a Service no longer asks for.
pub(crate) fn cleared(name: &ObjectName, ask: &Ask) -> [ApiWrite; 2] {
    let why = "no load balancer of ours any more";
    let rest: Vec<&Value> = others(&ask.conditions).collect();
    let status = json!({"status": {"loadBalancer": {"ingress": null}, "conditions": if rest.is_empty() { Value::Null } else { json!(rest) }}});
    let note = json!({"metadata": {"annotations": {GIVEN_FROM: null}}});
    // The note last: while it is there, the rest is tried again.
    [service(name, WriteOp::PatchStatus(status), why), service(name, WriteOp::Patch(note), why)]
}

fn others(conditions: &Value) -> impl Iterator<Item = &Value> {
    conditions.as_array().into_iter().flatten().filter(|c| c["type"] != CONDITION)
}

/// What a Service has, and its condition, where they are not so yet.
pub(crate) fn given(c: &Client<'_>, r: &Assigned, now: &str) -> Vec<ApiWrite> {
    let mut writes = Vec::new();
    let new = !is_so(c, &r.given);
    let list: Vec<String> = r.given.iter().map(|g| g.0.to_string()).collect();
    let why = if list.is_empty() { "no address".to_owned() } else { list.join(", ") };
    if new {
        let from: Vec<&str> = r.given.iter().map(|g| &*g.1).collect();
        let note = if from.is_empty() { Value::Null } else { from.join(",").into() };
        // First, so that no address is ever there whose pool is not known.
        let patch = json!({"metadata": {"annotations": {GIVEN_FROM: note}}});
        writes.push(service(c.name, WriteOp::Patch(patch), &why));
    }
    let condition = condition(c, r, now);
    if new || condition.is_some() {
        let mut status = json!({});
        if new {
            let ingress: Vec<Value> = r.given.iter().map(|g| json!({"ip": g.0, "ipMode": "VIP"})).collect();
            status["loadBalancer"]["ingress"] = if ingress.is_empty() { Value::Null } else { json!(ingress) };
        }
        if let Some(condition) = condition {
            let all: Vec<Value> = others(&c.ask.conditions).cloned().chain([condition]).collect();
            status["conditions"] = json!(all);
        }
        writes.push(service(c.name, WriteOp::PatchStatus(json!({"status": status})), &why));
    }
    writes
}

/// The condition of a Service, if it is to be written.
fn condition(c: &Client<'_>, r: &Assigned, now: &str) -> Option<Value> {
    let (status, reason, message) = match r.lacks.first() {
        None => ("True", "Assigned", String::new()),
        Some((_, first, _)) => {
            let all: Vec<String> = r.lacks.iter().map(|(field, _, why)| format!("{field}: {why}")).collect();
            ("False", first.as_str(), all.join("; "))
        }
    };
    let had = c.ask.conditions.as_array().into_iter().flatten().find(|x| x["type"] == CONDITION);
    let same = |x: &Value| x["status"] == status;
    if had.is_some_and(|x| same(x) && x["reason"] == reason && x["message"] == *message) {
        return None;
    }
    let since = had.filter(|x| same(x)).and_then(|x| x["lastTransitionTime"].as_str()).unwrap_or(now);
    Some(
        json!({"type": CONDITION, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}),
    )
}

/// Somebody else has given a Service addresses.
pub(crate) fn strange(c: &Client<'_>, ip: Option<IpAddr>) -> Problem {
    let what = ip.map_or_else(|| "a name or a proxy".to_owned(), |ip| format!("{ip}, of no LoadBalancerPool"));
    let why = format!(
        "has {what}: another load balancer serves it, and it is left alone; set spec.loadBalancerClass on Services that \
         are not ours, or loadBalancerDefault: \"false\" in ConfigMap kube-system/seaway"
    );
    problem_of(Kind::Service, c.name, "status.loadBalancer.ingress", why)
}

/// `status` of a pool, if it changes. All keys are always there: a merge patch would keep what is left out.
pub(crate) fn pool_status(
    s: &Space<'_>,
    used: usize,
    inside: usize,
    services: &BTreeSet<String>,
    strays: &[String],
) -> Option<ApiWrite> {
    let mut messages: Vec<String> = (!s.message.is_empty()).then(|| s.message.clone()).into_iter().collect();
    if !strays.is_empty() {
        messages.push(format!("no longer named, and still in use: {}", some(strays)));
    }
    if s.pool.disabled && !services.is_empty() {
        let all: Vec<String> = services.iter().cloned().collect();
        messages.push(format!("{} Services have addresses of it: {}", services.len(), some(&all)));
    }
    let free = if s.pool.disabled { 0 } else { s.size().saturating_sub(inside as u128) };
    let status =
        json!({"free": free.to_string(), "used": used, "services": services.len(), "message": messages.join("; ")});
    (status != s.pool.status).then(|| ApiWrite {
        resource: Kind::LoadBalancerPool.into(),
        name: ObjectName::new("", s.name),
        op: WriteOp::PatchStatus(json!({"status": status})),
        why: format!("{used} addresses in use"),
    })
}

/// The first of a list.
fn some(list: &[String]) -> String {
    let more = list.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", list.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "))
}
