//! Events of pods and nodes, as `kubectl get events` and `seaway lab get events` show them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::api::Api;
use crate::shim::now;

/// The most distinct events remembered for counting; beyond it counting starts anew.
const REMEMBERED: usize = 4096;

/// A writer of events. Writing is best effort and never waited for.
#[derive(Debug, Clone)]
pub struct Events {
    api: Api,
    node: String,
    counts: Arc<Mutex<BTreeMap<String, u32>>>,
}

/// FNV-1a, 64 bit: the same event always has the same name.
fn hash(parts: &[&str]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for b in parts.iter().flat_map(|p| p.bytes().chain([0])) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h
}

impl Events {
    /// For the runner of a node.
    #[must_use]
    pub fn new(api: Api, node: &str) -> Self {
        Self { api, node: node.into(), counts: Arc::default() }
    }

    /// Says something about a pod. `kind` is `Normal` or `Warning`. The same words again only count up.
    pub fn pod(&self, namespace: &str, name: &str, uid: &str, kind: &str, reason: &str, message: &str) {
        let event = format!("{name}.{:016x}", hash(&[uid, reason, message]));
        let count = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            if counts.len() >= REMEMBERED {
                counts.clear();
            }
            let c = counts.entry(event.clone()).or_insert(0);
            *c += 1;
            *c
        };
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let at = now();
        let object = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": event, "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
            "type": kind, "reason": reason, "message": message, "count": count,
            "firstTimestamp": at, "lastTimestamp": at,
            "source": {"component": "seaway-lab", "host": self.node},
            "reportingComponent": "seaway-lab", "reportingInstance": self.node,
        });
        let api = self.api.clone();
        tokio::spawn(async move {
            let again = count > 1 || api.create(&path, &object).await.is_err();
            if again {
                let patch: Value = json!({"count": count, "lastTimestamp": at});
                let _ = api.merge(&format!("{path}/{event}"), &patch).await;
            }
        });
    }
}
