//! The agent's HTTP listener: `/healthz`, `/readyz`, `/metrics`, `/status` and `/services`. Plain GETs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::Context;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;
use source::Reader;
use telemetry::{Health, Metrics};
use types::NodeName;

use super::status::Status;
use crate::services_cmd::gather::{self, Which};

/// What the answers are made of; the kernel thread writes, the listener reads.
pub struct Shared {
    /// When the agent started: the origin of every `now`.
    pub start: Instant,
    /// Counters.
    pub metrics: Metrics,
    /// Health by plane and kind.
    pub health: Mutex<Health>,
    /// The last pass.
    pub status: Mutex<Status>,
    /// This node.
    pub node: NodeName,
    /// The cluster, once it is watched.
    pub reader: OnceLock<Reader>,
    /// Rights that the API server denies, once it is asked.
    pub denials: OnceLock<source::Denials>,
}

impl Shared {
    /// Changes the health.
    pub fn health(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// `/services?namespace=...&name=...`: what `seaway services` prints.
async fn services(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<BTreeMap<String, String>>,
) -> impl IntoResponse {
    let which = Which { namespace: query.get("namespace").cloned(), name: query.get("name").cloned() };
    // Resolving a large cluster takes a while; the watchers wait, the listener does not.
    let done = tokio::task::spawn_blocking(move || {
        let report = |s: &_| gather::report(s, &shared.node, &which);
        let mut out = shared.reader.get()?.read(|snapshot, sync| sync.all().then(|| report(snapshot)))?;
        out.foreign.clone_from(&shared.status.lock().unwrap_or_else(PoisonError::into_inner).foreign);
        Some(out)
    });
    let (code, body) = match done.await {
        Ok(Some(report)) => (StatusCode::OK, serde_json::to_string(&report).unwrap_or_default()),
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, "the cluster's objects are not all there yet".into()),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    };
    (code, [(header::CONTENT_TYPE, "application/json")], body + "\n")
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> impl IntoResponse {
    let now = shared.start.elapsed();
    let denied = shared.denials.get().map(source::Denials::now).unwrap_or_default();
    shared.metrics.missing_rights(denied.len());
    let a = if uri.path() == "/status" {
        let mut status = shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.denied = denied.iter().map(ToString::to_string).collect();
        let body = serde_json::to_string_pretty(&status).unwrap_or_default();
        telemetry::Answer { status: 200, content_type: "application/json", body: body + "\n" }
    } else {
        let health = shared.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        telemetry::answer(uri.path(), &health, &shared.metrics, now)
    };
    let code = StatusCode::from_u16(a.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, [(header::CONTENT_TYPE, a.content_type)], a.body)
}

/// Binds the listener.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(addr)
        .await
        .with_context(|| format!("--listen {addr}: cannot listen there; choose another address or stop who has it"))
}

/// Serves until the runtime ends.
pub async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) -> anyhow::Result<()> {
    let app = Router::new().route("/services", get(services)).fallback(answer).with_state(shared);
    axum::serve(listener, app).await.context("serve metrics and health")
}
