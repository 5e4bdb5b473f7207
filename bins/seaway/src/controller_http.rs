//! The controllers' HTTP listener: `/healthz`, `/readyz`, `/metrics` and `/status`. Plain GETs.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use serde_json::json;
use telemetry::{Answer, Controllers};

/// What the answers are made of.
pub struct Shared {
    /// Counters, and whether they work.
    pub metrics: Controllers,
    /// Rights that the API server denies.
    pub denials: source::Denials,
    /// What the last pass could not do.
    pub problems: Mutex<Vec<resolve::Problem>>,
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> impl IntoResponse {
    let denied: Vec<String> = shared.denials.now().iter().map(ToString::to_string).collect();
    let a = if uri.path() == "/status" {
        let problems = shared.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let body = format!("{:#}\n", json!({"denied": denied, "problems": problems}));
        Answer { status: 200, content_type: "application/json", body }
    } else {
        shared.metrics.answer(uri.path(), &denied)
    };
    let code = StatusCode::from_u16(a.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, [(header::CONTENT_TYPE, a.content_type)], a.body)
}

/// Listens, and serves until the runtime ends.
///
/// # Errors
/// When the address cannot be listened at.
pub async fn start(at: SocketAddr, shared: Arc<Shared>) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(at).await.with_context(|| {
        format!("--status-listen {at}: cannot listen there; choose another address or stop who has it")
    })?;
    let app = Router::new().fallback(answer).with_state(shared);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(())
}
