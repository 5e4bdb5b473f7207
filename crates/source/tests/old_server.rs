//! The source against a server that does not stream lists, says 410 in its own ways, and breaks off.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that fails panics

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resolve::Kind;
use serde_json::{Value, json};
use source::{Source, Target, WatchConfig, connect};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

fn namespace(name: &str, version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "resourceVersion": version.to_string()}})
}

fn status(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

/// What the server was asked, in order: the script below answers by it.
type Asked = Arc<Mutex<Vec<String>>>;

/// Answers requests of one connection: (HTTP status, body).
async fn serve(stream: UnixStream, asked: Asked) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    // One request a connection.
    if let Ok(Some(first)) = lines.next_line().await {
        while lines.next_line().await.unwrap().is_some_and(|l| !l.is_empty()) {}
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let watches = {
            let mut all = asked.lock().unwrap();
            all.push(path.clone());
            all.iter().filter(|p| p.contains("watch=true") && !p.contains("sendInitialEvents")).count()
        };
        let (code, body) = if path.contains("sendInitialEvents=true") {
            (422, status(422, "Invalid").to_string())
        } else if path.contains("watch=true") {
            match watches {
                // Refused with 410 as the HTTP status.
                1 => (410, status(410, "Expired").to_string()),
                // 410 as an event.
                2 => (200, json!({"type": "ERROR", "object": status(410, "Expired")}).to_string() + "\n"),
                // An event, half of another, and the connection ends.
                3 => (200, json!({"type": "ADDED", "object": namespace("c", 11)}).to_string() + "\n{\"type\":"),
                4 => (200, json!({"type": "DELETED", "object": namespace("a", 12)}).to_string() + "\n"),
                _ => return tokio::time::sleep(Duration::from_secs(60)).await,
            }
        } else {
            let (items, next) =
                if path.contains("continue=") { ([namespace("b", 9)], "") } else { ([namespace("a", 8)], "more") };
            // How far it is, asked after the break.
            let version = if path.contains("limit=1&") || path.ends_with("limit=1") { "12" } else { "10" };
            let list = json!({"apiVersion": "v1", "kind": "NamespaceList", "metadata": {"resourceVersion": version, "continue": next}, "items": items});
            (200, list.to_string())
        };
        // No length: the body ends with the connection, as a watch's does.
        let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
        let _ = write.write_all(format!("{head}{body}").as_bytes()).await;
    }
}

async fn listen(path: &Path, asked: Asked) {
    let listener = UnixListener::bind(path).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(stream, Arc::clone(&asked)));
    }
}

#[tokio::test]
async fn pages_expiry_and_broken_watches() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.sock");
    let asked = Asked::default();
    let server = tokio::spawn({
        let (path, asked) = (path.clone(), Arc::clone(&asked));
        async move { listen(&path, asked).await }
    });
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    let api = connect(&Target::Unix(path)).await.unwrap();
    let mut source = Source::start(&api, WatchConfig { kinds: [Kind::Namespace].into(), pods_of: None });
    let end = async {
        let names = |s: &source::ClusterSnapshot| s.namespaces.keys().map(ToString::to_string).collect::<Vec<_>>();
        while source.read(|s, _| names(s)) != ["b", "c"] {
            source.changed().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), end).await.is_err() {
        panic!("{:#?}\n{:#?}", asked.lock().unwrap(), source.read(|s, y| (s.namespaces.clone(), y.clone())));
    }
    let asked = asked.lock().unwrap().clone();
    let streamed = asked.iter().filter(|p| p.contains("sendInitialEvents=true")).count();
    assert_eq!(streamed, 1, "asked once, then paged: {asked:#?}");
    let sync = source.in_sync();
    assert_eq!(sync.lists[&Kind::Namespace], 3, "at first and after each 410, not after a break: {asked:#?}");
    assert!(asked.iter().any(|p| p.contains("limit=50") && p.contains("continue=more")), "{asked:#?}");
    // What broke off is resumed from the last event that came whole.
    assert!(asked.iter().any(|p| p.contains("watch=true") && p.contains("resourceVersion=11")), "{asked:#?}");
    server.abort();
}

/// A server whose etcd was restored: it would take up the watch and be silent.
#[tokio::test]
async fn a_server_that_went_back_in_time_is_listed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restored.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let mut watches = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            let Ok(Some(first)) = lines.next_line().await else { continue };
            while lines.next_line().await.unwrap().is_some_and(|l| !l.is_empty()) {}
            let restored = watches >= 1;
            let (code, body) = if first.contains("sendInitialEvents=true") {
                (422, status(422, "Invalid").to_string())
            } else if first.contains("watch=true") {
                watches += 1;
                if watches > 2 {
                    // Of a version to come there is nothing to say.
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        drop(write);
                    });
                    continue;
                }
                if watches == 1 {
                    (200, json!({"type": "ADDED", "object": namespace("newer", 90)}).to_string() + "\n{\"type\":")
                } else {
                    (503, status(503, "ServiceUnavailable").to_string())
                }
            } else {
                let (item, version) = if restored { (namespace("older", 7), "8") } else { (namespace("a", 80), "80") };
                let meta = json!({"resourceVersion": version});
                (
                    200,
                    json!({"apiVersion": "v1", "kind": "NamespaceList", "metadata": meta, "items": [item]}).to_string(),
                )
            };
            let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
            let _ = write.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    let api = connect(&Target::Unix(path)).await.unwrap();
    let mut source = Source::start(&api, WatchConfig { kinds: [Kind::Namespace].into(), pods_of: None });
    let end = async {
        while source.read(|s, _| s.namespaces.keys().map(ToString::to_string).collect::<Vec<_>>()) != ["older"] {
            source.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), end).await.unwrap();
    server.abort();
}
