//! Owns: the embedded Kubernetes-compatible API server of one machine: store, watch, admission, validation, TLS and unix socket.
//! Never does: reconcile (that is `controller`), talk to a kernel, or serve more than one store per process.
//! Tested by: unit and property tests of each module, HTTP tests over real sockets, kill -9 tests and the real `kubectl`.
//!
//! ```no_run
//! # async fn run() -> Result<(), apiserver::ServeError> {
//! use apiserver::{Config, Server, TlsConfig};
//! let mut config = Config::new("/var/lib/seaway/api.redb");
//! config.unix = Some("/run/seaway/api.sock".into());
//! config.tls = Some(TlsConfig { addrs: vec!["127.0.0.1:6443".parse().map_err(apiserver::ServeError::other)?], ..TlsConfig::default() });
//! // In one call:
//! //     apiserver::serve(config, async { let _ = tokio::signal::ctrl_c().await; }).await
//! // or in two, when the caller needs the bound addresses and the client's kubeconfig first:
//! let server = Server::start(config).await?;
//! let url = format!("https://{}", server.tls_addrs()[0]);
//! std::fs::write("admin.kubeconfig", server.kubeconfig("seaway", &url)?).map_err(apiserver::ServeError::other)?;
//! server.run(async { let _ = tokio::signal::ctrl_c().await; }).await
//! # }
//! ```

mod admission;
mod api;
mod bootstrap;
mod config;
mod crd;
mod defaults;
mod discovery;
mod error;
pub mod fuzz;
mod http;
mod kubelet;
mod metrics;
mod objects;
mod patch;
mod pki;
mod protobuf;
mod read;
mod resource;
mod review;
mod schema;
mod selector;
mod server;
mod store;
mod table;
mod texts;
mod util;
mod validate;

pub use config::{Config, ServeError, TlsConfig};
pub use pki::kubeconfig;
pub use server::{Server, serve};
