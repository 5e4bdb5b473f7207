//! A real process that is killed with signal 9 while clients write: what was acknowledged is there, whole, afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::harness::*;

const CHILD: &str = "SEAWAY_TEST_API_DIR";
/// Where the store is when it is not in that folder.
const STORE: &str = "SEAWAY_TEST_API_STORE";

/// Not a test of its own: the server process of the test below, which is this program again.
#[test]
fn child_server() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut config = config(Path::new(&dir));
    if let Some(store) = std::env::var_os(STORE) {
        config.store = store.into();
    }
    rt.block_on(apiserver::serve(config, std::future::pending())).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CHILD_ARGS: [&str; 4] = ["crash::child_server", "--exact", "--nocapture", "--test-threads=1"];

async fn spawn(dir: &Path) -> Killed {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(CHILD_ARGS).env(CHILD, dir);
    up(c, dir).await
}

/// Starts the process and waits until it answers.
async fn up(mut c: Command, dir: &Path) -> Killed {
    let spawned = c.stdout(Stdio::null()).spawn();
    let mut child = Killed(
        spawned
            .unwrap_or_else(|e| panic!("{:?} cannot be run: {e}: install Debian package util-linux", c.get_program())),
    );
    let end = Instant::now() + PATIENCE;
    while send(&dir.join("api.sock"), "GET", "/readyz", &[], "".into()).await.is_err() {
        assert!(Instant::now() < end, "the server does not come up");
        if let Some(status) = child.0.try_wait().unwrap() {
            panic!("the server process ended, {status}: is this root? (a mount namespace wants it)");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child
}

async fn call(dir: &Path, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let r =
        send(&dir.join("api.sock"), method, path, &[("content-type", "application/json")], text.into()).await.ok()?;
    let code = r.status().as_u16();
    let bytes = r.into_body().collect().await.ok()?.to_bytes();
    Some((code, serde_json::from_slice(&bytes).ok()?))
}

/// What a writer knows of one object: the state it was told of last, and the write it was not answered.
#[derive(Debug, Default, Clone)]
struct Known {
    acked: Option<u64>,
    maybe: Option<Option<u64>>,
}

fn object(name: &str, n: u64) -> Value {
    // Both fields of one write: half of it would show.
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": n.to_string(), "again": format!("{n}-{}", "x".repeat(2000))}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9() {
    let rounds: u32 = std::env::var("SEAWAY_CRASH_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let dir = tempfile::tempdir().unwrap();
    let known: Arc<Mutex<BTreeMap<String, Known>>> = Arc::default();
    let (mut top, mut writes, mut seed) = (0, 0, 88_172_645_463_325_252u64);
    for round in 0..rounds {
        let child = spawn(dir.path()).await;
        let list = call(dir.path(), "GET", CMS, &Value::Null).await.unwrap().1;
        assert!(rv(&list) >= top, "round {round}: the revision went back from {top} to {}", rv(&list));
        let have: BTreeMap<String, Value> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| (o["metadata"]["name"].as_str().unwrap().to_owned(), o.clone()))
            .collect();
        for (name, k) in known.lock().await.iter_mut() {
            let stored = have.get(name).map(|o| {
                let n: u64 = o["data"]["n"].as_str().unwrap().parse().unwrap();
                assert!(o["data"]["again"].as_str().unwrap().starts_with(&format!("{n}-")), "half of a write: {o}");
                n
            });
            assert!(
                stored == k.acked || k.maybe == Some(stored),
                "round {round}: {name} is {stored:?}, known is {k:?}"
            );
            *k = Known { acked: stored, maybe: None };
        }
        let stop = Arc::new(AtomicBool::new(false));
        let highest = Arc::new(Mutex::new(rv(&list)));
        let writers: Vec<_> = (0..4)
            .map(|w| {
                let (known, stop, dir, highest) =
                    (known.clone(), stop.clone(), dir.path().to_path_buf(), highest.clone());
                tokio::spawn(async move {
                    let mut done = 0u32;
                    for i in 0u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("w{w}-{}", i % 7);
                        let n = u64::from(round) * 1_000_000 + i;
                        let now = known.lock().await.get(&name).cloned().unwrap_or_default();
                        let (method, path, body, want) = match now.acked {
                            None => ("POST", CMS.to_owned(), object(&name, n), Some(n)),
                            Some(_) if i % 5 == 0 => ("DELETE", format!("{CMS}/{name}"), Value::Null, None),
                            Some(_) => ("PUT", format!("{CMS}/{name}"), object(&name, n), Some(n)),
                        };
                        known.lock().await.insert(name.clone(), Known { acked: now.acked, maybe: Some(want) });
                        let Some((code, v)) = call(&dir, method, &path, &body).await else { break };
                        assert!(code < 300, "{method} {path}: {code} {v}");
                        known.lock().await.insert(name, Known { acked: want, maybe: None });
                        done += 1;
                        if want.is_some() {
                            let mut h = highest.lock().await;
                            *h = rv(&v).max(*h);
                        }
                    }
                    done
                })
            })
            .collect();
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        tokio::time::sleep(Duration::from_millis(30 + seed % 150)).await;
        drop(child); // signal 9
        stop.store(true, Ordering::Relaxed);
        for w in writers {
            writes += w.await.unwrap();
        }
        top = *highest.lock().await;
    }
    assert!(writes > rounds, "only {writes} writes were made");
}

/// The store is on a small file system of its own, in a mount namespace that ends with the process.
#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut c = Command::new("unshare");
    c.args(["--mount", "sh", "-ec"])
        .arg(r#"mount -t tmpfs -o size=6m tmpfs "$0"; head -c 2000000 /dev/zero > "$0/filler"; exec "$@""#)
        .arg(&disk)
        .arg(std::env::current_exe().unwrap())
        .args(CHILD_ARGS)
        .env(CHILD, dir.path())
        .env(STORE, disk.join("api.redb"));
    // Debian package util-linux; mounting wants root.
    let child = up(c, dir.path()).await;
    let big = |i: u64| object(&format!("c{i}"), i);
    let mut acked = Vec::new();
    let mut refused = None;
    for i in 0..4000 {
        let mut o = big(i);
        o["data"]["fill"] = "x".repeat(20_000).into();
        let (code, v) = call(dir.path(), "POST", CMS, &o).await.unwrap();
        if code == 201 {
            acked.push(format!("c{i}"));
        } else {
            refused = Some((code, v));
            break;
        }
    }
    let (code, e) = refused.expect("6 MB took 80 MB");
    let message = e["message"].as_str().unwrap();
    assert_eq!((code, &e["reason"]), (503, &json!("ServiceUnavailable")));
    assert!(message.contains("api.redb") && message.contains("free some space"), "{message}");
    acked.sort();
    assert_eq!(
        names(&call(dir.path(), "GET", CMS, &Value::Null).await.unwrap().1),
        acked,
        "what was acknowledged is still served"
    );
    // Space comes back: the same server goes on.
    std::fs::remove_file(
        Path::new("/proc")
            .join(child.0.id().to_string())
            .join("root")
            .join(disk.strip_prefix("/").unwrap())
            .join("filler"),
    )
    .unwrap();
    let (code, v) = call(dir.path(), "POST", CMS, &big(9999)).await.unwrap();
    assert_eq!(code, 201, "{v}");
    acked.push("c9999".into());
    acked.sort();
    assert_eq!(names(&call(dir.path(), "GET", CMS, &Value::Null).await.unwrap().1), acked);
}

/// Definitions and the objects of their kinds are killed with the server and come back with it, as all others do.
#[tokio::test]
async fn custom_objects_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let child = spawn(dir.path()).await;
    let (code, v) = call(dir.path(), "POST", crds, &crate::custom::definition()).await.unwrap();
    assert_eq!(code, 201, "{v}");
    let mut acked = Vec::new();
    for n in 0..20 {
        let name = format!("p{n:02}");
        let (code, v) = call(dir.path(), "POST", crate::custom::POOLS, &crate::custom::pool(&name)).await.unwrap();
        assert_eq!(code, 201, "{v}");
        acked.push((name, rv(&v)));
    }
    drop(child);
    let child = spawn(dir.path()).await;
    let (code, list) = call(dir.path(), "GET", crate::custom::POOLS, &Value::Null).await.unwrap();
    assert_eq!(code, 200, "{list}");
    let found: Vec<(String, u64)> =
        names(&list).into_iter().zip(list["items"].as_array().unwrap().iter().map(rv)).collect();
    assert_eq!(found, acked);
    // The definition goes, the server is killed: neither comes back.
    let (code, _) = call(dir.path(), "DELETE", &format!("{crds}/pools.example.com"), &Value::Null).await.unwrap();
    assert_eq!(code, 200);
    drop(child);
    let _child = spawn(dir.path()).await;
    assert_eq!(call(dir.path(), "GET", crate::custom::POOLS, &Value::Null).await.unwrap().0, 404);
}
