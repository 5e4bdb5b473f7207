//! A narrow client of etcd v3: five requests over its JSON gateway (`grpc-gateway`, on at etcd's client address by
//! default), through the HTTP and TLS that the Kubernetes client has anyway. Keys and values are base64 there, and
//! 64-bit numbers text.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Uri};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

use crate::error::chain;

/// A request that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read: some 100,000 leases.
const LONGEST: usize = 64 << 20;

/// What can go wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// An option cannot be used.
    #[error("{0}")]
    Config(String),
    /// No answer.
    #[error("etcd {endpoint}: {why}: is it running, and is its JSON gateway on (--enable-grpc-gateway)?")]
    Transport {
        /// Which server.
        endpoint: String,
        /// What failed.
        why: String,
    },
    /// The server refused.
    #[error("etcd {endpoint} {path}: {why}")]
    Refused {
        /// Which server.
        endpoint: String,
        /// The request.
        path: &'static str,
        /// What it says.
        why: String,
    },
    /// The store no longer has the revision that was asked for.
    #[error("revision {0} is the oldest that etcd still has: reading everything anew")]
    Compacted(i64),
}

/// How to reach it.
#[derive(Debug, Clone, Default)]
pub struct EtcdConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT`; one that does not answer makes way for the next.
    pub endpoints: Vec<String>,
    /// PEM file of the authority that signed the servers' certificates.
    pub ca: Option<PathBuf>,
    /// PEM file of our own certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// A user of etcd's own, with its password.
    pub user: Option<(String, String)>,
}

struct Server {
    endpoint: String,
    client: kube::Client,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    servers: Arc<[Server]>,
    current: Arc<AtomicUsize>,
    user: Option<(String, String)>,
    token: Arc<Mutex<Option<String>>>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Revision of its making.
    pub created: i64,
    /// Revision of its last change.
    pub modified: i64,
    /// The lease it goes with; 0 is none.
    pub lease: i64,
}

/// One change of a watched key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is so now.
    Put(KeyValue),
    /// It is gone.
    Delete(String),
}

fn read_file(option: &str, path: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|e| EtcdError::Config(format!("{option} {}: {e}", path.display())))
}

impl Etcd {
    /// Makes the client; sends nothing yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When an option cannot be used.
    pub fn new(config: &EtcdConfig) -> Result<Self, EtcdError> {
        if config.endpoints.is_empty() {
            return Err(EtcdError::Config("--etcd-endpoints: say where etcd is, as in http://127.0.0.1:2379".into()));
        }
        if config.cert.is_some() != config.key.is_some() {
            return Err(EtcdError::Config("--etcd-certfile and --etcd-keyfile: give both or none".into()));
        }
        let servers = config.endpoints.iter().map(|e| Self::server(e, config)).collect::<Result<_, _>>()?;
        Ok(Self { servers, current: Arc::default(), user: config.user.clone(), token: Arc::default() })
    }

    fn server(endpoint: &str, config: &EtcdConfig) -> Result<Server, EtcdError> {
        let bad = |why: &str| EtcdError::Config(format!("--etcd-endpoints {endpoint:?}: {why}"));
        let uri: Uri =
            endpoint.trim_end_matches('/').parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad("write http://HOST:PORT or https://HOST:PORT"));
        }
        let mut c = kube::Config::new(uri);
        c.connect_timeout = Some(Duration::from_secs(3));
        c.default_retry = false;
        c.proxy_url = None;
        // A file's problem is told here, where its option is known.
        if let Some(ca) = &config.ca {
            read_file("--etcd-cafile", ca)?;
            c.root_cert_file = Some(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
            read_file("--etcd-certfile", cert)?;
            read_file("--etcd-keyfile", key)?;
            c.auth_info.client_certificate = Some(cert.display().to_string());
            c.auth_info.client_key = Some(key.display().to_string());
        }
        let client =
            kube::Client::try_from(c).map_err(|e| EtcdError::Config(format!("etcd {endpoint}: {}", chain(&e))))?;
        Ok(Server { endpoint: endpoint.to_owned(), client })
    }

    /// Where requests go now.
    fn at(&self) -> Option<&Server> {
        let n = self.servers.len().max(1);
        self.servers.get(self.current.load(Ordering::Relaxed) % n)
    }

    fn authorization(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends, and gives the answer's body with its status checked.
    async fn open(&self, path: &'static str, body: &Value) -> Result<Body, EtcdError> {
        let Some(server) = self.at() else { return Err(EtcdError::Config("no endpoint".into())) };
        let transport = |why: String| {
            self.current.fetch_add(1, Ordering::Relaxed);
            EtcdError::Transport { endpoint: server.endpoint.clone(), why }
        };
        let mut request = Request::post(path).header("Content-Type", "application/json");
        if let Some(token) = self.authorization() {
            request = request.header("Authorization", token);
        }
        let request = request.body(Body::from(body.to_string().into_bytes())).map_err(|e| transport(e.to_string()))?;
        let sent = tokio::time::timeout(PATIENCE, server.client.send(request)).await;
        let answer = sent.map_err(|_| transport("no answer".into()))?.map_err(|e| transport(chain(&e)))?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let status = answer.status();
        let text = collect(answer.into_body()).await.unwrap_or_default();
        let said = serde_json::from_slice::<Value>(&text).unwrap_or_default();
        // What its front refuses before the gateway is plain text.
        let plain = || match String::from_utf8_lossy(&text).trim().chars().take(200).collect::<String>() {
            t if t.is_empty() => status.to_string(),
            t => format!("{status}: {t}"),
        };
        let why = said["message"].as_str().or(said["error"].as_str()).map_or_else(plain, str::to_owned);
        if why.contains("token") {
            // It has run out: the next request asks for another.
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if status.is_server_error() {
            self.current.fetch_add(1, Ordering::Relaxed);
        }
        Err(EtcdError::Refused { endpoint: server.endpoint.clone(), path, why })
    }

    async fn ask(&self, path: &'static str, body: &Value) -> Result<Value, EtcdError> {
        self.login().await?;
        self.ask_plain(path, body).await
    }

    async fn ask_plain(&self, path: &'static str, body: &Value) -> Result<Value, EtcdError> {
        let endpoint = self.at().map(|s| s.endpoint.clone()).unwrap_or_default();
        let transport = |why: String| EtcdError::Transport { endpoint: endpoint.clone(), why };
        let body = self.open(path, body).await?;
        let bytes = tokio::time::timeout(PATIENCE, collect(body))
            .await
            .map_err(|_| transport("no answer".into()))?
            .map_err(transport)?;
        // A streaming request answers with one object a line.
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let value: Value = serde_json::from_slice(line).map_err(|e| EtcdError::Refused {
            endpoint,
            path,
            why: format!("its answer is no JSON: {e}"),
        })?;
        Ok(value)
    }

    async fn login(&self) -> Result<(), EtcdError> {
        let Some((name, password)) = &self.user else { return Ok(()) };
        if self.authorization().is_some() {
            return Ok(());
        }
        let answer = self.ask_plain("/v3/auth/authenticate", &json!({"name": name, "password": password})).await?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = answer["token"].as_str().map(str::to_owned);
        Ok(())
    }

    /// Every key that begins with `prefix`, and the revision at which this was so.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn list(&self, prefix: &str) -> Result<(Vec<KeyValue>, i64), EtcdError> {
        let body = json!({"key": encode(prefix.as_bytes()), "range_end": encode(&after(prefix))});
        let answer = self.ask("/v3/kv/range", &body).await?;
        let all = answer["kvs"].as_array().map(|a| a.iter().filter_map(key_value).collect()).unwrap_or_default();
        Ok((all, number(&answer["header"]["revision"])))
    }

    /// Makes a key that is not there yet, with a lease; the revision that did. `None` when it is there.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn create(&self, key: &str, value: &str, lease: i64) -> Result<Option<i64>, EtcdError> {
        let put = json!({"key": encode(key.as_bytes()), "value": encode(value.as_bytes()), "lease": lease.to_string()});
        let body = json!({
            "compare": [{"key": encode(key.as_bytes()), "target": "VERSION", "result": "EQUAL", "version": "0"}],
            "success": [{"requestPut": put}],
        });
        Ok(succeeded(&self.ask("/v3/kv/txn", &body).await?))
    }

    /// Writes a key, if it was last changed at revision `seen`; the revision that did. `None` when it was changed since.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn replace(&self, key: &str, value: &str, lease: i64, seen: i64) -> Result<Option<i64>, EtcdError> {
        let put = json!({"key": encode(key.as_bytes()), "value": encode(value.as_bytes()), "lease": lease.to_string()});
        let body = json!({
            "compare": [{"key": encode(key.as_bytes()), "target": "MOD", "result": "EQUAL", "mod_revision": seen.to_string()}],
            "success": [{"requestPut": put}],
        });
        Ok(succeeded(&self.ask("/v3/kv/txn", &body).await?))
    }

    /// Removes a key, if it was last changed at revision `seen`. `false` when it was changed since.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn remove(&self, key: &str, seen: i64) -> Result<bool, EtcdError> {
        let body = json!({
            "compare": [{"key": encode(key.as_bytes()), "target": "MOD", "result": "EQUAL", "mod_revision": seen.to_string()}],
            "success": [{"requestDeleteRange": {"key": encode(key.as_bytes())}}],
        });
        Ok(self.ask("/v3/kv/txn", &body).await?["succeeded"] == true)
    }

    /// A new lease of so many seconds; its number.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn grant(&self, seconds: u64) -> Result<i64, EtcdError> {
        let answer = self.ask("/v3/lease/grant", &json!({"TTL": seconds.to_string(), "ID": "0"})).await?;
        Ok(number(&answer["ID"]))
    }

    /// Gives a lease back; keys that go with it go.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        self.ask("/v3/lease/revoke", &json!({"ID": lease.to_string()})).await.map(|_| ())
    }

    /// Renews a lease; how many seconds it holds from now, 0 when it is no more.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn keep_alive(&self, lease: i64) -> Result<u64, EtcdError> {
        let answer = self.ask("/v3/lease/keepalive", &json!({"ID": lease.to_string()})).await?;
        Ok(u64::try_from(number(&answer["result"]["TTL"])).unwrap_or(0))
    }

    /// Follows every key that begins with `prefix` from a revision on.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn watch(&self, prefix: &str, from: i64) -> Result<Watch, EtcdError> {
        self.login().await?;
        let body = json!({"create_request": {
            "key": encode(prefix.as_bytes()), "range_end": encode(&after(prefix)), "start_revision": from.to_string(),
        }});
        let endpoint = self.at().map(|s| s.endpoint.clone()).unwrap_or_default();
        Ok(Watch { body: self.open("/v3/watch", &body).await?, rest: Vec::new(), endpoint })
    }
}

/// A stream of changes.
pub struct Watch {
    body: Body,
    rest: Vec<u8>,
    endpoint: String,
}

impl Watch {
    /// The next changes and the revision they lead to; waits for them. May be dropped while it waits.
    ///
    /// # Errors
    /// When the stream ended, or begins before what the store still has.
    pub async fn next(&mut self) -> Result<(Vec<Change>, i64), EtcdError> {
        let gone = |why: &str, endpoint: &str| EtcdError::Transport { endpoint: endpoint.into(), why: why.into() };
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let value: Value = serde_json::from_slice(&line).map_err(|e| gone(&e.to_string(), &self.endpoint))?;
                return changes(&value).map_err(|e| match e {
                    Ok(oldest) => EtcdError::Compacted(oldest),
                    Err(why) => gone(&why, &self.endpoint),
                });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(e)) => return Err(gone(&chain(&e), &self.endpoint)),
                None => return Err(gone("the watch ended", &self.endpoint)),
            }
            if self.rest.len() > LONGEST {
                return Err(gone("one answer is longer than 64 MiB", &self.endpoint));
            }
        }
    }
}

/// What one message of a watch says: changes, the oldest revision that is left, or why there will be no more.
fn changes(message: &Value) -> Result<(Vec<Change>, i64), Result<i64, String>> {
    if let Some(e) = message.get("error") {
        return Err(Err(e["message"].as_str().unwrap_or("refused").to_owned()));
    }
    let r = &message["result"];
    if number(&r["compact_revision"]) > 0 {
        return Err(Ok(number(&r["compact_revision"])));
    }
    if r["canceled"] == true {
        return Err(Err(r["cancel_reason"].as_str().unwrap_or("canceled").to_owned()));
    }
    let one = |e: &Value| {
        if e["type"] == "DELETE" {
            decode(&e["kv"]["key"]).map(Change::Delete)
        } else {
            key_value(&e["kv"]).map(Change::Put)
        }
    };
    let all = r["events"].as_array().map(|a| a.iter().filter_map(one).collect()).unwrap_or_default();
    Ok((all, number(&r["header"]["revision"])))
}

async fn collect(mut body: Body) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    while let Some(frame) = body.frame().await {
        out.extend(frame.map_err(|e| chain(&e))?.into_data().unwrap_or_default());
        if out.len() > LONGEST {
            return Err("its answer is longer than 64 MiB".into());
        }
    }
    Ok(out)
}

fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn decode(v: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(v.as_str()?).ok()?).ok()
}

/// The gateway writes 64-bit numbers as text, and leaves zero out.
fn number(v: &Value) -> i64 {
    v.as_str().and_then(|s| s.parse().ok()).or_else(|| v.as_i64()).unwrap_or(0)
}

/// The revision of a transaction that was made.
fn succeeded(answer: &Value) -> Option<i64> {
    (answer["succeeded"] == true).then(|| number(&answer["header"]["revision"]))
}

fn key_value(v: &Value) -> Option<KeyValue> {
    // A key or value that is no text is none that we could mean anything by.
    Some(KeyValue {
        key: decode(&v["key"])?,
        value: v.get("value").map_or(Some(String::new()), decode)?,
        created: number(&v["create_revision"]),
        modified: number(&v["mod_revision"]),
        lease: number(&v["lease"]),
    })
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_watch() {
        let put = json!({"result": {"header": {"revision": "7"}, "events": [
            {"kv": {"key": encode(b"/a"), "value": encode(b"x"), "create_revision": "6", "mod_revision": "7", "lease": "12"}},
            {"type": "DELETE", "kv": {"key": encode(b"/b"), "mod_revision": "7"}},
        ]}});
        let (all, revision) = changes(&put).unwrap();
        let kv = KeyValue { key: "/a".into(), value: "x".into(), created: 6, modified: 7, lease: 12 };
        assert_eq!((all, revision), (vec![Change::Put(kv), Change::Delete("/b".into())], 7));
        assert_eq!(changes(&json!({"result": {"created": true, "header": {"revision": "3"}}})).unwrap(), (vec![], 3));
        assert_eq!(changes(&json!({"result": {"canceled": true, "compact_revision": "9"}})).unwrap_err(), Ok(9));
        assert_eq!(changes(&json!({"error": {"message": "no leader"}})).unwrap_err(), Err("no leader".into()));
        assert_eq!((after("/a/"), after("\u{7f}")), (b"/a0".to_vec(), vec![0x80]));
    }

    #[tokio::test]
    async fn options_that_cannot_be_used_are_named() {
        let with = |e: &str, c: EtcdConfig| {
            Etcd::new(&EtcdConfig { endpoints: vec![e.into()], ..c }).map(|_| ()).unwrap_err().to_string()
        };
        assert!(Etcd::new(&EtcdConfig::default()).is_err());
        assert!(with("10.0.0.1:2379", EtcdConfig::default()).contains("write http://HOST:PORT"));
        let no_key = EtcdConfig { cert: Some("/c".into()), ..EtcdConfig::default() };
        assert!(with("http://a:1", no_key).contains("--etcd-keyfile: give both"));
        let no_file = EtcdConfig { ca: Some("/none".into()), ..EtcdConfig::default() };
        assert!(with("https://a:1", no_file).contains("--etcd-cafile /none: No such file"));
    }
}
