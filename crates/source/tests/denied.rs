//! Rights that a server denies: told where people look, and no more in the way than they must be.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resolve::{Key, Kind};
use serde_json::{Value, json};
use source::{Api, Recorder, Source, Target, WatchConfig, connect};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use types::ObjectName;

/// What a server answers to a request (method, path, body): HTTP status, text, and whether the connection stays open.
type Answers = Arc<dyn Fn(&str, &str, &Value) -> (u16, String, bool) + Send + Sync>;

async fn one(stream: UnixStream, answers: Answers) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
    read.read_line(&mut first).await.unwrap();
    while read.read_line(&mut line).await.unwrap() > 2 {
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    if words.len() < 2 {
        return;
    }
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let (code, text, stays) = answers(words[0], words[1], &body);
    // No length: the body ends with the connection, as a watch's does.
    let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
    let _ = write.write_all(format!("{head}{text}").as_bytes()).await;
    if stays {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// A server that is gone when this is.
struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Place {
    fn new(answers: Answers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(one(stream, Arc::clone(&answers)));
            }
        });
        Self { _dir: dir, path, task }
    }

    async fn api(&self) -> Api {
        connect(&Target::Unix(self.path.clone())).await.unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn forbidden(verb: &str, resource: &str) -> (u16, String, bool) {
    let message = format!(
        "{resource} is forbidden: User \"system:serviceaccount:kube-system:seaway-agent\" cannot {verb} resource \"{resource}\" in API group \"\" at the cluster scope"
    );
    let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": message});
    (403, status.to_string(), false)
}

#[tokio::test]
async fn a_missing_right_is_an_event_that_names_the_rule() {
    let events = Arc::new(Mutex::new(Vec::<Value>::new()));
    let granted = Arc::new(AtomicBool::new(false));
    let (told, may) = (Arc::clone(&events), Arc::clone(&granted));
    let place = Place::new(Arc::new(move |method, path, body| match (method, path) {
        ("GET", "/api/v1/nodes/n1") => (200, json!({"metadata": {"name": "n1", "uid": "u1"}}).to_string(), false),
        ("POST", "/api/v1/namespaces/default/events") => {
            told.lock().unwrap().push(body.clone());
            (201, body.to_string(), false)
        }
        ("PATCH", p) if p.starts_with("/api/v1/nodes/n1") && !may.load(Ordering::SeqCst) => forbidden("patch", "nodes"),
        _ => (200, "{}".into(), false),
    }));
    let api = place.api().await;
    let about = Key { kind: Kind::Node, name: ObjectName::new("", "n1") };
    let recorder = Recorder::start(&api, "seaway-agent", "n1");
    let telling = tokio::spawn(api.denials().tell(recorder, about));
    let node = "n1".parse().unwrap();
    let annotate = || api.annotate_node(&node, [("x", Some("y".to_owned()))]);
    let rule = "add {apiGroups: [\"\"], resources: [nodes], verbs: [patch]} to the rules of ClusterRole seaway-agent";
    for _ in 0..3 {
        let e = annotate().await.unwrap_err().to_string();
        assert!(e.contains(rule), "{e}");
    }
    let end = async {
        while events.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), end).await.unwrap();
    let event = events.lock().unwrap()[0].clone();
    assert_eq!((&event["reason"], &event["type"]), (&json!("Forbidden"), &json!("Warning")));
    assert_eq!((&event["involvedObject"]["kind"], &event["involvedObject"]["uid"]), (&json!("Node"), &json!("u1")));
    assert!(event["message"].as_str().unwrap().contains(rule), "{event}");
    assert_eq!(api.denials().now().len(), 1);
    granted.store(true, Ordering::SeqCst);
    annotate().await.unwrap();
    assert!(api.denials().now().is_empty());
    assert_eq!(events.lock().unwrap().len(), 1, "told once");
    telling.abort();
}

/// Who may watch follows the cluster, also after an outage, when the server cannot be asked how far it is.
#[tokio::test]
async fn a_watch_needs_no_right_to_list() {
    let watches = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&watches);
    let place = Place::new(Arc::new(move |_, path, _| {
        if !path.contains("watch=true") {
            return forbidden("list", "namespaces");
        }
        if !path.contains("sendInitialEvents") {
            // Its store is away.
            let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable"});
            return (503, status.to_string(), false);
        }
        let meta = |name: &str| json!({"name": name, "resourceVersion": "9"});
        let end = json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"resourceVersion": "10", "annotations": {"k8s.io/initial-events-end": "true"}}}});
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta(if first { "a" } else { "b" })});
        let added = json!({"type": "ADDED", "object": object});
        (200, format!("{added}\n{end}\n"), !first)
    }));
    let api = place.api().await;
    let mut source = Source::start(&api, WatchConfig { kinds: [Kind::Namespace].into(), pods_of: None });
    let end = async {
        while source.read(|s, _| s.namespaces.keys().map(ToString::to_string).collect::<Vec<_>>()) != ["b"] {
            source.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), end).await.unwrap();
    assert!(watches.load(Ordering::SeqCst) >= 2);
}
