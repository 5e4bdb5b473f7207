//! A server in this process, and clients for its sockets.

use std::path::PathBuf;
use std::time::Duration;

use apiserver::{Config, Server, TlsConfig};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No single step of a test may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Host {
    pub dir: tempfile::TempDir,
    pub sock: PathBuf,
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<Result<(), apiserver::ServeError>>,
}

pub fn config(dir: &std::path::Path) -> Config {
    let mut c = Config::new(dir.join("api.redb"));
    c.unix = Some(dir.join("api.sock"));
    c
}

impl Host {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn tls() -> Self {
        Self::with(|c| {
            c.tls = Some(TlsConfig { addrs: vec!["127.0.0.1:0".parse().unwrap()], ..TlsConfig::default() });
        })
        .await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::within(tempfile::tempdir().unwrap(), change).await
    }

    pub async fn within(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut c = config(dir.path());
        change(&mut c);
        let server = Server::start(c).await.unwrap();
        let url = server.tls_addrs().first().map(|a| format!("https://{a}")).unwrap_or_default();
        if !url.is_empty() {
            std::fs::write(dir.path().join("kubeconfig"), server.kubeconfig("test", &url).unwrap()).unwrap();
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        let sock = dir.path().join("api.sock");
        Self { dir, sock, url, stop: Some(stop), done }
    }

    /// Stops the server and hands its folder back.
    pub async fn stop(mut self) -> tempfile::TempDir {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(PATIENCE, self.done).await.unwrap().unwrap().unwrap();
        self.dir
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        send(&self.sock, method, path, headers, body.into()).await.unwrap()
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let bytes = if body.is_null() { String::new() } else { body.to_string() };
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.raw(method, path, &[("content-type", kind)], bytes).await
    }

    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, Value) {
        let r = self.send(method, path, headers, body).await;
        let code = r.status().as_u16();
        let bytes = r.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (code, v) = self.call("GET", path, Value::Null).await;
        assert_eq!(code, 200, "GET {path}: {v}");
        v
    }

    pub async fn create(&self, path: &str, body: Value) -> Value {
        let (code, v) = self.call("POST", path, body).await;
        assert_eq!(code, 201, "POST {path}: {v}");
        v
    }

    pub async fn put(&self, path: &str, body: &Value) -> Value {
        let (code, v) = self.call("PUT", path, body.clone()).await;
        assert_eq!(code, 200, "PUT {path}: {v}");
        v
    }

    pub async fn delete(&self, path: &str) -> Value {
        let (code, v) = self.call("DELETE", path, Value::Null).await;
        assert_eq!(code, 200, "DELETE {path}: {v}");
        v
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> (u16, Value) {
        self.raw("PATCH", path, &[("content-type", kind)], body.to_string()).await
    }

    pub async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, "application/json").await
    }

    pub async fn watch_as(&self, path: &str, accept: &str) -> Watch {
        let r = self.send("GET", path, &[("accept", accept)], "").await;
        assert_eq!(r.status(), StatusCode::OK);
        Watch { body: r.into_body(), buf: Vec::new() }
    }
}

pub async fn send(
    sock: &std::path::Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<http::Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let io = TokioIo::new(UnixStream::connect(sock).await?);
    let (mut sender, conn) = http1::handshake(io).await?;
    tokio::spawn(conn);
    let mut req = Request::builder().method(method).uri(path).header(header::HOST, "api");
    for (k, v) in headers {
        req = req.header(*k, *v);
    }
    Ok(tokio::time::timeout(PATIENCE, sender.send_request(req.body(Full::new(body))?)).await??)
}

/// The events of a watch, one by one.
pub struct Watch {
    body: Incoming,
    buf: Vec<u8>,
}

impl Watch {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buf.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buf.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            match tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("the watch is silent") {
                Some(Ok(f)) => self.buf.extend_from_slice(&f.into_data().unwrap_or_default()),
                _ => return None,
            }
        }
    }

    /// Type and name of the next event.
    pub async fn brief(&mut self) -> (String, String) {
        let e = self.next().await.expect("the watch ended");
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        (text(&e["type"]), text(&e["object"]["metadata"]["name"]))
    }

    /// Whether nothing comes for a while.
    pub async fn silent(&mut self) -> bool {
        self.buf.is_empty() && tokio::time::timeout(Duration::from_millis(200), self.body.frame()).await.is_err()
    }
}

pub fn rv(v: &Value) -> u64 {
    v["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

pub fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

pub fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const CMS: &str = "/api/v1/namespaces/default/configmaps";
pub const SVCS: &str = "/api/v1/namespaces/default/services";
pub const DEPLOYS: &str = "/apis/apps/v1/namespaces/default/deployments";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
