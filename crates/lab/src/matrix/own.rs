//! Pods and Services that the test runs itself, in a lab that has too few.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::facts::echo_pods;
use crate::LabError;
use crate::api::Api;
use crate::manifest::{Manifest, apply};
use crate::record::Lab;

/// Their namespace.
pub const NAMESPACE: &str = "seaway-test";
/// How long they may take to come and to go.
const PATIENCE: Duration = Duration::from_secs(20);

fn objects(lab: &Lab) -> Vec<Value> {
    let labels = json!({"app": "seaway-test"});
    let mut v = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    let service = |name: &str, extra: Value| {
        let ports = json!([
            {"name": "tcp", "port": 80, "targetPort": 8080, "protocol": "TCP"},
            {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"}]);
        let mut s = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": labels, "ipFamilyPolicy": "PreferDualStack", "ports": ports}});
        for (k, x) in extra.as_object().into_iter().flatten() {
            s["spec"][k] = x.clone();
        }
        s
    };
    v.push(service("probe", json!({"type": "NodePort"})));
    v.push(service("probe-headless", json!({"clusterIP": "None"})));
    for n in &lab.nodes {
        for k in ["a", "b"] {
            v.push(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("probe-{}-{k}", n.name), "namespace": NAMESPACE, "labels": labels},
                "spec": {"nodeName": n.name, "terminationGracePeriodSeconds": 1, "containers": [
                    {"name": "echo", "image": "seaway/echo", "ports": [{"containerPort": 8080}],
                     "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 2}}]}}));
        }
    }
    v
}

/// Makes them and waits until they are ready and every slice knows them.
///
/// # Errors
/// When they do not become ready.
pub async fn make(api: &Api, lab: &Lab) -> Result<(), LabError> {
    let manifests: Vec<Manifest> = objects(lab)
        .into_iter()
        .map(|object| Manifest {
            at: format!("the test's own {}", object["kind"].as_str().unwrap_or_default()),
            object,
        })
        .collect();
    // One that an interrupted test left, or that is on its way out.
    wait_gone(api, true).await?;
    apply(api, &manifests).await?;
    let want = lab.nodes.len() * 2;
    let until = Instant::now() + PATIENCE;
    loop {
        let ready = echo_pods(&api.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods")).await?).len();
        let slices = api.list(&format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")).await?;
        let families = lab.spec.families.iter().count();
        let endpoints: usize = slices
            .iter()
            .flat_map(|s| s["endpoints"].as_array().into_iter().flatten())
            .filter(|e| e["conditions"]["ready"] == true)
            .count();
        // Two Services, each with every pod in every family.
        if ready == want && endpoints >= want * 2 * families {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(LabError::new(format!(
                "namespace {NAMESPACE}: {ready} of {want} probe pods became ready in {} s; `seaway lab get events -n {NAMESPACE}` says why",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Removes them, and waits until they are gone.
///
/// # Errors
/// When they do not go.
pub async fn remove(api: &Api, lab: &Lab) -> Result<(), LabError> {
    let manifests: Vec<Manifest> =
        objects(lab).into_iter().skip(1).map(|object| Manifest { at: "the test's own".into(), object }).collect();
    crate::manifest::delete(api, &manifests).await?;
    wait_empty(api).await?;
    api.delete(&format!("/api/v1/namespaces/{NAMESPACE}"), &json!({})).await?;
    wait_gone(api, false).await
}

async fn wait_empty(api: &Api) -> Result<(), LabError> {
    let until = Instant::now() + PATIENCE;
    while !api.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods")).await?.is_empty() {
        if Instant::now() > until {
            return Err(LabError::new(format!("namespace {NAMESPACE}: its pods do not go; see `seaway lab status`")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until the namespace is not there, or, with `or_alive`, is there and stays.
async fn wait_gone(api: &Api, or_alive: bool) -> Result<(), LabError> {
    let until = Instant::now() + PATIENCE;
    while let Some(n) = api.find(&format!("/api/v1/namespaces/{NAMESPACE}")).await? {
        if or_alive && n["metadata"]["deletionTimestamp"].is_null() {
            break;
        }
        if Instant::now() > until {
            return Err(LabError::new(format!(
                "namespace {NAMESPACE}: is being deleted and does not go: is the controller alive (`seaway lab status`)?"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
