//! What the server does by itself: its first objects, and emptying namespaces.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::admission::Ranges;
use crate::api::Api;
use crate::error::Result;
use crate::http::yaml;
use crate::objects::{self, DeleteOptions, Part, Unknown};
use crate::resource::{RESOURCES, core, definitions, service_cidrs as service_cidrs_row};
use crate::store::Tx;
use crate::util::{parse_rfc3339, rfc3339, str_at, unix_now};

/// How long a namespace that is being deleted keeps its content.
const REAP_AFTER: Duration = Duration::from_millis(400);

/// Empties the namespaces that are being deleted, also those of before a restart, until the server stops.
pub(crate) async fn reap(api: Arc<Api>) {
    let res = core("namespaces");
    let mut changed = api.store.subscribe(res);
    let mut stop = api.stop.clone();
    loop {
        changed.mark_unchanged();
        let ending: Vec<String> = {
            let state = api.store.read();
            let all = state.kind(res).range("", None);
            // The field that selectors use: no parsing.
            all.filter(|(_, o)| o.fields.first().is_some_and(|phase| &**phase == "Terminating"))
                .map(|(k, _)| k.to_owned())
                .collect()
        };
        if !ending.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(REAP_AFTER) => {}
                _ = stop.changed() => return,
            }
        }
        for ns in ending {
            let name = ns.clone();
            if let Err(e) = api.store.write(false, move |tx| objects::empty_namespace(tx, &ns)).await {
                tracing::warn!(namespace = name, error = e.message, "a namespace could not be emptied");
            }
        }
        tokio::select! {
            r = changed.changed() => if r.is_err() { return },
            _ = stop.changed() => return,
        }
    }
}

/// Removes Events that were last seen too long ago, until the server stops.
pub(crate) async fn forget_events(api: Arc<Api>, ttl: Duration) {
    let res = core("events");
    let mut stop = api.stop.clone();
    let every = (ttl / 2).clamp(Duration::from_millis(50), Duration::from_secs(60));
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stop.changed() => return,
        }
        let before = unix_now().saturating_sub(ttl.as_secs());
        let seen = |v: &Value| {
            let all = [
                &["series", "lastObservedTime"][..],
                &["lastTimestamp"],
                &["eventTime"],
                &["metadata", "creationTimestamp"],
            ];
            all.into_iter().find_map(|p| parse_rfc3339(str_at(v, p)))
        };
        let old: Vec<Box<str>> = {
            let state = api.store.read();
            let all = state.kind(res).range("", None);
            all.filter(|(_, o)| seen(&o.value()).is_some_and(|t| t < before)).take(500).map(|(k, _)| k.into()).collect()
        };
        if old.is_empty() {
            continue;
        }
        let gone = api.store.write(false, move |tx| {
            for key in old {
                // Somebody may have been faster.
                if tx.get(res, &key).is_some() {
                    objects::delete(tx, res, &key, &DeleteOptions::default())?;
                }
            }
            Ok(())
        });
        if let Err(e) = gone.await {
            tracing::warn!(error = e.message, "old events could not be removed");
        }
    }
}

/// Kinds that a server knows from its first start on; and whether they are ours to bring up to date.
const DEFINITIONS: [(&str, bool); 5] = [
    (include_str!("../../../deploy/crds/ippools.yaml"), true),
    (include_str!("../../../deploy/crds/ipblocks.yaml"), true),
    (include_str!("../../../deploy/crds/ipreservations.yaml"), true),
    (include_str!("../../../deploy/crds/loadbalancerpools.yaml"), true),
    (include_str!("../../../deploy/crds/network-attachment-definitions.yaml"), false),
];

/// Puts the definitions in place, those of an older release by ours.
fn define(tx: &mut Tx<'_>, ranges: &Ranges) -> Result<()> {
    let res = definitions();
    for (text, ours) in DEFINITIONS {
        let mut v = yaml(text.as_bytes())?;
        objects::shape(res, &mut v, Unknown::Refuse)?;
        (res.default)(&mut v);
        let name = str_at(&v, &["metadata", "name"]).to_owned();
        match tx.get(res, &name) {
            None => drop(objects::create(tx, res, v, ranges)?),
            Some(old) if ours && old.value()["spec"] != v["spec"] => {
                drop(objects::replace(tx, res, &name, &old, v, Part::Main, ranges)?);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The ranges of cluster IPs, as the server was told them this time. Written by nobody else.
fn service_cidrs(tx: &mut Tx<'_>, ranges: &Ranges) -> Result<()> {
    let (res, name) = (service_cidrs_row(), "kubernetes");
    let cidrs: Vec<String> = ranges.services.iter().map(ToString::to_string).collect();
    let old = tx.get(res, name);
    if old.as_ref().is_some_and(|o| o.value()["spec"]["cidrs"] == json!(cidrs)) {
        return Ok(());
    }
    let v = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes Service CIDR is ready", "lastTransitionTime": rfc3339(unix_now())}]}});
    match old {
        Some(old) => drop(objects::replace(tx, res, name, &old, v, Part::Main, ranges)?),
        None => drop(objects::create(tx, res, v, ranges)?),
    }
    Ok(())
}

/// The objects that a server has from its first start on. Idempotent.
pub(crate) async fn bootstrap(api: &Api, advertise: &[SocketAddr], port: u16) -> Result<()> {
    let ranges = api.ranges.clone();
    let advertise = advertise.to_vec();
    api.store
        .write(false, move |tx| {
            let namespaces = core("namespaces");
            for ns in ["default", "kube-system", "kube-public", "kube-node-lease"] {
                if tx.get(namespaces, ns).is_none() {
                    objects::create(tx, namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}}), &ranges)?;
                }
            }
            let services = core("services");
            if tx.get(services, "default/kubernetes").is_none() {
                let first = ranges.services.first().and_then(|r| r.nth(1)).map(|ip| ip.to_string()).unwrap_or_default();
                let svc = json!({"apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
                    "spec": {"type": "ClusterIP", "clusterIP": first, "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]}});
                objects::create(tx, services, svc, &ranges)?;
            }
            define(tx, &ranges)?;
            service_cidrs(tx, &ranges)?;
            slices(tx, &advertise, &ranges)
        })
        .await
}

/// The endpoints of `default/kubernetes`: one slice per family of the advertised addresses.
fn slices(tx: &mut Tx<'_>, advertise: &[SocketAddr], ranges: &Ranges) -> Result<()> {
    let Some(res) = RESOURCES.iter().find(|r| r.plural == "endpointslices") else { return Ok(()) };
    for (family, v4) in [("IPv4", true), ("IPv6", false)] {
        let name = if v4 { "kubernetes".to_owned() } else { "kubernetes-ipv6".to_owned() };
        let key = res.key("default", &name);
        let mine: Vec<_> = advertise.iter().filter(|a| a.is_ipv4() == v4 && !a.ip().is_loopback()).collect();
        let old = tx.get(res, &key);
        let Some(first) = mine.first() else {
            if old.is_some() {
                objects::delete(tx, res, &key, &DeleteOptions::default())?;
            }
            continue;
        };
        let endpoints: Vec<Value> = mine
            .iter()
            .filter(|a| a.port() == first.port())
            .map(|a| json!({"addresses": [a.ip().to_string()], "conditions": {"ready": true}}))
            .collect();
        let v = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "https", "port": first.port(), "protocol": "TCP"}]});
        match old {
            Some(old) => drop(objects::replace(tx, res, &key, &old, v, Part::Main, ranges)?),
            None => drop(objects::create(tx, res, v, ranges)?),
        }
    }
    Ok(())
}
