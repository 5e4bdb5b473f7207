//! A small client of the Kubernetes API over a unix socket: JSON values in, JSON values out, and list-then-watch.
//!
//! The lab speaks for a kubelet and for a person's `apply`, which need raw objects, status patches and tables; the
//! slim caches of `source` keep none of that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::LabError;

/// The largest answer read at once.
const MAX_BODY: usize = 64 << 20;

/// The `Content-Type` of a JSON merge patch (RFC 7386).
pub const MERGE_PATCH: &str = "application/merge-patch+json";

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The server answered with a Status.
    #[error("{message}")]
    Status {
        /// HTTP status.
        code: u16,
        /// Its word for it: `NotFound`, `AlreadyExists`, `Conflict`...
        reason: String,
        /// For people.
        message: String,
    },
    /// No answer.
    #[error("{socket}: {problem}: is the lab's API server running (`seaway lab status`)?", socket = .socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        problem: String,
    },
}

impl ApiError {
    /// HTTP status, if the server answered.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Unreachable { .. } => None,
        }
    }
}

impl From<ApiError> for LabError {
    fn from(e: ApiError) -> Self {
        Self::new(e.to_string())
    }
}

/// A client. Cheap to clone; one connection per request.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// One change of a watched collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// All there is: at the start, and again after a gap in the watch.
    All(Vec<Value>),
    /// Added or modified.
    Put(Value),
    /// Deleted.
    Gone(Value),
}

impl Api {
    /// Of the server behind a unix socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    fn unreachable(&self, e: impl std::fmt::Display) -> ApiError {
        ApiError::Unreachable { socket: self.socket.clone(), problem: e.to_string() }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<(StatusCode, Incoming), ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(e))?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "seaway").header(ACCEPT, accept);
        let bytes = match body {
            Some((kind, bytes)) => {
                request = request.header(CONTENT_TYPE, kind);
                Bytes::from(bytes)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes)).map_err(|e| self.unreachable(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.unreachable(e))?;
        let (head, body) = response.into_parts();
        Ok((head.status, body))
    }

    /// One request and its whole answer.
    ///
    /// # Errors
    /// When there is no answer, or it is not a success.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ApiError> {
        let body = body.map(|(k, v)| (k, v.to_string().into_bytes()));
        let call = async {
            let (status, body) = self.send(method, path, accept, body).await?;
            let bytes = Limited::new(body, MAX_BODY).collect().await.map_err(|e| self.unreachable(e))?.to_bytes();
            let value: Value = if bytes.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&bytes).map_err(|e| self.unreachable(e))?
            };
            if status.is_success() { Ok(value) } else { Err(refusal(status, &value)) }
        };
        tokio::time::timeout(TIMEOUT, call).await.unwrap_or_else(|_| Err(self.unreachable("no answer in 15 s")))
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.request(Method::GET, path, "application/json", None).await
    }

    /// GET that answers `None` to 404.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub async fn find(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(v) => Ok(Some(v)),
            Err(e) if e.code() == Some(404) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The items of a collection.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, ApiError> {
        let mut v = self.get(path).await?;
        Ok(match v.get_mut("items").map(Value::take) {
            Some(Value::Array(a)) => a,
            _ => Vec::new(),
        })
    }

    /// POST.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.request(Method::POST, path, "application/json", Some(("application/json", object))).await
    }

    /// PATCH with a JSON merge patch.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, ApiError> {
        self.request(Method::PATCH, path, "application/json", Some((MERGE_PATCH, patch))).await
    }

    /// DELETE with options; 404 is success.
    ///
    /// # Errors
    /// As [`Api::request`].
    pub async fn delete(&self, path: &str, options: &Value) -> Result<(), ApiError> {
        match self.request(Method::DELETE, path, "application/json", Some(("application/json", options))).await {
            Err(e) if e.code() != Some(404) => Err(e),
            _ => Ok(()),
        }
    }

    /// Lists a collection, then watches it, again and again: after a broken watch it resumes, after 410 it lists.
    /// `path` may have a query (a selector). The task ends when the receiver is dropped.
    #[must_use]
    pub fn watch(&self, path: &str) -> mpsc::Receiver<Change> {
        let (tx, rx) = mpsc::channel(64);
        let api = self.clone();
        let path = path.to_owned();
        tokio::spawn(async move {
            let mut version: Option<String> = None;
            while !tx.is_closed() {
                if api.follow(&path, &mut version, &tx).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        });
        rx
    }

    /// One list (unless `version` is known) and one watch. `version` is cleared when it is too old.
    async fn follow(
        &self,
        path: &str,
        version: &mut Option<String>,
        tx: &mpsc::Sender<Change>,
    ) -> Result<(), ApiError> {
        let closed = |_| self.unreachable("nobody listens");
        let from = match version.clone() {
            Some(v) => v,
            None => {
                let mut list = self.get(path).await?;
                let v = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
                let items = match list["items"].take() {
                    Value::Array(a) => a,
                    _ => Vec::new(),
                };
                tx.send(Change::All(items)).await.map_err(closed)?;
                *version = Some(v.clone());
                v
            }
        };
        let and = if path.contains('?') { '&' } else { '?' };
        let url = format!("{path}{and}watch=true&allowWatchBookmarks=true&resourceVersion={from}");
        let (status, mut body) = self.send(Method::GET, &url, "application/json", None).await?;
        if status == StatusCode::GONE {
            *version = None;
            return Ok(());
        }
        if !status.is_success() {
            return Err(refusal(status, &Value::Null));
        }
        let mut line: Vec<u8> = Vec::new();
        loop {
            let frame = tokio::select! {
                f = body.frame() => f,
                () = tx.closed() => return Ok(()),
            };
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|e| self.unreachable(e))?;
            let Some(data) = frame.data_ref() else { continue };
            for part in data.split_inclusive(|b| *b == b'\n') {
                line.extend_from_slice(part);
                if line.len() > MAX_BODY {
                    *version = None;
                    return Err(self.unreachable("an event of the watch is too large"));
                }
                if line.last() != Some(&b'\n') {
                    continue;
                }
                let event: Value = serde_json::from_slice(&line).map_err(|e| self.unreachable(e))?;
                line.clear();
                if !self.event(event, version, tx).await? {
                    return Ok(());
                }
            }
        }
    }

    /// Passes one event on. False when the watch must start over.
    async fn event(
        &self,
        mut event: Value,
        version: &mut Option<String>,
        tx: &mpsc::Sender<Change>,
    ) -> Result<bool, ApiError> {
        let object = event["object"].take();
        if event["type"] == "ERROR" {
            *version = None;
            return Ok(false);
        }
        if let Some(v) = object["metadata"]["resourceVersion"].as_str() {
            *version = Some(v.to_owned());
        }
        let change = match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => Change::Put(object),
            Some("DELETED") => Change::Gone(object),
            _ => return Ok(true),
        };
        tx.send(change).await.map_err(|_| self.unreachable("nobody listens"))?;
        Ok(true)
    }
}

fn refusal(status: StatusCode, body: &Value) -> ApiError {
    let text = |k: &str| body[k].as_str().map(str::to_owned);
    ApiError::Status {
        code: status.as_u16(),
        reason: text("reason").unwrap_or_default(),
        message: text("message").unwrap_or_else(|| format!("the API server answered {status}")),
    }
}

/// Makes a text safe inside a query (RFC 3986, percent-encoding all but the unreserved).
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// A server that answers each connection with the next text and closes, and says what it was asked.
    fn server(path: &Path, answers: Vec<String>) -> mpsc::UnboundedReceiver<String> {
        let l = UnixListener::bind(path).unwrap();
        let (tx, rx) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for a in answers {
                let (mut s, _) = l.accept().await.unwrap();
                let mut buf = vec![0; 8192];
                let n = s.read(&mut buf).await.unwrap();
                let _ = tx.send(String::from_utf8_lossy(&buf[..n]).lines().next().unwrap_or_default().to_owned());
                s.write_all(a.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        rx
    }

    fn ok(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn refusals_carry_the_servers_words() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("s");
        let _asked = server(&p, vec![ok("409 Conflict", r#"{"reason":"Conflict","message":"object was modified"}"#)]);
        let e = Api::new(&p).get("/x").await.unwrap_err();
        assert_eq!((e.code(), e.to_string().as_str()), (Some(409), "object was modified"));
        let e = Api::new(&d.path().join("none")).get("/x").await.unwrap_err();
        assert!(e.code().is_none() && e.to_string().contains("API server running"), "{e}");
    }

    #[tokio::test]
    async fn a_watch_resumes_and_lists_again_after_410() {
        let d = tempfile::tempdir().unwrap();
        let p = d.path().join("s");
        let list = |rv: u32, names: &[&str]| {
            let items: Vec<_> = names.iter().map(|n| serde_json::json!({"metadata": {"name": n}})).collect();
            ok(
                "200 OK",
                &serde_json::json!({"metadata": {"resourceVersion": rv.to_string()}, "items": items}).to_string(),
            )
        };
        let ev = |t: &str, n: &str, rv: u32| {
            let object = serde_json::json!({"metadata": {"name": n, "resourceVersion": rv.to_string()}});
            serde_json::json!({"type": t, "object": object}).to_string() + "\n"
        };
        let mut asked = server(
            &p,
            vec![
                list(5, &["a"]),
                ok("200 OK", &(ev("ADDED", "b", 6) + &ev("BOOKMARK", "", 9))),
                ok("200 OK", &(ev("DELETED", "a", 10) + "{\"type\":\"ERROR\",\"object\":{\"code\":410}}\n")),
                list(20, &["b", "c"]),
            ],
        );
        let mut rx = Api::new(&p).watch("/pods?fieldSelector=x");
        let mut seen = Vec::new();
        for _ in 0..4 {
            let name = |v: &Value| v["metadata"]["name"].as_str().unwrap().to_owned();
            seen.push(match rx.recv().await.unwrap() {
                Change::All(v) => format!("all {}", v.iter().map(name).collect::<Vec<_>>().join(" ")),
                Change::Put(v) => format!("put {}", name(&v)),
                Change::Gone(v) => format!("gone {}", name(&v)),
            });
        }
        assert_eq!(seen, ["all a", "put b", "gone a", "all b c"]);
        asked.recv().await.unwrap();
        assert!(asked.recv().await.unwrap().contains("&watch=true&allowWatchBookmarks=true&resourceVersion=5 "));
        assert!(asked.recv().await.unwrap().contains("resourceVersion=9 "), "a bookmark moves the version");
    }

    #[test]
    fn encoding() {
        assert_eq!(encode("spec.nodeName=a b"), "spec.nodeName%3Da%20b");
    }
}
